/* bench - how fast the ops are, beside what the machine can do.
 *
 *     bench kernels [--json]
 *     bench gpu [--json] [WORD]     ops and stages on a card, those whose name has
 *                                   WORD; kernels/bench_gpu.h
 *     bench load FILE [--json]      a checkpoint; engine/model/bench_load.h
 *
 * Every op is timed on shapes of the networks and printed in GFLOP/s beside
 * the matrix library's own best with all threads, or in GB/s beside memcpy by
 * all threads, whichever bounds it.  Times are the median and the best of the
 * runs; rates and ratios are of the best, which other load disturbs least.
 * The machine is measured anew before each group of ops, so that both sides of
 * a ratio saw the same minute.
 */
#include "base/clock.h"
#include "base/size.h"
#include "engine/model/bench_load.h"
#include "kernels/bench_gpu.h"
#include "kernels/gemm.h"
#include "kernels/ops.h"
#include "kernels/scratch.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LEAST_RUNS = 3,
    MOST_RUNS = 50,
};
#define CASE_NS (200 * SL_NS_PER_MS)

typedef struct {
    sl_device *device;
    sl_region *memory;
    sl_scratch scratch;
    sl_exec *exec;
    bool json;
    int printed;
    double peak_gflops, peak_gbytes; /* of the machine, before this group */
} bench;

/* One run of an op on operands that its case has set up. */
typedef sl_status (*run_fn)(bench *b, void *arg, sl_error *err);

/* ---- measuring ---- */

typedef struct {
    int64_t median_ns, best_ns;
} timing;

static int by_value(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static sl_status time_runs(bench *b, run_fn run, void *arg, timing *out, sl_error *err)
{
    int64_t times[MOST_RUNS], total = 0;
    int runs = 0;
    sl_status status = run(b, arg, err); /* warms caches and pages */

    while (status == SL_OK && runs < MOST_RUNS && (runs < LEAST_RUNS || total < CASE_NS)) {
        const int64_t start = sl_clock_now_ns();
        status = run(b, arg, err);
        times[runs] = sl_clock_now_ns() - start;
        total += times[runs++];
    }
    if (status != SL_OK)
        return status;
    qsort(times, (size_t)runs, sizeof *times, by_value);
    out->median_ns = times[runs / 2];
    out->best_ns = times[0] > 0 ? times[0] : 1;
    return SL_OK;
}

static void print_case(bench *b, const char *op, const char *shape, timing t, double rate,
                       bool flops)
{
    const double peak = flops ? b->peak_gflops : b->peak_gbytes, ratio = rate / peak;
    const double median_ms = (double)t.median_ns / 1e6, best_ms = (double)t.best_ns / 1e6;

    if (b->json)
        printf("%s\n  {\"op\": \"%s\", \"shape\": \"%s\", \"median_ms\": %.4f, "
               "\"best_ms\": %.4f, \"%s\": %.2f, \"peak\": %.2f, \"of_peak\": %.3f}",
               b->printed++ ? "," : "", op, shape, median_ms, best_ms,
               flops ? "gflops" : "gbytes_per_s", rate, peak, ratio);
    else
        printf("%-14s %-26s %10.3f %10.3f ms %8.1f %-7s %5.0f%%\n", op, shape, median_ms, best_ms,
               rate, flops ? "GFLOP/s" : "GB/s", 100.0 * ratio);
    fflush(stdout);
}

/* flops > 0: compared with the library's best; else bytes with memcpy's. */
static sl_status measure(bench *b, const char *op, const char *shape, double flops, double bytes,
                         run_fn run, void *arg, sl_error *err)
{
    timing t;
    const sl_status status = time_runs(b, run, arg, &t, err);

    if (status != SL_OK)
        return sl_error_prefix(err, "%s %s", op, shape);
    print_case(b, op, shape, t, (flops > 0.0 ? flops : bytes) / (double)t.best_ns, flops > 0.0);
    return SL_OK;
}

/* A tensor of small values, released with the case's mark. */
static sl_status take(bench *b, sl_tensor *t, sl_dtype dtype, int rank, const int64_t *dim,
                      sl_error *err)
{
    const sl_status status = sl_scratch_take(&b->scratch, t, err, dtype, rank, dim);
    uint32_t state = 1;

    for (int64_t i = 0; status == SL_OK && i < sl_tensor_count(t); i++) {
        state = state * 1664525u + 1013904223u;
        const float v = (float)(state >> 8) * 0x1p-24f - 0.5f;
        if (dtype == SL_F32)
            ((float *)t->data)[i] = v;
        else
            ((uint16_t *)t->data)[i] = sl_bf16_from_f32(v);
    }
    return status;
}
#define TAKE(b, t, dtype, err, rank, ...)                                                          \
    take((b), (t), (dtype), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ }, (err))

