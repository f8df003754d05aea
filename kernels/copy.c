#include "kernels/copy.h"

#include "kernels/copy_part.h"

#include <stdlib.h>
#include <string.h>

struct sl_copy {
    const sl_copy_backend *backend; /* NULL: the device is the host */
    sl_copy_queue *queue;
    const atomic_uint *cancel;
};

/* A memcpy looks at the cancel word between chunks. */
#define CHUNK_BYTES ((size_t)16 << 20)

static const sl_copy_backend *backend_of(const sl_device *device)
{
    return sl_device_get_spec(device)->kind == SL_DEVICE_CPU ? NULL : &sl_copy_backend_cuda;
}

sl_status sl_copy_open(sl_copy **out, sl_device *device, const atomic_uint *cancel, sl_error *err)
{
    sl_status status = SL_OK;
    sl_copy *copy = calloc(1, sizeof *copy);

    if (!copy)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for copies");
    copy->backend = backend_of(device);
    copy->cancel = cancel;
    if (copy->backend)
        status = copy->backend->open(&copy->queue, device, cancel, err);
    if (status == SL_OK)
        *out = copy;
    else
        free(copy);
    return status;
}

void sl_copy_close(sl_copy *copy)
{
    if (!copy)
        return;
    if (copy->backend)
        copy->backend->close(copy->queue);
    free(copy);
}

static sl_status copy_on_host(const sl_copy *copy, unsigned char *dst, const unsigned char *src,
                              size_t size_bytes, sl_error *err)
{
    for (size_t at = 0; at < size_bytes; at += CHUNK_BYTES) {
        const size_t left = size_bytes - at;
        if (copy->cancel && atomic_load_explicit(copy->cancel, memory_order_relaxed) != 0)
            return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
        memcpy(dst + at, src + at, left < CHUNK_BYTES ? left : CHUNK_BYTES);
    }
    return SL_OK;
}

sl_status sl_copy_push(sl_copy *copy, void *d_dst, const void *src, size_t size_bytes,
                       sl_error *err)
{
    return copy->backend ? copy->backend->copy(copy->queue, d_dst, src, size_bytes, true, err)
                         : copy_on_host(copy, d_dst, src, size_bytes, err);
}

sl_status sl_copy_pull(sl_copy *copy, void *dst, const void *d_src, size_t size_bytes,
                       sl_error *err)
{
    return copy->backend ? copy->backend->copy(copy->queue, dst, d_src, size_bytes, false, err)
                         : copy_on_host(copy, dst, d_src, size_bytes, err);
}

sl_status sl_copy_wait(sl_copy *copy, sl_error *err)
{
    return sl_copy_wait_to(copy, sl_copy_mark(copy), err);
}

uint64_t sl_copy_mark(const sl_copy *copy)
{
    return copy->backend ? copy->backend->mark(copy->queue) : 0;
}

sl_status sl_copy_wait_to(sl_copy *copy, uint64_t mark, sl_error *err)
{
    return copy->backend ? copy->backend->wait_to(copy->queue, mark, err) : SL_OK;
}

sl_status sl_host_offer(sl_device *device, void *base, size_t size_bytes, sl_error *err)
{
    const sl_copy_backend *backend = backend_of(device);

    return backend ? backend->offer(device, base, size_bytes, err) : SL_OK;
}

sl_status sl_host_pin(sl_device *device, void *base, size_t size_bytes, const atomic_uint *cancel,
                      sl_error *err)
{
    const sl_copy_backend *backend = backend_of(device);

    return backend ? backend->pin(device, base, size_bytes, cancel, err) : SL_OK;
}

void sl_host_withdraw(sl_device *device, void *base)
{
    const sl_copy_backend *backend = backend_of(device);

    if (backend)
        backend->withdraw(device, base);
}

size_t sl_host_pinned_bytes(sl_device *device)
{
    const sl_copy_backend *backend = backend_of(device);

    return backend ? backend->pinned_bytes(device) : 0;
}
