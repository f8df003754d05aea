/* test_server.h - a server that does what a test's script says, on purpose wrong.
 *
 * One thread; the script is called for each connection, one after the other.
 * Failures to set it up fail the running test.
 *
 * Ownership: start/end, caller's storage.  Threads: the script runs on the
 * server's thread, everything else on the test's.
 */
#ifndef SL_CLIENTS_C_TEST_SERVER_H
#define SL_CLIENTS_C_TEST_SERVER_H

#include "clients/c/sluice.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct server server;
typedef void (*script_fn)(server *s, int fd, int connection);

struct server {
    script_fn script;
    char dir[64], path[96];
    int listener;
    int stop[2]; /* written to when the test ends */
    pthread_t thread;
    atomic_int connections, requests;
    const uint8_t *file; /* for scripts that serve one */
    size_t file_bytes;
    const char *sha256;
};

extern const uint8_t server_hello[8]; /* of a REP socket */

/* start: name and run; end: halt and remove.  A server that was halted can run
 * again under its name. */
void server_start(server *s, script_fn script);
void server_name(server *s);
void server_run(server *s, script_fn script);
void server_halt(server *s);
void server_end(server *s);

/* ---- for scripts ---- */

/* False once the test ends or the client is gone. */
bool server_read(server *s, int fd, void *data, size_t size_bytes);
void server_write(int fd, const void *data, size_t size_bytes);
void server_linger(server *s, int fd); /* until the client goes away or the test ends */
bool server_greet(server *s, int fd);
/* The envelope of the next request, NULL at the end; id is as on the wire. */
Sluice__V1__Envelope *server_request(server *s, int fd, uint8_t id[4]);
/* A whole reply message: mark, length, id, body; free it. */
uint8_t *server_make_reply(const uint8_t id[4], const void *body, size_t body_bytes, size_t *bytes);
void server_reply(int fd, const uint8_t id[4], const Sluice__V1__Reply *reply);

#endif
