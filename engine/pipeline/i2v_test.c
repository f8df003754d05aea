/* Image to video with two experts: what it plans is what it uses, each step is
 * the right expert's, the image matters, and every way to stop it stops it. */
#include "engine/pipeline/t2v.h"

#include "engine/pipeline/t2v_test.h"
#include "kernels/ops.h"

static sl_arch small_i2v(void)
{
    sl_arch arch = small;

    arch.name = "test-i2v";
    arch.task = SL_TASK_I2V;
    arch.expert_count = 2;
    arch.dit.in_dim = 36;
    arch.sigma_max = 200;
    return arch;
}

static uint8_t *make_image(const sl_t2v_request *request, unsigned seed)
{
    const size_t bytes = (size_t)request->width * (size_t)request->height * 3;
    uint8_t *image = malloc(bytes);

    SL_CHECK(image != NULL);
    for (size_t i = 0; i < bytes; i++)
        image[i] = (uint8_t)(i * 31 + i / 97 * seed);
    return image;
}

static void check_plan(const sl_t2v_plan *plan, const sl_t2v_result *result, const char *what)
{
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        if (plan->phase_activation_bytes[phase] != result->phase_activation_bytes[phase])
            fail_msg("%s, %s: planned %zu bytes, used %zu", what, sl_phase_name((sl_phase)phase),
                     plan->phase_activation_bytes[phase], result->phase_activation_bytes[phase]);
        SL_CHECK((plan->phase_activation_bytes[phase] > 0) == (plan->phase_components[phase] != 0));
    }
}

static void check_run(fixture *f, const sl_t2v_request *request, unsigned phases)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    uint8_t *image = make_image(request, 1);
    sl_t2v_request with_image = *request;
    record r = { .rgb = NULL };
    sl_t2v_plan plan;
    sl_t2v_result result;
    size_t weights = 0;
    char what[64];

    snprintf(what, sizeof what, "%d x %d, %d frames, %d steps", request->width, request->height,
             request->frames, request->steps);
    with_image.image = image;
    SL_CHECK_OK(sl_t2v_plan_make(&plan, request, f->arch, SL_DEVICE_CPU, err));
    SL_CHECK_OK(run(f, &with_image, NULL, &r, &result, err));
    SL_CHECK(r.frames == request->frames && r.steps == request->steps);
    SL_CHECK(r.phases == phases && phases_of(&plan) == phases);
    check_plan(&plan, &result, what);
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        weights += plan.weight_bytes[kind];
    SL_CHECK(plan.total_bytes == plan.activation_bytes + weights);
    SL_CHECK(plan.phase_steps[SL_PHASE_DENOISE_HIGH] + plan.phase_steps[SL_PHASE_DENOISE_LOW] ==
             request->steps);
    free_record(&r);
    free(image);
}

enum {
    BOTH = PHASE_BIT(SL_PHASE_ENCODE_TEXT) | PHASE_BIT(SL_PHASE_ENCODE_IMAGE) |
           PHASE_BIT(SL_PHASE_DENOISE_HIGH) | PHASE_BIT(SL_PHASE_DENOISE_LOW) |
           PHASE_BIT(SL_PHASE_DECODE),
    HIGH_ONLY = BOTH & ~PHASE_BIT(SL_PHASE_DENOISE_LOW),
    LOW_ONLY = BOTH & ~PHASE_BIT(SL_PHASE_DENOISE_HIGH),
};

