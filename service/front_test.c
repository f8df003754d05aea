/* The front and the rpc layer together, with made-up methods behind them. */
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

static void rest(int64_t ns)
{
    const struct timespec t = { ns / SL_NS_PER_S, ns % SL_NS_PER_S };

    nanosleep(&t, NULL);
}

static sl_status say(sl_rpc_call *call, const char *text, sl_error *err)
{
    Sluice__V1__HealthReply *reply = sl_rpc_new(call->arena, &sluice__v1__health_reply__descriptor);

    if (!reply)
        return sl_fail(err, SL_ERR_NO_MEMORY, "no memory");
    reply->status = sl_arena_strdup(call->arena, text);
    call->reply = &reply->base;
    return SL_OK;
}

static sl_status do_health(void *service, sl_rpc_call *call, sl_error *err)
{
    SL_ASSERT(service == (void *)&slow_now);
    return say(call, call->peer.identity, err);
}

static sl_status do_slow(void *service, sl_rpc_call *call, sl_error *err)
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

static sl_status do_chunk(void *service, sl_rpc_call *call, sl_error *err)
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

static sl_status do_fail(void *service, sl_rpc_call *call, sl_error *err)
{
    (void)service;
    return sl_rpc_fail_field(call, "width", "832", err, "width 833 is no multiple of 16");
}

static sl_status do_prompt(void *service, sl_rpc_call *call, sl_error *err)
{
    const Sluice__V1__GenerateRequest *r = (const void *)call->request;
    char text[32];

    (void)service;
    snprintf(text, sizeof text, "%zu", strlen(r->prompt));
    return say(call, text, err);
}

