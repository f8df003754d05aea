/* component_fill.c - see component_fill.h.
 *
 * A tensor is cut in tiles, each the work of one thread.  For a card as many tiles
 * as a buffer holds make a group; groups are filled and copied in turn.
 */
#include "engine/model/component_fill.h"

#include "engine/model/convert.h"
#include "kernels/linear_fp8.h"
#include "kernels/linear_int8.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

/* Elements of one tile of work: some milliseconds from a disk, and small enough
 * for a thread's workspace in any dtype.  Smaller tiles of several threads break
 * the kernel's read-ahead (docs/SPEED.md). */
#define TILE_ELEMENTS ((int64_t)1 << 20)

/* The same for plain copies. */
#define COPY_TILE_BYTES ((size_t)4 << 20)

/* Enough tiles of the largest kind to keep some sixteen threads busy. */
#define BUFFER_BYTES ((size_t)64 << 20)

sl_status sl_fill_init(sl_fill *out, sl_device *device, sl_exec *exec, sl_error *err)
{
    sl_fill fill = { .exec = exec, .device = device };
    sl_status status = SL_OK;

    if (!device || sl_device_get_spec(device)->kind == SL_DEVICE_CPU) {
        *out = fill;
        return SL_OK;
    }
    for (int i = 0; i < SL_FILL_BUFFERS && status == SL_OK; i++) {
        void *buffer =
            mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (buffer == MAP_FAILED) {
            status = sl_fail_errno(err, "could not map %zu bytes on their way to the device",
                                   BUFFER_BYTES);
            break;
        }
        fill.buffers[i] = buffer;
        status = sl_host_offer(device, buffer, BUFFER_BYTES, err);
    }
    if (status == SL_OK)
        status = sl_exec_open_copy(&fill.copy, exec, err);
    if (status == SL_OK)
        *out = fill;
    else
        sl_fill_fini(&fill);
    return status;
}

void sl_fill_fini(sl_fill *fill)
{
    sl_copy_close(fill->copy);
    for (int i = 0; i < SL_FILL_BUFFERS; i++)
        if (fill->buffers[i]) {
            sl_host_withdraw(fill->device, fill->buffers[i]);
            munmap(fill->buffers[i], BUFFER_BYTES);
        }
    *fill = (sl_fill){ .exec = NULL };
}

sl_status sl_fill_wait(sl_fill *fill, sl_error *err)
{
    return fill->copy ? sl_copy_wait(fill->copy, err) : SL_OK;
}

/* A buffer whose last copy is done. */
static sl_status take_buffer(sl_fill *fill, int *out, sl_error *err)
{
    const int i = fill->next;

    fill->next = (i + 1) % SL_FILL_BUFFERS;
    *out = i;
    return sl_copy_wait_to(fill->copy, fill->copied[i], err);
}

/* ---- tensors of a file ---- */

/* One tensor on its way, or the group of its tiles that is under way. */
typedef struct {
    const sl_ckpt *ckpt;
    const sl_ckpt_tensor *from;
    const sl_tensor *to;   /* its form; not its place */
    unsigned char *out;    /* where tile first_tile goes: host memory */
    unsigned char *scales; /* int8: the same of its scales */
    int64_t scale_count;   /* int8: of a tile */
    int64_t first_tile;    /* of the group */
    int64_t tile_elements; /* of both sides */
    int64_t count;         /* elements of the tensor */
    atomic_flag failed;    /* the first to fail writes error */
    sl_error error;
} transfer;

static void fail_tile(transfer *t, const sl_error *error)
{
    if (!atomic_flag_test_and_set(&t->failed))
        t->error = *error;
}

/* Reads into the thread's workspace, then converts into host memory; what needs no
 * conversion is read right there. */
static void transfer_tile(void *arg, int64_t i, int thread, void *workspace)
{
    transfer *t = arg;
    const sl_tensor *from = &t->from->tensor, *to = t->to;
    const size_t element_bytes = sl_dtype_bytes(from->dtype);
    const int64_t first = (t->first_tile + i) * t->tile_elements;
    const int64_t left = t->count - first;
    const int64_t count = left < t->tile_elements ? left : t->tile_elements;
    unsigned char *out = t->out + (size_t)(i * t->tile_elements) * sl_dtype_bytes(to->dtype);
    const bool as_it_is = from->dtype == to->dtype && to->rank != 5;
    sl_error error = { .status = SL_OK };

    (void)thread;
    if (sl_ckpt_read(t->ckpt, t->from, (size_t)first * element_bytes, as_it_is ? out : workspace,
                     (size_t)count * element_bytes, &error) != SL_OK) {
        fail_tile(t, &error);
        return;
    }
    if (as_it_is)
        return;
    if (to->rank == 5) /* channels last: a tile is one output channel */
        sl_convert_channels_last(out, to->dtype, workspace, from->dtype, to->dim[4],
                                 to->dim[1] * to->dim[2] * to->dim[3]);
    else
        sl_convert(out, to->dtype, workspace, from->dtype, count);
}

