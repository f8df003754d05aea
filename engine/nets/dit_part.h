/* dit_part.h - parts of the diffusion transformer: linears that may be int8 or fp8, and
 * attention over kept blocks.
 *
 * Private to engine/nets.
 */
#ifndef SL_ENGINE_NETS_DIT_PART_H
#define SL_ENGINE_NETS_DIT_PART_H

#include "engine/model/weights.h"
#include "engine/nets/dit.h"
#include "engine/nets/tap.h"
#include "kernels/linear.h"

/* Rows for one or several linears, quantised once if these are int8. */
typedef struct {
    sl_tensor x;
    sl_tensor codes, scale; /* codes.data NULL: not quantised */
} sl_dit_rows;

/* like: one of the linears that will be applied; all of them have its form.
 * Leaves codes and scales in scratch. */
sl_status sl_dit_rows_make(sl_dit_rows *out, sl_exec *exec, sl_scratch *scratch, const sl_tensor *x,
                           const sl_affine *like, sl_error *err) SL_MUST_CHECK;
/* y = act(rows . w^T + b) */
sl_status sl_dit_apply(sl_exec *exec, const sl_tensor *y, const sl_dit_rows *rows,
                       const sl_affine *affine, sl_act act, sl_error *err) SL_MUST_CHECK;

/* q = SLA or SageSLA of q, k, v [S, D], with the block's projection; lut NULL: the
 * kept blocks are computed.  Tap: "lut<layer>". */
sl_status sl_dit_sparse_attention(sl_exec *exec, sl_scratch *scratch, const sl_dit_config *config,
                                  const sl_dit_attention_options *options, int64_t layer,
                                  const sl_affine *proj_l, const sl_tensor *q, const sl_tensor *k,
                                  const sl_tensor *v, float scale, const sl_tap *tap,
                                  sl_error *err) SL_MUST_CHECK;

#endif
