#include "service/channel.h"

#include "api/worker.pb-c.h"
#include "base/clock.h"
#include "base/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Both ends; `raw` writes bytes by hand. */
typedef struct {
    sl_channel *a, *b;
} pair;

static pair make_pair(sl_error *err)
{
    int fd[2];
    pair p = { 0 };

    SL_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0);
    SL_CHECK_OK(sl_channel_create(&p.a, fd[0], "a", err));
    SL_CHECK_OK(sl_channel_create(&p.b, fd[1], "b", err));
    return p;
}

static void end_pair(pair *p)
{
    sl_channel_destroy(p->a);
    sl_channel_destroy(p->b);
}

static sl_arena *make_arena(size_t limit_bytes, sl_error *err)
{
    sl_arena *arena = NULL;
    SL_CHECK_OK(sl_arena_create(&arena, limit_bytes, err));
    return arena;
}

static void push_run(sl_channel *channel, uint64_t id, size_t id_count, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Run run = SLUICE__WORKER__RUN__INIT;
    int32_t *ids = calloc(id_count + 1, sizeof *ids);

    SL_CHECK(ids != NULL);
    for (size_t i = 0; i < id_count; i++)
        ids[i] = (int32_t)(i * 7 % 256000);
    run.job_id = (char *)"job-1";
    run.n_ids = id_count;
    run.ids = ids;
    command.id = id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_RUN;
    command.run = &run;
    SL_CHECK_OK(sl_channel_push(channel, &command.base, err));
    free(ids);
}

static sl_status pop(sl_channel *channel, sl_arena *arena, Sluice__Worker__Command **out,
                     sl_error *err)
{
    ProtobufCMessage *message = NULL;
    const sl_status status =
        sl_channel_pop(channel, &sluice__worker__command__descriptor, arena, &message, err);
    *out = (Sluice__Worker__Command *)message;
    return status;
}

SL_TEST(messages_arrive_whole_and_in_order)
{
    pair p = make_pair(err);
    uint64_t sent = 0, seen = 0;

    /* More than the socket buffers hold, so that both sides see partial I/O. */
    while (seen < 400) {
        while (sent < 400 && sent - seen < 40) {
            sent++;
            push_run(p.a, sent, (sent * 97) % 3000, err);
        }
        SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
        SL_CHECK_OK(sl_channel_fill(p.b, err));
        for (;;) {
            sl_arena *arena = make_arena(SL_CHANNEL_MAX_UNPACKED, err);
            Sluice__Worker__Command *command;
            SL_CHECK_OK(pop(p.b, arena, &command, err));
            if (command) {
                SL_CHECK(command->id == ++seen);
                SL_CHECK(command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN);
                SL_CHECK(command->run->n_ids == (seen * 97) % 3000);
                for (size_t i = 0; i < command->run->n_ids; i++)
                    SL_CHECK(command->run->ids[i] == (int32_t)(i * 7 % 256000));
            }
            sl_arena_destroy(arena);
            if (!command)
                break;
        }
    }
    SL_CHECK(!sl_channel_has_pending(p.a));
    end_pair(&p);
}

SL_TEST(every_split_of_a_frame_is_fine)
{
    pair p = make_pair(err);
    sl_arena *arena = make_arena(0, err);
    unsigned char frame[256];

    push_run(p.a, 9, 20, err);
    SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
    const ssize_t n = recv(sl_channel_fd(p.b), frame, sizeof frame, 0);
    SL_CHECK(n > 8);
    for (ssize_t cut = 0; cut <= n; cut++) {
        Sluice__Worker__Command *command;
        SL_CHECK(send(sl_channel_fd(p.a), frame, (size_t)cut, 0) == cut);
        SL_CHECK_OK(sl_channel_fill(p.b, err));
        if (cut < n) {
            SL_CHECK_OK(pop(p.b, arena, &command, err));
            SL_CHECK(command == NULL);
            SL_CHECK(send(sl_channel_fd(p.a), frame + cut, (size_t)(n - cut), 0) == n - cut);
            SL_CHECK_OK(sl_channel_fill(p.b, err));
        }
        SL_CHECK_OK(pop(p.b, arena, &command, err));
        SL_CHECK(command && command->id == 9 && command->run->n_ids == 20);
    }
    sl_arena_destroy(arena);
    end_pair(&p);
}

