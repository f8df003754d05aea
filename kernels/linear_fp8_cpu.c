/* A tile of y is 128 x 128.  It goes over I in steps of 128, whose codes are widened
 * to f32 and multiplied by the matrix library; there is no fast way for e4m3 here. */
#include "kernels/linear_fp8.h"

#include "base/size.h"
#include "kernels/e4m3.h"
#include "kernels/gemm.h"
#include "kernels/linear8_check.h"
#include "kernels/op_check.h"
#include "kernels/vmath.h"

#include <inttypes.h>
#include <string.h>

enum { TILE = SL_FP8_TILE };

/* One thread's workspace. */
typedef struct {
    float x[TILE * TILE], w[TILE * TILE]; /* of the step */
    float part[TILE * TILE];
    float sum[TILE * TILE];
} tile_space;

_Static_assert(sizeof(tile_space) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");

/* ---- quantize_fp8 ---- */

sl_status sl_quantize_fp8_check(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                const sl_tensor *x, sl_error *err)
{
    static const char op[] = "quantize_fp8";
    sl_status status = SL_OP_EXPECT(op, "x", x, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status != SL_OK)
        return status;
    if (x->dim[1] % TILE != 0)
        return sl_fail(err, SL_ERR_INVALID, "%s: rows of %" PRId64 ", expected a multiple of %d",
                       op, x->dim[1], (int)TILE);
    status = sl_op_expect_like(op, "q", q, SL_BIT(SL_F8_E4M3), x, err);
    if (status == SL_OK)
        status =
            SL_OP_EXPECT(op, "scale", scale, SL_BIT(SL_F32), err, 2, x->dim[1] / TILE, x->dim[0]);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "q", q, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "q", q, err);
    return status;
}

/* The largest bit pattern of |x|, which orders numbers as their values and puts NaN
 * above all; at least 1e-8. */
SL_MULTIARCH static float largest(const float *x, int64_t n)
{
    uint32_t most = 0;
    float amax;

    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    memcpy(&amax, &most, sizeof amax);
    return amax < 1e-8f ? 1e-8f : amax;
}

SL_MULTIARCH static float largest_bf16(const uint16_t *x, int64_t n)
{
    uint32_t most = 0;
    float amax;

    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = x[i] & 0x7fffu;
        most = magnitude > most ? magnitude : most;
    }
    most <<= 16;
    memcpy(&amax, &most, sizeof amax);
    return amax < 1e-8f ? 1e-8f : amax;
}

SL_MULTIARCH static void encode(uint8_t *q, const float *x, float by, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        q[i] = sl_e4m3_from_f32(x[i] * by);
}

SL_MULTIARCH static void encode_bf16(uint8_t *q, const uint16_t *x, float by, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        q[i] = sl_e4m3_from_f32(sl_bf16_to_f32(x[i]) * by);
}

typedef struct {
    uint8_t *q;
    float *scale;
    const float *x;
    int64_t S, I;
} quantize;

static void quantize_rows(void *arg, int64_t i, int thread, void *workspace)
{
    const quantize *z = arg;
    const int64_t first = i * TILE, last = first + TILE < z->S ? first + TILE : z->S;

    (void)thread, (void)workspace;
    for (int64_t s = first; s < last; s++) {
        for (int64_t k = 0; k < z->I; k += TILE) {
            const float *x = z->x + s * z->I + k;
            const float amax = largest(x, TILE);

            encode(z->q + s * z->I + k, x, SL_E4M3_MAX / amax, TILE);
            z->scale[k / TILE * z->S + s] = amax / SL_E4M3_MAX;
        }
    }
}

sl_status sl_quantize_fp8_cpu(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                              const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_quantize_fp8_check(exec, q, scale, x, err);

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("quantize_fp8", err, x);
    if (status != SL_OK)
        return status;
    quantize z = { q->data, scale->data, x->data, x->dim[0], x->dim[1] };
    return sl_exec_parallel(exec, sl_ceil_div(z.S, TILE), quantize_rows, &z, err);
}

void sl_quantize_fp8_rows(uint8_t *q, float *scale, const uint16_t *x, int64_t rows, int64_t C)
{
    SL_ASSERT(rows <= TILE);
    for (int64_t col = 0; col < C; col += TILE) {
        const int64_t cols = col + TILE < C ? TILE : C - col;
        float amax = 0.0f;

        for (int64_t r = 0; r < rows; r++) {
            const float found = largest_bf16(x + r * C + col, cols);
            amax = found <= amax ? amax : found; /* NaN stays: no comparison holds */
            if (amax != amax)
                break;
        }
        for (int64_t r = 0; r < rows; r++)
            encode_bf16(q + r * C + col, x + r * C + col, SL_E4M3_MAX / amax, cols);
        scale[col / TILE] = amax / SL_E4M3_MAX;
    }
}

