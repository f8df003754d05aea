/* SageSLA's attention over the kept blocks with the linear branch, on the matrix
 * instructions of sm_90a: heads of 128, blocks of 64 queries and 128 keys.
 *
 * One block of threads has a query block of a head: four warps that compute, and
 * one thread of a fifth that brings keys and values through the copy engine, two
 * blocks deep.  Two of these share a multiprocessor, so that while one multiplies
 * the other does the rest; either is bound by what comes out of the second cache,
 * 32 KB for a product of 64 x 128 x 256.
 *
 * 8-bit products want their inner dimension, the keys, to be contiguous, and v8 has
 * it outside: each block of values is transposed into another place.  On the way
 * the keys take the order in which a thread holds the weights: 4 bytes for the keys
 * 2t, 2t + 1, 2t + 8, 2t + 9 of every 16, t = lane % 4 (wan.md 5.4).
 *
 * A key block's product with the values starts anew and is added in f32: the sums
 * inside of the matrix unit are shorter than f32. */
#include "kernels/sla_plain.cuh"
#include "kernels/sla_wgmma.cuh"

namespace {

enum {
    ROWS = 64,  /* of a query block */
    KEYS = 128, /* of a key block */
    GROUP = 128,
    THREADS = GROUP + 32,
    STAGES = 2,
    TILE_BYTES = KEYS * HEAD,     /* of codes */
    QUERY_STRIP = ROWS * STRIP * 2, /* of the branch's queries */
    /* Query codes; keys and values of each stage; transposed values, two deep. */
    KEYS_AT = ROWS * HEAD,
    VALUES_AT = KEYS_AT + STAGES * TILE_BYTES,
    TURNED_AT = VALUES_AT + STAGES * TILE_BYTES,
    SHARED_BYTES = 1024 + TURNED_AT + 2 * TILE_BYTES,
    /* In the end keys are the state's image, values proj_w's. */
    STATE_AT = KEYS_AT,
    PROJ_AT = VALUES_AT,
    MEET = 1, /* a named barrier of the group */
};
static_assert(STAGES * TILE_BYTES == IMAGE_BYTES && 2 * QUERY_STRIP == TILE_BYTES,
              "the branch's operands take the places of keys, values and turned values");

struct args {
    __nv_bfloat16 *o;
    const float *q_scale, *k_scale, *v_scale;
    const int32_t *lut;
    const unsigned char *images; /* NULL: no branch */
    const float *z, *bias;       /* [N][z_stride], [HEAD] */
    int64_t S, width, z_stride;
    int keep, query_blocks, key_blocks;
    float scale_log2; /* positive */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

struct barriers {
    uint64_t queries, branch;
    uint64_t keys[STAGES], values[STAGES];           /* have come */
    uint64_t keys_done[STAGES], values_done[STAGES]; /* may be overwritten */
};

/* Where the branch's queries and the result lie: turned values that the last
 * product does not read. */
__device__ __forceinline__ uint32_t spare(const args &a, uint32_t shared)
{
    return shared + (uint32_t)(TURNED_AT + a.keep % 2 * TILE_BYTES);
}

__device__ __forceinline__ void bring(const args &a, const CUtensorMap *q8, const CUtensorMap *k8,
                                      const CUtensorMap *v8, const CUtensorMap *q, uint32_t shared,
                                      barriers *b)
{
    const int head = blockIdx.y * HEAD, row = blockIdx.x * ROWS;
    const int32_t *lut = a.lut + ((int64_t)blockIdx.y * a.query_blocks + blockIdx.x) * a.keep;
    int at = 0;

    barrier_expect(&b->queries, ROWS * HEAD);
    copy_box(shared, q8, head, row, &b->queries);
    for (; at < a.keep; at++) {
        const int stage = at % STAGES, first = lut[at] * KEYS;
        const uint32_t parity = at / STAGES % 2 ^ 1; /* the first round: at once */

        barrier_wait(&b->keys_done[stage], parity);
        barrier_expect(&b->keys[stage], TILE_BYTES);
        copy_box(shared + (uint32_t)(KEYS_AT + stage * TILE_BYTES), k8, head, first,
                 &b->keys[stage]);
        barrier_wait(&b->values_done[stage], parity);
        barrier_expect(&b->values[stage], TILE_BYTES);
        copy_box(shared + (uint32_t)(VALUES_AT + stage * TILE_BYTES), v8, head, first,
                 &b->values[stage]);
    }
    if (!a.images)
        return;
    for (int i = 0; i < STAGES; i++, at++) { /* until nobody reads any of them */
        barrier_wait(&b->keys_done[at % STAGES], at / STAGES % 2 ^ 1);
        barrier_wait(&b->values_done[at % STAGES], at / STAGES % 2 ^ 1);
    }
    barrier_expect(&b->branch, 2 * IMAGE_BYTES + 2 * QUERY_STRIP);
    copy_bytes(shared + STATE_AT, sl_image_of_state(a.images, blockIdx.y), IMAGE_BYTES, &b->branch);
    copy_bytes(shared + PROJ_AT, a.images, IMAGE_BYTES, &b->branch);
    copy_box(spare(a, shared), q, head, row, &b->branch);
    copy_box(spare(a, shared) + QUERY_STRIP, q, head + STRIP, row, &b->branch);
}

/* Queues s = queries . keys^T. */
__device__ __forceinline__ void start_scores(int (&s)[KEYS / 8][4], uint32_t queries, uint32_t keys)
{
    const uint64_t q = describe_rows(queries), k = describe_rows(keys);

    hold(s);
    group_begin();
#pragma unroll
    for (int i = 0; i < HEAD / 32; i++)
        multiply_codes(s, q + 2 * i, k + 2 * i, i > 0);
    group_commit();
}

/* turned [HEAD, KEYS] = values [KEYS, HEAD]; a warp has a quarter of the columns. */
__device__ __forceinline__ void turn(uint32_t turned, uint32_t values)
{
    const int lane = threadIdx.x % 32, quarter = threadIdx.x / 32;
    const int from_row = lane % 16, from_unit = lane / 16;
    /* Matrices to store: even and odd columns of 16, for this and the next 16 keys. */
    const int to_row = lane % 8 * 2 + lane / 8 % 2, to_unit = lane / 16;

#pragma unroll
    for (int unit = 0; unit < 2; unit++) /* of 16 columns */
#pragma unroll
        for (int keys = 0; keys < KEYS; keys += 32) {
            const int column = (quarter * 2 + unit) * 16;
            uint32_t x[4], y[4];

            /* keys 0 to 7, 8 to 15 of both halves: x[2 * half + 0 or 1] */
            load_matrix_transposed(
                x, unit_address<128>(values, keys + from_row + from_unit * 16, column / 16));
#pragma unroll
            for (int half = 0; half < 2; half++) {
                y[2 * half] = __byte_perm(x[2 * half], x[2 * half + 1], 0x6420);
                y[2 * half + 1] = __byte_perm(x[2 * half], x[2 * half + 1], 0x7531);
            }
            asm volatile(
                "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                    unit_address<128>(turned, column + to_row, keys / 16 + to_unit)),
                "r"(y[0]), "r"(y[1]), "r"(y[2]), "r"(y[3])
                : "memory");
        }
}

/* Four weights in e4m3, the first in the lowest byte. */
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d)
{
    uint32_t packed;

    asm("{\n\t"
        ".reg .b16 low, high;\n\t"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n\t"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n\t"
        "mov.b32 %0, {low, high};\n\t"
        "}"
        : "=r"(packed)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
}

/* Integer scores of the warp's rows to weights, against the running maximum; kept:
 * what the sums so far are to be multiplied with. */
__device__ __forceinline__ void weigh(uint32_t (&p)[KEYS / 32][4], const int (&s)[KEYS / 8][4],
                                      float (&top)[2], float (&sum)[2], float (&kept)[2], float by,
                                      int valid)
{
    constexpr float p_exponent = 8.807f; /* the largest P is close to 448 */
    const int column = threadIdx.x % 4 * 2;
    float w[KEYS / 8][4], most[2] = { -INFINITY, -INFINITY }, base[2];

    /* The bits of 1.5 * 2^23 make a float of an integer at the rate of additions. */
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[j][i] = __int_as_float(s[j][i] + 0x4b400000) - 12582912.0f;
    if (valid < KEYS) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (j * 8 + column + i % 2 >= valid)
                    w[j][i] = -INFINITY;
    }
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            most[i / 2] = fmaxf(most[i / 2], w[j][i]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float now = fmaxf(top[i], quad_max(most[i]) * by);
        kept[i] = fast_exp2(top[i] - now);
        base[i] = p_exponent - now;
        sum[i] *= kept[i];
        top[i] = now;
    }
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[j][i] = fast_exp2(fmaf(w[j][i], by, base[i / 2]));
            sum[i / 2] += w[j][i];
        }
#pragma unroll
    for (int j = 0; j < KEYS / 8; j += 2)
#pragma unroll
        for (int i = 0; i < 2; i++)
            p[j / 4][j % 4 + i] = pack_e4m3(w[j][2 * i], w[j][2 * i + 1], w[j + 1][2 * i],
                                            w[j + 1][2 * i + 1]);
}

