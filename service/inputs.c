#include "service/inputs.h"

#include "service/outputs.h"
#include "service/uploads.h"

#include "engine/media/image.h"
#include "engine/media/resize.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Memory of up to 12 bytes a pixel. */
static pthread_mutex_t decoding = PTHREAD_MUTEX_INITIALIZER;

/* What is wrong with a picture is wrong with the request. */
static sl_status fail_image(sl_rpc_call *call, const sl_error *why, sl_error *err)
{
    switch (why->status) {
    case SL_ERR_TOO_LARGE:
    case SL_ERR_UNIMPLEMENTED:
    case SL_ERR_DATA:
    case SL_ERR_INVALID:
        return sl_rpc_fail_field(call, "image", NULL, err, "the image: %s", why->message);
    default:
        return sl_fail(err, why->status, "the image: %s", why->message);
    }
}

sl_status sl_input_open(sl_service *s, sl_rpc_call *call, const Sluice__V1__GenerateRequest *pb,
                        sl_input_image *out, sl_error *err)
{
    sl_error why = { .status = SL_OK };

    *out = (sl_input_image){ .bytes = pb->image.data, .size_bytes = pb->image.len };
    if (pb->image_id[0] == '\0' || pb->image.len > 0)
        return SL_OK;
    const sl_status status =
        sl_upload_map(s, call, pb->image_id, &out->bytes, &out->size_bytes, &why);
    out->mapped = status == SL_OK;
    if (status == SL_ERR_NOT_FOUND)
        return sl_rpc_fail_field(call, "image_id", NULL, err, "%s", why.message);
    return status == SL_OK ? SL_OK : sl_fail(err, status, "%s", why.message);
}

void sl_input_close(sl_input_image *image)
{
    if (image->mapped)
        sl_upload_unmap(image->bytes, image->size_bytes);
    *image = (sl_input_image){ .bytes = NULL };
}

sl_status sl_input_size(sl_rpc_call *call, const Sluice__V1__GenerateRequest *pb,
                        const sl_input_image *image, const sl_arch *arch, bool needed,
                        sl_t2v_request *request, sl_error *err)
{
    const bool sized = pb->width || pb->height;
    const bool adaptive = pb->sizing == SLUICE__V1__SIZING__ADAPTIVE ||
                          (pb->sizing == SLUICE__V1__SIZING__SIZING_DEFAULT && !sized);
    sl_error why = { .status = SL_OK };
    sl_image_size size = { 0 };
    sl_image_info info;

    if (arch->task != SL_TASK_I2V || (image->size_bytes == 0 && !needed))
        return SL_OK;
    if (image->size_bytes == 0)
        return sl_rpc_fail_field(call, "image", NULL, err,
                                 "model \"%s\" makes videos from images: none is given", pb->model);
    sl_status status =
        sl_image_probe(&info, image->bytes, image->size_bytes, SL_INPUT_MAX_PIXELS, &why);
    if (status == SL_OK && adaptive)
        status = sl_image_fit(&size, (sl_image_size){ info.width, info.height },
                              (sl_image_size){ request->width, request->height }, &why);
    if (status != SL_OK)
        return fail_image(call, &why, err);
    if (adaptive) {
        request->width = size.width;
        request->height = size.height;
    }
    return SL_OK;
}

static sl_status write_file(const char *path, int fd, const uint8_t *bytes, size_t size_bytes,
                            sl_error *err)
{
    for (size_t at = 0; at < size_bytes;) {
        const ssize_t n = write(fd, bytes + at, size_bytes - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return sl_fail_errno(err, "could not write \"%s\"", path);
        at += (size_t)n;
    }
    return fsync(fd) == 0 ? SL_OK : sl_fail_errno(err, "could not flush \"%s\"", path);
}

sl_status sl_input_store(sl_service *s, sl_rpc_call *call, const sl_input_image *image,
                         const sl_t2v_request *request, char **path, sl_error *err)
{
    const size_t size_bytes = (size_t)request->width * (size_t)request->height * 3;
    sl_error why = { .status = SL_OK };
    sl_status status = SL_OK;
    int fd = -1;
    uint8_t *rgb = malloc(size_bytes);
    char *name = sl_outputs_input_template(s);

    if (!rgb || !name) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an image");
        goto done;
    }
    pthread_mutex_lock(&decoding);
    status = sl_image_decode_resized(rgb, request->width, request->height, image->bytes,
                                     image->size_bytes, SL_INPUT_MAX_PIXELS, &why);
    pthread_mutex_unlock(&decoding);
    if (status != SL_OK) {
        status = fail_image(call, &why, err);
        goto done;
    }
    fd = mkstemp(name);
    if (fd < 0) {
        status = sl_fail_errno(err, "could not create \"%s\"", name);
        goto done;
    }
    status = write_file(name, fd, rgb, size_bytes, err);
    if (status != SL_OK) {
        unlink(name);
        goto done;
    }
    *path = name;
    name = NULL;
done:
    if (fd >= 0)
        close(fd);
    free(rgb);
    free(name);
    return status;
}

sl_status sl_input_link(sl_service *s, const char *output, char **path, sl_error *err)
{
    sl_status status = SL_OK;
    char *name = sl_outputs_input_template(s);
    const int fd = name ? mkstemp(name) : -1;

    if (!name)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    /* The name is ours now; a link cannot replace the file that keeps it. */
    if (fd < 0 || unlink(name) != 0)
        status = sl_fail_errno(err, "could not create \"%s\"", name);
    else if (link(output, name) != 0)
        status = errno == ENOENT ? sl_fail(err, SL_ERR_PRECONDITION,
                                           "its output is not there any more: it was cleaned away")
                                 : sl_fail_errno(err, "could not link \"%s\"", output);
    if (fd >= 0)
        close(fd);
    if (status == SL_OK) {
        *path = name;
        name = NULL;
    }
    free(name);
    return status;
}
