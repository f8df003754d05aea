#include "service/uploads.h"

#include "service/handlers.h"
#include "service/outputs.h"

#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PART_PREFIX  ".input-up-"
#define WHOLE_PREFIX ".input-file-"

enum {
    KEEP_S = 3600,
    KEEP_OWN_S = 60, /* from another one of the same user */
    OWNER_BYTES = 17,
    NAME_BYTES = 33,
    PATH_BYTES = 4096,
};

/* One piece at a time: pieces of one file may come twice at once. */
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
    char owner[OWNER_BYTES];
    char part[PATH_BYTES], whole[PATH_BYTES];
} upload_paths;

typedef struct {
    int count;
    uint64_t size_bytes;
} share;

/* --- names --- */

static void to_hex(const uint8_t *bytes, size_t count, char *out)
{
    for (size_t i = 0; i < count; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
}

/* Whose it is and its id, as a file's name that neither can choose.  size_bytes is of the
 * whole; only for the part. */
static sl_status find_paths(const sl_service *s, const sl_rpc_call *call, const char *upload_id,
                            uint64_t size_bytes, upload_paths *out, sl_error *err)
{
    char text[SL_IDENTITY_BYTES + SL_REQUEST_ID_BYTES + 1], name[NAME_BYTES];
    uint8_t digest[SHA256_DIGEST_LENGTH];
    const int length = snprintf(text, sizeof text, "%s/%s", call->peer.identity, upload_id);

    SL_ASSERT(length > 0 && length < (int)sizeof text);
    SHA256((const uint8_t *)text, (size_t)length, digest);
    to_hex(digest, (NAME_BYTES - 1) / 2, name);
    SHA256((const uint8_t *)call->peer.identity, strlen(call->peer.identity), digest);
    to_hex(digest, (OWNER_BYTES - 1) / 2, out->owner);
    if (snprintf(out->part, sizeof out->part, "%s/" PART_PREFIX "%s-%s-%" PRIx64, s->outputs,
                 out->owner, name, size_bytes) >= (int)sizeof out->part ||
        snprintf(out->whole, sizeof out->whole, "%s/" WHOLE_PREFIX "%s-%s", s->outputs, out->owner,
                 name) >= (int)sizeof out->whole)
        return sl_fail(err, SL_ERR_IO, "the outputs directory's name is too long");
    return SL_OK;
}

/* --- shares --- */

/* What the file of an upload counts for, and whose it is; false: it is none. */
static bool read_name(const char *name, const struct stat *st, const char **owner,
                      uint64_t *size_bytes)
{
    if (strncmp(name, WHOLE_PREFIX, sizeof WHOLE_PREFIX - 1) == 0) {
        *owner = name + sizeof WHOLE_PREFIX - 1;
        *size_bytes = (uint64_t)st->st_size;
        return true;
    }
    const size_t before = sizeof PART_PREFIX - 1 + OWNER_BYTES + NAME_BYTES;
    if (strncmp(name, PART_PREFIX, sizeof PART_PREFIX - 1) != 0 || strlen(name) <= before)
        return false;
    *owner = name + sizeof PART_PREFIX - 1;
    *size_bytes = strtoull(name + before, NULL, 16);
    return true;
}

/* Removes what is old and counts the rest.  Of the owner's the one that was used longest
 * ago, if that is KEEP_OWN_S, becomes *oldest (or ""). */
static void count_uploads(const sl_service *s, const char *owner, share *own, share *all,
                          char oldest[NAME_MAX + 1])
{
    const time_t now = (time_t)(sl_clock_wall_ns() / SL_NS_PER_S);
    time_t oldest_time = now - KEEP_OWN_S;
    struct dirent *entry;
    DIR *dir = opendir(s->outputs);

    *own = *all = (share){ .count = 0 };
    oldest[0] = '\0';
    while (dir && (entry = readdir(dir)) != NULL) {
        struct stat st;
        const char *whose = NULL;
        uint64_t size_bytes = 0;
        if (entry->d_name[0] != '.' ||
            fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !read_name(entry->d_name, &st, &whose, &size_bytes))
            continue;
        if (st.st_mtime < now - KEEP_S) {
            unlinkat(dirfd(dir), entry->d_name, 0);
            continue;
        }
        all->count++;
        all->size_bytes += size_bytes;
        if (strncmp(whose, owner, OWNER_BYTES - 1) != 0)
            continue;
        own->count++;
        own->size_bytes += size_bytes;
        if (st.st_mtime <= oldest_time) {
            oldest_time = st.st_mtime;
            snprintf(oldest, NAME_MAX + 1, "%s", entry->d_name);
        }
    }
    if (dir)
        closedir(dir);
}

/* Room for one more of the owner's, of size_bytes. */
static sl_status make_room(const sl_service *s, const char *owner, uint64_t size_bytes,
                           sl_error *err)
{
    char oldest[NAME_MAX + 1], path[PATH_BYTES];
    share own, all;

    for (;;) {
        count_uploads(s, owner, &own, &all, oldest);
        if (own.count < SL_UPLOADS_EACH && own.size_bytes + size_bytes <= SL_UPLOADS_EACH_BYTES)
            break;
        if (oldest[0] == '\0')
            return sl_fail(
                err, SL_ERR_BUSY,
                "%d uploads of this user with %" PRIu64
                " bytes are under way or were used a moment ago: at most %d with %" PRIu64,
                own.count, own.size_bytes, SL_UPLOADS_EACH, SL_UPLOADS_EACH_BYTES);
        snprintf(path, sizeof path, "%s/%s", s->outputs, oldest);
        if (unlink(path) != 0 && errno != ENOENT)
            return sl_fail_errno(err, "could not remove an old upload in \"%s\"", s->outputs);
    }
    if (all.count >= SL_UPLOADS || all.size_bytes + size_bytes > SL_UPLOADS_BYTES)
        return sl_fail(err, SL_ERR_BUSY, "%d uploads of all users with %" PRIu64 " bytes: later",
                       all.count, all.size_bytes);
    return SL_OK;
}

/* --- a piece --- */

static sl_status check_piece(sl_rpc_call *call, const Sluice__V1__UploadInputRequest *r,
                             sl_error *err)
{
    if (!sl_request_id_valid(r->upload_id))
        return sl_rpc_fail_field(call, "upload_id", NULL, err,
                                 "upload_id of %zu bytes: expected 1 to %d of A-Z a-z 0-9 . _ -",
                                 strlen(r->upload_id), SL_REQUEST_ID_BYTES - 1);
    if (r->size_bytes == 0 || r->size_bytes > SL_UPLOAD_MAX_BYTES)
        return sl_rpc_fail_field(call, "size_bytes", NULL, err, "%llu bytes: expected 1 to %d",
                                 (unsigned long long)r->size_bytes, SL_UPLOAD_MAX_BYTES);
    if (r->offset > r->size_bytes || r->data.len > r->size_bytes - r->offset)
        return sl_rpc_fail_field(
            call, "offset", NULL, err, "a piece of %zu bytes at %llu does not lie in %llu bytes",
            r->data.len, (unsigned long long)r->offset, (unsigned long long)r->size_bytes);
    if (strlen(r->sha256) != 2 * SHA256_DIGEST_LENGTH)
        return sl_rpc_fail_field(call, "sha256", NULL, err, "sha256 is not 64 hexadecimal digits");
    return SL_OK;
}

static sl_status check_hash(sl_rpc_call *call, int fd, const Sluice__V1__UploadInputRequest *r,
                            sl_error *err)
{
    uint8_t block[1 << 14], digest[EVP_MAX_MD_SIZE];
    char hex[2 * SHA256_DIGEST_LENGTH + 1];
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool ok = context && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1;
    ssize_t n = 0;

    for (off_t at = 0; ok && (n = pread(fd, block, sizeof block, at)) > 0; at += n)
        ok = EVP_DigestUpdate(context, block, (size_t)n) == 1;
    ok = ok && n == 0 && EVP_DigestFinal_ex(context, digest, NULL) == 1;
    EVP_MD_CTX_free(context);
    if (!ok)
        return sl_fail(err, SL_ERR_IO, "an upload could not be read back");
    to_hex(digest, SHA256_DIGEST_LENGTH, hex);
    if (strcasecmp(hex, r->sha256) == 0)
        return SL_OK;
    return sl_rpc_fail_field(call, "sha256", NULL, err,
                             "what has come has the SHA-256 %s: send it again", hex);
}

/* Appends what is new of the piece; *received is then the file's length. */
static sl_status append(int fd, const Sluice__V1__UploadInputRequest *r, uint64_t *received,
                        sl_error *err)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return sl_fail_errno(err, "could not look at an upload");
    *received = (uint64_t)st.st_size;
    if (r->offset > *received || r->offset + r->data.len <= *received)
        return SL_OK; /* too early, or known: the reply says where to go on */
    for (size_t at = (size_t)(*received - r->offset); at < r->data.len;) {
        const ssize_t n = pwrite(fd, r->data.data + at, r->data.len - at, (off_t)(r->offset + at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sl_fail_errno(err, "could not write an upload");
        at += (size_t)n;
        *received = r->offset + at;
    }
    return SL_OK;
}

/* With the lock of writing. */
static sl_status take_piece(sl_service *s, sl_rpc_call *call, const upload_paths *paths,
                            const Sluice__V1__UploadInputRequest *r,
                            Sluice__V1__UploadInputReply *reply, sl_error *err)
{
    struct stat st;
    sl_status status = SL_OK;

    if (stat(paths->whole, &st) == 0 && (uint64_t)st.st_size == r->size_bytes) {
        reply->received_bytes = r->size_bytes;
        reply->complete = true;
        return SL_OK;
    }
    if (access(paths->part, F_OK) != 0)
        status = make_room(s, paths->owner, r->size_bytes, err);
    if (status != SL_OK)
        return status;
    const int fd = open(paths->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return sl_fail_errno(err, "could not open an upload in \"%s\"", s->outputs);
    status = append(fd, r, &reply->received_bytes, err);
    if (status == SL_OK && reply->received_bytes == r->size_bytes) {
        status = check_hash(call, fd, r, err);
        if (status == SL_OK && rename(paths->part, paths->whole) != 0)
            status = sl_fail_errno(err, "could not rename an upload");
        else if (status != SL_OK)
            unlink(paths->part);
        reply->complete = status == SL_OK;
    }
    close(fd);
    return status;
}

sl_status sl_handle_upload_input(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__UploadInputRequest *request = (const void *)call->request;
    Sluice__V1__UploadInputReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__upload_input_reply__descriptor);
    upload_paths *paths = sl_arena_alloc(call->arena, sizeof *paths);
    sl_outputs_room room;

    if (!reply || !paths)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply");
    sl_status status = check_piece(call, request, err);
    if (status == SL_OK)
        status = find_paths(s, call, request->upload_id, request->size_bytes, paths, err);
    if (status == SL_OK)
        status = sl_outputs_look(s, &room, err);
    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    status = sl_outputs_check_room(s, &room, request->data.len, err);
    pthread_mutex_unlock(&s->lock);
    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&writing);
    status = take_piece(s, call, paths, request, reply, err);
    pthread_mutex_unlock(&writing);
    call->reply = &reply->base;
    return status;
}

/* --- using one --- */

sl_status sl_upload_map(sl_service *s, const sl_rpc_call *call, const char *upload_id,
                        const uint8_t **bytes, size_t *size_bytes, sl_error *err)
{
    sl_status status = SL_OK;
    struct stat st;
    upload_paths *paths = calloc(1, sizeof *paths);
    int fd = -1;

    if (!paths)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    status = sl_request_id_valid(upload_id) ? find_paths(s, call, upload_id, 0, paths, err)
                                            : SL_ERR_NOT_FOUND;
    if (status == SL_OK)
        fd = open(paths->whole, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) != 0) {
        status = sl_fail(err, SL_ERR_NOT_FOUND, "there is no whole upload \"%.80s\"", upload_id);
        goto done;
    }
    futimens(fd, NULL); /* in use: for a while it is not removed for another */
    void *mapped = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
        status = sl_fail_errno(err, "could not map an upload");
        goto done;
    }
    *bytes = mapped;
    *size_bytes = (size_t)st.st_size;
done:
    if (fd >= 0)
        close(fd);
    free(paths);
    return status;
}

void sl_upload_unmap(const uint8_t *bytes, size_t size_bytes)
{
    if (bytes)
        munmap((void *)bytes, size_bytes);
}