SL_TEST(bad_lengths_break_the_channel_for_good)
{
    static const unsigned char bad[][4] = {
        { 0, 0, 0, 0 },             /* nothing */
        { 0, 1, 0, 1 },             /* 64 KiB + 1 */
        { 0xff, 0xff, 0xff, 0xff }, /* most there can be */
    };

    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        pair p = make_pair(err);
        sl_arena *arena = make_arena(0, err);
        Sluice__Worker__Command *command;

        SL_CHECK(send(sl_channel_fd(p.a), bad[i], 4, 0) == 4);
        SL_CHECK_OK(sl_channel_fill(p.b, err));
        SL_CHECK_STATUS(pop(p.b, arena, &command, err), SL_ERR_DATA);
        push_run(p.a, 1, 0, err); /* a good one behind it does not heal it */
        SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
        SL_CHECK_OK(sl_channel_fill(p.b, err));
        SL_CHECK_STATUS(pop(p.b, arena, &command, err), SL_ERR_DATA);
        sl_arena_destroy(arena);
        end_pair(&p);
    }
}

static uint64_t next_random(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Random bytes and damaged messages, unpacked with little memory: a status
 * each time, never more than the cap (the sanitizer builds watch the rest). */
SL_TEST(garbage_is_a_status)
{
    uint64_t random = 1;

    for (int round = 0; round < 3000; round++) {
        pair p = make_pair(err);
        unsigned char frame[512];
        size_t length;

        if (round % 2) {
            push_run(p.a, (uint64_t)round, 30, err);
            SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
            length = (size_t)recv(sl_channel_fd(p.b), frame, sizeof frame, 0);
            for (int i = 0; i < 3; i++)
                frame[4 + next_random(&random) % (length - 4)] =
                    (unsigned char)next_random(&random);
        } else {
            length = 4 + 1 + next_random(&random) % 200;
            frame[0] = frame[1] = frame[2] = 0;
            frame[3] = (unsigned char)(length - 4);
            for (size_t i = 4; i < length; i++)
                frame[i] = (unsigned char)next_random(&random);
        }
        sl_arena *arena = make_arena(next_random(&random) % 2048 + 1, err);
        Sluice__Worker__Command *command = NULL;
        SL_CHECK(send(sl_channel_fd(p.a), frame, length, 0) == (ssize_t)length);
        SL_CHECK_OK(sl_channel_fill(p.b, err));
        const sl_status status = pop(p.b, arena, &command, err);
        SL_CHECK(status == SL_ERR_DATA || (status == SL_OK && command));
        sl_arena_destroy(arena);
        end_pair(&p);
    }
}

SL_TEST(a_closed_peer_is_unavailable_after_its_last_message)
{
    pair p = make_pair(err);
    sl_arena *arena = make_arena(0, err);
    Sluice__Worker__Command *command;

    push_run(p.a, 5, 3, err);
    SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
    sl_channel_destroy(p.a);
    p.a = NULL;
    SL_CHECK_STATUS(sl_channel_fill(p.b, err), SL_ERR_UNAVAILABLE);
    SL_CHECK_OK(pop(p.b, arena, &command, err));
    SL_CHECK(command && command->id == 5);
    push_run(p.b, 6, 3, err);
    SL_CHECK_STATUS(sl_channel_flush(p.b, SL_NS_PER_S, err), SL_ERR_UNAVAILABLE);
    sl_arena_destroy(arena);
    end_pair(&p);
}

SL_TEST(a_peer_that_does_not_read_is_noticed)
{
    pair p = make_pair(err);
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Cancel cancel = SLUICE__WORKER__CANCEL__INIT;
    char text[60001];
    sl_status status = SL_OK;

    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    cancel.job_id = text;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_CANCEL;
    command.cancel = &cancel;
    for (int i = 0; i < 100 && status == SL_OK; i++) {
        status = sl_channel_push(p.a, &command.base, err);
        SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
    }
    SL_CHECK_STATUS(status, SL_ERR_BUSY);
    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_STATUS(sl_channel_flush(p.a, 50 * SL_NS_PER_MS, err), SL_ERR_TIMEOUT);
    SL_CHECK(sl_clock_now_ns() - start_ns >= 50 * SL_NS_PER_MS);
    end_pair(&p);
}

SL_TEST(too_large_a_message_is_refused)
{
    pair p = make_pair(err);
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Cancel cancel = SLUICE__WORKER__CANCEL__INIT;
    char *text = malloc(70000);

    SL_CHECK(text != NULL);
    memset(text, 'x', 69999);
    text[69999] = '\0';
    cancel.job_id = text;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_CANCEL;
    command.cancel = &cancel;
    SL_CHECK_STATUS(sl_channel_push(p.a, &command.base, err), SL_ERR_TOO_LARGE);
    SL_CHECK(!sl_channel_has_pending(p.a));
    free(text);
    end_pair(&p);
}

/* Two threads push; every message arrives whole. */
enum { PUSHES = 300 };

static void *push_many(void *arg)
{
    sl_error error;
    for (int i = 0; i < PUSHES; i++) {
        push_run(arg, 1, (size_t)(i % 500), &error);
        if (sl_channel_flush(arg, SL_NS_PER_S, &error) != SL_OK)
            return (void *)1;
    }
    return NULL;
}

SL_TEST(threads_may_push)
{
    pair p = make_pair(err);
    pthread_t threads[2];
    int seen = 0;

    for (int i = 0; i < 2; i++)
        SL_CHECK(pthread_create(&threads[i], NULL, push_many, p.a) == 0);
    while (seen < 2 * PUSHES) {
        SL_CHECK_OK(sl_channel_fill(p.b, err));
        for (;;) {
            sl_arena *arena = make_arena(0, err);
            Sluice__Worker__Command *command;
            SL_CHECK_OK(pop(p.b, arena, &command, err));
            SL_CHECK(!command || command->kind_case == SLUICE__WORKER__COMMAND__KIND_RUN);
            const bool more = command != NULL;
            seen += more;
            sl_arena_destroy(arena);
            if (!more)
                break;
        }
    }
    for (int i = 0; i < 2; i++) {
        void *result;
        SL_CHECK(pthread_join(threads[i], &result) == 0 && result == NULL);
    }
    end_pair(&p);
}

/* ---- descriptors ---- */

static int open_fd_count(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;

    SL_CHECK(dir != NULL);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* A file in memory of a size that tells which it is. */
static int make_fd(size_t size_bytes)
{
    const int fd = memfd_create("channel-test", MFD_CLOEXEC);

    SL_CHECK(fd >= 0 && ftruncate(fd, (off_t)size_bytes) == 0);
    return fd;
}

static size_t fd_size(int fd)
{
    struct stat info;

    SL_CHECK(fstat(fd, &info) == 0);
    return (size_t)info.st_size;
}

/* A HostSegments with that many descriptors, of sizes id * 100, + 1, ... */
static sl_status push_segments(sl_channel *channel, uint64_t id, int fd_count, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostSegments segments = SLUICE__WORKER__HOST_SEGMENTS__INIT;
    int fds[SL_CHANNEL_MAX_FDS];

    for (int i = 0; i < fd_count; i++)
        fds[i] = make_fd((size_t)id * 100 + (size_t)i);
    segments.image_bytes = id;
    command.id = id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS;
    command.host_segments = &segments;
    const sl_status status = sl_channel_push_fds(channel, &command.base, fds, fd_count, err);
    for (int i = 0; i < fd_count; i++)
        close(fds[i]);
    return status;
}

static void check_taken(sl_channel *channel, uint64_t id, int fd_count, sl_error *err)
{
    int fds[SL_CHANNEL_MAX_FDS];

    SL_CHECK_OK(sl_channel_take_fds(channel, fds, fd_count, err));
    for (int i = 0; i < fd_count; i++) {
        SL_CHECK(fd_size(fds[i]) == (size_t)id * 100 + (size_t)i);
        SL_CHECK(fcntl(fds[i], F_GETFD) == FD_CLOEXEC);
        close(fds[i]);
    }
}

/* Descriptors of command `id`: of every third one. */
static int fds_of(uint64_t id)
{
    return id % 3 == 0 ? (int)(id % 5) + 1 : 0;
}

SL_TEST(descriptors_come_with_their_messages)
{
    const int open_before = open_fd_count();
    pair p = make_pair(err);
    uint64_t sent = 0, seen = 0;

    while (seen < 300) {
        while (sent < 300 && sent - seen < 30) {
            sent++;
            if (fds_of(sent) > 0)
                SL_CHECK_OK(push_segments(p.a, sent, fds_of(sent), err));
            else
                push_run(p.a, sent, (sent * 89) % 9000, err);
        }
        SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
        SL_CHECK_OK(sl_channel_fill(p.b, err));
        for (;;) {
            sl_arena *arena = make_arena(SL_CHANNEL_MAX_UNPACKED, err);
            Sluice__Worker__Command *command;
            SL_CHECK_OK(pop(p.b, arena, &command, err));
            const bool more = command != NULL;
            if (command) {
                SL_CHECK(command->id == ++seen);
                check_taken(p.b, seen, fds_of(seen), err);
            }
            sl_arena_destroy(arena);
            if (!more)
                break;
        }
    }
    int fd;
    SL_CHECK_STATUS(sl_channel_take_fds(p.b, &fd, 1, err), SL_ERR_DATA);
    end_pair(&p);
    SL_CHECK(open_fd_count() == open_before);
}

SL_TEST(descriptors_that_nobody_takes_are_closed)
{
    const int open_before = open_fd_count();

    for (int round = 0; round < 3; round++) {
        pair p = make_pair(err);
        SL_CHECK_OK(push_segments(p.a, 1, SL_CHANNEL_MAX_FDS, err));
        SL_CHECK_OK(push_segments(p.a, 2, 3, err));
        if (round > 0)
            SL_CHECK_OK(sl_channel_flush(p.a, 0, err)); /* round 0: never sent */
        if (round > 1)
            SL_CHECK_OK(sl_channel_fill(p.b, err)); /* round 1: never received */
        end_pair(&p);
        SL_CHECK(open_fd_count() == open_before);
    }
}

SL_TEST(too_many_descriptors_break_the_channel)
{
    const int open_before = open_fd_count();
    pair p = make_pair(err);
    sl_arena *arena = make_arena(0, err);
    Sluice__Worker__Command *command;
    sl_status status = SL_OK;
    int waiting = 0, fd = make_fd(1);

    /* More than may wait on the sender's side. */
    while ((status = push_segments(p.a, 1, SL_CHANNEL_MAX_FDS, err)) == SL_OK)
        waiting += SL_CHANNEL_MAX_FDS;
    SL_CHECK(status == SL_ERR_BUSY && waiting == SL_CHANNEL_MAX_HELD_FDS);
    int many[SL_CHANNEL_MAX_FDS + 1];
    for (int i = 0; i <= SL_CHANNEL_MAX_FDS; i++)
        many[i] = fd;
    Sluice__Worker__Command ping = SLUICE__WORKER__COMMAND__INIT;
    ping.id = 1;
    SL_CHECK_STATUS(sl_channel_push_fds(p.a, &ping.base, many, SL_CHANNEL_MAX_FDS + 1, err),
                    SL_ERR_TOO_LARGE);
    many[1] = -1;
    SL_CHECK(sl_channel_push_fds(p.a, &ping.base, many, 2, err) != SL_OK);

    /* More than the receiver holds: nobody takes them. */
    for (int i = 0; i < 2 * SL_CHANNEL_MAX_HELD_FDS / SL_CHANNEL_MAX_FDS && status != SL_ERR_DATA;
         i++) {
        SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
        status = sl_channel_fill(p.b, err);
        const sl_status pushed = push_segments(p.a, 2, SL_CHANNEL_MAX_FDS, err);
        SL_CHECK(pushed == SL_OK || pushed == SL_ERR_BUSY);
    }
    SL_CHECK(status == SL_ERR_DATA);
    SL_CHECK_STATUS(pop(p.b, arena, &command, err), SL_ERR_DATA);
    sl_arena_destroy(arena);
    close(fd);
    end_pair(&p);
    SL_CHECK(open_fd_count() == open_before);
}

/* By hand: bytes with descriptors. */
static void send_raw(sl_channel *channel, const void *bytes, size_t size_bytes, int fd_count)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 128)] = { 0 };
    struct iovec piece = { (void *)bytes, size_bytes };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };
    int fds[128];

    for (int i = 0; i < fd_count; i++)
        fds[i] = STDIN_FILENO;
    if (fd_count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof *fds * (size_t)fd_count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof *fds * (size_t)fd_count);
        memcpy(CMSG_DATA(header), fds, sizeof *fds * (size_t)fd_count);
    }
    SL_CHECK(sendmsg(sl_channel_fd(channel), &message, MSG_NOSIGNAL) == (ssize_t)size_bytes);
}

