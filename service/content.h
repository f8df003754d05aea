/* content.h - whether two models have the same component: an id of what is in a file.
 *
 * SHA-256 over the configuration, and over every tensor's name, type, shape and, in
 * three places, its bytes: beginning, middle and end, all of a small one.  So a file of
 * eleven gigabytes takes less than a megabyte of reading.  Files that differ in some
 * tensor differ there as a rule, as training changes all of a tensor; whoever edits a
 * few bytes in the middle of one is not found out.
 *
 * Threads: any; reads files.
 */
#ifndef SL_SERVICE_CONTENT_H
#define SL_SERVICE_CONTENT_H

#include "base/status.h"
#include "engine/model/model_dir.h"

#include <stdint.h>

typedef struct {
    uint8_t bytes[32];
} sl_content_id;

/* SL_ERR_PRECONDITION: the model lacks the component's file. */
sl_status sl_content_make_id(sl_content_id *out, const sl_model_info *info, sl_component_kind kind,
                             sl_error *err) SL_MUST_CHECK;

#endif
