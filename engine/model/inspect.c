/* What files are, and everything that is wrong with them, by name: one
 * checkpoint (inspect.h) or a directory (sl_model_dir_inspect). */
#include "engine/model/inspect.h"

#include "engine/model/match.h"
#include "engine/model/model_dir.h"
#include "engine/model/model_probe.h"
#include "engine/model/names.h"
#include "engine/text/tokenizer.h"

#include <stdio.h>

typedef struct {
    void (*say)(void *arg, const char *line);
    void *arg;
    int problems;
    const char *component; /* of which the visitor speaks */
    const sl_ckpt *ckpt;
    bool file_only; /* visit only what is in files but not executed */
} report;

static void problem(report *r, const char *fmt, ...) SL_PRINTF(2, 3);
static void problem(report *r, const char *fmt, ...)
{
    char line[1024];
    va_list va;

    va_start(va, fmt);
    vsnprintf(line, sizeof line, fmt, va);
    va_end(va);
    r->problems++;
    if (r->say)
        r->say(r->arg, line);
}

static sl_status tensor_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    report *r = arg;
    char why[512];

    (void)err;
    if (spec->form == SL_FORM_DEVICE_ONLY || (r->file_only && spec->form != SL_FORM_FILE_ONLY))
        return SL_OK;
    if (!sl_weight_match(r->ckpt, spec, why, sizeof why))
        problem(r, "%s: %s", r->component, why);
    return SL_OK;
}

static void say_unexpected(void *arg, const char *name)
{
    report *r = arg;

    problem(r, "%s: unexpected tensor \"%s\"", r->component, name);
}

static sl_status inspect_ckpt(report *r, const sl_component_spec *spec, const sl_ckpt *ckpt,
                              sl_error *err)
{
    sl_layout layout;
    int64_t unexpected;
    sl_status status;

    r->ckpt = ckpt;
    r->component = sl_component_name(spec->kind);
    layout = sl_ckpt_layout(ckpt);
    /* What is executed is asked for in the official layout, which takes both
     * forms of the patch embedding; int8 linears exist in theirs only. */
    r->file_only = false;
    status = sl_component_visit(NULL, spec, layout == SL_LAYOUT_TURBO ? SL_LAYOUT_OFFICIAL : layout,
                                tensor_visitor, r, err);
    r->file_only = true;
    if (status == SL_OK && layout == SL_LAYOUT_TURBO)
        status = sl_component_visit(NULL, spec, layout, tensor_visitor, r, err);
    if (status == SL_OK)
        status = sl_ckpt_unexpected(ckpt, spec, say_unexpected, r, &unexpected, err);
    r->ckpt = NULL;
    return status;
}

static sl_status inspect_component(report *r, const sl_component_spec *spec, const char *path,
                                   sl_error *err)
{
    sl_ckpt *ckpt = NULL;
    sl_status status = sl_ckpt_open(&ckpt, path, err);

    if (status == SL_OK)
        status = inspect_ckpt(r, spec, ckpt, err);
    sl_ckpt_close(ckpt);
    return status;
}

sl_status sl_ckpt_inspect(const char *path, void (*say)(void *arg, const char *line), void *arg,
                          int *problems, sl_error *err)
{
    report r = { .say = say, .arg = arg };
    sl_component_spec spec;
    sl_ckpt *ckpt = NULL;
    sl_status status = sl_ckpt_open(&ckpt, path, err);

    if (status == SL_OK)
        status = sl_probe_spec(ckpt, &spec, err);
    if (status == SL_OK)
        status = inspect_ckpt(&r, &spec, ckpt, err);
    if (status == SL_OK)
        *problems = r.problems;
    sl_ckpt_close(ckpt);
    return status;
}

const char *sl_layout_name(sl_layout layout)
{
    static const char *const names[] = { [SL_LAYOUT_OFFICIAL] = "official",
                                         [SL_LAYOUT_TURBO] = "turbo",
                                         [SL_LAYOUT_TURBO_QUANT] = "turbo-quant" };

    SL_ASSERT((size_t)layout < SL_COUNT(names));
    return names[layout];
}

sl_status sl_ckpt_summarise(sl_ckpt_summary *out, const char *path, const sl_component_spec *spec,
                            sl_error *err)
{
    sl_ckpt_summary s = { .tensor_count = 0 };
    sl_ckpt *ckpt = NULL;
    sl_status status = sl_ckpt_open(&ckpt, path, err);

    if (status == SL_OK && spec)
        s.spec = *spec;
    else if (status == SL_OK)
        status = sl_probe_spec(ckpt, &s.spec, err);
    if (status != SL_OK)
        goto done;
    s.naming = sl_names_style(ckpt);
    s.layout = sl_ckpt_layout(ckpt);
    s.tensor_count = sl_ckpt_count(ckpt);
    s.data_bytes = sl_ckpt_data_bytes(ckpt);
    for (int64_t i = 0; i < s.tensor_count; i++) {
        const sl_ckpt_tensor *t = sl_ckpt_get(ckpt, i);

        s.by_dtype[t->tensor.dtype].tensor_count++;
        s.by_dtype[t->tensor.dtype].data_bytes += t->size_bytes;
    }
    *out = s;
done:
    sl_ckpt_close(ckpt);
    return status;
}

/* A tokenizer that cannot be read is a problem of the model, not of the call. */
static void inspect_tokenizer(report *r, const sl_model_info *info)
{
    sl_tokenizer *tokenizer = NULL;
    sl_error why = { .status = SL_OK };

    if (!info->tokenizer) {
        problem(r, "tokenizer: no spiece.model");
        return;
    }
    if (sl_tokenizer_open(&tokenizer, info->tokenizer, &why) != SL_OK) {
        problem(r, "tokenizer: %s", why.message);
        return;
    }
    if (sl_tokenizer_vocab_size(tokenizer) > info->arch->t5.vocab)
        problem(r, "tokenizer: %d pieces, the text encoder has %lld rows",
                sl_tokenizer_vocab_size(tokenizer), (long long)info->arch->t5.vocab);
    sl_tokenizer_close(tokenizer);
}

sl_status sl_model_dir_inspect(const sl_model_dir *dir, void (*say)(void *arg, const char *line),
                               void *arg, int *problems, sl_error *err)
{
    const sl_model_info *info = sl_model_dir_info(dir);
    report r = { .say = say, .arg = arg };
    sl_status status = SL_OK;

    for (int kind = 0; kind < SL_COMPONENT_COUNT && status == SL_OK; kind++) {
        const sl_component_kind k = (sl_component_kind)kind;

        if (!sl_arch_has_component(info->arch, k))
            continue;
        if (!info->files[k]) {
            problem(&r, "%s: no checkpoint", sl_component_name(k));
            continue;
        }
        const sl_component_spec spec = sl_component_spec_of(info->arch, k, SL_PRECISION_F32);
        status = inspect_component(&r, &spec, info->files[k], err);
    }
    inspect_tokenizer(&r, info);
    if (status == SL_OK)
        *problems = r.problems;
    return status;
}
