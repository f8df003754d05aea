/* gpu_sparse - sparse-linear attention and SageSLA, op by op.  Scores of blocks
 * are sums of small integers here, exact in any order, so that maps must be equal
 * with all their ties. */
#include "kernels/cuda.h"
#include "kernels/sage.h"
#include "kernels/sla_cuda.h"
#include "tests/gpu/gpu_test.h"

#include <math.h>
#include <string.h>

typedef struct {
    int64_t S, N, D, block_q, block_k, keep;
} shape;

static int64_t query_blocks(const shape *c)
{
    return sl_ceil_div(c->S, c->block_q);
}

static int64_t key_blocks(const shape *c)
{
    return sl_ceil_div(c->S, c->block_k);
}

static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* ---- block_mean ---- */

static void check_block_mean(gpu *g, sl_dtype dtype, int64_t S, int64_t C, int64_t block,
                             bool shifted, sl_sla_rounding rounding)
{
    /* One bf16 apart: the mean may lie next to the middle of two. */
    const gpu_limits rounded = { 2e-3, 1, 1e-3 };

    if (!gpu_begin(g, "block_mean %s [%lld,%lld] by %lld%s%s", gpu_dtype(dtype), (long long)S,
                   (long long)C, (long long)block, shifted ? " less shift" : "",
                   rounding == SL_SLA_BF16 ? " rounded" : ""))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 2.0, 2, S, C);
    gpu_tensor shift = GPU_RANDOM(g, SL_F32, 1.0, 1, C);
    gpu_tensor y = GPU_OUTPUT(g, SL_F32, 2, sl_ceil_div(S, block), C);
    GPU_BOTH(g, block_mean, GPU_ON(y), GPU_ON(x), shifted ? GPU_ON(shift) : NULL, block, rounding);
    gpu_compare(g, "y", &y, rounding == SL_SLA_BF16 ? rounded : GPU_F32);
    gpu_end(g);
}

static void test_block_mean(gpu *g)
{
    static const struct {
        int64_t S, C, block;
    } cases[] = {
        { 1, 128, 64 },    { 77, 12, 5 },       { 1300, 256, 64 },  { 700, 5120, 128 },
        { 1300, 3, 1300 }, { 1000, 130, 1000 }, { 257, 1536, 256 }, { 5000, 136, 600 },
    };
    static const sl_dtype dtypes[] = { SL_F32, SL_BF16 };

    for (size_t i = 0; i < SL_COUNT(cases); i++)
        for (int variant = 0; variant < 8; variant++)
            check_block_mean(g, dtypes[variant % 2], cases[i].S, cases[i].C, cases[i].block,
                             variant / 2 % 2 != 0, variant / 4 ? SL_SLA_BF16 : SL_SLA_EXACT);
    if (g->small)
        return;
    check_block_mean(g, SL_BF16, 32760, 1536, 64, true, SL_SLA_EXACT);
    check_block_mean(g, SL_BF16, 32760, 1536, 32760, false, SL_SLA_BF16);
    check_block_mean(g, SL_BF16, 75600, 1024, 75600, false, SL_SLA_EXACT);
}

/* ---- top_blocks ---- */

static void fill_integers(gpu *g, gpu_tensor *t, int64_t most, uint64_t seed)
{
    float *to = t->on[GPU_CPU].data;

    for (int64_t i = 0; !g->broken && i < sl_tensor_count(&t->on[GPU_CPU]); i++)
        to[i] = (float)((int64_t)(draw(&seed) % (uint64_t)(2 * most + 1)) - most);
    gpu_push(g, t);
}

/* most 0: all scores are equal, the first blocks are kept. */
static void check_top_blocks(gpu *g, int64_t Q, int64_t K, int64_t N, int64_t D, int64_t keep,
                             int64_t most, sl_sla_rounding rounding)
{
    if (!gpu_begin(g, "top_blocks %lld of %lld, %lld queries, %lld heads of %lld, up to %lld%s",
                   (long long)keep, (long long)K, (long long)Q, (long long)N, (long long)D,
                   (long long)most, rounding == SL_SLA_BF16 ? " rounded" : ""))
        return;
    gpu_tensor pq = GPU_OUTPUT(g, SL_F32, 2, Q, N * D), pk = GPU_OUTPUT(g, SL_F32, 2, K, N * D);
    gpu_tensor lut = GPU_OUTPUT(g, SL_I32, 3, N, Q, keep);
    fill_integers(g, &pq, most, 1);
    fill_integers(g, &pk, most, 2);
    GPU_BOTH(g, top_blocks, GPU_ON(lut), GPU_ON(pq), GPU_ON(pk), N, rounding);
    gpu_compare(g, "lut", &lut, GPU_EXACT);
    gpu_end(g);
}

