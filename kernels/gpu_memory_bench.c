/* gpu_memory_bench - what memory costs on a card, and whether it all comes back.
 *
 *     gpu_memory_bench [cuda:N] [--json]
 *
 * Times: a context and the library handles; physical memory by handles of 2 and
 * of 64 MiB, per GiB; regions through device.h; registration of memfds with and
 * without huge pages; copies from pinned memory, both ways, and those of copy.h.
 * Bytes: the context, what the driver keeps when everything is unmapped, and what
 * it keeps of a process that was killed.  The last two are checks, printed as "ok"
 * or "FAIL"; the exit status says whether all held.
 *
 * Times are medians of RUNS.  GB are 10^9 bytes, as copies are rated; GiB are
 * memory.
 */
#include "base/clock.h"
#include "base/size.h"
#include "kernels/copy.h"
#include "kernels/device_cuda.h"
#include "kernels/exec.h"
#include "kernels/nvml.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

enum { RUNS = 3, PARTS_MAX = 2048 };

#define VMM_BYTES     (4 * SL_GIB)
#define COPY_BYTES    (2 * SL_GIB)
#define PIN_PART      (256 * SL_MIB)
#define RESIDUE_BYTES (2 * SL_GRANULE_BYTES) /* beyond this it is an error */
#define RETURN_NS     (20 * SL_NS_PER_S)     /* how long a killed process's memory may take */

extern char **environ;

typedef struct {
    sl_device_spec spec;
    char spec_text[64];
    sl_device *device;
    const sl_cuda_driver *driver;
    bool json;
    int printed, failed;
} bench;

/* ---- printing ---- */

static void say(bench *b, const char *name, double value, const char *unit)
{
    if (b->json)
        printf("%s{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}", b->printed ? ",\n " : "[",
               name, value, unit);
    else
        printf("     %-48s %12.4g %s\n", name, value, unit);
    b->printed++;
    fflush(stdout);
}

static void check(bench *b, bool holds, const char *name, double bytes)
{
    b->failed += !holds;
    if (b->json)
        say(b, name, bytes, holds ? "bytes, ok" : "bytes, FAIL");
    else
        printf("%-4s memory: %s: %.0f bytes\n", holds ? "ok" : "FAIL", name, bytes);
    fflush(stdout);
}

static double median(double values[RUNS])
{
    for (int i = 1; i < RUNS; i++)
        for (int j = i; j > 0 && values[j] < values[j - 1]; j--) {
            const double v = values[j];
            values[j] = values[j - 1];
            values[j - 1] = v;
        }
    return values[RUNS / 2];
}

static double ms_since(int64_t from_ns)
{
    return (double)(sl_clock_now_ns() - from_ns) / (double)SL_NS_PER_MS;
}

static double gb_per_s(size_t bytes, double ms)
{
    return (double)bytes / 1e6 / ms;
}

/* The program cannot go on. */
#define TRY(expr)                                                                                  \
    do {                                                                                           \
        const sl_status try_status = (expr);                                                       \
        if (try_status != SL_OK)                                                                   \
            return try_status;                                                                     \
    } while (0)
#define TRY_DRIVER(b, call, what)                                                                  \
    do {                                                                                           \
        const CUresult try_error = (b)->driver->call;                                              \
        if (try_error != CUDA_SUCCESS)                                                             \
            return sl_cuda_driver_fail((b)->driver, err, try_error, what);                         \
    } while (0)

static sl_status free_bytes(bench *b, size_t *out, sl_error *err)
{
    size_t total;

    return sl_device_get_memory(b->device, out, &total, err);
}

/* ---- context ---- */

/* The card's free bytes before there is a context; 0: nobody tells. */
static size_t free_before(int card)
{
    sl_nvml *nvml = NULL;
    size_t left = 0, total = 0;

    if (sl_nvml_open(&nvml, NULL) == SL_OK &&
        sl_nvml_memory(nvml, card, &left, &total, NULL) != SL_OK)
        left = 0;
    sl_nvml_close(nvml);
    return left;
}

