#include "base/clock.h"

#include <time.h>

static int64_t read_clock(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * SL_NS_PER_S + ts.tv_nsec;
}

int64_t sl_clock_now_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

int64_t sl_clock_wall_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

int64_t sl_clock_deadline_ns(int64_t delay_ns)
{
    int64_t deadline;

    if (delay_ns < 0)
        delay_ns = 0;
    if (__builtin_add_overflow(sl_clock_now_ns(), delay_ns, &deadline))
        deadline = INT64_MAX;
    return deadline;
}
