#include "kernels/bench_gpu.h"

#include "base/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RUNS = 21, WARM_UPS = 2, MOST_REPEATS = 64 };
#define MEMORY_BYTES ((size_t)40 * SL_GIB)
#define SAMPLE_MS    2.0    /* short work is repeated until a sample takes this long */
#define CASE_MS      250.0  /* samples of a case end after this much */
#define LONG_MS      1000.0 /* one warm-up, and samples for twice that */

/* An area that is not part of the build is NULL. */
#pragma weak bench_gpu_small
#pragma weak bench_gpu_linear
#pragma weak bench_gpu_attention
#pragma weak bench_gpu_sparse
#pragma weak bench_gpu_vae
#pragma weak bench_gpu_stages

static bench_gpu_group_fn *const groups[] = { bench_gpu_small,     bench_gpu_linear,
                                              bench_gpu_attention, bench_gpu_sparse,
                                              bench_gpu_vae,       bench_gpu_stages };

/* ---- measuring ---- */

typedef struct {
    double median_ms, best_ms, worst_ms;
    int runs;
} timing;

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* `repeats` runs between two events, as the time of one. */
static sl_status sample(bench_gpu *b, bench_gpu_run_fn *run, void *arg, int repeats, double *ms,
                        sl_error *err)
{
    sl_status status = sl_timer_start(b->timer, err);

    for (int i = 0; status == SL_OK && i < repeats; i++)
        status = run(b, arg, err);
    if (status == SL_OK)
        status = sl_timer_stop(b->timer, ms, err);
    *ms /= repeats;
    return status;
}

static sl_status time_runs(bench_gpu *b, bench_gpu_run_fn *run, void *arg, timing *out,
                           sl_error *err)
{
    double times[MOST_RUNS], first = 0.0, total = 0.0;
    int runs = 0, repeats;
    sl_status status = SL_OK;

    for (int i = 0; status == SL_OK && i < WARM_UPS && first < LONG_MS; i++)
        status = sample(b, run, arg, 1, &first, err);
    if (status != SL_OK)
        return status;
    repeats = first * MOST_REPEATS < SAMPLE_MS ? MOST_REPEATS : (int)(SAMPLE_MS / first) + 1;
    while (status == SL_OK && runs < MOST_RUNS && (runs < 3 || total < CASE_MS) &&
           total < 2.0 * LONG_MS) {
        status = sample(b, run, arg, repeats, &times[runs], err);
        total += times[runs++] * repeats;
    }
    if (status != SL_OK)
        return status;
    qsort(times, (size_t)runs, sizeof *times, by_value);
    *out = (timing){ times[runs / 2], times[0], times[runs - 1], runs };
    return SL_OK;
}

static double floor_ms(const bench_gpu *b, const bench_gpu_case *c)
{
    const double tflops = c->unit == BENCH_GPU_BF16   ? b->bf16_tflops
                          : c->unit == BENCH_GPU_8BIT ? 2.0 * b->bf16_tflops
                                                      : b->f32_tflops;
    const double work = c->unit == BENCH_GPU_BYTES ? 0.0 : c->flops / (tflops * 1e9);
    const double moved = c->bytes / (b->copy_gbytes * 1e6);

    return work > moved ? work : moved;
}

static void print_case(bench_gpu *b, const bench_gpu_case *c, const timing *t)
{
    const double floor = floor_ms(b, c);
    const double tflops = c->flops / (t->median_ms * 1e9), gbytes = c->bytes / (t->median_ms * 1e6);

    if (b->json)
        printf("%s\n  {\"op\": \"%s\", \"shape\": \"%s\", \"median_ms\": %.4f, \"best_ms\": %.4f, "
               "\"worst_ms\": %.4f, \"runs\": %d, \"tflops\": %.1f, \"gbytes_per_s\": %.0f, "
               "\"floor_ms\": %.4f, \"over_floor\": %.2f}",
               b->printed ? "," : "", c->op, c->shape, t->median_ms, t->best_ms, t->worst_ms,
               t->runs, tflops, gbytes, floor, t->median_ms / floor);
    else
        printf(
            "%-18s %-34s %9.4f ms (%.4f-%.4f)  %7.1f TFLOP/s %6.0f GB/s  floor %8.4f ms  x%.2f\n",
            c->op, c->shape, t->median_ms, t->best_ms, t->worst_ms, tflops, gbytes, floor,
            t->median_ms / floor);
    b->printed++;
    fflush(stdout);
}

