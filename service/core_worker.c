/* The worker comes and goes, and what its commands come to. */
#include "service/core_state.h"

#include <stdio.h>
#include <string.h>

/* How often a job goes back to the queue because the driver refused memory
 * that the books said was free. */
enum { MEMORY_RETRIES = 8 };

/* ---- up ---- */

/* A worker may need more for itself than was expected: pins that do not fit
 * beside it are given up, the latest first. */
static void give_up_pins(sl_core *core)
{
    const size_t limit = core->config.limit_bytes;

    while (sl_core_booked(core) > limit) {
        node *last = NULL;
        for (node *n = core->nodes; n; n = n->next)
            if (n->pinned && n->state == SL_CORE_WANTED)
                last = n;
        if (!last)
            return;
        const sl_core_key key = last->key;
        sl_core_lose_node(core, last, SL_ERR_NO_MEMORY, "the new worker leaves no room for it");
        sl_core_fail_tickets(core, &key, false, SL_ERR_NO_MEMORY,
                             "the new worker leaves no room for it");
    }
}

void sl_core_set_limit(sl_core *core, size_t limit_bytes)
{
    if (limit_bytes == 0 || limit_bytes > SIZE_MAX / 4 || limit_bytes == core->config.limit_bytes)
        return;
    core->config.limit_bytes = limit_bytes;
    core->limit_changed = true;
}

void sl_core_worker_up(sl_core *core, size_t workspace_bytes)
{
    const bool changed = core->config.workspace_bytes != workspace_bytes || core->limit_changed;

    core->up = true;
    core->limit_changed = false;
    core->restart = core->restart_told = core->replacing = false;
    core->config.workspace_bytes = workspace_bytes;
    core->unsettled = true;
    give_up_pins(core);
    if (changed)
        sl_core_rejudge(core);
}

/* ---- down ---- */

static void lose_nodes(sl_core *core, const image *filling, bool counts, const char *reason)
{
    for (node *n = core->nodes, *next; n; n = next) {
        next = n->next;
        if (!n->pinned || n->evict) {
            sl_core_remove(core, n);
            continue;
        }
        n->deaths += counts && (n->state == SL_CORE_LOADING ||
                                (filling && sl_core_same_image(&filling->key, &n->key)));
        n->state = SL_CORE_WANTED;
        n->measured_bytes = 0;
    }
    /* A component whose load keeps killing the worker is given up. */
    for (node *n = core->nodes; n;) {
        if (n->deaths <= core->config.retry_limit) {
            n = n->next;
            continue;
        }
        const sl_core_key key = n->key;
        sl_core_lose_node(core, n, SL_ERR_UNAVAILABLE, reason);
        sl_core_fail_tickets(core, &key, false, SL_ERR_UNAVAILABLE, reason);
        n = core->nodes; /* ending a ticket may have removed others */
    }
}

/* What has failed ahead of time is not tried again before its time. */
static void forbid_prefetch(job *list, const sl_core_key *key)
{
    for (job *j = list; j; j = j->next) {
        const demand d = sl_core_demand_of(&j->spec.variants[j->variant], j->spec.first_phase);
        if (sl_core_demand_has_image(&d, key))
            j->no_prefetch = true;
    }
}

/* READY images stay.  One that was being filled has to be dropped; if it is pinned,
 * another is filled in its place, retry_limit times. */
static void break_image(sl_core *core, image *im, bool filling, bool counts, const char *reason)
{
    const sl_core_need need = { .key = im->key, .host_bytes = im->size_bytes };

    im->state = SL_CORE_HOST_READY;
    im->drop = im->broken = true;
    if (!filling)
        return;
    if (counts)
        forbid_prefetch(core->queue, &im->key);
    if (!im->pinned)
        return;
    im->pinned = false;
    image *again = sl_core_add_image(core, &need, im->for_ticket);
    if (again) {
        again->pinned = true;
        again->deaths = im->deaths + counts;
    }
    if (!again || again->deaths > core->config.retry_limit) {
        if (again)
            sl_core_lose_image(core, again, SL_ERR_UNAVAILABLE, reason);
        sl_core_fail_tickets(core, &need.key, true, SL_ERR_UNAVAILABLE, reason);
    }
}

static bool loads_for(const job *j, const command *lane)
{
    const demand now = sl_core_demand_now(j);

    if (lane->kind == SL_CORE_LOAD)
        return sl_core_demand_has(&now, &lane->node->key);
    return lane->kind == SL_CORE_HOST_FILL && sl_core_demand_has_image(&now, &lane->image->key);
}

/* Takes all jobs off the device.  Nobody knows which one it was: each that was at
 * work is counted, if that is to be counted at all. */
