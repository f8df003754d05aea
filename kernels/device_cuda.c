/* device_cuda.c - granules of a card through the driver's virtual memory.
 *
 * The mapped part of a region is a row of pieces, each one physical allocation:
 * as many of 64 MiB as fit, then descending powers of two down to a granule, so
 * that a region never holds more than its rounded size and gigabytes need few
 * calls.  A piece can be unmapped only as a whole.  When a region shrinks into
 * the middle of one, what stays of it is copied to smaller pieces, which are
 * then mapped in its place: for that moment up to 62 MiB more are held than
 * before, which the reserve has room for (SL_DEVICE_CUT_BYTES).
 */
#include "kernels/device_cuda.h"

#include "kernels/device_backend.h"

#include <stdio.h>
#include <stdlib.h>

#define LARGE_BYTES SL_DEVICE_CUT_BYTES

typedef struct {
    sl_cuda_driver driver;
    CUdevice card;
    CUcontext context; /* the card's primary one, which the runtime uses too */
    sl_pins *pins;
    int index;
    char uuid[48];
} cuda_device;

typedef struct {
    size_t bytes;
    CUmemGenericAllocationHandle handle; /* held only while pieces are swapped */
} piece;

/* In order of address, from the region's first byte on. */
typedef struct {
    piece *at;
    size_t count, room;
    size_t bytes; /* sum over all */
} pieces;

/* ---- open ---- */

static sl_status enter(const cuda_device *d, sl_error *err)
{
    const CUresult error = d->driver.cuCtxSetCurrent(d->context);

    return error == CUDA_SUCCESS ? SL_OK
                                 : sl_cuda_driver_fail(&d->driver, err, error, "cuda:%d", d->index);
}

static CUmemAllocationProp properties(const cuda_device *d)
{
    return (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = d->card },
    };
}

static void format_uuid(const CUuuid *uuid, char *buf, size_t buf_bytes)
{
    const unsigned char *u = (const unsigned char *)uuid->bytes;

    snprintf(buf, buf_bytes,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
}

static sl_status find_card(cuda_device *d, sl_error *err)
{
    const sl_cuda_driver *driver = &d->driver;
    int count = 0, has_vmm = 0;
    CUuuid uuid;
    CUresult error = driver->cuDeviceGetCount(&count);

    if (error == CUDA_SUCCESS && d->index >= count)
        return sl_fail(err, SL_ERR_NOT_FOUND, "the driver shows %d card%s here", count,
                       count == 1 ? "" : "s");
    if (error == CUDA_SUCCESS)
        error = driver->cuDeviceGet(&d->card, d->index);
    if (error == CUDA_SUCCESS)
        error = driver->cuDeviceGetUuid(&uuid, d->card);
    if (error == CUDA_SUCCESS)
        error = driver->cuDeviceGetAttribute(
            &has_vmm, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, d->card);
    if (error != CUDA_SUCCESS)
        return sl_cuda_driver_fail(driver, err, error, "could not look at card %d", d->index);
    if (!has_vmm)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED, "the card has no virtual memory management");
    format_uuid(&uuid, d->uuid, sizeof d->uuid);
    return SL_OK;
}

static sl_status check_granule(const cuda_device *d, sl_error *err)
{
    const CUmemAllocationProp prop = properties(d);
    size_t granule = 0;
    const CUresult error =
        d->driver.cuMemGetAllocationGranularity(&granule, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);

    if (error != CUDA_SUCCESS)
        return sl_cuda_driver_fail(&d->driver, err, error, "could not ask for the granule");
    if (granule == 0 || SL_GRANULE_BYTES % granule != 0)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                       "the card maps in units of %zu bytes, which do not divide %zu", granule,
                       SL_GRANULE_BYTES);
    return SL_OK;
}

static void cuda_close(void *self)
{
    cuda_device *d = self;

    if (!d)
        return;
    if (d->context) {
        d->driver.cuCtxSetCurrent(d->context);
        sl_pins_destroy(d->pins);
        d->driver.cuDevicePrimaryCtxRelease(d->card);
    }
    sl_cuda_driver_close(&d->driver);
    free(d);
}

static sl_status cuda_memory(void *self, size_t *free_out, size_t *total_out, sl_error *err)
{
    const cuda_device *d = self;
    sl_status status = enter(d, err);

    if (status == SL_OK) {
        const CUresult error = d->driver.cuMemGetInfo(free_out, total_out);
        if (error != CUDA_SUCCESS)
            status = sl_cuda_driver_fail(&d->driver, err, error, "could not ask for free memory");
    }
    return status;
}

