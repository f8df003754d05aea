/* LoadModel, UnloadModel, Trim, Switch: their order, their pins, their receipts. */
#include "service/core_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- asking ---- */

static ticket *make_ticket(ticket_kind kind, const sl_core_need *needs, int count)
{
    ticket *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->kind = kind;
    t->count = count;
    t->receipt.line_count = kind == TICKET_RELEASE || kind == TICKET_TRIM ? 0 : count;
    for (int i = 0; i < count; i++) {
        t->needs[i] = needs[i];
        if (i < t->receipt.line_count)
            t->receipt.lines[i].key = needs[i].key;
        if (kind == TICKET_LOAD)
            t->receipt.lines[i].planned_bytes = needs[i].size_bytes;
    }
    return t;
}

static uint64_t add_ticket(sl_core *core, ticket *t)
{
    ticket **end = &core->tickets;

    while (*end)
        end = &(*end)->next;
    *end = t;
    t->id = ++core->last_ticket;
    core->unsettled = true;
    return t->id;
}

static sl_status check_count(int count, sl_error *err)
{
    if (count < 1 || count > SL_CORE_MAX_KEYS)
        return sl_fail(err, SL_ERR_INVALID, "%d components at once: 1 to %d can be given", count,
                       SL_CORE_MAX_KEYS);
    return SL_OK;
}

static bool is_load(const ticket *t)
{
    return t->kind == TICKET_LOAD || t->kind == TICKET_LOAD_HOST;
}

/* A load, not in the list yet; or why not. */
static sl_status make_load(const sl_core *core, ticket_kind kind, const sl_core_need *needs,
                           int count, const sl_budget_facts *facts, ticket **out,
                           sl_core_answer *answer, sl_error *err)
{
    sl_status status = check_count(count, err);
    ticket *t = NULL;

    if (status != SL_OK)
        return status;
    t = make_ticket(kind, needs, count);
    if (!t)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to load \"%s\"", needs[0].key.model);
    if (facts)
        t->facts = *facts;
    const demand d = sl_core_demand_of_ticket(t);
    status = sl_core_check(&d, err);
    for (int i = 0; i < count && status == SL_OK && kind == TICKET_LOAD_HOST; i++)
        if (needs[i].host_bytes == 0)
            status = sl_fail(err, SL_ERR_INVALID, "component \"%s/%s\" has no image for the host",
                             needs[i].key.model, sl_component_name(needs[i].key.component));
    if (status != SL_OK)
        goto done;
    if (kind == TICKET_LOAD)
        sl_core_answer_demand(core, &d, 0, answer);
    else
        sl_core_answer_host(core, &d, answer);
    if (answer->when == SL_CORE_NEVER) {
        status = sl_fail(err, SL_ERR_TOO_LARGE, "could not load \"%s\": %s", needs[0].key.model,
                         answer->message);
        goto done;
    }
    *out = t;
    t = NULL;
done:
    free(t);
    return status;
}

sl_status sl_core_load(sl_core *core, const sl_core_need *needs, int count,
                       const sl_budget_facts *facts, uint64_t *ticket_out, sl_core_answer *answer,
                       sl_error *err)
{
    sl_core_answer own;
    ticket *t = NULL;
    const sl_status status =
        make_load(core, TICKET_LOAD, needs, count, facts, &t, answer ? answer : &own, err);

    if (status == SL_OK)
        *ticket_out = add_ticket(core, t);
    return status;
}

sl_status sl_core_load_host(sl_core *core, const sl_core_need *needs, int count,
                            uint64_t *ticket_out, sl_core_answer *answer, sl_error *err)
{
    sl_core_answer own;
    ticket *t = NULL;
    const sl_status status =
        make_load(core, TICKET_LOAD_HOST, needs, count, NULL, &t, answer ? answer : &own, err);

    if (status == SL_OK)
        *ticket_out = add_ticket(core, t);
    return status;
}

/* ---- who uses it ---- */

static int find_line(const ticket *t, const sl_core_key *key)
{
    for (int i = 0; i < t->count; i++)
        if (sl_core_key_equal(&t->needs[i].key, key))
            return i;
    return -1;
}

/* Images are of both modes. */
static bool lists_image(const ticket *t, const sl_core_key *key)
{
    for (int i = 0; i < t->count; i++)
        if (sl_core_same_image(&t->needs[i].key, key))
            return true;
    return false;
}

