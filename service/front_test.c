/* The front and the rpc layer together, with made-up methods behind them. */
#include "service/front_test.h"

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
        Sluice__V1__HealthReply *inner =
            sluice__v1__health_reply__unpack(NULL, reply->payload.len, reply->payload.data);
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
        SL_CHECK(reply && reply->code == 0 && reply->payload.len > (size_t)SL_WIRE_MAX_CHUNK_BYTES);
        sluice__v1__reply__free_unpacked(reply, NULL);
    }
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
        SL_RUN(churn_leaves_nothing_behind),
        SL_RUN(stopping_delivers_what_is_under_way),
        SL_RUN(roles_are_checked),
        SL_RUN(sockets_are_private_and_stale_ones_replaced),
    };

    return cmocka_run_group_tests(tests, quiet, NULL);
}
