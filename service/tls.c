#include "service/tls.h"

#include "base/clock.h"
#include "base/log.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_FILE_BYTES = 4 << 20,
    MAX_CHAIN_BYTES = 32 << 10, /* of a client's certificates */
    MAX_DEPTH = 4,
    LINES_PER_SECOND = 10, /* in the log, of refusals */
};
#define TLS12_CIPHERS "ECDHE+AESGCM:ECDHE+CHACHA20"
#define GROUPS        "X25519:P-256:P-384"

struct sl_tls_keys {
    SSL_CTX *ctx;
    sl_tls_fingerprint *revoked, *issuers; /* sorted */
    size_t revoked_count, issuer_count;
    uint8_t digest[EVP_MAX_MD_SIZE]; /* of everything that was read */
    int64_t handshake_ns;
    atomic_int holders;
};

struct sl_tls {
    sl_audit *audit;
    sl_door *door, own_door;
    bool trusts_loopback;
    pthread_mutex_t lock; /* guards keys */
    sl_tls_keys *keys;
    atomic_uint generation;
    int64_t window_ns; /* log lines are counted from here */
    int lines;
};

/* --- files --- */

static sl_status fail_ssl(sl_error *err, const char *what, const char *path)
{
    const unsigned long code = ERR_peek_last_error();
    const char *reason = ERR_reason_error_string(code);

    ERR_clear_error();
    return sl_fail(err, SL_ERR_DATA, "could not use the %s \"%s\": %s", what, path,
                   reason ? reason : "it is not what was expected");
}

