/* zip.h - the members of a stored ZIP archive, found and checked.
 *
 * Only what torch.save writes: one disk, no compression, no encryption, ZIP64
 * where needed.  Sizes and offsets come from the central directory, the start
 * of the data from the local header, which must name the same member (wan.md
 * 2.2).  CRCs are not checked: that would read every byte of the weights.
 *
 * Inside of the ckpt module only.  Ownership: init/fini; fd and path stay the
 * caller's and outlive it.  Threads: read-only after init.
 */
#ifndef SL_ENGINE_CKPT_ZIP_H
#define SL_ENGINE_CKPT_ZIP_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name; /* NUL-terminated */
    size_t offset;    /* of the data: [offset, offset + size_bytes) is in the file */
    size_t size_bytes;
} sl_zip_member;

typedef struct {
    int fd;
    const char *path;
    size_t file_bytes;
    char *directory;        /* the central directory, backing of the names */
    sl_zip_member *members; /* sorted by name, no two alike */
    int64_t count;
} sl_zip;

/* On failure *zip is fini'd. */
sl_status sl_zip_init(sl_zip *zip, int fd, const char *path, size_t file_bytes,
                      sl_error *err) SL_MUST_CHECK;
void sl_zip_fini(sl_zip *zip);

const sl_zip_member *sl_zip_find(const sl_zip *zip, const char *name); /* NULL: absent */

#endif
