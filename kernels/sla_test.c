#include "kernels/sla.h"

#include "base/clock.h"
#include "kernels/attention.h"
#include "kernels/op_test.h"

#include <pthread.h>
#include <unistd.h>

typedef struct {
    int64_t S, N, D, block_q, block_k, keep;
    sl_dtype proj;
} shape;

static const shape shapes[] = {
    { 1, 1, 4, 128, 64, 1, SL_F32 },       /* smallest */
    { 64, 2, 128, 128, 64, 1, SL_F32 },    /* one block of each */
    { 200, 2, 128, 128, 64, 4, SL_BF16 },  /* all key blocks, the last of 8 rows */
    { 300, 3, 64, 64, 128, 2, SL_F32 },    /* the other way round */
    { 1000, 1, 128, 128, 64, 12, SL_F32 }, /* more keys than are gathered at a time */
    { 77, 2, 12, 5, 7, 3, SL_BF16 },       /* blocks of no power of two */
};

typedef struct {
    sl_tensor q, k, v, o, pq, pk, lut, state, proj_w, proj_b;
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
        .pq = OP_TEST_TENSOR(SL_F32, 2, Q, width),
        .pk = OP_TEST_TENSOR(SL_F32, 2, K, width),
        .lut = OP_TEST_TENSOR(SL_I32, 3, c->N, Q, c->keep),
        .state = OP_TEST_TENSOR(SL_F32, 3, c->N, c->D + 1, c->D),
        .proj_w = OP_TEST_TENSOR(c->proj, 2, c->D, c->D),
        .proj_b = OP_TEST_TENSOR(c->proj, 1, c->D),
        .scale = 1.0f / sqrtf((float)c->D),
    };
    op_test_fill(&t->q, seed, 3.0f);
    op_test_fill(&t->k, seed + 1, 3.0f);
    op_test_fill(&t->v, seed + 2, 1.0f);
    op_test_fill(&t->proj_w, seed + 3, 0.5f);
    op_test_fill(&t->proj_b, seed + 4, 0.5f);
    op_test_poison(&t->o);
    op_test_poison(&t->pq);
    op_test_poison(&t->pk);
    op_test_poison(&t->lut);
    op_test_poison(&t->state);
    t->branch = (sl_linear_branch){ &t->state, &t->proj_w, &t->proj_b };
}

static void drop(operands *t)
{
    sl_tensor *all[] = { &t->q,  &t->k,   &t->v,     &t->o,      &t->pq,
                         &t->pk, &t->lut, &t->state, &t->proj_w, &t->proj_b };

    for (size_t i = 0; i < SL_COUNT(all); i++)
        op_test_free(all[i]);
}

/* The whole of it, as a network calls it; k's mean is left out of the map. */
static void run_all(op_test *run, operands *t, const shape *c, bool branch, const sl_tensor *o)
{
    sl_error error = { .status = SL_OK }, *err = &error;

    SL_CHECK_OK(sl_block_mean_cpu(run->exec, &t->pq, &t->q, NULL, c->block_q, SL_SLA_EXACT, err));
    SL_CHECK_OK(sl_block_mean_cpu(run->exec, &t->pk, &t->k, NULL, c->block_k, SL_SLA_EXACT, err));
    SL_CHECK_OK(sl_top_blocks_cpu(run->exec, &t->lut, &t->pq, &t->pk, c->N, SL_SLA_EXACT, err));
    SL_CHECK_OK(sl_linear_state_cpu(run->exec, &t->state, &t->k, &t->v, c->N, err));
    SL_CHECK_OK(sl_sparse_attention_cpu(run->exec, o, &t->q, &t->k, &t->v, &t->lut,
                                        branch ? &t->branch : NULL, c->N, c->block_q, c->block_k,
                                        t->scale, err));
}

/* phi(x) of one row of one head, in f64. */
static void phi(double *out, const sl_tensor *x, int64_t s, int64_t n, int64_t D)
{
    const int64_t width = x->dim[1];
    double top = -INFINITY, sum = 0.0;

    for (int64_t d = 0; d < D; d++)
        top = fmax(top, op_test_get(x, s * width + n * D + d));
    for (int64_t d = 0; d < D; d++)
        sum += out[d] = exp(op_test_get(x, s * width + n * D + d) - top);
    for (int64_t d = 0; d < D; d++)
        out[d] /= sum;
}

