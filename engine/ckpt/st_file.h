/* st_file.h - one mapped .safetensors file and the records of its header.
 *
 * Inside of the ckpt module only.  Every offset is checked against the file
 * and against the other tensors before it becomes a pointer.
 */
#ifndef SL_ENGINE_CKPT_ST_FILE_H
#define SL_ENGINE_CKPT_ST_FILE_H

#include "engine/ckpt/ckpt.h"

#define SL_ST_MAX_HEADER_BYTES ((size_t)100000000)

typedef struct {
    char *path;
    int fd;    /* stays open for sl_ckpt_read; -1 before */
    void *map; /* whole file, read-only; NULL before it is mapped */
    size_t map_bytes;
    char *names; /* backing of every tensor's name */
    sl_ckpt_tensor *tensors; /* sorted by name; file_index 0 */
    int64_t count;
} sl_st_file;

/* On failure *file is fini'd. */
sl_status sl_st_file_init(sl_st_file *file, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_st_file_fini(sl_st_file *file);

/* Opens a regular file for reading. */
sl_status sl_st_open(const char *path, int *fd, size_t *size_bytes, sl_error *err) SL_MUST_CHECK;
/* Exactly size_bytes from offset; SL_ERR_DATA if the file has become shorter. */
sl_status sl_st_read(int fd, const char *path, size_t offset, void *out, size_t size_bytes,
                     sl_error *err) SL_MUST_CHECK;

/* Strips what exporters put around official names, in place. */
void sl_ckpt_normalise(char *name);

#endif
