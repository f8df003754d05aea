/* convert.c - the service's structs as the messages of sluice.proto. */
#include "service/service_state.h"

#include <stdio.h>
#include <string.h>

Sluice__V1__Component sl_component_to_pb(sl_component_kind kind)
{
    return (Sluice__V1__Component)((int)kind + SLUICE__V1__COMPONENT__TEXT_ENCODER);
}

Sluice__V1__ComponentBytes *sl_component_bytes_to_pb(const sl_core_component *component,
                                                     sl_arena *arena)
{
    Sluice__V1__ComponentBytes *pb =
        sl_rpc_new(arena, &sluice__v1__component_bytes__descriptor);

    if (!pb || !(pb->model = sl_arena_strdup(arena, component->key.model)))
        return NULL;
    pb->component = sl_component_to_pb(component->key.component);
    pb->precision = sl_precision_to_pb(component->key.precision);
    pb->planned_bytes = component->size_bytes;
    pb->measured_bytes = component->measured_bytes;
    pb->pinned = component->pinned;
    pb->users = (uint32_t)component->users;
    pb->streamed = component->key.mode == SL_MODE_STREAMED;
    if (component->state == SL_CORE_READY)
        pb->residency = SLUICE__V1__RESIDENCY__DEVICE;
    else if (component->host_state == SL_CORE_HOST_READY)
        pb->residency = SLUICE__V1__RESIDENCY__HOST;
    if (component->host_state == SL_CORE_HOST_READY)
        pb->host_bytes = component->host_bytes;
    return pb;
}

/* --- plans --- */

static Sluice__V1__PhaseBytes *phase_to_pb(const sl_job_spec *spec, sl_phase phase,
                                           sl_arena *arena)
{
    Sluice__V1__PhaseBytes *pb = sl_rpc_new(arena, &sluice__v1__phase_bytes__descriptor);

    if (!pb)
        return NULL;
    pb->phase = (char *)sl_phase_name(phase);
    pb->activation_bytes = spec->plan.phase_activation_bytes[phase];
    pb->components = sl_arena_alloc(arena, SL_COMPONENT_COUNT * sizeof *pb->components);
    if (!pb->components)
        return NULL;
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (spec->plan.phase_components[phase] & SL_COMPONENT_BIT(kind)) {
            pb->components[pb->n_components++] = sl_component_to_pb((sl_component_kind)kind);
            pb->weight_bytes += spec->plan.weight_bytes[kind];
        }
    }
    return pb;
}

static bool add_needs(Sluice__V1__Plan *pb, const sl_job_spec *spec, sl_arena *arena)
{
    pb->components = sl_arena_alloc(arena, SL_COMPONENT_COUNT * sizeof(void *));
    pb->streamed = sl_arena_alloc(arena, SL_COMPONENT_COUNT * sizeof *pb->streamed);
    if (!pb->components || !pb->streamed)
        return false;
    for (int i = 0; i < spec->core.need_count; i++) {
        const sl_core_need *need = &spec->core.needs[i];
        const sl_core_component c = { .key = need->key, .size_bytes = need->size_bytes };
        pb->components[pb->n_components] = sl_component_bytes_to_pb(&c, arena);
        if (!pb->components[pb->n_components])
            return false;
        if (need->key.mode == SL_MODE_STREAMED) {
            pb->components[pb->n_components]->host_bytes = need->host_bytes;
            pb->streamed[pb->n_streamed++] = pb->components[pb->n_components]->component;
        }
        pb->n_components++;
        pb->weight_bytes += c.size_bytes;
    }
    return true;
}

static bool add_evictions(Sluice__V1__Plan *pb, const sl_core_answer *answer, sl_arena *arena)
{
    char text[256];

    pb->would_evict = sl_arena_alloc(arena, SL_CORE_MAX_HOLDINGS * sizeof(char *));
    if (!pb->would_evict)
        return false;
    for (int i = 0; i < answer->evict_count; i++) {
        char *copy = sl_arena_strdup(arena, sl_core_key_text(&answer->evict[i], text, sizeof text));
        if (!copy)
            return false;
        pb->would_evict[pb->n_would_evict++] = copy;
    }
    return true;
}

