/* bench_gpu_stages.c - rows of `bench gpu` for whole stages: a denoising step, the
 * VAE both ways, the text encoder; with the bytes that their plan says and those
 * that they took.
 *
 * Weights are made up on the card.  A stage whose scratch peak is not its plan's has
 * failed, whatever its time.
 */
#include "base/size.h"
#include "engine/nets/dit.h"
#include "engine/nets/net.h"
#include "engine/nets/umt5.h"
#include "engine/nets/vae.h"
#include "engine/pipeline/random_weights.h"
#include "kernels/bench_gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LATENT_FRAMES = 21, SHAPE_BYTES = 128 }; /* 81 frames */

/* ---- measuring a stage ---- */

typedef struct stage stage;
struct stage {
    bench_gpu *b;
    sl_exec *exec; /* the bench's, or one that counts */
    sl_scratch *scratch;
    const sl_component *component;
    sl_status (*run)(stage *s, sl_error *err);
    const void *arg;
};

static sl_status run_stage(bench_gpu *b, void *arg, sl_error *err)
{
    stage *s = arg;

    (void)b;
    return s->run(s, err);
}

/* The peak of the stage's scratch by counting. */
static sl_status count_stage(const stage *s, size_t *planned, sl_error *err)
{
    sl_component *component = NULL;
    sl_exec *exec = NULL;
    stage counted = *s;
    sl_status status = SL_OK;
    sl_scratch scratch;

    SL_TRY(sl_exec_create_counting(&exec, sl_exec_numerics(s->exec), err));
    SL_TRY(sl_component_create_counting(&component, sl_component_get_spec(s->component), err));
    sl_scratch_init_counting(&scratch);
    sl_exec_lend_scratch(exec, &scratch);
    counted.exec = exec;
    counted.scratch = &scratch;
    counted.component = component;
    SL_TRY(s->run(&counted, err));
    *planned = scratch.peak_bytes;
done:
    sl_component_destroy(component);
    sl_exec_destroy(exec);
    return status;
}

/* Runs it once, compares bytes, and then times it. */
static sl_status measure_stage(stage *s, const char *op, const char *shape, double bf16_flops,
                               sl_error *err)
{
    bench_gpu *b = s->b;
    size_t planned = 0, measured;
    char with_bytes[SHAPE_BYTES], text[32];
    sl_status status = count_stage(s, &planned, err);

    b->scratch.peak_bytes = b->scratch.used_bytes;
    if (status == SL_OK)
        status = s->run(s, err);
    if (status == SL_OK)
        status = sl_exec_wait(b->exec, err);
    measured = b->scratch.peak_bytes - b->scratch.used_bytes;
    if (status == SL_OK && measured != planned)
        status = sl_fail(err, SL_ERR_INTERNAL, "planned %zu bytes of activations, took %zu",
                         planned, measured);
    if (status != SL_OK)
        return bench_gpu_failed(b, op, shape, status, err);
    snprintf(with_bytes, sizeof with_bytes, "%s, %s = plan", shape,
             sl_size_format(measured, text, sizeof text));
    const bench_gpu_case c = { .op = op,
                               .shape = with_bytes,
                               .unit = BENCH_GPU_BF16,
                               .flops = bf16_flops,
                               .bytes = (double)sl_component_mapped_bytes(s->component) };
    return bench_gpu_measure(b, &c, run_stage, s, err);
}

/* ---- a denoising step ---- */

typedef struct {
    const char *model;
    int height; /* 480: 832x480; 720: 1280x720 */
    sl_attention_mode attention;
    sl_precision precision;
} step_case;

static int64_t latent_height(int height)
{
    return height / 8;
}

static int64_t latent_width(int height)
{
    return (height == 480 ? 832 : 1280) / 8;
}

