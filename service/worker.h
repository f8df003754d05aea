/* worker.h - what the sources of sluice-worker share.
 *
 * The main thread reads the channel and answers what acts at once (cancel,
 * preempt, go, ping, shutdown).  Everything else waits in the queue of a lane: a
 * thread with an exec, a cancel word and an order of its own.
 *
 *   without --lanes   one lane does every command, in the order of arrival
 *   --lanes N         lane 0 is the loader's: it does all but Run; Run.lane 0 to
 *                     N - 1 are job lanes beside it, and wait for nobody
 *
 * A component that a job holds is not unloaded, a host image that a streamed
 * component reads is not forgotten (SL_ERR_PRECONDITION).
 *
 * The end of the stream, a broken frame and Shutdown end the process: running
 * commands are cancelled, partial outputs removed, then exit.
 *
 *   worker.c         start, the main thread
 *   worker_lane.c    lanes: queues, commands, their measured memory
 *   worker_canary.c  a few ops with known results, before the hello
 *   worker_card.c    what a card holds beside the arena
 *   worker_tell.c    events
 *   worker_load.c    Load, Unload, Trim: components on the device
 *   worker_host.c    HostSegments, HostFill, HostForget: images in host memory
 *   worker_run.c     Run
 *   worker_output.c  the output file of a Run
 */
#ifndef SL_SERVICE_WORKER_H
#define SL_SERVICE_WORKER_H

#include "api/worker.pb-c.h"
#include "base/arena.h"
#include "base/status.h"
#include "engine/model/component.h"
#include "engine/model/model_dir.h"
#include "kernels/device.h"
#include "kernels/exec.h"
#include "kernels/nvml.h"
#include "service/channel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

typedef struct sl_worker sl_worker;

/* The image of a component in host memory; the loader's lane's. */
typedef struct sl_host_mapping {
    struct sl_host_mapping *next;
    char *model;
    sl_component_kind kind;
    sl_precision precision;
    unsigned char *base; /* the daemon's segments, behind one another */
    size_t image_bytes, mapped_bytes;
    bool filled;
    int user_count; /* streamed components that read it */
} sl_host_mapping;

/* A component on the device. */
typedef struct sl_resident {
    struct sl_resident *next;
    char *model;
    sl_component_kind kind;
    sl_precision precision;
    sl_component_mode mode;
    sl_component *component;
    sl_host_mapping *image; /* that it reads; NULL: none.  The loader's lane's */
    int user_count;         /* jobs that hold it; under the worker's lock */
} sl_resident;

/* A command that waits for a lane. */
typedef struct sl_queued {
    struct sl_queued *next;
    sl_arena *arena; /* owns the message, and this */
    const Sluice__Worker__Command *command;
    int *fds; /* that came with it; closed with it */
    int fd_count;
    bool cancelled, preempted;
} sl_queued;

typedef struct {
    sl_worker *worker;
    sl_exec *exec;
    pthread_t thread;
    bool started;
    atomic_uint cancel;  /* the exec's cancel word */
    atomic_bool preempt; /* the running job is to stop at its next step */
    bool changing;       /* the lane's thread's: it has begun a change that no event told yet */
    atomic_size_t activations_bytes;

    /* Under the worker's lock. */
    sl_queued *queue;
    int queue_length;
    bool ended;              /* the thread has returned */
    const char *running_job; /* of the Run in progress; NULL: none */
    int go_phase;            /* that it may begin; -1: none */
    size_t go_bytes;
    char *partial;           /* the output file being written; NULL: none */
    bool busy;               /* with a command */
    size_t peak_bytes;       /* mapped on the device at most, since its command began */
} sl_lane;

enum { SL_WORKER_MAX_LANES = 16, SL_WORKER_EXIT_DEVICE = 5 };

/* Fixed after the start. */
typedef struct {
    int index;
    sl_nvml *nvml;            /* NULL: not available */
    int own_pid;              /* as the library tells it; 0: not seen */
    size_t total_bytes;
    size_t free_before_bytes; /* without any process's bytes */
    size_t reserve_bytes;
    size_t host_bytes; /* that may be pinned in all */
} sl_card;

