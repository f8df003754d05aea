/* Runs that go on from a file give the frames of an undisturbed run; files that
 * are broken, or of another run, are told apart. */
#include "engine/pipeline/latent_file.h"

#include "engine/pipeline/t2v_test.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* ---- files ---- */

enum { COUNT = 2 * 3 * 4 * 5, HEADER_BYTES = 144 };
static const sl_latent_run job = { .job = "job-1", .step_count = 4, .dim = { 2, 3, 4, 5 } };

typedef struct {
    char dir[40], path[64];
    double state[COUNT], got[COUNT];
} folder;

static void open_folder(folder *f)
{
    snprintf(f->dir, sizeof f->dir, "/tmp/sl_latent_test_XXXXXX");
    SL_CHECK(mkdtemp(f->dir) != NULL);
    snprintf(f->path, sizeof f->path, "%s/latent", f->dir);
    for (int i = 0; i < COUNT; i++)
        f->state[i] = i ? 1.0 / i : -0.0;
}

/* Nothing else may lie there. */
static void close_folder(folder *f)
{
    unlink(f->path);
    SL_CHECK(rmdir(f->dir) == 0);
}

static void poke(const char *path, long at, int value)
{
    FILE *file = fopen(path, "r+b");

    SL_CHECK(file != NULL);
    SL_CHECK(fseek(file, at, SEEK_SET) == 0 && fputc(value, file) != EOF);
    SL_CHECK(fclose(file) == 0);
}

static int peek(const char *path, long at)
{
    FILE *file = fopen(path, "rb");
    int value;

    SL_CHECK(file != NULL);
    SL_CHECK(fseek(file, at, SEEK_SET) == 0);
    value = fgetc(file);
    SL_CHECK(fclose(file) == 0);
    return value;
}

SL_TEST(what_is_written_is_read)
{
    struct stat st;
    int steps_done = 0;
    folder f;

    open_folder(&f);
    SL_CHECK_STATUS(sl_latent_file_read(f.path, &job, &steps_done, f.got, err), SL_ERR_NOT_FOUND);
    for (int i = 1; i <= 4; i++) {
        f.state[0] = i;
        SL_CHECK_OK(sl_latent_file_write(f.path, &job, i, f.state, err));
        SL_CHECK_OK(sl_latent_file_read(f.path, &job, &steps_done, f.got, err));
        SL_CHECK(steps_done == i && memcmp(f.got, f.state, sizeof f.state) == 0);
    }
    SL_CHECK(stat(f.path, &st) == 0);
    SL_CHECK(st.st_size == HEADER_BYTES + (off_t)sizeof f.state && (st.st_mode & 0777) == 0600);
    close_folder(&f);
}

/* Every byte counts: of a file with any one changed nothing is believed. */
SL_TEST(no_changed_byte_is_believed)
{
    int steps_done = 77;
    folder f;

    open_folder(&f);
    SL_CHECK_OK(sl_latent_file_write(f.path, &job, 2, f.state, err));
    for (long at = 0; at < HEADER_BYTES + (long)sizeof f.state; at++) {
        const int was = peek(f.path, at);

        poke(f.path, at, was ^ 0x10);
        if (sl_latent_file_read(f.path, &job, &steps_done, f.got, err) != SL_ERR_DATA)
            fail_msg("byte %ld changed: %s", at, sl_status_text(err->status));
        poke(f.path, at, was);
    }
    SL_CHECK(steps_done == 77);
    SL_CHECK_OK(sl_latent_file_read(f.path, &job, &steps_done, f.got, err));
    close_folder(&f);
}

SL_TEST(lengths_are_checked)
{
    static const off_t sizes[] = { 0,
                                   1,
                                   HEADER_BYTES - 1,
                                   HEADER_BYTES,
                                   HEADER_BYTES + COUNT * 8 - 1,
                                   HEADER_BYTES + COUNT * 8 + 1 };
    int steps_done;
    folder f;

    open_folder(&f);
    for (size_t i = 0; i < SL_COUNT(sizes); i++) {
        SL_CHECK_OK(sl_latent_file_write(f.path, &job, 2, f.state, err));
        SL_CHECK(truncate(f.path, sizes[i]) == 0);
        SL_CHECK_STATUS(sl_latent_file_read(f.path, &job, &steps_done, f.got, err), SL_ERR_DATA);
    }
    unlink(f.path);
    SL_CHECK(mkdir(f.path, 0700) == 0);
    SL_CHECK_STATUS(sl_latent_file_read(f.path, &job, &steps_done, f.got, err), SL_ERR_DATA);
    SL_CHECK(rmdir(f.path) == 0);
    SL_CHECK(symlink("/dev/zero", f.path) == 0);
    SL_CHECK_STATUS(sl_latent_file_read(f.path, &job, &steps_done, f.got, err), SL_ERR_DATA);
    close_folder(&f);
}

