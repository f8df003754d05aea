/* handlers_admin.c - running a daemon: budget table, configuration, reset, drain,
 * events, cleaning, and the daily check. */
#include "service/evidence.h"
#include "service/handlers.h"
#include "service/outputs.h"
#include "service/service_state.h"

#include "base/clock.h"
#include "base/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { EVENTS_PER_REPLY = 256, NAMES_PER_REPLY = 1000, DOCTOR_LINES = 16 };
#define WATCH_MOST_NS (20 * SL_NS_PER_S)
/* Between the wall clock and the monotonic one, since the start. */
#define DRIFT_MOST_NS (5 * SL_NS_PER_S)
#define LEAST_FREE_BYTES ((uint64_t)1 << 30)

static sl_status out_of_memory(sl_error *err)
{
    return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply");
}

/* --- GetBudgetTable, ReloadConfig --- */

static Sluice__V1__BudgetRow *row_to_pb(const sl_budget_row *row, sl_arena *arena)
{
    Sluice__V1__BudgetRow *pb = sl_rpc_new(arena, &sluice__v1__budget_row__descriptor);

    if (!pb)
        return NULL;
    pb->name = sl_arena_strdup(arena, row->name);
    pb->hint = sl_arena_strdup(arena, row->hint);
    pb->kind = (char *)(row->kind == SL_DEVICE_CUDA ? "cuda" : "cpu");
    pb->from_bytes = row->from_bytes;
    pb->to_bytes = row->to_bytes;
    pb->rules = sl_arena_alloc(arena, SL_BUDGET_MAX_RULES * sizeof(char *));
    if (!pb->name || !pb->hint || !pb->rules)
        return NULL;
    for (int i = 0; i < row->rule_count; i++) {
        pb->rules[pb->n_rules] = sl_arena_strdup(arena, row->rules[i].text);
        if (!pb->rules[pb->n_rules++])
            return NULL;
    }
    return pb;
}

sl_status sl_handle_get_budget_table(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    Sluice__V1__GetBudgetTableReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__get_budget_table_reply__descriptor);
    sl_status status = SL_OK;

    if (!reply
        || !(reply->rows = sl_arena_alloc(call->arena, SL_BUDGET_MAX_ROWS * sizeof(void *))))
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    for (int i = 0; s->table && i < s->table->row_count && status == SL_OK; i++) {
        reply->rows[reply->n_rows] = row_to_pb(&s->table->rows[i], call->arena);
        if (!reply->rows[reply->n_rows++])
            status = out_of_memory(err);
    }
    const sl_budget_row *active =
        s->table ? sl_budget_find_row(s->table, s->config.device.kind, s->config.device.limit_bytes)
                 : NULL;
    reply->active_row = sl_arena_strdup(call->arena, active ? active->name : "");
    pthread_mutex_unlock(&s->lock);
    if (!reply->active_row)
        status = out_of_memory(err);
    call->reply = &reply->base;
    return status;
}

typedef struct {
    Sluice__V1__ReloadConfigReply *reply;
    sl_arena *arena;
} change_list;

static void add_change(void *arg, const char *what)
{
    change_list *list = arg;
    char *copy = sl_arena_strdup(list->arena, what);

    if (copy)
        list->reply->changed[list->reply->n_changed++] = copy;
}

sl_status sl_handle_reload_config(void *service, sl_rpc_call *call, sl_error *err)
{
    Sluice__V1__ReloadConfigReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__reload_config_reply__descriptor);
    change_list list = { reply, call->arena };

    if (!reply || !(reply->changed = sl_arena_alloc(call->arena, 16 * sizeof(char *))))
        return out_of_memory(err);
    const sl_status status = sl_service_reload(service, add_change, &list, err);
    call->reply = &reply->base;
    /* A file that is wrong is the operator's to mend. */
    if (status == SL_ERR_DATA)
        return err->status = SL_ERR_PRECONDITION;
    return status;
}

/* --- ResetDevice, Drain --- */

