/* What the core knows, for ledgers, answers and people. */
#include "service/core_state.h"

#include <string.h>

void sl_core_get_ledger(const sl_core *core, size_t measured_mapped_bytes, sl_core_ledger *out)
{
    size_t kept = 0; /* mapped, and stays */

    *out = (sl_core_ledger){ .worker_up = core->up, .limit_bytes = core->config.limit_bytes };
    for (const node *n = core->nodes; n; n = n->next) {
        if (n->state == SL_CORE_READY || n->state == SL_CORE_UNLOADING)
            out->weights_bytes += n->size_bytes;
        if (n->state == SL_CORE_READY && !n->evict)
            kept += n->size_bytes;
    }
    for (const job *j = core->active; j; j = j->next)
        out->activations_bytes += j->told_bytes;
    if (core->up)
        out->workspace_bytes = core->config.workspace_bytes;
    out->booked_bytes = sl_core_booked(core);
    const size_t promised =
        out->booked_bytes - kept - out->activations_bytes - out->workspace_bytes;

    const size_t mapped = out->workspace_bytes + out->weights_bytes + out->activations_bytes;
    const size_t measured = core->up ? measured_mapped_bytes : mapped;
    out->unexplained_bytes = (int64_t)measured - (int64_t)mapped;
    const size_t rest = out->limit_bytes > measured ? out->limit_bytes - measured : 0;
    out->reserved_bytes = promised < rest ? promised : rest;
    out->free_bytes = rest - out->reserved_bytes;

    out->host_used_bytes = sl_core_host_used(core);
    out->host_booked_bytes = sl_core_host_booked(core);
    out->host_limit_bytes = core->config.host_limit_bytes;
    if (out->host_limit_bytes < out->host_used_bytes)
        out->host_limit_bytes = out->host_used_bytes;
}

static const node *node_at(const sl_core *core, int i)
{
    const node *n = core->nodes;

    while (n && i-- > 0)
        n = n->next;
    return n;
}

/* The image that belongs to a component on the device; of two, the later. */
static const image *image_of(const sl_core *core, const sl_core_key *key)
{
    const image *found = NULL;

    for (const image *im = core->images; im; im = im->next)
        if (sl_core_same_image(&im->key, key))
            found = im;
    return found;
}

/* Shown with a component on the device. */
static bool has_node(const sl_core *core, const image *im)
{
    for (const node *n = core->nodes; n; n = n->next)
        if (sl_core_same_image(&n->key, &im->key))
            return image_of(core, &im->key) == im;
    return false;
}

int sl_core_component_count(const sl_core *core)
{
    int count = 0;

    for (const node *n = core->nodes; n; n = n->next)
        count++;
    for (const image *im = core->images; im; im = im->next)
        count += !has_node(core, im);
    return count;
}

static int count_users(const sl_core *core, const sl_core_key *key)
{
    int count = 0;

    for (const job *j = core->active; j; j = j->next) {
        const demand now = sl_core_demand_now(j);
        count += sl_core_demand_has(&now, key);
    }
    return count;
}

static void fill_image(sl_core_component *out, const image *im)
{
    if (!im)
        return;
    out->host_state = im->state;
    out->host_bytes = im->size_bytes;
    out->host_pinned = im->pinned;
}

/* The first of those that share an image shows it. */
static bool is_first(const sl_core *core, const node *n)
{
    const node *at = core->nodes;

    while (!sl_core_same_image(&at->key, &n->key))
        at = at->next;
    return at == n;
}

void sl_core_get_component(const sl_core *core, int i, sl_core_component *out)
{
    const node *n = node_at(core, i);
    const image *im = core->images;

    if (n) {
        *out = (sl_core_component){
            .key = n->key,
            .size_bytes = n->size_bytes,
            .measured_bytes = n->measured_bytes,
            .pinned = n->pinned,
            .users = n->evict ? 0 : count_users(core, &n->key),
            .state = n->state,
            .evicting = n->evict,
        };
        if (is_first(core, n))
            fill_image(out, image_of(core, &n->key));
        return;
    }
    for (const node *at = core->nodes; at; at = at->next)
        i--;
    while (im && (has_node(core, im) || i-- > 0))
        im = im->next;
    SL_ASSERT(im != NULL);
    *out = (sl_core_component){ .key = im->key, .state = SL_CORE_ABSENT };
    fill_image(out, im);
}

int sl_core_active_count(const sl_core *core)
{
    return core->active_count;
}

void sl_core_get_active_at(const sl_core *core, int i, sl_core_active *out)
{
    const job *j = core->active;

    while (j && i-- > 0)
        j = j->next;
    *out = (sl_core_active){ 0 };
    if (!j)
        return;
    memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
    out->running = j->running;
    out->started = j->told_bytes > 0;
    out->activation_bytes = sl_core_demand_now(j).activation_bytes;
    out->mapped_bytes = j->told_bytes;
    out->attempt = j->attempt;
    out->lane = j->lane;
    out->variant = j->variant;
    out->phase = j->phase;
    out->preempting = j->stop == STOP_PREEMPT;
}

void sl_core_get_active(const sl_core *core, sl_core_active *out)
{
    sl_core_get_active_at(core, 0, out);
}

int sl_core_queued_count(const sl_core *core)
{
    return core->queued_count;
}

int sl_core_position(const sl_core *core, const char *job_id)
{
    int ahead;

    if (sl_core_find_active(core, job_id))
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
    sl_core_answer_job(core, &j->spec, ahead, answer);
    return SL_OK;
}
