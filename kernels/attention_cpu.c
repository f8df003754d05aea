/* A tile is one head and QUERIES rows of q.  It goes over the keys in blocks
 * and keeps each row as softmax_cpu.h says.  Scores and products are two calls
 * of the matrix library on rows strided by N*D, so heads are never copied; bf16
 * ones are upcast into the workspace.
 */
#include "kernels/attention.h"

#include "base/size.h"
#include "kernels/gemm.h"
#include "kernels/op_check.h"
#include "kernels/softmax_cpu.h"
#include "kernels/vmath.h"

#include <inttypes.h>
#include <math.h>

enum {
    MAX_HEAD = 512,
    QUERIES = 256, /* of a tile, at most */
    KEYS = 512,    /* of a block; the cancel word is polled for each */
    LEAST_QUERIES = 32,
    TILES_WANTED = 64,
};

/* One thread's workspace. */
typedef struct {
    float scores[QUERIES * KEYS];      /* [rows, keys] */
    float product[QUERIES * MAX_HEAD]; /* [rows, D] */
    float q[QUERIES * MAX_HEAD];       /* upcast, [rows, D]; then the same of o */
    float k[KEYS * MAX_HEAD];          /* upcast, [keys, D] */
    float v[KEYS * MAX_HEAD];
    float top[QUERIES];  /* the maximum so far */
    double sum[QUERIES]; /* of exp(score - top) */
} tile_space;

_Static_assert(sizeof(tile_space) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");

typedef struct {
    const sl_exec *exec;
    float *o;
    const float *q, *k, *v; /* o, q, k, v may be bf16 */
    const float *bias;      /* NULL: none */
    bool bf16;
    int64_t Sq, Sk, N, D;
    int64_t queries, query_tiles;
    float scale;
} attention;

sl_status sl_attention_check(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                             const sl_tensor *k, const sl_tensor *v, const sl_tensor *bias,
                             int64_t N, float scale, sl_error *err)
{
    sl_status status = SL_OP_EXPECT("attention", "q", q, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status != SL_OK)
        return status;
    const unsigned alike = SL_BIT(q->dtype);
    const int64_t width = q->dim[1];
    if (N < 1 || width % N != 0 || width / N % 4 != 0 || width / N < 4 || width / N > MAX_HEAD)
        return sl_fail(err, SL_ERR_INVALID,
                       "attention: %" PRId64 " heads in a width of %" PRId64
                       ": a head must be a multiple of 4 up to %d",
                       N, width, MAX_HEAD);
    if (!isfinite(scale))
        return sl_fail(err, SL_ERR_INVALID, "attention: scale %g is not finite", (double)scale);
    status = SL_OP_EXPECT("attention", "k", k, alike, err, 2, -1, width);
    if (status == SL_OK && k->dim[0] < 1)
        status = sl_fail(err, SL_ERR_INVALID, "attention: no keys");
    if (status == SL_OK)
        status = SL_OP_EXPECT("attention", "v", v, alike, err, 2, k->dim[0], width);
    if (status == SL_OK)
        status = SL_OP_EXPECT("attention", "o", o, alike, err, 2, q->dim[0], width);
    if (status == SL_OK && bias && q->dim[0] > 0)
        status = SL_OP_EXPECT("attention", "bias", bias, SL_BIT(SL_F32), err, 2, N,
                              q->dim[0] + k->dim[0] - 1);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same("attention", "o", o, "q", q, err);
    if (status == SL_OK)
        status = sl_op_expect_apart("attention", "o", o, "k", k, err);
    if (status == SL_OK)
        status = sl_op_expect_apart("attention", "o", o, "v", v, err);
    if (status == SL_OK && bias)
        status = sl_op_expect_apart("attention", "o", o, "bias", bias, err);
    return status;
}

SL_MULTIARCH static void row_add(float *s, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        s[i] += b[i];
}

/* Scores of one key block become weights. */
static void soften(const attention *a, tile_space *t, int64_t n, int64_t first_q, int64_t rows,
                   int64_t first_k, int64_t keys)
{
    for (int64_t r = 0; r < rows; r++) {
        float *s = t->scores + r * keys;

        if (a->bias)
            row_add(s, a->bias + n * (a->Sq + a->Sk - 1) + first_k - (first_q + r) + a->Sq - 1,
                    keys);
        sl_softmax_row(s, keys, first_k == 0, &t->top[r], &t->sum[r], t->product + r * a->D, a->D);
    }
}

SL_MULTIARCH static void upcast_rows(float *out, const uint16_t *rows, int64_t stride, int64_t n,
                                     int64_t D)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t d = 0; d < D; d++)
            out[r * D + d] = sl_bf16_to_f32(rows[r * stride + d]);
}

