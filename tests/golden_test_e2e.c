/* golden_test_e2e.c - from a text embedding (and an image) to video. */
#include "tests/golden_test.h"

#include "engine/nets/vae.h"
#include "engine/pipeline/schedule.h"
#include "engine/pipeline/t2v.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { CHANNELS = 3 };

/* What a run delivers. */
typedef struct {
    golden_case *c;
    const char *mode;    /* "" or "ode.": names of tensors are "mid.<mode>latent1" */
    double worst_latent; /* over the states after each step */
    int latents_compared;
    uint8_t *rgb; /* [F, H, W, 3] */
    int64_t frame_bytes, frame_count, frames_seen;
} e2e;

static const char *latent_key(const golden_case *c)
{
    return golden_is_exact(c) ? "f32_latent_rel_l2" : "bf16_latent_rel_l2";
}

static void compare_latent(e2e *run, int index, const sl_tensor *latent)
{
    char name[32];
    golden_array want;

    snprintf(name, sizeof name, "mid.%slatent%d", run->mode, index);
    if (!golden_has(run->c, name))
        return;
    if (golden_get(run->c, name, &want, NULL) != SL_OK || want.count != sl_tensor_count(latent)) {
        golden_note_failure(run->c, "%s has another shape", name);
        return;
    }
    const double *got = golden_f64_of(run->c, latent, NULL);
    const double error = got ? golden_rel_l2(got, want.v, want.count) : INFINITY;
    run->worst_latent = fmax(run->worst_latent, error);
    run->latents_compared++;
    if (!isfinite(error))
        golden_note_failure(run->c, "%s is not finite", name);
}

static sl_status on_step(void *arg, int step, int step_count, const sl_tensor *latent,
                         sl_error *err)
{
    (void)step_count;
    (void)err;
    compare_latent(arg, step + 1, latent);
    return SL_OK;
}

static sl_status on_frames(void *arg, const uint8_t *rgb, int first, int count, sl_error *err)
{
    e2e *run = arg;

    if (first != run->frames_seen || first + count > run->frame_count)
        return sl_fail(err, SL_ERR_INTERNAL, "frames %d to %d came out of order", first,
                       first + count);
    memcpy(run->rgb + first * run->frame_bytes, rgb, (size_t)(count * run->frame_bytes));
    run->frames_seen += count;
    return SL_OK;
}

/* Value of video [1, 3, F, H, W] at the place of byte i of [F, H, W, 3]. */
static int64_t video_index(int64_t i, int64_t positions)
{
    return i % CHANNELS * positions + i / CHANNELS;
}

static sl_status check_rgb(golden_case *c, const e2e *run, sl_error *err)
{
    const int64_t bytes = run->frame_bytes * run->frame_count;
    golden_array want;
    const sl_status status = golden_get(c, "out.video_u8", &want, err);
    double worst = 0.0;

    if (status != SL_OK)
        return status;
    if (run->frames_seen != run->frame_count || want.count != bytes) {
        golden_note_failure(c, "%lld frames were delivered, expected %lld",
                            (long long)run->frames_seen, (long long)run->frame_count);
        return SL_OK;
    }
    for (int64_t i = 0; i < bytes; i++)
        worst = fmax(worst, fabs(run->rgb[i] - want.v[video_index(i, bytes / CHANNELS)]));
    golden_check(c, "out.video_u8", "max_abs", worst, golden_tolerance(c, "u8_max_difference"));
    return SL_OK;
}

/* (1 + clamp(v, -1, 1)) / 2 of the decoded latent. */
static sl_status check_video(golden_case *c, const char *name, const sl_component *vae,
                             const sl_tensor *latent, sl_error *err)
{
    const sl_vae_config *config = &sl_component_get_spec(vae)->config.vae;
    sl_scratch *scratch = &c->env->scratch;
    sl_status status = SL_OK;
    sl_vae_decoder decoder;
    sl_tensor z, frames;
    golden_array want;
    double worst = 0.0;
    int64_t seen = 0;

    GOLDEN_TRY(golden_get(c, name, &want, err));
    GOLDEN_TRY(sl_scratch_take(scratch, &z, err, SL_F32, latent->rank, latent->dim));
    GOLDEN_TRY(sl_exec_ops(c->env->exec)->sample_cast(c->env->exec, &z, latent, err));
    GOLDEN_TRY(sl_vae_decoder_begin(&decoder, c->env->exec, scratch, sl_component_vae(vae), config,
                                    z.dim[1], z.dim[2], z.dim[3], NULL, err));
    for (int64_t t = 0; t < z.dim[1]; t++) {
        GOLDEN_TRY(sl_vae_decoder_next(&decoder, &z, t, &frames, err));
        const double *v = golden_f64_of(c, &frames, err);
        for (int64_t i = 0; v && i < sl_tensor_count(&frames) && seen < want.count; i++, seen++) {
            const double clamped = fmin(fmax(v[i], -1.0), 1.0);
            const double d =
                fabs((1.0 + clamped) / 2.0 - want.v[video_index(seen, want.count / CHANNELS)]);
            worst = isnan(v[i]) ? INFINITY : fmax(worst, d);
        }
    }
    if (seen != want.count)
        golden_note_failure(c, "%s has %lld values, expected %lld", name, (long long)seen,
                            (long long)want.count);
    golden_check(c, name, "max_abs", worst, golden_tolerance(c, "f32_video_max_abs"));
done:
    return status;
}

