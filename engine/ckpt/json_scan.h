/* json_scan.h - a strict forward-only JSON reader for headers of untrusted files.
 *
 * Checkpoint headers can be 100 MB and come from anywhere, so nothing is built
 * in memory: the caller walks the text and takes what it expects.  Stricter
 * than a general parser where that matters here: integers are exact (no
 * doubles, no "2.4e1"), strings must be valid UTF-8 without NUL, nesting is
 * bounded.
 *
 * Each function returns SL_ERR_DATA with the byte position and what was wrong.
 * Threads: one at a time per scan.
 */
#ifndef SL_ENGINE_CKPT_JSON_SCAN_H
#define SL_ENGINE_CKPT_JSON_SCAN_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SL_JSON_MAX_DEPTH = 32 };

typedef struct {
    const char *text; /* borrowed, need not be terminated */
    size_t size_bytes;
    size_t pos;
} sl_json_scan;

static inline sl_json_scan sl_json_begin(const char *text, size_t size_bytes)
{
    return (sl_json_scan){ .text = text, .size_bytes = size_bytes };
}

/* The first character of the next value, '\0' at the end of the text. */
char sl_json_peek(sl_json_scan *scan);

/* Enters '{' or '['; *more says whether it has a first member. */
sl_status sl_json_enter(sl_json_scan *scan, char bracket, bool *more, sl_error *err) SL_MUST_CHECK;
/* After a member: takes ',' (*more = true) or the closing bracket. */
sl_status sl_json_next(sl_json_scan *scan, char bracket, bool *more, sl_error *err) SL_MUST_CHECK;

/* A string, unescaped and NUL-terminated, into out[capacity]; longer than that
 * is refused.  Never more bytes than the string takes in the text, quotes
 * included.  out may be NULL: checked only. */
sl_status sl_json_string(sl_json_scan *scan, char *out, size_t capacity, size_t *length,
                         sl_error *err) SL_MUST_CHECK;
/* The same, and the ':' behind it. */
sl_status sl_json_key(sl_json_scan *scan, char *out, size_t capacity, size_t *length,
                      sl_error *err) SL_MUST_CHECK;
/* A non-negative integer written as digits. */
sl_status sl_json_integer(sl_json_scan *scan, int64_t *out, sl_error *err) SL_MUST_CHECK;
/* Any value, checked and dropped. */
sl_status sl_json_skip(sl_json_scan *scan, sl_error *err) SL_MUST_CHECK;
/* Nothing but white space may follow. */
sl_status sl_json_end(sl_json_scan *scan, sl_error *err) SL_MUST_CHECK;

#endif
