/* test_pth.h - torch's zip files for tests: contiguous tensors in a plain dict. */
#ifndef SL_ENGINE_MODEL_TEST_PTH_H
#define SL_ENGINE_MODEL_TEST_PTH_H

#include "engine/ckpt/ckpt.h"

/* Every tensor of a checkpoint, under rename(name) (NULL: its own). */
void test_write_pth(const char *path, const sl_ckpt *from,
                    void (*rename)(char *out, const char *in));

enum { TEST_NAME_BYTES = 256 };

#endif
