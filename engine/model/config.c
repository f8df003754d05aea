#include "engine/model/config.h"

#include <string.h>

/* wan.md 8.2 */
#define LATENT_MEAN                                                                                \
    {                                                                                              \
        -0.7571f, -0.7089f, -0.9113f, 0.1075f, -0.1745f, 0.9653f, -0.1517f, 1.5508f, 0.4134f,      \
            -0.0715f, 0.5517f, -0.3632f, -0.1922f, -0.9497f, 0.2503f, -0.2921f                     \
    }
#define LATENT_STD                                                                                 \
    {                                                                                              \
        2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f, 2.6052f, 2.0743f, 3.2687f, 2.1526f,  \
            2.8652f, 1.5579f, 1.6382f, 1.1253f, 2.8251f, 1.9160f                                   \
    }

const float sl_wan_latent_mean[16] = LATENT_MEAN;
const float sl_wan_latent_std[16] = LATENT_STD;

const char sl_wan_negative_prompt[] =
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，"
    "毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

#define VAE(base_dim)                                                                              \
    {                                                                                              \
        .dim = (base_dim), .z_dim = 16, .num_res_blocks = 2, .dim_mult = { 1, 2, 4, 4 },           \
        .temporal_down = { false, true, true }, .mean = LATENT_MEAN, .std = LATENT_STD             \
    }

#define UMT5_XXL                                                                                   \
    {                                                                                              \
        .vocab = 256384, .dim = 4096, .dim_attn = 4096, .dim_ffn = 10240, .num_heads = 64,         \
        .num_layers = 24, .num_buckets = 32, .max_distance = 128, .eps = 1e-6f                     \
    }

#define UMT5_TINY                                                                                  \
    {                                                                                              \
        .vocab = 512, .dim = 64, .dim_attn = 64, .dim_ffn = 128, .num_heads = 4, .num_layers = 2,  \
        .num_buckets = 32, .max_distance = 128, .eps = 1e-6f                                       \
    }

#define DIT(D, F, N, L, in)                                                                        \
    {                                                                                              \
        .dim = (D), .ffn_dim = (F), .num_heads = (N), .num_layers = (L), .in_dim = (in),           \
        .out_dim = 16, .text_dim = 4096, .text_len = 512, .freq_dim = 256, .eps = 1e-6f            \
    }

#define DIT_TINY(D, F, N, L, in)                                                                   \
    {                                                                                              \
        .dim = (D), .ffn_dim = (F), .num_heads = (N), .num_layers = (L), .in_dim = (in),           \
        .out_dim = 16, .text_dim = 64, .text_len = 64, .freq_dim = 256, .eps = 1e-6f               \
    }

/* The shapes model's, which the project trains and ships itself. */
#define UMT5_SHAPES                                                                                \
    {                                                                                              \
        .vocab = 256, .dim = 128, .dim_attn = 128, .dim_ffn = 256, .num_heads = 2,                 \
        .num_layers = 2, .num_buckets = 32, .max_distance = 128, .eps = 1e-6f                      \
    }

#define DIT_SHAPES(in)                                                                             \
    {                                                                                              \
        .dim = 256, .ffn_dim = 512, .num_heads = 2, .num_layers = 3, .in_dim = (in),               \
        .out_dim = 16, .text_dim = 128, .text_len = 64, .freq_dim = 256, .eps = 1e-6f              \
    }

/* The tiny and small rows have no published file: they exist so that the whole
 * path runs in seconds on a small machine, with every structure of the real ones.
 * The small transformers are ten times the tiny ones, as 14B is to 1.3B. */
