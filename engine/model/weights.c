#include "engine/model/weights.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    sl_weight_visitor *visitor;
    void *arg;
    sl_error *err;
    sl_layout layout;
    sl_dtype linear;        /* device dtype of linear weights */
    sl_dtype codes;         /* but of the ten of a block; SL_F32: these too */
    sl_dtype file_default;  /* dtype in the file unless a tensor says otherwise */
    char prefix[96];        /* "blocks.3.self_attn." */
    int64_t block;          /* -1: outside of the blocks */
    bool by_row;            /* the tensors to come are tables */
    const sl_tensor *scale; /* of the tensor to come, if it is quantised */
    sl_status status;       /* once it is no longer SL_OK nothing more is visited */
} walk;

static walk walk_begin(sl_weight_visitor *visitor, void *arg, sl_layout layout,
                       sl_precision precision, sl_dtype file_default, sl_error *err)
{
    return (walk){
        .visitor = visitor,
        .arg = arg,
        .err = err,
        .layout = layout,
        .linear = precision == SL_PRECISION_F32 ? SL_F32 : SL_BF16,
        .codes = precision == SL_PRECISION_INT8  ? SL_I8
                 : precision == SL_PRECISION_FP8 ? SL_F8_E4M3
                                                 : SL_F32,
        .file_default = file_default,
        .block = -1,
    };
}

static void set_prefix(walk *w, const char *fmt, ...) SL_PRINTF(2, 3);
static void set_prefix(walk *w, const char *fmt, ...)
{
    va_list va;

    va_start(va, fmt);
    vsnprintf(w->prefix, sizeof w->prefix, fmt, va);
    va_end(va);
}

/* `device` has the dtype and shape that the tensor takes on the device. */
static void emit(walk *w, sl_tensor *slot, const char *name, sl_dtype file_dtype, sl_form form,
                 sl_tensor device, int rank, const int64_t *dim)
{
    char full[192];
    sl_weight_spec spec = { .name = full,
                            .rank = rank,
                            .file_dtype = file_dtype,
                            .form = form,
                            .block = w->block,
                            .by_row = w->by_row,
                            .scale = w->scale };

    if (w->status != SL_OK)
        return;
    snprintf(full, sizeof full, "%s%s", w->prefix, name);
    memcpy(spec.dim, dim, (size_t)rank * sizeof *dim);
    if (form != SL_FORM_FILE_ONLY) {
        *slot = device;
        spec.slot = slot;
    }
    w->status = w->visitor(w->arg, &spec, w->err);
}

static void file_only(walk *w, const char *name, sl_dtype dtype, int64_t rows, int64_t cols)
{
    emit(w, NULL, name, dtype, SL_FORM_FILE_ONLY, (sl_tensor){ .data = NULL }, 2,
         (const int64_t[]){ rows, cols });
}

/* A vector that stays f32: bias, norm weight. */
static void vector(walk *w, sl_tensor *slot, const char *name, sl_dtype file_dtype, int64_t n)
{
    emit(w, slot, name, file_dtype, SL_FORM_PLAIN, sl_tensor_of(NULL, SL_F32, 1, n), 1, &n);
}

static void matrix(walk *w, sl_tensor *slot, const char *name, sl_dtype dtype, int64_t rows,
                   int64_t cols)
{
    emit(w, slot, name, w->file_default, SL_FORM_PLAIN, sl_tensor_of(NULL, dtype, 2, rows, cols), 2,
         (const int64_t[]){ rows, cols });
}

static void linear(walk *w, sl_affine *slot, const char *name, int64_t out, int64_t in)
{
    char full[96];

    snprintf(full, sizeof full, "%s.weight", name);
    matrix(w, &slot->w, full, w->linear, out, in);
    snprintf(full, sizeof full, "%s.bias", name);
    vector(w, &slot->b, full, w->file_default, out);
}

