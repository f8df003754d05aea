/* persist.h - keeps the store in step with the table of jobs.
 *
 * What is durable: a job before it is acknowledged, the size and SHA-256 of its
 * output before that gets its name, its end before anybody sees it.  Everything
 * else is written without waiting for the disk (store.h).
 *
 * Without a store (sl_service_config.store is NULL) all of these do nothing.
 *
 * Threads: with the service's mutex held, but for restore, which runs before
 * there are other threads.
 */
#ifndef SL_SERVICE_PERSIST_H
#define SL_SERVICE_PERSIST_H

#include "service/service_state.h"

/* Takes every job from the store: the ended ones as they are, the others end
 * if their output is there, and are queued again if not.  A job that cannot be
 * queued again fails with the reason. */
sl_status sl_persist_restore(sl_service *s, sl_error *err) SL_MUST_CHECK;

/* Durable.  Also forgets the oldest ended jobs above the number that is kept. */
sl_status sl_persist_add(sl_service *s, sl_job *job, sl_error *err) SL_MUST_CHECK;

/* It is done in another way than was written; a failure is logged. */
void sl_persist_plan(sl_service *s, const sl_job *job);

/* Durable: the output of a job is whole and about to get its name. */
sl_status sl_persist_output(sl_service *s, sl_job *job, size_t size_bytes, const char *sha256,
                            sl_error *err) SL_MUST_CHECK;

/* Writes whatever has changed; durable if a job has ended.  A failure is logged
 * and tried again by the next call. */
void sl_persist_flush(sl_service *s);

/* The peak of the current hour; and, for take, those of the past. */
void sl_persist_peak(sl_service *s);
sl_status sl_persist_take_peaks(sl_service *s, sl_error *err) SL_MUST_CHECK;

/* Forgets an ended job, here and in the store. */
sl_status sl_persist_remove(sl_service *s, sl_job *job, sl_error *err) SL_MUST_CHECK;

#endif
