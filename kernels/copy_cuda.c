/* copy_cuda.c - copies on a stream of their own, in pieces.
 *
 * Pieces are short enough that a cancel is seen soon, and an event after each
 * bounds how many are queued: while the card copies one, the host pins or fills
 * the next.  Piece p has event p % PIECES, so what is older than the ring is
 * done.
 */
#include "kernels/copy_part.h"
#include "kernels/device_cuda.h"
#include "kernels/pin_cuda.h"

#include <stdlib.h>
#include <string.h>

enum { PIECES = 8 };
#define PIECE_BYTES ((size_t)32 << 20)
/* Of the pinned buffer for host memory that is not: one piece of it is filled
 * while the other is copied. */
#define STAGING_BYTES ((size_t)8 << 20)
enum { STAGINGS = 2 };

struct sl_copy_queue {
    sl_device *device;
    const sl_cuda_driver *driver;
    sl_pins *pins;
    const atomic_uint *cancel;
    CUstream stream;
    CUevent events[PIECES];
    uint64_t queued;                  /* pieces so far */
    unsigned char *staging;           /* STAGINGS * STAGING_BYTES, when first needed */
    uint64_t staging_marks[STAGINGS]; /* free when these pieces are done */
    unsigned next_staging;
};

static bool cancelled(const sl_copy_queue *q)
{
    return q->cancel && atomic_load_explicit(q->cancel, memory_order_relaxed) != 0;
}

/* Pieces up to mark; no cancel. */
static sl_status settle(sl_copy_queue *q, uint64_t mark, sl_error *err)
{
    if (mark == 0 || q->queued - mark >= PIECES)
        return SL_OK;
    const CUresult error = q->driver->cuEventSynchronize(q->events[(mark - 1) % PIECES]);

    return error == CUDA_SUCCESS
               ? SL_OK
               : sl_cuda_driver_fail(q->driver, err, error, "copies to or from the card");
}

static sl_status queue_piece(sl_copy_queue *q, void *dst, const void *src, size_t bytes,
                             bool to_device, sl_error *err)
{
    CUresult error;
    sl_status status = SL_OK;

    if (cancelled(q))
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    /* The event of this piece may still be that of an older one. */
    if (q->queued >= PIECES)
        status = settle(q, q->queued - PIECES + 1, err);
    if (status != SL_OK)
        return status;
    error = to_device
                ? q->driver->cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)dst, src, bytes, q->stream)
                : q->driver->cuMemcpyDtoHAsync(dst, (CUdeviceptr)(uintptr_t)src, bytes, q->stream);
    if (error == CUDA_SUCCESS)
        error = q->driver->cuEventRecord(q->events[q->queued % PIECES], q->stream);
    if (error != CUDA_SUCCESS)
        return sl_cuda_driver_fail(q->driver, err, error, "could not copy %zu bytes %s the card",
                                   bytes, to_device ? "to" : "from");
    q->queued++;
    return SL_OK;
}

static sl_status take_staging(sl_copy_queue *q, unsigned *out, sl_error *err)
{
    const unsigned i = q->next_staging++ % STAGINGS;

    if (!q->staging) {
        void *data = NULL;
        const CUresult error =
            q->driver->cuMemHostAlloc(&data, STAGINGS * STAGING_BYTES, CU_MEMHOSTALLOC_PORTABLE);
        if (error != CUDA_SUCCESS)
            return sl_cuda_driver_fail(q->driver, err, error, "could not pin %zu bytes for copies",
                                       STAGINGS * STAGING_BYTES);
        q->staging = data;
    }
    *out = i;
    return settle(q, q->staging_marks[i], err);
}

/* At most STAGING_BYTES by way of the pinned buffer.  From the card this waits:
 * what comes has to be copied on. */
static sl_status copy_staged(sl_copy_queue *q, void *dst, const void *src, size_t bytes,
                             bool to_device, sl_error *err)
{
    unsigned i = 0;
    sl_status status = take_staging(q, &i, err);

    if (status != SL_OK)
        return status;
    unsigned char *staging = q->staging + i * STAGING_BYTES;
    if (to_device)
        memcpy(staging, src, bytes);
    status =
        queue_piece(q, to_device ? dst : staging, to_device ? staging : src, bytes, to_device, err);
    q->staging_marks[i] = q->queued;
    if (status == SL_OK && !to_device) {
        status = settle(q, q->queued, err);
        if (status == SL_OK)
            memcpy(dst, staging, bytes);
    }
    return status;
}

