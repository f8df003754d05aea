/* The core against a simulated worker and service: random operations, with every
 * rule of core.h checked after each.
 *
 *     core_sim_test             20 seeds x 50,000 operations
 *     core_sim_test soak [N]    N operations (1,000,000) on seeds of the clock's making
 *     core_sim_test seed S [N [T]]  that seed alone, to look at a failure, with all
 *                               actions from step T on
 */
#include "service/core_sim.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SEEDS = 20, OPERATIONS = 50000, SOAK_OPERATIONS = 1000000 };

static struct {
    uint64_t first_seed;
    int seeds;
    long operations, trace_from;
    bool verbose;
} plan = { .first_seed = 1, .seeds = SEEDS, .operations = OPERATIONS };

/* ---- making things up ---- */

static size_t image_bytes(const sim *s, int m, int p, sl_component_mode mode)
{
    return s->no_image[m][p] && mode == SL_MODE_RESIDENT ? 0 : s->sizes[m][p];
}

static sl_core_need make_need(const sim *s, int m, int p, sl_component_mode mode)
{
    return (sl_core_need){
        .key = sim_key(m, p, mode),
        .size_bytes = mode == SL_MODE_RESIDENT ? s->sizes[m][p] : (1 + s->sizes[m][p] / G / 6) * G,
        .host_bytes = image_bytes(s, m, p, mode),
    };
}

static void set_facts(sim *s, sl_budget_facts *facts, int m, bool streamed)
{
    snprintf(facts->model, sizeof facts->model, "m%d", m);
    facts->dit_params = m >= MODELS - 2 ? SL_BUDGET_14B_CLASS : 1;
    facts->precision = SL_PRECISION_BF16;
    facts->dit_whole = !streamed;
    facts->frames = 1 + (int)sim_roll(s, 100);
}

/* Text, one or two experts, decode. */
static sl_core_variant make_variant(sim *s, int m, bool by_phase, bool streams)
{
    sl_core_variant v = { .by_phase = by_phase, .streams = streams, .slowdown = streams ? 3 : 1 };

    for (int p = 0; p < PARTS; p++) {
        if (!sim_has_part(m, p))
            continue;
        const bool dit = p == 1 || p == 2;
        v.needs[v.need_count] = make_need(
            s, m, p, streams && (dit || sim_roll(s, 2)) ? SL_MODE_STREAMED : SL_MODE_RESIDENT);
        sl_core_phase_plan *phase = &v.phases[v.phase_count++];
        phase->needs = 1u << v.need_count++;
        phase->activation_bytes = (1 + sim_roll(s, 30)) * G;
        if (phase->activation_bytes > v.activation_bytes)
            v.activation_bytes = phase->activation_bytes;
        phase->resume_point = p == 3;
    }
    set_facts(s, &v.facts, m, streams);
    return v;
}

static sl_core_job make_spec(sim *s)
{
    sl_core_job spec = { .priority = (int)sim_roll(s, 3), .submitted_ns = s->now_ns };
    const int m = (int)sim_roll(s, MODELS);
    const uint64_t kind = sim_roll(s, 8);

    snprintf(spec.job_id, sizeof spec.job_id, "j%llu", (unsigned long long)s->next_seq);
    if (sim_roll(s, 4))
        snprintf(spec.user, sizeof spec.user, "u%d", (int)sim_roll(s, USERS));
    spec.cost = (double)sim_roll(s, 100) * 1e9;
    if (sim_roll(s, 10) == 0)
        spec.deadline_ns = s->now_ns + (int64_t)(1 + sim_roll(s, 200)) * SL_NS_PER_S;
    if (kind == 0) { /* the plain form */
        const sl_core_variant v = make_variant(s, m, false, false);
        spec.need_count = v.need_count;
        memcpy(spec.needs, v.needs, sizeof spec.needs);
        spec.activation_bytes = v.activation_bytes;
        spec.facts = v.facts;
        return spec;
    }
    if (kind < 7)
        spec.variants[spec.variant_count++] = make_variant(s, m, false, false);
    if (kind > 3)
        spec.variants[spec.variant_count++] = make_variant(s, m, true, false);
    if (kind > 1)
        spec.variants[spec.variant_count++] = make_variant(s, m, false, true);
    if (kind == 6)
        spec.variants[spec.variant_count++] = make_variant(s, m, true, true);
    return spec;
}

