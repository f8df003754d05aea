#include "kernels/exec.h"

#include "kernels/gemm.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_THREADS = 64 };

/* One call of sl_exec_parallel. */
typedef struct {
    sl_tile_fn fn;
    void *arg;
    int64_t count;
    _Atomic int64_t next; /* the next tile to hand out */
} batch;

typedef struct {
    sl_exec *exec;
    int index; /* 1 and up: the caller is thread 0 */
    pthread_t thread;
} helper;

struct sl_exec {
    bool counting;
    const atomic_uint *cancel; /* may be NULL */
    sl_region *workspace;
    int thread_count; /* helpers + 1 */
    int helper_count; /* started */
    bool busy;        /* caller's thread only: guards against nesting */
    batch batch;      /* fixed while helpers are at work */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;  /* generation or quit has changed */
    pthread_cond_t done;  /* working has become 0 */
    uint64_t generation;  /* one up for each batch */
    int working;          /* helpers that have not finished this generation */
    bool quit;
    helper helpers[MAX_THREADS];
};

static void run_tiles(sl_exec *exec, int thread)
{
    batch *b = &exec->batch;
    unsigned char *workspace = (unsigned char *)sl_region_data(exec->workspace) +
                               (size_t)thread * SL_CPU_WORKSPACE_PER_THREAD;

    while (!sl_exec_cancelled(exec)) {
        const int64_t i = atomic_fetch_add_explicit(&b->next, 1, memory_order_relaxed);
        if (i >= b->count)
            break;
        b->fn(b->arg, i, thread, workspace);
    }
}

static void *helper_main(void *arg)
{
    const helper *self = arg;
    sl_exec *exec = self->exec;
    uint64_t seen = 0;

    pthread_mutex_lock(&exec->lock);
    for (;;) {
        while (exec->generation == seen && !exec->quit)
            pthread_cond_wait(&exec->wake, &exec->lock);
        if (exec->quit)
            break;
        seen = exec->generation;
        pthread_mutex_unlock(&exec->lock);
        run_tiles(exec, self->index);
        pthread_mutex_lock(&exec->lock);
        if (--exec->working == 0)
            pthread_cond_signal(&exec->done);
    }
    pthread_mutex_unlock(&exec->lock);
    return NULL;
}

/* Signals are the process's own business: helpers take none. */
static sl_status start_helpers(sl_exec *exec, sl_error *err)
{
    sl_status status = SL_OK;
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < exec->thread_count - 1; i++) {
        helper *h = &exec->helpers[i];
        char name[16];
        h->exec = exec;
        h->index = i + 1;
        const int rc = pthread_create(&h->thread, NULL, helper_main, h);
        if (rc != 0) {
            status = sl_fail(err, SL_ERR_NO_MEMORY, "could not start cpu thread %d of %d: %s",
                             h->index + 1, exec->thread_count, strerror(rc));
            break;
        }
        snprintf(name, sizeof name, "sl-cpu-%d", h->index);
        pthread_setname_np(h->thread, name);
        exec->helper_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

static int online_cores(void)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);

    return cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores;
}

static sl_exec *exec_alloc(void)
{
    sl_exec *exec = calloc(1, sizeof *exec);

    if (!exec)
        return NULL;
    pthread_mutex_init(&exec->lock, NULL);
    pthread_cond_init(&exec->wake, NULL);
    pthread_cond_init(&exec->done, NULL);
    exec->thread_count = 1;
    return exec;
}

