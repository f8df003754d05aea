/* Sums run in LANES partial f64 sums that are added in a fixed order, so that
 * every instruction set gives the same bits.  Rows are read two or three times
 * but stay in the first levels of cache. */
#include "kernels/norm.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"
#include "kernels/vmath.h"

#include <inttypes.h>
#include <math.h>

enum {
    LANES = 16,
    TILE_ELEMENTS = 1 << 17,
    PARAMS = 4, /* the most parameter vectors of an op */
    MAX_C = (int)(SL_CPU_WORKSPACE_PER_THREAD / (PARAMS * sizeof(float))),
};

typedef struct {
    float *y;
    const float *x;
    const sl_tensor *params[PARAMS]; /* NULL: absent */
    int64_t rows, C, tile_rows;
    float eps;
    int64_t padding; /* of layer_norm */
    bool silu;
    bool bf16; /* y and x are, by channel_norm alone */
} job;

typedef struct {
    const char *name;
    const sl_tensor *t; /* may be NULL */
} param;

/* What the ops share: y and x alike, C elements in each parameter. */
static sl_status check_rows(const char *op, const sl_tensor *y, const sl_tensor *x,
                            const param *params, size_t param_count, sl_error *err)
{
    sl_status status = sl_op_expect_like(op, "x", x, SL_BITS_ACTIVATION, x, err);

    if (status == SL_OK && x->rank < 1)
        status = sl_fail(err, SL_ERR_INVALID, "%s: x is a scalar, expected rows", op);
    if (status != SL_OK)
        return status;
    const int64_t C = x->dim[x->rank - 1];
    if (C < 1 || C > MAX_C)
        return sl_fail(err, SL_ERR_INVALID, "%s: x has %" PRId64 " channels, expected 1 to %d", op,
                       C, MAX_C);
    status = sl_op_expect_like(op, "y", y, SL_BITS_ACTIVATION, x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same(op, "y", y, "x", x, err);
    for (size_t i = 0; status == SL_OK && i < param_count; i++) {
        if (!params[i].t)
            continue;
        status = sl_op_expect_count(op, params[i].name, params[i].t, SL_BITS_ACTIVATION, C, err);
        if (status == SL_OK)
            status = sl_op_expect_apart(op, "y", y, params[i].name, params[i].t, err);
    }
    return status;
}

static job job_over(const sl_tensor *y, const sl_tensor *x)
{
    const int64_t C = x->dim[x->rank - 1];

    return (job){ .y = y->data,
                  .x = x->data,
                  .rows = sl_tensor_count(x) / C,
                  .C = C,
                  .tile_rows = C < TILE_ELEMENTS ? TILE_ELEMENTS / C : 1 };
}

static sl_status run(sl_exec *exec, job *j, sl_tile_fn fn, sl_error *err)
{
    return sl_exec_parallel(exec, sl_ceil_div(j->rows, j->tile_rows), fn, j, err);
}

/* The parameters of a tile as f32; bf16 ones are upcast into the workspace. */
static void load_params(const job *j, void *workspace, const float *out[PARAMS])
{
    for (int i = 0; i < PARAMS; i++)
        out[i] = sl_param_f32(j->params[i], (float *)workspace + i * j->C);
}

SL_INLINE double add_lanes(const double lanes[LANES])
{
    double sum = 0.0;

    for (int l = 0; l < LANES; l++)
        sum += lanes[l];
    return sum;
}

SL_INLINE double sum_of(const float *x, int64_t C)
{
    double lanes[LANES] = { 0.0 };
    int64_t c = 0;

    for (; c + LANES <= C; c += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] += (double)x[c + l];
    for (int l = 0; c < C; c++, l++)
        lanes[l] += (double)x[c];
    return add_lanes(lanes);
}

/* Sum of (x - mean)^2. */
SL_INLINE double sum_squares(const float *x, double mean, int64_t C)
{
    double lanes[LANES] = { 0.0 };
    int64_t c = 0;

    for (; c + LANES <= C; c += LANES)
        for (int l = 0; l < LANES; l++) {
            const double d = (double)x[c + l] - mean;
            lanes[l] += d * d;
        }
    for (int l = 0; c < C; c++, l++) {
        const double d = (double)x[c] - mean;
        lanes[l] += d * d;
    }
    return add_lanes(lanes);
}

/* --- layer_norm --- */

enum { LN_W, LN_B, LN_SCALE, LN_SHIFT };

sl_status sl_layer_norm_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *w, const sl_tensor *b, const sl_tensor *scale,
                              const sl_tensor *shift, float eps, int64_t padding, sl_error *err)
{
    const param params[] = { { "w", w }, { "b", b }, { "scale", scale }, { "shift", shift } };

    (void)exec, (void)eps;
    if (!w != !b)
        return sl_fail(err, SL_ERR_INVALID, "layer_norm: %s, expected both or neither of w and b",
                       w ? "w without b" : "b without w");
    if (padding < 0)
        return sl_fail(err, SL_ERR_INVALID, "layer_norm: padding %" PRId64 ", expected 0 or more",
                       padding);
    if (!scale != !shift)
        return sl_fail(err, SL_ERR_INVALID,
                       "layer_norm: %s, expected both or neither of scale and shift",
                       scale ? "scale without shift" : "shift without scale");
    return check_rows("layer_norm", y, x, params, SL_COUNT(params), err);
}

