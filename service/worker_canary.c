/* The canary: a job of a few ops, run on every lane before the worker says hello.
 *
 * Small tensors go to the device, a product, norms, attention and a convolution
 * come back, and each is compared with what plain loops over doubles make of the
 * same numbers.  That is some milliseconds on cpu; a card also loads code that its
 * first job would load.  A canary that comes back wrong is told with the hello: the
 * daemon is not ready then, and says why.
 *
 * Inputs are multiples of 1/16 below 2, exact in bf16.  Tolerances are of one
 * rounding of the result: 2^-7 relative in bf16, and in f32 some sums' worth. */
#include "service/worker.h"

#include "base/clock.h"
#include "kernels/ops.h"

#include <math.h>
#include <string.h>

enum { S = 12, C = 64, N = 2, D = C / N, T = 2, H = 6, W = 5, I = 8, O = 8 };
enum { TAPS = 3, CANARY_GRANULES = 4, HELD_FLOATS = 4 * S * C + C * C };

#define EPS 1e-6

typedef struct {
    sl_lane *lane;
    sl_scratch scratch;
    sl_dtype act;
    float host[HELD_FLOATS]; /* what a comparison needs */
} canary;

/* ---- numbers in and out ---- */

static float number(int64_t i, int salt)
{
    return (float)((i * 37 + salt * 11 + (i / 7) * 5) % 47 - 23) / 16.0f;
}

/* A tensor of numbers on the device, and the same in `host`. */
static sl_status make(canary *c, sl_tensor *out, float *host, int salt, sl_dtype dtype, int rank,
                      const int64_t *dim, sl_error *err)
{
    sl_status status = sl_scratch_take(&c->scratch, out, err, dtype, rank, dim);
    uint16_t bits[C * C];

    if (status != SL_OK)
        return status;
    const int64_t count = sl_tensor_count(out);
    for (int64_t i = 0; i < count; i++) {
        host[i] = number(i, salt);
        bits[i] = sl_bf16_from_f32(host[i]);
    }
    return sl_exec_write(c->lane->exec, out->data, dtype == SL_BF16 ? (const void *)bits : host,
                         sl_tensor_bytes(out), err);
}

#define MAKE(c, out, host, salt, dtype, rank, ...)                                                 \
    make((c), (out), (host), (salt), (dtype), (rank), (const int64_t[]){ __VA_ARGS__ }, err)

/* Written so that NaN is wrong. */
static sl_status compare(canary *c, const char *op, const sl_tensor *got, const double *want,
                         sl_error *err)
{
    const double tolerance = got->dtype == SL_BF16 ? 0x1p-7 : 0x1p-15;
    const int64_t count = sl_tensor_count(got);
    float values[S * C > T * H * W * O ? S * C : T * H * W * O];
    uint16_t bits[SL_COUNT(values)];
    sl_status status = sl_exec_read(c->lane->exec, got->dtype == SL_BF16 ? (void *)bits : values,
                                    got->data, sl_tensor_bytes(got), err);

    for (int64_t i = 0; i < count && status == SL_OK; i++) {
        const double value =
            got->dtype == SL_BF16 ? (double)sl_bf16_to_f32(bits[i]) : (double)values[i];
        if (!(fabs(value - want[i]) <= tolerance * (1.0 + fabs(want[i]))))
            status = sl_fail(err, SL_ERR_DATA, "%s: element %lld is %g, expected %g", op,
                             (long long)i, value, want[i]);
    }
    return status;
}

/* ---- the ops ---- */

static sl_status try_linear(canary *c, sl_error *err)
{
    float *x_host = c->host, *w_host = x_host + S * C, *b_host = w_host + C * C;
    double want[S * C];
    sl_tensor x, w, b, y;
    sl_status status = MAKE(c, &x, x_host, 1, c->act, 2, S, C);

    if (status == SL_OK)
        status = MAKE(c, &w, w_host, 2, SL_BF16, 2, C, C);
    if (status == SL_OK)
        status = MAKE(c, &b, b_host, 3, SL_F32, 1, C);
    if (status == SL_OK)
        status = sl_scratch_tensor(&c->scratch, &y, err, c->act, 2, S, C);
    if (status == SL_OK)
        status =
            sl_exec_ops(c->lane->exec)->linear(c->lane->exec, &y, &x, &w, &b, SL_ACT_NONE, err);
    if (status != SL_OK)
        return status;
    for (int s = 0; s < S; s++) {
        for (int o = 0; o < C; o++) {
            double sum = (double)b_host[o];
            for (int i = 0; i < C; i++)
                sum += (double)x_host[s * C + i] * (double)w_host[o * C + i];
            want[s * C + o] = sum;
        }
    }
    return compare(c, "linear", &y, want, err);
}

