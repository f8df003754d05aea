#include "engine/model/names.h"

#include <stdio.h>
#include <string.h>

/* Whole segments of an official name and what stands there instead; '^' binds
 * the rule to the start of the name. */
typedef struct {
    const char *from, *to;
} rule;

typedef struct {
    const char *style;
    const char *sign; /* in every file with these names, in no other */
    const rule *rules;
    size_t rule_count;
} naming;

/* Applied in order, each once, to what the rules before have made of the name. */
static const rule diffusers_dit[] = {
    { "^time_embedding.0", "condition_embedder.time_embedder.linear_1" },
    { "^time_embedding.2", "condition_embedder.time_embedder.linear_2" },
    { "^text_embedding.0", "condition_embedder.text_embedder.linear_1" },
    { "^text_embedding.2", "condition_embedder.text_embedder.linear_2" },
    { "^time_projection.1", "condition_embedder.time_proj" },
    { "^head.modulation", "scale_shift_table" },
    { "^head.head", "proj_out" },
    { "modulation", "scale_shift_table" },
    { "ffn.0", "ffn.net.0.proj" },
    { "ffn.2", "ffn.net.2" },
    { "self_attn.q", "attn1.to_q" },
    { "self_attn.k", "attn1.to_k" },
    { "self_attn.v", "attn1.to_v" },
    { "self_attn.o", "attn1.to_out.0" },
    { "self_attn", "attn1" },
    { "cross_attn.q", "attn2.to_q" },
    { "cross_attn.k", "attn2.to_k" },
    { "cross_attn.v", "attn2.to_v" },
    { "cross_attn.o", "attn2.to_out.0" },
    { "cross_attn", "attn2" },
    { "norm3", "norm2" }, /* they swapped the two; the other one has no weights */
};

static const rule diffusers_vae[] = {
    { "^conv1", "quant_conv" },
    { "^conv2", "post_quant_conv" },
    { "^encoder.conv1", "encoder.conv_in" },
    { "^decoder.conv1", "decoder.conv_in" },
    { "head.0", "norm_out" },
    { "head.2", "conv_out" },
    { "middle.0", "mid_block.resnets.0" },
    { "middle.1", "mid_block.attentions.0" },
    { "middle.2", "mid_block.resnets.1" },
    { "residual.0", "norm1" },
    { "residual.2", "conv1" },
    { "residual.3", "norm2" },
    { "residual.6", "conv2" },
    { "shortcut", "conv_shortcut" },
    { "downsamples", "down_blocks" },
    { "upsamples.0", "up_blocks.0.resnets.0" },
    { "upsamples.1", "up_blocks.0.resnets.1" },
    { "upsamples.2", "up_blocks.0.resnets.2" },
    { "upsamples.3", "up_blocks.0.upsamplers.0" },
    { "upsamples.4", "up_blocks.1.resnets.0" },
    { "upsamples.5", "up_blocks.1.resnets.1" },
    { "upsamples.6", "up_blocks.1.resnets.2" },
    { "upsamples.7", "up_blocks.1.upsamplers.0" },
    { "upsamples.8", "up_blocks.2.resnets.0" },
    { "upsamples.9", "up_blocks.2.resnets.1" },
    { "upsamples.10", "up_blocks.2.resnets.2" },
    { "upsamples.11", "up_blocks.2.upsamplers.0" },
    { "upsamples.12", "up_blocks.3.resnets.0" },
    { "upsamples.13", "up_blocks.3.resnets.1" },
    { "upsamples.14", "up_blocks.3.resnets.2" },
};

/* umT5 shares its token table between encoder and decoder; some files keep it
 * under the encoder's name. */
#define HUGGINGFACE_T5                                                                             \
    { "^blocks", "encoder.block" }, { "^norm", "encoder.final_layer_norm" },                       \
        { "norm1", "layer.0.layer_norm" }, { "attn", "layer.0.SelfAttention" },                    \
        { "pos_embedding.embedding", "layer.0.SelfAttention.relative_attention_bias" },            \
        { "norm2", "layer.1.layer_norm" }, { "ffn.gate.0", "layer.1.DenseReluDense.wi_0" },        \
        { "ffn.fc1", "layer.1.DenseReluDense.wi_1" },                                              \
    {                                                                                              \
        "ffn.fc2", "layer.1.DenseReluDense.wo"                                                     \
    }

