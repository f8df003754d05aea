/* fake_cuda.c - a libcuda.so.1 for tests on machines that have none.
 *
 * One card of FAKE_BYTES; physical memory is a memfd per allocation, mapped
 * where it is asked for, so that contents, aliasing and protection are real.
 * It refuses what the driver refuses: unmapping a part of a mapping, unaligned
 * sizes, freeing address space that is still mapped.  Streams run at once.
 *
 * Beside the driver's functions it has sl_fake_cuda_*, for tests to look and to
 * take memory away.  One thread.
 */
#include <cuda.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SLOTS = 4096 };
#define FAKE_BYTES ((size_t)1 << 30)
#define GRANULE    ((size_t)2 << 20)

typedef struct {
    size_t bytes;
    int fd;
    int uses; /* the handle and each mapping */
} allocation;

typedef struct {
    CUdeviceptr at;
    size_t bytes;
    int allocation;
    bool open;
} mapping;

static allocation allocations[SLOTS]; /* uses 0: free slot; slot 0 is never used */
static mapping mappings[SLOTS];       /* bytes 0: free slot */
static size_t used_bytes, peak_bytes, foreign_bytes, reserved_bytes, registered_bytes;
static size_t pin_limit_bytes = SIZE_MAX;
static int contexts, creates, accesses, synchronizes, copies;

/* ---- for tests ---- */

__attribute__((visibility("default"))) void sl_fake_cuda_take(size_t bytes);
__attribute__((visibility("default"))) void sl_fake_cuda_take(size_t bytes)
{
    foreign_bytes = bytes;
}

/* How much may be registered. */
__attribute__((visibility("default"))) void sl_fake_cuda_limit_pins(size_t bytes);
__attribute__((visibility("default"))) void sl_fake_cuda_limit_pins(size_t bytes)
{
    pin_limit_bytes = bytes;
}

/* used, peak, reserved address space, contexts, registered, creates, set-access
 * calls, synchronisations, copies; resets the peak and the counts. */
__attribute__((visibility("default"))) void sl_fake_cuda_look(size_t out[9]);
__attribute__((visibility("default"))) void sl_fake_cuda_look(size_t out[9])
{
    const size_t seen[9] = {
        used_bytes,      peak_bytes,       reserved_bytes,       (size_t)contexts, registered_bytes,
        (size_t)creates, (size_t)accesses, (size_t)synchronizes, (size_t)copies,
    };

    memcpy(out, seen, sizeof seen);
    peak_bytes = used_bytes;
    creates = accesses = synchronizes = copies = 0;
}

/* ---- card and context ---- */

