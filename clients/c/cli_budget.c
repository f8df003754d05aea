/* cli_budget.c - what a job needs, worked out here: no daemon, GPU or files.
 *
 * The plan is the pipeline's own dry run, and the verdict the daemon's own
 * admission (service/core.h) over an empty device.  The answer has the same
 * shape as PlanJob's, so `budget` and `plan` print alike.
 */
#include "clients/c/cli.h"

#include "base/size.h"
#include "engine/model/config.h"
#include "engine/model/model_dir.h"
#include "engine/pipeline/t2v.h"
#include "kernels/device.h"
#include "kernels/exec.h"
#include "service/budget.h"
#include "service/core.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_CPU_THREADS = 64 }; /* as kernels/exec.h has it for threads 0 */

static const Sluice__V1__Component wire_component[SL_COMPONENT_COUNT] = {
    [SL_COMPONENT_TEXT_ENCODER] = SLUICE__V1__COMPONENT__TEXT_ENCODER,
    [SL_COMPONENT_DIT] = SLUICE__V1__COMPONENT__DIT,
    [SL_COMPONENT_DIT_HIGH] = SLUICE__V1__COMPONENT__DIT_HIGH,
    [SL_COMPONENT_DIT_LOW] = SLUICE__V1__COMPONENT__DIT_LOW,
    [SL_COMPONENT_VAE] = SLUICE__V1__COMPONENT__VAE,
};

/* Everything that an answer consists of. */
typedef struct {
    sl_model_dir *dir; /* NULL: a row of the table */
    const sl_arch *arch;
    const char *model; /* its name */
    sl_device_spec device;
    size_t workspace_bytes;
    sl_budget_table *table;
    sl_core *core; /* of an empty device */
    sl_t2v_request request;
    sl_t2v_plan plan;
    sl_core_answer answer;
    bool has_nearest;
    sl_t2v_request nearest;
    size_t nearest_bytes;
} budget;

static Sluice__V1__Precision wire_precision(sl_precision precision)
{
    switch (precision) {
    case SL_PRECISION_F32:
        return SLUICE__V1__PRECISION__F32;
    case SL_PRECISION_INT8:
        return SLUICE__V1__PRECISION__INT8;
    default:
        return SLUICE__V1__PRECISION__BF16;
    }
}

/* ---- what was asked ---- */

static sl_status find_model(cli *c, budget *b)
{
    const char *name = c->opt.model;
    struct stat st;
    char known[256] = "";

    if (!name)
        return sl_fail(&c->err, SL_ERR_INVALID, "`sluice budget` needs --model");
    b->arch = sl_arch_find(name);
    b->model = name;
    if (b->arch)
        return SL_OK;
    if (stat(name, &st) == 0) {
        const sl_status status = sl_model_dir_open(&b->dir, name, &c->err);
        if (status != SL_OK)
            return status;
        b->arch = sl_model_dir_info(b->dir)->arch;
        b->model = sl_model_dir_info(b->dir)->name;
        return SL_OK;
    }
    for (int i = 0; i < sl_arch_count(); i++) {
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", sl_arch_get(i)->name);
    }
    return sl_fail(&c->err, SL_ERR_INVALID, "\"%s\" is neither a directory nor one of %s", name,
                   known);
}

/* A plain size is a GPU's memory; anything else as the daemon's --device. */
static sl_status find_device(cli *c, budget *b)
{
    const char *text = c->opt.device ? c->opt.device : "cpu";
    size_t size_bytes = 0;
    sl_status status = SL_OK;

    if (sl_size_parse(text, &size_bytes)) {
        char spec[64];
        snprintf(spec, sizeof spec, "cuda:0:%zu", size_bytes);
        status = sl_device_spec_parse(spec, &b->device, &c->err);
    } else {
        status = sl_device_spec_parse(text, &b->device, &c->err);
    }
    if (status == SL_OK && b->device.limit_bytes == 0)
        status = sl_fail(&c->err, SL_ERR_INVALID,
                         "the memory of device \"%s\" is not known here: write \"%s:24GiB\"", text,
                         text);
    return status;
}

static sl_status fill_request(cli *c, budget *b)
{
    const cli_options *o = &c->opt;
    int64_t width = o->width, height = o->height;

    if (o->resolution && !cli_parse_resolution(o->resolution, &width, &height))
        return sl_fail(&c->err, SL_ERR_INVALID,
                       "unknown resolution \"%s\": 480p, 720p or WIDTHxHEIGHT", o->resolution);
    b->request = sl_t2v_request_default(b->arch);
    if (o->precision && !sl_precision_parse(o->precision, &b->request.precision))
        return sl_fail(&c->err, SL_ERR_INVALID, "unknown precision \"%s\": bf16, f32 or int8",
                       o->precision);
    if (width > 0)
        b->request.width = (int)width;
    if (height > 0)
        b->request.height = (int)height;
    if (o->frames > 0)
        b->request.frames = (int)o->frames;
    if (o->steps > 0)
        b->request.steps = (int)o->steps;
    return SL_OK;
}

