/* actions.c - what the core wants done: commands to the worker, moves of jobs, ends of
 * tickets. */
#include "service/dispatch.h"
#include "service/outputs.h"
#include "service/persist.h"
#include "service/service_state.h"
#include "service/shared.h"

#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STATE(name) SLUICE__V1__JOB_STATE__##name

/* For the log line when it is done; without a place there is none. */
static void note_command(sl_service *s, const sl_core_action *action)
{
    for (int i = 0; i < SL_SERVICE_COMMANDS; i++) {
        if (s->commands[i].command_id != 0)
            continue;
        s->commands[i] = (component_command){ .command_id = action->command_id,
                                              .kind = action->kind,
                                              .key = action->key };
        snprintf(s->commands[i].job_id, sizeof s->commands[i].job_id, "%s", action->job_id);
        return;
    }
}

static void do_load(sl_service *s, const sl_core_action *action)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Load load = SLUICE__WORKER__LOAD__INIT;
    Sluice__Worker__ComponentKey key;
    const model_path *model = sl_shared_find_path(s, &action->key);
    char text[256];
    sl_job *job = action->job_id[0] ? sl_jobs_find(s->jobs, action->job_id) : NULL;

    if (job)
        sl_jobs_move(s->jobs, job, STATE(LOADING), "loading %s",
                     sl_core_key_text(&action->key, text, sizeof text));
    sl_dispatch_key(&key, &action->key);
    load.key = &key;
    load.model_path = model ? model->path : (char *)"";
    load.from_host = action->from_host;
    load.planned_bytes = action->size_bytes;
    command.id = action->command_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_LOAD;
    command.load = &load;
    note_command(s, action);
    sl_dispatch_send(s, &command);
}

static void do_unload(sl_service *s, const sl_core_action *action)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Unload unload = SLUICE__WORKER__UNLOAD__INIT;
    Sluice__Worker__ComponentKey key;

    sl_dispatch_key(&key, &action->key);
    unload.key = &key;
    command.id = action->command_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_UNLOAD;
    command.unload = &unload;
    note_command(s, action);
    sl_dispatch_send(s, &command);
}

static void fill_sampling(Sluice__Worker__Run *run, const sl_job_spec *spec)
{
    const sl_t2v_request *request = &spec->request;

    run->sampler = (int32_t)request->mode;
    run->sigma_max = request->sigma_max;
    run->shift = request->shift;
    run->guidance = request->guidance;
    run->guidance_low = request->guidance_low;
    run->boundary = request->boundary;
    run->attention = (int32_t)request->attention;
    run->topk = request->topk_ratio;
    run->dialect = (int32_t)request->dialect;
    run->layer_norm = (int32_t)request->layer_norm;
    run->vae_precision = (int32_t)request->vae_precision;
    if (spec->negative_ids) {
        run->negative_ids = spec->negative_ids;
        run->n_negative_ids = (size_t)request->negative_token_count;
    }
}

/* What it may map, and which components it uses. */
static void fill_memory(Sluice__Worker__Run *run, const sl_job_spec *spec,
                        const sl_core_action *action, uint64_t phase_bytes[SL_PHASE_COUNT],
                        Sluice__Worker__ComponentKey keys[SL_CORE_MAX_NEEDS],
                        Sluice__Worker__ComponentKey *key_list[SL_CORE_MAX_NEEDS])
{
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        phase_bytes[phase] = spec->way.by_phase
                                 ? sl_granules(spec->plan.phase_activation_bytes[phase])
                                 : spec->plan.remaining_bytes[phase];
    for (int i = 0; i < spec->core.need_count; i++) {
        sl_dispatch_key(&keys[i], &spec->core.needs[i].key);
        key_list[i] = &keys[i];
    }
    run->activation_bytes = action->size_bytes;
    run->by_phase = spec->way.by_phase;
    run->first_phase = sl_request_engine_phase(&spec->plan, action->phase);
    run->phase_bytes = phase_bytes;
    run->n_phase_bytes = SL_PHASE_COUNT;
    run->components = key_list;
    run->n_components = (size_t)spec->core.need_count;
    run->streamed = (int32_t)spec->way.streamed;
}

