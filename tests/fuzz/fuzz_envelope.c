/* fuzz_envelope.c - what clients and workers send.  The first byte says as what the
 * rest is read: a stream of the front's, cut into pieces, or one of the messages.
 *
 * A message that passes comes back the same when it is packed and unpacked again; whatever it is,
 * unpacking stays below the cap.
 */
#include "api/peer.pb-c.h"
#include "api/sluice.pb-c.h"
#include "api/worker.pb-c.h"
#include "service/pb_alloc.h"
#include "service/sp.h"
#include "service/validate.h"

#include <string.h>

enum { CAP_BYTES = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const ProtobufCMessageDescriptor *const messages[] = {
    &sluice__v1__envelope__descriptor,
    &sluice__v1__generate_request__descriptor,
    &sluice__v1__plan_job_request__descriptor,
    &sluice__v1__decode_latent_request__descriptor,
    &sluice__v1__load_model_request__descriptor,
    &sluice__v1__unload_model_request__descriptor,
    &sluice__v1__switch_model_request__descriptor,
    &sluice__v1__watch_job_request__descriptor,
    &sluice__v1__get_job_request__descriptor,
    &sluice__v1__list_jobs_request__descriptor,
    &sluice__v1__cancel_job_request__descriptor,
    &sluice__v1__fetch_output_request__descriptor,
    &sluice__v1__explain_job_request__descriptor,
    &sluice__v1__clean_outputs_request__descriptor,
    &sluice__v1__watch_events_request__descriptor,
    &sluice__v1__drain_request__descriptor,
    &sluice__v1__reply__descriptor,
    &sluice__v1__watch_job_reply__descriptor,
    &sluice__worker__command__descriptor,
    &sluice__worker__event__descriptor,
    &sluice__peer__peer__descriptor,
    &sluice__v1__upload_input_request__descriptor,
    &sluice__v1__get_server_info_reply__descriptor,
};

static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *type, sl_arena *arena,
                                const uint8_t *data, size_t size)
{
    ProtobufCAllocator allocator = sl_pb_allocator(arena);

    return protobuf_c_message_unpack(type, &allocator, size, data);
}

/* The bytes of a message, in the arena. */
static uint8_t *pack(const ProtobufCMessage *message, sl_arena *arena, size_t *size)
{
    *size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = sl_arena_alloc(arena, *size + 1);
    SL_ASSERT(bytes && protobuf_c_message_pack(message, bytes) == *size);
    return bytes;
}

static void read_message(const ProtobufCMessageDescriptor *type, const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    sl_arena *arena = NULL, *rest = NULL;
    char field[128] = "";

    SL_ASSERT(sl_arena_create(&arena, CAP_BYTES, &err) == SL_OK);
    SL_ASSERT(sl_arena_create(&rest, 0, &err) == SL_OK);
    const ProtobufCMessage *message = unpack(type, arena, data, size);
    SL_ASSERT(sl_arena_used_bytes(arena) <= CAP_BYTES);
    if (message && sl_pb_validate(message, field, sizeof field, &err) != SL_OK) {
        SL_ASSERT(err.status == SL_ERR_INVALID && field[0] && err.message[0]);
    } else if (message) {
        size_t once_bytes, twice_bytes;
        const uint8_t *once = pack(message, rest, &once_bytes);
        const ProtobufCMessage *again = unpack(type, rest, once, once_bytes);
        /* The library takes unknown fields with the number 0, and refuses what it makes
         * of them. */
        const uint8_t *twice = again ? pack(again, rest, &twice_bytes) : NULL;
        SL_ASSERT(!again || sl_pb_validate(again, field, sizeof field, &err) == SL_OK);
        SL_ASSERT(!twice || (once_bytes == twice_bytes && memcmp(once, twice, once_bytes) == 0));
    }
    sl_arena_destroy(arena);
    sl_arena_destroy(rest);
}

/* As the method's: Generate may be long, what is unknown is short. */
static size_t bound_of(void *arg, const char *method, size_t method_bytes)
{
    static const char generate[] = "sluice.v1.Inference/Generate";

    (void)arg;
    return method_bytes == sizeof generate - 1 && memcmp(method, generate, method_bytes) == 0
               ? SL_SP_MAX_MESSAGE_BYTES
               : 0;
}

/* Pieces as long as the first byte says, so that every cut is tried. */
static void read_stream(const uint8_t *data, size_t size)
{
    sl_error err = { .status = SL_OK };
    sl_status status = SL_OK;
    const size_t piece = size ? data[0] % 64 + 1 : 1;
    size_t at = size ? 1 : 0;
    sl_sp sp;

    sl_sp_init(&sp, size && data[0] >= 128 ? SL_SP_IPC : SL_SP_STREAM, bound_of, NULL);
    while (status == SL_OK && at < size) {
        uint8_t *to = NULL;
        size_t room = sl_sp_space(&sp, &to);

        if (sl_sp_is_ready(&sp)) {
            const sl_sp_request request = sl_sp_get(&sp);
            SL_ASSERT(request.id_bytes >= 4 && request.id_bytes <= 4 * SL_SP_MAX_IDS);
            read_message(messages[0], request.body, request.body_bytes);
            sl_sp_release(&sp);
            continue;
        }
        if (room == 0)
            break; /* no memory */
        room = room < piece ? room : piece;
        room = room < size - at ? room : size - at;
        memcpy(to, data + at, room);
        at += room;
        status = sl_sp_advance(&sp, room, &err);
    }
    SL_ASSERT(status == SL_OK || (status == SL_ERR_DATA && err.message[0]));
    sl_sp_fini(&sp);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const size_t select = data[0] % (SL_COUNT(messages) + 1);
    if (select == SL_COUNT(messages))
        read_stream(data + 1, size - 1);
    else
        read_message(messages[select], data + 1, size - 1);
    return 0;
}
