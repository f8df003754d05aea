/* Lanes: queues of commands, each with a thread that does them. */
#include "service/worker.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { MAX_QUEUE = 64, LOADER_THREADS = 2 };

/* How long the threads may take to end after a cancel before the process goes
 * without them. */
#define QUIT_DEADLINE_NS (800 * SL_NS_PER_MS)

static void close_fds(sl_queued *q)
{
    for (int i = 0; i < q->fd_count; i++)
        close(q->fds[i]);
    q->fd_count = 0;
}

static void free_queued(sl_queued *q)
{
    close_fds(q);
    sl_arena_destroy(q->arena); /* q itself lives there */
}

static bool is_run_of(const sl_queued *q, const char *job_id)
{
    return q->command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN &&
           strcmp(q->command->run->job_id, job_id) == 0;
}

/* ---- a command ---- */

/* Waits for one; NULL: quit.  The lane's words belong to it from here on. */
static sl_queued *next_command(sl_lane *lane)
{
    sl_worker *worker = lane->worker;

    pthread_mutex_lock(&worker->lock);
    while (!lane->queue && !worker->quit)
        pthread_cond_wait(&worker->arrived, &worker->lock);
    sl_queued *q = worker->quit ? NULL : lane->queue;
    if (q) {
        lane->queue = q->next;
        lane->queue_length--;
        if (q->command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN)
            lane->running_job = q->command->run->job_id;
        lane->go_phase = -1;
        atomic_store(&lane->cancel, q->cancelled);
        atomic_store(&lane->preempt, q->preempted);
    }
    pthread_mutex_unlock(&worker->lock);
    return q;
}

/* The device has one peak, since a command began last: it is noted for every
 * command in progress when one begins or ends.  Under the lock. */
static size_t share_peak(sl_worker *worker)
{
    sl_device_stats stats;

    sl_device_get_stats(worker->device, &stats);
    for (int i = 0; i < worker->lane_count; i++) {
        sl_lane *lane = &worker->lanes[i];
        if (lane->busy && lane->peak_bytes < stats.peak_mapped_bytes)
            lane->peak_bytes = stats.peak_mapped_bytes;
    }
    return stats.mapped_bytes;
}

static size_t begin_measuring(sl_lane *lane)
{
    pthread_mutex_lock(&lane->worker->lock);
    const size_t mapped_bytes = share_peak(lane->worker);
    sl_device_reset_peak(lane->worker->device);
    lane->busy = true;
    lane->peak_bytes = mapped_bytes;
    pthread_mutex_unlock(&lane->worker->lock);
    return mapped_bytes;
}

static size_t end_measuring(sl_lane *lane)
{
    pthread_mutex_lock(&lane->worker->lock);
    const size_t mapped_bytes = share_peak(lane->worker);
    lane->busy = false;
    lane->running_job = NULL;
    pthread_mutex_unlock(&lane->worker->lock);
    return mapped_bytes;
}

static sl_status do_command(sl_lane *lane, const sl_queued *q, sl_worker_run_result *result,
                            Sluice__Worker__Done *done, sl_error *err)
{
    const Sluice__Worker__Command *command = q->command;

    switch (command->kind_case) {
    case SLUICE__WORKER__COMMAND__KIND_RUN:
        return sl_worker_run(lane, command->run, result, done, err);
    case SLUICE__WORKER__COMMAND__KIND_LOAD:
        return sl_worker_load(lane, command->load, done, err);
    case SLUICE__WORKER__COMMAND__KIND_UNLOAD:
        return sl_worker_unload(lane->worker, command->unload, err);
    case SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS:
        return sl_worker_host_segments(lane->worker, command->host_segments, q->fds, err);
    case SLUICE__WORKER__COMMAND__KIND_HOST_FILL:
        return sl_worker_host_fill(lane, command->host_fill, done, err);
    case SLUICE__WORKER__COMMAND__KIND_HOST_FORGET:
        return sl_worker_host_forget(lane, command->host_forget, err);
    case SLUICE__WORKER__COMMAND__KIND_TRIM:
        sl_worker_trim(lane->worker);
        return SL_OK;
    default:
        SL_ASSERT(!"a command that waits in a lane");
    }
}

static void perform(sl_lane *lane, sl_queued *q)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;
    sl_worker_run_result result;
    sl_error error = { .status = SL_OK };
    const bool is_unload = q->command->kind_case == SLUICE__WORKER__COMMAND__KIND_UNLOAD;
    const int64_t start_ns = sl_clock_now_ns();
    sl_status status;

    sl_worker_begin_change(lane);
    done.before_bytes = begin_measuring(lane);
    /* Asking takes some milliseconds, which a load need not spend. */
    if (is_unload)
        done.driver_free_before_bytes = sl_worker_driver_free(lane->worker);
    if (q->cancelled || q->preempted) {
        status = sl_fail(&error, SL_ERR_CANCELLED, "cancelled before it started");
        done.preempted = !q->cancelled;
    } else {
        status = do_command(lane, q, &result, &done, &error);
    }
    if (status == SL_ERR_DEVICE)
        sl_worker_die(lane->worker, &error);
    close_fds(q);
    done.after_bytes = end_measuring(lane);
    if (is_unload) {
        done.driver_free_after_bytes = sl_worker_driver_free(lane->worker);
        done.driver_kept_bytes = sl_worker_driver_kept(&done);
    }
    done.status = (int32_t)status;
    done.message = status == SL_OK ? (char *)"" : error.message;
    done.peak_bytes = lane->peak_bytes;
    done.duration_ns = sl_clock_now_ns() - start_ns;
    event.id = q->command->id;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_DONE;
    event.done = &done;
    sl_worker_send(lane->worker, lane, &event, true);
}

