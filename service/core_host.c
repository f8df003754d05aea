/* The host tier: which images there are, and which go for others. */
#include "service/core_state.h"

#include <stdlib.h>

/* Above all costs. */
#define WHATEVER 1e300

image *sl_core_find_image(const sl_core *core, const sl_core_key *key)
{
    for (image *im = core->images; im; im = im->next)
        if (!im->drop && im->state != SL_CORE_HOST_DROPPING && sl_core_same_image(&im->key, key))
            return im;
    return NULL;
}

size_t sl_core_host_booked(const sl_core *core)
{
    size_t sum = 0;

    for (const image *im = core->images; im; im = im->next)
        if (!im->drop)
            sum += im->size_bytes;
    return sum;
}

size_t sl_core_host_used(const sl_core *core)
{
    size_t sum = 0;

    for (const image *im = core->images; im; im = im->next)
        if (im->state != SL_CORE_HOST_WANTED)
            sum += im->size_bytes;
    return sum;
}

/* Counts on the image: is to be loaded from it, or pinned and streams from it. */
static bool holds(const node *n, const image *im, scope s)
{
    if (n->evict || n->host_bytes != im->size_bytes || !sl_core_same_image(&n->key, &im->key))
        return false;
    return (n->key.mode == SL_MODE_STREAMED && n->pinned) ||
           (s == SCOPE_ACTIVE && (n->state == SL_CORE_WANTED || n->state == SL_CORE_LOADING));
}

/* It cannot be had before whom s looks at lets go of it. */
static bool is_fixed_image(const sl_core *core, const image *im, scope s)
{
    if (s == SCOPE_ALONE || im->pinned)
        return s != SCOPE_ALONE;
    for (const node *n = core->nodes; n; n = n->next)
        if (holds(n, im, s))
            return true;
    for (const job *j = core->active; j && s == SCOPE_ACTIVE; j = j->next) {
        const demand left = sl_core_demand_left(j);
        FOR_NEEDS(&left, i)
        {
            if (left.needs[i].key.mode == SL_MODE_STREAMED &&
                left.needs[i].host_bytes == im->size_bytes &&
                sl_core_same_image(&left.needs[i].key, &im->key))
                return true;
        }
    }
    return false;
}

bool sl_core_is_held(const sl_core *core, const image *im)
{
    return is_fixed_image(core, im, SCOPE_ACTIVE) && !im->pinned;
}

static bool streams_from(const node *n, const image *im)
{
    return n->key.mode == SL_MODE_STREAMED && sl_core_same_image(&n->key, &im->key);
}

bool sl_core_is_read(const sl_core *core, const image *im)
{
    for (const node *n = core->nodes; n; n = n->next)
        if (streams_from(n, im) && n->state != SL_CORE_WANTED)
            return true;
    return false;
}

/* d needs that image, and in which size. */
static const sl_core_need *find_image_need(const demand *d, const sl_core_key *key, bool all)
{
    FOR_NEEDS(d, i)
    {
        if ((all || d->needs[i].key.mode == SL_MODE_STREAMED) &&
            sl_core_same_image(&d->needs[i].key, key))
            return &d->needs[i];
    }
    return NULL;
}

bool sl_core_is_host_blocked(const sl_core *core, const demand *d, bool all, scope s,
                             size_t *need_bytes, size_t *have_bytes)
{
    size_t besides = 0, need = 0;
    bool stale = false;

    FOR_NEEDS(d, i)
    {
        if (all || d->needs[i].key.mode == SL_MODE_STREAMED)
            need += d->needs[i].host_bytes;
    }
    if (need == 0)
        return false;
    for (const image *im = core->images; im; im = im->next) {
        if (im->drop || !is_fixed_image(core, im, s))
            continue;
        const sl_core_need *own = find_image_need(d, &im->key, all);
        if (!own)
            besides += im->size_bytes;
        else if (own->host_bytes != im->size_bytes)
            stale = true;
    }
    const size_t limit = core->config.host_limit_bytes;
    const size_t have = limit > besides ? limit - besides : 0;
    if (need <= have && !stale)
        return false;
    *need_bytes = need;
    *have_bytes = have;
    return true;
}

/* ---- adding and removing ---- */

image *sl_core_add_image(sl_core *core, const sl_core_need *need, uint64_t for_ticket)
{
    image **end = &core->images;
    image *im = calloc(1, sizeof *im);

    if (!im)
        return NULL;
    im->key = need->key;
    im->size_bytes = need->host_bytes;
    im->state = SL_CORE_HOST_WANTED;
    im->for_ticket = for_ticket;
    im->used = core->clock;
    while (*end)
        end = &(*end)->next;
    *end = im;
    return im;
}