static sl_status check_latents(golden_case *c, const e2e *run, const sl_tensor *latent,
                               sl_error *err)
{
    sl_status status = SL_OK;
    golden_array want;
    char what[48];

    if (golden_has(c, "out.latent")) {
        GOLDEN_TRY(golden_get(c, "out.latent", &want, err));
        golden_compare(c, "out.latent", golden_f64_of(c, latent, err), sl_tensor_count(latent),
                       &want, latent_key(c), NULL);
    }
    snprintf(what, sizeof what, "%d %sstates", run->latents_compared, run->mode);
    if (run->latents_compared > 0)
        golden_check(c, what, "rel_l2", run->worst_latent, golden_tolerance(c, latent_key(c)));
done:
    return status;
}

typedef struct {
    sl_t2v_request request;
    const float *noises[SL_RCM_MAX_STEPS + 1];
    sl_tensor latent, text;
    sl_tensor condition; /* data NULL: text alone */
} e2e_inputs;

static sl_status read_inputs(golden_case *c, const char *mode, e2e_inputs *in, sl_error *err)
{
    sl_status status = SL_OK;
    golden_array array = { .rank = 0 };
    float *values;

    in->request.steps = (int)golden_number(c->config, "num_steps", 0);
    in->request.sigma_max = golden_number(c->config, "sigma_max", 80);
    in->request.boundary = golden_number(c->config, "boundary", 0);
    in->request.mode = strncasecmp(mode, "ode", 3) == 0 ? SL_SAMPLER_ODE : SL_SAMPLER_SDE;
    if (in->request.steps < 1 || in->request.steps > SL_RCM_MAX_STEPS)
        return sl_fail(err, SL_ERR_DATA, "num_steps %d", in->request.steps);
    GOLDEN_TRY(golden_get_f32(c, "in.text", &array, &values, err));
    GOLDEN_TRY(golden_put(c, &in->text, golden_act(c), 2, array.dim + array.rank - 2, values, err));
    for (int i = in->request.steps; i >= 0; i--) {
        char name[32];

        snprintf(name, sizeof name, "in.noise%d", i);
        /* the noise behind the last step, and all but the first of ODE, are not used */
        if (i > 0 && !golden_has(c, name))
            continue;
        GOLDEN_TRY(golden_get_f32(c, name, &array, &values, err));
        in->noises[i] = values;
    }
    for (int i = 1; i < in->request.steps; i++)
        if (in->request.mode == SL_SAMPLER_SDE && !in->noises[i])
            return sl_fail(err, SL_ERR_DATA, "the case has no tensor \"in.noise%d\"", i);
    if (array.rank != 5 || array.dim[0] != 1)
        return sl_fail(err, SL_ERR_DATA, "\"in.noise0\" is not [1, C, T, h, w]");
    GOLDEN_TRY(sl_scratch_take(&c->env->scratch, &in->latent, err, SL_F64, 4, array.dim + 1));
done:
    return status;
}

/* The case lists the times that the reference used. */
static sl_status check_times(golden_case *c, const e2e_inputs *in, sl_error *err)
{
    sl_status status = SL_OK;
    sl_rcm_schedule schedule;
    golden_array want;

    if (!golden_has(c, "in.t_steps"))
        return SL_OK;
    GOLDEN_TRY(golden_get(c, "in.t_steps", &want, err));
    GOLDEN_TRY(sl_rcm_schedule_make(&schedule, in->request.steps, in->request.sigma_max, err));
    if (want.count != schedule.step_count + 1)
        return sl_fail(err, SL_ERR_DATA, "\"in.t_steps\" has another number of steps");
    /* f64 throughout: the tolerance of the sampler's own case */
    golden_check(c, "in.t_steps", "max_abs", golden_max_abs(schedule.t, want.v, want.count), 1e-15);
done:
    return status;
}

