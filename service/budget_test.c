#include "service/budget.h"

#include "base/size.h"
#include "base/test.h"

#include <string.h>

#define ALL_COMPONENTS(arch)                                                                       \
    (1u << SL_COMPONENT_TEXT_ENCODER | 1u << SL_COMPONENT_VAE |                                    \
     ((arch)->expert_count == 2 ? 1u << SL_COMPONENT_DIT_HIGH | 1u << SL_COMPONENT_DIT_LOW         \
                                : 1u << SL_COMPONENT_DIT))

static sl_budget_facts facts_of(const char *name, sl_precision precision, sl_error *err)
{
    const sl_arch *arch = sl_arch_find(name);
    sl_budget_facts facts;

    SL_CHECK(arch != NULL);
    SL_CHECK_OK(
        sl_budget_facts_make(&facts, "m", arch, ALL_COMPONENTS(arch), precision, NULL, err));
    return facts;
}

static bool allowed(const sl_budget_table *table, size_t device_bytes, const sl_budget_facts *facts)
{
    const sl_budget_row *row = sl_budget_find_row(table, SL_DEVICE_CUDA, device_bytes);
    SL_CHECK(row != NULL);
    return sl_budget_find_rule(row, facts) == NULL;
}

SL_TEST(parameters_are_counted)
{
    /* wan.md 1.2: 1.42 G and 14.29 G */
    const sl_budget_facts small = facts_of("wan2.1-t2v-1.3b", SL_PRECISION_BF16, err);
    const sl_budget_facts large = facts_of("wan2.1-t2v-14b", SL_PRECISION_BF16, err);

    SL_CHECK(small.dit_params > 1300000000 && small.dit_params < 1500000000);
    SL_CHECK(large.dit_params > 14000000000 && large.dit_params < 14600000000);
    SL_CHECK(small.dit_whole && small.experts == 0);
    SL_CHECK(facts_of("wan2.2-i2v-a14b", SL_PRECISION_F32, err).experts == 2);
}

/* design.md, "Budget table": every border from both sides. */
SL_TEST(the_default_rows_forbid_what_they_say)
{
    static const struct {
        const char *arch;
        size_t device_bytes;
        bool allowed;
    } cases[] = {
        { "wan2.1-t2v-1.3b", 8 * SL_GIB, true },
        { "wan2.1-t2v-14b", 12 * SL_GIB, false },
        { "wan2.1-t2v-14b", 16 * SL_GIB, false },
        { "wan2.1-t2v-14b", 16 * SL_GIB + 1, true },
        { "wan2.2-i2v-a14b", 24 * SL_GIB, false },
        { "wan2.2-i2v-a14b", 40 * SL_GIB - 1, false },
        { "wan2.1-t2v-14b", 40 * SL_GIB - 1, true },
        { "wan2.1-t2v-14b", 40 * SL_GIB, false }, /* unquantised */
        { "wan2.1-t2v-14b", 48 * SL_GIB, false },
        { "wan2.1-t2v-1.3b", 48 * SL_GIB, true },
        { "wan2.1-t2v-14b", 80 * SL_GIB - 1, false },
        { "wan2.1-t2v-14b", 80 * SL_GIB, true },
        { "wan2.2-i2v-a14b", 141 * SL_GIB, true },
        { "tiny-t2v", 2 * SL_MIB, true },
    };
    sl_budget_table *table = calloc(1, sizeof *table);

    SL_CHECK(table != NULL);
    sl_budget_table_default(table);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        const sl_budget_facts facts = facts_of(cases[i].arch, SL_PRECISION_BF16, err);
        if (allowed(table, cases[i].device_bytes, &facts) != cases[i].allowed)
            fail_msg("%s on %zu bytes", cases[i].arch, cases[i].device_bytes);
    }
    free(table);
}

