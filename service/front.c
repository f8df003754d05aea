#include "service/front.h"

#include "api/sluice.pb-c.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"
#include "service/bridge.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_LISTENERS = 8,
    EVENTS = 64,
    TICK_MS = 100,
    IN_FLIGHT_PER_CONNECTION = 8,
    READS_PER_TURN = 32, /* then the others have their turn */
    ACCEPTS_PER_TURN = 32,
    DROP_LINES_PER_SECOND = 10,
    JOINED_BYTES = 4096, /* of a reply's header and body in one write */
};
#define UNREAD_BOUND ((size_t)4 << 20)    /* of a connection: above it no request is taken */
#define WRITE_PROGRESS ((size_t)64 << 10) /* within write_ns, or a whole reply */
#define SILENCE_NS     (250 * SL_NS_PER_MS) /* before a greeting: then it may be pushed out */
#define NONE           (-1)

/* epoll's data: what, and which one */
#define TAG_WAKE       0u
#define TAG_LISTENER   1u
#define TAG_CONNECTION 2u

typedef struct reply_out {
    struct reply_out *next;
    uint8_t head[SL_SP_MAX_HEADER_BYTES + 4 * SL_SP_MAX_IDS];
    size_t head_bytes;
    nng_msg *message; /* owns body; NULL: the body follows this struct */
    const uint8_t *body;
    size_t body_bytes;
    size_t sent;
} reply_out;

typedef struct {
    bool open;
    uint32_t generation;
    sl_transport transport;
    sl_sp sp;
    sl_peer peer;
    int account; /* of its identity; NONE before the greeting */
    int in_flight;
    reply_out *first, *last;
    size_t unread_bytes;  /* queued and not written */
    size_t written_bytes; /* since write_since_ns */
    uint8_t greeting_left;
    sl_io read_wants, write_wants; /* what the transport waits for */
    uint32_t interest;
    bool again; /* its transport has bytes that no event tells of */
    bool parked;
    int parked_before, parked_after; /* slots, in the order of parking */
    int64_t opened_ns, message_since_ns, parked_since_ns, write_since_ns, active_ns;
} connection;

/* One identity with connections or requests under way. */
typedef struct {
    char identity[SL_IDENTITY_BYTES];
    int users; /* connections and requests */
    int connections, in_flight;
} account;

struct sl_front {
    sl_front_config config;
    sl_bridge *bridge;
    int epoll_fd, wake_fd;
    sl_listener *listeners[MAX_LISTENERS];
    int listener_count;
    int64_t accept_again_ns; /* 0: accepting; else out of descriptors until then */
    connection *connections;
    int connection_count;
    account *accounts;
    int account_count; /* entries in use or used before */
    int account_capacity;
    int parked_first, parked_last, parked_count;
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
    pthread_mutex_t stats_lock; /* guards stats */
    sl_front_stats stats;
};

sl_front_config sl_front_config_default(void)
{
    return (sl_front_config){
        .connections = 256,
        .connections_each = 205,
        .connections_host = 128,
        .in_flight = 20,
        .in_flight_each = 16,
        .greeting_ns = 10 * SL_NS_PER_S,
        .message_ns = 30 * SL_NS_PER_S,
        .write_ns = 30 * SL_NS_PER_S,
        .idle_ns = 600 * SL_NS_PER_S,
        .park_ns = 30 * SL_NS_PER_S,
        .expire_ns = 1800 * SL_NS_PER_S,
    };
}

static uint64_t make_tag(uint32_t what, uint32_t slot, uint32_t generation)
{
    return (uint64_t)what << 62 | (uint64_t)(slot & 0xffffff) << 32 | generation;
}

static int slot_of(const sl_front *front, const connection *c)
{
    return (int)(c - front->connections);
}

static uint64_t connection_id(const sl_front *front, const connection *c)
{
    return (uint64_t)slot_of(front, c) << 32 | c->generation;
}