static bool is_meant_image(const ticket *t, const sl_core_key *key)
{
    return lists_image(t, key) == (t->kind == TICKET_UNLOAD);
}

/* An unload's own: what it lists, or all that a release does not. */
static bool is_meant(const ticket *t, const sl_core_key *key)
{
    return (find_line(t, key) >= 0) == (t->kind == TICKET_UNLOAD);
}

/* An active job uses what an unload takes away, or would die with the worker;
 * *key: what it uses, NULL for the worker. */
static bool is_in_the_way(const ticket *t, const job *j, const sl_core_key **key)
{
    const sl_core_variant *v = &j->spec.variants[j->variant];
    const demand now = sl_core_demand_now(j);

    FOR_NEEDS(&now, i)
    {
        *key = &v->needs[i].key;
        if (is_meant(t, *key))
            return true;
    }
    *key = NULL;
    return t->mode == SL_CORE_UNLOAD_HARD;
}

static const job *find_user(const sl_core *core, const ticket *t, const sl_core_key **key)
{
    for (const job *j = core->active; j; j = j->next)
        if (is_in_the_way(t, j, key))
            return j;
    return NULL;
}

static sl_status check_unused(const sl_core *core, const ticket *t, sl_error *err)
{
    char text[SL_CORE_TEXT_BYTES];
    const sl_core_key *key = NULL;
    const job *user = t->used == SL_CORE_USED_REFUSE ? find_user(core, t, &key) : NULL;

    if (user && key)
        return sl_fail(err, SL_ERR_PRECONDITION, "could not unload %s: job \"%s\" uses it",
                       sl_core_key_text(key, text, sizeof text), user->spec.job_id);
    if (user)
        return sl_fail(err, SL_ERR_PRECONDITION,
                       "could not replace the worker: job \"%s\" runs on it", user->spec.job_id);
    return SL_OK;
}

sl_status sl_core_unload_as(sl_core *core, const sl_core_key *keys, int count,
                            sl_core_unload_mode mode, sl_core_if_used used, uint64_t *ticket_out,
                            sl_error *err)
{
    sl_core_need needs[SL_CORE_MAX_KEYS];
    const bool worker_only = count == 0 && mode == SL_CORE_UNLOAD_HARD;
    sl_status status = worker_only ? SL_OK : check_count(count, err);

    if (status != SL_OK)
        return status;
    memset(needs, 0, sizeof needs);
    for (int i = 0; i < count; i++)
        needs[i].key = keys[i];
    ticket *t = make_ticket(TICKET_UNLOAD, needs, count);
    if (!t)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to unload \"%s\"",
                       worker_only ? "" : keys[0].model);
    t->mode = mode;
    t->used = used;
    status = check_unused(core, t, err);
    if (status != SL_OK) {
        free(t);
        return status;
    }
    *ticket_out = add_ticket(core, t);
    return SL_OK;
}

sl_status sl_core_unload(sl_core *core, const sl_core_key *keys, int count, uint64_t *ticket_out,
                         sl_error *err)
{
    return sl_core_unload_as(core, keys, count, SL_CORE_UNLOAD_FULL, SL_CORE_USED_REFUSE,
                             ticket_out, err);
}

sl_status sl_core_trim(sl_core *core, uint64_t *ticket_out, sl_error *err)
{
    ticket *t = make_ticket(TICKET_TRIM, NULL, 0);

    if (!t)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to trim");
    *ticket_out = add_ticket(core, t);
    return SL_OK;
}

sl_status sl_core_switch(sl_core *core, const sl_core_need *needs, int count,
                         const sl_budget_facts *facts, sl_core_unload_mode mode,
                         sl_core_if_used used, uint64_t tickets[SL_CORE_SWITCH_STEPS],
                         sl_core_answer *answer, sl_error *err)
{
    sl_core_answer own;
    ticket *load = NULL, *release = NULL, *rest = NULL;
    sl_status status;

    if (used == SL_CORE_USED_REFUSE)
        return sl_fail(err, SL_ERR_INVALID, "a switch waits for running jobs or stops them");
    status = make_load(core, TICKET_LOAD, needs, count, facts, &load, answer ? answer : &own, err);
    if (status != SL_OK)
        return status;
    release = make_ticket(TICKET_RELEASE, needs, count);
    rest = make_ticket(TICKET_RELEASE, needs, count);
    if (!release || !rest) {
        free(load);
        free(release);
        free(rest);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to switch to \"%s\"",
                       needs[0].key.model);
    }
    release->used = rest->used = used;
    rest->mode = mode;
    tickets[0] = add_ticket(core, release);
    rest->follows = tickets[0];
    tickets[1] = add_ticket(core, rest);
    load->follows = tickets[1];
    tickets[2] = add_ticket(core, load);
    return SL_OK;
}

