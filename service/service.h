/* service.h - the state behind the methods: jobs, memory, one worker.
 *
 * Decisions are the core's, work is the worker's; the service carries actions to
 * the one and events from the other, keeps the jobs' stories, and wakes those who
 * wait for them.
 *
 * Ownership: main creates and destroys it; what the configuration points to is
 *            copied, but for lock_fd, which outlives it.
 * Threads:   handlers call side by side (handlers.h); one mutex and one
 *            condition; a thread for what is due by the clock; the supervisor's
 *            thread calls back.  Files are touched without the mutex.
 */
#ifndef SL_SERVICE_SERVICE_H
#define SL_SERVICE_SERVICE_H

#include "base/status.h"
#include "kernels/device.h"
#include "service/budget.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct sl_service sl_service;

/* What can change while the service runs. */
typedef struct {
    int running;      /* jobs side by side, at least 1 */
    int queue;        /* jobs that wait */
    int bypass;       /* jobs that may pass a waiting one */
    int user_running, user_queued; /* of one user; 0: no limit */
    size_t host_bytes; /* of images in host memory; 0: none */
    uint64_t outputs_quota_bytes;  /* 0: as much as the disk has */
    int64_t outputs_retention_ns;  /* ended jobs older than this go, with their files; 0: never */
} sl_service_limits;

typedef struct {
    sl_budget_table table;
    sl_service_limits limits;
    void *more; /* of whoever reads the settings; goes to finish_settings */
} sl_service_settings; /* some 60 KiB: not for the stack */

typedef struct {
    sl_device_spec device;
    const char *const *models; /* roots */
    int model_count;
    const char *outputs;       /* directory; exists */
    const char *store;         /* file of jobs, on the same disk; NULL: they end with the process */
    const char *worker;        /* program; NULL: beside this one */
    int threads;               /* of the worker; 0: one per core */
    int retry_limit;
    int watchers;              /* long polls at once */
    int load_waiters;          /* calls that wait for loads and unloads at once */
    int keep_jobs;             /* ended ones that are remembered */
    int lock_fd;               /* the device lock; -1: none */
    const sl_budget_table *table; /* copied; NULL: nothing is forbidden */
    sl_service_limits limits;
    /* Reads the configuration again; NULL: it cannot change.  Any thread. */
    sl_status (*read_settings)(void *arg, sl_service_settings *out, sl_error *err);
    /* Always called after read_settings has succeeded: takes `more` into use, or (take
     * false) lets it go.  Returns what has changed, or NULL.  NULL: `more` is not used. */
    const char *(*finish_settings)(void *arg, void *more, bool take);
    void *read_arg;
} sl_service_config;

/* Queues the jobs of the store again, removes partial outputs of an earlier process,
 * and starts the worker. */
sl_status sl_service_create(sl_service **out, const sl_service_config *config,
                            sl_error *err) SL_MUST_CHECK;

/* Reads the configuration again and takes what has changed; nothing changes after a
 * failure, which may be that images which are pinned or in use need more than
 * host_bytes.  More or fewer jobs side by side take a new worker: that comes when no job
 * runs.  changed, if not NULL, is told about each thing. */
sl_status sl_service_reload(sl_service *service, void (*changed)(void *arg, const char *what),
                            void *arg, sl_error *err) SL_MUST_CHECK;

/* No new jobs from now on, whoever waits is answered.  Jobs that have not ended
 * when the worker does stay in the store and run when the daemon starts again. */
void sl_service_begin_stop(sl_service *service);
/* Ends the worker, at most after grace_ns by force. */
void sl_service_stop(sl_service *service, int64_t grace_ns);
/* No handler runs any more.  NULL is fine. */
void sl_service_destroy(sl_service *service);

#endif
