#include "kernels/device.h"

#include "base/machine.h"
#include "base/size.h"
#include "kernels/device_backend.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sl_device {
    sl_device_spec spec; /* limit_bytes rounded down to granules */
    const sl_device_backend *backend;
    void *self;            /* the backend's */
    size_t capacity_bytes; /* what limit and reserve share */
    pthread_mutex_t lock;  /* guards what follows */
    sl_device_stats stats;
    sl_region *regions; /* all there are */
};

struct sl_region {
    sl_device *device;
    sl_region *next; /* guarded by device->lock */
    char *name;
    sl_range range;
    pthread_mutex_t lock; /* one map at a time; taken before device->lock */
    size_t mapped_bytes;  /* written under both locks, so either is enough to read */
};

size_t sl_granules(size_t size_bytes)
{
    size_t rounded;

    if (!sl_size_align(size_bytes, SL_GRANULE_BYTES, &rounded))
        return SIZE_MAX & ~(SL_GRANULE_BYTES - 1);
    return rounded;
}

/* ---- spec ---- */

static sl_status parse_limit(const char *text, const char *whole, size_t *out, sl_error *err)
{
    size_t limit_bytes;

    if (!sl_size_parse(text, &limit_bytes))
        return sl_fail(err, SL_ERR_INVALID,
                       "device \"%s\": \"%s\" is not a size such as 8GiB or 12GB", whole, text);
    limit_bytes &= ~(SL_GRANULE_BYTES - 1);
    if (limit_bytes == 0)
        return sl_fail(err, SL_ERR_INVALID, "device \"%s\": a limit below one granule of %zu bytes",
                       whole, SL_GRANULE_BYTES);
    *out = limit_bytes;
    return SL_OK;
}

static sl_status parse_cpu(const char *rest, const char *text, sl_device_spec *spec, sl_error *err)
{
    spec->kind = SL_DEVICE_CPU;
    if (*rest == ':')
        return parse_limit(rest + 1, text, &spec->limit_bytes, err);
    spec->limit_bytes = sl_machine_memory_bytes() / 2 & ~(SL_GRANULE_BYTES - 1);
    if (spec->limit_bytes == 0)
        return sl_fail(err, SL_ERR_INVALID,
                       "device \"%s\": the machine does not tell its memory; give a limit as in "
                       "cpu:8GiB",
                       text);
    return SL_OK;
}

static sl_status parse_cuda(const char *rest, const char *text, sl_device_spec *spec, sl_error *err)
{
    int index = 0, digits = 0;

    for (; *rest >= '0' && *rest <= '9' && digits < 4; rest++, digits++)
        index = index * 10 + (*rest - '0');
    if (digits == 0 || (*rest != '\0' && *rest != ':'))
        return sl_fail(err, SL_ERR_INVALID,
                       "device \"%s\": expected a card's number as in cuda:0 or cuda:0:24GiB",
                       text);
    spec->kind = SL_DEVICE_CUDA;
    spec->index = index;
    if (*rest == ':')
        return parse_limit(rest + 1, text, &spec->limit_bytes, err);
    return SL_OK;
}

sl_status sl_device_spec_parse(const char *text, sl_device_spec *out, sl_error *err)
{
    sl_device_spec spec = { .kind = SL_DEVICE_CPU };
    sl_status status;

    if (strncmp(text, "cuda:", 5) == 0)
        status = parse_cuda(text + 5, text, &spec, err);
    else if (strncmp(text, "cpu", 3) == 0 && (text[3] == '\0' || text[3] == ':'))
        status = parse_cpu(text + 3, text, &spec, err);
    else
        status = sl_fail(err, SL_ERR_INVALID,
                         "device \"%s\": expected cpu, cpu:SIZE, cuda:N or cuda:N:SIZE", text);
    if (status == SL_OK)
        *out = spec;
    return status;
}

char *sl_device_spec_format(const sl_device_spec *spec, char *buf, size_t buf_bytes)
{
    if (spec->kind == SL_DEVICE_CPU)
        snprintf(buf, buf_bytes, "cpu:%zu", spec->limit_bytes);
    else if (spec->limit_bytes == 0)
        snprintf(buf, buf_bytes, "cuda:%d", spec->index);
    else
        snprintf(buf, buf_bytes, "cuda:%d:%zu", spec->index, spec->limit_bytes);
    return buf;
}

/* ---- device ---- */

