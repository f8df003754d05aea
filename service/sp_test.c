#include "service/sp.h"

#include "base/test.h"

#include <string.h>

enum { BIG_BOUND = 1 << 20 };

static size_t bound(void *arg, const char *method, size_t method_bytes)
{
    (void)arg;
    return method_bytes == 3 && memcmp(method, "big", 3) == 0 ? BIG_BOUND : 0;
}

/* What a peer would see: requests taken, or why it was cut off. */
typedef struct {
    int requests;
    size_t last_ids, last_body;
    uint8_t last_first_byte;
} story;

/* Feeds at most `step` bytes at a time. */
static sl_status feed(sl_sp *sp, const uint8_t *data, size_t n, size_t step, story *told,
                      sl_error *err)
{
    while (n > 0) {
        uint8_t *at = NULL;
        size_t room = sl_sp_space(sp, &at);
        SL_CHECK(room > 0);
        if (room > step)
            room = step;
        if (room > n)
            room = n;
        memcpy(at, data, room);
        data += room;
        n -= room;
        const sl_status status = sl_sp_advance(sp, room, err);
        if (status != SL_OK)
            return status;
        if (sl_sp_is_ready(sp)) {
            const sl_sp_request r = sl_sp_get(sp);
            told->requests++;
            told->last_ids = r.id_bytes;
            told->last_body = r.body_bytes;
            told->last_first_byte = r.body_bytes ? r.body[0] : 0;
            SL_CHECK(sl_sp_space(sp, &at) == 0);
            sl_sp_release(sp);
        }
    }
    return SL_OK;
}

static const uint8_t greeting[8] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 };

/* A frame with `depth` ids and body; the last id ends the stack if ended. */
static size_t frame(uint8_t *out, sl_sp_framing framing, int depth, bool ended, const void *body,
                    size_t body_bytes)
{
    size_t n = sl_sp_header(out, framing, (uint64_t)depth * 4 + body_bytes);

    for (int i = 0; i < depth; i++) {
        memcpy(out + n, (uint8_t[]){ ended && i == depth - 1 ? 0x80 : 0, 0, 1, (uint8_t)i }, 4);
        n += 4;
    }
    memcpy(out + n, body, body_bytes);
    return n + body_bytes;
}

SL_TEST(takes_requests_in_any_pieces)
{
    static const sl_sp_framing framings[] = { SL_SP_STREAM, SL_SP_IPC };
    static const size_t steps[] = { 1, 2, 3, 7, 9, 64, 4096, 1 << 20 };
    uint8_t *data = malloc(20000);
    uint8_t body[6000];

    memset(body, 0x55, sizeof body);
    for (size_t f = 0; f < SL_COUNT(framings); f++) {
        size_t n = 0;
        memcpy(data, greeting, 8);
        n = 8;
        n += frame(data + n, framings[f], 1, true, body, 11);
        n += frame(data + n, framings[f], 8, true, body, sizeof body);
        n += frame(data + n, framings[f], 1, true, "", 0);
        for (size_t s = 0; s < SL_COUNT(steps); s++) {
            sl_sp sp;
            story told = { 0 };
            sl_sp_init(&sp, framings[f], bound, NULL);
            SL_CHECK(!sl_sp_greeted(&sp));
            SL_CHECK_OK(feed(&sp, data, n, steps[s], &told, err));
            SL_CHECK(told.requests == 3 && told.last_ids == 4 && told.last_body == 0);
            SL_CHECK(sl_sp_greeted(&sp) && !sl_sp_mid_message(&sp));
            sl_sp_fini(&sp);
        }
    }
    free(data);
}

SL_TEST(hands_out_ids_and_body)
{
    uint8_t data[256];
    sl_sp sp;
    story told = { 0 };

    memcpy(data, greeting, 8);
    const size_t n = 8 + frame(data + 8, SL_SP_IPC, 3, true, "xyz", 3);
    sl_sp_init(&sp, SL_SP_IPC, NULL, NULL);
    SL_CHECK_OK(feed(&sp, data, n, 5, &told, err));
    SL_CHECK(told.requests == 1 && told.last_ids == 12 && told.last_body == 3
             && told.last_first_byte == 'x');
    SL_CHECK_OK(feed(&sp, data + 8, 10, 5, &told, err));
    SL_CHECK(sl_sp_mid_message(&sp));
    sl_sp_fini(&sp);
}