#define METHOD(name, role, bytes, request, handler)                                                \
    { "sluice.v1.Inference/" name, role, bytes, 10 * SL_NS_PER_S,                                  \
      &sluice__v1__##request##__descriptor, handler }

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

static void prepare(server *s, const sl_front_config *config, sl_error *err)
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

static void start(server *s, const sl_front_config *config, sl_error *err)
{
    prepare(s, config, err);
    SL_CHECK_OK(sl_front_start(s->front, err));
}

static sl_front_config config_small(void)
{
    sl_front_config config = sl_front_config_default();

    config.connections = 64;
    config.in_flight = IN_FLIGHT;
    config.in_flight_each = EACH;
    return config;
}

static void stop(server *s)
{
    sl_front_stop(s->front, SL_NS_PER_S);
    sl_rpc_destroy(s->rpc);
    sl_front_destroy(s->front);
    SL_CHECK(access(s->path, F_OK) != 0);
}

/* --- a client by hand --- */

static int dial(const server *s)
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

static bool put(int fd, const void *data, size_t n)
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

static bool get(int fd, void *data, size_t n)
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

static int dial_greeted(const server *s)
{
    uint8_t theirs[8];
    const int fd = dial(s);

    SL_CHECK(fd >= 0);
    SL_CHECK(put(fd, greeting, 8) && get(fd, theirs, 8) && theirs[5] == 0x31);
    return fd;
}

/* A packed envelope in malloc'd memory. */
static uint8_t *pack(const char *method, const ProtobufCMessage *request, size_t *size)
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

static bool send_request(int fd, uint32_t id, const char *method, const ProtobufCMessage *request)
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
static Sluice__V1__Reply *get_reply(int fd, uint32_t *id)
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

static bool is_closed(int fd)
{
    char byte;
    ssize_t n;

    while ((n = recv(fd, &byte, 1, 0)) > 0)
        ;
    return n == 0 || errno == ECONNRESET;
}

static void check_healthy(const server *s)
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

static int wait_stats(const server *s, int connections)
{
    for (int i = 0; i < 100; i++) {
        if (atomic_load(&s->door.connections) == connections
            && atomic_load(&s->door.in_flight) == 0)
            break;
        rest(20 * SL_NS_PER_MS);
    }
    return atomic_load(&s->door.connections);
}

static int count_fds(void)
{
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");

    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* --- tests --- */

typedef struct {
    const server *s;
    int calls, good;
} stock_client;

/* A stock REQ socket; nng resends by itself, which the deadline bounds. */
static void *run_stock_client(void *arg)
{
    stock_client *client = arg;
    nng_socket socket;
    size_t size;
    Sluice__V1__GenerateRequest request = SLUICE__V1__GENERATE_REQUEST__INIT;

    if (nng_req0_open(&socket) != 0)
        return NULL;
    nng_socket_set_ms(socket, NNG_OPT_RECVTIMEO, 20000);
    if (nng_dial(socket, client->s->url, NULL, 0) != 0) {
        nng_close(socket);
        return NULL;
    }
    for (int i = 0; i < client->calls; i++) {
        char want[32], prompt[256];
        nng_msg *message = NULL;
        const int length = 1 + (i * 37) % 200;
        memset(prompt, 'x', sizeof prompt);
        prompt[length] = '\0';
        snprintf(want, sizeof want, "%d", length);
        request.prompt = prompt;
        uint8_t *body = pack("Generate", &request.base, &size);
        const bool sent = nng_send(socket, body, size, 0) == 0;
        free(body);
        if (!sent || nng_recvmsg(socket, &message, 0) != 0)
            break;
        Sluice__V1__Reply *reply =
            sluice__v1__reply__unpack(NULL, nng_msg_len(message), nng_msg_body(message));
        nng_msg_free(message);
        if (!reply || reply->code != 0)
            break;
        Sluice__V1__HealthReply *inner = sluice__v1__health_reply__unpack(
            NULL, reply->payload.len, reply->payload.data);
        if (inner && strcmp(inner->status, want) == 0)
            client->good++;
        sluice__v1__health_reply__free_unpacked(inner, NULL);
        sluice__v1__reply__free_unpacked(reply, NULL);
    }
    nng_close(socket);
    return NULL;
}

SL_TEST(a_stock_client_works)
{
    server s;
    const sl_front_config config = config_small();

    start(&s, &config, err);
    stock_client client = { &s, 50, 0 };
    run_stock_client(&client);
    SL_CHECK(client.good == 50);
    stop(&s);
}

SL_TEST(many_clients_at_once)
{
    enum { CLIENTS = 24 };
    server s;
    const sl_front_config config = config_small();
    stock_client clients[CLIENTS];
    pthread_t threads[CLIENTS];

    start(&s, &config, err);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (stock_client){ &s, 60, 0 };
        SL_CHECK(pthread_create(&threads[i], NULL, run_stock_client, &clients[i]) == 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(threads[i], NULL);
        SL_CHECK(clients[i].good == 60);
    }
    stop(&s);
}

SL_TEST(requests_of_one_connection_are_told_apart)
{
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    unsigned seen = 0;

    start(&s, &config, err);
    const int fd = dial_greeted(&s);
    for (uint32_t i = 0; i < 5; i++) {
        request.wait_ns = (5 - (int64_t)i) * 60 * SL_NS_PER_MS;
        SL_CHECK(send_request(fd, 100 + i, "WatchJob", &request.base));
    }
    for (int i = 0; i < 5; i++) {
        uint32_t id = 0;
        Sluice__V1__Reply *reply = get_reply(fd, &id);
        SL_CHECK(reply && reply->code == 0);
        if (i == 0)
            SL_CHECK(id == 104); /* the shortest wait */
        seen |= 1u << (id - 100);
        sluice__v1__reply__free_unpacked(reply, NULL);
    }
    SL_CHECK(seen == 31);
    close(fd);
    stop(&s);
}

SL_TEST(errors_are_replies)
{
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__CancelJobRequest cancel = SLUICE__V1__CANCEL_JOB_REQUEST__INIT;
    Sluice__V1__GenerateRequest generate = SLUICE__V1__GENERATE_REQUEST__INIT;
    uint32_t id = 0;

    start(&s, &config, err);
    const int fd = dial_greeted(&s);
    SL_CHECK(send_request(fd, 1, "Teapot", &cancel.base));
    Sluice__V1__Reply *reply = get_reply(fd, &id);
    SL_CHECK(reply && reply->code == 12 && strstr(reply->message, "Teapot"));
    sluice__v1__reply__free_unpacked(reply, NULL);

    SL_CHECK(send_request(fd, 2, "CancelJob", &cancel.base));
    reply = get_reply(fd, &id);
    SL_CHECK(reply && reply->code == 3 && reply->field);
    SL_CHECK(strcmp(reply->field->field, "width") == 0);
    SL_CHECK(strcmp(reply->field->nearest, "832") == 0);
    sluice__v1__reply__free_unpacked(reply, NULL);

    static const struct {
        const char *prompt;
        int sampler;
        double sigma;
        const char *field;
    } bad[] = { { "\xff", 0, 0, "prompt" },
                { "\xed\xa0\x80", 0, 0, "prompt" },
                { "ok", 99, 0, "sampler" },
                { "ok", 0, NAN, "sigma_max" } };
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        generate.prompt = (char *)bad[i].prompt;
        generate.sampler = (Sluice__V1__Sampler)bad[i].sampler;
        generate.sigma_max = bad[i].sigma;
        SL_CHECK(send_request(fd, 3, "Generate", &generate.base));
        reply = get_reply(fd, &id);
        SL_CHECK(reply && reply->code == 3 && reply->field);
        SL_CHECK(strcmp(reply->field->field, bad[i].field) == 0);
        sluice__v1__reply__free_unpacked(reply, NULL);
    }

    /* Not an Envelope at all. */
    const uint8_t junk[] = { 1, 0, 0, 0, 0, 0, 0, 0, 8, 0x80, 0, 0, 5, 0xff, 0xff, 0xff, 0xff };
    SL_CHECK(put(fd, junk, sizeof junk));
    reply = get_reply(fd, &id);
    SL_CHECK(reply && id == 5 && reply->code == 3);
    sluice__v1__reply__free_unpacked(reply, NULL);
    close(fd);
    stop(&s);
}

/* 900 KiB of empty sub-messages would be a hundred times that in memory. */
SL_TEST(unpacking_is_capped)
{
    server s;
    const sl_front_config config = config_small();
    enum { COUNT = 200000 };
    uint8_t *data = malloc(3 * COUNT + 64);
    uint32_t id = 0;
    size_t n = 13;

    start(&s, &config, err);
    const int fd = dial_greeted(&s);
    const char *method = "sluice.v1.Inference/Generate";
    data[n++] = 0x0a;
    data[n++] = (uint8_t)strlen(method);
    memcpy(data + n, method, strlen(method));
    n += strlen(method);
    data[n++] = 0x12; /* payload: unknown fields, which protobuf-c keeps in an array */
    const size_t payload = 3 * COUNT;
    data[n++] = (uint8_t)(payload | 0x80);
    data[n++] = (uint8_t)(payload >> 7 | 0x80);
    data[n++] = (uint8_t)(payload >> 14);
    for (int i = 0; i < COUNT; i++) {
        data[n++] = 0xfa; /* field 111, length-delimited */
        data[n++] = 0x06;
        data[n++] = 0x00;
    }
    sl_sp_header(data, SL_SP_IPC, n - 9);
    sl_wire_put_u32(data + 9, 0x80000001u);
    SL_CHECK(put(fd, data, n));
    Sluice__V1__Reply *reply = get_reply(fd, &id);
    SL_CHECK(reply && reply->code == 3 && strstr(reply->message, "too large"));
    sluice__v1__reply__free_unpacked(reply, NULL);
    free(data);
    close(fd);
    stop(&s);
}

SL_TEST(sizes_are_bounded_by_method)
{
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__GenerateRequest big = SLUICE__V1__GENERATE_REQUEST__INIT;
    Sluice__V1__CancelJobRequest small = SLUICE__V1__CANCEL_JOB_REQUEST__INIT;
    char *text = malloc(1000001);
    uint32_t id = 0;

    memset(text, 'a', 1000000);
    text[1000000] = '\0';
    start(&s, &config, err);
    int fd = dial_greeted(&s);
    big.prompt = text;
    SL_CHECK(send_request(fd, 9, "Generate", &big.base));
    Sluice__V1__Reply *reply = get_reply(fd, &id);
    SL_CHECK(reply && reply->code == 0);
    sluice__v1__reply__free_unpacked(reply, NULL);
    close(fd);

    fd = dial_greeted(&s);
    text[100000] = '\0';
    small.job_id = text;
    send_request(fd, 9, "CancelJob", &small.base); /* cut off in the middle */
    SL_CHECK(is_closed(fd));
    close(fd);
    check_healthy(&s);
    free(text);
    stop(&s);
}

SL_TEST(garbage_is_cut_off)
{
    static const struct {
        size_t length;
        uint8_t bytes[24];
    } cases[] = {
        { 16, "GET / HTTP/1.1\r\n" },
        { 8, { 0, 'S', 'P', 0, 0, 0x31, 0, 0 } },
        { 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 2 } },
        { 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0x80 } },
        { 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1 } },
        { 21, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4 } },
    };
    server s;
    const sl_front_config config = config_small();

    start(&s, &config, err);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        const int fd = dial(&s);
        SL_CHECK(fd >= 0);
        put(fd, cases[i].bytes, cases[i].length);
        SL_CHECK(is_closed(fd));
        close(fd);
    }
    check_healthy(&s);
    stop(&s);
}

