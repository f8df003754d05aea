/* preview.h - a small picture of a video that is being made, without its VAE.
 *
 * One pixel for each latent of the middle latent frame: 128 plus a linear map of its
 * channels, the same for every model.  It shows shapes and their places; its colours
 * are false, since what a channel looks like only the VAE knows.
 *
 * Threads: any; no state.
 */
#ifndef SL_ENGINE_PIPELINE_PREVIEW_H
#define SL_ENGINE_PIPELINE_PREVIEW_H

#include "base/status.h"
#include "kernels/exec.h"
#include "kernels/tensor.h"

#include <stdint.h>

enum { SL_PREVIEW_MAX_PIXELS = 16384 };

typedef struct {
    int width, height;
    uint8_t rgb[3 * SL_PREVIEW_MAX_PIXELS]; /* [height, width, 3] */
} sl_preview;

/* Of x - sigma * velocity; x [C, T, h, w] f64 and velocity f32 in device memory, as
 * on_guess has them.  Larger frames are halved until they fit. */
sl_status sl_preview_make(sl_preview *out, sl_exec *exec, const sl_tensor *x,
                          const sl_tensor *velocity, double sigma, sl_error *err) SL_MUST_CHECK;

#endif
