/* handlers_health.c - the ledger and the state of things; from memory, at once. */
#include "service/handlers.h"
#include "service/service_state.h"
#include "service/shared.h"
#include "service/wire.h"

#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>

static sl_status out_of_memory(sl_error *err)
{
    return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply");
}

/* --- GetMemoryStats --- */

static bool add_components(sl_service *s, Sluice__V1__DeviceMemory *pb, sl_arena *arena)
{
    const int count = sl_core_component_count(s->core);

    pb->components = sl_arena_alloc(arena, ((size_t)count + 1) * sizeof(void *));
    if (!pb->components)
        return false;
    for (int i = 0; i < count; i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        pb->components[pb->n_components] = sl_component_bytes_to_pb(&c, arena);
        if (!pb->components[pb->n_components]
            || !sl_shared_fill_models(s, &c.key, pb->components[pb->n_components++], arena))
            return false;
    }
    return true;
}

/* Active jobs: their activations, or what is kept for them. */
static bool add_jobs(sl_service *s, Sluice__V1__DeviceMemory *pb, sl_arena *arena)
{
    const int count = sl_core_active_count(s->core);

    pb->jobs = sl_arena_alloc(arena, ((size_t)count + 1) * sizeof(void *));
    if (!pb->jobs)
        return false;
    for (int i = 0; i < count; i++) {
        Sluice__V1__JobBytes *job = sl_rpc_new(arena, &sluice__v1__job_bytes__descriptor);
        sl_core_active active;
        sl_core_get_active_at(s->core, i, &active);
        if (!job || !(job->job_id = sl_arena_strdup(arena, active.job_id)))
            return false;
        job->activation_bytes = active.mapped_bytes;
        if (active.activation_bytes > active.mapped_bytes)
            job->reserved_bytes = active.activation_bytes - active.mapped_bytes;
        pb->jobs[pb->n_jobs++] = job;
    }
    return true;
}

static bool add_history(const sl_service *s, Sluice__V1__DeviceMemory *pb, sl_arena *arena)
{
    pb->history = sl_arena_alloc(arena, SL_SERVICE_HOURS * sizeof(void *));
    for (int i = 0; i < s->hour_count && pb->history; i++) {
        Sluice__V1__HourPeak *hour = sl_rpc_new(arena, &sluice__v1__hour_peak__descriptor);
        if (!hour)
            return false;
        hour->hour_ns = s->hours[i].hour_ns;
        hour->peak_bytes = s->hours[i].peak_bytes;
        hour->host_peak_bytes = s->hours[i].host_peak_bytes;
        hour->jobs = s->hours[i].jobs;
        pb->history[pb->n_history++] = hour;
    }
    return pb->history != NULL;
}

static Sluice__V1__DeviceMemory *device_to_pb(sl_service *s, sl_arena *arena)
{
    Sluice__V1__DeviceMemory *pb = sl_rpc_new(arena, &sluice__v1__device_memory__descriptor);
    sl_core_ledger ledger;

    if (!pb || !(pb->device = sl_arena_strdup(arena, s->device_text))
        || !add_components(s, pb, arena) || !add_jobs(s, pb, arena) || !add_history(s, pb, arena))
        return NULL;
    sl_service_get_ledger(s, &ledger);
    /* On cpu the process itself, beside the arena, is the context; of a card, what is
     * kept free for it.  What it takes beyond that is unexplained. */
    if (s->config.device.kind == SL_DEVICE_CUDA)
        pb->context_bytes = s->memory.reserve_bytes;
    else if (ledger.worker_up && s->memory.rss_bytes > s->memory.rss_arena_bytes)
        pb->context_bytes = s->memory.rss_bytes - s->memory.rss_arena_bytes;
    pb->host = sl_rpc_new(arena, &sluice__v1__host_memory__descriptor);
    if (!pb->host)
        return NULL;
    pb->host->limit_bytes = ledger.host_limit_bytes;
    pb->host->used_bytes = ledger.host_used_bytes;
    pb->host->free_bytes = ledger.host_limit_bytes - ledger.host_used_bytes;
    pb->limit_bytes = ledger.limit_bytes;
    pb->total_bytes = ledger.limit_bytes + pb->context_bytes;
    pb->weights_bytes = ledger.weights_bytes;
    pb->activations_bytes = ledger.activations_bytes;
    pb->workspace_bytes = ledger.workspace_bytes;
    pb->reserved_bytes = ledger.reserved_bytes;
    pb->foreign_bytes = ledger.foreign_bytes;
    pb->free_bytes = ledger.free_bytes;
    pb->unexplained_bytes = ledger.unexplained_bytes;
    pb->arena_mapped_bytes =
        (uint64_t)((int64_t)(pb->weights_bytes + pb->activations_bytes + pb->workspace_bytes)
                   + ledger.unexplained_bytes);
    pb->arena_peak_bytes = s->memory.peak_bytes;
    pb->worker_up = s->worker_up;
    pb->worker_restarts = sl_supervisor_restarts(s->supervisor);
    pb->worker_pid = s->worker_pid;
    return pb;
}

