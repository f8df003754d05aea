/* front_test.h - a front with made-up methods behind it, and a client by hand, for tests.
 *
 * Include it once in a program.
 */
#ifndef SL_SERVICE_FRONT_TEST_H
#define SL_SERVICE_FRONT_TEST_H

#include "service/front.h"
#include "service/rpc.h"
#include "service/wire.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/test.h"

#include <dirent.h>
#include <errno.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define URL "inproc://front-test"

enum { HANDLERS = 10, IN_FLIGHT = 8, EACH = 6 };

/* --- methods --- */

static atomic_int slow_now, slow_most;

static inline void rest(int64_t ns)
{
    const struct timespec t = { ns / SL_NS_PER_S, ns % SL_NS_PER_S };

    nanosleep(&t, NULL);
}

static inline sl_status say(sl_rpc_call *call, const char *text, sl_error *err)
{
    Sluice__V1__HealthReply *reply = sl_rpc_new(call->arena, &sluice__v1__health_reply__descriptor);

    if (!reply)
        return sl_fail(err, SL_ERR_NO_MEMORY, "no memory");
    reply->status = sl_arena_strdup(call->arena, text);
    call->reply = &reply->base;
    return SL_OK;
}

static inline sl_status do_health(void *service, sl_rpc_call *call, sl_error *err)
{
    SL_ASSERT(service == (void *)&slow_now);
    return say(call, call->peer.identity, err);
}

static inline sl_status do_slow(void *service, sl_rpc_call *call, sl_error *err)
{
    const Sluice__V1__WatchJobRequest *r = (const void *)call->request;
    const int now = atomic_fetch_add(&slow_now, 1) + 1;
    int most = atomic_load(&slow_most);

    (void)service;
    while (now > most && !atomic_compare_exchange_weak(&slow_most, &most, now))
        ;
    rest(r->wait_ns);
    atomic_fetch_sub(&slow_now, 1);
    return say(call, "slow", err);
}

static inline sl_status do_chunk(void *service, sl_rpc_call *call, sl_error *err)
{
    Sluice__V1__FetchOutputReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__fetch_output_reply__descriptor);
    uint8_t *data = sl_arena_alloc(call->arena, SL_WIRE_MAX_CHUNK_BYTES);

    (void)service;
    if (!reply || !data)
        return sl_fail(err, SL_ERR_NO_MEMORY, "no memory");
    memset(data, 0xab, SL_WIRE_MAX_CHUNK_BYTES);
    reply->data.data = data;
    reply->data.len = SL_WIRE_MAX_CHUNK_BYTES;
    call->reply = &reply->base;
    return SL_OK;
}

static inline sl_status do_fail(void *service, sl_rpc_call *call, sl_error *err)
{
    (void)service;
    return sl_rpc_fail_field(call, "width", "832", err, "width 833 is no multiple of 16");
}

static inline sl_status do_prompt(void *service, sl_rpc_call *call, sl_error *err)
{
    const Sluice__V1__GenerateRequest *r = (const void *)call->request;
    char text[32];

    (void)service;
    snprintf(text, sizeof text, "%zu", strlen(r->prompt));
    return say(call, text, err);
}

#define METHOD(name, role, bytes, request, handler)                                                \
    {                                                                                              \
        "sluice.v1.Inference/" name, role, bytes, 10 * SL_NS_PER_S,                                \
            &sluice__v1__##request##__descriptor, handler                                          \
    }

static const sl_rpc_method methods[] = {
    METHOD("Health", SL_ROLE_NONE, 65536, health_request, do_health),
    METHOD("WatchJob", SL_ROLE_USER, 65536, watch_job_request, do_slow),
    METHOD("FetchOutput", SL_ROLE_USER, 65536, fetch_output_request, do_chunk),
    METHOD("CancelJob", SL_ROLE_USER, 65536, cancel_job_request, do_fail),
    METHOD("Generate", SL_ROLE_USER, 1 << 20, generate_request, do_prompt),
};
static sl_rpc_table table = { methods, SL_COUNT(methods) };

/* --- the server under test --- */

typedef struct {
    sl_auth auth;
    sl_rpc *rpc;
    sl_door door;
    sl_front *front;
    char path[64];
    char url[80];
} server;

static inline void prepare(server *s, const sl_front_config *config, sl_error *err)
{
    sl_front_config used = *config;
    sl_listener *listener = NULL;

    used.service_url = URL;
    used.bound = sl_rpc_bound;
    used.bound_arg = &table;
    *s = (server){ .auth = { .daemon_uid = getuid(), .local_users = SL_ROLE_NONE } };
    used.door = &s->door;
    snprintf(s->path, sizeof s->path, "/tmp/sl_front_test_%d.sock", (int)getpid());
    snprintf(s->url, sizeof s->url, "ipc://%s", s->path);
    SL_CHECK_OK(sl_rpc_create(&s->rpc, URL, &table, &slow_now, NULL, HANDLERS, err));
    SL_CHECK_OK(sl_front_create(&s->front, &used, err));
    SL_CHECK_OK(sl_unix_listen(&listener, s->path, 0600, &s->auth, err));
    SL_CHECK_OK(sl_front_add(s->front, listener, err));
}