static sl_status run_step(stage *s, sl_error *err)
{
    const step_case *c = s->arg;
    const size_t mark = sl_scratch_mark(s->scratch);
    const sl_dit_config *config = &sl_component_get_spec(s->component)->config.dit;
    const sl_dit_weights *weights = sl_component_dit(s->component);
    const sl_dit_attention_options attention = { .mode = c->attention,
                                                 .topk_ratio = SL_DEFAULT_TOPK_RATIO };
    const sl_ops *ops = sl_exec_ops(s->exec);
    sl_status status = SL_OK;
    sl_tensor latent, velocity, text;
    sl_dit_text prepared;

    SL_TRY(sl_scratch_tensor(s->scratch, &latent, err, SL_F32, 4, config->in_dim, LATENT_FRAMES,
                             latent_height(c->height), latent_width(c->height)));
    SL_TRY(sl_scratch_tensor(s->scratch, &velocity, err, SL_F32, 4, config->out_dim, LATENT_FRAMES,
                             latent_height(c->height), latent_width(c->height)));
    SL_TRY(sl_scratch_tensor(s->scratch, &text, err, sl_exec_numerics(s->exec)->activation, 2,
                             config->text_len, config->text_dim));
    SL_TRY(ops->randn(s->exec, &latent, 3, 0, err));
    SL_TRY(ops->zero(s->exec, &text, err));
    SL_TRY(sl_dit_prepare(s->exec, s->scratch, weights, config, &text, &prepared, NULL, err));
    SL_TRY(sl_dit_forward(s->exec, s->scratch, weights, config, &prepared, &attention, 988.0,
                          &latent, &velocity, NULL, err));
done:
    sl_scratch_release(s->scratch, mark);
    return status;
}

/* In products of bf16: one of 8 bits counts half. */
static double step_flops(const step_case *c, const sl_dit_config *config)
{
    const double D = (double)config->dim, L = (double)config->num_layers;
    const double S = LATENT_FRAMES * (double)latent_height(c->height) / 2.0 *
                     (double)latent_width(c->height) / 2.0;
    const double linears = 2.0 * S * D * (6.0 * D + 2.0 * (double)config->ffn_dim);
    const double cross = 4.0 * S * (double)config->text_len * D;
    const double dense = 4.0 * S * S * D;
    const double kept = c->attention == SL_ATTENTION_DENSE ? dense : dense * SL_DEFAULT_TOPK_RATIO;

    return L * (linears * (c->precision == SL_PRECISION_BF16 ? 1.0 : 0.5) + cross +
                kept * (c->attention == SL_ATTENTION_SAGESLA ? 0.5 : 1.0));
}

static sl_status make_component(bench_gpu *b, sl_device *device, const sl_arch *arch,
                                sl_component_kind kind, sl_precision precision, sl_component **out,
                                sl_error *err)
{
    const sl_component_spec spec = sl_component_spec_of(arch, kind, precision);

    return sl_random_component(out, &spec, device, b->exec, &b->scratch, err);
}

/* Cases of one model and precision share their weights. */
static sl_status measure_steps(bench_gpu *b, sl_device *device, const step_case *cases,
                               size_t count, sl_error *err)
{
    const sl_arch *arch = sl_arch_find(cases->model);
    char shape[64];
    sl_component *dit = NULL;
    sl_status status = SL_OK;

    for (size_t i = 0; i < count && status == SL_OK; i++) {
        stage s = { b, b->exec, &b->scratch, NULL, run_step, &cases[i] };

        snprintf(shape, sizeof shape, "%s %dp %s %s", cases[i].model, cases[i].height,
                 sl_attention_name(cases[i].attention), sl_precision_name(cases[i].precision));
        if (!bench_gpu_wanted(b, "stage step", shape))
            continue;
        if (!dit)
            status = make_component(b, device, arch, SL_COMPONENT_DIT, cases->precision, &dit, err);
        s.component = dit;
        status = status == SL_OK ? measure_stage(&s, "stage step", shape,
                                                 step_flops(&cases[i], &arch->dit), err)
                                 : bench_gpu_failed(b, "stage step", shape, status, err);
    }
    sl_component_destroy(dit);
    return status;
}

/* ---- the text encoder ---- */

