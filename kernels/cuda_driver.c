#include "kernels/cuda_driver.h"

#include <dlfcn.h>
#include <driver_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Everything that is not known to be harmless counts as sticky: a worker that
 * is replaced once too often costs seconds, one that goes on after a fault
 * computes garbage. */
sl_status sl_cuda_status(int code)
{
    switch ((enum cudaError)code) {
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

const char *sl_cuda_advice(sl_status status)
{
    return status == SL_ERR_DEVICE ? ": the context is lost and the worker must be restarted" : "";
}

sl_status sl_cuda_driver_fail(const sl_cuda_driver *driver, sl_error *err, CUresult error,
                              const char *fmt, ...)
{
    const sl_status status = sl_cuda_status((int)error);
    const char *name = NULL, *words = NULL;
    char what[512];
    va_list args;

    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    driver->cuGetErrorName(error, &name);
    driver->cuGetErrorString(error, &words);
    return sl_fail(err, status, "%s: %s (%s %d)%s", what, words ? words : "unknown error",
                   name ? name : "CUresult", (int)error, sl_cuda_advice(status));
}

#define TEXT_OF(name)   TEXT_OF_2(name)
#define TEXT_OF_2(name) #name

static sl_status resolve(sl_cuda_driver *driver, sl_error *err)
{
    const struct {
        const char *name;
        void *field;
    } symbols[] = {
#define SL_X(name) { TEXT_OF(name), &driver->name },
        SL_CUDA_DRIVER_LIST(SL_X)
#undef SL_X
    };

    for (size_t i = 0; i < SL_COUNT(symbols); i++) {
        void *address = dlsym(driver->library, symbols[i].name);
        if (!address)
            return sl_fail(err, SL_ERR_UNAVAILABLE, "the CUDA driver is too old: it has no %s",
                           symbols[i].name);
        memcpy(symbols[i].field, &address, sizeof address);
    }
    return SL_OK;
}

sl_status sl_cuda_driver_open(sl_cuda_driver *out, sl_error *err)
{
    sl_cuda_driver driver = { .library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) };
    sl_status status;

    if (!driver.library)
        return sl_fail(err, SL_ERR_UNAVAILABLE, "this machine has no CUDA driver: %s", dlerror());
    /* Otherwise card 0 would be the fastest one, and differ from nvidia-smi's. */
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0);
    status = resolve(&driver, err);
    if (status == SL_OK) {
        const CUresult error = driver.cuInit(0);
        if (error != CUDA_SUCCESS) {
            sl_cuda_driver_fail(&driver, err, error, "the CUDA driver does not start");
            /* Whatever the reason, there is no context that could be lost. */
            status = SL_ERR_UNAVAILABLE;
            if (err)
                err->status = status;
        }
    }
    if (status == SL_OK) {
        *out = driver;
        driver.library = NULL; /* handed to the caller */
    }
    sl_cuda_driver_close(&driver);
    return status;
}

void sl_cuda_driver_close(sl_cuda_driver *driver)
{
    if (driver->library)
        dlclose(driver->library);
    *driver = (sl_cuda_driver){ .library = NULL };
}