struct sl_worker {
    sl_device *device;
    sl_card card; /* of a cuda device */
    sl_channel *channel;
    int lane_count;     /* all of them */
    int job_lane_first; /* 0: the loader's lane runs jobs too */
    sl_lane lanes[1 + SL_WORKER_MAX_LANES];

    /* A change of what is mapped begins before the first byte and ends with the
     * event that tells of it: when as many have ended as have begun, and none
     * began meanwhile, the numbers in between belong together. */
    atomic_uint changes_begun, changes_ended;
    atomic_size_t weights_bytes;
    sl_host_mapping *images; /* the loader's lane's */
    pthread_mutex_t telling; /* events leave in the order in which they measured */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t arrived;
    bool quit;
    sl_resident *residents; /* the loader's lane alone adds and removes */
};

/* ---- worker_card.c ---- */

/* Before the lanes; sl_worker_settle_card after them, when every handle is made. */
sl_status sl_worker_open_device(sl_worker *worker, const sl_device_spec *spec,
                                sl_error *err) SL_MUST_CHECK;
sl_status sl_worker_settle_card(sl_worker *worker, sl_error *err) SL_MUST_CHECK;
void sl_worker_close_card(sl_worker *worker); /* after the device */
/* The fields that a card has; takes a millisecond. */
void sl_worker_measure_card(sl_worker *worker, Sluice__Worker__Memory *out);
/* As if no other process were on the card; 0 on cpu. */
size_t sl_worker_driver_free(sl_worker *worker);
/* Of what an unload unmapped, what did not become free; up to 2 granules are none. */
int64_t sl_worker_driver_kept(const Sluice__Worker__Done *unload);

/* ---- worker_tell.c ---- */

/* The lane is about to map or unmap. */
void sl_worker_begin_change(sl_lane *lane);
/* Adds memory to the event and sends it.  lane: whose event it is; a Done or a
 * Phase ends its change.  NULL: the main thread's.  A channel that is gone is
 * not an error here: the main thread sees its end. */
void sl_worker_send(sl_worker *worker, sl_lane *lane, Sluice__Worker__Event *event,
                    bool with_resident);
size_t sl_worker_workspace_bytes(const sl_worker *worker);

/* ---- worker_lane.c; the main thread ---- */

/* Makes the lanes and their execs.  job_lanes 0: one lane for everything. */
sl_status sl_worker_init_lanes(sl_worker *worker, int job_lanes, int threads,
                               sl_error *err) SL_MUST_CHECK;
sl_status sl_worker_start_lanes(sl_worker *worker, sl_error *err) SL_MUST_CHECK;
/* Takes the arena, and the command's descriptors from the channel.  SL_ERR_DATA:
 * they are not there, there is no such lane, or too much waits for it. */
sl_status sl_worker_enqueue(sl_worker *worker, sl_arena *arena,
                            const Sluice__Worker__Command *command, sl_error *err) SL_MUST_CHECK;
void sl_worker_cancel(sl_worker *worker, const char *job_id);
void sl_worker_preempt(sl_worker *worker, const char *job_id);
void sl_worker_go(sl_worker *worker, const Sluice__Worker__Go *go);
/* Cancels what runs, drops what waits.  False: a thread has not ended in time,
 * and the process must go without it. */
bool sl_worker_stop_lanes(sl_worker *worker);
/* A job lane's thread: waits for the Go of a phase.  False: the job is to stop. */
bool sl_worker_await_go(sl_lane *lane, int phase, size_t *size_bytes);
/* Any lane's thread, after SL_ERR_DEVICE: the context is lost, and only a new
 * process gets another.  Removes partial outputs, logs and exits; the daemon sees
 * the end, starts a worker and admits the job again. */
__attribute__((noreturn)) void sl_worker_die(sl_worker *worker, const sl_error *why);
/* After stop_lanes; also after an init or a start that did not succeed. */
void sl_worker_fini_lanes(sl_worker *worker);

