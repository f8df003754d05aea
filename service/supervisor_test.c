/* The supervisor against workers that misbehave.  This program is its own
 * fake worker: started with --device MODE it acts as MODE says. */
#include "service/supervisor.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"
#include "base/test.h"
#include "service/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the fake worker ---- */

static void send_event(sl_channel *channel, Sluice__Worker__Event__KindCase kind, uint64_t id,
                       int32_t number)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Hello hello = SLUICE__WORKER__HELLO__INIT;
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;
    Sluice__Worker__Pong pong = SLUICE__WORKER__PONG__INIT;
    sl_error error;

    hello.pid = getpid();
    hello.threads = number;
    done.status = number;
    event.id = id;
    event.kind_case = kind;
    if (kind == SLUICE__WORKER__EVENT__KIND_HELLO)
        event.hello = &hello;
    else if (kind == SLUICE__WORKER__EVENT__KIND_DONE)
        event.done = &done;
    else
        event.pong = &pong;
    if (sl_channel_push(channel, &event.base, &error) != SL_OK ||
        sl_channel_flush(channel, SL_NS_PER_S, &error) != SL_OK)
        _exit(99);
}

/* Bits of what a worker finds: 1 the lock as 4, 2 something of the parent's
 * beyond, 4 a blocked signal, 8 an ignored SIGTERM. */
static int32_t look_around(void)
{
    struct sigaction action;
    sigset_t blocked;
    int32_t found = fcntl(4, F_GETFD) >= 0;

    for (int fd = found ? 5 : 4; fd < 256; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            found |= 2;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    for (int i = 1; i < 32; i++)
        if (sigismember(&blocked, i) == 1)
            found |= 4;
    sigaction(SIGTERM, NULL, &action);
    return action.sa_handler == SIG_IGN ? found | 8 : found;
}

static int answer_commands(sl_channel *channel, bool stubborn)
{
    sl_error error;

    for (;;) {
        struct pollfd poll_fd = { .fd = sl_channel_fd(channel), .events = POLLIN };
        poll(&poll_fd, 1, -1);
        const bool closed = sl_channel_fill(channel, &error) != SL_OK;
        for (;;) {
            sl_arena *arena = NULL;
            ProtobufCMessage *message = NULL;
            if (sl_arena_create(&arena, 0, &error) != SL_OK ||
                sl_channel_pop(channel, &sluice__worker__command__descriptor, arena, &message,
                               &error) != SL_OK)
                return 98;
            const Sluice__Worker__Command *command = (Sluice__Worker__Command *)message;
            if (command && command->kind_case == SLUICE__WORKER__COMMAND__KIND_PING)
                send_event(channel, SLUICE__WORKER__EVENT__KIND_PONG, command->id, 0);
            else if (command && command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN)
                send_event(channel, SLUICE__WORKER__EVENT__KIND_DONE, command->id, 0);
            else if (command && command->kind_case == SLUICE__WORKER__COMMAND__KIND_SHUTDOWN &&
                     !stubborn)
                return 0;
            sl_arena_destroy(arena);
            if (!message)
                break;
        }
        if (closed && !stubborn)
            return 0;
        if (closed)
            pause();
    }
}

static int fake_worker(const char *mode, int fd)
{
    static const unsigned char garbage[] = { 0xff, 0xff, 0xff, 0xff, 1, 2, 3 };
    sl_channel *channel = NULL;
    sl_error error;

    if (sl_channel_create(&channel, fd, "daemon", &error) != SL_OK)
        return 97;
    if (strcmp(mode, "silent") == 0)
        pause();
    if (strcmp(mode, "early") == 0)
        send_event(channel, SLUICE__WORKER__EVENT__KIND_PONG, 0, 0);
    send_event(channel, SLUICE__WORKER__EVENT__KIND_HELLO, 0, look_around());
    if (strcmp(mode, "deaf") == 0)
        pause();
    if (strcmp(mode, "exit7") == 0) {
        for (uint64_t i = 1; i <= 5000; i++) /* more than one buffer of last words */
            send_event(channel, SLUICE__WORKER__EVENT__KIND_DONE, i, 0);
        return 7;
    }
    if (strcmp(mode, "garbage") == 0 && send(fd, garbage, sizeof garbage, 0) > 0)
        pause();
    if (strcmp(mode, "hangup") == 0) {
        close(fd);
        pause();
    }
    return answer_commands(channel, strcmp(mode, "stubborn") == 0);
}

/* ---- what the callbacks saw ---- */

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int hellos, dones, downs;
    int32_t found;
    uint64_t generation, last_done;
    bool wrong_order; /* an event out of its place */
    char reason[256];
} record;

static record seen;

