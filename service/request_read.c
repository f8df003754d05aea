#include "service/request_read.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* --- words --- */

sl_precision sl_precision_from_pb(Sluice__V1__Precision precision)
{
    switch (precision) {
    case SLUICE__V1__PRECISION__F32:
        return SL_PRECISION_F32;
    case SLUICE__V1__PRECISION__INT8:
        return SL_PRECISION_INT8;
    case SLUICE__V1__PRECISION__FP8:
        return SL_PRECISION_FP8;
    default:
        return SL_PRECISION_BF16;
    }
}

Sluice__V1__Precision sl_precision_to_pb(sl_precision precision)
{
    switch (precision) {
    case SL_PRECISION_F32:
        return SLUICE__V1__PRECISION__F32;
    case SL_PRECISION_INT8:
        return SLUICE__V1__PRECISION__INT8;
    case SL_PRECISION_FP8:
        return SLUICE__V1__PRECISION__FP8;
    default:
        return SLUICE__V1__PRECISION__BF16;
    }
}

sl_media_format sl_format_from_pb(Sluice__V1__OutputFormat format)
{
    switch (format) {
    case SLUICE__V1__OUTPUT_FORMAT__Y4M:
        return SL_MEDIA_Y4M;
    case SLUICE__V1__OUTPUT_FORMAT__PNG:
        return SL_MEDIA_PNG;
    case SLUICE__V1__OUTPUT_FORMAT__LATENT:
        return SL_MEDIA_LATENT;
    default:
        return SL_MEDIA_MP4;
    }
}

Sluice__V1__OutputFormat sl_format_to_pb(sl_media_format format)
{
    switch (format) {
    case SL_MEDIA_Y4M:
        return SLUICE__V1__OUTPUT_FORMAT__Y4M;
    case SL_MEDIA_PNG:
        return SLUICE__V1__OUTPUT_FORMAT__PNG;
    case SL_MEDIA_LATENT:
        return SLUICE__V1__OUTPUT_FORMAT__LATENT;
    default:
        return SLUICE__V1__OUTPUT_FORMAT__MP4;
    }
}

/* The wire's values are one above the engine's, behind the default. */
static_assert(SLUICE__V1__ATTENTION__DENSE == SL_ATTENTION_DENSE + 1 &&
                  SLUICE__V1__ATTENTION__SAGESLA == SL_ATTENTION_SAGESLA + 1,
              "attention on the wire");
static_assert(SLUICE__V1__SAMPLER__SDE == SL_SAMPLER_SDE + 1 &&
                  SLUICE__V1__SAMPLER__UNIPC == SL_SAMPLER_UNIPC + 1,
              "samplers on the wire");
static_assert(SLUICE__V1__DIALECT__TURBO == SL_DIALECT_TURBO + 1 &&
                  SLUICE__V1__DIALECT__OFFICIAL == SL_DIALECT_OFFICIAL + 1,
              "dialects on the wire");
static_assert(SLUICE__V1__LAYER_NORM__EXACT == SL_LAYER_NORM_EXACT + 1 &&
                  SLUICE__V1__LAYER_NORM__TURBO_COMPAT == SL_LAYER_NORM_TURBO_COMPAT + 1,
              "norms on the wire");

/* --- from the wire --- */

sl_precision sl_request_precision(Sluice__V1__Precision precision, const sl_model_info *info)
{
    if (!precision && info->layout == SL_LAYOUT_TURBO_QUANT)
        return SL_PRECISION_INT8;
    return sl_precision_from_pb(precision);
}

sl_status sl_request_check_precision(sl_precision precision, const sl_model_info *info,
                                     sl_error *err)
{
    if (info->layout == SL_LAYOUT_TURBO_QUANT && precision != SL_PRECISION_INT8)
        return sl_fail(err, SL_ERR_INVALID,
                       "the linears of model \"%s\" are int8 in its files, which %s cannot be made "
                       "of; the nearest is int8",
                       info->name, sl_precision_name(precision));
    return SL_OK;
}

static void set_int(int *out, int32_t value)
{
    if (value != 0)
        *out = value;
}

static void set_double(double *out, double value)
{
    if (value != 0.0)
        *out = value;
}

