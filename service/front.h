/* front.h - the door: every client's connection ends here.
 *
 * One thread with epoll.  It speaks SP to clients (sp.h) over streams
 * (transport.h) and passes whole requests to the service (bridge.h).  nng
 * never sees the network, and a client never sees nng.
 *
 * Bounds, so that no client can hold up another:
 *   - connections in total, of one identity, and from one address; one more is
 *     closed at once, or one in its place that has said nothing yet
 *   - requests under way in total, and of one identity, by number and by bytes; a
 *     request above that waits in its connection, which is not read meanwhile,
 *     first come first served; after park_ns it is answered with UNAVAILABLE
 *   - requests and unread reply bytes of one connection: then it is not read
 *   - a greeting or message that does not become whole, a reader that does not
 *     read, a connection without traffic: closed after their deadlines
 *   - time: in each turn of its loop those who have greeted come first, each for a
 *     TLS record, then handshakes and newcomers for some milliseconds
 *
 * Life of a connection, with the function that makes each move:
 *
 *   greeting --on_greeting--> reading --sl_front_read--> ready --dispatch--> reading
 *                                     ready --park--> parked --sl_front_unpark--> reading
 *   any --sl_front_drop--> gone; replies that come later are dropped
 *
 * Ownership: main creates and destroys it; the auth of its listeners outlives it.
 * Threads:   create, add, start, stop, destroy from one; the rest is its own thread's.
 */
#ifndef SL_SERVICE_FRONT_H
#define SL_SERVICE_FRONT_H

#include "base/status.h"
#include "service/door.h"
#include "service/sp.h"
#include "service/transport.h"

#include <stdint.h>

/* What may change while it runs. */
typedef struct {
    int connections_each; /* of one identity */
    int connections_host; /* from one address of the network */
    /* For a message to become whole, for a reader to take 64 KiB or a reply, and of
     * silence. */
    int64_t message_ns, write_ns, idle_ns;
} sl_front_limits;

typedef struct {
    const char *service_url; /* "inproc://sluice" */
    int connections;         /* 1 to 65536 */
    int in_flight;           /* below the number of handlers; 1 to 4096 */
    int in_flight_each;      /* of one identity */
    size_t bytes_each;       /* of its requests under way, if they are several */
    sl_sp_bound *bound;      /* size bound by method; borrowed */
    void *bound_arg;
    int64_t greeting_ns, park_ns;
    int64_t expire_ns; /* a request that the service has not answered by then is given up */
    sl_front_limits limits;
    sl_door *door; /* counts; borrowed; NULL: nobody asks */
} sl_front_config;

/* The defaults; service_url and bound are left empty. */
sl_front_config sl_front_config_default(void);

typedef struct sl_front sl_front;

sl_status sl_front_create(sl_front **out, const sl_front_config *config,
                          sl_error *err) SL_MUST_CHECK;
/* Takes the listener over, also on failure.  Before start; at most 8. */
sl_status sl_front_add(sl_front *front, sl_listener *listener, sl_error *err) SL_MUST_CHECK;
sl_status sl_front_start(sl_front *front, sl_error *err) SL_MUST_CHECK;
/* Closes the listeners, takes no more requests, delivers what is under way for
 * at most grace_ns, closes every connection, and joins the thread. */
void sl_front_stop(sl_front *front, int64_t grace_ns);
void sl_front_destroy(sl_front *front); /* stops without grace; NULL is fine */

/* From any thread; counts within 100 ms.  Connections above a lower cap stay.  True: they
 * are others than before. */
bool sl_front_set_limits(sl_front *front, const sl_front_limits *limits);

#endif
