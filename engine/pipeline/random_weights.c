#include "engine/pipeline/random_weights.h"

#include "base/size.h"
#include "engine/nets/net.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdlib.h>

/* Elements of the block of noise; the largest matrices are made from it in pieces. */
enum { NOISE_COLUMNS = 1 << 12, NOISE_ROWS = 1 << 12 };

typedef struct {
    sl_exec *exec;
    const sl_ops *ops;
    sl_scratch *scratch;
    sl_tensor noise; /* f32 [NOISE_ROWS, NOISE_COLUMNS] */
    sl_tensor gate;  /* f32 [NOISE_COLUMNS]: one number */
} maker;

static sl_status set_gate(maker *m, float value, sl_error *err)
{
    float values[NOISE_COLUMNS];

    for (int64_t i = 0; i < NOISE_COLUMNS; i++)
        values[i] = value;
    return sl_exec_write(m->exec, m->gate.data, values, sizeof values, err);
}

/* count elements from `data` on: noise times `by`. */
static sl_status scaled_noise(maker *m, void *data, sl_dtype dtype, int64_t count, float by,
                              sl_error *err)
{
    const int64_t block = (int64_t)NOISE_ROWS * NOISE_COLUMNS;
    const sl_tensor all = sl_tensor_of(data, dtype, 1, count);
    sl_status status = SL_OK;

    SL_TRY(set_gate(m, by, err));
    SL_TRY(m->ops->zero(m->exec, &all, err));
    for (int64_t first = 0; first < count; first += block) {
        const int64_t n = count - first < block ? count - first : block;
        const int64_t columns = n < NOISE_COLUMNS ? n : NOISE_COLUMNS;
        const int64_t rows = n / columns, rest = n - rows * columns;
        unsigned char *at = (unsigned char *)data + (size_t)first * sl_dtype_bytes(dtype);
        const sl_tensor y = sl_tensor_of(m->noise.data, SL_F32, 2, rows, columns);
        const sl_tensor gate = sl_tensor_of(m->gate.data, SL_F32, 1, columns);
        const sl_tensor x = sl_tensor_of(at, dtype, 2, rows, columns);

        SL_TRY(m->ops->gated_add(m->exec, &x, &y, &gate, err));
        if (rest > 0) {
            const sl_tensor tail_gate = sl_tensor_of(m->gate.data, SL_F32, 1, rest);
            const sl_tensor tail_y = sl_tensor_of(m->noise.data, SL_F32, 2, 1, rest);
            const sl_tensor tail_x = sl_tensor_of(
                at + (size_t)(rows * columns) * sl_dtype_bytes(dtype), dtype, 2, 1, rest);

            SL_TRY(m->ops->gated_add(m->exec, &tail_x, &tail_y, &tail_gate, err));
        }
    }
done:
    return status;
}

/* One number in all of a table of scales. */
static sl_status fill_scale(maker *m, const sl_tensor *scale, float value, sl_error *err)
{
    const int64_t count = sl_tensor_count(scale);
    float *values = malloc((size_t)count * sizeof *values);
    sl_status status;

    if (!values)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for scales");
    for (int64_t i = 0; i < count; i++)
        values[i] = value;
    status = sl_exec_write(m->exec, scale->data, values, (size_t)count * sizeof *values, err);
    free(values);
    return status;
}

/* Codes of rows of noise, with the scales that go with them; of e4m3 each row has its
 * own, of which the usual one is taken for all. */
static sl_status codes(maker *m, const sl_weight_spec *spec, float by, sl_error *err)
{
    const size_t mark = sl_scratch_mark(m->scratch);
    const sl_tensor *q = spec->slot;
    sl_status status = SL_OK;
    sl_tensor x, scale;

    SL_TRY(sl_scratch_take(m->scratch, &x, err, SL_F32, 2, q->dim));
    SL_TRY(scaled_noise(m, x.data, SL_F32, sl_tensor_count(&x), by, err));
    if (q->dtype == SL_I8) {
        SL_TRY(m->ops->quantize_int8(m->exec, q, spec->scale, &x, err));
    } else {
        SL_TRY(sl_scratch_tensor(m->scratch, &scale, err, SL_F32, 2, q->dim[1] / SL_FP8_TILE,
                                 q->dim[0]));
        SL_TRY(m->ops->quantize_fp8(m->exec, q, &scale, &x, err));
        SL_TRY(fill_scale(m, spec->scale, 3.0f * by / 448.0f, err));
    }
done:
    sl_scratch_release(m->scratch, mark);
    return status;
}

static sl_status make_tensor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    const sl_tensor *t = spec->slot;
    int64_t fan_in = 1;

    for (int i = 1; i < t->rank; i++)
        fan_in *= t->dim[i];
    const float by = t->rank == 1 ? 0.1f : (float)(1.0 / sqrt((double)fan_in));
    if (spec->form == SL_FORM_CODES)
        return codes(arg, spec, by, err);
    return scaled_noise(arg, t->data, t->dtype, sl_tensor_count(t), by, err);
}

sl_status sl_random_component(sl_component **out, const sl_component_spec *spec, sl_device *device,
                              sl_exec *exec, sl_scratch *scratch, sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    maker m = { .exec = exec, .ops = sl_exec_ops(exec), .scratch = scratch };
    sl_status status = SL_OK;

    SL_TRY(sl_scratch_tensor(scratch, &m.noise, err, SL_F32, 2, NOISE_ROWS, NOISE_COLUMNS));
    SL_TRY(sl_scratch_tensor(scratch, &m.gate, err, SL_F32, 1, NOISE_COLUMNS));
    SL_TRY(m.ops->randn(exec, &m.noise, 1, 0, err));
    SL_TRY(sl_component_create_filled(out, spec, device, exec, make_tensor, &m, err));
done:
    sl_scratch_release(scratch, mark);
    return status;
}
