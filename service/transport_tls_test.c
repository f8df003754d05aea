/* The front's TLS with clients that have certificates of many kinds. */
#include "service/transport_tls.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/test.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- certificates --- */

typedef struct {
    EVP_PKEY *key;
    X509 *certificate;
} pair;

/* issuer NULL: signed by itself.  A client has a role, others have none. */
static pair issue(const char *name, const char *role, const pair *issuer)
{
    static long serial = 1;
    pair p = { EVP_EC_gen("P-256"), X509_new() };
    X509_NAME *subject = X509_get_subject_name(p.certificate);
    X509_EXTENSION *ca = X509V3_EXT_conf_nid(NULL, NULL, NID_basic_constraints,
                                             role ? "critical,CA:FALSE" : "critical,CA:TRUE");

    X509_set_version(p.certificate, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(p.certificate), serial++);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name, -1, -1,
                               0);
    if (role)
        X509_NAME_add_entry_by_txt(subject, "OU", MBSTRING_UTF8, (const unsigned char *)role, -1,
                                   -1, 0);
    X509_set_issuer_name(p.certificate,
                         issuer ? X509_get_subject_name(issuer->certificate) : subject);
    X509_gmtime_adj(X509_getm_notBefore(p.certificate), -60);
    X509_gmtime_adj(X509_getm_notAfter(p.certificate), 3600);
    X509_set_pubkey(p.certificate, p.key);
    SL_CHECK(ca && X509_add_ext(p.certificate, ca, -1) == 1);
    X509_EXTENSION_free(ca);
    SL_CHECK(X509_sign(p.certificate, issuer ? issuer->key : p.key, EVP_sha256()) > 0);
    return p;
}

static void free_pair(pair *p)
{
    EVP_PKEY_free(p->key);
    X509_free(p->certificate);
}

static void write_certificate(const char *path, const pair *p)
{
    FILE *f = fopen(path, "w");

    SL_CHECK(f && PEM_write_X509(f, p->certificate) == 1 && fclose(f) == 0);
}

/* --- the server --- */

typedef struct {
    char dir[40], certificate[64], key[64], issuers[64], revoked[64];
    pair root, middle, alice, stranger; /* alice's issuer is middle, middle's is root */
    sl_door door;
    sl_tls *tls;
    sl_listener *listener;
    int port;
} server;

static sl_tls_keys *load_keys(const server *s, sl_tls_client_auth auth, sl_error *err)
{
    const sl_tls_config config = { .certificate = s->certificate,
                                   .key = s->key,
                                   .client_ca = s->issuers,
                                   .revoked = s->revoked,
                                   .client_auth = auth,
                                   .handshake_ns = SL_NS_PER_S };
    sl_tls_keys *keys = NULL;

    SL_CHECK_OK(sl_tls_keys_load(&keys, &config, err));
    return keys;
}

static void list_revoked(const server *s, const pair *p)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    FILE *f = fopen(s->revoked, "w");

    SL_CHECK(f != NULL);
    if (p && X509_digest(p->certificate, EVP_sha256(), digest, &size) == 1) {
        for (unsigned i = 0; i < size; i++)
            fprintf(f, "%02X%s", digest[i], i + 1 < size ? ":" : "  somebody\n");
    }
    SL_CHECK(fclose(f) == 0);
}

