#include "clients/c/transport.h"

#include "base/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct {
    sl_transport base;
    struct sockaddr_un sun;
    int fd; /* -1: not open */
} unix_transport;

/* poll(2) counts milliseconds: rounded up, so that a wait never ends early
 * and then spins. */
static int poll_ms(int64_t left_ns)
{
    const int64_t ms = left_ns / SL_NS_PER_MS + 1;

    return ms > 60000 ? 60000 : (int)ms;
}

sl_status sl_wait_fd(const sl_wait *wait, int fd, short events, const char *doing,
                     const char *address, sl_error *err)
{
    for (;;) {
        struct pollfd fds[2] = { { .fd = fd, .events = events },
                                 { .fd = wait->interrupt_fd, .events = POLLIN } };
        const int64_t left_ns = wait->deadline_ns - sl_clock_now_ns();
        const int n = poll(fds, 2, left_ns > 0 ? poll_ms(left_ns) : 0);

        if (n < 0 && errno != EINTR)
            return sl_fail_errno(err, "could not wait for sluiced at \"%s\"", address);
        if (n > 0 && fds[1].revents)
            return sl_fail(err, SL_ERR_CANCELLED, "interrupted while %s sluiced at \"%s\"", doing,
                           address);
        if (left_ns <= 0)
            return sl_fail(err, SL_ERR_TIMEOUT, "deadline passed while %s sluiced at \"%s\"", doing,
                           address);
        if (n > 0)
            return SL_OK;
    }
}

static sl_status fail_gone(sl_error *err, const char *doing, const char *address)
{
    const int code = errno;

    return sl_fail(err, SL_ERR_UNAVAILABLE, "connection lost while %s sluiced at \"%s\": %s", doing,
                   address, strerror(code));
}

static void unix_close(sl_transport *transport)
{
    unix_transport *self = (unix_transport *)transport;

    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
}

static sl_status fail_connect(sl_error *err, int code, const char *address)
{
    const bool absent = code == ENOENT || code == ECONNREFUSED;

    if (code == EACCES || code == EPERM)
        return sl_fail(err, SL_ERR_PERMISSION, "could not connect to sluiced at \"%s\": %s",
                       address, strerror(code));
    return sl_fail(err, SL_ERR_UNAVAILABLE, "could not connect to sluiced at \"%s\": %s%s", address,
                   strerror(code), absent ? " (is the daemon running?)" : "");
}

static sl_status unix_open(sl_transport *transport, const sl_wait *wait, sl_error *err)
{
    unix_transport *self = (unix_transport *)transport;
    sl_status status = SL_OK;

    unix_close(transport);
    self->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (self->fd < 0)
        return sl_fail_errno(err, "could not create a socket");
    while (connect(self->fd, (const struct sockaddr *)&self->sun, sizeof self->sun) < 0) {
        const sl_wait nap = { .deadline_ns = sl_clock_deadline_ns(10 * SL_NS_PER_MS),
                              .interrupt_fd = wait->interrupt_fd };

        if (errno == EINTR)
            continue;
        if (errno != EAGAIN) {
            status = fail_connect(err, errno, transport->address);
            break;
        }
        /* The listener's backlog is full.  A Unix socket cannot be polled for
         * a place in it. */
        if (sl_clock_now_ns() >= wait->deadline_ns) {
            status = sl_fail(err, SL_ERR_TIMEOUT,
                             "deadline passed while connecting to sluiced at \"%s\"",
                             transport->address);
            break;
        }
        status = sl_wait_fd(&nap, -1, 0, "connecting to", transport->address, err);
        if (status != SL_ERR_TIMEOUT)
            break;
        status = SL_OK;
    }
    if (status != SL_OK)
        unix_close(transport);
    return status;
}

static sl_status unix_write(sl_transport *transport, const void *data, size_t size_bytes,
                            const sl_wait *wait, sl_error *err)
{
    const unix_transport *self = (unix_transport *)transport;
    const uint8_t *at = data;

    while (size_bytes > 0) {
        const sl_status status =
            sl_wait_fd(wait, self->fd, POLLOUT, "sending to", transport->address, err);
        if (status != SL_OK)
            return status;
        const ssize_t n = send(self->fd, at, size_bytes, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return fail_gone(err, "sending to", transport->address);
        if (n > 0) {
            at += n;
            size_bytes -= (size_t)n;
        }
    }
    return SL_OK;
}

static sl_status unix_read(sl_transport *transport, void *data, size_t size_bytes,
                           const sl_wait *wait, sl_error *err)
{
    const unix_transport *self = (unix_transport *)transport;
    uint8_t *at = data;

    while (size_bytes > 0) {
        const sl_status status =
            sl_wait_fd(wait, self->fd, POLLIN, "waiting for", transport->address, err);
        if (status != SL_OK)
            return status;
        const ssize_t n = recv(self->fd, at, size_bytes, 0);
        if (n == 0)
            return sl_fail(err, SL_ERR_UNAVAILABLE, "sluiced at \"%s\" closed the connection",
                           transport->address);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return fail_gone(err, "waiting for", transport->address);
        if (n > 0) {
            at += n;
            size_bytes -= (size_t)n;
        }
    }
    return SL_OK;
}

static void unix_destroy(sl_transport *transport)
{
    unix_close(transport);
    free(transport);
}

static const sl_transport_ops unix_ops = {
    .length_mark = true,
    .gone_ns = 10 * SL_NS_PER_S, /* it is being restarted */
    .open = unix_open,
    .write = unix_write,
    .read = unix_read,
    .close = unix_close,
    .destroy = unix_destroy,
};

sl_status sl_transport_create_unix(sl_transport **out, const char *path, sl_error *err)
{
    unix_transport *self = NULL;
    const size_t length = strlen(path);

    if (length == 0 || length >= sizeof self->sun.sun_path)
        return sl_fail(err, SL_ERR_INVALID,
                       "socket path \"%s\" has %zu bytes; a Unix socket's has 1 to %zu", path,
                       length, sizeof self->sun.sun_path - 1);
    self = calloc(1, sizeof *self);
    if (!self)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a connection");
    self->fd = -1;
    self->sun.sun_family = AF_UNIX;
    memcpy(self->sun.sun_path, path, length + 1);
    self->base.ops = &unix_ops;
    self->base.address = self->sun.sun_path;
    *out = &self->base;
    return SL_OK;
}

void sl_transport_destroy(sl_transport *transport)
{
    if (transport)
        transport->ops->destroy(transport);
}
