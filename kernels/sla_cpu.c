/* sparse_attention's tile is one head and one query block.  The kept keys and
 * values are gathered into chunks, so that the matrix library sees long rows
 * however short the blocks are. */
#include "kernels/sla.h"

#include "base/size.h"
#include "kernels/gemm.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"
#include "kernels/sla_cpu.h"
#include "kernels/softmax_cpu.h"
#include "kernels/vmath.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    F32 = SL_BIT(SL_F32),
    STRIP = 256,      /* columns of one tile of block_mean */
    TOP_ROWS = 16,    /* query blocks of one tile of top_blocks */
    STATE_ROWS = 256, /* tokens of one step of linear_state */
    KEYS = 512,       /* keys gathered at a time */
    HEAD = SL_SLA_MAX_HEAD,
    BLOCK = SL_SLA_MAX_BLOCK,
};

SL_INLINE float round_bf16(float x)
{
    return sl_bf16_to_f32(sl_bf16_from_f32(x));
}

static sl_status check_heads(const char *op, int64_t width, int64_t N, sl_error *err)
{
    if (N < 1 || width % N != 0 || width / N % 4 != 0 || width / N < 4 || width / N > HEAD)
        return sl_fail(err, SL_ERR_INVALID,
                       "%s: %" PRId64 " heads in a width of %" PRId64
                       ": a head must be a multiple of 4 up to %d",
                       op, N, width, (int)HEAD);
    return SL_OK;
}

static sl_status check_rounding(const char *op, sl_sla_rounding rounding, sl_error *err)
{
    if (rounding != SL_SLA_EXACT && rounding != SL_SLA_BF16)
        return sl_fail(err, SL_ERR_INVALID, "%s: rounding %d is not known", op, (int)rounding);
    return SL_OK;
}

int64_t sl_sla_keep(int64_t key_blocks, double ratio)
{
    const double wanted = ratio * (double)key_blocks;

    if (!(wanted >= 1.0))
        return key_blocks < 1 ? key_blocks : 1;
    return wanted < (double)key_blocks ? (int64_t)wanted : key_blocks;
}

/* ---- block_mean ---- */

typedef struct {
    float *y;
    const float *x, *shift;
    int64_t S, C, block, strips;
    bool bf16;
} block_mean;

sl_status sl_block_mean_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *shift, int64_t block, sl_sla_rounding rounding,
                              sl_error *err)
{
    static const char op[] = "block_mean";
    sl_status status = SL_OP_EXPECT(op, "x", x, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK && block < 1)
        status = sl_fail(err, SL_ERR_INVALID, "%s: blocks of %" PRId64 " rows", op, block);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "y", y, F32, err, 2, sl_ceil_div(x->dim[0], block), x->dim[1]);
    if (status == SL_OK && shift)
        status = sl_op_expect_count(op, "shift", shift, F32, x->dim[1], err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", y, "x", x, err);
    if (status == SL_OK && shift)
        status = sl_op_expect_apart(op, "y", y, "shift", shift, err);
    return status == SL_OK ? check_rounding(op, rounding, err) : status;
}

SL_MULTIARCH static void add_row(double *restrict sum, const float *restrict x,
                                 const float *restrict shift, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += (double)(x[i] - shift[i]);
}

SL_MULTIARCH static void add_row_bf16(double *restrict sum, const float *restrict x,
                                      const float *restrict shift, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += (double)round_bf16(round_bf16(x[i]) - round_bf16(shift[i]));
}

static void block_mean_tile(void *arg, int64_t i, int thread, void *workspace)
{
    static const float zeros[STRIP];
    const block_mean *m = arg;
    const int64_t b = i / m->strips, c = i % m->strips * STRIP;
    const int64_t cols = c + STRIP < m->C ? STRIP : m->C - c;
    const int64_t rows = sl_tile_length(b, m->block, m->S);
    const float *x = m->x + b * m->block * m->C + c;
    const float *shift = m->shift ? m->shift + c : zeros;
    float *y = m->y + b * m->C + c;
    double *sum = workspace;

    (void)thread;
    memset(sum, 0, (size_t)cols * sizeof *sum);
    for (int64_t r = 0; r < rows; r++) {
        if (m->bf16)
            add_row_bf16(sum, x + r * m->C, shift, cols);
        else
            add_row(sum, x + r * m->C, shift, cols);
    }
    for (int64_t k = 0; k < cols; k++) {
        const float mean = (float)(sum[k] / (double)rows);
        y[k] = m->bf16 ? round_bf16(mean) : mean;
    }
}

