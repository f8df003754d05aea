/* Life, components, jobs, and what is told; core_state.h has the diagrams. */
#include "service/core_state.h"

#include "base/clock.h"
#include "base/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

sl_core_config sl_core_config_default(sl_device_kind kind, size_t limit_bytes,
                                      size_t workspace_bytes)
{
    const bool cuda = kind == SL_DEVICE_CUDA;

    return (sl_core_config){
        .kind = kind,
        .limit_bytes = limit_bytes,
        .workspace_bytes = workspace_bytes,
        .retry_limit = 2,
        .queue_limit = 1000,
        .cancel_deadline_ns = 5 * SL_NS_PER_S,
        .memory_backoff_ns = SL_NS_PER_S,
        .max_running_jobs = 1,
        .preempt_deadline_ns = 120 * SL_NS_PER_S,
        .file_bytes_per_s = 200e6,
        .copy_bytes_per_s = cuda ? 10e9 : 2e9,
        .cost_per_s = cuda ? 50e12 : 20e9,
    };
}

static bool is_sane(const sl_core_config *c)
{
    return c->limit_bytes > 0 && c->limit_bytes <= SIZE_MAX / 4 &&
           c->workspace_bytes <= SIZE_MAX / 4 && c->file_bytes_per_s > 0.0 &&
           c->copy_bytes_per_s > 0.0 && c->cost_per_s > 0.0;
}

static void find_row(sl_core *core)
{
    const sl_core_config *c = &core->config;

    core->row = c->table ? sl_budget_find_row(c->table, c->kind,
                                              c->device_bytes ? c->device_bytes : c->limit_bytes)
                         : NULL;
}

sl_status sl_core_create(sl_core **out, const sl_core_config *config, sl_error *err)
{
    sl_core *core = NULL;

    if (!is_sane(config))
        return sl_fail(err, SL_ERR_INVALID,
                       "a device limit of %zu bytes, or a rate of zero, makes no sense",
                       config->limit_bytes);
    core = calloc(1, sizeof *core);
    if (!core)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the scheduler");
    core->config = *config;
    const sl_core_limits limits = sl_core_get_limits(core);
    const sl_status status = sl_core_set_limits(core, &limits, err);
    if (status != SL_OK) {
        free(core);
        return status;
    }
    find_row(core);
    *out = core;
    return SL_OK;
}

static void free_jobs(job *j)
{
    while (j) {
        job *next = j->next;
        free(j);
        j = next;
    }
}

void sl_core_destroy(sl_core *core)
{
    if (!core)
        return;
    while (core->nodes)
        sl_core_remove(core, core->nodes);
    while (core->images)
        sl_core_remove_image(core, core->images);
    while (core->lost) {
        loss *next = core->lost->next;
        free(core->lost->owner);
        core->lost = next;
    }
    free_jobs(core->queue);
    free_jobs(core->active);
    free_jobs(core->ended);
    while (core->tickets) {
        ticket *next = core->tickets->next;
        free(core->tickets);
        core->tickets = next;
    }
    free(core);
}

/* ---- limits ---- */

void sl_core_set_table(sl_core *core, const sl_budget_table *table)
{
    core->config.table = table;
    find_row(core);
    sl_core_rejudge(core);
}

void sl_core_set_draining(sl_core *core, bool draining)
{
    core->draining = draining;
    core->unsettled = true;
}

sl_core_limits sl_core_get_limits(const sl_core *core)
{
    const sl_core_config *c = &core->config;

    return (sl_core_limits){ .max_running_jobs = c->max_running_jobs,
                             .prepare_jobs = c->prepare_jobs,
                             .queue_limit = c->queue_limit,
                             .bypass_limit = c->bypass_limit,
                             .user_running_limit = c->user_running_limit,
                             .user_queued_limit = c->user_queued_limit,
                             .host_limit_bytes = c->host_limit_bytes };
}

