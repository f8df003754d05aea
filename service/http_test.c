/* The side door, over sockets, before a service with a made-up worker. */
#include "service/handlers_test.h"
#include "service/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

enum { ANSWER_BYTES = 256 << 10, CONNECTIONS = 8, EACH = 6 /* three quarters of them */ };
#define LIFETIME_NS (1200 * SL_NS_PER_MS)

typedef struct {
    sl_service *service;
    sl_rpc_stats *calls;
    sl_door door;
    sl_http *http;
} side_door;

static void open_door(side_door *d, int connections, sl_error *err)
{
    sl_http_config config = sl_http_config_default();

    d->service = start((size_t)256 << 20, err);
    SL_CHECK_OK(sl_rpc_stats_create(&d->calls, sl_handlers_table.count, err));
    config.address = "127.0.0.1:0";
    config.service = d->service;
    config.table = &sl_handlers_table;
    config.calls = d->calls;
    d->door = (sl_door){ .connections = 0 };
    config.door = &d->door;
    config.connections = connections;
    config.lifetime_ns = LIFETIME_NS;
    SL_CHECK_OK(sl_http_create(&d->http, &config, err));
}

static void close_door(side_door *d)
{
    sl_http_destroy(d->http);
    stop(d->service);
    sl_rpc_stats_destroy(d->calls);
}

/* --- a client of few manners --- */

static int dial(const side_door *d)
{
    const struct sockaddr_in to = { .sin_family = AF_INET,
                                    .sin_port = htons((uint16_t)sl_http_port(d->http)),
                                    .sin_addr = { htonl(INADDR_LOOPBACK) } };
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    SL_CHECK(fd >= 0 && connect(fd, (const struct sockaddr *)&to, sizeof to) == 0);
    return fd;
}

/* Until the end of the stream or limit_ns; whether the end came. */
static bool read_all(int fd, char *out, size_t room, int64_t limit_ns)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(limit_ns);
    size_t used = 0;

    out[0] = '\0';
    while (sl_clock_now_ns() < deadline_ns) {
        struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
        poll(&poll_fd, 1, 20);
        const ssize_t n = recv(fd, out + used, room - 1 - used, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno == ECONNRESET))
            return true;
        if (n > 0)
            used += (size_t)n;
        out[used] = '\0';
    }
    return false;
}

/* The answer to a request, in static memory. */
static const char *ask(const side_door *d, const char *request)
{
    static char answer[ANSWER_BYTES];
    const int fd = dial(d);

    SL_CHECK(send(fd, request, strlen(request), MSG_NOSIGNAL) == (ssize_t)strlen(request));
    SL_CHECK(read_all(fd, answer, sizeof answer, 10 * SL_NS_PER_S));
    close(fd);
    return answer;
}

static const char *get(const side_door *d, const char *path)
{
    char request[200];

    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    return ask(d, request);
}

static bool has_status(const char *answer, int code)
{
    char line[32];

    snprintf(line, sizeof line, "HTTP/1.1 %d ", code);
    return strncmp(answer, line, strlen(line)) == 0;
}

/* The value of a sample; -1: it is not there. */
static double sample(const char *metrics, const char *name)
{
    char line[300];

    snprintf(line, sizeof line, "\n%s ", name);
    const char *at = strstr(metrics, line);
    return at ? strtod(at + strlen(line), NULL) : -1.0;
}

static void wait_ready(const side_door *d)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(10 * SL_NS_PER_S);

    while (!has_status(get(d, "/readyz"), 200))
        SL_CHECK(sl_clock_now_ns() < deadline_ns);
}

/* --- pages --- */

