#include "service/sp.h"

#include <stdlib.h>
#include <string.h>

enum {
    FIRST_CAPACITY = 4096,
    KEPT_CAPACITY = 4096, /* of an idle connection */
    PROTOCOL_REQ = 0x30,
    PROTOCOL_REP = 0x31,
};

static void make_greeting(uint8_t out[SL_SP_GREETING_BYTES], uint8_t protocol)
{
    const uint8_t bytes[SL_SP_GREETING_BYTES] = { 0, 'S', 'P', 0, 0, protocol, 0, 0 };

    memcpy(out, bytes, sizeof bytes);
}

void sl_sp_greeting(uint8_t out[SL_SP_GREETING_BYTES])
{
    make_greeting(out, PROTOCOL_REP);
}

size_t sl_sp_header(uint8_t out[SL_SP_MAX_HEADER_BYTES], sl_sp_framing framing, uint64_t length)
{
    size_t used = 0;

    if (framing == SL_SP_IPC)
        out[used++] = 1;
    for (int shift = 56; shift >= 0; shift -= 8)
        out[used++] = (uint8_t)(length >> shift);
    return used;
}

void sl_sp_init(sl_sp *sp, sl_sp_framing framing, sl_sp_bound *bound, void *bound_arg)
{
    *sp = (sl_sp){ .framing = framing, .bound = bound, .bound_arg = bound_arg };
}

void sl_sp_fini(sl_sp *sp)
{
    free(sp->bytes);
    sp->bytes = NULL;
    sp->capacity = 0;
}

static size_t header_bytes(const sl_sp *sp)
{
    if (sp->state == SL_SP_IN_GREETING)
        return SL_SP_GREETING_BYTES;
    return sp->framing == SL_SP_IPC ? 9 : 8;
}

size_t sl_sp_space(sl_sp *sp, uint8_t **at)
{
    if (sp->state == SL_SP_READY)
        return 0;
    if (sp->state != SL_SP_IN_MESSAGE) {
        *at = sp->header + sp->used;
        return header_bytes(sp) - sp->used;
    }
    if (sp->used == sp->capacity) {
        size_t capacity = sp->capacity ? 2 * sp->capacity : FIRST_CAPACITY;
        if (capacity > SL_SP_MAX_MESSAGE_BYTES)
            capacity = SL_SP_MAX_MESSAGE_BYTES;
        uint8_t *bytes = realloc(sp->bytes, capacity);
        if (!bytes)
            return 0;
        sp->bytes = bytes;
        sp->capacity = capacity;
    }
    const size_t end = sp->length < sp->capacity ? sp->length : sp->capacity;
    *at = sp->bytes + sp->used;
    return end - sp->used;
}

static sl_status take_greeting(sl_sp *sp, sl_error *err)
{
    uint8_t want[SL_SP_GREETING_BYTES];

    make_greeting(want, PROTOCOL_REQ);
    if (memcmp(sp->header, want, sizeof want) != 0)
        return sl_fail(err, SL_ERR_DATA,
                       "greeting %02x%02x%02x%02x%02x%02x%02x%02x is not that of an SP requester",
                       sp->header[0], sp->header[1], sp->header[2], sp->header[3], sp->header[4],
                       sp->header[5], sp->header[6], sp->header[7]);
    sp->state = SL_SP_IN_HEADER;
    sp->used = 0;
    return SL_OK;
}

static sl_status take_header(sl_sp *sp, sl_error *err)
{
    const uint8_t *p = sp->header;
    uint64_t length = 0;

    if (sp->framing == SL_SP_IPC && *p++ != 1)
        return sl_fail(err, SL_ERR_DATA, "frame type %d, expected 1", sp->header[0]);
    for (int i = 0; i < 8; i++)
        length = length << 8 | *p++;
    if (length > SL_SP_MAX_MESSAGE_BYTES)
        return sl_fail(err, SL_ERR_DATA, "message of %llu bytes, at most %d are taken",
                       (unsigned long long)length, SL_SP_MAX_MESSAGE_BYTES);
    if (length < 4)
        return sl_fail(err, SL_ERR_DATA, "message of %d bytes has no room for an id", (int)length);
    sp->state = SL_SP_IN_MESSAGE;
    sp->used = 0;
    sp->length = (size_t)length;
    sp->peeked = length <= SL_SP_PEEK_BYTES;
    return SL_OK;
}

size_t sl_sp_id_bytes(const uint8_t *bytes, size_t length)
{
    for (size_t n = 4; n <= length && n <= 4 * SL_SP_MAX_IDS; n += 4) {
        if (bytes[n - 4] & 0x80)
            return n;
    }
    return 0;
}

