#include "service/dispatch.h"
#include "service/evidence.h"
#include "service/lanes.h"
#include "service/outputs.h"
#include "service/persist.h"
#include "service/reload.h"
#include "service/service_state.h"
#include "service/shared.h"

#include "base/clock.h"
#include "kernels/exec.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STATE(name) SLUICE__V1__JOB_STATE__##name

enum { MAX_PATHS = 4096 };
#define HOUSE_NS     (5 * SL_NS_PER_S)
#define RETENTION_NS (60 * SL_NS_PER_S)

/* --- small things --- */

size_t sl_service_workspace_bytes(sl_service *s)
{
    sl_core_ledger ledger;

    sl_service_get_ledger(s, &ledger);
    return ledger.workspace_bytes ? ledger.workspace_bytes : s->expected_workspace_bytes;
}

/* While a command changes the arena, what is measured and what is accounted for are
 * told at different moments: only at rest does their difference mean something. */
void sl_service_get_ledger(sl_service *s, sl_core_ledger *out)
{
    sl_core_get_ledger(s->core, 0, out);
    const int64_t accounted = (int64_t)(out->weights_bytes + out->activations_bytes
                                        + out->workspace_bytes);
    const int64_t mapped = accounted + s->calm_unexplained_bytes;

    sl_core_get_ledger(s->core, mapped > 0 ? (size_t)mapped : 0, out);
    /* What is beside the arena takes from what is free in it: others by right, our
     * own process only as far as the reserve goes. */
    const size_t foreign = s->memory.foreign_bytes;
    out->foreign_bytes = foreign < out->free_bytes ? foreign : out->free_bytes;
    out->free_bytes -= out->foreign_bytes;
    if (s->memory.context_bytes > s->memory.reserve_bytes) {
        const size_t beyond = s->memory.context_bytes - s->memory.reserve_bytes;
        const size_t taken = beyond < out->free_bytes ? beyond : out->free_bytes;
        out->free_bytes -= taken;
        out->unexplained_bytes += (int64_t)taken;
    }
}

bool sl_service_wait(sl_service *s, int64_t deadline_ns)
{
    if (deadline_ns == INT64_MAX) {
        pthread_cond_wait(&s->changed, &s->lock);
        return true;
    }
    const struct timespec until = { deadline_ns / SL_NS_PER_S, deadline_ns % SL_NS_PER_S };
    return pthread_cond_timedwait(&s->changed, &s->lock, &until) != ETIMEDOUT;
}

sl_status sl_service_note_path(sl_service *s, const char *model, const char *path,
                               const sl_arch *arch, sl_error *err)
{
    char *copy = strdup(path);

    if (!copy)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for model \"%s\"", model);
    for (int i = 0; i < s->path_count; i++) {
        if (strcmp(s->paths[i].model, model) == 0) {
            free(s->paths[i].path);
            s->paths[i].path = copy;
            s->paths[i].arch = *arch;
            return SL_OK;
        }
    }
    if (s->path_count == MAX_PATHS) {
        free(copy);
        return sl_fail(err, SL_ERR_BUSY, "more than %d models have been used", MAX_PATHS);
    }
    snprintf(s->paths[s->path_count].model, sizeof s->paths[0].model, "%s", model);
    s->paths[s->path_count].arch = *arch;
    s->paths[s->path_count++].path = copy;
    return SL_OK;
}

const model_path *sl_service_find_path(const sl_service *s, const char *model)
{
    for (int i = 0; i < s->path_count; i++) {
        if (strcmp(s->paths[i].model, model) == 0)
            return &s->paths[i];
    }
    return NULL;
}

void sl_service_note(sl_job *job, sl_log_level level, const char *event, const char *fmt, ...)
{
    char text[1024], line[1200];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    snprintf(line, sizeof line, "%s id=%s %s", event, job->job_id, text);
    sl_jobs_add_line(job, 0, line);
    sl_log(level, event, "id=%s %s", job->job_id, text);
}

void sl_service_clear_running(running_job *run)
{
    free(run->partial);
    free(run->final);
    *run = (running_job){ .command_id = 0 };
}

