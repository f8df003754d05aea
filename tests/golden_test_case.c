#include "tests/golden_test.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- what a case reads ---- */

void *golden_alloc(golden_case *c, int64_t count, size_t element_bytes, sl_error *err)
{
    void *p = NULL;

    if (count >= 0 && (uint64_t)count <= SIZE_MAX / 2 / element_bytes)
        p = sl_arena_alloc(c->arena, (size_t)count * element_bytes);
    if (!p)
        sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %" PRId64 " values", count);
    return p;
}

bool golden_has(const golden_case *c, const char *name)
{
    return c->io && sl_ckpt_find(c->io, name);
}

/* Element i of a tensor that may be unaligned. */
static double element(const sl_ckpt_tensor *t, int64_t i)
{
    const size_t size = sl_dtype_bytes(t->tensor.dtype);
    const unsigned char *at = (const unsigned char *)t->tensor.data + (size_t)i * size;
    union {
        float f32;
        double f64;
        int32_t i32;
        int64_t i64;
        uint16_t u16;
        uint8_t u8;
        int8_t i8;
    } v;

    memcpy(&v, at, size);
    switch (t->tensor.dtype) {
    case SL_F32:
        return (double)v.f32;
    case SL_F64:
        return v.f64;
    case SL_BF16:
        return (double)sl_bf16_to_f32(v.u16);
    case SL_F16:
        return (double)sl_f16_to_f32(v.u16);
    case SL_I32:
        return v.i32;
    case SL_I64:
        return (double)v.i64;
    case SL_I8:
        return v.i8;
    case SL_U8:
    case SL_BOOL:
        return v.u8;
    default:
        return (double)NAN; /* fails every comparison */
    }
}

sl_status golden_get(golden_case *c, const char *name, golden_array *out, sl_error *err)
{
    const sl_ckpt_tensor *t = c->io ? sl_ckpt_find(c->io, name) : NULL;

    if (!t)
        return sl_fail(err, SL_ERR_DATA, "the case has no tensor \"%s\"", name);
    *out = (golden_array){ .dtype = t->tensor.dtype,
                           .rank = t->tensor.rank,
                           .count = sl_tensor_count(&t->tensor) };
    memcpy(out->dim, t->tensor.dim, sizeof out->dim);
    out->v = golden_alloc(c, out->count, sizeof *out->v, err);
    if (!out->v)
        return SL_ERR_NO_MEMORY;
    for (int64_t i = 0; i < out->count; i++)
        out->v[i] = element(t, i);
    return SL_OK;
}

sl_status golden_get_f32(golden_case *c, const char *name, golden_array *out, float **values,
                         sl_error *err)
{
    sl_status status = golden_get(c, name, out, err);

    if (status != SL_OK)
        return status;
    *values = golden_alloc(c, out->count, sizeof **values, err);
    if (!*values)
        return SL_ERR_NO_MEMORY;
    for (int64_t i = 0; i < out->count; i++)
        (*values)[i] = (float)out->v[i];
    return SL_OK;
}

double golden_number(const golden_json *object, const char *key, double fallback)
{
    const golden_json *item = golden_json_get(object, key);

    return golden_json_is(item, GOLDEN_JSON_NUMBER) ? item->number : fallback;
}

double golden_tolerance(const golden_case *c, const char *key)
{
    return golden_number(c->tolerance, key, -1.0);
}

char *golden_path(golden_case *c, const char *text, sl_error *err)
{
    char *path = sl_arena_printf(c->arena, "%s/%.*s", c->env->dir, (int)strcspn(text, " "), text);

    if (!path)
        sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    return path;
}

/* ---- what a case says ---- */

static void append(char *text, size_t text_bytes, const char *fmt, va_list args)
{
    const size_t used = strlen(text);

    if (used > 0)
        snprintf(text + used, text_bytes - used, ", ");
    const size_t at = strlen(text);
    vsnprintf(text + at, text_bytes - at, fmt, args);
}

static void say(char *text, size_t text_bytes, const char *fmt, ...) SL_PRINTF(3, 4);
static void say(char *text, size_t text_bytes, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    append(text, text_bytes, fmt, args);
    va_end(args);
}

