/* Commands: the loader's, one at a time, and a run on each job lane. */
#include "service/core_state.h"

#include <string.h>

static void send_on_lane(sl_core *core, sl_core_action *out, command c)
{
    c.id = ++core->last_command;
    core->lane = c;
    out->kind = c.kind;
    out->command_id = c.id;
    out->ticket = c.ticket;
    out->from_host = c.from_host;
    if (c.node) {
        out->key = c.node->key;
        out->size_bytes = c.node->size_bytes;
    } else if (c.image) {
        out->key = c.image->key;
        out->size_bytes = c.image->size_bytes;
    }
}

/* ---- runs ---- */

static bool is_ready(const sl_core *core, const job *j)
{
    const demand now = sl_core_demand_now(j);

    FOR_NEEDS(&now, i)
    {
        const node *n = sl_core_find(core, &now.needs[i].key);
        if (!n || n->state != SL_CORE_READY || n->size_bytes != now.needs[i].size_bytes)
            return false;
    }
    return true;
}

static int free_lane(const sl_core *core)
{
    unsigned used = 0;

    for (const job *j = core->active; j; j = j->next)
        if (j->running)
            used |= 1u << j->lane;
    for (int i = 0; i < core->config.max_running_jobs; i++)
        if (!(used >> i & 1))
            return i;
    return -1;
}

/* What still goes is still mapped. */
static bool has_room(const sl_core *core, const job *j, size_t activation_bytes)
{
    return sl_core_mapped(core) - j->mapped_bytes + activation_bytes <= core->config.limit_bytes;
}

static bool next_go(sl_core *core, job *j, sl_core_action *out)
{
    const size_t bytes = sl_core_demand_now(j).activation_bytes;

    if (!j->waiting || j->faulted || j->stop != STOP_NONE || !is_ready(core, j) ||
        !has_room(core, j, bytes))
        return false;
    j->waiting = false;
    j->mapped_bytes = bytes;
    out->kind = SL_CORE_PHASE_GO;
    out->phase = j->phase;
    out->size_bytes = bytes;
    memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
    return true;
}

static bool next_run(sl_core *core, int64_t now_ns, sl_core_action *out)
{
    const int lane = free_lane(core);

    for (job *j = core->active; j; j = j->next) {
        if (j->running && next_go(core, j, out))
            return true;
        const size_t bytes = sl_core_demand_now(j).activation_bytes;
        if (j->running || lane < 0 || !is_ready(core, j) || !has_room(core, j, bytes))
            continue;
        j->running = true;
        j->command_id = ++core->last_command;
        j->lane = lane;
        j->mapped_bytes = bytes;
        j->run_since_ns = now_ns;
        out->kind = SL_CORE_RUN;
        out->command_id = j->command_id;
        out->attempt = j->attempt;
        out->lane = lane;
        out->variant = j->variant;
        out->phase = j->phase;
        out->size_bytes = bytes;
        memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
        return true;
    }
    return false;
}

/* ---- what goes ---- */

static bool next_unload(sl_core *core, sl_core_action *out)
{
    node *n = core->nodes;

    while (n && !(n->evict && n->state == SL_CORE_READY))
        n = n->next;
    if (!n)
        return false;
    n->state = SL_CORE_UNLOADING;
    send_on_lane(core, out,
                 (command){ .kind = SL_CORE_UNLOAD, .node = n, .ticket = n->for_ticket });
    for (const job *j = core->active; j && n->for_ticket == 0 && !out->job_id[0]; j = j->next)
        if (!j->running)
            memcpy(out->job_id, j->spec.job_id, sizeof out->job_id);
    return true;
}

static bool next_drop(sl_core *core, sl_core_action *out)
{
    image *im = core->images;

    while (im && !(im->drop && im->state == SL_CORE_HOST_READY && !sl_core_is_read(core, im)))
        im = im->next;
    if (!im)
        return false;
    im->state = SL_CORE_HOST_DROPPING;
    send_on_lane(core, out,
                 (command){ .kind = SL_CORE_HOST_DROP, .image = im, .ticket = im->for_ticket });
    return true;
}

/* ---- what comes ---- */

static void name_user(const sl_core *core, const sl_core_key *key, sl_core_action *out)
{
    const job *user = sl_core_user_of_key(core, key);

    if (user)
        memcpy(out->job_id, user->spec.job_id, sizeof out->job_id);
}

static bool send_fill(sl_core *core, image *im, sl_core_action *out)
{
    if (sl_core_host_used(core) + im->size_bytes > core->config.host_limit_bytes)
        return false;
    for (const image *other = core->images; other; other = other->next)
        if (other != im && sl_core_same_image(&other->key, &im->key))
            return false; /* of a file that is no more, and goes first */
    im->state = SL_CORE_HOST_FILLING;
    send_on_lane(core, out,
                 (command){ .kind = SL_CORE_HOST_FILL, .image = im, .ticket = im->for_ticket });
    name_user(core, &im->key, out);
    return true;
}

static bool send_load(sl_core *core, node *n, bool from_host, sl_core_action *out)
{
    if (sl_core_mapped(core) + n->size_bytes > core->config.limit_bytes)
        return false;
    n->state = SL_CORE_LOADING;
    send_on_lane(core, out, (command){ .kind = SL_CORE_LOAD, .node = n, .from_host = from_host });
    name_user(core, &n->key, out);
    return true;
}

static demand demand_of_node(const node *n, sl_core_need *need)
{
    *need =
        (sl_core_need){ .key = n->key, .size_bytes = n->size_bytes, .host_bytes = n->host_bytes };
    return (demand){ .needs = need, .count = 1, .set = 1 };
}

