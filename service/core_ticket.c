/* LoadModel and UnloadModel: their order, their pins, their receipts. */
#include "service/core_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ticket *add_ticket(sl_core *core, bool is_load, int count)
{
    ticket **end = &core->tickets;
    ticket *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->id = ++core->last_ticket;
    t->is_load = is_load;
    t->count = count;
    t->receipt.line_count = count;
    while (*end)
        end = &(*end)->next;
    *end = t;
    return t;
}

static demand demand_of_ticket(const ticket *t)
{
    return (demand){ .needs = t->needs, .count = t->count, .facts = &t->facts };
}

static sl_status check_count(int count, sl_error *err)
{
    if (count < 1 || count > SL_CORE_MAX_KEYS)
        return sl_fail(err, SL_ERR_INVALID, "%d components at once: 1 to %d can be given", count,
                       SL_CORE_MAX_KEYS);
    return SL_OK;
}

sl_status sl_core_load(sl_core *core, const sl_core_need *needs, int count,
                       const sl_budget_facts *facts, uint64_t *ticket_out, sl_core_answer *answer,
                       sl_error *err)
{
    const demand d = { .needs = needs, .count = count, .facts = facts };
    sl_core_answer own;
    sl_status status = check_count(count, err);

    if (status == SL_OK)
        status = sl_core_check(&d, err);
    if (status != SL_OK)
        return status;
    if (!answer)
        answer = &own;
    sl_core_answer_demand(core, &d, 0, answer);
    if (answer->when == SL_CORE_NEVER)
        return sl_fail(err, SL_ERR_TOO_LARGE, "could not load \"%s\": %s", needs[0].key.model,
                       answer->message);

    ticket *t = add_ticket(core, true, count);
    if (!t)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to load \"%s\"", needs[0].key.model);
    t->facts = *facts;
    for (int i = 0; i < count; i++) {
        t->needs[i] = needs[i];
        t->receipt.lines[i].key = needs[i].key;
        t->receipt.lines[i].planned_bytes = needs[i].size_bytes;
    }
    *ticket_out = t->id;
    return SL_OK;
}

static sl_status check_unused(const sl_core *core, const sl_core_key *key, sl_error *err)
{
    char text[SL_CORE_TEXT_BYTES];
    const node *n = sl_core_find(core, key);

    if (n && sl_core_in_use(core, n))
        return sl_fail(err, SL_ERR_PRECONDITION, "could not unload %s: job \"%s\" uses it",
                       sl_core_key_text(key, text, sizeof text), core->active->spec.job_id);
    return SL_OK;
}

sl_status sl_core_unload(sl_core *core, const sl_core_key *keys, int count, uint64_t *ticket_out,
                         sl_error *err)
{
    sl_status status = check_count(count, err);

    for (int i = 0; i < count && status == SL_OK; i++)
        status = check_unused(core, &keys[i], err);
    if (status != SL_OK)
        return status;
    ticket *t = add_ticket(core, false, count);
    if (!t)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to unload \"%s\"", keys[0].model);
    for (int i = 0; i < count; i++) {
        t->needs[i].key = keys[i];
        t->receipt.lines[i].key = keys[i];
    }
    *ticket_out = t->id;
    return SL_OK;
}

static int find_line(const ticket *t, const sl_core_key *key)
{
    for (int i = 0; i < t->count; i++)
        if (sl_core_key_equal(&t->needs[i].key, key))
            return i;
    return -1;
}

static void end_ticket(sl_core *core, ticket *t, sl_status status, const char *message)
{
    t->ended = true;
    t->status = status;
    snprintf(t->message, sizeof t->message, "%s", message);
    if (status == SL_OK || !t->is_load || !t->started)
        return;
    /* Pins that only this ticket wanted go with it, and its evictions. */
    for (int i = 0; i < t->count; i++) {
        node *n = sl_core_find(core, &t->needs[i].key);
        if (n && t->pinned_here[i])
            n->pinned = false;
    }
    sl_core_relent(core, t->id);
}

/* A pin that another load asks for, too, outlives the failure of the first. */
static void pin(sl_core *core, ticket *t, int i, node *n)
{
    for (ticket *other = core->tickets; other; other = other->next) {
        const int line = other == t ? -1 : find_line(other, &n->key);
        if (line >= 0)
            other->pinned_here[line] = false;
    }
    t->pinned_here[i] = !n->pinned;
    n->pinned = true;
}

bool sl_core_is_pinned_by_ticket(const sl_core *core, const sl_core_key *key)
{
    for (const ticket *t = core->tickets; t; t = t->next) {
        const int line = t->ended ? -1 : find_line(t, key);
        if (line >= 0 && t->pinned_here[line])
            return true;
    }
    return false;
}

