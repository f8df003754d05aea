/* Attention over the kept blocks with the linear branch, on the matrix
 * instructions of sm_90a: bf16, heads of 128, blocks of 128 queries and 64 keys.
 *
 * One block of threads has a query block of a head.  One thread of the first group
 * brings two kept blocks of keys at a time through the copy engine, two such tiles
 * deep, and the images of the branch's operands.  Two groups of four warps have 64
 * rows each: while the values of one tile are weighed, the scores of the next
 * become weights, and the groups take turns at queueing products.
 *
 * Registers, of a thread in those groups: 64 sums, 64 scores, 32 weights. */
#include "kernels/sla_wgmma.cuh"

namespace {

enum {
    ROWS = 128,      /* of a query block */
    KEYS = 64,       /* of a key block */
    TILE = 2 * KEYS, /* keys of a tile */
    GROUP = 128,     /* threads that multiply together */
    GROUPS = 2,
    THREADS = (1 + GROUPS) * GROUP,
    STRIP_BYTES = IMAGE_STRIP, /* of queries, keys and values too: all have 128 rows */
    TILE_BYTES = IMAGE_BYTES,
    BOX_BYTES = KEYS * 128, /* half a strip */
    STAGES = 2,
    /* Queries; keys and values of each stage; state, proj_w. */
    VALUES_AT = TILE_BYTES,
    STAGES_AT = TILE_BYTES,
    BRANCH_AT = STAGES_AT + STAGES * 2 * TILE_BYTES,
    SHARED_BYTES = 1024 + BRANCH_AT + 2 * IMAGE_BYTES,
    LOADER_REGISTERS = 24,
    GROUP_REGISTERS = 240,
    TURN = 1, /* the first of GROUPS named barriers */
    MEET = TURN + GROUPS,
};

struct args {
    __nv_bfloat16 *o;
    const int32_t *lut;
    const unsigned char *images; /* NULL: no branch */
    const float *z, *bias;       /* [N][z_stride], [HEAD] */
    int64_t S, width, z_stride;
    int keep, query_blocks;
    float scale_log2; /* positive */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

struct barriers {
    uint64_t queries, branch;
    uint64_t keys[STAGES], values[STAGES];           /* have come */
    uint64_t keys_done[STAGES], values_done[STAGES]; /* may be overwritten */
    float unread[GROUPS * GROUP / 32];
};

/* ---- the first group ---- */

/* A box for each strip. */
__device__ __forceinline__ void copy_block(uint32_t to, const CUtensorMap *map, int head, int row,
                                           uint64_t *barrier)
{
    copy_box(to, map, head, row, barrier);
    copy_box(to + STRIP_BYTES, map, head + STRIP, row, barrier);
}

__device__ __forceinline__ void bring(const args &a, const CUtensorMap *q, const CUtensorMap *k,
                                      const CUtensorMap *v, uint32_t shared, barriers *b)
{
    const int head = blockIdx.y * HEAD, row = blockIdx.x * ROWS, tiles = (a.keep + 1) / 2;
    const int32_t *lut = a.lut + ((int64_t)blockIdx.y * a.query_blocks + blockIdx.x) * a.keep;

    barrier_expect(&b->queries, TILE_BYTES);
    copy_block(shared, q, head, row, &b->queries);
    copy_block(shared + BOX_BYTES, q, head, row + KEYS, &b->queries);
    for (int tile = 0; tile < tiles; tile++) {
        const int stage = tile % STAGES;
        const uint32_t parity = tile / STAGES % 2 ^ 1; /* the first round: at once */
        const uint32_t keys = shared + (uint32_t)(STAGES_AT + stage * 2 * TILE_BYTES);
        const int first = lut[2 * tile] * KEYS;
        /* With an odd number the last comes twice; the second one has no weight. */
        const int second = 2 * tile + 1 < a.keep ? lut[2 * tile + 1] * KEYS : first;

        barrier_wait(&b->keys_done[stage], parity);
        barrier_expect(&b->keys[stage], TILE_BYTES);
        copy_block(keys, k, head, first, &b->keys[stage]);
        copy_block(keys + BOX_BYTES, k, head, second, &b->keys[stage]);
        barrier_wait(&b->values_done[stage], parity);
        barrier_expect(&b->values[stage], TILE_BYTES);
        copy_block(keys + VALUES_AT, v, head, first, &b->values[stage]);
        copy_block(keys + VALUES_AT + BOX_BYTES, v, head, second, &b->values[stage]);
        if (tile == 0 && a.images) {
            barrier_expect(&b->branch, 2 * IMAGE_BYTES);
            copy_bytes(shared + BRANCH_AT, sl_image_of_state(a.images, blockIdx.y), IMAGE_BYTES,
                       &b->branch);
            copy_bytes(shared + BRANCH_AT + IMAGE_BYTES, a.images, IMAGE_BYTES, &b->branch);
        }
    }
}

/* ---- the other groups ---- */

/* Queues s = queries . keys^T. */
__device__ __forceinline__ void start_scores(float (&s)[TILE / 8][4], uint32_t queries,
                                             uint32_t keys)
{
    const uint64_t q = describe_rows(queries), k = describe_rows(keys);

    hold(s);
    group_begin();
#pragma unroll
    for (int i = 0; i < HEAD / 16; i++) {
        const uint64_t step = i / 4 * (STRIP_BYTES / 16) + i % 4 * 2;
        multiply_rows(s, q + step, k + step, i > 0);
    }
    group_commit();
}

/* Scores to weights, in place; kept: what the sums so far are to be multiplied
 * with. */
__device__ __forceinline__ void weigh(float (&s)[TILE / 8][4], float (&top)[2], float (&sum)[2],
                                      float (&kept)[2], float scale_log2)
{
    float now[2] = { top[0], top[1] }, base[2];

#pragma unroll
    for (int j = 0; j < TILE / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            now[i / 2] = fmaxf(now[i / 2], s[j][i]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        now[i] = quad_max(now[i]);
        kept[i] = fast_exp2((top[i] - now[i]) * scale_log2);
        base[i] = now[i] * scale_log2;
        sum[i] *= kept[i];
        top[i] = now[i];
    }
#pragma unroll
    for (int j = 0; j < TILE / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[j][i] = fast_exp2(fmaf(s[j][i], scale_log2, -base[i / 2]));
            sum[i / 2] += s[j][i];
        }
}

/* What x is made of is computed before the wait that follows: the assembler moves
 * arithmetic behind it, where it no longer overlaps with a product, but not a
 * store.  Nobody reads it; one lane of a warp writes. */
__device__ __forceinline__ void stay_before(float *unread, float x, bool writes)
{
    asm volatile("{\n\t"
                 ".reg .pred p;\n\t"
                 "setp.ne.b32 p, %2, 0;\n\t"
                 "@p st.shared.f32 [%0], %1;\n\t"
                 "}" ::"r"(shared_address(unread)),
                 "f"(x), "r"((int)writes)
                 : "memory");
}

/* How many keys of a tile's two blocks there are; a block that is not there has
 * none. */
__device__ __forceinline__ void count_keys(int (&left)[2], const args &a, const int32_t *lut,
                                           int tile)
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        left[i] = 2 * tile + i < a.keep
                      ? (int)min((int64_t)KEYS, a.S - (int64_t)lut[2 * tile + i] * KEYS)
                      : 0;
}

__device__ __forceinline__ void mask(float (&s)[TILE / 8][4], const int (&left)[2])
{
    const int column = threadIdx.x % 4 * 2;

    if (left[0] == KEYS && left[1] == KEYS)
        return;
#pragma unroll
    for (int j = 0; j < TILE / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (j % 8 * 8 + column + i % 2 >= left[j / 8])
                s[j][i] = -INFINITY;
}

/* o += the linear branch. */
__device__ __forceinline__ void add_branch(float (&o)[HEAD / 8][4], const args &a, uint32_t queries,
                                           int row, uint32_t images)
{
    const int lane = threadIdx.x % 32;
    float branch[HEAD / 8][4];
    uint32_t x[HEAD / 16][4];

#pragma unroll
    for (int i = 0; i < HEAD / 16; i++)
        load_matrix(x[i], strip_unit<STRIP_BYTES>(queries, row + lane % 16, 2 * i + lane / 16));
    run_branch_group(branch, x, images, images + IMAGE_BYTES, a.z + blockIdx.y * a.z_stride);
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++) {
        const float2 bias = *(const float2 *)(a.bias + j * 8 + lane % 4 * 2);
        o[j][0] += branch[j][0] + bias.x;
        o[j][1] += branch[j][1] + bias.y;
        o[j][2] += branch[j][2] + bias.x;
        o[j][3] += branch[j][3] + bias.y;
    }
}

__device__ __forceinline__ void attend(const args &a, unsigned char *base, barriers *b, int group)
{
    const int tiles = (a.keep + 1) / 2, row = group * 64 + threadIdx.x % GROUP / 32 * 16;
    const int32_t *lut = a.lut + ((int64_t)blockIdx.y * a.query_blocks + blockIdx.x) * a.keep;
    const bool leads = threadIdx.x % 32 == 0; /* of its warp */
    const uint32_t queries = shared_address(base), own = queries + (uint32_t)(group * 64 * 128);
    const uint32_t stages = queries + STAGES_AT;
    float o[HEAD / 8][4], s[TILE / 8][4], top[2] = { -INFINITY, -INFINITY }, sum[2] = {}, kept[2];
    uint32_t p[TILE / 16][4];
    int left[2];

    count_keys(left, a, lut, 0);
#pragma unroll
    for (int i = 0; i < HEAD / 2; i++)
        o[i / 4][i % 4] = s[i / 4][i % 4] = 0.0f;
    if (group == 1)
        named_pass<GROUPS * GROUP>(TURN);
    barrier_wait(&b->queries, 0);
    barrier_wait(&b->keys[0], 0);
    named_wait<GROUPS * GROUP>(TURN + group);
    start_scores(s, own, stages);
    named_pass<GROUPS * GROUP>(TURN + 1 - group);
    group_wait<0>();
    hold(s);
    if (leads)
        barrier_arrive(&b->keys_done[0]);
    mask(s, left);
    weigh(s, top, sum, kept, a.scale_log2);
    pack(p, s);
    for (int tile = 1; tile < tiles; tile++) {
        const int stage = tile % STAGES, before = (tile - 1) % STAGES;

        count_keys(left, a, lut, tile);
        barrier_wait(&b->keys[stage], tile / STAGES % 2);
        named_wait<GROUPS * GROUP>(TURN + group);
        start_scores(s, own, stages + (uint32_t)(stage * 2 * TILE_BYTES));
        barrier_wait(&b->values[before], (tile - 1) / STAGES % 2);
        start_values(o, p, stages + (uint32_t)(before * 2 * TILE_BYTES + VALUES_AT));
        named_pass<GROUPS * GROUP>(TURN + 1 - group);
        group_wait<1>();
        hold(s);
        if (leads)
            barrier_arrive(&b->keys_done[stage]);
        mask(s, left);
        weigh(s, top, sum, kept, a.scale_log2);
        stay_before(&b->unread[threadIdx.x / 32 - GROUP / 32], sum[0] + sum[1], leads);
        group_wait<0>();
        hold(o);
        hold(p); /* read until here */
        if (leads)
            barrier_arrive(&b->values_done[before]);
#pragma unroll
        for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                o[j][i] *= kept[i / 2];
        pack(p, s);
    }
    barrier_wait(&b->values[(tiles - 1) % STAGES], (tiles - 1) / STAGES % 2);
    start_values(o, p,
                 stages + (uint32_t)((tiles - 1) % STAGES * 2 * TILE_BYTES + VALUES_AT));
    group_wait<0>();
    hold(o);
    if (group == 0)
        named_wait<GROUPS * GROUP>(TURN); /* what group 1 gave last */
#pragma unroll
    for (int i = 0; i < 2; i++)
        sum[i] = __fdividef(1.0f, quad_sum(sum[i]));
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            o[j][i] *= sum[i / 2];
    if (a.images) {
        barrier_wait(&b->branch, 0);
        add_branch(o, a, queries, row, queries + BRANCH_AT);
    }
    named_wait<GROUPS * GROUP>(MEET); /* no product reads queries any more */
    store_rows<STRIP_BYTES>(a.o + blockIdx.y * HEAD, a.width, (int64_t)blockIdx.x * ROWS, a.S, o,
                            queries, row);
}

#endif

__global__ void __launch_bounds__(THREADS, 1)
    sparse_wgmma(const args a, const __grid_constant__ CUtensorMap q,
                 const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ unsigned char shared[];
    __shared__ barriers b;
    unsigned char *base = shared + (0u - shared_address(shared)) % 1024u;

    if (threadIdx.x == 0) {
        barrier_init(&b.queries, 1);
        barrier_init(&b.branch, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(&b.keys[i], 1);
            barrier_init(&b.values[i], 1);
            barrier_init(&b.keys_done[i], GROUPS * GROUP / 32);
            barrier_init(&b.values_done[i], GROUPS * GROUP / 32);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        publish_shared();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int)LOADER_REGISTERS));
        if (threadIdx.x == 0)
            bring(a, &q, &k, &v, shared_address(base), &b);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int)GROUP_REGISTERS));
        attend(a, base, &b, (int)threadIdx.x / GROUP - 1);
    }
