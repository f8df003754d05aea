/* client_test.c - libsluice against a server that misbehaves on purpose. */
#include "base/test.h"
#include "clients/c/sluice.h"
#include "clients/c/test_server.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void send_health(int fd, const uint8_t id[4])
{
    Sluice__V1__HealthReply health = SLUICE__V1__HEALTH_REPLY__INIT;
    Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;
    uint8_t payload[64];

    health.ready = 1;
    health.status = "ok";
    reply.payload.len = sluice__v1__health_reply__pack(&health, payload);
    reply.payload.data = payload;
    server_reply(fd, id, &reply);
}

static sl_status ask(sl_client *client, int64_t timeout_ns, sl_call_details *details, sl_error *err)
{
    const Sluice__V1__HealthRequest request = SLUICE__V1__HEALTH_REQUEST__INIT;
    Sluice__V1__HealthReply *reply = NULL;
    const sl_status status = sl_client_health(client, &request, timeout_ns, &reply, details, err);

    if (status == SL_OK)
        SL_CHECK(reply->ready && strcmp(reply->status, "ok") == 0);
    else
        SL_CHECK(reply == NULL);
    sl_message_free(reply);
    return status;
}

/* One call of a new client against `script`; took_ms is the wall time. */
static sl_status try_script(script_fn script, int64_t timeout_ns, int *requests, int64_t *took_ms,
                            sl_error *err)
{
    server s;
    sl_client *client = NULL;

    server_start(&s, script);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    const int64_t start_ns = sl_clock_now_ns();
    const sl_status status = ask(client, timeout_ns, NULL, err);
    *took_ms = (sl_clock_now_ns() - start_ns) / SL_NS_PER_MS;
    sl_client_destroy(client);
    server_end(&s);
    *requests = atomic_load(&s.requests);
    return status;
}

/* ---- scripts ---- */

static void serve_health(server *s, int fd, int connection)
{
    uint8_t id[4];
    Sluice__V1__Envelope *e = NULL;

    (void)connection;
    if (!server_greet(s, fd))
        return;
    while ((e = server_request(s, fd, id))) {
        if (strcmp(e->method, "sluice.v1.Inference/Health") == 0 && e->api_version == 1 &&
            e->timeout_ns > 0)
            send_health(fd, id);
        sluice__v1__envelope__free_unpacked(e, NULL);
    }
}

static void serve_slowly(server *s, int fd, int connection)
{
    Sluice__V1__HealthReply health = SLUICE__V1__HEALTH_REPLY__INIT;
    Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;
    uint8_t id[4], payload[64], body[64], hello[8];
    size_t bytes = 0;

    (void)connection;
    if (!server_read(s, fd, hello, sizeof hello))
        return;
    for (size_t i = 0; i < sizeof server_hello; i++)
        server_write(fd, server_hello + i, 1);
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    if (!e)
        return;
    sluice__v1__envelope__free_unpacked(e, NULL);
    health.ready = 1;
    health.status = "ok";
    reply.payload.len = sluice__v1__health_reply__pack(&health, payload);
    reply.payload.data = payload;
    uint8_t *wire = server_make_reply(id, body, sluice__v1__reply__pack(&reply, body), &bytes);
    for (size_t i = 0; i < bytes; i++) {
        server_write(fd, wire + i, 1);
        usleep(1000);
    }
    free(wire);
    server_linger(s, fd);
}

/* A server of a later version: fields that this client does not know, of each wire type,
 * in the reply and in its payload. */
static void serve_later_fields(server *s, int fd, int connection)
{
    static const uint8_t later[] = {
        0xc0, 0x3e, 0x07,                            /* 1000: varint */
        0xc9, 0x3e, 1, 2, 3, 4, 5, 6, 7, 8,          /* 1001: 64 bits */
        0xd2, 0x3e, 0x05, 'l', 'a', 't', 'e', 'r',   /* 1002: bytes */
        0xdd, 0x3e, 9, 9, 9, 9,                      /* 1003: 32 bits */
    };
    Sluice__V1__HealthReply health = SLUICE__V1__HEALTH_REPLY__INIT;
    Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;
    uint8_t id[4], payload[128], body[256];
    size_t bytes = 0;

    (void)connection;
    if (!server_greet(s, fd))
        return;
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    if (!e)
        return;
    sluice__v1__envelope__free_unpacked(e, NULL);
    health.ready = 1;
    health.status = "ok";
    health.api_version = 2;
    const size_t known = sluice__v1__health_reply__pack(&health, payload);
    memcpy(payload + known, later, sizeof later);
    reply.payload.data = payload;
    reply.payload.len = known + sizeof later;
    const size_t packed = sluice__v1__reply__pack(&reply, body);
    memcpy(body + packed, later, sizeof later);
    uint8_t *wire = server_make_reply(id, body, packed + sizeof later, &bytes);
    server_write(fd, wire, bytes);
    free(wire);
    server_linger(s, fd);
}

