#include "tests/fuzz/front_world.h"

#include "base/clock.h"
#include "base/log.h"
#include "service/transport_tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    FD_EPOLL = 1 << 20, /* descriptors from here on are ours */
    FD_WAKE,
    FD_UNIX,
    FD_TLS,
    FD_PEER,
    FD_END = FD_PEER + PEERS,
    SPIN = 2000, /* turns without getting on */
    LOOK_NS = 20000,
};
/* Certificates are good from 2020 to 2090, and the play begins half a year before their
 * end. */
#define ISSUED_S  ((time_t)1577836800)
#define EXPIRES_S ((time_t)3786912000)
#define BEGIN_S   (EXPIRES_S - (time_t)180 * 86400)

typedef struct {
    bool watched;
    uint32_t interest;
    uint64_t tag;
} watch;

world w;
sl_door door;

static watch watches[FD_END - FD_EPOLL];
static uint64_t random_state;
static sl_front *front;
static void *(*thread_run)(void *);
static void *thread_arg;
static bool thread_wanted; /* the next pthread_create is the front's */

static sl_tls *tls;                     /* the daemon's */
static sl_tls *tls_good, *tls_revoking; /* they keep a set of keys each */
static sl_listener *tls_listener;       /* a real one; only its accept is used */
static SSL_CTX *clients[KINDS];
static BIO_METHOD *pipe_method;

void must(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "fuzz_front: %s\n", what);
    abort();
}

/* --- pipes, and BIOs of them --- */

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

size_t pipe_put(pipe_bytes *p, const void *bytes, size_t count)
{
    const size_t end = (p->first + p->used) % PIPE_BYTES;

    count = least(count, PIPE_BYTES - p->used);
    if (count == 0)
        return 0;
    const size_t head = least(count, PIPE_BYTES - end);
    memcpy(p->bytes + end, bytes, head);
    memcpy(p->bytes, (const uint8_t *)bytes + head, count - head);
    p->used += count;
    w.moved++;
    return count;
}

size_t pipe_take(pipe_bytes *p, void *bytes, size_t room)
{
    const size_t count = least(room, p->used), head = least(count, PIPE_BYTES - p->first);

    if (count == 0)
        return 0;
    memcpy(bytes, p->bytes + p->first, head);
    memcpy((uint8_t *)bytes + head, p->bytes, count - head);
    p->first = (p->first + count) % PIPE_BYTES;
    p->used -= count;
    w.moved++;
    return count;
}

static peer *peer_of(int fd)
{
    must(fd >= FD_PEER && fd < FD_END && w.peers[fd - FD_PEER].used,
         "a descriptor that is not open is used");
    return &w.peers[fd - FD_PEER];
}

typedef struct {
    peer *peer;
    bool client; /* whose end */
} pipe_end;

static int bio_write(BIO *bio, const char *bytes, int count)
{
    const pipe_end *end = BIO_get_data(bio);
    peer *p = end->peer;

    BIO_clear_retry_flags(bio);
    if (end->client ? !p->server_open && !p->waiting : p->client_gone) {
        errno = EPIPE;
        return -1;
    }
    const size_t n = pipe_put(end->client ? &p->to_server : &p->to_client, bytes, (size_t)count);
    if (n > 0)
        return (int)n;
    BIO_set_retry_write(bio);
    return -1;
}