static void test_top_blocks(gpu *g)
{
    for (int rounding = SL_SLA_EXACT; rounding <= SL_SLA_BF16; rounding++) {
        check_top_blocks(g, 1, 1, 1, 4, 1, 5, (sl_sla_rounding)rounding);
        check_top_blocks(g, 13, 21, 2, 128, 2, 9, (sl_sla_rounding)rounding);
        check_top_blocks(g, 5, 7, 3, 12, 7, 9, (sl_sla_rounding)rounding);
        check_top_blocks(g, 33, 100, 2, 64, 31, 0, (sl_sla_rounding)rounding);
        check_top_blocks(g, 17, 65, 2, 64, 6, 1, (sl_sla_rounding)rounding);
        if (g->small)
            continue;
        check_top_blocks(g, 256, 512, 12, 128, 51, 20, (sl_sla_rounding)rounding);
        check_top_blocks(g, 512, 256, 12, 128, 25, 3, (sl_sla_rounding)rounding);
        check_top_blocks(g, 591, 1182, 2, 128, 118, 20, (sl_sla_rounding)rounding);
        check_top_blocks(g, 40, 9000, 1, 128, 900, 4, (sl_sla_rounding)rounding);
    }
}

/* ---- linear_state ---- */

/* On tensor cores phi is rounded to bf16. */
static gpu_limits state_limits(sl_dtype dtype, int64_t D)
{
    const gpu_limits rounded = { 3e-3, -1, 0.0 };

    return dtype == SL_BF16 && (D == 64 || D == 128) ? rounded : GPU_F32;
}

static void check_linear_state(gpu *g, sl_dtype dtype, int64_t S, int64_t N, int64_t D)
{
    if (!gpu_begin(g, "linear_state %s [%lld,%lld*%lld]", gpu_dtype(dtype), (long long)S,
                   (long long)N, (long long)D))
        return;
    gpu_tensor k = GPU_RANDOM(g, dtype, 2.0, 2, S, N * D);
    gpu_tensor v = GPU_RANDOM(g, dtype, 1.0, 2, S, N * D);
    gpu_tensor state = GPU_OUTPUT(g, SL_F32, 3, N, D + 1, D);
    GPU_BOTH(g, linear_state, GPU_ON(state), GPU_ON(k), GPU_ON(v), N);
    gpu_compare(g, "state", &state, state_limits(dtype, D));
    gpu_end(g);
}

static void test_linear_state(gpu *g)
{
    static const struct {
        int64_t S, N, D;
    } cases[] = {
        { 0, 2, 128 }, { 1, 1, 4 },     { 77, 2, 12 },   { 129, 1, 100 },
        { 1, 2, 128 }, { 300, 3, 64 },  { 712, 2, 128 }, { 1300, 1, 128 },
    };
    static const sl_dtype dtypes[] = { SL_F32, SL_BF16 };

    for (size_t i = 0; i < SL_COUNT(cases); i++)
        for (size_t d = 0; d < SL_COUNT(dtypes); d++)
            check_linear_state(g, dtypes[d], cases[i].S, cases[i].N, cases[i].D);
    if (g->small)
        return;
    check_linear_state(g, SL_F32, 5000, 3, 128);
    check_linear_state(g, SL_BF16, 5000, 12, 128);
    check_linear_state(g, SL_BF16, 1300, 40, 128);
    check_linear_state(g, SL_BF16, 32760, 2, 128);
}

/* ---- attention ---- */

typedef struct {
    gpu_tensor q, k, v, o, lut, state, proj_w, proj_b;
    float scale;
} operands;

