/* golden_test_nets.c - one network at a time, with its intermediates. */
#include "tests/golden_test.h"

#include "engine/nets/dit.h"
#include "engine/nets/umt5.h"
#include "engine/nets/vae.h"
#include "kernels/embed.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_SEEN = 96 };

/* What a tap saw of one named intermediate: the pieces in order. */
typedef struct {
    char name[96];
    sl_tensor shape; /* of the first piece; data unused */
    double *v;
    int64_t count;
} seen_tensor;

typedef struct {
    golden_case *c;
    seen_tensor seen[MAX_SEEN];
    int count;
} observer;

/* Only intermediates that the case has are kept. */
static void observe(void *arg, const char *name, const sl_tensor *tensor)
{
    observer *o = arg;
    char full[96];
    seen_tensor *s = NULL;

    snprintf(full, sizeof full, "mid.%s", name);
    if (!golden_has(o->c, full))
        return;
    for (int i = 0; i < o->count; i++)
        if (strcmp(o->seen[i].name, full) == 0)
            s = &o->seen[i];
    if (!s) {
        if (o->count == MAX_SEEN)
            return; /* compare_seen says what is missing */
        s = &o->seen[o->count++];
        *s = (seen_tensor){ .shape = *tensor };
        snprintf(s->name, sizeof s->name, "%s", full);
    }
    const double *piece = golden_f64_of(o->c, tensor, NULL);
    const int64_t more = sl_tensor_count(tensor);
    double *all = golden_alloc(o->c, s->count + more, sizeof *all, NULL);

    if (!piece || !all)
        return;
    if (s->count)
        memcpy(all, s->v, (size_t)s->count * sizeof *all);
    memcpy(all + s->count, piece, (size_t)more * sizeof *all);
    s->v = all;
    s->count += more;
}

/* [n, H, W, C] to [C, n, H, W], as the reference stores video. */
static double *channels_first(golden_case *c, const double *v, int64_t positions, int64_t C,
                              sl_error *err)
{
    double *out = golden_alloc(c, positions * C, sizeof *out, err);

    for (int64_t p = 0; out && p < positions; p++)
        for (int64_t i = 0; i < C; i++)
            out[i * positions + p] = v[p * C + i];
    return out;
}

/* Compares every intermediate of the case whose name starts so; one that no tap
 * has shown fails. */
static sl_status compare_seen(golden_case *c, const observer *o, const char *prefix, bool video,
                              const char *rel_l2_key, sl_error *err)
{
    sl_status status = SL_OK;
    int compared = 0;
    double worst = 0.0;
    char worst_name[96] = "";

    for (int64_t i = 0; i < sl_ckpt_count(c->io); i++) {
        const char *name = sl_ckpt_get(c->io, i)->name;
        const seen_tensor *s = NULL;
        golden_array want;

        if (strncmp(name, prefix, strlen(prefix)) != 0)
            continue;
        for (int k = 0; k < o->count; k++)
            if (strcmp(o->seen[k].name, name) == 0)
                s = &o->seen[k];
        GOLDEN_TRY(golden_get(c, name, &want, err));
        if (!s || s->count != want.count) {
            golden_note_failure(c, "%s was not shown with its %lld values", name,
                                (long long)want.count);
            continue;
        }
        const int64_t C = video ? s->shape.dim[3] : 1;
        const double *got = video ? channels_first(c, s->v, s->count / C, C, err) : s->v;
        if (!got)
            return SL_ERR_NO_MEMORY;
        const double error = golden_rel_l2(got, want.v, want.count);
        compared++;
        if (!(error <= golden_tolerance(c, rel_l2_key)))
            golden_check(c, name, "rel_l2", error, golden_tolerance(c, rel_l2_key));
        else if (error >= worst) {
            worst = error;
            snprintf(worst_name, sizeof worst_name, "%s", name);
        }
    }
    if (worst_name[0]) {
        char what[160];
        snprintf(what, sizeof what, "worst of %d intermediates %s", compared, worst_name);
        golden_check(c, what, "rel_l2", worst, golden_tolerance(c, rel_l2_key));
    }
done:
    return status;
}

