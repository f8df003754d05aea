/* Golden checkpoints into components: every tensor, in every form. */
#include "engine/model/component.h"

#include "base/test.h"
#include "engine/model/convert.h"
#include "engine/model/stream.h"
#include "kernels/e4m3.h"
#include "kernels/linear_fp8.h"
#include "kernels/linear_int8.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const sl_dit_config golden_dit = {
    .dim = 256,
    .ffn_dim = 512,
    .num_heads = 2,
    .num_layers = 3,
    .in_dim = 16,
    .out_dim = 16,
    .text_dim = 64,
    .text_len = 24,
    .freq_dim = 256,
    .eps = 1e-6f,
};
static const sl_dit_config golden_hd64 = {
    .dim = 128,
    .ffn_dim = 192,
    .num_heads = 2,
    .num_layers = 1,
    .in_dim = 16,
    .out_dim = 16,
    .text_dim = 48,
    .text_len = 20,
    .freq_dim = 256,
    .eps = 1e-6f,
};

typedef struct {
    sl_device *device;
    sl_exec *exec;
    atomic_uint cancel;
} host;

static void host_init(host *h, const char *device, sl_error *err)
{
    sl_device_spec spec;

    atomic_init(&h->cancel, 0);
    SL_CHECK_OK(sl_device_spec_parse(device, &spec, err));
    SL_CHECK_OK(sl_device_create(&h->device, &spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&h->exec, h->device, 2, &h->cancel, err));
}

static size_t host_mapped(const host *h)
{
    sl_device_stats stats;

    sl_device_get_stats(h->device, &stats);
    return stats.mapped_bytes;
}

static void host_fini(host *h)
{
    sl_exec_destroy(h->exec);
    SL_CHECK(host_mapped(h) == 0);
    sl_device_destroy(h->device);
}

static sl_ckpt *open_golden(const char *name, sl_error *err)
{
    char path[1200];
    sl_ckpt *ckpt = NULL;

    snprintf(path, sizeof path, "%s/golden/%s", sl_test_shared_dir(), name);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    return ckpt;
}

static float file_value(const sl_ckpt_tensor *t, int64_t i)
{
    float value;

    const size_t at = (size_t)i * sl_dtype_bytes(t->tensor.dtype);

    sl_convert(&value, SL_F32, (const char *)t->tensor.data + at, t->tensor.dtype, 1);
    return value;
}

/* Whether a golden transformer can be kept so: codes need multiples of 128. */
static bool is_kept(const sl_dit_config *config, int precision)
{
    return !sl_precision_has_codes((sl_precision)precision) || config->ffn_dim % SL_INT8_TILE == 0;
}

static float device_value(const sl_tensor *t, int64_t i)
{
    return t->dtype == SL_F32 ? ((const float *)t->data)[i]
                              : sl_bf16_to_f32(((const uint16_t *)t->data)[i]);
}

typedef struct {
    const sl_ckpt *ckpt;
    const unsigned char *base; /* where the loaded component lies */
    size_t used_bytes;
    int64_t tensors;
    const float *scale; /* of the codes to come */
} compare;

/* The rule of wan.md 6 for one tile, from the file's floats. */
static void check_int8_tile(const sl_ckpt_tensor *found, const int8_t *codes, float scale,
                            int64_t row, int64_t col, int64_t I)
{
    float v[SL_INT8_TILE], amax = 1e-8f;

    for (int pass = 0; pass < 2; pass++)
        for (int64_t r = row; r < row + SL_INT8_TILE; r++)
            for (int64_t c = 0; c < SL_INT8_TILE; c++) {
                v[c] = sl_bf16_to_f32(sl_bf16_from_f32(file_value(found, r * I + col + c)));
                amax = fmaxf(amax, fabsf(v[c]));
                const float code = fminf(127.0f, rintf(v[c] * (128.0f / amax)));
                SL_CHECK(pass == 0 || (float)codes[r * I + col + c] == code);
            }
    SL_CHECK(scale == amax / 128.0f);
}

