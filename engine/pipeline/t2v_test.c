/* The pipeline on a model small enough for many runs: what it plans is what it
 * uses, equal requests give equal bytes, and every way to stop it stops it. */
#include "engine/pipeline/t2v.h"

#include "engine/nets/net_test.h"
#include "kernels/ops.h"

#include <stdio.h>
#include <unistd.h>

static const sl_arch small = {
    .name = "test-t2v",
    .task = SL_TASK_T2V,
    .expert_count = 1,
    .dit = { .dim = 32,
             .ffn_dim = 48,
             .num_heads = 2,
             .num_layers = 2,
             .in_dim = 16,
             .out_dim = 16,
             .text_dim = 16,
             .text_len = 8,
             .freq_dim = 16,
             .eps = 1e-6f },
    .t5 = { .vocab = 40,
            .dim = 16,
            .dim_attn = 16,
            .dim_ffn = 24,
            .num_heads = 2,
            .num_layers = 2,
            .num_buckets = 32,
            .max_distance = 128,
            .eps = 1e-6f },
    .vae = { .dim = 4,
             .z_dim = 16,
             .num_res_blocks = 2,
             .dim_mult = { 1, 2, 4, 4 },
             .temporal_down = { false, true, true },
             .mean = { 0.1f, -0.2f },
             .std = { 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2 } },
    .sigma_max = 80,
    .default_width = 48,
    .default_height = 32,
    .default_frames = 5,
};

static const int32_t ids[8] = { 4, 9, 39, 0, 7, 7, 12, 1 };

/* ---- files with weights, through the ordinary writer and loader ---- */

typedef struct {
    sl_st_writer *writer;
    bool declare; /* else write */
} file_job;

static sl_status file_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    const file_job *job = arg;
    const bool norm = strstr(spec->name, "norm") || strstr(spec->name, "gamma");
    const bool small_value = strstr(spec->name, "bias") || strstr(spec->name, "modulation");
    int64_t count = 1, fan_in = 1;
    uint64_t seed = 0;
    sl_status status;
    float *v;

    if (job->declare)
        return sl_st_writer_declare(job->writer, spec->name, SL_F32, spec->rank, spec->dim, err);
    for (const char *c = spec->name; *c; c++)
        seed = seed * 131 + (uint64_t)(unsigned char)*c;
    for (int i = 0; i < spec->rank; i++) {
        count *= spec->dim[i];
        fan_in *= i > 0 ? spec->dim[i] : 1;
    }
    v = malloc((size_t)count * sizeof *v);
    SL_CHECK(v != NULL);
    net_test_fill(v, count, seed, norm && !small_value ? 1.0f : 0.0f,
                  norm || small_value ? 0.1f : sqrtf(3.0f / (float)fan_in));
    status = sl_st_writer_write(job->writer, v, (size_t)count * sizeof *v, err);
    free(v);
    return status;
}

static sl_status visit(const sl_arch *arch, sl_component_kind kind, file_job *job, sl_error *err)
{
    switch (kind) {
    case SL_COMPONENT_TEXT_ENCODER: {
        static sl_t5_weights weights;
        return sl_t5_visit(&weights, &arch->t5, SL_PRECISION_F32, file_visitor, job, err);
    }
    case SL_COMPONENT_VAE: {
        static sl_vae_weights weights;
        return sl_vae_visit(&weights, &arch->vae, SL_PRECISION_F32, file_visitor, job, err);
    }
    default: {
        static sl_dit_weights weights;
        return sl_dit_visit(&weights, &arch->dit, SL_LAYOUT_OFFICIAL, SL_PRECISION_F32,
                            file_visitor, job, err);
    }
    }
}

static void write_file(const char *path, const sl_arch *arch, sl_component_kind kind)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    file_job job = { .declare = true };

    SL_CHECK_OK(sl_st_writer_create(&job.writer, path, err));
    SL_CHECK_OK(visit(arch, kind, &job, err));
    job.declare = false;
    SL_CHECK_OK(visit(arch, kind, &job, err));
    SL_CHECK_OK(sl_st_writer_finish(job.writer, err));
    sl_st_writer_destroy(job.writer);
}

/* ---- a worker in little ---- */

enum { PARTS = 3 };
static const sl_component_kind kinds[PARTS] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_DIT,
                                                SL_COMPONENT_VAE };

