/* transport_tls.c - TLS over TCP, as the front's transport.
 *
 *   handshake --first read or write that needs no more of it--> open
 *      any --broken or closed by the peer--> ended (every read and write says so)
 *
 * The handshake is driven by the front's reads and writes, so its deadline is
 * that of the greeting.  A certificate is looked at three times: by OpenSSL in the
 * handshake (issuer, dates, revoked), once for the name and role in it, and again,
 * with those above it, whenever keys were replaced or one may have expired.
 */
#include "service/transport_tls.h"

#include "base/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BACKLOG = 512,
    HOST_BYTES = 256,
};

typedef struct {
    sl_listener base;
    sl_tls *tls;
} tls_listener;

typedef struct {
    SSL *ssl;
    sl_tls *tls;
    sl_tls_keys *keys; /* the handshake's */
    char address[SL_ADDRESS_BYTES];
    bool ended;
    bool shaken;     /* its handshake is over, in whatever way, and was counted */
    bool trusted;    /* also without a certificate */
    int chain_count; /* 0: it has shown no certificate */
    sl_tls_fingerprint chain[SL_TLS_CHAIN]; /* its own first */
    time_t not_after;                       /* of the first to expire */
    unsigned generation;                    /* of the keys that chain was last held against */
} tls_connection;

/* --- bytes --- */

/* Why the handshake failed: what is wrong with the client's certificate, or OpenSSL's
 * word for it. */
static const char *handshake_reason(const tls_connection *c)
{
    const long verify = SSL_get_verify_result(c->ssl);
    const char *reason = ERR_reason_error_string(ERR_peek_error());

    if (verify != X509_V_OK)
        return X509_verify_cert_error_string(verify);
    return reason ? reason : "not the TLS protocol";
}

static void count_handshake(tls_connection *c, sl_door_count how)
{
    if (!c->shaken)
        sl_door_add(sl_tls_door(c->tls), how, 1);
    c->shaken = true;
}

/* OpenSSL calls it at each step of a connection, and for each alert. */
static void on_info(const SSL *ssl, int where, int value)
{
    tls_connection *c = SSL_get_app_data(ssl);
    const bool goodbye = (value & 0xff) == SSL_AD_CLOSE_NOTIFY;

    if (where & SSL_CB_HANDSHAKE_DONE)
        count_handshake(c, SL_DOOR_SHAKEN);
    else if ((where & SSL_CB_ALERT) && !goodbye)
        sl_door_add(sl_tls_door(c->tls),
                    where & SSL_CB_WRITE ? SL_DOOR_ALERT_SENT : SL_DOOR_ALERT_CAME, 1);
}

static void note_broken(tls_connection *c)
{
    const int reason = ERR_GET_REASON(ERR_peek_error());

    if (reason == SSL_R_UNEXPECTED_EOF_WHILE_READING)
        return;
    count_handshake(c, SSL_get_verify_result(c->ssl) != X509_V_OK ||
                               reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE
                           ? SL_DOOR_SHAKEN_REFUSED
                           : SL_DOOR_SHAKEN_PROTOCOL);
    sl_tls_note_refused(c->tls, c->address, handshake_reason(c));
}

