/* The ways of dense attention on cuda; attention_plan.h says which is taken.  What
 * a library refuses goes to the plain kernel, which is logged. */
#include "kernels/attention_cuda.h"

#include "base/log.h"
#include "kernels/attention_graph.h"
#include "kernels/attention_plan.h"
#include "kernels/cuda.h"
#include "kernels/matmul_cuda.h"

#include <inttypes.h>

static void log_plain(const sl_cuda_attention *a, const char *why)
{
    sl_log(SL_LOG_WARN, "attention_plain",
           "queries=%" PRId64 " keys=%" PRId64 " heads=%" PRId64 "x%" PRId64 " why=\"%s\"", a->Sq,
           a->Sk, a->N, a->D, why);
}

/* --- library --- */

static void destroy_plans(void *dnn)
{
    sl_dnn_destroy(dnn);
}

static sl_status plans_of(sl_exec *exec, sl_dnn **out, sl_error *err)
{
    sl_cuda_cache *cache = sl_cuda_cache_of(exec, SL_CUDA_SLOT_ATTENTION);

    if (!cache->value) {
        sl_dnn *dnn;
        const sl_status status =
            sl_dnn_create(&dnn, sl_cuda_dnn(exec), NULL, SL_CUDA_WORKSPACE_BYTES, err);
        if (status != SL_OK)
            return status;
        cache->value = dnn;
        cache->destroy = destroy_plans;
    }
    *out = cache->value;
    return SL_OK;
}

/* *out NULL: the library does not take `rows` queries. */
static sl_status find_plan(sl_dnn *dnn, const sl_cuda_attention *a, int64_t rows,
                           const sl_dnn_plan **out, sl_error *err)
{
    const sl_attention_graph shape = { .N = a->N, .Sq = rows, .Sk = a->Sk, .D = a->D };
    bool made;
    const sl_status status = sl_attention_graph_plan(dnn, &shape, out, &made, err);

    if (status != SL_OK || !sl_dnn_is_refused(*out))
        return status;
    if (made)
        log_plain(a, sl_dnn_plan_text(*out));
    *out = NULL;
    return SL_OK;
}

/* `count` queries from q, into o. */
static sl_status run_rows(sl_exec *exec, sl_dnn *dnn, const sl_cuda_attention *a, void *o,
                          const void *q, int64_t count, sl_error *err)
{
    static const int64_t ids[SL_ATTENTION_IDS] = { SL_ATTENTION_Q, SL_ATTENTION_K, SL_ATTENTION_V,
                                                   SL_ATTENTION_O, SL_ATTENTION_SCALE };
    float scale = a->scale;
    void *const data[SL_ATTENTION_IDS] = { (void *)(uintptr_t)q, (void *)(uintptr_t)a->k,
                                           (void *)(uintptr_t)a->v, o, &scale };
    const sl_dnn_plan *plan;
    const sl_status status = find_plan(dnn, a, count, &plan, err);

    if (status != SL_OK)
        return status;
    SL_ASSERT(plan); /* run_library has seen it */
    return sl_dnn_run(dnn, plan, SL_ATTENTION_IDS, ids, data, sl_cuda_workspace(exec), err);
}

static sl_status run_in_place(sl_exec *exec, sl_dnn *dnn, const sl_cuda_attention *a,
                              const sl_attention_plan *plan, sl_error *err)
{
    const size_t row_bytes = (size_t)(a->N * a->D) * 2;
    void *o;
    sl_status status = sl_cuda_temp(exec, &o, plan->o_bytes, err);

    for (int64_t first = 0; status == SL_OK && first < a->Sq; first += plan->rows) {
        const int64_t count = a->Sq - first < plan->rows ? a->Sq - first : plan->rows;
        unsigned char *at = (unsigned char *)a->o + (size_t)first * row_bytes;

        status = run_rows(exec, dnn, a, o, at, count, err);
        if (status == SL_OK)
            status = sl_cuda_end(exec, "attention",
                                 cudaMemcpyAsync(at, o, (size_t)count * row_bytes,
                                                 cudaMemcpyDeviceToDevice, sl_cuda_stream(exec)),
                                 err);
    }
    return status;
}