typedef struct {
    net_test net;
    const sl_arch *arch;
    sl_component *parts[PARTS];
    sl_t2v_components components;
} fixture;

static void open_fixture(fixture *f, const sl_arch *arch, sl_precision precision)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    char dir[] = "/tmp/sl_t2v_test_XXXXXX", path[64];

    net_test_open(&f->net);
    f->arch = arch;
    SL_CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/w.safetensors", dir);
    for (int i = 0; i < PARTS; i++) {
        const sl_component_spec spec = sl_component_spec_of(arch, kinds[i], precision);
        sl_ckpt *ckpt;

        write_file(path, arch, kinds[i]);
        SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
        SL_CHECK_OK(sl_component_load(&f->parts[i], &spec, f->net.device, f->net.exec, ckpt, err));
        SL_CHECK(sl_component_mapped_bytes(f->parts[i]) == sl_component_plan_bytes(&spec));
        sl_ckpt_close(ckpt);
        unlink(path);
    }
    rmdir(dir);
    f->components =
        (sl_t2v_components){ .text_encoder = f->parts[0], .dit = f->parts[1], .vae = f->parts[2] };
}

static void close_fixture(fixture *f)
{
    for (int i = 0; i < PARTS; i++)
        sl_component_destroy(f->parts[i]);
    net_test_close(&f->net);
}

/* What a run told. */
typedef struct {
    uint8_t *rgb; /* [frames, height, width, 3] */
    size_t frame_bytes;
    int frames, steps, phases;
    const char *fail_in; /* "phase", "step", "frames": answers with SL_ERR_BUSY */
    atomic_uint *cancel; /* set in the first step */
} record;

static sl_status on_phase(void *arg, sl_phase phase, sl_error *err)
{
    record *r = arg;

    SL_CHECK((int)phase == r->phases++);
    if (r->fail_in && strcmp(r->fail_in, "phase") == 0)
        return sl_fail(err, SL_ERR_BUSY, "asked to stop");
    return SL_OK;
}

static sl_status on_step(void *arg, int step, int step_count, const sl_tensor *latent,
                         sl_error *err)
{
    record *r = arg;

    SL_CHECK(step == r->steps++ && step < step_count && latent->dtype == SL_F64);
    if (r->cancel)
        atomic_store(r->cancel, 1);
    if (r->fail_in && strcmp(r->fail_in, "step") == 0)
        return sl_fail(err, SL_ERR_BUSY, "asked to stop");
    return SL_OK;
}

static sl_status on_frames(void *arg, const uint8_t *rgb, int first, int count, sl_error *err)
{
    record *r = arg;

    SL_CHECK(first == r->frames);
    r->frames += count;
    r->rgb = realloc(r->rgb, (size_t)r->frames * r->frame_bytes);
    SL_CHECK(r->rgb != NULL);
    memcpy(r->rgb + (size_t)first * r->frame_bytes, rgb, (size_t)count * r->frame_bytes);
    if (r->fail_in && strcmp(r->fail_in, "frames") == 0)
        return sl_fail(err, SL_ERR_BUSY, "asked to stop");
    return SL_OK;
}

static sl_status run(fixture *f, const sl_t2v_request *request, const float *const *noises,
                     record *r, sl_t2v_result *result, sl_error *err)
{
    const sl_t2v_events events = {
        .arg = r, .on_phase = on_phase, .on_step = on_step, .on_frames = on_frames
    };

    r->frame_bytes = (size_t)request->width * (size_t)request->height * 3;
    net_test_reset(&f->net); /* NaN: nothing may be read before it is written */
    const sl_status status = sl_t2v_run(f->net.exec, &f->net.scratch, &f->components, f->arch,
                                        request, ids, noises, &events, result, err);
    SL_CHECK(sl_scratch_mark(&f->net.scratch) == 0);
    return status;
}

/* ---- tests ---- */

