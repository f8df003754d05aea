/* cli_budget.c - what a job needs, worked out here: no daemon, GPU or files.
 *
 * The answer has the same shape as PlanJob's, so `budget` and `plan` print alike.
 */
#include "clients/c/cli_budget.h"

#include "base/size.h"
#include "engine/model/model_dir.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Everything that an answer consists of. */
typedef struct {
    sl_model_dir *dir; /* NULL: a row of the table */
    sl_budget_table table;
    cli_planner planner;
    sl_variants_ask asked;
    cli_verdict verdict;
    bool has_nearest;
    sl_t2v_request nearest;
    size_t nearest_bytes;
} budget;

Sluice__V1__Component cli_wire_component(sl_component_kind kind)
{
    return (Sluice__V1__Component)((int)kind + SLUICE__V1__COMPONENT__TEXT_ENCODER);
}

Sluice__V1__Precision cli_wire_precision(sl_precision precision)
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

/* ---- what was asked ---- */

static sl_status find_model(const cli *c, budget *b, sl_error *err)
{
    const char *name = c->opt.model;
    struct stat st;
    char known[256] = "";

    if (!name)
        return sl_fail(err, SL_ERR_INVALID, "`sluice budget` needs --model, or --table");
    b->asked.arch = sl_arch_find(name);
    b->asked.model = name;
    if (b->asked.arch)
        return SL_OK;
    if (stat(name, &st) == 0) {
        const sl_status status = sl_model_dir_open(&b->dir, name, err);
        if (status != SL_OK)
            return status;
        b->asked.arch = sl_model_dir_info(b->dir)->arch;
        b->asked.model = sl_model_dir_info(b->dir)->name;
        return SL_OK;
    }
    for (int i = 0; i < sl_arch_count(); i++) {
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", sl_arch_get(i)->name);
    }
    return sl_fail(err, SL_ERR_INVALID, "\"%s\" is neither a directory nor one of %s", name, known);
}

sl_status cli_device_of(const char *text, sl_device_spec *out, sl_error *err)
{
    const bool is_cuda = strncmp(text, "cuda:", 5) == 0;
    const char *size = is_cuda ? text + 5 : text;
    size_t size_bytes = 0;
    sl_status status = SL_OK;

    /* "cuda:0" is a device, not one byte. */
    if (sl_size_parse(size, &size_bytes) && size_bytes >= SL_GRANULE_BYTES) {
        char spec[64];
        snprintf(spec, sizeof spec, "cuda:0:%zu", size_bytes);
        status = sl_device_spec_parse(spec, out, err);
    } else {
        status = sl_device_spec_parse(text, out, err);
    }
    if (status == SL_OK && out->limit_bytes == 0)
        status = sl_fail(err, SL_ERR_INVALID,
                         "the memory of device \"%s\" is not known here: write \"%s:24GiB\"", text,
                         text);
    return status;
}

static sl_streaming streaming_of(Sluice__V1__Streaming streaming)
{
    return streaming == SLUICE__V1__STREAMING__OFF  ? SL_STREAMING_OFF
           : streaming == SLUICE__V1__STREAMING__ON ? SL_STREAMING_ON
                                                    : SL_STREAMING_AUTO;
}

/* asked: model, arch and kind are there. */
sl_status cli_fill_asked(const cli *c, const sl_model_info *info, sl_variants_ask *asked,
                         sl_error *err)
{
    /* Without files: of the models in the table the distilled form. */
    const sl_model_info row = { .arch = asked->arch, .synthetic = true };
    Sluice__V1__GenerateRequest request = SLUICE__V1__GENERATE_REQUEST__INIT;
    sl_request_problem problem;
    const sl_status status = cli_fill_shape(&c->opt, &request, err);

    if (status != SL_OK)
        return status;
    asked->streaming = streaming_of(request.streaming);
    asked->request = sl_request_read(&request, info ? info : &row);
    if (!request.vae_precision)
        asked->request.vae_precision =
            sl_t2v_vae_precision_default(asked->kind, asked->request.precision);
    if (info && sl_request_check_precision(asked->request.precision, info, err) != SL_OK)
        return err->status;
    return sl_request_check(&request, &asked->request, asked->arch, &problem, err);
}

sl_status cli_machine_of(const cli *c, cli_machine *out, sl_error *err)
{
    *out = (cli_machine){ .threads = c->opt.threads };
    if (c->opt.host_memory && !sl_size_parse(c->opt.host_memory, &out->host_bytes))
        return sl_fail(err, SL_ERR_INVALID,
                       "host memory \"%s\" is no size: expected 64GiB or the like",
                       c->opt.host_memory);
    return SL_OK;
}

/* ---- the answer as messages ---- */

