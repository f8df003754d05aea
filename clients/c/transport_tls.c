/* transport_tls.c - TLS 1.3 over TCP, as a client's transport.
 *
 * The socket never blocks; OpenSSL says what it waits for and sl_wait_fd waits for
 * that, so every operation ends by its deadline.  Only the look-up of a host's name
 * has the resolver's own deadline.
 */
#include "clients/c/transport.h"

#include "base/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A network that is away makes TCP wait longer and longer; so a connection whose peer
 * does not answer is given up, and another is tried again and again. */
enum { SILENCE_MS = 6000, PROBE_AFTER_S = 4, PROBE_EVERY_S = 2, PROBES = 2 };
#define CONNECT_NS (3 * SL_NS_PER_S) /* of one try */

enum { HOST_BYTES = 256, PORT_BYTES = 8, ADDRESS_BYTES = 300 };

typedef struct {
    sl_transport base;
    char address[ADDRESS_BYTES]; /* as the user wrote it */
    char host[HOST_BYTES], port[PORT_BYTES];
    char *server_name; /* that the certificate must have */
    SSL_CTX *ctx;
    SSL *ssl; /* NULL: not open */
    int fd;   /* -1: not open */
} tls_transport;

/* --- failures --- */

/* "tlsv13 alert certificate required" without the words that nobody needs. */
static const char *alert_text(const char *reason)
{
    static const char mark[] = " alert ";
    const char *at = reason ? strstr(reason, mark) : NULL;

    return at ? at + strlen(mark) : reason ? reason : "no reason given";
}

/* Of the last operation of OpenSSL.  A certificate that is wrong stays wrong; a
 * connection that broke may come again. */
static sl_status fail_ssl(const tls_transport *self, int result, const char *doing, sl_error *err)
{
    const int code = errno, kind = SSL_get_error(self->ssl, result);
    const unsigned long error = ERR_peek_error();
    const long verify = SSL_get_verify_result(self->ssl);
    const char *reason = ERR_reason_error_string(error);
    sl_status status = SL_OK;

    if (kind == SSL_ERROR_SSL && verify != X509_V_OK)
        status = sl_fail(err, SL_ERR_UNAUTHENTICATED,
                         "the certificate of \"%s\" is not to be trusted: %s", self->address,
                         X509_verify_cert_error_string(verify));
    else if (kind == SSL_ERROR_SSL && ERR_GET_REASON(error) > SSL_AD_REASON_OFFSET)
        status = sl_fail(err, SL_ERR_UNAUTHENTICATED, "\"%s\" refused the connection: %s",
                         self->address, alert_text(reason));
    else if (kind == SSL_ERROR_SSL && ERR_GET_REASON(error) != SSL_R_UNEXPECTED_EOF_WHILE_READING)
        status = sl_fail(err, SL_ERR_DATA, "TLS with \"%s\" broke while %s it: %s", self->address,
                         doing, reason ? reason : "unknown reason");
    else
        status = sl_fail(err, SL_ERR_UNAVAILABLE, "connection lost while %s sluiced at \"%s\"%s%s",
                         doing, self->address, kind == SSL_ERROR_SYSCALL && code ? ": " : "",
                         kind == SSL_ERROR_SYSCALL && code ? strerror(code) : "");
    ERR_clear_error();
    return status;
}

