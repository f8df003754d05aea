/* attention_cuda.h - launchers behind sl_attention_cuda, see attention.h.
 *
 * sl_cuda_attention_plain (attention.cu) takes everything that the contract
 * admits; the others (attention_wide.cu) are the steps of one wide bf16 head.
 */
#ifndef SL_KERNELS_ATTENTION_CUDA_H
#define SL_KERNELS_ATTENTION_CUDA_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    void *o;               /* may be q */
    const void *q, *k, *v; /* rows of N*D */
    const float *bias;     /* [N, Sq + Sk - 1], or NULL */
    bool bf16;             /* q, k, v and o; else f32 */
    int64_t Sq, Sk, N, D;
    float scale;
} sl_cuda_attention;

cudaError_t sl_cuda_attention_plain(cudaStream_t stream, const sl_cuda_attention *a);

/* p [rows, count] bf16 = exp(scale * s - largest of the row), s [rows, count] f32;
 * sums [rows]: of each row before it was rounded */
cudaError_t sl_cuda_exp_rows(cudaStream_t stream, void *p, float *sums, const float *s,
                             int64_t rows, int64_t count, float scale);
/* o [rows, D] bf16 = x [rows, D] f32 / sums [rows] */
cudaError_t sl_cuda_divide_rows(cudaStream_t stream, void *o, const float *x, const float *sums,
                                int64_t rows, int64_t D);
/* y [columns, rows] = x [rows, columns] transposed, bf16 */
cudaError_t sl_cuda_transpose(cudaStream_t stream, void *y, const void *x, int64_t rows,
                              int64_t columns);

#ifdef __cplusplus
}
#endif

#endif
