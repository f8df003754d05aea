/* Which dtypes of activations each op's contract admits, and what the cpu device makes
 * of them: the numbers of F32, rounded once, or a refusal. */
#include "kernels/op_test.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { S = 8, C = 128, N = 1, BLOCK = 4 };

enum { SLOTS = 20, SLOT_BYTES = 1 << 18 };

/* Operands lie in numbered slots: of memory with the same values in every dtype, or
 * at addresses far from any memory, so that nothing of them can be read. */
static unsigned char *memory;

static float value_of(int slot, int64_t i)
{
    const uint32_t mixed = ((uint32_t)slot * 2654435761u) ^ ((uint32_t)i * 2246822519u);
    const float x = (float)((mixed ^ mixed >> 15) % 2001u) / 1000.0f - 1.0f;

    return sl_bf16_to_f32(sl_bf16_from_f32(x));
}

static sl_tensor far(int slot, sl_dtype dtype, int rank, const int64_t *dim)
{
    sl_tensor t = sl_tensor_make((void *)(uintptr_t)(0x7000000000000000u + ((uint64_t)slot << 32)),
                                 dtype, rank, dim);

    if (!memory)
        return t;
    SL_ASSERT(slot < SLOTS && sl_tensor_bytes(&t) <= SLOT_BYTES);
    t.data = memory + (size_t)slot * SLOT_BYTES;
    for (int64_t i = 0; i < sl_tensor_count(&t); i++)
        if (dtype == SL_F32)
            ((float *)t.data)[i] = value_of(slot, i);
        else if (dtype == SL_BF16)
            ((uint16_t *)t.data)[i] = sl_bf16_from_f32(value_of(slot, i));
        else if (dtype == SL_U8)
            ((uint8_t *)t.data)[i] = (uint8_t)(i * 7 + slot);
    return t;
}
#define FAR(i, dtype, rank, ...) far((i), (dtype), (rank), (const int64_t[]){ __VA_ARGS__ })

/* cpu: the device computes it in BF16 too, into slot `out`. */
typedef struct {
    const char *name;
    bool cpu;
    int out;
} op_row;

/* Ops whose operands may differ: a the output's dtype, b the inputs'. */
static const op_row mixed_ops[] = {
    { "linear", true, 0 },
    { "layer_norm", false, 0 },
    { "rms_norm", false, 0 },
    { "add", true, 0 },
    { "mul", false, 0 },
    { "gated_add", false, 0 },
    { "silu", false, 0 },
    { "patchify", false, 7 },
    { "unpatchify", false, 5 },
    { "latent_to_frames", true, 9 },
    { "frames_to_latent", true, 5 },
};

static sl_status call_mixed(const sl_ops *ops, sl_exec *exec, size_t op, sl_dtype a, sl_dtype b,
                            sl_error *err)
{
    const sl_tensor y = FAR(0, a, 2, S, C), x = FAR(1, b, 2, S, C), x2 = FAR(2, b, 2, S, C);
    const sl_tensor w = FAR(3, SL_BF16, 2, C, C), c = FAR(4, SL_F32, 1, C);
    const sl_tensor latent_a = FAR(5, a, 4, 4, 2, 4, 4), latent_b = FAR(6, b, 4, 4, 2, 4, 4);
    const sl_tensor tokens_a = FAR(7, a, 2, 8, 16), tokens_b = FAR(8, b, 2, 8, 16);
    const sl_tensor frames_a = FAR(9, a, 4, 2, 4, 4, 4), frames_b = FAR(10, b, 4, 2, 4, 4, 4);

    switch (op) {
    case 0:
        return ops->linear(exec, &y, &x, &w, NULL, SL_ACT_NONE, err);
    case 1:
        return ops->layer_norm(exec, &y, &x, NULL, NULL, &c, &c, 1e-6f, 0, err);
    case 2:
        return ops->rms_norm(exec, &y, &x, &c, 1e-6f, err);
    case 3:
        return ops->add(exec, &y, &x, &x2, err);
    case 4:
        return ops->mul(exec, &y, &x, &x2, err);
    case 5:
        return ops->gated_add(exec, &y, &x, &c, err);
    case 6:
        return ops->silu(exec, &y, &x, err);
    case 7:
        return ops->patchify(exec, &tokens_a, &latent_b, err);
    case 8:
        return ops->unpatchify(exec, &latent_a, &tokens_b, err);
    case 9:
        return ops->latent_to_frames(exec, &frames_a, &latent_b, NULL, NULL, 0, err);
    default:
        return ops->frames_to_latent(exec, &latent_a, &frames_b, NULL, NULL, 0, err);
    }
}