static sl_status open_device(bench *b, sl_error *err)
{
    const size_t before = free_before(b->spec.index);
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CUDA, false);
    const int64_t start_ns = sl_clock_now_ns();
    sl_exec *exec = NULL;
    size_t left, total;

    TRY(sl_device_create(&b->device, &b->spec, err));
    say(b, "context: create, driver start included", ms_since(start_ns), "ms");
    b->driver = sl_device_cuda_driver(b->device);
    TRY(sl_device_get_memory(b->device, &left, &total, err));
    say(b, "card: total", (double)total / (double)SL_MIB, "MiB");
    say(b, "card: free with a context", (double)left / (double)SL_MIB, "MiB");
    if (before > left)
        say(b, "context: bytes", (double)(before - left) / (double)SL_MIB, "MiB");
    const int64_t exec_ns = sl_clock_now_ns();
    TRY(sl_exec_create_cuda(&exec, b->device, &numerics, NULL, err));
    say(b, "exec: create, cuBLASLt and cuDNN handles", ms_since(exec_ns), "ms");
    size_t after;
    sl_status status = free_bytes(b, &after, err);
    if (status == SL_OK)
        say(b, "exec: bytes beside its workspace",
            ((double)left - (double)after - (double)SL_CUDA_WORKSPACE_BYTES) / (double)SL_MIB,
            "MiB");
    sl_exec_destroy(exec);
    return status;
}

/* ---- physical memory ---- */

enum { CREATE, MAP, ACCESS, UNMAP, RELEASE, STEPS };
static const char *const step_names[STEPS] = { "create", "map", "set access", "unmap", "release" };

static sl_status vmm_run(bench *b, CUdeviceptr base, size_t part_bytes, double ms[STEPS],
                         sl_error *err)
{
    static CUmemGenericAllocationHandle handles[PARTS_MAX];
    const size_t parts = VMM_BYTES / part_bytes;
    const CUmemAllocationProp prop = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = b->spec.index },
    };
    const CUmemAccessDesc access = { .location = prop.location,
                                     .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
    int64_t start_ns = sl_clock_now_ns();

    SL_ASSERT(parts <= PARTS_MAX);
    for (size_t i = 0; i < parts; i++)
        TRY_DRIVER(b, cuMemCreate(&handles[i], part_bytes, &prop, 0), "create");
    ms[CREATE] = ms_since(start_ns);
    start_ns = sl_clock_now_ns();
    for (size_t i = 0; i < parts; i++)
        TRY_DRIVER(b, cuMemMap(base + i * part_bytes, part_bytes, 0, handles[i], 0), "map");
    ms[MAP] = ms_since(start_ns);
    start_ns = sl_clock_now_ns();
    TRY_DRIVER(b, cuMemSetAccess(base, VMM_BYTES, &access, 1), "set access");
    ms[ACCESS] = ms_since(start_ns);
    start_ns = sl_clock_now_ns();
    for (size_t i = 0; i < parts; i++)
        TRY_DRIVER(b, cuMemUnmap(base + i * part_bytes, part_bytes), "unmap");
    ms[UNMAP] = ms_since(start_ns);
    start_ns = sl_clock_now_ns();
    for (size_t i = 0; i < parts; i++)
        TRY_DRIVER(b, cuMemRelease(handles[i]), "release");
    ms[RELEASE] = ms_since(start_ns);
    return SL_OK;
}

static sl_status measure_vmm(bench *b, size_t part_bytes, sl_error *err)
{
    double runs[STEPS][RUNS], ms[STEPS] = { 0 };
    CUdeviceptr base = 0;
    size_t before, after;
    char name[80];

    TRY(free_bytes(b, &before, err));
    TRY_DRIVER(b, cuMemAddressReserve(&base, VMM_BYTES, SL_GRANULE_BYTES, 0, 0), "address space");
    for (int run = 0; run < RUNS; run++) {
        TRY(vmm_run(b, base, part_bytes, ms, err));
        for (int step = 0; step < STEPS; step++)
            runs[step][run] = ms[step];
    }
    TRY_DRIVER(b, cuMemAddressFree(base, VMM_BYTES), "address space");
    for (int step = 0; step < STEPS; step++) {
        snprintf(name, sizeof name, "handles of %zu MiB: %s", part_bytes / SL_MIB,
                 step_names[step]);
        say(b, name, median(runs[step]) / ((double)VMM_BYTES / (double)SL_GIB), "ms per GiB");
    }
    TRY(free_bytes(b, &after, err));
    snprintf(name, sizeof name, "kept by the driver after handles of %zu MiB", part_bytes / SL_MIB);
    check(b, after + RESIDUE_BYTES >= before, name, (double)before - (double)after);
    return SL_OK;
}

