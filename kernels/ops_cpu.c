#include "kernels/ops.h"

const sl_ops sl_ops_cpu = {
    .name = "cpu",
    .linear = sl_linear_cpu,
    .quantize_int8 = sl_quantize_int8_cpu,
    .linear_int8 = sl_linear_int8_cpu,
    .layer_norm = sl_layer_norm_cpu,
    .rms_norm = sl_rms_norm_cpu,
    .channel_norm = sl_channel_norm_cpu,
    .rope_table = sl_rope_table_cpu,
    .rope = sl_rope_cpu,
    .attention = sl_attention_cpu,
    .add = sl_add_cpu,
    .mul = sl_mul_cpu,
    .gated_add = sl_gated_add_cpu,
    .silu = sl_silu_cpu,
    .copy = sl_copy_cpu,
    .zero = sl_zero_cpu,
    .check_finite = sl_check_finite_cpu,
    .embed_rows = sl_embed_rows_cpu,
    .sinusoid = sl_sinusoid_cpu,
    .rel_bias = sl_rel_bias_cpu,
    .patchify = sl_patchify_cpu,
    .unpatchify = sl_unpatchify_cpu,
    .latent_to_frames = sl_latent_to_frames_cpu,
    .frames_to_rgb = sl_frames_to_rgb_cpu,
    .rgb_to_frames = sl_rgb_to_frames_cpu,
    .frames_to_latent = sl_frames_to_latent_cpu,
    .known_mask = sl_known_mask_cpu,
    .conv = sl_conv_cpu,
    .pair_frames = sl_pair_frames_cpu,
    .randn = sl_randn_cpu,
    .sample_init = sl_sample_init_cpu,
    .sample_step = sl_sample_step_cpu,
    .sample_cast = sl_sample_cast_cpu,
    .sample_combine = sl_sample_combine_cpu,
};

const sl_ops *sl_exec_ops(const sl_exec *exec)
{
    return sl_exec_is_counting(exec) ? &sl_ops_counting : &sl_ops_cpu;
}