SL_TEST(half_messages_and_silence_end_in_time)
{
    server s;
    sl_front_config config = config_small();
    const uint8_t half[] = { 1, 0, 0, 0, 0, 0, 0, 0, 100, 0x80, 0, 0, 1, 0x0a };

    config.greeting_ns = 300 * SL_NS_PER_MS;
    config.limits.message_ns = config.limits.idle_ns = 300 * SL_NS_PER_MS;
    start(&s, &config, err);
    const int silent = dial(&s), partial = dial_greeted(&s), idle = dial_greeted(&s),
              dripping = dial_greeted(&s);
    const int64_t begin = sl_clock_now_ns();
    SL_CHECK(put(partial, half, sizeof half));
    SL_CHECK(put(dripping, half, sizeof half));
    for (int i = 0; i < 20 && sl_clock_now_ns() - begin < 2 * SL_NS_PER_S; i++) {
        if (!put(dripping, "a", 1))
            break;
        rest(50 * SL_NS_PER_MS);
    }
    SL_CHECK(sl_clock_now_ns() - begin < SL_NS_PER_S); /* dripping does not prolong it */
    SL_CHECK(is_closed(silent) && is_closed(partial) && is_closed(idle) && is_closed(dripping));
    close(silent);
    close(partial);
    close(idle);
    close(dripping);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_NO_GREETING) == 1);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_HALF_MESSAGE) == 2);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_IDLE) == 1);
    check_healthy(&s);
    stop(&s);
}

