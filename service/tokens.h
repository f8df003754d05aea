/* tokens.h - bearer tokens: a file of salted hashes.
 *
 * A token is "<name>.<64 hex digits>"; whoever shows it is "token:<name>".  The file
 * has a line for each, and no token can be made from it:
 *
 *     alice user 1800000000 <salt, 32 hex digits> <SHA-256 of salt and token, 64>
 *
 * The third word is when it expires, in seconds since 1970, or "never"; # begins a
 * comment.  The secret is 256 random bits, so one round of a hash is enough.
 *
 * Ownership: load or zero, fini; caller's storage.  Threads: one at a time;
 * reading from any.
 */
#ifndef SL_SERVICE_TOKENS_H
#define SL_SERVICE_TOKENS_H

#include "base/status.h"
#include "service/auth.h"

#include <stdint.h>

enum {
    SL_TOKEN_SALT_BYTES = 16,
    SL_TOKEN_HASH_BYTES = 32,
    SL_TOKEN_TEXT_BYTES = SL_NAME_BYTES + 1 + 64,
};

typedef struct {
    char name[SL_NAME_BYTES];
    sl_role role;
    int64_t expires_s; /* since 1970; 0: never */
    uint8_t salt[SL_TOKEN_SALT_BYTES];
    uint8_t hash[SL_TOKEN_HASH_BYTES];
} sl_token;

typedef struct {
    sl_token *items;
    int count;
} sl_tokens;

/* SL_ERR_NOT_FOUND: no such file. */
sl_status sl_tokens_load(sl_tokens *out, const char *path, sl_error *err) SL_MUST_CHECK;
/* With mode 0600, by rename. */
sl_status sl_tokens_save(const sl_tokens *tokens, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_tokens_fini(sl_tokens *tokens);

/* Makes a token and writes it, terminated, to text: the only time that it is seen. */
sl_status sl_tokens_add(sl_tokens *tokens, const char *name, sl_role role, int64_t expires_s,
                        char text[SL_TOKEN_TEXT_BYTES], sl_error *err) SL_MUST_CHECK;
sl_status sl_tokens_remove(sl_tokens *tokens, const char *name, sl_error *err) SL_MUST_CHECK;

/* Whose it is; borrowed from tokens.  SL_ERR_UNAUTHENTICATED: nobody's, or expired;
 * the message has the name at most. */
sl_status sl_tokens_check(const sl_tokens *tokens, const char *text, int64_t now_s,
                          const sl_token **out, sl_error *err) SL_MUST_CHECK;

#endif
