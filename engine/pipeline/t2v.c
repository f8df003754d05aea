/* t2v.c - see t2v.h.
 *
 * Scratch, bottom to top:  latent | text | condition | what the phase at hand
 * needs.  Text and condition go when denoising ends; only the latent lives
 * through.
 */
#include "engine/pipeline/t2v_walk.h"

#include "engine/nets/umt5.h"
#include "engine/nets/vae.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    PIXEL_MULTIPLE = 16,   /* 8 of the VAE, 2 of the patches */
    TOKENS_PER_AXIS = 128, /* what the rotary table holds */
};

static const double default_boundary = 0.9; /* wan.md 7.2 */
static const double official_shift = 5.0;   /* wan.md 7.3 */
static const double max_guidance = 100.0;

const char *sl_phase_name(sl_phase phase)
{
    static const char *const names[SL_PHASE_COUNT] = { "encode_text",  "encode_image", "denoise",
                                                       "denoise_high", "denoise_low",  "decode" };

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
        .shift = official_shift,
        .guidance = 1.0,
        .guidance_low = 1.0,
        .negative_token_count = arch->dit.text_len,
        .boundary = default_boundary,
        .precision = SL_PRECISION_BF16,
        .attention = SL_ATTENTION_DENSE,
        .topk_ratio = SL_DEFAULT_TOPK_RATIO,
        .dialect = SL_DIALECT_TURBO,
        .layer_norm = SL_LAYER_NORM_EXACT,
        .vae_precision = SL_PRECISION_F32,
        .token_count = arch->dit.text_len,
    };
}

/* wan.md 7.3 */
sl_t2v_request sl_t2v_request_official(const sl_arch *arch)
{
    const bool two = arch->expert_count == 2;
    sl_t2v_request request = sl_t2v_request_default(arch);

    request.mode = SL_SAMPLER_UNIPC;
    request.dialect = SL_DIALECT_OFFICIAL;
    request.steps = two ? 40 : 50;
    request.guidance = request.guidance_low = two ? 3.5 : 5.0;
    return request;
}

sl_precision sl_t2v_vae_precision_default(sl_device_kind kind, sl_precision precision)
{
    return kind == SL_DEVICE_CPU || precision == SL_PRECISION_F32 ? SL_PRECISION_F32
                                                                  : SL_PRECISION_BF16;
}

sl_numerics sl_t2v_numerics(const sl_t2v_request *request, sl_device_kind kind)
{
    sl_numerics numerics = sl_numerics_of(kind, request->precision == SL_PRECISION_F32);

    numerics.frames = request->vae_precision == SL_PRECISION_BF16 ? SL_BF16 : SL_F32;
    return numerics;
}

bool sl_t2v_request_is_guided(const sl_t2v_request *request, const sl_arch *arch)
{
    return sl_sampling_is_guided(request, arch->expert_count);
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

static sl_status check_steps(int steps, int most, sl_error *err)
{
    if (steps >= 1 && steps <= most)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "%d steps: expected 1 to %d; the nearest is %d", steps,
                   most, steps < 1 ? 1 : most);
}

static sl_status check_guidance(const char *name, double guidance, sl_error *err)
{
    if (guidance > 0.0 && guidance <= max_guidance)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "%s %g: expected more than 0, at most %g", name, guidance,
                   max_guidance);
}

static sl_status check_unipc(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    sl_status status = SL_OK;

    SL_TRY(check_steps(request->steps, SL_UNIPC_MAX_STEPS, err));
    if (!(request->shift > 0.0) || !isfinite(request->shift))
        return sl_fail(err, SL_ERR_INVALID,
                       "shift %g: expected a finite number above 0; the default is %g",
                       request->shift, official_shift);
    SL_TRY(check_guidance("guidance", request->guidance, err));
    if (arch->expert_count == 2)
        SL_TRY(check_guidance("guidance of the low-noise expert", request->guidance_low, err));
    if (sl_sampling_is_guided(request, arch->expert_count) &&
        (request->negative_token_count < 1 || request->negative_token_count > arch->dit.text_len))
        return sl_fail(err, SL_ERR_INVALID,
                       "%" PRId64 " tokens of the negative prompt: expected 1 to %" PRId64,
                       request->negative_token_count, arch->dit.text_len);
done:
    return status;
}

static sl_status check_rcm(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    if (!(request->sigma_max > 0.0) || !isfinite(request->sigma_max))
        return sl_fail(err, SL_ERR_INVALID,
                       "sigma_max %g: expected a finite number above 0; this model's default is %g",
                       request->sigma_max, arch->sigma_max);
    return check_steps(request->steps, SL_RCM_MAX_STEPS, err);
}

