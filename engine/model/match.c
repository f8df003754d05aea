#include "engine/model/match.h"

#include "engine/model/names.h"

#include <stdio.h>
#include <stdlib.h>

sl_status sl_component_visit(void *weights, const sl_component_spec *spec, sl_layout layout,
                             sl_weight_visitor *visitor, void *arg, sl_error *err)
{
    sl_status status;

    if (spec->mode == SL_MODE_STREAMED && !sl_component_can_stream(spec->kind))
        return sl_fail(err, SL_ERR_INVALID, "%s cannot be streamed: it has no equal blocks",
                       sl_component_name(spec->kind));
    switch (spec->kind) {
    case SL_COMPONENT_TEXT_ENCODER:
        status = sl_t5_config_check(&spec->config.t5, err);
        return status != SL_OK
                   ? status
                   : sl_t5_visit(weights, &spec->config.t5, spec->precision, visitor, arg, err);
    case SL_COMPONENT_DIT:
    case SL_COMPONENT_DIT_HIGH:
    case SL_COMPONENT_DIT_LOW:
        status = sl_dit_config_check(&spec->config.dit, err);
        if (status == SL_OK)
            status = sl_dit_precision_check(&spec->config.dit, spec->precision, err);
        return status != SL_OK ? status
                               : sl_dit_visit(weights, &spec->config.dit, layout, spec->precision,
                                              visitor, arg, err);
    case SL_COMPONENT_VAE:
        status = sl_vae_config_check(&spec->config.vae, err);
        return status != SL_OK
                   ? status
                   : sl_vae_visit(weights, &spec->config.vae, spec->precision, visitor, arg, err);
    case SL_COMPONENT_COUNT:
        break;
    }
    return sl_fail(err, SL_ERR_INVALID, "component kind %d is unknown", (int)spec->kind);
}

static void describe_shape(const sl_tensor *t, char *buf, size_t buf_bytes)
{
    size_t used = (size_t)snprintf(buf, buf_bytes, "[");

    for (int i = 0; i < t->rank && used < buf_bytes; i++)
        used += (size_t)snprintf(buf + used, buf_bytes - used, "%s%lld", i ? ", " : "",
                                 (long long)t->dim[i]);
    if (used < buf_bytes)
        snprintf(buf + used, buf_bytes - used, "]");
}

static bool is_float(sl_dtype dtype)
{
    return dtype == SL_F32 || dtype == SL_BF16 || dtype == SL_F16 || dtype == SL_F64;
}

const sl_ckpt_tensor *sl_weight_match(const sl_ckpt *ckpt, const sl_weight_spec *spec, char *why,
                                      size_t why_bytes)
{
    const sl_ckpt_tensor *found = sl_names_find(ckpt, spec->name);
    const sl_tensor want = sl_tensor_make(NULL, spec->file_dtype, spec->rank, spec->dim);
    char expected[160], has[160], name[SL_NAME_BYTES];

    sl_names_in_file(ckpt, spec->name, name);
    if (!found) {
        snprintf(why, why_bytes, "tensor \"%s\" is missing", name);
        return NULL;
    }
    if (!sl_tensor_same_shape(&found->tensor, &want) &&
        !(spec->form == SL_FORM_PLAIN && sl_tensor_same_shape(&found->tensor, spec->slot))) {
        describe_shape(&want, expected, sizeof expected);
        describe_shape(&found->tensor, has, sizeof has);
        snprintf(why, why_bytes, "tensor \"%s\": expected %s, file has %s", name, expected, has);
        return NULL;
    }
    if (spec->form == SL_FORM_FILE_ONLY)
        return found;
    if (spec->file_dtype == SL_I8 ? found->tensor.dtype != SL_I8 : !is_float(found->tensor.dtype)) {
        snprintf(why, why_bytes, "tensor \"%s\": expected %s, file has %s", name,
                 spec->file_dtype == SL_I8 ? "I8" : "F32, BF16, F16 or F64",
                 sl_dtype_name(found->tensor.dtype));
        return NULL;
    }
    return found;
}

sl_layout sl_ckpt_layout(const sl_ckpt *ckpt)
{
    if (sl_ckpt_find(ckpt, "blocks.0.self_attn.q.int8_weight"))
        return SL_LAYOUT_TURBO_QUANT;
    if (sl_ckpt_find(ckpt, "blocks.0.self_attn.attn_op.local_attn.proj_l.weight"))
        return SL_LAYOUT_TURBO;
    return SL_LAYOUT_OFFICIAL;
}

typedef struct {
    const sl_ckpt *ckpt;
    bool *known; /* by index in the checkpoint */
} mark_known;

static sl_status mark_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    mark_known *m = arg;
    const sl_ckpt_tensor *found = sl_names_find(m->ckpt, spec->name);

    (void)err;
    if (found)
        m->known[found - sl_ckpt_get(m->ckpt, 0)] = true;
    return SL_OK;
}

sl_status sl_ckpt_unexpected(const sl_ckpt *ckpt, const sl_component_spec *spec,
                             void (*say)(void *arg, const char *name), void *arg, int64_t *count,
                             sl_error *err)
{
    const int64_t total = sl_ckpt_count(ckpt);
    mark_known m = { .ckpt = ckpt, .known = calloc((size_t)total + 1, sizeof(bool)) };
    sl_status status;

    if (!m.known)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %lld tensor marks",
                       (long long)total);
    status = sl_component_visit(NULL, spec, sl_ckpt_layout(ckpt), mark_visitor, &m, err);
    if (status == SL_OK) {
        *count = 0;
        for (int64_t i = 0; i < total; i++) {
            if (m.known[i] || sl_names_is_extra(ckpt, sl_ckpt_get(ckpt, i)->name))
                continue;
            ++*count;
            if (say)
                say(arg, sl_ckpt_get(ckpt, i)->name);
        }
    }
    free(m.known);
    return status;
}
