#include "kernels/device.h"

#include "base/size.h"
#include "base/test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static sl_device *open_device(size_t limit_bytes, sl_error *err)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = limit_bytes };
    sl_device *device = NULL;

    SL_CHECK_OK(sl_device_create(&device, &spec, err));
    return device;
}

static sl_device_stats stats_of(const sl_device *device)
{
    sl_device_stats stats;

    sl_device_get_stats(device, &stats);
    return stats;
}

SL_TEST(parses_specs)
{
    static const struct {
        const char *text;
        sl_device_kind kind;
        int index;
        size_t limit_bytes;
        const char *formatted;
    } good[] = {
        { "cpu:8GiB", SL_DEVICE_CPU, 0, 8 * SL_GIB, "cpu:8589934592" },
        { "cpu:8589934592", SL_DEVICE_CPU, 0, 8 * SL_GIB, "cpu:8589934592" },
        { "cpu:5MiB", SL_DEVICE_CPU, 0, 4 * SL_MIB, "cpu:4194304" },
        { "cuda:0", SL_DEVICE_CUDA, 0, 0, "cuda:0" },
        { "cuda:12:24GiB", SL_DEVICE_CUDA, 12, 24 * SL_GIB, "cuda:12:25769803776" },
    };
    static const char *const bad[] = {
        "",        "gpu",       "cpu:",     "cpu:0",     "cpu:1MiB",   "cpu:many",
        "cpu8GiB", "cuda",      "cuda:",    "cuda:x",    "cuda:-1",    "cuda:0:",
        "cuda:0x", "cuda:0:1B", "CPU:1GiB", "cpu: 8GiB", "cuda:99999", "cpu:8GiB:1",
    };
    sl_device_spec spec;
    char buf[64];

    for (size_t i = 0; i < SL_COUNT(good); i++) {
        SL_CHECK_OK(sl_device_spec_parse(good[i].text, &spec, err));
        SL_CHECK(spec.kind == good[i].kind && spec.index == good[i].index &&
                 spec.limit_bytes == good[i].limit_bytes);
        SL_CHECK(strcmp(sl_device_spec_format(&spec, buf, sizeof buf), good[i].formatted) == 0);
    }
    SL_CHECK_OK(sl_device_spec_parse("cpu", &spec, err));
    SL_CHECK(spec.limit_bytes >= SL_GRANULE_BYTES && spec.limit_bytes % SL_GRANULE_BYTES == 0);
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        if (sl_device_spec_parse(bad[i], &spec, err) != SL_ERR_INVALID)
            fail_msg("\"%s\" was taken", bad[i]);
        SL_CHECK(strstr(err->message, bad[i]) != NULL);
    }
}

/* No machine has that card: not built, no driver, or one that counts fewer. */
SL_TEST(a_card_that_is_not_there_is_refused)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CUDA, .index = 9999 };
    sl_device *device = NULL;
    const sl_status status = sl_device_create(&device, &spec, err);

    SL_CHECK(status == SL_ERR_UNIMPLEMENTED || status == SL_ERR_UNAVAILABLE ||
             status == SL_ERR_NOT_FOUND);
    SL_CHECK(err->status == status && device == NULL);
    SL_CHECK(strstr(err->message, "device \"cuda:9999\": ") == err->message);
}

SL_TEST(a_reserve_comes_off_the_limit)
{
    sl_device *device = open_device(10 * SL_MIB, err);
    sl_region *region = NULL;
    size_t free_bytes, total_bytes;

    SL_CHECK_OK(sl_device_set_reserve(device, 3 * SL_MIB, err));
    SL_CHECK(stats_of(device).reserve_bytes == 4 * SL_MIB);
    SL_CHECK(stats_of(device).limit_bytes == 6 * SL_MIB);
    SL_CHECK_OK(sl_region_create(&region, device, "r", 10 * SL_MIB, err));
    SL_CHECK_STATUS(sl_region_map(region, 7 * SL_MIB, err), SL_ERR_NO_MEMORY);
    SL_CHECK_OK(sl_region_map(region, 6 * SL_MIB, err));
    SL_CHECK_STATUS(sl_device_set_reserve(device, 5 * SL_MIB, err), SL_ERR_TOO_LARGE);
    SL_CHECK(stats_of(device).limit_bytes == 6 * SL_MIB);
    SL_CHECK_OK(sl_device_set_reserve(device, 0, err));
    SL_CHECK_OK(sl_region_map(region, 10 * SL_MIB, err));
    sl_region_destroy(region);
    SL_CHECK_STATUS(sl_device_set_reserve(device, SIZE_MAX, err), SL_ERR_TOO_LARGE);
    SL_CHECK_OK(sl_device_get_memory(device, &free_bytes, &total_bytes, err));
    SL_CHECK(free_bytes > 0 && free_bytes <= total_bytes);
    SL_CHECK(strcmp(sl_device_uuid(device), "cpu") == 0);
    sl_device_destroy(device);
}

