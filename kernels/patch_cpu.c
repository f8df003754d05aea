#include "kernels/patch.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"
#include "kernels/vmath.h"

#include <inttypes.h>

enum { RGB_TILE = 1 << 16, F32 = SL_BIT(SL_F32) };

_Static_assert((size_t)RGB_TILE * sizeof(float) <= SL_CPU_WORKSPACE_PER_THREAD,
               "a tile fits the workspace");

typedef struct {
    const sl_tensor *y, *x, *scale, *shift;
    int64_t C, T, h, w; /* of the latent */
    int64_t first;
} job;

/* --- patchify, unpatchify --- */

/* A latent [C, T, h, w] and its tokens [T*(h/2)*(w/2), 4*C]. */
static sl_status check_tokens(const char *op, const char *latent_name, const sl_tensor *latent,
                              const char *tokens_name, const sl_tensor *tokens, sl_error *err)
{
    sl_status status =
        SL_OP_EXPECT(op, latent_name, latent, SL_BITS_ACTIVATION, err, 4, -1, -1, -1, -1);

    if (status != SL_OK)
        return status;
    const int64_t C = latent->dim[0], T = latent->dim[1], h = latent->dim[2], w = latent->dim[3];
    int64_t S = 0, features = 0;

    if (h % 2 || w % 2)
        return sl_fail(err, SL_ERR_INVALID,
                       "%s: frames of %s are %" PRId64 "x%" PRId64 ", expected even sizes", op,
                       latent_name, h, w);
    if (!sl_count_mul(T, h / 2, &S) || !sl_count_mul(S, w / 2, &S) ||
        !sl_count_mul(C, 4, &features))
        return sl_fail(err, SL_ERR_INVALID, "%s: %s is too large", op, latent_name);
    status = SL_OP_EXPECT(op, tokens_name, tokens, SL_BITS_ACTIVATION, err, 2, S, features);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", latent, "x", tokens, err);
    return status;
}

static job tokens_job(const sl_tensor *y, const sl_tensor *x, const sl_tensor *latent)
{
    return (job){ .y = y,
                  .x = x,
                  .C = latent->dim[0],
                  .T = latent->dim[1],
                  .h = latent->dim[2],
                  .w = latent->dim[3] };
}

sl_status sl_patchify_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    (void)exec;
    return check_tokens("patchify", "x", x, "y", y, err);
}

sl_status sl_unpatchify_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    (void)exec;
    return check_tokens("unpatchify", "y", y, "x", x, err);
}

/* Tile: one row of tokens, i = t * (h/2) + row. */
static void patchify_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t rows = j->h / 2, columns = j->w / 2, features = 4 * j->C;
    const int64_t t = i / rows, row = i % rows;
    float *tokens = (float *)j->y->data + i * columns * features;

    (void)thread, (void)workspace;
    for (int64_t c = 0; c < j->C; c++)
        for (int64_t kh = 0; kh < 2; kh++) {
            const float *x =
                (const float *)j->x->data + ((c * j->T + t) * j->h + 2 * row + kh) * j->w;
            float *y = tokens + c * 4 + kh * 2;
            for (int64_t k = 0; k < columns; k++) {
                y[k * features] = x[2 * k];
                y[k * features + 1] = x[2 * k + 1];
            }
        }
}

static void unpatchify_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t rows = j->h / 2, columns = j->w / 2, features = 4 * j->C;
    const int64_t t = i / rows, row = i % rows;
    const float *tokens = (const float *)j->x->data + i * columns * features;

    (void)thread, (void)workspace;
    for (int64_t c = 0; c < j->C; c++)
        for (int64_t kh = 0; kh < 2; kh++) {
            float *y = (float *)j->y->data + ((c * j->T + t) * j->h + 2 * row + kh) * j->w;
            const float *x = tokens + kh * 2 * j->C + c;
            for (int64_t k = 0; k < columns; k++) {
                y[2 * k] = x[k * features];
                y[2 * k + 1] = x[k * features + j->C];
            }
        }
}

sl_status sl_patchify_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_patchify_check(exec, y, x, err);

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("patchify", err, y, x);
    if (status != SL_OK)
        return status;
    job j = tokens_job(y, x, x);
    return sl_exec_parallel(exec, j.T * (j.h / 2), patchify_tile, &j, err);
}

sl_status sl_unpatchify_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_unpatchify_check(exec, y, x, err);

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("unpatchify", err, y, x);
    if (status != SL_OK)
        return status;
    job j = tokens_job(y, x, y);
    return sl_exec_parallel(exec, j.T * (j.h / 2), unpatchify_tile, &j, err);
}

/* --- latent_to_frames, frames_to_latent --- */

