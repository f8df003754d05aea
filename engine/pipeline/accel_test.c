/* Int8 linears, sparse attention and UniPC through the whole pipeline. */
#include "engine/pipeline/t2v_test.h"
#include "engine/pipeline/unipc.h"

/* The small model with sides that int8 can have. */
static sl_arch wide_arch(int expert_count)
{
    sl_arch arch = small;

    arch.name = "test-wide";
    arch.expert_count = expert_count;
    arch.dit.dim = 128;
    arch.dit.ffn_dim = 256;
    return arch;
}

static const int32_t negative_ids[8] = { 3, 3, 31, 8, 1, 0, 0, 0 };

static sl_t2v_request unipc_request(const sl_arch *arch, int steps, double guidance)
{
    sl_t2v_request request = sl_t2v_request_official(arch);

    request.steps = steps;
    request.guidance = guidance;
    request.negative_ids = negative_ids;
    request.negative_token_count = 5;
    return request;
}

static void check_plan(fixture *f, const sl_t2v_request *request, const char *what)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    record r = { .rgb = NULL };
    sl_t2v_result result;
    sl_t2v_plan plan;

    SL_CHECK_OK(sl_t2v_plan_make(&plan, request, f->arch, SL_DEVICE_CPU, err));
    SL_CHECK_OK(run(f, request, NULL, &r, &result, err));
    SL_CHECK(r.steps == request->steps && r.phases == phases_of(&plan));
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        if (plan.phase_activation_bytes[phase] != result.phase_activation_bytes[phase])
            fail_msg("%s, %s: planned %zu bytes, used %zu", what, sl_phase_name((sl_phase)phase),
                     plan.phase_activation_bytes[phase], result.phase_activation_bytes[phase]);
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        SL_CHECK(plan.weight_bytes[kind] ==
                 (f->parts[kind] ? sl_component_mapped_bytes(f->parts[kind]) : 0));
    free_record(&r);
}

SL_TEST(plans_are_exact_with_every_accelerator)
{
    static const struct {
        int width, height, frames;
        double topk_ratio;
    } sizes[] = { { 16, 16, 1, 0.1 }, { 112, 96, 5, 0.1 }, { 176, 160, 5, 0.7 } };
    const sl_arch arch = wide_arch(1);

    for (int p = 0; p < SL_PRECISION_COUNT; p++) {
        fixture f;

        open_fixture(&f, &arch, (sl_precision)p);
        for (size_t i = 0; i < SL_COUNT(sizes) * SL_ATTENTION_COUNT * 2; i++) {
            const size_t size = i % SL_COUNT(sizes), rest = i / SL_COUNT(sizes);
            const bool unipc = rest / SL_ATTENTION_COUNT;
            sl_t2v_request request =
                unipc ? unipc_request(&arch, 2, 3.0) : sl_t2v_request_default(&arch);
            char what[96];

            request.width = sizes[size].width;
            request.height = sizes[size].height;
            request.frames = sizes[size].frames;
            request.topk_ratio = sizes[size].topk_ratio;
            request.steps = 2;
            request.precision = (sl_precision)p;
            request.attention = (sl_attention_mode)(rest % SL_ATTENTION_COUNT);
            snprintf(what, sizeof what, "%s, %s, %dx%d%s", sl_precision_name(request.precision),
                     sl_attention_name(request.attention), request.width, request.height,
                     unipc ? ", UniPC" : "");
            check_plan(&f, &request, what);
        }
        close_fixture(&f);
    }
}

/* Half of the memory, and nearly the same pictures. */
SL_TEST(a_vae_in_bf16_takes_half)
{
    const sl_arch arch = wide_arch(1);
    sl_t2v_request request = sl_t2v_request_default(&arch);
    record exact = { .rgb = NULL }, rounded = { .rgb = NULL };
    sl_t2v_plan plans[2];
    double sum = 0.0;
    fixture f;

    request.width = 112;
    request.height = 96;
    request.frames = 9;
    request.steps = 1;
    open_fixture(&f, &arch, request.precision);
    for (int i = 0; i < 2; i++) {
        request.vae_precision = i ? SL_PRECISION_BF16 : SL_PRECISION_F32;
        check_plan(&f, &request, sl_precision_name(request.vae_precision));
        SL_CHECK_OK(sl_t2v_plan_make(&plans[i], &request, &arch, SL_DEVICE_CPU, err));
        SL_CHECK_OK(run(&f, &request, NULL, i ? &rounded : &exact, NULL, err));
    }
    const size_t whole = plans[0].phase_activation_bytes[SL_PHASE_DECODE];
    const size_t half = plans[1].phase_activation_bytes[SL_PHASE_DECODE];
    SL_CHECK(half < whole * 11 / 20);
    const int64_t count = (int64_t)request.frames * request.width * request.height * 3;
    for (int64_t i = 0; i < count; i++) {
        const double d = exact.rgb[i] - rounded.rgb[i];
        sum += d * d;
    }
    SL_CHECK(sum > 0.0 && sum / (double)count <= 255.0 * 255.0 * 1e-4); /* 40 dB */
    free_record(&exact);
    free_record(&rounded);
    request.precision = SL_PRECISION_F32; /* whose weights are f32 */
    SL_CHECK_STATUS(sl_t2v_request_check(&request, &arch, err), SL_ERR_INVALID);
    close_fixture(&f);
}

