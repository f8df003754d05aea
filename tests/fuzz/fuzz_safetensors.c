/* fuzz_safetensors.c - the input is the header; data follows it. */
#include "tests/fuzz/fuzz_ckpt.h"

enum { DATA_BYTES = 256 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint64_t length = size;
    uint8_t *file = malloc(8 + size + DATA_BYTES);

    SL_ASSERT(file);
    memcpy(file, &length, 8);
    memcpy(file + 8, data, size);
    memset(file + 8 + size, 'x', DATA_BYTES);
    fuzz_open(file, 8 + size + DATA_BYTES);
    free(file);
    return 0;
}
