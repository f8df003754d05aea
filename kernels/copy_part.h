/* copy_part.h - what copy.c needs from a kind of device that is not the host. */
#ifndef SL_KERNELS_COPY_PART_H
#define SL_KERNELS_COPY_PART_H

#include "kernels/copy.h"

typedef struct sl_copy_queue sl_copy_queue; /* the backend's */

typedef struct {
    sl_status (*open)(sl_copy_queue **out, sl_device *device, const atomic_uint *cancel,
                      sl_error *err);
    void (*close)(sl_copy_queue *queue);
    sl_status (*copy)(sl_copy_queue *queue, void *dst, const void *src, size_t size_bytes,
                      bool to_device, sl_error *err);
    uint64_t (*mark)(const sl_copy_queue *queue);
    sl_status (*wait_to)(sl_copy_queue *queue, uint64_t mark, sl_error *err);
    sl_status (*offer)(sl_device *device, void *base, size_t size_bytes, sl_error *err);
    sl_status (*pin)(sl_device *device, void *base, size_t size_bytes, const atomic_uint *cancel,
                     sl_error *err);
    void (*withdraw)(sl_device *device, void *base);
    size_t (*pinned_bytes)(sl_device *device);
} sl_copy_backend;

extern const sl_copy_backend sl_copy_backend_cuda; /* empty when the build has none */

#endif
