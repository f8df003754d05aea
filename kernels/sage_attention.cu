/* SageSLA's attention over the kept blocks, with the linear branch.
 *
 * Tensor cores (bf16 activations, heads of 128, blocks of 64 or 128): one block of
 * threads for a query block of a head, 16 rows to a warp; key blocks come two
 * stages deep.  Products of codes are exact integers.  P and v8 are multiplied as
 * f16, which holds every e4m3 value: sums are f32 on every architecture. */
#include "kernels/sla_branch.cuh"
#include "kernels/sla_plain.cuh"

namespace {

constexpr int head = 128, units = head / 16; /* units of 16 bytes in a row of codes */
constexpr float p_exponent = 8.807f;         /* the largest P is close to 448 */

/* Integer sums start at the bits of this float and stay inside of its binade
 * (2^21 is the most that 128 products of codes can give): read as a float, less
 * this, they are the sum. */
constexpr float offset = 12582912.0f;
constexpr int offset_bits = 0x4b400000;

struct sage_args {
    __nv_bfloat16 *o;
    const __nv_bfloat16 *q;
    const int8_t *q8, *k8;
    const uint8_t *v8;
    const float *q_scale, *k_scale, *v_scale;
    const int32_t *lut;
    sl_cuda_branch branch;
    int64_t S, width;
    int keep, query_blocks, key_blocks;
    float scale_log2; /* positive */
};

template <int rows, int keys> struct shared_layout {
    static constexpr int code_bytes = rows * head, q_bytes = rows * head * 2;
    static constexpr int tile_bytes = keys * head, stages_bytes = 4 * tile_bytes;
    static constexpr int rest_bytes =
        stages_bytes > branch_bytes<head>() ? stages_bytes : branch_bytes<head>();
    static constexpr int bytes = code_bytes + q_bytes + rest_bytes;
};

template <int keys>
__device__ __forceinline__ void score(int (&s)[keys / 8][4], uint32_t q_tile, int row,
                                      uint32_t k_tile)
{
    const int lane = threadIdx.x % 32;
    const uint32_t q_at = unit_address<head>(q_tile, row + lane % 16, lane / 16);
    const uint32_t k_at = unit_address<head>(k_tile, lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const int zero[4] = { offset_bits, offset_bits, offset_bits, offset_bits };

#pragma unroll
    for (int k = 0; k < head / 32; k++) {
        uint32_t a[4];

        load_matrix(a, other_unit(q_at, 2 * k));
#pragma unroll
        for (int j = 0; j < keys / 8; j += 2) {
            uint32_t b[4];

            load_matrix(b, other_unit(k_at, 2 * k) + (uint32_t)(j * 8 * head));
            mma_s8(s[j], a, b[0], b[1], k == 0 ? zero : s[j]);
            mma_s8(s[j + 1], a, b[2], b[3], k == 0 ? zero : s[j + 1]);
        }
    }
}

/* Two weights, rounded to e4m3, as a pair of f16. */
__device__ __forceinline__ uint32_t e4m3_pair(float low, float high)
{
    const __nv_fp8x2_storage_t codes =
        __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
    const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3);
    return (uint32_t)pair.y << 16 | pair.x;
}

/* Two columns of two neighbouring rows, as ldmatrix gives them transposed, into a
 * pair of rows of either column. */
__device__ __forceinline__ void widen_pairs(uint32_t &even, uint32_t &odd, uint32_t codes)
{
    const uint32_t sorted = __byte_perm(codes, 0, 0x3120);
    const __half2_raw a = __nv_cvt_fp8x2_to_halfraw2((uint16_t)sorted, __NV_E4M3);
    const __half2_raw b = __nv_cvt_fp8x2_to_halfraw2((uint16_t)(sorted >> 16), __NV_E4M3);

    even = (uint32_t)a.y << 16 | a.x;
    odd = (uint32_t)b.y << 16 | b.x;
}

/* The integer sums of 16 rows to weights, against the running maximum (in units
 * of logits in base 2); o and sum are brought to the new one. */
template <int keys>
__device__ __forceinline__ void weigh(uint32_t (&p)[keys / 16][4], const int (&s)[keys / 8][4],
                                      float (&o)[head / 8][4], float (&top)[2], float (&sum)[2],
                                      float by, int valid)
{
    const int column = threadIdx.x % 4 * 2;
    const bool ragged = valid < keys;
    float most[2] = { -INFINITY, -INFINITY }, base[2], kept[2];
    bool moved = false;

#pragma unroll
    for (int j = 0; j < keys / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (!ragged || j * 8 + column + i % 2 < valid)
                most[i / 2] = fmaxf(most[i / 2], __int_as_float(s[j][i]));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float now = fmaxf(top[i], (quad_max(most[i]) - offset) * by);
        kept[i] = fast_exp2(top[i] - now);
        moved = moved || now != top[i];
        base[i] = p_exponent - now;
        top[i] = now;
        sum[i] *= kept[i];
    }
    if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
        for (int j = 0; j < head / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o[j][i] *= kept[i / 2];
    }
#pragma unroll
    for (int j = 0; j < keys / 8; j++) {
        float w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = fast_exp2(fmaf(__int_as_float(s[j][i]) - offset, by, base[i / 2]));
            if (ragged && j * 8 + column + i % 2 >= valid)
                w[i] = 0.0f;
            sum[i / 2] += w[i];
        }
        p[j / 2][j % 2 * 2] = e4m3_pair(w[0], w[1]);
        p[j / 2][j % 2 * 2 + 1] = e4m3_pair(w[2], w[3]);
    }
}

