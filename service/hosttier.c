#include "service/hosttier.h"

#include "base/size.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_BYTES = 200, STAT_BLOCK_BYTES = 512 };

struct sl_hosttier {
    size_t limit_bytes, booked_bytes;
    sl_host_image *images;
};

sl_status sl_hosttier_create(sl_hosttier **out, size_t limit_bytes, sl_error *err)
{
    sl_hosttier *tier = calloc(1, sizeof *tier);

    if (!tier)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the host tier");
    tier->limit_bytes = limit_bytes;
    *out = tier;
    return SL_OK;
}

void sl_hosttier_destroy(sl_hosttier *tier)
{
    while (tier && tier->images)
        sl_host_image_destroy(tier->images);
    free(tier);
}

size_t sl_hosttier_limit_bytes(const sl_hosttier *tier)
{
    return tier->limit_bytes;
}

void sl_hosttier_set_limit(sl_hosttier *tier, size_t limit_bytes)
{
    tier->limit_bytes = limit_bytes;
}

size_t sl_hosttier_booked_bytes(const sl_hosttier *tier)
{
    return tier->booked_bytes;
}

size_t sl_hosttier_resident_bytes(const sl_hosttier *tier)
{
    size_t total = 0;
    struct stat info;

    for (const sl_host_image *image = tier->images; image; image = image->next)
        for (int i = 0; i < image->segment_count; i++)
            if (fstat(image->fds[i], &info) == 0)
                total += (size_t)info.st_blocks * STAT_BLOCK_BYTES;
    return total;
}

size_t sl_hosttier_cost_bytes(size_t image_bytes)
{
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    size_t rounded;

    if (image_bytes == 0 || !sl_size_align(image_bytes, page_bytes, &rounded) ||
        (rounded - 1) / SL_HOST_SEGMENT_BYTES >= SL_HOST_MAX_SEGMENTS)
        return SIZE_MAX;
    return rounded;
}

/* ---- images ---- */

/* A file in memory that stays as large as it is. */
static sl_status make_segment(int *out, const char *name, int i, size_t size_bytes, sl_error *err)
{
    char label[NAME_BYTES + 32];
    sl_status status = SL_OK;

    snprintf(label, sizeof label, "sluice:%.*s.%d", (int)NAME_BYTES, name, i);
    const int fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return sl_fail_errno(err, "could not make a file in memory for %s", name);
    if (ftruncate(fd, (off_t)size_bytes) != 0)
        status = sl_fail_errno(err, "could not make %zu bytes of memory for %s", size_bytes, name);
    else if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        status = sl_fail_errno(err, "could not seal the memory of %s", name);
    if (status != SL_OK)
        close(fd);
    else
        *out = fd;
    return status;
}

static sl_status make_segments(sl_host_image *image, const char *name, sl_error *err)
{
    size_t left_bytes = image->booked_bytes;

    while (left_bytes > 0) {
        const int i = image->segment_count;
        const size_t size_bytes =
            left_bytes < SL_HOST_SEGMENT_BYTES ? left_bytes : SL_HOST_SEGMENT_BYTES;
        const sl_status status = make_segment(&image->fds[i], name, i, size_bytes, err);
        if (status != SL_OK)
            return status;
        image->segment_bytes[i] = size_bytes;
        image->segment_count++;
        left_bytes -= size_bytes;
    }
    return SL_OK;
}

static void close_segments(sl_host_image *image)
{
    for (int i = 0; i < image->segment_count; i++)
        close(image->fds[i]);
}

sl_status sl_host_image_create(sl_host_image **out, sl_hosttier *tier, const char *name,
                               size_t image_bytes, sl_error *err)
{
    const size_t cost_bytes = sl_hosttier_cost_bytes(image_bytes);

    if (cost_bytes > tier->limit_bytes)
        return sl_fail(err, SL_ERR_TOO_LARGE,
                       "the image of %s has %zu bytes: host memory is limited to %zu", name,
                       image_bytes, tier->limit_bytes);
    if (tier->booked_bytes > tier->limit_bytes ||
        cost_bytes > tier->limit_bytes - tier->booked_bytes)
        return sl_fail(
            err, SL_ERR_BUSY, "the image of %s needs %zu bytes of host memory: %zu of %zu are free",
            name, cost_bytes,
            tier->limit_bytes > tier->booked_bytes ? tier->limit_bytes - tier->booked_bytes : 0,
            tier->limit_bytes);
    sl_host_image *image = calloc(1, sizeof *image);
    if (!image)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the image of %s", name);
    image->image_bytes = image_bytes;
    image->booked_bytes = cost_bytes;
    image->tier = tier;
    const sl_status status = make_segments(image, name, err);
    if (status != SL_OK) {
        close_segments(image);
        free(image);
        return status;
    }
    tier->booked_bytes += cost_bytes;
    image->next = tier->images;
    tier->images = image;
    *out = image;
    return SL_OK;
}

void sl_host_image_set_filled(sl_host_image *image)
{
    image->filled = true;
}

void sl_host_image_destroy(sl_host_image *image)
{
    if (!image)
        return;
    sl_host_image **at = &image->tier->images;
    while (*at != image)
        at = &(*at)->next;
    *at = image->next;
    image->tier->booked_bytes -= image->booked_bytes;
    close_segments(image);
    free(image);
}
