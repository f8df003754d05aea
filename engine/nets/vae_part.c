#include "engine/nets/vae_part.h"

#include <math.h>

sl_status sl_vae_stream_begin(sl_vae_stream *stream, const char *name, sl_exec *exec,
                              sl_scratch *scratch, const sl_vae_weights *weights,
                              const sl_vae_config *config, int64_t T, int64_t h, int64_t w,
                              const sl_tap *tap, sl_error *err)
{
    sl_status status = SL_OK;

    *stream = (sl_vae_stream){ .name = name,
                               .exec = exec,
                               .scratch = scratch,
                               .weights = weights,
                               .config = config,
                               .tap = tap,
                               .act = sl_exec_numerics(exec)->frames,
                               .T = T,
                               .h = h,
                               .w = w };
    if (T < 1 || h < 1 || w < 1 || config->z_dim > (int64_t)SL_COUNT(config->mean))
        return sl_fail(err, SL_ERR_INVALID,
                       "video %s: %lld latent frames of %lld x %lld with %lld channels", name,
                       (long long)T, (long long)h, (long long)w, (long long)config->z_dim);
    SL_TRY(sl_scratch_tensor(scratch, &stream->scale, err, SL_F32, 1, config->z_dim));
    SL_TRY(sl_scratch_tensor(scratch, &stream->shift, err, SL_F32, 1, config->z_dim));
done:
    return status;
}

sl_status sl_vae_stream_check_turn(const sl_vae_stream *stream, int64_t t, sl_error *err)
{
    if (t == stream->chunk_index && t < stream->T)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "video %s: latent frame %lld: expected frame %lld of %lld",
                   stream->name, (long long)t, (long long)stream->chunk_index,
                   (long long)stream->T);
}

/* ---- buffers ---- */

sl_status sl_vae_take_buffers(sl_vae_part *p, int64_t elements, sl_error *err)
{
    sl_status status = SL_OK;

    for (int i = 0; i < SL_VAE_WORK_BUFFERS && status == SL_OK; i++)
        status =
            sl_scratch_tensor(p->stream->scratch, &p->buffers[i], err, p->stream->act, 1, elements);
    return status;
}

sl_tensor sl_vae_spare(const sl_vae_part *p, int k, int64_t n, int64_t H, int64_t W, int64_t C)
{
    int i = 0;

    for (;; i++) {
        SL_ASSERT(i < SL_VAE_WORK_BUFFERS);
        if (i != p->at && k-- == 0)
            break;
    }
    const sl_tensor view = sl_tensor_of(p->buffers[i].data, p->stream->act, 4, n, H, W, C);
    SL_ASSERT(sl_tensor_count(&view) <= p->buffers[i].dim[0]);
    return view;
}

void sl_vae_move_to(sl_vae_part *p, const sl_tensor *y)
{
    p->x = *y;
    p->at = SL_VAE_ELSEWHERE;
    for (int i = 0; i < SL_VAE_WORK_BUFFERS; i++)
        if (p->buffers[i].data == y->data)
            p->at = i;
}

int64_t sl_vae_res_elements(const sl_vae_stage *stage, int64_t n, int64_t H, int64_t W)
{
    int64_t most = 0;

    for (int r = 0; r < stage->res_count; r++) {
        const int64_t *dim = stage->res[r].conv2.w.dim;
        most = sl_vae_max(most, n * H * W * sl_vae_max(dim[0], dim[4]));
    }
    return most;
}

/* ---- caches ---- */

sl_status sl_vae_reserve_cache(sl_vae_stream *stream, int64_t frames, int64_t H, int64_t W,
                               int64_t C, sl_error *err)
{
    SL_ASSERT(stream->cache_count < SL_VAE_MAX_CACHES);
    sl_vae_cache *cache = &stream->caches[stream->cache_count++];

    return sl_scratch_tensor(stream->scratch, &cache->frames, err, stream->act, 4, frames, H, W, C);
}

