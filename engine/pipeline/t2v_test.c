/* The pipeline on a model small enough for many runs: what it plans is what it
 * uses, equal requests give equal bytes, and every way to stop it stops it. */
#include "engine/pipeline/t2v.h"

#include "engine/pipeline/t2v_test.h"
#include "kernels/ops.h"

#include <pthread.h>

static const unsigned t2v_phases =
    PHASE_BIT(SL_PHASE_ENCODE_TEXT) | PHASE_BIT(SL_PHASE_DENOISE) | PHASE_BIT(SL_PHASE_DECODE);

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

    for (int p = 0; p < SMALL_PRECISIONS; p++) {
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
            SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, &small, SL_DEVICE_CPU, err));
            SL_CHECK_OK(run(&f, &request, NULL, &r, &result, err));
            SL_CHECK(r.frames == rows[i].frames && r.steps == rows[i].steps);
            SL_CHECK(r.phases == t2v_phases && r.phases == phases_of(&plan));
            for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
                if (plan.phase_activation_bytes[phase] != result.phase_activation_bytes[phase])
                    fail_msg("row %zu, %s: planned %zu bytes, used %zu", i,
                             sl_phase_name((sl_phase)phase), plan.phase_activation_bytes[phase],
                             result.phase_activation_bytes[phase]);
                SL_CHECK((result.phase_activation_bytes[phase] > 0) ==
                         ((t2v_phases & PHASE_BIT(phase)) != 0));
                if (plan.phase_activation_bytes[phase] > most)
                    most = plan.phase_activation_bytes[phase];
            }
            SL_CHECK(plan.activation_bytes == sl_granules(most));
            SL_CHECK(plan.total_bytes ==
                     plan.activation_bytes +
                         sl_component_mapped_bytes(f.parts[SL_COMPONENT_TEXT_ENCODER]) +
                         sl_component_mapped_bytes(f.parts[SL_COMPONENT_DIT]) +
                         sl_component_mapped_bytes(f.parts[SL_COMPONENT_VAE]));
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
    SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, &small, SL_DEVICE_CPU, err));
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
        const sl_phase phase =
            (sl_phase[]){ SL_PHASE_ENCODE_TEXT, SL_PHASE_DENOISE, SL_PHASE_DECODE }[i];
        record r = { .fail_in = (const char *[]){ "phase", "step", "frames" }[i] };

        SL_CHECK_STATUS(run(&f, &request, NULL, &r, NULL, err), SL_ERR_BUSY);
        SL_CHECK(strcmp(err->message, "asked to stop") == 0);
        SL_CHECK(r.phases == (t2v_phases & (2 * PHASE_BIT(phase) - 1)));
        SL_CHECK(r.steps == (i == 2 ? 4 : i));
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
    poison(&sl_component_vae(f.parts[SL_COMPONENT_VAE])->decoder.head.b);
    SL_CHECK_STATUS(run(&f, &request, NULL, &r, NULL, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "decoding latent frame 1 of 2") && r.frames == 0);
    poison(&sl_component_dit(f.parts[SL_COMPONENT_DIT])->head.b);
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
        SL_CHECK_STATUS(sl_t2v_plan_make(&plan, &request, &small, SL_DEVICE_CPU, err),
                        SL_ERR_INVALID);
    }
}

SL_TEST(published_models_can_be_planned)
{
    for (int i = 0; i < sl_arch_count(); i++) {
        const sl_arch *arch = sl_arch_get(i);
        const sl_t2v_request request = sl_t2v_request_default(arch);
        sl_t2v_plan plan;

        SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, arch, SL_DEVICE_CPU, err));
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
    SL_CHECK_OK(sl_t2v_plan_make(&shorter, &request, arch, SL_DEVICE_CPU, err));
    request.frames = 81;
    SL_CHECK_OK(sl_t2v_plan_make(&longer, &request, arch, SL_DEVICE_CPU, err));
    /* the latent is there twice: state f64 and the decoder's f32 */
    const size_t latent_bytes = (size_t)16 * (21 - 5) * 16 * 16 * (8 + 4);
    SL_CHECK(longer.phase_activation_bytes[SL_PHASE_DECODE] ==
             shorter.phase_activation_bytes[SL_PHASE_DECODE] + latent_bytes);
}

/* Up to the latent, and from there: the same frames, and each part's plan is what it
 * uses.  What lies between may be rounded to f32. */