static void do_run(sl_service *s, const sl_core_action *action)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Run run = SLUICE__WORKER__RUN__INIT;
    sl_job *job = sl_jobs_find(s->jobs, action->job_id);

    SL_ASSERT(job);
    const sl_t2v_request *request = &job->spec.request;
    char *latent = sl_outputs_latent_path(s, job), *source = sl_outputs_source_path(s, job);
    running_job *mine = &s->running[action->lane];
    sl_service_clear_running(mine);
    mine->partial = sl_outputs_partial_path(s, job);
    mine->final = sl_outputs_path(s, job);
    if (!mine->partial || !mine->final || !latent || !source) {
        const sl_core_done done = { .status = SL_ERR_IO, .message = "out of memory for a path" };
        free(latent);
        free(source);
        sl_service_clear_running(mine);
        sl_core_command_done(s->core, action->command_id, &done, sl_clock_now_ns());
        return;
    }
    mine->command_id = action->command_id;
    snprintf(mine->job_id, sizeof mine->job_id, "%s", job->job_id);
    run.job_id = job->job_id;
    run.model = job->spec.model;
    run.model_path = job->spec.model_path;
    run.precision = (int32_t)request->precision;
    run.width = request->width;
    run.height = request->height;
    run.frames = request->frames;
    run.steps = request->steps;
    run.seed = request->seed;
    if (job->spec.ids) {
        run.ids = job->spec.ids;
        run.n_ids = (size_t)request->token_count;
    }
    uint64_t phase_bytes[SL_PHASE_COUNT];
    Sluice__Worker__ComponentKey keys[SL_CORE_MAX_NEEDS], *key_list[SL_CORE_MAX_NEEDS];
    fill_memory(&run, &job->spec, action, phase_bytes, keys, key_list);
    run.output_path = mine->partial;
    run.output_format = (int32_t)job->spec.format;
    run.latent_path = latent;
    run.resume = access(latent, F_OK) == 0; /* of an attempt that was broken off */
    run.lane = action->lane;
    fill_sampling(&run, &job->spec);
    run.part = (int32_t)request->part;
    run.preview = job->spec.preview;
    if (request->part == SL_PART_DECODE)
        run.source_path = source;
    else if (job->spec.arch.task == SL_TASK_I2V)
        run.image_path = source;
    command.id = action->command_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_RUN;
    command.run = &run;
    sl_dispatch_send(s, &command);
    free(latent);
    free(source);
}

static void do_cancel(sl_service *s, const sl_core_action *action)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Cancel cancel = SLUICE__WORKER__CANCEL__INIT;

    cancel.job_id = (char *)action->job_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_CANCEL;
    command.cancel = &cancel;
    sl_dispatch_send(s, &command);
}

static void do_go(sl_service *s, const sl_core_action *action)
{
    const sl_job *job = sl_jobs_find(s->jobs, action->job_id);

    SL_ASSERT(job);
    sl_dispatch_go(s, action->job_id, sl_request_engine_phase(&job->spec.plan, action->phase),
                   action->size_bytes);
}

/* It may have become another way than the one that was told of. */
static void take_way(sl_service *s, sl_job *job, int way)
{
    const size_t before_bytes = sl_job_planned_peak_bytes(job);
    const sl_way before = job->spec.way;

    sl_request_take_way(&job->spec, way);
    job->workspace_bytes = sl_service_workspace_bytes(s);
    if (before.streamed != job->spec.way.streamed || before.by_phase != job->spec.way.by_phase
        || sl_job_planned_peak_bytes(job) != before_bytes)
        sl_persist_plan(s, job);
}

static void on_admitted(sl_service *s, const sl_core_action *action)
{
    sl_job *job = sl_jobs_find(s->jobs, action->job_id);

    SL_ASSERT(job);
    take_way(s, job, action->variant);
    for (int i = 0; i < job->spec.core.need_count; i++)
        sl_shared_use(s, &job->spec.core.needs[i].key, job->spec.model);
    job->position = 0;
    job->attempt = job->attempt_base + action->attempt;
    job->started_ns = sl_clock_wall_ns();
    job->admitted_ns = sl_clock_now_ns();
    sl_jobs_move(s->jobs, job, STATE(ADMITTED), "admitted");
    sl_service_note(job, SL_LOG_INFO, "job_admitted",
                    "attempt=%d planned_bytes=%zu by_phase=%d streamed=%d", job->attempt,
                    action->size_bytes, job->spec.way.by_phase, job->spec.way.streamed != 0);
}

static void on_requeued(sl_service *s, const sl_core_action *action)
{
    sl_job *job = sl_jobs_find(s->jobs, action->job_id);

    SL_ASSERT(job);
    job->attempt = job->attempt_base + action->attempt;
    job->step = 0;
    s->counts.requeued++;
    sl_jobs_move(s->jobs, job, STATE(QUEUED), "queued again: %s", action->message);
    sl_service_note(job, SL_LOG_WARN, "job_requeued", "attempt=%d reason=\"%s\"", job->attempt,
                    action->message);
}