Sluice__V1__Plan *sl_plan_to_pb(const sl_job_spec *spec, size_t workspace_bytes,
                                size_t device_bytes, const char *table_row,
                                const sl_core_answer *answer, sl_arena *arena)
{
    Sluice__V1__Plan *pb = sl_rpc_new(arena, &sluice__v1__plan__descriptor);

    if (!pb)
        return NULL;
    pb->model = sl_arena_strdup(arena, spec->model);
    pb->table_row = sl_arena_strdup(arena, table_row);
    pb->phases = sl_arena_alloc(arena, SL_PHASE_COUNT * sizeof(void *));
    if (!pb->model || !pb->table_row || !pb->phases || !add_needs(pb, spec, arena)
        || (answer && !add_evictions(pb, answer, arena)))
        return NULL;
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        if (spec->plan.phase_components[phase] == 0)
            continue;
        pb->phases[pb->n_phases] = phase_to_pb(spec, (sl_phase)phase, arena);
        if (!pb->phases[pb->n_phases++])
            return NULL;
    }
    pb->precision = sl_precision_to_pb(spec->request.precision);
    pb->activation_bytes = spec->plan.activation_bytes;
    pb->workspace_bytes = workspace_bytes;
    pb->peak_bytes = spec->way.peak_bytes + pb->workspace_bytes;
    pb->device_bytes = device_bytes;
    pb->slowdown = spec->way.slowdown;
    pb->host_bytes = spec->way.host_bytes;
    pb->by_phase = spec->way.by_phase;
    if (answer && answer->estimate.measured)
        pb->estimate_ns = answer->estimate.run_ns;
    return pb;
}

/* --- refusals --- */

Sluice__V1__Refusal *sl_answer_to_pb(const sl_core_answer *answer, sl_arena *arena)
{
    Sluice__V1__Refusal *pb = sl_rpc_new(arena, &sluice__v1__refusal__descriptor);

    if (!pb)
        return NULL;
    pb->when = answer->when == SL_CORE_NEVER ? SLUICE__V1__REFUSAL__WHEN__NEVER
                                             : SLUICE__V1__REFUSAL__WHEN__AFTER;
    pb->need_bytes = answer->need_bytes;
    pb->have_bytes = answer->have_bytes;
    if (answer->when == SL_CORE_LATE)
        pb->estimate_ns =
            answer->estimate.queue_ns + answer->estimate.load_ns + answer->estimate.run_ns;
    pb->after = sl_arena_strdup(arena, answer->after);
    pb->table_row = sl_arena_strdup(arena, answer->row);
    pb->table_rule = sl_arena_strdup(arena, answer->rule);
    pb->held_by = sl_arena_alloc(arena, SL_CORE_MAX_HOLDINGS * sizeof(void *));
    if (!pb->after || !pb->table_row || !pb->table_rule || !pb->held_by)
        return NULL;
    for (int i = 0; i < answer->held_count; i++) {
        Sluice__V1__Holding *holding = sl_rpc_new(arena, &sluice__v1__holding__descriptor);
        if (!holding || !(holding->what = sl_arena_strdup(arena, answer->held[i].what)))
            return NULL;
        holding->size_bytes = answer->held[i].size_bytes;
        pb->held_by[pb->n_held_by++] = holding;
    }
    return pb;
}

Sluice__V1__Receipt *sl_receipt_to_pb(const sl_core_receipt *receipt, sl_arena *arena)
{
    Sluice__V1__Receipt *pb = sl_rpc_new(arena, &sluice__v1__receipt__descriptor);

    if (!pb)
        return NULL;
    pb->components = sl_arena_alloc(arena, SL_CORE_MAX_KEYS * sizeof(void *));
    if (!pb->components)
        return NULL;
    for (int i = 0; i < receipt->line_count; i++) {
        const sl_core_component c = { .key = receipt->lines[i].key,
                                      .size_bytes = receipt->lines[i].planned_bytes,
                                      .measured_bytes = receipt->lines[i].measured_bytes };
        pb->components[pb->n_components] = sl_component_bytes_to_pb(&c, arena);
        if (!pb->components[pb->n_components++])
            return NULL;
    }
    pb->device_before_bytes = receipt->before_bytes;
    pb->device_after_bytes = receipt->after_bytes;
    pb->free_before_bytes = receipt->limit_bytes - receipt->before_bytes;
    pb->free_after_bytes = receipt->limit_bytes - receipt->after_bytes;
    pb->peak_bytes = receipt->peak_bytes;
    pb->residue_bytes = receipt->residue_bytes;
    pb->duration_ns = receipt->duration_ns;
    return pb;
}

