#include "service/reload.h"

#include "service/evidence.h"

#include <stdlib.h>
#include <string.h>

enum { PREPARED_JOBS = 1, MOST_CHANGES = 16 };

/* --- limits --- */

static sl_core_limits core_limits(const sl_service_limits *limits, int lanes)
{
    return (sl_core_limits){
        .max_running_jobs = limits->running < lanes ? limits->running : lanes,
        .prepare_jobs = PREPARED_JOBS,
        .queue_limit = limits->queue,
        .bypass_limit = limits->bypass,
        .user_running_limit = limits->user_running,
        .user_queued_limit = limits->user_queued,
        .host_limit_bytes = limits->host_bytes,
    };
}

sl_status sl_reload_set_limits(sl_service *s, const sl_service_limits *limits, sl_error *err)
{
    const sl_core_limits core = core_limits(limits, s->lanes);
    const sl_status status = sl_core_set_limits(s->core, &core, err);

    if (status != SL_OK)
        return status;
    sl_hosttier_set_limit(s->host, limits->host_bytes);
    s->limits = *limits;
    if (s->supervisor) {
        sl_supervisor_set_lanes(s->supervisor, limits->running);
        sl_supervisor_set_host_bytes(s->supervisor, limits->host_bytes);
    }
    return SL_OK;
}

void sl_reload_worker_up(sl_service *s, int lanes)
{
    sl_error err = { .status = SL_OK };

    s->lanes = lanes > 0 ? lanes : 1;
    const sl_core_limits core = core_limits(&s->limits, s->lanes);
    if (sl_core_set_limits(s->core, &core, &err) != SL_OK)
        sl_log(SL_LOG_ERROR, "limits_refused", "reason=\"%s\"", err.message);
}

void sl_reload_replace_worker(sl_service *s)
{
    if (!s->worker_up || s->resetting || s->lanes == s->limits.running ||
        sl_service_first_running(s))
        return;
    s->resetting = true;
    sl_event_add(s, "worker_replaced", "lanes=%d wanted=%d", s->lanes, s->limits.running);
    sl_supervisor_kill(s->supervisor, s->generation, "another number of jobs side by side");
}

/* --- reading again --- */

typedef struct {
    const char *what[MOST_CHANGES];
    int count;
} changes;

static void note(changes *list, bool changed, const char *what)
{
    if (changed)
        list->what[list->count++] = what;
}

static void find_changes(const sl_service *s, const sl_service_settings *now, changes *out)
{
    const sl_service_limits *a = &s->limits, *b = &now->limits;

    note(out, s->table && memcmp(s->table, &now->table, sizeof now->table) != 0, "budget");
    note(out, a->outputs_quota_bytes != b->outputs_quota_bytes, "outputs_quota");
    note(out, a->outputs_retention_ns != b->outputs_retention_ns, "outputs_retention");
    note(out, a->host_bytes != b->host_bytes, "host_memory");
    note(out, a->running != b->running, "limits.running");
    note(out, a->queue != b->queue, "limits.queue");
    note(out, a->bypass != b->bypass, "limits.bypass");
    note(out, a->user_running != b->user_running, "limits.user_running");
    note(out, a->user_queued != b->user_queued, "limits.user_queued");
}

/* Locked. */
static sl_status take(sl_service *s, const sl_service_settings *now, changes *list, sl_error *err)
{
    find_changes(s, now, list);
    const sl_status status = sl_reload_set_limits(s, &now->limits, err);

    if (status != SL_OK)
        return status;
    if (s->table && memcmp(s->table, &now->table, sizeof now->table) != 0) {
        memcpy(s->table, &now->table, sizeof now->table);
        sl_core_set_table(s->core, s->table);
    }
    for (int i = 0; i < list->count; i++)
        sl_event_add(s, "config_reloaded", "changed=%s", list->what[i]);
    s->house_ns = s->retention_ns = 0;
    sl_service_pump(s);
    return SL_OK;
}

sl_status sl_service_reload(sl_service *s, void (*changed)(void *arg, const char *what), void *arg,
                            sl_error *err)
{
    sl_service_settings *now = calloc(1, sizeof *now);
    changes list = { .count = 0 };
    sl_status status = SL_OK;

    if (!now)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the configuration");
    if (!s->config.read_settings)
        status = sl_fail(err, SL_ERR_PRECONDITION, "there is no configuration to read again");
    else
        status = s->config.read_settings(s->config.read_arg, now, err);
    if (status != SL_OK)
        goto done;
    pthread_mutex_lock(&s->lock);
    status = take(s, now, &list, err);
    pthread_mutex_unlock(&s->lock);
    if (s->config.finish_settings) {
        const char *more =
            s->config.finish_settings(s->config.read_arg, now->more, status == SL_OK);
        note(&list, more != NULL, more);
    }
    if (status != SL_OK)
        goto done;
    for (int i = 0; i < list.count && changed; i++)
        changed(arg, list.what[i]);
    sl_log(SL_LOG_INFO, "config_reloaded", "changed=%d", list.count);
done:
    free(now);
    return status;
}