sl_status sl_block_mean_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                            const sl_tensor *shift, int64_t block, sl_sla_rounding rounding,
                            sl_error *err)
{
    sl_status status = sl_block_mean_check(exec, y, x, shift, block, rounding, err);
    block_mean m;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("block_mean", err, x);
    if (status != SL_OK)
        return status;
    m = (block_mean){
        .y = y->data,
        .x = x->data,
        .shift = shift ? shift->data : NULL,
        .S = x->dim[0],
        .C = x->dim[1],
        .block = block,
        .strips = sl_ceil_div(x->dim[1], STRIP),
        .bf16 = rounding == SL_SLA_BF16,
    };
    return sl_exec_parallel(exec, y->dim[0] * m.strips, block_mean_tile, &m, err);
}

/* ---- top_blocks ---- */

typedef struct {
    int32_t *lut;
    const float *pq, *pk;
    int64_t Q, K, N, D, keep, row_tiles;
    bool bf16;
} top_blocks;

sl_status sl_top_blocks_check(sl_exec *exec, const sl_tensor *lut, const sl_tensor *pq,
                              const sl_tensor *pk, int64_t N, sl_sla_rounding rounding,
                              sl_error *err)
{
    static const char op[] = "top_blocks";
    sl_status status = SL_OP_EXPECT(op, "pq", pq, F32, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = check_heads(op, pq->dim[1], N, err);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "pk", pk, F32, err, 2, -1, pq->dim[1]);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "lut", lut, SL_BIT(SL_I32), err, 3, N, pq->dim[0], -1);
    if (status == SL_OK &&
        (lut->dim[2] < 1 || lut->dim[2] > pk->dim[0] || pk->dim[0] > SL_SLA_MAX_BLOCKS))
        status =
            sl_fail(err, SL_ERR_INVALID,
                    "%s: %" PRId64 " of %" PRId64 " key blocks: expected 1 to all of at most %d",
                    op, lut->dim[2], pk->dim[0], (int)SL_SLA_MAX_BLOCKS);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "lut", lut, "pq", pq, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "lut", lut, "pk", pk, err);
    return status == SL_OK ? check_rounding(op, rounding, err) : status;
}

/* Integers in the order of the floats: -0 is 0, NaN comes last or first. */
static void sort_keys(uint32_t *keys, const float *scores, int64_t n, bool bf16)
{
    for (int64_t i = 0; i < n; i++) {
        const float score = (bf16 ? round_bf16(scores[i]) : scores[i]) + 0.0f;
        uint32_t bits;

        memcpy(&bits, &score, sizeof bits);
        keys[i] = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    }
}

/* The keep-th largest key, found byte by byte; *above: how many are larger. */
static uint32_t find_threshold(const uint32_t *keys, int64_t n, int64_t keep, int64_t *above)
{
    uint32_t prefix = 0;

    *above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        const uint32_t known = shift == 24 ? 0 : ~0u << (shift + 8);
        int64_t count[256] = { 0 };
        int byte = 255;

        for (int64_t i = 0; i < n; i++)
            if ((keys[i] & known) == prefix)
                count[keys[i] >> shift & 255]++;
        while (*above + count[byte] < keep)
            *above += count[byte--];
        prefix |= (uint32_t)byte << shift;
    }
    return prefix;
}

static void take_top(int32_t *lut, const uint32_t *keys, int64_t n, int64_t keep)
{
    int64_t above, taken = 0;
    const uint32_t threshold = find_threshold(keys, n, keep, &above);
    int64_t equal = keep - above; /* of those at the threshold, the first ones */

    for (int64_t i = 0; taken < keep; i++) {
        if (keys[i] < threshold || (keys[i] == threshold && equal-- <= 0))
            continue;
        lut[taken++] = (int32_t)i;
    }
}

static void top_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const top_blocks *t = arg;
    const int64_t n = i / t->row_tiles, first = i % t->row_tiles * TOP_ROWS;
    const int64_t rows = first + TOP_ROWS < t->Q ? TOP_ROWS : t->Q - first;
    const int64_t width = t->N * t->D;
    float *scores = workspace;
    uint32_t *keys = (uint32_t *)(scores + TOP_ROWS * t->K);

    (void)thread;
    sl_gemm_nt(rows, t->K, t->D, 1.0f, t->pq + first * width + n * t->D, width, t->pk + n * t->D,
               width, 0.0f, scores, t->K);
    for (int64_t r = 0; r < rows; r++) {
        sort_keys(keys, scores + r * t->K, t->K, t->bf16);
        take_top(t->lut + (n * t->Q + first + r) * t->keep, keys, t->K, t->keep);
    }
}

