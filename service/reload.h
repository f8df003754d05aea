/* reload.h - what can change while the service runs: limits, the budget table.
 *
 * Threads: with the service's lock held.
 */
#ifndef SL_SERVICE_RELOAD_H
#define SL_SERVICE_RELOAD_H

#include "service/service_state.h"

/* Into the core, the host tier, and s->limits.  SL_ERR_PRECONDITION, and nothing
 * changes: images that are pinned or in use need more. */
sl_status sl_reload_set_limits(sl_service *s, const sl_service_limits *limits,
                               sl_error *err) SL_MUST_CHECK;

/* A worker with so many job lanes said hello. */
void sl_reload_worker_up(sl_service *s, int lanes);
/* Ends one with another number of lanes than is wanted, when no job runs. */
void sl_reload_replace_worker(sl_service *s);

#endif