static sl_status run_text(stage *s, sl_error *err)
{
    const int64_t count = *(const int64_t *)s->arg;
    const size_t mark = sl_scratch_mark(s->scratch);
    const sl_t5_config *config = &sl_component_get_spec(s->component)->config.t5;
    int32_t ids[512];
    sl_status status = SL_OK;
    sl_tensor out;

    for (int i = 0; i < 512; i++)
        ids[i] = 1000 + 37 * i;
    SL_TRY(sl_scratch_tensor(s->scratch, &out, err, sl_exec_numerics(s->exec)->activation, 2, 512,
                             config->dim));
    SL_TRY(sl_umt5_encode(s->exec, s->scratch, sl_component_t5(s->component), config, ids, count,
                          &out, NULL, err));
done:
    sl_scratch_release(s->scratch, mark);
    return status;
}

static sl_status measure_text(bench_gpu *b, sl_device *device, sl_error *err)
{
    static const int64_t counts[] = { 100, 512 };
    const sl_arch *arch = sl_arch_find("wan2.1-t2v-1.3b");
    const sl_t5_config *t5 = &arch->t5;
    const double width = (double)t5->dim * (4.0 * (double)t5->dim_attn + 3.0 * (double)t5->dim_ffn);
    sl_component *component = NULL;
    sl_status status = SL_OK;
    char shape[32];

    for (size_t i = 0; i < SL_COUNT(counts) && status == SL_OK; i++) {
        stage s = { b, b->exec, &b->scratch, NULL, run_text, &counts[i] };

        snprintf(shape, sizeof shape, "%lld tokens", (long long)counts[i]);
        if (!bench_gpu_wanted(b, "stage umt5", shape))
            continue;
        if (!component)
            status = make_component(b, device, arch, SL_COMPONENT_TEXT_ENCODER, SL_PRECISION_BF16,
                                    &component, err);
        s.component = component;
        status = status == SL_OK
                     ? measure_stage(&s, "stage umt5", shape,
                                     2.0 * (double)counts[i] * (double)t5->num_layers * width, err)
                     : bench_gpu_failed(b, "stage umt5", shape, status, err);
    }
    sl_component_destroy(component);
    return status;
}

/* ---- the VAE ---- */

static sl_status run_decode(stage *s, sl_error *err)
{
    const int height = *(const int *)s->arg;
    const size_t mark = sl_scratch_mark(s->scratch);
    const sl_vae_config *config = &sl_component_get_spec(s->component)->config.vae;
    const sl_ops *ops = sl_exec_ops(s->exec);
    sl_status status = SL_OK;
    sl_vae_decoder decoder;
    sl_tensor latent, frames, rgb;

    SL_TRY(sl_scratch_tensor(s->scratch, &latent, err, SL_F32, 4, config->z_dim, LATENT_FRAMES,
                             latent_height(height), latent_width(height)));
    SL_TRY(ops->randn(s->exec, &latent, 4, 0, err));
    SL_TRY(sl_vae_decoder_begin(&decoder, s->exec, s->scratch, sl_component_vae(s->component),
                                config, LATENT_FRAMES, latent_height(height), latent_width(height),
                                NULL, err));
    for (int64_t t = 0; t < LATENT_FRAMES; t++) {
        SL_TRY(sl_vae_decoder_next(&decoder, &latent, t, &frames, err));
        const size_t chunk = sl_scratch_mark(s->scratch);
        SL_TRY(sl_scratch_take(s->scratch, &rgb, err, SL_U8, frames.rank, frames.dim));
        SL_TRY(ops->frames_to_rgb(s->exec, &rgb, &frames, err));
        sl_scratch_release(s->scratch, chunk);
    }
done:
    sl_scratch_release(s->scratch, mark);
    return status;
}