static const struct {
    const char *what;
    size_t length;
    uint8_t bytes[24];
} broken[] = {
    { "HTTP", 8, "GET / HT" },
    { "a replier", 8, { 0, 'S', 'P', 0, 0, 0x31, 0, 0 } },
    { "another version", 8, { 0, 'S', 'P', 1, 0, 0x30, 0, 0 } },
    { "rest not 0", 8, { 0, 'S', 'P', 0, 0, 0x30, 0, 1 } },
    { "frame type 2", 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4 } },
    { "length 0", 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0 } },
    { "length 3", 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3 } },
    { "length 2^63", 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0 } },
    { "length 2^64-1",
      17,
      { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255 } },
    { "length 1 MiB + 1", 17, { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0x10, 0, 1 } },
    { "4 bytes without an end",
      21,
      { 0, 'S', 'P', 0, 0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1 } },
};

SL_TEST(cuts_off_what_is_not_sp)
{
    for (size_t i = 0; i < SL_COUNT(broken); i++) {
        for (size_t step = 1; step < 30; step += 7) {
            sl_sp sp;
            story told = { 0 };
            sl_sp_init(&sp, SL_SP_IPC, bound, NULL);
            if (feed(&sp, broken[i].bytes, broken[i].length, step, &told, err) != SL_ERR_DATA)
                fail_msg("%s was taken", broken[i].what);
            SL_CHECK(told.requests == 0 && err->message[0]);
            sl_sp_fini(&sp);
        }
    }
}

SL_TEST(bounds_the_id_stack)
{
    uint8_t data[1024];
    static const struct {
        int depth;
        bool ended, good;
    } cases[] = { { 1, true, true },    { 8, true, true },     { 9, true, false },
                  { 100, true, false }, { 100, false, false }, { 8, false, false } };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        sl_sp sp;
        story told = { 0 };
        /* The body has no top bit, so that it cannot end the stack. */
        const size_t n = frame(data, SL_SP_STREAM, cases[i].depth, cases[i].ended, "aaaa", 4);
        sl_sp_init(&sp, SL_SP_STREAM, NULL, NULL);
        SL_CHECK_OK(feed(&sp, greeting, 8, 8, &told, err));
        SL_CHECK((feed(&sp, data, n, 1000, &told, err) == SL_OK) == cases[i].good);
        SL_CHECK(told.requests == (cases[i].good ? 1 : 0));
        sl_sp_fini(&sp);
    }
}

/* An envelope of `total` bytes: `before` bytes of payload field, then the
 * method, then payload to the end. */
static uint8_t *envelope(size_t total, const char *method, size_t before)
{
    uint8_t *out = calloc(1, total);
    size_t n = 0;

    if (before) {
        out[n++] = 0x12;
        out[n++] = (uint8_t)((before & 0x7f) | 0x80);
        out[n++] = (uint8_t)((before >> 7 & 0x7f) | 0x80);
        out[n++] = (uint8_t)(before >> 14 & 0x7f);
        n += before;
    }
    out[n++] = 0x0a;
    out[n++] = (uint8_t)strlen(method);
    memcpy(out + n, method, strlen(method));
    n += strlen(method);
    const size_t rest = total - n - 4;
    out[n++] = 0x12;
    out[n++] = (uint8_t)((rest & 0x7f) | 0x80);
    out[n++] = (uint8_t)((rest >> 7 & 0x7f) | 0x80);
    out[n++] = (uint8_t)(rest >> 14 & 0x7f);
    return out;
}

SL_TEST(long_messages_must_name_their_method_early)
{
    static const struct {
        const char *what, *method;
        size_t total, before;
        bool good;
    } cases[] = {
        { "long, allowed", "big", 1000000, 0, true },
        { "exactly the bound", "big", (1 << 20) - 4, 0, true },
        { "long, not allowed", "small", 70000, 0, false },
        { "short enough for any", "small", 65532, 0, true },
        { "one more", "small", 65533, 0, false },
        { "method after some payload", "big", 200000, 1000, true },
        { "method too late", "big", 200000, 70000, false },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        sl_sp sp;
        story told = { 0 };
        uint8_t *body = envelope(cases[i].total, cases[i].method, cases[i].before);
        uint8_t *data = malloc(cases[i].total + 64);
        memcpy(data, greeting, 8);
        const size_t n = 8 + frame(data + 8, SL_SP_IPC, 1, true, body, cases[i].total);
        sl_sp_init(&sp, SL_SP_IPC, bound, NULL);
        const sl_status status = feed(&sp, data, n, 4096, &told, err);
        if ((status == SL_OK && told.requests == 1) != cases[i].good)
            fail_msg("%s: %s", cases[i].what, err->message);
        /* Cut off after the peek, not after the whole length. */
        if (!cases[i].good)
            SL_CHECK(sp.used <= SL_SP_PEEK_BYTES + 4096);
        sl_sp_fini(&sp);
        free(data);
        free(body);
    }
}