static void start(server *s, sl_tls_client_auth auth, sl_error *err)
{
    struct sockaddr_in address = { .sin_port = 0 };
    socklen_t size = sizeof address;

    *s = (server){ .dir = "/tmp/sl_tls_test_XXXXXX" };
    SL_CHECK(mkdtemp(s->dir) != NULL);
    snprintf(s->certificate, sizeof s->certificate, "%s/cert", s->dir);
    snprintf(s->key, sizeof s->key, "%s/key", s->dir);
    snprintf(s->issuers, sizeof s->issuers, "%s/issuers", s->dir);
    snprintf(s->revoked, sizeof s->revoked, "%s/revoked", s->dir);
    s->root = issue("root", NULL, NULL);
    s->middle = issue("middle", NULL, &s->root);
    s->alice = issue("alice", "admin", &s->middle);
    s->stranger = issue("stranger", "admin", NULL);
    write_certificate(s->certificate, &s->stranger);
    write_certificate(s->issuers, &s->root);
    list_revoked(s, NULL);
    const int fd = open(s->key, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    SL_CHECK(fd >= 0);
    FILE *f = fdopen(fd, "w");
    SL_CHECK(f && PEM_write_PrivateKey(f, s->stranger.key, NULL, NULL, 0, NULL, NULL) == 1 &&
             fclose(f) == 0);
    SL_CHECK_OK(sl_tls_create(&s->tls, load_keys(s, auth, err), NULL, err));
    sl_tls_set_door(s->tls, &s->door);
    SL_CHECK_OK(sl_tls_listen(&s->listener, "127.0.0.1:0", s->tls, err));
    SL_CHECK(getsockname(s->listener->fd, (struct sockaddr *)&address, &size) == 0);
    s->port = ntohs(address.sin_port);
}

static void stop(server *s)
{
    s->listener->close(s->listener);
    sl_tls_destroy(s->tls);
    free_pair(&s->root);
    free_pair(&s->middle);
    free_pair(&s->alice);
    free_pair(&s->stranger);
    unlink(s->certificate);
    unlink(s->key);
    unlink(s->issuers);
    unlink(s->revoked);
    rmdir(s->dir);
}

static uint64_t counted(const server *s, sl_door_count which)
{
    return sl_door_get(&s->door, which);
}

/* --- a connection, both ends --- */

typedef struct {
    sl_transport transport;
    SSL_CTX *ctx;
    SSL *client;
    int fd;
    sl_io io; /* of the server's last read */
} link_pair;

/* who NULL: without a certificate. */
static void dial(link_pair *l, const server *s, const pair *who, const pair *above, sl_error *err)
{
    const struct sockaddr_in to = { .sin_family = AF_INET,
                                    .sin_port = htons((uint16_t)s->port),
                                    .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct pollfd waits = { .fd = s->listener->fd, .events = POLLIN };

    *l = (link_pair){ .ctx = SSL_CTX_new(TLS_client_method()),
                      .fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) };
    SL_CHECK(connect(l->fd, (const struct sockaddr *)&to, sizeof to) == 0);
    SL_CHECK(fcntl(l->fd, F_SETFL, O_NONBLOCK) == 0 && poll(&waits, 1, 5000) == 1);
    const int fd = accept4(s->listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    SL_CHECK(fd >= 0);
    SL_CHECK_OK(s->listener->accept(s->listener, fd, &l->transport, err));
    if (who) {
        SSL_CTX_use_certificate(l->ctx, who->certificate);
        SSL_CTX_use_PrivateKey(l->ctx, who->key);
    }
    if (above)
        SSL_CTX_add1_chain_cert(l->ctx, above->certificate);
    l->client = SSL_new(l->ctx);
    SSL_set_fd(l->client, l->fd);
    SSL_set_connect_state(l->client);
}

static void hang_up(link_pair *l)
{
    if (l->transport.ops)
        l->transport.ops->close(&l->transport);
    SSL_free(l->client);
    SSL_CTX_free(l->ctx);
    close(l->fd);
}

/* Until a byte of the client's has come through, or the server ends it. */
static bool shake(link_pair *l)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(5 * SL_NS_PER_S);
    uint8_t byte = 'x', got = 0;
    bool sent = false;
    size_t count = 0;

    while (sl_clock_now_ns() < deadline_ns) {
        if (!sent)
            sent = SSL_write(l->client, &byte, 1) == 1;
        else
            SSL_read(l->client, &byte, 0);
        ERR_clear_error();
        l->io = l->transport.ops->read(&l->transport, &got, 1, &count);
        if (l->io == SL_IO_DONE)
            return got == 'x';
        if (l->io == SL_IO_END)
            return false;
        struct pollfd waits = { .fd = l->transport.fd, .events = POLLIN };
        poll(&waits, 1, 1);
    }
    return false;
}

/* --- tests --- */

/* Whoever is connected when a list or an issuer changes. */
SL_TEST(certificates_that_count_no_longer)
{
    server s;
    link_pair l;
    sl_peer peer;

    start(&s, SL_TLS_AUTH_REQUIRED, err);
    const struct {
        const pair *revoked, *issuer;
        const char *says; /* NULL: it stays */
    } cases[] = {
        { NULL, &s.root, NULL },
        { &s.stranger, &s.root, NULL },
        { &s.alice, &s.root, "its certificate was revoked" },
        { &s.middle, &s.root, "issuer was revoked" },
        { &s.root, &s.root, "issuer was revoked" },
        { NULL, &s.stranger, "not trusted any more" },
    };
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        list_revoked(&s, NULL);
        write_certificate(s.issuers, &s.root);
        sl_tls_take(s.tls, load_keys(&s, SL_TLS_AUTH_REQUIRED, err));
        dial(&l, &s, &s.alice, &s.middle, err);
        SL_CHECK(shake(&l));
        SL_CHECK_OK(l.transport.ops->identify(&l.transport, &peer, err));
        SL_CHECK(peer.role == SL_ROLE_ADMIN && strcmp(peer.identity, "cert:alice") == 0);
        SL_CHECK(l.transport.ops->lapsed(&l.transport) == NULL);
        list_revoked(&s, cases[i].revoked);
        write_certificate(s.issuers, cases[i].issuer);
        sl_tls_take(s.tls, load_keys(&s, SL_TLS_AUTH_REQUIRED, err));
        const char *why = l.transport.ops->lapsed(&l.transport);
        if (cases[i].says ? !why || !strstr(why, cases[i].says) : why != NULL)
            fail_msg("case %zu says \"%s\"", i, why ? why : "nothing");
        hang_up(&l);
        dial(&l, &s, &s.alice, &s.middle, err); /* and who comes now */
        SL_CHECK(shake(&l) == !cases[i].says);
        hang_up(&l);
    }
    stop(&s);
}

