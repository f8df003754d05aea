/* op_check.h - what the sl_<op>_check functions share.
 *
 * They look at shapes, dtypes and addresses, never at data: while a plan is
 * counted there is none.  A NULL or made-up address overlaps nothing.
 *
 * Messages read `linear: w is [8, 16] F32, expected [8, 12] F32 or BF16`.
 */
#ifndef SL_KERNELS_OP_CHECK_H
#define SL_KERNELS_OP_CHECK_H

#include "base/status.h"
#include "kernels/tensor.h"

/* Dtypes are given as a set: SL_BIT(SL_F32) | SL_BIT(SL_BF16). */
#define SL_BIT(dtype) (1u << (dtype))
/* What activations may be; see ops.h. */
#define SL_BITS_ACTIVATION (SL_BIT(SL_F32) | SL_BIT(SL_BF16))

/* dim[i] < 0 admits any size there. */
sl_status sl_op_expect(const char *op, const char *name, const sl_tensor *t, unsigned dtypes,
                       int rank, const int64_t *dim, sl_error *err) SL_MUST_CHECK;
/* Any shape with `count` elements. */
sl_status sl_op_expect_count(const char *op, const char *name, const sl_tensor *t, unsigned dtypes,
                             int64_t count, sl_error *err) SL_MUST_CHECK;
/* The shape of `like`. */
static inline SL_MUST_CHECK sl_status sl_op_expect_like(const char *op, const char *name,
                                                        const sl_tensor *t, unsigned dtypes,
                                                        const sl_tensor *like, sl_error *err)
{
    return sl_op_expect(op, name, t, dtypes, like->rank, like->dim, err);
}
/* SL_ERR_INVALID when the bytes of a and b meet. */
sl_status sl_op_expect_apart(const char *op, const char *a_name, const sl_tensor *a,
                             const char *b_name, const sl_tensor *b, sl_error *err) SL_MUST_CHECK;
/* The same, but a may be exactly b (same address and bytes). */
sl_status sl_op_expect_apart_or_same(const char *op, const char *a_name, const sl_tensor *a,
                                     const char *b_name, const sl_tensor *b,
                                     sl_error *err) SL_MUST_CHECK;

/* For ops that compute activations in F32 alone: SL_ERR_UNIMPLEMENTED if any of
 * `tensors` (NULL ones do not count) is BF16. */
sl_status sl_op_only_f32(const char *op, const sl_tensor *const *tensors, size_t count,
                         sl_error *err) SL_MUST_CHECK;
#define SL_OP_ONLY_F32(op, err, ...)                                                               \
    sl_op_only_f32((op), (const sl_tensor *const[]){ __VA_ARGS__ },                                \
                   sizeof((const sl_tensor *const[]){ __VA_ARGS__ }) / sizeof(sl_tensor *), (err))

#define SL_OP_EXPECT(op, name, t, dtypes, err, rank, ...)                                          \
    sl_op_expect((op), (name), (t), (dtypes), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ }, \
                 (err))

#endif