static sl_status check_sampling(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    if ((int)request->mode < 0 || request->mode >= SL_SAMPLER_COUNT)
        return sl_fail(
            err, SL_ERR_INVALID, "sampler mode %d: expected SDE (%d), ODE (%d) or UNIPC (%d)",
            (int)request->mode, (int)SL_SAMPLER_SDE, (int)SL_SAMPLER_ODE, (int)SL_SAMPLER_UNIPC);
    if (arch->expert_count == 2 && !(request->boundary > 0.0 && request->boundary <= 1.0))
        return sl_fail(err, SL_ERR_INVALID,
                       "boundary %g: expected a time above 0, at most 1; the default is %g",
                       request->boundary, default_boundary);
    return request->mode == SL_SAMPLER_UNIPC ? check_unipc(request, arch, err)
                                             : check_rcm(request, arch, err);
}

static sl_status check_dialect(const sl_t2v_request *request, sl_error *err)
{
    if ((int)request->dialect < 0 || request->dialect >= SL_DIALECT_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "dialect %d: expected turbo or official",
                       (int)request->dialect);
    if ((int)request->layer_norm < 0 || request->layer_norm >= SL_LAYER_NORM_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "layer_norm %d: expected exact or turbo-compat",
                       (int)request->layer_norm);
    if (request->vae_precision == SL_PRECISION_BF16 && request->precision == SL_PRECISION_F32)
        return sl_fail(err, SL_ERR_INVALID,
                       "a VAE that computes in bf16 has bf16 weights: precision f32 keeps them in "
                       "f32");
    if (request->vae_precision != SL_PRECISION_F32 && request->vae_precision != SL_PRECISION_BF16)
        return sl_fail(err, SL_ERR_INVALID, "VAE precision %d: expected f32 or bf16",
                       (int)request->vae_precision);
    return SL_OK;
}

static sl_status check_part(const sl_t2v_request *request, sl_error *err)
{
    if ((int)request->part < 0 || request->part >= SL_PART_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "part %d: expected all, latent or decode",
                       (int)request->part);
    return SL_OK;
}

static sl_status check_execution(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    sl_status status = SL_OK;

    if ((int)request->precision < 0 || request->precision >= SL_PRECISION_COUNT)
        return sl_fail(err, SL_ERR_INVALID,
                       "precision %d: expected f32 (%d), bf16 (%d), int8 (%d) or fp8 (%d)",
                       (int)request->precision, (int)SL_PRECISION_F32, (int)SL_PRECISION_BF16,
                       (int)SL_PRECISION_INT8, (int)SL_PRECISION_FP8);
    SL_TRY(sl_dit_precision_check(&arch->dit, request->precision, err));
    SL_TRY(sl_dit_attention_check(&arch->dit, request->attention, request->topk_ratio, err));
    SL_TRY(check_dialect(request, err));
done:
    return status;
}

static sl_status check_streamed(unsigned streamed, const sl_arch *arch, sl_error *err)
{
    const unsigned all = SL_COMPONENT_BIT(SL_COMPONENT_COUNT) - 1;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        const sl_component_kind component = (sl_component_kind)kind;

        if (!(streamed & SL_COMPONENT_BIT(kind)))
            continue;
        if (!sl_arch_has_component(arch, component) || !sl_component_can_stream(component))
            return sl_fail(err, SL_ERR_INVALID,
                           "%s cannot be streamed: expected text_encoder or %s",
                           sl_component_name(component),
                           arch->expert_count == 2 ? "dit_high or dit_low" : "dit");
    }
    if (streamed & ~all)
        return sl_fail(err, SL_ERR_INVALID, "streamed components 0x%x: unknown bits", streamed);
    return SL_OK;
}

/* The network's input is the state, and behind it what is known of the video. */
static sl_status check_task(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    const bool from_image = arch->task == SL_TASK_I2V;
    const int64_t known = from_image ? SL_MASK_CHANNELS + arch->vae.z_dim : 0;

    if (arch->dit.in_dim != arch->dit.out_dim + known)
        return sl_fail(err, SL_ERR_INVALID,
                       "model \"%s\": its transformer takes %" PRId64 " channels: expected %" PRId64
                       " of latent and %" PRId64 " of image",
                       arch->name, arch->dit.in_dim, arch->dit.out_dim, known);
    if (request->image && !from_image)
        return sl_fail(err, SL_ERR_INVALID,
                       "model \"%s\" makes video from text alone: it takes no image", arch->name);
    return SL_OK;
}