static connection *find_connection(sl_front *front, uint64_t id)
{
    const uint64_t slot = id >> 32 & 0xffffff;

    if (slot >= (uint64_t)front->config.connections)
        return NULL;
    connection *c = &front->connections[slot];
    return c->open && c->generation == (uint32_t)id ? c : NULL;
}

/* --- accounts --- */

static int get_account(sl_front *front, const char *identity)
{
    int unused = NONE;

    for (int i = 0; i < front->account_count; i++) {
        account *a = &front->accounts[i];
        if (a->users == 0)
            unused = i;
        else if (strcmp(a->identity, identity) == 0) {
            a->users++;
            return i;
        }
    }
    if (unused == NONE)
        unused = front->account_count++;
    SL_ASSERT(unused < front->account_capacity);
    front->accounts[unused] = (account){ .users = 1 };
    snprintf(front->accounts[unused].identity, sizeof front->accounts[unused].identity, "%s",
             identity);
    return unused;
}

static void put_account(sl_front *front, int index)
{
    if (index != NONE)
        front->accounts[index].users--;
}

/* --- the end of a connection --- */

static void unlink_parked(sl_front *front, connection *c)
{
    if (!c->parked)
        return;
    if (c->parked_before == NONE)
        front->parked_first = c->parked_after;
    else
        front->connections[c->parked_before].parked_after = c->parked_after;
    if (c->parked_after == NONE)
        front->parked_last = c->parked_before;
    else
        front->connections[c->parked_after].parked_before = c->parked_before;
    c->parked = false;
    front->parked_count--;
}

static void free_reply(reply_out *reply)
{
    if (reply->message)
        nng_msg_free(reply->message);
    free(reply);
}

/* why NULL: the peer went away by itself, which is not worth a line. */
static void drop(sl_front *front, connection *c, const char *why)
{
    if (why) {
        if (front->now_ns >= front->drop_window_ns) {
            front->drop_window_ns = front->now_ns + SL_NS_PER_S;
            front->drop_lines = 0;
        }
        if (front->drop_lines++ < DROP_LINES_PER_SECOND) {
            char quoted[256];
            sl_log(SL_LOG_WARN, "connection_dropped", "peer=%s reason=%s",
                   c->account == NONE ? c->transport.address : c->peer.address,
                   sl_log_quote(quoted, sizeof quoted, why));
        }
    }
    unlink_parked(front, c);
    while (c->first) {
        reply_out *next = c->first->next;
        free_reply(c->first);
        c->first = next;
    }
    epoll_ctl(front->epoll_fd, EPOLL_CTL_DEL, c->transport.fd, NULL);
    c->transport.ops->close(&c->transport);
    sl_sp_fini(&c->sp);
    if (c->account != NONE)
        front->accounts[c->account].connections--;
    put_account(front, c->account);
    c->open = false;
    c->generation++;
    front->connection_count--;
    pthread_mutex_lock(&front->stats_lock);
    front->stats.dropped += why != NULL;
    pthread_mutex_unlock(&front->stats_lock);
}

/* --- writing --- */

