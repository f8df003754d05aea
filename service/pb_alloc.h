/* pb_alloc.h - a protobuf-c allocator over an arena, so that unpacking is capped.
 *
 * What a peer sends may make the unpacker ask for many times its own size;
 * the arena's limit bounds that, and the arena's end frees it all at once.
 * protobuf_c_message_free_unpacked is not needed on such a message.
 */
#ifndef SL_SERVICE_PB_ALLOC_H
#define SL_SERVICE_PB_ALLOC_H

#include "base/arena.h"

#include <protobuf-c/protobuf-c.h>

/* The allocator borrows the arena. */
ProtobufCAllocator sl_pb_allocator(sl_arena *arena);

#endif
