/* conv_cuda.h - launchers of conv.cu; contracts in conv.h and conv_plan.h. */
#ifndef SL_KERNELS_CONV_CUDA_H
#define SL_KERNELS_CONV_CUDA_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    void *y;
    const void *x, *cache, *residual, *w, *b; /* cache, residual, b: may be NULL */
    bool bf16;                                /* y, x, cache, residual; else f32 */
    bool w_bf16, b_bf16;
    int64_t cached, T, H, W, I; /* of cache and x */
    int64_t To, Ho, Wo, O;
    int kt, kh, kw;
    int zero_frames, stride_t, stride_hw, pad_top, pad_left, upsample;
} sl_cuda_conv;

/* The whole of it, sums in f32 in one fixed order. */
cudaError_t sl_cuda_conv_direct(cudaStream_t stream, const sl_cuda_conv *c);

/* dst [count, up*H, up*W, channels] bf16: frames [first, first + count) of
 * [cache | x], each pixel `up` times in both directions, channels behind I zero.
 * dst 16-byte aligned, channels a multiple of 8. */
cudaError_t sl_cuda_conv_gather(cudaStream_t stream, const sl_cuda_conv *c, void *dst,
                                int64_t first, int64_t count, int64_t channels);
/* dst [rows, to] bf16: src [rows, from], f32 or bf16, and zeros.  src NULL: zeros. */
cudaError_t sl_cuda_conv_pack(cudaStream_t stream, void *dst, const void *src, bool src_bf16,
                              int64_t rows, int64_t from, int64_t to);

/* y [2n, positions, C] from x [n, positions, 2C], elements of `size_bytes`. */
cudaError_t sl_cuda_pair_frames(cudaStream_t stream, void *y, const void *x, int64_t n,
                                int64_t positions, int64_t C, int size_bytes);

#ifdef __cplusplus
}
#endif

#endif