/* [N, D + 1, D] */
static double *naive_state(const operands *t, const shape *c)
{
    const int64_t D = c->D, width = c->N * D;
    double *state = calloc((size_t)sl_tensor_count(&t->state), sizeof *state), row[128];

    SL_CHECK(state != NULL);
    for (int64_t n = 0; n < c->N; n++)
        for (int64_t s = 0; s < c->S; s++) {
            double *own = state + n * (D + 1) * D;
            phi(row, &t->k, s, n, D);
            for (int64_t i = 0; i < D; i++) {
                for (int64_t j = 0; j < D; j++)
                    own[i * D + j] += row[i] * op_test_get(&t->v, s * width + n * D + j);
                own[D * D + i] += row[i];
            }
        }
    return state;
}

/* o [D] += the linear branch of one row. */
static void naive_branch(double *o, const operands *t, const shape *c, const double *state,
                         int64_t s, int64_t n)
{
    const int64_t D = c->D;
    const double *own = state + n * (D + 1) * D;
    double row[128], mid[128] = { 0 }, norm = 1e-5;

    phi(row, &t->q, s, n, D);
    for (int64_t i = 0; i < D; i++) {
        norm += row[i] * own[D * D + i];
        for (int64_t j = 0; j < D; j++)
            mid[j] += row[i] * own[i * D + j];
    }
    for (int64_t i = 0; i < D; i++) {
        o[i] += op_test_get(&t->proj_b, i);
        for (int64_t j = 0; j < D; j++)
            o[i] += mid[j] / norm * op_test_get(&t->proj_w, i * D + j);
    }
}

/* o [D] = softmax over the kept keys of one row's block. */
static void naive_sparse(double *o, const operands *t, const shape *c, int64_t s, int64_t n)
{
    const int64_t D = c->D, width = c->N * D, Q = t->lut.dim[1];
    const int32_t *lut = (int32_t *)t->lut.data + (n * Q + s / c->block_q) * c->keep;
    double sum = 0.0;

    memset(o, 0, (size_t)D * sizeof *o);
    for (int64_t i = 0; i < c->keep; i++) {
        for (int64_t k = lut[i] * c->block_k; k < c->S && k < (lut[i] + 1) * c->block_k; k++) {
            double score = 0.0;
            for (int64_t d = 0; d < D; d++)
                score += op_test_get(&t->q, s * width + n * D + d) *
                         op_test_get(&t->k, k * width + n * D + d);
            const double weight = exp(score * (double)t->scale);
            sum += weight;
            for (int64_t d = 0; d < D; d++)
                o[d] += weight * op_test_get(&t->v, k * width + n * D + d);
        }
    }
    for (int64_t d = 0; d < D; d++)
        o[d] /= sum;
}

static double *naive(const operands *t, const shape *c, const double *state, bool branch)
{
    const int64_t D = c->D, width = c->N * D;
    double *o = calloc((size_t)(c->S * width), sizeof *o);

    SL_CHECK(o != NULL);
    for (int64_t s = 0; s < c->S; s++)
        for (int64_t n = 0; n < c->N; n++) {
            naive_sparse(o + s * width + n * D, t, c, s, n);
            if (branch)
                naive_branch(o + s * width + n * D, t, c, state, s, n);
        }
    return o;
}

SL_TEST(keeps_as_many_as_the_reference)
{
    static const struct {
        int64_t blocks;
        double ratio;
        int64_t keep;
    } rows[] = {
        { 512, 0.1, 51 }, { 512, 0.15, 76 }, { 1182, 0.1, 118 }, { 1182, 0.15, 177 },
        { 256, 0.1, 25 }, { 591, 0.15, 88 }, { 5, 0.1, 1 },      { 12, 1.0, 12 },
        { 12, 2.0, 12 },  { 12, 0.0, 1 },    { 12, -1.0, 1 },    { 12, (double)NAN, 1 },
    };

    for (size_t i = 0; i < SL_COUNT(rows); i++)
        SL_CHECK(sl_sla_keep(rows[i].blocks, rows[i].ratio) == rows[i].keep);
}

