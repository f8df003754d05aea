/* sampling.h - the sampler of a request: its times and the form of its state.
 *
 * Private to engine/pipeline.
 */
#ifndef SL_ENGINE_PIPELINE_SAMPLING_H
#define SL_ENGINE_PIPELINE_SAMPLING_H

#include "engine/pipeline/schedule.h"
#include "engine/pipeline/t2v.h"
#include "engine/pipeline/unipc.h"

typedef struct {
    bool is_unipc;
    int step_count;
    sl_rcm_schedule rcm;
    sl_unipc_schedule unipc;
} sl_sampling;

/* Steps, shift or sigma_max out of range: SL_ERR_INVALID. */
sl_status sl_sampling_make(sl_sampling *out, const sl_t2v_request *request,
                           sl_error *err) SL_MUST_CHECK;
/* What the network is given as t in step i. */
double sl_sampling_timestep(const sl_sampling *sampling, int i);
/* The first step of the low-noise expert; step_count: none. */
int sl_sampling_low_from(const sl_sampling *sampling, const sl_t2v_request *request);
/* Latents in the state: the sample is the first, the sampler's memory the others. */
int64_t sl_sampling_states(sl_sampler_mode mode);

/* Whether steps evaluate the negative prompt too, by any expert of a model with so
 * many; and with how much guidance an expert does (1: without). */
bool sl_sampling_is_guided(const sl_t2v_request *request, int expert_count);
double sl_sampling_guidance(const sl_t2v_request *request, sl_component_kind expert);

#endif