/* The codes and scales of a linear: int8 from such a file, or from floats. */
static void code_weight(walk *w, sl_affine *slot, const char *name, int64_t out, int64_t in)
{
    const int64_t scales[] = { (out + 127) / 128, (in + 127) / 128 };
    const bool from_codes = w->layout == SL_LAYOUT_TURBO_QUANT;
    char full[96];

    snprintf(full, sizeof full, "%s.scale", name);
    emit(w, &slot->scale, full, SL_F32, from_codes ? SL_FORM_PLAIN : SL_FORM_DEVICE_ONLY,
         sl_tensor_make(NULL, SL_F32, 2, scales), 2, scales);
    snprintf(full, sizeof full, from_codes ? "%s.int8_weight" : "%s.weight", name);
    w->scale = from_codes ? NULL : &slot->scale;
    emit(w, &slot->w, full, from_codes ? SL_I8 : w->file_default,
         from_codes ? SL_FORM_PLAIN : SL_FORM_CODES, sl_tensor_of(NULL, w->codes, 2, out, in), 2,
         (const int64_t[]){ out, in });
    w->scale = NULL;
}

/* One of the ten linears of a block that the quantised export replaces. */
static void block_linear(walk *w, sl_affine *slot, const char *name, int64_t out, int64_t in)
{
    const bool of_codes = w->layout == SL_LAYOUT_TURBO_QUANT;
    char full[96];

    if (!of_codes && w->codes == SL_F32) {
        linear(w, slot, name, out, in);
        return;
    }
    if (!of_codes || w->codes == SL_I8) {
        code_weight(w, slot, name, out, in);
    } else {
        snprintf(full, sizeof full, "%s.int8_weight", name);
        file_only(w, full, SL_I8, out, in);
        snprintf(full, sizeof full, "%s.scale", name);
        file_only(w, full, SL_F32, (out + 127) / 128, (in + 127) / 128);
    }
    snprintf(full, sizeof full, "%s.bias", name);
    vector(w, &slot->b, full, w->file_default, out);
}

/* All heads share it.  Official files have none. */
static void sla_projection(walk *w, sl_affine *slot, int64_t d)
{
    const sl_form form = w->layout == SL_LAYOUT_OFFICIAL ? SL_FORM_DEVICE_ONLY : SL_FORM_PLAIN;
    const sl_dtype file_dtype = SL_BF16;

    emit(w, &slot->w, "attn_op.local_attn.proj_l.weight", file_dtype, form,
         sl_tensor_of(NULL, w->linear, 2, d, d), 2, (const int64_t[]){ d, d });
    emit(w, &slot->b, "attn_op.local_attn.proj_l.bias", file_dtype, form,
         sl_tensor_of(NULL, SL_F32, 1, d), 1, &d);
}

static void attention(walk *w, sl_dit_attention *a, int64_t block, const char *name, int64_t D)
{
    set_prefix(w, "blocks.%lld.%s.", (long long)block, name);
    block_linear(w, &a->q, "q", D, D);
    block_linear(w, &a->k, "k", D, D);
    block_linear(w, &a->v, "v", D, D);
    block_linear(w, &a->o, "o", D, D);
    vector(w, &a->norm_q, "norm_q.weight", SL_F32, D);
    vector(w, &a->norm_k, "norm_k.weight", SL_F32, D);
}

static void dit_block(walk *w, sl_dit_block *b, int64_t i, const sl_dit_config *c)
{
    const int64_t D = c->dim;

    w->block = i;
    set_prefix(w, "blocks.%lld.", (long long)i);
    emit(w, &b->modulation, "modulation", w->file_default, SL_FORM_PLAIN,
         sl_tensor_of(NULL, SL_F32, 2, 6, D), 3, (const int64_t[]){ 1, 6, D });
    attention(w, &b->self_attn, i, "self_attn", D);
    sla_projection(w, &b->proj_l, D / c->num_heads);
    set_prefix(w, "blocks.%lld.", (long long)i);
    vector(w, &b->norm3.w, "norm3.weight", SL_F32, D);
    vector(w, &b->norm3.b, "norm3.bias", SL_F32, D);
    attention(w, &b->cross_attn, i, "cross_attn", D);
    set_prefix(w, "blocks.%lld.", (long long)i);
    block_linear(w, &b->ffn0, "ffn.0", c->ffn_dim, D);
    block_linear(w, &b->ffn2, "ffn.2", D, c->ffn_dim);
    w->block = -1;
}

