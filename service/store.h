/* store.h - jobs that outlive the process: one SQLite file, WAL, mode 0600.
 *
 * What is here was promised to somebody: a job that Generate acknowledged, the
 * bytes of its output, how it ended.  The prompt is not; the token ids are, until
 * the job ends.
 *
 * A write is part of a transaction.  `durable` ones are on the disk when commit
 * returns (fsync of the log); the others survive the death of the process, but
 * not of the machine.  Of a job's end the order is:
 *
 *     1. the worker has written and synced the partial file
 *     2. its size and SHA-256 are committed, durable (output_size_bytes, sha256)
 *     3. the partial file is renamed, the directory synced
 *     4. the end is committed, durable
 *
 * So after a death anywhere an unfinished job with a SHA-256 has its output, whole,
 * under one of two names (then it has ended), or has none (then it runs again).
 *
 * Failures: SL_ERR_IO for a full disk and for what the system refuses, SL_ERR_DATA for
 * a damaged file or one of a newer sluice; messages name the file.  After a
 * failure inside a transaction call sl_store_rollback.
 *
 * Ownership: open/close; what rows point to is borrowed during the call.
 * Threads:   one at a time; the service's mutex guards it.  Another process
 *            must not write: the lock on the outputs directory sees to that.
 */
#ifndef SL_SERVICE_STORE_H
#define SL_SERVICE_STORE_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SL_STORE_VERSION = 1,
    SL_STORE_EVENTS = 2048, /* kept of one job; the newest */
};

typedef struct sl_store sl_store;

typedef struct {
    const void *data;
    size_t size_bytes;
} sl_store_blob;

/* One job.  Strings are never NULL in what the store gives; "" is the same as
 * NULL in what it takes. */
typedef struct {
    /* as submitted */
    const char *job_id, *owner, *request_id, *model, *model_path, *table_row;
    sl_store_blob body_hash;
    sl_store_blob request; /* packed GenerateRequest, values filled in, no prompt */
    sl_store_blob plan;    /* packed Plan */
    sl_store_blob ids;     /* int32 token ids; none once the job has ended */
    uint64_t workspace_bytes, reserved_output_bytes;
    int64_t submitted_ns;
    /* how it stands */
    int state;  /* Sluice__V1__JobState */
    bool ended; /* whatever the state means */
    bool cancel_asked;
    int step, step_count, attempt;
    int64_t started_ns, ended_ns, run_ns;
    int status; /* sl_status */
    const char *message;
    uint64_t measured_peak_bytes, device_before_bytes, device_after_bytes;
    uint64_t output_size_bytes;
    const char *output_sha256; /* "": there is no whole output */
    int resumed_from_step;     /* of the last attempt; 0: from the beginning */
    uint64_t last_seq;
} sl_store_job;

typedef struct {
    uint64_t seq;
    int64_t time_ns;
    int state, step, step_count, position;
    const char *text;
} sl_store_event;

typedef struct {
    int64_t hour_ns; /* start of the hour */
    uint64_t peak_bytes, host_peak_bytes;
    uint32_t jobs;
} sl_store_peak;

/* Makes the file if absent.  Checks it as a whole. */
sl_status sl_store_open(sl_store **out, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_store_close(sl_store *store); /* rolls back; NULL is fine */

sl_status sl_store_begin(sl_store *store, bool durable, sl_error *err) SL_MUST_CHECK;
sl_status sl_store_commit(sl_store *store, sl_error *err) SL_MUST_CHECK;
void sl_store_rollback(sl_store *store); /* fine without a transaction */

/* Inside a transaction: */
sl_status sl_store_add_job(sl_store *store, const sl_store_job *job, sl_error *err) SL_MUST_CHECK;
/* How it stands; the rest stays.  Drops the ids of a job that has ended. */
sl_status sl_store_update_job(sl_store *store, const sl_store_job *job,
                              sl_error *err) SL_MUST_CHECK;
/* It is done in another way than it was submitted with. */
sl_status sl_store_set_plan(sl_store *store, const char *job_id, sl_store_blob plan,
                            sl_error *err) SL_MUST_CHECK;
/* With its events and lines; an unknown one is fine. */
sl_status sl_store_remove_job(sl_store *store, const char *job_id, sl_error *err) SL_MUST_CHECK;
sl_status sl_store_add_event(sl_store *store, const char *job_id, const sl_store_event *event,
                             sl_error *err) SL_MUST_CHECK;
sl_status sl_store_add_line(sl_store *store, const char *job_id, int64_t time_ns, const char *text,
                            sl_error *err) SL_MUST_CHECK;
/* Raises the hour's peaks to these, replaces its number of jobs. */
sl_status sl_store_note_peak(sl_store *store, const sl_store_peak *peak,
                             sl_error *err) SL_MUST_CHECK;
/* Hours before this one are forgotten. */
sl_status sl_store_forget_peaks(sl_store *store, int64_t before_ns, sl_error *err) SL_MUST_CHECK;

/* Each calls say for every row, oldest first (peaks: newest first, at most
 * limit), until say fails; its status is then the result.  say must not call the
 * store's each of the same kind. */
typedef sl_status sl_store_say_job(void *arg, const sl_store_job *job, sl_error *err);
typedef sl_status sl_store_say_event(void *arg, const sl_store_event *event, sl_error *err);
typedef sl_status sl_store_say_line(void *arg, int64_t time_ns, const char *text, sl_error *err);
typedef sl_status sl_store_say_peak(void *arg, const sl_store_peak *peak, sl_error *err);

sl_status sl_store_each_job(sl_store *store, sl_store_say_job *say, void *arg,
                            sl_error *err) SL_MUST_CHECK;
sl_status sl_store_each_event(sl_store *store, const char *job_id, sl_store_say_event *say,
                              void *arg, sl_error *err) SL_MUST_CHECK;
sl_status sl_store_each_line(sl_store *store, const char *job_id, sl_store_say_line *say, void *arg,
                             sl_error *err) SL_MUST_CHECK;
sl_status sl_store_each_peak(sl_store *store, int limit, sl_store_say_peak *say, void *arg,
                             sl_error *err) SL_MUST_CHECK;

#endif
