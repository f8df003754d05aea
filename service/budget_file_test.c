#include "service/budget.h"

#include "base/size.h"
#include "base/test.h"

#include <string.h>
#include <unistd.h>

static sl_status load_text(sl_budget_table *out, const char *text, sl_error *err)
{
    char path[] = "/tmp/sluice-budget-test-XXXXXX";
    const int fd = mkstemp(path);

    SL_CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    const sl_status status = sl_budget_table_load(out, path, err);
    unlink(path);
    return status;
}

/* The example is the built-in table: neither can change without the other. */
SL_TEST(the_example_is_the_default)
{
    sl_budget_table *want = calloc(1, sizeof *want), *got = calloc(1, sizeof *got);

    SL_CHECK(want && got);
    sl_budget_table_default(want);
    SL_CHECK_OK(sl_budget_table_load(got, SL_SOURCE_DIR "/docs/budget.yaml.example", err));
    SL_CHECK(got->row_count == want->row_count);
    for (int i = 0; i < want->row_count; i++) {
        const sl_budget_row *a = &want->rows[i], *b = &got->rows[i];
        SL_CHECK(strcmp(a->name, b->name) == 0 && strcmp(a->hint, b->hint) == 0);
        SL_CHECK(a->kind == b->kind && a->rule_count == b->rule_count);
        SL_CHECK(a->from_bytes == b->from_bytes && a->to_bytes == b->to_bytes);
        for (int k = 0; k < a->rule_count; k++) {
            const sl_budget_rule *x = &a->rules[k], *y = &b->rules[k];
            SL_CHECK(strcmp(x->text, y->text) == 0 && strcmp(x->model, y->model) == 0);
            SL_CHECK(x->dit_params_from == y->dit_params_from && x->precisions == y->precisions);
            SL_CHECK(x->dit_whole == y->dit_whole && x->experts_together == y->experts_together);
            SL_CHECK(x->pixels_above == y->pixels_above && x->frames_above == y->frames_above);
        }
    }
    free(want);
    free(got);
}

SL_TEST(every_condition_is_read)
{
    sl_budget_table *table = calloc(1, sizeof *table);

    SL_CHECK(table != NULL);
    SL_CHECK_OK(load_text(table,
                          "rows:\n"
                          "  - name: small\n"
                          "    kind: cpu\n"
                          "    above: 1GiB\n"
                          "    to: 8GiB\n"
                          "    forbid:\n"
                          "      - text: no big pictures\n"
                          "        model: tiny\n"
                          "        dit_params_from: 5\n"
                          "        precisions: [bf16]\n"
                          "        attentions: [dense, sagesla]\n"
                          "        dit_whole: true\n"
                          "        experts_together: no\n"
                          "        pixels_above: 399360\n"
                          "        frames_above: 81\n",
                          err));
    const sl_budget_row *row = sl_budget_find_row(table, SL_DEVICE_CPU, SL_GIB + 1);
    SL_CHECK(row && row->to_bytes == 8 * SL_GIB && row->rule_count == 1);
    SL_CHECK(sl_budget_find_row(table, SL_DEVICE_CPU, SL_GIB) == NULL);
    SL_CHECK(sl_budget_find_row(table, SL_DEVICE_CUDA, 2 * SL_GIB) == NULL);
    const sl_budget_rule *rule = &row->rules[0];
    SL_CHECK(strcmp(rule->text, "no big pictures") == 0 && strcmp(rule->model, "tiny") == 0);
    SL_CHECK(rule->dit_params_from == 5 && rule->precisions == 1u << SL_PRECISION_BF16);
    SL_CHECK(rule->attentions == (1u << SL_ATTENTION_DENSE | 1u << SL_ATTENTION_SAGESLA));
    SL_CHECK(rule->dit_whole && !rule->experts_together);
    SL_CHECK(rule->pixels_above == 399360 && rule->frames_above == 81);
    free(table);
}

#define ROW(rest) "rows:\n  - name: r\n    kind: cuda\n" rest

SL_TEST(mistakes_name_their_place)
{
    static const struct {
        const char *text, *place, *reason;
    } cases[] = {
        { ROW("    from: many\n"), "line 4, key \"rows[1].from\"", "\"many\" is not a size" },
        { ROW("    from: 1GiB\n    above: 1GiB\n"), "rows[1].from", "cannot both be given" },
        { ROW("    from: 8GiB\n    to: 4GiB\n"), "rows[1]", "is empty" },
        { ROW("    above: 4GiB\n    to: 4GiB\n"), "rows[1]", "is empty" },
        { ROW("    to: 4GiB\n  - name: s\n    kind: cuda\n    from: 4GiB\n"), "rows[2]",
          "overlaps row \"r\"" },
        { ROW("    forbid:\n      - text: t\n        attentions: [full]\n"),
          "rows[1].forbid[1].attentions[1]", "\"full\" is no attention" },
        { ROW("    forbid:\n      - text: t\n        precisions: [int5]\n"),
          "rows[1].forbid[1].precisions[1]", "\"int5\" is no precision" },
        { ROW("    forbid:\n      - dit_whole: yes\n"), "rows[1]", "text" },
        { ROW("    forbid:\n      - text: t\n        dit_whole: maybe\n"), "dit_whole", "" },
        { "rows:\n  - name: r\n    kind: tpu\n", "kind", "" },
        { "rows:\n  - kind: cuda\n", "rows[1]", "name" },
        { "lines: []\n", "lines", "" },
    };
    sl_budget_table *table = calloc(1, sizeof *table);

    SL_CHECK(table != NULL);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        SL_CHECK_STATUS(load_text(table, cases[i].text, err), SL_ERR_DATA);
        if (!strstr(err->message, cases[i].place) || !strstr(err->message, cases[i].reason))
            fail_msg("case %zu: %s", i, err->message);
        SL_CHECK(table->row_count == 0); /* untouched */
    }
    SL_CHECK_STATUS(sl_budget_table_load(table, "/nowhere/budget.yaml", err), SL_ERR_NOT_FOUND);
    free(table);
}

SL_TEST_MAIN(SL_RUN(the_example_is_the_default), SL_RUN(every_condition_is_read),
             SL_RUN(mistakes_name_their_place))
