#include "kernels/sage.h"

#include "kernels/e4m3.h"
#include "kernels/op_test.h"

typedef struct {
    int64_t S, N, D, block_q, block_k, keep;
} shape;

static const shape shapes[] = {
    { 1, 1, 4, 64, 128, 1 },     /* smallest */
    { 712, 2, 128, 64, 128, 2 }, /* ragged in both */
    { 200, 2, 64, 128, 64, 4 },  /* all key blocks */
};

typedef struct {
    sl_tensor q, k, v, o, q8, k8, v8, q_scale, k_scale, v_scale, shift, lut, state, proj_w, proj_b;
    sl_sage_operands x;
    sl_linear_branch branch;
    float scale;
} operands;

static void make(operands *t, const shape *c, uint64_t seed)
{
    const int64_t width = c->N * c->D;
    const int64_t Q = sl_ceil_div(c->S, c->block_q), K = sl_ceil_div(c->S, c->block_k);

    *t = (operands){
        .q = OP_TEST_TENSOR(SL_F32, 2, c->S, width),
        .k = OP_TEST_TENSOR(SL_F32, 2, c->S, width),
        .v = OP_TEST_TENSOR(SL_F32, 2, c->S, width),
        .o = OP_TEST_TENSOR(SL_F32, 2, c->S, width),
        .q8 = OP_TEST_TENSOR(SL_I8, 2, c->S, width),
        .k8 = OP_TEST_TENSOR(SL_I8, 2, c->S, width),
        .v8 = OP_TEST_TENSOR(SL_F8_E4M3, 2, c->S, width),
        .q_scale = OP_TEST_TENSOR(SL_F32, 2, c->N, Q),
        .k_scale = OP_TEST_TENSOR(SL_F32, 2, c->N, K),
        .v_scale = OP_TEST_TENSOR(SL_F32, 1, width),
        .shift = OP_TEST_TENSOR(SL_F32, 1, width),
        .lut = OP_TEST_TENSOR(SL_I32, 3, c->N, Q, c->keep),
        .state = OP_TEST_TENSOR(SL_F32, 3, c->N, c->D + 1, c->D),
        .proj_w = OP_TEST_TENSOR(SL_F32, 2, c->D, c->D),
        .proj_b = OP_TEST_TENSOR(SL_F32, 1, c->D),
        .scale = 1.0f / sqrtf((float)c->D),
    };
    op_test_fill(&t->q, seed, 2.0f);
    op_test_fill(&t->k, seed + 1, 2.0f);
    op_test_fill(&t->v, seed + 2, 1.0f);
    op_test_fill(&t->shift, seed + 3, 0.5f);
    op_test_fill(&t->proj_w, seed + 4, 0.2f);
    op_test_fill(&t->proj_b, seed + 5, 0.2f);
    op_test_poison(&t->o);
    for (int64_t i = 0; i < sl_tensor_count(&t->lut); i++)
        ((int32_t *)t->lut.data)[i] =
            (int32_t)(i % c->keep + (i / c->keep) % (K - c->keep + 1)); /* ascending */
    t->x = (sl_sage_operands){ &t->q8, &t->q_scale, &t->k8, &t->k_scale, &t->v8, &t->v_scale };
    t->branch = (sl_linear_branch){ &t->state, &t->proj_w, &t->proj_b };
}

static void drop(operands *t)
{
    sl_tensor *all[] = { &t->q,     &t->k,   &t->v,       &t->o,       &t->q8,
                         &t->k8,    &t->v8,  &t->q_scale, &t->k_scale, &t->v_scale,
                         &t->shift, &t->lut, &t->state,   &t->proj_w,  &t->proj_b };

    for (size_t i = 0; i < SL_COUNT(all); i++)
        op_test_free(all[i]);
}

static void quantise(op_test *run, operands *t, const shape *c)
{
    sl_error error = { .status = SL_OK }, *err = &error;

    SL_CHECK_OK(
        sl_sage_quantize_cpu(run->exec, &t->q8, &t->q_scale, &t->q, NULL, c->N, c->block_q, err));
    SL_CHECK_OK(sl_sage_quantize_cpu(run->exec, &t->k8, &t->k_scale, &t->k, &t->shift, c->N,
                                     c->block_k, err));
    SL_CHECK_OK(sl_sage_quantize_v_cpu(run->exec, &t->v8, &t->v_scale, &t->v, err));
}