CUresult cuInit(unsigned flags)
{
    return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult error, const char **out)
{
    *out = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **out)
{
    *out = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "wrong call";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *out)
{
    *out = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *out, int index)
{
    *out = index;
    return index == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *out, int bytes, CUdevice card)
{
    (void)card;
    strncpy(out, "fake card", (size_t)bytes);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *out, CUdevice card)
{
    (void)card;
    for (int i = 0; i < 16; i++)
        out->bytes[i] = (char)(0x10 * i + i);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *out, CUdevice_attribute attribute, CUdevice card)
{
    (void)attribute, (void)card;
    *out = 1;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice card)
{
    (void)card;
    contexts++;
    *out = (CUcontext)&contexts;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice card)
{
    (void)card;
    contexts--;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
    return context == (CUcontext)&contexts ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxSynchronize(void)
{
    synchronizes++;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *free_out, size_t *total_out)
{
    *free_out = FAKE_BYTES - used_bytes - foreign_bytes;
    *total_out = FAKE_BYTES;
    return CUDA_SUCCESS;
}

/* ---- virtual memory ---- */

CUresult cuMemGetAllocationGranularity(size_t *out, const CUmemAllocationProp *prop,
                                       CUmemAllocationGranularity_flags flags)
{
    (void)prop, (void)flags;
    *out = GRANULE;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *out, size_t bytes, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags)
{
    if (bytes == 0 || bytes % GRANULE != 0 || hint || flags || alignment > GRANULE)
        return CUDA_ERROR_INVALID_VALUE;
    unsigned char *p =
        mmap(NULL, bytes + GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    unsigned char *aligned = (unsigned char *)(((uintptr_t)p + GRANULE - 1) / GRANULE * GRANULE);
    if (aligned != p)
        munmap(p, (size_t)(aligned - p));
    if (aligned + bytes != p + bytes + GRANULE)
        munmap(aligned + bytes, (size_t)(p + GRANULE - aligned));
    reserved_bytes += bytes;
    *out = (CUdeviceptr)(uintptr_t)aligned;
    return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr at, size_t bytes)
{
    for (int i = 0; i < SLOTS; i++)
        if (mappings[i].bytes && mappings[i].at >= at && mappings[i].at < at + bytes)
            return CUDA_ERROR_INVALID_VALUE;
    munmap((void *)(uintptr_t)at, bytes);
    reserved_bytes -= bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *out, size_t bytes,
                     const CUmemAllocationProp *prop, unsigned long long flags)
{
    int slot = 1;

    if (bytes == 0 || bytes % GRANULE != 0 || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes > FAKE_BYTES - used_bytes - foreign_bytes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    while (slot < SLOTS && allocations[slot].uses)
        slot++;
    const int fd = slot < SLOTS ? memfd_create("fake-cuda", MFD_CLOEXEC) : -1;
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
        return CUDA_ERROR_UNKNOWN;
    allocations[slot] = (allocation){ .bytes = bytes, .fd = fd, .uses = 1 };
    creates++;
    used_bytes += bytes;
    if (used_bytes > peak_bytes)
        peak_bytes = used_bytes;
    *out = (CUmemGenericAllocationHandle)slot;
    return CUDA_SUCCESS;
}

static void drop(int slot)
{
    allocation *a = &allocations[slot];

    if (--a->uses == 0) {
        close(a->fd);
        used_bytes -= a->bytes;
    }
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    if (handle == 0 || handle >= SLOTS || allocations[handle].uses == 0)
        return CUDA_ERROR_INVALID_VALUE;
    drop((int)handle);
    return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags)
{
    int slot = 0;

    if (offset || flags || at % GRANULE || handle == 0 || handle >= SLOTS ||
        allocations[handle].uses == 0 || allocations[handle].bytes != bytes)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < SLOTS; i++)
        if (mappings[i].bytes && at < mappings[i].at + mappings[i].bytes &&
            mappings[i].at < at + bytes)
            return CUDA_ERROR_ALREADY_MAPPED;
    while (slot < SLOTS && mappings[slot].bytes)
        slot++;
    if (slot == SLOTS || mmap((void *)(uintptr_t)at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED,
                              allocations[handle].fd, 0) == MAP_FAILED)
        return CUDA_ERROR_UNKNOWN;
    allocations[handle].uses++;
    mappings[slot] = (mapping){ .at = at, .bytes = bytes, .allocation = (int)handle };
    return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr at, size_t bytes)
{
    for (int i = 0; i < SLOTS; i++) {
        mapping *m = &mappings[i];
        if (m->bytes != bytes || m->at != at)
            continue;
        mmap((void *)(uintptr_t)at, bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        drop(m->allocation);
        *m = (mapping){ .bytes = 0 };
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access, size_t count)
{
    size_t covered = 0;

    if (count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < SLOTS; i++)
        if (mappings[i].bytes && mappings[i].at >= at &&
            mappings[i].at + mappings[i].bytes <= at + bytes)
            covered += mappings[i].bytes;
    if (covered != bytes || mprotect((void *)(uintptr_t)at, bytes, PROT_READ | PROT_WRITE) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    accesses++;
    return CUDA_SUCCESS;
}

/* ---- copies ---- */

CUresult cuMemcpyDtoD(CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
    memcpy((void *)(uintptr_t)dst, (const void *)(uintptr_t)src, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned flags)
{
    (void)flags;
    *out = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return *out == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *data)
{
    (void)data; /* its size is not kept: a test ends soon */
    return CUDA_SUCCESS;
}

static struct {
    void *at;
    size_t bytes;
} pins[SLOTS];

/* A host range of a copy lies in one pin, or in none. */
static bool spans_pins(const void *data, size_t bytes)
{
    const char *from = data, *to = from + bytes;

    for (int i = 0; i < SLOTS; i++) {
        const char *first = pins[i].at, *last = first + pins[i].bytes;
        if (pins[i].bytes && from < last && first < to && !(from >= first && to <= last))
            return true;
    }
    return false;
}

CUresult cuMemHostRegister(void *data, size_t bytes, unsigned flags)
{
    int slot = -1;

    (void)flags;
    if (bytes > pin_limit_bytes - registered_bytes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; i < SLOTS; i++) {
        if (!pins[i].bytes)
            slot = slot < 0 ? i : slot;
        else if ((char *)data < (char *)pins[i].at + pins[i].bytes &&
                 (char *)pins[i].at < (char *)data + bytes)
            return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    }
    if (slot < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    pins[slot].at = data;
    pins[slot].bytes = bytes;
    registered_bytes += bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *data)
{
    for (int i = 0; i < SLOTS; i++) {
        if (!pins[i].bytes || pins[i].at != data)
            continue;
        registered_bytes -= pins[i].bytes;
        pins[i].bytes = 0;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream)
{
    (void)stream;
    if (spans_pins(src, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    copies++;
    memcpy((void *)(uintptr_t)dst, src, bytes);
    return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoHAsync(void *dst, CUdeviceptr src, size_t bytes, CUstream stream)
{
    (void)stream;
    if (spans_pins(dst, bytes))
        return CUDA_ERROR_INVALID_VALUE;
    copies++;
    memcpy(dst, (const void *)(uintptr_t)src, bytes);
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *out, unsigned flags)
{
    (void)flags;
    *out = malloc(1);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream)
{
    free(stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream)
{
    (void)stream;
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *out, unsigned flags)
{
    (void)flags;
    *out = malloc(1);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event)
{
    free(event);
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
    (void)event, (void)stream;
    return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent event)
{
    (void)event;
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event)
{
    (void)event;
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *out, CUevent from, CUevent to)
{
    (void)from, (void)to;
    *out = 0.0f;
    return CUDA_SUCCESS;
}