sl_status sl_t2v_request_check(const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    sl_status status = SL_OK;

    SL_TRY(check_part(request, err));
    SL_TRY(check_task(request, arch, err));
    SL_TRY(check_side("width", request->width, err));
    SL_TRY(check_side("height", request->height, err));
    SL_TRY(check_frames(request->frames, arch, err));
    SL_TRY(check_sampling(request, arch, err));
    SL_TRY(check_execution(request, arch, err));
    SL_TRY(check_streamed(request->streamed, arch, err));
    if (request->token_count < 1 || request->token_count > arch->dit.text_len)
        return sl_fail(err, SL_ERR_INVALID, "%" PRId64 " prompt tokens: expected 1 to %" PRId64,
                       request->token_count, arch->dit.text_len);
done:
    return status;
}

int64_t sl_t2v_latent_shape(const sl_t2v_request *request, const sl_arch *arch, int64_t dim[4])
{
    const int64_t states = request->part == SL_PART_DECODE ? 1 : sl_sampling_states(request->mode);
    const int64_t shape[4] = { arch->dit.out_dim * states,
                               1 + (request->frames - 1) / frames_per_latent(arch),
                               request->height / SL_LATENT_PIXELS,
                               request->width / SL_LATENT_PIXELS };

    if (dim)
        memcpy(dim, shape, sizeof shape);
    return shape[0] * shape[1] * shape[2] * shape[3];
}

/* ---- phases ---- */

sl_status sl_t2v_phases_make(sl_t2v_phases *out, const sl_t2v_request *request, bool image,
                             int expert_count, int steps_done, sl_error *err)
{
    const int end = request->steps;
    sl_t2v_phases phases = { .components = { [SL_PHASE_DECODE] =
                                                 SL_COMPONENT_BIT(SL_COMPONENT_VAE) } };
    sl_status status = SL_OK;
    sl_sampling sampling;

    if (request->part == SL_PART_LATENT)
        phases.components[SL_PHASE_DECODE] = 0;
    phases.guided = sl_sampling_is_guided(request, expert_count);
    if (expert_count == 2) {
        SL_TRY(sl_sampling_make(&sampling, request, err));
        const int low = sl_sampling_low_from(&sampling, request);
        phases.steps[SL_PHASE_DENOISE_HIGH] = low > steps_done ? low - steps_done : 0;
        phases.steps[SL_PHASE_DENOISE_LOW] = end - (low > steps_done ? low : steps_done);
    } else {
        phases.steps[SL_PHASE_DENOISE] = end - steps_done;
    }
    if (phases.steps[SL_PHASE_DENOISE] > 0)
        phases.components[SL_PHASE_DENOISE] = SL_COMPONENT_BIT(SL_COMPONENT_DIT);
    if (phases.steps[SL_PHASE_DENOISE_HIGH] > 0)
        phases.components[SL_PHASE_DENOISE_HIGH] = SL_COMPONENT_BIT(SL_COMPONENT_DIT_HIGH);
    if (phases.steps[SL_PHASE_DENOISE_LOW] > 0)
        phases.components[SL_PHASE_DENOISE_LOW] = SL_COMPONENT_BIT(SL_COMPONENT_DIT_LOW);
    if (steps_done < end) {
        phases.components[SL_PHASE_ENCODE_TEXT] = SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER);
        if (image)
            phases.components[SL_PHASE_ENCODE_IMAGE] = SL_COMPONENT_BIT(SL_COMPONENT_VAE);
    }
    *out = phases;
done:
    return status;
}

const sl_component *sl_t2v_component_of(const sl_t2v_components *components, sl_component_kind kind)
{
    switch (kind) {
    case SL_COMPONENT_TEXT_ENCODER:
        return components->text_encoder;
    case SL_COMPONENT_DIT:
        return components->dit;
    case SL_COMPONENT_DIT_HIGH:
        return components->dit_high;
    case SL_COMPONENT_DIT_LOW:
        return components->dit_low;
    case SL_COMPONENT_VAE:
        return components->vae;
    default:
        return NULL;
    }
}

/* ---- the walk ---- */