/* ---- ending ---- */

static int find_pin(const ticket *t, const sl_core_key *key)
{
    for (int i = 0; i < t->count && t->kind == TICKET_LOAD_HOST; i++)
        if (sl_core_same_image(&t->needs[i].key, key))
            return i;
    return t->kind == TICKET_LOAD ? find_line(t, key) : -1;
}

bool sl_core_is_pinned_by_ticket(const sl_core *core, const sl_core_key *key, bool host)
{
    for (const ticket *t = core->tickets; t; t = t->next) {
        const int line =
            t->ended || t->kind != (host ? TICKET_LOAD_HOST : TICKET_LOAD) ? -1 : find_pin(t, key);
        if (line >= 0 && t->pinned_here[line])
            return true;
    }
    return false;
}

/* Pins that only this ticket wanted go when it fails; when it succeeds they stay,
 * whatever becomes of others that asked for them. */
static void settle_pins(sl_core *core, const ticket *t)
{
    const bool host = t->kind == TICKET_LOAD_HOST;

    for (int i = 0; i < t->count; i++) {
        const sl_core_key *key = &t->needs[i].key;
        node *n = sl_core_find(core, key);
        image *im = sl_core_find_image(core, key);

        for (ticket *other = core->tickets; other && t->status == SL_OK; other = other->next) {
            const int line = other->kind == t->kind ? find_pin(other, key) : -1;
            if (line >= 0)
                other->pinned_here[line] = false;
        }
        if (t->status == SL_OK || !t->pinned_here[i] ||
            sl_core_is_pinned_by_ticket(core, key, host))
            continue;
        if (host && im)
            im->pinned = false;
        else if (!host && n)
            n->pinned = false;
    }
}

static void fail_followers(const sl_core *core, const ticket *failed);

static void end_ticket(sl_core *core, ticket *t, sl_status status, const char *message)
{
    t->ended = true;
    t->status = status;
    snprintf(t->message, sizeof t->message, "%s", message);
    t->receipt.host_after_bytes = sl_core_host_used(core);
    if (!t->started)
        t->receipt.host_before_bytes = t->receipt.host_after_bytes;
    core->unsettled = true;
    if (is_load(t) && t->started)
        settle_pins(core, t);
    if (status == SL_OK)
        return;
    fail_followers(core, t);
    if (is_load(t) && t->started)
        sl_core_relent(core, t->id); /* and its evictions */
}

static void fail_followers(const sl_core *core, const ticket *failed)
{
    for (ticket *t = core->tickets; t; t = t->next) {
        if (t->ended || t->follows != failed->id)
            continue;
        /* Not started: its turn is after. */
        t->ended = true;
        t->status = SL_ERR_PRECONDITION;
        snprintf(t->message, sizeof t->message, "the step before it: %.*s",
                 (int)sizeof t->message - 32, failed->message);
        t->receipt.host_before_bytes = t->receipt.host_after_bytes = sl_core_host_used(core);
        fail_followers(core, t);
    }
}

/* ---- loads ---- */

static bool all_present(const sl_core *core, const ticket *t)
{
    for (int i = 0; i < t->count; i++) {
        const node *n = sl_core_find(core, &t->needs[i].key);
        const image *im = sl_core_find_image(core, &t->needs[i].key);

        if (t->kind == TICKET_LOAD && (!n || n->size_bytes != t->needs[i].size_bytes))
            return false;
        if (t->kind == TICKET_LOAD_HOST && (!im || im->size_bytes != t->needs[i].host_bytes))
            return false;
    }
    return true;
}

static void begin(sl_core *core, ticket *t)
{
    t->started = true;
    t->receipt.host_before_bytes = sl_core_host_used(core);
    core->unsettled = true;
}

