/* cli_budget_table.c - `budget --table`: models x resolutions x precisions x cards.
 *
 * One line for a model, resolution and precision, one column for a size of card.
 * A cell is "fits", "streams" (with the expected slowdown) or "never"; [n] points to
 * the rule of the budget table that says so, listed below.
 */
#include "clients/c/cli_budget.h"

#include "base/size.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_CARDS = 12, MAX_NOTES = 16, CELL = 13 };

static const char *const usual_cards[] = { "8GiB",  "12GiB", "16GiB", "24GiB", "32GiB",
                                           "40GiB", "48GiB", "80GiB", "96GiB", "140GiB" };
static const char *const usual_resolutions[] = { "480p", "720p" };
static const char *const usual_precisions[] = { "bf16", "int8" };

typedef struct {
    sl_budget_table rows;
    int card_count;
    char cards[MAX_CARDS][32];
    cli_planner planners[MAX_CARDS];
    int note_count;
    char notes[MAX_NOTES][SL_BUDGET_NAME_BYTES + SL_BUDGET_TEXT_BYTES + 16];
    cJSON *json; /* an array; NULL: text */
} table;

static sl_status add_card(const cli *c, table *t, const char *text, sl_error *err)
{
    sl_device_spec device;
    cli_machine machine;
    sl_status status = cli_device_of(text, &device, err);

    if (status == SL_OK)
        status = cli_machine_of(c, &machine, err);
    if (status == SL_OK)
        status = cli_planner_init(&t->planners[t->card_count], &device, &machine, &t->rows, err);
    if (status != SL_OK)
        return status;
    snprintf(t->cards[t->card_count++], sizeof t->cards[0], "%s", text);
    return SL_OK;
}

/* The number of a rule's note, from 1; 0: there is no room for more. */
static int note_of(table *t, const sl_core_answer *answer)
{
    char text[sizeof t->notes[0]];

    snprintf(text, sizeof text, "row \"%s\": %s", answer->row, answer->rule);
    for (int i = 0; i < t->note_count; i++)
        if (strcmp(t->notes[i], text) == 0)
            return i + 1;
    if (t->note_count == MAX_NOTES)
        return 0;
    memcpy(t->notes[t->note_count], text, sizeof text);
    return ++t->note_count;
}

static const char *verdict_text(const cli_verdict *v)
{
    if (v->answer.when == SL_CORE_NEVER)
        return "never";
    return v->way.streamed ? "streams" : "fits";
}

static void print_cell(table *t, const cli_verdict *v, bool is_last)
{
    char text[32];

    if (v->answer.when == SL_CORE_NEVER && v->answer.rule[0])
        snprintf(text, sizeof text, "never [%d]", note_of(t, &v->answer));
    else if (v->answer.when != SL_CORE_NEVER && v->way.streamed)
        snprintf(text, sizeof text, "streams %.2fx", v->way.slowdown);
    else
        snprintf(text, sizeof text, "%s", verdict_text(v));
    printf(" %-*s", is_last ? 0 : CELL, text);
}

static cJSON *cell_json(const sl_variants_ask *asked, const cli_planner *planner,
                        const cli_verdict *v)
{
    const sl_t2v_request *r = &asked->request;
    cJSON *cell = cJSON_CreateObject();
    cJSON *streamed = NULL;

    cJSON_AddStringToObject(cell, "model", asked->model);
    cJSON_AddNumberToObject(cell, "width", r->width);
    cJSON_AddNumberToObject(cell, "height", r->height);
    cJSON_AddNumberToObject(cell, "frames", r->frames);
    cJSON_AddStringToObject(cell, "precision", sl_precision_name(r->precision));
    cJSON_AddStringToObject(cell, "attention", sl_attention_name(r->attention));
    cli_json_u64(cell, "device_bytes", planner->device.limit_bytes);
    cJSON_AddStringToObject(cell, "answer", verdict_text(v));
    cJSON_AddBoolToObject(cell, "by_phase", v->way.by_phase);
    streamed = cJSON_AddArrayToObject(cell, "streamed");
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (v->way.streamed & SL_COMPONENT_BIT(kind))
            cJSON_AddItemToArray(streamed,
                                 cJSON_CreateString(sl_component_name((sl_component_kind)kind)));
    cJSON_AddNumberToObject(cell, "slowdown", v->way.slowdown);
    cli_json_u64(cell, "host_bytes", v->way.host_bytes);
    cli_json_u64(cell, "peak_bytes", v->peak_bytes);
    cli_json_u64(cell, "need_bytes", v->answer.need_bytes);
    cli_json_u64(cell, "have_bytes", v->answer.have_bytes);
    cJSON_AddStringToObject(cell, "table_row", v->answer.row);
    cJSON_AddStringToObject(cell, "table_rule", v->answer.rule);
    return cell;
}

