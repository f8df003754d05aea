#include "kernels/embed_cuda.h"

#include "kernels/cuda.h"
#include "kernels/embed.h"

#include <inttypes.h>

/* Waits for the ids: they are few, and once a prompt. */
static sl_status check_ids(sl_exec *exec, const sl_tensor *ids, int64_t rows, sl_error *err)
{
    enum { PIECE = 1024 };
    int32_t piece[PIECE];

    for (int64_t first = 0; first < ids->dim[0]; first += PIECE) {
        const int64_t left = ids->dim[0] - first, count = left < PIECE ? left : PIECE;
        const sl_status status = sl_exec_read(exec, piece, (const int32_t *)ids->data + first,
                                              (size_t)count * sizeof *piece, err);
        if (status != SL_OK)
            return status;
        for (int64_t i = 0; i < count; i++)
            if (piece[i] < 0 || piece[i] >= rows)
                return sl_fail(err, SL_ERR_INVALID,
                               "embed_rows: id %" PRId32 " at position %" PRId64
                               ", expected 0 to %" PRId64,
                               piece[i], first + i, rows - 1);
    }
    return SL_OK;
}

sl_status sl_embed_rows_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *table,
                             const sl_tensor *ids, sl_error *err)
{
    sl_status status = sl_embed_rows_check(exec, y, table, ids, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status == SL_OK)
        status = check_ids(exec, ids, table->dim[0], err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "embed_rows",
                       sl_cuda_embed_rows(sl_cuda_stream(exec), y->data, y->dtype, table->data,
                                          table->dtype, ids->data, ids->dim[0], table->dim[1]),
                       err);
}

sl_status sl_sinusoid_cuda(sl_exec *exec, const sl_tensor *y, double t, sl_error *err)
{
    sl_status status = sl_sinusoid_check(exec, y, t, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "sinusoid",
                       sl_cuda_sinusoid(sl_cuda_stream(exec), y->data, y->dim[0] / 2, t), err);
}

sl_status sl_rel_bias_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *table, int64_t Sq,
                           int64_t Sk, sl_error *err)
{
    sl_status status = sl_rel_bias_check(exec, y, table, Sq, Sk, err);
    sl_cuda_buckets buckets;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    for (int i = 0; i <= 2 * SL_CUDA_BUCKETS_FAR; i++)
        buckets.of[i] = (unsigned char)sl_rel_bucket(i - SL_CUDA_BUCKETS_FAR);
    return sl_cuda_end(exec, "rel_bias",
                       sl_cuda_rel_bias(sl_cuda_stream(exec), y->data, table->data, table->dtype,
                                        &buckets, table->dim[1], Sq, Sk),
                       err);
}
