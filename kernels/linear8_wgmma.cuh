/* linear8_wgmma.cuh - linear layers on 8-bit codes, on the matrix instructions of
 * sm_90a.
 *
 * A block stays on its multiprocessor and makes one tile of 256 x 128 after the
 * other.  One thread brings steps of 128 along I, of both operands, through the
 * copy engine into a ring of STAGES; two groups of four warps each make 128 rows,
 * 64 at a time: a product of 64 x 128 x 128, then its 64 numbers of a thread into
 * the f32 sums.  Of int8 the two take about as long as each other, so the groups
 * take turns: while one multiplies, the other adds.  The turn is handed on when all
 * but the last quarter of a product is done: what both have queued at the same time
 * the units work on alternately, and then both would add at the same time too.
 *
 * Two blocks, a pair, make tiles side by side.  Each brings half of the rows of x
 * for both of them, so that what comes from L2 for a step is 32 KiB a block and not
 * 48.  A stage is filled again when both blocks' groups are done with it.
 *
 * Registers, of a thread in those groups: 128 f32 sums and 64 numbers.
 */
#ifndef SL_KERNELS_LINEAR8_WGMMA_CUH
#define SL_KERNELS_LINEAR8_WGMMA_CUH

#include "kernels/linear8.cuh"
#include "kernels/mma.cuh"

namespace
{
namespace wgmma
{

enum {
    COLS = SL_CUDA_LINEAR8_BOX_ROWS,
    ROWS = 2 * SL_CUDA_LINEAR8_BOX_ROWS, /* a box of each block of the pair */
    PAIR = 2,                            /* blocks that share the rows of x */
    GROUP = 128,                         /* threads that multiply together */
    GROUPS = 2,
    GROUP_ROWS = ROWS / GROUPS,
    PART_ROWS = 64, /* of one product */
    PARTS = GROUP_ROWS / PART_ROWS,
    NUMBERS = PART_ROWS * COLS / GROUP,
    THREADS = (1 + GROUPS) * GROUP,
    STAGES = 4,
    X_BYTES = ROWS * STEP,
    W_BYTES = COLS * STEP,
    STAGE_BYTES = X_BYTES + W_BYTES,
    SWIZZLE_ALIGN = 1024,
    STAGED_ROWS = 8, /* of a warp, on their way out */
    STAGED_BYTES = STAGED_ROWS * COLS * 4,
    SHARED_BYTES = SWIZZLE_ALIGN + STAGES * STAGE_BYTES + GROUPS * GROUP / 32 * STAGED_BYTES,
    LOADER_REGISTERS = 40,
    GROUP_REGISTERS = 232,
    TURN = 1, /* the first of GROUPS named barriers; 0 is __syncthreads */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- barriers and copies ---- */

__device__ __forceinline__ void barrier_init(uint64_t *barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

/* At the same barrier of block `rank` of the pair.  No ordinary store has to be seen
 * on the other side, so it needs none of the fences of the pair's scope. */
__device__ __forceinline__ void barrier_arrive(uint64_t *barrier, int rank)
{
    uint32_t there;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(shared_address(barrier)), "r"(rank));
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint64_t *barrier, int bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

/* Until the phase of that parity has ended. */
__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    uint32_t done = 0;

    while (!done)
        asm volatile("{\n\t"
                     ".reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t"
                     "}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
}

/* The box of `map` at (code, row); its bytes count towards `barrier`. */
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int code, int row,
                                         uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(code), "r"(row), "r"(shared_address(barrier))
                 : "memory");
}

/* The same into both blocks of the pair, towards the barrier of each. */
__device__ __forceinline__ void copy_box_to_pair(uint32_t to, const CUtensorMap *map, int code,
                                                 int row, uint64_t *barrier)
{
    const uint16_t both = (1 << PAIR) - 1;

    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(code), "r"(row), "r"(shared_address(barrier)), "h"(both)
                 : "memory");
}

/* All threads of the pair. */
__device__ __forceinline__ void pair_sync()
{
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ int pair_rank()
{
    uint32_t rank;

    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}

/* Named barriers of both groups: one waits, the other only passes by. */
__device__ __forceinline__ void turn_wait(int group)
{
    asm volatile("bar.sync %0, %1;" ::"r"(TURN + group), "n"(GROUPS * GROUP) : "memory");
}

__device__ __forceinline__ void turn_give(int group)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(TURN + group), "n"(GROUPS * GROUP) : "memory");
}

