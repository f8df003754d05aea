#include "kernels/op_check.h"

#include <inttypes.h>
#include <stdio.h>

enum { TEXT_BYTES = 192 };

static char *describe_dtypes(unsigned dtypes, char *buf, size_t buf_bytes)
{
    size_t used = 0;

    buf[0] = '\0';
    for (int d = 0; d < SL_DTYPE_COUNT; d++)
        if (dtypes & SL_BIT(d) && used < buf_bytes)
            used += (size_t)snprintf(buf + used, buf_bytes - used, "%s%s", used ? " or " : "",
                                     sl_dtype_name((sl_dtype)d));
    return buf;
}

static char *describe_shape(int rank, const int64_t *dim, char *buf, size_t buf_bytes)
{
    size_t used = 0;

    buf[0] = '\0';
    for (int i = 0; i < rank && used < buf_bytes; i++)
        used += (size_t)(dim[i] < 0 ? snprintf(buf + used, buf_bytes - used, "%s*", i ? ", " : "")
                                    : snprintf(buf + used, buf_bytes - used, "%s%" PRId64,
                                               i ? ", " : "", dim[i]));
    return buf;
}

sl_status sl_op_expect(const char *op, const char *name, const sl_tensor *t, unsigned dtypes,
                       int rank, const int64_t *dim, sl_error *err)
{
    bool fits = t->rank == rank && dtypes & SL_BIT(t->dtype);
    char got[TEXT_BYTES], shape[TEXT_BYTES], types[TEXT_BYTES];

    for (int i = 0; fits && i < rank; i++)
        fits = dim[i] < 0 || t->dim[i] == dim[i];
    if (fits)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "%s: %s is %s, expected [%s] %s", op, name,
                   sl_tensor_describe(t, got, sizeof got),
                   describe_shape(rank, dim, shape, sizeof shape),
                   describe_dtypes(dtypes, types, sizeof types));
}

sl_status sl_op_expect_count(const char *op, const char *name, const sl_tensor *t, unsigned dtypes,
                             int64_t count, sl_error *err)
{
    char got[TEXT_BYTES], types[TEXT_BYTES];

    if (dtypes & SL_BIT(t->dtype) && sl_tensor_count(t) == count)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "%s: %s is %s, expected %" PRId64 " elements of %s", op,
                   name, sl_tensor_describe(t, got, sizeof got), count,
                   describe_dtypes(dtypes, types, sizeof types));
}

static bool overlaps(const sl_tensor *a, const sl_tensor *b)
{
    const uintptr_t a_at = (uintptr_t)a->data, b_at = (uintptr_t)b->data;

    if (!a_at || !b_at)
        return false;
    return a_at < b_at ? b_at - a_at < sl_tensor_bytes(a) && sl_tensor_bytes(b) > 0
                       : a_at - b_at < sl_tensor_bytes(b) && sl_tensor_bytes(a) > 0;
}

sl_status sl_op_expect_apart(const char *op, const char *a_name, const sl_tensor *a,
                             const char *b_name, const sl_tensor *b, sl_error *err)
{
    if (!overlaps(a, b))
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "%s: %s overlaps %s", op, a_name, b_name);
}

sl_status sl_op_expect_apart_or_same(const char *op, const char *a_name, const sl_tensor *a,
                                     const char *b_name, const sl_tensor *b, sl_error *err)
{
    if (a->data == b->data && sl_tensor_bytes(a) == sl_tensor_bytes(b))
        return SL_OK;
    return sl_op_expect_apart(op, a_name, a, b_name, b, err);
}

sl_status sl_op_only_f32(const char *op, const sl_tensor *const *tensors, size_t count,
                         sl_error *err)
{
    char got[TEXT_BYTES];

    for (size_t i = 0; i < count; i++)
        if (tensors[i] && tensors[i]->dtype == SL_BF16)
            return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                           "%s: activations of %s: the cpu device computes this op in F32 only", op,
                           sl_tensor_describe(tensors[i], got, sizeof got));
    return SL_OK;
}
