#include "service/core_sim.h"

#include <string.h>

static const sl_component_kind part_kind[PARTS] = { SL_COMPONENT_TEXT_ENCODER,
                                                    SL_COMPONENT_DIT_HIGH, SL_COMPONENT_DIT_LOW,
                                                    SL_COMPONENT_VAE };

void sim_trace(const sim *s, const char *fmt, ...)
{
    va_list va;

    if (s->trace_from == 0 || s->step < s->trace_from)
        return;
    va_start(va, fmt);
    fprintf(stderr, "%ld  ", s->step);
    vfprintf(stderr, fmt, va);
    fputc('\n', stderr);
    va_end(va);
}

static void trace_action(const sim *s, const sl_core_action *a)
{
    static const char *const names[] = { "none",   "load",         "unload",   "run",
                                         "cancel", "restart",      "admitted", "requeued",
                                         "ended",  "ticket ended", "pin lost", "fill",
                                         "drop",   "trim",         "preempt",  "go" };
    char key[SL_CORE_TEXT_BYTES];

    sim_trace(s, "%-12s %s %s t%llu %zu%s %s %s", names[a->kind], a->job_id,
              a->key.model[0] ? sl_core_key_text(&a->key, key, sizeof key) : "",
              (unsigned long long)a->ticket, a->size_bytes / G, a->from_host ? " from host" : "",
              a->status ? sl_status_text(a->status) : "", a->message);
}

uint64_t sim_roll(sim *s, uint64_t sides)
{
    s->random += 0x9e3779b97f4a7c15u;
    uint64_t z = s->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % sides;
}

/* ---- names ---- */

bool sim_has_part(int model, int part)
{
    return part != 2 || model >= MODELS - 2;
}

sl_core_key sim_key(int model, int part, sl_component_mode mode)
{
    sl_core_key key = { .component = part_kind[part],
                        .precision = SL_PRECISION_BF16,
                        .mode = mode };

    snprintf(key.model, sizeof key.model, "m%d", model);
    return key;
}

static void find_place(const sim *s, const sl_core_key *key, int *model, int *part)
{
    *model = key->model[1] - '0';
    *part = 0;
    while (*part < PARTS && part_kind[*part] != key->component)
        ++*part;
    SIM_CHECK(s, *model >= 0 && *model < MODELS && *part < PARTS);
}

sim_component *sim_find(sim *s, const sl_core_key *key)
{
    int model, part;

    find_place(s, key, &model, &part);
    return &s->c[model][part][key->mode];
}

sim_image *sim_find_image(sim *s, const sl_core_key *key)
{
    int model, part;

    find_place(s, key, &model, &part);
    return &s->images_of[model][part];
}

static bool same_image(sl_core_key a, const sl_core_key *b)
{
    a.mode = b->mode;
    return sl_core_key_equal(&a, b);
}

sim_job *sim_find_job(sim *s, const char *job_id)
{
    for (int i = 0; i < MAX_OPEN; i++)
        if (s->jobs[i].state != FREE && strcmp(s->jobs[i].spec.job_id, job_id) == 0)
            return &s->jobs[i];
    return NULL;
}

sim_ticket *sim_find_ticket(sim *s, uint64_t id)
{
    for (int i = 0; i < MAX_OPEN_TICKETS && id; i++)
        if (s->tickets[i].id == id)
            return &s->tickets[i];
    return NULL;
}

int sim_open_jobs(const sim *s, sim_state state)
{
    int count = 0;

    for (int i = 0; i < MAX_OPEN; i++)
        count += s->jobs[i].state == state;
    return count;
}

const sl_core_variant *sim_variant(const sim_job *j)
{
    return &j->spec.variants[j->variant];
}

unsigned sim_needs(const sim_job *j)
{
    const sl_core_variant *v = sim_variant(j);
    unsigned set = v->phase_count ? 0 : (1u << v->need_count) - 1;

    for (int p = j->phase; p < v->phase_count; p++)
        if (!v->by_phase || p == j->phase)
            set |= v->phases[p].needs;
    return set;
}