/* Two nearest e4m3 numbers are at most 1/8 apart, or 2^-9 of the scale. */
static void check_fp8_tile(const sl_ckpt_tensor *found, const uint8_t *codes, float scale,
                           int64_t row, int64_t col, int64_t I)
{
    float amax = 1e-8f;

    for (int pass = 0; pass < 2; pass++)
        for (int64_t r = row; r < row + SL_FP8_TILE; r++)
            for (int64_t c = col; c < col + SL_FP8_TILE; c++) {
                const float v = sl_bf16_to_f32(sl_bf16_from_f32(file_value(found, r * I + c)));
                const float off = fabsf(sl_e4m3_to_f32(codes[r * I + c]) * scale - v);
                amax = fmaxf(amax, fabsf(v));
                SL_CHECK(pass == 0 || off <= fmaxf(fabsf(v) / 16.0f, scale * 0x1p-10f) * 1.001f);
            }
    SL_CHECK(scale == amax / 448.0f);
}

/* Codes lie behind their scales, which the visitor was shown before. */
static void compare_codes(compare *c, const sl_ckpt_tensor *found, const sl_tensor *device)
{
    const int64_t O = device->dim[0], I = device->dim[1];

    SL_CHECK(c->scale != NULL);
    for (int64_t row = 0; row < O; row += SL_INT8_TILE)
        for (int64_t col = 0; col < I; col += SL_INT8_TILE) {
            const float scale =
                c->scale[row / SL_INT8_TILE * (I / SL_INT8_TILE) + col / SL_INT8_TILE];
            if (device->dtype == SL_I8)
                check_int8_tile(found, device->data, scale, row, col, I);
            else
                check_fp8_tile(found, device->data, scale, row, col, I);
        }
}

/* Slots are laid out in visiting order, 256 bytes aligned: so the visitor knows
 * where each must be, independently of the loader's own structs. */
static sl_status compare_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    compare *c = arg;
    const sl_ckpt_tensor *found = sl_ckpt_find(c->ckpt, spec->name);
    sl_tensor device = *spec->slot;
    const int64_t count = sl_tensor_count(&device);
    const bool last = spec->form == SL_FORM_CHANNELS_LAST;

    (void)err;
    device.data = (void *)(uintptr_t)(c->base + c->used_bytes);
    c->used_bytes += (sl_tensor_bytes(&device) + 255) & ~(size_t)255;
    c->tensors++;
    if (spec->form == SL_FORM_CODES) {
        SL_CHECK(found != NULL);
        compare_codes(c, found, &device);
        return SL_OK;
    }
    if (!found) { /* scales of what is quantised, or no file of this layout has it */
        const char *end = strrchr(spec->name, '.');

        SL_CHECK(spec->form == SL_FORM_DEVICE_ONLY);
        c->scale = device.data;
        for (int64_t i = 0; i < count && strcmp(end, ".scale") != 0; i++)
            SL_CHECK(device_value(&device, i) == 0.0f);
        return SL_OK;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t from = i;
        if (last) { /* [O, K, I] from [O, I, K] */
            const int64_t I = device.dim[4], K = count / device.dim[0] / I;
            const int64_t o = i / (K * I), k = i / I % K, in = i % I;
            from = (o * I + in) * K + k;
        }
        float want = file_value(found, from);
        if (device.dtype == SL_BF16)
            want = sl_bf16_to_f32(sl_bf16_from_f32(want));
        if (!(device_value(&device, i) == want))
            fail_msg("%s[%lld]: %g, want %g", spec->name, (long long)i,
                     (double)device_value(&device, i), (double)want);
    }
    return SL_OK;
}

SL_TEST(golden_dit_loads_in_every_precision)
{
    static const struct {
        const char *file;
        const sl_dit_config *config;
        int64_t tensors;
    } cases[] = {
        { "dit_t2v.ckpt.safetensors", &golden_dit, 102 },      /* 2-D patch, proj_l */
        { "dit_t2v_hd64.ckpt.safetensors", &golden_hd64, 44 }, /* 5-D patch, f32, no proj_l */
    };
    host h;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    host_init(&h, "cpu:64MiB", err);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        for (int p = 0; p < SL_PRECISION_COUNT && is_kept(cases[i].config, p); p++) {
            sl_component_spec spec = { .kind = SL_COMPONENT_DIT, .precision = (sl_precision)p };
            sl_ckpt *ckpt = open_golden(cases[i].file, err);
            sl_component *component = NULL;
            const size_t before = host_mapped(&h);

            spec.config.dit = *cases[i].config;
            SL_CHECK_OK(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err));
            SL_CHECK(sl_component_mapped_bytes(component) == sl_component_plan_bytes(&spec));
            SL_CHECK(host_mapped(&h) - before == sl_component_plan_bytes(&spec));
            SL_CHECK(sl_component_unexpected(component) == 0);

            const sl_dit_weights *w = sl_component_dit(component);
            compare c = { .ckpt = ckpt, .base = w->patch.w.data };
            SL_CHECK_OK(sl_dit_visit(NULL, &spec.config.dit, SL_LAYOUT_OFFICIAL, spec.precision,
                                     compare_visitor, &c, err));
            SL_CHECK(c.tensors == cases[i].tensors + (sl_precision_has_codes(spec.precision)
                                                          ? 10 * spec.config.dit.num_layers
                                                          : 0));
            SL_CHECK(w->patch.w.rank == 2 && w->patch.w.dim[1] == 64);
            SL_CHECK(w->head_modulation.rank == 2 && w->head_modulation.dim[0] == 2);
            SL_CHECK(w->blocks[0].ffn0.b.dtype == SL_F32);
            SL_CHECK(w->blocks[spec.config.dit.num_layers].modulation.data == NULL);
            sl_component_destroy(component);
            sl_ckpt_close(ckpt);
            SL_CHECK(host_mapped(&h) == before);
        }
    }
    host_fini(&h);
}