static const struct {
    int width, height, frames, steps;
    sl_sampler_mode mode;
    double sigma_max, boundary;
    int64_t token_count;
    unsigned phases;
} rows[] = {
    { 16, 16, 1, 1, SL_SAMPLER_SDE, 200, 0.9, 1, HIGH_ONLY },
    { 48, 32, 1, 4, SL_SAMPLER_ODE, 200, 0.9, 8, BOTH },
    { 32, 48, 5, 2, SL_SAMPLER_SDE, 200, 0.9, 3, HIGH_ONLY },
    { 64, 16, 9, 3, SL_SAMPLER_SDE, 200, 0.9, 7, BOTH },
    { 16, 80, 13, 1, SL_SAMPLER_ODE, 8, 0.9, 8, LOW_ONLY },
    { 112, 96, 5, 4, SL_SAMPLER_SDE, 200, 1.0, 2, LOW_ONLY },
    { 176, 160, 5, 3, SL_SAMPLER_SDE, 200, 0.5, 5, HIGH_ONLY },
    { 16, 32, 33, 4, SL_SAMPLER_ODE, 1600, 0.99, 8, BOTH },
};

static void check_rows(const sl_arch *arch, sl_precision precision, unsigned streamed,
                       size_t row_count)
{
    fixture f;

    open_fixture_streamed(&f, arch, precision, streamed);
    for (size_t i = 0; i < row_count; i++) {
        sl_t2v_request request = sl_t2v_request_default(arch);

        request.width = rows[i].width;
        request.height = rows[i].height;
        request.frames = rows[i].frames;
        request.steps = rows[i].steps;
        request.mode = rows[i].mode;
        request.sigma_max = rows[i].sigma_max;
        request.boundary = rows[i].boundary;
        request.token_count = rows[i].token_count;
        request.precision = precision;
        request.streamed = streamed;
        check_run(&f, &request, rows[i].phases);
    }
    close_fixture(&f);
}

SL_TEST(plan_is_what_a_run_uses)
{
    const sl_arch arch = small_i2v();

    (void)err;
    check_rows(&arch, SL_PRECISION_F32, 0, SL_COUNT(rows));
    check_rows(&arch, SL_PRECISION_BF16, 0, SL_COUNT(rows));
    check_rows(&arch, SL_PRECISION_BF16,
               SL_COMPONENT_BIT(SL_COMPONENT_DIT_HIGH) | SL_COMPONENT_BIT(SL_COMPONENT_DIT_LOW), 4);
    check_rows(sl_arch_find("tiny-i2v"), SL_PRECISION_BF16, 0, 4);
}

SL_TEST(one_expert_from_an_image)
{
    sl_arch arch = small_i2v();
    sl_t2v_request request;
    fixture f;

    (void)err;
    arch.expert_count = 1;
    request = sl_t2v_request_default(&arch);
    request.steps = 2;
    request.boundary = 0.0; /* not looked at */
    open_fixture(&f, &arch, SL_PRECISION_BF16);
    uint8_t *image = make_image(&request, 1);
    sl_t2v_plan plan;
    sl_t2v_result result;
    record r = { .rgb = NULL };
    SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, &arch, SL_DEVICE_CPU, err));
    request.image = image;
    SL_CHECK_OK(run(&f, &request, NULL, &r, &result, err));
    check_plan(&plan, &result, "one expert");
    SL_CHECK(r.phases == (PHASE_BIT(SL_PHASE_ENCODE_TEXT) | PHASE_BIT(SL_PHASE_ENCODE_IMAGE) |
                          PHASE_BIT(SL_PHASE_DENOISE) | PHASE_BIT(SL_PHASE_DECODE)));
    free_record(&r);
    free(image);
    close_fixture(&f);
}

/* A scratch of exactly the planned size is enough, and one byte less is not. */
SL_TEST(plan_is_tight)
{
    const sl_arch arch = small_i2v();
    sl_t2v_request request = sl_t2v_request_default(&arch);
    fixture f;
    sl_t2v_plan plan;
    size_t most = 0;

    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, &arch, SL_DEVICE_CPU, err));
    uint8_t *image = make_image(&request, 1);
    request.image = image;
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        if (plan.phase_activation_bytes[phase] > most)
            most = plan.phase_activation_bytes[phase];
    sl_scratch_init(&f.net.scratch, sl_region_data(f.net.region), most);
    SL_CHECK_OK(sl_t2v_run(f.net.exec, &f.net.scratch, &f.components, &arch, &request, ids, NULL,
                           NULL, NULL, err));
    sl_scratch_init(&f.net.scratch, sl_region_data(f.net.region), most - 1);
    SL_CHECK_STATUS(sl_t2v_run(f.net.exec, &f.net.scratch, &f.components, &arch, &request, ids,
                               NULL, NULL, NULL, err),
                    SL_ERR_NO_MEMORY);
    free(image);
    close_fixture(&f);
}