size_t sim_activation(const sim_job *j)
{
    const sl_core_variant *v = sim_variant(j);
    size_t most = 0;

    if (v->phase_count == 0 || (j->phase == 0 && !v->by_phase))
        return v->activation_bytes;
    for (int p = j->phase; p < v->phase_count; p++)
        if ((!v->by_phase || p == j->phase) && v->phases[p].activation_bytes > most)
            most = v->phases[p].activation_bytes;
    return most;
}

static bool is_active(const sim_job *j)
{
    return j->state == ADMITTED || j->state == RUNNING;
}

static bool uses(const sim_job *j, const sl_core_key *key)
{
    const sl_core_variant *v = sim_variant(j);

    for (int i = 0; i < v->need_count; i++)
        if ((sim_needs(j) >> i & 1) && sl_core_key_equal(&v->needs[i].key, key))
            return true;
    return false;
}

static bool is_held_by_user(const sim *s, const sim_job *j, const sim_job *but)
{
    int count = 0;

    for (int i = 0; i < MAX_OPEN; i++)
        count += is_active(&s->jobs[i]) && &s->jobs[i] != but &&
                 strcmp(s->jobs[i].spec.user, j->spec.user) == 0;
    return s->limits.user_running_limit > 0 && j->spec.user[0] &&
           count >= s->limits.user_running_limit;
}

/* ---- commands of the loader lane ---- */

static void on_load(sim *s, const sl_core_action *a)
{
    sim_component *c = sim_find(s, &a->key);
    const sim_image *image = sim_find_image(s, &a->key);

    SIM_CHECK(s, !c->resident);
    SIM_CHECK(s, a->from_host || a->key.mode == SL_MODE_RESIDENT);
    SIM_CHECK(s, !a->from_host || (image->there && !image->broken));
    SIM_CHECK(s, !a->from_host || a->key.mode == SL_MODE_STREAMED || image->size == a->size_bytes);
    c->size = a->size_bytes;
    s->mapped += a->size_bytes;
    SIM_CHECK(s, s->mapped <= s->config.limit_bytes);
    s->loads++;
    s->host_loads += a->from_host;
}

/* Whether a ticket that is open takes this component away. */
static bool is_meant(sim *s, uint64_t ticket, const sl_core_key *key, bool image)
{
    const sim_ticket *t = sim_find_ticket(s, ticket);
    bool listed = false;

    SIM_CHECK(s, t != NULL);
    for (int i = 0; i < t->count; i++)
        listed =
            listed || (image ? same_image(t->keys[i], key) : sl_core_key_equal(&t->keys[i], key));
    return !t->is_load && !t->trim && listed != t->others;
}

static void on_unload(sim *s, const sl_core_action *a)
{
    sim_component *c = sim_find(s, &a->key);

    SIM_CHECK(s, c->resident && c->size == a->size_bytes);
    SIM_CHECK(s, !c->pinned || is_meant(s, a->ticket, &a->key, false));
    for (int i = 0; i < MAX_OPEN; i++)
        /* One that waits for it may have been admitted since: it is loaded again then. */
        SIM_CHECK(s,
                  s->jobs[i].state != RUNNING || s->jobs[i].waiting || !uses(&s->jobs[i], &a->key));
    s->unloads++;
}

static void on_fill(sim *s, const sl_core_action *a)
{
    sim_image *image = sim_find_image(s, &a->key);

    SIM_CHECK(s, !image->there);
    s->images += a->size_bytes;
    SIM_CHECK(s, s->images <= s->limits.host_limit_bytes);
    image->size = a->size_bytes;
    s->fills++;
}

static void on_drop(sim *s, const sl_core_action *a)
{
    const sim_image *image = sim_find_image(s, &a->key);
    sl_core_key streamed = a->key;

    streamed.mode = SL_MODE_STREAMED;
    SIM_CHECK(s, image->there && image->size == a->size_bytes);
    SIM_CHECK(s, !sim_find(s, &streamed)->resident);
    SIM_CHECK(s, !image->pinned || is_meant(s, a->ticket, &a->key, true));
    s->drops++;
}

/* ---- jobs ---- */

