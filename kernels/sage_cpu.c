/* The integer products are taken on floats, where they are exact: the sum of
 * 128 products of codes up to 127 stays below 2^24. */
#include "kernels/sage.h"

#include "base/size.h"
#include "kernels/e4m3.h"
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
    I8 = SL_BIT(SL_I8),
    E4M3 = SL_BIT(SL_F8_E4M3),
    HEAD = SL_SLA_MAX_HEAD,
    BLOCK = SL_SLA_MAX_BLOCK,
    STRIP = 256, /* columns of one tile of sage_quantize_v */
    LANES = 16,
};

static const float log2_e = 1.44269504088896341f;
static const float ln_2 = 0.693147180559945309f;
static const float v_range = 2.25f;     /* the largest code of v */
static const float p_exponent = 8.807f; /* the largest P is close to 448 */

SL_INLINE float round_bf16(float x)
{
    return sl_bf16_to_f32(sl_bf16_from_f32(x));
}

/* ---- sage_quantize ---- */

typedef struct {
    int8_t *q;
    float *scale;
    const float *x, *shift;
    int64_t S, N, D, block, blocks;
} quantize;

sl_status sl_sage_quantize_check(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                 const sl_tensor *x, const sl_tensor *shift, int64_t N,
                                 int64_t block, sl_error *err)
{
    static const char op[] = "sage_quantize";
    sl_status status = SL_OP_EXPECT(op, "x", x, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status != SL_OK)
        return status;
    if (N < 1 || x->dim[1] % N != 0 || x->dim[1] / N > HEAD || block < 1 || block > BLOCK)
        return sl_fail(err, SL_ERR_INVALID,
                       "%s: %" PRId64 " heads in a width of %" PRId64 ", blocks of %" PRId64
                       " rows: heads and blocks are at most %d",
                       op, N, x->dim[1], block, (int)BLOCK);
    status = sl_op_expect_like(op, "q", q, I8, x, err);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "scale", scale, F32, err, 2, N, sl_ceil_div(x->dim[0], block));
    if (status == SL_OK && shift)
        status = sl_op_expect_count(op, "shift", shift, F32, x->dim[1], err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "q", q, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "q", q, err);
    if (status == SL_OK && shift)
        status = sl_op_expect_apart(op, "q", q, "shift", shift, err);
    if (status == SL_OK && shift)
        status = sl_op_expect_apart(op, "scale", scale, "shift", shift, err);
    return status;
}

/* v = bf16(bf16(x) - shift); returns the largest magnitude's bits, which order
 * numbers as their values and put NaN above all. */
SL_MULTIARCH static uint32_t smooth_row(float *v, const float *x, const float *shift, int64_t n)
{
    uint32_t most = 0;

    for (int64_t i = 0; i < n; i++) {
        const float moved = round_bf16(x[i]) - shift[i];
        const uint32_t bits = (uint32_t)sl_bf16_from_f32(moved) << 16;
        const uint32_t magnitude = bits & 0x7fffffffu;

        memcpy(v + i, &bits, sizeof bits);
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

/* |v / scale| stays below 127: the codes fit.  NaN gives any code, its scale
 * carries it on. */
SL_MULTIARCH static void encode_row(int8_t *q, const float *v, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float y = v[i] / scale;
        y = y + (y < 0.0f ? -0.5f : 0.5f);
        y = y >= -127.5f ? y : -127.5f;
        y = y <= 127.5f ? y : 127.5f;
        q[i] = (int8_t)(int32_t)y;
    }
}

static void quantize_tile(void *arg, int64_t i, int thread, void *workspace)
{
    static const float zeros[HEAD];
    const quantize *z = arg;
    const int64_t n = i / z->blocks, b = i % z->blocks;
    const int64_t rows = sl_tile_length(b, z->block, z->S), width = z->N * z->D;
    const int64_t from = b * z->block * width + n * z->D;
    const float *shift = z->shift ? z->shift + n * z->D : zeros;
    float *v = workspace, amax;
    uint32_t most = 0;

    (void)thread;
    for (int64_t r = 0; r < rows; r++) {
        const uint32_t found = smooth_row(v + r * z->D, z->x + from + r * width, shift, z->D);
        most = found > most ? found : most;
    }
    memcpy(&amax, &most, sizeof amax);
    z->scale[i] = amax / 127.0f + 1e-7f;
    for (int64_t r = 0; r < rows; r++)
        encode_row(z->q + from + r * width, v + r * z->D, z->scale[i], z->D);
}

sl_status sl_sage_quantize_cpu(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                               const sl_tensor *x, const sl_tensor *shift, int64_t N, int64_t block,
                               sl_error *err)
{
    sl_status status = sl_sage_quantize_check(exec, q, scale, x, shift, N, block, err);
    quantize z;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("sage_quantize", err, x);
    if (status != SL_OK)
        return status;
    z = (quantize){
        .q = q->data,
        .scale = scale->data,
        .x = x->data,
        .shift = shift ? shift->data : NULL,
        .S = x->dim[0],
        .N = N,
        .D = x->dim[1] / N,
        .block = block,
        .blocks = scale->dim[1],
    };
    return sl_exec_parallel(exec, sl_tensor_count(scale), quantize_tile, &z, err);
}

/* ---- sage_quantize_v ---- */

typedef struct {
    uint8_t *q;
    float *scale;
    const float *x;
    int64_t S, C;
} quantize_v;

sl_status sl_sage_quantize_v_check(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                   const sl_tensor *x, sl_error *err)
{
    static const char op[] = "sage_quantize_v";
    sl_status status = SL_OP_EXPECT(op, "x", x, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like(op, "q", q, E4M3, x, err);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "scale", scale, F32, err, 1, x->dim[1]);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "q", q, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "x", x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "scale", scale, "q", q, err);
    return status;
}