/* What the load lacks is booked; false: it has to wait, true: go on or ended. */
static bool book_load(sl_core *core, ticket *t)
{
    const demand d = sl_core_demand_of_ticket(t);
    const bool host = t->kind == TICKET_LOAD_HOST;

    if (host)
        sl_core_answer_host(core, &d, &t->answer);
    else
        sl_core_answer_demand(core, &d, 0, &t->answer);
    if (t->answer.when == SL_CORE_AFTER && !t->answer.pinned)
        return false;
    if (t->answer.when != SL_CORE_NOW) {
        end_ticket(core, t, t->answer.when == SL_CORE_NEVER ? SL_ERR_TOO_LARGE : SL_ERR_BUSY,
                   t->answer.message);
        return true;
    }
    begin(core, t);
    if (!host)
        sl_core_evict_for(core, &d, NULL, t->id);
    if (host ? !sl_core_want_images(core, &d, true, t->id) : !sl_core_want(core, &d, t->id))
        end_ticket(core, t, SL_ERR_NO_MEMORY, "out of memory for the components' books");
    return true;
}

/* All of it is there, or promised to others, and may stay. */
static bool can_join(const sl_core *core, const ticket *t)
{
    const demand d = sl_core_demand_of_ticket(t);
    size_t need_bytes, have_bytes;

    /* What a job by phase has now it counts on being rid of later; the host tier may
     * be about to shrink below what it holds. */
    return all_present(core, t) && !sl_core_has_job_by_phase(core) &&
           (t->kind == TICKET_LOAD ||
            !sl_core_is_host_blocked(core, &d, true, SCOPE_PINNED, &need_bytes, &have_bytes));
}

/* False: it has to wait, and all tickets after it. */
static bool start_load(sl_core *core, ticket *t)
{
    if (!can_join(core, t)) {
        if (!book_load(core, t))
            return false;
        if (t->ended)
            return true;
    }
    if (!t->started)
        begin(core, t);
    for (int i = 0; i < t->count; i++) {
        const sl_core_key *key = &t->needs[i].key;
        node *n = sl_core_find(core, key);
        image *im = sl_core_find_image(core, key);
        bool *pinned = t->kind == TICKET_LOAD ? &n->pinned : &im->pinned;
        t->pinned_here[i] =
            !*pinned || sl_core_is_pinned_by_ticket(core, key, t->kind == TICKET_LOAD_HOST);
        *pinned = true;
    }
    return true;
}

static bool load_complete(const sl_core *core, const ticket *t)
{
    for (int i = 0; i < t->count; i++) {
        const node *n = sl_core_find(core, &t->needs[i].key);
        const image *im = sl_core_find_image(core, &t->needs[i].key);
        if (t->kind == TICKET_LOAD ? !n || n->state != SL_CORE_READY
                                   : !im || im->state != SL_CORE_HOST_READY)
            return false;
    }
    return true;
}

/* A load that has begun, and not ended, counts on it: the pin is that load's now. */
static bool leave_pin_to_loads(sl_core *core, const sl_core_key *key, ticket_kind kind)
{
    bool any = false;

    for (ticket *t = core->tickets; t; t = t->next) {
        const int line = t->kind == kind && t->started && !t->ended ? find_pin(t, key) : -1;
        if (line >= 0)
            any = t->pinned_here[line] = true;
    }
    return any;
}

void sl_core_unpin(sl_core *core, const sl_core_key *keys, int count)
{
    for (int i = 0; i < count; i++) {
        node *n = sl_core_find(core, &keys[i]);
        image *im = sl_core_find_image(core, &keys[i]);

        if (n && !leave_pin_to_loads(core, &keys[i], TICKET_LOAD))
            n->pinned = false;
        if (im && !leave_pin_to_loads(core, &keys[i], TICKET_LOAD_HOST))
            im->pinned = false;
    }
    sl_core_relent(core, 0);
    core->unsettled = true;
}

/* ---- unloads ---- */

static sl_core_receipt_line *line_of(ticket *t, const sl_core_key *key)
{
    sl_core_receipt *receipt = &t->receipt;

    for (int i = 0; i < receipt->line_count; i++)
        if (sl_core_key_equal(&receipt->lines[i].key, key))
            return &receipt->lines[i];
    if (is_load(t) || t->kind == TICKET_UNLOAD || receipt->line_count == SL_CORE_MAX_KEYS)
        return NULL;
    /* Of all others: whatever there is. */
    sl_core_receipt_line *line = &receipt->lines[receipt->line_count++];
    line->key = *key;
    return line;
}