/* Distinct blocks, ascending, the last one often among them: it is ragged. */
static void fill_lut(gpu *g, gpu_tensor *lut, const shape *c)
{
    const int64_t K = key_blocks(c);
    int32_t *to = lut->on[GPU_CPU].data;
    uint64_t seed = 7;

    for (int64_t row = 0; !g->broken && row < c->N * query_blocks(c); row++) {
        int64_t left = c->keep;
        for (int64_t j = 0; j < K && left > 0; j++) {
            const bool must = K - j <= left || (j == 0 && row % 3 == 0);
            if (must || (int64_t)(draw(&seed) % (uint64_t)(K - j)) < left) {
                *to++ = (int32_t)j;
                left--;
            }
        }
    }
    gpu_push(g, lut);
}

/* Logits of deviation 1.5 or so: neither flat nor one key alone. */
static operands make(gpu *g, const shape *c, sl_dtype dtype, sl_dtype proj)
{
    const int64_t width = c->N * c->D;
    operands t = {
        .q = GPU_RANDOM(g, dtype, 1.5, 2, c->S, width),
        .k = GPU_RANDOM(g, dtype, 1.0, 2, c->S, width),
        .v = GPU_RANDOM(g, dtype, 1.0, 2, c->S, width),
        .o = GPU_OUTPUT(g, dtype, 2, c->S, width),
        .lut = GPU_OUTPUT(g, SL_I32, 3, c->N, query_blocks(c), c->keep),
        .state = GPU_OUTPUT(g, SL_F32, 3, c->N, c->D + 1, c->D),
        .proj_w = GPU_RANDOM(g, proj, 1.0, 2, c->D, c->D),
        .proj_b = GPU_RANDOM(g, proj, 0.2, 1, c->D),
        .scale = (float)(1.0 / sqrt((double)c->D)),
    };

    fill_lut(g, &t.lut, c);
    return t;
}

/* The cpu's state on both sides: each op is looked at alone. */
static void share_state(gpu *g, operands *t, const shape *c)
{
    GPU_ONE(g, GPU_CPU, linear_state, &t->state.on[GPU_CPU], &t->k.on[GPU_CPU], &t->v.on[GPU_CPU],
            c->N);
    gpu_push(g, &t->state);
}

static sl_linear_branch branch_on(const operands *t, int side)
{
    return (sl_linear_branch){ &t->state.on[side], &t->proj_w.on[side], &t->proj_b.on[side] };
}

/* o is a sum of terms, weighted values and the branch, none larger than the largest
 * of |v| and |o|.  Some four roundings to bf16 are in it (P or phi, state and
 * quotient, the halves of Sage's o, o itself), each off by at most half an ulp of
 * what it rounds.  So an element is off by ulps of its terms, which may cancel: two
 * of its own or of the largest term's. */
static gpu_limits attention_limits(const gpu *g, const operands *t, const gpu_tensor *o,
                                   double rel_l2)
{
    const sl_tensor *terms[] = { &t->v.on[GPU_CPU], &o->on[GPU_CPU] };
    double largest = 0.0, squares = 0.0;

    for (size_t i = 0; !g->broken && i < SL_COUNT(terms); i++)
        for (int64_t at = 0; at < sl_tensor_count(terms[i]); at++)
            largest = fmax(largest, fabs((double)((const float *)terms[i]->data)[at]));
    for (int64_t at = 0; !g->broken && at < sl_tensor_count(terms[1]); at++) {
        const double value = (double)((const float *)terms[1]->data)[at];
        squares += value * value;
    }
    const double rms = sqrt(squares / (double)sl_tensor_count(terms[1]));
    const double ulp = largest > 0.0 ? ldexp(1.0, ilogb(largest) - 7) : 0.0;
    return (gpu_limits){ rel_l2, 2, rms > 0.0 ? 2.0 * ulp / rms : 0.0 };
}

/* The golden vectors' own bf16 emulation is 2.7e-3 off. */
static gpu_limits sparse_limits(const gpu *g, const operands *t, const gpu_tensor *o)
{
    return o->on[GPU_CUDA].dtype == SL_BF16 ? attention_limits(g, t, o, 4e-3) : GPU_F32;
}

typedef enum { NO_BRANCH, BRANCH, BRANCH_IN_PLACE } branch_use;