/* What the request says; the rest of *out stays. */
static void read_fields(sl_t2v_request *out, const Sluice__V1__GenerateRequest *pb)
{
    out->part = pb->latent_of[0]                                  ? SL_PART_DECODE
                : pb->output == SLUICE__V1__OUTPUT_FORMAT__LATENT ? SL_PART_LATENT
                                                                  : SL_PART_ALL;
    set_int(&out->width, pb->width);
    set_int(&out->height, pb->height);
    set_int(&out->frames, pb->frames);
    set_int(&out->steps, pb->steps);
    set_double(&out->sigma_max, pb->sigma_max);
    set_double(&out->shift, pb->shift);
    set_double(&out->guidance, pb->guidance);
    set_double(&out->guidance_low, pb->guidance);
    set_double(&out->guidance_low, pb->guidance_low);
    set_double(&out->boundary, pb->boundary);
    set_double(&out->topk_ratio, pb->topk);
    out->seed = pb->seed;
    out->precision = sl_precision_from_pb(pb->precision);
    if (pb->attention)
        out->attention = (sl_attention_mode)(pb->attention - 1);
    if (pb->dialect)
        out->dialect = (sl_dialect)(pb->dialect - 1);
    if (pb->layer_norm)
        out->layer_norm = (sl_layer_norm_mode)(pb->layer_norm - 1);
    if (pb->vae_precision)
        out->vae_precision = sl_precision_from_pb(pb->vae_precision);
}

sl_t2v_request sl_request_read(const Sluice__V1__GenerateRequest *pb, const sl_model_info *info)
{
    const bool distilled = info->sparse_tuned || info->synthetic;
    const sl_sampler_mode mode = pb->sampler ? (sl_sampler_mode)(pb->sampler - 1)
                                 : distilled ? SL_SAMPLER_SDE
                                             : SL_SAMPLER_UNIPC;
    sl_t2v_request out = mode == SL_SAMPLER_UNIPC ? sl_t2v_request_official(info->arch)
                                                  : sl_t2v_request_default(info->arch);

    out.mode = mode;
    out.attention = info->sparse_tuned ? SL_ATTENTION_SLA : SL_ATTENTION_DENSE;
    out.dialect = distilled ? SL_DIALECT_TURBO : SL_DIALECT_OFFICIAL;
    read_fields(&out, pb);
    out.precision = sl_request_precision(pb->precision, info);
    return out;
}

sl_t2v_request sl_request_read_stored(const Sluice__V1__GenerateRequest *pb)
{
    sl_t2v_request out = { .mode =
                               pb->sampler ? (sl_sampler_mode)(pb->sampler - 1) : SL_SAMPLER_SDE };

    read_fields(&out, pb);
    return out;
}

/* --- to the wire --- */

void sl_request_write(Sluice__V1__GenerateRequest *pb, const sl_t2v_request *request,
                      const sl_arch *arch)
{
    pb->width = request->width;
    pb->height = request->height;
    pb->frames = request->frames;
    pb->steps = request->steps;
    pb->sampler = (Sluice__V1__Sampler)(request->mode + 1);
    pb->seed = request->seed;
    pb->precision = sl_precision_to_pb(request->precision);
    pb->attention = (Sluice__V1__Attention)(request->attention + 1);
    pb->dialect = (Sluice__V1__Dialect)(request->dialect + 1);
    pb->layer_norm = (Sluice__V1__LayerNorm)(request->layer_norm + 1);
    pb->vae_precision = sl_precision_to_pb(request->vae_precision);
    if (request->attention != SL_ATTENTION_DENSE)
        pb->topk = request->topk_ratio;
    if (arch->expert_count == 2)
        pb->boundary = request->boundary;
    if (arch->task == SL_TASK_I2V)
        pb->sizing = SLUICE__V1__SIZING__FIXED; /* the image's size has been looked at */
    if (request->mode != SL_SAMPLER_UNIPC) {
        pb->sigma_max = request->sigma_max;
        return;
    }
    pb->shift = request->shift;
    pb->guidance = request->guidance;
    if (arch->expert_count == 2)
        pb->guidance_low = request->guidance_low;
}

/* --- checking --- */

bool sl_request_id_valid(const char *id)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                  "0123456789._-";
    const size_t length = strlen(id);

    return length > 0 && length <= 64 && strspn(id, allowed) == length;
}

/* Fields that were given and would not be looked at: whoever gave them expects
 * something that will not happen. */
