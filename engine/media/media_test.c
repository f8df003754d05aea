#include "engine/media/media_test.h"

#include <zlib.h>

SL_TEST(format_names)
{
    sl_media_format format = SL_MEDIA_MP4;

    SL_CHECK(sl_media_format_parse("y4m", &format) && format == SL_MEDIA_Y4M);
    SL_CHECK(sl_media_format_parse("png", &format) && format == SL_MEDIA_PNG);
    SL_CHECK(sl_media_format_parse("mp4", &format) && format == SL_MEDIA_MP4);
    SL_CHECK(!sl_media_format_parse("MP4", &format) && !sl_media_format_parse("", &format));
    SL_CHECK(strcmp(sl_media_format_name(SL_MEDIA_Y4M), "y4m") == 0);
    SL_CHECK(strcmp(sl_media_extension(SL_MEDIA_MP4), ".mp4") == 0);
}

SL_TEST(arguments_are_checked)
{
    static const struct {
        int width, height, fps, threads;
    } bad[] = {
        { 63, 48, 16, 1 }, { 64, 47, 16, 1 },  { 0, 48, 16, 1 },   { 64, 16386, 16, 1 },
        { 64, 48, 0, 1 },  { 64, 48, 241, 1 }, { 64, 48, 16, -1 }, { -2, 48, 16, 1 },
    };

    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        sl_media_writer *writer = NULL;
        SL_CHECK_STATUS(sl_media_open(&writer, test_path("bad"), SL_MEDIA_Y4M, bad[i].width,
                                      bad[i].height, bad[i].fps, bad[i].threads, err),
                        SL_ERR_INVALID);
        SL_CHECK(writer == NULL);
        SL_CHECK(access(test_path("bad"), F_OK) != 0);
    }
}

SL_TEST(wrong_order_is_refused)
{
    const uint8_t rgb[2 * 2 * 3] = { 0 };
    sl_media_writer *writer = NULL;

    SL_CHECK_OK(sl_media_open(&writer, test_path("order"), SL_MEDIA_Y4M, 2, 2, 16, 1, err));
    SL_CHECK_STATUS(sl_media_finish(writer, err), SL_ERR_PRECONDITION);
    SL_CHECK_OK(sl_media_write_frame(writer, rgb, err));
    SL_CHECK_OK(sl_media_finish(writer, err));
    SL_CHECK_STATUS(sl_media_finish(writer, err), SL_ERR_PRECONDITION);
    SL_CHECK_STATUS(sl_media_write_frame(writer, rgb, err), SL_ERR_PRECONDITION);
    sl_media_close(writer);
    unlink(test_path("order"));
}

SL_TEST(y4m_layout_and_values)
{
    /* Two by two blocks of one colour each; BT.601 limited range, computed in
     * real numbers: Y = 16 + 65.481 r + 128.553 g + 24.966 b and so on. */
    static const struct {
        uint8_t rgb[3];
        uint8_t y, u, v;
    } colours[] = {
        { { 0, 0, 0 }, 16, 128, 128 },        { { 255, 255, 255 }, 235, 128, 128 },
        { { 128, 128, 128 }, 126, 128, 128 }, { { 255, 0, 0 }, 81, 90, 240 },
        { { 0, 255, 0 }, 145, 54, 34 },       { { 0, 0, 255 }, 41, 240, 110 },
    };
    static const char header[] =
        "YUV4MPEG2 W12 H2 F16:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\nFRAME\n";
    enum { W = 12, H = 2 };
    uint8_t rgb[H * W * 3];
    sl_media_writer *writer = NULL;

    for (size_t y = 0; y < H; y++)
        for (size_t x = 0; x < W; x++)
            memcpy(rgb + 3 * (y * W + x), colours[x / 2].rgb, 3);
    SL_CHECK_OK(sl_media_open(&writer, test_path("y4m"), SL_MEDIA_Y4M, W, H, 16, 1, err));
    SL_CHECK_OK(sl_media_write_frame(writer, rgb, err));
    SL_CHECK_OK(sl_media_write_frame(writer, rgb, err));
    SL_CHECK_OK(sl_media_finish(writer, err));
    sl_media_close(writer);

    test_file file = test_read(test_path("y4m"));
    unlink(test_path("y4m"));
    const size_t head = sizeof header - 1;
    const size_t frame = W * H * 3 / 2;
    SL_CHECK(file.length == head + 2 * frame + 6);
    SL_CHECK(memcmp(file.bytes, header, head) == 0);
    for (size_t x = 0; x < W; x++) {
        SL_CHECK(file.bytes[head + x] == colours[x / 2].y);
        SL_CHECK(file.bytes[head + W + x] == colours[x / 2].y);
    }
    for (size_t i = 0; i < W / 2; i++) {
        SL_CHECK(file.bytes[head + W * H + i] == colours[i].u);
        SL_CHECK(file.bytes[head + W * H + W / 2 + i] == colours[i].v);
    }
    SL_CHECK(memcmp(file.bytes + head + frame, "FRAME\n", 6) == 0);
    free(file.bytes);
}

static uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Undoes the Paeth filter, written from the PNG specification, section 9.4. */
static void unfilter(uint8_t *raw, size_t height, size_t stride)
{
    for (size_t y = 0; y < height; y++) {
        uint8_t *row = raw + y * (stride + 1);
        SL_CHECK(row[0] == 4);
        for (size_t i = 1; i <= stride; i++) {
            const int a = i > 3 ? row[i - 3] : 0;
            const int b = y > 0 ? row[(int64_t)i - (int64_t)stride - 1] : 0;
            const int c = i > 3 && y > 0 ? row[(int64_t)i - (int64_t)stride - 4] : 0;
            const int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2 * c);
            const int predicted = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
            row[i] = (uint8_t)(row[i] + predicted);
        }
    }
}

/* Reads a PNG of this folder's kind: returns [H, 1 + 3 W] with filter bytes. */
static uint8_t *read_png(const char *path, size_t *width, size_t *height)
{
    test_file file = test_read(path);
    uint8_t *joined = malloc(file.length);
    size_t joined_length = 0;
    bool ended = false;

    SL_CHECK(file.length > 33 && memcmp(file.bytes, "\x89PNG\r\n\x1a\n", 8) == 0);
    for (size_t at = 8; at + 12 <= file.length;) {
        const uint8_t *chunk = file.bytes + at;
        const size_t length = get_u32(chunk);
        SL_CHECK(length <= file.length - at - 12);
        SL_CHECK(crc32(0, chunk + 4, (uInt)length + 4) == get_u32(chunk + 8 + length));
        if (memcmp(chunk + 4, "IHDR", 4) == 0) {
            *width = get_u32(chunk + 8);
            *height = get_u32(chunk + 12);
            SL_CHECK(memcmp(chunk + 16, "\x08\x02\x00\x00\x00", 5) == 0);
        } else if (memcmp(chunk + 4, "IDAT", 4) == 0) {
            memcpy(joined + joined_length, chunk + 8, length);
            joined_length += length;
        } else {
            SL_CHECK(memcmp(chunk + 4, "IEND", 4) == 0);
            ended = at + 12 == file.length;
        }
        at += 12 + length;
    }
    SL_CHECK(ended);
    uLongf raw_length = (uLongf)(*height * (*width * 3 + 1));
    SL_CHECK(raw_length > 0);
    uint8_t *raw = malloc(raw_length);
    const uLongf want = raw_length;
    SL_CHECK(uncompress(raw, &raw_length, joined, joined_length) == Z_OK);
    SL_CHECK(raw_length == want);
    unfilter(raw, *height, *width * 3);
    free(joined);
    free(file.bytes);
    return raw;
}

