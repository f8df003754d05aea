/* sp.h - the SP wire format, from the server's side: bytes in, requests out.
 *
 * A pure state machine: no sockets, no clock.  The caller asks where the next
 * bytes go (sl_sp_space), puts some there, and says how many (sl_sp_advance);
 * when that completes a request, it stays in the parser until sl_sp_release.
 * Nothing is read ahead, so a caller that stops asking stops reading.
 *
 * Memory grows with the bytes that have arrived, never with the length that was
 * announced.  A message longer than SL_SP_PEEK_BYTES must name, within that
 * many bytes, a method whose bound allows its length.
 *
 * What ends a connection (SL_ERR_DATA): another greeting than REQ's, a frame type
 * that is not 1, a length above the bound, an id stack deeper than
 * SL_SP_MAX_IDS or without an end.
 *
 * Formats: api/WIRE.md.
 * Ownership: init/fini, caller's storage.  Threads: one at a time.
 */
#ifndef SL_SERVICE_SP_H
#define SL_SERVICE_SP_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SL_SP_GREETING_BYTES = 8,
    SL_SP_MAX_IDS = 8,
    SL_SP_MAX_MESSAGE_BYTES = 1 << 20,
    SL_SP_PEEK_BYTES = 64 << 10,
    SL_SP_MAX_HEADER_BYTES = 9,
};

typedef enum {
    SL_SP_STREAM, /* tcp, tls: a length, then the message */
    SL_SP_IPC,    /* Unix sockets: one byte 01 before the length */
} sl_sp_framing;

/* The most bytes of a message (ids and envelope) that calls this method; 0 for
 * SL_SP_PEEK_BYTES.  method is not terminated. */
typedef size_t sl_sp_bound(void *arg, const char *method, size_t method_bytes);

typedef struct {
    const uint8_t *ids; /* 1 to SL_SP_MAX_IDS of 4 bytes; the last has its top bit set */
    size_t id_bytes;
    const uint8_t *body;
    size_t body_bytes;
} sl_sp_request;

typedef struct {
    sl_sp_framing framing;
    sl_sp_bound *bound;
    void *bound_arg;
    enum { SL_SP_IN_GREETING, SL_SP_IN_HEADER, SL_SP_IN_MESSAGE, SL_SP_READY } state;
    uint8_t header[SL_SP_MAX_HEADER_BYTES]; /* or the greeting */
    size_t used;                            /* of header or of bytes, by state */
    size_t length;                          /* of the message */
    uint8_t *bytes;
    size_t capacity;
    bool peeked;
} sl_sp;

/* bound may be NULL: then no message is longer than SL_SP_PEEK_BYTES. */
void sl_sp_init(sl_sp *sp, sl_sp_framing framing, sl_sp_bound *bound, void *bound_arg);
void sl_sp_fini(sl_sp *sp);

/* Where the next bytes go and how many at most; 0 while a request is ready, or
 * when memory ran out (sl_sp_is_ready tells). */
size_t sl_sp_space(sl_sp *sp, uint8_t **at);
/* count bytes have been put there. */
sl_status sl_sp_advance(sl_sp *sp, size_t count, sl_error *err) SL_MUST_CHECK;

bool sl_sp_is_ready(const sl_sp *sp);
/* The request that is ready; valid until release. */
sl_sp_request sl_sp_get(const sl_sp *sp);
void sl_sp_release(sl_sp *sp);

bool sl_sp_greeted(const sl_sp *sp);     /* the peer's greeting has come */
bool sl_sp_mid_message(const sl_sp *sp); /* a request has begun and is not whole */

/* What the server sends. */
void sl_sp_greeting(uint8_t out[SL_SP_GREETING_BYTES]);
/* The header of a message of length bytes; returns how many bytes it took. */
size_t sl_sp_header(uint8_t out[SL_SP_MAX_HEADER_BYTES], sl_sp_framing framing, uint64_t length);

/* The ids in front of bytes; 0 if there is no end within SL_SP_MAX_IDS. */
size_t sl_sp_id_bytes(const uint8_t *bytes, size_t length);
/* The method (field 1) of an Envelope of which `length` bytes are known; false
 * if it is not among them or they are no protobuf message. */
bool sl_sp_peek_method(const uint8_t *bytes, size_t length, const char **method,
                       size_t *method_bytes);

#endif
