#include "service/tokens.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SECRET_BYTES = 32,
    SECRET_DIGITS = 2 * SECRET_BYTES,
    SALT_DIGITS = 2 * SL_TOKEN_SALT_BYTES,
    HASH_DIGITS = 2 * SL_TOKEN_HASH_BYTES,
    MAX_TOKENS = 10000,
    LINE_BYTES = 512,
};

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool from_hex(const char *text, uint8_t *out, size_t bytes)
{
    if (strlen(text) != 2 * bytes)
        return false;
    for (size_t i = 0; i < bytes; i++) {
        const int high = hex_value(text[2 * i]), low = hex_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static void to_hex(const uint8_t *bytes, size_t count, char *out)
{
    for (size_t i = 0; i < count; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

static bool hash_token(const uint8_t salt[SL_TOKEN_SALT_BYTES], const char *text,
                       uint8_t out[SL_TOKEN_HASH_BYTES])
{
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    const bool hashed = digest && EVP_DigestInit_ex(digest, EVP_sha256(), NULL) == 1
                        && EVP_DigestUpdate(digest, salt, SL_TOKEN_SALT_BYTES) == 1
                        && EVP_DigestUpdate(digest, text, strlen(text)) == 1
                        && EVP_DigestFinal_ex(digest, out, NULL) == 1;

    EVP_MD_CTX_free(digest);
    return hashed;
}

static sl_token *find(const sl_tokens *tokens, const char *name, size_t length)
{
    for (int i = 0; i < tokens->count; i++) {
        sl_token *token = &tokens->items[i];
        if (strlen(token->name) == length && memcmp(token->name, name, length) == 0)
            return token;
    }
    return NULL;
}

static sl_status append(sl_tokens *tokens, const sl_token *token, sl_error *err)
{
    sl_token *items = NULL;

    if (tokens->count < MAX_TOKENS)
        items = realloc(tokens->items, ((size_t)tokens->count + 1) * sizeof *items);
    if (!items)
        return sl_fail(err, SL_ERR_NO_MEMORY, "no room for a token beside %d", tokens->count);
    items[tokens->count++] = *token;
    tokens->items = items;
    return SL_OK;
}

/* --- the file --- */

static bool parse_time(const char *text, int64_t *out_s)
{
    char *end = NULL;

    if (strcmp(text, "never") == 0) {
        *out_s = 0;
        return true;
    }
    if (text[0] < '1' || text[0] > '9')
        return false;
    errno = 0;
    *out_s = strtoll(text, &end, 10);
    return errno == 0 && *end == '\0';
}

/* What is wrong with the line; NULL: nothing.  An empty one leaves the name empty. */
static const char *parse_line(char *line, sl_token *out)
{
    static const char blanks[] = " \t\r\n";
    char *rest = NULL, *word[6];

    memset(out, 0, sizeof *out); /* padding, too: lists are compared */
    for (int i = 0; i < 6; i++)
        word[i] = strtok_r(i == 0 ? line : NULL, blanks, &rest);
    if (!word[0] || word[0][0] == '#')
        return NULL;
    if (!word[4] || word[5])
        return "expected name, role, expiry, salt and hash";
    if (!sl_name_valid(word[0], strlen(word[0])))
        return "the name has other than 1 to 64 letters, digits and ._@+-";
    if (!sl_role_parse(word[1], &out->role))
        return "the role is none of viewer, user, admin";
    if (!parse_time(word[2], &out->expires_s))
        return "the expiry is neither seconds since 1970 nor never";
    if (!from_hex(word[3], out->salt, sizeof out->salt)
        || !from_hex(word[4], out->hash, sizeof out->hash))
        return "salt or hash is not of 32 and 64 hex digits";
    memcpy(out->name, word[0], strlen(word[0]) + 1);
    return NULL;
}

sl_status sl_tokens_load(sl_tokens *out, const char *path, sl_error *err)
{
    sl_tokens tokens = { .count = 0 };
    char line[LINE_BYTES];
    sl_status status = SL_OK;
    FILE *f = fopen(path, "re");

    if (!f)
        return sl_fail_errno(err, "could not open the tokens \"%s\"", path);
    for (int number = 1; status == SL_OK && fgets(line, sizeof line, f); number++) {
        sl_token token;
        const char *wrong = strlen(line) == sizeof line - 1 ? "too long" : parse_line(line, &token);
        if (!wrong && token.name[0] && find(&tokens, token.name, strlen(token.name)))
            wrong = "the name is there twice";
        if (wrong)
            status = sl_fail(err, SL_ERR_DATA, "\"%s\", line %d: %s", path, number, wrong);
        else if (token.name[0])
            status = append(&tokens, &token, err);
    }
    if (status == SL_OK && ferror(f))
        status = sl_fail_errno(err, "could not read the tokens \"%s\"", path);
    fclose(f);
    if (status == SL_OK)
        *out = tokens;
    else
        sl_tokens_fini(&tokens);
    return status;
}

static bool write_tokens(const sl_tokens *tokens, FILE *f)
{
    char salt[SALT_DIGITS + 1], hash[HASH_DIGITS + 1], expires[32];

    fputs("# name role expires salt hash\n", f);
    for (int i = 0; i < tokens->count; i++) {
        const sl_token *token = &tokens->items[i];
        to_hex(token->salt, sizeof token->salt, salt);
        to_hex(token->hash, sizeof token->hash, hash);
        snprintf(expires, sizeof expires, "%" PRId64, token->expires_s);
        fprintf(f, "%s %s %s %s %s\n", token->name, sl_role_name(token->role),
                token->expires_s ? expires : "never", salt, hash);
    }
    return fflush(f) == 0 && fsync(fileno(f)) == 0;
}

sl_status sl_tokens_save(const sl_tokens *tokens, const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    char *temporary = NULL;
    FILE *f = NULL;
    int fd = -1;

    if (asprintf(&temporary, "%s.XXXXXX", path) < 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the tokens");
    fd = mkostemp(temporary, O_CLOEXEC); /* with mode 0600 */
    f = fd < 0 ? NULL : fdopen(fd, "w");
    if (!f || !write_tokens(tokens, f) || rename(temporary, path) != 0) {
        status = sl_fail_errno(err, "could not write the tokens \"%s\"", path);
        if (fd >= 0)
            unlink(temporary);
    }
    if (f)
        fclose(f);
    else if (fd >= 0)
        close(fd);
    free(temporary);
    return status;
}

void sl_tokens_fini(sl_tokens *tokens)
{
    free(tokens->items);
    *tokens = (sl_tokens){ .count = 0 };
}

/* --- tokens --- */

sl_status sl_tokens_add(sl_tokens *tokens, const char *name, sl_role role, int64_t expires_s,
                        char text[SL_TOKEN_TEXT_BYTES], sl_error *err)
{
    sl_token token = { .role = role, .expires_s = expires_s };
    uint8_t secret[SECRET_BYTES];
    char digits[SECRET_DIGITS + 1];

    if (!sl_name_valid(name, strlen(name)))
        return sl_fail(err, SL_ERR_INVALID,
                       "name \"%.80s\": expected 1 to %d letters, digits and ._@+-", name,
                       SL_NAME_BYTES - 1);
    if (find(tokens, name, strlen(name)))
        return sl_fail(err, SL_ERR_EXISTS, "there is a token \"%s\" already", name);
    snprintf(token.name, sizeof token.name, "%s", name);
    if (RAND_bytes(secret, sizeof secret) != 1 || RAND_bytes(token.salt, sizeof token.salt) != 1)
        return sl_fail(err, SL_ERR_INTERNAL, "could not get random numbers");
    to_hex(secret, sizeof secret, digits);
    snprintf(text, SL_TOKEN_TEXT_BYTES, "%s.%s", token.name, digits);
    OPENSSL_cleanse(secret, sizeof secret);
    OPENSSL_cleanse(digits, sizeof digits);
    if (!hash_token(token.salt, text, token.hash))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a token");
    return append(tokens, &token, err);
}

sl_status sl_tokens_remove(sl_tokens *tokens, const char *name, sl_error *err)
{
    sl_token *token = find(tokens, name, strlen(name));

    if (!token)
        return sl_fail(err, SL_ERR_NOT_FOUND, "there is no token \"%.80s\"", name);
    const int after = tokens->count - 1 - (int)(token - tokens->items);
    memmove(token, token + 1, (size_t)after * sizeof *token);
    tokens->count--;
    return SL_OK;
}

sl_status sl_tokens_check(const sl_tokens *tokens, const char *text, int64_t now_s,
                          const sl_token **out, sl_error *err)
{
    uint8_t hash[SL_TOKEN_HASH_BYTES];
    const char *dot = strrchr(text, '.');
    const size_t length = dot ? (size_t)(dot - text) : 0;

    if (!sl_name_valid(text, length) || strlen(dot) != 1 + SECRET_DIGITS)
        return sl_fail(err, SL_ERR_UNAUTHENTICATED, "the token is none of this server");
    const sl_token *token = find(tokens, text, length);
    if (!token || !hash_token(token->salt, text, hash)
        || CRYPTO_memcmp(hash, token->hash, sizeof hash) != 0)
        return sl_fail(err, SL_ERR_UNAUTHENTICATED,
                       "the token with the name \"%.*s\" is none of this server", (int)length,
                       text);
    if (token->expires_s != 0 && now_s >= token->expires_s)
        return sl_fail(err, SL_ERR_UNAUTHENTICATED, "the token \"%s\" has expired", token->name);
    *out = token;
    return SL_OK;
}
