/* The real sluice-worker: images in host memory, and what streams from them. */
#include "service/worker_test.h"

SL_TEST(host_images_survive_the_worker)
{
    const int open_before = open_fd_count(getpid());
    char from_file[65], from_host[65];
    sl_hosttier *tier = NULL;
    sl_host_image *images[SL_COUNT(kinds)];
    worker w = start_worker(err);
    job j;

    load_all(&w, err);
    make_job(&j, "host", 64, 5, 2, err);
    run_and_check(&w, &j, from_file, err);
    SL_CHECK(unlink(j.output) == 0);

    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    const int worker_open = open_fd_count(w.pid);
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        SL_CHECK_OK(sl_host_image_create(&images[i], tier, "tiny", image_bytes(kinds[i]), err));
        SL_CHECK(host_segments(&w, kinds[i], images[i], err)->status == SL_OK);
        SL_CHECK(host_segments(&w, kinds[i], images[i], err)->status == SL_ERR_EXISTS);
        const Sluice__Worker__Done *done = host_fill(&w, kinds[i], err);
        SL_CHECK(done->status == SL_OK && done->component_bytes == images[i]->image_bytes);
        SL_CHECK(done->after_bytes == done->before_bytes); /* nothing on the device */
        sl_host_image_set_filled(images[i]);
    }
    SL_CHECK(sl_hosttier_resident_bytes(tier) == sl_hosttier_booked_bytes(tier));
    SL_CHECK(open_fd_count(w.pid) == worker_open);
    SL_CHECK(kill(w.pid, SIGKILL) == 0 && wait_exit(&w, PATIENCE * SL_NS_PER_S) == -SIGKILL);

    w = start_worker(err);
    SL_CHECK(load_host(&w, SL_COMPONENT_DIT, SL_MODE_RESIDENT, err)->status == SL_ERR_PRECONDITION);
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        SL_CHECK(host_segments(&w, kinds[i], images[i], err)->status == SL_OK);
        const Sluice__Worker__Done *done = load_host(&w, kinds[i], SL_MODE_RESIDENT, err);
        SL_CHECK(done->status == SL_OK && done->component_bytes == planned_bytes(kinds[i]));
    }
    /* A resident component has its bytes: the image may go. */
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        SL_CHECK(host_forget(&w, kinds[i], err)->status == SL_OK);
        SL_CHECK(host_forget(&w, kinds[i], err)->status == SL_ERR_NOT_FOUND);
    }
    SL_CHECK(sl_hosttier_resident_bytes(tier) == 0); /* although the files are still open */
    for (size_t i = 0; i < SL_COUNT(kinds); i++)
        sl_host_image_destroy(images[i]);
    SL_CHECK(sl_hosttier_booked_bytes(tier) == 0);
    run_and_check(&w, &j, from_host, err);
    SL_CHECK(strcmp(from_file, from_host) == 0 && unlink(j.output) == 0);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
    SL_CHECK(open_fd_count(getpid()) == open_before);
}

static void make_streamed_job(job *j, const char *id, unsigned streamed, sl_error *err)
{
    const sl_arch *arch = sl_arch_find("tiny-t2v");
    sl_t2v_request request = sl_t2v_request_default(arch);

    make_job(j, id, 64, 5, 2, err);
    request.width = request.height = 64;
    request.frames = 5;
    request.steps = 2;
    request.token_count = SL_COUNT(prompt_ids);
    request.streamed = streamed;
    SL_CHECK_OK(sl_t2v_plan_make(&j->plan, &request, arch, SL_DEVICE_CPU, err));
    j->run.activation_bytes = j->plan.activation_bytes;
    j->run.streamed = (int32_t)streamed;
}

