/* fuzz_front.c - the front itself: its state machine, its TLS, its SP parser, its
 * deadlines, in a world without network, threads and time (front_world.h).
 *
 * The input, after a byte for the caps, is a play of two bytes a word: who connects, what they send
 * below TLS, inside it or instead of it, when they read, which request the service (this file)
 * answers, how much time goes by, when keys are replaced.  The front turns until it has nothing to
 * do, then comes the next word.
 *
 * What must hold, whatever is played:
 *   - a client gets a greeting and whole frames; a reply has the ids of a request that it
 *     sent and that was not answered yet, and the bytes of that request's answer
 *   - in the end, when everything is answered and read, nobody who kept to the protocol
 *     waits for anything
 *   - the front never turns without getting on, its numbers are right, and after its end
 *     nothing is open
 */
#include "base/clock.h"
#include "service/bridge.h"
#include "tests/fuzz/front_world.h"

#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { UNDER_WAY = 12, MAX_REPLY_BYTES = 1 << 20 };

struct nng_msg {
    uint8_t ids[4 * SL_SP_MAX_IDS];
    uint8_t body[];
};

typedef struct {
    bool used;
    sl_bridge_tag tag;
    uint8_t ids[4 * SL_SP_MAX_IDS];
    size_t id_bytes;
    int64_t sent_ns;
    nng_msg *reply; /* NULL: not answered yet */
    size_t reply_bytes;
    uint64_t answered; /* in what order */
} request;

static const uint8_t *script;
static size_t script_bytes;
static request requests[UNDER_WAY];
static uint64_t answers;
static bool service_fails; /* the next request */
static enum { PLAYING, ENDING } stage;
static int settling_turns;

/* --- the service, behind the bridge --- */

struct sl_bridge {
    int capacity;
};

sl_status sl_bridge_create(sl_bridge **out, const char *url, int capacity, int wake_fd,
                           sl_error *err)
{
    static sl_bridge bridge;

    (void)url;
    (void)wake_fd;
    (void)err;
    must(capacity <= UNDER_WAY, "another capacity than it was told");
    bridge.capacity = capacity;
    *out = &bridge;
    return SL_OK;
}

static void forget(request *r)
{
    r->used = false;
    r->reply = NULL;
    w.moved++;
}

void sl_bridge_destroy(sl_bridge *bridge)
{
    (void)bridge;
    for (int i = 0; i < UNDER_WAY; i++) {
        free(requests[i].reply);
        forget(&requests[i]);
    }
}

int sl_bridge_in_flight(const sl_bridge *bridge)
{
    int count = 0;

    (void)bridge;
    for (int i = 0; i < UNDER_WAY; i++)
        count += requests[i].used;
    return count;
}

void nng_msg_free(nng_msg *message)
{
    free(message);
}

sl_status sl_bridge_send(sl_bridge *bridge, sl_bridge_tag tag, const sl_peer *from,
                         const sl_sp_request *sent, int64_t now_ns, sl_error *err)
{
    request *r = requests;

    must(from->identity[0] && from->address[0], "a request of nobody");
    must(sent->id_bytes >= 4 && sent->id_bytes <= 4 * SL_SP_MAX_IDS, "a request with odd ids");
    if (sl_bridge_in_flight(bridge) == bridge->capacity)
        return sl_fail(err, SL_ERR_BUSY, "%d requests are under way", bridge->capacity);
    if (service_fails) {
        service_fails = false;
        w.moved++;
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory");
    }
    while (r->used)
        r++;
    *r = (request){ .used = true, .tag = tag, .id_bytes = sent->id_bytes, .sent_ns = now_ns };
    memcpy(r->ids, sent->ids, sent->id_bytes);
    w.moved++;
    return SL_OK;
}

bool sl_bridge_expire(sl_bridge *bridge, int64_t since_ns, sl_bridge_tag *out)
{
    (void)bridge;
    for (int i = 0; i < UNDER_WAY; i++) {
        if (requests[i].used && requests[i].sent_ns < since_ns) {
            *out = requests[i].tag;
            free(requests[i].reply);
            forget(&requests[i]);
            return true;
        }
    }
    return false;
}

