#include "engine/ckpt/ckpt_file.h"

#include "engine/ckpt/pth.h"
#include "engine/ckpt/st_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

sl_status sl_file_open(const char *path, int *fd, size_t *size_bytes, sl_error *err)
{
    sl_status status = SL_OK;
    struct stat st;
    /* O_NONBLOCK: a FIFO must not hold us up; it is refused below */
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (file < 0)
        return sl_fail_errno(err, "could not open \"%s\"", path);
    if (fstat(file, &st) != 0) {
        status = sl_fail_errno(err, "could not stat \"%s\"", path);
        goto done;
    }
    if (!S_ISREG(st.st_mode)) {
        status = sl_fail(err, SL_ERR_DATA, "\"%s\" is no regular file", path);
        goto done;
    }
    *fd = file;
    *size_bytes = (size_t)st.st_size;
    file = -1;
done:
    if (file >= 0)
        close(file);
    return status;
}

sl_status sl_file_read(int fd, const char *path, size_t offset, void *out, size_t size_bytes,
                       sl_error *err)
{
    char *at = out;

    while (size_bytes > 0) {
        const ssize_t n = pread(fd, at, size_bytes, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sl_fail_errno(err, "could not read %zu bytes at %zu of \"%s\"", size_bytes,
                                 offset, path);
        if (n == 0)
            return sl_fail(err, SL_ERR_DATA, "\"%s\" was cut after it was opened: no byte at %zu",
                           path, offset);
        at += n;
        offset += (size_t)n;
        size_bytes -= (size_t)n;
    }
    return SL_OK;
}

static bool strip_prefix(char *name, const char *prefix)
{
    const size_t n = strlen(prefix);

    if (strncmp(name, prefix, n) != 0)
        return false;
    memmove(name, name + n, strlen(name + n) + 1);
    return true;
}

void sl_ckpt_normalise(char *name)
{
    static const char wrapped[] = "_checkpoint_wrapped_module.";
    char *from = name;
    char *to = name;

    if (!strip_prefix(name, "net."))
        strip_prefix(name, "model.diffusion_model.");
    while (*from != '\0') {
        const bool segment_start = from == name || from[-1] == '.';
        if (segment_start && strncmp(from, wrapped, sizeof wrapped - 1) == 0)
            from += sizeof wrapped - 1;
        else
            *to++ = *from++;
    }
    *to = '\0';
}

sl_ckpt_tensor *sl_ckpt_file_push(sl_ckpt_file *file, sl_error *err)
{
    if (file->count == file->capacity) {
        const int64_t grown = file->capacity ? file->capacity * 2 : 64;
        sl_ckpt_tensor *moved = reallocarray(file->tensors, (size_t)grown, sizeof *moved);

        if (!moved) {
            sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %lld tensor records",
                    (long long)grown);
            return NULL;
        }
        file->tensors = moved;
        file->capacity = grown;
    }
    file->tensors[file->count] = (sl_ckpt_tensor){ .name = NULL };
    return &file->tensors[file->count++];
}

static int by_name(const void *a, const void *b)
{
    const sl_ckpt_tensor *x = a, *y = b;

    return strcmp(x->name, y->name);
}

sl_status sl_ckpt_file_sort(sl_ckpt_file *file, sl_error *err)
{
    sl_ckpt_tensor *t = file->tensors;

    if (file->count == 0)
        return SL_OK;
    qsort(t, (size_t)file->count, sizeof *t, by_name);
    for (int64_t i = 1; i < file->count; i++)
        if (strcmp(t[i - 1].name, t[i].name) == 0)
            return sl_fail(err, SL_ERR_DATA, "tensor \"%.200s\" twice", t[i].name);
    return SL_OK;
}

static sl_status map_file(sl_ckpt_file *file, sl_error *err)
{
    if (file->map_bytes == 0)
        return SL_OK; /* refused as too short */
    file->map = mmap(NULL, file->map_bytes, PROT_READ, MAP_PRIVATE, file->fd, 0);
    if (file->map == MAP_FAILED) {
        file->map = NULL;
        return sl_fail_errno(err, "could not map %zu bytes", file->map_bytes);
    }
    return SL_OK;
}

/* By the contents: names are given by people. */
static sl_status parse(sl_ckpt_file *file, sl_error *err)
{
    char start[SL_PTH_MAGIC_BYTES];
    const size_t n = file->map_bytes < sizeof start ? file->map_bytes : sizeof start;
    const sl_status status = sl_file_read(file->fd, file->path, 0, start, n, err);

    if (status != SL_OK)
        return status;
    if (n == 0)
        return sl_fail(err, SL_ERR_DATA, "the file is empty");
    if (sl_pth_is_zip(start, n))
        return sl_pth_parse(file, err);
    if (sl_pth_is_legacy(start, n))
        return sl_fail(err, SL_ERR_DATA,
                       "legacy (non-zip) PyTorch checkpoint; re-save with torch.save");
    return sl_st_parse(file, err);
}

sl_status sl_ckpt_file_init(sl_ckpt_file *file, const char *path, sl_error *err)
{
    sl_status status;

    *file = (sl_ckpt_file){ .fd = -1 };
    status = sl_file_open(path, &file->fd, &file->map_bytes, err);
    if (status != SL_OK)
        return status;
    file->path = strdup(path);
    status = file->path ? map_file(file, err)
                        : sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    if (status == SL_OK)
        status = parse(file, err);
    if (status != SL_OK) {
        sl_error_prefix(err, "\"%s\"", path);
        sl_ckpt_file_fini(file);
    }
    return status;
}

void sl_ckpt_file_fini(sl_ckpt_file *file)
{
    if (file->map)
        munmap(file->map, file->map_bytes);
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    free(file->names);
    free(file->tensors);
    free(file->copies);
    *file = (sl_ckpt_file){ .fd = -1 };
}