/* False when the connection is gone. */
static bool write_some(sl_front *front, connection *c)
{
    uint8_t greeting[SL_SP_GREETING_BYTES], joined[JOINED_BYTES];
    size_t count = 0;
    sl_io io = SL_IO_DONE;

    sl_sp_greeting(greeting);
    c->write_wants = SL_IO_DONE;
    while (c->greeting_left && io == SL_IO_DONE) {
        io = c->transport.ops->write(&c->transport,
                                     greeting + SL_SP_GREETING_BYTES - c->greeting_left,
                                     c->greeting_left, &count);
        if (io == SL_IO_DONE)
            c->greeting_left = (uint8_t)(c->greeting_left - count);
    }
    while (c->first && io == SL_IO_DONE) {
        reply_out *reply = c->first;
        const bool head = reply->sent < reply->head_bytes;
        const uint8_t *at = head ? reply->head + reply->sent
                                 : reply->body + (reply->sent - reply->head_bytes);
        size_t size = head ? reply->head_bytes - reply->sent
                           : reply->head_bytes + reply->body_bytes - reply->sent;
        if (head) { /* with what fits of the body: one packet, one TLS record */
            const size_t more = sizeof joined - size < reply->body_bytes ? sizeof joined - size
                                                                         : reply->body_bytes;
            memcpy(joined, at, size);
            if (more)
                memcpy(joined + size, reply->body, more);
            at = joined;
            size += more;
        }
        if (size > 0)
            io = c->transport.ops->write(&c->transport, at, size, &count);
        else
            count = 0;
        if (io != SL_IO_DONE)
            break;
        reply->sent += count;
        c->unread_bytes -= count;
        c->written_bytes += count;
        const bool whole = reply->sent == reply->head_bytes + reply->body_bytes;
        if (whole || c->written_bytes >= WRITE_PROGRESS) {
            c->written_bytes = 0;
            c->write_since_ns = front->now_ns;
        }
        if (whole) {
            c->first = reply->next;
            free_reply(reply);
        }
    }
    c->active_ns = front->now_ns;
    if (io == SL_IO_END) {
        drop(front, c, NULL);
        return false;
    }
    if (io != SL_IO_DONE)
        c->write_wants = io;
    return true;
}

static bool queue_reply(sl_front *front, connection *c, reply_out *reply, const uint8_t *ids,
                        size_t id_bytes)
{
    reply->head_bytes = sl_sp_header(reply->head, c->transport.framing,
                                     id_bytes + reply->body_bytes);
    memcpy(reply->head + reply->head_bytes, ids, id_bytes);
    reply->head_bytes += id_bytes;
    reply->next = NULL;
    if (!c->first) {
        c->first = reply;
        c->write_since_ns = front->now_ns;
        c->written_bytes = 0;
    } else {
        c->last->next = reply;
    }
    c->last = reply;
    c->unread_bytes += reply->head_bytes + reply->body_bytes;
    return write_some(front, c);
}

/* The front's own answer to the request that is ready: UNAVAILABLE.  False when
 * the connection is gone. */
static bool answer_unavailable(sl_front *front, connection *c, const char *message)
{
    Sluice__V1__Reply pb = SLUICE__V1__REPLY__INIT;
    const sl_sp_request request = sl_sp_get(&c->sp);

    pb.code = sl_status_grpc_code(SL_ERR_UNAVAILABLE);
    pb.message = (char *)message;
    pb.retry_after_ns = SL_NS_PER_S;
    const size_t size = sluice__v1__reply__get_packed_size(&pb);
    reply_out *reply = calloc(1, sizeof *reply + size);
    if (!reply) {
        drop(front, c, "out of memory for a reply");
        return false;
    }
    uint8_t *body = (uint8_t *)(reply + 1);
    sluice__v1__reply__pack(&pb, body);
    reply->body = body;
    reply->body_bytes = size;
    uint8_t ids[4 * SL_SP_MAX_IDS];
    memcpy(ids, request.ids, request.id_bytes);
    sl_sp_release(&c->sp);
    return queue_reply(front, c, reply, ids, request.id_bytes);
}

/* --- reading --- */

/* A message that has begun is always read on, so that its deadline is the
 * client's to keep. */
static bool may_read(const sl_front *front, const connection *c)
{
    if (sl_sp_is_ready(&c->sp) || front->stopping)
        return false;
    return sl_sp_mid_message(&c->sp)
           || (c->in_flight < IN_FLIGHT_PER_CONNECTION && c->unread_bytes <= UNREAD_BOUND);
}

