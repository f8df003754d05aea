/* gpu_small - elementwise ops, norms, rotary embedding, embeddings; gpu_layout.c
 * has the rest of the small ops. */
#include "tests/gpu/gpu_layout.h"
#include "tests/gpu/gpu_test.h"

#include <math.h>
#include <string.h>

/* Every mix of activations of two tensors. */
static const sl_dtype mixes[][2] = {
    { SL_F32, SL_F32 }, { SL_F32, SL_BF16 }, { SL_BF16, SL_F32 }, { SL_BF16, SL_BF16 }
};

static gpu_limits limits_of(sl_dtype dtype)
{
    return dtype == SL_BF16 ? GPU_BF16 : GPU_F32;
}

/* ---- elementwise ---- */

/* One element, odd, and the stream of 4096 tokens of 1.3B. */
static const int64_t counts[] = { 1, 7, 4099, 4096 * 1536 };

typedef struct {
    sl_dtype y, a, b;
    int64_t count, skip; /* skip: elements before the first, which spoil alignment */
} binary_case;

static void check_binary(gpu *g, bool product, binary_case c)
{
    const int64_t all = c.count + c.skip;

    if (!gpu_begin(g, "%s %s = %s, %s [%lld]%s", product ? "mul" : "add", gpu_dtype(c.y),
                   gpu_dtype(c.a), gpu_dtype(c.b), (long long)c.count, c.skip ? " unaligned" : ""))
        return;
    gpu_tensor a = GPU_RANDOM(g, c.a, 1.0, 1, all), b = GPU_RANDOM(g, c.b, 1.0, 1, all);
    gpu_tensor y = GPU_OUTPUT(g, c.y, 1, all);
    gpu_tensor u = gpu_rows(&a, c.skip, c.count), v = gpu_rows(&b, c.skip, c.count);
    gpu_tensor w = gpu_rows(&y, c.skip, c.count);
    if (product)
        GPU_BOTH(g, mul, GPU_ON(w), GPU_ON(u), GPU_ON(v));
    else
        GPU_BOTH(g, add, GPU_ON(w), GPU_ON(u), GPU_ON(v));
    gpu_compare(g, "y", &w, GPU_EXACT); /* one f32 operation, rounded once */
    gpu_end(g);
}

/* y is a. */
static void check_add_in_place(gpu *g, sl_dtype dtype)
{
    if (!gpu_begin(g, "add %s in place", gpu_dtype(dtype)))
        return;
    gpu_tensor a = GPU_RANDOM(g, dtype, 1.0, 1, 10007), b = GPU_RANDOM(g, SL_F32, 1.0, 1, 10007);
    GPU_BOTH(g, add, GPU_ON(a), GPU_ON(a), GPU_ON(b));
    gpu_compare(g, "y", &a, GPU_EXACT);
    gpu_end(g);
}

static void check_gated_add(gpu *g, sl_dtype x_dtype, sl_dtype y_dtype, int64_t S, int64_t C)
{
    if (!gpu_begin(g, "gated_add %s += %s [%lld,%lld]", gpu_dtype(x_dtype), gpu_dtype(y_dtype),
                   (long long)S, (long long)C))
        return;
    gpu_tensor x = GPU_RANDOM(g, x_dtype, 1.0, 2, S, C), y = GPU_RANDOM(g, y_dtype, 1.0, 2, S, C);
    gpu_tensor gate = GPU_RANDOM(g, SL_F32, 1.0, 1, C);
    GPU_BOTH(g, gated_add, GPU_ON(x), GPU_ON(y), GPU_ON(gate));
    gpu_compare(g, "x", &x, limits_of(x_dtype));
    gpu_end(g);
}

static void check_silu(gpu *g, sl_dtype y_dtype, sl_dtype x_dtype, int64_t count)
{
    if (!gpu_begin(g, "silu %s = %s [%lld]", gpu_dtype(y_dtype), gpu_dtype(x_dtype),
                   (long long)count))
        return;
    /* Wide enough for exp to leave its range on both sides. */
    gpu_tensor x = GPU_RANDOM(g, x_dtype, 40.0, 1, count), y = GPU_OUTPUT(g, y_dtype, 1, count);
    GPU_BOTH(g, silu, GPU_ON(y), GPU_ON(x));
    gpu_compare(g, "y", &y, limits_of(y_dtype));
    gpu_end(g);
}

