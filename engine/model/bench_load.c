#include "engine/model/bench_load.h"

#include "base/clock.h"
#include "base/size.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/component.h"
#include "engine/model/inspect.h"
#include "kernels/device.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROUNDS = 5 };

#define RAW_BYTES (16 * SL_MIB)

typedef struct {
    const char *path;
    sl_component_spec spec;
    sl_device *device;
    sl_exec *exec;
    void *image, *raw;
    size_t image_bytes, file_bytes;
} load_bench;

static double gbytes(size_t size_bytes, int64_t ns)
{
    return (double)size_bytes / (double)ns;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Pages of the file that are in memory would be read from there. */
static sl_status drop_cached(const char *path, sl_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return sl_fail_errno(err, "could not open \"%s\"", path);
    const int error = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    errno = error;
    return error ? sl_fail_errno(err, "could not drop \"%s\" from the page cache", path) : SL_OK;
}

static sl_status read_raw(load_bench *b, double *rate, sl_error *err)
{
    const int fd = open(b->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    const int64_t start = sl_clock_now_ns();
    size_t total = 0;
    ssize_t n = 0;

    if (fd < 0)
        return sl_fail_errno(err, "could not open \"%s\" for direct reads", b->path);
    while ((n = read(fd, b->raw, RAW_BYTES)) > 0)
        total += (size_t)n;
    *rate = gbytes(total, sl_clock_now_ns() - start);
    b->file_bytes = total;
    close(fd);
    return n < 0 ? sl_fail_errno(err, "could not read \"%s\"", b->path) : SL_OK;
}

static sl_status load_once(load_bench *b, double *rate, sl_error *err)
{
    sl_ckpt *ckpt = NULL;
    sl_status status = drop_cached(b->path, err);
    const int64_t start = sl_clock_now_ns();

    if (status == SL_OK)
        status = sl_ckpt_open(&ckpt, b->path, err);
    if (status == SL_OK)
        status = sl_component_fill_image(b->image, b->image_bytes, &b->spec, b->exec, ckpt, err);
    if (status == SL_OK)
        *rate = gbytes(sl_ckpt_data_bytes(ckpt), sl_clock_now_ns() - start);
    sl_ckpt_close(ckpt);
    return status;
}

/* The precision in which most of the file is copied as it is. */
static sl_precision precision_of(const sl_ckpt_summary *s)
{
    if (s->layout == SL_LAYOUT_TURBO_QUANT)
        return SL_PRECISION_INT8;
    return s->by_dtype[SL_F32].data_bytes > s->data_bytes / 2 ? SL_PRECISION_F32
                                                              : SL_PRECISION_BF16;
}

static sl_status open_bench(load_bench *b, sl_error *err)
{
    sl_device_spec device_spec;
    sl_ckpt_summary summary;
    sl_status status = sl_ckpt_summarise(&summary, b->path, NULL, err);

    if (status != SL_OK)
        return status;
    b->spec = summary.spec;
    b->spec.precision = precision_of(&summary);
    b->image_bytes = sl_component_image_bytes(&b->spec);
    if (posix_memalign(&b->raw, 4096, RAW_BYTES) != 0)
        b->raw = NULL;
    b->image = mmap(NULL, b->image_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (b->image == MAP_FAILED)
        b->image = NULL;
    if (!b->raw || !b->image)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an image of %zu bytes",
                       b->image_bytes);
    memset(b->raw, 1, RAW_BYTES); /* touched */
    status = sl_device_spec_parse("cpu:1GiB", &device_spec, err);
    if (status == SL_OK)
        status = sl_device_create(&b->device, &device_spec, err);
    if (status == SL_OK)
        status = sl_exec_create_cpu(&b->exec, b->device, 0, NULL, err);
    return status;
}

static void close_bench(load_bench *b)
{
    sl_exec_destroy(b->exec);
    sl_device_destroy(b->device);
    if (b->image)
        munmap(b->image, b->image_bytes);
    free(b->raw);
}

static void print_rates(const load_bench *b, double *raw, double *load, bool json)
{
    double ratio[ROUNDS];

    for (int i = 0; i < ROUNDS; i++)
        ratio[i] = load[i] / raw[i];
    if (!json)
        for (int i = 0; i < ROUNDS; i++)
            printf("round %d: direct reads %.2f GB/s, load %.2f GB/s, %.0f%%\n", i + 1, raw[i],
                   load[i], 100 * ratio[i]);
    qsort(raw, ROUNDS, sizeof *raw, by_value);
    qsort(load, ROUNDS, sizeof *load, by_value);
    qsort(ratio, ROUNDS, sizeof *ratio, by_value);
    if (json)
        printf("{\"file_bytes\": %zu, \"direct_gbytes_s\": %.3f, \"load_gbytes_s\": %.3f, "
               "\"ratio\": %.3f}\n",
               b->file_bytes, raw[ROUNDS / 2], load[ROUNDS / 2], ratio[ROUNDS / 2]);
    else
        printf("median of %d: direct reads %.2f GB/s, load %.2f GB/s, %.0f%%\n", (int)ROUNDS,
               raw[ROUNDS / 2], load[ROUNDS / 2], 100 * ratio[ROUNDS / 2]);
}

sl_status sl_bench_load(const char *path, bool json, sl_error *err)
{
    load_bench b = { .path = path };
    double raw[ROUNDS], load[ROUNDS];
    sl_status status = open_bench(&b, err);

    for (int i = 0; i < ROUNDS && status == SL_OK; i++) {
        status = read_raw(&b, &raw[i], err);
        if (status == SL_OK)
            status = load_once(&b, &load[i], err);
    }
    if (status == SL_OK)
        print_rates(&b, raw, load, json);
    close_bench(&b);
    return status;
}
