/* Two ways to the same bits:
 *
 *   plain  int8 codes are exact in f32, and so is any sum of 128 of their
 *          products (below 2^24): the matrix library does it on floats.
 *   vnni   AVX-512's dot product of 4 bytes.  It takes one operand unsigned, so
 *          the weights are packed with 128 added and every row's sum starts at
 *          -128 * sum(x).
 */
#include "kernels/gemm_int8.h"

#include "kernels/gemm.h"
#include "kernels/vmath.h"

#include <string.h>

enum { TILE = 128 };

SL_MULTIARCH static void widen(float *out, const int8_t *codes, int64_t ld, int64_t rows)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < TILE; k++)
            out[r * TILE + k] = (float)codes[r * ld + k];
}

SL_MULTIARCH static void add_scaled(float *restrict c, const float *restrict sum, float scale,
                                    int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        c[i] += sum[i] * scale;
}

void sl_gemm_int8_plain(float *c, const int8_t *x, int64_t ldx, const int8_t *w, int64_t ldw,
                        int64_t rows, int64_t cols, const float *scale, void *space)
{
    float *wide_w = space, *wide_x = wide_w + TILE * TILE, *sum = wide_x + TILE * TILE;

    widen(wide_w, w, ldw, cols);
    for (int64_t first = 0; first < rows; first += TILE) {
        const int64_t count = first + TILE < rows ? TILE : rows - first;

        widen(wide_x, x + first * ldx, ldx, count);
        sl_gemm_nt(count, cols, TILE, 1.0f, wide_x, TILE, wide_w, TILE, 0.0f, sum, TILE);
        for (int64_t r = 0; r < count; r++)
            add_scaled(c + (first + r) * TILE, sum + r * TILE, scale[first / TILE], cols);
    }
}

#ifdef __x86_64__

#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512vnni")))

enum {
    WORDS = TILE / 4, /* groups of 4 codes along k */
    LANES = 16,
    STRIP = 4 * LANES, /* columns of one pass over k */
    ROWS = 6,          /* ROWS * 4 sums, 4 weights and an x: they fit the 32 registers */
};

bool sl_gemm_int8_has_vnni(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
}

/* [k / 4][column] groups of 4 codes with 128 added; 128 stands for what is missing. */
static void pack(uint32_t *packed, const int8_t *w, int64_t ldw, int64_t cols)
{
    for (int64_t o = 0; o < TILE; o++) {
        for (int64_t k = 0; k < WORDS; k++) {
            uint32_t codes = 0;
            if (o < cols)
                memcpy(&codes, w + o * ldw + 4 * k, sizeof codes);
            packed[k * TILE + o] = codes ^ 0x80808080u;
        }
    }
}

/* -128 times the sum of a row's codes. */
VNNI static int32_t row_start(const int8_t *x)
{
    const __m512i by = _mm512_set1_epi32((int)0x80808080u);
    const __m512i half = _mm512_dpbusd_epi32(_mm512_setzero_si512(), by, _mm512_loadu_si512(x));

    return -_mm512_reduce_add_epi32(_mm512_dpbusd_epi32(half, by, _mm512_loadu_si512(x + 64)));
}

/* sum += products of 4 codes, w unsigned and x signed.  Not by its intrinsic, whose
 * casts make GCC 12 keep a copy of every sum in memory. */
#define DOT(sum, w, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x))

VNNI SL_INLINE void add_scaled_lanes(float *c, __m512i sum, __m512 by)
{
    const __m512 more = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), by);

    _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), more));
}

/* rows (a constant, at most ROWS) of x with one strip of columns. */
VNNI SL_INLINE void strip(float *c, const int8_t *x, int64_t ldx, const uint32_t *packed,
                          const int rows, float scale)
{
    const __m512 by = _mm512_set1_ps(scale);
    __m512i sum[ROWS][4];

#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        const __m512i start = _mm512_set1_epi32(row_start(x + r * ldx));
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sum[r][j] = start;
    }
    for (int k = 0; k < WORDS; k++) {
        const uint32_t *at = packed + k * TILE;
        const __m512i w[4] = { _mm512_load_si512(at), _mm512_load_si512(at + LANES),
                               _mm512_load_si512(at + 2 * LANES),
                               _mm512_load_si512(at + 3 * LANES) };
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            int32_t codes;
            memcpy(&codes, x + r * ldx + 4 * k, sizeof codes);
            const __m512i spread = _mm512_set1_epi32(codes);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                DOT(sum[r][j], w[j], spread);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            add_scaled_lanes(c + r * TILE + j * LANES, sum[r][j], by);
}

VNNI static void strip_rows(float *c, const int8_t *x, int64_t ldx, const uint32_t *packed,
                            int64_t rows, float scale)
{
    switch (rows) {
    case 1:
        strip(c, x, ldx, packed, 1, scale);
        break;
    case 2:
        strip(c, x, ldx, packed, 2, scale);
        break;
    case 3:
        strip(c, x, ldx, packed, 3, scale);
        break;
    case 4:
        strip(c, x, ldx, packed, 4, scale);
        break;
    case 5:
        strip(c, x, ldx, packed, 5, scale);
        break;
    default:
        strip(c, x, ldx, packed, ROWS, scale);
        break;
    }
}

void sl_gemm_int8_vnni(float *c, const int8_t *x, int64_t ldx, const int8_t *w, int64_t ldw,
                       int64_t rows, int64_t cols, const float *scale, void *space)
{
    uint32_t *packed = space;

    pack(packed, w, ldw, cols);
    for (int64_t tile = 0; tile < rows; tile += TILE) {
        const int64_t end = tile + TILE < rows ? tile + TILE : rows;

        for (int64_t r = tile; r < end; r += ROWS)
            for (int64_t o = 0; o < cols; o += STRIP)
                strip_rows(c + r * TILE + o, x + r * ldx, ldx, packed + o,
                           r + ROWS < end ? ROWS : end - r, scale[tile / TILE]);
    }
}

#else

bool sl_gemm_int8_has_vnni(void)
{
    return false;
}

void sl_gemm_int8_vnni(float *c, const int8_t *x, int64_t ldx, const int8_t *w, int64_t ldw,
                       int64_t rows, int64_t cols, const float *scale, void *space)
{
    sl_gemm_int8_plain(c, x, ldx, w, ldw, rows, cols, scale, space);
}

#endif

sl_gemm_int8_fn *sl_gemm_int8_best(void)
{
    return sl_gemm_int8_has_vnni() ? sl_gemm_int8_vnni : sl_gemm_int8_plain;
}
