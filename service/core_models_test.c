/* What the default table and the real models' plans come to on real cards: a job
 * as the service would make it, with all of its variants, against an empty device. */
#include "base/size.h"
#include "base/test.h"
#include "service/lanes.h"
#include "service/variants.h"

#include <string.h>

#define WORKSPACE sl_lanes_workspace_bytes(SL_DEVICE_CUDA, sl_lanes_default(SL_DEVICE_CUDA), 0)
#define AUTO      SL_STREAMING_AUTO
#define OFF       SL_STREAMING_OFF

static sl_core_job job_of(const char *model, sl_precision precision, int height,
                          sl_streaming streaming, sl_error *err)
{
    static sl_variants variants;
    sl_variants_ask ask = {
        .model = model, .arch = sl_arch_find(model), .streaming = streaming, .kind = SL_DEVICE_CUDA
    };
    sl_core_job job = { .job_id = "j" };

    SL_CHECK(ask.arch != NULL);
    ask.request = sl_t2v_request_default(ask.arch);
    ask.request.width = height == 480 ? 832 : 1280;
    ask.request.height = height;
    ask.request.frames = 81;
    ask.request.precision = precision;
    ask.request.vae_precision = sl_t2v_vae_precision_default(ask.kind, precision);
    SL_CHECK_OK(sl_variants_make(&variants, &job, &ask, err));
    SL_CHECK(job.variant_count == (streaming == SL_STREAMING_AUTO ? 6 : 2));
    return job;
}

static sl_core_answer answer_of(size_t gib, const sl_core_job *job, sl_error *err)
{
    static sl_budget_table table;
    sl_core_config config = sl_core_config_default(
        SL_DEVICE_CUDA, sl_lanes_arena_bytes(SL_DEVICE_CUDA, gib * SL_GIB), WORKSPACE);
    sl_core_answer answer;
    sl_core *core = NULL;

    sl_budget_table_default(&table);
    config.device_bytes = gib * SL_GIB;
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
        sl_streaming streaming;
        int variant; /* of variants.h, when AUTO; -1: never */
        bool by_rule;
    } cases[] = {
        { "wan2.1-t2v-1.3b", SL_PRECISION_INT8, 480, 16, OFF, 0, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_INT8, 480, 24, OFF, 0, false },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 480, 16, OFF, -1, true },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 480, 24, OFF, 1, false },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 720, 40, OFF, 0, false },
        { "wan2.2-i2v-a14b", SL_PRECISION_INT8, 720, 40, OFF, 1, false },
        { "wan2.2-i2v-a14b", SL_PRECISION_INT8, 720, 24, OFF, 1, false }, /* one expert at a time */
        { "wan2.2-i2v-a14b", SL_PRECISION_INT8, 720, 18, OFF, -1, false },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, 720, 48, AUTO, -1, true },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, 720, 140, OFF, 0, false },
        { "wan2.2-i2v-a14b", SL_PRECISION_BF16, 720, 140, OFF, 0, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_BF16, 480, 8, OFF, -1, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_BF16, 480, 8, AUTO, 2, false },
        { "wan2.1-t2v-1.3b", SL_PRECISION_INT8, 480, 8, AUTO, 2, false },
        { "wan2.1-t2v-14b", SL_PRECISION_INT8, 480, 12, AUTO, 4, false },
        { "wan2.1-t2v-14b", SL_PRECISION_BF16, 480, 12, AUTO, 4, false },
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
