/* linear_int8 on the matrix instructions of sm_90a.
 *
 * A block stays on its multiprocessor and makes one tile of 256 x 128 after the
 * other.  One thread brings steps of 128 along I, of both operands, through the
 * copy engine into a ring of STAGES; two groups of four warps each make 128 rows,
 * 64 at a time: a product of 64 x 128 x 128 in i32, then its 64 numbers of a thread
 * into the f32 sums.  These two halves take about as long as each other, so the
 * groups take turns: while one multiplies, the other adds.
 *
 * Registers, of a thread in those groups: 128 f32 sums and 64 i32 numbers.
 */
#include "kernels/linear_int8.cuh"

namespace
{

enum {
    STEP = SL_INT8_STEP,
    ROWS = SL_CUDA_INT8_X_ROWS,
    COLS = SL_CUDA_INT8_W_ROWS,
    GROUP = 128, /* threads that multiply together */
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
    SHARED_BYTES = SWIZZLE_ALIGN + STAGES * STAGE_BYTES,
    LOADER_REGISTERS = 40,
    GROUP_REGISTERS = 232,
    TURN = 1, /* the first of GROUPS named barriers; 0 is __syncthreads */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* ---- barriers and copies ---- */

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void barrier_init(uint64_t *barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
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

/* d = more ? d + x . w^T : x . w^T, 64 x 128 x 32. */
__device__ __forceinline__ void multiply(int (&d)[NUMBERS], uint64_t x, uint64_t w, int more)
{
    asm volatile(
        "{\n\t"
        ".reg .pred p;\n\t"
        "setp.ne.b32 p, %66, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p;\n\t"
        "}"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
          "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
          "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
          "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
          "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]),
          "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]),
          "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]),
          "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
          "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]),
          "+r"(d[63])
        : "l"(x), "l"(w), "r"(more));
}

/* Keeps the compiler from moving uses of d across. */
__device__ __forceinline__ void hold(int (&d)[NUMBERS])
{
#pragma unroll
    for (int i = 0; i < NUMBERS; i++)
        asm volatile("" : "+r"(d[i])::"memory");
}

/* Queues one product of PART_ROWS x COLS x STEP. */
__device__ __forceinline__ void start_part(int (&d)[NUMBERS], uint32_t x, uint32_t w)
{
    const uint64_t x_at = describe(x), w_at = describe(w);

    hold(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < STEP / 32; k++) /* 32 bytes on, in units of 16 */
        multiply(d, x_at + 2 * k, w_at + 2 * k, k > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void end_part(int (&d)[NUMBERS])
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    hold(d);
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

__device__ __forceinline__ void load(const sl_cuda_linear_int8 &l, const CUtensorMap *x_map,
                                     const CUtensorMap *w_map, uint32_t ring, barriers *b,
                                     int row_tiles, int col_tiles)
{
    const int steps = (int)(l.I / STEP);
    place at = { 0, 0 };

    for (int64_t i = blockIdx.x; i < (int64_t)row_tiles * col_tiles; i += gridDim.x) {
        int row, col;

        sl_int8_tile(i, row_tiles, col_tiles, &row, &col);
        for (int step = 0; step < steps; step++) {
            const uint32_t to = ring + (uint32_t)(at.stage * STAGE_BYTES);

            barrier_wait(&b->empty[at.stage], at.parity ^ 1); /* the first round: at once */
            barrier_expect(&b->full[at.stage], STAGE_BYTES);
            copy_box(to, x_map, step * STEP, row * ROWS, &b->full[at.stage]);
            copy_box(to + X_BYTES, w_map, step * STEP, col * COLS, &b->full[at.stage]);
            advance(at);
        }
    }
}

/* A thread's numbers lie at rows lane / 4 and 8 below of its warp's 16, in columns
 * 8 j + lane % 4 * 2 and the next. */
template <typename TY, sl_act act>
__device__ __forceinline__ void store(const sl_cuda_linear_int8 &l,
                                      const float (&sum)[PARTS][NUMBERS], int64_t s0, int64_t o0)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP / 32;
    const bool biased = l.b != NULL;

#pragma unroll
    for (int j = 0; j < COLS / 8; j++) {
        const int64_t o = o0 + 8 * j + lane % 4 * 2;
        const float bias0 = biased && o < l.O ? sl_int8_bias(l, o) : 0.0f;
        const float bias1 = biased && o + 1 < l.O ? sl_int8_bias(l, o + 1) : 0.0f;
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int64_t s = s0 + part * PART_ROWS + warp * 16 + half * 8 + lane / 4;
                const int at = 4 * j + 2 * half;
                if (s < l.S && o < l.O)
                    sl_int8_store<TY>(l, s, o, sl_int8_finish<act>(sum[part][at], biased, bias0),
                                      sl_int8_finish<act>(sum[part][at + 1], biased, bias1));
            }
    }
}

template <typename TY>
__device__ __forceinline__ void compute(const sl_cuda_linear_int8 &l, uint32_t ring, barriers *b,
                                        int group, int row_tiles, int col_tiles)
{
    const int steps = (int)(l.I / STEP);
    const int last_scale = (int)((l.S - 1) / STEP);
    const bool leads = threadIdx.x % 32 == 0; /* of its warp */
    place at = { 0, 0 };

    if (group == 1)
        turn_give(0);
    for (int64_t i = blockIdx.x; i < (int64_t)row_tiles * col_tiles; i += gridDim.x) {
        float sum[PARTS][NUMBERS];
        int row, col;

        sl_int8_tile(i, row_tiles, col_tiles, &row, &col);
        /* rows that are not there have no scale: any will do */
        const int x_at = min(row * GROUPS + group, last_scale);
        const float *x_scale = l.x_scale + (int64_t)x_at * steps;
        const float *w_scale = l.w_scale + (int64_t)col * steps;
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int n = 0; n < NUMBERS; n++)
                sum[part][n] = 0.0f;
        for (int step = 0; step < steps; step++) {
            const uint32_t x =
                ring + (uint32_t)(at.stage * STAGE_BYTES + group * GROUP_ROWS * STEP);
            const uint32_t w = ring + (uint32_t)(at.stage * STAGE_BYTES + X_BYTES);
            const float scale = __fmul_rn(__ldg(x_scale + step), __ldg(w_scale + step));

            barrier_wait(&b->full[at.stage], at.parity);
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                int d[NUMBERS];

                turn_wait(group);
                start_part(d, x + part * PART_ROWS * STEP, w);
                turn_give(1 - group);
                end_part(d);
                if (part == PARTS - 1 && leads)
                    barrier_arrive(&b->empty[at.stage]);
#pragma unroll
                for (int n = 0; n < NUMBERS; n++)
                    sum[part][n] = sl_int8_add(sum[part][n], d[n], scale);
            }
            advance(at);
        }
        const int64_t s0 = (int64_t)row * ROWS + group * GROUP_ROWS, o0 = (int64_t)col * COLS;
        if (l.act == SL_ACT_NONE)
            store<TY, SL_ACT_NONE>(l, sum, s0, o0);
        else if (l.act == SL_ACT_GELU_TANH)
            store<TY, SL_ACT_GELU_TANH>(l, sum, s0, o0);
        else
            store<TY, SL_ACT_SILU>(l, sum, s0, o0);
    }
    if (group == 0)
        turn_wait(0); /* what group 1 gave last */
}

#endif

template <typename TY>
__global__ void __launch_bounds__(THREADS, 1)
    linear_wgmma(const sl_cuda_linear_int8 l, const __grid_constant__ CUtensorMap x_map,
                 const __grid_constant__ CUtensorMap w_map)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ unsigned char shared[];
    __shared__ barriers b;
    const uint32_t ring =
        (shared_address(shared) + SWIZZLE_ALIGN - 1) & ~(uint32_t)(SWIZZLE_ALIGN - 1);
    const int row_tiles = (int)((l.S + ROWS - 1) / ROWS);
    const int col_tiles = (int)((l.O + COLS - 1) / COLS);

    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&b.full[i], 1);
            barrier_init(&b.empty[i], GROUPS * GROUP / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)LOADER_REGISTERS));
        if (threadIdx.x == 0)
            load(l, &x_map, &w_map, ring, &b, row_tiles, col_tiles);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)GROUP_REGISTERS));
        compute<TY>(l, ring, &b, (int)threadIdx.x / GROUP - 1, row_tiles, col_tiles);
    }