void golden_check(golden_case *c, const char *what, const char *metric, double measured,
                  double limit)
{
    const bool pass = measured <= limit; /* false for NaN */
    const char *variant = c->variant ? c->variant : "", *gap = c->variant ? " " : "";

    c->check_count++;
    if (pass) {
        say(c->passes, sizeof c->passes, "%s%s%s %s %.2g <= %.2g", variant, gap, what, metric,
            measured, limit);
    } else {
        c->failure_count++;
        say(c->failures, sizeof c->failures, "%s%s%s %s %.3g > %.3g", variant, gap, what, metric,
            measured, limit);
    }
}

void golden_note_failure(golden_case *c, const char *fmt, ...)
{
    va_list args;

    c->check_count++;
    c->failure_count++;
    va_start(args, fmt);
    append(c->failures, sizeof c->failures, fmt, args);
    va_end(args);
}

double golden_rel_l2(const double *got, const double *want, int64_t count)
{
    double difference = 0.0, norm = 0.0;

    for (int64_t i = 0; i < count; i++) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return norm > 0.0 ? sqrt(difference / norm) : sqrt(difference);
}

double golden_max_abs(const double *got, const double *want, int64_t count)
{
    double most = 0.0;

    for (int64_t i = 0; i < count; i++) {
        const double d = fabs(got[i] - want[i]);
        if (!(d <= most)) /* a NaN stays: nothing is above it */
            most = isnan(d) ? INFINITY : d;
    }
    return most;
}

void golden_compare(golden_case *c, const char *what, const double *got, int64_t got_count,
                    const golden_array *want, const char *rel_l2_key, const char *max_abs_key)
{
    if (!got || got_count != want->count) {
        golden_note_failure(c, "%s has %" PRId64 " values, expected %" PRId64, what, got_count,
                            want->count);
        return;
    }
    if (rel_l2_key)
        golden_check(c, what, "rel_l2", golden_rel_l2(got, want->v, got_count),
                     golden_tolerance(c, rel_l2_key));
    if (max_abs_key && golden_tolerance(c, max_abs_key) >= 0.0)
        golden_check(c, what, "max_abs", golden_max_abs(got, want->v, got_count),
                     golden_tolerance(c, max_abs_key));
}

void golden_compare_noise(golden_case *c, const char *what, const double *got, int64_t got_count,
                          const golden_array *want, const char *psnr_key)
{
    double sum = 0.0;

    if (!got || got_count != want->count) {
        golden_note_failure(c, "%s has %lld values, expected %lld", what, (long long)got_count,
                            (long long)want->count);
        return;
    }
    if (!(golden_tolerance(c, psnr_key) > 0.0)) {
        golden_note_failure(c, "the case has no \"%s\"", psnr_key);
        return;
    }
    for (int64_t i = 0; i < got_count; i++)
        sum += (got[i] - want->v[i]) * (got[i] - want->v[i]);
    golden_check(c, what, "noise_db", 10.0 * log10(sum / (double)got_count / 4.0),
                 -golden_tolerance(c, psnr_key));
}

void golden_skip(golden_case *c, const char *part, const char *why)
{
    c->env->skipped++;
    printf("SKIP %s.%s %s\n", c->name, part, why);
}

void golden_skip_case(golden_case *c, const char *fmt, ...)
{
    va_list args;

    c->skip = true;
    va_start(args, fmt);
    vsnprintf(c->reason, sizeof c->reason, fmt, args);
    va_end(args);
}

/* ---- between host and device ---- */

void *golden_bytes_of(golden_case *c, const sl_tensor *t, sl_error *err)
{
    const size_t size_bytes = sl_tensor_bytes(t);
    void *bytes = golden_alloc(c, (int64_t)size_bytes, 1, err);

    if (bytes && sl_exec_read(c->env->exec, bytes, t->data, size_bytes, err) != SL_OK)
        return NULL;
    return bytes;
}

double *golden_f64_of(golden_case *c, const sl_tensor *t, sl_error *err)
{
    const int64_t count = sl_tensor_count(t);
    double *v = golden_alloc(c, count, sizeof *v, err);
    const void *bytes = golden_bytes_of(c, t, err);

    if (!v || !bytes)
        return NULL;
    for (int64_t i = 0; i < count; i++)
        v[i] = t->dtype == SL_F64    ? ((const double *)bytes)[i]
               : t->dtype == SL_BF16 ? (double)sl_bf16_to_f32(((const uint16_t *)bytes)[i])
                                     : (double)((const float *)bytes)[i];
    return v;
}

