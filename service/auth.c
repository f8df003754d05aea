#include "service/auth.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

const char *sl_role_name(sl_role role)
{
    static const char *const names[] = { "none", "viewer", "user", "admin" };

    return (unsigned)role < SL_COUNT(names) ? names[role] : "unknown";
}

bool sl_role_parse(const char *text, sl_role *out)
{
    for (int role = SL_ROLE_VIEWER; role <= SL_ROLE_ADMIN; role++) {
        if (strcmp(text, sl_role_name((sl_role)role)) == 0) {
            *out = (sl_role)role;
            return true;
        }
    }
    return false;
}

bool sl_name_valid(const char *name, size_t length)
{
    static const char others[] = "._@+-";

    for (size_t i = 0; i < length; i++) {
        const char c = name[i];
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && (c == '\0' || !strchr(others, c)))
            return false;
    }
    return length > 0 && length < SL_NAME_BYTES;
}

sl_role sl_auth_role(const sl_auth *auth, uid_t uid)
{
    if (uid == 0 || uid == auth->daemon_uid)
        return SL_ROLE_ADMIN;
    return auth->local_users;
}

sl_status sl_auth_unix(const sl_auth *auth, int fd, sl_peer *out, sl_error *err)
{
    struct ucred cred;
    socklen_t size = sizeof cred;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) != 0)
        return sl_fail_errno(err, "could not ask who is connected");
    out->role = sl_auth_role(auth, cred.uid);
    snprintf(out->identity, sizeof out->identity, "uid:%u", (unsigned)cred.uid);
    snprintf(out->address, sizeof out->address, "unix:pid=%d", (int)cred.pid);
    return SL_OK;
}
