/* The VAE's ops at 480p and 720p: chunks of frames as the decoder has them. */
#include "kernels/bench_gpu.h"

#include <inttypes.h>
#include <stdio.h>

typedef struct {
    sl_tensor y, x, cache, w, bias, gamma, pixels, rgb;
    sl_conv_params params;
} vae_arg;

static sl_status run_conv(bench_gpu *b, void *arg, sl_error *err)
{
    const vae_arg *a = arg;

    return b->ops->conv(b->exec, &a->y, &a->x, &a->cache, &a->w, &a->bias, NULL, &a->params, err);
}

static sl_status run_channel_norm(bench_gpu *b, void *arg, sl_error *err)
{
    const vae_arg *a = arg;

    return b->ops->channel_norm(b->exec, &a->y, &a->x, &a->gamma, true, err);
}

static sl_status run_to_rgb(bench_gpu *b, void *arg, sl_error *err)
{
    const vae_arg *a = arg;

    return b->ops->frames_to_rgb(b->exec, &a->rgb, &a->pixels, err);
}

static sl_status run_from_rgb(bench_gpu *b, void *arg, sl_error *err)
{
    const vae_arg *a = arg;

    return b->ops->rgb_to_frames(b->exec, &a->pixels, &a->rgb, err);
}

/* T frames out of two cached ones and T, with a 3x3x3 kernel. */
static sl_status bench_level(bench_gpu *b, int64_t T, int64_t H, int64_t W, int64_t C,
                             sl_error *err)
{
    const size_t mark = sl_scratch_mark(&b->scratch);
    const double all = (double)(T * H) * (double)(W * C);
    vae_arg a = { .params = { 0, 1, 1, 1, 1, 1, 1, 1 } };
    char shape[64];
    sl_status status;

    snprintf(shape, sizeof shape, "%" PRId64 "x%" PRId64 "x%" PRId64 "x%" PRId64, T, H, W, C);
    status = BENCH_GPU_TAKE(b, &a.x, err, SL_BF16, 4, T, H, W, C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.cache, err, SL_BF16, 4, 2, H, W, C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.w, err, SL_BF16, 5, C, 3, 3, 3, C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.bias, err, SL_F32, 1, C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.gamma, err, SL_F32, 1, C);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.y, err, SL_BF16, 4, T, H, W, C);
    if (status == SL_OK) {
        const bench_gpu_case conv = { "conv 3x3x3", shape, BENCH_GPU_BF16, 54.0 * all * (double)C,
                                      4.0 * all + 4.0 * all / (double)T };
        const bench_gpu_case norm = { "channel_norm", shape, BENCH_GPU_BYTES, 0.0, 4.0 * all };
        status = bench_gpu_measure(b, &conv, run_conv, &a, err);
        if (status == SL_OK)
            status = bench_gpu_measure(b, &norm, run_channel_norm, &a, err);
    }
    sl_scratch_release(&b->scratch, mark);
    return status == SL_OK || status == SL_ERR_DEVICE
               ? status
               : bench_gpu_failed(b, "vae", shape, status, err);
}

static sl_status bench_pixels(bench_gpu *b, sl_error *err)
{
    enum { T = 12, H = 720, W = 1280 };
    const size_t mark = sl_scratch_mark(&b->scratch);
    const double all = (double)T * H * W * 3;
    vae_arg a;
    sl_status status = BENCH_GPU_TAKE(b, &a.pixels, err, SL_BF16, 4, T, H, W, 3);

    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &a.rgb, err, SL_U8, 4, T, H, W, 3);
    if (status == SL_OK) {
        const bench_gpu_case to = { "frames_to_rgb", "12x720x1280", BENCH_GPU_BYTES, 0.0,
                                    3.0 * all };
        const bench_gpu_case from = { "rgb_to_frames", "12x720x1280", BENCH_GPU_BYTES, 0.0,
                                      3.0 * all };
        status = bench_gpu_measure(b, &to, run_to_rgb, &a, err);
        if (status == SL_OK)
            status = bench_gpu_measure(b, &from, run_from_rgb, &a, err);
    }
    sl_scratch_release(&b->scratch, mark);
    return status == SL_OK || status == SL_ERR_DEVICE
               ? status
               : bench_gpu_failed(b, "pixels", "720p", status, err);
}

sl_status bench_gpu_vae(bench_gpu *b, sl_error *err)
{
    /* Frames, rows and columns at each level of the decoder, and its channels. */
    static const int64_t levels[][4] = {
        { 1, 60, 104, 384 }, { 2, 120, 208, 384 }, { 4, 240, 416, 192 }, { 4, 480, 832, 96 },
        { 1, 90, 160, 384 }, { 2, 180, 320, 384 }, { 4, 360, 640, 192 }, { 4, 720, 1280, 96 },
    };
    sl_status status = SL_OK;

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(levels); i++)
        status = bench_level(b, levels[i][0], levels[i][1], levels[i][2], levels[i][3], err);
    return status == SL_OK ? bench_pixels(b, err) : status;
}