static sl_status check_stack(const sl_sp *sp, sl_error *err)
{
    if (sl_sp_id_bytes(sp->bytes, sp->used) == 0)
        return sl_fail(err, SL_ERR_DATA, "id stack of a message of %zu bytes has no end within %d",
                       sp->length, SL_SP_MAX_IDS);
    return SL_OK;
}

/* The first SL_SP_PEEK_BYTES of a longer message are here. */
static sl_status check_bound(const sl_sp *sp, sl_error *err)
{
    const char *method = NULL;
    size_t method_bytes = 0, bound = 0;
    sl_status status = check_stack(sp, err);

    if (status != SL_OK)
        return status;
    const size_t ids = sl_sp_id_bytes(sp->bytes, sp->used);
    if (!sl_sp_peek_method(sp->bytes + ids, sp->used - ids, &method, &method_bytes))
        return sl_fail(err, SL_ERR_DATA, "message of %zu bytes names no method in its first %d",
                       sp->length, SL_SP_PEEK_BYTES);
    if (sp->bound)
        bound = sp->bound(sp->bound_arg, method, method_bytes);
    if (bound == 0)
        bound = SL_SP_PEEK_BYTES;
    if (sp->length > bound)
        return sl_fail(err, SL_ERR_DATA, "message of %zu bytes for a method that takes %zu",
                       sp->length, bound);
    return SL_OK;
}

sl_status sl_sp_advance(sl_sp *sp, size_t count, sl_error *err)
{
    sl_status status = SL_OK;

    SL_ASSERT(sp->state != SL_SP_READY);
    sp->used += count;
    switch (sp->state) {
    case SL_SP_IN_GREETING:
        return sp->used == header_bytes(sp) ? take_greeting(sp, err) : SL_OK;
    case SL_SP_IN_HEADER:
        return sp->used == header_bytes(sp) ? take_header(sp, err) : SL_OK;
    case SL_SP_IN_MESSAGE:
        if (!sp->peeked && sp->used >= SL_SP_PEEK_BYTES) {
            sp->peeked = true;
            status = check_bound(sp, err);
        }
        if (status == SL_OK && sp->used == sp->length) {
            status = check_stack(sp, err);
            if (status == SL_OK)
                sp->state = SL_SP_READY;
        }
        return status;
    case SL_SP_READY:
        break;
    }
    return status;
}

bool sl_sp_is_ready(const sl_sp *sp)
{
    return sp->state == SL_SP_READY;
}

sl_sp_request sl_sp_get(const sl_sp *sp)
{
    SL_ASSERT(sp->state == SL_SP_READY);
    const size_t ids = sl_sp_id_bytes(sp->bytes, sp->length);
    return (sl_sp_request){
        .ids = sp->bytes,
        .id_bytes = ids,
        .body = sp->bytes + ids,
        .body_bytes = sp->length - ids,
    };
}

void sl_sp_release(sl_sp *sp)
{
    sp->state = SL_SP_IN_HEADER;
    sp->used = 0;
    if (sp->capacity > KEPT_CAPACITY)
        sl_sp_fini(sp);
}

bool sl_sp_greeted(const sl_sp *sp)
{
    return sp->state != SL_SP_IN_GREETING;
}

bool sl_sp_mid_message(const sl_sp *sp)
{
    return sp->state == SL_SP_IN_MESSAGE || (sp->state == SL_SP_IN_HEADER && sp->used > 0);
}

/* --- the envelope's method --- */

typedef struct {
    const uint8_t *at, *end;
} cursor;

static bool take_varint(cursor *c, uint64_t *out)
{
    uint64_t value = 0;

    for (int shift = 0; shift < 70 && c->at < c->end; shift += 7) {
        const uint8_t byte = *c->at++;
        if (shift < 64)
            value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *out = value;
            return true;
        }
    }
    return false;
}

bool sl_sp_peek_method(const uint8_t *bytes, size_t length, const char **method,
                       size_t *method_bytes)
{
    cursor c = { bytes, bytes + length };
    bool found = false;
    uint64_t tag, skip;

    /* A field that ends beyond what is known ends the search; of several, the
     * last counts, as in protobuf. */
    while (c.at < c.end) {
        if (!take_varint(&c, &tag) || tag >> 3 == 0)
            break;
        switch (tag & 7) {
        case 0:
            if (!take_varint(&c, &skip))
                return found;
            skip = 0;
            break;
        case 1:
            skip = 8;
            break;
        case 2:
            if (!take_varint(&c, &skip))
                return found;
            break;
        case 5:
            skip = 4;
            break;
        default:
            return found;
        }
        if (skip > (uint64_t)(c.end - c.at))
            break;
        if (tag == (1 << 3 | 2)) {
            *method = (const char *)c.at;
            *method_bytes = (size_t)skip;
            found = true;
        }
        c.at += skip;
    }
    return found;
}
