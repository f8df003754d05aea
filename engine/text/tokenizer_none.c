/* tokenizer_none.c - tokenizer.h in a build without the sentencepiece library. */
#include "engine/text/tokenizer.h"

sl_status sl_tokenizer_open(sl_tokenizer **out, const char *path, sl_error *err)
{
    (void)out;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                   "could not open tokenizer \"%s\": this build is without sentencepiece "
                   "(SL_WITH_SENTENCEPIECE)",
                   path);
}

void sl_tokenizer_close(sl_tokenizer *tokenizer)
{
    SL_ASSERT(!tokenizer); /* none was ever opened */
}

int sl_tokenizer_vocab_size(const sl_tokenizer *tokenizer)
{
    (void)tokenizer;
    return 0;
}

int sl_tokenizer_eos_id(const sl_tokenizer *tokenizer)
{
    (void)tokenizer;
    return -1;
}

sl_status sl_tokenizer_encode(const sl_tokenizer *tokenizer, const char *text, size_t length,
                              int32_t *ids, int max_ids, int *count, sl_error *err)
{
    (void)tokenizer, (void)text, (void)length, (void)ids, (void)max_ids, (void)count;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED, "this build is without sentencepiece");
}

sl_status sl_tokenizer_encode_raw(const sl_tokenizer *tokenizer, const char *text, size_t length,
                                  int32_t *ids, int max_ids, int *count, sl_error *err)
{
    return sl_tokenizer_encode(tokenizer, text, length, ids, max_ids, count, err);
}
