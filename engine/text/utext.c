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

bool sl_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}
