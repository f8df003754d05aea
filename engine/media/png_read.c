/* png_read.c - PNG (ISO/IEC 15948), all colour types, depths and Adam7.
 *
 * Two passes over the file: the first checks the chunks (order, CRC, nothing
 * critical that is not understood), the second inflates the IDAT chunks row
 * by row.  Ancillary chunks are skipped unread.
 */
#include "engine/media/image_parts.h"
#include "engine/media/png_filter.h"

#include <zlib.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { GRAY = 0, RGB = 2, PALETTE = 3, GRAY_ALPHA = 4, RGB_ALPHA = 6 };

typedef struct {
    sl_image_walk *walk;
    int depth; /* bits of a sample */
    int color; /* GRAY ... */
    int channels;
    bool interlaced;
    const uint8_t *palette; /* [256, 3]; what the file leaves out is black */
    uint8_t palette_bytes[768];
    size_t idat; /* where the chunk is that is being inflated */
    z_stream inflate;
    uint8_t *rows[2]; /* this row and the one above, 8 zero bytes in front */
    uint8_t *rgb;     /* one row, or the whole picture if interlaced */
} png;

/* --- first pass --- */

static sl_status read_ihdr(png *p, sl_error *err)
{
    /* depths that are allowed, by colour type, as bits 1 << depth */
    static const uint32_t depths[7] = { [GRAY] = 0x10116,
                                        [RGB] = 0x10100,
                                        [PALETTE] = 0x116,
                                        [GRAY_ALPHA] = 0x10100,
                                        [RGB_ALPHA] = 0x10100 };
    static const int channels[7] = { 1, 0, 3, 1, 2, 0, 4 };
    const uint8_t *chunk = p->walk->bytes + 8;

    if (p->walk->length < 33)
        return sl_fail(err, SL_ERR_DATA, "the PNG picture is cut off after %zu bytes",
                       p->walk->length);
    if (sl_be32(chunk) != 13 || memcmp(chunk + 4, "IHDR", 4) != 0 ||
        sl_be32(chunk + 21) != crc32(0, chunk + 4, 17))
        return sl_fail(err, SL_ERR_DATA, "the PNG picture's header is damaged");
    p->depth = chunk[16];
    p->color = chunk[17];
    p->interlaced = chunk[20] == 1;
    if (p->color > 6 || p->depth > 16 || !(depths[p->color] >> p->depth & 1) || chunk[18] != 0 ||
        chunk[19] != 0 || chunk[20] > 1)
        return sl_fail(err, SL_ERR_DATA,
                       "PNG picture of depth %d, color type %d, compression %d, filter %d, "
                       "interlace %d",
                       chunk[16], chunk[17], chunk[18], chunk[19], chunk[20]);
    p->channels = channels[p->color];
    return sl_image_set_size(p->walk, sl_be32(chunk + 8), sl_be32(chunk + 12), err);
}

static sl_status read_palette(png *p, const uint8_t *bytes, size_t length, sl_error *err)
{
    if (p->palette || p->idat != 0 || length % 3 != 0 || length == 0 || length > 768)
        return sl_fail(err, SL_ERR_DATA, "the PNG picture has a bad palette (%zu bytes)", length);
    memcpy(p->palette_bytes, bytes, length);
    p->palette = p->palette_bytes;
    return SL_OK;
}

/* Bytes of the chunk's data, or -1 if it does not fit the file. */
static int64_t chunk_length(const png *p, size_t at)
{
    if (p->walk->length - at < 12 || sl_be32(p->walk->bytes + at) > p->walk->length - at - 12)
        return -1;
    return (int64_t)sl_be32(p->walk->bytes + at);
}

static sl_status check_chunk(png *p, size_t at, size_t length, size_t *idat_end, sl_error *err)
{
    const uint8_t *type = p->walk->bytes + at + 4;

    if (type[0] & 0x20) /* ancillary */
        return SL_OK;
    if (sl_be32(type + 4 + length) != crc32(0, type, (uInt)length + 4))
        return sl_fail(err, SL_ERR_DATA, "a chunk of the PNG picture is damaged (byte %zu)", at);
    if (memcmp(type, "PLTE", 4) == 0)
        return read_palette(p, type + 4, length, err);
    if (memcmp(type, "IDAT", 4) != 0)
        return sl_fail(err, SL_ERR_DATA, "the PNG picture has an unknown chunk at byte %zu", at);
    if (p->idat != 0 && *idat_end != at)
        return sl_fail(err, SL_ERR_DATA, "the PNG picture's data is in two places");
    if (p->idat == 0)
        p->idat = at;
    *idat_end = at + 12 + length;
    return SL_OK;
}

