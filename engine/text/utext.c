#include "engine/text/utext.h"

#include <stdlib.h>
#include <string.h>

const uint16_t sl_cp1252_high[32] = {
    0x20ac, 0x0081, 0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160,
    0x2039, 0x0152, 0x008d, 0x017d, 0x008f, 0x0090, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
    0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0x009d, 0x017e, 0x0178,
};

void sl_utext_init(sl_utext *text)
{
    *text = (sl_utext){ 0 };
}

void sl_utext_fini(sl_utext *text)
{
    free(text->at);
    *text = (sl_utext){ 0 };
}

void sl_utext_clear(sl_utext *text)
{
    text->count = 0;
}

void sl_utext_append(sl_utext *text, const uint32_t *code_points, size_t count)
{
    if (text->no_memory || count == 0)
        return;
    if (count > text->capacity - text->count) {
        /* Prompts are bounded by SL_PROMPT_MAX_BYTES: no overflow here. */
        const size_t capacity = (text->count + count) * 2 + 64;
        uint32_t *at = realloc(text->at, capacity * sizeof *at);
        if (!at) {
            text->no_memory = true;
            return;
        }
        text->at = at;
        text->capacity = capacity;
    }
    memcpy(text->at + text->count, code_points, count * sizeof *code_points);
    text->count += count;
}

void sl_utext_push(sl_utext *text, uint32_t code_point)
{
    sl_utext_append(text, &code_point, 1);
}

void sl_utext_swap(sl_utext *a, sl_utext *b)
{
    const sl_utext old = *a;
    *a = *b;
    *b = old;
}

bool sl_utext_equal(const sl_utext *a, const sl_utext *b)
{
    return a->count == b->count &&
           (a->count == 0 || memcmp(a->at, b->at, a->count * sizeof *a->at) == 0);
}

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

bool sl_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}
