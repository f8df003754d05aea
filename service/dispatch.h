/* dispatch.h - actions of the core about host memory, tickets and phases, as
 * commands to the worker.
 *
 * service.c keeps what concerns jobs; here is what only has to be said.
 *
 * Threads: with the service's lock held.
 */
#ifndef SL_SERVICE_DISPATCH_H
#define SL_SERVICE_DISPATCH_H

#include "service/service_state.h"

/* Sends it; a command that could not be sent has ended badly. */
void sl_dispatch_send(sl_service *s, const Sluice__Worker__Command *command);
/* The key as the worker knows it; its strings are the key's. */
void sl_dispatch_key(Sluice__Worker__ComponentKey *pb, const sl_core_key *key);

void sl_dispatch_preempt(sl_service *s, const char *job_id);
void sl_dispatch_trim(sl_service *s, uint64_t command_id);

#endif
