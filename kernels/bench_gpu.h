/* bench_gpu.h - `bench gpu`: times of ops and stages on a card, beside a floor.
 *
 * A case says how many operations it needs and how many bytes it must move at
 * least.  Its floor is the longer of operations over the library's best rate for
 * their kind and bytes over the rate of a copy, both measured in the same run.
 * What is timed is the card's time (events), the median of some runs.
 *
 * Another area adds a group to the table of bench_gpu.c: a function that sets up
 * operands and calls bench_gpu_measure for each of its cases.
 */
#ifndef SL_KERNELS_BENCH_GPU_H
#define SL_KERNELS_BENCH_GPU_H

#include "kernels/ops.h"
#include "kernels/scratch.h"
#include "kernels/timer.h"

#include <stdbool.h>

typedef struct {
    sl_device *device;
    sl_exec *exec;
    const sl_ops *ops;
    sl_region *memory;
    sl_scratch scratch; /* operands, and what ops take for themselves */
    sl_timer *timer;
    const char *only; /* cases whose op or shape has this; NULL: all */
    bool json;
    int printed, failed;
    double bf16_tflops, f32_tflops, copy_gbytes; /* per second, of this card */
} bench_gpu;

/* What does the arithmetic; an int8 or fp8 product counts at twice the rate of
 * bf16's, which is what the units can. */
typedef enum {
    BENCH_GPU_BYTES, /* none to speak of */
    BENCH_GPU_BF16,
    BENCH_GPU_F32,
    BENCH_GPU_8BIT,
} bench_gpu_unit;

typedef struct {
    const char *op, *shape;
    bench_gpu_unit unit;
    double flops, bytes;
} bench_gpu_case;

typedef sl_status bench_gpu_run_fn(bench_gpu *b, void *arg, sl_error *err);

/* True when the case would be run: ask before operands are made. */
bool bench_gpu_wanted(const bench_gpu *b, const char *op, const char *shape);
/* Times run(b, arg) and prints the case's line.  A failing case is printed as one and
 * counted; only a lost device is returned. */
sl_status bench_gpu_measure(bench_gpu *b, const bench_gpu_case *c, bench_gpu_run_fn *run, void *arg,
                            sl_error *err) SL_MUST_CHECK;
/* For a case whose operands could not be made. */
sl_status bench_gpu_failed(bench_gpu *b, const char *op, const char *shape, sl_status status,
                           sl_error *err) SL_MUST_CHECK;

/* A tensor of normal values (F32 or BF16) from the scratch. */
sl_status bench_gpu_take(bench_gpu *b, sl_tensor *t, sl_error *err, sl_dtype dtype, int rank,
                         const int64_t *dim) SL_MUST_CHECK;
#define BENCH_GPU_TAKE(b, t, err, dtype, rank, ...)                                                \
    bench_gpu_take((b), (t), (err), (dtype), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ })

typedef sl_status bench_gpu_group_fn(bench_gpu *b, sl_error *err);
bench_gpu_group_fn bench_gpu_small, bench_gpu_linear, bench_gpu_attention, bench_gpu_sparse,
    bench_gpu_vae;
bench_gpu_group_fn bench_gpu_stages; /* networks, where the build has them */

/* `bench gpu [--json] [SUBSTRING]`; the number of failed cases through *failed. */
sl_status sl_bench_gpu(const char *only, bool json, int *failed, sl_error *err) SL_MUST_CHECK;

#endif
