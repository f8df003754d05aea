/* rope.h - rotary embedding over a T x H x W grid of tokens.
 *
 * A head of D dims (even, at most 1024) has P = D/2 pairs of adjacent elements
 * (2j, 2j+1), split over the axes t, h, w: P_h = P_w = D/6 (integer division),
 * P_t = P - 2*(D/6); for D = 128 that is 22/21/21.  Pair j with index i inside
 * its axis, whose dimension is m = 2*P_axis, turns by pos * 10000^(-2i/m).
 * Powers, products, cos and sin in f32.  Source: wan.md 4.4.
 *
 * rope_table  fills table [max_pos, D/2, 2] f32 with (cos, sin) of each
 *             position 0..max_pos-1 for each pair (of that pair's axis)
 * rope        x [S, N*D] act in place, S = T*H*W tokens, t-major, then row,
 *             then column; each of T, H, W at most max_pos
 */
#ifndef SL_KERNELS_ROPE_H
#define SL_KERNELS_ROPE_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

enum { SL_ROPE_MAX_POS = 128 };

typedef struct {
    int64_t T, H, W; /* tokens along each axis */
} sl_grid;

typedef sl_status sl_rope_table_fn(sl_exec *exec, const sl_tensor *table, sl_error *err);
typedef sl_status sl_rope_fn(sl_exec *exec, const sl_tensor *x, const sl_tensor *table,
                             sl_grid grid, sl_error *err);

/* The same table in host memory, with all of it in f64 and one rounding at the end:
 * Wan's own (wan.md 4.4). */
void sl_rope_table_f64(float *table, int64_t max_pos, int64_t pairs);

sl_rope_table_fn sl_rope_table_cpu, sl_rope_table_cuda, sl_rope_table_check;
sl_rope_fn sl_rope_cpu, sl_rope_cuda, sl_rope_check;

#endif
