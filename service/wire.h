/* wire.h - bounds and byte order of the wire (api/WIRE.md). */
#ifndef SL_SERVICE_WIRE_H
#define SL_SERVICE_WIRE_H

#include <stdint.h>

enum {
    SL_WIRE_MAX_CHUNK_BYTES = 4 << 20, /* of an output, in one reply */
    SL_WIRE_MAX_REPLY_BYTES = SL_WIRE_MAX_CHUNK_BYTES + (64 << 10),
    SL_WIRE_API_VERSION = 1,
    SL_WIRE_API_VERSION_LEAST = 1,
};

static inline void sl_wire_put_u32(uint8_t out[4], uint32_t value)
{
    out[0] = (uint8_t)(value >> 24);
    out[1] = (uint8_t)(value >> 16);
    out[2] = (uint8_t)(value >> 8);
    out[3] = (uint8_t)value;
}

static inline uint32_t sl_wire_get_u32(const uint8_t in[4])
{
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

#endif
