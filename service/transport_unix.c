#include "service/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 128 };

typedef struct {
    sl_listener base;
    const sl_auth *auth;
    char *path;
    /* O_PATH on the socket's file: as long as it is open its inode number is not
     * given to another file, so that close can tell ours from a successor's. */
    int file;
} unix_listener;

static sl_io from_errno(sl_io again)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? again : SL_IO_END;
}

static sl_io unix_read(sl_transport *transport, uint8_t *at, size_t room, size_t *count)
{
    const ssize_t n = recv(transport->fd, at, room, 0);

    if (n < 0)
        return from_errno(SL_IO_WAIT_READ);
    if (n == 0)
        return SL_IO_END;
    *count = (size_t)n;
    return SL_IO_DONE;
}

static sl_io unix_write(sl_transport *transport, const uint8_t *at, size_t size, size_t *count)
{
    const ssize_t n = send(transport->fd, at, size, MSG_NOSIGNAL);

    if (n < 0)
        return from_errno(SL_IO_WAIT_WRITE);
    *count = (size_t)n;
    return SL_IO_DONE;
}

static sl_status unix_identify(sl_transport *transport, sl_peer *out, sl_error *err)
{
    return sl_auth_unix(transport->state, transport->fd, out, err);
}

static void unix_close(sl_transport *transport)
{
    close(transport->fd);
    transport->fd = -1;
}

static const sl_transport_ops unix_ops = {
    .read = unix_read,
    .write = unix_write,
    .identify = unix_identify,
    .close = unix_close,
};

static sl_status unix_accept(sl_listener *listener, int fd, sl_transport *out, sl_error *err)
{
    const unix_listener *self = (const unix_listener *)listener;

    (void)err;
    *out = (sl_transport){
        .ops = &unix_ops,
        .framing = SL_SP_IPC,
        .fd = fd,
        .address = "unix",
        .state = (void *)self->auth, /* only read again */
    };
    return SL_OK;
}

static void unix_listener_close(sl_listener *listener)
{
    unix_listener *self = (unix_listener *)listener;
    struct stat ours, there;

    if (self->file >= 0 && fstat(self->file, &ours) == 0 && lstat(self->path, &there) == 0
        && there.st_dev == ours.st_dev && there.st_ino == ours.st_ino)
        unlink(self->path);
    if (self->file >= 0)
        close(self->file);
    if (self->base.fd >= 0)
        close(self->base.fd);
    free(self->path);
    free(self);
}

/* Makes room at path: a socket that nobody listens on is removed. */
static sl_status remove_stale(const struct sockaddr_un *address, sl_error *err)
{
    struct stat st;
    sl_status status = SL_OK;

    if (lstat(address->sun_path, &st) != 0) {
        if (errno == ENOENT)
            return SL_OK;
        return sl_fail_errno(err, "could not look at \"%s\"", address->sun_path);
    }
    if (!S_ISSOCK(st.st_mode))
        return sl_fail(err, SL_ERR_EXISTS, "\"%s\" is there and is no socket", address->sun_path);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return sl_fail_errno(err, "could not make a socket");
    /* EAGAIN: somebody listens and has many waiting. */
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 || errno == EAGAIN
        || errno == EINPROGRESS)
        status = sl_fail(err, SL_ERR_EXISTS, "another process answers on \"%s\"",
                         address->sun_path);
    else if (errno != ECONNREFUSED && errno != ENOENT)
        status = sl_fail_errno(err, "could not find out who listens on \"%s\"", address->sun_path);
    else if (errno == ECONNREFUSED && unlink(address->sun_path) != 0 && errno != ENOENT)
        status = sl_fail_errno(err, "could not remove the stale socket \"%s\"", address->sun_path);
    close(fd);
    return status;
}

sl_status sl_unix_listen(sl_listener **out, const char *path, mode_t mode, const sl_auth *auth,
                         sl_error *err)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    sl_status status = SL_OK;
    unix_listener *self = NULL;

    const size_t path_bytes = strlen(path) + 1;
    if (path_bytes > sizeof address.sun_path)
        return sl_fail(err, SL_ERR_INVALID, "socket path \"%s\" is longer than %zu bytes", path,
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, path_bytes);
    self = calloc(1, sizeof *self);
    if (!self || !(self->path = strdup(path))) {
        free(self);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the socket \"%s\"", path);
    }
    self->base = (sl_listener){ -1, unix_accept, unix_listener_close };
    self->file = -1;
    self->auth = auth;
    status = remove_stale(&address, err);
    if (status != SL_OK)
        goto done;
    self->base.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* bind gives the file the mode of the socket, less the umask; so a socket
     * for all needs the chmod and a private one is private at once. */
    if (self->base.fd < 0 || fchmod(self->base.fd, mode) != 0
        || bind(self->base.fd, (const struct sockaddr *)&address, sizeof address) != 0
        || (self->file = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC)) < 0) {
        status = sl_fail_errno(err, "could not make the socket \"%s\"", path);
        goto done;
    }
    if (chmod(path, mode) != 0 || listen(self->base.fd, BACKLOG) != 0) {
        status = sl_fail_errno(err, "could not listen on \"%s\"", path);
        goto done;
    }
    *out = &self->base;
    self = NULL;
done:
    if (self)
        unix_listener_close(&self->base);
    return status;
}