SL_TEST(streamed_int8_gives_the_same_frames)
{
    const unsigned streamed = SL_COMPONENT_BIT(SL_COMPONENT_DIT);
    const sl_arch arch = wide_arch(1);
    sl_t2v_request request = sl_t2v_request_default(&arch);
    record want = { .rgb = NULL }, got = { .rgb = NULL };
    fixture f;

    request.precision = SL_PRECISION_INT8;
    request.attention = SL_ATTENTION_SAGESLA;
    open_fixture(&f, &arch, request.precision);
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    close_fixture(&f);
    request.streamed = streamed;
    open_fixture_streamed(&f, &arch, request.precision, streamed);
    SL_CHECK_OK(run(&f, &request, NULL, &got, NULL, err));
    SL_CHECK(memcmp(got.rgb, want.rgb, want.frame_bytes * (size_t)want.frames) == 0);
    close_fixture(&f);
    free_record(&want);
    free_record(&got);
}

/* The state behind the last step of a run. */
static double *final_state(fixture *f, const sl_t2v_request *request)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    record r = { .keep_states = true };

    SL_CHECK_OK(run(f, request, NULL, &r, NULL, err));
    double *state = r.states[request->steps - 1];
    r.states[request->steps - 1] = NULL;
    free_record(&r);
    return state;
}

static double distance(const double *a, const double *b, int64_t count)
{
    double difference = 0.0, norm = 0.0;

    for (int64_t i = 0; i < count; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(difference / norm);
}

/* Codes of 8 bits lose some hundredths, and each kind others. */
SL_TEST(eight_bits_stay_near)
{
    static const sl_precision precisions[] = { SL_PRECISION_F32, SL_PRECISION_INT8,
                                               SL_PRECISION_FP8 };
    const sl_arch arch = wide_arch(1);
    sl_t2v_request request = sl_t2v_request_default(&arch);
    double *state[SL_COUNT(precisions)];
    fixture f;

    request.steps = 1;
    for (size_t i = 0; i < SL_COUNT(precisions); i++) {
        open_fixture(&f, &arch, precisions[i]);
        request.precision = precisions[i];
        state[i] = final_state(&f, &request);
        close_fixture(&f);
    }
    const int64_t count = sl_t2v_latent_shape(&request, &arch, NULL);
    for (size_t i = 1; i < SL_COUNT(precisions); i++) {
        const double off = distance(state[i], state[0], count);
        if (!(off > 1e-6 && off < 0.05))
            fail_msg("%s is %g from f32", sl_precision_name(precisions[i]), off);
        for (size_t j = 1; j < i; j++)
            SL_CHECK(distance(state[i], state[j], count) > 1e-6);
    }
    for (size_t i = 0; i < SL_COUNT(precisions); i++)
        free(state[i]);
}

/* Sparse attention is another video of the same kind; 8 bits are close to it. */
SL_TEST(attention_modes_are_told_apart)
{
    const sl_arch arch = wide_arch(1);
    sl_t2v_request request = sl_t2v_request_default(&arch);
    double *state[SL_ATTENTION_COUNT];
    fixture f;

    request.width = 176;
    request.height = 160;
    request.topk_ratio = 0.5;
    open_fixture(&f, &arch, SL_PRECISION_BF16);
    for (int mode = 0; mode < SL_ATTENTION_COUNT; mode++) {
        request.attention = (sl_attention_mode)mode;
        state[mode] = final_state(&f, &request);
    }
    const int64_t count = sl_t2v_latent_shape(&request, &arch, NULL);
    const double sparse = distance(state[SL_ATTENTION_SLA], state[SL_ATTENTION_DENSE], count);
    SL_CHECK(sparse > 1e-4 && sparse < 1.0);
    const double sage = distance(state[SL_ATTENTION_SAGESLA], state[SL_ATTENTION_DENSE], count);
    SL_CHECK(sage > 1e-4 && sage < 1.0);
    for (int mode = 0; mode < SL_ATTENTION_COUNT; mode++)
        free(state[mode]);
    close_fixture(&f);
}

SL_TEST(guidance_leads_away_from_the_negative_prompt)
{
    const sl_arch arch = wide_arch(1);
    sl_t2v_request request = unipc_request(&arch, 6, 1.0);
    const int64_t count = sl_t2v_latent_shape(&request, &arch, NULL) / SL_UNIPC_STATES;
    fixture f;

    open_fixture(&f, &arch, SL_PRECISION_F32);
    request.negative_ids = NULL; /* not needed */
    double *plain = final_state(&f, &request);
    request.guidance = 4.0;
    request.negative_ids = ids; /* the prompt itself: leads nowhere */
    request.negative_token_count = request.token_count;
    double *same = final_state(&f, &request);
    SL_CHECK(distance(same, plain, count) < 1e-5);
    request.negative_ids = negative_ids;
    double *away = final_state(&f, &request);
    SL_CHECK(distance(away, plain, count) > 1e-3);
    free(plain);
    free(same);
    free(away);
    close_fixture(&f);
}

SL_TEST(unipc_goes_on_behind_any_step)
{
    const sl_arch arch = wide_arch(1);
    const sl_t2v_request request = unipc_request(&arch, 5, 3.0);
    record want = { .keep_states = true };
    fixture f;

    open_fixture(&f, &arch, SL_PRECISION_BF16);
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    for (int done = 1; done <= request.steps; done++) {
        record got = { .steps = done, .frame_bytes = want.frame_bytes };
        const sl_t2v_events events = {
            .arg = &got, .on_phase = on_phase, .on_step = on_step, .on_frames = on_frames
        };

        net_test_reset(&f.net);
        SL_CHECK_OK(sl_t2v_resume(f.net.exec, &f.net.scratch, &f.components, &arch, &request, ids,
                                  NULL, done, want.states[done - 1], &events, NULL, err));
        SL_CHECK(got.frames == want.frames && got.steps == request.steps);
        SL_CHECK(memcmp(got.rgb, want.rgb, want.frame_bytes * (size_t)want.frames) == 0);
        free_record(&got);
    }
    free_record(&want);
    close_fixture(&f);
}

SL_TEST(unipc_takes_both_experts)
{
    const sl_arch arch = wide_arch(2);
    sl_t2v_request request = unipc_request(&arch, 6, 3.0);
    sl_t2v_plan plan;
    fixture f;

    open_fixture(&f, &arch, SL_PRECISION_BF16);
    request.guidance_low = 1.0; /* only the high-noise one is guided */
    SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, &arch, SL_DEVICE_CPU, err));
    /* sigmas of shift 5: 0.9998, 0.96, 0.91 | 0.83, 0.71, 0.5 */
    SL_CHECK(plan.phase_steps[SL_PHASE_DENOISE_HIGH] == 3);
    SL_CHECK(plan.phase_steps[SL_PHASE_DENOISE_LOW] == 3);
    SL_CHECK(plan.phase_activation_bytes[SL_PHASE_DENOISE_HIGH] >
             plan.phase_activation_bytes[SL_PHASE_DENOISE_LOW]);
    check_plan(&f, &request, "two experts");
    request.guidance = 1.0;
    request.guidance_low = 2.0;
    check_plan(&f, &request, "the low-noise expert guided");
    close_fixture(&f);
}