#else
    (void)a, (void)q, (void)k, (void)v;
    __trap(); /* chosen for sm_90 alone, whose code is built for sm_90a */
#endif
}

/* Block 0: proj_w and, as f32, proj_b; block 1 + n: the state of head n. */
__global__ void make_images(unsigned char *images, float *bias, const sl_cuda_branch branch)
{
    const float *state = branch.state + ((int64_t)blockIdx.x - 1) * (HEAD + 1) * HEAD;
    const bool proj = blockIdx.x == 0, bf16 = proj && branch.w_bf16;
    unsigned char *image = images + (int64_t)blockIdx.x * IMAGE_BYTES;

    for (int i = threadIdx.x; i < HEAD * HEAD / 8; i += blockDim.x) {
        const int row = i / (HEAD / 8), unit = i % (HEAD / 8);
        uint4 *to = (uint4 *)(image + strip_unit<IMAGE_STRIP>(0, row, unit));
        if (bf16) {
            *to = ((const uint4 *)branch.proj_w)[i];
            continue;
        }
        const float4 *from = (const float4 *)(proj ? (const float *)branch.proj_w : state) + 2 * i;
        const float4 x = from[0], y = from[1];
        *to = make_uint4(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w), pack_bf16(y.x, y.y),
                         pack_bf16(y.z, y.w));
    }
    for (int d = threadIdx.x; proj && d < HEAD; d += blockDim.x)
        bias[d] = branch.b_bf16 ? __bfloat162float(((const __nv_bfloat16 *)branch.proj_b)[d])
                                : ((const float *)branch.proj_b)[d];
}

} // namespace