SL_MULTIARCH static void raise_to(uint32_t *restrict most, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t magnitude = (uint32_t)sl_bf16_from_f32(x[i]) << 16 & 0x7fffffffu;

        most[i] = magnitude > most[i] ? magnitude : most[i];
    }
}

SL_MULTIARCH static void encode_e4m3(uint8_t *restrict q, const float *restrict x,
                                     const float *restrict by, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        q[i] = sl_e4m3_from_f32(round_bf16(x[i]) * by[i]);
}

static void quantize_v_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const quantize_v *z = arg;
    const int64_t c = i * STRIP, cols = sl_tile_length(i, STRIP, z->C);
    uint32_t *most = workspace;
    float *by = (float *)(most + STRIP);

    (void)thread;
    memset(most, 0, (size_t)cols * sizeof *most);
    for (int64_t r = 0; r < z->S; r++)
        raise_to(most, z->x + r * z->C + c, cols);
    for (int64_t k = 0; k < cols; k++) {
        float amax;

        memcpy(&amax, &most[k], sizeof amax);
        z->scale[c + k] = amax / v_range;
        by[k] = amax == 0.0f ? 0.0f : v_range / amax;
    }
    for (int64_t r = 0; r < z->S; r++)
        encode_e4m3(z->q + r * z->C + c, z->x + r * z->C + c, by, cols);
}

sl_status sl_sage_quantize_v_cpu(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                 const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_sage_quantize_v_check(exec, q, scale, x, err);
    quantize_v z;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("sage_quantize_v", err, x);
    if (status != SL_OK)
        return status;
    z = (quantize_v){
        .q = q->data, .scale = scale->data, .x = x->data, .S = x->dim[0], .C = x->dim[1]
    };
    return sl_exec_parallel(exec, sl_ceil_div(z.C, STRIP), quantize_v_tile, &z, err);
}

/* ---- sage_attention ---- */

typedef struct {
    const sl_exec *exec;
    float *o;
    const float *q;
    const int8_t *q8, *k8;
    const uint8_t *v8;
    const float *q_scale, *k_scale, *v_scale;
    const int32_t *lut;
    const sl_linear_branch *branch;
    int64_t S, N, D, keep, block_q, block_k, query_blocks, key_blocks;
    float scale;
} sage;

typedef struct {
    float q[BLOCK * HEAD];       /* [rows, D] codes */
    float keys[BLOCK * HEAD];    /* [keys, D] codes */
    float values[BLOCK * HEAD];  /* [keys, D] */
    float p[BLOCK * BLOCK];      /* [rows, keys] */
    float part[BLOCK * HEAD];    /* [rows, D]: P . v8 of one key block */
    float product[BLOCK * HEAD]; /* [rows, D]: of all so far */
    float top[BLOCK], sum[BLOCK];
    float keep[BLOCK]; /* what brings the product so far to the new maximum */
    sl_branch_space branch;
} sage_space;

