#include "service/access.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Buckets are kept in sets by the identity's hash; where a set is full the one
 * that was used least recently starts afresh for somebody else, so memory is bounded
 * whoever asks. */
enum { SETS = 256, SET_BUCKETS = 8 };

typedef struct {
    char identity[SL_IDENTITY_BYTES]; /* empty: free */
    double requests;                  /* that may be made now */
    int64_t filled_ns;
} bucket;

struct sl_access {
    sl_audit *audit;
    pthread_mutex_t lock; /* guards the rest */
    sl_tokens tokens;
    sl_access_rate rate;
    bucket buckets[SETS][SET_BUCKETS];
};

sl_status sl_access_create(sl_access **out, sl_tokens *tokens, sl_access_rate rate,
                           sl_audit *audit, sl_error *err)
{
    sl_access *access = calloc(1, sizeof *access);

    if (!access)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for tokens and rates");
    pthread_mutex_init(&access->lock, NULL);
    access->audit = audit;
    access->rate = rate;
    access->tokens = *tokens;
    *tokens = (sl_tokens){ .count = 0 };
    *out = access;
    return SL_OK;
}

void sl_access_destroy(sl_access *access)
{
    if (!access)
        return;
    sl_tokens_fini(&access->tokens);
    pthread_mutex_destroy(&access->lock);
    free(access);
}

bool sl_access_take(sl_access *access, sl_tokens *tokens, sl_access_rate rate)
{
    pthread_mutex_lock(&access->lock);
    const sl_tokens before = access->tokens;
    const size_t bytes = (size_t)before.count * sizeof *before.items;
    const bool differs = before.count != tokens->count
                         || (bytes > 0 && memcmp(before.items, tokens->items, bytes) != 0)
                         || access->rate.rate != rate.rate || access->rate.burst != rate.burst;
    access->tokens = *tokens;
    access->rate = rate;
    pthread_mutex_unlock(&access->lock);
    *tokens = before;
    sl_tokens_fini(tokens);
    return differs;
}

sl_status sl_access_identify(sl_access *access, const char *token, sl_peer *peer, sl_error *err)
{
    const sl_token *found = NULL;

    pthread_mutex_lock(&access->lock);
    const sl_status status = sl_tokens_check(&access->tokens, token,
                                             sl_clock_wall_ns() / SL_NS_PER_S, &found, err);
    if (status == SL_OK) {
        peer->role = found->role;
        snprintf(peer->identity, sizeof peer->identity, "token:%s", found->name);
    }
    pthread_mutex_unlock(&access->lock);
    return status;
}

/* --- rates --- */

static uint32_t hash_identity(const char *identity)
{
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (const char *p = identity; *p; p++)
        hash = (hash ^ (uint8_t)*p) * 16777619u;
    return hash;
}

static bucket *get_bucket(sl_access *access, const char *identity, int64_t now_ns)
{
    bucket *set = access->buckets[hash_identity(identity) % SETS], *oldest = set;

    for (int i = 0; i < SET_BUCKETS; i++) {
        if (strcmp(set[i].identity, identity) == 0)
            return &set[i];
        if (set[i].filled_ns < oldest->filled_ns)
            oldest = &set[i];
    }
    *oldest = (bucket){ .requests = access->rate.burst, .filled_ns = now_ns };
    snprintf(oldest->identity, sizeof oldest->identity, "%s", identity);
    return oldest;
}

sl_status sl_access_admit(sl_access *access, const sl_peer *peer, int64_t now_ns,
                          int64_t *retry_ns, sl_error *err)
{
    sl_status status = SL_OK;

    pthread_mutex_lock(&access->lock);
    const double rate = access->rate.rate;
    if (rate > 0) {
        bucket *b = get_bucket(access, peer->identity, now_ns);
        b->requests += (double)(now_ns - b->filled_ns) / (double)SL_NS_PER_S * rate;
        b->filled_ns = now_ns;
        if (b->requests > access->rate.burst)
            b->requests = access->rate.burst;
        if (b->requests >= 1) {
            b->requests -= 1;
        } else {
            *retry_ns = (int64_t)((1 - b->requests) / rate * (double)SL_NS_PER_S) + 1;
            status = sl_fail(err, SL_ERR_BUSY, "%s has made more than %d requests a second",
                             peer->identity, access->rate.rate);
        }
    }
    pthread_mutex_unlock(&access->lock);
    return status;
}

void sl_access_record(sl_access *access, const sl_audit_entry *entry)
{
    sl_audit_write(access->audit, entry);
}