sl_status sl_dit_visit(sl_dit_weights *weights, const sl_dit_config *config, sl_layout layout,
                       sl_precision precision, sl_weight_visitor *visitor, void *arg, sl_error *err)
{
    const sl_dtype file_dtype = layout == SL_LAYOUT_OFFICIAL ? SL_F32 : SL_BF16;
    walk w = walk_begin(visitor, arg, layout, precision, file_dtype, err);
    const int64_t D = config->dim, patch = config->in_dim * 4;
    const sl_tensor patch_form = sl_tensor_of(NULL, w.linear, 2, D, patch);
    const int64_t patch_flat[] = { D, patch };
    const int64_t patch_conv[] = { D, config->in_dim, 1, 2, 2 };
    const bool flat = layout != SL_LAYOUT_OFFICIAL;
    sl_dit_weights none;

    if (!weights)
        weights = &none;
    memset(weights, 0, sizeof *weights);

    /* [D, C, 1, 2, 2] and [D, 4 C] hold the same values in the same order. */
    emit(&w, &weights->patch.w, "patch_embedding.weight", file_dtype, SL_FORM_PLAIN, patch_form,
         flat ? 2 : 5, flat ? patch_flat : patch_conv);
    vector(&w, &weights->patch.b, "patch_embedding.bias", file_dtype, D);
    linear(&w, &weights->text0, "text_embedding.0", D, config->text_dim);
    linear(&w, &weights->text2, "text_embedding.2", D, D);
    linear(&w, &weights->time0, "time_embedding.0", D, config->freq_dim);
    linear(&w, &weights->time2, "time_embedding.2", D, D);
    linear(&w, &weights->time_proj, "time_projection.1", 6 * D, D);
    for (int64_t i = 0; i < config->num_layers; i++)
        dit_block(&w, &weights->blocks[i], i, config);
    set_prefix(&w, "head.");
    emit(&w, &weights->head_modulation, "modulation", file_dtype, SL_FORM_PLAIN,
         sl_tensor_of(NULL, SL_F32, 2, 2, D), 3, (const int64_t[]){ 1, 2, D });
    linear(&w, &weights->head, "head", config->out_dim * 4, D);
    return w.status;
}

sl_status sl_t5_visit(sl_t5_weights *weights, const sl_t5_config *config, sl_precision precision,
                      sl_weight_visitor *visitor, void *arg, sl_error *err)
{
    walk w = walk_begin(visitor, arg, SL_LAYOUT_OFFICIAL, precision, SL_BF16, err);
    const sl_t5_config *c = config;
    sl_t5_weights none;

    if (!weights)
        weights = &none;
    memset(weights, 0, sizeof *weights);

    w.by_row = true;
    matrix(&w, &weights->token, "token_embedding.weight", w.linear, c->vocab, c->dim);
    w.by_row = false;
    for (int64_t i = 0; i < c->num_layers; i++) {
        sl_t5_block *b = &weights->blocks[i];

        w.block = i;
        set_prefix(&w, "blocks.%lld.", (long long)i);
        vector(&w, &b->norm1, "norm1.weight", SL_BF16, c->dim);
        matrix(&w, &b->q, "attn.q.weight", w.linear, c->dim_attn, c->dim);
        matrix(&w, &b->k, "attn.k.weight", w.linear, c->dim_attn, c->dim);
        matrix(&w, &b->v, "attn.v.weight", w.linear, c->dim_attn, c->dim);
        matrix(&w, &b->o, "attn.o.weight", w.linear, c->dim, c->dim_attn);
        matrix(&w, &b->pos, "pos_embedding.embedding.weight", SL_F32, c->num_buckets, c->num_heads);
        vector(&w, &b->norm2, "norm2.weight", SL_BF16, c->dim);
        matrix(&w, &b->gate, "ffn.gate.0.weight", w.linear, c->dim_ffn, c->dim);
        matrix(&w, &b->fc1, "ffn.fc1.weight", w.linear, c->dim_ffn, c->dim);
        matrix(&w, &b->fc2, "ffn.fc2.weight", w.linear, c->dim, c->dim_ffn);
    }
    w.block = -1;
    set_prefix(&w, "%s", "");
    vector(&w, &weights->norm, "norm.weight", SL_BF16, c->dim);
    return w.status;
}

