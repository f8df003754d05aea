/* uploads.h - files that clients send in pieces, for a request that follows.
 *
 *     .input-up-<owner>-<name>-<bytes>   what has come so far; bytes of the whole, hex
 *     .input-file-<owner>-<name>         whole, its SHA-256 checked
 *
 * in the outputs directory; owner and name are hashes of who sends it and of that and its
 * id.  Each user has a share of files and bytes, where an upload counts as a whole from
 * its first piece on; all together have a bound, too.  Nobody has been promised anything:
 * uploads go an hour after they were last used, when the daemon starts, and, after a
 * minute, for another one of the same user whose share is full.
 *
 * Threads: any; without the service's mutex.
 */
#ifndef SL_SERVICE_UPLOADS_H
#define SL_SERVICE_UPLOADS_H

#include "service/service_state.h"

enum {
    SL_UPLOAD_MAX_BYTES = 64 << 20,
    SL_UPLOADS_EACH = 16, /* of one user, at once */
    SL_UPLOADS = 128,     /* of all */
};
#define SL_UPLOADS_EACH_BYTES ((uint64_t)256 << 20)
#define SL_UPLOADS_BYTES      ((uint64_t)2 << 30)

/* Maps a whole upload of the caller's; *size_bytes is above 0.  SL_ERR_NOT_FOUND: there is
 * none of that id, or it is not whole. */
sl_status sl_upload_map(sl_service *s, const sl_rpc_call *call, const char *upload_id,
                        const uint8_t **bytes, size_t *size_bytes, sl_error *err) SL_MUST_CHECK;
void sl_upload_unmap(const uint8_t *bytes, size_t size_bytes);

#endif