SL_TEST(parts_make_the_whole)
{
    const unsigned decode = PHASE_BIT(SL_PHASE_DECODE);
    sl_t2v_request request = sl_t2v_request_default(&small);
    record want = { .rgb = NULL }, first = { .keep_states = true }, second = { .rgb = NULL };
    const sl_t2v_events events = { .arg = &second, .on_phase = on_phase, .on_frames = on_frames };
    sl_t2v_plan whole, latent, rest;
    sl_t2v_result result;
    fixture f;

    open_fixture(&f, &small, SL_PRECISION_BF16);
    const sl_t2v_components vae_only = { .vae = f.components.vae };
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    SL_CHECK_OK(sl_t2v_plan_make(&whole, &request, &small, SL_DEVICE_CPU, err));

    request.part = SL_PART_LATENT;
    SL_CHECK_OK(sl_t2v_plan_make(&latent, &request, &small, SL_DEVICE_CPU, err));
    SL_CHECK(phases_of(&latent) == (phases_of(&whole) & ~decode));
    SL_CHECK(latent.weight_bytes[SL_COMPONENT_VAE] == 0);
    SL_CHECK_OK(run(&f, &request, NULL, &first, &result, err));
    SL_CHECK(first.steps == request.steps && first.frames == 0 && !(first.phases & decode));
    SL_CHECK(memcmp(result.phase_activation_bytes, latent.phase_activation_bytes,
                    sizeof result.phase_activation_bytes) == 0);

    request.part = SL_PART_DECODE;
    SL_CHECK_OK(sl_t2v_plan_make(&rest, &request, &small, SL_DEVICE_CPU, err));
    SL_CHECK(phases_of(&rest) == decode && rest.weight_bytes[SL_COMPONENT_DIT] == 0);
    double *state = first.states[request.steps - 1];
    for (int64_t i = 0; i < sl_t2v_latent_shape(&request, &small, NULL); i++)
        state[i] = (double)(float)state[i];
    second.frame_bytes = want.frame_bytes;
    net_test_reset(&f.net);
    SL_CHECK_OK(sl_t2v_resume(f.net.exec, &f.net.scratch, &vae_only, &small, &request, NULL, NULL,
                              request.steps, state, &events, &result, err));
    SL_CHECK(second.frames == want.frames && second.phases == decode);
    SL_CHECK(memcmp(second.rgb, want.rgb, want.frame_bytes * (size_t)want.frames) == 0);
    SL_CHECK(memcmp(result.phase_activation_bytes, rest.phase_activation_bytes,
                    sizeof result.phase_activation_bytes) == 0);
    SL_CHECK_STATUS(run(&f, &request, NULL, &second, NULL, err), SL_ERR_INVALID);
    request.part = SL_PART_COUNT;
    SL_CHECK_STATUS(sl_t2v_request_check(&request, &small, err), SL_ERR_INVALID);
    close_fixture(&f);
    free_record(&want);
    free_record(&first);
    free_record(&second);
}

/* ---- streaming ---- */

/* Three blocks: a walk does not begin in the slot where the one before did. */
static sl_arch three_blocks(void)
{
    sl_arch arch = small;

    arch.dit.num_layers = 3;
    arch.t5.num_layers = 1;
    return arch;
}

SL_TEST(streamed_runs_give_the_same_bytes)
{
    static const unsigned sets[] = { SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER),
                                     SL_COMPONENT_BIT(SL_COMPONENT_DIT),
                                     SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER) |
                                         SL_COMPONENT_BIT(SL_COMPONENT_DIT) };
    const sl_arch archs[] = { small, three_blocks() };

    for (size_t a = 0; a < SL_COUNT(archs) * SMALL_PRECISIONS; a++) {
        const sl_arch *arch = &archs[a / SMALL_PRECISIONS];
        sl_t2v_request request = sl_t2v_request_default(arch);
        record want = { .rgb = NULL };
        fixture f;

        request.precision = (sl_precision)(a % SMALL_PRECISIONS);
        open_fixture(&f, arch, request.precision);
        SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
        close_fixture(&f);
        for (size_t i = 0; i < SL_COUNT(sets); i++) {
            sl_t2v_plan plan;
            sl_t2v_result result;

            request.streamed = sets[i];
            SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, arch, SL_DEVICE_CPU, err));
            open_fixture_streamed(&f, arch, request.precision, sets[i]);
            for (int again = 0; again < 2; again++) {
                record got = { .rgb = NULL };

                SL_CHECK_OK(run(&f, &request, NULL, &got, &result, err));
                SL_CHECK(got.frames == want.frames);
                SL_CHECK(memcmp(got.rgb, want.rgb, want.frame_bytes * (size_t)want.frames) == 0);
                SL_CHECK(memcmp(result.phase_activation_bytes, plan.phase_activation_bytes,
                                sizeof result.phase_activation_bytes) == 0);
                free_record(&got);
            }
            for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
                SL_CHECK(plan.weight_bytes[kind] ==
                         (f.parts[kind] ? sl_component_mapped_bytes(f.parts[kind]) : 0));
            close_fixture(&f);
        }
        free_record(&want);
    }
}