static sl_status measure_region(bench *b, sl_error *err)
{
    double grow[RUNS], cut[RUNS], drop[RUNS];
    size_t before, mapped, after;
    sl_region *region = NULL;
    sl_status status;

    TRY(free_bytes(b, &before, err));
    TRY(sl_region_create(&region, b->device, "bench", VMM_BYTES, err));
    for (int run = 0; run < RUNS; run++) {
        int64_t start_ns = sl_clock_now_ns();
        TRY(sl_region_map(region, VMM_BYTES, err));
        grow[run] = ms_since(start_ns);
        TRY(free_bytes(b, &mapped, err));
        start_ns = sl_clock_now_ns();
        TRY(sl_region_map(region, VMM_BYTES - SL_GRANULE_BYTES, err));
        cut[run] = ms_since(start_ns);
        start_ns = sl_clock_now_ns();
        TRY(sl_region_map(region, 0, err));
        drop[run] = ms_since(start_ns);
    }
    sl_region_destroy(region);
    say(b, "region: map", median(grow) / ((double)VMM_BYTES / (double)SL_GIB), "ms per GiB");
    say(b, "region: cut 2 MiB off a piece of 64", median(cut), "ms");
    say(b, "region: unmap", median(drop) / ((double)VMM_BYTES / (double)SL_GIB), "ms per GiB");
    status = free_bytes(b, &after, err);
    const double beyond = (double)before - (double)mapped - (double)VMM_BYTES;
    check(b, beyond <= (double)RESIDUE_BYTES, "held beyond what a region has mapped", beyond);
    check(b, after + RESIDUE_BYTES >= before, "kept by the driver after a region",
          (double)before - (double)after);
    return status;
}

/* ---- pins and copies ---- */

static sl_status time_copies(bench *b, const char *what, void *host, sl_error *err)
{
    double down[RUNS], up[RUNS];
    sl_region *region = NULL;
    CUstream stream;
    char name[80];

    TRY(sl_region_create(&region, b->device, "copies", COPY_BYTES, err));
    TRY(sl_region_map(region, COPY_BYTES, err));
    const CUdeviceptr d_data = (CUdeviceptr)(uintptr_t)sl_region_data(region);
    TRY_DRIVER(b, cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "stream");
    for (int run = 0; run < RUNS; run++) {
        int64_t start_ns = sl_clock_now_ns();
        TRY_DRIVER(b, cuMemcpyHtoDAsync(d_data, host, COPY_BYTES, stream), "copy to the card");
        TRY_DRIVER(b, cuStreamSynchronize(stream), "copy to the card");
        down[run] = ms_since(start_ns);
        start_ns = sl_clock_now_ns();
        TRY_DRIVER(b, cuMemcpyDtoHAsync(host, d_data, COPY_BYTES, stream), "copy from the card");
        TRY_DRIVER(b, cuStreamSynchronize(stream), "copy from the card");
        up[run] = ms_since(start_ns);
    }
    b->driver->cuStreamDestroy(stream);
    sl_region_destroy(region);
    snprintf(name, sizeof name, "copy to the card, %s", what);
    say(b, name, gb_per_s(COPY_BYTES, median(down)), "GB/s");
    snprintf(name, sizeof name, "copy from the card, %s", what);
    say(b, name, gb_per_s(COPY_BYTES, median(up)), "GB/s");
    return SL_OK;
}

static sl_status measure_plain_pinned(bench *b, sl_error *err)
{
    void *host = NULL;
    const int64_t start_ns = sl_clock_now_ns();

    TRY_DRIVER(b, cuMemHostAlloc(&host, COPY_BYTES, CU_MEMHOSTALLOC_PORTABLE), "pinned memory");
    say(b, "pinned memory: allocate", gb_per_s(COPY_BYTES, ms_since(start_ns)), "GB/s");
    memset(host, 1, COPY_BYTES);
    TRY(time_copies(b, "allocated pinned", host, err));
    b->driver->cuMemFreeHost(host);
    return SL_OK;
}