/* Activations are planned for the modes of the request. */
static sl_status check_component(const sl_component *component, sl_component_kind kind,
                                 unsigned streamed, sl_error *err)
{
    const sl_component_mode want =
        streamed & SL_COMPONENT_BIT(kind) ? SL_MODE_STREAMED : SL_MODE_RESIDENT;

    if (!component)
        return sl_fail(err, SL_ERR_INVALID, "%s is not there: the request needs it",
                       sl_component_name(kind));
    const sl_component_spec *spec = sl_component_get_spec(component);
    if (spec->kind != kind)
        return sl_fail(err, SL_ERR_INVALID, "%s was given as %s", sl_component_name(spec->kind),
                       sl_component_name(kind));
    if (spec->mode != want)
        return sl_fail(err, SL_ERR_INVALID, "%s is %s: the request was planned with it %s",
                       sl_component_name(kind), sl_component_mode_name(spec->mode),
                       sl_component_mode_name(want));
    return SL_OK;
}

static sl_status check_components(const sl_t2v_walk *w, unsigned needed, sl_error *err)
{
    sl_status status = SL_OK;

    for (int kind = 0; kind < SL_COMPONENT_COUNT && status == SL_OK; kind++)
        if (needed & SL_COMPONENT_BIT(kind))
            status = check_component(sl_t2v_component_of(w->components, (sl_component_kind)kind),
                                     (sl_component_kind)kind, w->request->streamed, err);
    return status;
}

sl_status sl_t2v_begin_phase(sl_t2v_walk *walk, sl_phase phase, sl_error *err)
{
    sl_status status = sl_exec_wait(walk->exec, err);

    if (status != SL_OK)
        return status;
    walk->scratch->peak_bytes = walk->scratch->used_bytes;
    if (walk->events && walk->events->on_phase && !sl_exec_is_counting(walk->exec))
        status = walk->events->on_phase(walk->events->arg, phase, err);
    if (status == SL_OK && walk->components->by_phase)
        status = check_components(walk, walk->phases.components[phase], err);
    return status;
}

void sl_t2v_end_phase(sl_t2v_walk *walk, sl_phase phase)
{
    walk->measured.phase_activation_bytes[phase] = walk->scratch->peak_bytes - walk->mark;
}

/* text: the prompt's rows, and with guidance those of the negative one. */
static sl_status encode_texts(sl_t2v_walk *w, sl_tensor *text, sl_error *err)
{
    const sl_component *encoder = w->components->text_encoder;
    const sl_t2v_request *request = w->request;
    const int64_t rows = w->arch->dit.text_len;
    const struct {
        const int32_t *ids;
        int64_t count;
    } prompts[] = { { w->ids, request->token_count },
                    { request->negative_ids, request->negative_token_count } };
    const int count = w->phases.guided ? 2 : 1;
    sl_status status = SL_OK;

    SL_TRY(sl_scratch_tensor(w->scratch, text, err, sl_exec_numerics(w->exec)->activation, 2,
                             count * rows, w->arch->t5.dim));
    for (int i = 0; i < count; i++) {
        const sl_tensor out = sl_tensor_rows(text, i * rows, rows);

        SL_TRY(sl_umt5_encode(w->exec, w->scratch, sl_component_t5(encoder),
                              &sl_component_get_spec(encoder)->config.t5, prompts[i].ids,
                              prompts[i].count, &out, NULL, err));
    }
done:
    return status;
}

/* The phases before decoding. */
static sl_status make_latent(sl_t2v_walk *w, const sl_tensor *latent, sl_error *err)
{
    const size_t mark = sl_scratch_mark(w->scratch);
    const bool from_image = w->phases.components[SL_PHASE_ENCODE_IMAGE] != 0;
    sl_status status = SL_OK;
    sl_tensor text, condition;

    SL_TRY(encode_texts(w, &text, err));
    sl_t2v_end_phase(w, SL_PHASE_ENCODE_TEXT);

    if (from_image) {
        SL_TRY(sl_t2v_begin_phase(w, SL_PHASE_ENCODE_IMAGE, err));
        SL_TRY(sl_scratch_tensor(w->scratch, &condition, err, SL_F32, 4,
                                 SL_MASK_CHANNELS + w->arch->vae.z_dim, latent->dim[1],
                                 latent->dim[2], latent->dim[3]));
        SL_TRY(sl_t2v_encode_image(w->exec, w->scratch, w->components->vae, w->request->image,
                                   &condition, err));
        sl_t2v_end_phase(w, SL_PHASE_ENCODE_IMAGE);
    }
    SL_TRY(sl_t2v_walk_denoise(w, &text, from_image ? &condition : NULL, latent, err));
done:
    sl_scratch_release(w->scratch, mark);
    return status;
}

