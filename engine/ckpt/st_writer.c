/* Writing .safetensors: to "<path>.partial", renamed when complete. */
#include "engine/ckpt/ckpt.h"

#include "base/size.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sl_st_writer {
    char *path, *partial;
    int fd;
    FILE *header; /* memory stream into header_text; NULL once written */
    char *header_text;
    size_t header_bytes;
    int64_t declared;
    size_t data_bytes;
    atomic_size_t written_bytes;
    size_t data_offset; /* in the file, once the header is written */
};

sl_status sl_st_writer_create(sl_st_writer **out, const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    sl_st_writer *writer = calloc(1, sizeof *writer);

    if (writer) {
        writer->fd = -1;
        writer->path = strdup(path);
        if (asprintf(&writer->partial, "%s.partial", path) < 0)
            writer->partial = NULL;
        writer->header = open_memstream(&writer->header_text, &writer->header_bytes);
    }
    if (!writer || !writer->path || !writer->partial || !writer->header) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for writing \"%s\"", path);
        goto done;
    }
    writer->fd = open(writer->partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (writer->fd < 0) {
        status = sl_fail_errno(err, "could not create \"%s\"", writer->partial);
        goto done;
    }
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", writer->header);

    *out = writer;
    writer = NULL;
done:
    sl_st_writer_destroy(writer);
    return status;
}

static void put_json_string(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c < 0x20)
            fprintf(f, "\\u%04x", c);
        else {
            if (c == '"' || c == '\\')
                fputc('\\', f);
            fputc(c, f);
        }
    }
    fputc('"', f);
}

sl_status sl_st_writer_declare(sl_st_writer *writer, const char *name, sl_dtype dtype, int rank,
                               const int64_t *dim, sl_error *err)
{
    int64_t count = 1;
    size_t size_bytes, end;

    SL_ASSERT(writer->header && rank >= 0 && rank <= SL_MAX_RANK);
    for (int i = 0; i < rank; i++)
        if (!sl_count_mul(count, dim[i], &count))
            return sl_fail(err, SL_ERR_INVALID, "tensor \"%s\": too many elements", name);
    if (!sl_size_mul((size_t)count, sl_dtype_bytes(dtype), &size_bytes) ||
        !sl_size_add(writer->data_bytes, size_bytes, &end))
        return sl_fail(err, SL_ERR_INVALID, "tensor \"%s\": too many bytes", name);

    fputc(',', writer->header);
    put_json_string(writer->header, name);
    fprintf(writer->header, ":{\"dtype\":\"%s\",\"shape\":[", sl_dtype_name(dtype));
    for (int i = 0; i < rank; i++)
        fprintf(writer->header, "%s%" PRId64, i ? "," : "", dim[i]);
    fprintf(writer->header, "],\"data_offsets\":[%zu,%zu]}", writer->data_bytes, end);
    if (ferror(writer->header))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the header of \"%s\"",
                       writer->path);
    writer->data_bytes = end;
    writer->declared++;
    return SL_OK;
}

static sl_status write_all(sl_st_writer *writer, size_t offset, const void *bytes,
                           size_t size_bytes, sl_error *err)
{
    const char *at = bytes;

    while (size_bytes > 0) {
        const ssize_t n = pwrite(writer->fd, at, size_bytes, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sl_fail_errno(err, "could not write %zu bytes to \"%s\"", size_bytes,
                                 writer->partial);
        at += n;
        offset += (size_t)n;
        size_bytes -= (size_t)n;
    }
    return SL_OK;
}

/* Pads with spaces, so that the data starts at a multiple of 8 bytes. */
static sl_status write_header(sl_st_writer *writer, sl_error *err)
{
    uint64_t length;
    sl_status status;

    fputc('}', writer->header);
    fflush(writer->header);
    while (writer->header_bytes % 8 != 0) {
        fputc(' ', writer->header);
        fflush(writer->header);
    }
    const bool failed = ferror(writer->header) != 0;
    if (fclose(writer->header) != 0 || failed) {
        writer->header = NULL;
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the header of \"%s\"",
                       writer->path);
    }
    writer->header = NULL;
    length = htole64(writer->header_bytes);
    status = write_all(writer, 0, &length, sizeof length, err);
    if (status == SL_OK)
        status = write_all(writer, sizeof length, writer->header_text, writer->header_bytes, err);
    writer->data_offset = sizeof length + writer->header_bytes;
    return status;
}

sl_status sl_st_writer_begin(sl_st_writer *writer, sl_error *err)
{
    SL_ASSERT(writer->header);
    return write_header(writer, err);
}

sl_status sl_st_writer_write_at(sl_st_writer *writer, size_t offset, const void *bytes,
                                size_t size_bytes, sl_error *err)
{
    SL_ASSERT(!writer->header);
    if (offset > writer->data_bytes || size_bytes > writer->data_bytes - offset)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\": %zu bytes at %zu, of %zu declared",
                       writer->path, size_bytes, offset, writer->data_bytes);
    const sl_status status =
        write_all(writer, writer->data_offset + offset, bytes, size_bytes, err);
    if (status == SL_OK)
        atomic_fetch_add(&writer->written_bytes, size_bytes);
    return status;
}

sl_status sl_st_writer_write(sl_st_writer *writer, const void *bytes, size_t size_bytes,
                             sl_error *err)
{
    const size_t written = writer->written_bytes;
    sl_status status = SL_OK;

    if (size_bytes > writer->data_bytes - written)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\": %zu bytes more than the %zu declared",
                       writer->path, size_bytes - (writer->data_bytes - written),
                       writer->data_bytes);
    if (writer->header)
        status = write_header(writer, err);
    if (status == SL_OK)
        status = sl_st_writer_write_at(writer, written, bytes, size_bytes, err);
    return status;
}

sl_status sl_st_writer_finish(sl_st_writer *writer, sl_error *err)
{
    const size_t written = writer->written_bytes;
    sl_status status = SL_OK;
    int fd;

    if (written != writer->data_bytes)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\": %zu of %zu declared bytes were written",
                       writer->path, written, writer->data_bytes);
    if (writer->header)
        status = write_header(writer, err);
    if (status != SL_OK)
        return status;
    if (fsync(writer->fd) != 0)
        return sl_fail_errno(err, "could not sync \"%s\"", writer->partial);
    fd = writer->fd;
    writer->fd = -1;
    if (close(fd) != 0)
        return sl_fail_errno(err, "could not close \"%s\"", writer->partial);
    if (rename(writer->partial, writer->path) != 0)
        return sl_fail_errno(err, "could not rename \"%s\"", writer->partial);
    free(writer->partial);
    writer->partial = NULL; /* nothing left to remove */
    return SL_OK;
}

void sl_st_writer_destroy(sl_st_writer *writer)
{
    if (!writer)
        return;
    if (writer->fd >= 0)
        close(writer->fd);
    if (writer->partial)
        unlink(writer->partial);
    if (writer->header)
        fclose(writer->header);
    free(writer->header_text);
    free(writer->partial);
    free(writer->path);
    free(writer);
}
