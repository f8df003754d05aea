#include "kernels/exec.h"

#include "base/clock.h"
#include "base/size.h"
#include "kernels/op_test.h"

#include <pthread.h>
#include <unistd.h>

enum { TILES = 1000 };

typedef struct {
    atomic_int runs[TILES];
    atomic_int by_thread[64];
    atomic_int misplaced;
    sl_exec *exec;
    atomic_uint *cancel; /* set by tile 10 when not NULL */
} record;

static void note(void *arg, int64_t i, int thread, void *workspace)
{
    record *r = arg;
    unsigned char *w = workspace;

    atomic_fetch_add(&r->runs[i], 1);
    atomic_fetch_add(&r->by_thread[thread], 1);
    if ((uintptr_t)workspace % 64 != 0)
        atomic_fetch_add(&r->misplaced, 1);
    /* The whole slice is there and nobody else writes to it meanwhile. */
    w[0] = w[SL_CPU_WORKSPACE_PER_THREAD - 1] = (unsigned char)thread;
    usleep(20);
    if (w[0] != thread || w[SL_CPU_WORKSPACE_PER_THREAD - 1] != thread)
        atomic_fetch_add(&r->misplaced, 1);
    if (r->cancel && i == 10)
        atomic_store(r->cancel, 1);
}

SL_TEST(runs_each_tile_once)
{
    static const int threads[] = { 1, 2, 5 };

    for (size_t n = 0; n < SL_COUNT(threads); n++) {
        op_test run;
        op_test_open(&run, threads[n]);
        SL_CHECK(sl_exec_thread_count(run.exec) == threads[n]);
        SL_CHECK(sl_exec_workspace_bytes(run.exec) ==
                 (size_t)threads[n] * SL_CPU_WORKSPACE_PER_THREAD);
        for (int64_t count = 0; count <= TILES; count = count * 10 + (count == 0)) {
            record r = { .exec = run.exec };
            SL_CHECK_OK(sl_exec_parallel(run.exec, count, note, &r, err));
            for (int64_t i = 0; i < TILES; i++)
                SL_CHECK(atomic_load(&r.runs[i]) == (i < count));
            SL_CHECK(atomic_load(&r.misplaced) == 0);
            for (int t = threads[n]; t < 64; t++)
                SL_CHECK(atomic_load(&r.by_thread[t]) == 0);
        }
        op_test_close(&run);
    }
}

SL_TEST(threads_share_the_work)
{
    record r = { .misplaced = 0 };
    op_test run;

    op_test_open(&run, 3);
    SL_CHECK_OK(sl_exec_parallel(run.exec, TILES, note, &r, err));
    for (int t = 0; t < 3; t++)
        SL_CHECK(atomic_load(&r.by_thread[t]) > 0);
    op_test_close(&run);
}

SL_TEST(cancel_stops_between_tiles)
{
    record r = { .misplaced = 0 };
    op_test run;
    int ran = 0;

    op_test_open(&run, 2);
    r.cancel = &run.cancel;
    SL_CHECK_STATUS(sl_exec_parallel(run.exec, TILES, note, &r, err), SL_ERR_CANCELLED);
    for (int i = 0; i < TILES; i++)
        ran += atomic_load(&r.runs[i]);
    SL_CHECK(ran >= 11 && ran < TILES / 2);
    SL_CHECK(sl_exec_cancelled(run.exec));

    SL_CHECK_STATUS(sl_exec_parallel(run.exec, 1, note, &r, err), SL_ERR_CANCELLED);
    SL_CHECK_STATUS(sl_exec_parallel(run.exec, 0, note, &r, err), SL_ERR_CANCELLED);
    SL_CHECK(atomic_load(&r.runs[0]) == 1);
    atomic_store(&run.cancel, 0); /* the next job is not cancelled */
    SL_CHECK_OK(sl_exec_parallel(run.exec, 1, note, &r, err));
    op_test_close(&run);
}

SL_TEST(the_workspace_is_counted_on_the_device)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU,
                                  .limit_bytes = 2 * SL_CPU_WORKSPACE_PER_THREAD };
    sl_device_stats stats;
    sl_device *device;
    sl_exec *exec = NULL;

    SL_CHECK_OK(sl_device_create(&device, &spec, err));
    SL_CHECK_STATUS(sl_exec_create_cpu(&exec, device, 3, NULL, err), SL_ERR_NO_MEMORY);
    sl_device_get_stats(device, &stats);
    SL_CHECK(stats.mapped_bytes == 0 && exec == NULL);
    SL_CHECK_OK(sl_exec_create_cpu(&exec, device, 2, NULL, err));
    sl_device_get_stats(device, &stats);
    SL_CHECK(stats.mapped_bytes == spec.limit_bytes);
    SL_CHECK(!sl_exec_cancelled(exec) && !sl_exec_is_counting(exec));
    sl_exec_destroy(exec);
    SL_CHECK_STATUS(sl_exec_create_cpu(&exec, device, -1, NULL, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_exec_create_cpu(&exec, device, 65, NULL, err), SL_ERR_INVALID);
    sl_device_destroy(device);
}