SL_TEST(golden_vae_and_t5_load)
{
    const sl_arch *tiny = sl_arch_find("tiny-t2v");
    static const struct {
        const char *file;
        sl_component_kind kind;
        int64_t tensors;
    } cases[] = {
        { "vae.ckpt.safetensors", SL_COMPONENT_VAE, 194 },
        { "t5.ckpt.safetensors", SL_COMPONENT_TEXT_ENCODER, 22 },
    };
    host h;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    host_init(&h, "cpu:64MiB", err);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        for (int p = 0; p < SL_PRECISION_COUNT; p++) {
            const sl_component_spec spec =
                sl_component_spec_of(tiny, cases[i].kind, (sl_precision)p);
            sl_ckpt *ckpt = open_golden(cases[i].file, err);
            sl_component *component = NULL;
            compare c = { .ckpt = ckpt };

            SL_CHECK_OK(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err));
            SL_CHECK(sl_component_mapped_bytes(component) == sl_component_plan_bytes(&spec));
            SL_CHECK(sl_component_unexpected(component) == 0);
            if (spec.kind == SL_COMPONENT_VAE) {
                const sl_vae_weights *w = sl_component_vae(component);
                c.base = w->encoder.conv1.w.data;
                SL_CHECK_OK(
                    sl_vae_visit(NULL, &spec.config.vae, spec.precision, compare_visitor, &c, err));
                SL_CHECK(w->decoder.stages[1].res[0].shortcut.w.data != NULL);
                SL_CHECK(w->decoder.stages[1].res[1].shortcut.w.data == NULL);
                SL_CHECK(w->decoder.stages[2].time_conv.w.data == NULL);
                SL_CHECK(w->decoder.stages[3].resample.w.data == NULL);
                SL_CHECK(w->encoder.stages[0].time_conv.w.data == NULL);
            } else {
                c.base = sl_component_t5(component)->token.data;
                SL_CHECK_OK(
                    sl_t5_visit(NULL, &spec.config.t5, spec.precision, compare_visitor, &c, err));
            }
            SL_CHECK(c.tensors == cases[i].tensors);
            sl_component_destroy(component);
            sl_ckpt_close(ckpt);
        }
    }
    host_fini(&h);
}

SL_TEST(counting_has_the_same_layout)
{
    for (int a = 0; a < sl_arch_count(); a++) {
        for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
            const sl_arch *arch = sl_arch_get(a);
            sl_component *component = NULL;

            if (!sl_arch_has_component(arch, (sl_component_kind)kind))
                continue;
            const sl_component_spec spec =
                sl_component_spec_of(arch, (sl_component_kind)kind, SL_PRECISION_BF16);
            SL_CHECK_OK(sl_component_create_counting(&component, &spec, err));
            SL_CHECK(sl_component_mapped_bytes(component) == 0);
            SL_CHECK(sl_component_plan_bytes(&spec) % SL_GRANULE_BYTES == 0);
            SL_CHECK(sl_component_get_spec(component)->kind == spec.kind);
            sl_component_destroy(component);
        }
    }
}

