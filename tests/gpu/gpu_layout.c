#include "tests/gpu/gpu_layout.h"

#include <math.h>
#include <string.h>

static const sl_dtype mixes[][2] = {
    { SL_F32, SL_F32 }, { SL_F32, SL_BF16 }, { SL_BF16, SL_F32 }, { SL_BF16, SL_BF16 }
};

/* ---- tokens and latents: moved, rounded at most ---- */

static void check_patches(gpu *g, sl_dtype y_dtype, sl_dtype x_dtype, const int64_t *dim)
{
    const int64_t S = dim[1] * (dim[2] / 2) * (dim[3] / 2);

    if (!gpu_begin(g, "patchify, unpatchify %s = %s [%lld,%lld,%lld,%lld]", gpu_dtype(y_dtype),
                   gpu_dtype(x_dtype), (long long)dim[0], (long long)dim[1], (long long)dim[2],
                   (long long)dim[3]))
        return;
    gpu_tensor latent = gpu_random(g, x_dtype, 1.0, 4, dim);
    gpu_tensor tokens = GPU_OUTPUT(g, y_dtype, 2, S, 4 * dim[0]);
    GPU_BOTH(g, patchify, GPU_ON(tokens), GPU_ON(latent));
    gpu_compare(g, "tokens", &tokens, GPU_EXACT);
    gpu_tensor x = GPU_RANDOM(g, x_dtype, 1.0, 2, S, 4 * dim[0]);
    gpu_tensor y = gpu_output(g, y_dtype, 4, dim);
    GPU_BOTH(g, unpatchify, GPU_ON(y), GPU_ON(x));
    gpu_compare(g, "latent", &y, GPU_EXACT);
    gpu_end(g);
}

static void check_frames(gpu *g, sl_dtype y_dtype, sl_dtype x_dtype, const int64_t *dim,
                         int64_t first, int64_t n, bool scaled)
{
    if (!gpu_begin(g,
                   "latent_to_frames, frames_to_latent %s = %s [%lld,%lld,%lld,%lld] %lld+%lld%s",
                   gpu_dtype(y_dtype), gpu_dtype(x_dtype), (long long)dim[0], (long long)dim[1],
                   (long long)dim[2], (long long)dim[3], (long long)first, (long long)n,
                   scaled ? " scaled" : ""))
        return;
    const int64_t frames_dim[SL_MAX_RANK] = { n, dim[2], dim[3], dim[0] };
    gpu_tensor scale = GPU_RANDOM(g, SL_F32, 1.0, 1, dim[0]);
    gpu_tensor shift = GPU_RANDOM(g, SL_F32, 1.0, 1, dim[0]);
    gpu_tensor latent = gpu_random(g, x_dtype, 1.0, 4, dim);
    gpu_tensor frames = gpu_output(g, y_dtype, 4, frames_dim);
    GPU_BOTH(g, latent_to_frames, GPU_ON(frames), GPU_ON(latent), scaled ? GPU_ON(scale) : NULL,
             scaled ? GPU_ON(shift) : NULL, first);
    gpu_compare(g, "frames", &frames, GPU_EXACT);
    gpu_tensor x = gpu_random(g, x_dtype, 1.0, 4, frames_dim);
    gpu_tensor y = gpu_random(g, y_dtype, 1.0, 4, dim); /* its other frames stay */
    GPU_BOTH(g, frames_to_latent, GPU_ON(y), GPU_ON(x), scaled ? GPU_ON(scale) : NULL,
             scaled ? GPU_ON(shift) : NULL, first);
    gpu_compare(g, "latent", &y, GPU_EXACT);
    gpu_end(g);
}

static void check_known_mask(gpu *g, const int64_t *dim)
{
    if (!gpu_begin(g, "known_mask [%lld,%lld,%lld,%lld]", (long long)dim[0], (long long)dim[1],
                   (long long)dim[2], (long long)dim[3]))
        return;
    gpu_tensor y = gpu_output(g, SL_F32, 4, dim);
    GPU_BOTH(g, known_mask, GPU_ON(y));
    gpu_compare(g, "y", &y, GPU_EXACT);
    gpu_end(g);
}

