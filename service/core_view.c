/* What the core knows, for ledgers, answers and people. */
#include "service/core_state.h"

#include <string.h>

void sl_core_get_ledger(const sl_core *core, size_t measured_mapped_bytes, sl_core_ledger *out)
{
    const job *active = core->active;
    size_t promised = 0;

    *out = (sl_core_ledger){ .worker_up = core->up, .limit_bytes = core->config.limit_bytes };
    for (const node *n = core->nodes; n; n = n->next) {
        if (n->state == SL_CORE_READY || n->state == SL_CORE_UNLOADING)
            out->weights_bytes += n->size_bytes;
        else
            promised += n->size_bytes;
    }
    if (active && active->started)
        out->activations_bytes = active->spec.activation_bytes;
    else if (active)
        promised += active->spec.activation_bytes;
    if (core->up)
        out->workspace_bytes = core->config.workspace_bytes;
    else
        promised += core->config.workspace_bytes;

    const size_t mapped = out->workspace_bytes + out->weights_bytes + out->activations_bytes;
    const size_t measured = core->up ? measured_mapped_bytes : mapped;
    out->unexplained_bytes = (int64_t)measured - (int64_t)mapped;
    const size_t rest = out->limit_bytes > measured ? out->limit_bytes - measured : 0;
    out->reserved_bytes = promised < rest ? promised : rest;
    out->free_bytes = rest - out->reserved_bytes;
}

int sl_core_component_count(const sl_core *core)
{
    int count = 0;

    for (const node *n = core->nodes; n; n = n->next)
        count++;
    return count;
}

void sl_core_get_component(const sl_core *core, int i, sl_core_component *out)
{
    const node *n = core->nodes;

    while (n && i-- > 0)
        n = n->next;
    SL_ASSERT(n != NULL);
    *out = (sl_core_component){
        .key = n->key,
        .size_bytes = n->size_bytes,
        .measured_bytes = n->measured_bytes,
        .pinned = n->pinned,
        .users = sl_core_in_use(core, n),
        .state = n->state,
    };
}

void sl_core_get_active(const sl_core *core, sl_core_active *out)
{
    const job *j = core->active;

    *out = (sl_core_active){ 0 };
    if (!j)
        return;
    memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
    out->started = j->started;
    out->activation_bytes = j->spec.activation_bytes;
    out->attempt = j->attempt;
}

int sl_core_queued_count(const sl_core *core)
{
    return core->queued_count;
}

int sl_core_position(const sl_core *core, const char *job_id)
{
    int ahead;

    if (sl_core_is_active(core, job_id))
        return 0;
    return sl_core_find_queued(core, job_id, &ahead) ? ahead + 1 : -1;
}

sl_status sl_core_waiting_for(const sl_core *core, const char *job_id, sl_core_answer *answer,
                              sl_error *err)
{
    int ahead;
    const job *j = sl_core_find_queued(core, job_id, &ahead);

    if (!j)
        return sl_fail(err, SL_ERR_NOT_FOUND, "no job \"%s\" is queued", job_id);
    const demand d = sl_core_demand_of(&j->spec);
    sl_core_answer_demand(core, &d, ahead, answer);
    return SL_OK;
}
