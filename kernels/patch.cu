/* Latents are small beside everything else of a step (8 MB for 81 frames at 480p),
 * so that their changes of layout go element by element: reads and writes meet in
 * the second level of cache.  Pixels are not small and go sixteen at a time. */
#include "kernels/patch_cuda.h"

#include "kernels/cuda_vec.cuh"

namespace
{

enum { THREADS = 256 };

struct latent_shape {
    int64_t C, T, h, w;
};

/* A thread to a token and channel; neighbours are neighbours in the frame. */
template <typename Y, typename X>
__global__ void patchify_kernel(Y *tokens, const X *latent, latent_shape of, int64_t count)
{
    const int64_t columns = of.w / 2, plane = of.h / 2 * columns, S = of.T * plane;

    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count()) {
        const int64_t c = i / S, s = i % S, t = s / plane, row = s % plane / columns;
        const int64_t column = s % columns;
        const X *x = latent + ((c * of.T + t) * of.h + 2 * row) * of.w + 2 * column;
        Y *y = tokens + (s * of.C + c) * 4;
        sl_put(y, sl_get(x));
        sl_put(y + 1, sl_get(x + 1));
        sl_put(y + 2, sl_get(x + of.w));
        sl_put(y + 3, sl_get(x + of.w + 1));
    }
}

template <typename Y, typename X>
__global__ void unpatchify_kernel(Y *latent, const X *tokens, latent_shape of, int64_t count)
{
    const int64_t columns = of.w / 2, plane = of.h / 2 * columns, S = of.T * plane;

    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count()) {
        const int64_t c = i / S, s = i % S, t = s / plane, row = s % plane / columns;
        const int64_t column = s % columns;
        const X *x = tokens + s * 4 * of.C + c;
        Y *y = latent + ((c * of.T + t) * of.h + 2 * row) * of.w + 2 * column;
        sl_put(y, sl_get(x));
        sl_put(y + 1, sl_get(x + of.C));
        sl_put(y + of.w, sl_get(x + 2 * of.C));
        sl_put(y + of.w + 1, sl_get(x + 3 * of.C));
    }
}

/* A thread to an element of y, both ways.  No product is fused: the cpu's bits. */
template <typename Y, typename X>
__global__ void to_frames_kernel(Y *y, const X *x, const float *scale, const float *shift,
                                 latent_shape of, int64_t first, int64_t count)
{
    const int64_t plane = of.h * of.w;

    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count()) {
        const int64_t c = i % of.C, pixel = i / of.C, t = first + pixel / plane;
        const float v = sl_get(x + (c * of.T + t) * plane + pixel % plane);
        sl_put(y + i, __fadd_rn(__fmul_rn(v, scale ? scale[c] : 1.0f), shift ? shift[c] : 0.0f));
    }
}

template <typename Y, typename X>
__global__ void to_latent_kernel(Y *y, const X *x, const float *scale, const float *shift,
                                 latent_shape of, int64_t first, int64_t frames)
{
    const int64_t plane = of.h * of.w, count = of.C * frames * plane;

    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count()) {
        const int64_t c = i / (frames * plane), pixel = i % (frames * plane);
        const float v = sl_get(x + pixel * of.C + c);
        sl_put(y + (c * of.T + first) * plane + pixel,
               __fmul_rn(v - (shift ? shift[c] : 0.0f), scale ? scale[c] : 1.0f));
    }
}

__global__ void known_mask_kernel(float *y, int64_t T, int64_t hw, int64_t count)
{
    for (int64_t i = sl_thread_index(); i < count; i += sl_thread_count())
        y[i] = i / hw % T == 0 ? 1.0f : 0.0f;
}

/* NaN gives 0.  Rounded where the cpu rounds. */
__device__ __forceinline__ uint32_t to_u8(float x)
{
    float v = x > -1.0f ? x : -1.0f;
    v = v < 1.0f ? v : 1.0f;
    v = __fadd_rn(1.0f, v) * 0.5f; /* exactly a half */
    return (uint32_t)(int)__fadd_rn(__fmul_rn(255.0f, v), 0.5f);
}

__device__ __forceinline__ uint32_t to_u8x4(const float *v)
{
    return to_u8(v[0]) | to_u8(v[1]) << 8 | to_u8(v[2]) << 16 | to_u8(v[3]) << 24;
}

template <typename X>
__global__ void to_rgb_kernel(uint8_t *y, const X *x, int64_t vectors, int64_t count)
{
    const int64_t first = sl_thread_index(), step = sl_thread_count();

    for (int64_t i = first; i < vectors; i += step) {
        const sl_vec8 a = sl_get8(x + 16 * i), b = sl_get8(x + 16 * i + 8);
        *(uint4 *)(y + 16 * i) =
            make_uint4(to_u8x4(a.v), to_u8x4(a.v + 4), to_u8x4(b.v), to_u8x4(b.v + 4));
    }
    for (int64_t i = 16 * vectors + first; i < count; i += step)
        y[i] = (uint8_t)to_u8(sl_get(x + i));
}

