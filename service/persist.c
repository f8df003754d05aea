#include "service/persist.h"

#include "service/outputs.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/pipeline/latent_file.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROW_BYTES = 1 << 20 }; /* of messages while one job is packed */

/* --- to the store --- */

/* What changes of a job, and its id. */
static sl_store_job standing_of(const sl_job *job)
{
    return (sl_store_job){
        .job_id = job->job_id,
        .state = (int)job->state,
        .ended = sl_job_has_ended(job),
        .cancel_asked = job->cancel_asked,
        .step = job->step,
        .step_count = job->step_count,
        .attempt = job->attempt,
        .started_ns = job->started_ns,
        .ended_ns = job->ended_ns,
        .run_ns = job->run_ns,
        .status = (int)job->status,
        .message = job->message,
        .measured_peak_bytes = job->measured_peak_bytes,
        .device_before_bytes = job->device_before_bytes,
        .device_after_bytes = job->device_after_bytes,
        .output_size_bytes = job->output_size_bytes,
        .output_sha256 = job->output_sha256,
        .resumed_from_step = job->resumed_from_step,
        .last_seq = job->last_seq,
    };
}

static sl_store_blob pack(const ProtobufCMessage *message, sl_arena *arena)
{
    sl_store_blob blob = { NULL, message ? protobuf_c_message_get_packed_size(message) : 0 };
    uint8_t *bytes = message ? sl_arena_alloc(arena, blob.size_bytes + 1) : NULL;

    if (bytes)
        protobuf_c_message_pack(message, bytes);
    blob.data = bytes;
    return blob;
}

/* The prompt's ids, and with guidance a -1 and those of the negative prompt. */
static bool pack_ids(const sl_job_spec *spec, sl_arena *arena, sl_store_blob *out)
{
    const size_t count = (size_t)spec->request.token_count;
    const size_t more = spec->negative_ids ? (size_t)spec->request.negative_token_count + 1 : 0;
    int32_t *ids = sl_arena_alloc(arena, (count + more) * sizeof *ids);

    if (!ids)
        return false;
    memcpy(ids, spec->ids, count * sizeof *ids);
    if (more) {
        ids[count] = -1;
        memcpy(ids + count + 1, spec->negative_ids, (more - 1) * sizeof *ids);
    }
    *out = (sl_store_blob){ ids, (count + more) * sizeof *ids };
    return true;
}

static sl_status row_of(sl_service *s, const sl_job *job, sl_arena *arena, sl_store_job *out,
                        sl_error *err)
{
    Sluice__V1__GenerateRequest *request = sl_request_to_pb(job, arena);
    Sluice__V1__Plan *plan = sl_plan_to_pb(&job->spec, job->workspace_bytes,
                                           s->config.device.limit_bytes, job->table_row, NULL,
                                           arena);
    *out = standing_of(job);
    out->request = pack(request ? &request->base : NULL, arena);
    out->plan = pack(plan ? &plan->base : NULL, arena);
    if (!out->request.data || !out->plan.data)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to keep a job");
    out->owner = job->owner;
    out->request_id = job->request_id;
    out->model = job->spec.model;
    out->model_path = job->spec.model_path;
    out->table_row = job->table_row;
    out->body_hash = (sl_store_blob){ job->body_hash, sizeof job->body_hash };
    if (job->spec.ids && !pack_ids(&job->spec, arena, &out->ids))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to keep a job");
    out->workspace_bytes = job->workspace_bytes;
    out->reserved_output_bytes = job->reserved_output_bytes;
    out->submitted_ns = job->submitted_ns;
    return SL_OK;
}

/* The events and lines that the store does not have yet. */
static sl_status put_news(sl_store *store, const sl_job *job, sl_error *err)
{
    sl_status status = SL_OK;

    for (int i = 0; i < job->event_count && status == SL_OK; i++) {
        const sl_job_event *e = &job->events[i];
        if (e->seq <= job->stored_seq)
            continue;
        const sl_store_event event = { e->seq,        e->time_ns,  (int)e->state, e->step,
                                       e->step_count, e->position, e->text };
        status = sl_store_add_event(store, job->job_id, &event, err);
    }
    for (int i = job->stored_lines; i < job->line_count && status == SL_OK; i++)
        status = sl_store_add_line(store, job->job_id, job->lines[i].time_ns, job->lines[i].text,
                                   err);
    return status;
}

