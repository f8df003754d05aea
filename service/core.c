/* The moves of core.h; core_state.h has the diagrams. */
#include "service/core_state.h"

#include "base/clock.h"
#include "base/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How often a job goes back to the queue because the driver refused memory
 * that the books said was free. */
enum { MEMORY_RETRIES = 8 };

sl_core_config sl_core_config_default(sl_device_kind kind, size_t limit_bytes,
                                      size_t workspace_bytes)
{
    return (sl_core_config){
        .kind = kind,
        .limit_bytes = limit_bytes,
        .workspace_bytes = workspace_bytes,
        .retry_limit = 2,
        .queue_limit = 1000,
        .cancel_deadline_ns = 5 * SL_NS_PER_S,
        .memory_backoff_ns = SL_NS_PER_S,
    };
}

sl_status sl_core_create(sl_core **out, const sl_core_config *config, sl_error *err)
{
    if (config->limit_bytes == 0 || config->limit_bytes > SIZE_MAX / 4 ||
        config->workspace_bytes > SIZE_MAX / 4)
        return sl_fail(err, SL_ERR_INVALID, "a device limit of %zu bytes makes no sense",
                       config->limit_bytes);
    sl_core *core = calloc(1, sizeof *core);
    if (!core)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the scheduler");
    core->config = *config;
    sl_core_set_table(core, config->table);
    *out = core;
    return SL_OK;
}

void sl_core_set_draining(sl_core *core, bool draining)
{
    core->draining = draining;
}

void sl_core_set_table(sl_core *core, const sl_budget_table *table)
{
    const sl_core_config *config = &core->config;

    core->config.table = table;
    core->row = table ? sl_budget_find_row(
                    table, config->kind,
                    config->device_bytes ? config->device_bytes : config->limit_bytes)
                      : NULL;
}

