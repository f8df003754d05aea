/* dit.c - see dit.h.  Numbers: the residual stream, the time embedding, the
 * modulation and the velocity are f32; what the exec's numerics call activation
 * is all else: q, k, v, the text's keys and values, tiles.  Exact LayerNorm; int8
 * linears and the attention of the options as their ops say.
 *
 * Only self-attention needs all tokens at once.  Everything else works on tiles
 * of tokens, so that beside the residual stream x only q, k and v exist whole:
 * the peak is x, q, k, v and some tiles, whatever the width of the FFN.
 */
#include "engine/nets/dit.h"

#include "engine/model/stream.h"
#include "engine/nets/dit_part.h"
#include "engine/nets/net.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdlib.h>

/* What one evaluation works with; set up by sl_dit_forward. */
typedef struct {
    sl_exec *exec;
    const sl_ops *ops;
    sl_scratch *scratch;
    const sl_dit_config *config;
    const sl_dit_text *text;
    const sl_dit_attention_options *attention; /* NULL: dense */
    const sl_tap *tap;
    sl_dtype act; /* of activations */
    sl_grid grid;
    int64_t padding; /* of the blocks' norms */
    int64_t S;       /* tokens */
    int64_t tile;    /* tokens of a tile: enough rows for a full-speed matrix product, few
                        enough that a tile of the FFN's hidden layer stays small */
    sl_tensor x;     /* [S, D] residual stream */
    sl_tensor table; /* rope */
    sl_tensor e;     /* [1, D] */
    sl_tensor e0;    /* [6, D] */
    sl_tensor m;     /* [6, D] of the current block: shift, scale, gate, twice */
} forward;

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static float attention_scale(const sl_dit_config *config)
{
    const int64_t head_size = config->dim / config->num_heads;

    return (float)(1.0 / sqrt((double)head_size));
}

/* Row i of a small table as a vector [C]. */
static sl_tensor table_row(const sl_tensor *table, int64_t i)
{
    const sl_tensor row = sl_tensor_rows(table, i, 1);

    return sl_tensor_of(row.data, row.dtype, 1, sl_tensor_count(&row));
}

sl_status sl_dit_prepare(sl_exec *exec, sl_scratch *scratch, const sl_dit_weights *weights,
                         const sl_dit_config *config, const sl_tensor *text, sl_dit_text *out,
                         const sl_tap *tap, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(exec);
    const sl_dtype act = sl_exec_numerics(exec)->activation;
    const int64_t rows = text->dim[0], D = config->dim;
    sl_block_pass pass = { .stream = NULL };
    sl_status status = SL_OK;
    sl_tensor hidden, context;
    sl_dit_rows context_rows;
    size_t mark = sl_scratch_mark(scratch);

    for (int64_t i = 0; i < config->num_layers; i++) {
        SL_TRY(sl_scratch_tensor(scratch, &out->k[i], err, act, 2, rows, D));
        SL_TRY(sl_scratch_tensor(scratch, &out->v[i], err, act, 2, rows, D));
    }
    mark = sl_scratch_mark(scratch);
    SL_TRY(sl_scratch_tensor(scratch, &hidden, err, act, 2, rows, D));
    SL_TRY(sl_scratch_tensor(scratch, &context, err, act, 2, rows, D));
    SL_TRY(ops->linear(exec, &hidden, text, &weights->text0.w, &weights->text0.b, SL_ACT_GELU_TANH,
                       err));
    SL_TRY(ops->linear(exec, &context, &hidden, &weights->text2.w, &weights->text2.b, SL_ACT_NONE,
                       err));
    sl_tap_show(exec, tap, "text", &context);

    SL_TRY(sl_dit_rows_make(&context_rows, exec, scratch, &context,
                            &weights->blocks[0].cross_attn.k, err));
    SL_TRY(sl_block_pass_begin(&pass, weights->stream, exec, err));
    for (int64_t i = 0; i < config->num_layers; i++) {
        const sl_dit_attention *w = &weights->blocks[i].cross_attn;

        SL_TRY(sl_block_pass_get(&pass, i, err));
        SL_TRY(sl_dit_apply(exec, &out->k[i], &context_rows, &w->k, SL_ACT_NONE, err));
        SL_TRY(ops->rms_norm(exec, &out->k[i], &out->k[i], &w->norm_k, config->eps, err));
        SL_TRY(sl_dit_apply(exec, &out->v[i], &context_rows, &w->v, SL_ACT_NONE, err));
    }
done:
    sl_block_pass_end(&pass);
    sl_scratch_release(scratch, mark);
    return status;
}

