/* ckpt_file.h - one checkpoint file, whatever its format: mapped, and the
 * records of its tensors.
 *
 * Inside of the ckpt module only.  st_file.h and pth.h fill in the
 * records; every offset is checked against the file before it becomes a
 * pointer.  What the formats themselves read goes through sl_file_read: the
 * mapping of a file that shrinks would fault.
 */
#ifndef SL_ENGINE_CKPT_CKPT_FILE_H
#define SL_ENGINE_CKPT_CKPT_FILE_H

#include "engine/ckpt/ckpt.h"

typedef struct {
    char *path;
    int fd;    /* stays open for sl_ckpt_read; -1 before */
    void *map; /* whole file, read-only; NULL before it is mapped */
    size_t map_bytes;
    char *names;             /* backing of every tensor's name */
    sl_ckpt_tensor *tensors; /* sorted by name; file_index 0 */
    int64_t count, capacity;
    char *copies; /* data of tensors that the file does not hold in order; or NULL */
    size_t copies_bytes;
} sl_ckpt_file;

/* Recognises the format by the contents.  On failure *file is fini'd. */
sl_status sl_ckpt_file_init(sl_ckpt_file *file, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_ckpt_file_fini(sl_ckpt_file *file);

/* A record to fill in, zeroed; NULL: out of memory, err says so. */
sl_ckpt_tensor *sl_ckpt_file_push(sl_ckpt_file *file, sl_error *err);
/* Sorts the records; SL_ERR_DATA if two have one name. */
sl_status sl_ckpt_file_sort(sl_ckpt_file *file, sl_error *err) SL_MUST_CHECK;

/* Opens a regular file for reading. */
sl_status sl_file_open(const char *path, int *fd, size_t *size_bytes, sl_error *err) SL_MUST_CHECK;
/* Exactly size_bytes from offset; SL_ERR_DATA if the file has become shorter. */
sl_status sl_file_read(int fd, const char *path, size_t offset, void *out, size_t size_bytes,
                       sl_error *err) SL_MUST_CHECK;

/* Strips what exporters put around official names, in place. */
void sl_ckpt_normalise(char *name);

#endif
