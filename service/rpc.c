#include "service/rpc.h"

#include "api/peer.pb-c.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/utf8.h"
#include "service/pb_alloc.h"
#include "service/validate.h"
#include "service/wire.h"

#include <errno.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    UNPACK_LIMIT_BYTES = 4 << 20,
    /* a chunk, the method's message around it, and small things */
    REPLY_LIMIT_BYTES = 3 * SL_WIRE_MAX_CHUNK_BYTES,
    MAX_HOPS = 15,
    TRACE_ID_BYTES = 64,
};
#define LONGEST_CALL_NS (1200 * SL_NS_PER_S)

typedef struct {
    struct sl_rpc *rpc;
    pthread_t thread;
    bool started;
    nng_ctx context;
    bool context_open;
    nng_aio *aio;
} rpc_worker;

struct sl_rpc {
    const sl_rpc_table *table;
    void *service;
    sl_access *access;
    sl_rpc_stats *stats;
    nng_socket socket;
    bool socket_open;
    int worker_count;
    rpc_worker *workers;
};

/* --- the method table --- */

static const sl_rpc_method *find_method(const sl_rpc_table *table, const char *name, size_t length)
{
    for (int i = 0; i < table->count; i++) {
        if (strlen(table->methods[i].name) == length
            && memcmp(table->methods[i].name, name, length) == 0)
            return &table->methods[i];
    }
    return NULL;
}

size_t sl_rpc_bound(void *arg, const char *method, size_t method_bytes)
{
    const sl_rpc_method *found = find_method(arg, method, method_bytes);

    return found ? found->request_bytes : 0;
}

void *sl_rpc_new(sl_arena *arena, const ProtobufCMessageDescriptor *descriptor)
{
    ProtobufCMessage *message = sl_arena_alloc(arena, descriptor->sizeof_message);

    if (message)
        descriptor->message_init(message);
    return message;
}

sl_status sl_rpc_fail_field(sl_rpc_call *call, const char *field, const char *nearest,
                            sl_error *err, const char *fmt, ...)
{
    char message[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    call->field = field;
    call->field_nearest = nearest ? sl_arena_strdup(call->arena, nearest) : NULL;
    return sl_fail(err, SL_ERR_INVALID, "%s", message);
}

/* --- one call --- */

/* Splits [length][Peer][Envelope]. */
static sl_status read_peer(const uint8_t **envelope, size_t *envelope_bytes, sl_peer *out,
                           const uint8_t *body, size_t body_bytes, ProtobufCAllocator *allocator,
                           sl_error *err)
{
    if (body_bytes < 4 || sl_wire_get_u32(body) > body_bytes - 4)
        return sl_fail(err, SL_ERR_INTERNAL, "request of %zu bytes from the front has no peer",
                       body_bytes);
    const size_t peer_bytes = sl_wire_get_u32(body);
    const Sluice__Peer__Peer *peer = sluice__peer__peer__unpack(allocator, peer_bytes, body + 4);
    if (!peer || peer->role < SL_ROLE_NONE || peer->role > SL_ROLE_ADMIN)
        return sl_fail(err, SL_ERR_INTERNAL, "the front's peer header is broken");
    out->role = (sl_role)peer->role;
    snprintf(out->identity, sizeof out->identity, "%s", peer->identity);
    snprintf(out->address, sizeof out->address, "%s", peer->address);
    *envelope = body + 4 + peer_bytes;
    *envelope_bytes = body_bytes - 4 - peer_bytes;
    return SL_OK;
}

static int64_t call_deadline(const sl_rpc_method *method, int64_t timeout_ns)
{
    if (timeout_ns <= 0)
        timeout_ns = method->timeout_ns;
    if (timeout_ns > LONGEST_CALL_NS)
        timeout_ns = LONGEST_CALL_NS;
    return sl_clock_deadline_ns(timeout_ns);
}

static sl_status check_role(const sl_rpc_call *call, const sl_rpc_method *method, sl_error *err)
{
    if (call->peer.role >= method->role)
        return SL_OK;
    if (call->peer.role == SL_ROLE_NONE)
        return sl_fail(err, SL_ERR_UNAUTHENTICATED,
                       "%s has no role here: a certificate or token gives one, to users of the "
                       "daemon's machine its configuration (local_users)",
                       call->peer.identity);
    return sl_fail(err, SL_ERR_PERMISSION, "%s needs the role %s, %s has %s", method->name,
                   sl_role_name(method->role), call->peer.identity, sl_role_name(call->peer.role));
}

/* Who asks, and whether they may at this moment. */
static sl_status check_access(sl_rpc *rpc, sl_rpc_call *call, const char *token, sl_error *err)
{
    sl_status status = SL_OK;

    if (!rpc->access)
        return SL_OK;
    if (token[0])
        status = sl_access_identify(rpc->access, token, &call->peer, err);
    if (status == SL_OK)
        status = sl_access_admit(rpc->access, &call->peer, sl_clock_now_ns(),
                                 &call->retry_after_ns, err);
    if (status == SL_ERR_BUSY)
        call->denied = true;
    return status;
}

static sl_status run_method(sl_rpc *rpc, sl_rpc_call *call, const uint8_t *bytes, size_t size,
                            ProtobufCAllocator *allocator, sl_error *err)
{
    char field[128] = "";
    const Sluice__V1__Envelope *envelope =
        sluice__v1__envelope__unpack(allocator, size, bytes);

    if (!envelope)
        return sl_fail(err, SL_ERR_INVALID, "the request is no Envelope, or far too large");
    if (!sl_utf8_valid(envelope->method) || !sl_utf8_valid(envelope->trace_id))
        return sl_fail(err, SL_ERR_INVALID, "method or trace_id is not UTF-8");
    if (strlen(envelope->trace_id) > TRACE_ID_BYTES)
        return sl_fail(err, SL_ERR_INVALID, "trace_id is longer than %d bytes", TRACE_ID_BYTES);
    call->trace_id = envelope->trace_id;
    const sl_rpc_method *method =
        find_method(rpc->table, envelope->method, strlen(envelope->method));
    if (method)
        call->method = method->name;
    sl_status status = check_access(rpc, call, envelope->token, err);
    if (status != SL_OK)
        return status;
    if (!method)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED, "there is no method \"%.100s\"",
                       envelope->method);
    status = check_role(call, method, err);
    if (status != SL_OK)
        return status;
    if (size > method->request_bytes)
        return sl_fail(err, SL_ERR_INVALID, "request of %zu bytes, %s takes %zu", size,
                       method->name, method->request_bytes);
    call->request = protobuf_c_message_unpack(method->request, allocator, envelope->payload.len,
                                              envelope->payload.data);
    if (!call->request)
        return sl_fail(err, SL_ERR_INVALID, "the payload is no %s, or far too large",
                       method->request->short_name);
    status = sl_pb_validate(call->request, field, sizeof field, err);
    if (status != SL_OK) {
        call->field = sl_arena_strdup(call->arena, field);
        return status;
    }
    call->deadline_ns = call_deadline(method, envelope->timeout_ns);
    return method->handler(rpc->service, call, err);
}