/* The whole file, terminated; the caller frees it. */
static sl_status read_file(char **out, size_t *out_bytes, const char *what, const char *path,
                           sl_error *err)
{
    sl_status status = SL_OK;
    struct stat st;
    char *bytes = NULL;
    size_t used = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st) != 0) {
        status = sl_fail_errno(err, "could not open the %s \"%s\"", what, path);
        goto done;
    }
    if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES) {
        status = sl_fail(err, SL_ERR_DATA, "the %s \"%s\" is no file of at most %d bytes", what,
                         path, MAX_FILE_BYTES);
        goto done;
    }
    bytes = malloc((size_t)st.st_size + 1);
    if (!bytes) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the %s \"%s\"", what, path);
        goto done;
    }
    while (used < (size_t)st.st_size) {
        const ssize_t n = read(fd, bytes + used, (size_t)st.st_size - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = sl_fail_errno(err, "could not read the %s \"%s\"", what, path);
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    if (status != SL_OK)
        goto done;
    bytes[used] = '\0';
    *out = bytes;
    *out_bytes = used;
    bytes = NULL;
done:
    if (fd >= 0)
        close(fd);
    free(bytes);
    return status;
}

/* The files' contents into the digest: it tells whether anything has changed. */
static sl_status digest_files(sl_tls_keys *keys, const sl_tls_config *config, sl_error *err)
{
    const struct {
        const char *what, *path;
    } files[] = { { "certificate", config->certificate },
                  { "key", config->key },
                  { "certificates of clients' issuers", config->client_ca },
                  { "list of revoked certificates", config->revoked } };
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    sl_status status = SL_OK;

    if (!digest || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the certificates");
    for (size_t i = 0; i < SL_COUNT(files) && status == SL_OK; i++) {
        char *bytes = NULL;
        size_t size = 0;
        if (files[i].path)
            status = read_file(&bytes, &size, files[i].what, files[i].path, err);
        EVP_DigestUpdate(digest, &size, sizeof size);
        if (bytes) {
            EVP_DigestUpdate(digest, bytes, size);
            OPENSSL_cleanse(bytes, size);
        }
        free(bytes);
    }
    if (status == SL_OK) {
        EVP_DigestUpdate(digest, &config->client_auth, sizeof config->client_auth);
        EVP_DigestUpdate(digest, &config->handshake_ns, sizeof config->handshake_ns);
        EVP_DigestFinal_ex(digest, keys->digest, NULL);
    }
    EVP_MD_CTX_free(digest);
    return status;
}

/* --- revoked certificates --- */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool parse_fingerprint(const char *text, uint8_t out[SL_TLS_FINGERPRINT_BYTES])
{
    for (int i = 0; i < SL_TLS_FINGERPRINT_BYTES; i++) {
        const int high = hex_value(text[0]);
        const int low = high < 0 ? -1 : hex_value(text[1]);
        if (low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
        text += 2;
        if (*text == ':' && i + 1 < SL_TLS_FINGERPRINT_BYTES)
            text++;
    }
    return *text == '\0' || isspace((unsigned char)*text);
}

static int compare_fingerprints(const void *a, const void *b)
{
    return memcmp(a, b, SL_TLS_FINGERPRINT_BYTES);
}

static sl_status load_revoked(sl_tls_keys *keys, const char *path, sl_error *err)
{
    char *text = NULL, *rest = NULL;
    size_t size = 0;
    int number = 0;
    sl_status status = read_file(&text, &size, "list of revoked certificates", path, err);

    if (status != SL_OK)
        return status;
    size_t lines = 1;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    keys->revoked = calloc(lines, sizeof *keys->revoked);
    if (!keys->revoked)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", path);
    for (char *line = text; line && status == SL_OK; line = rest) {
        rest = strchr(line, '\n');
        if (rest)
            *rest++ = '\0';
        number++;
        line += strspn(line, " \t\r");
        if (*line == '\0' || *line == '#')
            continue;
        if (parse_fingerprint(line, keys->revoked[keys->revoked_count]))
            keys->revoked_count++;
        else
            status = sl_fail(err, SL_ERR_DATA,
                             "\"%s\", line %d: expected a SHA-256 fingerprint of 64 hex digits",
                             path, number);
    }
    if (status == SL_OK)
        qsort(keys->revoked, keys->revoked_count, sizeof *keys->revoked, compare_fingerprints);
    free(text);
    return status;
}

static bool is_in(const sl_tls_fingerprint *sorted, size_t count, const uint8_t *fingerprint)
{
    return count > 0 &&
           bsearch(fingerprint, sorted, count, sizeof *sorted, compare_fingerprints) != NULL;
}

const char *sl_tls_judge(const sl_tls_keys *keys, const sl_tls_fingerprint *chain, int count)
{
    for (int i = 0; i < count; i++) {
        if (is_in(keys->revoked, keys->revoked_count, chain[i]))
            return i == 0 ? "its certificate was revoked" : "its certificate's issuer was revoked";
    }
    if (count == 0 || !is_in(keys->issuers, keys->issuer_count, chain[count - 1]))
        return "its certificate's issuer is not trusted any more";
    return NULL;
}

/* OpenSSL has checked one certificate of the chain: is it revoked? */
static int check_revoked(int valid, X509_STORE_CTX *store)
{
    const SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    const sl_tls_keys *keys = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    const X509 *certificate = X509_STORE_CTX_get_current_cert(store);
    uint8_t fingerprint[EVP_MAX_MD_SIZE];
    unsigned size = 0;

    if (!valid || !certificate)
        return valid;
    if (X509_digest(certificate, EVP_sha256(), fingerprint, &size) == 1 &&
        !is_in(keys->revoked, keys->revoked_count, fingerprint))
        return 1;
    X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REVOKED);
    return 0;
}

/* --- the set --- */

static bool set_policy(SSL_CTX *ctx)
{
    static const unsigned char session_context[] = "sluice";

    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE);
    /* A read goes on behind one record that has no bytes for us, not behind all that have
     * come: key updates in thousands would keep everybody waiting. */
    SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_max_cert_list(ctx, MAX_CHAIN_BYTES);
    SSL_CTX_set_verify_depth(ctx, MAX_DEPTH);
    return SSL_CTX_set_num_tickets(ctx, 0) == 1 &&
           SSL_CTX_set_session_id_context(ctx, session_context, sizeof session_context - 1) == 1 &&
           SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) == 1 &&
           SSL_CTX_set_cipher_list(ctx, TLS12_CIPHERS) == 1 &&
           SSL_CTX_set1_groups_list(ctx, GROUPS) == 1;
}

