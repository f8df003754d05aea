/* Pictures against Pillow's pixels, PNG of every kind, and what is no
 * picture.  Hostile bytes lie in blocks of exactly their size: run it under
 * the sanitizers. */
#include "engine/media/image.h"

#include "base/test.h"
#include "base/test_alloc.h"
#include "engine/media/image_test_png.h"
#include "engine/media/media_test.h"
#include "engine/media/resize.h"

#include <errno.h>

enum { MAX_PIXELS = 1 << 20 };

/* Allocation failure: the n-th allocation of the module fails (0: none).
 * libav's own are not reached. */
/* --- files that Pillow wrote and read --- */

static const struct {
    const char *name;
    int width, height, tolerance;
    const char *file, *rgb;
} samples[] = {
#define FILE(name, width, height, tolerance, file, rgb)                                            \
    { #name, width, height, tolerance, file, rgb },
#include "engine/media/image_test_files.inc"
#undef FILE
};

/* The caller frees it. */
static uint8_t *from_hex(const char *hex, size_t *length)
{
    const size_t n = strlen(hex) / 2;
    uint8_t *bytes = malloc(n);

    SL_CHECK(bytes != NULL);
    for (size_t i = 0; i < n; i++) {
        unsigned value;
        SL_CHECK(sscanf(hex + 2 * i, "%2x", &value) == 1);
        bytes[i] = (uint8_t)value;
    }
    *length = n;
    return bytes;
}

static bool is_readable(size_t i)
{
#ifdef SL_WITH_AV
    (void)i;
    return true;
#else
    return strncmp(samples[i].name, "png", 3) == 0;
#endif
}

SL_TEST(as_pillow_reads_them)
{
    for (size_t i = 0; i < SL_COUNT(samples); i++) {
        size_t length, want_bytes;
        uint8_t *bytes = from_hex(samples[i].file, &length);
        uint8_t *want = from_hex(samples[i].rgb, &want_bytes);
        uint8_t *rgb = NULL;
        sl_image_info info = { .width = -1 };

        SL_CHECK_OK(sl_image_probe(&info, bytes, length, MAX_PIXELS, err));
        SL_CHECK(info.width == samples[i].width && info.height == samples[i].height);
        SL_CHECK(strncasecmp(sl_image_format_name(info.format), samples[i].name, 3) == 0);
        if (is_readable(i)) {
            info.width = -1;
            SL_CHECK_OK(sl_image_decode(&rgb, &info, bytes, length, MAX_PIXELS, err));
            SL_CHECK(info.width == samples[i].width && info.height == samples[i].height);
            SL_CHECK((size_t)info.width * (size_t)info.height * 3 == want_bytes);
            for (size_t k = 0; k < want_bytes; k++)
                if (abs(rgb[k] - want[k]) > samples[i].tolerance)
                    fail_msg("%s: sample %zu is %d, Pillow has %d", samples[i].name, k, rgb[k],
                             want[k]);
        } else {
            SL_CHECK_STATUS(sl_image_decode(&rgb, &info, bytes, length, MAX_PIXELS, err),
                            SL_ERR_UNIMPLEMENTED);
        }
        free(rgb);
        free(want);
        free(bytes);
    }
}

SL_TEST(size_from_the_first_bytes)
{
    for (size_t i = 0; i < SL_COUNT(samples); i++) {
        size_t length, known = 0;
        uint8_t *bytes = from_hex(samples[i].file, &length);

        for (size_t n = 0; n <= length; n++) {
            sl_image_info info = { .width = -1 };
            uint8_t *part = malloc(n ? n : 1); /* of its own, so that reads past it are seen */

            SL_CHECK(part != NULL);
            memcpy(part, bytes, n);
            const sl_status status = sl_image_probe(&info, part, n, MAX_PIXELS, err);
            free(part);
            if (status == SL_OK) {
                SL_CHECK(info.width == samples[i].width && info.height == samples[i].height);
                known = known ? known : n;
            } else {
                SL_CHECK(status == SL_ERR_DATA && info.width == -1 && known == 0);
            }
            sl_error_clear(err);
        }
        SL_CHECK(known > 0 && known < length);
        free(bytes);
    }
}

SL_TEST(decoded_and_resized_at_once)
{
    for (size_t i = 0; i < SL_COUNT(samples); i++) {
        size_t length;
        uint8_t *bytes = from_hex(samples[i].file, &length), *rgb = NULL;
        uint8_t got[32 * 16 * 3], want[32 * 16 * 3];
        sl_image_info info;

        if (is_readable(i)) {
            SL_CHECK_OK(sl_image_decode(&rgb, &info, bytes, length, MAX_PIXELS, err));
            SL_CHECK_OK(sl_resize_rgb(want, (sl_image_size){ 32, 16 }, rgb,
                                      (sl_image_size){ info.width, info.height }, err));
            SL_CHECK_OK(sl_image_decode_resized(got, 32, 16, bytes, length, MAX_PIXELS, err));
            SL_CHECK(memcmp(got, want, sizeof got) == 0);
        }
        SL_CHECK_STATUS(sl_image_decode_resized(got, 0, 16, bytes, length, MAX_PIXELS, err),
                        SL_ERR_INVALID);
        sl_error_clear(err);
        free(rgb);
        free(bytes);
    }
}

/* --- PNG --- */

SL_TEST(png_of_every_kind)
{
    static const struct {
        int color, depths;
    } kinds[] = { { 0, 0x10116 }, { 2, 0x10100 }, { 3, 0x116 }, { 4, 0x10100 }, { 6, 0x10100 } };
    static const int sizes[][2] = {
        { 1, 1 }, { 19, 23 }, { 4, 5 }, { 32, 32 }, { 3, 1 }, { 1, 9 }
    };
    static png_file file;
    int made = 0;

    for (size_t k = 0; k < SL_COUNT(kinds); k++)
        for (int depth = 1; depth <= 16; depth++)
            for (size_t n = 0; n < 2 * SL_COUNT(sizes); n++) {
                const png_spec spec = { .width = sizes[n / 2][0],
                                        .height = sizes[n / 2][1],
                                        .depth = depth,
                                        .color = kinds[k].color,
                                        .interlaced = n & 1 };
                sl_image_info info;
                uint8_t *rgb = NULL;

                if (!(kinds[k].depths >> depth & 1))
                    continue;
                png_make(&file, &spec);
                SL_CHECK_OK(sl_image_decode(&rgb, &info, file.bytes, file.length, MAX_PIXELS, err));
                SL_CHECK(info.format == SL_IMAGE_PNG && info.width == spec.width &&
                         info.height == spec.height);
                SL_CHECK(memcmp(rgb, file.rgb, (size_t)(spec.width * spec.height * 3)) == 0);
                free(rgb);
                made++;
            }
    SL_CHECK(made == 15 * 12);
}

SL_TEST(png_that_was_written_here)
{
    const char *path = test_path("written.png");
    uint8_t pixels[40 * 30 * 3], *rgb = NULL;
    sl_image_info info;

    test_frame(pixels, 40, 30, 3);
    SL_CHECK_OK(sl_png_write(path, pixels, 40, 30, err));
    test_file file = test_read(path);
    unlink(path);
    SL_CHECK_OK(sl_image_decode(&rgb, &info, file.bytes, file.length, 1200, err));
    SL_CHECK(memcmp(rgb, pixels, sizeof pixels) == 0);
    free(rgb);
    rgb = NULL;
    SL_CHECK_STATUS(sl_image_decode(&rgb, &info, file.bytes, file.length, 1199, err),
                    SL_ERR_TOO_LARGE);
    SL_CHECK(strstr(err->message, "40x30") && strstr(err->message, "1199") && !rgb);
    free(file.bytes);
}

/* --- what is no picture --- */

static void expect_refusal(const uint8_t *bytes, size_t length, sl_status want, const char *why,
                           sl_error *err)
{
    uint8_t *rgb = NULL;
    sl_image_info info;
    const sl_status status = sl_image_decode(&rgb, &info, bytes, length, MAX_PIXELS, err);

    if (status != want || rgb || !strstr(err->message, why))
        fail_msg("got \"%s\" (%s), want \"%s\" (...%s...)", sl_status_text(status), err->message,
                 sl_status_text(want), why);
    sl_error_clear(err);
}

SL_TEST(bombs)
{
    static const char webp[] = "RIFF\x12\0\0\0WEBPVP8L\5\0\0\0\x2f\xff\xff\xff\x0f";
    static const char jpeg[] =
        "\xff\xd8\xff\xc0\0\x11\10\xff\xff\xff\xff\3\1\x22\0\2\x11\1\3\x11\1";
    static png_file file;
    const png_spec spec = { .width = 9, .height = 9, .depth = 8, .color = 2 };
    uint8_t *ihdr = file.bytes + 8;

    expect_refusal((const uint8_t *)webp, sizeof webp - 1, SL_ERR_TOO_LARGE, "16384x16384", err);
    expect_refusal((const uint8_t *)jpeg, sizeof jpeg - 1, SL_ERR_TOO_LARGE, "65535x65535", err);
    png_make(&file, &spec);
    ihdr[8] = ihdr[12] = 0x7f;
    const uLong crc = crc32(0, ihdr + 4, 17);
    for (int i = 0; i < 4; i++)
        ihdr[21 + i] = (uint8_t)(crc >> (24 - 8 * i));
    expect_refusal(file.bytes, file.length, SL_ERR_TOO_LARGE, "2130706441x2130706441", err);
}

SL_TEST(jpeg_with_many_scans)
{
    size_t length;
    uint8_t *bytes = from_hex(samples[0].file, &length), many[8192];
    size_t sos = 0, used;

    for (size_t i = 0; i + 1 < length && !sos; i++)
        if (bytes[i] == 0xff && bytes[i + 1] == 0xda)
            sos = i;
    used = sos;
    memcpy(many, bytes, sos);
    for (int i = 0; i < 101; i++, used += 14)
        memcpy(many + used, bytes + sos, 14);
    many[used] = 0xff;
    many[used + 1] = 0xd9;
    expect_refusal(many, used + 2, is_readable(0) ? SL_ERR_DATA : SL_ERR_UNIMPLEMENTED,
                   is_readable(0) ? "100 scans" : "libav", err);
    free(bytes);
}

SL_TEST(kinds_that_are_not_read)
{
    static const char lossless[] = "\xff\xd8\xff\xc3\0\x0b\10\0\4\0\4\1\1\x11\0";
    static const char deep[] = "\xff\xd8\xff\xc0\0\x0b\x0c\0\4\0\4\1\1\x11\0";
    static const char two[] = "\xff\xd8\xff\xc0\0\x0e\10\0\4\0\4\2\1\x11\0\2\x11\0";
    static const char moving[] = "RIFF\x16\0\0\0WEBPVP8X\12\0\0\0\2\0\0\0\7\0\0\7\0\0";

    expect_refusal((const uint8_t *)lossless, 15, SL_ERR_UNIMPLEMENTED, "SOF3", err);
    expect_refusal((const uint8_t *)deep, 15, SL_ERR_UNIMPLEMENTED, "12 bits", err);
    expect_refusal((const uint8_t *)two, 18, SL_ERR_UNIMPLEMENTED, "2 components", err);
    expect_refusal((const uint8_t *)moving, 30, SL_ERR_UNIMPLEMENTED, "animated", err);
    expect_refusal((const uint8_t *)"GIF89a", 6, SL_ERR_DATA, "no PNG, JPEG or WebP", err);
    expect_refusal((const uint8_t *)"", 0, SL_ERR_DATA, "0 bytes", err);
}

SL_TEST(png_damaged_on_purpose)
{
    static png_file file;
    png_spec spec = { .width = 9, .height = 9, .depth = 8, .color = 2, .data_bytes = 200 };

    png_make(&file, &spec);
    expect_refusal(file.bytes, file.length, SL_ERR_DATA, "before the last row", err);
    spec = (png_spec){ .width = 9, .height = 9, .depth = 8, .color = 3 };
    png_make(&file, &spec);
    SL_CHECK(memcmp(file.bytes + 52, "PLTE", 4) == 0);
    file.bytes[52] = 'p'; /* an ancillary chunk */
    expect_refusal(file.bytes, file.length, SL_ERR_DATA, "no palette", err);
}

static uint8_t *copy_of(const uint8_t *bytes, size_t length)
{
    uint8_t *copy = malloc(length ? length : 1);

    SL_CHECK(copy != NULL);
    memcpy(copy, bytes, length);
    return copy;
}

/* Whatever comes out, it comes as a status. */
static sl_status try_decode(const uint8_t *bytes, size_t length, sl_error *err)
{
    uint8_t *copy = copy_of(bytes, length), *rgb = NULL;
    sl_image_info info;
    const sl_status status = sl_image_decode(&rgb, &info, copy, length, MAX_PIXELS, err);

    SL_CHECK((status == SL_OK) == (rgb != NULL));
    SL_CHECK(status == SL_OK || err->message[0]);
    sl_error_clear(err);
    free(rgb);
    free(copy);
    return status;
}

static void cut_and_flip(const uint8_t *bytes, size_t length, sl_error *err)
{
    uint8_t *copy = copy_of(bytes, length);

    for (size_t n = 0; n < length; n++)
        SL_CHECK_STATUS(try_decode(bytes, n, err), SL_ERR_DATA);
    for (size_t bit = 0; bit < 8 * length; bit += 1 + (bit > 4096) * 6) {
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        const sl_status status = try_decode(copy, length, err);
        SL_CHECK(status == SL_OK || status == SL_ERR_DATA || status == SL_ERR_TOO_LARGE ||
                 status == SL_ERR_UNIMPLEMENTED);
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    free(copy);
}

SL_TEST(cut_anywhere_and_every_bit_flipped)
{
    static png_file file;

    for (size_t i = 0; i < SL_COUNT(samples); i++) {
        size_t length;
        uint8_t *bytes = from_hex(samples[i].file, &length);

        if (is_readable(i))
            cut_and_flip(bytes, length, err);
        free(bytes);
    }
    for (int i = 0; i < 4; i++) {
        const png_spec spec = { .width = 9,
                                .height = 7,
                                .depth = i & 2 ? 8 : 4,
                                .color = i & 2 ? 6 : 3,
                                .interlaced = i & 1 };
        png_make(&file, &spec);
        cut_and_flip(file.bytes, file.length, err);
    }
}

SL_TEST(every_allocation_fails_once)
{
    static png_file file;
    const png_spec spec = { .width = 9, .height = 9, .depth = 8, .color = 2, .interlaced = true };
    uint8_t out[4 * 4 * 3];
    int failures = 0;

    png_make(&file, &spec);
    for (int n = 1;; n++) {
        allocations = 0;
        fail_at = n;
        const sl_status status =
            sl_image_decode_resized(out, 4, 4, file.bytes, file.length, MAX_PIXELS, err);
        const bool reached = allocations >= n;
        fail_at = 0;
        if (!reached) {
            SL_CHECK_OK(status);
            break;
        }
        SL_CHECK_STATUS(status, SL_ERR_NO_MEMORY);
        sl_error_clear(err);
        failures++;
    }
    SL_CHECK(failures >= 12);
}

SL_TEST_MAIN(SL_RUN(as_pillow_reads_them), SL_RUN(size_from_the_first_bytes),
             SL_RUN(decoded_and_resized_at_once), SL_RUN(png_of_every_kind),
             SL_RUN(png_that_was_written_here), SL_RUN(bombs), SL_RUN(jpeg_with_many_scans),
             SL_RUN(kinds_that_are_not_read), SL_RUN(png_damaged_on_purpose),
             SL_RUN(cut_anywhere_and_every_bit_flipped), SL_RUN(every_allocation_fails_once))
