/* status.h - the one status type of sluice, and an error that says why.
 *
 * Every function that can fail returns an sl_status and takes an sl_error
 * that it fills once, where the failure is first seen; callers that know more
 * put it in front with sl_error_prefix.  Messages say what was attempted, on
 * which named thing, with the values, and why: no function names, no final
 * period.  A result is written through `out` only on success.
 *
 * Threads: an sl_error belongs to one thread at a time; nothing is global.
 */
#ifndef SL_BASE_STATUS_H
#define SL_BASE_STATUS_H

#include <stdarg.h>
#include <stddef.h>

/* name, text, gRPC status code that the wire uses for it */
#define SL_STATUS_LIST(X)                                                                          \
    X(OK, "ok", 0)                                                                                 \
    X(CANCELLED, "cancelled", 1)                                                                   \
    X(INTERNAL, "internal error", 13)                                                              \
    X(INVALID, "invalid argument", 3)                                                              \
    X(TIMEOUT, "deadline exceeded", 4)                                                             \
    X(NOT_FOUND, "not found", 5)                                                                   \
    X(EXISTS, "already exists", 6)                                                                 \
    X(PERMISSION, "permission denied", 7)                                                          \
    X(TOO_LARGE, "can never fit", 8)                                                               \
    X(BUSY, "does not fit now", 8)                                                                 \
    X(NO_MEMORY, "out of memory", 8)                                                               \
    X(PRECONDITION, "failed precondition", 9)                                                      \
    X(UNIMPLEMENTED, "unimplemented", 12)                                                          \
    X(UNAVAILABLE, "unavailable", 14)                                                              \
    X(IO, "input/output error", 14)                                                                \
    X(DATA, "bad data", 15)                                                                        \
    X(DEVICE, "device fault", 14)                                                                  \
    X(UNAUTHENTICATED, "unauthenticated", 16)

typedef enum {
#define SL_X(name, text, grpc) SL_ERR_##name,
    SL_STATUS_LIST(SL_X)
#undef SL_X
        SL_STATUS_COUNT,
    SL_OK = SL_ERR_OK
} sl_status;

enum { SL_ERROR_MESSAGE_BYTES = 1024 };

typedef struct {
    sl_status status;                      /* SL_OK: nothing recorded */
    char message[SL_ERROR_MESSAGE_BYTES];  /* terminated; cut at a character if too long */
} sl_error;

#define SL_MUST_CHECK      __attribute__((warn_unused_result))
#define SL_PRINTF(fmt, va) __attribute__((format(printf, fmt, va)))
#define SL_COUNT(array)    (sizeof(array) / sizeof((array)[0]))

/* Records a failure and returns its status, so that a caller can write
 * `return sl_fail(err, SL_ERR_INVALID, ...)`.  err may be NULL. */
sl_status sl_fail(sl_error *err, sl_status status, const char *fmt, ...) SL_PRINTF(3, 4);

/* The same from errno: appends its text and maps it to a status (ENOENT:
 * NOT_FOUND, EACCES/EPERM: PERMISSION, ENOMEM: NO_MEMORY, EEXIST: EXISTS,
 * ETIMEDOUT: TIMEOUT, everything else: IO). */
sl_status sl_fail_errno(sl_error *err, const char *fmt, ...) SL_PRINTF(2, 3);

/* Puts "<text>: " in front of a recorded message.  Returns err->status, which
 * is why a function that allows err to be NULL must not return its result:
 * without a record it can only say INTERNAL. */
sl_status sl_error_prefix(sl_error *err, const char *fmt, ...) SL_PRINTF(2, 3);

/* The analyser sees one file at a time and would follow paths on which a
 * failure is SL_OK and results are missing.  No function: it enters only a few
 * levels of calls. */
#ifdef __clang_analyzer__
#define SL_NOT_OK(call)                                                                            \
    ({                                                                                             \
        const sl_status not_ok_ = (call);                                                          \
        if (not_ok_ == SL_OK)                                                                      \
            __builtin_unreachable();                                                               \
        not_ok_;                                                                                   \
    })
#define sl_fail(...)         SL_NOT_OK(sl_fail(__VA_ARGS__))
#define sl_fail_errno(...)   SL_NOT_OK(sl_fail_errno(__VA_ARGS__))
#define sl_error_prefix(...) SL_NOT_OK(sl_error_prefix(__VA_ARGS__))
#endif

void sl_error_clear(sl_error *err);
const char *sl_status_text(sl_status status);
int sl_status_grpc_code(sl_status status);
const char *sl_grpc_code_name(int code); /* "INVALID_ARGUMENT" ... "UNKNOWN" */

/* For our own bugs only, never for input.  Stays on in release: prints the
 * expression and place to stderr and aborts. */
#define SL_ASSERT(expr) ((expr) ? (void)0 : sl_assert_failed(#expr, __FILE__, __LINE__))
__attribute__((noreturn)) void sl_assert_failed(const char *expr, const char *file, int line);

#endif