SL_TEST(plan_is_what_a_run_uses)
{
    static const struct {
        int width, height, frames, steps;
        sl_sampler_mode mode;
        int64_t token_count;
    } rows[] = {
        { 16, 16, 1, 1, SL_SAMPLER_SDE, 1 },   { 48, 32, 1, 4, SL_SAMPLER_ODE, 8 },
        { 32, 48, 5, 2, SL_SAMPLER_SDE, 3 },   { 64, 16, 9, 3, SL_SAMPLER_SDE, 7 },
        { 16, 80, 13, 1, SL_SAMPLER_ODE, 8 },  { 112, 96, 5, 1, SL_SAMPLER_SDE, 2 },
        { 176, 160, 5, 1, SL_SAMPLER_SDE, 5 },
    };

    for (int p = 0; p < SL_PRECISION_COUNT; p++) {
        fixture f;

        open_fixture(&f, &small, (sl_precision)p);
        for (size_t i = 0; i < SL_COUNT(rows); i++) {
            record r = { .rgb = NULL };
            sl_t2v_request request = sl_t2v_request_default(&small);
            sl_t2v_plan plan;
            sl_t2v_result result;
            size_t most = 0;

            request.width = rows[i].width;
            request.height = rows[i].height;
            request.frames = rows[i].frames;
            request.steps = rows[i].steps;
            request.mode = rows[i].mode;
            request.token_count = rows[i].token_count;
            request.precision = (sl_precision)p;
            SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, &small, err));
            SL_CHECK_OK(run(&f, &request, NULL, &r, &result, err));
            SL_CHECK(r.frames == rows[i].frames && r.steps == rows[i].steps);
            SL_CHECK(r.phases == SL_PHASE_COUNT);
            for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
                if (plan.phase_activation_bytes[phase] != result.phase_activation_bytes[phase])
                    fail_msg("row %zu, %s: planned %zu bytes, used %zu", i,
                             sl_phase_name((sl_phase)phase), plan.phase_activation_bytes[phase],
                             result.phase_activation_bytes[phase]);
                SL_CHECK(result.phase_activation_bytes[phase] > 0);
                if (plan.phase_activation_bytes[phase] > most)
                    most = plan.phase_activation_bytes[phase];
            }
            SL_CHECK(plan.activation_bytes == sl_granules(most));
            SL_CHECK(plan.total_bytes == plan.activation_bytes +
                                             sl_component_mapped_bytes(f.parts[0]) +
                                             sl_component_mapped_bytes(f.parts[1]) +
                                             sl_component_mapped_bytes(f.parts[2]));
            SL_CHECK(plan.output_frame_bytes == r.frame_bytes * (rows[i].frames > 1 ? 4 : 1));
            free(r.rgb);
        }
        close_fixture(&f);
    }
}

/* A scratch of exactly the planned size is enough, and one byte less is not. */
SL_TEST(plan_is_tight)
{
    fixture f;
    sl_t2v_request request = sl_t2v_request_default(&small);
    sl_t2v_plan plan;
    size_t most = 0;

    open_fixture(&f, &small, SL_PRECISION_BF16);
    SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, &small, err));
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        if (plan.phase_activation_bytes[phase] > most)
            most = plan.phase_activation_bytes[phase];
    sl_scratch_init(&f.net.scratch, sl_region_data(f.net.region), most);
    SL_CHECK_OK(sl_t2v_run(f.net.exec, &f.net.scratch, &f.components, &small, &request, ids, NULL,
                           NULL, NULL, err));
    sl_scratch_init(&f.net.scratch, sl_region_data(f.net.region), most - 1);
    SL_CHECK_STATUS(sl_t2v_run(f.net.exec, &f.net.scratch, &f.components, &small, &request, ids,
                               NULL, NULL, NULL, err),
                    SL_ERR_NO_MEMORY);
    close_fixture(&f);
}

SL_TEST(equal_requests_give_equal_bytes)
{
    fixture f;
    sl_t2v_request request = sl_t2v_request_default(&small);
    record a = { .rgb = NULL }, b = { .rgb = NULL }, c = { .rgb = NULL }, d = { .rgb = NULL };

    open_fixture(&f, &small, SL_PRECISION_BF16);
    SL_CHECK_OK(run(&f, &request, NULL, &a, NULL, err));
    SL_CHECK_OK(run(&f, &request, NULL, &b, NULL, err));
    SL_CHECK(memcmp(a.rgb, b.rgb, a.frame_bytes * (size_t)a.frames) == 0);
    request.seed = 1;
    SL_CHECK_OK(run(&f, &request, NULL, &c, NULL, err));
    SL_CHECK(memcmp(a.rgb, c.rgb, a.frame_bytes * (size_t)a.frames) != 0);
    request.seed = 0;
    request.mode = SL_SAMPLER_ODE;
    SL_CHECK_OK(run(&f, &request, NULL, &d, NULL, err));
    SL_CHECK(memcmp(a.rgb, d.rgb, a.frame_bytes * (size_t)a.frames) != 0);
    free(a.rgb);
    free(b.rgb);
    free(c.rgb);
    free(d.rgb);
    close_fixture(&f);
}

