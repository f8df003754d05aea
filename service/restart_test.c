/* What becomes of jobs when the daemon ends and starts again. */
#include "service/handlers_test.h"

#include "service/persist.h"

#include <fcntl.h>

#define LIMIT ((size_t)256 << 20)

static void check_done(sl_service *s, const char *id, int attempt, sl_error *err)
{
    sl_rpc_call call;

    await_state(s, id, SLUICE__V1__JOB_STATE__DONE, err);
    get_job(s, &call, id, err);
    const Sluice__V1__Job *job = JOB_OF(call);
    SL_CHECK(job->attempt == attempt && job->code == 0 && job->output_size_bytes == OUTPUT_BYTES);
    SL_CHECK(job->planned_peak_bytes == job->measured_peak_bytes);
    SL_CHECK(job->request->width == 64 && job->request->steps == 2 && job->plan->n_phases == 3);
    sl_arena_destroy(call.arena);
}

static uint64_t get_last_seq(sl_service *s, const char *id)
{
    pthread_mutex_lock(&s->lock);
    const uint64_t seq = sl_jobs_find(s->jobs, id)->last_seq;
    pthread_mutex_unlock(&s->lock);
    return seq;
}

/* --- queues --- */

SL_TEST(unfinished_jobs_run_in_their_order)
{
    sl_service *s = start(LIMIT, err);
    char ids[3][SL_CORE_ID_BYTES];
    static const char *const names[] = { "a", "b", "c" };
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    for (int i = 0; i < 3; i++)
        snprintf(ids[i], sizeof ids[i], "%s", generate(s, "uid:1", names[i], err));
    await_state(s, ids[0], SLUICE__V1__JOB_STATE__DENOISING, err);
    const uint64_t seq = get_last_seq(s, ids[0]);
    stop(s);

    s = start(LIMIT, err);
    SL_CHECK(get_last_seq(s, ids[0]) > seq); /* goes on, not from the start */
    SL_CHECK(strcmp(generate(s, "uid:1", "b", err), ids[1]) == 0); /* still the same job */
    for (int i = 0; i < 3; i++)
        check_done(s, ids[i], i == 0 ? 2 : 1, err);
    SL_CHECK(fake->runs == 3);
    pthread_mutex_lock(&s->lock);
    const sl_job *first = sl_jobs_find(s->jobs, ids[0]), *last = sl_jobs_find(s->jobs, ids[2]);
    pthread_mutex_unlock(&s->lock); /* nothing moves any more */
    SL_CHECK(first->ended_ns <= last->ended_ns && first->started_ns <= last->started_ns);
    SL_CHECK(first->events[0].seq == 1); /* what came before is still told */
    stop(s);

    s = start(LIMIT, err); /* ended ones stay visible, with their output */
    SL_CHECK(sl_jobs_count(s->jobs) == 3);
    get_job(s, &call, ids[2], err);
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__DONE
             && strlen(JOB_OF(call)->output_sha256) == 64 && JOB_OF(call)->run_ns > 0);
    sl_arena_destroy(call.arena);
    Sluice__V1__FetchOutputRequest fetch = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;
    fetch.job_id = ids[2];
    begin_call(&call, SL_ROLE_USER, "uid:1", &fetch.base);
    SL_CHECK_OK(sl_handle_fetch_output(s, &call, err));
    SL_CHECK(((const Sluice__V1__FetchOutputReply *)(const void *)call.reply)->data.len
             == OUTPUT_BYTES);
    sl_arena_destroy(call.arena);
    SL_CHECK(fake->runs == 0);
    check_ledger(s, err);
    stop(s);
}

SL_TEST(a_cancel_outlives_the_daemon)
{
    sl_service *s = start(LIMIT, err);
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    pthread_mutex_lock(&s->lock);
    sl_job *job = sl_jobs_find(s->jobs, id);
    job->cancel_asked = job->dirty = true; /* asked for, and then the end comes first */
    sl_persist_flush(s);
    pthread_mutex_unlock(&s->lock);
    stop(s);
    s = start(LIMIT, err);
    get_job(s, &call, id, err);
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__CANCELLED_STATE);
    sl_arena_destroy(call.arena);
    stop(s);
}

