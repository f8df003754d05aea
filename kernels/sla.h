/* sla.h - sparse-linear attention (SLA): softmax over few blocks of keys, and a
 * linear branch over all of them.  Heads side by side, S tokens, q, k, v, o
 * [S, N*D] act.  A call of attention is made of
 *
 *   block_mean        y[b] = mean over the rows s of block b of x[s] - shift;
 *                     `block` rows each, the last one of what is left.  With
 *                     block = S: the mean of k.  Then q and k (less its mean)
 *   top_blocks        lut[n, i] = the `keep` key blocks j with the highest
 *                     pq[i, n] . pk[j, n], in ascending order; of equal scores
 *                     the lower index is kept
 *   linear_state      state[n, :D] = phi(k)^T . v, state[n, D] = sum of phi(k),
 *                     phi(x) = softmax over the D values of a head
 *   sparse_attention  o = softmax(scale * q . k^T) . v over the kept keys of
 *                     each query block, plus the linear branch
 *   linear branch     (phi(q) . state[:D]) / (phi(q) . state[D] + 1e-5), times
 *                     proj_w^T, plus proj_b; for all heads the same projection
 *
 * Shapes    block_mean: x [S, C], shift [C] or NULL, y [ceil(S/block), C]
 *           top_blocks: pq [Q, N*D], pk [K, N*D], lut [N, Q, keep], keep 1 to K
 *           linear_state: k, v [S, N*D], state [N, D + 1, D]
 *           sparse_attention: lut [N, ceil(S/block_q), keep], with indices below
 *           ceil(S/block_k); branch NULL (none) or state [N, D + 1, D], proj_w
 *           [D, D], proj_b [D].  Blocks of 1 to 128 rows; D a multiple of 4 up
 *           to 128
 * Dtypes    x, q, k, v, o act, those of one call alike; lut i32; proj_w, proj_b f32
 *           or bf16; all else f32
 * Rounding  SL_SLA_EXACT: f32 throughout.  SL_SLA_BF16 as the reference: means,
 *           x - shift, and scores are each rounded to bf16, so that ties happen
 *           cuda, bf16 activations, heads of 64 or 128: P, phi, state and the branch's
 *           quotient are operands in bf16, as the reference's
 * Failure   top_blocks on cuda: SL_ERR_UNIMPLEMENTED where the scores of one query
 *           block do not fit into shared memory (49,000 key blocks on an H200)
 * Aliasing  o may be q, also when the branch uses it; nothing else overlaps
 * Memory    the exec's workspace only: never S*S
 * Source    wan.md 5.1 to 5.3
 * Cost      sparse 4*S*keep*block_k*N*D, branch about 6*S*N*D*D FLOP
 */
#ifndef SL_KERNELS_SLA_H
#define SL_KERNELS_SLA_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

enum { SL_SLA_MAX_BLOCK = 128, SL_SLA_MAX_HEAD = 128, SL_SLA_MAX_BLOCKS = 1 << 16 };

typedef enum {
    SL_SLA_EXACT,
    SL_SLA_BF16,
} sl_sla_rounding;

typedef struct {
    const sl_tensor *state, *proj_w, *proj_b;
} sl_linear_branch;

/* Key blocks that each query block keeps: ratio * key_blocks truncated, at least
 * 1 and at most all. */
int64_t sl_sla_keep(int64_t key_blocks, double ratio);

typedef sl_status sl_block_mean_fn(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                   const sl_tensor *shift, int64_t block, sl_sla_rounding rounding,
                                   sl_error *err);
typedef sl_status sl_top_blocks_fn(sl_exec *exec, const sl_tensor *lut, const sl_tensor *pq,
                                   const sl_tensor *pk, int64_t N, sl_sla_rounding rounding,
                                   sl_error *err);
typedef sl_status sl_linear_state_fn(sl_exec *exec, const sl_tensor *state, const sl_tensor *k,
                                     const sl_tensor *v, int64_t N, sl_error *err);
typedef sl_status sl_sparse_attention_fn(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                                         const sl_tensor *k, const sl_tensor *v,
                                         const sl_tensor *lut, const sl_linear_branch *branch,
                                         int64_t N, int64_t block_q, int64_t block_k, float scale,
                                         sl_error *err);
sl_block_mean_fn sl_block_mean_cpu, sl_block_mean_cuda, sl_block_mean_check;
sl_top_blocks_fn sl_top_blocks_cpu, sl_top_blocks_cuda, sl_top_blocks_check;
sl_linear_state_fn sl_linear_state_cpu, sl_linear_state_cuda, sl_linear_state_check;
sl_sparse_attention_fn sl_sparse_attention_cpu, sl_sparse_attention_cuda, sl_sparse_attention_check;

#endif
