/* t2v.c - see t2v.h.
 *
 * Scratch, bottom to top:  latent | text | what the phase at hand needs.  The
 * text goes when denoising ends; only the latent lives through.
 */
#include "engine/pipeline/t2v.h"

#include "engine/nets/dit.h"
#include "engine/nets/net.h"
#include "engine/nets/umt5.h"
#include "engine/nets/vae.h"
#include "engine/pipeline/schedule.h"
#include "kernels/ops.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIXEL_MULTIPLE = 16, /* 8 of the VAE, 2 of the patches */
    LATENT_PIXELS = 8,
    TOKENS_PER_AXIS = 128, /* what the rotary table holds */
    RGB = 3,
};

const char *sl_phase_name(sl_phase phase)
{
    static const char *const names[SL_PHASE_COUNT] = { "encode_text", "denoise", "decode" };

    SL_ASSERT((int)phase >= 0 && phase < SL_PHASE_COUNT);
    return names[phase];
}

/* ---- requests ---- */

sl_t2v_request sl_t2v_request_default(const sl_arch *arch)
{
    return (sl_t2v_request){
        .width = arch->default_width,
        .height = arch->default_height,
        .frames = arch->default_frames,
        .steps = SL_RCM_MAX_STEPS,
        .mode = SL_SAMPLER_SDE,
        .sigma_max = arch->sigma_max,
        .precision = SL_PRECISION_BF16,
        .token_count = arch->dit.text_len,
    };
}

/* Frames that one latent frame after the first stands for. */
static int frames_per_latent(const sl_arch *arch)
{
    return (int)(sl_vae_frame_count(&arch->vae, 2) - 1);
}

static int nearest(int value, int multiple, int least, int most)
{
    if (value <= least)
        return least;
    if (value >= most)
        return most;
    return least + (value - least + multiple / 2) / multiple * multiple;
}

static sl_status check_side(const char *name, int value, sl_error *err)
{
    const int most = PIXEL_MULTIPLE * TOKENS_PER_AXIS;
    const int valid = nearest(value, PIXEL_MULTIPLE, PIXEL_MULTIPLE, most);

    if (valid == value)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID,
                   "%s %d: expected a multiple of %d from %d to %d; the nearest is %d", name, value,
                   (int)PIXEL_MULTIPLE, (int)PIXEL_MULTIPLE, most, valid);
}

static sl_status check_frames(int frames, const sl_arch *arch, sl_error *err)
{
    const int per_latent = frames_per_latent(arch);
    const int most = (int)sl_vae_frame_count(&arch->vae, TOKENS_PER_AXIS);
    const int valid = nearest(frames, per_latent, 1, most);

    if (valid == frames)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID,
                   "%d frames: expected %d m + 1, from 1 to %d; the nearest is %d", frames,
                   per_latent, most, valid);
}

static sl_status check_sampling(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    if (request->steps < 1 || request->steps > SL_RCM_MAX_STEPS)
        return sl_fail(err, SL_ERR_INVALID, "%d steps: expected 1 to %d; the nearest is %d",
                       request->steps, (int)SL_RCM_MAX_STEPS,
                       request->steps < 1 ? 1 : (int)SL_RCM_MAX_STEPS);
    if (!(request->sigma_max > 0.0) || !isfinite(request->sigma_max))
        return sl_fail(err, SL_ERR_INVALID,
                       "sigma_max %g: expected a finite number above 0; this model's default is %g",
                       request->sigma_max, arch->sigma_max);
    if (request->mode != SL_SAMPLER_SDE && request->mode != SL_SAMPLER_ODE)
        return sl_fail(err, SL_ERR_INVALID, "sampler mode %d: expected SDE (%d) or ODE (%d)",
                       (int)request->mode, (int)SL_SAMPLER_SDE, (int)SL_SAMPLER_ODE);
    if ((int)request->precision < 0 || request->precision >= SL_PRECISION_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "precision %d: expected f32 (%d) or bf16 (%d)",
                       (int)request->precision, (int)SL_PRECISION_F32, (int)SL_PRECISION_BF16);
    return SL_OK;
}

/* What can be streamed of a model with one expert. */
static sl_status check_streamed(unsigned streamed, sl_error *err)
{
    const unsigned possible =
        SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER) | SL_COMPONENT_BIT(SL_COMPONENT_DIT);

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (streamed & ~possible & SL_COMPONENT_BIT(kind))
            return sl_fail(err, SL_ERR_INVALID, "%s cannot be streamed: expected %s or %s",
                           sl_component_name((sl_component_kind)kind),
                           sl_component_name(SL_COMPONENT_TEXT_ENCODER),
                           sl_component_name(SL_COMPONENT_DIT));
    if (streamed & ~possible)
        return sl_fail(err, SL_ERR_INVALID, "streamed components 0x%x: unknown bits", streamed);
    return SL_OK;
}