static void check_copy(gpu *g, sl_dtype dtype, int64_t count)
{
    if (!gpu_begin(g, "copy, zero %s [%lld]", gpu_dtype(dtype), (long long)count))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 100.0, 1, count), y = GPU_OUTPUT(g, dtype, 1, count);
    GPU_BOTH(g, copy, GPU_ON(y), GPU_ON(x));
    gpu_compare(g, "copy", &y, GPU_EXACT);
    GPU_BOTH(g, zero, GPU_ON(y));
    gpu_compare(g, "zero", &y, GPU_EXACT);
    gpu_end(g);
}

/* bad elements are spread; both ends are among them. */
static void check_check_finite(gpu *g, sl_dtype dtype, int64_t count, int64_t bad)
{
    int64_t got[GPU_SIDES] = { -1, -1 };

    if (!gpu_begin(g, "check_finite %s [%lld] with %lld bad", gpu_dtype(dtype), (long long)count,
                   (long long)bad))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 1e30, 1, count);
    for (int64_t i = 0; !g->broken && i < bad; i++) {
        const int64_t at = bad == 1 ? count - 1 : i * (count - 1) / (bad - 1);
        const double v = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
        if (dtype == SL_F64)
            ((double *)x.on[GPU_CPU].data)[at] = v;
        else
            ((float *)x.on[GPU_CPU].data)[at] = (float)v;
    }
    gpu_push(g, &x);
    GPU_BOTH(g, check_finite, GPU_ON(x), &got[side]);
    if (got[GPU_CPU] != bad || got[GPU_CUDA] != bad)
        gpu_fail(g, "cpu counts %lld, cuda %lld", (long long)got[GPU_CPU],
                 (long long)got[GPU_CUDA]);
    gpu_end(g);
}

static void test_elementwise(gpu *g)
{
    for (size_t m = 0; m < SL_COUNT(mixes); m++) {
        const sl_dtype p = mixes[m][0], q = mixes[m][1];
        for (size_t i = 0; i < SL_COUNT(counts); i++) {
            const int64_t count = g->small && counts[i] > 9000 ? 9000 : counts[i];
            check_binary(g, false, (binary_case){ SL_F32, p, q, count, 0 });
            check_binary(g, false, (binary_case){ SL_BF16, p, q, count, 0 });
            check_binary(g, true, (binary_case){ p, q, p, count, 0 });
            check_silu(g, p, q, count);
        }
        check_binary(g, false, (binary_case){ p, q, SL_F32, 5001, 1 });
        check_binary(g, true, (binary_case){ p, q, SL_BF16, 5001, 3 });
        check_gated_add(g, p, q, 1, 1536);
        check_gated_add(g, p, q, g->small ? 9 : 4097, 1536);
        check_gated_add(g, p, q, g->small ? 9 : 1300, 5120);
        check_gated_add(g, p, q, 77, 130);
        check_gated_add(g, p, q, 5, 3);
    }
    check_add_in_place(g, SL_F32);
    check_add_in_place(g, SL_BF16);
    check_copy(g, SL_F32, 5000011);
    check_copy(g, SL_U8, 5003);
    check_copy(g, SL_F64, 1);
    check_check_finite(g, SL_F32, 4000037, 0);
    check_check_finite(g, SL_F32, 4000037, 1);
    check_check_finite(g, SL_F32, 333, 333);
    check_check_finite(g, SL_F64, 2097155, 1001);
    check_check_finite(g, SL_F64, 1, 1);
}

/* ---- norms ---- */

/* Widths of 1.3B, 14B, umT5; a head; odd; one that registers do not hold. */
static const struct {
    int64_t S, C;
} rows[] = { { 1, 8 },      { 77, 1536 }, { 4099, 1536 }, { 1300, 5120 }, { 512, 4096 },
             { 129, 128 },  { 33, 256 },  { 65, 1000 },   { 7, 77 },      { 3, 5121 },
             { 12, 13824 }, { 5, 20480 }, { 9, 1544 },    { 1, 1 } };

