/* evidence.h - what happened: events of the server, and bundles about dead workers.
 *
 * Events are in memory, the newest SL_SERVER_EVENTS of them, for WatchEvents.  When a
 * worker dies,
 *
 *     <outputs>/evidence/<utc>-<reason>/
 *         exit.json     reason, pid, how long it was up
 *         ledger.json   the books at that moment
 *         events.json   the latest events
 *         jobs.json     the jobs that ran, with their log lines; if there were any
 *
 * The newest SL_EVIDENCE_KEPT directories are kept.  Prompts are in none of them.
 *
 * Threads: with the service's mutex, but for write.
 */
#ifndef SL_SERVICE_EVIDENCE_H
#define SL_SERVICE_EVIDENCE_H

#include "service/service_state.h"

enum { SL_EVIDENCE_KEPT = 20 };

/* Records an event and wakes those who watch. */
void sl_event_add(sl_service *s, const char *kind, const char *fmt, ...) SL_PRINTF(3, 4);
/* The event with that number; NULL: forgotten, or not yet there. */
const sl_server_event *sl_event_find(const sl_service *s, uint64_t seq);

typedef struct sl_evidence sl_evidence;

/* How things stand now; NULL: out of memory.  To be called before anything is told that
 * the worker is gone. */
sl_evidence *sl_evidence_take(sl_service *s, const char *reason);
/* Writes it, removes the oldest, frees it; NULL is fine.  Failures are logged.
 * Without the mutex. */
void sl_evidence_write(sl_service *s, sl_evidence *evidence);

#endif
