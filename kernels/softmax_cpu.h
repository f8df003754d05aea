/* softmax_cpu.h - softmax over keys that come in blocks, for cpu ops.
 *
 * One row is kept by its maximum so far, the sum of exp(score - maximum) and
 * the product of those weights with v, all scaled to that maximum (Milakov and
 * Gimelshein, "Online normalizer calculation for softmax", 2018).
 */
#ifndef SL_KERNELS_SOFTMAX_CPU_H
#define SL_KERNELS_SOFTMAX_CPU_H

#include <stdbool.h>
#include <stdint.h>

/* One row's next block: s [n] scores become weights.  first: nothing was summed
 * before, and product is not read; else *top, *sum and product [D] are brought
 * to the new maximum. */
void sl_softmax_row(float *s, int64_t n, bool first, float *top, double *sum, float *product,
                    int64_t D);

/* y [n] = x * by */
void sl_scale_row(float *y, const float *x, float by, int64_t n);

/* y = x / sum of it, where x becomes exp(x - max x): a whole softmax. y may be x. */
void sl_softmax_whole(float *y, const float *x, int64_t n);

#endif
