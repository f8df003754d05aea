/* The core against a simulated worker: thousands of random operations, with
 * every rule of core.h checked after each.  A failure prints its seed and step. */
#include "service/core.h"

#include "base/clock.h"
#include "base/size.h"
#include "base/test.h"

#include <string.h>

#define G SL_GRANULE_BYTES

enum { SEEDS = 300, STEPS = 250, MODELS = 5, PARTS = 3, MAX_JOBS = 2000, MAX_TICKETS = 2000 };

static const sl_component_kind part_kind[PARTS] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_DIT,
                                                    SL_COMPONENT_VAE };

typedef struct {
    bool ended, requeued_or_admitted, cancelled;
    sl_status status;
    int attempt;
    int model;
    size_t activations;
} sim_job;

typedef struct {
    bool ended, is_load;
    int model;
    unsigned parts; /* set */
} sim_ticket;

/* The worker, as the simulation sees it: what is mapped in truth, and what its
 * last event said. */
typedef struct {
    bool up, must_die;
    bool resident[MODELS][PARTS];
    size_t mapped, told;
    sl_core_action command; /* kind NONE: idle */
    bool started;
} sim_worker;

typedef struct {
    uint64_t seed, random;
    int step;
    int64_t now_ns;
    sl_core *core;
    size_t limit, workspace;
    size_t sizes[MODELS][PARTS];
    sim_worker worker;
    bool pinned[MODELS][PARTS]; /* by an ended load */
    int job_count, first_open;
    sim_job jobs[MAX_JOBS];
    int ticket_count;
    sim_ticket tickets[MAX_TICKETS]; /* index: ticket id - 1 */
    int admitted_count, evicted_count, deaths;
} sim;