sl_status sl_t2v_request_check(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    sl_status status = SL_OK;

    if (arch->task != SL_TASK_T2V)
        return sl_fail(err, SL_ERR_INVALID,
                       "model \"%s\" makes video from an image: it cannot serve a text-to-video "
                       "request",
                       arch->name);
    SL_TRY(check_side("width", request->width, err));
    SL_TRY(check_side("height", request->height, err));
    SL_TRY(check_frames(request->frames, arch, err));
    SL_TRY(check_sampling(request, arch, err));
    SL_TRY(check_streamed(request->streamed, err));
    if (request->token_count < 1 || request->token_count > arch->dit.text_len)
        return sl_fail(err, SL_ERR_INVALID, "%" PRId64 " prompt tokens: expected 1 to %" PRId64,
                       request->token_count, arch->dit.text_len);
done:
    return status;
}

int64_t sl_t2v_latent_shape(const sl_t2v_request *request, const sl_arch *arch, int64_t dim[4])
{
    const int64_t shape[4] = { arch->dit.out_dim,
                               1 + (request->frames - 1) / frames_per_latent(arch),
                               request->height / LATENT_PIXELS, request->width / LATENT_PIXELS };

    if (dim)
        memcpy(dim, shape, sizeof shape);
    return shape[0] * shape[1] * shape[2] * shape[3];
}

/* ---- denoising ---- */

typedef struct {
    sl_exec *exec;
    const sl_ops *ops;
    sl_scratch *scratch;
    const sl_t2v_request *request;
    const float *const *noises; /* NULL: generated */
    const sl_tensor *latent;    /* f64 */
    sl_tensor staging;          /* f32: the network's input, then the step's noise */
    sl_tensor velocity;         /* f32 */
} denoiser;

static sl_status draw_noise(denoiser *d, int draw, sl_error *err)
{
    const sl_tensor *noise = &d->staging;

    if (d->noises)
        return sl_exec_write(d->exec, noise->data, d->noises[draw], sl_tensor_bytes(noise), err);
    return d->ops->randn(d->exec, noise, d->request->seed, (uint32_t)draw, err);
}

static sl_status check_finite(sl_exec *exec, const sl_tensor *x, const char *stage, int64_t index,
                              int64_t count, sl_error *err)
{
    int64_t bad_count = 0;
    const sl_status status = sl_exec_ops(exec)->check_finite(exec, x, &bad_count, err);

    if (status != SL_OK || bad_count == 0)
        return status;
    return sl_fail(err, SL_ERR_DATA,
                   "%s %" PRId64 " of %" PRId64 ": %" PRId64 " of %" PRId64
                   " values are NaN or infinite",
                   stage, index + 1, count, bad_count, sl_tensor_count(x));
}

/* One evaluation and one update of the state.  Behind the last step t is 0: the
 * noise of SDE would be multiplied by 0, and both updates are the same. */
static sl_status denoise_step(denoiser *d, const sl_component *dit, const sl_dit_text *text,
                              const sl_rcm_schedule *schedule, int i, sl_error *err)
{
    const double t_next = schedule->t[i + 1];
    const bool noisy = d->request->mode == SL_SAMPLER_SDE && t_next != 0.0;
    sl_status status = SL_OK;

    SL_TRY(d->ops->sample_cast(d->exec, &d->staging, d->latent, err));
    SL_TRY(sl_dit_forward(d->exec, d->scratch, sl_component_dit(dit),
                          &sl_component_get_spec(dit)->config.dit, text, schedule->timestep[i],
                          &d->staging, &d->velocity, NULL, err));
    if (noisy)
        SL_TRY(draw_noise(d, i + 1, err));
    SL_TRY(d->ops->sample_step(d->exec, d->latent, &d->velocity, noisy ? &d->staging : NULL,
                               schedule->t[i], t_next, err));
    SL_TRY(check_finite(d->exec, d->latent, "denoising step", i, schedule->step_count, err));
done:
    return status;
}

/* Where a run begins: at noise, or behind steps that an earlier run has done. */
typedef struct {
    int steps_done;
    const double *latent; /* NULL: noise */
} origin;

