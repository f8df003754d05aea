#include "clients/c/cli.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void add_raw(cJSON *object, const char *name, const char *text)
{
    if (object)
        cJSON_AddRawToObject(object, name, text);
}

/* cJSON keeps numbers as doubles; bytes and nanoseconds need all 64 bits. */
static cJSON *number_u64(uint64_t value)
{
    char text[32];

    snprintf(text, sizeof text, "%" PRIu64, value);
    return cJSON_CreateRaw(text);
}

static cJSON *number_i64(int64_t value)
{
    char text[32];

    snprintf(text, sizeof text, "%" PRId64, value);
    return cJSON_CreateRaw(text);
}

/* "TEXT_ENCODER" becomes "text_encoder", "PRECISION_DEFAULT" "default",
 * "CANCELLED_STATE" (named so only to be unique in C) "cancelled", and what
 * ends in UNSPECIFIED an empty string. */
static cJSON *enum_text(const ProtobufCEnumDescriptor *type, int value)
{
    static const char unspecified[] = "UNSPECIFIED", fallback[] = "_DEFAULT", state[] = "_STATE";
    const ProtobufCEnumValue *known = protobuf_c_enum_descriptor_get_value(type, value);
    char text[64];
    size_t length = 0;

    if (!known)
        return number_i64(value);
    snprintf(text, sizeof text, "%s", known->name);
    length = strlen(text);
    if (length >= sizeof unspecified - 1 &&
        strcmp(text + length - (sizeof unspecified - 1), unspecified) == 0)
        return cJSON_CreateString("");
    if (length > sizeof fallback - 1 &&
        strcmp(text + length - (sizeof fallback - 1), fallback) == 0)
        return cJSON_CreateString("default");
    if (length > sizeof state - 1 && strcmp(text + length - (sizeof state - 1), state) == 0)
        text[length - (sizeof state - 1)] = 0;
    for (char *p = text; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    return cJSON_CreateString(text);
}

/* One value of a field; at points to it. */
static cJSON *value_of(const ProtobufCFieldDescriptor *field, const void *at)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return number_i64(*(const int32_t *)at);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return number_i64(*(const int64_t *)at);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return number_u64(*(const uint32_t *)at);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return number_u64(*(const uint64_t *)at);
    case PROTOBUF_C_TYPE_FLOAT:
        return cJSON_CreateNumber((double)*(const float *)at);
    case PROTOBUF_C_TYPE_DOUBLE:
        return cJSON_CreateNumber(*(const double *)at);
    case PROTOBUF_C_TYPE_BOOL:
        return cJSON_CreateBool(*(const protobuf_c_boolean *)at);
    case PROTOBUF_C_TYPE_ENUM:
        return enum_text(field->descriptor, *(const int *)at);
    case PROTOBUF_C_TYPE_STRING:
        return cJSON_CreateString(*(char *const *)at ? *(char *const *)at : "");
    case PROTOBUF_C_TYPE_MESSAGE:
        return *(void *const *)at ? cli_json_message(*(void *const *)at) : cJSON_CreateNull();
    case PROTOBUF_C_TYPE_BYTES:
        break;
    }
    return NULL;
}

static size_t element_bytes(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    default:
        return 4;
    }
}

static cJSON *list_of(const ProtobufCFieldDescriptor *field, const char *base)
{
    const size_t count = *(const size_t *)(const void *)(base + field->quantifier_offset);
    const char *items = *(const char *const *)(const void *)(base + field->offset);
    cJSON *list = cJSON_CreateArray();

    for (size_t i = 0; list && i < count; i++)
        cJSON_AddItemToArray(list, value_of(field, items + i * element_bytes(field->type)));
    return list;
}

cJSON *cli_json_message(const void *message)
{
    const ProtobufCMessageDescriptor *type = ((const ProtobufCMessage *)message)->descriptor;
    const char *base = message;
    cJSON *object = cJSON_CreateObject();

    for (unsigned i = 0; object && i < type->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &type->fields[i];

        if (field->type == PROTOBUF_C_TYPE_BYTES)
            continue;
        cJSON_AddItemToObject(object, field->name,
                              field->label == PROTOBUF_C_LABEL_REPEATED
                                  ? list_of(field, base)
                                  : value_of(field, base + field->offset));
    }
    return object;
}

void cli_json_u64(cJSON *object, const char *name, uint64_t value)
{
    char text[32];

    snprintf(text, sizeof text, "%" PRIu64, value);
    add_raw(object, name, text);
}

/* DEL and the 8-bit control characters, which cJSON leaves as they are; they
 * occur in strings only. */
static void put_json(const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == 0x7f)
            fputs("\\u007f", stdout);
        else if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0)
            printf("\\u%04x", *++p);
        else
            putchar(*p);
    }
    putchar('\n');
}

void cli_json_print(cJSON *object)
{
    char *text = object ? cJSON_PrintUnformatted(object) : NULL;

    put_json(text ? text : "{\"error\":{\"code\":\"INTERNAL\",\"message\":\"out of memory\"}}");
    fflush(stdout);
    cJSON_free(text);
    cJSON_Delete(object);
}
