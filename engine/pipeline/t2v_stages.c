/* t2v_stages.c - the stages of a run behind the text encoder. */
#include "engine/pipeline/t2v_walk.h"

#include "engine/nets/dit.h"
#include "engine/nets/vae.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

enum { RGB = 3 };

static sl_status check_finite(sl_exec *exec, const sl_tensor *x, const char *stage, sl_error *err)
{
    int64_t bad_count = 0;
    const sl_status status = sl_exec_ops(exec)->check_finite(exec, x, &bad_count, err);

    if (status != SL_OK || bad_count == 0)
        return status;
    return sl_fail(err, SL_ERR_DATA, "%s: %" PRId64 " of %" PRId64 " values are NaN or infinite",
                   stage, bad_count, sl_tensor_count(x));
}

/* ---- the image ---- */

/* The image as the one row of pictures. */
static sl_status upload_image(sl_exec *exec, sl_scratch *scratch, const sl_tensor *pictures,
                              const uint8_t *rgb, sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    const sl_tensor first = sl_tensor_rows(pictures, 0, 1);
    sl_status status = SL_OK;
    sl_tensor bytes;

    SL_TRY(sl_scratch_take(scratch, &bytes, err, SL_U8, first.rank, first.dim));
    SL_TRY(sl_exec_write(exec, bytes.data, rgb, sl_tensor_bytes(&bytes), err));
    SL_TRY(sl_exec_ops(exec)->rgb_to_frames(exec, &first, &bytes, err));
done:
    sl_scratch_release(scratch, mark);
    return status;
}

sl_status sl_t2v_encode_image(sl_exec *exec, sl_scratch *scratch, const sl_component *vae,
                              const uint8_t *rgb, const sl_tensor *condition, sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    const sl_ops *ops = sl_exec_ops(exec);
    const sl_vae_config *config = &sl_component_get_spec(vae)->config.vae;
    const int64_t T = condition->dim[1], h = condition->dim[2], w = condition->dim[3];
    const int64_t later = sl_vae_frame_count(config, 2) - 1;
    const sl_tensor mask = sl_tensor_rows(condition, 0, SL_MASK_CHANNELS);
    const sl_tensor z = sl_tensor_rows(condition, SL_MASK_CHANNELS, config->z_dim);
    sl_status status = SL_OK;
    sl_vae_encoder encoder;
    sl_tensor pictures;

    SL_TRY(ops->known_mask(exec, &mask, err));
    SL_TRY(sl_scratch_tensor(scratch, &pictures, err, SL_F32, 4, T > 1 ? later : 1,
                             SL_LATENT_PIXELS * h, SL_LATENT_PIXELS * w, RGB));
    SL_TRY(upload_image(exec, scratch, &pictures, rgb, err));
    SL_TRY(sl_vae_encoder_begin(&encoder, exec, scratch, sl_component_vae(vae), config, T, h, w,
                                NULL, err));
    const sl_tensor first = sl_tensor_rows(&pictures, 0, 1);
    SL_TRY(sl_vae_encoder_next(&encoder, &first, &z, 0, err));
    if (T > 1)
        SL_TRY(ops->zero(exec, &pictures, err));
    for (int64_t t = 1; t < T; t++)
        SL_TRY(sl_vae_encoder_next(&encoder, &pictures, &z, t, err));
    SL_TRY(check_finite(exec, &z, "encoding the image", err));
done:
    sl_scratch_release(scratch, mark);
    return status;
}

/* ---- denoising ---- */

typedef struct {
    const sl_t2v_walk *walk;
    sl_exec *exec;
    const sl_ops *ops;
    sl_scratch *scratch;
    const sl_tensor *latent; /* f64 */
    sl_tensor input;         /* f32 [in_dim, T, h, w]: staging, then the condition */
    sl_tensor staging;       /* the state as the network takes it, then the step's noise */
    sl_tensor velocity;      /* f32 */
    sl_rcm_schedule schedule;
} denoiser;

static sl_status draw_noise(denoiser *d, int draw, sl_error *err)
{
    const sl_tensor *noise = &d->staging;

    if (d->walk->noises)
        return sl_exec_write(d->exec, noise->data, d->walk->noises[draw], sl_tensor_bytes(noise),
                             err);
    return d->ops->randn(d->exec, noise, d->walk->request->seed, (uint32_t)draw, err);
}

/* One evaluation and one update of the state.  Behind the last step t is 0: the
 * noise of SDE would be multiplied by 0, and both updates are the same. */
