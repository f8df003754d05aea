/* sage.h - the sparse branch of SageSLA: 8-bit queries, keys, values, weights.
 *
 *   sage_quantize     per head and block of rows: v = bf16(bf16(x) - shift),
 *                     scale = max |v| / 127 + 1e-7, q = trunc(v / scale +- 0.5)
 *   sage_quantize_v   per column over all rows, v = bf16(x): scale = max |v| / 2.25,
 *                     q = e4m3(v * (2.25 / max |v|)); an all-zero column gives 0
 *   sage_attention    logits = (q8 . k8) * (q_scale * k_scale * scale * log2 e)
 *                     over the kept blocks in the order of lut, running maximum m;
 *                     P = 2^(logits - m + 8.807), summed as it is and rounded to
 *                     e4m3 for P . v8, block by block in f32;
 *                     o = bf16(bf16(P . v8 / sum P * v_scale) + bf16(branch))
 *
 * Shapes    sage_quantize: x, q [S, N*D], shift [N*D] or NULL, scale [N, blocks]
 *           sage_quantize_v: x, q [S, C], scale [C]
 *           sage_attention: q8, k8, v8 [S, N*D]; q_scale [N, ceil(S/block_q)],
 *           k_scale [N, ceil(S/block_k)], v_scale [N*D]; lut and branch as in
 *           sla.h; q [S, N*D] for the branch alone, NULL without one
 * Dtypes    x act; sage_attention's o and q act, alike; codes q, q8, k8 i8; v8
 *           F8_E4M3; lut i32; all else f32
 * Aliasing  o may be q; nothing else overlaps
 * Source    wan.md 5.4 for compute capability 9.0; with blocks of 64 and 128 its
 *           arithmetic up to the order of sums and exp2's last bits.  shift is
 *           the mean of k that block_mean gives with SL_SLA_BF16
 */
#ifndef SL_KERNELS_SAGE_H
#define SL_KERNELS_SAGE_H

#include "kernels/sla.h"

typedef struct {
    const sl_tensor *q8, *q_scale, *k8, *k_scale, *v8, *v_scale;
} sl_sage_operands;

typedef sl_status sl_sage_quantize_fn(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                      const sl_tensor *x, const sl_tensor *shift, int64_t N,
                                      int64_t block, sl_error *err);
typedef sl_status sl_sage_quantize_v_fn(sl_exec *exec, const sl_tensor *q, const sl_tensor *scale,
                                        const sl_tensor *x, sl_error *err);
typedef sl_status sl_sage_attention_fn(sl_exec *exec, const sl_tensor *o,
                                       const sl_sage_operands *operands, const sl_tensor *lut,
                                       const sl_tensor *q, const sl_linear_branch *branch,
                                       int64_t N, int64_t block_q, int64_t block_k, float scale,
                                       sl_error *err);
sl_sage_quantize_fn sl_sage_quantize_cpu, sl_sage_quantize_cuda, sl_sage_quantize_check;
sl_sage_quantize_v_fn sl_sage_quantize_v_cpu, sl_sage_quantize_v_cuda, sl_sage_quantize_v_check;
sl_sage_attention_fn sl_sage_attention_cpu, sl_sage_attention_cuda, sl_sage_attention_check;

#endif
