/* tokenizer_check.h - is a file a sentencepiece model that is safe to use?
 *
 * The library trusts some of what a model says: offsets inside the compiled
 * normaliser are followed without bounds, and some oddities end the process.
 * So the file is walked here first.  Plain C, no library.
 *
 * Threads: any; no state.
 */
#ifndef SL_ENGINE_TEXT_TOKENIZER_CHECK_H
#define SL_ENGINE_TEXT_TOKENIZER_CHECK_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* SL_ERR_DATA unless the bytes are a unigram ModelProto with pieces that are
 * text and have finite scores, and normalisers whose tables stay inside
 * themselves.  The message does not name the file. */
sl_status sl_tokenizer_check(const uint8_t *bytes, size_t length, sl_error *err) SL_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
