/* The real sluice-worker: jobs side by side, and components that come and go beside
 * them. */
#include "service/worker_test.h"

/* A done of several that are awaited. */
typedef struct {
    uint64_t id;
    bool seen;
    sl_status status;
    uint64_t job_peak_bytes;
    char sha256[65];
} awaited;

/* Until all have come; events of jobs are counted into *events. */
static void await(worker *w, awaited *list, int count, int *events, sl_error *err)
{
    for (int left = count; left > 0;) {
        const Sluice__Worker__Event *event = next_event(w, err);
        SL_CHECK(event != NULL);
        if (event->kind_case != SLUICE__WORKER__EVENT__KIND_DONE) {
            *events += left == count; /* before the first done */
            continue;
        }
        for (int i = 0; i < count; i++)
            if (list[i].id == event->id) {
                SL_CHECK(!list[i].seen);
                list[i].seen = true;
                list[i].status = (sl_status)event->done->status;
                list[i].job_peak_bytes = event->done->job_peak_bytes;
                snprintf(list[i].sha256, sizeof list[i].sha256, "%s", event->done->output_sha256);
                left--;
            }
    }
}

SL_TEST(jobs_side_by_side_give_the_bytes_that_each_gives_alone)
{
    worker w = start_worker_with(2, err);
    char alone[2][65];
    job jobs[2];

    SL_CHECK(w.workspace_bytes == 6 * SL_CPU_WORKSPACE_PER_THREAD); /* 2 of the loader, 2 * 2 */
    load_all(&w, err);
    for (int i = 0; i < 2; i++) {
        make_short_job(&jobs[i], i ? "right" : "left", err);
        jobs[i].run.seed = (uint64_t)(40 + i);
        jobs[i].run.lane = i;
        run_and_check(&w, &jobs[i], alone[i], err);
        SL_CHECK(unlink(jobs[i].output) == 0);
    }
    SL_CHECK(strcmp(alone[0], alone[1]) != 0);
    for (int round = 0; round < 3; round++) {
        awaited done[2] = { { .id = send_run(&w, &jobs[0], err) },
                            { .id = send_run(&w, &jobs[1], err) } };
        int events = 0;
        await(&w, done, 2, &events, err);
        SL_CHECK(events > 7); /* both were under way */
        for (int i = 0; i < 2; i++) {
            SL_CHECK(done[i].status == SL_OK && strcmp(done[i].sha256, alone[i]) == 0);
            SL_CHECK(done[i].job_peak_bytes == jobs[i].plan.total_bytes + w.workspace_bytes);
            SL_CHECK(unlink(jobs[i].output) == 0);
        }
    }
    stop_worker(&w, err);
}

SL_TEST(components_come_and_go_beside_a_job)
{
    worker w = start_worker_with(1, err);
    sl_hosttier *tier = NULL;
    sl_host_image *image = NULL;
    job j;

    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    SL_CHECK_OK(sl_host_image_create(&image, tier, "tiny", image_bytes(SL_COMPONENT_DIT), err));
    start_long_job(&w, &j, "long", err); /* denoises now */
    const uint64_t run_id = w.last_id;

    const Sluice__Worker__Done *done = unload(&w, SL_COMPONENT_DIT, err);
    SL_CHECK(done->status == SL_ERR_PRECONDITION && strstr(done->message, "in use"));
    SL_CHECK(unload(&w, SL_COMPONENT_VAE, err)->status == SL_ERR_PRECONDITION);
    done = unload(&w, SL_COMPONENT_TEXT_ENCODER, err);
    SL_CHECK(done->status == SL_OK);
    SL_CHECK(done->after_bytes == done->before_bytes - planned_bytes(SL_COMPONENT_TEXT_ENCODER));
    SL_CHECK(host_segments(&w, SL_COMPONENT_DIT, image, err)->status == SL_OK);
    SL_CHECK(host_fill(&w, SL_COMPONENT_DIT, err)->status == SL_OK);
    SL_CHECK(load_host(&w, SL_COMPONENT_DIT, SL_MODE_STREAMED, err)->status == SL_OK);
    SL_CHECK(trim(&w, err)->status == SL_OK);
    SL_CHECK(unload_mode(&w, SL_COMPONENT_DIT, SL_MODE_STREAMED, err)->status == SL_OK);
    cancel(&w, "long", err);
    SL_CHECK(wait_done(&w, run_id, err)->status == SL_ERR_CANCELLED);
    SL_CHECK(unload(&w, SL_COMPONENT_DIT, err)->status == SL_OK);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
}