static void clear_all_running(sl_service *s)
{
    for (int lane = 0; lane < SL_CORE_MAX_LANES; lane++)
        sl_service_clear_running(&s->running[lane]);
}

/* NULL: no Run of that command, of that job. */
static running_job *find_command(sl_service *s, uint64_t command_id)
{
    for (int lane = 0; lane < SL_CORE_MAX_LANES && command_id != 0; lane++) {
        if (s->running[lane].command_id == command_id)
            return &s->running[lane];
    }
    return NULL;
}

const running_job *sl_service_first_running(const sl_service *s)
{
    for (int lane = 0; lane < SL_CORE_MAX_LANES; lane++) {
        if (s->running[lane].command_id != 0)
            return &s->running[lane];
    }
    return NULL;
}

static running_job *find_running(sl_service *s, const char *job_id)
{
    for (int lane = 0; lane < SL_CORE_MAX_LANES; lane++) {
        if (s->running[lane].command_id != 0 && strcmp(s->running[lane].job_id, job_id) == 0)
            return &s->running[lane];
    }
    return NULL;
}

/* The highest of each hour. */
void sl_service_note_peak(sl_service *s, size_t mapped_bytes, bool job_ended)
{
    const int64_t hour_ns = 3600 * SL_NS_PER_S, now_ns = sl_clock_wall_ns();
    const int64_t begin_ns = now_ns / hour_ns * hour_ns;

    if (s->hour_count == 0 || s->hours[0].hour_ns != begin_ns) {
        sl_persist_peak(s);
        s->hour_count += s->hour_count < SL_SERVICE_HOURS;
        memmove(&s->hours[1], &s->hours[0], (size_t)(s->hour_count - 1) * sizeof s->hours[0]);
        s->hours[0] = (sl_store_peak){ .hour_ns = begin_ns };
        s->hour_dirty = true;
    }
    const size_t host_bytes = sl_hosttier_booked_bytes(s->host);
    s->hour_dirty |= job_ended || mapped_bytes > s->hours[0].peak_bytes
                     || host_bytes > s->hours[0].host_peak_bytes;
    s->hours[0].jobs += job_ended;
    if (host_bytes > s->hours[0].host_peak_bytes)
        s->hours[0].host_peak_bytes = host_bytes;
    if (mapped_bytes > s->hours[0].peak_bytes)
        s->hours[0].peak_bytes = mapped_bytes;
}

/* --- what is done --- */

static void update_positions(sl_service *s)
{
    const int count = sl_jobs_count(s->jobs);

    for (int i = 0; i < count && sl_core_queued_count(s->core) > 0; i++) {
        sl_job *job = sl_jobs_get(s->jobs, i);
        if (job->state != STATE(QUEUED))
            continue;
        const int position = sl_core_position(s->core, job->job_id);
        if (position < 1 || position == job->position)
            continue;
        job->position = position;
        sl_jobs_move(s->jobs, job, STATE(QUEUED), "number %d in the queue", position);
    }
}

static void take_estimate(void *arg, const char *job_id, const sl_core_estimate *estimate)
{
    sl_service *s = arg;
    sl_job *job = sl_jobs_find(s->jobs, job_id);

    if (!job)
        return;
    job->estimated_start_ns = sl_clock_wall_ns() + estimate->queue_ns + estimate->load_ns;
    job->estimate_ns = estimate->measured ? estimate->run_ns : 0;
}

void sl_service_estimate(sl_service *s)
{
    sl_error ignored = { .status = SL_OK };

    if (sl_core_queued_count(s->core) > 0
        && sl_core_each_estimate(s->core, sl_clock_now_ns(), take_estimate, s, &ignored) != SL_OK)
        sl_log(SL_LOG_DEBUG, "no_estimate", "reason=\"%s\"", ignored.message);
}

void sl_service_pump(sl_service *s)
{
    while (sl_core_next(s->core, sl_clock_now_ns(), &s->action)) {
        /* While stopping, what is done is done, and nothing else begins or ends. */
        if (!s->stopping || (s->action.kind == SL_CORE_JOB_ENDED && s->action.status == SL_OK)
            || s->action.kind == SL_CORE_TICKET_ENDED)
            sl_action_do(s, &s->action);
    }
    if (!s->stopping) {
        sl_reload_replace_worker(s);
        update_positions(s);
    }
    sl_persist_flush(s);
    pthread_cond_broadcast(&s->changed);
}

