#include "base/utf8.h"

#include <string.h>

size_t sl_utf8_decode(const uint8_t *bytes, size_t length, uint32_t *code_point)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };
    const uint8_t lead = bytes[0];
    size_t size = 1;
    uint32_t value = lead;

    if (lead >= 0xf5 || (lead >= 0x80 && lead < 0xc2))
        return 0;
    if (lead >= 0xf0) {
        size = 4;
        value = lead & 0x07;
    } else if (lead >= 0xe0) {
        size = 3;
        value = lead & 0x0f;
    } else if (lead >= 0xc2) {
        size = 2;
        value = lead & 0x1f;
    }
    if (size > length)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if ((bytes[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (bytes[i] & 0x3f);
    }
    if (value < least[size] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        return 0;
    *code_point = value;
    return size;
}

size_t sl_utf8_encode(uint32_t code_point, uint8_t bytes[4])
{
    if (code_point < 0x80) {
        bytes[0] = (uint8_t)code_point;
        return 1;
    }
    if (code_point < 0x800) {
        bytes[0] = (uint8_t)(0xc0 | code_point >> 6);
        bytes[1] = (uint8_t)(0x80 | (code_point & 0x3f));
        return 2;
    }
    if (code_point < 0x10000) {
        bytes[0] = (uint8_t)(0xe0 | code_point >> 12);
        bytes[1] = (uint8_t)(0x80 | (code_point >> 6 & 0x3f));
        bytes[2] = (uint8_t)(0x80 | (code_point & 0x3f));
        return 3;
    }
    bytes[0] = (uint8_t)(0xf0 | code_point >> 18);
    bytes[1] = (uint8_t)(0x80 | (code_point >> 12 & 0x3f));
    bytes[2] = (uint8_t)(0x80 | (code_point >> 6 & 0x3f));
    bytes[3] = (uint8_t)(0x80 | (code_point & 0x3f));
    return 4;
}

/* Eight at once: most text is ASCII, and a hostile one is as long as it may be. */
static size_t count_ascii(const uint8_t *at, size_t length)
{
    size_t count = 0;
    uint64_t eight;

    for (; length - count >= sizeof eight; count += sizeof eight) {
        memcpy(&eight, at + count, sizeof eight);
        if (eight & UINT64_C(0x8080808080808080))
            break;
    }
    return count;
}

bool sl_utf8_valid(const char *text)
{
    const uint8_t *at = (const uint8_t *)text;
    size_t left = strlen(text), size = 0;

    for (uint32_t c; left > 0; at += size, left -= size) {
        size = count_ascii(at, left);
        if (size > 0)
            continue;
        size = sl_utf8_decode(at, left, &c);
        if (size == 0)
            return false;
    }
    return true;
}
