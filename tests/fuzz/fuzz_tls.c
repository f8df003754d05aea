/* fuzz_tls.c - a TLS connection of the front, from the network to whole requests.
 *
 * The input is a play for a peer: each byte says what comes next, bytes of it as
 * they are, bytes inside TLS from a real client, steps of that client's handshake, or
 * the end.  The server's side is what the front does: read into the SP parser, answer
 * requests.
 */
#include "service/sp.h"
#include "service/transport_tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static sl_tls *tls;
static sl_listener *listener;
static SSL_CTX *client_ctx;

static void must(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "fuzz_tls: could not %s\n", what);
    abort();
}

static X509 *make_certificate(EVP_PKEY *key)
{
    X509 *certificate = X509_new();
    X509_NAME *name = X509_get_subject_name(certificate);

    X509_set_version(certificate, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)"fuzz", -1, -1, 0);
    X509_NAME_add_entry_by_txt(name, "OU", MBSTRING_UTF8, (const unsigned char *)"user", -1, -1, 0);
    X509_set_issuer_name(certificate, name);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 86400L * 365);
    X509_set_pubkey(certificate, key);
    must(X509_sign(certificate, key, EVP_sha256()) > 0, "sign a certificate");
    return certificate;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char dir[] = "/tmp/fuzz_tls_XXXXXX", cert_path[64], key_path[64];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = make_certificate(key);
    sl_tls_keys *keys = NULL;

    (void)argc;
    (void)argv;
    must(mkdtemp(dir) != NULL, "make a folder");
    snprintf(cert_path, sizeof cert_path, "%s/cert", dir);
    snprintf(key_path, sizeof key_path, "%s/key", dir);
    FILE *f = fopen(cert_path, "w");
    must(f && PEM_write_X509(f, certificate) == 1 && fclose(f) == 0, "write the certificate");
    f = fopen(key_path, "w");
    must(f && PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1 && fclose(f) == 0,
         "write the key");
    const sl_tls_config config = { .certificate = cert_path,
                                   .key = key_path,
                                   .client_ca = cert_path,
                                   .client_auth = SL_TLS_AUTH_OPTIONAL,
                                   .handshake_ns = 1 };
    must(sl_tls_keys_load(&keys, &config, NULL) == SL_OK, "load the keys");
    must(sl_tls_create(&tls, keys, NULL, NULL) == SL_OK, "make TLS");
    must(sl_tls_listen(&listener, "127.0.0.1:0", tls, NULL) == SL_OK, "listen");
    client_ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_use_certificate(client_ctx, certificate);
    SSL_CTX_use_PrivateKey(client_ctx, key);
    SSL_CTX_set_mode(client_ctx,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    X509_free(certificate);
    EVP_PKEY_free(key);
    unlink(cert_path);
    unlink(key_path);
    rmdir(dir);
    return 0;
}

typedef struct {
    sl_transport transport;
    sl_sp sp;
    bool known, gone;
} server;

/* What front.c does with a connection that has something to read. */
static void serve(server *s)
{
    static const uint8_t reply[32] = { 0, 0, 0, 0, 0, 0, 0, 24, 0x80 };
    sl_error err = { .status = SL_OK };
    uint8_t *at = NULL;
    size_t count = 0;
    sl_peer peer;

    for (int i = 0; i < 64 && !s->gone; i++) {
        const size_t room = sl_sp_space(&s->sp, &at);
        if (room == 0)
            break;
        const sl_io io = s->transport.ops->read(&s->transport, at, room, &count);
        s->gone = io == SL_IO_END;
        if (io != SL_IO_DONE)
            break;
        must(count > 0 && count <= room, "read within its room");
        s->gone = sl_sp_advance(&s->sp, count, &err) != SL_OK;
        if (!s->gone && sl_sp_greeted(&s->sp) && !s->known) {
            s->known = true;
            s->gone = s->transport.ops->identify(&s->transport, &peer, &err) != SL_OK;
        }
        if (!s->gone && sl_sp_is_ready(&s->sp)) {
            sl_sp_release(&s->sp);
            s->gone = s->transport.ops->write(&s->transport, reply, sizeof reply, &count)
                      == SL_IO_END;
        }
    }
    if (!s->gone)
        s->gone = s->transport.ops->lapsed(&s->transport) != NULL;
}

static void play(server *s, SSL *client, int fd, const uint8_t *data, size_t size)
{
    uint8_t bytes[4096];

    while (size > 0 && !s->gone) {
        const uint8_t word = *data++;
        size--;
        size_t n = (size_t)(word >> 2) + 1;
        if (n > size)
            n = size;
        ERR_clear_error();
        switch (word & 3) {
        case 0: /* bytes as they are */
            if (n > 0 && send(fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
                return;
            data += n;
            size -= n;
            break;
        case 1: /* inside TLS */
            if (n > 0)
                SSL_write(client, data, (int)n);
            data += n;
            size -= n;
            break;
        case 2: /* the client reads, or goes on shaking hands */
            SSL_read(client, bytes, sizeof bytes);
            break;
        default:
            if (word == 255)
                SSL_shutdown(client);
            else
                SSL_do_handshake(client);
        }
        serve(s);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[2];
    server s = { .known = false };
    SSL *client = SSL_new(client_ctx);

    must(client && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0,
         "make a connection");
    SSL_set_fd(client, fds[1]);
    SSL_set_connect_state(client);
    must(listener->accept(listener, fds[0], &s.transport, NULL) == SL_OK, "accept");
    sl_sp_init(&s.sp, SL_SP_STREAM, NULL, NULL);
    play(&s, client, fds[1], data, size);
    s.transport.ops->close(&s.transport);
    sl_sp_fini(&s.sp);
    SSL_free(client);
    close(fds[1]);
    return 0;
}
