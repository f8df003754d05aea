#include "engine/media/media.h"
#include "engine/media/writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIDE_MAX = 16384, FPS_MAX = 240, THREADS_MAX = 64 };

struct sl_media_writer {
    const sl_media_ops *ops;
    void *self;
    sl_media_params params;
    int64_t frame_count;
    bool finished;
    bool failed; /* the file is worthless: only close is left */
};

static const struct {
    sl_media_format format;
    const char *name;
    const char *extension;
    const sl_media_ops *ops;
} formats[] = {
    { SL_MEDIA_MP4, "mp4", ".mp4", &sl_media_mp4_ops },
    { SL_MEDIA_Y4M, "y4m", ".y4m", &sl_media_y4m_ops },
    { SL_MEDIA_PNG, "png", ".png", &sl_media_png_ops },
    { SL_MEDIA_LATENT, "latent", ".safetensors", NULL },
};

bool sl_media_format_parse(const char *text, sl_media_format *out)
{
    for (size_t i = 0; i < SL_COUNT(formats); i++) {
        if (strcmp(text, formats[i].name) == 0) {
            *out = formats[i].format;
            return true;
        }
    }
    return false;
}

const char *sl_media_format_name(sl_media_format format)
{
    SL_ASSERT((size_t)format < SL_COUNT(formats));
    return formats[format].name;
}

const char *sl_media_extension(sl_media_format format)
{
    SL_ASSERT((size_t)format < SL_COUNT(formats));
    return formats[format].extension;
}

static sl_status check_params(sl_media_format format, int width, int height, int fps, int threads,
                              sl_error *err)
{
    if ((size_t)format >= SL_COUNT(formats) || !formats[format].ops)
        return sl_fail(err, SL_ERR_INVALID, "media format %d is not known", (int)format);
    if (width < 2 || width > SIDE_MAX || width % 2 || height < 2 || height > SIDE_MAX || height % 2)
        return sl_fail(err, SL_ERR_INVALID, "frames of %dx%d, expected even sides of 2 to %d",
                       width, height, SIDE_MAX);
    if (fps < 1 || fps > FPS_MAX)
        return sl_fail(err, SL_ERR_INVALID, "%d frames a second, expected 1 to %d", fps, FPS_MAX);
    if (threads < 0 || threads > THREADS_MAX)
        return sl_fail(err, SL_ERR_INVALID, "%d encoder threads, expected 0 to %d", threads,
                       THREADS_MAX);
    return SL_OK;
}

sl_status sl_media_open(sl_media_writer **out, const char *path, sl_media_format format, int width,
                        int height, int fps, int threads, sl_error *err)
{
    sl_media_writer *writer = NULL;
    sl_status status = check_params(format, width, height, fps, threads, err);

    if (status != SL_OK)
        return status;
    writer = calloc(1, sizeof *writer);
    if (writer)
        writer->params.path = strdup(path);
    if (!writer || !writer->params.path) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the writer of \"%s\"", path);
        goto done;
    }
    writer->ops = formats[format].ops;
    writer->params.width = width;
    writer->params.height = height;
    writer->params.fps = fps;
    writer->params.threads = threads > 0 ? threads : 1;
    status = writer->ops->open(&writer->self, &writer->params, err);
    if (status != SL_OK)
        goto done;

    *out = writer;
    writer = NULL; /* handed to the caller */
done:
    sl_media_close(writer);
    return status;
}

sl_status sl_media_write_frame(sl_media_writer *writer, const uint8_t *rgb, sl_error *err)
{
    if (writer->finished || writer->failed)
        return sl_fail(err, SL_ERR_PRECONDITION, "could not write a frame to \"%s\": it is %s",
                       writer->params.path, writer->failed ? "damaged" : "finished");
    const sl_status status = writer->ops->write_frame(writer->self, rgb, err);
    if (status == SL_OK)
        writer->frame_count++;
    else
        writer->failed = true;
    return status;
}

sl_status sl_media_finish(sl_media_writer *writer, sl_error *err)
{
    if (writer->finished || writer->failed)
        return sl_fail(err, SL_ERR_PRECONDITION, "could not finish \"%s\": it is %s",
                       writer->params.path, writer->failed ? "damaged" : "finished");
    if (writer->frame_count == 0)
        return sl_fail(err, SL_ERR_PRECONDITION, "could not finish \"%s\": it has no frames",
                       writer->params.path);
    const sl_status status = writer->ops->finish(writer->self, err);
    if (status == SL_OK)
        writer->finished = true;
    else
        writer->failed = true;
    return status;
}

void sl_media_close(sl_media_writer *writer)
{
    if (!writer)
        return;
    if (writer->ops)
        writer->ops->close(writer->self);
    free(writer->params.path);
    free(writer);
}

sl_status sl_media_file_open(FILE **out, const char *path, sl_error *err)
{
    FILE *file = fopen(path, "wbe");

    if (!file)
        return sl_fail_errno(err, "could not create \"%s\"", path);
    *out = file;
    return SL_OK;
}

sl_status sl_media_file_write(FILE *file, const void *bytes, size_t length, const char *path,
                              sl_error *err)
{
    if (fwrite(bytes, 1, length, file) != length)
        return sl_fail_errno(err, "could not write \"%s\"", path);
    return SL_OK;
}

sl_status sl_media_file_finish(FILE **file, const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    FILE *open_file = *file;

    *file = NULL;
    if (fflush(open_file) != 0)
        status = sl_fail_errno(err, "could not write \"%s\"", path);
    else if (fsync(fileno(open_file)) != 0 && errno != EINVAL) /* EINVAL: not on a disk */
        status = sl_fail_errno(err, "could not sync \"%s\"", path);
    if (fclose(open_file) != 0 && status == SL_OK)
        status = sl_fail_errno(err, "could not close \"%s\"", path);
    return status;
}
