/* pin_cuda.h - host memory that may be pinned, and what of it is.
 *
 * An offer is cut in parts of SL_PIN_PART_BYTES, registered with the driver one
 * by one when they are first needed.  Part states, with what makes each move:
 *
 *     untried -> busy -> pinned      the first sl_pins_ensure there
 *                     -> refused     the same, if the system says no
 *     any but busy -> gone           withdraw, which waits for a busy one
 *
 * Ownership: the device's.
 * Threads:   any; a part is registered by one thread while others wait for it.
 */
#ifndef SL_KERNELS_PIN_CUDA_H
#define SL_KERNELS_PIN_CUDA_H

#include "kernels/cuda_driver.h"

#include <stdbool.h>

/* Divides the daemon's segments, so that no part spans two of them. */
#define SL_PIN_PART_BYTES ((size_t)256 << 20)

typedef struct sl_pins sl_pins;

/* The driver outlives it. */
sl_status sl_pins_create(sl_pins **out, const sl_cuda_driver *driver, sl_error *err) SL_MUST_CHECK;
/* Unpins what is left; the context is current.  NULL is fine. */
void sl_pins_destroy(sl_pins *pins);

sl_status sl_pins_offer(sl_pins *pins, void *base, size_t size_bytes, sl_error *err) SL_MUST_CHECK;
void sl_pins_withdraw(sl_pins *pins, void *base);
/* Whether *run_bytes (at most size_bytes, the rest of a part) from `at` on are
 * pinned, pinning them now if need be. */
sl_status sl_pins_ensure(sl_pins *pins, const void *at, size_t size_bytes, size_t *run_bytes,
                         bool *pinned, sl_error *err) SL_MUST_CHECK;
size_t sl_pins_bytes(sl_pins *pins);

#endif
