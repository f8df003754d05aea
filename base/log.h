/* log.h - one line per event, key=value, on stderr.
 *
 *     sl_log(SL_LOG_INFO, "job_done", "id=%s steps=%d", id, steps);
 *     2026-11-23T12:00:00.123Z info job_done id=8f2 steps=4
 *
 * `error` means that someone must act.  Only service/ logs a failed request,
 * once.  Prompts and keys are never logged.  Values that contain spaces or
 * quotes go through sl_log_quote.  Traces are switched on by name with the
 * environment variable SL_DEBUG=sched,budget (`help` lists the names).
 *
 * Threads: any; a line is one write.
 */
#ifndef SL_BASE_LOG_H
#define SL_BASE_LOG_H

#include "base/status.h"

#include <stdbool.h>

typedef enum {
    SL_LOG_DEBUG,
    SL_LOG_INFO,
    SL_LOG_WARN,
    SL_LOG_ERROR,
} sl_log_level;

void sl_log_set_level(sl_log_level least); /* default SL_LOG_INFO; before threads start */
bool sl_log_level_parse(const char *text, sl_log_level *out);

void sl_log(sl_log_level level, const char *event, const char *fmt, ...) SL_PRINTF(3, 4);

/* "text" with quotes, backslashes and control bytes escaped, cut to fit;
 * returns buf. */
char *sl_log_quote(char *buf, size_t buf_bytes, const char *text);

/* True when SL_DEBUG names `topic`.  Topics: sched, budget, front, rpc,
 * worker, plan, load. */
bool sl_debug(const char *topic);

#endif