/* again: grey behind the first frame, as an image is encoded. */
static sl_status encode(stage *s, bool again, sl_error *err)
{
    const int height = *(const int *)s->arg;
    const size_t mark = sl_scratch_mark(s->scratch);
    const sl_vae_config *config = &sl_component_get_spec(s->component)->config.vae;
    sl_status status = SL_OK;
    sl_vae_encoder encoder;
    sl_tensor pictures, latent;

    SL_TRY(sl_scratch_tensor(s->scratch, &latent, err, SL_F32, 4, config->z_dim, LATENT_FRAMES,
                             latent_height(height), latent_width(height)));
    SL_TRY(sl_scratch_tensor(s->scratch, &pictures, err, sl_exec_numerics(s->exec)->frames, 4, 4,
                             8 * latent_height(height), 8 * latent_width(height), 3));
    SL_TRY(sl_exec_ops(s->exec)->zero(s->exec, &pictures, err));
    SL_TRY(sl_vae_encoder_begin(&encoder, s->exec, s->scratch, sl_component_vae(s->component),
                                config, LATENT_FRAMES, latent_height(height), latent_width(height),
                                NULL, err));
    for (int64_t t = 0; t < LATENT_FRAMES; t++) {
        const sl_tensor chunk = sl_tensor_rows(&pictures, 0, t == 0 ? 1 : 4);
        SL_TRY((again && t > 1 ? sl_vae_encoder_repeat : sl_vae_encoder_next)(&encoder, &chunk,
                                                                              &latent, t, err));
    }
done:
    sl_scratch_release(s->scratch, mark);
    return status;
}

static sl_status run_encode(stage *s, sl_error *err)
{
    return encode(s, false, err);
}

static sl_status run_image(stage *s, sl_error *err)
{
    return encode(s, true, err);
}

static double conv_flops(const sl_affine *a, double positions)
{
    return a->w.data ? 2.0 * (double)sl_tensor_count(&a->w) * positions : 0.0;
}

static double res_flops(const sl_vae_res *r, double positions)
{
    return conv_flops(&r->conv2, positions) + conv_flops(&r->conv6, positions) +
           conv_flops(&r->shortcut, positions);
}

/* One way through all 81 frames; what a direction has not counts nothing. */
static double vae_flops(const sl_vae_half *half, bool decode, int height)
{
    double h = (double)latent_height(height), w = (double)latent_width(height);
    double n = decode ? LATENT_FRAMES : 4 * LATENT_FRAMES - 3, flops = 0.0;
    const double middle = LATENT_FRAMES * h * w;

    if (!decode) {
        h *= 8;
        w *= 8;
    }
    flops += conv_flops(&half->conv1, n * h * w);
    for (int s = 0; s < 4; s++) {
        const sl_vae_stage *part = &half->stages[s];
        const bool resample = part->resample.w.data, time = part->time_conv.w.data;

        for (int r = 0; r < part->res_count; r++)
            flops += res_flops(&part->res[r], n * h * w);
        if (decode && time) {
            flops += conv_flops(&part->time_conv, n * h * w);
            n = 2 * n - 1;
        }
        if (resample) {
            h *= decode ? 2.0 : 0.5;
            w *= decode ? 2.0 : 0.5;
            flops += conv_flops(&part->resample, n * h * w);
        }
        if (!decode && time) {
            n = (n + 1) / 2;
            flops += conv_flops(&part->time_conv, n * h * w);
        }
    }
    flops += res_flops(&half->mid0, middle) + res_flops(&half->mid2, middle);
    flops += conv_flops(&half->mid1.qkv, middle) + conv_flops(&half->mid1.proj, middle);
    flops += 4.0 * middle * (middle / LATENT_FRAMES) * (double)half->mid1.proj.w.dim[0];
    return flops + conv_flops(&half->head, n * h * w);
}