static void say_nothing(server *s, int fd, int connection)
{
    (void)connection;
    server_linger(s, fd);
}

static void greet_only(server *s, int fd, int connection)
{
    (void)connection;
    if (server_greet(s, fd))
        server_linger(s, fd);
}

static void greet_as_req(server *s, int fd, int connection)
{
    static const uint8_t req[8] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 };

    (void)connection;
    server_write(fd, req, sizeof req);
    server_linger(s, fd);
}

static void greet_as_http(server *s, int fd, int connection)
{
    (void)connection;
    server_write(fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28);
    server_linger(s, fd);
}

/* After a good request: these bytes. */
static void answer_raw(server *s, int fd, const uint8_t *bytes, size_t size_bytes)
{
    uint8_t id[4];

    if (!server_greet(s, fd))
        return;
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    if (!e)
        return;
    sluice__v1__envelope__free_unpacked(e, NULL);
    server_write(fd, bytes, size_bytes);
    server_linger(s, fd);
}

static void answer_oversize(server *s, int fd, int connection)
{
    static const uint8_t bytes[9] = { 1, 0, 0, 0, 0, 0x00, 0x41, 0, 1 }; /* 4 MiB + 64 KiB + 1 */

    (void)connection;
    answer_raw(s, fd, bytes, sizeof bytes);
}