/* ---- the machine ---- */

typedef struct {
    sl_tensor x, y;
    int64_t n; /* rows and columns, or bytes of a piece */
} machine_arg;

static sl_status run_library(bench *b, void *arg, sl_error *err)
{
    const machine_arg *m = arg;
    (void)b;
    (void)err;
    sl_gemm_nt(m->n, m->n, m->n, 1.0f, m->x.data, m->n, m->x.data, m->n, 0.0f, m->y.data, m->n);
    return SL_OK;
}

static void copy_piece(void *arg, int64_t i, int thread, void *workspace)
{
    const machine_arg *m = arg;

    (void)thread;
    (void)workspace;
    memcpy((char *)m->y.data + i * m->n, (const char *)m->x.data + i * m->n, (size_t)m->n);
}

static sl_status run_memcpy(bench *b, void *arg, sl_error *err)
{
    const machine_arg *m = arg;

    return sl_exec_parallel(b->exec, (int64_t)sl_tensor_bytes(&m->x) / m->n, copy_piece, arg, err);
}

static sl_status measure_machine(bench *b, sl_error *err)
{
    const size_t mark = sl_scratch_mark(&b->scratch);
    machine_arg m = { .n = 2048 };
    timing t;
    sl_status status = TAKE(b, &m.x, SL_F32, err, 1, 1 << 26);

    if (status == SL_OK)
        status = TAKE(b, &m.y, SL_F32, err, 1, 1 << 26);
    if (status == SL_OK) {
        sl_gemm_set_threads(sl_exec_thread_count(b->exec));
        status = time_runs(b, run_library, &m, &t, err);
        sl_gemm_set_threads(1); /* as ops expect it */
        if (status == SL_OK)
            b->peak_gflops = 2.0 * pow((double)m.n, 3.0) / (double)t.best_ns;
    }
    if (status == SL_OK) {
        m.n = 1 << 20;
        status = time_runs(b, run_memcpy, &m, &t, err);
        if (status == SL_OK)
            b->peak_gbytes = 2.0 * (double)sl_tensor_bytes(&m.x) / (double)t.best_ns;
    }
    sl_scratch_release(&b->scratch, mark);
    return status;
}

/* ---- linear ---- */

typedef struct {
    sl_tensor y, x, w, bias;
    sl_act act;
} linear_arg;

static sl_status run_linear(bench *b, void *arg, sl_error *err)
{
    const linear_arg *a = arg;

    return sl_linear_cpu(b->exec, &a->y, &a->x, &a->w, &a->bias, a->act, err);
}