SL_TEST(matches_f64)
{
    op_test run;

    op_test_open(&run, 2);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const shape *c = &shapes[i];
        operands t;

        make(&t, c, i);
        run_all(&run, &t, c, true, &t.o);
        double *state = naive_state(&t, c);
        SL_CHECK(op_test_rel_l2(&t.state, state) < 2e-6);
        double *want = naive(&t, c, state, true);
        SL_CHECK(op_test_rel_l2(&t.o, want) < 2e-6);
        free(want);
        run_all(&run, &t, c, false, &t.o);
        want = naive(&t, c, state, false);
        SL_CHECK(op_test_rel_l2(&t.o, want) < 2e-6);
        run_all(&run, &t, c, false, &t.q); /* in place */
        SL_CHECK(memcmp(t.q.data, t.o.data, sl_tensor_bytes(&t.o)) == 0);
        free(want);
        free(state);
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(in_place_with_the_branch)
{
    op_test run;

    op_test_open(&run, 3);
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        operands t;

        make(&t, &shapes[i], i);
        run_all(&run, &t, &shapes[i], true, &t.o);
        run_all(&run, &t, &shapes[i], true, &t.q);
        SL_CHECK(memcmp(t.q.data, t.o.data, sl_tensor_bytes(&t.o)) == 0);
        drop(&t);
    }
    op_test_close(&run);
}

SL_TEST(all_blocks_are_dense_attention)
{
    const shape c = { 333, 2, 64, 128, 64, 6, SL_F32 };
    sl_tensor dense;
    operands t;
    op_test run;

    op_test_open(&run, 2);
    make(&t, &c, 5);
    dense = OP_TEST_TENSOR(SL_F32, 2, c.S, c.N * c.D);
    run_all(&run, &t, &c, false, &t.o);
    SL_CHECK_OK(sl_attention_cpu(run.exec, &dense, &t.q, &t.k, &t.v, NULL, c.N, t.scale, err));
    for (int64_t i = 0; i < sl_tensor_count(&dense); i++)
        SL_CHECK(fabs(op_test_get(&dense, i) - op_test_get(&t.o, i)) < 1e-5);
    op_test_free(&dense);
    drop(&t);
    op_test_close(&run);
}

static float bf16(float x)
{
    return sl_bf16_to_f32(sl_bf16_from_f32(x));
}

SL_TEST(block_means_follow_the_rule)
{
    static const int64_t blocks[] = { 1, 7, 64, 300, 1000 };
    const int64_t S = 300, C = 270;
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 2, S, C), shift = OP_TEST_TENSOR(SL_F32, 1, C);
    op_test run;

    op_test_open(&run, 2);
    op_test_fill(&x, 1, 2.0f);
    op_test_fill(&shift, 2, 1.0f);
    for (size_t i = 0; i < SL_COUNT(blocks); i++) {
        const int64_t block = blocks[i];
        sl_tensor y = OP_TEST_TENSOR(SL_F32, 2, sl_ceil_div(S, block), C);

        for (int mode = 0; mode < 4; mode++) {
            const sl_sla_rounding rounding = mode & 1 ? SL_SLA_BF16 : SL_SLA_EXACT;
            const bool moved = mode & 2;

            op_test_poison(&y);
            SL_CHECK_OK(
                sl_block_mean_cpu(run.exec, &y, &x, moved ? &shift : NULL, block, rounding, err));
            for (int64_t k = 0; k < sl_tensor_count(&y); k++) {
                const int64_t first = k / C * block;
                const int64_t end = first + block < S ? first + block : S;
                const float less = moved ? ((float *)shift.data)[k % C] : 0.0f;
                double sum = 0.0;

                for (int64_t s = first; s < end; s++) {
                    const float v = ((float *)x.data)[s * C + k % C];
                    sum += (double)(mode & 1 ? bf16(bf16(v) - bf16(less)) : v - less);
                }
                const float mean = (float)(sum / (double)(end - first));
                SL_CHECK(((float *)y.data)[k] == (mode & 1 ? bf16(mean) : mean));
            }
        }
        op_test_free(&y);
    }
    op_test_free(&x);
    op_test_free(&shift);
    op_test_close(&run);
}

