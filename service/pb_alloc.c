#include "service/pb_alloc.h"

static void *alloc_from_arena(void *arena, size_t size_bytes)
{
    return sl_arena_alloc_raw(arena, size_bytes); /* protobuf-c expects no zeros */
}

static void keep(void *arena, void *pointer)
{
    (void)arena;
    (void)pointer;
}

ProtobufCAllocator sl_pb_allocator(sl_arena *arena)
{
    return (ProtobufCAllocator){
        .alloc = alloc_from_arena,
        .free = keep, /* the arena's end frees everything */
        .allocator_data = arena,
    };
}