/* Ops whose activations are alike: a the first one's dtype, b the others'. */
static const op_row alike_ops[] = {
    { "attention", true, 0 },
    { "channel_norm", true, 0 },
    { "conv", true, 5 },
    { "conv with a cache", true, 17 },
    { "pair_frames", true, 9 },
    { "linear_state", false, 10 },
    { "sparse_attention", false, 0 },
    { "sage_attention", false, 0 },
};

static sl_status call_alike(const sl_ops *ops, sl_exec *exec, size_t op, sl_dtype a, sl_dtype b,
                            sl_error *err)
{
    const sl_tensor y = FAR(0, a, 2, S, C), q = FAR(1, b, 2, S, C), k = FAR(2, b, 2, S, C);
    const sl_tensor v = FAR(3, b, 2, S, C), gamma = FAR(4, SL_F32, 1, C);
    const sl_tensor y4 = FAR(5, a, 4, 2, 4, 4, 8), x4 = FAR(6, b, 4, 2, 4, 4, 8);
    const sl_tensor y4b = FAR(17, b, 4, 2, 4, 4, 8), cache = FAR(7, a, 4, 2, 4, 4, 8),
                    w = FAR(8, SL_BF16, 5, 8, 3, 3, 3, 8);
    const sl_tensor pairs = FAR(9, a, 4, 4, 4, 4, 4), state = FAR(10, SL_F32, 3, N, C + 1, C);
    const sl_tensor lut = FAR(11, SL_I32, 3, N, S / BLOCK, 1);
    const sl_tensor q8 = FAR(12, SL_I8, 2, S, C), scale = FAR(13, SL_F32, 2, N, S / BLOCK);
    const sl_tensor v8 = FAR(14, SL_F8_E4M3, 2, S, C), v_scale = FAR(15, SL_F32, 1, C);
    const sl_tensor proj = FAR(16, SL_BF16, 2, C, C);
    const sl_sage_operands sage = { &q8, &scale, &q8, &scale, &v8, &v_scale };
    const sl_linear_branch branch = { &state, &proj, &gamma };
    const sl_conv_params same = { .zero_frames = 2,
                                  .stride_t = 1,
                                  .stride_hw = 1,
                                  .pad_top = 1,
                                  .pad_bottom = 1,
                                  .pad_left = 1,
                                  .pad_right = 1,
                                  .upsample = 1 };
    sl_conv_params cached = same;

    cached.zero_frames = 0;
    switch (op) {
    case 0:
        return ops->attention(exec, &y, &q, &k, &v, NULL, N, 1.0f, err);
    case 1:
        return ops->channel_norm(exec, &y, &q, &gamma, true, err);
    case 2:
        return ops->conv(exec, &y4, &x4, NULL, &w, NULL, NULL, &same, err);
    case 3:
        return ops->conv(exec, &x4, &y4b, &cache, &w, NULL, NULL, &cached, err);
    case 4:
        return ops->pair_frames(exec, &pairs, &x4, err);
    case 5:
        return ops->linear_state(exec, &state, &y, &v, N, err);
    case 6:
        return ops->sparse_attention(exec, &y, &q, &k, &v, &lut, &branch, N, BLOCK, BLOCK, 1.0f,
                                     err);
    default:
        return ops->sage_attention(exec, &y, &sage, &lut, &q, &branch, N, BLOCK, BLOCK, 1.0f, err);
    }
}

