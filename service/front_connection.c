#include "service/front_state.h"

#include "api/sluice.pb-c.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

enum {
    IN_FLIGHT_PER_CONNECTION = 8,
    READS_PER_TURN = 32, /* as READ_TURN */
    DROP_LINES_PER_SECOND = 10,
    JOINED_BYTES = 4096, /* of a reply's header and body in one write */
};
#define UNREAD_BOUND   ((size_t)4 << 20)  /* of a connection: above it no request is taken */
#define WRITE_PROGRESS ((size_t)64 << 10) /* within write_ns, or a whole reply */
/* Of one connection, then the others have their turn: a TLS record, and as much as a
 * reader takes at once. */
#define READ_TURN  ((size_t)16 << 10)
#define WRITE_TURN ((size_t)256 << 10)

static uint64_t connection_id(const sl_front *front, const sl_front_connection *c)
{
    return (uint64_t)sl_front_slot(front, c) << 32 | c->generation;
}

sl_front_connection *sl_front_find(sl_front *front, uint64_t id)
{
    const uint64_t slot = id >> 32 & 0xffffff;

    if (slot >= (uint64_t)front->config.connections)
        return NULL;
    sl_front_connection *c = &front->connections[slot];
    return c->open && c->generation == (uint32_t)id ? c : NULL;
}

/* --- accounts --- */

static int get_account(sl_front *front, const char *identity)
{
    int unused = SL_FRONT_NONE;

    for (int i = 0; i < front->account_count; i++) {
        sl_front_account *a = &front->accounts[i];
        if (a->users == 0)
            unused = i;
        else if (strcmp(a->identity, identity) == 0) {
            a->users++;
            return i;
        }
    }
    if (unused == SL_FRONT_NONE)
        unused = front->account_count++;
    SL_ASSERT(unused < front->account_capacity);
    front->accounts[unused] = (sl_front_account){ .users = 1 };
    snprintf(front->accounts[unused].identity, sizeof front->accounts[unused].identity, "%s",
             identity);
    return unused;
}

void sl_front_settle(sl_front *front, const sl_bridge_tag *tag)
{
    sl_front_account *a = &front->accounts[tag->account];

    a->in_flight--;
    a->in_flight_bytes -= tag->size_bytes;
    a->users--;
}

/* --- the end of a connection --- */

void sl_front_unlink(sl_front *front, sl_front_connection *c)
{
    if (!c->parked)
        return;
    if (c->parked_before == SL_FRONT_NONE)
        front->parked_first = c->parked_after;
    else
        front->connections[c->parked_before].parked_after = c->parked_after;
    if (c->parked_after == SL_FRONT_NONE)
        front->parked_last = c->parked_before;
    else
        front->connections[c->parked_after].parked_before = c->parked_before;
    c->parked = false;
}

static void free_reply(sl_front_reply *reply)
{
    if (reply->message)
        nng_msg_free(reply->message);
    free(reply);
}

void sl_front_drop(sl_front *front, sl_front_connection *c, sl_door_count reason,
                   const char *detail)
{
    const char *why = detail ? detail : sl_door_counts[reason].text;

    if (why[0]) {
        if (front->now_ns >= front->drop_window_ns) {
            front->drop_window_ns = front->now_ns + SL_NS_PER_S;
            front->drop_lines = 0;
        }
        if (front->drop_lines++ < DROP_LINES_PER_SECOND) {
            char quoted[256];
            sl_log(SL_LOG_WARN, "connection_dropped", "peer=%s reason=%s",
                   c->account == SL_FRONT_NONE ? c->transport.address : c->peer.address,
                   sl_log_quote(quoted, sizeof quoted, why));
        }
    }
    sl_door_add(front->door, reason, 1);
    sl_front_unlink(front, c);
    while (c->first) {
        sl_front_reply *next = c->first->next;
        free_reply(c->first);
        c->first = next;
    }
    epoll_ctl(front->epoll_fd, EPOLL_CTL_DEL, c->transport.fd, NULL);
    c->transport.ops->close(&c->transport);
    sl_sp_fini(&c->sp);
    if (c->account != SL_FRONT_NONE) {
        front->accounts[c->account].connections--;
        front->accounts[c->account].users--;
    }
    c->open = false;
    c->generation++;
    front->connection_count--;
}

/* --- writing --- */

