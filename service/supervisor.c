#include "service/supervisor.h"

#include "base/arena.h"
#include "base/clock.h"
#include "base/log.h"
#include "service/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the worker finds where. */
enum { WORKER_CHANNEL_FD = 3, WORKER_LOCK_FD = 4, FIRST_OTHER_FD = 5 };

enum { REASON_BYTES = SL_ERROR_MESSAGE_BYTES };

/* A worker that has closed its end is about to end; this long it may take. */
#define END_DEADLINE_NS (2 * SL_NS_PER_S)

struct sl_supervisor {
    sl_supervisor_config config; /* strings are own copies */
    sl_supervisor_events events;
    int wake_fd; /* eventfd: something for the thread to look at */
    pthread_t thread;
    bool joined;

    pthread_mutex_t lock; /* guards what follows */
    uint64_t generation;  /* of the present or last worker */
    bool is_up;           /* hello seen, not known to be dead */
    sl_channel *channel;  /* of the present worker; the thread alone replaces it */
    pid_t pid;            /* 0: none */
    bool stop;
    int64_t stop_deadline_ns;
    char kill_reason[REASON_BYTES]; /* "": no kill is wanted */
    int lanes;            /* of the next worker */
    size_t host_bytes;    /* the same */
};

/* One worker's life, seen by the thread. */
typedef struct {
    uint64_t generation;
    pid_t pid;
    int pid_fd;
    sl_channel *channel;
    bool hello;
    bool shutdown_sent;
    bool reset; /* it was well and went because it was told to */
    int64_t start_ns, ping_ns;
    int64_t unanswered_ns;     /* of the oldest ping without an answer; 0: none */
    int64_t closed_ns;         /* when it closed its end; 0: open */
    char reason[REASON_BYTES]; /* why it had to go; "": it went by itself */
} life;

/* ---- create ---- */

static sl_status find_worker(char path[PATH_MAX], const char *given, sl_error *err)
{
    if (given) {
        snprintf(path, PATH_MAX, "%s", given);
    } else {
        const ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
        if (n < 0)
            return sl_fail_errno(err, "could not find this program's own file");
        path[n] = '\0';
        char *slash = strrchr(path, '/');
        char *name = slash ? slash + 1 : path;
        if ((size_t)(name - path) + sizeof "sluice-worker" > PATH_MAX)
            return sl_fail(err, SL_ERR_INVALID, "the program's path is too long");
        memcpy(name, "sluice-worker", sizeof "sluice-worker");
    }
    if (access(path, X_OK) != 0)
        return sl_fail_errno(err, "could not find the worker program \"%s\"", path);
    return SL_OK;
}

static int64_t or_default(int64_t value, int64_t otherwise)
{
    return value > 0 ? value : otherwise;
}

static void set_defaults(sl_supervisor_config *config)
{
    config->hello_deadline_ns = or_default(config->hello_deadline_ns, 60 * SL_NS_PER_S);
    config->ping_interval_ns = or_default(config->ping_interval_ns, 2 * SL_NS_PER_S);
    config->pong_deadline_ns = or_default(config->pong_deadline_ns, 15 * SL_NS_PER_S);
    config->pause_min_ns = or_default(config->pause_min_ns, 100 * SL_NS_PER_MS);
    config->pause_max_ns = or_default(config->pause_max_ns, 10 * SL_NS_PER_S);
}

static void *supervise(void *arg);

static void free_supervisor(sl_supervisor *s)
{
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    pthread_mutex_destroy(&s->lock);
    free((char *)s->config.worker_path);
    free((char *)s->config.device);
    free(s);
}

sl_status sl_supervisor_create(sl_supervisor **out, const sl_supervisor_config *config,
                               const sl_supervisor_events *events, sl_error *err)
{
    char path[PATH_MAX];
    sl_status status = find_worker(path, config->worker_path, err);

    if (status != SL_OK)
        return status;
    sl_supervisor *s = calloc(1, sizeof *s);
    if (!s)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the supervisor");
    s->config = *config;
    s->lanes = config->lanes;
    s->host_bytes = config->host_bytes;
    set_defaults(&s->config);
    s->config.worker_path = strdup(path);
    s->config.device = strdup(config->device);
    s->events = *events;
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&s->lock, NULL);
    if (!s->config.worker_path || !s->config.device)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the supervisor");
    else if (s->wake_fd < 0)
        status = sl_fail_errno(err, "could not make an event descriptor");
    else if ((errno = pthread_create(&s->thread, NULL, supervise, s)) != 0)
        status = sl_fail_errno(err, "could not start the supervisor's thread");
    if (status != SL_OK) {
        free_supervisor(s);
        return status;
    }
    *out = s;
    return SL_OK;
}