bool bench_gpu_wanted(const bench_gpu *b, const char *op, const char *shape)
{
    return !b->only || strstr(op, b->only) || strstr(shape, b->only);
}

sl_status bench_gpu_failed(bench_gpu *b, const char *op, const char *shape, sl_status status,
                           sl_error *err)
{
    b->failed++;
    fprintf(stderr, "FAIL bench %s %s: %s: %s\n", op, shape, sl_status_text(status), err->message);
    if (status == SL_ERR_DEVICE)
        return sl_error_prefix(err, "%s %s", op, shape);
    sl_error_clear(err);
    return SL_OK;
}

sl_status bench_gpu_measure(bench_gpu *b, const bench_gpu_case *c, bench_gpu_run_fn *run, void *arg,
                            sl_error *err)
{
    timing t;
    sl_status status;

    if (!bench_gpu_wanted(b, c->op, c->shape))
        return SL_OK;
    status = time_runs(b, run, arg, &t, err);
    if (status != SL_OK)
        return bench_gpu_failed(b, c->op, c->shape, status, err);
    print_case(b, c, &t);
    return SL_OK;
}

/* ---- operands ---- */

/* F32 noise, rounded piece by piece where BF16 is asked for. */
static sl_status fill_bf16(bench_gpu *b, const sl_tensor *t, sl_error *err)
{
    const int64_t count = sl_tensor_count(t), most = (int64_t)1 << 24;
    const int64_t piece = count < most ? count : most;
    const size_t mark = sl_scratch_mark(&b->scratch);
    sl_tensor noise, zero;
    sl_status status = sl_scratch_tensor(&b->scratch, &noise, err, SL_F32, 1, piece);

    if (status == SL_OK)
        status = sl_scratch_tensor(&b->scratch, &zero, err, SL_F32, 1, piece);
    if (status == SL_OK)
        status = b->ops->zero(b->exec, &zero, err);
    for (int64_t at = 0; status == SL_OK && at < count; at += piece) {
        const int64_t n = count - at < piece ? count - at : piece;
        const sl_tensor from = sl_tensor_rows(&noise, 0, n), nothing = sl_tensor_rows(&zero, 0, n);
        const sl_tensor to = sl_tensor_of((uint16_t *)t->data + at, SL_BF16, 1, n);
        status = b->ops->randn(b->exec, &from, 7, (uint32_t)(at / piece), err);
        if (status == SL_OK)
            status = b->ops->add(b->exec, &to, &from, &nothing, err);
    }
    sl_scratch_release(&b->scratch, mark);
    return status;
}

sl_status bench_gpu_take(bench_gpu *b, sl_tensor *t, sl_error *err, sl_dtype dtype, int rank,
                         const int64_t *dim)
{
    const sl_status status = sl_scratch_take(&b->scratch, t, err, dtype, rank, dim);

    if (status != SL_OK || dtype == SL_I8 || dtype == SL_U8 || dtype == SL_F8_E4M3 ||
        dtype == SL_I32 || dtype == SL_F64)
        return status; /* outputs */
    return dtype == SL_BF16 ? fill_bf16(b, t, err) : b->ops->randn(b->exec, t, 7, 0, err);
}

/* ---- the card ---- */

typedef struct {
    sl_tensor x, w, y;
} product;

static sl_status run_product(bench_gpu *b, void *arg, sl_error *err)
{
    const product *p = arg;

    return b->ops->linear(b->exec, &p->y, &p->x, &p->w, NULL, SL_ACT_NONE, err);
}

static sl_status run_copy(bench_gpu *b, void *arg, sl_error *err)
{
    const product *p = arg;

    return b->ops->copy(b->exec, &p->y, &p->x, err);
}

