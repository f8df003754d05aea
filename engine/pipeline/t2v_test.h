/* t2v_test.h - what tests of the pipeline share: a model small enough for many
 * runs, its components from files with made-up weights, and a record of a run.
 */
#ifndef SL_ENGINE_PIPELINE_T2V_TEST_H
#define SL_ENGINE_PIPELINE_T2V_TEST_H

#include "engine/nets/net_test.h"
#include "engine/pipeline/t2v.h"

#include <stdio.h>
#include <unistd.h>

/* Precisions that the small model can be kept in: int8 needs sides of 128. */
enum { SMALL_PRECISIONS = SL_PRECISION_INT8 };

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
    sl_component_kind kind; /* two experts have the same names, but not the same values */
    bool declare;           /* else write */
} file_job;

static inline sl_status file_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    const file_job *job = arg;
    const bool norm = strstr(spec->name, "norm") || strstr(spec->name, "gamma");
    const bool small_value = strstr(spec->name, "bias") || strstr(spec->name, "modulation");
    int64_t count = 1, fan_in = 1;
    uint64_t seed = (uint64_t)job->kind;
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

static inline sl_status visit(const sl_arch *arch, sl_component_kind kind, file_job *job,
                              sl_error *err)
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

static inline void write_file(const char *path, const sl_arch *arch, sl_component_kind kind)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    file_job job = { .kind = kind, .declare = true };

    SL_CHECK_OK(sl_st_writer_create(&job.writer, path, err));
    SL_CHECK_OK(visit(arch, kind, &job, err));
    job.declare = false;
    SL_CHECK_OK(visit(arch, kind, &job, err));
    SL_CHECK_OK(sl_st_writer_finish(job.writer, err));
    sl_st_writer_destroy(job.writer);
}

/* ---- a worker in little ---- */

typedef struct {
    net_test net;
    const sl_arch *arch;
    sl_component *parts[SL_COMPONENT_COUNT]; /* by kind; NULL: the model has none */
    void *images[SL_COMPONENT_COUNT];        /* of streamed parts */
    sl_t2v_components components;
} fixture;

static inline void load_streamed(fixture *f, int i, const sl_component_spec *spec,
                                 const sl_ckpt *ckpt)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const size_t image_bytes = sl_component_image_bytes(spec);

    SL_CHECK(posix_memalign(&f->images[i], 64, image_bytes) == 0);
    SL_CHECK_OK(sl_component_fill_image(f->images[i], image_bytes, spec, f->net.exec, ckpt, err));
    SL_CHECK_OK(sl_component_load_image(&f->parts[i], spec, f->net.device, f->net.exec,
                                        f->images[i], image_bytes, err));
}

static inline void open_fixture_streamed(fixture *f, const sl_arch *arch, sl_precision precision,
                                         unsigned streamed)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    char dir[] = "/tmp/sl_t2v_test_XXXXXX", path[64];

    memset(f, 0, sizeof *f);
    net_test_open(&f->net);
    f->arch = arch;
    SL_CHECK(mkdtemp(dir) != NULL);
    snprintf(path, sizeof path, "%s/w.safetensors", dir);
    for (int i = 0; i < SL_COMPONENT_COUNT; i++) {
        const sl_component_kind kind = (sl_component_kind)i;
        sl_ckpt *ckpt;

        if (!sl_arch_has_component(arch, kind))
            continue;
        sl_component_spec spec = sl_component_spec_of(arch, kind, precision);
        write_file(path, arch, kind);
        SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
        if (streamed & SL_COMPONENT_BIT(kind)) {
            spec.mode = SL_MODE_STREAMED;
            load_streamed(f, i, &spec, ckpt);
        } else {
            SL_CHECK_OK(
                sl_component_load(&f->parts[i], &spec, f->net.device, f->net.exec, ckpt, err));
        }
        SL_CHECK(sl_component_mapped_bytes(f->parts[i]) == sl_component_plan_bytes(&spec));
        sl_ckpt_close(ckpt);
        unlink(path);
    }
    rmdir(dir);
    f->components = (sl_t2v_components){ .text_encoder = f->parts[SL_COMPONENT_TEXT_ENCODER],
                                         .dit = f->parts[SL_COMPONENT_DIT],
                                         .dit_high = f->parts[SL_COMPONENT_DIT_HIGH],
                                         .dit_low = f->parts[SL_COMPONENT_DIT_LOW],
                                         .vae = f->parts[SL_COMPONENT_VAE] };
}

static inline void open_fixture(fixture *f, const sl_arch *arch, sl_precision precision)
{
    open_fixture_streamed(f, arch, precision, 0);
}

static inline void close_fixture(fixture *f)
{
    for (int i = 0; i < SL_COMPONENT_COUNT; i++) {
        sl_component_destroy(f->parts[i]);
        free(f->images[i]);
    }
    net_test_close(&f->net);
}

#define PHASE_BIT(phase) (1u << (phase))

/* The phases that a plan has. */
static inline unsigned phases_of(const sl_t2v_plan *plan)
{
    unsigned phases = 0;

    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        if (plan->phase_components[phase])
            phases |= PHASE_BIT(phase);
    return phases;
}

/* What a run told. */
typedef struct {
    uint8_t *rgb; /* [frames, height, width, 3] */
    size_t frame_bytes;
    int frames, steps;
    unsigned phases;     /* PHASE_BITs */
    const char *fail_in; /* "phase", "step", "frames": answers with SL_ERR_BUSY */
    atomic_uint *cancel; /* set in the first step */
    double *states[8];   /* behind each step, if keep_states */
    bool keep_states;
} record;

static inline void free_record(record *r)
{
    free(r->rgb);
    for (size_t i = 0; i < SL_COUNT(r->states); i++)
        free(r->states[i]);
}

static inline sl_status on_phase(void *arg, sl_phase phase, sl_error *err)
{
    record *r = arg;

    SL_CHECK(PHASE_BIT(phase) > r->phases); /* in order */
    r->phases |= PHASE_BIT(phase);
    if (r->fail_in && strcmp(r->fail_in, "phase") == 0)
        return sl_fail(err, SL_ERR_BUSY, "asked to stop");
    return SL_OK;
}

static inline sl_status on_step(void *arg, int step, int step_count, const sl_tensor *latent,
                                sl_error *err)
{
    record *r = arg;

    SL_CHECK(step == r->steps++ && step < step_count && latent->dtype == SL_F64);
    if (r->keep_states) { /* the device of these tests is the host */
        r->states[step] = malloc(sl_tensor_bytes(latent));
        SL_CHECK(r->states[step] != NULL);
        memcpy(r->states[step], latent->data, sl_tensor_bytes(latent));
    }
    if (r->cancel)
        atomic_store(r->cancel, 1);
    if (r->fail_in && strcmp(r->fail_in, "step") == 0)
        return sl_fail(err, SL_ERR_BUSY, "asked to stop");
    return SL_OK;
}

static inline sl_status on_frames(void *arg, const uint8_t *rgb, int first, int count,
                                  sl_error *err)
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

static inline sl_status run(fixture *f, const sl_t2v_request *request, const float *const *noises,
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

#endif
