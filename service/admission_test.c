/* Admission of the real models' plans: the table and the bytes together. */
#include "service/core.h"

#include "base/size.h"
#include "base/test.h"
#include "engine/pipeline/t2v.h"

#include <string.h>

#define WORKSPACE (64 * SL_MIB)

static sl_core_job job_of(const char *name, sl_precision precision, int width, int height,
                          int frames, sl_error *err)
{
    const sl_arch *arch = sl_arch_find(name);
    sl_t2v_request request = sl_t2v_request_default(arch);
    sl_core_job job = { .job_id = "j" };
    sl_t2v_plan plan;
    unsigned components = 0;

    request.width = width;
    request.height = height;
    request.frames = frames;
    request.precision = precision;
    request.token_count = arch->dit.text_len;
    SL_CHECK_OK(sl_t2v_plan_make(&plan, &request, arch, SL_DEVICE_CPU, err));
    for (int i = 0; i < SL_COMPONENT_COUNT; i++) {
        if (plan.weight_bytes[i] == 0)
            continue;
        sl_core_need *need = &job.needs[job.need_count++];
        snprintf(need->key.model, sizeof need->key.model, "%s", name);
        need->key.component = (sl_component_kind)i;
        need->key.precision = precision;
        need->size_bytes = plan.weight_bytes[i];
        components |= 1u << i;
    }
    job.activation_bytes = plan.activation_bytes;
    SL_CHECK_OK(sl_budget_facts_make(&job.facts, name, arch, components, precision, &request, err));
    return job;
}

static sl_core_answer answer_of(sl_device_kind kind, size_t limit_bytes, const sl_core_job *job,
                                sl_error *err)
{
    static sl_budget_table table;
    sl_core_config config = sl_core_config_default(kind, limit_bytes, WORKSPACE);
    sl_core_answer answer;
    sl_core *core = NULL;

    sl_budget_table_default(&table);
    config.table = &table;
    SL_CHECK_OK(sl_core_create(&core, &config, err));
    sl_core_worker_up(core, WORKSPACE);
    SL_CHECK_OK(sl_core_plan(core, job, &answer, err));
    sl_core_destroy(core);
    return answer;
}

SL_TEST(the_table_and_the_plan_decide_together)
{
    static const struct {
        const char *arch;
        sl_precision precision;
        sl_device_kind kind;
        size_t gib;
        int width, height, frames;
        bool by_rule;
        sl_core_when when;
    } cases[] = {
        { "tiny-t2v", SL_PRECISION_BF16, SL_DEVICE_CPU, 1, 128, 128, 17, false, SL_CORE_NOW },
        /* umT5 alone has 10.6 GiB in bf16: bytes, not rules */
        { "wan2.1-t2v-1.3b", SL_PRECISION_BF16, SL_DEVICE_CPU, 8, 832, 480, 81, false,
          SL_CORE_NEVER },
        { "wan2.1-t2v-1.3b", SL_PRECISION_BF16, SL_DEVICE_CUDA, 12, 832, 480, 81, false,
          SL_CORE_NEVER },
        { "wan2.1-t2v-1.3b", SL_PRECISION_BF16, SL_DEVICE_CUDA, 32, 832, 480, 17, false,
          SL_CORE_NOW },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, SL_DEVICE_CUDA, 16, 832, 480, 81, true,
          SL_CORE_NEVER },
        /* 28 GB of DiT and 11 GB of umT5: no rule, no room */
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, SL_DEVICE_CUDA, 24, 832, 480, 81, false,
          SL_CORE_NEVER },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, SL_DEVICE_CUDA, 48, 832, 480, 17, true,
          SL_CORE_NEVER },
        { "wan2.1-t2v-14b", SL_PRECISION_F32, SL_DEVICE_CUDA, 79, 832, 480, 17, true,
          SL_CORE_NEVER },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, SL_DEVICE_CUDA, 141, 832, 480, 81, false,
          SL_CORE_NOW },
        /* the same sizes on cpu, which has no rows */
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, SL_DEVICE_CPU, 16, 832, 480, 17, false,
          SL_CORE_NEVER },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, SL_DEVICE_CPU, 64, 832, 480, 17, false,
          SL_CORE_NOW },
    };

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        const sl_core_job job = job_of(cases[i].arch, cases[i].precision, cases[i].width,
                                       cases[i].height, cases[i].frames, err);
        const sl_core_answer answer = answer_of(cases[i].kind, cases[i].gib * SL_GIB, &job, err);
        if (answer.when != cases[i].when || (answer.rule[0] != '\0') != cases[i].by_rule)
            fail_msg("case %zu: %s", i, answer.message);
        if (answer.when == SL_CORE_NEVER && !cases[i].by_rule)
            SL_CHECK(answer.need_bytes > answer.have_bytes);
    }
}

/* Exactly what the plan needs is enough, a granule less is not. */
SL_TEST(the_edge_is_one_granule)
{
    const sl_core_job job = job_of("wan2.1-t2v-1.3b", SL_PRECISION_BF16, 832, 480, 81, err);
    size_t need = WORKSPACE + job.activation_bytes;

    for (int i = 0; i < job.need_count; i++)
        need += job.needs[i].size_bytes;
    SL_CHECK(answer_of(SL_DEVICE_CPU, need, &job, err).when == SL_CORE_NOW);
    const sl_core_answer answer = answer_of(SL_DEVICE_CPU, need - SL_GRANULE_BYTES, &job, err);
    SL_CHECK(answer.when == SL_CORE_NEVER);
    SL_CHECK(answer.need_bytes - answer.have_bytes == SL_GRANULE_BYTES);
}

SL_TEST_MAIN(SL_RUN(the_table_and_the_plan_decide_together), SL_RUN(the_edge_is_one_granule))
