/* The queue: who is next, who may pass whom. */
#include "service/core_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the list ---- */

/* Higher priority, then what has been queued again, then first come. */
static bool comes_before(const job *a, const job *b)
{
    if (a->spec.priority != b->spec.priority)
        return a->spec.priority > b->spec.priority;
    if (a->requeued != b->requeued)
        return a->requeued;
    return a->seq < b->seq;
}

const job *sl_core_queue_place(const sl_core *core, const job *j)
{
    const job *at = core->queue;

    while (at && !comes_before(j, at))
        at = at->next;
    return at;
}

void sl_core_enqueue(sl_core *core, job *j)
{
    const job *place = sl_core_queue_place(core, j);
    const int base = sl_core_base_variant(core, &j->spec);
    job **at = &core->queue;

    while (*at && *at != place)
        at = &(*at)->next;
    j->next = *at;
    *at = j;
    j->variant = base < 0 ? 0 : base;
    core->queued_count++;
    core->unsettled = true;
}

void sl_core_unqueue(sl_core *core, job *j)
{
    job **at = &core->queue;

    while (*at && *at != j)
        at = &(*at)->next;
    SL_ASSERT(*at == j);
    *at = j->next;
    j->next = NULL;
    core->queued_count--;
}

job *sl_core_find_queued(const sl_core *core, const char *job_id, int *ahead)
{
    *ahead = 0;
    for (job *j = core->queue; j; j = j->next, (*ahead)++)
        if (strcmp(j->spec.job_id, job_id) == 0)
            return j;
    return NULL;
}

int sl_core_count_user(const job *list, const char *user)
{
    int count = 0;

    for (; list; list = list->next)
        count += strcmp(list->spec.user, user) == 0;
    return count;
}

/* ---- submit ---- */

/* Where it would be in the queue, and whether its deadline can be met. */
static bool is_in_time(const sl_core *core, job *j, sl_core_answer *answer)
{
    const int64_t now_ns = j->spec.submitted_ns;

    if (!sl_core_estimate_queue(core, j, NULL, now_ns))
        return true; /* out of memory for a guess is no reason to refuse */
    answer->estimate = sl_core_estimate_of(core, j, now_ns);
    if (j->spec.deadline_ns == 0 || j->est_end_ns <= j->spec.deadline_ns)
        return true;
    answer->when = SL_CORE_LATE;
    snprintf(answer->message, sizeof answer->message,
             "cannot be done before its deadline in %.1f s: %.1f s in the queue, %.1f s to load, "
             "%.1f s to run",
             (double)(j->spec.deadline_ns - now_ns) / 1e9, (double)answer->estimate.queue_ns / 1e9,
             (double)answer->estimate.load_ns / 1e9, (double)answer->estimate.run_ns / 1e9);
    return false;
}

/* A job that is in no list yet, with the answer to it. */
static sl_status make_job(const sl_core *core, const sl_core_job *spec, job **out,
                          sl_core_answer *answer, sl_error *err)
{
    int ahead = 0;
    job *j = calloc(1, sizeof *j);

    if (!j)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for job \"%s\"", spec->job_id);
    j->spec = *spec;
    j->seq = core->last_job + 1;
    j->attempt = 1;
    sl_core_normalise(&j->spec);
    const sl_status status = sl_core_check_job(&j->spec, err);
    if (status != SL_OK) {
        free(j);
        return status;
    }
    const job *place = sl_core_queue_place(core, j);
    for (const job *at = core->queue; at && at != place; at = at->next)
        ahead++;
    sl_core_answer_job(core, &j->spec, ahead, answer);
    j->variant = answer->variant < 0 ? 0 : answer->variant;
    if (answer->when != SL_CORE_NEVER)
        is_in_time(core, j, answer);
    *out = j;
    return SL_OK;
}

sl_status sl_core_plan(const sl_core *core, const sl_core_job *spec, sl_core_answer *answer,
                       sl_error *err)
{
    job *j = NULL;
    const sl_status status = make_job(core, spec, &j, answer, err);

    free(j);
    return status;
}