static void attend(op_test *run, operands *t, const shape *c, const sl_tensor *o, bool branch)
{
    sl_error error = { .status = SL_OK }, *err = &error;

    SL_CHECK_OK(sl_linear_state_cpu(run->exec, &t->state, &t->k, &t->v, c->N, err));
    SL_CHECK_OK(sl_sage_attention_cpu(run->exec, o, &t->x, &t->lut, branch ? &t->q : NULL,
                                      branch ? &t->branch : NULL, c->N, c->block_q, c->block_k,
                                      t->scale, err));
}

static float bf16(float x)
{
    return sl_bf16_to_f32(sl_bf16_from_f32(x));
}

/* Every e4m3 number there is, in order. */
static int all_numbers(float *out)
{
    int count = 0;

    for (int e = 0; e < 16; e++)
        for (int m = 0; m < (e == 15 ? 7 : 8); m++) /* the last one is NaN */
            out[count++] = e == 0 ? ldexpf((float)m, -9) : ldexpf(1.0f + (float)m / 8.0f, e - 7);
    return count;
}

SL_TEST(e4m3_rounds_to_nearest_even)
{
    float numbers[128];
    const int count = all_numbers(numbers);

    SL_CHECK(count == 127 && numbers[126] == SL_E4M3_MAX);
    for (int i = 0; i < count; i++) {
        SL_CHECK(sl_e4m3_from_f32(numbers[i]) == i);
        SL_CHECK(sl_e4m3_from_f32(-numbers[i]) == (i | 0x80));
        SL_CHECK(sl_e4m3_to_f32((uint8_t)i) == numbers[i]);
        SL_CHECK(sl_e4m3_to_f32((uint8_t)(i | 0x80)) == -numbers[i]);
        if (i + 1 == count)
            break;
        const float middle = 0.5f * (numbers[i] + numbers[i + 1]); /* exact */
        SL_CHECK(sl_e4m3_from_f32(middle) == (i + 1) / 2 * 2);
        SL_CHECK(sl_e4m3_from_f32(nextafterf(middle, 0.0f)) == i);
        SL_CHECK(sl_e4m3_from_f32(nextafterf(middle, 1e9f)) == i + 1);
    }
    SL_CHECK(sl_e4m3_from_f32(1e9f) == 126 && sl_e4m3_from_f32(-INFINITY) == (126 | 0x80));
}

SL_TEST(codes_follow_the_rule)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        const int64_t D = c->D, width = c->N * D;
        operands t;

        make(&t, c, i);
        quantise(&run, &t, c);
        for (int64_t n = 0; n < c->N; n++) {
            for (int64_t b = 0; b < t.k_scale.dim[1]; b++) {
                float amax = 0.0f;
                for (int pass = 0; pass < 2; pass++) {
                    const float scale = ((float *)t.k_scale.data)[n * t.k_scale.dim[1] + b];
                    for (int64_t s = b * c->block_k; s < c->S && s < (b + 1) * c->block_k; s++)
                        for (int64_t d = n * D; d < (n + 1) * D; d++) {
                            const float x = ((float *)t.k.data)[s * width + d];
                            const float v = bf16(bf16(x) - ((float *)t.shift.data)[d]);
                            amax = fmaxf(amax, fabsf(v));
                            /* roundf: half away from zero */
                            SL_CHECK(pass == 0 || (float)((int8_t *)t.k8.data)[s * width + d] ==
                                                      roundf(v / scale));
                        }
                    SL_CHECK(scale == amax / 127.0f + 1e-7f);
                }
            }
        }
        for (int64_t d = 0; d < width; d++) {
            float amax = 0.0f;
            for (int64_t s = 0; s < c->S; s++)
                amax = fmaxf(amax, fabsf(bf16(((float *)t.v.data)[s * width + d])));
            SL_CHECK(((float *)t.v_scale.data)[d] == amax / 2.25f);
            for (int64_t s = 0; s < c->S; s++)
                SL_CHECK(
                    ((uint8_t *)t.v8.data)[s * width + d] ==
                    sl_e4m3_from_f32(bf16(((float *)t.v.data)[s * width + d]) * (2.25f / amax)));
        }
        drop(&t);
    }
    op_test_close(&run);
}

