#include "kernels/cuda.h"

#include <stdio.h>

/* Everything that is not known to be harmless counts as sticky: a worker that
 * is replaced once too often costs seconds, one that goes on after a fault
 * computes garbage. */
sl_status sl_cuda_status(int code)
{
    switch ((cudaError_t)code) {
    case cudaSuccess:
        return SL_OK;
    case cudaErrorMemoryAllocation:
        return SL_ERR_NO_MEMORY;
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
        return SL_ERR_UNAVAILABLE;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidKernelImage:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorNotSupported:
    case cudaErrorNotPermitted:
    case cudaErrorSymbolNotFound:
    case cudaErrorSharedObjectInitFailed:
    case cudaErrorSharedObjectSymbolNotFound:
        return SL_ERR_UNIMPLEMENTED;
    case cudaErrorInvalidValue:
    case cudaErrorInitializationError:
    case cudaErrorCudartUnloading:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidPitchValue:
    case cudaErrorInvalidSymbol:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidMemcpyDirection:
    case cudaErrorInvalidDevicePointer:
    case cudaErrorMissingConfiguration:
    case cudaErrorNotReady:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered:
    case cudaErrorAlreadyMapped:
    case cudaErrorNotMapped:
    case cudaErrorDeviceUninitialized:
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorOperatingSystem:
        return SL_ERR_INTERNAL;
    default:
        return SL_ERR_DEVICE;
    }
}

static const char *advice(sl_status status)
{
    switch (status) {
    case SL_ERR_DEVICE:
        return ": the context is lost and the worker must be restarted";
    case SL_ERR_NO_MEMORY:
        return ": memory outside of the arena, which is a bug";
    default:
        return "";
    }
}

static sl_status fail(sl_error *err, sl_status status, const char *name, const char *words,
                      const char *fmt, va_list args)
{
    char what[512];

    vsnprintf(what, sizeof what, fmt, args);
    return sl_fail(err, status, "%s: %s (%s)%s", what, words, name, advice(status));
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
    result = fail(err, status, cublasLtGetStatusName(error), cublasLtGetStatusString(error), fmt,
                  args);
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
