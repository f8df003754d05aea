/* gpu_attention - dense attention in all its ways: cuDNN's, that of one wide head,
 * and the plain kernel.  Where there are many queries the cpu twin makes some. */
#include "kernels/cuda.h"
#include "kernels/dnn.h"
#include "tests/gpu/gpu_test.h"

#include <math.h>
#include <string.h>

typedef enum { LIBRARY, WIDE, PLAIN } way;

typedef struct {
    int64_t N, D, Sq, Sk;
    way way;
    bool in_place;
} attention_case;

enum { SOME_ROWS = 48 };

static const char *const way_names[] = { "cuDNN", "wide", "plain" };

static const sl_dnn *plans(gpu *g)
{
    return sl_cuda_cache_of(g->on[GPU_CUDA].exec, SL_CUDA_SLOT_ATTENTION)->value;
}

/* A library that refuses would leave it to the plain kernel, far too slow. */
static void expect_library(gpu *g, uint64_t runs_before)
{
    const sl_dnn *dnn = plans(g);
    const sl_dnn_plan *plan = dnn ? sl_dnn_latest(dnn) : NULL;

    gpu_say(g, "  %s", plan ? sl_dnn_plan_text(plan) : "no plan");
    if (!dnn || sl_dnn_run_count(dnn) == runs_before)
        gpu_fail(g, "did not go through cuDNN");
}

/* Some rows at both ends and in the middle, where tiles of rows meet. */
static void compare_rows(gpu *g, const attention_case *c, const gpu_tensor *o, const gpu_tensor *q,
                         const gpu_tensor *k, const gpu_tensor *v, const gpu_tensor *bias,
                         float scale, gpu_limits limits)
{
    const int64_t rows = bias || c->Sq <= 3 * SOME_ROWS ? c->Sq : SOME_ROWS;
    const int64_t firsts[] = { 0, (c->Sq - rows) / 2, c->Sq - rows };
    const size_t count = rows == c->Sq ? 1 : SL_COUNT(firsts);

    for (size_t i = 0; i < count; i++) {
        gpu_tensor some_o = gpu_rows(o, firsts[i], rows), some_q = gpu_rows(q, firsts[i], rows);
        GPU_ONE(g, GPU_CPU, attention, &some_o.on[GPU_CPU], &some_q.on[GPU_CPU], &k->on[GPU_CPU],
                &v->on[GPU_CPU], bias ? &bias->on[GPU_CPU] : NULL, c->N, scale);
        gpu_compare(g, i == 0 ? "first" : i == 1 ? "middle" : "last", &some_o, limits);
    }
}

static void check_attention(gpu *g, const attention_case *c, sl_dtype dtype, bool biased)
{
    const int64_t width = c->N * c->D;
    const float scale = (float)(1.0 / sqrt((double)c->D));

    if (!gpu_begin(g, "attention %s %s: %lldx%lld, %lld queries, %lld keys%s%s", gpu_dtype(dtype),
                   way_names[c->way], (long long)c->N, (long long)c->D, (long long)c->Sq,
                   (long long)c->Sk, biased ? ", bias" : "", c->in_place ? ", in place" : ""))
        return;
    gpu_tensor q = GPU_RANDOM(g, dtype, 1.5, 2, c->Sq, width);
    gpu_tensor k = GPU_RANDOM(g, dtype, 1.5, 2, c->Sk, width);
    gpu_tensor v = GPU_RANDOM(g, dtype, 1.0, 2, c->Sk, width);
    gpu_tensor bias = GPU_RANDOM(g, SL_F32, 1.0, 2, c->N, biased ? c->Sq + c->Sk - 1 : 1);
    gpu_tensor o = GPU_OUTPUT(g, dtype, 2, c->Sq, width);
    const uint64_t before = plans(g) ? sl_dnn_run_count(plans(g)) : 0;

    if (c->in_place)
        o.on[GPU_CUDA] = q.on[GPU_CUDA];
    GPU_ONE(g, GPU_CUDA, attention, &o.on[GPU_CUDA], &q.on[GPU_CUDA], &k.on[GPU_CUDA],
            &v.on[GPU_CUDA], biased ? &bias.on[GPU_CUDA] : NULL, c->N, scale);
    if (c->way == LIBRARY)
        expect_library(g, before);
    compare_rows(g, c, &o, &q, &k, &v, biased ? &bias : NULL, scale,
                 dtype == SL_BF16 ? GPU_BF16 : GPU_F32);
    gpu_end(g);
}

