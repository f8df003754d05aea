/* gemm.h - the one door to the matrix library, for cpu ops inside of a tile.
 *
 *   sl_gemm_nt  c [M, N] = beta * c + alpha * a [M, K] . b [N, K]^T
 *   sl_gemm_nn  c [M, N] = beta * c + alpha * a [M, K] . b [K, N]
 *
 * Row-major with leading dimensions, f32 with f32 sums.  beta = 0 never reads
 * c.  Runs on the calling thread alone: the parallelism is sl_exec_parallel's.
 * Any of M, N, K may be 0.
 */
#ifndef SL_KERNELS_GEMM_H
#define SL_KERNELS_GEMM_H

#include <stdint.h>

void sl_gemm_nt(int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
void sl_gemm_nn(int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* The library's own threads: sl_exec_create_cpu sets 1, for the process.  A
 * benchmark may raise it to see the library's best. */
void sl_gemm_set_threads(int threads);
const char *sl_gemm_kernels(void); /* which kernels it chose for this processor */

#endif