/* A linear of D * D is half in bf16, and one of a block half of that in int8. */
SL_TEST(plan_of_the_real_models)
{
    const sl_arch *arch = sl_arch_find("wan2.1-t2v-1.3b");
    const sl_component_spec f32 = sl_component_spec_of(arch, SL_COMPONENT_DIT, SL_PRECISION_F32);
    const sl_component_spec bf16 = sl_component_spec_of(arch, SL_COMPONENT_DIT, SL_PRECISION_BF16);
    const size_t parameters = 1418996800;
    const size_t proj_l = 30 * 16512; /* of SLA, which the published files do not have */
    const size_t slack = 885 * 256 + SL_GRANULE_BYTES; /* alignment of each, and the last granule */

    const sl_component_spec int8 = sl_component_spec_of(arch, SL_COMPONENT_DIT, SL_PRECISION_INT8);
    const size_t f32_bytes = (parameters + proj_l) * 4, bf16_bytes = (parameters + proj_l) * 2;
    const size_t linears = 1391984640, scales = 84960; /* of the blocks: one byte for two */

    SL_CHECK(sl_component_plan_bytes(&f32) >= f32_bytes);
    SL_CHECK(sl_component_plan_bytes(&f32) <= f32_bytes + slack);
    SL_CHECK(sl_component_plan_bytes(&bf16) >= bf16_bytes);
    SL_CHECK(sl_component_plan_bytes(&bf16) <= bf16_bytes + parameters / 500 + slack);
    const size_t saved = sl_component_plan_bytes(&bf16) - sl_component_plan_bytes(&int8);
    SL_CHECK(saved <= linears - scales * 4 + slack && saved + slack >= linears - scales * 4);
    const sl_component_spec fp8 = sl_component_spec_of(arch, SL_COMPONENT_DIT, SL_PRECISION_FP8);
    SL_CHECK(sl_component_plan_bytes(&fp8) == sl_component_plan_bytes(&int8));
}

SL_TEST(refusals_name_the_tensor_and_map_nothing)
{
    sl_component_spec spec = { .kind = SL_COMPONENT_DIT, .precision = SL_PRECISION_F32 };
    sl_component *component = NULL;
    sl_ckpt *ckpt;
    host h;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    host_init(&h, "cpu:64MiB", err);
    const size_t before = host_mapped(&h);

    spec.config.dit = golden_dit;
    spec.config.dit.ffn_dim = 640;
    ckpt = open_golden("dit_t2v.ckpt.safetensors", err);
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "could not load dit from \"") == err->message);
    SL_CHECK(strstr(err->message, "tensor \"blocks.0.ffn.0.weight\": expected [640, 256], file "
                                  "has [512, 256]"));
    sl_error_clear(err);

    spec.config.dit = golden_dit;
    spec.config.dit.num_layers = 4;
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "tensor \"blocks.3.modulation\" is missing"));
    sl_error_clear(err);

    spec.config.dit.num_layers = 2; /* one block more in the file than in the model */
    SL_CHECK_OK(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err));
    SL_CHECK(sl_component_unexpected(component) == 29);
    sl_component_destroy(component);
    component = NULL;

    spec.config.dit.num_layers = SL_MAX_LAYERS + 1;
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err),
                    SL_ERR_INVALID);
    sl_error_clear(err);
    sl_ckpt_close(ckpt);

    ckpt = open_golden("dit_t2v_int8.ckpt.safetensors", err);
    spec.config.dit = golden_dit;
    spec.config.dit.num_layers = 1;
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "it runs in precision int8 alone, f32 was asked for"));
    sl_error_clear(err);
    SL_CHECK(component == NULL);
    SL_CHECK(host_mapped(&h) == before);
    sl_ckpt_close(ckpt);

    ckpt = open_golden("dit_t2v_hd64.ckpt.safetensors", err);
    spec.config.dit = golden_hd64;
    spec.precision = SL_PRECISION_INT8;
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "ffn_dim is 192: int8 needs a multiple of 128"));
    SL_CHECK(component == NULL);
    SL_CHECK(host_mapped(&h) == before);
    sl_ckpt_close(ckpt);
    host_fini(&h);
}

