/* act.h - what a linear layer's output goes through; formulas in linear.h.  Apart
 * from it, so that device code can read it. */
#ifndef SL_KERNELS_ACT_H
#define SL_KERNELS_ACT_H

typedef enum {
    SL_ACT_NONE,
    SL_ACT_GELU_TANH,
    SL_ACT_SILU,
} sl_act;

#endif