SL_TEST(refuses_what_cannot_be_sampled)
{
    const sl_arch arch = wide_arch(2);
    const sl_t2v_request good = unipc_request(&arch, 6, 3.0);
    record r = { .rgb = NULL };
    fixture f;
    struct {
        const char *says;
        sl_t2v_request request;
    } bad[] = {
        { "201 steps: expected 1 to 200", good },
        { "shift 0", good },
        { "guidance -1", good },
        { "guidance of the low-noise expert nan", good },
        { "0 tokens of the negative prompt", good },
        { "9 tokens of the negative prompt", good },
        { "top-k ratio 0", good },
        { "attention 9", good },
        { "sampler mode 3", good },
    };

    bad[0].request.steps = 201;
    bad[1].request.shift = 0.0;
    bad[2].request.guidance = -1.0;
    bad[3].request.guidance_low = (double)NAN;
    bad[4].request.negative_token_count = 0;
    bad[5].request.negative_token_count = 9;
    bad[6].request.attention = SL_ATTENTION_SLA;
    bad[6].request.topk_ratio = 0.0;
    bad[7].request.attention = (sl_attention_mode)9;
    bad[8].request.mode = SL_SAMPLER_COUNT;
    SL_CHECK_OK(sl_t2v_request_check(&good, &arch, err));
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_t2v_request_check(&bad[i].request, &arch, err), SL_ERR_INVALID);
        if (!strstr(err->message, bad[i].says))
            fail_msg("\"%s\" does not say \"%s\"", err->message, bad[i].says);
        sl_error_clear(err);
    }
    sl_t2v_request narrow = sl_t2v_request_default(&small);
    narrow.precision = SL_PRECISION_INT8;
    SL_CHECK_STATUS(sl_t2v_request_check(&narrow, &small, err), SL_ERR_INVALID);
    sl_error_clear(err);

    open_fixture(&f, &arch, SL_PRECISION_BF16);
    sl_t2v_request without = good;
    without.negative_ids = NULL;
    SL_CHECK_STATUS(run(&f, &without, NULL, &r, NULL, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "guidance needs a negative prompt") && r.phases == 0);
    close_fixture(&f);
}

SL_TEST_MAIN(SL_RUN(plans_are_exact_with_every_accelerator), SL_RUN(a_vae_in_bf16_takes_half),
             SL_RUN(streamed_int8_gives_the_same_frames), SL_RUN(eight_bits_stay_near),
             SL_RUN(attention_modes_are_told_apart),
             SL_RUN(guidance_leads_away_from_the_negative_prompt),
             SL_RUN(unipc_goes_on_behind_any_step), SL_RUN(unipc_takes_both_experts),
             SL_RUN(refuses_what_cannot_be_sampled))
