#include "kernels/cuda.h"
#include "kernels/exec_part.h"
#include "kernels/ops.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* Work is bounded by counting ops: an event is recorded after each, and an op
 * waits until the one RING_OPS before it is done.  The longest op of a 14B model
 * at 720p (attention, about 0.2 s) comes once in about twenty, so what is queued
 * stays below half a second, while the shortest (some microseconds) still leave
 * enough to keep the card busy. */
enum { RING_OPS = 16, STAGINGS = 2 };
#define STAGING_BYTES ((size_t)4 << 20)

typedef struct {
    unsigned char *data; /* pinned */
    cudaEvent_t event;   /* the last copy that used it */
} staging;

typedef struct {
    sl_exec head;
    int card;
    struct cudaDeviceProp properties;
    cudaStream_t stream;
    cublasLtHandle_t blas;
    cudnnHandle_t dnn;
    cudaEvent_t ring[RING_OPS];
    uint64_t queued; /* ops so far: the event of op i is ring[i % RING_OPS] */
    staging stagings[STAGINGS];
    unsigned next_staging;
    void *tiles; /* workspace of the host threads; MAP_FAILED or NULL: none */
    size_t tiles_bytes;
    sl_cuda_cache caches[SL_CUDA_SLOT_COUNT];
} cuda_exec;

static cuda_exec *cuda_of(const sl_exec *exec)
{
    SL_ASSERT(exec->numerics.kind == SL_DEVICE_CUDA && !exec->counting);
    return (cuda_exec *)(uintptr_t)exec;
}

cudaStream_t sl_cuda_stream(sl_exec *exec)
{
    return cuda_of(exec)->stream;
}

cublasLtHandle_t sl_cuda_blas(sl_exec *exec)
{
    return cuda_of(exec)->blas;
}

cudnnHandle_t sl_cuda_dnn(sl_exec *exec)
{
    return cuda_of(exec)->dnn;
}

void *sl_cuda_workspace(sl_exec *exec)
{
    return sl_region_data(cuda_of(exec)->head.workspace);
}

const struct cudaDeviceProp *sl_cuda_properties(const sl_exec *exec)
{
    return &cuda_of(exec)->properties;
}

sl_cuda_cache *sl_cuda_cache_of(sl_exec *exec, sl_cuda_slot slot)
{
    return &cuda_of(exec)->caches[slot];
}

sl_status sl_cuda_temp(sl_exec *exec, void **out, size_t bytes, sl_error *err)
{
    if (!exec->scratch)
        return sl_fail(err, SL_ERR_INTERNAL, "need %zu bytes of temporary memory, none was lent",
                       bytes);
    return sl_scratch_alloc(exec->scratch, out, bytes, err);
}

/* ---- waiting ---- */

/* The context is current per thread, and an exec may move between threads. */
static sl_status enter(const cuda_exec *e, sl_error *err)
{
    const cudaError_t error = cudaSetDevice(e->card);

    return error == cudaSuccess ? SL_OK : sl_cuda_fail(err, error, "cuda:%d", e->card);
}

/* Spins shortly, then sleeps: most waits are long, and the host's cores have
 * files to read. */
static sl_status await(const cuda_exec *e, cudaEvent_t event, bool cancellable, sl_error *err)
{
    enum { SPINS = 100 };
    const struct timespec nap = { .tv_nsec = 30000 };

    for (int tries = 0;; tries++) {
        const cudaError_t error = cudaEventQuery(event);
        if (error == cudaSuccess)
            return SL_OK;
        if (error != cudaErrorNotReady)
            return sl_cuda_fail(err, error, "cuda:%d: earlier work", e->card);
        cudaGetLastError(); /* "not ready" would be taken for a launch's error */
        if (cancellable && sl_exec_cancelled(&e->head))
            return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
        if (tries >= SPINS)
            nanosleep(&nap, NULL);
    }
}

sl_status sl_cuda_begin(sl_exec *exec, sl_error *err)
{
    cuda_exec *e = cuda_of(exec);
    const sl_status status = enter(e, err);

    if (status != SL_OK)
        return status;
    if (sl_exec_cancelled(exec))
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    return e->queued < RING_OPS ? SL_OK : await(e, e->ring[e->queued % RING_OPS], true, err);
}