static sl_status check_misplaced(const Sluice__V1__GenerateRequest *pb,
                                 const sl_t2v_request *request, const sl_arch *arch,
                                 sl_request_problem *out, sl_error *err)
{
    const bool unipc = request->mode == SL_SAMPLER_UNIPC, two = arch->expert_count == 2;
    const bool from_image = arch->task == SL_TASK_I2V;
    const struct {
        bool given, fits;
        const char *field, *why;
    } rules[] = {
        { pb->sigma_max != 0.0, !unipc, "sigma_max", "is for sde and ode, not for unipc" },
        { pb->shift != 0.0, unipc, "shift", "is for the sampler unipc" },
        { pb->guidance != 0.0, unipc, "guidance", "is for the sampler unipc" },
        { pb->guidance_low != 0.0, unipc, "guidance_low", "is for the sampler unipc" },
        { pb->guidance_low != 0.0, two, "guidance_low", "is for models with two experts" },
        { pb->negative_prompt[0] != '\0', unipc, "negative_prompt", "is for the sampler unipc" },
        { pb->negative_prompt[0] != '\0', request->guidance != 1.0 || request->guidance_low != 1.0,
          "negative_prompt", "says nothing without guidance: it is 1" },
        { pb->boundary != 0.0, two, "boundary", "is for models with two experts" },
        { pb->topk != 0.0, request->attention != SL_ATTENTION_DENSE, "topk",
          "is for sla and sagesla: dense attention keeps every block" },
        { pb->image_id[0] != '\0', from_image, "image_id",
          "is for models that make videos from images" },
        { pb->image_id[0] != '\0', pb->image.len == 0, "image_id",
          "and image cannot both be given" },
        { pb->image.len != 0, from_image, "image", "is for models that make videos from images" },
        { pb->sizing == SLUICE__V1__SIZING__ADAPTIVE, from_image, "sizing",
          "adaptive is for models that make videos from images" },
    };

    for (size_t i = 0; i < SL_COUNT(rules); i++)
        if (rules[i].given && !rules[i].fits) {
            out->field = rules[i].field;
            return sl_fail(err, SL_ERR_INVALID, "%s %s", rules[i].field, rules[i].why);
        }
    return SL_OK;
}

/* Which field a failed check is about: the first that makes it fail, beginning
 * with a request of defaults. */
static const char *find_field(const sl_t2v_request *request, const sl_arch *arch)
{
#define FIELD(name, member)                                                                        \
    {                                                                                              \
        name, offsetof(sl_t2v_request, member), sizeof((sl_t2v_request *)0)->member                \
    }
    static const struct {
        const char *name;
        size_t offset, bytes;
    } fields[] = {
        FIELD("width", width),
        FIELD("height", height),
        FIELD("frames", frames),
        FIELD("steps", steps),
        FIELD("sigma_max", sigma_max),
        FIELD("shift", shift),
        FIELD("guidance", guidance),
        FIELD("guidance_low", guidance_low),
        FIELD("boundary", boundary),
        FIELD("precision", precision),
        FIELD("attention", attention),
        FIELD("topk", topk_ratio),
        FIELD("dialect", dialect),
        FIELD("layer_norm", layer_norm),
        FIELD("vae_precision", vae_precision),
    };
#undef FIELD
    sl_t2v_request one = request->mode == SL_SAMPLER_UNIPC ? sl_t2v_request_official(arch)
                                                           : sl_t2v_request_default(arch);

    one.mode = request->mode;
    for (size_t i = 0; i < SL_COUNT(fields); i++) {
        sl_error ignored = { .status = SL_OK };
        memcpy((char *)&one + fields[i].offset, (const char *)request + fields[i].offset,
               fields[i].bytes);
        if (sl_t2v_request_check(&one, arch, &ignored) != SL_OK)
            return fields[i].name;
    }
    return NULL;
}

sl_status sl_request_check(const Sluice__V1__GenerateRequest *pb, const sl_t2v_request *request,
                           const sl_arch *arch, sl_request_problem *out, sl_error *err)
{
    static const char says[] = "the nearest is ";
    *out = (sl_request_problem){ .field = NULL };
    sl_status status = check_misplaced(pb, request, arch, out, err);

    if (status != SL_OK)
        return status;
    status = sl_t2v_request_check(request, arch, err);
    if (status == SL_OK)
        return SL_OK;
    const char *nearest = strstr(err->message, says);
    out->field = find_field(request, arch);
    if (nearest)
        snprintf(out->nearest, sizeof out->nearest, "%s", nearest + sizeof says - 1);
    return status;
}