/* o = the product over the sum, as bf16, plus the branch as bf16. */
__device__ __forceinline__ void finish(float (&o)[HEAD / 8][4], const float (&sum)[2],
                                       const args &a, uint32_t shared, barriers *b)
{
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16, t = lane % 4;
    float branch[HEAD / 8][4];
    uint32_t x[HEAD / 16][4];

#pragma unroll
    for (int j = 0; j < HEAD / 8; j++) {
        const float2 v = *(const float2 *)(a.v_scale + blockIdx.y * HEAD + j * 8 + t * 2);
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[j][i] = rounded_bf16(o[j][i] * sum[i / 2] * (i % 2 ? v.y : v.x));
    }
    if (!a.images)
        return;
    barrier_wait(&b->branch, 0);
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++)
        load_matrix(x[i], strip_unit<QUERY_STRIP>(spare(a, shared), row + lane % 16,
                                                  2 * i + lane / 16));
    run_branch_group(branch, x, shared + STATE_AT, shared + PROJ_AT,
                     a.z + blockIdx.y * a.z_stride);
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++) {
        const float2 bias = *(const float2 *)(a.bias + j * 8 + t * 2);
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[j][i] += rounded_bf16(branch[j][i] + (i % 2 ? bias.y : bias.x));
    }
}