SL_MULTIARCH static void layer_norm_row(float *y, const float *x, const float *const params[PARAMS],
                                        int64_t C, float eps, int64_t padding)
{
    const double mean = sum_of(x, C) / (double)C;
    const double var = (sum_squares(x, mean, C) + (double)padding * mean * mean) / (double)C;
    const float center = (float)mean, factor = (float)(1.0 / sqrt(var + (double)eps));
    const float *w = params[LN_W], *b = params[LN_B];
    const float *scale = params[LN_SCALE], *shift = params[LN_SHIFT];

    SL_IVDEP
    for (int64_t c = 0; c < C; c++)
        y[c] = (x[c] - center) * factor;
    if (w) {
        SL_IVDEP
        for (int64_t c = 0; c < C; c++)
            y[c] = y[c] * w[c] + b[c];
    }
    if (scale) {
        SL_IVDEP
        for (int64_t c = 0; c < C; c++)
            y[c] = y[c] * (1.0f + scale[c]) + shift[c];
    }
}

static void layer_norm_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * j->tile_rows;
    const int64_t end = first + sl_tile_length(i, j->tile_rows, j->rows);
    const float *params[PARAMS];

    (void)thread;
    load_params(j, workspace, params);
    for (int64_t s = first; s < end; s++)
        layer_norm_row(j->y + s * j->C, j->x + s * j->C, params, j->C, j->eps,
                       j->padding);
}

sl_status sl_layer_norm_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                            const sl_tensor *w, const sl_tensor *b, const sl_tensor *scale,
                            const sl_tensor *shift, float eps, int64_t padding, sl_error *err)
{
    sl_status status = sl_layer_norm_check(exec, y, x, w, b, scale, shift, eps, padding, err);

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("layer_norm", err, y, x);
    if (status != SL_OK)
        return status;
    job j = job_over(y, x);
    j.params[LN_W] = w;
    j.params[LN_B] = b;
    j.params[LN_SCALE] = scale;
    j.params[LN_SHIFT] = shift;
    j.eps = eps;
    j.padding = padding;
    return run(exec, &j, layer_norm_tile, err);
}

/* --- rms_norm --- */

sl_status sl_rms_norm_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                            const sl_tensor *w, float eps, sl_error *err)
{
    const param params[] = { { "w", w } };

    (void)exec, (void)eps;
    return check_rows("rms_norm", y, x, params, SL_COUNT(params), err);
}

SL_MULTIARCH static void rms_norm_row(float *y, const float *x, const float *w, int64_t C,
                                      float eps)
{
    const double mean_square = sum_squares(x, 0.0, C) / (double)C;
    const float factor = (float)(1.0 / sqrt(mean_square + (double)eps));

    SL_IVDEP
    for (int64_t c = 0; c < C; c++)
        y[c] = x[c] * factor * w[c];
}

static void rms_norm_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * j->tile_rows;
    const int64_t end = first + sl_tile_length(i, j->tile_rows, j->rows);
    const float *params[PARAMS];

    (void)thread;
    load_params(j, workspace, params);
    for (int64_t s = first; s < end; s++)
        rms_norm_row(j->y + s * j->C, j->x + s * j->C, params[0], j->C, j->eps);
}

sl_status sl_rms_norm_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                          float eps, sl_error *err)
{
    sl_status status = sl_rms_norm_check(exec, y, x, w, eps, err);

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("rms_norm", err, y, x);
    if (status != SL_OK)
        return status;
    job j = job_over(y, x);
    j.params[0] = w;
    j.eps = eps;
    return run(exec, &j, rms_norm_tile, err);
}

/* --- channel_norm --- */

sl_status sl_channel_norm_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                const sl_tensor *gamma, bool silu, sl_error *err)
{
    const param params[] = { { "gamma", gamma } };

    (void)exec, (void)silu;
    sl_status status = check_rows("channel_norm", y, x, params, SL_COUNT(params), err);
    if (status == SL_OK)
        status = sl_op_expect_like("channel_norm", "y", y, SL_BIT(x->dtype), x, err);
    return status;
}

/* All rows of a tile, since C may be as small as 16. */
SL_MULTIARCH static void channel_norm_rows(float *y, const float *x, const float *gamma,
                                           int64_t rows, int64_t C, bool silu)
{
    const double root = sqrt((double)C);

    for (int64_t s = 0; s < rows; s++, x += C, y += C) {
        const double norm = sqrt(sum_squares(x, 0.0, C));
        const float factor = (float)(root / (norm > 1e-12 ? norm : 1e-12));
        if (silu) {
            SL_IVDEP
            for (int64_t c = 0; c < C; c++)
                y[c] = sl_siluf(x[c] * factor * gamma[c]);
        } else {
            SL_IVDEP
            for (int64_t c = 0; c < C; c++)
                y[c] = x[c] * factor * gamma[c];
        }
    }
}

static void channel_norm_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * j->tile_rows;
    const float *params[PARAMS];

    (void)thread;
    load_params(j, workspace, params);
    if (!j->bf16) {
        channel_norm_rows(j->y + first * j->C, j->x + first * j->C, params[0],
                          sl_tile_length(i, j->tile_rows, j->rows), j->C, j->silu);
        return;
    }
    float *row = (float *)workspace + j->C; /* behind the one parameter */
    for (int64_t s = first; s < first + sl_tile_length(i, j->tile_rows, j->rows); s++) {
        sl_upcast_bf16(row, (const uint16_t *)(const void *)j->x + s * j->C, j->C);
        channel_norm_rows(row, row, params[0], 1, j->C, j->silu);
        sl_round_bf16((uint16_t *)(void *)j->y + s * j->C, row, j->C);
    }
}

sl_status sl_channel_norm_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *gamma, bool silu, sl_error *err)
{
    sl_status status = sl_channel_norm_check(exec, y, x, gamma, silu, err);

    if (status != SL_OK)
        return status;
    job j = job_over(y, x);
    j.params[0] = gamma;
    j.silu = silu;
    j.bf16 = x->dtype == SL_BF16;
    return run(exec, &j, channel_norm_tile, err);
}