/* --- events of the worker, on the supervisor's thread --- */

bool sl_service_is_leak(int64_t unexplained_bytes)
{
    const int64_t limit = 2 * (int64_t)SL_GRANULE_BYTES;

    return unexplained_bytes > limit || unexplained_bytes < -limit;
}

static void check_leak(sl_service *s)
{
    sl_core_ledger ledger;

    sl_service_get_ledger(s, &ledger);
    const bool leak = ledger.worker_up && sl_service_is_leak(ledger.unexplained_bytes);
    if (leak && !s->leak_told) {
        sl_event_add(s, "unexplained", "bytes=%lld mapped=%zu",
                     (long long)ledger.unexplained_bytes, s->calm_mapped_bytes);
        sl_log(SL_LOG_ERROR, "unexplained", "bytes=%lld mapped=%zu",
               (long long)ledger.unexplained_bytes, s->calm_mapped_bytes);
    }
    s->leak_told = leak;
}

static void take_memory(sl_service *s, const Sluice__Worker__Memory *memory)
{
    const Sluice__Worker__Memory before = s->memory;

    if (!memory)
        return;
    s->memory = *memory;
    if (memory->driver_total_bytes == 0) { /* of a card they come with some events only */
        s->memory.context_bytes = before.context_bytes;
        s->memory.reserve_bytes = before.reserve_bytes;
        s->memory.foreign_bytes = before.foreign_bytes;
        s->memory.driver_free_bytes = before.driver_free_bytes;
        s->memory.driver_total_bytes = before.driver_total_bytes;
    }
    s->memory.base.unknown_fields = NULL; /* the event's */
    s->memory.base.n_unknown_fields = 0;
    if (!memory->changing)
        s->calm_mapped_bytes = memory->mapped_bytes;
    sl_service_note_peak(s, memory->mapped_bytes, false);
}

static void on_hello(sl_service *s, uint64_t generation, const Sluice__Worker__Event *event)
{
    s->generation = generation;
    s->worker_up = true;
    s->worker_pid = event->hello->pid;
    s->canary_ns = event->hello->canary_ns;
    snprintf(s->canary_problem, sizeof s->canary_problem, "%s", event->hello->canary_problem);
    sl_reload_worker_up(s, event->hello->lanes);
    s->worker_up_ns = sl_clock_now_ns();
    sl_event_add(s, "worker_up", "pid=%lld generation=%llu", (long long)s->worker_pid,
                 (unsigned long long)generation);
    sl_dispatch_worker_up(s);
    if (s->config.device.kind == SL_DEVICE_CUDA && event->memory) {
        sl_log(SL_LOG_INFO, "card", "uuid=%s total=%llu limit=%llu context=%llu reserve=%llu",
               event->hello->device_uuid, (unsigned long long)event->memory->driver_total_bytes,
               (unsigned long long)event->memory->limit_bytes,
               (unsigned long long)event->memory->context_bytes,
               (unsigned long long)event->memory->reserve_bytes);
        sl_core_set_limit(s->core, event->memory->limit_bytes);
    }
    sl_core_worker_up(s->core, event->memory ? event->memory->workspace_bytes : 0);
}

/* The job of an event, told to the core as started; NULL: not a running one. */
static sl_job *running_of(sl_service *s, const char *job_id, running_job **out)
{
    running_job *run = find_running(s, job_id);
    sl_job *job = run ? sl_jobs_find(s->jobs, job_id) : NULL;

    *out = run;
    if (!job || sl_job_has_ended(job))
        return NULL;
    if (!run->started) {
        run->started = true;
        sl_core_job_started(s->core, job_id);
    }
    return job;
}

