/* uploads.h - files that clients send in pieces, for a request that follows.
 *
 *     .input-up-<name>      what has come so far
 *     .input-file-<name>    whole, its SHA-256 checked
 *
 * in the outputs directory; name is a hash of who sends it and of its id.  Nobody has
 * been promised anything: they go when an hour has passed, and when the daemon starts.
 *
 * Threads: any; without the service's mutex.
 */
#ifndef SL_SERVICE_UPLOADS_H
#define SL_SERVICE_UPLOADS_H

#include "service/service_state.h"

enum { SL_UPLOAD_MAX_BYTES = 64 << 20, SL_UPLOADS = 32 /* of all users, at once */ };

/* Maps a whole upload of the caller's; *size_bytes is above 0.  SL_ERR_NOT_FOUND: there is
 * none of that id, or it is not whole. */
sl_status sl_upload_map(sl_service *s, const sl_rpc_call *call, const char *upload_id,
                        const uint8_t **bytes, size_t *size_bytes, sl_error *err) SL_MUST_CHECK;
void sl_upload_unmap(const uint8_t *bytes, size_t size_bytes);

#endif
