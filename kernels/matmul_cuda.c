/* cuBLASLt counts columns first: its D [O, S] is y, its A [I, O], transposed, is w
 * and its B [I, S] is x, all with the bytes that they have. */
#include "kernels/matmul_cuda.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { PLANS = 128, MAX_ALIGN = 256 };

_Static_assert(sizeof(sl_cuda_matmul_key) == 3 * 8 + 8 * 4, "keys have no padding");
_Static_assert(SL_CUDA_MATMUL_BYTES <= SL_CUDA_WORKSPACE_BYTES, "a part of the workspace");

struct sl_cuda_matmul {
    sl_cuda_matmul_key key;
    bool refused; /* nothing else is set then */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
};

typedef struct {
    sl_cuda_matmul plans[PLANS];
    int count, oldest;
} plan_cache;

int32_t sl_cuda_alignment(const void *p)
{
    const uintptr_t at = (uintptr_t)p | MAX_ALIGN;

    return (int32_t)(at & (~at + 1));
}

static void plan_fini(sl_cuda_matmul *m)
{
    if (m->desc)
        cublasLtMatmulDescDestroy(m->desc);
    if (m->w)
        cublasLtMatrixLayoutDestroy(m->w);
    if (m->x)
        cublasLtMatrixLayoutDestroy(m->x);
    if (m->y)
        cublasLtMatrixLayoutDestroy(m->y);
    memset(m, 0, sizeof *m);
}

static void cache_destroy(void *value)
{
    plan_cache *cache = value;

    if (!cache)
        return;
    for (int i = 0; i < cache->count; i++)
        plan_fini(&cache->plans[i]);
    free(cache);
}

static cublasStatus_t set_int(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                              int32_t value)
{
    return cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value);
}

static cublasStatus_t set_pointer(cublasLtMatmulDesc_t desc,
                                  cublasLtMatmulDescAttributes_t attribute, const void *value)
{
    return cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value);
}

/* The first failure of several calls. */
#define FIRST(status, call)                                                                        \
    do {                                                                                           \
        if ((status) == CUBLAS_STATUS_SUCCESS)                                                     \
            (status) = (call);                                                                     \
    } while (0)

static cublasStatus_t describe(sl_cuda_matmul *m)
{
    const sl_cuda_matmul_key *k = &m->key;
    const bool bias = k->bias != SL_CUDA_MATMUL_NO_BIAS;
    const cublasLtEpilogue_t epilogue = bias && k->gelu ? CUBLASLT_EPILOGUE_GELU_BIAS
                                        : bias          ? CUBLASLT_EPILOGUE_BIAS
                                        : k->gelu       ? CUBLASLT_EPILOGUE_GELU
                                                        : CUBLASLT_EPILOGUE_DEFAULT;
    cublasStatus_t status = cublasLtMatmulDescCreate(&m->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    FIRST(status, set_int(m->desc, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
    FIRST(status, set_int(m->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, (int32_t)epilogue));
    if (bias) {
        /* Only its alignment is looked at before a run. */
        FIRST(status, set_pointer(m->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                  (const void *)(uintptr_t)k->bias_align));
        FIRST(status, set_int(m->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, k->bias));
    }
    FIRST(status, cublasLtMatrixLayoutCreate(&m->w, (cudaDataType_t)k->operands, (uint64_t)k->I,
                                             (uint64_t)k->O, k->I));
    FIRST(status, cublasLtMatrixLayoutCreate(&m->x, (cudaDataType_t)k->operands, (uint64_t)k->I,
                                             (uint64_t)k->S, k->I));
    FIRST(status, cublasLtMatrixLayoutCreate(&m->y, (cudaDataType_t)k->y, (uint64_t)k->O,
                                             (uint64_t)k->S, k->O));
    return status;
}

static cublasStatus_t choose(cublasLtHandle_t blas, sl_cuda_matmul *m)
{
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        uint32_t value;
    } asked[] = {
        /* Sums of parts in another dtype than f32, or in the order that blocks
         * end in, would round more, or differ from run to run. */
        { CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)m->key.w_align },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)m->key.x_align },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)m->key.y_align },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)m->key.y_align },
    };
    const size_t most = SL_CUDA_MATMUL_BYTES;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);

    FIRST(status, cublasLtMatmulPreferenceSetAttribute(
                      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most));
    for (size_t i = 0; i < SL_COUNT(asked); i++)
        FIRST(status, cublasLtMatmulPreferenceSetAttribute(preference, asked[i].attribute,
                                                           &asked[i].value, sizeof(uint32_t)));
    FIRST(status, cublasLtMatmulAlgoGetHeuristic(blas, m->desc, m->w, m->x, m->y, m->y, preference,
                                                 1, &found, &count));
    if (status == CUBLAS_STATUS_SUCCESS && count > 0)
        status = found.state;
    if (status == CUBLAS_STATUS_SUCCESS && count > 0)
        m->algo = found.algo;
    else if (status == CUBLAS_STATUS_SUCCESS)
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (preference)
        cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

