/* ckpt.h - checkpoint files: read-only, every offset checked, nothing executed.
 *
 * Opens one .safetensors or PyTorch zip file (.pth, .pt, .bin), told apart by
 * their contents, or an index of shards (*.index.json).  Tensor data is mapped,
 * not copied (but for views in PyTorch files that are not contiguous, copied
 * when opened); the pages stay in the page cache.  The
 * mapping of a file that someone cuts short meanwhile faults: whoever must
 * survive that (loading a model) takes the bytes through sl_ckpt_read.  Names
 * are normalised: a leading "net." or "model.diffusion_model." and any
 * "_checkpoint_wrapped_module." segment are stripped.  Source: wan.md 1.2, 2.
 *
 * Ownership: whoever opens closes; tensors borrow from the checkpoint.
 * Threads:   after open everything is read-only: any thread.
 */
#ifndef SL_ENGINE_CKPT_CKPT_H
#define SL_ENGINE_CKPT_CKPT_H

#include "base/status.h"
#include "kernels/tensor.h"

#include <stddef.h>
#include <stdint.h>

typedef struct sl_ckpt sl_ckpt;

typedef struct {
    const char *name;   /* normalised, NUL-terminated */
    sl_tensor tensor;   /* data points into the mapping; may be unaligned: copy
                           with memcpy semantics only */
    size_t size_bytes;  /* as in the file */
    int file_index;     /* which shard */
} sl_ckpt_tensor;

/* SL_ERR_DATA for a file that breaks the format, with file name and reason;
 * SL_ERR_NOT_FOUND for a missing file or shard. */
sl_status sl_ckpt_open(sl_ckpt **out, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_ckpt_close(sl_ckpt *ckpt); /* NULL is fine */

int64_t sl_ckpt_count(const sl_ckpt *ckpt);
const sl_ckpt_tensor *sl_ckpt_get(const sl_ckpt *ckpt, int64_t i); /* sorted by name */
const sl_ckpt_tensor *sl_ckpt_find(const sl_ckpt *ckpt, const char *name); /* NULL: absent */
const char *sl_ckpt_path(const sl_ckpt *ckpt);
size_t sl_ckpt_data_bytes(const sl_ckpt *ckpt); /* sum of size_bytes */

/* Bytes [offset, offset + size_bytes) of a tensor.  SL_ERR_DATA if the file has
 * been cut since it was opened, SL_ERR_IO if it cannot be read.  Any thread. */
sl_status sl_ckpt_read(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor, size_t offset, void *out,
                       size_t size_bytes, sl_error *err) SL_MUST_CHECK;

/* Tells the kernel that a tensor's pages will be / are no longer needed. */
void sl_ckpt_will_need(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor);
void sl_ckpt_done_with(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor);

/* Writing: the header first (all tensors declared), then each tensor's bytes
 * in the order of declaration, in pieces of any size; or, by any number of threads,
 * each byte once at its place. */
typedef struct sl_st_writer sl_st_writer;
sl_status sl_st_writer_create(sl_st_writer **out, const char *path, sl_error *err) SL_MUST_CHECK;
sl_status sl_st_writer_declare(sl_st_writer *writer, const char *name, sl_dtype dtype, int rank,
                               const int64_t *dim, sl_error *err) SL_MUST_CHECK;
sl_status sl_st_writer_write(sl_st_writer *writer, const void *bytes, size_t size_bytes,
                             sl_error *err) SL_MUST_CHECK;
/* Ends the declarations: what follows is write_at alone. */
sl_status sl_st_writer_begin(sl_st_writer *writer, sl_error *err) SL_MUST_CHECK;
/* offset: from the first tensor's first byte.  Any thread. */
sl_status sl_st_writer_write_at(sl_st_writer *writer, size_t offset, const void *bytes,
                                size_t size_bytes, sl_error *err) SL_MUST_CHECK;
/* Checks that every declared byte was written, fsyncs; the file stays at
 * `path`.  destroy without finish removes it. */
sl_status sl_st_writer_finish(sl_st_writer *writer, sl_error *err) SL_MUST_CHECK;
void sl_st_writer_destroy(sl_st_writer *writer); /* NULL is fine */

#endif
