/* clean.c - the steps of clean.h in their order.
 *
 * As in the reference, the repair steps work line by line and are repeated
 * until a line no longer changes; the plain html.unescape and the white space
 * follow on the whole text.  Source: wan.md 3.1; ftfy 6, fix_text with its
 * default configuration.
 */
#include "engine/text/clean.h"
#include "engine/text/utext.h"

#include "base/utf8.h"

#include <utf8proc.h>

#include <stdlib.h>
#include <string.h>

/* &amp;amp;amp;... loses one level in each pass.  Nobody writes more levels
 * than this; without a bound a prompt of them would take minutes. */
enum { REPAIR_PASSES_MAX = 32 };

static sl_status decode_prompt(sl_utext *out, const char *text, size_t length, sl_error *err)
{
    const uint8_t *bytes = (const uint8_t *)text;

    if (length > SL_PROMPT_MAX_BYTES)
        return sl_fail(err, SL_ERR_INVALID, "the prompt has %zu bytes, more than %d", length,
                       SL_PROMPT_MAX_BYTES);
    for (size_t i = 0; i < length;) {
        uint32_t c = 0;
        const size_t size = sl_utf8_decode(bytes + i, length - i, &c);
        if (size == 0)
            return sl_fail(err, SL_ERR_INVALID, "the prompt is not UTF-8: byte 0x%02x at %zu",
                           bytes[i], i);
        if (c == 0)
            return sl_fail(err, SL_ERR_INVALID, "the prompt has a NUL byte at %zu", i);
        sl_utext_push(out, c);
        i += size;
    }
    return SL_OK;
}

static char *encode_prompt(const sl_utext *text)
{
    char *out = malloc(text->count * 4 + 1);
    size_t length = 0;

    if (!out)
        return NULL;
    for (size_t i = 0; i < text->count; i++) {
        uint8_t bytes[4];
        const size_t size = sl_utf8_encode(text->at[i], bytes);
        memcpy(out + length, bytes, size);
        length += size;
    }
    out[length] = '\0';
    return out;
}

/* Latin ligatures and digraphs in one character. */
static const struct {
    uint32_t from;
    uint32_t to[3];
} ligatures[] = {
    { 0x0132, { 'I', 'J' } },      { 0x0133, { 'i', 'j' } },      { 0x0149, { 0x02bc, 'n' } },
    { 0x01c4, { 'D', 0x017d } },   { 0x01c5, { 'D', 0x017e } },   { 0x01c6, { 'd', 0x017e } },
    { 0x01c7, { 'L', 'J' } },      { 0x01c8, { 'L', 'j' } },      { 0x01c9, { 'l', 'j' } },
    { 0x01ca, { 'N', 'J' } },      { 0x01cb, { 'N', 'j' } },      { 0x01cc, { 'n', 'j' } },
    { 0x01f1, { 'D', 'Z' } },      { 0x01f2, { 'D', 'z' } },      { 0x01f3, { 'd', 'z' } },
    { 0xfb00, { 'f', 'f' } },      { 0xfb01, { 'f', 'i' } },      { 0xfb02, { 'f', 'l' } },
    { 0xfb03, { 'f', 'f', 'i' } }, { 0xfb04, { 'f', 'f', 'l' } }, { 0xfb05, { 0x017f, 't' } },
    { 0xfb06, { 's', 't' } },
};

static bool push_ligature(sl_utext *out, uint32_t c)
{
    for (size_t i = 0; i < SL_COUNT(ligatures); i++) {
        if (ligatures[i].from != c)
            continue;
        for (size_t k = 0; k < SL_COUNT(ligatures[i].to) && ligatures[i].to[k] != 0; k++)
            sl_utext_push(out, ligatures[i].to[k]);
        return true;
    }
    return false;
}

