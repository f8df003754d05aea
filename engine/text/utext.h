/* utext.h - a growing array of code points, for the cleaning steps only.
 *
 * Text is worked on as code points and turned back into UTF-8 once.  A buffer
 * that ran out of memory stays so: pushes do nothing, and whoever made the
 * buffer asks `no_memory` once at the end.
 *
 * Ownership: init/fini, caller's storage.  Threads: one at a time.
 */
#ifndef SL_ENGINE_TEXT_UTEXT_H
#define SL_ENGINE_TEXT_UTEXT_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t *at;
    size_t count;
    size_t capacity;
    bool no_memory;
} sl_utext;

void sl_utext_init(sl_utext *text);
void sl_utext_fini(sl_utext *text);
void sl_utext_clear(sl_utext *text); /* count becomes 0; memory is kept */
void sl_utext_push(sl_utext *text, uint32_t code_point);
void sl_utext_append(sl_utext *text, const uint32_t *code_points, size_t count);
void sl_utext_swap(sl_utext *a, sl_utext *b);
bool sl_utext_equal(const sl_utext *a, const sl_utext *b);

/* What str.isspace of Python says: Unicode White_Space and U+001C..U+001F. */
bool sl_is_space(uint32_t code_point);

/* --- steps that read one buffer and append to another --- */

/* Python's html.unescape. */
void sl_html_unescape(sl_utext *out, const sl_utext *in);

/* Only references that end in a semicolon, also shouted ones (&EACUTE;): the
 * careful form that the repair step uses. */
void sl_html_unescape_strict(sl_utext *out, const sl_utext *in);

/* UTF-8 that was read as latin-1 or windows-1252 becomes what it was, for
 * one line of text; true if anything changed. */
bool sl_mojibake_repair(sl_utext *out, const sl_utext *in);

/* windows-1252 for 0x80..0x9f; bytes without a meaning there stay as they are. */
extern const uint16_t sl_cp1252_high[32];

#endif
