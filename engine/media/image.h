/* image.h - pictures in: PNG, JPEG and WebP from memory to RGB24.
 *
 * As Pillow's convert("RGB") sees them, since that is what the reference
 * feeds its model: alpha is dropped, not composited; palettes and gray become
 * RGB; 16-bit samples keep their high byte; an EXIF orientation is ignored.
 * Of an animated PNG the default picture; an animated WebP is refused.
 *
 * The container is walked here first, strictly: a file that is cut or does
 * not add up is refused before anything is allocated for it, and the decoder
 * is handed only what it needs (no text, profile, alpha or EXIF chunks).  PNG
 * is decoded here row by row, two rows in memory (the whole picture if it is
 * interlaced); JPEG and WebP through libav, in builds that have it.
 *
 * Memory: what is stated below, plus at most 12 bytes a pixel and a copy of
 * the file while JPEG or WebP decodes.  Threads: any; no state.
 */
#ifndef SL_ENGINE_MEDIA_IMAGE_H
#define SL_ENGINE_MEDIA_IMAGE_H

#include "base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef enum {
    SL_IMAGE_PNG,
    SL_IMAGE_JPEG,
    SL_IMAGE_WEBP,
} sl_image_format;

typedef struct {
    sl_image_format format;
    int width;
    int height;
} sl_image_info;

const char *sl_image_format_name(sl_image_format format); /* "PNG", "JPEG", "WebP" */

/* Reads the header only; `bytes` may be the first part of a file, provided
 * that the size is in it (64 KiB do unless a JPEG carries a large profile).
 * All functions here: SL_ERR_TOO_LARGE above max_pixels, SL_ERR_UNIMPLEMENTED
 * for kinds of the three formats that are not read, SL_ERR_DATA for everything
 * else that is wrong with the bytes. */
sl_status sl_image_probe(sl_image_info *out, const uint8_t *bytes, size_t length,
                         int64_t max_pixels, sl_error *err) SL_MUST_CHECK;

/* *rgb: [height, width, 3], malloc'd, the caller's to free. */
sl_status sl_image_decode(uint8_t **rgb, sl_image_info *out, const uint8_t *bytes, size_t length,
                          int64_t max_pixels, sl_error *err) SL_MUST_CHECK;

/* The same followed by sl_resize_rgb (resize.h) into the caller's rgb
 * [height, width, 3], without the picture at its own size in between.  After
 * a failure rgb holds anything. */
sl_status sl_image_decode_resized(uint8_t *rgb, int width, int height, const uint8_t *bytes,
                                  size_t length, int64_t max_pixels, sl_error *err) SL_MUST_CHECK;

#endif
