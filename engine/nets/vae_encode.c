/* vae_encode.c - see vae.h.
 *
 * Memory of a chunk, beside the caches and the hand-over between the two parts: a
 * part's work buffers.  The frame-by-frame part ends with the spatial
 * convolution of the first stage that halves time; that stage's temporal
 * convolution is the first thing that needs the chunk's frames together.
 */
#include "base/size.h"
#include "engine/nets/vae_part.h"

/* Stages [0, result) run frame by frame, but for the last one's temporal
 * convolution. */
static int frame_stage_count(const sl_vae_half *net)
{
    for (int s = 0; s < SL_VAE_STAGES; s++)
        if (sl_vae_has(&net->stages[s].time_conv))
            return s + 1;
    return SL_VAE_STAGES;
}

/* What both parts need, from one walk over the stages. */
typedef struct {
    int64_t n;                              /* frames of the chunk */
    int64_t frame_elements, whole_elements; /* a work buffer of each part */
    int64_t hand_h, hand_w, hand_c;         /* hand-over between the parts */
} chunk_sizes;

/* The stages' own convolutions give less than they are given, so that their
 * residual blocks decide. */
static chunk_sizes measure_chunk(const sl_vae_stream *e, int64_t chunk_index)
{
    const sl_vae_half *net = &e->weights->encoder;
    const int split = frame_stage_count(net);
    int64_t H = 8 * e->h, W = 8 * e->w, C = net->conv1.w.dim[0];
    chunk_sizes sizes = { .n = chunk_index == 0 ? 1 : sl_vae_frame_count(e->config, 2) - 1,
                          .frame_elements = H * W * C };
    int64_t n = sizes.n;

    for (int s = 0; s < SL_VAE_STAGES; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        if (s < split)
            sizes.frame_elements =
                sl_vae_max(sizes.frame_elements, sl_vae_res_elements(stage, 1, H, W));
        else
            sizes.whole_elements =
                sl_vae_max(sizes.whole_elements, sl_vae_res_elements(stage, n, H, W));
        C = stage->res[stage->res_count - 1].conv2.w.dim[0];
        if (sl_vae_has(&stage->resample)) {
            H /= 2;
            W /= 2;
            C = stage->resample.w.dim[0];
        }
        if (s + 1 == split) {
            sizes.hand_h = H;
            sizes.hand_w = W;
            sizes.hand_c = C;
        }
        if (sl_vae_has(&stage->time_conv)) {
            n = n > 1 ? n / 2 : 1;
            C = stage->time_conv.w.dim[0];
            sizes.whole_elements = sl_vae_max(sizes.whole_elements, n * H * W * C);
        }
    }
    /* 3 C: q, k and v of the middle attention lie in one buffer */
    sizes.whole_elements =
        sl_vae_max(sizes.whole_elements, H * W * sl_vae_max(3 * C, net->head.w.dim[0]));
    return sizes;
}

/* In the order in which the convolutions run. */
static sl_status reserve_caches(sl_vae_stream *e, sl_error *err)
{
    const sl_vae_half *net = &e->weights->encoder;
    int64_t H = 8 * e->h, W = 8 * e->w;
    sl_status status = SL_OK;

    SL_TRY(sl_vae_reserve_cache(e, 2, H, W, net->conv1.w.dim[4], err));
    for (int s = 0; s < SL_VAE_STAGES; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        for (int r = 0; r < stage->res_count; r++)
            SL_TRY(sl_vae_reserve_res_caches(e, &stage->res[r], H, W, err));
        if (sl_vae_has(&stage->resample)) {
            H /= 2;
            W /= 2;
        }
        if (sl_vae_has(&stage->time_conv))
            SL_TRY(sl_vae_reserve_cache(e, 1, H, W, stage->time_conv.w.dim[4], err));
    }
    SL_TRY(sl_vae_reserve_res_caches(e, &net->mid0, H, W, err));
    SL_TRY(sl_vae_reserve_res_caches(e, &net->mid2, H, W, err));
    SL_TRY(sl_vae_reserve_cache(e, 2, H, W, net->head.w.dim[4], err));
done:
    return status;
}

sl_status sl_vae_encoder_begin(sl_vae_encoder *encoder, sl_exec *exec, sl_scratch *scratch,
                               const sl_vae_weights *weights, const sl_vae_config *config,
                               int64_t T, int64_t h, int64_t w, const sl_tap *tap, sl_error *err)
{
    const size_t vector_bytes = (size_t)config->z_dim * sizeof(float);
    float inverse_std[SL_COUNT(config->std)];
    sl_vae_stream *e = &encoder->stream;
    sl_status status = SL_OK;

    SL_TRY(sl_vae_stream_begin(e, "encoder", exec, scratch, weights, config, T, h, w, tap, err));
    for (int64_t c = 0; c < config->z_dim; c++)
        inverse_std[c] = 1.0f / config->std[c];
    SL_TRY(sl_exec_write(exec, e->scale.data, inverse_std, vector_bytes, err));
    SL_TRY(sl_exec_write(exec, e->shift.data, config->mean, vector_bytes, err));
    encoder->frame_caches = 0;
    encoder->repeat_count = 0;
    if (T > 1)
        SL_TRY(reserve_caches(e, err));
    const chunk_sizes sizes = measure_chunk(e, T > 1 ? 1 : 0); /* the largest */
    SL_TRY(sl_scratch_tensor(scratch, &encoder->hand, err, e->act, 4, sizes.n, sizes.hand_h,
                             sizes.hand_w, sizes.hand_c));
done:
    return status;
}