static bool same_frames(const record *a, const record *b)
{
    return a->frames == b->frames &&
           memcmp(a->rgb, b->rgb, a->frame_bytes * (size_t)a->frames) == 0;
}

SL_TEST(bytes_follow_from_the_request_alone)
{
    enum { VARIANTS = 5 };
    const sl_arch arch = small_i2v();
    const sl_t2v_request request = sl_t2v_request_default(&arch);
    uint8_t *image = make_image(&request, 1), *other_image = make_image(&request, 1);
    sl_t2v_request variants[VARIANTS] = { request, request, request, request, request };
    record want = { .rgb = NULL }, again = { .rgb = NULL };
    fixture f;

    other_image[100] ^= 0x40;
    for (int i = 0; i < VARIANTS; i++)
        variants[i].image = image;
    variants[1].image = other_image;
    variants[2].boundary = 0.94; /* one step more for the low-noise expert */
    variants[3].mode = SL_SAMPLER_ODE;
    variants[4].seed = 1;
    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_OK(run(&f, &variants[0], NULL, &want, NULL, err));
    SL_CHECK_OK(run(&f, &variants[0], NULL, &again, NULL, err));
    SL_CHECK(same_frames(&want, &again));
    for (int i = 1; i < VARIANTS; i++) {
        record other = { .rgb = NULL };

        SL_CHECK_OK(run(&f, &variants[i], NULL, &other, NULL, err));
        SL_CHECK(!same_frames(&want, &other));
        free_record(&other);
    }
    free_record(&want);
    free_record(&again);
    free(image);
    free(other_image);
    close_fixture(&f);
}

SL_TEST(streamed_experts_give_the_same_bytes)
{
    const sl_arch arch = small_i2v();
    sl_t2v_request request = sl_t2v_request_default(&arch);
    uint8_t *image = make_image(&request, 3);
    record want = { .rgb = NULL }, got = { .rgb = NULL };
    fixture f;

    request.image = image;
    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    close_fixture(&f);
    request.streamed =
        SL_COMPONENT_BIT(SL_COMPONENT_DIT_HIGH) | SL_COMPONENT_BIT(SL_COMPONENT_DIT_LOW);
    open_fixture_streamed(&f, &arch, SL_PRECISION_BF16, request.streamed);
    SL_CHECK_OK(run(&f, &request, NULL, &got, NULL, err));
    SL_CHECK(same_frames(&want, &got));
    close_fixture(&f);
    free_record(&want);
    free_record(&got);
    free(image);
}

/* The device of these tests is the host: a weight is broken in place. */
static void poison(const sl_tensor *t)
{
    memset(t->data, 0xff, sl_dtype_bytes(t->dtype));
}