SL_TEST(handshakes_are_counted_by_how_they_end)
{
    server s;
    link_pair l;

    start(&s, SL_TLS_AUTH_REQUIRED, err);
    dial(&l, &s, &s.alice, &s.middle, err);
    SL_CHECK(shake(&l));
    hang_up(&l);
    SL_CHECK(counted(&s, SL_DOOR_SHAKEN) == 1 && counted(&s, SL_DOOR_ALERT_SENT) == 0);
    dial(&l, &s, &s.stranger, NULL, err);
    SL_CHECK(!shake(&l));
    hang_up(&l);
    dial(&l, &s, NULL, NULL, err);
    SL_CHECK(!shake(&l));
    hang_up(&l);
    SL_CHECK(counted(&s, SL_DOOR_SHAKEN_REFUSED) == 2 && counted(&s, SL_DOOR_ALERT_SENT) == 2);
    dial(&l, &s, NULL, NULL, err);
    SL_CHECK(send(l.fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL) == 18);
    SL_CHECK(!shake(&l));
    hang_up(&l);
    SL_CHECK(counted(&s, SL_DOOR_SHAKEN_PROTOCOL) == 1);
    dial(&l, &s, NULL, NULL, err);
    hang_up(&l);
    SL_CHECK(counted(&s, SL_DOOR_SHAKEN_LEFT) == 1);
    SL_CHECK(counted(&s, SL_DOOR_SHAKEN) == 1);
    stop(&s);
}