static void note_stored(sl_job *job)
{
    job->stored = true;
    job->dirty = false;
    job->stored_seq = job->last_seq;
    job->stored_lines = job->line_count;
}

sl_status sl_persist_add(sl_service *s, sl_job *job, sl_error *err)
{
    sl_arena *arena = NULL;
    sl_store_job row;
    sl_job *old = sl_jobs_surplus(s->jobs);

    if (!s->store) {
        if (old)
            sl_jobs_remove(s->jobs, old);
        return SL_OK;
    }
    sl_status status = sl_arena_create(&arena, ROW_BYTES, err);
    if (status != SL_OK)
        return status;
    status = row_of(s, job, arena, &row, err);
    if (status == SL_OK)
        status = sl_store_begin(s->store, true, err);
    if (status == SL_OK)
        status = sl_store_add_job(s->store, &row, err);
    if (status == SL_OK)
        status = put_news(s->store, job, err);
    if (status == SL_OK && old)
        status = sl_store_remove_job(s->store, old->job_id, err);
    if (status == SL_OK)
        status = sl_store_commit(s->store, err);
    if (status == SL_OK) {
        note_stored(job);
        if (old)
            sl_jobs_remove(s->jobs, old);
    } else {
        sl_store_rollback(s->store);
    }
    sl_arena_destroy(arena);
    return status;
}

void sl_persist_plan(sl_service *s, const sl_job *job)
{
    sl_error err = { .status = SL_OK };
    sl_arena *arena = NULL;

    if (!s->store || !job->stored)
        return;
    sl_status status = sl_arena_create(&arena, ROW_BYTES, &err);
    if (status == SL_OK) {
        const Sluice__V1__Plan *plan =
            sl_plan_to_pb(&job->spec, job->workspace_bytes, s->config.device.limit_bytes,
                          job->table_row, NULL, arena);
        const sl_store_blob blob = pack(plan ? &plan->base : NULL, arena);
        status = blob.data ? sl_store_begin(s->store, false, &err)
                           : sl_fail(&err, SL_ERR_NO_MEMORY, "out of memory for a plan");
        if (status == SL_OK)
            status = sl_store_set_plan(s->store, job->job_id, blob, &err);
        if (status == SL_OK)
            status = sl_store_commit(s->store, &err);
        if (status != SL_OK)
            sl_store_rollback(s->store);
    }
    if (status != SL_OK)
        sl_log(SL_LOG_WARN, "store_write", "id=%s reason=\"%s\"", job->job_id, err.message);
    sl_arena_destroy(arena);
}

sl_status sl_persist_output(sl_service *s, sl_job *job, size_t size_bytes, const char *sha256,
                            sl_error *err)
{
    sl_store_job row = standing_of(job);

    if (!s->store || !job->stored)
        return SL_OK;
    row.output_size_bytes = size_bytes;
    row.output_sha256 = sha256;
    row.last_seq = job->stored_seq;
    sl_status status = sl_store_begin(s->store, true, err);
    if (status == SL_OK)
        status = sl_store_update_job(s->store, &row, err);
    if (status == SL_OK)
        status = sl_store_commit(s->store, err);
    if (status != SL_OK)
        sl_store_rollback(s->store);
    return status;
}

static bool is_due(const sl_job *job)
{
    return job->stored && job->dirty;
}

static sl_status flush(sl_service *s, bool durable, sl_error *err)
{
    const int count = sl_jobs_count(s->jobs);
    sl_status status = sl_store_begin(s->store, durable, err);

    for (int i = 0; i < count && status == SL_OK; i++) {
        const sl_job *job = sl_jobs_get(s->jobs, i);
        if (!is_due(job))
            continue;
        const sl_store_job row = standing_of(job);
        status = sl_store_update_job(s->store, &row, err);
        if (status == SL_OK)
            status = put_news(s->store, job, err);
    }
    if (status == SL_OK)
        status = sl_store_commit(s->store, err);
    if (status != SL_OK)
        sl_store_rollback(s->store);
    return status;
}

