/* gpu_conv_bench - every plan that cuDNN offers for the VAE's convolutions and for
 * dense attention, timed.
 *
 *     gpu_conv_bench [SUBSTRING]
 *
 * The engine takes the library's first guess and times nothing; this shows what
 * another guess would give.  One line a plan, the best of each shape again below,
 * with its share of the first's time.  Values are random: products of zeros run
 * faster.
 */
#include "base/size.h"
#include "kernels/attention_graph.h"
#include "kernels/conv_graph.h"
#include "kernels/cuda.h"
#include "kernels/ops.h"
#include "kernels/timer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 5, MOST_PLANS = 48 };

typedef struct {
    sl_device *device;
    sl_exec *exec;
    sl_region *memory;
    sl_scratch scratch;
    sl_timer *timer;
} bench;

typedef struct {
    const char *name;
    sl_conv_graph conv;
    sl_attention_graph attention; /* D 0: it is the convolution */
} subject;

static const subject cases[] = {
    /* frames, H, W, I, To, Ho, Wo, O, kt, kh, kw, zeros, strides, pads, residual */
    { "96 at 480p", { 3, 480, 832, 96, 1, 480, 832, 96, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 }, { 0 } },
    { "192 at half",
      { 3, 240, 416, 192, 1, 240, 416, 192, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
      { 0 } },
    { "384 at quarter",
      { 4, 120, 208, 384, 2, 120, 208, 384, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
      { 0 } },
    { "384 at eighth",
      { 3, 60, 104, 384, 1, 60, 104, 384, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
      { 0 } },
    { "up 192-96", { 1, 480, 832, 192, 1, 480, 832, 96, 1, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 }, { 0 } },
    { "up 384-192",
      { 1, 240, 416, 384, 1, 240, 416, 192, 1, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
      { 0 } },
    { "head 3", { 3, 480, 832, 96, 1, 480, 832, 3, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 }, { 0 } },
    { "encoder's first",
      { 3, 480, 832, 8, 1, 480, 832, 96, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
      { 0 } },
    { "down 96", { 1, 480, 832, 96, 1, 240, 416, 96, 1, 3, 3, 0, 1, 2, 0, 1, 0, 1, 0 }, { 0 } },
    { "96 at 720p",
      { 3, 720, 1280, 96, 1, 720, 1280, 96, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
      { 0 } },
    { "96 flat", { 1, 480, 832, 96, 1, 480, 832, 96, 1, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 }, { 0 } },
    { "288 flat", { 1, 480, 832, 288, 1, 480, 832, 96, 1, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 }, { 0 } },
    /* some lines of a frame, with those around them: would gathering them fit L2? */
    { "96, 120 lines",
      { 3, 122, 832, 96, 1, 120, 832, 96, 3, 3, 3, 0, 1, 1, 0, 0, 1, 1, 1 },
      { 0 } },
    { "96, 60 lines", { 3, 62, 832, 96, 1, 60, 832, 96, 3, 3, 3, 0, 1, 1, 0, 0, 1, 1, 1 }, { 0 } },
    { "self 1.3B 480p", { 0 }, { 12, 32760, 32760, 128 } },
    { "self 14B 480p", { 0 }, { 40, 10920, 32760, 128 } },
    { "text 1.3B", { 0 }, { 12, 16384, 512, 128 } },
};

/* `count` normal values in bf16 at `at`. */
static sl_status fill(bench *b, unsigned char *at, int64_t count, sl_error *err)
{
    const int64_t piece = (int64_t)1 << 24;
    const sl_ops *ops = sl_exec_ops(b->exec);
    const size_t mark = sl_scratch_mark(&b->scratch);
    sl_tensor f32;
    sl_status status = sl_scratch_tensor(&b->scratch, &f32, err, SL_F32, 1, piece);

    for (int64_t first = 0; status == SL_OK && first < count; first += piece) {
        const int64_t n = count - first < piece ? count - first : piece;
        const sl_tensor from = sl_tensor_of(f32.data, SL_F32, 1, n),
                        to = sl_tensor_of(at + first * 2, SL_BF16, 1, n);
        status = ops->randn(b->exec, &from, 7, (uint32_t)(first / piece), err);
        if (status == SL_OK)
            status = ops->add(b->exec, &to, &from, &from, err);
    }
    sl_scratch_release(&b->scratch, mark);
    return status;
}

/* All inputs are parts of the same values. */
static sl_status run_plan(bench *b, sl_dnn *dnn, const sl_dnn_plan *plan, const subject *c,
                          unsigned char *values, void *y, sl_error *err)
{
    static const int64_t conv_ids[SL_CONV_IDS] = { SL_CONV_X, SL_CONV_W, SL_CONV_Y, SL_CONV_BIAS,
                                                   SL_CONV_RESIDUAL };
    static const int64_t ids[SL_ATTENTION_IDS] = { SL_ATTENTION_Q, SL_ATTENTION_K, SL_ATTENTION_V,
                                                   SL_ATTENTION_O, SL_ATTENTION_SCALE };
    float scale = 0.0883883f;
    void *const conv_data[SL_CONV_IDS] = { values, values + 256, y, values + 512, values + 1024 };
    void *const data[SL_ATTENTION_IDS] = { values, values + 256, values + 512, y, &scale };
    void *workspace = sl_cuda_workspace(b->exec);

    if (c->attention.D > 0)
        return sl_dnn_run(dnn, plan, SL_ATTENTION_IDS, ids, data, workspace, err);
    return sl_dnn_run(dnn, plan, c->conv.residual ? SL_CONV_IDS : SL_CONV_IDS - 1, conv_ids,
                      conv_data, workspace, err);
}

static sl_status run_once(bench *b, sl_dnn *dnn, const sl_dnn_plan *plan, const subject *c,
                          unsigned char *values, void *y, double *milliseconds, sl_error *err)
{
    sl_status status = sl_timer_start(b->timer, err);

    if (status == SL_OK)
        status = run_plan(b, dnn, plan, c, values, y, err);
    return status == SL_OK ? sl_timer_stop(b->timer, milliseconds, err) : status;
}

static double flops_of(const subject *c)
{
    const sl_conv_graph *g = &c->conv;
    const sl_attention_graph *a = &c->attention;

    if (a->D > 0)
        return 4.0 * (double)(a->N * a->D) * (double)a->Sq * (double)a->Sk;
    return 2.0 * (double)(g->To * g->Ho * g->Wo * g->O) * (double)(g->kt * g->kh * g->kw * g->I);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* The median; *milliseconds 0: there is no such plan. */
static sl_status time_plan(bench *b, const subject *c, int choice, unsigned char *values, void *y,
                           char *text, size_t text_bytes, double *milliseconds, sl_error *err)
{
    const sl_dnn_plan *plan;
    double times[RUNS + 1];
    sl_dnn *dnn = NULL;
    bool made;
    sl_status status =
        sl_dnn_create(&dnn, sl_cuda_dnn(b->exec), NULL, SL_CUDA_WORKSPACE_BYTES, err);

    *milliseconds = 0.0;
    if (status != SL_OK)
        return status;
    sl_dnn_pass_over(dnn, choice);
    status = c->attention.D > 0 ? sl_attention_graph_plan(dnn, &c->attention, &plan, &made, err)
                                : sl_conv_graph_plan(dnn, &c->conv, &plan, &made, err);
    if (status == SL_OK && !sl_dnn_is_refused(plan)) {
        for (int i = 0; status == SL_OK && i <= RUNS; i++)
            status = run_once(b, dnn, plan, c, values, y, &times[i], err);
        if (status == SL_OK) {
            qsort(times + 1, RUNS, sizeof times[0], by_value); /* the first warms up */
            *milliseconds = times[1 + RUNS / 2];
        }
        snprintf(text, text_bytes, "%s", sl_dnn_plan_text(plan));
    }
    sl_dnn_destroy(dnn);
    return status;
}

static sl_status bench_case(bench *b, const subject *c, unsigned char *values, void *y,
                            sl_error *err)
{
    const double flops = flops_of(c);
    double first = 0.0, best = 0.0;
    int best_choice = 0;
    char text[SL_DNN_TEXT_BYTES], best_text[SL_DNN_TEXT_BYTES] = "";
    sl_status status = SL_OK;

    for (int choice = 0; status == SL_OK && choice < MOST_PLANS; choice++) {
        double milliseconds;
        status = time_plan(b, c, choice, values, y, text, sizeof text, &milliseconds, err);
        if (status != SL_OK || milliseconds <= 0.0)
            break;
        printf("     %-16s %2d %8.3f ms %6.1f TFLOP/s  %s\n", c->name, choice, milliseconds,
               flops / milliseconds * 1e-9, text);
        if (choice == 0)
            first = milliseconds;
        if (choice == 0 || milliseconds < best) {
            best = milliseconds;
            best_choice = choice;
            snprintf(best_text, sizeof best_text, "%s", text);
        }
    }
    printf("best %-16s %2d %8.3f ms %6.1f TFLOP/s, first %.3f ms: %s\n", c->name, best_choice, best,
           best > 0.0 ? flops / best * 1e-9 : 0.0, first, best_text);
    return status;
}

static sl_status open_bench(bench *b, size_t size_bytes, sl_error *err)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CUDA, .limit_bytes = size_bytes + SL_GIB };
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CUDA, false);
    sl_status status = sl_device_create(&b->device, &spec, err);

    if (status == SL_OK)
        status = sl_exec_create_cuda(&b->exec, b->device, &numerics, NULL, err);
    if (status == SL_OK)
        status = sl_region_create(&b->memory, b->device, "bench", size_bytes, err);
    if (status == SL_OK)
        status = sl_region_map(b->memory, size_bytes, err);
    if (status == SL_OK)
        status = sl_timer_create(&b->timer, b->exec, err);
    if (status != SL_OK)
        return status;
    sl_scratch_init(&b->scratch, sl_region_data(b->memory), size_bytes);
    sl_exec_lend_scratch(b->exec, &b->scratch);
    return SL_OK;
}

int main(int argc, char **argv)
{
    enum { VALUES = 300 << 20 }; /* the largest input, and some more */
    sl_error error = { .status = SL_OK }, *err = &error;
    void *values = NULL, *y = NULL;
    bench b = { .exec = NULL };
    sl_status status = open_bench(&b, 3 * SL_GIB, err);

    printf("     cuDNN %zu\n", cudnnGetVersion());

    if (status == SL_OK)
        status = sl_scratch_alloc(&b.scratch, &values, (size_t)VALUES * 2, err);
    if (status == SL_OK)
        status = sl_scratch_alloc(&b.scratch, &y, SL_GIB, err);
    if (status == SL_OK)
        status = fill(&b, values, VALUES, err);
    for (size_t i = 0; status == SL_OK && i < SL_COUNT(cases); i++)
        if (argc < 2 || strstr(cases[i].name, argv[1]))
            status = bench_case(&b, &cases[i], values, y, err);
    if (status != SL_OK)
        fprintf(stderr, "%s: %s\n", sl_status_text(status), error.message);
    sl_timer_destroy(b.timer);
    sl_exec_destroy(b.exec);
    sl_region_destroy(b.memory);
    sl_device_destroy(b.device);
    return status == SL_OK ? 0 : 1;
}