/* A run that ends amid the blocks leaves nothing behind that the next one sees. */
SL_TEST(a_cancelled_streamed_run_can_be_repeated)
{
    const sl_arch arch = three_blocks();
    sl_t2v_request request = sl_t2v_request_default(&arch);
    record want = { .rgb = NULL }, cut = { .rgb = NULL }, got = { .rgb = NULL };
    fixture f;

    request.streamed = SL_COMPONENT_BIT(SL_COMPONENT_DIT);
    open_fixture_streamed(&f, &arch, request.precision, request.streamed);
    SL_CHECK_OK(run(&f, &request, NULL, &want, NULL, err));
    cut.cancel = &f.net.cancel;
    SL_CHECK_STATUS(run(&f, &request, NULL, &cut, NULL, err), SL_ERR_CANCELLED);
    SL_CHECK(cut.steps == 1);
    atomic_store(&f.net.cancel, 0);
    SL_CHECK_OK(run(&f, &request, NULL, &got, NULL, err));
    SL_CHECK(memcmp(got.rgb, want.rgb, want.frame_bytes * (size_t)want.frames) == 0);
    free_record(&want);
    free_record(&cut);
    free_record(&got);
    close_fixture(&f);
}

typedef struct {
    fixture f;
    const sl_t2v_request *request;
    record record;
    sl_status status;
    pthread_t thread;
} lane;

static void *lane_main(void *arg)
{
    lane *l = arg;
    sl_error error = { .status = SL_OK };

    l->status = run(&l->f, l->request, NULL, &l->record, NULL, &error);
    return NULL;
}

/* Two jobs on the same components, each on an exec of its own. */
SL_TEST(streamed_components_serve_two_lanes)
{
    const sl_arch arch = three_blocks();
    sl_t2v_request requests[2] = { sl_t2v_request_default(&arch), sl_t2v_request_default(&arch) };
    lane lanes[2] = { { .request = &requests[0] }, { .request = &requests[1] } };
    record want[2] = { { .rgb = NULL }, { .rgb = NULL } };
    fixture f;

    requests[1].seed = 7;
    requests[0].streamed = requests[1].streamed =
        SL_COMPONENT_BIT(SL_COMPONENT_DIT) | SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER);
    open_fixture_streamed(&f, &arch, SL_PRECISION_BF16, requests[0].streamed);
    for (int i = 0; i < 2; i++) {
        SL_CHECK_OK(run(&f, &requests[i], NULL, &want[i], NULL, err));
        lanes[i].f = f; /* the components of f on a device of its own */
        net_test_open(&lanes[i].f.net);
    }
    for (int i = 0; i < 2; i++)
        SL_CHECK(pthread_create(&lanes[i].thread, NULL, lane_main, &lanes[i]) == 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(lanes[i].thread, NULL);
        SL_CHECK(lanes[i].status == SL_OK);
        SL_CHECK(memcmp(lanes[i].record.rgb, want[i].rgb,
                        want[i].frame_bytes * (size_t)want[i].frames) == 0);
    }
    for (int i = 0; i < 2; i++) {
        net_test_close(&lanes[i].f.net);
        free_record(&lanes[i].record);
        free_record(&want[i]);
    }
    close_fixture(&f);
}

SL_TEST(modes_are_checked)
{
    sl_t2v_request request = sl_t2v_request_default(&small);
    record r = { .rgb = NULL };
    fixture f;

    open_fixture(&f, &small, SL_PRECISION_BF16);
    request.streamed = SL_COMPONENT_BIT(SL_COMPONENT_DIT);
    SL_CHECK_STATUS(run(&f, &request, NULL, &r, NULL, err), SL_ERR_INVALID);
    SL_CHECK(strcmp(err->message, "dit is resident: the request was planned with it streamed") ==
             0);
    request.streamed = SL_COMPONENT_BIT(SL_COMPONENT_VAE);
    SL_CHECK_STATUS(sl_t2v_request_check(&request, &small, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "vae cannot be streamed"));
    request.streamed = SL_COMPONENT_BIT(SL_COMPONENT_DIT_LOW);
    SL_CHECK_STATUS(sl_t2v_request_check(&request, &small, err), SL_ERR_INVALID);
    request.streamed = 1u << 20;
    SL_CHECK_STATUS(sl_t2v_request_check(&request, &small, err), SL_ERR_INVALID);
    SL_CHECK(r.phases == 0);
    free_record(&r);
    close_fixture(&f);
}

/* ---- plans ---- */

