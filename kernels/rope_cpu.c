#include "kernels/rope.h"

#include "base/size.h"
#include "kernels/op_check.h"
#include "kernels/vmath.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    TILE_ELEMENTS = 1 << 16,
    MAX_PAIRS = 512, /* D/2 */
    F32 = SL_BIT(SL_F32),
};

/* Pairs of each axis, in the order t, h, w. */
static void split_pairs(int64_t pairs, int64_t out[3])
{
    out[1] = out[2] = 2 * pairs / 6;
    out[0] = pairs - 2 * out[1];
}

static sl_status check_table(const char *op, const sl_tensor *table, sl_error *err)
{
    const sl_status status = SL_OP_EXPECT(op, "table", table, F32, err, 3, -1, -1, 2);

    if (status == SL_OK && (table->dim[1] < 1 || table->dim[1] > MAX_PAIRS))
        return sl_fail(err, SL_ERR_INVALID, "%s: table has %" PRId64 " pairs, expected 1 to %d", op,
                       table->dim[1], MAX_PAIRS);
    return status;
}

/* --- rope_table --- */

sl_status sl_rope_table_check(sl_exec *exec, const sl_tensor *table, sl_error *err)
{
    (void)exec;
    return check_table("rope_table", table, err);
}

/* Pair j is the i-th of so many of its axis. */
static void find_in_axis(int64_t pairs, int64_t j, int64_t *i, int64_t *axis_pairs)
{
    int64_t split[3];
    int axis = 0;

    split_pairs(pairs, split);
    for (*i = j; axis < 2 && *i >= split[axis]; axis++)
        *i -= split[axis];
    *axis_pairs = split[axis];
}

void sl_rope_table_f64(float *table, int64_t max_pos, int64_t pairs)
{
    for (int64_t j = 0; j < pairs; j++) {
        int64_t i, axis_pairs;
        find_in_axis(pairs, j, &i, &axis_pairs);
        const double frequency = pow(10000.0, -(double)i / (double)axis_pairs);
        for (int64_t pos = 0; pos < max_pos; pos++) {
            float *entry = table + (pos * pairs + j) * 2;
            entry[0] = (float)cos((double)pos * frequency);
            entry[1] = (float)sin((double)pos * frequency);
        }
    }
}

/* Tile: all positions of pair j.  Each step is rounded to f32, as the networks
 * were trained: the exponent 2i/m, the power, its inverse, the angle. */
static void table_tile(void *arg, int64_t j, int thread, void *workspace)
{
    const sl_tensor *table = arg;
    const int64_t pairs = table->dim[1];
    int64_t i, axis_pairs;

    (void)thread, (void)workspace;
    find_in_axis(pairs, j, &i, &axis_pairs);
    const float exponent = (float)i / (float)axis_pairs;
    const float frequency = 1.0f / (float)pow(10000.0, (double)exponent);

    for (int64_t pos = 0; pos < table->dim[0]; pos++) {
        const float angle = (float)pos * frequency;
        float *entry = (float *)table->data + (pos * pairs + j) * 2;
        entry[0] = (float)cos((double)angle);
        entry[1] = (float)sin((double)angle);
    }
}

sl_status sl_rope_table_cpu(sl_exec *exec, const sl_tensor *table, sl_error *err)
{
    const sl_status status = sl_rope_table_check(exec, table, err);
    sl_tensor t = *table;

    if (status != SL_OK)
        return status;
    return sl_exec_parallel(exec, t.dim[1], table_tile, &t, err);
}

/* --- rope --- */

typedef struct {
    const sl_tensor *x, *table;
    sl_grid grid;
    int64_t tile_rows;
} job;

sl_status sl_rope_check(sl_exec *exec, const sl_tensor *x, const sl_tensor *table, sl_grid grid,
                        sl_error *err)
{
    sl_status status = check_table("rope", table, err);
    int64_t S = 0;

    (void)exec;
    if (status != SL_OK)
        return status;
    const int64_t max_pos = table->dim[0], D = 2 * table->dim[1];
    if (grid.T < 0 || grid.H < 0 || grid.W < 0 || grid.T > max_pos || grid.H > max_pos ||
        grid.W > max_pos || !sl_count_mul(grid.T, grid.H, &S) || !sl_count_mul(S, grid.W, &S))
        return sl_fail(err, SL_ERR_INVALID,
                       "rope: grid %" PRId64 "x%" PRId64 "x%" PRId64 ", expected 0 to %" PRId64
                       " tokens along each axis",
                       grid.T, grid.H, grid.W, max_pos);
    status = SL_OP_EXPECT("rope", "x", x, SL_BITS_ACTIVATION, err, 2, S, -1);
    if (status == SL_OK && x->dim[1] % D)
        status = sl_fail(err, SL_ERR_INVALID,
                         "rope: x has %" PRId64 " channels, expected a multiple of %" PRId64,
                         x->dim[1], D);
    if (status == SL_OK)
        status = sl_op_expect_apart("rope", "x", x, "table", table, err);
    return status;
}

/* The (cos, sin) of one token: each axis' pairs from the row of its position. */
static void gather_turns(const job *j, int64_t s, float *turns)
{
    const int64_t pairs = j->table->dim[1];
    const float *table = j->table->data;
    const int64_t pos[3] = { s / (j->grid.H * j->grid.W), s / j->grid.W % j->grid.H,
                             s % j->grid.W };
    int64_t axis_pairs[3], first = 0;

    split_pairs(pairs, axis_pairs);
    for (int axis = 0; axis < 3; axis++) {
        memcpy(turns + 2 * first, table + 2 * (pos[axis] * pairs + first),
               (size_t)(2 * axis_pairs[axis]) * sizeof *turns);
        first += axis_pairs[axis];
    }
}

SL_MULTIARCH static void turn_heads(float *restrict x, const float *restrict turns, int64_t pairs,
                                    int64_t heads)
{
    for (int64_t n = 0; n < heads; n++, x += 2 * pairs)
        for (int64_t p = 0; p < pairs; p++) {
            const float a = x[2 * p], b = x[2 * p + 1];
            const float c = turns[2 * p], s = turns[2 * p + 1];
            x[2 * p] = a * c - b * s;
            x[2 * p + 1] = a * s + b * c;
        }
}

static void rope_tile(void *arg, int64_t i, int thread, void *workspace)
{
    const job *j = arg;
    const int64_t S = j->x->dim[0], C = j->x->dim[1], pairs = j->table->dim[1];
    const int64_t end = (i + 1) * j->tile_rows < S ? (i + 1) * j->tile_rows : S;
    float *turns = workspace;

    (void)thread;
    for (int64_t s = i * j->tile_rows; s < end; s++) {
        gather_turns(j, s, turns);
        turn_heads((float *)j->x->data + s * C, turns, pairs, C / (2 * pairs));
    }
}

sl_status sl_rope_cpu(sl_exec *exec, const sl_tensor *x, const sl_tensor *table, sl_grid grid,
                      sl_error *err)
{
    sl_status status = sl_rope_check(exec, x, table, grid, err);
    job j = { .x = x, .table = table, .grid = grid };

    if (status == SL_OK)
        status = SL_OP_ONLY_F32("rope", err, x);
    if (status != SL_OK)
        return status;
    if (sl_tensor_count(x) == 0)
        return SL_OK;
    j.tile_rows = x->dim[1] < TILE_ELEMENTS ? TILE_ELEMENTS / x->dim[1] : 1;
    return sl_exec_parallel(exec, sl_ceil_div(x->dim[0], j.tile_rows), rope_tile, &j, err);
}