static sl_status denoise_step(denoiser *d, const sl_component *dit, const sl_dit_text *text, int i,
                              sl_error *err)
{
    const sl_rcm_schedule *schedule = &d->schedule;
    const double t_next = schedule->t[i + 1];
    const sl_t2v_request *request = d->walk->request;
    const sl_dit_attention_options attention = { .mode = request->attention,
                                                 .topk_ratio = request->topk_ratio };
    const bool noisy = request->mode == SL_SAMPLER_SDE && t_next != 0.0;
    sl_status status = SL_OK;
    char stage[80];

    SL_TRY(d->ops->sample_cast(d->exec, &d->staging, d->latent, err));
    SL_TRY(sl_dit_forward(d->exec, d->scratch, sl_component_dit(dit),
                          &sl_component_get_spec(dit)->config.dit, text, &attention,
                          schedule->timestep[i], &d->input, &d->velocity, NULL, err));
    if (noisy)
        SL_TRY(draw_noise(d, i + 1, err));
    SL_TRY(d->ops->sample_step(d->exec, d->latent, &d->velocity, noisy ? &d->staging : NULL,
                               schedule->t[i], t_next, err));
    snprintf(stage, sizeof stage, "denoising step %d of %d", i + 1, schedule->step_count);
    SL_TRY(check_finite(d->exec, d->latent, stage, err));
done:
    return status;
}

/* At noise, or behind steps that an earlier run has done. */
static sl_status set_state(denoiser *d, double t, sl_error *err)
{
    sl_status status = SL_OK;

    if (d->walk->latent)
        return sl_exec_write(d->exec, d->latent->data, d->walk->latent, sl_tensor_bytes(d->latent),
                             err);
    SL_TRY(draw_noise(d, 0, err));
    SL_TRY(d->ops->sample_init(d->exec, d->latent, &d->staging, t, err));
done:
    return status;
}

/* Steps [first, end) with one expert, which has keys and values of its own. */
static sl_status run_expert(denoiser *d, const sl_component *dit, const sl_tensor *text, int first,
                            int end, sl_error *err)
{
    const size_t mark = sl_scratch_mark(d->scratch);
    const sl_t2v_events *events = d->walk->events;
    const bool tell = events && events->on_step && !sl_exec_is_counting(d->exec);
    sl_status status = SL_OK;
    sl_dit_text prepared;

    SL_TRY(sl_dit_prepare(d->exec, d->scratch, sl_component_dit(dit),
                          &sl_component_get_spec(dit)->config.dit, text, &prepared, NULL, err));
    for (int i = first; i < end; i++) {
        SL_TRY(denoise_step(d, dit, &prepared, i, err));
        if (tell)
            SL_TRY(events->on_step(events->arg, i, d->schedule.step_count, d->latent, err));
    }
done:
    sl_scratch_release(d->scratch, mark);
    return status;
}

static sl_status take_tensors(denoiser *d, const sl_tensor *condition, sl_error *err)
{
    const int64_t *dim = d->latent->dim;
    const int64_t known = condition ? condition->dim[0] : 0;
    sl_status status = SL_OK;

    SL_TRY(sl_scratch_tensor(d->scratch, &d->input, err, SL_F32, 4, dim[0] + known, dim[1], dim[2],
                             dim[3]));
    d->staging = sl_tensor_rows(&d->input, 0, dim[0]);
    SL_TRY(sl_scratch_take(d->scratch, &d->velocity, err, SL_F32, d->latent->rank, dim));
    if (condition) {
        const sl_tensor rest = sl_tensor_rows(&d->input, dim[0], known);
        SL_TRY(d->ops->copy(d->exec, &rest, condition, err));
    }
done:
    return status;
}

/* Noise is drawn by step, not in sequence: steps do not depend on how the ones
 * before were run. */