/* The export's codes and scales are taken as they are. */
SL_TEST(int8_linears_of_a_file)
{
    sl_component_spec spec = { .kind = SL_COMPONENT_DIT, .precision = SL_PRECISION_INT8 };
    sl_component *component = NULL;
    host h;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    host_init(&h, "cpu:64MiB", err);
    spec.config.dit = golden_dit;
    spec.config.dit.num_layers = 1;
    sl_ckpt *ckpt = open_golden("dit_t2v_int8.ckpt.safetensors", err);
    SL_CHECK_OK(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err));
    SL_CHECK(sl_component_unexpected(component) == 0);
    SL_CHECK(sl_component_mapped_bytes(component) == sl_component_plan_bytes(&spec));
    const sl_dit_block *b = &sl_component_dit(component)->blocks[0];
    const struct {
        const char *name;
        const sl_tensor *t;
    } taken[] = {
        { "blocks.0.self_attn.q.int8_weight", &b->self_attn.q.w },
        { "blocks.0.self_attn.q.scale", &b->self_attn.q.scale },
        { "blocks.0.cross_attn.o.int8_weight", &b->cross_attn.o.w },
        { "blocks.0.ffn.0.int8_weight", &b->ffn0.w },
        { "blocks.0.ffn.2.scale", &b->ffn2.scale },
        { "blocks.0.self_attn.attn_op.local_attn.proj_l.weight", &b->proj_l.w },
    };
    for (size_t i = 0; i < SL_COUNT(taken); i++) {
        const sl_ckpt_tensor *found = sl_ckpt_find(ckpt, taken[i].name);

        SL_CHECK(found && sl_tensor_same_shape(&found->tensor, taken[i].t));
        SL_CHECK(found->tensor.dtype == taken[i].t->dtype);
        SL_CHECK(memcmp(found->tensor.data, taken[i].t->data, sl_tensor_bytes(taken[i].t)) == 0);
    }
    sl_component_destroy(component);
    sl_ckpt_close(ckpt);
    host_fini(&h);
}

SL_TEST(too_small_a_device_and_cancel)
{
    sl_component_spec spec = { .kind = SL_COMPONENT_DIT, .precision = SL_PRECISION_F32 };
    sl_component *component = NULL;
    host h;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    spec.config.dit = golden_dit;
    sl_ckpt *ckpt = open_golden("dit_t2v.ckpt.safetensors", err);
    host_init(&h, "cpu:24MiB", err); /* 16 are the workspace */
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err),
                    SL_ERR_NO_MEMORY);
    sl_error_clear(err);
    SL_CHECK(host_mapped(&h) == sl_exec_workspace_bytes(h.exec));
    host_fini(&h);

    host_init(&h, "cpu:64MiB", err);
    atomic_store(&h.cancel, 1);
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err),
                    SL_ERR_CANCELLED);
    SL_CHECK(component == NULL);
    SL_CHECK(host_mapped(&h) == sl_exec_workspace_bytes(h.exec));
    host_fini(&h);
    sl_ckpt_close(ckpt);
}

SL_TEST(conversions_round_once)
{
    static const struct {
        double from;
        uint16_t bits;
    } cases[] = {
        { 1.0, 0x3f80 },
        { -0.0, 0x8000 },
        { 1.00390625, 0x3f80 },           /* half way, to even */
        { 1.00390625 + 0x1p-40, 0x3f81 }, /* above half: two roundings would lose it */
        { 1.01171875, 0x3f82 },           /* half way, to even */
        { 1.01171875 - 0x1p-40, 0x3f81 }, /* below half */
        { -1.00390625 - 0x1p-40, 0xbf81 },
        { (2 - 0x1p-8) * 0x1p127, 0x7f80 }, /* half way above the largest bf16 */
        { (2 - 0x1p-8) * 0x1p127 - 0x1p80, 0x7f7f },
        { 1e300, 0x7f80 },
        { -1e300, 0xff80 },
        { 1e-300, 0x0000 },
        { 0x1p-133, 0x0001 }, /* smallest subnormal */
        { INFINITY, 0x7f80 },
    };
    static const uint16_t halves[] = { 0x3c00, 0x0001, 0x83ff, 0x7c00, 0xfbff };
    static const double half_values[] = { 1, 0x1p-24, -1023 * 0x1p-24, INFINITY, -65504 };
    unsigned char unaligned[8 * SL_COUNT(cases) + 1];
    uint16_t got[SL_COUNT(cases)], nan_bits;
    float f[SL_COUNT(halves)];
    double nan_value = NAN;

    for (size_t i = 0; i < SL_COUNT(cases); i++)
        memcpy(unaligned + 1 + 8 * i, &cases[i].from, 8);
    sl_convert(got, SL_BF16, unaligned + 1, SL_F64, SL_COUNT(cases));
    for (size_t i = 0; i < SL_COUNT(cases); i++)
        if (got[i] != cases[i].bits)
            fail_msg("%.17g: got %04x, want %04x", cases[i].from, got[i], cases[i].bits);
    sl_convert(&nan_bits, SL_BF16, &nan_value, SL_F64, 1);
    SL_CHECK(isnan(sl_bf16_to_f32(nan_bits)));
    sl_convert(f, SL_F32, halves, SL_F16, SL_COUNT(halves));
    for (size_t i = 0; i < SL_COUNT(halves); i++)
        SL_CHECK((double)f[i] == half_values[i]);
}