SL_MULTIARCH static void round_rows(uint16_t *rows, int64_t stride, const float *in, int64_t n,
                                    int64_t D)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t d = 0; d < D; d++)
            rows[r * stride + d] = sl_bf16_from_f32(in[r * D + d]);
}

/* n rows of head `head` of x from row `first` on, and their stride. */
static const float *head_rows(const attention *a, const float *x, int64_t head, int64_t first,
                              int64_t n, float *space, int64_t *stride)
{
    const int64_t width = a->N * a->D, at = first * width + head * a->D;

    *stride = a->bf16 ? a->D : width;
    if (!a->bf16)
        return x + at;
    upcast_rows(space, (const uint16_t *)(const void *)x + at, width, n, a->D);
    return space;
}

static void attention_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const attention *a = arg;
    tile_space *t = workspace;
    const int64_t n = i / a->query_tiles, first_q = i % a->query_tiles * a->queries;
    const int64_t rows = first_q + a->queries < a->Sq ? a->queries : a->Sq - first_q;
    const int64_t D = a->D, width = a->N * D, at = first_q * width + n * D;
    int64_t ldq, ldk;
    const float *q = head_rows(a, a->q, n, first_q, rows, t->q, &ldq);

    (void)thread;
    for (int64_t first_k = 0; first_k < a->Sk; first_k += KEYS) {
        const int64_t keys = first_k + KEYS < a->Sk ? KEYS : a->Sk - first_k;
        const float *k, *v;

        if (sl_exec_cancelled(a->exec))
            return;
        k = head_rows(a, a->k, n, first_k, keys, t->k, &ldk);
        v = head_rows(a, a->v, n, first_k, keys, t->v, &ldk);
        sl_gemm_nt(rows, keys, D, a->scale, q, ldq, k, ldk, 0.0f, t->scores, keys);
        soften(a, t, n, first_q, rows, first_k, keys);
        sl_gemm_nn(rows, D, keys, 1.0f, t->scores, keys, v, ldk, first_k ? 1.0f : 0.0f, t->product,
                   D);
    }
    float *o = a->bf16 ? t->q : a->o + at;
    for (int64_t r = 0; r < rows; r++)
        sl_scale_row(o + r * ldq, t->product + r * D, (float)(1.0 / t->sum[r]), D);
    if (a->bf16)
        round_rows((uint16_t *)(void *)a->o + at, width, o, rows, D);
}

sl_status sl_attention_cpu(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                           const sl_tensor *k, const sl_tensor *v, const sl_tensor *bias, int64_t N,
                           float scale, sl_error *err)
{
    sl_status status = sl_attention_check(exec, o, q, k, v, bias, N, scale, err);

    if (status != SL_OK)
        return status;
    attention a = {
        .exec = exec,
        .o = o->data,
        .q = q->data,
        .k = k->data,
        .v = v->data,
        .bias = bias ? bias->data : NULL,
        .Sq = q->dim[0],
        .Sk = k->dim[0],
        .N = N,
        .D = q->dim[1] / N,
        .queries = QUERIES,
        .bf16 = q->dtype == SL_BF16,
        .scale = scale,
    };
    while (a.queries > LEAST_QUERIES && N * sl_ceil_div(a.Sq, a.queries) < TILES_WANTED)
        a.queries /= 2;
    a.query_tiles = sl_ceil_div(a.Sq, a.queries);
    return sl_exec_parallel(exec, N * a.query_tiles, attention_tile, &a, err);
}