/* Bytes of the mapping at `at` that lie in huge pages of shared memory. */
static size_t huge_bytes(const void *at)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[256];
    bool here = false;
    size_t kib = 0;

    while (f && fgets(line, sizeof line, f)) {
        uintptr_t from, to;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
            here = from <= (uintptr_t)at && (uintptr_t)at < to;
        else if (here && sscanf(line, "ShmemPmdMapped: %zu kB", &kib) == 1)
            break;
    }
    if (f)
        fclose(f);
    return kib << 10;
}

typedef struct {
    const char *name;
    unsigned flags; /* of memfd_create */
    bool advise;    /* MADV_HUGEPAGE */
} memfd_kind;

static sl_status pin_runs(bench *b, const memfd_kind *kind, void *host, sl_error *err)
{
    double pin[RUNS], unpin[RUNS], parts[RUNS];
    char name[80];

    for (int run = 0; run < RUNS; run++) {
        int64_t start_ns = sl_clock_now_ns();
        TRY_DRIVER(b, cuMemHostRegister(host, COPY_BYTES, CU_MEMHOSTREGISTER_PORTABLE), "register");
        pin[run] = ms_since(start_ns);
        /* Here, in one registration: a copy that spans two is refused, which is why
         * kernels/copy_cuda.c cuts its own at the edges of parts. */
        if (run == RUNS - 1)
            TRY(time_copies(b, kind->name, host, err));
        start_ns = sl_clock_now_ns();
        TRY_DRIVER(b, cuMemHostUnregister(host), "unregister");
        unpin[run] = ms_since(start_ns);
        start_ns = sl_clock_now_ns();
        for (size_t at = 0; at < COPY_BYTES; at += PIN_PART)
            TRY_DRIVER(b,
                       cuMemHostRegister((char *)host + at, PIN_PART, CU_MEMHOSTREGISTER_PORTABLE),
                       "register a part");
        parts[run] = ms_since(start_ns);
        for (size_t at = 0; at < COPY_BYTES; at += PIN_PART)
            TRY_DRIVER(b, cuMemHostUnregister((char *)host + at), "unregister a part");
    }
    snprintf(name, sizeof name, "register, %s", kind->name);
    say(b, name, gb_per_s(COPY_BYTES, median(pin)), "GB/s");
    snprintf(name, sizeof name, "register by parts of 256 MiB, %s", kind->name);
    say(b, name, gb_per_s(COPY_BYTES, median(parts)), "GB/s");
    snprintf(name, sizeof name, "unregister, %s", kind->name);
    say(b, name, gb_per_s(COPY_BYTES, median(unpin)), "GB/s");
    return SL_OK;
}

