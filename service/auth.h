/* auth.h - who a connection belongs to, and what they may do.
 *
 * On a Unix socket the kernel says who connected (SO_PEERCRED): the daemon's
 * own user and root are admins; everybody else has the role that `local_users`
 * in the configuration gives them, none by default.  Without a role only Health
 * answers.
 *
 * Plain values.  Threads: any.
 */
#ifndef SL_SERVICE_AUTH_H
#define SL_SERVICE_AUTH_H

#include "base/status.h"

#include <sys/types.h>

typedef enum {
    SL_ROLE_NONE,
    SL_ROLE_VIEWER, /* looks */
    SL_ROLE_USER,   /* and has own jobs */
    SL_ROLE_ADMIN,  /* and loads models, and sees everybody's jobs */
} sl_role;

const char *sl_role_name(sl_role role); /* "none", "viewer", ... */

enum { SL_IDENTITY_BYTES = 96, SL_ADDRESS_BYTES = 96 };

typedef struct {
    sl_role role;
    char identity[SL_IDENTITY_BYTES]; /* "uid:1000" */
    char address[SL_ADDRESS_BYTES];   /* "unix:pid=812" */
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