sl_status sl_handle_reset_device(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const int64_t begin_ns = sl_clock_now_ns();
    sl_status status = SL_OK;
    Sluice__V1__ResetDeviceReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__reset_device_reply__descriptor);

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    const uint64_t old = s->generation;
    const bool was_up = s->worker_up;
    reply->old_pid = s->worker_pid;
    if (was_up) {
        char why[SL_IDENTITY_BYTES + 20];
        snprintf(why, sizeof why, "reset by %s", call->peer.identity);
        s->resetting = true;
        sl_supervisor_kill(s->supervisor, old, why);
    }
    /* One that is not up is being replaced already. */
    while (status == SL_OK && !(s->worker_up && (!was_up || s->generation != old))) {
        if (s->stopping)
            status = sl_fail(err, SL_ERR_UNAVAILABLE, "the server is shutting down");
        else if (!sl_service_wait(s, call->deadline_ns))
            status = sl_fail(err, SL_ERR_TIMEOUT, "the new worker is not up yet: %s",
                             s->down_reason);
    }
    reply->new_pid = s->worker_pid;
    pthread_mutex_unlock(&s->lock);
    reply->duration_ns = sl_clock_now_ns() - begin_ns;
    if (status == SL_OK)
        sl_log(SL_LOG_WARN, "device_reset", "by=%s old_pid=%lld new_pid=%lld ms=%lld",
               call->peer.identity, (long long)reply->old_pid, (long long)reply->new_pid,
               (long long)(reply->duration_ns / SL_NS_PER_MS));
    call->reply = &reply->base;
    return status;
}

sl_status sl_handle_drain(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__DrainRequest *request = (const void *)call->request;
    Sluice__V1__DrainReply *reply = sl_rpc_new(call->arena, &sluice__v1__drain_reply__descriptor);
    sl_core_active active;

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    if (s->draining == request->off)
        sl_event_add(s, "drain", "on=%d by=%s", !request->off, call->peer.identity);
    s->draining = !request->off;
    sl_core_set_draining(s->core, s->draining);
    sl_service_pump(s);
    sl_core_get_active(s->core, &active);
    reply->running_jobs = active.job_id[0] ? 1 : 0;
    reply->queued_jobs = (uint32_t)sl_core_queued_count(s->core);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return SL_OK;
}

/* --- WatchEvents --- */

static sl_status fill_events(const sl_service *s, uint64_t after_seq,
                             Sluice__V1__WatchEventsReply *reply, sl_arena *arena, sl_error *err)
{
    uint64_t seq = s->last_event > SL_SERVER_EVENTS ? s->last_event - SL_SERVER_EVENTS : 0;

    /* Of an earlier process of this server: from the beginning. */
    if (after_seq > s->last_event)
        after_seq = 0;
    if (seq < after_seq)
        seq = after_seq;
    for (seq++; seq <= s->last_event && reply->n_events < EVENTS_PER_REPLY; seq++) {
        const sl_server_event *event = sl_event_find(s, seq);
        Sluice__V1__ServerEvent *pb = sl_rpc_new(arena, &sluice__v1__server_event__descriptor);
        if (!event)
            continue;
        if (!pb || !(pb->kind = sl_arena_strdup(arena, event->kind))
            || !(pb->text = sl_arena_strdup(arena, event->text)))
            return out_of_memory(err);
        pb->seq = event->seq;
        pb->time_ns = event->time_ns;
        reply->events[reply->n_events++] = pb;
    }
    return SL_OK;
}

sl_status sl_handle_watch_events(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__WatchEventsRequest *request = (const void *)call->request;
    const int64_t wait_ns = request->wait_ns < WATCH_MOST_NS ? request->wait_ns : WATCH_MOST_NS;
    int64_t deadline_ns = sl_clock_deadline_ns(wait_ns);
    Sluice__V1__WatchEventsReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__watch_events_reply__descriptor);

    if (!reply
        || !(reply->events = sl_arena_alloc(call->arena, EVENTS_PER_REPLY * sizeof(void *))))
        return out_of_memory(err);
    if (deadline_ns > call->deadline_ns)
        deadline_ns = call->deadline_ns;
    pthread_mutex_lock(&s->lock);
    /* Above the cap nobody waits: others must get through. */
    if (wait_ns > 0 && s->watchers < s->config.watchers) {
        s->watchers++;
        while (s->last_event == request->after_seq && !s->stopping
               && sl_service_wait(s, deadline_ns))
            ;
        s->watchers--;
    }
    const sl_status status = fill_events(s, request->after_seq, reply, call->arena, err);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return status;
}

