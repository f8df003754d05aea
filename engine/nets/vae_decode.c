/* vae_decode.c - see vae.h.
 *
 * Memory of a chunk, beside the caches: the pictures given back, the hand-over
 * between the two parts, and the part's work buffers.
 */
#include "engine/nets/vae_part.h"

int64_t sl_vae_frame_count(const sl_vae_config *config, int64_t T)
{
    int64_t per_latent = 1;

    for (size_t i = 0; i < SL_COUNT(config->temporal_down); i++)
        if (config->temporal_down[i])
            per_latent *= 2;
    return 1 + (T - 1) * per_latent;
}

/* Stages [0, result) run on whole chunks: the last of them doubles time. */
static int whole_stage_count(const sl_vae_half *net)
{
    int count = 0;

    for (int s = 0; s < SL_VAE_STAGES; s++)
        if (sl_vae_has(&net->stages[s].time_conv))
            count = s + 1;
    return count;
}

/* The largest activation of stage s, [n, H, W, .] at its entry, n_up frames
 * behind its temporal convolution. */
static int64_t stage_elements(const sl_vae_stage *stage, int64_t n, int64_t n_up, int64_t H,
                              int64_t W, bool resample_too)
{
    int64_t most = sl_vae_res_elements(stage, n, H, W);

    if (n_up != n) /* both halves in one tensor, then as pairs: the same size */
        most = sl_vae_max(most, n * H * W * stage->time_conv.w.dim[0]);
    if (resample_too && sl_vae_has(&stage->resample))
        most = sl_vae_max(most, n_up * 2 * H * 2 * W * stage->resample.w.dim[0]);
    return most;
}

/* What both parts need, from one walk over the stages. */
typedef struct {
    int64_t whole_elements, frame_elements; /* a work buffer of each part */
    int64_t hand_n, hand_h, hand_w, hand_c; /* hand-over between the parts */
} chunk_sizes;

static chunk_sizes measure_chunk(const sl_vae_stream *d)
{
    const sl_vae_half *net = &d->weights->decoder;
    const int whole = whole_stage_count(net);
    const int64_t C = net->conv1.w.dim[0];
    int64_t n = 1, H = d->h, W = d->w;
    /* 3 C: q, k and v of the middle attention lie in one buffer */
    chunk_sizes sizes = { .whole_elements = H * W * sl_vae_max(3 * C, net->conv1.w.dim[4]),
                          .hand_n = 1,
                          .hand_h = H,
                          .hand_w = W,
                          .hand_c = C };

    for (int s = 0; s < SL_VAE_STAGES; s++) {
        const sl_vae_stage *stage = &net->stages[s];
        const bool doubles = sl_vae_has(&stage->time_conv) && d->chunk_index > 0;

        if (s < whole) {
            const int64_t n_up = doubles ? 2 * n : n;
            sizes.whole_elements = sl_vae_max(sizes.whole_elements,
                                              stage_elements(stage, n, n_up, H, W, s + 1 < whole));
            n = n_up;
        } else {
            sizes.frame_elements =
                sl_vae_max(sizes.frame_elements, stage_elements(stage, 1, 1, H, W, true));
        }
        if (sl_vae_has(&stage->resample)) {
            H *= 2;
            W *= 2;
        }
        if (s + 1 == whole) {
            sizes.hand_n = n;
            sizes.hand_h = H;
            sizes.hand_w = W;
            sizes.hand_c = sl_vae_has(&stage->resample) ? stage->resample.w.dim[0] : C;
        }
    }
    return sizes;
}

/* up3d's first half: every frame becomes two.  The very first frame of a video
 * passes through and is not remembered: chunk 1 sees zeros before it. */
static sl_status double_time(sl_vae_part *p, const sl_affine *time_conv, sl_error *err)
{
    const int64_t n = p->x.dim[0], H = p->x.dim[1], W = p->x.dim[2], C = p->x.dim[3];
    sl_status status = SL_OK;

    if (p->stream->chunk_index == 0) {
        if (p->next_cache)
            ++*p->next_cache;
        return SL_OK;
    }
    const sl_tensor halves = sl_vae_spare(p, 0, n, H, W, 2 * C),
                    y = sl_vae_spare(p, 1, 2 * n, H, W, C);
    SL_TRY(sl_vae_causal_conv(p, &halves, &p->x, time_conv, NULL, err));
    SL_TRY(p->ops->pair_frames(p->stream->exec, &y, &halves, err));
    sl_vae_move_to(p, &y);
done:
    return status;
}

