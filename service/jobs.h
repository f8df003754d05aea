/* jobs.h - the table of jobs: what each is, how it stands, what has happened.
 *
 * In memory; persist.h keeps the store in step: a job that has changed is `dirty`
 * until it has been written there.
 *
 *   QUEUED -> ADMITTED -> LOADING -> ENCODING -> DENOISING -> DECODING -> MUXING -> DONE
 *      ^         |           |          (any of these)              \-> FAILED
 *      \---------+-----------+-- the worker died, no memory           CANCELLED
 *
 * By phase it is LOADING again before the phases whose components are not there yet.
 * Every move is an event with a sequence number; so are steps and places in the
 * queue.  Moves are made by service.c alone, through sl_jobs_move.
 *
 * Ownership: the service's.  A job stays where it is until sl_jobs_remove.
 * Threads:   under the service's mutex.
 */
#ifndef SL_SERVICE_JOBS_H
#define SL_SERVICE_JOBS_H

#include "api/sluice.pb-c.h"
#include "base/status.h"
#include "engine/media/media.h"
#include "engine/pipeline/t2v.h"
#include "service/auth.h"
#include "service/core.h"
#include "service/variants.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SL_REQUEST_ID_BYTES = 65,
    SL_JOB_ID_DIGITS = 16, /* lower-case hex */
    SL_BODY_HASH_BYTES = 32,
    SL_EVENT_TEXT_BYTES = 120,
    SL_SHA256_HEX_BYTES = 65,
    SL_JOB_LINES = 400, /* of one job's log; what comes later is left out */
};

typedef struct {
    uint64_t seq;
    int64_t time_ns; /* wall clock */
    Sluice__V1__JobState state;
    int step, step_count, position;
    char text[SL_EVENT_TEXT_BYTES];
} sl_job_event;

typedef struct {
    int64_t time_ns; /* wall clock */
    char *text;      /* malloc'd */
} sl_job_line;

/* What the request comes to, worked out before the job exists. */
typedef struct {
    char model[SL_CORE_NAME_BYTES];
    char *model_path;       /* malloc'd */
    sl_t2v_request request; /* everything filled in */
    sl_media_format format;
    int32_t *ids;           /* malloc'd; request.token_count of them */
    int32_t *negative_ids;  /* malloc'd, request.negative_token_count; NULL: no guidance */
    char *source_path;      /* malloc'd; a file that no job has yet: fini removes it */
    char latent_of[SL_CORE_ID_BYTES]; /* the job whose latent it decodes; "": none */
    bool preview;
    sl_streaming streaming;
    sl_core_job core;       /* what the core decides on */
    sl_variants variants;   /* its variants; none of a job that has ended in an earlier life */
    sl_way way;             /* that is taken, or would be; request.streamed, plan and core.needs
                               are of it */
    sl_t2v_plan plan;
    sl_arch arch;           /* sizes alone: its name may be gone */
    int64_t deadline_ns;    /* from the submission; 0: none */
} sl_job_spec;

void sl_job_spec_fini(sl_job_spec *spec);

typedef struct {
    char job_id[SL_CORE_ID_BYTES];
    char request_id[SL_REQUEST_ID_BYTES];
    char owner[SL_IDENTITY_BYTES];
    uint8_t body_hash[SL_BODY_HASH_BYTES];
    sl_job_spec spec; /* ids are freed when the job ends */
    char table_row[SL_BUDGET_NAME_BYTES];
    int64_t estimate_ns;       /* of its run, from others of its model; 0: unknown */
    int64_t estimated_start_ns; /* wall clock; 0: unknown, or not queued */
    size_t workspace_bytes; /* planned */
    uint64_t reserved_output_bytes; /* the most its output can take */

    Sluice__V1__JobState state;
    int step, step_count, position, attempt;
    int resumed_from_step; /* of the last attempt; 0: it began at the beginning */
    int64_t submitted_ns, started_ns, ended_ns; /* wall clock; 0: not yet */
    int64_t admitted_ns, run_ns;                /* monotonic; duration */
    sl_status status;                           /* of FAILED, CANCELLED */
    char message[SL_ERROR_MESSAGE_BYTES];
    size_t measured_peak_bytes; /* of this job's own memory and the workspace */
    size_t measured_phase_bytes[SL_PHASE_COUNT];
    size_t device_before_bytes, device_after_bytes; /* arena mapped around the run */
    size_t output_size_bytes;
    char output_sha256[SL_SHA256_HEX_BYTES];

    sl_job_event *events;
    int event_count, event_capacity;
    uint64_t last_seq;
    sl_job_line *lines; /* NULL or SL_JOB_LINES of them */
    int line_count;

    int attempt_base;     /* attempts of earlier processes */
    Sluice__V1__Preview *preview; /* the latest, one malloc; NULL: none */
    bool cancel_asked;    /* whatever becomes of it */
    bool withdrawn;       /* never acknowledged: goes without a trace when it ends */
    bool stored;          /* the store has it */
    bool dirty;           /* it has changed since the store was told */
    uint64_t stored_seq;  /* the events up to this one are there */
    int stored_lines;
} sl_job;

bool sl_job_has_ended(const sl_job *job);
size_t sl_job_planned_peak_bytes(const sl_job *job);

typedef struct sl_jobs sl_jobs;

/* keep: how many ended jobs are remembered. */
sl_status sl_jobs_create(sl_jobs **out, int keep, sl_error *err) SL_MUST_CHECK;
void sl_jobs_destroy(sl_jobs *jobs); /* NULL is fine */

/* Takes spec over on success.  The job is QUEUED and has a fresh id (also in
 * spec.core.job_id) and no event yet. */
sl_status sl_jobs_add(sl_jobs *jobs, sl_job **out, const char *owner, const char *request_id,
                      const uint8_t body_hash[SL_BODY_HASH_BYTES], sl_job_spec *spec,
                      sl_error *err) SL_MUST_CHECK;
/* One that the store has: blank but for its id and state. */
sl_status sl_jobs_restore(sl_jobs *jobs, sl_job **out, const char *job_id,
                          Sluice__V1__JobState state, sl_error *err) SL_MUST_CHECK;
void sl_jobs_remove(sl_jobs *jobs, sl_job *job);
/* The oldest of the ended jobs above `keep`, which is to be forgotten; or NULL. */
sl_job *sl_jobs_surplus(const sl_jobs *jobs);

sl_job *sl_jobs_find(const sl_jobs *jobs, const char *job_id); /* NULL: unknown */
sl_job *sl_jobs_find_request(const sl_jobs *jobs, const char *owner, const char *request_id);

/* From the newest (0) to the oldest. */
int sl_jobs_count(const sl_jobs *jobs);
sl_job *sl_jobs_get(const sl_jobs *jobs, int i);

/* Records that the job stands at `state` now; text may be "".  Where nothing
 * but the text would be new, text matters too: the same again is no event.  Events are
 * bounded: beyond the bound the oldest go. */
void sl_jobs_move(sl_jobs *jobs, sl_job *job, Sluice__V1__JobState state, const char *fmt, ...)
    SL_PRINTF(4, 5);

/* One of the events that the store has, in their order; false: out of memory. */
bool sl_jobs_restore_event(sl_job *job, const sl_job_event *event);
/* A line for `explain`, key=value; time_ns 0 is now. */
void sl_jobs_add_line(sl_job *job, int64_t time_ns, const char *text);

#endif
