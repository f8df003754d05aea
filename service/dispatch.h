/* dispatch.h - actions of the core about host memory and the like, as commands to
 * the worker.
 *
 * service.c keeps what concerns jobs.  Here are the images of the host tier:
 *
 *   HOST_FILL --> made, told (HostSegments), HostFill --done--> filled
 *   HOST_DROP --> destroyed, HostForget;   a fill that failed: too
 *   a new worker is told of all that are filled
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

/* A command of this module's own, which the core knows nothing about. */
bool sl_dispatch_is_own(uint64_t command_id);

/* True: the worker has a command; false: it has ended already. */
bool sl_dispatch_fill(sl_service *s, const sl_core_action *action);
bool sl_dispatch_drop(sl_service *s, const sl_core_action *action);
/* What has become of a fill. */
void sl_dispatch_filled(sl_service *s, const sl_core_key *key, bool ok);
/* A worker is up: it gets the images.  It is down: none is told any more. */
void sl_dispatch_worker_up(sl_service *s);
void sl_dispatch_worker_down(sl_service *s);
void sl_dispatch_free_images(sl_service *s);

void sl_dispatch_preempt(sl_service *s, const char *job_id);
/* phase: the engine's */
void sl_dispatch_go(sl_service *s, const char *job_id, int phase, size_t activation_bytes);
void sl_dispatch_trim(sl_service *s, uint64_t command_id);

#endif
