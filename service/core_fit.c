/* Whether a job or a load fits, and what has to go for it. */
#include "service/core_state.h"

#include <string.h>

node *sl_core_find(const sl_core *core, const sl_core_key *key)
{
    for (node *n = core->nodes; n; n = n->next)
        if (!n->evict && n->state != SL_CORE_UNLOADING && sl_core_key_equal(&n->key, key))
            return n;
    return NULL;
}

/* ---- demands ---- */

static unsigned all_of(int count)
{
    return count < 32 ? (1u << count) - 1 : ~0u;
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

demand sl_core_demand_of(const sl_core_variant *variant, int phase)
{
    demand d = { .needs = variant->needs,
                 .count = variant->need_count,
                 .set = all_of(variant->need_count),
                 .activation_bytes = variant->activation_bytes,
                 .facts = &variant->facts };

    if (variant->phase_count == 0)
        return d;
    if (phase > 0 || variant->by_phase)
        d.activation_bytes = 0;
    d.set = 0;
    for (int p = phase; p < variant->phase_count; p++) {
        d.set |= variant->phases[p].needs;
        d.activation_bytes = most(d.activation_bytes, variant->phases[p].activation_bytes);
    }
    if (variant->by_phase) {
        d.phases = variant->phases + phase;
        d.phase_count = variant->phase_count - phase;
    }
    return d;
}

/* What a demand that goes by phase uses in the first of its phases. */
static demand first_phase_of(const demand *d)
{
    demand now = *d;

    if (d->phases) {
        now.set = d->phases[0].needs;
        now.activation_bytes = d->phases[0].activation_bytes;
        now.phases = NULL;
        now.phase_count = 0;
    }
    return now;
}

demand sl_core_demand_left(const job *j)
{
    return sl_core_demand_of(&j->spec.variants[j->variant], j->phase);
}

demand sl_core_demand_now(const job *j)
{
    const demand left = sl_core_demand_left(j);
    return first_phase_of(&left);
}

demand sl_core_demand_of_ticket(const ticket *t)
{
    return (demand){
        .needs = t->needs, .count = t->count, .set = all_of(t->count), .facts = &t->facts
    };
}

static const sl_core_need *find_need(const demand *d, const sl_core_key *key)
{
    FOR_NEEDS(d, i)
    {
        if (sl_core_key_equal(&d->needs[i].key, key))
            return &d->needs[i];
    }
    return NULL;
}

bool sl_core_demand_has(const demand *d, const sl_core_key *key)
{
    return find_need(d, key) != NULL;
}

const job *sl_core_user_of_key(const sl_core *core, const sl_core_key *key)
{
    for (const job *j = core->active; j; j = j->next) {
        const demand now = sl_core_demand_now(j);
        if (sl_core_demand_has(&now, key))
            return j;
    }
    return NULL;
}

/* The same key in another size is another component. */
static bool is_needed(const demand *d, const node *n)
{
    const sl_core_need *need = find_need(d, &n->key);
    return need && need->size_bytes == n->size_bytes;
}

const job *sl_core_user_of(const sl_core *core, const node *n)
{
    for (const job *j = core->active; j && !n->evict; j = j->next) {
        const demand now = sl_core_demand_now(j);
        if (is_needed(&now, n))
            return j;
    }
    return NULL;
}

static bool goes_by_phase(const job *j)
{
    return j->spec.variants[j->variant].by_phase;
}

bool sl_core_demand_has_image(const demand *d, const sl_core_key *key)
{
    FOR_NEEDS(d, i)
    {
        if (sl_core_same_image(&d->needs[i].key, key))
            return true;
    }
    return false;
}

static bool has(const demand *d, const sl_core_key *key, bool any_mode)
{
    return any_mode ? sl_core_demand_has_image(d, key) : sl_core_demand_has(d, key);
}

bool sl_core_is_wanted_by_queue(const sl_core *core, const sl_core_key *key, bool any_mode)
{
    for (const job *j = core->queue; j; j = j->next) {
        const demand d = sl_core_demand_of(&j->spec.variants[j->variant], j->spec.first_phase);
        if (has(&d, key, any_mode))
            return true;
    }
    for (const job *j = core->active; j; j = j->next) {
        const demand left = sl_core_demand_left(j);
        if (left.phases && has(&left, key, any_mode))
            return true;
    }
    return false;
}

/* ---- bytes ---- */

/* The same key, other bytes: the model's files have changed since. */
bool sl_core_is_stale(const demand *d, const node *n)
{
    const sl_core_need *need = find_need(d, &n->key);
    return need && need->size_bytes != n->size_bytes;
}

static bool is_other(const demand *d, const node *n)
{
    return !n->evict && (!d || !sl_core_demand_has(d, &n->key) || sl_core_is_stale(d, n));
}

/* Stays for as long as its holder does: pinned, or used by a job that has all of
 * its components at once. */
static bool is_fixed(const sl_core *core, const node *n, scope s)
{
    if (s == SCOPE_ALONE || n->pinned)
        return s != SCOPE_ALONE;
    if (s == SCOPE_PINNED || n->evict)
        return false;
    for (const job *j = core->active; j; j = j->next) {
        if (goes_by_phase(j))
            continue;
        const demand left = sl_core_demand_left(j);
        if (is_needed(&left, n))
            return true;
    }
    return false;
}

static bool is_fixed_key(const sl_core *core, const sl_core_key *key, scope s)
{
    const node *n = s == SCOPE_ALONE ? NULL : sl_core_find(core, key);
    return n && is_fixed(core, n, s);
}

/* What a demand by phase takes beyond what is fixed anyway: its largest phase.
 * `with` is a demand that would fix its own (NULL: none). */
static size_t pool_bytes(const sl_core *core, const demand *d, const demand *with, scope s)
{
    size_t pool = 0;

    for (int p = 0; p < d->phase_count; p++) {
        size_t sum = d->phases[p].activation_bytes;
        for (int i = 0; i < d->count; i++) {
            const sl_core_key *key = &d->needs[i].key;
            if ((d->phases[p].needs >> i & 1) && !is_fixed_key(core, key, s) &&
                !(with && !with->phases && sl_core_demand_has(with, key)))
                sum += d->needs[i].size_bytes;
        }
        pool = most(pool, sum);
    }
    return pool;
}

size_t sl_core_bytes_of(const sl_core *core, const demand *d, scope s)
{
    size_t sum = d->phases ? pool_bytes(core, d, NULL, s) : d->activation_bytes;

    FOR_NEEDS(d, i)
    {
        if (!d->phases || is_fixed_key(core, &d->needs[i].key, s))
            sum += d->needs[i].size_bytes;
    }
    return sum;
}

size_t sl_core_bytes_besides(const sl_core *core, const demand *d, scope s)
{
    size_t sum = core->config.workspace_bytes;

    for (const node *n = core->nodes; n; n = n->next)
        if (is_other(d, n) && is_fixed(core, n, s))
            sum += n->size_bytes;
    if (s != SCOPE_ACTIVE)
        return sum;
    for (const job *j = core->active; j; j = j->next) {
        const demand left = sl_core_demand_left(j);
        sum += left.phases ? pool_bytes(core, &left, d, s) : left.activation_bytes;
    }
    return sum;
}

/* Nobody is using it, or about to.  now NULL: nobody is asking. */
static bool is_idle(const sl_core *core, const demand *now, const node *n)
{
    return is_other(now, n) && !n->pinned && !sl_core_user_of(core, n);
}

size_t sl_core_booked(const sl_core *core)
{
    size_t sum = sl_core_bytes_besides(core, NULL, SCOPE_ACTIVE);

    for (const node *n = core->nodes; n; n = n->next)
        if (is_idle(core, NULL, n))
            sum += n->size_bytes;
    return sum;
}

size_t sl_core_mapped(const sl_core *core)
{
    size_t sum = core->config.workspace_bytes;

    for (const node *n = core->nodes; n; n = n->next)
        if (n->state != SL_CORE_WANTED)
            sum += n->size_bytes;
    for (const job *j = core->active; j; j = j->next)
        sum += j->mapped_bytes;
    return sum;
}

/* ---- the table ---- */

static unsigned expert_bit(const char *model, const sl_core_key *key)
{
    if ((key->component != SL_COMPONENT_DIT_HIGH && key->component != SL_COMPONENT_DIT_LOW) ||
        key->mode != SL_MODE_RESIDENT || strcmp(key->model, model) != 0)
        return 0;
    return 1u << key->component;
}

static unsigned experts_in(const char *model, const demand *d, unsigned set)
{
    unsigned bits = 0;

    for (int i = 0; i < d->count; i++)
        if (set >> i & 1)
            bits |= expert_bit(model, &d->needs[i].key);
    return bits;
}

/* Experts of d's model that would be resident at once: its own, and those that
 * are there or promised as far as s looks. */
static int count_experts(const sl_core *core, const demand *d, scope s)
{
    const char *model = d->facts->model;
    unsigned others = 0;
    int count = 0;

    for (const node *n = core->nodes; n && s != SCOPE_ALONE; n = n->next)
        if (!n->evict && (s == SCOPE_ALL || n->pinned))
            others |= expert_bit(model, &n->key);
    for (const job *j = core->active; j && s == SCOPE_ACTIVE; j = j->next) {
        const demand left = sl_core_demand_left(j);
        others |= experts_in(model, &left, left.set);
    }
    for (int p = 0; p < (d->phases ? d->phase_count : 1); p++) {
        const unsigned set = d->phases ? d->phases[p].needs : d->set;
        const int bits = __builtin_popcount(others | experts_in(model, d, set));
        count = bits > count ? bits : count;
    }
    return count;
}

static const sl_budget_rule *rule_against(const sl_core *core, const demand *d, scope s)
{
    if (!core->row)
        return NULL;
    sl_budget_facts facts = *d->facts;
    facts.experts = count_experts(core, d, s);
    return sl_budget_find_rule(core->row, &facts);
}

bool sl_core_rule_allows(const sl_core *core, const demand *d)
{
    return rule_against(core, d, SCOPE_ALL) == NULL;
}

/* The table lets d in only without the model's other expert. */
static bool must_go_by_rule(const sl_core *core, const demand *d, const node *n)
{
    return d->facts && expert_bit(d->facts->model, &n->key) && !sl_core_demand_has(d, &n->key) &&
           !sl_core_rule_allows(core, d);
}

bool sl_core_must_go(const sl_core *core, const demand *d, const node *n)
{
    return sl_core_is_stale(d, n) || must_go_by_rule(core, d, n);
}

/* ---- the verdict ---- */

static size_t less(size_t a, size_t b)
{
    return a > b ? a - b : 0;
}

static bool has_stale(const sl_core *core, const demand *d, scope s)
{
    for (const node *n = core->nodes; n && s != SCOPE_ALONE; n = n->next)
        if (is_other(d, n) && sl_core_is_stale(d, n) &&
            (n->pinned || (s == SCOPE_ACTIVE && sl_core_user_of(core, n))))
            return true;
    return false;
}

/* A job that goes by phase will need the same key in another size. */
static bool has_conflict(const sl_core *core, const demand *d)
{
    for (const job *j = core->active; j; j = j->next) {
        const demand left = sl_core_demand_left(j);
        FOR_NEEDS(&left, i)
        {
            const sl_core_need *need = find_need(d, &left.needs[i].key);
            if (need && need->size_bytes != left.needs[i].size_bytes)
                return true;
        }
    }
    return false;
}

bool sl_core_has_job_by_phase(const sl_core *core)
{
    for (const job *j = core->active; j; j = j->next)
        if (goes_by_phase(j))
            return true;
    return false;
}

static bool is_blocked(const sl_core *core, const demand *d, scope s, verdict *v)
{
    v->rule = rule_against(core, d, s);
    return v->rule || has_stale(core, d, s) ||
           (s == SCOPE_ACTIVE && d->phases && sl_core_has_job_by_phase(core)) ||
           (s == SCOPE_ACTIVE && has_conflict(core, d)) ||
           sl_core_bytes_of(core, d, s) + sl_core_bytes_besides(core, d, s) >
               core->config.limit_bytes;
}

static bool is_host_blocked(const sl_core *core, const demand *d, scope s, verdict *v)
{
    return sl_core_is_host_blocked(core, d, false, s, &v->need_bytes, &v->have_bytes);
}

verdict sl_core_judge(const sl_core *core, const demand *d)
{
    verdict v = { .when = SL_CORE_NEVER,
                  .need_bytes = sl_core_bytes_of(core, d, SCOPE_ALONE),
                  .have_bytes = less(core->config.limit_bytes, core->config.workspace_bytes) };

    if (is_blocked(core, d, SCOPE_ALONE, &v)) {
        v.block = v.rule ? BLOCK_RULE : BLOCK_BYTES;
        return v;
    }
    if (is_host_blocked(core, d, SCOPE_ALONE, &v)) {
        v.block = BLOCK_HOST;
        return v;
    }
    v.when = SL_CORE_AFTER;
    v.have_bytes = less(core->config.limit_bytes, sl_core_bytes_besides(core, d, SCOPE_ACTIVE));
    if (is_blocked(core, d, SCOPE_PINNED, &v))
        v.block = BLOCK_PIN;
    else if (is_host_blocked(core, d, SCOPE_PINNED, &v))
        v.block = BLOCK_HOST_PIN;
    else if (!core->up || core->restart)
        v.block = BLOCK_WORKER;
    else if (is_blocked(core, d, SCOPE_ACTIVE, &v))
        v.block = BLOCK_JOB;
    else if (is_host_blocked(core, d, SCOPE_ACTIVE, &v))
        v.block = BLOCK_HOST_JOB;
    else
        v.when = SL_CORE_NOW;
    return v;
}

/* ---- evictions ---- */

static void set_costs(const sl_core *core)
{
    for (node *n = core->nodes; n; n = n->next) {
        const double age = 1.0 + (double)(core->clock - n->used);
        n->cost = (double)sl_core_reload_ns(core, &n->key, n->size_bytes) / age;
        if (sl_core_is_wanted_by_queue(core, &n->key, false))
            n->cost += 1e30;
    }
}

static node *cheapest_unpicked(const sl_core *core, const demand *now)
{
    node *best = NULL;

    for (node *n = core->nodes; n; n = n->next)
        if (!n->pick && (!best || n->cost < best->cost) && is_idle(core, now, n))
            best = n;
    return best;
}

static node *dearest_sparable(const sl_core *core, const demand *now, size_t spare_bytes)
{
    node *best = NULL;

    for (node *n = core->nodes; n; n = n->next)
        if (n->pick && n->size_bytes <= spare_bytes && (!best || n->cost > best->cost) &&
            !sl_core_must_go(core, now, n))
            best = n;
    return best;
}

/* Sets node.pick for the victims of d, or of a job's next phase when d is NULL:
 * those that must go for `now`, then the cheapest until there is room, then without
 * the ones that turn out unnecessary, the dearest first. */
void sl_core_pick_victims(const sl_core *core, const demand *d, const demand *now)
{
    const size_t limit = core->config.limit_bytes;
    size_t booked = sl_core_bytes_besides(core, d, SCOPE_ACTIVE);
    node *n;

    if (d)
        booked += sl_core_bytes_of(core, d, SCOPE_ACTIVE);
    for (n = core->nodes; n; n = n->next) {
        const bool idle = is_idle(core, now, n);
        n->pick = idle && sl_core_must_go(core, now, n);
        if (idle && !n->pick)
            booked += n->size_bytes;
    }
    if (booked > limit)
        set_costs(core);
    while (booked > limit && (n = cheapest_unpicked(core, now)) != NULL) {
        n->pick = true;
        booked -= n->size_bytes;
    }
    while (booked < limit && (n = dearest_sparable(core, now, limit - booked)) != NULL) {
        n->pick = false;
        booked += n->size_bytes;
    }
}

bool sl_core_would_evict(const sl_core *core, const demand *d)
{
    const demand now = first_phase_of(d);
    bool any = false;

    sl_core_pick_victims(core, d, &now);
    for (const node *n = core->nodes; n && !any; n = n->next)
        any = n->pick;
    return any;
}

void sl_core_evict_for(sl_core *core, const demand *d, const demand *now, uint64_t for_ticket)
{
    const demand first = now ? *now : first_phase_of(d);

    sl_core_pick_victims(core, d, &first);
    /* First all verdicts: each looks at the others. */
    for (node *n = core->nodes; n; n = n->next)
        n->must = n->pick ? sl_core_must_go(core, &first, n) : n->must;
    for (node *n = core->nodes, *next; n; n = next) {
        next = n->next;
        if (!n->pick)
            continue;
        n->pick = false;
        if (n->state == SL_CORE_WANTED) {
            sl_core_remove(core, n); /* was to come early for a later phase */
            continue;
        }
        n->evict = true;
        n->for_ticket = for_ticket;
    }
}