sl_status sl_core_set_limits(sl_core *core, const sl_core_limits *limits, sl_error *err)
{
    sl_core_config *c = &core->config;

    if (limits->max_running_jobs < 1 || limits->max_running_jobs > SL_CORE_MAX_LANES)
        return sl_fail(err, SL_ERR_INVALID, "%d running jobs: 1 to %d can be given",
                       limits->max_running_jobs, SL_CORE_MAX_LANES);
    if (limits->prepare_jobs < 0 || limits->queue_limit < 0 || limits->bypass_limit < 0 ||
        limits->user_running_limit < 0 || limits->user_queued_limit < 0)
        return sl_fail(err, SL_ERR_INVALID, "a limit below zero makes no sense");
    if (limits->host_limit_bytes > SIZE_MAX / 4)
        return sl_fail(err, SL_ERR_INVALID, "a host tier of %zu bytes makes no sense",
                       limits->host_limit_bytes);
    const bool host = c->host_limit_bytes != limits->host_limit_bytes;
    const size_t fixed = sl_core_host_fixed(core);
    if (host && limits->host_limit_bytes < fixed)
        return sl_fail(err, SL_ERR_PRECONDITION,
                       "a host tier of %zu bytes is too small: images of %zu bytes are pinned or "
                       "in use",
                       limits->host_limit_bytes, fixed);
    c->max_running_jobs = limits->max_running_jobs;
    c->prepare_jobs = limits->prepare_jobs;
    c->queue_limit = limits->queue_limit;
    c->bypass_limit = limits->bypass_limit;
    c->user_running_limit = limits->user_running_limit;
    c->user_queued_limit = limits->user_queued_limit;
    c->host_limit_bytes = limits->host_limit_bytes;
    core->unsettled = true;
    if (host) {
        sl_core_shrink_host(core);
        sl_core_rejudge(core);
    }
    return SL_OK;
}

/* ---- components ---- */

node *sl_core_add_node(sl_core *core, const sl_core_need *need)
{
    node **end = &core->nodes;
    node *n = calloc(1, sizeof *n);

    if (!n)
        return NULL;
    n->key = need->key;
    n->size_bytes = need->size_bytes;
    n->host_bytes = need->host_bytes;
    n->state = SL_CORE_WANTED;
    n->used = core->clock;
    while (*end)
        end = &(*end)->next;
    *end = n;
    return n;
}

static void unlink_node(sl_core *core, node *n)
{
    node **at = &core->nodes;

    while (*at != n)
        at = &(*at)->next;
    *at = n->next;
    n->next = NULL;
}

void sl_core_remove(sl_core *core, node *n)
{
    unlink_node(core, n);
    free(n);
}

void sl_core_report_loss(sl_core *core, loss *l, const char *message)
{
    snprintf(l->message, sizeof l->message, "%s", message);
    l->next = core->lost;
    core->lost = l;
}

void sl_core_lose_node(sl_core *core, node *n, sl_status status, const char *message)
{
    unlink_node(core, n);
    if (!n->pinned || sl_core_is_pinned_by_ticket(core, &n->key, false)) {
        free(n);
        return;
    }
    n->loss = (loss){ .owner = n, .key = n->key, .size_bytes = n->size_bytes, .status = status };
    sl_core_report_loss(core, &n->loss, message);
}

/* Components that were only promised to someone who is gone. */
static void drop_unwanted(sl_core *core)
{
    for (node *n = core->nodes, *next; n; n = next) {
        next = n->next;
        if (n->state == SL_CORE_WANTED && !n->pinned && !sl_core_user_of(core, n))
            sl_core_remove(core, n);
    }
    sl_core_drop_unwanted_images(core);
}

/* What was to be evicted and has not been touched yet. */
static bool can_take_back(const sl_core *core, const node *n)
{
    return n->evict && !n->must && (n->state == SL_CORE_READY || n->state == SL_CORE_LOADING) &&
           (n->key.mode == SL_MODE_RESIDENT || sl_core_find_image(core, &n->key)) &&
           !sl_core_find(core, &n->key);
}

/* What was shared with a job by phase may be booked for that one alone now, while
 * it is there for nobody. */