static void unload_node(sl_core *core, ticket *t, node *n)
{
    sl_core_receipt_line *line = line_of(t, &n->key);

    if (line)
        line->planned_bytes += n->size_bytes;
    n->pinned = false;
    if (n->state == SL_CORE_WANTED) {
        sl_core_remove(core, n);
    } else if (n->state != SL_CORE_UNLOADING) {
        n->evict = n->must = true; /* perhaps it was: now it goes even if that job does not come */
        n->for_ticket = t->id;
    }
}

static void drop_image(sl_core *core, ticket *t, image *im)
{
    im->pinned = false;
    if (sl_core_is_held(core, im))
        return; /* by the other mode */
    line_of(t, &im->key);
    if (im->state == SL_CORE_HOST_WANTED)
        sl_core_remove_image(core, im);
    else if (im->state != SL_CORE_HOST_DROPPING)
        sl_core_mark_drop(core, im, t->id);
}

/* False: it has to wait. */
static bool start_unload(sl_core *core, ticket *t)
{
    const sl_core_key *key;
    sl_error error;

    for (job *j = core->active, *next; j && t->used == SL_CORE_USED_NOW; j = next) {
        next = j->next;
        if (is_in_the_way(t, j, &key))
            sl_core_preempt(core, j);
    }
    if (t->used != SL_CORE_USED_REFUSE && find_user(core, t, &key))
        return false;
    if (check_unused(core, t, &error) != SL_OK) {
        end_ticket(core, t, SL_ERR_PRECONDITION, error.message);
        return true;
    }
    begin(core, t);
    for (node *n = core->nodes, *next; n; n = next) {
        next = n->next;
        if (is_meant(t, &n->key))
            unload_node(core, t, n);
    }
    for (image *im = core->images, *next; im; im = next) {
        next = im->next;
        if (t->mode != SL_CORE_UNLOAD_SOFT && is_meant_image(t, &im->key))
            drop_image(core, t, im);
    }
    sl_core_drop_unwanted_images(core);
    return true;
}

static bool unload_complete(sl_core *core, ticket *t)
{
    for (const node *n = core->nodes; n; n = n->next)
        if ((n->evict || n->state == SL_CORE_UNLOADING) && is_meant(t, &n->key))
            return false;
    for (const image *im = core->images; im && t->mode != SL_CORE_UNLOAD_SOFT; im = im->next)
        if ((im->drop || im->state == SL_CORE_HOST_DROPPING) && is_meant_image(t, &im->key))
            return false;
    if (t->mode != SL_CORE_UNLOAD_HARD)
        return true;
    if (!t->restart_asked) {
        t->restart_asked = true;
        t->generation = core->generation;
        if (!core->up)
            t->generation--; /* the next one is fresh */
        else if (!core->restart) {
            sl_core_want_restart(core, "a hard unload wants a fresh worker");
            core->replacing = true;
        }
    }
    return core->up && core->generation != t->generation;
}

/* ---- trim ---- */

static void start_trim(sl_core *core, ticket *t)
{
    begin(core, t);
    for (node *n = core->nodes, *next; n; n = next) {
        next = n->next;
        if (!n->evict && !n->pinned && n->state == SL_CORE_READY && !sl_core_user_of(core, n))
            unload_node(core, t, n);
    }
}

ticket *sl_core_find_trim(sl_core *core)
{
    for (ticket *t = core->tickets; t; t = t->next) {
        bool done = true;
        if (t->kind != TICKET_TRIM || !t->started || t->ended || t->trim_sent)
            continue;
        for (const node *n = core->nodes; n; n = n->next)
            done = done && n->for_ticket != t->id;
        if (done)
            return t;
    }
    return NULL;
}

void sl_core_end_trims(sl_core *core, sl_status status, const char *message)
{
    for (ticket *t = core->tickets; t; t = t->next)
        if (t->kind == TICKET_TRIM && t->trim_sent && !t->ended)
            end_ticket(core, t, status, message);
}

/* ---- turns ---- */

/* A load may join one that is under way; an unload waits for all before it, so
 * that each ticket sees its components as those before have left them. */
static bool start_ticket(sl_core *core, ticket *t, bool open_before)
{
    if (is_load(t) && t->follows == 0)
        return start_load(core, t);
    if (open_before)
        return false;
    if (is_load(t))
        return start_load(core, t);
    if (t->kind != TICKET_TRIM)
        return start_unload(core, t);
    start_trim(core, t);
    return true;
}