/* --- CleanOutputs --- */

typedef struct {
    Sluice__V1__CleanOutputsReply *reply;
    sl_arena *arena;
} clean_list;

static void add_cleaned(void *arg, const char *name, uint64_t size_bytes)
{
    clean_list *list = arg;
    char *copy = list->reply->n_names < NAMES_PER_REPLY ? sl_arena_strdup(list->arena, name) : NULL;

    list->reply->files++;
    list->reply->bytes += size_bytes;
    if (copy)
        list->reply->names[list->reply->n_names++] = copy;
}

sl_status sl_handle_clean_outputs(void *service, sl_rpc_call *call, sl_error *err)
{
    const Sluice__V1__CleanOutputsRequest *request = (const void *)call->request;
    Sluice__V1__CleanOutputsReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__clean_outputs_reply__descriptor);
    clean_list list = { reply, call->arena };

    if (!reply || !(reply->names = sl_arena_alloc(call->arena, NAMES_PER_REPLY * sizeof(char *))))
        return out_of_memory(err);
    if (request->older_than_ns < 0)
        return sl_rpc_fail_field(call, "older_than_ns", "0", err, "%lld ns is no age",
                                 (long long)request->older_than_ns);
    call->reply = &reply->base;
    return sl_outputs_clean(service, request->older_than_ns, request->dry_run, add_cleaned, &list,
                            err);
}

/* --- Doctor --- */

typedef struct {
    Sluice__V1__DoctorReply *reply;
    sl_arena *arena;
    bool complete; /* memory has sufficed */
} doctor;

static void SL_PRINTF(5, 6) check(doctor *d, const char *name, bool ok, const char *advice,
                                  const char *fmt, ...)
{
    Sluice__V1__DoctorLine *line = sl_rpc_new(d->arena, &sluice__v1__doctor_line__descriptor);
    char text[700];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    d->complete &= line && d->reply->n_lines < DOCTOR_LINES;
    if (!d->complete)
        return;
    line->check = (char *)name;
    line->ok = ok;
    line->advice = (char *)(ok ? "" : advice);
    line->text = sl_arena_strdup(d->arena, text);
    d->complete = line->text != NULL;
    d->reply->ok &= ok;
    d->reply->lines[d->reply->n_lines++] = line;
}

/* Booked parts against each other and against what the worker measured. */
static void check_ledger(doctor *d, sl_service *s)
{
    size_t weights = 0;
    sl_core_ledger l;

    sl_service_get_ledger(s, &l);
    for (int i = 0; i < sl_core_component_count(s->core); i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        weights += c.state == SL_CORE_READY || c.state == SL_CORE_UNLOADING ? c.size_bytes : 0;
    }
    const int64_t sum = (int64_t)(l.workspace_bytes + l.weights_bytes + l.activations_bytes
                                  + l.reserved_bytes + l.foreign_bytes + l.free_bytes)
                        + l.unexplained_bytes;
    check(d, "ledger", sum == (int64_t)l.limit_bytes && weights == l.weights_bytes,
          "a bug: keep the log and `sluice stats --json`, then `sluice reset --hard`",
          "%zu bytes: workspace %zu, weights %zu (components %zu), activations %zu, reserved %zu, "
          "foreign %zu, free %zu",
          l.limit_bytes, l.workspace_bytes, l.weights_bytes, weights, l.activations_bytes,
          l.reserved_bytes, l.foreign_bytes, l.free_bytes);
    check(d, "unexplained", l.unexplained_bytes == 0,
          "memory that nobody booked: `sluice reset --hard` frees it; keep the log",
          "%lld bytes", (long long)l.unexplained_bytes);
}

static void check_worker(doctor *d, sl_service *s)
{
    const uint32_t restarts = sl_supervisor_restarts(s->supervisor);

    check(d, "worker", s->worker_up, "see the log for worker_exit, and outputs/evidence",
          "%s%s", s->worker_up ? "up" : "down: ", s->worker_up ? "" : s->down_reason);
    check(d, "restarts", restarts == 0,
          "see outputs/evidence for why; a restart of sluiced sets this to 0", "%u since the start",
          restarts);
}

