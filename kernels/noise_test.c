#include "kernels/noise.h"

#include "kernels/noise_math.h"
#include "kernels/op_test.h"

typedef struct {
    uint32_t counter[4], key[2], want[4];
} known_answer;

/* From the Random123 distribution's kat_vectors. */
static const known_answer known_answers[] = {
    { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
    { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff },
      { 0xffffffff, 0xffffffff },
      { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
    { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
      { 0xa4093822, 0x299f31d0 },
      { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
};

SL_TEST(philox_gives_the_known_answers)
{
    for (size_t i = 0; i < SL_COUNT(known_answers); i++) {
        const known_answer *k = &known_answers[i];
        sl_philox counter;
        memcpy(counter.word, k->counter, sizeof counter.word);
        const sl_philox got = sl_philox_4x32_10(counter, k->key[0], k->key[1]);
        SL_CHECK(memcmp(got.word, k->want, sizeof got.word) == 0);
    }
}

/* |got - want| in units in the last place of want. */
static double ulps(double got, long double want)
{
    const double w = (double)want;
    const double ulp = nextafter(fabs(w), INFINITY) - fabs(w);

    return (double)(fabsl((long double)got - want) / (long double)ulp);
}

/* Words that lie dense, sparse, and at every border. */
static uint32_t word_at(int64_t i)
{
    const uint32_t borders[] = { 0,          1,          0x1fffffff, 0x20000000, 0x3fffffff,
                                 0x40000000, 0x5fffffff, 0x60000000, 0x7fffffff, 0x80000000,
                                 0x9fffffff, 0xa0000000, 0xbfffffff, 0xc0000000, 0xdfffffff,
                                 0xe0000000, 0xfffffffe, 0xffffffff };

    if (i < (int64_t)SL_COUNT(borders))
        return borders[i];
    return (uint32_t)i * 2654435761u >> (i % 3 == 0 ? i % 29 : 0);
}

SL_TEST(ln_is_right_to_two_ulp)
{
    double worst = 0.0;

    for (int64_t i = 0; i < 1000000; i++) {
        const double u = ((double)word_at(i) + 0.5) * 0x1p-32;
        worst = fmax(worst, ulps(sl_noise_ln(u), logl((long double)u)));
        /* Just below 1 nothing may cancel. */
        const double near = ((double)(0xffffffffu - (uint32_t)i) + 0.5) * 0x1p-32;
        worst = fmax(worst, ulps(sl_noise_ln(near), logl((long double)near)));
    }
    if (!(worst <= 2.0))
        fail_msg("ln: %g ulp", worst);
}

SL_TEST(sin_and_cos_are_right_to_two_ulp)
{
    const long double tau = 6.283185307179586476925286766559005768L;
    double worst = 0.0;

    for (int64_t i = 0; i < 1000000; i++) {
        const uint32_t word = word_at(i);
        /* Folded by hand into an eighth of a turn, so that the reference does
         * not lose digits where sin or cos is small. */
        const int64_t odd = 2 * (int64_t)word + 1, turn = INT64_C(1) << 33;
        const int64_t in_quarter = odd % (turn / 4);
        const bool far = in_quarter > turn / 8;
        const long double x = tau * (far ? turn / 4 - in_quarter : in_quarter) / turn;
        const long double s = far ? cosl(x) : sinl(x), c = far ? sinl(x) : cosl(x);
        const long double want_s[] = { s, c, -s, -c }, want_c[] = { c, -s, -c, s };
        double got_s, got_c;
        sl_noise_sincos(word, &got_s, &got_c);
        worst = fmax(worst, ulps(got_s, want_s[odd / (turn / 4)]));
        worst = fmax(worst, ulps(got_c, want_c[odd / (turn / 4)]));
    }
    if (!(worst <= 2.0))
        fail_msg("sin, cos: %g ulp", worst);
}

/* Box-Muller of the words, by the library, to f32. */
static void reference_group(uint64_t seed, uint32_t draw, uint64_t group, double out[4])
{
    const sl_philox counter = { { (uint32_t)group, (uint32_t)(group >> 32), draw, 0 } };
    const sl_philox r = sl_philox_4x32_10(counter, (uint32_t)seed, (uint32_t)(seed >> 32));

    for (int p = 0; p < 2; p++) {
        const double u = ((double)r.word[2 * p] + 0.5) * 0x1p-32;
        const double v = 2.0 * 3.14159265358979323846 * ((double)r.word[2 * p + 1] + 0.5) * 0x1p-32;
        out[2 * p] = sqrt(-2.0 * log(u)) * sin(v);
        out[2 * p + 1] = sqrt(-2.0 * log(u)) * cos(v);
    }
}

SL_TEST(randn_is_box_muller_of_philox)
{
    const uint64_t seed = 0x0123456789abcdefu;
    sl_tensor y = OP_TEST_TENSOR(SL_F32, 3, 7, 13, 2203);
    op_test t;

    op_test_open(&t, 2);
    op_test_poison(&y);
    SL_CHECK_OK(sl_randn_cpu(t.exec, &y, seed, 5, err));
    for (int64_t i = 0; i < sl_tensor_count(&y); i++) {
        double want[4];
        reference_group(seed, 5, (uint64_t)i / 4, want);
        SL_CHECK(fabs(op_test_get(&y, i) - want[i % 4]) <= 1e-7 * (1.0 + fabs(want[i % 4])));
    }
    op_test_close(&t);
    op_test_free(&y);
}

/* Bits that every device and every later version must give again. */
SL_TEST(randn_keeps_its_bits)
{
    static const float want[] = {
        0x1.14a7e6p+1f,  0x1.10582ep+1f, -0x1.a8e594p+0f, -0x1.a211cp-2f,
        -0x1.bb413cp-4f, 0x1.02ba96p+1f, 0x1.0c3bc8p+1f,  0x1.4a5bf4p-2f
    };
    sl_tensor y = OP_TEST_TENSOR(SL_F32, 1, 8);
    op_test t;

    op_test_open(&t, 1);
    SL_CHECK_OK(sl_randn_cpu(t.exec, &y, 42, 1, err));
    SL_CHECK(memcmp(y.data, want, sizeof want) == 0);
    op_test_close(&t);
    op_test_free(&y);
}

SL_TEST(randn_is_normal)
{
    enum { N = 1 << 20 };
    sl_tensor y = OP_TEST_TENSOR(SL_F32, 1, N);
    double m1 = 0.0, m2 = 0.0, m3 = 0.0, m4 = 0.0, lag = 0.0;
    int64_t beyond_2 = 0;
    op_test t;

    op_test_open(&t, 2);
    SL_CHECK_OK(sl_randn_cpu(t.exec, &y, 0, 0, err));
    for (int64_t i = 0; i < N; i++) {
        const double v = op_test_get(&y, i);
        m1 += v / N;
        m2 += v * v / N;
        m3 += v * v * v / N;
        m4 += v * v * v * v / N;
        lag += i ? v * op_test_get(&y, i - 1) / N : 0.0;
        beyond_2 += fabs(v) > 2.0;
    }
    /* Five standard errors of each: 1, sqrt 2, sqrt 15, sqrt 96 and 1 over
     * sqrt N; 0.04550 of a normal lies beyond 2. */
    const double unit = 5.0 / sqrt(N);
    SL_CHECK(fabs(m1) < unit);
    SL_CHECK(fabs(m2 - 1.0) < sqrt(2.0) * unit);
    SL_CHECK(fabs(m3) < sqrt(15.0) * unit);
    SL_CHECK(fabs(m4 - 3.0) < sqrt(96.0) * unit);
    SL_CHECK(fabs(lag) < unit);
    SL_CHECK(fabs((double)beyond_2 / N - 0.0455003) < sqrt(0.0455 * 0.9545) * unit);
    op_test_close(&t);
    op_test_free(&y);
}

/* Element i depends on (seed, draw, i) alone: sizes, tiles, threads do not
 * matter, all three arguments do. */
SL_TEST(randn_depends_on_seed_draw_and_index_alone)
{
    sl_tensor big = OP_TEST_TENSOR(SL_F32, 1, 200003), y = OP_TEST_TENSOR(SL_F32, 1, 200003);
    const int64_t sizes[] = { 0, 1, 2, 3, 5, 65535, 65537, 200002 };
    const struct {
        uint64_t seed;
        uint32_t draw;
    } others[] = { { 1, 1 }, { 0, 2 }, { UINT64_C(1) << 32, 1 }, { 0, UINT32_MAX } };
    op_test one, three;

    op_test_open(&one, 1);
    op_test_open(&three, 3);
    SL_CHECK_OK(sl_randn_cpu(one.exec, &big, 0, 1, err));
    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        const size_t size_bytes = (size_t)sizes[i] * sizeof(float);
        const sl_tensor part = sl_tensor_rows(&y, 0, sizes[i]);
        op_test_poison(&y);
        SL_CHECK_OK(sl_randn_cpu(three.exec, &part, 0, 1, err));
        SL_CHECK(memcmp(y.data, big.data, size_bytes) == 0);
        SL_CHECK(isnan(((float *)y.data)[sizes[i]]));
    }
    for (size_t i = 0; i < SL_COUNT(others); i++) {
        int64_t same = 0;
        SL_CHECK_OK(sl_randn_cpu(three.exec, &y, others[i].seed, others[i].draw, err));
        for (int64_t k = 0; k < 200003; k++)
            same += op_test_get(&y, k) == op_test_get(&big, k);
        SL_CHECK(same < 20);
    }
    op_test_close(&three);
    op_test_close(&one);
    op_test_free(&big);
    op_test_free(&y);
}

SL_TEST(refuses_what_the_contract_excludes)
{
    sl_tensor y = OP_TEST_TENSOR(SL_F64, 1, 8);
    op_test t;

    op_test_open(&t, 1);
    op_test_poison(&y);
    SL_CHECK_STATUS(sl_randn_cpu(t.exec, &y, 0, 0, err), SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&y));
    const sl_tensor plan =
        sl_tensor_of((void *)(uintptr_t)0x7000000000000000u, SL_F32, 4, 16, 21, 60, 104);
    SL_CHECK_OK(sl_randn_check(NULL, &plan, 0, 0, err));
    op_test_close(&t);
    op_test_free(&y);
}

SL_TEST_MAIN(SL_RUN(philox_gives_the_known_answers), SL_RUN(ln_is_right_to_two_ulp),
             SL_RUN(sin_and_cos_are_right_to_two_ulp), SL_RUN(randn_is_box_muller_of_philox),
             SL_RUN(randn_keeps_its_bits), SL_RUN(randn_is_normal),
             SL_RUN(randn_depends_on_seed_draw_and_index_alone),
             SL_RUN(refuses_what_the_contract_excludes))
