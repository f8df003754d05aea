#include "base/log.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = { "debug", "info", "warn", "error" };
static const char *const topics[] = { "sched", "budget", "front", "rpc", "worker", "plan", "load" };
static sl_log_level least_level = SL_LOG_INFO;

void sl_log_set_level(sl_log_level least)
{
    least_level = least;
}

bool sl_log_level_parse(const char *text, sl_log_level *out)
{
    for (size_t i = 0; i < SL_COUNT(level_names); i++) {
        if (strcasecmp(text, level_names[i]) == 0) {
            *out = (sl_log_level)i;
            return true;
        }
    }
    return false;
}

void sl_log(sl_log_level level, const char *event, const char *fmt, ...)
{
    char line[2048];
    struct timespec ts;
    struct tm tm;
    va_list args;

    if (level < least_level)
        return;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    used += (size_t)snprintf(line + used, sizeof line - used, ".%03ldZ %s %s ",
                             ts.tv_nsec / 1000000, level_names[level], event);
    va_start(args, fmt);
    const int more = vsnprintf(line + used, sizeof line - used - 1, fmt, args);
    va_end(args);
    if (more > 0)
        used += (size_t)more;
    if (used > sizeof line - 2)
        used = sizeof line - 2;
    line[used++] = '\n';
    /* A log that cannot be written must not stop the work it tells about. */
    if (write(STDERR_FILENO, line, used) < 0)
        return;
}

char *sl_log_quote(char *buf, size_t buf_bytes, const char *text)
{
    size_t n = 0;

    if (buf_bytes < 3) {
        if (buf_bytes)
            buf[0] = '\0';
        return buf;
    }
    buf[n++] = '"';
    for (const unsigned char *p = (const unsigned char *)text; *p && n + 6 < buf_bytes; p++) {
        if (*p == '"' || *p == '\\') {
            buf[n++] = '\\';
            buf[n++] = (char)*p;
        } else if (*p < 0x20 || *p == 0x7f) {
            n += (size_t)snprintf(buf + n, buf_bytes - n, "\\x%02x", *p);
        } else {
            buf[n++] = (char)*p;
        }
    }
    buf[n++] = '"';
    buf[n] = '\0';
    return buf;
}

bool sl_debug(const char *topic)
{
    const char *list = getenv("SL_DEBUG");
    const size_t length = strlen(topic);

    if (!list)
        return false;
    if (strcmp(list, "help") == 0) {
        static int told;
        if (!__atomic_exchange_n(&told, 1, __ATOMIC_RELAXED)) {
            fprintf(stderr, "SL_DEBUG topics:");
            for (size_t i = 0; i < SL_COUNT(topics); i++)
                fprintf(stderr, " %s", topics[i]);
            fprintf(stderr, "\n");
        }
        return false;
    }
    for (const char *p = list; *p;) {
        const size_t n = strcspn(p, ",");
        if (n == length && strncmp(p, topic, n) == 0)
            return true;
        p += n + (p[n] == ',');
    }
    return false;
}
