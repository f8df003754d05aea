/* The weight generator of golden/README.md. */
#include "engine/model/synth.h"

#include <math.h>
#include <string.h>

#define GOLDEN_GAMMA 0x9E3779B97F4A7C15u

static uint64_t fnv1a(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

static bool ends_with(const char *text, const char *suffix)
{
    const size_t n = strlen(text), m = strlen(suffix);

    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* text is `tail`, or ends with it behind a dot. */
static bool ends_with_segments(const char *text, const char *tail)
{
    const size_t n = strlen(text), m = strlen(tail);

    return ends_with(text, tail) && (n == m || text[n - m - 1] == '.');
}

static bool is_norm(const char *name)
{
    static const char *const norms[] = { "norm.weight",  "norm1.weight",  "norm2.weight",
                                         "norm3.weight", "norm_q.weight", "norm_k.weight" };

    if (ends_with(name, ".gamma"))
        return true;
    for (size_t i = 0; i < SL_COUNT(norms); i++)
        if (ends_with_segments(name, norms[i]))
            return true;
    return false;
}

/* Amplitude and offset, by the first rule that matches. */
static void amplitude(const char *name, int64_t fan_in, float *a, float *b)
{
    const double spread = sqrt(3.0 / (double)fan_in);

    *b = 0;
    if (strncmp(name, "in.", 3) == 0) {
        *a = 1.73f;
    } else if (is_norm(name)) {
        *a = 0.1f;
        *b = 1;
    } else if (ends_with(name, ".bias")) {
        *a = 0.02f;
    } else if (ends_with(name, "modulation")) {
        *a = 0.1f;
    } else if (ends_with(name, "pos_embedding.embedding.weight")) {
        *a = 0.5f;
    } else if (strcmp(name, "token_embedding.weight") == 0) {
        *a = 1;
    } else if (ends_with_segments(name, "attn.q.weight")) {
        *a = (float)(spread / 8);
    } else {
        *a = (float)spread;
    }
}

static uint64_t stream_base(const char *name, uint64_t seed)
{
    return fnv1a(name) ^ seed * GOLDEN_GAMMA;
}

/* Element i of a stream.  Three roundings: the product, the sum, bf16; the
 * build keeps the compiler from fusing the first two. */
static inline uint16_t value(uint64_t base, uint64_t i, float a, float b)
{
    uint64_t z = base + (i + 1) * GOLDEN_GAMMA;
    float u;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    u = (float)(z >> 40) * 0x1p-24f;
    return sl_bf16_from_f32((2 * u - 1) * a + b);
}

void sl_synth_bf16(uint16_t *out, const char *name, uint64_t seed, int64_t fan_in, int64_t first,
                   int64_t count)
{
    const uint64_t base = stream_base(name, seed);
    float a, b;

    amplitude(name, fan_in, &a, &b);
    for (int64_t i = 0; i < count; i++)
        out[i] = value(base, (uint64_t)(first + i), a, b);
}

void sl_synth_f32(float *out, const char *name, uint64_t seed, int64_t fan_in, int64_t first,
                  int64_t count)
{
    const uint64_t base = stream_base(name, seed);
    float a, b;

    amplitude(name, fan_in, &a, &b);
    for (int64_t i = 0; i < count; i++)
        out[i] = sl_bf16_to_f32(value(base, (uint64_t)(first + i), a, b));
}

void sl_synth_f32_scaled(float *out, const char *name, uint64_t seed, float a, int64_t first,
                         int64_t count)
{
    const uint64_t base = stream_base(name, seed);

    for (int64_t i = 0; i < count; i++)
        out[i] = sl_bf16_to_f32(value(base, (uint64_t)(first + i), a, 0));
}
