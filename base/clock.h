/* clock.h - time as int64_t nanoseconds.
 *
 * All deadlines and durations use the monotonic clock; the wall clock is for
 * showing and for files only.
 */
#ifndef SL_BASE_CLOCK_H
#define SL_BASE_CLOCK_H

#include <stdint.h>

#define SL_NS_PER_MS ((int64_t)1000000)
#define SL_NS_PER_S  ((int64_t)1000000000)

int64_t sl_clock_now_ns(void);  /* CLOCK_MONOTONIC */
int64_t sl_clock_wall_ns(void); /* CLOCK_REALTIME, since 1970 */

/* now + delay, clamped to INT64_MAX; a negative delay counts as 0. */
int64_t sl_clock_deadline_ns(int64_t delay_ns);

#endif