/* The generator's own draws, imported, change nothing. */
SL_TEST(imported_noise_replaces_the_generator)
{
    fixture f;
    sl_t2v_request request = sl_t2v_request_default(&small);
    const float *noises[5] = { NULL };
    float *values[5] = { NULL };
    record a = { .rgb = NULL }, b = { .rgb = NULL };

    request.seed = 0x123456789abcdefu;
    open_fixture(&f, &small, SL_PRECISION_F32);
    for (int i = 0; i <= request.steps; i++) {
        const int64_t count = 16 * 2 * 4 * 6;
        sl_tensor x;

        values[i] = malloc((size_t)count * sizeof *values[i]);
        SL_CHECK(values[i] != NULL);
        x = sl_tensor_of(values[i], SL_F32, 1, count);
        SL_CHECK_OK(sl_exec_ops(f.net.exec)->randn(f.net.exec, &x, request.seed, (uint32_t)i, err));
        noises[i] = values[i];
    }
    SL_CHECK_OK(run(&f, &request, NULL, &a, NULL, err));
    SL_CHECK_OK(run(&f, &request, noises, &b, NULL, err));
    SL_CHECK(memcmp(a.rgb, b.rgb, a.frame_bytes * (size_t)a.frames) == 0);
    for (int i = 0; i <= request.steps; i++)
        free(values[i]);
    free(a.rgb);
    free(b.rgb);
    close_fixture(&f);
}

SL_TEST(callbacks_and_cancel_end_a_run)
{
    fixture f;
    const sl_t2v_request request = sl_t2v_request_default(&small);

    open_fixture(&f, &small, SL_PRECISION_BF16);
    for (int i = 0; i < 3; i++) {
        record r = { .fail_in = (const char *[]){ "phase", "step", "frames" }[i] };

        SL_CHECK_STATUS(run(&f, &request, NULL, &r, NULL, err), SL_ERR_BUSY);
        SL_CHECK(strcmp(err->message, "asked to stop") == 0);
        SL_CHECK(r.phases == i + 1 && r.steps == (i == 2 ? 4 : i));
        free(r.rgb);
    }
    record r = { .cancel = &f.net.cancel };
    SL_CHECK_STATUS(run(&f, &request, NULL, &r, NULL, err), SL_ERR_CANCELLED);
    SL_CHECK(r.steps == 1 && r.frames == 0);
    atomic_store(&f.net.cancel, 0);
    close_fixture(&f);
}

/* The device of these tests is the host: a weight is broken in place. */
static void poison(const sl_tensor *t)
{
    memset(t->data, 0xff, sl_dtype_bytes(t->dtype));
}

SL_TEST(broken_numbers_name_step_and_stage)
{
    sl_t2v_request request = sl_t2v_request_default(&small);
    fixture f;
    record r = { .rgb = NULL }, q = { .rgb = NULL };

    open_fixture(&f, &small, SL_PRECISION_F32);
    poison(&sl_component_vae(f.parts[2])->decoder.head.b);
    SL_CHECK_STATUS(run(&f, &request, NULL, &r, NULL, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "decoding latent frame 1 of 2") && r.frames == 0);
    poison(&sl_component_dit(f.parts[1])->head.b);
    SL_CHECK_STATUS(run(&f, &request, NULL, &q, NULL, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "denoising step 1 of 4") && q.steps == 0);
    close_fixture(&f);
}