static sl_status cuda_open(void **self, const sl_device_spec *spec, size_t *capacity_out,
                           sl_error *err)
{
    cuda_device *d = calloc(1, sizeof *d);
    size_t free_bytes;
    sl_status status;

    if (!d)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a device");
    d->index = spec->index;
    status = sl_cuda_driver_open(&d->driver, err);
    if (status == SL_OK)
        status = find_card(d, err);
    if (status == SL_OK) {
        const CUresult error = d->driver.cuDevicePrimaryCtxRetain(&d->context, d->card);
        if (error != CUDA_SUCCESS)
            status = sl_cuda_driver_fail(&d->driver, err, error, "could not create a context");
    }
    if (status == SL_OK)
        status = enter(d, err);
    if (status == SL_OK)
        status = sl_pins_create(&d->pins, &d->driver, err);
    if (status == SL_OK)
        status = check_granule(d, err);
    if (status == SL_OK)
        status = cuda_memory(d, &free_bytes, capacity_out, err);
    if (status == SL_OK) {
        *self = d;
        d = NULL; /* handed to the caller */
    }
    cuda_close(d);
    return status;
}

/* ---- pieces ---- */

static size_t piece_bytes(size_t rest_bytes)
{
    size_t bytes = LARGE_BYTES;

    while (bytes > rest_bytes)
        bytes /= 2;
    return bytes; /* rest_bytes is at least a granule */
}

static sl_status reserve_pieces(pieces *p, size_t count, const char *name, sl_error *err)
{
    size_t room = p->room ? p->room : 16;
    piece *grown;

    if (count <= p->room)
        return SL_OK;
    while (room < count)
        room *= 2;
    grown = reallocarray(p->at, room, sizeof *grown);
    if (!grown)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the pieces of region \"%s\"",
                       name);
    p->at = grown;
    p->room = room;
    return SL_OK;
}

static sl_status fail_create(const cuda_device *d, CUresult error, size_t bytes, const char *name,
                             sl_error *err)
{
    size_t free_bytes = 0, total_bytes = 0;

    if (error != CUDA_ERROR_OUT_OF_MEMORY)
        return sl_cuda_driver_fail(&d->driver, err, error,
                                   "could not create %zu bytes for region \"%s\"", bytes, name);
    d->driver.cuMemGetInfo(&free_bytes, &total_bytes);
    return sl_fail(err, SL_ERR_NO_MEMORY,
                   "could not map region \"%s\": need %zu bytes more, the driver has %zu free of "
                   "%zu: another process holds them",
                   name, bytes, free_bytes, total_bytes);
}

/* Appends one piece at base + p->bytes; its handle is kept. */
static sl_status push_piece(const cuda_device *d, CUdeviceptr base, pieces *p, size_t bytes,
                            const char *name, sl_error *err)
{
    const CUmemAllocationProp prop = properties(d);
    CUmemGenericAllocationHandle handle;
    CUresult error;
    const sl_status status = reserve_pieces(p, p->count + 1, name, err);

    if (status != SL_OK)
        return status;
    error = d->driver.cuMemCreate(&handle, bytes, &prop, 0);
    if (error != CUDA_SUCCESS)
        return fail_create(d, error, bytes, name, err);
    error = d->driver.cuMemMap(base + p->bytes, bytes, 0, handle, 0);
    if (error != CUDA_SUCCESS) {
        d->driver.cuMemRelease(handle);
        return sl_cuda_driver_fail(&d->driver, err, error,
                                   "could not map %zu bytes of region \"%s\"", bytes, name);
    }
    p->at[p->count++] = (piece){ .bytes = bytes, .handle = handle };
    p->bytes += bytes;
    return SL_OK;
}

/* The driver frees a piece when it is neither mapped nor held. */
static void drop_handles(const cuda_device *d, pieces *p, size_t first)
{
    for (size_t i = first; i < p->count; i++)
        d->driver.cuMemRelease(p->at[i].handle);
}

static CUresult unmap_from(const cuda_device *d, CUdeviceptr base, pieces *p, size_t first)
{
    CUresult result = CUDA_SUCCESS;

    while (p->count > first) {
        const piece *last = &p->at[--p->count];
        p->bytes -= last->bytes;
        const CUresult error = d->driver.cuMemUnmap(base + p->bytes, last->bytes);
        if (result == CUDA_SUCCESS)
            result = error;
    }
    return result;
}

static sl_status allow_access(const cuda_device *d, CUdeviceptr at, size_t bytes, const char *name,
                              sl_error *err)
{
    const CUmemAccessDesc access = {
        .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = d->card },
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    const CUresult error = d->driver.cuMemSetAccess(at, bytes, &access, 1);

    return error == CUDA_SUCCESS
               ? SL_OK
               : sl_cuda_driver_fail(&d->driver, err, error,
                                     "could not open %zu bytes of region \"%s\"", bytes, name);
}

