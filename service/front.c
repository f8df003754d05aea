#include "service/front_state.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { EVENTS = 512 };
/* In one turn, for those who have not greeted yet and for those who knock: a TLS handshake
 * is some hundred times the work of a request, and whoever is in must not wait for a crowd
 * that comes. */
#define GREET_TURN_NS  (2 * SL_NS_PER_MS)
#define ACCEPT_TURN_NS SL_NS_PER_MS

sl_front_config sl_front_config_default(void)
{
    return (sl_front_config){
        .connections = 256,
        .in_flight = 20,
        .in_flight_each = 16,
        .bytes_each = (size_t)2 << 20,
        .greeting_ns = 10 * SL_NS_PER_S,
        .park_ns = 30 * SL_NS_PER_S,
        .expire_ns = 1800 * SL_NS_PER_S,
        .limits = { .connections_each = 205,
                    .connections_host = 128,
                    .message_ns = 30 * SL_NS_PER_S,
                    .write_ns = 30 * SL_NS_PER_S,
                    .idle_ns = 600 * SL_NS_PER_S },
    };
}

/* --- the loop --- */

static void on_connection_event(sl_front *front, uint64_t tag, uint32_t events)
{
    sl_front_connection *c = sl_front_find(front, tag);

    if (!c)
        return;
    if ((events & (EPOLLIN | EPOLLOUT)) == 0) {
        sl_front_drop(front, c, SL_DOOR_LEFT, NULL); /* EPOLLHUP or EPOLLERR while it is not read */
        return;
    }
    if ((c->first || c->greeting_left) && !sl_front_write(front, c))
        return;
    if (!sl_front_read(front, c))
        return;
    sl_front_watch(front, c);
}

static void take_replies(sl_front *front)
{
    sl_bridge_reply reply;

    while (sl_bridge_receive(front->bridge, &reply)) {
        sl_front_connection *c = sl_front_find(front, reply.tag.connection);
        sl_front_settle(front, &reply.tag);
        sl_front_reply *out = c ? calloc(1, sizeof *out) : NULL;
        if (!out) {
            if (c)
                sl_front_drop(front, c, SL_DOOR_NO_MEMORY, "out of memory for a reply");
            nng_msg_free(reply.message);
            continue;
        }
        out->message = reply.message;
        out->body = reply.body;
        out->body_bytes = reply.body_bytes;
        c->in_flight--;
        if (sl_front_queue(front, c, out, reply.ids, reply.id_bytes) && sl_front_read(front, c))
            sl_front_watch(front, c);
    }
}

/* Why its time is up; SL_DOOR_COUNT: it is not. */
static sl_door_count overdue(const sl_front *front, const sl_front_connection *c)
{
    const sl_front_limits *limits = &front->limits;
    const int64_t now = front->now_ns;
    const int64_t greeting_ns =
        c->transport.greeting_ns ? c->transport.greeting_ns : front->config.greeting_ns;

    if (!sl_sp_greeted(&c->sp))
        return now - c->opened_ns > greeting_ns ? SL_DOOR_NO_GREETING : SL_DOOR_COUNT;
    if (c->first && now - c->write_since_ns > limits->write_ns)
        return SL_DOOR_UNREAD;
    if (sl_sp_mid_message(&c->sp) && now - c->message_since_ns > limits->message_ns)
        return SL_DOOR_HALF_MESSAGE;
    if (!c->first && !c->parked && c->in_flight == 0 && now - c->active_ns > limits->idle_ns)
        return SL_DOOR_IDLE;
    return SL_DOOR_COUNT;
}

static sl_door_state state_of(const sl_front_connection *c)
{
    if (!sl_sp_greeted(&c->sp))
        return SL_DOOR_GREETING;
    if (c->parked)
        return SL_DOOR_PARKED;
    return c->first || c->in_flight > 0 || sl_sp_mid_message(&c->sp) ? SL_DOOR_BUSY
                                                                     : SL_DOOR_RESTING;
}

