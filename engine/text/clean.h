/* clean.h - prompt text as the reference cleans it before tokenizing.
 *
 * The repair of ftfy.fix_text line by line (HTML references unless the text
 * has a '<', garbled UTF-8, C1 controls, Latin ligatures, full-width and
 * half-width forms, curly quotes, line breaks, ANSI escapes, control
 * characters, NFC), then html.unescape twice, then every run of Unicode white
 * space becomes one U+0020, without any at the ends.  For ASCII without
 * references and escapes only white space changes.  Source: wan.md 3.1.
 *
 * Not as the reference: garbled text is repaired only where UTF-8 was read as
 * latin-1 or windows-1252 and no byte was lost (mojibake.c), and references
 * that were escaped more than 32 times stay escaped.
 *
 * Threads: any; no state.
 */
#ifndef SL_ENGINE_TEXT_CLEAN_H
#define SL_ENGINE_TEXT_CLEAN_H

#include "base/status.h"

#include <stddef.h>

/* text: length bytes, UTF-8.  *out is malloc'd, NUL-terminated, the caller's.
 * SL_ERR_INVALID for text that is not UTF-8, contains NUL or is longer than
 * SL_PROMPT_MAX_BYTES. */
enum { SL_PROMPT_MAX_BYTES = 64 * 1024 };
sl_status sl_clean_prompt(char **out, const char *text, size_t length, sl_error *err) SL_MUST_CHECK;

#endif
