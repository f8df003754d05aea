/* Attention over the kept blocks, with the linear branch.
 *
 * Tensor cores (bf16, heads of 64 or 128, query blocks of 64 or 128, key blocks of
 * 64 or 128): one block of threads for a query block of a head, 32 rows to a warp.
 * Keys and values come in tiles of 64 rows, two stages deep; the running maximum
 * and the rescaling are in base 2; P is rounded to bf16 and its sum is not.  The
 * linear branch is added at the end, where keys and values have lain. */
#include "kernels/sla_branch.cuh"
#include "kernels/sla_plain.cuh"

namespace {

constexpr int key_rows = 64; /* of one tile */

template <int D> struct shared_layout {
    static constexpr int row_bytes = 2 * D, tile_bytes = key_rows * row_bytes;
    static constexpr int stages_bytes = 4 * tile_bytes; /* 2 stages of keys and values */
    static constexpr int rest_bytes =
        stages_bytes > branch_bytes<D>() ? stages_bytes : branch_bytes<D>();
};

struct sparse_args {
    __nv_bfloat16 *o;
    const __nv_bfloat16 *q, *k, *v;
    const int32_t *lut;
    sl_cuda_branch branch;
    int64_t S, width;
    int keep, block_k, query_blocks;
    float scale_log2; /* positive */
};

/* s = the tile's scores of the warp's 32 rows: [m-tile][n-tile]. */
template <int D>
__device__ __forceinline__ void score(float (&s)[2][key_rows / 8][4], uint32_t q_tile, int row,
                                      uint32_t keys)
{
    const int lane = threadIdx.x % 32;
    const uint32_t q_at = unit_address<2 * D>(q_tile, row + lane % 16, lane / 16);
    const uint32_t k_at = unit_address<2 * D>(keys, lane % 8 + lane / 16 * 8, lane / 8 % 2);

#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[2][4];

        load_matrix(a[0], other_unit(q_at, 2 * k));
        load_matrix(a[1], other_unit(q_at, 2 * k) + 16 * 2 * D);
#pragma unroll
        for (int j = 0; j < key_rows / 8; j += 2) {
            uint32_t b[4];

            load_matrix(b, other_unit(k_at, 2 * k) + (uint32_t)(j * 8 * 2 * D));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma_bf16(s[m][j], a[m], b[0], b[1]);
                mma_bf16(s[m][j + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Weighs 16 rows against the running maximum; o and sum are brought to the new
 * one.  p: the weights as operands of the next product. */
template <int D>
__device__ __forceinline__ void weigh(uint32_t (&p)[key_rows / 16][4], float (&s)[key_rows / 8][4],
                                      float (&o)[D / 8][4], float (&top)[2], float (&sum)[2],
                                      float scale_log2)
{
    float now[2] = { top[0], top[1] }, base[2], kept[2];

#pragma unroll
    for (int j = 0; j < key_rows / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            now[i / 2] = fmaxf(now[i / 2], s[j][i]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        now[i] = quad_max(now[i]);
        kept[i] = fast_exp2((top[i] - now[i]) * scale_log2);
        base[i] = now[i] * scale_log2;
        sum[i] *= kept[i];
    }
    if (__any_sync(0xffffffffu, now[0] != top[0] || now[1] != top[1])) {
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o[j][i] *= kept[i / 2];
    }
    top[0] = now[0];
    top[1] = now[1];
#pragma unroll
    for (int j = 0; j < key_rows / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[j][i] = fast_exp2(fmaf(s[j][i], scale_log2, -base[i / 2]));
            sum[i / 2] += s[j][i];
        }
        p[j / 2][j % 2 * 2] = pack_bf16(s[j][0], s[j][1]);
        p[j / 2][j % 2 * 2 + 1] = pack_bf16(s[j][2], s[j][3]);
    }
}

template <int D>
__device__ __forceinline__ void weigh_values(float (&o)[2][D / 8][4],
                                             const uint32_t (&p)[2][key_rows / 16][4],
                                             uint32_t values)
{
    const int lane = threadIdx.x % 32;
    const uint32_t v_at = unit_address<2 * D>(values, lane % 16, lane / 16);

#pragma unroll
    for (int k = 0; k < key_rows / 16; k++)
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t b[4];

            load_matrix_transposed(b, other_unit(v_at, j) + (uint32_t)(k * 16 * 2 * D));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma_bf16(o[m][j], p[m][k], b[0], b[1]);
                mma_bf16(o[m][j + 1], p[m][k], b[2], b[3]);
            }
        }
}

/* Keys beyond the last get no weight. */
__device__ __forceinline__ void mask(float (&s)[2][key_rows / 8][4], int valid)
{
    const int column = threadIdx.x % 4 * 2;

#pragma unroll
    for (int j = 0; j < key_rows / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (j * 8 + column + i % 2 >= valid)
                s[0][j][i] = s[1][j][i] = -INFINITY;
}

/* `rows` query rows a block, as many threads. */
template <int D, int rows> __global__ void __launch_bounds__(rows, 2) sparse_mma(sparse_args a)
{
    using layout = shared_layout<D>;
    extern __shared__ __align__(1024) unsigned char sparse_shared[];
    constexpr int units = D / 8, row_bytes = layout::row_bytes, tile_bytes = layout::tile_bytes;
    const uint32_t q_tile = shared_address(sparse_shared), stages = q_tile + rows * row_bytes;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 32, n = blockIdx.y;
    const int64_t first = (int64_t)blockIdx.x * rows, head = (int64_t)n * D;
    const int tiles_of_block = a.block_k / key_rows,
              tiles = a.keep * tiles_of_block;
    const int32_t *lut = a.lut + ((int64_t)n * a.query_blocks + blockIdx.x) * a.keep;
    float o[2][D / 8][4] = {}, sum[2][2] = {};
    float top[2][2] = { { -INFINITY, -INFINITY }, { -INFINITY, -INFINITY } };

    /* A thread copies the same unit of every rows / units-th row. */
    const int own = threadIdx.x / units, unit = threadIdx.x % units;
    const int64_t own_at = own * a.width + head + unit * 8;
    int64_t begin = (int64_t)lut[0] * a.block_k, next_begin = begin; /* of the tile's keys */
    const auto load = [&](int stage) {
        const uint32_t to = stages + (uint32_t)(stage * 2 * tile_bytes);
        const __nv_bfloat16 *k = a.k + next_begin * a.width + own_at;
        const __nv_bfloat16 *v = a.v + next_begin * a.width + own_at;
        const int valid = (int)min((int64_t)key_rows, a.S - next_begin);
#pragma unroll
        for (int r = 0; r < key_rows; r += rows / units) {
            const uint32_t at = unit_address<row_bytes>(to, r + own, unit);
            copy_async(at, r + own < valid ? k : a.k, r + own < valid);
            copy_async(at + tile_bytes, r + own < valid ? v : a.v, r + own < valid);
            k += rows / units * a.width;
            v += rows / units * a.width;
        }
        copy_commit();
    };

    for (int r = own; r < rows; r += rows / units)
        copy_async(unit_address<row_bytes>(q_tile, r, unit),
                   a.q + (first + r < a.S ? first + r : 0) * a.width + head + unit * 8,
                   first + r < a.S);
    load(0);
    for (int tile = 0; tile < tiles; tile++) {
        const uint32_t keys = stages + (uint32_t)(tile % 2 * 2 * tile_bytes);
        const int64_t valid = a.S - begin;
        float s[2][key_rows / 8][4] = {};
        uint32_t p[2][key_rows / 16][4];

        copy_wait<0>();
        __syncthreads(); /* this tile has come, and all are done with the one before */
        if (tile + 1 < tiles) {
            next_begin = (int64_t)lut[(tile + 1) / tiles_of_block] * a.block_k +
                         (tile + 1) % tiles_of_block * key_rows;
            load((tile + 1) % 2);
        }
        score<D>(s, q_tile, row, keys);
        if (valid < key_rows)
            mask(s, (int)valid);
#pragma unroll
        for (int m = 0; m < 2; m++)
            weigh<D>(p[m], s[m], o[m], top[m], sum[m], a.scale_log2);
        weigh_values<D>(o, p, keys + tile_bytes);
        begin = next_begin;
    }
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            sum[m][i] = __fdividef(1.0f, quad_sum(sum[m][i]));
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o[m][j][i] *= sum[m][i / 2];
    }
    if (a.branch.state) {
        const branch_tiles<D> branch = branch_at<D>(sparse_shared + rows * row_bytes);

        __syncthreads();
        load_branch<D, rows>(branch, a.branch, n, threadIdx.x);
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 2; m++)
            run_branch<D, false>(branch, q_tile, row + m * 16,
                                 [&](int j, const float(&c)[4], float2 bias) {
                                     o[m][j][0] += c[0] + bias.x;
                                     o[m][j][1] += c[1] + bias.y;
                                     o[m][j][2] += c[2] + bias.x;
                                     o[m][j][3] += c[3] + bias.y;
                                 });
    }
    /* Through the warp's own queries, which nobody needs any more. */
    __syncwarp();
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t at =
                    unit_address<row_bytes>(q_tile, row + m * 16 + half * 8 + lane / 4, j);
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(at + lane % 4 * 4),
                             "r"(pack_bf16(o[m][j][half * 2], o[m][j][half * 2 + 1]))
                             : "memory");
            }
    __syncwarp();
    for (int i = lane; i < 32 * units; i += 32) {
        const int r = row + i / units;
        uint4 value;

        if (first + r >= a.S)
            break;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                     : "r"(unit_address<row_bytes>(q_tile, r, i % units))
                     : "memory");
        *(uint4 *)(a.o + (first + r) * a.width + head + i % units * 8) = value;
    }
}