static sl_status measure_memfd(bench *b, const memfd_kind *kind, sl_error *err)
{
    sl_status status = SL_OK;
    char name[80];
    void *host = MAP_FAILED;
    const int fd = memfd_create("gpu-memory-bench", MFD_CLOEXEC | kind->flags);

    if (fd >= 0 && ftruncate(fd, (off_t)COPY_BYTES) == 0)
        host = mmap(NULL, COPY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    /* Pages of a fixed huge size may be reserved by nobody: touching them would
     * then end the process, asking for them says so. */
    if (host != MAP_FAILED && kind->flags && madvise(host, COPY_BYTES, MADV_POPULATE_WRITE) != 0) {
        munmap(host, COPY_BYTES);
        host = MAP_FAILED;
    }
    if (host == MAP_FAILED) {
        snprintf(name, sizeof name, "not granted: %s", kind->name);
        say(b, name, 0.0, "");
        goto done;
    }
    if (kind->advise)
        madvise(host, COPY_BYTES, MADV_HUGEPAGE);
    const int64_t start_ns = sl_clock_now_ns();
    memset(host, 1, COPY_BYTES);
    snprintf(name, sizeof name, "first touch, one thread, %s", kind->name);
    say(b, name, gb_per_s(COPY_BYTES, ms_since(start_ns)), "GB/s");
    if (kind->advise)
        say(b, "of it in huge pages", (double)huge_bytes(host) / (double)COPY_BYTES, "");
    status = pin_runs(b, kind, host, err);
    munmap(host, COPY_BYTES);
done:
    if (fd >= 0)
        close(fd);
    return status;
}

static sl_status measure_memfds(bench *b, sl_error *err)
{
    static const memfd_kind kinds[] = {
        { "memfd of 4 KiB pages", 0, false },
        { "memfd advised huge", 0, true },
        { "memfd of 2 MiB pages", MFD_HUGETLB | MFD_HUGE_2MB, false },
    };

    for (size_t i = 0; i < SL_COUNT(kinds); i++)
        TRY(measure_memfd(b, &kinds[i], err));
    return SL_OK;
}

/* ---- copy.h ---- */

static sl_status time_push(bench *b, sl_copy *copy, sl_region *region, const void *host,
                           const char *name, sl_error *err)
{
    const int64_t start_ns = sl_clock_now_ns();

    TRY(sl_copy_push(copy, sl_region_data(region), host, COPY_BYTES, err));
    TRY(sl_copy_wait(copy, err));
    say(b, name, gb_per_s(COPY_BYTES, ms_since(start_ns)), "GB/s");
    return SL_OK;
}

/* What the loader sees: to be compared with the plain copies above. */
static sl_status measure_copies(bench *b, sl_error *err)
{
    sl_region *region = NULL;
    sl_copy *copy = NULL;
    void *host;

    host = mmap(NULL, COPY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED)
        return sl_fail_errno(err, "could not map %zu bytes", (size_t)COPY_BYTES);
    memset(host, 1, COPY_BYTES);
    TRY(sl_region_create(&region, b->device, "copies", COPY_BYTES, err));
    TRY(sl_region_map(region, COPY_BYTES, err));
    TRY(sl_copy_open(&copy, b->device, NULL, err));
    TRY(time_push(b, copy, region, host, "copy.h: not offered, staged", err));
    TRY(sl_host_offer(b->device, host, COPY_BYTES, err));
    TRY(time_push(b, copy, region, host, "copy.h: offered, pinned as it is copied", err));
    TRY(time_push(b, copy, region, host, "copy.h: pinned", err));
    const int64_t start_ns = sl_clock_now_ns();
    TRY(sl_copy_pull(copy, host, sl_region_data(region), COPY_BYTES, err));
    TRY(sl_copy_wait(copy, err));
    say(b, "copy.h: pinned, from the card", gb_per_s(COPY_BYTES, ms_since(start_ns)), "GB/s");
    check(b, sl_host_pinned_bytes(b->device) == COPY_BYTES, "pinned of what was offered",
          (double)sl_host_pinned_bytes(b->device));
    sl_copy_close(copy);
    sl_host_withdraw(b->device, host);
    sl_region_destroy(region);
    munmap(host, COPY_BYTES);
    return SL_OK;
}

/* ---- a process that is killed ---- */

typedef struct {
    int64_t device_ns, exec_ns, map_ns;
} child_times;

/* Takes memory like a worker, tells its times, waits for its end. */
static int child_main(const sl_device_spec *spec)
{
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CUDA, false);
    sl_error error = { .status = SL_OK };
    sl_device *device = NULL;
    sl_region *region = NULL;
    sl_exec *exec = NULL;
    child_times times;
    int64_t start_ns = sl_clock_now_ns();
    sl_status status = sl_device_create(&device, spec, &error);

    times.device_ns = sl_clock_now_ns() - start_ns;
    start_ns = sl_clock_now_ns();
    if (status == SL_OK)
        status = sl_exec_create_cuda(&exec, device, &numerics, NULL, &error);
    times.exec_ns = sl_clock_now_ns() - start_ns;
    start_ns = sl_clock_now_ns();
    if (status == SL_OK)
        status = sl_region_create(&region, device, "child", VMM_BYTES, &error);
    if (status == SL_OK)
        status = sl_region_map(region, VMM_BYTES, &error);
    times.map_ns = sl_clock_now_ns() - start_ns;
    if (status != SL_OK) {
        fprintf(stderr, "gpu_memory_bench: child: %s\n", error.message);
        return 1;
    }
    if (write(STDOUT_FILENO, &times, sizeof times) != (ssize_t)sizeof times)
        return 1;
    for (;;)
        pause();
}