static void log_failure(const sl_rpc_call *call, int code, const sl_error *err)
{
    char message[1200], trace[96];
    const bool ours = code == 13 || code == 15;

    sl_log(ours ? SL_LOG_ERROR : SL_LOG_INFO, "request_failed",
           "method=%s code=%s peer=%s identity=%s trace=%s message=%s",
           call->method ? call->method : "unknown", sl_grpc_code_name(code), call->peer.address,
           call->peer.identity, sl_log_quote(trace, sizeof trace, call->trace_id ? call->trace_id : ""),
           sl_log_quote(message, sizeof message, err->message));
}

static bool is_refusal(const sl_rpc_call *call, sl_status status)
{
    return call->denied || status == SL_ERR_PERMISSION || status == SL_ERR_UNAUTHENTICATED
           || status == SL_ERR_EXISTS;
}

/* Refusals, and whatever an admin's method did or did not do. */
static void record(sl_rpc *rpc, const sl_rpc_call *call, sl_status status, int code,
                   const sl_error *err)
{
    const sl_rpc_method *method =
        call->method ? find_method(rpc->table, call->method, strlen(call->method)) : NULL;
    const bool refusal = is_refusal(call, status);

    if (!rpc->access || (!refusal && (!method || method->role < SL_ROLE_ADMIN)))
        return;
    sl_access_record(rpc->access,
                     &(sl_audit_entry){ .identity = call->peer.identity,
                                        .role = call->peer.role,
                                        .address = call->peer.address,
                                        .method = call->method ? call->method : "unknown",
                                        .result = sl_grpc_code_name(code),
                                        .reason = status == SL_OK ? NULL : err->message,
                                        .trace = call->trace_id,
                                        .refusal = refusal });
}