static const sl_arch archs[] = {
    {
        .name = "wan2.1-t2v-1.3b",
        .task = SL_TASK_T2V,
        .expert_count = 1,
        .dit = DIT(1536, 8960, 12, 30, 16),
        .t5 = UMT5_XXL,
        .vae = VAE(96),
        .sigma_max = 80,
        .default_width = 832,
        .default_height = 480,
        .default_frames = 81,
        .manifests = { "wan2.1_t2v_1.3b.json", "turbo_wan2.1_t2v_1.3b.json",
                       "turbo_wan2.1_t2v_1.3b_quant.json" },
    },
    {
        .name = "wan2.1-t2v-14b",
        .task = SL_TASK_T2V,
        .expert_count = 1,
        .dit = DIT(5120, 13824, 40, 40, 16),
        .t5 = UMT5_XXL,
        .vae = VAE(96),
        .sigma_max = 80,
        .default_width = 832,
        .default_height = 480,
        .default_frames = 81,
        .manifests = { "wan2.1_t2v_14b.json", "turbo_wan2.1_t2v_14b.json",
                       "turbo_wan2.1_t2v_14b_quant.json" },
    },
    {
        .name = "wan2.2-i2v-a14b",
        .task = SL_TASK_I2V,
        .expert_count = 2,
        .dit = DIT(5120, 13824, 40, 40, 36),
        .t5 = UMT5_XXL,
        .vae = VAE(96),
        .sigma_max = 200,
        .default_width = 832,
        .default_height = 480,
        .default_frames = 81,
        .manifests = { "wan2.2_i2v_a14b.json", "turbo_wan2.2_i2v_a14b.json",
                       "turbo_wan2.2_i2v_a14b_quant.json" },
    },
    {
        .name = "tiny-t2v",
        .task = SL_TASK_T2V,
        .expert_count = 1,
        .dit = DIT_TINY(256, 512, 2, 4, 16),
        .t5 = UMT5_TINY,
        .vae = VAE(16),
        .sigma_max = 80,
        .default_width = 128,
        .default_height = 128,
        .default_frames = 17,
    },
    {
        .name = "tiny-i2v",
        .task = SL_TASK_I2V,
        .expert_count = 2,
        .dit = DIT_TINY(256, 512, 2, 4, 36),
        .t5 = UMT5_TINY,
        .vae = VAE(16),
        .sigma_max = 200,
        .default_width = 128,
        .default_height = 128,
        .default_frames = 17,
    },
    {
        .name = "small-t2v",
        .task = SL_TASK_T2V,
        .expert_count = 1,
        .dit = DIT_TINY(512, 1408, 4, 12, 16),
        .t5 = UMT5_TINY,
        .vae = VAE(16),
        .sigma_max = 80,
        .default_width = 128,
        .default_height = 128,
        .default_frames = 17,
    },
    {
        .name = "small-i2v",
        .task = SL_TASK_I2V,
        .expert_count = 2,
        .dit = DIT_TINY(512, 1408, 4, 12, 36),
        .t5 = UMT5_TINY,
        .vae = VAE(16),
        .sigma_max = 200,
        .default_width = 128,
        .default_height = 128,
        .default_frames = 17,
    },
    {
        .name = "shapes-t2v",
        .task = SL_TASK_T2V,
        .expert_count = 1,
        .dit = DIT_SHAPES(16),
        .t5 = UMT5_SHAPES,
        .vae = VAE(8),
        .sigma_max = 80,
        .default_width = 128,
        .default_height = 128,
        .default_frames = 17,
    },
    {
        .name = "shapes-i2v",
        .task = SL_TASK_I2V,
        .expert_count = 2,
        .dit = DIT_SHAPES(36),
        .t5 = UMT5_SHAPES,
        .vae = VAE(8),
        .sigma_max = 200,
        .default_width = 128,
        .default_height = 128,
        .default_frames = 17,
    },
};

int sl_arch_count(void)
{
    return (int)SL_COUNT(archs);
}

const sl_arch *sl_arch_get(int i)
{
    SL_ASSERT(i >= 0 && i < sl_arch_count());
    return &archs[i];
}

const sl_arch *sl_arch_find(const char *name)
{
    for (size_t i = 0; i < SL_COUNT(archs); i++)
        if (strcmp(archs[i].name, name) == 0)
            return &archs[i];
    return NULL;
}