__device__ __forceinline__ void attend(const args &a, uint32_t shared, barriers *b)
{
    const int64_t query_block = (int64_t)blockIdx.y * a.query_blocks + blockIdx.x;
    const int32_t *lut = a.lut + query_block * a.keep;
    const float *k_scale = a.k_scale + (int64_t)blockIdx.y * a.key_blocks;
    const float q_scale = a.q_scale[query_block];
    const bool leads = threadIdx.x % 32 == 0; /* of its warp */
    float o[HEAD / 8][4], top[2] = { -INFINITY, -INFINITY }, sum[2] = {}, kept[2];

#pragma unroll
    for (int i = 0; i < HEAD / 2; i++)
        o[i / 4][i % 4] = 0.0f;
    barrier_wait(&b->queries, 0);
    for (int at = 0; at < a.keep; at++) {
        const int stage = at % STAGES, block = lut[at];
        const uint32_t parity = at / STAGES % 2;
        const uint32_t turned = shared + (uint32_t)(TURNED_AT + at % 2 * TILE_BYTES);
        const float by = q_scale * k_scale[block] * a.scale_log2;
        const int valid = (int)min((int64_t)KEYS, a.S - (int64_t)block * KEYS);
        uint32_t p[KEYS / 32][4];

        {
            int s[KEYS / 8][4];
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++)
                s[i / 4][i % 4] = 0;
            barrier_wait(&b->keys[stage], parity);
            start_scores(s, shared, shared + (uint32_t)(KEYS_AT + stage * TILE_BYTES));
            barrier_wait(&b->values[stage], parity);
            /* Read last by the product before the one before, which all warps have
             * awaited since they met for that one. */
            turn(turned, shared + (uint32_t)(VALUES_AT + stage * TILE_BYTES));
            publish_shared();
            __syncwarp(); /* every lane has read its part */
            if (leads)
                barrier_arrive(&b->values_done[stage]);
            group_wait<0>();
            hold(s);
            if (leads)
                barrier_arrive(&b->keys_done[stage]);
            weigh(p, s, top, sum, kept, by, valid);
        }
        float part[HEAD / 8][4];
        const uint64_t v = describe_rows(turned);
#pragma unroll
        for (int i = 0; i < HEAD / 2; i++)
            part[i / 4][i % 4] = 0.0f;
        named_wait<GROUP>(MEET); /* all of the values are turned */
        hold(part);
        hold(p);
        group_begin();
#pragma unroll
        for (int i = 0; i < KEYS / 32; i++)
            multiply_e4m3(part, p[i], v + 2 * i, i > 0);
        group_commit();
#pragma unroll
        for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o[j][i] *= kept[i / 2];
        group_wait<0>();
        hold(part);
        hold(p);
#pragma unroll
        for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o[j][i] += part[j][i];
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
        sum[i] = 1.0f / quad_sum(sum[i]);
    finish(o, sum, a, shared, b);
    store_rows<QUERY_STRIP>(a.o + blockIdx.y * HEAD, a.width, (int64_t)blockIdx.x * ROWS, a.S, o,
                            spare(a, shared), threadIdx.x / 32 * 16);
}

