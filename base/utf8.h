/* utf8.h - strict UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing
 * above U+10FFFF.
 *
 * Threads: any; no state.
 */
#ifndef SL_BASE_UTF8_H
#define SL_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How many bytes the code point at `bytes` takes, 0 if it is not valid; length
 * is 1 or more. */
size_t sl_utf8_decode(const uint8_t *bytes, size_t length, uint32_t *code_point);
size_t sl_utf8_encode(uint32_t code_point, uint8_t bytes[4]);

bool sl_utf8_valid(const char *text); /* up to its NUL */

#endif
