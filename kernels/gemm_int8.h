/* gemm_int8.h - products of int8 blocks, for cpu ops inside of a tile.
 *
 *   c[r, o] += f32(sum_{k < 128} x[r, k] w[o, k]) * scale[r / 128]
 *
 * for r < rows, o < cols <= 128.  x, w are rows of 128 codes, ldx, ldw bytes
 * apart; c has rows of 128 floats, of which those from cols on are undefined.
 * The sums are exact and the product is not fused, so that every kernel gives
 * the same bits.  space: SL_GEMM_INT8_SPACE_BYTES, aligned to 64 bytes.
 */
#ifndef SL_KERNELS_GEMM_INT8_H
#define SL_KERNELS_GEMM_INT8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_GEMM_INT8_SPACE_BYTES ((size_t)3 * 128 * 128 * sizeof(float))

typedef void sl_gemm_int8_fn(float *c, const int8_t *x, int64_t ldx, const int8_t *w, int64_t ldw,
                             int64_t rows, int64_t cols, const float *scale, void *space);

sl_gemm_int8_fn sl_gemm_int8_plain; /* any processor */
sl_gemm_int8_fn sl_gemm_int8_vnni;  /* only where sl_gemm_int8_has_vnni() */
bool sl_gemm_int8_has_vnni(void);
sl_gemm_int8_fn *sl_gemm_int8_best(void); /* of this processor */

#endif
