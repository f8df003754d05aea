/* stats.h - how the service stands, as plain numbers for whoever shows them.
 *
 * Taken under the service's mutex and formatted without it.  Names of jobs and
 * models, nothing of prompts or of who asked.
 *
 * Threads: any.
 */
#ifndef SL_SERVICE_STATS_H
#define SL_SERVICE_STATS_H

#include "service/service_state.h"

enum { SL_STATS_STATES = 11, SL_STATS_JOBS = 24 };

typedef struct {
    char job_id[SL_CORE_ID_BYTES];
    char model[SL_CORE_NAME_BYTES];
    Sluice__V1__JobState state;
    int step, step_count, position;
} sl_stats_job;

typedef struct {
    bool ready;        /* the worker is up, and its canary came back right */
    char reason[512];  /* why not; "" : ready */
    int64_t canary_ns; /* of the worker that is up */
    sl_service_counts counts;
    uint32_t by_state[SL_STATS_STATES]; /* jobs that have not ended, by JobState */
    uint32_t unended;
    sl_stats_job jobs[SL_STATS_JOBS]; /* of those the oldest */
    int job_count;
} sl_stats; /* some 6 KiB */

void sl_service_get_stats(sl_service *service, sl_stats *out);

#endif