static void check_components(sim *s, const sim_job *j)
{
    const sl_core_variant *v = sim_variant(j);

    for (int i = 0; i < v->need_count; i++) {
        const sim_component *c = sim_find(s, &v->needs[i].key);
        if (!(sim_needs(j) >> i & 1))
            continue;
        SIM_CHECK(s, c->resident && c->size == v->needs[i].size_bytes);
        SIM_CHECK(s, v->needs[i].key.mode == SL_MODE_RESIDENT ||
                         (sim_find_image(s, &v->needs[i].key)->there &&
                          !sim_find_image(s, &v->needs[i].key)->broken &&
                          sim_find_image(s, &v->needs[i].key)->size == v->needs[i].host_bytes));
    }
}

static void on_run(sim *s, const sl_core_action *a)
{
    sim_job *j = sim_find_job(s, a->job_id);

    SIM_CHECK(s, s->up && !s->must_die && j && j->state == ADMITTED);
    SIM_CHECK(s, a->attempt == j->attempt && a->variant == j->variant && a->phase == j->phase);
    SIM_CHECK(s, a->size_bytes == sim_activation(j));
    SIM_CHECK(s, a->lane >= 0 && a->lane < s->limits.max_running_jobs);
    for (int i = 0; i < MAX_OPEN; i++)
        SIM_CHECK(s, s->jobs[i].state != RUNNING || s->jobs[i].lane != a->lane);
    check_components(s, j);
    j->state = RUNNING;
    j->lane = a->lane;
    j->command_id = a->command_id;
    j->mapped = a->size_bytes;
    s->mapped += j->mapped;
    SIM_CHECK(s, s->mapped <= s->config.limit_bytes);
    s->side_by_side += sim_open_jobs(s, RUNNING) > 1;
    s->streamed_runs += sim_variant(j)->streams;
    s->by_phase_runs += sim_variant(j)->by_phase;
}

static void on_go(sim *s, const sl_core_action *a)
{
    sim_job *j = sim_find_job(s, a->job_id);

    SIM_CHECK(s, s->up && !s->must_die && j && j->state == RUNNING && j->waiting);
    SIM_CHECK(s, a->phase == j->phase && a->size_bytes == sim_activation(j));
    check_components(s, j);
    s->mapped += a->size_bytes - j->mapped;
    j->mapped = a->size_bytes;
    SIM_CHECK(s, s->mapped <= s->config.limit_bytes);
    j->waiting = j->started = false;
    s->gos++;
}

/* An active job has one of its components in another size: the files have changed. */
static bool has_conflict(const sim *s, const sim_job *j, const sl_core_variant *v)
{
    for (int i = 0; i < MAX_OPEN; i++) {
        const sim_job *other = &s->jobs[i];
        const sl_core_variant *w = sim_variant(other);
        for (int a = 0; a < v->need_count && is_active(other) && other != j; a++)
            for (int b = 0; b < w->need_count; b++)
                if (sl_core_key_equal(&v->needs[a].key, &w->needs[b].key) &&
                    v->needs[a].size_bytes != w->needs[b].size_bytes)
                    return true;
    }
    return false;
}

/* Nobody more urgent that would fit is left waiting, but for one that has been
 * passed often enough and those who have a deadline to lose. */
static void check_priority(sim *s, const sim_job *k)
{
    sl_core_answer answer;
    sl_error error;

    if (k->passed >= s->limits.bypass_limit)
        return;
    for (int i = 0; i < MAX_OPEN; i++)
        if (s->jobs[i].state == QUEUED && s->jobs[i].spec.deadline_ns > 0)
            return;
    for (int i = 0; i < MAX_OPEN; i++) {
        const sim_job *j = &s->jobs[i];
        if (j->state != QUEUED || j->spec.priority <= k->spec.priority ||
            j->not_before_ns > s->now_ns || is_held_by_user(s, j, k))
            continue;
        SIM_CHECK(s, sl_core_waiting_for(s->core, j->spec.job_id, &answer, &error) == SL_OK);
        /* k may have been what one by phase waits for, or have evicted what held the
         * image that one which streams waits for. */
        if (answer.variant < 0 || j->spec.variants[answer.variant].by_phase ||
            j->spec.variants[answer.variant].streams || answer.rule[0] || answer.host ||
            has_conflict(s, j, &j->spec.variants[answer.variant]))
            continue;
        sim_trace(s, "%s (priority %d) is passed over, variant %d: %s", j->spec.job_id,
                  j->spec.priority, answer.variant, answer.message);
        SIM_CHECK(s, answer.pinned || answer.have_bytes < answer.need_bytes);
    }
}