sl_status golden_write(golden_case *c, const sl_tensor *t, const void *bytes, sl_error *err)
{
    return sl_exec_write(c->env->exec, t->data, bytes, sl_tensor_bytes(t), err);
}

sl_status golden_put(golden_case *c, sl_tensor *out, sl_dtype dtype, int rank, const int64_t *dim,
                     const float *values, sl_error *err)
{
    uint16_t *rounded;
    sl_status status = sl_scratch_take(&c->env->scratch, out, err, dtype, rank, dim);

    if (status != SL_OK)
        return status;
    if (dtype == SL_F32)
        return golden_write(c, out, values, err);
    SL_ASSERT(dtype == SL_BF16);
    rounded = golden_alloc(c, sl_tensor_count(out), sizeof *rounded, err);
    if (!rounded)
        return SL_ERR_NO_MEMORY;
    for (int64_t i = 0; i < sl_tensor_count(out); i++)
        rounded[i] = sl_bf16_from_f32(values[i]);
    return golden_write(c, out, rounded, err);
}

sl_status golden_poison(golden_case *c, const sl_tensor *t, sl_error *err)
{
    const size_t size_bytes = sl_tensor_bytes(t);
    void *bytes = golden_alloc(c, (int64_t)size_bytes, 1, err);

    if (!bytes)
        return SL_ERR_NO_MEMORY;
    memset(bytes, 0xff, size_bytes);
    return golden_write(c, t, bytes, err);
}

/* ---- how a case is computed ---- */

void golden_use(golden_case *c, sl_precision precision)
{
    const sl_device_kind kind = sl_exec_numerics(c->env->exec)->kind;
    const sl_numerics numerics = sl_numerics_of(kind, precision == SL_PRECISION_F32);

    sl_exec_set_numerics(c->env->exec, &numerics);
    c->variant = kind != SL_DEVICE_CPU            ? numerics.activation == SL_F32 ? "f32:" : "bf16:"
                 : precision == SL_PRECISION_BF16 ? "bf16 weights:"
                                                  : NULL;
}

bool golden_is_exact(const golden_case *c)
{
    return golden_act(c) == SL_F32;
}

sl_dtype golden_act(const golden_case *c)
{
    return sl_exec_numerics(c->env->exec)->activation;
}

sl_dtype golden_frames(const golden_case *c)
{
    return sl_exec_numerics(c->env->exec)->frames;
}

/* ---- components ---- */

static int64_t integer(const golden_json *config, const char *key, int64_t fallback)
{
    return (int64_t)golden_number(config, key, (double)fallback);
}

sl_dit_config golden_dit_config(const golden_json *config)
{
    return (sl_dit_config){
        .dim = integer(config, "dim", 0),
        .ffn_dim = integer(config, "ffn_dim", 0),
        .num_heads = integer(config, "num_heads", 0),
        .num_layers = integer(config, "num_layers", 0),
        .in_dim = integer(config, "in_dim", 16),
        .out_dim = integer(config, "out_dim", 16),
        .text_dim = integer(config, "text_dim", 4096),
        .text_len = integer(config, "text_len", 512),
        .freq_dim = integer(config, "freq_dim", 256),
        .eps = (float)golden_number(config, "eps", 1e-6),
    };
}

sl_t5_config golden_t5_config(const golden_json *config)
{
    return (sl_t5_config){
        .vocab = integer(config, "vocab", 0),
        .dim = integer(config, "dim", 0),
        .dim_attn = integer(config, "dim_attn", 0),
        .dim_ffn = integer(config, "dim_ffn", 0),
        .num_heads = integer(config, "num_heads", 0),
        .num_layers = integer(config, "num_layers", 0),
        .num_buckets = integer(config, "num_buckets", 32),
        .max_distance = integer(config, "max_distance", 128),
        .eps = (float)golden_number(config, "eps", 1e-6),
    };
}

static void read_numbers(const golden_json *config, const char *key, float *out, int count)
{
    const golden_json *list = golden_json_get(config, key);

    const golden_json *item = golden_json_is(list, GOLDEN_JSON_ARRAY) ? list->child : NULL;

    for (int i = 0; i < count && item; i++, item = item->next)
        if (golden_json_is(item, GOLDEN_JSON_NUMBER))
            out[i] = (float)item->number;
}

