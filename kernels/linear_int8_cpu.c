/* A tile of y is 128 columns and some multiple of 128 rows.  It goes over I in
 * steps of 128, where all scales are single numbers; the sums so far stay in
 * the workspace. */
#include "kernels/linear_int8.h"

#include "base/size.h"
#include "kernels/gemm_int8.h"
#include "kernels/linear8_check.h"
#include "kernels/op_check.h"
#include "kernels/vmath.h"

#include <inttypes.h>
#include <string.h>

enum {
    TILE = SL_INT8_TILE,
    MAX_ROWS = 512, /* of a tile of y */
    TILES_WANTED = 48,
};

/* One thread's workspace. */
typedef struct {
    unsigned char gemm[SL_GEMM_INT8_SPACE_BYTES];
    float sum[MAX_ROWS * TILE]; /* [rows, TILE] */
    float bias[TILE];
} tile_space;

_Static_assert(sizeof(tile_space) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");
_Static_assert(SL_GEMM_INT8_SPACE_BYTES % 64 == 0, "what follows is aligned too");

SL_INLINE float round_bf16(float x)
{
    return sl_bf16_to_f32(sl_bf16_from_f32(x));
}

/* ---- quantize_int8 ---- */

typedef struct {
    int8_t *q;
    float *scale;
    const void *x;
    bool bf16;
    int64_t R, C, col_tiles;
} quantize;

sl_status sl_quantize_int8_check(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                 const sl_tensor *x, sl_error *err)
{
    static const char op[] = "quantize_int8";
    sl_status status = SL_OP_EXPECT(op, "x", x, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like(op, "q", q, SL_BIT(SL_I8), x, err);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "scale", scale, SL_BIT(SL_F32), err, 2,
                              sl_ceil_div(x->dim[0], TILE), sl_ceil_div(x->dim[1], TILE));
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "q", q, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "q", q, err);
    return status;
}

/* A row of a tile as f32 with bf16 values; returns the largest bit pattern of
 * |v|, which orders numbers as their values and puts NaN above all. */
SL_MULTIARCH static uint32_t round_row_f32(float *v, const float *x, int64_t n)
{
    uint32_t most = 0;

    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)sl_bf16_from_f32(x[i]) << 16;
        const uint32_t magnitude = bits & 0x7fffffffu;

        memcpy(v + i, &bits, sizeof bits);
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

SL_MULTIARCH static uint32_t round_row_bf16(float *v, const uint16_t *x, int64_t n)
{
    uint32_t most = 0;

    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)x[i] << 16;
        const uint32_t magnitude = bits & 0x7fffffffu;

        memcpy(v + i, &bits, sizeof bits);
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

/* |v * by| is at most 128: adding 1.5 * 2^23 rounds it to the nearest even
 * integer.  Only an infinite amax makes NaN here; any code will do then. */
SL_MULTIARCH static void encode(int8_t *q, const float *v, float by, int64_t n)
{
    const float magic = 12582912.0f;

    for (int64_t i = 0; i < n; i++) {
        float r = (v[i] * by + magic) - magic;
        r = r >= -128.0f ? r : -128.0f;
        r = r <= 127.0f ? r : 127.0f;
        q[i] = (int8_t)(int32_t)r;
    }
}

/* One tile at x, whose rows are C elements apart; v [TILE, TILE]. */
static void encode_tile(int8_t *q, float *scale, const void *x, bool bf16, int64_t C, int64_t rows,
                        int64_t cols, float *v)
{
    uint32_t most = 0;
    float amax;

    for (int64_t r = 0; r < rows; r++) {
        const uint32_t found = bf16
                                   ? round_row_bf16(v + r * TILE, (const uint16_t *)x + r * C, cols)
                                   : round_row_f32(v + r * TILE, (const float *)x + r * C, cols);
        most = found > most ? found : most;
    }
    memcpy(&amax, &most, sizeof amax);
    amax = amax < 1e-8f ? 1e-8f : amax;
    for (int64_t r = 0; r < rows; r++)
        encode(q + r * C, v + r * TILE, 128.0f / amax, cols);
    *scale = amax / 128.0f;
}

static void quantize_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const quantize *z = arg;
    const int64_t row = i / z->col_tiles * TILE, col = i % z->col_tiles * TILE;
    const int64_t rows = row + TILE < z->R ? TILE : z->R - row;
    const int64_t cols = col + TILE < z->C ? TILE : z->C - col;
    const size_t at = (size_t)(row * z->C + col) * (z->bf16 ? sizeof(uint16_t) : sizeof(float));

    (void)thread;
    encode_tile(z->q + row * z->C + col, z->scale + i, (const char *)z->x + at, z->bf16, z->C, rows,
                cols, workspace);
}

void sl_quantize_int8_rows(int8_t *q, float *scale, const uint16_t *x, int64_t rows, int64_t C,
                           void *space)
{
    SL_ASSERT(rows <= TILE);
    for (int64_t col = 0; col < C; col += TILE)
        encode_tile(q + col, scale + col / TILE, x + col, true, C, rows,
                    col + TILE < C ? TILE : C - col, space);
}

