/* transport_tls.h - TLS over TCP for the front (transport.h).
 *
 * Ownership: the front owns the listener; tls outlives it and its connections.
 * Threads:   the front's.
 */
#ifndef SL_SERVICE_TRANSPORT_TLS_H
#define SL_SERVICE_TRANSPORT_TLS_H

#include "service/tls.h"
#include "service/transport.h"

/* address: "0.0.0.0:7437", "[::]:7437", "gpu1.lan:7437"; port 0 is any, and the log says
 * which. */
sl_status sl_tls_listen(sl_listener **out, const char *address, sl_tls *tls,
                        sl_error *err) SL_MUST_CHECK;

#endif
