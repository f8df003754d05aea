/* matmul_cuda.h - y [S, O] = x [S, I] . w [O, I]^T by cuBLASLt, with what its
 * epilogue can do; for linear_cuda.c.
 *
 * An algorithm is chosen once for a key, by the library's heuristics alone (the
 * first that fits SL_CUDA_MATMUL_BYTES), and kept with the exec, so that equal
 * calls run equal code.  At most PLANS keys are kept; the oldest goes.
 */
#ifndef SL_KERNELS_MATMUL_CUDA_H
#define SL_KERNELS_MATMUL_CUDA_H

#include "kernels/cuda.h"

#include <stdint.h>

/* Of the exec's workspace; what is behind belongs to the op. */
#define SL_CUDA_MATMUL_BYTES ((size_t)32 << 20)

enum { SL_CUDA_MATMUL_NO_BIAS = -1 };

/* Compared as bytes: zero one first.  Dtypes are cudaDataType_t. */
typedef struct {
    int64_t S, I, O;
    int32_t operands, y;
    int32_t bias; /* or SL_CUDA_MATMUL_NO_BIAS */
    int32_t gelu;
    int32_t x_align, w_align, y_align, bias_align; /* bytes; sl_cuda_alignment */
} sl_cuda_matmul_key;

typedef struct sl_cuda_matmul sl_cuda_matmul;

/* The largest power of two up to 256 that divides the address. */
int32_t sl_cuda_alignment(const void *p);

/* *out NULL: the library has nothing for this key on this card. */
sl_status sl_cuda_matmul_get(sl_cuda_matmul **out, sl_exec *exec, const sl_cuda_matmul_key *key,
                             sl_error *err) SL_MUST_CHECK;
/* Queues it.  bias: NULL unless the key has one. */
sl_status sl_cuda_matmul_run(sl_exec *exec, const sl_cuda_matmul *m, void *y, const void *x,
                             const void *w, const void *bias, sl_error *err) SL_MUST_CHECK;

#endif
