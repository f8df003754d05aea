#include "kernels/conv_plan.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/scratch.h"

enum { CHANNELS = 8 };

/* What a gathered piece may hold before output frames are done one by one. */
static const int64_t most_gathered_bytes = (int64_t)128 << 20;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Whether the library can take it at all: it has no window of zeros alone. */
static bool is_for_library(const sl_tensor *x, const sl_tensor *w, const sl_conv_params *p)
{
    return x->dtype == SL_BF16 && x->dim[0] > 0 && p->zero_frames < w->dim[1] &&
           p->pad_top < w->dim[2] && p->pad_bottom < w->dim[2] && p->pad_left < w->dim[3] &&
           p->pad_right < w->dim[3];
}

static bool is_behind(const sl_tensor *x, const sl_tensor *cache)
{
    return (uintptr_t)x->data == (uintptr_t)cache->data + sl_tensor_bytes(cache);
}

sl_conv_plan sl_conv_plan_of(const sl_tensor *y, const sl_tensor *x, const sl_tensor *cache,
                             const sl_tensor *w, const sl_tensor *b, const sl_conv_params *p)
{
    const int64_t To = y->dim[0], kt = w->dim[1], st = p->stride_t, I = x->dim[3];
    sl_conv_plan plan = { .library = is_for_library(x, w, p),
                          .channels = sl_ceil_div(I, CHANNELS) * CHANNELS,
                          .cached = cache ? cache->dim[0] : 0 };

    if (!plan.library)
        return plan;
    const int64_t frame_bytes =
        p->upsample * x->dim[1] * p->upsample * x->dim[2] * plan.channels * 2;
    plan.adjacent = plan.cached > 0 && is_behind(x, cache);
    plan.pack_w = w->dtype != SL_BF16 || plan.channels != I;
    plan.pack_b = !b || b->dtype != SL_BF16;
    if (plan.pack_w)
        plan.w_bytes = (size_t)(w->dim[0] * kt * w->dim[2] * w->dim[3] * plan.channels * 2);
    if (plan.pack_b)
        plan.b_bytes = (size_t)w->dim[0] * 2;

    if (plan.channels != I || p->upsample != 1)
        plan.in_place_from = To;
    else if (plan.cached > 0 && !plan.adjacent)
        plan.in_place_from = least(sl_ceil_div(p->zero_frames + plan.cached, st), To);
    if (plan.in_place_from > 0) {
        const int64_t most = most_gathered_bytes / frame_bytes;
        plan.frames_each = most < kt ? 1 : (most - kt) / st + 1;
        plan.frames_each = least(plan.frames_each, plan.in_place_from);
        plan.gather_frames = least((plan.frames_each - 1) * st + kt, plan.cached + x->dim[0]);
        plan.frames_bytes = (size_t)(plan.gather_frames * frame_bytes);
    }
    return plan;
}

sl_conv_piece sl_conv_piece_at(const sl_conv_plan *plan, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *w, const sl_conv_params *p, int64_t first)
{
    const int64_t all = plan->cached + x->dim[0], st = p->stride_t;
    sl_conv_piece piece = { .first_out = first, .gathered = first < plan->in_place_from };

    piece.out_count =
        piece.gathered ? least(plan->frames_each, plan->in_place_from - first) : y->dim[0] - first;
    piece.first_in = first * st - p->zero_frames;
    if (piece.first_in < 0) {
        piece.zeros = -piece.first_in;
        piece.first_in = 0;
    }
    /* Exactly what the windows cover: a stride may leave frames behind the last. */
    piece.in_count = (piece.out_count - 1) * st + w->dim[1] - piece.zeros;
    SL_ASSERT(piece.in_count > 0 && piece.first_in + piece.in_count <= all);
    return piece;
}

sl_status sl_conv_count_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                             const sl_tensor *cache, const sl_tensor *w, const sl_tensor *b,
                             const sl_tensor *residual, const sl_conv_params *params, sl_error *err)
{
    sl_scratch *scratch = sl_exec_scratch(exec);
    sl_status status = sl_conv_check(exec, y, x, cache, w, b, residual, params, err);

    if (status != SL_OK || sl_tensor_count(y) == 0)
        return status;
    const sl_conv_plan plan = sl_conv_plan_of(y, x, cache, w, b, params);
    const size_t needs[] = { plan.w_bytes, plan.b_bytes, plan.frames_bytes };
    if (!scratch)
        return sl_fail(err, SL_ERR_INTERNAL, "conv: no scratch was lent");
    const size_t mark = sl_scratch_mark(scratch);
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(needs); i++) {
        void *unused;
        if (needs[i] > 0)
            status = sl_scratch_alloc(scratch, &unused, needs[i], err);
    }
    sl_scratch_release(scratch, mark);
    return status;
}