/* ---- images ---- */

static const struct {
    const char *file;
    sl_component_kind kind;
} golden_files[] = {
    { "dit_t2v.ckpt.safetensors", SL_COMPONENT_DIT },
    { "dit_t2v_hd64.ckpt.safetensors", SL_COMPONENT_DIT },
    { "vae.ckpt.safetensors", SL_COMPONENT_VAE },
    { "t5.ckpt.safetensors", SL_COMPONENT_TEXT_ENCODER },
};

static sl_component_spec golden_spec(size_t i, sl_precision precision)
{
    sl_component_spec spec =
        sl_component_spec_of(sl_arch_find("tiny-t2v"), golden_files[i].kind, precision);

    if (spec.kind == SL_COMPONENT_DIT)
        spec.config.dit = i == 0 ? golden_dit : golden_hd64;
    return spec;
}

/* The first byte of a resident component's region. */
static const void *first_byte(const sl_component *component)
{
    switch (sl_component_get_spec(component)->kind) {
    case SL_COMPONENT_TEXT_ENCODER:
        return sl_component_t5(component)->token.data;
    case SL_COMPONENT_VAE:
        return sl_component_vae(component)->encoder.conv1.w.data;
    default:
        return sl_component_dit(component)->patch.w.data;
    }
}

enum { FENCE = 64 };

/* An image of exactly its bytes, all 0xa5 before it is filled, and a fence. */
static unsigned char *make_image(const host *h, const sl_component_spec *spec, const sl_ckpt *ckpt)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const size_t image_bytes = sl_component_image_bytes(spec);
    void *image = NULL;

    SL_CHECK(posix_memalign(&image, 64, image_bytes + FENCE) == 0);
    memset(image, 0xa5, image_bytes + FENCE);
    SL_CHECK_OK(sl_component_fill_image(image, image_bytes, spec, h->exec, ckpt, err));
    for (size_t i = 0; i < FENCE; i++)
        SL_CHECK(((unsigned char *)image)[image_bytes + i] == 0xa5);
    return image;
}

SL_TEST(image_is_what_loading_gives)
{
    host h;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    host_init(&h, "cpu:128MiB", err);
    for (size_t i = 0; i < SL_COUNT(golden_files); i++) {
        for (int p = 0; p < SL_PRECISION_COUNT && (i != 1 || is_kept(&golden_hd64, p)); p++) {
            const sl_component_spec spec = golden_spec(i, (sl_precision)p);
            const size_t image_bytes = sl_component_image_bytes(&spec);
            sl_ckpt *ckpt = open_golden(golden_files[i].file, err);
            unsigned char *image = make_image(&h, &spec, ckpt);
            sl_component *from_file = NULL, *from_image = NULL;

            SL_CHECK(sl_granules(image_bytes) == sl_component_plan_bytes(&spec));
            SL_CHECK_OK(sl_component_load(&from_file, &spec, h.device, h.exec, ckpt, err));
            sl_ckpt_close(ckpt);
            SL_CHECK_OK(sl_component_load_image(&from_image, &spec, h.device, h.exec, image,
                                                image_bytes, err));
            SL_CHECK(sl_component_mapped_bytes(from_image) == sl_component_plan_bytes(&spec));
            SL_CHECK(memcmp(first_byte(from_file), image, image_bytes) == 0);
            memset(image, 0x5a, image_bytes); /* it is no longer needed */
            SL_CHECK(memcmp(first_byte(from_image), first_byte(from_file),
                            sl_component_plan_bytes(&spec)) == 0);
            sl_component_destroy(from_file);
            sl_component_destroy(from_image);
            free(image);
        }
    }
    host_fini(&h);
}

/* Streamed and resident weights, walked side by side: equal shapes, and equal
 * bytes where the streamed ones are on the device or in the image. */
typedef struct {
    const unsigned char *resident; /* its region */
    size_t used_bytes;
    const sl_tensor *streamed; /* in visiting order */
    int64_t block;             /* to compare; -1: what is in no block */
    int64_t at, compared;
} side_by_side;