sl_status sl_t2v_walk_denoise(sl_t2v_walk *walk, const sl_tensor *text, const sl_tensor *condition,
                              const sl_tensor *latent, sl_error *err)
{
    static const struct {
        sl_phase phase;
        sl_component_kind kind;
    } experts[] = { { SL_PHASE_DENOISE, SL_COMPONENT_DIT },
                    { SL_PHASE_DENOISE_HIGH, SL_COMPONENT_DIT_HIGH },
                    { SL_PHASE_DENOISE_LOW, SL_COMPONENT_DIT_LOW } };
    const size_t mark = sl_scratch_mark(walk->scratch);
    int next = walk->steps_done;
    denoiser d = { .walk = walk,
                   .exec = walk->exec,
                   .ops = sl_exec_ops(walk->exec),
                   .scratch = walk->scratch,
                   .latent = latent };
    sl_status status = SL_OK;

    SL_TRY(sl_rcm_schedule_make(&d.schedule, walk->request->steps, walk->request->sigma_max, err));
    for (size_t i = 0; i < SL_COUNT(experts); i++) {
        const sl_phase phase = experts[i].phase;
        const int steps = walk->phases.steps[phase];

        if (steps == 0)
            continue;
        SL_TRY(sl_t2v_begin_phase(walk, phase, err));
        if (next == walk->steps_done) {
            SL_TRY(take_tensors(&d, condition, err));
            SL_TRY(set_state(&d, d.schedule.t[0], err));
        }
        SL_TRY(run_expert(&d, sl_t2v_component_of(walk->components, experts[i].kind), text, next,
                          next + steps, err));
        sl_t2v_end_phase(walk, phase);
        next += steps;
    }
done:
    sl_scratch_release(walk->scratch, mark);
    return status;
}

sl_status sl_t2v_denoise(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                         const sl_t2v_request *request, const sl_tensor *text,
                         const sl_tensor *condition, const float *const *noises,
                         const sl_t2v_events *events, const sl_tensor *latent, sl_error *err)
{
    sl_t2v_walk walk = { .exec = exec,
                         .scratch = scratch,
                         .components = components,
                         .request = request,
                         .noises = noises,
                         .events = events };
    const sl_status status = sl_t2v_phases_make(&walk.phases, request, condition != NULL,
                                                components->dit ? 1 : 2, 0, err);

    if (status != SL_OK)
        return status;
    return sl_t2v_walk_denoise(&walk, text, condition, latent, err);
}

/* ---- decoding ---- */

static sl_status deliver(sl_exec *exec, sl_scratch *scratch, const sl_tensor *frames, int first,
                         uint8_t *host, const sl_t2v_events *events, sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    sl_status status = SL_OK;
    sl_tensor rgb;

    SL_TRY(sl_scratch_take(scratch, &rgb, err, SL_U8, frames->rank, frames->dim));
    SL_TRY(sl_exec_ops(exec)->frames_to_rgb(exec, &rgb, frames, err));
    if (host) {
        SL_TRY(sl_exec_read(exec, host, rgb.data, sl_tensor_bytes(&rgb), err));
        SL_TRY(events->on_frames(events->arg, host, first, (int)frames->dim[0], err));
    }
done:
    sl_scratch_release(scratch, mark);
    return status;
}

size_t sl_t2v_chunk_rgb_bytes(const sl_vae_config *config, int64_t T, int64_t h, int64_t w)
{
    const int64_t first_only = 1, later = sl_vae_frame_count(config, 2) - 1;
    const int64_t frames = T > 1 ? later : first_only;

    return (size_t)(frames * SL_LATENT_PIXELS * h * SL_LATENT_PIXELS * w * RGB);
}

sl_status sl_t2v_decode(sl_exec *exec, sl_scratch *scratch, const sl_component *vae,
                        const sl_tensor *latent, const sl_t2v_events *events, sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    const sl_vae_config *config = &sl_component_get_spec(vae)->config.vae;
    const int64_t T = latent->dim[1], h = latent->dim[2], w = latent->dim[3];
    const bool tell = events && events->on_frames && !sl_exec_is_counting(exec);
    uint8_t *host = NULL;
    sl_status status = SL_OK;
    sl_vae_decoder decoder;
    sl_tensor z, frames;
    int64_t first = 0;
    char stage[80];

    if (tell) {
        host = malloc(sl_t2v_chunk_rgb_bytes(config, T, h, w));
        if (!host)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a chunk of decoded frames");
    }
    SL_TRY(sl_scratch_take(scratch, &z, err, SL_F32, latent->rank, latent->dim));
    SL_TRY(sl_exec_ops(exec)->sample_cast(exec, &z, latent, err));
    SL_TRY(sl_vae_decoder_begin(&decoder, exec, scratch, sl_component_vae(vae), config, T, h, w,
                                NULL, err));
    for (int64_t t = 0; t < T; t++) {
        SL_TRY(sl_vae_decoder_next(&decoder, &z, t, &frames, err));
        snprintf(stage, sizeof stage, "decoding latent frame %" PRId64 " of %" PRId64, t + 1, T);
        SL_TRY(check_finite(exec, &frames, stage, err));
        SL_TRY(deliver(exec, scratch, &frames, (int)first, host, events, err));
        first += frames.dim[0];
    }
done:
    free(host);
    sl_scratch_release(scratch, mark);
    return status;
}