/* Appends size_bytes; on failure p is as before. */
static sl_status push_pieces(const cuda_device *d, CUdeviceptr base, pieces *p, size_t size_bytes,
                             const char *name, sl_error *err)
{
    const size_t first = p->count, from = p->bytes;
    sl_status status = SL_OK;

    for (size_t rest = size_bytes; status == SL_OK && rest > 0;) {
        const size_t bytes = piece_bytes(rest);
        status = push_piece(d, base, p, bytes, name, err);
        rest -= bytes;
    }
    if (status == SL_OK)
        status = allow_access(d, base + from, size_bytes, name, err);
    if (status != SL_OK) {
        drop_handles(d, p, first);
        unmap_from(d, base, p, first);
    }
    return status;
}

/* ---- regions ---- */

static sl_status cuda_reserve(void *self, sl_range *out, size_t va_bytes, const char *name,
                              sl_error *err)
{
    const cuda_device *d = self;
    CUdeviceptr base = 0;
    pieces *p;
    CUresult error;
    const sl_status status = enter(d, err);

    if (status != SL_OK)
        return status;
    p = calloc(1, sizeof *p);
    if (!p)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for region \"%s\"", name);
    error = d->driver.cuMemAddressReserve(&base, va_bytes, SL_GRANULE_BYTES, 0, 0);
    if (error != CUDA_SUCCESS) {
        free(p);
        return sl_cuda_driver_fail(&d->driver, err, error,
                                   "could not reserve %zu bytes of address space for region \"%s\"",
                                   va_bytes, name);
    }
    *out = (sl_range){ .base = (void *)(uintptr_t)base,
                       .va_bytes = va_bytes,
                       .reserved = (void *)(uintptr_t)base,
                       .reserved_bytes = va_bytes,
                       .pieces = p };
    return SL_OK;
}

static CUdeviceptr base_of(const sl_range *range)
{
    return (CUdeviceptr)(uintptr_t)range->base;
}

/* Errors are of no use here: after a fault the process goes, and the driver
 * takes everything back. */
static void cuda_release(void *self, sl_range *range)
{
    const cuda_device *d = self;
    pieces *p = range->pieces;

    d->driver.cuCtxSetCurrent(d->context);
    if (p->count)
        d->driver.cuCtxSynchronize();
    unmap_from(d, base_of(range), p, 0);
    d->driver.cuMemAddressFree(base_of(range), range->reserved_bytes);
    free(p->at);
    free(p);
}

static sl_status cuda_map(void *self, sl_range *range, size_t offset, size_t size_bytes,
                          const char *name, sl_error *err)
{
    const cuda_device *d = self;
    pieces *p = range->pieces;
    const size_t first = p->count;
    sl_status status = enter(d, err);

    SL_ASSERT(p->bytes == offset);
    if (status == SL_OK)
        status = push_pieces(d, base_of(range), p, size_bytes, name, err);
    if (status == SL_OK)
        drop_handles(d, p, first);
    return status;
}

/* Pieces of keep_bytes with a copy of what is at `from`, mapped at the returned
 * spare address; their handles are held. */
static sl_status copy_aside(const cuda_device *d, CUdeviceptr from, size_t keep_bytes,
                            CUdeviceptr *spare_out, pieces *out, const char *name, sl_error *err)
{
    CUdeviceptr spare = 0;
    CUresult error = d->driver.cuMemAddressReserve(&spare, keep_bytes, SL_GRANULE_BYTES, 0, 0);
    sl_status status;

    if (error != CUDA_SUCCESS)
        return sl_cuda_driver_fail(&d->driver, err, error,
                                   "could not reserve %zu bytes of address space to cut region "
                                   "\"%s\"",
                                   keep_bytes, name);
    status = push_pieces(d, spare, out, keep_bytes, name, err);
    if (status == SL_OK) {
        error = d->driver.cuMemcpyDtoD(spare, from, keep_bytes);
        if (error == CUDA_SUCCESS)
            error = d->driver.cuCtxSynchronize();
        if (error != CUDA_SUCCESS) {
            status = sl_cuda_driver_fail(&d->driver, err, error,
                                         "could not copy %zu bytes to cut region \"%s\"",
                                         keep_bytes, name);
            drop_handles(d, out, 0);
            unmap_from(d, spare, out, 0);
        }
    }
    if (status == SL_OK)
        *spare_out = spare;
    else
        d->driver.cuMemAddressFree(spare, keep_bytes);
    return status;
}

