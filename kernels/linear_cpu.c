/* Two ways, chosen by the number of rows alone:
 *
 *   few rows    each weight is read once and used for all rows: dot products,
 *               bound by memory bandwidth.
 *   many rows   tiles of y through the matrix library, in steps over I.  bf16
 *               weights are upcast one [O, I] block of a step at a time into
 *               the workspace, where all rows of the tile use it.
 *
 * Tiles and steps follow from the shape, so the order of every sum does too.
 *
 * bf16 activations always go by tiles: x is upcast a step at a time, and what a tile
 * sums up stays in the workspace until it is rounded into y.
 */
#include "kernels/linear.h"

#include "base/size.h"
#include "kernels/gemm.h"
#include "kernels/op_check.h"
#include "kernels/vmath.h"

#include <string.h>

enum {
    FEW_ROWS = 8,             /* S below this: dot products */
    LANES = 16,               /* partial sums of one dot product */
    DOT_TILE_BYTES = 1 << 18, /* weights of one tile of dot products */
    TILE_ROWS = 512,          /* the most rows and columns of y in a tile */
    TILE_COLS = 512,
    TILE_LEAST = 128,  /* the least, but for what remains */
    TILES_WANTED = 48, /* smaller tiles are not worth it past this many */
    STEP = 768,        /* of I; the cancel word is polled in between */
};

/* One thread's workspace. */
typedef struct {
    float w[TILE_COLS * STEP]; /* [cols, step], upcast */
    float x[TILE_ROWS * STEP]; /* [rows, step], upcast */
    float y[TILE_ROWS * TILE_COLS];
} tile_space;

_Static_assert(sizeof(tile_space) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");

typedef struct {
    const sl_exec *exec;
    float *y;       /* or bf16 */
    const float *x; /* or bf16 */
    bool x_bf16, y_bf16;
    const void *w;
    const void *b; /* NULL: none */
    sl_dtype w_dtype, b_dtype;
    sl_act act;
    int64_t S, I, O;
    int64_t tile_rows, tile_cols, row_tiles;
} linear;

sl_status sl_linear_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                          const sl_tensor *b, sl_act act, sl_error *err)
{
    const unsigned both = SL_BITS_ACTIVATION;
    sl_status status = SL_OP_EXPECT("linear", "x", x, both, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = SL_OP_EXPECT("linear", "w", w, both, err, 2, -1, x->dim[1]);
    if (status == SL_OK && b)
        status = SL_OP_EXPECT("linear", "b", b, both, err, 1, w->dim[0]);
    if (status == SL_OK)
        status = SL_OP_EXPECT("linear", "y", y, both, err, 2, x->dim[0], w->dim[0]);
    if (status == SL_OK)
        status = sl_op_expect_apart("linear", "y", y, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart("linear", "y", y, "w", w, err);
    if (status == SL_OK && b)
        status = sl_op_expect_apart("linear", "y", y, "b", b, err);
    if (status == SL_OK && act != SL_ACT_NONE && act != SL_ACT_GELU_TANH && act != SL_ACT_SILU)
        status = sl_fail(err, SL_ERR_INVALID, "linear: act %d is not known", (int)act);
    return status;
}

/* ---- epilogue ---- */

SL_MULTIARCH static void add_bf16(float *y, const uint16_t *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += sl_bf16_to_f32(b[i]);
}

SL_MULTIARCH static void add_f32(float *y, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += b[i];
}

SL_MULTIARCH static void gelu_tanh(float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = sl_gelu_tanhf(y[i]);
}

SL_MULTIARCH static void silu(float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = sl_siluf(y[i]);
}

/* n outputs of one row, from column o. */
static void finish_row(const linear *l, float *y, int64_t o, int64_t n)
{
    if (l->b && l->b_dtype == SL_BF16)
        add_bf16(y, (const uint16_t *)l->b + o, n);
    else if (l->b)
        add_f32(y, (const float *)l->b + o, n);
    if (l->act == SL_ACT_GELU_TANH)
        gelu_tanh(y, n);
    else if (l->act == SL_ACT_SILU)
        silu(y, n);
}

/* ---- few rows ---- */

/* The products of one weight row with all rows of x go to y[s * stride].  Each
 * sum runs in LANES partial sums, added up in a fixed order. */
SL_INLINE void dot_rows(float *y, int64_t stride, const float *x, const void *w, bool bf16,
                        int64_t S, int64_t I)
{
    const uint16_t *w16 = w;
    const float *w32 = w;
    const int64_t whole = I - I % LANES;

    for (int64_t s = 0; s < S; s++) {
        const float *row = x + s * I;
        float part[LANES] = { 0 };
        float sum = 0.0f;

        for (int64_t i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++)
                part[j] += row[i + j] * (bf16 ? sl_bf16_to_f32(w16[i + j]) : w32[i + j]);
        for (int64_t i = whole; i < I; i++)
            part[i - whole] += row[i] * (bf16 ? sl_bf16_to_f32(w16[i]) : w32[i]);
        for (int j = 0; j < LANES; j++)
            sum += part[j];
        y[s * stride] = sum;
    }
}

SL_MULTIARCH static void dot_rows_f32(float *y, int64_t stride, const float *x, const float *w,
                                      int64_t S, int64_t I)
{
    dot_rows(y, stride, x, w, false, S, I);
}

SL_MULTIARCH static void dot_rows_bf16(float *y, int64_t stride, const float *x, const uint16_t *w,
                                       int64_t S, int64_t I)
{
    dot_rows(y, stride, x, w, true, S, I);
}

static void dot_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const linear *l = arg;
    const int64_t first = i * l->tile_cols;
    const int64_t last = first + l->tile_cols < l->O ? first + l->tile_cols : l->O;

    (void)thread;
    (void)workspace;
    for (int64_t o = first; o < last; o++) {
        if (l->w_dtype == SL_BF16)
            dot_rows_bf16(l->y + o, l->O, l->x, (const uint16_t *)l->w + o * l->I, l->S, l->I);
        else
            dot_rows_f32(l->y + o, l->O, l->x, (const float *)l->w + o * l->I, l->S, l->I);
    }
    for (int64_t s = 0; s < l->S; s++)
        finish_row(l, l->y + s * l->O + first, first, last - first);
}

static sl_status run_dots(sl_exec *exec, linear *l, sl_error *err)
{
    const int64_t row_bytes = l->I * (int64_t)sizeof(float);

    l->tile_cols = row_bytes < DOT_TILE_BYTES ? DOT_TILE_BYTES / (row_bytes ? row_bytes : 1) : 1;
    return sl_exec_parallel(exec, sl_ceil_div(l->O, l->tile_cols), dot_tile, l, err);
}

/* ---- many rows ---- */

SL_MULTIARCH static void upcast(float *out, const uint16_t *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = sl_bf16_to_f32(w[i]);
}

SL_MULTIARCH static void round_row(uint16_t *out, const float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = sl_bf16_from_f32(y[i]);
}

static void gemm_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const linear *l = arg;
    const int64_t o = i / l->row_tiles * l->tile_cols, s = i % l->row_tiles * l->tile_rows;
    const int64_t cols = o + l->tile_cols < l->O ? l->tile_cols : l->O - o;
    const int64_t rows = s + l->tile_rows < l->S ? l->tile_rows : l->S - s;
    tile_space *space = workspace;
    float *y = l->y_bf16 ? space->y : l->y + s * l->O + o;
    const int64_t ldy = l->y_bf16 ? cols : l->O;

    (void)thread;
    for (int64_t r = 0; r < rows && l->I == 0; r++)
        memset(y + r * ldy, 0, (size_t)cols * sizeof *y);
    for (int64_t at = 0; at < l->I; at += STEP) {
        const int64_t step = at + STEP < l->I ? STEP : l->I - at;
        const float *w = (const float *)l->w + o * l->I + at, *x = l->x + s * l->I + at;
        int64_t ldw = l->I, ldx = l->I;

        if (sl_exec_cancelled(l->exec))
            return;
        if (l->w_dtype == SL_BF16) {
            const uint16_t *w16 = (const uint16_t *)l->w + o * l->I + at;
            for (int64_t c = 0; c < cols; c++)
                upcast(space->w + c * step, w16 + c * l->I, step);
            w = space->w;
            ldw = step;
        }
        if (l->x_bf16) {
            const uint16_t *x16 = (const uint16_t *)(const void *)l->x + s * l->I + at;
            for (int64_t r = 0; r < rows; r++)
                upcast(space->x + r * step, x16 + r * l->I, step);
            x = space->x;
            ldx = step;
        }
        sl_gemm_nt(rows, cols, step, 1.0f, x, ldx, w, ldw, at ? 1.0f : 0.0f, y, ldy);
    }
    for (int64_t r = 0; r < rows; r++) {
        finish_row(l, y + r * ldy, o, cols);
        if (l->y_bf16)
            round_row((uint16_t *)(void *)l->y + (s + r) * l->O + o, y + r * ldy, cols);
    }
}