static const char *checkpoint_file(const golden_case *c)
{
    const golden_json *ckpt = golden_json_get(c->json, "checkpoint");
    const golden_json *file = golden_json_get(ckpt, "file");

    return golden_json_is(file, GOLDEN_JSON_STRING) ? file->text : "";
}

/* f32 weights, and bf16 weights: with f32 activations the same numbers when the file
 * is bf16.  low_key: the tolerance of what is computed in bf16. */
static sl_status each_precision(golden_case *c, const char *low_key,
                                sl_status (*run)(golden_case *, sl_precision,
                                                 const char *rel_l2_key, const char *max_abs_key,
                                                 sl_error *),
                                sl_error *err)
{
    sl_status status;

    golden_use(c, SL_PRECISION_F32);
    status = run(c, SL_PRECISION_F32, "f32_rel_l2", "f32_max_abs", err);
    if (status != SL_OK)
        return status;
    golden_use(c, SL_PRECISION_BF16);
    if (golden_is_exact(c) && golden_stored_bf16(c, checkpoint_file(c)))
        status = run(c, SL_PRECISION_BF16, "f32_rel_l2", "f32_max_abs", err);
    else if (golden_tolerance(c, low_key) > 0.0)
        status = run(c, SL_PRECISION_BF16, low_key, NULL, err);
    c->variant = NULL;
    return status;
}

/* A tensor in scratch filled with a case's input, its leading batch of 1 dropped. */
static sl_status upload(golden_case *c, const char *name, sl_dtype dtype, sl_tensor *out,
                        sl_error *err)
{
    golden_array in;
    float *values;
    sl_status status = golden_get_f32(c, name, &in, &values, err);

    if (status != SL_OK)
        return status;
    if (in.rank < 2 || in.dim[0] != 1)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" is not a batch of 1", name);
    return golden_put(c, out, dtype, in.rank - 1, in.dim + 1, values, err);
}

/* ---- transformer ---- */

/* The network's input: the latent, and the condition's channels behind it. */
static sl_status upload_latent(golden_case *c, sl_tensor *out, sl_error *err)
{
    golden_array latent, more = { .count = 0 };
    float *values, *more_values = NULL;
    int64_t dim[SL_MAX_RANK];
    sl_status status = SL_OK;

    GOLDEN_TRY(golden_get_f32(c, "in.latent", &latent, &values, err));
    if (golden_has(c, "in.y"))
        GOLDEN_TRY(golden_get_f32(c, "in.y", &more, &more_values, err));
    if (latent.rank != 5 || latent.dim[0] != 1 ||
        (more_values && (more.rank != 5 || more.dim[0] != 1 ||
                         memcmp(more.dim + 2, latent.dim + 2, 3 * sizeof *more.dim) != 0))) {
        status = sl_fail(err, SL_ERR_DATA, "\"in.latent\" and \"in.y\" are not [1, C, T, h, w]");
        goto done;
    }
    memcpy(dim, latent.dim + 1, 4 * sizeof *dim);
    dim[0] += more_values ? more.dim[1] : 0;
    float *all = golden_alloc(c, latent.count + more.count, sizeof *all, err);
    if (!all) {
        status = SL_ERR_NO_MEMORY;
        goto done;
    }
    memcpy(all, values, (size_t)latent.count * sizeof *values);
    if (more_values)
        memcpy(all + latent.count, more_values, (size_t)more.count * sizeof *more_values);
    GOLDEN_TRY(golden_put(c, out, SL_F32, 4, dim, all, err));
done:
    return status;
}