void sl_persist_flush(sl_service *s)
{
    const int count = sl_jobs_count(s->jobs);
    sl_error err = { .status = SL_OK };
    bool due = false, durable = false;

    if (!s->store)
        return;
    for (int i = 0; i < count; i++) {
        const sl_job *job = sl_jobs_get(s->jobs, i);
        due |= is_due(job);
        durable |= is_due(job) && sl_job_has_ended(job);
    }
    if (!due)
        return;
    if (flush(s, durable, &err) != SL_OK) {
        if (strcmp(s->store_problem, err.message) != 0)
            sl_log(SL_LOG_ERROR, "store_write", "reason=\"%s\"", err.message);
        snprintf(s->store_problem, sizeof s->store_problem, "%s", err.message);
        return;
    }
    s->store_problem[0] = '\0';
    for (int i = 0; i < count; i++) {
        sl_job *job = sl_jobs_get(s->jobs, i);
        if (is_due(job))
            note_stored(job);
    }
}

sl_status sl_persist_remove(sl_service *s, sl_job *job, sl_error *err)
{
    sl_status status = SL_OK;

    if (s->store && job->stored) {
        status = sl_store_begin(s->store, false, err);
        if (status == SL_OK)
            status = sl_store_remove_job(s->store, job->job_id, err);
        if (status == SL_OK)
            status = sl_store_commit(s->store, err);
        if (status != SL_OK) {
            sl_store_rollback(s->store);
            return status;
        }
    }
    sl_jobs_remove(s->jobs, job);
    return SL_OK;
}

void sl_persist_peak(sl_service *s)
{
    sl_error err = { .status = SL_OK };

    if (!s->store || !s->hour_dirty || s->hour_count == 0)
        return;
    sl_status status = sl_store_begin(s->store, false, &err);
    if (status == SL_OK)
        status = sl_store_note_peak(s->store, &s->hours[0], &err);
    if (status == SL_OK)
        status = sl_store_forget_peaks(
            s->store, s->hours[0].hour_ns - SL_SERVICE_HOURS * 3600 * SL_NS_PER_S, &err);
    if (status == SL_OK)
        status = sl_store_commit(s->store, &err);
    if (status != SL_OK)
        sl_store_rollback(s->store);
    s->hour_dirty = status != SL_OK; /* tried again; jobs tell of a store that is broken */
}

static sl_status take_peak(void *arg, const sl_store_peak *peak, sl_error *err)
{
    sl_service *s = arg;

    (void)err;
    s->hours[s->hour_count++] = *peak;
    return SL_OK;
}

sl_status sl_persist_take_peaks(sl_service *s, sl_error *err)
{
    return s->store ? sl_store_each_peak(s->store, SL_SERVICE_HOURS, take_peak, s, err) : SL_OK;
}

/* --- from the store --- */

static void take_plan(sl_job_spec *spec, const Sluice__V1__Plan *pb)
{
    for (size_t i = 0; i < pb->n_phases; i++) {
        for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
            if (strcmp(pb->phases[i]->phase, sl_phase_name((sl_phase)phase)) != 0)
                continue;
            spec->plan.phase_activation_bytes[phase] = pb->phases[i]->activation_bytes;
            for (size_t k = 0; k < pb->phases[i]->n_components; k++) {
                const sl_component_kind kind = sl_component_from_pb(pb->phases[i]->components[k]);
                if ((unsigned)kind < SL_COMPONENT_COUNT)
                    spec->plan.phase_components[phase] |= SL_COMPONENT_BIT(kind);
            }
        }
    }
    for (size_t i = 0; i < pb->n_components && spec->core.need_count < SL_CORE_MAX_NEEDS; i++) {
        const Sluice__V1__ComponentBytes *c = pb->components[i];
        const sl_component_kind kind = sl_component_from_pb(c->component);
        if ((unsigned)kind >= SL_COMPONENT_COUNT)
            continue;
        sl_core_need *need = &spec->core.needs[spec->core.need_count++];
        snprintf(need->key.model, sizeof need->key.model, "%s", c->model);
        need->key.component = kind;
        need->key.precision = sl_precision_from_pb(c->precision);
        need->size_bytes = c->planned_bytes;
        if (c->streamed) {
            need->key.mode = SL_MODE_STREAMED;
            need->host_bytes = c->host_bytes;
        }
        spec->plan.weight_bytes[kind] = c->planned_bytes;
    }
    spec->plan.activation_bytes = pb->activation_bytes;
    spec->plan.total_bytes = pb->activation_bytes + pb->weight_bytes;
    spec->core.activation_bytes = pb->activation_bytes;
    spec->way = (sl_way){ .by_phase = pb->by_phase,
                          .weight_bytes = pb->weight_bytes,
                          .activation_bytes = pb->activation_bytes,
                          .peak_bytes = pb->peak_bytes - pb->workspace_bytes,
                          .host_bytes = pb->host_bytes,
                          .slowdown = pb->slowdown };
}