/* Which parameters a layer_norm has. */
enum { PLAIN, AFFINE, MODULATED, BOTH_KINDS, KINDS };
static const char *const kind_names[KINDS] = { "plain", "affine", "modulated",
                                               "affine, modulated" };

static void check_layer_norm(gpu *g, int kind, sl_dtype y_dtype, sl_dtype x_dtype,
                             sl_dtype param_dtype, int64_t S, int64_t C)
{
    const bool affine = kind == AFFINE || kind == BOTH_KINDS, modulated = kind >= MODULATED;

    if (!gpu_begin(g, "layer_norm %s %s = %s, parameters %s [%lld,%lld]", kind_names[kind],
                   gpu_dtype(y_dtype), gpu_dtype(x_dtype), gpu_dtype(param_dtype), (long long)S,
                   (long long)C))
        return;
    gpu_tensor x = GPU_RANDOM(g, x_dtype, 3.0, 2, S, C), y = GPU_OUTPUT(g, y_dtype, 2, S, C);
    gpu_tensor w = GPU_RANDOM(g, param_dtype, 1.0, 1, C), b = GPU_RANDOM(g, param_dtype, 1.0, 1, C);
    gpu_tensor scale = GPU_RANDOM(g, SL_F32, 0.5, 1, C), shift = GPU_RANDOM(g, SL_F32, 0.5, 1, C);
    GPU_BOTH(g, layer_norm, GPU_ON(y), GPU_ON(x), affine ? GPU_ON(w) : NULL,
             affine ? GPU_ON(b) : NULL, modulated ? GPU_ON(scale) : NULL,
             modulated ? GPU_ON(shift) : NULL, 1e-6f, C == 1536 ? 512 : 0);
    gpu_compare(g, "y", &y, limits_of(y_dtype));
    gpu_end(g);
}

static void check_rms_norm(gpu *g, sl_dtype y_dtype, sl_dtype x_dtype, sl_dtype w_dtype, int64_t S,
                           int64_t C)
{
    if (!gpu_begin(g, "rms_norm %s = %s, w %s [%lld,%lld]", gpu_dtype(y_dtype), gpu_dtype(x_dtype),
                   gpu_dtype(w_dtype), (long long)S, (long long)C))
        return;
    gpu_tensor x = GPU_RANDOM(g, x_dtype, 3.0, 2, S, C), y = GPU_OUTPUT(g, y_dtype, 2, S, C);
    gpu_tensor w = GPU_RANDOM(g, w_dtype, 1.0, 1, C);
    GPU_BOTH(g, rms_norm, GPU_ON(y), GPU_ON(x), GPU_ON(w), 1e-6f);
    gpu_compare(g, "y", &y, limits_of(y_dtype));
    gpu_end(g);
}

/* What TurboDiffusion's kernel counts beside a row, with a mean that it weighs. */
static void check_padding(gpu *g, int64_t C, int64_t padding)
{
    if (!gpu_begin(g, "layer_norm bf16 = f32, padding %lld [9,%lld]", (long long)padding,
                   (long long)C))
        return;
    gpu_tensor x = GPU_RANDOM(g, SL_F32, 1.0, 2, 9, C), y = GPU_OUTPUT(g, SL_BF16, 2, 9, C);
    for (int64_t i = 0; !g->broken && i < 9 * C; i++)
        ((float *)x.on[GPU_CPU].data)[i] += 2.0f;
    gpu_push(g, &x);
    GPU_BOTH(g, layer_norm, GPU_ON(y), GPU_ON(x), NULL, NULL, NULL, NULL, 1e-6f, padding);
    gpu_compare(g, "y", &y, GPU_BF16);
    gpu_end(g);
}