/* gamma [C, 1, 1, 1] (rank 4) or [C, 1, 1] (rank 3, in attention). */
static void gamma_vector(walk *w, sl_tensor *slot, const char *name, int rank, int64_t C)
{
    emit(w, slot, name, w->file_default, SL_FORM_PLAIN, sl_tensor_of(NULL, SL_F32, 1, C), rank,
         (const int64_t[]){ C, 1, 1, 1 });
}

/* A convolution over kt frames and k * k pixels, stored [O, I, kt, k, k]. */
static void conv(walk *w, sl_affine *slot, const char *name, int64_t O, int64_t I, int64_t kt,
                 int64_t k)
{
    char full[64];

    snprintf(full, sizeof full, "%s.weight", name);
    emit(w, &slot->w, full, w->file_default, SL_FORM_CHANNELS_LAST,
         sl_tensor_of(NULL, w->linear, 5, O, kt, k, k, I), 5, (const int64_t[]){ O, I, kt, k, k });
    snprintf(full, sizeof full, "%s.bias", name);
    vector(w, &slot->b, full, w->file_default, O);
}

static void vae_res(walk *w, sl_vae_res *r, const char *half, const char *list, int64_t index,
                    int64_t in, int64_t out)
{
    set_prefix(w, "%s.%s.%lld.", half, list, (long long)index);
    gamma_vector(w, &r->norm0, "residual.0.gamma", 4, in);
    conv(w, &r->conv2, "residual.2", out, in, 3, 3);
    gamma_vector(w, &r->norm3, "residual.3.gamma", 4, out);
    conv(w, &r->conv6, "residual.6", out, out, 3, 3);
    if (in != out)
        conv(w, &r->shortcut, "shortcut", out, in, 1, 1);
}

/* A 1x1 convolution stored [O, I, 1, 1]: a matrix on the device. */
static void conv_1x1(walk *w, sl_affine *slot, const char *name, int64_t O, int64_t I)
{
    char full[64];

    snprintf(full, sizeof full, "%s.weight", name);
    emit(w, &slot->w, full, w->file_default, SL_FORM_PLAIN, sl_tensor_of(NULL, w->linear, 2, O, I),
         4, (const int64_t[]){ O, I, 1, 1 });
    snprintf(full, sizeof full, "%s.bias", name);
    vector(w, &slot->b, full, w->file_default, O);
}

static void vae_middle(walk *w, sl_vae_half *h, const char *half, int64_t C)
{
    vae_res(w, &h->mid0, half, "middle", 0, C, C);
    set_prefix(w, "%s.middle.1.", half);
    gamma_vector(w, &h->mid1.norm, "norm.gamma", 3, C);
    conv_1x1(w, &h->mid1.qkv, "to_qkv", 3 * C, C);
    conv_1x1(w, &h->mid1.proj, "proj", C, C);
    vae_res(w, &h->mid2, half, "middle", 2, C, C);
}

