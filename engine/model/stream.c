/* stream.c - see stream.h.
 *
 * The thread copies in chunks and looks between them whether its block is
 * still wanted, so that a walk that begins anew waits for no stale copy.  Chunks of
 * one slot are in order whatever block they are of; a block is there when its last
 * one is.
 */
#include "engine/model/stream.h"

#include "base/clock.h"
#include "engine/model/component_layout.h"
#include "kernels/copy.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SLOTS = SL_STREAM_SLOTS, NONE = -1 };

#define CHUNK_BYTES ((size_t)4 << 20)

/* How often a waiting exec looks at its cancel word. */
#define CANCEL_POLL_NS (5 * SL_NS_PER_MS)

/* A tensor of a block: where it lies within a slot. */
typedef struct {
    sl_tensor *tensor;
    size_t offset;
} binding;

typedef struct {
    unsigned char *data;
    int64_t wanted, held; /* blocks, or NONE; the same when at rest */
} slot;

struct sl_weight_stream {
    sl_component_layout layout;
    const unsigned char *image;
    binding *bindings; /* in the order of the blocks */
    int64_t binding_count;
    int64_t first_binding[SL_MAX_LAYERS + 1]; /* of block i; the count behind the last */
    sl_copy *copy;                            /* the thread's */
    pthread_t thread;
    bool started;

    pthread_mutex_t lock;   /* guards what follows.  A slot's bytes belong to the thread
                               while held != wanted, else to the walker */
    pthread_cond_t work;    /* a slot's wanted has changed, or quit */
    pthread_cond_t arrived; /* a slot is ready */
    pthread_cond_t turn;    /* a pass has ended, or someone no longer waits for it */
    slot slots[SLOTS];
    int urgent;                 /* the slot to fill first */
    const sl_exec *walker;      /* whose pass is open */
    const sl_exec *last_walker; /* lets others go first */
    int waiting;                /* execs in begin */
    sl_error failure;           /* of the thread, which has then ended */
    bool quit;
};

/* ---- the thread ---- */

static bool is_due(const slot *s)
{
    return s->held != s->wanted;
}

static slot *due_slot(sl_weight_stream *s)
{
    for (int i = 0; i < SLOTS; i++) {
        slot *candidate = &s->slots[(s->urgent + i) % SLOTS];
        if (is_due(candidate))
            return candidate;
    }
    return NULL;
}

/* Lock held before and after; not while bytes are copied.  A failure is told to
 * whoever asks for a block. */
static void fill_slot(sl_weight_stream *s, slot *to)
{
    const int64_t block = to->wanted;
    const unsigned char *from = s->image + s->layout.block_first[block];
    const size_t size_bytes = s->layout.block_bytes[block];
    sl_error error = { .status = SL_OK };

    to->held = NONE;
    for (size_t copied = 0; copied < size_bytes;) {
        const size_t left = size_bytes - copied;
        const size_t count = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        sl_status status;

        pthread_mutex_unlock(&s->lock);
        status = sl_copy_push(s->copy, to->data + copied, from + copied, count, &error);
        if (status == SL_OK && copied + count == size_bytes)
            status = sl_copy_wait(s->copy, &error);
        pthread_mutex_lock(&s->lock);
        if (status != SL_OK) {
            s->failure = error;
            break;
        }
        copied += count;
        if (s->quit || to->wanted != block || (copied < size_bytes && due_slot(s) != to))
            return;
    }
    if (s->failure.status == SL_OK)
        to->held = block;
    pthread_cond_broadcast(&s->arrived);
}

