#include "kernels/elementwise.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"
#include "kernels/vmath.h"

#include <string.h>

enum {
    TILE = 1 << 16,      /* elements */
    COPY_TILE = 1 << 20, /* bytes */
    F32 = SL_BIT(SL_F32),
};

/* One batch; each op reads what it set. */
typedef struct {
    const sl_tensor *y, *a, *b;
    int64_t count; /* elements, or bytes */
    int64_t C;
    _Atomic int64_t bad_count;
} job;

static sl_status run(sl_exec *exec, job *j, int64_t tile_size, sl_tile_fn fn, sl_error *err)
{
    return sl_exec_parallel(exec, sl_ceil_div(j->count, tile_size), fn, j, err);
}

/* --- add --- */

sl_status sl_add_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b,
                       sl_error *err)
{
    sl_status status = sl_op_expect_like("add", "y", y, SL_BITS_ACTIVATION, y, err);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like("add", "a", a, SL_BITS_ACTIVATION, y, err);
    if (status == SL_OK)
        status = sl_op_expect_count("add", "b", b, SL_BITS_ACTIVATION, sl_tensor_count(y), err);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same("add", "y", y, "a", a, err);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same("add", "y", y, "b", b, err);
    return status;
}

SL_MULTIARCH static void add_f32(float *y, const float *a, const float *b, int64_t count)
{
    SL_IVDEP
    for (int64_t i = 0; i < count; i++)
        y[i] = a[i] + b[i];
}

SL_MULTIARCH static void add_bf16(float *y, const float *a, const uint16_t *b, int64_t count)
{
    SL_IVDEP
    for (int64_t i = 0; i < count; i++)
        y[i] = a[i] + sl_bf16_to_f32(b[i]);
}

static void add_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE, count = sl_tile_length(i, TILE, j->count);
    float *out = workspace, *y = sl_target_f32(j->y, first, out);
    const float *a = sl_load_f32(j->a, first, count, out + TILE);

    (void)thread;
    if (j->b->dtype == SL_F32)
        add_f32(y, a, (const float *)j->b->data + first, count);
    else
        add_bf16(y, a, (const uint16_t *)j->b->data + first, count);
    sl_store_f32(j->y, first, count, y);
}

_Static_assert((size_t)2 * TILE * sizeof(float) <= SL_CPU_WORKSPACE_PER_THREAD,
               "two tiles fit the workspace");

sl_status sl_add_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b,
                     sl_error *err)
{
    sl_status status = sl_add_check(exec, y, a, b, err);
    job j = { .y = y, .a = a, .b = b };

    if (status != SL_OK)
        return status;
    j.count = sl_tensor_count(y);
    return run(exec, &j, TILE, add_tile, err);
}

/* --- mul --- */

sl_status sl_mul_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b,
                       sl_error *err)
{
    sl_status status = sl_op_expect_like("mul", "y", y, SL_BITS_ACTIVATION, y, err);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like("mul", "a", a, SL_BITS_ACTIVATION, y, err);
    if (status == SL_OK)
        status = sl_op_expect_like("mul", "b", b, SL_BITS_ACTIVATION, y, err);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same("mul", "y", y, "a", a, err);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same("mul", "y", y, "b", b, err);
    return status;
}

SL_MULTIARCH static void mul_f32(float *y, const float *a, const float *b, int64_t count)
{
    SL_IVDEP
    for (int64_t i = 0; i < count; i++)
        y[i] = a[i] * b[i];
}

static void mul_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE;

    (void)thread, (void)workspace;
    mul_f32((float *)j->y->data + first, (const float *)j->a->data + first,
            (const float *)j->b->data + first, sl_tile_length(i, TILE, j->count));
}