bool sl_bridge_receive(sl_bridge *bridge, sl_bridge_reply *out)
{
    request *first = NULL;

    (void)bridge;
    for (int i = 0; i < UNDER_WAY; i++)
        if (requests[i].used && requests[i].reply &&
            (!first || requests[i].answered < first->answered))
            first = &requests[i];
    if (!first)
        return false;
    *out = (sl_bridge_reply){ .tag = first->tag,
                              .message = first->reply,
                              .ids = first->reply->ids,
                              .id_bytes = first->id_bytes,
                              .body = first->reply->body,
                              .body_bytes = first->reply_bytes };
    forget(first);
    return true;
}

static uint32_t id_of(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

enum { BODY_PERIOD = 256 };

/* The answer to a request with this last id; it comes again after BODY_PERIOD bytes. */
static void fill_body(uint8_t *body, size_t bytes, uint32_t id)
{
    for (size_t i = 0; i < bytes && i < BODY_PERIOD; i++)
        body[i] = (uint8_t)(id * 7 + i * 13 + 1);
    for (size_t i = BODY_PERIOD; i < bytes; i += BODY_PERIOD)
        memcpy(body + i, body, bytes - i < BODY_PERIOD ? bytes - i : BODY_PERIOD);
}

static bool is_body(const uint8_t *body, size_t bytes, uint32_t id)
{
    uint8_t want[BODY_PERIOD];
    const size_t first = bytes < BODY_PERIOD ? bytes : BODY_PERIOD;

    fill_body(want, first, id);
    return memcmp(body, want, first) == 0 &&
           (bytes <= BODY_PERIOD || memcmp(body, body + BODY_PERIOD, bytes - BODY_PERIOD) == 0);
}

/* False: there is no request to answer, beginning with this one. */
static bool answer(unsigned from, size_t bytes)
{
    for (unsigned i = 0; i < UNDER_WAY; i++) {
        request *r = &requests[(from + i) % UNDER_WAY];
        if (!r->used || r->reply)
            continue;
        r->reply = malloc(sizeof *r->reply + bytes);
        must(r->reply != NULL, "out of memory");
        memcpy(r->reply->ids, r->ids, r->id_bytes);
        fill_body(r->reply->body, bytes, id_of(r->ids + r->id_bytes - 4));
        r->reply_bytes = bytes;
        r->answered = answers++;
        w.wakes = true;
        w.moved++;
        return true;
    }
    return false;
}

/* --- a client --- */

static void grow(uint8_t **bytes, size_t *room, size_t want)
{
    if (want <= *room)
        return;
    *room = 2 * want;
    *bytes = realloc(*bytes, *room);
    must(*bytes != NULL, "out of memory");
}

static void send_inside(peer *p, const void *bytes, size_t count)
{
    if (count == 0)
        return;
    grow(&p->out, &p->out_room, p->out_used + count);
    memcpy(p->out + p->out_used, bytes, count);
    p->out_used += count;
}

static void send_run(peer *p, uint8_t value, size_t count)
{
    if (count == 0)
        return;
    grow(&p->out, &p->out_room, p->out_used + count);
    memset(p->out + p->out_used, value, count);
    p->out_used += count;
}

static void send_greeting(peer *p)
{
    static const uint8_t hello[SL_SP_GREETING_BYTES] = { 0, 'S', 'P', 0, 0, 0x30, 0, 0 };

    p->outlaw |= p->greeted;
    p->greeted = true;
    send_inside(p, hello, sizeof hello);
}

/* A request that is right, with this many ids and a payload of `run` bytes. */
static void send_request(peer *p, const char *method, unsigned depth, size_t run)
{
    uint8_t header[SL_SP_MAX_HEADER_BYTES], ids[4 * SL_SP_MAX_IDS] = { 0 };
    uint8_t *last = ids + 4 * (depth - 1);
    const uint8_t field[2] = { 1 << 3 | 2, (uint8_t)strlen(method) };
    const uint32_t id = p->next_id++;

    if (p->asked_count == ASKED || !p->greeted)
        p->outlaw = true;
    else
        p->asked[p->asked_count++] = id;
    for (int i = 0; i < 4; i++)
        last[i] = (uint8_t)(id >> (24 - 8 * i));
    last[0] |= 0x80;
    send_inside(p, header,
                sl_sp_header(header, p->kind == UNIX ? SL_SP_IPC : SL_SP_STREAM,
                             4 * depth + sizeof field + strlen(method) + run));
    send_inside(p, ids, 4 * (size_t)depth);
    send_inside(p, field, sizeof field);
    send_inside(p, method, strlen(method));
    send_run(p, 0, run);
}

static void client_writes(peer *p)
{
    size_t n = 1, at = 0;

    ERR_clear_error();
    if (p->ssl && p->shakes && !SSL_is_init_finished(p->ssl))
        SSL_do_handshake(p->ssl);
    while (at < p->out_used && n > 0) {
        const size_t left = p->out_used - at;
        ERR_clear_error();
        if (p->kind == UNIX)
            n = pipe_put(&p->to_server, p->out + at, left);
        else if (!SSL_is_init_finished(p->ssl) || SSL_write_ex(p->ssl, p->out + at, left, &n) != 1)
            n = 0;
        at += n;
    }
    if (at)
        memmove(p->out, p->out + at, p->out_used - at);
    p->out_used -= at;
}

/* A whole frame has come. */
static void take_frame(peer *p, const uint8_t *frame, size_t bytes)
{
    static const uint8_t unavailable[2] = { 1 << 3, 14 }; /* the front's own answer */
    const size_t id_bytes = sl_sp_id_bytes(frame, bytes);
    size_t i = 0;

    must(id_bytes >= 4, "a reply without ids");
    const uint32_t id = id_of(frame + id_bytes - 4), plain = id & 0x7fffffff;
    const uint8_t *body = frame + id_bytes;
    const size_t body_bytes = bytes - id_bytes;
    must((body_bytes >= sizeof unavailable && memcmp(body, unavailable, sizeof unavailable) == 0) ||
             is_body(body, body_bytes, id),
         "a reply with another request's bytes");
    if (p->outlaw)
        return;
    while (i < p->asked_count && p->asked[i] != plain)
        i++;
    must(i < p->asked_count, "a reply that nobody waits for");
    p->asked[i] = p->asked[--p->asked_count];
}

static void take_frames(peer *p)
{
    const size_t head_bytes = p->kind == UNIX ? 9 : 8;
    uint8_t want[SL_SP_GREETING_BYTES];
    size_t at = 0;

    if (!p->was_greeted && p->in_used >= sizeof want) {
        sl_sp_greeting(want);
        must(memcmp(p->in, want, sizeof want) == 0, "another greeting than REP's");
        p->was_greeted = true;
        at = sizeof want;
    }
    while (p->was_greeted && p->in_used - at >= head_bytes) {
        const uint8_t *head = p->in + at;
        const size_t length = id_of(head + head_bytes - 4);
        must(p->kind != UNIX || head[0] == 1, "a frame without its mark");
        must(id_of(head + head_bytes - 8) == 0 && length <= MAX_REPLY_BYTES + 4 * SL_SP_MAX_IDS,
             "a frame that is too long");
        if (p->in_used - at - head_bytes < length)
            break;
        take_frame(p, head + head_bytes, length);
        at += head_bytes + length;
    }
    if (at)
        memmove(p->in, p->in + at, p->in_used - at);
    p->in_used -= at;
}

static void client_reads(peer *p)
{
    uint8_t bytes[4096];
    size_t n = 1;

    while (n > 0) {
        ERR_clear_error();
        if (p->kind == UNIX)
            n = pipe_take(&p->to_client, bytes, sizeof bytes);
        else if (!SSL_is_init_finished(p->ssl) || SSL_read_ex(p->ssl, bytes, sizeof bytes, &n) != 1)
            n = 0;
        if (n == 0)
            break;
        grow(&p->in, &p->in_room, p->in_used + n);
        memcpy(p->in + p->in_used, bytes, n);
        p->in_used += n;
        take_frames(p);
    }
}

void play_clients(void)
{
    for (int i = 0; i < PEERS; i++) {
        peer *p = &w.peers[i];
        if (!p->used || p->client_gone)
            continue;
        if (!p->client_silent)
            client_writes(p);
        if (p->reads)
            client_reads(p);
    }
}

/* --- the words --- */

static uint8_t next_byte(void)
{
    if (script_bytes == 0)
        return 0;
    script_bytes--;
    return *script++;
}

/* Bytes of the input: into TLS, or under it. */
static void say_bytes(peer *p, size_t count, bool under)
{
    count = count < script_bytes ? count : script_bytes;
    p->outlaw = true;
    if (!under)
        send_inside(p, script, count);
    else if (!p->client_silent)
        pipe_put(&p->to_server, script, count);
    script += count;
    script_bytes -= count;
}

static void say_request(peer *p, unsigned variant, unsigned number)
{
    if (variant & 1) /* up to 84 and 672 KiB, more than is taken of others */
        send_request(p, "Generate", 1, (size_t)number << (variant & 2 ? 14 : 11));
    else
        send_request(p, "Health", variant & 2 ? 1 + number % SL_SP_MAX_IDS : 1, number);
}

static void say_end(peer *p, unsigned variant)
{
    if (p->ssl && variant & 1) {
        ERR_clear_error();
        SSL_shutdown(p->ssl);
    }
    p->client_silent = true;
    p->client_gone |= (variant & 2) != 0;
    w.moved++;
}

static void say_time(unsigned number)
{
    static const int64_t steps_ms[] = { 1,     120,   600,    2100,    11000,
                                        31000, 61000, 700000, 2000000, (int64_t)86400000 * 400 };

    w.now_ns += steps_ms[number % SL_COUNT(steps_ms)] * SL_NS_PER_MS;
}

/* What a peer that is there does. */
static void say_of_peer(peer *p, unsigned verb, unsigned variant, unsigned number)
{
    switch (verb) {
    case 1:
        say_bytes(p, number + 1, false);
        break;
    case 2:
        say_bytes(p, number + 1, true);
        break;
    case 3:
        send_greeting(p);
        break;
    case 4:
        say_request(p, variant, number);
        break;
    case 5:
        p->reads = variant & 1;
        p->shakes = variant & 2;
        break;
    case 6:
        say_end(p, variant);
        break;
    case 7: /* many bytes of one kind */
        p->outlaw = true;
        send_run(p, variant & 1 ? 0x80 : 0, number << 8);
        break;
    default:
        if (!p->server_open && !p->waiting)
            peer_free(p);
    }
}

static void say_of_world(unsigned verb, unsigned variant, unsigned number)
{
    switch (verb) {
    case 9: /* up to 255 bytes, 16 KiB, 255 KiB */
        answer(number, (size_t)number << (variant == 3 ? 10 : variant == 2 ? 6 : 0));
        break;
    case 10:
        say_time(number);
        break;
    case 11:
        service_fails = true;
        break;
    case 12:
        w.accept_fails = (int)(number % 4);
        break;
    case 13:
        world_reload(variant & 1);
        break;
    case 14: /* the operator ends it in the middle */
        if (variant != 3)
            break;
        stage = ENDING;
        world_stop((int64_t)number * 10 * SL_NS_PER_MS);
        break;
    default:
        break;
    }
}

/* The first byte of a word: verb (4 bits), variant (2), and whether the front has its turn
 * before the next (the top bit).  The second: for whom, with what number. */
static void play_word(void)
{
    uint8_t word;

    do {
        word = next_byte();
        const unsigned verb = word & 15, variant = word >> 4 & 3, number = next_byte();
        peer *p = &w.peers[number % PEERS];
        w.moved++;
        if (verb == 0 && !p->used) {
            peer_connect((int)(number % PEERS), (kind)(number / PEERS % KINDS), variant & 1);
            p->shakes = !(variant & 2);
        } else if (verb >= 9) {
            say_of_world(verb, variant, number);
        } else if (p->used && verb > 0) {
            say_of_peer(p, verb, variant, number / PEERS);
        }
    } while (word & 0x80 && script_bytes > 0 && stage == PLAYING);
}

/* Everybody reads and goes on; the service answers.  True: nothing is left to do. */
static bool settle(void)
{
    bool waiting = false, changed = false;

    for (int i = 0; i < PEERS; i++) {
        peer *p = &w.peers[i];
        changed |= p->used && !(p->reads && p->shakes);
        p->reads = p->shakes = true;
        waiting |= p->used && p->waiting;
    }
    w.moved++;
    if (changed || answer(0, 5))
        return false;
    if (!waiting || settling_turns++ == 20)
        return true;
    w.accept_fails = 0; /* the front rests a tenth of a second without descriptors */
    w.now_ns += 120 * SL_NS_PER_MS;
    return false;
}

static void check_all_answered(void)
{
    for (int i = 0; i < PEERS; i++) {
        const peer *p = &w.peers[i];
        if (!p->used || !p->server_open || p->outlaw || p->client_gone || p->client_silent)
            continue;
        must(p->out_used == 0, "what a client has to say is not read");
        must(p->was_greeted, "a client was not greeted");
        must(p->asked_count == 0, "a request was not answered");
    }
}

static void check_numbers(void)
{
    int open = 0, states = 0;
    uint64_t taken = sl_door_get(&door, SL_DOOR_TAKEN), ended = 0;

    for (int i = 0; i < PEERS; i++)
        open += w.peers[i].used && w.peers[i].server_open;
    for (int i = 0; i < SL_DOOR_STATE_COUNT; i++)
        states += door.states[i];
    for (int i = 0; i < SL_DOOR_COUNT; i++)
        ended += sl_door_counts[i].family == SL_DOOR_FAMILY_ENDED
                     ? sl_door_get(&door, (sl_door_count)i)
                     : 0;
    must(door.connections == open, "it counts other connections than there are");
    must(states >= 0 && states <= 4, "more connections have a state than there may be");
    must(taken - ended == (uint64_t)open, "more or fewer have ended than were taken");
}

void play_turn(void)
{
    if (stage != ENDING) {
        check_numbers();
        must(door.in_flight == sl_bridge_in_flight(NULL),
             "it counts other requests than there are");
    }
    if (stage == PLAYING && script_bytes > 0) {
        play_word();
    } else if (stage == PLAYING && settle()) {
        check_all_answered();
        stage = ENDING;
        world_stop(0);
    } else if (stage == ENDING) { /* as long as it is patient with those that do not read */
        w.now_ns += 50 * SL_NS_PER_MS;
        w.moved++;
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    world_init();
    return 0;
}

static size_t bound_of(void *arg, const char *method, size_t method_bytes)
{
    (void)arg;
    return method_bytes == 8 && memcmp(method, "Generate", 8) == 0 ? SL_SP_MAX_MESSAGE_BYTES : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_front_config config = sl_front_config_default();
    const bool few = size > 0 && data[0] & 1;

    if (size == 0)
        return 0;
    config.connections = 4;
    config.limits.connections_each = config.limits.connections_host = 3;
    config.door = &door;
    config.in_flight = few ? 3 : UNDER_WAY;
    config.in_flight_each = few ? 2 : UNDER_WAY - 2;
    config.bound = bound_of;
    script = data + 1;
    script_bytes = size - 1;
    stage = PLAYING;
    service_fails = false;
    settling_turns = 0;
    answers = 0;
    world_reset();
    world_run(&config);
    check_numbers();
    return 0;
}
