/* Whether a job or a load fits, why not, and what has to go for it. */
#include "service/core_state.h"

#include "base/size.h"

#include <stdio.h>
#include <string.h>

bool sl_core_key_equal(const sl_core_key *a, const sl_core_key *b)
{
    return a->component == b->component && a->precision == b->precision &&
           strcmp(a->model, b->model) == 0;
}

char *sl_core_key_text(const sl_core_key *key, char *buf, size_t buf_bytes)
{
    snprintf(buf, buf_bytes, "%s/%s (%s)", key->model, sl_component_name(key->component),
             sl_precision_name(key->precision));
    return buf;
}

node *sl_core_find(const sl_core *core, const sl_core_key *key)
{
    for (node *n = core->nodes; n; n = n->next)
        if (!n->evict && n->state != SL_CORE_UNLOADING && sl_core_key_equal(&n->key, key))
            return n;
    return NULL;
}

static const sl_core_need *find_need(const demand *d, const sl_core_key *key)
{
    for (int i = 0; i < d->count; i++)
        if (sl_core_key_equal(&d->needs[i].key, key))
            return &d->needs[i];
    return NULL;
}

bool sl_core_demand_has(const demand *d, const sl_core_key *key)
{
    return find_need(d, key) != NULL;
}

demand sl_core_demand_of(const sl_core_job *spec)
{
    return (demand){
        .needs = spec->needs,
        .count = spec->need_count,
        .activation_bytes = spec->activation_bytes,
        .facts = &spec->facts,
    };
}

bool sl_core_in_use(const sl_core *core, const node *n)
{
    if (!core->active)
        return false;
    const demand d = sl_core_demand_of(&core->active->spec);
    return !n->evict && sl_core_demand_has(&d, &n->key);
}

/* ---- the demand ---- */

static size_t demand_bytes(const demand *d)
{
    size_t sum = d->activation_bytes;

    for (int i = 0; i < d->count; i++)
        sum += d->needs[i].size_bytes;
    return sum;
}

static bool key_valid(const sl_core_key *key)
{
    return memchr(key->model, '\0', sizeof key->model) && key->model[0] &&
           (unsigned)key->component < SL_COMPONENT_COUNT &&
           (unsigned)key->precision < SL_PRECISION_COUNT;
}

sl_status sl_core_check(const demand *d, sl_error *err)
{
    size_t sum = d->activation_bytes;

    for (int i = 0; i < d->count; i++) {
        const sl_core_need *need = &d->needs[i];

        if (!key_valid(&need->key))
            return sl_fail(err, SL_ERR_INVALID, "component %d of the request has no valid key", i);
        if (need->size_bytes == 0 || !sl_size_add(sum, need->size_bytes, &sum))
            return sl_fail(err, SL_ERR_INVALID, "component \"%s/%s\" has an impossible size of %zu",
                           need->key.model, sl_component_name(need->key.component),
                           need->size_bytes);
        for (int k = 0; k < i; k++)
            if (sl_core_key_equal(&d->needs[k].key, &need->key))
                return sl_fail(err, SL_ERR_INVALID, "component \"%s/%s\" is asked for twice",
                               need->key.model, sl_component_name(need->key.component));
    }
    /* So that workspace + everything booked cannot overflow either. */
    if (sum > SIZE_MAX / 4)
        return sl_fail(err, SL_ERR_INVALID, "a request of %zu bytes makes no sense", sum);
    return SL_OK;
}

/* ---- what stands in the way ---- */

/* The same key, other bytes: the model's files have changed since. */
static bool is_stale(const demand *d, const node *n)
{
    const sl_core_need *need = find_need(d, &n->key);
    return need && need->size_bytes != n->size_bytes;
}

static bool is_expert_of(const char *model, const sl_core_key *key)
{
    return (key->component == SL_COMPONENT_DIT_HIGH || key->component == SL_COMPONENT_DIT_LOW) &&
           strcmp(key->model, model) == 0;
}

/* Experts of d's model that would be resident at once: its own and those of
 * `others` (NULL: none) that pass. */
static int count_experts(const sl_core *core, const demand *d, bool others, bool pinned_only)
{
    bool has[SL_COMPONENT_COUNT] = { false };
    int count = 0;

    for (int i = 0; i < d->count; i++)
        if (is_expert_of(d->facts->model, &d->needs[i].key))
            has[d->needs[i].key.component] = true;
    for (const node *n = core->nodes; others && n; n = n->next)
        if (!n->evict && (n->pinned || !pinned_only) && is_expert_of(d->facts->model, &n->key))
            has[n->key.component] = true;
    for (int i = 0; i < SL_COMPONENT_COUNT; i++)
        count += has[i];
    return count;
}

static const sl_budget_rule *rule_against(const sl_core *core, const demand *d, int experts)
{
    sl_budget_facts facts = *d->facts;

    facts.experts = experts;
    return sl_budget_find_rule(core->row, &facts);
}

/* The table lets d in only without the model's other expert. */
static bool must_go_by_rule(const sl_core *core, const demand *d, const node *n)
{
    return is_expert_of(d->facts->model, &n->key) && !sl_core_demand_has(d, &n->key) &&
           rule_against(core, d, count_experts(core, d, true, false)) != NULL;
}

