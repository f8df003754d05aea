/* The job store: what comes back is what went in, and what was acknowledged is
 * there whatever happens to the process, the disk or the file. */
#include "service/store.h"

#include "base/test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char folder[64], path[100];

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/sl_store_test_XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/jobs.db", folder);
    return 0;
}

static int tear_down(void **state)
{
    char command[120];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static const int32_t some_ids[] = { 5, 7, -1, 1 };

static sl_store_job make_job(const char *id)
{
    return (sl_store_job){
        .job_id = id,
        .owner = "uid:1",
        .request_id = id,
        .model = "tiny",
        .model_path = "/models/tiny",
        .table_row = "",
        .body_hash = { "0123456789abcdef0123456789abcdef", 32 },
        .request = { "request", 7 },
        .plan = { "plan\0s", 6 },
        .ids = { some_ids, sizeof some_ids },
        .workspace_bytes = UINT64_MAX, /* as large as it gets */
        .submitted_ns = 1234567890123456789,
        .state = 1,
        .step_count = 4,
        .attempt = 1,
        .message = "",
        .output_sha256 = "",
        .last_seq = 1,
    };
}

static void add(sl_store *store, const char *id, sl_error *err)
{
    const sl_store_job job = make_job(id);

    SL_CHECK_OK(sl_store_begin(store, true, err));
    SL_CHECK_OK(sl_store_add_job(store, &job, err));
    SL_CHECK_OK(sl_store_commit(store, err));
}

/* --- round trips --- */

typedef struct {
    int count;
    char ids[8][40];
    sl_store_job last; /* its pointers are dead */
    size_t id_bytes;
    char message[80], sha256[80];
} seen_jobs;

static sl_status see_job(void *arg, const sl_store_job *job, sl_error *err)
{
    seen_jobs *seen = arg;

    if (seen->count >= 8)
        return sl_fail(err, SL_ERR_TOO_LARGE, "more than the test has room for");
    snprintf(seen->ids[seen->count++], sizeof seen->ids[0], "%s", job->job_id);
    seen->last = *job;
    seen->id_bytes = job->ids.size_bytes;
    SL_CHECK(job->ids.size_bytes == 0 || memcmp(job->ids.data, some_ids, sizeof some_ids) == 0);
    SL_CHECK(job->plan.size_bytes == 6 && memcmp(job->plan.data, "plan\0s", 6) == 0);
    SL_CHECK(job->body_hash.size_bytes == 32 && strcmp(job->model_path, "/models/tiny") == 0);
    snprintf(seen->message, sizeof seen->message, "%s", job->message);
    snprintf(seen->sha256, sizeof seen->sha256, "%s", job->output_sha256);
    return SL_OK;
}

SL_TEST(jobs_come_back_in_their_order)
{
    sl_store *store = NULL;
    seen_jobs seen = { .count = 0 };
    struct stat st;

    SL_CHECK_OK(sl_store_open(&store, path, err));
    SL_CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    add(store, "first", err);
    add(store, "a-second", err);
    add(store, "third", err);
    sl_store_job job = make_job("third");
    job.state = 8;
    job.ended = true;
    job.message = "it's \"done\"; DROP TABLE jobs";
    job.output_size_bytes = 99;
    job.output_sha256 = "abc";
    job.last_seq = 17;
    job.attempt = 3;
    job.resumed_from_step = 2;
    SL_CHECK_OK(sl_store_begin(store, true, err));
    SL_CHECK_OK(sl_store_update_job(store, &job, err));
    SL_CHECK_OK(sl_store_remove_job(store, "first", err));
    SL_CHECK_OK(sl_store_remove_job(store, "never was", err));
    SL_CHECK_OK(sl_store_commit(store, err));
    sl_store_close(store);

    SL_CHECK_OK(sl_store_open(&store, path, err));
    SL_CHECK_OK(sl_store_each_job(store, see_job, &seen, err));
    SL_CHECK(seen.count == 2 && strcmp(seen.ids[0], "a-second") == 0
             && strcmp(seen.ids[1], "third") == 0);
    SL_CHECK(seen.last.ended && seen.last.state == 8 && seen.last.attempt == 3
             && seen.last.resumed_from_step == 2
             && seen.last.last_seq == 17 && seen.last.output_size_bytes == 99
             && seen.last.workspace_bytes == UINT64_MAX
             && seen.last.submitted_ns == 1234567890123456789);
    SL_CHECK(seen.id_bytes == 0); /* an ended job needs no tokens */
    SL_CHECK(strcmp(seen.message, job.message) == 0 && strcmp(seen.sha256, "abc") == 0);
    sl_store_close(store);
}

SL_TEST(a_request_id_is_one_job_of_its_owner)
{
    sl_store *store = NULL;
    sl_store_job job = make_job("one");

    SL_CHECK_OK(sl_store_open(&store, path, err));
    add(store, "one", err);
    job.job_id = "two"; /* the same owner and request_id */
    SL_CHECK_OK(sl_store_begin(store, false, err));
    SL_CHECK_STATUS(sl_store_add_job(store, &job, err), SL_ERR_EXISTS);
    sl_store_rollback(store);
    job.owner = "uid:2";
    SL_CHECK_OK(sl_store_begin(store, false, err));
    SL_CHECK_OK(sl_store_add_job(store, &job, err));
    sl_store_rollback(store);
    sl_store_rollback(store); /* fine */
    seen_jobs seen = { .count = 0 };
    SL_CHECK_OK(sl_store_each_job(store, see_job, &seen, err));
    SL_CHECK(seen.count == 1); /* rolled back is gone */
    job.job_id = "nobody";
    SL_CHECK_OK(sl_store_begin(store, false, err));
    SL_CHECK_STATUS(sl_store_update_job(store, &job, err), SL_ERR_NOT_FOUND);
    sl_store_close(store);
}

typedef struct {
    uint64_t first, last;
    int count;
    char text[40];
} seen_rows;

static sl_status see_event(void *arg, const sl_store_event *event, sl_error *err)
{
    seen_rows *seen = arg;

    (void)err;
    seen->first = seen->count++ ? seen->first : event->seq;
    SL_CHECK(event->seq > seen->last && event->position == 3 && event->time_ns == 77);
    seen->last = event->seq;
    snprintf(seen->text, sizeof seen->text, "%s", event->text);
    return SL_OK;
}

static sl_status see_line(void *arg, int64_t time_ns, const char *text, sl_error *err)
{
    seen_rows *seen = arg;

    (void)err;
    SL_CHECK(time_ns == 10 + seen->count);
    seen->count++;
    snprintf(seen->text, sizeof seen->text, "%s", text);
    return SL_OK;
}

static sl_status see_peak(void *arg, const sl_store_peak *peak, sl_error *err)
{
    sl_store_peak *peaks = arg;

    (void)err;
    while (peaks->hour_ns)
        peaks++;
    *peaks = *peak;
    return SL_OK;
}

SL_TEST(events_lines_and_peaks_come_back)
{
    sl_store *store = NULL;
    seen_rows events = { .count = 0 }, lines = { .count = 0 };
    sl_store_peak peaks[4] = { { .hour_ns = 0 } };
    sl_store_event event = { .time_ns = 77, .position = 3, .text = "step" };

    SL_CHECK_OK(sl_store_open(&store, path, err));
    add(store, "j", err);
    SL_CHECK_OK(sl_store_begin(store, false, err));
    for (event.seq = 1; event.seq <= SL_STORE_EVENTS + 5; event.seq++)
        SL_CHECK_OK(sl_store_add_event(store, "j", &event, err));
    SL_CHECK_OK(sl_store_add_line(store, "j", 10, "a=1", err));
    SL_CHECK_OK(sl_store_add_line(store, "j", 11, "b=2", err));
    SL_CHECK_OK(sl_store_note_peak(store, &(sl_store_peak){ 3600, 50, 5, 1 }, err));
    SL_CHECK_OK(sl_store_note_peak(store, &(sl_store_peak){ 3600, 40, 6, 2 }, err));
    SL_CHECK_OK(sl_store_note_peak(store, &(sl_store_peak){ 7200, 1, 1, 1 }, err));
    SL_CHECK_OK(sl_store_note_peak(store, &(sl_store_peak){ 100, 1, 1, 1 }, err));
    SL_CHECK_OK(sl_store_forget_peaks(store, 3600, err));
    SL_CHECK_OK(sl_store_commit(store, err));
    SL_CHECK_OK(sl_store_each_event(store, "j", see_event, &events, err));
    SL_CHECK(events.count == SL_STORE_EVENTS && events.first == 6
             && events.last == SL_STORE_EVENTS + 5);
    SL_CHECK_OK(sl_store_each_line(store, "j", see_line, &lines, err));
    SL_CHECK(lines.count == 2 && strcmp(lines.text, "b=2") == 0);
    SL_CHECK_OK(sl_store_each_peak(store, 3, see_peak, peaks, err));
    SL_CHECK(peaks[0].hour_ns == 7200 && peaks[1].hour_ns == 3600 && peaks[2].hour_ns == 0);
    SL_CHECK(peaks[1].peak_bytes == 50 && peaks[1].host_peak_bytes == 6 && peaks[1].jobs == 2);
    SL_CHECK_OK(sl_store_begin(store, false, err));
    SL_CHECK_OK(sl_store_remove_job(store, "j", err));
    SL_CHECK_OK(sl_store_commit(store, err));
    events.count = lines.count = 0;
    SL_CHECK_OK(sl_store_each_event(store, "j", see_event, &events, err));
    SL_CHECK_OK(sl_store_each_line(store, "j", see_line, &lines, err));
    SL_CHECK(events.count == 0 && lines.count == 0);
    sl_store_close(store);
}

/* --- death --- */

/* Never returns.  Each id is written to the pipe when its commit has returned. */
static void insert_until_killed(int pipe_fd, int round)
{
    sl_error error = { .status = SL_OK };
    sl_store *store = NULL;
    char id[40];

    if (sl_store_open(&store, path, &error) != SL_OK)
        _exit(2);
    for (int32_t i = 0;; i++) {
        snprintf(id, sizeof id, "r%d-%d", round, (int)i);
        const sl_store_job job = make_job(id);
        const sl_store_event event = { .seq = 1, .text = "" };
        if (sl_store_begin(store, i % 2 == 0, &error) != SL_OK
            || sl_store_add_job(store, &job, &error) != SL_OK
            || sl_store_add_event(store, id, &event, &error) != SL_OK
            || sl_store_commit(store, &error) != SL_OK)
            _exit(3);
        if (write(pipe_fd, &i, sizeof i) != (ssize_t)sizeof i)
            _exit(4);
    }
}

static sl_status count_round(void *arg, const sl_store_job *job, sl_error *err)
{
    int *counts = arg, round = 0, i = 0;

    (void)err;
    SL_CHECK(sscanf(job->job_id, "r%d-%d", &round, &i) == 2 && i == counts[round]);
    counts[round]++; /* in order, without a gap */
    return SL_OK;
}

static sl_status count_event(void *arg, const sl_store_event *event, sl_error *err)
{
    (void)event;
    (void)err;
    (*(int *)arg)++;
    return SL_OK;
}

SL_TEST(what_was_committed_survives_kill_9_at_any_moment)
{
    enum { ROUNDS = 25 };
    int acknowledged[ROUNDS] = { 0 };
    unsigned seed = (unsigned)getpid();

    print_message("seed %u\n", seed);
    for (int round = 0; round < ROUNDS; round++) {
        int fds[2], counts[ROUNDS] = { 0 }, code = 0;
        int32_t last = -1;
        sl_store *store = NULL;
        const struct timespec delay = { .tv_nsec = 10000000 + rand_r(&seed) % 60000000 };

        SL_CHECK(pipe(fds) == 0);
        const pid_t child = fork();
        SL_CHECK(child >= 0);
        if (child == 0) {
            close(fds[0]);
            insert_until_killed(fds[1], round);
        }
        close(fds[1]);
        nanosleep(&delay, NULL);
        SL_CHECK(kill(child, SIGKILL) == 0);
        SL_CHECK(waitpid(child, &code, 0) == child && WIFSIGNALED(code));
        while (read(fds[0], &last, sizeof last) == (ssize_t)sizeof last)
            acknowledged[round] = last + 1;
        close(fds[0]);

        SL_CHECK_OK(sl_store_open(&store, path, err));
        SL_CHECK_OK(sl_store_each_job(store, count_round, counts, err));
        for (int r = 0; r <= round; r++) {
            /* The one that was under way may have made it. */
            SL_CHECK(counts[r] == acknowledged[r] || counts[r] == acknowledged[r] + 1);
            acknowledged[r] = counts[r];
            for (int i = 0; r == round && i < counts[r]; i++) {
                char id[40];
                int events = 0;
                snprintf(id, sizeof id, "r%d-%d", r, i);
                SL_CHECK_OK(sl_store_each_event(store, id, count_event, &events, err));
                SL_CHECK(events == 1);
            }
        }
        sl_store_close(store);
    }
    int sum = 0;
    for (int r = 0; r < ROUNDS; r++)
        sum += acknowledged[r];
    SL_CHECK(sum >= ROUNDS); /* the child did get somewhere */
}

/* --- disks and files --- */

/* In a child: the limit cannot be raised again. */
static int fill_the_disk(void)
{
    sl_error error = { .status = SL_OK };
    sl_error *err = &error;
    sl_store *store = NULL;
    sl_status status = SL_OK;
    int kept = 0;
    static char large[100000];
    char id[40];

    signal(SIGXFSZ, SIG_IGN);
    if (sl_store_open(&store, path, err) != SL_OK)
        return 2;
    const struct rlimit limit = { 1 << 20, 1 << 20 };
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0)
        return 3;
    for (; status == SL_OK && kept < 1000; kept++) {
        snprintf(id, sizeof id, "r0-%d", kept);
        sl_store_job job = make_job(id);
        job.request = (sl_store_blob){ large, sizeof large };
        status = sl_store_begin(store, true, err);
        if (status == SL_OK)
            status = sl_store_add_job(store, &job, err);
        if (status == SL_OK)
            status = sl_store_commit(store, err);
    }
    if (status != SL_ERR_IO || !strstr(error.message, path) || kept < 2)
        return 4;
    sl_store_rollback(store);
    /* Reading goes on. */
    int counts[1] = { 0 };
    if (sl_store_each_job(store, count_round, counts, err) != SL_OK || counts[0] != kept - 1)
        return 5;
    sl_store_close(store);
    return 0;
}

