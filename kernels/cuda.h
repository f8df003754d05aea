/* cuda.h - what ops on cuda share: stream, library handles, temporary memory,
 * and errors turned into statuses.  For kernels/X_cuda.c only (C, not C++).
 *
 * An op looks like this:
 *
 *     SL_TRY(sl_rope_check(...));
 *     SL_TRY(sl_cuda_begin(exec, err));
 *     return sl_cuda_end(exec, "rope", sl_cuda_rope(sl_cuda_stream(exec), ...), err);
 *
 * A launcher (extern "C", in X.cu) returns cudaGetLastError() of its launches.
 * Nothing here is called on an exec of another kind.
 */
#ifndef SL_KERNELS_CUDA_H
#define SL_KERNELS_CUDA_H

#include "kernels/cuda_driver.h"
#include "kernels/exec.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

cudaStream_t sl_cuda_stream(sl_exec *exec);
cublasLtHandle_t sl_cuda_blas(sl_exec *exec);
cudnnHandle_t sl_cuda_dnn(sl_exec *exec); /* on the stream */
/* SL_CUDA_WORKSPACE_BYTES of device memory for library workspaces, aligned to a
 * granule.  Ops are in order on one stream, so each may use all of it. */
void *sl_cuda_workspace(sl_exec *exec);
const struct cudaDeviceProp *sl_cuda_properties(const sl_exec *exec);

/* First in each op: makes the card current in this thread, looks at the cancel
 * word, and waits while too much is queued. */
sl_status sl_cuda_begin(sl_exec *exec, sl_error *err) SL_MUST_CHECK;
/* Last in each op: `error` is what its launches gave.  `op` begins the message. */
sl_status sl_cuda_end(sl_exec *exec, const char *op, cudaError_t error,
                      sl_error *err) SL_MUST_CHECK;
/* From the lent scratch, undefined contents.  The op marks sl_exec_scratch(exec)
 * before and releases the mark before it returns: what comes later on the stream
 * may use the same bytes.  SL_ERR_INTERNAL when no scratch was lent. */
sl_status sl_cuda_temp(sl_exec *exec, void **out, size_t bytes, sl_error *err) SL_MUST_CHECK;

/* Plans that a library made, kept for the exec's life: host memory only. */
typedef enum {
    SL_CUDA_SLOT_LINEAR,
    SL_CUDA_SLOT_LINEAR_INT8,
    SL_CUDA_SLOT_ATTENTION,
    SL_CUDA_SLOT_CONV,
    SL_CUDA_SLOT_SPARSE,
    SL_CUDA_SLOT_COUNT
} sl_cuda_slot;

typedef struct {
    void *value;                  /* NULL at first: the op that owns the slot makes it */
    void (*destroy)(void *value); /* called with value when the exec goes */
} sl_cuda_cache;

sl_cuda_cache *sl_cuda_cache_of(sl_exec *exec, sl_cuda_slot slot);

/* Records "<text>: <the library's words>"; clears an error that does not stick. */
sl_status sl_cuda_fail(sl_error *err, cudaError_t error, const char *fmt, ...) SL_PRINTF(3, 4);
sl_status sl_cuda_fail_blas(sl_error *err, cublasStatus_t error, const char *fmt, ...)
    SL_PRINTF(3, 4);
sl_status sl_cuda_fail_dnn(sl_error *err, cudnnStatus_t error, const char *fmt, ...)
    SL_PRINTF(3, 4);

#endif