static void lose_jobs(sl_core *core, const command *lane, bool counting, const char *reason)
{
    char message[SL_CORE_TEXT_BYTES * 2];
    int running = 0;

    for (const job *j = core->active; j; j = j->next)
        running += j->running;
    while (core->active) {
        job *j = core->active;
        const bool counts = counting && ((j->running && j->stop != STOP_PREEMPT) ||
                                         (!j->running && loads_for(j, lane)));

        if (j->running && running > 1 && counting)
            snprintf(message, sizeof message,
                     "%s; %d jobs were running side by side, and it is not known which it was",
                     reason, running);
        else
            snprintf(message, sizeof message, "%s", reason);
        if (j->stop == STOP_CANCEL) {
            sl_core_end_active(core, j, SL_ERR_CANCELLED, "cancelled");
        } else if (j->stop == STOP_FAIL && j->stop_status != SL_ERR_NO_MEMORY) {
            sl_core_end_active(core, j, j->stop_status, j->stop_message);
        } else if (counts && j->attempt > core->config.retry_limit) {
            char end[SL_CORE_TEXT_BYTES * 3];
            snprintf(end, sizeof end, "the worker ended %d times during this job, at last: %s",
                     j->attempt, message);
            sl_core_end_active(core, j, SL_ERR_UNAVAILABLE, end);
        } else {
            j->attempt += counts;
            sl_core_requeue_active(core, j, SL_ERR_UNAVAILABLE, message);
        }
    }
}

static void lose_worker(sl_core *core, bool counts, const char *reason)
{
    char message[SL_CORE_TEXT_BYTES];
    const command lane = core->lane;

    core->up = core->restart = core->restart_told = core->replacing = false;
    core->generation++;
    core->lane = (command){ 0 };
    core->unsettled = true;
    lose_jobs(core, &lane, counts, reason);
    snprintf(message, sizeof message, "the worker ended: %s", reason);
    lose_nodes(core, lane.kind == SL_CORE_HOST_FILL ? lane.image : NULL, counts, message);
    if (lane.kind == SL_CORE_HOST_FILL || lane.kind == SL_CORE_HOST_DROP)
        break_image(core, lane.image, lane.kind == SL_CORE_HOST_FILL, counts, message);
    sl_core_drop_unwanted_images(core);
    sl_core_end_trims(core, SL_OK, ""); /* all was given back */
}

void sl_core_worker_down(sl_core *core, const char *reason)
{
    lose_worker(core, !core->replacing, reason);
}

void sl_core_worker_replaced(sl_core *core, const char *reason)
{
    lose_worker(core, false, reason);
}

/* ---- commands ---- */

/* The driver has refused memory that was promised. */
static void retry_memory(sl_core *core, job *j, const char *message, int64_t now_ns)
{
    if (j->stop == STOP_CANCEL) {
        sl_core_end_active(core, j, SL_ERR_CANCELLED, "cancelled");
    } else if (j->memory_retries >= MEMORY_RETRIES) {
        sl_core_end_active(core, j, SL_ERR_NO_MEMORY, message);
    } else {
        j->memory_retries++;
        j->not_before_ns = now_ns + core->config.memory_backoff_ns;
        sl_core_requeue_active(core, j, SL_ERR_NO_MEMORY, message);
    }
}

/* A component of theirs is not coming.  One that runs has to be stopped first. */
static void fail_users(sl_core *core, const sl_core_key *key, sl_status status, const char *message,
                       int64_t now_ns)
{
    for (job *j = core->active, *next; j; j = next) {
        const demand now = sl_core_demand_now(j);
        next = j->next;
        if (!sl_core_demand_has(&now, key))
            continue;
        if (j->running && j->stop < STOP_FAIL) {
            j->stop = STOP_FAIL;
            j->stop_due_ns = INT64_MAX;
            j->stop_status = status;
            snprintf(j->stop_message, sizeof j->stop_message, "%s", message);
        } else if (!j->running && status == SL_ERR_NO_MEMORY) {
            retry_memory(core, j, message, now_ns);
        } else if (!j->running) {
            sl_core_end_active(core, j, status, message);
        }
    }
}

static void load_failed(sl_core *core, node *n, sl_status status, const char *message,
                        int64_t now_ns)
{
    const sl_core_key key = n->key;

    forbid_prefetch(core->active, &key);
    sl_core_lose_node(core, n, status, message);
    fail_users(core, &key, status, message, now_ns);
    sl_core_fail_tickets(core, &key, false, status, message);
}

/* It may be the image's fault. */
static void distrust_image(sl_core *core, const sl_core_key *key)
{
    image *im = sl_core_find_image(core, key);

    if (!im || im->pinned || sl_core_is_held(core, im))
        return;
    sl_core_mark_drop(core, im, 0);
    im->broken = true;
}