sl_status golden_forward(golden_case *c, const sl_dit_weights *weights, const sl_dit_config *config,
                         const sl_dit_attention_options *attention, const sl_tensor *latent,
                         const sl_tensor *text, double t, const sl_tap *tap, const char *want_name,
                         const char *rel_l2_key, const char *max_abs_key, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    const size_t mark = sl_scratch_mark(scratch);
    sl_status status = SL_OK;
    sl_tensor velocity = *latent;
    sl_dit_text prepared;
    golden_array want;

    velocity.dim[0] = config->out_dim;
    GOLDEN_TRY(golden_get(c, want_name, &want, err));
    GOLDEN_TRY(sl_scratch_take(scratch, &velocity, err, SL_F32, velocity.rank, velocity.dim));
    GOLDEN_TRY(sl_dit_prepare(c->env->exec, scratch, weights, config, text, &prepared, tap, err));
    const size_t before = sl_scratch_mark(scratch);
    GOLDEN_TRY(sl_dit_forward(c->env->exec, scratch, weights, config, &prepared, attention, t,
                              latent, &velocity, tap, err));
    if (sl_scratch_mark(scratch) != before)
        golden_note_failure(c, "activations were not given back");
    golden_compare(c, want_name, golden_f64_of(c, &velocity, err), sl_tensor_count(&velocity),
                   &want, rel_l2_key, max_abs_key);
done:
    sl_scratch_release(scratch, mark);
    return status;
}

sl_status golden_dit_open(golden_dit *out, golden_case *c, sl_precision precision, sl_error *err)
{
    golden_dit d = { .config = golden_dit_config(c->config),
                     .mark = sl_scratch_mark(&c->env->scratch) };
    sl_status status = SL_OK;
    golden_array t;

    GOLDEN_TRY(golden_load(c, checkpoint_file(c), SL_COMPONENT_DIT, precision, &d.config,
                           &d.component, err));
    GOLDEN_TRY(upload_latent(c, &d.latent, err));
    GOLDEN_TRY(upload(c, "in.text", golden_act(c), &d.text, err));
    GOLDEN_TRY(golden_get(c, "in.t", &t, err));
    if (t.count != 1) {
        status = sl_fail(err, SL_ERR_DATA, "\"in.t\" is not one number");
        goto done;
    }
    d.t = t.v[0];
done:
    *out = d;
    return status;
}

void golden_dit_close(golden_dit *d, golden_case *c)
{
    sl_component_destroy(d->component);
    sl_scratch_release(&c->env->scratch, d->mark);
}

sl_status golden_dit_run(golden_dit *d, golden_case *c, const sl_dit_attention_options *attention,
                         const sl_tap *tap, const char *want_name, const char *rel_l2_key,
                         const char *max_abs_key, sl_error *err)
{
    return golden_forward(c, sl_component_dit(d->component), &d->config, attention, &d->latent,
                          &d->text, d->t, tap, want_name, rel_l2_key, max_abs_key, err);
}

static sl_status run_dit(golden_case *c, sl_precision precision, const char *rel_l2_key,
                         const char *max_abs_key, sl_error *err)
{
    observer o = { .c = c };
    const sl_tap tap = { .fn = observe, .arg = &o };
    sl_status status = SL_OK;
    golden_dit d;

    GOLDEN_TRY(golden_dit_open(&d, c, precision, err));
    GOLDEN_TRY(golden_dit_run(&d, c, NULL, &tap, "out.velocity", rel_l2_key, max_abs_key, err));
    GOLDEN_TRY(compare_seen(c, &o, "mid.", false, rel_l2_key, err));
done:
    golden_dit_close(&d, c);
    return status;
}