static bool must_go(const sl_core *core, const demand *d, const node *n)
{
    return is_stale(d, n) || must_go_by_rule(core, d, n);
}

static bool is_other(const demand *d, const node *n)
{
    return !n->evict && (!sl_core_demand_has(d, &n->key) || is_stale(d, n));
}

static bool is_pinned_other(const demand *d, const node *n)
{
    return n->pinned && is_other(d, n);
}

static size_t pinned_other_bytes(const sl_core *core, const demand *d)
{
    size_t sum = 0;

    for (const node *n = core->nodes; n; n = n->next)
        if (is_pinned_other(d, n))
            sum += n->size_bytes;
    return sum;
}

static size_t active_other_bytes(const sl_core *core, const demand *d)
{
    size_t sum = core->active ? core->active->spec.activation_bytes : 0;

    for (const node *n = core->nodes; n; n = n->next)
        if (is_other(d, n) && !n->pinned && sl_core_in_use(core, n))
            sum += n->size_bytes;
    return sum;
}

static size_t less(size_t a, size_t b)
{
    return a > b ? a - b : 0;
}

static size_t most_bytes(const sl_core *core)
{
    return less(core->config.limit_bytes, core->config.workspace_bytes);
}

/* ---- evictions ---- */

/* No job is active when something is evicted. */
static bool is_idle(const demand *d, const node *n)
{
    return is_other(d, n) && !n->pinned;
}

static node *smallest_unpicked(const sl_core *core, const demand *d)
{
    node *best = NULL;

    for (node *n = core->nodes; n; n = n->next)
        if (!n->pick && is_idle(d, n) && (!best || n->size_bytes < best->size_bytes))
            best = n;
    return best;
}

static node *largest_sparable(const sl_core *core, const demand *d, size_t spare_bytes)
{
    node *best = NULL;

    for (node *n = core->nodes; n; n = n->next)
        if (n->pick && !must_go(core, d, n) && n->size_bytes <= spare_bytes &&
            (!best || n->size_bytes > best->size_bytes))
            best = n;
    return best;
}

/* Sets node.pick for the victims of d: those that must go, then the smallest
 * until there is room, then without the ones that turn out unnecessary, the
 * largest first. */
static void pick_victims(const sl_core *core, const demand *d)
{
    const size_t limit = core->config.limit_bytes;
    size_t booked = core->config.workspace_bytes + demand_bytes(d);
    node *n;

    for (n = core->nodes; n; n = n->next) {
        n->pick = is_idle(d, n) && must_go(core, d, n);
        if (is_other(d, n) && !n->pick)
            booked += n->size_bytes;
    }
    while (booked > limit && (n = smallest_unpicked(core, d)) != NULL) {
        n->pick = true;
        booked -= n->size_bytes;
    }
    while (booked < limit && (n = largest_sparable(core, d, limit - booked)) != NULL) {
        n->pick = false;
        booked += n->size_bytes;
    }
}

void sl_core_evict_for(sl_core *core, const demand *d, uint64_t for_ticket)
{
    pick_victims(core, d);
    for (node *n = core->nodes; n; n = n->next) {
        if (n->pick) {
            n->evict = true;
            n->for_ticket = for_ticket;
        }
    }
}

/* ---- the answer ---- */

static void hold(sl_core_answer *answer, size_t size_bytes, const char *what)
{
    if (size_bytes == 0 || answer->held_count == SL_CORE_MAX_HOLDINGS)
        return;
    sl_core_holding *holding = &answer->held[answer->held_count++];
    holding->size_bytes = size_bytes;
    snprintf(holding->what, sizeof holding->what, "%s", what);
}

/* Who has the rest of the device, apart from what could be evicted. */
static void fill_holdings(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    char what[SL_CORE_TEXT_BYTES], key[SL_CORE_TEXT_BYTES - 16];

    hold(answer, core->config.workspace_bytes, "workspace");
    if (answer->when == SL_CORE_NEVER)
        return;
    if (core->active) {
        snprintf(what, sizeof what, "job %s", core->active->spec.job_id);
        hold(answer, core->active->spec.activation_bytes, what);
    }
    for (const node *n = core->nodes; n; n = n->next) {
        if (!is_other(d, n) || (!n->pinned && !sl_core_in_use(core, n)))
            continue;
        snprintf(what, sizeof what, "weights %s", sl_core_key_text(&n->key, key, sizeof key));
        hold(answer, n->size_bytes, what);
    }
}

/* Names the pinned components whose unloading would make room: those that
 * must go, then the largest ones, as few as possible. */