static void set_interest(sl_front *front, connection *c)
{
    uint32_t want = 0;

    if (may_read(front, c))
        want |= c->read_wants == SL_IO_WAIT_WRITE ? EPOLLOUT : EPOLLIN;
    if (c->first || c->greeting_left)
        want |= c->write_wants == SL_IO_WAIT_READ ? EPOLLIN : EPOLLOUT;
    if (want == c->interest)
        return;
    struct epoll_event event = {
        .events = want,
        .data.u64 = make_tag(TAG_CONNECTION, (uint32_t)slot_of(front, c), c->generation),
    };
    epoll_ctl(front->epoll_fd, EPOLL_CTL_MOD, c->transport.fd, &event);
    c->interest = want;
}

/* The request that is ready goes to the service if the caps allow it.
 * SL_ERR_BUSY: they do not, or there is no room. */
static sl_status dispatch(sl_front *front, connection *c, sl_error *err)
{
    account *a = &front->accounts[c->account];
    const sl_sp_request request = sl_sp_get(&c->sp);
    const sl_bridge_tag tag = { connection_id(front, c), c->account };

    if (sl_bridge_in_flight(front->bridge) >= front->config.in_flight
        || a->in_flight >= front->config.in_flight_each)
        return SL_ERR_BUSY;
    const sl_status status =
        sl_bridge_send(front->bridge, tag, &c->peer, &request, front->now_ns, err);
    if (status != SL_OK)
        return status;
    a->in_flight++;
    a->users++;
    c->in_flight++;
    sl_sp_release(&c->sp);
    return SL_OK;
}

static void park(sl_front *front, connection *c)
{
    const int slot = slot_of(front, c);

    c->parked = true;
    c->parked_since_ns = front->now_ns;
    c->parked_before = front->parked_last;
    c->parked_after = NONE;
    if (front->parked_last == NONE)
        front->parked_first = slot;
    else
        front->connections[front->parked_last].parked_after = slot;
    front->parked_last = slot;
    front->parked_count++;
}

/* The request that is ready: to the service, or parked, or answered here.
 * False when the connection is gone. */
static bool on_request(sl_front *front, connection *c)
{
    sl_error err = { .status = SL_OK };
    const sl_status status = dispatch(front, c, &err);

    if (status == SL_OK)
        return true;
    if (status == SL_ERR_BUSY) {
        if (!c->parked)
            park(front, c);
        return true;
    }
    char quoted[256];
    sl_log(SL_LOG_ERROR, "front_send", "reason=%s",
           sl_log_quote(quoted, sizeof quoted, err.message));
    unlink_parked(front, c);
    return answer_unavailable(front, c, err.message);
}

static bool on_greeting(sl_front *front, connection *c)
{
    sl_error err = { .status = SL_OK };

    if (c->transport.ops->identify(&c->transport, &c->peer, &err) != SL_OK) {
        drop(front, c, err.message);
        return false;
    }
    c->account = get_account(front, c->peer.identity);
    if (front->accounts[c->account].connections++ < front->config.connections_each)
        return true;
    drop(front, c, "too many connections of one identity");
    return false;
}

/* False when the connection is gone. */
static bool read_some(sl_front *front, connection *c)
{
    sl_error err = { .status = SL_OK };
    uint8_t *at = NULL;
    size_t count = 0;

    for (int i = 0; i < READS_PER_TURN && may_read(front, c); i++) {
        const bool began = sl_sp_mid_message(&c->sp);
        const size_t room = sl_sp_space(&c->sp, &at);
        if (room == 0) {
            drop(front, c, "out of memory for a request");
            return false;
        }
        const sl_io io = c->transport.ops->read(&c->transport, at, room, &count);
        if (io == SL_IO_END) {
            drop(front, c, NULL);
            return false;
        }
        c->read_wants = io;
        if (io != SL_IO_DONE)
            break;
        c->active_ns = front->now_ns;
        if (!began)
            c->message_since_ns = front->now_ns;
        if (sl_sp_advance(&c->sp, count, &err) != SL_OK) {
            drop(front, c, err.message);
            return false;
        }
        if (sl_sp_greeted(&c->sp) && c->account == NONE && !on_greeting(front, c))
            return false;
        if (sl_sp_is_ready(&c->sp) && !on_request(front, c))
            return false;
    }
    /* Bytes that TLS has decrypted already make no event. */
    c->again = may_read(front, c) && c->transport.ops->pending
               && c->transport.ops->pending(&c->transport);
    front->again |= c->again;
    return true;
}

