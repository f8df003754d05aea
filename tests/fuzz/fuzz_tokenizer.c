/* fuzz_tokenizer.c - the input is a sentencepiece model. */
#include "engine/text/tokenizer_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    const sl_status status = sl_tokenizer_check(data, size, &err);

    SL_ASSERT(status == SL_OK || (status == SL_ERR_DATA && err.message[0]));
    return 0;
}
