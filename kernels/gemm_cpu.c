#include "kernels/gemm.h"

#include "base/status.h"

#include <cblas.h>
#include <limits.h>

static void gemm(CBLAS_TRANSPOSE trans_b, int64_t M, int64_t N, int64_t K, float alpha,
                 const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                 int64_t ldc)
{
    SL_ASSERT(M <= INT_MAX && N <= INT_MAX && K <= INT_MAX && lda <= INT_MAX && ldb <= INT_MAX &&
              ldc <= INT_MAX);
    if (M == 0 || N == 0)
        return;
    if (K == 0) { /* the library would leave c as it is when beta is 0 */
        for (int64_t m = 0; m < M; m++)
            for (int64_t n = 0; n < N; n++)
                c[m * ldc + n] = beta == 0.0f ? 0.0f : beta * c[m * ldc + n];
        return;
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, trans_b, (int)M, (int)N, (int)K, alpha, a, (int)lda, b,
                (int)ldb, beta, c, (int)ldc);
}

void sl_gemm_nt(int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    gemm(CblasTrans, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc);
}

void sl_gemm_nn(int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    gemm(CblasNoTrans, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc);
}

void sl_gemm_set_threads(int threads)
{
    openblas_set_num_threads(threads);
}

const char *sl_gemm_kernels(void)
{
    return openblas_get_corename();
}