/* Those whose turn ended with bytes at hand. */
static void read_again(sl_front *front)
{
    if (!front->again)
        return;
    front->again = false;
    for (int i = 0; i < front->config.connections; i++) {
        connection *c = &front->connections[i];
        if (c->open && c->again && read_some(front, c))
            set_interest(front, c);
    }
}

/* Parked requests go on in their order, as far as the caps allow. */
static void unpark(sl_front *front)
{
    int slot = front->parked_first;

    while (slot != NONE && sl_bridge_in_flight(front->bridge) < front->config.in_flight) {
        connection *c = &front->connections[slot];
        const int next = c->parked_after;
        if (front->accounts[c->account].in_flight < front->config.in_flight_each) {
            unlink_parked(front, c);
            if (on_request(front, c) && read_some(front, c))
                set_interest(front, c);
            /* That may have parked others or ended them: begin again. */
            slot = front->parked_first;
        } else {
            slot = next;
        }
    }
}

/* --- accepting --- */

/* Whoever has said nothing for longest goes: so connections that never speak keep
 * nobody out.  NULL: none has been silent for long. */
static connection *drop_silent(sl_front *front)
{
    connection *oldest = NULL;

    for (int i = 0; i < front->config.connections; i++) {
        connection *c = &front->connections[i];
        if (c->open && !sl_sp_greeted(&c->sp) && (!oldest || c->opened_ns < oldest->opened_ns))
            oldest = c;
    }
    if (!oldest || front->now_ns - oldest->opened_ns < SILENCE_NS)
        return NULL;
    drop(front, oldest, "made room for another, no greeting yet");
    return oldest;
}

static connection *make_room(sl_front *front)
{
    for (int i = 0; i < front->config.connections; i++) {
        if (!front->connections[i].open)
            return &front->connections[i];
    }
    return drop_silent(front);
}

/* Connections from the same address as this one. */
static int count_host(const sl_front *front, const sl_transport *transport)
{
    int count = 0;

    for (int i = 0; i < front->config.connections; i++) {
        const sl_transport *other = &front->connections[i].transport;
        count += front->connections[i].open && other->host_bytes == transport->host_bytes
                 && memcmp(other->address, transport->address, transport->host_bytes) == 0;
    }
    return count;
}

static void add_connection(sl_front *front, connection *c, const sl_transport *transport)
{
    const uint32_t generation = c->generation;
    struct epoll_event event = { .events = EPOLLIN };

    *c = (connection){
        .open = true,
        .generation = generation,
        .transport = *transport,
        .account = NONE,
        .greeting_left = SL_SP_GREETING_BYTES,
        .interest = EPOLLIN,
        .opened_ns = front->now_ns,
        .active_ns = front->now_ns,
    };
    sl_sp_init(&c->sp, transport->framing, front->config.bound, front->config.bound_arg);
    front->connection_count++;
    event.data.u64 = make_tag(TAG_CONNECTION, (uint32_t)slot_of(front, c), generation);
    if (epoll_ctl(front->epoll_fd, EPOLL_CTL_ADD, transport->fd, &event) != 0) {
        drop(front, c, "could not be watched");
        return;
    }
    if (write_some(front, c))
        set_interest(front, c);
}

