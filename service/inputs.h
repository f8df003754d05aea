/* inputs.h - what a job begins with beside words: an image, or a latent.
 *
 * It is decoded and resized as it comes in, to a file of RGB24 in the outputs
 * directory, beside the latents (outputs.h): what a job needs of an upload is the
 * size of its frames, whatever the size of the picture.  One picture is decoded
 * at a time, so the daemon's memory is bounded by the largest one that is taken.
 * A job that decodes another one's latent has a link to that output: it stays when the
 * output is cleaned away.
 *
 * Threads: any; without the service's mutex.
 */
#ifndef SL_SERVICE_INPUTS_H
#define SL_SERVICE_INPUTS_H

#include "service/service_state.h"

/* Pixels of a picture: 8K and more; what claims to have more is not decoded. */
enum { SL_INPUT_MAX_PIXELS = 1 << 26 };

/* A picture as it came: in the request, or in an upload. */
typedef struct {
    const uint8_t *bytes;
    size_t size_bytes; /* 0: there is none */
    bool mapped;
} sl_input_image;

sl_status sl_input_open(sl_service *s, sl_rpc_call *call, const Sluice__V1__GenerateRequest *pb,
                        sl_input_image *out, sl_error *err) SL_MUST_CHECK;
void sl_input_close(sl_input_image *image); /* a zeroed one is fine */

/* The frames' size by the request's sizing.  In a plan the image may be absent. */
sl_status sl_input_size(sl_rpc_call *call, const Sluice__V1__GenerateRequest *pb,
                        const sl_input_image *image, const sl_arch *arch, bool needed,
                        sl_t2v_request *request, sl_error *err) SL_MUST_CHECK;

/* *path: malloc'd, a synced file of request->width x height that nobody knows yet. */
sl_status sl_input_store(sl_service *s, sl_rpc_call *call, const sl_input_image *image,
                         const sl_t2v_request *request, char **path, sl_error *err) SL_MUST_CHECK;
/* The same for the output of a job, which is on the same disk. */
sl_status sl_input_link(sl_service *s, const char *output, char **path,
                        sl_error *err) SL_MUST_CHECK;

#endif
