#include "service/rpc_stats.h"

#include "base/clock.h"

#include <stdatomic.h>
#include <stdlib.h>

#define MS SL_NS_PER_MS

/* Most calls take well below a millisecond; long polls, loads and fetches do not. */
const int64_t sl_rpc_bucket_ns[SL_RPC_BUCKETS] = {
    MS / 4,   MS,       5 * MS,    10 * MS,   25 * MS,    50 * MS,
    100 * MS, 500 * MS, 1000 * MS, 5000 * MS, 20000 * MS, 60000 * MS,
};

typedef struct {
    atomic_uint_fast64_t codes[SL_RPC_CODES];
    atomic_uint_fast64_t buckets[SL_RPC_BUCKETS + 1];
    atomic_int_fast64_t sum_ns;
} counters;

struct sl_rpc_stats {
    int methods;
    atomic_uint_fast64_t refusals[SL_RPC_REFUSAL_COUNT];
    counters rows[];
};

static const char *const refusal_names[SL_RPC_REFUSAL_COUNT] = {
#define SL_X(name, text) [SL_RPC_REFUSED_##name] = (text),
    SL_RPC_REFUSALS(SL_X)
#undef SL_X
};

const char *sl_rpc_refusal_name(sl_rpc_refusal reason)
{
    return refusal_names[reason];
}

sl_status sl_rpc_stats_create(sl_rpc_stats **out, int methods, sl_error *err)
{
    sl_rpc_stats *stats = calloc(1, sizeof *stats + (size_t)(methods + 1) * sizeof stats->rows[0]);

    if (!stats)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for counters of %d methods", methods);
    stats->methods = methods;
    *out = stats;
    return SL_OK;
}

void sl_rpc_stats_destroy(sl_rpc_stats *stats)
{
    free(stats);
}

void sl_rpc_stats_note(sl_rpc_stats *stats, int method, int code, int64_t duration_ns,
                       sl_rpc_refusal refusal)
{
    counters *row = &stats->rows[method >= 0 && method < stats->methods ? method : stats->methods];
    int bucket = 0;

    while (bucket < SL_RPC_BUCKETS && duration_ns > sl_rpc_bucket_ns[bucket])
        bucket++;
    atomic_fetch_add_explicit(&row->buckets[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&row->sum_ns, duration_ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&row->codes[code >= 0 && code < SL_RPC_CODES ? code : 2], 1,
                              memory_order_relaxed);
    if (refusal != SL_RPC_NOT_REFUSED)
        atomic_fetch_add_explicit(&stats->refusals[refusal], 1, memory_order_relaxed);
}

void sl_rpc_stats_get(const sl_rpc_stats *stats, int row, sl_rpc_row *out)
{
    const counters *from = &stats->rows[row];

    for (int i = 0; i < SL_RPC_CODES; i++)
        out->codes[i] = atomic_load_explicit(&from->codes[i], memory_order_relaxed);
    for (int i = 0; i <= SL_RPC_BUCKETS; i++)
        out->buckets[i] = atomic_load_explicit(&from->buckets[i], memory_order_relaxed);
    out->sum_ns = atomic_load_explicit(&from->sum_ns, memory_order_relaxed);
}

uint64_t sl_rpc_stats_refusals(const sl_rpc_stats *stats, sl_rpc_refusal reason)
{
    return atomic_load_explicit(&stats->refusals[reason], memory_order_relaxed);
}
