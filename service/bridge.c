#include "service/bridge.h"

#include "api/peer.pb-c.h"
#include "base/log.h"
#include "service/wire.h"

#include <nng/protocol/reqrep0/req.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_CAPACITY = 4096,
    SLOT_BITS = 12,
    GENERATION_MASK = 0x7ffff, /* 19 bits: with the slot's 12 they leave the top bit clear */
};

typedef struct {
    bool used;
    uint32_t generation;
    int64_t sent_ns;
    sl_bridge_tag tag;
} bridge_slot;

struct sl_bridge {
    nng_socket socket;
    bool socket_open;
    nng_aio *receive;
    int capacity, in_flight;
    int free_hint; /* where to look for a free slot first */
    bridge_slot *slots;
    int wake_fd;

    pthread_mutex_t lock; /* guards the ring */
    nng_msg **ring;       /* 2 * capacity: late replies come on top of awaited ones */
    int ring_first, ring_count;
};

static sl_status fail_nng(sl_error *err, int code, const char *what)
{
    return sl_fail(err, code == NNG_ENOMEM ? SL_ERR_NO_MEMORY : SL_ERR_INTERNAL,
                   "could not %s: %s", what, nng_strerror(code));
}

/* On a thread of nng's.  Takes what came and asks for more; never blocks. */
static void on_receive(void *arg)
{
    sl_bridge *bridge = arg;
    const int code = nng_aio_result(bridge->receive);
    const uint64_t one = 1;

    if (code == NNG_ECLOSED || code == NNG_ECANCELED)
        return;
    if (code == 0) {
        nng_msg *message = nng_aio_get_msg(bridge->receive);
        pthread_mutex_lock(&bridge->lock);
        const bool room = bridge->ring_count < 2 * bridge->capacity;
        if (room)
            bridge->ring[(bridge->ring_first + bridge->ring_count++) % (2 * bridge->capacity)] =
                message;
        pthread_mutex_unlock(&bridge->lock);
        if (!room)
            nng_msg_free(message);
        if (write(bridge->wake_fd, &one, sizeof one) < 0)
            sl_log(SL_LOG_ERROR, "front_wake", "could not wake the front");
    }
    nng_recv_aio(bridge->socket, bridge->receive);
}

static sl_status open_socket(sl_bridge *bridge, const char *url, sl_error *err)
{
    int code = nng_req0_open_raw(&bridge->socket);

    if (code != 0)
        return fail_nng(err, code, "open the socket to the service");
    bridge->socket_open = true;
    code = nng_socket_set_size(bridge->socket, NNG_OPT_RECVMAXSZ, SL_WIRE_MAX_REPLY_BYTES + 4096);
    if (code == 0)
        code = nng_socket_set_int(bridge->socket, NNG_OPT_SENDBUF, bridge->capacity);
    if (code == 0)
        code = nng_socket_set_int(bridge->socket, NNG_OPT_RECVBUF, bridge->capacity);
    if (code == 0)
        code = nng_dial(bridge->socket, url, NULL, NNG_FLAG_NONBLOCK);
    if (code != 0)
        return fail_nng(err, code, "reach the service over inproc");
    code = nng_aio_alloc(&bridge->receive, on_receive, bridge);
    if (code != 0)
        return fail_nng(err, code, "prepare receiving from the service");
    nng_recv_aio(bridge->socket, bridge->receive);
    return SL_OK;
}

sl_status sl_bridge_create(sl_bridge **out, const char *url, int capacity, int wake_fd,
                           sl_error *err)
{
    sl_status status = SL_OK;
    sl_bridge *bridge = NULL;

    SL_ASSERT(capacity > 0 && capacity <= MAX_CAPACITY);
    bridge = calloc(1, sizeof *bridge);
    if (!bridge)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the front");
    pthread_mutex_init(&bridge->lock, NULL);
    bridge->capacity = capacity;
    bridge->wake_fd = wake_fd;
    bridge->slots = calloc((size_t)capacity, sizeof *bridge->slots);
    bridge->ring = calloc(2 * (size_t)capacity, sizeof *bridge->ring);
    if (!bridge->slots || !bridge->ring)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %d requests", capacity);
    else
        status = open_socket(bridge, url, err);
    if (status != SL_OK) {
        sl_bridge_destroy(bridge);
        return status;
    }
    *out = bridge;
    return SL_OK;
}

void sl_bridge_destroy(sl_bridge *bridge)
{
    if (!bridge)
        return;
    if (bridge->receive)
        nng_aio_stop(bridge->receive);
    if (bridge->socket_open)
        nng_close(bridge->socket);
    if (bridge->receive)
        nng_aio_free(bridge->receive);
    for (int i = 0; bridge->ring && i < bridge->ring_count; i++)
        nng_msg_free(bridge->ring[(bridge->ring_first + i) % (2 * bridge->capacity)]);
    pthread_mutex_destroy(&bridge->lock);
    free(bridge->ring);
    free(bridge->slots);
    free(bridge);
}