static sl_status cuda_copy(sl_copy_queue *q, void *dst, const void *src, size_t size_bytes,
                           bool to_device, sl_error *err)
{
    const unsigned char *host = to_device ? src : dst;
    sl_status status = sl_device_cuda_enter(q->device, err);

    for (size_t at = 0; status == SL_OK && at < size_bytes;) {
        const size_t left = size_bytes - at;
        size_t bytes;
        bool pinned;
        status = sl_pins_ensure(q->pins, host + at, left < PIECE_BYTES ? left : PIECE_BYTES, &bytes,
                                &pinned, err);
        if (!pinned && bytes > STAGING_BYTES)
            bytes = STAGING_BYTES;
        if (status == SL_OK)
            status = (pinned ? queue_piece : copy_staged)(q, (unsigned char *)dst + at,
                                                          (const unsigned char *)src + at, bytes,
                                                          to_device, err);
        at += bytes;
    }
    return status;
}

static uint64_t cuda_mark(const sl_copy_queue *q)
{
    return q->queued;
}

static sl_status cuda_wait_to(sl_copy_queue *q, uint64_t mark, sl_error *err)
{
    sl_status status = sl_device_cuda_enter(q->device, err);

    /* Piece by piece, to see a cancel between them. */
    for (uint64_t done = q->queued > PIECES ? q->queued - PIECES : 0;
         status == SL_OK && done < mark; done++) {
        if (cancelled(q))
            return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
        status = settle(q, done + 1, err);
    }
    return status;
}

/* Errors are of no use here: after a fault the process goes. */
static void cuda_close(sl_copy_queue *q)
{
    if (!q)
        return;
    sl_device_cuda_enter(q->device, NULL);
    if (q->stream)
        q->driver->cuStreamSynchronize(q->stream);
    for (int i = 0; i < PIECES; i++)
        if (q->events[i])
            q->driver->cuEventDestroy(q->events[i]);
    if (q->staging)
        q->driver->cuMemFreeHost(q->staging);
    if (q->stream)
        q->driver->cuStreamDestroy(q->stream);
    free(q);
}

static sl_status cuda_open(sl_copy_queue **out, sl_device *device, const atomic_uint *cancel,
                           sl_error *err)
{
    CUresult error = CUDA_SUCCESS;
    sl_copy_queue *q = calloc(1, sizeof *q);
    sl_status status;

    if (!q)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for copies");
    q->device = device;
    q->driver = sl_device_cuda_driver(device);
    q->pins = sl_device_cuda_pins(device);
    q->cancel = cancel;
    status = sl_device_cuda_enter(device, err);
    if (status == SL_OK) {
        error = q->driver->cuStreamCreate(&q->stream, CU_STREAM_NON_BLOCKING);
        for (int i = 0; error == CUDA_SUCCESS && i < PIECES; i++)
            error = q->driver->cuEventCreate(&q->events[i],
                                             CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC);
        if (error != CUDA_SUCCESS)
            status = sl_cuda_driver_fail(q->driver, err, error, "could not make a stream to copy");
    }
    if (status == SL_OK)
        *out = q;
    else
        cuda_close(q);
    return status;
}

/* ---- offers ---- */

static sl_status cuda_offer(sl_device *device, void *base, size_t size_bytes, sl_error *err)
{
    return sl_pins_offer(sl_device_cuda_pins(device), base, size_bytes, err);
}

static sl_status cuda_pin(sl_device *device, void *base, size_t size_bytes,
                          const atomic_uint *cancel, sl_error *err)
{
    sl_status status = sl_device_cuda_enter(device, err);

    for (size_t at = 0; status == SL_OK && at < size_bytes;) {
        size_t bytes;
        bool pinned;
        if (cancel && atomic_load_explicit(cancel, memory_order_relaxed) != 0)
            return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
        status = sl_pins_ensure(sl_device_cuda_pins(device), (unsigned char *)base + at,
                                size_bytes - at, &bytes, &pinned, err);
        at += bytes;
    }
    return status;
}

static void cuda_withdraw(sl_device *device, void *base)
{
    sl_device_cuda_enter(device, NULL);
    sl_pins_withdraw(sl_device_cuda_pins(device), base);
}

static size_t cuda_pinned_bytes(sl_device *device)
{
    return sl_pins_bytes(sl_device_cuda_pins(device));
}

const sl_copy_backend sl_copy_backend_cuda = {
    .open = cuda_open,
    .close = cuda_close,
    .copy = cuda_copy,
    .mark = cuda_mark,
    .wait_to = cuda_wait_to,
    .offer = cuda_offer,
    .pin = cuda_pin,
    .withdraw = cuda_withdraw,
    .pinned_bytes = cuda_pinned_bytes,
};
