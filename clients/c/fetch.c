/* fetch.c - an output of the daemon becomes a file here, whole or not at all. */
#include "clients/c/sluice.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SHA256_BYTES = 32,
    SHA256_HEX_BYTES = 2 * SHA256_BYTES,
    CHUNK_BYTES = 4 << 20,
};

typedef struct {
    sl_client *client;
    const char *job_id;
    int64_t timeout_ns;
    sl_fetch_progress progress;
    void *arg;
    sl_call_details *details;

    char *part_path;
    int fd;
    EVP_MD_CTX *hash; /* over [0, done_bytes) of the .part */
    uint64_t done_bytes;
    uint64_t resumed_bytes;
    uint64_t size_bytes; /* of the whole, once known */
    bool size_known;
    char sha256[SHA256_HEX_BYTES + 1]; /* as the server says */
} fetch;

static sl_status hash_start(fetch *f, sl_error *err)
{
    if (!f->hash)
        f->hash = EVP_MD_CTX_new();
    if (!f->hash || EVP_DigestInit_ex(f->hash, EVP_sha256(), NULL) != 1)
        return sl_fail(err, SL_ERR_NO_MEMORY, "could not start a SHA-256");
    return SL_OK;
}

static sl_status hash_add(fetch *f, const void *data, size_t size_bytes, sl_error *err)
{
    if (EVP_DigestUpdate(f->hash, data, size_bytes) != 1)
        return sl_fail(err, SL_ERR_INTERNAL, "could not continue a SHA-256");
    return SL_OK;
}