bool sl_front_write(sl_front *front, sl_front_connection *c)
{
    uint8_t greeting[SL_SP_GREETING_BYTES], joined[JOINED_BYTES];
    size_t count = 0, turn = 0;
    sl_io io = SL_IO_DONE;

    sl_sp_greeting(greeting);
    c->write_wants = SL_IO_DONE;
    while (c->greeting_left && io == SL_IO_DONE) {
        io = c->transport.ops->write(&c->transport,
                                     greeting + SL_SP_GREETING_BYTES - c->greeting_left,
                                     c->greeting_left, &count);
        if (io != SL_IO_DONE)
            break;
        c->greeting_left = (uint8_t)(c->greeting_left - count);
        sl_door_add(front->door, SL_DOOR_BYTES_OUT, count);
    }
    while (c->first && io == SL_IO_DONE && turn < WRITE_TURN) {
        sl_front_reply *reply = c->first;
        const bool head = reply->sent < reply->head_bytes;
        const uint8_t *at =
            head ? reply->head + reply->sent : reply->body + (reply->sent - reply->head_bytes);
        size_t size = head ? reply->head_bytes - reply->sent
                           : reply->head_bytes + reply->body_bytes - reply->sent;
        if (head) { /* with what fits of the body: one packet, one TLS record */
            const size_t more =
                sizeof joined - size < reply->body_bytes ? sizeof joined - size : reply->body_bytes;
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
        turn += count;
        sl_door_add(front->door, SL_DOOR_BYTES_OUT, count);
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
        sl_front_drop(front, c, SL_DOOR_LEFT, NULL);
        return false;
    }
    if (io != SL_IO_DONE)
        c->write_wants = io;
    return true;
}

bool sl_front_queue(sl_front *front, sl_front_connection *c, sl_front_reply *reply,
                    const uint8_t *ids, size_t id_bytes)
{
    reply->head_bytes =
        sl_sp_header(reply->head, c->transport.framing, id_bytes + reply->body_bytes);
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
    return sl_front_write(front, c);
}

bool sl_front_answer(sl_front *front, sl_front_connection *c, const char *message)
{
    Sluice__V1__Reply pb = SLUICE__V1__REPLY__INIT;
    const sl_sp_request request = sl_sp_get(&c->sp);

    pb.code = sl_status_grpc_code(SL_ERR_UNAVAILABLE);
    pb.message = (char *)message;
    pb.retry_after_ns = SL_NS_PER_S;
    const size_t size = sluice__v1__reply__get_packed_size(&pb);
    sl_front_reply *reply = calloc(1, sizeof *reply + size);
    if (!reply) {
        sl_front_drop(front, c, SL_DOOR_NO_MEMORY, "out of memory for a reply");
        return false;
    }
    uint8_t *body = (uint8_t *)(reply + 1);
    sluice__v1__reply__pack(&pb, body);
    reply->body = body;
    reply->body_bytes = size;
    uint8_t ids[4 * SL_SP_MAX_IDS];
    memcpy(ids, request.ids, request.id_bytes);
    sl_sp_release(&c->sp);
    return sl_front_queue(front, c, reply, ids, request.id_bytes);
}

/* --- reading --- */

/* A message that has begun is always read on, so that its deadline is the
 * client's to keep. */
static bool may_read(const sl_front *front, const sl_front_connection *c)
{
    if (sl_sp_is_ready(&c->sp) || front->stopping)
        return false;
    return sl_sp_mid_message(&c->sp) ||
           (c->in_flight < IN_FLIGHT_PER_CONNECTION && c->unread_bytes <= UNREAD_BOUND);
}

void sl_front_watch(sl_front *front, sl_front_connection *c)
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
        .data.u64 =
            sl_front_tag(SL_FRONT_TAG_CONNECTION, (uint32_t)sl_front_slot(front, c), c->generation),
    };
    epoll_ctl(front->epoll_fd, EPOLL_CTL_MOD, c->transport.fd, &event);
    c->interest = want;
}

/* The caps of its identity allow the request that is ready.  One alone always may. */
static bool has_share(const sl_front *front, const sl_front_connection *c)
{
    const sl_front_account *a = &front->accounts[c->account];
    const size_t size_bytes = sl_sp_get(&c->sp).body_bytes;

    return a->in_flight < front->config.in_flight_each &&
           (a->in_flight == 0 || a->in_flight_bytes + size_bytes <= front->config.bytes_each);
}

/* The request that is ready goes to the service if the caps allow it.
 * SL_ERR_BUSY: they do not, or there is no room. */