/* U+FF01..U+FFEF become what NFKC makes of them, U+3000 a space. */
static void push_width(sl_utext *out, uint32_t c)
{
    utf8proc_int32_t parts[8];
    int boundary = 0;

    if (c == 0x3000) {
        sl_utext_push(out, ' ');
        return;
    }
    if (c < 0xff01 || c > 0xffef) {
        sl_utext_push(out, c);
        return;
    }
    /* Every one of them becomes one character, or a space and a mark. */
    const utf8proc_ssize_t n =
        utf8proc_decompose_char((utf8proc_int32_t)c, parts, SL_COUNT(parts),
                                UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, &boundary);
    if (n < 1 || n > (utf8proc_ssize_t)SL_COUNT(parts)) {
        sl_utext_push(out, c);
        return;
    }
    for (utf8proc_ssize_t i = 0; i < n; i++)
        sl_utext_push(out, (uint32_t)parts[i]);
}

static uint32_t uncurl(uint32_t c)
{
    if (c == 0x02bc || (c >= 0x2018 && c <= 0x201b))
        return '\'';
    if (c >= 0x201c && c <= 0x201f)
        return '"';
    return c;
}

/* C1 controls, ligatures, widths, quotes: steps that look at one character,
 * each at what the one before it has made. */
static void fix_characters(sl_utext *out, const sl_utext *in, sl_utext *scratch)
{
    sl_utext_clear(scratch);
    for (size_t i = 0; i < in->count; i++) {
        uint32_t c = in->at[i];
        if (c >= 0x80 && c <= 0x9f)
            c = sl_cp1252_high[c - 0x80];
        if (!push_ligature(scratch, c))
            push_width(scratch, c);
    }
    for (size_t i = 0; i < scratch->count; i++)
        sl_utext_push(out, uncurl(scratch->at[i]));
    out->no_memory = out->no_memory || scratch->no_memory;
}

static void fix_line_breaks(sl_utext *out, const sl_utext *in)
{
    for (size_t i = 0; i < in->count; i++) {
        const uint32_t c = in->at[i];
        if (c == '\r' && i + 1 < in->count && in->at[i + 1] == '\n')
            continue;
        sl_utext_push(out, c == '\r' || c == 0x2028 || c == 0x2029 ? '\n' : c);
    }
}

/* The length of ESC [ digits-and-semicolons letter, 0 if that is not there. */
static size_t escape_length(const uint32_t *at, size_t count)
{
    size_t n = 2;

    if (count < 3 || at[0] != 0x1b || at[1] != '[')
        return 0;
    while (n < count &&
           (at[n] == ';' || utf8proc_category((utf8proc_int32_t)at[n]) == UTF8PROC_CATEGORY_ND))
        n++;
    if (n < count && ((at[n] >= 'a' && at[n] <= 'z') || (at[n] >= 'A' && at[n] <= 'Z')))
        return n + 1;
    return 0;
}

static bool is_removed_control(uint32_t c)
{
    return c <= 0x08 || c == 0x0b || (c >= 0x0e && c <= 0x1f) || c == 0x7f ||
           (c >= 0x206a && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffc);
}

/* Escape sequences go first: without its ESC the rest of one would stay. */
static void remove_escapes_and_controls(sl_utext *out, const sl_utext *in)
{
    for (size_t i = 0; i < in->count;) {
        const size_t escape = escape_length(in->at + i, in->count - i);
        if (escape > 0) {
            i += escape;
            continue;
        }
        if (!is_removed_control(in->at[i]))
            sl_utext_push(out, in->at[i]);
        i++;
    }
}