/* Zeros right and below only (wan.md trap 22). */
static sl_status shrink(sl_vae_part *p, const sl_affine *resample, const sl_tensor *y,
                        sl_error *err)
{
    static const sl_conv_params params = {
        .stride_t = 1, .stride_hw = 2, .pad_bottom = 1, .pad_right = 1, .upsample = 1
    };
    const sl_status status = p->ops->conv(p->stream->exec, y, &p->x, NULL, &resample->w,
                                          &resample->b, NULL, &params, err);

    if (status == SL_OK)
        sl_vae_move_to(p, y);
    return status;
}

/* down3d's second half: every two frames become one.  The very first frame of a
 * video passes through; what is remembered is the last frame. */
static sl_status halve_time(sl_vae_part *p, const sl_affine *time_conv, sl_error *err)
{
    static const sl_conv_params params = { .stride_t = 2, .stride_hw = 1, .upsample = 1 };
    sl_exec *exec = p->stream->exec;
    const int64_t n = p->x.dim[0];
    const sl_tensor last = sl_tensor_rows(&p->x, n - 1, 1);
    sl_vae_cache *cache = sl_vae_next_cache(p);
    sl_status status = SL_OK;

    if (p->stream->chunk_index == 0) {
        if (cache)
            status = p->ops->copy(exec, &cache->frames, &p->x, err);
        return status;
    }
    const sl_tensor y = sl_vae_spare(p, 0, n / 2, p->x.dim[1], p->x.dim[2], time_conv->w.dim[0]);
    SL_TRY(p->ops->conv(exec, &y, &p->x, &cache->frames, &time_conv->w, &time_conv->b, NULL,
                        &params, err));
    SL_TRY(p->ops->copy(exec, &cache->frames, &last, err));
    sl_vae_move_to(p, &y);
done:
    return status;
}

/* One frame, from the picture to its row of the hand-over. */
static sl_status run_frame(sl_vae_part *p, const sl_tensor *hand, sl_error *err)
{
    const sl_vae_half *net = &p->stream->weights->encoder;
    const int split = frame_stage_count(net);
    sl_status status = SL_OK;

    const sl_tensor y = sl_vae_spare(p, 0, 1, p->x.dim[1], p->x.dim[2], net->conv1.w.dim[0]);
    SL_TRY(sl_vae_causal_conv(p, &y, &p->x, &net->conv1, NULL, err));
    sl_vae_move_to(p, &y);
    sl_vae_show(p, "conv1", -1);
    for (int s = 0; s < split; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        for (int r = 0; r < stage->res_count; r++)
            SL_TRY(sl_vae_res_block(p, &stage->res[r], err));
        if (sl_vae_has(&stage->resample)) {
            const sl_tensor small = s + 1 == split
                                        ? *hand
                                        : sl_vae_spare(p, 0, 1, p->x.dim[1] / 2, p->x.dim[2] / 2,
                                                       stage->resample.w.dim[0]);
            SL_TRY(shrink(p, &stage->resample, &small, err));
        }
        if (s + 1 < split)
            sl_vae_show(p, "down", s);
    }
    if (p->at != SL_VAE_ELSEWHERE) /* no temporal stage: the last one does not shrink */
        SL_TRY(p->ops->copy(p->stream->exec, hand, &p->x, err));
done:
    return status;
}

/* The stages behind the hand-over, which x is. */
static sl_status run_stages(sl_vae_part *p, sl_error *err)
{
    const sl_vae_half *net = &p->stream->weights->encoder;
    const int split = frame_stage_count(net);
    sl_status status = SL_OK;

    for (int s = split - 1; s < SL_VAE_STAGES; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        for (int r = 0; s >= split && r < stage->res_count; r++)
            SL_TRY(sl_vae_res_block(p, &stage->res[r], err));
        if (s >= split && sl_vae_has(&stage->resample)) {
            const sl_tensor small = sl_vae_spare(p, 0, p->x.dim[0], p->x.dim[1] / 2,
                                                 p->x.dim[2] / 2, stage->resample.w.dim[0]);
            SL_TRY(shrink(p, &stage->resample, &small, err));
        }
        if (sl_vae_has(&stage->time_conv))
            SL_TRY(halve_time(p, &stage->time_conv, err));
        sl_vae_show(p, "down", s);
    }
done:
    return status;
}

/* From the hand-over to latent frame t.  The network gives means and variances;
 * nothing is drawn, so that only the means are computed. */
