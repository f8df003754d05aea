/* fetch.c - an output of the daemon becomes a file here, whole or not at all.
 *
 * Two threads: the caller's fetches chunk after chunk, a keeper of the call's own hashes
 * and writes them, so that the network does not wait for the disk.  At most two chunks
 * are on their way between them.
 */
#include "clients/c/sluice.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
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
    EVP_MD_CTX *hash;    /* over what the .part holds; the keeper's while it is busy */
    uint64_t done_bytes; /* of the .part, with what the keeper still has */
    uint64_t resumed_bytes;
    uint64_t size_bytes; /* of the whole, once known */
    bool size_known;
    char sha256[SHA256_HEX_BYTES + 1]; /* as the server says */

    pthread_t keeper;
    bool keeper_runs;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    Sluice__V1__FetchOutputReply *next; /* for the keeper; NULL: there is room */
    bool busy, ended;
    sl_status kept; /* the keeper's first failure, which ends its work */
    sl_error kept_err;
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

/* --- the keeper --- */

/* The disk begins at once: else all of it would wait for fsync. */
static sl_status keep(fetch *f, const Sluice__V1__FetchOutputReply *chunk, sl_error *err)
{
    sl_status status = hash_add(f, chunk->data.data, chunk->data.len, err);

    if (status == SL_OK)
        status = write_all(f, chunk->data.data, chunk->data.len, err);
    if (status == SL_OK)
        sync_file_range(f->fd, (off_t)chunk->offset, (off_t)chunk->data.len,
                        SYNC_FILE_RANGE_WRITE);
    return status;
}

static void *run_keeper(void *arg)
{
    fetch *f = arg;

    pthread_mutex_lock(&f->lock);
    while (f->next || !f->ended) {
        Sluice__V1__FetchOutputReply *chunk = f->next;
        sl_error err = { .status = SL_OK };
        if (!chunk) {
            pthread_cond_wait(&f->changed, &f->lock);
            continue;
        }
        const bool wanted = f->kept == SL_OK;
        f->next = NULL;
        f->busy = true;
        pthread_cond_broadcast(&f->changed);
        pthread_mutex_unlock(&f->lock);
        const sl_status status = wanted ? keep(f, chunk, &err) : SL_OK;
        sl_message_free(chunk);
        pthread_mutex_lock(&f->lock);
        f->busy = false;
        if (status != SL_OK) {
            f->kept = status;
            f->kept_err = err;
        }
        pthread_cond_broadcast(&f->changed);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* Signals go to the threads of the program. */
static sl_status start_keeper(fetch *f, sl_error *err)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(&f->keeper, NULL, run_keeper, f);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    f->keeper_runs = code == 0;
    errno = code;
    return code == 0 ? SL_OK : sl_fail_errno(err, "could not start a thread that writes \"%s\"",
                                             f->part_path);
}

/* What was handed over is kept then. */
static void end_keeper(fetch *f)
{
    if (!f->keeper_runs)
        return;
    pthread_mutex_lock(&f->lock);
    f->ended = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    pthread_join(f->keeper, NULL);
    f->keeper_runs = false;
}

/* Takes chunk over, or NULL: waits until all is kept.  How it went so far. */
static sl_status hand_over(fetch *f, Sluice__V1__FetchOutputReply *chunk, sl_error *err)
{
    pthread_mutex_lock(&f->lock);
    while (f->next || (!chunk && f->busy))
        pthread_cond_wait(&f->changed, &f->lock);
    const sl_status status = f->kept;
    if (status != SL_OK && err)
        *err = f->kept_err;
    f->next = chunk;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
    return status;
}

/* --- chunks --- */

static sl_status start_over(fetch *f, sl_error *err)
{
    const sl_status status = hand_over(f, NULL, err);

    if (status != SL_OK)
        return status;
    if (ftruncate(f->fd, 0) < 0 || lseek(f->fd, 0, SEEK_SET) < 0)
        return sl_fail_errno(err, "could not empty \"%s\"", f->part_path);
    f->done_bytes = f->resumed_bytes = 0;
    return hash_start(f, err);
}

static sl_status check_chunk(fetch *f, const Sluice__V1__FetchOutputReply *chunk, sl_error *err)
{
    if (f->size_known &&
        (chunk->size_bytes != f->size_bytes || strcmp(chunk->sha256, f->sha256) != 0))
        return sl_fail(err, SL_ERR_DATA, "output of job %s changed while it was fetched",
                       f->job_id);
    if (strlen(chunk->sha256) != SHA256_HEX_BYTES)
        return sl_fail(err, SL_ERR_DATA, "output of job %s came without a SHA-256", f->job_id);
    f->size_bytes = chunk->size_bytes;
    memcpy(f->sha256, chunk->sha256, sizeof f->sha256);
    f->size_known = true;
    if (f->done_bytes <= f->size_bytes &&
        (chunk->offset != f->done_bytes || chunk->data.len > f->size_bytes - f->done_bytes ||
         (chunk->data.len == 0 && f->done_bytes < f->size_bytes)))
        return sl_fail(err, SL_ERR_DATA,
                       "chunk of job %s at %llu has %zu bytes at %llu, of %llu in all", f->job_id,
                       (unsigned long long)f->done_bytes, chunk->data.len,
                       (unsigned long long)chunk->offset, (unsigned long long)f->size_bytes);
    return SL_OK;
}

/* Takes chunk over. */
static sl_status take_chunk(fetch *f, Sluice__V1__FetchOutputReply *chunk, sl_error *err)
{
    const uint64_t bytes = chunk->data.len;
    sl_status status = check_chunk(f, chunk, err);

    if (status != SL_OK || f->done_bytes > f->size_bytes) {
        sl_message_free(chunk);
        return status == SL_OK ? start_over(f, err) : status;
    }
    status = hand_over(f, chunk, err);
    if (status == SL_OK)
        f->done_bytes += bytes;
    return status;
}

/* Until the .part holds size_bytes, and the hash is over them. */
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
    }
    return status == SL_OK ? hand_over(f, NULL, err) : status;
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
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
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
        status = start_keeper(&f, err);
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
    end_keeper(&f);
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
