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
    const sl_t2v_lease lease = sl_t2v_lend(exec, scratch);
    sl_status status = SL_OK;
    sl_vae_encoder encoder;
    sl_tensor pictures;

    SL_TRY(ops->known_mask(exec, &mask, err));
    SL_TRY(sl_scratch_tensor(scratch, &pictures, err, sl_exec_numerics(exec)->frames, 4,
                             T > 1 ? later : 1, SL_LATENT_PIXELS * h, SL_LATENT_PIXELS * w, RGB));
    SL_TRY(upload_image(exec, scratch, &pictures, rgb, err));
    SL_TRY(sl_vae_encoder_begin(&encoder, exec, scratch, sl_component_vae(vae), config, T, h, w,
                                NULL, err));
    const sl_tensor first = sl_tensor_rows(&pictures, 0, 1);
    SL_TRY(sl_vae_encoder_next(&encoder, &first, &z, 0, err));
    if (T > 1)
        SL_TRY(ops->zero(exec, &pictures, err));
    for (int64_t t = 1; t < T; t++)
        SL_TRY((t == 1 ? sl_vae_encoder_next : sl_vae_encoder_repeat)(&encoder, &pictures, &z, t,
                                                                      err));
    SL_TRY(check_finite(exec, &z, "encoding the image", err));
done:
    status = sl_t2v_return(&lease, status, err);
    sl_scratch_release(scratch, mark);
    return status;
}

/* ---- denoising ---- */

typedef struct {
    const sl_t2v_walk *walk;
    sl_exec *exec;
    const sl_ops *ops;
    sl_scratch *scratch;
    const sl_tensor *latent; /* f64: the whole state */
    sl_tensor x;             /* its first rows: the sample */
    sl_tensor input;         /* f32 [in_dim, T, h, w]: staging, then the condition */
    sl_tensor staging;       /* the sample as the network takes it, then the step's noise */
    sl_tensor velocity;      /* f32 */
    sl_tensor unguided;      /* with guidance: that of the negative prompt */
    bool guided;
    sl_sampling sampling;
    sl_unipc unipc;
} denoiser;

/* One expert at work: its weights, and both prompts' keys and values. */
typedef struct {
    const sl_component *dit;
    double guidance; /* 1: the negative prompt is not asked */
    sl_dit_text prompt, negative;
} expert;

static sl_status draw_noise(denoiser *d, int draw, sl_error *err)
{
    const sl_tensor *noise = &d->staging;

    if (d->walk->noises)
        return sl_exec_write(d->exec, noise->data, d->walk->noises[draw], sl_tensor_bytes(noise),
                             err);
    return d->ops->randn(d->exec, noise, d->walk->request->seed, (uint32_t)draw, err);
}

static sl_status forward(denoiser *d, const expert *e, const sl_dit_text *text, int i,
                         const sl_tensor *velocity, sl_error *err)
{
    const sl_t2v_request *request = d->walk->request;
    const sl_dit_attention_options attention = { .mode = request->attention,
                                                 .dialect = request->dialect,
                                                 .norm = request->layer_norm,
                                                 .topk_ratio = request->topk_ratio };

    return sl_dit_forward(d->exec, d->scratch, sl_component_dit(e->dit),
                          &sl_component_get_spec(e->dit)->config.dit, text, &attention,
                          sl_sampling_timestep(&d->sampling, i), &d->input, velocity, NULL, err);
}

/* velocity at x in step i. */
static sl_status evaluate(denoiser *d, const expert *e, int i, sl_error *err)
{
    sl_status status = SL_OK;

    SL_TRY(d->ops->sample_cast(d->exec, &d->staging, &d->x, err));
    SL_TRY(forward(d, e, &e->prompt, i, &d->velocity, err));
    if (e->guidance != 1.0) {
        const sl_sample_term terms[] = { { 1.0 - e->guidance, &d->unguided },
                                         { e->guidance, &d->velocity } };

        SL_TRY(forward(d, e, &e->negative, i, &d->unguided, err));
        SL_TRY(d->ops->sample_combine(d->exec, &d->velocity, terms, 2, err));
    }
done:
    return status;
}

/* Behind the last step of rCM t is 0: the noise of SDE would be multiplied by 0,
 * and both updates are the same. */
static sl_status move(denoiser *d, int i, sl_error *err)
{
    const double *t = d->sampling.rcm.t;
    sl_status status = SL_OK;

    if (d->sampling.is_unipc)
        return sl_unipc_step(&d->unipc, &d->velocity, err);
    const bool noisy = d->walk->request->mode == SL_SAMPLER_SDE && t[i + 1] != 0.0;
    if (noisy)
        SL_TRY(draw_noise(d, i + 1, err));
    SL_TRY(d->ops->sample_step(d->exec, &d->x, &d->velocity, noisy ? &d->staging : NULL, t[i],
                               t[i + 1], err));
done:
    return status;
}

static sl_status tell_guess(denoiser *d, int i, sl_error *err)
{
    const sl_t2v_events *events = d->walk->events;
    const double sigma = d->sampling.is_unipc ? d->sampling.unipc.sigma[i] : d->sampling.rcm.t[i];

    if (!events || !events->on_guess || sl_exec_is_counting(d->exec))
        return SL_OK;
    return events->on_guess(events->arg, i, sigma, &d->x, &d->velocity, err);
}

static sl_status denoise_step(denoiser *d, const expert *e, int i, sl_error *err)
{
    sl_status status = SL_OK;
    char stage[80];

    SL_TRY(evaluate(d, e, i, err));
    SL_TRY(tell_guess(d, i, err));
    SL_TRY(move(d, i, err));
    snprintf(stage, sizeof stage, "denoising step %d of %d", i + 1, d->sampling.step_count);
    SL_TRY(check_finite(d->exec, d->latent, stage, err));
done:
    return status;
}

