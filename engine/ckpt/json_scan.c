#include "engine/ckpt/json_scan.h"

#include "base/utf8.h"

#include <string.h>

static sl_status fail(const sl_json_scan *scan, sl_error *err, const char *why)
{
    if (scan->pos >= scan->size_bytes)
        return sl_fail(err, SL_ERR_DATA, "JSON ends at byte %zu: %s", scan->pos, why);
    return sl_fail(err, SL_ERR_DATA, "JSON byte %zu: %s", scan->pos, why);
}

static void skip_space(sl_json_scan *scan)
{
    while (scan->pos < scan->size_bytes) {
        const char c = scan->text[scan->pos];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r')
            return;
        scan->pos++;
    }
}

char sl_json_peek(sl_json_scan *scan)
{
    skip_space(scan);
    return scan->pos < scan->size_bytes ? scan->text[scan->pos] : '\0';
}

static bool take(sl_json_scan *scan, char c)
{
    if (sl_json_peek(scan) != c || scan->pos >= scan->size_bytes)
        return false;
    scan->pos++;
    return true;
}

static char closing(char bracket)
{
    return bracket == '{' ? '}' : ']';
}

sl_status sl_json_enter(sl_json_scan *scan, char bracket, bool *more, sl_error *err)
{
    if (!take(scan, bracket))
        return fail(scan, err, bracket == '{' ? "expected an object" : "expected an array");
    *more = !take(scan, closing(bracket));
    return SL_OK;
}

sl_status sl_json_next(sl_json_scan *scan, char bracket, bool *more, sl_error *err)
{
    if (take(scan, ',')) {
        *more = true;
        return SL_OK;
    }
    if (!take(scan, closing(bracket)))
        return fail(scan, err, bracket == '{' ? "expected ',' or '}'" : "expected ',' or ']'");
    *more = false;
    return SL_OK;
}

static bool take_hex4(sl_json_scan *scan, uint32_t *out)
{
    uint32_t value = 0;

    if (scan->size_bytes - scan->pos < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        const char c = scan->text[scan->pos + (size_t)i];
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return false;
        value = value << 4 | digit;
    }
    scan->pos += 4;
    *out = value;
    return true;
}

/* Behind "\u": four digits, or two such groups for a surrogate pair. */
static sl_status take_unicode(sl_json_scan *scan, uint32_t *out, sl_error *err)
{
    uint32_t code = 0, low = 0;

    if (!take_hex4(scan, &code))
        return fail(scan, err, "bad \\u escape");
    if (code == 0)
        return fail(scan, err, "NUL in a string");
    if (code >= 0xdc00 && code <= 0xdfff)
        return fail(scan, err, "lone surrogate in a string");
    if (code >= 0xd800 && code <= 0xdbff) {
        if (scan->size_bytes - scan->pos < 6 || memcmp(scan->text + scan->pos, "\\u", 2) != 0)
            return fail(scan, err, "lone surrogate in a string");
        scan->pos += 2;
        if (!take_hex4(scan, &low) || low < 0xdc00 || low > 0xdfff)
            return fail(scan, err, "lone surrogate in a string");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *out = code;
    return SL_OK;
}

/* Behind a backslash. */
static sl_status take_escape(sl_json_scan *scan, char *out, size_t *length, sl_error *err)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    uint32_t code = 0;
    sl_status status;
    const char *found;
    char c;

    if (scan->pos >= scan->size_bytes)
        return fail(scan, err, "unterminated string");
    c = scan->text[scan->pos++];
    if (c == 'u') {
        status = take_unicode(scan, &code, err);
        if (status == SL_OK)
            *length = sl_utf8_encode(code, (uint8_t *)out);
        return status;
    }
    found = c ? strchr(from, c) : NULL;
    if (!found)
        return fail(scan, err, "unknown escape");
    out[0] = to[found - from];
    *length = 1;
    return SL_OK;
}

sl_status sl_json_string(sl_json_scan *scan, char *out, size_t capacity, size_t *length,
                         sl_error *err)
{
    size_t used = 0;

    if (!take(scan, '"'))
        return fail(scan, err, "expected a string");
    for (;;) {
        const unsigned char *s = (const unsigned char *)scan->text + scan->pos;
        char piece[4];
        uint32_t code;
        size_t n = 0;

        if (scan->pos >= scan->size_bytes)
            return fail(scan, err, "unterminated string");
        if (*s == '"')
            break;
        if (*s < 0x20)
            return fail(scan, err, "control character in a string");
        if (*s == '\\') {
            scan->pos++;
            const sl_status status = take_escape(scan, piece, &n, err);
            if (status != SL_OK)
                return status;
        } else {
            n = sl_utf8_decode(s, scan->size_bytes - scan->pos, &code);
            if (n == 0)
                return fail(scan, err, "invalid UTF-8 in a string");
            memcpy(piece, s, n);
            scan->pos += n;
        }
        if (out) {
            if (used + n >= capacity)
                return fail(scan, err, "string is too long here");
            memcpy(out + used, piece, n);
        }
        used += n;
    }
    scan->pos++;
    if (out)
        out[used] = '\0';
    if (length)
        *length = used;
    return SL_OK;
}