/* After an operation that did not get on: waits for what it needs. */
static sl_status wait_ssl(const tls_transport *self, int result, const char *doing,
                          const sl_wait *wait, sl_error *err)
{
    switch (SSL_get_error(self->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        return sl_wait_fd(wait, self->fd, POLLIN, doing, self->address, err);
    case SSL_ERROR_WANT_WRITE:
        return sl_wait_fd(wait, self->fd, POLLOUT, doing, self->address, err);
    default:
        return fail_ssl(self, result, doing, err);
    }
}

/* --- opening --- */

static void tls_close(sl_transport *transport)
{
    tls_transport *self = (tls_transport *)transport;

    if (self->ssl && SSL_is_init_finished(self->ssl))
        SSL_shutdown(self->ssl);
    ERR_clear_error();
    SSL_free(self->ssl);
    self->ssl = NULL;
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
}

static void set_options(int fd)
{
    const struct {
        int level, name, value;
    } options[] = { { IPPROTO_TCP, TCP_NODELAY, 1 },
                    { SOL_SOCKET, SO_KEEPALIVE, 1 },
                    { IPPROTO_TCP, TCP_KEEPIDLE, PROBE_AFTER_S },
                    { IPPROTO_TCP, TCP_KEEPINTVL, PROBE_EVERY_S },
                    { IPPROTO_TCP, TCP_KEEPCNT, PROBES },
                    { IPPROTO_TCP, TCP_USER_TIMEOUT, SILENCE_MS } };

    for (size_t i = 0; i < SL_COUNT(options); i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value,
                   sizeof options[i].value);
}

static sl_status connect_to(tls_transport *self, const struct addrinfo *info, const sl_wait *wait,
                            sl_error *err)
{
    sl_wait brief = *wait;
    int code = 0;
    socklen_t size = sizeof code;

    if (brief.deadline_ns > sl_clock_deadline_ns(CONNECT_NS))
        brief.deadline_ns = sl_clock_deadline_ns(CONNECT_NS);
    self->fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (self->fd < 0)
        return sl_fail_errno(err, "could not create a socket");
    if (connect(self->fd, info->ai_addr, info->ai_addrlen) != 0) {
        if (errno == EINPROGRESS || errno == EINTR) {
            const sl_status status =
                sl_wait_fd(&brief, self->fd, POLLOUT, "connecting to", self->address, err);
            if (status == SL_ERR_TIMEOUT && brief.deadline_ns < wait->deadline_ns)
                return sl_fail(err, SL_ERR_UNAVAILABLE,
                               "could not connect to sluiced at \"%s\": no answer",
                               self->address);
            if (status != SL_OK)
                return status;
            if (getsockopt(self->fd, SOL_SOCKET, SO_ERROR, &code, &size) != 0)
                code = errno;
        } else {
            code = errno;
        }
    }
    if (code != 0)
        return sl_fail(err, SL_ERR_UNAVAILABLE, "could not connect to sluiced at \"%s\": %s%s",
                       self->address, strerror(code),
                       code == ECONNREFUSED ? " (is the daemon running?)" : "");
    set_options(self->fd);
    return SL_OK;
}

/* The addresses of the host in turn. */
static sl_status connect_any(tls_transport *self, const sl_wait *wait, sl_error *err)
{
    const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
    struct addrinfo *info = NULL;
    sl_status status = SL_ERR_UNAVAILABLE;
    const int code = getaddrinfo(self->host, self->port, &hints, &info);

    if (code != 0)
        return sl_fail(err, SL_ERR_UNAVAILABLE, "could not find the host of \"%s\": %s",
                       self->address, gai_strerror(code));
    for (const struct addrinfo *at = info; at; at = at->ai_next) {
        status = connect_to(self, at, wait, err);
        if (status != SL_ERR_UNAVAILABLE)
            break;
        close(self->fd);
        self->fd = -1;
    }
    freeaddrinfo(info);
    return status;
}

static sl_status shake_hands(tls_transport *self, const sl_wait *wait, sl_error *err)
{
    unsigned char numeric[16];
    const bool is_ip = inet_pton(AF_INET, self->server_name, numeric) == 1
                       || inet_pton(AF_INET6, self->server_name, numeric) == 1;
    sl_status status = SL_OK;

    self->ssl = SSL_new(self->ctx);
    if (!self->ssl || SSL_set_fd(self->ssl, self->fd) != 1
        || (is_ip ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(self->ssl), self->server_name)
                  : SSL_set1_host(self->ssl, self->server_name)
                        & (int)SSL_set_tlsext_host_name(self->ssl, self->server_name))
               != 1) {
        ERR_clear_error();
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for TLS with \"%s\"", self->address);
    }
    while (status == SL_OK) {
        ERR_clear_error();
        errno = 0;
        const int result = SSL_connect(self->ssl);
        if (result == 1)
            return SL_OK;
        status = wait_ssl(self, result, "shaking hands with", wait, err);
    }
    return status;
}

static sl_status tls_open(sl_transport *transport, const sl_wait *wait, sl_error *err)
{
    tls_transport *self = (tls_transport *)transport;

    tls_close(transport);
    sl_status status = connect_any(self, wait, err);
    if (status == SL_OK)
        status = shake_hands(self, wait, err);
    if (status != SL_OK)
        tls_close(transport);
    return status;
}

/* --- bytes --- */

static sl_status tls_write(sl_transport *transport, const void *data, size_t size_bytes,
                           const sl_wait *wait, sl_error *err)
{
    const tls_transport *self = (tls_transport *)transport;
    const uint8_t *at = data;

    while (size_bytes > 0) {
        size_t n = 0;
        ERR_clear_error();
        errno = 0;
        const int result = SSL_write_ex(self->ssl, at, size_bytes, &n);
        if (result != 1) {
            const sl_status status = wait_ssl(self, result, "sending to", wait, err);
            if (status != SL_OK)
                return status;
            continue;
        }
        at += n;
        size_bytes -= n;
    }
    return SL_OK;
}

