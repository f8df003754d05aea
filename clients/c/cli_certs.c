/* cli_certs.c - `sluice certs`: a private CA, certificates of servers and clients.
 *
 * For people who have no CA.  Everything is in one folder: ca.pem and ca.key,
 * NAME.pem and NAME.key of each certificate, and `revoked`, the list that the daemon
 * reads (service/tls.h).  Keys are ECDSA P-256.  A client's certificate has its name
 * as CN and its role as OU.
 */
#include "clients/c/cli.h"

#include "base/clock.h"
#include "base/file.h"
#include "service/auth.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    PATH_BYTES = 4096,
    CA_DAYS = 3650,
    LEAF_DAYS = 365,
    SKEW_S = 300, /* of clocks */
    SERIAL_BYTES = 16,
    HEX_BYTES = 2 * EVP_MAX_MD_SIZE + 1,
    HOSTS_BYTES = 2048,
};
#define SECONDS_PER_DAY 86400

/* --- files --- */

static char *in_dir(const cli *c, char path[PATH_BYTES], const char *name, const char *end)
{
    snprintf(path, PATH_BYTES, "%s/%s%s", c->opt.dir ? c->opt.dir : "certs", name, end);
    return path;
}

/* A new file, for its owner only. */
static sl_status create_file(FILE **out, const char *path, sl_error *err)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    *out = fd < 0 ? NULL : fdopen(fd, "w");
    if (*out)
        return SL_OK;
    const sl_status status = sl_fail_errno(err, "could not make \"%s\"", path);
    if (fd >= 0)
        close(fd);
    return status;
}

static sl_status fail_ssl(sl_error *err, const char *what)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());

    ERR_clear_error();
    return sl_fail(err, SL_ERR_INTERNAL, "could not %s: %s", what,
                   reason ? reason : "OpenSSL gives no reason");
}

static sl_status finish_file(FILE *f, bool written, const char *path, sl_error *err)
{
    if (fflush(f) != 0 || fsync(fileno(f)) != 0)
        written = false;
    if (fclose(f) == 0 && written)
        return SL_OK;
    unlink(path);
    return sl_fail_errno(err, "could not write \"%s\"", path);
}

static sl_status save_pair(const cli *c, const char *name, const X509 *certificate,
                           const EVP_PKEY *key, sl_error *err)
{
    char path[PATH_BYTES];
    FILE *f = NULL;
    sl_status status = create_file(&f, in_dir(c, path, name, ".key"), err);

    if (status != SL_OK)
        return status;
    status = finish_file(f, PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1, path, err);
    if (status == SL_OK)
        status = create_file(&f, in_dir(c, path, name, ".pem"), err);
    if (status == SL_OK)
        status = finish_file(f, PEM_write_X509(f, certificate) == 1, path, err);
    return status;
}

static sl_status load_certificate(const cli *c, const char *name, X509 **out, sl_error *err)
{
    char path[PATH_BYTES];
    FILE *f = fopen(in_dir(c, path, name, ".pem"), "re");

    if (!f)
        return sl_fail_errno(err, "could not open \"%s\"", path);
    *out = PEM_read_X509(f, NULL, NULL, NULL);
    fclose(f);
    ERR_clear_error();
    return *out ? SL_OK : sl_fail(err, SL_ERR_DATA, "\"%s\" is no certificate", path);
}

static sl_status load_key(const cli *c, const char *name, EVP_PKEY **out, sl_error *err)
{
    char path[PATH_BYTES];
    FILE *f = fopen(in_dir(c, path, name, ".key"), "re");

    if (!f)
        return sl_fail_errno(err, "could not open \"%s\"", path);
    *out = PEM_read_PrivateKey(f, NULL, NULL, NULL);
    fclose(f);
    ERR_clear_error();
    return *out ? SL_OK : sl_fail(err, SL_ERR_DATA, "\"%s\" is no key", path);
}

/* --- making certificates --- */

typedef struct {
    const char *name;
    const char *role;  /* NULL: none */
    const char *hosts; /* "DNS:...,IP:..."; NULL: a client's */
    bool is_ca;
    int64_t seconds;
} want;