static sl_status check_places(const sl_core *core, const sl_core_job *spec, sl_error *err)
{
    const int limit = core->config.user_queued_limit;

    if (core->queued_count >= core->config.queue_limit)
        return sl_fail(err, SL_ERR_BUSY, "the queue is full: %d jobs wait", core->queued_count);
    if (limit > 0 && spec->user[0] && sl_core_count_user(core->queue, spec->user) >= limit)
        return sl_fail(err, SL_ERR_BUSY, "%d jobs of user \"%s\" wait, which is the limit", limit,
                       spec->user);
    return SL_OK;
}

sl_status sl_core_submit(sl_core *core, const sl_core_job *spec, sl_core_answer *answer,
                         sl_error *err)
{
    sl_core_answer own;
    job *j = NULL;
    int ahead;

    if (!answer)
        answer = &own;
    answer->when = SL_CORE_NEVER; /* until it has been worked out */
    if (!spec->job_id[0])
        return sl_fail(err, SL_ERR_INVALID, "a job needs an id");
    if (sl_core_find_active(core, spec->job_id) || sl_core_find_queued(core, spec->job_id, &ahead))
        return sl_fail(err, SL_ERR_EXISTS, "job \"%s\" is queued or running already", spec->job_id);
    sl_status status = make_job(core, spec, &j, answer, err);
    if (status != SL_OK)
        return status;
    if (answer->when == SL_CORE_NEVER)
        status = sl_fail(err, SL_ERR_TOO_LARGE, "job \"%s\": %s", spec->job_id, answer->message);
    else if (answer->when == SL_CORE_LATE)
        status = sl_fail(err, SL_ERR_TIMEOUT, "job \"%s\": %s", spec->job_id, answer->message);
    else
        status = check_places(core, spec, err);
    if (status != SL_OK) {
        free(j);
        return status;
    }
    core->last_job++;
    sl_core_enqueue(core, j);
    return SL_OK;
}

/* ---- what ends while it waits ---- */

void sl_core_expire(sl_core *core, int64_t now_ns)
{
    for (job *j = core->queue, *next; j; j = next) {
        next = j->next;
        if (j->not_before_ns > 0 && j->not_before_ns <= now_ns) {
            j->not_before_ns = 0; /* so that sl_core_wake_ns is never in the past */
            core->unsettled = true;
        }
        if (j->spec.deadline_ns > 0 && j->spec.deadline_ns <= now_ns && !j->tell_requeued) {
            sl_core_unqueue(core, j);
            sl_core_end_job(core, j, SL_ERR_TIMEOUT, "its deadline passed while it was queued");
        }
    }
}

static void refuse(sl_core *core, job *j)
{
    char message[SL_CORE_TEXT_BYTES * 2];
    sl_core_answer answer;

    sl_core_answer_job(core, &j->spec, 0, &answer);
    memcpy(message, answer.message, sizeof message);
    sl_core_unqueue(core, j);
    sl_core_end_job(core, j, SL_ERR_TOO_LARGE, message);
}

void sl_core_rejudge(sl_core *core)
{
    for (job *j = core->queue, *next; j; j = next) {
        const int base = sl_core_base_variant(core, &j->spec);
        next = j->next;
        if (base < 0)
            refuse(core, j);
        else
            j->variant = base;
    }
    core->unsettled = true;
}

/* ---- who is next ---- */

static bool is_held_by_user(const sl_core *core, const job *j)
{
    const int limit = core->config.user_running_limit;
    return limit > 0 && j->spec.user[0] && sl_core_count_user(core->active, j->spec.user) >= limit;
}

static bool may_start(const sl_core *core, const job *j)
{
    return j->not_before_ns == 0 && !is_held_by_user(core, j);
}

/* The job that has been passed often enough: nobody else starts before it. */
static job *find_blocking(const sl_core *core)
{
    job *oldest = NULL;

    for (job *j = core->queue; j; j = j->next)
        if (j->passed >= core->config.bypass_limit && (!oldest || j->seq < oldest->seq) &&
            !is_held_by_user(core, j))
            oldest = j;
    return oldest;
}

static bool is_all_there(const sl_core *core, const demand *d)
{
    FOR_NEEDS(d, i)
    {
        const node *n = sl_core_find(core, &d->needs[i].key);
        if (!n || n->state != SL_CORE_READY || n->size_bytes != d->needs[i].size_bytes)
            return false;
    }
    return true;
}