/* y is x; a mean far from zero beside a small deviation; rows that begin anywhere. */
static void check_norms_apart(gpu *g, sl_dtype dtype, int64_t C)
{
    if (!gpu_begin(g, "layer_norm, rms_norm %s in place [34,%lld]", gpu_dtype(dtype), (long long)C))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 1.0, 2, 34, C), w = GPU_RANDOM(g, dtype, 1.0, 1, C);
    for (int64_t i = 0; !g->broken && i < 34 * C; i++)
        ((float *)x.on[GPU_CPU].data)[i] += 64.0f;
    gpu_push(g, &x);
    gpu_tensor part = gpu_rows(&x, 1, 32);
    GPU_BOTH(g, layer_norm, GPU_ON(part), GPU_ON(part), NULL, NULL, NULL, NULL, 1e-6f, 0);
    /* cpu rounds like cuda, or the second norm would start from other values. */
    gpu_compare(g, "layer_norm", &part, limits_of(dtype));
    gpu_push(g, &x);
    GPU_BOTH(g, rms_norm, GPU_ON(part), GPU_ON(part), GPU_ON(w), 1e-6f);
    gpu_compare(g, "rms_norm", &x, limits_of(dtype)); /* and its first and last row stay */
    gpu_end(g);
}

static void test_norms(gpu *g)
{
    for (size_t i = 0; i < SL_COUNT(rows); i++) {
        const int64_t S = g->small && rows[i].S > 9 ? 9 : rows[i].S, C = rows[i].C;
        for (size_t m = 0; m < SL_COUNT(mixes); m++) {
            const sl_dtype y = mixes[m][0], x = mixes[m][1];
            check_layer_norm(g, (int)((i + m) % KINDS), y, x, mixes[(i + m) % 4][0], S, C);
            check_rms_norm(g, y, x, mixes[(i + m) % 4][1], S, C);
        }
    }
    for (int kind = 0; kind < KINDS; kind++) {
        const int64_t S = g->small ? 5 : 1000;
        check_layer_norm(g, kind, SL_BF16, SL_F32, SL_F32, S, 1536);
        check_layer_norm(g, kind, SL_BF16, SL_F32, SL_BF16, S, 5120);
        check_layer_norm(g, kind, SL_F32, SL_F32, SL_F32, S, 5120);
    }
    check_padding(g, 1536, 512);
    check_padding(g, 5120, 3072);
    check_padding(g, 333, 179);
    check_norms_apart(g, SL_F32, 1536);
    check_norms_apart(g, SL_F32, 333);
    check_norms_apart(g, SL_BF16, 5120);
    check_norms_apart(g, SL_BF16, 77);
}

/* ---- rotary embedding ---- */

static void check_rope(gpu *g, sl_dtype dtype, int64_t N, int64_t D, sl_grid grid)
{
    const int64_t S = grid.T * grid.H * grid.W;

    if (!gpu_begin(g, "rope %s %lldx%lldx%lld, %lld heads of %lld", gpu_dtype(dtype),
                   (long long)grid.T, (long long)grid.H, (long long)grid.W, (long long)N,
                   (long long)D))
        return;
    gpu_tensor table = GPU_OUTPUT(g, SL_F32, 3, SL_ROPE_MAX_POS, D / 2, 2);
    gpu_tensor x = GPU_RANDOM(g, dtype, 1.0, 2, S, N * D);
    GPU_BOTH(g, rope_table, GPU_ON(table));
    gpu_compare(g, "table", &table, GPU_F32);
    GPU_BOTH(g, rope, GPU_ON(x), GPU_ON(table), grid);
    gpu_compare(g, "x", &x, limits_of(dtype));
    gpu_end(g);
}

static void test_rope(gpu *g)
{
    const int64_t T = g->small ? 1 : 3;

    for (int i = 0; i < 2; i++) {
        const sl_dtype dtype = i ? SL_BF16 : SL_F32;
        check_rope(g, dtype, 12, 128, (sl_grid){ T, 30, 52 });
        check_rope(g, dtype, 40, 128, (sl_grid){ T, 5, 80 });
        check_rope(g, dtype, 2, 64, (sl_grid){ 5, 7, 11 });
        check_rope(g, dtype, 1, 8, (sl_grid){ 2, 3, 5 });
        check_rope(g, dtype, 3, 12, (sl_grid){ 4, 1, 9 }); /* six pairs: one at a time */
        check_rope(g, dtype, 5, 2, (sl_grid){ 128, 1, 1 });
        check_rope(g, dtype, 2, 1024, (sl_grid){ 1, 2, 128 });
        check_rope(g, dtype, 12, 128, (sl_grid){ 0, 30, 52 });
    }
}

/* ---- embeddings ---- */

