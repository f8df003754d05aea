/* writer.h - what one format of media.h implements.
 *
 * media.c checks the arguments, keeps the frame count and calls these; a
 * format keeps its own state behind `self`.  Private to this folder.
 */
#ifndef SL_ENGINE_MEDIA_WRITER_H
#define SL_ENGINE_MEDIA_WRITER_H

#include "base/status.h"

#include <stdint.h>
#include <stdio.h>

typedef struct {
    char *path; /* owned by media.c, lives as long as the writer */
    int width;
    int height;
    int fps;
    int threads; /* 1 or more */
} sl_media_params;

typedef struct {
    sl_status (*open)(void **self, const sl_media_params *params, sl_error *err);
    sl_status (*write_frame)(void *self, const uint8_t *rgb, sl_error *err);
    sl_status (*finish)(void *self, sl_error *err);
    void (*close)(void *self); /* NULL is fine */
} sl_media_ops;

extern const sl_media_ops sl_media_mp4_ops;
extern const sl_media_ops sl_media_y4m_ops;
extern const sl_media_ops sl_media_png_ops;

/* Creates or empties the file. */
sl_status sl_media_file_open(FILE **out, const char *path, sl_error *err);
/* Flushes, fsyncs and closes; *file is NULL afterwards, whatever happened. */
sl_status sl_media_file_finish(FILE **file, const char *path, sl_error *err);
sl_status sl_media_file_write(FILE *file, const void *bytes, size_t length, const char *path,
                              sl_error *err);

/* Compresses `frames` images of width x height, side by side, into `file`. */
sl_status sl_png_write_strip(FILE *file, const char *path, const uint8_t *const *frames,
                             int frame_count, int width, int height, sl_error *err);

#endif