SL_TEST(latents_stay_until_the_job_ends)
{
    sl_service *s = start(LIMIT, err);
    char latent[200], stray[200], want[200];

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    snprintf(want, sizeof want, "%s/.latent-%s", outputs, id);
    snprintf(latent, sizeof latent, "%s", fake->latent_path);
    SL_CHECK(strcmp(latent, want) == 0 && !fake->resumed);
    snprintf(stray, sizeof stray, "%s/.latent-0123456789abcdef", outputs);
    SL_CHECK(creat(latent, 0600) >= 0 && creat(stray, 0600) >= 0);
    stop(s);
    SL_CHECK(access(latent, F_OK) == 0);
    next_fake_holds = true;
    s = start(LIMIT, err);
    next_fake_holds = false;
    SL_CHECK(access(stray, F_OK) != 0); /* of no job */
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    SL_CHECK(access(latent, F_OK) == 0 && fake->resumed);
    set_fake(false, 0, SL_OK);
    check_done(s, id, 2, err);
    SL_CHECK(access(latent, F_OK) != 0);
    stop(s);
}

/* --- ends that were not recorded --- */

/* Makes the store say what it says between the commit of an output and that of
 * the end. */
static void forget_end(const char *id, uint64_t last_seq, size_t peak_bytes, sl_error *err)
{
    sl_store *store = NULL;
    char sha256[SL_SHA256_HEX_BYTES];

    hash_output(sha256);
    const sl_store_job row = { .job_id = id,
                               .state = (int)SLUICE__V1__JOB_STATE__DECODING,
                               .step_count = 2,
                               .attempt = 1,
                               .measured_peak_bytes = peak_bytes,
                               .output_size_bytes = OUTPUT_BYTES,
                               .output_sha256 = sha256,
                               .last_seq = last_seq };
    SL_CHECK_OK(sl_store_open(&store, store_path, err));
    SL_CHECK_OK(sl_store_begin(store, true, err));
    SL_CHECK_OK(sl_store_update_job(store, &row, err));
    SL_CHECK_OK(sl_store_commit(store, err));
    sl_store_close(store);
}

typedef enum { UNDER_ITS_NAME, PARTIAL, CUT, GONE } left_over;

static void end_without_record(left_over what, int want_attempt, sl_error *err)
{
    sl_service *s = start(LIMIT, err);
    char id[SL_CORE_ID_BYTES], final[200], partial[240];

    /* Held first, so that its ids are in the store when it "dies". */
    set_fake(true, 0, SL_OK);
    snprintf(id, sizeof id, "%s", generate(s, "uid:1", "a", err));
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    const uint64_t last_seq = get_last_seq(s, id);
    const size_t peak_bytes = sl_job_planned_peak_bytes(sl_jobs_find(s->jobs, id));
    stop(s);
    snprintf(final, sizeof final, "%s/%s.mp4", outputs, id);
    snprintf(partial, sizeof partial, "%s/.partial-%s-1.mp4", outputs, id);
    if (what != GONE)
        write_output(what == PARTIAL ? partial : final);
    if (what == CUT)
        SL_CHECK(truncate(final, OUTPUT_BYTES - 1) == 0);
    forget_end(id, last_seq, peak_bytes, err);
    s = start(LIMIT, err);
    check_done(s, id, want_attempt, err);
    SL_CHECK(fake->runs == want_attempt - 1);
    SL_CHECK(access(final, F_OK) == 0 && access(partial, F_OK) != 0);
    const sl_job *job = sl_jobs_find(s->jobs, id);
    int ends = 0;
    for (int i = 0; i < job->event_count; i++)
        ends += job->events[i].state == SLUICE__V1__JOB_STATE__DONE;
    SL_CHECK(ends == 1);
    stop(s);
}