/* Scores are one coordinate here, so that the order is known: of equal ones the
 * lower index is kept. */
SL_TEST(top_blocks_break_ties_downwards)
{
    enum { K = 11 };
    static const float scores[K] = { -1, 3, 3, 0.5f, 3, -0.0f, 0, 1e30f, -1e30f, 3, 2 };
    static const struct {
        int64_t keep;
        int32_t lut[K];
    } rows[] = {
        { 1, { 7 } },
        { 3, { 1, 2, 7 } },
        { 5, { 1, 2, 4, 7, 9 } },
        { 8, { 1, 2, 3, 4, 5, 7, 9, 10 } }, /* -0 and 0 are equal */
        { 9, { 1, 2, 3, 4, 5, 6, 7, 9, 10 } },
        { K, { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 } },
    };
    sl_tensor pq = OP_TEST_TENSOR(SL_F32, 2, 1, 4), pk = OP_TEST_TENSOR(SL_F32, 2, K, 4);
    op_test run;

    op_test_open(&run, 1);
    ((float *)pq.data)[0] = 1.0f;
    for (int64_t i = 0; i < K; i++)
        ((float *)pk.data)[4 * i] = scores[i];
    for (size_t i = 0; i < SL_COUNT(rows); i++) {
        sl_tensor lut = OP_TEST_TENSOR(SL_I32, 3, 1, 1, rows[i].keep);
        SL_CHECK_OK(sl_top_blocks_cpu(run.exec, &lut, &pq, &pk, 1, SL_SLA_EXACT, err));
        SL_CHECK(memcmp(lut.data, rows[i].lut, sl_tensor_bytes(&lut)) == 0);
        op_test_free(&lut);
    }
    op_test_free(&pq);
    op_test_free(&pk);
    op_test_close(&run);
}

/* Scores that differ by less than bf16 can say are ties under its rounding. */
SL_TEST(top_blocks_round_their_scores)
{
    sl_tensor pq = OP_TEST_TENSOR(SL_F32, 2, 1, 4), pk = OP_TEST_TENSOR(SL_F32, 2, 2, 4);
    sl_tensor lut = OP_TEST_TENSOR(SL_I32, 3, 1, 1, 1);
    op_test run;

    op_test_open(&run, 1);
    ((float *)pq.data)[0] = 1.0f;
    ((float *)pk.data)[0] = 1.0f;
    ((float *)pk.data)[4] = 1.001f;
    SL_CHECK_OK(sl_top_blocks_cpu(run.exec, &lut, &pq, &pk, 1, SL_SLA_EXACT, err));
    SL_CHECK(((int32_t *)lut.data)[0] == 1);
    SL_CHECK_OK(sl_top_blocks_cpu(run.exec, &lut, &pq, &pk, 1, SL_SLA_BF16, err));
    SL_CHECK(((int32_t *)lut.data)[0] == 0);
    op_test_free(&pq);
    op_test_free(&pk);
    op_test_free(&lut);
    op_test_close(&run);
}