static sl_status embed_tokens(forward *f, const sl_dit_weights *weights, const sl_tensor *latent,
                              sl_error *err)
{
    const size_t mark = sl_scratch_mark(f->scratch);
    const sl_affine *patch = &weights->patch;
    sl_status status = SL_OK;
    sl_tensor tokens;

    SL_TRY(sl_scratch_tensor(f->scratch, &tokens, err, f->act, 2, f->S, 4 * latent->dim[0]));
    SL_TRY(f->ops->patchify(f->exec, &tokens, latent, err));
    SL_TRY(f->ops->linear(f->exec, &f->x, &tokens, &patch->w, &patch->b, SL_ACT_NONE, err));
done:
    sl_scratch_release(f->scratch, mark);
    return status;
}

/* e and e0 of the timestep (wan.md 4.2). */
static sl_status embed_time(forward *f, const sl_dit_weights *weights, double t, sl_error *err)
{
    const size_t mark = sl_scratch_mark(f->scratch);
    const sl_ops *ops = f->ops;
    const int64_t D = f->config->dim;
    const sl_tensor e0_row = sl_tensor_of(f->e0.data, SL_F32, 2, 1, 6 * D);
    sl_status status = SL_OK;
    sl_tensor wave, hidden;

    SL_TRY(sl_scratch_tensor(f->scratch, &wave, err, SL_F32, 2, 1, f->config->freq_dim));
    SL_TRY(sl_scratch_tensor(f->scratch, &hidden, err, SL_F32, 2, 1, D));
    const sl_tensor wave_vector = table_row(&wave, 0);
    SL_TRY(ops->sinusoid(f->exec, &wave_vector, t, err));
    SL_TRY(ops->linear(f->exec, &hidden, &wave, &weights->time0.w, &weights->time0.b, SL_ACT_SILU,
                       err));
    SL_TRY(ops->linear(f->exec, &f->e, &hidden, &weights->time2.w, &weights->time2.b, SL_ACT_NONE,
                       err));
    SL_TRY(ops->silu(f->exec, &hidden, &f->e, err));
    SL_TRY(ops->linear(f->exec, &e0_row, &hidden, &weights->time_proj.w, &weights->time_proj.b,
                       SL_ACT_NONE, err));
done:
    sl_scratch_release(f->scratch, mark);
    return status;
}

/* LN(x rows) * (1 + scale) + shift, with rows `scale` and `shift` of a table. */
static sl_status modulated_norm(forward *f, const sl_tensor *y, const sl_tensor *x,
                                const sl_tensor *table, int64_t shift_row, int64_t scale_row,
                                int64_t padding, sl_error *err)
{
    const sl_tensor shift = table_row(table, shift_row), scale = table_row(table, scale_row);

    return f->ops->layer_norm(f->exec, y, x, NULL, NULL, &scale, &shift, f->config->eps, padding,
                              err);
}

/* One linear of a block on rows that no other needs. */
static sl_status apply(forward *f, const sl_tensor *y, const sl_tensor *x, const sl_affine *affine,
                       sl_act act, sl_error *err)
{
    const size_t mark = sl_scratch_mark(f->scratch);
    sl_dit_rows rows;
    sl_status status = sl_dit_rows_make(&rows, f->exec, f->scratch, x, affine, err);

    if (status == SL_OK)
        status = sl_dit_apply(f->exec, y, &rows, affine, act, err);
    sl_scratch_release(f->scratch, mark);
    return status;
}

static sl_status project_qkv(forward *f, const sl_dit_attention *w, const sl_tensor *q,
                             const sl_tensor *k, const sl_tensor *v, const sl_tensor *tile,
                             sl_error *err)
{
    const size_t mark = sl_scratch_mark(f->scratch);
    const sl_ops *ops = f->ops;
    sl_status status = SL_OK;
    sl_dit_rows rows;

    for (int64_t first = 0; first < f->S; first += f->tile) {
        const int64_t count = min_i64(f->tile, f->S - first);
        const sl_tensor x = sl_tensor_rows(&f->x, first, count);
        const sl_tensor a = sl_tensor_rows(tile, 0, count);
        const sl_tensor q_rows = sl_tensor_rows(q, first, count);
        const sl_tensor k_rows = sl_tensor_rows(k, first, count);
        const sl_tensor v_rows = sl_tensor_rows(v, first, count);

        SL_TRY(modulated_norm(f, &a, &x, &f->m, 0, 1, f->padding, err));
        SL_TRY(sl_dit_rows_make(&rows, f->exec, f->scratch, &a, &w->q, err));
        SL_TRY(sl_dit_apply(f->exec, &q_rows, &rows, &w->q, SL_ACT_NONE, err));
        SL_TRY(ops->rms_norm(f->exec, &q_rows, &q_rows, &w->norm_q, f->config->eps, err));
        SL_TRY(sl_dit_apply(f->exec, &k_rows, &rows, &w->k, SL_ACT_NONE, err));
        SL_TRY(ops->rms_norm(f->exec, &k_rows, &k_rows, &w->norm_k, f->config->eps, err));
        SL_TRY(sl_dit_apply(f->exec, &v_rows, &rows, &w->v, SL_ACT_NONE, err));
        sl_scratch_release(f->scratch, mark);
    }
done:
    sl_scratch_release(f->scratch, mark);
    return status;
}