static void name_pinned(const sl_core *core, const demand *d, size_t missing,
                        sl_core_answer *answer)
{
    char text[SL_CORE_TEXT_BYTES], key[SL_CORE_TEXT_BYTES];
    const node *named[SL_CORE_MAX_HOLDINGS];
    size_t length = 0;
    int count = 0;

    for (const node *n = core->nodes; n && count < SL_CORE_MAX_HOLDINGS; n = n->next) {
        if (is_pinned_other(d, n) && must_go(core, d, n)) {
            named[count++] = n;
            missing = less(missing, n->size_bytes);
        }
    }
    while (missing > 0 && count < SL_CORE_MAX_HOLDINGS) {
        const node *largest = NULL;
        for (const node *n = core->nodes; n; n = n->next) {
            bool used = !is_pinned_other(d, n);
            for (int i = 0; i < count && !used; i++)
                used = named[i] == n;
            if (!used && (!largest || n->size_bytes > largest->size_bytes))
                largest = n;
        }
        if (!largest)
            break;
        named[count++] = largest;
        missing = less(missing, largest->size_bytes);
    }
    text[0] = '\0';
    for (int i = 0; i < count && length < sizeof text; i++)
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%s",
                                   i == 0 ? "" : (i == count - 1 ? " and " : ", "),
                                   sl_core_key_text(&named[i]->key, key, sizeof key));
    snprintf(answer->after, sizeof answer->after, "%.*s %s unloaded",
             (int)sizeof answer->after - 16, text, count == 1 ? "is" : "are");
}

/* One sentence out of the filled answer. */
static void write_message(sl_core_answer *answer)
{
    char need[32], have[32];

    sl_size_format(answer->need_bytes, need, sizeof need);
    sl_size_format(answer->have_bytes, have, sizeof have);
    if (answer->when == SL_CORE_NOW)
        snprintf(answer->message, sizeof answer->message, "fits: needs %s (%zu bytes) of %s", need,
                 answer->need_bytes, have);
    else if (answer->rule[0] && answer->when == SL_CORE_NEVER)
        snprintf(answer->message, sizeof answer->message,
                 "the budget table forbids it on this device, row \"%s\": %s", answer->row,
                 answer->rule);
    else if (answer->when == SL_CORE_NEVER)
        snprintf(answer->message, sizeof answer->message,
                 "can never fit on this device: needs %s (%zu bytes), there are at most %s (%zu "
                 "bytes)",
                 need, answer->need_bytes, have, answer->have_bytes);
    else
        snprintf(answer->message, sizeof answer->message,
                 "waits until %s: needs %s (%zu bytes), has %s (%zu bytes)", answer->after, need,
                 answer->need_bytes, have, answer->have_bytes);
}

static void set_rule(sl_core_answer *answer, const sl_budget_rule *rule)
{
    snprintf(answer->rule, sizeof answer->rule, "%s", rule->text);
}

/* NEVER: by the table, or by bytes with everything else gone. */
static bool is_never(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    const sl_budget_rule *rule = rule_against(core, d, count_experts(core, d, false, false));

    answer->have_bytes = most_bytes(core);
    if (rule)
        set_rule(answer, rule);
    return rule != NULL || answer->need_bytes > answer->have_bytes;
}

/* AFTER an unload: pinned components leave no room, or the table does not want
 * them beside it, or one of them is an older state of what is asked for. */
static bool is_blocked_by_pins(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    const size_t room = less(most_bytes(core), pinned_other_bytes(core, d));
    const sl_budget_rule *rule = rule_against(core, d, count_experts(core, d, true, true));
    bool stale = false;

    for (const node *n = core->nodes; n && !stale; n = n->next)
        stale = is_pinned_other(d, n) && is_stale(d, n);
    if (!rule && !stale && answer->need_bytes <= room)
        return false;
    if (rule)
        set_rule(answer, rule);
    name_pinned(core, d, less(answer->need_bytes, room), answer);
    return true;
}

void sl_core_answer_demand(const sl_core *core, const demand *d, int queue_ahead,
                           sl_core_answer *answer)
{
    memset(answer, 0, sizeof *answer);
    answer->need_bytes = demand_bytes(d);
    if (core->row)
        snprintf(answer->row, sizeof answer->row, "%s", core->row->name);

    if (is_never(core, d, answer)) {
        answer->when = SL_CORE_NEVER;
    } else {
        answer->when = SL_CORE_AFTER;
        answer->have_bytes =
            less(most_bytes(core), pinned_other_bytes(core, d) + active_other_bytes(core, d));
        if (is_blocked_by_pins(core, d, answer))
            ;
        else if (!core->up)
            snprintf(answer->after, sizeof answer->after, "the device's worker is up");
        else if (queue_ahead > 0)
            snprintf(answer->after, sizeof answer->after, "%d queued job%s before it end%s",
                     queue_ahead, queue_ahead == 1 ? "" : "s", queue_ahead == 1 ? "s" : "");
        else if (core->active)
            snprintf(answer->after, sizeof answer->after, "job %s ends", core->active->spec.job_id);
        else
            answer->when = SL_CORE_NOW;
    }
    if (answer->when == SL_CORE_NOW) {
        pick_victims(core, d);
        for (const node *n = core->nodes; n; n = n->next)
            if (n->pick && answer->evict_count < SL_CORE_MAX_HOLDINGS)
                answer->evict[answer->evict_count++] = n->key;
    } else {
        fill_holdings(core, d, answer);
    }
    write_message(answer);
}
