/* auth.h - who a connection belongs to, and what they may do.
 *
 * On a Unix socket the kernel says who connected (SO_PEERCRED): the daemon's
 * own user and root are admins; everybody else has the role that `local_users`
 * in the configuration gives them, none by default.  Over TLS a client certificate
 * says it: its CN is the name, its OU the role.  A token in the request (tokens.h)
 * takes the place of either.  Without a role only Health answers.
 *
 * Plain values.  Threads: any.
 */
#ifndef SL_SERVICE_AUTH_H
#define SL_SERVICE_AUTH_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

typedef enum {
    SL_ROLE_NONE,
    SL_ROLE_VIEWER, /* looks */
    SL_ROLE_USER,   /* and has own jobs */
    SL_ROLE_ADMIN,  /* and loads models, and sees everybody's jobs */
} sl_role;

const char *sl_role_name(sl_role role); /* "none", "viewer", ... */
/* "viewer", "user" or "admin"; false for anything else. */
bool sl_role_parse(const char *text, sl_role *out);

/* What certificates and tokens may be made out to: 1 to 64 letters, digits and
 * . _ @ + - ; so a name needs no quotes anywhere. */
enum { SL_NAME_BYTES = 65 };
bool sl_name_valid(const char *name, size_t length);

enum { SL_IDENTITY_BYTES = 96, SL_ADDRESS_BYTES = 96 };

typedef struct {
    sl_role role;
    char identity[SL_IDENTITY_BYTES]; /* "uid:1000", "cert:alice" */
    char address[SL_ADDRESS_BYTES];   /* "unix:pid=812", "tcp:10.0.0.7:40112" */
} sl_peer;

typedef struct {
    uid_t daemon_uid;
    sl_role local_users; /* of other users of this machine */
} sl_auth;

/* fd is a connected Unix socket. */
sl_status sl_auth_unix(const sl_auth *auth, int fd, sl_peer *out, sl_error *err) SL_MUST_CHECK;

/* The rule itself. */
sl_role sl_auth_role(const sl_auth *auth, uid_t uid);

#endif