sl_status sl_device_create(sl_device **out, const sl_device_spec *spec, sl_error *err)
{
    sl_status status = SL_OK;
    sl_device *device = NULL;
    char text[64];

    if (spec->limit_bytes < SL_GRANULE_BYTES &&
        (spec->kind == SL_DEVICE_CPU || spec->limit_bytes != 0))
        return sl_fail(err, SL_ERR_INVALID, "device \"%s\": a limit below one granule of %zu bytes",
                       sl_device_spec_format(spec, text, sizeof text), SL_GRANULE_BYTES);
    device = calloc(1, sizeof *device);
    if (!device)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a device");
    device->spec = *spec;
    device->spec.limit_bytes &= ~(SL_GRANULE_BYTES - 1);
    device->backend =
        spec->kind == SL_DEVICE_CPU ? &sl_device_backend_cpu : &sl_device_backend_cuda;
    status = device->backend->open(&device->self, &device->spec, &device->capacity_bytes, err);
    if (status != SL_OK) {
        if (err)
            sl_error_prefix(err, "device \"%s\"", sl_device_spec_format(spec, text, sizeof text));
        free(device);
        return status;
    }
    if (device->spec.limit_bytes != 0 && device->spec.limit_bytes < device->capacity_bytes)
        device->capacity_bytes = device->spec.limit_bytes;
    device->stats.limit_bytes = device->capacity_bytes & ~(SL_GRANULE_BYTES - 1);
    pthread_mutex_init(&device->lock, NULL);
    *out = device;
    return SL_OK;
}

void sl_device_destroy(sl_device *device)
{
    if (!device)
        return;
    SL_ASSERT(device->regions == NULL);
    device->backend->close(device->self);
    pthread_mutex_destroy(&device->lock);
    free(device);
}

sl_status sl_device_set_reserve(sl_device *device, size_t reserve_bytes, sl_error *err)
{
    const size_t reserve = sl_granules(reserve_bytes);
    sl_status status = SL_OK;

    pthread_mutex_lock(&device->lock);
    sl_device_stats *stats = &device->stats;
    const size_t left = reserve < device->capacity_bytes ? device->capacity_bytes - reserve : 0;
    if (left < SL_GRANULE_BYTES || left < stats->mapped_bytes) {
        status = sl_fail(err, SL_ERR_TOO_LARGE,
                         "a reserve of %zu bytes leaves %zu of the device's %zu, and %zu are mapped",
                         reserve, left, device->capacity_bytes, stats->mapped_bytes);
    } else {
        stats->reserve_bytes = reserve;
        stats->limit_bytes = left & ~(SL_GRANULE_BYTES - 1);
    }
    pthread_mutex_unlock(&device->lock);
    return status;
}

sl_status sl_device_get_memory(sl_device *device, size_t *free_out, size_t *total_out,
                               sl_error *err)
{
    return device->backend->memory(device->self, free_out, total_out, err);
}

const char *sl_device_uuid(const sl_device *device)
{
    return device->backend->uuid(device->self);
}

const void *sl_device_backend_self(const sl_device *device)
{
    return device->self;
}

const sl_device_spec *sl_device_get_spec(const sl_device *device)
{
    return &device->spec;
}

void sl_device_get_stats(const sl_device *device, sl_device_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&device->lock;

    pthread_mutex_lock(lock);
    *out = device->stats;
    pthread_mutex_unlock(lock);
}

void sl_device_reset_peak(sl_device *device)
{
    pthread_mutex_lock(&device->lock);
    device->stats.peak_mapped_bytes = device->stats.mapped_bytes;
    pthread_mutex_unlock(&device->lock);
}

size_t sl_device_resident_bytes(sl_device *device)
{
    size_t sum = 0;

    pthread_mutex_lock(&device->lock);
    for (const sl_region *r = device->regions; r; r = r->next)
        sum += device->backend->resident(&r->range, r->mapped_bytes);
    pthread_mutex_unlock(&device->lock);
    return sum;
}

/* ---- regions ---- */

