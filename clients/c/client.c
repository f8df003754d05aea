/* client.c - one connection to sluiced: calls, deadlines, reconnects.
 *
 *   closed --open and hello--> ready --request sent--> waiting --reply--> ready
 *      ^                         |                        |
 *      +------- any failure, timeout or interrupt --------+
 *
 * A connection on which anything went wrong is closed: a late reply can then
 * never be taken for the next one's, and the server sees at once that nobody
 * waits any more.
 */
#include "clients/c/sluice.h"

#include "base/size.h"
#include "clients/c/transport.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    HELLO_BYTES = 8,
    ID_BYTES = 4,
    /* Closings without a reply after which a server is taken to be refusing
     * the request itself. */
    MAX_CLOSINGS = 8,
};

#define ID_LAST         0x80000000u /* top bit: the last id of a stack */
#define FIRST_BACKOFF   (10 * SL_NS_PER_MS)
#define LONGEST_BACKOFF (1 * SL_NS_PER_S)
/* protobuf-c multiplies what it unpacks: empty sub-messages grow by 100. */
#define UNPACK_LIMIT_BYTES ((size_t)32 << 20)

struct sl_client {
    pthread_mutex_t mutex; /* guards busy */
    pthread_cond_t idle;   /* busy has become false; on the monotonic clock */
    bool busy;             /* a call is under way and owns everything below */
    sl_transport *transport;
    char *token; /* NULL: none */
    uint32_t next_id;
    bool ready;     /* connected, hello exchanged */
    bool was_ready; /* once in this client's life: a daemon is or was there */
    uint8_t *buffer;
    size_t buffer_bytes;
    int interrupt_fd; /* set before calls start */
};

/* ---- life ---- */

char *sl_client_default_socket(char *buf, size_t buf_bytes)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");

    if (geteuid() == 0)
        snprintf(buf, buf_bytes, "/run/sluice/sluice.sock");
    else if (runtime && runtime[0] == '/')
        snprintf(buf, buf_bytes, "%s/sluice/sluice.sock", runtime);
    else
        snprintf(buf, buf_bytes, "/tmp/sluice-%u/sluice.sock", (unsigned)geteuid());
    return buf;
}

static void init_lock(sl_client *client)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&client->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&client->idle, &attr);
    pthread_condattr_destroy(&attr);
}

sl_status sl_client_create(sl_client **out, const char *socket_path, sl_error *err)
{
    const sl_client_options options = { .address = socket_path };

    return sl_client_create_with(out, &options, err);
}

static sl_status open_transport(sl_client *client, const sl_client_options *options, sl_error *err)
{
    char path[4096];
    const char *address = options->address;

    if (address && strncmp(address, SL_TLS_SCHEME, strlen(SL_TLS_SCHEME)) == 0)
        return sl_transport_create_tls(&client->transport, options, err);
    if (!address)
        address = sl_client_default_socket(path, sizeof path);
    else if (strncmp(address, SL_IPC_SCHEME, strlen(SL_IPC_SCHEME)) == 0)
        address += strlen(SL_IPC_SCHEME);
    else if (strstr(address, "://"))
        return sl_fail(err, SL_ERR_INVALID,
                       "address \"%s\": expected " SL_TLS_SCHEME "HOST:PORT or a socket's path",
                       address);
    return sl_transport_create_unix(&client->transport, address, err);
}

sl_status sl_client_create_with(sl_client **out, const sl_client_options *options, sl_error *err)
{
    sl_status status = SL_OK;
    sl_client *client = calloc(1, sizeof *client);

    if (!client)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a client");
    client->interrupt_fd = -1;
    if (options->token && !(client->token = strdup(options->token)))
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a client");
    else
        status = open_transport(client, options, err);
    if (status != SL_OK) {
        free(client->token);
        free(client);
        return status;
    }
    init_lock(client);
    *out = client;
    return SL_OK;
}

void sl_client_destroy(sl_client *client)
{
    if (!client)
        return;
    sl_transport_destroy(client->transport);
    pthread_cond_destroy(&client->idle);
    pthread_mutex_destroy(&client->mutex);
    free(client->token);
    free(client->buffer);
    free(client);
}

void sl_client_set_interrupt(sl_client *client, int fd)
{
    client->interrupt_fd = fd;
}

void sl_message_free(void *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}

void sl_call_details_fini(sl_call_details *details)
{
    if (!details)
        return;
    sl_message_free(details->reply);
    *details = (sl_call_details){ 0 };
}

/* ---- memory ---- */

typedef struct {
    size_t left_bytes;
} unpack_cap;

static void *capped_alloc(void *arg, size_t size_bytes)
{
    unpack_cap *cap = arg;

    if (size_bytes > cap->left_bytes)
        return NULL;
    cap->left_bytes -= size_bytes;
    return malloc(size_bytes);
}