static void unlink_image(sl_core *core, image *im)
{
    image **at = &core->images;

    while (*at != im)
        at = &(*at)->next;
    *at = im->next;
    im->next = NULL;
}

void sl_core_remove_image(sl_core *core, image *im)
{
    unlink_image(core, im);
    free(im);
}

void sl_core_lose_image(sl_core *core, image *im, sl_status status, const char *message)
{
    unlink_image(core, im);
    if (sl_core_is_pinned_by_ticket(core, &im->key, true)) {
        free(im);
        return;
    }
    im->loss = (loss){
        .owner = im, .key = im->key, .size_bytes = im->size_bytes, .host = true, .status = status
    };
    sl_core_report_loss(core, &im->loss, message);
}

void sl_core_drop_unwanted_images(sl_core *core)
{
    for (image *im = core->images, *next; im; im = next) {
        next = im->next;
        if (im->state == SL_CORE_HOST_WANTED && !im->pinned && !sl_core_is_held(core, im))
            sl_core_remove_image(core, im);
    }
}

/* ---- room ---- */

void sl_core_mark_drop(sl_core *core, image *im, uint64_t for_ticket)
{
    im->drop = true;
    im->for_ticket = for_ticket;
    for (node *n = core->nodes; n; n = n->next) {
        if (!streams_from(n, im) || n->state == SL_CORE_WANTED)
            continue;
        if (!n->evict)
            n->for_ticket = for_ticket;
        n->evict = n->must = true;
    }
}

/* One that is being filled can only go when that is done. */
static bool is_idle_image(const sl_core *core, const image *im, bool filling)
{
    return !im->drop && !im->pinned && !im->keep &&
           (im->state == SL_CORE_HOST_READY || (filling && im->state == SL_CORE_HOST_FILLING)) &&
           !sl_core_is_held(core, im);
}

static bool is_on_device(const sl_core *core, const image *im)
{
    for (const node *n = core->nodes; n; n = n->next)
        if (!n->evict && sl_core_same_image(&n->key, &im->key))
            return true;
    return false;
}

/* Images of what is on the device save nothing until that is evicted: they go
 * after those that are the only copy nobody needs, and before what is queued for. */
static void set_costs(const sl_core *core)
{
    for (image *im = core->images; im; im = im->next) {
        const double age = 1.0 + (double)(core->clock - im->used);
        im->cost = (double)sl_core_file_ns(core, im->size_bytes) / age;
        im->pick = false;
        if (is_on_device(core, im))
            im->cost += 1e30;
        if (sl_core_is_wanted_by_queue(core, &im->key, true))
            im->cost += 1e31;
    }
}

static image *cheapest(const sl_core *core, double below)
{
    const bool filling = below >= WHATEVER;
    image *best = NULL;

    for (image *im = core->images; im; im = im->next)
        if (!im->pick && im->cost < below && (!best || im->cost < best->cost) &&
            is_idle_image(core, im, filling))
            best = im;
    return best;
}

static image *dearest_picked(const sl_core *core, size_t spare_bytes)
{
    image *best = NULL;

    for (image *im = core->images; im; im = im->next)
        if (im->pick && im->size_bytes <= spare_bytes && (!best || im->cost > best->cost))
            best = im;
    return best;
}

/* Drops idle images that cost less than `below` each until `extra` bytes more are
 * within the limit; all that is needed, or nothing and false. */
static bool make_room(sl_core *core, size_t extra, double below, uint64_t for_ticket)
{
    const size_t limit = core->config.host_limit_bytes;
    size_t booked = sl_core_host_booked(core) + extra;
    image *im;

    if (booked <= limit)
        return true;
    set_costs(core);
    while (booked > limit && (im = cheapest(core, below)) != NULL) {
        im->pick = true;
        booked -= im->size_bytes;
    }
    if (booked > limit)
        return false;
    while ((im = dearest_picked(core, limit - booked)) != NULL) {
        im->pick = false;
        booked += im->size_bytes;
    }
    for (im = core->images; im; im = im->next)
        if (im->pick)
            sl_core_mark_drop(core, im, for_ticket);
    return true;
}

/* An image that was WANTED to save time only can be done without. */
static bool is_streamed_by_someone(const sl_core *core, const image *im)
{
    bool used = false;

    for (const node *n = core->nodes; n && !used; n = n->next)
        used = streams_from(n, im) && holds(n, im, SCOPE_ACTIVE);
    for (const job *j = core->active; j && !used; j = j->next) {
        const demand left = sl_core_demand_left(j);
        const sl_core_need *need = find_image_need(&left, &im->key, false);
        used = need && need->host_bytes == im->size_bytes;
    }
    return used;
}