SL_TEST(a_full_disk_is_a_status_and_loses_nothing)
{
    sl_store *store = NULL;
    int code = 0, counts[1] = { 0 };
    const pid_t child = fork();

    if (child == 0)
        _exit(fill_the_disk());
    SL_CHECK(waitpid(child, &code, 0) == child);
    SL_CHECK(WIFEXITED(code));
    assert_int_equal(WEXITSTATUS(code), 0);
    SL_CHECK_OK(sl_store_open(&store, path, err));
    SL_CHECK_OK(sl_store_each_job(store, count_round, counts, err));
    SL_CHECK(counts[0] >= 1);
    add(store, "r0-x", err); /* with room again it goes on */
    sl_store_close(store);
}

SL_TEST(a_damaged_file_is_refused_with_advice)
{
    sl_store *store = NULL;
    char junk[8192];

    SL_CHECK_OK(sl_store_open(&store, path, err));
    for (int i = 0; i < 200; i++) {
        char id[20];
        snprintf(id, sizeof id, "j%d", i);
        add(store, id, err);
    }
    sl_store_close(store);
    memset(junk, 0x5a, sizeof junk);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    SL_CHECK(fd >= 0 && pwrite(fd, junk, sizeof junk, 16384) == (ssize_t)sizeof junk);
    SL_CHECK_STATUS(sl_store_open(&store, path, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, path) && strstr(err->message, "damaged")
             && strstr(err->message, "away"));
    sl_error_clear(err);
    SL_CHECK(pwrite(fd, junk, sizeof junk, 0) == (ssize_t)sizeof junk); /* no database at all */
    close(fd);
    SL_CHECK_STATUS(sl_store_open(&store, path, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "damaged") && strstr(err->message, "away"));
}

