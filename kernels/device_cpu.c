#include "kernels/device_backend.h"

#include "base/size.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RANGE_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE };

/* The limit is given: nothing else on the machine is known to be ours. */
static sl_status cpu_open(void **self, const sl_device_spec *spec, size_t *capacity_out,
                          sl_error *err)
{
    (void)err;
    *self = NULL;
    *capacity_out = spec->limit_bytes;
    return SL_OK;
}

static void cpu_close(void *self)
{
    (void)self;
}

static sl_status cpu_reserve(void *self, sl_range *out, size_t va_bytes, const char *name,
                             sl_error *err)
{
    size_t reserved_bytes;
    void *reserved;

    (void)self;
    /* One granule more, so that base can be aligned: huge pages need it. */
    if (!sl_size_add(va_bytes, SL_GRANULE_BYTES, &reserved_bytes))
        return sl_fail(err, SL_ERR_INVALID, "region \"%s\": %zu bytes of address space overflow",
                       name, va_bytes);
    reserved = mmap(NULL, reserved_bytes, PROT_NONE, RANGE_FLAGS, -1, 0);
    if (reserved == MAP_FAILED)
        return sl_fail_errno(err, "could not reserve %zu bytes of address space for region \"%s\"",
                             reserved_bytes, name);
    out->reserved = reserved;
    out->reserved_bytes = reserved_bytes;
    out->base = (void *)(((uintptr_t)reserved + SL_GRANULE_BYTES - 1) & ~(SL_GRANULE_BYTES - 1));
    out->va_bytes = va_bytes;
    return SL_OK;
}

static void cpu_release(void *self, sl_range *range)
{
    (void)self;
    munmap(range->reserved, range->reserved_bytes);
}

static sl_status cpu_map(void *self, sl_range *range, size_t offset, size_t size_bytes,
                         const char *name, sl_error *err)
{
    unsigned char *at = (unsigned char *)range->base + offset;

    (void)self;
    if (mprotect(at, size_bytes, PROT_READ | PROT_WRITE) != 0)
        return sl_fail_errno(err, "could not map %zu bytes at offset %zu of region \"%s\"",
                             size_bytes, offset, name);
    /* A wish only: kernels without huge pages refuse it and nothing is lost. */
    madvise(at, size_bytes, MADV_HUGEPAGE);
    return SL_OK;
}

static sl_status cpu_unmap(void *self, sl_range *range, size_t offset, size_t size_bytes,
                           const char *name, sl_error *err)
{
    unsigned char *at = (unsigned char *)range->base + offset;

    (void)self;
    /* Fresh unmapped pages over the old ones: the old go back to the kernel
     * and any later touch faults. */
    if (mmap(at, size_bytes, PROT_NONE, RANGE_FLAGS | MAP_FIXED, -1, 0) == MAP_FAILED)
        return sl_fail_errno(err, "could not unmap %zu bytes at offset %zu of region \"%s\"",
                             size_bytes, offset, name);
    return SL_OK;
}

static size_t cpu_resident(const sl_range *range, size_t mapped_bytes)
{
    enum { STEP_PAGES = 8192 };
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE), step_bytes = STEP_PAGES * page_bytes;
    unsigned char present[STEP_PAGES];
    size_t pages = 0;

    for (size_t at = 0; at < mapped_bytes; at += step_bytes) {
        const size_t n = mapped_bytes - at < step_bytes ? mapped_bytes - at : step_bytes;
        if (mincore((unsigned char *)range->base + at, n, present) != 0)
            continue;
        for (size_t i = 0; i < n / page_bytes; i++)
            pages += present[i] & 1;
    }
    return pages * page_bytes;
}

static size_t pages_bytes(int name)
{
    const long pages = sysconf(name), page_bytes = sysconf(_SC_PAGESIZE);

    return pages > 0 && page_bytes > 0 ? (size_t)pages * (size_t)page_bytes : 0;
}

static sl_status cpu_memory(void *self, size_t *free_out, size_t *total_out, sl_error *err)
{
    (void)self, (void)err;
    *free_out = pages_bytes(_SC_AVPHYS_PAGES);
    *total_out = pages_bytes(_SC_PHYS_PAGES);
    return SL_OK;
}

static const char *cpu_uuid(const void *self)
{
    (void)self;
    return "cpu";
}

const sl_device_backend sl_device_backend_cpu = {
    .open = cpu_open,
    .close = cpu_close,
    .reserve = cpu_reserve,
    .release = cpu_release,
    .map = cpu_map,
    .unmap = cpu_unmap,
    .resident = cpu_resident,
    .memory = cpu_memory,
    .uuid = cpu_uuid,
};