static sl_status load_own(SSL_CTX *ctx, const sl_tls_config *config, sl_error *err)
{
    struct stat st;

    if (SSL_CTX_use_certificate_chain_file(ctx, config->certificate) != 1)
        return fail_ssl(err, "certificate", config->certificate);
    if (SSL_CTX_use_PrivateKey_file(ctx, config->key, SSL_FILETYPE_PEM) != 1)
        return fail_ssl(err, "key", config->key);
    if (SSL_CTX_check_private_key(ctx) != 1)
        return sl_fail(err, SL_ERR_DATA, "the key \"%s\" is not that of the certificate \"%s\"",
                       config->key, config->certificate);
    if (stat(config->key, &st) == 0 && (st.st_mode & 077) != 0)
        sl_log(SL_LOG_WARN, "key_is_readable", "path=\"%s\" mode=%03o", config->key,
               (unsigned)st.st_mode & 0777);
    return SL_OK;
}

/* Fingerprints of what the store has. */
static sl_status note_issuers(sl_tls_keys *keys, sl_error *err)
{
    STACK_OF(X509_OBJECT) *objects = X509_STORE_get0_objects(SSL_CTX_get_cert_store(keys->ctx));
    const int count = sk_X509_OBJECT_num(objects);
    uint8_t fingerprint[EVP_MAX_MD_SIZE];
    unsigned size = 0;

    keys->issuers = calloc((size_t)count + 1, sizeof *keys->issuers);
    if (!keys->issuers)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the clients' issuers");
    for (int i = 0; i < count; i++) {
        const X509 *issuer = X509_OBJECT_get0_X509(sk_X509_OBJECT_value(objects, i));
        if (issuer && X509_digest(issuer, EVP_sha256(), fingerprint, &size) == 1)
            memcpy(keys->issuers[keys->issuer_count++], fingerprint, sizeof *keys->issuers);
    }
    qsort(keys->issuers, keys->issuer_count, sizeof *keys->issuers, compare_fingerprints);
    return SL_OK;
}

static sl_status load_issuers(sl_tls_keys *keys, const sl_tls_config *config, sl_error *err)
{
    int mode = SSL_VERIFY_PEER;
    STACK_OF(X509_NAME) *names = NULL;

    if (config->client_auth == SL_TLS_AUTH_OFF)
        return SL_OK;
    if (config->client_auth == SL_TLS_AUTH_REQUIRED)
        mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    names = SSL_load_client_CA_file(config->client_ca);
    if (!names || SSL_CTX_load_verify_file(keys->ctx, config->client_ca) != 1) {
        sk_X509_NAME_pop_free(names, X509_NAME_free);
        return fail_ssl(err, "certificates of clients' issuers", config->client_ca);
    }
    SSL_CTX_set_client_CA_list(keys->ctx, names);
    SSL_CTX_set_app_data(keys->ctx, keys);
    SSL_CTX_set_verify(keys->ctx, mode, check_revoked);
    return note_issuers(keys, err);
}

static void free_keys(sl_tls_keys *keys)
{
    if (!keys)
        return;
    SSL_CTX_free(keys->ctx);
    free(keys->revoked);
    free(keys->issuers);
    free(keys);
}