/* Exact attention over the quantised operands; P alone is not rounded here. */
static void naive_row(double *o, const operands *t, const shape *c, int64_t s, int64_t n)
{
    const int64_t D = c->D, width = c->N * D, Q = t->lut.dim[1], block_q = s / c->block_q;
    const int32_t *lut = (int32_t *)t->lut.data + (n * Q + block_q) * c->keep;
    const int8_t *q = (int8_t *)t->q8.data + s * width + n * D;
    const double q_scale = op_test_get(&t->q_scale, n * Q + block_q);
    double sum = 0.0;

    memset(o, 0, (size_t)D * sizeof *o);
    for (int64_t i = 0; i < c->keep; i++) {
        const double by =
            q_scale * (double)t->scale * op_test_get(&t->k_scale, n * t->k_scale.dim[1] + lut[i]);
        for (int64_t k = lut[i] * c->block_k; k < c->S && k < (lut[i] + 1) * c->block_k; k++) {
            double score = 0.0;
            for (int64_t d = 0; d < D; d++)
                score += q[d] * ((int8_t *)t->k8.data)[k * width + n * D + d];
            const double weight = exp(score * by);
            sum += weight;
            for (int64_t d = 0; d < D; d++)
                o[d] +=
                    weight * (double)sl_e4m3_to_f32(((uint8_t *)t->v8.data)[k * width + n * D + d]);
        }
    }
    for (int64_t d = 0; d < D; d++)
        o[d] *= op_test_get(&t->v_scale, n * D + d) / sum;
}

SL_TEST(attention_matches_its_quantised_operands)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        const int64_t D = c->D, width = c->N * D;
        operands t;

        make(&t, c, i);
        quantise(&run, &t, c);
        attend(&run, &t, c, &t.o, false);
        double *want = calloc((size_t)(c->S * width), sizeof *want);
        SL_CHECK(want != NULL);
        for (int64_t s = 0; s < c->S; s++)
            for (int64_t n = 0; n < c->N; n++)
                naive_row(want + s * width + n * D, &t, c, s, n);
        /* P has 3 bits of mantissa: an error of 1/16 each at most, averaged over
         * the keys; and the result is bf16. */
        SL_CHECK(op_test_rel_l2(&t.o, want) < 0.03);
        for (int64_t k = 0; k < c->S * width; k++) {
            const float o = ((float *)t.o.data)[k];
            SL_CHECK(o == bf16(o));
        }
        free(want);
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(branch_is_added_in_bf16_and_in_place)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        sl_tensor plain = OP_TEST_TENSOR(SL_F32, 2, c->S, c->N * c->D);
        operands t;
        int64_t moved = 0;

        make(&t, c, i);
        quantise(&run, &t, c);
        attend(&run, &t, c, &plain, false);
        attend(&run, &t, c, &t.o, true);
        for (int64_t k = 0; k < sl_tensor_count(&plain); k++) {
            const float o = ((float *)t.o.data)[k];
            SL_CHECK(o == bf16(o));
            moved += o != ((float *)plain.data)[k];
        }
        SL_CHECK(moved > sl_tensor_count(&plain) / 2);
        attend(&run, &t, c, &t.q, true);
        SL_CHECK(memcmp(t.q.data, t.o.data, sl_tensor_bytes(&t.o)) == 0);
        op_test_free(&plain);
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(a_column_of_zeros_stays_zero)
{
    const shape c = { 130, 1, 8, 64, 64, 2 };
    operands t;
    op_test run;

    op_test_open(&run, 1);
    make(&t, &c, 1);
    for (int64_t s = 0; s < c.S; s++)
        ((float *)t.v.data)[s * 8 + 3] = 0.0f;
    quantise(&run, &t, &c);
    attend(&run, &t, &c, &t.o, false);
    for (int64_t i = 0; i < c.S * 8; i++) {
        SL_CHECK(isfinite(op_test_get(&t.o, i)));
        SL_CHECK(i % 8 != 3 || op_test_get(&t.o, i) == 0.0);
    }
    drop(&t);
    op_test_close(&run);
}

