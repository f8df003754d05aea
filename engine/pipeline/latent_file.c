#include "engine/pipeline/latent_file.h"

#include "base/size.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the state is written as it lies in memory"
#endif

enum { VERSION = 1 };

static const char magic[8] = { 'S', 'L', 'L', 'A', 'T', 'E', 'N', 'T' };

typedef struct {
    char magic[8];
    uint32_t version;
    uint32_t state_crc;
    uint32_t steps_done, step_count;
    uint64_t dim[4];
    char job[SL_LATENT_JOB_BYTES];
    uint32_t header_crc; /* of everything before */
    uint32_t zero;
} header;
_Static_assert(sizeof(header) == 144, "the layout of the file");
_Static_assert(offsetof(header, header_crc) == 136, "the layout of the file");

/* zlib's length is 32 bits. */
static uint32_t checksum(const void *bytes, size_t size_bytes)
{
    const unsigned char *at = bytes;
    uLong crc = crc32(0, NULL, 0);

    while (size_bytes > 0) {
        const uInt count = size_bytes < SL_GIB ? (uInt)size_bytes : (uInt)SL_GIB;
        crc = crc32(crc, at, count);
        at += count;
        size_bytes -= count;
    }
    return (uint32_t)crc;
}

static sl_status check_run(const sl_latent_run *run, size_t *state_bytes, sl_error *err)
{
    size_t bytes = sizeof(double);

    if (strlen(run->job) >= SL_LATENT_JOB_BYTES)
        return sl_fail(err, SL_ERR_INVALID, "job id of %zu bytes: expected at most %d",
                       strlen(run->job), SL_LATENT_JOB_BYTES - 1);
    for (int i = 0; i < 4; i++) {
        if (run->dim[i] < 1 || !sl_size_mul(bytes, (size_t)run->dim[i], &bytes))
            return sl_fail(err, SL_ERR_INVALID,
                           "latent [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                           "]: expected dimensions above 0",
                           run->dim[0], run->dim[1], run->dim[2], run->dim[3]);
    }
    *state_bytes = bytes;
    return SL_OK;
}

static header make_header(const sl_latent_run *run, int steps_done, const double *state,
                          size_t state_bytes)
{
    header h = { .version = VERSION,
                 .state_crc = checksum(state, state_bytes),
                 .steps_done = (uint32_t)steps_done,
                 .step_count = (uint32_t)run->step_count };

    memcpy(h.magic, magic, sizeof magic);
    for (int i = 0; i < 4; i++)
        h.dim[i] = (uint64_t)run->dim[i];
    memcpy(h.job, run->job, strlen(run->job));
    h.header_crc = checksum(&h, offsetof(header, header_crc));
    return h;
}

static sl_status write_all(int fd, const void *bytes, size_t size_bytes, const char *path,
                           sl_error *err)
{
    const char *at = bytes;

    while (size_bytes > 0) {
        const ssize_t written = write(fd, at, size_bytes);

        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return sl_fail_errno(err, "could not write latent file \"%s\"", path);
        at += written;
        size_bytes -= (size_t)written;
    }
    return SL_OK;
}

/* The new name is on disk only when its directory is. */
static sl_status sync_directory(const char *path, sl_error *err)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    sl_status status = SL_OK;
    int fd = -1;

    if (!dir)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the folder of \"%s\"", path);
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        status = sl_fail_errno(err, "could not sync folder \"%s\"", dir);
    if (fd >= 0)
        close(fd);
    free(dir);
    return status;
}

sl_status sl_latent_file_write(const char *path, const sl_latent_run *run, int steps_done,
                               const double *state, sl_error *err)
{
    size_t state_bytes = 0;
    char *partial = NULL;
    bool created = false;
    int fd = -1;
    sl_status status = check_run(run, &state_bytes, err);

    if (status != SL_OK)
        return status;
    SL_ASSERT(steps_done >= 1 && steps_done <= run->step_count);
    const header h = make_header(run, steps_done, state, state_bytes);
    if (asprintf(&partial, "%s.tmp", path) < 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the name of \"%s\"", path);
    fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        status = sl_fail_errno(err, "could not create latent file \"%s\"", partial);
        goto done;
    }
    created = true;
    status = write_all(fd, &h, sizeof h, partial, err);
    if (status == SL_OK)
        status = write_all(fd, state, state_bytes, partial, err);
    if (status == SL_OK && fsync(fd) != 0)
        status = sl_fail_errno(err, "could not sync latent file \"%s\"", partial);
    if (status == SL_OK && rename(partial, path) != 0)
        status = sl_fail_errno(err, "could not rename latent file \"%s\"", partial);
    if (status != SL_OK)
        goto done;
    created = false;
    status = sync_directory(path, err);