static sl_io from_ssl(tls_connection *c, int result)
{
    const bool shaking = !SSL_is_init_finished(c->ssl);

    switch (SSL_get_error(c->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        return SL_IO_WAIT_READ;
    case SSL_ERROR_WANT_WRITE:
        return SL_IO_WAIT_WRITE;
    case SSL_ERROR_SSL:
        if (shaking)
            note_broken(c);
        break;
    default: /* closed, in whatever way */
        break;
    }
    ERR_clear_error();
    c->ended = true;
    return SL_IO_END;
}

static sl_io tls_read(sl_transport *transport, uint8_t *at, size_t room, size_t *count)
{
    tls_connection *c = transport->state;

    if (c->ended)
        return SL_IO_END;
    const int result = SSL_read_ex(c->ssl, at, room, count);
    return result == 1 ? SL_IO_DONE : from_ssl(c, result);
}

static sl_io tls_write(sl_transport *transport, const uint8_t *at, size_t size, size_t *count)
{
    tls_connection *c = transport->state;

    if (c->ended)
        return SL_IO_END;
    const int result = SSL_write_ex(c->ssl, at, size, count);
    return result == 1 ? SL_IO_DONE : from_ssl(c, result);
}

static bool tls_pending(const sl_transport *transport)
{
    const tls_connection *c = transport->state;

    return SSL_pending(c->ssl) > 0;
}

/* Closing with bytes unread resets the connection, and the peer might never see the
 * alert that says why it was refused. */
static void drain(int fd)
{
    uint8_t bytes[4096];

    for (int i = 0; i < 8 && recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0; i++)
        ;
}

static void tls_close(sl_transport *transport)
{
    tls_connection *c = transport->state;

    count_handshake(c, SL_DOOR_SHAKEN_LEFT);
    if (c->ssl && !c->ended && SSL_is_init_finished(c->ssl))
        SSL_shutdown(c->ssl); /* a word to the peer; nobody waits for its answer */
    else if (c->ended)
        drain(transport->fd);
    ERR_clear_error();
    SSL_free(c->ssl);
    sl_tls_keys_release(c->keys);
    free(c);
    close(transport->fd);
    transport->fd = -1;
}

/* --- who it is --- */

/* The only entry of a kind in the name; false if there is none, or several, or it
 * is no plain text that fits. */
static bool take_entry(const X509_NAME *subject, int nid, char *out, size_t room)
{
    const int at = X509_NAME_get_index_by_NID(subject, nid, -1);
    unsigned char *text = NULL;

    if (at < 0 || X509_NAME_get_index_by_NID(subject, nid, at) >= 0)
        return false;
    const int length =
        ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
    const bool fits =
        length > 0 && (size_t)length < room && sl_name_valid((const char *)text, (size_t)length);
    if (fits) {
        memcpy(out, text, (size_t)length);
        out[length] = '\0';
    }
    OPENSSL_free(text);
    ERR_clear_error();
    return fits;
}

static sl_status read_subject(X509 *certificate, sl_peer *out, sl_error *err)
{
    const X509_NAME *subject = X509_get_subject_name(certificate);
    char name[SL_NAME_BYTES], role[16];

    if (!take_entry(subject, NID_commonName, name, sizeof name))
        return sl_fail(err, SL_ERR_UNAUTHENTICATED,
                       "the client's certificate has no name (CN) of 1 to %d letters, digits and "
                       "._@+-",
                       SL_NAME_BYTES - 1);
    snprintf(out->identity, sizeof out->identity, "cert:%s", name);
    if (!take_entry(subject, NID_organizationalUnitName, role, sizeof role) ||
        !sl_role_parse(role, &out->role))
        out->role = SL_ROLE_NONE; /* then a token is needed */
    return SL_OK;
}

/* The certificates by which the client's was found good. */
static sl_status read_chain(tls_connection *c, sl_error *err)
{
    STACK_OF(X509) *chain = SSL_get0_verified_chain(c->ssl);
    const int count = chain ? sk_X509_num(chain) : 0;
    uint8_t fingerprint[EVP_MAX_MD_SIZE];
    struct tm not_after;
    unsigned size = 0;

    if (count == 0 || count > SL_TLS_CHAIN)
        return sl_fail(err, SL_ERR_UNAUTHENTICATED,
                       "the client's certificate has %d above it, at most %d count", count - 1,
                       SL_TLS_CHAIN - 1);
    for (int i = 0; i < count; i++) {
        const X509 *certificate = sk_X509_value(chain, i);
        if (X509_digest(certificate, EVP_sha256(), fingerprint, &size) != 1 ||
            ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &not_after) != 1)
            return sl_fail(err, SL_ERR_UNAUTHENTICATED, "the client's certificate is not readable");
        memcpy(c->chain[i], fingerprint, sizeof c->chain[i]);
        const time_t end = timegm(&not_after);
        if (i == 0 || end < c->not_after)
            c->not_after = end;
    }
    c->chain_count = count;
    return SL_OK;
}

static sl_status tls_identify(sl_transport *transport, sl_peer *out, sl_error *err)
{
    tls_connection *c = transport->state;
    X509 *certificate = SSL_get1_peer_certificate(c->ssl);
    sl_status status = SL_OK;

    snprintf(out->address, sizeof out->address, "%s", c->address);
    if (!certificate) {
        out->role = c->trusted ? SL_ROLE_USER : SL_ROLE_NONE;
        snprintf(out->identity, sizeof out->identity, "%.*s", (int)transport->host_bytes,
                 transport->address);
        return SL_OK;
    }
    status = read_subject(certificate, out, err);
    if (status == SL_OK)
        status = read_chain(c, err);
    if (status != SL_OK)
        sl_tls_note_refused(c->tls, c->address, err->message);
    X509_free(certificate);
    return status;
}

static const char *tls_lapsed(sl_transport *transport)
{
    tls_connection *c = transport->state;
    const unsigned generation = sl_tls_generation(c->tls);
    const char *why = NULL;

    if (c->chain_count == 0)
        return NULL;
    if (time(NULL) > c->not_after)
        why = "its certificate has expired";
    if (!why && generation != c->generation) {
        sl_tls_keys *keys = sl_tls_hold(c->tls);
        why = sl_tls_judge(keys, c->chain, c->chain_count);
        sl_tls_keys_release(keys);
        c->generation = generation;
    }
    if (why)
        sl_tls_note_refused(c->tls, c->address, why);
    return why;
}

static const sl_transport_ops tls_ops = {
    .read = tls_read,
    .write = tls_write,
    .identify = tls_identify,
    .pending = tls_pending,
    .lapsed = tls_lapsed,
    .close = tls_close,
};

/* --- listening --- */