static void answer_huge(server *s, int fd, int connection)
{
    static const uint8_t bytes[9] = { 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

    (void)connection;
    answer_raw(s, fd, bytes, sizeof bytes);
}

static void answer_too_short(server *s, int fd, int connection)
{
    static const uint8_t bytes[12] = { 1, 0, 0, 0, 0, 0, 0, 0, 3, 0x80, 0, 0 };

    (void)connection;
    answer_raw(s, fd, bytes, sizeof bytes);
}

static void answer_wrong_mark(server *s, int fd, int connection)
{
    static const uint8_t bytes[13] = { 2, 0, 0, 0, 0, 0, 0, 0, 4, 0x80, 0, 0, 0 };

    (void)connection;
    answer_raw(s, fd, bytes, sizeof bytes);
}

static void answer_deep_stack(server *s, int fd, int connection)
{
    static const uint8_t bytes[17] = { 1, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0x80, 0, 0, 0 };

    (void)connection;
    answer_raw(s, fd, bytes, sizeof bytes);
}

/* A reply whose body is `body`, to the right id. */
static void answer_body(server *s, int fd, const uint8_t *body, size_t body_bytes)
{
    uint8_t id[4];
    size_t bytes = 0;

    if (!server_greet(s, fd))
        return;
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    if (!e)
        return;
    sluice__v1__envelope__free_unpacked(e, NULL);
    uint8_t *wire = server_make_reply(id, body, body_bytes, &bytes);
    server_write(fd, wire, bytes);
    free(wire);
    server_linger(s, fd);
}

static void answer_garbage(server *s, int fd, int connection)
{
    static const uint8_t body[] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

    (void)connection;
    answer_body(s, fd, body, sizeof body);
}

static void answer_garbage_payload(server *s, int fd, int connection)
{
    static const uint8_t body[] = { 0x1a, 3, 0x12, 0x7f, 0 }; /* a string longer than the rest */

    (void)connection;
    answer_body(s, fd, body, sizeof body);
}

/* HealthReply.devices (field 6), empty, two million times: more memory than
 * any reply deserves. */
static void answer_bomb(server *s, int fd, int connection)
{
    const size_t payload_bytes = (size_t)4 << 20;
    uint8_t *body = malloc(payload_bytes + 5);
    size_t n = 0;

    (void)connection;
    body[n++] = 0x1a;
    body[n++] = 0x80 | (payload_bytes & 0x7f);
    body[n++] = 0x80 | ((payload_bytes >> 7) & 0x7f);
    body[n++] = 0x80 | ((payload_bytes >> 14) & 0x7f);
    body[n++] = (uint8_t)(payload_bytes >> 21);
    for (size_t i = 0; i < payload_bytes; i += 2) {
        body[n + i] = 0x32;
        body[n + i + 1] = 0;
    }
    answer_body(s, fd, body, n + payload_bytes);
    free(body);
}

/* The first connection dies in the middle of the reply, the others serve. */
static void break_first(server *s, int fd, int connection)
{
    uint8_t id[4];

    if (connection > 0) {
        serve_health(s, fd, connection);
        return;
    }
    if (!server_greet(s, fd))
        return;
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    sluice__v1__envelope__free_unpacked(e, NULL);
    server_write(fd, "\1\0\0\0\0\0\0\0", 8);
}

static void hang_up_on_request(server *s, int fd, int connection)
{
    uint8_t id[4];

    (void)connection;
    if (server_greet(s, fd))
        sluice__v1__envelope__free_unpacked(server_request(s, fd, id), NULL);
}

static void serve_once(server *s, int fd, int connection)
{
    uint8_t id[4];

    (void)connection;
    if (!server_greet(s, fd))
        return;
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    if (!e)
        return;
    sluice__v1__envelope__free_unpacked(e, NULL);
    send_health(fd, id);
}

/* Replies to another id first, once and then for ever. */
static void serve_stale(server *s, int fd, int connection)
{
    uint8_t id[4], other[4];

    (void)connection;
    if (!server_greet(s, fd))
        return;
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    if (!e)
        return;
    sluice__v1__envelope__free_unpacked(e, NULL);
    memcpy(other, id, 4);
    other[3] ^= 1;
    send_health(fd, other);
    send_health(fd, id);
    server_linger(s, fd);
}

static void flood_stale(server *s, int fd, int connection)
{
    uint8_t id[4];
    struct pollfd stop = { .fd = s->stop[0], .events = POLLIN };

    (void)connection;
    if (!server_greet(s, fd))
        return;
    Sluice__V1__Envelope *e = server_request(s, fd, id);
    if (!e)
        return;
    sluice__v1__envelope__free_unpacked(e, NULL);
    id[3] ^= 1;
    while (poll(&stop, 1, 0) == 0) {
        size_t bytes = 0;
        uint8_t *wire = server_make_reply(id, "", 0, &bytes);
        const bool gone = send(fd, wire, bytes, MSG_NOSIGNAL) <= 0;
        free(wire);
        if (gone)
            return;
    }
}

static void refuse(server *s, int fd, int connection)
{
    Sluice__V1__Refusal refusal = SLUICE__V1__REFUSAL__INIT;
    Sluice__V1__NearestRequest nearest = SLUICE__V1__NEAREST_REQUEST__INIT;
    Sluice__V1__FieldViolation field = SLUICE__V1__FIELD_VIOLATION__INIT;
    uint8_t id[4];
    Sluice__V1__Envelope *e = NULL;

    (void)connection;
    if (!server_greet(s, fd))
        return;
    for (int i = 0; (e = server_request(s, fd, id)); i++) {
        Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;

        sluice__v1__envelope__free_unpacked(e, NULL);
        nearest.exists = 1;
        nearest.width = 832;
        refusal.nearest = &nearest;
        refusal.need_bytes = 77;
        refusal.when = i == 0 ? SLUICE__V1__REFUSAL__WHEN__NEVER : SLUICE__V1__REFUSAL__WHEN__AFTER;
        field.field = "width";
        field.nearest = "48";
        reply.code = i < 2 ? 8 : 3;
        reply.message = "no\x1b[31m room";
        reply.refusal = i < 2 ? &refusal : NULL;
        reply.field = i < 2 ? NULL : &field;
        reply.retry_after_ns = 5;
        server_reply(fd, id, &reply);
    }
}

/* ---- calls ---- */

SL_TEST(answers_and_keeps_the_connection)
{
    server s;
    sl_client *client = NULL;

    server_start(&s, serve_health);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    for (int i = 0; i < 20; i++)
        SL_CHECK_OK(ask(client, 5 * SL_NS_PER_S, NULL, err));
    sl_client_destroy(client);
    server_end(&s);
    SL_CHECK(atomic_load(&s.connections) == 1);
    SL_CHECK(atomic_load(&s.requests) == 20);
}

SL_TEST(reads_a_reply_that_comes_byte_by_byte)
{
    int requests = 0;
    int64_t took_ms = 0;

    SL_CHECK_OK(try_script(serve_slowly, 10 * SL_NS_PER_S, &requests, &took_ms, err));
}

SL_TEST(a_newer_server_is_understood)
{
    int requests = 0;
    int64_t took_ms = 0;

    SL_CHECK_OK(try_script(serve_later_fields, 5 * SL_NS_PER_S, &requests, &took_ms, err));
    SL_CHECK(requests == 1);
}

SL_TEST(silence_ends_at_the_deadline)
{
    static const script_fn scripts[] = { say_nothing, greet_only, flood_stale };

    for (size_t i = 0; i < SL_COUNT(scripts); i++) {
        int requests = 0;
        int64_t took_ms = 0;

        SL_CHECK_STATUS(try_script(scripts[i], 200 * SL_NS_PER_MS, &requests, &took_ms, err),
                        SL_ERR_TIMEOUT);
        SL_CHECK(took_ms >= 199 && took_ms < 2000);
    }
}

SL_TEST(what_is_not_the_protocol_is_refused_at_once)
{
    static const struct {
        script_fn script;
        const char *words;
    } cases[] = {
        { greet_as_req, "does not speak" },
        { greet_as_http, "does not speak" },
        { answer_oversize, "4259841 bytes" },
        { answer_huge, "18446744073709551615 bytes" },
        { answer_too_short, "3 bytes" },
        { answer_wrong_mark, "begins with 02" },
        { answer_deep_stack, "more ids" },
        { answer_garbage, "no sluice.v1.Reply" },
        { answer_garbage_payload, "no sluice.v1.HealthReply" },
        { answer_bomb, "no sluice.v1.HealthReply" },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        int requests = 0;
        int64_t took_ms = 0;

        SL_CHECK_STATUS(try_script(cases[i].script, 10 * SL_NS_PER_S, &requests, &took_ms, err),
                        SL_ERR_DATA);
        if (!strstr(err->message, cases[i].words))
            fail_msg("\"%s\" not in \"%s\"", cases[i].words, err->message);
        SL_CHECK(requests <= 1 && took_ms < 5000);
    }
}

SL_TEST(sends_again_when_the_connection_breaks)
{
    int requests = 0;
    int64_t took_ms = 0;

    SL_CHECK_OK(try_script(break_first, 10 * SL_NS_PER_S, &requests, &took_ms, err));
    SL_CHECK(requests == 2);
}

SL_TEST(gives_up_on_a_server_that_always_hangs_up)
{
    int requests = 0;
    int64_t took_ms = 0;

    SL_CHECK_STATUS(try_script(hang_up_on_request, 30 * SL_NS_PER_S, &requests, &took_ms, err),
                    SL_ERR_UNAVAILABLE);
    SL_CHECK(requests == 8 && took_ms < 10000);
    /* A deadline before that ends it; where it falls decides the status. */
    const sl_status status =
        try_script(hang_up_on_request, 150 * SL_NS_PER_MS, &requests, &took_ms, err);
    SL_CHECK(status == SL_ERR_UNAVAILABLE || status == SL_ERR_TIMEOUT);
    SL_CHECK(requests < 8 && took_ms < 2000);
}

SL_TEST(reports_an_absent_daemon_at_once)
{
    server s;
    sl_client *client = NULL;
    sl_call_details details;

    server_name(&s);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(ask(client, 20 * SL_NS_PER_S, &details, err), SL_ERR_UNAVAILABLE);
    SL_CHECK(sl_clock_now_ns() - start_ns < SL_NS_PER_S);
    SL_CHECK(!details.answered && details.code == 14 && !details.reply);
    SL_CHECK(strstr(err->message, "is the daemon running?"));
    sl_call_details_fini(&details);
    sl_client_destroy(client);
    SL_CHECK(rmdir(s.dir) == 0);
}

static void *restart_later(void *arg)
{
    server *s = arg;

    usleep(300 * 1000);
    server_run(s, serve_health);
    return NULL;
}

SL_TEST(waits_for_a_daemon_that_is_being_restarted)
{
    server s;
    sl_client *client = NULL;
    pthread_t thread;

    server_start(&s, serve_once);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    SL_CHECK_OK(ask(client, 5 * SL_NS_PER_S, NULL, err));
    server_halt(&s);
    SL_CHECK(pthread_create(&thread, NULL, restart_later, &s) == 0);
    SL_CHECK_OK(ask(client, 10 * SL_NS_PER_S, NULL, err));
    pthread_join(thread, NULL);
    server_halt(&s);
    /* Gone for good: the deadline ends the wait. */
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(ask(client, 300 * SL_NS_PER_MS, NULL, err), SL_ERR_UNAVAILABLE);
    SL_CHECK(sl_clock_now_ns() - start_ns < 3 * SL_NS_PER_S);
    sl_client_destroy(client);
    unlink(s.path);
    SL_CHECK(rmdir(s.dir) == 0);
}

SL_TEST(drops_replies_to_other_requests)
{
    int requests = 0;
    int64_t took_ms = 0;

    SL_CHECK_OK(try_script(serve_stale, 10 * SL_NS_PER_S, &requests, &took_ms, err));
}

SL_TEST(passes_on_what_the_server_says)
{
    static const sl_status want[] = { SL_ERR_TOO_LARGE, SL_ERR_BUSY, SL_ERR_INVALID };
    server s;
    sl_client *client = NULL;

    server_start(&s, refuse);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    for (int i = 0; i < 3; i++) {
        sl_call_details details;

        SL_CHECK_STATUS(ask(client, 5 * SL_NS_PER_S, &details, err), want[i]);
        SL_CHECK(strcmp(err->message, "no [31m room") == 0);
        SL_CHECK(details.answered && details.code == (i < 2 ? 8 : 3));
        SL_CHECK(details.retry_after_ns == 5);
        if (i < 2)
            SL_CHECK(details.reply->refusal->nearest->width == 832);
        else
            SL_CHECK(strcmp(details.reply->field->nearest, "48") == 0);
        sl_call_details_fini(&details);
    }
    sl_client_destroy(client);
    server_end(&s);
    SL_CHECK(atomic_load(&s.connections) == 1);
}

SL_TEST(refuses_a_request_that_is_too_long)
{
    server s;
    sl_client *client = NULL;
    Sluice__V1__GenerateRequest request = SLUICE__V1__GENERATE_REQUEST__INIT;
    Sluice__V1__GenerateReply *reply = NULL;
    const size_t length = SL_CLIENT_MAX_REQUEST_BYTES;

    server_start(&s, serve_health);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    request.prompt = malloc(length + 1);
    memset(request.prompt, 'a', length);
    request.prompt[length] = 0;
    SL_CHECK_STATUS(sl_client_generate(client, &request, 5 * SL_NS_PER_S, &reply, NULL, err),
                    SL_ERR_INVALID);
    free(request.prompt);
    SL_CHECK_OK(ask(client, 5 * SL_NS_PER_S, NULL, err));
    sl_client_destroy(client);
    server_end(&s);
}

SL_TEST(refuses_paths_that_no_socket_has)
{
    sl_client *client = NULL;
    char path[200];

    memset(path, 'a', sizeof path - 1);
    path[sizeof path - 1] = 0;
    SL_CHECK_STATUS(sl_client_create(&client, path, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_client_create(&client, "", err), SL_ERR_INVALID);
    SL_CHECK(client == NULL);
}

/* ---- memory that is not there ---- */

static __thread int fail_in; /* the n-th allocation of this thread from now fails; 0: none */

void *__real_malloc(size_t size_bytes);
void *__real_calloc(size_t count, size_t size_bytes);
void *__real_realloc(void *memory, size_t size_bytes);
void *__wrap_malloc(size_t size_bytes);
void *__wrap_calloc(size_t count, size_t size_bytes);
void *__wrap_realloc(void *memory, size_t size_bytes);

static bool fails_now(void)
{
    return fail_in > 0 && --fail_in == 0;
}

void *__wrap_malloc(size_t size_bytes)
{
    return fails_now() ? NULL : __real_malloc(size_bytes);
}

void *__wrap_calloc(size_t count, size_t size_bytes)
{
    return fails_now() ? NULL : __real_calloc(count, size_bytes);
}

void *__wrap_realloc(void *memory, size_t size_bytes)
{
    return fails_now() ? NULL : __real_realloc(memory, size_bytes);
}

SL_TEST(every_allocation_may_fail)
{
    server s;
    sl_client *client = NULL;
    sl_status status = SL_ERR_NO_MEMORY;
    int failures = 0;

    server_start(&s, serve_health);
    for (; status != SL_OK; failures++) {
        fail_in = failures + 1;
        status = sl_client_create(&client, s.path, err);
        fail_in = 0;
        SL_CHECK(status == SL_OK ? client != NULL : status == SL_ERR_NO_MEMORY && !client);
    }
    SL_CHECK(failures >= 2);
    /* In a call the unpacking counts too: it can only say "no such message". */
    for (status = SL_ERR_NO_MEMORY, failures = 0; status != SL_OK; failures++) {
        sl_call_details details;

        fail_in = failures + 1;
        status = ask(client, 5 * SL_NS_PER_S, &details, err);
        fail_in = 0;
        SL_CHECK(status == SL_OK || status == SL_ERR_NO_MEMORY || status == SL_ERR_DATA);
        sl_call_details_fini(&details);
    }
    SL_CHECK(failures >= 4);
    sl_client_destroy(client);
    server_end(&s);
}

/* ---- threads and interrupts ---- */

static void *interrupt_soon(void *arg)
{
    const int *fd = arg;

    usleep(100 * 1000);
    return write(*fd, "x", 1) == 1 ? arg : NULL;
}

SL_TEST(an_interrupt_ends_the_wait)
{
    server s;
    sl_client *client = NULL;
    pthread_t thread;
    int fds[2];

    server_start(&s, greet_only);
    SL_CHECK(pipe(fds) == 0);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    sl_client_set_interrupt(client, fds[0]);
    SL_CHECK(pthread_create(&thread, NULL, interrupt_soon, &fds[1]) == 0);
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(ask(client, 20 * SL_NS_PER_S, NULL, err), SL_ERR_CANCELLED);
    SL_CHECK(sl_clock_now_ns() - start_ns < 5 * SL_NS_PER_S);
    pthread_join(thread, NULL);
    sl_client_destroy(client);
    server_end(&s);
    close(fds[0]);
    close(fds[1]);
}

static void *ask_many(void *arg)
{
    sl_error error = { .status = SL_OK };
    sl_client *client = arg;

    for (int i = 0; i < 50; i++)
        if (ask(client, 10 * SL_NS_PER_S, NULL, &error) != SL_OK)
            return NULL;
    return arg;
}

SL_TEST(threads_share_a_client)
{
    server s;
    sl_client *client = NULL;
    pthread_t threads[4];

    server_start(&s, serve_health);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    for (size_t i = 0; i < SL_COUNT(threads); i++)
        SL_CHECK(pthread_create(&threads[i], NULL, ask_many, client) == 0);
    for (size_t i = 0; i < SL_COUNT(threads); i++) {
        void *done = NULL;
        pthread_join(threads[i], &done);
        SL_CHECK(done == client);
    }
    sl_client_destroy(client);
    server_end(&s);
    SL_CHECK(atomic_load(&s.requests) == 200);
}

static void *ask_slowly(void *arg)
{
    sl_error error = { .status = SL_OK };

    return ask(arg, SL_NS_PER_S, NULL, &error) == SL_ERR_TIMEOUT ? arg : NULL;
}

SL_TEST(a_deadline_holds_behind_another_call)
{
    server s;
    sl_client *client = NULL;
    pthread_t thread;
    void *done = NULL;

    server_start(&s, greet_only);
    SL_CHECK_OK(sl_client_create(&client, s.path, err));
    SL_CHECK(pthread_create(&thread, NULL, ask_slowly, client) == 0);
    usleep(200 * 1000);
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(ask(client, 200 * SL_NS_PER_MS, NULL, err), SL_ERR_TIMEOUT);
    SL_CHECK(sl_clock_now_ns() - start_ns < 700 * SL_NS_PER_MS);
    pthread_join(thread, &done);
    SL_CHECK(done == client);
    sl_client_destroy(client);
    server_end(&s);
}

SL_TEST_MAIN(SL_RUN(answers_and_keeps_the_connection), SL_RUN(a_newer_server_is_understood),
             SL_RUN(reads_a_reply_that_comes_byte_by_byte), SL_RUN(silence_ends_at_the_deadline),
             SL_RUN(what_is_not_the_protocol_is_refused_at_once),
             SL_RUN(sends_again_when_the_connection_breaks),
             SL_RUN(gives_up_on_a_server_that_always_hangs_up),
             SL_RUN(reports_an_absent_daemon_at_once),
             SL_RUN(waits_for_a_daemon_that_is_being_restarted),
             SL_RUN(drops_replies_to_other_requests), SL_RUN(passes_on_what_the_server_says),
             SL_RUN(refuses_a_request_that_is_too_long), SL_RUN(refuses_paths_that_no_socket_has),
             SL_RUN(every_allocation_may_fail), SL_RUN(an_interrupt_ends_the_wait),
             SL_RUN(threads_share_a_client), SL_RUN(a_deadline_holds_behind_another_call))