SL_TEST(a_reader_that_never_reads_is_closed)
{
    server s;
    sl_front_config config = config_small();
    Sluice__V1__FetchOutputRequest request = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;

    config.limits.write_ns = 400 * SL_NS_PER_MS;
    start(&s, &config, err);
    const int fd = dial_greeted(&s);
    for (uint32_t i = 0; i < 8; i++)
        SL_CHECK(send_request(fd, i, "FetchOutput", &request.base));
    check_healthy(&s);
    SL_CHECK(wait_stats(&s, 0) == 0);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_UNREAD) == 1);
    close(fd);
    check_healthy(&s);
    stop(&s);
}

SL_TEST(large_replies_arrive_whole)
{
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__FetchOutputRequest request = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;
    uint32_t id = 0;

    start(&s, &config, err);
    const int fd = dial_greeted(&s);
    for (uint32_t i = 0; i < 12; i++)
        SL_CHECK(send_request(fd, i, "FetchOutput", &request.base));
    for (int i = 0; i < 12; i++) {
        Sluice__V1__Reply *reply = get_reply(fd, &id);
        SL_CHECK(reply && reply->code == 0
                 && reply->payload.len > (size_t)SL_WIRE_MAX_CHUNK_BYTES);
        sluice__v1__reply__free_unpacked(reply, NULL);
    }
    close(fd);
    stop(&s);
}

/* Six slow calls are all that one identity may have under way; more wait
 * in their connections, and everything is answered in the end. */
SL_TEST(requests_above_the_cap_wait_their_turn)
{
    enum { CLIENTS = 12 };
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    int fds[CLIENTS];
    uint32_t id = 0;

    atomic_store(&slow_most, 0);
    start(&s, &config, err);
    request.wait_ns = 200 * SL_NS_PER_MS;
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = dial_greeted(&s);
        SL_CHECK(send_request(fds[i], (uint32_t)i, "WatchJob", &request.base));
    }
    for (int i = 0; i < CLIENTS; i++) {
        Sluice__V1__Reply *reply = get_reply(fds[i], &id);
        SL_CHECK(reply && reply->code == 0 && id == (uint32_t)i);
        sluice__v1__reply__free_unpacked(reply, NULL);
        close(fds[i]);
    }
    SL_CHECK(atomic_load(&slow_most) == EACH);
    stop(&s);
}