static sl_status bench_linear(bench *b, sl_error *err)
{
    static const struct {
        int64_t S, I, O;
        sl_dtype w;
        sl_act act;
    } shapes[] = {
        { 1024, 1536, 1536, SL_F32, SL_ACT_NONE },  { 1024, 1536, 1536, SL_BF16, SL_ACT_NONE },
        { 4096, 1536, 1536, SL_BF16, SL_ACT_NONE }, { 1024, 1536, 8960, SL_BF16, SL_ACT_GELU_TANH },
        { 1024, 8960, 1536, SL_BF16, SL_ACT_NONE }, { 4096, 1536, 8960, SL_BF16, SL_ACT_GELU_TANH },
        { 512, 4096, 10240, SL_BF16, SL_ACT_NONE }, { 32, 1536, 8960, SL_BF16, SL_ACT_NONE },
        { 1, 1536, 9216, SL_BF16, SL_ACT_SILU },    { 1, 1536, 9216, SL_F32, SL_ACT_SILU },
    };
    sl_status status = SL_OK;

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(shapes); i++) {
        const int64_t S = shapes[i].S, I = shapes[i].I, O = shapes[i].O;
        const size_t mark = sl_scratch_mark(&b->scratch);
        linear_arg a = { .act = shapes[i].act };
        char shape[64];

        snprintf(shape, sizeof shape, "%" PRId64 "x%" PRId64 "x%" PRId64 " %s", S, I, O,
                 sl_dtype_name(shapes[i].w));
        status = TAKE(b, &a.x, SL_F32, err, 2, S, I);
        if (status == SL_OK)
            status = TAKE(b, &a.w, shapes[i].w, err, 2, O, I);
        if (status == SL_OK)
            status = TAKE(b, &a.bias, SL_F32, err, 1, O);
        if (status == SL_OK)
            status = TAKE(b, &a.y, SL_F32, err, 2, S, O);
        if (status == SL_OK)
            status = measure(b, "linear", shape, S > 8 ? 2.0 * (double)(S * I * O) : 0.0,
                             (double)sl_tensor_bytes(&a.w), run_linear, &a, err);
        sl_scratch_release(&b->scratch, mark);
    }
    return status;
}

/* ---- attention ---- */

typedef struct {
    sl_tensor o, q, k, v;
    int64_t N;
} attention_arg;

static sl_status run_attention(bench *b, void *arg, sl_error *err)
{
    const attention_arg *a = arg;

    return sl_attention_cpu(b->exec, &a->o, &a->q, &a->k, &a->v, NULL, a->N, 0.088f, err);
}

static sl_status bench_attention(bench *b, sl_error *err)
{
    static const struct {
        int64_t Sq, Sk, N, D;
    } shapes[] = {
        { 4096, 4096, 12, 128 }, /* self */
        { 4096, 512, 12, 128 },  /* cross */
        { 512, 512, 64, 64 },    /* umT5 */
        { 4096, 4096, 1, 384 },  /* VAE */
    };
    sl_status status = SL_OK;

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(shapes); i++) {
        const int64_t Sq = shapes[i].Sq, Sk = shapes[i].Sk, N = shapes[i].N, D = shapes[i].D;
        const size_t mark = sl_scratch_mark(&b->scratch);
        attention_arg a = { .N = N };
        char shape[64];

        snprintf(shape, sizeof shape, "%" PRId64 "x%" PRId64 " %" PRId64 "x%" PRId64, Sq, Sk, N, D);
        status = TAKE(b, &a.q, SL_F32, err, 2, Sq, N * D);
        if (status == SL_OK)
            status = TAKE(b, &a.k, SL_F32, err, 2, Sk, N * D);
        if (status == SL_OK)
            status = TAKE(b, &a.v, SL_F32, err, 2, Sk, N * D);
        if (status == SL_OK)
            status = TAKE(b, &a.o, SL_F32, err, 2, Sq, N * D);
        if (status == SL_OK)
            status = measure(b, "attention", shape, 4.0 * (double)(Sq * Sk * N * D), 0.0,
                             run_attention, &a, err);
        sl_scratch_release(&b->scratch, mark);
    }
    return status;
}

/* ---- convolution ---- */

typedef struct {
    sl_tensor y, x, cache, w, bias;
    sl_conv_params params;
} conv_arg;

static sl_status run_conv(bench *b, void *arg, sl_error *err)
{
    const conv_arg *a = arg;

    return sl_conv_cpu(b->exec, &a->y, &a->x, &a->cache, &a->w, &a->bias, NULL, &a->params, err);
}

