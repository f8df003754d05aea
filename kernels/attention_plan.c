#include "kernels/attention_plan.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/scratch.h"

enum { WIDE_LEAST = 160 };

/* What one pass over some of the queries may take. */
static const int64_t most_bytes = (int64_t)128 << 20;

/* As few passes as fit, of equal size where Sq can be divided like that: each size
 * is a plan of the library's. */
static int64_t rows_at_once(int64_t Sq, int64_t row_bytes)
{
    const int64_t most = most_bytes / row_bytes;

    return most < 1 ? 1 : sl_ceil_div(Sq, sl_ceil_div(Sq, most));
}

sl_attention_plan sl_attention_plan_of(const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                                       const sl_tensor *bias, int64_t N)
{
    const int64_t Sq = q->dim[0], Sk = k->dim[0], width = q->dim[1], D = width / N;
    sl_attention_plan plan = { .way = SL_ATTENTION_PLAIN, .rows = Sq };

    if (q->dtype != SL_BF16 || bias)
        return plan;
    if (D == 64 || D == 128) {
        plan.way = SL_ATTENTION_LIBRARY;
        if (o->data == q->data) {
            plan.rows = rows_at_once(Sq, width * 2);
            plan.o_bytes = (size_t)(plan.rows * width * 2);
        }
    } else if (N == 1 && D >= WIDE_LEAST && D % 8 == 0) {
        plan.way = SL_ATTENTION_WIDE;
        plan.rows = rows_at_once(Sq, Sk * 6);
        plan.turned_bytes = (size_t)(Sk * D * 2);
        plan.score_bytes = (size_t)(plan.rows * (Sk > D ? Sk : D) * 4); /* then the result */
        plan.sum_bytes = (size_t)(plan.rows * 4);
        plan.weight_bytes = (size_t)(plan.rows * Sk * 2);
    }
    return plan;
}

sl_status sl_attention_count_cuda(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                                  const sl_tensor *k, const sl_tensor *v, const sl_tensor *bias,
                                  int64_t N, float scale, sl_error *err)
{
    sl_scratch *scratch = sl_exec_scratch(exec);
    sl_status status = sl_attention_check(exec, o, q, k, v, bias, N, scale, err);

    if (status != SL_OK || q->dim[0] == 0)
        return status;
    const sl_attention_plan plan = sl_attention_plan_of(o, q, k, bias, N);
    const size_t needs[] = { plan.o_bytes, plan.turned_bytes, plan.score_bytes, plan.weight_bytes,
                             plan.sum_bytes };
    if (!scratch)
        return sl_fail(err, SL_ERR_INTERNAL, "attention: no scratch was lent");
    const size_t mark = sl_scratch_mark(scratch);
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(needs); i++) {
        void *unused;
        if (needs[i] > 0)
            status = sl_scratch_alloc(scratch, &unused, needs[i], err);
    }
    sl_scratch_release(scratch, mark);
    return status;
}