static sl_status set_state(denoiser *d, const origin *from, double t, sl_error *err)
{
    sl_status status = SL_OK;

    if (from->latent)
        return sl_exec_write(d->exec, d->latent->data, from->latent, sl_tensor_bytes(d->latent),
                             err);
    SL_TRY(draw_noise(d, 0, err));
    SL_TRY(d->ops->sample_init(d->exec, d->latent, &d->staging, t, err));
done:
    return status;
}

/* Noise is drawn by step, not in sequence: steps do not depend on how the ones
 * before were run. */
static sl_status denoise_from(const origin *from, denoiser *d, const sl_component *dit,
                              const sl_tensor *text, const sl_t2v_events *events, sl_error *err)
{
    const size_t mark = sl_scratch_mark(d->scratch);
    const bool tell = events && events->on_step && !sl_exec_is_counting(d->exec);
    const sl_tensor *latent = d->latent;
    sl_status status = SL_OK;
    sl_rcm_schedule schedule;
    sl_dit_text prepared;

    d->ops = sl_exec_ops(d->exec);
    SL_TRY(sl_rcm_schedule_make(&schedule, d->request->steps, d->request->sigma_max, err));
    SL_TRY(sl_scratch_take(d->scratch, &d->staging, err, SL_F32, latent->rank, latent->dim));
    SL_TRY(sl_scratch_take(d->scratch, &d->velocity, err, SL_F32, latent->rank, latent->dim));
    SL_TRY(sl_dit_prepare(d->exec, d->scratch, sl_component_dit(dit),
                          &sl_component_get_spec(dit)->config.dit, text, &prepared, NULL, err));
    SL_TRY(set_state(d, from, schedule.t[0], err));
    for (int i = from->steps_done; i < schedule.step_count; i++) {
        SL_TRY(denoise_step(d, dit, &prepared, &schedule, i, err));
        if (tell)
            SL_TRY(events->on_step(events->arg, i, schedule.step_count, latent, err));
    }
done:
    sl_scratch_release(d->scratch, mark);
    return status;
}

sl_status sl_t2v_denoise(sl_exec *exec, sl_scratch *scratch, const sl_component *dit,
                         const sl_t2v_request *request, const sl_tensor *text,
                         const float *const *noises, const sl_t2v_events *events,
                         const sl_tensor *latent, sl_error *err)
{
    const origin noise = { .steps_done = 0 };
    denoiser d = {
        .exec = exec, .scratch = scratch, .request = request, .noises = noises, .latent = latent
    };

    return denoise_from(&noise, &d, dit, text, events, err);
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

static size_t chunk_rgb_bytes(const sl_vae_config *config, int64_t T, int64_t h, int64_t w)
{
    const int64_t first_only = 1, later = sl_vae_frame_count(config, 2) - 1;
    const int64_t frames = T > 1 ? later : first_only;

    return (size_t)(frames * LATENT_PIXELS * h * LATENT_PIXELS * w * RGB);
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

    if (tell) {
        host = malloc(chunk_rgb_bytes(config, T, h, w));
        if (!host)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a chunk of decoded frames");
    }
    SL_TRY(sl_scratch_take(scratch, &z, err, SL_F32, latent->rank, latent->dim));
    SL_TRY(sl_exec_ops(exec)->sample_cast(exec, &z, latent, err));
    SL_TRY(sl_vae_decoder_begin(&decoder, exec, scratch, sl_component_vae(vae), config, T, h, w,
                                NULL, err));
    for (int64_t t = 0; t < T; t++) {
        SL_TRY(sl_vae_decoder_next(&decoder, &z, t, &frames, err));
        SL_TRY(check_finite(exec, &frames, "decoding latent frame", t, T, err));
        SL_TRY(deliver(exec, scratch, &frames, (int)first, host, events, err));
        first += frames.dim[0];
    }
done:
    free(host);
    sl_scratch_release(scratch, mark);
    return status;
}

/* ---- the walk ---- */

/* One walk through the phases. */
typedef struct {
    sl_exec *exec;
    sl_scratch *scratch;
    const sl_t2v_components *components;
    const sl_arch *arch;
    const sl_t2v_request *request;
    const int32_t *ids;
    const float *const *noises;
    const sl_t2v_events *events;
    origin from;
    size_t mark; /* of the scratch before the walk */
    sl_t2v_result measured;
} walk;

/* A phase begins: its peak is counted from what is in use now. */
static sl_status begin_phase(walk *w, sl_phase phase, sl_error *err)
{
    w->scratch->peak_bytes = w->scratch->used_bytes;
    if (w->events && w->events->on_phase && !sl_exec_is_counting(w->exec))
        return w->events->on_phase(w->events->arg, phase, err);
    return SL_OK;
}

static void end_phase(walk *w, sl_phase phase)
{
    w->measured.phase_activation_bytes[phase] = w->scratch->peak_bytes - w->mark;
}

/* The phases before decoding. */
static sl_status make_latent(walk *w, const sl_tensor *latent, sl_error *err)
{
    const size_t mark = sl_scratch_mark(w->scratch);
    const sl_component *encoder = w->components->text_encoder;
    denoiser d = { .exec = w->exec,
                   .scratch = w->scratch,
                   .request = w->request,
                   .noises = w->noises,
                   .latent = latent };
    sl_status status = SL_OK;
    sl_tensor text;

    SL_TRY(sl_scratch_tensor(w->scratch, &text, err, SL_F32, 2, w->arch->dit.text_len,
                             w->arch->t5.dim));
    SL_TRY(sl_umt5_encode(w->exec, w->scratch, sl_component_t5(encoder),
                          &sl_component_get_spec(encoder)->config.t5, w->ids,
                          w->request->token_count, &text, NULL, err));
    end_phase(w, SL_PHASE_ENCODE_TEXT);

    SL_TRY(begin_phase(w, SL_PHASE_DENOISE, err));
    SL_TRY(denoise_from(&w->from, &d, w->components->dit, &text, w->events, err));
    end_phase(w, SL_PHASE_DENOISE);
done:
    sl_scratch_release(w->scratch, mark);
    return status;
}

/* Activations are planned for the modes of the request. */
static sl_status check_mode(const sl_component *component, unsigned streamed, sl_error *err)
{
    const sl_component_spec *spec = sl_component_get_spec(component);
    const sl_component_mode want =
        streamed & SL_COMPONENT_BIT(spec->kind) ? SL_MODE_STREAMED : SL_MODE_RESIDENT;

    if (spec->mode == want)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "%s is %s: the request was planned with it %s",
                   sl_component_name(spec->kind), sl_component_mode_name(spec->mode),
                   sl_component_mode_name(want));
}

