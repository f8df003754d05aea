/* conv_graph.h - one convolution as cuDNN's graph: bf16, channels last.
 *
 *   y [To, Ho, Wo, O] = conv(zeros, x [frames, H, W, I]; w [O, kt, kh, kw, I])
 *                       [+ residual] + bias [O]
 *
 * Ids of its tensors: SL_CONV_X, ...  All bf16, 16-byte aligned; sums are f32 up to
 * the store.
 */
#ifndef SL_KERNELS_CONV_GRAPH_H
#define SL_KERNELS_CONV_GRAPH_H

#include "kernels/dnn.h"

enum { SL_CONV_X = 1, SL_CONV_W, SL_CONV_Y, SL_CONV_BIAS, SL_CONV_RESIDUAL, SL_CONV_IDS = 5 };

/* int64_t throughout: it is the plan's key as well. */
typedef struct {
    int64_t frames, H, W, I;
    int64_t To, Ho, Wo, O;
    int64_t kt, kh, kw;
    int64_t zeros, stride_t, stride_hw;
    int64_t pad_top, pad_bottom, pad_left, pad_right;
    int64_t residual; /* 0 or 1 */
} sl_conv_graph;

/* *out may be a refused plan.  *made: it was not there before. */
sl_status sl_conv_graph_plan(sl_dnn *dnn, const sl_conv_graph *shape, const sl_dnn_plan **out,
                             bool *made, sl_error *err) SL_MUST_CHECK;

#endif