static sl_status collect_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    side_by_side *c = arg;
    const sl_tensor *streamed = &c->streamed[c->at++];
    const size_t at = c->used_bytes;

    (void)err;
    c->used_bytes += (sl_tensor_bytes(spec->slot) + 255) & ~(size_t)255;
    if (spec->block != c->block)
        return SL_OK;
    c->compared++;
    SL_CHECK(sl_tensor_same_shape(streamed, spec->slot) && streamed->dtype == spec->slot->dtype);
    SL_CHECK(memcmp(streamed->data, c->resident + at, sl_tensor_bytes(streamed)) == 0);
    return SL_OK;
}

/* The slots of umT5 weights in visiting order. */
static int64_t t5_slots(const sl_t5_weights *w, int64_t block_count, sl_tensor *out)
{
    int64_t n = 0;

    out[n++] = w->token;
    for (int64_t i = 0; i < block_count; i++) {
        const sl_t5_block *b = &w->blocks[i];
        const sl_tensor block[] = { b->norm1, b->q,     b->k,    b->v,   b->o,
                                    b->pos,   b->norm2, b->gate, b->fc1, b->fc2 };

        memcpy(&out[n], block, sizeof block);
        n += (int64_t)SL_COUNT(block);
    }
    out[n++] = w->norm;
    return n;
}

SL_TEST(streamed_weights_are_the_same)
{
    sl_tensor slots[64];
    host h;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    host_init(&h, "cpu:128MiB", err);
    for (int p = 0; p < SL_PRECISION_COUNT; p++) {
        const sl_component_spec resident = golden_spec(3, (sl_precision)p);
        sl_component_spec spec = resident;
        sl_ckpt *ckpt = open_golden(golden_files[3].file, err);
        const size_t image_bytes = sl_component_image_bytes(&spec);
        const int64_t block_count = spec.config.t5.num_layers;
        sl_component *streamed = NULL, *whole = NULL;
        sl_block_pass pass;

        spec.mode = SL_MODE_STREAMED;
        SL_CHECK(sl_component_image_bytes(&spec) == image_bytes);
        unsigned char *image = make_image(&h, &spec, ckpt);
        SL_CHECK_OK(sl_component_load(&whole, &resident, h.device, h.exec, ckpt, err));
        SL_CHECK_OK(
            sl_component_load_image(&streamed, &spec, h.device, h.exec, image, image_bytes, err));
        SL_CHECK(sl_component_mapped_bytes(streamed) == sl_component_plan_bytes(&spec));

        const sl_t5_weights *w = sl_component_t5(streamed);
        SL_CHECK(w->token_on_host && w->token.data == image);
        SL_CHECK(w->stream && !sl_component_t5(whole)->stream);
        SL_CHECK_OK(sl_block_pass_begin(&pass, w->stream, h.exec, err));
        for (int64_t block = -1; block < block_count; block++) {
            if (block >= 0)
                SL_CHECK_OK(sl_block_pass_get(&pass, block, err));
            side_by_side c = { .resident = first_byte(whole), .streamed = slots, .block = block };
            SL_CHECK(t5_slots(w, block_count, slots) == 22);
            SL_CHECK_OK(
                sl_t5_visit(NULL, &spec.config.t5, spec.precision, collect_visitor, &c, err));
            SL_CHECK(c.at == 22 && c.compared == (block < 0 ? 2 : 10));
        }
        sl_block_pass_end(&pass);
        sl_component_destroy(streamed);
        sl_component_destroy(whole);
        free(image);
        sl_ckpt_close(ckpt);
    }
    host_fini(&h);
}

/* In bf16: two blocks of 0.4 GB and no table, two of 0.7 GB and the rest. */
SL_TEST(streamed_plan_of_the_real_models)
{
    const sl_arch *arch = sl_arch_find("wan2.1-t2v-14b");
    sl_component_spec t5 = sl_component_spec_of(arch, SL_COMPONENT_TEXT_ENCODER, SL_PRECISION_BF16);
    sl_component_spec dit = sl_component_spec_of(arch, SL_COMPONENT_DIT, SL_PRECISION_BF16);
    const size_t t5_bytes = sl_component_plan_bytes(&t5), dit_bytes = sl_component_plan_bytes(&dit);

    SL_CHECK(sl_component_pass_bytes(&t5) == 0);
    t5.mode = dit.mode = SL_MODE_STREAMED;
    const size_t t5_pass = sl_component_pass_bytes(&t5), dit_pass = sl_component_pass_bytes(&dit);
    const size_t table = (size_t)arch->t5.vocab * (size_t)arch->t5.dim * 2;
    const size_t t5_fixed = sl_component_image_bytes(&t5) - t5_pass - table;
    const size_t dit_fixed = sl_component_image_bytes(&dit) - dit_pass;

    SL_CHECK(sl_component_plan_bytes(&t5) == sl_granules(t5_fixed + 2 * (t5_pass / 24)));
    SL_CHECK(sl_component_plan_bytes(&dit) == sl_granules(dit_fixed + 2 * (dit_pass / 40)));
    SL_CHECK(sl_component_plan_bytes(&t5) < t5_bytes / 13);
    SL_CHECK(sl_component_plan_bytes(&dit) < dit_bytes / 10);
}

