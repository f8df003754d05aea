#include "base/status.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __clang_analyzer__ /* status.h wraps them for callers */
#undef sl_fail
#undef sl_fail_errno
#undef sl_error_prefix
#endif

static const struct {
    const char *text;
    int grpc_code;
} status_table[SL_STATUS_COUNT] = {
#define SL_X(name, text, grpc) { text, grpc },
    SL_STATUS_LIST(SL_X)
#undef SL_X
};

static const char *const grpc_names[] = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
};

/* A message that was cut must still be UTF-8: it travels in protobuf strings.
 * Drops the bytes of a last character whose continuation is missing. */
static void end_at_character(char *text)
{
    const size_t length = strlen(text);
    size_t start = length;

    while (start > 0 && length - start < 3 && ((unsigned char)text[start - 1] & 0xc0) == 0x80)
        start--;
    if (start == 0)
        return;
    const unsigned char lead = (unsigned char)text[start - 1];
    const size_t need = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (need > length - (start - 1))
        text[start - 1] = '\0';
}

sl_status sl_fail(sl_error *err, sl_status status, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        err->status = status;
        vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        end_at_character(err->message);
    }
    return status;
}

static sl_status status_of_errno(int code)
{
    switch (code) {
    case ENOENT:
        return SL_ERR_NOT_FOUND;
    case EACCES:
    case EPERM:
        return SL_ERR_PERMISSION;
    case ENOMEM:
        return SL_ERR_NO_MEMORY;
    case EEXIST:
        return SL_ERR_EXISTS;
    case ETIMEDOUT:
        return SL_ERR_TIMEOUT;
    default:
        return SL_ERR_IO;
    }
}

sl_status sl_fail_errno(sl_error *err, const char *fmt, ...)
{
    const int code = errno;
    const sl_status status = status_of_errno(code);

    if (err) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->message, sizeof err->message, fmt, args);
        va_end(args);
        const size_t used = strlen(err->message);
        snprintf(err->message + used, sizeof err->message - used, ": %s", strerror(code));
        end_at_character(err->message);
        err->status = status;
    }
    return status;
}

sl_status sl_error_prefix(sl_error *err, const char *fmt, ...)
{
    if (!err)
        return SL_ERR_INTERNAL;

    char old[SL_ERROR_MESSAGE_BYTES];
    va_list args;

    memcpy(old, err->message, sizeof old);
    va_start(args, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    const size_t used = strlen(err->message);
    snprintf(err->message + used, sizeof err->message - used, ": %s", old);
    end_at_character(err->message);
    return err->status;
}

void sl_error_clear(sl_error *err)
{
    if (err) {
        err->status = SL_OK;
        err->message[0] = '\0';
    }
}

const char *sl_status_text(sl_status status)
{
    if ((unsigned)status >= SL_STATUS_COUNT)
        return "unknown status";
    return status_table[status].text;
}

int sl_status_grpc_code(sl_status status)
{
    if ((unsigned)status >= SL_STATUS_COUNT)
        return 2; /* UNKNOWN */
    return status_table[status].grpc_code;
}

const char *sl_grpc_code_name(int code)
{
    if (code < 0 || (size_t)code >= SL_COUNT(grpc_names))
        return "UNKNOWN";
    return grpc_names[code];
}

void sl_assert_failed(const char *expr, const char *file, int line)
{
    fprintf(stderr, "sluice: assertion failed: %s (%s:%d)\n", expr, file, line);
    abort();
}
