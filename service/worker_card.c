/* The card beside the arena: the context's bytes, other processes, the driver's
 * own numbers.  On cpu there is none of it.
 *
 * Free bytes are what both sources agree on, so everything is told from them:
 *
 *     context = free before there was a context - free now - mapped,
 *               foreign processes taken out of both
 *
 * The reserve is the context when all handles are made, and allowances: for the
 * code that the driver loads when a kernel is first used (loading all that the
 * libraries hold would take gigabytes; 10 MiB were seen), and for the card's page
 * tables of pinned host memory, 8 bytes for 4 KiB (docs/SPEED.md).  It is fixed from then on; what the
 * context grows beyond it is booked by nobody and shows as unexplained. */
#include "service/worker.h"

#include "base/log.h"
#include "base/size.h"

#include <string.h>
#include <unistd.h>

#define KERNEL_CODE_BYTES   (192 * SL_MIB)
#define BYTES_PER_TABLE     512 /* of pinned memory, for one byte of page tables */
#define LEAST_CONTEXT_BYTES (32 * SL_MIB)

static size_t less(size_t a, size_t b)
{
    return a > b ? a - b : 0;
}

/* ---- other processes ---- */

typedef struct {
    sl_nvml_process at[SL_NVML_PROCESSES_MAX];
    int count;
} processes;

static void list_processes(const sl_card *card, processes *out)
{
    out->count = 0;
    if (card->nvml &&
        sl_nvml_processes(card->nvml, card->index, out->at, &out->count, NULL) != SL_OK)
        out->count = 0;
}

static bool is_listed(const processes *list, int pid)
{
    for (int i = 0; i < list->count; i++)
        if (list->at[i].pid == pid)
            return true;
    return false;
}

static size_t foreign_bytes(const sl_card *card)
{
    processes now;
    size_t sum = 0;

    list_processes(card, &now);
    for (int i = 0; i < now.count; i++)
        if (now.at[i].pid != card->own_pid)
            sum += now.at[i].size_bytes;
    return sum;
}

/* In a container the library tells the host's numbers, so that getpid is no help:
 * we are the one that came with our context. */
static void find_own_pid(sl_card *card, const processes *before)
{
    processes now;

    list_processes(card, &now);
    for (int i = 0; i < now.count; i++)
        if (!is_listed(before, now.at[i].pid) &&
            (card->own_pid == 0 || now.at[i].pid == (int)getpid()))
            card->own_pid = now.at[i].pid;
}

/* ---- start ---- */

static void look_before(sl_card *card, processes *before)
{
    sl_error error = { .status = SL_OK };
    size_t left = 0, total = 0;

    before->count = 0;
    if (sl_nvml_open(&card->nvml, &error) == SL_OK)
        list_processes(card, before);
    if (card->nvml && sl_nvml_memory(card->nvml, card->index, &left, &total, &error) == SL_OK) {
        card->free_before_bytes = left;
        for (int i = 0; i < before->count; i++)
            card->free_before_bytes += before->at[i].size_bytes;
        return;
    }
    sl_log(SL_LOG_WARN, "no_nvml", "reason=\"%s\"; other processes on the card are not seen",
           error.message);
}

/* Card numbers of driver and library agree unless the environment hides cards. */
static void check_same_card(sl_worker *worker)
{
    sl_card *card = &worker->card;
    const char *uuid = sl_device_uuid(worker->device);
    int index = -1;

    if (!card->nvml ||
        (sl_nvml_find(card->nvml, uuid, &index, NULL) == SL_OK && index == card->index))
        return;
    sl_log(SL_LOG_WARN, "other_card", "uuid=%s driver=%d library=%d", uuid, card->index, index);
    card->free_before_bytes = 0;
    card->index = index;
    if (index < 0)
        sl_worker_close_card(worker);
}

sl_status sl_worker_open_device(sl_worker *worker, const sl_device_spec *spec, sl_error *err)
{
    sl_card *card = &worker->card;
    processes before;
    size_t left;

    if (spec->kind != SL_DEVICE_CUDA)
        return sl_device_create(&worker->device, spec, err);
    card->index = spec->index;
    look_before(card, &before);
    sl_status status = sl_device_create(&worker->device, spec, err);
    if (status == SL_OK)
        status = sl_device_get_memory(worker->device, &left, &card->total_bytes, err);
    if (status == SL_OK) {
        check_same_card(worker);
        find_own_pid(card, &before);
        /* Nobody told, or the library's free bytes are not the driver's (no context
         * is that small): all that is gone counts as ours. */
        if (card->free_before_bytes < left + LEAST_CONTEXT_BYTES)
            card->free_before_bytes = card->total_bytes;
    }
    return status;
}