sl_status sl_vae_reserve_res_caches(sl_vae_stream *stream, const sl_vae_res *res, int64_t H,
                                    int64_t W, sl_error *err)
{
    sl_status status = sl_vae_reserve_cache(stream, 2, H, W, res->conv2.w.dim[4], err);

    if (status == SL_OK)
        status = sl_vae_reserve_cache(stream, 2, H, W, res->conv6.w.dim[4], err);
    return status;
}

sl_vae_cache *sl_vae_next_cache(sl_vae_part *p)
{
    if (!p->next_cache)
        return NULL;
    SL_ASSERT(*p->next_cache < p->stream->cache_count);
    return &p->stream->caches[(*p->next_cache)++];
}

/* ---- convolutions ---- */

/* The new cache is the last two frames of [cache | x]. */
static sl_status remember(sl_vae_part *p, sl_vae_cache *cache, const sl_tensor *x, sl_error *err)
{
    sl_exec *exec = p->stream->exec;
    const int64_t n = x->dim[0];
    const sl_tensor older = sl_tensor_rows(&cache->frames, 0, 1);
    const sl_tensor newer = sl_tensor_rows(&cache->frames, 1, 1);
    sl_status status = SL_OK;

    if (n >= 2) {
        const sl_tensor last = sl_tensor_rows(x, n - 2, 2);
        SL_TRY(p->ops->copy(exec, &cache->frames, &last, err));
        cache->count = 2;
    } else if (cache->count == 0) {
        SL_TRY(p->ops->copy(exec, &older, x, err));
        cache->count = 1;
    } else {
        if (cache->count == 2)
            SL_TRY(p->ops->copy(exec, &older, &newer, err));
        SL_TRY(p->ops->copy(exec, &newer, x, err));
        cache->count = 2;
    }
done:
    return status;
}

sl_status sl_vae_causal_conv(sl_vae_part *p, const sl_tensor *y, const sl_tensor *x,
                             const sl_affine *affine, const sl_tensor *residual, sl_error *err)
{
    const int pad = affine->w.dim[2] == 3 ? 1 : 0;
    sl_vae_cache *cache = sl_vae_next_cache(p);
    sl_conv_params params = { .zero_frames = 2,
                              .stride_t = 1,
                              .stride_hw = 1,
                              .pad_top = pad,
                              .pad_bottom = pad,
                              .pad_left = pad,
                              .pad_right = pad,
                              .upsample = 1 };
    sl_tensor cached, *given = NULL;
    sl_status status = SL_OK;

    if (cache) {
        params.zero_frames = 2 - cache->count;
        cached = sl_tensor_rows(&cache->frames, 0, cache->count);
        if (cache->count > 0)
            given = &cached;
    }
    SL_TRY(
        p->ops->conv(p->stream->exec, y, x, given, &affine->w, &affine->b, residual, &params, err));
    if (cache)
        SL_TRY(remember(p, cache, x, err));
done:
    return status;
}

/* The same as a product over channels. */
sl_status sl_vae_pointwise(sl_vae_part *p, const sl_tensor *y, const sl_tensor *x,
                           const sl_affine *affine, sl_error *err)
{
    const int64_t rows = x->dim[0] * x->dim[1] * x->dim[2];
    const sl_tensor w = sl_tensor_of(affine->w.data, affine->w.dtype, 2, y->dim[3], x->dim[3]);
    const sl_tensor b = sl_tensor_rows(&affine->b, 0, y->dim[3]);
    const sl_tensor in = sl_tensor_of(x->data, x->dtype, 2, rows, x->dim[3]);
    const sl_tensor out = sl_tensor_of(y->data, y->dtype, 2, rows, y->dim[3]);

    SL_ASSERT(affine->w.dim[0] >= y->dim[3] &&
              sl_tensor_count(&affine->w) == affine->w.dim[0] * x->dim[3]);
    return p->ops->linear(p->stream->exec, &out, &in, &w, &b, SL_ACT_NONE, err);
}

/* ---- blocks ---- */