/* Residual blocks, then time, then space; `out` NULL: into a work buffer. */
static sl_status run_stage(sl_vae_part *p, const sl_vae_stage *stage, const sl_tensor *out,
                           sl_error *err)
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
        SL_TRY(sl_vae_res_block(p, &stage->res[r], err));
    if (sl_vae_has(&stage->time_conv))
        SL_TRY(double_time(p, &stage->time_conv, err));
    if (sl_vae_has(&stage->resample)) {
        const sl_tensor y = out ? *out
                                : sl_vae_spare(p, 0, p->x.dim[0], 2 * p->x.dim[1], 2 * p->x.dim[2],
                                               stage->resample.w.dim[0]);

        SL_TRY(p->ops->conv(p->stream->exec, &y, &p->x, NULL, &stage->resample.w,
                            &stage->resample.b, NULL, &enlarge, err));
        sl_vae_move_to(p, &y);
    }
done:
    return status;
}

/* ---- the decoder ---- */

/* In the order in which the convolutions run. */
static sl_status reserve_caches(sl_vae_stream *d, sl_error *err)
{
    const sl_vae_half *net = &d->weights->decoder;
    int64_t H = d->h, W = d->w;
    sl_status status = SL_OK;

    SL_TRY(sl_vae_reserve_cache(d, 2, H, W, net->conv1.w.dim[4], err));
    SL_TRY(sl_vae_reserve_res_caches(d, &net->mid0, H, W, err));
    SL_TRY(sl_vae_reserve_res_caches(d, &net->mid2, H, W, err));
    for (int s = 0; s < SL_VAE_STAGES; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        for (int r = 0; r < stage->res_count; r++)
            SL_TRY(sl_vae_reserve_res_caches(d, &stage->res[r], H, W, err));
        if (sl_vae_has(&stage->time_conv))
            SL_TRY(sl_vae_reserve_cache(d, 2, H, W, stage->time_conv.w.dim[4], err));
        if (sl_vae_has(&stage->resample)) {
            H *= 2;
            W *= 2;
        }
    }
    SL_TRY(sl_vae_reserve_cache(d, 2, H, W, net->head.w.dim[4], err));
done:
    return status;
}

sl_status sl_vae_decoder_begin(sl_vae_decoder *decoder, sl_exec *exec, sl_scratch *scratch,
                               const sl_vae_weights *weights, const sl_vae_config *config,
                               int64_t T, int64_t h, int64_t w, const sl_tap *tap, sl_error *err)
{
    const size_t vector_bytes = (size_t)config->z_dim * sizeof(float);
    sl_vae_stream *d = &decoder->stream;
    sl_status status = SL_OK;

    SL_TRY(sl_vae_stream_begin(d, "decoder", exec, scratch, weights, config, T, h, w, tap, err));
    SL_TRY(sl_exec_write(exec, d->scale.data, config->std, vector_bytes, err));
    SL_TRY(sl_exec_write(exec, d->shift.data, config->mean, vector_bytes, err));
    if (T > 1)
        SL_TRY(reserve_caches(d, err));
    d->chunk_mark = sl_scratch_mark(scratch);
done:
    return status;
}

/* From the latent frame to the middle of the network. */
static sl_status run_entry(sl_vae_part *p, const sl_tensor *latent, int64_t t, sl_error *err)
{
    sl_vae_stream *d = p->stream;
    const sl_vae_half *net = &d->weights->decoder;
    const int64_t h = d->h, w = d->w, z = d->config->z_dim;
    sl_status status = SL_OK;

    const sl_tensor raw = sl_vae_spare(p, 0, 1, h, w, z), mixed = sl_vae_spare(p, 1, 1, h, w, z);
    SL_TRY(p->ops->latent_to_frames(d->exec, &raw, latent, &d->scale, &d->shift, t, err));
    SL_TRY(sl_vae_pointwise(p, &mixed, &raw, &d->weights->conv2, err));
    const sl_tensor y = sl_vae_spare(p, 2, 1, h, w, net->conv1.w.dim[0]);
    SL_TRY(sl_vae_causal_conv(p, &y, &mixed, &net->conv1, NULL, err));
    sl_vae_move_to(p, &y);
    sl_vae_show(p, "conv1", -1);
    SL_TRY(sl_vae_middle(p, net, err));
done:
    return status;
}