static sl_status run_whole(sl_vae_part *p, const sl_tensor *latent, int64_t t, sl_error *err)
{
    const sl_vae_stream *e = p->stream;
    const sl_vae_half *net = &e->weights->encoder;
    sl_status status = SL_OK;

    SL_TRY(run_stages(p, err));
    SL_TRY(sl_vae_middle(p, net, err));
    SL_TRY(p->ops->channel_norm(e->exec, &p->x, &p->x, &net->head_norm, true, err));
    const sl_tensor both = sl_vae_spare(p, 0, 1, e->h, e->w, net->head.w.dim[0]);
    const sl_tensor means = sl_vae_spare(p, 1, 1, e->h, e->w, e->config->z_dim);
    SL_TRY(sl_vae_causal_conv(p, &both, &p->x, &net->head, NULL, err));
    SL_TRY(sl_vae_pointwise(p, &means, &both, &e->weights->conv1, err));
    SL_TRY(p->ops->frames_to_latent(e->exec, latent, &means, &e->scale, &e->shift, t, err));
done:
    return status;
}

static sl_status check_pictures(const sl_vae_stream *e, const sl_tensor *frames, int64_t n,
                                sl_error *err)
{
    const int64_t H = 8 * e->h, W = 8 * e->w;
    char got[96];

    if (frames->rank == 4 && frames->dim[0] == n && frames->dim[1] == H && frames->dim[2] == W &&
        frames->dim[3] == 3)
        return SL_OK;
    return sl_fail(
        err, SL_ERR_INVALID, "video encoder: frames are %s, expected [%lld, %lld, %lld, 3]",
        sl_tensor_describe(frames, got, sizeof got), (long long)n, (long long)H, (long long)W);
}

/* A frame's way through n causal convolutions ends up in 2 n frames: so far back what
 * the part gives depends on what it was given. */
static bool repeats_itself(const sl_vae_encoder *encoder, int64_t frames_per_chunk)
{
    const int64_t back = 2 * (int64_t)encoder->frame_caches;

    return sl_vae_has(&encoder->stream.weights->encoder
                           .stages[frame_stage_count(&encoder->stream.weights->encoder) - 1]
                           .time_conv) &&
           encoder->repeat_count > sl_ceil_div(back, frames_per_chunk);
}

/* Every frame of the chunk, into the hand-over. */
static sl_status run_frames(sl_vae_encoder *encoder, sl_vae_part *p, const sl_tensor *frames,
                            int64_t elements, sl_error *err)
{
    sl_scratch *scratch = encoder->stream.scratch;
    const size_t mark = sl_scratch_mark(scratch);
    sl_status status = SL_OK;

    SL_TRY(sl_vae_take_buffers(p, elements, err));
    for (int64_t f = 0; f < frames->dim[0]; f++) {
        const sl_tensor row = sl_tensor_rows(&encoder->hand, f, 1);

        if (p->next_cache)
            *p->next_cache = 0;
        p->x = sl_tensor_rows(frames, f, 1);
        p->at = SL_VAE_ELSEWHERE;
        SL_TRY(run_frame(p, &row, err));
    }
    if (p->next_cache)
        encoder->frame_caches = *p->next_cache;
done:
    sl_scratch_release(scratch, mark);
    return status;
}

static sl_status encode_chunk(sl_vae_encoder *encoder, const sl_tensor *frames,
                              const sl_tensor *latent, int64_t t, bool again, sl_error *err)
{
    sl_vae_stream *e = &encoder->stream;
    sl_scratch *scratch = e->scratch;
    const size_t mark = sl_scratch_mark(scratch);
    const chunk_sizes sizes = measure_chunk(e, e->chunk_index);
    int next_cache = encoder->frame_caches;
    sl_vae_part p = { .stream = e,
                      .ops = sl_exec_ops(e->exec),
                      .next_cache = e->cache_count > 0 ? &next_cache : NULL };
    sl_status status = SL_OK;

    SL_TRY(sl_vae_stream_check_turn(e, t, err));
    SL_TRY(check_pictures(e, frames, sizes.n, err));
    encoder->repeat_count = again ? encoder->repeat_count + 1 : 0;
    if (!repeats_itself(encoder, sizes.n))
        SL_TRY(run_frames(encoder, &p, frames, sizes.frame_elements, err));

    SL_TRY(sl_vae_take_buffers(&p, sizes.whole_elements, err));
    p.x = sl_tensor_rows(&encoder->hand, 0, sizes.n);
    p.at = SL_VAE_ELSEWHERE;
    SL_TRY(run_whole(&p, latent, t, err));
    SL_ASSERT(next_cache == e->cache_count);
    e->chunk_index++;
done:
    sl_scratch_release(scratch, mark);
    return status;
}

sl_status sl_vae_encoder_next(sl_vae_encoder *encoder, const sl_tensor *frames,
                              const sl_tensor *latent, int64_t t, sl_error *err)
{
    return encode_chunk(encoder, frames, latent, t, false, err);
}

sl_status sl_vae_encoder_repeat(sl_vae_encoder *encoder, const sl_tensor *frames,
                                const sl_tensor *latent, int64_t t, sl_error *err)
{
    return encode_chunk(encoder, frames, latent, t, true, err);
}
