/* validate.h - what protobuf-c does not check in an unpacked message.
 *
 * Strings must be UTF-8, enums one of their values, doubles numbers; all the
 * way down.  What a field means is for its handler to check.
 */
#ifndef SL_SERVICE_VALIDATE_H
#define SL_SERVICE_VALIDATE_H

#include "base/status.h"

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

/* SL_ERR_INVALID: field is the path to the first wrong one ("request.prompt"). */
sl_status sl_pb_validate(const ProtobufCMessage *message, char *field, size_t field_bytes,
                         sl_error *err) SL_MUST_CHECK;

#endif