/* Frames [first, first + n) of a latent [C, T, h, w], and the same channels
 * last, [n, h, w, C]. */
static sl_status check_frames(const char *op, const char *latent_name, const sl_tensor *latent,
                              const char *frames_name, const sl_tensor *frames,
                              const sl_tensor *scale, const sl_tensor *shift, int64_t first,
                              sl_error *err)
{
    sl_status status =
        SL_OP_EXPECT(op, latent_name, latent, SL_BITS_ACTIVATION, err, 4, -1, -1, -1, -1);

    if (status == SL_OK)
        status = SL_OP_EXPECT(op, frames_name, frames, SL_BITS_ACTIVATION, err, 4, -1,
                              latent->dim[2], latent->dim[3], latent->dim[0]);
    if (status == SL_OK &&
        (first < 0 || first > latent->dim[1] || frames->dim[0] > latent->dim[1] - first))
        status = sl_fail(err, SL_ERR_INVALID,
                         "%s: %" PRId64 " frames from frame %" PRId64 " on, but %s has %" PRId64,
                         op, frames->dim[0], first, latent_name, latent->dim[1]);
    if (status == SL_OK && scale)
        status = sl_op_expect_count(op, "scale", scale, F32, latent->dim[0], err);
    if (status == SL_OK && shift)
        status = sl_op_expect_count(op, "shift", shift, F32, latent->dim[0], err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", latent, "x", frames, err);
    return status;
}

static job frames_job(const sl_tensor *y, const sl_tensor *x, const sl_tensor *latent,
                      const sl_tensor *scale, const sl_tensor *shift, int64_t first)
{
    job j = tokens_job(y, x, latent);

    j.scale = scale;
    j.shift = shift;
    j.first = first;
    return j;
}

sl_status sl_latent_to_frames_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                    const sl_tensor *scale, const sl_tensor *shift, int64_t first,
                                    sl_error *err)
{
    (void)exec;
    return check_frames("latent_to_frames", "x", x, "y", y, scale, shift, first, err);
}

sl_status sl_frames_to_latent_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                    const sl_tensor *scale, const sl_tensor *shift, int64_t first,
                                    sl_error *err)
{
    (void)exec;
    return check_frames("frames_to_latent", "y", y, "x", x, scale, shift, first, err);
}

static float get_act(const sl_tensor *t, int64_t i)
{
    return t->dtype == SL_F32 ? ((const float *)t->data)[i]
                              : sl_bf16_to_f32(((const uint16_t *)t->data)[i]);
}

static void set_act(const sl_tensor *t, int64_t i, float value)
{
    if (t->dtype == SL_F32)
        ((float *)t->data)[i] = value;
    else
        ((uint16_t *)t->data)[i] = sl_bf16_from_f32(value);
}

/* Tile: one row of pixels, i = frame * h + row. */
static void latent_to_frames_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t t = j->first + i / j->h, row = i % j->h;
    const int64_t y = i * j->w * j->C;
    const float *scale = j->scale ? j->scale->data : NULL;
    const float *shift = j->shift ? j->shift->data : NULL;

    (void)thread, (void)workspace;
    for (int64_t c = 0; c < j->C; c++) {
        const int64_t x = ((c * j->T + t) * j->h + row) * j->w;
        const float a = scale ? scale[c] : 1.0f, b = shift ? shift[c] : 0.0f;
        for (int64_t k = 0; k < j->w; k++)
            set_act(j->y, y + k * j->C + c, get_act(j->x, x + k) * a + b);
    }
}

sl_status sl_latent_to_frames_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                  const sl_tensor *scale, const sl_tensor *shift, int64_t first,
                                  sl_error *err)
{
    sl_status status = sl_latent_to_frames_check(exec, y, x, scale, shift, first, err);

    if (status != SL_OK)
        return status;
    job j = frames_job(y, x, x, scale, shift, first);
    return sl_exec_parallel(exec, y->dim[0] * j.h, latent_to_frames_tile, &j, err);
}

static void frames_to_latent_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t t = j->first + i / j->h, row = i % j->h;
    const int64_t x = i * j->w * j->C;
    const float *scale = j->scale ? j->scale->data : NULL;
    const float *shift = j->shift ? j->shift->data : NULL;

    (void)thread, (void)workspace;
    for (int64_t c = 0; c < j->C; c++) {
        const int64_t y = ((c * j->T + t) * j->h + row) * j->w;
        const float a = scale ? scale[c] : 1.0f, b = shift ? shift[c] : 0.0f;
        for (int64_t k = 0; k < j->w; k++)
            set_act(j->y, y + k, (get_act(j->x, x + k * j->C + c) - b) * a);
    }
}