/* A tile is 128 rows: as bf16, which is what is quantised, and behind them room for
 * some rows of the file. */
static void quantize_tile(void *arg, int64_t i, int thread, void *workspace)
{
    transfer *t = arg;
    const sl_tensor *from = &t->from->tensor;
    const int64_t I = t->to->dim[1], first = (t->first_tile + i) * SL_INT8_TILE;
    const int64_t left = t->to->dim[0] - first, rows = left < SL_INT8_TILE ? left : SL_INT8_TILE;
    const size_t row_bytes = (size_t)I * sl_dtype_bytes(from->dtype);
    uint16_t *rounded = workspace;
    unsigned char *space = (unsigned char *)(rounded + SL_INT8_TILE * I);
    unsigned char *some = space + SL_QUANTIZE_INT8_SPACE_BYTES;
    const size_t room = SL_CPU_WORKSPACE_PER_THREAD - (size_t)(some - (unsigned char *)workspace);
    const int64_t most = (int64_t)(room / row_bytes);
    sl_error error = { .status = SL_OK };

    (void)thread;
    for (int64_t r = 0; r < rows; r += most) {
        const int64_t count = rows - r < most ? rows - r : most;

        if (sl_ckpt_read(t->ckpt, t->from, (size_t)(first + r) * row_bytes, some,
                         (size_t)count * row_bytes, &error) != SL_OK) {
            fail_tile(t, &error);
            return;
        }
        sl_convert(rounded + r * I, SL_BF16, some, from->dtype, count * I);
    }
    float *scales = (float *)(void *)t->scales + i * t->scale_count;
    if (t->to->dtype == SL_F8_E4M3)
        sl_quantize_fp8_rows((uint8_t *)t->out + i * t->tile_elements, scales, rounded, rows, I);
    else
        sl_quantize_int8_rows((int8_t *)t->out + i * t->tile_elements, scales, rounded, rows, I,
                              space);
}

/* Tiles [first, first + count) into host memory. */
static sl_status run_tiles(sl_exec *exec, transfer *t, sl_tile_fn fn, int64_t first, int64_t count,
                           sl_error *err)
{
    sl_status status;

    t->first_tile = first;
    status = sl_exec_parallel(exec, count, fn, t, err);
    if (status == SL_OK && t->error.status != SL_OK) {
        status = t->error.status;
        if (err)
            *err = t->error;
    }
    return status;
}

/* By way of the buffers: scales in front, codes behind them. */
static sl_status run_groups(sl_fill *fill, transfer *t, sl_tile_fn fn, const sl_tensor *scale,
                            int64_t tiles, sl_error *err)
{
    const size_t tile_bytes = (size_t)t->tile_elements * sl_dtype_bytes(t->to->dtype);
    const size_t scale_bytes = (size_t)t->scale_count * sizeof(float);
    const size_t total_bytes = sl_tensor_bytes(t->to);
    const int64_t most = (int64_t)((BUFFER_BYTES - SL_SCRATCH_ALIGN) / (tile_bytes + scale_bytes));
    sl_status status = SL_OK;

    SL_ASSERT(most > 0);
    for (int64_t first = 0; first < tiles && status == SL_OK; first += most) {
        const int64_t count = tiles - first < most ? tiles - first : most;
        const size_t at = (size_t)first * tile_bytes, left = total_bytes - at;
        const size_t bytes = left < (size_t)count * tile_bytes ? left : (size_t)count * tile_bytes;
        const size_t front =
            ((size_t)count * scale_bytes + SL_SCRATCH_ALIGN - 1) & ~(SL_SCRATCH_ALIGN - 1);
        int buffer = 0;

        status = take_buffer(fill, &buffer, err);
        if (status != SL_OK)
            break;
        t->scales = fill->buffers[buffer];
        t->out = fill->buffers[buffer] + front;
        status = run_tiles(fill->exec, t, fn, first, count, err);
        if (status == SL_OK)
            status =
                sl_copy_push(fill->copy, (unsigned char *)t->to->data + at, t->out, bytes, err);
        if (status == SL_OK && scale)
            status =
                sl_copy_push(fill->copy, (unsigned char *)scale->data + (size_t)first * scale_bytes,
                             t->scales, (size_t)count * scale_bytes, err);
        fill->copied[buffer] = sl_copy_mark(fill->copy);
    }
    return status;
}