static void pause_accepting(sl_front *front, bool paused)
{
    front->accept_again_ns = paused ? front->now_ns + TICK_MS * SL_NS_PER_MS : 0;
    for (int i = 0; i < front->listener_count; i++) {
        struct epoll_event event = {
            .events = paused ? 0 : EPOLLIN,
            .data.u64 = make_tag(TAG_LISTENER, (uint32_t)i, 0),
        };
        epoll_ctl(front->epoll_fd, EPOLL_CTL_MOD, front->listeners[i]->fd, &event);
    }
}

/* False: there is no place for it. */
static bool take_connection(sl_front *front, sl_listener *listener, int fd)
{
    sl_error err = { .status = SL_OK };
    sl_transport transport;

    if (listener->accept(listener, fd, &transport, &err) != SL_OK)
        return false;
    connection *c = NULL;
    if (transport.host_bytes == 0
        || count_host(front, &transport) < front->config.connections_host)
        c = make_room(front);
    if (c)
        add_connection(front, c, &transport);
    else
        transport.ops->close(&transport);
    return c != NULL;
}

static void accept_some(sl_front *front, sl_listener *listener)
{
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        const int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            const int code = errno;
            if ((code == EMFILE || code == ENFILE) && drop_silent(front))
                continue;
            /* Without descriptors the listener stays readable: rest, or spin. */
            if (code == EMFILE || code == ENFILE || code == ENOBUFS || code == ENOMEM)
                pause_accepting(front, true);
            return;
        }
        const bool taken = take_connection(front, listener, fd);
        pthread_mutex_lock(&front->stats_lock);
        front->stats.accepted += taken;
        front->stats.refused += !taken;
        pthread_mutex_unlock(&front->stats_lock);
    }
}

/* --- the loop --- */

static void on_connection_event(sl_front *front, uint64_t tag, uint32_t events)
{
    connection *c = find_connection(front, tag);

    if (!c)
        return;
    if ((events & (EPOLLIN | EPOLLOUT)) == 0) {
        drop(front, c, NULL); /* EPOLLHUP or EPOLLERR while it is not read */
        return;
    }
    if ((c->first || c->greeting_left) && !write_some(front, c))
        return;
    if (!read_some(front, c))
        return;
    set_interest(front, c);
}

static void take_replies(sl_front *front)
{
    sl_bridge_reply reply;

    while (sl_bridge_receive(front->bridge, &reply)) {
        connection *c = find_connection(front, reply.tag.connection);
        front->accounts[reply.tag.account].in_flight--;
        put_account(front, reply.tag.account);
        reply_out *out = c ? calloc(1, sizeof *out) : NULL;
        if (!out) {
            if (c)
                drop(front, c, "out of memory for a reply");
            nng_msg_free(reply.message);
            continue;
        }
        out->message = reply.message;
        out->body = reply.body;
        out->body_bytes = reply.body_bytes;
        c->in_flight--;
        if (queue_reply(front, c, out, reply.ids, reply.id_bytes) && read_some(front, c))
            set_interest(front, c);
    }
}

static const char *overdue(const sl_front *front, const connection *c)
{
    const sl_front_config *config = &front->config;
    const int64_t now = front->now_ns;
    const int64_t greeting_ns =
        c->transport.greeting_ns ? c->transport.greeting_ns : config->greeting_ns;

    if (!sl_sp_greeted(&c->sp))
        return now - c->opened_ns > greeting_ns ? "no greeting in time" : NULL;
    if (c->first && now - c->write_since_ns > config->write_ns)
        return "does not read its replies";
    if (sl_sp_mid_message(&c->sp) && now - c->message_since_ns > config->message_ns)
        return "a message was not finished in time";
    if (!c->first && !c->parked && c->in_flight == 0 && now - c->active_ns > config->idle_ns)
        return "idle";
    return NULL;
}