/* The VAE's 3x3x3 convolutions: T frames out of two cached ones and T. */
static sl_status bench_conv(bench *b, sl_error *err)
{
    static const struct {
        int64_t T, H, W, C;
    } shapes[] = {
        { 1, 60, 104, 384 },
        { 1, 120, 208, 192 },
        { 1, 120, 208, 96 },
    };
    sl_status status = SL_OK;

    for (size_t i = 0; status == SL_OK && i < SL_COUNT(shapes); i++) {
        const int64_t T = shapes[i].T, H = shapes[i].H, W = shapes[i].W, C = shapes[i].C;
        const size_t mark = sl_scratch_mark(&b->scratch);
        conv_arg a = { .params = { 0, 1, 1, 1, 1, 1, 1, 1 } };
        char shape[64];

        snprintf(shape, sizeof shape, "%" PRId64 "x%" PRId64 "x%" PRId64 " %" PRId64 " 3x3x3", T, H,
                 W, C);
        status = TAKE(b, &a.x, SL_F32, err, 4, T, H, W, C);
        if (status == SL_OK)
            status = TAKE(b, &a.cache, SL_F32, err, 4, 2, H, W, C);
        if (status == SL_OK)
            status = TAKE(b, &a.w, SL_F32, err, 5, C, 3, 3, 3, C);
        if (status == SL_OK)
            status = TAKE(b, &a.bias, SL_F32, err, 1, C);
        if (status == SL_OK)
            status = TAKE(b, &a.y, SL_F32, err, 4, T, H, W, C);
        if (status == SL_OK)
            status = measure(b, "conv", shape, 54.0 * (double)(T * H * W * C * C), 0.0, run_conv,
                             &a, err);
        sl_scratch_release(&b->scratch, mark);
    }
    return status;
}

/* ---- ops bound by memory: [S, C] in and out ---- */

typedef struct {
    sl_tensor y, x, w, table;
} rows_arg;

static sl_status run_layer_norm(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_layer_norm_cpu(b->exec, &a->y, &a->x, NULL, NULL, &a->w, &a->w, 1e-6f, 0, err);
}

static sl_status run_rms_norm(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_rms_norm_cpu(b->exec, &a->y, &a->x, &a->w, 1e-6f, err);
}

static sl_status run_channel_norm(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_channel_norm_cpu(b->exec, &a->y, &a->x, &a->w, true, err);
}

static sl_status run_rope(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_rope_cpu(b->exec, &a->x, &a->table, (sl_grid){ 8, 32, 64 }, err);
}

static sl_status run_add(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_add_cpu(b->exec, &a->y, &a->x, &a->y, err);
}

static sl_status run_gated_add(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_gated_add_cpu(b->exec, &a->y, &a->x, &a->w, err);
}

static sl_status run_silu(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_silu_cpu(b->exec, &a->y, &a->x, err);
}

static sl_status run_randn(bench *b, void *arg, sl_error *err)
{
    const rows_arg *a = arg;

    return sl_randn_cpu(b->exec, &a->y, 1, 0, err);
}

static sl_status bench_rows(bench *b, sl_error *err)
{
    enum { S = 8 * 32 * 64, C = 1536, D = 128 };
    static const struct {
        const char *op;
        run_fn run;
        int moved; /* times that S*C floats are read or written */
    } ops[] = {
        { "layer_norm", run_layer_norm, 2 },
        { "rms_norm", run_rms_norm, 2 },
        { "channel_norm", run_channel_norm, 2 },
        { "rope", run_rope, 2 },
        { "add", run_add, 3 },
        { "gated_add", run_gated_add, 3 },
        { "silu", run_silu, 2 },
        { "randn", run_randn, 1 },
    };
    const size_t mark = sl_scratch_mark(&b->scratch);
    rows_arg a;
    sl_status status = TAKE(b, &a.x, SL_F32, err, 2, S, C);

    if (status == SL_OK)
        status = TAKE(b, &a.y, SL_F32, err, 2, S, C);
    if (status == SL_OK)
        status = TAKE(b, &a.w, SL_F32, err, 1, C);
    if (status == SL_OK)
        status = TAKE(b, &a.table, SL_F32, err, 3, SL_ROPE_MAX_POS, D / 2, 2);
    if (status == SL_OK)
        status = sl_rope_table_cpu(b->exec, &a.table, err);
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(ops); i++)
        status = measure(b, ops[i].op, "16384x1536", 0.0, 4.0 * ops[i].moved * (double)S * C,
                         ops[i].run, &a, err);
    sl_scratch_release(&b->scratch, mark);
    return status;
}