static void check_embed_rows(gpu *g, sl_dtype y_dtype, sl_dtype table_dtype, int64_t S, int64_t C)
{
    enum { ROWS = 300 };

    if (!gpu_begin(g, "embed_rows %s = %s [%lld,%lld]", gpu_dtype(y_dtype), gpu_dtype(table_dtype),
                   (long long)S, (long long)C))
        return;
    gpu_tensor table = GPU_RANDOM(g, table_dtype, 1.0, 2, ROWS, C);
    gpu_tensor ids = GPU_RANDOM(g, SL_I32, ROWS - 1, 1, S), y = GPU_OUTPUT(g, y_dtype, 2, S, C);
    int32_t *id = ids.on[GPU_CPU].data;
    for (int64_t i = 0; !g->broken && i < S; i++)
        id[i] = id[i] < 0 ? -id[i] : id[i];
    if (!g->broken && S > 1) {
        id[0] = ROWS - 1;
        id[S - 1] = 0;
    }
    gpu_push(g, &ids);
    GPU_BOTH(g, embed_rows, GPU_ON(y), GPU_ON(table), GPU_ON(ids));
    gpu_compare(g, "y", &y, GPU_EXACT);
    for (int side = 0; !g->broken && side < GPU_SIDES && S > 0; side++) {
        id[S - 1] = side ? ROWS : -1;
        gpu_push(g, &ids);
        if (g->broken)
            break;
        const sl_status status = g->on[side].ops->embed_rows(g->on[side].exec, GPU_ON(y),
                                                             GPU_ON(table), GPU_ON(ids), &g->err);
        if (status != SL_ERR_INVALID)
            gpu_fail(g, "id %d gave \"%s\"", (int)id[S - 1], sl_status_text(status));
    }
    sl_error_clear(&g->err);
    gpu_end(g);
}

static void check_sinusoid(gpu *g, int64_t count, double t)
{
    if (!gpu_begin(g, "sinusoid [%lld] t = %g", (long long)count, t))
        return;
    gpu_tensor y = GPU_OUTPUT(g, SL_F32, 1, count);
    GPU_BOTH(g, sinusoid, GPU_ON(y), t);
    gpu_compare(g, "y", &y, (gpu_limits){ 1e-7, -1, 0.0 }); /* f64 inside */
    gpu_end(g);
}

static void check_rel_bias(gpu *g, sl_dtype dtype, int64_t N, int64_t Sq, int64_t Sk)
{
    if (!gpu_begin(g, "rel_bias %s, %lld heads, %lldx%lld", gpu_dtype(dtype), (long long)N,
                   (long long)Sq, (long long)Sk))
        return;
    gpu_tensor table = GPU_RANDOM(g, dtype, 1.0, 2, 32, N);
    gpu_tensor y = GPU_OUTPUT(g, SL_F32, 2, N, Sq + Sk - 1);
    GPU_BOTH(g, rel_bias, GPU_ON(y), GPU_ON(table), Sq, Sk);
    gpu_compare(g, "y", &y, GPU_EXACT);
    gpu_end(g);
}

static void test_embeddings(gpu *g)
{
    for (size_t m = 0; m < SL_COUNT(mixes); m++) {
        check_embed_rows(g, mixes[m][0], mixes[m][1], g->small ? 9 : 512, 4096);
        check_embed_rows(g, mixes[m][0], mixes[m][1], 3, 77);
        check_embed_rows(g, mixes[m][0], mixes[m][1], 1, 1);
    }
    check_embed_rows(g, SL_F32, SL_BF16, 2500, 16); /* more ids than are read at once */
    check_sinusoid(g, 256, 999.0);
    check_sinusoid(g, 256, 0.0);
    check_sinusoid(g, 2, 123.456);
    check_rel_bias(g, SL_F32, 64, 512, 512);
    check_rel_bias(g, SL_BF16, 64, 100, 100);
    check_rel_bias(g, SL_F32, 4, 1, 1);
    check_rel_bias(g, SL_BF16, 3, 7, 300);
}

void gpu_test_small(gpu *g)
{
    test_elementwise(g);
    test_norms(g);
    test_rope(g);
    test_embeddings(g);
    gpu_test_layout(g);
}
