#include "kernels/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One call of sl_pool_run. */
typedef struct {
    sl_tile_fn fn;
    void *arg;
    int64_t count;
    _Atomic int64_t next; /* the next tile to hand out */
} batch;

typedef struct {
    sl_pool *pool;
    int index; /* 1 and up: the caller is thread 0 */
    pthread_t thread;
} helper;

struct sl_pool {
    unsigned char *workspace;
    const atomic_uint *cancel; /* may be NULL */
    int thread_count;          /* helpers + 1 */
    int helper_count;          /* started */
    bool busy;                 /* caller's thread only: guards against nesting */
    batch batch;               /* fixed while helpers are at work */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;  /* generation or quit has changed */
    pthread_cond_t done;  /* working has become 0 */
    uint64_t generation;  /* one up for each batch */
    int working;          /* helpers that have not finished this generation */
    bool quit;
    helper helpers[SL_POOL_MAX_THREADS];
};

static bool cancelled(const sl_pool *pool)
{
    return pool->cancel && atomic_load_explicit(pool->cancel, memory_order_relaxed) != 0;
}

static void run_tiles(sl_pool *pool, int thread)
{
    batch *b = &pool->batch;
    unsigned char *workspace = pool->workspace + (size_t)thread * SL_CPU_WORKSPACE_PER_THREAD;

    while (!cancelled(pool)) {
        const int64_t i = atomic_fetch_add_explicit(&b->next, 1, memory_order_relaxed);
        if (i >= b->count)
            break;
        b->fn(b->arg, i, thread, workspace);
    }
}

static void *helper_main(void *arg)
{
    const helper *self = arg;
    sl_pool *pool = self->pool;
    uint64_t seen = 0;

    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (pool->generation == seen && !pool->quit)
            pthread_cond_wait(&pool->wake, &pool->lock);
        if (pool->quit)
            break;
        seen = pool->generation;
        pthread_mutex_unlock(&pool->lock);
        run_tiles(pool, self->index);
        pthread_mutex_lock(&pool->lock);
        if (--pool->working == 0)
            pthread_cond_signal(&pool->done);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Signals are the process's own business: helpers take none. */
static sl_status start_helpers(sl_pool *pool, sl_error *err)
{
    sl_status status = SL_OK;
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < pool->thread_count - 1; i++) {
        helper *h = &pool->helpers[i];
        char name[16];
        h->pool = pool;
        h->index = i + 1;
        const int rc = pthread_create(&h->thread, NULL, helper_main, h);
        if (rc != 0) {
            status = sl_fail(err, SL_ERR_NO_MEMORY, "could not start cpu thread %d of %d: %s",
                             h->index + 1, pool->thread_count, strerror(rc));
            break;
        }
        snprintf(name, sizeof name, "sl-cpu-%d", h->index);
        pthread_setname_np(h->thread, name);
        pool->helper_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

int sl_pool_online_cores(void)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);

    return cores < 1 ? 1 : cores > SL_POOL_MAX_THREADS ? SL_POOL_MAX_THREADS : (int)cores;
}

sl_status sl_pool_create(sl_pool **out, int threads, void *workspace, const atomic_uint *cancel,
                         sl_error *err)
{
    sl_pool *pool = calloc(1, sizeof *pool);
    sl_status status;

    SL_ASSERT(threads >= 1 && threads <= SL_POOL_MAX_THREADS);
    if (!pool)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an execution context");
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->workspace = workspace;
    pool->cancel = cancel;
    pool->thread_count = threads;
    status = start_helpers(pool, err);
    if (status == SL_OK) {
        *out = pool;
        pool = NULL; /* handed to the caller */
    }
    sl_pool_destroy(pool);
    return status;
}

void sl_pool_destroy(sl_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->quit = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->helper_count; i++)
        pthread_join(pool->helpers[i].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

int sl_pool_thread_count(const sl_pool *pool)
{
    return pool->thread_count;
}

static void run_batch(sl_pool *pool)
{
    /* A single tile is not worth waking anyone. */
    if (pool->helper_count == 0 || pool->batch.count == 1) {
        run_tiles(pool, 0);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->working = pool->helper_count;
    pool->generation++;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    run_tiles(pool, 0);
    pthread_mutex_lock(&pool->lock);
    while (pool->working != 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

sl_status sl_pool_run(sl_pool *pool, int64_t count, sl_tile_fn fn, void *arg, sl_error *err)
{
    SL_ASSERT(!pool->busy);
    if (count > 0 && !cancelled(pool)) {
        pool->busy = true;
        pool->batch.fn = fn;
        pool->batch.arg = arg;
        pool->batch.count = count;
        atomic_store_explicit(&pool->batch.next, 0, memory_order_relaxed);
        run_batch(pool);
        pool->busy = false;
    }
    if (cancelled(pool))
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    return SL_OK;
}