static void balance(sl_core *core)
{
    if (sl_core_booked(core) > core->config.limit_bytes)
        sl_core_evict_for(core, NULL, &(demand){ .count = 0 }, 0);
}

void sl_core_relent(sl_core *core, uint64_t for_ticket)
{
    drop_unwanted(core);
    for (node *n = core->nodes; n; n = n->next)
        if (n->for_ticket == for_ticket && can_take_back(core, n) &&
            sl_core_booked(core) + n->size_bytes <= core->config.limit_bytes)
            n->evict = false;
    balance(core);
}

/* One that was to be evicted for some job serves as well as a new one. */
static node *take_back(sl_core *core, const sl_core_need *need)
{
    for (node *n = core->nodes; n; n = n->next) {
        if (n->for_ticket == 0 && n->size_bytes == need->size_bytes &&
            sl_core_key_equal(&n->key, &need->key) && can_take_back(core, n)) {
            n->evict = false;
            return n;
        }
    }
    return NULL;
}

bool sl_core_want(sl_core *core, const demand *d, uint64_t for_ticket)
{
    bool ok = sl_core_want_images(core, d, false, for_ticket);

    FOR_NEEDS(d, i)
    {
        const sl_core_need *need = &d->needs[i];
        if (ok && !sl_core_find(core, &need->key) && !take_back(core, need))
            ok = sl_core_add_node(core, need) != NULL;
    }
    ok = ok && sl_core_want_spare_images(core, d);
    if (!ok)
        drop_unwanted(core);
    return ok;
}

void sl_core_touch(sl_core *core, const demand *d)
{
    core->clock++;
    FOR_NEEDS(d, i)
    {
        node *n = sl_core_find(core, &d->needs[i].key);
        image *im = sl_core_find_image(core, &d->needs[i].key);
        if (n)
            n->used = core->clock;
        if (im)
            im->used = core->clock;
    }
}

/* ---- jobs ---- */

job *sl_core_find_active(const sl_core *core, const char *job_id)
{
    job *j = core->active;

    while (j && strcmp(j->spec.job_id, job_id) != 0)
        j = j->next;
    return j;
}

void sl_core_end_job(sl_core *core, job *j, sl_status status, const char *message)
{
    job **end = &core->ended;

    j->status = status;
    snprintf(j->message, sizeof j->message, "%s", message);
    j->tell_requeued = j->tell_admitted = false;
    j->next = NULL;
    while (*end)
        end = &(*end)->next;
    *end = j;
    core->unsettled = true;
}

void sl_core_take_active(sl_core *core, job *j)
{
    const demand left = sl_core_demand_left(j);
    job **at = &core->active;

    sl_core_touch(core, &left);
    while (*at != j)
        at = &(*at)->next;
    *at = j->next;
    j->next = NULL;
    core->active_count--;
    core->unsettled = true;
    j->running = j->waiting = false;
    j->mapped_bytes = j->told_bytes = 0;
    j->command_id = 0;
    sl_core_relent(core, 0);
}

void sl_core_end_active(sl_core *core, job *j, sl_status status, const char *message)
{
    sl_core_take_active(core, j);
    sl_core_end_job(core, j, status, message);
}

void sl_core_requeue_active(sl_core *core, job *j, sl_status status, const char *message)
{
    const sl_core_variant *v = &j->spec.variants[j->variant];

    for (int p = 1; p <= j->phase && p < v->phase_count && !j->state_lost; p++)
        if (v->phases[p].resume_point && p > j->spec.first_phase)
            j->spec.first_phase = p;
    sl_core_take_active(core, j);
    j->tell_admitted = j->preempt_sent = j->cancel_sent = j->faulted = false;
    j->stop = STOP_NONE;
    j->tell_requeued = j->requeued = true;
    j->status = status;
    snprintf(j->message, sizeof j->message, "%s", message);
    sl_core_enqueue(core, j);
}