static void check_sparse(gpu *g, const shape *c, sl_dtype dtype, branch_use use, sl_dtype proj)
{
    static const char *const names[] = { "", " + branch", " + branch in place" };

    if (!gpu_begin(g, "sparse_attention %s [%lld,%lld*%lld] %lldx%lld keeps %lld%s %s",
                   gpu_dtype(dtype), (long long)c->S, (long long)c->N, (long long)c->D,
                   (long long)c->block_q, (long long)c->block_k, (long long)c->keep, names[use],
                   use == NO_BRANCH ? "" : gpu_dtype(proj)))
        return;
    operands t = make(g, c, dtype, proj);
    gpu_tensor o = use == BRANCH_IN_PLACE ? t.q : t.o;

    if (use != NO_BRANCH)
        share_state(g, &t, c);
    for (int side = 0; side < GPU_SIDES; side++) {
        const sl_linear_branch branch = branch_on(&t, side);
        GPU_ONE(g, side, sparse_attention, &o.on[side], &t.q.on[side], &t.k.on[side],
                &t.v.on[side], &t.lut.on[side], use == NO_BRANCH ? NULL : &branch, c->N, c->block_q,
                c->block_k, t.scale);
    }
    gpu_compare(g, "o", &o, sparse_limits(g, &t, &o));
    gpu_end(g);
}

/* The kernel of other chips, on the shapes that this one has its own for. */
static void check_portable(gpu *g, const shape *c)
{
    if (!gpu_begin(g, "sparse_attention portable [%lld,%lld*%lld] keeps %lld", (long long)c->S,
                   (long long)c->N, (long long)c->D, (long long)c->keep))
        return;
    operands t = make(g, c, SL_BF16, SL_BF16);
    share_state(g, &t, c);
    const sl_linear_branch branch = branch_on(&t, GPU_CPU);
    const sl_cuda_sparse args = {
        .o = t.o.on[GPU_CUDA].data,
        .q = t.q.on[GPU_CUDA].data,
        .k = t.k.on[GPU_CUDA].data,
        .v = t.v.on[GPU_CUDA].data,
        .bf16 = true,
        .lut = t.lut.on[GPU_CUDA].data,
        .branch = { t.state.on[GPU_CUDA].data, t.proj_w.on[GPU_CUDA].data,
                    t.proj_b.on[GPU_CUDA].data, true, true },
        .S = c->S,
        .N = c->N,
        .D = c->D,
        .keep = c->keep,
        .block_q = c->block_q,
        .block_k = c->block_k,
        .scale = t.scale,
    };

    if (gpu_ready(g, "sparse_attention", GPU_CUDA, true)) {
        sl_exec *exec = g->on[GPU_CUDA].exec;
        sl_status status = sl_cuda_begin(exec, &g->err);
        if (status == SL_OK)
            status = sl_cuda_end(exec, "portable",
                                 sl_cuda_sparse_attention(sl_cuda_stream(exec), &args), &g->err);
        gpu_ran(g, "sparse_attention", GPU_CUDA, status);
    }
    GPU_ONE(g, GPU_CPU, sparse_attention, &t.o.on[GPU_CPU], &t.q.on[GPU_CPU], &t.k.on[GPU_CPU],
            &t.v.on[GPU_CPU], &t.lut.on[GPU_CPU], &branch, c->N, c->block_q, c->block_k, t.scale);
    gpu_compare(g, "o", &t.o, sparse_limits(g, &t, &t.o));
    gpu_end(g);
}

/* Small ones: every way through the kernels. */
static const shape small_shapes[] = {
    { 1, 1, 4, 128, 64, 1 },       /* smallest */
    { 1, 2, 128, 128, 64, 1 },     /* one token on tensor cores */
    { 64, 2, 128, 128, 64, 1 },    /* one block of each */
    { 200, 2, 128, 128, 64, 4 },   /* all key blocks, the last of 8 rows */
    { 300, 3, 64, 64, 128, 2 },    /* a last block whose second half is not there */
    { 712, 2, 128, 64, 128, 3 },   /* the golden vectors' */
    { 1300, 1, 128, 128, 64, 2 },  /* the same */
    { 1000, 2, 64, 128, 64, 12 },  /* heads of 64 */
    { 333, 2, 128, 128, 128, 3 },  /* both blocks alike */
    { 333, 2, 128, 64, 64, 5 },    /* the same */
    { 77, 2, 12, 5, 7, 3 },        /* blocks of no power of two */
    { 290, 2, 100, 96, 33, 4 },    /* a head of no whole warp */
    { 260, 1, 128, 100, 128, 3 },  /* rows of two blocks of threads */
};

