#include "engine/media/resize.h"

#include "base/size.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_SIDE = 1 << 24 };

/* A picture of few, very long columns is small as a file and wants a window of
 * gigabytes. */
#define MAX_TABLE_BYTES (64 * SL_MIB)

/* For every output position along one direction: which inputs, how much. */
typedef struct {
    int *first;     /* [outputs] */
    int *count;     /* [outputs], 1 to taps */
    double *weight; /* [outputs, taps] */
    int taps;
} axis;

struct sl_resize {
    sl_image_size from, to;
    uint8_t *dst;
    axis across, down;
    double *window; /* [down.taps, to.width, 3]: row y is at y % down.taps */
    double *sum;    /* [to.width, 3] */
    int pushed;     /* source rows */
    int done;       /* rows of dst */
};

/* Are so many numbers within the bound? */
static bool count_cells(size_t rows, size_t columns, size_t *cells)
{
    return sl_size_mul(rows, columns, cells) && *cells <= MAX_TABLE_BYTES / sizeof(double);
}

static void axis_fini(axis *a)
{
    free(a->first);
    free(a->count);
    free(a->weight);
}

static double triangle(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static void set_weights(axis *a, int i, double scale, int inputs)
{
    const double width = scale > 1.0 ? scale : 1.0; /* half of the triangle's base */
    const double center = scale * (i + 0.5);
    const double low = center - width + 0.5, high = center + width + 0.5;
    const int first = low > 0 ? (int)low : 0;
    const int end = high < inputs ? (int)high : inputs;
    double *weight = a->weight + (size_t)i * (size_t)a->taps;
    double sum = 0;

    SL_ASSERT(end > first && end - first <= a->taps);
    for (int k = 0; k < end - first; k++) {
        weight[k] = triangle((first + k - center + 0.5) / width);
        sum += weight[k];
    }
    for (int k = 0; k < end - first; k++)
        weight[k] /= sum;
    a->first[i] = first;
    a->count[i] = end - first;
}

static sl_status axis_init(axis *a, int inputs, int outputs, sl_error *err)
{
    const double scale = (double)inputs / outputs;
    size_t cells = 0;

    a->taps = 2 * (int)ceil(scale > 1.0 ? scale : 1.0) + 1;
    if (!count_cells((size_t)a->taps, (size_t)outputs, &cells))
        return sl_fail(err, SL_ERR_TOO_LARGE, "resizing %d pixels to %d takes more than %zu bytes",
                       inputs, outputs, MAX_TABLE_BYTES);
    a->first = calloc((size_t)outputs, sizeof *a->first);
    a->count = calloc((size_t)outputs, sizeof *a->count);
    a->weight = calloc(cells, sizeof *a->weight);
    if (!a->first || !a->count || !a->weight)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for resizing %d pixels to %d", inputs,
                       outputs);
    for (int i = 0; i < outputs; i++)
        set_weights(a, i, scale, inputs);
    return SL_OK;
}

sl_status sl_resize_create(sl_resize **out, sl_image_size from, uint8_t *dst, sl_image_size to,
                           sl_error *err)
{
    sl_resize *resize = NULL;
    sl_status status = SL_OK;
    size_t cells = 0;

    if (from.width < 1 || from.height < 1 || to.width < 1 || to.height < 1 ||
        from.width > MAX_SIDE || from.height > MAX_SIDE || to.width > MAX_SIDE ||
        to.height > MAX_SIDE)
        return sl_fail(err, SL_ERR_INVALID, "could not resize %dx%d to %dx%d: sides are 1 to %d",
                       from.width, from.height, to.width, to.height, MAX_SIDE);
    resize = calloc(1, sizeof *resize);
    if (!resize)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for resizing");
    resize->from = from;
    resize->to = to;
    resize->dst = dst;
    status = axis_init(&resize->across, from.width, to.width, err);
    if (status == SL_OK)
        status = axis_init(&resize->down, from.height, to.height, err);
    if (status != SL_OK)
        goto done;
    if (!count_cells((size_t)to.width * 3, (size_t)resize->down.taps, &cells)) {
        status = sl_fail(err, SL_ERR_TOO_LARGE, "resizing %dx%d to %dx%d takes more than %zu bytes",
                         from.width, from.height, to.width, to.height, MAX_TABLE_BYTES);
        goto done;
    }
    resize->window = calloc(cells, sizeof *resize->window);
    resize->sum = calloc((size_t)to.width * 3, sizeof *resize->sum);
    if (!resize->window || !resize->sum) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for resizing %dx%d to %dx%d",
                         from.width, from.height, to.width, to.height);
        goto done;
    }
    *out = resize;
    resize = NULL;