static int bio_read(BIO *bio, char *bytes, int room)
{
    const pipe_end *end = BIO_get_data(bio);
    peer *p = end->peer;
    const size_t n = pipe_take(end->client ? &p->to_client : &p->to_server, bytes, (size_t)room);

    BIO_clear_retry_flags(bio);
    if (n > 0)
        return (int)n;
    if (end->client ? !p->server_open && !p->waiting : p->client_gone || p->client_silent)
        return 0;
    BIO_set_retry_read(bio);
    return -1;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

static int bio_free(BIO *bio)
{
    free(BIO_get_data(bio));
    return 1;
}

static int give_bio(SSL *ssl, peer *p, bool client)
{
    BIO *bio = BIO_new(pipe_method);
    pipe_end *end = malloc(sizeof *end);

    must(bio && end, "out of memory");
    *end = (pipe_end){ p, client };
    BIO_set_data(bio, end);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    return 1;
}

void peer_connect(int index, kind which, int host)
{
    peer *p = &w.peers[index];

    *p = (peer){ .used = true,
                 .kind = which,
                 .fd = FD_PEER + index,
                 .host = host,
                 .waiting = true,
                 .reads = true,
                 .next_id = (uint32_t)index << 16 | 1 };
    if (which == UNIX)
        return;
    p->ssl = SSL_new(clients[which]);
    must(p->ssl && give_bio(p->ssl, p, true), "out of memory");
    if (host) /* many small records: turns end in the middle of one */
        SSL_set_max_send_fragment(p->ssl, 512);
    SSL_set_connect_state(p->ssl);
}

void peer_free(peer *p)
{
    SSL_free(p->ssl);
    free(p->out);
    free(p->in);
    *p = (peer){ .used = false };
}

/* --- what the front calls of the system --- */

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_epoll_create1(int flags);
int __wrap_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event);
int __wrap_epoll_wait(int epoll, struct epoll_event *events, int room, int timeout_ms);
int __wrap_eventfd(unsigned initial, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags);
int __real_getpeername(int fd, struct sockaddr *address, socklen_t *size);
int __wrap_getpeername(int fd, struct sockaddr *address, socklen_t *size);
int __real_setsockopt(int fd, int level, int name, const void *value, socklen_t size);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t size);
ssize_t __real_recv(int fd, void *bytes, size_t room, int flags);
ssize_t __wrap_recv(int fd, void *bytes, size_t room, int flags);
ssize_t __real_read(int fd, void *bytes, size_t room);
ssize_t __wrap_read(int fd, void *bytes, size_t room);
ssize_t __real_write(int fd, const void *bytes, size_t count);
ssize_t __wrap_write(int fd, const void *bytes, size_t count);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
int __real_pthread_join(pthread_t thread, void **out);
int __wrap_pthread_join(pthread_t thread, void **out);
int __wrap_SSL_set_fd(SSL *ssl, int fd);
time_t __wrap_time(time_t *out);

int __wrap_close(int fd)
{
    if (fd < FD_EPOLL)
        return __real_close(fd);
    watches[fd - FD_EPOLL].watched = false;
    if (fd >= FD_PEER) {
        peer *p = peer_of(fd);
        must(p->server_open, "a connection is closed twice");
        p->server_open = false;
        w.moved++;
    }
    return 0;
}

int __wrap_epoll_create1(int flags)
{
    (void)flags;
    return FD_EPOLL;
}

int __wrap_eventfd(unsigned initial, int flags)
{
    (void)initial;
    (void)flags;
    return FD_WAKE;
}

int __wrap_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
    watch *one = &watches[fd - FD_EPOLL];

    must(epoll == FD_EPOLL && fd > FD_EPOLL && fd < FD_END, "epoll is asked for what it has not");
    must(one->watched == (op != EPOLL_CTL_ADD), "epoll does not know it so");
    must(fd < FD_PEER || peer_of(fd)->server_open, "epoll is asked for a closed connection");
    one->watched = op != EPOLL_CTL_DEL;
    if (op != EPOLL_CTL_DEL) {
        one->interest = event->events;
        one->tag = event->data.u64;
    }
    return 0;
}

static peer *find_waiting(int listener)
{
    for (int i = 0; i < PEERS; i++) {
        peer *p = &w.peers[i];
        if (p->used && p->waiting && (p->kind == UNIX ? FD_UNIX : FD_TLS) == listener)
            return p;
    }
    return NULL;
}

/* As epoll would say it, of whatever is watched. */
static uint32_t events_of(int fd)
{
    const watch *one = &watches[fd - FD_EPOLL];
    uint32_t events = 0;

    if (fd == FD_WAKE)
        return w.wakes ? EPOLLIN : 0;
    if (fd < FD_PEER)
        return find_waiting(fd) ? EPOLLIN & one->interest : 0;
    const peer *p = peer_of(fd);
    if (p->to_server.used > 0 || p->client_silent || p->client_gone)
        events |= EPOLLIN;
    if (p->to_client.used < PIPE_BYTES || p->client_gone)
        events |= EPOLLOUT;
    events &= one->interest;
    return p->client_gone ? events | EPOLLHUP : events;
}