/* "tcp:10.0.0.7:40112" or "tcp:[fd00::7]:40112"; *host_bytes without the port. */
static void name_address(char *out, size_t room, size_t *host_bytes, const struct sockaddr *address)
{
    char host[INET6_ADDRSTRLEN] = "?"; /* of no address of the network: in tests */
    unsigned port = 0;

    if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)address;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        port = ntohs(in6->sin6_port);
    } else if (address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        port = ntohs(in->sin_port);
    }
    const char *fmt = address->sa_family == AF_INET6 ? "tcp:[%s]" : "tcp:%s";
    const int length = snprintf(out, room, fmt, host);
    *host_bytes = (size_t)length;
    snprintf(out + length, room - (size_t)length, ":%u", port);
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 ==
               IN_LOOPBACKNET;
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

static sl_status tls_accept(sl_listener *listener, int fd, sl_transport *out, sl_error *err)
{
    tls_listener *self = (tls_listener *)listener;
    struct sockaddr_storage address = { .ss_family = AF_UNSPEC };
    socklen_t size = sizeof address;
    const int on = 1;
    tls_connection *c = calloc(1, sizeof *c);

    if (!c) {
        close(fd);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a connection");
    }
    c->tls = self->tls;
    c->generation = sl_tls_generation(self->tls); /* before the keys: at worst one look too many */
    c->keys = sl_tls_hold(self->tls);
    c->ssl = SSL_new(sl_tls_keys_ctx(c->keys));
    *out = (sl_transport){ .ops = &tls_ops,
                           .framing = SL_SP_STREAM,
                           .fd = fd,
                           .greeting_ns = sl_tls_keys_handshake_ns(c->keys),
                           .state = c };
    if (!c->ssl || SSL_set_fd(c->ssl, fd) != 1 ||
        getpeername(fd, (struct sockaddr *)&address, &size) != 0) {
        tls_close(out);
        return sl_fail(err, SL_ERR_UNAVAILABLE, "could not begin TLS with a new connection");
    }
    SSL_set_accept_state(c->ssl);
    SSL_set_app_data(c->ssl, c);
    SSL_set_info_callback(c->ssl, on_info);
    c->trusted = sl_tls_trusts_loopback(c->tls) && is_loopback((const struct sockaddr *)&address);
    name_address(out->address, sizeof out->address, &out->host_bytes,
                 (const struct sockaddr *)&address);
    memcpy(c->address, out->address, sizeof c->address);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    return SL_OK;
}

static void tls_listener_close(sl_listener *listener)
{
    if (listener->fd >= 0)
        close(listener->fd);
    listener->fd = -1;
    free(listener);
}

/* "0.0.0.0:7437", "[::]:7437", "gpu1.lan:7437" */
static bool split_address(const char *text, char *host, size_t room, const char **port)
{
    const char *colon = strrchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;

    if (!colon || colon[1] < '0' || colon[1] > '9')
        return false;
    *port = colon + 1;
    if (text[0] == '[' && length > 2 && text[length - 1] == ']') {
        text++;
        length -= 2;
    } else if (memchr(text, ':', length)) {
        return false;
    }
    if (length == 0 || length >= room)
        return false;
    memcpy(host, text, length);
    host[length] = '\0';
    return true;
}

static int bind_to(const struct addrinfo *info)
{
    const int on = 1;
    const int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (info->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, info->ai_addr, info->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    const int code = errno;
    close(fd);
    errno = code;
    return -1;
}

sl_status sl_tls_listen(sl_listener **out, const char *address, sl_tls *tls, sl_error *err)
{
    const struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM };
    struct addrinfo *info = NULL;
    struct sockaddr_storage bound = { .ss_family = AF_UNSPEC };
    socklen_t size = sizeof bound;
    char host[HOST_BYTES], name[SL_ADDRESS_BYTES];
    const char *port = NULL;
    size_t host_bytes = 0;
    tls_listener *self = NULL;
    sl_status status = SL_OK;

    if (!split_address(address, host, sizeof host, &port))
        return sl_fail(err, SL_ERR_INVALID,
                       "address \"%s\": expected HOST:PORT, for instance 0.0.0.0:7437 or [::]:7437",
                       address);
    const int code = getaddrinfo(host, port, &hints, &info);
    if (code != 0)
        return sl_fail(err, SL_ERR_INVALID, "could not find the address \"%s\": %s", address,
                       gai_strerror(code));
    self = calloc(1, sizeof *self);
    if (!self) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a listener");
        goto done;
    }
    self->tls = tls;
    self->base = (sl_listener){ bind_to(info), tls_accept, tls_listener_close };
    if (self->base.fd < 0) {
        status = sl_fail_errno(err, "could not listen on \"%s\"", address);
        goto done;
    }
    if (getsockname(self->base.fd, (struct sockaddr *)&bound, &size) == 0) {
        name_address(name, sizeof name, &host_bytes, (const struct sockaddr *)&bound);
        sl_log(SL_LOG_INFO, "tls_listen", "address=%s", name);
    }
    *out = &self->base;
    self = NULL;
done:
    freeaddrinfo(info);
    if (self)
        tls_listener_close(&self->base);
    return status;
}