/* ---- pixels ---- */

static void check_to_rgb(gpu *g, sl_dtype dtype, int64_t pixels)
{
    if (!gpu_begin(g, "frames_to_rgb %s [%lld,3]", gpu_dtype(dtype), (long long)pixels))
        return;
    gpu_tensor x = GPU_RANDOM(g, dtype, 0.7, 2, pixels, 3);
    static const float odd[] = { NAN,  -NAN,  INFINITY, -INFINITY,          -1.0f,
                                 1.0f, -0.0f, 0.0f,     -1.0f + 1.0f / 255, 1.0f - 1.0f / 255 };
    for (size_t i = 0; !g->broken && i < SL_COUNT(odd) && (int64_t)i < 3 * pixels; i++)
        ((float *)x.on[GPU_CPU].data)[i] = odd[i];
    gpu_push(g, &x);
    gpu_tensor y = GPU_OUTPUT(g, SL_U8, 2, pixels, 3);
    GPU_BOTH(g, frames_to_rgb, GPU_ON(y), GPU_ON(x));
    gpu_compare(g, "y", &y, GPU_EXACT);
    gpu_end(g);
}

static void check_from_rgb(gpu *g, sl_dtype dtype, int64_t pixels, int64_t skip)
{
    if (!gpu_begin(g, "rgb_to_frames %s [%lld,3]%s", gpu_dtype(dtype), (long long)pixels,
                   skip ? " unaligned" : ""))
        return;
    gpu_tensor x = GPU_RANDOM(g, SL_U8, 255.0, 2, pixels + skip, 3);
    gpu_tensor y = GPU_OUTPUT(g, dtype, 2, pixels + skip, 3);
    gpu_tensor from = gpu_rows(&x, skip, pixels), to = gpu_rows(&y, skip, pixels);
    GPU_BOTH(g, rgb_to_frames, GPU_ON(to), GPU_ON(from));
    gpu_compare(g, "y", &to, GPU_EXACT);
    gpu_end(g);
}

static void test_layouts(gpu *g)
{
    const int64_t small_dim[] = { 16, 2, 6, 10 }, odd_dim[] = { 5, 3, 2, 14 };
    const int64_t t2v[] = { 16, 21, 60, 104 }, i2v[] = { 36, 5, 90, 160 };
    const int64_t frames[] = { 16, 21, 60, 104 }, odd_frames[] = { 3, 4, 7, 5 };

    for (size_t m = 0; m < SL_COUNT(mixes); m++) {
        const sl_dtype y = mixes[m][0], x = mixes[m][1];
        check_patches(g, y, x, small_dim);
        check_patches(g, y, x, odd_dim);
        check_frames(g, y, x, odd_frames, 1, 2, true);
        check_frames(g, y, x, odd_frames, 0, 4, false);
        check_frames(g, y, x, small_dim, 2, 0, true);
        if (g->small)
            continue;
        check_patches(g, y, x, t2v);
        check_patches(g, y, x, i2v);
        check_frames(g, y, x, frames, 5, 1, true);
    }
    check_known_mask(g, odd_frames);
    check_known_mask(g, small_dim);
    for (int i = 0; i < 2; i++) {
        const sl_dtype dtype = i ? SL_BF16 : SL_F32;
        check_to_rgb(g, dtype, g->small ? 700 : 4 * 480 * 832);
        check_to_rgb(g, dtype, 5);
        check_to_rgb(g, dtype, 1237);
        check_from_rgb(g, dtype, g->small ? 700 : 480 * 832, 0);
        check_from_rgb(g, dtype, 1237, 0);
        check_from_rgb(g, dtype, 1237, 1);
    }
}

/* ---- noise and the sampler: the same bits ---- */

