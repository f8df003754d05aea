/* cuda_driver.h - the driver, loaded when a card is first asked for.
 *
 * The device layer (memory, pins, copies) speaks to the driver alone, through
 * this table: a program built with CUDA starts, and plans, on a machine that has
 * no driver, and what never opens a card never creates a context.
 *
 * Ownership: who opens it closes it; the library stays loaded while anyone has
 *            it open.
 * Threads:   the table is constant; the driver's functions are safe from any.
 */
#ifndef SL_KERNELS_CUDA_DRIVER_H
#define SL_KERNELS_CUDA_DRIVER_H

#include "base/status.h"

#include <cuda.h>

/* cuda.h maps some of these to versioned names, for fields and symbols alike. */
#define SL_CUDA_DRIVER_LIST(X)                                                                     \
    X(cuInit)                                                                                      \
    X(cuGetErrorName)                                                                              \
    X(cuGetErrorString)                                                                            \
    X(cuDeviceGetCount)                                                                            \
    X(cuDeviceGet)                                                                                 \
    X(cuDeviceGetName)                                                                             \
    X(cuDeviceGetUuid)                                                                             \
    X(cuDeviceGetAttribute)                                                                        \
    X(cuDevicePrimaryCtxRetain)                                                                    \
    X(cuDevicePrimaryCtxRelease)                                                                   \
    X(cuCtxSetCurrent)                                                                             \
    X(cuCtxSynchronize)                                                                            \
    X(cuMemGetInfo)                                                                                \
    X(cuMemGetAllocationGranularity)                                                               \
    X(cuMemAddressReserve)                                                                         \
    X(cuMemAddressFree)                                                                            \
    X(cuMemCreate)                                                                                 \
    X(cuMemRelease)                                                                                \
    X(cuMemMap)                                                                                    \
    X(cuMemUnmap)                                                                                  \
    X(cuMemSetAccess)                                                                              \
    X(cuMemcpyDtoD)                                                                                \
    X(cuMemHostAlloc)                                                                              \
    X(cuMemFreeHost)                                                                               \
    X(cuMemHostRegister)                                                                           \
    X(cuMemHostUnregister)                                                                         \
    X(cuMemcpyHtoDAsync)                                                                           \
    X(cuMemcpyDtoHAsync)                                                                           \
    X(cuStreamCreate)                                                                              \
    X(cuStreamDestroy)                                                                             \
    X(cuStreamSynchronize)                                                                         \
    X(cuEventCreate)                                                                               \
    X(cuEventDestroy)                                                                              \
    X(cuEventRecord)                                                                               \
    X(cuEventQuery)                                                                                \
    X(cuEventSynchronize)                                                                          \
    X(cuEventElapsedTime)

typedef struct {
    void *library;
#define SL_X(name) __typeof__ (&(name))(name);
    SL_CUDA_DRIVER_LIST(SL_X)
#undef SL_X
} sl_cuda_driver;

/* Loads and initialises; no context yet.  Card N is then the one that nvidia-smi
 * calls N.  SL_ERR_UNAVAILABLE: no driver here, or one that does not start. */
sl_status sl_cuda_driver_open(sl_cuda_driver *out, sl_error *err) SL_MUST_CHECK;
void sl_cuda_driver_close(sl_cuda_driver *driver); /* zeroed is fine */

/* Records "<text>: <the driver's words>" with the status of kernels/cuda.h. */
sl_status sl_cuda_driver_fail(const sl_cuda_driver *driver, sl_error *err, CUresult error,
                              const char *fmt, ...) SL_PRINTF(4, 5);

/* What a failed call means; runtime and driver use the same numbers.
 * SL_ERR_DEVICE: the context is lost (sticky).  SL_ERR_NO_MEMORY: the card, or
 * the system for pinned memory, has no more.  SL_ERR_UNAVAILABLE: no driver, no
 * card or a card that is busy.  Otherwise SL_ERR_UNIMPLEMENTED (there is no such
 * thing here) or SL_ERR_INTERNAL (our call was wrong). */
sl_status sl_cuda_status(int code);
/* What follows such a message: "" or ": the context is lost ..." */
const char *sl_cuda_advice(sl_status status);

#endif