sl_status sl_tls_keys_load(sl_tls_keys **out, const sl_tls_config *config, sl_error *err)
{
    sl_status status = SL_OK;
    sl_tls_keys *keys = calloc(1, sizeof *keys);

    if (!keys || !(keys->ctx = SSL_CTX_new(TLS_server_method())) || !set_policy(keys->ctx)) {
        ERR_clear_error();
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for TLS");
        goto done;
    }
    atomic_init(&keys->holders, 1);
    keys->handshake_ns = config->handshake_ns;
    status = digest_files(keys, config, err);
    if (status == SL_OK)
        status = load_own(keys->ctx, config, err);
    if (status == SL_OK)
        status = load_issuers(keys, config, err);
    if (status == SL_OK && config->revoked)
        status = load_revoked(keys, config->revoked, err);
    if (status != SL_OK)
        goto done;
    *out = keys;
    keys = NULL;
done:
    free_keys(keys);
    return status;
}

void sl_tls_keys_release(sl_tls_keys *keys)
{
    if (keys && atomic_fetch_sub(&keys->holders, 1) == 1)
        free_keys(keys);
}

SSL_CTX *sl_tls_keys_ctx(const sl_tls_keys *keys)
{
    return keys->ctx;
}

int64_t sl_tls_keys_handshake_ns(const sl_tls_keys *keys)
{
    return keys->handshake_ns;
}

/* --- the present set --- */

sl_status sl_tls_create(sl_tls **out, sl_tls_keys *keys, sl_audit *audit, sl_error *err)
{
    sl_tls *tls = calloc(1, sizeof *tls);

    if (!tls) {
        sl_tls_keys_release(keys);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for TLS");
    }
    pthread_mutex_init(&tls->lock, NULL);
    tls->keys = keys;
    tls->audit = audit;
    tls->door = &tls->own_door;
    *out = tls;
    return SL_OK;
}

void sl_tls_destroy(sl_tls *tls)
{
    if (!tls)
        return;
    sl_tls_keys_release(tls->keys);
    pthread_mutex_destroy(&tls->lock);
    free(tls);
}

void sl_tls_set_door(sl_tls *tls, sl_door *door)
{
    tls->door = door;
}

sl_door *sl_tls_door(sl_tls *tls)
{
    return tls->door;
}

void sl_tls_trust_loopback(sl_tls *tls)
{
    tls->trusts_loopback = true;
}

bool sl_tls_trusts_loopback(const sl_tls *tls)
{
    return tls->trusts_loopback;
}

bool sl_tls_take(sl_tls *tls, sl_tls_keys *keys)
{
    pthread_mutex_lock(&tls->lock);
    sl_tls_keys *before = tls->keys;
    const bool differs = memcmp(before->digest, keys->digest, sizeof keys->digest) != 0;
    tls->keys = keys;
    atomic_fetch_add(&tls->generation, 1);
    pthread_mutex_unlock(&tls->lock);
    sl_tls_keys_release(before);
    return differs;
}

sl_tls_keys *sl_tls_hold(sl_tls *tls)
{
    pthread_mutex_lock(&tls->lock);
    sl_tls_keys *keys = tls->keys;
    atomic_fetch_add(&keys->holders, 1);
    pthread_mutex_unlock(&tls->lock);
    return keys;
}

unsigned sl_tls_generation(const sl_tls *tls)
{
    return atomic_load(&tls->generation);
}

void sl_tls_note_refused(sl_tls *tls, const char *address, const char *reason)
{
    const int64_t now_ns = sl_clock_now_ns();
    char quoted[256];

    if (now_ns - tls->window_ns >= SL_NS_PER_S) {
        tls->window_ns = now_ns;
        tls->lines = 0;
    }
    if (tls->lines++ < LINES_PER_SECOND)
        sl_log(SL_LOG_WARN, "tls_refused", "peer=%s reason=%s", address,
               sl_log_quote(quoted, sizeof quoted, reason));
    sl_audit_write(tls->audit, &(sl_audit_entry){ .address = address,
                                                  .method = "TLS",
                                                  .result = "UNAUTHENTICATED",
                                                  .reason = reason,
                                                  .refusal = true });
}