sl_status sl_json_key(sl_json_scan *scan, char *out, size_t capacity, size_t *length, sl_error *err)
{
    const sl_status status = sl_json_string(scan, out, capacity, length, err);

    if (status == SL_OK && !take(scan, ':'))
        return fail(scan, err, "expected ':'");
    return status;
}

static bool is_digit(const sl_json_scan *scan)
{
    return scan->pos < scan->size_bytes && scan->text[scan->pos] >= '0' &&
           scan->text[scan->pos] <= '9';
}

sl_status sl_json_integer(sl_json_scan *scan, int64_t *out, sl_error *err)
{
    int64_t value = 0;
    size_t first;

    skip_space(scan);
    first = scan->pos;
    if (!is_digit(scan))
        return fail(scan, err, "expected a non-negative integer");
    for (; is_digit(scan); scan->pos++) {
        if (scan->pos > first && value == 0)
            return fail(scan, err, "integer with a leading zero");
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, scan->text[scan->pos] - '0', &value))
            return fail(scan, err, "integer does not fit 63 bits");
    }
    if (scan->pos < scan->size_bytes && strchr(".eE", scan->text[scan->pos]) &&
        scan->text[scan->pos] != '\0')
        return fail(scan, err, "must be an integer without fraction or exponent");
    *out = value;
    return SL_OK;
}

/* -?(0|[1-9][0-9]*)(.[0-9]+)?([eE][+-]?[0-9]+)? */
static sl_status skip_number(sl_json_scan *scan, sl_error *err)
{
    if (scan->text[scan->pos] == '-')
        scan->pos++;
    if (!is_digit(scan))
        return fail(scan, err, "expected a value");
    if (scan->text[scan->pos] == '0')
        scan->pos++;
    else
        while (is_digit(scan))
            scan->pos++;
    if (scan->pos < scan->size_bytes && scan->text[scan->pos] == '.') {
        scan->pos++;
        if (!is_digit(scan))
            return fail(scan, err, "bad number");
        while (is_digit(scan))
            scan->pos++;
    }
    if (scan->pos < scan->size_bytes && (scan->text[scan->pos] | 0x20) == 'e') {
        scan->pos++;
        if (scan->pos < scan->size_bytes &&
            (scan->text[scan->pos] == '+' || scan->text[scan->pos] == '-'))
            scan->pos++;
        if (!is_digit(scan))
            return fail(scan, err, "bad number");
        while (is_digit(scan))
            scan->pos++;
    }
    return SL_OK;
}

static sl_status skip_scalar(sl_json_scan *scan, sl_error *err)
{
    static const char *const words[] = { "true", "false", "null" };
    const char c = sl_json_peek(scan);

    if (c == '"')
        return sl_json_string(scan, NULL, 0, NULL, err);
    for (size_t i = 0; i < SL_COUNT(words); i++) {
        const size_t n = strlen(words[i]);
        if (scan->size_bytes - scan->pos >= n && memcmp(scan->text + scan->pos, words[i], n) == 0) {
            scan->pos += n;
            return SL_OK;
        }
    }
    if (c == '\0')
        return fail(scan, err, "expected a value");
    return skip_number(scan, err);
}

sl_status sl_json_skip(sl_json_scan *scan, sl_error *err)
{
    char open[SL_JSON_MAX_DEPTH];
    int depth = 0;
    sl_status status = SL_OK;

    do {
        const char c = sl_json_peek(scan);
        bool more = false;

        if (c == '{' || c == '[') {
            if (depth == SL_JSON_MAX_DEPTH)
                return fail(scan, err, "nested too deep");
            status = sl_json_enter(scan, c, &more, err);
            open[depth++] = c;
        } else {
            status = skip_scalar(scan, err);
            if (status == SL_OK && depth > 0)
                status = sl_json_next(scan, open[depth - 1], &more, err);
        }
        while (status == SL_OK && !more && depth > 0) {
            depth--;
            if (depth > 0)
                status = sl_json_next(scan, open[depth - 1], &more, err);
        }
        if (status == SL_OK && more && open[depth - 1] == '{')
            status = sl_json_key(scan, NULL, 0, NULL, err);
    } while (status == SL_OK && depth > 0);
    return status;
}

sl_status sl_json_end(sl_json_scan *scan, sl_error *err)
{
    skip_space(scan);
    if (scan->pos < scan->size_bytes)
        return fail(scan, err, "unexpected text behind the last value");
    return SL_OK;
}
