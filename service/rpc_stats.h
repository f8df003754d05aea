/* rpc_stats.h - how many calls there were, how they ended and how long they took.
 *
 * One row for each method of the table and one for methods that there are not.
 * Counters only grow; a reader sees each by itself, not all of one moment.
 *
 * Ownership: an sl_rpc creates and destroys it.
 * Threads:   any, without a lock.
 */
#ifndef SL_SERVICE_RPC_STATS_H
#define SL_SERVICE_RPC_STATS_H

#include "base/status.h"

#include <stdint.h>

enum {
    SL_RPC_CODES = 17,   /* gRPC's, 0 to 16 */
    SL_RPC_BUCKETS = 12, /* of latency; beyond the last there is one without an end */
};

/* Upper ends of the buckets. */
extern const int64_t sl_rpc_bucket_ns[SL_RPC_BUCKETS];

/* Why a request was turned down for want of memory, time or room. */
#define SL_RPC_REFUSALS(X)                                                                         \
    X(TABLE, "budget_table") /* a row forbids it */                                                \
    X(NEVER, "never_fits")   /* by bytes */                                                        \
    X(AFTER, "not_now")      /* fits once something else ends */                                   \
    X(LATE, "deadline")      /* queue, load and run would take longer */                           \
    X(BUSY, "busy")          /* a queue, a share or a disk is full */

typedef enum {
#define SL_X(name, text) SL_RPC_REFUSED_##name,
    SL_RPC_REFUSALS(SL_X)
#undef SL_X
        SL_RPC_REFUSAL_COUNT,
    SL_RPC_NOT_REFUSED = -1
} sl_rpc_refusal;

const char *sl_rpc_refusal_name(sl_rpc_refusal reason);

typedef struct sl_rpc_stats sl_rpc_stats;

typedef struct {
    uint64_t codes[SL_RPC_CODES];
    uint64_t buckets[SL_RPC_BUCKETS + 1]; /* each without those before it */
    int64_t sum_ns;
} sl_rpc_row;

sl_status sl_rpc_stats_create(sl_rpc_stats **out, int methods, sl_error *err) SL_MUST_CHECK;
void sl_rpc_stats_destroy(sl_rpc_stats *stats); /* NULL is fine */

/* method: its place in the table; anything else counts as no method. */
void sl_rpc_stats_note(sl_rpc_stats *stats, int method, int code, int64_t duration_ns,
                       sl_rpc_refusal refusal);

/* row: 0 to the number of methods, which is the one of unknown methods. */
void sl_rpc_stats_get(const sl_rpc_stats *stats, int row, sl_rpc_row *out);
uint64_t sl_rpc_stats_refusals(const sl_rpc_stats *stats, sl_rpc_refusal reason);

#endif