/* One precision alone, compared with an emulation and with exact numbers. */
sl_status golden_run_dit_int8(golden_case *c, sl_error *err)
{
    observer o = { .c = c };
    const sl_tap tap = { .fn = observe, .arg = &o };
    sl_status status = SL_OK;
    golden_dit d;

    golden_use(c, SL_PRECISION_INT8);
    GOLDEN_TRY(golden_dit_open(&d, c, SL_PRECISION_INT8, err));
    GOLDEN_TRY(
        golden_dit_run(&d, c, NULL, &tap, "out.velocity", "rel_l2_vs_out_velocity", NULL, err));
    GOLDEN_TRY(compare_seen(c, &o, "mid.", false, "rel_l2_vs_out_velocity", err));
    GOLDEN_TRY(golden_dit_run(&d, c, NULL, NULL, "out.velocity_exact_dequantised",
                              "rel_l2_vs_exact_dequantised", NULL, err));
done:
    golden_dit_close(&d, c);
    return status;
}

sl_status golden_run_dit(golden_case *c, sl_error *err)
{
    return each_precision(c, "bf16_rel_l2", run_dit, err);
}

/* ---- text encoder ---- */

/* Without a mask every id is a real token. */
sl_status golden_encode_text(golden_case *c, const sl_t5_weights *weights,
                             const sl_t5_config *config, const sl_tap *tap, const char *rel_l2_key,
                             const char *max_abs_key, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    const size_t mark = sl_scratch_mark(scratch);
    sl_status status = SL_OK;
    golden_array ids, mask = { .count = 0 }, want;
    int32_t *host_ids = NULL;
    sl_tensor out;
    int64_t count = 0;

    GOLDEN_TRY(golden_get(c, "out.embedding", &want, err));
    GOLDEN_TRY(golden_get(c, "in.ids", &ids, err));
    if (golden_has(c, "in.mask"))
        GOLDEN_TRY(golden_get(c, "in.mask", &mask, err));
    host_ids = golden_alloc(c, ids.count, sizeof *host_ids, err);
    if (!host_ids) {
        status = SL_ERR_NO_MEMORY;
        goto done;
    }
    for (int64_t i = 0; i < ids.count; i++) {
        host_ids[i] = (int32_t)ids.v[i];
        count += !golden_has(c, "in.mask") || (i < mask.count && mask.v[i] != 0.0);
    }
    GOLDEN_TRY(sl_scratch_tensor(scratch, &out, err, golden_act(c), 2, ids.count, config->dim));
    GOLDEN_TRY(golden_poison(c, &out, err));
    GOLDEN_TRY(
        sl_umt5_encode(c->env->exec, scratch, weights, config, host_ids, count, &out, tap, err));
    golden_compare(c, "out.embedding", golden_f64_of(c, &out, err), sl_tensor_count(&out), &want,
                   rel_l2_key, max_abs_key);
done:
    sl_scratch_release(scratch, mark);
    return status;
}

static sl_status run_t5(golden_case *c, sl_precision precision, const char *rel_l2_key,
                        const char *max_abs_key, sl_error *err)
{
    const sl_t5_config config = golden_t5_config(c->config);
    observer o = { .c = c };
    const sl_tap tap = { .fn = observe, .arg = &o };
    sl_component *t5 = NULL;
    sl_status status = SL_OK;

    GOLDEN_TRY(golden_load(c, checkpoint_file(c), SL_COMPONENT_TEXT_ENCODER, precision, &config,
                           &t5, err));
    GOLDEN_TRY(
        golden_encode_text(c, sl_component_t5(t5), &config, &tap, rel_l2_key, max_abs_key, err));
    GOLDEN_TRY(compare_seen(c, &o, "mid.", false, rel_l2_key, err));
done:
    sl_component_destroy(t5);
    return status;
}

static sl_status check_buckets(golden_case *c, sl_error *err)
{
    golden_array want;
    const sl_status status = golden_get(c, "out.bucket", &want, err);
    int wrong = 0;

    if (status != SL_OK)
        return status;
    for (int64_t i = 0; i < want.count; i++)
        wrong += sl_rel_bucket(i - want.count / 2) != (int)want.v[i];
    golden_check(c, "out.bucket", "wrong", wrong, 0);
    return SL_OK;
}

