/* gpu_small - elementwise ops, norms, rotary embedding, embeddings. */
#include "tests/gpu/gpu_test.h"

/* Every mix of activations of two tensors. */
static const sl_dtype mixes[][2] = {
    { SL_F32, SL_F32 }, { SL_F32, SL_BF16 }, { SL_BF16, SL_F32 }, { SL_BF16, SL_BF16 }
};

/* ---- elementwise ---- */

/* Odd, aligned, one element, and the 1.3B stream of 4096 tokens. */
static const int64_t counts[] = { 1, 7, 4099, 4096 * 1536 };

static int64_t cut(const gpu *g, int64_t count, int64_t most)
{
    return g->small && count > most ? most + count % 64 : count;
}

static void check_add(gpu *g, sl_dtype y_dtype, sl_dtype a_dtype, sl_dtype b_dtype, int64_t count)
{
    if (!gpu_begin(g, "add %s = %s + %s [%lld]", gpu_dtype(y_dtype), gpu_dtype(a_dtype),
                   gpu_dtype(b_dtype), (long long)count))
        return;
    gpu_tensor a = GPU_RANDOM(g, a_dtype, 1.0, 1, count);
    gpu_tensor b = GPU_RANDOM(g, b_dtype, 1.0, 1, count);
    gpu_tensor y = GPU_OUTPUT(g, y_dtype, 1, count);
    GPU_BOTH(g, add, GPU_ON(y), GPU_ON(a), GPU_ON(b));
    gpu_compare(g, "y", &y, GPU_EXACT); /* one f32 operation, rounded once */
    gpu_end(g);
}

void gpu_test_small(gpu *g)
{
    for (size_t m = 0; m < SL_COUNT(mixes); m++)
        for (size_t i = 0; i < SL_COUNT(counts); i++) {
            check_add(g, SL_F32, mixes[m][0], mixes[m][1], cut(g, counts[i], 9000));
            check_add(g, SL_BF16, mixes[m][0], mixes[m][1], cut(g, counts[i], 9000));
        }
}