static sl_status check_chunks(png *p, sl_error *err)
{
    size_t at = 33, idat_end = 0;

    for (;;) {
        const int64_t length = chunk_length(p, at);

        if (length < 0)
            return sl_fail(err, SL_ERR_DATA, "the PNG picture is cut off after %zu bytes",
                           p->walk->length);
        if (memcmp(p->walk->bytes + at + 4, "IEND", 4) == 0)
            break;
        const sl_status status = check_chunk(p, at, (size_t)length, &idat_end, err);
        if (status != SL_OK)
            return status;
        at += 12 + (size_t)length;
    }
    if (p->idat == 0)
        return sl_fail(err, SL_ERR_DATA, "the PNG picture has no data");
    if (p->color == PALETTE && !p->palette)
        return sl_fail(err, SL_ERR_DATA, "the PNG picture has no palette");
    return SL_OK;
}

/* --- second pass --- */

static void point_at_chunk(png *p)
{
    p->inflate.next_in = (Bytef *)(uintptr_t)(p->walk->bytes + p->idat + 8);
    p->inflate.avail_in = sl_be32(p->walk->bytes + p->idat);
}

/* Exactly so many bytes out of the IDAT chunks. */
static sl_status inflate_bytes(png *p, uint8_t *out, size_t length, sl_error *err)
{
    p->inflate.next_out = out;
    p->inflate.avail_out = (uInt)length;
    while (p->inflate.avail_out > 0) {
        const int code = inflate(&p->inflate, Z_NO_FLUSH);

        if (code == Z_MEM_ERROR)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a PNG picture");
        if (p->inflate.avail_out == 0)
            break;
        if (code == Z_OK || code == Z_BUF_ERROR) {
            const size_t next = p->idat + 12 + sl_be32(p->walk->bytes + p->idat);
            if (p->inflate.avail_in == 0 && memcmp(p->walk->bytes + next + 4, "IDAT", 4) == 0) {
                p->idat = next; /* check_chunks has seen it */
                point_at_chunk(p);
                continue;
            }
        }
        return sl_fail(err, SL_ERR_DATA, "the PNG picture's compressed data %s",
                       code < 0 && code != Z_BUF_ERROR ? "is damaged" : "ends before the last row");
    }
    return SL_OK;
}

/* row and above have `step` bytes (a pixel, at least 1) of zeros in front. */
static sl_status unfilter(int filter, uint8_t *row, const uint8_t *above, size_t row_bytes,
                          size_t step, sl_error *err)
{
    const uint8_t *left = row - step, *corner = above - step;

    switch (filter) {
    case 0:
        break;
    case 1:
        for (size_t i = 0; i < row_bytes; i++)
            row[i] = (uint8_t)(row[i] + left[i]);
        break;
    case 2:
        for (size_t i = 0; i < row_bytes; i++)
            row[i] = (uint8_t)(row[i] + above[i]);
        break;
    case 3:
        for (size_t i = 0; i < row_bytes; i++)
            row[i] = (uint8_t)(row[i] + (left[i] + above[i]) / 2);
        break;
    case 4:
        for (size_t i = 0; i < row_bytes; i++)
            row[i] = (uint8_t)(row[i] + sl_png_paeth(left[i], above[i], corner[i]));
        break;
    default:
        return sl_fail(err, SL_ERR_DATA, "a row of the PNG picture has filter %d", filter);
    }
    return SL_OK;
}

/* Sample i of a row, as stored; of 16 bits the high byte. */
static uint8_t sample(const png *p, const uint8_t *row, size_t i)
{
    if (p->depth == 8)
        return row[i];
    if (p->depth == 16)
        return row[2 * i];
    const size_t bit = i * (size_t)p->depth;
    return (uint8_t)(row[bit / 8] >> (8 - p->depth - (int)(bit % 8)) & ((1 << p->depth) - 1));
}

static void to_rgb(const png *p, const uint8_t *row, size_t i, uint8_t *rgb)
{
    const size_t at = i * (size_t)p->channels;

    if (p->color == PALETTE) {
        memcpy(rgb, p->palette_bytes + 3 * (size_t)sample(p, row, at), 3);
    } else if (p->color & RGB) {
        for (size_t c = 0; c < 3; c++)
            rgb[c] = sample(p, row, at + c);
    } else {
        const int scale = p->depth < 8 ? 255 / ((1 << p->depth) - 1) : 1;
        memset(rgb, sample(p, row, at) * scale, 3);
    }
}