static int collect(struct epoll_event *events, int room)
{
    int count = 0;

    for (int fd = FD_WAKE; fd < FD_END && count < room; fd++) {
        const watch *one = &watches[fd - FD_EPOLL];
        const uint32_t now = one->watched ? events_of(fd) : 0;
        if (now) {
            events[count].events = now;
            events[count++].data.u64 = one->tag;
        }
    }
    w.wakes = false;
    return count;
}

int __wrap_epoll_wait(int epoll, struct epoll_event *events, int room, int timeout_ms)
{
    static uint64_t moved;
    static int idle;

    must(epoll == FD_EPOLL, "another epoll");
    idle = w.moved == moved ? idle + 1 : 0;
    must(idle < SPIN, "it turns and does not get on");
    moved = w.moved;
    play_clients();
    const int count = collect(events, room);
    if (count > 0 || timeout_ms == 0)
        return count;
    play_turn();
    play_clients();
    return collect(events, room);
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    peer *p = find_waiting(fd);

    (void)address;
    (void)size;
    (void)flags;
    if (w.accept_fails > 0) {
        w.accept_fails--;
        w.moved++;
        errno = EMFILE;
        return -1;
    }
    if (!p) {
        errno = EAGAIN;
        return -1;
    }
    p->waiting = false;
    p->server_open = true;
    w.moved++;
    return p->fd;
}

int __wrap_getpeername(int fd, struct sockaddr *address, socklen_t *size)
{
    if (fd < FD_EPOLL)
        return __real_getpeername(fd, address, size);
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)fd) };
    in.sin_addr.s_addr = htonl(0x0a000001u + (unsigned)peer_of(fd)->host);
    memcpy(address, &in, sizeof in);
    *size = sizeof in;
    return 0;
}

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    return fd < FD_EPOLL ? __real_setsockopt(fd, level, name, value, size) : 0;
}

ssize_t __wrap_recv(int fd, void *bytes, size_t room, int flags)
{
    if (fd < FD_EPOLL)
        return __real_recv(fd, bytes, room, flags);
    const size_t n = pipe_take(&peer_of(fd)->to_server, bytes, room);
    errno = EAGAIN;
    return n > 0 ? (ssize_t)n : -1;
}

ssize_t __wrap_read(int fd, void *bytes, size_t room)
{
    return fd < FD_EPOLL ? __real_read(fd, bytes, room) : (ssize_t)room;
}

ssize_t __wrap_write(int fd, const void *bytes, size_t count)
{
    return fd < FD_EPOLL ? __real_write(fd, bytes, count) : (ssize_t)count;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg)
{
    if (!thread_wanted)
        return __real_pthread_create(thread, attr, run, arg);
    thread_wanted = false;
    thread_run = run;
    thread_arg = arg;
    *thread = pthread_self();
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **out)
{
    return pthread_equal(thread, pthread_self()) ? 0 : __real_pthread_join(thread, out);
}

int __wrap_SSL_set_fd(SSL *ssl, int fd)
{
    return give_bio(ssl, peer_of(fd), false);
}

time_t __wrap_time(time_t *out)
{
    (void)out;
    return BEGIN_S + (time_t)(w.now_ns / SL_NS_PER_S);
}

/* A look takes time, so that turns that are bounded in time end. */
int64_t sl_clock_now_ns(void)
{
    return w.now_ns += LOOK_NS;
}

int64_t sl_clock_wall_ns(void)
{
    return BEGIN_S * SL_NS_PER_S + w.now_ns;
}

/* --- listeners --- */

static sl_io unix_read(sl_transport *t, uint8_t *at, size_t room, size_t *count)
{
    peer *p = peer_of(t->fd);

    must(room > 0, "a read of nothing");
    *count = pipe_take(&p->to_server, at, room);
    if (*count > 0)
        return SL_IO_DONE;
    return p->client_gone || p->client_silent ? SL_IO_END : SL_IO_WAIT_READ;
}