static int find_free_slot(const sl_bridge *bridge)
{
    for (int i = 0; i < bridge->capacity; i++) {
        const int slot = (bridge->free_hint + i) % bridge->capacity;
        if (!bridge->slots[slot].used)
            return slot;
    }
    return -1;
}

static void free_slot(sl_bridge *bridge, int slot)
{
    bridge->slots[slot].used = false;
    bridge->slots[slot].generation = (bridge->slots[slot].generation + 1) & GENERATION_MASK;
    bridge->free_hint = slot;
    bridge->in_flight--;
}

/* [slot id][client's ids] in the header; length, Peer, Envelope in the body. */
static int make_message(nng_msg **out, uint32_t id, const sl_peer *peer, uint64_t connection,
                        const sl_sp_request *request)
{
    Sluice__Peer__Peer pb = SLUICE__PEER__PEER__INIT;
    nng_msg *message = NULL;

    pb.identity = (char *)peer->identity;
    pb.role = (int32_t)peer->role;
    pb.address = (char *)peer->address;
    pb.connection = connection;
    const size_t peer_bytes = sluice__peer__peer__get_packed_size(&pb);
    int code = nng_msg_alloc(&message, 4 + peer_bytes + request->body_bytes);
    if (code != 0)
        return code;
    uint8_t *body = nng_msg_body(message);
    sl_wire_put_u32(body, (uint32_t)peer_bytes);
    sluice__peer__peer__pack(&pb, body + 4);
    if (request->body_bytes)
        memcpy(body + 4 + peer_bytes, request->body, request->body_bytes);
    code = nng_msg_header_append_u32(message, id);
    if (code == 0)
        code = nng_msg_header_append(message, request->ids, request->id_bytes);
    if (code != 0) {
        nng_msg_free(message);
        return code;
    }
    *out = message;
    return 0;
}

sl_status sl_bridge_send(sl_bridge *bridge, sl_bridge_tag tag, const sl_peer *peer,
                         const sl_sp_request *request, int64_t now_ns, sl_error *err)
{
    nng_msg *message = NULL;
    const int slot = find_free_slot(bridge);

    if (slot < 0)
        return sl_fail(err, SL_ERR_BUSY, "%d requests are under way", bridge->in_flight);
    const uint32_t id = (uint32_t)slot << (31 - SLOT_BITS) | bridge->slots[slot].generation;
    int code = make_message(&message, id, peer, tag.connection, request);
    if (code == 0) {
        /* The send buffer holds as many as there are slots: this never waits. */
        code = nng_sendmsg(bridge->socket, message, NNG_FLAG_NONBLOCK);
        if (code != 0)
            nng_msg_free(message);
    }
    if (code != 0)
        return fail_nng(err, code, "pass a request to the service");
    bridge->slots[slot].used = true;
    bridge->slots[slot].tag = tag;
    bridge->slots[slot].sent_ns = now_ns;
    bridge->free_hint = (slot + 1) % bridge->capacity;
    bridge->in_flight++;
    return SL_OK;
}

/* False for a reply to a request that was given up. */
static bool match(sl_bridge *bridge, nng_msg *message, sl_bridge_reply *out)
{
    const uint8_t *header = nng_msg_header(message);
    const size_t header_bytes = nng_msg_header_len(message);

    if (header_bytes < 8)
        return false;
    const uint32_t id = sl_wire_get_u32(header);
    const uint32_t slot = id >> (31 - SLOT_BITS), generation = id & GENERATION_MASK;
    if (slot >= (uint32_t)bridge->capacity || !bridge->slots[slot].used
        || bridge->slots[slot].generation != generation)
        return false;
    *out = (sl_bridge_reply){
        .tag = bridge->slots[slot].tag,
        .message = message,
        .ids = header + 4,
        .id_bytes = header_bytes - 4,
        .body = nng_msg_body(message),
        .body_bytes = nng_msg_len(message),
    };
    free_slot(bridge, (int)slot);
    return true;
}

bool sl_bridge_receive(sl_bridge *bridge, sl_bridge_reply *out)
{
    for (;;) {
        nng_msg *message = NULL;
        pthread_mutex_lock(&bridge->lock);
        if (bridge->ring_count > 0) {
            message = bridge->ring[bridge->ring_first];
            bridge->ring_first = (bridge->ring_first + 1) % (2 * bridge->capacity);
            bridge->ring_count--;
        }
        pthread_mutex_unlock(&bridge->lock);
        if (!message)
            return false;
        if (match(bridge, message, out))
            return true;
        nng_msg_free(message);
    }
}

bool sl_bridge_expire(sl_bridge *bridge, int64_t since_ns, sl_bridge_tag *out)
{
    for (int i = 0; i < bridge->capacity; i++) {
        if (bridge->slots[i].used && bridge->slots[i].sent_ns < since_ns) {
            *out = bridge->slots[i].tag;
            free_slot(bridge, i);
            return true;
        }
    }
    return false;
}

int sl_bridge_in_flight(const sl_bridge *bridge)
{
    return bridge->in_flight;
}
