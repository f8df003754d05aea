/* Configuration, locks, and the table of jobs. */
#include "service/config.h"
#include "service/jobs.h"
#include "service/lock.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/test.h"

#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* --- configuration --- */

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    SL_CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static sl_status load(sl_settings *out, const char *text, const sl_flags *more, sl_error *err)
{
    char path[64];
    sl_flags flags = more ? *more : (sl_flags){ .config = NULL };

    snprintf(path, sizeof path, "/tmp/sl_settings_%d.yaml", (int)getpid());
    write_text(path, text);
    flags.config = path;
    const sl_status status = sl_settings_init(out, &flags, err);
    unlink(path);
    return status;
}

SL_TEST(settings_have_defaults)
{
    const sl_flags flags = { .config = NULL };
    sl_settings s;

    SL_CHECK_OK(sl_settings_init(&s, &flags, err));
    SL_CHECK(s.device.kind == SL_DEVICE_CPU && s.device.limit_bytes > 0);
    SL_CHECK(s.model_count == 1 && strstr(s.models[0], "sluice/models"));
    SL_CHECK(strstr(s.outputs, "sluice/outputs"));
    SL_CHECK(strstr(s.socket, "/sluice.sock"));
    SL_CHECK(strncmp(s.socket, s.runtime, strlen(s.runtime)) == 0);
    SL_CHECK(s.connections == 256 && s.in_flight == 20 && s.queue == 256 && s.retry_limit == 2);
    SL_CHECK(s.local_users == SL_ROLE_NONE && s.log_level == SL_LOG_INFO);
    SL_CHECK(!s.budget && !s.worker && s.threads == 0);
    sl_settings_fini(&s);
}

SL_TEST(the_file_and_then_the_flags_decide)
{
    static const char text[] = "device: cpu:64MiB\nmodels: [/a, /b]\noutputs: /o\nruntime: /r\n"
                               "threads: 3\nlimits:\n  connections: 7\n  in_flight: 9\n"
                               "  queue: 5\n  retry_limit: 0\nlocal_users: user\n"
                               "log_level: debug\nbudget: /t.yaml\nworker: /w\n";
    const sl_flags flags = { .device = "cpu:32MiB", .models = { "/c" }, .model_count = 1,
                             .outputs = "/p", .socket = "/s", .log_level = "error" };
    sl_settings s;

    SL_CHECK_OK(load(&s, text, NULL, err));
    SL_CHECK(s.device.limit_bytes == 64u << 20);
    SL_CHECK(s.model_count == 2 && strcmp(s.models[1], "/b") == 0);
    SL_CHECK(strcmp(s.outputs, "/o") == 0 && strcmp(s.socket, "/r/sluice.sock") == 0);
    SL_CHECK(s.threads == 3 && s.connections == 7 && s.in_flight == 9 && s.queue == 5);
    SL_CHECK(s.retry_limit == 0); /* written, not absent */
    SL_CHECK(s.local_users == SL_ROLE_USER && s.log_level == SL_LOG_DEBUG);
    SL_CHECK(strcmp(s.budget, "/t.yaml") == 0 && strcmp(s.worker, "/w") == 0);
    sl_settings_fini(&s);

    SL_CHECK_OK(load(&s, text, &flags, err));
    SL_CHECK(s.device.limit_bytes == 32u << 20);
    SL_CHECK(s.model_count == 1 && strcmp(s.models[0], "/c") == 0);
    SL_CHECK(strcmp(s.outputs, "/p") == 0 && strcmp(s.socket, "/s") == 0);
    SL_CHECK(strcmp(s.runtime, "/r") == 0 && s.log_level == SL_LOG_ERROR);
    sl_settings_fini(&s);
}