static void check_deadlines(sl_front *front)
{
    sl_bridge_tag tag;

    for (int i = 0; i < front->config.connections; i++) {
        connection *c = &front->connections[i];
        if (!c->open)
            continue;
        const char *why = overdue(front, c);
        if (!why && c->transport.ops->lapsed)
            why = c->transport.ops->lapsed(&c->transport);
        if (why) {
            drop(front, c, why);
        } else if (c->parked && front->now_ns - c->parked_since_ns > front->config.park_ns) {
            unlink_parked(front, c);
            if (answer_unavailable(front, c, "the server has too many requests under way")
                && read_some(front, c))
                set_interest(front, c);
        }
    }
    while (sl_bridge_expire(front->bridge, front->now_ns - front->config.expire_ns, &tag)) {
        connection *c = find_connection(front, tag.connection);
        sl_log(SL_LOG_ERROR, "request_lost", "peer=%s", c ? c->peer.address : "gone");
        front->accounts[tag.account].in_flight--;
        put_account(front, tag.account);
        if (c)
            drop(front, c, "its request was lost");
    }
    if (front->accept_again_ns && front->now_ns >= front->accept_again_ns && !front->stopping)
        pause_accepting(front, false);
}

static void begin_stop(sl_front *front)
{
    front->stopping = true;
    front->stop_by_ns = front->now_ns + atomic_load(&front->grace_ns);
    for (int i = 0; i < front->listener_count; i++)
        front->listeners[i]->close(front->listeners[i]);
    front->listener_count = 0;
    for (int i = 0; i < front->config.connections; i++) {
        connection *c = &front->connections[i];
        if (!c->open)
            continue;
        if (c->parked) {
            unlink_parked(front, c);
            if (!answer_unavailable(front, c, "the server is shutting down"))
                continue;
        }
        set_interest(front, c);
    }
}

static bool still_delivering(const sl_front *front)
{
    if (front->now_ns >= front->stop_by_ns)
        return false;
    if (sl_bridge_in_flight(front->bridge) > 0)
        return true;
    for (int i = 0; i < front->config.connections; i++) {
        if (front->connections[i].open && front->connections[i].first)
            return true;
    }
    return false;
}

static void publish_stats(sl_front *front)
{
    pthread_mutex_lock(&front->stats_lock);
    front->stats.connections = front->connection_count;
    front->stats.in_flight = sl_bridge_in_flight(front->bridge);
    front->stats.parked = front->parked_count;
    pthread_mutex_unlock(&front->stats_lock);
}

static void on_event(sl_front *front, const struct epoll_event *event)
{
    const uint64_t tag = event->data.u64;
    uint64_t count;

    switch (tag >> 62) {
    case TAG_WAKE:
        if (read(front->wake_fd, &count, sizeof count) < 0)
            return; /* nothing to clear */
        break;
    case TAG_LISTENER:
        if (!front->stopping)
            accept_some(front, front->listeners[tag >> 32 & 0xff]);
        break;
    default:
        on_connection_event(front, tag, event->events);
    }
}

static void *run(void *arg)
{
    sl_front *front = arg;
    struct epoll_event events[EVENTS];
    int64_t tick_ns = 0;

    for (;;) {
        const bool waits = front->connection_count > 0 || front->accept_again_ns
                           || front->stopping || sl_bridge_in_flight(front->bridge) > 0;
        const int n = epoll_wait(front->epoll_fd, events, EVENTS,
                                 front->again ? 0 : waits ? TICK_MS : -1);
        front->now_ns = sl_clock_now_ns();
        read_again(front);
        for (int i = 0; i < n; i++)
            on_event(front, &events[i]);
        take_replies(front);
        unpark(front);
        if (front->now_ns >= tick_ns) {
            check_deadlines(front);
            tick_ns = front->now_ns + TICK_MS * SL_NS_PER_MS;
        }
        publish_stats(front);
        if (atomic_load(&front->stop) && !front->stopping)
            begin_stop(front);
        if (front->stopping && !still_delivering(front))
            break;
    }
    for (int i = 0; i < front->config.connections; i++) {
        if (front->connections[i].open)
            drop(front, &front->connections[i], NULL);
    }
    publish_stats(front);
    return NULL;
}

