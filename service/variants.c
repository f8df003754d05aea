#include "service/variants.h"

#include "service/hosttier.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANY_DIT                                                                                    \
    (SL_COMPONENT_BIT(SL_COMPONENT_DIT) | SL_COMPONENT_BIT(SL_COMPONENT_DIT_HIGH) |                \
     SL_COMPONENT_BIT(SL_COMPONENT_DIT_LOW))

/* ---- time ---- */

/* A device's rates; see the header. */
static const struct {
    double flop_per_s, copy_bytes_per_s;
} guesses[] = {
    [SL_DEVICE_CPU] = { 1e11, 5e9 },
    [SL_DEVICE_CUDA] = { 2e14, 25e9 },
};

/* Of the VAE, for a pixel of a frame: measured times at a library's rate. */
#define DECODE_FLOP 1e7
#define ENCODE_FLOP 6e6

static double step_flop(const sl_variants_ask *ask, double params)
{
    const sl_t2v_request *r = &ask->request;
    const sl_dit_config *dit = &ask->arch->dit;
    const double tokens = (1.0 + (r->frames - 1) / 4) * (r->width / 16) * (r->height / 16);
    const double kept = r->attention == SL_ATTENTION_DENSE ? 1.0 : r->topk_ratio;
    const double walks = r->mode == SL_SAMPLER_UNIPC && r->guidance != 1.0 ? 2.0 : 1.0;

    return walks * (2.0 * params * tokens +
                    4.0 * kept * (double)dit->num_layers * (double)dit->dim * tokens * tokens);
}

/* Floating-point operations of each phase; their sum. */
static double guess_flop(const sl_variants_ask *ask, const sl_t2v_plan *plan, double dit_params,
                         double phase_flop[SL_PHASE_COUNT])
{
    const sl_t2v_request *r = &ask->request;
    const double pixels = (double)r->width * r->height * r->frames;
    double sum = 0.0;

    memset(phase_flop, 0, SL_PHASE_COUNT * sizeof *phase_flop);
    /* bf16: two bytes a parameter, two operations for it and a token */
    phase_flop[SL_PHASE_ENCODE_TEXT] =
        (double)plan->image_bytes[SL_COMPONENT_TEXT_ENCODER] * (double)r->token_count;
    if (plan->phase_components[SL_PHASE_ENCODE_IMAGE])
        phase_flop[SL_PHASE_ENCODE_IMAGE] = pixels * ENCODE_FLOP;
    for (int phase = SL_PHASE_DENOISE; phase <= SL_PHASE_DENOISE_LOW; phase++)
        phase_flop[phase] = plan->phase_steps[phase] * step_flop(ask, dit_params);
    if (plan->phase_components[SL_PHASE_DECODE])
        phase_flop[SL_PHASE_DECODE] = pixels * DECODE_FLOP;
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        sum += phase_flop[phase];
    return sum;
}

static double guess_slowdown(const sl_variants_ask *ask, const sl_t2v_plan *plan,
                             const double phase_flop[SL_PHASE_COUNT])
{
    sl_t2v_speed speed = { .copy_bytes_per_s = guesses[ask->kind].copy_bytes_per_s };

    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        speed.phase_s[phase] = phase_flop[phase] / guesses[ask->kind].flop_per_s;
    const sl_t2v_estimate e = sl_t2v_estimate_run(plan, &speed);
    return e.resident_s > 0.0 ? e.streamed_s / e.resident_s : 1.0;
}

/* ---- one way ---- */

static unsigned streamed_by(const sl_arch *arch, sl_stream_set set)
{
    unsigned streamed = 0;

    for (int k = 0; k < SL_COMPONENT_COUNT; k++) {
        const sl_component_kind kind = (sl_component_kind)k;
        const bool wanted =
            set == SL_STREAM_ALL || (set == SL_STREAM_TEXT && kind == SL_COMPONENT_TEXT_ENCODER);
        if (wanted && sl_component_can_stream(kind) && sl_arch_has_component(arch, kind))
            streamed |= SL_COMPONENT_BIT(k);
    }
    return streamed;
}

