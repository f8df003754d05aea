/* golden_json.h - the JSON of a golden case as a tree.
 *
 * Small on purpose: golden_test must build on a machine that has a compiler and
 * little else.
 *
 * Ownership: everything lives in the arena that the parser was given.
 */
#ifndef SL_TESTS_GOLDEN_JSON_H
#define SL_TESTS_GOLDEN_JSON_H

#include "base/arena.h"
#include "base/status.h"

#include <stdbool.h>

typedef enum {
    GOLDEN_JSON_NULL,
    GOLDEN_JSON_FALSE,
    GOLDEN_JSON_TRUE,
    GOLDEN_JSON_NUMBER,
    GOLDEN_JSON_STRING,
    GOLDEN_JSON_ARRAY,
    GOLDEN_JSON_OBJECT,
} golden_json_kind;

typedef struct golden_json {
    golden_json_kind kind;
    const char *key;           /* NULL outside of objects */
    const char *text;          /* of a string */
    double number;             /* of a number */
    struct golden_json *child; /* the first member of an array or object */
    struct golden_json *next;  /* in the same array or object */
} golden_json;

sl_status golden_json_parse(golden_json **out, sl_arena *arena, const char *text, size_t size_bytes,
                            sl_error *err) SL_MUST_CHECK;

/* False, NULL or 0 for a NULL value. */
bool golden_json_is(const golden_json *value, golden_json_kind kind);
const golden_json *golden_json_get(const golden_json *object, const char *key);
int golden_json_count(const golden_json *list);

#endif
