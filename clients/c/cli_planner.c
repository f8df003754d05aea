#include "clients/c/cli_planner.h"

#include "base/size.h"
#include "kernels/exec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CPU_THREADS = 64 }; /* as kernels/exec.h has it for threads 0 */

sl_status cli_planner_init(cli_planner *out, const sl_device_spec *device, int64_t threads,
                           const sl_budget_table *table, sl_error *err)
{
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    cli_planner planner = { .device = *device, .table = table };

    if (threads <= 0)
        threads = online > 0 ? online : 1;
    if (threads > MAX_CPU_THREADS)
        threads = MAX_CPU_THREADS;
    planner.workspace_bytes = (size_t)threads * SL_CPU_WORKSPACE_PER_THREAD;
    sl_core_config config =
        sl_core_config_default(device->kind, device->limit_bytes, planner.workspace_bytes);
    config.table = table;
    const sl_status status = sl_core_create(&planner.core, &config, err);
    if (status != SL_OK)
        return status;
    sl_core_worker_up(planner.core, planner.workspace_bytes);
    *out = planner;
    return SL_OK;
}

void cli_planner_fini(cli_planner *planner)
{
    sl_core_destroy(planner->core);
    planner->core = NULL;
}

/* ---- plans ---- */

#define ANY_DIT                                                                                    \
    (SL_COMPONENT_BIT(SL_COMPONENT_DIT) | SL_COMPONENT_BIT(SL_COMPONENT_DIT_HIGH) |                \
     SL_COMPONENT_BIT(SL_COMPONENT_DIT_LOW))

static unsigned components_of(const sl_t2v_plan *plan)
{
    unsigned set = 0;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (plan->weight_bytes[kind] > 0)
            set |= SL_COMPONENT_BIT(kind);
    return set;
}

static unsigned streamed_by(const sl_arch *arch, cli_stream_set set)
{
    unsigned streamed = 0;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        const bool wanted =
            set == CLI_STREAM_ALL || (set == CLI_STREAM_TEXT && kind == SL_COMPONENT_TEXT_ENCODER);
        if (wanted && sl_component_can_stream((sl_component_kind)kind) &&
            sl_arch_has_component(arch, (sl_component_kind)kind))
            streamed |= SL_COMPONENT_BIT(kind);
    }
    return streamed;
}

static sl_status get_plan(cli_asked *asked, cli_stream_set set, sl_error *err)
{
    sl_t2v_request request = asked->request;

    if (asked->made[set])
        return SL_OK;
    request.streamed = streamed_by(asked->arch, set);
    const sl_status status = sl_t2v_plan_make(&asked->plans[set], &request, asked->arch, err);
    asked->made[set] = status == SL_OK;
    return status;
}

/* ---- one way ---- */

/* Admission of some components with some activations. */
static sl_status admit(const cli_planner *p, const cli_asked *asked, const cli_verdict *way,
                       unsigned components, size_t activation_bytes, sl_core_answer *out,
                       sl_error *err)
{
    sl_core_job job = { .activation_bytes = activation_bytes };
    const sl_precision precision = asked->request.precision;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (!(components & SL_COMPONENT_BIT(kind)))
            continue;
        sl_core_need *need = &job.needs[job.need_count++];
        snprintf(need->key.model, sizeof need->key.model, "%s", asked->model);
        need->key.component = (sl_component_kind)kind;
        need->key.precision = sl_component_precision((sl_component_kind)kind, precision);
        need->size_bytes = way->plan->weight_bytes[kind];
    }
    sl_status status = sl_budget_facts_make(&job.facts, asked->model, asked->arch, components,
                                            precision, &asked->request, err);
    if (way->streamed & ANY_DIT) { /* two blocks of each are there, no expert is */
        job.facts.dit_whole = false;
        job.facts.experts = 0;
    }
    if (status == SL_OK)
        status = sl_core_plan(p->core, &job, out, err);
    return status;
}

static bool is_by_rule(const sl_core_answer *answer)
{
    return answer->rule[0] != 0;
}

/* The answer that decides: a refusal before none, a rule before bytes, then the
 * larger need. */