static void on_admitted(sim *s, const sl_core_action *a)
{
    sim_job *k = sim_find_job(s, a->job_id);

    SIM_CHECK(s, k && k->state == QUEUED && s->up && !s->draining);
    SIM_CHECK(s, a->attempt == k->attempt && k->not_before_ns <= s->now_ns);
    SIM_CHECK(s, !is_held_by_user(s, k, k));
    for (int i = 0; i < MAX_OPEN; i++) {
        sim_job *j = &s->jobs[i];
        if (j->state != QUEUED || j->seq >= k->seq || is_held_by_user(s, j, k))
            continue;
        SIM_CHECK(s, ++j->passed <= s->limits.bypass_limit);
        s->passes++;
        if (j->passed > s->most_passed)
            s->most_passed = j->passed;
    }
    check_priority(s, k);
    k->state = ADMITTED;
    k->variant = a->variant;
    k->phase = k->spec.first_phase;
    SIM_CHECK(s, sim_open_jobs(s, ADMITTED) + sim_open_jobs(s, RUNNING) <=
                     s->limits.max_running_jobs + s->limits.prepare_jobs);
    s->admitted++;
}

static void leave_device(sim *s, sim_job *j)
{
    SIM_CHECK(s, j->command_id == 0); /* the worker has ended its run, or is gone */
    j->started = j->waiting = j->preempt_told = j->cancel_told = false;
}

static void on_requeued(sim *s, const sl_core_action *a)
{
    sim_job *j = sim_find_job(s, a->job_id);
    const sl_core_variant *v;

    SIM_CHECK(s, j && is_active(j) && !j->cancelled);
    SIM_CHECK(s, a->attempt == j->attempt || (!s->replaced && a->attempt == j->attempt + 1));
    SIM_CHECK(s, a->attempt <= s->config.retry_limit + 1);
    leave_device(s, j);
    v = sim_variant(j);
    for (int p = 1; p <= j->phase && p < v->phase_count && !j->state_lost; p++)
        if (v->phases[p].resume_point && p > j->spec.first_phase)
            j->spec.first_phase = p;
    j->attempt = a->attempt;
    j->state = QUEUED;
    if (a->status == SL_ERR_NO_MEMORY)
        j->not_before_ns = s->now_ns + s->config.memory_backoff_ns;
    s->requeued++;
}

static void on_ended(sim *s, const sl_core_action *a)
{
    sim_job *j = sim_find_job(s, a->job_id);

    SIM_CHECK(s, j && a->attempt <= j->attempt + 1);
    SIM_CHECK(s, (a->status == SL_ERR_CANCELLED) <= j->cancelled);
    SIM_CHECK(s, (a->status == SL_OK) <= (j->state == RUNNING));
    SIM_CHECK(s, (a->status == SL_ERR_TIMEOUT) <= (j->state == QUEUED && j->spec.deadline_ns > 0 &&
                                                   j->spec.deadline_ns <= s->now_ns));
    SIM_CHECK(s, (a->status == SL_ERR_TOO_LARGE) <=
                     (j->state == QUEUED && j->refusable && a->answer.when == SL_CORE_NEVER));
    SIM_CHECK(s, !strstr(a->message, "books")); /* there was memory */
    leave_device(s, j);
    j->state = FREE;
    s->ended[a->status]++;
}

static void on_stop(sim *s, const sl_core_action *a)
{
    sim_job *j = sim_find_job(s, a->job_id);

    SIM_CHECK(s, j && j->state == RUNNING && j->command_id);
    if (a->kind == SL_CORE_PREEMPT) {
        SIM_CHECK(s, !j->preempt_told);
        j->preempt_told = true;
        s->preempts++;
    } else {
        SIM_CHECK(s, !j->cancel_told);
        j->cancel_told = true;
    }
}