static const char *checkpoint_of(const golden_case *c, const char *part)
{
    const golden_json *ckpt = golden_json_get(c->json, "checkpoint");
    const golden_json *file = golden_json_get(ckpt, part);

    return golden_json_is(file, GOLDEN_JSON_STRING) ? file->text : "";
}

/* A component under one of the case's checkpoints. */
typedef struct {
    const char *part; /* in the case's "checkpoint" */
    sl_component_kind kind;
} e2e_part;

static const e2e_part t2v_parts[] = { { "dit", SL_COMPONENT_DIT }, { "vae", SL_COMPONENT_VAE } };
static const e2e_part i2v_parts[] = { { "high", SL_COMPONENT_DIT_HIGH },
                                      { "low", SL_COMPONENT_DIT_LOW },
                                      { "vae", SL_COMPONENT_VAE } };

static sl_status load_parts(golden_case *c, const e2e_part *parts, size_t count,
                            sl_precision precision, sl_component *out[SL_COMPONENT_COUNT],
                            sl_error *err)
{
    const sl_dit_config dit_config = golden_dit_config(golden_json_get(c->config, "dit"));
    sl_vae_config vae_config = golden_vae_config(golden_json_get(c->config, "vae"));
    sl_status status = SL_OK;

    vae_config.dim = (int64_t)golden_number(c->config, "vae_dim", (double)vae_config.dim);
    for (size_t i = 0; i < count && status == SL_OK; i++) {
        const sl_component_kind kind = parts[i].kind;
        const void *config =
            kind == SL_COMPONENT_VAE ? (const void *)&vae_config : (const void *)&dit_config;

        status = golden_load(c, checkpoint_of(c, parts[i].part), kind, precision, config,
                             &out[kind], err);
    }
    return status;
}

/* The image's condition, as the pipeline makes it. */
static sl_status encode_image(golden_case *c, const sl_component *vae, e2e_inputs *in,
                              sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    sl_scratch *scratch = &c->env->scratch;
    const int64_t *dim = in->latent.dim, H = 8 * dim[2], W = 8 * dim[3];
    sl_status status = SL_OK;
    golden_array image, frames, want;
    sl_tensor rgb, picture;

    GOLDEN_TRY(golden_get(c, "in.image_u8", &image, err));
    GOLDEN_TRY(golden_get(c, "mid.frames", &frames, err));
    if (image.count != H * W * CHANNELS || frames.rank != 5)
        return sl_fail(err, SL_ERR_DATA, "\"in.image_u8\" is not of the video's size");
    GOLDEN_TRY(sl_scratch_tensor(scratch, &rgb, err, SL_U8, 4, 1, H, W, CHANNELS));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &picture, err, SL_F32, 4, 1, H, W, CHANNELS));
    uint8_t *bytes = golden_alloc(c, image.count, 1, err);
    if (!bytes)
        return SL_ERR_NO_MEMORY;
    for (int64_t i = 0; i < image.count; i++)
        bytes[i] = (uint8_t)image.v[i];
    GOLDEN_TRY(golden_write(c, &rgb, bytes, err));
    GOLDEN_TRY(ops->rgb_to_frames(c->env->exec, &picture, &rgb, err));
    const double *pixels = golden_f64_of(c, &picture, err);
    if (!pixels)
        return SL_ERR_NO_MEMORY;
    double worst = 0.0; /* of all frames: those behind the image are 0.0 */
    for (int64_t i = 0; i < frames.count; i++) {
        const int64_t channel = i / (frames.count / CHANNELS), p = i % (frames.count / CHANNELS);
        const double got = p < H * W ? pixels[p * CHANNELS + channel] : 0.0;
        worst = fmax(worst, fabs(got - frames.v[i]));
    }
    golden_check(c, "mid.frames", "max_abs", worst, 0.0);

    GOLDEN_TRY(golden_get(c, "mid.y", &want, err));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &in->condition, err, SL_F32, 4, 4 + dim[0], dim[1],
                                 dim[2], dim[3]));
    GOLDEN_TRY(golden_poison(c, &in->condition, err));
    GOLDEN_TRY(sl_t2v_encode_image(c->env->exec, scratch, vae, bytes, &in->condition, err));
    golden_compare(c, "mid.y", golden_f64_of(c, &in->condition, err),
                   sl_tensor_count(&in->condition), &want, latent_key(c), NULL);
done:
    return status;
}

