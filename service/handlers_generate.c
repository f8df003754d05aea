/* handlers_generate.c - Generate, DecodeLatent and PlanJob: what becomes a job, or would. */
#include "service/handlers.h"
#include "service/inputs.h"
#include "service/outputs.h"
#include "service/persist.h"
#include "service/service_state.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

static sl_status check_request_id(sl_rpc_call *call, const char *id, sl_error *err)
{
    if (!sl_request_id_valid(id))
        return sl_rpc_fail_field(call, "request_id", NULL, err,
                                 "request_id of %zu bytes: expected 1 to %d of A-Z a-z 0-9 . _ -",
                                 strlen(id), SL_REQUEST_ID_BYTES - 1);
    return SL_OK;
}

static sl_status out_of_memory(sl_error *err)
{
    return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply");
}

static sl_status reply_generate(sl_service *s, sl_rpc_call *call, const sl_job *job, sl_error *err)
{
    Sluice__V1__GenerateReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__generate_reply__descriptor);

    sl_service_estimate(s);
    if (!reply || !(reply->job = sl_job_to_pb(s, job, call->arena)))
        return out_of_memory(err);
    call->reply = &reply->base;
    return SL_OK;
}

/* SL_ERR_NOT_FOUND: this id is new.  Locked. */
static sl_status find_earlier(sl_service *s, sl_rpc_call *call, const char *request_id,
                              const uint8_t hash[SL_BODY_HASH_BYTES], sl_error *err)
{
    const sl_job *job = sl_jobs_find_request(s->jobs, call->peer.identity, request_id);

    if (s->stopping && !job) {
        call->retry_after_ns = 5000000000;
        return sl_fail(err, SL_ERR_UNAVAILABLE, "the server is shutting down");
    }
    if (!job)
        return SL_ERR_NOT_FOUND;
    if (memcmp(job->body_hash, hash, SL_BODY_HASH_BYTES) != 0)
        return sl_fail(err, SL_ERR_EXISTS,
                       "request_id \"%s\" was used for another request (job %s)", request_id,
                       job->job_id);
    return reply_generate(s, call, job, err);
}

/* A refusal, with what could be done instead.  Unlocked. */
static sl_status refuse(sl_service *s, sl_rpc_call *call, const sl_job_spec *spec,
                        const sl_core_answer *answer, sl_error *err)
{
    sl_error ignored = { .status = SL_OK };

    call->refusal = sl_answer_to_pb(answer, call->arena);
    if (call->refusal && answer->when == SL_CORE_LATE)
        call->refusal->deadline_ns = spec->deadline_ns;
    if (!call->refusal || answer->when != SL_CORE_NEVER)
        return err->status;
    call->refusal->nearest = sl_rpc_new(call->arena, &sluice__v1__nearest_request__descriptor);
    if (call->refusal->nearest
        && sl_request_nearest(s, spec, call->refusal->nearest, &ignored) != SL_OK)
        call->refusal->nearest = NULL;
    return err->status;
}

/* A job that could not be kept was never there.  Nothing has been done for it yet. */
static void withdraw(sl_service *s, sl_job *job)
{
    sl_error ignored = { .status = SL_OK };

    job->withdrawn = true;
    if (sl_core_cancel(s->core, job->job_id, sl_clock_now_ns(), &ignored) != SL_OK)
        sl_log(SL_LOG_ERROR, "job_unknown", "id=%s", job->job_id);
    sl_service_pump(s);
}

/* Gives the image its name, for as long as the job lasts. */
static sl_status keep_image(sl_service *s, sl_job *job, sl_error *err)
{
    sl_status status = SL_OK;

    if (!job->spec.source_path)
        return SL_OK;
    char *path = sl_outputs_source_path(s, job);
    status = path ? sl_outputs_publish(s, job->spec.source_path, path, err)
                  : sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    if (status == SL_OK) {
        free(job->spec.source_path);
        job->spec.source_path = NULL;
    }
    free(path);
    return status;
}

/* Makes the job, gives it to the core, and keeps it.  Locked; *spec stays the
 * caller's, and what is left of it is freed by the caller. */
