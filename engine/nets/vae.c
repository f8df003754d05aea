/* vae.c - see vae.h.  Numbers: all f32.
 *
 * Memory of a chunk, beside the caches: the pictures given back, the hand-over
 * between the two parts, and three work buffers.  Three are enough for every
 * step: a residual block needs its input (which is also its output unless the
 * channels change), the normalised input, and what is between its convolutions.
 */
#include "engine/nets/vae.h"

#include "engine/nets/net.h"
#include "kernels/ops.h"

#include <math.h>

enum { STAGES = 4, WORK_BUFFERS = 3, ELSEWHERE = -1 };

/* One part of a chunk under way. */
typedef struct {
    sl_vae_decoder *d;
    const sl_ops *ops;
    int *next_cache;                 /* index into d->caches; NULL: no cache at all */
    sl_tensor buffers[WORK_BUFFERS]; /* flat f32 */
    sl_tensor x;                     /* [n, H, W, C], the current activation */
    int at;                          /* the buffer that x is in, or ELSEWHERE */
} part;

static int64_t max_i64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int64_t sl_vae_frame_count(const sl_vae_config *config, int64_t T)
{
    int64_t per_latent = 1;

    for (size_t i = 0; i < SL_COUNT(config->temporal_down); i++)
        if (config->temporal_down[i])
            per_latent *= 2;
    return 1 + (T - 1) * per_latent;
}

static bool has(const sl_affine *affine)
{
    return affine->w.data != NULL;
}

/* Stages [0, result) run on whole chunks: the last of them doubles time. */
static int whole_stage_count(const sl_vae_half *net)
{
    int count = 0;

    for (int s = 0; s < STAGES; s++)
        if (has(&net->stages[s].time_conv))
            count = s + 1;
    return count;
}

/* ---- buffers ---- */

/* The k-th work buffer that x is not in, as a tensor of the given shape. */
static sl_tensor spare(const part *p, int k, int64_t n, int64_t H, int64_t W, int64_t C)
{
    int i = 0;

    for (;; i++) {
        SL_ASSERT(i < WORK_BUFFERS);
        if (i != p->at && k-- == 0)
            break;
    }
    const sl_tensor view = sl_tensor_of(p->buffers[i].data, SL_F32, 4, n, H, W, C);
    SL_ASSERT(sl_tensor_count(&view) <= p->buffers[i].dim[0]);
    return view;
}

/* x is now `y`, which lies in a work buffer. */
static void move_to(part *p, const sl_tensor *y)
{
    p->x = *y;
    p->at = ELSEWHERE;
    for (int i = 0; i < WORK_BUFFERS; i++)
        if (p->buffers[i].data == y->data)
            p->at = i;
}

/* The largest activation of stage s, [n, H, W, .] at its entry, n_up frames
 * behind its temporal convolution. */
static int64_t stage_elements(const sl_vae_stage *stage, int64_t n, int64_t n_up, int64_t H,
                              int64_t W, bool resample_too)
{
    int64_t most = 0;

    for (int r = 0; r < stage->res_count; r++) {
        const int64_t *dim = stage->res[r].conv2.w.dim;
        most = max_i64(most, n * H * W * max_i64(dim[0], dim[4]));
    }
    if (n_up != n) /* both halves in one tensor, then as pairs: the same size */
        most = max_i64(most, n * H * W * stage->time_conv.w.dim[0]);
    if (resample_too && has(&stage->resample))
        most = max_i64(most, n_up * 2 * H * 2 * W * stage->resample.w.dim[0]);
    return most;
}

/* What both parts need, from one walk over the stages. */
typedef struct {
    int64_t whole_elements, frame_elements; /* a work buffer of each part */
    int64_t hand_n, hand_h, hand_w, hand_c; /* hand-over between the parts */
} chunk_sizes;