sl_status sl_cuda_end(sl_exec *exec, const char *op, cudaError_t error, sl_error *err)
{
    cuda_exec *e = cuda_of(exec);

    if (error == cudaSuccess)
        error = cudaEventRecord(e->ring[e->queued % RING_OPS], e->stream);
    if (error != cudaSuccess)
        return sl_cuda_fail(err, error, "%s", op);
    e->queued++;
    return SL_OK;
}

static sl_status cuda_wait(sl_exec *exec, sl_error *err)
{
    cuda_exec *e = cuda_of(exec);
    sl_status status = enter(e, err);

    if (status != SL_OK || e->queued == 0)
        return status;
    /* One stream: the last op's event stands for all before it. */
    return await(e, e->ring[(e->queued - 1) % RING_OPS], false, err);
}

/* ---- copies ---- */

/* A staging buffer whose last copy is done. */
static sl_status take_staging(cuda_exec *e, staging **out, sl_error *err)
{
    staging *s = &e->stagings[e->next_staging++ % STAGINGS];

    *out = s;
    return await(e, s->event, false, err);
}

static sl_status queue_copy(cuda_exec *e, staging *s, void *dst, const void *src, size_t bytes,
                            enum cudaMemcpyKind kind, sl_error *err)
{
    cudaError_t error = cudaMemcpyAsync(dst, src, bytes, kind, e->stream);

    if (error == cudaSuccess)
        error = cudaEventRecord(s->event, e->stream);
    if (error != cudaSuccess)
        return sl_cuda_fail(err, error, "could not copy %zu bytes %s cuda:%d", bytes,
                            kind == cudaMemcpyHostToDevice ? "to" : "from", e->card);
    return SL_OK;
}

static sl_status cuda_write(sl_exec *exec, void *d_dst, const void *src, size_t size_bytes,
                            sl_error *err)
{
    cuda_exec *e = cuda_of(exec);
    sl_status status = sl_cuda_begin(exec, err);

    for (size_t at = 0; status == SL_OK && at < size_bytes; at += STAGING_BYTES) {
        const size_t n = size_bytes - at < STAGING_BYTES ? size_bytes - at : STAGING_BYTES;
        staging *s;
        status = take_staging(e, &s, err);
        if (status != SL_OK)
            break;
        memcpy(s->data, (const unsigned char *)src + at, n);
        status =
            queue_copy(e, s, (unsigned char *)d_dst + at, s->data, n, cudaMemcpyHostToDevice, err);
    }
    return status == SL_OK ? sl_cuda_end(exec, "write", cudaSuccess, err) : status;
}

/* The second buffer fills while the first is copied out. */
static sl_status cuda_read(sl_exec *exec, void *dst, const void *d_src, size_t size_bytes,
                           sl_error *err)
{
    cuda_exec *e = cuda_of(exec);
    staging *filled = NULL;
    size_t filled_at = 0, filled_bytes = 0;
    sl_status status = enter(e, err);

    for (size_t at = 0; status == SL_OK && (at < size_bytes || filled); at += STAGING_BYTES) {
        staging *s = NULL;
        size_t n = 0;
        if (at < size_bytes) {
            n = size_bytes - at < STAGING_BYTES ? size_bytes - at : STAGING_BYTES;
            status = take_staging(e, &s, err);
            if (status == SL_OK)
                status = queue_copy(e, s, s->data, (const unsigned char *)d_src + at, n,
                                    cudaMemcpyDeviceToHost, err);
        }
        if (status == SL_OK && filled) {
            status = await(e, filled->event, false, err);
            if (status == SL_OK)
                memcpy((unsigned char *)dst + filled_at, filled->data, filled_bytes);
        }
        filled = s;
        filled_at = at;
        filled_bytes = n;
    }
    return status;
}

/* ---- create ---- */

static void cuda_destroy(sl_exec *exec)
{
    cuda_exec *e = cuda_of(exec);

    /* After a fault nothing below succeeds, and nothing is left to save. */
    cudaSetDevice(e->card);
    if (e->stream)
        cudaStreamSynchronize(e->stream);
    for (size_t i = 0; i < SL_COUNT(e->caches); i++)
        if (e->caches[i].value)
            e->caches[i].destroy(e->caches[i].value);
    if (e->dnn)
        cudnnDestroy(e->dnn);
    if (e->blas)
        cublasLtDestroy(e->blas);
    for (size_t i = 0; i < RING_OPS; i++)
        if (e->ring[i])
            cudaEventDestroy(e->ring[i]);
    for (size_t i = 0; i < STAGINGS; i++) {
        if (e->stagings[i].event)
            cudaEventDestroy(e->stagings[i].event);
        cudaFreeHost(e->stagings[i].data);
    }
    if (e->stream)
        cudaStreamDestroy(e->stream);
    sl_exec_head_fini(exec);
    if (e->tiles && e->tiles != MAP_FAILED)
        munmap(e->tiles, e->tiles_bytes);
    free(e);
}