static sl_status run_walk(walk *w, sl_t2v_result *result, sl_error *err)
{
    const bool decode_only = w->from.steps_done == w->request->steps;
    sl_scratch *scratch = w->scratch;
    sl_status status = SL_OK;
    sl_tensor latent;
    int64_t dim[4];

    w->mark = sl_scratch_mark(scratch);
    SL_TRY(sl_t2v_request_check(w->request, w->arch, err));
    if (!decode_only) {
        SL_TRY(check_mode(w->components->text_encoder, w->request->streamed, err));
        SL_TRY(check_mode(w->components->dit, w->request->streamed, err));
        SL_TRY(begin_phase(w, SL_PHASE_ENCODE_TEXT, err));
    }
    (void)sl_t2v_latent_shape(w->request, w->arch, dim);
    SL_TRY(sl_scratch_take(scratch, &latent, err, SL_F64, 4, dim));
    if (decode_only)
        SL_TRY(sl_exec_write(w->exec, latent.data, w->from.latent, sl_tensor_bytes(&latent), err));
    else
        SL_TRY(make_latent(w, &latent, err));

    SL_TRY(begin_phase(w, SL_PHASE_DECODE, err));
    SL_TRY(sl_t2v_decode(w->exec, scratch, w->components->vae, &latent, w->events, err));
    end_phase(w, SL_PHASE_DECODE);
    if (result)
        *result = w->measured;
done:
    sl_scratch_release(scratch, w->mark);
    return status;
}

sl_status sl_t2v_run(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                     const sl_arch *arch, const sl_t2v_request *request, const int32_t *ids,
                     const float *const *noises, const sl_t2v_events *events, sl_t2v_result *result,
                     sl_error *err)
{
    walk w = { .exec = exec,
               .scratch = scratch,
               .components = components,
               .arch = arch,
               .request = request,
               .ids = ids,
               .noises = noises,
               .events = events };

    return run_walk(&w, result, err);
}

sl_status sl_t2v_resume(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                        const sl_arch *arch, const sl_t2v_request *request, const int32_t *ids,
                        const float *const *noises, int steps_done, const double *latent,
                        const sl_t2v_events *events, sl_t2v_result *result, sl_error *err)
{
    walk w = { .exec = exec,
               .scratch = scratch,
               .components = components,
               .arch = arch,
               .request = request,
               .ids = ids,
               .noises = noises,
               .events = events,
               .from = { .steps_done = steps_done, .latent = latent } };

    if (steps_done < 1 || steps_done > request->steps)
        return sl_fail(err, SL_ERR_INVALID, "resumed behind step %d: expected 1 to %d", steps_done,
                       request->steps);
    return run_walk(&w, result, err);
}

