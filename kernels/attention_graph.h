/* attention_graph.h - cuDNN's fused attention: bf16, heads side by side.
 *
 *   o [Sq, N*D] = softmax(scale * q [Sq, N*D] . k [Sk, N*D]^T) . v [Sk, N*D]
 *
 * Ids of its tensors: SL_ATTENTION_Q, ...; scale is an f32 on the host.
 */
#ifndef SL_KERNELS_ATTENTION_GRAPH_H
#define SL_KERNELS_ATTENTION_GRAPH_H

#include "kernels/dnn.h"

enum {
    SL_ATTENTION_Q = 1,
    SL_ATTENTION_K,
    SL_ATTENTION_V,
    SL_ATTENTION_O,
    SL_ATTENTION_SCALE,
    SL_ATTENTION_IDS = 5
};

/* The plan's key as well. */
typedef struct {
    int64_t N, Sq, Sk, D;
} sl_attention_graph;

/* *out may be a refused plan.  *made: it was not there before. */
sl_status sl_attention_graph_plan(sl_dnn *dnn, const sl_attention_graph *shape,
                                  const sl_dnn_plan **out, bool *made, sl_error *err) SL_MUST_CHECK;

#endif