SL_TEST(parts_of_a_model_and_streamed_ones_pass)
{
    const sl_arch *arch = sl_arch_find("wan2.2-i2v-a14b");
    sl_budget_table *table = calloc(1, sizeof *table);
    sl_budget_facts facts;

    SL_CHECK(table != NULL);
    sl_budget_table_default(table);
    SL_CHECK_OK(sl_budget_facts_make(&facts, "m", arch, 1u << SL_COMPONENT_VAE, SL_PRECISION_BF16,
                                     NULL, err));
    SL_CHECK(allowed(table, 12 * SL_GIB, &facts) && allowed(table, 48 * SL_GIB, &facts));
    SL_CHECK_OK(sl_budget_facts_make(&facts, "m", arch, 1u << SL_COMPONENT_DIT_LOW,
                                     SL_PRECISION_BF16, NULL, err));
    SL_CHECK(allowed(table, 24 * SL_GIB, &facts)); /* one expert at a time */
    facts.dit_whole = false;                       /* streamed */
    SL_CHECK(allowed(table, 12 * SL_GIB, &facts));
    SL_CHECK(!allowed(table, 48 * SL_GIB, &facts)); /* unquantised all the same */
    free(table);
}

SL_TEST(cpu_has_no_rows)
{
    sl_budget_table *table = calloc(1, sizeof *table);

    SL_CHECK(table != NULL);
    sl_budget_table_default(table);
    SL_CHECK(sl_budget_find_row(table, SL_DEVICE_CPU, 8 * SL_GIB) == NULL);
    const sl_budget_facts facts = facts_of("wan2.1-t2v-14b", SL_PRECISION_F32, err);
    SL_CHECK(sl_budget_find_rule(NULL, &facts) == NULL);
    free(table);
}

SL_TEST(every_condition_must_hold)
{
    const sl_budget_rule rule = { .text = "no",
                                  .model = "wan",
                                  .precisions = 1u << SL_PRECISION_F32,
                                  .pixels_above = 832 * 480,
                                  .frames_above = 81 };
    const sl_budget_row row = { .rule_count = 1, .rules = { rule } };
    sl_budget_facts facts = { .model = "mine",
                              .arch = "wan",
                              .precision = SL_PRECISION_F32,
                              .width = 1280,
                              .height = 720,
                              .frames = 85 };

    SL_CHECK(sl_budget_find_rule(&row, &facts) != NULL);
    facts.frames = 81;
    SL_CHECK(sl_budget_find_rule(&row, &facts) == NULL);
    facts.frames = 85;
    facts.width = 832, facts.height = 480;
    SL_CHECK(sl_budget_find_rule(&row, &facts) == NULL);
    facts.width = 1280;
    facts.precision = SL_PRECISION_BF16;
    SL_CHECK(sl_budget_find_rule(&row, &facts) == NULL);
    facts.precision = SL_PRECISION_F32;
    strcpy(facts.arch, "other");
    SL_CHECK(sl_budget_find_rule(&row, &facts) == NULL);
    strcpy(facts.model, "wan");
    SL_CHECK(sl_budget_find_rule(&row, &facts) != NULL);
}

SL_TEST(attention_is_a_requests)
{
    const sl_budget_rule rule = { .text = "no", .attentions = 1u << SL_ATTENTION_DENSE };
    const sl_budget_row row = { .rule_count = 1, .rules = { rule } };
    sl_budget_facts facts = { .width = 1280, .height = 720, .frames = 81 };

    SL_CHECK(sl_budget_find_rule(&row, &facts) != NULL);
    facts.attention = SL_ATTENTION_SLA;
    SL_CHECK(sl_budget_find_rule(&row, &facts) == NULL);
    facts = (sl_budget_facts){ .width = 0 }; /* a load attends to nothing */
    SL_CHECK(sl_budget_find_rule(&row, &facts) == NULL);
}

SL_TEST_MAIN(SL_RUN(parameters_are_counted), SL_RUN(the_default_rows_forbid_what_they_say),
             SL_RUN(parts_of_a_model_and_streamed_ones_pass), SL_RUN(cpu_has_no_rows),
             SL_RUN(every_condition_must_hold), SL_RUN(attention_is_a_requests))
