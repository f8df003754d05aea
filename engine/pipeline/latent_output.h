/* latent_output.h - the result of a run that was not decoded, as a file.
 *
 * Safetensors with one tensor, "latent", f32 [C, T, h, w]: normalised, as the VAE's
 * decoder takes it.  Nothing is lost by the rounding: decoding begins with it.
 *
 * Threads: any; one writer for a path at a time.
 */
#ifndef SL_ENGINE_PIPELINE_LATENT_OUTPUT_H
#define SL_ENGINE_PIPELINE_LATENT_OUTPUT_H

#include "base/status.h"

#include <stdint.h>

/* latent [C, T, h, w] f64, in host memory.  The file is whole and synced, or not there. */
sl_status sl_latent_output_write(const char *path, const int64_t dim[4], const double *latent,
                                 sl_error *err) SL_MUST_CHECK;
/* SL_ERR_DATA: broken, or of another shape or type.  After a failure latent may be half-filled. */
sl_status sl_latent_output_read(const char *path, const int64_t dim[4], double *latent,
                                sl_error *err) SL_MUST_CHECK;

#endif