static void normalize_nfc(sl_utext *text)
{
    utf8proc_uint8_t *composed = NULL;
    bool plain = true;

    for (size_t i = 0; i < text->count && plain; i++)
        plain = text->at[i] < 0x300; /* nothing below combines */
    if (plain || text->no_memory)
        return;

    char *bytes = encode_prompt(text);
    if (!bytes) {
        text->no_memory = true;
        return;
    }
    const utf8proc_ssize_t n =
        utf8proc_map((const utf8proc_uint8_t *)bytes, (utf8proc_ssize_t)strlen(bytes), &composed,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    free(bytes);
    if (n < 0) { /* the text is valid: only memory is left as a reason */
        text->no_memory = true;
        return;
    }
    sl_utext_clear(text);
    for (utf8proc_ssize_t i = 0; i < n;) {
        uint32_t c = 0;
        const size_t size = sl_utf8_decode(composed + i, (size_t)(n - i), &c);
        SL_ASSERT(size > 0);
        sl_utext_push(text, c);
        i += (utf8proc_ssize_t)size;
    }
    free(composed);
}

/* Repairs until nothing changes: what was garbled twice needs it twice. */
static void repair_encoding(sl_utext *line, sl_utext *scratch)
{
    for (int pass = 0; pass < REPAIR_PASSES_MAX; pass++) {
        sl_utext_clear(scratch);
        if (!sl_mojibake_repair(scratch, line))
            break;
        sl_utext_swap(line, scratch);
    }
}

static void repair_line(sl_utext *line, sl_utext *scratch, bool unescape)
{
    sl_utext before;
    sl_utext narrow;

    sl_utext_init(&before);
    sl_utext_init(&narrow);
    for (int pass = 0; pass < REPAIR_PASSES_MAX; pass++) {
        sl_utext_clear(&before);
        sl_utext_append(&before, line->at, line->count);
        if (unescape) {
            sl_utext_clear(scratch);
            sl_html_unescape_strict(scratch, line);
            sl_utext_swap(line, scratch);
        }
        repair_encoding(line, scratch);
        sl_utext_clear(scratch);
        fix_characters(scratch, line, &narrow);
        sl_utext_clear(line);
        fix_line_breaks(line, scratch);
        sl_utext_clear(scratch);
        remove_escapes_and_controls(scratch, line);
        sl_utext_swap(line, scratch);
        normalize_nfc(line);
        if (sl_utext_equal(line, &before))
            break;
    }
    line->no_memory = line->no_memory || before.no_memory || narrow.no_memory;
    sl_utext_fini(&narrow);
    sl_utext_fini(&before);
}

/* Line by line.  From the first line with a '<' on, references are left for
 * the plain unescape: such text is markup, not text that was escaped. */
static void repair_text(sl_utext *out, const sl_utext *in, sl_utext *scratch)
{
    sl_utext line;
    bool unescape = true;
    size_t end = 0;

    sl_utext_init(&line);
    for (size_t start = 0; start < in->count; start = end) {
        end = start;
        while (end < in->count && in->at[end] != '\n')
            end++;
        end += end < in->count;
        for (size_t i = start; i < end; i++)
            unescape = unescape && in->at[i] != '<';
        sl_utext_clear(&line);
        sl_utext_append(&line, in->at + start, end - start);
        repair_line(&line, scratch, unescape);
        sl_utext_append(out, line.at, line.count);
    }
    out->no_memory = out->no_memory || line.no_memory;
    sl_utext_fini(&line);
}

static void collapse_space(sl_utext *out, const sl_utext *in)
{
    bool space = false;

    for (size_t i = 0; i < in->count; i++) {
        if (sl_is_space(in->at[i])) {
            space = true;
            continue;
        }
        if (space && out->count > 0)
            sl_utext_push(out, ' ');
        space = false;
        sl_utext_push(out, in->at[i]);
    }
}

sl_status sl_clean_prompt(char **out, const char *text, size_t length, sl_error *err)
{
    sl_utext a, b, scratch;
    char *cleaned = NULL;

    sl_utext_init(&a);
    sl_utext_init(&b);
    sl_utext_init(&scratch);
    sl_status status = decode_prompt(&a, text, length, err);
    if (status != SL_OK)
        goto done;
    repair_text(&b, &a, &scratch);
    sl_utext_clear(&a);
    sl_html_unescape(&a, &b);
    sl_utext_clear(&b);
    sl_html_unescape(&b, &a);
    sl_utext_clear(&a);
    collapse_space(&a, &b);
    if (!a.no_memory && !b.no_memory && !scratch.no_memory)
        cleaned = encode_prompt(&a);
    if (!cleaned) {
        status =
            sl_fail(err, SL_ERR_NO_MEMORY, "out of memory cleaning a prompt of %zu bytes", length);
        goto done;
    }
    *out = cleaned;
done:
    sl_utext_fini(&scratch);
    sl_utext_fini(&b);
    sl_utext_fini(&a);
    return status;
}