/* Ops with one activation. */
static const op_row single_ops[] = {
    { "rope", false, 0 },          { "embed_rows", false, 0 },      { "block_mean", false, 4 },
    { "sage_quantize", false, 6 }, { "sage_quantize_v", false, 7 }, { "frames_to_rgb", true, 9 },
    { "rgb_to_frames", true, 10 }, { "linear_int8", false, 0 },
};

static sl_status call_single(const sl_ops *ops, sl_exec *exec, size_t op, sl_dtype a, sl_error *err)
{
    const sl_tensor x = FAR(0, a, 2, S, C), table = FAR(1, SL_F32, 3, 8, C / 2, 2);
    const sl_tensor rows = FAR(2, SL_BF16, 2, 9, C), ids = FAR(3, SL_I32, 1, S);
    const sl_tensor mean = FAR(4, SL_F32, 2, S / BLOCK, C), scale = FAR(5, SL_F32, 2, N, S / BLOCK);
    const sl_tensor q8 = FAR(6, SL_I8, 2, S, C), v8 = FAR(7, SL_F8_E4M3, 2, S, C);
    const sl_tensor v_scale = FAR(8, SL_F32, 1, C), rgb = FAR(9, SL_U8, 2, S, 3);
    const sl_tensor pixels = FAR(10, a, 2, S, 3), w8 = FAR(11, SL_I8, 2, C, C);
    const sl_tensor one = FAR(12, SL_F32, 2, 1, 1);

    switch (op) {
    case 0:
        return ops->rope(exec, &x, &table, (sl_grid){ 2, 2, 2 }, err);
    case 1:
        return ops->embed_rows(exec, &x, &rows, &ids, err);
    case 2:
        return ops->block_mean(exec, &mean, &x, NULL, BLOCK, SL_SLA_EXACT, err);
    case 3:
        return ops->sage_quantize(exec, &q8, &scale, &x, NULL, N, BLOCK, err);
    case 4:
        return ops->sage_quantize_v(exec, &v8, &v_scale, &x, err);
    case 5:
        return ops->frames_to_rgb(exec, &rgb, &pixels, err);
    case 6:
        return ops->rgb_to_frames(exec, &pixels, &rgb, err);
    default:
        return ops->linear_int8(exec, &x, &q8, &one, &w8, &one, NULL, SL_ACT_NONE, err);
    }
}

static const sl_dtype kinds[] = { SL_F32, SL_BF16 };

SL_TEST(contracts_admit_bf16_where_they_say_so)
{
    for (size_t a = 0; a < SL_COUNT(kinds); a++) {
        for (size_t op = 0; op < SL_COUNT(single_ops); op++)
            SL_CHECK_OK(call_single(&sl_ops_counting, NULL, op, kinds[a], err));
        for (size_t b = 0; b < SL_COUNT(kinds); b++) {
            for (size_t op = 0; op < SL_COUNT(mixed_ops); op++)
                SL_CHECK_OK(call_mixed(&sl_ops_counting, NULL, op, kinds[a], kinds[b], err));
            for (size_t op = 0; op < SL_COUNT(alike_ops); op++)
                SL_CHECK_STATUS(call_alike(&sl_ops_counting, NULL, op, kinds[a], kinds[b], err),
                                a == b ? SL_OK : SL_ERR_INVALID);
        }
    }
}

SL_TEST(contracts_refuse_other_dtypes)
{
    for (size_t op = 0; op < SL_COUNT(single_ops); op++)
        SL_CHECK_STATUS(call_single(&sl_ops_counting, NULL, op, SL_F16, err), SL_ERR_INVALID);
    for (size_t op = 0; op < SL_COUNT(mixed_ops); op++) {
        SL_CHECK_STATUS(call_mixed(&sl_ops_counting, NULL, op, SL_F16, SL_F32, err),
                        SL_ERR_INVALID);
        SL_CHECK_STATUS(call_mixed(&sl_ops_counting, NULL, op, SL_F32, SL_F16, err),
                        SL_ERR_INVALID);
    }
    for (size_t op = 0; op < SL_COUNT(alike_ops); op++)
        SL_CHECK_STATUS(call_alike(&sl_ops_counting, NULL, op, SL_F16, SL_F16, err),
                        SL_ERR_INVALID);
}