/* ---- tickets ---- */

static void check_receipt(sim *s, const sl_core_receipt *r)
{
    SIM_CHECK(s, r->residue_bytes == 0);
    for (int i = 0; i < r->line_count; i++)
        SIM_CHECK(s, r->lines[i].measured_bytes == 0 ||
                         r->lines[i].measured_bytes <= r->lines[i].planned_bytes);
}

/* What an unload has begun to take away is pinned no more, whatever becomes of it. */
static void unpin_by(sim *s, sim_ticket *t)
{
    if (t->unpinned)
        return;
    t->unpinned = true;
    for (int m = 0; m < MODELS; m++)
        for (int p = 0; p < PARTS; p++)
            for (int mode = 0; mode < MODES; mode++) {
                const sl_core_key key = sim_key(m, p, mode);
                if (is_meant(s, t->id, &key, false))
                    s->c[m][p][mode].pinned = false;
                if (is_meant(s, t->id, &key, true) && t->mode != SL_CORE_UNLOAD_SOFT)
                    s->images_of[m][p].pinned = false;
            }
}

static void on_ticket_ended(sim *s, const sl_core_action *a)
{
    sim_ticket *t = sim_find_ticket(s, a->ticket);

    SIM_CHECK(s, t != NULL && !strstr(a->message, "books"));
    check_receipt(s, &a->receipt);
    /* Unloads that were asked for before this load have begun before it. */
    for (int i = 0; i < MAX_OPEN_TICKETS && t->is_load; i++)
        if (s->tickets[i].id && s->tickets[i].id < t->id && !s->tickets[i].is_load)
            unpin_by(s, &s->tickets[i]);
    for (int i = 0; i < t->count && a->status == SL_OK && t->is_load; i++) {
        sim_component *c = sim_find(s, &t->keys[i]);
        sim_image *image = sim_find_image(s, &t->keys[i]);
        if (t->host)
            image->pinned = true;
        else
            c->pinned = true;
        SIM_CHECK(s, t->host ? image->there : c->resident);
    }
    if (a->status == SL_OK && !t->is_load)
        unpin_by(s, t);
    t->id = 0;
    s->tickets_ended++;
}

static void on_lost(sim *s, const sl_core_action *a)
{
    if (a->from_host)
        sim_find_image(s, &a->key)->pinned = false;
    else
        sim_find(s, &a->key)->pinned = false;
}

static void on_lane_action(sim *s, const sl_core_action *a)
{
    SIM_CHECK(s, !s->must_die && s->command.kind == SL_CORE_NONE);
    SIM_CHECK(s, s->up || a->kind == SL_CORE_HOST_DROP);
    SIM_CHECK(s, a->command_id > 0);
    s->command = *a;
    if (a->kind == SL_CORE_LOAD) {
        on_load(s, a);
    } else if (a->kind == SL_CORE_UNLOAD) {
        on_unload(s, a);
    } else if (a->kind == SL_CORE_HOST_FILL) {
        on_fill(s, a);
    } else if (a->kind == SL_CORE_HOST_DROP) {
        on_drop(s, a);
    } else {
        SIM_CHECK(s, sim_find_ticket(s, a->ticket));
        s->trims++;
    }
}

static void on_action(sim *s, const sl_core_action *a)
{
    switch (a->kind) {
    case SL_CORE_LOAD:
    case SL_CORE_UNLOAD:
    case SL_CORE_HOST_FILL:
    case SL_CORE_HOST_DROP:
    case SL_CORE_TRIM:
        on_lane_action(s, a);
        break;
    case SL_CORE_RUN:
        on_run(s, a);
        break;
    case SL_CORE_PHASE_GO:
        on_go(s, a);
        break;
    case SL_CORE_CANCEL:
    case SL_CORE_PREEMPT:
        on_stop(s, a);
        break;
    case SL_CORE_RESTART:
        SIM_CHECK(s, s->up && !s->must_die);
        s->must_die = true;
        break;
    case SL_CORE_JOB_ADMITTED:
        on_admitted(s, a);
        break;
    case SL_CORE_JOB_REQUEUED:
        on_requeued(s, a);
        break;
    case SL_CORE_JOB_ENDED:
        on_ended(s, a);
        break;
    case SL_CORE_TICKET_ENDED:
        on_ticket_ended(s, a);
        break;
    case SL_CORE_PIN_LOST:
        on_lost(s, a);
        break;
    case SL_CORE_NONE:
        SIM_CHECK(s, false);
    }
    /* With an unload's first command or its end its pins are off. */
    if (a->ticket && (a->kind == SL_CORE_UNLOAD || a->kind == SL_CORE_HOST_DROP)) {
        sim_ticket *t = sim_find_ticket(s, a->ticket);
        if (t && !t->is_load)
            unpin_by(s, t);
    }
}

