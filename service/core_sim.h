/* core_sim.h - a worker and a service that the core's simulation plays.
 *
 * It keeps its own books of what is mapped, filled and promised, from the actions
 * and events alone, and fails the test, with seed and step, when an action
 * breaks a rule of core.h.  core_sim_test.c throws the dice.
 */
#ifndef SL_SERVICE_CORE_SIM_H
#define SL_SERVICE_CORE_SIM_H

#include "service/core.h"

#include "base/clock.h"
#include "base/size.h"
#include "base/test.h"

#define G SL_GRANULE_BYTES

enum {
    MODELS = 5, /* the last two have two experts */
    PARTS = 4,
    MODES = 2,
    USERS = 3,
    MAX_OPEN = 64,
    MAX_OPEN_TICKETS = 64,
};

typedef enum { FREE, QUEUED, ADMITTED, RUNNING } sim_state;

typedef struct {
    sim_state state;
    uint64_t seq;
    sl_core_job spec;
    int attempt, passed;
    bool cancelled, expirable;
    bool preempt_told, cancel_told, refusable;
    bool state_lost; /* its resume points are none */
    int64_t not_before_ns;
    /* while active */
    int variant, phase, lane;
    uint64_t command_id;
    bool started, waiting;
    size_t mapped, told; /* activations */
} sim_job;

typedef struct {
    uint64_t id; /* 0: free */
    bool is_load, host, others, trim, unpinned;
    sl_core_unload_mode mode;
    int count;
    sl_core_key keys[PARTS];
} sim_ticket;

typedef struct {
    bool resident, pinned;
    size_t size;
} sim_component;

typedef struct {
    bool there, pinned; /* there: READY, or to be dropped after a death */
    bool broken;        /* by the death: only to be dropped */
    size_t size;
} sim_image;

typedef struct {
    uint64_t seed, random;
    long step, trace_from; /* trace_from: print actions from that step on; 0: never */
    int64_t now_ns;
    sl_core *core;
    sl_core_limits limits;
    sl_core_config config;
    size_t sizes[MODELS][PARTS];
    bool no_image[MODELS][PARTS];
    const sl_budget_table *tables[2], *table;
    bool draining;

    bool up, must_die;
    bool replaced; /* the last worker was, and did not die */
    sim_component c[MODELS][PARTS][MODES];
    sim_image images_of[MODELS][PARTS]; /* of both modes */
    size_t mapped, told, images;        /* in truth; by the events; in the host tier */
    sl_core_action command;             /* of the loader lane; NONE: idle */
    uint64_t next_seq;
    sim_job jobs[MAX_OPEN];
    sim_ticket tickets[MAX_OPEN_TICKETS];

    long submitted, ended[SL_STATUS_COUNT], refused[SL_STATUS_COUNT], admitted, requeued;
    long loads, host_loads, unloads, fills, drops, gos, preempts, trims, deaths, side_by_side;
    long tickets_ended, passes, streamed_runs, by_phase_runs, most_passed;
} sim;

#define SIM_CHECK(s, expr)                                                                         \
    do {                                                                                           \
        if (!(expr))                                                                               \
            fail_msg("seed %llu step %ld: %s:%d: %s", (unsigned long long)(s)->seed, (s)->step,    \
                     __FILE__, __LINE__, #expr);                                                   \
    } while (0)

void sim_trace(const sim *s, const char *fmt, ...) SL_PRINTF(2, 3);
uint64_t sim_roll(sim *s, uint64_t sides);
sl_core_key sim_key(int model, int part, sl_component_mode mode);
sim_component *sim_find(sim *s, const sl_core_key *key);
sim_image *sim_find_image(sim *s, const sl_core_key *key);
bool sim_has_part(int model, int part);
sim_job *sim_find_job(sim *s, const char *job_id); /* NULL: not open */
sim_ticket *sim_find_ticket(sim *s, uint64_t id);  /* NULL: not open */
int sim_open_jobs(const sim *s, sim_state state);
const sl_core_variant *sim_variant(const sim_job *j);
/* Of the components that it needs now: in its phase, or in all that remain. */
unsigned sim_needs(const sim_job *j);
size_t sim_activation(const sim_job *j);

/* Fetches and checks all actions, then the state. */
void sim_drain(sim *s);

/* The worker's side. */
void sim_worker_comes(sim *s);
void sim_worker_dies(sim *s);
bool sim_finish_command(sim *s, bool well);      /* of the loader lane; false: none */
bool sim_advance(sim *s, sim_job *j, bool well); /* a running job's next event */

#endif