static const rule huggingface_t5[] = { { "^token_embedding", "shared" }, HUGGINGFACE_T5 };
static const rule huggingface_t5_encoder[] = { { "^token_embedding", "encoder.embed_tokens" },
                                               HUGGINGFACE_T5 };

static const naming namings[] = {
    { "diffusers", "condition_embedder.time_proj.weight", diffusers_dit, SL_COUNT(diffusers_dit) },
    { "diffusers", "decoder.conv_in.weight", diffusers_vae, SL_COUNT(diffusers_vae) },
    { "huggingface", "shared.weight", huggingface_t5, SL_COUNT(huggingface_t5) },
    { "huggingface", "encoder.embed_tokens.weight", huggingface_t5_encoder,
      SL_COUNT(huggingface_t5_encoder) },
};

/* Where `part` stands as whole segments; NULL: nowhere. */
static char *find_segments(char *name, const char *part)
{
    const bool bound = *part == '^';
    const size_t n = strlen(part += bound);

    for (char *at = name; (at = strstr(at, part)); at++) {
        if ((at == name || (!bound && at[-1] == '.')) && (at[n] == '\0' || at[n] == '.'))
            return at;
        if (bound)
            return NULL;
    }
    return NULL;
}

static void apply(const rule *r, char name[SL_NAME_BYTES])
{
    const size_t from = strlen(r->from) - (*r->from == '^'), to = strlen(r->to);
    char *at = find_segments(name, r->from);

    if (!at || strlen(name) - from + to >= SL_NAME_BYTES)
        return;
    memmove(at + to, at + from, strlen(at + from) + 1);
    memcpy(at, r->to, to);
}

static const naming *naming_of(const sl_ckpt *ckpt)
{
    for (size_t i = 0; i < SL_COUNT(namings); i++)
        if (sl_ckpt_find(ckpt, namings[i].sign))
            return &namings[i];
    return NULL;
}

const char *sl_names_in_file(const sl_ckpt *ckpt, const char *official, char out[SL_NAME_BYTES])
{
    const naming *n = naming_of(ckpt);

    snprintf(out, SL_NAME_BYTES, "%s", official);
    for (size_t i = 0; n && i < n->rule_count; i++)
        apply(&n->rules[i], out);
    return out;
}

const sl_ckpt_tensor *sl_names_find(const sl_ckpt *ckpt, const char *official)
{
    char name[SL_NAME_BYTES];

    return sl_ckpt_find(ckpt, sl_names_in_file(ckpt, official, name));
}

const char *sl_names_style(const sl_ckpt *ckpt)
{
    const naming *n = naming_of(ckpt);

    return n ? n->style : "official";
}

bool sl_names_is_extra(const sl_ckpt *ckpt, const char *name)
{
    /* the tokenizer of repackaged text encoders, and the token table's other name */
    return strcmp(name, "spiece_model") == 0 || (strcmp(name, "encoder.embed_tokens.weight") == 0 &&
                                                 sl_ckpt_find(ckpt, "shared.weight"));
}

static bool ends_with(const char *text, const char *suffix)
{
    const size_t n = strlen(text), m = strlen(suffix);

    return n >= m && strcmp(text + n - m, suffix) == 0;
}

sl_status sl_names_refuse_fp8(const sl_ckpt *ckpt, sl_error *err)
{
    for (int64_t i = 0; i < sl_ckpt_count(ckpt); i++) {
        const sl_ckpt_tensor *t = sl_ckpt_get(ckpt, i);
        const bool is_fp8 = t->tensor.dtype == SL_F8_E4M3 || t->tensor.dtype == SL_F8_E5M2;

        if (is_fp8 || strcmp(t->name, "scaled_fp8") == 0 || ends_with(t->name, ".scale_weight"))
            return sl_fail(err, SL_ERR_DATA,
                           "tensor \"%.200s\" (%s): weights in 8-bit floats are not read; use "
                           "the bf16, fp16 or int8 (-quant) file of the same model",
                           t->name, sl_dtype_name(t->tensor.dtype));
    }
    return SL_OK;
}
