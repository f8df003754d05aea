#include "engine/pipeline/latent_output.h"

#include "engine/ckpt/ckpt.h"

#include <inttypes.h>
#include <string.h>

static const char tensor_name[] = "latent";

/* In pieces: a latent of the longest video has some hundred megabytes. */
enum { PIECE = 1 << 14 };

static int64_t count_of(const int64_t dim[4])
{
    return dim[0] * dim[1] * dim[2] * dim[3];
}

sl_status sl_latent_output_write(const char *path, const int64_t dim[4], const double *latent,
                                 sl_error *err)
{
    const int64_t count = count_of(dim);
    sl_st_writer *writer = NULL;
    float piece[PIECE];
    sl_status status = sl_st_writer_create(&writer, path, err);

    if (status == SL_OK)
        status = sl_st_writer_declare(writer, tensor_name, SL_F32, 4, dim, err);
    for (int64_t at = 0; at < count && status == SL_OK; at += PIECE) {
        const int64_t n = count - at < PIECE ? count - at : PIECE;
        for (int64_t i = 0; i < n; i++)
            piece[i] = (float)latent[at + i];
        status = sl_st_writer_write(writer, piece, (size_t)n * sizeof *piece, err);
    }
    if (status == SL_OK)
        status = sl_st_writer_finish(writer, err);
    sl_st_writer_destroy(writer);
    return status;
}

static sl_status check_tensor(const sl_ckpt_tensor *t, const char *path, const int64_t dim[4],
                              sl_error *err)
{
    if (!t)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has no tensor \"%s\"", path, tensor_name);
    if (t->tensor.dtype != SL_F32 || t->tensor.rank != 4 ||
        memcmp(t->tensor.dim, dim, 4 * sizeof *dim) != 0)
        return sl_fail(err, SL_ERR_DATA,
                       "\"%s\": its latent is not F32 [%" PRId64 ", %" PRId64 ", %" PRId64
                       ", %" PRId64 "]",
                       path, dim[0], dim[1], dim[2], dim[3]);
    return SL_OK;
}

sl_status sl_latent_output_read(const char *path, const int64_t dim[4], double *latent,
                                sl_error *err)
{
    const int64_t count = count_of(dim);
    sl_ckpt *ckpt = NULL;
    float piece[PIECE];
    sl_status status = sl_ckpt_open(&ckpt, path, err);

    if (status != SL_OK)
        return status;
    const sl_ckpt_tensor *t = sl_ckpt_find(ckpt, tensor_name);
    status = check_tensor(t, path, dim, err);
    for (int64_t at = 0; at < count && status == SL_OK; at += PIECE) {
        const int64_t n = count - at < PIECE ? count - at : PIECE;
        status = sl_ckpt_read(ckpt, t, (size_t)at * sizeof *piece, piece, (size_t)n * sizeof *piece,
                              err);
        for (int64_t i = 0; i < n && status == SL_OK; i++)
            latent[at + i] = piece[i];
    }
    sl_ckpt_close(ckpt);
    return status;
}
