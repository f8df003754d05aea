#include "kernels/linear8_check.h"

#include "base/size.h"
#include "kernels/op_check.h"

#include <inttypes.h>

enum { TILE = SL_LINEAR8_TILE };

sl_status sl_linear8_check(const sl_linear8_kind *kind, const sl_tensor *y, const sl_tensor *x,
                           const sl_tensor *x_scale, const sl_tensor *w, const sl_tensor *w_scale,
                           const sl_tensor *b, sl_act act, sl_error *err)
{
    const char *op = kind->op;
    const unsigned code = SL_BIT(kind->code), f32 = SL_BIT(SL_F32);
    const sl_tensor *inputs[] = { x, x_scale, w, w_scale, b };
    const char *const names[] = { "x", "x_scale", "w", "w_scale", "b" };
    sl_status status = SL_OP_EXPECT(op, "x", x, code, err, 2, -1, -1);

    if (status != SL_OK)
        return status;
    const int64_t S = x->dim[0], I = x->dim[1];
    if (I % TILE != 0)
        return sl_fail(err, SL_ERR_INVALID, "%s: rows of %" PRId64 ", expected a multiple of %d",
                       op, I, (int)TILE);
    status = SL_OP_EXPECT(op, "w", w, code, err, 2, -1, I);
    if (status == SL_OK && kind->scale_per_row)
        status = SL_OP_EXPECT(op, "x_scale", x_scale, f32, err, 2, I / TILE, S);
    else if (status == SL_OK)
        status = SL_OP_EXPECT(op, "x_scale", x_scale, f32, err, 2, sl_ceil_div(S, TILE), I / TILE);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "w_scale", w_scale, f32, err, 2, sl_ceil_div(w->dim[0], TILE),
                              I / TILE);
    if (status == SL_OK && b)
        status = SL_OP_EXPECT(op, "b", b, f32 | SL_BIT(SL_BF16), err, 1, w->dim[0]);
    if (status == SL_OK)
        status = SL_OP_EXPECT(op, "y", y, SL_BITS_ACTIVATION, err, 2, S, w->dim[0]);
    for (size_t i = 0; i < SL_COUNT(inputs) && status == SL_OK; i++)
        if (inputs[i])
            status = sl_op_expect_apart(op, "y", y, names[i], inputs[i], err);
    if (status == SL_OK && act != SL_ACT_NONE && act != SL_ACT_GELU_TANH && act != SL_ACT_SILU)
        status = sl_fail(err, SL_ERR_INVALID, "%s: act %d is not known", op, (int)act);
    return status;
}