/* ---- worker_canary.c ---- */

/* Before the lanes start; nothing stays mapped.  SL_ERR_DATA: the device gets its sums
 * wrong; SL_ERR_DEVICE as in sl_worker_die. */
sl_status sl_worker_run_canary(sl_worker *worker, int64_t *duration_ns,
                               sl_error *err) SL_MUST_CHECK;

/* ---- worker_load.c; the loader's lane ---- */

sl_status sl_worker_check_key(const Sluice__Worker__ComponentKey *key, sl_error *err) SL_MUST_CHECK;
/* What is asked for, checked against the model's files. */
sl_status sl_worker_make_spec(const sl_model_info *info, const Sluice__Worker__ComponentKey *key,
                              sl_component_spec *out, sl_error *err) SL_MUST_CHECK;
sl_status sl_worker_load(sl_lane *lane, const Sluice__Worker__Load *load,
                         Sluice__Worker__Done *done, sl_error *err) SL_MUST_CHECK;
sl_status sl_worker_unload(sl_worker *worker, const Sluice__Worker__Unload *unload,
                           sl_error *err) SL_MUST_CHECK;
void sl_worker_unload_all(sl_worker *worker);

/* Any lane.  NULL: not there.  Held until the release. */
sl_resident *sl_worker_acquire(sl_worker *worker, const char *model, sl_component_kind kind,
                               sl_precision precision, sl_component_mode mode);
void sl_worker_release(sl_worker *worker, sl_resident *resident);

void sl_worker_trim(sl_worker *worker);

/* ---- worker_host.c; the loader's lane ---- */

/* fds: one for each segment; they stay the caller's. */
sl_status sl_worker_host_segments(sl_worker *worker, const Sluice__Worker__HostSegments *message,
                                  const int *fds, sl_error *err) SL_MUST_CHECK;
sl_status sl_worker_host_fill(sl_lane *lane, const Sluice__Worker__HostFill *message,
                              Sluice__Worker__Done *done, sl_error *err) SL_MUST_CHECK;
sl_status sl_worker_host_forget(sl_lane *lane, const Sluice__Worker__HostForget *message,
                                sl_error *err) SL_MUST_CHECK;
void sl_worker_forget_all(sl_worker *worker); /* behind unload_all */
/* A filled image, which stays until the unuse. */
sl_status sl_worker_use_image(sl_worker *worker, const Sluice__Worker__ComponentKey *key,
                              sl_host_mapping **out, sl_error *err) SL_MUST_CHECK;
void sl_worker_unuse_image(sl_host_mapping *image);
void sl_worker_trim_images(sl_worker *worker);

/* ---- worker_run.c; a job lane ---- */

/* Fills done's phase_activation_bytes (n and array, of `phases`), job_peak_bytes,
 * output_size_bytes, output_sha256 (of `sha256`), preempted and
 * resumed_from_step. */
enum { SL_WORKER_MAX_PHASES = 8, SL_SHA256_HEX_BYTES = 65 };

typedef struct {
    uint64_t phases[SL_WORKER_MAX_PHASES];
    char sha256[SL_SHA256_HEX_BYTES];
} sl_worker_run_result;

sl_status sl_worker_run(sl_lane *lane, const Sluice__Worker__Run *run, sl_worker_run_result *result,
                        Sluice__Worker__Done *done, sl_error *err) SL_MUST_CHECK;

/* ---- worker_output.c; a job lane ---- */

/* From now on the file is removed whenever the job or the process ends without
 * it being finished.  SL_ERR_CANCELLED: the worker is shutting down. */
sl_status sl_worker_note_partial(sl_lane *lane, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_worker_forget_partial(sl_lane *lane, bool remove_it);
sl_status sl_worker_hash_file(const char *path, char hex[SL_SHA256_HEX_BYTES], uint64_t *size_bytes,
                              sl_error *err) SL_MUST_CHECK;

#endif
