/* gemm_plain.c - gemm.h without a library, for machines that have none: a
 * register block of 4 x 16 over panels of b.  Some 10 GFLOP/s a core, an eighth
 * of what the library does. */
#include "kernels/gemm.h"

#include <stdbool.h>
#include <string.h>

enum { ROWS = 4, COLUMNS = 16, DEPTH = 256 };

#if defined(__x86_64__)
#define MANY_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MANY_CLONES
#endif

/* panel [depth][COLUMNS] of b's columns [n, n + columns), zeros to the right. */
static void pack(float *panel, const float *b, int64_t ldb, bool transposed, int64_t n,
                 int64_t columns, int64_t k, int64_t depth)
{
    for (int64_t i = 0; i < depth; i++)
        for (int64_t j = 0; j < COLUMNS; j++)
            panel[i * COLUMNS + j] = j >= columns ? 0.0f
                                     : transposed ? b[(n + j) * ldb + k + i]
                                                  : b[(k + i) * ldb + n + j];
}

/* sums [ROWS][COLUMNS] += rows of a times the panel.  Missing rows repeat the
 * last one; their sums are thrown away. */
MANY_CLONES
static void multiply(float *restrict sums, const float *const a[ROWS], const float *restrict panel,
                     int64_t depth)
{
    float s[ROWS][COLUMNS];

    memcpy(s, sums, sizeof s);
    for (int64_t i = 0; i < depth; i++)
        for (int r = 0; r < ROWS; r++)
            for (int j = 0; j < COLUMNS; j++)
                s[r][j] += a[r][i] * panel[i * COLUMNS + j];
    memcpy(sums, s, sizeof s);
}

static void add_block(const float *sums, float alpha, float *c, int64_t ldc, int64_t rows,
                      int64_t columns)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < columns; j++)
            c[r * ldc + j] += alpha * sums[r * COLUMNS + j];
}

static void gemm(bool transposed, int64_t M, int64_t N, int64_t K, float alpha, const float *a,
                 int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    float panel[DEPTH * COLUMNS];

    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++)
            c[m * ldc + n] = beta == 0.0f ? 0.0f : beta * c[m * ldc + n];
    for (int64_t n = 0; n < N; n += COLUMNS) {
        const int64_t columns = N - n < COLUMNS ? N - n : COLUMNS;
        for (int64_t k = 0; k < K; k += DEPTH) {
            const int64_t depth = K - k < DEPTH ? K - k : DEPTH;
            pack(panel, b, ldb, transposed, n, columns, k, depth);
            for (int64_t m = 0; m < M; m += ROWS) {
                const int64_t rows = M - m < ROWS ? M - m : ROWS;
                float sums[ROWS * COLUMNS] = { 0.0f };
                const float *from[ROWS];
                for (int64_t r = 0; r < ROWS; r++)
                    from[r] = a + (m + (r < rows ? r : rows - 1)) * lda + k;
                multiply(sums, from, panel, depth);
                add_block(sums, alpha, c + m * ldc + n, ldc, rows, columns);
            }
        }
    }
}

void sl_gemm_nt(int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    gemm(true, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc);
}

void sl_gemm_nn(int64_t M, int64_t N, int64_t K, float alpha, const float *a, int64_t lda,
                const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    gemm(false, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc);
}

void sl_gemm_set_threads(int threads)
{
    (void)threads; /* it has none */
}

const char *sl_gemm_kernels(void)
{
    return "plain";
}
