/* access.h - who asks, how often they may, and the record of it.
 *
 * The handlers' side of access: a token in the request takes the place of who
 * the connection belongs to; each identity has a bucket of requests that fills at a
 * rate; refusals and what admins did go to the audit log.
 *
 * Ownership: main creates and destroys it; audit is borrowed.
 * Threads:   any.
 */
#ifndef SL_SERVICE_ACCESS_H
#define SL_SERVICE_ACCESS_H

#include "base/status.h"
#include "service/audit.h"
#include "service/auth.h"
#include "service/tokens.h"

#include <stdint.h>

typedef struct {
    int rate;  /* requests a second of one identity; 0: any number */
    int burst; /* at once, after a rest; at least 1 */
} sl_access_rate;

typedef struct sl_access sl_access;

/* Takes what tokens holds; audit may be NULL. */
sl_status sl_access_create(sl_access **out, sl_tokens *tokens, sl_access_rate rate,
                           sl_audit *audit, sl_error *err) SL_MUST_CHECK;
void sl_access_destroy(sl_access *access); /* NULL is fine */
/* The same for a running one; true: something is different from before. */
bool sl_access_take(sl_access *access, sl_tokens *tokens, sl_access_rate rate);

/* peer becomes whoever the token is of.  SL_ERR_UNAUTHENTICATED: it is of nobody. */
sl_status sl_access_identify(sl_access *access, const char *token, sl_peer *peer,
                             sl_error *err) SL_MUST_CHECK;
/* SL_ERR_BUSY: too many requests of this identity; *retry_ns later there is room. */
sl_status sl_access_admit(sl_access *access, const sl_peer *peer, int64_t now_ns,
                          int64_t *retry_ns, sl_error *err) SL_MUST_CHECK;
void sl_access_record(sl_access *access, const sl_audit_entry *entry);

#endif
