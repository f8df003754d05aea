/* bridge.h - from the front to the service: one nng raw REQ socket over inproc.
 *
 * Each request gets a slot; its number and generation, as one id without the
 * top bit, go in front of the client's id stack, and come back with the reply.
 * So a reply finds its connection whatever the client chose as ids, and one for
 * a slot that was given up in the meantime is dropped.
 *
 * The body on inproc: a 4-byte big-endian length, a Peer (api/peer.proto), the
 * client's Envelope.
 *
 * Ownership: the front creates and destroys it; replies are the front's.
 * Threads:   the front's; nng's callback touches the ring of replies only,
 *            under its lock, and writes to wake_fd.
 */
#ifndef SL_SERVICE_BRIDGE_H
#define SL_SERVICE_BRIDGE_H

#include "base/status.h"
#include "service/auth.h"
#include "service/sp.h"

#include <nng/nng.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct sl_bridge sl_bridge;

/* Dials url, where the service need not listen yet.  At most capacity (up to
 * 4096) requests are under way.  wake_fd is an eventfd that a reply writes to. */
sl_status sl_bridge_create(sl_bridge **out, const char *url, int capacity, int wake_fd,
                           sl_error *err) SL_MUST_CHECK;
void sl_bridge_destroy(sl_bridge *bridge); /* NULL is fine */

/* What the front wants back with the reply. */
typedef struct {
    uint64_t connection;
    int account;
    size_t size_bytes; /* of the request */
} sl_bridge_tag;

/* SL_ERR_BUSY: capacity requests are under way. */
sl_status sl_bridge_send(sl_bridge *bridge, sl_bridge_tag tag, const sl_peer *peer,
                         const sl_sp_request *request, int64_t now_ns, sl_error *err) SL_MUST_CHECK;

typedef struct {
    sl_bridge_tag tag;
    nng_msg *message;   /* the caller frees it */
    const uint8_t *ids; /* the client's stack; in the message, like body */
    size_t id_bytes;
    const uint8_t *body;
    size_t body_bytes;
} sl_bridge_reply;

bool sl_bridge_receive(sl_bridge *bridge, sl_bridge_reply *out);

/* Gives up one request that was sent before since_ns; false when there is none. */
bool sl_bridge_expire(sl_bridge *bridge, int64_t since_ns, sl_bridge_tag *out);

int sl_bridge_in_flight(const sl_bridge *bridge);

#endif