_Static_assert(sizeof(sage_space) <= SL_CPU_WORKSPACE_PER_THREAD, "a tile fits the workspace");

sl_status sl_sage_attention_check(sl_exec *exec, const sl_tensor *o, const sl_sage_operands *x,
                                  const sl_tensor *lut, const sl_tensor *q,
                                  const sl_linear_branch *branch, int64_t N, int64_t block_q,
                                  int64_t block_k, float scale, sl_error *err)
{
    static const char op[] = "sage_attention";
    const sl_tensor *inputs[] = { x->q8, x->q_scale, x->k8, x->k_scale, x->v8, x->v_scale };
    static const char *const names[] = { "q8", "q_scale", "k8", "k_scale", "v8", "v_scale" };
    sl_status status = SL_OP_EXPECT(op, "q8", x->q8, I8, err, 2, -1, -1);

    (void)exec;
    if (status != SL_OK)
        return status;
    const int64_t S = x->q8->dim[0], width = x->q8->dim[1];
    status = sl_sla_check_common(op, S, width, lut, branch, N, block_q, block_k, scale, err);
    if (status == SL_OK)
        status = sl_op_expect_like(op, "k8", x->k8, I8, x->q8, err);
    if (status == SL_OK)
        status = sl_op_expect_like(op, "v8", x->v8, E4M3, x->q8, err);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "q_scale", x->q_scale, F32, err, 2, N, sl_ceil_div(S, block_q));
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "k_scale", x->k_scale, F32, err, 2, N, sl_ceil_div(S, block_k));
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "v_scale", x->v_scale, F32, err, 1, width);
    if (status == SL_OK)
        status = sl_op_expect_like(op, "o", o, SL_BITS_ACTIVATION, x->q8, err);
    if (status == SL_OK && (branch != NULL) != (q != NULL))
        status = sl_fail(err, SL_ERR_INVALID, "%s: q and the linear branch go together", op);
    if (status == SL_OK && q)
        status = sl_op_expect_like(op, "q", q, SL_BIT(o->dtype), x->q8, err);
    if (status == SL_OK && q)
        status = sl_op_expect_apart_or_same(op, "o", o, "q", q, err);
    for (size_t i = 0; i < SL_COUNT(inputs) && status == SL_OK; i++)
        status = sl_op_expect_apart(op, "o", o, names[i], inputs[i], err);
    return status == SL_OK ? sl_sla_check_apart(op, o, lut, branch, err) : status;
}

SL_MULTIARCH static void widen_i8(float *out, const int8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)codes[i];
}

SL_MULTIARCH static void widen_e4m3(float *out, const uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = sl_e4m3_to_f32(codes[i]);
}

SL_MULTIARCH static float scaled_max(float *s, int64_t n, float by)
{
    float top = -INFINITY;

    for (int64_t i = 0; i < n; i++) {
        s[i] *= by;
        top = s[i] > top ? s[i] : top;
    }
    return top;
}

/* s = e4m3(2^(s - top + 8.807)); returns the sum before that rounding. */
SL_MULTIARCH static float weigh(float *s, int64_t n, float top)
{
    float part[LANES] = { 0 };
    const int64_t whole = n - n % LANES;
    float sum = 0.0f;

    for (int64_t i = 0; i < n; i++)
        s[i] = sl_expf((s[i] - top + p_exponent) * ln_2);
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++)
            part[j] += s[i + j];
    for (int64_t i = whole; i < n; i++)
        part[i - whole] += s[i];
    for (int j = 0; j < LANES; j++)
        sum += part[j];
    for (int64_t i = 0; i < n; i++) /* NaN stays */
        s[i] = s[i] <= SL_E4M3_MAX ? sl_e4m3_round_magnitude(s[i]) : s[i];
    return sum;
}

SL_MULTIARCH static void scale_add(float *restrict y, float by, const float *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = y[i] * by + x[i];
}

