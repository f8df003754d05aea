#include "service/http.h"

#include "base/clock.h"
#include "base/log.h"
#include "service/http_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    DEFAULT_CONNECTIONS = 32,
    HEADER_BYTES = 16 << 10, /* that one connection may make us keep */
    BACKLOG = 64,
    PEM_LIMIT_BYTES = 1 << 20,
    HOST_BYTES = 64,
};
#define DEFAULT_LIFETIME_NS (15 * SL_NS_PER_S)

/* A connection; the thread's. */
typedef struct {
    int fd;              /* MHD's; -1: free */
    int64_t deadline_ns; /* INT64_MAX: has been shut down */
} slot;

struct sl_http {
    sl_http_config config; /* what http_pages.h needs of it */
    struct MHD_Daemon *daemon;
    char *certificate, *key; /* PEM */
    int port;
    int stop_fd; /* eventfd: end */
    pthread_t thread;
    bool thread_started;
    slot slots[]; /* config.connections of them */
};

sl_http_config sl_http_config_default(void)
{
    return (sl_http_config){ .connections = DEFAULT_CONNECTIONS,
                             .lifetime_ns = DEFAULT_LIFETIME_NS };
}

/* --- the address --- */

/* "[::1]:80" and "127.0.0.1:80" come apart at the last colon; "80" is loopback's. */
static sl_status split_address(const char *address, char host[HOST_BYTES], const char **port,
                               sl_error *err)
{
    const char *colon = strrchr(address, ':');
    size_t length = colon ? (size_t)(colon - address) : 0;
    const char *from = address;
    char *end = NULL;

    snprintf(host, HOST_BYTES, "127.0.0.1");
    *port = colon ? colon + 1 : address;
    if (colon && length >= 2 && address[0] == '[' && colon[-1] == ']') {
        from++;
        length -= 2;
    }
    if (colon && length > 0 && length < HOST_BYTES) {
        memcpy(host, from, length);
        host[length] = '\0';
    }
    const long number = strtol(*port, &end, 10);
    if ((colon && (length == 0 || length >= HOST_BYTES)) || (*port)[0] < '0' || (*port)[0] > '9' ||
        *end || number > 65535)
        return sl_fail(err, SL_ERR_INVALID,
                       "HTTP address \"%.80s\": expected PORT, ADDRESS:PORT or [ADDRESS]:PORT",
                       address);
    return SL_OK;
}

static sl_status find_address(const char *address, struct addrinfo **out, sl_error *err)
{
    static const struct addrinfo hints = { .ai_family = AF_UNSPEC,
                                           .ai_socktype = SOCK_STREAM,
                                           .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
    char host[HOST_BYTES];
    const char *port;
    sl_status status = split_address(address, host, &port, err);

    if (status != SL_OK)
        return status;
    const int code = getaddrinfo(host, port, &hints, out);
    if (code != 0)
        return sl_fail(err, SL_ERR_INVALID, "HTTP address \"%.80s\": %s", address,
                       gai_strerror(code));
    return SL_OK;
}

static sl_status open_listener(int *out, const char *address, sl_error *err)
{
    struct addrinfo *found = NULL;
    const int on = 1;
    int fd = -1;
    sl_status status = find_address(address, &found, err);

    if (status != SL_OK)
        return status;
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        status = sl_fail_errno(err, "could not listen for HTTP on \"%s\"", address);
        goto done;
    }
    *out = fd;
    fd = -1;
done:
    if (fd >= 0)
        close(fd);
    freeaddrinfo(found);
    return status;
}

static sl_status read_pem(char **out, const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    struct stat st;
    char *text = NULL;
    size_t used = 0;
    ssize_t n = 1;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st) != 0) {
        status = sl_fail_errno(err, "could not open \"%s\"", path);
        goto done;
    }
    if (!S_ISREG(st.st_mode) || st.st_size < 1 || st.st_size > PEM_LIMIT_BYTES) {
        status = sl_fail(err, SL_ERR_INVALID, "\"%s\" is no PEM file", path);
        goto done;
    }
    text = calloc(1, (size_t)st.st_size + 1);
    if (!text) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", path);
        goto done;
    }
    while (used < (size_t)st.st_size && n > 0) {
        n = read(fd, text + used, (size_t)st.st_size - used);
        used += n > 0 ? (size_t)n : 0;
    }
    if (n < 0) {
        status = sl_fail_errno(err, "could not read \"%s\"", path);
        goto done;
    }
    *out = text;
    text = NULL;