/* ---- the clients' side ---- */

static void submit_job(sim *s, sl_error *err)
{
    sim_job *j = NULL;

    for (int i = 0; i < MAX_OPEN && !j; i++)
        if (s->jobs[i].state == FREE)
            j = &s->jobs[i];
    SIM_CHECK(s, j != NULL); /* the queue's limit is below */
    const sl_core_job spec = make_spec(s);
    sl_core_answer answer;
    if (sim_roll(s, 5) == 0)
        SIM_CHECK(s, sl_core_plan(s->core, &spec, &answer, err) == SL_OK);
    const sl_status status = sl_core_submit(s->core, &spec, &answer, err);
    s->refused[status]++;
    SIM_CHECK(s, status == SL_OK || status == SL_ERR_TOO_LARGE || status == SL_ERR_BUSY ||
                     (status == SL_ERR_TIMEOUT && spec.deadline_ns > 0));
    SIM_CHECK(s, (status == SL_ERR_TOO_LARGE) == (answer.when == SL_CORE_NEVER));
    if (status != SL_OK)
        return;
    sim_trace(s, "submit %s priority %d user \"%s\" variants %d of m%c", spec.job_id, spec.priority,
              spec.user, spec.variant_count,
              spec.variant_count ? spec.variants[0].facts.model[1] : spec.facts.model[1]);
    *j = (sim_job){ .state = QUEUED, .seq = s->next_seq++, .spec = spec, .attempt = 1 };
    if (spec.variant_count == 0) {
        j->spec.variants[0] = (sl_core_variant){ .need_count = spec.need_count,
                                                 .activation_bytes = spec.activation_bytes,
                                                 .facts = spec.facts };
        memcpy(j->spec.variants[0].needs, spec.needs, sizeof spec.needs);
    }
    s->submitted++;
}

static sim_job *any_job(sim *s, sim_state state)
{
    const int start = (int)sim_roll(s, MAX_OPEN);

    for (int i = 0; i < MAX_OPEN; i++)
        if (s->jobs[(start + i) % MAX_OPEN].state == state)
            return &s->jobs[(start + i) % MAX_OPEN];
    return NULL;
}

static void cancel_job(sim *s, sl_error *err)
{
    sim_job *j = any_job(s, (sim_state)(QUEUED + sim_roll(s, 3)));

    if (!j)
        return;
    SIM_CHECK(s, sl_core_cancel(s->core, j->spec.job_id, s->now_ns, err) == SL_OK);
    j->cancelled = true;
}

static sim_ticket *new_ticket(sim *s)
{
    for (int i = 0; i < MAX_OPEN_TICKETS; i++)
        if (s->tickets[i].id == 0)
            return &s->tickets[i];
    return NULL;
}

static int make_needs(sim *s, int m, sl_core_need *needs)
{
    const unsigned parts = 1 + (unsigned)sim_roll(s, 15);
    int count = 0;

    for (int p = 0; p < PARTS; p++)
        if ((parts >> p & 1) && sim_has_part(m, p))
            needs[count++] =
                make_need(s, m, p, sim_roll(s, 8) == 0 ? SL_MODE_STREAMED : SL_MODE_RESIDENT);
    return count;
}

static void note_ticket(sim *s, uint64_t id, sim_ticket t, const sl_core_need *needs, int count)
{
    sim_ticket *slot = new_ticket(s);

    SIM_CHECK(s, slot != NULL);
    sim_trace(s, "ticket t%llu %s mode %d", (unsigned long long)id,
              t.is_load ? (t.host ? "load host" : "load") : (t.others ? "others" : "unload"),
              t.mode);
    t.id = id;
    t.count = count;
    for (int i = 0; i < count; i++)
        t.keys[i] = needs[i].key;
    *slot = t;
}