/* ---- plans ---- */

/* Both sums of sizes that memory must hold; SIZE_MAX stands for "more than any". */
static size_t add_saturated(size_t a, size_t b)
{
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}

static void sum_up(sl_t2v_plan *plan, const sl_t2v_request *request, const sl_arch *arch,
                   const sl_t2v_result *counted)
{
    size_t most = 0;

    for (int phase = SL_PHASE_COUNT - 1; phase >= 0; phase--) {
        plan->phase_activation_bytes[phase] = counted->phase_activation_bytes[phase];
        if (counted->phase_activation_bytes[phase] > most)
            most = counted->phase_activation_bytes[phase];
        plan->remaining_bytes[phase] = sl_granules(most);
    }
    plan->activation_bytes = plan->remaining_bytes[0];
    plan->total_bytes = plan->activation_bytes;
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        plan->total_bytes = add_saturated(plan->total_bytes, plan->weight_bytes[kind]);
    plan->output_frame_bytes =
        chunk_rgb_bytes(&arch->vae, request->frames > 1 ? 2 : 1, request->height / LATENT_PIXELS,
                        request->width / LATENT_PIXELS);
}

sl_status sl_t2v_plan_make(sl_t2v_plan *out, const sl_t2v_request *request, const sl_arch *arch,
                           sl_error *err)
{
    static const sl_component_kind kinds[] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_DIT,
                                               SL_COMPONENT_VAE };
    sl_component *parts[SL_COUNT(kinds)] = { NULL };
    sl_t2v_plan plan = {
        .phase_components = { [SL_PHASE_ENCODE_TEXT] = SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER),
                              [SL_PHASE_DENOISE] = SL_COMPONENT_BIT(SL_COMPONENT_DIT),
                              [SL_PHASE_DECODE] = SL_COMPONENT_BIT(SL_COMPONENT_VAE) },
    };
    sl_exec *exec = NULL;
    sl_status status = SL_OK;
    sl_scratch scratch;
    sl_t2v_result counted;

    SL_TRY(sl_t2v_request_check(request, arch, err));
    SL_TRY(sl_exec_create_counting(&exec, err));
    sl_scratch_init_counting(&scratch);
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        sl_component_spec spec = sl_component_spec_of(arch, kinds[i], request->precision);

        if (request->streamed & SL_COMPONENT_BIT(kinds[i]))
            spec.mode = SL_MODE_STREAMED;
        plan.weight_bytes[kinds[i]] = sl_component_plan_bytes(&spec);
        plan.image_bytes[kinds[i]] = sl_component_image_bytes(&spec);
        plan.pass_bytes[kinds[i]] = sl_component_pass_bytes(&spec);
        SL_TRY(sl_component_create_counting(&parts[i], &spec, err));
    }
    const sl_t2v_components components = { .text_encoder = parts[0],
                                           .dit = parts[1],
                                           .vae = parts[2] };
    SL_TRY(sl_t2v_run(exec, &scratch, &components, arch, request, NULL, NULL, NULL, &counted, err));
    sum_up(&plan, request, arch, &counted);
    *out = plan;
done:
    for (size_t i = 0; i < SL_COUNT(kinds); i++)
        sl_component_destroy(parts[i]);
    sl_exec_destroy(exec);
    return status;
}

static double longer(double a, double b)
{
    return a > b ? a : b;
}

sl_t2v_estimate sl_t2v_estimate_run(const sl_t2v_plan *plan, const sl_t2v_request *request,
                                    const sl_t2v_speed *speed)
{
    const double *compute_s = speed->phase_s, rate = speed->copy_bytes_per_s;
    const double steps = request->steps;
    sl_t2v_estimate estimate = { .resident_s = 0.0 };

    SL_ASSERT(rate > 0.0);
    const double text_s = (double)plan->pass_bytes[SL_COMPONENT_TEXT_ENCODER] / rate;
    const double dit_s = (double)plan->pass_bytes[SL_COMPONENT_DIT] / rate;
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        estimate.resident_s += compute_s[phase];
    estimate.streamed_s = longer(compute_s[SL_PHASE_ENCODE_TEXT], text_s) + dit_s +
                          steps * longer(compute_s[SL_PHASE_DENOISE] / steps, dit_s) +
                          compute_s[SL_PHASE_DECODE];
    return estimate;
}