static sl_status submit(sl_service *s, sl_rpc_call *call, const char *request_id,
                        const uint8_t hash[SL_BODY_HASH_BYTES], sl_job_spec *spec,
                        sl_core_answer *answer, sl_error *err)
{
    sl_job *job = NULL;
    sl_status status = sl_service_note_path(s, spec->model, spec->model_path, &spec->arch, err);

    if (status == SL_OK)
        status = sl_jobs_add(s->jobs, &job, call->peer.identity, request_id, hash, spec, err);
    if (status != SL_OK)
        return status;
    sl_request_set_clock(&job->spec, call->peer.identity, sl_clock_now_ns());
    status = sl_core_submit(s->core, &job->spec.core, answer, err);
    if (status != SL_OK) {
        *spec = job->spec;
        job->spec = (sl_job_spec){ .model_path = NULL };
        sl_jobs_remove(s->jobs, job);
        return status;
    }
    memcpy(job->table_row, answer->row, sizeof job->table_row);
    sl_request_take_way(&job->spec, answer->told);
    if (answer->estimate.measured)
        job->estimate_ns = answer->estimate.run_ns;
    job->reserved_output_bytes = sl_outputs_bound(&job->spec);
    job->workspace_bytes = sl_service_workspace_bytes(s);
    job->step_count = job->spec.request.part == SL_PART_DECODE ? 0 : job->spec.request.steps;
    job->position = sl_core_position(s->core, job->job_id);
    sl_jobs_move(s->jobs, job, SLUICE__V1__JOB_STATE__QUEUED, "number %d in the queue",
                 job->position);
    sl_service_note(job, SL_LOG_INFO, "job_queued",
                    "owner=%s model=%s width=%d height=%d frames=%d steps=%d "
                    "planned_peak_bytes=%zu",
                    job->owner, job->spec.model, job->spec.request.width, job->spec.request.height,
                    job->spec.request.frames, job->spec.request.steps,
                    sl_job_planned_peak_bytes(job));
    status = keep_image(s, job, err);
    if (status == SL_OK)
        status = sl_persist_add(s, job, err);
    if (status != SL_OK) {
        withdraw(s, job);
        return status;
    }
    sl_service_pump(s);
    return reply_generate(s, call, job, err);
}

/* What this id has become, if it is known: *found.  Unlocked. */
static sl_status look_earlier(sl_service *s, sl_rpc_call *call, const char *request_id,
                              const uint8_t hash[SL_BODY_HASH_BYTES], bool *found, sl_error *err)
{
    pthread_mutex_lock(&s->lock);
    const sl_status status = find_earlier(s, call, request_id, hash, err);
    pthread_mutex_unlock(&s->lock);
    *found = status != SL_ERR_NOT_FOUND;
    return *found ? status : SL_OK;
}

/* latent: the file that it decodes; NULL: none. */
static sl_status start(sl_service *s, sl_rpc_call *call,
                       const Sluice__V1__GenerateRequest *request,
                       const uint8_t hash[SL_BODY_HASH_BYTES], const char *latent, sl_error *err)
{
    sl_job_spec spec = { .model_path = NULL };
    sl_outputs_room room;
    bool found = false;
    sl_core_answer *answer = sl_arena_alloc(call->arena, sizeof *answer);
    sl_status status = answer ? SL_OK : out_of_memory(err);

    if (status == SL_OK)
        status = sl_request_to_spec(s, call, request, true, &spec, err);
    if (status == SL_OK && latent)
        status = sl_input_link(s, latent, &spec.source_path, err);
    if (status == SL_OK)
        status = sl_outputs_look(s, &room, err);
    if (status != SL_OK)
        goto done;
    pthread_mutex_lock(&s->lock);
    /* The same request may have come twice at once. */
    status = find_earlier(s, call, request->request_id, hash, err);
    if (status == SL_ERR_NOT_FOUND)
        status = sl_outputs_check_room(s, &room, sl_outputs_bound(&spec), err);
    else
        found = true;
    if (status == SL_OK && !found)
        status = submit(s, call, request->request_id, hash, &spec, answer, err);
    pthread_mutex_unlock(&s->lock);
    if (status == SL_ERR_TOO_LARGE || status == SL_ERR_TIMEOUT)
        status = refuse(s, call, &spec, answer, err);
done:
    sl_job_spec_fini(&spec);
    return status;
}

sl_status sl_handle_generate(void *service, sl_rpc_call *call, sl_error *err)
{
    const Sluice__V1__GenerateRequest *request = (const void *)call->request;
    uint8_t hash[SL_BODY_HASH_BYTES];
    bool found = false;
    sl_status status = check_request_id(call, request->request_id, err);

    if (status == SL_OK && request->latent_of[0])
        status = sl_rpc_fail_field(call, "latent_of", NULL, err, "latent_of is for DecodeLatent");
    if (status != SL_OK)
        return status;
    sl_request_hash(&request->base, call->arena, hash);
    status = look_earlier(service, call, request->request_id, hash, &found, err);
    if (status != SL_OK || found)
        return status;
    return start(service, call, request, hash, NULL, err);
}

