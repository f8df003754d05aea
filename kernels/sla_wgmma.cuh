/* sla_wgmma.cuh - what the attention kernels of sm_90a share: tiles of strips, the
 * linear branch, the way out.  Heads of 128.
 *
 * The branch's operands are brought into the form of tiles once a call
 * (sl_cuda_branch_images), so that a block of threads only copies them.
 */
#ifndef SL_KERNELS_SLA_WGMMA_CUH
#define SL_KERNELS_SLA_WGMMA_CUH

#include "kernels/sla_branch.cuh"
#include "kernels/wgmma.cuh"

enum {
    HEAD = 128,
    STRIP = 64,                     /* columns */
    IMAGE_STRIP = HEAD * STRIP * 2, /* bytes */
    IMAGE_BYTES = HEAD * HEAD * 2,
};

/* Images: that of proj_w, then those of the heads' states. */
__device__ __forceinline__ const unsigned char *sl_image_of_state(const unsigned char *images,
                                                                  int n)
{
    return images + (int64_t)(n + 1) * IMAGE_BYTES;
}

/* Address of unit `unit` of row `row` in a tile of two strips. */
template <int strip_bytes>
__device__ __forceinline__ uint32_t strip_unit(uint32_t tile, int row, int unit)
{
    return tile + (uint32_t)(unit / 8 * strip_bytes + row * 128 + ((unit % 8 ^ row % 8) << 4));
}

/* Queues o += p . values, 128 of them. */
__device__ __forceinline__ void start_values(float (&o)[HEAD / 8][4], uint32_t (&p)[HEAD / 16][4],
                                             uint32_t values)
{
    const uint64_t v = describe_columns(values, IMAGE_STRIP);

    hold(o);
    hold(p);
    group_begin();
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++)
        multiply_fragments<true>(o, p[i], v + i * 128, 1);
    group_commit();
}

__device__ __forceinline__ void pack(uint32_t (&p)[HEAD / 16][4], const float (&s)[HEAD / 8][4])
{
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++) {
        p[j / 2][j % 2 * 2] = pack_bf16(s[j][0], s[j][1]);
        p[j / 2][j % 2 * 2 + 1] = pack_bf16(s[j][2], s[j][3]);
    }
}

/* out: the branch of the warp's 16 rows but for proj_b, of the group's 64.  x: their
 * queries as fragments; state, proj: images in shared memory. */
__device__ __forceinline__ void run_branch_group(float (&out)[HEAD / 8][4],
                                                 uint32_t (&x)[HEAD / 16][4], uint32_t state,
                                                 uint32_t proj, const float *z)
{
    const uint64_t w = describe_rows(proj);
    float norm[2];

    phi_fragments<HEAD>(x, norm, z);
#pragma unroll
    for (int i = 0; i < HEAD / 2; i++)
        out[i / 4][i % 4] = 0.0f;
    start_values(out, x, state);
    group_wait<0>();
    hold(out);
    hold(x); /* read until here */
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[j][i] *= norm[i / 2];
    pack(x, out);
    hold(out);
    hold(x);
    group_begin();
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++)
        multiply_fragments<false>(out, x[i], w + i / 4 * (IMAGE_STRIP / 16) + i % 4 * 2, i > 0);
    group_commit();
    group_wait<0>();
    hold(out);
    hold(x);
}

/* The warp's 16 rows from `row` of the tile on, through it, to o [S, width]; o0 is
 * the tile's first row there. */
template <int strip_bytes>
__device__ __forceinline__ void store_rows(__nv_bfloat16 *o, int64_t width, int64_t o0, int64_t S,
                                           const float (&value)[HEAD / 8][4], uint32_t tile,
                                           int row)
{
    const int lane = threadIdx.x % 32;

    __syncwarp();
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            asm volatile(
                "st.shared.u32 [%0], %1;" ::"r"(
                    strip_unit<strip_bytes>(tile, row + half * 8 + lane / 4, j) + lane % 4 * 4),
                "r"(pack_bf16(value[j][half * 2], value[j][half * 2 + 1]))
                : "memory");
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < 16 * HEAD / 8; i += 32) {
        const int r = row + i / (HEAD / 8), unit = i % (HEAD / 8);
        uint4 out;

        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                     : "r"(strip_unit<strip_bytes>(tile, r, unit))
                     : "memory");
        if (o0 + r < S)
            *(uint4 *)(o + (o0 + r) * width + unit * 8) = out;
    }
}

#endif