static sl_status tls_read(sl_transport *transport, void *data, size_t size_bytes,
                          const sl_wait *wait, sl_error *err)
{
    const tls_transport *self = (tls_transport *)transport;
    uint8_t *at = data;

    while (size_bytes > 0) {
        size_t n = 0;
        ERR_clear_error();
        errno = 0;
        const int result = SSL_read_ex(self->ssl, at, size_bytes, &n);
        if (result != 1) {
            const sl_status status = wait_ssl(self, result, "waiting for", wait, err);
            if (status != SL_OK)
                return status;
            continue;
        }
        at += n;
        size_bytes -= n;
    }
    return SL_OK;
}

static void tls_destroy(sl_transport *transport)
{
    tls_transport *self = (tls_transport *)transport;

    tls_close(transport);
    SSL_CTX_free(self->ctx);
    free(self->server_name);
    free(self);
}

static const sl_transport_ops tls_ops = {
    .length_mark = false,
    .gone_ns = 60 * SL_NS_PER_S,
    .open = tls_open,
    .write = tls_write,
    .read = tls_read,
    .close = tls_close,
    .destroy = tls_destroy,
};

/* --- life --- */

static sl_status fail_file(const char *what, const char *path, sl_error *err)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());
    const sl_status status = sl_fail(err, SL_ERR_INVALID, "could not use the %s \"%s\": %s", what,
                                     path, reason ? reason : "it is not what was expected");

    ERR_clear_error();
    return status;
}

static sl_status load_files(tls_transport *self, const sl_client_options *options, sl_error *err)
{
    SSL_CTX_set_verify(self->ctx, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_load_verify_file(self->ctx, options->ca) != 1)
        return fail_file("CA certificate", options->ca, err);
    if (!options->cert && !options->key)
        return SL_OK;
    if (!options->cert || !options->key)
        return sl_fail(err, SL_ERR_INVALID, "certificate and key belong together, only \"%s\" is given",
                       options->cert ? options->cert : options->key);
    if (SSL_CTX_use_certificate_chain_file(self->ctx, options->cert) != 1)
        return fail_file("certificate", options->cert, err);
    if (SSL_CTX_use_PrivateKey_file(self->ctx, options->key, SSL_FILETYPE_PEM) != 1
        || SSL_CTX_check_private_key(self->ctx) != 1)
        return fail_file("key", options->key, err);
    return SL_OK;
}

/* "host:port" or "[v6]:port" after the scheme. */
static bool split_address(tls_transport *self, const char *text)
{
    const char *colon = strrchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;

    if (!colon || strlen(colon + 1) == 0 || strlen(colon + 1) >= sizeof self->port
        || strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return false;
    snprintf(self->port, sizeof self->port, "%s", colon + 1);
    if (text[0] == '[' && length > 2 && text[length - 1] == ']') {
        text++;
        length -= 2;
    } else if (memchr(text, ':', length)) {
        return false;
    }
    if (length == 0 || length >= sizeof self->host)
        return false;
    memcpy(self->host, text, length);
    self->host[length] = '\0';
    return true;
}

sl_status sl_transport_create_tls(sl_transport **out, const sl_client_options *options,
                                  sl_error *err)
{
    sl_status status = SL_OK;
    tls_transport *self = calloc(1, sizeof *self);

    if (!self)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a connection");
    self->fd = -1;
    self->base = (sl_transport){ .ops = &tls_ops, .address = self->address };
    snprintf(self->address, sizeof self->address, "%s", options->address);
    if (!split_address(self, options->address + strlen(SL_TLS_SCHEME))) {
        status = sl_fail(err, SL_ERR_INVALID, "address \"%s\": expected " SL_TLS_SCHEME "HOST:PORT",
                         options->address);
        goto done;
    }
    if (!options->ca) {
        status = sl_fail(err, SL_ERR_INVALID,
                         "\"%s\" needs a CA certificate that the daemon's is checked against",
                         options->address);
        goto done;
    }
    self->server_name = strdup(options->server_name ? options->server_name : self->host);
    self->ctx = SSL_CTX_new(TLS_client_method());
    if (!self->server_name || !self->ctx
        || SSL_CTX_set_min_proto_version(self->ctx, TLS1_3_VERSION) != 1) {
        ERR_clear_error();
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for TLS");
        goto done;
    }
    SSL_CTX_set_mode(self->ctx,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    status = load_files(self, options, err);
    if (status != SL_OK)
        goto done;
    *out = &self->base;
    self = NULL;
done:
    if (self)
        tls_destroy(&self->base);
    return status;
}
