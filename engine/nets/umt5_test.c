/* What the golden vectors do not reach: lengths, refusals, memory. */
#include "engine/nets/umt5.h"

#include "engine/nets/net_test.h"

static const sl_t5_config config = { .vocab = 40,
                                     .dim = 16,
                                     .dim_attn = 16,
                                     .dim_ffn = 24,
                                     .num_heads = 2,
                                     .num_layers = 2,
                                     .num_buckets = 32,
                                     .max_distance = 128,
                                     .eps = 1e-6f };
enum { ROWS = 12 };

static void encode(net_test *t, const sl_t5_weights *weights, const int32_t *ids, int64_t count,
                   float *out)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    sl_tensor text;

    net_test_reset(t);
    SL_CHECK_OK(sl_scratch_tensor(&t->scratch, &text, err, SL_F32, 2, ROWS, config.dim));
    SL_CHECK_OK(
        sl_umt5_encode(t->exec, &t->scratch, weights, &config, ids, count, &text, NULL, err));
    SL_CHECK(sl_scratch_mark(&t->scratch) == sl_tensor_bytes(&text));
    memcpy(out, text.data, sl_tensor_bytes(&text));
}

SL_TEST(rows_behind_the_tokens_are_zero)
{
    const int32_t ids[ROWS] = { 39, 0, 7, 7, 21, 3, 1, 2, 30, 31, 32, 1 };
    float out[ROWS * 16];
    sl_t5_weights weights;
    net_test t;

    net_test_open(&t);
    SL_CHECK_OK(sl_t5_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
    for (int64_t count = 1; count <= ROWS; count++) {
        encode(&t, &weights, ids, count, out);
        for (int64_t i = 0; i < ROWS * config.dim; i++)
            SL_CHECK(i < count * config.dim ? isfinite(out[i]) && out[i] != 0.0f : out[i] == 0.0f);
    }
    net_test_close(&t);
}

static bool same_bytes(const void *a, const void *b, size_t size_bytes)
{
    return memcmp(a, b, size_bytes) == 0;
}

/* A token's row depends on tokens behind it too: attention is not causal. */
SL_TEST(sees_both_ways)
{
    const int32_t ids[3] = { 5, 6, 1 }, other[3] = { 5, 6, 2 };
    float a[ROWS * 16], b[ROWS * 16];
    sl_t5_weights weights;
    net_test t;

    net_test_open(&t);
    SL_CHECK_OK(sl_t5_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
    encode(&t, &weights, ids, 3, a);
    encode(&t, &weights, other, 3, b);
    SL_CHECK(!same_bytes(a, b, 16 * sizeof *a));
    encode(&t, &weights, ids, 3, b);
    SL_CHECK(same_bytes(a, b, sizeof a));
    net_test_close(&t);
}

SL_TEST(refuses_what_it_cannot_encode)
{
    const int32_t ids[2] = { 1, 40 }; /* 40 is past the table */
    sl_t5_config other = config;
    sl_t5_weights weights;
    sl_tensor text;
    net_test t;

    net_test_open(&t);
    SL_CHECK_OK(sl_t5_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
    SL_CHECK_OK(sl_scratch_tensor(&t.scratch, &text, err, SL_F32, 2, ROWS, config.dim));
    SL_CHECK_STATUS(sl_umt5_encode(t.exec, &t.scratch, &weights, &config, ids, 2, &text, NULL, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_umt5_encode(t.exec, &t.scratch, &weights, &config, ids, 0, &text, NULL, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(
        sl_umt5_encode(t.exec, &t.scratch, &weights, &config, ids, ROWS + 1, &text, NULL, err),
        SL_ERR_INVALID);
    other.max_distance = 64;
    SL_CHECK_STATUS(sl_umt5_encode(t.exec, &t.scratch, &weights, &other, ids, 1, &text, NULL, err),
                    SL_ERR_UNIMPLEMENTED);
    net_test_close(&t);
}

SL_TEST_MAIN(SL_RUN(rows_behind_the_tokens_are_zero), SL_RUN(sees_both_ways),
             SL_RUN(refuses_what_it_cannot_encode))