SL_TEST(without_a_certificate_loopback_alone_may_be_trusted)
{
    server s;
    link_pair l;
    sl_peer peer;

    start(&s, SL_TLS_AUTH_OPTIONAL, err);
    for (int trusted = 0; trusted < 2; trusted++) {
        if (trusted)
            sl_tls_trust_loopback(s.tls);
        dial(&l, &s, NULL, NULL, err);
        SL_CHECK(shake(&l));
        SL_CHECK_OK(l.transport.ops->identify(&l.transport, &peer, err));
        SL_CHECK(peer.role == (trusted ? SL_ROLE_USER : SL_ROLE_NONE));
        SL_CHECK(strcmp(peer.identity, "tcp:127.0.0.1") == 0);
        SL_CHECK(l.transport.ops->lapsed(&l.transport) == NULL);
        hang_up(&l);
    }
    dial(&l, &s, &s.alice, &s.middle, err);
    SL_CHECK(shake(&l));
    SL_CHECK_OK(l.transport.ops->identify(&l.transport, &peer, err));
    SL_CHECK(peer.role == SL_ROLE_ADMIN);
    hang_up(&l);

    /* A peer that is not on loopback: here one without any address. */
    int fds[2];
    SL_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    l = (link_pair){ .ctx = SSL_CTX_new(TLS_client_method()), .fd = fds[1] };
    SL_CHECK_OK(s.listener->accept(s.listener, fds[0], &l.transport, err));
    l.client = SSL_new(l.ctx);
    SSL_set_fd(l.client, l.fd);
    SSL_set_connect_state(l.client);
    SL_CHECK(shake(&l));
    SL_CHECK_OK(l.transport.ops->identify(&l.transport, &peer, err));
    SL_CHECK(peer.role == SL_ROLE_NONE);
    hang_up(&l);
    stop(&s);
}

/* Thousands of key updates at once: each costs as much as a small request, and none is
 * a byte for us.  One read must not go through all of them. */
SL_TEST(key_updates_keep_nobody_waiting)
{
    enum { UPDATES = 2000 };
    server s;
    link_pair l;
    uint8_t byte = 'y';
    size_t count = 0;
    int before = 0, after = 0, reads = 0;

    start(&s, SL_TLS_AUTH_OPTIONAL, err);
    dial(&l, &s, NULL, NULL, err);
    SL_CHECK(shake(&l));
    for (int i = 0; i < UPDATES; i++)
        SL_CHECK(SSL_key_update(l.client, SSL_KEY_UPDATE_NOT_REQUESTED) == 1 &&
                 SSL_do_handshake(l.client) == 1);
    SL_CHECK(SSL_write(l.client, &byte, 1) == 1);
    const int64_t deadline_ns = sl_clock_deadline_ns(5 * SL_NS_PER_S);
    while (before < UPDATES * 20 && sl_clock_now_ns() < deadline_ns)
        SL_CHECK(ioctl(l.transport.fd, FIONREAD, &before) == 0);
    SL_CHECK(l.transport.ops->read(&l.transport, &byte, 1, &count) == SL_IO_WAIT_READ);
    SL_CHECK(ioctl(l.transport.fd, FIONREAD, &after) == 0);
    SL_CHECK(before - after < 100);
    byte = 0;
    while (l.transport.ops->read(&l.transport, &byte, 1, &count) == SL_IO_WAIT_READ &&
           reads <= UPDATES + 10)
        reads++;
    SL_CHECK(byte == 'y' && reads <= UPDATES + 10);
    hang_up(&l);
    stop(&s);
}

static int quiet(void **state)
{
    (void)state;
    sl_log_set_level(SL_LOG_ERROR);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(certificates_that_count_no_longer),
        SL_RUN(handshakes_are_counted_by_how_they_end),
        SL_RUN(without_a_certificate_loopback_alone_may_be_trusted),
        SL_RUN(key_updates_keep_nobody_waiting),
    };

    return cmocka_run_group_tests(tests, quiet, NULL);
}