/* Whose steps are whose shows in where broken numbers come up. */
SL_TEST(broken_numbers_name_step_and_stage)
{
    const sl_arch arch = small_i2v();
    sl_t2v_request request = sl_t2v_request_default(&arch);
    uint8_t *image = make_image(&request, 1);
    record r[4] = { { .rgb = NULL } };
    fixture f;

    request.image = image;
    open_fixture(&f, &arch, SL_PRECISION_F32);
    poison(&sl_component_dit(f.parts[SL_COMPONENT_DIT_LOW])->head.b);
    SL_CHECK_STATUS(run(&f, &request, NULL, &r[0], NULL, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "denoising step 3 of 4") && r[0].steps == 2);
    request.steps = 2; /* without the low-noise expert, broken or absent */
    f.components.dit_low = NULL;
    SL_CHECK_OK(run(&f, &request, NULL, &r[1], NULL, err));
    poison(&sl_component_dit(f.parts[SL_COMPONENT_DIT_HIGH])->head.b);
    SL_CHECK_STATUS(run(&f, &request, NULL, &r[2], NULL, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "denoising step 1 of 2"));
    poison(&sl_component_vae(f.parts[SL_COMPONENT_VAE])->encoder.head.b);
    SL_CHECK_STATUS(run(&f, &request, NULL, &r[3], NULL, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "encoding the image: ") && r[3].steps == 0);
    for (size_t i = 0; i < SL_COUNT(r); i++)
        free_record(&r[i]);
    free(image);
    close_fixture(&f);
}

/* Ends a run at the begin of a phase, by status or by the cancel word. */
typedef struct {
    sl_phase phase;
    atomic_uint *cancel; /* NULL: by status */
    int phases;
} stopper;

static sl_status stop_at_phase(void *arg, sl_phase phase, sl_error *err)
{
    stopper *s = arg;

    s->phases++;
    if (phase != s->phase)
        return SL_OK;
    if (!s->cancel)
        return sl_fail(err, SL_ERR_BUSY, "asked to stop");
    atomic_store(s->cancel, 1);
    return SL_OK;
}

SL_TEST(every_phase_can_be_stopped)
{
    static const sl_phase phases[] = { SL_PHASE_ENCODE_TEXT, SL_PHASE_ENCODE_IMAGE,
                                       SL_PHASE_DENOISE_HIGH, SL_PHASE_DENOISE_LOW,
                                       SL_PHASE_DECODE };
    const sl_arch arch = small_i2v();
    sl_t2v_request request = sl_t2v_request_default(&arch);
    uint8_t *image = make_image(&request, 1);
    record want = { .rgb = NULL }, got = { .rgb = NULL };
    fixture f;

    request.image = image;
    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    for (size_t i = 0; i < 2 * SL_COUNT(phases); i++) {
        stopper s = { .phase = phases[i / 2], .cancel = i % 2 ? &f.net.cancel : NULL };
        const sl_t2v_events events = { .arg = &s, .on_phase = stop_at_phase };

        SL_CHECK_STATUS(sl_t2v_run(f.net.exec, &f.net.scratch, &f.components, &arch, &request, ids,
                                   NULL, &events, NULL, err),
                        s.cancel ? SL_ERR_CANCELLED : SL_ERR_BUSY);
        SL_CHECK(s.phases == (int)i / 2 + 1);
        SL_CHECK(sl_scratch_mark(&f.net.scratch) == 0);
        atomic_store(&f.net.cancel, 0);
    }
    SL_CHECK_OK(run(&f, &request, NULL, &got, NULL, err));
    SL_CHECK(same_frames(&want, &got));
    free_record(&want);
    free_record(&got);
    free(image);
    close_fixture(&f);
}

/* Behind its last step the high-noise expert may be gone. */
SL_TEST(resumed_runs_give_the_same_frames)
{
    const sl_arch arch = small_i2v();
    sl_t2v_request request = sl_t2v_request_default(&arch);
    uint8_t *image = make_image(&request, 1);
    record want = { .keep_states = true };
    fixture f;

    request.image = image;
    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    for (int done = 1; done <= request.steps; done++) {
        record got = { .steps = done, .frame_bytes = want.frame_bytes };
        const sl_t2v_events events = {
            .arg = &got, .on_phase = on_phase, .on_step = on_step, .on_frames = on_frames
        };

        if (done == 2)
            f.components.dit_high = NULL;
        if (done == request.steps) {
            f.components = (sl_t2v_components){ .vae = f.components.vae };
            request.image = NULL;
        }
        net_test_reset(&f.net);
        SL_CHECK_OK(sl_t2v_resume(f.net.exec, &f.net.scratch, &f.components, &arch, &request, ids,
                                  NULL, done, want.states[done - 1], &events, NULL, err));
        SL_CHECK(same_frames(&want, &got));
        SL_CHECK(got.phases == (done == 4   ? PHASE_BIT(SL_PHASE_DECODE)
                                : done == 1 ? BOTH
                                            : LOW_ONLY));
        free_record(&got);
    }
    free_record(&want);
    free(image);
    close_fixture(&f);
}

