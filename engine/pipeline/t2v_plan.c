/* t2v_plan.c - what a run will take: memory by counting, time by estimate. */
#include "engine/pipeline/t2v_walk.h"

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
    plan->output_frame_bytes = sl_t2v_chunk_rgb_bytes(&arch->vae, request->frames > 1 ? 2 : 1,
                                                      request->height / SL_LATENT_PIXELS,
                                                      request->width / SL_LATENT_PIXELS);
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