void sl_service_log_end(sl_job *job)
{
    char quoted[600];

    sl_service_note(
        job, job->status == SL_OK || job->status == SL_ERR_CANCELLED ? SL_LOG_INFO : SL_LOG_WARN,
        "job_done",
        "status=%s model=%s steps=%d resumed_from_step=%d run_ms=%lld planned_peak_bytes=%zu "
        "measured_peak_bytes=%zu device_before=%zu device_after=%zu message=%s",
        sl_grpc_code_name(sl_status_grpc_code(job->status)), job->spec.model,
        job->spec.request.steps, job->resumed_from_step, (long long)(job->run_ns / SL_NS_PER_MS),
        sl_job_planned_peak_bytes(job), job->measured_peak_bytes, job->device_before_bytes,
        job->device_after_bytes, sl_log_quote(quoted, sizeof quoted, job->message));
}

static void count_end(sl_service_counts *counts, Sluice__V1__JobState state)
{
    counts->done += state == STATE(DONE);
    counts->failed += state == STATE(FAILED);
    counts->cancelled += state == STATE(CANCELLED_STATE);
}

static void on_ended(sl_service *s, const sl_core_action *action)
{
    sl_job *job = sl_jobs_find(s->jobs, action->job_id);
    Sluice__V1__JobState state = STATE(DONE);

    SL_ASSERT(job);
    if (job->withdrawn) {
        sl_outputs_remove_state(s, job);
        sl_jobs_remove(s->jobs, job);
        return;
    }
    job->attempt = job->attempt_base + action->attempt;
    job->position = 0;
    job->status = action->status;
    snprintf(job->message, sizeof job->message, "%s", action->message);
    if (job->admitted_ns)
        job->run_ns = sl_clock_now_ns() - job->admitted_ns;
    if (action->status == SL_ERR_CANCELLED)
        state = STATE(CANCELLED_STATE);
    else if (action->status != SL_OK)
        state = STATE(FAILED);
    if (state != STATE(DONE) && job->output_size_bytes) {
        /* Its file was published, and then it was cancelled after all. */
        char *path = sl_outputs_path(s, job);
        if (path)
            unlink(path);
        free(path);
        job->output_size_bytes = 0;
        job->output_sha256[0] = '\0';
    }
    sl_outputs_remove_state(s, job);
    count_end(&s->counts, state);
    sl_jobs_move(s->jobs, job, state, "%s", state == STATE(DONE) ? "done" : job->message);
    sl_service_log_end(job);
    sl_service_note_peak(s, s->memory.mapped_bytes, true);
}

static void on_ticket_ended(sl_service *s, const sl_core_action *action)
{
    ticket_wait *wait = s->tickets;

    while (wait && wait->ticket != action->ticket)
        wait = wait->next;
    if (wait) {
        wait->action = *action;
        wait->ended = true;
        wait->ended_ns = sl_clock_now_ns();
        wait->mapped_bytes = s->calm_mapped_bytes;
    }
}

void sl_action_do(sl_service *s, const sl_core_action *action)
{
    char text[256];

    switch (action->kind) {
    case SL_CORE_LOAD:
        do_load(s, action);
        break;
    case SL_CORE_UNLOAD:
        do_unload(s, action);
        break;
    case SL_CORE_RUN:
        do_run(s, action);
        break;
    case SL_CORE_CANCEL:
        do_cancel(s, action);
        break;
    case SL_CORE_RESTART:
        sl_supervisor_kill(s->supervisor, s->generation, action->message);
        break;
    case SL_CORE_JOB_ADMITTED:
        on_admitted(s, action);
        break;
    case SL_CORE_JOB_REQUEUED:
        on_requeued(s, action);
        break;
    case SL_CORE_JOB_ENDED:
        on_ended(s, action);
        break;
    case SL_CORE_TICKET_ENDED:
        on_ticket_ended(s, action);
        break;
    case SL_CORE_PIN_LOST:
        sl_log(SL_LOG_ERROR, "pin_lost", "component=\"%s\" reason=\"%s\"",
               sl_core_key_text(&action->key, text, sizeof text), action->message);
        break;
    case SL_CORE_PREEMPT:
        sl_dispatch_preempt(s, action->job_id);
        break;
    case SL_CORE_TRIM:
        sl_dispatch_trim(s, action->command_id);
        break;
    case SL_CORE_HOST_FILL:
        if (sl_dispatch_fill(s, action))
            note_command(s, action);
        break;
    case SL_CORE_HOST_DROP:
        if (sl_dispatch_drop(s, action))
            note_command(s, action);
        break;
    case SL_CORE_PHASE_GO:
        do_go(s, action);
        break;
    case SL_CORE_NONE:
        break;
    }
}