static void free_nodes(node *n)
{
    while (n) {
        node *next = n->next;
        free(n);
        n = next;
    }
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
    free_nodes(core->nodes);
    free_nodes(core->lost);
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

/* ---- components ---- */

static node *add_node(sl_core *core, const sl_core_need *need)
{
    node **end = &core->nodes;
    node *n = calloc(1, sizeof *n);

    if (!n)
        return NULL;
    n->key = need->key;
    n->size_bytes = need->size_bytes;
    n->state = SL_CORE_WANTED;
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

/* A pinned component that cannot be had again is reported, not forgotten;
 * one that a ticket has just asked for is that ticket's to report. */
static void lose_node(sl_core *core, node *n, sl_status status, const char *message)
{
    unlink_node(core, n);
    if (sl_core_is_pinned_by_ticket(core, &n->key)) {
        free(n);
        return;
    }
    n->lost_status = status;
    snprintf(n->lost_message, sizeof n->lost_message, "%s", message);
    n->next = core->lost;
    core->lost = n;
}

/* Components that were only promised to someone who is gone. */
static void drop_unwanted(sl_core *core)
{
    for (node *n = core->nodes, *next; n; n = next) {
        next = n->next;
        if (n->state == SL_CORE_WANTED && !n->pinned && !sl_core_in_use(core, n))
            sl_core_remove(core, n);
    }
}

static bool has_pending_nodes(const sl_core *core)
{
    for (const node *n = core->nodes; n; n = n->next)
        if (n->evict || n->state != SL_CORE_READY)
            return true;
    return false;
}

/* Nothing is under way and the worker is there. */
bool sl_core_is_calm(const sl_core *core)
{
    return core->up && !core->restart && !core->active && core->outstanding.id == 0 &&
           !has_pending_nodes(core);
}

void sl_core_relent(sl_core *core, uint64_t for_ticket)
{
    bool wanted = false;

    drop_unwanted(core);
    for (const node *n = core->nodes; n && !wanted; n = n->next)
        wanted = n->state == SL_CORE_WANTED;
    if (wanted)
        return;
    for (node *n = core->nodes; n; n = n->next)
        if (n->evict && n->for_ticket == for_ticket && n->state != SL_CORE_UNLOADING)
            n->evict = false;
}

bool sl_core_want(sl_core *core, const demand *d)
{
    for (int i = 0; i < d->count; i++) {
        if (sl_core_find(core, &d->needs[i].key))
            continue;
        if (!add_node(core, &d->needs[i])) {
            drop_unwanted(core);
            return false;
        }
    }
    return true;
}

/* ---- jobs ---- */

static void push_job(job **list, job *j)
{
    while (*list)
        list = &(*list)->next;
    j->next = NULL;
    *list = j;
}

job *sl_core_find_queued(const sl_core *core, const char *job_id, int *ahead)
{
    *ahead = 0;
    for (job *j = core->queue; j; j = j->next, (*ahead)++)
        if (strcmp(j->spec.job_id, job_id) == 0)
            return j;
    return NULL;
}

bool sl_core_is_active(const sl_core *core, const char *job_id)
{
    return core->active && strcmp(core->active->spec.job_id, job_id) == 0;
}

/* j is in no list any more. */
static void end_job(sl_core *core, job *j, sl_status status, const char *message)
{
    j->status = status;
    snprintf(j->message, sizeof j->message, "%s", message);
    j->tell_requeued = j->tell_admitted = false;
    push_job(&core->ended, j);
}

static job *take_active(sl_core *core)
{
    job *j = core->active;

    core->active = NULL;
    j->running = j->started = j->cancel_sent = false;
    sl_core_relent(core, 0);
    return j;
}

static void end_active(sl_core *core, sl_status status, const char *message)
{
    end_job(core, take_active(core), status, message);
}

static void requeue_active(sl_core *core, sl_status status, const char *message)
{
    job *j = take_active(core);

    j->tell_admitted = false;
    j->tell_requeued = true;
    j->status = status;
    snprintf(j->message, sizeof j->message, "%s", message);
    j->next = core->queue;
    core->queue = j;
    core->queued_count++;
}

/* The driver has refused memory that was promised. */
static void retry_active_memory(sl_core *core, const char *message, int64_t now_ns)
{
    if (core->active->cancelled) {
        end_active(core, SL_ERR_CANCELLED, "cancelled");
    } else if (core->active->memory_retries >= MEMORY_RETRIES) {
        end_active(core, SL_ERR_NO_MEMORY, message);
    } else {
        core->active->memory_retries++;
        core->active->not_before_ns = now_ns + core->config.memory_backoff_ns;
        requeue_active(core, SL_ERR_NO_MEMORY, message);
    }
}

sl_status sl_core_submit(sl_core *core, const sl_core_job *spec, sl_core_answer *answer,
                         sl_error *err)
{
    sl_core_answer own;
    int ahead;

    if (!answer)
        answer = &own;
    answer->when = SL_CORE_NEVER; /* until it has been worked out */
    if (!spec->job_id[0])
        return sl_fail(err, SL_ERR_INVALID, "a job needs an id");
    if (sl_core_is_active(core, spec->job_id) || sl_core_find_queued(core, spec->job_id, &ahead))
        return sl_fail(err, SL_ERR_EXISTS, "job \"%s\" is queued or running already", spec->job_id);
    const sl_status status = sl_core_plan(core, spec, answer, err);
    if (status != SL_OK)
        return status;
    if (answer->when == SL_CORE_NEVER)
        return sl_fail(err, SL_ERR_TOO_LARGE, "job \"%s\": %s", spec->job_id, answer->message);
    if (core->queued_count >= core->config.queue_limit)
        return sl_fail(err, SL_ERR_BUSY, "the queue is full: %d jobs wait", core->queued_count);

    job *j = calloc(1, sizeof *j);
    if (!j)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for job \"%s\"", spec->job_id);
    j->spec = *spec;
    j->attempt = 1;
    push_job(&core->queue, j);
    core->queued_count++;
    return SL_OK;
}

sl_status sl_core_plan(const sl_core *core, const sl_core_job *spec, sl_core_answer *answer,
                       sl_error *err)
{
    if (spec->need_count < 0 || spec->need_count > SL_CORE_MAX_NEEDS)
        return sl_fail(err, SL_ERR_INVALID, "a job with %d components", spec->need_count);
    const demand d = sl_core_demand_of(spec);
    const sl_status status = sl_core_check(&d, err);
    if (status == SL_OK)
        sl_core_answer_demand(core, &d, core->queued_count, answer);
    return status;
}

sl_status sl_core_cancel(sl_core *core, const char *job_id, int64_t now_ns, sl_error *err)
{
    int ahead;

    if (sl_core_is_active(core, job_id)) {
        if (!core->active->running) {
            end_active(core, SL_ERR_CANCELLED, "cancelled before it ran");
        } else if (!core->active->cancelled) {
            core->active->cancelled = true;
            core->active->cancel_due_ns = now_ns + core->config.cancel_deadline_ns;
        }
        return SL_OK;
    }
    job *j = sl_core_find_queued(core, job_id, &ahead);
    if (!j)
        return sl_fail(err, SL_ERR_NOT_FOUND, "no job \"%s\" is queued or running", job_id);
    job **at = &core->queue;
    while (*at != j)
        at = &(*at)->next;
    *at = j->next;
    core->queued_count--;
    end_job(core, j, SL_ERR_CANCELLED, "cancelled while it was queued");
    return SL_OK;
}

/* ---- the worker ---- */

void sl_core_worker_up(sl_core *core, size_t workspace_bytes)
{
    core->up = true;
    core->restart = core->restart_told = false;
    core->config.workspace_bytes = workspace_bytes;
}

static void want_restart(sl_core *core, const char *message)
{
    if (core->restart)
        return;
    core->restart = true;
    core->restart_told = false;
    snprintf(core->restart_message, sizeof core->restart_message, "%s", message);
}

static void lose_residency(sl_core *core, const char *reason)
{
    for (node *n = core->nodes, *next; n; n = next) {
        next = n->next;
        if (!n->pinned || n->evict) {
            sl_core_remove(core, n);
            continue;
        }
        n->deaths += n->state == SL_CORE_LOADING;
        n->state = SL_CORE_WANTED;
        n->measured_bytes = 0;
    }
    /* A component whose load keeps killing the worker is given up. */
    for (node *n = core->nodes; n;) {
        if (n->deaths <= core->config.retry_limit) {
            n = n->next;
            continue;
        }
        const sl_core_key key = n->key;
        lose_node(core, n, SL_ERR_UNAVAILABLE, reason);
        sl_core_fail_tickets(core, &key, SL_ERR_UNAVAILABLE, reason);
        n = core->nodes; /* ending a ticket may have removed others */
    }
}

void sl_core_worker_down(sl_core *core, const char *reason)
{
    char message[SL_CORE_TEXT_BYTES];

    core->up = core->restart = core->restart_told = false;
    core->outstanding = (command){ 0 };
    if (core->active && core->active->cancelled) {
        end_active(core, SL_ERR_CANCELLED, "cancelled");
    } else if (core->active && core->active->attempt > core->config.retry_limit) {
        snprintf(message, sizeof message, "the worker ended %d times during this job, at last: %s",
                 core->active->attempt, reason);
        end_active(core, SL_ERR_UNAVAILABLE, message);
    } else if (core->active) {
        core->active->attempt++;
        requeue_active(core, SL_ERR_UNAVAILABLE, reason);
    }
    snprintf(message, sizeof message, "the worker ended: %s", reason);
    lose_residency(core, message);
}

void sl_core_job_started(sl_core *core, const char *job_id)
{
    if (sl_core_is_active(core, job_id) && core->active->running)
        core->active->started = true;
}

static void load_done(sl_core *core, node *n, const sl_core_done *done, const char *message,
                      int64_t now_ns)
{
    if (done->status == SL_OK) {
        n->state = SL_CORE_READY;
        n->measured_bytes = done->component_bytes;
        n->deaths = 0;
        sl_core_note_receipts(core, n, true, done);
        return;
    }
    const bool for_job = sl_core_in_use(core, n);
    const sl_core_key key = n->key;
    if (n->pinned)
        lose_node(core, n, done->status, message);
    else
        sl_core_remove(core, n);
    if (for_job && done->status == SL_ERR_NO_MEMORY)
        retry_active_memory(core, message, now_ns);
    else if (for_job)
        end_active(core, done->status, message);
    sl_core_fail_tickets(core, &key, done->status, message);
}

static void run_done(sl_core *core, const sl_core_done *done, const char *message, int64_t now_ns)
{
    if (done->status == SL_ERR_NO_MEMORY)
        retry_active_memory(core, message, now_ns);
    else
        end_active(core, done->status, message);
}

bool sl_core_command_done(sl_core *core, uint64_t command_id, const sl_core_done *done,
                          int64_t now_ns)
{
    const char *message = done->message ? done->message : "";
    const command ended = core->outstanding;

    if (command_id == 0 || ended.id != command_id)
        return false;
    if (done->status == SL_ERR_DEVICE) {
        /* The context is poisoned; what was under way is dealt with when the
         * worker is gone. */
        if (ended.kind == SL_CORE_RUN)
            core->active->started = false; /* unmapped all the same */
        want_restart(core, message);
        return true;
    }
    core->outstanding = (command){ 0 };
    if (ended.kind == SL_CORE_LOAD) {
        load_done(core, ended.node, done, message, now_ns);
    } else if (ended.kind == SL_CORE_RUN) {
        run_done(core, done, message, now_ns);
    } else if (done->status == SL_OK) {
        sl_core_note_receipts(core, ended.node, false, done);
        sl_core_remove(core, ended.node);
    } else {
        /* Nobody knows what is mapped now: start over. */
        want_restart(core, message);
    }
    return true;
}

/* ---- next ---- */

static void tell_ended_job(sl_core *core, sl_core_action *out)
{
    job *j = core->ended;

    core->ended = j->next;
    out->kind = SL_CORE_JOB_ENDED;
    out->attempt = j->attempt;
    out->status = j->status;
    memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
    memcpy(out->message, j->message, sizeof out->message);
    free(j);
}

static void tell_lost(sl_core *core, sl_core_action *out)
{
    node *n = core->lost;

    core->lost = n->next;
    out->kind = SL_CORE_PIN_LOST;
    out->key = n->key;
    out->size_bytes = n->size_bytes;
    out->status = n->lost_status;
    snprintf(out->message, sizeof out->message, "%s", n->lost_message);
    free(n);
}

static size_t booked_for(const job *j)
{
    size_t sum = j->spec.activation_bytes;

    for (int i = 0; i < j->spec.need_count; i++)
        sum += j->spec.needs[i].size_bytes;
    return sum;
}

/* What has happened and nobody has been told yet. */
static bool tell(sl_core *core, sl_core_action *out)
{
    job *head = core->queue;

    if (head && head->tell_requeued) {
        head->tell_requeued = false;
        out->kind = SL_CORE_JOB_REQUEUED;
        out->attempt = head->attempt;
        out->status = head->status;
        memcpy(out->job_id, head->spec.job_id, sizeof out->job_id);
        memcpy(out->message, head->message, sizeof out->message);
    } else if (core->ended) {
        tell_ended_job(core, out);
    } else if (core->active && core->active->tell_admitted) {
        core->active->tell_admitted = false;
        out->kind = SL_CORE_JOB_ADMITTED;
        out->attempt = core->active->attempt;
        out->size_bytes = booked_for(core->active);
        memcpy(out->job_id, core->active->spec.job_id, sizeof out->job_id);
    } else if (core->lost) {
        tell_lost(core, out);
    } else {
        return sl_core_tell_ticket(core, out);
    }
    return true;
}

/* Takes the head of the queue if it fits now; ends it if it never will. */
static void admit(sl_core *core, int64_t now_ns)
{
    sl_core_answer answer;
    job *j = core->queue;

    if (j && j->not_before_ns <= now_ns)
        j->not_before_ns = 0; /* so that sl_core_wake_ns is never in the past */
    if (!j || core->draining || !sl_core_is_calm(core) || j->not_before_ns > 0)
        return;
    const demand d = sl_core_demand_of(&j->spec);
    sl_core_answer_demand(core, &d, 0, &answer);
    if (answer.when == SL_CORE_AFTER)
        return;
    core->queue = j->next;
    core->queued_count--;
    j->next = NULL;
    if (answer.when == SL_CORE_NEVER) {
        end_job(core, j, SL_ERR_TOO_LARGE, answer.message);
        return;
    }
    sl_core_evict_for(core, &d, 0);
    core->active = j;
    if (!sl_core_want(core, &d)) {
        end_active(core, SL_ERR_NO_MEMORY, "out of memory for the components' books");
        return;
    }
    j->tell_admitted = true;
}

static void send_command(sl_core *core, sl_core_action *out, sl_core_action_kind kind, node *n)
{
    core->outstanding = (command){ .id = ++core->last_command, .kind = kind, .node = n };
    out->kind = kind;
    out->command_id = core->last_command;
    if (n) {
        out->key = n->key;
        out->size_bytes = n->size_bytes;
    }
}

static void send_unload(sl_core *core, sl_core_action *out, node *n)
{
    n->state = SL_CORE_UNLOADING;
    send_command(core, out, SL_CORE_UNLOAD, n);
    out->ticket = n->for_ticket;
    if (n->for_ticket == 0 && core->active)
        memcpy(out->job_id, core->active->spec.job_id, sizeof out->job_id);
}

static void send_load(sl_core *core, sl_core_action *out, node *n)
{
    n->state = SL_CORE_LOADING;
    send_command(core, out, SL_CORE_LOAD, n);
    if (sl_core_in_use(core, n))
        memcpy(out->job_id, core->active->spec.job_id, sizeof out->job_id);
}

static void send_run(sl_core *core, sl_core_action *out)
{
    job *j = core->active;

    j->running = true;
    send_command(core, out, SL_CORE_RUN, NULL);
    out->attempt = j->attempt;
    out->size_bytes = j->spec.activation_bytes;
    memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
}

/* Everything that goes, goes before anything comes. */
static bool next_command(sl_core *core, sl_core_action *out)
{
    node *n;

    if (!core->up || core->restart || core->outstanding.id)
        return false;
    for (n = core->nodes; n && !(n->evict && n->state == SL_CORE_READY); n = n->next)
        ;
    if (n) {
        send_unload(core, out, n);
        return true;
    }
    for (n = core->nodes; n && n->state != SL_CORE_WANTED; n = n->next)
        ;
    if (n) {
        send_load(core, out, n);
        return true;
    }
    if (!core->active)
        return false;
    send_run(core, out);
    return true;
}

static bool next_cancel(sl_core *core, int64_t now_ns, sl_core_action *out)
{
    job *j = core->active;

    if (!j || !j->cancelled || core->restart)
        return false;
    if (!j->cancel_sent) {
        j->cancel_sent = true;
        out->kind = SL_CORE_CANCEL;
        memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
        return true;
    }
    if (now_ns >= j->cancel_due_ns)
        want_restart(core, "the running job did not stop in time after a cancel");
    return false;
}

bool sl_core_next(sl_core *core, int64_t now_ns, sl_core_action *out)
{
    memset(out, 0, sizeof *out);
    sl_core_settle_tickets(core);
    if (tell(core, out) || next_cancel(core, now_ns, out))
        return true;
    if (core->restart && !core->restart_told) {
        core->restart_told = true;
        out->kind = SL_CORE_RESTART;
        snprintf(out->message, sizeof out->message, "%s", core->restart_message);
        return true;
    }
    admit(core, now_ns);
    return tell(core, out) || next_command(core, out);
}

int64_t sl_core_wake_ns(const sl_core *core)
{
    if (core->active && core->active->cancelled && !core->restart)
        return core->active->cancel_due_ns;
    if (!core->active && core->up && core->queue && core->queue->not_before_ns > 0)
        return core->queue->not_before_ns;
    return INT64_MAX;
}