/* Each phase has its own components, and of the memory its own bytes. */
typedef struct {
    record r;
    fixture *f;
    sl_component *parts[SL_COMPONENT_COUNT];
    sl_t2v_plan plan;
    sl_phase forget; /* its components do not come; SL_PHASE_COUNT: all do */
} by_phase;

static sl_status exchange(void *arg, sl_phase phase, sl_error *err)
{
    by_phase *b = arg;
    const unsigned set = phase == b->forget ? 0 : b->plan.phase_components[phase];
    const sl_component *parts[SL_COMPONENT_COUNT];

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        parts[kind] = set & SL_COMPONENT_BIT(kind) ? b->parts[kind] : NULL;
    b->f->components = (sl_t2v_components){ .text_encoder = parts[SL_COMPONENT_TEXT_ENCODER],
                                            .dit_high = parts[SL_COMPONENT_DIT_HIGH],
                                            .dit_low = parts[SL_COMPONENT_DIT_LOW],
                                            .vae = parts[SL_COMPONENT_VAE],
                                            .by_phase = true };
    b->f->net.scratch.size_bytes = b->plan.phase_activation_bytes[phase];
    return on_phase(&b->r, phase, err);
}

static sl_status step_of(void *arg, int step, int step_count, const sl_tensor *latent,
                         sl_error *err)
{
    return on_step(&((by_phase *)arg)->r, step, step_count, latent, err);
}

static sl_status frames_of(void *arg, const uint8_t *rgb, int first, int count, sl_error *err)
{
    return on_frames(&((by_phase *)arg)->r, rgb, first, count, err);
}

SL_TEST(components_may_take_turns)
{
    const sl_arch arch = small_i2v();
    sl_t2v_request request = sl_t2v_request_default(&arch);
    uint8_t *image = make_image(&request, 1);
    record want = { .rgb = NULL };
    by_phase b = { .forget = SL_PHASE_COUNT };
    const sl_t2v_events events = {
        .arg = &b, .on_phase = exchange, .on_step = step_of, .on_frames = frames_of
    };
    fixture f;

    request.image = image;
    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_OK(sl_t2v_plan_make(&b.plan, &request, &arch, SL_DEVICE_CPU, err));
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    memcpy(b.parts, f.parts, sizeof b.parts);
    b.f = &f;
    for (int phase = SL_PHASE_COUNT; phase >= 0; phase--) {
        const size_t size_bytes = f.net.scratch.size_bytes;
        const bool has = phase == SL_PHASE_COUNT || b.plan.phase_components[phase] != 0;

        b.forget = (sl_phase)phase;
        b.r = (record){ .frame_bytes = want.frame_bytes };
        f.components = (sl_t2v_components){ .by_phase = true };
        net_test_reset(&f.net);
        const sl_status status = sl_t2v_run(f.net.exec, &f.net.scratch, &f.components, &arch,
                                            &request, ids, NULL, &events, NULL, err);
        f.net.scratch.size_bytes = size_bytes;
        SL_CHECK(status == (has && phase < SL_PHASE_COUNT ? SL_ERR_INVALID : SL_OK));
        if (status == SL_OK)
            SL_CHECK(same_frames(&want, &b.r));
        else
            SL_CHECK(strstr(err->message, "is not there"));
        free_record(&b.r);
    }
    free_record(&want);
    free(image);
    close_fixture(&f);
}