static sl_core_need need_of(const sl_variants_ask *ask, const sl_way *way, const sl_t2v_plan *plan,
                            sl_component_kind kind)
{
    const char *owner = ask->owners && ask->owners[kind] ? ask->owners[kind] : ask->model;
    const size_t host_bytes = sl_hosttier_cost_bytes(plan->image_bytes[kind]);
    sl_core_need need = {
        .key = { .component = kind,
                 .precision = sl_component_precision(kind, ask->request.precision),
                 .mode =
                     way->streamed & SL_COMPONENT_BIT(kind) ? SL_MODE_STREAMED : SL_MODE_RESIDENT },
        .size_bytes = plan->weight_bytes[kind],
        .host_bytes = host_bytes == SIZE_MAX ? 0 : host_bytes, /* larger than any image */
    };

    snprintf(need.key.model, sizeof need.key.model, "%s", owner);
    return need;
}

/* Phases that the run has, in their order.  By phase each maps its own bytes; else
 * what is mapped in one is what it needs from there on. */
static void fill_phases(sl_core_variant *variant, const sl_t2v_plan *plan)
{
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        sl_core_phase_plan *out = &variant->phases[variant->phase_count];
        if (plan->phase_components[phase] == 0)
            continue;
        *out = (sl_core_phase_plan){
            .activation_bytes = variant->by_phase ? sl_granules(plan->phase_activation_bytes[phase])
                                                  : plan->remaining_bytes[phase],
            /* The state behind the last step is in the latent file. */
            .resume_point = phase == SL_PHASE_DECODE,
        };
        for (int i = 0; i < variant->need_count; i++)
            if (plan->phase_components[phase] & SL_COMPONENT_BIT(variant->needs[i].key.component))
                out->needs |= 1u << i;
        variant->phase_count++;
    }
}

static size_t most_of_a_phase(const sl_core_variant *variant)
{
    size_t most = 0;

    for (int p = 0; p < variant->phase_count; p++) {
        size_t sum = variant->phases[p].activation_bytes;
        for (int i = 0; i < variant->need_count; i++)
            if (variant->phases[p].needs >> i & 1)
                sum += variant->needs[i].size_bytes;
        most = sum > most ? sum : most;
    }
    return most;
}

/* false: one of its components is larger than any image, and cannot be streamed. */
static bool make_way(const sl_variants_ask *ask, const sl_t2v_plan *plan,
                     const sl_budget_facts *facts, sl_way *way, sl_core_variant *variant)
{
    *variant = (sl_core_variant){ .activation_bytes = plan->activation_bytes,
                                  .by_phase = way->by_phase,
                                  .streams = way->streamed != 0,
                                  .slowdown = way->slowdown,
                                  .facts = *facts };
    if (way->streamed & ANY_DIT) { /* two blocks of each are there, no expert is */
        variant->facts.dit_whole = false;
        variant->facts.experts = 0;
    }
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (plan->weight_bytes[kind] == 0)
            continue;
        sl_core_need *need = &variant->needs[variant->need_count++];
        *need = need_of(ask, way, plan, (sl_component_kind)kind);
        way->weight_bytes += need->size_bytes;
        if (need->key.mode != SL_MODE_STREAMED)
            continue;
        if (need->host_bytes == 0)
            return false;
        way->host_bytes += need->host_bytes;
    }
    fill_phases(variant, plan);
    way->activation_bytes = plan->activation_bytes;
    way->peak_bytes = way->by_phase ? most_of_a_phase(variant) : plan->total_bytes;
    return true;
}

/* ---- all ways ---- */

static bool is_allowed(sl_stream_set set, sl_streaming streaming)
{
    switch (streaming) {
    case SL_STREAMING_OFF:
        return set == SL_STREAM_NONE;
    case SL_STREAMING_ON:
        return set == SL_STREAM_ALL;
    default:
        return true;
    }
}

static unsigned components_of(const sl_t2v_plan *plan)
{
    unsigned set = 0;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (plan->weight_bytes[kind] > 0)
            set |= SL_COMPONENT_BIT(kind);
    return set;
}

