/* attention_plan.h - how dense attention is done on cuda, and the temporary bytes
 * of it.  Compiled everywhere: plans of requests are counted where there is no GPU.
 *
 *   library  bf16 without bias, heads of 64 or 128: cuDNN's fused attention.  It
 *            does not say whether its output may be its input, so in place it
 *            works on `rows` queries at a time, into memory that is then copied.
 *   wide     one bf16 head without bias that is wider than that (the VAE's 384):
 *            for `rows` queries the scores as a product, their exponentials, and a
 *            product with v, which was transposed once; divided by the sums last,
 *            so that the largest weights are not rounded.
 *   plain    everything else, without temporary memory.
 */
#ifndef SL_KERNELS_ATTENTION_PLAN_H
#define SL_KERNELS_ATTENTION_PLAN_H

#include "kernels/attention.h"

#include <stddef.h>

typedef enum {
    SL_ATTENTION_PLAIN,
    SL_ATTENTION_LIBRARY,
    SL_ATTENTION_WIDE,
} sl_attention_way;

typedef struct {
    sl_attention_way way;
    int64_t rows;                                              /* queries at once */
    size_t o_bytes;                                            /* library, in place */
    size_t turned_bytes, score_bytes, weight_bytes, sum_bytes; /* wide */
} sl_attention_plan;

/* Of operands that sl_attention_check has passed, q not empty. */
sl_attention_plan sl_attention_plan_of(const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                                       const sl_tensor *bias, int64_t N);

/* The row of the counting table for cuda. */
sl_attention_fn sl_attention_count_cuda;

#endif
