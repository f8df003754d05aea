#include "kernels/tensor.h"

#include "base/size.h"
#include "base/status.h"

#include <inttypes.h>
#include <stdio.h>

static const struct {
    const char *name;
    size_t bytes;
} dtypes[SL_DTYPE_COUNT] = {
    [SL_F32] = { "F32", 4 },   [SL_BF16] = { "BF16", 2 },       [SL_F16] = { "F16", 2 },
    [SL_F64] = { "F64", 8 },   [SL_I8] = { "I8", 1 },           [SL_U8] = { "U8", 1 },
    [SL_I16] = { "I16", 2 },   [SL_I32] = { "I32", 4 },         [SL_I64] = { "I64", 8 },
    [SL_BOOL] = { "BOOL", 1 }, [SL_F8_E4M3] = { "F8_E4M3", 1 }, [SL_F8_E5M2] = { "F8_E5M2", 1 },
};

size_t sl_dtype_bytes(sl_dtype dtype)
{
    SL_ASSERT(dtype >= 0 && dtype < SL_DTYPE_COUNT);
    return dtypes[dtype].bytes;
}

const char *sl_dtype_name(sl_dtype dtype)
{
    SL_ASSERT(dtype >= 0 && dtype < SL_DTYPE_COUNT);
    return dtypes[dtype].name;
}

sl_tensor sl_tensor_make(void *data, sl_dtype dtype, int rank, const int64_t *dim)
{
    sl_tensor t = { .data = data, .dtype = dtype, .rank = rank };

    SL_ASSERT(rank >= 0 && rank <= SL_MAX_RANK);
    for (int i = 0; i < rank; i++) {
        SL_ASSERT(dim[i] >= 0);
        t.dim[i] = dim[i];
    }
    return t;
}

int64_t sl_tensor_count(const sl_tensor *t)
{
    int64_t count = 1;

    for (int i = 0; i < t->rank; i++)
        if (t->dim[i] == 0)
            return 0;
    for (int i = 0; i < t->rank; i++)
        if (!sl_count_mul(count, t->dim[i], &count))
            return INT64_MAX;
    return count;
}

size_t sl_tensor_bytes(const sl_tensor *t)
{
    size_t size_bytes;

    if (!sl_size_mul((size_t)sl_tensor_count(t), sl_dtype_bytes(t->dtype), &size_bytes))
        return SIZE_MAX;
    return size_bytes;
}

bool sl_tensor_same_shape(const sl_tensor *a, const sl_tensor *b)
{
    if (a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i])
            return false;
    return true;
}

char *sl_tensor_describe(const sl_tensor *t, char *buf, size_t buf_bytes)
{
    char dims[SL_MAX_RANK * 22 + 1] = "";
    size_t used = 0;

    for (int i = 0; i < t->rank; i++)
        used += (size_t)snprintf(dims + used, sizeof dims - used, "%s%" PRId64, i ? ", " : "",
                                 t->dim[i]);
    snprintf(buf, buf_bytes, "[%s] %s", dims, sl_dtype_name(t->dtype));
    return buf;
}

/* Through integers: while a plan is counted the address is made up. */
static void *address_add(void *base, size_t offset_bytes)
{
    return (void *)((uintptr_t)base + offset_bytes);
}

sl_tensor sl_tensor_rows(const sl_tensor *t, int64_t first, int64_t count)
{
    sl_tensor rows = *t;

    SL_ASSERT(t->rank >= 1 && first >= 0 && count >= 0 && first <= t->dim[0] &&
              count <= t->dim[0] - first);
    rows.dim[0] = 1;
    rows.data = address_add(t->data, (size_t)first * sl_tensor_bytes(&rows));
    rows.dim[0] = count;
    return rows;
}

sl_tensor sl_tensor_reshape(const sl_tensor *t, int rank, const int64_t *dim)
{
    const sl_tensor view = sl_tensor_make(t->data, t->dtype, rank, dim);

    SL_ASSERT(sl_tensor_count(&view) == sl_tensor_count(t));
    return view;
}

float sl_f16_to_f32(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t fraction = bits & 0x3ffu;
    union {
        uint32_t u;
        float f;
    } v;

    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24, exact in f32 */
        v.f = (float)fraction * 0x1p-24f;
        v.u |= sign;
    } else if (exponent == 31) {
        v.u = sign | 0x7f800000u | fraction << 13;
    } else {
        v.u = sign | (exponent + 112) << 23 | fraction << 13;
    }
    return v.f;
}
