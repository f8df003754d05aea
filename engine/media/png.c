/* png.c - 8-bit RGB PNG through zlib's deflate.
 *
 * Every row uses the Paeth filter: on frames of a video it is within a few
 * percent of choosing one for each row.  No text, no time: the same pixels
 * give the same bytes.
 */
#include "engine/media/media.h"
#include "engine/media/png_filter.h"
#include "engine/media/writer.h"

#include "base/size.h"

#include <zlib.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 256 * 1024, FILTER_PAETH = 4 };

typedef struct {
    FILE *file;
    const char *path;
    z_stream deflate;
    uint8_t *compressed; /* [CHUNK_BYTES] */
    uint8_t *rows[2];    /* pixels of this row and the one above, 3 zero bytes in front */
    uint8_t *filtered;   /* filter type, then a row */
} png_stream;

static void put_u32(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

static sl_status write_chunk(const png_stream *png, const char *type, const uint8_t *bytes,
                             size_t length, sl_error *err)
{
    uint8_t head[8];
    uint8_t tail[4];
    uLong crc = crc32(0, (const Bytef *)type, 4);

    if (length > 0)
        crc = crc32(crc, bytes, (uInt)length);
    put_u32(head, (uint32_t)length);
    memcpy(head + 4, type, 4);
    put_u32(tail, (uint32_t)crc);
    sl_status status = sl_media_file_write(png->file, head, sizeof head, png->path, err);
    if (status == SL_OK)
        status = sl_media_file_write(png->file, bytes, length, png->path, err);
    if (status == SL_OK)
        status = sl_media_file_write(png->file, tail, sizeof tail, png->path, err);
    return status;
}

static sl_status write_header(const png_stream *png, int64_t width, int64_t height, sl_error *err)
{
    static const uint8_t signature[8] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n' };
    uint8_t ihdr[13] = { 0 };

    put_u32(ihdr, (uint32_t)width);
    put_u32(ihdr + 4, (uint32_t)height);
    ihdr[8] = 8; /* bits */
    ihdr[9] = 2; /* RGB */
    const sl_status status =
        sl_media_file_write(png->file, signature, sizeof signature, png->path, err);
    if (status != SL_OK)
        return status;
    return write_chunk(png, "IHDR", ihdr, sizeof ihdr, err);
}

/* Runs deflate over its input; full chunks are written out. */
static sl_status compress_input(png_stream *png, int flush, sl_error *err)
{
    int code = Z_OK;

    do {
        code = deflate(&png->deflate, flush);
        SL_ASSERT(code != Z_STREAM_ERROR);
        if (png->deflate.avail_out == 0 || code == Z_STREAM_END) {
            const size_t length = CHUNK_BYTES - png->deflate.avail_out;
            const sl_status status = write_chunk(png, "IDAT", png->compressed, length, err);
            if (status != SL_OK)
                return status;
            png->deflate.next_out = png->compressed;
            png->deflate.avail_out = CHUNK_BYTES;
        }
    } while (flush == Z_FINISH ? code != Z_STREAM_END : png->deflate.avail_in > 0);
    return SL_OK;
}

static sl_status write_row(png_stream *png, size_t row_bytes, sl_error *err)
{
    const uint8_t *now = png->rows[0];
    const uint8_t *above = png->rows[1];

    png->filtered[0] = FILTER_PAETH;
    for (size_t i = 3; i < row_bytes + 3; i++)
        png->filtered[i - 2] = (uint8_t)(now[i] - sl_png_paeth(now[i - 3], above[i], above[i - 3]));
    png->deflate.next_in = png->filtered;
    png->deflate.avail_in = (uInt)(row_bytes + 1);
    return compress_input(png, Z_NO_FLUSH, err);
}

static sl_status write_rows(png_stream *png, const uint8_t *const *frames, int frame_count,
                            int width, int height, sl_error *err)
{
    const size_t frame_row_bytes = (size_t)width * 3;
    const size_t row_bytes = frame_row_bytes * (size_t)frame_count;
    sl_status status = SL_OK;

    for (int row = 0; row < height && status == SL_OK; row++) {
        uint8_t *const old = png->rows[1];
        png->rows[1] = png->rows[0];
        png->rows[0] = old;
        for (int i = 0; i < frame_count; i++)
            memcpy(png->rows[0] + 3 + frame_row_bytes * (size_t)i,
                   frames[i] + frame_row_bytes * (size_t)row, frame_row_bytes);
        status = write_row(png, row_bytes, err);
    }
    return status;
}

sl_status sl_png_write_strip(FILE *file, const char *path, const uint8_t *const *frames,
                             int frame_count, int width, int height, sl_error *err)
{
    png_stream png = { .file = file, .path = path };
    bool deflating = false;
    sl_status status = SL_OK;
    int64_t pixels = 0;

    if (width < 1 || height < 1 || frame_count < 1 || !sl_count_mul(width, frame_count, &pixels) ||
        pixels > (INT_MAX - 16) / 3)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\": %d images of %dx%d do not fit in one PNG",
                       path, frame_count, width, height);
    const size_t row_bytes = (size_t)pixels * 3;
    png.compressed = malloc(CHUNK_BYTES);
    png.rows[0] = calloc(1, row_bytes + 3);
    png.rows[1] = calloc(1, row_bytes + 3);
    png.filtered = malloc(row_bytes + 1);
    if (png.compressed && png.rows[0] && png.rows[1] && png.filtered)
        deflating = deflateInit(&png.deflate, 6) == Z_OK;
    if (!deflating) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", path);
        goto done;
    }
    png.deflate.next_out = png.compressed;
    png.deflate.avail_out = CHUNK_BYTES;
    status = write_header(&png, pixels, height, err);
    if (status == SL_OK)
        status = write_rows(&png, frames, frame_count, width, height, err);
    if (status == SL_OK)
        status = compress_input(&png, Z_FINISH, err);
    if (status == SL_OK)
        status = write_chunk(&png, "IEND", png.compressed, 0, err);
