#include "engine/media/image.h"

#include "base/size.h"
#include "engine/media/image_parts.h"
#include "engine/media/resize.h"

#include <stdlib.h>
#include <string.h>

const char *sl_image_format_name(sl_image_format format)
{
    static const char *const names[] = { "PNG", "JPEG", "WebP" };

    return names[format];
}

sl_status sl_image_probe(sl_image_info *out, const uint8_t *bytes, size_t length,
                         int64_t max_pixels, sl_error *err)
{
    sl_image_walk walk = {
        .bytes = bytes, .length = length, .max_pixels = max_pixels, .header_only = true
    };
    sl_status status = sl_image_find_format(&walk, err);

    if (status != SL_OK)
        return status;
    switch (walk.info.format) {
    case SL_IMAGE_PNG:
        status = sl_image_read_png(&walk, NULL, err);
        break;
    case SL_IMAGE_JPEG:
        status = sl_image_walk_jpeg(&walk, err);
        break;
    case SL_IMAGE_WEBP:
        status = sl_image_walk_webp(&walk, err);
        break;
    }
    if (status == SL_OK)
        *out = walk.info;
    return status;
}

/* info is what the probe said; the walk finds the same again or fails. */
static sl_status decode(const sl_image_info *info, const uint8_t *bytes, size_t length,
                        int64_t max_pixels, const sl_image_sink *sink, sl_error *err)
{
    sl_image_walk walk = {
        .bytes = bytes, .length = length, .max_pixels = max_pixels, .info.format = info->format
    };

    return info->format == SL_IMAGE_PNG ? sl_image_read_png(&walk, sink, err)
                                        : sl_image_read_av(&walk, sink, err);
}

typedef struct {
    uint8_t *at;
    size_t row_bytes;
} row_copy;

static void copy_row(void *self, const uint8_t *rgb)
{
    row_copy *copy = self;

    memcpy(copy->at, rgb, copy->row_bytes);
    copy->at += copy->row_bytes;
}

sl_status sl_image_decode(uint8_t **rgb, sl_image_info *out, const uint8_t *bytes, size_t length,
                          int64_t max_pixels, sl_error *err)
{
    sl_image_info info;
    row_copy copy;
    const sl_image_sink sink = { copy_row, &copy };
    uint8_t *pixels = NULL;
    sl_status status = sl_image_probe(&info, bytes, length, max_pixels, err);

    if (status != SL_OK)
        return status;
    copy.row_bytes = (size_t)info.width * 3;
    pixels = calloc((size_t)info.height, copy.row_bytes);
    copy.at = pixels;
    if (!pixels)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a picture of %dx%d", info.width,
                       info.height);
    status = decode(&info, bytes, length, max_pixels, &sink, err);
    if (status == SL_OK) {
        *rgb = pixels;
        *out = info;
        pixels = NULL;
    }
    free(pixels);
    return status;
}

static void resize_row(void *self, const uint8_t *rgb)
{
    sl_resize_push(self, rgb);
}

sl_status sl_image_decode_resized(uint8_t *rgb, int width, int height, const uint8_t *bytes,
                                  size_t length, int64_t max_pixels, sl_error *err)
{
    sl_image_info info;
    sl_resize *resize = NULL;
    sl_status status = sl_image_probe(&info, bytes, length, max_pixels, err);

    if (status != SL_OK)
        return status;
    status = sl_resize_create(&resize, (sl_image_size){ info.width, info.height }, rgb,
                              (sl_image_size){ width, height }, err);
    if (status == SL_OK) {
        const sl_image_sink sink = { resize_row, resize };
        status = decode(&info, bytes, length, max_pixels, &sink, err);
    }
    sl_resize_destroy(resize);
    return status;
}