sl_status sl_quantize_int8_cpu(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                               const sl_tensor *x, sl_error *err)
{
    const sl_status status = sl_quantize_int8_check(exec, q, scale, x, err);
    quantize z;

    if (status != SL_OK)
        return status;
    z = (quantize){
        .q = q->data,
        .scale = scale->data,
        .x = x->data,
        .bf16 = x->dtype == SL_BF16,
        .R = x->dim[0],
        .C = x->dim[1],
        .col_tiles = sl_ceil_div(x->dim[1], TILE),
    };
    return sl_exec_parallel(exec, sl_tensor_count(scale), quantize_tile, &z, err);
}

/* ---- linear_int8 ---- */

typedef struct {
    const sl_exec *exec;
    sl_gemm_int8_fn *gemm;
    float *y;
    const int8_t *x, *w;
    const float *x_scale, *w_scale;
    const sl_tensor *b; /* NULL: none */
    sl_act act;
    int64_t S, I, O, steps; /* steps: I / TILE */
    int64_t tile_rows, row_tiles;
} linear_int8;

sl_status sl_linear_int8_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *x_scale, const sl_tensor *w,
                               const sl_tensor *w_scale, const sl_tensor *b, sl_act act,
                               sl_error *err)
{
    static const sl_linear8_kind kind = {
        .op = "linear_int8",
        .code = SL_I8,
        .scale_per_row = false,
    };

    (void)exec;
    return sl_linear8_check(&kind, y, x, x_scale, w, w_scale, b, act, err);
}

/* The multiplier of each 128 rows for one step: x's scale times w's. */
static void step_scales(float *out, const linear_int8 *l, int64_t s, int64_t rows, int64_t o,
                        int64_t step)
{
    const float w_scale = l->w_scale[o / TILE * l->steps + step];

    for (int64_t r = 0; r < rows; r += TILE)
        out[r / TILE] = l->x_scale[(s + r) / TILE * l->steps + step] * w_scale;
}

/* bf16 bias of n columns from o, as f32. */
static void take_bias(float *out, const sl_tensor *b, int64_t o, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = b->dtype == SL_BF16 ? sl_bf16_to_f32(((const uint16_t *)b->data)[o + i])
                                     : round_bf16(((const float *)b->data)[o + i]);
}

SL_MULTIARCH static void round_row(float *y, const float *sum, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = round_bf16(sum[i]);
}

SL_MULTIARCH static void round_add_row(float *y, const float *sum, const float *bias, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = round_bf16(round_bf16(sum[i]) + bias[i]);
}

SL_MULTIARCH static void gelu_row(float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = sl_gelu_tanhf(y[i]);
}

SL_MULTIARCH static void silu_row(float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = sl_siluf(y[i]);
}

static void finish_row(const linear_int8 *l, float *y, const tile_space *t, const float *sum,
                       int64_t n)
{
    if (l->b)
        round_add_row(y, sum, t->bias, n);
    else
        round_row(y, sum, n);
    if (l->act == SL_ACT_GELU_TANH)
        gelu_row(y, n);
    else if (l->act == SL_ACT_SILU)
        silu_row(y, n);
}

static void linear_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const linear_int8 *l = arg;
    tile_space *t = workspace;
    const int64_t o = i / l->row_tiles * TILE, s = i % l->row_tiles * l->tile_rows;
    const int64_t cols = o + TILE < l->O ? TILE : l->O - o;
    const int64_t rows = s + l->tile_rows < l->S ? l->tile_rows : l->S - s;
    float scale[MAX_ROWS / TILE];

    (void)thread;
    memset(t->sum, 0, (size_t)(rows * TILE) * sizeof *t->sum);
    for (int64_t step = 0; step < l->steps; step++) {
        if (sl_exec_cancelled(l->exec))
            return;
        step_scales(scale, l, s, rows, o, step);
        l->gemm(t->sum, l->x + s * l->I + step * TILE, l->I, l->w + o * l->I + step * TILE, l->I,
                rows, cols, scale, t->gemm);
    }
    if (l->b)
        take_bias(t->bias, l->b, o, cols);
    for (int64_t r = 0; r < rows; r++)
        finish_row(l, l->y + (s + r) * l->O + o, t, t->sum + r * TILE, cols);
}

sl_status sl_linear_int8_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                             const sl_tensor *x_scale, const sl_tensor *w, const sl_tensor *w_scale,
                             const sl_tensor *b, sl_act act, sl_error *err)
{
    sl_status status = sl_linear_int8_check(exec, y, x, x_scale, w, w_scale, b, act, err);
    linear_int8 l;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("linear_int8", err, y);
    if (status != SL_OK)
        return status;
    l = (linear_int8){
        .exec = exec,
        .gemm = sl_gemm_int8_best(),
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
        .steps = x->dim[1] / TILE,
        .tile_rows = MAX_ROWS,
    };
    const int64_t col_tiles = sl_ceil_div(l.O, TILE);
    while (l.tile_rows > TILE && sl_ceil_div(l.S, l.tile_rows) * col_tiles < TILES_WANTED)
        l.tile_rows /= 2;
    l.row_tiles = sl_ceil_div(l.S, l.tile_rows);
    return sl_exec_parallel(exec, l.row_tiles * col_tiles, linear_tile, &l, err);
}