static void check_png_of(int width, int height, bool noise)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    const size_t row = (size_t)width * 3;
    uint8_t *rgb = malloc(row * (size_t)height);
    size_t got_width = 0, got_height = 0;

    test_frame(rgb, width, height, 0);
    for (size_t i = 0; noise && i < row * (size_t)height; i++)
        rgb[i] = (uint8_t)(i * 2654435761u >> 13);
    SL_CHECK_OK(sl_png_write(test_path("png"), rgb, width, height, err));
    uint8_t *raw = read_png(test_path("png"), &got_width, &got_height);
    unlink(test_path("png"));
    SL_CHECK(got_width == (size_t)width && got_height == (size_t)height);
    for (int y = 0; y < height; y++)
        SL_CHECK(memcmp(raw + (size_t)y * (row + 1) + 1, rgb + (size_t)y * row, row) == 0);
    free(raw);
    free(rgb);
}

SL_TEST(png_round_trip)
{
    check_png_of(1, 1, false);
    check_png_of(3, 5, true);
    check_png_of(65, 33, false);
    check_png_of(640, 480, true); /* several IDAT chunks */
}

SL_TEST(png_strip)
{
    enum { W = 16, H = 8, FRAMES = 5 };
    uint8_t rgb[H * W * 3];
    size_t width = 0, height = 0;

    SL_CHECK_OK(test_write(test_path("strip"), SL_MEDIA_PNG, W, H, 16, 1, FRAMES, err));
    uint8_t *raw = read_png(test_path("strip"), &width, &height);
    unlink(test_path("strip"));
    SL_CHECK(width == W * FRAMES && height == H);
    for (size_t t = 0; t < FRAMES; t++) {
        test_frame(rgb, W, H, (int)t);
        for (size_t y = 0; y < H; y++)
            SL_CHECK(memcmp(raw + y * (W * FRAMES * 3 + 1) + 1 + t * W * 3, rgb + y * W * 3,
                            W * 3) == 0);
    }
    free(raw);
}

SL_TEST(png_sizes_are_checked)
{
    const uint8_t rgb[3] = { 0 };

    SL_CHECK_STATUS(sl_png_write(test_path("png"), rgb, 0, 1, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_png_write(test_path("png"), rgb, 1, -1, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_png_write(test_path("png"), rgb, 1 << 30, 1, err), SL_ERR_INVALID);
    unlink(test_path("png"));
}

SL_TEST(same_frames_same_bytes)
{
    test_same_bytes(SL_MEDIA_Y4M, 3, 1);
    test_same_bytes(SL_MEDIA_PNG, 3, 1);
}

static void check_disk_full(sl_media_format format)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;

    SL_CHECK_STATUS(test_write("/dev/full", format, 64, 48, 16, 1, 3, err), SL_ERR_IO);
    SL_CHECK(strstr(err->message, "/dev/full") != NULL);
    SL_CHECK(strstr(err->message, "No space left") != NULL);
}

SL_TEST(a_full_disk_is_an_io_error)
{
    check_disk_full(SL_MEDIA_Y4M);
    check_disk_full(SL_MEDIA_PNG);
}

SL_TEST(a_bad_path_is_named)
{
    static const sl_media_format formats[] = { SL_MEDIA_Y4M, SL_MEDIA_PNG };

    for (size_t i = 0; i < SL_COUNT(formats); i++) {
        SL_CHECK_STATUS(test_write("/nonexistent/out", formats[i], 64, 48, 16, 1, 1, err),
                        SL_ERR_NOT_FOUND);
        SL_CHECK(strstr(err->message, "/nonexistent/out") != NULL);
    }
}

SL_TEST_MAIN(SL_RUN(format_names), SL_RUN(arguments_are_checked), SL_RUN(wrong_order_is_refused),
             SL_RUN(y4m_layout_and_values), SL_RUN(png_round_trip), SL_RUN(png_strip),
             SL_RUN(png_sizes_are_checked), SL_RUN(same_frames_same_bytes),
             SL_RUN(a_full_disk_is_an_io_error), SL_RUN(a_bad_path_is_named))