/* What this process holds beside the arena. */
static size_t context_bytes(sl_worker *worker, size_t free_now, size_t foreign_now)
{
    sl_device_stats stats;

    sl_device_get_stats(worker->device, &stats);
    return less(worker->card.free_before_bytes, free_now + foreign_now + stats.mapped_bytes);
}

sl_status sl_worker_settle_card(sl_worker *worker, sl_error *err)
{
    sl_card *card = &worker->card;
    size_t left, total;

    if (sl_device_get_spec(worker->device)->kind != SL_DEVICE_CUDA)
        return SL_OK;
    sl_status status = sl_device_get_memory(worker->device, &left, &total, err);
    if (status != SL_OK)
        return status;
    const size_t context = context_bytes(worker, left, foreign_bytes(card));
    const size_t limit = sl_device_get_spec(worker->device)->limit_bytes;
    /* Of the whole card, what the driver keeps for itself is no one's to use. */
    const size_t whole = limit && limit < total ? limit : total;
    card->reserve_bytes = context + KERNEL_CODE_BYTES +
                          sl_granules(card->host_bytes / BYTES_PER_TABLE) + SL_DEVICE_CUT_BYTES +
                          less(whole, card->free_before_bytes);
    status = sl_device_set_reserve(worker->device, card->reserve_bytes, err);
    if (status != SL_OK)
        return status;
    sl_log(SL_LOG_INFO, "card",
           "uuid=%s total=%zu free_before=%zu context=%zu reserve=%zu own_pid=%d",
           sl_device_uuid(worker->device), total, card->free_before_bytes, context,
           card->reserve_bytes, card->own_pid);
    return SL_OK;
}

void sl_worker_close_card(sl_worker *worker)
{
    sl_nvml_close(worker->card.nvml);
    worker->card.nvml = NULL;
}

/* ---- now ---- */

size_t sl_worker_driver_free(sl_worker *worker)
{
    size_t left, total;

    if (sl_device_get_spec(worker->device)->kind != SL_DEVICE_CUDA ||
        sl_device_get_memory(worker->device, &left, &total, NULL) != SL_OK)
        return 0;
    return left + foreign_bytes(&worker->card);
}

int64_t sl_worker_driver_kept(const Sluice__Worker__Done *unload)
{
    const int64_t unmapped = (int64_t)unload->before_bytes - (int64_t)unload->after_bytes;
    const int64_t freed =
        (int64_t)unload->driver_free_after_bytes - (int64_t)unload->driver_free_before_bytes;

    if (unload->driver_free_before_bytes == 0 || unload->driver_free_after_bytes == 0)
        return 0;
    return unmapped - freed > 2 * (int64_t)SL_GRANULE_BYTES ? unmapped - freed : 0;
}

void sl_worker_measure_card(sl_worker *worker, Sluice__Worker__Memory *out)
{
    const sl_card *card = &worker->card;
    sl_device_stats stats;
    size_t left, total;

    if (sl_device_get_spec(worker->device)->kind != SL_DEVICE_CUDA ||
        sl_device_get_memory(worker->device, &left, &total, NULL) != SL_OK)
        return;
    const size_t foreign = foreign_bytes(card);
    const size_t context = context_bytes(worker, left, foreign);
    sl_device_get_stats(worker->device, &stats);
    /* Of what the limit leaves us, what the driver could not give: more than our
     * own growth explains.  On a card with room for both, others take nothing. */
    const size_t beyond = less(context, card->reserve_bytes);
    const size_t room = less(stats.limit_bytes, stats.mapped_bytes);
    const size_t given = less(left, less(card->reserve_bytes, context));
    out->context_bytes = context;
    out->reserve_bytes = card->reserve_bytes;
    out->foreign_bytes = less(less(room, given), beyond);
    out->driver_free_bytes = left;
    out->driver_total_bytes = total;
}
