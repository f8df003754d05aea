/* The canary on a cpu device: well, and with each op made wrong in turn. */
#include "service/worker.h"

#include "base/test.h"
#include "kernels/ops.h"

#include <math.h>
#include <string.h>

/* The linker puts these in front of the op table (CMakeLists.txt). */
const sl_ops *__real_sl_exec_ops(const sl_exec *exec);
const sl_ops *__wrap_sl_exec_ops(const sl_exec *exec);

static sl_ops ops;
enum { WELL, LINEAR, RMS_NORM, LAYER_NORM, SILU, ATTENTION, CONV, KINDS };
static int wrong;
static float wrong_by;

const sl_ops *__wrap_sl_exec_ops(const sl_exec *exec)
{
    return wrong == WELL ? __real_sl_exec_ops(exec) : &ops;
}

/* One element is off. */
static sl_status spoil(sl_status status, int kind, const sl_tensor *y)
{
    if (wrong == kind)
        ((float *)y->data)[sl_tensor_count(y) - 1] += wrong_by;
    return status;
}

static sl_status bad_linear(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                            const sl_tensor *w, const sl_tensor *b, sl_act act, sl_error *err)
{
    return spoil(sl_linear_cpu(exec, y, x, w, b, act, err), LINEAR, y);
}

static sl_status bad_rms_norm(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *w, float eps, sl_error *err)
{
    return spoil(sl_rms_norm_cpu(exec, y, x, w, eps, err), RMS_NORM, y);
}

static sl_status bad_layer_norm(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                                const sl_tensor *w, const sl_tensor *b, const sl_tensor *scale,
                                const sl_tensor *shift, float eps, int64_t padding, sl_error *err)
{
    return spoil(sl_layer_norm_cpu(exec, y, x, w, b, scale, shift, eps, padding, err), LAYER_NORM,
                 y);
}

static sl_status bad_silu(sl_exec *exec, const sl_tensor *y, const sl_tensor *x, sl_error *err)
{
    return spoil(sl_silu_cpu(exec, y, x, err), SILU, y);
}

static sl_status bad_attention(sl_exec *exec, const sl_tensor *o, const sl_tensor *q,
                               const sl_tensor *k, const sl_tensor *v, const sl_tensor *bias,
                               int64_t heads, float scale, sl_error *err)
{
    return spoil(sl_attention_cpu(exec, o, q, k, v, bias, heads, scale, err), ATTENTION, o);
}

static sl_status bad_conv(sl_exec *exec, const sl_tensor *y, const sl_tensor *x,
                          const sl_tensor *cache, const sl_tensor *w, const sl_tensor *b,
                          const sl_tensor *residual, const sl_conv_params *params, sl_error *err)
{
    return spoil(sl_conv_cpu(exec, y, x, cache, w, b, residual, params, err), CONV, y);
}

static void open_worker(sl_worker *worker, sl_error *err)
{
    sl_device_spec spec;

    *worker = (sl_worker){ .lane_count = 2 };
    SL_CHECK_OK(sl_device_spec_parse("cpu:64MiB", &spec, err));
    SL_CHECK_OK(sl_device_create(&worker->device, &spec, err));
    for (int i = 0; i < worker->lane_count; i++)
        SL_CHECK_OK(sl_exec_create_cpu(&worker->lanes[i].exec, worker->device, 1, NULL, err));
}

static void close_worker(sl_worker *worker)
{
    for (int i = 0; i < worker->lane_count; i++)
        sl_exec_destroy(worker->lanes[i].exec);
    sl_device_destroy(worker->device);
}

SL_TEST(it_comes_back_and_leaves_nothing)
{
    static sl_worker worker;
    sl_device_stats before, after;
    int64_t duration_ns = 0;

    wrong = WELL;
    open_worker(&worker, err);
    sl_device_get_stats(worker.device, &before);
    SL_CHECK_OK(sl_worker_run_canary(&worker, &duration_ns, err));
    sl_device_get_stats(worker.device, &after);
    SL_CHECK(duration_ns > 0);
    SL_CHECK(after.mapped_bytes == before.mapped_bytes &&
             after.peak_mapped_bytes == before.mapped_bytes);
    close_worker(&worker);
}

SL_TEST(each_wrong_op_is_named)
{
    static const char *const names[KINDS] = { "",     "linear",    "rms_norm", "layer_norm",
                                              "silu", "attention", "conv" };
    static const float amounts[] = { 0.01f, -0.01f, NAN, INFINITY };
    static sl_worker worker;
    int64_t duration_ns = 0;

    ops = sl_ops_cpu;
    ops.linear = bad_linear;
    ops.rms_norm = bad_rms_norm;
    ops.layer_norm = bad_layer_norm;
    ops.silu = bad_silu;
    ops.attention = bad_attention;
    ops.conv = bad_conv;
    open_worker(&worker, err);
    for (int kind = LINEAR; kind < KINDS; kind++) {
        for (size_t i = 0; i < SL_COUNT(amounts); i++) {
            sl_error why = { .status = SL_OK };
            wrong = kind;
            wrong_by = amounts[i];
            SL_CHECK(sl_worker_run_canary(&worker, &duration_ns, &why) == SL_ERR_DATA);
            SL_CHECK(strstr(why.message, names[kind]) != NULL &&
                     strncmp(why.message, "lane 0: ", 8) == 0);
        }
    }
    wrong = WELL;
    SL_CHECK_OK(sl_worker_run_canary(&worker, &duration_ns, err));
    close_worker(&worker);
}

SL_TEST(a_full_device_is_told)
{
    static sl_worker worker;
    sl_error why = { .status = SL_OK };
    sl_region *region = NULL;
    int64_t duration_ns = 0;

    open_worker(&worker, err);
    SL_CHECK_OK(sl_region_create(&region, worker.device, "rest", (size_t)48 << 20, err));
    SL_CHECK_OK(sl_region_map(region, (size_t)44 << 20, err));
    SL_CHECK(sl_worker_run_canary(&worker, &duration_ns, &why) == SL_ERR_NO_MEMORY);
    sl_region_destroy(region);
    close_worker(&worker);
}

SL_TEST_MAIN(SL_RUN(it_comes_back_and_leaves_nothing), SL_RUN(each_wrong_op_is_named),
             SL_RUN(a_full_device_is_told))