/* Of requests of 10 kB two fit below 25 kB; one of 50 kB has its turn, too. */
SL_TEST(requests_above_the_cap_of_bytes_wait_their_turn)
{
    enum { CLIENTS = 6 };
    server s;
    sl_front_config config = config_small();
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    char text[50001];
    int fds[CLIENTS];
    uint32_t id = 0;

    config.bytes_each = 25000;
    atomic_store(&slow_most, 0);
    start(&s, &config, err);
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    request.wait_ns = 100 * SL_NS_PER_MS;
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = dial_greeted(&s);
        request.job_id = text + (i == 3 ? 0 : sizeof text - 1 - 10000);
        SL_CHECK(send_request(fds[i], (uint32_t)i, "WatchJob", &request.base));
    }
    for (int i = 0; i < CLIENTS; i++) {
        Sluice__V1__Reply *reply = get_reply(fds[i], &id);
        SL_CHECK(reply && reply->code == 0 && id == (uint32_t)i);
        sluice__v1__reply__free_unpacked(reply, NULL);
        close(fds[i]);
    }
    SL_CHECK(atomic_load(&slow_most) == 2);
    stop(&s);
}

SL_TEST(a_request_that_waits_too_long_is_answered)
{
    server s;
    sl_front_config config = config_small();
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    int fds[EACH + 1];
    uint32_t id = 0;

    config.park_ns = 200 * SL_NS_PER_MS;
    start(&s, &config, err);
    request.wait_ns = SL_NS_PER_S;
    for (int i = 0; i < EACH + 1; i++) {
        fds[i] = dial_greeted(&s);
        SL_CHECK(send_request(fds[i], 3, "WatchJob", &request.base));
        rest(10 * SL_NS_PER_MS);
    }
    Sluice__V1__Reply *reply = get_reply(fds[EACH], &id);
    SL_CHECK(reply && reply->code == 14 && id == 3 && reply->retry_after_ns > 0);
    sluice__v1__reply__free_unpacked(reply, NULL);
    for (int i = 0; i < EACH + 1; i++)
        close(fds[i]);
    stop(&s);
}

SL_TEST(connections_above_the_cap_are_closed)
{
    server s;
    sl_front_config config = config_small();
    int fds[4];

    config.connections = 3;
    start(&s, &config, err);
    for (int i = 0; i < 3; i++)
        fds[i] = dial_greeted(&s);
    fds[3] = dial(&s);
    SL_CHECK(is_closed(fds[3]));
    SL_CHECK(wait_stats(&s, 3) == 3);
    close(fds[0]);
    SL_CHECK(wait_stats(&s, 2) == 2);
    fds[0] = dial_greeted(&s);
    for (int i = 0; i < 4; i++)
        close(fds[i]);
    stop(&s);
}

SL_TEST(one_identity_cannot_have_all_connections)
{
    sl_front_config config = config_small();
    int fds[6];
    server s;

    config.limits.connections_each = 4;
    start(&s, &config, err);
    for (int i = 0; i < 6; i++)
        fds[i] = dial_greeted(&s);
    SL_CHECK(is_closed(fds[4]) && is_closed(fds[5]));
    SL_CHECK(wait_stats(&s, 4) == 4);
    close(fds[0]);
    SL_CHECK(wait_stats(&s, 3) == 3);
    fds[0] = dial_greeted(&s);
    SL_CHECK(wait_stats(&s, 4) == 4);
    for (int i = 0; i < 6; i++)
        close(fds[i]);
    stop(&s);
}

static int wait_state(const server *s, sl_door_state state, int connections)
{
    for (int i = 0; i < 100 && atomic_load(&s->door.states[state]) != connections; i++)
        rest(20 * SL_NS_PER_MS);
    return atomic_load(&s->door.states[state]);
}