bool sl_arch_has_component(const sl_arch *arch, sl_component_kind kind)
{
    switch (kind) {
    case SL_COMPONENT_TEXT_ENCODER:
    case SL_COMPONENT_VAE:
        return true;
    case SL_COMPONENT_DIT:
        return arch->expert_count == 1;
    case SL_COMPONENT_DIT_HIGH:
    case SL_COMPONENT_DIT_LOW:
        return arch->expert_count == 2;
    case SL_COMPONENT_COUNT:
        break;
    }
    return false;
}

static const char *const component_names[SL_COMPONENT_COUNT] = {
    [SL_COMPONENT_TEXT_ENCODER] = "text_encoder",
    [SL_COMPONENT_DIT] = "dit",
    [SL_COMPONENT_DIT_HIGH] = "dit_high",
    [SL_COMPONENT_DIT_LOW] = "dit_low",
    [SL_COMPONENT_VAE] = "vae",
};

static const char *const precision_names[SL_PRECISION_COUNT] = {
    [SL_PRECISION_F32] = "f32",
    [SL_PRECISION_BF16] = "bf16",
    [SL_PRECISION_INT8] = "int8",
    [SL_PRECISION_FP8] = "fp8",
};

static const char *const attention_names[SL_ATTENTION_COUNT] = {
    [SL_ATTENTION_DENSE] = "dense",
    [SL_ATTENTION_SLA] = "sla",
    [SL_ATTENTION_SAGESLA] = "sagesla",
};

static const char *const dialect_names[SL_DIALECT_COUNT] = {
    [SL_DIALECT_TURBO] = "turbo",
    [SL_DIALECT_OFFICIAL] = "official",
};

static const char *const layer_norm_names[SL_LAYER_NORM_COUNT] = {
    [SL_LAYER_NORM_EXACT] = "exact",
    [SL_LAYER_NORM_TURBO_COMPAT] = "turbo-compat",
};

static int find_name(const char *const *names, int count, const char *text)
{
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    return -1;
}

const char *sl_component_name(sl_component_kind kind)
{
    SL_ASSERT((int)kind >= 0 && kind < SL_COMPONENT_COUNT);
    return component_names[kind];
}

bool sl_component_parse(const char *text, sl_component_kind *out)
{
    const int i = find_name(component_names, SL_COMPONENT_COUNT, text);

    if (i < 0)
        return false;
    *out = (sl_component_kind)i;
    return true;
}

const char *sl_precision_name(sl_precision precision)
{
    SL_ASSERT((int)precision >= 0 && precision < SL_PRECISION_COUNT);
    return precision_names[precision];
}

bool sl_precision_parse(const char *text, sl_precision *out)
{
    const int i = find_name(precision_names, SL_PRECISION_COUNT, text);

    if (i < 0)
        return false;
    *out = (sl_precision)i;
    return true;
}

bool sl_precision_has_codes(sl_precision precision)
{
    return precision == SL_PRECISION_INT8 || precision == SL_PRECISION_FP8;
}

sl_precision sl_component_precision(sl_component_kind kind, sl_precision precision)
{
    const bool transformer =
        kind == SL_COMPONENT_DIT || kind == SL_COMPONENT_DIT_HIGH || kind == SL_COMPONENT_DIT_LOW;

    return sl_precision_has_codes(precision) && !transformer ? SL_PRECISION_BF16 : precision;
}

const char *sl_attention_name(sl_attention_mode mode)
{
    SL_ASSERT((int)mode >= 0 && mode < SL_ATTENTION_COUNT);
    return attention_names[mode];
}

bool sl_attention_parse(const char *text, sl_attention_mode *out)
{
    const int i = find_name(attention_names, SL_ATTENTION_COUNT, text);

    if (i < 0)
        return false;
    *out = (sl_attention_mode)i;
    return true;
}

const char *sl_dialect_name(sl_dialect dialect)
{
    SL_ASSERT((int)dialect >= 0 && dialect < SL_DIALECT_COUNT);
    return dialect_names[dialect];
}