static void load_some(sim *s, sl_error *err)
{
    const int m = (int)sim_roll(s, MODELS);
    const bool host = sim_roll(s, 3) == 0;
    sl_core_need needs[PARTS];
    sl_budget_facts facts = { 0 };
    uint64_t id;

    const int count = make_needs(s, m, needs);
    set_facts(s, &facts, m, false);
    const sl_status status = host ? sl_core_load_host(s->core, needs, count, &id, NULL, err)
                                  : sl_core_load(s->core, needs, count, &facts, &id, NULL, err);
    if (status == SL_OK)
        note_ticket(s, id, (sim_ticket){ .is_load = true, .host = host }, needs, count);
    else
        SIM_CHECK(s, status == SL_ERR_TOO_LARGE || status == SL_ERR_INVALID);
}

static void unload_some(sim *s, sl_error *err)
{
    const sl_core_unload_mode mode = (sl_core_unload_mode)(sim_roll(s, 20) % 3 * sim_roll(s, 2));
    const sl_core_if_used used = (sl_core_if_used)sim_roll(s, 3);
    sl_core_need needs[PARTS];
    sl_core_key keys[PARTS];
    uint64_t id;

    const int count = make_needs(s, (int)sim_roll(s, MODELS), needs);
    for (int i = 0; i < count; i++)
        keys[i] = needs[i].key;
    const sl_status status = sl_core_unload_as(s->core, keys, count, mode, used, &id, err);
    if (status == SL_OK)
        note_ticket(s, id, (sim_ticket){ .mode = mode }, needs, count);
    else
        SIM_CHECK(s, status ==
                         (used == SL_CORE_USED_REFUSE && (count > 0 || mode == SL_CORE_UNLOAD_HARD)
                              ? SL_ERR_PRECONDITION
                              : SL_ERR_INVALID));
}

static void switch_model(sim *s, sl_error *err)
{
    const sl_core_unload_mode mode = (sl_core_unload_mode)sim_roll(s, 3);
    const sl_core_if_used used = sim_roll(s, 2) ? SL_CORE_USED_NOW : SL_CORE_USED_WAIT;
    const int m = (int)sim_roll(s, MODELS);
    sl_core_need needs[PARTS];
    sl_budget_facts facts = { 0 };
    uint64_t ids[SL_CORE_SWITCH_STEPS];

    const int count = make_needs(s, m, needs);
    set_facts(s, &facts, m, false);
    if (sl_core_switch(s->core, needs, count, &facts, mode, used, ids, NULL, err) != SL_OK)
        return;
    note_ticket(s, ids[0], (sim_ticket){ .others = true }, needs, count);
    note_ticket(s, ids[1], (sim_ticket){ .others = true, .mode = mode }, needs, count);
    note_ticket(s, ids[2], (sim_ticket){ .is_load = true }, needs, count);
}

static void trim(sim *s, sl_error *err)
{
    uint64_t id;

    SIM_CHECK(s, sl_core_trim(s->core, &id, err) == SL_OK);
    note_ticket(s, id, (sim_ticket){ .trim = true }, NULL, 0);
}

/* What a load that is open asks for may stay pinned. */
static void unpin_some(sim *s)
{
    sl_core_need needs[PARTS];
    sl_core_key keys[PARTS];

    const int count = make_needs(s, (int)sim_roll(s, MODELS), needs);
    for (int i = 0; i < count; i++) {
        keys[i] = needs[i].key;
        sim_find(s, &keys[i])->pinned = false;
        sim_find_image(s, &keys[i])->pinned = false;
    }
    sl_core_unpin(s->core, keys, count);
}

static int open_tickets(const sim *s)
{
    int count = 0;

    for (int i = 0; i < MAX_OPEN_TICKETS; i++)
        count += s->tickets[i].id != 0;
    return count;
}

static void change_ticket(sim *s, sl_error *err)
{
    if (open_tickets(s) > MAX_OPEN_TICKETS - SL_CORE_SWITCH_STEPS)
        return;
    switch (sim_roll(s, 9)) {
    case 8:
        unpin_some(s);
        break;
    case 0:
    case 1:
    case 2:
        load_some(s, err);
        break;
    case 3:
        switch_model(s, err);
        break;
    case 4:
        trim(s, err);
        break;
    default:
        unload_some(s, err);
    }
}

/* ---- the operator's side ---- */

