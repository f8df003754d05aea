/* worker_card_test.c - the books of what is beside the arena, over stand-ins for the
 * driver (kernels/fake_cuda.c: a card of 1 GiB, of which the test takes what others
 * and the context would) and the management library (kernels/fake_nvml.c). */
#include "service/worker.h"

#include "base/size.h"
#include "base/test.h"

#include <dlfcn.h>
#include <string.h>

typedef struct {
    void (*take)(size_t bytes);
    void (*nvml)(unsigned long long total, unsigned long long left, unsigned pid,
                 unsigned long long pid_bytes);
    sl_worker worker;
} fixture;

static void *symbol(const char *library, const char *name)
{
    void *handle = dlopen(library, RTLD_NOW);
    void *found = handle ? dlsym(handle, name) : NULL;

    if (!found)
        fail_msg("the stand-in %s is not in the library path", library);
    return found;
}

static void open_fixture(fixture *f, const char *spec_text, sl_error *err)
{
    sl_device_spec spec;

    memset(f, 0, sizeof *f);
    *(void **)&f->take = symbol("libcuda.so.1", "sl_fake_cuda_take");
    *(void **)&f->nvml = symbol("libnvidia-ml.so.1", "sl_fake_nvml_set");
    SL_CHECK_OK(sl_device_spec_parse(spec_text, &spec, err));
    SL_CHECK_OK(sl_worker_open_device(&f->worker, &spec, err));
}

static void close_fixture(fixture *f)
{
    sl_device_destroy(f->worker.device);
    sl_worker_close_card(&f->worker);
    f->take(0);
}

static Sluice__Worker__Memory measure(fixture *f)
{
    Sluice__Worker__Memory memory = SLUICE__WORKER__MEMORY__INIT;

    sl_worker_measure_card(&f->worker, &memory);
    return memory;
}

static sl_device_stats stats_of(const fixture *f)
{
    sl_device_stats stats;

    sl_device_get_stats(f->worker.device, &stats);
    return stats;
}

SL_TEST(the_reserve_is_fixed_and_growth_beyond_it_shows)
{
    fixture f;
    sl_region *region = NULL;

    *(void **)&f.nvml = symbol("libnvidia-ml.so.1", "sl_fake_nvml_set");
    f.nvml(SL_GIB, SL_GIB, 0, 0);
    open_fixture(&f, "cuda:0", err);
    f.take(100 * SL_MIB); /* the context */
    SL_CHECK_OK(sl_region_create(&region, f.worker.device, "workspace", 64 * SL_MIB, err));
    SL_CHECK_OK(sl_region_map(region, 64 * SL_MIB, err));
    SL_CHECK_OK(sl_worker_settle_card(&f.worker, err));
    const size_t reserve = f.worker.card.reserve_bytes;
    SL_CHECK(reserve > 100 * SL_MIB + SL_DEVICE_CUT_BYTES && reserve < SL_GIB);
    SL_CHECK(stats_of(&f).limit_bytes == SL_GIB - reserve);
    Sluice__Worker__Memory m = measure(&f);
    SL_CHECK(m.context_bytes == 100 * SL_MIB && m.reserve_bytes == reserve);
    SL_CHECK(m.foreign_bytes == 0 && m.driver_total_bytes == SL_GIB);
    SL_CHECK(m.driver_free_bytes == SL_GIB - 164 * SL_MIB);
    f.take(reserve + 10 * SL_MIB); /* kernels that nobody expected */
    m = measure(&f);
    SL_CHECK(m.context_bytes == reserve + 10 * SL_MIB && m.reserve_bytes == reserve);
    SL_CHECK(m.foreign_bytes == 0);
    sl_region_destroy(region);
    close_fixture(&f);
}

/* A card has page tables for the host memory that it reads. */
SL_TEST(the_reserve_holds_tables_for_pinned_memory)
{
    fixture f;

    *(void **)&f.nvml = symbol("libnvidia-ml.so.1", "sl_fake_nvml_set");
    f.nvml(SL_GIB, SL_GIB, 0, 0);
    open_fixture(&f, "cuda:0", err);
    f.take(100 * SL_MIB);
    SL_CHECK_OK(sl_worker_settle_card(&f.worker, err));
    const size_t without = f.worker.card.reserve_bytes;
    f.worker.card.host_bytes = 64 * SL_GIB + 1;
    SL_CHECK_OK(sl_worker_settle_card(&f.worker, err));
    SL_CHECK(f.worker.card.reserve_bytes == without + 128 * SL_MIB);
    f.worker.card.host_bytes += 1024;
    SL_CHECK_OK(sl_worker_settle_card(&f.worker, err));
    SL_CHECK(f.worker.card.reserve_bytes == without + 130 * SL_MIB);
    SL_CHECK(stats_of(&f).limit_bytes == SL_GIB - without - 130 * SL_MIB);
    close_fixture(&f);
}