typedef struct {
    Sluice__V1__PlanJobReply reply;
    Sluice__V1__Plan plan;
    Sluice__V1__PhaseBytes phases[SL_PHASE_COUNT], *phase_list[SL_PHASE_COUNT];
    Sluice__V1__Component phase_component[SL_PHASE_COUNT][SL_COMPONENT_COUNT];
    Sluice__V1__ComponentBytes components[SL_COMPONENT_COUNT];
    Sluice__V1__ComponentBytes *component_list[SL_COMPONENT_COUNT];
    Sluice__V1__Component streamed[SL_COMPONENT_COUNT];
    Sluice__V1__Refusal refusal;
    Sluice__V1__Holding holdings[SL_CORE_MAX_HOLDINGS], *holding_list[SL_CORE_MAX_HOLDINGS];
    Sluice__V1__NearestRequest nearest;
} messages;

static void fill_phase(messages *m, const sl_t2v_plan *plan, sl_phase phase)
{
    Sluice__V1__PhaseBytes *pb = &m->phases[phase];

    sluice__v1__phase_bytes__init(pb);
    pb->phase = (char *)sl_phase_name(phase);
    pb->activation_bytes = plan->phase_activation_bytes[phase];
    pb->components = m->phase_component[phase];
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (!(plan->phase_components[phase] & SL_COMPONENT_BIT(kind)))
            continue;
        pb->components[pb->n_components++] = cli_wire_component((sl_component_kind)kind);
        pb->weight_bytes += plan->weight_bytes[kind];
    }
    m->phase_list[m->plan.n_phases++] = pb;
}

static void fill_components(messages *m, const budget *b)
{
    const cli_verdict *v = &b->verdict;
    Sluice__V1__Plan *plan = &m->plan;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        Sluice__V1__ComponentBytes *component = &m->components[plan->n_components];
        if (v->plan.weight_bytes[kind] == 0)
            continue;
        sluice__v1__component_bytes__init(component);
        component->model = (char *)b->asked.model;
        component->component = cli_wire_component((sl_component_kind)kind);
        component->precision = cli_wire_precision(
            sl_component_precision((sl_component_kind)kind, b->asked.request.precision));
        component->planned_bytes = v->plan.weight_bytes[kind];
        component->streamed = (v->way.streamed & SL_COMPONENT_BIT(kind)) != 0;
        if (component->streamed) {
            component->host_bytes = v->plan.image_bytes[kind];
            m->streamed[plan->n_streamed++] = component->component;
        }
        m->component_list[plan->n_components++] = component;
    }
    plan->components = m->component_list;
    plan->streamed = m->streamed;
}

static void fill_plan(messages *m, const budget *b)
{
    const cli_verdict *v = &b->verdict;
    Sluice__V1__Plan *plan = &m->plan;

    sluice__v1__plan__init(plan);
    for (int i = 0; i < SL_PHASE_COUNT; i++)
        if (v->plan.phase_components[i])
            fill_phase(m, &v->plan, (sl_phase)i);
    plan->phases = m->phase_list;
    fill_components(m, b);
    plan->model = (char *)b->asked.model;
    plan->precision = cli_wire_precision(b->asked.request.precision);
    plan->activation_bytes = v->way.activation_bytes;
    plan->weight_bytes = v->way.weight_bytes;
    plan->workspace_bytes = b->planner.workspace_bytes;
    plan->peak_bytes = v->peak_bytes;
    plan->device_bytes = b->planner.device.limit_bytes;
    plan->table_row = (char *)v->answer.row;
    plan->slowdown = v->way.slowdown;
    plan->host_bytes = v->way.host_bytes;
    plan->by_phase = v->way.by_phase;
}

static void fill_refusal(messages *m, const budget *b)
{
    const sl_core_answer *answer = &b->verdict.answer;
    Sluice__V1__Refusal *refusal = &m->refusal;

    sluice__v1__refusal__init(refusal);
    sluice__v1__nearest_request__init(&m->nearest);
    refusal->when = answer->when == SL_CORE_NEVER ? SLUICE__V1__REFUSAL__WHEN__NEVER
                                                  : SLUICE__V1__REFUSAL__WHEN__AFTER;
    refusal->after = (char *)answer->after;
    refusal->need_bytes = answer->need_bytes;
    refusal->have_bytes = answer->have_bytes;
    for (int i = 0; i < answer->held_count; i++) {
        sluice__v1__holding__init(&m->holdings[i]);
        m->holdings[i].what = (char *)answer->held[i].what;
        m->holdings[i].size_bytes = answer->held[i].size_bytes;
        m->holding_list[i] = &m->holdings[i];
    }
    refusal->n_held_by = (size_t)answer->held_count;
    refusal->held_by = m->holding_list;
    refusal->table_row = (char *)answer->row;
    refusal->table_rule = (char *)answer->rule;
    refusal->nearest = &m->nearest;
    m->nearest.exists = b->has_nearest;
    if (b->has_nearest) {
        m->nearest.width = b->nearest.width;
        m->nearest.height = b->nearest.height;
        m->nearest.frames = b->nearest.frames;
        m->nearest.precision = cli_wire_precision(b->nearest.precision);
        m->nearest.need_bytes = b->nearest_bytes;
    }
}