SL_TEST(a_cancel_and_a_preempt_reach_their_lane_alone)
{
    worker w = start_worker_with(2, err);
    char alone[65];
    job left, right;

    load_all(&w, err);
    make_short_job(&left, "left", err);
    run_and_check(&w, &left, alone, err);
    SL_CHECK(unlink(left.output) == 0);
    make_job(&right, "right", 128, 17, 4, err);
    right.run.lane = 1;
    for (int round = 0; round < 2; round++) {
        awaited done[2] = { { .id = send_run(&w, &right, err) },
                            { .id = send_run(&w, &left, err) } };
        int events = 0;
        wait_event(&w, SLUICE__WORKER__EVENT__KIND_PHASE, err);
        if (round == 0)
            cancel(&w, "right", err);
        else
            preempt(&w, "right", err);
        await(&w, done, 2, &events, err);
        SL_CHECK(done[0].status == SL_ERR_CANCELLED && !exists(right.output));
        SL_CHECK(done[1].status == SL_OK && strcmp(done[1].sha256, alone) == 0);
        SL_CHECK(unlink(left.output) == 0);
    }

    make_long_job(&right, "right", err); /* the end of the stream, with a job in each lane */
    send_run(&w, &right, err);
    make_long_job(&left, "left", err);
    left.run.lane = 1;
    send_run(&w, &left, err);
    while (!exists(left.output) || !exists(right.output))
        SL_CHECK(next_event(&w, err) != NULL);
    sl_channel_destroy(w.channel);
    w.channel = NULL;
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 0);
    SL_CHECK(!exists(left.output) && !exists(right.output));
}

SL_TEST(a_lane_that_is_not_there_is_garbage)
{
    for (int lanes = 0; lanes < 2; lanes++) {
        worker w = start_worker_with(lanes, err);
        job j;

        make_job(&j, "lost", 32, 5, 1, err);
        j.run.lane = 1;
        send_run(&w, &j, err);
        SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 4);
    }
}

/* ---- by phase ---- */

static void go(worker *w, const job *j, int phase, sl_error *err)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Go message = SLUICE__WORKER__GO__INIT;

    message.job_id = j->run.job_id;
    message.phase = phase;
    message.activation_bytes = j->phase_bytes[phase];
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_GO;
    command.go = &message;
    send_command(w, &command, err);
}

static void make_job_by_phase(job *j, const char *id, int lane, sl_error *err)
{
    make_short_job(j, id, err);
    j->run.lane = lane;
    j->run.by_phase = true;
    for (int i = 0; i < SL_PHASE_COUNT; i++)
        j->phase_bytes[i] = sl_granules(j->plan.phase_activation_bytes[i]);
    j->run.activation_bytes = j->phase_bytes[SL_PHASE_ENCODE_TEXT];
}

/* What the largest phase has of the device. */
static size_t peak_by_phase(const job *j)
{
    size_t most = 0;

    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        size_t sum = (size_t)j->phase_bytes[phase];
        for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
            if (j->plan.phase_components[phase] & SL_COMPONENT_BIT(kind))
                sum += j->plan.weight_bytes[kind];
        most = sum > most ? sum : most;
    }
    return most;
}

/* The edge before `phase`, at which the job has given everything back. */
static void wait_at_edge(worker *w, const job *j, int phase, sl_error *err)
{
    const Sluice__Worker__Event *event;

    do
        event = wait_event(w, SLUICE__WORKER__EVENT__KIND_PHASE, err);
    while (!event->phase->waiting);
    SL_CHECK(event->phase->phase == phase && !event->memory->changing);
    SL_CHECK(event->memory->activations_bytes <= j->phase_bytes[phase]);
}