static void on_phase(sl_service *s, const Sluice__Worker__Phase *phase)
{
    static const struct {
        Sluice__V1__JobState state;
        const char *text;
    } moves[SL_PHASE_COUNT] = {
        [SL_PHASE_ENCODE_TEXT] = { STATE(ENCODING), "encoding the prompt" },
        [SL_PHASE_ENCODE_IMAGE] = { STATE(ENCODING), "encoding the image" },
        [SL_PHASE_DENOISE] = { STATE(DENOISING), "denoising" },
        [SL_PHASE_DENOISE_HIGH] = { STATE(DENOISING), "denoising" },
        [SL_PHASE_DENOISE_LOW] = { STATE(DENOISING), "denoising" },
        [SL_PHASE_DECODE] = { STATE(DECODING), "decoding" },
    };
    running_job *run;
    sl_job *job = running_of(s, phase->job_id, &run);

    if (job && phase->phase >= 0 && phase->phase < SL_PHASE_COUNT && !phase->waiting)
        sl_jobs_move(s->jobs, job, moves[phase->phase].state, "%s", moves[phase->phase].text);
    if (job && phase->phase >= 0 && phase->phase < SL_PHASE_COUNT)
        sl_core_phase(s->core, job->job_id,
                      sl_request_core_phase(&job->spec.plan, phase->phase));
    if (job)
        run->phase_ns = sl_clock_now_ns();
}

static void on_step(sl_service *s, const Sluice__Worker__Step *step)
{
    running_job *run;
    sl_job *job = running_of(s, step->job_id, &run);

    if (!job)
        return;
    job->step = step->step;
    job->step_count = step->step_count;
    sl_service_note(job, SL_LOG_DEBUG, "job_step", "step=%d of=%d ms=%lld", step->step,
                    step->step_count,
                    (long long)((sl_clock_now_ns() - run->phase_ns) / SL_NS_PER_MS));
    run->phase_ns = sl_clock_now_ns();
    sl_jobs_move(s->jobs, job, STATE(DENOISING), "step %d of %d", step->step, step->step_count);
}

/* Of jobs that have ended: whoever watched has had the time to see them. */
static void forget_previews(sl_service *s)
{
    for (int i = 0; i < sl_jobs_count(s->jobs); i++) {
        sl_job *job = sl_jobs_get(s->jobs, i);
        if (sl_job_has_ended(job)) {
            free(job->preview);
            job->preview = NULL;
        }
    }
}

/* Shown with the event of its step, which follows. */
static void on_preview(sl_service *s, const Sluice__Worker__Preview *from)
{
    running_job *run;
    sl_job *job = running_of(s, from->job_id, &run);

    if (!job || from->width < 1 || from->height < 1
        || from->rgb.len != 3 * (size_t)from->width * (size_t)from->height)
        return;
    forget_previews(s);
    Sluice__V1__Preview *preview = malloc(sizeof *preview + from->rgb.len);
    if (!preview)
        return;
    sluice__v1__preview__init(preview);
    preview->step = from->step;
    preview->width = from->width;
    preview->height = from->height;
    preview->rgb = (ProtobufCBinaryData){ from->rgb.len, (uint8_t *)(preview + 1) };
    memcpy(preview + 1, from->rgb.data, from->rgb.len);
    free(job->preview);
    job->preview = preview;
}

static void on_decoded(sl_service *s, const Sluice__Worker__Decoded *decoded)
{
    running_job *run;
    sl_job *job = running_of(s, decoded->job_id, &run);

    if (!job)
        return;
    sl_jobs_move(s->jobs, job,
                 decoded->frames < decoded->frame_count ? STATE(DECODING) : STATE(MUXING),
                 "%d of %d frames", decoded->frames, decoded->frame_count);
}

/* How fast it was.  One that waited between its phases says little; a resumed one has
 * done the steps that were left. */
static void observe_run(sl_service *s, const sl_job *job, const Sluice__Worker__Done *done)
{
    const int steps = job->spec.request.steps;
    const double left =
        steps > 0 ? (double)(steps - done->resumed_from_step) / (double)steps : 1.0;

    if (!job->spec.way.by_phase && left > 0.0)
        sl_core_observe_run(s->core, job->spec.model,
                            job->spec.core.cost * left * job->spec.way.slowdown,
                            done->duration_ns);
}