static chunk_sizes measure_chunk(const sl_vae_decoder *d)
{
    const sl_vae_half *net = &d->weights->decoder;
    const int whole = whole_stage_count(net);
    const int64_t C = net->conv1.w.dim[0];
    int64_t n = 1, H = d->h, W = d->w;
    /* 3 C: q, k and v of the middle attention lie in one buffer */
    chunk_sizes sizes = { .whole_elements = H * W * max_i64(3 * C, net->conv1.w.dim[4]),
                          .hand_n = 1,
                          .hand_h = H,
                          .hand_w = W,
                          .hand_c = C };

    for (int s = 0; s < STAGES; s++) {
        const sl_vae_stage *stage = &net->stages[s];
        const bool doubles = has(&stage->time_conv) && d->chunk_index > 0;

        if (s < whole) {
            const int64_t n_up = doubles ? 2 * n : n;
            sizes.whole_elements =
                max_i64(sizes.whole_elements, stage_elements(stage, n, n_up, H, W, s + 1 < whole));
            n = n_up;
        } else {
            sizes.frame_elements =
                max_i64(sizes.frame_elements, stage_elements(stage, 1, 1, H, W, true));
        }
        if (has(&stage->resample)) {
            H *= 2;
            W *= 2;
        }
        if (s + 1 == whole) {
            sizes.hand_n = n;
            sizes.hand_h = H;
            sizes.hand_w = W;
            sizes.hand_c = has(&stage->resample) ? stage->resample.w.dim[0] : C;
        }
    }
    return sizes;
}

static sl_status take_buffers(part *p, int64_t elements, sl_error *err)
{
    sl_status status = SL_OK;

    for (int i = 0; i < WORK_BUFFERS && status == SL_OK; i++)
        status = sl_scratch_tensor(p->d->scratch, &p->buffers[i], err, SL_F32, 1, elements);
    return status;
}

/* ---- convolutions ---- */

/* The new cache is the last two frames of [cache | x]. */
static sl_status remember(part *p, sl_vae_cache *cache, const sl_tensor *x, sl_error *err)
{
    const int64_t n = x->dim[0];
    const sl_tensor older = sl_tensor_rows(&cache->frames, 0, 1);
    const sl_tensor newer = sl_tensor_rows(&cache->frames, 1, 1);
    sl_status status = SL_OK;

    if (n >= 2) {
        const sl_tensor last = sl_tensor_rows(x, n - 2, 2);
        SL_TRY(p->ops->copy(p->d->exec, &cache->frames, &last, err));
        cache->count = 2;
    } else if (cache->count == 0) {
        SL_TRY(p->ops->copy(p->d->exec, &older, x, err));
        cache->count = 1;
    } else {
        if (cache->count == 2)
            SL_TRY(p->ops->copy(p->d->exec, &older, &newer, err));
        SL_TRY(p->ops->copy(p->d->exec, &newer, x, err));
        cache->count = 2;
    }
done:
    return status;
}

/* Three frames deep, same size: zeros stand in for frames before the first. */
static sl_status causal_conv(part *p, const sl_tensor *y, const sl_tensor *x,
                             const sl_affine *affine, const sl_tensor *residual, sl_error *err)
{
    const int pad = affine->w.dim[2] == 3 ? 1 : 0;
    sl_conv_params params = { .zero_frames = 2,
                              .stride_t = 1,
                              .stride_hw = 1,
                              .pad_top = pad,
                              .pad_bottom = pad,
                              .pad_left = pad,
                              .pad_right = pad,
                              .upsample = 1 };
    sl_vae_cache *cache = NULL;
    sl_tensor cached, *given = NULL;
    sl_status status = SL_OK;

    if (p->next_cache) {
        SL_ASSERT(*p->next_cache < p->d->cache_count);
        cache = &p->d->caches[(*p->next_cache)++];
        params.zero_frames = 2 - cache->count;
        cached = sl_tensor_rows(&cache->frames, 0, cache->count);
        if (cache->count > 0)
            given = &cached;
    }
    SL_TRY(p->ops->conv(p->d->exec, y, x, given, &affine->w, &affine->b, residual, &params, err));
    if (cache)
        SL_TRY(remember(p, cache, x, err));
done:
    return status;
}

/* A 1x1x1 convolution is a product over channels. */
static sl_status pointwise(part *p, const sl_tensor *y, const sl_tensor *x, const sl_affine *affine,
                           sl_error *err)
{
    const int64_t rows = x->dim[0] * x->dim[1] * x->dim[2];
    const sl_tensor w = sl_tensor_of(affine->w.data, affine->w.dtype, 2, y->dim[3], x->dim[3]);
    const sl_tensor in = sl_tensor_of(x->data, SL_F32, 2, rows, x->dim[3]);
    const sl_tensor out = sl_tensor_of(y->data, SL_F32, 2, rows, y->dim[3]);

    SL_ASSERT(sl_tensor_count(&w) == sl_tensor_count(&affine->w));
    return p->ops->linear(p->d->exec, &out, &in, &w, &affine->b, SL_ACT_NONE, err);
}

