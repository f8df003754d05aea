#include "service/channel.h"

#include "api/worker.pb-c.h"
#include "base/clock.h"
#include "base/test.h"

#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
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

SL_TEST_MAIN(SL_RUN(messages_arrive_whole_and_in_order), SL_RUN(every_split_of_a_frame_is_fine),
             SL_RUN(bad_lengths_break_the_channel_for_good), SL_RUN(garbage_is_a_status),
             SL_RUN(a_closed_peer_is_unavailable_after_its_last_message),
             SL_RUN(a_peer_that_does_not_read_is_noticed), SL_RUN(too_large_a_message_is_refused),
             SL_RUN(threads_may_push))