static sl_status run_transfer(sl_fill *fill, transfer *t, sl_tile_fn fn, const sl_tensor *scale,
                              sl_error *err)
{
    const int64_t tiles = (t->count + t->tile_elements - 1) / t->tile_elements;

    sl_ckpt_will_need(t->ckpt, t->from);
    if (fill->copy)
        return run_groups(fill, t, fn, scale, tiles, err);
    t->out = t->to->data;
    t->scales = scale ? scale->data : NULL;
    return run_tiles(fill->exec, t, fn, 0, tiles, err);
}

sl_status sl_fill_tensor(sl_fill *fill, const sl_ckpt *ckpt, const sl_ckpt_tensor *from,
                         const sl_tensor *to, sl_error *err)
{
    transfer t = { .ckpt = ckpt,
                   .from = from,
                   .to = to,
                   .count = sl_tensor_count(to),
                   .failed = ATOMIC_FLAG_INIT };

    t.tile_elements = to->rank == 5 ? t.count / to->dim[0] : TILE_ELEMENTS;
    SL_ASSERT((size_t)t.tile_elements <= SL_CPU_WORKSPACE_PER_THREAD / sizeof(double));
    return run_transfer(fill, &t, transfer_tile, NULL, err);
}

sl_status sl_fill_int8(sl_fill *fill, const sl_ckpt *ckpt, const sl_ckpt_tensor *from,
                       const sl_tensor *to, const sl_tensor *scale, sl_error *err)
{
    transfer t = { .ckpt = ckpt,
                   .from = from,
                   .to = to,
                   .scale_count = scale->dim[1],
                   .tile_elements = SL_INT8_TILE * to->dim[1],
                   .count = sl_tensor_count(to),
                   .failed = ATOMIC_FLAG_INIT };

    return run_transfer(fill, &t, quantize_tile, scale, err);
}

/* ---- bytes ---- */

typedef struct {
    unsigned char *to;
    const unsigned char *from; /* NULL: zeros */
    size_t size_bytes;
} copy_job;

static void copy_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const copy_job *c = arg;
    const size_t first = (size_t)i * COPY_TILE_BYTES, left = c->size_bytes - first;
    const size_t count = left < COPY_TILE_BYTES ? left : COPY_TILE_BYTES;

    (void)thread, (void)workspace;
    if (c->from)
        memcpy(c->to + first, c->from + first, count);
    else
        memset(c->to + first, 0, count);
}

static sl_status run_copy(sl_fill *fill, copy_job *c, sl_error *err)
{
    return sl_exec_parallel(fill->exec,
                            (int64_t)((c->size_bytes + COPY_TILE_BYTES - 1) / COPY_TILE_BYTES),
                            copy_tile, c, err);
}

sl_status sl_fill_copy(sl_fill *fill, void *to, const void *from, size_t size_bytes, sl_error *err)
{
    copy_job c = { .to = to, .from = from, .size_bytes = size_bytes };

    return fill->copy ? sl_copy_push(fill->copy, to, from, size_bytes, err)
                      : run_copy(fill, &c, err);
}

sl_status sl_fill_zero(sl_fill *fill, void *to, size_t size_bytes, sl_error *err)
{
    copy_job c = { .to = to, .size_bytes = size_bytes };
    sl_status status = SL_OK;

    if (!fill->copy)
        return run_copy(fill, &c, err);
    for (size_t at = 0; at < size_bytes && status == SL_OK; at += BUFFER_BYTES) {
        const size_t left = size_bytes - at, bytes = left < BUFFER_BYTES ? left : BUFFER_BYTES;
        int buffer = 0;

        status = take_buffer(fill, &buffer, err);
        if (status != SL_OK)
            break;
        memset(fill->buffers[buffer], 0, bytes);
        status =
            sl_copy_push(fill->copy, (unsigned char *)to + at, fill->buffers[buffer], bytes, err);
        fill->copied[buffer] = sl_copy_mark(fill->copy);
    }
    return status;
}