/* q becomes the attention's result. */
static sl_status attend(forward *f, const sl_affine *proj_l, int64_t layer, const sl_tensor *q,
                        const sl_tensor *k, const sl_tensor *v, sl_error *err)
{
    const float scale = attention_scale(f->config);

    if (f->attention && f->attention->mode != SL_ATTENTION_DENSE)
        return sl_dit_sparse_attention(f->exec, f->scratch, f->config, f->attention, layer, proj_l,
                                       q, k, v, scale, f->tap, err);
    return f->ops->attention(f->exec, q, q, k, v, NULL, f->config->num_heads, scale, err);
}

static sl_status self_attention(forward *f, const sl_dit_block *block, int64_t layer, sl_error *err)
{
    const sl_dit_attention *w = &block->self_attn;
    const size_t mark = sl_scratch_mark(f->scratch);
    const sl_ops *ops = f->ops;
    const int64_t S = f->S, D = f->config->dim;
    const sl_tensor gate = table_row(&f->m, 2);
    sl_status status = SL_OK;
    sl_tensor q, k, v, tile;

    SL_TRY(sl_scratch_tensor(f->scratch, &q, err, f->act, 2, S, D));
    SL_TRY(sl_scratch_tensor(f->scratch, &k, err, f->act, 2, S, D));
    SL_TRY(sl_scratch_tensor(f->scratch, &v, err, f->act, 2, S, D));
    SL_TRY(sl_scratch_tensor(f->scratch, &tile, err, f->act, 2, min_i64(S, f->tile), D));
    SL_TRY(project_qkv(f, w, &q, &k, &v, &tile, err));
    SL_TRY(ops->rope(f->exec, &q, &f->table, f->grid, err));
    SL_TRY(ops->rope(f->exec, &k, &f->table, f->grid, err));
    SL_TRY(attend(f, &block->proj_l, layer, &q, &k, &v, err));
    for (int64_t first = 0; first < S; first += f->tile) {
        const int64_t count = min_i64(f->tile, S - first);
        const sl_tensor x = sl_tensor_rows(&f->x, first, count);
        const sl_tensor o = sl_tensor_rows(&q, first, count);
        const sl_tensor y = sl_tensor_rows(&tile, 0, count);

        SL_TRY(apply(f, &y, &o, &w->o, SL_ACT_NONE, err));
        SL_TRY(ops->gated_add(f->exec, &x, &y, &gate, err));
    }
done:
    sl_scratch_release(f->scratch, mark);
    return status;
}

/* Keys and values come from the text alone: tiles of queries are independent. */
static sl_status cross_attention(forward *f, const sl_dit_block *block, int64_t layer,
                                 sl_error *err)
{
    const size_t mark = sl_scratch_mark(f->scratch);
    const sl_dit_attention *w = &block->cross_attn;
    const sl_ops *ops = f->ops;
    const int64_t tile = min_i64(f->S, f->tile), D = f->config->dim;
    sl_status status = SL_OK;
    sl_tensor norm_tile, q_tile;

    SL_TRY(sl_scratch_tensor(f->scratch, &norm_tile, err, f->act, 2, tile, D));
    SL_TRY(sl_scratch_tensor(f->scratch, &q_tile, err, f->act, 2, tile, D));
    for (int64_t first = 0; first < f->S; first += f->tile) {
        const int64_t count = min_i64(f->tile, f->S - first);
        const sl_tensor x = sl_tensor_rows(&f->x, first, count);
        const sl_tensor a = sl_tensor_rows(&norm_tile, 0, count);
        const sl_tensor q = sl_tensor_rows(&q_tile, 0, count);

        SL_TRY(ops->layer_norm(f->exec, &a, &x, &block->norm3.w, &block->norm3.b, NULL, NULL,
                               f->config->eps, f->padding, err));
        SL_TRY(apply(f, &q, &a, &w->q, SL_ACT_NONE, err));
        SL_TRY(ops->rms_norm(f->exec, &q, &q, &w->norm_q, f->config->eps, err));
        SL_TRY(ops->attention(f->exec, &q, &q, &f->text->k[layer], &f->text->v[layer], NULL,
                              f->config->num_heads, attention_scale(f->config), err));
        SL_TRY(apply(f, &a, &q, &w->o, SL_ACT_NONE, err));
        SL_TRY(ops->add(f->exec, &x, &x, &a, err));
    }
done:
    sl_scratch_release(f->scratch, mark);
    return status;
}

