/* hosttier.h - host memory for images of components.
 *
 * An image (component.h) lies in one or more files in memory (memfd) of at most
 * 1 GiB each, sealed in size.  The daemon makes and owns them; the worker, which
 * gets their descriptors (HostSegments), maps them behind one another and fills
 * them.  So they outlive the worker: the next one gets them again.
 *
 * Bytes are booked when an image is made, in whole pages, against a limit;
 * memory is really taken as the worker fills it.
 *
 *     made --HostFill done--> filled (sl_host_image_set_filled) --release--> gone
 *
 * An image is filled once: one whose filling did not succeed is released.
 *
 * Ownership: the service creates the tier; an image belongs to the tier until
 *            it is released, and destroy releases all.
 * Threads:   one at a time: the service's lock.
 */
#ifndef SL_SERVICE_HOSTTIER_H
#define SL_SERVICE_HOSTTIER_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

#define SL_HOST_SEGMENT_BYTES ((size_t)1 << 30)
enum { SL_HOST_MAX_SEGMENTS = 64 }; /* of an image; also what one message carries */

typedef struct sl_hosttier sl_hosttier;

typedef struct sl_host_image {
    size_t image_bytes;  /* to the byte */
    size_t booked_bytes; /* the segments together */
    int segment_count;
    size_t segment_bytes[SL_HOST_MAX_SEGMENTS];
    int fds[SL_HOST_MAX_SEGMENTS]; /* the tier's: for sl_supervisor_send_fds */
    bool filled;
    sl_hosttier *tier; /* for this module */
    struct sl_host_image *next;
} sl_host_image;

/* limit_bytes 0: no image has room. */
sl_status sl_hosttier_create(sl_hosttier **out, size_t limit_bytes, sl_error *err) SL_MUST_CHECK;
void sl_hosttier_destroy(sl_hosttier *tier); /* NULL is fine */

size_t sl_hosttier_limit_bytes(const sl_hosttier *tier);
/* Images that are there stay, even above it. */
void sl_hosttier_set_limit(sl_hosttier *tier, size_t limit_bytes);
size_t sl_hosttier_booked_bytes(const sl_hosttier *tier);
/* Pages that the system has given for all images so far. */
size_t sl_hosttier_resident_bytes(const sl_hosttier *tier);

/* What an image books; SIZE_MAX when no tier could hold it. */
size_t sl_hosttier_cost_bytes(size_t image_bytes);

/* name: for people who look at the process's maps; "wan/dit".  SL_ERR_TOO_LARGE:
 * more than the limit, or than an image can be.  SL_ERR_BUSY: not beside what is
 * booked. */
sl_status sl_host_image_create(sl_host_image **out, sl_hosttier *tier, const char *name,
                               size_t image_bytes, sl_error *err) SL_MUST_CHECK;
void sl_host_image_set_filled(sl_host_image *image);
/* The memory is free when the worker has forgotten the image too (HostForget). */
void sl_host_image_destroy(sl_host_image *image); /* NULL is fine */

#endif