static bool add_extension(X509 *certificate, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;

    X509V3_set_ctx(&ctx, issuer, certificate, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    const bool added = extension && X509_add_ext(certificate, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return added;
}

static bool add_extensions(X509 *certificate, X509 *issuer, const want *w)
{
    const char *use = w->hosts ? "serverAuth" : "clientAuth";

    if (w->is_ca)
        return add_extension(certificate, issuer, NID_basic_constraints, "critical,CA:TRUE,pathlen:0")
               && add_extension(certificate, issuer, NID_key_usage, "critical,keyCertSign,cRLSign")
               && add_extension(certificate, issuer, NID_subject_key_identifier, "hash");
    return add_extension(certificate, issuer, NID_basic_constraints, "critical,CA:FALSE")
           && add_extension(certificate, issuer, NID_key_usage, "critical,digitalSignature")
           && add_extension(certificate, issuer, NID_ext_key_usage, use)
           && add_extension(certificate, issuer, NID_subject_key_identifier, "hash")
           && add_extension(certificate, issuer, NID_authority_key_identifier, "keyid")
           && (!w->hosts || add_extension(certificate, issuer, NID_subject_alt_name, w->hosts));
}

static bool set_serial(X509 *certificate)
{
    uint8_t bytes[SERIAL_BYTES];
    BIGNUM *number = NULL;
    bool set = false;

    if (RAND_bytes(bytes, sizeof bytes) == 1) {
        bytes[0] = (uint8_t)((bytes[0] & 0x7f) | 0x40); /* positive, and always as long */
        number = BN_bin2bn(bytes, sizeof bytes, NULL);
    }
    if (number)
        set = BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != NULL;
    BN_free(number);
    return set;
}

static bool add_entry(X509_NAME *name, const char *key, const char *text)
{
    return X509_NAME_add_entry_by_txt(name, key, MBSTRING_UTF8, (const unsigned char *)text, -1, -1,
                                      0)
           == 1;
}

/* issuer NULL: signs itself. */
static sl_status make_certificate(X509 **out, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key,
                                  const want *w, sl_error *err)
{
    X509 *certificate = X509_new();
    X509 *by = issuer ? issuer : certificate;
    X509_NAME *name = certificate ? X509_get_subject_name(certificate) : NULL;

    if (certificate && X509_set_version(certificate, X509_VERSION_3) == 1 && set_serial(certificate)
        && add_entry(name, "CN", w->name) && (!w->role || add_entry(name, "OU", w->role))
        && X509_set_issuer_name(certificate, X509_get_subject_name(by)) == 1
        && X509_gmtime_adj(X509_getm_notBefore(certificate), -SKEW_S)
        && X509_time_adj_ex(X509_getm_notAfter(certificate), (int)(w->seconds / SECONDS_PER_DAY),
                            (long)(w->seconds % SECONDS_PER_DAY), NULL)
        && X509_set_pubkey(certificate, key) == 1 && add_extensions(certificate, by, w)
        && X509_sign(certificate, issuer_key, EVP_sha256()) > 0) {
        *out = certificate;
        return SL_OK;
    }
    X509_free(certificate);
    return fail_ssl(err, "make a certificate");
}

static char *fingerprint_of(const X509 *certificate, char hex[HEX_BYTES])
{
    uint8_t bytes[EVP_MAX_MD_SIZE];
    unsigned size = 0;

    hex[0] = '\0';
    if (X509_digest(certificate, EVP_sha256(), bytes, &size) == 1)
        for (unsigned i = 0; i < size; i++)
            snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
    return hex;
}

/* --- init --- */

static int init(cli *c)
{
    const want w = { .name = "sluice CA", .is_ca = true, .seconds = CA_DAYS * SECONDS_PER_DAY };
    char path[PATH_BYTES];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *certificate = NULL;
    FILE *f = NULL;
    sl_status status = sl_make_directory(c->opt.dir ? c->opt.dir : "certs", 0700, &c->err);

    if (status == SL_OK && !key)
        status = fail_ssl(&c->err, "make a key");
    if (status == SL_OK)
        status = make_certificate(&certificate, key, NULL, key, &w, &c->err);
    if (status == SL_OK)
        status = save_pair(c, "ca", certificate, key, &c->err);
    if (status == SL_OK)
        status = create_file(&f, in_dir(c, path, "revoked", ""), &c->err);
    if (status == SL_OK)
        status = finish_file(f, fputs("# fingerprints of revoked certificates\n", f) >= 0, path,
                             &c->err);
    if (status == SL_OK)
        printf("CA in %s; keep ca.key to yourself, give ca.pem to everybody\n",
               c->opt.dir ? c->opt.dir : "certs");
    X509_free(certificate);
    EVP_PKEY_free(key);
    return status == SL_OK ? CLI_OK : cli_fail(c, status);
}

/* --- issue --- */

/* "gpu1.lan,10.0.0.5" as the subject's alternative names. */
static bool list_hosts(const char *text, char out[HOSTS_BYTES])
{
    size_t used = 0;

    while (*text) {
        char host[256];
        unsigned char numeric[16];
        const size_t length = strcspn(text, ",");
        if (length == 0 || length >= sizeof host
            || strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:*")
                   < length)
            return false;
        memcpy(host, text, length);
        host[length] = '\0';
        const bool is_ip = inet_pton(AF_INET, host, numeric) == 1
                           || inet_pton(AF_INET6, host, numeric) == 1;
        const int n = snprintf(out + used, HOSTS_BYTES - used, "%s%s:%s", used ? "," : "",
                               is_ip ? "IP" : "DNS", host);
        if (n < 0 || (size_t)n >= HOSTS_BYTES - used)
            return false;
        used += (size_t)n;
        text += length + (text[length] == ',');
    }
    return used > 0;
}

/* What is asked for, checked. */
static int read_want(cli *c, want *w, char hosts[HOSTS_BYTES])
{
    sl_role role = SL_ROLE_NONE;

    *w = (want){ .name = c->opt.args[1],
                 .role = c->opt.role,
                 .seconds = c->opt.expires_ns ? c->opt.expires_ns / SL_NS_PER_S
                                              : (int64_t)LEAF_DAYS * SECONDS_PER_DAY };
    if (!w->name || !sl_name_valid(w->name, strlen(w->name)) || strcmp(w->name, "ca") == 0)
        return cli_usage(c, "certs issue needs a NAME of 1 to %d letters, digits and ._@+-, not ca",
                         SL_NAME_BYTES - 1);
    if (w->role && !sl_role_parse(w->role, &role))
        return cli_usage(c, "--role is viewer, user or admin, not \"%s\"", w->role);
    if (!w->role == !c->opt.host)
        return cli_usage(c, "certs issue needs --role for a client, or --host for a server");
    if (c->opt.host && !list_hosts(c->opt.host, hosts))
        return cli_usage(c, "--host takes names and addresses, separated by commas, not \"%s\"",
                         c->opt.host);
    w->hosts = c->opt.host ? hosts : NULL;
    return CLI_OK;
}

static int issue(cli *c)
{
    char hosts[HOSTS_BYTES], pem[PATH_BYTES], key_path[PATH_BYTES];
    want w;
    X509 *ca = NULL, *certificate = NULL;
    EVP_PKEY *ca_key = NULL, *key = NULL;
    const int code = read_want(c, &w, hosts);

    if (code != CLI_OK)
        return code;
    sl_status status = load_certificate(c, "ca", &ca, &c->err);
    if (status == SL_OK)
        status = load_key(c, "ca", &ca_key, &c->err);
    if (status == SL_OK && !(key = EVP_EC_gen("P-256")))
        status = fail_ssl(&c->err, "make a key");
    if (status == SL_OK)
        status = make_certificate(&certificate, key, ca, ca_key, &w, &c->err);
    if (status == SL_OK)
        status = save_pair(c, w.name, certificate, key, &c->err);
    if (status == SL_OK)
        printf("%s\n%s\n", in_dir(c, pem, w.name, ".pem"), in_dir(c, key_path, w.name, ".key"));
    X509_free(certificate);
    X509_free(ca);
    EVP_PKEY_free(key);
    EVP_PKEY_free(ca_key);
    return status == SL_OK ? CLI_OK : cli_fail(c, status);
}

/* --- revoke --- */

/* Out of the way of another certificate with the name. */
static void set_aside(const cli *c, const char *name, const char *hex)
{
    static const char *const ends[] = { ".pem", ".key" };
    char from[PATH_BYTES], to[PATH_BYTES], aside[128];

    snprintf(aside, sizeof aside, "%s.revoked-%.8s", name, hex);
    for (size_t i = 0; i < SL_COUNT(ends); i++)
        if (rename(in_dir(c, from, name, ends[i]), in_dir(c, to, aside, ends[i])) != 0)
            fprintf(stderr, "sluice: could not rename \"%s\": %s\n", from, strerror(errno));
}

static int revoke_one(cli *c)
{
    char path[PATH_BYTES], hex[HEX_BYTES];
    X509 *certificate = NULL;
    const char *name = c->opt.args[1];
    FILE *f = NULL;

    if (!name || !sl_name_valid(name, strlen(name)))
        return cli_usage(c, "certs revoke needs the NAME of a certificate");
    sl_status status = load_certificate(c, name, &certificate, &c->err);
    if (status == SL_OK && !(f = fopen(in_dir(c, path, "revoked", ""), "ae")))
        status = sl_fail_errno(&c->err, "could not open \"%s\"", path);
    if (status == SL_OK) {
        bool written = fprintf(f, "%s %s\n", fingerprint_of(certificate, hex), name) > 0;
        written = fflush(f) == 0 && fsync(fileno(f)) == 0 && written;
        if (fclose(f) != 0 || !written)
            status = sl_fail_errno(&c->err, "could not write \"%s\"", path);
    }
    if (status == SL_OK) {
        set_aside(c, name, hex);
        printf("%s is revoked; `sluice reload` tells the daemon\n", name);
    }
    X509_free(certificate);
    return status == SL_OK ? CLI_OK : cli_fail(c, status);
}

/* --- list --- */

static bool is_in_file(const char *path, const char *hex)
{
    char line[512];
    bool found = false;
    FILE *f = fopen(path, "re");

    while (f && !found && fgets(line, sizeof line, f))
        found = strncmp(line, hex, strlen(hex)) == 0;
    if (f)
        fclose(f);
    return found;
}

static void list_one(const cli *c, const char *name, cJSON *json)
{
    char path[PATH_BYTES], hex[HEX_BYTES], role[64] = "", expires[64] = "?";
    X509 *certificate = NULL;
    sl_error ignored = { .status = SL_OK };
    struct tm tm;

    if (load_certificate(c, name, &certificate, &ignored) != SL_OK)
        return;
    X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_organizationalUnitName, role,
                              sizeof role);
    const bool server = X509_get_ext_by_NID(certificate, NID_subject_alt_name, -1) >= 0;
    const char *kind = server ? "server" : role[0] ? role : "ca";
    const bool revoked =
        is_in_file(in_dir(c, path, "revoked", ""), fingerprint_of(certificate, hex));
    if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &tm) == 1)
        strftime(expires, sizeof expires, "%Y-%m-%dT%H:%M:%SZ", &tm);
    const bool expired = X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0;
    if (json) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "name", name);
        cJSON_AddStringToObject(item, "kind", kind);
        cJSON_AddStringToObject(item, "expires", expires);
        cJSON_AddBoolToObject(item, "expired", expired);
        cJSON_AddBoolToObject(item, "revoked", revoked);
        cJSON_AddStringToObject(item, "fingerprint", hex);
        cJSON_AddItemToArray(json, item);
    } else {
        printf("%-24s %-7s %s %-8s %s\n", name, kind, expires,
               revoked ? "revoked" : expired ? "expired" : "valid", hex);
    }
    X509_free(certificate);
}