SL_TEST(the_limit_is_never_passed)
{
    sl_device *device = open_device(10 * SL_MIB, err);
    sl_region *a, *b;

    SL_CHECK_OK(sl_region_create(&a, device, "weights", SL_GIB, err));
    SL_CHECK_OK(sl_region_create(&b, device, "job", SL_GIB, err));
    SL_CHECK(stats_of(device).mapped_bytes == 0);
    SL_CHECK_OK(sl_region_map(a, 5 * SL_MIB, err)); /* rounds up to 6 */
    SL_CHECK_OK(sl_region_map(b, 4 * SL_MIB, err));
    SL_CHECK(stats_of(device).mapped_bytes == 10 * SL_MIB);

    SL_CHECK_STATUS(sl_region_map(b, 4 * SL_MIB + 1, err), SL_ERR_NO_MEMORY);
    SL_CHECK(strstr(err->message, "\"job\"") && strstr(err->message, "need 2097152 bytes") &&
             strstr(err->message, "have 0 of a limit of 10485760"));
    SL_CHECK(sl_region_mapped_bytes(b) == 4 * SL_MIB);

    SL_CHECK_OK(sl_region_map(a, 1, err)); /* shrinks to one granule */
    SL_CHECK_OK(sl_region_map(b, 8 * SL_MIB, err));
    SL_CHECK(stats_of(device).mapped_bytes == 10 * SL_MIB);
    sl_region_destroy(b);
    SL_CHECK(stats_of(device).mapped_bytes == 2 * SL_MIB);
    SL_CHECK(stats_of(device).peak_mapped_bytes == 10 * SL_MIB);
    sl_device_reset_peak(device);
    SL_CHECK(stats_of(device).peak_mapped_bytes == 2 * SL_MIB);
    sl_region_destroy(a);
    SL_CHECK(stats_of(device).mapped_bytes == 0);
    sl_device_destroy(device);
}

