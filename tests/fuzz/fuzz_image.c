/* fuzz_image.c - the input is a picture: its header, its container, and PNG to
 * the last pixel.  libav's decoders are not run: they are not ours to fuzz. */
#include "engine/media/image_parts.h"
#include "engine/media/resize.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

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

/* Changed bytes hardly ever keep a chunk's CRC: here they do. */
static void repair_png(uint8_t *bytes, size_t size)
{
    for (size_t at = 8, length; size - at >= 12; at += 12 + length) {
        length = sl_be32(bytes + at);
        if (length > size - at - 12)
            return;
        const uLong crc = crc32(0, bytes + at + 4, (uInt)length + 4);
        for (int i = 0; i < 4; i++)
            bytes[at + 8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
    }
}

static void decode_png(const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    uint8_t rgb[16 * 16 * 3], *copy = malloc(size);

    SL_ASSERT(copy);
    memcpy(copy, data, size);
    repair_png(copy, size);
    const sl_status status = sl_image_decode_resized(rgb, 16, 16, copy, size, MAX_PIXELS, &err);
    SL_ASSERT(status == SL_OK || (is_refusal(status) && err.message[0]));
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    sl_image_info info;
    const sl_status status = sl_image_probe(&info, data, size, MAX_PIXELS, &err);

    SL_ASSERT(status == SL_OK || (is_refusal(status) && err.message[0]));
    if (size >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0)
        decode_png(data, size);
    if (status != SL_OK)
        return 0;
    SL_ASSERT(info.width > 0 && info.height > 0 && (int64_t)info.width * info.height <= MAX_PIXELS);
    if (info.format != SL_IMAGE_PNG)
        walk_container(&info, data, size);
    return 0;
}