SL_TEST(the_door_counts_who_came)
{
    sl_front_config config = config_small();
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    int fds[EACH + 4];
    server s;

    config.connections = EACH + 3;
    start(&s, &config, err);
    request.wait_ns = SL_NS_PER_S;
    for (int i = 0; i < EACH + 1; i++) { /* one more than may be under way */
        fds[i] = dial_greeted(&s);
        SL_CHECK(send_request(fds[i], 1, "WatchJob", &request.base));
    }
    fds[EACH + 1] = dial_greeted(&s);
    fds[EACH + 2] = dial(&s);
    SL_CHECK(wait_state(&s, SL_DOOR_BUSY, EACH) == EACH);
    SL_CHECK(wait_state(&s, SL_DOOR_PARKED, 1) == 1);
    SL_CHECK(wait_state(&s, SL_DOOR_RESTING, 1) == 1);
    SL_CHECK(wait_state(&s, SL_DOOR_GREETING, 1) == 1);
    SL_CHECK(atomic_load(&s.door.in_flight) == EACH);
    rest(300 * SL_NS_PER_MS); /* then the silent one makes room for another */
    fds[EACH + 3] = dial_greeted(&s);
    for (size_t i = 0; i < SL_COUNT(fds); i++)
        close(fds[i]);
    SL_CHECK(wait_stats(&s, 0) == 0);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_TAKEN) == SL_COUNT(fds));
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_MADE_ROOM) == 1);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_LEFT) == SL_COUNT(fds) - 1);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_BYTES_IN) > 8 * (EACH + 3));
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_BYTES_OUT) >= 8 * SL_COUNT(fds));
    stop(&s);
}

/* Deadlines and caps of a running front. */
SL_TEST(limits_change_while_it_runs)
{
    const sl_front_config config = config_small();
    sl_front_limits limits = config.limits;
    server s;

    start(&s, &config, err);
    const int first = dial_greeted(&s), second = dial_greeted(&s);
    SL_CHECK(wait_state(&s, SL_DOOR_RESTING, 2) == 2); /* their greetings have been read */
    limits.connections_each = 1;
    SL_CHECK(sl_front_set_limits(s.front, &limits));
    SL_CHECK(!sl_front_set_limits(s.front, &limits));
    rest(200 * SL_NS_PER_MS);
    int third = dial_greeted(&s);
    SL_CHECK(is_closed(third));
    close(third);
    SL_CHECK(wait_stats(&s, 2) == 2); /* who is in stays */
    limits.connections_each = 3;
    limits.idle_ns = 200 * SL_NS_PER_MS;
    SL_CHECK(sl_front_set_limits(s.front, &limits));
    rest(200 * SL_NS_PER_MS);
    third = dial_greeted(&s);
    SL_CHECK(is_closed(first) && is_closed(second) && is_closed(third));
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_IDLE) == 3);
    SL_CHECK(sl_door_get(&s.door, SL_DOOR_TOO_MANY) == 1);
    close(first);
    close(second);
    close(third);
    stop(&s);
}

/* --- a crowd at the door --- */

enum { SHAKE_MS = 1, CROWD = 50 };

static sl_status (*accept_unix)(sl_listener *listener, int fd, sl_transport *out, sl_error *err);
static const sl_transport_ops *unix_ops;

/* A handshake that takes its time at each step and never ends. */
static sl_io shake_slowly(sl_transport *transport, uint8_t *at, size_t room, size_t *count)
{
    const int64_t until_ns = sl_clock_now_ns() + SHAKE_MS * SL_NS_PER_MS;

    (void)transport, (void)at, (void)room, (void)count;
    while (sl_clock_now_ns() < until_ns)
        ;
    return SL_IO_WAIT_READ;
}

static void close_slow(sl_transport *transport)
{
    unix_ops->close(transport);
}

static sl_status accept_slow(sl_listener *listener, int fd, sl_transport *out, sl_error *err)
{
    static sl_transport_ops ops;
    const sl_status status = accept_unix(listener, fd, out, err);

    unix_ops = out->ops;
    ops = *out->ops;
    ops.read = shake_slowly;
    ops.close = close_slow;
    out->ops = &ops;
    return status;
}

/* 50 handshakes of 1 ms a step want 50 ms of each turn; whoever is in waits for a few of
 * them at most. */