sl_status sl_exec_create_cpu(sl_exec **out, sl_device *device, int threads,
                             const atomic_uint *cancel, sl_error *err)
{
    sl_status status = SL_OK;
    sl_exec *exec = NULL;

    if (threads < 0 || threads > MAX_THREADS) {
        status = sl_fail(err, SL_ERR_INVALID, "%d cpu threads: expected 0 (one per core) to %d",
                         threads, MAX_THREADS);
        goto done;
    }
    exec = exec_alloc();
    if (!exec) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an execution context");
        goto done;
    }
    exec->cancel = cancel;
    exec->thread_count = threads ? threads : online_cores();

    const size_t size_bytes = (size_t)exec->thread_count * SL_CPU_WORKSPACE_PER_THREAD;
    status = sl_region_create(&exec->workspace, device, "workspace", size_bytes, err);
    if (status == SL_OK)
        status = sl_region_map(exec->workspace, size_bytes, err);
    if (status == SL_OK)
        status = start_helpers(exec, err);
    if (status != SL_OK)
        goto done;
    /* Tiles are our unit of parallel work; the library runs inside of one. */
    sl_gemm_set_threads(1);
    *out = exec;
    exec = NULL; /* handed to the caller */
done:
    sl_exec_destroy(exec);
    return status;
}

sl_status sl_exec_create_counting(sl_exec **out, sl_error *err)
{
    sl_exec *exec = exec_alloc();

    if (!exec)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an execution context");
    exec->counting = true;
    *out = exec;
    return SL_OK;
}

void sl_exec_destroy(sl_exec *exec)
{
    if (!exec)
        return;
    pthread_mutex_lock(&exec->lock);
    exec->quit = true;
    pthread_cond_broadcast(&exec->wake);
    pthread_mutex_unlock(&exec->lock);
    for (int i = 0; i < exec->helper_count; i++)
        pthread_join(exec->helpers[i].thread, NULL);
    sl_region_destroy(exec->workspace);
    pthread_cond_destroy(&exec->done);
    pthread_cond_destroy(&exec->wake);
    pthread_mutex_destroy(&exec->lock);
    free(exec);
}

bool sl_exec_is_counting(const sl_exec *exec)
{
    return exec->counting;
}

size_t sl_exec_workspace_bytes(const sl_exec *exec)
{
    return exec->workspace ? sl_region_mapped_bytes(exec->workspace) : 0;
}

int sl_exec_thread_count(const sl_exec *exec)
{
    return exec->thread_count;
}

bool sl_exec_cancelled(const sl_exec *exec)
{
    return exec->cancel && atomic_load_explicit(exec->cancel, memory_order_relaxed) != 0;
}

sl_status sl_exec_write(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                        sl_error *err)
{
    (void)err; /* a copy between host addresses cannot fail */
    if (!exec->counting && size_bytes)
        memcpy(d_dst, src, size_bytes);
    return SL_OK;
}

sl_status sl_exec_read(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                       sl_error *err)
{
    (void)err;
    if (!exec->counting && size_bytes)
        memcpy(dst, d_src, size_bytes);
    return SL_OK;
}

static void run_batch(sl_exec *exec)
{
    /* A single tile is not worth waking anyone. */
    if (exec->helper_count == 0 || exec->batch.count == 1) {
        run_tiles(exec, 0);
        return;
    }
    pthread_mutex_lock(&exec->lock);
    exec->working = exec->helper_count;
    exec->generation++;
    pthread_cond_broadcast(&exec->wake);
    pthread_mutex_unlock(&exec->lock);
    run_tiles(exec, 0);
    pthread_mutex_lock(&exec->lock);
    while (exec->working != 0)
        pthread_cond_wait(&exec->done, &exec->lock);
    pthread_mutex_unlock(&exec->lock);
}

sl_status sl_exec_parallel(sl_exec *exec, int64_t count, sl_tile_fn fn, void *arg, sl_error *err)
{
    if (exec->counting)
        return SL_OK;
    SL_ASSERT(!exec->busy);
    if (count > 0 && !sl_exec_cancelled(exec)) {
        exec->busy = true;
        exec->batch.fn = fn;
        exec->batch.arg = arg;
        exec->batch.count = count;
        atomic_store_explicit(&exec->batch.next, 0, memory_order_relaxed);
        run_batch(exec);
        exec->busy = false;
    }
    if (sl_exec_cancelled(exec))
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    return SL_OK;
}