SL_TEST(components_of_a_job_take_turns)
{
    worker w = start_worker_with(1, err);
    char whole[65];
    job j;

    load_all(&w, err);
    make_short_job(&j, "whole", err);
    run_and_check(&w, &j, whole, err);
    SL_CHECK(unlink(j.output) == 0);
    SL_CHECK(unload(&w, SL_COMPONENT_DIT, err)->status == SL_OK);
    SL_CHECK(unload(&w, SL_COMPONENT_VAE, err)->status == SL_OK);

    make_job_by_phase(&j, "turns", 0, err);
    const uint64_t id = send_run(&w, &j, err);
    wait_at_edge(&w, &j, SL_PHASE_DENOISE, err);
    SL_CHECK(unload(&w, SL_COMPONENT_TEXT_ENCODER, err)->status == SL_OK);
    SL_CHECK(load(&w, SL_COMPONENT_DIT, planned_bytes(SL_COMPONENT_DIT), err)->status == SL_OK);
    go(&w, &j, SL_PHASE_DENOISE, err);
    const Sluice__Worker__Event *event = wait_event(&w, SLUICE__WORKER__EVENT__KIND_PHASE, err);
    SL_CHECK(event->phase->phase == SL_PHASE_DENOISE && !event->phase->waiting);
    SL_CHECK(event->memory->activations_bytes == j.phase_bytes[SL_PHASE_DENOISE]);
    SL_CHECK(unload(&w, SL_COMPONENT_DIT, err)->status == SL_ERR_PRECONDITION);
    wait_at_edge(&w, &j, SL_PHASE_DECODE, err);
    SL_CHECK(unload(&w, SL_COMPONENT_DIT, err)->status == SL_OK);
    SL_CHECK(load(&w, SL_COMPONENT_VAE, planned_bytes(SL_COMPONENT_VAE), err)->status == SL_OK);
    go(&w, &j, SL_PHASE_DECODE, err);
    const Sluice__Worker__Done *done = wait_done(&w, id, err);
    SL_CHECK(done->status == SL_OK && strcmp(done->output_sha256, whole) == 0);
    SL_CHECK(done->job_peak_bytes == peak_by_phase(&j) + w.workspace_bytes);
    for (int i = 0; i < SL_PHASE_COUNT; i++)
        SL_CHECK(done->phase_activation_bytes[i] == j.plan.phase_activation_bytes[i]);
    SL_CHECK(unlink(j.output) == 0 && !exists(j.latent));
    stop_worker(&w, err);
}

SL_TEST(a_job_can_be_stopped_at_its_edges)
{
    worker w = start_worker_with(2, err);
    job j;

    load_all(&w, err);
    make_job_by_phase(&j, "stopped", 1, err);
    for (int round = 0; round < 4; round++) {
        const uint64_t id = send_run(&w, &j, err);
        wait_at_edge(&w, &j, SL_PHASE_DENOISE, err);
        if (round > 1) {
            go(&w, &j, SL_PHASE_DENOISE, err);
            wait_at_edge(&w, &j, SL_PHASE_DECODE, err);
        }
        if (round % 2 == 0)
            cancel(&w, "stopped", err);
        else
            preempt(&w, "stopped", err);
        const Sluice__Worker__Done *done = wait_done(&w, id, err);
        SL_CHECK(done->status == SL_ERR_CANCELLED && done->preempted == (round % 2 == 1));
        SL_CHECK(done->after_bytes == done->before_bytes && !exists(j.output));
        SL_CHECK(exists(j.latent) == (round > 1));
    }

    /* Behind its last step, with what decoding needs alone. */
    SL_CHECK(unload(&w, SL_COMPONENT_TEXT_ENCODER, err)->status == SL_OK);
    SL_CHECK(unload(&w, SL_COMPONENT_DIT, err)->status == SL_OK);
    j.run.resume = true;
    j.run.first_phase = SL_PHASE_DECODE;
    j.run.activation_bytes = j.phase_bytes[SL_PHASE_DECODE];
    j.run.latent_path = (char *)"/nowhere/latent";
    const Sluice__Worker__Done *done = wait_done(&w, send_run(&w, &j, err), err);
    SL_CHECK(done->status == SL_ERR_PRECONDITION && done->state_lost);
    SL_CHECK(done->after_bytes == done->before_bytes && !exists(j.output));
    j.run.latent_path = j.latent;
    done = wait_done(&w, send_run(&w, &j, err), err);
    SL_CHECK(done->status == SL_OK && done->resumed_from_step == j.run.steps);
    SL_CHECK(unlink(j.output) == 0);
    stop_worker(&w, err);
}

SL_TEST(the_end_of_the_stream_ends_a_wait)
{
    worker w = start_worker_with(1, err);
    job j;

    load_all(&w, err);
    make_job_by_phase(&j, "waits", 0, err);
    send_run(&w, &j, err);
    wait_at_edge(&w, &j, SL_PHASE_DENOISE, err);
    go(&w, &j, SL_PHASE_DECODE, err); /* of another phase: not this one's */
    sl_channel_destroy(w.channel);
    w.channel = NULL;
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 0);
    SL_CHECK(!exists(j.output));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(jobs_side_by_side_give_the_bytes_that_each_gives_alone),
        SL_RUN(components_come_and_go_beside_a_job),
        SL_RUN(a_cancel_and_a_preempt_reach_their_lane_alone),
        SL_RUN(a_lane_that_is_not_there_is_garbage),
        SL_RUN(components_of_a_job_take_turns),
        SL_RUN(a_job_can_be_stopped_at_its_edges),
        SL_RUN(the_end_of_the_stream_ends_a_wait),
    };

    return RUN_WORKER_TESTS(tests);
}
