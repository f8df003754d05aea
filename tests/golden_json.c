#include "tests/golden_json.h"

#include "engine/ckpt/json_scan.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    sl_json_scan scan;
    sl_arena *arena;
    char *scratch; /* as large as the text: no string is longer */
    int depth;
} parser;

static sl_status parse_value(parser *p, golden_json *out, sl_error *err);

static sl_status parse_string(parser *p, bool is_key, const char **out, sl_error *err)
{
    size_t length = 0;
    char *text;
    const sl_status status =
        is_key ? sl_json_key(&p->scan, p->scratch, p->scan.size_bytes + 1, &length, err)
               : sl_json_string(&p->scan, p->scratch, p->scan.size_bytes + 1, &length, err);

    if (status != SL_OK)
        return status;
    text = sl_arena_alloc(p->arena, length + 1);
    if (!text)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a text");
    memcpy(text, p->scratch, length + 1);
    *out = text;
    return SL_OK;
}

static sl_status parse_members(parser *p, golden_json *out, char bracket, sl_error *err)
{
    golden_json **at = &out->child;
    bool more = false;
    sl_status status = SL_OK;

    if (++p->depth > SL_JSON_MAX_DEPTH)
        return sl_fail(err, SL_ERR_DATA, "nested more than %d deep", (int)SL_JSON_MAX_DEPTH);
    status = sl_json_enter(&p->scan, bracket, &more, err);
    while (status == SL_OK && more) {
        golden_json *member = sl_arena_alloc(p->arena, sizeof *member);

        if (!member)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a value");
        *member = (golden_json){ .kind = GOLDEN_JSON_NULL };
        if (bracket == '{')
            status = parse_string(p, true, &member->key, err);
        if (status == SL_OK)
            status = parse_value(p, member, err);
        if (status == SL_OK)
            status = sl_json_next(&p->scan, bracket, &more, err);
        *at = member;
        at = &member->next;
    }
    p->depth--;
    return status;
}

/* A number or a word: the text is terminated, so that nothing reads behind it. */
static sl_status parse_scalar(parser *p, golden_json *out, sl_error *err)
{
    static const struct {
        const char *word;
        golden_json_kind kind;
    } words[] = { { "null", GOLDEN_JSON_NULL },
                  { "false", GOLDEN_JSON_FALSE },
                  { "true", GOLDEN_JSON_TRUE } };
    const char *at = p->scan.text + p->scan.pos;
    char *end;

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strncmp(at, words[i].word, strlen(words[i].word)) == 0) {
            out->kind = words[i].kind;
            p->scan.pos += strlen(words[i].word);
            return SL_OK;
        }
    if (*at != '-' && (*at < '0' || *at > '9'))
        return sl_fail(err, SL_ERR_DATA, "byte %zu: expected a value", p->scan.pos);
    out->kind = GOLDEN_JSON_NUMBER;
    out->number = strtod(at, &end);
    p->scan.pos += (size_t)(end - at);
    return SL_OK;
}

static sl_status parse_value(parser *p, golden_json *out, sl_error *err)
{
    switch (sl_json_peek(&p->scan)) {
    case '{':
        out->kind = GOLDEN_JSON_OBJECT;
        return parse_members(p, out, '{', err);
    case '[':
        out->kind = GOLDEN_JSON_ARRAY;
        return parse_members(p, out, '[', err);
    case '"':
        out->kind = GOLDEN_JSON_STRING;
        return parse_string(p, false, &out->text, err);
    default:
        return parse_scalar(p, out, err);
    }
}

sl_status golden_json_parse(golden_json **out, sl_arena *arena, const char *text, size_t size_bytes,
                            sl_error *err)
{
    parser p = { .scan = sl_json_begin(text, size_bytes), .arena = arena };
    golden_json *root = sl_arena_alloc(arena, sizeof *root);
    sl_status status;

    p.scratch = malloc(size_bytes + 1);
    if (!root || !p.scratch) {
        free(p.scratch);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a case's JSON");
    }
    *root = (golden_json){ .kind = GOLDEN_JSON_NULL };
    status = parse_value(&p, root, err);
    if (status == SL_OK)
        status = sl_json_end(&p.scan, err);
    free(p.scratch);
    if (status == SL_OK)
        *out = root;
    return status;
}

bool golden_json_is(const golden_json *value, golden_json_kind kind)
{
    return value && value->kind == kind;
}

const golden_json *golden_json_get(const golden_json *object, const char *key)
{
    if (!golden_json_is(object, GOLDEN_JSON_OBJECT))
        return NULL;
    for (const golden_json *m = object->child; m; m = m->next)
        if (strcmp(m->key, key) == 0)
            return m;
    return NULL;
}

int golden_json_count(const golden_json *list)
{
    int count = 0;

    for (const golden_json *m = list ? list->child : NULL; m; m = m->next)
        count++;
    return count;
}
