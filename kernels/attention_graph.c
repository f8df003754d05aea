#include "kernels/attention_graph.h"

#include <string.h>

/* [1, N, S, D] over rows of N*D. */
static sl_dnn_shape heads(int64_t id, int64_t N, int64_t S, int64_t D)
{
    return (sl_dnn_shape){ .id = id,
                           .type = CUDNN_DATA_BFLOAT16,
                           .rank = 4,
                           .dim = { 1, N, S, D },
                           .stride = { S * N * D, D, N * D, 1 } };
}

sl_status sl_attention_graph_plan(sl_dnn *dnn, const sl_attention_graph *s, const sl_dnn_plan **out,
                                  bool *made, sl_error *err)
{
    static const sl_dnn_shape one = { .id = SL_ATTENTION_SCALE,
                                      .type = CUDNN_DATA_FLOAT,
                                      .rank = 4,
                                      .dim = { 1, 1, 1, 1 },
                                      .stride = { 1, 1, 1, 1 },
                                      .by_value = true };
    sl_dnn_key key = { 0 };
    sl_dnn_graph g;

    memcpy(&key, s, sizeof *s);
    *out = sl_dnn_find(dnn, &key);
    *made = !*out;
    if (*out)
        return SL_OK;
    const sl_dnn_shape q_shape = heads(SL_ATTENTION_Q, s->N, s->Sq, s->D),
                       k_shape = heads(SL_ATTENTION_K, s->N, s->Sk, s->D),
                       v_shape = heads(SL_ATTENTION_V, s->N, s->Sk, s->D),
                       o_shape = heads(SL_ATTENTION_O, s->N, s->Sq, s->D);
    sl_dnn_begin(&g, "attention", err);
    const sl_dnn_part q = sl_dnn_tensor(&g, &q_shape), k = sl_dnn_tensor(&g, &k_shape),
                      v = sl_dnn_tensor(&g, &v_shape), o = sl_dnn_tensor(&g, &o_shape),
                      scale = sl_dnn_tensor(&g, &one);
    sl_dnn_sdpa(&g, q, k, v, scale, o);
    return sl_dnn_finish(&g, dnn, &key, out);
}
