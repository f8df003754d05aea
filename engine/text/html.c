/* html.c - HTML character references.
 *
 * Two readers over one table: html.unescape of Python (numbers and names, a
 * missing semicolon allowed where HTML allows it, the longest known name
 * wins), and the strict one of ftfy's repair step.  Sources: WHATWG HTML,
 * "numeric character reference end state"; Python 3, html.unescape; ftfy 6,
 * unescape_html.
 */
#include "engine/text/utext.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;  /* without & and ; */
    uint32_t value[2]; /* one or two code points; 0 ends */
    uint8_t bare;      /* also without a semicolon */
} entity;

typedef struct {
    const char *name;
    uint32_t value[3];
} upper_entity;

#include "engine/text/entities.inc"

enum {
    NAME_MAX_UNESCAPE = 32, /* characters that html.unescape looks at after & */
    NAME_MAX_STRICT = 24,   /* letters and digits between & (or &#) and ; */
};

typedef struct {
    const char *name;
    size_t length;
} name_key;

/* Every row starts with its name. */
static int compare_name(const void *key_ptr, const void *row)
{
    const name_key *key = key_ptr;
    /* the analyser does not see through bsearch that row is one of a table's */
    /* NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Assign) */
    const char *name = *(const char *const *)row;
    const int order = strncmp(key->name, name, key->length);

    if (order != 0)
        return order;
    return name[key->length] == '\0' ? 0 : -1;
}

static const entity *find_entity(const char *name, size_t length)
{
    const name_key key = { name, length };

    return bsearch(&key, entities, SL_COUNT(entities), sizeof entities[0], compare_name);
}

static void push_value(sl_utext *out, const uint32_t *value, size_t most)
{
    for (size_t i = 0; i < most && value[i] != 0; i++)
        sl_utext_push(out, value[i]);
}

static bool is_digit(uint32_t c)
{
    return c >= '0' && c <= '9';
}