static const attention_case small_cases[] = {
    { 12, 128, 1, 512, LIBRARY, false },  { 12, 128, 77, 77, LIBRARY, false },
    { 2, 128, 129, 1, LIBRARY, false },   { 12, 128, 1300, 1300, LIBRARY, true },
    { 40, 128, 257, 512, LIBRARY, true }, { 4, 64, 77, 77, LIBRARY, false },
    { 4, 64, 1300, 129, LIBRARY, true },  { 1, 64, 64, 64, LIBRARY, true },
    { 1, 384, 100, 100, WIDE, true },     { 1, 384, 77, 77, WIDE, false },
    { 1, 384, 1, 1, WIDE, true },         { 1, 160, 130, 72, WIDE, false },
    { 3, 384, 40, 50, PLAIN, true },      { 5, 8, 77, 33, PLAIN, false },
    { 4, 40, 129, 129, PLAIN, true },     { 2, 512, 65, 70, PLAIN, false },
};

/* The models' own: 480p of both widths, text, and the VAE's middle. */
static const attention_case full_cases[] = {
    { 12, 128, 32760, 32760, LIBRARY, true }, { 12, 128, 32760, 512, LIBRARY, true },
    { 40, 128, 32760, 512, LIBRARY, true },   { 40, 128, 9000, 32760, LIBRARY, false },
    { 1, 384, 6240, 6240, WIDE, true },       { 1, 384, 14400, 14400, WIDE, true },
};

/* q large, so that weights are near one of them; the sum must not overflow. */
static void check_peaked(gpu *g, int64_t N, int64_t D)
{
    if (!gpu_begin(g, "attention bf16 %lldx%lld, peaked", (long long)N, (long long)D))
        return;
    gpu_tensor q = GPU_RANDOM(g, SL_BF16, 60.0, 2, 150, N * D);
    gpu_tensor k = GPU_RANDOM(g, SL_BF16, 60.0, 2, 170, N * D);
    gpu_tensor v = GPU_RANDOM(g, SL_BF16, 1.0, 2, 170, N * D);
    gpu_tensor o = GPU_OUTPUT(g, SL_BF16, 2, 150, N * D);

    GPU_BOTH(g, attention, GPU_ON(o), GPU_ON(q), GPU_ON(k), GPU_ON(v), NULL, N, 0.1f);
    gpu_compare(g, "o", &o, GPU_BF16);
    gpu_end(g);
}

/* Two runs, and in place: the same bits. */
static void check_same(gpu *g, int64_t N, int64_t D, int64_t Sq, int64_t Sk)
{
    if (!gpu_begin(g, "attention bf16 %lldx%lld, %lld of %lld, twice and in place", (long long)N,
                   (long long)D, (long long)Sq, (long long)Sk))
        return;
    gpu_tensor q = GPU_RANDOM(g, SL_BF16, 1.0, 2, Sq, N * D);
    gpu_tensor k = GPU_RANDOM(g, SL_BF16, 1.0, 2, Sk, N * D);
    gpu_tensor v = GPU_RANDOM(g, SL_BF16, 1.0, 2, Sk, N * D);
    gpu_tensor o = GPU_OUTPUT(g, SL_BF16, 2, Sq, N * D);
    const size_t size_bytes = sl_tensor_bytes(&o.on[GPU_CUDA]);
    const void *got[3];

    for (int i = 0; i < 3; i++) {
        const gpu_tensor *to = i < 2 ? &o : &q;
        GPU_ONE(g, GPU_CUDA, attention, &to->on[GPU_CUDA], &q.on[GPU_CUDA], &k.on[GPU_CUDA],
                &v.on[GPU_CUDA], NULL, N, 0.1f);
        got[i] = gpu_pull(g, to);
    }
    if (got[0] && got[1] && memcmp(got[0], got[1], size_bytes) != 0)
        gpu_fail(g, "two runs differ");
    if (got[0] && got[2] && memcmp(got[0], got[2], size_bytes) != 0)
        gpu_fail(g, "in place it differs");
    gpu_end(g);
}

void gpu_test_attention(gpu *g)
{
    for (size_t i = 0; i < SL_COUNT(small_cases); i++) {
        attention_case c = small_cases[i];

        if (g->small && c.Sq > 200)
            c.Sq = 140;
        check_attention(g, &c, SL_BF16, false);
        c.way = PLAIN;
        check_attention(g, &c, SL_F32, false);
        check_attention(g, &c, i % 2 ? SL_F32 : SL_BF16, true);
    }
    check_peaked(g, 3, 128);
    check_peaked(g, 1, 384);
    check_same(g, 12, 128, 1300, 512);
    check_same(g, 1, 384, 500, 500);
    for (size_t i = 0; !g->small && i < SL_COUNT(full_cases); i++)
        check_attention(g, &full_cases[i], SL_BF16, false);
    if (!g->small)
        check_same(g, 12, 128, 20000, 4096);
}
