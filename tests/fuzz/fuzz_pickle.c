/* fuzz_pickle.c - the input is a pickle, read without an archive around it. */
#include "engine/ckpt/pickle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const sl_pickle_value *root = NULL;
    sl_error err = { .status = SL_OK };
    sl_arena *arena = NULL;

    SL_ASSERT(sl_arena_create(&arena, SL_PICKLE_MAX_MEMORY, &err) == SL_OK);
    const sl_status status = sl_pickle_read(&root, data, size, arena, &err);
    SL_ASSERT((status == SL_OK) == (root != NULL));
    SL_ASSERT(status == SL_OK || (status == SL_ERR_DATA && err.message[0]));
    for (int64_t i = 0; root && root->kind == SL_PICKLE_DICT && i < root->list.count; i++)
        SL_ASSERT(root->list.items[i]->kind != SL_PICKLE_MARK);
    sl_arena_destroy(arena);
    return 0;
}
