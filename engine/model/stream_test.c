/* Walks over streamed blocks: each finds its bytes, whatever was there before,
 * whoever else walks, and however the walk before ended. */
#include "engine/model/stream.h"

#include "base/clock.h"
#include "base/size.h"
#include "base/test.h"
#include "engine/model/component_layout.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

/* Blocks of more than two chunks of a copy, behind a part that is no block. */
enum { BLOCKS = 5, TENSORS = 2, HEAD_BYTES = 256, BLOCK_BYTES = 9 << 20, TAIL = 512 };

/* Copies from here fail. */
static const void *_Atomic failing_block;

sl_status __real_sl_copy_push(sl_copy *copy, void *d_dst, const void *src, size_t size_bytes,
                              sl_error *err);
sl_status __wrap_sl_copy_push(sl_copy *copy, void *d_dst, const void *src, size_t size_bytes,
                              sl_error *err);
sl_status __wrap_sl_copy_push(sl_copy *copy, void *d_dst, const void *src, size_t size_bytes,
                              sl_error *err)
{
    if (src == failing_block)
        return sl_fail(err, SL_ERR_DEVICE, "the bus is on fire");
    return __real_sl_copy_push(copy, d_dst, src, size_bytes, err);
}

typedef struct {
    sl_device *device;
    sl_exec *exec[2];
    atomic_uint cancel[2];
    sl_component_layout layout;
    unsigned char *image, *slots;
    sl_tensor tensors[BLOCKS][TENSORS];
    sl_weight_stream *stream;
} fixture;

static unsigned char pattern(int64_t block, size_t at)
{
    return (unsigned char)(block * 41 + (int64_t)(at / 4096) * 7 + (int64_t)at);
}

static void pause_ms(int ms)
{
    const struct timespec t = { .tv_nsec = ms * (long)SL_NS_PER_MS };

    nanosleep(&t, NULL);
}

static void open_fixture(fixture *f, int64_t block_count)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = SL_GIB };

    memset(f, 0, sizeof *f);
    SL_CHECK_OK(sl_device_create(&f->device, &spec, err));
    for (int i = 0; i < 2; i++)
        SL_CHECK_OK(sl_exec_create_cpu(&f->exec[i], f->device, 1, &f->cancel[i], err));
    f->layout.block_count = block_count;
    f->layout.block_tensors = block_count * TENSORS;
    f->image = malloc(HEAD_BYTES + (size_t)block_count * BLOCK_BYTES);
    f->layout.slot_bytes = BLOCK_BYTES;
    f->slots = malloc((size_t)2 * BLOCK_BYTES);
    SL_CHECK(f->image && f->slots);
    memset(f->slots, 0xff, (size_t)2 * BLOCK_BYTES);
    for (int64_t i = 0; i < block_count; i++) {
        f->layout.block_first[i] = HEAD_BYTES + (size_t)i * BLOCK_BYTES;
        f->layout.block_bytes[i] = BLOCK_BYTES;
        for (size_t at = 0; at < BLOCK_BYTES; at++)
            f->image[f->layout.block_first[i] + at] = pattern(i, at);
    }
    SL_CHECK_OK(
        sl_weight_stream_create(&f->stream, f->device, &f->layout, f->image, f->slots, err));
    for (int64_t i = 0; i < block_count; i++)
        for (int t = 0; t < TENSORS; t++)
            sl_weight_stream_add(f->stream, i, &f->tensors[i][t],
                                 f->layout.block_first[i] + (t ? BLOCK_BYTES - TAIL : 0));
    SL_CHECK_OK(sl_weight_stream_start(f->stream, err));
}

static void close_fixture(fixture *f)
{
    sl_weight_stream_destroy(f->stream);
    free(f->slots);
    free(f->image);
    for (int i = 0; i < 2; i++)
        sl_exec_destroy(f->exec[i]);
    sl_device_destroy(f->device);
}

/* Every page of the block, and its end. */
static bool block_is(const fixture *f, int64_t i)
{
    const unsigned char *first = f->tensors[i][0].data, *last = f->tensors[i][1].data;

    if (last != first + BLOCK_BYTES - TAIL)
        return false;
    for (size_t at = 0; at < BLOCK_BYTES; at += 509)
        if (first[at] != pattern(i, at))
            return false;
    return last[TAIL - 1] == pattern(i, BLOCK_BYTES - 1);
}