/* An equal of j that starts without any load, so that what is there is used up
 * before it is evicted for j; NULL: none. */
static job *find_passer(sl_core *core, const job *j, int64_t now_ns)
{
    for (job *k = j->next; k && k->spec.priority == j->spec.priority; k = k->next) {
        const demand d = sl_core_demand_of(&k->spec.variants[k->variant], k->spec.first_phase);
        if (may_start(core, k) && is_all_there(core, &d) &&
            sl_core_judge(core, &d).when == SL_CORE_NOW && !sl_core_would_evict(core, &d) &&
            !sl_core_would_make_late(core, k, now_ns))
            return k;
    }
    return NULL;
}

static void count_passed(sl_core *core, const job *starting)
{
    for (job *j = core->queue; j; j = j->next)
        if (j->seq < starting->seq && !is_held_by_user(core, j))
            j->passed++;
}

static void start(sl_core *core, job *j, int variant)
{
    job **end = &core->active;

    sl_core_unqueue(core, j);
    count_passed(core, j);
    j->requeued = false;
    j->variant = variant;
    j->phase = j->spec.first_phase;
    const demand d = sl_core_demand_left(j);
    const demand now = sl_core_demand_now(j);
    sl_core_evict_for(core, &d, NULL, 0);
    while (*end)
        end = &(*end)->next;
    *end = j;
    core->active_count++;
    sl_core_touch(core, &now);
    if (!sl_core_want_images(core, &d, false, 0) || !sl_core_want(core, &now, 0))
        sl_core_end_active(core, j, SL_ERR_NO_MEMORY, "out of memory for the components' books");
    else
        j->tell_admitted = true;
}

bool sl_core_is_too_early(const sl_core *core, const demand *d)
{
    const sl_core_config *c = &core->config;

    if (core->active_count < c->max_running_jobs)
        return false;
    FOR_NEEDS(d, i)
    {
        if (!sl_core_find(core, &d->needs[i].key))
            return core->active_count >= c->max_running_jobs + c->prepare_jobs;
    }
    return true;
}

static bool is_too_early(const sl_core *core, const job *j)
{
    const demand d = sl_core_demand_of(&j->spec.variants[j->variant], j->spec.first_phase);

    return sl_core_is_too_early(core, &d);
}

typedef enum { TURN_TAKEN, TURN_PASSED_ON, TURN_KEPT } turn;

/* What j, first in line of those that fit, does with its turn: it starts, or another
 * before it; the next one may; nobody may yet. */
static turn take_turn(sl_core *core, job *j, int variant, bool blocking, int64_t now_ns)
{
    const demand d = sl_core_demand_of(&j->spec.variants[variant], j->spec.first_phase);
    job *passer = NULL;

    if (sl_core_is_too_early(core, &d))
        return TURN_KEPT;
    if (!blocking && sl_core_would_evict(core, &d))
        passer = find_passer(core, j, now_ns);
    if (passer && is_too_early(core, passer))
        return TURN_KEPT;
    if (passer)
        start(core, passer, passer->variant);
    else if (!blocking && j != core->queue && sl_core_would_make_late(core, j, now_ns))
        return TURN_PASSED_ON;
    else
        start(core, j, variant);
    return TURN_TAKEN;
}

bool sl_core_admit(sl_core *core, int64_t now_ns)
{
    const sl_core_config *c = &core->config;

    if (!core->up || core->restart || core->draining || sl_core_tickets_wait(core) ||
        core->active_count >= c->max_running_jobs + c->prepare_jobs)
        return false;
    job *blocking = find_blocking(core);
    for (job *j = blocking ? blocking : core->queue; j; j = blocking ? NULL : j->next) {
        verdict v;

        if (!may_start(core, j))
            continue;
        const int variant = sl_core_choose(core, &j->spec, &v);
        if (v.when == SL_CORE_NEVER) {
            refuse(core, j);
            return true;
        }
        if (v.when != SL_CORE_NOW)
            continue;
        const turn t = take_turn(core, j, variant, blocking != NULL, now_ns);
        if (t != TURN_PASSED_ON)
            return t == TURN_TAKEN;
    }
    return false;
}
