/* The ways of a convolution on cuda:
 *
 *   library   bf16, as conv_plan.h says: one graph of convolution, residual and
 *             bias, in the order in which the library has them ready made, so
 *             that nothing is compiled at run time.  Sums are f32 up to the store.
 *   direct    own kernel: f32, and what the library refuses, which is logged.
 *
 * One frame deep windows are a batch of pictures to the library, others a volume.
 */
#include "kernels/conv_cuda.h"

#include "base/log.h"
#include "kernels/conv_graph.h"
#include "kernels/conv_plan.h"
#include "kernels/cuda.h"

#include <inttypes.h>
#include <stdlib.h>

/* One call. */
typedef struct {
    const sl_tensor *y, *x, *w;
    const sl_conv_params *params;
    sl_conv_plan plan;
    sl_cuda_conv c;
    void *w_data, *bias, *frames; /* bf16; frames: of a gathered piece */
} job;

/* --- the library --- */

static void destroy_plans(void *dnn)
{
    sl_dnn_destroy(dnn);
}

static sl_status plans_of(sl_exec *exec, sl_dnn **out, sl_error *err)
{
    sl_cuda_cache *cache = sl_cuda_cache_of(exec, SL_CUDA_SLOT_CONV);
    sl_status status = SL_OK;

    if (!cache->value) {
        sl_dnn *dnn;
        status = sl_dnn_create(&dnn, sl_cuda_dnn(exec), NULL, SL_CUDA_WORKSPACE_BYTES, err);
        if (status != SL_OK)
            return status;
        cache->value = dnn;
        cache->destroy = destroy_plans;
    }
    *out = cache->value;
    return SL_OK;
}

static sl_conv_graph graph_of(const job *j, const sl_conv_piece *piece)
{
    const sl_conv_params *p = j->params;
    const int up = piece->gathered ? p->upsample : 1;

    return (sl_conv_graph){
        .frames = piece->in_count,
        .H = up * j->c.H,
        .W = up * j->c.W,
        .I = j->plan.channels,
        .To = piece->out_count,
        .Ho = j->c.Ho,
        .Wo = j->c.Wo,
        .O = j->c.O,
        .kt = j->c.kt,
        .kh = j->c.kh,
        .kw = j->c.kw,
        .zeros = piece->zeros,
        .stride_t = p->stride_t,
        .stride_hw = p->stride_hw,
        .pad_top = p->pad_top,
        .pad_bottom = p->pad_bottom,
        .pad_left = p->pad_left,
        .pad_right = p->pad_right,
        .residual = j->c.residual != NULL,
    };
}

/* The plan of a piece; *out NULL: the library does not take it. */
static sl_status find_plan(sl_dnn *dnn, const job *j, const sl_conv_piece *piece,
                           const sl_dnn_plan **out, sl_error *err)
{
    const sl_conv_graph g = graph_of(j, piece);
    bool made;
    const sl_status status = sl_conv_graph_plan(dnn, &g, out, &made, err);

    if (status != SL_OK || !sl_dnn_is_refused(*out))
        return status;
    if (made)
        sl_log(SL_LOG_WARN, "conv_direct",
               "x=%" PRId64 "x%" PRId64 "x%" PRId64 "x%" PRId64 " w=%" PRId64 "x%" PRId64
               "x%" PRId64 "x%" PRId64 " why=\"%s\"",
               g.frames, g.H, g.W, g.I, g.O, g.kt, g.kh, g.kw, sl_dnn_plan_text(*out));
    *out = NULL;
    return SL_OK;
}

/* Whether the library takes all pieces. */
static sl_status find_plans(sl_dnn *dnn, const job *j, bool *all, sl_error *err)
{
    *all = true;
    for (int64_t to = 0; *all && to < j->c.To;) {
        const sl_conv_piece piece = sl_conv_piece_at(&j->plan, j->y, j->x, j->w, j->params, to);
        const sl_dnn_plan *plan;
        const sl_status status = find_plan(dnn, j, &piece, &plan, err);

        if (status != SL_OK)
            return status;
        *all = plan != NULL;
        to += piece.out_count;
    }
    return SL_OK;
}

