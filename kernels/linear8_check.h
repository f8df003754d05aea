/* linear8_check.h - the shapes of linear layers on codes of 8 bits, which
 * linear_int8.h and linear_fp8.h state; they differ in the code and in what a scale
 * of x is for. */
#ifndef SL_KERNELS_LINEAR8_CHECK_H
#define SL_KERNELS_LINEAR8_CHECK_H

#include "base/status.h"
#include "kernels/act.h"
#include "kernels/tensor.h"

enum { SL_LINEAR8_TILE = 128 };

typedef struct {
    const char *op;
    sl_dtype code;
    bool scale_per_row; /* x_scale [I / 128, S]; else [ceil(S / 128), I / 128] */
} sl_linear8_kind;

sl_status sl_linear8_check(const sl_linear8_kind *kind, const sl_tensor *y, const sl_tensor *x,
                           const sl_tensor *x_scale, const sl_tensor *w, const sl_tensor *w_scale,
                           const sl_tensor *b, sl_act act, sl_error *err) SL_MUST_CHECK;

#endif