SL_TEST(refusals_of_images)
{
    sl_component_spec spec = { .kind = SL_COMPONENT_DIT, .precision = SL_PRECISION_F32 };
    sl_component *component = NULL;
    sl_component_mode mode;
    unsigned char *image;
    host h;

    SL_CHECK(sl_component_mode_parse("streamed", &mode) && mode == SL_MODE_STREAMED);
    SL_CHECK(!sl_component_mode_parse("host", &mode));
    SL_CHECK(strcmp(sl_component_mode_name(SL_MODE_RESIDENT), "resident") == 0);
    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    spec.config.dit = golden_dit;
    const size_t image_bytes = sl_component_image_bytes(&spec);
    sl_ckpt *ckpt = open_golden("dit_t2v.ckpt.safetensors", err);
    host_init(&h, "cpu:24MiB", err); /* 16 are the workspace */
    image = make_image(&h, &spec, ckpt);

    for (int m = 0; m < SL_MODE_COUNT; m++) {
        spec.mode = (sl_component_mode)m;
        SL_CHECK_STATUS(sl_component_load_image(&component, &spec, h.device, h.exec, image,
                                                image_bytes - 1, err),
                        SL_ERR_INVALID);
        SL_CHECK(strstr(err->message, "could not load dit from its image: the image has "));
        SL_CHECK_STATUS(
            sl_component_load_image(&component, &spec, h.device, h.exec, image, image_bytes, err),
            SL_ERR_NO_MEMORY);
    }
    SL_CHECK_STATUS(sl_component_load(&component, &spec, h.device, h.exec, ckpt, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "loaded from its image"));
    SL_CHECK_STATUS(sl_component_fill_image(image, image_bytes + 1, &spec, h.exec, ckpt, err),
                    SL_ERR_INVALID);
    atomic_store(&h.cancel, 1);
    SL_CHECK_STATUS(sl_component_fill_image(image, image_bytes, &spec, h.exec, ckpt, err),
                    SL_ERR_CANCELLED);
    SL_CHECK(strstr(err->message, "could not read dit from \""));
    atomic_store(&h.cancel, 0);
    spec.config.dit.num_layers = 4;
    SL_CHECK_STATUS(
        sl_component_fill_image(image, sl_component_image_bytes(&spec), &spec, h.exec, ckpt, err),
        SL_ERR_DATA);

    spec = sl_component_spec_of(sl_arch_find("tiny-t2v"), SL_COMPONENT_VAE, SL_PRECISION_F32);
    spec.mode = SL_MODE_STREAMED;
    SL_CHECK_STATUS(sl_component_create_counting(&component, &spec, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "vae cannot be streamed"));
    SL_CHECK_STATUS(
        sl_component_load_image(&component, &spec, h.device, h.exec, image, image_bytes, err),
        SL_ERR_INVALID);
    SL_CHECK(component == NULL && host_mapped(&h) == sl_exec_workspace_bytes(h.exec));
    free(image);
    sl_ckpt_close(ckpt);
    host_fini(&h);
}

SL_TEST_MAIN(SL_RUN(golden_dit_loads_in_every_precision), SL_RUN(golden_vae_and_t5_load),
             SL_RUN(counting_has_the_same_layout), SL_RUN(plan_of_the_real_models),
             SL_RUN(refusals_name_the_tensor_and_map_nothing), SL_RUN(int8_linears_of_a_file),
             SL_RUN(too_small_a_device_and_cancel), SL_RUN(conversions_round_once),
             SL_RUN(image_is_what_loading_gives), SL_RUN(streamed_weights_are_the_same),
             SL_RUN(streamed_plan_of_the_real_models), SL_RUN(refusals_of_images))