sl_status sl_core_cancel(sl_core *core, const char *job_id, int64_t now_ns, sl_error *err)
{
    int ahead;
    job *j = sl_core_find_active(core, job_id);

    if (j && !j->running) {
        sl_core_end_active(core, j, SL_ERR_CANCELLED, "cancelled before it ran");
        return SL_OK;
    }
    if (j) {
        if (j->stop != STOP_CANCEL)
            j->stop_due_ns = now_ns + core->config.cancel_deadline_ns;
        j->stop = STOP_CANCEL;
        return SL_OK;
    }
    j = sl_core_find_queued(core, job_id, &ahead);
    if (!j)
        return sl_fail(err, SL_ERR_NOT_FOUND, "no job \"%s\" is queued or running", job_id);
    sl_core_unqueue(core, j);
    sl_core_end_job(core, j, SL_ERR_CANCELLED, "cancelled while it was queued");
    return SL_OK;
}

void sl_core_preempt(sl_core *core, job *j)
{
    if (!j->running) {
        sl_core_requeue_active(core, j, SL_ERR_CANCELLED, "pre-empted before it ran");
    } else if (j->stop == STOP_NONE) {
        j->stop = STOP_PREEMPT;
        j->stop_due_ns = INT64_MAX;
    }
}

void sl_core_job_started(sl_core *core, const char *job_id)
{
    job *j = sl_core_find_active(core, job_id);

    if (j && j->running && !j->faulted && !j->waiting)
        j->told_bytes = j->mapped_bytes;
}

void sl_core_phase(sl_core *core, const char *job_id, int phase)
{
    job *j = sl_core_find_active(core, job_id);

    if (!j || !j->running || j->faulted || j->waiting)
        return;
    const sl_core_variant *v = &j->spec.variants[j->variant];
    j->told_bytes = j->mapped_bytes;
    if (phase <= j->phase || phase >= v->phase_count)
        return;
    const demand before = sl_core_demand_now(j);
    sl_core_touch(core, &before);
    j->phase = phase;
    core->unsettled = true;
    const demand now = sl_core_demand_now(j);
    if (now.activation_bytes < j->mapped_bytes || !v->by_phase)
        j->mapped_bytes = now.activation_bytes;
    j->told_bytes = j->mapped_bytes;
    if (!v->by_phase) {
        balance(core);
        return;
    }
    j->waiting = true;
    sl_core_evict_for(core, NULL, &now, 0);
    if (!sl_core_want(core, &now, 0) && j->stop < STOP_FAIL) {
        j->stop = STOP_FAIL;
        j->stop_due_ns = INT64_MAX;
        j->stop_status = SL_ERR_NO_MEMORY;
        snprintf(j->stop_message, sizeof j->stop_message,
                 "out of memory for the components' books");
    }
}

void sl_core_lose_state(sl_core *core, const char *job_id)
{
    job *j = sl_core_find_active(core, job_id);

    if (!j || j->state_lost)
        return;
    j->state_lost = true;
    j->starts_over = j->spec.first_phase > 0;
    j->spec.first_phase = 0;
}

/* ---- telling ---- */

static void tell_job(const job *j, sl_core_action_kind kind, sl_core_action *out)
{
    out->kind = kind;
    out->attempt = j->attempt;
    memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
    if (kind != SL_CORE_JOB_ADMITTED) {
        out->status = j->status;
        memcpy(out->message, j->message, sizeof out->message);
    }
}

static void tell_ended_job(sl_core *core, sl_core_action *out)
{
    job *j = core->ended;

    core->ended = j->next;
    tell_job(j, SL_CORE_JOB_ENDED, out);
    if (j->status == SL_ERR_TOO_LARGE)
        sl_core_answer_job(core, &j->spec, 0, &out->answer);
    free(j);
}

static void tell_lost(sl_core *core, sl_core_action *out)
{
    loss *l = core->lost;

    core->lost = l->next;
    out->kind = SL_CORE_PIN_LOST;
    out->key = l->key;
    out->size_bytes = l->size_bytes;
    out->from_host = l->host;
    out->status = l->status;
    snprintf(out->message, sizeof out->message, "%s", l->message);
    free(l->owner);
}

