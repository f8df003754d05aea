/* conv_plan.h - how a convolution is done on cuda, and the temporary bytes of it.
 *
 * Compiled everywhere: plans of requests are counted where there is no GPU.
 *
 * Bf16 goes through the library, which wants its input frames in one piece
 * along time and its channels in multiples of CHANNELS:
 *
 *   packed weights  f32 ones rounded to bf16, input channels filled up with
 *                   zeros; and a bf16 bias where there is an f32 one or none
 *   pieces          output frames that are computed together.  Those whose window
 *                   lies in x (or in cache and x, where x comes right behind the
 *                   cache in memory) are one piece that reads it in place; the
 *                   others read `gathered` frames: [cache | x], enlarged and
 *                   filled up.  Leading frames of zeros are the library's padding.
 *
 * Everything in f32 goes through the direct kernel, which needs no memory.
 */
#ifndef SL_KERNELS_CONV_PLAN_H
#define SL_KERNELS_CONV_PLAN_H

#include "kernels/conv.h"

#include <stddef.h>

typedef struct {
    bool library;
    bool pack_w, pack_b;
    bool adjacent;         /* x lies right behind the cache */
    int64_t channels;      /* I, filled up */
    int64_t cached;        /* frames */
    int64_t in_place_from; /* output frames from here on read x (or the cache) in place */
    int64_t frames_each;   /* output frames of a gathered piece */
    int64_t gather_frames; /* input frames of the largest one */
    size_t w_bytes, b_bytes, frames_bytes;
} sl_conv_plan;

typedef struct {
    int64_t first_out, out_count;
    int64_t zeros;              /* in front of the input frames */
    int64_t first_in, in_count; /* of [cache | x] */
    bool gathered;
} sl_conv_piece;

/* Of operands that sl_conv_check has passed, y not empty. */
sl_conv_plan sl_conv_plan_of(const sl_tensor *y, const sl_tensor *x, const sl_tensor *cache,
                             const sl_tensor *w, const sl_tensor *b, const sl_conv_params *params);
/* The piece that begins with output frame `first`. */
sl_conv_piece sl_conv_piece_at(const sl_conv_plan *plan, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *w, const sl_conv_params *params, int64_t first);

/* The row of the counting table for cuda. */
sl_conv_fn sl_conv_count_cuda;

#endif
