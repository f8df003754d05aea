#include "kernels/embed.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    BUCKETS = 32,
    F32 = SL_BIT(SL_F32),
    F32_BF16 = SL_BIT(SL_F32) | SL_BIT(SL_BF16),
};

/* --- embed_rows --- */

typedef struct {
    const sl_tensor *y, *table, *ids;
} rows_job;

sl_status sl_embed_rows_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *table,
                              const sl_tensor *ids, sl_error *err)
{
    const char *op = "embed_rows";
    sl_status status = SL_OP_EXPECT(op, "table", table, F32_BF16, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "ids", ids, SL_BIT(SL_I32), err, 1, -1);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "y", y, SL_BITS_ACTIVATION, err, 2, ids->dim[0], table->dim[1]);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", y, "table", table, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", y, "ids", ids, err);
    return status;
}

static void embed_tile(void *arg, int64_t s, int thread, void *workspace)
{
    const rows_job *j = arg;
    const int64_t C = j->table->dim[1];
    const int64_t row = ((const int32_t *)j->ids->data)[s];
    float *y = (float *)j->y->data + s * C;

    (void)thread, (void)workspace;
    if (j->table->dtype == SL_F32)
        memcpy(y, (const float *)j->table->data + row * C, (size_t)C * sizeof *y);
    else
        sl_upcast_bf16(y, (const uint16_t *)j->table->data + row * C, C);
}

sl_status sl_embed_rows_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *table,
                            const sl_tensor *ids, sl_error *err)
{
    sl_status status = sl_embed_rows_check(exec, y, table, ids, err);
    rows_job j = { .y = y, .table = table, .ids = ids };

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("embed_rows", err, y);
    if (status != SL_OK)
        return status;
    for (int64_t s = 0; s < ids->dim[0]; s++) {
        const int32_t id = ((const int32_t *)ids->data)[s];
        if (id < 0 || id >= table->dim[0])
            return sl_fail(err, SL_ERR_INVALID,
                           "embed_rows: id %" PRId32 " at position %" PRId64
                           ", expected 0 to %" PRId64,
                           id, s, table->dim[0] - 1);
    }
    return sl_exec_parallel(exec, ids->dim[0], embed_tile, &j, err);
}

/* --- sinusoid --- */

sl_status sl_sinusoid_check(sl_exec *exec, const sl_tensor *y, double t, sl_error *err)
{
    const sl_status status = SL_OP_EXPECT("sinusoid", "y", y, F32, err, 1, -1);

    (void)exec, (void)t;
    if (status == SL_OK && y->dim[0] % 2)
        return sl_fail(err, SL_ERR_INVALID,
                       "sinusoid: y has %" PRId64 " elements, expected an even number", y->dim[0]);
    return status;
}

typedef struct {
    const sl_tensor *y;
    double t;
} sinusoid_job;

static void sinusoid_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const sinusoid_job *job = arg;
    const int64_t half = job->y->dim[0] / 2;
    float *y = job->y->data;

    (void)i, (void)thread, (void)workspace;
    for (int64_t j = 0; j < half; j++) {
        const double phase = job->t * pow(10000.0, -(double)j / (double)half);
        y[j] = (float)cos(phase);
        y[half + j] = (float)sin(phase);
    }
}

sl_status sl_sinusoid_cpu(sl_exec *exec, const sl_tensor *y, double t, sl_error *err)
{
    const sl_status status = sl_sinusoid_check(exec, y, t, err);
    sinusoid_job j = { .y = y, .t = t };

    return status == SL_OK ? sl_exec_parallel(exec, 1, sinusoid_tile, &j, err) : status;
}

/* --- rel_bias --- */

/* The first distances of buckets 8 to 15 (and 24 to 31).  A table, since the
 * formula 8 + ln(n/8)/ln(16) * 8 sits exactly on the border at n = 16, 32, 64. */
static const int far_from[] = { 8, 12, 16, 23, 32, 46, 64, 91 };

int sl_rel_bucket(int64_t key_minus_query)
{
    const int base = key_minus_query > 0 ? BUCKETS / 2 : 0;
    const uint64_t distance =
        key_minus_query < 0 ? -(uint64_t)key_minus_query : (uint64_t)key_minus_query;
    int far = 0;

    if (distance < 8)
        return base + (int)distance;
    while (far + 1 < (int)SL_COUNT(far_from) && distance >= (uint64_t)far_from[far + 1])
        far++;
    return base + 8 + far;
}

typedef struct {
    const sl_tensor *y, *table;
    int64_t Sq;
} bias_job;

sl_status sl_rel_bias_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *table, int64_t Sq,
                            int64_t Sk, sl_error *err)
{
    const char *op = "rel_bias";
    sl_status status = SL_OP_EXPECT(op, "table", table, F32_BF16, err, 2, BUCKETS, -1);

    (void)exec;
    if (status == SL_OK && (Sq < 1 || Sk < 1 || Sq > INT32_MAX || Sk > INT32_MAX))
        status =
            sl_fail(err, SL_ERR_INVALID,
                    "%s: %" PRId64 " queries and %" PRId64 " keys, expected 1 to 2^31-1 of each",
                    op, Sq, Sk);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "y", y, F32, err, 2, table->dim[1], Sq + Sk - 1);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", y, "table", table, err);
    return status;
}

/* Tile: one head. */
static void bias_tile(void *arg, int64_t n, int thread, void *workspace)
{
    const bias_job *j = arg;
    const int64_t N = j->table->dim[1], width = j->y->dim[1];
    float *y = (float *)j->y->data + n * width;

    (void)thread, (void)workspace;
    for (int64_t i = 0; i < width; i++) {
        const int64_t at = sl_rel_bucket(i - (j->Sq - 1)) * N + n;
        y[i] = j->table->dtype == SL_F32 ? ((const float *)j->table->data)[at]
                                         : sl_bf16_to_f32(((const uint16_t *)j->table->data)[at]);
    }
}

sl_status sl_rel_bias_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *table, int64_t Sq,
                          int64_t Sk, sl_error *err)
{
    const sl_status status = sl_rel_bias_check(exec, y, table, Sq, Sk, err);
    bias_job j = { .y = y, .table = table, .Sq = Sq };

    return status == SL_OK ? sl_exec_parallel(exec, y->dim[0], bias_tile, &j, err) : status;
}