bool sl_dialect_parse(const char *text, sl_dialect *out)
{
    const int i = find_name(dialect_names, SL_DIALECT_COUNT, text);

    if (i < 0)
        return false;
    *out = (sl_dialect)i;
    return true;
}

const char *sl_layer_norm_name(sl_layer_norm_mode mode)
{
    SL_ASSERT((int)mode >= 0 && mode < SL_LAYER_NORM_COUNT);
    return layer_norm_names[mode];
}

bool sl_layer_norm_parse(const char *text, sl_layer_norm_mode *out)
{
    const int i = find_name(layer_norm_names, SL_LAYER_NORM_COUNT, text);

    if (i < 0)
        return false;
    *out = (sl_layer_norm_mode)i;
    return true;
}

typedef struct {
    const char *name;
    int64_t value, min, max;
} range;

/* The upper bounds are far above any model; they keep products of two or three
 * dimensions inside 63 bits. */
static sl_status check_ranges(const char *what, const range *ranges, size_t count, sl_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const range *r = &ranges[i];
        if (r->value < r->min || r->value > r->max)
            return sl_fail(err, SL_ERR_INVALID, "%s: %s is %lld, must be %lld to %lld", what,
                           r->name, (long long)r->value, (long long)r->min, (long long)r->max);
    }
    return SL_OK;
}

static sl_status check_eps(const char *what, float eps, sl_error *err)
{
    if (!(eps > 0 && eps < 1))
        return sl_fail(err, SL_ERR_INVALID, "%s: eps is %g, must be above 0 and below 1", what,
                       (double)eps);
    return SL_OK;
}

sl_status sl_dit_config_check(const sl_dit_config *config, sl_error *err)
{
    static const char what[] = "diffusion transformer";
    const sl_dit_config *c = config;
    const range ranges[] = {
        { "dim", c->dim, 2, 1 << 17 },
        { "ffn_dim", c->ffn_dim, 1, 1 << 20 },
        { "num_heads", c->num_heads, 1, 1 << 12 },
        { "num_layers", c->num_layers, 1, SL_MAX_LAYERS },
        { "in_dim", c->in_dim, 1, 1 << 12 },
        { "out_dim", c->out_dim, 1, 1 << 12 },
        { "text_dim", c->text_dim, 1, 1 << 17 },
        { "text_len", c->text_len, 1, 1 << 14 },
        { "freq_dim", c->freq_dim, 2, 1 << 14 },
    };
    sl_status status = check_ranges(what, ranges, SL_COUNT(ranges), err);

    if (status != SL_OK)
        return status;
    if (c->dim % c->num_heads != 0 || c->dim / c->num_heads % 2 != 0)
        return sl_fail(err, SL_ERR_INVALID, "%s: dim %lld over %lld heads gives no even head size",
                       what, (long long)c->dim, (long long)c->num_heads);
    if (c->freq_dim % 2 != 0)
        return sl_fail(err, SL_ERR_INVALID, "%s: freq_dim %lld is odd", what,
                       (long long)c->freq_dim);
    return check_eps(what, c->eps, err);
}

sl_status sl_dit_precision_check(const sl_dit_config *config, sl_precision precision, sl_error *err)
{
    const struct {
        const char *name;
        int64_t value;
    } widths[] = { { "dim", config->dim }, { "ffn_dim", config->ffn_dim } };
    enum { TILE = 128, MOST = 24576 }; /* rows of 128 by that fit a loader's buffer */

    for (size_t i = 0; i < SL_COUNT(widths) && sl_precision_has_codes(precision); i++)
        if (widths[i].value % TILE != 0 || widths[i].value > MOST)
            return sl_fail(err, SL_ERR_INVALID,
                           "diffusion transformer: %s is %lld: %s needs a multiple of %d up to %d",
                           widths[i].name, (long long)widths[i].value, sl_precision_name(precision),
                           (int)TILE, (int)MOST);
    return SL_OK;
}

