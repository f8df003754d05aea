/* How long things take: rates that were observed, and the queue played through. */
#include "service/core_state.h"

#include <stdlib.h>
#include <string.h>

/* Of a new observation in a running average. */
static const double weight = 0.25;

static void average(double *per_s, double amount, int64_t duration_ns)
{
    if (!(amount > 0.0) || duration_ns <= 0)
        return;
    const double seen = amount * 1e9 / (double)duration_ns;
    *per_s = *per_s > 0.0 ? *per_s * (1.0 - weight) + seen * weight : seen;
}

void sl_core_observe_file(sl_core *core, size_t size_bytes, int64_t duration_ns)
{
    average(&core->file_per_s, (double)size_bytes, duration_ns);
}

void sl_core_observe_copy(sl_core *core, size_t size_bytes, int64_t duration_ns)
{
    average(&core->copy_per_s, (double)size_bytes, duration_ns);
}

static const rate *find_rate(const sl_core *core, const char *model)
{
    for (int i = 0; i < MAX_RATES; i++)
        if (core->rates[i].per_s > 0.0 && strcmp(core->rates[i].model, model) == 0)
            return &core->rates[i];
    return NULL;
}

void sl_core_observe_run(sl_core *core, const char *model, double cost, int64_t duration_ns)
{
    rate *r = &core->rates[0];

    if (strlen(model) >= sizeof r->model)
        return;
    for (int i = 0; i < MAX_RATES; i++) {
        rate *at = &core->rates[i];
        if (at->per_s > 0.0 && strcmp(at->model, model) == 0) {
            r = at;
            break;
        }
        if (at->used < r->used)
            r = at; /* else in place of the one that was used longest ago */
    }
    if (strcmp(r->model, model) != 0) {
        r->per_s = 0.0;
        memcpy(r->model, model, strlen(model) + 1);
    }
    r->used = ++core->clock;
    average(&r->per_s, cost, duration_ns);
}

/* ---- one thing ---- */

static int64_t ns_of(double amount, double per_s)
{
    const double ns = amount * 1e9 / per_s;
    return ns < 9e17 ? (int64_t)ns : (int64_t)9e17; /* 30 years */
}

int64_t sl_core_file_ns(const sl_core *core, size_t size_bytes)
{
    return ns_of((double)size_bytes,
                 core->file_per_s > 0.0 ? core->file_per_s : core->config.file_bytes_per_s);
}

int64_t sl_core_reload_ns(const sl_core *core, const sl_core_key *key, size_t size_bytes)
{
    const image *im = sl_core_find_image(core, key);

    if (!im || im->state != SL_CORE_HOST_READY)
        return sl_core_file_ns(core, size_bytes);
    return ns_of((double)size_bytes,
                 core->copy_per_s > 0.0 ? core->copy_per_s : core->config.copy_bytes_per_s);
}

static int64_t run_ns(const sl_core *core, const job *j)
{
    const sl_core_variant *v = &j->spec.variants[j->variant];
    const rate *r = find_rate(core, v->facts.model);

    return ns_of(j->spec.cost * (v->slowdown > 1.0 ? v->slowdown : 1.0),
                 r ? r->per_s : core->config.cost_per_s);
}

/* ---- the queue ---- */

enum { MAX_PLAYED = 64 };

/* The device as it will be: who is on it until when, and what is loaded. */
typedef struct {
    const sl_core *core;
    int count;
    struct {
        const job *job;
        int64_t end_ns;
        size_t size_bytes; /* components and activations */
    } on[SL_CORE_MAX_LANES * 2];
    int lanes;
    int64_t now_ns;
    int need_count;
    const sl_core_need *needs[MAX_PLAYED]; /* resident because of a played job */
    bool evicted;                          /* what was there before has had to go */
} play;

static size_t alone_bytes(const sl_core *core, const demand *d)
{
    return sl_core_bytes_of(core, d, SCOPE_ALONE);
}

static void seat(play *p, const job *j, int64_t end_ns, size_t size_bytes)
{
    p->on[p->count].job = j;
    p->on[p->count].end_ns = end_ns;
    p->on[p->count].size_bytes = size_bytes;
    p->count++;
}

/* The next of them ends. */
static void end_one(play *p)
{
    int first = 0;

    for (int i = 1; i < p->count; i++)
        if (p->on[i].end_ns < p->on[first].end_ns)
            first = i;
    if (p->on[first].end_ns > p->now_ns)
        p->now_ns = p->on[first].end_ns;
    p->on[first] = p->on[--p->count];
}

static void begin_play(play *p, const sl_core *core, int64_t now_ns)
{
    *p = (play){ .core = core, .now_ns = now_ns, .lanes = core->config.max_running_jobs };
    for (const job *j = core->active; j && p->count < SL_CORE_MAX_LANES * 2; j = j->next) {
        const demand left = sl_core_demand_left(j);
        const int64_t run = run_ns(core, j);
        int64_t rest = run;

        if (j->running) {
            rest -= now_ns - j->run_since_ns;
            if (rest < run / 10)
                rest = run / 10; /* it takes longer than expected */
        }
        FOR_NEEDS(&left, i)
        {
            const node *n = sl_core_find(core, &left.needs[i].key);
            if (!n || n->state != SL_CORE_READY)
                rest += sl_core_reload_ns(core, &left.needs[i].key, left.needs[i].size_bytes);
        }
        seat(p, j, now_ns + rest, alone_bytes(core, &left));
    }
}

