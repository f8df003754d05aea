/* core_test.h - what tests by hand need: a small core, jobs, commands that end. */
#ifndef SL_SERVICE_CORE_TEST_H
#define SL_SERVICE_CORE_TEST_H

#include "service/core.h"

#include "base/clock.h"
#include "base/size.h"
#include "base/test.h"

#include <string.h>

#define G SL_GRANULE_BYTES

/* Small numbers: sizes are given in granules. */
static inline sl_core *make_core(size_t limit, size_t workspace, sl_error *err)
{
    sl_core_config config = sl_core_config_default(SL_DEVICE_CPU, limit * G, workspace * G);
    sl_core *core = NULL;

    SL_CHECK_OK(sl_core_create(&core, &config, err));
    sl_core_worker_up(core, workspace * G);
    return core;
}

static inline sl_core_need need_of(const char *model, sl_component_kind component, size_t size)
{
    sl_core_need need = { .size_bytes = size * G };

    snprintf(need.key.model, sizeof need.key.model, "%s", model);
    need.key.component = component;
    need.key.precision = SL_PRECISION_BF16;
    return need;
}

/* A job of one model: text encoder, DiT, VAE, activations. */
static inline sl_core_job job_of(const char *id, const char *model, size_t text, size_t dit,
                                 size_t vae, size_t activations)
{
    sl_core_job job = { .activation_bytes = activations * G };

    snprintf(job.job_id, sizeof job.job_id, "%s", id);
    snprintf(job.facts.model, sizeof job.facts.model, "%s", model);
    job.need_count = 3;
    job.needs[0] = need_of(model, SL_COMPONENT_TEXT_ENCODER, text);
    job.needs[1] = need_of(model, SL_COMPONENT_DIT, dit);
    job.needs[2] = need_of(model, SL_COMPONENT_VAE, vae);
    return job;
}

static inline void submit(sl_core *core, sl_core_job job, sl_error *err)
{
    SL_CHECK_OK(sl_core_submit(core, &job, NULL, err));
}

static inline uint64_t load(sl_core *core, sl_core_need need, sl_error *err)
{
    sl_budget_facts facts = { 0 };
    uint64_t ticket = 0;

    memcpy(facts.model, need.key.model, sizeof facts.model);
    SL_CHECK_OK(sl_core_load(core, &need, 1, &facts, &ticket, NULL, err));
    return ticket;
}

static inline sl_core_action next(sl_core *core)
{
    sl_core_action action;

    sl_core_next(core, 0, &action);
    return action;
}

static inline sl_core_action expect(sl_core *core, sl_core_action_kind kind)
{
    const sl_core_action action = next(core);

    if (action.kind != kind)
        fail_msg("got action %d, want %d (job \"%s\", \"%s\")", action.kind, kind, action.job_id,
                 action.message);
    return action;
}

static inline void done_at(sl_core *core, const sl_core_action *action, sl_status status,
                           int64_t now_ns)
{
    const sl_core_done done = {
        .status = status,
        .message = status == SL_OK ? "" : "as the test wants it",
        .before_bytes = 100 * G,
        .after_bytes = action->kind == SL_CORE_LOAD     ? 100 * G + action->size_bytes
                       : action->kind == SL_CORE_UNLOAD ? 100 * G - action->size_bytes
                                                        : 100 * G,
        .peak_bytes = 100 * G + (action->kind == SL_CORE_LOAD ? action->size_bytes : 0),
        .component_bytes = action->kind == SL_CORE_LOAD ? action->size_bytes : 0,
        .duration_ns = 5,
    };
    SL_CHECK(sl_core_command_done(core, action->command_id, &done, now_ns));
}

static inline void done(sl_core *core, const sl_core_action *action, sl_status status)
{
    done_at(core, action, status, 0);
}

/* Lets the next `count` commands succeed; they must be of that kind. */
static inline void let(sl_core *core, sl_core_action_kind kind, int count)
{
    for (int i = 0; i < count; i++) {
        const sl_core_action action = expect(core, kind);
        done(core, &action, SL_OK);
    }
}