static const sl_exec_kind kind_cuda = {
    .destroy = cuda_destroy,
    .write = cuda_write,
    .read = cuda_read,
    .wait = cuda_wait,
};

static sl_status create_stream(cuda_exec *e, sl_error *err)
{
    cudaError_t error = cudaSetDevice(e->card);

    if (error == cudaSuccess)
        error = cudaGetDeviceProperties(&e->properties, e->card);
    /* Nothing of ours runs on the default stream, so nothing waits for it. */
    if (error == cudaSuccess)
        error = cudaStreamCreateWithFlags(&e->stream, cudaStreamNonBlocking);
    for (size_t i = 0; error == cudaSuccess && i < RING_OPS; i++)
        error = cudaEventCreateWithFlags(&e->ring[i], cudaEventDisableTiming);
    for (size_t i = 0; error == cudaSuccess && i < STAGINGS; i++) {
        error = cudaEventCreateWithFlags(&e->stagings[i].event, cudaEventDisableTiming);
        if (error == cudaSuccess)
            error =
                cudaHostAlloc((void **)&e->stagings[i].data, STAGING_BYTES, cudaHostAllocPortable);
    }
    return error == cudaSuccess ? SL_OK
                                : sl_cuda_fail(err, error, "cuda:%d: stream and events", e->card);
}

static sl_status create_libraries(cuda_exec *e, sl_error *err)
{
    const cublasStatus_t blas = cublasLtCreate(&e->blas);
    cudnnStatus_t dnn;

    if (blas != CUBLAS_STATUS_SUCCESS)
        return sl_cuda_fail_blas(err, blas, "cuda:%d: cuBLASLt", e->card);
    dnn = cudnnCreate(&e->dnn);
    if (dnn == CUDNN_STATUS_SUCCESS)
        dnn = cudnnSetStream(e->dnn, e->stream);
    if (dnn != CUDNN_STATUS_SUCCESS)
        return sl_cuda_fail_dnn(err, dnn, "cuda:%d: cuDNN", e->card);
    return SL_OK;
}

/* Host threads, for loaders: their workspace is not the card's. */
static sl_status create_pool(cuda_exec *e, sl_error *err)
{
    const int threads = sl_pool_online_cores();

    e->tiles_bytes = (size_t)threads * SL_CPU_WORKSPACE_PER_THREAD;
    e->tiles = mmap(NULL, e->tiles_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e->tiles == MAP_FAILED)
        return sl_fail_errno(err, "could not map %zu bytes for %d host threads", e->tiles_bytes,
                             threads);
    return sl_pool_create(&e->head.pool, threads, e->tiles, e->head.cancel, err);
}

sl_status sl_exec_create_cuda(sl_exec **out, sl_device *device, const sl_numerics *numerics,
                              const atomic_uint *cancel, sl_error *err)
{
    const sl_device_spec *spec = sl_device_get_spec(device);
    sl_exec *exec = NULL;
    cuda_exec *e;
    sl_status status;

    SL_ASSERT(spec->kind == SL_DEVICE_CUDA && numerics->kind == SL_DEVICE_CUDA);
    e = calloc(1, sizeof *e);
    if (!e)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an execution context");
    sl_exec_head_init(&e->head, &kind_cuda, &sl_ops_cuda, device, numerics, cancel);
    exec = &e->head;
    e->card = spec->index;
    status = create_stream(e, err);
    if (status == SL_OK)
        status = create_libraries(e, err);
    if (status == SL_OK)
        status = create_pool(e, err);
    if (status == SL_OK)
        status =
            sl_region_create(&exec->workspace, device, "workspace", SL_CUDA_WORKSPACE_BYTES, err);
    if (status == SL_OK)
        status = sl_region_map(exec->workspace, SL_CUDA_WORKSPACE_BYTES, err);
    if (status == SL_OK) {
        *out = exec;
        exec = NULL; /* handed to the caller */
    }
    sl_exec_destroy(exec);
    return status;
}