static void test_sparse(gpu *g)
{
    static const shape large[] = {
        { 5000, 12, 128, 128, 64, 7 },    /* 1.3B's heads */
        { 1300, 40, 128, 128, 64, 3 },    /* 14B's */
        { 32760, 1, 128, 128, 64, 12 },   /* 480p, 81 frames; the last block has 56 rows */
        { 75600, 1, 128, 128, 64, 5 },    /* 720p; the last block has 16 */
    };
    static const sl_dtype dtypes[] = { SL_F32, SL_BF16 };

    for (size_t i = 0; i < SL_COUNT(small_shapes); i++)
        for (size_t d = 0; d < SL_COUNT(dtypes); d++) {
            check_sparse(g, &small_shapes[i], dtypes[d], NO_BRANCH, SL_F32);
            check_sparse(g, &small_shapes[i], dtypes[d], BRANCH, SL_F32);
            check_sparse(g, &small_shapes[i], dtypes[d], BRANCH_IN_PLACE, SL_BF16);
        }
    for (size_t i = 0; i < SL_COUNT(small_shapes); i++)
        if (small_shapes[i].D == 128 && small_shapes[i].block_q == 128)
            check_portable(g, &small_shapes[i]);
    for (size_t i = 0; i < SL_COUNT(large) && !g->small; i++)
        check_sparse(g, &large[i], SL_BF16, BRANCH_IN_PLACE, SL_F32);
}

/* ---- SageSLA ---- */

static void check_quantize(gpu *g, sl_dtype dtype, int64_t S, int64_t N, int64_t D, int64_t block,
                           bool shifted)
{
    if (!gpu_begin(g, "sage_quantize %s [%lld,%lld*%lld] by %lld%s", gpu_dtype(dtype), (long long)S,
                   (long long)N, (long long)D, (long long)block, shifted ? " less shift" : ""))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 3.0, 2, S, N * D);
    gpu_tensor shift = GPU_RANDOM(g, SL_F32, 1.0, 1, N * D);
    gpu_tensor codes = GPU_OUTPUT(g, SL_I8, 2, S, N * D);
    gpu_tensor scale = GPU_OUTPUT(g, SL_F32, 2, N, sl_ceil_div(S, block));
    GPU_BOTH(g, sage_quantize, GPU_ON(codes), GPU_ON(scale), GPU_ON(x),
             shifted ? GPU_ON(shift) : NULL, N, block);
    gpu_compare(g, "codes", &codes, GPU_EXACT);
    gpu_compare(g, "scale", &scale, GPU_EXACT);
    gpu_end(g);
}

/* Column 1 is all zero, one of tiny and one of huge values beside it. */
static void check_quantize_v(gpu *g, sl_dtype dtype, int64_t S, int64_t C)
{
    if (!gpu_begin(g, "sage_quantize_v %s [%lld,%lld]", gpu_dtype(dtype), (long long)S,
                   (long long)C))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 1.0, 2, S, C);
    gpu_tensor codes = GPU_OUTPUT(g, SL_F8_E4M3, 2, S, C), scale = GPU_OUTPUT(g, SL_F32, 1, C);
    float *values = x.on[GPU_CPU].data;
    for (int64_t row = 0; !g->broken && C >= 4 && row < S; row++) {
        values[row * C + 1] = row % 2 ? 0.0f : -0.0f;
        values[row * C + 2] *= 1e-30f;
        values[row * C + 3] *= 1e30f;
    }
    gpu_push(g, &x);
    GPU_BOTH(g, sage_quantize_v, GPU_ON(codes), GPU_ON(scale), GPU_ON(x));
    gpu_compare(g, "codes", &codes, GPU_EXACT);
    gpu_compare(g, "scale", &scale, GPU_EXACT);
    gpu_end(g);
}