static sl_status add_line(table *t, sl_variants_ask *asked, sl_error *err)
{
    const sl_t2v_request *r = &asked->request;
    char shape[32];

    snprintf(shape, sizeof shape, "%dx%d", r->width, r->height);
    if (!t->json)
        printf("%-18s %-10s %-5s", asked->model, shape, sl_precision_name(r->precision));
    for (int i = 0; i < t->card_count; i++) {
        cli_verdict verdict;
        asked->kind = t->planners[i].device.kind;
        const sl_status status = cli_planner_judge(&t->planners[i], asked, &verdict, err);

        if (status != SL_OK)
            return status;
        if (t->json)
            cJSON_AddItemToArray(t->json, cell_json(asked, &t->planners[i], &verdict));
        else
            print_cell(t, &verdict, i + 1 == t->card_count);
    }
    if (!t->json)
        putchar('\n');
    return SL_OK;
}

/* All lines of a model; what the command line says narrows them down. */
static sl_status add_model(const cli *c, table *t, const sl_arch *arch, sl_error *err)
{
    const bool one_shape = c->opt.resolution || c->opt.width || c->opt.height;
    const size_t shapes = one_shape ? 1 : SL_COUNT(usual_resolutions);
    const size_t precisions = c->opt.precision ? 1 : SL_COUNT(usual_precisions);
    sl_status status = SL_OK;

    for (size_t s = 0; s < shapes && status == SL_OK; s++)
        for (size_t p = 0; p < precisions && status == SL_OK; p++) {
            sl_variants_ask *asked = calloc(1, sizeof *asked);
            cli line = *c;

            if (!asked)
                return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a plan");
            asked->arch = arch;
            asked->model = arch->name;
            asked->kind = t->planners[0].device.kind; /* of all of them */
            if (!one_shape)
                line.opt.resolution = usual_resolutions[s];
            if (!c->opt.precision)
                line.opt.precision = usual_precisions[p];
            status = cli_fill_asked(&line, NULL, asked, err);
            if (status == SL_OK)
                status = add_line(t, asked, err);
            free(asked);
        }
    return status;
}

static sl_status add_models(const cli *c, table *t, sl_error *err)
{
    const sl_arch *only = c->opt.model ? sl_arch_find(c->opt.model) : NULL;
    sl_status status = SL_OK;

    if (c->opt.model && !only)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\" is not in the model table", c->opt.model);
    if (only)
        return add_model(c, t, only, err);
    for (int i = 0; i < sl_arch_count() && status == SL_OK; i++)
        if (sl_arch_get(i)->manifests[0]) /* not a model of tests */
            status = add_model(c, t, sl_arch_get(i), err);
    return status;
}

static void print_head(const table *t)
{
    printf("%-18s %-10s %-5s", "MODEL", "SIZE", "PREC");
    for (int i = 0; i < t->card_count; i++)
        printf(" %-*s", i + 1 == t->card_count ? 0 : CELL, t->cards[i]);
    putchar('\n');
}

static void print_foot(const table *t)
{
    puts("\nfits: resident, all at once or component by component; streams: blocks come from host\n"
         "memory, with the guessed slowdown; never: forbidden by a rule [n], else too large");
    for (int i = 0; i < t->note_count; i++)
        printf("[%d] %s\n", i + 1, t->notes[i]);
}

int cli_budget_table(cli *c)
{
    table *t = calloc(1, sizeof *t);
    sl_status status = SL_OK;

    if (!t)
        status = sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for the table");
    else
        sl_budget_table_default(&t->rows);
    for (size_t i = 0; i < SL_COUNT(usual_cards) && status == SL_OK && !c->opt.device; i++)
        status = add_card(c, t, usual_cards[i], &c->err);
    if (status == SL_OK && c->opt.device)
        status = add_card(c, t, c->opt.device, &c->err);
    if (status == SL_OK && c->opt.json)
        t->json = cJSON_CreateArray();
    if (status == SL_OK && !c->opt.json)
        print_head(t);
    if (status == SL_OK)
        status = add_models(c, t, &c->err);
    if (status == SL_OK && t->json) {
        cJSON *object = cJSON_CreateObject();
        cJSON_AddItemToObject(object, "cells", t->json);
        t->json = NULL; /* handed over */
        cli_json_print(object);
    } else if (status == SL_OK) {
        print_foot(t);
    }
    const int code = status == SL_OK ? CLI_OK : (cli_fail(c, status), CLI_ERROR);
    for (int i = 0; t && i < t->card_count; i++)
        cli_planner_fini(&t->planners[i]);
    if (t)
        cJSON_Delete(t->json);
    free(t);
    return code;
}