static void all_refusable(sim *s)
{
    for (int i = 0; i < MAX_OPEN; i++)
        s->jobs[i].refusable = true;
}

static sl_core_limits roll_limits(sim *s)
{
    return (sl_core_limits){ .max_running_jobs = 1 + (int)sim_roll(s, 3),
                             .prepare_jobs = (int)sim_roll(s, 2),
                             .queue_limit = 4 + (int)sim_roll(s, 12),
                             .bypass_limit = (int)sim_roll(s, 3) * (int)sim_roll(s, 5),
                             .user_running_limit = (int)sim_roll(s, 3),
                             .user_queued_limit = (int)sim_roll(s, 2) * 5,
                             .host_limit_bytes = sim_roll(s, 3) * (20 + sim_roll(s, 100)) * G };
}

static void change_settings(sim *s, sl_error *err)
{
    switch (sim_roll(s, 4)) {
    case 0:
        s->table = sim_roll(s, 3) ? s->tables[sim_roll(s, 2)] : NULL;
        all_refusable(s);
        sl_core_set_table(s->core, s->table);
        break;
    case 1: {
        sl_core_limits limits = roll_limits(s);
        int most = 0;
        /* A bound that is lowered cannot undo what has happened. */
        for (int i = 0; i < MAX_OPEN; i++)
            if (s->jobs[i].state != FREE && s->jobs[i].passed > most)
                most = s->jobs[i].passed;
        if (limits.bypass_limit < most)
            limits.bypass_limit = most;
        const sl_status status = sl_core_set_limits(s->core, &limits, err);
        SIM_CHECK(s, status == SL_OK || (status == SL_ERR_PRECONDITION &&
                                         limits.host_limit_bytes < s->limits.host_limit_bytes));
        if (status == SL_OK)
            s->limits = limits;
        all_refusable(s);
        break;
    }
    case 2: /* files change */
        s->sizes[sim_roll(s, MODELS)][sim_roll(s, PARTS)] = (1 + sim_roll(s, 30)) * G;
        break;
    default:
        s->draining = !s->draining && sim_roll(s, 3) == 0;
        sl_core_set_draining(s->core, s->draining);
    }
}

/* Its next attempt starts over. */
static void lose_state(sim *s)
{
    sim_job *j = any_job(s, RUNNING);

    if (!j)
        return;
    sl_core_lose_state(s->core, j->spec.job_id);
    j->state_lost = true;
    j->spec.first_phase = 0;
}

static void random_step(sim *s, sl_error *err)
{
    const uint64_t dice = sim_roll(s, 1000);
    sim_job *j;

    s->now_ns += (int64_t)sim_roll(s, 500) * SL_NS_PER_MS;
    if (s->must_die && sim_roll(s, 3) == 0)
        sim_worker_dies(s);
    else if (dice < 150)
        submit_job(s, err);
    else if (dice < 175)
        cancel_job(s, err);
    else if (dice < 215)
        change_ticket(s, err);
    else if (dice < 225)
        change_settings(s, err);
    else if (dice < 230)
        sim_worker_dies(s);
    else if (dice < 233)
        lose_state(s);
    else if (dice < 330)
        sim_worker_comes(s);
    else if (dice < 700 && !s->must_die)
        sim_finish_command(s, false);
    else if (!s->must_die && (j = any_job(s, RUNNING)) != NULL)
        sim_advance(s, j, false);
}

/* ---- the end ---- */

static bool push_all(sim *s)
{
    bool busy = sim_finish_command(s, true);

    for (int i = 0; i < MAX_OPEN; i++)
        busy = sim_advance(s, &s->jobs[i], true) || busy;
    return busy;
}

static void unpin_all(sim *s, sl_error *err)
{
    for (int m = 0; m < MODELS; m++) {
        sl_core_need needs[PARTS];
        sl_core_key keys[PARTS];
        uint64_t id;

        for (int mode = 0; mode < MODES; mode++) {
            for (int p = 0; p < PARTS; p++) {
                needs[p].key = keys[p] = sim_key(m, p, mode);
            }
            if (open_tickets(s) < MAX_OPEN_TICKETS &&
                sl_core_unload(s->core, keys, PARTS, &id, err) == SL_OK)
                note_ticket(s, id, (sim_ticket){ .mode = SL_CORE_UNLOAD_FULL }, needs, PARTS);
        }
    }
}

