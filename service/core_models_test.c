/* What the default table and the real models' plans come to on real cards: a job
 * as the service would make it, with all of its variants, against an empty device. */
#include "service/core.h"

#include "base/size.h"
#include "base/test.h"
#include "engine/pipeline/t2v.h"

#include <string.h>

#define WORKSPACE (256 * SL_MIB)
#define TEXT      SL_COMPONENT_BIT(SL_COMPONENT_TEXT_ENCODER)
#define DITS                                                                                       \
    (SL_COMPONENT_BIT(SL_COMPONENT_DIT) | SL_COMPONENT_BIT(SL_COMPONENT_DIT_HIGH) |                \
     SL_COMPONENT_BIT(SL_COMPONENT_DIT_LOW))

static unsigned components_of(const sl_arch *arch)
{
    unsigned set = 0;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (sl_arch_has_component(arch, (sl_component_kind)kind))
            set |= SL_COMPONENT_BIT(kind);
    return set;
}

static sl_core_need need_of(const char *model, const sl_t2v_request *request,
                            const sl_t2v_plan *plan, sl_component_kind kind)
{
    sl_core_need need = { .size_bytes = plan->weight_bytes[kind],
                          .host_bytes = plan->image_bytes[kind] };

    snprintf(need.key.model, sizeof need.key.model, "%s", model);
    need.key.component = kind;
    need.key.precision = sl_component_precision(kind, request->precision);
    need.key.mode =
        request->streamed & SL_COMPONENT_BIT(kind) ? SL_MODE_STREAMED : SL_MODE_RESIDENT;
    return need;
}

static sl_core_variant variant_of(const char *model, const sl_arch *arch, sl_t2v_request request,
                                  unsigned streamed, bool by_phase, sl_error *err)
{
    sl_core_variant v = { .by_phase = by_phase, .streams = streamed != 0 };
    unsigned bit_of[SL_COMPONENT_COUNT] = { 0 };
    sl_t2v_plan plan;

    request.streamed = streamed & components_of(arch);
    SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, arch, err));
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (plan.weight_bytes[kind] == 0)
            continue;
        bit_of[kind] = 1u << v.need_count;
        v.needs[v.need_count++] = need_of(model, &request, &plan, (sl_component_kind)kind);
    }
    for (int p = 0; p < SL_PHASE_COUNT; p++) {
        sl_core_phase_plan *phase = &v.phases[v.phase_count];
        if (plan.phase_components[p] == 0)
            continue;
        for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
            if (plan.phase_components[p] & SL_COMPONENT_BIT(kind))
                phase->needs |= bit_of[kind];
        phase->activation_bytes = sl_granules(plan.phase_activation_bytes[p]);
        v.phase_count++;
    }
    v.activation_bytes = plan.activation_bytes;
    SL_CHECK_OK(sl_budget_facts_make(&v.facts, model, arch, components_of(arch), request.precision,
                                     &request, err));
    v.facts.dit_whole = !(streamed & DITS);
    return v;
}

/* All at once, phase by phase, then with the text encoder streamed, then with all. */
static sl_core_job job_of(const char *model, sl_precision precision, int height, bool streaming,
                          sl_error *err)
{
    const sl_arch *arch = sl_arch_find(model);
    sl_core_job job = { .job_id = "j" };

    SL_CHECK(arch != NULL);
    sl_t2v_request request = sl_t2v_request_default(arch);
    request.width = height == 480 ? 832 : 1280;
    request.height = height;
    request.frames = 81;
    request.precision = precision;
    request.token_count = arch->dit.text_len;
    for (int by_phase = 0; by_phase < 2; by_phase++)
        job.variants[job.variant_count++] = variant_of(model, arch, request, 0, by_phase, err);
    for (int by_phase = 0; by_phase < 2 && streaming; by_phase++)
        job.variants[job.variant_count++] =
            variant_of(model, arch, request, by_phase ? TEXT | DITS : TEXT, by_phase, err);
    return job;
}

static sl_core_answer answer_of(size_t gib, const sl_core_job *job, sl_error *err)
{
    static sl_budget_table table;
    sl_core_config config = sl_core_config_default(SL_DEVICE_CUDA, gib * SL_GIB, WORKSPACE);
    sl_core_answer answer;
    sl_core *core = NULL;

    sl_budget_table_default(&table);
    config.table = &table;
    config.host_limit_bytes = 96 * SL_GIB;
    SL_CHECK_OK(sl_core_create(&core, &config, err));
    sl_core_worker_up(core, WORKSPACE);
    SL_CHECK_OK(sl_core_plan(core, job, &answer, err));
    sl_core_destroy(core);
    return answer;
}

SL_TEST(the_seed_rows_hold_for_real_sizes)
{
    static const struct {
        const char *model;
        sl_precision precision;
        int height;
        size_t gib;
        bool streaming;
        int variant; /* 0 all at once, 1 by phase, 2 and 3 streamed; -1: never */
        bool by_rule;
    } cases[] = {
        { "wan2.1-t2v-1.3b", SL_PRECISION_INT8, 480, 16, false, 1, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_INT8, 480, 24, false, 0, false },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 480, 16, false, -1, true },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 480, 24, false, 1, false },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 720, 40, false, 0, false },
        { "wan2.2-i2v-a14b", SL_PRECISION_INT8, 720, 40, false, 1, false },
        { "wan2.2-i2v-a14b", SL_PRECISION_INT8, 720, 24, false, 1,
          false }, /* one expert at a time */
        { "wan2.2-i2v-a14b", SL_PRECISION_INT8, 720, 20, false, -1, false },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, 720, 48, true, -1, true },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, 720, 140, false, 0, false },
        { "wan2.2-i2v-a14b", SL_PRECISION_BF16, 720, 140, false, 0, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_BF16, 480, 8, false, -1, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_BF16, 480, 8, true, 3, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_INT8, 480, 8, true, 2, false },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 480, 12, true, 3, false },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, 480, 12, true, 3, false },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        const sl_core_job job =
            job_of(cases[i].model, cases[i].precision, cases[i].height, cases[i].streaming, err);
        const sl_core_answer answer = answer_of(cases[i].gib, &job, err);
        if (answer.variant != cases[i].variant || (answer.rule[0] != '\0') != cases[i].by_rule ||
            (answer.when == SL_CORE_NEVER) != (cases[i].variant < 0))
            fail_msg("%s %s %dp on %zu GiB: variant %d: %s", cases[i].model,
                     sl_precision_name(cases[i].precision), cases[i].height, cases[i].gib,
                     answer.variant, answer.message);
    }
}

SL_TEST_MAIN(SL_RUN(the_seed_rows_hold_for_real_sizes))