/* The whole chunk, up to `hand`. */
static sl_status run_whole(sl_vae_part *p, const sl_tensor *latent, int64_t t,
                           const sl_tensor *hand, sl_error *err)
{
    const sl_vae_half *net = &p->stream->weights->decoder;
    const int whole = whole_stage_count(net);
    sl_status status = SL_OK;

    SL_TRY(run_entry(p, latent, t, err));
    for (int s = 0; s < whole; s++) {
        SL_TRY(run_stage(p, &net->stages[s], s + 1 == whole ? hand : NULL, err));
        sl_vae_show(p, "up", s);
    }
    if (p->at != SL_VAE_ELSEWHERE) /* no temporal stage, or one that does not enlarge */
        SL_TRY(p->ops->copy(p->stream->exec, hand, &p->x, err));
done:
    return status;
}

/* One frame, from the hand-over to the picture. */
static sl_status run_frame(sl_vae_part *p, const sl_tensor *picture, sl_error *err)
{
    const sl_vae_half *net = &p->stream->weights->decoder;
    sl_status status = SL_OK;

    for (int s = whole_stage_count(net); s < SL_VAE_STAGES; s++) {
        SL_TRY(run_stage(p, &net->stages[s], NULL, err));
        sl_vae_show(p, "up", s);
    }
    SL_TRY(p->ops->channel_norm(p->stream->exec, &p->x, &p->x, &net->head_norm, true, err));
    SL_TRY(sl_vae_causal_conv(p, picture, &p->x, &net->head, NULL, err));
done:
    return status;
}

sl_status sl_vae_decoder_next(sl_vae_decoder *decoder, const sl_tensor *latent, int64_t t,
                              sl_tensor *frames, sl_error *err)
{
    sl_vae_stream *d = &decoder->stream;
    sl_scratch *scratch = d->scratch;
    const chunk_sizes sizes = measure_chunk(d);
    int next_cache = 0;
    sl_vae_part p = { .stream = d,
                      .ops = sl_exec_ops(d->exec),
                      .at = SL_VAE_ELSEWHERE,
                      .next_cache = d->cache_count > 0 ? &next_cache : NULL };
    sl_status status = SL_OK;
    sl_tensor pictures, hand;

    SL_TRY(sl_vae_stream_check_turn(d, t, err));
    sl_scratch_release(scratch, d->chunk_mark);
    SL_TRY(
        sl_scratch_tensor(scratch, &pictures, err, d->act, 4, sizes.hand_n, 8 * d->h, 8 * d->w, 3));
    const size_t mark = sl_scratch_mark(scratch);
    SL_TRY(sl_scratch_tensor(scratch, &hand, err, d->act, 4, sizes.hand_n, sizes.hand_h,
                             sizes.hand_w, sizes.hand_c));
    const size_t part_mark = sl_scratch_mark(scratch);
    SL_TRY(sl_vae_take_buffers(&p, sizes.whole_elements, err));
    SL_TRY(run_whole(&p, latent, t, &hand, err));
    sl_scratch_release(scratch, part_mark);

    SL_TRY(sl_vae_take_buffers(&p, sizes.frame_elements, err));
    const int first_frame_cache = next_cache;
    for (int64_t f = 0; f < sizes.hand_n; f++) {
        const sl_tensor picture = sl_tensor_rows(&pictures, f, 1);

        next_cache = first_frame_cache;
        p.x = sl_tensor_rows(&hand, f, 1);
        p.at = SL_VAE_ELSEWHERE;
        SL_TRY(run_frame(&p, &picture, err));
    }
    SL_ASSERT(next_cache == d->cache_count);
    sl_scratch_release(scratch, mark);
    d->chunk_index++;
    *frames = pictures;
done:
    return status;
}
