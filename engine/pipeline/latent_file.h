/* latent_file.h - the state of a run between two steps, in a file.
 *
 * A job that is interrupted continues behind its last finished step
 * (sl_t2v_resume) from here.  A file is there whole or not at all: it is written
 * under another name, synced, and renamed.  Layout, little-endian:
 *
 *     0    "SLLATENT"
 *     8    u32 version, 1
 *     12   u32 crc32 (zlib's) of the state
 *     16   u32 steps done, u32 steps in all
 *     24   u64 [4] dimensions: C, T, h, w
 *     56   job id, padded with zeros
 *     136  u32 crc32 of bytes 0 to 135, u32 zero
 *     144  the state, f64, as it lies in memory; nothing behind it
 *
 * Threads: any; one writer for a path at a time.
 */
#ifndef SL_ENGINE_PIPELINE_LATENT_FILE_H
#define SL_ENGINE_PIPELINE_LATENT_FILE_H

#include "base/status.h"

#include <stdint.h>

enum { SL_LATENT_JOB_BYTES = 80 }; /* of a job id with its terminator */

typedef struct {
    const char *job;
    int step_count;
    int64_t dim[4]; /* C, T, h, w, each above 0 */
} sl_latent_run;

/* state: the whole of it, in host memory; steps_done: 1 to step_count.  After a
 * failure the file at path, if there is one, is still a whole one. */
sl_status sl_latent_file_write(const char *path, const sl_latent_run *run, int steps_done,
                               const double *state, sl_error *err) SL_MUST_CHECK;

/* Fills state, which has room for run's dimensions.  SL_ERR_NOT_FOUND: no file.
 * SL_ERR_DATA: broken, of another version, or of another job, shape or number
 * of steps; the caller starts from the beginning.  After a failure state may be
 * half-filled. */
sl_status sl_latent_file_read(const char *path, const sl_latent_run *run, int *steps_done,
                              double *state, sl_error *err) SL_MUST_CHECK;

#endif