/* The library's product of n x n matrices in TFLOP/s. */
static sl_status measure_rate(bench_gpu *b, sl_dtype dtype, int64_t n, double *tflops,
                              sl_error *err)
{
    const size_t mark = sl_scratch_mark(&b->scratch);
    product p;
    timing t;
    sl_status status = BENCH_GPU_TAKE(b, &p.x, err, dtype, 2, n, n);

    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &p.w, err, dtype, 2, n, n);
    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &p.y, err, dtype, 2, n, n);
    if (status == SL_OK)
        status = time_runs(b, run_product, &p, &t, err);
    if (status == SL_OK)
        *tflops = 2.0 * (double)n * (double)n * (double)n / (t.best_ms * 1e9);
    sl_scratch_release(&b->scratch, mark);
    return status;
}

static sl_status measure_copy(bench_gpu *b, sl_error *err)
{
    const size_t mark = sl_scratch_mark(&b->scratch);
    product p;
    timing t;
    sl_status status = BENCH_GPU_TAKE(b, &p.x, err, SL_F32, 1, (int64_t)1 << 29);

    if (status == SL_OK)
        status = BENCH_GPU_TAKE(b, &p.y, err, SL_F32, 1, (int64_t)1 << 29);
    if (status == SL_OK)
        status = time_runs(b, run_copy, &p, &t, err);
    if (status == SL_OK)
        b->copy_gbytes = 2.0 * (double)sl_tensor_bytes(&p.x) / (t.best_ms * 1e6);
    sl_scratch_release(&b->scratch, mark);
    return status;
}

/* ---- program ---- */

static sl_status open_bench(bench_gpu *b, sl_error *err)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CUDA, .limit_bytes = MEMORY_BYTES + SL_GIB };
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CUDA, false);
    sl_status status = sl_device_create(&b->device, &spec, err);

    if (status == SL_OK)
        status = sl_exec_create_cuda(&b->exec, b->device, &numerics, NULL, err);
    if (status == SL_OK)
        status = sl_region_create(&b->memory, b->device, "bench", MEMORY_BYTES, err);
    if (status == SL_OK)
        status = sl_region_map(b->memory, MEMORY_BYTES, err);
    if (status == SL_OK)
        status = sl_timer_create(&b->timer, b->exec, err);
    if (status != SL_OK)
        return status;
    sl_scratch_init(&b->scratch, sl_region_data(b->memory), MEMORY_BYTES);
    sl_exec_lend_scratch(b->exec, &b->scratch);
    b->ops = sl_exec_ops(b->exec);
    return SL_OK;
}

static void close_bench(bench_gpu *b)
{
    sl_timer_destroy(b->timer);
    sl_exec_destroy(b->exec);
    sl_region_destroy(b->memory);
    sl_device_destroy(b->device);
}

static sl_status measure_card(bench_gpu *b, sl_error *err)
{
    sl_status status = measure_copy(b, err);

    if (status == SL_OK)
        status = measure_rate(b, SL_BF16, 8192, &b->bf16_tflops, err);
    if (status == SL_OK)
        status = measure_rate(b, SL_F32, 4096, &b->f32_tflops, err);
    return status == SL_OK ? SL_OK : sl_error_prefix(err, "measuring the card");
}

sl_status sl_bench_gpu(const char *only, bool json, int *failed, sl_error *err)
{
    bench_gpu b = { .only = only, .json = json };
    sl_status status = open_bench(&b, err);

    if (status == SL_OK)
        status = measure_card(&b, err);
    if (status == SL_OK)
        printf(json ? "{\"bf16_tflops\": %.1f, \"f32_tflops\": %.1f, \"copy_gbytes_per_s\": %.0f, "
                      "\"cases\": ["
                    : "the card: library bf16 %.1f TFLOP/s, f32 %.1f TFLOP/s, copy %.0f GB/s\n",
               b.bf16_tflops, b.f32_tflops, b.copy_gbytes);
    const bool begun = status == SL_OK;
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(groups); i++)
        if (groups[i])
            status = groups[i](&b, err);
    if (json && begun)
        printf("\n]}\n");
    *failed = b.failed;
    close_bench(&b);
    return status;
}
