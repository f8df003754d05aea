/* sla_branch.cuh - the linear branch on tensor cores, for one warp's 16 rows:
 * phi(q) . state / (phi(q) . z + 1e-5), times proj_w^T, plus proj_b.
 *
 * phi(q), state and the quotient are rounded to bf16 as operands, as the
 * reference does (wan.md 5.3); sums are f32.
 */
#ifndef SL_KERNELS_SLA_BRANCH_CUH
#define SL_KERNELS_SLA_BRANCH_CUH

#include "kernels/mma.cuh"
#include "kernels/sla_cuda.h"

/* What a block keeps in shared memory for it: state and proj_w [D, D] bf16 as
 * tiles of mma.cuh, z and proj_b [D] f32. */
template <int D> struct branch_tiles {
    uint32_t state, proj; /* shared addresses */
    float *z, *bias;
};

template <int D> constexpr int branch_bytes()
{
    return 2 * D * D * 2 + 2 * D * (int)sizeof(float);
}

template <int D> __device__ __forceinline__ branch_tiles<D> branch_at(unsigned char *shared)
{
    branch_tiles<D> tiles;

    tiles.state = shared_address(shared);
    tiles.proj = tiles.state + 2 * D * D;
    tiles.z = (float *)(shared + 4 * D * D);
    tiles.bias = tiles.z + D;
    return tiles;
}

__device__ __forceinline__ void store_unit(uint32_t address, const float4 &a, const float4 &b)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(pack_bf16(a.x, a.y)),
                 "r"(pack_bf16(a.z, a.w)), "r"(pack_bf16(b.x, b.y)), "r"(pack_bf16(b.z, b.w))
                 : "memory");
}

/* By `threads` threads, of which this is number `thread`; they meet before the
 * tiles are read. */
template <int D, int threads>
__device__ __forceinline__ void load_branch(const branch_tiles<D> &tiles,
                                            const sl_cuda_branch &branch, int n, int thread)
{
    const float *state = branch.state + (int64_t)n * (D + 1) * D;

    for (int i = thread; i < D * D / 8; i += threads) {
        const int row = i / (D / 8), unit = i % (D / 8);
        const float4 *from = (const float4 *)(state + row * D + unit * 8);
        const uint32_t to = unit_address<2 * D>(tiles.proj, row, unit);

        store_unit(unit_address<2 * D>(tiles.state, row, unit), from[0], from[1]);
        if (branch.w_bf16) {
            const uint4 w = ((const uint4 *)branch.proj_w)[i];
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(w.x), "r"(w.y),
                         "r"(w.z), "r"(w.w)
                         : "memory");
        } else {
            from = (const float4 *)((const float *)branch.proj_w + row * D + unit * 8);
            store_unit(to, from[0], from[1]);
        }
    }
    for (int d = thread; d < D; d += threads) {
        tiles.z[d] = state[D * D + d];
        tiles.bias[d] = branch.b_bf16 ? __bfloat162float(((const __nv_bfloat16 *)branch.proj_b)[d])
                                      : ((const float *)branch.proj_b)[d];
    }
}

/* phi of fragments of 16 rows: row g in [.][0] and [.][2], row g + 8 in the other
 * two.  `norm`: 1 / (phi . z + 1e-5) of both rows. */
template <int D>
__device__ __forceinline__ void phi_fragments(uint32_t (&x)[D / 16][4], float (&norm)[2],
                                              const float *z)
{
    constexpr float log2_e = 1.44269504088896341f;
    const int t = threadIdx.x % 4;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = -INFINITY, sum = 0.0f, den = 0.0f;

#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const uint32_t pair = x[i / 2][half + i % 2 * 2];
            top = fmaxf(top, fmaxf(low_bf16(pair), high_bf16(pair)));
        }
        top = quad_max(top);
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const uint32_t pair = x[i / 2][half + i % 2 * 2];
            sum += fast_exp2((low_bf16(pair) - top) * log2_e) +
                   fast_exp2((high_bf16(pair) - top) * log2_e);
        }
        const float by = __fdividef(1.0f, quad_sum(sum));
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            uint32_t &pair = x[i / 2][half + i % 2 * 2];
            const float2 weight = *(const float2 *)(z + i * 8 + t * 2);

            pair = pack_bf16(fast_exp2((low_bf16(pair) - top) * log2_e) * by,
                             fast_exp2((high_bf16(pair) - top) * log2_e) * by);
            den += low_bf16(pair) * weight.x + high_bf16(pair) * weight.y;
        }
        norm[half] = __fdividef(1.0f, quad_sum(den) + 1e-5f);
    }
}

/* emit(j, c, bias): c are the sums of accumulator tile j, without the bias, given
 * for its two columns.  These are 8j + 2t and the next, or, when `interleaved`,
 * the tiles 2p and 2p + 1 share 16 columns: 16p + 4t + {0, 2} and {1, 3}.
 * q_tile: this block's queries [rows, D]; the warp's rows start at `row`. */
template <int D, bool interleaved, typename emit_fn>
__device__ __forceinline__ void run_branch(const branch_tiles<D> &tiles, uint32_t q_tile, int row,
                                           emit_fn emit)
{
    const int lane = threadIdx.x % 32, t = lane % 4;
    const int column = interleaved ? lane % 8 * 2 + lane / 16 : lane % 8 + lane / 16 * 8;
    const uint32_t state_at = unit_address<2 * D>(tiles.state, lane % 16, lane / 16);
    const uint32_t proj_at = unit_address<2 * D>(tiles.proj, column, lane / 8 % 2);
    const uint32_t q_at = unit_address<2 * D>(q_tile, row + lane % 16, lane / 16);
    uint32_t x[D / 16][4], part[D / 16][4];
    float norm[2];

    __syncwarp(); /* also keeps one call's loads out of another's: registers */
#pragma unroll
    for (int k = 0; k < D / 16; k++)
        load_matrix(x[k], other_unit(q_at, 2 * k));
    phi_fragments<D>(x, norm, tiles.z);
#pragma unroll
    for (int j = 0; j < D / 16; j++) { /* 16 columns at a time: registers are short here */
        float sum[2][4] = {};

#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[4];

            load_matrix_transposed(b, other_unit(state_at, 2 * j) + (uint32_t)(k * 16 * 2 * D));
            mma_bf16(sum[0], x[k], b[0], b[1]);
            mma_bf16(sum[1], x[k], b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[j][i] = pack_bf16(sum[i / 2][i % 2 * 2] * norm[i % 2],
                                   sum[i / 2][i % 2 * 2 + 1] * norm[i % 2]);
    }
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        float sum[2][4] = {};

#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[4];

            load_matrix(b, other_unit(proj_at, 2 * k) + (uint32_t)(j * 16 * 2 * D));
            mma_bf16(sum[0], part[k], b[0], b[1]);
            mma_bf16(sum[1], part[k], b[2], b[3]);
        }
        __syncwarp();
        const float *bias = tiles.bias + j * 16 + (interleaved ? 4 : 2) * t;
        emit(2 * j, sum[0], make_float2(bias[0], bias[interleaved ? 2 : 1]));
        emit(2 * j + 1, sum[1],
             make_float2(bias[interleaved ? 1 : 8], bias[interleaved ? 3 : 9]));
    }
}

#endif
