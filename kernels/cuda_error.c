#include "kernels/cuda.h"

#include <stdio.h>

static sl_status fail(sl_error *err, sl_status status, const char *name, const char *words,
                      const char *fmt, va_list args)
{
    char what[512];

    vsnprintf(what, sizeof what, fmt, args);
    return sl_fail(err, status, "%s: %s (%s)%s", what, words, name, sl_cuda_advice(status));
}

sl_status sl_cuda_fail(sl_error *err, cudaError_t error, const char *fmt, ...)
{
    const sl_status status = sl_cuda_status((int)error);
    sl_status result;
    va_list args;

    cudaGetLastError();
    va_start(args, fmt);
    result = fail(err, status, cudaGetErrorName(error), cudaGetErrorString(error), fmt, args);
    va_end(args);
    return result;
}

/* A library says little: the runtime knows whether the context is still good. */
static sl_status library_status(bool no_memory, bool unsupported)
{
    const sl_status runtime = sl_cuda_status((int)cudaGetLastError());

    if (runtime == SL_ERR_DEVICE)
        return runtime;
    return no_memory ? SL_ERR_NO_MEMORY : unsupported ? SL_ERR_UNIMPLEMENTED : SL_ERR_INTERNAL;
}

sl_status sl_cuda_fail_blas(sl_error *err, cublasStatus_t error, const char *fmt, ...)
{
    const sl_status status = library_status(error == CUBLAS_STATUS_ALLOC_FAILED,
                                            error == CUBLAS_STATUS_NOT_SUPPORTED ||
                                                error == CUBLAS_STATUS_ARCH_MISMATCH);
    sl_status result;
    va_list args;

    va_start(args, fmt);
    result =
        fail(err, status, cublasLtGetStatusName(error), cublasLtGetStatusString(error), fmt, args);
    va_end(args);
    return result;
}

sl_status sl_cuda_fail_dnn(sl_error *err, cudnnStatus_t error, const char *fmt, ...)
{
    const sl_status status =
        library_status(error == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
                           error == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED,
                       CUDNN_STATUS_CATEGORY((int)error) == CUDNN_STATUS_NOT_SUPPORTED);
    char words[256];
    sl_status result;
    va_list args;

    words[0] = '\0';
    cudnnGetLastErrorString(words, sizeof words);
    va_start(args, fmt);
    result = fail(err, status, cudnnGetErrorString(error), words, fmt, args);
    va_end(args);
    return result;
}
