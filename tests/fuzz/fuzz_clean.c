/* fuzz_clean.c - the input is a prompt.  What comes out is UTF-8 that may be
 * cleaned again. */
#include "engine/text/clean.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    char *once = NULL, *twice = NULL;
    const sl_status status = sl_clean_prompt(&once, (const char *)data, size, &err);

    SL_ASSERT(status == SL_OK || (status == SL_ERR_INVALID && err.message[0]));
    if (status == SL_OK && strlen(once) <= SL_PROMPT_MAX_BYTES)
        SL_ASSERT(sl_clean_prompt(&twice, once, strlen(once), &err) == SL_OK);
    free(twice);
    free(once);
    return 0;
}
