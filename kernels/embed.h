/* embed.h - from ids, times and distances to vectors.
 *
 * embed_rows  y[s, :] = table[ids[s], :].  ids [S] i32 in device memory, each
 *             in [0, rows) (SL_ERR_INVALID otherwise); table [rows, C] f32 or
 *             bf16; y [S, C] act
 * sinusoid    y[F] f32, F even: j < F/2: cos(t * 10000^(-j/(F/2))), then the
 *             sines; f64 inside.  Source: wan.md 4.2
 * rel_bias    umT5: y [N, Sq + Sk - 1] f32, y[n, r + Sq - 1] = table[bucket(r), n]
 *             for r = key - query; table [buckets, N] f32 or bf16, 32 buckets,
 *             maximum distance 128, bidirectional.  Source: wan.md 3.3
 */
#ifndef SL_KERNELS_EMBED_H
#define SL_KERNELS_EMBED_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_embed_rows_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *table,
                                   const sl_tensor *ids, sl_error *err);
typedef sl_status sl_sinusoid_fn(sl_exec *exec, const sl_tensor *y, double t, sl_error *err);
typedef sl_status sl_rel_bias_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *table,
                                 int64_t Sq, int64_t Sk, sl_error *err);
sl_embed_rows_fn sl_embed_rows_cpu, sl_embed_rows_cuda, sl_embed_rows_check;
sl_sinusoid_fn sl_sinusoid_cpu, sl_sinusoid_cuda, sl_sinusoid_check;
sl_rel_bias_fn sl_rel_bias_cpu, sl_rel_bias_cuda, sl_rel_bias_check;

/* The bucket of a relative position; host arithmetic, for the op and tests. */
int sl_rel_bucket(int64_t key_minus_query);

#endif