sl_status sl_handle_get_memory_stats(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    Sluice__V1__GetMemoryStatsReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__get_memory_stats_reply__descriptor);

    if (!reply || !(reply->devices = sl_arena_alloc(call->arena, sizeof(void *))))
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    reply->devices[0] = device_to_pb(s, call->arena);
    pthread_mutex_unlock(&s->lock);
    if (!reply->devices[0])
        return out_of_memory(err);
    reply->n_devices = 1;
    call->reply = &reply->base;
    return SL_OK;
}

/* --- Health --- */

static char *describe(sl_service *s, const sl_core_ledger *ledger, sl_arena *arena)
{
    if (s->stopping)
        return sl_arena_strdup(arena, "shutting down");
    if (!s->worker_up)
        return sl_arena_printf(arena, "the worker is not up: %s", s->down_reason);
    if (sl_service_is_leak(ledger->unexplained_bytes))
        return sl_arena_printf(arena, "%lld bytes of device memory are unexplained",
                               (long long)ledger->unexplained_bytes);
    if (s->canary_problem[0])
        return sl_arena_printf(arena, "the device gets its sums wrong: %s", s->canary_problem);
    if (s->store_problem[0])
        return sl_arena_strdup(arena, s->store_problem);
    if (s->draining)
        return sl_arena_strdup(arena, "draining: no job is admitted");
    return sl_arena_strdup(arena, "ok");
}

static sl_status fill_health(sl_service *s, Sluice__V1__HealthReply *reply, sl_arena *arena,
                             sl_error *err)
{
    Sluice__V1__DeviceHealth *device = sl_rpc_new(arena, &sluice__v1__device_health__descriptor);
    sl_core_ledger ledger;

    sl_service_get_ledger(s, &ledger);
    reply->status = describe(s, &ledger, arena);
    reply->version = sl_arena_strdup(arena, SL_VERSION);
    reply->devices = sl_arena_alloc(arena, sizeof(void *));
    if (!device || !reply->status || !reply->version || !reply->devices
        || !(device->device = sl_arena_strdup(arena, s->device_text)))
        return out_of_memory(err);
    device->worker_up = s->worker_up;
    device->worker_restarts = sl_supervisor_restarts(s->supervisor);
    device->unexplained_bytes = ledger.unexplained_bytes;
    reply->devices[reply->n_devices++] = device;
    reply->ready = s->worker_up && !s->stopping && !s->canary_problem[0];
    reply->api_version = SL_WIRE_API_VERSION;
    reply->uptime_ns = sl_clock_now_ns() - s->started_ns;
    reply->queued_jobs = (uint32_t)sl_core_queued_count(s->core);
    reply->running_jobs = (uint32_t)sl_core_active_count(s->core);
    return SL_OK;
}

sl_status sl_handle_health(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    Sluice__V1__HealthReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__health_reply__descriptor);

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    const sl_status status = fill_health(s, reply, call->arena, err);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return status;
}
