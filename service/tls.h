/* tls.h - the server's certificate, whom it trusts, and whom no longer.
 *
 * The keys are read as a set, and replaced as one while connections go on:
 *
 *     sl_tls_keys_load -> sl_tls_take      new handshakes use them at once
 *
 * Connections made under earlier keys stay, but for those whose certificate does not
 * count any more (sl_tls_judge): it or one above it is revoked by now, or the one that it
 * was traced back to is not among the issuers'.  TLS 1.2 and 1.3, forward secrecy and
 * authenticated ciphers only; no resumption, so that every handshake checks the
 * client's certificate.
 *
 * The list of revoked certificates is a text file: a SHA-256 fingerprint on each
 * line (64 hex digits, with or without colons), then whatever helps to remember whose it was;
 * # begins a comment.
 *
 * Ownership: create/destroy; connections hold the keys they began with.
 * Threads:   any.
 */
#ifndef SL_SERVICE_TLS_H
#define SL_SERVICE_TLS_H

#include "base/status.h"
#include "service/audit.h"
#include "service/door.h"

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum {
    SL_TLS_AUTH_OFF,      /* clients show no certificate: tokens only */
    SL_TLS_AUTH_OPTIONAL, /* who has one shows it */
    SL_TLS_AUTH_REQUIRED,
} sl_tls_client_auth;

typedef struct {
    const char *certificate, *key; /* PEM; the certificate with its chain */
    const char *client_ca;         /* PEM; NULL with SL_TLS_AUTH_OFF */
    const char *revoked;           /* NULL: none are */
    sl_tls_client_auth client_auth;
    int64_t handshake_ns; /* for TLS and SP greeting together */
} sl_tls_config;

enum {
    SL_TLS_FINGERPRINT_BYTES = 32,
    SL_TLS_CHAIN = 6, /* from a client's certificate up to its issuer's that we know */
};

typedef uint8_t sl_tls_fingerprint[SL_TLS_FINGERPRINT_BYTES];

typedef struct sl_tls sl_tls;
typedef struct sl_tls_keys sl_tls_keys;

/* Reads and checks all files. */
sl_status sl_tls_keys_load(sl_tls_keys **out, const sl_tls_config *config,
                           sl_error *err) SL_MUST_CHECK;
void sl_tls_keys_release(sl_tls_keys *keys); /* NULL is fine */

/* Takes keys over, also on failure.  audit is borrowed and may be NULL. */
sl_status sl_tls_create(sl_tls **out, sl_tls_keys *keys, sl_audit *audit,
                        sl_error *err) SL_MUST_CHECK;
void sl_tls_destroy(sl_tls *tls); /* NULL is fine */
/* Before the first connection: handshakes and alerts are counted there (borrowed). */
void sl_tls_set_door(sl_tls *tls, sl_door *door);
/* Before the first connection: whoever comes from this machine's loopback without a
 * certificate has the role of a user. */
void sl_tls_trust_loopback(sl_tls *tls);
/* Takes keys over; true: they are others than before. */
bool sl_tls_take(sl_tls *tls, sl_tls_keys *keys);

/* --- for transport_tls.c --- */

sl_tls_keys *sl_tls_hold(sl_tls *tls); /* the present ones, until release */
SSL_CTX *sl_tls_keys_ctx(const sl_tls_keys *keys);
int64_t sl_tls_keys_handshake_ns(const sl_tls_keys *keys);
unsigned sl_tls_generation(const sl_tls *tls); /* counts sl_tls_take */
/* A line in the log (few a second) and in the audit log.  One thread. */
void sl_tls_note_refused(sl_tls *tls, const char *address, const char *reason);
/* Why a certificate, with those above it up to its issuer's that was known, counts no
 * more, or NULL. */
const char *sl_tls_judge(const sl_tls_keys *keys, const sl_tls_fingerprint *chain, int count);
sl_door *sl_tls_door(sl_tls *tls);
bool sl_tls_trusts_loopback(const sl_tls *tls);

#endif