/* *done false: refused, and nothing was done. */
static sl_status run_library(sl_exec *exec, const sl_cuda_attention *a,
                             const sl_attention_plan *plan, bool *done, sl_error *err)
{
    const int64_t tail = a->Sq % plan->rows;
    const sl_dnn_plan *whole = NULL, *rest = NULL;
    sl_dnn *dnn = NULL;
    sl_status status = plans_of(exec, &dnn, err);

    if (status == SL_OK)
        status = find_plan(dnn, a, plan->rows, &whole, err);
    if (status == SL_OK && tail)
        status = find_plan(dnn, a, tail, &rest, err);
    *done = whole && (rest || !tail);
    if (status != SL_OK || !*done)
        return status;
    status = plan->o_bytes > 0 ? run_in_place(exec, dnn, a, plan, err)
                               : run_rows(exec, dnn, a, a->o, a->q, a->Sq, err);
    return status == SL_OK ? sl_cuda_end(exec, "attention", cudaSuccess, err) : status;
}

/* --- wide --- */

typedef struct {
    void *turned;  /* v: [D, Sk] bf16 */
    void *scores;  /* [rows, Sk] f32; later the result, [rows, D] f32 */
    void *weights; /* [rows, Sk] bf16 */
    void *sums;    /* [rows] f32 */
} wide_temp;

/* y [S, O] f32 = x [S, I] . w [O, I]^T of bf16; *m NULL: the library has nothing. */
static sl_status find_product(sl_exec *exec, sl_cuda_matmul **m, int64_t S, int64_t I, int64_t O,
                              const void *y, const void *x, const void *w, sl_error *err)
{
    const sl_cuda_matmul_key key = {
        .S = S,
        .I = I,
        .O = O,
        .operands = CUDA_R_16BF,
        .y = CUDA_R_32F,
        .bias = SL_CUDA_MATMUL_NO_BIAS,
        .x_align = sl_cuda_alignment(x),
        .w_align = sl_cuda_alignment(w),
        .y_align = sl_cuda_alignment(y),
    };

    return sl_cuda_matmul_get(m, exec, &key, err);
}

/* *done false: refused, and nothing was done. */
static sl_status run_wide_rows(sl_exec *exec, const sl_cuda_attention *a, const wide_temp *t,
                               int64_t first, int64_t count, bool *done, sl_error *err)
{
    const unsigned char *q = (const unsigned char *)a->q + first * a->D * 2;
    unsigned char *o = (unsigned char *)a->o + first * a->D * 2;
    sl_cuda_matmul *m = NULL;
    sl_status status =
        find_product(exec, &m, count, a->Sk, a->D, t->scores, t->weights, t->turned, err);

    *done = m != NULL;
    if (status == SL_OK && m)
        status = find_product(exec, &m, count, a->D, a->Sk, t->scores, q, a->k, err);
    *done = *done && m != NULL;
    if (status != SL_OK || !*done)
        return status;
    status = sl_cuda_matmul_run(exec, m, t->scores, q, a->k, NULL, err);
    if (status == SL_OK)
        status = sl_cuda_end(exec, "attention",
                             sl_cuda_exp_rows(sl_cuda_stream(exec), t->weights, t->sums, t->scores,
                                              count, a->Sk, a->scale),
                             err);
    if (status == SL_OK) /* asked for again: a plan lives until the next is made */
        status = find_product(exec, &m, count, a->Sk, a->D, t->scores, t->weights, t->turned, err);
    if (status == SL_OK)
        status = sl_cuda_matmul_run(exec, m, t->scores, t->weights, t->turned, NULL, err);
    if (status == SL_OK)
        status = sl_cuda_end(
            exec, "attention",
            sl_cuda_divide_rows(sl_cuda_stream(exec), o, t->scores, t->sums, count, a->D), err);
    return status;
}

