/* device_backend.h - what device.c needs from a kind of device.
 *
 * A backend knows addresses and pages only; limits and accounting are
 * device.c's, which also sees to it that one region is mapped by one thread at
 * a time.  Offsets and sizes are multiples of a granule; what is mapped always
 * begins at offset 0.  `self` is what open gave.
 */
#ifndef SL_KERNELS_DEVICE_BACKEND_H
#define SL_KERNELS_DEVICE_BACKEND_H

#include "kernels/device.h"

typedef struct {
    void *base;      /* what users see, aligned to a granule */
    size_t va_bytes; /* usable from base */
    void *reserved;  /* what the system gave, which contains base */
    size_t reserved_bytes;
    void *pieces; /* cuda: what the mapped part is made of */
} sl_range;

typedef struct {
    /* capacity_out: bytes of the device as a whole. */
    sl_status (*open)(void **self, const sl_device_spec *spec, size_t *capacity_out, sl_error *err);
    void (*close)(void *self);
    sl_status (*reserve)(void *self, sl_range *out, size_t va_bytes, const char *name,
                         sl_error *err);
    void (*release)(void *self, sl_range *range); /* unmaps too */
    sl_status (*map)(void *self, sl_range *range, size_t offset, size_t size_bytes,
                     const char *name, sl_error *err);
    /* The end of what is mapped; the bytes before keep their contents.  After a
     * failure everything is as before. */
    sl_status (*unmap)(void *self, sl_range *range, size_t offset, size_t size_bytes,
                       const char *name, sl_error *err);
    size_t (*resident)(const sl_range *range, size_t mapped_bytes); /* of the first mapped_bytes */
    sl_status (*memory)(void *self, size_t *free_out, size_t *total_out, sl_error *err);
    const char *(*uuid)(const void *self);
} sl_device_backend;

extern const sl_device_backend sl_device_backend_cpu;
extern const sl_device_backend sl_device_backend_cuda; /* open refuses when the build has none */

const void *sl_device_backend_self(const sl_device *device);

#endif