done:
    if (fd >= 0)
        close(fd);
    free(text);
    return status;
}

/* --- a request; the thread's --- */

static enum MHD_Result reply(struct MHD_Connection *connection, unsigned code, const char *type,
                             char *text, size_t size)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(size, text, MHD_RESPMEM_MUST_FREE);

    if (!response) {
        free(text);
        return MHD_NO;
    }
    enum MHD_Result ok = MHD_add_response_header(response, "Content-Type", type);
    if (ok == MHD_YES)
        ok = MHD_add_response_header(response, "Connection", "close");
    if (ok == MHD_YES)
        ok = MHD_add_response_header(response, "Cache-Control", "no-store");
    if (ok == MHD_YES)
        ok = MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (ok == MHD_YES)
        ok = MHD_add_response_header(response, "Content-Security-Policy",
                                     "default-src 'none'; style-src 'unsafe-inline'");
    if (ok == MHD_YES && code == MHD_HTTP_METHOD_NOT_ALLOWED)
        ok = MHD_add_response_header(response, "Allow", "GET, HEAD");
    if (ok == MHD_YES)
        ok = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return ok;
}

static enum MHD_Result reply_line(struct MHD_Connection *connection, unsigned code,
                                  const char *line)
{
    char *text = strdup(line);

    return text ? reply(connection, code, "text/plain; charset=utf-8", text, strlen(text)) : MHD_NO;
}

/* Nothing that a client sends behind its headers is looked at: the answer closes the
 * connection. */
static enum MHD_Result answer(void *arg, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *data_bytes, void **state)
{
    const sl_http *http = arg;
    const char *type = "text/plain; charset=utf-8";
    unsigned code = MHD_HTTP_OK;
    char *text = NULL;
    size_t size = 0;
    bool ready = true;

    (void)version;
    (void)data;
    (void)data_bytes;
    (void)state;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return reply_line(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
    if (strcmp(url, "/healthz") == 0)
        return reply_line(connection, MHD_HTTP_OK, "ok\n");
    if (strcmp(url, "/readyz") == 0) {
        text = sl_http_readiness(&http->config, &ready, &size);
        code = ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
    } else if (strcmp(url, "/metrics") == 0) {
        text = sl_http_metrics(&http->config, &size);
        type = "text/plain; version=0.0.4; charset=utf-8";
    } else if (strcmp(url, "/") == 0) {
        text = sl_http_status_page(&http->config, &size);
        type = "text/html; charset=utf-8";
    } else {
        return reply_line(connection, MHD_HTTP_NOT_FOUND,
                          "there are /, /metrics, /healthz and /readyz\n");
    }
    if (!text)
        return reply_line(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory\n");
    return reply(connection, code, type, text, size);
}

/* --- connections; the thread's --- */

static void note_connection(void *arg, struct MHD_Connection *connection, void **context,
                            enum MHD_ConnectionNotificationCode code)
{
    sl_http *http = arg;

    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        slot *mine = *context;
        if (mine)
            mine->fd = -1;
        *context = NULL;
        return;
    }
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    for (int i = 0; info && i < http->config.connections; i++) {
        slot *one = &http->slots[i];
        if (one->fd >= 0)
            continue;
        one->fd = info->connect_fd;
        one->deadline_ns = sl_clock_deadline_ns(http->config.lifetime_ns);
        *context = one;
        return;
    }
}

/* Ends those whose time is up: MHD's own time-out starts again with each byte.  Returns
 * when to look again. */
static int64_t shut_old(sl_http *http)
{
    const int64_t now_ns = sl_clock_now_ns();
    int64_t next_ns = INT64_MAX;

    for (int i = 0; i < http->config.connections; i++) {
        slot *one = &http->slots[i];
        if (one->fd < 0)
            continue;
        if (one->deadline_ns <= now_ns) {
            shutdown(one->fd, SHUT_RDWR); /* MHD sees its end, and closes it */
            one->deadline_ns = INT64_MAX;
        }
        if (one->deadline_ns < next_ns)
            next_ns = one->deadline_ns;
    }
    return next_ns;
}

/* How long poll may wait, in milliseconds; -1: for ever. */
static int wait_ms(const sl_http *http, int64_t next_ns)
{
    MHD_UNSIGNED_LONG_LONG most = 0;
    int64_t ms = -1;

    if (next_ns != INT64_MAX) {
        ms = (next_ns - sl_clock_now_ns()) / SL_NS_PER_MS + 1;
        ms = ms < 0 ? 0 : ms;
    }
    if (MHD_get_timeout(http->daemon, &most) == MHD_YES && (ms < 0 || (int64_t)most < ms))
        ms = (int64_t)most;
    return ms > 60000 ? 60000 : (int)ms;
}

static void *serve(void *arg)
{
    sl_http *http = arg;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    struct pollfd fds[] = { { .fd = http->stop_fd, .events = POLLIN },
                            { .fd = info ? info->epoll_fd : -1, .events = POLLIN } };

    while (!(fds[0].revents & POLLIN)) {
        MHD_run(http->daemon);
        if (poll(fds, SL_COUNT(fds), wait_ms(http, shut_old(http))) < 0)
            fds[0].revents = 0; /* interrupted */
    }
    return NULL;
}

/* --- life --- */

static sl_status start_daemon(sl_http *http, int listener, sl_error *err)
{
    const bool tls = http->certificate != NULL;
    const struct MHD_OptionItem with_tls[] = {
        { MHD_OPTION_HTTPS_MEM_CERT, 0, http->certificate },
        { MHD_OPTION_HTTPS_MEM_KEY, 0, http->key },
        { MHD_OPTION_END, 0, NULL },
    };
    const struct MHD_OptionItem without[] = { { MHD_OPTION_END, 0, NULL } };
    const unsigned limit = (unsigned)http->config.connections;

    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | (tls ? MHD_USE_TLS : 0), 0, NULL, NULL, answer, http,
        MHD_OPTION_LISTEN_SOCKET, listener, MHD_OPTION_CONNECTION_LIMIT, limit,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, limit - limit / 4, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)HEADER_BYTES, MHD_OPTION_NOTIFY_CONNECTION, note_connection, http, MHD_OPTION_ARRAY,
        tls ? with_tls : without, MHD_OPTION_END);
    if (http->daemon)
        return SL_OK;
    /* Whose the listener is now MHD does not say; the process ends for want of a door. */
    return sl_fail(err, SL_ERR_INVALID, "could not start HTTP on \"%s\"%s", http->config.address,
                   tls ? ": is the certificate one, and the key its own?" : "");
}