#else
    (void)l, (void)x_map, (void)w_map;
    __trap(); /* chosen for sm_90 alone, whose code is built for sm_90a */
#endif
}

template <typename TY>
cudaError_t launch(cudaStream_t stream, const sl_cuda_linear_int8 *l, const CUtensorMap *x_map,
                   const CUtensorMap *w_map, int multiprocessors)
{
    const int64_t tiles = (l->S + ROWS - 1) / ROWS * ((l->O + COLS - 1) / COLS);
    const cudaError_t error = cudaFuncSetAttribute(
        linear_wgmma<TY>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);

    if (error != cudaSuccess)
        return error;
    linear_wgmma<TY><<<(unsigned)(tiles < multiprocessors ? tiles : multiprocessors), THREADS,
                       SHARED_BYTES, stream>>>(*l, *x_map, *w_map);
    return cudaGetLastError();
}

} // namespace

extern "C" cudaError_t sl_cuda_linear_int8_wgmma(cudaStream_t stream, const sl_cuda_linear_int8 *l,
                                                 const CUtensorMap *x_map, const CUtensorMap *w_map,
                                                 int multiprocessors)
{
    if (l->S == 0 || l->O == 0)
        return cudaSuccess;
    return l->y_bf16 ? launch<__nv_bfloat16>(stream, l, x_map, w_map, multiprocessors)
                     : launch<float>(stream, l, x_map, w_map, multiprocessors);
}