SL_TEST(inputs_are_checked)
{
    sl_arch arch = small_i2v();
    const sl_t2v_request request = sl_t2v_request_default(&arch);
    sl_t2v_request bad = request;
    uint8_t *image = make_image(&request, 1);
    record r = { .rgb = NULL };
    sl_t2v_plan plan;
    fixture f;

    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_STATUS(run(&f, &bad, NULL, &r, NULL, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "\"test-i2v\" makes video from an image: none is given"));
    bad.image = image;
    f.components.dit_low = NULL;
    SL_CHECK_STATUS(run(&f, &bad, NULL, &r, NULL, err), SL_ERR_INVALID);
    SL_CHECK(strcmp(err->message, "dit_low is not there: the request needs it") == 0);
    f.components.dit_low = f.components.dit_high;
    SL_CHECK_STATUS(run(&f, &bad, NULL, &r, NULL, err), SL_ERR_INVALID);
    SL_CHECK(strcmp(err->message, "dit_high was given as dit_low") == 0);
    for (int i = 0; i < 4; i++) {
        bad.boundary = (const double[]){ 0.0, -0.9, 1.1, (double)NAN }[i];
        SL_CHECK_STATUS(sl_t2v_plan_make(&plan, &bad, &arch, SL_DEVICE_CPU, err), SL_ERR_INVALID);
        SL_CHECK(strstr(err->message, "boundary") && strstr(err->message, "the default is 0.9"));
    }
    bad = request;
    bad.streamed = SL_COMPONENT_BIT(SL_COMPONENT_DIT);
    SL_CHECK_STATUS(sl_t2v_plan_make(&plan, &bad, &arch, SL_DEVICE_CPU, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "dit cannot be streamed: expected text_encoder or dit_high"));
    bad = sl_t2v_request_default(&small);
    bad.image = image;
    SL_CHECK_STATUS(sl_t2v_plan_make(&plan, &bad, &small, SL_DEVICE_CPU, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "it takes no image"));
    arch.dit.in_dim = 16;
    SL_CHECK_STATUS(sl_t2v_plan_make(&plan, &request, &arch, SL_DEVICE_CPU, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "takes 16 channels: expected 16 of latent and 20 of image"));
    SL_CHECK(r.phases == 0);
    free(image);
    close_fixture(&f);
}

/* Frames cost latents and output, never activations of the encoder. */
SL_TEST(encoding_for_longer_videos_takes_no_more)
{
    const sl_arch *arch = sl_arch_find("tiny-i2v");
    sl_t2v_request request = sl_t2v_request_default(arch);
    sl_t2v_plan shorter, longer;

    request.width = request.height = 128;
    request.frames = 17;
    SL_CHECK_OK(sl_t2v_plan_make(&shorter, &request, arch, SL_DEVICE_CPU, err));
    request.frames = 81;
    SL_CHECK_OK(sl_t2v_plan_make(&longer, &request, arch, SL_DEVICE_CPU, err));
    /* the state's 16 channels in f64, the condition's 20 in f32 */
    const size_t latent_bytes = (size_t)(16 * 8 + 20 * 4) * (21 - 5) * 16 * 16;
    SL_CHECK(longer.phase_activation_bytes[SL_PHASE_ENCODE_IMAGE] ==
             shorter.phase_activation_bytes[SL_PHASE_ENCODE_IMAGE] + latent_bytes);
}

SL_TEST_MAIN(SL_RUN(plan_is_what_a_run_uses), SL_RUN(one_expert_from_an_image),
             SL_RUN(plan_is_tight), SL_RUN(bytes_follow_from_the_request_alone),
             SL_RUN(streamed_experts_give_the_same_bytes),
             SL_RUN(broken_numbers_name_step_and_stage), SL_RUN(every_phase_can_be_stopped),
             SL_RUN(resumed_runs_give_the_same_frames), SL_RUN(components_may_take_turns),
             SL_RUN(inputs_are_checked), SL_RUN(encoding_for_longer_videos_takes_no_more))