sl_status sl_mul_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b,
                     sl_error *err)
{
    sl_status status = sl_mul_check(exec, y, a, b, err);
    job j = { .y = y, .a = a, .b = b };

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("mul", err, y, a, b);
    if (status != SL_OK)
        return status;
    j.count = sl_tensor_count(y);
    return run(exec, &j, TILE, mul_tile, err);
}

/* --- gated add --- */

sl_status sl_gated_add_check(sl_exec *exec, const sl_tensor *x, const sl_tensor *y,
                             const sl_tensor *gate, sl_error *err)
{
    sl_status status = SL_OP_EXPECT("gated_add", "x", x, SL_BITS_ACTIVATION, err, 2, -1, -1);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like("gated_add", "y", y, SL_BITS_ACTIVATION, x, err);
    if (status == SL_OK)
        status = sl_op_expect_count("gated_add", "gate", gate, F32, x->dim[1], err);
    if (status == SL_OK)
        status = sl_op_expect_apart("gated_add", "x", x, "y", y, err);
    if (status == SL_OK)
        status = sl_op_expect_apart("gated_add", "x", x, "gate", gate, err);
    return status;
}

SL_MULTIARCH static void gated_add_row(float *restrict x, const float *restrict y,
                                       const float *restrict gate, int64_t C)
{
    for (int64_t c = 0; c < C; c++)
        x[c] += y[c] * gate[c];
}

static int64_t gated_add_rows(int64_t C)
{
    return C < TILE ? TILE / C : 1;
}

static void gated_add_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t rows = gated_add_rows(j->C), first = i * rows;
    const int64_t end = first + sl_tile_length(i, rows, j->count);

    (void)thread, (void)workspace;
    for (int64_t s = first; s < end; s++)
        gated_add_row((float *)j->y->data + s * j->C, (const float *)j->a->data + s * j->C,
                      j->b->data, j->C);
}

sl_status sl_gated_add_cpu(sl_exec *exec, const sl_tensor *x, const sl_tensor *y,
                           const sl_tensor *gate, sl_error *err)
{
    sl_status status = sl_gated_add_check(exec, x, y, gate, err);
    job j = { .y = x, .a = y, .b = gate };

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("gated_add", err, x, y);
    if (status != SL_OK)
        return status;
    if (x->dim[1] == 0)
        return SL_OK;
    j.count = x->dim[0];
    j.C = x->dim[1];
    return run(exec, &j, gated_add_rows(j.C), gated_add_tile, err);
}

/* --- silu --- */

sl_status sl_silu_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_op_expect_like("silu", "y", y, SL_BITS_ACTIVATION, y, err);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_like("silu", "x", x, SL_BITS_ACTIVATION, y, err);
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same("silu", "y", y, "x", x, err);
    return status;
}

SL_MULTIARCH static void silu_f32(float *y, const float *x, int64_t count)
{
    SL_IVDEP
    for (int64_t i = 0; i < count; i++)
        y[i] = sl_siluf(x[i]);
}

static void silu_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE;

    (void)thread, (void)workspace;
    silu_f32((float *)j->y->data + first, (const float *)j->a->data + first,
             sl_tile_length(i, TILE, j->count));
}

sl_status sl_silu_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_silu_check(exec, y, x, err);
    job j = { .y = y, .a = x };

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("silu", err, y, x);
    if (status != SL_OK)
        return status;
    j.count = sl_tensor_count(y);
    return run(exec, &j, TILE, silu_tile, err);
}

/* --- copy, zero --- */

sl_status sl_copy_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status =
        sl_op_expect_count("copy", "x", x, SL_BIT(y->dtype), sl_tensor_count(y), err);

    (void)exec;
    if (status == SL_OK)
        status = sl_op_expect_apart_or_same("copy", "y", y, "x", x, err);
    return status;
}

static void copy_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * COPY_TILE;

    (void)thread, (void)workspace;
    memcpy((unsigned char *)j->y->data + first, (const unsigned char *)j->a->data + first,
           (size_t)sl_tile_length(i, COPY_TILE, j->count));
}