/* --- jobs --- */

Sluice__V1__GenerateRequest *sl_request_to_pb(const sl_job *job, sl_arena *arena)
{
    const sl_t2v_request *request = &job->spec.request;
    Sluice__V1__GenerateRequest *pb =
        sl_rpc_new(arena, &sluice__v1__generate_request__descriptor);

    if (!pb)
        return NULL;
    pb->request_id = sl_arena_strdup(arena, job->request_id);
    pb->model = sl_arena_strdup(arena, job->spec.model);
    if (!pb->request_id || !pb->model)
        return NULL;
    sl_request_write(pb, request, &job->spec.arch);
    pb->output = sl_format_to_pb(job->spec.format);
    pb->latent_of = (char *)job->spec.latent_of;
    pb->preview = job->spec.preview;
    pb->priority = job->spec.core.priority;
    pb->deadline_ns = job->spec.deadline_ns;
    pb->streaming = job->spec.streaming == SL_STREAMING_ON    ? SLUICE__V1__STREAMING__ON
                    : job->spec.streaming == SL_STREAMING_OFF ? SLUICE__V1__STREAMING__OFF
                                                              : SLUICE__V1__STREAMING__AUTO;
    return pb;
}

static Sluice__V1__Refusal *waiting_to_pb(sl_service *s, const sl_job *job, sl_arena *arena)
{
    sl_core_answer *answer = sl_arena_alloc(arena, sizeof *answer);
    sl_error ignored = { .status = SL_OK };

    if (!answer || sl_core_waiting_for(s->core, job->job_id, answer, &ignored) != SL_OK
        || answer->when == SL_CORE_NOW)
        return NULL;
    return sl_answer_to_pb(answer, arena);
}

Sluice__V1__Job *sl_job_to_pb(sl_service *s, const sl_job *job, sl_arena *arena)
{
    Sluice__V1__Job *pb = sl_rpc_new(arena, &sluice__v1__job__descriptor);

    if (!pb)
        return NULL;
    pb->job_id = sl_arena_strdup(arena, job->job_id);
    pb->request_id = sl_arena_strdup(arena, job->request_id);
    pb->model = sl_arena_strdup(arena, job->spec.model);
    pb->owner = sl_arena_strdup(arena, job->owner);
    pb->message = sl_arena_strdup(arena, job->message);
    pb->output_sha256 = sl_arena_strdup(arena, job->output_sha256);
    pb->plan = sl_plan_to_pb(&job->spec, job->workspace_bytes, s->config.device.limit_bytes,
                             job->table_row, NULL, arena);
    pb->request = sl_request_to_pb(job, arena);
    if (!pb->job_id || !pb->request_id || !pb->model || !pb->owner || !pb->message
        || !pb->output_sha256 || !pb->plan || !pb->request)
        return NULL;
    pb->plan->estimate_ns = job->estimate_ns;
    pb->state = job->state;
    pb->step = job->step;
    pb->step_count = job->step_count;
    pb->position = job->position;
    pb->submitted_ns = job->submitted_ns;
    pb->started_ns = job->started_ns;
    pb->ended_ns = job->ended_ns;
    pb->code = sl_status_grpc_code(job->status);
    pb->planned_peak_bytes = sl_job_planned_peak_bytes(job);
    pb->measured_peak_bytes = job->measured_peak_bytes;
    pb->output_size_bytes = job->output_size_bytes;
    pb->output = sl_format_to_pb(job->spec.format);
    pb->attempt = job->attempt;
    pb->resumed_from_step = job->resumed_from_step;
    pb->run_ns = job->run_ns;
    if (job->state == SLUICE__V1__JOB_STATE__QUEUED) {
        pb->waiting_for = waiting_to_pb(s, job, arena);
        pb->estimated_start_ns = job->estimated_start_ns;
    }
    return pb;
}
