/* Answers in words: why not, what for, who has it. */
#include "service/core_state.h"

#include "base/size.h"

#include <stdio.h>
#include <string.h>

bool sl_core_same_image(const sl_core_key *a, const sl_core_key *b)
{
    return a->component == b->component && a->precision == b->precision &&
           strcmp(a->model, b->model) == 0;
}

bool sl_core_key_equal(const sl_core_key *a, const sl_core_key *b)
{
    return a->mode == b->mode && sl_core_same_image(a, b);
}

char *sl_core_key_text(const sl_core_key *key, char *buf, size_t buf_bytes)
{
    snprintf(buf, buf_bytes, "%s/%s (%s%s)", key->model, sl_component_name(key->component),
             sl_precision_name(key->precision), key->mode == SL_MODE_STREAMED ? ", streamed" : "");
    return buf;
}

/* ---- checks ---- */

static bool key_valid(const sl_core_key *key)
{
    return memchr(key->model, '\0', sizeof key->model) && key->model[0] &&
           (unsigned)key->component < SL_COMPONENT_COUNT &&
           (unsigned)key->precision < SL_PRECISION_COUNT && (unsigned)key->mode < SL_MODE_COUNT;
}

static sl_status check_need(const sl_core_need *need, int i, sl_error *err)
{
    if (!key_valid(&need->key))
        return sl_fail(err, SL_ERR_INVALID, "component %d of the request has no valid key", i);
    if (need->size_bytes == 0 || need->size_bytes > SIZE_MAX / 64 ||
        need->host_bytes > SIZE_MAX / 64)
        return sl_fail(err, SL_ERR_INVALID, "component \"%s/%s\" has an impossible size of %zu",
                       need->key.model, sl_component_name(need->key.component), need->size_bytes);
    if (need->key.mode == SL_MODE_STREAMED && need->host_bytes == 0)
        return sl_fail(err, SL_ERR_INVALID, "component \"%s/%s\" is streamed from no image",
                       need->key.model, sl_component_name(need->key.component));
    return SL_OK;
}

sl_status sl_core_check(const demand *d, sl_error *err)
{
    if (d->activation_bytes > SIZE_MAX / 64)
        return sl_fail(err, SL_ERR_INVALID, "activations of %zu bytes make no sense",
                       d->activation_bytes);
    for (int i = 0; i < d->count; i++) {
        const sl_core_need *need = &d->needs[i];
        const sl_status status = check_need(need, i, err);

        if (status != SL_OK)
            return status;
        for (int k = 0; k < i; k++)
            if (sl_core_same_image(&d->needs[k].key, &need->key))
                return sl_fail(err, SL_ERR_INVALID, "component \"%s/%s\" is asked for twice",
                               need->key.model, sl_component_name(need->key.component));
    }
    return SL_OK;
}

static sl_status check_phases(const sl_core_variant *v, sl_error *err)
{
    unsigned used = 0;

    if (v->phase_count < 0 || v->phase_count > SL_CORE_MAX_PHASES)
        return sl_fail(err, SL_ERR_INVALID, "a job with %d phases", v->phase_count);
    if (v->by_phase && v->phase_count == 0)
        return sl_fail(err, SL_ERR_INVALID, "a job by phase without phases");
    for (int p = 0; p < v->phase_count; p++) {
        used |= v->phases[p].needs;
        if (v->phases[p].activation_bytes > v->activation_bytes)
            return sl_fail(err, SL_ERR_INVALID,
                           "phase %d has activations of %zu bytes, the job of %zu", p,
                           v->phases[p].activation_bytes, v->activation_bytes);
    }
    if (v->phase_count > 0 && used != (1u << v->need_count) - 1)
        return sl_fail(err, SL_ERR_INVALID,
                       "the phases use other components (set %x) than the job's %d", used,
                       v->need_count);
    return SL_OK;
}

static sl_status check_variant(const sl_core_variant *v, sl_error *err)
{
    if (v->need_count < 0 || v->need_count > SL_CORE_MAX_NEEDS)
        return sl_fail(err, SL_ERR_INVALID, "a job with %d components", v->need_count);
    const demand d = { .needs = v->needs,
                       .count = v->need_count,
                       .activation_bytes = v->activation_bytes };
    const sl_status status = sl_core_check(&d, err);
    return status == SL_OK ? check_phases(v, err) : status;
}