/* ---- products ---- */

/* Rows of 128 bytes, swizzled over eight of them: 1024 bytes from eight to eight. */
__device__ __forceinline__ uint64_t describe(uint32_t address)
{
    return (uint64_t)((address & 0x3ffffu) >> 4) | (uint64_t)1 << 16 |
           (uint64_t)(SWIZZLE_ALIGN >> 4) << 32 | (uint64_t)1 << 62;
}

/* Keeps the compiler from moving uses of d across. */
__device__ __forceinline__ void hold(int (&d)[NUMBERS])
{
#pragma unroll
    for (int i = 0; i < NUMBERS; i++)
        asm volatile("" : "+r"(d[i])::"memory");
}

__device__ __forceinline__ void hold(float (&d)[NUMBERS])
{
#pragma unroll
    for (int i = 0; i < NUMBERS; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* Queues one product of PART_ROWS x COLS x STEP, its last quarter apart. */
template <typename Codes>
__device__ __forceinline__ void start_part(typename Codes::number (&d)[NUMBERS], uint32_t x,
                                           uint32_t w)
{
    const uint64_t x_at = describe(x), w_at = describe(w);

    hold(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < STEP / 32; k++) { /* 32 bytes on, in units of 16 */
        Codes::multiply(d, x_at + 2 * k, w_at + 2 * k, k > 0);
        if (k >= STEP / 32 - 2)
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    }
}

/* All but the last `left` of what was queued is done. */
template <int left> __device__ __forceinline__ void wait_part()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

/* ---- the two roles ---- */

typedef struct {
    uint64_t full[STAGES], empty[STAGES];
} barriers;

/* Where in the ring: stage, and the parity of its present use. */
typedef struct {
    int stage;
    uint32_t parity;
} place;

__device__ __forceinline__ void advance(place &at)
{
    if (++at.stage == STAGES) {
        at.stage = 0;
        at.parity ^= 1;
    }
}

/* What there is to make: tiles, side by side in pairs. */
typedef struct {
    int row_tiles, col_pairs;
    int rank; /* of the block in its pair */
} grid;

/* Tile i of this block, if there is one. */
__device__ __forceinline__ bool find_tile(const grid &g, int64_t i, int *row, int *col)
{
    int pair;

    if (i >= (int64_t)g.row_tiles * g.col_pairs)
        return false;
    tile_at(i, g.row_tiles, g.col_pairs, row, &pair);
    *col = pair * PAIR + g.rank; /* perhaps one past the last: zeros, and nothing is stored */
    return true;
}

__device__ __forceinline__ void load(const sl_cuda_linear8 &l, const CUtensorMap *x_map,
                                     const CUtensorMap *w_map, uint32_t ring, barriers *b,
                                     const grid &g)
{
    const int steps = (int)(l.I / STEP), half = ROWS / PAIR * g.rank;
    place at = { 0, 0 };
    int row, col;

    for (int64_t i = blockIdx.x / PAIR; find_tile(g, i, &row, &col); i += gridDim.x / PAIR) {
        for (int step = 0; step < steps; step++) {
            const uint32_t to = ring + (uint32_t)(at.stage * STAGE_BYTES);

            barrier_wait(&b->empty[at.stage], at.parity ^ 1); /* the first round: at once */
            barrier_expect(&b->full[at.stage], STAGE_BYTES);
            copy_box_to_pair(to + (uint32_t)(half * STEP), x_map, step * STEP, row * ROWS + half,
                             &b->full[at.stage]);
            copy_box(to + X_BYTES, w_map, step * STEP, col * COLS, &b->full[at.stage]);
            advance(at);
        }
    }
}

/* Four outputs of row s from column o. */
template <typename TY>
__device__ __forceinline__ void store_four(const sl_cuda_linear8 &l, int64_t s, int64_t o,
                                           const float (&v)[4])
{
    TY *y = (TY *)l.y + s * l.O + o;

    if (l.O % 4 == 0 && sizeof(TY) == 4) {
        *(float4 *)y = make_float4(v[0], v[1], v[2], v[3]);
    } else if (l.O % 4 == 0) {
        *(uint2 *)y = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (o + i < l.O)
                y[i] = sl_from_f32<TY>(v[i]);
    }
}

/* A thread's numbers lie at rows lane / 4 and 8 below of its warp's 16, in columns
 * 8 j + lane % 4 * 2 and the next.  They go through shared memory, eight rows at a
 * time, so that a warp writes whole rows; columns are swapped there by 8 or 16 so
 * that four rows meet no bank twice. */
template <typename Codes, typename TY, sl_act act>
__device__ __forceinline__ void store(const sl_cuda_linear8 &l, const float (&sum)[PARTS][NUMBERS],
                                      float *staged, int64_t s0, int64_t o0)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP / 32, row = lane / 4;
    const int64_t o = o0 + lane * 4;
    float bias[4];

#pragma unroll
    for (int i = 0; i < 4; i++)
        bias[i] = bias_at<Codes>(l, o + i);
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int64_t s = s0 + part * PART_ROWS + warp * 16 + half * 8;

            __syncwarp();
#pragma unroll
            for (int j = 0; j < COLS / 8; j++) {
                const int col = (8 * j + lane % 4 * 2) ^ (row % 4 * 8);
                *(float2 *)(staged + row * COLS + col) =
                    make_float2(sum[part][4 * j + 2 * half], sum[part][4 * j + 2 * half + 1]);
            }
            __syncwarp();
#pragma unroll 2
            for (int r = 0; r < STAGED_ROWS; r++) {
                const float4 d = *(float4 *)(staged + r * COLS + (lane * 4 ^ r % 4 * 8));
                float v[4] = { d.x, d.y, d.z, d.w };

                Codes::finish(v, l.b != NULL, bias);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    v[i] = sl_act_apply(v[i], act);
                if (s + r < l.S && o < l.O)
                    store_four<TY>(l, s + r, o, v);
            }
        }
}