static bool outweighs(const sl_core_answer *a, const sl_core_answer *b)
{
    const bool a_never = a->when == SL_CORE_NEVER, b_never = b->when == SL_CORE_NEVER;

    if (a_never != b_never)
        return a_never;
    if (a_never && is_by_rule(a) != is_by_rule(b))
        return is_by_rule(a);
    return a->need_bytes > b->need_bytes;
}

static sl_status admit_phases(const cli_planner *p, const cli_asked *asked, cli_verdict *way,
                              sl_error *err)
{
    bool first = true;

    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        const unsigned components = way->plan->phase_components[phase];
        sl_core_answer answer;

        if (components == 0)
            continue;
        const sl_status status =
            admit(p, asked, way, components, sl_granules(way->plan->phase_activation_bytes[phase]),
                  &answer, err);
        if (status != SL_OK)
            return status;
        if (answer.need_bytes + p->workspace_bytes > way->peak_bytes)
            way->peak_bytes = answer.need_bytes + p->workspace_bytes;
        if (first || outweighs(&answer, &way->answer))
            way->answer = answer;
        first = false;
    }
    return SL_OK;
}

/* ---- speed ---- */

/* Guesses, for want of a measurement: they only say how much of the copying the
 * computation hides. */
static const struct {
    double flop_per_s, copy_bytes_per_s;
} guesses[] = {
    [SL_DEVICE_CPU] = { 1e11, 5e9 },
    [SL_DEVICE_CUDA] = { 2e14, 25e9 },
};

/* Of the VAE, for a pixel of a frame: measured times at a library's rate. */
#define DECODE_FLOP 1e7
#define ENCODE_FLOP 6e6

static double step_flop(const cli_asked *asked, double params)
{
    const sl_t2v_request *r = &asked->request;
    const sl_dit_config *dit = &asked->arch->dit;
    const double tokens = (1.0 + (r->frames - 1) / 4) * (r->width / 16) * (r->height / 16);
    const double kept = r->attention == SL_ATTENTION_DENSE ? 1.0 : r->topk_ratio;

    return 2.0 * params * tokens +
           4.0 * kept * (double)dit->num_layers * (double)dit->dim * tokens * tokens;
}

static sl_status estimate(const cli_planner *p, const cli_asked *asked, cli_verdict *way,
                          sl_error *err)
{
    const sl_t2v_request *r = &asked->request;
    const sl_t2v_plan *plan = way->plan;
    const double rate = guesses[p->device.kind].flop_per_s;
    const double pixels = (double)r->width * r->height * r->frames;
    sl_t2v_speed speed = { .copy_bytes_per_s = guesses[p->device.kind].copy_bytes_per_s };
    sl_budget_facts facts;
    const sl_status status =
        sl_budget_facts_make(&facts, asked->model, asked->arch, ANY_DIT, r->precision, NULL, err);

    if (status != SL_OK)
        return status;
    /* bf16: two bytes a parameter, two operations for it and a token */
    speed.phase_s[SL_PHASE_ENCODE_TEXT] =
        (double)plan->image_bytes[SL_COMPONENT_TEXT_ENCODER] * (double)r->token_count / rate;
    if (plan->phase_components[SL_PHASE_ENCODE_IMAGE])
        speed.phase_s[SL_PHASE_ENCODE_IMAGE] = pixels * ENCODE_FLOP / rate;
    for (int phase = SL_PHASE_DENOISE; phase <= SL_PHASE_DENOISE_LOW; phase++)
        speed.phase_s[phase] =
            plan->phase_steps[phase] * step_flop(asked, (double)facts.dit_params) / rate;
    speed.phase_s[SL_PHASE_DECODE] = pixels * DECODE_FLOP / rate;
    const sl_t2v_estimate e = sl_t2v_estimate_run(plan, &speed);
    way->slowdown = e.resident_s > 0.0 ? e.streamed_s / e.resident_s : 1.0;
    return SL_OK;
}