static cudaError_t prepare(sl_exec *exec, const job *j)
{
    const int64_t taps = (int64_t)j->c.kt * j->c.kh * j->c.kw;
    cudaStream_t stream = sl_cuda_stream(exec);
    cudaError_t error = cudaSuccess;

    if (j->plan.pack_w)
        error = sl_cuda_conv_pack(stream, j->w_data, j->c.w, j->c.w_bf16, j->c.O * taps, j->c.I,
                                  j->plan.channels);
    if (error == cudaSuccess && j->plan.pack_b)
        error = sl_cuda_conv_pack(stream, j->bias, j->c.b, j->c.b_bf16, 1, j->c.O, j->c.O);
    return error;
}

static sl_status run_piece(sl_exec *exec, sl_dnn *dnn, const job *j, const sl_conv_piece *piece,
                           sl_error *err)
{
    static const int64_t ids[SL_CONV_IDS] = { SL_CONV_X, SL_CONV_W, SL_CONV_Y, SL_CONV_BIAS,
                                              SL_CONV_RESIDUAL };
    const int64_t in_bytes = j->c.H * j->c.W * j->c.I * 2;
    const int64_t out_bytes = j->c.Ho * j->c.Wo * j->c.O * 2;
    const sl_dnn_plan *plan;
    sl_status status = find_plan(dnn, j, piece, &plan, err);
    const unsigned char *in = j->plan.adjacent ? j->c.cache : j->c.x;

    if (status != SL_OK)
        return status;
    SL_ASSERT(plan); /* find_plans has seen it, and nothing came between */
    if (piece->gathered) {
        status =
            sl_cuda_end(exec, "conv",
                        sl_cuda_conv_gather(sl_cuda_stream(exec), &j->c, j->frames, piece->first_in,
                                            piece->in_count, j->plan.channels),
                        err);
        in = j->frames;
    } else {
        in += (piece->first_in - (j->plan.adjacent ? 0 : j->plan.cached)) * in_bytes;
    }
    if (status != SL_OK)
        return status;
    unsigned char *y = (unsigned char *)j->c.y + piece->first_out * out_bytes;
    const unsigned char *residual =
        j->c.residual ? (const unsigned char *)j->c.residual + piece->first_out * out_bytes : NULL;
    void *const data[SL_CONV_IDS] = { (void *)(uintptr_t)in, j->w_data, y, j->bias,
                                      (void *)(uintptr_t)residual };
    return sl_dnn_run(dnn, plan, residual ? SL_CONV_IDS : SL_CONV_IDS - 1, ids, data,
                      sl_cuda_workspace(exec), err);
}

static sl_status take_temp(sl_exec *exec, job *j, sl_error *err)
{
    sl_status status = SL_OK;

    j->w_data = (void *)(uintptr_t)j->c.w;
    j->bias = (void *)(uintptr_t)j->c.b;
    if (j->plan.pack_w)
        status = sl_cuda_temp(exec, &j->w_data, j->plan.w_bytes, err);
    if (status == SL_OK && j->plan.pack_b)
        status = sl_cuda_temp(exec, &j->bias, j->plan.b_bytes, err);
    if (status == SL_OK && j->plan.frames_bytes > 0)
        status = sl_cuda_temp(exec, &j->frames, j->plan.frames_bytes, err);
    return status;
}

static sl_status run_library(sl_exec *exec, sl_dnn *dnn, job *j, sl_error *err)
{
    sl_scratch *scratch = sl_exec_scratch(exec);
    const size_t mark = scratch ? sl_scratch_mark(scratch) : 0;
    sl_status status = take_temp(exec, j, err);

    if (status == SL_OK)
        status = sl_cuda_end(exec, "conv", prepare(exec, j), err);
    for (int64_t to = 0; status == SL_OK && to < j->c.To;) {
        const sl_conv_piece piece = sl_conv_piece_at(&j->plan, j->y, j->x, j->w, j->params, to);

        status = run_piece(exec, dnn, j, &piece, err);
        to += piece.out_count;
    }
    if (scratch)
        sl_scratch_release(scratch, mark);
    return status == SL_OK ? sl_cuda_end(exec, "conv", cudaSuccess, err) : status;
}