static sl_status make_core(cli *c, budget *b)
{
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    int64_t threads = c->opt.threads > 0 ? c->opt.threads : online > 0 ? online : 1;

    if (threads > MAX_CPU_THREADS)
        threads = MAX_CPU_THREADS;
    b->workspace_bytes = (size_t)threads * SL_CPU_WORKSPACE_PER_THREAD;
    b->table = malloc(sizeof *b->table);
    if (!b->table)
        return sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for the budget table");
    sl_budget_table_default(b->table);
    sl_core_config config =
        sl_core_config_default(b->device.kind, b->device.limit_bytes, b->workspace_bytes);
    config.table = b->table;
    const sl_status status = sl_core_create(&b->core, &config, &c->err);
    if (status == SL_OK)
        sl_core_worker_up(b->core, b->workspace_bytes);
    return status;
}

/* ---- the answer ---- */

static sl_status admit(const budget *b, const sl_t2v_request *request, sl_t2v_plan *plan,
                       sl_core_answer *answer, sl_error *err)
{
    sl_core_job job = { .activation_bytes = 0 };
    unsigned components = 0;
    sl_status status = sl_t2v_plan_make(plan, request, b->arch, err);

    if (status != SL_OK)
        return status;
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (plan->weight_bytes[kind] == 0)
            continue;
        sl_core_need *need = &job.needs[job.need_count++];
        snprintf(need->key.model, sizeof need->key.model, "%s", b->model);
        need->key.component = (sl_component_kind)kind;
        need->key.precision = sl_component_precision(need->key.component, request->precision);
        need->size_bytes = plan->weight_bytes[kind];
        components |= 1u << kind;
    }
    job.activation_bytes = plan->activation_bytes;
    status = sl_budget_facts_make(&job.facts, b->model, b->arch, components, request->precision,
                                  request, err);
    if (status == SL_OK)
        status = sl_core_plan(b->core, &job, answer, err);
    return status;
}

/* Multiples of 16 near the same shape, and at least one of them. */
static int scaled(int pixels, int eighths)
{
    const int result = pixels * eighths / 8 / 16 * 16;

    return result > 0 ? result : 16;
}

/* The largest video of the same shape that fits: resolution and frames go down
 * in steps, precision before either. */
static sl_status find_nearest(budget *b, sl_error *err)
{
    static const int eighths[] = { 8, 6, 5, 4, 3, 2 };
    int64_t best = 0;

    for (size_t r = 0; r < SL_COUNT(eighths); r++)
        for (int m = (b->request.frames - 1) / 4;; m /= 2) {
            for (int p = (int)b->request.precision; p < SL_PRECISION_COUNT; p++) {
                sl_t2v_request request = b->request;
                sl_core_answer answer;
                sl_t2v_plan plan;

                request.width = scaled(b->request.width, eighths[r]);
                request.height = scaled(b->request.height, eighths[r]);
                request.frames = 4 * m + 1;
                request.precision = (sl_precision)p;
                const int64_t volume = (int64_t)request.width * request.height * request.frames;
                if (volume <= best)
                    continue;
                const sl_status status = admit(b, &request, &plan, &answer, err);
                if (status != SL_OK)
                    return status;
                if (answer.when == SL_CORE_NEVER)
                    continue;
                best = volume;
                b->has_nearest = true;
                b->nearest = request;
                b->nearest_bytes = answer.need_bytes;
            }
            if (m == 0)
                break;
        }
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
    Sluice__V1__Refusal refusal;
    Sluice__V1__Holding holdings[SL_CORE_MAX_HOLDINGS], *holding_list[SL_CORE_MAX_HOLDINGS];
    Sluice__V1__NearestRequest nearest;
} messages;

static void fill_phase(messages *m, const budget *b, sl_phase phase)
{
    Sluice__V1__PhaseBytes *pb = &m->phases[phase];

    sluice__v1__phase_bytes__init(pb);
    pb->phase = (char *)sl_phase_name(phase);
    pb->activation_bytes = b->plan.phase_activation_bytes[phase];
    pb->components = m->phase_component[phase];
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (!(b->plan.phase_components[phase] & SL_COMPONENT_BIT(kind)))
            continue;
        pb->components[pb->n_components++] = wire_component[kind];
        pb->weight_bytes += b->plan.weight_bytes[kind];
    }
    m->phase_list[m->plan.n_phases++] = pb;
}