sl_status sl_dit_attention_check(const sl_dit_config *config, sl_attention_mode mode, double ratio,
                                 sl_error *err)
{
    const int64_t head = config->dim / config->num_heads;
    enum { MAX_HEAD = 128 }; /* kernels/sla.h */

    if ((int)mode < 0 || mode >= SL_ATTENTION_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "attention %d: expected dense, sla or sagesla",
                       (int)mode);
    if (mode == SL_ATTENTION_DENSE)
        return SL_OK;
    if (head > MAX_HEAD || head % 4 != 0)
        return sl_fail(err, SL_ERR_INVALID,
                       "diffusion transformer: heads of %lld: %s needs a multiple of 4 up to %d",
                       (long long)head, sl_attention_name(mode), (int)MAX_HEAD);
    if (!(ratio > 0.0 && ratio <= 1.0))
        return sl_fail(err, SL_ERR_INVALID,
                       "top-k ratio %g: expected more than 0, at most 1; the default is %g", ratio,
                       SL_DEFAULT_TOPK_RATIO);
    return SL_OK;
}

sl_status sl_t5_config_check(const sl_t5_config *config, sl_error *err)
{
    static const char what[] = "text encoder";
    const sl_t5_config *c = config;
    const range ranges[] = {
        { "vocab", c->vocab, 1, 1 << 24 },
        { "dim", c->dim, 1, 1 << 17 },
        { "dim_attn", c->dim_attn, 1, 1 << 17 },
        { "dim_ffn", c->dim_ffn, 1, 1 << 20 },
        { "num_heads", c->num_heads, 1, 1 << 12 },
        { "num_layers", c->num_layers, 1, SL_MAX_LAYERS },
        { "num_buckets", c->num_buckets, 4, 1 << 12 },
        { "max_distance", c->max_distance, 2, 1 << 20 },
    };
    sl_status status = check_ranges(what, ranges, SL_COUNT(ranges), err);

    if (status != SL_OK)
        return status;
    if (c->dim_attn % c->num_heads != 0)
        return sl_fail(err, SL_ERR_INVALID, "%s: dim_attn %lld does not divide into %lld heads",
                       what, (long long)c->dim_attn, (long long)c->num_heads);
    if (c->num_buckets % 4 != 0)
        return sl_fail(err, SL_ERR_INVALID, "%s: num_buckets %lld is no multiple of 4", what,
                       (long long)c->num_buckets);
    return check_eps(what, c->eps, err);
}

sl_status sl_vae_config_check(const sl_vae_config *config, sl_error *err)
{
    static const char what[] = "vae";
    const sl_vae_config *c = config;
    const range ranges[] = {
        { "dim", c->dim, 2, 1 << 12 },
        { "z_dim", c->z_dim, 1, 16 },
        { "num_res_blocks", c->num_res_blocks, 1, 2 },
        { "dim_mult[0]", c->dim_mult[0], 1, 64 },
        { "dim_mult[1]", c->dim_mult[1], 1, 64 },
        { "dim_mult[2]", c->dim_mult[2], 1, 64 },
        { "dim_mult[3]", c->dim_mult[3], 1, 64 },
    };
    sl_status status = check_ranges(what, ranges, SL_COUNT(ranges), err);

    if (status != SL_OK)
        return status;
    for (int i = 0; i < 4; i++) /* so that one output channel's weights fit a loader's buffer */
        if (c->dim * c->dim_mult[i] > 1 << 15)
            return sl_fail(err, SL_ERR_INVALID, "%s: %lld channels, at most %d are supported", what,
                           (long long)(c->dim * c->dim_mult[i]), 1 << 15);
    if (c->dim % 2 != 0)
        return sl_fail(err, SL_ERR_INVALID, "%s: dim %lld is odd: up-sampling halves channels",
                       what, (long long)c->dim);
    for (int64_t i = 0; i < c->z_dim; i++)
        if (!(c->std[i] > 0) || c->mean[i] != c->mean[i])
            return sl_fail(err, SL_ERR_INVALID,
                           "%s: latent channel %lld has mean %g and standard deviation %g", what,
                           (long long)i, (double)c->mean[i], (double)c->std[i]);
    return SL_OK;
}