static void check_deadlines(sl_front *front)
{
    int states[SL_DOOR_STATE_COUNT] = { 0 };
    sl_bridge_tag tag;

    for (int i = 0; i < front->config.connections; i++) {
        sl_front_connection *c = &front->connections[i];
        const char *why = NULL;
        if (!c->open)
            continue;
        const sl_door_count reason = overdue(front, c);
        if (reason == SL_DOOR_COUNT && c->transport.ops->lapsed)
            why = c->transport.ops->lapsed(&c->transport);
        states[state_of(c)]++;
        if (reason != SL_DOOR_COUNT || why) {
            sl_front_drop(front, c, why ? SL_DOOR_LAPSED : reason, why);
        } else if (c->parked && front->now_ns - c->parked_since_ns > front->config.park_ns) {
            sl_front_unlink(front, c);
            if (sl_front_answer(front, c, "the server has too many requests under way") &&
                sl_front_read(front, c))
                sl_front_watch(front, c);
        }
    }
    for (int i = 0; i < SL_DOOR_STATE_COUNT; i++)
        atomic_store(&front->door->states[i], states[i]);
    while (sl_bridge_expire(front->bridge, front->now_ns - front->config.expire_ns, &tag)) {
        sl_front_connection *c = sl_front_find(front, tag.connection);
        sl_log(SL_LOG_ERROR, "request_lost", "peer=%s", c ? c->peer.address : "gone");
        sl_front_settle(front, &tag);
        if (c)
            sl_front_drop(front, c, SL_DOOR_LOST, NULL);
    }
    if (front->accept_again_ns && front->now_ns >= front->accept_again_ns && !front->stopping)
        sl_front_pause(front, false);
}