/* The largest tiles that still make TILES_WANTED, so that threads stay busy. */
static sl_status run_gemm(sl_exec *exec, linear *l, sl_error *err)
{
    l->tile_rows = l->S < TILE_ROWS ? l->S : TILE_ROWS;
    l->tile_cols = TILE_COLS;
    while (sl_ceil_div(l->S, l->tile_rows) * sl_ceil_div(l->O, l->tile_cols) < TILES_WANTED) {
        if (l->tile_cols >= l->tile_rows && l->tile_cols > TILE_LEAST)
            l->tile_cols /= 2;
        else if (l->tile_rows > TILE_LEAST)
            l->tile_rows /= 2;
        else
            break;
    }
    l->row_tiles = sl_ceil_div(l->S, l->tile_rows);
    return sl_exec_parallel(exec, l->row_tiles * sl_ceil_div(l->O, l->tile_cols), gemm_tile, l,
                            err);
}

sl_status sl_linear_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                        const sl_tensor *b, sl_act act, sl_error *err)
{
    sl_status status = sl_linear_check(exec, y, x, w, b, act, err);
    linear l = { .exec = exec, .act = act };

    if (status != SL_OK)
        return status;
    l.y = y->data;
    l.x = x->data;
    l.w = w->data;
    l.w_dtype = w->dtype;
    l.b = b ? b->data : NULL;
    l.b_dtype = b ? b->dtype : SL_F32;
    l.x_bf16 = x->dtype == SL_BF16;
    l.y_bf16 = y->dtype == SL_BF16;
    l.S = x->dim[0];
    l.I = x->dim[1];
    l.O = w->dim[0];
    if (l.S == 0 || l.O == 0)
        return sl_exec_parallel(exec, 0, NULL, NULL, err);
    const bool few = l.S < FEW_ROWS && !l.x_bf16 && !l.y_bf16;
    return few ? run_dots(exec, &l, err) : run_gemm(exec, &l, err);
}