static bool is_complete(sl_core *core, ticket *t)
{
    if (is_load(t))
        return load_complete(core, t);
    return t->kind != TICKET_TRIM && unload_complete(core, t);
}

void sl_core_settle_tickets(sl_core *core)
{
    bool blocked = false, open_before = false;

    for (ticket *t = core->tickets; t; t = t->next) {
        if (!t->started && !t->ended && !blocked)
            blocked = !start_ticket(core, t, open_before);
        if (t->started && !t->ended && is_complete(core, t))
            end_ticket(core, t, SL_OK, "");
        open_before = open_before || !t->ended;
    }
}

bool sl_core_tickets_wait(const sl_core *core)
{
    for (const ticket *t = core->tickets; t; t = t->next)
        if (!t->ended && (!t->started || !is_load(t)))
            return true;
    return false;
}

void sl_core_fail_tickets(sl_core *core, const sl_core_key *key, bool host, sl_status status,
                          const char *message)
{
    for (ticket *t = core->tickets; t; t = t->next)
        if (t->kind == (host ? TICKET_LOAD_HOST : TICKET_LOAD) && t->started && !t->ended &&
            find_pin(t, key) >= 0)
            end_ticket(core, t, status, message);
}

/* ---- receipts ---- */

static void note_numbers(sl_core_receipt *receipt, const sl_core_done *done)
{
    if (receipt->command_count++ == 0)
        receipt->before_bytes = done->before_bytes;
    receipt->after_bytes = done->after_bytes;
    if (done->peak_bytes > receipt->peak_bytes)
        receipt->peak_bytes = done->peak_bytes;
    receipt->duration_ns += done->duration_ns;
}

static bool is_served(const ticket *t, const command *c)
{
    const sl_core_key *key = c->node ? &c->node->key : c->image ? &c->image->key : NULL;
    const uint64_t for_ticket = c->node    ? c->node->for_ticket
                                : c->image ? c->image->for_ticket
                                           : c->ticket;

    if (!t->started || t->ended)
        return false;
    if (c->kind == SL_CORE_LOAD) {
        const int line = t->kind == TICKET_LOAD ? find_line(t, key) : -1;
        return line >= 0 && t->needs[line].size_bytes == c->node->size_bytes;
    }
    if (for_ticket == t->id)
        return true;
    if (!key || (c->image ? !lists_image(t, key) : find_line(t, key) < 0))
        return false;
    if (c->kind == SL_CORE_HOST_FILL)
        return is_load(t);
    return t->kind == TICKET_UNLOAD &&
           (c->kind == SL_CORE_UNLOAD || t->mode != SL_CORE_UNLOAD_SOFT);
}

void sl_core_note_receipts(sl_core *core, const command *c, const sl_core_done *done)
{
    const int64_t measured = (int64_t)done->after_bytes - (int64_t)done->before_bytes;
    const bool load = c->kind == SL_CORE_LOAD;
    int64_t planned = 0;

    if (load || c->kind == SL_CORE_UNLOAD)
        planned = load ? (int64_t)c->node->size_bytes : -(int64_t)c->node->size_bytes;
    for (ticket *t = core->tickets; t; t = t->next) {
        if (!is_served(t, c))
            continue;
        note_numbers(&t->receipt, done);
        if (!c->node) /* nothing of it on the device */
            continue;
        t->receipt.residue_bytes += measured - planned + done->kept_bytes;
        sl_core_receipt_line *line = is_load(t) == load ? line_of(t, &c->node->key) : NULL;
        if (line && load)
            line->measured_bytes = (size_t)measured; /* again after a worker's death: the same */
        else if (line)
            line->measured_bytes += (size_t)-measured;
    }
}

bool sl_core_tell_ticket(sl_core *core, sl_core_action *out)
{
    ticket **at = &core->tickets;

    while (*at && !(*at)->ended)
        at = &(*at)->next;
    if (!*at)
        return false;
    ticket *t = *at;
    *at = t->next;
    out->kind = SL_CORE_TICKET_ENDED;
    out->ticket = t->id;
    out->status = t->status;
    out->receipt = t->receipt;
    out->receipt.limit_bytes = core->config.limit_bytes;
    out->answer = t->answer;
    memcpy(out->message, t->message, sizeof out->message);
    free(t);
    return true;
}
