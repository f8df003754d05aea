/* transport.h - what carries the bytes of a client: a Unix socket, or TLS.
 *
 * A transport is opened and closed many times in its life; every operation
 * ends by the wait's deadline or when its interrupt descriptor is readable.
 *
 * Ownership: the client creates one and destroys it.
 * Threads:   one at a time (under the client's mutex).
 */
#ifndef SL_CLIENTS_C_TRANSPORT_H
#define SL_CLIENTS_C_TRANSPORT_H

#include "base/status.h"
#include "clients/c/sluice.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t deadline_ns;
    int interrupt_fd; /* -1: none */
} sl_wait;

typedef struct sl_transport sl_transport;

/* SL_ERR_UNAVAILABLE from any of them means that the peer is not there (any
 * more) and that another open may help; no other status does. */
typedef struct {
    bool length_mark; /* a byte 01 stands before each message's length */
    int64_t gone_ns;  /* how long a peer that was there may be gone */
    sl_status (*open)(sl_transport *transport, const sl_wait *wait, sl_error *err);
    /* All of it, or a failure after which the stream is of no more use. */
    sl_status (*write)(sl_transport *transport, const void *data, size_t size_bytes,
                       const sl_wait *wait, sl_error *err);
    sl_status (*read)(sl_transport *transport, void *data, size_t size_bytes, const sl_wait *wait,
                      sl_error *err);
    void (*close)(sl_transport *transport); /* fine when not open */
    void (*destroy)(sl_transport *transport);
} sl_transport_ops;

struct sl_transport {
    const sl_transport_ops *ops;
    const char *address; /* for messages; owned by the implementation */
};

sl_status sl_transport_create_unix(sl_transport **out, const char *path,
                                   sl_error *err) SL_MUST_CHECK;
/* options->address begins with SL_TLS_SCHEME. */
sl_status sl_transport_create_tls(sl_transport **out, const sl_client_options *options,
                                  sl_error *err) SL_MUST_CHECK;
void sl_transport_destroy(sl_transport *transport); /* NULL is fine */

/* Waits until fd has one of `events`, or is broken (the next operation on it
 * says how).  fd -1: waits for the deadline or the interrupt only.  `doing` and
 * `address` are for the message. */
sl_status sl_wait_fd(const sl_wait *wait, int fd, short events, const char *doing,
                     const char *address, sl_error *err) SL_MUST_CHECK;

#endif