sl_vae_config golden_vae_config(const golden_json *config)
{
    sl_vae_config vae = {
        .dim = integer(config, "dim", 96),
        .z_dim = integer(config, "z_dim", 16),
        .num_res_blocks = integer(config, "num_res_blocks", 2),
        .dim_mult = { 1, 2, 4, 4 },
        .temporal_down = { false, true, true },
    };
    /* the reference's own spelling */
    const golden_json *down = golden_json_get(config, "temperal_downsample");
    float mult[4] = { 1, 2, 4, 4 };

    read_numbers(config, "dim_mult", mult, 4);
    for (int i = 0; i < 4; i++)
        vae.dim_mult[i] = (int64_t)mult[i];
    const golden_json *flag = golden_json_is(down, GOLDEN_JSON_ARRAY) ? down->child : NULL;
    for (int i = 0; i < 3 && golden_json_is(down, GOLDEN_JSON_ARRAY); i++) {
        vae.temporal_down[i] = golden_json_is(flag, GOLDEN_JSON_TRUE);
        flag = flag ? flag->next : NULL;
    }
    memcpy(vae.mean, sl_wan_latent_mean, sizeof vae.mean);
    memcpy(vae.std, sl_wan_latent_std, sizeof vae.std);
    read_numbers(config, "mean", vae.mean, 16);
    read_numbers(config, "std", vae.std, 16);
    return vae;
}

sl_status golden_make_spec(sl_component_spec *spec, sl_component_kind kind, sl_precision precision,
                           const void *config, sl_error *err)
{
    *spec = (sl_component_spec){ .kind = kind, .precision = precision };
    switch (kind) {
    case SL_COMPONENT_TEXT_ENCODER:
        spec->config.t5 = *(const sl_t5_config *)config;
        return sl_t5_config_check(&spec->config.t5, err);
    case SL_COMPONENT_VAE:
        spec->config.vae = *(const sl_vae_config *)config;
        return sl_vae_config_check(&spec->config.vae, err);
    default:
        spec->config.dit = *(const sl_dit_config *)config;
        return sl_dit_config_check(&spec->config.dit, err);
    }
}

/* The image lives as long as the case. */
static sl_status load_streamed(golden_case *c, sl_component_spec *spec, const sl_ckpt *ckpt,
                               sl_component **out, sl_error *err)
{
    const size_t image_bytes = sl_component_image_bytes(spec);
    unsigned char *image = golden_alloc(c, (int64_t)image_bytes + 64, 1, err);
    sl_status status;

    if (!image)
        return SL_ERR_NO_MEMORY;
    image += -(uintptr_t)image & 63;
    spec->mode = SL_MODE_STREAMED;
    status = sl_component_fill_image(image, image_bytes, spec, c->env->exec, ckpt, err);
    if (status == SL_OK)
        status = sl_component_load_image(out, spec, c->env->device, c->env->exec, image,
                                         image_bytes, err);
    return status;
}

sl_status golden_load(golden_case *c, const char *file, sl_component_kind kind,
                      sl_precision precision, const void *config, sl_component **out, sl_error *err)
{
    const char *path = golden_path(c, file, err);
    sl_status status = SL_OK;
    sl_ckpt *ckpt = NULL;
    sl_component_spec spec;

    if (!path)
        return SL_ERR_NO_MEMORY;
    GOLDEN_TRY(golden_make_spec(&spec, kind, precision, config, err));
    GOLDEN_TRY(sl_ckpt_open(&ckpt, path, err));
    if (c->env->streamed && sl_component_can_stream(kind))
        status = load_streamed(c, &spec, ckpt, out, err);
    else
        status = sl_component_load(out, &spec, c->env->device, c->env->exec, ckpt, err);
done:
    sl_ckpt_close(ckpt);
    return status;
}

bool golden_stored_bf16(golden_case *c, const char *file)
{
    static const char *const telling[] = { "patch_embedding.weight", "token_embedding.weight",
                                           "decoder.conv1.weight" };
    const char *path = golden_path(c, file, NULL);
    bool stored = false;
    sl_ckpt *ckpt = NULL;

    if (!path || sl_ckpt_open(&ckpt, path, NULL) != SL_OK)
        return false;
    for (size_t i = 0; i < SL_COUNT(telling); i++) {
        const sl_ckpt_tensor *t = sl_ckpt_find(ckpt, telling[i]);
        stored = stored || (t && t->tensor.dtype == SL_BF16);
    }
    sl_ckpt_close(ckpt);
    return stored;
}