SL_TEST(each_path_has_its_answer)
{
    static const struct {
        const char *request;
        int code;
        const char *word; /* NULL: none */
    } cases[] = {
        { "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200, "\r\n\r\nok\n" },
        { "GET /readyz?verbose HTTP/1.1\r\nHost: x\r\n\r\n", 200, "\r\n\r\nready\n" },
        { "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, "<title>sluice" },
        { "GET /metrics HTTP/1.0\r\n\r\n", 200, "sluice_ready 1\n" },
        { "GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", 404, NULL },
        { "GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404, NULL },
        { "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL },
        { "HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, NULL },
        { "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 405,
          "Allow: GET, HEAD" },
        { "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n", 405, NULL },
        { "DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, NULL },
        { "\x16\x03\x01 garbage\r\n\r\n", 0, NULL },
    };
    side_door d;

    open_door(&d, CONNECTIONS, err);
    wait_ready(&d);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        const char *answer = ask(&d, cases[i].request);
        if (cases[i].code == 0) {
            SL_CHECK(!has_status(answer, 200));
            continue;
        }
        SL_CHECK(has_status(answer, cases[i].code));
        SL_CHECK(strstr(answer, "Connection: close") && strstr(answer, "Content-Length: "));
        if (cases[i].word)
            SL_CHECK(strstr(answer, cases[i].word) != NULL);
        if (strncmp(cases[i].request, "HEAD", 4) == 0)
            SL_CHECK(strcmp(strstr(answer, "\r\n\r\n"), "\r\n\r\n") == 0);
    }
    close_door(&d);
}

SL_TEST(readiness_follows_the_worker)
{
    side_door d;

    open_door(&d, CONNECTIONS, err);
    wait_ready(&d);
    pthread_mutex_lock(&d.service->lock);
    snprintf(d.service->canary_problem, sizeof d.service->canary_problem, "conv: <element> 3");
    pthread_mutex_unlock(&d.service->lock);
    SL_CHECK(has_status(get(&d, "/readyz"), 503) && has_status(get(&d, "/healthz"), 200));
    SL_CHECK(strstr(get(&d, "/readyz"), "conv: <element> 3") != NULL);
    SL_CHECK(strstr(get(&d, "/"), "conv: &lt;element&gt; 3") != NULL);
    SL_CHECK(sample(get(&d, "/metrics"), "sluice_ready") == 0.0);
    const Sluice__V1__HealthRequest health = SLUICE__V1__HEALTH_REQUEST__INIT;
    sl_rpc_call call;
    begin_call(&call, SL_ROLE_NONE, "uid:9", &health.base);
    SL_CHECK_OK(sl_handle_health(d.service, &call, err));
    SL_CHECK(!((const Sluice__V1__HealthReply *)call.reply)->ready);
    sl_arena_destroy(call.arena);
    pthread_mutex_lock(&d.service->lock);
    d.service->canary_problem[0] = '\0';
    d.service->canary_ns = 0;
    pthread_mutex_unlock(&d.service->lock);
    SL_CHECK(has_status(get(&d, "/readyz"), 503));
    sl_service_begin_stop(d.service);
    SL_CHECK(strstr(get(&d, "/readyz"), "shutting down") && has_status(get(&d, "/healthz"), 200));
    close_door(&d);
}

/* Every sample line is NAME{labels} NUMBER of a family that was announced, once. */
static void check_format(const char *metrics)
{
    static char text[ANSWER_BYTES];
    char family[100] = "", *state = NULL;

    snprintf(text, sizeof text, "%s", strstr(metrics, "\r\n\r\n") + 4);
    for (char *line = strtok_r(text, "\n", &state); line; line = strtok_r(NULL, "\n", &state)) {
        char *end = NULL;
        if (strncmp(line, "# HELP ", 7) == 0) {
            snprintf(family, sizeof family, "%.*s", (int)strcspn(line + 7, " "), line + 7);
            continue;
        }
        if (strncmp(line, "# TYPE ", 7) == 0) {
            SL_CHECK(strncmp(line + 7, family, strlen(family)) == 0);
            continue;
        }
        SL_CHECK(strncmp(line, family, strlen(family)) == 0);
        const char *value = strrchr(line, ' ');
        SL_CHECK(value != NULL);
        strtod(value, &end);
        SL_CHECK(end != value && *end == '\0');
    }
}

SL_TEST(metrics_tell_what_happened)
{
    static const char *const lines[] = { "context",  "weights", "activations", "workspace",
                                         "reserved", "foreign", "free",        "unexplained" };
    const char *device = "cpu:268435456";
    double sum = 0.0;
    char name[200];
    side_door d;

    open_door(&d, CONNECTIONS, err);
    wait_ready(&d);
    await_state(d.service, generate(d.service, "uid:1", "r1", err), SLUICE__V1__JOB_STATE__DONE,
                err);
    sl_rpc_stats_note(d.calls, 0, 0, 2 * SL_NS_PER_MS, SL_RPC_NOT_REFUSED);
    sl_rpc_stats_note(d.calls, 0, 14, 70 * SL_NS_PER_S, SL_RPC_NOT_REFUSED);
    sl_rpc_stats_note(d.calls, -1, 12, 1, SL_RPC_NOT_REFUSED);
    sl_rpc_stats_note(d.calls, 4, 8, 1, SL_RPC_REFUSED_TABLE);
    sl_door_add(&d.door, SL_DOOR_TAKEN, 3);
    sl_door_add(&d.door, SL_DOOR_LAPSED, 2);
    sl_door_add(&d.door, SL_DOOR_SHAKEN_REFUSED, 1);
    sl_door_add(&d.door, SL_DOOR_ALERT_SENT, 4);
    sl_door_add(&d.door, SL_DOOR_BYTES_OUT, (uint64_t)5 << 40);
    atomic_store(&d.door.states[SL_DOOR_PARKED], 6);
    atomic_store(&d.door.in_flight, 7);
    const char *metrics = get(&d, "/metrics");
    check_format(metrics);
    SL_CHECK(sample(metrics, "sluice_connections_total{result=\"taken\"}") == 3.0);
    SL_CHECK(sample(metrics, "sluice_connections_total{result=\"no_place\"}") == 0.0);
    SL_CHECK(sample(metrics, "sluice_connections_ended_total{reason=\"certificate\"}") == 2.0);
    SL_CHECK(sample(metrics, "sluice_tls_handshakes_total{result=\"certificate\"}") == 1.0);
    SL_CHECK(sample(metrics, "sluice_tls_alerts_total{direction=\"sent\"}") == 4.0);
    SL_CHECK(sample(metrics, "sluice_front_bytes_total{direction=\"out\"}") == 5497558138880.0);
    SL_CHECK(sample(metrics, "sluice_connections{state=\"waiting\"}") == 6.0);
    SL_CHECK(sample(metrics, "sluice_requests_in_flight") == 7.0);
    for (size_t i = 0; i < SL_COUNT(lines); i++) {
        snprintf(name, sizeof name, "sluice_device_memory_bytes{device=\"%s\",line=\"%s\"}", device,
                 lines[i]);
        sum += sample(metrics, name);
    }
    snprintf(name, sizeof name, "sluice_device_memory_total_bytes{device=\"%s\"}", device);
    SL_CHECK(sum > 0.0 && sum == sample(metrics, name));
    SL_CHECK(sample(metrics, "sluice_jobs_ended_total{state=\"done\"}") == 1.0);
    SL_CHECK(sample(metrics, "sluice_jobs_ended_total{state=\"failed\"}") == 0.0);
    SL_CHECK(sample(metrics, "sluice_queue_length") == 0.0);
    SL_CHECK(sample(metrics, "sluice_component_commands_total{command=\"load\",result=\"ok\"}") ==
             3.0);
    SL_CHECK(sample(metrics, "sluice_model_switches_total") == 0.0);
    SL_CHECK(sample(metrics, "sluice_rpc_calls_total{method=\"Health\",code=\"OK\"}") == 1.0);
    SL_CHECK(sample(metrics, "sluice_rpc_calls_total{method=\"Health\",code=\"UNAVAILABLE\"}") ==
             1.0);
    SL_CHECK(sample(metrics, "sluice_rpc_calls_total{method=\"unknown\",code=\"UNIMPLEMENTED\"}") ==
             1.0);
    SL_CHECK(sample(metrics, "sluice_rpc_seconds_bucket{method=\"Health\",le=\"0.001\"}") == 0.0);
    SL_CHECK(sample(metrics, "sluice_rpc_seconds_bucket{method=\"Health\",le=\"0.005\"}") == 1.0);
    SL_CHECK(sample(metrics, "sluice_rpc_seconds_bucket{method=\"Health\",le=\"60\"}") == 1.0);
    SL_CHECK(sample(metrics, "sluice_rpc_seconds_bucket{method=\"Health\",le=\"+Inf\"}") == 2.0);
    SL_CHECK(sample(metrics, "sluice_rpc_seconds_count{method=\"Health\"}") == 2.0);
    SL_CHECK(sample(metrics, "sluice_refusals_total{reason=\"budget_table\"}") == 1.0);
    SL_CHECK(sample(metrics, "sluice_refusals_total{reason=\"busy\"}") == 0.0);
    snprintf(name, sizeof name, "sluice_worker_restarts_total{device=\"%s\"}", device);
    SL_CHECK(sample(metrics, name) == 0.0);
    SL_CHECK(strstr(metrics, "circle") == NULL && strstr(metrics, "uid:") == NULL);
    close_door(&d);
}

SL_TEST(running_jobs_are_shown_without_their_prompts)
{
    side_door d;

    open_door(&d, CONNECTIONS, err);
    wait_ready(&d);
    set_fake(true, 0, SL_OK);
    const char *first = generate(d.service, "uid:1", "r1", err);
    await_state(d.service, first, SLUICE__V1__JOB_STATE__DENOISING, err);
    generate(d.service, "uid:1", "r2", err);
    const char *page = get(&d, "/");
    SL_CHECK(strstr(page, first) && strstr(page, "denoising") && strstr(page, "number 1"));
    SL_CHECK(strstr(page, "circle") == NULL && strstr(page, "uid:") == NULL);
    const char *metrics = get(&d, "/metrics");
    SL_CHECK(sample(metrics, "sluice_jobs{phase=\"denoising\"}") == 1.0);
    SL_CHECK(sample(metrics, "sluice_queue_length") == 1.0);
    set_fake(false, 0, SL_OK);
    close_door(&d);
}

/* --- bad company --- */

/* One that sends a byte now and then, and one that never reads, lose their connections when
 * their time is up; others are served meanwhile. */
SL_TEST(a_slow_client_is_shut_out)
{
    static char answer[ANSWER_BYTES];
    const int64_t begin_ns = sl_clock_now_ns();
    side_door d;

    open_door(&d, CONNECTIONS, err);
    wait_ready(&d);
    const int slow = dial(&d), silent = dial(&d);
    int64_t gone_ns = 0;
    while (gone_ns == 0 && sl_clock_now_ns() - begin_ns < 20 * SL_NS_PER_S) {
        if (send(slow, "G", 1, MSG_NOSIGNAL) < 0 || read_all(slow, answer, sizeof answer, 1))
            gone_ns = sl_clock_now_ns();
        SL_CHECK(has_status(get(&d, "/healthz"), 200));
    }
    SL_CHECK(gone_ns != 0 && gone_ns - begin_ns >= LIFETIME_NS);
    SL_CHECK(read_all(silent, answer, sizeof answer, 10 * SL_NS_PER_S) && answer[0] == '\0');
    close(slow);
    close(silent);
    close_door(&d);
}

SL_TEST(too_many_connections_wait_or_are_turned_away)
{
    enum { MANY = 40 };
    static char answer[ANSWER_BYTES];
    int fds[MANY], turned_away = 0;
    side_door d;

    open_door(&d, CONNECTIONS, err);
    wait_ready(&d);
    const int64_t begin_ns = sl_clock_now_ns();
    for (int i = 0; i < MANY; i++)
        fds[i] = dial(&d);
    for (int i = 0; i < MANY; i++)
        turned_away += read_all(fds[i], answer, sizeof answer, i < EACH ? 1 : SL_NS_PER_S / 100);
    if (sl_clock_now_ns() - begin_ns < LIFETIME_NS)
        SL_CHECK(turned_away >= MANY - EACH);
    for (int i = 0; i < MANY; i++)
        close(fds[i]);
    wait_ready(&d); /* as before */
    close_door(&d);
}

SL_TEST(headers_have_a_bound)
{
    static char request[64 << 10];
    side_door d;

    open_door(&d, CONNECTIONS, err);
    memset(request, 'x', sizeof request - 1);
    memcpy(request, "GET / HTTP/1.1\r\nHost: ", 22);
    static char answer[ANSWER_BYTES];
    const int fd = dial(&d);
    send(fd, request, strlen(request), MSG_NOSIGNAL);
    SL_CHECK(read_all(fd, answer, sizeof answer, 10 * SL_NS_PER_S));
    SL_CHECK(answer[0] == '\0' || has_status(answer, 431) || has_status(answer, 413));
    close(fd);
    wait_ready(&d);
    close_door(&d);
}

SL_TEST(addresses_and_certificates_are_checked)
{
    static const char *const bad[] = {
        "",           "x",       "127.0.0.1", "127.0.0.1:",   "127.0.0.1:65536", ":80",
        "example:80", "[::1:80", "80 ",       "127.0.0.1:-1", "999.0.0.1:80"
    };
    static const char *const good[] = { "0", "127.0.0.1:0", "[::1]:0" };
    sl_http_config config = sl_http_config_default();
    sl_http *http = NULL;
    char path[200];

    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        config.address = bad[i];
        SL_CHECK_STATUS(sl_http_create(&http, &config, err), SL_ERR_INVALID);
    }
    for (size_t i = 0; i < SL_COUNT(good); i++) {
        config.address = good[i];
        const sl_status status = sl_http_create(&http, &config, err);
        SL_CHECK(status == SL_OK || (i == 2 && status == SL_ERR_IO)); /* a machine without IPv6 */
        if (status == SL_OK)
            sl_http_destroy(http);
    }
    snprintf(path, sizeof path, "%s/no.pem", root);
    config.address = "0";
    config.certificate = config.key = path;
    SL_CHECK_STATUS(sl_http_create(&http, &config, err), SL_ERR_NOT_FOUND);
    FILE *f = fopen(path, "w");
    SL_CHECK(f && fputs("no certificate", f) >= 0 && fclose(f) == 0);
    SL_CHECK_STATUS(sl_http_create(&http, &config, err), SL_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RUN(each_path_has_its_answer),   RUN(readiness_follows_the_worker),
        RUN(metrics_tell_what_happened), RUN(running_jobs_are_shown_without_their_prompts),
        RUN(a_slow_client_is_shut_out),  RUN(too_many_connections_wait_or_are_turned_away),
        RUN(headers_have_a_bound),       RUN(addresses_and_certificates_are_checked),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
