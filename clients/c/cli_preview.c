/* cli_preview.c - the picture of --preview: a PNG that is replaced with each step. */
#include "clients/c/cli_jobs.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static bool put_chunk(FILE *f, const char *kind, const uint8_t *data, size_t size_bytes)
{
    const uint32_t length = (uint32_t)size_bytes;
    uint32_t crc = (uint32_t)crc32(0, (const Bytef *)kind, 4);
    uint8_t head[8] = { (uint8_t)(length >> 24), (uint8_t)(length >> 16), (uint8_t)(length >> 8),
                        (uint8_t)length };

    memcpy(head + 4, kind, 4);
    if (size_bytes)
        crc = (uint32_t)crc32(crc, data, (uInt)length);
    const uint8_t tail[4] = { (uint8_t)(crc >> 24), (uint8_t)(crc >> 16), (uint8_t)(crc >> 8),
                              (uint8_t)crc };
    return fwrite(head, 1, sizeof head, f) == sizeof head &&
           fwrite(data, 1, size_bytes, f) == size_bytes &&
           fwrite(tail, 1, sizeof tail, f) == sizeof tail;
}

/* rows: each with a filter byte of 0 before it. */
static bool put_png(FILE *f, const Sluice__V1__Preview *p, const uint8_t *rows, size_t row_bytes)
{
    static const uint8_t sign[] = { 0x89, 'P', 'N', 'G', 13, 10, 26, 10 };
    const uint32_t w = (uint32_t)p->width, h = (uint32_t)p->height;
    const uint8_t header[13] = { (uint8_t)(w >> 24),
                                 (uint8_t)(w >> 16),
                                 (uint8_t)(w >> 8),
                                 (uint8_t)w,
                                 (uint8_t)(h >> 24),
                                 (uint8_t)(h >> 16),
                                 (uint8_t)(h >> 8),
                                 (uint8_t)h,
                                 8,
                                 2,
                                 0,
                                 0,
                                 0 };
    uLongf packed_bytes = compressBound((uLong)(row_bytes * h));
    uint8_t *packed = malloc(packed_bytes);
    bool ok = packed && compress(packed, &packed_bytes, rows, (uLong)(row_bytes * h)) == Z_OK;

    ok = ok && fwrite(sign, 1, sizeof sign, f) == sizeof sign &&
         put_chunk(f, "IHDR", header, sizeof header) &&
         put_chunk(f, "IDAT", packed, packed_bytes) && put_chunk(f, "IEND", header, 0);
    free(packed);
    return ok;
}

sl_status cli_write_preview(const char *path, const Sluice__V1__Preview *p, sl_error *err)
{
    char part[4096];
    sl_status status = SL_OK;
    FILE *f = NULL;
    uint8_t *rows = NULL;
    const size_t line = 3 * (size_t)p->width;

    if (p->width < 1 || p->height < 1 || p->width > 4096 || p->height > 4096 ||
        p->rgb.len != line * (size_t)p->height)
        return sl_fail(err, SL_ERR_DATA, "the daemon's preview has no picture in it");
    if (snprintf(part, sizeof part, "%s.part", path) >= (int)sizeof part)
        return sl_fail(err, SL_ERR_INVALID, "the preview's name is too long");
    rows = calloc((size_t)p->height, line + 1);
    if (!rows)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a preview");
    for (size_t y = 0; y < (size_t)p->height; y++)
        memcpy(rows + y * (line + 1) + 1, p->rgb.data + y * line, line);
    f = fopen(part, "wbe");
    if (!f || !put_png(f, p, rows, line + 1))
        status = sl_fail_errno(err, "could not write \"%s\"", part);
    if (f && fclose(f) != 0 && status == SL_OK)
        status = sl_fail_errno(err, "could not write \"%s\"", part);
    if (status == SL_OK && rename(part, path) != 0)
        status = sl_fail_errno(err, "could not rename \"%s\" to \"%s\"", part, path);
    free(rows);
    return status;
}