/* A Run has ended well or badly: its numbers, and its file's name.  Unlocks
 * while it touches the file. */
static sl_status finish_run(sl_service *s, running_job *run, const Sluice__Worker__Done *done,
                            sl_error *err)
{
    sl_status status = (unsigned)done->status < SL_STATUS_COUNT ? (sl_status)done->status
                                                                : SL_ERR_INTERNAL;
    sl_job *job = sl_jobs_find(s->jobs, run->job_id);
    char *partial = run->partial, *final = run->final;

    SL_ASSERT(job);
    run->partial = run->final = NULL;
    sl_service_clear_running(run);
    job->resumed_from_step = done->resumed_from_step;
    job->device_before_bytes = done->before_bytes;
    job->device_after_bytes = done->after_bytes;
    job->run_ns = sl_clock_now_ns() - job->admitted_ns;
    job->measured_peak_bytes = done->job_peak_bytes;
    for (size_t i = 0; i < done->n_phase_activation_bytes && i < SL_PHASE_COUNT; i++)
        job->measured_phase_bytes[i] = done->phase_activation_bytes[i];
    if (done->state_lost)
        sl_core_lose_state(s->core, job->job_id);
    if (status != SL_OK)
        sl_fail(err, status, "%s", done->message);
    else
        status = sl_persist_output(s, job, done->output_size_bytes, done->output_sha256, err);
    pthread_mutex_unlock(&s->lock);
    if (status == SL_OK)
        status = sl_outputs_publish(s, partial, final, err);
    if (status != SL_OK && unlink(partial) != 0 && errno != ENOENT)
        sl_log(SL_LOG_ERROR, "partial_left", "path=\"%s\" reason=\"%s\"", partial, strerror(errno));
    pthread_mutex_lock(&s->lock);
    if (status == SL_OK) {
        observe_run(s, job, done);
        job->output_size_bytes = done->output_size_bytes;
        snprintf(job->output_sha256, sizeof job->output_sha256, "%s", done->output_sha256);
    }
    free(partial);
    free(final);
    return status;
}

static void count_component(sl_service_counts *counts, const component_command *c, bool ok)
{
    const bool is_transformer = c->key.component == SL_COMPONENT_DIT
                                || c->key.component == SL_COMPONENT_DIT_HIGH
                                || c->key.component == SL_COMPONENT_DIT_LOW;

    if (c->kind == SL_CORE_LOAD || c->kind == SL_CORE_UNLOAD)
        counts->components[c->kind == SL_CORE_UNLOAD][!ok]++;
    else
        counts->images[c->kind == SL_CORE_HOST_DROP][!ok]++;
    if (c->kind != SL_CORE_LOAD || !ok || !is_transformer
        || strcmp(counts->last_model, c->key.model) == 0)
        return;
    counts->switches += counts->last_model[0] != '\0';
    snprintf(counts->last_model, sizeof counts->last_model, "%s", c->key.model);
}

/* The line of a component's command.  *status: what the core is told. */
static void note_component(sl_service *s, uint64_t id, const Sluice__Worker__Done *done,
                           sl_status *status)
{
    static const struct {
        sl_core_action_kind kind;
        const char *line, *event;
    } events[] = {
        { SL_CORE_LOAD, "component_load", "load_done" },
        { SL_CORE_UNLOAD, "component_unload", "unload_done" },
        { SL_CORE_HOST_FILL, "image_fill", "fill_done" },
        { SL_CORE_HOST_DROP, "image_drop", "drop_done" },
    };
    size_t which = 0;
    char name[256], text[600];

    for (int i = 0; i < SL_SERVICE_COMMANDS; i++) {
        component_command *c = &s->commands[i];
        if (c->command_id != id || id == 0)
            continue;
        while (which + 1 < SL_COUNT(events) && events[which].kind != c->kind)
            which++;
        if (c->kind == SL_CORE_HOST_FILL)
            sl_dispatch_filled(s, &c->key, *status == SL_OK);
        if (c->kind == SL_CORE_HOST_DROP)
            *status = SL_OK; /* the pages are gone whatever it says */
        count_component(&s->counts, c, *status == SL_OK);
        sl_job *job = c->job_id[0] ? sl_jobs_find(s->jobs, c->job_id) : NULL;
        snprintf(text, sizeof text,
                 "component=\"%s\" status=%s device_before=%zu device_after=%zu peak=%zu ms=%lld",
                 sl_core_key_text(&c->key, name, sizeof name),
                 sl_grpc_code_name(sl_status_grpc_code((sl_status)done->status)),
                 (size_t)done->before_bytes, (size_t)done->after_bytes, (size_t)done->peak_bytes,
                 (long long)(done->duration_ns / SL_NS_PER_MS));
        if (job && !sl_job_has_ended(job))
            sl_service_note(job, SL_LOG_INFO, events[which].line, "%s", text);
        else
            sl_log(SL_LOG_INFO, events[which].line, "%s", text);
        sl_event_add(s, events[which].event, "%s", text);
        c->command_id = 0;
        return;
    }
}