done:
    if (deflating)
        deflateEnd(&png.deflate);
    free(png.filtered);
    free(png.rows[1]);
    free(png.rows[0]);
    free(png.compressed);
    return status;
}

sl_status sl_png_write(const char *path, const uint8_t *rgb, int width, int height, sl_error *err)
{
    FILE *file = NULL;
    sl_status status = sl_media_file_open(&file, path, err);

    if (status != SL_OK)
        return status;
    status = sl_png_write_strip(file, path, &rgb, 1, width, height, err);
    if (status == SL_OK)
        status = sl_media_file_finish(&file, path, err);
    if (file)
        fclose(file);
    return status;
}

/* --- the writer: frames are kept until all of them are known --- */

typedef struct {
    const sl_media_params *params;
    FILE *file;
    uint8_t **frames;
    int frame_count;
} png_writer;

static void png_close(void *ptr)
{
    png_writer *self = ptr;

    if (!self)
        return;
    if (self->file)
        fclose(self->file);
    for (int i = 0; i < self->frame_count; i++)
        free(self->frames[i]);
    free(self->frames);
    free(self);
}

/* The file is made at once, so that a bad path is known before the work. */
static sl_status png_open(void **out, const sl_media_params *params, sl_error *err)
{
    png_writer *self = calloc(1, sizeof *self);

    if (!self)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", params->path);
    self->params = params;
    const sl_status status = sl_media_file_open(&self->file, params->path, err);
    if (status != SL_OK) {
        free(self);
        return status;
    }
    *out = self;
    return SL_OK;
}

static sl_status png_write_frame(void *ptr, const uint8_t *rgb, sl_error *err)
{
    png_writer *self = ptr;
    const size_t bytes = (size_t)self->params->width * (size_t)self->params->height * 3;

    if (self->frame_count == (INT_MAX - 16) / 3 / self->params->width)
        return sl_fail(err, SL_ERR_TOO_LARGE, "\"%s\": no more than %d frames fit in one PNG",
                       self->params->path, self->frame_count);
    uint8_t **frames = realloc(self->frames, ((size_t)self->frame_count + 1) * sizeof *frames);
    uint8_t *copy = malloc(bytes);
    if (frames)
        self->frames = frames;
    if (!frames || !copy) {
        free(copy);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for frame %d of \"%s\"",
                       self->frame_count, self->params->path);
    }
    memcpy(copy, rgb, bytes);
    self->frames[self->frame_count++] = copy;
    return SL_OK;
}

static sl_status png_finish(void *ptr, sl_error *err)
{
    png_writer *self = ptr;
    const sl_media_params *params = self->params;
    const sl_status status =
        sl_png_write_strip(self->file, params->path, (const uint8_t *const *)self->frames,
                           self->frame_count, params->width, params->height, err);

    if (status != SL_OK)
        return status;
    return sl_media_file_finish(&self->file, params->path, err);
}

const sl_media_ops sl_media_png_ops = { png_open, png_write_frame, png_finish, png_close };
