#include "kernels/noise.h"

#include "base/size.h"
#include "kernels/noise_math.h"
#include "kernels/op_check.h"
#include "kernels/param_cpu.h"

#include <string.h>

enum { TILE = 1 << 16 }; /* elements, a multiple of 4 */

typedef struct {
    float *y;
    int64_t count;
    uint64_t seed;
    uint32_t draw;
} job;

sl_status sl_randn_check(sl_exec *exec, const sl_tensor *y, uint64_t seed, uint32_t draw,
                         sl_error *err)
{
    (void)exec, (void)seed, (void)draw;
    return sl_op_expect_like("randn", "y", y, SL_BIT(SL_F32), y, err);
}

static void randn_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t first = i * TILE, end = first + sl_tile_length(i, TILE, j->count);
    float group[4];

    (void)thread, (void)workspace;
    for (int64_t at = first; at < end; at += 4) {
        sl_noise_group(j->seed, j->draw, (uint64_t)at / 4, group);
        memcpy(j->y + at, group, (size_t)(end - at < 4 ? end - at : 4) * sizeof *group);
    }
}

sl_status sl_randn_cpu(sl_exec *exec, const sl_tensor *y, uint64_t seed, uint32_t draw,
                       sl_error *err)
{
    const sl_status status = sl_randn_check(exec, y, seed, draw, err);

    if (status != SL_OK)
        return status;
    job j = { .y = y->data, .count = sl_tensor_count(y), .seed = seed, .draw = draw };
    return sl_exec_parallel(exec, sl_ceil_div(j.count, TILE), randn_tile, &j, err);
}
