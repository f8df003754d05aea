#include "engine/model/synth_file.h"

#include "base/size.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/match.h"
#include "engine/model/synth.h"
#include "kernels/linear_int8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES SL_MIB

/* One shard on its way to the disk. */
typedef struct {
    sl_synth_run *run;
    const sl_synth_item *items; /* of this shard */
    int64_t count;
    sl_st_writer *writer;
    uint64_t seed;
    /* under run->lock: */
    sl_status status; /* of the first piece that failed */
    sl_error *err;
} shard_job;

/* ---- what is in a file ---- */

static sl_status add_item(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    sl_synth_list *list = arg;
    const sl_tensor t = sl_tensor_make(NULL, spec->file_dtype, spec->rank, spec->dim);
    sl_synth_item *it;

    if (spec->form == SL_FORM_DEVICE_ONLY)
        return SL_OK;
    if (list->count == list->capacity) {
        const int64_t grown = list->capacity ? list->capacity * 2 : 256;
        sl_synth_item *moved = reallocarray(list->items, (size_t)grown, sizeof *moved);

        if (!moved)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a list of %lld tensors",
                           (long long)grown);
        list->items = moved;
        list->capacity = grown;
    }
    it = &list->items[list->count++];
    *it = (sl_synth_item){ .dtype = spec->file_dtype, .rank = spec->rank };
    snprintf(it->name, sizeof it->name, "%s", spec->name);
    memcpy(it->dim, spec->dim, sizeof it->dim);
    it->count = sl_tensor_count(&t);
    it->size_bytes = sl_tensor_bytes(&t);
    it->is_scale = spec->form == SL_FORM_FILE_ONLY && spec->file_dtype == SL_F32;
    list->size_bytes += it->size_bytes;
    return SL_OK;
}

sl_status sl_synth_list_make(sl_synth_list *list, const sl_arch *arch, sl_component_kind kind,
                             sl_layout layout, sl_error *err)
{
    /* With F32 the codes of int8 linears are seen as what they are in the file. */
    const sl_component_spec spec = sl_component_spec_of(arch, kind, SL_PRECISION_F32);
    sl_status status;

    *list = (sl_synth_list){ .items = NULL };
    status = sl_component_visit(NULL, &spec, layout, add_item, list, err);
    sl_synth_list_shard(list, SIZE_MAX);
    return status;
}

void sl_synth_list_free(sl_synth_list *list)
{
    free(list->items);
    *list = (sl_synth_list){ .items = NULL };
}

/* Codes are made by 128 rows, which have one row of scales. */
static int64_t piece_count(const sl_synth_item *it)
{
    const int64_t most = (int64_t)(PIECE_BYTES / sl_dtype_bytes(it->dtype));

    if (it->is_scale)
        return 0;
    if (it->dtype == SL_I8)
        return (it->dim[0] + SL_INT8_TILE - 1) / SL_INT8_TILE;
    return (it->count + most - 1) / most;
}

void sl_synth_list_shard(sl_synth_list *list, size_t max_shard_bytes)
{
    size_t used = 0;
    int64_t pieces = 0;
    int shard = 0;

    for (int64_t i = 0; i < list->count; i++) {
        sl_synth_item *it = &list->items[i];

        if (used > 0 && used + it->size_bytes > max_shard_bytes && !it->is_scale) {
            shard++;
            used = 0;
            pieces = 0;
        }
        it->shard = shard;
        it->offset = used;
        it->first_piece = pieces;
        used += it->size_bytes;
        pieces += piece_count(it);
    }
    list->shard_count = shard + 1;
}

/* ---- making it ---- */

static sl_status write_values(const shard_job *job, const sl_synth_item *it, int64_t piece,
                              void *space, sl_error *err)
{
    const size_t element_bytes = sl_dtype_bytes(it->dtype);
    const int64_t most = (int64_t)(PIECE_BYTES / element_bytes), first = piece * most;
    const int64_t count = it->count - first < most ? it->count - first : most;
    int64_t fan_in = 1;

    for (int i = 1; i < it->rank; i++)
        fan_in *= it->dim[i];
    if (it->dtype == SL_BF16)
        sl_synth_bf16(space, it->name, job->seed, fan_in, first, count);
    else
        sl_synth_f32(space, it->name, job->seed, fan_in, first, count);
    return sl_st_writer_write_at(job->writer, it->offset + (size_t)first * element_bytes, space,
                                 (size_t)count * element_bytes, err);
}

/* The scales are the next tensor of the file.  Needs 3 bytes of space for each value,
 * and for a row's scales and one tile. */