/* Whatever the scores, an index is taken once and within bounds. */
SL_TEST(top_blocks_survive_not_a_number)
{
    const int64_t Q = 33, K = 70, N = 2, keep = 17;
    sl_tensor pq = OP_TEST_TENSOR(SL_F32, 2, Q, N * 8), pk = OP_TEST_TENSOR(SL_F32, 2, K, N * 8);
    sl_tensor lut = OP_TEST_TENSOR(SL_I32, 3, N, Q, keep);
    op_test run;

    op_test_open(&run, 2);
    op_test_fill(&pq, 1, 1.0f);
    op_test_fill(&pk, 2, 1.0f);
    for (int64_t i = 0; i < K; i += 3)
        ((float *)pk.data)[i * N * 8] = i % 2 ? NAN : -INFINITY;
    SL_CHECK_OK(sl_top_blocks_cpu(run.exec, &lut, &pq, &pk, N, SL_SLA_BF16, err));
    for (int64_t i = 0; i < N * Q * keep; i++) {
        const int32_t *at = (int32_t *)lut.data + i;
        SL_CHECK(at[0] >= 0 && at[0] < K && (i % keep == 0 || at[0] > at[-1]));
    }
    op_test_free(&pq);
    op_test_free(&pk);
    op_test_free(&lut);
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
        run_all(&one, &a, &shapes[i], true, &a.o);
        run_all(&three, &b, &shapes[i], true, &b.o);
        SL_CHECK(memcmp(a.lut.data, b.lut.data, sl_tensor_bytes(&a.lut)) == 0);
        SL_CHECK(memcmp(a.o.data, b.o.data, sl_tensor_bytes(&a.o)) == 0);
        drop(&a);
        drop(&b);
    }
    op_test_close(&three);
    op_test_close(&one);
}

