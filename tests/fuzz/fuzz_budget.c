/* fuzz_budget.c - the input is a budget.yaml.  A table that passes keeps its promises. */
#include "service/budget.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_row(const sl_budget_table *table, int i)
{
    const sl_budget_row *row = &table->rows[i];

    SL_ASSERT(memchr(row->name, 0, sizeof row->name) && memchr(row->hint, 0, sizeof row->hint));
    SL_ASSERT(row->from_bytes <= row->to_bytes);
    SL_ASSERT(row->rule_count >= 0 && row->rule_count <= SL_BUDGET_MAX_RULES);
    for (int k = 0; k < i; k++)
        SL_ASSERT(table->rows[k].kind != row->kind || table->rows[k].to_bytes < row->from_bytes ||
                  table->rows[k].from_bytes > row->to_bytes);
    for (int k = 0; k < row->rule_count; k++) {
        SL_ASSERT(memchr(row->rules[k].text, 0, sizeof row->rules[k].text));
        SL_ASSERT(row->rules[k].precisions < 1u << SL_PRECISION_COUNT);
        SL_ASSERT(row->rules[k].attentions < 1u << SL_ATTENTION_COUNT);
        SL_ASSERT(row->rules[k].pixels_above >= 0 && row->rules[k].frames_above >= 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static sl_budget_table table; /* some 60 KiB */
    sl_error err = { .status = SL_OK };
    const sl_status status =
        sl_budget_table_parse(&table, "budget.yaml", (const char *)data, size, &err);

    SL_ASSERT(status == SL_OK || (status == SL_ERR_DATA && err.message[0]));
    if (status != SL_OK)
        return 0;
    SL_ASSERT(table.row_count >= 0 && table.row_count <= SL_BUDGET_MAX_ROWS);
    for (int i = 0; i < table.row_count; i++)
        check_row(&table, i);
    return 0;
}