void sl_core_normalise(sl_core_job *spec)
{
    if (spec->variant_count != 0)
        return;
    spec->variants[0] = (sl_core_variant){ .need_count = spec->need_count,
                                           .activation_bytes = spec->activation_bytes,
                                           .facts = spec->facts };
    memcpy(spec->variants[0].needs, spec->needs, sizeof spec->needs);
    spec->variant_count = 1;
}

sl_status sl_core_check_job(const sl_core_job *spec, sl_error *err)
{
    const int phases = spec->variants[0].phase_count;

    if (spec->variant_count < 1 || spec->variant_count > SL_CORE_MAX_VARIANTS)
        return sl_fail(err, SL_ERR_INVALID, "a job with %d variants", spec->variant_count);
    if (spec->priority < 0 || spec->priority > 9)
        return sl_fail(err, SL_ERR_INVALID, "priority %d: 0 to 9 can be given", spec->priority);
    if (spec->first_phase < 0 || spec->first_phase >= (phases ? phases : 1))
        return sl_fail(err, SL_ERR_INVALID, "a job of %d phases cannot start at phase %d", phases,
                       spec->first_phase);
    if (!memchr(spec->user, '\0', sizeof spec->user) || !(spec->cost >= 0.0))
        return sl_fail(err, SL_ERR_INVALID, "a job needs a user's name and a cost that make sense");
    for (int i = 0; i < spec->variant_count; i++) {
        const sl_status status = check_variant(&spec->variants[i], err);
        if (status != SL_OK)
            return status;
        if (spec->variants[i].phase_count != phases)
            return sl_fail(err, SL_ERR_INVALID, "variant %d has %d phases, the first has %d", i,
                           spec->variants[i].phase_count, phases);
    }
    return SL_OK;
}

/* ---- variants ---- */

static verdict judge_variant(const sl_core *core, const sl_core_job *spec, int i)
{
    const demand d = sl_core_demand_of(&spec->variants[i], spec->first_phase);
    return sl_core_judge(core, &d);
}

int sl_core_base_variant(const sl_core *core, const sl_core_job *spec)
{
    for (int i = 0; i < spec->variant_count; i++)
        if (judge_variant(core, spec, i).when != SL_CORE_NEVER)
            return i;
    return -1;
}

int sl_core_choose(const sl_core *core, const sl_core_job *spec, verdict *out)
{
    int base = -1;

    for (int i = 0; i < spec->variant_count; i++) {
        verdict v = judge_variant(core, spec, i);

        v.variant = i;
        if (v.when == SL_CORE_NEVER) {
            /* The one to tell of: the smallest that the table has nothing against. */
            if (base < 0 && (i == 0 || (v.block != BLOCK_RULE && (out->block == BLOCK_RULE ||
                                                                  v.need_bytes < out->need_bytes))))
                *out = v;
            continue;
        }
        if (base >= 0 && spec->variants[i].streams)
            continue;
        if (base < 0 || v.when == SL_CORE_NOW) {
            *out = v;
            base = base < 0 ? i : base;
            if (v.when == SL_CORE_NOW)
                return i;
        }
    }
    return base;
}

/* ---- the answer ---- */

static void hold(sl_core_answer *answer, size_t size_bytes, const char *kind, const char *name)
{
    if (size_bytes == 0 || answer->held_count == SL_CORE_MAX_HOLDINGS)
        return;
    sl_core_holding *holding = &answer->held[answer->held_count++];
    holding->size_bytes = size_bytes;
    snprintf(holding->what, sizeof holding->what, "%s%s", kind, name);
}

