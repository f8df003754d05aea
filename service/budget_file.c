/* budget.yaml: the table as the operator writes it.
 *
 *     rows:
 *       - name: 40GiB to below 80GiB
 *         kind: cuda
 *         from: 40GiB            # device memory: from (included) or above,
 *         below: 80GiB           # to (included) or below; absent: no bound
 *         hint: 14B at 720p
 *         forbid:                # each entry: all of its conditions must hold
 *           - text: the linears of 14B-class DiTs are quantised
 *             dit_params_from: 10000000000
 *             precisions: [f32, bf16]
 */
#include "service/budget.h"

#include "base/config.h"
#include "base/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *text, *model;
    uint64_t dit_params_from, pixels_above;
    uint32_t frames_above;
    char **precisions, **attentions;
    uint32_t precisions_count, attentions_count;
    int dit_whole, experts_together;
} file_rule;

typedef struct {
    char *name, *from, *above, *to, *below, *hint;
    int kind;
    file_rule *forbid;
    uint32_t forbid_count;
} file_row;

typedef struct {
    file_row *rows;
    uint32_t rows_count;
} file_table;

static const cyaml_strval_t kind_words[] = {
    { "cpu", SL_DEVICE_CPU },
    { "cuda", SL_DEVICE_CUDA },
};
static const cyaml_strval_t yes_words[] = {
    { "no", 0 },
    { "false", 0 },
    { "yes", 1 },
    { "true", 1 },
};
static const cyaml_schema_value_t word_value = { CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1,
                                                                    32) };

#define TEXT_FIELD(type, key, flags, most)                                                         \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | (flags), type, key, 1, (most))
#define YES_FIELD(key)                                                                             \
    CYAML_FIELD_ENUM(#key, CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT, file_rule, key, yes_words,     \
                     SL_COUNT(yes_words))

static const cyaml_schema_field_t rule_fields[] = {
    TEXT_FIELD(file_rule, text, 0, SL_BUDGET_TEXT_BYTES - 1),
    TEXT_FIELD(file_rule, model, CYAML_FLAG_OPTIONAL, SL_BUDGET_NAME_BYTES - 1),
    CYAML_FIELD_UINT("dit_params_from", CYAML_FLAG_OPTIONAL, file_rule, dit_params_from),
    CYAML_FIELD_SEQUENCE("precisions", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_rule,
                         precisions, &word_value, 1, SL_PRECISION_COUNT),
    CYAML_FIELD_SEQUENCE("attentions", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_rule,
                         attentions, &word_value, 1, SL_ATTENTION_COUNT),
    YES_FIELD(dit_whole),
    YES_FIELD(experts_together),
    CYAML_FIELD_UINT("pixels_above", CYAML_FLAG_OPTIONAL, file_rule, pixels_above),
    CYAML_FIELD_UINT("frames_above", CYAML_FLAG_OPTIONAL, file_rule, frames_above),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t rule_value = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, file_rule,
                                                                     rule_fields) };

static const cyaml_schema_field_t row_fields[] = {
    TEXT_FIELD(file_row, name, 0, SL_BUDGET_NAME_BYTES - 1),
    CYAML_FIELD_ENUM("kind", CYAML_FLAG_STRICT, file_row, kind, kind_words, SL_COUNT(kind_words)),
    TEXT_FIELD(file_row, from, CYAML_FLAG_OPTIONAL, 32),
    TEXT_FIELD(file_row, above, CYAML_FLAG_OPTIONAL, 32),
    TEXT_FIELD(file_row, to, CYAML_FLAG_OPTIONAL, 32),
    TEXT_FIELD(file_row, below, CYAML_FLAG_OPTIONAL, 32),
    TEXT_FIELD(file_row, hint, CYAML_FLAG_OPTIONAL, SL_BUDGET_TEXT_BYTES - 1),
    CYAML_FIELD_SEQUENCE("forbid", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_row, forbid,
                         &rule_value, 0, SL_BUDGET_MAX_RULES),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t row_value = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, file_row,
                                                                    row_fields) };

static const cyaml_schema_field_t table_fields[] = {
    CYAML_FIELD_SEQUENCE("rows", CYAML_FLAG_POINTER, file_table, rows, &row_value, 0,
                         SL_BUDGET_MAX_ROWS),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = { CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, file_table,
                                                                 table_fields) };

/* ---- what a schema cannot check ---- */

/* One end of the range: `included` or `excluded` says where; neither: as it
 * is.  step: what makes an excluded bound an included one. */
static sl_status take_bound(const sl_config *config, int row, const char *included_key,
                            const char *included, const char *excluded_key, const char *excluded,
                            int step, size_t *out, sl_error *err)
{
    const char *text = included ? included : excluded;
    char key[64];

    if (!text)
        return SL_OK;
    snprintf(key, sizeof key, "rows[%d].%s", row + 1, included ? included_key : excluded_key);
    if (included && excluded) {
        sl_fail(err, SL_ERR_DATA, "%s and %s cannot both be given", included_key, excluded_key);
        return sl_config_blame(config, key, err);
    }
    if (!sl_size_parse(text, out)) {
        sl_fail(err, SL_ERR_DATA, "\"%s\" is not a size such as 16GiB", text);
        return sl_config_blame(config, key, err);
    }
    if (excluded)
        *out = step > 0 ? *out + (*out < SIZE_MAX) : *out - 1;
    return SL_OK;
}