SL_TEST(refuses_what_the_contract_does_not_allow)
{
    const shape c = { 100, 2, 16, 32, 16, 2, SL_F32 };
    operands t;
    op_test run;

    op_test_open(&run, 1);
    make(&t, &c, 1);
    const sl_tensor short_k = sl_tensor_of(t.k.data, SL_F32, 2, 99, 32);
    const sl_tensor bf16_v = sl_tensor_of(t.v.data, SL_BF16, 2, 100, 32);
    const sl_tensor small_lut = sl_tensor_of(t.lut.data, SL_I32, 3, 2, 3, 2);
    const sl_tensor empty_lut = sl_tensor_of(t.lut.data, SL_I32, 3, 2, 4, 0);
    const sl_tensor long_lut = sl_tensor_of(t.lut.data, SL_I32, 3, 2, 4, 8);
    const sl_tensor small_w = sl_tensor_of(t.proj_w.data, SL_F32, 2, 15, 16);
    const sl_linear_branch bad_branch = { &t.state, &small_w, &t.proj_b };
    const struct {
        sl_tensor o, q, k, v, lut;
        const sl_linear_branch *branch;
        int64_t N, block_q, block_k;
        float scale;
    } bad[] = {
        { t.o, t.q, short_k, t.v, t.lut, &t.branch, 2, 32, 16, 1 },
        { t.o, t.q, t.k, bf16_v, t.lut, &t.branch, 2, 32, 16, 1 },
        { t.k, t.q, t.k, t.v, t.lut, &t.branch, 2, 32, 16, 1 },
        { t.o, t.q, t.k, t.v, small_lut, &t.branch, 2, 32, 16, 1 },
        { t.o, t.q, t.k, t.v, empty_lut, &t.branch, 2, 32, 16, 1 },
        { t.o, t.q, t.k, t.v, long_lut, &t.branch, 2, 32, 16, 1 },
        { t.o, t.q, t.k, t.v, t.lut, &bad_branch, 2, 32, 16, 1 },
        { t.o, t.q, t.k, t.v, t.lut, &t.branch, 3, 32, 16, 1 },
        { t.o, t.q, t.k, t.v, t.lut, &t.branch, 2, 0, 16, 1 },
        { t.o, t.q, t.k, t.v, t.lut, &t.branch, 2, 32, 129, 1 },
        { t.o, t.q, t.k, t.v, t.lut, &t.branch, 2, 32, 16, NAN },
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_sparse_attention_cpu(run.exec, &bad[i].o, &bad[i].q, &bad[i].k,
                                                &bad[i].v, &bad[i].lut, bad[i].branch, bad[i].N,
                                                bad[i].block_q, bad[i].block_k, bad[i].scale, err),
                        SL_ERR_INVALID);
        SL_CHECK(op_test_is_poison(&t.o));
    }
    SL_CHECK_STATUS(sl_block_mean_cpu(run.exec, &t.pq, &t.q, NULL, 0, SL_SLA_EXACT, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_block_mean_cpu(run.exec, &t.pq, &t.q, NULL, 20, SL_SLA_EXACT, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_block_mean_cpu(run.exec, &t.pq, &t.q, NULL, 32, (sl_sla_rounding)9, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_top_blocks_cpu(run.exec, &empty_lut, &t.pq, &t.pk, 2, SL_SLA_EXACT, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_top_blocks_cpu(run.exec, &long_lut, &t.pq, &t.pk, 2, SL_SLA_EXACT, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_linear_state_cpu(run.exec, &t.state, &t.k, &short_k, 2, err),
                    SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&t.pq) && op_test_is_poison(&t.lut) && op_test_is_poison(&t.state));
    drop(&t);
    op_test_close(&run);
}

/* The sizes of a real video: counted without any memory. */
SL_TEST(checks_touch_no_memory)
{
    const int64_t S = 75600, N = 40, D = 128, Q = 591, K = 1182, keep = 118;
    const sl_tensor q = sl_tensor_of(NULL, SL_F32, 2, S, N * D);
    const sl_tensor pq = sl_tensor_of(NULL, SL_F32, 2, Q, N * D);
    const sl_tensor pk = sl_tensor_of(NULL, SL_F32, 2, K, N * D);
    const sl_tensor lut = sl_tensor_of(NULL, SL_I32, 3, N, Q, keep);
    const sl_tensor state = sl_tensor_of(NULL, SL_F32, 3, N, D + 1, D);
    const sl_tensor w = sl_tensor_of(NULL, SL_BF16, 2, D, D), b = sl_tensor_of(NULL, SL_F32, 1, D);
    const sl_linear_branch branch = { &state, &w, &b };

    SL_CHECK_OK(sl_block_mean_check(NULL, &pq, &q, NULL, 128, SL_SLA_BF16, err));
    SL_CHECK_OK(sl_top_blocks_check(NULL, &lut, &pq, &pk, N, SL_SLA_BF16, err));
    SL_CHECK_OK(sl_linear_state_check(NULL, &state, &q, &q, N, err));
    SL_CHECK_OK(
        sl_sparse_attention_check(NULL, &q, &q, &q, &q, &lut, &branch, N, 128, 64, 0.1f, err));
}

static void *cancel_soon(void *arg)
{
    usleep(30000);
    atomic_store((atomic_uint *)arg, 1);
    return NULL;
}

SL_TEST(cancel_stops_it)
{
    const shape c = { 16384, 4, 128, 128, 64, 256, SL_F32 };
    pthread_t thread;
    operands t;
    op_test run;

    op_test_open(&run, 2);
    make(&t, &c, 1);
    for (int64_t i = 0; i < sl_tensor_count(&t.lut); i++)
        ((int32_t *)t.lut.data)[i] = (int32_t)(i % c.keep);
    SL_CHECK(pthread_create(&thread, NULL, cancel_soon, &run.cancel) == 0);
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(sl_sparse_attention_cpu(run.exec, &t.o, &t.q, &t.k, &t.v, &t.lut, NULL, c.N,
                                            c.block_q, c.block_k, t.scale, err),
                    SL_ERR_CANCELLED);
    SL_CHECK(sl_clock_now_ns() - start_ns < 230 * SL_NS_PER_MS);
    SL_CHECK(pthread_join(thread, NULL) == 0);
    drop(&t);
    op_test_close(&run);
}

SL_TEST_MAIN(SL_RUN(keeps_as_many_as_the_reference), SL_RUN(matches_f64),
             SL_RUN(in_place_with_the_branch), SL_RUN(all_blocks_are_dense_attention),
             SL_RUN(block_means_follow_the_rule), SL_RUN(top_blocks_break_ties_downwards),
             SL_RUN(top_blocks_round_their_scores), SL_RUN(top_blocks_survive_not_a_number),
             SL_RUN(same_bytes_for_any_number_of_threads),
             SL_RUN(refuses_what_the_contract_does_not_allow), SL_RUN(checks_touch_no_memory),
             SL_RUN(cancel_stops_it))