static sl_status judge_way(const cli_planner *p, cli_asked *asked, cli_stream_set set,
                           bool by_phase, cli_verdict *out, sl_error *err)
{
    sl_status status = get_plan(asked, set, err);

    if (status != SL_OK)
        return status;
    *out = (cli_verdict){ .by_phase = by_phase,
                          .streamed = streamed_by(asked->arch, set),
                          .plan = &asked->plans[set],
                          .slowdown = 1.0 };
    const sl_t2v_plan *plan = out->plan;
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        out->weight_bytes += plan->weight_bytes[kind];
        if (out->streamed & SL_COMPONENT_BIT(kind))
            out->host_bytes += plan->image_bytes[kind];
    }
    if (by_phase) {
        status = admit_phases(p, asked, out, err);
    } else {
        out->peak_bytes = out->weight_bytes + plan->activation_bytes + p->workspace_bytes;
        status =
            admit(p, asked, out, components_of(plan), plan->activation_bytes, &out->answer, err);
    }
    if (status == SL_OK && out->streamed)
        status = estimate(p, asked, out, err);
    return status;
}

/* ---- all ways ---- */

static bool is_allowed(cli_stream_set set, Sluice__V1__Streaming streaming)
{
    switch (streaming) {
    case SLUICE__V1__STREAMING__OFF:
        return set == CLI_STREAM_NONE;
    case SLUICE__V1__STREAMING__ON:
        return set == CLI_STREAM_ALL;
    default:
        return true;
    }
}

/* Of two refusals the one to tell of: bytes before a rule, since less can be
 * asked for, then the smaller need. */
static bool tells_more(const sl_core_answer *a, const sl_core_answer *b)
{
    if (is_by_rule(a) != is_by_rule(b))
        return is_by_rule(b);
    return !is_by_rule(a) && a->need_bytes < b->need_bytes;
}

sl_status cli_planner_judge(const cli_planner *planner, cli_asked *asked, cli_verdict *out,
                            sl_error *err)
{
    bool first = true;

    for (int set = 0; set < CLI_STREAM_COUNT; set++) {
        if (!is_allowed((cli_stream_set)set, asked->streaming))
            continue;
        for (int by_phase = 0; by_phase < 2; by_phase++) {
            cli_verdict way;
            const sl_status status =
                judge_way(planner, asked, (cli_stream_set)set, by_phase != 0, &way, err);

            if (status != SL_OK)
                return status;
            if (first || way.answer.when != SL_CORE_NEVER || tells_more(&way.answer, &out->answer))
                *out = way;
            if (way.answer.when != SL_CORE_NEVER)
                return SL_OK;
            first = false;
        }
    }
    return SL_OK;
}

/* ---- the nearest ---- */

/* Multiples of 16 near the same shape, and at least one of them. */
static int scaled(int pixels, int eighths)
{
    const int result = pixels * eighths / 8 / 16 * 16;

    return result > 0 ? result : 16;
}

/* Fits in one precision or another, from the one asked for down.  A precision that
 * the model cannot be kept in is passed over. */
static bool fits_somehow(const cli_planner *planner, cli_asked *asked, cli_verdict *verdict)
{
    for (int p = (int)asked->request.precision; p < SL_PRECISION_COUNT; p++) {
        sl_error ignored = { .status = SL_OK };

        memset(asked->made, 0, sizeof asked->made);
        asked->request.precision = (sl_precision)p;
        if (cli_planner_judge(planner, asked, verdict, &ignored) == SL_OK &&
            verdict->answer.when != SL_CORE_NEVER)
            return true;
    }
    return false;
}

sl_status cli_planner_nearest(const cli_planner *planner, const cli_asked *asked, bool *found,
                              sl_t2v_request *nearest, size_t *need_bytes, sl_error *err)
{
    static const int eighths[] = { 8, 6, 5, 4, 3, 2 };
    cli_asked *smaller = malloc(sizeof *smaller);
    cli_verdict verdict;
    int64_t best = 0;

    if (!smaller)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a plan");
    for (size_t r = 0; r < SL_COUNT(eighths); r++)
        for (int m = (asked->request.frames - 1) / 4;; m /= 2) {
            *smaller = *asked;
            sl_t2v_request *request = &smaller->request;
            request->width = scaled(asked->request.width, eighths[r]);
            request->height = scaled(asked->request.height, eighths[r]);
            request->frames = 4 * m + 1;
            const int64_t volume = (int64_t)request->width * request->height * request->frames;
            if (volume > best && fits_somehow(planner, smaller, &verdict)) {
                best = volume;
                *nearest = *request;
                *need_bytes = verdict.answer.need_bytes;
            }
            if (m == 0)
                break;
        }
    *found = best > 0;
    free(smaller);
    return SL_OK;
}