/* Random pieces of good and bad frames with any number of descriptors at any
 * place, taken or not: a status each time, and every descriptor is closed. */
SL_TEST(garbage_with_descriptors_is_a_status)
{
    const int open_before = open_fd_count();
    uint64_t random = 2;

    for (int round = 0; round < 1000; round++) {
        pair p = make_pair(err);
        bool over = false;

        for (int piece = 0; piece < 12 && !over; piece++) {
            unsigned char bytes[40] = { 0, 0, 0, 2, 0x08, 0x01 }; /* a command with an id */
            const size_t length = next_random(&random) % 3 ? 6 : 1 + next_random(&random) % 40;
            const bool many = next_random(&random) % 20 == 0;
            if (next_random(&random) % 8 == 0)
                bytes[next_random(&random) % sizeof bytes] = (unsigned char)next_random(&random);
            send_raw(p.a, bytes, length, (int)(next_random(&random) % (many ? 120 : 4)));
            over = sl_channel_fill(p.b, err) != SL_OK;
            for (bool more = true; more;) {
                sl_arena *arena = make_arena(2048, err);
                Sluice__Worker__Command *command = NULL;
                const sl_status status = pop(p.b, arena, &command, err);
                SL_CHECK(status == SL_OK || status == SL_ERR_DATA);
                SL_CHECK(!over || status == SL_ERR_DATA);
                over = over || status != SL_OK;
                more = command != NULL;
                sl_arena_destroy(arena);
            }
            int fds[2];
            if (sl_channel_take_fds(p.b, fds, 2, err) == SL_OK) {
                close(fds[0]);
                close(fds[1]);
            }
        }
        end_pair(&p);
    }
    SL_CHECK(open_fd_count() == open_before);
}