static bool all_present(const sl_core *core, const ticket *t)
{
    for (int i = 0; i < t->count; i++) {
        const node *n = sl_core_find(core, &t->needs[i].key);
        if (!n || n->size_bytes != t->needs[i].size_bytes)
            return false;
    }
    return true;
}

/* False: it has to wait, and all tickets after it. */
static bool start_load(sl_core *core, ticket *t)
{
    const demand d = demand_of_ticket(t);

    if (!all_present(core, t)) {
        if (!sl_core_is_calm(core))
            return false;
        sl_core_answer_demand(core, &d, 0, &t->answer);
        if (t->answer.when != SL_CORE_NOW) {
            end_ticket(core, t, t->answer.when == SL_CORE_NEVER ? SL_ERR_TOO_LARGE : SL_ERR_BUSY,
                       t->answer.message);
            return true;
        }
        sl_core_evict_for(core, &d, t->id);
        if (!sl_core_want(core, &d)) {
            t->started = true;
            end_ticket(core, t, SL_ERR_NO_MEMORY, "out of memory for the components' books");
            return true;
        }
    }
    t->started = true;
    for (int i = 0; i < t->count; i++)
        pin(core, t, i, sl_core_find(core, &t->needs[i].key));
    return true;
}

static void start_unload(sl_core *core, ticket *t)
{
    sl_error error;

    t->started = true;
    for (int i = 0; i < t->count; i++) {
        if (check_unused(core, &t->needs[i].key, &error) != SL_OK) {
            end_ticket(core, t, SL_ERR_PRECONDITION, error.message);
            return;
        }
    }
    for (node *n = core->nodes, *next_node; n; n = next_node) {
        const int line = find_line(t, &n->key);
        next_node = n->next;
        if (line < 0)
            continue;
        t->receipt.lines[line].planned_bytes += n->size_bytes;
        n->pinned = false;
        if (n->state == SL_CORE_WANTED) {
            sl_core_remove(core, n);
        } else if (n->state != SL_CORE_UNLOADING) {
            n->evict = true; /* perhaps it was: now it goes even if that job does not come */
            n->for_ticket = t->id;
        }
    }
}

static bool load_complete(const sl_core *core, const ticket *t)
{
    for (int i = 0; i < t->count; i++) {
        const node *n = sl_core_find(core, &t->needs[i].key);
        if (!n || n->state != SL_CORE_READY)
            return false;
    }
    return true;
}

static bool unload_complete(const sl_core *core, const ticket *t)
{
    for (const node *n = core->nodes; n; n = n->next)
        if ((n->evict || n->state == SL_CORE_UNLOADING) && find_line(t, &n->key) >= 0)
            return false;
    return true;
}

/* A load may join one that is under way; an unload waits for all before it, so
 * that each ticket sees its components as those before have left them. */
static bool start_ticket(sl_core *core, ticket *t, bool open_before)
{
    if (t->is_load)
        return start_load(core, t);
    if (open_before)
        return false;
    start_unload(core, t);
    return true;
}

void sl_core_settle_tickets(sl_core *core)
{
    bool blocked = false, open_before = false;

    for (ticket *t = core->tickets; t; t = t->next) {
        if (!t->started && !t->ended && !blocked)
            blocked = !start_ticket(core, t, open_before);
        if (t->started && !t->ended &&
            (t->is_load ? load_complete(core, t) : unload_complete(core, t)))
            end_ticket(core, t, SL_OK, "");
        open_before = open_before || !t->ended;
    }
}

void sl_core_fail_tickets(sl_core *core, const sl_core_key *key, sl_status status,
                          const char *message)
{
    for (ticket *t = core->tickets; t; t = t->next)
        if (t->is_load && t->started && !t->ended && find_line(t, key) >= 0)
            end_ticket(core, t, status, message);
}

void sl_core_note_receipts(sl_core *core, const node *n, bool is_load, const sl_core_done *done)
{
    const int64_t measured = (int64_t)done->after_bytes - (int64_t)done->before_bytes;
    const int64_t planned = is_load ? (int64_t)n->size_bytes : -(int64_t)n->size_bytes;

    for (ticket *t = core->tickets; t; t = t->next) {
        const int line = t->is_load == is_load ? find_line(t, &n->key) : -1;
        if (!t->started || t->ended || (line < 0 && n->for_ticket != t->id))
            continue;
        sl_core_receipt *receipt = &t->receipt;
        if (receipt->command_count++ == 0)
            receipt->before_bytes = done->before_bytes;
        receipt->after_bytes = done->after_bytes;
        if (done->peak_bytes > receipt->peak_bytes)
            receipt->peak_bytes = done->peak_bytes;
        receipt->duration_ns += done->duration_ns;
        receipt->residue_bytes += measured - planned;
        if (line >= 0)
            receipt->lines[line].measured_bytes += (size_t)(is_load ? measured : -measured);
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
    out->answer = t->answer;
    memcpy(out->message, t->message, sizeof out->message);
    free(t);
    return true;
}
