/* door.h - who came to the door and what became of them: counters for operators.
 *
 * The front and its TLS count, the side door shows.  Counters only grow, gauges are as of
 * the front's last turn; a reader sees each by itself, not all of one moment.
 *
 * Ownership: a plain value, zero at first; it outlives the front, its TLS and the side door.
 * Threads:   any, without a lock.
 */
#ifndef SL_SERVICE_DOOR_H
#define SL_SERVICE_DOOR_H

#include <stdatomic.h>
#include <stdint.h>

/* Families of counters: name, label, what is counted. */
#define SL_DOOR_FAMILIES(X)                                                                        \
    X(TAKEN, "connections_total", "result", "Connections that came, by what became of them.")     \
    X(ENDED, "connections_ended_total", "reason", "Connections that were taken and have ended.")  \
    X(SHAKEN, "tls_handshakes_total", "result", "TLS handshakes that have ended, by how.")         \
    X(ALERTS, "tls_alerts_total", "direction", "TLS alerts, but for those that say goodbye.")      \
    X(BYTES, "front_bytes_total", "direction", "Bytes of messages, before TLS encrypts them.")

typedef enum {
#define SL_X(name, text, label, help) SL_DOOR_FAMILY_##name,
    SL_DOOR_FAMILIES(SL_X)
#undef SL_X
        SL_DOOR_FAMILY_COUNT
} sl_door_family;

/* name, family, the label's value, what the log says; "": it says nothing. */
#define SL_DOOR_COUNTS(X)                                                                          \
    X(TAKEN, TAKEN, "taken", "")                                                                   \
    X(NO_PLACE, TAKEN, "no_place", "")             /* limits.connections */                        \
    X(NO_PLACE_HOST, TAKEN, "too_many_of_address", "")                                             \
    X(NO_START, TAKEN, "failed", "")               /* no memory, or gone at once */                \
    X(NO_DESCRIPTOR, TAKEN, "no_descriptor", "")   /* waits in the kernel, is counted each time */ \
    X(LEFT, ENDED, "closed_by_peer", "")                                                           \
    X(STOPPED, ENDED, "shutdown", "")                                                              \
    X(NO_GREETING, ENDED, "no_greeting", "no greeting in time")                                    \
    X(MADE_ROOM, ENDED, "made_room", "made room for another, no greeting yet")                     \
    X(HALF_MESSAGE, ENDED, "half_message", "a message was not finished in time")                   \
    X(UNREAD, ENDED, "unread", "does not read its replies")                                        \
    X(IDLE, ENDED, "idle", "idle")                                                                 \
    X(PROTOCOL, ENDED, "protocol", "not the SP protocol")                                          \
    X(UNKNOWN, ENDED, "unknown_peer", "nobody knows who it is")                                    \
    X(TOO_MANY, ENDED, "too_many_of_identity", "too many connections of one identity")             \
    X(LAPSED, ENDED, "certificate", "its certificate counts no longer")                            \
    X(LOST, ENDED, "request_lost", "its request was lost")                                         \
    X(NO_MEMORY, ENDED, "no_memory", "out of memory")                                              \
    X(SHAKEN, SHAKEN, "ok", "")                                                                    \
    X(SHAKEN_REFUSED, SHAKEN, "certificate", "")   /* of the client: none, or not a good one */    \
    X(SHAKEN_PROTOCOL, SHAKEN, "protocol", "")                                                     \
    X(SHAKEN_LEFT, SHAKEN, "broken_off", "")       /* by either side, before it was done */        \
    X(ALERT_SENT, ALERTS, "sent", "")                                                              \
    X(ALERT_CAME, ALERTS, "received", "")                                                          \
    X(BYTES_IN, BYTES, "in", "")                                                                   \
    X(BYTES_OUT, BYTES, "out", "")

typedef enum {
#define SL_X(name, family, value, text) SL_DOOR_##name,
    SL_DOOR_COUNTS(SL_X)
#undef SL_X
        SL_DOOR_COUNT
} sl_door_count;

/* The states of connections. */
#define SL_DOOR_STATES(X)                                                                          \
    X(GREETING, "greeting") /* TLS handshake and SP greeting */                                    \
    X(RESTING, "idle")                                                                             \
    X(BUSY, "busy")         /* a request on its way in or under way, or a reply on its way out */  \
    X(PARKED, "waiting")    /* a request that the caps keep back */

typedef enum {
#define SL_X(name, text) SL_DOOR_##name,
    SL_DOOR_STATES(SL_X)
#undef SL_X
        SL_DOOR_STATE_COUNT
} sl_door_state;

typedef struct {
    atomic_uint_fast64_t counts[SL_DOOR_COUNT];
    atomic_int states[SL_DOOR_STATE_COUNT]; /* as of the last 100 ms */
    atomic_int connections, in_flight;
} sl_door;

typedef struct {
    const char *name, *label, *help;
} sl_door_family_text;

typedef struct {
    sl_door_family family;
    const char *value, *text;
} sl_door_count_text;

extern const sl_door_family_text sl_door_families[SL_DOOR_FAMILY_COUNT];
extern const sl_door_count_text sl_door_counts[SL_DOOR_COUNT];
extern const char *const sl_door_states[SL_DOOR_STATE_COUNT];

static inline void sl_door_add(sl_door *door, sl_door_count which, uint64_t n)
{
    atomic_fetch_add_explicit(&door->counts[which], n, memory_order_relaxed);
}

static inline uint64_t sl_door_get(const sl_door *door, sl_door_count which)
{
    return atomic_load_explicit(&door->counts[which], memory_order_relaxed);
}

#endif