static sl_io unix_write(sl_transport *t, const uint8_t *at, size_t size, size_t *count)
{
    peer *p = peer_of(t->fd);

    must(size > 0, "a write of nothing");
    if (p->client_gone)
        return SL_IO_END;
    *count = pipe_put(&p->to_client, at, size);
    return *count > 0 ? SL_IO_DONE : SL_IO_WAIT_WRITE;
}

static sl_status unix_identify(sl_transport *t, sl_peer *out, sl_error *err)
{
    (void)err;
    out->role = SL_ROLE_USER;
    snprintf(out->identity, sizeof out->identity, "uid:%d", peer_of(t->fd)->host);
    snprintf(out->address, sizeof out->address, "unix:pid=%d", t->fd);
    return SL_OK;
}

static void unix_close(sl_transport *t)
{
    close(t->fd);
    t->fd = -1;
}

static sl_status accept_unix(sl_listener *listener, int fd, sl_transport *out, sl_error *err)
{
    static const sl_transport_ops ops = {
        .read = unix_read, .write = unix_write, .identify = unix_identify, .close = unix_close
    };

    (void)listener;
    (void)err;
    *out = (sl_transport){ .ops = &ops, .framing = SL_SP_IPC, .fd = fd };
    snprintf(out->address, sizeof out->address, "unix");
    return SL_OK;
}

static sl_status accept_tls(sl_listener *listener, int fd, sl_transport *out, sl_error *err)
{
    (void)listener;
    return tls_listener->accept(tls_listener, fd, out, err);
}

static void close_listener(sl_listener *listener)
{
    close(listener->fd);
}

/* --- keys --- */

static void random_seed(void)
{
    random_state = 0x9e3779b97f4a7c15;
}

static int random_bytes(unsigned char *out, int count)
{
    for (int i = 0; i < count; i++) { /* xorshift */
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        out[i] = (unsigned char)(random_state >> 24);
    }
    return 1;
}

static int random_status(void)
{
    return 1;
}

static X509 *make_certificate(EVP_PKEY *key, const char *name)
{
    X509 *certificate = X509_new();
    X509_NAME *subject = X509_get_subject_name(certificate);

    X509_set_version(certificate, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name, -1, -1,
                               0);
    X509_NAME_add_entry_by_txt(subject, "OU", MBSTRING_UTF8, (const unsigned char *)"user", -1, -1,
                               0);
    X509_set_issuer_name(certificate, subject);
    ASN1_TIME_set(X509_getm_notBefore(certificate), ISSUED_S);
    ASN1_TIME_set(X509_getm_notAfter(certificate), EXPIRES_S);
    X509_set_pubkey(certificate, key);
    must(X509_sign(certificate, key, EVP_sha256()) > 0, "could not sign a certificate");
    return certificate;
}

static void write_files(const char *dir, X509 *certificate, EVP_PKEY *key)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    char path[64];

    snprintf(path, sizeof path, "%s/cert", dir);
    FILE *f = fopen(path, "w");
    must(f && PEM_write_X509(f, certificate) == 1 && fclose(f) == 0, "could not write");
    snprintf(path, sizeof path, "%s/key", dir);
    f = fopen(path, "w");
    must(f && PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1 && fclose(f) == 0,
         "could not write");
    must(X509_digest(certificate, EVP_sha256(), digest, &size) == 1, "could not digest");
    snprintf(path, sizeof path, "%s/revoked", dir);
    f = fopen(path, "w");
    must(f != NULL, "could not write");
    for (unsigned i = 0; i < size; i++)
        fprintf(f, "%02x", digest[i]);
    must(fclose(f) == 0, "could not write");
}

static sl_tls *load_keys(const char *dir, bool revoking)
{
    char certificate[64], key[64], revoked[64];
    const sl_tls_config config = { .certificate = certificate,
                                   .key = key,
                                   .client_ca = certificate,
                                   .revoked = revoking ? revoked : NULL,
                                   .client_auth = SL_TLS_AUTH_OPTIONAL,
                                   .handshake_ns = 5 * SL_NS_PER_S };
    sl_tls_keys *keys = NULL;
    sl_tls *out = NULL;

    snprintf(certificate, sizeof certificate, "%s/cert", dir);
    snprintf(key, sizeof key, "%s/key", dir);
    snprintf(revoked, sizeof revoked, "%s/revoked", dir);
    must(sl_tls_keys_load(&keys, &config, NULL) == SL_OK, "could not load the keys");
    must(sl_tls_create(&out, keys, NULL, NULL) == SL_OK, "could not make TLS");
    return out;
}