static void take_standing(sl_job *job, const sl_store_job *row)
{
    snprintf(job->owner, sizeof job->owner, "%s", row->owner);
    snprintf(job->request_id, sizeof job->request_id, "%s", row->request_id);
    snprintf(job->table_row, sizeof job->table_row, "%s", row->table_row);
    snprintf(job->message, sizeof job->message, "%s", row->message);
    snprintf(job->output_sha256, sizeof job->output_sha256, "%s", row->output_sha256);
    if (row->body_hash.size_bytes == sizeof job->body_hash)
        memcpy(job->body_hash, row->body_hash.data, sizeof job->body_hash);
    job->workspace_bytes = row->workspace_bytes;
    job->reserved_output_bytes = row->reserved_output_bytes;
    job->submitted_ns = row->submitted_ns;
    job->cancel_asked = row->cancel_asked;
    job->step = row->step;
    job->step_count = row->step_count;
    job->attempt = row->attempt;
    job->started_ns = row->started_ns;
    job->ended_ns = row->ended_ns;
    job->run_ns = row->run_ns;
    job->status = row->status >= 0 && row->status < SL_STATUS_COUNT ? (sl_status)row->status
                                                                    : SL_ERR_INTERNAL;
    job->measured_peak_bytes = row->measured_peak_bytes;
    job->device_before_bytes = row->device_before_bytes;
    job->device_after_bytes = row->device_after_bytes;
    job->output_size_bytes = row->output_size_bytes;
    job->resumed_from_step = row->resumed_from_step;
    job->last_seq = job->stored_seq = row->last_seq;
}

static int32_t *copy_ids(const int32_t *ids, size_t count)
{
    int32_t *copy = malloc((count ? count : 1) * sizeof *copy);

    if (copy)
        memcpy(copy, ids, count * sizeof *copy);
    return copy;
}

static sl_status take_ids(sl_job *job, const sl_store_blob *blob, sl_error *err)
{
    const int32_t *ids = blob->data;
    const size_t total = blob->size_bytes / sizeof *ids;
    size_t count = 0;

    while (count < total && ids[count] >= 0)
        count++;
    job->spec.request.token_count = (int64_t)count;
    if (total == 0)
        return SL_OK;
    job->spec.ids = copy_ids(ids, count);
    if (count < total) {
        job->spec.request.negative_token_count = (int64_t)(total - count - 1);
        job->spec.negative_ids = copy_ids(ids + count + 1, total - count - 1);
    }
    if (!job->spec.ids || (count < total && !job->spec.negative_ids))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the token ids of a job");
    return SL_OK;
}