static sl_status dispatch(sl_front *front, sl_front_connection *c, sl_error *err)
{
    sl_front_account *a = &front->accounts[c->account];
    const sl_sp_request request = sl_sp_get(&c->sp);
    const sl_bridge_tag tag = { connection_id(front, c), c->account, request.body_bytes };

    if (sl_bridge_in_flight(front->bridge) >= front->config.in_flight || !has_share(front, c))
        return SL_ERR_BUSY;
    const sl_status status =
        sl_bridge_send(front->bridge, tag, &c->peer, &request, front->now_ns, err);
    if (status != SL_OK)
        return status;
    a->in_flight++;
    a->in_flight_bytes += tag.size_bytes;
    a->users++;
    c->in_flight++;
    sl_sp_release(&c->sp);
    return SL_OK;
}

static void park(sl_front *front, sl_front_connection *c)
{
    const int slot = sl_front_slot(front, c);

    c->parked = true;
    c->parked_since_ns = front->now_ns;
    c->parked_before = front->parked_last;
    c->parked_after = SL_FRONT_NONE;
    if (front->parked_last == SL_FRONT_NONE)
        front->parked_first = slot;
    else
        front->connections[front->parked_last].parked_after = slot;
    front->parked_last = slot;
}

/* The request that is ready: to the service, or parked, or answered here.
 * False when the connection is gone. */
static bool on_request(sl_front *front, sl_front_connection *c)
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
    sl_front_unlink(front, c);
    return sl_front_answer(front, c, err.message);
}

static bool on_greeting(sl_front *front, sl_front_connection *c)
{
    sl_error err = { .status = SL_OK };

    if (c->transport.ops->identify(&c->transport, &c->peer, &err) != SL_OK) {
        sl_front_drop(front, c, SL_DOOR_UNKNOWN, err.message);
        return false;
    }
    c->account = get_account(front, c->peer.identity);
    if (front->accounts[c->account].connections++ < front->limits.connections_each)
        return true;
    sl_front_drop(front, c, SL_DOOR_TOO_MANY, NULL);
    return false;
}

bool sl_front_read(sl_front *front, sl_front_connection *c)
{
    sl_error err = { .status = SL_OK };
    uint8_t *at = NULL;
    size_t count = 0, turn = 0;

    for (int i = 0; i < READS_PER_TURN && turn < READ_TURN && may_read(front, c); i++) {
        const bool began = sl_sp_mid_message(&c->sp);
        const size_t room = sl_sp_space(&c->sp, &at);
        if (room == 0) {
            sl_front_drop(front, c, SL_DOOR_NO_MEMORY, "out of memory for a request");
            return false;
        }
        const sl_io io = c->transport.ops->read(&c->transport, at, room, &count);
        if (io == SL_IO_END) {
            sl_front_drop(front, c, SL_DOOR_LEFT, NULL);
            return false;
        }
        c->read_wants = io;
        if (io != SL_IO_DONE)
            break;
        c->active_ns = front->now_ns;
        if (!began)
            c->message_since_ns = front->now_ns;
        turn += count;
        sl_door_add(front->door, SL_DOOR_BYTES_IN, count);
        if (sl_sp_advance(&c->sp, count, &err) != SL_OK) {
            sl_front_drop(front, c, SL_DOOR_PROTOCOL, err.message);
            return false;
        }
        if (sl_sp_greeted(&c->sp) && c->account == SL_FRONT_NONE && !on_greeting(front, c))
            return false;
        if (sl_sp_is_ready(&c->sp) && !on_request(front, c))
            return false;
    }
    /* Bytes that TLS has decrypted already make no event. */
    c->again =
        may_read(front, c) && c->transport.ops->pending && c->transport.ops->pending(&c->transport);
    front->again |= c->again;
    return true;
}

void sl_front_read_again(sl_front *front)
{
    if (!front->again)
        return;
    front->again = false;
    for (int i = 0; i < front->config.connections; i++) {
        sl_front_connection *c = &front->connections[i];
        if (c->open && c->again && sl_front_read(front, c))
            sl_front_watch(front, c);
    }
}

void sl_front_unpark(sl_front *front)
{
    int slot = front->parked_first;

    while (slot != SL_FRONT_NONE && sl_bridge_in_flight(front->bridge) < front->config.in_flight) {
        sl_front_connection *c = &front->connections[slot];
        const int next = c->parked_after;
        if (has_share(front, c)) {
            sl_front_unlink(front, c);
            if (on_request(front, c) && sl_front_read(front, c))
                sl_front_watch(front, c);
            /* That may have parked others or ended them: begin again. */
            slot = front->parked_first;
        } else {
            slot = next;
        }
    }
}
