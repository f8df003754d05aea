/* fuzz_pth.c - the input is a whole file: the archive, and what is in it. */
#include "tests/fuzz/fuzz_ckpt.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_open(data, size);
    return 0;
}
