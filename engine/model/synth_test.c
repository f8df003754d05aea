/* The weight generator against its published samples. */
#include "engine/model/synth.h"

#include "base/test.h"

#include <string.h>

/* golden/README.md, seed 1 */
static const struct {
    const char *name;
    int64_t fan_in, i;
    uint16_t bits;
    double value;
} samples[] = {
    { "blocks.0.self_attn.q.weight", 1536, 0, 0xbd1f, -0.038818359375 },
    { "blocks.0.self_attn.q.weight", 1536, 1, 0x3d06, 0.03271484375 },
    { "blocks.0.self_attn.q.weight", 1536, 2359295, 0xba5a, -0.00083160400390625 },
    { "blocks.29.ffn.2.weight", 8960, 123456, 0x3c7a, 0.0152587890625 },
    { "blocks.3.self_attn.norm_q.weight", 1, 7, 0x3f8b, 1.0859375 },
    { "blocks.3.norm3.bias", 1, 7, 0xbaa6, -0.0012664794921875 },
    { "head.modulation", 2 * 1536, 2000, 0x3d46, 0.04833984375 },
    { "patch_embedding.weight", 64, 100, 0xbddc, -0.107421875 },
    { "decoder.conv1.weight", 16 * 27, 5000, 0xbd40, -0.046875 },
    { "decoder.head.0.gamma", 1, 11, 0x3f8b, 1.0859375 },
    { "token_embedding.weight", 4096, 1050148863, 0xbf62, -0.8828125 },
    { "blocks.5.attn.q.weight", 4096, 42, 0x3add, 0.00168609619140625 },
    { "blocks.5.pos_embedding.embedding.weight", 64, 63, 0xbef7, -0.482421875 },
    { "in.latent", 16 * 5 * 30 * 52, 99, 0x3f9f, 1.2421875 },
};

SL_TEST(published_samples)
{
    for (size_t s = 0; s < SL_COUNT(samples); s++) {
        uint16_t bits = 0;
        float value = NAN;

        sl_synth_bf16(&bits, samples[s].name, 1, samples[s].fan_in, samples[s].i, 1);
        sl_synth_f32(&value, samples[s].name, 1, samples[s].fan_in, samples[s].i, 1);
        if (bits != samples[s].bits || !((double)value == samples[s].value))
            fail_msg("%s[%lld]: %04x %.17g", samples[s].name, (long long)samples[s].i, bits,
                     (double)value);
    }
}

/* The rules look at whole segments: these fall through to sqrt(3 / fan_in). */
SL_TEST(rules_match_whole_segments)
{
    static const struct {
        const char *name;
        double most, least; /* bounds of |value - middle| over a row of values */
        double middle;
    } cases[] = {
        { "norm.weight", 0.1, 0.095, 1 },
        { "blocks.0.norm1.weight", 0.1, 0.095, 1 },
        { "blocks.0.xnorm.weight", 0.25, 0.24, 0 },
        { "blocks.0.norm4.weight", 0.25, 0.24, 0 },
        { "attn.q.weight", 0.03125, 0.03, 0 },
        { "self_attn.q.weight", 0.25, 0.24, 0 },
        { "x.token_embedding.weight", 0.25, 0.24, 0 },
        { "blocks.1.ffn.0.bias", 0.02, 0.019, 0 },
        { "blocks.1.modulation", 0.1, 0.095, 0 },
        { "token_embedding.weight", 1, 0.97, 0 },
    };
    float values[4096];

    for (size_t c = 0; c < SL_COUNT(cases); c++) {
        double most = 0;
        sl_synth_f32(values, cases[c].name, 7, 48, 0, SL_COUNT(values));
        for (size_t i = 0; i < SL_COUNT(values); i++)
            most = fmax(most, fabs((double)values[i] - cases[c].middle));
        /* bf16 rounding may add half a step of 2^-8 around 1 */
        if (!(most >= cases[c].least && most <= cases[c].most + 0.004))
            fail_msg("%s: largest deviation %g", cases[c].name, most);
    }
}

SL_TEST(pieces_join_seamlessly)
{
    uint16_t whole[1000], pieces[1000];
    float scaled[10], plain[10];

    sl_synth_bf16(whole, "blocks.1.ffn.0.weight", 42, 256, 5, 1000);
    sl_synth_bf16(pieces, "blocks.1.ffn.0.weight", 42, 256, 5, 333);
    sl_synth_bf16(pieces + 333, "blocks.1.ffn.0.weight", 42, 256, 338, 667);
    SL_CHECK(memcmp(whole, pieces, sizeof whole) == 0);
    sl_synth_bf16(pieces, "blocks.1.ffn.0.weight", 43, 256, 5, 1000);
    SL_CHECK(memcmp(whole, pieces, sizeof whole) != 0);
    sl_synth_f32_scaled(scaled, "in.latent", 3, 1.73f, 0, 10);
    sl_synth_f32(plain, "in.latent", 3, 99, 0, 10);
    SL_CHECK(memcmp(scaled, plain, sizeof plain) == 0);
    sl_synth_f32_scaled(scaled, "in.latent", 3, 1, 0, 10);
    SL_CHECK(memcmp(scaled, plain, sizeof plain) != 0);
}

SL_TEST_MAIN(SL_RUN(published_samples), SL_RUN(rules_match_whole_segments),
             SL_RUN(pieces_join_seamlessly))