/* rms_norm, layer_norm and silu: rows of numbers, and what becomes of each. */
static sl_status try_rows(canary *c, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(c->lane->exec);
    float *x_host = c->host, *w_host = x_host + S * C;
    double rms[S * C], layer[S * C], silu[S * C];
    sl_tensor x, w, y;
    sl_status status = MAKE(c, &x, x_host, 4, c->act, 2, S, C);

    if (status == SL_OK)
        status = MAKE(c, &w, w_host, 5, SL_F32, 1, C);
    if (status == SL_OK)
        status = sl_scratch_tensor(&c->scratch, &y, err, c->act, 2, S, C);
    if (status != SL_OK)
        return status;
    for (int s = 0; s < S; s++) {
        double sum = 0.0, squares = 0.0;
        for (int i = 0; i < C; i++) {
            sum += (double)x_host[s * C + i];
            squares += (double)x_host[s * C + i] * (double)x_host[s * C + i];
        }
        const double mean = sum / C, variance = squares / C - mean * mean;
        for (int i = 0; i < C; i++) {
            const double v = (double)x_host[s * C + i];
            rms[s * C + i] = v / sqrt(squares / C + EPS) * (double)w_host[i];
            layer[s * C + i] = (v - mean) / sqrt(variance + EPS);
            silu[s * C + i] = v / (1.0 + exp(-v));
        }
    }
    status = ops->rms_norm(c->lane->exec, &y, &x, &w, (float)EPS, err);
    if (status == SL_OK)
        status = compare(c, "rms_norm", &y, rms, err);
    if (status == SL_OK)
        status = ops->layer_norm(c->lane->exec, &y, &x, NULL, NULL, NULL, NULL, (float)EPS, 0, err);
    if (status == SL_OK)
        status = compare(c, "layer_norm", &y, layer, err);
    if (status == SL_OK)
        status = ops->silu(c->lane->exec, &y, &x, err);
    return status == SL_OK ? compare(c, "silu", &y, silu, err) : status;
}

/* One query of one head: out [D]. */
static void attend(const float *q, const float *k, const float *v, double scale, double *out)
{
    double score[S], total = 0.0, largest = -INFINITY;

    for (int j = 0; j < S; j++) {
        score[j] = 0.0;
        for (int d = 0; d < D; d++)
            score[j] += (double)q[d] * (double)k[j * C + d] * scale;
        largest = fmax(largest, score[j]);
    }
    for (int j = 0; j < S; j++)
        total += score[j] = exp(score[j] - largest);
    for (int d = 0; d < D; d++) {
        out[d] = 0.0;
        for (int j = 0; j < S; j++)
            out[d] += score[j] / total * (double)v[j * C + d];
    }
}

static sl_status try_attention(canary *c, sl_error *err)
{
    float *q_host = c->host, *k_host = q_host + S * C, *v_host = k_host + S * C;
    const float scale = 0.125f;
    double want[S * C];
    sl_tensor q, k, v, o;
    sl_status status = MAKE(c, &q, q_host, 6, c->act, 2, S, C);

    if (status == SL_OK)
        status = MAKE(c, &k, k_host, 7, c->act, 2, S, C);
    if (status == SL_OK)
        status = MAKE(c, &v, v_host, 8, c->act, 2, S, C);
    if (status == SL_OK)
        status = sl_scratch_tensor(&c->scratch, &o, err, c->act, 2, S, C);
    if (status == SL_OK)
        status = sl_exec_ops(c->lane->exec)
                     ->attention(c->lane->exec, &o, &q, &k, &v, NULL, N, scale, err);
    if (status != SL_OK)
        return status;
    for (int s = 0; s < S; s++)
        for (int n = 0; n < N; n++)
            attend(q_host + s * C + n * D, k_host + n * D, v_host + n * D, (double)scale,
                   want + s * C + n * D);
    return compare(c, "attention", &o, want, err);
}