static sl_status check_inputs(const sl_t2v_walk *w, sl_error *err)
{
    unsigned needed = 0;

    for (int phase = 0; phase < SL_PHASE_COUNT && !w->components->by_phase; phase++)
        needed |= w->phases.components[phase];
    sl_status status = check_components(w, needed, err);
    if (status == SL_OK && w->phases.components[SL_PHASE_ENCODE_IMAGE] && !w->request->image &&
        !sl_exec_is_counting(w->exec))
        status = sl_fail(err, SL_ERR_INVALID,
                         "model \"%s\" makes video from an image: none is given", w->arch->name);
    if (status == SL_OK && w->phases.guided && w->steps_done < w->request->steps &&
        !w->request->negative_ids && !sl_exec_is_counting(w->exec))
        status = sl_fail(err, SL_ERR_INVALID, "guidance needs a negative prompt: none is given");
    return status;
}

static sl_status run_walk(sl_t2v_walk *w, sl_t2v_result *result, sl_error *err)
{
    const bool decode_only = w->steps_done == w->request->steps;
    const sl_numerics numerics = sl_t2v_numerics(w->request, sl_exec_numerics(w->exec)->kind);
    sl_scratch *scratch = w->scratch;
    sl_status status = SL_OK;
    sl_t2v_lease lease;
    sl_tensor latent;
    int64_t dim[4];

    w->mark = sl_scratch_mark(scratch);
    sl_exec_set_numerics(w->exec, &numerics);
    lease = sl_t2v_lend(w->exec, scratch);
    SL_TRY(sl_t2v_request_check(w->request, w->arch, err));
    SL_TRY(sl_t2v_phases_make(&w->phases, w->request, w->arch->task == SL_TASK_I2V,
                              w->arch->expert_count, w->steps_done, err));
    SL_TRY(check_inputs(w, err));
    if (decode_only && !w->latent && !sl_exec_is_counting(w->exec)) {
        status = sl_fail(err, SL_ERR_INVALID, "decoding needs a latent: none is given");
        goto done;
    }
    if (!decode_only)
        SL_TRY(sl_t2v_begin_phase(w, SL_PHASE_ENCODE_TEXT, err));
    (void)sl_t2v_latent_shape(w->request, w->arch, dim);
    SL_TRY(sl_scratch_take(scratch, &latent, err, SL_F64, 4, dim));
    if (decode_only)
        SL_TRY(sl_exec_write(w->exec, latent.data, w->latent, sl_tensor_bytes(&latent), err));
    else
        SL_TRY(make_latent(w, &latent, err));

    if (!w->phases.components[SL_PHASE_DECODE])
        goto done;
    SL_TRY(sl_t2v_begin_phase(w, SL_PHASE_DECODE, err));
    SL_TRY(sl_t2v_decode(w->exec, scratch, w->components->vae, &latent, w->events, err));
    sl_t2v_end_phase(w, SL_PHASE_DECODE);
done:
    status = sl_t2v_return(&lease, status, err);
    if (status == SL_OK && result)
        *result = w->measured;
    sl_scratch_release(scratch, w->mark);
    return status;
}

sl_status sl_t2v_run(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                     const sl_arch *arch, const sl_t2v_request *request, const int32_t *ids,
                     const float *const *noises, const sl_t2v_events *events, sl_t2v_result *result,
                     sl_error *err)
{
    sl_t2v_walk w = { .exec = exec,
                      .scratch = scratch,
                      .components = components,
                      .arch = arch,
                      .request = request,
                      .ids = ids,
                      .noises = noises,
                      .events = events,
                      .steps_done = request->part == SL_PART_DECODE ? request->steps : 0 };

    return run_walk(&w, result, err);
}

sl_status sl_t2v_resume(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                        const sl_arch *arch, const sl_t2v_request *request, const int32_t *ids,
                        const float *const *noises, int steps_done, const double *latent,
                        const sl_t2v_events *events, sl_t2v_result *result, sl_error *err)
{
    sl_t2v_walk w = { .exec = exec,
                      .scratch = scratch,
                      .components = components,
                      .arch = arch,
                      .request = request,
                      .ids = ids,
                      .noises = noises,
                      .events = events,
                      .steps_done = steps_done,
                      .latent = latent };

    if (steps_done < 1 || steps_done > request->steps)
        return sl_fail(err, SL_ERR_INVALID, "resumed behind step %d: expected 1 to %d", steps_done,
                       request->steps);
    return run_walk(&w, result, err);
}
