/* front_state.h - what the files of the front share.
 *
 *   front.c             the thread: events, deadlines, start and stop
 *   front_accept.c      who gets a place
 *   front_connection.c  one connection: bytes, requests, replies, its end
 *
 * Threads: the front's own, but for what says otherwise.
 */
#ifndef SL_SERVICE_FRONT_STATE_H
#define SL_SERVICE_FRONT_STATE_H

#include "service/bridge.h"
#include "service/front.h"

#include <pthread.h>
#include <stdatomic.h>

enum { SL_FRONT_MAX_LISTENERS = 8, SL_FRONT_TICK_MS = 100 };
#define SL_FRONT_NONE (-1)

/* epoll's data: what, and which one */
#define SL_FRONT_TAG_WAKE       0u
#define SL_FRONT_TAG_LISTENER   1u
#define SL_FRONT_TAG_CONNECTION 2u

typedef struct sl_front_reply {
    struct sl_front_reply *next;
    uint8_t head[SL_SP_MAX_HEADER_BYTES + 4 * SL_SP_MAX_IDS];
    size_t head_bytes;
    nng_msg *message; /* owns body; NULL: the body follows this struct */
    const uint8_t *body;
    size_t body_bytes;
    size_t sent;
} sl_front_reply;

typedef struct {
    bool open;
    uint32_t generation;
    sl_transport transport;
    sl_sp sp;
    sl_peer peer;
    int account; /* of its identity; SL_FRONT_NONE before the greeting */
    int in_flight;
    sl_front_reply *first, *last;
    size_t unread_bytes;  /* queued and not written */
    size_t written_bytes; /* since write_since_ns */
    uint8_t greeting_left;
    sl_io read_wants, write_wants; /* what the transport waits for */
    uint32_t interest;
    bool again; /* its transport has bytes that no event tells of */
    bool parked;
    int parked_before, parked_after; /* slots, in the order of parking */
    int64_t opened_ns, message_since_ns, parked_since_ns, write_since_ns, active_ns;
} sl_front_connection;

/* One identity with connections or requests under way. */
typedef struct {
    char identity[SL_IDENTITY_BYTES];
    int users; /* connections and requests */
    int connections, in_flight;
    size_t in_flight_bytes;
} sl_front_account;

struct sl_front {
    sl_front_config config;
    sl_front_limits limits; /* config's are those of the start */
    sl_door *door, own_door;
    sl_bridge *bridge;
    int epoll_fd, wake_fd;
    sl_listener *listeners[SL_FRONT_MAX_LISTENERS];
    int listener_count;
    int64_t accept_again_ns; /* 0: accepting; else out of descriptors until then */
    sl_front_connection *connections;
    int connection_count;
    sl_front_account *accounts;
    int account_count; /* entries in use or used before */
    int account_capacity;
    int parked_first, parked_last;
    bool again; /* some connection's */
    int64_t now_ns;
    int64_t drop_window_ns;
    int drop_lines;
    bool stopping; /* the thread's own view */
    int64_t stop_by_ns;

    pthread_t thread;
    bool started;
    atomic_bool stop;
    atomic_llong grace_ns;
    pthread_mutex_t next_lock; /* guards next_limits */
    sl_front_limits next_limits;
};

static inline uint64_t sl_front_tag(uint32_t what, uint32_t slot, uint32_t generation)
{
    return (uint64_t)what << 62 | (uint64_t)(slot & 0xffffff) << 32 | generation;
}

static inline int sl_front_slot(const sl_front *front, const sl_front_connection *c)
{
    return (int)(c - front->connections);
}

/* --- front_connection.c --- */

/* By what epoll or the bridge was given; NULL: it is gone. */
sl_front_connection *sl_front_find(sl_front *front, uint64_t id);
/* detail: for the log, where it knows more than the reason's text; else NULL. */
void sl_front_drop(sl_front *front, sl_front_connection *c, sl_door_count reason,
                   const char *detail);
/* A request has been answered or given up; its connection may be gone. */
void sl_front_settle(sl_front *front, const sl_bridge_tag *tag);

/* As much as goes without waiting; false when the connection is gone. */
bool sl_front_write(sl_front *front, sl_front_connection *c);
bool sl_front_read(sl_front *front, sl_front_connection *c);
/* Takes the reply over; false when the connection is gone. */
bool sl_front_queue(sl_front *front, sl_front_connection *c, sl_front_reply *reply,
                    const uint8_t *ids, size_t id_bytes);
/* The front's own answer to the request that is ready: UNAVAILABLE.  False when
 * the connection is gone. */
bool sl_front_answer(sl_front *front, sl_front_connection *c, const char *message);
/* Tells epoll what the connection waits for. */
void sl_front_watch(sl_front *front, sl_front_connection *c);
/* Those whose turn ended with bytes at hand. */
void sl_front_read_again(sl_front *front);
/* Parked requests go on in their order, as far as the caps allow. */
void sl_front_unpark(sl_front *front);
void sl_front_unlink(sl_front *front, sl_front_connection *c); /* from the parked ones */

/* --- front_accept.c --- */

/* Those who wait at a listener, but at least one, until the clock says until_ns. */
void sl_front_accept(sl_front *front, sl_listener *listener, int64_t until_ns);
/* Stops watching the listeners for a moment, or watches them again. */
void sl_front_pause(sl_front *front, bool paused);

#endif
