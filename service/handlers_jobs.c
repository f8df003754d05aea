/* handlers_jobs.c - looking at jobs, waiting for them, ending them, their files. */
#include "service/handlers.h"
#include "service/service_state.h"

#include "base/clock.h"
#include "service/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    LIST_DEFAULT = 100,
    LIST_MOST = 1000,
    EVENTS_PER_REPLY = 256,
    GRPC_OUT_OF_RANGE = 11,
};
#define WATCH_MOST_NS  (20 * SL_NS_PER_S)
#define CANCEL_WAIT_NS (2 * SL_NS_PER_S)

static sl_status out_of_memory(sl_error *err)
{
    return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply");
}

sl_status sl_service_get_job(sl_service *s, sl_rpc_call *call, const char *id, sl_job **out,
                             sl_error *err)
{
    sl_job *job = sl_jobs_find(s->jobs, id);

    if (id[0] == '\0')
        return sl_rpc_fail_field(call, "job_id", NULL, err, "no job is named");
    if (!job)
        job = sl_jobs_find_request(s->jobs, call->peer.identity, id);
    call->denied =
        job && call->peer.role < SL_ROLE_ADMIN && strcmp(job->owner, call->peer.identity) != 0;
    if (!job || call->denied)
        return sl_fail(err, SL_ERR_NOT_FOUND, "there is no job \"%.80s\"", id);
    *out = job;
    return SL_OK;
}

static sl_status show_job(sl_service *s, const sl_rpc_call *call, const sl_job *job,
                          Sluice__V1__Job **out, sl_error *err)
{
    sl_service_estimate(s);
    *out = sl_job_to_pb(s, job, call->arena);
    return *out ? SL_OK : out_of_memory(err);
}

sl_status sl_handle_get_job(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__GetJobRequest *request = (const void *)call->request;
    Sluice__V1__GetJobReply *reply = sl_rpc_new(call->arena, &sluice__v1__get_job_reply__descriptor);
    sl_job *job = NULL;

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    sl_status status = sl_service_get_job(s, call, request->job_id, &job, err);
    if (status == SL_OK)
        status = show_job(s, call, job, &reply->job, err);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return status;
}

static sl_status fill_list(sl_service *s, const sl_rpc_call *call, bool active_only, size_t limit,
                           Sluice__V1__ListJobsReply *reply, sl_error *err)
{
    for (int i = 0; i < sl_jobs_count(s->jobs) && reply->n_jobs < limit; i++) {
        const sl_job *job = sl_jobs_get(s->jobs, i);
        if ((active_only && sl_job_has_ended(job))
            || (call->peer.role < SL_ROLE_ADMIN && strcmp(job->owner, call->peer.identity) != 0))
            continue;
        reply->jobs[reply->n_jobs] = sl_job_to_pb(s, job, call->arena);
        if (!reply->jobs[reply->n_jobs])
            return out_of_memory(err);
        reply->n_jobs++;
    }
    return SL_OK;
}

sl_status sl_handle_list_jobs(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__ListJobsRequest *request = (const void *)call->request;
    Sluice__V1__ListJobsReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__list_jobs_reply__descriptor);
    size_t limit = request->limit ? request->limit : LIST_DEFAULT;

    if (limit > LIST_MOST)
        limit = LIST_MOST;
    if (!reply || !(reply->jobs = sl_arena_alloc(call->arena, limit * sizeof(void *))))
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    sl_service_estimate(s);
    const sl_status status = fill_list(s, call, request->active_only, limit, reply, err);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return status;
}

/* --- ExplainJob --- */

static sl_status add_lines(const sl_job *job, Sluice__V1__ExplainJobReply *reply, sl_arena *arena,
                           sl_error *err)
{
    reply->lines = sl_arena_alloc(arena, SL_JOB_LINES * sizeof(char *));
    for (int i = 0; i < job->line_count && reply->lines; i++) {
        char when[40];
        const time_t seconds = (time_t)(job->lines[i].time_ns / SL_NS_PER_S);
        struct tm tm;
        gmtime_r(&seconds, &tm);
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
        reply->lines[i] = sl_arena_printf(
            arena, "%s.%03dZ %s", when,
            (int)(job->lines[i].time_ns % SL_NS_PER_S / SL_NS_PER_MS), job->lines[i].text);
        if (!reply->lines[i])
            return out_of_memory(err);
        reply->n_lines++;
    }
    return reply->lines ? SL_OK : out_of_memory(err);
}

sl_status sl_handle_explain_job(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__ExplainJobRequest *request = (const void *)call->request;
    Sluice__V1__ExplainJobReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__explain_job_reply__descriptor);
    sl_job *job = NULL;

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    sl_status status = sl_service_get_job(s, call, request->job_id, &job, err);
    if (status == SL_OK)
        status = show_job(s, call, job, &reply->job, err);
    if (status == SL_OK)
        status = add_lines(job, reply, call->arena, err);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return status;
}

