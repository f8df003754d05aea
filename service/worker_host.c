/* HostSegments, HostFill, HostForget: images of components in host memory that
 * the daemon owns.
 *
 *   HostSegments --> mapped, empty or filled --HostFill--> filled --HostForget--> gone
 *
 * All of it is done by the loader's lane. */
#include "service/worker.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"
#include "engine/model/model_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Memory that is asked for at once, between two looks at the cancel word. */
#define POPULATE_BYTES ((size_t)64 << 20)

/* Memory that is given back at once: what one file holds, as two threads in one wait
 * for each other. */
#define EMPTY_BYTES ((size_t)1 << 30)

#define HUGE_BYTES ((size_t)2 << 20)

static sl_host_mapping **find_slot(sl_worker *worker, const Sluice__Worker__ComponentKey *key)
{
    sl_host_mapping **at = &worker->images;

    while (*at && ((int)(*at)->kind != key->component || (int)(*at)->precision != key->precision ||
                   strcmp((*at)->model, key->model) != 0))
        at = &(*at)->next;
    return at;
}

static const char *name_of(const Sluice__Worker__ComponentKey *key)
{
    return sl_component_name((sl_component_kind)key->component);
}

static void free_mapping(sl_worker *worker, sl_host_mapping *image)
{
    if (!image)
        return;
    if (image->base) {
        sl_host_withdraw(worker->device, image->base);
        munmap(image->base, image->mapped_bytes);
    }
    free(image->model);
    free(image);
}

void sl_worker_forget_all(sl_worker *worker)
{
    while (worker->images) {
        sl_host_mapping *image = worker->images;
        worker->images = image->next;
        free_mapping(worker, image);
    }
}

/* ---- HostSegments ---- */

/* The segments together hold the image, whole pages each, and nothing more. */
static sl_status check_segments(const Sluice__Worker__HostSegments *message, size_t *total_bytes,
                                sl_error *err)
{
    const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    size_t total = 0, before_last = 0;
    bool fits = message->n_segment_bytes > 0 && message->image_bytes > 0;

    for (size_t i = 0; i < message->n_segment_bytes && fits; i++) {
        const uint64_t size_bytes = message->segment_bytes[i];
        before_last = total;
        fits = size_bytes > 0 && size_bytes % page_bytes == 0 &&
               sl_size_add(total, (size_t)size_bytes, &total);
    }
    if (!fits || total < message->image_bytes || before_last >= message->image_bytes)
        return sl_fail(err, SL_ERR_INVALID,
                       "an image of %llu bytes in %zu segments of %zu bytes: expected pages that "
                       "just hold it",
                       (unsigned long long)message->image_bytes, message->n_segment_bytes, total);
    *total_bytes = total;
    return SL_OK;
}

/* Maps one over the range that is reserved.  A file that could be cut short
 * would be a fault on access. */