SL_TEST(files_of_other_runs_are_refused)
{
    char long_id[SL_LATENT_JOB_BYTES + 1];
    sl_latent_run other = job;
    int steps_done;
    folder f;

    open_folder(&f);
    SL_CHECK_OK(sl_latent_file_write(f.path, &job, 2, f.state, err));
    other.job = "job-10";
    SL_CHECK_STATUS(sl_latent_file_read(f.path, &other, &steps_done, f.got, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "belongs to job job-1, not to job-10"));
    other = job;
    other.step_count = 3;
    SL_CHECK_STATUS(sl_latent_file_read(f.path, &other, &steps_done, f.got, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "step 2 of 4"));
    other = job;
    other.dim[1] = 4;
    other.dim[2] = 3; /* as many elements */
    SL_CHECK_STATUS(sl_latent_file_read(f.path, &other, &steps_done, f.got, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "shape [2, 3, 4, 5], expected [2, 4, 3, 5]"));

    memset(long_id, 'x', sizeof long_id);
    long_id[sizeof long_id - 1] = '\0';
    other = job;
    other.job = long_id;
    SL_CHECK_STATUS(sl_latent_file_write(f.path, &other, 1, f.state, err), SL_ERR_INVALID);
    other.job = long_id + 1; /* the longest that fits */
    SL_CHECK_OK(sl_latent_file_write(f.path, &other, 1, f.state, err));
    SL_CHECK_OK(sl_latent_file_read(f.path, &other, &steps_done, f.got, err));
    other.dim[0] = (int64_t)1 << 62;
    SL_CHECK_STATUS(sl_latent_file_read(f.path, &other, &steps_done, f.got, err), SL_ERR_INVALID);
    close_folder(&f);
}

/* A full disk: the file from before stays, and nothing else does. */
SL_TEST(failed_writes_leave_the_file_before)
{
    char partial[80];
    int steps_done;
    folder f;

    open_folder(&f);
    SL_CHECK_OK(sl_latent_file_write(f.path, &job, 2, f.state, err));
    snprintf(partial, sizeof partial, "%s.tmp", f.path);
    SL_CHECK(symlink("/dev/full", partial) == 0); /* refused: it is no file of ours */
    SL_CHECK(sl_latent_file_write(f.path, &job, 3, f.state, err) != SL_OK);
    unlink(partial);
    SL_CHECK(mkdir(partial, 0700) == 0);
    SL_CHECK(sl_latent_file_write(f.path, &job, 3, f.state, err) != SL_OK);
    SL_CHECK(rmdir(partial) == 0);
    SL_CHECK_OK(sl_latent_file_read(f.path, &job, &steps_done, f.got, err));
    SL_CHECK(steps_done == 2);

    struct rlimit before;
    SL_CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    SL_CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    const struct rlimit less = { .rlim_cur = 1000, .rlim_max = before.rlim_max };
    SL_CHECK(setrlimit(RLIMIT_FSIZE, &less) == 0);
    const sl_status status = sl_latent_file_write(f.path, &job, 3, f.state, err);
    SL_CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    SL_CHECK(status == SL_ERR_IO);
    SL_CHECK(access(partial, F_OK) != 0);
    SL_CHECK_OK(sl_latent_file_read(f.path, &job, &steps_done, f.got, err));
    SL_CHECK(steps_done == 2);
    close_folder(&f);
}

/* ---- runs ---- */