static sl_status blame_word(const sl_config *config, int row, int number, const char *list,
                            uint32_t i, const char *what, const char *word, sl_error *err)
{
    char key[96];

    snprintf(key, sizeof key, "rows[%d].forbid[%d].%s[%u]", row + 1, number + 1, list, i + 1);
    sl_fail(err, SL_ERR_DATA, "\"%s\" is no %s", word, what);
    return sl_config_blame(config, key, err);
}

static sl_status take_sets(sl_budget_rule *out, const sl_config *config, const file_rule *rule,
                           int row, int number, sl_error *err)
{
    for (uint32_t i = 0; i < rule->precisions_count; i++) {
        sl_precision precision;
        if (!sl_precision_parse(rule->precisions[i], &precision))
            return blame_word(config, row, number, "precisions", i, "precision",
                              rule->precisions[i], err);
        out->precisions |= 1u << precision;
    }
    for (uint32_t i = 0; i < rule->attentions_count; i++) {
        sl_attention_mode mode;
        if (!sl_attention_parse(rule->attentions[i], &mode))
            return blame_word(config, row, number, "attentions", i, "attention",
                              rule->attentions[i], err);
        out->attentions |= 1u << mode;
    }
    return SL_OK;
}

static sl_status take_rule(sl_budget_rule *out, const sl_config *config, const file_rule *rule,
                           int row, int number, sl_error *err)
{
    char key[64];

    snprintf(out->text, sizeof out->text, "%s", rule->text);
    snprintf(out->model, sizeof out->model, "%s", rule->model ? rule->model : "");
    out->dit_params_from = rule->dit_params_from;
    out->dit_whole = rule->dit_whole != 0;
    out->experts_together = rule->experts_together != 0;
    if (rule->pixels_above > INT64_MAX || rule->frames_above > INT32_MAX) {
        snprintf(key, sizeof key, "rows[%d].forbid[%d]", row + 1, number + 1);
        sl_fail(err, SL_ERR_DATA, "pixels_above or frames_above is too large");
        return sl_config_blame(config, key, err);
    }
    out->pixels_above = (int64_t)rule->pixels_above;
    out->frames_above = (int)rule->frames_above;
    return take_sets(out, config, rule, row, number, err);
}

static sl_status check_range(const sl_config *config, const sl_budget_table *table, int row,
                             sl_error *err)
{
    const sl_budget_row *r = &table->rows[row];
    char key[64];

    snprintf(key, sizeof key, "rows[%d]", row + 1);
    if (r->from_bytes > r->to_bytes) {
        sl_fail(err, SL_ERR_DATA, "the range from %zu to %zu bytes is empty", r->from_bytes,
                r->to_bytes);
        return sl_config_blame(config, key, err);
    }
    for (int i = 0; i < row; i++) {
        const sl_budget_row *other = &table->rows[i];
        if (other->kind == r->kind && other->from_bytes <= r->to_bytes &&
            r->from_bytes <= other->to_bytes) {
            sl_fail(err, SL_ERR_DATA, "overlaps row \"%s\"", other->name);
            return sl_config_blame(config, key, err);
        }
    }
    return SL_OK;
}

static sl_status take_row(sl_budget_table *table, const sl_config *config, const file_row *row,
                          int number, sl_error *err)
{
    sl_budget_row *out = &table->rows[number];

    snprintf(out->name, sizeof out->name, "%s", row->name);
    snprintf(out->hint, sizeof out->hint, "%s", row->hint ? row->hint : "");
    out->kind = (sl_device_kind)row->kind;
    out->to_bytes = SIZE_MAX;
    sl_status status = take_bound(config, number, "from", row->from, "above", row->above, 1,
                                  &out->from_bytes, err);
    if (status == SL_OK)
        status =
            take_bound(config, number, "to", row->to, "below", row->below, -1, &out->to_bytes, err);
    if (status == SL_OK)
        status = check_range(config, table, number, err);
    for (uint32_t i = 0; i < row->forbid_count && status == SL_OK; i++)
        status =
            take_rule(&out->rules[out->rule_count++], config, &row->forbid[i], number, (int)i, err);
    return status;
}

static sl_status take_rows(sl_budget_table *out, const sl_config *config, sl_error *err)
{
    const file_table *file = sl_config_values(config);
    sl_budget_table *table = calloc(1, sizeof *table);
    sl_status status = SL_OK;

    if (!table)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a budget table");
    for (uint32_t i = 0; i < file->rows_count && status == SL_OK; i++)
        status = take_row(table, config, &file->rows[i], table->row_count++, err);
    if (status == SL_OK)
        *out = *table;
    free(table);
    return status;
}

sl_status sl_budget_table_load(sl_budget_table *out, const char *path, sl_error *err)
{
    sl_config *config = NULL;
    sl_status status = sl_config_open(&config, path, &schema, err);

    if (status == SL_OK)
        status = take_rows(out, config, err);
    sl_config_close(config);
    return status;
}

sl_status sl_budget_table_parse(sl_budget_table *out, const char *name, const char *text,
                                size_t length, sl_error *err)
{
    sl_config *config = NULL;
    sl_status status = sl_config_parse(&config, name, text, length, &schema, err);

    if (status == SL_OK)
        status = take_rows(out, config, err);
    sl_config_close(config);
    return status;
}