sl_status golden_run_t5(golden_case *c, sl_error *err)
{
    sl_status status = each_precision(c, "bf16_rel_l2", run_t5, err);

    if (status == SL_OK && golden_has(c, "out.bucket"))
        status = check_buckets(c, err);
    return status;
}

/* ---- video VAE ---- */

/* What is computed in bf16 has a bound on its noise. */
static void compare_frames(golden_case *c, const char *what, const double *got, int64_t got_count,
                           const golden_array *want, const char *key, const char *max_abs_key)
{
    if (golden_frames(c) == SL_F32)
        golden_compare(c, what, got, got_count, want, key, max_abs_key);
    else
        golden_compare_noise(c, what, got, got_count, want, key);
}

sl_status golden_decode(golden_case *c, const sl_vae_weights *weights, const sl_vae_config *config,
                        const sl_tensor *latent, const char *out, const sl_tap *tap,
                        const char *rel_l2_key, const char *max_abs_key, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    const size_t mark = sl_scratch_mark(scratch);
    const int64_t T = latent->dim[1], h = latent->dim[2], w = latent->dim[3];
    sl_status status = SL_OK;
    sl_vae_decoder decoder;
    sl_tensor frames;
    golden_array want;
    int64_t seen = 0;

    GOLDEN_TRY(golden_get(c, out, &want, err));
    GOLDEN_TRY(
        sl_vae_decoder_begin(&decoder, c->env->exec, scratch, weights, config, T, h, w, tap, err));
    const int64_t count = sl_vae_frame_count(config, T) * 64 * h * w * 3;
    double *video = golden_alloc(c, count, sizeof *video, err);
    if (!video) {
        status = SL_ERR_NO_MEMORY;
        goto done;
    }
    for (int64_t t = 0; t < T; t++) {
        GOLDEN_TRY(sl_vae_decoder_next(&decoder, latent, t, &frames, err));
        const double *v = golden_f64_of(c, &frames, err);
        for (int64_t i = 0; v && i < sl_tensor_count(&frames) && seen < count; i++)
            video[seen++] = v[i];
    }
    video = channels_first(c, video, count / 3, 3, err);
    compare_frames(c, out, video, seen, &want, rel_l2_key, max_abs_key);
done:
    sl_scratch_release(scratch, mark);
    return status;
}

/* video [3, F, H, W]; frames go to the encoder chunk by chunk, channels last. */
sl_status golden_encode(golden_case *c, const sl_vae_weights *weights, const sl_vae_config *config,
                        const sl_tensor *video, const char *out, const sl_tap *tap,
                        const char *rel_l2_key, const char *max_abs_key, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    const size_t mark = sl_scratch_mark(scratch);
    const int64_t F = video->dim[1], H = video->dim[2], W = video->dim[3], positions = F * H * W;
    const int64_t later = sl_vae_frame_count(config, 2) - 1, T = 1 + (F - 1) / later;
    sl_status status = SL_OK;
    sl_vae_encoder encoder;
    sl_tensor pictures, latent;
    golden_array want;
    const float *planes;
    float *values;

    if (video->rank != 4 || video->dim[0] != 3 || sl_vae_frame_count(config, T) != F || H % 8 ||
        W % 8)
        return sl_fail(err, SL_ERR_DATA, "the video to encode has an impossible shape");
    GOLDEN_TRY(golden_get(c, out, &want, err));
    planes = golden_bytes_of(c, video, err);
    values = golden_alloc(c, positions * 3, sizeof *values, err);
    if (!planes || !values) {
        status = SL_ERR_NO_MEMORY;
        goto done;
    }
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < 3; i++)
            values[p * 3 + i] = planes[i * positions + p];
    GOLDEN_TRY(golden_put(c, &pictures, golden_frames(c), 4, (const int64_t[]){ F, H, W, 3 },
                          values, err));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &latent, err, SL_F32, 4, config->z_dim, T, H / 8, W / 8));
    GOLDEN_TRY(golden_poison(c, &latent, err));
    GOLDEN_TRY(sl_vae_encoder_begin(&encoder, c->env->exec, scratch, weights, config, T, H / 8,
                                    W / 8, tap, err));
    for (int64_t t = 0; t < T; t++) {
        const int64_t first = t == 0 ? 0 : 1 + (t - 1) * later;
        const sl_tensor chunk = sl_tensor_rows(&pictures, first, t == 0 ? 1 : later);

        GOLDEN_TRY(sl_vae_encoder_next(&encoder, &chunk, &latent, t, err));
    }
    compare_frames(c, out, golden_f64_of(c, &latent, err), sl_tensor_count(&latent), &want,
                   rel_l2_key, max_abs_key);
