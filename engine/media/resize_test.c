#include "engine/media/resize.h"

#include "base/test.h"

#include <string.h>

static uint8_t *random_rgb(int width, int height)
{
    const size_t n = (size_t)width * (size_t)height * 3;
    uint8_t *rgb = malloc(n);
    uint32_t x = 2463534242u;

    SL_CHECK(rgb != NULL);
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        rgb[i] = (uint8_t)(x >> 11);
    }
    return rgb;
}

/* Weight of input j for output i, over all inputs: the definition, without
 * bounds worked out beforehand. */
static double weight(int i, int j, int inputs, int outputs)
{
    const double scale = (double)inputs / outputs, width = scale > 1 ? scale : 1;
    const double x = fabs((j + 0.5 - scale * (i + 0.5)) / width);

    return x < 1 ? 1 - x : 0;
}

static double naive(const uint8_t *src, sl_image_size from, sl_image_size to, int x, int y, int c)
{
    double sum = 0, total = 0;

    for (int v = 0; v < from.height; v++) {
        const double down = weight(y, v, from.height, to.height);
        for (int u = 0; u < from.width && down > 0; u++) {
            const double w = down * weight(x, u, from.width, to.width);
            sum += w * src[3 * (v * from.width + u) + c];
            total += w;
        }
    }
    return sum / total;
}

SL_TEST(matches_the_definition)
{
    static const struct {
        sl_image_size from, to;
    } cases[] = {
        { { 1, 1 }, { 1, 1 } },     { { 1, 1 }, { 5, 3 } },       { { 5, 3 }, { 1, 1 } },
        { { 2, 2 }, { 4, 4 } },     { { 16, 16 }, { 8, 8 } },     { { 17, 11 }, { 16, 16 } },
        { { 33, 20 }, { 48, 16 } }, { { 20, 33 }, { 7, 64 } },    { { 64, 40 }, { 9, 5 } },
        { { 3, 200 }, { 16, 2 } },  { { 200, 3 }, { 2, 16 } },    { { 101, 67 }, { 100, 68 } },
        { { 7, 1 }, { 3, 9 } },     { { 300, 200 }, { 32, 16 } },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        const sl_image_size from = cases[i].from, to = cases[i].to;
        uint8_t *src = random_rgb(from.width, from.height);
        uint8_t *dst = calloc((size_t)to.width * (size_t)to.height, 3);

        SL_CHECK_OK(sl_resize_rgb(dst, to, src, from, err));
        for (int y = 0; y < to.height; y++)
            for (int x = 0; x < to.width; x++)
                for (int c = 0; c < 3; c++) {
                    const double want = naive(src, from, to, x, y, c);
                    const int got = dst[3 * (y * to.width + x) + c];
                    if (!(fabs(got - want) <= 0.5 + 1e-9))
                        fail_msg("%dx%d to %dx%d: [%d, %d, %d] is %d, want %.6f", from.width,
                                 from.height, to.width, to.height, y, x, c, got, want);
                }
        free(dst);
        free(src);
    }
}

SL_TEST(identity_is_exact)
{
    const sl_image_size size = { 83, 59 };
    uint8_t *src = random_rgb(size.width, size.height);
    uint8_t *dst = calloc(83 * 59, 3);

    SL_CHECK_OK(sl_resize_rgb(dst, size, src, size, err));
    SL_CHECK(memcmp(dst, src, (size_t)83 * 59 * 3) == 0);
    free(dst);
    free(src);
}

SL_TEST(known_answers)
{
    static const uint8_t two[] = { 0, 0, 255, 100, 1, 255 };
    static const uint8_t four[] = { 0, 0, 255, 25, 0, 255, 75, 1, 255, 100, 1, 255 };
    static const uint8_t half[] = { 50, 1, 255 }; /* 0.5 goes up */
    uint8_t dst[12];

    SL_CHECK_OK(sl_resize_rgb(dst, (sl_image_size){ 4, 1 }, two, (sl_image_size){ 2, 1 }, err));
    SL_CHECK(memcmp(dst, four, 12) == 0);
    SL_CHECK_OK(sl_resize_rgb(dst, (sl_image_size){ 1, 4 }, two, (sl_image_size){ 1, 2 }, err));
    for (int y = 0; y < 4; y++)
        SL_CHECK(memcmp(dst + 3 * y, four + 3 * y, 3) == 0);
    SL_CHECK_OK(sl_resize_rgb(dst, (sl_image_size){ 1, 1 }, two, (sl_image_size){ 2, 1 }, err));
    SL_CHECK(memcmp(dst, half, 3) == 0);
}