/* Everything is unpinned and let finish: nothing may be left. */
static void wind_up(sim *s, sl_error *err)
{
    const long end = s->step + 20000;
    bool empty = false;

    s->draining = false;
    sl_core_set_draining(s->core, false);
    while (!empty) {
        s->step++;
        SIM_CHECK(s, s->step < end);
        s->now_ns += SL_NS_PER_S;
        if (s->must_die)
            sim_worker_dies(s);
        sim_worker_comes(s);
        const bool busy = push_all(s);
        sim_drain(s);
        if (busy || s->command.kind != SL_CORE_NONE)
            continue;
        empty = sl_core_component_count(s->core) == 0 && sl_core_queued_count(s->core) == 0;
        unpin_all(s, err);
        sim_drain(s);
    }
    SIM_CHECK(s, sim_open_jobs(s, FREE) == MAX_OPEN);
    SIM_CHECK(s, open_tickets(s) == 0);
    SIM_CHECK(s, s->mapped == s->config.workspace_bytes && s->images == 0);
}

/* Half of the models are of the 14B class; tables speak of that and of frames. */
static void make_tables(sl_budget_table tables[2])
{
    memset(tables, 0, 2 * sizeof tables[0]);
    for (int i = 0; i < 2; i++) {
        tables[i].row_count = 1;
        tables[i].rows[0] = (sl_budget_row){ .name = "any", .to_bytes = SIZE_MAX, .rule_count = 2 };
        tables[i].rows[0].rules[0] = (sl_budget_rule){ .text = "experts apart",
                                                       .dit_params_from = SL_BUDGET_14B_CLASS,
                                                       .experts_together = true };
    }
    tables[0].rows[0].rules[1] = (sl_budget_rule){ .text = "short ones", .frames_above = 80 };
    tables[1].rows[0].rules[1] =
        (sl_budget_rule){ .text = "streamed", .model = "m1", .dit_whole = true };
}

static void simulate(sim *s, const sl_budget_table *tables, uint64_t seed, long operations,
                     sl_error *err)
{
    memset(s, 0, sizeof *s);
    s->seed = s->random = seed;
    s->trace_from = plan.trace_from;
    s->tables[0] = &tables[0];
    s->tables[1] = &tables[1];
    s->limits = roll_limits(s);
    s->config =
        sl_core_config_default(SL_DEVICE_CPU, (60 + sim_roll(s, 100)) * G, sim_roll(s, 8) * G);
    s->config.max_running_jobs = s->limits.max_running_jobs;
    s->config.prepare_jobs = s->limits.prepare_jobs;
    s->config.queue_limit = s->limits.queue_limit;
    s->config.bypass_limit = s->limits.bypass_limit;
    s->config.user_running_limit = s->limits.user_running_limit;
    s->config.user_queued_limit = s->limits.user_queued_limit;
    s->config.host_limit_bytes = s->limits.host_limit_bytes;
    for (int m = 0; m < MODELS; m++)
        for (int p = 0; p < PARTS; p++) {
            s->sizes[m][p] = (1 + sim_roll(s, 30)) * G;
            s->no_image[m][p] = sim_roll(s, 6) == 0;
        }
    SL_CHECK_OK(sl_core_create(&s->core, &s->config, err));
    for (s->step = 0; s->step < operations; s->step++) {
        random_step(s, err);
        sim_drain(s);
    }
    wind_up(s, err);
    sl_core_destroy(s->core);
}

static void add(sim *sum, const sim *s)
{
    for (int i = 0; i < SL_STATUS_COUNT; i++) {
        sum->ended[i] += s->ended[i];
        sum->refused[i] += s->refused[i];
    }
    sum->submitted += s->submitted;
    sum->admitted += s->admitted;
    sum->requeued += s->requeued;
    sum->loads += s->loads;
    sum->host_loads += s->host_loads;
    sum->unloads += s->unloads;
    sum->fills += s->fills;
    sum->drops += s->drops;
    sum->gos += s->gos;
    sum->preempts += s->preempts;
    sum->trims += s->trims;
    sum->deaths += s->deaths;
    sum->side_by_side += s->side_by_side;
    sum->tickets_ended += s->tickets_ended;
    sum->passes += s->passes;
    sum->streamed_runs += s->streamed_runs;
    sum->by_phase_runs += s->by_phase_runs;
    if (s->most_passed > sum->most_passed)
        sum->most_passed = s->most_passed;
}