#define SIM_CHECK(s, expr)                                                                         \
    do {                                                                                           \
        if (!(expr))                                                                               \
            fail_msg("seed %llu step %d: %s:%d: %s", (unsigned long long)(s)->seed, (s)->step,     \
                     __FILE__, __LINE__, #expr);                                                   \
    } while (0)

static uint64_t roll(sim *s, uint64_t sides)
{
    s->random += 0x9e3779b97f4a7c15u;
    uint64_t z = s->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % sides;
}

static sl_core_key key_of(int model, int part)
{
    sl_core_key key = { .component = part_kind[part], .precision = SL_PRECISION_BF16 };
    snprintf(key.model, sizeof key.model, "m%d", model);
    return key;
}

static void find_key(const sim *s, const sl_core_key *key, int *model, int *part)
{
    *model = key->model[1] - '0';
    for (*part = 0; *part < PARTS && part_kind[*part] != key->component; ++*part)
        ;
    SIM_CHECK(s, *model >= 0 && *model < MODELS && *part < PARTS);
}

static sl_core_job spec_of(const sim *s, int index)
{
    const sim_job *j = &s->jobs[index];
    sl_core_job spec = { .need_count = PARTS, .activation_bytes = j->activations };

    snprintf(spec.job_id, sizeof spec.job_id, "j%d", index);
    snprintf(spec.facts.model, sizeof spec.facts.model, "m%d", j->model);
    for (int p = 0; p < PARTS; p++) {
        spec.needs[p].key = key_of(j->model, p);
        spec.needs[p].size_bytes = s->sizes[j->model][p];
    }
    return spec;
}

static int index_of(const char *job_id)
{
    return atoi(job_id + 1);
}

/* ---- actions ---- */

static void on_load(sim *s, const sl_core_action *a)
{
    int model, part;

    find_key(s, &a->key, &model, &part);
    SIM_CHECK(s, !s->worker.resident[model][part]);
    SIM_CHECK(s, a->size_bytes == s->sizes[model][part]);
    s->worker.mapped += a->size_bytes;
    SIM_CHECK(s, s->worker.mapped <= s->limit);
}

static void on_unload(sim *s, const sl_core_action *a)
{
    int model, part;

    find_key(s, &a->key, &model, &part);
    SIM_CHECK(s, s->worker.resident[model][part]);
    /* A pin is only taken off by an unload ticket. */
    if (s->pinned[model][part]) {
        SIM_CHECK(s, a->ticket > 0 && !s->tickets[a->ticket - 1].is_load);
        SIM_CHECK(s, s->tickets[a->ticket - 1].model == model);
    }
    s->evicted_count += a->ticket == 0;
}

static void on_run(sim *s, const sl_core_action *a)
{
    const sim_job *j = &s->jobs[index_of(a->job_id)];

    SIM_CHECK(s, !j->ended && a->attempt == j->attempt && a->size_bytes == j->activations);
    for (int p = 0; p < PARTS; p++)
        SIM_CHECK(s, s->worker.resident[j->model][p]);
    SIM_CHECK(s, s->worker.mapped + j->activations <= s->limit);
}

static void on_job_ended(sim *s, const sl_core_action *a)
{
    sim_job *j = &s->jobs[index_of(a->job_id)];

    SIM_CHECK(s, !j->ended && a->attempt == j->attempt);
    SIM_CHECK(s, a->status != SL_ERR_CANCELLED || j->cancelled);
    j->ended = true;
    j->status = a->status;
}

static void on_ticket_ended(sim *s, const sl_core_action *a)
{
    SIM_CHECK(s, a->ticket >= 1 && a->ticket <= (uint64_t)s->ticket_count);
    sim_ticket *t = &s->tickets[a->ticket - 1];

    SIM_CHECK(s, !t->ended);
    t->ended = true;
    SIM_CHECK(s, a->receipt.residue_bytes == 0);
    for (int p = 0; p < PARTS; p++) {
        if (!(t->parts >> p & 1) || a->status != SL_OK)
            continue;
        s->pinned[t->model][p] = t->is_load;
        SIM_CHECK(s, s->worker.resident[t->model][p] == t->is_load);
    }
}

static void on_action(sim *s, const sl_core_action *a)
{
    sim_worker *w = &s->worker;
    int model, part;

    switch (a->kind) {
    case SL_CORE_LOAD:
    case SL_CORE_UNLOAD:
    case SL_CORE_RUN:
        SIM_CHECK(s, w->up && !w->must_die && w->command.kind == SL_CORE_NONE);
        if (a->kind == SL_CORE_LOAD)
            on_load(s, a);
        else if (a->kind == SL_CORE_UNLOAD)
            on_unload(s, a);
        else
            on_run(s, a);
        w->command = *a;
        w->started = false;
        break;
    case SL_CORE_CANCEL:
        SIM_CHECK(s, w->command.kind == SL_CORE_RUN);
        SIM_CHECK(s, strcmp(w->command.job_id, a->job_id) == 0);
        SIM_CHECK(s, s->jobs[index_of(a->job_id)].cancelled);
        break;
    case SL_CORE_RESTART:
        SIM_CHECK(s, w->up && !w->must_die);
        w->must_die = true;
        break;
    case SL_CORE_JOB_ADMITTED:
        /* First in, first out: everyone before has ended. */
        for (int i = s->first_open; i < index_of(a->job_id); i++)
            SIM_CHECK(s, s->jobs[i].ended);
        s->admitted_count++;
        break;
    case SL_CORE_JOB_REQUEUED:
        SIM_CHECK(s, a->attempt - s->jobs[index_of(a->job_id)].attempt <= 1 && a->attempt <= 3);
        s->jobs[index_of(a->job_id)].attempt = a->attempt;
        break;
    case SL_CORE_JOB_ENDED:
        on_job_ended(s, a);
        break;
    case SL_CORE_TICKET_ENDED:
        on_ticket_ended(s, a);
        break;
    case SL_CORE_PIN_LOST:
        find_key(s, &a->key, &model, &part);
        s->pinned[model][part] = false;
        break;
    default:
        SIM_CHECK(s, false);
    }
}

/* ---- what must be true at any time ---- */

static void check_ledger(const sim *s)
{
    sl_core_ledger l;

    sl_core_get_ledger(s->core, s->worker.told, &l);
    SIM_CHECK(s, l.limit_bytes == s->limit);
    SIM_CHECK(s, l.unexplained_bytes == 0);
    SIM_CHECK(s, l.workspace_bytes + l.weights_bytes + l.activations_bytes + l.reserved_bytes +
                     l.free_bytes ==
                 s->limit);
    if (s->worker.up)
        SIM_CHECK(s, l.workspace_bytes + l.weights_bytes + l.activations_bytes == s->worker.told);
}

/* Nothing that could go on stands still. */
static void check_progress(const sim *s)
{
    sl_core_answer answer;
    sl_error error;

    SIM_CHECK(s, sl_core_wake_ns(s->core) > s->now_ns);
    if (!s->worker.up || s->worker.must_die || s->worker.command.kind != SL_CORE_NONE)
        return;
    sl_core_active active;
    sl_core_get_active(s->core, &active);
    SIM_CHECK(s, !active.job_id[0]); /* an idle worker has no active job */
    for (int i = 0; i < s->ticket_count; i++)
        SIM_CHECK(s, s->tickets[i].ended);
    int head = s->first_open;
    while (head < s->job_count && s->jobs[head].ended)
        head++;
    if (head == s->job_count) {
        SIM_CHECK(s, sl_core_queued_count(s->core) == 0);
        return;
    }
    char id[16];
    snprintf(id, sizeof id, "j%d", head);
    SIM_CHECK(s, sl_core_position(s->core, id) == 1);
    SIM_CHECK(s, sl_core_waiting_for(s->core, id, &answer, &error) == SL_OK);
    /* It waits for a pin, or for its time after a refusal by the driver. */
    SIM_CHECK(s, answer.when == SL_CORE_AFTER || sl_core_wake_ns(s->core) != INT64_MAX);
}

static void drain(sim *s)
{
    static sl_core_action action;

    for (int i = 0; sl_core_next(s->core, s->now_ns, &action); i++) {
        SIM_CHECK(s, i < 10000);
        on_action(s, &action);
        check_ledger(s);
    }
    while (s->first_open < s->job_count && s->jobs[s->first_open].ended)
        s->first_open++;
    check_ledger(s);
    check_progress(s);
}

/* ---- the worker's side ---- */

static sl_status roll_status(sim *s, sl_core_action_kind kind)
{
    switch (roll(s, 30)) {
    case 0:
        return SL_ERR_DATA;
    case 1:
        return SL_ERR_NO_MEMORY;
    case 2:
        return roll(s, 4) == 0 ? SL_ERR_DEVICE : SL_OK;
    default:
        return kind == SL_CORE_UNLOAD && roll(s, 50) == 0 ? SL_ERR_INTERNAL : SL_OK;
    }
}

/* Ends the command and tells; false: there was none. */
static bool finish_command(sim *s, bool always_ok)
{
    sim_worker *w = &s->worker;
    const sl_core_action command = w->command;
    int model, part;

    if (command.kind == SL_CORE_NONE)
        return false;
    sl_core_done done = { .message = "", .before_bytes = w->told };
    done.status = always_ok ? SL_OK : roll_status(s, command.kind);
    if (command.kind == SL_CORE_RUN) {
        const sim_job *j = &s->jobs[index_of(command.job_id)];
        if (w->started)
            w->mapped -= command.size_bytes;
        if (j->cancelled && roll(s, 3))
            done.status = SL_ERR_CANCELLED;
    } else {
        find_key(s, &command.key, &model, &part);
        if (command.kind == SL_CORE_LOAD && done.status == SL_OK) {
            w->resident[model][part] = true;
            done.component_bytes = command.size_bytes;
        } else if (command.kind == SL_CORE_LOAD) {
            w->mapped -= command.size_bytes;
        } else if (done.status == SL_OK || done.status == SL_ERR_DATA ||
                   done.status == SL_ERR_NO_MEMORY) {
            done.status = SL_OK;
            w->resident[model][part] = false;
            w->mapped -= command.size_bytes;
        }
    }
    done.after_bytes = done.peak_bytes = w->mapped;
    done.duration_ns = 1;
    w->command.kind = SL_CORE_NONE;
    w->told = w->mapped;
    SIM_CHECK(s, sl_core_command_done(s->core, command.command_id, &done, s->now_ns));
    SIM_CHECK(s, done.status == SL_ERR_DEVICE ||
                     !sl_core_command_done(s->core, command.command_id, &done, s->now_ns));
    return true;
}

static void start_run(sim *s)
{
    sim_worker *w = &s->worker;

    if (w->command.kind != SL_CORE_RUN || w->started)
        return;
    w->started = true;
    w->mapped += w->command.size_bytes;
    w->told = w->mapped;
    sl_core_job_started(s->core, w->command.job_id);
}

static void worker_dies(sim *s)
{
    memset(&s->worker, 0, sizeof s->worker);
    s->deaths++;
    sl_core_worker_down(s->core, "killed by the simulation");
}

static void worker_comes(sim *s)
{
    if (s->worker.up)
        return;
    s->worker.up = true;
    s->worker.mapped = s->worker.told = s->workspace;
    sl_core_worker_up(s->core, s->workspace);
}

/* ---- the clients' side ---- */

static void submit_job(sim *s, sl_error *err)
{
    if (s->job_count == MAX_JOBS)
        return;
    sim_job *j = &s->jobs[s->job_count];
    *j = (sim_job){ .attempt = 1, .model = (int)roll(s, MODELS) };
    j->activations = (1 + roll(s, 50)) * G;

    const sl_core_job spec = spec_of(s, s->job_count);
    size_t need = j->activations + s->workspace;
    for (int p = 0; p < PARTS; p++)
        need += s->sizes[j->model][p];
    const sl_status status = sl_core_submit(s->core, &spec, NULL, err);
    SIM_CHECK(s, status == (need <= s->limit ? SL_OK : SL_ERR_TOO_LARGE));
    s->job_count += status == SL_OK;
}

static void cancel_job(sim *s, sl_error *err)
{
    if (s->job_count == 0)
        return;
    const int span = s->job_count - s->first_open + 1;
    const int index = s->job_count - 1 - (int)roll(s, (uint64_t)span) % s->job_count;
    char id[16];

    snprintf(id, sizeof id, "j%d", index);
    const bool was_open = !s->jobs[index].ended;
    const sl_status status = sl_core_cancel(s->core, id, s->now_ns, err);
    SIM_CHECK(s, status == (was_open ? SL_OK : SL_ERR_NOT_FOUND));
    if (was_open)
        s->jobs[index].cancelled = true;
}

static void add_ticket(sim *s, uint64_t id, bool is_load, int model, unsigned parts)
{
    SIM_CHECK(s, id == (uint64_t)s->ticket_count + 1);
    s->tickets[s->ticket_count++] =
        (sim_ticket){ .is_load = is_load, .model = model, .parts = parts };
}

static void load_or_unload(sim *s, bool is_load, sl_error *err)
{
    const int model = (int)roll(s, MODELS);
    const unsigned parts = 1 + (unsigned)roll(s, (1u << PARTS) - 1);
    sl_core_need needs[PARTS];
    sl_core_key keys[PARTS];
    sl_budget_facts facts = { 0 };
    uint64_t id;
    int count = 0;

    if (s->ticket_count == MAX_TICKETS)
        return;
    for (int p = 0; p < PARTS; p++) {
        if (!(parts >> p & 1))
            continue;
        keys[count] = key_of(model, p);
        needs[count] = (sl_core_need){ .key = keys[count], .size_bytes = s->sizes[model][p] };
        count++;
    }
    memcpy(facts.model, keys[0].model, sizeof facts.model);
    const sl_status status = is_load ? sl_core_load(s->core, needs, count, &facts, &id, NULL, err)
                                     : sl_core_unload(s->core, keys, count, &id, err);
    if (status == SL_OK)
        add_ticket(s, id, is_load, model, parts);
    else
        SIM_CHECK(s, status == (is_load ? SL_ERR_TOO_LARGE : SL_ERR_PRECONDITION));
}

static void random_step(sim *s, sl_error *err)
{
    const uint64_t dice = roll(s, 100);

    s->now_ns += (int64_t)roll(s, 500) * SL_NS_PER_MS;
    if (s->worker.must_die && roll(s, 3) == 0)
        worker_dies(s);
    else if (dice < 14)
        submit_job(s, err);
    else if (dice < 20)
        cancel_job(s, err);
    else if (dice < 28)
        load_or_unload(s, true, err);
    else if (dice < 36)
        load_or_unload(s, false, err);
    else if (dice < 38)
        worker_dies(s);
    else if (dice < 50)
        worker_comes(s);
    else if (dice < 65)
        start_run(s);
    else if (!s->worker.must_die)
        finish_command(s, false);
}

/* Everything is unpinned and let finish: nothing may be left. */
static void wind_up(sim *s, sl_error *err)
{
    for (int round = 0; round < 20000; round++) {
        s->step++;
        s->now_ns += SL_NS_PER_S;
        if (s->worker.must_die)
            worker_dies(s);
        worker_comes(s);
        start_run(s);
        const bool busy = finish_command(s, true);
        drain(s);
        if (!busy && s->worker.command.kind == SL_CORE_NONE) {
            if (sl_core_component_count(s->core) == 0 && sl_core_queued_count(s->core) == 0)
                break;
            for (int m = 0; m < MODELS; m++) {
                sl_core_key keys[PARTS];
                uint64_t id;
                for (int p = 0; p < PARTS; p++)
                    keys[p] = key_of(m, p);
                if (s->ticket_count < MAX_TICKETS &&
                    sl_core_unload(s->core, keys, PARTS, &id, err) == SL_OK)
                    add_ticket(s, id, false, m, (1u << PARTS) - 1);
            }
            drain(s);
        }
    }
    for (int i = 0; i < s->job_count; i++)
        SIM_CHECK(s, s->jobs[i].ended);
    for (int i = 0; i < s->ticket_count; i++)
        SIM_CHECK(s, s->tickets[i].ended);
    SIM_CHECK(s, sl_core_component_count(s->core) == 0);
    SIM_CHECK(s, s->worker.mapped == s->workspace);
}

static void simulate(sim *s, uint64_t seed, sl_error *err)
{
    memset(s, 0, sizeof *s);
    s->seed = s->random = seed;
    s->limit = (60 + roll(s, 100)) * G;
    s->workspace = roll(s, 8) * G;
    for (int m = 0; m < MODELS; m++)
        for (int p = 0; p < PARTS; p++)
            s->sizes[m][p] = (1 + roll(s, 30)) * G;
    sl_core_config config = sl_core_config_default(SL_DEVICE_CPU, s->limit, s->workspace);
    SL_CHECK_OK(sl_core_create(&s->core, &config, err));
    for (s->step = 0; s->step < STEPS; s->step++) {
        random_step(s, err);
        drain(s);
    }
    wind_up(s, err);
    sl_core_destroy(s->core);
}

SL_TEST(every_rule_holds_whatever_happens)
{
    sim *s = malloc(sizeof *s);
    long admitted = 0, evicted = 0, deaths = 0, done = 0, cancelled = 0;

    SL_CHECK(s != NULL);
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        simulate(s, seed, err);
        admitted += s->admitted_count;
        evicted += s->evicted_count;
        deaths += s->deaths;
        for (int i = 0; i < s->job_count; i++) {
            done += s->jobs[i].status == SL_OK;
            cancelled += s->jobs[i].status == SL_ERR_CANCELLED;
        }
    }
    /* The dice must have reached what this is about. */
    SL_CHECK(admitted > 5L * SEEDS && evicted > 5L * SEEDS && deaths > 3L * SEEDS);
    SL_CHECK(done > 5L * SEEDS && cancelled > SEEDS);
    free(s);
}

SL_TEST_MAIN(SL_RUN(every_rule_holds_whatever_happens))