SL_TEST(streamed_components_give_the_same_bytes)
{
    const sl_component_kind streamed[] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_DIT };
    char resident[65], from_host[65];
    sl_hosttier *tier = NULL;
    sl_host_image *images[SL_COUNT(streamed)];
    worker w = start_worker(err);
    job j;

    load_all(&w, err);
    make_job(&j, "resident", 64, 5, 2, err);
    run_and_check(&w, &j, resident, err);
    SL_CHECK(unlink(j.output) == 0);

    make_streamed_job(&j, "streamed", SL_COMPONENT_BIT(streamed[0]) | SL_COMPONENT_BIT(streamed[1]),
                      err);
    expect_run(&w, &j, SL_ERR_PRECONDITION, "not loaded", err);
    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    for (size_t i = 0; i < SL_COUNT(streamed); i++) {
        SL_CHECK_OK(sl_host_image_create(&images[i], tier, "tiny", image_bytes(streamed[i]), err));
        SL_CHECK(host_segments(&w, streamed[i], images[i], err)->status == SL_OK);
        SL_CHECK(load_host(&w, streamed[i], SL_MODE_STREAMED, err)->status ==
                 SL_ERR_PRECONDITION); /* empty yet */
        SL_CHECK(host_fill(&w, streamed[i], err)->status == SL_OK);
        SL_CHECK(load_host(&w, streamed[i], SL_MODE_STREAMED, err)->status == SL_OK);
        SL_CHECK(host_forget(&w, streamed[i], err)->status == SL_ERR_PRECONDITION);
        SL_CHECK(host_fill(&w, streamed[i], err)->status == SL_ERR_PRECONDITION);
        SL_CHECK(unload(&w, streamed[i], err)->status == SL_OK); /* the resident one */
    }
    SL_CHECK(trim(&w, err)->status == SL_OK);
    run_and_check(&w, &j, from_host, err);
    SL_CHECK(strcmp(resident, from_host) == 0 && unlink(j.output) == 0);
    for (size_t i = 0; i < SL_COUNT(streamed); i++) {
        SL_CHECK(unload_mode(&w, streamed[i], SL_MODE_STREAMED, err)->status == SL_OK);
        SL_CHECK(host_forget(&w, streamed[i], err)->status == SL_OK);
    }
    SL_CHECK(load_host(&w, SL_COMPONENT_VAE, SL_MODE_STREAMED, err)->status == SL_ERR_INVALID);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
}

SL_TEST(host_memory_that_is_not_as_told_is_refused)
{
    const sl_component_kind kind = SL_COMPONENT_VAE;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    sl_hosttier *tier = NULL;
    sl_host_image *image = NULL, bad;
    worker w = start_worker(err);

    SL_CHECK_OK(sl_hosttier_create(&tier, 64 * SL_MIB, err));
    SL_CHECK_OK(sl_host_image_create(&image, tier, "tiny/vae", image_bytes(kind), err));
    const int worker_open = open_fd_count(w.pid);
    SL_CHECK(host_fill(&w, kind, err)->status == SL_ERR_NOT_FOUND);
    bad = *image, bad.segment_bytes[0] += page; /* beyond the file */
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.segment_bytes[0] -= 1;
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.image_bytes = image->booked_bytes + 1;
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.segment_count = 2, bad.segment_bytes[1] = page, bad.fds[1] = bad.fds[0];
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    bad = *image, bad.fds[0] = STDERR_FILENO; /* no memory, not sealed */
    SL_CHECK(host_segments(&w, kind, &bad, err)->status == SL_ERR_INVALID);
    SL_CHECK(open_fd_count(w.pid) == worker_open);

    /* Of the right form, and of another size than the component. */
    sl_host_image *other = NULL;
    SL_CHECK_OK(sl_host_image_create(&other, tier, "tiny/vae", page, err));
    SL_CHECK(host_segments(&w, kind, other, err)->status == SL_OK);
    SL_CHECK(host_fill(&w, kind, err)->status == SL_ERR_PRECONDITION);
    SL_CHECK(load_host(&w, kind, SL_MODE_RESIDENT, err)->status == SL_ERR_PRECONDITION);
    SL_CHECK(host_forget(&w, kind, err)->status == SL_OK);
    other->filled = true; /* which is a lie */
    SL_CHECK(host_segments(&w, kind, other, err)->status == SL_OK);
    SL_CHECK(load_host(&w, kind, SL_MODE_RESIDENT, err)->status == SL_ERR_PRECONDITION);
    SL_CHECK(host_forget(&w, kind, err)->status == SL_OK);
    SL_CHECK(open_fd_count(w.pid) == worker_open);
    stop_worker(&w, err);
    sl_hosttier_destroy(tier);
}

SL_TEST(segments_without_their_descriptors_are_garbage)
{
    worker w = start_worker(err);
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostSegments message = SLUICE__WORKER__HOST_SEGMENTS__INIT;
    Sluice__Worker__ComponentKey key = key_of(SL_COMPONENT_VAE);
    uint64_t segment_bytes[] = { 4096, 4096 };

    message.key = &key;
    message.image_bytes = 8192;
    message.n_segment_bytes = 2;
    message.segment_bytes = segment_bytes;
    command.id = 1;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS;
    command.host_segments = &message;
    const int one = STDIN_FILENO;
    send_with_fds(&w, &command, &one, 1, err);
    SL_CHECK(wait_exit(&w, PATIENCE * SL_NS_PER_S) == 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(host_images_survive_the_worker),
        SL_RUN(streamed_components_give_the_same_bytes),
        SL_RUN(host_memory_that_is_not_as_told_is_refused),
        SL_RUN(segments_without_their_descriptors_are_garbage),
    };

    return RUN_WORKER_TESTS(tests);
}
