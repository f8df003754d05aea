/* image_test_png.h - PNG files of every kind for the tests of this folder.
 *
 * Pixels are pseudo-random, each row takes the next filter type, the data is
 * in IDAT chunks of 37 bytes with an empty one between them.
 */
#ifndef SL_ENGINE_MEDIA_IMAGE_TEST_PNG_H
#define SL_ENGINE_MEDIA_IMAGE_TEST_PNG_H

#include "base/test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

typedef struct {
    int width, height, depth, color;
    bool interlaced;
    size_t data_bytes; /* so much of the raw data; 0: all of it */
} png_spec;

typedef struct {
    uint8_t bytes[65536];
    size_t length;
    uint8_t rgb[32 * 32 * 3]; /* what it shows */
} png_file;

static inline int png_channels(int color)
{
    return color == 2 ? 3 : color == 4 ? 2 : color == 6 ? 4 : 1;
}

/* Sample c of a pixel: depth bits. */
static inline unsigned png_sample(const png_spec *s, int x, int y, int c)
{
    const uint32_t h =
        ((uint32_t)x * 73856093u ^ (uint32_t)y * 19349663u ^ (uint32_t)c * 83492791u) * 2654435761u;

    return (h >> 9) & ((1u << s->depth) - 1);
}

static inline void png_palette(unsigned index, uint8_t *rgb)
{
    rgb[0] = (uint8_t)(index * 7);
    rgb[1] = (uint8_t)(255 - index);
    rgb[2] = (uint8_t)(index * index);
}

static inline void png_expect(const png_spec *s, int x, int y, uint8_t *rgb)
{
    for (int c = 0; c < 3; c++) {
        const unsigned v = png_sample(s, x, y, s->color & 2 ? c : 0);
        rgb[c] = (uint8_t)(s->depth == 16 ? v >> 8 : v * 255 / ((1u << s->depth) - 1));
    }
    if (s->color == 3)
        png_palette(png_sample(s, x, y, 0), rgb);
}

static inline void png_chunk(png_file *f, const char *type, const uint8_t *data, size_t length)
{
    uint8_t *at = f->bytes + f->length;

    SL_CHECK(f->length + length + 12 <= sizeof f->bytes);
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(length >> (24 - 8 * i));
    memcpy(at + 4, type, 4);
    if (length > 0)
        memcpy(at + 8, data, length);
    const uLong crc = crc32(0, at + 4, (uInt)length + 4);
    for (int i = 0; i < 4; i++)
        at[8 + length + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
    f->length += length + 12;
}

static inline uint8_t png_predict(int filter, int left, int up, int corner)
{
    const int guess = left + up - corner;

    switch (filter) {
    case 1:
        return (uint8_t)left;
    case 2:
        return (uint8_t)up;
    case 3:
        return (uint8_t)((left + up) / 2);
    case 4:
        if (abs(guess - left) <= abs(guess - up) && abs(guess - left) <= abs(guess - corner))
            return (uint8_t)left;
        return (uint8_t)(abs(guess - up) <= abs(guess - corner) ? up : corner);
    default:
        return 0;
    }
}

/* The rows of one pass, filtered, appended to raw. */
static inline size_t png_rows(const png_spec *s, int x0, int y0, int dx, int dy, uint8_t *raw)
{
    const int channels = png_channels(s->color);
    const size_t step = s->depth * channels < 8 ? 1 : (size_t)(s->depth * channels / 8);
    uint8_t rows[2][256] = { { 0 } };
    size_t used = 0;

    if (x0 >= s->width)
        return 0;
    for (int y = y0, n = 0; y < s->height; y += dy, n++) {
        uint8_t *row = rows[n & 1], *above = rows[(n + 1) & 1];
        size_t bits = 0;

        memset(row, 0, sizeof rows[0]);
        for (int x = x0; x < s->width; x += dx)
            for (int c = 0; c < channels; c++, bits += (size_t)s->depth) {
                const unsigned v = png_sample(s, x, y, c);
                if (s->depth == 16) {
                    row[bits / 8] = (uint8_t)(v >> 8);
                    row[bits / 8 + 1] = (uint8_t)v;
                } else {
                    row[bits / 8] |= (uint8_t)(v << (8 - (size_t)s->depth - bits % 8));
                }
            }
        raw[used++] = (uint8_t)(n % 5);
        for (size_t i = 0; i < (bits + 7) / 8; i++)
            raw[used++] = (uint8_t)(row[i] - png_predict(n % 5, i < step ? 0 : row[i - step],
                                                         above[i], i < step ? 0 : above[i - step]));
    }
    return used;
}

static inline void png_make(png_file *f, const png_spec *s)
{
    static const int adam7[7][4] = { { 0, 0, 8, 8 }, { 4, 0, 8, 8 }, { 0, 4, 4, 8 }, { 2, 0, 4, 4 },
                                     { 0, 2, 2, 4 }, { 1, 0, 2, 2 }, { 0, 1, 1, 2 } };
    uint8_t ihdr[13] = { 0, 0, 0, (uint8_t)s->width, 0, 0, 0, (uint8_t)s->height };
    uint8_t raw[16384], packed[20000], palette[768];
    uLongf packed_bytes = sizeof packed;
    size_t used = 0;

    for (int y = 0; y < s->height; y++)
        for (int x = 0; x < s->width; x++)
            png_expect(s, x, y, f->rgb + 3 * (y * s->width + x));
    for (int i = 0; s->interlaced && i < 7; i++)
        used += png_rows(s, adam7[i][0], adam7[i][1], adam7[i][2], adam7[i][3], raw + used);
    if (!s->interlaced)
        used = png_rows(s, 0, 0, 1, 1, raw);
    if (s->data_bytes > 0)
        used = s->data_bytes;
    SL_CHECK(compress(packed, &packed_bytes, raw, used) == Z_OK);
    ihdr[8] = (uint8_t)s->depth;
    ihdr[9] = (uint8_t)s->color;
    ihdr[12] = s->interlaced;
    memcpy(f->bytes, "\x89PNG\r\n\x1a\n", 8);
    f->length = 8;
    png_chunk(f, "IHDR", ihdr, 13);
    png_chunk(f, "tEXt", (const uint8_t *)"a\0b", 3);
    for (unsigned i = 0; i < 256; i++)
        png_palette(i, palette + 3 * i);
    if (s->color == 3)
        png_chunk(f, "PLTE", palette, (size_t)3 << s->depth);
    for (size_t at = 0; at < packed_bytes; at += 37) {
        png_chunk(f, "IDAT", packed + at, packed_bytes - at < 37 ? packed_bytes - at : 37);
        png_chunk(f, "IDAT", NULL, 0);
    }
    png_chunk(f, "tIME", (const uint8_t *)"\7\350\1\1\0\0\0", 7);
    png_chunk(f, "IEND", NULL, 0);
}

#endif
