/* copy.h - bulk between host memory and a device, beside the ops.
 *
 * An sl_copy is a queue of copies of its own: on cuda a stream, so that they run
 * while ops do.  Copies of one sl_copy are in order among each other and with
 * nothing else: ops that read what was copied are called after sl_copy_wait, and
 * memory that ops still use (sl_exec_wait) is not copied over.
 *
 *     status = sl_copy_push(copy, d_dst, src, size_bytes, err);
 *     ...                                     src stays as it is
 *     if (status == SL_OK)
 *         status = sl_copy_wait(copy, err);   now it is there
 *
 * Host memory that was offered (sl_host_offer) is pinned by parts, each just
 * before it is first copied from or to, and stays pinned until it is withdrawn;
 * from then on copies run at the bus's speed.  What was not offered, or what the
 * system refuses to pin, goes through a small pinned buffer of the sl_copy.
 *
 * On `cpu` a copy is a memcpy and done when push or pull returns; offers are
 * taken and mean nothing.
 *
 * Ownership: who opens closes; the device outlives it.
 * Threads:   one at a time on an sl_copy; offers from any.
 */
#ifndef SL_KERNELS_COPY_H
#define SL_KERNELS_COPY_H

#include "kernels/device.h"

#include <stdatomic.h>

typedef struct sl_copy sl_copy;

/* cancel may be NULL; *cancel != 0 makes push, pull and wait return
 * SL_ERR_CANCELLED within some milliseconds.  Memory is then free for other use
 * after close. */
sl_status sl_copy_open(sl_copy **out, sl_device *device, const atomic_uint *cancel,
                       sl_error *err) SL_MUST_CHECK;
void sl_copy_close(sl_copy *copy); /* waits for what is queued; NULL is fine */

/* Host to device, queued: returns before it is done, and at once only as long as
 * few pieces are queued. */
sl_status sl_copy_push(sl_copy *copy, void *d_dst, const void *src, size_t size_bytes,
                       sl_error *err) SL_MUST_CHECK;
/* Device to host, queued in the same way. */
sl_status sl_copy_pull(sl_copy *copy, void *dst, const void *d_src, size_t size_bytes,
                       sl_error *err) SL_MUST_CHECK;
/* All that was queued is done. */
sl_status sl_copy_wait(sl_copy *copy, sl_error *err) SL_MUST_CHECK;
/* What was queued so far, to wait for that alone. */
uint64_t sl_copy_mark(const sl_copy *copy);
sl_status sl_copy_wait_to(sl_copy *copy, uint64_t mark, sl_error *err) SL_MUST_CHECK;

/* `base` is the start of a page, mapped writable; the bytes up to the next page
 * belong to it.  Offers do not overlap.  Nothing is pinned yet. */
sl_status sl_host_offer(sl_device *device, void *base, size_t size_bytes,
                        sl_error *err) SL_MUST_CHECK;
/* Pins all of an offer now, as far as the system lets: then no copy waits for it.
 * Beside copies and the offer's use; *cancel != 0 (it may be NULL) ends it between
 * parts with SL_ERR_CANCELLED.  cpu: nothing. */
sl_status sl_host_pin(sl_device *device, void *base, size_t size_bytes, const atomic_uint *cancel,
                      sl_error *err) SL_MUST_CHECK;
/* Unpins.  No copy may be under way there; `base` as offered, others are ignored. */
void sl_host_withdraw(sl_device *device, void *base);
size_t sl_host_pinned_bytes(sl_device *device); /* of all offers, now */

#endif