/* names: "" or "ode.", in the names of states and video. */
static sl_status run_e2e(golden_case *c, const e2e_part *parts, size_t part_count,
                         sl_precision precision, const char *mode, const char *names, sl_error *err)
{
    const size_t mark = sl_scratch_mark(&c->env->scratch);
    sl_component *loaded[SL_COMPONENT_COUNT] = { NULL };
    e2e run = { .c = c, .mode = names };
    const sl_t2v_events events = { .arg = &run, .on_step = on_step, .on_frames = on_frames };
    e2e_inputs in = { .request = { .precision = precision } };
    sl_status status = SL_OK;
    char video[48];

    GOLDEN_TRY(load_parts(c, parts, part_count, precision, loaded, err));
    const sl_t2v_components components = { .dit = loaded[SL_COMPONENT_DIT],
                                           .dit_high = loaded[SL_COMPONENT_DIT_HIGH],
                                           .dit_low = loaded[SL_COMPONENT_DIT_LOW],
                                           .vae = loaded[SL_COMPONENT_VAE] };
    const sl_component *vae = components.vae;
    GOLDEN_TRY(read_inputs(c, mode, &in, err));
    GOLDEN_TRY(check_times(c, &in, err));
    run.frame_count = sl_vae_frame_count(&sl_component_get_spec(vae)->config.vae, in.latent.dim[1]);
    run.frame_bytes = 64 * in.latent.dim[2] * in.latent.dim[3] * CHANNELS;
    run.rgb = golden_alloc(c, run.frame_count * run.frame_bytes, 1, err);
    if (!run.rgb) {
        status = SL_ERR_NO_MEMORY;
        goto done;
    }
    if (golden_has(c, "in.image_u8"))
        GOLDEN_TRY(encode_image(c, vae, &in, err));
    GOLDEN_TRY(sl_t2v_denoise(c->env->exec, &c->env->scratch, &components, &in.request, &in.text,
                              in.condition.data ? &in.condition : NULL, in.noises, &events,
                              &in.latent, err));
    GOLDEN_TRY(check_latents(c, &run, &in.latent, err));
    GOLDEN_TRY(sl_t2v_decode(c->env->exec, &c->env->scratch, vae, &in.latent, &events, err));
    if (!golden_is_exact(c)) /* the case has no bound on the pixels of a bf16 run */
        goto done;
    if (golden_has(c, "out.video_u8"))
        GOLDEN_TRY(check_rgb(c, &run, err));
    snprintf(video, sizeof video, "out.%svideo", names);
    GOLDEN_TRY(check_video(c, video, vae, &in.latent, err));
done:
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        sl_component_destroy(loaded[kind]);
    sl_scratch_release(&c->env->scratch, mark);
    return status;
}

static bool all_stored_bf16(golden_case *c, const e2e_part *parts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!golden_stored_bf16(c, checkpoint_of(c, parts[i].part)))
            return false;
    return true;
}

sl_status golden_run_e2e_t2v(golden_case *c, sl_error *err)
{
    const golden_json *item = golden_json_get(c->config, "mode");
    const char *mode = golden_json_is(item, GOLDEN_JSON_STRING) ? item->text : "SDE";
    const size_t count = SL_COUNT(t2v_parts);
    sl_status status;

    golden_use(c, SL_PRECISION_F32);
    status = run_e2e(c, t2v_parts, count, SL_PRECISION_F32, mode, "", err);
    golden_use(c, SL_PRECISION_BF16);
    if (status == SL_OK && (all_stored_bf16(c, t2v_parts, count) || !golden_is_exact(c)))
        status = run_e2e(c, t2v_parts, count, SL_PRECISION_BF16, mode, "", err);
    c->variant = NULL;
    return status;
}

/* Both samplers, from one image. */
sl_status golden_run_e2e_i2v(golden_case *c, sl_error *err)
{
    const size_t count = SL_COUNT(i2v_parts);
    sl_status status = SL_OK;

    for (int p = 0; p < 2 && status == SL_OK; p++) {
        const sl_precision precision = p == 0 ? SL_PRECISION_F32 : SL_PRECISION_BF16;

        if (precision == SL_PRECISION_BF16 && !all_stored_bf16(c, i2v_parts, count))
            continue;
        golden_use(c, precision);
        if (!golden_is_exact(c) && !(golden_tolerance(c, latent_key(c)) > 0.0)) {
            golden_skip(c, "bf16", "the case has no bound on a bf16 run");
            continue;
        }
        status = run_e2e(c, i2v_parts, count, precision, "ode", "ode.", err);
        if (status == SL_OK)
            status = run_e2e(c, i2v_parts, count, precision, "sde", "sde.", err);
    }
    c->variant = NULL;
    return status;
}