/* The cpu's codes on both sides. */
static void check_sage(gpu *g, const shape *c, sl_dtype dtype, branch_use use)
{
    static const char *const names[] = { "", " + branch", " + branch in place" };

    if (!gpu_begin(g, "sage_attention %s [%lld,%lld*%lld] %lldx%lld keeps %lld%s", gpu_dtype(dtype),
                   (long long)c->S, (long long)c->N, (long long)c->D, (long long)c->block_q,
                   (long long)c->block_k, (long long)c->keep, names[use]))
        return;
    operands t = make(g, c, dtype, SL_BF16);
    gpu_tensor q8 = GPU_OUTPUT(g, SL_I8, 2, c->S, c->N * c->D);
    gpu_tensor k8 = GPU_OUTPUT(g, SL_I8, 2, c->S, c->N * c->D);
    gpu_tensor v8 = GPU_OUTPUT(g, SL_F8_E4M3, 2, c->S, c->N * c->D);
    gpu_tensor q_scale = GPU_OUTPUT(g, SL_F32, 2, c->N, query_blocks(c));
    gpu_tensor k_scale = GPU_OUTPUT(g, SL_F32, 2, c->N, key_blocks(c));
    gpu_tensor v_scale = GPU_OUTPUT(g, SL_F32, 1, c->N * c->D);
    gpu_tensor *shared[] = { &q8, &k8, &v8, &q_scale, &k_scale, &v_scale };
    gpu_tensor o = use == BRANCH_IN_PLACE ? t.q : t.o;

    GPU_ONE(g, GPU_CPU, sage_quantize, &q8.on[GPU_CPU], &q_scale.on[GPU_CPU], &t.q.on[GPU_CPU],
            NULL, c->N, c->block_q);
    GPU_ONE(g, GPU_CPU, sage_quantize, &k8.on[GPU_CPU], &k_scale.on[GPU_CPU], &t.k.on[GPU_CPU],
            NULL, c->N, c->block_k);
    GPU_ONE(g, GPU_CPU, sage_quantize_v, &v8.on[GPU_CPU], &v_scale.on[GPU_CPU], &t.v.on[GPU_CPU]);
    for (size_t i = 0; i < SL_COUNT(shared); i++)
        gpu_push(g, shared[i]);
    share_state(g, &t, c);
    for (int side = 0; side < GPU_SIDES; side++) {
        const sl_linear_branch branch = branch_on(&t, side);
        const sl_sage_operands x = { &q8.on[side],      &q_scale.on[side], &k8.on[side],
                                     &k_scale.on[side], &v8.on[side],      &v_scale.on[side] };
        GPU_ONE(g, side, sage_attention, &o.on[side], &x, &t.lut.on[side],
                use == NO_BRANCH ? NULL : &t.q.on[side], use == NO_BRANCH ? NULL : &branch, c->N,
                c->block_q, c->block_k, t.scale);
    }
    /* A last bit of exp2 moves some P to the next e4m3 value, by an eighth of it at
     * most: within the bound for a key that has up to a sixteenth of the weight, and
     * one in a million is moved. */
    gpu_compare(g, "o", &o, attention_limits(g, &t, &o, 5e-3));
    gpu_end(g);
}

static void test_sage(gpu *g)
{
    static const shape large[] = {
        { 5000, 12, 128, 64, 128, 4 },
        { 1300, 40, 128, 64, 128, 2 },
        { 32760, 1, 128, 64, 128, 6 },
        { 32760, 1, 128, 128, 64, 12 },
    };
    static const sl_dtype dtypes[] = { SL_F32, SL_BF16 };

    for (size_t d = 0; d < SL_COUNT(dtypes); d++) {
        for (int shifted = 0; shifted < 2; shifted++) {
            check_quantize(g, dtypes[d], 1, 1, 128, 64, shifted);
            check_quantize(g, dtypes[d], 1300, 2, 128, 128, shifted);
            check_quantize(g, dtypes[d], 712, 3, 64, 64, shifted);
            check_quantize(g, dtypes[d], 77, 3, 7, 5, shifted);
        }
        check_quantize_v(g, dtypes[d], 1, 4);
        check_quantize_v(g, dtypes[d], 1300, 384);
        check_quantize_v(g, dtypes[d], 77, 131);
        for (size_t i = 0; i < SL_COUNT(small_shapes); i++) {
            check_sage(g, &small_shapes[i], dtypes[d], NO_BRANCH);
            check_sage(g, &small_shapes[i], dtypes[d], BRANCH_IN_PLACE);
        }
    }
    if (g->small)
        return;
    check_quantize(g, SL_BF16, 32760, 12, 128, 128, true);
    check_quantize_v(g, SL_BF16, 32760, 1536);
    for (size_t i = 0; i < SL_COUNT(large); i++)
        check_sage(g, &large[i], SL_BF16, BRANCH_IN_PLACE);
}