done:
    sl_resize_destroy(resize);
    return status;
}

static double *window_row(const sl_resize *resize, int y)
{
    return resize->window + (size_t)(y % resize->down.taps) * 3 * (size_t)resize->to.width;
}

static void resize_row(const sl_resize *resize, const uint8_t *rgb, double *out)
{
    const axis *a = &resize->across;

    for (int x = 0; x < resize->to.width; x++) {
        const uint8_t *pixel = rgb + 3 * (size_t)a->first[x];
        const double *weight = a->weight + (size_t)x * (size_t)a->taps;
        double sum[3] = { 0, 0, 0 };

        for (int k = 0; k < a->count[x]; k++, pixel += 3)
            for (int c = 0; c < 3; c++)
                sum[c] += weight[k] * pixel[c];
        for (int c = 0; c < 3; c++)
            out[3 * (size_t)x + (size_t)c] = sum[c];
    }
}

/* Row y of the result, out of the window; sum is scratch of one row. */
static void finish_row(const sl_resize *resize, int y, double *sum)
{
    const axis *a = &resize->down;
    const size_t n = 3 * (size_t)resize->to.width;
    const double *weight = a->weight + (size_t)y * (size_t)a->taps;
    uint8_t *out = resize->dst + (size_t)y * n;

    for (size_t i = 0; i < n; i++)
        sum[i] = 0.5; /* the cast below rounds halves up */
    for (int k = 0; k < a->count[y]; k++) {
        const double *row = window_row(resize, a->first[y] + k);
        for (size_t i = 0; i < n; i++)
            sum[i] += weight[k] * row[i];
    }
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(sum[i] < 255.0 ? sum[i] : 255.0);
}

void sl_resize_push(sl_resize *resize, const uint8_t *rgb)
{
    const axis *a = &resize->down;

    SL_ASSERT(resize->pushed < resize->from.height);
    resize_row(resize, rgb, window_row(resize, resize->pushed));
    resize->pushed++;
    /* a row is done as soon as its last input is there, so its first is still
     * in the window */
    while (resize->done < resize->to.height &&
           a->first[resize->done] + a->count[resize->done] <= resize->pushed)
        finish_row(resize, resize->done++, resize->sum);
}

void sl_resize_destroy(sl_resize *resize)
{
    if (!resize)
        return;
    axis_fini(&resize->across);
    axis_fini(&resize->down);
    free(resize->window);
    free(resize->sum);
    free(resize);
}

sl_status sl_resize_rgb(uint8_t *dst, sl_image_size to, const uint8_t *src, sl_image_size from,
                        sl_error *err)
{
    sl_resize *resize = NULL;
    const sl_status status = sl_resize_create(&resize, from, dst, to, err);

    if (status != SL_OK)
        return status;
    for (int y = 0; y < from.height; y++)
        sl_resize_push(resize, src + (size_t)y * 3 * (size_t)from.width);
    sl_resize_destroy(resize);
    return SL_OK;
}

sl_status sl_image_fit(sl_image_size *out, sl_image_size picture, sl_image_size area, sl_error *err)
{
    if (picture.width < 1 || picture.height < 1 || area.width < 1 || area.height < 1)
        return sl_fail(err, SL_ERR_INVALID, "could not fit a picture of %dx%d to the area of %dx%d",
                       picture.width, picture.height, area.width, area.height);
    const double pixels = (double)area.width * area.height;
    const double ratio = (double)picture.height / picture.width;
    const double height = 16.0 * nearbyint(sqrt(pixels * ratio) / 16.0); /* halves to even */
    const double width = 16.0 * nearbyint(sqrt(pixels / ratio) / 16.0);

    if (!(height >= 16.0 && width >= 16.0 && height <= SL_IMAGE_MAX_SIDE &&
          width <= SL_IMAGE_MAX_SIDE))
        return sl_fail(err, SL_ERR_INVALID,
                       "a picture of %dx%d would need a video of %.0fx%.0f for the area of %dx%d: "
                       "sides are 16 to %d",
                       picture.width, picture.height, width, height, area.width, area.height,
                       SL_IMAGE_MAX_SIDE);
    *out = (sl_image_size){ .width = (int)width, .height = (int)height };
    return SL_OK;
}