SL_TEST(wrong_settings_name_file_line_and_key)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        { "device: cpu\ndevise: cpu\n", "line 2, key \"devise\"" },
        { "\n\ndevice: tpu\n", "line 3, key \"device\"" },
        { "limits:\n  in_flight: 4\n", "line 2, key \"limits.in_flight\": 4 is not from 5 to 1024" },
        { "limits:\n  connections: 0\n", "line 2, key \"limits.connections\"" },
        { "limits:\n  queue: many\n", "line 2, key \"limits.queue\"" },
        { "threads: 65\n", "line 1, key \"threads\"" },
        { "local_users: admin\n", "line 1, key \"local_users\"" },
        { "log_level: loud\n", "line 1, key \"log_level\"" },
        { "models: []\n", "key \"models\"" },
        { "tls:\n  listen: [\"[::]:7437\"]\n  key: k\n", "key \"tls.listen\"" },
        { "tls:\n  client_auth: maybe\n", "line 2, key \"tls.client_auth\"" },
        { "tls:\n  listen: [\"a:1\"]\n  key: k\n  certificate: c\n  client_auth: optional\n",
          "line 5, key \"tls.client_auth\"" },
        { "tls:\n  handshake: 0s\n", "line 2, key \"tls.handshake\"" },
        { "tls:\n  listen: [\"127.0.0.1:1\", \"0.0.0.0:1\"]\n  key: k\n  certificate: c\n"
          "  insecure: true\n", "line 5, key \"tls.insecure\": only on loopback, and listen has "
                               "\"0.0.0.0:1\"" },
        { "tls:\n  listen: [\"[::]:1\"]\n  key: k\n  certificate: c\n  insecure: true\n",
          "key \"tls.insecure\"" },
        { "tls:\n  listen: [\"localhost:1\"]\n  key: k\n  certificate: c\n  insecure: true\n",
          "key \"tls.insecure\"" },
        { "tls:\n  listen: [\"127.0.0.1.example:1\"]\n  key: k\n  certificate: c\n"
          "  insecure: true\n", "key \"tls.insecure\"" },
        { "tls:\n  listen: [\"127.0.0.1:1\"]\n  key: k\n  certificate: c\n  client_ca: a\n"
          "  client_auth: required\n  insecure: true\n", "line 7, key \"tls.insecure\"" },
        { "limits:\n  burst: 0\n", "line 2, key \"limits.burst\"" },
        { "limits:\n  connections_user: 0\n", "line 2, key \"limits.connections_user\"" },
        { "deadlines:\n  idle: 0s\n", "line 2, key \"deadlines.idle\"" },
        { "deadlines:\n  write: 30\n", "line 2, key \"deadlines.write\"" },
        { "deadlines:\n  read: 30s\n", "line 2, key \"deadlines.read\"" },
    };
    sl_settings s;

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        SL_CHECK_STATUS(load(&s, cases[i].text, NULL, err), SL_ERR_DATA);
        if (!strstr(err->message, cases[i].says) || !strstr(err->message, "sl_settings_"))
            fail_msg("\"%s\" does not say %s", err->message, cases[i].says);
    }
    const sl_flags absent = { .config = "/nonexistent/sluice.yaml" };
    SL_CHECK_STATUS(sl_settings_init(&s, &absent, err), SL_ERR_NOT_FOUND);
    const sl_flags level = { .log_level = "loud" };
    SL_CHECK_STATUS(sl_settings_init(&s, &level, err), SL_ERR_INVALID);
}