SL_TEST(an_output_with_its_name_is_the_end)
{
    end_without_record(UNDER_ITS_NAME, 1, err);
}

SL_TEST(an_output_without_its_name_gets_it)
{
    end_without_record(PARTIAL, 1, err);
}

SL_TEST(an_output_that_is_not_whole_is_made_again)
{
    end_without_record(CUT, 2, err);
}

SL_TEST(an_output_that_is_gone_is_made_again)
{
    end_without_record(GONE, 2, err);
}

/* --- what goes wrong --- */

SL_TEST(a_job_whose_model_is_gone_fails_with_the_reason)
{
    sl_service *s = start(LIMIT, err);
    char from[100], to[100];
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    stop(s);
    snprintf(from, sizeof from, "%s/tiny", models);
    snprintf(to, sizeof to, "%s/away", root);
    SL_CHECK(rename(from, to) == 0);
    s = start(LIMIT, err);
    get_job(s, &call, id, err);
    const bool failed = JOB_OF(call)->state == SLUICE__V1__JOB_STATE__FAILED
                        && strstr(JOB_OF(call)->message, "restart")
                        && strstr(JOB_OF(call)->message, "tiny");
    sl_arena_destroy(call.arena);
    stop(s);
    SL_CHECK(rename(to, from) == 0);
    SL_CHECK(failed);
}

SL_TEST(a_device_that_shrank_fails_what_cannot_fit)
{
    sl_service *s = start(LIMIT, err);
    sl_rpc_call call;

    set_fake(true, 0, SL_OK);
    const char *id = generate(s, "uid:1", "a", err);
    await_state(s, id, SLUICE__V1__JOB_STATE__DENOISING, err);
    stop(s);
    s = start((size_t)20 << 20, err);
    get_job(s, &call, id, err);
    SL_CHECK(JOB_OF(call)->state == SLUICE__V1__JOB_STATE__FAILED && JOB_OF(call)->message[0]);
    sl_arena_destroy(call.arena);
    stop(s);
}

SL_TEST(a_job_that_cannot_be_kept_is_not_acknowledged)
{
    sl_service *s = start(LIMIT, err);
    Sluice__V1__GenerateRequest request = a_request("b");
    sl_rpc_call call;

    set_fake(false, 0, SL_OK);
    await_state(s, generate(s, "uid:1", "a", err), SLUICE__V1__JOB_STATE__DONE, err);
    pthread_mutex_lock(&s->lock);
    SL_CHECK_OK(sl_store_begin(s->store, false, err)); /* in the way of any other */
    begin_call(&call, SL_ROLE_USER, "uid:1", &request.base);
    pthread_mutex_unlock(&s->lock);
    SL_CHECK_STATUS(sl_handle_generate(s, &call, err), SL_ERR_IO);
    sl_arena_destroy(call.arena);
    SL_CHECK(sl_jobs_count(s->jobs) == 1 && sl_core_queued_count(s->core) == 0);
    /* It failed and rolled back what was in the way: the same request works now. */
    sl_error_clear(err);
    await_state(s, generate(s, "uid:1", "b", err), SLUICE__V1__JOB_STATE__DONE, err);
    SL_CHECK(fake->runs == 2);
    stop(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RUN(unfinished_jobs_run_in_their_order),
        RUN(a_cancel_outlives_the_daemon),
        RUN(latents_stay_until_the_job_ends),
        RUN(an_output_with_its_name_is_the_end),
        RUN(an_output_without_its_name_gets_it),
        RUN(an_output_that_is_not_whole_is_made_again),
        RUN(an_output_that_is_gone_is_made_again),
        RUN(a_job_whose_model_is_gone_fails_with_the_reason),
        RUN(a_device_that_shrank_fails_what_cannot_fit),
        RUN(a_job_that_cannot_be_kept_is_not_acknowledged),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