__device__ __forceinline__ float from_u8(uint32_t x)
{
    return (__fdiv_rn((float)x, 255.0f) - 0.5f) * 2.0f; /* divided by 0.5, exactly */
}

template <typename Y>
__global__ void from_rgb_kernel(Y *y, const uint8_t *x, int64_t vectors, int64_t count)
{
    const int64_t first = sl_thread_index(), step = sl_thread_count();

    for (int64_t i = first; i < vectors; i += step) {
        const uint2 in = *(const uint2 *)(x + 8 * i);
        sl_vec8 out;
#pragma unroll
        for (int k = 0; k < 8; k++)
            out.v[k] = from_u8((k < 4 ? in.x : in.y) >> (8 * (k % 4)) & 255u);
        sl_put8(y + 8 * i, out);
    }
    for (int64_t i = 8 * vectors + first; i < count; i += step)
        sl_put(y + i, from_u8(x[i]));
}

} // namespace

extern "C" cudaError_t sl_cuda_patchify(cudaStream_t stream, void *tokens, sl_dtype tokens_dtype,
                                        const void *latent, sl_dtype latent_dtype, int64_t C,
                                        int64_t T, int64_t h, int64_t w)
{
    const int64_t count = C * T * (h / 2) * (w / 2);
    const latent_shape of = { C, T, h, w };

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(tokens_dtype, Y,
                SL_BY_DTYPE(latent_dtype, X,
                            patchify_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(
                                (Y *)tokens, (const X *)latent, of, count)));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_unpatchify(cudaStream_t stream, void *latent, sl_dtype latent_dtype,
                                          const void *tokens, sl_dtype tokens_dtype, int64_t C,
                                          int64_t T, int64_t h, int64_t w)
{
    const int64_t count = C * T * (h / 2) * (w / 2);
    const latent_shape of = { C, T, h, w };

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(latent_dtype, Y,
                SL_BY_DTYPE(tokens_dtype, X,
                            unpatchify_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(
                                (Y *)latent, (const X *)tokens, of, count)));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_latent_to_frames(cudaStream_t stream,
                                                const sl_cuda_frames_call *call)
{
    const int64_t count = call->n * call->h * call->w * call->C;
    const latent_shape of = { call->C, call->T, call->h, call->w };

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(call->y_dtype, Y,
                SL_BY_DTYPE(call->x_dtype, X,
                            to_frames_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(
                                (Y *)call->y, (const X *)call->x, call->scale, call->shift, of,
                                call->first, count)));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_frames_to_latent(cudaStream_t stream,
                                                const sl_cuda_frames_call *call)
{
    const int64_t count = call->n * call->h * call->w * call->C;
    const latent_shape of = { call->C, call->T, call->h, call->w };

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(call->y_dtype, Y,
                SL_BY_DTYPE(call->x_dtype, X,
                            to_latent_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(
                                (Y *)call->y, (const X *)call->x, call->scale, call->shift, of,
                                call->first, call->n)));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_known_mask(cudaStream_t stream, float *y, int64_t C, int64_t T,
                                          int64_t hw)
{
    const int64_t count = C * T * hw;

    if (count == 0)
        return cudaSuccess;
    known_mask_kernel<<<sl_grid_for(count, THREADS), THREADS, 0, stream>>>(y, T, hw, count);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_frames_to_rgb(cudaStream_t stream, uint8_t *y, const void *x,
                                             sl_dtype x_dtype, int64_t count)
{
    const int64_t vectors = sl_aligned16(y) && sl_aligned16(x) ? count / 16 : 0;
    const unsigned grid = sl_grid_for(vectors ? vectors : count, THREADS);

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(x_dtype, X,
                to_rgb_kernel<<<grid, THREADS, 0, stream>>>(y, (const X *)x, vectors, count));
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_rgb_to_frames(cudaStream_t stream, void *y, sl_dtype y_dtype,
                                             const uint8_t *x, int64_t count)
{
    const int64_t vectors = sl_aligned16(y) && sl_aligned16(x) ? count / 8 : 0;
    const unsigned grid = sl_grid_for(vectors ? vectors : count, THREADS);

    if (count == 0)
        return cudaSuccess;
    SL_BY_DTYPE(y_dtype, Y,
                from_rgb_kernel<<<grid, THREADS, 0, stream>>>((Y *)y, x, vectors, count));
    return cudaGetLastError();
}