static sl_status resume(fixture *f, const sl_t2v_request *request, const sl_latent_run *saved,
                        const char *path, record *r, sl_t2v_result *result, sl_error *err)
{
    const int64_t count = sl_t2v_latent_shape(request, f->arch, NULL);
    const sl_t2v_events events = {
        .arg = r, .on_phase = on_phase, .on_step = on_step, .on_frames = on_frames
    };
    double *state = malloc((size_t)count * sizeof *state);
    sl_status status;
    int steps_done;

    SL_CHECK(state != NULL);
    r->frame_bytes = (size_t)request->width * (size_t)request->height * 3;
    status = sl_latent_file_read(path, saved, &steps_done, state, err);
    net_test_reset(&f->net);
    if (status == SL_OK) {
        const bool last = steps_done == request->steps;
        const sl_t2v_components rest = { .vae = f->components.vae };

        r->steps = steps_done;
        status = sl_t2v_resume(f->net.exec, &f->net.scratch, last ? &rest : &f->components, f->arch,
                               request, last ? NULL : ids, NULL, steps_done, state, &events, result,
                               err);
    }
    SL_CHECK(sl_scratch_mark(&f->net.scratch) == 0);
    free(state);
    return status;
}

SL_TEST(resumed_runs_give_the_same_frames)
{
    fixture f;
    folder dir;

    open_folder(&dir);
    open_fixture(&f, &small, SL_PRECISION_BF16);
    for (int mode = 0; mode < 2; mode++) {
        sl_t2v_request request = sl_t2v_request_default(&small);
        record want = { .keep_states = true };
        sl_latent_run saved = { .job = "a", .step_count = request.steps };
        sl_t2v_result undisturbed;

        request.mode = mode ? SL_SAMPLER_ODE : SL_SAMPLER_SDE;
        request.seed = 11;
        const size_t state_bytes =
            (size_t)sl_t2v_latent_shape(&request, &small, saved.dim) * sizeof(double);
        SL_CHECK_OK(run(&f, &request, NULL, &want, &undisturbed, err));
        for (int done = 1; done <= request.steps; done++) {
            record got = { .keep_states = true };
            sl_t2v_result result;

            SL_CHECK_OK(sl_latent_file_write(dir.path, &saved, done, want.states[done - 1], err));
            SL_CHECK_OK(resume(&f, &request, &saved, dir.path, &got, &result, err));
            SL_CHECK(got.frames == want.frames && got.steps == request.steps);
            SL_CHECK(got.phases ==
                     (done == request.steps ? PHASE_BIT(SL_PHASE_DECODE) : want.phases));
            SL_CHECK(memcmp(got.rgb, want.rgb, want.frame_bytes * (size_t)want.frames) == 0);
            SL_CHECK(done == request.steps ||
                     memcmp(got.states[3], want.states[3], state_bytes) == 0);
            SL_CHECK(result.phase_activation_bytes[SL_PHASE_DECODE] ==
                     undisturbed.phase_activation_bytes[SL_PHASE_DECODE]);
            SL_CHECK(
                result.phase_activation_bytes[SL_PHASE_DENOISE] ==
                (done == request.steps ? 0 : undisturbed.phase_activation_bytes[SL_PHASE_DENOISE]));
            free_record(&got);
        }
        /* the state matters: another one gives other frames */
        want.states[1][5] += 1.0;
        record other = { .rgb = NULL };
        SL_CHECK_OK(sl_latent_file_write(dir.path, &saved, 2, want.states[1], err));
        SL_CHECK_OK(resume(&f, &request, &saved, dir.path, &other, NULL, err));
        SL_CHECK(memcmp(other.rgb, want.rgb, want.frame_bytes * (size_t)want.frames) != 0);
        free_record(&other);
        free_record(&want);
    }
    close_fixture(&f);
    close_folder(&dir);
}

SL_TEST(resumes_only_behind_its_steps)
{
    const sl_t2v_request request = sl_t2v_request_default(&small);
    double state[1] = { 0.0 };
    fixture f;

    open_fixture(&f, &small, SL_PRECISION_BF16);
    for (int done = -1; done <= 5; done += done == 0 ? 5 : 1) {
        SL_CHECK_STATUS(sl_t2v_resume(f.net.exec, &f.net.scratch, &f.components, &small, &request,
                                      ids, NULL, done, state, NULL, NULL, err),
                        SL_ERR_INVALID);
        SL_CHECK(strstr(err->message, "expected 1 to 4"));
    }
    close_fixture(&f);
}

SL_TEST_MAIN(SL_RUN(what_is_written_is_read), SL_RUN(no_changed_byte_is_believed),
             SL_RUN(lengths_are_checked), SL_RUN(files_of_other_runs_are_refused),
             SL_RUN(failed_writes_leave_the_file_before), SL_RUN(resumed_runs_give_the_same_frames),
             SL_RUN(resumes_only_behind_its_steps))