static sl_status take_row(void *arg, const sl_store_job *row, sl_error *err)
{
    sl_service *s = arg;
    sl_job *job = NULL;
    Sluice__V1__GenerateRequest *request =
        sluice__v1__generate_request__unpack(NULL, row->request.size_bytes, row->request.data);
    Sluice__V1__Plan *plan =
        sluice__v1__plan__unpack(NULL, row->plan.size_bytes, row->plan.data);
    sl_status status = SL_OK;

    if (!request || !plan) {
        status = sl_fail(err, SL_ERR_DATA, "job %.80s in the job store cannot be read", row->job_id);
        goto done;
    }
    status = sl_jobs_restore(s->jobs, &job, row->job_id, (Sluice__V1__JobState)row->state, err);
    if (status != SL_OK)
        goto done;
    take_standing(job, row);
    snprintf(job->spec.model, sizeof job->spec.model, "%s", row->model);
    sl_request_numbers_from_pb(&job->spec, request);
    take_plan(&job->spec, plan);
    job->workspace_bytes = plan->workspace_bytes; /* may have changed since the submission */
    job->spec.model_path = strdup(row->model_path);
    if (!job->spec.model_path)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a job of the store");
    else
        status = take_ids(job, &row->ids, err);
done:
    if (request)
        sluice__v1__generate_request__free_unpacked(request, NULL);
    if (plan)
        sluice__v1__plan__free_unpacked(plan, NULL);
    return status;
}

static sl_status take_event(void *arg, const sl_store_event *row, sl_error *err)
{
    sl_job_event event = { row->seq,        row->time_ns,  (Sluice__V1__JobState)row->state,
                           row->step,       row->step_count, row->position,
                           .text = "" };

    snprintf(event.text, sizeof event.text, "%s", row->text);
    return sl_jobs_restore_event(arg, &event)
               ? SL_OK
               : sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the events of a job");
}

static sl_status take_line(void *arg, int64_t time_ns, const char *text, sl_error *err)
{
    (void)err;
    sl_jobs_add_line(arg, time_ns, text);
    return SL_OK;
}

/* --- unfinished jobs --- */

static bool file_is(const char *path, size_t size_bytes, const char *sha256)
{
    unsigned char buffer[1 << 14], digest[EVP_MAX_MD_SIZE];
    char hex[SL_SHA256_HEX_BYTES] = "";
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    size_t total = 0;
    bool same = false;
    ssize_t n;

    if (fd < 0 || !context || EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1)
        goto done;
    while ((n = read(fd, buffer, sizeof buffer)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || EVP_DigestUpdate(context, buffer, (size_t)n) != 1)
            goto done;
        total += (size_t)n;
    }
    if (EVP_DigestFinal_ex(context, digest, NULL) != 1)
        goto done;
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    same = total == size_bytes && strcmp(hex, sha256) == 0;
done:
    EVP_MD_CTX_free(context);
    if (fd >= 0)
        close(fd);
    return same;
}

/* The daemon died between the end of the run and the record of it: its file is
 * there under one of two names, or was never finished. */
static bool has_output(sl_service *s, sl_job *job)
{
    sl_error err = { .status = SL_OK };
    char *final = sl_outputs_path(s, job);
    char *partial = sl_outputs_partial_path(s, job);
    bool there = false;

    if (final && partial && job->output_sha256[0]) {
        there = file_is(final, job->output_size_bytes, job->output_sha256);
        if (!there && file_is(partial, job->output_size_bytes, job->output_sha256)) {
            there = sl_outputs_publish(s, partial, final, &err) == SL_OK;
            if (!there)
                sl_log(SL_LOG_ERROR, "job_repair", "id=%s reason=\"%s\"", job->job_id, err.message);
        }
    }
    free(final);
    free(partial);
    return there;
}

static void end_restored(sl_service *s, sl_job *job, Sluice__V1__JobState state, sl_status status,
                         const char *message)
{
    job->status = status;
    job->position = 0;
    snprintf(job->message, sizeof job->message, "%s", status == SL_OK ? "" : message);
    if (state != SLUICE__V1__JOB_STATE__DONE) {
        job->output_size_bytes = 0;
        job->output_sha256[0] = '\0';
    }
    sl_jobs_move(s->jobs, job, state, "%s", message);
    sl_service_log_end(job);
}

