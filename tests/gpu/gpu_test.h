/* gpu_test.h - ops on a GPU against their cpu twins.
 *
 * A check makes each tensor twice: on cuda in the dtype asked for, on cpu in
 * f32 where that is bf16 (the same values: inputs are rounded first), else in
 * the same dtype.  Both sides run, and the outputs are compared:
 *
 *     if (!gpu_begin(g, "layer_norm bf16 [%d,%d]", 77, 1536))
 *         return;
 *     gpu_tensor x = GPU_RANDOM(g, SL_BF16, 1.0, 2, 77, 1536);
 *     gpu_tensor y = GPU_OUTPUT(g, SL_BF16, 2, 77, 1536);
 *     GPU_BOTH(g, layer_norm, GPU_ON(y), GPU_ON(x), NULL, NULL, NULL, NULL, 1e-6f, 0);
 *     gpu_compare(g, "y", &y, GPU_BF16);
 *     gpu_end(g);
 *
 * Outputs start as bytes 0xff (NaN); the bytes around every tensor are checked
 * at gpu_end, as is that an op gave its temporary memory back.  A check is one
 * line: `ok   ...` with what was measured, or `FAIL ...` with why.  After its
 * first failure what is left of it does nothing.
 *
 * Ownership: tensors live until gpu_end.  Threads: one.
 */
#ifndef SL_TESTS_GPU_TEST_H
#define SL_TESTS_GPU_TEST_H

#include "base/size.h"
#include "kernels/exec.h"
#include "kernels/ops.h"
#include "kernels/scratch.h"
#include "kernels/tensor.h"

#include <stdbool.h>
#include <stdint.h>

enum { GPU_CPU, GPU_CUDA, GPU_SIDES };
enum { GPU_GUARD_BYTES = 256, GPU_MAX_TENSORS = 64, GPU_LINE_BYTES = 512 };

typedef struct {
    sl_device *device;
    sl_exec *exec;
    const sl_ops *ops;
    sl_region *memory;
    sl_scratch scratch; /* tensors of the check, and what ops take for themselves */
} gpu_side;

typedef struct {
    sl_tensor on[GPU_SIDES];
} gpu_tensor;

typedef struct {
    gpu_side on[GPU_SIDES];
    bool small;              /* sanitizers run this: keep checks to some million operations */
    const char *only;        /* checks whose name has this; NULL: all */
    uint64_t seed;           /* of the next random tensor: depends on the check alone */
    struct gpu_score *score; /* gpu_test.c */
    sl_error err;
    atomic_uint cancel; /* of both sides */
    int begun, skip;    /* checks so far; how many of them another process has run */

    /* The check that is open. */
    char name[GPU_LINE_BYTES], said[GPU_LINE_BYTES];
    bool broken;
    int64_t start_ns;
    gpu_tensor made[GPU_MAX_TENSORS];
    int made_count;
    size_t mark[GPU_SIDES], used_before;
} gpu;

/* What a comparison may measure.  rel_l2: ||got - want|| / ||want||.  ulps: of
 * bf16, for each element; one further off passes while it is within `floor`
 * times the root mean square of want.  ulps < 0: not looked at. */
typedef struct {
    double rel_l2;
    int ulps;
    double floor;
} gpu_limits;

#define GPU_EXACT ((gpu_limits){ 0.0, 0, 0.0 })   /* every bit, NaN too */
#define GPU_F32   ((gpu_limits){ 1e-5, -1, 0.0 }) /* f32 sums in another order */
#define GPU_BF16  ((gpu_limits){ 4e-3, 2, 0.01 }) /* rounded once to bf16 */

/* One check.  false: not wanted here (then no gpu_end). */
bool gpu_begin(gpu *g, const char *fmt, ...) SL_PRINTF(2, 3);
void gpu_end(gpu *g);
/* Ends it as failed; adds a few words to its line. */
void gpu_fail(gpu *g, const char *fmt, ...) SL_PRINTF(2, 3);
void gpu_say(gpu *g, const char *fmt, ...) SL_PRINTF(2, 3);

/* Poisoned on both sides. */
gpu_tensor gpu_output(gpu *g, sl_dtype dtype, int rank, const int64_t *dim);
/* About normal with deviation `scale` (integers: uniform over -scale..scale). */
gpu_tensor gpu_random(gpu *g, sl_dtype dtype, double scale, int rank, const int64_t *dim);
/* Rounds what the cpu side holds to cuda's dtype and copies it there: after the
 * test has written t->on[GPU_CPU].data itself. */
void gpu_push(gpu *g, gpu_tensor *t);
/* The cuda side's bytes, in its dtype, in host memory until gpu_end; NULL after a
 * failure. */
void *gpu_pull(gpu *g, const gpu_tensor *t);
#define GPU_OUTPUT(g, dtype, rank, ...)                                                            \
    gpu_output((g), (dtype), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ })
#define GPU_RANDOM(g, dtype, scale, rank, ...)                                                     \
    gpu_random((g), (dtype), (scale), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ })
/* Elements [first, first + count) of the outermost dimension, on both sides. */
gpu_tensor gpu_rows(const gpu_tensor *t, int64_t first, int64_t count);

/* cuda against cpu, element by element. */
void gpu_compare(gpu *g, const char *what, const gpu_tensor *t, gpu_limits limits);
/* cuda against count values that the test worked out; false: differed. */
bool gpu_compare_with(gpu *g, const char *what, const gpu_tensor *t, const float *want,
                      gpu_limits limits);

/* Runs an op of both tables; GPU_ON(t) in the arguments is that side's tensor. */
#define GPU_BOTH(g, op, ...)                                                                       \
    do {                                                                                           \
        for (int side = 0; side < GPU_SIDES; side++)                                               \
            GPU_ONE(g, side, op, __VA_ARGS__);                                                     \
    } while (0)
#define GPU_ON(t) (&(t).on[side])
/* The same on one side, with the tensors written out: &t.on[GPU_CUDA]. */
#define GPU_ONE(g, which, op, ...)                                                                 \
    do {                                                                                           \
        const gpu_side *side_ = &(g)->on[which];                                                   \
        if (gpu_ready((g), #op, (which), side_->ops->op != NULL))                                  \
            gpu_ran((g), #op, (which), side_->ops->op(side_->exec, __VA_ARGS__, &(g)->err));       \
    } while (0)
bool gpu_ready(gpu *g, const char *op, int side, bool present);
void gpu_ran(gpu *g, const char *op, int side, sl_status status);

/* For the names of checks. */
const char *gpu_dtype(sl_dtype dtype); /* "f32", "bf16" */

typedef void gpu_area_fn(gpu *g);
gpu_area_fn gpu_test_small, gpu_test_linear, gpu_test_sparse, gpu_test_conv, gpu_test_attention;

#endif