/* One pass of Adam7, or all of a picture that is not interlaced. */
typedef struct {
    uint8_t x, y, dx, dy;
} png_pass;

static sl_status read_pass(png *p, const png_pass *pass, const sl_image_sink *sink, sl_error *err)
{
    const size_t width = (size_t)p->walk->info.width, height = (size_t)p->walk->info.height;
    const size_t columns = width <= pass->x ? 0 : (width - pass->x - 1) / pass->dx + 1;
    const size_t bits = (size_t)p->depth * (size_t)p->channels;
    const size_t row_bytes = (columns * bits + 7) / 8;
    sl_status status = SL_OK;

    if (columns == 0)
        return SL_OK;
    memset(p->rows[0], 0, 8 + row_bytes);
    memset(p->rows[1], 0, 8 + row_bytes);
    for (size_t y = pass->y; y < height; y += pass->dy) {
        uint8_t *row = p->rows[0] + 8, *rgb = p->rgb;
        uint8_t filter;

        status = inflate_bytes(p, &filter, 1, err);
        if (status == SL_OK)
            status = inflate_bytes(p, row, row_bytes, err);
        if (status == SL_OK)
            status = unfilter(filter, row, p->rows[1] + 8, row_bytes, bits < 8 ? 1 : bits / 8, err);
        if (status != SL_OK)
            return status;
        if (p->interlaced)
            rgb += 3 * (y * width + pass->x);
        for (size_t i = 0; i < columns; i++)
            to_rgb(p, row, i, rgb + 3 * i * pass->dx);
        if (!p->interlaced)
            sink->row(sink->self, rgb);
        p->rows[0] = p->rows[1];
        p->rows[1] = row - 8;
    }
    return SL_OK;
}

static sl_status read_pixels(png *p, const sl_image_sink *sink, sl_error *err)
{
    static const png_pass whole = { 0, 0, 1, 1 };
    static const png_pass adam7[7] = { { 0, 0, 8, 8 }, { 4, 0, 8, 8 }, { 0, 4, 4, 8 },
                                       { 2, 0, 4, 4 }, { 0, 2, 2, 4 }, { 1, 0, 2, 2 },
                                       { 0, 1, 1, 2 } };
    const size_t width = (size_t)p->walk->info.width, height = (size_t)p->walk->info.height;
    sl_status status = SL_OK;

    if (!p->interlaced)
        return read_pass(p, &whole, sink, err);
    for (int i = 0; i < 7 && status == SL_OK; i++)
        status = read_pass(p, &adam7[i], sink, err);
    for (size_t y = 0; y < height && status == SL_OK; y++)
        sink->row(sink->self, p->rgb + 3 * y * width);
    return status;
}

/* Everything is bounded by max_pixels: at most 8 bytes a pixel in a row. */
static sl_status allocate(png *p, sl_error *err)
{
    const size_t width = (size_t)p->walk->info.width, height = (size_t)p->walk->info.height;

    if (width > UINT_MAX / 8)
        return sl_fail(err, SL_ERR_TOO_LARGE, "PNG picture with %zu pixels in a row", width);
    p->rows[0] = malloc(8 + 8 * width);
    p->rows[1] = malloc(8 + 8 * width);
    p->rgb = calloc(width * (p->interlaced ? height : 1), 3);
    if (!p->rows[0] || !p->rows[1] || !p->rgb)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a PNG picture of %zux%zu", width,
                       height);
    return SL_OK;
}

sl_status sl_image_read_png(sl_image_walk *walk, const sl_image_sink *sink, sl_error *err)
{
    png p = { .walk = walk };
    bool inflating = false;
    sl_status status = read_ihdr(&p, err);

    if (status != SL_OK || walk->header_only)
        return status;
    status = check_chunks(&p, err);
    if (status == SL_OK)
        status = allocate(&p, err);
    if (status != SL_OK)
        goto done;
    point_at_chunk(&p);
    inflating = inflateInit(&p.inflate) == Z_OK;
    if (!inflating) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a PNG picture");
        goto done;
    }
    status = read_pixels(&p, sink, err);
done:
    if (inflating)
        inflateEnd(&p.inflate);
    free(p.rgb);
    free(p.rows[1]);
    free(p.rows[0]);
    return status;
}