_Static_assert((size_t)(TOP_ROWS + 1) * SL_SLA_MAX_BLOCKS * sizeof(float) <=
                   SL_CPU_WORKSPACE_PER_THREAD,
               "a tile's scores fit the workspace");

sl_status sl_top_blocks_cpu(sl_exec *exec, const sl_tensor *lut, const sl_tensor *pq,
                            const sl_tensor *pk, int64_t N, sl_sla_rounding rounding, sl_error *err)
{
    const sl_status status = sl_top_blocks_check(exec, lut, pq, pk, N, rounding, err);
    top_blocks t;

    if (status != SL_OK)
        return status;
    t = (top_blocks){
        .lut = lut->data,
        .pq = pq->data,
        .pk = pk->data,
        .Q = pq->dim[0],
        .K = pk->dim[0],
        .N = N,
        .D = pq->dim[1] / N,
        .keep = lut->dim[2],
        .row_tiles = sl_ceil_div(pq->dim[0], TOP_ROWS),
        .bf16 = rounding == SL_SLA_BF16,
    };
    return sl_exec_parallel(exec, N * t.row_tiles, top_tile, &t, err);
}

/* ---- linear_state ---- */

typedef struct {
    const sl_exec *exec;
    float *state;
    const float *k, *v;
    int64_t S, N, D;
} linear_state;

typedef struct {
    float phi[STATE_ROWS * HEAD];   /* [rows, D] */
    float phi_t[HEAD * STATE_ROWS]; /* [D, rows] */
    double sum[HEAD];
} state_space;

_Static_assert(sizeof(state_space) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");

sl_status sl_linear_state_check(sl_exec *exec, const sl_tensor *state, const sl_tensor *k,
                                const sl_tensor *v, int64_t N, sl_error *err)
{
    static const char op[] = "linear_state";
    sl_status status = SL_OP_EXPECT(op, "k", k, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = check_heads(op, k->dim[1], N, err);
    if (status == SL_OK)
        status = sl_op_expect_like(op, "v", v, SL_BIT(k->dtype), k, err);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "state", state, F32, err, 3, N, k->dim[1] / N + 1, k->dim[1] / N);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "state", state, "k", k, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "state", state, "v", v, err);
    return status;
}

SL_MULTIARCH static void add_to_sum(double *restrict sum, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        sum[i] += (double)x[i];
}

static void state_tile(void *arg, int64_t n, int thread, void *workspace)
{
    const linear_state *l = arg;
    state_space *t = workspace;
    const int64_t D = l->D, width = l->N * D;
    float *state = l->state + n * (D + 1) * D;

    (void)thread;
    memset(state, 0, (size_t)(D * D) * sizeof *state);
    memset(t->sum, 0, sizeof t->sum);
    for (int64_t first = 0; first < l->S; first += STATE_ROWS) {
        const int64_t rows = first + STATE_ROWS < l->S ? STATE_ROWS : l->S - first;

        if (sl_exec_cancelled(l->exec))
            return;
        for (int64_t r = 0; r < rows; r++) {
            float *phi = t->phi + r * D;
            sl_softmax_whole(phi, l->k + (first + r) * width + n * D, D);
            add_to_sum(t->sum, phi, D);
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t d = 0; d < D; d++)
                t->phi_t[d * rows + r] = t->phi[r * D + d];
        sl_gemm_nn(D, D, rows, 1.0f, t->phi_t, rows, l->v + first * width + n * D, width, 1.0f,
                   state, D);
    }
    for (int64_t d = 0; d < D; d++)
        state[D * D + d] = (float)t->sum[d];
}

sl_status sl_linear_state_cpu(sl_exec *exec, const sl_tensor *state, const sl_tensor *k,
                              const sl_tensor *v, int64_t N, sl_error *err)
{
    sl_status status = sl_linear_state_check(exec, state, k, v, N, err);
    linear_state l;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("linear_state", err, k);
    if (status != SL_OK)
        return status;
    l = (linear_state){
        .exec = exec,
        .state = state->data,
        .k = k->data,
        .v = v->data,
        .S = k->dim[0],
        .N = N,
        .D = k->dim[1] / N,
    };
    return sl_exec_parallel(exec, N, state_tile, &l, err);
}

/* ---- sparse_attention and the linear branch ---- */

static sl_status check_branch(const char *op, const sl_linear_branch *branch, int64_t N, int64_t D,
                              sl_error *err)
{
    const unsigned weights = F32 | SL_BIT(SL_BF16);
    sl_status status = SL_OP_EXPECT(op, "state", branch->state, F32, err, 3, N, D + 1, D);

    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "proj_w", branch->proj_w, weights, err, 2, D, D);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "proj_b", branch->proj_b, weights, err, 1, D);
    return status;
}