extern "C" cudaError_t sl_cuda_branch_images(cudaStream_t stream, sl_cuda_images *out,
                                             const sl_cuda_branch *branch, int64_t N,
                                             void *workspace)
{
    const int64_t bytes = (N + 1) * IMAGE_BYTES;

    *out = {};
    if (!branch->state)
        return cudaSuccess;
    out->images = (unsigned char *)workspace;
    out->bias = (const float *)((unsigned char *)workspace + bytes);
    out->z = branch->state + HEAD * HEAD;
    out->z_stride = (HEAD + 1) * HEAD;
    make_images<<<(unsigned)(N + 1), 256, 0, stream>>>((unsigned char *)workspace,
                                                       (float *)((unsigned char *)workspace + bytes),
                                                       *branch);
    return cudaGetLastError();
}

extern "C" cudaError_t sl_cuda_sparse_attention_wgmma(cudaStream_t stream,
                                                      const sl_cuda_sparse *args_in,
                                                      const sl_cuda_sparse_maps *maps,
                                                      const sl_cuda_images *images)
{
    const int query_blocks = (int)((args_in->S + ROWS - 1) / ROWS);
    const args a = {
        (__nv_bfloat16 *)args_in->o,
        args_in->lut,
        images->images,
        images->z,
        images->bias,
        args_in->S,
        args_in->N * HEAD,
        images->z_stride,
        (int)args_in->keep,
        query_blocks,
        args_in->scale * 1.44269504088896341f,
    };
    const cudaError_t error = cudaFuncSetAttribute(
        sparse_wgmma, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);

    if (error != cudaSuccess)
        return error;
    sparse_wgmma<<<dim3((unsigned)query_blocks, (unsigned)args_in->N), THREADS, SHARED_BYTES,
                   stream>>>(a, maps->q, maps->k, maps->v);
    return cudaGetLastError();
}
