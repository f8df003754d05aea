/* mp4_none.c - mp4 in a build without libav. */
#include "engine/media/writer.h"

static sl_status mp4_open(void **self, const sl_media_params *params, sl_error *err)
{
    (void)self;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                   "could not create \"%s\": this build is without libav (SL_WITH_AV) and writes "
                   "y4m and png only",
                   params->path);
}

static void mp4_close(void *self)
{
    (void)self;
}

/* Without an open nothing else is ever called. */
const sl_media_ops sl_media_mp4_ops = { .open = mp4_open, .close = mp4_close };