/* Whether all of its steps are done and kept: then only decoding is left. */
static bool has_last_state(sl_service *s, const sl_job *job)
{
    const sl_t2v_request *request = &job->spec.request;
    sl_latent_run run = { .job = job->job_id, .step_count = request->steps };
    const int64_t count = sl_t2v_latent_shape(request, &job->spec.arch, run.dim);
    double *state = malloc((size_t)count * sizeof *state);
    char *path = sl_outputs_latent_path(s, job);
    sl_error ignored = { .status = SL_OK };
    int steps_done = 0;

    if (state && path
        && sl_latent_file_read(path, &run, &steps_done, state, &ignored) != SL_OK)
        steps_done = 0;
    free(state);
    free(path);
    return steps_done == request->steps;
}

/* What the core decides on is worked out anew: the model, the device and the
 * table may have changed. */
static sl_status queue_again(sl_service *s, sl_job *job, sl_error *err)
{
    sl_core_answer *answer = calloc(1, sizeof *answer);
    sl_status status = answer ? SL_OK : sl_fail(err, SL_ERR_NO_MEMORY, "out of memory");

    if (status == SL_OK)
        status = sl_request_respec(s, &job->spec, err);
    if (status == SL_OK)
        status = sl_service_note_path(s, job->spec.model, job->spec.model_path, &job->spec.arch, err);
    job->spec.core.first_phase = 0;
    if (status == SL_OK && job->spec.plan.phase_components[SL_PHASE_DECODE]
        && has_last_state(s, job))
        job->spec.core.first_phase = sl_request_core_phase(&job->spec.plan, SL_PHASE_DECODE);
    const int64_t age_ns = sl_clock_wall_ns() - job->submitted_ns;
    sl_request_set_clock(&job->spec, job->owner, sl_clock_now_ns() - (age_ns > 0 ? age_ns : 0));
    if (status == SL_OK)
        status = sl_core_submit(s->core, &job->spec.core, answer, err);
    if (status == SL_OK) {
        sl_request_take_way(&job->spec, answer->told);
        sl_persist_plan(s, job);
    }
    free(answer);
    return status;
}

static void resume(sl_service *s, sl_job *job)
{
    sl_error err = { .status = SL_OK };

    if (has_output(s, job)) {
        end_restored(s, job, SLUICE__V1__JOB_STATE__DONE, SL_OK, "done");
        return;
    }
    if (job->cancel_asked) {
        end_restored(s, job, SLUICE__V1__JOB_STATE__CANCELLED_STATE, SL_ERR_CANCELLED, "cancelled");
        return;
    }
    job->output_size_bytes = 0;
    job->output_sha256[0] = '\0';
    /* An attempt that had begun is over; one that waited or loaded has not begun. */
    job->attempt_base =
        job->state <= SLUICE__V1__JOB_STATE__LOADING ? job->attempt - 1 : job->attempt;
    job->attempt = job->attempt_base + 1;
    job->step = 0;
    if (queue_again(s, job, &err) != SL_OK) {
        const sl_status why = err.status;
        sl_error_prefix(&err, "after a restart of the server");
        end_restored(s, job, SLUICE__V1__JOB_STATE__FAILED, why, err.message);
        return;
    }
    job->position = sl_core_position(s->core, job->job_id);
    sl_jobs_move(s->jobs, job, SLUICE__V1__JOB_STATE__QUEUED,
                 "queued again: the server was started again");
    sl_log(SL_LOG_INFO, "job_restored", "id=%s attempt=%d", job->job_id, job->attempt);
}

sl_status sl_persist_restore(sl_service *s, sl_error *err)
{
    if (!s->store)
        return SL_OK;
    sl_status status = sl_store_each_job(s->store, take_row, s, err);
    for (int i = sl_jobs_count(s->jobs) - 1; i >= 0 && status == SL_OK; i--) {
        sl_job *job = sl_jobs_get(s->jobs, i);
        status = sl_store_each_event(s->store, job->job_id, take_event, job, err);
        if (status == SL_OK)
            status = sl_store_each_line(s->store, job->job_id, take_line, job, err);
        job->stored_lines = job->line_count;
        job->dirty = false;
    }
    if (status != SL_OK)
        return status;
    for (int i = sl_jobs_count(s->jobs) - 1; i >= 0; i--) {
        sl_job *job = sl_jobs_get(s->jobs, i);
        if (!sl_job_has_ended(job))
            resume(s, job);
    }
    sl_persist_flush(s);
    return SL_OK;
}