static sl_status feed_forward(forward *f, const sl_dit_block *block, sl_error *err)
{
    const size_t mark = sl_scratch_mark(f->scratch);
    const sl_ops *ops = f->ops;
    const int64_t tile = min_i64(f->S, f->tile);
    const sl_tensor gate = table_row(&f->m, 5);
    sl_status status = SL_OK;
    sl_tensor norm_tile, hidden_tile;

    SL_TRY(sl_scratch_tensor(f->scratch, &norm_tile, err, f->act, 2, tile, f->config->dim));
    SL_TRY(sl_scratch_tensor(f->scratch, &hidden_tile, err, f->act, 2, tile, f->config->ffn_dim));
    for (int64_t first = 0; first < f->S; first += f->tile) {
        const int64_t count = min_i64(f->tile, f->S - first);
        const sl_tensor x = sl_tensor_rows(&f->x, first, count);
        const sl_tensor a = sl_tensor_rows(&norm_tile, 0, count);
        const sl_tensor hidden = sl_tensor_rows(&hidden_tile, 0, count);

        SL_TRY(modulated_norm(f, &a, &x, &f->m, 3, 4, f->padding, err));
        SL_TRY(apply(f, &hidden, &a, &block->ffn0, SL_ACT_GELU_TANH, err));
        SL_TRY(apply(f, &a, &hidden, &block->ffn2, SL_ACT_NONE, err));
        SL_TRY(ops->gated_add(f->exec, &x, &a, &gate, err));
    }
done:
    sl_scratch_release(f->scratch, mark);
    return status;
}

/* The head is modulated with e, not with e0 (wan.md 4.6). */
static sl_status run_head(forward *f, const sl_dit_weights *weights, const sl_tensor *velocity,
                          sl_error *err)
{
    const size_t mark = sl_scratch_mark(f->scratch);
    const sl_ops *ops = f->ops;
    const int64_t D = f->config->dim;
    sl_status status = SL_OK;
    sl_tensor m, out, tile;

    SL_TRY(sl_scratch_tensor(f->scratch, &m, err, SL_F32, 2, 2, D));
    SL_TRY(sl_scratch_tensor(f->scratch, &out, err, SL_F32, 2, f->S, 4 * f->config->out_dim));
    SL_TRY(sl_scratch_tensor(f->scratch, &tile, err, f->act, 2, min_i64(f->S, f->tile), D));
    for (int64_t row = 0; row < 2; row++) {
        const sl_tensor sum = sl_tensor_rows(&m, row, 1);
        const sl_tensor own = sl_tensor_rows(&weights->head_modulation, row, 1);

        SL_TRY(ops->add(f->exec, &sum, &f->e, &own, err));
    }
    for (int64_t first = 0; first < f->S; first += f->tile) {
        const int64_t count = min_i64(f->tile, f->S - first);
        const sl_tensor x = sl_tensor_rows(&f->x, first, count);
        const sl_tensor a = sl_tensor_rows(&tile, 0, count);
        const sl_tensor y = sl_tensor_rows(&out, first, count);

        SL_TRY(modulated_norm(f, &a, &x, &m, 0, 1, 0, err));
        SL_TRY(ops->linear(f->exec, &y, &a, &weights->head.w, &weights->head.b, SL_ACT_NONE, err));
    }
    SL_TRY(ops->unpatchify(f->exec, velocity, &out, err));
done:
    sl_scratch_release(f->scratch, mark);
    return status;
}