/* ---- linear_fp8 ---- */

typedef struct {
    const sl_exec *exec;
    float *y;
    const uint8_t *x, *w;
    const float *x_scale, *w_scale;
    const sl_tensor *b; /* NULL: none */
    sl_act act;
    int64_t S, I, O, row_tiles;
} linear_fp8;

sl_status sl_linear_fp8_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *x_scale, const sl_tensor *w,
                              const sl_tensor *w_scale, const sl_tensor *b, sl_act act,
                              sl_error *err)
{
    static const sl_linear8_kind kind = {
        .op = "linear_fp8",
        .code = SL_F8_E4M3,
        .scale_per_row = true,
    };

    (void)exec;
    return sl_linear8_check(&kind, y, x, x_scale, w, w_scale, b, act, err);
}

/* rows x TILE codes, whose rows are ld apart. */
SL_MULTIARCH static void widen(float *out, const uint8_t *codes, int64_t ld, int64_t rows)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < TILE; k++)
            out[r * TILE + k] = sl_e4m3_to_f32(codes[r * ld + k]);
}

SL_MULTIARCH static void add_scaled(float *restrict sum, const float *restrict part, float scale,
                                    int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += part[i] * scale;
}

static void finish_row(const linear_fp8 *l, float *y, const float *sum, int64_t o, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float v = sum[i];

        if (l->b)
            v += l->b->dtype == SL_BF16 ? sl_bf16_to_f32(((const uint16_t *)l->b->data)[o + i])
                                        : ((const float *)l->b->data)[o + i];
        y[i] = l->act == SL_ACT_GELU_TANH ? sl_gelu_tanhf(v)
               : l->act == SL_ACT_SILU    ? sl_siluf(v)
                                          : v;
    }
}

static void linear_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const linear_fp8 *l = arg;
    tile_space *t = workspace;
    const int64_t o = i / l->row_tiles * TILE, s = i % l->row_tiles * TILE;
    const int64_t cols = o + TILE < l->O ? TILE : l->O - o;
    const int64_t rows = s + TILE < l->S ? TILE : l->S - s;

    (void)thread;
    memset(t->sum, 0, (size_t)(rows * TILE) * sizeof *t->sum);
    for (int64_t k = 0; k < l->I; k += TILE) {
        const float w_scale = l->w_scale[o / TILE * (l->I / TILE) + k / TILE];

        if (sl_exec_cancelled(l->exec))
            return;
        widen(t->x, l->x + s * l->I + k, l->I, rows);
        widen(t->w, l->w + o * l->I + k, l->I, cols);
        sl_gemm_nt(rows, cols, TILE, 1.0f, t->x, TILE, t->w, TILE, 0.0f, t->part, TILE);
        for (int64_t r = 0; r < rows; r++)
            add_scaled(t->sum + r * TILE, t->part + r * TILE,
                       l->x_scale[k / TILE * l->S + s + r] * w_scale, cols);
    }
    for (int64_t r = 0; r < rows; r++)
        finish_row(l, l->y + (s + r) * l->O + o, t->sum + r * TILE, o, cols);
}

sl_status sl_linear_fp8_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                            const sl_tensor *x_scale, const sl_tensor *w, const sl_tensor *w_scale,
                            const sl_tensor *b, sl_act act, sl_error *err)
{
    sl_status status = sl_linear_fp8_check(exec, y, x, x_scale, w, w_scale, b, act, err);
    linear_fp8 l;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("linear_fp8", err, y);
    if (status != SL_OK)
        return status;
    l = (linear_fp8){
        .exec = exec,
        .y = y->data,
        .x = x->data,
        .w = w->data,
        .x_scale = x_scale->data,
        .w_scale = w_scale->data,
        .b = b,
        .act = act,
        .S = x->dim[0],
        .I = x->dim[1],
        .O = w->dim[0],
        .row_tiles = sl_ceil_div(x->dim[0], TILE),
    };
    return sl_exec_parallel(exec, l.row_tiles * sl_ceil_div(l.O, TILE), linear_tile, &l, err);
}