/* One tile's sums; x is the group's half of the first stage. */
template <typename Codes>
__device__ __forceinline__ void compute_tile(const sl_cuda_linear8 &l, float (&sum)[PARTS][NUMBERS],
                                             uint32_t ring, barriers *b, place &at, int group,
                                             int64_t s0, int col)
{
    const int steps = (int)(l.I / STEP);
    const int64_t s_lane = s0 + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4;
    const bool leads = threadIdx.x % 32 == 0; /* of its warp */
    const int last = (int)((l.O - 1) / COLS), w_tile = col < last ? col : last;

#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int n = 0; n < NUMBERS; n++)
            sum[part][n] = 0.0f;
    for (int step = 0; step < steps; step++) {
        const uint32_t x = ring + (uint32_t)(at.stage * STAGE_BYTES + group * GROUP_ROWS * STEP);
        const uint32_t w = ring + (uint32_t)(at.stage * STAGE_BYTES + X_BYTES);
        const float w_scale = Codes::w_scale(l, w_tile, step, steps);
        float scale[PARTS][2];

        scale[0][0] = __fmul_rn(Codes::x_scale(l, s_lane, step, steps), w_scale);
#pragma unroll
        for (int i = 1; i < 2 * PARTS; i++)
            scale[i / 2][i % 2] =
                Codes::row_scales
                    ? __fmul_rn(
                          Codes::x_scale(l, s_lane + i / 2 * PART_ROWS + i % 2 * 8, step, steps),
                          w_scale)
                    : scale[0][0];
        barrier_wait(&b->full[at.stage], at.parity);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            typename Codes::number d[NUMBERS];

            turn_wait(group);
            start_part<Codes>(d, x + part * PART_ROWS * STEP, w);
            wait_part<1>();
            turn_give(1 - group);
            wait_part<0>();
            hold(d);
            if (part == PARTS - 1 && leads)
                for (int rank = 0; rank < PAIR; rank++)
                    barrier_arrive(&b->empty[at.stage], rank);
#pragma unroll
            for (int n = 0; n < NUMBERS; n++)
                sum[part][n] = Codes::add(sum[part][n], d[n], scale[part][n / 2 % 2]);
        }
        advance(at);
    }
}

