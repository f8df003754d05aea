/* The output file of a Run: partial until the job is done, and its hash. */
#include "service/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

sl_status sl_worker_hash_file(const char *path, char hex[SL_SHA256_HEX_BYTES], uint64_t *size_bytes,
                              sl_error *err)
{
    unsigned char buffer[1 << 16], digest[EVP_MAX_MD_SIZE];
    sl_status status = SL_OK;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t total = 0;
    ssize_t n;

    if (fd < 0) {
        status = sl_fail_errno(err, "could not read back \"%s\"", path);
        goto done;
    }
    if (!context || EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1) {
        status = sl_fail(err, SL_ERR_INTERNAL, "could not start a SHA-256");
        goto done;
    }
    while ((n = read(fd, buffer, sizeof buffer)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || EVP_DigestUpdate(context, buffer, (size_t)n) != 1) {
            status = sl_fail_errno(err, "could not read back \"%s\"", path);
            goto done;
        }
        total += (uint64_t)n;
    }
    if (EVP_DigestFinal_ex(context, digest, NULL) != 1) {
        status = sl_fail(err, SL_ERR_INTERNAL, "could not finish a SHA-256");
        goto done;
    }
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    *size_bytes = total;
done:
    EVP_MD_CTX_free(context);
    if (fd >= 0)
        close(fd);
    return status;
}

sl_status sl_worker_note_partial(sl_lane *lane, const char *path, sl_error *err)
{
    sl_worker *worker = lane->worker;
    char *copy = strdup(path);
    sl_status status = SL_OK;

    if (!copy)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the output's name");
    pthread_mutex_lock(&worker->lock);
    if (worker->quit) {
        status = sl_fail(err, SL_ERR_CANCELLED, "the worker is shutting down");
        free(copy);
    } else {
        lane->partial = copy;
    }
    pthread_mutex_unlock(&worker->lock);
    return status;
}

void sl_worker_forget_partial(sl_lane *lane, bool remove_it)
{
    sl_worker *worker = lane->worker;

    pthread_mutex_lock(&worker->lock);
    if (lane->partial && remove_it)
        unlink(lane->partial);
    free(lane->partial);
    lane->partial = NULL;
    pthread_mutex_unlock(&worker->lock);
}
