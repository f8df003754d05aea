/* op_test.h - what tests of cpu ops share: an exec, random and poisoned
 * tensors between guard bytes, and comparison against f64.
 */
#ifndef SL_KERNELS_OP_TEST_H
#define SL_KERNELS_OP_TEST_H

#include "base/size.h"
#include "base/test.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

#include <string.h>

enum { OP_TEST_GUARD_BYTES = 256 };

typedef struct {
    sl_device *device;
    sl_exec *exec;
    atomic_uint cancel;
} op_test;

static inline void op_test_open(op_test *t, int threads)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = SL_GIB };

    atomic_init(&t->cancel, 0);
    SL_CHECK_OK(sl_device_create(&t->device, &spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&t->exec, t->device, threads, &t->cancel, err));
}

static inline void op_test_close(op_test *t)
{
    sl_exec_destroy(t->exec);
    sl_device_destroy(t->device);
}

/* Zeroed tensor of its own, fenced by guard bytes; op_test_free checks them. */
static inline sl_tensor op_test_tensor(sl_dtype dtype, int rank, const int64_t *dim)
{
    sl_tensor t = sl_tensor_make(NULL, dtype, rank, dim);
    const size_t size_bytes = sl_tensor_bytes(&t);
    unsigned char *p = aligned_alloc(64, (size_bytes + 2 * OP_TEST_GUARD_BYTES + 63) / 64 * 64);

    SL_CHECK(p != NULL);
    memset(p, 0xa5, OP_TEST_GUARD_BYTES);
    memset(p + OP_TEST_GUARD_BYTES, 0, size_bytes);
    memset(p + OP_TEST_GUARD_BYTES + size_bytes, 0xa5, OP_TEST_GUARD_BYTES);
    t.data = p + OP_TEST_GUARD_BYTES;
    return t;
}
#define OP_TEST_TENSOR(dtype, rank, ...)                                                           \
    op_test_tensor((dtype), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ })

static inline void op_test_free(sl_tensor *t)
{
    unsigned char *p = (unsigned char *)t->data - OP_TEST_GUARD_BYTES;
    const size_t after = OP_TEST_GUARD_BYTES + sl_tensor_bytes(t);

    for (size_t i = 0; i < OP_TEST_GUARD_BYTES; i++)
        SL_CHECK(p[i] == 0xa5 && p[after + i] == 0xa5);
    free(p);
    t->data = NULL;
}

/* Every byte 0xff: NaN in all of F32, F64, BF16, F16. */
static inline void op_test_poison(const sl_tensor *t)
{
    memset(t->data, 0xff, sl_tensor_bytes(t));
}

static inline bool op_test_is_poison(const sl_tensor *t)
{
    for (size_t i = 0; i < sl_tensor_bytes(t); i++)
        if (((unsigned char *)t->data)[i] != 0xff)
            return false;
    return true;
}

/* Uniform in [-scale, scale); the same values for the same seed. */
static inline void op_test_fill(const sl_tensor *t, uint64_t seed, float scale)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;

    for (int64_t i = 0; i < sl_tensor_count(t); i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const float v = scale * ((float)(state >> 40) * 0x1p-23f - 1.0f);
        if (t->dtype == SL_F32)
            ((float *)t->data)[i] = v;
        else if (t->dtype == SL_F64)
            ((double *)t->data)[i] = v;
        else if (t->dtype == SL_BF16)
            ((uint16_t *)t->data)[i] = sl_bf16_from_f32(v);
        else
            SL_CHECK(!"dtype");
    }
}

static inline double op_test_get(const sl_tensor *t, int64_t i)
{
    switch (t->dtype) {
    case SL_F32:
        return (double)((const float *)t->data)[i];
    case SL_BF16:
        return (double)sl_bf16_to_f32(((const uint16_t *)t->data)[i]);
    case SL_F64:
        return ((const double *)t->data)[i];
    default:
        SL_CHECK(!"dtype");
        return 0.0;
    }
}

/* ||got - want||_2 / ||want||_2; NaN or infinity if any element is. */
static inline double op_test_rel_l2(const sl_tensor *got, const double *want)
{
    double diff = 0.0, norm = 0.0;

    for (int64_t i = 0; i < sl_tensor_count(got); i++) {
        const double d = op_test_get(got, i) - want[i];
        diff += d * d;
        norm += want[i] * want[i];
    }
    return diff == 0.0 ? 0.0 : sqrt(diff / norm);
}

#endif
