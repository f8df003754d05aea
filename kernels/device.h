/* device.h - device memory: one arena, granules, regions.
 *
 * The device has a hard limit.  Address space is reserved freely as regions;
 * memory is mapped into a region in granules of 2 MiB (SL_GRANULE_BYTES) and
 * counted against the limit.  Granules are interchangeable, so there is no
 * fragmentation: a map fails only if the limit would be passed or the driver
 * refuses.  There is no other device allocation.
 *
 * On `cpu` a region is an mmap'd range, PROT_NONE until mapped; unmapping
 * gives the pages back to the kernel.  On `cuda:N` it is driver VMM; unmapping
 * first waits for everything that runs on the card, since work under way may
 * use those pages.
 *
 * The limit of `cuda:0:24GiB` is the whole card's: what the process holds there
 * beside the arena (context, modules, library handles) is the reserve, measured
 * by the worker after its warm-up and taken off the arena's limit.
 *
 * Ownership: the worker creates the device and outlives its regions.
 * Threads:   any function, any thread.
 */
#ifndef SL_KERNELS_DEVICE_H
#define SL_KERNELS_DEVICE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_GRANULE_BYTES ((size_t)2 << 20)
/* What a cuda device may hold beyond its limit for a moment, while a region
 * shrinks: a part of the reserve. */
#define SL_DEVICE_CUT_BYTES ((size_t)64 << 20)

typedef enum {
    SL_DEVICE_CPU,
    SL_DEVICE_CUDA,
} sl_device_kind;

typedef struct {
    sl_device_kind kind;
    int index;          /* cuda:N; 0 on cpu */
    size_t limit_bytes; /* 0 on cuda: the whole card.  cpu: always set */
} sl_device_spec;

/* "cpu", "cpu:8GiB", "cuda:0", "cuda:0:24GiB".  Plain "cpu" means half of the
 * memory that this process may have (base/machine.h).  The limit is rounded down to granules; less than one
 * granule is refused. */
sl_status sl_device_spec_parse(const char *text, sl_device_spec *out, sl_error *err) SL_MUST_CHECK;
/* "cpu:8589934592" or "cuda:0:..."; returns buf. */
char *sl_device_spec_format(const sl_device_spec *spec, char *buf, size_t buf_bytes);

typedef struct sl_device sl_device;

typedef struct {
    size_t limit_bytes;       /* capacity of the arena, a multiple of a granule: the
                               * spec's, or the card's, minus the reserve */
    size_t reserve_bytes;     /* beside the arena; 0 until it is set */
    size_t mapped_bytes;      /* sum over all regions */
    size_t peak_mapped_bytes; /* of what was booked, since create or the last reset */
} sl_device_stats;

/* On cuda this creates the process's context on the card.  SL_ERR_UNIMPLEMENTED
 * when the build has no CUDA and the spec asks for it, SL_ERR_UNAVAILABLE when
 * the machine has no driver, SL_ERR_NOT_FOUND when it has no such card. */
sl_status sl_device_create(sl_device **out, const sl_device_spec *spec, sl_error *err) SL_MUST_CHECK;
void sl_device_destroy(sl_device *device); /* all regions must be gone; NULL is fine */
const sl_device_spec *sl_device_get_spec(const sl_device *device);
void sl_device_get_stats(const sl_device *device, sl_device_stats *out);
/* Rounded up to granules.  SL_ERR_TOO_LARGE if that leaves less than is mapped,
 * or nothing. */
sl_status sl_device_set_reserve(sl_device *device, size_t reserve_bytes,
                                sl_error *err) SL_MUST_CHECK;
/* What the driver says about the whole card, other processes included; on cpu
 * the machine's memory. */
sl_status sl_device_get_memory(sl_device *device, size_t *free_out, size_t *total_out,
                               sl_error *err) SL_MUST_CHECK;
/* "GPU-01234567-89ab-...", as nvidia-smi prints it; "cpu". */
const char *sl_device_uuid(const sl_device *device);
void sl_device_reset_peak(sl_device *device);
/* Bytes of the mapped memory that the system has really given: on cpu the
 * pages touched so far, on others all that is mapped.  Reads page tables:
 * milliseconds for gigabytes. */
size_t sl_device_resident_bytes(sl_device *device);

typedef struct sl_region sl_region;

/* Reserves address space only: nothing is mapped.  va_bytes is rounded up to
 * granules.  `name` appears in messages and is copied. */
sl_status sl_region_create(sl_region **out, sl_device *device, const char *name, size_t va_bytes,
                           sl_error *err) SL_MUST_CHECK;
void sl_region_destroy(sl_region *region); /* unmaps first; NULL is fine */

/* Makes exactly [0, size_bytes rounded up to granules) mapped: grows or
 * shrinks, keeping the contents of what stays.  Newly mapped memory reads as
 * zero on cpu and is undefined on cuda.  SL_ERR_NO_MEMORY if the limit would be
 * passed or the driver has no more (another process took it); nothing changes
 * then, and the message says need, have and limit. */
sl_status sl_region_map(sl_region *region, size_t size_bytes, sl_error *err) SL_MUST_CHECK;

void *sl_region_data(const sl_region *region); /* address of byte 0; stable */
size_t sl_region_mapped_bytes(const sl_region *region);

/* Bytes of n rounded up to granules (saturating at SIZE_MAX's last granule). */
size_t sl_granules(size_t size_bytes);

#endif