/* The job's request with another output, and the file of its latent.  Locked; both
 * are in the arena. */
static sl_status make_decode(sl_service *s, sl_rpc_call *call,
                             const Sluice__V1__DecodeLatentRequest *asked,
                             Sluice__V1__GenerateRequest **out, char **latent, sl_error *err)
{
    sl_job *job = NULL;
    sl_status status = sl_service_get_job(s, call, asked->job_id, &job, err);

    if (status != SL_OK)
        return status;
    if (job->spec.format != SL_MEDIA_LATENT || job->state != SLUICE__V1__JOB_STATE__DONE)
        return sl_fail(err, SL_ERR_PRECONDITION, "job %s %s: there is no latent to decode",
                       job->job_id,
                       job->spec.format != SL_MEDIA_LATENT ? "was not asked for output latent"
                                                           : "is not done");
    char *path = sl_outputs_path(s, job);
    Sluice__V1__GenerateRequest *request = sl_request_to_pb(job, call->arena);
    *latent = path ? sl_arena_strdup(call->arena, path) : NULL;
    free(path);
    if (!request || !*latent || !(request->latent_of = sl_arena_strdup(call->arena, job->job_id)))
        return out_of_memory(err);
    request->request_id = asked->request_id;
    request->output = asked->output;
    request->priority = asked->priority;
    request->deadline_ns = asked->deadline_ns;
    request->streaming = SLUICE__V1__STREAMING__STREAMING_DEFAULT;
    request->preview = false;
    if (asked->vae_precision)
        request->vae_precision = asked->vae_precision;
    *out = request;
    return SL_OK;
}

/* Its reply has the form of Generate's. */
sl_status sl_handle_decode_latent(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__DecodeLatentRequest *asked = (const void *)call->request;
    Sluice__V1__GenerateRequest *request = NULL;
    uint8_t hash[SL_BODY_HASH_BYTES];
    char *latent = NULL;
    bool found = false;
    sl_status status = check_request_id(call, asked->request_id, err);

    if (status == SL_OK && asked->output == SLUICE__V1__OUTPUT_FORMAT__LATENT)
        status = sl_rpc_fail_field(call, "output", "mp4", err, "decoding a latent gives no latent");
    if (status != SL_OK)
        return status;
    sl_request_hash(&asked->base, call->arena, hash);
    status = look_earlier(s, call, asked->request_id, hash, &found, err);
    if (status != SL_OK || found)
        return status;
    pthread_mutex_lock(&s->lock);
    status = make_decode(s, call, asked, &request, &latent, err);
    pthread_mutex_unlock(&s->lock);
    return status == SL_OK ? start(s, call, request, hash, latent, err) : status;
}

sl_status sl_handle_plan_job(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__PlanJobRequest *request = (const void *)call->request;
    Sluice__V1__PlanJobReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__plan_job_reply__descriptor);
    sl_core_answer *answer = sl_arena_alloc(call->arena, sizeof *answer);
    sl_job_spec spec = { .model_path = NULL };

    if (!reply || !answer)
        return out_of_memory(err);
    if (!request->request)
        return sl_rpc_fail_field(call, "request", NULL, err, "no request is given");
    sl_status status = sl_request_to_spec(s, call, request->request, false, &spec, err);
    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    sl_request_set_clock(&spec, call->peer.identity, sl_clock_now_ns());
    status = sl_core_plan(s->core, &spec.core, answer, err);
    const size_t workspace_bytes = sl_service_workspace_bytes(s);
    pthread_mutex_unlock(&s->lock);
    if (status != SL_OK)
        goto done;
    sl_request_take_way(&spec, answer->told);
    reply->plan = sl_plan_to_pb(&spec, workspace_bytes, s->config.device.limit_bytes, answer->row,
                                answer, call->arena);
    reply->admitted_now = answer->when == SL_CORE_NOW;
    if (!reply->admitted_now) {
        refuse(s, call, &spec, answer, err);
        reply->refusal = call->refusal;
        call->refusal = NULL;
    }
    if (!reply->plan || (!reply->admitted_now && !reply->refusal))
        status = out_of_memory(err);
    call->reply = &reply->base;
done:
    sl_job_spec_fini(&spec);
    return status;
}
