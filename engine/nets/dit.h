/* dit.h - the Wan diffusion transformer.
 *
 * sl_dit_prepare turns a text embedding into what all steps of a generation
 * share: the keys and values of every block's cross-attention.  sl_dit_forward
 * is one network evaluation.  Source: wan.md 4.
 *
 * Memory: sl_dit_prepare leaves its tensors in `scratch` (the caller releases
 * a mark taken before); sl_dit_forward gives back all that it took.  The FFN
 * runs in tiles of tokens so that its hidden layer never exists whole.
 */
#ifndef SL_ENGINE_NETS_DIT_H
#define SL_ENGINE_NETS_DIT_H

#include "engine/model/weights.h"
#include "engine/nets/tap.h"
#include "kernels/exec.h"
#include "kernels/scratch.h"

typedef struct {
    sl_tensor k[SL_MAX_LAYERS], v[SL_MAX_LAYERS]; /* [text_len, D], as activations are */
} sl_dit_text;

/* How self-attention is computed, and what else of the arithmetic is a choice. */
typedef struct {
    sl_attention_mode mode;
    sl_dialect dialect;
    sl_layer_norm_mode norm; /* of the blocks; the head's is exact (wan.md 4.5) */
    double topk_ratio;        /* of the key blocks, how many each query block keeps */
    int64_t block_q, block_k; /* rows; 0: those of the mode */
    /* NULL: which are kept is computed.  Else for each layer a lut of kernels/sla.h,
     * for comparing numbers with another implementation. */
    const sl_tensor *luts;
} sl_dit_attention_options;

/* text [text_len, text_dim], of the exec's activation dtype; all rows are attended to.  Tap:
 * "text". */
sl_status sl_dit_prepare(sl_exec *exec, sl_scratch *scratch, const sl_dit_weights *weights,
                         const sl_dit_config *config, const sl_tensor *text, sl_dit_text *out,
                         const sl_tap *tap, sl_error *err) SL_MUST_CHECK;

/* velocity [out_dim, T, h, w] and latent [in_dim, T, h, w] f32; h, w even; t as
 * the network takes it: 1000 * t rounded to bf16 by the caller.  attention NULL:
 * dense, turbo, exact.
 * Taps: "patch", "e", "e0", "block0", "block1", ... */
sl_status sl_dit_forward(sl_exec *exec, sl_scratch *scratch, const sl_dit_weights *weights,
                         const sl_dit_config *config, const sl_dit_text *text,
                         const sl_dit_attention_options *attention, double t,
                         const sl_tensor *latent, const sl_tensor *velocity, const sl_tap *tap,
                         sl_error *err) SL_MUST_CHECK;

#endif