/* --- life --- */

sl_status sl_front_create(sl_front **out, const sl_front_config *config, sl_error *err)
{
    sl_status status = SL_OK;
    struct epoll_event event = { .events = EPOLLIN, .data.u64 = make_tag(TAG_WAKE, 0, 0) };
    sl_front *front = calloc(1, sizeof *front);

    if (!front)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the front");
    SL_ASSERT(config->connections > 0 && config->connections <= 65536);
    front->config = *config;
    front->parked_first = front->parked_last = NONE;
    front->epoll_fd = front->wake_fd = -1;
    pthread_mutex_init(&front->stats_lock, NULL);
    front->account_capacity = config->connections + config->in_flight;
    front->connections = calloc((size_t)config->connections, sizeof *front->connections);
    front->accounts = calloc((size_t)front->account_capacity, sizeof *front->accounts);
    if (!front->connections || !front->accounts) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %d connections",
                         config->connections);
        goto done;
    }
    front->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    front->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (front->epoll_fd < 0 || front->wake_fd < 0
        || epoll_ctl(front->epoll_fd, EPOLL_CTL_ADD, front->wake_fd, &event) != 0) {
        status = sl_fail_errno(err, "could not prepare the front");
        goto done;
    }
    status = sl_bridge_create(&front->bridge, config->service_url, config->in_flight,
                              front->wake_fd, err);
    if (status != SL_OK)
        goto done;
    *out = front;
    front = NULL;
done:
    sl_front_destroy(front);
    return status;
}

sl_status sl_front_add(sl_front *front, sl_listener *listener, sl_error *err)
{
    struct epoll_event event = {
        .events = EPOLLIN,
        .data.u64 = make_tag(TAG_LISTENER, (uint32_t)front->listener_count, 0),
    };

    SL_ASSERT(front->listener_count < MAX_LISTENERS && !front->started);
    if (epoll_ctl(front->epoll_fd, EPOLL_CTL_ADD, listener->fd, &event) != 0) {
        const sl_status status = sl_fail_errno(err, "could not watch a listening socket");
        listener->close(listener);
        return status;
    }
    front->listeners[front->listener_count++] = listener;
    return SL_OK;
}

sl_status sl_front_start(sl_front *front, sl_error *err)
{
    const int code = pthread_create(&front->thread, NULL, run, front);

    if (code != 0) {
        errno = code;
        return sl_fail_errno(err, "could not start the front's thread");
    }
    front->started = true;
    return SL_OK;
}

void sl_front_stop(sl_front *front, int64_t grace_ns)
{
    const uint64_t one = 1;

    if (!front->started)
        return;
    atomic_store(&front->grace_ns, grace_ns);
    atomic_store(&front->stop, true);
    if (write(front->wake_fd, &one, sizeof one) < 0)
        sl_log(SL_LOG_ERROR, "front_wake", "could not wake the front");
    pthread_join(front->thread, NULL);
    front->started = false;
}

void sl_front_destroy(sl_front *front)
{
    if (!front)
        return;
    sl_front_stop(front, 0);
    for (int i = 0; i < front->listener_count; i++)
        front->listeners[i]->close(front->listeners[i]);
    sl_bridge_destroy(front->bridge);
    if (front->epoll_fd >= 0)
        close(front->epoll_fd);
    if (front->wake_fd >= 0)
        close(front->wake_fd);
    pthread_mutex_destroy(&front->stats_lock);
    free(front->connections);
    free(front->accounts);
    free(front);
}

void sl_front_get_stats(sl_front *front, sl_front_stats *out)
{
    pthread_mutex_lock(&front->stats_lock);
    *out = front->stats;
    pthread_mutex_unlock(&front->stats_lock);
}