/* --- WatchJob --- */

static sl_status add_events(const sl_job *job, uint64_t after_seq, Sluice__V1__WatchJobReply *reply,
                            sl_arena *arena, sl_error *err)
{
    reply->events = sl_arena_alloc(arena, EVENTS_PER_REPLY * sizeof(void *));
    if (!reply->events)
        return out_of_memory(err);
    for (int i = 0; i < job->event_count && reply->n_events < EVENTS_PER_REPLY; i++) {
        const sl_job_event *event = &job->events[i];
        if (event->seq <= after_seq)
            continue;
        Sluice__V1__JobEvent *pb = sl_rpc_new(arena, &sluice__v1__job_event__descriptor);
        if (!pb || !(pb->text = sl_arena_strdup(arena, event->text)))
            return out_of_memory(err);
        pb->seq = event->seq;
        pb->time_ns = event->time_ns;
        pb->state = event->state;
        pb->step = event->step;
        pb->step_count = event->step_count;
        pb->position = event->position;
        reply->events[reply->n_events++] = pb;
    }
    return SL_OK;
}

/* Until the job has something new, has ended, or the time is up.  A job may be
 * forgotten meanwhile: it is looked up again each time.  Locked. */
static sl_status wait_for_news(sl_service *s, sl_rpc_call *call,
                               const Sluice__V1__WatchJobRequest *request, sl_job **job,
                               sl_error *err)
{
    int64_t wait_ns = request->wait_ns;
    sl_status status = sl_service_get_job(s, call, request->job_id, job, err);

    /* Above the cap nobody waits: others must get through. */
    if (wait_ns <= 0 || s->watchers >= s->config.watchers)
        return status;
    if (wait_ns > WATCH_MOST_NS)
        wait_ns = WATCH_MOST_NS;
    int64_t deadline_ns = sl_clock_deadline_ns(wait_ns);
    if (deadline_ns > call->deadline_ns)
        deadline_ns = call->deadline_ns;
    s->watchers++;
    while (status == SL_OK && (*job)->last_seq <= request->after_seq && !sl_job_has_ended(*job)
           && !s->stopping && sl_service_wait(s, deadline_ns))
        status = sl_service_get_job(s, call, request->job_id, job, err);
    s->watchers--;
    return status;
}

/* A copy: the job's own is replaced while the reply is packed. */
static sl_status add_preview(const sl_job *job, const Sluice__V1__WatchJobRequest *request,
                             Sluice__V1__WatchJobReply *reply, sl_arena *arena, sl_error *err)
{
    if (!request->preview || !job->preview || job->preview->step <= request->preview_after_step)
        return SL_OK;
    reply->preview = sl_rpc_new(arena, &sluice__v1__preview__descriptor);
    uint8_t *rgb = sl_arena_alloc(arena, job->preview->rgb.len);
    if (!reply->preview || !rgb)
        return out_of_memory(err);
    memcpy(rgb, job->preview->rgb.data, job->preview->rgb.len);
    *reply->preview = *job->preview;
    reply->preview->rgb.data = rgb;
    return SL_OK;
}

sl_status sl_handle_watch_job(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__WatchJobRequest *request = (const void *)call->request;
    Sluice__V1__WatchJobReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__watch_job_reply__descriptor);
    sl_job *job = NULL;

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    sl_status status = wait_for_news(s, call, request, &job, err);
    if (status == SL_OK)
        status = add_events(job, request->after_seq, reply, call->arena, err);
    if (status == SL_OK)
        status = add_preview(job, request, reply, call->arena, err);
    if (status == SL_OK)
        status = show_job(s, call, job, &reply->job, err);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return status;
}

/* --- CancelJob --- */

/* Cancels, and waits until that has taken effect.  Locked. */
static sl_status cancel(sl_service *s, sl_rpc_call *call, const char *id, sl_job **job,
                        sl_error *err)
{
    int64_t deadline_ns = sl_clock_deadline_ns(CANCEL_WAIT_NS);
    sl_status status = sl_service_get_job(s, call, id, job, err);

    if (status != SL_OK || sl_job_has_ended(*job))
        return status;
    if (deadline_ns > call->deadline_ns)
        deadline_ns = call->deadline_ns;
    if (s->stopping)
        return sl_fail(err, SL_ERR_UNAVAILABLE, "the server is shutting down");
    (*job)->cancel_asked = true;
    (*job)->dirty = true;
    status = sl_core_cancel(s->core, (*job)->job_id, sl_clock_now_ns(), err);
    if (status != SL_OK)
        return status;
    sl_service_pump(s);
    while (status == SL_OK && !sl_job_has_ended(*job)) {
        if (!sl_service_wait(s, deadline_ns))
            return sl_fail(err, SL_ERR_TIMEOUT, "job %s is being cancelled and has not stopped yet",
                           (*job)->job_id);
        status = sl_service_get_job(s, call, id, job, err);
    }
    return status;
}