/* Who has the rest of the device, apart from what could be evicted. */
static void fill_holdings(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    char key[SL_CORE_TEXT_BYTES - 16];

    hold(answer, core->config.workspace_bytes, "workspace", "");
    if (answer->when == SL_CORE_NEVER)
        return;
    for (const job *j = core->active; j; j = j->next)
        hold(answer, sl_core_demand_left(j).activation_bytes, "job ", j->spec.job_id);
    for (const node *n = core->nodes; n; n = n->next) {
        const bool own = sl_core_demand_has(d, &n->key) && !sl_core_is_stale(d, n);
        if (!n->evict && !own && (n->pinned || sl_core_user_of(core, n)))
            hold(answer, n->size_bytes, "weights ", sl_core_key_text(&n->key, key, sizeof key));
    }
}

static void fill_host_holdings(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    char key[SL_CORE_TEXT_BYTES - 16];

    for (const image *im = core->images; im && answer->when != SL_CORE_NEVER; im = im->next)
        if (!im->drop && !sl_core_demand_has_image(d, &im->key) &&
            (im->pinned || sl_core_is_held(core, im)))
            hold(answer, im->size_bytes, "image ", sl_core_key_text(&im->key, key, sizeof key));
}

static bool is_pinned_other(const demand *d, const node *n)
{
    return n->pinned && !n->evict && (!sl_core_demand_has(d, &n->key) || sl_core_is_stale(d, n));
}

static const node *largest_pinned_other(const sl_core *core, const demand *d,
                                        const node *const *named, int count)
{
    const node *largest = NULL;

    for (const node *n = core->nodes; n; n = n->next) {
        bool used = !is_pinned_other(d, n);
        for (int i = 0; i < count && !used; i++)
            used = named[i] == n;
        if (!used && (!largest || n->size_bytes > largest->size_bytes))
            largest = n;
    }
    return largest;
}

static size_t less(size_t a, size_t b)
{
    return a > b ? a - b : 0;
}

/* Names the pinned components whose unloading would make room: those that
 * must go, then the largest ones, as few as possible. */