void sl_worker_die(sl_worker *worker, const sl_error *why)
{
    char quoted[2 * SL_ERROR_MESSAGE_BYTES];

    sl_log(SL_LOG_ERROR, "worker_device_fault", "pid=%d message=%s", (int)getpid(),
           sl_log_quote(quoted, sizeof quoted, why->message));
    pthread_mutex_lock(&worker->lock);
    for (int i = 0; i < worker->lane_count; i++)
        if (worker->lanes[i].partial)
            unlink(worker->lanes[i].partial);
    _exit(SL_WORKER_EXIT_DEVICE);
}

static void *lane_thread(void *arg)
{
    sl_lane *lane = arg;
    sl_queued *q;

    while ((q = next_command(lane)) != NULL) {
        perform(lane, q);
        free_queued(q);
    }
    pthread_mutex_lock(&lane->worker->lock);
    lane->ended = true;
    pthread_cond_broadcast(&lane->worker->arrived);
    pthread_mutex_unlock(&lane->worker->lock);
    return NULL;
}

/* ---- the main thread ---- */

static sl_status init_lane(sl_worker *worker, int threads, sl_error *err)
{
    sl_lane *lane = &worker->lanes[worker->lane_count];

    lane->worker = worker;
    const sl_device_kind kind = sl_device_get_spec(worker->device)->kind;
    const sl_numerics numerics = sl_numerics_of(kind, false);
    const sl_status status =
        kind == SL_DEVICE_CPU
            ? sl_exec_create_cpu(&lane->exec, worker->device, threads, &lane->cancel, err)
            : sl_exec_create_cuda(&lane->exec, worker->device, &numerics, &lane->cancel, err);
    worker->lane_count++; /* from now on fini looks at it */
    return status;
}

sl_status sl_worker_init_lanes(sl_worker *worker, int job_lanes, int threads, sl_error *err)
{
    sl_status status;

    if (job_lanes == 0)
        return init_lane(worker, threads, err);
    worker->job_lane_first = 1;
    status = init_lane(worker, threads == 1 ? 1 : LOADER_THREADS, err);
    for (int i = 0; i < job_lanes && status == SL_OK; i++)
        status = init_lane(worker, threads, err);
    return status;
}

sl_status sl_worker_start_lanes(sl_worker *worker, sl_error *err)
{
    for (int i = 0; i < worker->lane_count; i++) {
        sl_lane *lane = &worker->lanes[i];
        if ((errno = pthread_create(&lane->thread, NULL, lane_thread, lane)) != 0)
            return sl_fail_errno(err, "could not start the thread of lane %d", i);
        lane->started = true;
    }
    return SL_OK;
}

static sl_lane *lane_of(sl_worker *worker, const Sluice__Worker__Command *command)
{
    const int job_lanes = worker->lane_count - worker->job_lane_first;

    if (command->kind_case != SLUICE__WORKER__COMMAND__KIND_RUN)
        return &worker->lanes[0];
    if (command->run->lane < 0 || command->run->lane >= job_lanes)
        return NULL;
    return &worker->lanes[worker->job_lane_first + command->run->lane];
}

static sl_status take_fds(sl_worker *worker, sl_queued *q, sl_error *err)
{
    if (q->command->kind_case != SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS)
        return SL_OK;
    const size_t count = q->command->host_segments->n_segment_bytes;
    if (count > SL_CHANNEL_MAX_FDS)
        return sl_fail(err, SL_ERR_DATA, "the daemon sent an image of %zu segments", count);
    q->fds = sl_arena_alloc(q->arena, count ? count * sizeof *q->fds : 1);
    if (!q->fds)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a command");
    const sl_status status = sl_channel_take_fds(worker->channel, q->fds, (int)count, err);
    if (status == SL_OK)
        q->fd_count = (int)count;
    return status;
}