template <int D, int rows>
cudaError_t launch_mma(cudaStream_t stream, const sl_cuda_sparse *args)
{
    using layout = shared_layout<D>;
    constexpr int bytes = rows * layout::row_bytes + layout::rest_bytes;
    const int query_blocks = (int)((args->S + rows - 1) / rows);
    const sparse_args a = {
        (__nv_bfloat16 *)args->o,
        (const __nv_bfloat16 *)args->q,
        (const __nv_bfloat16 *)args->k,
        (const __nv_bfloat16 *)args->v,
        args->lut,
        args->branch,
        args->S,
        args->N * D,
        (int)args->keep,
        (int)args->block_k,
        query_blocks,
        args->scale * 1.44269504088896341f,
    };
    const cudaError_t error =
        cudaFuncSetAttribute(sparse_mma<D, rows>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);

    if (error != cudaSuccess)
        return error;
    sparse_mma<D, rows>
        <<<dim3((unsigned)query_blocks, (unsigned)args->N), rows, bytes, stream>>>(a);
    return cudaGetLastError();
}

template <typename T> cudaError_t launch_any(cudaStream_t stream, const sl_cuda_sparse *args)
{
    plain_args<T, T, T, T> a = {};

    a.o = (T *)args->o;
    a.q = a.branch_q = (const T *)args->q;
    a.k = (const T *)args->k;
    a.v = (const T *)args->v;
    a.lut = args->lut;
    a.branch = args->branch;
    a.S = args->S;
    a.width = args->N * args->D;
    a.D = (int)args->D;
    a.keep = (int)args->keep;
    a.block_q = (int)args->block_q;
    a.block_k = (int)args->block_k;
    a.scale = args->scale;
    return launch_plain<false>(stream, a, args->N);
}

} // namespace

extern "C" cudaError_t sl_cuda_sparse_attention(cudaStream_t stream, const sl_cuda_sparse *args)
{
    const bool blocks = (args->block_q == 64 || args->block_q == 128) &&
                        (args->block_k == 64 || args->block_k == 128);

    if (!args->bf16)
        return launch_any<float>(stream, args);
    if (blocks && args->scale > 0.0f && args->D == 128)
        return args->block_q == 128 ? launch_mma<128, 128>(stream, args)
                                    : launch_mma<128, 64>(stream, args);
    if (blocks && args->scale > 0.0f && args->D == 64)
        return args->block_q == 128 ? launch_mma<64, 128>(stream, args)
                                    : launch_mma<64, 64>(stream, args);
    return launch_any<__nv_bfloat16>(stream, args);
}