done:
    if (fd >= 0)
        close(fd);
    if (created)
        unlink(partial);
    free(partial);
    return status;
}

static sl_status read_all(int fd, void *bytes, size_t size_bytes, const char *path, sl_error *err)
{
    char *at = bytes;

    while (size_bytes > 0) {
        const ssize_t got = read(fd, at, size_bytes);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return sl_fail_errno(err, "could not read latent file \"%s\"", path);
        if (got == 0)
            return sl_fail(err, SL_ERR_DATA, "latent file \"%s\" ends %zu bytes early", path,
                           size_bytes);
        at += got;
        size_bytes -= (size_t)got;
    }
    return SL_OK;
}

static bool same_shape(const header *h, const sl_latent_run *run)
{
    for (int i = 0; i < 4; i++)
        if (h->dim[i] != (uint64_t)run->dim[i])
            return false;
    return true;
}

static sl_status check_header(const header *h, const sl_latent_run *run, const char *path,
                              sl_error *err)
{
    if (memcmp(h->magic, magic, sizeof magic) != 0)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" is no latent file", path);
    if (h->version != VERSION)
        return sl_fail(err, SL_ERR_DATA, "latent file \"%s\" has version %" PRIu32 ", expected %d",
                       path, h->version, (int)VERSION);
    if (h->header_crc != checksum(h, offsetof(header, header_crc)) || h->zero != 0)
        return sl_fail(err, SL_ERR_DATA, "latent file \"%s\": the checksum of its header differs",
                       path);
    if (strncmp(h->job, run->job, sizeof h->job) != 0)
        return sl_fail(err, SL_ERR_DATA, "latent file \"%s\" belongs to job %.*s, not to %s", path,
                       (int)sizeof h->job, h->job, run->job);
    if (!same_shape(h, run))
        return sl_fail(err, SL_ERR_DATA,
                       "latent file \"%s\" has shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64
                       ", %" PRIu64 "], expected [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                       "]",
                       path, h->dim[0], h->dim[1], h->dim[2], h->dim[3], run->dim[0], run->dim[1],
                       run->dim[2], run->dim[3]);
    if (h->step_count != (uint32_t)run->step_count || h->steps_done < 1 ||
        h->steps_done > h->step_count)
        return sl_fail(err, SL_ERR_DATA,
                       "latent file \"%s\" is of step %" PRIu32 " of %" PRIu32 ", expected 1 to %d",
                       path, h->steps_done, h->step_count, run->step_count);
    return SL_OK;
}

sl_status sl_latent_file_read(const char *path, const sl_latent_run *run, int *steps_done,
                              double *state, sl_error *err)
{
    size_t state_bytes = 0;
    struct stat st;
    header h;
    int fd = -1;
    sl_status status = check_run(run, &state_bytes, err);

    if (status != SL_OK)
        return status;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ELOOP)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" is no latent file", path);
    if (fd < 0)
        return sl_fail_errno(err, "could not open latent file \"%s\"", path);
    if (fstat(fd, &st) != 0) {
        status = sl_fail_errno(err, "could not look at latent file \"%s\"", path);
        goto done;
    }
    if (!S_ISREG(st.st_mode)) {
        status = sl_fail(err, SL_ERR_DATA, "\"%s\" is no latent file", path);
        goto done;
    }
    status = read_all(fd, &h, sizeof h, path, err);
    if (status == SL_OK)
        status = check_header(&h, run, path, err);
    if (status != SL_OK)
        goto done;
    if ((uintmax_t)st.st_size != (uintmax_t)sizeof h + state_bytes) {
        status = sl_fail(err, SL_ERR_DATA, "latent file \"%s\" has %jd bytes, expected %zu", path,
                         (intmax_t)st.st_size, sizeof h + state_bytes);
        goto done;
    }
    status = read_all(fd, state, state_bytes, path, err);
    if (status == SL_OK && checksum(state, state_bytes) != h.state_crc)
        status = sl_fail(err, SL_ERR_DATA, "latent file \"%s\": the checksum of its state differs",
                         path);
    if (status == SL_OK)
        *steps_done = (int)h.steps_done;
done:
    close(fd);
    return status;
}