/* ---- from any thread ---- */

static void wake(sl_supervisor *s)
{
    const uint64_t one = 1;

    /* A full counter means that the thread has been woken already. */
    if (write(s->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        sl_log(SL_LOG_WARN, "supervisor_wake", "errno=%d", errno);
}

static sl_status send_command(sl_supervisor *s, uint64_t generation,
                              const Sluice__Worker__Command *command, const int *fds, int fd_count,
                              sl_error *err)
{
    sl_status status;

    pthread_mutex_lock(&s->lock);
    if (generation != s->generation || !s->is_up)
        status =
            sl_fail(err, SL_ERR_UNAVAILABLE, "worker %llu is gone", (unsigned long long)generation);
    else if (fds)
        status = sl_channel_push_fds(s->channel, &command->base, fds, fd_count, err);
    else
        status = sl_channel_push(s->channel, &command->base, err);
    pthread_mutex_unlock(&s->lock);
    if (status == SL_OK)
        wake(s);
    return status;
}

sl_status sl_supervisor_send(sl_supervisor *s, uint64_t generation,
                             const Sluice__Worker__Command *command, sl_error *err)
{
    return send_command(s, generation, command, NULL, 0, err);
}

sl_status sl_supervisor_send_fds(sl_supervisor *s, uint64_t generation,
                                 const Sluice__Worker__Command *command, const int *fds,
                                 int fd_count, sl_error *err)
{
    return send_command(s, generation, command, fds, fd_count, err);
}

void sl_supervisor_set_lanes(sl_supervisor *s, int lanes)
{
    pthread_mutex_lock(&s->lock);
    s->lanes = lanes;
    pthread_mutex_unlock(&s->lock);
}

void sl_supervisor_set_host_bytes(sl_supervisor *s, size_t host_bytes)
{
    pthread_mutex_lock(&s->lock);
    s->host_bytes = host_bytes;
    pthread_mutex_unlock(&s->lock);
}

void sl_supervisor_kill(sl_supervisor *s, uint64_t generation, const char *reason)
{
    pthread_mutex_lock(&s->lock);
    if (generation == s->generation && !s->kill_reason[0])
        snprintf(s->kill_reason, sizeof s->kill_reason, "%s", reason);
    pthread_mutex_unlock(&s->lock);
    wake(s);
}

void sl_supervisor_stop(sl_supervisor *s, int64_t grace_ns)
{
    if (s->joined)
        return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    s->stop_deadline_ns = sl_clock_deadline_ns(grace_ns);
    pthread_mutex_unlock(&s->lock);
    wake(s);
    pthread_join(s->thread, NULL);
    s->joined = true;
}

void sl_supervisor_destroy(sl_supervisor *s)
{
    if (!s)
        return;
    sl_supervisor_stop(s, 5 * SL_NS_PER_S);
    free_supervisor(s);
}

pid_t sl_supervisor_pid(const sl_supervisor *s)
{
    sl_supervisor *own = (sl_supervisor *)s; /* for the lock only */

    pthread_mutex_lock(&own->lock);
    const pid_t pid = own->pid;
    pthread_mutex_unlock(&own->lock);
    return pid;
}

uint32_t sl_supervisor_restarts(const sl_supervisor *s)
{
    sl_supervisor *own = (sl_supervisor *)s;

    pthread_mutex_lock(&own->lock);
    const uint64_t generation = own->generation;
    pthread_mutex_unlock(&own->lock);
    return generation > 0 ? (uint32_t)(generation - 1) : 0;
}

/* ---- starting ---- */

/* The program with its end of the socketpair as descriptor 3, the lock as 4,
 * nothing else of ours, and signals as after a login. */
static sl_status spawn_program(sl_supervisor *s, int channel_fd, int lock_fd, pid_t *pid,
                               sl_error *err)
{
    char fd_text[16], threads_text[16], lanes_text[16], host_text[24];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;

    snprintf(fd_text, sizeof fd_text, "%d", WORKER_CHANNEL_FD);
    snprintf(threads_text, sizeof threads_text, "%d", s->config.threads);
    pthread_mutex_lock(&s->lock);
    const int lanes = s->lanes;
    snprintf(host_text, sizeof host_text, "%zu", s->host_bytes);
    pthread_mutex_unlock(&s->lock);
    snprintf(lanes_text, sizeof lanes_text, "%d", lanes);
    char *const argv[] = { (char *)s->config.worker_path,
                           (char *)"--device",
                           (char *)s->config.device,
                           (char *)"--fd",
                           fd_text,
                           (char *)"--threads",
                           threads_text,
                           (char *)"--host-bytes",
                           host_text,
                           lanes > 0 ? (char *)"--lanes" : NULL,
                           lanes_text,
                           NULL };

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    int code =
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    code = code ? code : posix_spawnattr_setsigmask(&attributes, &none);
    code = code ? code : posix_spawnattr_setsigdefault(&attributes, &all);
    code = code ? code : posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    code = code ? code : posix_spawn_file_actions_adddup2(&actions, channel_fd, WORKER_CHANNEL_FD);
    if (lock_fd >= 0)
        code = code ? code : posix_spawn_file_actions_adddup2(&actions, lock_fd, WORKER_LOCK_FD);
    code = code ? code
                : posix_spawn_file_actions_addclosefrom_np(&actions, lock_fd >= 0 ? FIRST_OTHER_FD
                                                                                  : WORKER_LOCK_FD);
    code =
        code ? code : posix_spawn(pid, s->config.worker_path, &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (code != 0) {
        errno = code;
        return sl_fail_errno(err, "could not start \"%s\"", s->config.worker_path);
    }
    return SL_OK;
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void kill_and_reap(pid_t pid)
{
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static sl_status start_worker(sl_supervisor *s, life *l, sl_error *err)
{
    int pair[2] = { -1, -1 }, channel_fd = -1, lock_fd = -1;
    sl_status status = SL_OK;

    *l = (life){ .pid_fd = -1, .start_ns = sl_clock_now_ns() };
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        status = sl_fail_errno(err, "could not make a socketpair");
        goto done;
    }
    /* High numbers, so that 3 and 4 can be set in the child in any order. */
    channel_fd = fcntl(pair[1], F_DUPFD_CLOEXEC, 10);
    if (s->config.lock_fd >= 0)
        lock_fd = fcntl(s->config.lock_fd, F_DUPFD_CLOEXEC, 10);
    if (channel_fd < 0 || (s->config.lock_fd >= 0 && lock_fd < 0)) {
        status = sl_fail_errno(err, "could not duplicate a descriptor");
        goto done;
    }
    status = sl_channel_create(&l->channel, pair[0], "worker", err);
    if (status != SL_OK)
        goto done;
    pair[0] = -1; /* the channel's now */
    status = spawn_program(s, channel_fd, lock_fd, &l->pid, err);
    if (status != SL_OK)
        goto done;
    l->pid_fd = (int)syscall(SYS_pidfd_open, l->pid, 0);
    if (l->pid_fd < 0) {
        status = sl_fail_errno(err, "could not watch process %d", (int)l->pid);
        kill_and_reap(l->pid);
    }
done:
    close_fd(pair[0]);
    close_fd(pair[1]);
    close_fd(channel_fd);
    close_fd(lock_fd);
    if (status != SL_OK) {
        sl_channel_destroy(l->channel);
        l->channel = NULL;
    }
    return status;
}

/* ---- a worker's life ---- */

static bool condemned(const life *l)
{
    return l->reason[0] != '\0';
}

/* It has to go, for this reason; the first one counts. */
static void condemn(life *l, const char *reason)
{
    if (!condemned(l)) {
        snprintf(l->reason, sizeof l->reason, "%s", reason);
        kill(l->pid, SIGKILL);
    }
}

static void push_simple(life *l, Sluice__Worker__Command__KindCase kind)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Ping ping = SLUICE__WORKER__PING__INIT;
    Sluice__Worker__Shutdown shutdown_command = SLUICE__WORKER__SHUTDOWN__INIT;
    sl_error error;

    command.kind_case = kind;
    if (kind == SLUICE__WORKER__COMMAND__KIND_PING)
        command.ping = &ping;
    else
        command.shutdown = &shutdown_command;
    if (sl_channel_push(l->channel, &command.base, &error) != SL_OK)
        condemn(l, error.message);
}

static void handle_event(sl_supervisor *s, life *l, const Sluice__Worker__Event *event)
{
    if (!l->hello && event->kind_case != SLUICE__WORKER__EVENT__KIND_HELLO) {
        condemn(l, "the worker spoke before its hello");
        return;
    }
    if (event->kind_case == SLUICE__WORKER__EVENT__KIND_HELLO) {
        l->hello = true;
        l->ping_ns = sl_clock_now_ns();
        pthread_mutex_lock(&s->lock);
        s->is_up = true;
        pthread_mutex_unlock(&s->lock);
        sl_log(SL_LOG_INFO, "worker_start", "pid=%d generation=%llu start_ms=%lld", (int)l->pid,
               (unsigned long long)l->generation,
               (long long)((sl_clock_now_ns() - l->start_ns) / SL_NS_PER_MS));
    }
    l->unanswered_ns = 0; /* any event shows that it lives */
    s->events.on_event(s->events.arg, l->generation, event);
}

/* Hands out all whole events; how many. */
static int read_events(sl_supervisor *s, life *l)
{
    sl_error error;
    int count = 0;

    if (sl_channel_fill(l->channel, &error) != SL_OK && l->closed_ns == 0)
        l->closed_ns = sl_clock_now_ns();
    while (!condemned(l)) {
        sl_arena *arena = NULL;
        ProtobufCMessage *message = NULL;
        sl_status status = sl_arena_create(&arena, SL_CHANNEL_MAX_UNPACKED, &error);

        if (status == SL_OK)
            status = sl_channel_pop(l->channel, &sluice__worker__event__descriptor, arena, &message,
                                    &error);
        if (status != SL_OK)
            condemn(l, error.message);
        else if (message)
            handle_event(s, l, (const Sluice__Worker__Event *)message);
        sl_arena_destroy(arena);
        if (!message)
            break;
        count++;
    }
    return count;
}

/* Pings, deadlines, orders from other threads; returns when to look again. */
static int64_t attend(sl_supervisor *s, life *l)
{
    const int64_t now_ns = sl_clock_now_ns();
    char reason[REASON_BYTES];

    pthread_mutex_lock(&s->lock);
    const bool stop = s->stop;
    const int64_t stop_deadline_ns = s->stop_deadline_ns;
    memcpy(reason, s->kill_reason, sizeof reason);
    pthread_mutex_unlock(&s->lock);

    if (reason[0] && !condemned(l)) {
        l->reset = l->hello;
        condemn(l, reason);
    }
    if (stop && !l->shutdown_sent) {
        l->shutdown_sent = true;
        push_simple(l, SLUICE__WORKER__COMMAND__KIND_SHUTDOWN);
    }
    if (stop && now_ns >= stop_deadline_ns)
        condemn(l, "did not shut down in time");
    if (!l->hello && now_ns >= l->start_ns + s->config.hello_deadline_ns)
        condemn(l, "did not say hello in time");
    if (l->unanswered_ns && now_ns >= l->unanswered_ns + s->config.pong_deadline_ns)
        condemn(l, "hung: did not answer a ping in time");
    if (l->closed_ns && now_ns >= l->closed_ns + END_DEADLINE_NS)
        condemn(l, "closed its channel and did not end");
    if (l->hello && !stop && !l->closed_ns && now_ns >= l->ping_ns + s->config.ping_interval_ns) {
        l->ping_ns = now_ns;
        if (!l->unanswered_ns)
            l->unanswered_ns = now_ns;
        push_simple(l, SLUICE__WORKER__COMMAND__KIND_PING);
    }
    if (l->closed_ns)
        return l->closed_ns + END_DEADLINE_NS;
    if (stop)
        return stop_deadline_ns;
    return l->hello ? l->ping_ns + s->config.ping_interval_ns
                    : l->start_ns + s->config.hello_deadline_ns;
}

static int poll_timeout_ms(int64_t due_ns)
{
    const int64_t left_ns = due_ns - sl_clock_now_ns();

    if (left_ns <= 0)
        return 0;
    return left_ns >= 1000 * SL_NS_PER_MS ? 1000 : (int)(left_ns / SL_NS_PER_MS + 1);
}

static void drain_wake(sl_supervisor *s)
{
    uint64_t count;

    while (read(s->wake_fd, &count, sizeof count) > 0)
        ;
}

/* Until the process has ended. */
static void live(sl_supervisor *s, life *l)
{
    sl_error error;

    for (;;) {
        const int64_t due_ns = attend(s, l);
        /* A failure shows as the end of the stream. */
        const bool open = l->closed_ns == 0 && !condemned(l);
        if (open && sl_channel_flush(l->channel, 0, &error) != SL_OK && sl_debug("worker"))
            sl_log(SL_LOG_DEBUG, "worker_flush", "pid=%d", (int)l->pid);
        const short wants = sl_channel_has_pending(l->channel) ? POLLIN | POLLOUT : POLLIN;
        struct pollfd polls[3] = {
            { .fd = l->pid_fd, .events = POLLIN },
            { .fd = s->wake_fd, .events = POLLIN },
            { .fd = open ? sl_channel_fd(l->channel) : -1, .events = wants },
        };
        if (poll(polls, 3, condemned(l) ? 1000 : poll_timeout_ms(due_ns)) < 0 && errno != EINTR)
            condemn(l, "could not wait for it");
        if (polls[1].revents)
            drain_wake(s);
        if (polls[2].revents & (POLLIN | POLLHUP | POLLERR))
            read_events(s, l);
        if (polls[0].revents) {
            while (read_events(s, l) > 0)
                ; /* what it said before it ended */
            return;
        }
    }
}

static void describe_end(const life *l, int wait_status, char *reason, size_t reason_bytes)
{
    if (condemned(l))
        snprintf(reason, reason_bytes, "%s", l->reason);
    else if (WIFSIGNALED(wait_status))
        snprintf(reason, reason_bytes, "killed by signal %d (%s)", WTERMSIG(wait_status),
                 strsignal(WTERMSIG(wait_status)));
    else
        snprintf(reason, reason_bytes, "exited with status %d", WEXITSTATUS(wait_status));
}

static void end_worker(sl_supervisor *s, life *l)
{
    char reason[REASON_BYTES], quoted[2 * REASON_BYTES];
    int wait_status = 0;

    while (waitpid(l->pid, &wait_status, 0) < 0 && errno == EINTR)
        ;
    describe_end(l, wait_status, reason, sizeof reason);
    pthread_mutex_lock(&s->lock);
    s->is_up = false;
    s->pid = 0;
    s->channel = NULL;
    s->kill_reason[0] = '\0';
    const bool stopping = s->stop;
    pthread_mutex_unlock(&s->lock);
    close(l->pid_fd);
    sl_channel_destroy(l->channel);
    sl_log(stopping ? SL_LOG_INFO : SL_LOG_ERROR, "worker_exit", "pid=%d generation=%llu reason=%s",
           (int)l->pid, (unsigned long long)l->generation,
           sl_log_quote(quoted, sizeof quoted, reason));
    s->events.on_down(s->events.arg, l->generation, reason);
}

/* ---- the thread ---- */

/* False: it is time to stop. */
static bool pause_for(sl_supervisor *s, int64_t pause_ns)
{
    const int64_t due_ns = sl_clock_deadline_ns(pause_ns);

    for (;;) {
        pthread_mutex_lock(&s->lock);
        const bool stop = s->stop;
        pthread_mutex_unlock(&s->lock);
        if (stop)
            return false;
        if (sl_clock_now_ns() >= due_ns)
            return true;
        struct pollfd poll_fd = { .fd = s->wake_fd, .events = POLLIN };
        if (poll(&poll_fd, 1, poll_timeout_ms(due_ns)) > 0)
            drain_wake(s);
    }
}

static bool begin_generation(sl_supervisor *s, life *l)
{
    sl_error error;
    char quoted[SL_ERROR_MESSAGE_BYTES];

    if (start_worker(s, l, &error) != SL_OK) {
        sl_log(SL_LOG_ERROR, "worker_start", "reason=%s",
               sl_log_quote(quoted, sizeof quoted, error.message));
        return false;
    }
    pthread_mutex_lock(&s->lock);
    l->generation = ++s->generation;
    s->pid = l->pid;
    s->channel = l->channel;
    s->kill_reason[0] = '\0';
    pthread_mutex_unlock(&s->lock);
    return true;
}

static void *supervise(void *arg)
{
    sl_supervisor *s = arg;
    int64_t pause_ns = 0;
    sigset_t all;
    life l;

    sigfillset(&all); /* signals are the main thread's */
    pthread_sigmask(SIG_BLOCK, &all, NULL);

    while (pause_for(s, pause_ns)) {
        int64_t lived_ns = 0;
        if (begin_generation(s, &l)) {
            live(s, &l);
            lived_ns = l.hello ? sl_clock_now_ns() - l.start_ns : 0;
            end_worker(s, &l);
        }
        if (lived_ns > 0 && l.reset)
            pause_ns = 0;
        else if (lived_ns > s->config.pause_max_ns || pause_ns == 0)
            pause_ns = s->config.pause_min_ns;
        else
            pause_ns =
                pause_ns * 2 < s->config.pause_max_ns ? pause_ns * 2 : s->config.pause_max_ns;
    }
    return NULL;
}