static sl_status start_thread(sl_http *http, sl_error *err)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    char port[8] = "0";
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_LISTEN_FD);

    if (info && getsockname(info->listen_fd, (struct sockaddr *)&address, &length) == 0)
        getnameinfo((struct sockaddr *)&address, length, NULL, 0, port, sizeof port,
                    NI_NUMERICSERV);
    http->port = atoi(port);
    http->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (http->stop_fd < 0)
        return sl_fail_errno(err, "could not make an eventfd");
    const int code = pthread_create(&http->thread, NULL, serve, http);
    if (code != 0) {
        errno = code;
        return sl_fail_errno(err, "could not start the HTTP thread");
    }
    http->thread_started = true;
    return SL_OK;
}

sl_status sl_http_create(sl_http **out, const sl_http_config *config, sl_error *err)
{
    sl_status status = SL_OK;
    int listener = -1;
    sl_http *http = calloc(1, sizeof *http + (size_t)config->connections * sizeof http->slots[0]);

    if (!http)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for HTTP");
    http->config = *config;
    http->stop_fd = -1;
    for (int i = 0; i < config->connections; i++)
        http->slots[i].fd = -1;
    if (config->certificate)
        status = read_pem(&http->certificate, config->certificate, err);
    if (status == SL_OK && config->certificate)
        status = read_pem(&http->key, config->key, err);
    if (status == SL_OK)
        status = open_listener(&listener, config->address, err);
    if (status == SL_OK)
        status = start_daemon(http, listener, err);
    if (status == SL_OK)
        status = start_thread(http, err);
    if (status != SL_OK)
        goto done;
    sl_log(SL_LOG_INFO, "http", "address=\"%s\" port=%d tls=%d", config->address, http->port,
           config->certificate != NULL);
    *out = http;
    http = NULL;
done:
    sl_http_destroy(http);
    return status;
}

void sl_http_destroy(sl_http *http)
{
    const uint64_t one = 1;

    if (!http)
        return;
    if (http->thread_started && write(http->stop_fd, &one, sizeof one) == sizeof one)
        pthread_join(http->thread, NULL);
    if (http->daemon)
        MHD_stop_daemon(http->daemon);
    if (http->stop_fd >= 0)
        close(http->stop_fd);
    free(http->certificate);
    if (http->key)
        explicit_bzero(http->key, strlen(http->key));
    free(http->key);
    free(http);
}

int sl_http_port(const sl_http *http)
{
    return http->port;
}
