/* image_parts.h - what image.h is made of.  Private to this folder. */
#ifndef SL_ENGINE_MEDIA_IMAGE_PARTS_H
#define SL_ENGINE_MEDIA_IMAGE_PARTS_H

#include "engine/media/image.h"

#include <stdbool.h>

/* A walk over a file's container. */
typedef struct {
    const uint8_t *bytes;
    size_t length;
    int64_t max_pixels;
    bool header_only; /* stop where the size is known */
    uint8_t *kept;    /* NULL, or [length + 1]: takes the parts that a decoder needs */
    size_t kept_bytes;
    sl_image_info info; /* what was found */
} sl_image_walk;

/* Which of the three; SL_ERR_DATA for anything else. */
sl_status sl_image_find_format(sl_image_walk *walk, sl_error *err);
sl_status sl_image_set_size(sl_image_walk *walk, uint32_t width, uint32_t height, sl_error *err);
/* JPEG and WebP: the whole container, and walk->kept as a file of its own. */
sl_status sl_image_walk_jpeg(sl_image_walk *walk, sl_error *err);
sl_status sl_image_walk_webp(sl_image_walk *walk, sl_error *err);

/* Takes a picture row by row, top to bottom: width*3 bytes each. */
typedef struct {
    void (*row)(void *self, const uint8_t *rgb);
    void *self;
} sl_image_sink;

/* PNG: header_only as above, else decodes into the sink. */
sl_status sl_image_read_png(sl_image_walk *walk, const sl_image_sink *sink, sl_error *err);
/* JPEG and WebP, through libav. */
sl_status sl_image_read_av(sl_image_walk *walk, const sl_image_sink *sink, sl_error *err);

static inline uint32_t sl_be16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

static inline uint32_t sl_be32(const uint8_t *at)
{
    return sl_be16(at) << 16 | sl_be16(at + 2);
}

static inline uint32_t sl_le32(const uint8_t *at)
{
    return (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
}

#endif