SL_TEST(sizes_outside_are_refused)
{
    sl_device *device = open_device(8 * SL_MIB, err);
    sl_region *region = NULL;

    SL_CHECK_STATUS(sl_region_create(&region, device, "none", 0, err), SL_ERR_INVALID);
    SL_CHECK(sl_region_create(&region, device, "all", SIZE_MAX, err) != SL_OK && !region);
    SL_CHECK_OK(sl_region_create(&region, device, "small", 1, err));
    SL_CHECK_STATUS(sl_region_map(region, SL_GRANULE_BYTES + 1, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_region_map(region, SIZE_MAX, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_region_map(region, 0, err));
    sl_region_destroy(region);
    sl_region_destroy(NULL);
    sl_device_destroy(device);
    sl_device_destroy(NULL);
    SL_CHECK(sl_granules(0) == 0 && sl_granules(1) == SL_GRANULE_BYTES);
    SL_CHECK(sl_granules(SIZE_MAX) == SIZE_MAX - SL_GRANULE_BYTES + 1);
}

/* Bytes of [at, at + size) that are in memory. */
static size_t resident_bytes(const void *at, size_t size_bytes)
{
    static unsigned char pages[1 << 14];
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    size_t resident = 0;

    SL_CHECK(size_bytes / page_bytes <= sizeof pages);
    SL_CHECK(mincore((void *)at, size_bytes, pages) == 0);
    for (size_t i = 0; i < size_bytes / page_bytes; i++)
        resident += pages[i] & 1 ? page_bytes : 0;
    return resident;
}

SL_TEST(unmapped_pages_go_back_and_come_again_as_zero)
{
    sl_device *device = open_device(32 * SL_MIB, err);
    sl_region *region;

    SL_CHECK_OK(sl_region_create(&region, device, "r", 64 * SL_MIB, err));
    unsigned char *p = sl_region_data(region);
    SL_CHECK((uintptr_t)p % SL_GRANULE_BYTES == 0);
    SL_CHECK_OK(sl_region_map(region, 16 * SL_MIB, err));
    memset(p, 7, 16 * SL_MIB);
    SL_CHECK(resident_bytes(p, 16 * SL_MIB) == 16 * SL_MIB);
    SL_CHECK(sl_device_resident_bytes(device) == 16 * SL_MIB);

    SL_CHECK_OK(sl_region_map(region, 4 * SL_MIB, err));
    SL_CHECK(resident_bytes(p, 16 * SL_MIB) == 4 * SL_MIB);
    SL_CHECK(sl_region_data(region) == p && p[4 * SL_MIB - 1] == 7);

    SL_CHECK_OK(sl_region_map(region, 16 * SL_MIB, err));
    for (size_t i = 4 * SL_MIB; i < 16 * SL_MIB; i++)
        SL_CHECK(p[i] == 0);
    SL_CHECK_OK(sl_region_map(region, 0, err));
    SL_CHECK(resident_bytes(p, 16 * SL_MIB) == 0);
    SL_CHECK(sl_device_resident_bytes(device) == 0);
    sl_region_destroy(region);
    sl_device_destroy(device);
}

/* In a child, which the fault ends. */
SL_TEST(unmapped_memory_cannot_be_touched)
{
    sl_device *device = open_device(8 * SL_MIB, err);
    sl_region *region;
    int status = 0;

    SL_CHECK_OK(sl_region_create(&region, device, "r", 8 * SL_MIB, err));
    SL_CHECK_OK(sl_region_map(region, 4 * SL_MIB, err));
    SL_CHECK_OK(sl_region_map(region, 2 * SL_MIB, err));
    const pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL); /* the test runner's own handler would go on */
        ((volatile unsigned char *)sl_region_data(region))[2 * SL_MIB] = 1;
        _exit(0);
    }
    SL_CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    SL_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    sl_region_destroy(region);
    sl_device_destroy(device);
}

typedef struct {
    sl_device *device;
    atomic_int *passed;
} churn_arg;

static void *churn(void *arg)
{
    const churn_arg *c = arg;
    sl_error error = { .status = SL_OK };
    sl_region *region = NULL;

    if (sl_region_create(&region, c->device, "churn", 8 * SL_GRANULE_BYTES, &error) != SL_OK)
        return NULL;
    for (size_t i = 0; i < 1000; i++) {
        sl_device_reset_peak(c->device);
        const sl_status status = sl_region_map(region, i * 7 % 9 * SL_GRANULE_BYTES, &error);
        const sl_device_stats stats = stats_of(c->device);
        if ((status != SL_OK && status != SL_ERR_NO_MEMORY) ||
            stats.mapped_bytes > stats.limit_bytes || stats.peak_mapped_bytes < stats.mapped_bytes)
            atomic_fetch_add(c->passed, 1);
        if (status == SL_OK && sl_region_mapped_bytes(region))
            *(volatile char *)sl_region_data(region) = 1;
    }
    sl_region_destroy(region);
    return NULL;
}

SL_TEST(accounts_exactly_from_many_threads)
{
    sl_device *device = open_device(20 * SL_MIB, err);
    atomic_int passed = 0;
    const churn_arg arg = { device, &passed };
    pthread_t threads[4];

    for (size_t i = 0; i < SL_COUNT(threads); i++)
        SL_CHECK(pthread_create(&threads[i], NULL, churn, (void *)&arg) == 0);
    for (size_t i = 0; i < SL_COUNT(threads); i++)
        SL_CHECK(pthread_join(threads[i], NULL) == 0);
    SL_CHECK(atomic_load(&passed) == 0);
    SL_CHECK(stats_of(device).mapped_bytes == 0);
    SL_CHECK(stats_of(device).peak_mapped_bytes <= 20 * SL_MIB);
    sl_device_destroy(device);
}

SL_TEST_MAIN(SL_RUN(parses_specs), SL_RUN(a_card_that_is_not_there_is_refused),
             SL_RUN(a_reserve_comes_off_the_limit), SL_RUN(the_limit_is_never_passed), SL_RUN(sizes_outside_are_refused),
             SL_RUN(unmapped_pages_go_back_and_come_again_as_zero),
             SL_RUN(unmapped_memory_cannot_be_touched), SL_RUN(accounts_exactly_from_many_threads))