/* --- conv --- */

/* The library loads 16 bytes at once; frames of odd shapes may begin elsewhere,
 * which matters where a piece begins with another frame than the first. */
static bool is_aligned(const job *j)
{
    const sl_conv_plan *plan = &j->plan;
    const int64_t in_bytes = j->c.H * j->c.W * j->c.I * 2;
    const int64_t out_bytes = j->c.Ho * j->c.Wo * j->c.O * 2;
    const uintptr_t all = (uintptr_t)j->c.x | (uintptr_t)j->c.cache | (uintptr_t)j->c.residual |
                          (uintptr_t)j->c.y | (plan->pack_w ? 0 : (uintptr_t)j->c.w) |
                          (plan->pack_b ? 0 : (uintptr_t)j->c.b);
    const bool one_piece = plan->in_place_from == 0 ||
                           (plan->in_place_from == j->c.To && plan->frames_each == j->c.To);

    return all % 16 == 0 && (one_piece || (in_bytes % 16 == 0 && out_bytes % 16 == 0));
}

static job job_of(const sl_tensor *y, const sl_tensor *x, const sl_tensor *cache,
                  const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                  const sl_conv_params *p)
{
    return (job){
        .y = y,
        .x = x,
        .w = w,
        .params = p,
        .plan = sl_conv_plan_of(y, x, cache, w, b, p),
        .c = {
            .y = y->data,
            .x = x->data,
            .cache = cache ? cache->data : NULL,
            .residual = residual ? residual->data : NULL,
            .w = w->data,
            .b = b ? b->data : NULL,
            .bf16 = x->dtype == SL_BF16,
            .w_bf16 = w->dtype == SL_BF16,
            .b_bf16 = b && b->dtype == SL_BF16,
            .cached = cache ? cache->dim[0] : 0,
            .T = x->dim[0],
            .H = x->dim[1],
            .W = x->dim[2],
            .I = x->dim[3],
            .To = y->dim[0],
            .Ho = y->dim[1],
            .Wo = y->dim[2],
            .O = y->dim[3],
            .kt = (int)w->dim[1],
            .kh = (int)w->dim[2],
            .kw = (int)w->dim[3],
            .zero_frames = p->zero_frames,
            .stride_t = p->stride_t,
            .stride_hw = p->stride_hw,
            .pad_top = p->pad_top,
            .pad_left = p->pad_left,
            .upsample = p->upsample,
        },
    };
}

sl_status sl_conv_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                       const sl_tensor *cache, const sl_tensor *w, const sl_tensor *b,
                       const sl_tensor *residual, const sl_conv_params *params, sl_error *err)
{
    sl_status status = sl_conv_check(exec, y, x, cache, w, b, residual, params, err);
    bool library = false;
    sl_dnn *dnn = NULL;

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    if (sl_tensor_count(y) == 0)
        return sl_cuda_end(exec, "conv", cudaSuccess, err);
    job j = job_of(y, x, cache, w, b, residual, params);
    if (j.plan.library && is_aligned(&j)) {
        status = plans_of(exec, &dnn, err);
        if (status == SL_OK)
            status = find_plans(dnn, &j, &library, err);
        if (status != SL_OK)
            return status;
    }
    if (library)
        return run_library(exec, dnn, &j, err);
    return sl_cuda_end(exec, "conv", sl_cuda_conv_direct(sl_cuda_stream(exec), &j.c), err);
}

sl_status sl_pair_frames_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_pair_frames_check(exec, y, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "pair_frames",
                       sl_cuda_pair_frames(sl_cuda_stream(exec), y->data, x->data, x->dim[0],
                                           x->dim[1] * x->dim[2], y->dim[3],
                                           (int)sl_dtype_bytes(x->dtype)),
                       err);
}