sl_status sl_sla_check_common(const char *op, int64_t S, int64_t width, const sl_tensor *lut,
                              const sl_linear_branch *branch, int64_t N, int64_t block_q,
                              int64_t block_k, float scale, sl_error *err)
{
    sl_status status = check_heads(op, width, N, err);

    if (status != SL_OK)
        return status;
    if (block_q < 1 || block_q > BLOCK || block_k < 1 || block_k > BLOCK)
        return sl_fail(err, SL_ERR_INVALID,
                       "%s: blocks of %" PRId64 " and %" PRId64 " rows: expected 1 to %d", op,
                       block_q, block_k, (int)BLOCK);
    if (!isfinite(scale))
        return sl_fail(err, SL_ERR_INVALID, "%s: scale %g is not finite", op, (double)scale);
    status = SL_OP_EXPECT(op, "lut", lut, SL_BIT(SL_I32), err, 3, N, sl_ceil_div(S, block_q), -1);
    if (status == SL_OK && S > 0 && (lut->dim[2] < 1 || lut->dim[2] > sl_ceil_div(S, block_k)))
        status = sl_fail(err, SL_ERR_INVALID,
                         "%s: %" PRId64 " of %" PRId64 " key blocks are kept: expected 1 to all",
                         op, lut->dim[2], sl_ceil_div(S, block_k));
    if (status == SL_OK && branch)
        status = check_branch(op, branch, N, width / N, err);
    return status;
}

sl_status sl_sla_check_apart(const char *op, const sl_tensor *o, const sl_tensor *lut,
                             const sl_linear_branch *branch, sl_error *err)
{
    sl_status status = sl_op_expect_apart(op, "o", o, "lut", lut, err);

    if (status == SL_OK && branch)
        status = sl_op_expect_apart(op, "o", o, "state", branch->state, err);
    if (status == SL_OK && branch)
        status = sl_op_expect_apart(op, "o", o, "proj_w", branch->proj_w, err);
    if (status == SL_OK && branch)
        status = sl_op_expect_apart(op, "o", o, "proj_b", branch->proj_b, err);
    return status;
}

