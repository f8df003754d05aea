/* component_fill.h - how bytes get into a component: from a file or an image,
 * converted on the way, into host memory or onto a card.
 *
 * Where the destination is host memory (an image, or the cpu device) threads
 * write into it directly.  A card is filled by way of a buffer of host memory:
 * threads fill that, then it is written.
 *
 * Private to engine/model.
 * Threads: one at a time; the work itself is spread over the exec's pool.
 */
#ifndef SL_ENGINE_MODEL_COMPONENT_FILL_H
#define SL_ENGINE_MODEL_COMPONENT_FILL_H

#include "engine/ckpt/ckpt.h"
#include "engine/model/weights.h"
#include "kernels/exec.h"

typedef struct {
    sl_exec *exec;
    unsigned char *buffer; /* NULL: destinations are host memory */
} sl_fill;

/* to_image: whatever the exec's device, destinations are host memory. */
sl_status sl_fill_init(sl_fill *out, sl_exec *exec, bool to_image, sl_error *err) SL_MUST_CHECK;
void sl_fill_fini(sl_fill *fill); /* a zeroed one is fine */

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