/* ---- what must be true at any time ---- */

static void check_ledger(sim *s)
{
    sl_core_ledger l;

    sl_core_get_ledger(s->core, s->told, &l);
    SIM_CHECK(s, l.limit_bytes == s->config.limit_bytes);
    SIM_CHECK(s, l.unexplained_bytes == 0);
    SIM_CHECK(s, l.booked_bytes <= l.limit_bytes);
    SIM_CHECK(s, l.workspace_bytes + l.weights_bytes + l.activations_bytes + l.reserved_bytes +
                         l.free_bytes ==
                     l.limit_bytes);
    if (s->up)
        SIM_CHECK(s, l.workspace_bytes + l.weights_bytes + l.activations_bytes == s->told);
    SIM_CHECK(s, l.host_used_bytes == s->images);
    SIM_CHECK(s, l.host_used_bytes <= l.host_limit_bytes);
}

/* By a load that is open. */
static bool is_asked_for(const sim *s, const sl_core_key *key, bool host)
{
    for (int i = 0; i < MAX_OPEN_TICKETS; i++) {
        const sim_ticket *t = &s->tickets[i];
        for (int k = 0; k < t->count && t->id && t->is_load && t->host == host; k++)
            if (host ? same_image(t->keys[k], key) : sl_core_key_equal(&t->keys[k], key))
                return true;
    }
    return false;
}

/* Each component as the core has it is as the worker has it. */
static void check_components_shown(sim *s)
{
    size_t weights = 0, images = 0;

    for (int i = 0; i < sl_core_component_count(s->core); i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        SIM_CHECK(s, !c.evicting || (!c.pinned && c.users == 0));
        SIM_CHECK(s, !c.pinned || sim_find(s, &c.key)->pinned || is_asked_for(s, &c.key, false));
        SIM_CHECK(s, !c.host_pinned || sim_find_image(s, &c.key)->pinned ||
                         is_asked_for(s, &c.key, true));
        if (c.state == SL_CORE_READY || c.state == SL_CORE_UNLOADING) {
            SIM_CHECK(s, sim_find(s, &c.key)->resident);
            weights += c.size_bytes;
        }
        if (c.state != SL_CORE_WANTED && c.key.mode == SL_MODE_STREAMED &&
            c.state != SL_CORE_ABSENT && c.state != SL_CORE_UNLOADING)
            SIM_CHECK(s, sim_find_image(s, &c.key)->there);
        if (c.host_state != SL_CORE_HOST_ABSENT && c.host_state != SL_CORE_HOST_WANTED)
            images += c.host_bytes;
    }
    SIM_CHECK(s, images <= s->images);
    SIM_CHECK(s, weights <= s->told);
}

static void trace_components(const sim *s)
{
    char text[SL_CORE_TEXT_BYTES];

    for (int i = 0; i < sl_core_component_count(s->core) && s->trace_from; i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        sim_trace(s, "    %s %zu state %d%s%s users %d, image %zu state %d%s",
                  sl_core_key_text(&c.key, text, sizeof text), c.size_bytes / G, c.state,
                  c.pinned ? " pinned" : "", c.evicting ? " evicting" : "", c.users,
                  c.host_bytes / G, c.host_state, c.host_pinned ? " pinned" : "");
    }
}