sl_status sl_vae_res_block(sl_vae_part *p, const sl_vae_res *w, sl_error *err)
{
    sl_exec *exec = p->stream->exec;
    const int64_t n = p->x.dim[0], H = p->x.dim[1], W = p->x.dim[2], C = p->x.dim[3];
    const int64_t O = w->conv2.w.dim[0];
    const sl_tensor h = sl_vae_spare(p, 0, n, H, W, C), between = sl_vae_spare(p, 1, n, H, W, O);
    sl_tensor y = p->x;
    sl_status status = SL_OK;

    SL_TRY(p->ops->channel_norm(exec, &h, &p->x, &w->norm0, true, err));
    SL_TRY(sl_vae_causal_conv(p, &between, &h, &w->conv2, NULL, err));
    SL_TRY(p->ops->channel_norm(exec, &between, &between, &w->norm3, true, err));
    if (sl_vae_has(&w->shortcut)) {
        y = sl_vae_spare(p, 0, n, H, W, O); /* h has been used up */
        SL_TRY(sl_vae_pointwise(p, &y, &p->x, &w->shortcut, err));
    }
    SL_TRY(sl_vae_causal_conv(p, &y, &between, &w->conv6, &y, err));
    if (sl_vae_has(&w->shortcut))
        sl_vae_move_to(p, &y);
done:
    return status;
}

/* One head over the positions of each frame. */
static sl_status middle_attention(sl_vae_part *p, const sl_vae_attn *w, sl_error *err)
{
    sl_exec *exec = p->stream->exec;
    const int64_t n = p->x.dim[0], H = p->x.dim[1], W = p->x.dim[2], C = p->x.dim[3];
    const sl_tensor h = sl_vae_spare(p, 0, n, H, W, C), work = sl_vae_spare(p, 1, 3, H, W, C);
    const float scale = (float)(1.0 / sqrt((double)C));
    sl_tensor qkv[3];
    sl_status status = SL_OK;

    SL_TRY(p->ops->channel_norm(exec, &h, &p->x, &w->norm, false, err));
    for (int64_t f = 0; f < n; f++) {
        const sl_tensor frame = sl_tensor_rows(&h, f, 1);
        const sl_tensor in = sl_tensor_reshape(&frame, 2, (const int64_t[]){ H * W, C });

        for (int i = 0; i < 3; i++) {
            const sl_tensor weight = sl_tensor_rows(&w->qkv.w, i * C, C);
            const sl_tensor bias = sl_tensor_rows(&w->qkv.b, i * C, C);
            const sl_tensor third = sl_tensor_rows(&work, i, 1);

            qkv[i] = sl_tensor_reshape(&third, 2, (const int64_t[]){ H * W, C });
            SL_TRY(p->ops->linear(exec, &qkv[i], &in, &weight, &bias, SL_ACT_NONE, err));
        }
        SL_TRY(p->ops->attention(exec, &qkv[0], &qkv[0], &qkv[1], &qkv[2], NULL, 1, scale, err));
        SL_TRY(p->ops->linear(exec, &in, &qkv[0], &w->proj.w, &w->proj.b, SL_ACT_NONE, err));
    }
    SL_TRY(p->ops->add(exec, &p->x, &p->x, &h, err));
done:
    return status;
}

sl_status sl_vae_middle(sl_vae_part *p, const sl_vae_half *net, sl_error *err)
{
    sl_status status = SL_OK;

    SL_TRY(sl_vae_res_block(p, &net->mid0, err));
    SL_TRY(middle_attention(p, &net->mid1, err));
    SL_TRY(sl_vae_res_block(p, &net->mid2, err));
    sl_vae_show(p, "middle", -1);
done:
    return status;
}

void sl_vae_show(const sl_vae_part *p, const char *what, int index)
{
    const sl_vae_stream *stream = p->stream;
    char name[64], digits[16] = "";

    if (!sl_tap_wanted(stream->exec, stream->tap))
        return;
    if (index >= 0)
        snprintf(digits, sizeof digits, "%d", index);
    snprintf(name, sizeof name, "%.3s.chunk%lld.%s%s", stream->name, (long long)stream->chunk_index,
             what, digits);
    sl_tap_show(stream->exec, stream->tap, name, &p->x);
}