SL_TEST(nothing_is_listened_on_unless_configured)
{
    const sl_flags flags = { .config = NULL };
    sl_settings s;

    SL_CHECK_OK(sl_settings_init(&s, &flags, err));
    SL_CHECK(s.tls.listen_count == 0 && !s.tls.certificate && !s.tokens && !s.audit);
    SL_CHECK(s.rate.rate == 0 && s.connections_host == 128 && s.connections_user == 0);
    SL_CHECK(s.message_ns == 30 * SL_NS_PER_S && s.write_ns == 30 * SL_NS_PER_S);
    SL_CHECK(s.idle_ns == 600 * SL_NS_PER_S);
    sl_settings_fini(&s);
    SL_CHECK_OK(load(&s, "tls:\n  listen: [\"0.0.0.0:7437\", \"[::]:7437\"]\n  certificate: c\n"
                         "  key: k\n  client_ca: a\n  handshake: 2s\ntokens: t\n", NULL, err));
    SL_CHECK(s.tls.listen_count == 2 && strcmp(s.tls.listen[1], "[::]:7437") == 0);
    SL_CHECK(s.tls.client_auth == SL_TLS_AUTH_REQUIRED && strcmp(s.tokens, "t") == 0);
    SL_CHECK(s.tls.handshake_ns == 2 * SL_NS_PER_S);
    sl_settings_fini(&s);
    SL_CHECK_OK(load(&s, "tls:\n  listen: [\"a:1\"]\n  certificate: c\n  key: k\n", NULL, err));
    SL_CHECK(s.tls.client_auth == SL_TLS_AUTH_OFF && !s.tls.insecure);
    sl_settings_fini(&s);
    SL_CHECK_OK(load(&s, "tls:\n  listen: [\"127.0.0.2:1\", \"[::1]:1\"]\n  certificate: c\n"
                         "  key: k\n  client_ca: a\n  insecure: true\n", NULL, err));
    SL_CHECK(s.tls.client_auth == SL_TLS_AUTH_OPTIONAL && s.tls.insecure);
    sl_settings_fini(&s);
}

SL_TEST(deadlines_and_shares_of_connections)
{
    sl_settings s;

    SL_CHECK_OK(load(&s, "deadlines:\n  message: 5s\n  write: 2m\n  idle: 1h\n"
                         "limits:\n  connections_user: 9\n  connections_host: 11\n", NULL, err));
    SL_CHECK(s.message_ns == 5 * SL_NS_PER_S && s.write_ns == 120 * SL_NS_PER_S);
    SL_CHECK(s.idle_ns == 3600 * SL_NS_PER_S);
    SL_CHECK(s.connections_user == 9 && s.connections_host == 11);
    sl_settings_fini(&s);
}

SL_TEST(the_example_is_valid)
{
    const sl_flags flags = { .config = SL_SOURCE_DIR "/docs/sluice.yaml.example" };
    sl_settings s;

    SL_CHECK_OK(sl_settings_init(&s, &flags, err));
    SL_CHECK(s.connections == 256 && s.in_flight == 20 && s.queue == 256 && s.retry_limit == 2);
    sl_settings_fini(&s);
}

/* --- locks --- */

static void make_dir(char *path, size_t path_bytes)
{
    snprintf(path, path_bytes, "/tmp/sl_lock_test_XXXXXX");
    SL_CHECK(mkdtemp(path));
}