static void show_json(const budget *b, const messages *m, const char *hint)
{
    const sl_t2v_request *r = &b->asked.request;
    cJSON *object = cli_json_message(&m->reply);
    cJSON *request = cJSON_AddObjectToObject(object, "request");

    cJSON_AddStringToObject(request, "model", b->asked.model);
    cJSON_AddStringToObject(request, "arch", b->asked.arch->name);
    cJSON_AddNumberToObject(request, "width", r->width);
    cJSON_AddNumberToObject(request, "height", r->height);
    cJSON_AddNumberToObject(request, "frames", r->frames);
    cJSON_AddNumberToObject(request, "steps", r->steps);
    cJSON_AddStringToObject(request, "attention", sl_attention_name(r->attention));
    cJSON_AddBoolToObject(object, "by_phase", b->verdict.way.by_phase);
    cJSON_AddStringToObject(object, "hint", hint);
    cli_json_print(object);
}

static int show(const cli *c, const budget *b, const messages *m)
{
    const sl_budget_row *row =
        sl_budget_find_row(&b->table, b->planner.device.kind, b->planner.device.limit_bytes);
    const sl_t2v_request *r = &b->asked.request;
    const sl_core_when when = b->verdict.answer.when;

    if (c->opt.json) {
        show_json(b, m, row ? row->hint : "");
    } else {
        printf("%s, %dx%d, %d frames, %d steps, %s attention\n", b->asked.model, r->width,
               r->height, r->frames, r->steps, sl_attention_name(r->attention));
        cli_print_plan(stdout, &m->plan);
        if (row && row->hint[0])
            printf("  known good there: %s\n", row->hint);
        if (when == SL_CORE_NOW)
            puts(b->verdict.way.streamed ? "fits with streaming" : "fits");
        else
            cli_print_refusal(stdout, &m->refusal);
    }
    if (when == SL_CORE_NOW)
        return CLI_OK;
    return when == SL_CORE_NEVER ? CLI_NEVER_FITS : CLI_FITS_AFTER;
}

static sl_status work_out(const cli *c, budget *b, sl_error *err)
{
    sl_device_spec device;
    cli_machine machine;
    sl_status status = find_model(c, b, err);

    if (status == SL_OK)
        status = cli_device_of(c->opt.device ? c->opt.device : "cpu", &device, err);
    b->asked.kind = device.kind;
    if (status == SL_OK)
        status = cli_fill_asked(c, b->dir ? sl_model_dir_info(b->dir) : NULL, &b->asked, err);
    sl_budget_table_default(&b->table);
    if (status == SL_OK)
        status = cli_machine_of(c, &machine, err);
    if (status == SL_OK)
        status = cli_planner_init(&b->planner, &device, &machine, &b->table, err);
    if (status == SL_OK)
        status = cli_planner_judge(&b->planner, &b->asked, &b->verdict, err);
    if (status == SL_OK && b->verdict.answer.when == SL_CORE_NEVER)
        status = cli_planner_nearest(&b->planner, &b->asked, &b->has_nearest, &b->nearest,
                                     &b->nearest_bytes, err);
    return status;
}

static int budget_of_one(cli *c)
{
    budget *b = calloc(1, sizeof *b);
    messages *m = calloc(1, sizeof *m);
    int code = CLI_ERROR;
    sl_status status = SL_OK;

    if (!b || !m)
        status = sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for a plan");
    if (status == SL_OK)
        status = work_out(c, b, &c->err);
    if (status != SL_OK) {
        cli_fail(c, status);
        goto done; /* exit code 2 is an answer, not a usage error */
    }
    sluice__v1__plan_job_reply__init(&m->reply);
    fill_plan(m, b);
    fill_refusal(m, b);
    m->reply.plan = &m->plan;
    m->reply.admitted_now = b->verdict.answer.when == SL_CORE_NOW;
    m->reply.refusal = m->reply.admitted_now ? NULL : &m->refusal;
    code = show(c, b, m);
done:
    if (b) {
        cli_planner_fini(&b->planner);
        sl_model_dir_close(b->dir);
    }
    free(b);
    free(m);
    return code;
}

int cli_budget(cli *c)
{
    return c->opt.table ? cli_budget_table(c) : budget_of_one(c);
}