SL_TEST(requests_are_checked)
{
    static const struct {
        int width, height, frames, steps;
        double sigma_max;
        int64_t token_count;
        const char *says;
    } rows[] = {
        { 50, 32, 5, 4, 80, 8,
          "width 50: expected a multiple of 16 from 16 to 2048; the nearest is 48" },
        { 56, 32, 5, 4, 80, 8, "the nearest is 64" },
        { 0, 32, 5, 4, 80, 8, "the nearest is 16" },
        { -16, 32, 5, 4, 80, 8, "the nearest is 16" },
        { 48, 2064, 5, 4, 80, 8,
          "height 2064: expected a multiple of 16 from 16 to 2048; the nearest is 2048" },
        { 2147483647, 32, 5, 4, 80, 8, "the nearest is 2048" },
        { 48, 32, 4, 4, 80, 8, "4 frames: expected 4 m + 1, from 1 to 509; the nearest is 5" },
        { 48, 32, 0, 4, 80, 8, "the nearest is 1" },
        { 48, 32, 6, 4, 80, 8, "the nearest is 5" },
        { 48, 32, 2147483647, 4, 80, 8, "the nearest is 509" },
        { 48, 32, 5, 0, 80, 8, "0 steps: expected 1 to 4; the nearest is 1" },
        { 48, 32, 5, 50, 80, 8, "the nearest is 4" },
        { 48, 32, 5, 4, 0, 8, "sigma_max 0" },
        { 48, 32, 5, 4, (double)NAN, 8, "sigma_max" },
        { 48, 32, 5, 4, 80, 0, "0 prompt tokens: expected 1 to 8" },
        { 48, 32, 5, 4, 80, 9, "9 prompt tokens" },
    };
    sl_t2v_plan plan;

    for (size_t i = 0; i < SL_COUNT(rows); i++) {
        sl_t2v_request request = sl_t2v_request_default(&small);

        request.width = rows[i].width;
        request.height = rows[i].height;
        request.frames = rows[i].frames;
        request.steps = rows[i].steps;
        request.sigma_max = rows[i].sigma_max;
        request.token_count = rows[i].token_count;
        SL_CHECK_STATUS(sl_t2v_request_check(&request, &small, err), SL_ERR_INVALID);
        if (!strstr(err->message, rows[i].says))
            fail_msg("row %zu: \"%s\"", i, err->message);
        SL_CHECK_STATUS(sl_t2v_plan_make(&plan, &request, &small, err), SL_ERR_INVALID);
    }
}

SL_TEST(published_models_can_be_planned)
{
    for (int i = 0; i < sl_arch_count(); i++) {
        const sl_arch *arch = sl_arch_get(i);
        const sl_t2v_request request = sl_t2v_request_default(arch);
        sl_t2v_plan plan;

        if (arch->task != SL_TASK_T2V) {
            SL_CHECK_STATUS(sl_t2v_plan_make(&plan, &request, arch, err), SL_ERR_INVALID);
            SL_CHECK(strstr(err->message, arch->name) && strstr(err->message, "from an image"));
            continue;
        }
        SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, arch, err));
        SL_CHECK(plan.total_bytes > plan.activation_bytes && plan.activation_bytes > 0);
    }
}

/* Frames cost latent and output, never activations of the decoder. */
SL_TEST(decoding_longer_videos_takes_no_more)
{
    const sl_arch *arch = sl_arch_find("tiny-t2v");
    sl_t2v_request request = sl_t2v_request_default(arch);
    sl_t2v_plan shorter, longer;

    request.width = request.height = 128;
    request.frames = 17;
    SL_CHECK_OK(sl_t2v_plan_make(&shorter, &request, arch, err));
    request.frames = 81;
    SL_CHECK_OK(sl_t2v_plan_make(&longer, &request, arch, err));
    /* the latent is there twice: state f64 and the decoder's f32 */
    const size_t latent_bytes = (size_t)16 * (21 - 5) * 16 * 16 * (8 + 4);
    SL_CHECK(longer.phase_activation_bytes[SL_PHASE_DECODE] ==
             shorter.phase_activation_bytes[SL_PHASE_DECODE] + latent_bytes);
}

SL_TEST_MAIN(SL_RUN(plan_is_what_a_run_uses), SL_RUN(plan_is_tight),
             SL_RUN(equal_requests_give_equal_bytes), SL_RUN(imported_noise_replaces_the_generator),
             SL_RUN(callbacks_and_cancel_end_a_run), SL_RUN(broken_numbers_name_step_and_stage),
             SL_RUN(requests_are_checked), SL_RUN(published_models_can_be_planned),
             SL_RUN(decoding_longer_videos_takes_no_more))
