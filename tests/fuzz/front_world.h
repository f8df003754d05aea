/* front_world.h - what fuzz_front.c puts around the front in place of network, threads
 * and time.
 *
 * The calls by which the front meets them are replaced when the program is linked
 * (--wrap, see CMakeLists.txt): epoll_wait asks the play (play_turn), connections are
 * pipes in memory, with BIOs of them for TLS, the clock stands unless the play moves it,
 * and the random numbers of a handshake are the same in every run.
 *
 * One thread.  A descriptor of a peer is FD_PEER and its index.
 */
#ifndef SL_TESTS_FUZZ_FRONT_WORLD_H
#define SL_TESTS_FUZZ_FRONT_WORLD_H

#include "service/door.h"
#include "service/front.h"
#include "service/transport.h"

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    PEERS = 6,
    PIPE_BYTES = 24 << 10, /* more than a TLS record */
    ASKED = 64,            /* requests of one peer that wait for an answer */
};

typedef enum { UNIX, TLS13, TLS12, TLS_NO_CERTIFICATE, TLS_STRANGER, KINDS } kind;

typedef struct {
    uint8_t bytes[PIPE_BYTES];
    size_t first, used;
} pipe_bytes;

typedef struct {
    bool used;
    kind kind;
    int fd, host;
    bool waiting; /* to be accepted */
    bool server_open;
    bool client_silent; /* it sends nothing any more */
    bool client_gone;   /* nor does it read */
    pipe_bytes to_server, to_client;
    SSL *ssl; /* the client's; NULL for UNIX */

    bool shakes; /* its handshake goes on by itself */
    bool reads;
    bool outlaw; /* it broke the protocol: nothing is owed to it */
    bool greeted, was_greeted;
    uint8_t *out; /* what it has to send, inside TLS */
    size_t out_used, out_room;
    uint8_t *in; /* what came, from the beginning of a frame */
    size_t in_used, in_room;
    uint32_t next_id, asked[ASKED];
    size_t asked_count;
} peer;

typedef struct {
    peer peers[PEERS];
    int64_t now_ns;
    uint64_t moved;   /* grows whenever anything gets on */
    int accept_fails; /* so many times, for want of descriptors */
    bool wakes;       /* the bridge has a reply */
} world;

extern world w;
extern sl_door door; /* what the front counts */

/* Certificates, keys, listeners; once. */
void world_init(void);
/* As at the beginning; what is left of the play before is freed. */
void world_reset(void);
/* Starts a front in this world, on a Unix and on a TLS listener, and runs it until it has
 * been stopped. */
void world_run(const sl_front_config *config);
void world_stop(int64_t grace_ns);
/* The keys are read again; revoking: the clients' certificate is on the list. */
void world_reload(bool revoking);

void peer_connect(int index, kind which, int host);
void peer_free(peer *p);
/* Bytes of the client's into the pipe; returns how many there was room for. */
size_t pipe_put(pipe_bytes *p, const void *bytes, size_t count);
size_t pipe_take(pipe_bytes *p, void *bytes, size_t room);

/* Of fuzz_front.c: called when the front waits and there are no events, so that
 * something happens. */
void play_turn(void);
/* Called before each look for events. */
void play_clients(void);

/* Ends the program with what is wrong. */
void must(int good, const char *what);

#endif
