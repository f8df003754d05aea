/* What the worker tells the daemon: events, each with the memory as it is. */
#include "service/worker.h"

#include "base/clock.h"
#include "base/log.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SEND_DEADLINE_NS (10 * SL_NS_PER_S)

/* Of a line such as "RssShmem:      12 kB" in /proc/self/status. */
static size_t status_line_bytes(const char *text, const char *name)
{
    unsigned long kib = 0;
    const char *at = strstr(text, name);

    return at && sscanf(at + strlen(name), ": %lu kB", &kib) == 1 ? (size_t)kib << 10 : 0;
}

/* The process's own: host images are memory of the daemon. */
static size_t resident_set_bytes(void)
{
    char text[4096];
    const int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    const size_t rss = status_line_bytes(text, "VmRSS"),
                 shared = status_line_bytes(text, "RssShmem");
    return rss > shared ? rss - shared : 0;
}

size_t sl_worker_workspace_bytes(const sl_worker *worker)
{
    size_t total = 0;

    for (int i = 0; i < worker->lane_count; i++)
        if (worker->lanes[i].exec)
            total += sl_exec_workspace_bytes(worker->lanes[i].exec);
    return total;
}

void sl_worker_begin_change(sl_lane *lane)
{
    if (!lane->changing)
        atomic_fetch_add(&lane->worker->changes_begun, 1);
    lane->changing = true;
}

/* told: changes that the event itself tells of, 0 or 1. */
static void measure(sl_worker *worker, unsigned told, Sluice__Worker__Memory *out)
{
    const unsigned ended = atomic_load(&worker->changes_ended);
    sl_device_stats stats;
    size_t activations_bytes = 0;

    sl_device_get_stats(worker->device, &stats);
    for (int i = 0; i < worker->lane_count; i++)
        activations_bytes += atomic_load(&worker->lanes[i].activations_bytes);
    out->limit_bytes = stats.limit_bytes;
    out->mapped_bytes = stats.mapped_bytes;
    out->peak_bytes = stats.peak_mapped_bytes;
    out->workspace_bytes = sl_worker_workspace_bytes(worker);
    out->weights_bytes = atomic_load(&worker->weights_bytes);
    out->activations_bytes = activations_bytes;
    out->changing = atomic_load(&worker->changes_begun) != ended + told;
}

void sl_worker_send(sl_worker *worker, sl_lane *lane, Sluice__Worker__Event *event,
                    bool with_resident)
{
    Sluice__Worker__Memory memory = SLUICE__WORKER__MEMORY__INIT;
    const bool tells = lane && lane->changing &&
                       (event->kind_case == SLUICE__WORKER__EVENT__KIND_DONE ||
                        event->kind_case == SLUICE__WORKER__EVENT__KIND_PHASE);
    sl_error error;

    if (with_resident) { /* takes some milliseconds */
        /* Both change while a job runs; the arena first, so that rss is not less. */
        if (sl_device_get_spec(worker->device)->kind == SL_DEVICE_CPU)
            memory.rss_arena_bytes = sl_device_resident_bytes(worker->device);
        memory.rss_bytes = resident_set_bytes();
        sl_worker_measure_card(worker, &memory);
    }
    pthread_mutex_lock(&worker->telling);
    measure(worker, tells, &memory);
    if (memory.rss_arena_bytes > memory.mapped_bytes) /* another lane has unmapped meanwhile */
        memory.rss_arena_bytes = memory.mapped_bytes;
    event->memory = &memory;
    sl_status status = sl_channel_push(worker->channel, &event->base, &error);
    event->memory = NULL;
    /* Not before: a pong in between must not show what the daemon does not
     * know of yet. */
    if (tells) {
        lane->changing = false;
        atomic_fetch_add(&worker->changes_ended, 1);
    }
    pthread_mutex_unlock(&worker->telling);
    if (status == SL_OK)
        status = sl_channel_flush(worker->channel, SEND_DEADLINE_NS, &error);
    if (status != SL_OK && sl_debug("worker"))
        sl_log(SL_LOG_DEBUG, "worker_send", "message=%s", error.message);
}