template <typename Codes, typename TY>
__device__ __forceinline__ void compute(const sl_cuda_linear8 &l, uint32_t ring, barriers *b,
                                        float *staged, int group, const grid &g)
{
    place at = { 0, 0 };
    int row, col;

    if (group == 1)
        turn_give(0);
    for (int64_t i = blockIdx.x / PAIR; find_tile(g, i, &row, &col); i += gridDim.x / PAIR) {
        float sum[PARTS][NUMBERS];

        const int64_t s0 = (int64_t)row * ROWS + group * GROUP_ROWS, o0 = (int64_t)col * COLS;
        compute_tile<Codes>(l, sum, ring, b, at, group, s0, col);
        if (l.act == SL_ACT_NONE)
            store<Codes, TY, SL_ACT_NONE>(l, sum, staged, s0, o0);
        else if (l.act == SL_ACT_GELU_TANH)
            store<Codes, TY, SL_ACT_GELU_TANH>(l, sum, staged, s0, o0);
        else
            store<Codes, TY, SL_ACT_SILU>(l, sum, staged, s0, o0);
    }
    if (group == 0)
        turn_wait(0); /* what group 1 gave last */
}

#endif

template <typename Codes, typename TY>
__global__ void __launch_bounds__(THREADS, 1)
    linear(const sl_cuda_linear8 l, const __grid_constant__ CUtensorMap x_map,
           const __grid_constant__ CUtensorMap w_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ barriers b;
    const uint32_t start = shared_address(shared);
    const uint32_t ring = (start + SWIZZLE_ALIGN - 1) & ~(uint32_t)(SWIZZLE_ALIGN - 1);
    const grid g = { (int)((l.S + ROWS - 1) / ROWS), (int)((l.O + PAIR * COLS - 1) / (PAIR * COLS)),
                     pair_rank() };

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&b.full[i], 1);
            barrier_init(&b.empty[i], PAIR * GROUPS * GROUP / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    pair_sync();
    if (threadIdx.x < GROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)LOADER_REGISTERS));
        if (threadIdx.x == 0)
            load(l, &x_map, &w_map, ring, &b, g);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)GROUP_REGISTERS));
        unsigned char *staged = shared + (ring - start) + STAGES * STAGE_BYTES +
                                (threadIdx.x - GROUP) / 32 * STAGED_BYTES;
        compute<Codes, TY>(l, ring, &b, (float *)staged, (int)threadIdx.x / GROUP - 1, g);
    }
    pair_sync(); /* nobody writes into a block that has ended */
#else
    (void)l, (void)x_map, (void)w_map;
    __trap(); /* chosen for sm_90 alone, whose code is built for sm_90a */
#endif
}

template <typename Codes, typename TY>
cudaError_t launch_as(cudaStream_t stream, const sl_cuda_linear8 *l,
                      const sl_cuda_linear8_maps *maps)
{
    const int64_t pairs = (l->S + ROWS - 1) / ROWS * ((l->O + PAIR * COLS - 1) / (PAIR * COLS));
    const int64_t most = maps->multiprocessors / PAIR;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute pair = {};
    cudaError_t error = cudaFuncSetAttribute(
        linear<Codes, TY>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);

    pair.id = cudaLaunchAttributeClusterDimension;
    pair.val.clusterDim.x = PAIR;
    pair.val.clusterDim.y = pair.val.clusterDim.z = 1;
    config.gridDim = dim3((unsigned)(PAIR * (pairs < most ? pairs : most)));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SHARED_BYTES;
    config.stream = stream;
    config.attrs = &pair;
    config.numAttrs = 1;
    if (error == cudaSuccess)
        error = cudaLaunchKernelEx(&config, linear<Codes, TY>, *l, maps->x, maps->w);
    return error == cudaSuccess ? cudaGetLastError() : error;
}

template <typename Codes>
cudaError_t launch(cudaStream_t stream, const sl_cuda_linear8 *l, const sl_cuda_linear8_maps *maps)
{
    if (l->S == 0 || l->O == 0)
        return cudaSuccess;
    return l->y_bf16 ? launch_as<Codes, __nv_bfloat16>(stream, l, maps)
                     : launch_as<Codes, float>(stream, l, maps);
}

} // namespace wgmma
} // namespace

#endif