static void begin_stop(sl_front *front)
{
    front->stopping = true;
    front->stop_by_ns = front->now_ns + atomic_load(&front->grace_ns);
    for (int i = 0; i < front->listener_count; i++)
        front->listeners[i]->close(front->listeners[i]);
    front->listener_count = 0;
    for (int i = 0; i < front->config.connections; i++) {
        sl_front_connection *c = &front->connections[i];
        if (!c->open)
            continue;
        if (c->parked) {
            sl_front_unlink(front, c);
            if (!sl_front_answer(front, c, "the server is shutting down"))
                continue;
        }
        sl_front_watch(front, c);
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

static void publish(sl_front *front)
{
    atomic_store(&front->door->connections, front->connection_count);
    atomic_store(&front->door->in_flight, sl_bridge_in_flight(front->bridge));
}

static bool has_greeted(sl_front *front, uint64_t tag)
{
    const sl_front_connection *c = sl_front_find(front, tag);

    return c && sl_sp_greeted(&c->sp);
}

/* Whoever is in. */
static void serve(sl_front *front, const struct epoll_event *events, int count)
{
    uint64_t value;

    sl_front_read_again(front);
    for (int i = 0; i < count; i++) {
        const uint64_t tag = events[i].data.u64;
        if (tag >> 62 == SL_FRONT_TAG_WAKE && read(front->wake_fd, &value, sizeof value) < 0)
            continue; /* nothing to clear */
        if (tag >> 62 == SL_FRONT_TAG_CONNECTION && has_greeted(front, tag))
            on_connection_event(front, tag, events[i].events);
    }
    take_replies(front);
    sl_front_unpark(front);
}

/* Whoever comes, for a while: epoll tells of the rest again. */
static void greet(sl_front *front, const struct epoll_event *events, int count)
{
    const int64_t greet_by_ns = sl_clock_now_ns() + GREET_TURN_NS;

    for (int i = 0; i < count && sl_clock_now_ns() < greet_by_ns; i++) {
        const uint64_t tag = events[i].data.u64;
        if (tag >> 62 == SL_FRONT_TAG_CONNECTION && !has_greeted(front, tag))
            on_connection_event(front, tag, events[i].events);
    }
    for (int i = 0; i < count && !front->stopping; i++) {
        const uint64_t tag = events[i].data.u64;
        if (tag >> 62 == SL_FRONT_TAG_LISTENER)
            sl_front_accept(front, front->listeners[tag >> 32 & 0xff],
                            sl_clock_now_ns() + ACCEPT_TURN_NS);
    }
}

static void take_limits(sl_front *front)
{
    pthread_mutex_lock(&front->next_lock);
    front->limits = front->next_limits;
    pthread_mutex_unlock(&front->next_lock);
}

static void *run(void *arg)
{
    sl_front *front = arg;
    struct epoll_event events[EVENTS];
    int64_t tick_ns = 0;

    for (;;) {
        const bool waits = front->connection_count > 0 || front->accept_again_ns ||
                           front->stopping || sl_bridge_in_flight(front->bridge) > 0;
        const int n = epoll_wait(front->epoll_fd, events, EVENTS,
                                 front->again ? 0
                                 : waits      ? SL_FRONT_TICK_MS
                                              : -1);
        front->now_ns = sl_clock_now_ns();
        take_limits(front);
        serve(front, events, n);
        greet(front, events, n);
        if (front->now_ns >= tick_ns) {
            check_deadlines(front);
            tick_ns = front->now_ns + SL_FRONT_TICK_MS * SL_NS_PER_MS;
        }
        publish(front);
        if (atomic_load(&front->stop) && !front->stopping)
            begin_stop(front);
        if (front->stopping && !still_delivering(front))
            break;
    }
    for (int i = 0; i < front->config.connections; i++) {
        if (front->connections[i].open)
            sl_front_drop(front, &front->connections[i], SL_DOOR_STOPPED, NULL);
    }
    publish(front);
    return NULL;
}

/* --- life --- */

sl_status sl_front_create(sl_front **out, const sl_front_config *config, sl_error *err)
{
    sl_status status = SL_OK;
    struct epoll_event event = { .events = EPOLLIN,
                                 .data.u64 = sl_front_tag(SL_FRONT_TAG_WAKE, 0, 0) };
    sl_front *front = calloc(1, sizeof *front);

    if (!front)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the front");
    SL_ASSERT(config->connections > 0 && config->connections <= 65536);
    front->config = *config;
    front->limits = front->next_limits = config->limits;
    front->door = config->door ? config->door : &front->own_door;
    front->parked_first = front->parked_last = SL_FRONT_NONE;
    front->epoll_fd = front->wake_fd = -1;
    pthread_mutex_init(&front->next_lock, NULL);
    front->account_capacity = config->connections + config->in_flight;
    front->connections = calloc((size_t)config->connections, sizeof *front->connections);
    front->accounts = calloc((size_t)front->account_capacity, sizeof *front->accounts);
    if (!front->connections || !front->accounts) {
        status =
            sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %d connections", config->connections);
        goto done;
    }
    front->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    front->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (front->epoll_fd < 0 || front->wake_fd < 0 ||
        epoll_ctl(front->epoll_fd, EPOLL_CTL_ADD, front->wake_fd, &event) != 0) {
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
        .data.u64 = sl_front_tag(SL_FRONT_TAG_LISTENER, (uint32_t)front->listener_count, 0),
    };

    SL_ASSERT(front->listener_count < SL_FRONT_MAX_LISTENERS && !front->started);
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
    pthread_mutex_destroy(&front->next_lock);
    free(front->connections);
    free(front->accounts);
    free(front);
}

bool sl_front_set_limits(sl_front *front, const sl_front_limits *limits)
{
    pthread_mutex_lock(&front->next_lock);
    const sl_front_limits *b = &front->next_limits;
    const bool differs = limits->connections_each != b->connections_each ||
                         limits->connections_host != b->connections_host ||
                         limits->message_ns != b->message_ns || limits->write_ns != b->write_ns ||
                         limits->idle_ns != b->idle_ns;
    front->next_limits = *limits;
    pthread_mutex_unlock(&front->next_lock);
    return differs;
}