SL_TEST(a_second_daemon_is_told_who_holds_the_device)
{
    const sl_device_spec device = { .kind = SL_DEVICE_CPU, .limit_bytes = 1 << 21 };
    char dir[64], path[128], want[64];
    int first = -1, second = -1;

    make_dir(dir, sizeof dir);
    SL_CHECK_OK(sl_lock_device(&first, dir, &device, NULL, SL_NS_PER_S, err));
    const int64_t begin = sl_clock_now_ns();
    SL_CHECK_STATUS(sl_lock_device(&second, dir, &device, NULL, SL_NS_PER_S, err), SL_ERR_EXISTS);
    SL_CHECK(sl_clock_now_ns() - begin < SL_NS_PER_S / 2); /* the holder lives: no waiting */
    snprintf(want, sizeof want, "cpu:0 is held by process %d since 20", (int)getpid());
    SL_CHECK(strstr(err->message, want));

    const sl_device_spec other = { .kind = SL_DEVICE_CUDA, .index = 1 };
    SL_CHECK_OK(sl_lock_device(&second, dir, &other, NULL, 0, err));
    sl_lock_release(second);
    sl_lock_release(first);
    SL_CHECK_OK(sl_lock_device(&first, dir, &device, NULL, 0, err));
    sl_lock_release(first);
    snprintf(path, sizeof path, "%s/device-cpu-0.lock", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/device-cuda-1.lock", dir);
    unlink(path);
    rmdir(dir);
}

/* The daemon dies, and its worker, which has inherited the lock, a little later. */
SL_TEST(a_worker_that_outlives_its_daemon_is_waited_for)
{
    const sl_device_spec device = { .kind = SL_DEVICE_CPU, .limit_bytes = 1 << 21 };
    const struct timespec moment = { .tv_nsec = 300000000 };
    char dir[64], path[128];
    int pair[2], fd = -1, code = 0;
    char byte;

    make_dir(dir, sizeof dir);
    SL_CHECK(pipe(pair) == 0);
    const pid_t daemon = fork();
    if (daemon == 0) {
        sl_error ignored;
        if (sl_lock_device(&fd, dir, &device, NULL, 0, &ignored) != SL_OK)
            _exit(1);
        const pid_t worker = fork();
        if (worker == 0) {
            close(pair[1]);
            nanosleep(&moment, NULL);
            _exit(0);
        }
        _exit(worker > 0 ? 0 : 1);
    }
    close(pair[1]);
    SL_CHECK(read(pair[0], &byte, 1) == 0);
    SL_CHECK(waitpid(daemon, &code, 0) == daemon && code == 0);
    SL_CHECK_STATUS(sl_lock_device(&fd, dir, &device, NULL, 0, err), SL_ERR_EXISTS);
    SL_CHECK(strstr(err->message, "left its worker behind"));
    SL_CHECK_OK(sl_lock_device(&fd, dir, &device, NULL, 5 * SL_NS_PER_S, err));
    sl_lock_release(fd);
    close(pair[0]);
    snprintf(path, sizeof path, "%s/device-cpu-0.lock", dir);
    unlink(path);
    rmdir(dir);
}

SL_TEST(directories_are_made_and_locked)
{
    char dir[64], path[128];
    struct stat st;
    int first = -1, second = -1;

    make_dir(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/a/b/c", dir);
    SL_CHECK_OK(sl_make_directory(path, 0700, err));
    SL_CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0700);
    SL_CHECK_OK(sl_make_directory(path, 0700, err));
    SL_CHECK_OK(sl_lock_directory(&first, path, err));
    SL_CHECK_STATUS(sl_lock_directory(&second, path, err), SL_ERR_EXISTS);
    SL_CHECK(strstr(err->message, path));
    sl_lock_release(first);
    snprintf(path, sizeof path, "%s/file", dir);
    write_text(path, "x");
    SL_CHECK_STATUS(sl_make_directory(path, 0700, err), SL_ERR_EXISTS);
    SL_CHECK_STATUS(sl_lock_directory(&first, path, err), SL_ERR_IO);
    unlink(path);
    for (const char *const *p = (const char *const[]){ "/a/b/c", "/a/b", "/a", "", NULL }; *p; p++) {
        snprintf(path, sizeof path, "%s%s", dir, *p);
        SL_CHECK(rmdir(path) == 0);
    }
}

/* --- jobs --- */

static sl_job *add(sl_jobs *jobs, const char *owner, const char *request_id, sl_error *err)
{
    static const uint8_t hash[SL_BODY_HASH_BYTES];
    sl_job_spec spec = { .model = "m", .ids = malloc(4), .model_path = strdup("/m") };
    sl_job *job = NULL;

    SL_CHECK_OK(sl_jobs_add(jobs, &job, owner, request_id, hash, &spec, err));
    SL_CHECK(!spec.ids && !spec.model_path);
    return job;
}

SL_TEST(jobs_are_found_by_id_and_by_request)
{
    sl_jobs *jobs = NULL;

    SL_CHECK_OK(sl_jobs_create(&jobs, 10, err));
    sl_job *a = add(jobs, "uid:1", "r1", err), *b = add(jobs, "uid:2", "r1", err);
    SL_CHECK(strlen(a->job_id) == 16 && strcmp(a->job_id, b->job_id) != 0);
    SL_CHECK(strcmp(a->spec.core.job_id, a->job_id) == 0);
    SL_CHECK(sl_jobs_find(jobs, a->job_id) == a && !sl_jobs_find(jobs, "r1"));
    SL_CHECK(sl_jobs_find_request(jobs, "uid:1", "r1") == a);
    SL_CHECK(sl_jobs_find_request(jobs, "uid:2", "r1") == b);
    SL_CHECK(!sl_jobs_find_request(jobs, "uid:3", "r1"));
    SL_CHECK(sl_jobs_count(jobs) == 2 && sl_jobs_get(jobs, 0) == b);
    sl_jobs_remove(jobs, b);
    SL_CHECK(sl_jobs_count(jobs) == 1 && sl_jobs_get(jobs, 0) == a);
    sl_jobs_destroy(jobs);
}

SL_TEST(moves_are_numbered_events)
{
    sl_jobs *jobs = NULL;

    SL_CHECK_OK(sl_jobs_create(&jobs, 10, err));
    sl_job *job = add(jobs, "u", "r", err);
    sl_jobs_move(jobs, job, SLUICE__V1__JOB_STATE__QUEUED, "queued");
    sl_jobs_move(jobs, job, SLUICE__V1__JOB_STATE__QUEUED, "queued"); /* nothing new */
    job->step = 1;
    sl_jobs_move(jobs, job, SLUICE__V1__JOB_STATE__DENOISING, "step %d", 1);
    SL_CHECK(job->last_seq == 2 && job->event_count == 2);
    SL_CHECK(job->events[0].seq == 1 && job->events[1].seq == 2);
    SL_CHECK(strcmp(job->events[1].text, "step 1") == 0 && job->events[1].step == 1);
    SL_CHECK(!sl_job_has_ended(job) && job->ended_ns == 0 && job->spec.ids);
    for (int i = 0; i < 5000; i++) {
        job->step = 2 + i;
        sl_jobs_move(jobs, job, SLUICE__V1__JOB_STATE__DENOISING, "step");
    }
    SL_CHECK(job->last_seq == 5002 && job->event_count == 2048);
    SL_CHECK(job->events[2047].seq == 5002 && job->events[0].seq == 5002 - 2047);
    sl_jobs_move(jobs, job, SLUICE__V1__JOB_STATE__DONE, "done");
    SL_CHECK(sl_job_has_ended(job) && job->ended_ns > 0 && !job->spec.ids);
    sl_jobs_destroy(jobs);
}

SL_TEST(the_oldest_ended_jobs_are_forgotten)
{
    enum { KEEP = 5 };
    sl_jobs *jobs = NULL;
    char first[SL_CORE_ID_BYTES];

    SL_CHECK_OK(sl_jobs_create(&jobs, KEEP, err));
    sl_job *open = add(jobs, "u", "open", err);
    for (int i = 0; i < 20; i++) {
        sl_job *job = add(jobs, "u", "r", err);
        if (i == 0)
            memcpy(first, job->job_id, sizeof first);
        sl_jobs_move(jobs, job, SLUICE__V1__JOB_STATE__FAILED, "no");
        sl_job *old = sl_jobs_surplus(jobs);
        SL_CHECK((old != NULL) == (i >= KEEP));
        if (old)
            sl_jobs_remove(jobs, old);
    }
    SL_CHECK(sl_jobs_count(jobs) == KEEP + 1);
    SL_CHECK(!sl_jobs_find(jobs, first) && sl_jobs_find(jobs, open->job_id) == open);
    sl_jobs_destroy(jobs);
    sl_jobs_destroy(NULL);
}

SL_TEST_MAIN(SL_RUN(settings_have_defaults), SL_RUN(the_file_and_then_the_flags_decide),
             SL_RUN(wrong_settings_name_file_line_and_key), SL_RUN(nothing_is_listened_on_unless_configured), SL_RUN(deadlines_and_shares_of_connections),
        SL_RUN(the_example_is_valid),
             SL_RUN(a_second_daemon_is_told_who_holds_the_device),
             SL_RUN(a_worker_that_outlives_its_daemon_is_waited_for),
             SL_RUN(directories_are_made_and_locked), SL_RUN(jobs_are_found_by_id_and_by_request),
             SL_RUN(moves_are_numbered_events), SL_RUN(the_oldest_ended_jobs_are_forgotten))