sl_status sl_sparse_attention_check(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                                    const sl_tensor *k, const sl_tensor *v, const sl_tensor *lut,
                                    const sl_linear_branch *branch, int64_t N, int64_t block_q,
                                    int64_t block_k, float scale, sl_error *err)
{
    static const char op[] = "sparse_attention";
    sl_status status = SL_OP_EXPECT(op, "q", q, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like(op, "k", k, SL_BIT(q->dtype), q, err);
    if (status == SL_OK)
        status = sl_op_expect_like(op, "v", v, SL_BIT(q->dtype), q, err);
    if (status == SL_OK)
        status = sl_op_expect_like(op, "o", o, SL_BIT(q->dtype), q, err);
    if (status == SL_OK)
        status = sl_sla_check_common(op, q->dim[0], q->dim[1], lut, branch, N, block_q, block_k,
                                     scale, err);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same(op, "o", o, "q", q, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "o", o, "k", k, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "o", o, "v", v, err);
    return status == SL_OK ? sl_sla_check_apart(op, o, lut, branch, err) : status;
}

SL_MULTIARCH static float dot(const float *restrict a, const float *restrict b, int64_t n)
{
    float part[4] = { 0 };

    for (int64_t i = 0; i < n; i += 4) /* a head is a multiple of 4 */
        for (int j = 0; j < 4; j++)
            part[j] += a[i + j] * b[i + j];
    return (part[0] + part[1]) + (part[2] + part[3]);
}

SL_MULTIARCH static void add_to(float *y, const float *x, int64_t n)
{
    SL_IVDEP
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

void sl_linear_branch_tile(sl_branch_space *t, const sl_linear_branch *branch, const float *q,
                           int64_t width, int64_t n, int64_t rows, int64_t D)
{
    const float *state = (const float *)branch->state->data + n * (D + 1) * D;
    const float *w = sl_param_f32(branch->proj_w, t->w), *b = sl_param_f32(branch->proj_b, t->b);

    for (int64_t r = 0; r < rows; r++)
        sl_softmax_whole(t->phi + r * D, q + r * width, D);
    sl_gemm_nn(rows, D, D, 1.0f, t->phi, D, state, D, 0.0f, t->part, D);
    for (int64_t r = 0; r < rows; r++) {
        const float norm = dot(t->phi + r * D, state + D * D, D) + 1e-5f;
        sl_scale_row(t->part + r * D, t->part + r * D, 1.0f / norm, D);
    }
    sl_gemm_nt(rows, D, D, 1.0f, t->part, D, w, D, 0.0f, t->out, D);
    for (int64_t r = 0; r < rows; r++)
        add_to(t->out + r * D, b, D);
}

typedef struct {
    const sl_exec *exec;
    float *o;
    const float *q, *k, *v;
    const int32_t *lut;
    const sl_linear_branch *branch;
    int64_t S, N, D, keep, block_q, block_k, query_blocks;
    float scale;
} sparse;

typedef struct {
    float scores[BLOCK * KEYS];  /* [rows, keys] */
    float keys[KEYS * HEAD];     /* [keys, D] */
    float values[KEYS * HEAD];   /* [keys, D] */
    float product[BLOCK * HEAD]; /* [rows, D] */
    float top[BLOCK];
    double sum[BLOCK];
    sl_branch_space branch;
} sparse_space;

_Static_assert(sizeof(sparse_space) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");

/* Copies kept blocks from lut[*at] on until the next would not fit; returns how
 * many keys there are now. */
static int64_t gather(const sparse *a, sparse_space *t, int64_t n, const int32_t *lut, int64_t *at)
{
    const int64_t D = a->D, width = a->N * D;
    int64_t count = 0;

    for (; *at < a->keep; ++*at) {
        const int64_t rows = sl_tile_length(lut[*at], a->block_k, a->S);
        const int64_t from = lut[*at] * a->block_k * width + n * D;

        if (count + rows > KEYS)
            break;
        for (int64_t r = 0; r < rows; r++) {
            memcpy(t->keys + (count + r) * D, a->k + from + r * width, (size_t)D * sizeof(float));
            memcpy(t->values + (count + r) * D, a->v + from + r * width, (size_t)D * sizeof(float));
        }
        count += rows;
    }
    return count;
}

static void sparse_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const sparse *a = arg;
    sparse_space *t = workspace;
    const int64_t n = i / a->query_blocks, block = i % a->query_blocks;
    const int64_t first = block * a->block_q, rows = sl_tile_length(block, a->block_q, a->S);
    const int64_t D = a->D, width = a->N * D;
    const float *q = a->q + first * width + n * D;
    const int32_t *lut = a->lut + i * a->keep;
    float *o = a->o + first * width + n * D;

    (void)thread;
    for (int64_t at = 0; at < a->keep;) {
        const bool none_yet = at == 0;
        const int64_t keys = gather(a, t, n, lut, &at);

        if (sl_exec_cancelled(a->exec))
            return;
        sl_gemm_nt(rows, keys, D, a->scale, q, width, t->keys, D, 0.0f, t->scores, keys);
        for (int64_t r = 0; r < rows; r++)
            sl_softmax_row(t->scores + r * keys, keys, none_yet, &t->top[r], &t->sum[r],
                           t->product + r * D, D);
        sl_gemm_nn(rows, D, keys, 1.0f, t->scores, keys, t->values, D, none_yet ? 0.0f : 1.0f,
                   t->product, D);
    }
    if (a->branch)
        sl_linear_branch_tile(&t->branch, a->branch, q, width, n, rows, D);
    for (int64_t r = 0; r < rows; r++) {
        sl_scale_row(o + r * width, t->product + r * D, (float)(1.0 / t->sum[r]), D);
        if (a->branch)
            add_to(o + r * width, t->branch.out + r * D, D);
    }
}

sl_status sl_sparse_attention_cpu(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                                  const sl_tensor *k, const sl_tensor *v, const sl_tensor *lut,
                                  const sl_linear_branch *branch, int64_t N, int64_t block_q,
                                  int64_t block_k, float scale, sl_error *err)
{
    sl_status status =
        sl_sparse_attention_check(exec, o, q, k, v, lut, branch, N, block_q, block_k, scale, err);
    sparse a;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("sparse_attention", err, q);
    if (status != SL_OK)
        return status;
    a = (sparse){
        .exec = exec,
        .o = o->data,
        .q = q->data,
        .k = k->data,
        .v = v->data,
        .lut = lut->data,
        .branch = branch,
        .S = q->dim[0],
        .N = N,
        .D = q->dim[1] / N,
        .keep = lut->dim[2],
        .block_q = block_q,
        .block_k = block_k,
        .query_blocks = sl_ceil_div(q->dim[0], block_q),
        .scale = scale,
    };
    return sl_exec_parallel(exec, N * a.query_blocks, sparse_tile, &a, err);
}
