#include "clients/c/test_server.h"

#include "base/test.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

const uint8_t server_hello[8] = { 0, 'S', 'P', 0, 0, 0x31, 0, 0 };

bool server_read(server *s, int fd, void *data, size_t size_bytes)
{
    uint8_t *at = data;

    while (size_bytes > 0) {
        struct pollfd fds[2] = { { .fd = fd, .events = POLLIN },
                                 { .fd = s->stop[0], .events = POLLIN } };
        if (poll(fds, 2, 20000) <= 0 || fds[1].revents)
            return false;
        const ssize_t n = read(fd, at, size_bytes);
        if (n <= 0)
            return false;
        at += n;
        size_bytes -= (size_t)n;
    }
    return true;
}

void server_write(int fd, const void *data, size_t size_bytes)
{
    const uint8_t *at = data;

    while (size_bytes > 0) {
        const ssize_t n = send(fd, at, size_bytes, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        at += n;
        size_bytes -= (size_t)n;
    }
}

void server_linger(server *s, int fd)
{
    uint8_t byte;

    while (server_read(s, fd, &byte, 1))
        ;
}

bool server_greet(server *s, int fd)
{
    static const uint8_t want[8] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 };
    uint8_t got[8];

    if (!server_read(s, fd, got, sizeof got) || memcmp(got, want, sizeof want) != 0)
        return false;
    server_write(fd, server_hello, sizeof server_hello);
    return true;
}

Sluice__V1__Envelope *server_request(server *s, int fd, uint8_t id[4])
{
    uint8_t head[9];
    uint64_t length = 0;

    if (!server_read(s, fd, head, sizeof head) || head[0] != 1)
        return NULL;
    for (int i = 1; i < 9; i++)
        length = length << 8 | head[i];
    if (length < 4 || length > SL_CLIENT_MAX_REQUEST_BYTES)
        return NULL;
    uint8_t *body = malloc(length);
    Sluice__V1__Envelope *envelope = NULL;
    if (server_read(s, fd, body, length) && (body[0] & 0x80)) {
        memcpy(id, body, 4);
        envelope = sluice__v1__envelope__unpack(NULL, length - 4, body + 4);
        atomic_fetch_add(&s->requests, 1);
    }
    free(body);
    return envelope;
}

uint8_t *server_make_reply(const uint8_t id[4], const void *body, size_t body_bytes, size_t *bytes)
{
    uint8_t *out = malloc(13 + body_bytes);
    const uint64_t length = 4 + body_bytes;

    out[0] = 1;
    for (int i = 0; i < 8; i++)
        out[1 + i] = (uint8_t)(length >> (56 - 8 * i));
    memcpy(out + 9, id, 4);
    memcpy(out + 13, body, body_bytes);
    *bytes = 13 + body_bytes;
    return out;
}

void server_reply(int fd, const uint8_t id[4], const Sluice__V1__Reply *reply)
{
    const size_t size_bytes = sluice__v1__reply__get_packed_size(reply);
    uint8_t *body = malloc(size_bytes + 1);
    size_t bytes = 0;

    sluice__v1__reply__pack(reply, body);
    uint8_t *wire = server_make_reply(id, body, size_bytes, &bytes);
    server_write(fd, wire, bytes);
    free(wire);
    free(body);
}

static void *server_main(void *arg)
{
    server *s = arg;

    for (;;) {
        struct pollfd fds[2] = { { .fd = s->listener, .events = POLLIN },
                                 { .fd = s->stop[0], .events = POLLIN } };
        if (poll(fds, 2, -1) < 0 || fds[1].revents)
            return NULL;
        const int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        s->script(s, fd, atomic_fetch_add(&s->connections, 1));
        close(fd);
    }
}

static void listen_at(server *s)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };

    snprintf(sun.sun_path, sizeof sun.sun_path, "%s", s->path);
    unlink(s->path);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    SL_CHECK(bind(s->listener, (struct sockaddr *)&sun, sizeof sun) == 0);
    SL_CHECK(listen(s->listener, 8) == 0);
}

void server_name(server *s)
{
    *s = (server){ .listener = -1 };
    snprintf(s->dir, sizeof s->dir, "/tmp/sluice-client-XXXXXX");
    SL_CHECK(mkdtemp(s->dir) != NULL);
    snprintf(s->path, sizeof s->path, "%s/s", s->dir);
}

void server_run(server *s, script_fn script)
{
    s->script = script;
    SL_CHECK(pipe(s->stop) == 0);
    listen_at(s);
    SL_CHECK(pthread_create(&s->thread, NULL, server_main, s) == 0);
}

void server_start(server *s, script_fn script)
{
    server_name(s);
    server_run(s, script);
}

void server_halt(server *s)
{
    SL_CHECK(write(s->stop[1], "x", 1) == 1);
    pthread_join(s->thread, NULL);
    close(s->listener);
    close(s->stop[0]);
    close(s->stop[1]);
}

void server_end(server *s)
{
    server_halt(s);
    unlink(s->path);
    SL_CHECK(rmdir(s->dir) == 0);
}