sl_status sl_frames_to_latent_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                  const sl_tensor *scale, const sl_tensor *shift, int64_t first,
                                  sl_error *err)
{
    sl_status status = sl_frames_to_latent_check(exec, y, x, scale, shift, first, err);

    if (status != SL_OK)
        return status;
    job j = frames_job(y, x, y, scale, shift, first);
    return sl_exec_parallel(exec, x->dim[0] * j.h, frames_to_latent_tile, &j, err);
}

/* --- known_mask --- */

sl_status sl_known_mask_check(sl_exec *exec, const sl_tensor *y, sl_error *err)
{
    (void)exec;
    return SL_OP_EXPECT("known_mask", "y", y, F32, err, 4, -1, -1, -1, -1);
}

/* Tile: one frame of one channel, i = c * T + t. */
static void known_mask_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const float value = i % j->T == 0 ? 1.0f : 0.0f;
    float *y = (float *)j->y->data + i * j->h * j->w;

    (void)thread, (void)workspace;
    for (int64_t k = 0; k < j->h * j->w; k++)
        y[k] = value;
}

sl_status sl_known_mask_cpu(sl_exec *exec, const sl_tensor *y, sl_error *err)
{
    const sl_status status = sl_known_mask_check(exec, y, err);

    if (status != SL_OK)
        return status;
    job j = tokens_job(y, NULL, y);
    return sl_exec_parallel(exec, j.C * j.T, known_mask_tile, &j, err);
}

/* --- frames_to_rgb, rgb_to_frames --- */

static sl_status check_rgb(const char *op, const sl_tensor *y, unsigned y_dtypes,
                           const sl_tensor *x, unsigned x_dtypes, sl_error *err)
{
    sl_status status = sl_op_expect_like(op, "x", x, x_dtypes, x, err);

    if (status == SL_OK && (x->rank < 1 || x->dim[x->rank - 1] != 3))
        status =
            sl_fail(err, SL_ERR_INVALID, "%s: the last dimension of x is %" PRId64 ", expected 3",
                    op, x->rank < 1 ? 0 : x->dim[x->rank - 1]);
    if (status == SL_OK)
        status = sl_op_expect_like(op, "y", y, y_dtypes, x, err);
    if (status == SL_OK)
        status = sl_op_expect_apart(op, "y", y, "x", x, err);
    return status;
}

sl_status sl_frames_to_rgb_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                 sl_error *err)
{
    (void)exec;
    return check_rgb("frames_to_rgb", y, SL_BIT(SL_U8), x, SL_BITS_ACTIVATION, err);
}

sl_status sl_rgb_to_frames_check(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                 sl_error *err)
{
    (void)exec;
    return check_rgb("rgb_to_frames", y, SL_BITS_ACTIVATION, x, SL_BIT(SL_U8), err);
}

SL_MULTIARCH static void to_u8(uint8_t *restrict y, const float *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        float v = x[i] > -1.0f ? x[i] : -1.0f; /* NaN too */
        v = v < 1.0f ? v : 1.0f;
        v = (1.0f + v) / 2.0f; /* in [0, 1] already */
        y[i] = (uint8_t)(int32_t)(255.0f * v + 0.5f);
    }
}

static void frames_to_rgb_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t count = sl_tile_length(i, RGB_TILE, sl_tensor_count(j->x));

    (void)thread;
    to_u8((uint8_t *)j->y->data + i * RGB_TILE, sl_load_f32(j->x, i * RGB_TILE, count, workspace),
          count);
}

sl_status sl_frames_to_rgb_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_frames_to_rgb_check(exec, y, x, err);
    job j = { .y = y, .x = x };

    if (status != SL_OK)
        return status;
    return sl_exec_parallel(exec, sl_ceil_div(sl_tensor_count(x), RGB_TILE), frames_to_rgb_tile, &j,
                            err);
}

SL_MULTIARCH static void from_u8(float *restrict y, const uint8_t *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = ((float)x[i] / 255.0f - 0.5f) / 0.5f;
}

static void rgb_to_frames_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t count = sl_tile_length(i, RGB_TILE, sl_tensor_count(j->x));
    float *y = sl_target_f32(j->y, i * RGB_TILE, workspace);

    (void)thread;
    from_u8(y, (const uint8_t *)j->x->data + i * RGB_TILE, count);
    sl_store_f32(j->y, i * RGB_TILE, count, y);
}

sl_status sl_rgb_to_frames_cpu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_rgb_to_frames_check(exec, y, x, err);
    job j = { .y = y, .x = x };

    if (status != SL_OK)
        return status;
    return sl_exec_parallel(exec, sl_ceil_div(sl_tensor_count(x), RGB_TILE), rgb_to_frames_tile, &j,
                            err);
}