static sl_status make(sl_cuda_matmul *m, sl_exec *exec, const sl_cuda_matmul_key *key,
                      sl_error *err)
{
    cublasStatus_t status;

    memset(m, 0, sizeof *m);
    m->key = *key;
    status = describe(m);
    FIRST(status, choose(sl_cuda_blas(exec), m));
    if (status == CUBLAS_STATUS_SUCCESS)
        return SL_OK;
    plan_fini(m);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE &&
        status != CUBLAS_STATUS_ARCH_MISMATCH)
        return sl_cuda_fail_blas(err, status,
                                 "could not plan the product of [%" PRId64 ", %" PRId64
                                 "] and [%" PRId64 ", %" PRId64 "]",
                                 key->S, key->I, key->O, key->I);
    m->key = *key;
    m->refused = true;
    return SL_OK;
}

sl_status sl_cuda_matmul_get(sl_cuda_matmul **out, sl_exec *exec, const sl_cuda_matmul_key *key,
                             sl_error *err)
{
    sl_cuda_cache *slot = sl_cuda_cache_of(exec, SL_CUDA_SLOT_LINEAR);
    plan_cache *cache = slot->value;
    sl_cuda_matmul made, *at = NULL;
    sl_status status = SL_OK;

    if (!cache) {
        cache = calloc(1, sizeof *cache);
        if (!cache)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for plans of linear layers");
        *slot = (sl_cuda_cache){ .value = cache, .destroy = cache_destroy };
    }
    for (int i = 0; i < cache->count && !at; i++)
        if (memcmp(&cache->plans[i].key, key, sizeof *key) == 0)
            at = &cache->plans[i];
    if (!at) {
        status = make(&made, exec, key, err);
        if (status != SL_OK)
            return status;
        if (cache->count < PLANS) {
            at = &cache->plans[cache->count++];
        } else {
            at = &cache->plans[cache->oldest];
            cache->oldest = (cache->oldest + 1) % PLANS;
            plan_fini(at);
        }
        *at = made;
    }
    *out = at->refused ? NULL : at;
    return status;
}

sl_status sl_cuda_matmul_run(sl_exec *exec, const sl_cuda_matmul *m, void *y, const void *x,
                             const void *w, const void *bias, sl_error *err)
{
    const float one = 1.0f, zero = 0.0f;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;

    if (m->key.bias != SL_CUDA_MATMUL_NO_BIAS)
        FIRST(status, set_pointer(m->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias));
    FIRST(status, cublasLtMatmul(sl_cuda_blas(exec), m->desc, &one, w, m->w, x, m->x, &zero, y,
                                 m->y, y, m->y, &m->algo, sl_cuda_workspace(exec),
                                 SL_CUDA_MATMUL_BYTES, sl_cuda_stream(exec)));
    if (status == CUBLAS_STATUS_SUCCESS)
        return SL_OK;
    return sl_cuda_fail_blas(
        err, status, "could not multiply [%" PRId64 ", %" PRId64 "] and [%" PRId64 ", %" PRId64 "]",
        m->key.S, m->key.I, m->key.O, m->key.I);
}
