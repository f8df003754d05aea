/* y4m.c - YUV4MPEG2, 4:2:0 with chroma in the middle of each 2x2 (C420jpeg).
 *
 * BT.601, limited range, 16-bit fixed point: Y = 16 + 219 * (0.299 R + 0.587 G
 * + 0.114 B) / 255, chroma 128 +- 112.  Each row of coefficients is rounded so
 * that it sums to 219/255 (luma) or 0 (chroma): grey stays grey.
 */
#include "engine/media/writer.h"

#include <stdlib.h>

enum {
    Y_R = 16829,
    Y_G = 33039,
    Y_B = 6416,
    U_R = -9714,
    U_G = -19070,
    U_B = 28784,
    V_R = 28784,
    V_G = -24103,
    V_B = -4681,
};

typedef struct {
    const sl_media_params *params;
    FILE *file;
    uint8_t *planes; /* Y [H, W], U [H/2, W/2], V [H/2, W/2] */
} y4m;

static size_t planes_bytes(const sl_media_params *params)
{
    const size_t pixels = (size_t)params->width * (size_t)params->height;

    return pixels + pixels / 2;
}

static uint8_t luma(const uint8_t *rgb)
{
    return (uint8_t)((Y_R * rgb[0] + Y_G * rgb[1] + Y_B * rgb[2] + (16 << 16) + 32768) >> 16);
}

/* r, g, b are sums over four pixels. */
static uint8_t chroma(int r, int g, int b, int cr, int cg, int cb)
{
    return (uint8_t)((cr * r + cg * g + cb * b + (128 << 18) + (1 << 17)) >> 18);
}

static void convert(const y4m *self, const uint8_t *rgb)
{
    const size_t W = (size_t)self->params->width;
    const size_t H = (size_t)self->params->height;
    uint8_t *y = self->planes;
    uint8_t *u = y + W * H;
    uint8_t *v = u + W * H / 4;

    for (size_t i = 0; i < W * H; i++)
        y[i] = luma(rgb + 3 * i);
    for (size_t row = 0; row < H; row += 2) {
        for (size_t col = 0; col < W; col += 2) {
            const uint8_t *a = rgb + 3 * (row * W + col);
            const uint8_t *b = a + 3 * W;
            const int red = a[0] + a[3] + b[0] + b[3];
            const int green = a[1] + a[4] + b[1] + b[4];
            const int blue = a[2] + a[5] + b[2] + b[5];
            *u++ = chroma(red, green, blue, U_R, U_G, U_B);
            *v++ = chroma(red, green, blue, V_R, V_G, V_B);
        }
    }
}

static void y4m_close(void *ptr)
{
    y4m *self = ptr;

    if (!self)
        return;
    if (self->file)
        fclose(self->file);
    free(self->planes);
    free(self);
}

static sl_status y4m_open(void **out, const sl_media_params *params, sl_error *err)
{
    sl_status status = SL_OK;
    char header[128];
    y4m *self = calloc(1, sizeof *self);

    if (self)
        self->planes = malloc(planes_bytes(params));
    if (!self || !self->planes) {
        status =
            sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the frames of \"%s\"", params->path);
        goto done;
    }
    self->params = params;
    status = sl_media_file_open(&self->file, params->path, err);
    if (status != SL_OK)
        goto done;
    const int n = snprintf(header, sizeof header,
                           "YUV4MPEG2 W%d H%d F%d:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\n",
                           params->width, params->height, params->fps);
    status = sl_media_file_write(self->file, header, (size_t)n, params->path, err);
    if (status != SL_OK)
        goto done;

    *out = self;
    self = NULL;
done:
    y4m_close(self);
    return status;
}

static sl_status y4m_write_frame(void *ptr, const uint8_t *rgb, sl_error *err)
{
    y4m *self = ptr;
    const char *path = self->params->path;

    convert(self, rgb);
    sl_status status = sl_media_file_write(self->file, "FRAME\n", 6, path, err);
    if (status == SL_OK)
        status =
            sl_media_file_write(self->file, self->planes, planes_bytes(self->params), path, err);
    return status;
}

static sl_status y4m_finish(void *ptr, sl_error *err)
{
    y4m *self = ptr;

    return sl_media_file_finish(&self->file, self->params->path, err);
}

const sl_media_ops sl_media_y4m_ops = { y4m_open, y4m_write_frame, y4m_finish, y4m_close };
