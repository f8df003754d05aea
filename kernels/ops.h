/* ops.h - the op table: one row per op, one table per device.
 *
 * The contract of each op (shapes, dtypes, rounding, aliasing, source of the
 * formula) is in its own header.  Engine code calls ops only through
 * `sl_exec_ops(exec)->name(exec, ...)`, so that one pipeline runs on cpu, on
 * cuda, and on the counting table, which checks every contract and computes
 * nothing: a plan that counts through is a request whose shapes are right.
 *
 * Common to all: SL_ERR_INVALID for shapes or dtypes outside of the contract,
 * with the output untouched; SL_ERR_CANCELLED as in exec.h; an output never
 * overlaps an input unless the contract says so; zero rows are fine.
 *
 * Activations, which ops hand to each other, are F32 or BF16; "act" in a contract
 * means either, and where several must be alike it says so.  Arithmetic between
 * load and store is F32 (matrix units: bf16 products, F32 sums), and what is
 * stored is rounded once.  With F32 alone on both sides it is F32 throughout on
 * every device: no TF32.  A tensor that is computed in place keeps its dtype.
 * The cpu device computes most ops in F32 only and refuses BF16 activations with
 * SL_ERR_UNIMPLEMENTED; those that it takes say "cpu: BF16 too".
 */
#ifndef SL_KERNELS_OPS_H
#define SL_KERNELS_OPS_H

#include "kernels/attention.h"
#include "kernels/conv.h"
#include "kernels/elementwise.h"
#include "kernels/embed.h"
#include "kernels/exec.h"
#include "kernels/linear.h"
#include "kernels/linear_fp8.h"
#include "kernels/linear_int8.h"
#include "kernels/noise.h"
#include "kernels/norm.h"
#include "kernels/patch.h"
#include "kernels/rope.h"
#include "kernels/sage.h"
#include "kernels/sampler.h"
#include "kernels/sla.h"

struct sl_ops {
    const char *name; /* "cpu", "cuda", "counting", "counting cuda" */
    sl_linear_fn *linear;
    sl_quantize_int8_fn *quantize_int8;
    sl_linear_int8_fn *linear_int8;
    sl_quantize_fp8_fn *quantize_fp8;
    sl_linear_fp8_fn *linear_fp8;
    sl_layer_norm_fn *layer_norm;
    sl_rms_norm_fn *rms_norm;
    sl_channel_norm_fn *channel_norm;
    sl_rope_table_fn *rope_table;
    sl_rope_fn *rope;
    sl_attention_fn *attention;
    sl_block_mean_fn *block_mean;
    sl_top_blocks_fn *top_blocks;
    sl_linear_state_fn *linear_state;
    sl_sparse_attention_fn *sparse_attention;
    sl_sage_quantize_fn *sage_quantize;
    sl_sage_quantize_v_fn *sage_quantize_v;
    sl_sage_attention_fn *sage_attention;
    sl_add_fn *add;
    sl_mul_fn *mul;
    sl_gated_add_fn *gated_add;
    sl_silu_fn *silu;
    sl_copy_fn *copy;
    sl_zero_fn *zero;
    sl_check_finite_fn *check_finite;
    sl_embed_rows_fn *embed_rows;
    sl_sinusoid_fn *sinusoid;
    sl_rel_bias_fn *rel_bias;
    sl_patchify_fn *patchify;
    sl_unpatchify_fn *unpatchify;
    sl_latent_to_frames_fn *latent_to_frames;
    sl_frames_to_rgb_fn *frames_to_rgb;
    sl_rgb_to_frames_fn *rgb_to_frames;
    sl_frames_to_latent_fn *frames_to_latent;
    sl_known_mask_fn *known_mask;
    sl_conv_fn *conv;
    sl_pair_frames_fn *pair_frames;
    sl_randn_fn *randn;
    sl_sample_init_fn *sample_init;
    sl_sample_step_fn *sample_step;
    sl_sample_cast_fn *sample_cast;
    sl_sample_combine_fn *sample_combine;
};

extern const sl_ops sl_ops_cpu;
extern const sl_ops sl_ops_cuda; /* only where the build has CUDA */
extern const sl_ops sl_ops_counting;
extern const sl_ops sl_ops_counting_cuda;

#endif