/* 200000 rows of 64 pixels become 2 x 2: half of them black, half white.  The
 * window is all that there is of the source. */
SL_TEST(huge_shrinking)
{
    enum { ROWS = 200000 };
    sl_resize *resize = NULL;
    uint8_t row[64 * 3], dst[12];

    SL_CHECK_OK(
        sl_resize_create(&resize, (sl_image_size){ 64, ROWS }, dst, (sl_image_size){ 2, 2 }, err));
    for (int y = 0; y < ROWS; y++) {
        memset(row, y < ROWS / 2 ? 0 : 255, sizeof row);
        sl_resize_push(resize, row);
    }
    sl_resize_destroy(resize);
    /* The upper row's triangle, in units of the height: peak at 1/4, feet at -1/4
     * and 3/4.  Of its area above 0, 7/16, the part below 1/2 is 1/16. */
    for (int i = 0; i < 12; i++)
        SL_CHECK(fabs(dst[i] - (i < 6 ? 255.0 / 7 : 255.0 * 6 / 7)) <= 0.6);
}

SL_TEST(sizes_that_are_refused)
{
    const sl_image_size fine = { 4, 4 };
    const sl_image_size bad[] = { { 0, 4 }, { 4, 0 }, { -1, 4 }, { 4, (1 << 24) + 1 } };
    uint8_t rgb[48] = { 0 };
    sl_resize *resize = NULL;

    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_resize_create(&resize, bad[i], rgb, fine, err), SL_ERR_INVALID);
        SL_CHECK_STATUS(sl_resize_create(&resize, fine, rgb, bad[i], err), SL_ERR_INVALID);
    }
    /* a column of pixels: too many weights, too many rows in the window */
    for (int bits = 20; bits <= 24; bits += 4)
        SL_CHECK_STATUS(sl_resize_create(&resize, (sl_image_size){ 1, 1 << bits }, rgb,
                                         (sl_image_size){ 832, 480 }, err),
                        SL_ERR_TOO_LARGE);
    SL_CHECK(resize == NULL);
    sl_resize_destroy(NULL);
}

/* From Python: 16 * round(math.sqrt(A / r) / 16), A the area, r = h / w. */
SL_TEST(sizes_that_fit)
{
    static const struct {
        sl_image_size picture, area, want;
    } cases[] = {
        { { 1920, 1080 }, { 832, 480 }, { 848, 480 } },
        { { 1080, 1920 }, { 832, 480 }, { 480, 848 } },
        { { 1000, 1000 }, { 1280, 720 }, { 960, 960 } },
        { { 4000, 3000 }, { 1280, 720 }, { 1104, 832 } },
        { { 7680, 4320 }, { 1280, 720 }, { 1280, 720 } },
        { { 2000, 500 }, { 1280, 720 }, { 1920, 480 } },
        { { 400, 3000 }, { 832, 480 }, { 224, 1728 } },
        { { 40, 40 }, { 40, 40 }, { 32, 32 } }, /* 2.5 tokens */
        { { 40, 40 }, { 56, 56 }, { 64, 64 } }, /* 3.5 tokens */
    };
    sl_image_size got = { -1, -1 };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        SL_CHECK_OK(sl_image_fit(&got, cases[i].picture, cases[i].area, err));
        SL_CHECK(got.width == cases[i].want.width && got.height == cases[i].want.height);
    }
    got.width = -1;
    SL_CHECK_STATUS(
        sl_image_fit(&got, (sl_image_size){ 3000, 577 }, (sl_image_size){ 1280, 720 }, err),
        SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "2192x416") && got.width == -1);
    SL_CHECK_STATUS(
        sl_image_fit(&got, (sl_image_size){ 2000000000, 1 }, (sl_image_size){ 1280, 720 }, err),
        SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_image_fit(&got, (sl_image_size){ 0, 1 }, (sl_image_size){ 1280, 720 }, err),
                    SL_ERR_INVALID);
}

SL_TEST_MAIN(SL_RUN(matches_the_definition), SL_RUN(identity_is_exact), SL_RUN(known_answers),
             SL_RUN(huge_shrinking), SL_RUN(sizes_that_are_refused), SL_RUN(sizes_that_fit))
