/* fuzz_ckpt.h - bytes as a checkpoint file, opened and read as a loader would.
 *
 * The file is a memfd.  Bytes of tensors are taken through sl_ckpt_read, which
 * fails if they are not inside of the file, and touched in the mapping.
 */
#ifndef SL_TESTS_FUZZ_FUZZ_CKPT_H
#define SL_TESTS_FUZZ_FUZZ_CKPT_H

#include "engine/ckpt/ckpt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void fuzz_read_tensor(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor)
{
    const size_t ends = tensor->size_bytes < 256 ? tensor->size_bytes : 256;
    sl_error err = { .status = SL_OK };
    char bytes[256];

    for (int i = 0; i < 2; i++) { /* the first bytes and the last */
        const size_t at = i ? tensor->size_bytes - ends : 0;
        SL_ASSERT(sl_ckpt_read(ckpt, tensor, at, bytes, ends, &err) == SL_OK);
        SL_ASSERT(ends == 0 || memcmp(bytes, (const char *)tensor->tensor.data + at, ends) == 0);
    }
    SL_ASSERT(sl_tensor_bytes(&tensor->tensor) == tensor->size_bytes);
    SL_ASSERT(sl_ckpt_find(ckpt, tensor->name) == tensor);
}

static inline void fuzz_open(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    sl_error err = { .status = SL_OK };
    sl_ckpt *ckpt = NULL;

    if (fd < 0) {
        fd = memfd_create("checkpoint", MFD_CLOEXEC);
        SL_ASSERT(fd >= 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    SL_ASSERT(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    const sl_status status = sl_ckpt_open(&ckpt, path, &err);
    SL_ASSERT((status == SL_OK) == (ckpt != NULL));
    SL_ASSERT(status == SL_OK || (status == SL_ERR_DATA && err.message[0]));
    for (int64_t i = 0; ckpt && i < sl_ckpt_count(ckpt); i++)
        fuzz_read_tensor(ckpt, sl_ckpt_get(ckpt, i));
    sl_ckpt_close(ckpt);
}

#endif
