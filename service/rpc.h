/* rpc.h - methods behind the front: envelope in, reply out.
 *
 * A REP socket on inproc with one context and one thread per handler.  Each
 * request is unpacked through a capped arena, checked (token, rate, role, size,
 * strings, enums), given to its method, and answered with a gRPC status.  Failed
 * requests are logged here, once; refusals and what admins do go to the audit log.
 *
 * A handler may block until its deadline; there are more handlers than the
 * front lets requests through.
 *
 * Ownership: main creates and destroys it; table and service outlive it.
 * Threads:   create, stop, destroy from one; handlers run side by side.
 */
#ifndef SL_SERVICE_RPC_H
#define SL_SERVICE_RPC_H

#include "api/sluice.pb-c.h"
#include "base/arena.h"
#include "base/status.h"
#include "service/access.h"
#include "service/auth.h"
#include "service/rpc_stats.h"

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

/* One call.  Everything lives until the reply has been sent. */
typedef struct {
    sl_peer peer;
    const char *method;
    const char *trace_id;
    int64_t deadline_ns;             /* monotonic */
    const ProtobufCMessage *request; /* of the method's type, validated */
    sl_arena *arena;                 /* for the reply */

    /* set by the handler */
    ProtobufCMessage *reply;
    int code; /* gRPC code, where a status has none of its own; 0: the status's */
    Sluice__V1__Refusal *refusal;
    const char *field, *field_nearest; /* with SL_ERR_INVALID; in the arena or static */
    int64_t retry_after_ns;
    bool denied; /* whatever the status says: it is somebody else's; for the audit log */
} sl_rpc_call;

typedef sl_status sl_rpc_handler(void *service, sl_rpc_call *call, sl_error *err);

typedef struct {
    const char *name;     /* "sluice.v1.Inference/Health" */
    sl_role role;         /* the least that may call it */
    size_t request_bytes; /* the most of a message */
    int64_t timeout_ns;   /* when the client names none */
    const ProtobufCMessageDescriptor *request;
    sl_rpc_handler *handler;
} sl_rpc_method;

typedef struct {
    const sl_rpc_method *methods;
    int count;
} sl_rpc_table;

/* The size bound of a method, for sl_sp_bound; arg is an sl_rpc_table. */
size_t sl_rpc_bound(void *arg, const char *method, size_t method_bytes);

typedef struct sl_rpc sl_rpc;

/* Listens on url and starts the handlers.  access NULL: tokens are ignored, and nobody
 * asks too often. */
sl_status sl_rpc_create(sl_rpc **out, const char *url, const sl_rpc_table *table, void *service,
                        sl_access *access, int handlers, sl_error *err) SL_MUST_CHECK;
/* Ends the handlers; waits for calls that are under way. */
void sl_rpc_destroy(sl_rpc *rpc); /* NULL is fine */
/* Rows in the order of the table; lives as long as rpc. */
const sl_rpc_stats *sl_rpc_get_stats(const sl_rpc *rpc);

/* Names the field, and the nearest valid value if there is one (nearest may be
 * NULL, copied); returns SL_ERR_INVALID. */
sl_status sl_rpc_fail_field(sl_rpc_call *call, const char *field, const char *nearest,
                            sl_error *err, const char *fmt, ...) SL_PRINTF(5, 6);

/* A message of the given type in the call's arena, initialised; NULL: out of memory. */
void *sl_rpc_new(sl_arena *arena, const ProtobufCMessageDescriptor *descriptor);

#endif