SL_TEST(walks_find_their_blocks)
{
    sl_block_pass pass;
    fixture f;

    for (int64_t count = 1; count <= BLOCKS; count += 2) {
        open_fixture(&f, count);
        for (int walk = 0; walk < 3; walk++) {
            SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
            for (int64_t i = 0; i < count; i++) {
                SL_CHECK_OK(sl_block_pass_get(&pass, i, err));
                SL_CHECK(block_is(&f, i));
                SL_CHECK_OK(sl_block_pass_get(&pass, i, err)); /* again: no other place */
                SL_CHECK(block_is(&f, i));
            }
            sl_block_pass_end(&pass);
            sl_block_pass_end(&pass); /* nothing */
        }
        close_fixture(&f);
    }
}

SL_TEST(any_order_is_right)
{
    uint64_t state = 5;
    sl_block_pass pass;
    fixture f;

    open_fixture(&f, BLOCKS);
    SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
    for (int n = 0; n < 60; n++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const int64_t i = (int64_t)(state >> 33) % BLOCKS;

        SL_CHECK_OK(sl_block_pass_get(&pass, i, err));
        SL_CHECK(block_is(&f, i));
        if (n % 7 == 0) { /* amid the blocks */
            sl_block_pass_end(&pass);
            SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[n % 2], err));
        }
        if (n % 3 == 0)
            pause_ms(1); /* the next block is somewhere under way */
    }
    sl_block_pass_end(&pass);
    close_fixture(&f);
}

/* With the cancel word set nothing may wait: get succeeds only because the
 * block has come while nobody asked. */
SL_TEST(blocks_come_ahead)
{
    sl_block_pass pass;
    fixture f;

    open_fixture(&f, BLOCKS);
    SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
    SL_CHECK_OK(sl_block_pass_get(&pass, 0, err));
    for (int n = 1; n < 2 * BLOCKS; n++) { /* also from the last to the first */
        const int64_t i = n % BLOCKS;
        sl_status status = SL_ERR_CANCELLED;

        atomic_store(&f.cancel[0], 1);
        for (int tries = 0; tries < 5000 && status == SL_ERR_CANCELLED; tries++) {
            status = sl_block_pass_get(&pass, i, err);
            pause_ms(1);
        }
        SL_CHECK_OK(status);
        SL_CHECK(block_is(&f, i));
    }
    sl_block_pass_end(&pass);
    close_fixture(&f);
}

static void *cancel_soon(void *arg)
{
    pause_ms(30);
    atomic_store((atomic_uint *)arg, 1);
    return NULL;
}

SL_TEST(cancel_ends_waiting)
{
    sl_block_pass pass, other;
    pthread_t thread;
    fixture f;

    open_fixture(&f, BLOCKS);
    SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
    SL_CHECK_OK(sl_block_pass_get(&pass, 0, err));
    /* for a block that is not even next */
    atomic_store(&f.cancel[0], 1);
    SL_CHECK_STATUS(sl_block_pass_get(&pass, 3, err), SL_ERR_CANCELLED);
    atomic_store(&f.cancel[0], 0);
    /* for one's turn */
    SL_CHECK(pthread_create(&thread, NULL, cancel_soon, &f.cancel[1]) == 0);
    SL_CHECK_STATUS(sl_block_pass_begin(&other, f.stream, f.exec[1], err), SL_ERR_CANCELLED);
    pthread_join(thread, NULL);
    sl_block_pass_end(&other); /* it has not begun */
    SL_CHECK_OK(sl_block_pass_get(&pass, 1, err));
    SL_CHECK(block_is(&f, 1));
    sl_block_pass_end(&pass);
    /* nobody is left waiting in front of us */
    SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
    sl_block_pass_end(&pass);
    close_fixture(&f);
}

typedef struct {
    fixture *f;
    int lane;
    atomic_int walks; /* begun */
    bool good;
} walker;

static void *walk(void *arg)
{
    walker *w = arg;
    sl_block_pass pass;

    w->good = true;
    for (int n = 0; n < 4 && w->good; n++) {
        w->good = sl_block_pass_begin(&pass, w->f->stream, w->f->exec[w->lane], NULL) == SL_OK;
        atomic_fetch_add(&w->walks, 1);
        for (int64_t i = 0; i < BLOCKS && w->good; i++)
            w->good = sl_block_pass_get(&pass, i, NULL) == SL_OK && block_is(w->f, i);
        sl_block_pass_end(&pass);
    }
    return NULL;
}

