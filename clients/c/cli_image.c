/* cli_image.c - the image of --image: in the request, or uploaded before it. */
#include "clients/c/cli_jobs.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

enum {
    IN_REQUEST_BYTES = 512 << 10,
    PIECE_BYTES = 768 << 10,
    MOST_BYTES = 64 << 20, /* what the daemon takes */
    HEX_BYTES = 65,
};

static sl_status read_whole(const char *path, ProtobufCBinaryData *out, sl_error *err)
{
    FILE *f = fopen(path, "rbe");
    sl_status status = SL_OK;
    long size = 0;

    if (!f || fseek(f, 0, SEEK_END) != 0 || (size = ftell(f)) < 0 || fseek(f, 0, SEEK_SET) != 0) {
        status = sl_fail_errno(err, "could not open \"%s\"", path);
        goto done;
    }
    if (size == 0 || size > MOST_BYTES) {
        status = sl_fail(err, SL_ERR_INVALID, "\"%s\" has %ld bytes: expected 1 to %d", path, size,
                         MOST_BYTES);
        goto done;
    }
    out->data = malloc((size_t)size);
    out->len = (size_t)size;
    if (!out->data)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an image");
    else if (fread(out->data, 1, out->len, f) != out->len)
        status = sl_fail_errno(err, "could not read \"%s\"", path);
done:
    if (f)
        fclose(f);
    return status;
}

static sl_status hash(const ProtobufCBinaryData *image, char hex[HEX_BYTES], sl_error *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];

    if (EVP_Digest(image->data, image->len, digest, NULL, EVP_sha256(), NULL) != 1)
        return sl_fail(err, SL_ERR_INTERNAL, "could not make a SHA-256");
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return SL_OK;
}

/* Its id is its hash: the same picture again is there already. */
static sl_status upload(cli *c, const ProtobufCBinaryData *image, const char *sha256)
{
    uint64_t at = 0;
    bool complete = false;

    while (!complete) {
        Sluice__V1__UploadInputRequest request = SLUICE__V1__UPLOAD_INPUT_REQUEST__INIT;
        Sluice__V1__UploadInputReply *reply = NULL;
        const size_t left = image->len - (size_t)at;

        request.upload_id = request.sha256 = (char *)sha256;
        request.offset = at;
        request.size_bytes = image->len;
        request.data.data = image->data + at;
        request.data.len = left < PIECE_BYTES ? left : PIECE_BYTES;
        const sl_status status =
            cli_call_upload_input(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
        if (status != SL_OK)
            return status;
        complete = reply->complete;
        const bool moved = reply->received_bytes > at && reply->received_bytes <= image->len;
        at = reply->received_bytes;
        sl_message_free(reply);
        if (!complete && !moved)
            return sl_fail(&c->err, SL_ERR_DATA, "the daemon takes no more of the image");
    }
    return SL_OK;
}

sl_status cli_attach_image(cli *c, const char *path, Sluice__V1__GenerateRequest *request)
{
    ProtobufCBinaryData image = { 0, NULL };
    char sha256[HEX_BYTES];
    sl_status status = read_whole(path, &image, &c->err);

    if (status == SL_OK && image.len <= IN_REQUEST_BYTES) {
        request->image = image;
        return SL_OK;
    }
    if (status == SL_OK)
        status = hash(&image, sha256, &c->err);
    if (status == SL_OK)
        status = upload(c, &image, sha256);
    if (status == SL_OK && !(request->image_id = strdup(sha256)))
        status = sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for an id");
    free(image.data);
    return status;
}

void cli_detach_image(Sluice__V1__GenerateRequest *request)
{
    free(request->image.data);
    if (request->image_id != protobuf_c_empty_string)
        free(request->image_id);
}
