/* sla_cuda.h - launchers of sparse-linear attention and SageSLA on cuda.
 *
 * Plain C, for sla_cuda.c and sage_cuda.c, which have checked the contracts of
 * sla.h and sage.h: nothing here looks at sizes again.  All of them are queued on
 * `stream` and wait for nothing.  Activations are `bf16` or f32, as said.
 */
#ifndef SL_KERNELS_SLA_CUDA_H
#define SL_KERNELS_SLA_CUDA_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* parts: [ceil(S / block), chunks, C] f64 where chunks = ceil(block / chunk_rows)
 * is more than 1, else unused. */
cudaError_t sl_cuda_block_mean(cudaStream_t stream, float *y, const void *x, bool bf16,
                               const float *shift, int64_t S, int64_t C, int64_t block,
                               int64_t chunk_rows, bool round, double *parts);

/* cudaErrorInvalidConfiguration: not even one row of scores fits into the shared
 * memory of this GPU. */
cudaError_t sl_cuda_top_blocks(cudaStream_t stream, int32_t *lut, const float *pq, const float *pk,
                               int64_t Q, int64_t K, int64_t N, int64_t D, int64_t keep,
                               bool round);

/* parts: [N, splits, D + 1, D] f32 where splits is more than 1, else unused. */
cudaError_t sl_cuda_linear_state(cudaStream_t stream, float *state, const void *k, const void *v,
                                 bool bf16, int64_t S, int64_t N, int64_t D, int64_t splits,
                                 float *parts);

/* The linear branch: state NULL for none. */
typedef struct {
    const float *state; /* [N, D + 1, D] */
    const void *proj_w; /* [D, D] */
    const void *proj_b; /* [D] */
    bool w_bf16, b_bf16;
} sl_cuda_branch;

typedef struct {
    void *o; /* may be q */
    const void *q, *k, *v;
    bool bf16;
    const int32_t *lut; /* [N, ceil(S / block_q), keep] */
    sl_cuda_branch branch;
    int64_t S, N, D, keep, block_q, block_k;
    float scale;
} sl_cuda_sparse;

cudaError_t sl_cuda_sparse_attention(cudaStream_t stream, const sl_cuda_sparse *args);

/* ---- for sm_90 alone ---- */

/* The branch's operands as tiles of bf16 in `workspace`, which needs
 * SL_CUDA_IMAGES_BYTES(N). */
#define SL_CUDA_IMAGES_BYTES(N) (((size_t)(N) + 1) * 32768 + 512)
typedef struct {
    const unsigned char *images; /* NULL: no branch */
    const float *z, *bias;
    int64_t z_stride;
} sl_cuda_images;

cudaError_t sl_cuda_branch_images(cudaStream_t stream, sl_cuda_images *out,
                                  const sl_cuda_branch *branch, int64_t N, void *workspace);

/* bf16, heads of 128, blocks of 128 and 64, a positive scale.  maps: [S, N*D] bf16
 * in boxes of 64 x 64, swizzled by 128 bytes. */
typedef struct {
    CUtensorMap q, k, v;
} sl_cuda_sparse_maps;

cudaError_t sl_cuda_sparse_attention_wgmma(cudaStream_t stream, const sl_cuda_sparse *args,
                                           const sl_cuda_sparse_maps *maps,
                                           const sl_cuda_images *images);

/* ---- SageSLA ---- */

cudaError_t sl_cuda_sage_quantize(cudaStream_t stream, int8_t *q, float *scale, const void *x,
                                  bool bf16, const float *shift, int64_t S, int64_t N, int64_t D,
                                  int64_t block);
cudaError_t sl_cuda_sage_quantize_v(cudaStream_t stream, uint8_t *q, float *scale, const void *x,
                                    bool bf16, int64_t S, int64_t C);

typedef struct {
    void *o; /* may be q */
    const void *q; /* for the branch alone */
    bool bf16;
    const int8_t *q8, *k8;
    const uint8_t *v8;
    const float *q_scale, *k_scale, *v_scale;
    const int32_t *lut;
    sl_cuda_branch branch;
    int64_t S, N, D, keep, block_q, block_k;
    float scale;
} sl_cuda_sage;

cudaError_t sl_cuda_sage_attention(cudaStream_t stream, const sl_cuda_sage *args);

/* For sm_90 alone: bf16, heads of 128, blocks of 64 and 128, a positive scale.
 * maps: codes [S, N*D] in boxes of 128 columns and 64 (q8) or 128 rows; q as for
 * sparse_attention, if there is a branch. */
typedef struct {
    CUtensorMap q8, k8, v8, q;
} sl_cuda_sage_maps;

cudaError_t sl_cuda_sage_attention_wgmma(cudaStream_t stream, const sl_cuda_sage *args,
                                         const sl_cuda_sage_maps *maps,
                                         const sl_cuda_images *images);

#ifdef __cplusplus
}
#endif

#endif
