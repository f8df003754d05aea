/* resize.h - pictures to the size of a video, and which size that is.
 *
 * Bilinear with antialias: a triangle filter over the source pixels, widened
 * by the scale where the picture shrinks, weights normalised, computed in f64
 * in both directions and rounded once to uint8, halves up.  torchvision
 * rounds between the directions and has 16-bit weights: +-1.  Source: wan.md
 * 9.3; the filter's bounds are those of PyTorch's _upsample_bilinear2d_aa.
 *
 * Rows are pushed one by one, so that neither the source nor a half-resized
 * picture has to be in memory: only 2*scale + 2 rows of the new width are, at
 * most 64 MiB.
 *
 * Ownership: create/destroy; dst stays the caller's.  Threads: one at a time.
 */
#ifndef SL_ENGINE_MEDIA_RESIZE_H
#define SL_ENGINE_MEDIA_RESIZE_H

#include "base/status.h"

#include <stdint.h>

typedef struct sl_resize sl_resize;

typedef struct {
    int width;
    int height;
} sl_image_size;

/* dst [to.height, to.width, 3]; sizes of 1 to 2^24.  SL_ERR_TOO_LARGE: a picture so
 * long that the rows or the weights need more than that. */
sl_status sl_resize_create(sl_resize **out, sl_image_size from, uint8_t *dst, sl_image_size to,
                           sl_error *err) SL_MUST_CHECK;
/* rgb: from.width*3 bytes; call it from.height times, top to bottom.  dst is
 * complete after the last. */
void sl_resize_push(sl_resize *resize, const uint8_t *rgb);
void sl_resize_destroy(sl_resize *resize); /* NULL is fine */

/* A whole picture at once.  dst and src do not overlap. */
sl_status sl_resize_rgb(uint8_t *dst, sl_image_size to, const uint8_t *src, sl_image_size from,
                        sl_error *err) SL_MUST_CHECK;

/* Adaptive resolution (wan.md 9.2): the size, in multiples of 16, that has
 * about the area of `area` and the picture's aspect ratio.  SL_ERR_INVALID if
 * a side would be 0 or above SL_IMAGE_MAX_SIDE. */
enum { SL_IMAGE_MAX_SIDE = 128 * 16 }; /* 128 tokens: where the rotary table ends */
sl_status sl_image_fit(sl_image_size *out, sl_image_size picture, sl_image_size area,
                       sl_error *err) SL_MUST_CHECK;

#endif