static SSL_CTX *make_client(X509 *certificate, EVP_PKEY *key, int version)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    must(ctx != NULL, "out of memory");
    if (certificate)
        must(SSL_CTX_use_certificate(ctx, certificate) == 1 &&
                 SSL_CTX_use_PrivateKey(ctx, key) == 1,
             "could not give the client its certificate");
    SSL_CTX_set_max_proto_version(ctx, version);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return ctx;
}

void world_init(void)
{
    static const char *const names[] = { "cert", "key", "revoked" };
    char dir[] = "/tmp/fuzz_front_XXXXXX", path[64];

    sl_log_set_level((sl_log_level)(SL_LOG_ERROR + 1));
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations" /* the short way, in a test */
    static const RAND_METHOD same_numbers = { .bytes = random_bytes,
                                              .pseudorand = random_bytes,
                                              .status = random_status };
    random_seed();
    RAND_set_rand_method(&same_numbers);
#pragma clang diagnostic pop
    EVP_PKEY *key = EVP_EC_gen("P-256"), *other_key = EVP_EC_gen("P-256");
    X509 *certificate = make_certificate(key, "fuzz"), *other = make_certificate(other_key, "x");
    must(mkdtemp(dir) != NULL, "could not make a folder");
    write_files(dir, certificate, key);
    tls = load_keys(dir, false);
    tls_good = load_keys(dir, false);
    tls_revoking = load_keys(dir, true);
    for (size_t i = 0; i < SL_COUNT(names); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
    must(sl_tls_listen(&tls_listener, "127.0.0.1:0", tls, NULL) == SL_OK, "could not listen");
    clients[TLS13] = make_client(certificate, key, TLS1_3_VERSION);
    clients[TLS12] = make_client(certificate, key, TLS1_2_VERSION);
    clients[TLS_NO_CERTIFICATE] = make_client(NULL, NULL, TLS1_3_VERSION);
    clients[TLS_STRANGER] = make_client(other, other_key, TLS1_3_VERSION);
    pipe_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "pipe");
    BIO_meth_set_write(pipe_method, bio_write);
    BIO_meth_set_read(pipe_method, bio_read);
    BIO_meth_set_ctrl(pipe_method, bio_ctrl);
    BIO_meth_set_destroy(pipe_method, bio_free);
    X509_free(certificate);
    X509_free(other);
    EVP_PKEY_free(key);
    EVP_PKEY_free(other_key);
}

/* --- a run --- */

void world_reload(bool revoking)
{
    sl_tls_take(tls, sl_tls_hold(revoking ? tls_revoking : tls_good));
}

void world_reset(void)
{
    for (int i = 0; i < PEERS; i++)
        if (w.peers[i].used)
            peer_free(&w.peers[i]);
    memset(watches, 0, sizeof watches);
    w = (world){ .now_ns = SL_NS_PER_S };
    random_seed();
    world_reload(false);
}

void world_run(const sl_front_config *config)
{
    sl_listener unix_listener = { FD_UNIX, accept_unix, close_listener };
    sl_listener front_tls = { FD_TLS, accept_tls, close_listener };

    memset(&door, 0, sizeof door);
    must(sl_front_create(&front, config, NULL) == SL_OK, "could not make the front");
    must(sl_front_add(front, &unix_listener, NULL) == SL_OK &&
             sl_front_add(front, &front_tls, NULL) == SL_OK,
         "could not add the listeners");
    thread_wanted = true;
    must(sl_front_start(front, NULL) == SL_OK && !thread_wanted, "could not start the front");
    thread_run(thread_arg);
    for (int i = 0; i < PEERS; i++)
        must(!w.peers[i].server_open, "a connection is left open");
    sl_front_destroy(front);
    front = NULL;
}

void world_stop(int64_t grace_ns)
{
    sl_front_stop(front, grace_ns);
}