done:
    sl_scratch_release(scratch, mark);
    return status;
}

/* Their tolerance is of f32 alone. */
static sl_status compare_seen_frames(golden_case *c, const observer *o, const char *prefix,
                                     const char *rel_l2_key, sl_error *err)
{
    return golden_frames(c) == SL_F32 ? compare_seen(c, o, prefix, true, rel_l2_key, err) : SL_OK;
}

static sl_status run_vae(golden_case *c, sl_precision precision, const char *rel_l2_key,
                         const char *max_abs_key, sl_error *err)
{
    const sl_vae_config config = golden_vae_config(c->config);
    const size_t mark = sl_scratch_mark(&c->env->scratch);
    observer o = { .c = c };
    const sl_tap tap = { .fn = observe, .arg = &o };
    sl_component *vae = NULL;
    sl_status status = SL_OK;
    sl_tensor latent = { .data = NULL }, video = { .data = NULL };

    GOLDEN_TRY(golden_load(c, checkpoint_file(c), SL_COMPONENT_VAE, precision, &config, &vae, err));
    GOLDEN_TRY(upload(c, "in.latent", SL_F32, &latent, err));
    GOLDEN_TRY(golden_decode(c, sl_component_vae(vae), &config, &latent, "out.video", &tap,
                             rel_l2_key, max_abs_key, err));
    GOLDEN_TRY(compare_seen_frames(c, &o, "mid.dec.", rel_l2_key, err));
    if (golden_has(c, "in.latent1")) {
        GOLDEN_TRY(upload(c, "in.latent1", SL_F32, &latent, err));
        GOLDEN_TRY(golden_decode(c, sl_component_vae(vae), &config, &latent, "out.video1", NULL,
                                 rel_l2_key, max_abs_key, err));
    }
    if (golden_has(c, "in.video")) {
        GOLDEN_TRY(upload(c, "in.video", SL_F32, &video, err));
        GOLDEN_TRY(golden_encode(c, sl_component_vae(vae), &config, &video, "out.mu", &tap,
                                 rel_l2_key, max_abs_key, err));
        GOLDEN_TRY(compare_seen_frames(c, &o, "mid.enc.", rel_l2_key, err));
    }
done:
    sl_component_destroy(vae);
    sl_scratch_release(&c->env->scratch, mark);
    return status;
}

sl_status golden_run_vae(golden_case *c, sl_error *err)
{
    sl_numerics numerics;
    sl_status status = each_precision(c, "bf16_psnr_db", run_vae, err);

    if (status != SL_OK || sl_exec_numerics(c->env->exec)->kind != SL_DEVICE_CPU)
        return status;
    /* a job may ask for such frames there, too */
    numerics = *sl_exec_numerics(c->env->exec);
    numerics.frames = SL_BF16;
    sl_exec_set_numerics(c->env->exec, &numerics);
    c->variant = "bf16 frames:";
    status = run_vae(c, SL_PRECISION_BF16, "bf16_psnr_db", NULL, err);
    c->variant = NULL;
    return status;
}