SL_TEST(a_newer_or_unreachable_file_is_refused)
{
    sl_store *store = NULL;
    sqlite3 *db = NULL;
    char link_path[120];

    SL_CHECK_OK(sl_store_open(&store, path, err));
    sl_store_close(store);
    SL_CHECK(sqlite3_open(path, &db) == SQLITE_OK);
    SL_CHECK(sqlite3_exec(db, "UPDATE schema SET version = 2", NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(db);
    SL_CHECK_STATUS(sl_store_open(&store, path, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "version 2") && strstr(err->message, "newer"));
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_store_open(&store, "/nowhere/at/all.db", err), SL_ERR_NOT_FOUND);
    sl_error_clear(err);
    snprintf(link_path, sizeof link_path, "%s/link", folder);
    SL_CHECK(symlink(path, link_path) == 0);
    SL_CHECK_STATUS(sl_store_open(&store, link_path, err), SL_ERR_IO);
}

#define RUN(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RUN(jobs_come_back_in_their_order),
        RUN(a_request_id_is_one_job_of_its_owner),
        RUN(events_lines_and_peaks_come_back),
        RUN(what_was_committed_survives_kill_9_at_any_moment),
        RUN(a_full_disk_is_a_status_and_loses_nothing),
        RUN(a_damaged_file_is_refused_with_advice),
        RUN(a_newer_or_unreachable_file_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