SL_TEST(newcomers_do_not_delay_those_who_are_in)
{
    enum { CALLS = 41 };
    const sl_front_config config = config_small();
    Sluice__V1__HealthRequest request = SLUICE__V1__HEALTH_REQUEST__INIT;
    sl_listener *listener = NULL;
    int64_t took[CALLS];
    int fds[CROWD], late = 0;
    uint32_t id = 0;
    server s, crowd;

    prepare(&s, &config, err);
    crowd = s;
    snprintf(crowd.path, sizeof crowd.path, "/tmp/sl_front_test_%d.slow", (int)getpid());
    SL_CHECK_OK(sl_unix_listen(&listener, crowd.path, 0600, &s.auth, err));
    accept_unix = listener->accept;
    listener->accept = accept_slow;
    SL_CHECK_OK(sl_front_add(s.front, listener, err));
    SL_CHECK_OK(sl_front_start(s.front, err));
    const int fd = dial_greeted(&s);
    for (int i = 0; i < CROWD; i++) {
        fds[i] = dial(&crowd);
        SL_CHECK(put(fds[i], "x", 1));
    }
    SL_CHECK(wait_state(&s, SL_DOOR_GREETING, CROWD) == CROWD);
    for (int i = 0; i < CALLS; i++) {
        took[i] = sl_clock_now_ns();
        SL_CHECK(send_request(fd, 5, "Health", &request.base));
        Sluice__V1__Reply *reply = get_reply(fd, &id);
        took[i] = sl_clock_now_ns() - took[i];
        SL_CHECK(reply && reply->code == 0);
        sluice__v1__reply__free_unpacked(reply, NULL);
        late += took[i] > CROWD * SHAKE_MS * SL_NS_PER_MS / 2;
    }
    SL_CHECK(late < CALLS / 2); /* the machine may have other things to do now and then */
    for (int i = 0; i < CROWD; i++)
        close(fds[i]);
    close(fd);
    stop(&s);
}

/* Clients that come and go at every stage, also with a reset in the middle of
 * a reply, leave nothing behind. */
SL_TEST(churn_leaves_nothing_behind)
{
    enum { ROUNDS = 2000 };
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__FetchOutputRequest fetch = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;
    Sluice__V1__WatchJobRequest watch = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    const uint8_t half[] = { 1, 0, 0, 0, 0, 0, 0, 0, 100, 0x80, 0, 0, 1, 0x0a };
    char bytes[4096];

    start(&s, &config, err);
    check_healthy(&s);
    SL_CHECK(wait_stats(&s, 0) == 0);
    const int before = count_fds();
    watch.wait_ns = 5 * SL_NS_PER_MS;
    for (int i = 0; i < ROUNDS; i++) {
        const int fd = dial(&s);
        SL_CHECK(fd >= 0);
        if (i % 6 > 0)
            put(fd, greeting, 8);
        if (i % 6 == 1)
            put(fd, half, sizeof half);
        if (i % 6 == 2)
            send_request(fd, 1, "WatchJob", &watch.base);
        if (i % 60 == 3) {
            send_request(fd, 1, "FetchOutput", &fetch.base);
            get(fd, bytes, sizeof bytes);
        }
        if (i % 6 == 4) /* closing with unread bytes is a reset on a Unix socket */
            send_request(fd, 1, "CancelJob", &watch.base);
        close(fd);
    }
    SL_CHECK(wait_stats(&s, 0) == 0);
    SL_CHECK(count_fds() <= before);
    check_healthy(&s);
    stop(&s);
}

SL_TEST(stopping_delivers_what_is_under_way)
{
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
    uint32_t id = 0;

    start(&s, &config, err);
    const int fd = dial_greeted(&s);
    request.wait_ns = 300 * SL_NS_PER_MS;
    SL_CHECK(send_request(fd, 1, "WatchJob", &request.base));
    rest(100 * SL_NS_PER_MS);
    const int64_t begin = sl_clock_now_ns();
    stop(&s);
    SL_CHECK(sl_clock_now_ns() - begin < SL_NS_PER_S);
    Sluice__V1__Reply *reply = get_reply(fd, &id);
    SL_CHECK(reply && reply->code == 0);
    sluice__v1__reply__free_unpacked(reply, NULL);
    SL_CHECK(is_closed(fd));
    close(fd);
}