/* One of another size is of a file that has changed. */
static image *image_of(const sl_core *core, const node *n)
{
    image *im = sl_core_find_image(core, &n->key);
    return im && im->size_bytes == n->host_bytes ? im : NULL;
}

/* A pinned streamed component that has outlived its image with the last worker. */
static bool replace_image(sl_core *core, node *n)
{
    sl_core_need need;
    const demand d = demand_of_node(n, &need);
    size_t need_bytes, have_bytes;

    return !sl_core_is_host_blocked(core, &d, false, SCOPE_ACTIVE, &need_bytes, &have_bytes) &&
           sl_core_want_images(core, &d, false, 0);
}

void sl_core_give_up_streamed(sl_core *core)
{
    static const char why[] = "pinned images leave no room for the one it streams from";
    size_t need_bytes, have_bytes;

    for (node *n = core->nodes; n;) {
        sl_core_need need;
        const demand d = demand_of_node(n, &need);

        if (n->state != SL_CORE_WANTED || n->key.mode != SL_MODE_STREAMED || image_of(core, n) ||
            !sl_core_is_host_blocked(core, &d, false, SCOPE_PINNED, &need_bytes, &have_bytes)) {
            n = n->next;
            continue;
        }
        sl_core_lose_node(core, n, SL_ERR_NO_MEMORY, why);
        sl_core_fail_tickets(core, &need.key, false, SL_ERR_NO_MEMORY, why);
        n = core->nodes; /* ending a ticket may have removed others */
    }
}

static bool next_load(sl_core *core, sl_core_action *out)
{
    for (node *n = core->nodes; n; n = n->next) {
        if (n->state != SL_CORE_WANTED)
            continue;
        image *im = image_of(core, n);
        if (!im && n->key.mode == SL_MODE_STREAMED) {
            if (!replace_image(core, n))
                continue;
            im = image_of(core, n);
        }
        if (im && im->state == SL_CORE_HOST_WANTED ? send_fill(core, im, out)
                                                   : send_load(core, n, im != NULL, out))
            return true;
    }
    for (image *im = core->images; im; im = im->next)
        if (im->state == SL_CORE_HOST_WANTED && send_fill(core, im, out))
            return true;
    return false;
}

static bool next_trim(sl_core *core, sl_core_action *out)
{
    ticket *t = sl_core_find_trim(core);

    if (!t)
        return false;
    t->trim_sent = true;
    send_on_lane(core, out, (command){ .kind = SL_CORE_TRIM, .ticket = t->id });
    return true;
}

/* ---- ahead of time ---- */

/* The first image that d lacks and the tier has room for. */
static bool prefetch(sl_core *core, const demand *d, sl_core_action *out)
{
    FOR_NEEDS(d, i)
    {
        const sl_core_need *need = &d->needs[i];
        if (need->host_bytes == 0 || sl_core_find(core, &need->key))
            continue;
        image *im = sl_core_try_image(core, need);
        if (im && send_fill(core, im, out))
            return true;
    }
    return false;
}

/* The next phase's components come early when there is room beside all else. */
static bool come_early(sl_core *core, const job *j, sl_core_action *out)
{
    const sl_core_variant *v = &j->spec.variants[j->variant];
    const demand next = sl_core_demand_of(v, j->phase + 1);

    for (int i = 0; i < next.count; i++) {
        const sl_core_need *need = &next.needs[i];
        const demand one = { .needs = need, .count = 1, .set = 1, .facts = &v->facts };
        const image *im = sl_core_find_image(core, &need->key);

        if (!(next.phases[0].needs >> i & 1) || sl_core_find(core, &need->key) ||
            need->key.mode == SL_MODE_STREAMED ||
            sl_core_booked(core) + need->size_bytes > core->config.limit_bytes ||
            !sl_core_rule_allows(core, &one))
            continue;
        node *n = sl_core_add_node(core, need);
        if (!n)
            return false;
        if (send_load(core, n,
                      im && im->state == SL_CORE_HOST_READY && im->size_bytes == need->host_bytes,
                      out))
            return true;
        sl_core_remove(core, n);
    }
    return false;
}

static bool next_ahead(sl_core *core, sl_core_action *out)
{
    for (job *j = core->active; j; j = j->next) {
        const demand left = sl_core_demand_left(j);
        if (!left.phases || left.phase_count < 2 || !j->running || j->stop != STOP_NONE)
            continue;
        if (!j->no_prefetch && (come_early(core, j, out) || prefetch(core, &left, out)))
            return true;
    }
    if (core->active_count == 0 || core->config.host_limit_bytes == 0)
        return false;
    for (job *j = core->queue; j; j = j->next) {
        const demand d = sl_core_demand_of(&j->spec.variants[j->variant], j->spec.first_phase);
        bool absent = false;
        FOR_NEEDS(&d, i)
        {
            absent = absent || !sl_core_find(core, &d.needs[i].key);
        }
        if (absent && !j->no_prefetch)
            return prefetch(core, &d, out); /* the next one only */
    }
    return false;
}

/* Everything that goes, goes before anything comes. */
bool sl_core_next_command(sl_core *core, int64_t now_ns, sl_core_action *out)
{
    if (core->restart)
        return false;
    if (core->up && next_run(core, now_ns, out))
        return true;
    if (core->lane.id)
        return false;
    if (!core->up)
        return next_drop(core, out);
    if (next_unload(core, out) || next_drop(core, out) || next_load(core, out) ||
        next_trim(core, out) || next_ahead(core, out))
        return true;
    /* What could not come yet may have found who goes for it. */
    return next_unload(core, out) || next_drop(core, out);
}
