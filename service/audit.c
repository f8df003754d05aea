#include "service/audit.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096, TAIL_BYTES = 64, TIME_BYTES = 40 };

struct sl_audit {
    char *path;
    pthread_mutex_t lock; /* guards the rest */
    int fd;
    int64_t window_ns; /* refusals are counted from here */
    int refusals;
    unsigned long long unwritten;
};

/* A line grows in here; what does not fit is left out. */
typedef struct {
    char bytes[LINE_BYTES];
    size_t used;
} line;

static void put(line *l, const char *fmt, ...) SL_PRINTF(2, 3);

static void put(line *l, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    const int n = vsnprintf(l->bytes + l->used, sizeof l->bytes - l->used, fmt, args);
    va_end(args);
    if (n > 0 && (size_t)n < sizeof l->bytes - l->used)
        l->used += (size_t)n;
}

/* ,"name":"text"; a long text is cut, so that the line's end has room. */
static void put_text(line *l, const char *name, const char *text)
{
    const bool utf8 = sl_utf8_valid(text);

    put(l, "%s\"%s\":\"", l->used > 1 ? "," : "", name);
    for (const char *p = text; *p && l->used + TAIL_BYTES < sizeof l->bytes; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\')
            put(l, "\\%c", c);
        else if (c < 0x20 || c == 0x7f || (c >= 0x80 && !utf8))
            put(l, "\\u%04x", c);
        else
            l->bytes[l->used++] = *p;
    }
    put(l, "\"");
}

static char *now_text(char buf[TIME_BYTES])
{
    const int64_t now_ns = sl_clock_wall_ns();
    const time_t seconds = (time_t)(now_ns / SL_NS_PER_S);
    struct tm tm;
    char date[32];

    gmtime_r(&seconds, &tm);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(buf, TIME_BYTES, "%s.%03dZ", date,
             (int)(now_ns % SL_NS_PER_S / SL_NS_PER_MS));
    return buf;
}

static int open_file(const char *path)
{
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
}

sl_status sl_audit_open(sl_audit **out, const char *path, sl_error *err)
{
    sl_audit *audit = calloc(1, sizeof *audit);

    if (!audit || !(audit->path = strdup(path))) {
        free(audit);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the audit log");
    }
    pthread_mutex_init(&audit->lock, NULL);
    audit->fd = open_file(path);
    if (audit->fd < 0) {
        const sl_status status = sl_fail_errno(err, "could not open the audit log \"%s\"", path);
        sl_audit_close(audit);
        return status;
    }
    *out = audit;
    return SL_OK;
}

void sl_audit_close(sl_audit *audit)
{
    if (!audit)
        return;
    if (audit->fd >= 0)
        close(audit->fd);
    pthread_mutex_destroy(&audit->lock);
    free(audit->path);
    free(audit);
}

void sl_audit_reopen(sl_audit *audit)
{
    if (!audit)
        return;
    const int fd = open_file(audit->path);
    if (fd < 0) {
        sl_log(SL_LOG_ERROR, "audit_reopen", "path=\"%s\" reason=\"%s\"", audit->path,
               strerror(errno));
        return; /* goes on in the file that was moved */
    }
    pthread_mutex_lock(&audit->lock);
    close(audit->fd);
    audit->fd = fd;
    pthread_mutex_unlock(&audit->lock);
}

/* Locked.  False: this second has had its refusals. */
static bool has_turn(sl_audit *audit, const sl_audit_entry *entry)
{
    const int64_t now_ns = sl_clock_now_ns();

    if (!entry->refusal)
        return true;
    if (now_ns - audit->window_ns >= SL_NS_PER_S) {
        audit->window_ns = now_ns;
        audit->refusals = 0;
    }
    return audit->refusals++ < SL_AUDIT_REFUSALS;
}

void sl_audit_write(sl_audit *audit, const sl_audit_entry *entry)
{
    line l = { .used = 0 };
    char time_text[TIME_BYTES];

    if (!audit)
        return;
    put(&l, "{");
    put_text(&l, "time", now_text(time_text));
    put_text(&l, "identity", entry->identity ? entry->identity : "unknown");
    put_text(&l, "role", sl_role_name(entry->role));
    put_text(&l, "address", entry->address);
    put_text(&l, "method", entry->method);
    put_text(&l, "result", entry->result);
    if (entry->trace && entry->trace[0])
        put_text(&l, "trace", entry->trace);
    if (entry->reason)
        put_text(&l, "reason", entry->reason);
    pthread_mutex_lock(&audit->lock);
    if (!has_turn(audit, entry)) {
        audit->unwritten++;
    } else {
        if (audit->unwritten > 0)
            put(&l, ",\"unwritten\":%llu", audit->unwritten);
        audit->unwritten = 0;
        put(&l, "}\n");
        if (write(audit->fd, l.bytes, l.used) < 0)
            sl_log(SL_LOG_ERROR, "audit_lost", "path=\"%s\" reason=\"%s\"", audit->path,
                   strerror(errno));
    }
    pthread_mutex_unlock(&audit->lock);
}
