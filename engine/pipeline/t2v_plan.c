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

static sl_status plan_component(sl_t2v_plan *plan, sl_component **out,
                                const sl_t2v_request *request, const sl_arch *arch,
                                sl_component_kind kind, sl_error *err)
{
    sl_component_spec spec = sl_component_spec_of(arch, kind, request->precision);

    if (request->streamed & SL_COMPONENT_BIT(kind))
        spec.mode = SL_MODE_STREAMED;
    plan->weight_bytes[kind] = sl_component_plan_bytes(&spec);
    plan->image_bytes[kind] = sl_component_image_bytes(&spec);
    plan->pass_bytes[kind] = sl_component_pass_bytes(&spec);
    return sl_component_create_counting(out, &spec, err);
}

sl_status sl_t2v_plan_make(sl_t2v_plan *out, const sl_t2v_request *request, const sl_arch *arch,
                           sl_device_kind kind, sl_error *err)
{
    const sl_numerics numerics = sl_t2v_numerics(request, kind);
    sl_component *parts[SL_COMPONENT_COUNT] = { NULL };
    sl_t2v_plan plan = { .weight_bytes = { 0 } };
    unsigned needed = 0;
    sl_exec *exec = NULL;
    sl_status status = SL_OK;
    sl_t2v_phases phases;
    sl_scratch scratch;
    sl_t2v_result counted;

    SL_TRY(sl_t2v_request_check(request, arch, err));
    SL_TRY(sl_t2v_phases_make(&phases, request, arch->task == SL_TASK_I2V, arch->expert_count,
                              request->part == SL_PART_DECODE ? request->steps : 0, err));
    SL_TRY(sl_exec_create_counting(&exec, &numerics, err));
    sl_scratch_init_counting(&scratch);
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        plan.phase_components[phase] = phases.components[phase];
        plan.phase_steps[phase] = phases.steps[phase];
        needed |= phases.components[phase];
    }
    for (int i = 0; i < SL_COMPONENT_COUNT; i++)
        if (needed & SL_COMPONENT_BIT(i))
            SL_TRY(plan_component(&plan, &parts[i], request, arch, (sl_component_kind)i, err));
    const sl_t2v_components components = { .text_encoder = parts[SL_COMPONENT_TEXT_ENCODER],
                                           .dit = parts[SL_COMPONENT_DIT],
                                           .dit_high = parts[SL_COMPONENT_DIT_HIGH],
                                           .dit_low = parts[SL_COMPONENT_DIT_LOW],
                                           .vae = parts[SL_COMPONENT_VAE] };
    SL_TRY(sl_t2v_run(exec, &scratch, &components, arch, request, NULL, NULL, NULL, &counted, err));
    sum_up(&plan, request, arch, &counted);
    *out = plan;
done:
    for (int i = 0; i < SL_COMPONENT_COUNT; i++)
        sl_component_destroy(parts[i]);
    sl_exec_destroy(exec);
    return status;
}

static double longer(double a, double b)
{
    return a > b ? a : b;
}

/* One walk through each network for the text or the preparation of its steps,
 * and one for each step. */
static double streamed_phase_s(const sl_t2v_plan *plan, int phase, double compute_s, double rate)
{
    const int steps = plan->phase_steps[phase];
    double pass_s = 0.0;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (plan->phase_components[phase] & SL_COMPONENT_BIT(kind))
            pass_s += (double)plan->pass_bytes[kind] / rate;
    return steps > 0 ? pass_s + steps * longer(compute_s / steps, pass_s)
                     : longer(compute_s, pass_s);
}

sl_t2v_estimate sl_t2v_estimate_run(const sl_t2v_plan *plan, const sl_t2v_speed *speed)
{
    sl_t2v_estimate estimate = { .resident_s = 0.0 };

    SL_ASSERT(speed->copy_bytes_per_s > 0.0);
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        estimate.resident_s += speed->phase_s[phase];
        estimate.streamed_s +=
            streamed_phase_s(plan, phase, speed->phase_s[phase], speed->copy_bytes_per_s);
    }
    return estimate;
}
