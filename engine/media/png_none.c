/* png_none.c - PNG in a build without zlib. */
#include "engine/media/writer.h"

static sl_status png_open(void **self, const sl_media_params *params, sl_error *err)
{
    (void)self;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                   "could not create \"%s\": this build is without zlib and writes y4m only",
                   params->path);
}

static void png_close(void *self)
{
    (void)self;
}

/* Without an open nothing else is ever called. */
const sl_media_ops sl_media_png_ops = { .open = png_open, .close = png_close };