static void check_randn(gpu *g, int64_t count, uint64_t seed, uint32_t draw)
{
    if (!gpu_begin(g, "randn [%lld] seed %llu draw %u", (long long)count, (unsigned long long)seed,
                   draw))
        return;
    gpu_tensor y = GPU_OUTPUT(g, SL_F32, 1, count);
    GPU_BOTH(g, randn, GPU_ON(y), seed, draw);
    gpu_compare(g, "y", &y, GPU_EXACT);
    gpu_end(g);
}

static void check_sampler(gpu *g, int64_t count)
{
    if (!gpu_begin(g, "sample_init, sample_step, sample_cast [%lld]", (long long)count))
        return;
    gpu_tensor noise = GPU_RANDOM(g, SL_F32, 1.0, 1, count);
    gpu_tensor v = GPU_RANDOM(g, SL_F32, 1.0, 1, count);
    gpu_tensor x = GPU_OUTPUT(g, SL_F64, 1, count), y = GPU_OUTPUT(g, SL_F32, 1, count);
    GPU_BOTH(g, sample_init, GPU_ON(x), GPU_ON(noise), 0.9972299168975069);
    gpu_compare(g, "init", &x, GPU_EXACT);
    GPU_BOTH(g, sample_step, GPU_ON(x), GPU_ON(v), GPU_ON(noise), 0.9972299168975069,
             0.9374999999999999);
    gpu_compare(g, "sde", &x, GPU_EXACT);
    GPU_BOTH(g, sample_step, GPU_ON(x), GPU_ON(v), NULL, 0.9374999999999999, 0.8333333333333334);
    gpu_compare(g, "ode", &x, GPU_EXACT);
    GPU_BOTH(g, sample_cast, GPU_ON(y), GPU_ON(x));
    gpu_compare(g, "cast", &y, GPU_EXACT);
    gpu_end(g);
}

static void check_combine(gpu *g, sl_dtype y_dtype, int term_count, bool in_place)
{
    enum { COUNT = 100003 };
    gpu_tensor t[SL_SAMPLE_MAX_TERMS];
    sl_sample_term terms[GPU_SIDES][SL_SAMPLE_MAX_TERMS];

    if (!gpu_begin(g, "sample_combine %s, %d terms%s", gpu_dtype(y_dtype), term_count,
                   in_place ? ", in place" : ""))
        return;
    for (int i = 0; i < term_count; i++) {
        const bool same = in_place && i == term_count - 1;
        t[i] = GPU_RANDOM(g, same ? y_dtype : i % 2 ? SL_F32 : SL_F64, 1.0, 1, COUNT);
        for (int s = 0; s < GPU_SIDES; s++)
            terms[s][i] = (sl_sample_term){ .by = 1.0 / (3.0 - 7.0 * i), .t = &t[i].on[s] };
    }
    gpu_tensor y = in_place ? t[term_count - 1] : GPU_OUTPUT(g, y_dtype, 1, COUNT);
    GPU_BOTH(g, sample_combine, GPU_ON(y), terms[side], term_count);
    gpu_compare(g, "y", &y, GPU_EXACT);
    gpu_end(g);
}

void gpu_test_layout(gpu *g)
{
    test_layouts(g);
    check_randn(g, 1, 0, 0);
    check_randn(g, 3, 42, 7);
    check_randn(g, 100001, UINT64_MAX, UINT32_MAX);
    if (!g->small)
        check_randn(g, 16 * 21 * 60 * 104, 1234567890123, 3);
    check_sampler(g, 1);
    check_sampler(g, g->small ? 4097 : 16 * 21 * 60 * 104);
    for (int n = 1; n <= SL_SAMPLE_MAX_TERMS; n++) {
        check_combine(g, SL_F64, n, false);
        check_combine(g, SL_F32, n, false);
        check_combine(g, SL_F64, n, true);
        check_combine(g, SL_F32, n, true);
    }
}
