#include "kernels/timer.h"

#include "kernels/cuda.h"

#include <stdlib.h>

struct sl_timer {
    sl_exec *exec;
    cudaEvent_t start, stop;
};

sl_status sl_timer_create(sl_timer **out, sl_exec *exec, sl_error *err)
{
    sl_timer *timer = calloc(1, sizeof *timer);
    sl_status status;

    if (!timer)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a timer");
    timer->exec = exec;
    status = sl_cuda_begin(exec, err); /* the card is current in this thread */
    if (status == SL_OK) {
        cudaError_t error = cudaEventCreate(&timer->start);
        if (error == cudaSuccess)
            error = cudaEventCreate(&timer->stop);
        if (error != cudaSuccess)
            status = sl_cuda_fail(err, error, "timer");
    }
    if (status == SL_OK) {
        *out = timer;
        timer = NULL; /* handed to the caller */
    }
    sl_timer_destroy(timer);
    return status;
}

void sl_timer_destroy(sl_timer *timer)
{
    if (!timer)
        return;
    if (timer->start)
        cudaEventDestroy(timer->start);
    if (timer->stop)
        cudaEventDestroy(timer->stop);
    free(timer);
}

sl_status sl_timer_start(sl_timer *timer, sl_error *err)
{
    const cudaError_t error = cudaEventRecord(timer->start, sl_cuda_stream(timer->exec));

    return error == cudaSuccess ? SL_OK : sl_cuda_fail(err, error, "timer");
}

sl_status sl_timer_stop(sl_timer *timer, double *milliseconds, sl_error *err)
{
    cudaError_t error = cudaEventRecord(timer->stop, sl_cuda_stream(timer->exec));
    float elapsed = 0.0f;

    if (error == cudaSuccess)
        error = cudaEventSynchronize(timer->stop);
    if (error == cudaSuccess)
        error = cudaEventElapsedTime(&elapsed, timer->start, timer->stop);
    if (error != cudaSuccess)
        return sl_cuda_fail(err, error, "timer");
    *milliseconds = (double)elapsed;
    return SL_OK;
}
