/* attention.h - dense softmax attention, heads side by side.
 *
 *   o[q, n] = softmax_k(scale * q[q, n] . k[k, n] + bias[n, k - q + Sq - 1]) . v[k, n]
 *
 * Shapes    q, o [Sq, N*D]; k, v [Sk, N*D]; bias NULL or [N, Sq + Sk - 1], by
 *           relative position (umT5).  D any multiple of 4 up to 512; Sk 1 or more
 * Dtypes    q, k, v, o act, all alike; bias f32.  Softmax and sums f32, exact (not
 *           approximated) exp; with BF16 the weights may be rounded to bf16
 *           before they meet v.  cpu: BF16 too
 * Memory    tiles over queries and keys with a running maximum: needs only the
 *           exec's workspace, never S*S
 * Aliasing  o may be q
 * Cost      4*Sq*Sk*N*D FLOP
 */
#ifndef SL_KERNELS_ATTENTION_H
#define SL_KERNELS_ATTENTION_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

typedef sl_status sl_attention_fn(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                                  const sl_tensor *k, const sl_tensor *v, const sl_tensor *bias,
                                  int64_t N, float scale, sl_error *err);
sl_attention_fn sl_attention_cpu, sl_attention_cuda, sl_attention_check;

#endif