/* Queries [*from, Sq) are left when it was refused: in place, those before are
 * results by then. */
static sl_status run_wide(sl_exec *exec, const sl_cuda_attention *a, const sl_attention_plan *plan,
                          int64_t *from, sl_error *err)
{
    wide_temp t;
    bool done = true;
    sl_status status = sl_cuda_temp(exec, &t.turned, plan->turned_bytes, err);

    if (status == SL_OK)
        status = sl_cuda_temp(exec, &t.scores, plan->score_bytes, err);
    if (status == SL_OK)
        status = sl_cuda_temp(exec, &t.weights, plan->weight_bytes, err);
    if (status == SL_OK)
        status = sl_cuda_temp(exec, &t.sums, plan->sum_bytes, err);
    if (status == SL_OK)
        status =
            sl_cuda_end(exec, "attention",
                        sl_cuda_transpose(sl_cuda_stream(exec), t.turned, a->v, a->Sk, a->D), err);
    for (*from = 0; status == SL_OK && done && *from < a->Sq;) {
        const int64_t count = a->Sq - *from < plan->rows ? a->Sq - *from : plan->rows;

        status = run_wide_rows(exec, a, &t, *from, count, &done, err);
        if (done)
            *from += count;
    }
    return status;
}

/* --- attention --- */

static sl_status run_plain(sl_exec *exec, const sl_cuda_attention *a, sl_error *err)
{
    return sl_cuda_end(exec, "attention", sl_cuda_attention_plain(sl_cuda_stream(exec), a), err);
}

static sl_status run(sl_exec *exec, const sl_cuda_attention *a, const sl_attention_plan *plan,
                     sl_error *err)
{
    sl_cuda_attention left = *a;
    int64_t from = 0;
    bool done = false;
    sl_status status = SL_OK;

    if (plan->way == SL_ATTENTION_LIBRARY) {
        status = run_library(exec, a, plan, &done, err);
        from = done ? a->Sq : 0;
    } else if (plan->way == SL_ATTENTION_WIDE) {
        status = run_wide(exec, a, plan, &from, err);
        if (status == SL_OK && from < a->Sq)
            log_plain(a, "no product of the matrix library");
    }
    if (status != SL_OK || from == a->Sq)
        return status;
    left.q = (const unsigned char *)a->q + from * a->N * a->D * (a->bf16 ? 2 : 4);
    left.o = (unsigned char *)a->o + from * a->N * a->D * (a->bf16 ? 2 : 4);
    left.Sq = a->Sq - from;
    return run_plain(exec, &left, err);
}

sl_status sl_attention_cuda(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                            const sl_tensor *k, const sl_tensor *v, const sl_tensor *bias,
                            int64_t N, float scale, sl_error *err)
{
    sl_scratch *scratch = sl_exec_scratch(exec);
    sl_status status = sl_attention_check(exec, o, q, k, v, bias, N, scale, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    if (q->dim[0] == 0)
        return sl_cuda_end(exec, "attention", cudaSuccess, err);
    const sl_attention_plan plan = sl_attention_plan_of(o, q, k, bias, N);
    const sl_cuda_attention a = {
        .o = o->data,
        .q = q->data,
        .k = k->data,
        .v = v->data,
        .bias = bias ? bias->data : NULL,
        .bf16 = q->dtype == SL_BF16,
        .Sq = q->dim[0],
        .Sk = k->dim[0],
        .N = N,
        .D = q->dim[1] / N,
        .scale = scale,
    };
    const size_t mark = scratch ? sl_scratch_mark(scratch) : 0;
    status = run(exec, &a, &plan, err);
    if (scratch)
        sl_scratch_release(scratch, mark);
    return status;
}
