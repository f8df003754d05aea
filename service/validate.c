#include "service/validate.h"

#include "base/utf8.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>

static sl_status check_value(const ProtobufCFieldDescriptor *field, const void *at, char *name,
                             size_t name_bytes, sl_error *err)
{
    char inner[128];

    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = *(char *const *)at;
        if (text && !sl_utf8_valid(text))
            return sl_fail(err, SL_ERR_INVALID, "field \"%s\" is not UTF-8", name);
        return SL_OK;
    }
    case PROTOBUF_C_TYPE_ENUM: {
        const int value = *(const int *)at;
        if (!protobuf_c_enum_descriptor_get_value(field->descriptor, value))
            return sl_fail(err, SL_ERR_INVALID, "field \"%s\" has no value %d", name, value);
        return SL_OK;
    }
    case PROTOBUF_C_TYPE_DOUBLE:
        if (!isfinite(*(const double *)at))
            return sl_fail(err, SL_ERR_INVALID, "field \"%s\" is not a finite number", name);
        return SL_OK;
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *message = *(ProtobufCMessage *const *)at;
        if (!message)
            return SL_OK;
        const sl_status status = sl_pb_validate(message, inner, sizeof inner, err);
        if (status != SL_OK)
            snprintf(name, name_bytes, "%s.%s", field->name, inner);
        return status;
    }
    default:
        return SL_OK;
    }
}

static size_t value_bytes(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(int);
    case PROTOBUF_C_TYPE_DOUBLE:
        return sizeof(double);
    default:
        return 0; /* nothing to check */
    }
}

sl_status sl_pb_validate(const ProtobufCMessage *message, char *field, size_t field_bytes,
                         sl_error *err)
{
    const ProtobufCMessageDescriptor *descriptor = message->descriptor;
    const char *base = (const char *)message;

    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &descriptor->fields[i];
        const size_t size = value_bytes(f->type);
        const char *at = base + f->offset;
        size_t count = 1;

        /* A union holds something else while another member is set. */
        if (size == 0
            || ((f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
                && *(const uint32_t *)(base + f->quantifier_offset) != f->id))
            continue;
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            count = *(const size_t *)(base + f->quantifier_offset);
            at = *(char *const *)at;
        }
        for (size_t k = 0; k < count; k++) {
            snprintf(field, field_bytes, "%s", f->name);
            const sl_status status = check_value(f, at + k * size, field, field_bytes, err);
            if (status != SL_OK)
                return status;
        }
    }
    return SL_OK;
}