static sl_status measure_vae(bench_gpu *b, sl_device *device, sl_error *err)
{
    static const int heights[] = { 480, 720 };
    static const struct {
        const char *op;
        sl_status (*run)(stage *s, sl_error *err);
        bool decode;
    } ways[] = { { "stage vae decode", run_decode, true },
                 { "stage vae encode", run_encode, false },
                 { "stage vae image", run_image, false } };
    const sl_arch *arch = sl_arch_find("wan2.1-t2v-1.3b");
    sl_component *vae = NULL;
    sl_status status = SL_OK;
    char shape[32];

    for (size_t i = 0; i < SL_COUNT(heights) * SL_COUNT(ways) && status == SL_OK; i++) {
        const size_t way = i % SL_COUNT(ways);
        const char *op = ways[way].op;
        const int *height = &heights[i / SL_COUNT(ways)];
        stage s = { b, b->exec, &b->scratch, NULL, ways[way].run, height };

        snprintf(shape, sizeof shape, "%dp bf16", *height);
        if (!bench_gpu_wanted(b, op, shape))
            continue;
        if (!vae)
            status =
                make_component(b, device, arch, SL_COMPONENT_VAE, SL_PRECISION_BF16, &vae, err);
        s.component = vae;
        if (status == SL_OK) {
            const sl_vae_weights *weights = sl_component_vae(vae);
            const sl_vae_half *half = ways[way].decode ? &weights->decoder : &weights->encoder;
            status = measure_stage(&s, op, shape, vae_flops(half, ways[way].decode, *height), err);
        } else {
            status = bench_gpu_failed(b, op, shape, status, err);
        }
    }
    sl_component_destroy(vae);
    return status;
}

/* ---- all ---- */

static const step_case small_bf16[] = {
    { "wan2.1-t2v-1.3b", 480, SL_ATTENTION_DENSE, SL_PRECISION_BF16 },
    { "wan2.1-t2v-1.3b", 480, SL_ATTENTION_SLA, SL_PRECISION_BF16 },
    { "wan2.1-t2v-1.3b", 480, SL_ATTENTION_SAGESLA, SL_PRECISION_BF16 },
};
static const step_case small_int8[] = {
    { "wan2.1-t2v-1.3b", 480, SL_ATTENTION_DENSE, SL_PRECISION_INT8 },
    { "wan2.1-t2v-1.3b", 480, SL_ATTENTION_SAGESLA, SL_PRECISION_INT8 },
};
static const step_case small_fp8[] = {
    { "wan2.1-t2v-1.3b", 480, SL_ATTENTION_DENSE, SL_PRECISION_FP8 },
    { "wan2.1-t2v-1.3b", 480, SL_ATTENTION_SAGESLA, SL_PRECISION_FP8 },
};
static const step_case big_fp8[] = {
    { "wan2.1-t2v-14b", 480, SL_ATTENTION_SAGESLA, SL_PRECISION_FP8 },
};
static const step_case big_int8[] = {
    { "wan2.1-t2v-14b", 480, SL_ATTENTION_SAGESLA, SL_PRECISION_INT8 },
    { "wan2.1-t2v-14b", 720, SL_ATTENTION_SAGESLA, SL_PRECISION_INT8 },
    { "wan2.1-t2v-14b", 480, SL_ATTENTION_DENSE, SL_PRECISION_INT8 },
    { "wan2.1-t2v-14b", 720, SL_ATTENTION_DENSE, SL_PRECISION_INT8 },
};

/* Weights have a device of their own beside the bench's memory. */
sl_status bench_gpu_stages(bench_gpu *b, sl_error *err)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CUDA };
    sl_device *device = NULL;
    sl_status status = sl_device_create(&device, &spec, err);

    if (status == SL_OK)
        status = measure_steps(b, device, small_bf16, SL_COUNT(small_bf16), err);
    if (status == SL_OK)
        status = measure_vae(b, device, err);
    if (status == SL_OK)
        status = measure_text(b, device, err);
    if (status == SL_OK)
        status = measure_steps(b, device, small_int8, SL_COUNT(small_int8), err);
    if (status == SL_OK)
        status = measure_steps(b, device, small_fp8, SL_COUNT(small_fp8), err);
    if (status == SL_OK)
        status = measure_steps(b, device, big_fp8, SL_COUNT(big_fp8), err);
    if (status == SL_OK)
        status = measure_steps(b, device, big_int8, SL_COUNT(big_int8), err);
    sl_device_destroy(device);
    return status;
}