/* Takes the packed size first: nothing grows while it packs. */
static sl_status pack_reply(nng_msg **out, const Sluice__V1__Reply *reply, sl_error *err)
{
    const size_t size = sluice__v1__reply__get_packed_size(reply);

    if (size > SL_WIRE_MAX_REPLY_BYTES)
        return sl_fail(err, SL_ERR_INTERNAL, "reply of %zu bytes, at most %d go out", size,
                       SL_WIRE_MAX_REPLY_BYTES);
    if (nng_msg_alloc(out, size) != 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply of %zu bytes", size);
    sluice__v1__reply__pack(reply, nng_msg_body(*out));
    return SL_OK;
}

static sl_status make_ok_reply(nng_msg **out, const sl_rpc_call *call, sl_error *err)
{
    Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;

    SL_ASSERT(call->reply);
    reply.payload.len = protobuf_c_message_get_packed_size(call->reply);
    reply.payload.data = sl_arena_alloc_raw(call->arena, reply.payload.len);
    if (!reply.payload.data)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply of %zu bytes",
                       reply.payload.len);
    protobuf_c_message_pack(call->reply, reply.payload.data);
    return pack_reply(out, &reply, err);
}

/* *out stays NULL only when there is no memory for even this. */
static void make_error_reply(nng_msg **out, const sl_rpc_call *call, int code, sl_error *err)
{
    Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;
    Sluice__V1__FieldViolation field = SLUICE__V1__FIELD_VIOLATION__INIT;
    sl_error why = { .status = SL_OK };
    char quoted[256];

    reply.code = code;
    reply.message = err->message;
    reply.refusal = call->refusal;
    reply.retry_after_ns = call->retry_after_ns;
    if (call->field) {
        field.field = (char *)call->field;
        field.reason = err->message;
        if (call->field_nearest)
            field.nearest = (char *)call->field_nearest;
        reply.field = &field;
    }
    if (pack_reply(out, &reply, &why) != SL_OK)
        sl_log(SL_LOG_ERROR, "reply_lost", "method=%s reason=%s",
               call->method ? call->method : "unknown",
               sl_log_quote(quoted, sizeof quoted, why.message));
}

/* Of a call that was answered with `code`. */
static sl_rpc_refusal why_refused(const sl_rpc_call *call, int code)
{
    const Sluice__V1__Refusal *refusal = call->refusal;

    if (refusal && refusal->table_rule[0])
        return SL_RPC_REFUSED_TABLE;
    if (refusal && refusal->deadline_ns)
        return SL_RPC_REFUSED_LATE;
    if (refusal)
        return refusal->when == SLUICE__V1__REFUSAL__WHEN__NEVER ? SL_RPC_REFUSED_NEVER
                                                                 : SL_RPC_REFUSED_AFTER;
    return code == 8 ? SL_RPC_REFUSED_BUSY : SL_RPC_NOT_REFUSED;
}

/* What has come of a call, for whoever counts.  A method that is not in the table
 * has no name yet. */
static void count_call(sl_rpc *rpc, const sl_rpc_call *call, int code, int64_t began_ns)
{
    int method = -1;

    for (int i = 0; call->method && i < rpc->table->count; i++) {
        if (rpc->table->methods[i].name == call->method)
            method = i;
    }
    sl_rpc_stats_note(rpc->stats, method, code, sl_clock_now_ns() - began_ns,
                      why_refused(call, code));
}

static nng_msg *answer(sl_rpc *rpc, nng_msg *message)
{
    const int64_t began_ns = sl_clock_now_ns();
    sl_error err = { .status = SL_OK };
    sl_rpc_call call = { .peer = { .role = SL_ROLE_NONE } };
    sl_arena *unpack_arena = NULL;
    nng_msg *out = NULL;
    const uint8_t *envelope = NULL;
    size_t envelope_bytes = 0;
    sl_status status = sl_arena_create(&unpack_arena, UNPACK_LIMIT_BYTES, &err);

    if (status == SL_OK)
        status = sl_arena_create(&call.arena, REPLY_LIMIT_BYTES, &err);
    if (status == SL_OK) {
        ProtobufCAllocator allocator = sl_pb_allocator(unpack_arena);
        status = read_peer(&envelope, &envelope_bytes, &call.peer, nng_msg_body(message),
                           nng_msg_len(message), &allocator, &err);
        if (status == SL_OK)
            status = run_method(rpc, &call, envelope, envelope_bytes, &allocator, &err);
    }
    if (status == SL_OK)
        status = make_ok_reply(&out, &call, &err);
    const int code = status != SL_OK && call.code ? call.code : sl_status_grpc_code(status);
    count_call(rpc, &call, code, began_ns);
    record(rpc, &call, status, code, &err);
    if (status != SL_OK) {
        log_failure(&call, code, &err);
        make_error_reply(&out, &call, code, &err);
    } else if (sl_debug("rpc")) {
        sl_log(SL_LOG_DEBUG, "request_done", "method=%s peer=%s", call.method, call.peer.address);
    }
    sl_arena_destroy(call.arena);
    sl_arena_destroy(unpack_arena);
    return out;
}