/* hex: SHA256_HEX_BYTES + 1. */
static sl_status hash_end(fetch *f, char *hex, sl_error *err)
{
    unsigned char digest[SHA256_BYTES];
    unsigned int count = 0;

    if (EVP_DigestFinal_ex(f->hash, digest, &count) != 1 || count != SHA256_BYTES)
        return sl_fail(err, SL_ERR_INTERNAL, "could not end a SHA-256");
    for (unsigned int i = 0; i < count; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return SL_OK;
}

static sl_status start_over(fetch *f, sl_error *err)
{
    if (ftruncate(f->fd, 0) < 0 || lseek(f->fd, 0, SEEK_SET) < 0)
        return sl_fail_errno(err, "could not empty \"%s\"", f->part_path);
    f->done_bytes = f->resumed_bytes = 0;
    return hash_start(f, err);
}

/* Opens or creates the .part, alone, and hashes what it holds. */
static sl_status open_part(fetch *f, sl_error *err)
{
    char block[64 << 10];
    struct stat st, there;
    sl_status status = SL_OK;

    f->fd = open(f->part_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (f->fd < 0)
        return sl_fail_errno(err, "could not open \"%s\"", f->part_path);
    if (flock(f->fd, LOCK_EX | LOCK_NB) < 0) {
        close(f->fd);
        f->fd = -1; /* not ours to clean up */
        return sl_fail(err, SL_ERR_BUSY, "\"%s\" is being written by another fetch", f->part_path);
    }
    if (fstat(f->fd, &st) < 0)
        return sl_fail_errno(err, "could not look at \"%s\"", f->part_path);
    /* Another fetch may have ended since open: what we hold is then its output. */
    if (stat(f->part_path, &there) < 0 || there.st_dev != st.st_dev || there.st_ino != st.st_ino) {
        close(f->fd);
        f->fd = -1;
        return sl_fail(err, SL_ERR_BUSY, "\"%s\" has just been finished by another fetch",
                       f->part_path);
    }
    if (!S_ISREG(st.st_mode))
        return sl_fail(err, SL_ERR_INVALID, "\"%s\" is no regular file", f->part_path);

    status = hash_start(f, err);
    while (status == SL_OK) {
        const ssize_t n = read(f->fd, block, sizeof block);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sl_fail_errno(err, "could not read \"%s\"", f->part_path);
        if (n == 0)
            break;
        status = hash_add(f, block, (size_t)n, err);
        f->done_bytes += (uint64_t)n;
    }
    f->resumed_bytes = f->done_bytes;
    return status;
}

static sl_status write_all(fetch *f, const uint8_t *data, size_t size_bytes, sl_error *err)
{
    while (size_bytes > 0) {
        const ssize_t n = write(f->fd, data, size_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sl_fail_errno(err, "could not write %zu bytes to \"%s\"", size_bytes,
                                 f->part_path);
        data += n;
        size_bytes -= (size_t)n;
    }
    return SL_OK;
}

static sl_status take_chunk(fetch *f, const Sluice__V1__FetchOutputReply *chunk, sl_error *err)
{
    sl_status status = SL_OK;

    if (f->size_known &&
        (chunk->size_bytes != f->size_bytes || strcmp(chunk->sha256, f->sha256) != 0))
        return sl_fail(err, SL_ERR_DATA, "output of job %s changed while it was fetched",
                       f->job_id);
    if (strlen(chunk->sha256) != SHA256_HEX_BYTES)
        return sl_fail(err, SL_ERR_DATA, "output of job %s came without a SHA-256", f->job_id);
    f->size_bytes = chunk->size_bytes;
    memcpy(f->sha256, chunk->sha256, sizeof f->sha256);
    f->size_known = true;

    if (f->done_bytes > f->size_bytes)
        return start_over(f, err);
    if (chunk->offset != f->done_bytes || chunk->data.len > f->size_bytes - f->done_bytes ||
        (chunk->data.len == 0 && f->done_bytes < f->size_bytes))
        return sl_fail(err, SL_ERR_DATA,
                       "chunk of job %s at %llu has %zu bytes at %llu, of %llu in all", f->job_id,
                       (unsigned long long)f->done_bytes, chunk->data.len,
                       (unsigned long long)chunk->offset, (unsigned long long)f->size_bytes);
    status = hash_add(f, chunk->data.data, chunk->data.len, err);
    if (status == SL_OK)
        status = write_all(f, chunk->data.data, chunk->data.len, err);
    if (status == SL_OK)
        f->done_bytes += chunk->data.len;
    return status;
}

/* Until the .part holds size_bytes. */
static sl_status fetch_chunks(fetch *f, sl_error *err)
{
    sl_status status = SL_OK;

    while (status == SL_OK && (!f->size_known || f->done_bytes < f->size_bytes)) {
        Sluice__V1__FetchOutputRequest request = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;
        Sluice__V1__FetchOutputReply *reply = NULL;

        request.job_id = (char *)f->job_id;
        request.offset = f->done_bytes;
        request.max_bytes = CHUNK_BYTES;
        sl_call_details_fini(f->details);
        status =
            sl_client_fetch_output(f->client, &request, f->timeout_ns, &reply, f->details, err);
        if (status == SL_ERR_INVALID && f->done_bytes > 0 && !f->size_known) {
            /* The old .part is longer than this output. */
            status = start_over(f, err);
            continue;
        }
        if (status == SL_OK)
            status = take_chunk(f, reply, err);
        if (status == SL_OK && f->progress)
            f->progress(f->arg, f->done_bytes, f->size_bytes);
        sl_message_free(reply);
    }
    return status;
}

/* Fetches and checks; once again from byte 0 when what an earlier fetch left
 * belonged to another file. */
static sl_status fetch_checked(fetch *f, sl_error *err)
{
    for (;;) {
        char got[SHA256_HEX_BYTES + 1];
        sl_status status = fetch_chunks(f, err);

        if (status == SL_OK)
            status = hash_end(f, got, err);
        if (status != SL_OK)
            return status;
        if (strcmp(got, f->sha256) == 0)
            return SL_OK;
        if (f->resumed_bytes == 0) {
            unlink(f->part_path);
            return sl_fail(err, SL_ERR_DATA,
                           "output of job %s arrived with SHA-256 %s instead of %s", f->job_id, got,
                           f->sha256);
        }
        status = start_over(f, err);
        if (status != SL_OK)
            return status;
    }
}

static sl_status publish(const fetch *f, const char *path, sl_error *err)
{
    if (fsync(f->fd) < 0)
        return sl_fail_errno(err, "could not sync \"%s\"", f->part_path);
    if (rename(f->part_path, path) < 0)
        return sl_fail_errno(err, "could not rename \"%s\" to \"%s\"", f->part_path, path);
    return SL_OK;
}

sl_status sl_client_fetch_file(sl_client *client, const char *job_id, const char *path,
                               int64_t timeout_ns, sl_fetch_progress progress, void *arg,
                               sl_fetch_result *out, sl_call_details *details, sl_error *err)
{
    sl_call_details own = { 0 };
    fetch f = {
        .client = client,
        .job_id = job_id,
        .timeout_ns = timeout_ns,
        .progress = progress,
        .arg = arg,
        .details = details ? details : &own,
        .fd = -1,
    };
    struct stat st;
    char *part_path = NULL;
    sl_status status = SL_OK;

    *f.details = (sl_call_details){ 0 };
    if (asprintf(&part_path, "%s.part", path) < 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    f.part_path = part_path;
    status = open_part(&f, err);
    if (status == SL_OK)
        status = fetch_checked(&f, err);
    if (status == SL_OK)
        status = publish(&f, path, err);
    if (status != SL_OK)
        goto done;

    out->size_bytes = f.size_bytes;
    out->resumed_bytes = f.resumed_bytes;
    memcpy(out->sha256, f.sha256, sizeof out->sha256);
done:
    /* An empty .part has nothing to resume from. */
    if (status != SL_OK && f.fd >= 0 && fstat(f.fd, &st) == 0 && st.st_size == 0)
        unlink(f.part_path);
    if (f.fd >= 0)
        close(f.fd);
    EVP_MD_CTX_free(f.hash);
    free(f.part_path);
    sl_call_details_fini(&own);
    return status;
}