static void print_sum(const sim *sum)
{
    print_message("jobs: %ld submitted, %ld admitted, %ld requeued; refused: %ld never, %ld busy, "
                  "%ld late\n",
                  sum->submitted, sum->admitted, sum->requeued, sum->refused[SL_ERR_TOO_LARGE],
                  sum->refused[SL_ERR_BUSY], sum->refused[SL_ERR_TIMEOUT]);
    for (int i = 0; i < SL_STATUS_COUNT; i++)
        if (sum->ended[i])
            print_message("  %ld ended: %s\n", sum->ended[i], sl_status_text((sl_status)i));
    print_message(
        "runs: %ld side by side, %ld streamed, %ld by phase (%ld edges), %ld pre-empted\n",
        sum->side_by_side, sum->streamed_runs, sum->by_phase_runs, sum->gos, sum->preempts);
    print_message("queue: passed %ld times, nobody more than %ld times\n", sum->passes,
                  sum->most_passed);
    print_message("loader: %ld loads (%ld from the host), %ld unloads, %ld fills, %ld drops, %ld "
                  "trims; %ld tickets, %ld deaths\n",
                  sum->loads, sum->host_loads, sum->unloads, sum->fills, sum->drops, sum->trims,
                  sum->tickets_ended, sum->deaths);
}

SL_TEST(every_rule_holds_whatever_happens)
{
    sl_budget_table *tables = calloc(2, sizeof *tables);
    sim *s = malloc(sizeof *s), *sum = calloc(1, sizeof *sum);
    const long total = plan.seeds * plan.operations;

    SL_CHECK(tables && s && sum);
    make_tables(tables);
    for (int i = 0; i < plan.seeds; i++) {
        const unsigned long long seed = plan.first_seed + (unsigned)i;
        if (plan.verbose)
            print_message("seed %llu\n", seed);
        simulate(s, tables, seed, plan.operations, err);
        add(sum, s);
    }
    if (plan.verbose)
        print_sum(sum);
    /* The dice must have reached what this is about. */
    if (total >= SEEDS * OPERATIONS) {
        SL_CHECK(sum->ended[SL_OK] > total / 200 && sum->ended[SL_ERR_CANCELLED] > total / 400);
        SL_CHECK(sum->side_by_side > total / 500 && sum->streamed_runs > total / 2000);
        SL_CHECK(sum->gos > total / 2000 && sum->preempts > total / 10000);
        SL_CHECK(sum->host_loads > total / 200 && sum->drops > total / 500);
        SL_CHECK(sum->passes > total / 500 && sum->deaths > total / 500);
        SL_CHECK(sum->ended[SL_ERR_TIMEOUT] > 0 && sum->ended[SL_ERR_TOO_LARGE] > 0);
        SL_CHECK(sum->refused[SL_ERR_TIMEOUT] > 0 && sum->trims > 0);
    }
    free(tables);
    free(s);
    free(sum);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = { SL_RUN(every_rule_holds_whatever_happens) };

    if (argc > 1 && strcmp(argv[1], "soak") == 0) {
        const long operations = argc > 2 ? atol(argv[2]) : SOAK_OPERATIONS;
        plan.first_seed = (uint64_t)time(NULL) * 1000;
        plan.operations = OPERATIONS;
        plan.seeds = (int)((operations + OPERATIONS - 1) / OPERATIONS);
        plan.verbose = true;
    } else if (argc > 2 && strcmp(argv[1], "seed") == 0) {
        plan.first_seed = strtoull(argv[2], NULL, 10);
        plan.seeds = 1;
        plan.verbose = true;
        if (argc > 3)
            plan.operations = atol(argv[3]);
        if (argc > 4)
            plan.trace_from = atol(argv[4]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
