/* worker.h - what the sources of sluice-worker share.
 *
 * Two threads: the main one reads the channel and answers what acts at once
 * (cancel, ping, shutdown); the job thread does Load, Unload and Run one after
 * the other and alone touches residents and the exec.
 *
 * The end of the stream, a broken frame and Shutdown end the process: the
 * running command is cancelled, its partial output removed, then exit.
 */
#ifndef SL_SERVICE_WORKER_H
#define SL_SERVICE_WORKER_H

#include "api/worker.pb-c.h"
#include "base/arena.h"
#include "base/status.h"
#include "engine/model/component.h"
#include "kernels/device.h"
#include "kernels/exec.h"
#include "service/channel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* A component on the device. */
typedef struct resident {
    struct resident *next;
    char *model;
    sl_component_kind kind;
    sl_precision precision;
    sl_component *component;
} resident;

/* A command that waits for the job thread. */
typedef struct queued {
    struct queued *next;
    sl_arena *arena; /* owns the message */
    const Sluice__Worker__Command *command;
    bool cancelled;
} queued;

typedef struct {
    sl_device *device;
    sl_exec *exec;
    sl_channel *channel;
    atomic_uint cancel; /* the exec's cancel word */

    /* The job thread's. */
    resident *residents;

    /* For Memory, from any thread. */
    atomic_bool changing; /* from a command's start to the event that tells what it mapped */
    atomic_size_t weights_bytes, activations_bytes;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t arrived;
    queued *queue;
    int queue_length;
    bool quit;
    bool ended;              /* the job thread has returned */
    const char *running_job; /* of the Run in progress; NULL: none */
    char *partial;           /* the output file being written; NULL: none */
} sl_worker;

/* ---- worker.c: telling the daemon ---- */

/* Fills what is true now.  with_resident: also rss_arena_bytes, which takes
 * some milliseconds. */
void sl_worker_fill_memory(sl_worker *worker, Sluice__Worker__Memory *out, bool with_resident);
/* Adds memory to the event and sends it.  A channel that is gone is not an
 * error here: the main thread sees its end. */
void sl_worker_send(sl_worker *worker, Sluice__Worker__Event *event, bool with_resident);

/* ---- worker_load.c; the job thread ---- */

sl_status sl_worker_load(sl_worker *worker, const Sluice__Worker__Load *load,
                         Sluice__Worker__Done *done, sl_error *err) SL_MUST_CHECK;
sl_status sl_worker_unload(sl_worker *worker, const Sluice__Worker__Unload *unload,
                           sl_error *err) SL_MUST_CHECK;
/* NULL: not there. */
const sl_component *sl_worker_find(const sl_worker *worker, const char *model,
                                   sl_component_kind kind, sl_precision precision);
void sl_worker_unload_all(sl_worker *worker);

/* ---- worker_run.c; the job thread ---- */

/* Fills done's phase_activation_bytes (n and array, of `phases`), job_peak_bytes,
 * output_size_bytes and output_sha256 (of `sha256`). */
enum { SL_WORKER_MAX_PHASES = 8, SL_SHA256_HEX_BYTES = 65 };

typedef struct {
    uint64_t phases[SL_WORKER_MAX_PHASES];
    char sha256[SL_SHA256_HEX_BYTES];
} sl_worker_run_result;

sl_status sl_worker_run(sl_worker *worker, const Sluice__Worker__Run *run,
                        sl_worker_run_result *result, Sluice__Worker__Done *done,
                        sl_error *err) SL_MUST_CHECK;

#endif