SL_TEST(not_a_number_goes_through)
{
    const shape c = { 130, 2, 8, 64, 64, 3 };
    op_test run;

    op_test_open(&run, 1);
    for (int which = 0; which < 3; which++) {
        operands t;

        make(&t, &c, 1);
        sl_tensor *hit = which == 0 ? &t.q : which == 1 ? &t.k : &t.v;
        ((float *)hit->data)[5 * 16 + 2] = NAN;
        quantise(&run, &t, &c);
        attend(&run, &t, &c, &t.o, false);
        SL_CHECK(isnan(op_test_get(&t.o, 5 * 16 + 2)));
        SL_CHECK(isfinite(op_test_get(&t.o, 5 * 16 + 8))); /* the other head */
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(same_bytes_for_any_number_of_threads)
{
    op_test one, three;

    op_test_open(&one, 1);
    op_test_open(&three, 3);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        operands a, b;

        make(&a, &shapes[i], i);
        make(&b, &shapes[i], i);
        quantise(&one, &a, &shapes[i]);
        quantise(&three, &b, &shapes[i]);
        attend(&one, &a, &shapes[i], &a.o, true);
        attend(&three, &b, &shapes[i], &b.o, true);
        SL_CHECK(memcmp(a.v8.data, b.v8.data, sl_tensor_bytes(&a.v8)) == 0);
        SL_CHECK(memcmp(a.o.data, b.o.data, sl_tensor_bytes(&a.o)) == 0);
        drop(&a);
        drop(&b);
    }
    op_test_close(&three);
    op_test_close(&one);
}

SL_TEST(refuses_what_the_contract_does_not_allow)
{
    const shape c = { 130, 2, 8, 64, 64, 2 };
    operands t;
    op_test run;

    op_test_open(&run, 1);
    make(&t, &c, 1);
    const sl_tensor wrong_v8 = sl_tensor_of(t.v8.data, SL_I8, 2, 130, 16);
    const sl_tensor short_scale = sl_tensor_of(t.k_scale.data, SL_F32, 2, 2, 2);
    const sl_tensor short_k8 = sl_tensor_of(t.k8.data, SL_I8, 2, 129, 16);
    const sl_sage_operands bad[] = {
        { &t.q8, &t.q_scale, &t.k8, &t.k_scale, &wrong_v8, &t.v_scale },
        { &t.q8, &t.q_scale, &t.k8, &short_scale, &t.v8, &t.v_scale },
        { &t.q8, &t.q_scale, &short_k8, &t.k_scale, &t.v8, &t.v_scale },
        { &t.q, &t.q_scale, &t.k8, &t.k_scale, &t.v8, &t.v_scale },
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++)
        SL_CHECK_STATUS(sl_sage_attention_cpu(run.exec, &t.o, &bad[i], &t.lut, &t.q, &t.branch, 2,
                                              64, 64, 1.0f, err),
                        SL_ERR_INVALID);
    SL_CHECK_STATUS(
        sl_sage_attention_cpu(run.exec, &t.o, &t.x, &t.lut, NULL, &t.branch, 2, 64, 64, 1.0f, err),
        SL_ERR_INVALID);
    SL_CHECK_STATUS(
        sl_sage_attention_cpu(run.exec, &t.o, &t.x, &t.lut, NULL, NULL, 2, 64, 200, 1.0f, err),
        SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sage_quantize_cpu(run.exec, &t.q8, &t.q_scale, &t.q, NULL, 2, 32, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sage_quantize_cpu(run.exec, &t.q8, &t.q_scale, &t.q, NULL, 3, 64, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sage_quantize_cpu(run.exec, &t.q8, &t.q_scale, &t.q, NULL, 2, 129, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_sage_quantize_v_cpu(run.exec, &t.q8, &t.v_scale, &t.v, err), SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&t.o));
    drop(&t);
    op_test_close(&run);
}

SL_TEST_MAIN(SL_RUN(e4m3_rounds_to_nearest_even), SL_RUN(codes_follow_the_rule),
             SL_RUN(attention_matches_its_quantised_operands),
             SL_RUN(branch_is_added_in_bf16_and_in_place), SL_RUN(a_column_of_zeros_stays_zero),
             SL_RUN(not_a_number_goes_through), SL_RUN(same_bytes_for_any_number_of_threads),
             SL_RUN(refuses_what_the_contract_does_not_allow))