static void on_done(sl_service *s, const Sluice__Worker__Event *event)
{
    const Sluice__Worker__Done *done = event->done;
    sl_error err = { .status = SL_OK };
    sl_status status = (unsigned)done->status < SL_STATUS_COUNT ? (sl_status)done->status
                                                                : SL_ERR_INTERNAL;
    const char *message = done->message;

    running_job *run = find_command(s, event->id);
    if (run) {
        status = finish_run(s, run, done, &err);
        message = err.message;
        if (s->stopping && status != SL_OK)
            return; /* the store has it as unfinished: it runs when the daemon is back */
    } else {
        note_component(s, event->id, done, &status);
    }
    /* Only now: finish_run lets others look, and the books still say "running". */
    take_memory(s, event->memory);
    const sl_core_done end = {
        .status = status,
        .message = message,
        .before_bytes = done->before_bytes,
        .after_bytes = done->after_bytes,
        .peak_bytes = done->peak_bytes,
        .component_bytes = done->component_bytes,
        .kept_bytes = done->driver_kept_bytes,
        .duration_ns = done->duration_ns,
    };
    if (sl_dispatch_is_own(event->id)) {
        if (status != SL_OK)
            sl_log(SL_LOG_WARN, "image_not_told", "reason=\"%s\"", message);
    } else if (!sl_core_command_done(s->core, event->id, &end, sl_clock_now_ns()))
        sl_log(SL_LOG_WARN, "worker_stray_done", "id=%llu", (unsigned long long)event->id);
}

static void on_event(void *arg, uint64_t generation, const Sluice__Worker__Event *event)
{
    sl_service *s = arg;
    bool moved = true;

    pthread_mutex_lock(&s->lock);
    if (event->kind_case != SLUICE__WORKER__EVENT__KIND_DONE)
        take_memory(s, event->memory);
    switch (event->kind_case) {
    case SLUICE__WORKER__EVENT__KIND_HELLO:
        on_hello(s, generation, event);
        break;
    case SLUICE__WORKER__EVENT__KIND_DONE:
        on_done(s, event);
        break;
    case SLUICE__WORKER__EVENT__KIND_PHASE:
        on_phase(s, event->phase);
        break;
    case SLUICE__WORKER__EVENT__KIND_STEP:
        on_step(s, event->step);
        break;
    case SLUICE__WORKER__EVENT__KIND_DECODED:
        on_decoded(s, event->decoded);
        break;
    case SLUICE__WORKER__EVENT__KIND_PREVIEW:
        on_preview(s, event->preview);
        moved = false; /* until its step */
        break;
    default:
        moved = false; /* a pong */
    }
    if (moved)
        sl_service_pump(s);
    if (event->memory && !event->memory->changing) {
        sl_core_ledger at_rest;
        sl_core_get_ledger(s->core, s->calm_mapped_bytes, &at_rest);
        s->calm_unexplained_bytes = at_rest.unexplained_bytes;
        check_leak(s);
    }
    pthread_mutex_unlock(&s->lock);
}

