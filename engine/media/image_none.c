/* image_none.c - JPEG and WebP in a build without libav. */
#include "engine/media/image_parts.h"

sl_status sl_image_read_av(sl_image_walk *walk, const sl_image_sink *sink, sl_error *err)
{
    (void)sink;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                   "could not decode a %s picture: this build is without libav; PNG works",
                   sl_image_format_name(walk->info.format));
}