static sl_status make_set(sl_variants *out, sl_core_job *job, const sl_variants_ask *ask,
                          sl_stream_set set, sl_error *err)
{
    sl_t2v_request request = ask->request;
    sl_t2v_plan *plan = &out->plans[set];
    double phase_flop[SL_PHASE_COUNT];
    sl_budget_facts facts;

    request.streamed = streamed_by(ask->arch, set);
    sl_status status = sl_t2v_plan_make(plan, &request, ask->arch, ask->kind, err);
    if (status == SL_OK)
        status = sl_budget_facts_make(&facts, ask->model, ask->arch, components_of(plan),
                                      request.precision, &request, err);
    if (status != SL_OK)
        return status;
    const double flop = guess_flop(ask, plan, (double)facts.dit_params, phase_flop);
    if (out->count == 0)
        job->cost = flop;
    for (int by_phase = 0; by_phase < 2; by_phase++) {
        sl_way *way = &out->ways[out->count];
        *way =
            (sl_way){ .streamed = request.streamed,
                      .by_phase = by_phase != 0,
                      .set = set,
                      .slowdown = request.streamed ? guess_slowdown(ask, plan, phase_flop) : 1.0 };
        if (make_way(ask, plan, &facts, way, &job->variants[out->count]))
            out->count++;
    }
    return SL_OK;
}

sl_status sl_variants_make(sl_variants *out, sl_core_job *job, const sl_variants_ask *ask,
                           sl_error *err)
{
    sl_status status = SL_OK;

    out->count = 0;
    for (int set = 0; set < SL_STREAM_COUNT && status == SL_OK; set++)
        if (is_allowed((sl_stream_set)set, ask->streaming))
            status = make_set(out, job, ask, (sl_stream_set)set, err);
    if (status == SL_OK && out->count == 0)
        status = sl_fail(err, SL_ERR_INVALID,
                         "model \"%s\" cannot be streamed: its image is larger than any can be",
                         ask->model);
    job->variant_count = out->count;
    return status;
}

const sl_t2v_plan *sl_variants_plan(const sl_variants *variants, int way)
{
    SL_ASSERT(way >= 0 && way < variants->count);
    return &variants->plans[variants->ways[way].set];
}

/* ---- the nearest ---- */

typedef struct {
    sl_variants_ask ask; /* the one that is tried */
    const sl_variants_judge *judge;
    sl_variants variants;
    sl_core_job job;
    size_t need_bytes;
} search;

static bool can(search *s)
{
    sl_error ignored = { .status = SL_OK };

    return sl_t2v_request_check(&s->ask.request, s->ask.arch, &ignored) == SL_OK &&
           sl_variants_make(&s->variants, &s->job, &s->ask, &ignored) == SL_OK &&
           s->judge->can(s->judge->arg, &s->job, &s->need_bytes);
}

/* The most frames, 4m + 1 and at most as many as asked for; 0: not even one. */
static int most_frames(search *s, int asked)
{
    int low = -1, high = (asked - 1) / 4; /* 4 low + 1 frames can be done */

    while (low < high) {
        const int middle = low + (high - low + 1) / 2;
        s->ask.request.frames = 4 * middle + 1;
        if (can(s))
            low = middle;
        else
            high = middle - 1;
    }
    if (low < 0)
        return 0;
    s->ask.request.frames = 4 * low + 1;
    return can(s) ? s->ask.request.frames : 0;
}

static int scale_side(int side, int num, int den)
{
    const int scaled = side * num / den / 16 * 16;

    return scaled < 16 ? 16 : scaled;
}

sl_status sl_variants_nearest(const sl_variants_ask *ask, const sl_variants_judge *judge,
                              bool *found, sl_t2v_request *nearest, size_t *need_bytes,
                              sl_error *err)
{
    enum { SCALES = 16 };
    const sl_t2v_request *asked = &ask->request;
    search *s = malloc(sizeof *s);
    int64_t best = 0;
    bool best_is_video = false;

    if (!s)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a plan");
    memset(&s->job, 0, sizeof s->job);
    s->ask = *ask;
    s->judge = judge;
    for (int p = (int)asked->precision; p < SL_PRECISION_COUNT && !best; p++)
        for (int scale = SCALES; scale > 0; scale--) {
            sl_t2v_request *request = &s->ask.request;
            request->precision = (sl_precision)p;
            request->width = scale_side(asked->width, scale, SCALES);
            request->height = scale_side(asked->height, scale, SCALES);
            const int frames = most_frames(s, asked->frames);
            const int64_t volume = (int64_t)request->width * request->height * frames;
            /* Who asked for a video is not helped by a large picture. */
            const bool is_video = 2 * frames >= asked->frames;
            if (frames == 0 || is_video < best_is_video ||
                (is_video == best_is_video && volume <= best))
                continue;
            best = volume;
            best_is_video = is_video;
            *nearest = *request;
            *need_bytes = s->need_bytes;
        }
    *found = best > 0;
    free(s);
    return SL_OK;
}
