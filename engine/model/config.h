/* config.h - the models as data: dimensions, defaults, sizes of a request.
 *
 * A model variant is a row in a table; nothing else in the engine knows it by
 * name.  Source: wan.md 1.2, 1.5, 3.3, 7, 9.1.
 */
#ifndef SL_ENGINE_MODEL_CONFIG_H
#define SL_ENGINE_MODEL_CONFIG_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    SL_COMPONENT_TEXT_ENCODER,
    SL_COMPONENT_DIT, /* the only expert of a one-expert model */
    SL_COMPONENT_DIT_HIGH,
    SL_COMPONENT_DIT_LOW,
    SL_COMPONENT_VAE,
    SL_COMPONENT_COUNT
} sl_component_kind;

const char *sl_component_name(sl_component_kind kind); /* "text_encoder", "dit", "dit_high", ... */
bool sl_component_parse(const char *text, sl_component_kind *out);

typedef enum {
    SL_TASK_T2V,
    SL_TASK_I2V,
} sl_task;

/* How linear weights are kept on the device; norms, biases and tables stay
 * f32 in every precision (they are small). */
typedef enum {
    SL_PRECISION_F32,
    SL_PRECISION_BF16,
    SL_PRECISION_INT8, /* the ten linears of a transformer's block; the rest bf16 */
    SL_PRECISION_FP8,  /* the same linears, in e4m3 */
    SL_PRECISION_COUNT
} sl_precision;

const char *sl_precision_name(sl_precision precision); /* "f32", "bf16", "int8", "fp8" */
bool sl_precision_parse(const char *text, sl_precision *out);
/* Whether the ten linears of a block are codes of 8 bits with scales of their own. */
bool sl_precision_has_codes(sl_precision precision);
/* As what a component is kept when a model is: codes are for transformers alone. */
sl_precision sl_component_precision(sl_component_kind kind, sl_precision precision);

/* What self-attention computes.  SLA and SageSLA need a checkpoint that was tuned
 * for them: with another one the result is a different, worse video. */
typedef enum {
    SL_ATTENTION_DENSE,
    SL_ATTENTION_SLA,     /* kept blocks of 128 x 64 and a linear branch */
    SL_ATTENTION_SAGESLA, /* kept blocks of 64 x 128 in 8 bits, and the same branch */
    SL_ATTENTION_COUNT
} sl_attention_mode;

const char *sl_attention_name(sl_attention_mode mode); /* "dense", "sla", "sagesla" */
bool sl_attention_parse(const char *text, sl_attention_mode *out);

#define SL_DEFAULT_TOPK_RATIO 0.1

/* Whose rounding points the arithmetic follows.  Source: wan.md 4.10. */
typedef enum {
    SL_DIALECT_TURBO,    /* TurboDiffusion's scripts */
    SL_DIALECT_OFFICIAL, /* Wan's own: rotary angles in f64 */
    SL_DIALECT_COUNT
} sl_dialect;

const char *sl_dialect_name(sl_dialect dialect); /* "turbo", "official" */
bool sl_dialect_parse(const char *text, sl_dialect *out);

/* The variance that a transformer's block norms divide by.  Source: wan.md 4.5. */
typedef enum {
    SL_LAYER_NORM_EXACT,
    SL_LAYER_NORM_TURBO_COMPAT, /* with the padding of rows to a power of two in it */
    SL_LAYER_NORM_COUNT
} sl_layer_norm_mode;

const char *sl_layer_norm_name(sl_layer_norm_mode mode); /* "exact", "turbo-compat" */
bool sl_layer_norm_parse(const char *text, sl_layer_norm_mode *out);

/* What UniPC's guidance leads away from where a request does not say: the text
 * that the official configuration has (wan.md 7.3). */
extern const char sl_wan_negative_prompt[];

enum { SL_MAX_LAYERS = 64 };

typedef struct {
    int64_t dim, ffn_dim, num_heads, num_layers;
    int64_t in_dim, out_dim; /* latent channels in and out */
    int64_t text_dim, text_len, freq_dim;
    float eps;
} sl_dit_config;

typedef struct {
    int64_t vocab, dim, dim_attn, dim_ffn, num_heads, num_layers, num_buckets, max_distance;
    float eps;
} sl_t5_config;

typedef struct {
    int64_t dim, z_dim, num_res_blocks;
    int64_t dim_mult[4];
    bool temporal_down[3];
    float mean[16], std[16];
} sl_vae_config;

typedef struct {
    const char *name; /* "wan2.1-t2v-1.3b" */
    sl_task task;
    int expert_count; /* 1, or 2 (DIT_HIGH, DIT_LOW) */
    sl_dit_config dit;
    sl_t5_config t5;
    sl_vae_config vae;
    double sigma_max; /* default of rCM: 80 T2V, 200 I2V */
    int default_width, default_height, default_frames;
    const char *manifests[4]; /* names under manifests/ that this row must match */
} sl_arch;

/* The published models, then tiny, small and shapes (trained) ones of T2V and I2V. */
int sl_arch_count(void);
const sl_arch *sl_arch_get(int i);
const sl_arch *sl_arch_find(const char *name); /* NULL: unknown */
bool sl_arch_has_component(const sl_arch *arch, sl_component_kind kind);

sl_status sl_dit_config_check(const sl_dit_config *config, sl_error *err) SL_MUST_CHECK;
/* Whether a transformer that passed its check can be kept and run so: tiles of
 * 128 for INT8 and FP8, heads of up to 128 for SLA.  ratio: key blocks kept, above 0, at
 * most 1; not looked at for DENSE. */
sl_status sl_dit_precision_check(const sl_dit_config *config, sl_precision precision,
                                 sl_error *err) SL_MUST_CHECK;
sl_status sl_dit_attention_check(const sl_dit_config *config, sl_attention_mode mode, double ratio,
                                 sl_error *err) SL_MUST_CHECK;
sl_status sl_t5_config_check(const sl_t5_config *config, sl_error *err) SL_MUST_CHECK;
sl_status sl_vae_config_check(const sl_vae_config *config, sl_error *err) SL_MUST_CHECK;

/* Checkpoint-wide latent statistics of the Wan2.1 VAE (wan.md 8.2). */
extern const float sl_wan_latent_mean[16];
extern const float sl_wan_latent_std[16];

#endif