SL_TEST(others_take_from_the_limit_only_what_it_lacks)
{
    fixture f;

    /* 200 MiB of another process from the start. */
    *(void **)&f.take = symbol("libcuda.so.1", "sl_fake_cuda_take");
    *(void **)&f.nvml = symbol("libnvidia-ml.so.1", "sl_fake_nvml_set");
    f.take(200 * SL_MIB);
    f.nvml(SL_GIB, SL_GIB - 200 * SL_MIB, 77, 200 * SL_MIB);
    open_fixture(&f, "cuda:0:600MiB", err);
    SL_CHECK(f.worker.card.free_before_bytes == SL_GIB);
    f.take(300 * SL_MIB); /* and 100 of the context */
    SL_CHECK_OK(sl_worker_settle_card(&f.worker, err));
    Sluice__Worker__Memory m = measure(&f);
    SL_CHECK(m.context_bytes == 100 * SL_MIB);
    SL_CHECK(stats_of(&f).limit_bytes == 600 * SL_MIB - f.worker.card.reserve_bytes);
    SL_CHECK(m.foreign_bytes == 0); /* the card has room for both */
    SL_CHECK(sl_worker_driver_free(&f.worker) == SL_GIB - 100 * SL_MIB);
    /* The other process grows until the card cannot give us our limit. */
    f.take(SL_GIB - 50 * SL_MIB);
    f.nvml(SL_GIB, 50 * SL_MIB, 77, SL_GIB - 150 * SL_MIB);
    m = measure(&f);
    SL_CHECK(m.context_bytes == 100 * SL_MIB && m.driver_free_bytes == 50 * SL_MIB);
    /* Nothing is left beside the reserve: all of the limit is theirs. */
    SL_CHECK(m.foreign_bytes == stats_of(&f).limit_bytes);
    f.nvml(1ull << 34, 1ull << 33, 0, 0);
    close_fixture(&f);
}

/* The environment may hide cards from the driver: then the library's card of that
 * number is another one, and its numbers are not ours. */
SL_TEST(another_card_of_that_number_is_not_believed)
{
    fixture f;

    *(void **)&f.nvml = symbol("libnvidia-ml.so.1", "sl_fake_nvml_set");
    f.nvml(0, 0, 0, 0); /* hides its name, too */
    open_fixture(&f, "cuda:0", err);
    f.take(100 * SL_MIB);
    SL_CHECK(f.worker.card.nvml == NULL);
    SL_CHECK_OK(sl_worker_settle_card(&f.worker, err));
    SL_CHECK(measure(&f).context_bytes == 100 * SL_MIB);
    close_fixture(&f);
}

SL_TEST(what_an_unload_leaves_behind)
{
    Sluice__Worker__Done done = SLUICE__WORKER__DONE__INIT;

    done.before_bytes = 40 * SL_GIB;
    done.after_bytes = 10 * SL_GIB;
    SL_CHECK(sl_worker_driver_kept(&done) == 0); /* cpu: the driver says nothing */
    done.driver_free_before_bytes = 5 * SL_GIB;
    done.driver_free_after_bytes = 35 * SL_GIB;
    SL_CHECK(sl_worker_driver_kept(&done) == 0);
    done.driver_free_after_bytes -= 2 * SL_GRANULE_BYTES;
    SL_CHECK(sl_worker_driver_kept(&done) == 0);
    done.driver_free_after_bytes -= 1;
    SL_CHECK(sl_worker_driver_kept(&done) == 2 * SL_GRANULE_BYTES + 1);
    done.driver_free_after_bytes = 38 * SL_GIB; /* more came back: not ours */
    SL_CHECK(sl_worker_driver_kept(&done) == 0);
}

SL_TEST_MAIN(SL_RUN(the_reserve_is_fixed_and_growth_beyond_it_shows),
             SL_RUN(the_reserve_holds_tables_for_pinned_memory),
             SL_RUN(others_take_from_the_limit_only_what_it_lacks),
             SL_RUN(another_card_of_that_number_is_not_believed),
             SL_RUN(what_an_unload_leaves_behind))
