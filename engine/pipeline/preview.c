#include "engine/pipeline/preview.h"

#include <math.h>
#include <stdlib.h>

/* Of one channel at one latent. */
typedef struct {
    double *x;
    float *velocity;
} frame_of_channel;

/* Channels lie on the circle of hues, one golden angle apart, so that no two of
 * them look alike. */
static double weight_of(int64_t channel, int colour)
{
    static const double golden = 2.39996322972865332, third = 2.09439510239319549;
    static const double strength = 24.0; /* latents are normalised: most are within 3 */

    return strength * cos(golden * (double)channel + third * colour);
}

static sl_status read_channel(frame_of_channel *to, sl_exec *exec, const sl_tensor *x,
                              const sl_tensor *velocity, int64_t channel, sl_error *err)
{
    const int64_t count = x->dim[2] * x->dim[3];
    const int64_t at = (channel * x->dim[1] + x->dim[1] / 2) * count;
    sl_status status =
        sl_exec_read(exec, to->x, (const double *)x->data + at, (size_t)count * sizeof *to->x, err);

    if (status == SL_OK)
        status = sl_exec_read(exec, to->velocity, (const float *)velocity->data + at,
                              (size_t)count * sizeof *to->velocity, err);
    return status;
}

/* sums [h, w, 3]: squares of side x side are averaged into out. */
static void shrink(sl_preview *out, const float *sums, int64_t w, int side)
{
    for (int row = 0; row < out->height; row++)
        for (int column = 0; column < out->width; column++)
            for (int colour = 0; colour < 3; colour++) {
                double sum = 0.0;
                for (int i = 0; i < side * side; i++) {
                    const int64_t y = (int64_t)row * side + i / side;
                    sum += (double)sums[(y * w + (int64_t)column * side + i % side) * 3 + colour];
                }
                const double value = 128.5 + sum / (side * side);
                out->rgb[((size_t)row * (size_t)out->width + (size_t)column) * 3 + (size_t)colour] =
                    (uint8_t)(value > 0.0 ? (value < 255.0 ? value : 255.0) : 0.0);
            }
}

sl_status sl_preview_make(sl_preview *out, sl_exec *exec, const sl_tensor *x,
                          const sl_tensor *velocity, double sigma, sl_error *err)
{
    const int64_t h = x->dim[2], w = x->dim[3], count = h * w;
    frame_of_channel c = { .x = malloc((size_t)count * sizeof *c.x),
                           .velocity = malloc((size_t)count * sizeof *c.velocity) };
    float *sums = calloc((size_t)count * 3, sizeof *sums);
    sl_status status = SL_OK;
    int side = 1;

    if (!c.x || !c.velocity || !sums)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a preview");
    for (int64_t channel = 0; channel < x->dim[0] && status == SL_OK; channel++) {
        const double map[3] = { weight_of(channel, 0), weight_of(channel, 1),
                                weight_of(channel, 2) };
        status = read_channel(&c, exec, x, velocity, channel, err);
        for (int64_t i = 0; i < count && status == SL_OK; i++)
            for (int colour = 0; colour < 3; colour++)
                sums[i * 3 + colour] +=
                    (float)(map[colour] * (c.x[i] - sigma * (double)c.velocity[i]));
    }
    if (status == SL_OK) {
        while ((h / side) * (w / side) > SL_PREVIEW_MAX_PIXELS)
            side *= 2;
        out->width = (int)(w / side);
        out->height = (int)(h / side);
        shrink(out, sums, w, side);
    }
    free(c.x);
    free(c.velocity);
    free(sums);
    return status;
}
