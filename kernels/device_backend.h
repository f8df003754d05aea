/* device_backend.h - what device.c needs from a kind of device.
 *
 * A backend knows addresses and pages only; limits, accounting and locks are
 * device.c's.  Offsets and sizes are multiples of a granule.
 */
#ifndef SL_KERNELS_DEVICE_BACKEND_H
#define SL_KERNELS_DEVICE_BACKEND_H

#include "kernels/device.h"

typedef struct {
    void *base;      /* what users see, aligned to a granule */
    size_t va_bytes; /* usable from base */
    void *reserved;  /* what the system gave, which contains base */
    size_t reserved_bytes;
} sl_range;

typedef struct {
    sl_status (*reserve)(sl_range *out, size_t va_bytes, const char *name, sl_error *err);
    void (*release)(const sl_range *range);
    sl_status (*map)(const sl_range *range, size_t offset, size_t size_bytes, const char *name,
                     sl_error *err);
    sl_status (*unmap)(const sl_range *range, size_t offset, size_t size_bytes, const char *name,
                       sl_error *err);
    size_t (*resident)(const sl_range *range, size_t mapped_bytes); /* of the first mapped_bytes */
} sl_device_backend;

extern const sl_device_backend sl_device_backend_cpu;

#endif