SL_TEST(roles_are_checked)
{
    server s;
    const sl_front_config config = config_small();
    Sluice__V1__CancelJobRequest cancel = SLUICE__V1__CANCEL_JOB_REQUEST__INIT;
    uint32_t id = 0;
    const sl_auth auth = { .daemon_uid = 1000, .local_users = SL_ROLE_VIEWER };

    SL_CHECK(sl_auth_role(&auth, 0) == SL_ROLE_ADMIN);
    SL_CHECK(sl_auth_role(&auth, 1000) == SL_ROLE_ADMIN);
    SL_CHECK(sl_auth_role(&auth, 1001) == SL_ROLE_VIEWER);
    if (getuid() == 0) /* root is an admin whatever the daemon's uid */
        return;
    start(&s, &config, err);
    s.auth.daemon_uid = getuid() + 1;
    const int fd = dial_greeted(&s);
    SL_CHECK(send_request(fd, 1, "CancelJob", &cancel.base));
    Sluice__V1__Reply *reply = get_reply(fd, &id);
    SL_CHECK(reply && reply->code == 16);
    sluice__v1__reply__free_unpacked(reply, NULL);
    close(fd);
    check_healthy(&s);
    stop(&s);
}

SL_TEST(sockets_are_private_and_stale_ones_replaced)
{
    const sl_auth auth = { .daemon_uid = getuid() };
    sl_listener *first = NULL, *second = NULL;
    struct stat st;
    char path[64], long_path[200];

    snprintf(path, sizeof path, "/tmp/sl_front_test_%d.lst", (int)getpid());
    SL_CHECK_OK(sl_unix_listen(&first, path, 0600, &auth, err));
    SL_CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    SL_CHECK_STATUS(sl_unix_listen(&second, path, 0600, &auth, err), SL_ERR_EXISTS);
    SL_CHECK(strstr(err->message, path));
    close(first->fd); /* as if its process had died: the file stays */
    first->fd = -1;
    SL_CHECK_OK(sl_unix_listen(&second, path, 0666, &auth, err));
    SL_CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0666);
    first->close(first); /* must not remove the other's file */
    SL_CHECK(stat(path, &st) == 0);
    second->close(second);
    SL_CHECK(stat(path, &st) != 0);
    FILE *f = fopen(path, "w");
    fclose(f);
    SL_CHECK_STATUS(sl_unix_listen(&first, path, 0600, &auth, err), SL_ERR_EXISTS);
    SL_CHECK(stat(path, &st) == 0);
    unlink(path);
    memset(long_path, 'a', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = '\0';
    SL_CHECK_STATUS(sl_unix_listen(&first, long_path, 0600, &auth, err), SL_ERR_INVALID);
}

/* Failed requests and cut connections are expected here, by the thousand. */
static int quiet(void **state)
{
    (void)state;
    sl_log_set_level(SL_LOG_ERROR);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(a_stock_client_works),
        SL_RUN(many_clients_at_once),
        SL_RUN(requests_of_one_connection_are_told_apart),
        SL_RUN(errors_are_replies),
        SL_RUN(unpacking_is_capped),
        SL_RUN(sizes_are_bounded_by_method),
        SL_RUN(garbage_is_cut_off),
        SL_RUN(half_messages_and_silence_end_in_time),
        SL_RUN(a_reader_that_never_reads_is_closed),
        SL_RUN(large_replies_arrive_whole),
        SL_RUN(requests_above_the_cap_wait_their_turn),
        SL_RUN(requests_above_the_cap_of_bytes_wait_their_turn),
        SL_RUN(a_request_that_waits_too_long_is_answered),
        SL_RUN(connections_above_the_cap_are_closed),
        SL_RUN(one_identity_cannot_have_all_connections),
        SL_RUN(the_door_counts_who_came),
        SL_RUN(limits_change_while_it_runs),
        SL_RUN(newcomers_do_not_delay_those_who_are_in),
        SL_RUN(churn_leaves_nothing_behind),
        SL_RUN(stopping_delivers_what_is_under_way),
        SL_RUN(roles_are_checked),
        SL_RUN(sockets_are_private_and_stale_ones_replaced),
    };

    return cmocka_run_group_tests(tests, quiet, NULL);
}
