/* media_test.h - frames and files for the tests of this folder. */
#ifndef SL_ENGINE_MEDIA_MEDIA_TEST_H
#define SL_ENGINE_MEDIA_MEDIA_TEST_H

#include "base/test.h"
#include "engine/media/media.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    uint8_t *bytes;
    size_t length;
} test_file;

/* A path of this process's own; the same for the same name. */
static inline const char *test_path(const char *name)
{
    static char path[128];

    snprintf(path, sizeof path, "/tmp/sluice_media_%ld_%s", (long)getpid(), name);
    return path;
}

static inline test_file test_read(const char *path)
{
    test_file got = { 0 };
    FILE *file = fopen(path, "rb");

    if (!file)
        fail_msg("could not open %s", path);
    SL_CHECK(fseek(file, 0, SEEK_END) == 0);
    got.length = (size_t)ftell(file);
    rewind(file);
    got.bytes = malloc(got.length + 1);
    SL_CHECK(got.bytes != NULL);
    SL_CHECK(fread(got.bytes, 1, got.length, file) == got.length);
    fclose(file);
    return got;
}

/* A smooth gradient that moves with t: [H, W, 3]. */
static inline void test_frame(uint8_t *rgb, int width, int height, int t)
{
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            uint8_t *pixel = rgb + 3 * ((size_t)y * (size_t)width + (size_t)x);
            pixel[0] = (uint8_t)(255 * x / width);
            pixel[1] = (uint8_t)(255 * y / height);
            pixel[2] = (uint8_t)((128 + 4 * t + 64 * (x + y) / (width + height)) % 256);
        }
    }
}

/* Peak signal to noise over n bytes, in dB. */
static inline double test_psnr(const uint8_t *a, const uint8_t *b, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
    return sum == 0 ? 99.0 : 10.0 * log10(255.0 * 255.0 * (double)n / sum);
}

/* A file of `frames` test frames. */
static inline sl_status test_write(const char *path, sl_media_format format, int width, int height,
                                   int fps, int threads, int frames, sl_error *err)
{
    sl_media_writer *writer = NULL;
    uint8_t *rgb = malloc((size_t)width * (size_t)height * 3);
    sl_status status = sl_media_open(&writer, path, format, width, height, fps, threads, err);

    SL_CHECK(rgb != NULL);
    for (int t = 0; t < frames && status == SL_OK; t++) {
        test_frame(rgb, width, height, t);
        status = sl_media_write_frame(writer, rgb, err);
    }
    if (status == SL_OK)
        status = sl_media_finish(writer, err);
    sl_media_close(writer);
    free(rgb);
    return status;
}

static inline void test_same_bytes(sl_media_format format, int frames, int threads)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    test_file files[2];

    for (int i = 0; i < 2; i++) {
        const char *path = test_path(i ? "second" : "first");
        SL_CHECK_OK(test_write(path, format, 64, 48, 16, threads, frames, err));
        files[i] = test_read(path);
        unlink(path);
    }
    SL_CHECK(files[0].length == files[1].length);
    SL_CHECK(memcmp(files[0].bytes, files[1].bytes, files[0].length) == 0);
    free(files[0].bytes);
    free(files[1].bytes);
}

#endif