static bool is_played(const play *p, const sl_core_key *key)
{
    for (int i = 0; i < p->need_count; i++)
        if (sl_core_key_equal(&p->needs[i]->key, key))
            return true;
    const node *n = p->evicted ? NULL : sl_core_find(p->core, key);
    return n && n->state != SL_CORE_WANTED;
}

/* Time for what d lacks then.  When that does not fit beside what is there, all
 * but its own is taken to have gone. */
static int64_t play_loads(play *p, const demand *d, size_t room)
{
    size_t there = 0, missing = 0;
    int64_t ns = 0;

    for (int i = 0; i < p->need_count; i++)
        there += p->needs[i]->size_bytes;
    for (const node *n = p->core->nodes; n && !p->evicted; n = n->next)
        there += n->evict ? 0 : n->size_bytes;
    FOR_NEEDS(d, i)
    {
        const sl_core_need *need = &d->needs[i];
        if (is_played(p, &need->key))
            continue;
        missing += need->size_bytes;
        ns += sl_core_reload_ns(p->core, &need->key, need->size_bytes);
    }
    if (missing > 0 &&
        (there + missing + d->activation_bytes > room || p->need_count + d->count > MAX_PLAYED)) {
        p->need_count = 0;
        p->evicted = true;
    }
    FOR_NEEDS(d, i)
    {
        if (missing > 0 && p->need_count < MAX_PLAYED)
            p->needs[p->need_count++] = &d->needs[i];
    }
    return ns;
}

static void play_job(play *p, job *j)
{
    const sl_core *core = p->core;
    const demand d = sl_core_demand_of(&j->spec.variants[j->variant], j->spec.first_phase);
    const size_t own = alone_bytes(core, &d);
    const size_t taken = sl_core_bytes_besides(core, &d, SCOPE_PINNED);
    const size_t room = core->config.limit_bytes > taken ? core->config.limit_bytes - taken : 0;
    size_t others = 0;

    for (int i = 0; i < p->count; i++)
        others += p->on[i].size_bytes;
    while (p->count > 0 && (p->count >= p->lanes || own + others > room)) {
        end_one(p);
        others = 0;
        for (int i = 0; i < p->count; i++)
            others += p->on[i].size_bytes;
    }
    if (j->not_before_ns > p->now_ns)
        p->now_ns = j->not_before_ns;
    j->est_begin_ns = p->now_ns;
    j->est_start_ns = j->est_begin_ns + play_loads(p, &d, room);
    j->est_end_ns = j->est_start_ns + run_ns(core, j);
    seat(p, j, j->est_end_ns, own);
}

bool sl_core_estimate_queue(const sl_core *core, job *extra, const job *first, int64_t now_ns)
{
    const job *place = extra ? sl_core_queue_place(core, extra) : NULL;
    play *p = malloc(sizeof *p);

    if (!p)
        return false;
    begin_play(p, core, now_ns);
    for (job *j = core->queue; j && first; j = j->next)
        if (j == first)
            play_job(p, j);
    for (job *j = core->queue; j; j = j->next) {
        if (extra && j == place)
            play_job(p, extra);
        if (j != first)
            play_job(p, j);
    }
    if (extra && !place)
        play_job(p, extra);
    free(p);
    return true;
}

bool sl_core_would_make_late(sl_core *core, const job *j, int64_t now_ns)
{
    bool any = false, late = false;

    for (const job *at = core->queue; at && at != j; at = at->next)
        any = any || at->spec.deadline_ns > 0;
    if (!any || !sl_core_estimate_queue(core, NULL, NULL, now_ns))
        return false;
    for (job *at = core->queue; at; at = at->next)
        at->est_other_ns = at->est_end_ns;
    if (!sl_core_estimate_queue(core, NULL, j, now_ns))
        return false;
    for (const job *at = core->queue; at && at != j; at = at->next)
        late = late || (at->spec.deadline_ns > 0 && at->est_other_ns <= at->spec.deadline_ns &&
                        at->est_end_ns > at->spec.deadline_ns);
    return late;
}

sl_core_estimate sl_core_estimate_of(const sl_core *core, const job *j, int64_t now_ns)
{
    return (sl_core_estimate){
        .queue_ns = j->est_begin_ns - now_ns,
        .load_ns = j->est_start_ns - j->est_begin_ns,
        .run_ns = j->est_end_ns - j->est_start_ns,
        .measured = find_rate(core, j->spec.variants[j->variant].facts.model) != NULL,
    };
}

sl_status sl_core_get_estimate(const sl_core *core, const char *job_id, int64_t now_ns,
                               sl_core_estimate *out, sl_error *err)
{
    int ahead;
    const job *j = sl_core_find_queued(core, job_id, &ahead);

    if (!j)
        return sl_fail(err, SL_ERR_NOT_FOUND, "no job \"%s\" is queued", job_id);
    if (!sl_core_estimate_queue(core, NULL, NULL, now_ns))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to estimate job \"%s\"", job_id);
    *out = sl_core_estimate_of(core, j, now_ns);
    return SL_OK;
}

sl_status sl_core_each_estimate(const sl_core *core, int64_t now_ns,
                                void (*say)(void *arg, const char *job_id,
                                            const sl_core_estimate *estimate),
                                void *arg, sl_error *err)
{
    if (!sl_core_estimate_queue(core, NULL, NULL, now_ns))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to estimate the queue");
    for (const job *j = core->queue; j; j = j->next) {
        const sl_core_estimate estimate = sl_core_estimate_of(core, j, now_ns);
        say(arg, j->spec.job_id, &estimate);
    }
    return SL_OK;
}
