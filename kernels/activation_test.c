/* Which dtypes of activations each op's contract admits, and that the cpu device
 * says so where it has not all of them. */
#include "kernels/op_test.h"
#include "kernels/ops.h"

enum { S = 8, C = 128, N = 1, BLOCK = 4 };

/* Every operand at an address of its own, far from any memory: nothing of it may
 * be read, neither by a check nor by an op that refuses. */
static sl_tensor far(int i, sl_dtype dtype, int rank, const int64_t *dim)
{
    return sl_tensor_make((void *)(uintptr_t)(0x7000000000000000u + ((uint64_t)i << 32)), dtype,
                          rank, dim);
}
#define FAR(i, dtype, rank, ...) far((i), (dtype), (rank), (const int64_t[]){ __VA_ARGS__ })

/* Ops whose operands may differ: a the output's dtype, b the inputs'. */
static const char *const mixed_names[] = {
    "linear",          "layer_norm", "rms_norm", "add",        "mul",
    "gated_add",       "silu",       "patchify", "unpatchify", "latent_to_frames",
    "frames_to_latent"
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
static const char *const alike_names[] = { "attention",         "channel_norm",  "conv",
                                           "conv with a cache", "pair_frames",   "linear_state",
                                           "sparse_attention",  "sage_attention" };

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
static const char *const single_names[] = { "rope",          "embed_rows",      "block_mean",
                                            "sage_quantize", "sage_quantize_v", "frames_to_rgb",
                                            "rgb_to_frames", "linear_int8" };

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
        for (size_t op = 0; op < SL_COUNT(single_names); op++)
            SL_CHECK_OK(call_single(&sl_ops_counting, NULL, op, kinds[a], err));
        for (size_t b = 0; b < SL_COUNT(kinds); b++) {
            for (size_t op = 0; op < SL_COUNT(mixed_names); op++)
                SL_CHECK_OK(call_mixed(&sl_ops_counting, NULL, op, kinds[a], kinds[b], err));
            for (size_t op = 0; op < SL_COUNT(alike_names); op++)
                SL_CHECK_STATUS(call_alike(&sl_ops_counting, NULL, op, kinds[a], kinds[b], err),
                                a == b ? SL_OK : SL_ERR_INVALID);
        }
    }
}

SL_TEST(contracts_refuse_other_dtypes)
{
    for (size_t op = 0; op < SL_COUNT(single_names); op++)
        SL_CHECK_STATUS(call_single(&sl_ops_counting, NULL, op, SL_F16, err), SL_ERR_INVALID);
    for (size_t op = 0; op < SL_COUNT(mixed_names); op++) {
        SL_CHECK_STATUS(call_mixed(&sl_ops_counting, NULL, op, SL_F16, SL_F32, err),
                        SL_ERR_INVALID);
        SL_CHECK_STATUS(call_mixed(&sl_ops_counting, NULL, op, SL_F32, SL_F16, err),
                        SL_ERR_INVALID);
    }
    for (size_t op = 0; op < SL_COUNT(alike_names); op++)
        SL_CHECK_STATUS(call_alike(&sl_ops_counting, NULL, op, SL_F16, SL_F16, err),
                        SL_ERR_INVALID);
}

/* The operands have no memory: an op that computed anything would not return. */
SL_TEST(cpu_says_what_it_does_not_compute)
{
    op_test t;

    op_test_open(&t, 1);
    for (size_t op = 0; op < SL_COUNT(single_names); op++)
        SL_CHECK_STATUS(call_single(&sl_ops_cpu, t.exec, op, SL_BF16, err), SL_ERR_UNIMPLEMENTED);
    for (size_t op = 0; op < SL_COUNT(mixed_names); op++)
        SL_CHECK_STATUS(call_mixed(&sl_ops_cpu, t.exec, op, SL_BF16, SL_BF16, err),
                        SL_ERR_UNIMPLEMENTED);
    for (size_t op = 0; op < SL_COUNT(alike_names); op++)
        SL_CHECK_STATUS(call_alike(&sl_ops_cpu, t.exec, op, SL_BF16, SL_BF16, err),
                        SL_ERR_UNIMPLEMENTED);
    op_test_close(&t);
}

SL_TEST_MAIN(SL_RUN(contracts_admit_bf16_where_they_say_so), SL_RUN(contracts_refuse_other_dtypes),
             SL_RUN(cpu_says_what_it_does_not_compute))
