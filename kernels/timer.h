/* timer.h - how long work takes on the device that it was queued on.
 *
 * On cuda: events on the exec's stream, so that only the card's time counts.
 *
 * Ownership: the exec outlives its timers.  Threads: those of the exec.
 */
#ifndef SL_KERNELS_TIMER_H
#define SL_KERNELS_TIMER_H

#include "kernels/exec.h"

typedef struct sl_timer sl_timer;

/* `exec` is a cuda one. */
sl_status sl_timer_create(sl_timer **out, sl_exec *exec, sl_error *err) SL_MUST_CHECK;
void sl_timer_destroy(sl_timer *timer); /* NULL is fine */
/* What is queued between the two is timed. */
sl_status sl_timer_start(sl_timer *timer, sl_error *err) SL_MUST_CHECK;
/* Waits for it. */
sl_status sl_timer_stop(sl_timer *timer, double *milliseconds, sl_error *err) SL_MUST_CHECK;

#endif
