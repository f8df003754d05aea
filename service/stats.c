#include "service/stats.h"

#include <stdio.h>
#include <string.h>

static void judge(const sl_service *s, sl_stats *out)
{
    if (s->stopping)
        snprintf(out->reason, sizeof out->reason, "shutting down");
    else if (!s->worker_up)
        snprintf(out->reason, sizeof out->reason, "the worker is not up: %s", s->down_reason);
    else if (s->canary_problem[0])
        snprintf(out->reason, sizeof out->reason, "the canary came back wrong: %s",
                 s->canary_problem);
    else if (s->canary_ns <= 0)
        snprintf(out->reason, sizeof out->reason, "the worker has run no canary");
    out->ready = !out->reason[0];
}

void sl_service_get_stats(sl_service *s, sl_stats *out)
{
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&s->lock);
    judge(s, out);
    out->canary_ns = s->canary_ns;
    out->counts = s->counts;
    for (int i = sl_jobs_count(s->jobs) - 1; i >= 0; i--) {
        const sl_job *job = sl_jobs_get(s->jobs, i);
        if (sl_job_has_ended(job) || (unsigned)job->state >= SL_STATS_STATES)
            continue;
        out->by_state[job->state]++;
        out->unended++;
        if (out->job_count == SL_STATS_JOBS)
            continue;
        sl_stats_job *shown = &out->jobs[out->job_count++];
        snprintf(shown->job_id, sizeof shown->job_id, "%s", job->job_id);
        snprintf(shown->model, sizeof shown->model, "%s", job->spec.model);
        shown->state = job->state;
        shown->step = job->step;
        shown->step_count = job->step_count;
        shown->position = job->position;
    }
    pthread_mutex_unlock(&s->lock);
}