static void on_event(void *arg, uint64_t generation, const Sluice__Worker__Event *event)
{
    record *r = arg;

    pthread_mutex_lock(&r->lock);
    if (event->kind_case == SLUICE__WORKER__EVENT__KIND_HELLO) {
        r->wrong_order |= generation <= r->generation;
        r->generation = generation;
        r->found = event->hello->threads;
        r->hellos++;
    } else {
        r->wrong_order |= generation != r->generation;
    }
    if (event->kind_case == SLUICE__WORKER__EVENT__KIND_DONE) {
        r->dones++;
        r->last_done = event->id;
    }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void on_down(void *arg, uint64_t generation, const char *reason)
{
    record *r = arg;

    pthread_mutex_lock(&r->lock);
    r->wrong_order |= r->hellos > 0 && generation < r->generation;
    r->downs++;
    snprintf(r->reason, sizeof r->reason, "%s", reason);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Waits until *count has reached `want`; fails after 20 s. */
static void wait_for(const int *count, int want)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    pthread_mutex_lock(&seen.lock);
    while (*count < want)
        if (pthread_cond_timedwait(&seen.changed, &seen.lock, &until) == ETIMEDOUT)
            break;
    const bool reached = *count >= want;
    pthread_mutex_unlock(&seen.lock);
    SL_CHECK(reached);
}

static sl_supervisor *start(const char *mode, int lock_fd, sl_error *err)
{
    const sl_supervisor_config config = {
        .worker_path = "/proc/self/exe",
        .device = mode,
        .lock_fd = lock_fd,
        .hello_deadline_ns = strcmp(mode, "silent") == 0 ? 200 * SL_NS_PER_MS : 0,
        .ping_interval_ns = 20 * SL_NS_PER_MS,
        .pong_deadline_ns = strcmp(mode, "deaf") == 0 ? 200 * SL_NS_PER_MS : 0,
        .pause_min_ns = strcmp(mode, "reset") == 0 ? 60 * SL_NS_PER_S : 10 * SL_NS_PER_MS,
        .pause_max_ns = strcmp(mode, "reset") == 0 ? 60 * SL_NS_PER_S : 40 * SL_NS_PER_MS,
    };
    const sl_supervisor_events events = { &seen, on_event, on_down };
    sl_supervisor *s = NULL;

    memset(&seen, 0, sizeof seen);
    pthread_mutex_init(&seen.lock, NULL);
    pthread_cond_init(&seen.changed, NULL);
    SL_CHECK_OK(sl_supervisor_create(&s, &config, &events, err));
    return s;
}

/* Nothing is left: no process, no event out of order. */
static void finish(sl_supervisor *s)
{
    sl_supervisor_destroy(s);
    SL_CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    SL_CHECK(!seen.wrong_order);
}

static sl_status send_run(sl_supervisor *s, uint64_t generation, uint64_t id, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Run run = SLUICE__WORKER__RUN__INIT;

    command.id = id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_RUN;
    command.run = &run;
    return sl_supervisor_send(s, generation, &command, err);
}

/* ---- tests ---- */

SL_TEST(commands_go_and_events_come)
{
    sl_supervisor *s = start("good", -1, err);

    wait_for(&seen.hellos, 1);
    SL_CHECK(seen.found == 0); /* no lock, no stray descriptor, no odd signals */
    SL_CHECK(sl_supervisor_pid(s) > 0);
    for (uint64_t id = 1; id <= 200; id++)
        SL_CHECK_OK(send_run(s, 1, id, err));
    wait_for(&seen.dones, 200);
    SL_CHECK(seen.last_done == 200);
    SL_CHECK_STATUS(send_run(s, 2, 1, err), SL_ERR_UNAVAILABLE);
    SL_CHECK(sl_supervisor_restarts(s) == 0);
    const int64_t start_ns = sl_clock_now_ns();
    sl_supervisor_stop(s, 5 * SL_NS_PER_S);
    SL_CHECK(sl_clock_now_ns() - start_ns < 2 * SL_NS_PER_S);
    SL_CHECK(seen.downs == 1 && strcmp(seen.reason, "exited with status 0") == 0);
    SL_CHECK(sl_supervisor_pid(s) == 0);
    finish(s);
}

SL_TEST(the_lock_is_inherited_and_nothing_else)
{
    char path[] = "/tmp/sluice-supervisor-test-XXXXXX";
    const int fd = mkstemp(path), other = fd < 0 ? -1 : dup(fd);

    SL_CHECK(fd >= 0 && other >= 0 && flock(fd, LOCK_EX) == 0);
    sl_supervisor *s = start("good", fd, err);
    wait_for(&seen.hellos, 1);
    SL_CHECK(seen.found == 1);
    close(fd);
    close(other);
    const int again = open(path, O_RDONLY | O_CLOEXEC);
    SL_CHECK(again >= 0 && flock(again, LOCK_EX | LOCK_NB) != 0); /* the worker holds it */
    sl_supervisor_stop(s, 5 * SL_NS_PER_S);
    SL_CHECK(flock(again, LOCK_EX | LOCK_NB) == 0);
    close(again);
    unlink(path);
    finish(s);
}

SL_TEST(a_killed_worker_is_noticed_and_replaced)
{
    sl_supervisor *s = start("good", -1, err);

    for (int i = 1; i <= 3; i++) {
        wait_for(&seen.hellos, i);
        SL_CHECK(kill(sl_supervisor_pid(s), SIGKILL) == 0);
        wait_for(&seen.downs, i);
        SL_CHECK(strcmp(seen.reason, "killed by signal 9 (Killed)") == 0);
    }
    wait_for(&seen.hellos, 4);
    SL_CHECK(sl_supervisor_restarts(s) == 3 && seen.generation == 4);
    SL_CHECK_STATUS(send_run(s, 3, 1, err), SL_ERR_UNAVAILABLE);
    SL_CHECK_OK(send_run(s, 4, 1, err));
    wait_for(&seen.dones, 1);
    finish(s);
}

SL_TEST(a_hard_reset_gives_its_reason)
{
    sl_supervisor *s = start("stubborn", -1, err);

    wait_for(&seen.hellos, 1);
    sl_supervisor_kill(s, 7, "another generation");
    sl_supervisor_kill(s, 1, "because the test says so");
    wait_for(&seen.downs, 1);
    SL_CHECK(strcmp(seen.reason, "because the test says so") == 0);
    wait_for(&seen.hellos, 2);
    sl_supervisor_kill(s, 1, "too late for this one");
    SL_CHECK_OK(send_run(s, 2, 1, err));
    wait_for(&seen.dones, 1);
    SL_CHECK(seen.downs == 1);
    const int64_t start_ns = sl_clock_now_ns();
    sl_supervisor_stop(s, 100 * SL_NS_PER_MS); /* it ignores Shutdown */
    SL_CHECK(sl_clock_now_ns() - start_ns < 2 * SL_NS_PER_S);
    SL_CHECK(strcmp(seen.reason, "did not shut down in time") == 0);
    finish(s);
}

SL_TEST(a_hard_reset_is_not_paused_for)
{
    sl_supervisor *s = start("reset", -1, err); /* its pauses are a minute long */

    for (uint64_t i = 1; i <= 5; i++) {
        wait_for(&seen.hellos, (int)i);
        sl_supervisor_kill(s, i, "once more");
    }
    wait_for(&seen.hellos, 6);
    finish(s);
}

static void expect_down(const char *mode, const char *reason, sl_error *err)
{
    sl_supervisor *s = start(mode, -1, err);

    wait_for(&seen.downs, 2); /* and the one after it, too */
    if (!strstr(seen.reason, reason))
        fail_msg("mode %s: \"%s\", want \"%s\"", mode, seen.reason, reason);
    finish(s);
}

SL_TEST(bad_workers_are_put_down)
{
    expect_down("silent", "did not say hello in time", err);
    expect_down("early", "spoke before its hello", err);
    expect_down("deaf", "did not answer a ping in time", err);
    expect_down("garbage", "a message has 1 to 65536 bytes", err);
    expect_down("hangup", "closed its channel and did not end", err);
}

SL_TEST(last_words_are_heard)
{
    sl_supervisor *s = start("exit7", -1, err);

    wait_for(&seen.downs, 1);
    SL_CHECK(strcmp(seen.reason, "exited with status 7") == 0);
    pthread_mutex_lock(&seen.lock);
    SL_CHECK(seen.dones >= 5000 && seen.dones % 5000 <= 4999);
    pthread_mutex_unlock(&seen.lock);
    wait_for(&seen.downs, 2);
    finish(s);
}

SL_TEST(stopping_at_once_is_fine)
{
    for (int i = 0; i < 20; i++)
        finish(start("good", -1, err));
}

SL_TEST(a_missing_program_is_refused)
{
    const sl_supervisor_config config = { .worker_path = "/nowhere/sluice-worker",
                                          .device = "cpu",
                                          .lock_fd = -1 };
    const sl_supervisor_events events = { &seen, on_event, on_down };
    sl_supervisor *s = NULL;

    SL_CHECK_STATUS(sl_supervisor_create(&s, &config, &events, err), SL_ERR_NOT_FOUND);
    SL_CHECK(strstr(err->message, "/nowhere/sluice-worker"));
    sl_supervisor_destroy(NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(commands_go_and_events_come),
        SL_RUN(the_lock_is_inherited_and_nothing_else),
        SL_RUN(a_killed_worker_is_noticed_and_replaced),
        SL_RUN(a_hard_reset_gives_its_reason),
        SL_RUN(a_hard_reset_is_not_paused_for),
        SL_RUN(bad_workers_are_put_down),
        SL_RUN(last_words_are_heard),
        SL_RUN(stopping_at_once_is_fine),
        SL_RUN(a_missing_program_is_refused),
    };

    if (argc == 9) /* --device MODE --fd N --threads N --host-bytes N */
        _exit(fake_worker(argv[2], atoi(argv[4]))); /* leaks and all */
    signal(SIGTERM, SIG_IGN);                           /* must not be inherited */
    sl_log_set_level((sl_log_level)(SL_LOG_ERROR + 1)); /* deaths are what this is about */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