/* ---- the same bytes every time ---- */

static void expect_same(gpu *g, const char *what, const gpu_tensor *a, const gpu_tensor *b)
{
    const void *first = gpu_pull(g, a), *second = gpu_pull(g, b);

    if (first && second && memcmp(first, second, sl_tensor_bytes(&a->on[GPU_CUDA])) != 0)
        gpu_fail(g, "%s differs between two runs", what);
}

/* All of it as a network calls it, twice, with as many heads as fill the card. */
static void check_twice(gpu *g, const shape *c)
{
    if (!gpu_begin(g, "SLA twice [%lld,%lld*%lld] keeps %lld", (long long)c->S, (long long)c->N,
                   (long long)c->D, (long long)c->keep))
        return;
    const int64_t width = c->N * c->D;
    operands t = make(g, c, SL_BF16, SL_BF16);
    gpu_tensor mean[2], pq[2], pk[2], lut[2], state[2], o[2];

    for (int run = 0; run < 2; run++) {
        mean[run] = GPU_OUTPUT(g, SL_F32, 2, 1, width);
        pq[run] = GPU_OUTPUT(g, SL_F32, 2, query_blocks(c), width);
        pk[run] = GPU_OUTPUT(g, SL_F32, 2, key_blocks(c), width);
        lut[run] = GPU_OUTPUT(g, SL_I32, 3, c->N, query_blocks(c), c->keep);
        state[run] = GPU_OUTPUT(g, SL_F32, 3, c->N, c->D + 1, c->D);
        o[run] = GPU_OUTPUT(g, SL_BF16, 2, c->S, width);
        const sl_linear_branch branch = { &state[run].on[GPU_CUDA], &t.proj_w.on[GPU_CUDA],
                                          &t.proj_b.on[GPU_CUDA] };
        GPU_ONE(g, GPU_CUDA, block_mean, &mean[run].on[GPU_CUDA], &t.k.on[GPU_CUDA], NULL, c->S,
                SL_SLA_EXACT);
        GPU_ONE(g, GPU_CUDA, block_mean, &pq[run].on[GPU_CUDA], &t.q.on[GPU_CUDA], NULL,
                c->block_q, SL_SLA_EXACT);
        GPU_ONE(g, GPU_CUDA, block_mean, &pk[run].on[GPU_CUDA], &t.k.on[GPU_CUDA],
                &mean[run].on[GPU_CUDA], c->block_k, SL_SLA_EXACT);
        GPU_ONE(g, GPU_CUDA, top_blocks, &lut[run].on[GPU_CUDA], &pq[run].on[GPU_CUDA],
                &pk[run].on[GPU_CUDA], c->N, SL_SLA_EXACT);
        GPU_ONE(g, GPU_CUDA, linear_state, &state[run].on[GPU_CUDA], &t.k.on[GPU_CUDA],
                &t.v.on[GPU_CUDA], c->N);
        GPU_ONE(g, GPU_CUDA, sparse_attention, &o[run].on[GPU_CUDA], &t.q.on[GPU_CUDA],
                &t.k.on[GPU_CUDA], &t.v.on[GPU_CUDA], &lut[run].on[GPU_CUDA], &branch, c->N,
                c->block_q, c->block_k, t.scale);
    }
    expect_same(g, "lut", &lut[0], &lut[1]);
    expect_same(g, "state", &state[0], &state[1]);
    expect_same(g, "o", &o[0], &o[1]);
    gpu_end(g);
}

void gpu_test_sparse(gpu *g)
{
    static const shape some = { 2000, 4, 128, 128, 64, 5 }, many = { 9000, 12, 128, 128, 64, 14 };

    test_block_mean(g);
    test_top_blocks(g);
    test_linear_state(g);
    test_sparse(g);
    test_sage(g);
    check_twice(g, g->small ? &some : &many);
}