static sl_status start_child(const bench *b, pid_t *pid, int *from, sl_error *err)
{
    char *const argv[] = { "gpu_memory_bench", "--child", (char *)(uintptr_t)b->spec_text, NULL };
    posix_spawn_file_actions_t actions;
    int ends[2], rc;

    if (pipe(ends) != 0)
        return sl_fail_errno(err, "could not make a pipe");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    rc = posix_spawn(pid, "/proc/self/exe", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (rc != 0) {
        close(ends[0]);
        return sl_fail(err, SL_ERR_IO, "could not start a second process: %s", strerror(rc));
    }
    *from = ends[0];
    return SL_OK;
}

static sl_status measure_killed(bench *b, sl_error *err)
{
    const struct timespec step = { .tv_nsec = SL_NS_PER_MS };
    size_t before, during, after = 0;
    child_times times;
    pid_t pid = 0;
    int from = -1;

    TRY(free_bytes(b, &before, err));
    TRY(start_child(b, &pid, &from, err));
    struct pollfd ready = { .fd = from, .events = POLLIN };
    const bool told =
        poll(&ready, 1, 60000) == 1 && read(from, &times, sizeof times) == sizeof times;
    close(from);
    sl_status status = free_bytes(b, &during, err);
    kill(pid, SIGKILL);
    const int64_t start_ns = sl_clock_now_ns();
    waitpid(pid, NULL, 0);
    if (!told)
        return sl_fail(err, SL_ERR_TIMEOUT, "the second process did not get ready");
    const double reap_ms = ms_since(start_ns);
    while (status == SL_OK) {
        status = free_bytes(b, &after, err);
        if (after + RESIDUE_BYTES >= before || sl_clock_now_ns() - start_ns > RETURN_NS)
            break;
        nanosleep(&step, NULL);
    }
    TRY(status);
    say(b, "second process: context", (double)times.device_ns / 1e6, "ms");
    say(b, "second process: library handles", (double)times.exec_ns / 1e6, "ms");
    say(b, "second process: 4 GiB mapped", (double)times.map_ns / 1e6, "ms");
    say(b, "second process: bytes beside its regions",
        ((double)before - (double)during - (double)(VMM_BYTES + SL_CUDA_WORKSPACE_BYTES)) /
            (double)SL_MIB,
        "MiB");
    say(b, "killed: until it is reaped", reap_ms, "ms");
    say(b, "killed: until its memory is back", ms_since(start_ns), "ms");
    check(b, after + RESIDUE_BYTES >= before, "kept by the driver of a killed process",
          (double)before - (double)after);
    return SL_OK;
}

int main(int argc, char **argv)
{
    bench b = { .spec_text = "cuda:0" };
    sl_error error = { .status = SL_OK };
    bool child = false;
    sl_status status;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            b.json = true;
        else if (strcmp(argv[i], "--child") == 0)
            child = true;
        else
            snprintf(b.spec_text, sizeof b.spec_text, "%s", argv[i]);
    }
    status = sl_device_spec_parse(b.spec_text, &b.spec, &error);
    if (status == SL_OK && b.spec.kind != SL_DEVICE_CUDA)
        status = sl_fail(&error, SL_ERR_INVALID, "device \"%s\" is no card", b.spec_text);
    if (status == SL_OK && child)
        return child_main(&b.spec);
    if (status == SL_OK)
        status = open_device(&b, &error);
    if (status == SL_OK)
        status = measure_vmm(&b, SL_GRANULE_BYTES, &error);
    if (status == SL_OK)
        status = measure_vmm(&b, 64 * SL_MIB, &error);
    if (status == SL_OK)
        status = measure_region(&b, &error);
    if (status == SL_OK)
        status = measure_plain_pinned(&b, &error);
    if (status == SL_OK)
        status = measure_memfds(&b, &error);
    if (status == SL_OK)
        status = measure_copies(&b, &error);
    if (status == SL_OK)
        status = measure_killed(&b, &error);
    if (b.json && b.printed)
        printf("]\n");
    if (status != SL_OK)
        fprintf(stderr, "gpu_memory_bench: %s\n", error.message);
    /* The device is not destroyed: a failure may have left regions. */
    return status == SL_OK && b.failed == 0 ? 0 : 1;
}