SL_TEST(execs_walk_one_at_a_time)
{
    walker walkers[2];
    pthread_t threads[2];
    fixture f;

    open_fixture(&f, BLOCKS);
    for (int i = 0; i < 2; i++) {
        walkers[i] = (walker){ .f = &f, .lane = i };
        SL_CHECK(pthread_create(&threads[i], NULL, walk, &walkers[i]) == 0);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++)
        SL_CHECK(walkers[i].good);
    close_fixture(&f);
}

/* An exec that begins again at once does not overtake one that waits.  (A lane
 * that has not come to wait yet may be overtaken: hence some tries.) */
SL_TEST(who_waits_goes_first)
{
    sl_block_pass pass;
    pthread_t thread;
    walker w;
    fixture f;
    int tries = 0;

    open_fixture(&f, BLOCKS);
    w = (walker){ .f = &f, .lane = 1 };
    SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
    SL_CHECK(pthread_create(&thread, NULL, walk, &w) == 0);
    do {
        pause_ms(20);
        sl_block_pass_end(&pass);
        SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
    } while (atomic_load(&w.walks) == 0 && ++tries < 10);
    SL_CHECK(atomic_load(&w.walks) == 1);
    sl_block_pass_end(&pass);
    pthread_join(thread, NULL);
    SL_CHECK(w.good);
    close_fixture(&f);
}

SL_TEST(ends_while_copying)
{
    sl_block_pass pass;
    fixture f;

    for (int n = 0; n < 8; n++) {
        open_fixture(&f, 2);
        if (n % 2) {
            SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
            SL_CHECK_OK(sl_block_pass_get(&pass, 0, err));
            sl_block_pass_end(&pass);
        }
        if (n % 4 > 1)
            pause_ms(1);
        close_fixture(&f);
    }
}

SL_TEST(nothing_to_do_without_a_stream)
{
    sl_exec *counting;
    sl_block_pass pass;
    fixture f;

    SL_CHECK_OK(sl_exec_create_counting(&counting, NULL, err));
    open_fixture(&f, 2);
    SL_CHECK_OK(sl_block_pass_begin(&pass, NULL, f.exec[0], err));
    SL_CHECK_OK(sl_block_pass_get(&pass, 63, err));
    sl_block_pass_end(&pass);
    SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, counting, err));
    SL_CHECK_OK(sl_block_pass_get(&pass, 1, err));
    SL_CHECK(f.tensors[1][0].data == f.slots); /* an address, but nobody moved it */
    sl_block_pass_end(&pass);
    close_fixture(&f);
    sl_exec_destroy(counting);
    sl_weight_stream_destroy(NULL);
}

/* The copy of block 2 fails: block 1 may still be given, block 2 is not, and nothing
 * after it. */
SL_TEST(a_failed_copy_is_told)
{
    sl_status status = SL_OK;
    sl_block_pass pass;
    fixture f;
    int64_t i = 0;

    failing_block = NULL;
    open_fixture(&f, BLOCKS);
    failing_block = f.image + f.layout.block_first[2];
    SL_CHECK_OK(sl_block_pass_begin(&pass, f.stream, f.exec[0], err));
    for (; i < BLOCKS && status == SL_OK; i++)
        status = sl_block_pass_get(&pass, i, err);
    SL_CHECK(status == SL_ERR_DEVICE && i - 1 >= 1 && i - 1 <= 2);
    SL_CHECK(strstr(err->message, "could not stream block") &&
             strstr(err->message, "the bus is on fire"));
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_block_pass_get(&pass, 0, err), SL_ERR_DEVICE);
    sl_block_pass_end(&pass);
    failing_block = NULL;
    close_fixture(&f);
}

SL_TEST_MAIN(SL_RUN(walks_find_their_blocks), SL_RUN(any_order_is_right), SL_RUN(blocks_come_ahead),
             SL_RUN(cancel_ends_waiting), SL_RUN(execs_walk_one_at_a_time),
             SL_RUN(who_waits_goes_first), SL_RUN(ends_while_copying),
             SL_RUN(nothing_to_do_without_a_stream), SL_RUN(a_failed_copy_is_told))