static void capped_free(void *arg, void *memory)
{
    (void)arg;
    free(memory);
}

/* Memory comes from malloc, so that sl_message_free needs no allocator. */
static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *type, size_t size_bytes,
                                const uint8_t *data)
{
    unpack_cap cap = { .left_bytes = UNPACK_LIMIT_BYTES };
    ProtobufCAllocator allocator = {
        .alloc = capped_alloc,
        .free = capped_free,
        .allocator_data = &cap,
    };

    return protobuf_c_message_unpack(type, &allocator, size_bytes, data);
}

static sl_status need_buffer(sl_client *client, size_t size_bytes, sl_error *err)
{
    if (size_bytes <= client->buffer_bytes)
        return SL_OK;
    uint8_t *grown = realloc(client->buffer, size_bytes);
    if (!grown)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a message of %zu bytes",
                       size_bytes);
    client->buffer = grown;
    client->buffer_bytes = size_bytes;
    return SL_OK;
}

/* ---- bytes on the wire (api/WIRE.md) ---- */

static void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void put_be64(uint8_t *p, uint64_t v)
{
    put_be32(p, (uint32_t)(v >> 32));
    put_be32(p + 4, (uint32_t)v);
}

static uint32_t get_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint64_t get_be64(const uint8_t *p)
{
    return (uint64_t)get_be32(p) << 32 | get_be32(p + 4);
}

static sl_status say_hello(sl_transport *transport, const sl_wait *wait, sl_error *err)
{
    static const uint8_t req[HELLO_BYTES] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 };
    static const uint8_t rep[HELLO_BYTES] = { 0, 'S', 'P', 0, 0, 0x31, 0, 0 };
    uint8_t got[HELLO_BYTES];
    sl_status status = transport->ops->write(transport, req, sizeof req, wait, err);

    if (status == SL_OK)
        status = transport->ops->read(transport, got, sizeof got, wait, err);
    if (status == SL_OK && memcmp(got, rep, sizeof rep) != 0)
        status = sl_fail(err, SL_ERR_DATA,
                         "\"%s\" does not speak the SP protocol of a REP socket: its first bytes "
                         "are %02x %02x %02x %02x %02x %02x %02x %02x",
                         transport->address, got[0], got[1], got[2], got[3], got[4], got[5], got[6],
                         got[7]);
    return status;
}

/* Packs mark, length, id and envelope into the buffer. */
static sl_status build_request(sl_client *client, const Sluice__V1__Envelope *envelope, uint32_t id,
                               size_t *frame_bytes, sl_error *err)
{
    const size_t mark = client->transport->ops->length_mark ? 1 : 0;
    const size_t packed = sluice__v1__envelope__get_packed_size(envelope);
    const size_t head = mark + 8 + ID_BYTES;

    if (packed > SL_CLIENT_MAX_REQUEST_BYTES - ID_BYTES)
        return sl_fail(err, SL_ERR_INVALID, "request of %zu bytes is longer than the limit of %zu",
                       packed, SL_CLIENT_MAX_REQUEST_BYTES - ID_BYTES);
    sl_status status = need_buffer(client, head + packed, err);
    if (status != SL_OK)
        return status;
    client->buffer[0] = 1;
    put_be64(client->buffer + mark, ID_BYTES + packed);
    put_be32(client->buffer + mark + 8, id);
    sluice__v1__envelope__pack(envelope, client->buffer + head);
    *frame_bytes = head + packed;
    return SL_OK;
}

/* Reads one message into the buffer: ids and body, without mark and length. */
static sl_status read_message(sl_client *client, const sl_wait *wait, size_t *size_bytes,
                              sl_error *err)
{
    sl_transport *transport = client->transport;
    const size_t mark = transport->ops->length_mark ? 1 : 0;
    uint8_t head[9];
    sl_status status = transport->ops->read(transport, head, mark + 8, wait, err);

    if (status != SL_OK)
        return status;
    const uint64_t length = get_be64(head + mark);
    if (mark && head[0] != 1)
        return sl_fail(err, SL_ERR_DATA, "message from \"%s\" begins with %02x instead of 01",
                       transport->address, head[0]);
    if (length < ID_BYTES || length > SL_CLIENT_MAX_REPLY_BYTES)
        return sl_fail(
            err, SL_ERR_DATA, "message from \"%s\" has %llu bytes; a reply has %d to %zu",
            transport->address, (unsigned long long)length, ID_BYTES, SL_CLIENT_MAX_REPLY_BYTES);
    status = need_buffer(client, (size_t)length, err);
    if (status == SL_OK)
        status = transport->ops->read(transport, client->buffer, (size_t)length, wait, err);
    if (status == SL_OK)
        *size_bytes = (size_t)length;
    return status;
}

