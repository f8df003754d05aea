/* fuzz_image.c - the input is a picture: its header, its container, and PNG to
 * the last pixel.  libav's decoders are not run: they are not ours to fuzz. */
#include "engine/media/image_parts.h"
#include "engine/media/resize.h"

#include <stdlib.h>

enum { MAX_PIXELS = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_refusal(sl_status status)
{
    return status == SL_ERR_DATA || status == SL_ERR_TOO_LARGE || status == SL_ERR_UNIMPLEMENTED;
}

static void walk_container(const sl_image_info *info, const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    sl_image_walk walk = {
        .bytes = data, .length = size, .max_pixels = MAX_PIXELS, .info.format = info->format
    };

    walk.kept = malloc(size + 1);
    SL_ASSERT(walk.kept);
    const sl_status status = info->format == SL_IMAGE_JPEG ? sl_image_walk_jpeg(&walk, &err)
                                                           : sl_image_walk_webp(&walk, &err);
    SL_ASSERT(status == SL_OK || is_refusal(status));
    SL_ASSERT(walk.kept_bytes <= size + 1);
    SL_ASSERT(status != SL_OK ||
              (walk.info.width == info->width && walk.info.height == info->height));
    free(walk.kept);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    sl_image_info info;
    uint8_t rgb[16 * 16 * 3];
    sl_status status = sl_image_probe(&info, data, size, MAX_PIXELS, &err);

    SL_ASSERT(status == SL_OK || (is_refusal(status) && err.message[0]));
    if (status != SL_OK)
        return 0;
    SL_ASSERT(info.width > 0 && info.height > 0 && (int64_t)info.width * info.height <= MAX_PIXELS);
    if (info.format == SL_IMAGE_PNG) {
        status = sl_image_decode_resized(rgb, 16, 16, data, size, MAX_PIXELS, &err);
        SL_ASSERT(status == SL_OK || is_refusal(status));
    } else {
        walk_container(&info, data, size);
    }
    return 0;
}