sl_status sl_handle_cancel_job(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__CancelJobRequest *request = (const void *)call->request;
    Sluice__V1__CancelJobReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__cancel_job_reply__descriptor);
    sl_job *job = NULL;

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    sl_status status = cancel(s, call, request->job_id, &job, err);
    if (status == SL_OK)
        status = show_job(s, call, job, &reply->job, err);
    pthread_mutex_unlock(&s->lock);
    call->reply = &reply->base;
    return status;
}

/* --- FetchOutput --- */

/* What is needed of a job to read its file without the lock. */
typedef struct {
    char job_id[SL_CORE_ID_BYTES];
    sl_media_format format;
    size_t size_bytes;
} output_ref;

static sl_status find_output(sl_service *s, sl_rpc_call *call,
                             const Sluice__V1__FetchOutputRequest *request, output_ref *ref,
                             Sluice__V1__FetchOutputReply *reply, sl_error *err)
{
    sl_job *job = NULL;
    sl_status status = sl_service_get_job(s, call, request->job_id, &job, err);

    if (status != SL_OK)
        return status;
    if (job->state != SLUICE__V1__JOB_STATE__DONE)
        return sl_fail(err, SL_ERR_PRECONDITION, "job %s has no output: %s", job->job_id,
                       sl_job_has_ended(job) ? "it did not succeed" : "it is not done yet");
    memcpy(ref->job_id, job->job_id, sizeof ref->job_id);
    ref->format = job->spec.format;
    ref->size_bytes = job->output_size_bytes;
    reply->sha256 = sl_arena_strdup(call->arena, job->output_sha256);
    reply->size_bytes = job->output_size_bytes;
    reply->output = job->spec.format == SL_MEDIA_Y4M   ? SLUICE__V1__OUTPUT_FORMAT__Y4M
                    : job->spec.format == SL_MEDIA_PNG ? SLUICE__V1__OUTPUT_FORMAT__PNG
                                                       : SLUICE__V1__OUTPUT_FORMAT__MP4;
    return reply->sha256 ? SL_OK : out_of_memory(err);
}

static sl_status read_range(const char *path, const output_ref *ref, uint64_t offset, size_t count,
                            uint8_t *out, sl_error *err)
{
    sl_status status = SL_OK;
    struct stat st;
    size_t used = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0 && errno == ENOENT)
        return sl_fail(err, SL_ERR_NOT_FOUND, "the output of job %s has been removed", ref->job_id);
    if (fd < 0 || fstat(fd, &st) != 0) {
        status = sl_fail_errno(err, "could not open the output of job %s", ref->job_id);
        goto done;
    }
    if ((uint64_t)st.st_size != ref->size_bytes) {
        status = sl_fail(err, SL_ERR_DATA, "the output of job %s has %lld bytes, it had %zu",
                         ref->job_id, (long long)st.st_size, ref->size_bytes);
        goto done;
    }
    while (used < count) {
        const ssize_t n = pread(fd, out + used, count - used, (off_t)(offset + used));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            status = n < 0 ? sl_fail_errno(err, "could not read the output of job %s", ref->job_id)
                           : sl_fail(err, SL_ERR_DATA, "the output of job %s was cut", ref->job_id);
            goto done;
        }
        used += (size_t)n;
    }
done:
    if (fd >= 0)
        close(fd);
    return status;
}

sl_status sl_handle_fetch_output(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__FetchOutputRequest *request = (const void *)call->request;
    Sluice__V1__FetchOutputReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__fetch_output_reply__descriptor);
    output_ref ref = { .size_bytes = 0 };
    size_t count = request->max_bytes;

    if (!reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    sl_status status = find_output(s, call, request, &ref, reply, err);
    pthread_mutex_unlock(&s->lock);
    if (status != SL_OK)
        return status;
    if (request->offset > ref.size_bytes) {
        call->code = GRPC_OUT_OF_RANGE;
        return sl_fail(err, SL_ERR_INVALID, "offset %llu is beyond the output's %zu bytes",
                       (unsigned long long)request->offset, ref.size_bytes);
    }
    if (count == 0 || count > SL_WIRE_MAX_CHUNK_BYTES)
        count = SL_WIRE_MAX_CHUNK_BYTES;
    if (count > ref.size_bytes - request->offset)
        count = ref.size_bytes - request->offset;
    char *path = sl_arena_printf(call->arena, "%s/%s%s", s->outputs, ref.job_id,
                                 sl_media_extension(ref.format));
    uint8_t *data = sl_arena_alloc_raw(call->arena, count);
    if (!path || !data)
        return out_of_memory(err);
    status = read_range(path, &ref, request->offset, count, data, err);
    reply->offset = request->offset;
    reply->data.data = data;
    reply->data.len = count;
    call->reply = &reply->base;
    return status;
}