/* The reply to `id`; replies to other ids are dropped. */
static sl_status read_reply(sl_client *client, uint32_t id, const sl_wait *wait,
                            Sluice__V1__Reply **out, sl_error *err)
{
    size_t size_bytes = 0;
    uint32_t got = 0;

    do {
        const sl_status status = read_message(client, wait, &size_bytes, err);
        if (status != SL_OK)
            return status;
        got = get_be32(client->buffer);
        if (!(got & ID_LAST))
            return sl_fail(err, SL_ERR_DATA, "reply from \"%s\" has more ids than the request had",
                           client->transport->address);
    } while (got != id);

    *out = (Sluice__V1__Reply *)(void *)unpack(&sluice__v1__reply__descriptor,
                                               size_bytes - ID_BYTES, client->buffer + ID_BYTES);
    if (!*out)
        return sl_fail(err, SL_ERR_DATA, "reply of %zu bytes from \"%s\" is no sluice.v1.Reply",
                       size_bytes - ID_BYTES, client->transport->address);
    return SL_OK;
}

/* ---- one call ---- */

static void drop_connection(sl_client *client)
{
    client->transport->ops->close(client->transport);
    client->ready = false;
}

/* Connects if need be, sends, waits for the reply.  *connected: someone
 * listens there, whatever happened afterwards. */
static sl_status exchange(sl_client *client, Sluice__V1__Envelope *envelope, const sl_wait *wait,
                          bool *connected, Sluice__V1__Reply **out, sl_error *err)
{
    sl_transport *transport = client->transport;
    sl_status status = SL_OK;
    size_t frame_bytes = 0;
    const uint32_t id = client->next_id++ | ID_LAST;

    if (!client->ready) {
        status = transport->ops->open(transport, wait, err);
        *connected = status == SL_OK;
        if (status == SL_OK)
            status = say_hello(transport, wait, err);
        if (status != SL_OK)
            goto done;
        client->ready = client->was_ready = true;
    }
    *connected = true;
    envelope->timeout_ns = wait->deadline_ns - sl_clock_now_ns();
    if (envelope->timeout_ns <= 0) {
        status = sl_fail(err, SL_ERR_TIMEOUT, "deadline passed before %s was sent to \"%s\"",
                         envelope->method, transport->address);
        goto done;
    }
    status = build_request(client, envelope, id, &frame_bytes, err);
    if (status == SL_OK)
        status = transport->ops->write(transport, client->buffer, frame_bytes, wait, err);
    if (status == SL_OK)
        status = read_reply(client, id, wait, out, err);
done:
    if (status != SL_OK)
        drop_connection(client);
    return status;
}

/* exchange, again and again while the connection breaks.  A server that was
 * never there is reported at once; one that was gets a while to come back. */
static sl_status exchange_until(sl_client *client, Sluice__V1__Envelope *envelope,
                                const sl_wait *wait, Sluice__V1__Reply **out, sl_error *err)
{
    int64_t backoff_ns = FIRST_BACKOFF;
    int64_t gone_since_ns = 0;
    int closings = 0;

    for (;;) {
        bool connected = false;
        const sl_status status = exchange(client, envelope, wait, &connected, out, err);
        const int64_t now_ns = sl_clock_now_ns();

        if (status != SL_ERR_UNAVAILABLE)
            return status;
        if (connected) {
            gone_since_ns = 0;
            if (++closings == MAX_CLOSINGS)
                return sl_error_prefix(err, "%s was sent %d times without an answer",
                                       envelope->method, closings);
        } else if (!client->was_ready) {
            return status;
        } else if (gone_since_ns == 0) {
            gone_since_ns = now_ns;
        } else if (now_ns - gone_since_ns > client->transport->ops->gone_ns) {
            return status;
        }
        if (now_ns >= wait->deadline_ns)
            return status;

        sl_wait nap = *wait;
        sl_error nap_err = { .status = SL_OK };
        if (nap.deadline_ns > now_ns + backoff_ns)
            nap.deadline_ns = now_ns + backoff_ns;
        if (sl_wait_fd(&nap, -1, 0, "reconnecting to", client->transport->address, &nap_err) ==
            SL_ERR_CANCELLED) {
            *err = nap_err;
            return SL_ERR_CANCELLED;
        }
        if (nap.deadline_ns >= wait->deadline_ns)
            return status; /* says more than that the deadline has passed */
        backoff_ns = backoff_ns * 2 > LONGEST_BACKOFF ? LONGEST_BACKOFF : backoff_ns * 2;
    }
}

/* ---- what a reply says ---- */