static sl_status call(const sl_ops *ops, sl_exec *exec, int group, size_t op, sl_dtype out,
                      sl_dtype in, sl_error *err)
{
    return group == 0   ? call_mixed(ops, exec, op, out, in, err)
           : group == 1 ? call_alike(ops, exec, op, out, in, err)
                        : call_single(ops, exec, op, out, err);
}

static const op_row *const groups[] = { mixed_ops, alike_ops, single_ops };
static const size_t group_sizes[] = { SL_COUNT(mixed_ops), SL_COUNT(alike_ops),
                                      SL_COUNT(single_ops) };

/* The operands have no memory: an op that computed anything would not return. */
SL_TEST(cpu_says_what_it_does_not_compute)
{
    op_test t;

    op_test_open(&t, 1);
    for (int group = 0; group < 3; group++)
        for (size_t op = 0; op < group_sizes[group]; op++)
            if (!groups[group][op].cpu)
                SL_CHECK_STATUS(call(&sl_ops_cpu, t.exec, group, op, SL_BF16, SL_BF16, err),
                                SL_ERR_UNIMPLEMENTED);
    op_test_close(&t);
}

/* An op in BF16, or in F32 with what it gives rounded: bytes for bytes, but for a
 * rounding that falls on the other side because of another order of sums. */
static void compare(op_test *t, int group, size_t op, sl_dtype out, sl_dtype in, sl_error *err)
{
    enum { MOST = SLOT_BYTES / 4 };
    static float want[MOST];
    const op_row *row = &groups[group][op];
    unsigned char *at = memory + (size_t)row->out * SLOT_BYTES;
    const bool bytes = strcmp(row->name, "frames_to_rgb") == 0;

    memset(memory, 0, (size_t)SLOTS * SLOT_BYTES);
    SL_CHECK_OK(call(&sl_ops_cpu, t->exec, group, op, SL_F32, SL_F32, err));
    memcpy(want, at, SLOT_BYTES);
    memset(memory, 0, (size_t)SLOTS * SLOT_BYTES);
    SL_CHECK_OK(call(&sl_ops_cpu, t->exec, group, op, out, in, err));
    for (int64_t i = 0; i < (bytes ? 24 : 64); i++) {
        const float got = bytes            ? ((uint8_t *)at)[i]
                          : out == SL_BF16 ? sl_bf16_to_f32(((uint16_t *)at)[i])
                                           : ((float *)at)[i];
        const float exact = bytes ? ((uint8_t *)want)[i] : want[i];
        const float step = out == SL_BF16 && !bytes ? 0x1p-7f : 1e-5f;

        if (!(fabsf(got - exact) <= step * fabsf(exact) + 1e-6f))
            fail_msg("%s: element %lld: %g, expected %g", row->name, (long long)i, (double)got,
                     (double)exact);
    }
}

SL_TEST(cpu_computes_bf16_as_f32_rounded)
{
    op_test t;

    memory = aligned_alloc(64, (size_t)SLOTS * SLOT_BYTES);
    SL_CHECK(memory != NULL);
    op_test_open(&t, 2);
    for (int group = 0; group < 3; group++)
        for (size_t op = 0; op < group_sizes[group]; op++) {
            if (!groups[group][op].cpu)
                continue;
            compare(&t, group, op, SL_BF16, SL_BF16, err);
            if (group == 0) {
                compare(&t, group, op, SL_F32, SL_BF16, err);
                compare(&t, group, op, SL_BF16, SL_F32, err);
            }
        }
    op_test_close(&t);
    free(memory);
    memory = NULL;
}

SL_TEST_MAIN(SL_RUN(contracts_admit_bf16_where_they_say_so), SL_RUN(contracts_refuse_other_dtypes),
             SL_RUN(cpu_says_what_it_does_not_compute), SL_RUN(cpu_computes_bf16_as_f32_rounded))