static void check_canary(doctor *d, sl_service *s)
{
    char well[64];

    if (!s->worker_up)
        return;
    snprintf(well, sizeof well, "came back right in %lld ms",
             (long long)(s->canary_ns / SL_NS_PER_MS));
    check(d, "canary", !s->canary_problem[0], "the device gets its sums wrong: take it out of use",
          "%s", s->canary_problem[0] ? s->canary_problem : well);
}

static void check_disk(doctor *d, sl_service *s, const sl_outputs_room *room, sl_status looked,
                       const char *why)
{
    const uint64_t quota = s->limits.outputs_quota_bytes;

    if (looked != SL_OK) {
        check(d, "disk", false, "make the outputs directory readable", "%s", why);
        return;
    }
    check(d, "disk", room->free_bytes >= LEAST_FREE_BYTES,
          "make room on the disk, or `sluice clean --older-than 7d`",
          "%llu bytes free, at least %llu should be", (unsigned long long)room->free_bytes,
          (unsigned long long)LEAST_FREE_BYTES);
    check(d, "quota", quota == 0 || room->used_bytes <= quota / 10 * 9,
          "`sluice clean --older-than 7d`, or raise outputs_quota",
          "%llu bytes used, quota %llu (0: none)", (unsigned long long)room->used_bytes,
          (unsigned long long)quota);
    check(d, "strays", room->stray_count == 0,
          "files of a worker that died: a restart of sluiced removes them",
          "%d partial or latent files of no running job", room->stray_count);
    check(d, "store", s->store_problem[0] == '\0',
          "jobs are not being recorded: make room on the disk of the outputs",
          "%s", s->store_problem[0] ? s->store_problem : "every change is recorded");
}

static void check_rest(doctor *d, sl_service *s)
{
    struct stat lock = { .st_nlink = 1 };
    const sl_budget_row *row =
        s->table ? sl_budget_find_row(s->table, s->config.device.kind, s->config.device.limit_bytes)
                 : NULL;
    const int64_t drift_ns = (sl_clock_wall_ns() - s->started_wall_ns)
                             - (sl_clock_now_ns() - s->started_ns);

    check(d, "budget", row || s->config.device.kind == SL_DEVICE_CPU,
          "no row of the budget table is for this device: only the plan decides; add a row",
          "row: %s", row ? row->name : "none, the plan alone decides");
    check(d, "clock", drift_ns < DRIFT_MOST_NS && drift_ns > -DRIFT_MOST_NS,
          "the wall clock was set: times of jobs are off, durations are not; check NTP",
          "%lld ms against the monotonic clock since the start",
          (long long)(drift_ns / SL_NS_PER_MS));
    const bool has_lock = s->config.lock_fd >= 0 && fstat(s->config.lock_fd, &lock) == 0;
    check(d, "lock", s->config.lock_fd < 0 || (has_lock && lock.st_nlink > 0),
          "the lock's file was removed: another daemon could start; restart sluiced",
          "%s", s->config.lock_fd < 0 ? "none is used" : has_lock && lock.st_nlink > 0
                ? "held"
                : "its file is gone");
}

sl_status sl_handle_doctor(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    sl_error why = { .status = SL_OK };
    sl_outputs_room room;
    Sluice__V1__DoctorReply *reply = sl_rpc_new(call->arena, &sluice__v1__doctor_reply__descriptor);
    doctor d = { reply, call->arena, true };

    if (!reply || !(reply->lines = sl_arena_alloc(call->arena, DOCTOR_LINES * sizeof(void *))))
        return out_of_memory(err);
    const sl_status looked = sl_outputs_look(s, &room, &why);
    reply->ok = true;
    pthread_mutex_lock(&s->lock);
    check_ledger(&d, s);
    check_worker(&d, s);
    check_canary(&d, s);
    check_disk(&d, s, &room, looked, why.message);
    check_rest(&d, s);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return d.complete ? SL_OK : out_of_memory(err);
}
