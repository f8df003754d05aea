/* tensor.h - a typed view of device memory: what every op takes.
 *
 * A tensor is a plain value: it owns nothing.  It is always contiguous and
 * row-major, last dimension fastest; `data` is 64-byte aligned unless an op
 * says that it accepts less.  While a plan is being counted `data` is a made
 * up address that nothing may read.
 */
#ifndef SL_KERNELS_TENSOR_H
#define SL_KERNELS_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    SL_F32,
    SL_BF16,
    SL_F16,
    SL_F64,
    SL_I8,
    SL_U8,
    SL_I16,
    SL_I32,
    SL_I64,
    SL_BOOL,
    SL_F8_E4M3,
    SL_F8_E5M2,
    SL_DTYPE_COUNT
} sl_dtype;

enum { SL_MAX_RANK = 6 };

typedef struct {
    void *data;
    sl_dtype dtype;
    int rank;                 /* 0: a scalar of one element */
    int64_t dim[SL_MAX_RANK]; /* dim[0..rank-1] */
} sl_tensor;

size_t sl_dtype_bytes(sl_dtype dtype);
const char *sl_dtype_name(sl_dtype dtype); /* the safetensors name: "F32", "BF16", ... */

sl_tensor sl_tensor_make(void *data, sl_dtype dtype, int rank, const int64_t *dim);
/* The same with the dimensions written out: sl_tensor_of(p, SL_F32, 2, S, C).
 * A macro, so that dimensions of any integer type arrive as int64_t. */
#define sl_tensor_of(data, dtype, rank, ...)                                                       \
    sl_tensor_make((data), (dtype), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ })

/* Elements; 0 if any dim is 0.  Both saturate instead of overflowing. */
int64_t sl_tensor_count(const sl_tensor *t);
size_t sl_tensor_bytes(const sl_tensor *t);
bool sl_tensor_same_shape(const sl_tensor *a, const sl_tensor *b);
/* "[3, 8, 12] F32"; returns buf. */
char *sl_tensor_describe(const sl_tensor *t, char *buf, size_t buf_bytes);

/* Rows [first, first + count) of the outermost dimension, as a view. */
sl_tensor sl_tensor_rows(const sl_tensor *t, int64_t first, int64_t count);
/* The same data under another shape with as many elements (asserted). */
sl_tensor sl_tensor_reshape(const sl_tensor *t, int rank, const int64_t *dim);

/* bf16 <-> f32.  Rounding is to nearest, ties to even; NaN stays NaN. */
static inline float sl_bf16_to_f32(uint16_t bits)
{
    union {
        uint32_t u;
        float f;
    } v = { (uint32_t)bits << 16 };
    return v.f;
}

static inline uint16_t sl_bf16_from_f32(float x)
{
    union {
        float f;
        uint32_t u;
    } v = { x };
    if ((v.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((v.u >> 16) | 0x40u);
    v.u += 0x7fffu + ((v.u >> 16) & 1u);
    return (uint16_t)(v.u >> 16);
}

float sl_f16_to_f32(uint16_t bits);

#endif
