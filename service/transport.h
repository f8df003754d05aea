/* transport.h - the byte stream under the SP frames of one connection.
 *
 * The front knows streams only through this: Unix sockets (transport_unix.c) and TLS
 * (transport_tls.c).  Streams never block.
 *
 * Ownership: a listener's accept makes a transport, the front closes it.
 * Threads:   the front's.
 */
#ifndef SL_SERVICE_TRANSPORT_H
#define SL_SERVICE_TRANSPORT_H

#include "base/status.h"
#include "service/auth.h"
#include "service/sp.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

typedef enum {
    SL_IO_DONE,       /* *count bytes, 1 or more */
    SL_IO_WAIT_READ,  /* again when fd is readable */
    SL_IO_WAIT_WRITE, /* again when fd is writable */
    SL_IO_END,        /* closed by the peer, or broken */
} sl_io;

typedef struct sl_transport sl_transport;

typedef struct {
    sl_io (*read)(sl_transport *transport, uint8_t *at, size_t room, size_t *count);
    sl_io (*write)(sl_transport *transport, const uint8_t *at, size_t size, size_t *count);
    /* Who it is; asked once, after the SP greeting has come. */
    sl_status (*identify)(sl_transport *transport, sl_peer *out, sl_error *err);
    /* Read has bytes at once although fd may not become readable; NULL: never. */
    bool (*pending)(const sl_transport *transport);
    /* Why it may go on no longer, or NULL; asked now and then.  NULL: it always may. */
    const char *(*lapsed)(sl_transport *transport);
    void (*close)(sl_transport *transport); /* and fd */
} sl_transport_ops;

struct sl_transport {
    const sl_transport_ops *ops;
    sl_sp_framing framing;
    int fd;                         /* for epoll */
    char address[SL_ADDRESS_BYTES]; /* "tcp:10.0.0.7:40112"; for messages */
    size_t host_bytes;              /* of address, without the port; 0: of this machine */
    int64_t greeting_ns;            /* for handshake and SP greeting; 0: as the front has it */
    void *state;                    /* of the implementation */
};

typedef struct sl_listener sl_listener;

struct sl_listener {
    int fd; /* listens, never blocks */
    /* Takes fd over, also on failure. */
    sl_status (*accept)(sl_listener *listener, int fd, sl_transport *out, sl_error *err);
    void (*close)(sl_listener *listener); /* and frees it */
};

/* A Unix socket at path, with these permissions from its first moment.  A
 * socket that is there and answers is SL_ERR_EXISTS; one that does not is
 * replaced; anything else at path is SL_ERR_EXISTS too.  Close removes path if it
 * is still this socket.  auth is borrowed. */
sl_status sl_unix_listen(sl_listener **out, const char *path, mode_t mode, const sl_auth *auth,
                         sl_error *err) SL_MUST_CHECK;

#endif