static size_t booked_for(const job *j)
{
    const demand left = sl_core_demand_left(j);
    size_t sum = left.activation_bytes;

    FOR_NEEDS(&left, i)
    {
        sum += left.needs[i].size_bytes;
    }
    return sum;
}

/* What has happened and nobody has been told yet. */
static bool tell(sl_core *core, sl_core_action *out)
{
    for (job *j = core->queue; j; j = j->next) {
        if (j->tell_requeued) {
            j->tell_requeued = false;
            tell_job(j, SL_CORE_JOB_REQUEUED, out);
            return true;
        }
    }
    if (core->ended) {
        tell_ended_job(core, out);
        return true;
    }
    for (job *j = core->active; j; j = j->next) {
        if (j->tell_admitted) {
            j->tell_admitted = false;
            tell_job(j, SL_CORE_JOB_ADMITTED, out);
            out->size_bytes = booked_for(j);
            out->variant = j->variant;
            return true;
        }
    }
    if (core->lost) {
        tell_lost(core, out);
        return true;
    }
    return sl_core_tell_ticket(core, out);
}

/* A job that is asked to stop, and what follows when it does not. */
static bool next_stop(sl_core *core, job *j, int64_t now_ns, sl_core_action *out)
{
    if (j->stop == STOP_PREEMPT && !j->preempt_sent) {
        j->preempt_sent = true;
        j->stop_due_ns = now_ns + core->config.preempt_deadline_ns;
        out->kind = SL_CORE_PREEMPT;
    } else if (!j->cancel_sent && (j->stop > STOP_PREEMPT || now_ns >= j->stop_due_ns)) {
        j->cancel_sent = true;
        if (j->stop != STOP_CANCEL)
            j->stop_due_ns = now_ns + core->config.cancel_deadline_ns;
        out->kind = SL_CORE_CANCEL;
    } else {
        if (now_ns >= j->stop_due_ns)
            sl_core_want_restart(core, j->stop == STOP_CANCEL
                                           ? "the running job did not stop in time after a cancel"
                                           : "the running job did not stop in time");
        return false;
    }
    memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
    return true;
}

void sl_core_want_restart(sl_core *core, const char *message)
{
    if (core->restart)
        return;
    core->restart = true;
    core->restart_told = false;
    snprintf(core->restart_message, sizeof core->restart_message, "%s", message);
}

static bool next_stops(sl_core *core, int64_t now_ns, sl_core_action *out)
{
    for (job *j = core->active; j && !core->restart; j = j->next)
        if (j->running && j->stop != STOP_NONE && next_stop(core, j, now_ns, out))
            return true;
    return false;
}

bool sl_core_next(sl_core *core, int64_t now_ns, sl_core_action *out)
{
    memset(out, 0, sizeof *out);
    sl_core_expire(core, now_ns);
    sl_core_give_up_streamed(core);
    sl_core_settle_tickets(core);
    if (tell(core, out) || next_stops(core, now_ns, out))
        return true;
    if (core->restart && !core->restart_told) {
        core->restart_told = true;
        out->kind = SL_CORE_RESTART;
        snprintf(out->message, sizeof out->message, "%s", core->restart_message);
        return true;
    }
    sl_core_shrink_host(core);
    if (core->unsettled && !sl_core_admit(core, now_ns))
        core->unsettled = false;
    return tell(core, out) || sl_core_next_command(core, now_ns, out);
}

int64_t sl_core_wake_ns(const sl_core *core)
{
    int64_t wake_ns = INT64_MAX;

    for (const job *j = core->active; j && !core->restart; j = j->next)
        if (j->running && j->stop != STOP_NONE && j->stop_due_ns < wake_ns)
            wake_ns = j->stop_due_ns;
    for (const job *j = core->queue; j; j = j->next) {
        if (core->up && j->not_before_ns > 0 && j->not_before_ns < wake_ns)
            wake_ns = j->not_before_ns;
        if (j->spec.deadline_ns > 0 && j->spec.deadline_ns < wake_ns)
            wake_ns = j->spec.deadline_ns;
    }
    return wake_ns;
}
