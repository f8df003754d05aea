/* component_fill.h - how bytes get into a component: from a file or an image,
 * converted on the way, into host memory or onto a card.
 *
 * Where the destination is host memory (an image, or the cpu device) threads
 * write into it directly.  A card is filled by way of two buffers of host memory:
 * while one is copied to it, threads fill the other.
 *
 * Private to engine/model.
 * Threads: one at a time; the work itself is spread over the exec's pool.
 */
#ifndef SL_ENGINE_MODEL_COMPONENT_FILL_H
#define SL_ENGINE_MODEL_COMPONENT_FILL_H

#include "engine/ckpt/ckpt.h"
#include "engine/model/weights.h"
#include "kernels/copy.h"
#include "kernels/exec.h"

enum { SL_FILL_BUFFERS = 2 };

typedef struct {
    sl_exec *exec;
    sl_device *device;
    sl_copy *copy; /* NULL: destinations are host memory */
    unsigned char *buffers[SL_FILL_BUFFERS];
    uint64_t copied[SL_FILL_BUFFERS]; /* behind it the buffer may be filled anew */
    int next;
} sl_fill;

/* device: the exec's, which is filled; NULL: destinations are host memory. */
sl_status sl_fill_init(sl_fill *out, sl_device *device, sl_exec *exec, sl_error *err) SL_MUST_CHECK;
/* Waits for copies under way.  A zeroed one is fine. */
void sl_fill_fini(sl_fill *fill);
/* All that was filled is there. */
sl_status sl_fill_wait(sl_fill *fill, sl_error *err) SL_MUST_CHECK;

/* All of a tensor of the file, converted to the dtype of `to`, and to channels
 * last where `to` has rank 5. */
sl_status sl_fill_tensor(sl_fill *fill, const sl_ckpt *ckpt, const sl_ckpt_tensor *from,
                         const sl_tensor *to, sl_error *err) SL_MUST_CHECK;
/* A matrix of the file's floats as int8 and scales. */
sl_status sl_fill_int8(sl_fill *fill, const sl_ckpt *ckpt, const sl_ckpt_tensor *from,
                       const sl_tensor *to, const sl_tensor *scale, sl_error *err) SL_MUST_CHECK;
/* Bytes of host memory as they are. */
sl_status sl_fill_copy(sl_fill *fill, void *to, const void *from, size_t size_bytes,
                       sl_error *err) SL_MUST_CHECK;
sl_status sl_fill_zero(sl_fill *fill, void *to, size_t size_bytes, sl_error *err) SL_MUST_CHECK;

#endif
