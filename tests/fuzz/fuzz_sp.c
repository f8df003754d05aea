/* fuzz_sp.c - the SP parser, with messages up to its bound and every cut of a stream.
 *
 * The input writes a stream: bytes as they are, runs of one byte, and frames whose
 * length is right, so that a few bytes of input reach a megabyte.  The stream is read
 * three times, cut differently; what comes out must be the stream's own bytes, and the
 * same each time.  Memory follows what has arrived, not what was announced.
 */
#include "base/size.h"
#include "service/sp.h"

#include <stdlib.h>
#include <string.h>

enum {
    STREAM_BYTES = 3 << 20,
    MAX_REQUESTS = 4096,
    SMALL_BYTES = 4096, /* what a parser may hold whatever has come */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char generate[] = "sluice.v1.Inference/Generate";
static const char upload[] = "sluice.v1.Inference/UploadInput";

typedef struct {
    uint8_t *bytes;
    size_t used;
} stream;

typedef struct {
    size_t ends[MAX_REQUESTS]; /* of the requests, in the stream */
    size_t count;
    size_t at; /* where it stopped */
    sl_status status;
} outcome;

/* --- writing the stream --- */

static void put(stream *s, const void *bytes, size_t count)
{
    if (count > STREAM_BYTES - s->used)
        count = STREAM_BYTES - s->used;
    if (count)
        memcpy(s->bytes + s->used, bytes, count);
    s->used += count;
}

static void put_run(stream *s, uint8_t value, size_t count)
{
    if (count > STREAM_BYTES - s->used)
        count = STREAM_BYTES - s->used;
    memset(s->bytes + s->used, value, count);
    s->used += count;
}

/* A frame that is as long as it says: ids, a method, and a payload of `run` bytes. */
static void put_frame(stream *s, sl_sp_framing framing, const char *method, unsigned ids,
                      size_t run)
{
    uint8_t header[SL_SP_MAX_HEADER_BYTES], id[4] = { 0, 0, 0, 7 };
    const size_t method_bytes = method ? strlen(method) : 0;
    const uint8_t field[2] = { 1 << 3 | 2, (uint8_t)method_bytes };
    const size_t body = (method ? sizeof field + method_bytes : 0) + run;

    put(s, header, sl_sp_header(header, framing, 4 * (uint64_t)ids + body));
    for (unsigned i = 0; i < ids; i++) {
        id[0] = i + 1 == ids ? 0x80 : 0;
        put(s, id, sizeof id);
    }
    if (method) {
        put(s, field, sizeof field);
        put(s, method, method_bytes);
    }
    put_run(s, 0, run);
}

static void write_stream(stream *s, sl_sp_framing framing, const uint8_t *data, size_t size)
{
    static const uint8_t hello[SL_SP_GREETING_BYTES] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 };
    static const char *const methods[] = { generate, upload, "sluice.v1.Inference/Health", NULL };

    while (size > 0) {
        const uint8_t word = *data++;
        size--;
        size_t n = (size_t)(word >> 2) + 1;
        const uint8_t a = size > 0 ? data[0] : 0, b = size > 1 ? data[1] : 0;
        switch (word & 3) {
        case 0: /* as they are */
            n = n < size ? n : size;
            put(s, data, n);
            break;
        case 1: /* up to 256 KiB of one byte */
            put_run(s, a, ((size_t)b + 1) * n * 16);
            n = size < 2 ? size : 2;
            break;
        case 2: /* the greeting */
            put(s, hello, sizeof hello);
            n = 0;
            break;
        default: /* a frame; the longest are just above the bounds */
            put_frame(s, framing, methods[word >> 2 & 3], word >> 4,
                      ((size_t)a << 12) + ((size_t)b << 4));
            n = size < 2 ? size : 2;
        }
        data += n;
        size -= n;
    }
}

/* --- reading it --- */

/* As the service's: what carries prompts or data may be long, what is unknown is short. */
static size_t bound_of(void *arg, const char *method, size_t method_bytes)
{
    (void)arg;
    if (method_bytes == sizeof generate - 1 && memcmp(method, generate, method_bytes) == 0)
        return SL_SP_MAX_MESSAGE_BYTES;
    return method_bytes == sizeof upload - 1 && memcmp(method, upload, method_bytes) == 0 ? 400000
                                                                                          : 0;
}

static void check_request(const sl_sp *sp, const stream *s, size_t end)
{
    const sl_sp_request request = sl_sp_get(sp);
    const size_t bytes = request.id_bytes + request.body_bytes;

    SL_ASSERT(request.id_bytes >= 4 && request.id_bytes <= 4 * SL_SP_MAX_IDS);
    SL_ASSERT(request.ids[request.id_bytes - 4] & 0x80);
    SL_ASSERT(request.body == request.ids + request.id_bytes && bytes <= end);
    SL_ASSERT(memcmp(request.ids, s->bytes + end - bytes, bytes) == 0);
}

/* piece(i): the most bytes of the i-th read. */
static void read_stream(const stream *s, sl_sp_framing framing, size_t (*piece)(size_t i),
                        outcome *out)
{
    sl_error err = { .status = SL_OK };
    sl_sp sp;

    out->count = out->at = 0;
    out->status = SL_OK;
    sl_sp_init(&sp, framing, bound_of, NULL);
    for (size_t i = 0; out->status == SL_OK; i++) {
        uint8_t *to = NULL;
        if (sl_sp_is_ready(&sp)) {
            check_request(&sp, s, out->at);
            if (out->count == MAX_REQUESTS)
                break;
            out->ends[out->count++] = out->at;
            sl_sp_release(&sp);
            SL_ASSERT(sp.capacity <= SMALL_BYTES && !sl_sp_mid_message(&sp));
        }
        if (out->at == s->used)
            break;
        size_t room = sl_sp_space(&sp, &to);
        SL_ASSERT(room > 0);
        room = room < piece(i) ? room : piece(i);
        room = room < s->used - out->at ? room : s->used - out->at;
        memcpy(to, s->bytes + out->at, room);
        out->at += room;
        out->status = sl_sp_advance(&sp, room, &err);
        SL_ASSERT(sp.capacity <= SMALL_BYTES || sp.capacity <= 2 * (sp.used + SMALL_BYTES));
    }
    SL_ASSERT(out->status == SL_OK || (out->status == SL_ERR_DATA && err.message[0]));
    sl_sp_fini(&sp);
}

static size_t whole(size_t i)
{
    (void)i;
    return STREAM_BYTES;
}

static size_t in_records(size_t i)
{
    return i % 3 ? 16384 : 100;
}

static size_t in_crumbs(size_t i)
{
    return i < 4096 ? 1 + i % 7 : 4093;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static outcome first, other;
    static size_t (*const cuts[])(size_t) = { in_records, in_crumbs };

    if (size == 0)
        return 0;
    const sl_sp_framing framing = data[0] & 1 ? SL_SP_IPC : SL_SP_STREAM;
    stream s = { malloc(STREAM_BYTES), 0 };
    SL_ASSERT(s.bytes);
    write_stream(&s, framing, data + 1, size - 1);
    read_stream(&s, framing, whole, &first);
    for (size_t i = 0; i < SL_COUNT(cuts); i++) {
        read_stream(&s, framing, cuts[i], &other);
        SL_ASSERT(other.status == first.status && other.count == first.count);
        SL_ASSERT(memcmp(other.ends, first.ends, first.count * sizeof first.ends[0]) == 0);
    }
    free(s.bytes);
    return 0;
}