static sl_status map_segment(unsigned char *at, size_t size_bytes, int fd, sl_error *err)
{
    struct stat info;
    const int seals = fcntl(fd, F_GET_SEALS);

    if (fstat(fd, &info) != 0 || info.st_size < 0 || (size_t)info.st_size != size_bytes ||
        seals < 0 || !(seals & F_SEAL_SHRINK))
        return sl_fail(err, SL_ERR_INVALID,
                       "a segment of host memory is no sealed file of %zu bytes", size_bytes);
    if (mmap(at, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return sl_fail_errno(err, "could not map a segment of %zu bytes of host memory",
                             size_bytes);
    madvise(at, size_bytes, MADV_HUGEPAGE); /* a wish only */
    return SL_OK;
}

/* Aligned for huge pages, which registering for a card gains most from. */
static unsigned char *reserve_addresses(size_t size_bytes, sl_error *err)
{
    const size_t all_bytes = size_bytes + HUGE_BYTES;
    unsigned char *all =
        mmap(NULL, all_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (all == MAP_FAILED) {
        sl_fail(err, SL_ERR_NO_MEMORY, "could not reserve %zu bytes of addresses (errno %d)",
                all_bytes, errno);
        return NULL;
    }
    const size_t before = (HUGE_BYTES - (uintptr_t)all % HUGE_BYTES) % HUGE_BYTES;
    if (before > 0)
        munmap(all, before);
    munmap(all + before + size_bytes, HUGE_BYTES - before);
    return all + before;
}

static sl_status map_segments(sl_host_mapping *image, const Sluice__Worker__HostSegments *message,
                              const int *fds, sl_error *err)
{
    size_t at = 0;
    sl_status status = check_segments(message, &image->mapped_bytes, err);

    if (status != SL_OK)
        return status;
    image->base = reserve_addresses(image->mapped_bytes, err);
    if (!image->base)
        return SL_ERR_NO_MEMORY;
    for (size_t i = 0; i < message->n_segment_bytes && status == SL_OK; i++) {
        const size_t size_bytes = (size_t)message->segment_bytes[i];
        status = map_segment(image->base + at, size_bytes, fds[i], err);
        at += size_bytes;
    }
    return status;
}

sl_status sl_worker_host_segments(sl_worker *worker, const Sluice__Worker__HostSegments *message,
                                  const int *fds, sl_error *err)
{
    sl_status status = sl_worker_check_key(message->key, err);

    if (status != SL_OK)
        return status;
    if (*find_slot(worker, message->key))
        return sl_fail(err, SL_ERR_EXISTS, "%s of \"%s\" has host memory already",
                       name_of(message->key), message->key->model);
    sl_host_mapping *image = calloc(1, sizeof *image);
    if (image)
        image->model = strdup(message->key->model);
    if (!image || !image->model) {
        free(image);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an image's name");
    }
    image->kind = (sl_component_kind)message->key->component;
    image->precision = (sl_precision)message->key->precision;
    image->image_bytes = (size_t)message->image_bytes;
    image->filled = message->filled;
    status = map_segments(image, message, fds, err);
    /* Pinned when it is first copied, and for as long as it is mapped. */
    if (status == SL_OK)
        status = sl_host_offer(worker->device, image->base, image->mapped_bytes, err);
    if (status != SL_OK) {
        free_mapping(worker, image);
        return sl_error_prefix(err, "could not map the image of %s of \"%s\"",
                               name_of(message->key), message->key->model);
    }
    image->next = worker->images;
    worker->images = image;
    return SL_OK;
}

/* ---- HostFill ---- */

typedef struct {
    const sl_host_mapping *image;
    atomic_int failed; /* errno of one that failed */
} population;

static void populate_tile(void *arg, int64_t i, int thread, void *workspace)
{
    population *p = arg;
    const size_t at = (size_t)i * POPULATE_BYTES, left_bytes = p->image->mapped_bytes - at;

    (void)thread, (void)workspace;
    if (madvise(p->image->base + at, left_bytes < POPULATE_BYTES ? left_bytes : POPULATE_BYTES,
                MADV_POPULATE_WRITE) != 0)
        atomic_store(&p->failed, errno);
}

/* Takes the memory now, where its lack is a status and not a fault.  By many
 * threads: one gets some 2 GB/s. */
static sl_status populate(sl_lane *lane, sl_host_mapping *image, sl_error *err)
{
    population p = { .image = image };
    const size_t tiles = (image->mapped_bytes + POPULATE_BYTES - 1) / POPULATE_BYTES;

    atomic_init(&p.failed, 0);
    const sl_status status = sl_exec_parallel(lane->exec, (int64_t)tiles, populate_tile, &p, err);
    const int failed = atomic_load(&p.failed);
    /* EINVAL: a kernel before 5.14; the writes themselves take the memory then. */
    if (status != SL_OK || failed == 0 || failed == EINVAL)
        return status;
    return sl_fail(err, SL_ERR_NO_MEMORY, "could not get %zu bytes of host memory (errno %d)",
                   image->mapped_bytes, failed);
}

/* Pins for a card while the file is read: either takes seconds for a large model.
 * On cpu the thread has nothing to do. */
typedef struct {
    sl_lane *lane;
    sl_host_mapping *image;
    pthread_t thread;
    sl_status status;
    sl_error error;
} pinning;

static void *pin_image(void *arg)
{
    pinning *p = arg;

    p->status = sl_host_pin(p->lane->worker->device, p->image->base, p->image->mapped_bytes,
                            &p->lane->cancel, &p->error);
    return NULL;
}

static sl_status fill_and_pin(sl_lane *lane, sl_host_mapping *image, const sl_component_spec *spec,
                              const sl_ckpt *ckpt, sl_error *err)
{
    pinning p = { .lane = lane, .image = image };
    const bool pins = sl_device_get_spec(lane->worker->device)->kind == SL_DEVICE_CUDA &&
                      pthread_create(&p.thread, NULL, pin_image, &p) == 0;
    sl_status status =
        sl_component_fill_image(image->base, image->image_bytes, spec, lane->exec, ckpt, err);

    if (pins) {
        pthread_join(p.thread, NULL);
        if (status == SL_OK && p.status != SL_OK) {
            *err = p.error;
            status = p.status;
        }
    }
    return status;
}

/* Taking the memory and reading the file are what a load from a disk costs. */
static void log_fill(const sl_worker *worker, const sl_host_mapping *image, int64_t start_ns,
                     int64_t populated_ns)
{
    if (sl_device_get_spec(worker->device)->kind == SL_DEVICE_CUDA)
        sl_log(SL_LOG_INFO, "filled", "model=\"%s\" component=%s bytes=%zu memory_ms=%.1f ms=%.1f",
               image->model, sl_component_name(image->kind), image->image_bytes,
               (double)(populated_ns - start_ns) / (double)SL_NS_PER_MS,
               (double)(sl_clock_now_ns() - populated_ns) / (double)SL_NS_PER_MS);
}

static sl_status fill(sl_lane *lane, sl_host_mapping *image,
                      const Sluice__Worker__HostFill *message, sl_error *err)
{
    const int64_t start_ns = sl_clock_now_ns();
    int64_t populated_ns = start_ns;
    sl_model_dir *dir = NULL;
    sl_ckpt *ckpt = NULL;
    sl_component_spec spec;
    sl_status status = sl_model_dir_open(&dir, message->model_path, err);

    if (status == SL_OK)
        status = sl_worker_make_spec(sl_model_dir_info(dir), message->key, &spec, err);
    if (status == SL_OK && sl_component_image_bytes(&spec) != image->image_bytes)
        status = sl_fail(err, SL_ERR_PRECONDITION,
                         "its image has %zu bytes, there is memory for %zu: its files have changed",
                         sl_component_image_bytes(&spec), image->image_bytes);
    if (status == SL_OK)
        status = sl_ckpt_open(&ckpt, sl_model_dir_info(dir)->files[image->kind], err);
    if (status == SL_OK)
        status = populate(lane, image, err);
    populated_ns = sl_clock_now_ns();
    if (status == SL_OK)
        status = fill_and_pin(lane, image, &spec, ckpt, err);
    if (status == SL_OK)
        log_fill(lane->worker, image, start_ns, populated_ns);
    sl_ckpt_close(ckpt);
    sl_model_dir_close(dir);
    return status;
}

sl_status sl_worker_host_fill(sl_lane *lane, const Sluice__Worker__HostFill *message,
                              Sluice__Worker__Done *done, sl_error *err)
{
    sl_status status = sl_worker_check_key(message->key, err);

    if (status != SL_OK)
        return status;
    sl_host_mapping *image = *find_slot(lane->worker, message->key);
    if (!image)
        return sl_fail(err, SL_ERR_NOT_FOUND, "%s of \"%s\" has no host memory",
                       name_of(message->key), message->key->model);
    if (image->user_count > 0)
        return sl_fail(err, SL_ERR_PRECONDITION, "the image of %s of \"%s\" is in use",
                       name_of(message->key), message->key->model);
    image->filled = false;
    status = fill(lane, image, message, err);
    if (status != SL_OK)
        return sl_error_prefix(err, "could not fill the image of %s of \"%s\"",
                               name_of(message->key), message->key->model);
    image->filled = true;
    done->component_bytes = image->image_bytes;
    return SL_OK;
}

static void empty_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const sl_host_mapping *image = arg;
    const size_t at = (size_t)i * EMPTY_BYTES, left_bytes = image->mapped_bytes - at;

    (void)thread, (void)workspace;
    /* What this cannot free is free with the last descriptor. */
    madvise(image->base + at, left_bytes < EMPTY_BYTES ? left_bytes : EMPTY_BYTES, MADV_REMOVE);
}

/* The memory is given back here, by many threads: one takes seconds for a large image. */
static void empty(sl_lane *lane, sl_host_mapping *image)
{
    const size_t tiles = (image->mapped_bytes + EMPTY_BYTES - 1) / EMPTY_BYTES;

    sl_host_withdraw(lane->worker->device, image->base);
    if (sl_exec_parallel(lane->exec, (int64_t)tiles, empty_tile, image, NULL) != SL_OK)
        sl_log(SL_LOG_DEBUG, "image_not_emptied", "bytes=%zu", image->mapped_bytes);
}

sl_status sl_worker_host_forget(sl_lane *lane, const Sluice__Worker__HostForget *message,
                                sl_error *err)
{
    sl_worker *worker = lane->worker;
    const sl_status status = sl_worker_check_key(message->key, err);

    if (status != SL_OK)
        return status;
    sl_host_mapping **at = find_slot(worker, message->key), *image = *at;
    if (!image)
        return sl_fail(err, SL_ERR_NOT_FOUND, "%s of \"%s\" has no host memory",
                       name_of(message->key), message->key->model);
    if (image->user_count > 0)
        return sl_fail(err, SL_ERR_PRECONDITION, "the image of %s of \"%s\" is in use",
                       name_of(message->key), message->key->model);
    *at = image->next;
    empty(lane, image);
    free_mapping(worker, image);
    return SL_OK;
}

/* ---- for Load and Trim ---- */

sl_status sl_worker_use_image(sl_worker *worker, const Sluice__Worker__ComponentKey *key,
                              sl_host_mapping **out, sl_error *err)
{
    sl_host_mapping *image = *find_slot(worker, key);

    if (!image || !image->filled)
        return sl_fail(err, SL_ERR_PRECONDITION, "its image is not in host memory");
    image->user_count++;
    *out = image;
    return SL_OK;
}

void sl_worker_unuse_image(sl_host_mapping *image)
{
    image->user_count--;
}

void sl_worker_trim_images(sl_worker *worker)
{
    /* The pages stay in the files; what goes is this process's share. */
    for (sl_host_mapping *image = worker->images; image; image = image->next)
        if (madvise(image->base, image->mapped_bytes, MADV_DONTNEED) != 0)
            sl_log(SL_LOG_WARN, "image_not_trimmed", "errno=%d", errno);
}