static sl_status write_codes(const shard_job *job, const sl_synth_item *it, int64_t piece,
                             void *space, sl_error *err)
{
    const int64_t I = it->dim[1], first = piece * SL_INT8_TILE;
    const int64_t rows = it->dim[0] - first < SL_INT8_TILE ? it->dim[0] - first : SL_INT8_TILE;
    const size_t scale_bytes = (size_t)((I + SL_INT8_TILE - 1) / SL_INT8_TILE) * sizeof(float);
    float *tile = space, *scales = tile + SL_INT8_TILE * SL_INT8_TILE;
    uint16_t *values = (uint16_t *)(scales + scale_bytes / sizeof *scales);
    int8_t *codes = (int8_t *)(values + rows * I);
    const int stem = (int)(strrchr(it->name, '.') - it->name);
    char name[sizeof it->name + sizeof "weight"];
    sl_status status;

    SL_ASSERT((size_t)((const char *)(codes + rows * I) - (const char *)space) <=
              SL_CPU_WORKSPACE_PER_THREAD);
    snprintf(name, sizeof name, "%.*s.weight", stem, it->name);
    sl_synth_bf16(values, name, job->seed, I, first * I, rows * I);
    sl_quantize_int8_rows(codes, scales, values, rows, I, tile);
    status = sl_st_writer_write_at(job->writer, it->offset + (size_t)(first * I), codes,
                                   (size_t)(rows * I), err);
    if (status == SL_OK)
        status = sl_st_writer_write_at(job->writer, it[1].offset + (size_t)piece * scale_bytes,
                                       scales, scale_bytes, err);
    return status;
}

/* The tensor that a piece is of: the last that begins there or before, and has any. */
static const sl_synth_item *item_of(const shard_job *job, int64_t piece)
{
    int64_t low = 0, high = job->count; /* items[low] begins at or before, items[high] after */

    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (job->items[middle].first_piece <= piece)
            low = middle;
        else
            high = middle;
    }
    while (low > 0 && piece_count(&job->items[low]) == 0)
        low--;
    return &job->items[low];
}

/* An sl_tile_fn. */
static void make_piece(void *arg, int64_t piece, int thread, void *workspace)
{
    shard_job *job = arg;
    sl_synth_run *run = job->run;
    const sl_synth_item *it = item_of(job, piece);
    const int64_t pieces = piece_count(it), at = piece - it->first_piece;
    sl_error err = { .message = "" };

    (void)thread;
    pthread_mutex_lock(&run->lock);
    sl_status status = job->status;
    pthread_mutex_unlock(&run->lock);
    if (status != SL_OK)
        return;
    status = it->dtype == SL_I8 ? write_codes(job, it, at, workspace, &err)
                                : write_values(job, it, at, workspace, &err);
    pthread_mutex_lock(&run->lock);
    if (status != SL_OK && job->status == SL_OK) {
        job->status = status;
        if (job->err)
            *job->err = err;
    }
    /* In equal parts of the tensor, whose sum is the tensor. */
    run->done_bytes += it->size_bytes * (size_t)(at + 1) / (size_t)pieces -
                       it->size_bytes * (size_t)at / (size_t)pieces;
    if (it->dtype == SL_I8 && at + 1 == pieces)
        run->done_bytes += it[1].size_bytes;
    if (run->progress)
        run->progress(run->arg, run->done_bytes, run->total_bytes);
    pthread_mutex_unlock(&run->lock);
}

sl_status sl_synth_shard_write(sl_synth_run *run, const sl_synth_list *list, int shard,
                               const char *path, uint64_t seed, sl_error *err)
{
    shard_job job = { .run = run, .seed = seed, .status = SL_OK, .err = err };
    int64_t pieces = 0;
    sl_status status = sl_st_writer_create(&job.writer, path, err);

    for (int64_t i = 0; i < list->count && status == SL_OK; i++) {
        const sl_synth_item *it = &list->items[i];

        if (it->shard != shard)
            continue;
        if (!job.items)
            job.items = it;
        job.count++;
        pieces = it->first_piece + piece_count(it);
        status = sl_st_writer_declare(job.writer, it->name, it->dtype, it->rank, it->dim, err);
    }
    if (status == SL_OK)
        status = sl_st_writer_begin(job.writer, err);
    if (status == SL_OK)
        status = sl_pool_run(run->pool, pieces, make_piece, &job, err);
    if (status == SL_OK)
        status = job.status;
    if (status == SL_OK)
        status = sl_st_writer_finish(job.writer, err);
    sl_st_writer_destroy(job.writer);
    return status;
}