/* Nothing that could go on stands still. */
static void check_progress(sim *s)
{
    sl_core_answer answer;
    sl_error error;

    SIM_CHECK(s, sl_core_wake_ns(s->core) > s->now_ns);
    trace_components(s);
    if (!s->up || s->must_die || s->command.kind != SL_CORE_NONE || sim_open_jobs(s, RUNNING) > 0)
        return;
    SIM_CHECK(s, sim_open_jobs(s, ADMITTED) == 0 && sl_core_active_count(s->core) == 0);
    for (int i = 0; i < MAX_OPEN_TICKETS; i++)
        SIM_CHECK(s, s->tickets[i].id == 0);
    if (s->draining)
        return;
    /* Each waits for a pin, for its time after a refusal by the driver, or for one
     * that has been passed often enough and does. */
    bool wait = false;
    for (int i = 0; i < MAX_OPEN; i++) {
        const sim_job *j = &s->jobs[i];
        if (j->state == QUEUED && (j->passed >= s->limits.bypass_limit || j->spec.deadline_ns > 0))
            wait = true;
    }
    for (int i = 0; i < MAX_OPEN; i++) {
        const sim_job *j = &s->jobs[i];
        if (j->state != QUEUED || sl_core_wake_ns(s->core) != INT64_MAX)
            continue;
        SIM_CHECK(s, sl_core_waiting_for(s->core, j->spec.job_id, &answer, &error) == SL_OK);
        sim_trace(s, "%s of %s priority %d, passed %d of %d: %s", j->spec.job_id, j->spec.user,
                  j->spec.priority, j->passed, s->limits.bypass_limit, answer.message);
        if (!answer.pinned && !wait)
            sim_trace(s, "%s stands still: %s", j->spec.job_id, answer.message);
        SIM_CHECK(s, answer.pinned || wait);
        wait = wait || answer.pinned;
    }
}

void sim_drain(sim *s)
{
    static sl_core_action action;

    for (int i = 0; sl_core_next(s->core, s->now_ns, &action); i++) {
        SIM_CHECK(s, i < 10000);
        trace_action(s, &action);
        on_action(s, &action);
        check_ledger(s);
    }
    s->replaced = false;
    check_ledger(s);
    check_components_shown(s);
    check_progress(s);
}

/* ---- the worker's side ---- */

void sim_worker_comes(sim *s)
{
    if (s->up)
        return;
    s->up = true;
    s->mapped = s->told = s->config.workspace_bytes;
    sl_core_worker_up(s->core, s->config.workspace_bytes);
}

void sim_worker_dies(sim *s)
{
    for (int m = 0; m < MODELS; m++)
        for (int p = 0; p < PARTS; p++)
            for (int mode = 0; mode < MODES; mode++)
                s->c[m][p][mode].resident = false;
    for (int i = 0; i < MAX_OPEN; i++) {
        s->jobs[i].command_id = 0;
        s->jobs[i].mapped = s->jobs[i].told = 0;
    }
    if (s->command.kind == SL_CORE_HOST_FILL)
        sim_find_image(s, &s->command.key)->there = sim_find_image(s, &s->command.key)->broken =
            true; /* what there is of it */
    s->command.kind = SL_CORE_NONE;
    s->mapped = s->told = 0;
    s->up = s->must_die = false;
    s->deaths++;
    s->replaced = sim_roll(s, 4) == 0;
    sim_trace(s, s->replaced ? "worker is replaced" : "worker dies");
    if (s->replaced)
        sl_core_worker_replaced(s->core, "replaced by the simulation");
    else
        sl_core_worker_down(s->core, "killed by the simulation");
}

static sl_status roll_status(sim *s, sl_core_action_kind kind)
{
    if (kind == SL_CORE_HOST_DROP)
        return SL_OK;
    if (kind == SL_CORE_UNLOAD || kind == SL_CORE_TRIM)
        return sim_roll(s, 200) == 0 ? SL_ERR_INTERNAL : SL_OK;
    switch (sim_roll(s, 40)) {
    case 0:
        return SL_ERR_DATA;
    case 1:
        return SL_ERR_NO_MEMORY;
    case 2:
        return sim_roll(s, 5) == 0 ? SL_ERR_DEVICE : SL_OK;
    default:
        return SL_OK;
    }
}

