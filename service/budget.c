#include "service/budget.h"

#include "base/size.h"
#include "engine/model/weights.h"

#include <stdio.h>
#include <string.h>

/* ---- facts ---- */

static sl_status add_elements(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    uint64_t *sum = arg;
    uint64_t count = 1;

    (void)err;
    if (spec->form == SL_FORM_FILE_ONLY || spec->form == SL_FORM_DEVICE_ONLY)
        return SL_OK;
    for (int i = 0; i < spec->rank; i++)
        count *= (uint64_t)spec->dim[i]; /* checked dimensions: far below 2^64 */
    *sum += count;
    return SL_OK;
}

sl_status sl_budget_facts_make(sl_budget_facts *out, const char *model, const sl_arch *arch,
                               unsigned components, sl_precision precision,
                               const sl_t2v_request *request, sl_error *err)
{
    const unsigned high = 1u << SL_COMPONENT_DIT_HIGH, low = 1u << SL_COMPONENT_DIT_LOW;
    const unsigned any_dit = high | low | 1u << SL_COMPONENT_DIT;
    sl_budget_facts facts = { .precision = precision };

    snprintf(facts.model, sizeof facts.model, "%s", model);
    snprintf(facts.arch, sizeof facts.arch, "%s", arch->name);
    sl_status status = sl_dit_config_check(&arch->dit, err);
    if (status == SL_OK && (components & any_dit))
        status = sl_dit_visit(NULL, &arch->dit, SL_LAYOUT_OFFICIAL, precision, add_elements,
                              &facts.dit_params, err);
    if (status != SL_OK)
        return sl_error_prefix(err, "model \"%s\"", model);
    facts.dit_whole = (components & any_dit) != 0;
    facts.experts = ((components & high) != 0) + ((components & low) != 0);
    if (request) {
        facts.width = request->width;
        facts.height = request->height;
        facts.frames = request->frames;
        facts.attention = request->attention;
    }
    *out = facts;
    return SL_OK;
}

/* ---- the default table ---- */

#define UNQUANTISED (1u << SL_PRECISION_F32 | 1u << SL_PRECISION_BF16)

static const sl_budget_row default_rows[] = {
    {
        .name = "up to 16GiB",
        .kind = SL_DEVICE_CUDA,
        .from_bytes = 0,
        .to_bytes = 16 * SL_GIB,
        .hint = "1.3B at 480p, quantised linears",
        .rule_count = 1,
        .rules = { { .text = "a 14B-class DiT is not resident as a whole (it may be streamed)",
                     .dit_params_from = SL_BUDGET_14B_CLASS,
                     .dit_whole = true } },
    },
    {
        .name = "above 16GiB, below 40GiB",
        .kind = SL_DEVICE_CUDA,
        .from_bytes = 16 * SL_GIB + 1,
        .to_bytes = 40 * SL_GIB - 1,
        .hint = "1.3B at 720p; 14B at 480p, quantised",
        .rule_count = 1,
        .rules = { { .text = "two 14B-class experts of a model are not resident at once",
                     .dit_params_from = SL_BUDGET_14B_CLASS,
                     .experts_together = true } },
    },
    {
        .name = "40GiB to below 80GiB",
        .kind = SL_DEVICE_CUDA,
        .from_bytes = 40 * SL_GIB,
        .to_bytes = 80 * SL_GIB - 1,
        .hint = "14B at 720p; A14B",
        .rule_count = 1,
        .rules = { { .text = "the linears of 14B-class DiTs are quantised",
                     .dit_params_from = SL_BUDGET_14B_CLASS,
                     .precisions = UNQUANTISED } },
    },
    {
        .name = "80GiB and more",
        .kind = SL_DEVICE_CUDA,
        .from_bytes = 80 * SL_GIB,
        .to_bytes = SIZE_MAX,
        .hint = "everything",
    },
};

void sl_budget_table_default(sl_budget_table *out)
{
    memset(out, 0, sizeof *out);
    memcpy(out->rows, default_rows, sizeof default_rows);
    out->row_count = SL_COUNT(default_rows);
}

/* ---- looking things up ---- */

const sl_budget_row *sl_budget_find_row(const sl_budget_table *table, sl_device_kind kind,
                                        size_t device_bytes)
{
    for (int i = 0; i < table->row_count; i++) {
        const sl_budget_row *row = &table->rows[i];
        if (row->kind == kind && device_bytes >= row->from_bytes && device_bytes <= row->to_bytes)
            return row;
    }
    return NULL;
}

static bool rule_forbids(const sl_budget_rule *rule, const sl_budget_facts *facts)
{
    if (rule->model[0] && strcmp(rule->model, facts->model) != 0 &&
        strcmp(rule->model, facts->arch) != 0)
        return false;
    return facts->dit_params >= rule->dit_params_from &&
           (rule->precisions == 0 || (rule->precisions >> facts->precision & 1)) &&
           (rule->attentions == 0 ||
            (facts->width > 0 && (rule->attentions >> facts->attention & 1))) &&
           (!rule->dit_whole || facts->dit_whole) &&
           (!rule->experts_together || facts->experts > 1) &&
           (rule->pixels_above == 0 ||
            (int64_t)facts->width * facts->height > rule->pixels_above) &&
           (rule->frames_above == 0 || facts->frames > rule->frames_above);
}

const sl_budget_rule *sl_budget_find_rule(const sl_budget_row *row, const sl_budget_facts *facts)
{
    for (int i = 0; row && i < row->rule_count; i++)
        if (rule_forbids(&row->rules[i], facts))
            return &row->rules[i];
    return NULL;
}
