#include "kernels/sampler_cuda.h"

#include "kernels/cuda.h"
#include "kernels/sampler.h"

_Static_assert((int)SL_CUDA_MAX_TERMS == (int)SL_SAMPLE_MAX_TERMS, "every term has its place");

sl_status sl_sample_init_cuda(sl_exec *exec, const sl_tensor *x, const sl_tensor *noise, double t0,
                              sl_error *err)
{
    sl_status status = sl_sample_init_check(exec, x, noise, t0, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(
        exec, "sample_init",
        sl_cuda_sample_init(sl_cuda_stream(exec), x->data, noise->data, t0, sl_tensor_count(x)),
        err);
}

sl_status sl_sample_step_cuda(sl_exec *exec, const sl_tensor *x, const sl_tensor *v,
                              const sl_tensor *noise, double t_cur, double t_next, sl_error *err)
{
    sl_status status = sl_sample_step_check(exec, x, v, noise, t_cur, t_next, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(exec, "sample_step",
                       sl_cuda_sample_step(sl_cuda_stream(exec), x->data, v->data,
                                           noise ? noise->data : NULL, t_cur, t_next,
                                           sl_tensor_count(x)),
                       err);
}

sl_status sl_sample_cast_cuda(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    sl_status status = sl_sample_cast_check(exec, y, x, err);

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    return sl_cuda_end(
        exec, "sample_cast",
        sl_cuda_sample_cast(sl_cuda_stream(exec), y->data, x->data, sl_tensor_count(y)), err);
}

sl_status sl_sample_combine_cuda(sl_exec *exec, const sl_tensor *y, const sl_sample_term *terms,
                                 int term_count, sl_error *err)
{
    sl_status status = sl_sample_combine_check(exec, y, terms, term_count, err);
    sl_cuda_terms all = { .count = term_count };

    if (status == SL_OK)
        status = sl_cuda_begin(exec, err);
    if (status != SL_OK)
        return status;
    for (int i = 0; i < term_count; i++) {
        all.by[i] = terms[i].by;
        all.t[i] = terms[i].t->data;
        all.dtype[i] = terms[i].t->dtype;
    }
    return sl_cuda_end(
        exec, "sample_combine",
        sl_cuda_sample_combine(sl_cuda_stream(exec), y->data, y->dtype, &all, sl_tensor_count(y)),
        err);
}
