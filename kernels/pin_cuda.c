#include "kernels/pin_cuda.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

typedef enum { UNTRIED, BUSY, PINNED, REFUSED } part_state;

typedef struct offer {
    struct offer *next;
    unsigned char *base;
    size_t size_bytes; /* whole pages */
    size_t part_count;
    unsigned char *parts; /* [part_count] of part_state */
} offer;

struct sl_pins {
    const sl_cuda_driver *driver;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t tried; /* a part is busy no more */
    offer *offers;
    size_t pinned_bytes;
};

sl_status sl_pins_create(sl_pins **out, const sl_cuda_driver *driver, sl_error *err)
{
    sl_pins *pins = calloc(1, sizeof *pins);

    if (!pins)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for pinned host memory");
    pins->driver = driver;
    pthread_mutex_init(&pins->lock, NULL);
    pthread_cond_init(&pins->tried, NULL);
    *out = pins;
    return SL_OK;
}

void sl_pins_destroy(sl_pins *pins)
{
    if (!pins)
        return;
    while (pins->offers)
        sl_pins_withdraw(pins, pins->offers->base);
    pthread_cond_destroy(&pins->tried);
    pthread_mutex_destroy(&pins->lock);
    free(pins);
}

static size_t part_bytes(const offer *o, size_t part)
{
    const size_t left = o->size_bytes - part * SL_PIN_PART_BYTES;

    return left < SL_PIN_PART_BYTES ? left : SL_PIN_PART_BYTES;
}

sl_status sl_pins_offer(sl_pins *pins, void *base, size_t size_bytes, sl_error *err)
{
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    const size_t parts = (size_bytes + SL_PIN_PART_BYTES - 1) / SL_PIN_PART_BYTES;
    offer *o = calloc(1, sizeof *o);

    SL_ASSERT((uintptr_t)base % page_bytes == 0 && size_bytes <= SIZE_MAX - SL_PIN_PART_BYTES);
    if (o)
        o->parts = calloc(parts ? parts : 1, 1);
    if (!o || !o->parts) {
        free(o);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for pinned host memory");
    }
    o->base = base;
    o->size_bytes = (size_bytes + page_bytes - 1) & ~(page_bytes - 1);
    o->part_count = parts;
    pthread_mutex_lock(&pins->lock);
    o->next = pins->offers;
    pins->offers = o;
    pthread_mutex_unlock(&pins->lock);
    return SL_OK;
}

static bool is_busy(const sl_pins *pins, const void *base)
{
    for (const offer *o = pins->offers; o; o = o->next)
        for (size_t i = 0; o->base == base && i < o->part_count; i++)
            if (o->parts[i] == BUSY)
                return true;
    return false;
}

void sl_pins_withdraw(sl_pins *pins, void *base)
{
    offer *o;

    pthread_mutex_lock(&pins->lock);
    while (is_busy(pins, base)) /* its thread still looks at the offer */
        pthread_cond_wait(&pins->tried, &pins->lock);
    offer **at = &pins->offers;
    while (*at && (*at)->base != base)
        at = &(*at)->next;
    o = *at;
    if (o) {
        *at = o->next;
        for (size_t i = 0; i < o->part_count; i++)
            if (o->parts[i] == PINNED)
                pins->pinned_bytes -= part_bytes(o, i);
    }
    pthread_mutex_unlock(&pins->lock);
    if (!o)
        return;
    for (size_t i = 0; i < o->part_count; i++)
        if (o->parts[i] == PINNED)
            pins->driver->cuMemHostUnregister(o->base + i * SL_PIN_PART_BYTES);
    free(o->parts);
    free(o);
}

static offer *find(const sl_pins *pins, uintptr_t at)
{
    offer *o = pins->offers;

    while (o && !(at >= (uintptr_t)o->base && at - (uintptr_t)o->base < o->size_bytes))
        o = o->next;
    return o;
}

/* The lock is held before and after; not while the driver works, which takes
 * tens of milliseconds. */
static sl_status try_part(sl_pins *pins, offer *o, size_t part, sl_error *err)
{
    const size_t bytes = part_bytes(o, part);
    CUresult error;

    o->parts[part] = BUSY;
    pthread_mutex_unlock(&pins->lock);
    error = pins->driver->cuMemHostRegister(o->base + part * SL_PIN_PART_BYTES, bytes,
                                            CU_MEMHOSTREGISTER_PORTABLE);
    pthread_mutex_lock(&pins->lock);
    o->parts[part] = error == CUDA_SUCCESS ? PINNED : REFUSED;
    if (error == CUDA_SUCCESS)
        pins->pinned_bytes += bytes;
    pthread_cond_broadcast(&pins->tried);
    /* A limit of the system is no failure: the copy takes the slower way. */
    if (sl_cuda_status((int)error) == SL_ERR_DEVICE)
        return sl_cuda_driver_fail(pins->driver, err, error, "could not pin %zu bytes", bytes);
    return SL_OK;
}

sl_status sl_pins_ensure(sl_pins *pins, const void *at, size_t size_bytes, size_t *run_bytes,
                         bool *pinned, sl_error *err)
{
    sl_status status = SL_OK;

    *pinned = false;
    *run_bytes = size_bytes;
    pthread_mutex_lock(&pins->lock);
    offer *o = find(pins, (uintptr_t)at);
    if (o) {
        const size_t offset = (size_t)((uintptr_t)at - (uintptr_t)o->base);
        const size_t part = offset / SL_PIN_PART_BYTES;
        const size_t left = part * SL_PIN_PART_BYTES + part_bytes(o, part) - offset;
        if (left < size_bytes)
            *run_bytes = left;
        if (o->parts[part] == UNTRIED)
            status = try_part(pins, o, part, err);
        while (o->parts[part] == BUSY)
            pthread_cond_wait(&pins->tried, &pins->lock);
        *pinned = o->parts[part] == PINNED;
    }
    pthread_mutex_unlock(&pins->lock);
    return status;
}

size_t sl_pins_bytes(sl_pins *pins)
{
    pthread_mutex_lock(&pins->lock);
    const size_t bytes = pins->pinned_bytes;
    pthread_mutex_unlock(&pins->lock);
    return bytes;
}