sl_status sl_copy_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    const sl_status status = sl_copy_check(exec, y, x, err);
    job j = { .y = y, .a = x };

    if (status != SL_OK)
        return status;
    if (y->data == x->data)
        return SL_OK;
    j.count = (int64_t)sl_tensor_bytes(y);
    return run(exec, &j, COPY_TILE, copy_tile, err);
}

sl_status sl_zero_check(sl_exec *exec, const sl_tensor *y, sl_error *err)
{
    (void)exec;
    return sl_op_expect_count("zero", "y", y, SL_BIT(y->dtype), sl_tensor_count(y), err);
}

static void zero_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;

    (void)thread, (void)workspace;
    memset((unsigned char *)j->y->data + i * COPY_TILE, 0,
           (size_t)sl_tile_length(i, COPY_TILE, j->count));
}

sl_status sl_zero_cpu(sl_exec *exec, const sl_tensor *y, sl_error *err)
{
    const sl_status status = sl_zero_check(exec, y, err);
    job j = { .y = y };

    if (status != SL_OK)
        return status;
    j.count = (int64_t)sl_tensor_bytes(y);
    return run(exec, &j, COPY_TILE, zero_tile, err);
}

/* --- check_finite --- */

static sl_status finite_expect(const sl_tensor *x, sl_error *err)
{
    return sl_op_expect_like("check_finite", "x", x, SL_BITS_ACTIVATION | SL_BIT(SL_F64), x, err);
}

sl_status sl_check_finite_check(sl_exec *exec, const sl_tensor *x, int64_t *bad_count,
                                sl_error *err)
{
    const sl_status status = finite_expect(x, err);

    (void)exec;
    if (status == SL_OK)
        *bad_count = 0;
    return status;
}

/* By the exponent's bits, so that no compiler flag can make it vanish. */
SL_MULTIARCH static int64_t count_bad_f32(const float *x, int64_t count)
{
    uint32_t bad = 0; /* a tile has fewer than 2^32 elements */

    for (int64_t i = 0; i < count; i++) {
        union {
            float f;
            uint32_t u;
        } v = { x[i] };
        bad += (v.u & 0x7f800000u) == 0x7f800000u;
    }
    return bad;
}

SL_MULTIARCH static int64_t count_bad_bf16(const uint16_t *x, int64_t count)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < count; i++)
        bad += (x[i] & 0x7f80u) == 0x7f80u;
    return bad;
}

SL_MULTIARCH static int64_t count_bad_f64(const double *x, int64_t count)
{
    const uint64_t exponent = 0x7ff0000000000000u;
    uint64_t bad = 0;

    for (int64_t i = 0; i < count; i++) {
        union {
            double f;
            uint64_t u;
        } v = { x[i] };
        bad += (v.u & exponent) == exponent;
    }
    return (int64_t)bad;
}

static void check_finite_tile(void *arg, int64_t i, int thread, void *workspace)
{
    job *j = arg;
    const int64_t first = i * TILE, count = sl_tile_length(i, TILE, j->count);

    (void)thread, (void)workspace;
    if (j->a->dtype == SL_F32)
        j->bad_count += count_bad_f32((const float *)j->a->data + first, count);
    else if (j->a->dtype == SL_BF16)
        j->bad_count += count_bad_bf16((const uint16_t *)j->a->data + first, count);
    else
        j->bad_count += count_bad_f64((const double *)j->a->data + first, count);
}

sl_status sl_check_finite_cpu(sl_exec *exec, const sl_tensor *x, int64_t *bad_count, sl_error *err)
{
    sl_status status = finite_expect(x, err);
    job j = { .a = x };

    if (status != SL_OK)
        return status;
    j.count = sl_tensor_count(x);
    status = run(exec, &j, TILE, check_finite_tile, err);
    if (status == SL_OK)
        *bad_count = j.bad_count;
    return status;
}
