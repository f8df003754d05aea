/* net_test.h - what tests of networks share: a device, scratch memory that is
 * all NaN before use, and weights made from their names.
 */
#ifndef SL_ENGINE_NETS_NET_TEST_H
#define SL_ENGINE_NETS_NET_TEST_H

#include "base/arena.h"
#include "base/size.h"
#include "base/test.h"
#include "engine/model/weights.h"
#include "kernels/exec.h"
#include "kernels/scratch.h"

#include <string.h>

typedef struct {
    sl_device *device;
    sl_exec *exec;
    sl_exec *counting;
    sl_region *region;
    sl_scratch scratch;
    sl_arena *arena; /* weights */
    atomic_uint cancel;
} net_test;

enum { NET_TEST_SCRATCH_BYTES = 64 << 20 };

static inline void net_test_reset(net_test *t)
{
    memset(sl_region_data(t->region), 0xff, NET_TEST_SCRATCH_BYTES);
    sl_scratch_init(&t->scratch, sl_region_data(t->region), NET_TEST_SCRATCH_BYTES);
}

static inline void net_test_open(net_test *t)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = SL_GIB };

    atomic_init(&t->cancel, 0);
    SL_CHECK_OK(sl_device_create(&t->device, &spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&t->exec, t->device, 2, &t->cancel, err));
    SL_CHECK_OK(sl_exec_create_counting(&t->counting, NULL, err));
    SL_CHECK_OK(
        sl_region_create(&t->region, t->device, "activations", NET_TEST_SCRATCH_BYTES, err));
    SL_CHECK_OK(sl_region_map(t->region, NET_TEST_SCRATCH_BYTES, err));
    SL_CHECK_OK(sl_arena_create(&t->arena, 0, err));
    net_test_reset(t);
}

static inline void net_test_close(net_test *t)
{
    sl_arena_destroy(t->arena);
    sl_region_destroy(t->region);
    sl_exec_destroy(t->counting);
    sl_exec_destroy(t->exec);
    sl_device_destroy(t->device);
}

/* Uniform in [-scale, scale) around `middle`. */
static inline void net_test_fill(float *v, int64_t count, uint64_t seed, float middle, float scale)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;

    for (int64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        v[i] = middle + scale * ((float)(state >> 40) * 0x1p-23f - 1.0f);
    }
}

/* Norm weights near 1, small biases and modulations, matrices that keep the
 * scale of what they are given.  For SL_PRECISION_F32 only. */
static inline sl_status net_test_weight(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    net_test *t = arg;
    const int64_t count = spec->slot ? sl_tensor_count(spec->slot) : 0;
    int64_t fan_in = 1;
    uint64_t seed = 0;
    float middle = 0.0f, scale;

    (void)err;
    if (spec->form == SL_FORM_FILE_ONLY)
        return SL_OK;
    SL_CHECK(spec->slot->dtype == SL_F32);
    for (const char *c = spec->name; *c; c++)
        seed = seed * 131 + (uint64_t)(unsigned char)*c;
    for (int i = 1; i < spec->rank; i++)
        fan_in *= spec->dim[i];
    scale = sqrtf(3.0f / (float)fan_in);
    if (strstr(spec->name, "norm") && strstr(spec->name, "weight")) {
        middle = 1.0f;
        scale = 0.2f;
    } else if (strstr(spec->name, "gamma")) {
        middle = 1.0f;
        scale = 0.2f;
    } else if (strstr(spec->name, "bias") || strstr(spec->name, "modulation")) {
        scale = 0.2f;
    }
    spec->slot->data = sl_arena_alloc(t->arena, sl_tensor_bytes(spec->slot));
    SL_CHECK(spec->slot->data != NULL);
    net_test_fill(spec->slot->data, count, seed, middle, scale);
    return SL_OK;
}

static inline sl_tensor net_test_input(net_test *t, uint64_t seed, int rank, const int64_t *dim)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    sl_tensor x;

    SL_CHECK_OK(sl_scratch_take(&t->scratch, &x, err, SL_F32, rank, dim));
    net_test_fill(x.data, sl_tensor_count(&x), seed, 0.0f, 1.7f);
    return x;
}
#define NET_TEST_INPUT(t, seed, rank, ...)                                                         \
    net_test_input((t), (seed), (rank), (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ })

/* ||got - want|| / ||want||: NaN if anything is. */
static inline double net_test_rel_l2(const float *got, const double *want, int64_t count)
{
    double difference = 0.0, norm = 0.0;

    for (int64_t i = 0; i < count; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return sqrt(difference / norm);
}

#endif
