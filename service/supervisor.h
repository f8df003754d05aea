/* supervisor.h - one worker process: started, watched, restarted, reaped.
 *
 * A thread of its own starts the worker over a socketpair, reads its events,
 * writes commands, pings it, and reaps it.  A worker that ends, breaks the
 * protocol, or does not answer in time is killed and, after a growing pause,
 * replaced.
 *
 *   STARTING --hello--> UP --end, bad frame, no pong, sl_supervisor_kill--> DOWN
 *      \--no hello in time, end---------------------------------------------^
 *   DOWN --pause--> STARTING;   any --sl_supervisor_stop--> STOPPED
 *
 * Callbacks run on the supervisor's thread, one at a time, without a lock of
 * the supervisor held; they may call sl_supervisor_send and sl_supervisor_kill,
 * not stop or destroy.  For each worker: one on_event with the hello, any
 * number of on_event, one on_down.  A worker that never said hello gets an
 * on_down only.  When on_down is called the process has been reaped: its files
 * may be cleaned up.
 *
 * Ownership: the service creates and destroys it; strings in the config are
 * copied, lock_fd stays the caller's.
 * Threads:   send, set_lanes, kill, pid, restarts from any; create, stop, destroy from one.
 */
#ifndef SL_SERVICE_SUPERVISOR_H
#define SL_SERVICE_SUPERVISOR_H

#include "api/worker.pb-c.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
    const char *worker_path; /* NULL: "sluice-worker" beside this program's own file */
    const char *device;      /* "cpu:8GiB" */
    int threads;             /* of each job lane; 0: one per core */
    int lanes;               /* for jobs side by side, beside the loader's; 0: no lanes, every
                                command in the order of arrival */
    size_t host_bytes;       /* of the host tier at most: a card has page tables for it */
    int lock_fd;             /* the device lock, inherited by the worker; -1: none */
    /* 0 is the default in parentheses */
    int64_t hello_deadline_ns; /* (60 s) from the start to the hello */
    int64_t ping_interval_ns;  /* (2 s) */
    int64_t pong_deadline_ns;  /* (15 s) an unanswered ping older than this: hung */
    int64_t pause_min_ns;      /* (100 ms) before a restart that nobody asked for; doubles up to */
    int64_t pause_max_ns;      /* (10 s); starts over after a worker that was up for longer */
} sl_supervisor_config;

typedef struct {
    void *arg;
    /* generation: counts workers from 1.  event is valid during the call. */
    void (*on_event)(void *arg, uint64_t generation, const Sluice__Worker__Event *event);
    /* reason: "killed by signal 9 (Killed)", "exited with status 1", "no answer
     * for 15 s", ... */
    void (*on_down)(void *arg, uint64_t generation, const char *reason);
} sl_supervisor_events;

typedef struct sl_supervisor sl_supervisor;

/* Returns at once: the worker is up when its hello arrives.  Fails when there
 * is no such program.  The first callback may come before create returns. */
sl_status sl_supervisor_create(sl_supervisor **out, const sl_supervisor_config *config,
                               const sl_supervisor_events *events, sl_error *err) SL_MUST_CHECK;

/* Queues a command for the worker of that generation; never blocks.
 * SL_ERR_UNAVAILABLE: that worker is not up (any more); on_down comes or came.
 * SL_ERR_TOO_LARGE: above 64 KiB packed.  SL_ERR_BUSY: the worker does not read. */
sl_status sl_supervisor_send(sl_supervisor *supervisor, uint64_t generation,
                             const Sluice__Worker__Command *command, sl_error *err) SL_MUST_CHECK;

/* The same with descriptors, 1 to SL_CHANNEL_MAX_FDS; the caller keeps its own. */
sl_status sl_supervisor_send_fds(sl_supervisor *supervisor, uint64_t generation,
                                 const Sluice__Worker__Command *command, const int *fds,
                                 int fd_count, sl_error *err) SL_MUST_CHECK;

/* The next worker is started with so many. */
void sl_supervisor_set_lanes(sl_supervisor *supervisor, int lanes);
void sl_supervisor_set_host_bytes(sl_supervisor *supervisor, size_t host_bytes);

/* Kills the worker of that generation (a hard reset); on_down follows with
 * this reason, and without a pause the next worker.  Another generation: nothing. */
void sl_supervisor_kill(sl_supervisor *supervisor, uint64_t generation, const char *reason);

/* Shutdown command, then SIGKILL after grace_ns; reaps and joins.  No callback
 * after it returns (on_down of a living worker comes before).  The caller must
 * hold no lock that a callback takes.  A second call does nothing. */
void sl_supervisor_stop(sl_supervisor *supervisor, int64_t grace_ns);
void sl_supervisor_destroy(sl_supervisor *supervisor); /* stops with 5 s; NULL is fine */

pid_t sl_supervisor_pid(const sl_supervisor *supervisor);         /* 0: none */
uint32_t sl_supervisor_restarts(const sl_supervisor *supervisor); /* workers after the first */

#endif