/* o += p . values; accumulators 2p and 2p + 1 share 16 columns, as run_branch's
 * do when interleaved. */
template <int keys>
__device__ __forceinline__ void weigh_values(float (&o)[head / 8][4],
                                             const uint32_t (&p)[keys / 16][4], uint32_t values)
{
    const int lane = threadIdx.x % 32;
    const uint32_t v_at = unit_address<head>(values, lane % 16, lane / 16);

#pragma unroll
    for (int k = 0; k < keys / 16; k++)
#pragma unroll
        for (int u = 0; u < units; u += 2) {
            uint32_t codes[4], even[4], odd[4];

            load_matrix_transposed(codes, other_unit(v_at, u) + (uint32_t)(k * 16 * head));
#pragma unroll
            for (int i = 0; i < 4; i++)
                widen_pairs(even[i], odd[i], codes[i]);
            mma_f16(o[2 * u], p[k], even[0], even[1]);
            mma_f16(o[2 * u + 1], p[k], odd[0], odd[1]);
            mma_f16(o[2 * u + 2], p[k], even[2], even[3]);
            mma_f16(o[2 * u + 3], p[k], odd[2], odd[3]);
        }
}

__device__ __forceinline__ float rounded(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

template <int rows, int keys>
__global__ void __launch_bounds__(2 * rows, 256 / rows / 2) sage_mma(sage_args a)
{
    using layout = shared_layout<rows, keys>;
    extern __shared__ __align__(1024) unsigned char sage_shared[];
    constexpr int threads = 2 * rows, tile_bytes = layout::tile_bytes;
    unsigned char *rest = sage_shared + layout::code_bytes + layout::q_bytes;
    const uint32_t codes = shared_address(sage_shared), q_tile = codes + layout::code_bytes;
    const uint32_t stages = shared_address(rest);
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16, n = blockIdx.y;
    const int own = threadIdx.x / units, unit = threadIdx.x % units;
    const int64_t first = (int64_t)blockIdx.x * rows, at_head = (int64_t)n * head;
    const int64_t own_at = own * a.width + at_head + unit * 16;
    const int64_t query_block = (int64_t)n * a.query_blocks + blockIdx.x;
    const int32_t *lut = a.lut + query_block * a.keep;
    const float q_scale = a.q_scale[query_block];
    float o[head / 8][4] = {}, sum[2] = {}, top[2] = { -INFINITY, -INFINITY };
    int block = lut[0], next = block;

    const auto load = [&](int stage) {
        const int64_t begin = (int64_t)next * keys;
        const uint32_t to = stages + (uint32_t)(stage * 2 * tile_bytes);
        const int8_t *k = a.k8 + begin * a.width + own_at;
        const uint8_t *v = a.v8 + begin * a.width + own_at;
        const int valid = (int)min((int64_t)keys, a.S - begin);
#pragma unroll
        for (int r = 0; r < keys; r += threads / units) {
            const uint32_t at = unit_address<head>(to, r + own, unit);
            copy_async(at, r + own < valid ? k : a.k8, r + own < valid);
            copy_async(at + tile_bytes, r + own < valid ? v : a.v8, r + own < valid);
            k += threads / units * a.width;
            v += threads / units * a.width;
        }
        copy_commit();
    };

    for (int r = own; r < rows; r += threads / units)
        copy_async(unit_address<head>(codes, r, unit),
                   a.q8 + (first + r < a.S ? first + r : 0) * a.width + at_head + unit * 16,
                   first + r < a.S);
    for (int i = threadIdx.x; a.branch.state && i < rows * units * 2; i += threads) {
        const int r = i / (2 * units), u = i % (2 * units);
        copy_async(unit_address<2 * head>(q_tile, r, u),
                   a.q + (first + r < a.S ? first + r : 0) * a.width + at_head + u * 8,
                   first + r < a.S);
    }
    load(0);
    for (int at = 0; at < a.keep; at++) {
        const uint32_t k_tile = stages + (uint32_t)(at % 2 * 2 * tile_bytes);
        const int valid = (int)min((int64_t)keys, a.S - (int64_t)block * keys);
        const float by =
            q_scale * a.k_scale[(int64_t)n * a.key_blocks + block] * a.scale_log2;
        int s[keys / 8][4];
        uint32_t p[keys / 16][4];

        copy_wait<0>();
        __syncthreads(); /* this block has come, and all are done with the one before */
        if (at + 1 < a.keep) {
            next = lut[at + 1];
            load((at + 1) % 2);
        }
        score<keys>(s, codes, row, k_tile);
        weigh<keys>(p, s, o, top, sum, by, valid);
        weigh_values<keys>(o, p, k_tile + tile_bytes);
        block = next;
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
        sum[i] = 1.0f / quad_sum(sum[i]);
#pragma unroll
    for (int j = 0; j < head / 16; j++) {
        const float4 v = *(const float4 *)(a.v_scale + at_head + j * 16 + lane % 4 * 4);
        const float by[2][2] = { { v.x, v.z }, { v.y, v.w } };
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float &value = o[2 * j + i / 4][i % 4];
            value = rounded(value * sum[i % 4 / 2] * by[i / 4][i % 2]);
        }
    }
    if (a.branch.state) {
        const branch_tiles<head> branch = branch_at<head>(rest);

        __syncthreads();
        load_branch<head, threads>(branch, a.branch, n, threadIdx.x);
        __syncthreads();
        run_branch<head, true>(branch, q_tile, row, [&](int j, const float(&c)[4], float2 bias) {
            o[j][0] += rounded(c[0] + bias.x);
            o[j][1] += rounded(c[1] + bias.y);
            o[j][2] += rounded(c[2] + bias.x);
            o[j][3] += rounded(c[3] + bias.y);
        });
    }
    /* Through the warp's own queries, which nobody needs any more. */
    __syncwarp();
#pragma unroll
    for (int j = 0; j < head / 16; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int t = lane % 4, c = half * 2;
            const uint32_t at =
                unit_address<2 * head>(q_tile, row + half * 8 + lane / 4, 2 * j + t / 2);
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at + t % 2 * 8),
                         "r"(pack_bf16(o[2 * j][c], o[2 * j + 1][c])),
                         "r"(pack_bf16(o[2 * j][c + 1], o[2 * j + 1][c + 1]))
                         : "memory");
        }
    __syncwarp();
    for (int i = lane; i < 16 * 2 * units; i += 32) {
        const int r = row + i / (2 * units), u = i % (2 * units);
        uint4 value;

        if (first + r >= a.S)
            break;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                     : "r"(unit_address<2 * head>(q_tile, r, u))
                     : "memory");
        *(uint4 *)(a.o + (first + r) * a.width + at_head + u * 8) = value;
    }
}