static void vae_head(walk *w, sl_vae_half *h, const char *half, int64_t in, int64_t out)
{
    set_prefix(w, "%s.head.", half);
    gamma_vector(w, &h->head_norm, "0.gamma", 4, in);
    conv(w, &h->head, "2", out, in, 3, 3);
}

/* The spatial convolution of a resampling step and, where time is resampled
 * too, the temporal one. */
static void vae_resample(walk *w, sl_vae_stage *stage, const char *half, const char *list,
                         int64_t index, int64_t in, int64_t out, int64_t time_out)
{
    set_prefix(w, "%s.%s.%lld.", half, list, (long long)index);
    /* stored [O, I, 3, 3]: one frame */
    emit(w, &stage->resample.w, "resample.1.weight", w->file_default, SL_FORM_CHANNELS_LAST,
         sl_tensor_of(NULL, w->linear, 5, out, 1, 3, 3, in), 4, (const int64_t[]){ out, in, 3, 3 });
    vector(w, &stage->resample.b, "resample.1.bias", w->file_default, out);
    if (time_out > 0)
        conv(w, &stage->time_conv, "time_conv", time_out, in, 3, 1);
}

static void vae_encoder(walk *w, sl_vae_half *h, const sl_vae_config *c)
{
    int64_t in = c->dim, index = 0;

    set_prefix(w, "encoder.");
    conv(w, &h->conv1, "conv1", c->dim, 3, 3, 3);
    for (int s = 0; s < 4; s++) {
        sl_vae_stage *stage = &h->stages[s];
        const int64_t out = c->dim * c->dim_mult[s];

        stage->res_count = (int)c->num_res_blocks;
        for (int r = 0; r < stage->res_count; r++, in = out)
            vae_res(w, &stage->res[r], "encoder", "downsamples", index++, in, out);
        if (s < 3)
            vae_resample(w, stage, "encoder", "downsamples", index++, out, out,
                         c->temporal_down[s] ? out : 0);
    }
    vae_middle(w, h, "encoder", in);
    vae_head(w, h, "encoder", in, 2 * c->z_dim);
}

static void vae_decoder(walk *w, sl_vae_half *h, const sl_vae_config *c)
{
    int64_t in = c->dim * c->dim_mult[3], index = 0;

    set_prefix(w, "decoder.");
    conv(w, &h->conv1, "conv1", in, c->z_dim, 3, 3);
    vae_middle(w, h, "decoder", in);
    for (int s = 0; s < 4; s++) {
        sl_vae_stage *stage = &h->stages[s];
        const int64_t out = c->dim * c->dim_mult[3 - s];

        stage->res_count = (int)c->num_res_blocks + 1;
        for (int r = 0; r < stage->res_count; r++, in = out)
            vae_res(w, &stage->res[r], "decoder", "upsamples", index++, in, out);
        if (s < 3) {
            /* up-sampling halves the channels; the temporal convolution comes
             * first and gives two frames' worth */
            vae_resample(w, stage, "decoder", "upsamples", index++, out, out / 2,
                         c->temporal_down[2 - s] ? 2 * out : 0);
            in = out / 2;
        }
    }
    vae_head(w, h, "decoder", in, 3);
}

sl_status sl_vae_visit(sl_vae_weights *weights, const sl_vae_config *config, sl_precision precision,
                       sl_weight_visitor *visitor, void *arg, sl_error *err)
{
    walk w = walk_begin(visitor, arg, SL_LAYOUT_OFFICIAL, precision, SL_F32, err);
    sl_vae_weights none;

    if (!weights)
        weights = &none;
    memset(weights, 0, sizeof *weights);

    vae_encoder(&w, &weights->encoder, config);
    set_prefix(&w, "%s", "");
    conv(&w, &weights->conv1, "conv1", 2 * config->z_dim, 2 * config->z_dim, 1, 1);
    conv(&w, &weights->conv2, "conv2", config->z_dim, config->z_dim, 1, 1);
    vae_decoder(&w, &weights->decoder, config);
    return w.status;
}