static bool is_alnum(uint32_t c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int hex_value(uint32_t c)
{
    if (is_digit(c))
        return (int)(c - '0');
    if (c >= 'a' && c <= 'f')
        return (int)(c - 'a' + 10);
    if (c >= 'A' && c <= 'F')
        return (int)(c - 'A' + 10);
    return -1;
}

/* Non-characters and controls that HTML drops. */
static bool is_dropped(uint32_t c)
{
    return (c >= 0x01 && c <= 0x08) || c == 0x0b || (c >= 0x0e && c <= 0x1f) ||
           (c >= 0x7f && c <= 0x9f) || (c >= 0xfdd0 && c <= 0xfdef) || (c & 0xfffe) == 0xfffe;
}

static void push_number(sl_utext *out, uint32_t number)
{
    if (number >= 0x80 && number <= 0x9f)
        sl_utext_push(out, sl_cp1252_high[number - 0x80]);
    else if (number == 0 || number > 0x10ffff || (number >= 0xd800 && number <= 0xdfff))
        sl_utext_push(out, 0xfffd);
    else if (!is_dropped(number))
        sl_utext_push(out, number);
}

/* at[0] is '#'.  Returns how many code points the number takes, its semicolon
 * with it; 0 if it is no number.  Too large a value stays above U+10FFFF. */
static size_t parse_number(const uint32_t *at, size_t count, uint32_t *number, bool *semicolon)
{
    const bool hex = count > 1 && (at[1] == 'x' || at[1] == 'X');
    const size_t start = hex ? 2 : 1;
    uint32_t value = 0;
    size_t i = start;

    for (; i < count; i++) {
        const int digit = hex ? hex_value(at[i]) : is_digit(at[i]) ? (int)(at[i] - '0') : -1;
        if (digit < 0)
            break;
        if (value <= 0x10ffff)
            value = value * (hex ? 16u : 10u) + (uint32_t)digit;
    }
    if (i == start)
        return 0;
    *number = value;
    *semicolon = i < count && at[i] == ';';
    return i + *semicolon;
}

/* The ASCII that `at` begins with, at most `most` code points of it. */
static size_t copy_ascii(char *name, const uint32_t *at, size_t count, size_t most)
{
    size_t i = 0;

    for (; i < count && i < most && at[i] > 0 && at[i] < 0x80; i++)
        name[i] = (char)at[i];
    return i;
}

/* The longest prefix, 2 characters or more, that is a name without semicolon. */
static const entity *find_bare_prefix(const char *name, size_t length, size_t *taken)
{
    for (size_t n = length; n >= 2; n--) {
        const entity *found = find_entity(name, n);
        if (found && found->bare) {
            *taken = n;
            return found;
        }
    }
    return NULL;
}

/* What stands after an & that is not a number.  Returns how many code points
 * were read; 0 when the & is only itself. */
static size_t unescape_name(sl_utext *out, const uint32_t *at, size_t count)
{
    char name[NAME_MAX_UNESCAPE];
    size_t extent = 0;
    size_t taken = 0;

    while (extent < count && extent < NAME_MAX_UNESCAPE && at[extent] != '\t' &&
           at[extent] != '\n' && at[extent] != '\f' && at[extent] != ' ' && at[extent] != '<' &&
           at[extent] != '&' && at[extent] != '#' && at[extent] != ';')
        extent++;
    const size_t length = copy_ascii(name, at, extent, NAME_MAX_UNESCAPE);
    if (length == extent && extent < count && at[extent] == ';') {
        const entity *whole = find_entity(name, length);
        if (whole) {
            push_value(out, whole->value, SL_COUNT(whole->value));
            return extent + 1;
        }
    }
    const entity *prefix = find_bare_prefix(name, length, &taken);
    if (prefix)
        push_value(out, prefix->value, SL_COUNT(prefix->value));
    return taken;
}

void sl_html_unescape(sl_utext *out, const sl_utext *in)
{
    size_t i = 0;

    while (i < in->count) {
        const uint32_t *rest = in->at + i + 1;
        const size_t left = in->count - i - 1;
        size_t taken = 0;

        if (in->at[i] == '&' && left > 0 && rest[0] == '#') {
            uint32_t number = 0;
            bool semicolon = false;
            taken = parse_number(rest, left, &number, &semicolon);
            if (taken > 0)
                push_number(out, number);
        } else if (in->at[i] == '&') {
            taken = unescape_name(out, rest, left);
        }
        if (taken == 0)
            sl_utext_push(out, in->at[i]);
        i += 1 + taken;
    }
}

/* &EACUTE; and its like: a name in capitals that HTML does not know, not even
 * the beginning of it, and whose lower-case form it does. */
static bool push_shouted(sl_utext *out, const char *name, size_t length)
{
    char lower[NAME_MAX_STRICT];
    size_t taken = 0;

    for (size_t i = 0; i < length; i++) {
        if (name[i] >= 'a' && name[i] <= 'z')
            return false;
        lower[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] - 'A' + 'a' : name[i]);
    }
    const entity *found = find_entity(lower, length);
    if (!found || find_bare_prefix(name, length, &taken))
        return false;

    const name_key key = { lower, length };
    const upper_entity *upper = bsearch(&key, upper_entities, SL_COUNT(upper_entities),
                                        sizeof upper_entities[0], compare_name);
    if (upper)
        push_value(out, upper->value, SL_COUNT(upper->value));
    else
        push_value(out, found->value, SL_COUNT(found->value));
    return true;
}

static bool push_strict(sl_utext *out, const uint32_t *at, size_t length, bool hash)
{
    if (hash) {
        uint32_t number = 0;
        bool semicolon = false;
        const size_t taken = parse_number(at, length + 2, &number, &semicolon);
        /* A number that is ';' itself stays, as the reference has it. */
        if (taken != length + 2 || number == ';')
            return false;
        push_number(out, number);
        return true;
    }

    char name[NAME_MAX_STRICT];
    copy_ascii(name, at, length, NAME_MAX_STRICT);
    const entity *found = find_entity(name, length);
    if (found) {
        push_value(out, found->value, SL_COUNT(found->value));
        return true;
    }
    return push_shouted(out, name, length);
}

void sl_html_unescape_strict(sl_utext *out, const sl_utext *in)
{
    size_t i = 0;

    while (i < in->count) {
        const uint32_t *rest = in->at + i + 1;
        const size_t left = in->count - i - 1;
        size_t length = 0;
        bool done = false;

        if (in->at[i] == '&') {
            const size_t hash = left > 0 && rest[0] == '#';
            while (hash + length < left && length < NAME_MAX_STRICT &&
                   is_alnum(rest[hash + length]))
                length++;
            if (length > 0 && hash + length < left && rest[hash + length] == ';')
                done = push_strict(out, rest, length, hash);
            if (done)
                i += 1 + hash + length + 1;
        }
        if (!done)
            sl_utext_push(out, in->at[i++]);
    }
}