/* "a,b": the jobs that run. */
static char *name_running(const sl_service *s, char *buf, size_t buf_bytes)
{
    size_t used = 0;

    buf[0] = '\0';
    for (int lane = 0; lane < SL_CORE_MAX_LANES; lane++) {
        if (s->running[lane].command_id != 0 && used < buf_bytes)
            used += (size_t)snprintf(buf + used, buf_bytes - used, "%s%s", used ? "," : "",
                                     s->running[lane].job_id);
    }
    return buf;
}

static void on_down(void *arg, uint64_t generation, const char *reason)
{
    sl_service *s = arg;

    (void)generation;
    sl_outputs_remove_partials(s); /* nobody writes now */
    pthread_mutex_lock(&s->lock);
    char ids[SL_CORE_MAX_LANES * SL_CORE_ID_BYTES];
    if (!s->stopping)
        sl_event_add(s, "worker_exit", "pid=%lld reason=\"%s\" jobs=%s", (long long)s->worker_pid,
                     reason, name_running(s, ids, sizeof ids));
    const bool replaced = s->resetting;
    sl_evidence *evidence = s->stopping || replaced ? NULL : sl_evidence_take(s, reason);
    s->resetting = false;
    s->worker_up = false;
    s->worker_pid = 0;
    s->calm_mapped_bytes = 0;
    s->calm_unexplained_bytes = 0;
    sluice__worker__memory__init(&s->memory);
    snprintf(s->down_reason, sizeof s->down_reason, "%s", reason);
    clear_all_running(s);
    memset(s->commands, 0, sizeof s->commands);
    sl_dispatch_worker_down(s);
    if (replaced)
        sl_core_worker_replaced(s->core, reason);
    else
        sl_core_worker_down(s->core, reason);
    sl_service_pump(s);
    pthread_mutex_unlock(&s->lock);
    sl_evidence_write(s, evidence);
}

/* --- the clock --- */

/* What is done now and then.  Locked; unlocks for files. */
static void keep_house(sl_service *s)
{
    const int64_t retention_ns = s->limits.outputs_retention_ns, now_ns = sl_clock_now_ns();
    sl_error err = { .status = SL_OK };

    s->house_ns = now_ns + HOUSE_NS;
    sl_persist_peak(s);
    sl_persist_flush(s); /* what could not be written before */
    if (retention_ns == 0 || now_ns < s->retention_ns || s->stopping)
        return;
    s->retention_ns = now_ns + RETENTION_NS;
    pthread_mutex_unlock(&s->lock);
    if (sl_outputs_clean(s, retention_ns, false, NULL, NULL, &err) != SL_OK)
        sl_log(SL_LOG_ERROR, "outputs_retention", "reason=\"%s\"", err.message);
    pthread_mutex_lock(&s->lock);
}