static void load_done(sl_core *core, const command *ended, const sl_core_done *done,
                      const char *message, int64_t now_ns)
{
    node *n = ended->node;
    const sl_core_key key = n->key;

    if (done->status != SL_OK) {
        load_failed(core, n, done->status, message, now_ns);
        if (ended->from_host && done->status != SL_ERR_NO_MEMORY)
            distrust_image(core, &key);
        return;
    }
    n->state = SL_CORE_READY;
    n->measured_bytes = done->component_bytes;
    n->deaths = 0;
    if (ended->from_host)
        sl_core_observe_copy(core, n->size_bytes, done->duration_ns);
    else
        sl_core_observe_file(core, n->size_bytes, done->duration_ns);
    sl_core_note_receipts(core, ended, done);
}

/* Without its image a component is loaded from the file, unless it streams. */
static void fill_done(sl_core *core, const command *ended, const sl_core_done *done,
                      const char *message, int64_t now_ns)
{
    image *im = ended->image;
    sl_core_key key = im->key;
    node *n;

    if (done->status == SL_OK) {
        im->state = SL_CORE_HOST_READY;
        im->deaths = 0;
        sl_core_observe_file(core, im->size_bytes, done->duration_ns);
        sl_core_note_receipts(core, ended, done);
        return;
    }
    forbid_prefetch(core->queue, &key);
    forbid_prefetch(core->active, &key);
    if (im->pinned)
        sl_core_lose_image(core, im, done->status, message);
    else
        sl_core_remove_image(core, im);
    sl_core_fail_tickets(core, &key, true, done->status, message);
    key.mode = SL_MODE_STREAMED;
    n = sl_core_find(core, &key);
    if (n && n->state == SL_CORE_WANTED)
        load_failed(core, n, done->status, message, now_ns);
    else
        fail_users(core, &key, done->status, message, now_ns);
}

static void run_done(sl_core *core, job *j, const sl_core_done *done, const char *message,
                     int64_t now_ns)
{
    const stop_kind stop = j->stop;

    j->mapped_bytes = j->told_bytes = 0;
    if (done->status == SL_ERR_DEVICE) {
        j->faulted = true;
        sl_core_want_restart(core, message);
    } else if (stop == STOP_FAIL && done->status != SL_OK && j->stop_status != SL_ERR_NO_MEMORY) {
        sl_core_end_active(core, j, j->stop_status, j->stop_message);
    } else if (stop == STOP_FAIL && done->status != SL_OK) {
        retry_memory(core, j, j->stop_message, now_ns);
    } else if (stop == STOP_PREEMPT && done->status == SL_ERR_CANCELLED) {
        sl_core_requeue_active(core, j, SL_ERR_CANCELLED, "pre-empted");
    } else if (done->status == SL_ERR_NO_MEMORY) {
        retry_memory(core, j, message, now_ns);
    } else if (done->status == SL_ERR_PRECONDITION && stop != STOP_CANCEL && j->starts_over) {
        j->starts_over = false;
        sl_core_requeue_active(core, j, SL_ERR_PRECONDITION, message);
    } else {
        sl_core_end_active(core, j, done->status, message);
    }
}

static void lane_done(sl_core *core, const sl_core_done *done, const char *message, int64_t now_ns)
{
    const command ended = core->lane;

    if (done->status == SL_ERR_DEVICE) {
        /* The context is poisoned; what was under way is dealt with when the
         * worker is gone. */
        sl_core_want_restart(core, message);
        return;
    }
    core->lane = (command){ 0 };
    if (ended.kind == SL_CORE_LOAD) {
        load_done(core, &ended, done, message, now_ns);
    } else if (ended.kind == SL_CORE_HOST_FILL) {
        fill_done(core, &ended, done, message, now_ns);
    } else if (ended.kind == SL_CORE_HOST_DROP) {
        sl_core_note_receipts(core, &ended, done);
        sl_core_remove_image(core, ended.image);
    } else if (ended.kind == SL_CORE_TRIM) {
        sl_core_note_receipts(core, &ended, done);
        sl_core_end_trims(core, done->status, message);
    } else if (done->status != SL_OK) {
        /* Nobody knows what is mapped now: start over. */
        sl_core_want_restart(core, message);
    } else {
        sl_core_note_receipts(core, &ended, done);
        sl_core_remove(core, ended.node);
    }
}

bool sl_core_command_done(sl_core *core, uint64_t command_id, const sl_core_done *done,
                          int64_t now_ns)
{
    const char *message = done->message ? done->message : "";

    if (command_id == 0)
        return false;
    core->unsettled = true;
    if (core->lane.id == command_id) {
        lane_done(core, done, message, now_ns);
        return true;
    }
    for (job *j = core->active; j; j = j->next) {
        if (j->command_id == command_id && !j->faulted) {
            run_done(core, j, done, message, now_ns);
            return true;
        }
    }
    return false;
}
