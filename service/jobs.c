#include "service/jobs.h"

#include "base/clock.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    ID_RANDOM_BYTES = SL_JOB_ID_DIGITS / 2,
    MAX_EVENTS = 2048,
    FIRST_EVENTS = 16,
};

/* Oldest first. */
struct sl_jobs {
    sl_job **at;
    int count, capacity;
    int keep, ended;
};

bool sl_job_has_ended(const sl_job *job)
{
    return job->state == SLUICE__V1__JOB_STATE__DONE || job->state == SLUICE__V1__JOB_STATE__FAILED
           || job->state == SLUICE__V1__JOB_STATE__CANCELLED_STATE;
}

size_t sl_job_planned_peak_bytes(const sl_job *job)
{
    return job->spec.way.peak_bytes + job->workspace_bytes;
}

void sl_job_spec_fini(sl_job_spec *spec)
{
    free(spec->model_path);
    free(spec->ids);
    free(spec->negative_ids);
    if (spec->source_path)
        unlink(spec->source_path);
    free(spec->source_path);
    spec->model_path = NULL;
    spec->ids = NULL;
    spec->negative_ids = NULL;
    spec->source_path = NULL;
}

static void destroy_job(sl_job *job)
{
    free(job->preview);
    sl_job_spec_fini(&job->spec);
    free(job->events);
    for (int i = 0; i < job->line_count; i++)
        free(job->lines[i].text);
    free(job->lines);
    free(job);
}

sl_status sl_jobs_create(sl_jobs **out, int keep, sl_error *err)
{
    sl_jobs *jobs = calloc(1, sizeof *jobs);

    if (!jobs)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the table of jobs");
    jobs->keep = keep;
    *out = jobs;
    return SL_OK;
}

void sl_jobs_destroy(sl_jobs *jobs)
{
    if (!jobs)
        return;
    for (int i = 0; i < jobs->count; i++)
        destroy_job(jobs->at[i]);
    free(jobs->at);
    free(jobs);
}

static void remove_at(sl_jobs *jobs, int i)
{
    if (sl_job_has_ended(jobs->at[i]))
        jobs->ended--;
    destroy_job(jobs->at[i]);
    memmove(&jobs->at[i], &jobs->at[i + 1], (size_t)(jobs->count - i - 1) * sizeof(jobs->at[0]));
    jobs->count--;
}

sl_job *sl_jobs_surplus(const sl_jobs *jobs)
{
    if (jobs->ended <= jobs->keep)
        return NULL;
    for (int i = 0; i < jobs->count; i++) {
        if (sl_job_has_ended(jobs->at[i]))
            return jobs->at[i];
    }
    return NULL;
}

static sl_status make_id(const sl_jobs *jobs, char *out, size_t out_bytes, sl_error *err)
{
    uint8_t random[ID_RANDOM_BYTES];

    do {
        if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
            return sl_fail_errno(err, "could not draw a job id");
        for (size_t i = 0; i < sizeof random; i++)
            snprintf(out + 2 * i, out_bytes - 2 * i, "%02x", random[i]);
    } while (sl_jobs_find(jobs, out));
    return SL_OK;
}

/* A blank one with room for it, not in the list yet; NULL: out of memory. */
static sl_job *make_job(sl_jobs *jobs)
{
    if (jobs->count == jobs->capacity) {
        const int capacity = jobs->capacity ? 2 * jobs->capacity : 64;
        sl_job **at = realloc(jobs->at, (size_t)capacity * sizeof(sl_job *));
        if (!at)
            return NULL;
        jobs->at = at;
        jobs->capacity = capacity;
    }
    return calloc(1, sizeof(sl_job));
}

sl_status sl_jobs_add(sl_jobs *jobs, sl_job **out, const char *owner, const char *request_id,
                      const uint8_t body_hash[SL_BODY_HASH_BYTES], sl_job_spec *spec, sl_error *err)
{
    sl_job *job = make_job(jobs);

    if (!job)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for one more job");
    const sl_status status = make_id(jobs, job->job_id, sizeof job->job_id, err);
    if (status != SL_OK) {
        free(job);
        return status;
    }
    snprintf(job->owner, sizeof job->owner, "%s", owner);
    snprintf(job->request_id, sizeof job->request_id, "%s", request_id);
    memcpy(job->body_hash, body_hash, sizeof job->body_hash);
    job->spec = *spec;
    *spec = (sl_job_spec){ .model_path = NULL };
    memcpy(job->spec.core.job_id, job->job_id, sizeof job->job_id);
    job->state = SLUICE__V1__JOB_STATE__QUEUED;
    job->attempt = 1;
    job->submitted_ns = sl_clock_wall_ns();
    jobs->at[jobs->count++] = job;
    *out = job;
    return SL_OK;
}