static void *run_timer(void *arg)
{
    sl_service *s = arg;

    pthread_mutex_lock(&s->lock);
    while (!s->quit) {
        const int64_t wake_ns = sl_core_wake_ns(s->core), now_ns = sl_clock_now_ns();
        if (wake_ns <= now_ns && !s->stopping)
            sl_service_pump(s);
        else if (s->house_ns <= now_ns)
            keep_house(s);
        else
            sl_service_wait(s, wake_ns < s->house_ns && !s->stopping ? wake_ns : s->house_ns);
    }
    sl_persist_peak(s);
    sl_persist_flush(s);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* --- life --- */

static sl_status start_threads(sl_service *s, sl_error *err)
{
    const sl_supervisor_events events = { s, on_event, on_down };
    const sl_supervisor_config config = {
        .worker_path = s->worker,
        .device = s->device_text,
        .threads = s->config.threads,
        .lanes = s->lanes,
        .host_bytes = s->limits.host_bytes,
        .lock_fd = s->config.lock_fd,
    };
    const int code = pthread_create(&s->timer, NULL, run_timer, s);

    if (code != 0) {
        errno = code;
        return sl_fail_errno(err, "could not start the service's thread");
    }
    s->timer_started = true;
    /* The first callback may come before `supervisor` is known: it waits. */
    pthread_mutex_lock(&s->lock);
    const sl_status status = sl_supervisor_create(&s->supervisor, &config, &events, err);
    pthread_mutex_unlock(&s->lock);
    return status;
}

static sl_status create_state(sl_service *s, const sl_service_config *config, sl_error *err)
{
    s->limits = config->limits;
    s->lanes = s->limits.running;
    s->expected_workspace_bytes =
        sl_lanes_workspace_bytes(config->device.kind, s->lanes, config->threads);
    sl_device_spec_format(&config->device, s->device_text, sizeof s->device_text);
    s->outputs = strdup(config->outputs);
    s->worker = config->worker ? strdup(config->worker) : NULL;
    s->paths = calloc(MAX_PATHS, sizeof *s->paths);
    if (!s->outputs || (config->worker && !s->worker) || !s->paths)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the service");
    sl_core_config core = sl_core_config_default(
        config->device.kind,
        sl_lanes_arena_bytes(config->device.kind, config->device.limit_bytes),
        s->expected_workspace_bytes);
    core.device_bytes = config->device.limit_bytes;
    core.retry_limit = config->retry_limit;
    core.max_running_jobs = s->lanes;
    core.host_limit_bytes = s->limits.host_bytes;
    /* What was acknowledged is queued again, however much that is; the limits follow. */
    core.queue_limit = INT_MAX;
    sl_status status = SL_OK;
    if (config->store)
        status = sl_store_open(&s->store, config->store, err);
    if (status != SL_OK)
        return status;
    if (config->table) {
        s->table = malloc(sizeof *s->table);
        if (!s->table)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the budget table");
        memcpy(s->table, config->table, sizeof *s->table);
    }
    core.table = s->table;
    status = sl_core_create(&s->core, &core, err);
    if (status == SL_OK)
        status = sl_hosttier_create(&s->host, s->limits.host_bytes, err);
    if (status == SL_OK)
        status = sl_jobs_create(&s->jobs, config->keep_jobs, err);
    if (status == SL_OK)
        status = sl_models_create(&s->models, config->models, config->model_count, err);
    return status;
}

sl_status sl_service_create(sl_service **out, const sl_service_config *config, sl_error *err)
{
    pthread_condattr_t attr;
    sl_status status = SL_OK;
    sl_service *s = calloc(1, sizeof *s);

    if (!s)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the service");
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    s->config = *config;
    s->started_ns = sl_clock_now_ns();
    s->started_wall_ns = sl_clock_wall_ns();
    sluice__worker__memory__init(&s->memory);
    snprintf(s->down_reason, sizeof s->down_reason, "starting");
    status = create_state(s, config, err);
    if (status == SL_OK)
        status = sl_persist_take_peaks(s, err);
    if (status == SL_OK)
        status = sl_persist_restore(s, err);
    if (status == SL_OK)
        status = sl_reload_set_limits(s, &s->limits, err);
    if (status == SL_OK) {
        sl_outputs_remove_partials(s);
        sl_outputs_remove_stray_states(s);
        status = start_threads(s, err);
    }
    if (status != SL_OK) {
        sl_service_destroy(s);
        return status;
    }
    *out = s;
    return SL_OK;
}

void sl_service_begin_stop(sl_service *s)
{
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

void sl_service_stop(sl_service *s, int64_t grace_ns)
{
    if (s->supervisor)
        sl_supervisor_stop(s->supervisor, grace_ns);
    pthread_mutex_lock(&s->lock);
    s->quit = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (s->timer_started)
        pthread_join(s->timer, NULL);
    s->timer_started = false;
}

void sl_service_destroy(sl_service *s)
{
    if (!s)
        return;
    sl_service_stop(s, 0);
    sl_supervisor_destroy(s->supervisor);
    clear_all_running(s);
    sl_core_destroy(s->core);
    sl_dispatch_free_images(s);
    sl_shared_free(s);
    sl_hosttier_destroy(s->host);
    sl_jobs_destroy(s->jobs);
    sl_store_close(s->store);
    sl_models_destroy(s->models);
    for (int i = 0; i < s->path_count; i++)
        free(s->paths[i].path);
    free(s->paths);
    free(s->table);
    free(s->outputs);
    free(s->worker);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
