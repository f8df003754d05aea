/* audit.h - who was refused and what admins did, as JSON lines in a file.
 *
 *     {"time":"2026-11-23T12:00:00.123Z","identity":"cert:alice","role":"user",
 *      "address":"tcp:10.0.0.7:40112","method":"sluice.v1.Inference/LoadModel",
 *      "result":"PERMISSION_DENIED","reason":"..."}
 *
 * (one line each).  Tokens, prompts and keys are never in it.  Refusals above
 * SL_AUDIT_REFUSALS in a second are counted, and the next line says how many
 * ("unwritten"), so that nobody fills the disk by being refused; what admins did
 * is always written.
 *
 * Ownership: open/close.  Threads: any; a line is one write.
 */
#ifndef SL_SERVICE_AUDIT_H
#define SL_SERVICE_AUDIT_H

#include "base/status.h"
#include "service/auth.h"

enum { SL_AUDIT_REFUSALS = 100 };

typedef struct sl_audit sl_audit;

typedef struct {
    const char *identity; /* NULL: not known (yet) */
    sl_role role;
    const char *address, *method, *result;
    const char *reason; /* NULL: none */
    const char *trace;  /* NULL or empty: none */
    bool refusal;
} sl_audit_entry;

/* The file is made with mode 0600 if absent. */
sl_status sl_audit_open(sl_audit **out, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_audit_close(sl_audit *audit); /* NULL is fine */
/* Opens path again, after the file was moved away. */
void sl_audit_reopen(sl_audit *audit); /* NULL is fine */
void sl_audit_write(sl_audit *audit, const sl_audit_entry *entry); /* NULL: nothing */

#endif