sl_status sl_jobs_restore(sl_jobs *jobs, sl_job **out, const char *job_id,
                          Sluice__V1__JobState state, sl_error *err)
{
    sl_job *job = make_job(jobs);

    if (!job)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a job of the store");
    snprintf(job->job_id, sizeof job->job_id, "%s", job_id);
    memcpy(job->spec.core.job_id, job->job_id, sizeof job->job_id);
    job->state = state;
    job->stored = true;
    jobs->ended += sl_job_has_ended(job);
    jobs->at[jobs->count++] = job;
    *out = job;
    return SL_OK;
}

void sl_jobs_remove(sl_jobs *jobs, sl_job *job)
{
    for (int i = jobs->count - 1; i >= 0; i--) {
        if (jobs->at[i] == job) {
            remove_at(jobs, i);
            return;
        }
    }
}

sl_job *sl_jobs_find(const sl_jobs *jobs, const char *job_id)
{
    for (int i = jobs->count - 1; i >= 0; i--) {
        if (strcmp(jobs->at[i]->job_id, job_id) == 0)
            return jobs->at[i];
    }
    return NULL;
}

sl_job *sl_jobs_find_request(const sl_jobs *jobs, const char *owner, const char *request_id)
{
    for (int i = jobs->count - 1; i >= 0; i--) {
        const sl_job *job = jobs->at[i];
        if (strcmp(job->request_id, request_id) == 0 && strcmp(job->owner, owner) == 0)
            return jobs->at[i];
    }
    return NULL;
}

int sl_jobs_count(const sl_jobs *jobs)
{
    return jobs->count;
}

sl_job *sl_jobs_get(const sl_jobs *jobs, int i)
{
    return jobs->at[jobs->count - 1 - i];
}

/* NULL: out of memory; the job goes on without that event. */
static sl_job_event *new_event(sl_job *job)
{
    if (job->event_count == MAX_EVENTS) {
        memmove(job->events, job->events + 1, (MAX_EVENTS - 1) * sizeof *job->events);
        job->event_count--;
    } else if (job->event_count == job->event_capacity) {
        const int capacity = job->event_capacity ? 2 * job->event_capacity : FIRST_EVENTS;
        sl_job_event *events = realloc(job->events, (size_t)capacity * sizeof *events);
        if (!events)
            return NULL;
        job->events = events;
        job->event_capacity = capacity;
    }
    return &job->events[job->event_count++];
}

static bool is_repeat(const sl_job *job, Sluice__V1__JobState state, const char *text)
{
    if (job->event_count == 0)
        return false;
    const sl_job_event *last = &job->events[job->event_count - 1];
    return last->state == state && last->step == job->step && last->step_count == job->step_count
           && last->position == job->position && strcmp(last->text, text) == 0;
}

void sl_jobs_move(sl_jobs *jobs, sl_job *job, Sluice__V1__JobState state, const char *fmt, ...)
{
    char text[SL_EVENT_TEXT_BYTES];
    const bool had_ended = sl_job_has_ended(job);
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    SL_ASSERT(!had_ended);
    job->state = state;
    job->dirty = true;
    if (sl_job_has_ended(job)) {
        jobs->ended++;
        job->ended_ns = sl_clock_wall_ns();
        free(job->spec.ids);
        free(job->spec.negative_ids);
        job->spec.ids = NULL;
        job->spec.negative_ids = NULL;
    }
    if (is_repeat(job, state, text))
        return;
    job->last_seq++;
    sl_job_event *event = new_event(job);
    if (!event)
        return;
    *event = (sl_job_event){
        .seq = job->last_seq,
        .time_ns = sl_clock_wall_ns(),
        .state = state,
        .step = job->step,
        .step_count = job->step_count,
        .position = job->position,
    };
    memcpy(event->text, text, sizeof text);
}

bool sl_jobs_restore_event(sl_job *job, const sl_job_event *event)
{
    sl_job_event *to = new_event(job);

    if (to)
        *to = *event;
    return to != NULL;
}

void sl_jobs_add_line(sl_job *job, int64_t time_ns, const char *text)
{
    if (!job->lines)
        job->lines = calloc(SL_JOB_LINES, sizeof *job->lines);
    if (!job->lines || job->line_count == SL_JOB_LINES)
        return;
    sl_job_line *line = &job->lines[job->line_count];
    line->time_ns = time_ns ? time_ns : sl_clock_wall_ns();
    line->text = strdup(text);
    if (!line->text)
        return;
    job->line_count++;
    job->dirty = true;
}