static sl_status check_shapes(const sl_dit_config *config, const sl_tensor *latent,
                              const sl_tensor *velocity, sl_error *err)
{
    char got[96], out[96];

    if (latent->rank == 4 && velocity->rank == 4 && latent->dim[0] == config->in_dim &&
        velocity->dim[0] == config->out_dim && latent->dim[1] == velocity->dim[1] &&
        latent->dim[2] == velocity->dim[2] && latent->dim[3] == velocity->dim[3] &&
        latent->dim[2] % 2 == 0 && latent->dim[3] % 2 == 0)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID,
                   "diffusion transformer: latent %s and velocity %s: expected [%lld, T, h, w] and "
                   "[%lld, T, h, w] with even h and w",
                   sl_tensor_describe(latent, got, sizeof got),
                   sl_tensor_describe(velocity, out, sizeof out), (long long)config->in_dim,
                   (long long)config->out_dim);
}

/* To the next power of two, as the reference's kernel has its rows. */
static int64_t norm_padding(const sl_dit_config *config, const sl_dit_attention_options *options)
{
    int64_t padded = 1;

    if (!options || options->norm != SL_LAYER_NORM_TURBO_COMPAT)
        return 0;
    while (padded < config->dim)
        padded *= 2;
    return padded - config->dim;
}

static sl_status make_table(forward *f, sl_error *err)
{
    const sl_tensor *table = &f->table;

    if (!f->attention || f->attention->dialect != SL_DIALECT_OFFICIAL)
        return f->ops->rope_table(f->exec, table, err);
    float *host = malloc(sl_tensor_bytes(table));
    if (!host)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a table of rotary angles");
    sl_rope_table_f64(host, table->dim[0], table->dim[1]);
    const sl_status status =
        sl_exec_write(f->exec, table->data, host, sl_tensor_bytes(table), err);
    free(host);
    return status;
}

sl_status sl_dit_forward(sl_exec *exec, sl_scratch *scratch, const sl_dit_weights *weights,
                         const sl_dit_config *config, const sl_dit_text *text,
                         const sl_dit_attention_options *attention, double t,
                         const sl_tensor *latent, const sl_tensor *velocity, const sl_tap *tap,
                         sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    const int64_t D = config->dim, pairs = D / config->num_heads / 2;
    sl_block_pass pass = { .stream = NULL };
    sl_status status = SL_OK;
    forward f = {
        .exec = exec,
        .ops = sl_exec_ops(exec),
        .scratch = scratch,
        .config = config,
        .text = text,
        .attention = attention,
        .tap = tap,
        .act = sl_exec_numerics(exec)->activation,
        .tile = sl_exec_numerics(exec)->tile_tokens,
        .padding = norm_padding(config, attention),
    };

    SL_TRY(check_shapes(config, latent, velocity, err));
    if (attention)
        SL_TRY(sl_dit_attention_check(config, attention->mode, attention->topk_ratio, err));
    f.grid = (sl_grid){ latent->dim[1], latent->dim[2] / 2, latent->dim[3] / 2 };
    f.S = f.grid.T * f.grid.H * f.grid.W;
    SL_TRY(sl_scratch_tensor(scratch, &f.x, err, SL_F32, 2, f.S, D));
    SL_TRY(sl_scratch_tensor(scratch, &f.table, err, SL_F32, 3, SL_ROPE_MAX_POS, pairs, 2));
    SL_TRY(sl_scratch_tensor(scratch, &f.e, err, SL_F32, 2, 1, D));
    SL_TRY(sl_scratch_tensor(scratch, &f.e0, err, SL_F32, 2, 6, D));
    SL_TRY(sl_scratch_tensor(scratch, &f.m, err, SL_F32, 2, 6, D));

    SL_TRY(make_table(&f, err));
    SL_TRY(embed_tokens(&f, weights, latent, err));
    SL_TRY(embed_time(&f, weights, t, err));
    sl_tap_show(exec, tap, "patch", &f.x);
    sl_tap_show(exec, tap, "e", &f.e);
    sl_tap_show(exec, tap, "e0", &f.e0);
    SL_TRY(sl_block_pass_begin(&pass, weights->stream, exec, err));
    for (int64_t i = 0; i < config->num_layers; i++) {
        const sl_dit_block *block = &weights->blocks[i];

        SL_TRY(sl_block_pass_get(&pass, i, err));
        SL_TRY(f.ops->add(exec, &f.m, &f.e0, &block->modulation, err));
        SL_TRY(self_attention(&f, block, i, err));
        SL_TRY(cross_attention(&f, block, i, err));
        SL_TRY(feed_forward(&f, block, err));
        sl_tap_show_index(exec, tap, "block", i, &f.x);
    }
    sl_block_pass_end(&pass);
    SL_TRY(run_head(&f, weights, velocity, err));
done:
    sl_block_pass_end(&pass);
    sl_scratch_release(scratch, mark);
    return status;
}