template <int rows, int keys>
cudaError_t launch_mma(cudaStream_t stream, const sl_cuda_sage *args)
{
    constexpr int bytes = shared_layout<rows, keys>::bytes;
    sage_args a = {};
    const cudaError_t error =
        cudaFuncSetAttribute(sage_mma<rows, keys>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);

    if (error != cudaSuccess)
        return error;
    a.o = (__nv_bfloat16 *)args->o;
    a.q = (const __nv_bfloat16 *)args->q;
    a.q8 = args->q8;
    a.k8 = args->k8;
    a.v8 = args->v8;
    a.q_scale = args->q_scale;
    a.k_scale = args->k_scale;
    a.v_scale = args->v_scale;
    a.lut = args->lut;
    a.branch = args->branch;
    a.S = args->S;
    a.width = args->N * head;
    a.keep = (int)args->keep;
    a.query_blocks = (int)((args->S + rows - 1) / rows);
    a.key_blocks = (int)((args->S + keys - 1) / keys);
    a.scale_log2 = args->scale * 1.44269504088896341f;
    sage_mma<rows, keys><<<dim3((unsigned)a.query_blocks, (unsigned)args->N), 2 * rows, bytes,
                           stream>>>(a);
    return cudaGetLastError();
}

template <typename T> cudaError_t launch_any(cudaStream_t stream, const sl_cuda_sage *args)
{
    plain_args<T, int8_t, int8_t, uint8_t> a = {};

    a.o = (T *)args->o;
    a.branch_q = (const T *)args->q;
    a.q = args->q8;
    a.k = args->k8;
    a.v = args->v8;
    a.q_scale = args->q_scale;
    a.k_scale = args->k_scale;
    a.v_scale = args->v_scale;
    a.lut = args->lut;
    a.branch = args->branch;
    a.S = args->S;
    a.width = args->N * args->D;
    a.D = (int)args->D;
    a.keep = (int)args->keep;
    a.block_q = (int)args->block_q;
    a.block_k = (int)args->block_k;
    a.scale = args->scale;
    return launch_plain<true>(stream, a, args->N);
}

} // namespace

extern "C" cudaError_t sl_cuda_sage_attention(cudaStream_t stream, const sl_cuda_sage *args)
{
    const bool own = args->bf16 && args->D == head && args->scale > 0.0f;

    if (own && args->block_q == 64 && args->block_k == 128)
        return launch_mma<64, 128>(stream, args);
    if (own && args->block_q == 128 && args->block_k == 64)
        return launch_mma<128, 64>(stream, args);
    if (args->bf16)
        return launch_any<__nv_bfloat16>(stream, args);
    return launch_any<float>(stream, args);
}
