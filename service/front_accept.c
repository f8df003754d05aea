#include "service/front_state.h"

#include "base/clock.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define SILENCE_NS (250 * SL_NS_PER_MS) /* before a greeting: then it may be pushed out */

/* Whoever has said nothing for longest goes: so connections that never speak keep
 * nobody out.  NULL: none has been silent for long. */
static sl_front_connection *drop_silent(sl_front *front)
{
    sl_front_connection *oldest = NULL;

    for (int i = 0; i < front->config.connections; i++) {
        sl_front_connection *c = &front->connections[i];
        if (c->open && !sl_sp_greeted(&c->sp) && (!oldest || c->opened_ns < oldest->opened_ns))
            oldest = c;
    }
    if (!oldest || front->now_ns - oldest->opened_ns < SILENCE_NS)
        return NULL;
    sl_front_drop(front, oldest, SL_DOOR_MADE_ROOM, NULL);
    return oldest;
}

static sl_front_connection *make_room(sl_front *front)
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
        count += front->connections[i].open && other->host_bytes == transport->host_bytes &&
                 memcmp(other->address, transport->address, transport->host_bytes) == 0;
    }
    return count;
}

static void add_connection(sl_front *front, sl_front_connection *c, const sl_transport *transport)
{
    const uint32_t generation = c->generation;
    struct epoll_event event = { .events = EPOLLIN };

    *c = (sl_front_connection){
        .open = true,
        .generation = generation,
        .transport = *transport,
        .account = SL_FRONT_NONE,
        .greeting_left = SL_SP_GREETING_BYTES,
        .interest = EPOLLIN,
        .opened_ns = front->now_ns,
        .active_ns = front->now_ns,
    };
    sl_sp_init(&c->sp, transport->framing, front->config.bound, front->config.bound_arg);
    front->connection_count++;
    event.data.u64 =
        sl_front_tag(SL_FRONT_TAG_CONNECTION, (uint32_t)sl_front_slot(front, c), generation);
    if (epoll_ctl(front->epoll_fd, EPOLL_CTL_ADD, transport->fd, &event) != 0) {
        sl_front_drop(front, c, SL_DOOR_NO_MEMORY, "could not be watched");
        return;
    }
    if (sl_front_write(front, c))
        sl_front_watch(front, c);
}

void sl_front_pause(sl_front *front, bool paused)
{
    front->accept_again_ns = paused ? front->now_ns + SL_FRONT_TICK_MS * SL_NS_PER_MS : 0;
    for (int i = 0; i < front->listener_count; i++) {
        struct epoll_event event = {
            .events = paused ? 0 : EPOLLIN,
            .data.u64 = sl_front_tag(SL_FRONT_TAG_LISTENER, (uint32_t)i, 0),
        };
        epoll_ctl(front->epoll_fd, EPOLL_CTL_MOD, front->listeners[i]->fd, &event);
    }
}

/* What came of it. */
static sl_door_count take_connection(sl_front *front, sl_listener *listener, int fd)
{
    sl_error err = { .status = SL_OK };
    sl_transport transport;

    if (listener->accept(listener, fd, &transport, &err) != SL_OK)
        return SL_DOOR_NO_START;
    if (transport.host_bytes > 0 &&
        count_host(front, &transport) >= front->limits.connections_host) {
        transport.ops->close(&transport);
        return SL_DOOR_NO_PLACE_HOST;
    }
    sl_front_connection *c = make_room(front);
    if (!c) {
        transport.ops->close(&transport);
        return SL_DOOR_NO_PLACE;
    }
    add_connection(front, c, &transport);
    return SL_DOOR_TAKEN;
}

void sl_front_accept(sl_front *front, sl_listener *listener, int64_t until_ns)
{
    do {
        const int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            const int code = errno;
            if ((code == EMFILE || code == ENFILE) && drop_silent(front))
                continue;
            /* Without descriptors the listener stays readable: rest, or spin. */
            if (code == EMFILE || code == ENFILE || code == ENOBUFS || code == ENOMEM) {
                sl_door_add(front->door, SL_DOOR_NO_DESCRIPTOR, 1);
                sl_front_pause(front, true);
            }
            return;
        }
        sl_door_add(front->door, take_connection(front, listener, fd), 1);
    } while (sl_clock_now_ns() < until_ns);
}