#endif

__global__ void __launch_bounds__(THREADS, 2)
    sage_wgmma(const args a, const __grid_constant__ CUtensorMap q8,
               const __grid_constant__ CUtensorMap k8, const __grid_constant__ CUtensorMap v8,
               const __grid_constant__ CUtensorMap q)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ unsigned char shared[];
    __shared__ barriers b;
    const uint32_t base = (shared_address(shared) + 1023u) & ~1023u;

    if (threadIdx.x == 0) {
        barrier_init(&b.queries, 1);
        barrier_init(&b.branch, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&b.keys[i], 1);
            barrier_init(&b.values[i], 1);
            barrier_init(&b.keys_done[i], GROUP / 32);
            barrier_init(&b.values_done[i], GROUP / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        publish_shared();
    }
    __syncthreads();
    if (threadIdx.x == GROUP)
        bring(a, &q8, &k8, &v8, &q, base, &b);
    else if (threadIdx.x < GROUP)
        attend(a, base, &b);
#else
    (void)a, (void)q8, (void)k8, (void)v8, (void)q;
    __trap(); /* chosen for sm_90 alone, whose code is built for sm_90a */
#endif
}

} // namespace

extern "C" cudaError_t sl_cuda_sage_attention_wgmma(cudaStream_t stream, const sl_cuda_sage *from,
                                                    const sl_cuda_sage_maps *maps,
                                                    const sl_cuda_images *images)
{
    args a = {};
    const cudaError_t error = cudaFuncSetAttribute(
        sage_wgmma, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);

    if (error != cudaSuccess)
        return error;
    a.o = (__nv_bfloat16 *)from->o;
    a.q_scale = from->q_scale;
    a.k_scale = from->k_scale;
    a.v_scale = from->v_scale;
    a.lut = from->lut;
    a.images = images->images;
    a.z = images->z;
    a.bias = images->bias;
    a.S = from->S;
    a.width = from->N * HEAD;
    a.z_stride = images->z_stride;
    a.keep = (int)from->keep;
    a.query_blocks = (int)((from->S + ROWS - 1) / ROWS);
    a.key_blocks = (int)((from->S + KEYS - 1) / KEYS);
    a.scale_log2 = from->scale * 1.44269504088896341f;
    sage_wgmma<<<dim3((unsigned)a.query_blocks, (unsigned)from->N), THREADS, SHARED_BYTES,
                 stream>>>(a, maps->q8, maps->k8, maps->v8, maps->q);
    return cudaGetLastError();
}