static int list(cli *c)
{
    const char *dir = c->opt.dir ? c->opt.dir : "certs";
    cJSON *json = c->opt.json ? cJSON_CreateArray() : NULL;
    struct dirent **names = NULL;
    const int count = scandir(dir, &names, NULL, alphasort);

    if (count < 0) {
        cJSON_Delete(json);
        return cli_fail(c, sl_fail_errno(&c->err, "could not read \"%s\"", dir));
    }
    for (int i = 0; i < count; i++) {
        char *name = names[i]->d_name;
        const size_t length = strlen(name);
        if (length > 4 && strcmp(name + length - 4, ".pem") == 0) {
            name[length - 4] = '\0';
            list_one(c, name, json);
        }
        free(names[i]);
    }
    free(names);
    if (json) {
        char *text = cJSON_PrintUnformatted(json);
        puts(text ? text : "[]");
        free(text);
    }
    cJSON_Delete(json);
    return CLI_OK;
}

int cli_certs(cli *c)
{
    static const struct {
        const char *name;
        int (*run)(cli *c);
    } verbs[] = { { "init", init }, { "issue", issue }, { "revoke", revoke_one }, { "list", list } };

    for (size_t i = 0; i < SL_COUNT(verbs); i++)
        if (strcmp(c->opt.args[0], verbs[i].name) == 0)
            return verbs[i].run(c);
    return cli_usage(c, "`sluice certs` has init, issue, revoke and list, not \"%s\"",
                     c->opt.args[0]);
}