size_t sl_core_host_fixed(const sl_core *core)
{
    size_t sum = 0;

    for (const image *im = core->images; im; im = im->next)
        if (!im->drop && (im->pinned || is_streamed_by_someone(core, im)))
            sum += im->size_bytes;
    return sum;
}

/* Those that were only to save time are loaded from their files instead. */
static void remove_spare(sl_core *core)
{
    for (image *im = core->images, *next; im; im = next) {
        next = im->next;
        if (im->state == SL_CORE_HOST_WANTED && !im->pinned && !is_streamed_by_someone(core, im))
            sl_core_remove_image(core, im);
    }
}

void sl_core_shrink_host(sl_core *core)
{
    image *im;

    if (sl_core_host_booked(core) <= core->config.host_limit_bytes)
        return;
    remove_spare(core);
    set_costs(core);
    while (sl_core_host_booked(core) > core->config.host_limit_bytes &&
           (im = cheapest(core, WHATEVER)) != NULL)
        sl_core_mark_drop(core, im, 0);
}

/* An image that was to go, and need not if there is room. */
static image *take_back(sl_core *core, const sl_core_need *need)
{
    for (image *im = core->images; im; im = im->next) {
        if (!im->drop || im->broken || im->for_ticket || im->state == SL_CORE_HOST_DROPPING ||
            im->size_bytes != need->host_bytes || !sl_core_same_image(&im->key, &need->key))
            continue;
        if (sl_core_host_booked(core) + im->size_bytes > core->config.host_limit_bytes)
            return NULL;
        im->drop = false;
        return im;
    }
    return NULL;
}

/* The image of a need, if it is there in its present size.  One of another size is
 * of a file that is no more. */
static image *find_current(sl_core *core, const sl_core_need *need)
{
    image *im = sl_core_find_image(core, &need->key);

    if (im && im->size_bytes != need->host_bytes && is_idle_image(core, im, true)) {
        sl_core_mark_drop(core, im, 0);
        im = NULL;
    }
    return im ? im : take_back(core, need);
}

/* What it would cost to read it again, used just now. */
static double own_cost(const sl_core *core, const sl_core_need *need)
{
    return (double)sl_core_file_ns(core, need->host_bytes);
}

image *sl_core_try_image(sl_core *core, const sl_core_need *need)
{
    image *im = find_current(core, need);

    if (im)
        return NULL;
    if (!make_room(core, need->host_bytes, own_cost(core, need), 0) ||
        sl_core_host_used(core) + need->host_bytes > core->config.host_limit_bytes)
        return NULL;
    for (im = core->images; im; im = im->next)
        if (sl_core_same_image(&im->key, &need->key))
            return NULL; /* of a file that is no more, and goes first */
    return sl_core_add_image(core, need, 0);
}

/* What d cannot do without is booked first, and kept by what it is for. */
static bool want_image(sl_core *core, const sl_core_need *need, bool must, uint64_t for_ticket)
{
    image *im = find_current(core, need);

    if (!im) {
        if (!make_room(core, need->host_bytes, must ? WHATEVER : own_cost(core, need), for_ticket))
            return !must;
        im = sl_core_add_image(core, need, for_ticket);
    }
    if (!im || (must && im->size_bytes != need->host_bytes))
        return false;
    im->used = core->clock;
    im->keep = must;
    return true;
}

bool sl_core_want_images(sl_core *core, const demand *d, bool all, uint64_t for_ticket)
{
    bool ok = true;

    FOR_NEEDS(d, i)
    {
        const sl_core_need *need = &d->needs[i];
        if (ok && (all || need->key.mode == SL_MODE_STREAMED))
            ok = want_image(core, need, true, for_ticket);
    }
    for (image *im = core->images; im; im = im->next)
        im->keep = false;
    return ok;
}

bool sl_core_want_spare_images(sl_core *core, const demand *d)
{
    FOR_NEEDS(d, i)
    {
        const sl_core_need *need = &d->needs[i];
        const node *n = sl_core_find(core, &need->key);
        if (need->key.mode == SL_MODE_RESIDENT && need->host_bytes > 0 && n &&
            n->state == SL_CORE_WANTED && core->config.host_limit_bytes > 0 &&
            !want_image(core, need, false, 0))
            return false;
    }
    return true;
}