static inline void start(server *s, const sl_front_config *config, sl_error *err)
{
    prepare(s, config, err);
    SL_CHECK_OK(sl_front_start(s->front, err));
}

static inline sl_front_config config_small(void)
{
    sl_front_config config = sl_front_config_default();

    config.connections = 64;
    config.in_flight = IN_FLIGHT;
    config.in_flight_each = EACH;
    return config;
}

static inline void stop(server *s)
{
    sl_front_stop(s->front, SL_NS_PER_S);
    sl_rpc_destroy(s->rpc);
    sl_front_destroy(s->front);
    SL_CHECK(access(s->path, F_OK) != 0);
}

/* --- a client by hand --- */

static inline int dial(const server *s)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const struct timeval limit = { .tv_sec = 10 };
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof address.sun_path, "%s", s->path);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static inline bool put(int fd, const void *data, size_t n)
{
    const char *p = data;

    while (n > 0) {
        const ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static inline bool get(int fd, void *data, size_t n)
{
    char *p = data;

    while (n > 0) {
        const ssize_t k = recv(fd, p, n, 0);
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static const uint8_t greeting[8] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 };

static inline int dial_greeted(const server *s)
{
    uint8_t theirs[8];
    const int fd = dial(s);

    SL_CHECK(fd >= 0);
    SL_CHECK(put(fd, greeting, 8) && get(fd, theirs, 8) && theirs[5] == 0x31);
    return fd;
}

/* A packed envelope in malloc'd memory. */
static inline uint8_t *pack(const char *method, const ProtobufCMessage *request, size_t *size)
{
    Sluice__V1__Envelope envelope = SLUICE__V1__ENVELOPE__INIT;
    char name[128];

    snprintf(name, sizeof name, "sluice.v1.Inference/%s", method);
    envelope.method = name;
    envelope.payload.len = protobuf_c_message_get_packed_size(request);
    envelope.payload.data = malloc(envelope.payload.len + 1);
    protobuf_c_message_pack(request, envelope.payload.data);
    *size = sluice__v1__envelope__get_packed_size(&envelope);
    uint8_t *out = malloc(*size);
    sluice__v1__envelope__pack(&envelope, out);
    free(envelope.payload.data);
    return out;
}

static inline bool send_request(int fd, uint32_t id, const char *method,
                                const ProtobufCMessage *request)
{
    size_t size;
    uint8_t head[16];
    uint8_t *body = pack(method, request, &size);
    const size_t n = sl_sp_header(head, SL_SP_IPC, size + 4);

    sl_wire_put_u32(head + n, id | 0x80000000u);
    const bool good = put(fd, head, n + 4) && put(fd, body, size);
    free(body);
    return good;
}

/* NULL: the connection ended. */
static inline Sluice__V1__Reply *get_reply(int fd, uint32_t *id)
{
    uint8_t head[13];
    uint64_t length = 0;

    if (!get(fd, head, sizeof head))
        return NULL;
    for (int i = 1; i < 9; i++)
        length = length << 8 | head[i];
    *id = sl_wire_get_u32(head + 9) & 0x7fffffffu;
    uint8_t *body = malloc(length);
    Sluice__V1__Reply *reply = NULL;
    if (get(fd, body, length - 4))
        reply = sluice__v1__reply__unpack(NULL, length - 4, body);
    free(body);
    return reply;
}

static inline bool is_closed(int fd)
{
    char byte;
    ssize_t n;

    while ((n = recv(fd, &byte, 1, 0)) > 0)
        ;
    return n == 0 || errno == ECONNRESET;
}

static inline void check_healthy(const server *s)
{
    Sluice__V1__HealthRequest request = SLUICE__V1__HEALTH_REQUEST__INIT;
    uint32_t id = 0;
    const int fd = dial_greeted(s);

    SL_CHECK(send_request(fd, 77, "Health", &request.base));
    Sluice__V1__Reply *reply = get_reply(fd, &id);
    SL_CHECK(reply && id == 77 && reply->code == 0);
    sluice__v1__reply__free_unpacked(reply, NULL);
    close(fd);
}

static inline int wait_stats(const server *s, int connections)
{
    for (int i = 0; i < 100; i++) {
        if (atomic_load(&s->door.connections) == connections &&
            atomic_load(&s->door.in_flight) == 0)
            break;
        rest(20 * SL_NS_PER_MS);
    }
    return atomic_load(&s->door.connections);
}

static inline int count_fds(void)
{
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");

    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static inline int wait_state(const server *s, sl_door_state state, int connections)
{
    for (int i = 0; i < 100 && atomic_load(&s->door.states[state]) != connections; i++)
        rest(20 * SL_NS_PER_MS);
    return atomic_load(&s->door.states[state]);
}

/* Failed requests and cut connections are expected here, by the thousand. */
static inline int quiet(void **state)
{
    (void)state;
    sl_log_set_level(SL_LOG_ERROR);
    return 0;
}

#endif