SL_TEST(plan_by_phase)
{
    const sl_arch *arch = sl_arch_find("wan2.1-t2v-14b");
    sl_t2v_request request = sl_t2v_request_default(arch);
    sl_t2v_plan resident, streamed;

    SL_CHECK_OK(sl_t2v_plan_make(&resident, &request, arch, SL_DEVICE_CPU, err));
    request.streamed =
        SL_COMPONENT_BIT(SL_COMPONENT_DIT) | SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER);
    SL_CHECK_OK(sl_t2v_plan_make(&streamed, &request, arch, SL_DEVICE_CPU, err));

    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        size_t most = 0;

        for (int later = phase; later < SL_PHASE_COUNT; later++)
            if (resident.phase_activation_bytes[later] > most)
                most = resident.phase_activation_bytes[later];
        SL_CHECK(resident.remaining_bytes[phase] == sl_granules(most));
        SL_CHECK(streamed.phase_components[phase] == resident.phase_components[phase]);
    }
    SL_CHECK(resident.phase_components[SL_PHASE_ENCODE_TEXT] ==
             SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER));
    SL_CHECK(resident.phase_components[SL_PHASE_DENOISE] == SL_COMPONENT_BIT(SL_COMPONENT_DIT));
    SL_CHECK(resident.phase_components[SL_PHASE_DECODE] == SL_COMPONENT_BIT(SL_COMPONENT_VAE));

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        SL_CHECK(sl_granules(resident.image_bytes[kind]) == resident.weight_bytes[kind]);
        SL_CHECK(resident.image_bytes[kind] == streamed.image_bytes[kind]);
        SL_CHECK(resident.pass_bytes[kind] == 0);
    }
    /* 40 blocks of 0.7 GB and 24 of 0.4: two of each, and what is no block */
    SL_CHECK(streamed.weight_bytes[SL_COMPONENT_DIT] <
             resident.weight_bytes[SL_COMPONENT_DIT] / 10);
    SL_CHECK(streamed.weight_bytes[SL_COMPONENT_TEXT_ENCODER] <
             resident.weight_bytes[SL_COMPONENT_TEXT_ENCODER] / 13);
    SL_CHECK(streamed.weight_bytes[SL_COMPONENT_VAE] == resident.weight_bytes[SL_COMPONENT_VAE]);
    SL_CHECK(streamed.pass_bytes[SL_COMPONENT_DIT] < streamed.image_bytes[SL_COMPONENT_DIT]);
    SL_CHECK(streamed.pass_bytes[SL_COMPONENT_DIT] >
             streamed.image_bytes[SL_COMPONENT_DIT] / 100 * 97);
    SL_CHECK(streamed.total_bytes < resident.total_bytes);
}

SL_TEST(estimate_of_streaming)
{
    sl_t2v_plan plan = {
        .phase_components = { [SL_PHASE_ENCODE_TEXT] = SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER),
                              [SL_PHASE_DENOISE] = SL_COMPONENT_BIT(SL_COMPONENT_DIT),
                              [SL_PHASE_DECODE] = SL_COMPONENT_BIT(SL_COMPONENT_VAE) },
        .phase_steps = { [SL_PHASE_DENOISE] = 4 },
    };
    const sl_t2v_speed speed = { .copy_bytes_per_s = 10.0,
                                 .phase_s = { [SL_PHASE_ENCODE_TEXT] = 1.0,
                                              [SL_PHASE_DENOISE] = 40.0,
                                              [SL_PHASE_DECODE] = 5.0 } };
    sl_t2v_estimate e = sl_t2v_estimate_run(&plan, &speed);

    SL_CHECK(e.resident_s == 46.0 && e.streamed_s == 46.0);
    plan.pass_bytes[SL_COMPONENT_DIT] = 50; /* 5 s, behind 10 s of compute */
    e = sl_t2v_estimate_run(&plan, &speed);
    SL_CHECK(e.resident_s == 46.0 && e.streamed_s == 51.0);
    plan.pass_bytes[SL_COMPONENT_DIT] = 200; /* 20 s a pass, five of them */
    plan.pass_bytes[SL_COMPONENT_TEXT_ENCODER] = 30;
    e = sl_t2v_estimate_run(&plan, &speed);
    SL_CHECK(e.resident_s == 46.0 && e.streamed_s == 3.0 + 100.0 + 5.0);
}

SL_TEST_MAIN(SL_RUN(plan_is_what_a_run_uses), SL_RUN(plan_is_tight),
             SL_RUN(equal_requests_give_equal_bytes), SL_RUN(imported_noise_replaces_the_generator),
             SL_RUN(callbacks_and_cancel_end_a_run), SL_RUN(broken_numbers_name_step_and_stage),
             SL_RUN(requests_are_checked), SL_RUN(published_models_can_be_planned),
             SL_RUN(decoding_longer_videos_takes_no_more), SL_RUN(parts_make_the_whole),
             SL_RUN(streamed_runs_give_the_same_bytes),
             SL_RUN(a_cancelled_streamed_run_can_be_repeated),
             SL_RUN(streamed_components_serve_two_lanes), SL_RUN(modes_are_checked),
             SL_RUN(plan_by_phase), SL_RUN(estimate_of_streaming))