/* At noise, or behind steps that an earlier run has done. */
static sl_status set_state(denoiser *d, sl_error *err)
{
    sl_status status = SL_OK;

    if (d->sampling.is_unipc)
        sl_unipc_begin(&d->unipc, d->exec, &d->sampling.unipc, d->latent, d->walk->steps_done);
    if (d->walk->latent)
        return sl_exec_write(d->exec, d->latent->data, d->walk->latent, sl_tensor_bytes(d->latent),
                             err);
    if (d->sampling.is_unipc)
        SL_TRY(d->ops->zero(d->exec, d->latent, err));
    SL_TRY(draw_noise(d, 0, err));
    SL_TRY(d->ops->sample_init(d->exec, &d->x, &d->staging,
                               d->sampling.is_unipc ? 1.0 : d->sampling.rcm.t[0], err));
done:
    return status;
}

static sl_status prepare(denoiser *d, expert *e, const sl_tensor *text, sl_error *err)
{
    const sl_dit_config *config = &sl_component_get_spec(e->dit)->config.dit;
    const sl_tensor prompt = sl_tensor_rows(text, 0, config->text_len);
    sl_status status = SL_OK;

    SL_TRY(sl_dit_prepare(d->exec, d->scratch, sl_component_dit(e->dit), config, &prompt,
                          &e->prompt, NULL, err));
    if (e->guidance != 1.0) {
        const sl_tensor negative = sl_tensor_rows(text, config->text_len, config->text_len);

        SL_TRY(sl_dit_prepare(d->exec, d->scratch, sl_component_dit(e->dit), config, &negative,
                              &e->negative, NULL, err));
    }
done:
    return status;
}

/* Steps [first, end) with one expert, which has keys and values of its own. */
static sl_status run_expert(denoiser *d, sl_component_kind kind, const sl_tensor *text, int first,
                            int end, sl_error *err)
{
    const size_t mark = sl_scratch_mark(d->scratch);
    const sl_t2v_events *events = d->walk->events;
    const bool tell = events && events->on_step && !sl_exec_is_counting(d->exec);
    expert e = { .dit = sl_t2v_component_of(d->walk->components, kind),
                 .guidance = sl_sampling_guidance(d->walk->request, kind) };
    sl_status status = SL_OK;

    SL_TRY(prepare(d, &e, text, err));
    for (int i = first; i < end; i++) {
        SL_TRY(denoise_step(d, &e, i, err));
        if (tell)
            SL_TRY(events->on_step(events->arg, i, d->sampling.step_count, d->latent, err));
    }
done:
    sl_scratch_release(d->scratch, mark);
    return status;
}

static sl_status take_tensors(denoiser *d, const sl_tensor *condition, sl_error *err)
{
    const int64_t *dim = d->x.dim;
    const int64_t known = condition ? condition->dim[0] : 0;
    sl_status status = SL_OK;

    SL_TRY(sl_scratch_tensor(d->scratch, &d->input, err, SL_F32, 4, dim[0] + known, dim[1], dim[2],
                             dim[3]));
    d->staging = sl_tensor_rows(&d->input, 0, dim[0]);
    SL_TRY(sl_scratch_take(d->scratch, &d->velocity, err, SL_F32, d->x.rank, dim));
    if (d->guided)
        SL_TRY(sl_scratch_take(d->scratch, &d->unguided, err, SL_F32, d->x.rank, dim));
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
                   .latent = latent,
                   .guided = walk->phases.guided };
    sl_status status = SL_OK;

    SL_TRY(sl_sampling_make(&d.sampling, walk->request, err));
    d.x = sl_tensor_rows(latent, 0, latent->dim[0] / sl_sampling_states(walk->request->mode));
    for (size_t i = 0; i < SL_COUNT(experts); i++) {
        const sl_phase phase = experts[i].phase;
        const int steps = walk->phases.steps[phase];

        if (steps == 0)
            continue;
        SL_TRY(sl_t2v_begin_phase(walk, phase, err));
        if (next == walk->steps_done) {
            SL_TRY(take_tensors(&d, condition, err));
            SL_TRY(set_state(&d, err));
        }
        SL_TRY(run_expert(&d, experts[i].kind, text, next, next + steps, err));
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
    const sl_t2v_lease lease = sl_t2v_lend(exec, scratch);
    sl_status status = sl_t2v_phases_make(&walk.phases, request, condition != NULL,
                                          components->dit ? 1 : 2, 0, err);

    if (status == SL_OK)
        status = sl_t2v_walk_denoise(&walk, text, condition, latent, err);
    return sl_t2v_return(&lease, status, err);
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
    const sl_tensor sample = sl_tensor_rows(latent, 0, config->z_dim);
    sl_vae_decoder decoder;
    sl_tensor z, frames;
    sl_t2v_lease lease;
    int64_t first = 0;
    char stage[80];

    if (tell) {
        host = malloc(sl_t2v_chunk_rgb_bytes(config, T, h, w));
        if (!host)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a chunk of decoded frames");
    }
    lease = sl_t2v_lend(exec, scratch);
    SL_TRY(sl_scratch_take(scratch, &z, err, SL_F32, sample.rank, sample.dim));
    SL_TRY(sl_exec_ops(exec)->sample_cast(exec, &z, &sample, err));
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
    status = sl_t2v_return(&lease, status, err);
    free(host);
    sl_scratch_release(scratch, mark);
    return status;
}