sl_status sl_worker_enqueue(sl_worker *worker, sl_arena *arena,
                            const Sluice__Worker__Command *command, sl_error *err)
{
    sl_queued *q = sl_arena_alloc(arena, sizeof *q);
    sl_lane *lane = lane_of(worker, command);
    sl_status status = SL_OK;

    if (!q || !lane) {
        status = q ? sl_fail(err, SL_ERR_DATA, "the daemon sent a run for lane %d of %d",
                             (int)command->run->lane, worker->lane_count - worker->job_lane_first)
                   : sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a command");
        sl_arena_destroy(arena);
        return status;
    }
    q->arena = arena;
    q->command = command;
    status = take_fds(worker, q, err);
    if (status != SL_OK) {
        free_queued(q);
        return status;
    }
    pthread_mutex_lock(&worker->lock);
    if (lane->queue_length == MAX_QUEUE) {
        status =
            sl_fail(err, SL_ERR_DATA, "the daemon sent more than %d commands at once", MAX_QUEUE);
    } else {
        sl_queued **end = &lane->queue;
        while (*end)
            end = &(*end)->next;
        *end = q;
        lane->queue_length++;
        pthread_cond_broadcast(&worker->arrived);
    }
    pthread_mutex_unlock(&worker->lock);
    if (status != SL_OK)
        free_queued(q);
    return status;
}

void sl_worker_cancel(sl_worker *worker, const char *job_id)
{
    pthread_mutex_lock(&worker->lock);
    for (int i = 0; i < worker->lane_count; i++) {
        sl_lane *lane = &worker->lanes[i];
        if (lane->running_job && strcmp(lane->running_job, job_id) == 0)
            atomic_store(&lane->cancel, 1);
        for (sl_queued *q = lane->queue; q; q = q->next)
            q->cancelled |= is_run_of(q, job_id);
    }
    pthread_cond_broadcast(&worker->arrived); /* it may wait at an edge */
    pthread_mutex_unlock(&worker->lock);
}

void sl_worker_preempt(sl_worker *worker, const char *job_id)
{
    pthread_mutex_lock(&worker->lock);
    for (int i = 0; i < worker->lane_count; i++) {
        sl_lane *lane = &worker->lanes[i];
        if (lane->running_job && strcmp(lane->running_job, job_id) == 0)
            atomic_store(&lane->preempt, true);
        for (sl_queued *q = lane->queue; q; q = q->next)
            q->preempted |= is_run_of(q, job_id);
    }
    pthread_cond_broadcast(&worker->arrived); /* it may wait at an edge */
    pthread_mutex_unlock(&worker->lock);
}

void sl_worker_go(sl_worker *worker, const Sluice__Worker__Go *go)
{
    pthread_mutex_lock(&worker->lock);
    for (int i = 0; i < worker->lane_count; i++) {
        sl_lane *lane = &worker->lanes[i];
        if (lane->running_job && strcmp(lane->running_job, go->job_id) == 0) {
            lane->go_phase = go->phase;
            lane->go_bytes = (size_t)go->activation_bytes;
        }
    }
    pthread_cond_broadcast(&worker->arrived);
    pthread_mutex_unlock(&worker->lock);
}

bool sl_worker_await_go(sl_lane *lane, int phase, size_t *size_bytes)
{
    sl_worker *worker = lane->worker;

    pthread_mutex_lock(&worker->lock);
    while (lane->go_phase != phase && !worker->quit && !atomic_load(&lane->cancel) &&
           !atomic_load(&lane->preempt))
        pthread_cond_wait(&worker->arrived, &worker->lock);
    const bool go = lane->go_phase == phase;
    *size_bytes = lane->go_bytes;
    pthread_mutex_unlock(&worker->lock);
    return go;
}

static bool all_ended(const sl_worker *worker)
{
    for (int i = 0; i < worker->lane_count; i++)
        if (worker->lanes[i].started && !worker->lanes[i].ended)
            return false;
    return true;
}

bool sl_worker_stop_lanes(sl_worker *worker)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(QUIT_DEADLINE_NS);
    const struct timespec until = { .tv_sec = deadline_ns / SL_NS_PER_S,
                                    .tv_nsec = deadline_ns % SL_NS_PER_S };

    pthread_mutex_lock(&worker->lock);
    worker->quit = true;
    for (int i = 0; i < worker->lane_count; i++)
        atomic_store(&worker->lanes[i].cancel, 1);
    pthread_cond_broadcast(&worker->arrived);
    while (!all_ended(worker) &&
           pthread_cond_timedwait(&worker->arrived, &worker->lock, &until) != ETIMEDOUT)
        ;
    const bool ended = all_ended(worker);
    /* Without the thread's help: whatever it still writes has no name any more. */
    for (int i = 0; i < worker->lane_count; i++)
        if (!worker->lanes[i].ended && worker->lanes[i].partial)
            unlink(worker->lanes[i].partial);
    pthread_mutex_unlock(&worker->lock);
    for (int i = 0; i < worker->lane_count && ended; i++)
        if (worker->lanes[i].started)
            pthread_join(worker->lanes[i].thread, NULL);
    return ended;
}

void sl_worker_fini_lanes(sl_worker *worker)
{
    for (int i = 0; i < worker->lane_count; i++) {
        sl_lane *lane = &worker->lanes[i];
        while (lane->queue) {
            sl_queued *next = lane->queue->next;
            free_queued(lane->queue);
            lane->queue = next;
        }
        sl_exec_destroy(lane->exec);
    }
}