static void finish_load(sim *s, sim_component *c, sl_core_done *done)
{
    if (done->status == SL_OK) {
        c->resident = true;
        done->component_bytes = c->size;
        done->after_bytes += c->size;
        s->told += c->size;
    } else {
        s->mapped -= c->size;
    }
}

static void finish_unload(sim *s, sim_component *c, sl_core_done *done)
{
    if (done->status != SL_OK)
        return;
    c->resident = false;
    done->after_bytes -= c->size;
    s->told -= c->size;
    s->mapped -= c->size;
}

bool sim_finish_command(sim *s, bool well)
{
    const sl_core_action a = s->command;

    if (a.kind == SL_CORE_NONE)
        return false;
    sl_core_done done = { .message = "", .before_bytes = s->told, .after_bytes = s->told };
    done.status = well ? SL_OK : roll_status(s, a.kind);
    done.duration_ns = 1 + (int64_t)sim_roll(s, SL_NS_PER_S);
    sim_component *c = a.kind == SL_CORE_TRIM ? NULL : sim_find(s, &a.key);
    if (a.kind == SL_CORE_LOAD) {
        finish_load(s, c, &done);
    } else if (a.kind == SL_CORE_UNLOAD) {
        finish_unload(s, c, &done);
    } else if (a.kind == SL_CORE_HOST_FILL && done.status == SL_ERR_DEVICE) {
        ;
    } else if (c) {
        sim_image *image = sim_find_image(s, &a.key);
        image->there = a.kind == SL_CORE_HOST_FILL && done.status == SL_OK;
        image->broken = false;
        if (!image->there)
            s->images -= a.size_bytes;
    }
    done.peak_bytes = s->told;
    sim_trace(s, "lane done: %s", sl_status_text(done.status));
    if (done.status != SL_ERR_DEVICE)
        s->command.kind = SL_CORE_NONE;
    SIM_CHECK(s, sl_core_command_done(s->core, a.command_id, &done, s->now_ns));
    SIM_CHECK(s, done.status == SL_ERR_DEVICE ||
                     !sl_core_command_done(s->core, a.command_id, &done, s->now_ns));
    return true;
}

static void finish_run(sim *s, sim_job *j, bool well)
{
    const uint64_t id = j->command_id;
    sl_core_done done = { .message = "as the simulation wants it" };

    done.status = well ? SL_OK : roll_status(s, SL_CORE_RUN);
    if ((j->cancel_told || j->preempt_told) && sim_roll(s, 4))
        done.status = SL_ERR_CANCELLED;
    else if (j->waiting && done.status == SL_OK)
        done.status = SL_ERR_DATA;
    sim_trace(s, "run of %s done: %s", j->spec.job_id, sl_status_text(done.status));
    s->mapped -= j->mapped;
    s->told -= j->told;
    j->mapped = j->told = 0;
    j->command_id = 0;
    SIM_CHECK(s, sl_core_command_done(s->core, id, &done, s->now_ns));
    SIM_CHECK(s, !sl_core_command_done(s->core, id, &done, s->now_ns));
}

bool sim_advance(sim *s, sim_job *j, bool well)
{
    const sl_core_variant *v = sim_variant(j);

    if (j->state != RUNNING || !j->command_id)
        return false;
    if (j->cancel_told || j->preempt_told || (!well && sim_roll(s, 30) == 0)) {
        finish_run(s, j, well);
    } else if (j->waiting) {
        return false;
    } else if (!j->started) {
        j->started = true;
        s->told += j->mapped - j->told;
        j->told = j->mapped;
        sl_core_job_started(s->core, j->spec.job_id);
    } else if (j->phase + 1 < v->phase_count) {
        j->phase++;
        const size_t bytes = sim_activation(j);
        if (bytes < j->mapped || !v->by_phase) {
            s->mapped -= j->mapped - bytes;
            j->mapped = bytes;
        }
        s->told -= j->told - j->mapped;
        j->told = j->mapped;
        j->waiting = v->by_phase;
        sim_trace(s, "phase %d of %s%s", j->phase, j->spec.job_id, j->waiting ? ", waits" : "");
        sl_core_phase(s->core, j->spec.job_id, j->phase);
    } else {
        finish_run(s, j, well);
    }
    return true;
}