static void name_pinned(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    char text[SL_CORE_TEXT_BYTES], key[SL_CORE_TEXT_BYTES];
    const node *named[SL_CORE_MAX_HOLDINGS];
    size_t length = 0;
    size_t missing =
        less(sl_core_bytes_of(core, d, SCOPE_PINNED) + sl_core_bytes_besides(core, d, SCOPE_PINNED),
             core->config.limit_bytes);
    int count = 0;

    for (const node *n = core->nodes; n && count < SL_CORE_MAX_HOLDINGS; n = n->next) {
        if (is_pinned_other(d, n) && sl_core_must_go(core, d, n)) {
            named[count++] = n;
            missing = less(missing, n->size_bytes);
        }
    }
    while (missing > 0 && count < SL_CORE_MAX_HOLDINGS) {
        const node *largest = largest_pinned_other(core, d, named, count);
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

static void name_jobs(const sl_core *core, sl_core_answer *answer)
{
    if (core->active_count == 1)
        snprintf(answer->after, sizeof answer->after, "job %s ends", core->active->spec.job_id);
    else
        snprintf(answer->after, sizeof answer->after, "one of %d active jobs ends",
                 core->active_count);
}

/* One sentence out of the filled answer. */
static void write_message(sl_core_answer *answer)
{
    char need[32], have[32];
    const char *where = answer->host ? " in the host tier" : "";

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
                 "can never fit on this device: needs %s (%zu bytes)%s, there are at most %s (%zu "
                 "bytes)",
                 need, answer->need_bytes, where, have, answer->have_bytes);
    else
        snprintf(answer->message, sizeof answer->message,
                 "waits until %s: needs %s (%zu bytes)%s, has %s (%zu bytes)", answer->after, need,
                 answer->need_bytes, where, have, answer->have_bytes);
}

static void fill_evictions(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    if (!sl_core_would_evict(core, d))
        return;
    for (const node *n = core->nodes; n; n = n->next)
        if (n->pick && answer->evict_count < SL_CORE_MAX_HOLDINGS)
            answer->evict[answer->evict_count++] = n->key;
}

/* What no bytes say: its turn, its user, a free lane.  Sets after if so. */
static bool has_to_wait(const sl_core *core, const sl_core_job *spec, const demand *d,
                        int queue_ahead, sl_core_answer *answer)
{
    const int limit = core->config.user_running_limit;

    if (queue_ahead > 0)
        snprintf(answer->after, sizeof answer->after, "%d queued job%s before it end%s",
                 queue_ahead, queue_ahead == 1 ? "" : "s", queue_ahead == 1 ? "s" : "");
    else if (spec && core->draining)
        snprintf(answer->after, sizeof answer->after, "the server admits jobs again");
    else if (spec && limit > 0 && spec->user[0] &&
             sl_core_count_user(core->active, spec->user) >= limit)
        snprintf(answer->after, sizeof answer->after, "a job of user \"%s\" ends, who has %d",
                 spec->user, limit);
    else if (spec && sl_core_is_too_early(core, d))
        name_jobs(core, answer);
    else
        return false;
    return true;
}

static void fill_answer(const sl_core *core, const sl_core_job *spec, const demand *d, verdict v,
                        int queue_ahead, sl_core_answer *answer)
{
    memset(answer, 0, sizeof *answer);
    answer->when = v.when;
    answer->need_bytes = v.need_bytes;
    answer->have_bytes = v.have_bytes;
    answer->host = v.block == BLOCK_HOST || v.block == BLOCK_HOST_PIN || v.block == BLOCK_HOST_JOB;
    answer->pinned = v.block == BLOCK_PIN || v.block == BLOCK_HOST_PIN;
    if (core->row)
        snprintf(answer->row, sizeof answer->row, "%s", core->row->name);
    if (v.rule)
        snprintf(answer->rule, sizeof answer->rule, "%s", v.rule->text);
    if (v.block == BLOCK_PIN)
        name_pinned(core, d, answer);
    else if (v.block == BLOCK_HOST_PIN)
        snprintf(answer->after, sizeof answer->after, "images in the host tier are unpinned");
    else if (v.block == BLOCK_WORKER)
        snprintf(answer->after, sizeof answer->after, "the device's worker is up");
    else if (v.when != SL_CORE_NEVER && has_to_wait(core, spec, d, queue_ahead, answer))
        answer->when = SL_CORE_AFTER;
    else if (v.when == SL_CORE_AFTER)
        name_jobs(core, answer);
    if (answer->when == SL_CORE_NOW)
        fill_evictions(core, d, answer);
    else if (answer->host)
        fill_host_holdings(core, d, answer);
    else
        fill_holdings(core, d, answer);
    write_message(answer);
}

void sl_core_answer_demand(const sl_core *core, const demand *d, int queue_ahead,
                           sl_core_answer *answer)
{
    fill_answer(core, NULL, d, sl_core_judge(core, d), queue_ahead, answer);
}

void sl_core_answer_job(const sl_core *core, const sl_core_job *spec, int queue_ahead,
                        sl_core_answer *answer)
{
    verdict v = { .when = SL_CORE_NEVER };
    const int variant = sl_core_choose(core, spec, &v);
    const demand d = sl_core_demand_of(&spec->variants[v.variant], spec->first_phase);

    fill_answer(core, spec, &d, v, queue_ahead, answer);
    answer->variant = variant;
    answer->told = v.variant;
}

void sl_core_answer_host(const sl_core *core, const demand *d, sl_core_answer *answer)
{
    verdict v = { .when = SL_CORE_NEVER, .block = BLOCK_HOST };

    if (!sl_core_is_host_blocked(core, d, true, SCOPE_ALONE, &v.need_bytes, &v.have_bytes)) {
        v.when = SL_CORE_AFTER;
        if (sl_core_is_host_blocked(core, d, true, SCOPE_PINNED, &v.need_bytes, &v.have_bytes)) {
            v.block = BLOCK_HOST_PIN;
        } else if (!core->up || core->restart) {
            v.block = BLOCK_WORKER;
        } else if (sl_core_is_host_blocked(core, d, true, SCOPE_ACTIVE, &v.need_bytes,
                                           &v.have_bytes)) {
            v.block = BLOCK_HOST_JOB;
        } else {
            v.when = SL_CORE_NOW;
            v.block = BLOCK_NONE;
        }
    }
    fill_answer(core, NULL, d, v, 0, answer);
    answer->host = true;
}