/* One key block: its logits, weights, and product with v. */
static void attend_block(const sage *a, sage_space *t, int64_t n, int64_t rows, int64_t block,
                         float q_scale, bool first)
{
    const int64_t D = a->D, width = a->N * D;
    const int64_t keys = sl_tile_length(block, a->block_k, a->S);
    const int64_t from = block * a->block_k * width + n * D;
    const float by = q_scale * a->k_scale[n * a->key_blocks + block] * (a->scale * log2_e);

    for (int64_t r = 0; r < keys; r++) {
        widen_i8(t->keys + r * D, a->k8 + from + r * width, D);
        widen_e4m3(t->values + r * D, a->v8 + from + r * width, D);
    }
    sl_gemm_nt(rows, keys, D, 1.0f, t->q, D, t->keys, D, 0.0f, t->p, keys);
    for (int64_t r = 0; r < rows; r++) {
        float *p = t->p + r * keys;
        const float here = scaled_max(p, keys, by);
        const float top = first || here > t->top[r] ? here : t->top[r];
        const float keep = first ? 0.0f : sl_expf((t->top[r] - top) * ln_2);

        t->sum[r] = weigh(p, keys, top) + (first ? 0.0f : t->sum[r] * keep);
        t->top[r] = top;
        t->keep[r] = keep;
    }
    sl_gemm_nn(rows, D, keys, 1.0f, t->p, keys, t->values, D, 0.0f, first ? t->product : t->part,
               D);
    for (int64_t r = 0; r < rows && !first; r++)
        scale_add(t->product + r * D, t->keep[r], t->part + r * D, D);
}

SL_MULTIARCH static void finish_row(float *o, const float *product, const float *v_scale, float by,
                                    int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        o[i] = round_bf16(product[i] * by * v_scale[i]);
}

SL_MULTIARCH static void add_branch(float *o, const float *branch, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        o[i] = round_bf16(o[i] + round_bf16(branch[i]));
}

static void sage_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const sage *a = arg;
    sage_space *t = workspace;
    const int64_t n = i / a->query_blocks, block = i % a->query_blocks;
    const int64_t rows = sl_tile_length(block, a->block_q, a->S);
    const int64_t D = a->D, width = a->N * D, from = block * a->block_q * width + n * D;

    (void)thread;
    for (int64_t r = 0; r < rows; r++)
        widen_i8(t->q + r * D, a->q8 + from + r * width, D);
    for (int64_t at = 0; at < a->keep; at++) {
        if (sl_exec_cancelled(a->exec))
            return;
        attend_block(a, t, n, rows, a->lut[i * a->keep + at], a->q_scale[i], at == 0);
    }
    if (a->branch)
        sl_linear_branch_tile(&t->branch, a->branch, a->q + from, width, n, rows, D);
    for (int64_t r = 0; r < rows; r++) {
        float *o = a->o + from + r * width;

        finish_row(o, t->product + r * D, a->v_scale + n * D, 1.0f / t->sum[r], D);
        if (a->branch)
            add_branch(o, t->branch.out + r * D, D);
    }
}

sl_status sl_sage_attention_cpu(sl_exec *exec, const sl_tensor *o, const sl_sage_operands *x,
                                const sl_tensor *lut, const sl_tensor *q,
                                const sl_linear_branch *branch, int64_t N, int64_t block_q,
                                int64_t block_k, float scale, sl_error *err)
{
    sl_status status =
        sl_sage_attention_check(exec, o, x, lut, q, branch, N, block_q, block_k, scale, err);
    sage a;

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("sage_attention", err, o, q);
    if (status != SL_OK)
        return status;
    a = (sage){
        .exec = exec,
        .o = o->data,
        .q = q ? q->data : NULL,
        .q8 = x->q8->data,
        .k8 = x->k8->data,
        .v8 = x->v8->data,
        .q_scale = x->q_scale->data,
        .k_scale = x->k_scale->data,
        .v_scale = x->v_scale->data,
        .lut = lut->data,
        .branch = branch,
        .S = o->dim[0],
        .N = N,
        .D = o->dim[1] / N,
        .keep = lut->dim[2],
        .block_q = block_q,
        .block_k = block_k,
        .query_blocks = sl_ceil_div(o->dim[0], block_q),
        .key_blocks = sl_ceil_div(o->dim[0], block_k),
        .scale = scale,
    };
    return sl_exec_parallel(exec, N * a.query_blocks, sage_tile, &a, err);
}