/* ---- program ---- */

static sl_status bench_open(bench *b, sl_error *err)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = 2 * SL_GIB };
    sl_status status = sl_device_create(&b->device, &spec, err);

    if (status == SL_OK)
        status = sl_exec_create_cpu(&b->exec, b->device, 0, NULL, err);
    if (status == SL_OK)
        status = sl_region_create(&b->memory, b->device, "bench", SL_GIB, err);
    if (status == SL_OK)
        status = sl_region_map(b->memory, SL_GIB, err);
    if (status == SL_OK)
        sl_scratch_init(&b->scratch, sl_region_data(b->memory), SL_GIB);
    return status;
}

static void bench_close(bench *b)
{
    sl_region_destroy(b->memory);
    sl_exec_destroy(b->exec);
    sl_device_destroy(b->device);
}

static sl_status bench_kernels(bench *b, sl_error *err)
{
    static sl_status (*const groups[])(bench *, sl_error *) = { bench_linear, bench_attention,
                                                                bench_conv, bench_rows };
    sl_status status = SL_OK;

    if (b->json)
        printf("{\"threads\": %d, \"library_kernels\": \"%s\", \"cases\": [",
               sl_exec_thread_count(b->exec), sl_gemm_kernels());
    else
        printf("%d threads, matrix library with %s kernels\n", sl_exec_thread_count(b->exec),
               sl_gemm_kernels());
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(groups); i++) {
        status = measure_machine(b, err);
        if (status == SL_OK && !b->json)
            printf("the machine: library %.1f GFLOP/s, memcpy %.1f GB/s\n", b->peak_gflops,
                   b->peak_gbytes);
        if (status == SL_OK)
            status = groups[i](b, err);
    }
    if (b->json)
        printf("\n]}\n");
    return status;
}

/* Takes --json out of the arguments, wherever it is. */
static bool take_json(int *argc, char **argv)
{
    int kept = 0;

    for (int i = 0; i < *argc; i++)
        if (i == 0 || strcmp(argv[i], "--json") != 0)
            argv[kept++] = argv[i];
    const bool found = kept < *argc;
    *argc = kept;
    return found;
}

int main(int argc, char **argv)
{
    bench b = { .json = take_json(&argc, argv) };
    const int words = argc;
    int failed = 0;
    sl_error err = { .status = SL_OK };
    sl_status status = SL_OK;

    if (words == 2 && strcmp(argv[1], "kernels") == 0) {
        status = bench_open(&b, &err);
        if (status == SL_OK)
            status = bench_kernels(&b, &err);
        bench_close(&b);
    } else if ((words == 2 || words == 3) && strcmp(argv[1], "gpu") == 0) {
        status = sl_bench_gpu(words == 3 ? argv[2] : NULL, b.json, &failed, &err);
    } else if (words == 3 && strcmp(argv[1], "load") == 0) {
        status = sl_bench_load(argv[2], b.json, &err);
    } else {
        fprintf(stderr, "usage: bench kernels [--json]\n       bench gpu [--json] [WORD]\n"
                        "       bench load FILE [--json]\n");
        return 2;
    }
    if (status != SL_OK)
        fprintf(stderr, "bench: %s: %s\n", sl_status_text(status), err.message);
    return status == SL_OK && failed == 0 ? 0 : 1;
}