SL_TEST(memory_follows_what_arrived)
{
    sl_sp sp;
    story told = { 0 };
    uint8_t data[64];

    memcpy(data, greeting, 8);
    const size_t n = 8 + sl_sp_header(data + 8, SL_SP_IPC, 1 << 20);
    memset(data + n, 0x80, 10);
    sl_sp_init(&sp, SL_SP_IPC, bound, NULL);
    SL_CHECK_OK(feed(&sp, data, n + 10, 64, &told, err));
    SL_CHECK(sp.capacity <= 4096);
    sl_sp_fini(&sp);
}

SL_TEST(peeks_the_method_of_any_field_order)
{
    static const struct {
        const char *bytes;
        size_t length;
        const char *method; /* NULL: not found */
    } cases[] = {
        { "\x0a\x03two", 5, "two" },
        { "\x18\x05\x0a\x03two", 7, "two" },
        { "\x19"
          "12345678\x0a\x03two",
          14, "two" },
        { "\x1d"
          "1234\x0a\x03two",
          10, "two" },
        { "\x0a\x03one\x0a\x03two", 10, "two" },
        { "\x0a\x03one\x12\x7f", 7, "one" },
        { "\x0a\x04two", 5, NULL },
        { "\x0a", 1, NULL },
        { "", 0, NULL },
        { "\x08\x01", 2, NULL },          /* field 1 as a varint */
        { "\x03\x0a\x03two", 6, NULL },   /* field 0 */
        { "\x0b\x0a\x03two", 6, NULL },   /* a group */
        { "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x0a\x03two", 17, NULL },
        { "\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x0a\x03two", 16, NULL },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        const char *method = NULL;
        size_t n = 0;
        const bool found = sl_sp_peek_method((const uint8_t *)cases[i].bytes, cases[i].length,
                                             &method, &n);
        if (found != (cases[i].method != NULL))
            fail_msg("case %zu: %s", i, found ? "found" : "not found");
        if (found)
            SL_CHECK(n == strlen(cases[i].method) && memcmp(method, cases[i].method, n) == 0);
    }
}

/* Random bytes, and good streams with random damage: no crash, no request
 * longer than allowed; run under the sanitizers. */
SL_TEST(survives_noise)
{
    uint64_t x = 88172645463325252u;
    uint8_t data[600];

    for (int round = 0; round < 20000; round++) {
        sl_sp sp;
        story told = { 0 };
        memcpy(data, greeting, 8);
        size_t n = 8;
        for (int k = 0; k < 3; k++)
            n += frame(data + n, SL_SP_IPC, 1 + k, true, "\x0a\x03"
                                                         "bigabcdefghijkl",
                       17);
        const int damages = round % 4;
        for (int k = 0; k < damages; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            data[x % n] = (uint8_t)(x >> 32);
        }
        sl_sp_init(&sp, SL_SP_IPC, bound, NULL);
        const sl_status status = feed(&sp, data, n, 1 + (size_t)(x % 40), &told, err);
        SL_CHECK(status == SL_OK || status == SL_ERR_DATA);
        SL_CHECK(damages || (status == SL_OK && told.requests == 3));
        sl_sp_fini(&sp);
    }
}

SL_TEST_MAIN(SL_RUN(takes_requests_in_any_pieces), SL_RUN(hands_out_ids_and_body),
             SL_RUN(cuts_off_what_is_not_sp), SL_RUN(bounds_the_id_stack),
             SL_RUN(long_messages_must_name_their_method_early),
             SL_RUN(memory_follows_what_arrived), SL_RUN(peeks_the_method_of_any_field_order),
             SL_RUN(survives_noise))