/* Runs a job whose components are all there. */
static inline void let_run(sl_core *core, const char *id)
{
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ADMITTED).job_id, id) == 0);
    let(core, SL_CORE_RUN, 1);
    SL_CHECK(strcmp(expect(core, SL_CORE_JOB_ENDED).job_id, id) == 0);
}

static inline bool resident(const sl_core *core, const char *model, sl_component_kind component)
{
    for (int i = 0; i < sl_core_component_count(core); i++) {
        sl_core_component c;
        sl_core_get_component(core, i, &c);
        if (strcmp(c.key.model, model) == 0 && c.key.component == component &&
            c.state == SL_CORE_READY)
            return true;
    }
    return false;
}

/* ---- beyond one job at a time ---- */

static inline sl_core *make(sl_core_config config, sl_error *err)
{
    sl_core *core = NULL;

    SL_CHECK_OK(sl_core_create(&core, &config, err));
    sl_core_worker_up(core, config.workspace_bytes);
    return core;
}

static inline sl_core_config config_of(size_t limit, int lanes, size_t host)
{
    sl_core_config config = sl_core_config_default(SL_DEVICE_CPU, limit * G, 0);

    config.max_running_jobs = lanes;
    config.bypass_limit = 8;
    config.host_limit_bytes = host * G;
    return config;
}

/* The same job in three phases, each with its component; images of the same size. */
static inline sl_core_job phased(const char *id, const char *model, size_t text, size_t dit,
                                 size_t vae, size_t a0, size_t a1, size_t a2)
{
    const sl_core_job plain = job_of(id, model, text, dit, vae, 0);
    sl_core_job job = { .variant_count = 1 };
    sl_core_variant *v = &job.variants[0];
    const size_t activations[] = { a0, a1, a2 };

    memcpy(job.job_id, plain.job_id, sizeof job.job_id);
    memcpy(v->needs, plain.needs, sizeof v->needs);
    v->need_count = v->phase_count = 3;
    v->facts = plain.facts;
    for (int p = 0; p < 3; p++) {
        v->needs[p].host_bytes = v->needs[p].size_bytes;
        v->phases[p].needs = 1u << p;
        v->phases[p].activation_bytes = activations[p] * G;
        if (activations[p] * G > v->activation_bytes)
            v->activation_bytes = activations[p] * G;
    }
    v->phases[2].resume_point = true;
    return job;
}

static inline sl_core_variant streamed_of(const sl_core_variant *v, size_t size)
{
    sl_core_variant s = *v;

    s.streams = true;
    s.slowdown = 4;
    s.needs[1].key.mode = SL_MODE_STREAMED;
    s.needs[1].size_bytes = size * G;
    s.facts.dit_whole = false;
    return s;
}

/* All loads and fills that come next succeed, in whatever order. */
static inline sl_core_action let_come(sl_core *core)
{
    for (;;) {
        const sl_core_action a = next(core);
        if (a.kind != SL_CORE_LOAD && a.kind != SL_CORE_HOST_FILL && a.kind != SL_CORE_UNLOAD &&
            a.kind != SL_CORE_HOST_DROP)
            return a;
        done(core, &a, SL_OK);
    }
}

static inline void admit_and_run(sl_core *core, const char *id, sl_core_action *run)
{
    sl_core_action a = expect(core, SL_CORE_JOB_ADMITTED);

    SL_CHECK(strcmp(a.job_id, id) == 0);
    *run = let_come(core);
    SL_CHECK(run->kind == SL_CORE_RUN && strcmp(run->job_id, id) == 0);
    sl_core_job_started(core, id);
}

static inline void end(sl_core *core, const sl_core_action *run, const char *id, sl_status status)
{
    done(core, run, status);
    const sl_core_action a = expect(core, SL_CORE_JOB_ENDED);
    SL_CHECK(strcmp(a.job_id, id) == 0 && a.status == status);
}

static inline sl_core_component component(const sl_core *core, const char *model,
                                          sl_component_kind kind)
{
    for (int i = 0; i < sl_core_component_count(core); i++) {
        sl_core_component c;
        sl_core_get_component(core, i, &c);
        if (strcmp(c.key.model, model) == 0 && c.key.component == kind)
            return c;
    }
    return (sl_core_component){ .state = SL_CORE_ABSENT };
}

#endif