sl_status sl_region_create(sl_region **out, sl_device *device, const char *name, size_t va_bytes,
                           sl_error *err)
{
    sl_status status = SL_OK;
    sl_region *region = calloc(1, sizeof *region);

    if (region)
        region->name = strdup(name);
    if (!region || !region->name) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for region \"%s\"", name);
        goto done;
    }
    if (va_bytes == 0) {
        status = sl_fail(err, SL_ERR_INVALID, "region \"%s\": no address space asked for", name);
        goto done;
    }
    status = device->backend->reserve(device->self, &region->range, sl_granules(va_bytes), name, err);
    if (status != SL_OK)
        goto done;
    region->device = device;
    pthread_mutex_init(&region->lock, NULL);
    pthread_mutex_lock(&device->lock);
    region->next = device->regions;
    device->regions = region;
    pthread_mutex_unlock(&device->lock);
    *out = region;
    region = NULL; /* handed to the caller */
done:
    if (region)
        free(region->name);
    free(region);
    return status;
}

void sl_region_destroy(sl_region *region)
{
    if (!region)
        return;
    sl_device *device = region->device;

    /* Out of the list first: nobody looks at its pages any more. */
    pthread_mutex_lock(&device->lock);
    sl_region **at = &device->regions;
    while (*at != region)
        at = &(*at)->next;
    *at = region->next;
    pthread_mutex_unlock(&device->lock);

    device->backend->release(device->self, &region->range);
    pthread_mutex_lock(&device->lock);
    device->stats.mapped_bytes -= region->mapped_bytes;
    pthread_mutex_unlock(&device->lock);
    pthread_mutex_destroy(&region->lock);
    free(region->name);
    free(region);
}

/* The limit is checked and the bytes are booked under one lock, so that no two
 * regions pass it together, and the peak is never below what is mapped; the driver
 * is asked outside of it, since that takes long for gigabytes. */
static sl_status region_grow(sl_region *region, size_t target, sl_error *err)
{
    sl_device *device = region->device;
    sl_device_stats *stats = &device->stats;
    const size_t need = target - region->mapped_bytes;
    sl_status status = SL_OK;

    pthread_mutex_lock(&device->lock);
    const size_t have = stats->limit_bytes - stats->mapped_bytes;
    if (need > have)
        status = sl_fail(err, SL_ERR_NO_MEMORY,
                         "could not map region \"%s\": need %zu bytes, have %zu of a limit of %zu",
                         region->name, need, have, stats->limit_bytes);
    else
        stats->mapped_bytes += need;
    if (stats->mapped_bytes > stats->peak_mapped_bytes)
        stats->peak_mapped_bytes = stats->mapped_bytes;
    pthread_mutex_unlock(&device->lock);
    if (status != SL_OK)
        return status;

    status = device->backend->map(device->self, &region->range, region->mapped_bytes, need,
                                  region->name, err);
    pthread_mutex_lock(&device->lock);
    if (status == SL_OK)
        region->mapped_bytes = target;
    else
        stats->mapped_bytes -= need;
    pthread_mutex_unlock(&device->lock);
    return status;
}

/* The pages go back first and are booked after: others never see room that is
 * not there yet. */
static sl_status region_shrink(sl_region *region, size_t target, sl_error *err)
{
    sl_device *device = region->device;
    const size_t gone = region->mapped_bytes - target;
    const sl_status status =
        device->backend->unmap(device->self, &region->range, target, gone, region->name, err);

    if (status == SL_OK) {
        pthread_mutex_lock(&device->lock);
        device->stats.mapped_bytes -= gone;
        region->mapped_bytes = target;
        pthread_mutex_unlock(&device->lock);
    }
    return status;
}

sl_status sl_region_map(sl_region *region, size_t size_bytes, sl_error *err)
{
    const size_t target = sl_granules(size_bytes);
    sl_status status = SL_OK;

    if (size_bytes > region->range.va_bytes)
        return sl_fail(err, SL_ERR_INVALID,
                       "could not map region \"%s\": need %zu bytes, its address space has %zu",
                       region->name, size_bytes, region->range.va_bytes);
    pthread_mutex_lock(&region->lock);
    if (target > region->mapped_bytes)
        status = region_grow(region, target, err);
    else if (target < region->mapped_bytes)
        status = region_shrink(region, target, err);
    pthread_mutex_unlock(&region->lock);
    return status;
}

void *sl_region_data(const sl_region *region)
{
    return region->range.base;
}

size_t sl_region_mapped_bytes(const sl_region *region)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&region->lock;

    pthread_mutex_lock(lock);
    const size_t mapped_bytes = region->mapped_bytes;
    pthread_mutex_unlock(lock);
    return mapped_bytes;
}
