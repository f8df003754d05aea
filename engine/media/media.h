/* media.h - frames out: mp4, y4m, PNG.
 *
 * A writer takes RGB24 frames one after the other and makes one file:
 *   SL_MEDIA_MP4  H.264 (libx264, CRF 25), yuv420p, faststart, through libav
 *   SL_MEDIA_Y4M  YUV4MPEG2 4:2:0 (C420jpeg), no library
 *   SL_MEDIA_PNG  one frame, or several as a strip from left to right, no libav
 *
 * The file is written under `path` as given: the caller gives a temporary
 * name and renames it when finish has returned SL_OK (finish fsyncs).  A disk
 * that is full is SL_ERR_IO and names the path.
 *
 * Ownership: open/finish/close; close after a failure or instead of finish
 * leaves a partial file, which the caller unlinks.  Threads: one at a time.
 */
#ifndef SL_ENGINE_MEDIA_MEDIA_H
#define SL_ENGINE_MEDIA_MEDIA_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    SL_MEDIA_MP4,
    SL_MEDIA_Y4M,
    SL_MEDIA_PNG,
    SL_MEDIA_LATENT, /* not of frames: it has a name, and no writer here */
} sl_media_format;

/* "mp4", "y4m", "png", "latent" */
bool sl_media_format_parse(const char *text, sl_media_format *out);
const char *sl_media_format_name(sl_media_format format);
const char *sl_media_extension(sl_media_format format); /* ".mp4" */

typedef struct sl_media_writer sl_media_writer;

/* width, height even and 2 to 16384; fps 1 to 240; threads for the encoder, 0
 * to 64, 0 is 1.  The same frames give the same bytes (no dates inside), for
 * mp4 with the same number of threads.  SL_ERR_UNIMPLEMENTED for mp4 in a
 * build without libav.  A write past the process's file size limit is
 * SL_ERR_IO only where SIGXFSZ is ignored. */
sl_status sl_media_open(sl_media_writer **out, const char *path, sl_media_format format, int width,
                        int height, int fps, int threads, sl_error *err) SL_MUST_CHECK;
/* rgb: height rows of width*3 bytes, top to bottom, tightly packed. */
sl_status sl_media_write_frame(sl_media_writer *writer, const uint8_t *rgb,
                               sl_error *err) SL_MUST_CHECK;
sl_status sl_media_finish(sl_media_writer *writer, sl_error *err) SL_MUST_CHECK;
void sl_media_close(sl_media_writer *writer); /* NULL is fine */

/* One RGB24 image as a PNG file (own deflate through zlib). */
sl_status sl_png_write(const char *path, const uint8_t *rgb, int width, int height,
                       sl_error *err) SL_MUST_CHECK;

#endif