static void fill_plan(messages *m, const budget *b)
{
    Sluice__V1__Plan *plan = &m->plan;

    sluice__v1__plan__init(plan);
    for (int i = 0; i < SL_PHASE_COUNT; i++)
        if (b->plan.phase_components[i])
            fill_phase(m, b, (sl_phase)i);
    plan->phases = m->phase_list;
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        Sluice__V1__ComponentBytes *component = &m->components[plan->n_components];
        if (b->plan.weight_bytes[kind] == 0)
            continue;
        sluice__v1__component_bytes__init(component);
        component->model = (char *)b->model;
        component->component = wire_component[kind];
        component->precision =
            wire_precision(sl_component_precision((sl_component_kind)kind, b->request.precision));
        component->planned_bytes = b->plan.weight_bytes[kind];
        plan->weight_bytes += b->plan.weight_bytes[kind];
        m->component_list[plan->n_components++] = component;
    }
    plan->components = m->component_list;
    plan->model = (char *)b->model;
    plan->precision = wire_precision(b->request.precision);
    plan->activation_bytes = b->plan.activation_bytes;
    plan->workspace_bytes = b->workspace_bytes;
    plan->peak_bytes = plan->activation_bytes + plan->weight_bytes + plan->workspace_bytes;
    plan->device_bytes = b->device.limit_bytes;
    plan->table_row = (char *)b->answer.row;
}

static void fill_refusal(messages *m, const budget *b)
{
    const sl_core_answer *answer = &b->answer;
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
        m->nearest.precision = wire_precision(b->nearest.precision);
        m->nearest.need_bytes = b->nearest_bytes;
    }
}

static int show(const cli *c, const budget *b, const messages *m)
{
    const sl_budget_row *row = sl_budget_find_row(b->table, b->device.kind, b->device.limit_bytes);
    const sl_t2v_request *r = &b->request;

    if (c->opt.json) {
        cJSON *object = cli_json_message(&m->reply);
        cJSON *request = cJSON_AddObjectToObject(object, "request");
        cJSON_AddStringToObject(request, "model", b->model);
        cJSON_AddStringToObject(request, "arch", b->arch->name);
        cJSON_AddNumberToObject(request, "width", r->width);
        cJSON_AddNumberToObject(request, "height", r->height);
        cJSON_AddNumberToObject(request, "frames", r->frames);
        cJSON_AddNumberToObject(request, "steps", r->steps);
        cJSON_AddStringToObject(object, "hint", row ? row->hint : "");
        cli_json_print(object);
    } else {
        printf("%s, %dx%d, %d frames, %d steps\n", b->model, r->width, r->height, r->frames,
               r->steps);
        cli_print_plan(stdout, &m->plan);
        if (row && row->hint[0])
            printf("  known good there: %s\n", row->hint);
        if (b->answer.when == SL_CORE_NOW)
            puts("fits");
        else
            cli_print_refusal(stdout, &m->refusal);
    }
    if (b->answer.when == SL_CORE_NOW)
        return CLI_OK;
    return b->answer.when == SL_CORE_NEVER ? CLI_NEVER_FITS : CLI_FITS_AFTER;
}

static sl_status work_out(cli *c, budget *b)
{
    sl_status status = find_model(c, b);

    if (status == SL_OK)
        status = find_device(c, b);
    if (status == SL_OK)
        status = fill_request(c, b);
    if (status == SL_OK)
        status = make_core(c, b);
    if (status == SL_OK)
        status = admit(b, &b->request, &b->plan, &b->answer, &c->err);
    if (status == SL_OK && b->answer.when == SL_CORE_NEVER)
        status = find_nearest(b, &c->err);
    return status;
}

int cli_budget(cli *c)
{
    budget *b = calloc(1, sizeof *b);
    messages *m = calloc(1, sizeof *m);
    int code = CLI_ERROR;
    sl_status status = SL_OK;

    if (!b || !m)
        status = sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for a plan");
    if (status == SL_OK)
        status = work_out(c, b);
    if (status != SL_OK) {
        cli_fail(c, status);
        goto done; /* exit code 2 is an answer, not a usage error */
    }
    sluice__v1__plan_job_reply__init(&m->reply);
    fill_plan(m, b);
    fill_refusal(m, b);
    m->reply.plan = &m->plan;
    m->reply.admitted_now = b->answer.when == SL_CORE_NOW;
    m->reply.refusal = b->answer.when == SL_CORE_NOW ? NULL : &m->refusal;
    code = show(c, b, m);
done:
    if (b) {
        sl_core_destroy(b->core);
        sl_model_dir_close(b->dir);
        free(b->table);
    }
    free(b);
    free(m);
    return code;
}