static void *stream_main(void *arg)
{
    sl_weight_stream *s = arg;

    pthread_mutex_lock(&s->lock);
    while (!s->quit && s->failure.status == SL_OK) {
        slot *to = due_slot(s);

        if (to)
            fill_slot(s, to);
        else
            pthread_cond_wait(&s->work, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- passes ---- */

/* Waits a little; the lock is held.  False: cancelled. */
static bool wait_on(sl_weight_stream *s, pthread_cond_t *cond, const sl_exec *exec)
{
    struct timespec until;

    if (sl_exec_cancelled(exec))
        return false;
    const int64_t until_ns = sl_clock_deadline_ns(CANCEL_POLL_NS);
    until.tv_sec = (time_t)(until_ns / SL_NS_PER_S);
    until.tv_nsec = (long)(until_ns % SL_NS_PER_S);
    pthread_cond_timedwait(cond, &s->lock, &until);
    return true;
}

sl_status sl_block_pass_begin(sl_block_pass *pass, sl_weight_stream *stream, sl_exec *exec,
                              sl_error *err)
{
    sl_weight_stream *s = stream;
    bool cancelled = false;

    *pass = (sl_block_pass){ .stream = NULL };
    if (!s || sl_exec_is_counting(exec))
        return SL_OK;
    pthread_mutex_lock(&s->lock);
    s->waiting++;
    /* without the second rule the exec that ends a pass would mostly win the
     * next one too */
    while (!cancelled && (s->walker || (s->last_walker == exec && s->waiting > 1)))
        cancelled = !wait_on(s, &s->turn, exec);
    s->waiting--;
    if (cancelled)
        pthread_cond_broadcast(&s->turn);
    else
        s->walker = s->last_walker = exec;
    pthread_mutex_unlock(&s->lock);
    if (cancelled)
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    *pass = (sl_block_pass){ .stream = s, .exec = exec };
    return SL_OK;
}

/* The slot that has block i or will have it; the lock is held. */
static slot *request_block(sl_weight_stream *s, int64_t i)
{
    const int64_t next = (i + 1) % s->layout.block_count;
    slot *other;

    if (s->slots[0].wanted == i)
        s->urgent = 0;
    else if (s->slots[1].wanted == i)
        s->urgent = 1;
    else
        s->urgent = s->slots[0].wanted == next ? 1 : 0;
    s->slots[s->urgent].wanted = i;
    other = &s->slots[1 - s->urgent];
    if (next != i)
        other->wanted = next;
    pthread_cond_signal(&s->work);
    return &s->slots[s->urgent];
}

sl_status sl_block_pass_get(sl_block_pass *pass, int64_t i, sl_error *err)
{
    sl_weight_stream *s = pass->stream;
    bool cancelled = false;
    sl_status status;
    slot *ready;

    if (!s)
        return SL_OK;
    SL_ASSERT(i >= 0 && i < s->layout.block_count);
    status = sl_exec_wait(pass->exec, err); /* the other slot is overwritten from now on */
    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    SL_ASSERT(s->walker == pass->exec);
    ready = request_block(s, i);
    while (!cancelled && is_due(ready) && s->failure.status == SL_OK)
        cancelled = !wait_on(s, &s->arrived, pass->exec);
    status = s->failure.status;
    if (status != SL_OK && err)
        *err = s->failure;
    pthread_mutex_unlock(&s->lock);
    if (status != SL_OK)
        return sl_error_prefix(err, "could not stream block %" PRId64, i);
    if (cancelled)
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    for (int64_t b = s->first_binding[i]; b < s->first_binding[i + 1]; b++)
        s->bindings[b].tensor->data = ready->data + s->bindings[b].offset;
    return SL_OK;
}

void sl_block_pass_end(sl_block_pass *pass)
{
    sl_weight_stream *s = pass->stream;
    sl_error ignored = { .status = SL_OK };

    if (!s)
        return;
    /* A lost device is found again by whatever comes next. */
    (void)!sl_exec_wait(pass->exec, &ignored);
    pthread_mutex_lock(&s->lock);
    SL_ASSERT(s->walker == pass->exec);
    s->walker = NULL;
    pthread_cond_broadcast(&s->turn);
    pthread_mutex_unlock(&s->lock);
    *pass = (sl_block_pass){ .stream = NULL };
}

/* ---- life ---- */

static void init_conditions(sl_weight_stream *s)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->work, &attr);
    pthread_cond_init(&s->arrived, &attr);
    pthread_cond_init(&s->turn, &attr);
    pthread_condattr_destroy(&attr);
}

sl_status sl_weight_stream_create(sl_weight_stream **out, sl_device *device,
                                  const sl_component_layout *layout, const void *image,
                                  void *d_slots, sl_error *err)
{
    sl_weight_stream *s = calloc(1, sizeof *s);
    sl_status status;

    SL_ASSERT(layout->block_count > 0);
    if (s)
        s->bindings = calloc((size_t)layout->block_tensors, sizeof *s->bindings);
    if (!s || !s->bindings) {
        free(s);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for streaming %" PRId64 " blocks",
                       layout->block_count);
    }
    status = sl_copy_open(&s->copy, device, NULL, err);
    if (status != SL_OK) {
        free(s->bindings);
        free(s);
        return status;
    }
    init_conditions(s);
    s->layout = *layout;
    s->image = image;
    for (int i = 0; i < SLOTS; i++)
        s->slots[i] = (slot){ .data = (unsigned char *)d_slots + (size_t)i * layout->slot_bytes,
                              .wanted = NONE,
                              .held = NONE };
    *out = s;
    return SL_OK;
}

void sl_weight_stream_add(sl_weight_stream *stream, int64_t block, sl_tensor *tensor,
                          size_t image_offset)
{
    const size_t offset = image_offset - stream->layout.block_first[block];

    SL_ASSERT(stream->binding_count < stream->layout.block_tensors);
    stream->bindings[stream->binding_count++] = (binding){ .tensor = tensor, .offset = offset };
    stream->first_binding[block + 1] = stream->binding_count;
    tensor->data = stream->slots[0].data + offset; /* until the first get */
}

/* Signals are the process's own business: the thread takes none. */
sl_status sl_weight_stream_start(sl_weight_stream *stream, sl_error *err)
{
    sigset_t all, before;
    int rc;

    SL_ASSERT(stream->binding_count == stream->layout.block_tensors);
    stream->slots[0].wanted = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&stream->thread, NULL, stream_main, stream);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "could not start the thread that streams weights: %s",
                       strerror(rc));
    pthread_setname_np(stream->thread, "sl-stream");
    stream->started = true;
    return SL_OK;
}

void sl_weight_stream_destroy(sl_weight_stream *stream)
{
    if (!stream)
        return;
    pthread_mutex_lock(&stream->lock);
    SL_ASSERT(!stream->walker);
    stream->quit = true;
    pthread_cond_signal(&stream->work);
    pthread_mutex_unlock(&stream->lock);
    if (stream->started)
        pthread_join(stream->thread, NULL);
    sl_copy_close(stream->copy);
    pthread_cond_destroy(&stream->turn);
    pthread_cond_destroy(&stream->arrived);
    pthread_cond_destroy(&stream->work);
    pthread_mutex_destroy(&stream->lock);
    free(stream->bindings);
    free(stream);
}