/* --- the handlers' threads --- */

/* NULL: the handler is to end. */
static nng_msg *receive(rpc_worker *worker)
{
    for (;;) {
        nng_ctx_recv(worker->context, worker->aio);
        nng_aio_wait(worker->aio);
        const int code = nng_aio_result(worker->aio);
        if (code == 0)
            return nng_aio_get_msg(worker->aio);
        if (code == NNG_ECANCELED || code == NNG_ECLOSED)
            return NULL;
        /* Out of memory, most likely: others may free some. */
        const struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };
        nanosleep(&pause, NULL);
    }
}

static void *handle(void *arg)
{
    rpc_worker *worker = arg;
    nng_msg *message;

    while ((message = receive(worker)) != NULL) {
        nng_msg *reply = answer(worker->rpc, message);
        nng_msg_free(message);
        if (!reply)
            continue; /* the front gives the request up after its deadline */
        nng_aio_set_msg(worker->aio, reply);
        nng_ctx_send(worker->context, worker->aio);
        nng_aio_wait(worker->aio);
        if (nng_aio_result(worker->aio) != 0)
            nng_msg_free(reply);
    }
    return NULL;
}

static sl_status start_worker(sl_rpc *rpc, rpc_worker *worker, sl_error *err)
{
    int code = nng_ctx_open(&worker->context, rpc->socket);

    worker->rpc = rpc;
    if (code == 0) {
        worker->context_open = true;
        code = nng_aio_alloc(&worker->aio, NULL, NULL);
    }
    if (code != 0)
        return sl_fail(err, SL_ERR_INTERNAL, "could not prepare a request handler: %s",
                       nng_strerror(code));
    code = pthread_create(&worker->thread, NULL, handle, worker);
    if (code != 0) {
        errno = code;
        return sl_fail_errno(err, "could not start a request handler");
    }
    worker->started = true;
    return SL_OK;
}

static sl_status open_socket(sl_rpc *rpc, const char *url, sl_error *err)
{
    int code = nng_rep0_open(&rpc->socket);

    if (code == 0) {
        rpc->socket_open = true;
        code = nng_socket_set_size(rpc->socket, NNG_OPT_RECVMAXSZ, 2 << 20);
    }
    if (code == 0)
        code = nng_socket_set_int(rpc->socket, NNG_OPT_MAXTTL, MAX_HOPS);
    if (code == 0)
        code = nng_listen(rpc->socket, url, NULL, 0);
    if (code != 0)
        return sl_fail(err, SL_ERR_INTERNAL, "could not open \"%s\": %s", url, nng_strerror(code));
    return SL_OK;
}

sl_status sl_rpc_create(sl_rpc **out, const char *url, const sl_rpc_table *table, void *service,
                        sl_access *access, int handlers, sl_error *err)
{
    sl_status status = SL_OK;
    sl_rpc *rpc = calloc(1, sizeof *rpc);

    if (!rpc || !(rpc->workers = calloc((size_t)handlers, sizeof *rpc->workers))) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %d request handlers", handlers);
        goto done;
    }
    rpc->table = table;
    rpc->service = service;
    rpc->access = access;
    rpc->worker_count = handlers;
    status = sl_rpc_stats_create(&rpc->stats, table->count, err);
    if (status == SL_OK)
        status = open_socket(rpc, url, err);
    for (int i = 0; i < handlers && status == SL_OK; i++)
        status = start_worker(rpc, &rpc->workers[i], err);
    if (status != SL_OK)
        goto done;
    *out = rpc;
    rpc = NULL;
done:
    sl_rpc_destroy(rpc);
    return status;
}

void sl_rpc_destroy(sl_rpc *rpc)
{
    if (!rpc)
        return;
    /* Stop is for good: a handler that is busy now finds its next receive refused. */
    for (int i = 0; i < rpc->worker_count && rpc->workers; i++) {
        if (rpc->workers[i].aio)
            nng_aio_stop(rpc->workers[i].aio);
    }
    for (int i = 0; i < rpc->worker_count && rpc->workers; i++) {
        rpc_worker *worker = &rpc->workers[i];
        if (worker->started)
            pthread_join(worker->thread, NULL);
        if (worker->context_open)
            nng_ctx_close(worker->context);
        if (worker->aio)
            nng_aio_free(worker->aio);
    }
    if (rpc->socket_open)
        nng_close(rpc->socket);
    sl_rpc_stats_destroy(rpc->stats);
    free(rpc->workers);
    free(rpc);
}

const sl_rpc_stats *sl_rpc_get_stats(const sl_rpc *rpc)
{
    return rpc->stats;
}