/* The pieces of `kept` take the place of the one that ended p.  Past this point
 * there is no way back: a failure loses contents, so it counts as a fault. */
static sl_status put_back(const cuda_device *d, CUdeviceptr base, pieces *p, const pieces *kept,
                          const char *name, sl_error *err)
{
    const size_t from = p->bytes;
    CUresult error = CUDA_SUCCESS;

    for (size_t i = 0; error == CUDA_SUCCESS && i < kept->count; i++) {
        error = d->driver.cuMemMap(base + p->bytes, kept->at[i].bytes, 0, kept->at[i].handle, 0);
        if (error == CUDA_SUCCESS) {
            p->at[p->count++] = kept->at[i];
            p->bytes += kept->at[i].bytes;
        }
    }
    if (error == CUDA_SUCCESS && allow_access(d, base + from, kept->bytes, name, err) == SL_OK)
        return SL_OK;
    return sl_fail(err, SL_ERR_DEVICE,
                   "region \"%s\" lost %zu bytes while it was cut (driver error %d): the worker "
                   "must be restarted",
                   name, kept->bytes, (int)error);
}

/* Shrinks into the middle of piece `index`, of which keep_bytes stay. */
static sl_status cut(const cuda_device *d, const sl_range *range, size_t index, size_t piece_at,
                     size_t keep_bytes, const char *name, sl_error *err)
{
    const CUdeviceptr base = base_of(range);
    pieces *p = range->pieces, kept = { .at = NULL };
    CUdeviceptr spare = 0;
    sl_status status = copy_aside(d, base + piece_at, keep_bytes, &spare, &kept, name, err);

    /* While nothing has been given up yet. */
    if (status == SL_OK)
        status = reserve_pieces(p, index + kept.count, name, err);
    if (status == SL_OK) {
        unmap_from(d, base, p, index);
        status = put_back(d, base, p, &kept, name, err);
    }
    if (kept.count) {
        drop_handles(d, &kept, 0);
        unmap_from(d, spare, &kept, 0);
        d->driver.cuMemAddressFree(spare, keep_bytes);
    }
    free(kept.at);
    return status;
}

static sl_status cuda_unmap(void *self, sl_range *range, size_t offset, size_t size_bytes,
                            const char *name, sl_error *err)
{
    const cuda_device *d = self;
    pieces *p = range->pieces;
    size_t index = 0, at = 0;
    CUresult error;
    const sl_status status = enter(d, err);

    SL_ASSERT(p->bytes == offset + size_bytes);
    if (status != SL_OK)
        return status;
    /* What runs may use these pages. */
    error = d->driver.cuCtxSynchronize();
    if (error != CUDA_SUCCESS)
        return sl_cuda_driver_fail(&d->driver, err, error, "could not shrink region \"%s\"", name);
    while (index < p->count && at + p->at[index].bytes <= offset)
        at += p->at[index++].bytes;
    if (at < offset)
        return cut(d, range, index, at, offset - at, name, err);
    error = unmap_from(d, base_of(range), p, index);
    if (error != CUDA_SUCCESS)
        return sl_fail(err, SL_ERR_DEVICE,
                       "could not unmap %zu bytes of region \"%s\" (driver error %d): the worker "
                       "must be restarted",
                       size_bytes, name, (int)error);
    return SL_OK;
}

static size_t cuda_resident(const sl_range *range, size_t mapped_bytes)
{
    (void)range;
    return mapped_bytes;
}

const sl_cuda_driver *sl_device_cuda_driver(const sl_device *device)
{
    SL_ASSERT(sl_device_get_spec(device)->kind == SL_DEVICE_CUDA);
    return &((const cuda_device *)sl_device_backend_self(device))->driver;
}

sl_pins *sl_device_cuda_pins(const sl_device *device)
{
    SL_ASSERT(sl_device_get_spec(device)->kind == SL_DEVICE_CUDA);
    return ((const cuda_device *)sl_device_backend_self(device))->pins;
}

sl_status sl_device_cuda_enter(const sl_device *device, sl_error *err)
{
    SL_ASSERT(sl_device_get_spec(device)->kind == SL_DEVICE_CUDA);
    return enter(sl_device_backend_self(device), err);
}

static const char *cuda_uuid(const void *self)
{
    return ((const cuda_device *)self)->uuid;
}

const sl_device_backend sl_device_backend_cuda = {
    .open = cuda_open,
    .close = cuda_close,
    .reserve = cuda_reserve,
    .release = cuda_release,
    .map = cuda_map,
    .unmap = cuda_unmap,
    .resident = cuda_resident,
    .memory = cuda_memory,
    .uuid = cuda_uuid,
};