SL_TEST(copies_in_and_out)
{
    const char text[] = "latent";
    char back[sizeof text] = "";
    sl_region *region;
    op_test run;

    op_test_open(&run, 1);
    SL_CHECK_OK(sl_region_create(&region, run.device, "r", 1, err));
    SL_CHECK_OK(sl_region_map(region, 1, err));
    SL_CHECK_OK(sl_exec_write(run.exec, sl_region_data(region), text, sizeof text, err));
    SL_CHECK_OK(sl_exec_read(run.exec, back, sl_region_data(region), sizeof text, err));
    SL_CHECK(strcmp(back, text) == 0);
    sl_region_destroy(region);
    op_test_close(&run);
}

SL_TEST(bulk_goes_beside_the_ops)
{
    char there[] = "weights", back[sizeof there] = "";
    sl_copy *copy = NULL;
    op_test run;

    op_test_open(&run, 1);
    SL_CHECK_OK(sl_exec_open_copy(&copy, run.exec, err));
    SL_CHECK_OK(sl_copy_push(copy, back, there, sizeof there, err));
    SL_CHECK_OK(sl_copy_wait(copy, err));
    SL_CHECK(strcmp(back, there) == 0);
    atomic_store(&run.cancel, 1); /* the exec's word */
    SL_CHECK_STATUS(sl_copy_push(copy, back, there, sizeof there, err), SL_ERR_CANCELLED);
    sl_copy_close(copy);
    op_test_close(&run);
}

SL_TEST(what_an_exec_counts_for)
{
    const sl_numerics cpu = sl_numerics_of(SL_DEVICE_CPU, false);
    const sl_numerics cuda = sl_numerics_of(SL_DEVICE_CUDA, false);
    const sl_numerics exact = sl_numerics_of(SL_DEVICE_CUDA, true);
    sl_scratch scratch;
    sl_exec *exec;
    op_test run;

    SL_CHECK(cpu.activation == SL_F32 && exact.activation == SL_F32 && cuda.activation == SL_BF16);
    SL_CHECK(cpu.tile_tokens % 128 == 0 && cuda.tile_tokens % 128 == 0);
    SL_CHECK_OK(sl_exec_create_counting(&exec, NULL, err));
    SL_CHECK(sl_exec_numerics(exec)->kind == SL_DEVICE_CPU && sl_exec_scratch(exec) == NULL);
    sl_exec_destroy(exec);
    SL_CHECK_OK(sl_exec_create_counting(&exec, &cuda, err));
    SL_CHECK(sl_exec_numerics(exec)->kind == SL_DEVICE_CUDA);
    SL_CHECK(sl_exec_numerics(exec)->activation == SL_BF16);
    SL_CHECK(sl_exec_is_counting(exec) && sl_exec_thread_count(exec) == 1);
    sl_scratch_init_counting(&scratch);
    sl_exec_lend_scratch(exec, &scratch);
    SL_CHECK(sl_exec_scratch(exec) == &scratch);
    sl_exec_lend_scratch(exec, NULL);
    SL_CHECK(sl_exec_scratch(exec) == NULL);
    SL_CHECK_OK(sl_exec_wait(exec, err));
    sl_exec_destroy(exec);
    op_test_open(&run, 1);
    SL_CHECK(sl_exec_numerics(run.exec)->kind == SL_DEVICE_CPU);
    atomic_store(&run.cancel, 1); /* memory may be given back all the same */
    SL_CHECK_OK(sl_exec_wait(run.exec, err));
    op_test_close(&run);
}

SL_TEST(counting_touches_nothing)
{
    void *nowhere = (void *)(uintptr_t)0x1000;
    char host[4] = "abc";
    sl_exec *exec;
    record r = { .misplaced = 0 };

    SL_CHECK_OK(sl_exec_create_counting(&exec, NULL, err));
    SL_CHECK(sl_exec_is_counting(exec) && sl_exec_workspace_bytes(exec) == 0);
    SL_CHECK_OK(sl_exec_write(exec, nowhere, host, sizeof host, err));
    SL_CHECK_OK(sl_exec_read(exec, host, nowhere, sizeof host, err));
    SL_CHECK(strcmp(host, "abc") == 0);
    SL_CHECK_OK(sl_exec_parallel(exec, TILES, note, &r, err));
    SL_CHECK(atomic_load(&r.runs[0]) == 0);
    sl_exec_destroy(exec);
    sl_exec_destroy(NULL);
}

SL_TEST_MAIN(SL_RUN(runs_each_tile_once), SL_RUN(threads_share_the_work),
             SL_RUN(cancel_stops_between_tiles), SL_RUN(the_workspace_is_counted_on_the_device),
             SL_RUN(copies_in_and_out), SL_RUN(bulk_goes_beside_the_ops),
             SL_RUN(what_an_exec_counts_for), SL_RUN(counting_touches_nothing))
