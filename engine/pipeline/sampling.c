#include "engine/pipeline/sampling.h"

sl_status sl_sampling_make(sl_sampling *out, const sl_t2v_request *request, sl_error *err)
{
    out->is_unipc = request->mode == SL_SAMPLER_UNIPC;
    out->step_count = request->steps;
    return out->is_unipc ? sl_unipc_schedule_make(&out->unipc, request->steps, request->shift, err)
                         : sl_rcm_schedule_make(&out->rcm, request->steps, request->sigma_max, err);
}

double sl_sampling_timestep(const sl_sampling *sampling, int i)
{
    SL_ASSERT(i >= 0 && i < sampling->step_count);
    return sampling->is_unipc ? sampling->unipc.timestep[i] : sampling->rcm.timestep[i];
}

int sl_sampling_low_from(const sl_sampling *sampling, const sl_t2v_request *request)
{
    int i = 0;

    if (!sampling->is_unipc)
        return sl_rcm_low_from(&sampling->rcm, request->sigma_max, request->boundary);
    while (i < sampling->step_count && sampling->unipc.timestep[i] >= 1000.0 * request->boundary)
        i++;
    return i;
}

int64_t sl_sampling_states(sl_sampler_mode mode)
{
    return mode == SL_SAMPLER_UNIPC ? SL_UNIPC_STATES : 1;
}

double sl_sampling_guidance(const sl_t2v_request *request, sl_component_kind expert)
{
    if (request->mode != SL_SAMPLER_UNIPC)
        return 1.0;
    return expert == SL_COMPONENT_DIT_LOW ? request->guidance_low : request->guidance;
}

bool sl_sampling_is_guided(const sl_t2v_request *request, int expert_count)
{
    return sl_sampling_guidance(request, SL_COMPONENT_DIT) != 1.0 ||
           (expert_count == 2 && sl_sampling_guidance(request, SL_COMPONENT_DIT_LOW) != 1.0);
}