/* x [T, H, W, I] at a place, zero outside of it; time counts from TAPS - 1 zero frames. */
static double pixel(const float *x, int t, int h, int w, int i)
{
    t -= TAPS - 1;
    return t < 0 || h < 0 || h >= H || w < 0 || w >= W ? 0.0
                                                       : (double)x[((t * H + h) * W + w) * I + i];
}

static double convolve(const float *x, const float *weight, int t, int h, int w)
{
    double sum = 0.0;

    for (int a = 0; a < TAPS; a++)
        for (int b = 0; b < TAPS; b++)
            for (int d = 0; d < TAPS; d++)
                for (int i = 0; i < I; i++)
                    sum += (double)weight[((a * TAPS + b) * TAPS + d) * I + i] *
                           pixel(x, t + a, h + b - 1, w + d - 1, i);
    return sum;
}

static sl_status try_conv(canary *c, sl_error *err)
{
    static const sl_conv_params params = { .zero_frames = TAPS - 1,
                                           .stride_t = 1,
                                           .stride_hw = 1,
                                           .pad_top = 1,
                                           .pad_bottom = 1,
                                           .pad_left = 1,
                                           .pad_right = 1,
                                           .upsample = 1 };
    enum { ONE = TAPS * TAPS * TAPS * I };
    const sl_dtype frames = sl_exec_numerics(c->lane->exec)->frames;
    float *x_host = c->host, *w_host = x_host + T * H * W * I;
    double want[T * H * W * O];
    sl_tensor x, w, y;
    sl_status status = MAKE(c, &x, x_host, 9, frames, 4, T, H, W, I);

    if (status == SL_OK)
        status = MAKE(c, &w, w_host, 10, SL_BF16, 5, O, TAPS, TAPS, TAPS, I);
    if (status == SL_OK)
        status = sl_scratch_tensor(&c->scratch, &y, err, frames, 4, T, H, W, O);
    if (status == SL_OK)
        status = sl_exec_ops(c->lane->exec)
                     ->conv(c->lane->exec, &y, &x, NULL, &w, NULL, NULL, &params, err);
    if (status != SL_OK)
        return status;
    for (int at = 0; at < T * H * W; at++)
        for (int o = 0; o < O; o++)
            want[at * O + o] = convolve(x_host, w_host + o * ONE, at / (H * W), at / W % H, at % W);
    return compare(c, "conv", &y, want, err);
}

/* ---- all of it ---- */

static sl_status run_ops(sl_lane *lane, sl_region *region, sl_error *err)
{
    static sl_status (*const tries[])(canary * c, sl_error * err) = { try_linear, try_rows,
                                                                      try_attention, try_conv };
    canary c = { .lane = lane, .act = sl_exec_numerics(lane->exec)->activation };
    sl_status status = SL_OK;

    sl_scratch_init(&c.scratch, sl_region_data(region), sl_region_mapped_bytes(region));
    sl_exec_lend_scratch(lane->exec, &c.scratch);
    for (size_t i = 0; i < SL_COUNT(tries) && status == SL_OK; i++) {
        const size_t mark = sl_scratch_mark(&c.scratch);
        status = tries[i](&c, err);
        sl_scratch_release(&c.scratch, mark);
    }
    sl_exec_lend_scratch(lane->exec, NULL);
    return status;
}

sl_status sl_worker_run_canary(sl_worker *worker, int64_t *duration_ns, sl_error *err)
{
    const int64_t began_ns = sl_clock_now_ns();
    sl_region *region = NULL;
    sl_status status = sl_region_create(&region, worker->device, "canary",
                                        CANARY_GRANULES * SL_GRANULE_BYTES, err);

    if (status == SL_OK)
        status = sl_region_map(region, CANARY_GRANULES * SL_GRANULE_BYTES, err);
    for (int i = 0; i < worker->lane_count && status == SL_OK; i++) {
        status = run_ops(&worker->lanes[i], region, err);
        if (status != SL_OK)
            sl_error_prefix(err, "lane %d", i);
    }
    sl_region_destroy(region);
    sl_device_reset_peak(worker->device);
    *duration_ns = sl_clock_now_ns() - began_ns;
    return status;
}
