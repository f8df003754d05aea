/* What one client, one user or a crowd of them may take of the front. */
#include "service/front_test.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(requests_above_the_cap_wait_their_turn),
        SL_RUN(requests_above_the_cap_of_bytes_wait_their_turn),
        SL_RUN(a_request_that_waits_too_long_is_answered),
        SL_RUN(connections_above_the_cap_are_closed),
        SL_RUN(one_identity_cannot_have_all_connections),
        SL_RUN(the_door_counts_who_came),
        SL_RUN(limits_change_while_it_runs),
        SL_RUN(newcomers_do_not_delay_those_who_are_in),
    };

    return cmocka_run_group_tests(tests, quiet, NULL);
}