/* A process that may open no more loses descriptors on the way: that shows. */
SL_TEST(descriptors_that_do_not_fit_into_the_process_are_noticed)
{
    const int open_before = open_fd_count();
    pair p = make_pair(err);
    struct rlimit usual, tight;

    SL_CHECK_OK(push_segments(p.a, 1, 20, err));
    SL_CHECK_OK(sl_channel_flush(p.a, 0, err));
    SL_CHECK(getrlimit(RLIMIT_NOFILE, &usual) == 0);
    tight = usual;
    const int next_fd = dup(STDIN_FILENO);
    close(next_fd);
    tight.rlim_cur = (rlim_t)next_fd + 5;
    SL_CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    const sl_status status = sl_channel_fill(p.b, err);
    SL_CHECK(setrlimit(RLIMIT_NOFILE, &usual) == 0);
    SL_CHECK_STATUS(status, SL_ERR_DATA);
    end_pair(&p);
    SL_CHECK(open_fd_count() == open_before);
}

SL_TEST_MAIN(SL_RUN(descriptors_come_with_their_messages),
             SL_RUN(descriptors_that_nobody_takes_are_closed),
             SL_RUN(too_many_descriptors_break_the_channel),
             SL_RUN(garbage_with_descriptors_is_a_status),
             SL_RUN(descriptors_that_do_not_fit_into_the_process_are_noticed),
             SL_RUN(messages_arrive_whole_and_in_order), SL_RUN(every_split_of_a_frame_is_fine),
             SL_RUN(bad_lengths_break_the_channel_for_good), SL_RUN(garbage_is_a_status),
             SL_RUN(a_closed_peer_is_unavailable_after_its_last_message),
             SL_RUN(a_peer_that_does_not_read_is_noticed), SL_RUN(too_large_a_message_is_refused),
             SL_RUN(threads_may_push))
