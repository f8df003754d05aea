/* Which blocks are kept, and the state of the linear branch. */
#include "kernels/mma.cuh"
#include "kernels/sla_cuda.h"

#include <type_traits>

namespace {

constexpr int max_head = 128;

__device__ __forceinline__ float round_bf16(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

template <typename T> __device__ __forceinline__ float as_float(T x)
{
    return (float)x;
}

int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* ---- block_mean ---- */

constexpr int mean_columns = 32, mean_lines = 8; /* threads of a block */

template <typename T, int count> struct alignas(sizeof(T) * count) vector {
    T v[count];
};

/* Sums rows of one chunk of one block: a thread has `wide` columns and every
 * mean_lines-th row.  A few bf16 values at a time are added in f32, where that
 * loses next to nothing; everything else in f64. */
template <typename T, int wide>
__global__ void block_sums(float *y, double *parts, const T *x, const float *shift, int64_t S,
                           int64_t C, int64_t block, int64_t chunk_rows, int64_t chunks, bool round)
{
    constexpr int chain = std::is_same<T, float>::value ? 1 : 8;
    __shared__ double sums[mean_lines][mean_columns * wide];
    const int64_t b = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
    const int64_t c = ((int64_t)blockIdx.y * mean_columns + threadIdx.x) * wide;
    const int64_t block_end = min((b + 1) * block, S);
    const int64_t begin = b * block + chunk * chunk_rows;
    const int64_t end = min(begin + chunk_rows, block_end);
    double sum[wide] = {};
    float moved[wide] = {};

    if (c < C) {
        for (int i = 0; shift && i < wide; i++)
            moved[i] = round ? round_bf16(shift[c + i]) : shift[c + i];
        for (int64_t first = begin + threadIdx.y; first < end; first += mean_lines * chain) {
            float few[wide] = {};
            vector<T, wide> in[chain]; /* all under way before the first is used */
#pragma unroll
            for (int j = 0; j < chain; j++)
                in[j] = *(const vector<T, wide> *)(x + min(first + j * mean_lines, end - 1) * C + c);
#pragma unroll
            for (int j = 0; j < chain; j++)
                for (int i = 0; i < wide; i++) {
                    const float value = as_float(in[j].v[i]);
                    const float term =
                        round ? round_bf16(round_bf16(value) - moved[i]) : value - moved[i];
                    few[i] += first + j * mean_lines < end ? term : 0.0f;
                }
            for (int i = 0; i < wide; i++)
                sum[i] += (double)few[i];
        }
    }
    for (int i = 0; i < wide; i++)
        sums[threadIdx.y][threadIdx.x * wide + i] = sum[i];
    __syncthreads();
    if (threadIdx.y != 0 || c >= C)
        return;
    for (int i = 0; i < wide; i++) {
        double total = 0.0;
        for (int j = 0; j < mean_lines; j++)
            total += sums[j][threadIdx.x * wide + i];
        if (chunks > 1) {
            parts[blockIdx.x * C + c + i] = total;
        } else {
            const float mean = (float)(total / (double)(block_end - b * block));
            y[b * C + c + i] = round ? round_bf16(mean) : mean;
        }
    }
}

__global__ void block_means(float *y, const double *parts, int64_t S, int64_t C, int64_t block,
                            int64_t chunks, bool round)
{
    const int64_t b = blockIdx.x, c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    const int64_t rows = min((b + 1) * block, S) - b * block;
    double total = 0.0;

    if (c >= C)
        return;
    for (int64_t i = 0; i < chunks; i++)
        total += parts[(b * chunks + i) * C + c];
    const float mean = (float)(total / (double)rows);
    y[b * C + c] = round ? round_bf16(mean) : mean;
}

template <typename T, int wide>
void launch_block_sums(cudaStream_t stream, float *y, double *parts, const void *x,
                       const float *shift, int64_t S, int64_t C, int64_t block, int64_t chunk_rows,
                       int64_t chunks, bool round)
{
    const dim3 grid((unsigned)(ceil_div(S, block) * chunks),
                    (unsigned)ceil_div(C, mean_columns * wide));

    block_sums<T, wide><<<grid, dim3(mean_columns, mean_lines), 0, stream>>>(
        y, parts, (const T *)x, shift, S, C, block, chunk_rows, chunks, round);
}

/* ---- top_blocks ---- */

constexpr int top_threads = 256, top_keys = 64; /* key blocks scored at a time */

/* The order of floats as that of integers: -0 is 0. */
__device__ __forceinline__ uint32_t sort_key(float score)
{
    const uint32_t bits = __float_as_uint(score + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ int count_at_least(const uint32_t *keys, int K, uint32_t limit)
{
    int count = 0;

    for (int i = threadIdx.x % 32; i < K; i += 32)
        count += keys[i] >= limit;
    return __reduce_add_sync(0xffffffffu, count);
}

/* One warp: the `keep` largest of K keys, in ascending order of their indices; of
 * equal ones the first. */
__device__ void take_top(int32_t *lut, const uint32_t *keys, int K, int keep)
{
    const int lane = threadIdx.x % 32;
    const uint32_t before = (1u << lane) - 1u;
    uint32_t threshold = 0; /* the keep-th largest, found bit by bit */
    int taken = 0, equal = 0, above = 0;

    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t candidate = threshold | 1u << bit;
        if (count_at_least(keys, K, candidate) >= keep)
            threshold = candidate;
    }
    if (threshold != 0xffffffffu)
        above = count_at_least(keys, K, threshold + 1u);
    for (int first = 0; first < K; first += 32) {
        const int i = first + lane;
        const bool is_equal = i < K && keys[i] == threshold;
        const uint32_t equals = __ballot_sync(0xffffffffu, is_equal);
        const bool take = (i < K && keys[i] > threshold) ||
                          (is_equal && above + equal + __popc(equals & before) < keep);
        const uint32_t takes = __ballot_sync(0xffffffffu, take);

        if (take)
            lut[taken + __popc(takes & before)] = i;
        equal += __popc(equals);
        taken += __popc(takes);
    }
}

/* `rows` query blocks of one head: all their scores into shared memory, then
 * every warp selects for its rows.  Shared: queries [rows, D], keys [top_keys,
 * D + 4] f32, sort keys [rows, K] u32.  A warp's rows are its own and `warps`
 * further on, a lane's keys its own and 32 further on. */
__global__ void __launch_bounds__(top_threads)
    top_blocks(int32_t *lut, const float *pq, const float *pk, int Q, int K, int N, int D, int keep,
               int rows, bool round)
{
    extern __shared__ float4 top_shared[];
    constexpr int warps = top_threads / 32;
    const int stride = D + 4, width = N * D, quads = D / 4, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n = blockIdx.y, first = blockIdx.x * rows, here = min(rows, Q - first);
    float *queries = (float *)top_shared, *tile = queries + rows * D;
    uint32_t *keys = (uint32_t *)(tile + top_keys * stride);

    for (int i = threadIdx.x; i < here * quads; i += top_threads)
        *(float4 *)(queries + i / quads * D + i % quads * 4) =
            *(const float4 *)(pq + (int64_t)(first + i / quads) * width + n * D + i % quads * 4);
    for (int from = 0; from < K; from += top_keys) {
        __syncthreads();
        for (int i = threadIdx.x; i < top_keys * quads; i += top_threads) {
            const int key = min(from + i / quads, K - 1); /* beyond K: any, not stored */
            *(float4 *)(tile + i / quads * stride + i % quads * 4) =
                *(const float4 *)(pk + (int64_t)key * width + n * D + i % quads * 4);
        }
        __syncthreads();
        for (int r = warp; r < here; r += 2 * warps) {
            const bool two = r + warps < here;
            const float *q0 = queries + r * D, *q1 = two ? q0 + warps * D : q0;
            const float *k0 = tile + lane * stride, *k1 = k0 + 32 * stride;
            float s[2][2] = {};

            for (int d = 0; d < D; d += 4) {
                const float4 a[2] = { *(const float4 *)(q0 + d), *(const float4 *)(q1 + d) };
                const float4 b[2] = { *(const float4 *)(k0 + d), *(const float4 *)(k1 + d) };
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float &sum = s[i / 2][i % 2];
                    sum = fmaf(a[i / 2].x, b[i % 2].x, sum);
                    sum = fmaf(a[i / 2].y, b[i % 2].y, sum);
                    sum = fmaf(a[i / 2].z, b[i % 2].z, sum);
                    sum = fmaf(a[i / 2].w, b[i % 2].w, sum);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = from + lane + i % 2 * 32;
                const float score = round ? round_bf16(s[i / 2][i % 2]) : s[i / 2][i % 2];
                if (key < K && (i < 2 || two))
                    keys[(r + i / 2 * warps) * K + key] = sort_key(score);
            }
        }
    }
    __syncthreads();
    for (int r = warp; r < here; r += warps)
        take_top(lut + ((int64_t)n * Q + first + r) * keep, keys + r * K, K, keep);
}

/* ---- linear_state ---- */

/* phi of 8 bf16 values of a row that `lanes` neighbouring lanes share, in place;
 * all 0 where there is no row. */
template <int lanes> __device__ __forceinline__ void phi_in_place(uint32_t (&x)[4], bool valid)
{
    constexpr float log2_e = 1.44269504088896341f;
    float value[8], top = -INFINITY, sum = 0.0f;

#pragma unroll
    for (int i = 0; i < 8; i++) {
        value[i] = i % 2 ? high_bf16(x[i / 2]) : low_bf16(x[i / 2]);
        top = fmaxf(top, value[i]);
    }
#pragma unroll
    for (int step = 1; step < lanes; step *= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        value[i] = fast_exp2((value[i] - top) * log2_e);
        sum += value[i];
    }
#pragma unroll
    for (int step = 1; step < lanes; step *= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    const float by = valid ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++)
        x[i] = pack_bf16(value[2 * i] * by, value[2 * i + 1] * by);
}

constexpr int state_rows = 64; /* tokens of one step */

/* phi(k)^T . v over a share of the tokens of one head, bf16 products, f32 sums.
 * 2*D threads; warp w has rows 16w.. of the product.  phi takes k's place in
 * shared memory: 2 stages of k and v, [state_rows, D] each. */
template <int D>
__global__ void __launch_bounds__(2 * D, 2)
    state_mma(float *parts, const __nv_bfloat16 *k, const __nv_bfloat16 *v, int64_t S,
              int64_t width, int64_t share)
{
    extern __shared__ uint4 state_shared[];
    constexpr int threads = 2 * D, warps = threads / 32, units = D / 8, row_bytes = 2 * D;
    constexpr uint32_t tile_bytes = state_rows * row_bytes;
    const uint32_t base = shared_address(state_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t begin = blockIdx.x * share, end = min(begin + share, S);
    const int64_t head = (int64_t)blockIdx.y * D;
    float *part = parts + ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * (D + 1) * D;
    float product[D / 8][4] = {}, sums[8] = {};

    const auto load = [&](int64_t first, int stage) {
        const uint32_t to = base + (uint32_t)stage * 2 * tile_bytes;
        for (int i = threadIdx.x; i < state_rows * units; i += threads) {
            const int row = i / units, unit = i % units;
            const bool valid = first + row < end;
            const int64_t from = (valid ? first + row : begin) * width + head + unit * 8;
            const uint32_t at = unit_address<row_bytes>(to, row, unit);
            copy_async(at, k + from, valid);
            copy_async(at + tile_bytes, v + from, valid);
        }
        copy_commit();
    };

    if (begin < end)
        load(begin, 0);
    for (int64_t first = begin, stage = 0; first < end; first += state_rows, stage ^= 1) {
        const uint32_t keys = base + (uint32_t)stage * 2 * tile_bytes, values = keys + tile_bytes;

        copy_wait<0>();
        __syncthreads();
        if (first + state_rows < end)
            load(first + state_rows, (int)stage ^ 1);
        /* Every thread keeps to one unit of all its rows: its sums are of 8 columns. */
        for (int row = threadIdx.x / units; row < state_rows; row += threads / units) {
            const uint32_t at = unit_address<row_bytes>(keys, row, threadIdx.x % units);
            uint32_t x[4];

            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                         : "r"(at)
                         : "memory");
            phi_in_place<units>(x, first + row < end);
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(x[0]), "r"(x[1]),
                         "r"(x[2]), "r"(x[3])
                         : "memory");
#pragma unroll
            for (int i = 0; i < 8; i++)
                sums[i] += i % 2 ? high_bf16(x[i / 2]) : low_bf16(x[i / 2]);
        }
        __syncthreads();
#pragma unroll
        for (int t = 0; t < state_rows; t += 16) {
            uint32_t a[4];

            load_matrix_transposed(a, unit_address<row_bytes>(keys, t + lane % 8 + lane / 16 * 8,
                                                              2 * warp + lane / 8 % 2));
#pragma unroll
            for (int j = 0; j < D / 8; j += 2) {
                uint32_t b[4];

                load_matrix_transposed(
                    b, unit_address<row_bytes>(values, t + lane % 16, j + lane / 16));
                mma_bf16(product[j], a, b[0], b[1]);
                mma_bf16(product[j + 1], a, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        float *at = part + (warp * 16 + lane / 4) * D + j * 8 + lane % 4 * 2;
        *(float2 *)at = make_float2(product[j][0], product[j][1]);
        *(float2 *)(at + 8 * D) = make_float2(product[j][2], product[j][3]);
    }
    float *shared_sums = (float *)state_shared; /* [threads / units, D] */
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++)
        shared_sums[threadIdx.x / units * D + threadIdx.x % units * 8 + i] = sums[i];
    __syncthreads();
    if (threadIdx.x < D) {
        float sum = 0.0f;
        for (int i = 0; i < threads / units; i++)
            sum += shared_sums[i * D + threadIdx.x];
        part[D * D + threadIdx.x] = sum;
    }
    static_assert(warps * 16 == D, "a warp for every 16 rows of the product");
}

constexpr int plain_rows = 32, plain_threads = 256;

/* The same in f32 arithmetic, any D: tiles of 4 x 4 of the product for a thread. */
template <typename T>
__global__ void __launch_bounds__(plain_threads)
    state_plain(float *parts, const T *k, const T *v, int64_t S, int64_t width, int D,
                int64_t share)
{
    constexpr int tiles = max_head / 4 * (max_head / 4) / plain_threads;
    __shared__ float phi[plain_rows][max_head], value[plain_rows][max_head];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, side = D / 4;
    const int64_t begin = blockIdx.x * share, end = min(begin + share, S);
    const int64_t head = (int64_t)blockIdx.y * D;
    float *part = parts + ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * (D + 1) * D;
    float product[tiles][4][4] = {}, sum_of_phi = 0.0f;

    for (int64_t first = begin; first < end; first += plain_rows) {
        const int rows = (int)min((int64_t)plain_rows, end - first);

        __syncthreads();
        for (int i = threadIdx.x; i < rows * D; i += plain_threads)
            value[i / D][i % D] = as_float(v[(first + i / D) * width + head + i % D]);
        for (int row = warp; row < rows; row += plain_threads / 32) {
            const T *x = k + (first + row) * width + head;
            float top = -INFINITY, sum = 0.0f;

            for (int d = lane; d < D; d += 32)
                top = fmaxf(top, as_float(x[d]));
            for (int step = 16; step > 0; step /= 2)
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
            for (int d = lane; d < D; d += 32)
                sum += phi[row][d] = expf(as_float(x[d]) - top);
            for (int step = 16; step > 0; step /= 2)
                sum += __shfl_xor_sync(0xffffffffu, sum, step);
            for (int d = lane; d < D; d += 32)
                phi[row][d] *= 1.0f / sum;
        }
        __syncthreads();
        for (int row = 0; row < rows && threadIdx.x < D; row++)
            sum_of_phi += phi[row][threadIdx.x];
#pragma unroll
        for (int t = 0; t < tiles; t++) {
            const int tile = threadIdx.x + t * plain_threads;
            const int i = tile / side * 4, j = tile % side * 4;

            if (tile >= side * side)
                break;
            for (int row = 0; row < rows; row++) {
                const float4 a = *(const float4 *)&phi[row][i], b = *(const float4 *)&value[row][j];
                const float x[4] = { a.x, a.y, a.z, a.w }, y[4] = { b.x, b.y, b.z, b.w };
#pragma unroll
                for (int at = 0; at < 16; at++)
                    product[t][at / 4][at % 4] =
                        fmaf(x[at / 4], y[at % 4], product[t][at / 4][at % 4]);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < tiles; t++) {
        const int tile = threadIdx.x + t * plain_threads;

        if (tile >= side * side)
            break;
        for (int at = 0; at < 16; at++)
            part[(tile / side * 4 + at / 4) * D + tile % side * 4 + at % 4] =
                product[t][at / 4][at % 4];
    }
    if (threadIdx.x < D)
        part[D * D + threadIdx.x] = sum_of_phi;
}

/* Shares are added in their order. */
__global__ void add_parts(float *state, const float *parts, int64_t splits, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const float *part = parts + blockIdx.y * splits * count;
    float sum = 0.0f;

    if (i >= count)
        return;
    for (int64_t s = 0; s < splits; s++)
        sum += part[s * count + i];
    state[blockIdx.y * count + i] = sum;
}

template <int D>
cudaError_t launch_state_mma(cudaStream_t stream, float *parts, const void *k, const void *v,
                             int64_t S, int64_t N, int64_t splits, int64_t share)
{
    constexpr int bytes = 4 * state_rows * 2 * D;
    const cudaError_t error =
        cudaFuncSetAttribute(state_mma<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);

    if (error != cudaSuccess)
        return error;
    state_mma<D><<<dim3((unsigned)splits, (unsigned)N), 2 * D, bytes, stream>>>(
        parts, (const __nv_bfloat16 *)k, (const __nv_bfloat16 *)v, S, N * D, share);
    return cudaGetLastError();
}

} // namespace

extern "C" cudaError_t sl_cuda_block_mean(cudaStream_t stream, float *y, const void *x, bool bf16,
                                          const float *shift, int64_t S, int64_t C, int64_t block,
                                          int64_t chunk_rows, bool round, double *parts)
{
    const int64_t chunks = ceil_div(block < S ? block : S, chunk_rows), blocks = ceil_div(S, block);

    if (bf16 && C % 8 == 0)
        launch_block_sums<__nv_bfloat16, 8>(stream, y, parts, x, shift, S, C, block, chunk_rows,
                                            chunks, round);
    else if (bf16)
        launch_block_sums<__nv_bfloat16, 1>(stream, y, parts, x, shift, S, C, block, chunk_rows,
                                            chunks, round);
    else if (C % 4 == 0)
        launch_block_sums<float, 4>(stream, y, parts, x, shift, S, C, block, chunk_rows, chunks,
                                    round);
    else
        launch_block_sums<float, 1>(stream, y, parts, x, shift, S, C, block, chunk_rows, chunks,
                                    round);
    if (chunks > 1)
        block_means<<<dim3((unsigned)blocks, (unsigned)ceil_div(C, 128)), 128, 0, stream>>>(
            y, parts, S, C, block, chunks, round);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_top_blocks(cudaStream_t stream, int32_t *lut, const float *pq,
                                          const float *pk, int64_t Q, int64_t K, int64_t N,
                                          int64_t D, int64_t keep, bool round)
{
    int device = 0, most = 0, rows = 16;
    cudaError_t error = cudaGetDevice(&device);
    const auto bytes = [&](int64_t r) {
        return (size_t)(r * D + top_keys * (D + 4) + r * K) * sizeof(float);
    };

    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    while (rows > 0 && bytes(rows) > (size_t)most)
        rows /= 2;
    if (error == cudaSuccess && rows == 0)
        error = cudaErrorInvalidConfiguration;
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(top_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != cudaSuccess)
        return error;
    top_blocks<<<dim3((unsigned)ceil_div(Q, rows), (unsigned)N), top_threads, bytes(rows),
                 stream>>>(lut, pq, pk, (int)Q, (int)K, (int)N, (int)D, (int)keep, rows, round);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_linear_state(cudaStream_t stream, float *state, const void *k,
                                            const void *v, bool bf16, int64_t S, int64_t N,
                                            int64_t D, int64_t splits, float *parts)
{
    const int64_t share = ceil_div(ceil_div(S, splits), state_rows) * state_rows;
    const int64_t count = (D + 1) * D;
    const dim3 grid((unsigned)splits, (unsigned)N);
    cudaError_t error = cudaSuccess;

    if (splits == 1)
        parts = state;
    if (bf16 && D == 128)
        error = launch_state_mma<128>(stream, parts, k, v, S, N, splits, share);
    else if (bf16 && D == 64)
        error = launch_state_mma<64>(stream, parts, k, v, S, N, splits, share);
    else if (bf16)
        state_plain<<<grid, plain_threads, 0, stream>>>(parts, (const __nv_bfloat16 *)k,
                                                        (const __nv_bfloat16 *)v, S, N * D, (int)D,
                                                        share);
    else
        state_plain<<<grid, plain_threads, 0, stream>>>(parts, (const float *)k, (const float *)v,
                                                        S, N * D, (int)D, share);
    if (error == cudaSuccess)
        error = cudaGetLastError();
    if (error != cudaSuccess || splits == 1)
        return error;
    add_parts<<<dim3((unsigned)ceil_div(count, 256), (unsigned)N), 256, 0, stream>>>(
        state, parts, splits, count);
    return cudaGetLastError();
}