static sl_status status_of_code(int code, const Sluice__V1__Refusal *refusal)
{
    switch (code) {
    case 0:
        return SL_OK;
    case 8: /* three statuses share it; the refusal tells them apart */
        return refusal && refusal->when == SLUICE__V1__REFUSAL__WHEN__NEVER ? SL_ERR_TOO_LARGE
                                                                            : SL_ERR_BUSY;
    case 11: /* OUT_OF_RANGE */
        return SL_ERR_INVALID;
    case 14: /* shared with IO and DEVICE */
        return SL_ERR_UNAVAILABLE;
    default:
        for (int s = 0; s < SL_STATUS_COUNT; s++)
            if (sl_status_grpc_code((sl_status)s) == code)
                return (sl_status)s;
        return SL_ERR_INTERNAL;
    }
}

/* The server's words, with control bytes taken out: they end on terminals. */
static sl_status fail_as_told(const Sluice__V1__Reply *reply, const char *method, sl_error *err)
{
    const sl_status status = status_of_code(reply->code, reply->refusal);

    if (reply->message[0])
        sl_fail(err, status, "%s", reply->message);
    else
        sl_fail(err, status, "%s ended with %s", method, sl_grpc_code_name(reply->code));
    for (char *p = err ? err->message : NULL; p && *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = ' ';
    return status;
}

static sl_status take_payload(const Sluice__V1__Reply *reply, const char *method,
                              const ProtobufCMessageDescriptor *type, ProtobufCMessage **out,
                              sl_error *err)
{
    ProtobufCMessage *message = unpack(type, reply->payload.len, reply->payload.data);

    if (!message)
        return sl_fail(err, SL_ERR_DATA, "reply of %zu bytes to %s is no %s", reply->payload.len,
                       method, type->name);
    *out = message;
    return SL_OK;
}

/* Calls follow each other.  A flag instead of the mutex itself: a deadline holds
 * for those that wait, on the monotonic clock. */
static sl_status begin_call(sl_client *client, int64_t deadline_ns, sl_error *err)
{
    const struct timespec until = { .tv_sec = (time_t)(deadline_ns / SL_NS_PER_S),
                                    .tv_nsec = (long)(deadline_ns % SL_NS_PER_S) };
    bool mine = false;

    pthread_mutex_lock(&client->mutex);
    while (client->busy)
        if (pthread_cond_timedwait(&client->idle, &client->mutex, &until) != 0)
            break;
    if (!client->busy)
        client->busy = mine = true;
    pthread_mutex_unlock(&client->mutex);
    if (!mine)
        return sl_fail(err, SL_ERR_TIMEOUT,
                       "deadline passed while another call on this client was under way");
    return SL_OK;
}

static void end_call(sl_client *client)
{
    pthread_mutex_lock(&client->mutex);
    client->busy = false;
    pthread_cond_signal(&client->idle);
    pthread_mutex_unlock(&client->mutex);
}

sl_status sl_client_call(sl_client *client, const char *method, const ProtobufCMessage *request,
                         const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ns,
                         ProtobufCMessage **out, sl_call_details *details, sl_error *err)
{
    Sluice__V1__Envelope envelope = SLUICE__V1__ENVELOPE__INIT;
    Sluice__V1__Reply *reply = NULL;
    sl_error ignored;
    const sl_wait wait = {
        .deadline_ns = sl_clock_deadline_ns(timeout_ns > 0 ? timeout_ns : SL_CLIENT_DEFAULT_NS),
        .interrupt_fd = client->interrupt_fd,
    };
    bool begun = false;
    sl_status status = SL_OK;

    if (!err)
        err = &ignored;
    if (details)
        *details = (sl_call_details){ 0 };
    envelope.method = (char *)method;
    envelope.api_version = SL_API_VERSION;
    if (client->token)
        envelope.token = client->token;
    envelope.payload.len = protobuf_c_message_get_packed_size(request);
    envelope.payload.data = malloc(envelope.payload.len + 1);
    if (!envelope.payload.data) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a request of %zu bytes",
                         envelope.payload.len);
        goto done;
    }
    protobuf_c_message_pack(request, envelope.payload.data);

    status = begin_call(client, wait.deadline_ns, err);
    begun = status == SL_OK;
    if (status == SL_OK)
        status = exchange_until(client, &envelope, &wait, &reply, err);
    if (status != SL_OK)
        goto done;
    status = reply->code == 0 ? take_payload(reply, method, reply_type, out, err)
                              : fail_as_told(reply, method, err);
done:
    if (begun)
        end_call(client);
    if (details && status != SL_OK) {
        details->answered = reply != NULL;
        details->code = reply && reply->code ? reply->code : sl_status_grpc_code(status);
        details->retry_after_ns = reply ? reply->retry_after_ns : 0;
        details->reply = reply;
        reply = NULL; /* handed to the details */
    }
    sl_message_free(reply);
    free(envelope.payload.data);
    return status;
}
