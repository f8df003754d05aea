/* tokenizer.h - text to umT5 token ids, by the model file's own rules.
 *
 * A thin shim over the sentencepiece library (unigram; normaliser and byte
 * fallback as the file says).  Encoding appends </s>, adds no BOS, and cuts to
 * max_ids - 1 ids plus </s>.  Source: wan.md 3.2.
 *
 * Ownership: the opener closes.  Threads: encode from any thread.
 */
#ifndef SL_ENGINE_TEXT_TOKENIZER_H
#define SL_ENGINE_TEXT_TOKENIZER_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sl_tokenizer sl_tokenizer;

/* SL_ERR_DATA for a file that is not a sentencepiece unigram model, that is
 * damaged, or that has no </s> or no <unk> piece.  The file is read whole; at
 * most 64 MiB.  SL_ERR_UNIMPLEMENTED in a build without sentencepiece. */
sl_status sl_tokenizer_open(sl_tokenizer **out, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_tokenizer_close(sl_tokenizer *tokenizer); /* NULL is fine */

int sl_tokenizer_vocab_size(const sl_tokenizer *tokenizer);
int sl_tokenizer_eos_id(const sl_tokenizer *tokenizer);

/* Writes at most max_ids ids, the last of them </s>; *count how many.  text
 * is UTF-8 of length bytes, cleaned already.  max_ids is 1 or more. */
sl_status sl_tokenizer_encode(const sl_tokenizer *tokenizer, const char *text, size_t length,
                              int32_t *ids, int max_ids, int *count, sl_error *err) SL_MUST_CHECK;

/* The bare model on raw text: no </s>, no cut (up to max_ids, else
 * SL_ERR_TOO_LARGE); for tests against vectors. */
sl_status sl_tokenizer_encode_raw(const sl_tokenizer *tokenizer, const char *text, size_t length,
                                  int32_t *ids, int max_ids, int *count,
                                  sl_error *err) SL_MUST_CHECK;

/* Writes a small sentencepiece unigram model: <pad> </s> <s> <unk>, 256 byte
 * pieces, printable ASCII, then common English words and word pieces, `pieces`
 * in all (512 to 262144); byte fallback on, identity normaliser, dummy prefix.
 * For synthetic checkpoints: deterministic. */
sl_status sl_tokenizer_write_synthetic(const char *path, int pieces, sl_error *err) SL_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