/* ---- blocks ---- */

static sl_status res_block(part *p, const sl_vae_res *w, sl_error *err)
{
    sl_exec *exec = p->d->exec;
    const int64_t n = p->x.dim[0], H = p->x.dim[1], W = p->x.dim[2], C = p->x.dim[3];
    const int64_t O = w->conv2.w.dim[0];
    const sl_tensor h = spare(p, 0, n, H, W, C), between = spare(p, 1, n, H, W, O);
    sl_tensor y = p->x;
    sl_status status = SL_OK;

    SL_TRY(p->ops->channel_norm(exec, &h, &p->x, &w->norm0, true, err));
    SL_TRY(causal_conv(p, &between, &h, &w->conv2, NULL, err));
    SL_TRY(p->ops->channel_norm(exec, &between, &between, &w->norm3, true, err));
    if (has(&w->shortcut)) {
        y = spare(p, 0, n, H, W, O); /* h has been used up */
        SL_TRY(pointwise(p, &y, &p->x, &w->shortcut, err));
    }
    SL_TRY(causal_conv(p, &y, &between, &w->conv6, &y, err));
    if (has(&w->shortcut))
        move_to(p, &y);
done:
    return status;
}

/* One head over the positions of each frame. */
static sl_status middle_attention(part *p, const sl_vae_attn *w, sl_error *err)
{
    sl_exec *exec = p->d->exec;
    const int64_t n = p->x.dim[0], H = p->x.dim[1], W = p->x.dim[2], C = p->x.dim[3];
    const sl_tensor h = spare(p, 0, n, H, W, C), work = spare(p, 1, 3, H, W, C);
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

/* up3d's first half: every frame becomes two.  The very first frame of a video
 * passes through and is not remembered: chunk 1 sees zeros before it. */
static sl_status double_time(part *p, const sl_affine *time_conv, sl_error *err)
{
    const int64_t n = p->x.dim[0], H = p->x.dim[1], W = p->x.dim[2], C = p->x.dim[3];
    sl_status status = SL_OK;

    if (p->d->chunk_index == 0) {
        if (p->next_cache)
            ++*p->next_cache;
        return SL_OK;
    }
    const sl_tensor halves = spare(p, 0, n, H, W, 2 * C), y = spare(p, 1, 2 * n, H, W, C);
    SL_TRY(causal_conv(p, &halves, &p->x, time_conv, NULL, err));
    SL_TRY(p->ops->pair_frames(p->d->exec, &y, &halves, err));
    move_to(p, &y);
done:
    return status;
}

/* Residual blocks, then time, then space; `out` NULL: into a work buffer. */
static sl_status run_stage(part *p, const sl_vae_stage *stage, const sl_tensor *out, sl_error *err)
{
    static const sl_conv_params enlarge = { .stride_t = 1,
                                            .stride_hw = 1,
                                            .pad_top = 1,
                                            .pad_bottom = 1,
                                            .pad_left = 1,
                                            .pad_right = 1,
                                            .upsample = 2 };
    sl_status status = SL_OK;

    for (int r = 0; r < stage->res_count; r++)
        SL_TRY(res_block(p, &stage->res[r], err));
    if (has(&stage->time_conv))
        SL_TRY(double_time(p, &stage->time_conv, err));
    if (has(&stage->resample)) {
        const sl_tensor y = out ? *out
                                : spare(p, 0, p->x.dim[0], 2 * p->x.dim[1], 2 * p->x.dim[2],
                                        stage->resample.w.dim[0]);

        SL_TRY(p->ops->conv(p->d->exec, &y, &p->x, NULL, &stage->resample.w, &stage->resample.b,
                            NULL, &enlarge, err));
        move_to(p, &y);
    }
done:
    return status;
}

/* ---- the decoder ---- */

static sl_status reserve_cache(sl_vae_decoder *d, int64_t H, int64_t W, int64_t C, sl_error *err)
{
    SL_ASSERT(d->cache_count < SL_VAE_MAX_CACHES);
    sl_vae_cache *cache = &d->caches[d->cache_count++];

    return sl_scratch_tensor(d->scratch, &cache->frames, err, SL_F32, 4, 2, H, W, C);
}

static sl_status reserve_res_caches(sl_vae_decoder *d, const sl_vae_res *res, int64_t H, int64_t W,
                                    sl_error *err)
{
    sl_status status = reserve_cache(d, H, W, res->conv2.w.dim[4], err);

    if (status == SL_OK)
        status = reserve_cache(d, H, W, res->conv6.w.dim[4], err);
    return status;
}

/* In the order in which the convolutions run. */
static sl_status reserve_caches(sl_vae_decoder *d, sl_error *err)
{
    const sl_vae_half *net = &d->weights->decoder;
    int64_t H = d->h, W = d->w;
    sl_status status = SL_OK;

    SL_TRY(reserve_cache(d, H, W, net->conv1.w.dim[4], err));
    SL_TRY(reserve_res_caches(d, &net->mid0, H, W, err));
    SL_TRY(reserve_res_caches(d, &net->mid2, H, W, err));
    for (int s = 0; s < STAGES; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        for (int r = 0; r < stage->res_count; r++)
            SL_TRY(reserve_res_caches(d, &stage->res[r], H, W, err));
        if (has(&stage->time_conv))
            SL_TRY(reserve_cache(d, H, W, stage->time_conv.w.dim[4], err));
        if (has(&stage->resample)) {
            H *= 2;
            W *= 2;
        }
    }
    SL_TRY(reserve_cache(d, H, W, net->head.w.dim[4], err));
done:
    return status;
}

sl_status sl_vae_decoder_begin(sl_vae_decoder *decoder, sl_exec *exec, sl_scratch *scratch,
                               const sl_vae_weights *weights, const sl_vae_config *config,
                               int64_t T, int64_t h, int64_t w, const sl_tap *tap, sl_error *err)
{
    const size_t vector_bytes = (size_t)config->z_dim * sizeof(float);
    sl_status status = SL_OK;

    if (T < 1 || h < 1 || w < 1 || config->z_dim > (int64_t)SL_COUNT(config->mean))
        return sl_fail(err, SL_ERR_INVALID,
                       "video decoder: %lld latent frames of %lld x %lld with %lld channels",
                       (long long)T, (long long)h, (long long)w, (long long)config->z_dim);
    *decoder = (sl_vae_decoder){ .exec = exec,
                                 .scratch = scratch,
                                 .weights = weights,
                                 .config = config,
                                 .tap = tap,
                                 .T = T,
                                 .h = h,
                                 .w = w };
    SL_TRY(sl_scratch_tensor(scratch, &decoder->denorm_scale, err, SL_F32, 1, config->z_dim));
    SL_TRY(sl_scratch_tensor(scratch, &decoder->denorm_shift, err, SL_F32, 1, config->z_dim));
    SL_TRY(sl_exec_write(exec, decoder->denorm_scale.data, config->std, vector_bytes, err));
    SL_TRY(sl_exec_write(exec, decoder->denorm_shift.data, config->mean, vector_bytes, err));
    if (T > 1)
        SL_TRY(reserve_caches(decoder, err));
    decoder->chunk_mark = sl_scratch_mark(scratch);
done:
    return status;
}

static void show(const part *p, const char *what)
{
    char name[64];

    if (!sl_tap_wanted(p->d->exec, p->d->tap))
        return;
    snprintf(name, sizeof name, "dec.chunk%lld.%s", (long long)p->d->chunk_index, what);
    sl_tap_show(p->d->exec, p->d->tap, name, &p->x);
}

static void show_stage(const part *p, int stage)
{
    char what[16];

    snprintf(what, sizeof what, "up%d", stage);
    show(p, what);
}

/* From the latent frame to the middle of the network. */
static sl_status run_entry(part *p, const sl_tensor *latent, int64_t t, sl_error *err)
{
    sl_vae_decoder *d = p->d;
    const sl_vae_half *net = &d->weights->decoder;
    const int64_t h = d->h, w = d->w, z = d->config->z_dim;
    sl_status status = SL_OK;

    const sl_tensor raw = spare(p, 0, 1, h, w, z), mixed = spare(p, 1, 1, h, w, z);
    SL_TRY(p->ops->latent_to_frames(d->exec, &raw, latent, &d->denorm_scale, &d->denorm_shift, t,
                                    err));
    SL_TRY(pointwise(p, &mixed, &raw, &d->weights->conv2, err));
    const sl_tensor y = spare(p, 2, 1, h, w, net->conv1.w.dim[0]);
    SL_TRY(causal_conv(p, &y, &mixed, &net->conv1, NULL, err));
    move_to(p, &y);
    show(p, "conv1");
    SL_TRY(res_block(p, &net->mid0, err));
    SL_TRY(middle_attention(p, &net->mid1, err));
    SL_TRY(res_block(p, &net->mid2, err));
    show(p, "middle");
done:
    return status;
}

/* The whole chunk, up to `hand`. */
static sl_status run_whole(part *p, const sl_tensor *latent, int64_t t, const sl_tensor *hand,
                           sl_error *err)
{
    const sl_vae_half *net = &p->d->weights->decoder;
    const int whole = whole_stage_count(net);
    sl_status status = SL_OK;

    SL_TRY(run_entry(p, latent, t, err));
    for (int s = 0; s < whole; s++) {
        SL_TRY(run_stage(p, &net->stages[s], s + 1 == whole ? hand : NULL, err));
        show_stage(p, s);
    }
    if (p->at != ELSEWHERE) /* no temporal stage, or one that does not enlarge */
        SL_TRY(p->ops->copy(p->d->exec, hand, &p->x, err));
done:
    return status;
}

/* One frame, from the hand-over to the picture. */
static sl_status run_frame(part *p, const sl_tensor *picture, sl_error *err)
{
    const sl_vae_half *net = &p->d->weights->decoder;
    sl_status status = SL_OK;

    for (int s = whole_stage_count(net); s < STAGES; s++) {
        SL_TRY(run_stage(p, &net->stages[s], NULL, err));
        show_stage(p, s);
    }
    SL_TRY(p->ops->channel_norm(p->d->exec, &p->x, &p->x, &net->head_norm, true, err));
    SL_TRY(causal_conv(p, picture, &p->x, &net->head, NULL, err));
done:
    return status;
}

sl_status sl_vae_decoder_next(sl_vae_decoder *decoder, const sl_tensor *latent, int64_t t,
                              sl_tensor *frames, sl_error *err)
{
    sl_scratch *scratch = decoder->scratch;
    const chunk_sizes sizes = measure_chunk(decoder);
    int next_cache = 0;
    part p = { .d = decoder,
               .ops = sl_exec_ops(decoder->exec),
               .at = ELSEWHERE,
               .next_cache = decoder->cache_count > 0 ? &next_cache : NULL };
    sl_status status = SL_OK;
    sl_tensor pictures, hand;

    if (t != decoder->chunk_index || t >= decoder->T)
        return sl_fail(err, SL_ERR_INVALID,
                       "video decoder: latent frame %lld: expected frame %lld of %lld",
                       (long long)t, (long long)decoder->chunk_index, (long long)decoder->T);
    sl_scratch_release(scratch, decoder->chunk_mark);
    SL_TRY(sl_scratch_tensor(scratch, &pictures, err, SL_F32, 4, sizes.hand_n, 8 * decoder->h,
                             8 * decoder->w, 3));
    const size_t mark = sl_scratch_mark(scratch);
    SL_TRY(sl_scratch_tensor(scratch, &hand, err, SL_F32, 4, sizes.hand_n, sizes.hand_h,
                             sizes.hand_w, sizes.hand_c));
    const size_t part_mark = sl_scratch_mark(scratch);
    SL_TRY(take_buffers(&p, sizes.whole_elements, err));
    SL_TRY(run_whole(&p, latent, t, &hand, err));
    sl_scratch_release(scratch, part_mark);

    SL_TRY(take_buffers(&p, sizes.frame_elements, err));
    const int first_frame_cache = next_cache;
    for (int64_t f = 0; f < sizes.hand_n; f++) {
        const sl_tensor picture = sl_tensor_rows(&pictures, f, 1);

        next_cache = first_frame_cache;
        p.x = sl_tensor_rows(&hand, f, 1);
        p.at = ELSEWHERE;
        SL_TRY(run_frame(&p, &picture, err));
    }
    SL_ASSERT(next_cache == decoder->cache_count);
    sl_scratch_release(scratch, mark);
    decoder->chunk_index++;
    *frames = pictures;
done:
    return status;
}
