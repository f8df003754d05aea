/* core.h - what one device does next: admission, residency, the queue.
 *
 * Pure decisions: no I/O, no threads, no clock.  Inputs are functions below,
 * time is an argument; what follows from them is fetched with sl_core_next
 * until it says SL_CORE_NONE, after every input and when sl_core_wake_ns is
 * due.  The service translates actions into commands to the worker, job events
 * and answers to clients.
 *
 * Jobs
 *   - A job lists variants in order of preference.  Its variant is the first
 *     that can ever be done here; later ones that do not stream serve, too,
 *     when they fit at once.  So nothing streams that would fit by waiting.
 *   - It is admitted when the table allows it and workspace + what is pinned +
 *     what admitted jobs use + its components + its activations fit; from then
 *     on that is booked for it, and shrinks with its phases (sl_core_phase).
 *   - At most max_running_jobs run, each on a lane of its own, and prepare_jobs
 *     more are admitted to load meanwhile.
 *   - Order: priority, then first come first served.  Passing is allowed to a
 *     job that fits now when those before it do not, and among equals to one
 *     whose components are all on the device when the first would have to evict.
 *     Nobody is passed by more than bypass_limit starts of jobs that were
 *     submitted later; who has been, blocks all others until it starts.  A job
 *     that only its user's own limit holds back is not being passed.  Nobody
 *     with a deadline is passed if that would cost it the deadline.
 *   - A worker's death takes all of the device.  Its jobs are queued again at the
 *     head, each retry_limit times; what was pinned is loaded again first.
 *
 * Memory
 *   - A component has two tiers.  Device: WANTED, LOADING, READY, UNLOADING.
 *     Host: a file's image in memory, FILLING, READY, DROPPING, that outlives
 *     the worker; one image serves both modes.  Loads go through the host tier
 *     while it has room for them.  Streamed components need their image as long as
 *     they are on the device.
 *   - Evicted is what nobody pinned and no admitted job uses: cheapest to have
 *     again first (bytes over bandwidth, host images are cheap, the longer
 *     unused the cheaper), what queued jobs need last, only as much as
 *     necessary, and nothing if that does not help.
 *   - One command of the loader lane (HOST_FILL, LOAD, UNLOAD, HOST_DROP, TRIM)
 *     is outstanding at a time, beside one RUN on each job lane.
 *
 * Tickets
 *   - LoadModel, UnloadModel, Trim, Switch are tickets; they start in their
 *     order.  While one waits to start, or unloads, no job is admitted.
 *
 * Every job that was accepted ends with exactly one JOB_ENDED, every ticket with
 * exactly one TICKET_ENDED.
 *
 * Books: bytes are `booked` from admission on, and count as mapped from the
 * moment the worker's event says so (load done, job started) until the event
 * that says they are gone.  So booked and measured numbers change together.
 *
 * Ownership: all arguments are copied; the table is borrowed until the next
 *            sl_core_set_table or destroy.
 * Threads:   one at a time; the service holds its mutex.
 */
#ifndef SL_SERVICE_CORE_H
#define SL_SERVICE_CORE_H

#include "base/status.h"
#include "engine/model/component.h"
#include "engine/model/config.h"
#include "kernels/device.h"
#include "service/budget.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SL_CORE_NAME_BYTES = SL_BUDGET_NAME_BYTES,
    SL_CORE_ID_BYTES = 72,
    SL_CORE_TEXT_BYTES = 256,
    SL_CORE_MAX_NEEDS = SL_COMPONENT_COUNT,
    SL_CORE_MAX_HOLDINGS = 16,
    SL_CORE_MAX_KEYS = 96, /* of one ticket */
    SL_CORE_USER_BYTES = 64,
    SL_CORE_MAX_PHASES = 6,
    SL_CORE_MAX_VARIANTS = 6,
    SL_CORE_MAX_LANES = 16,
    SL_CORE_SWITCH_STEPS = 3,
};

typedef struct {
    char model[SL_CORE_NAME_BYTES];
    sl_component_kind component;
    sl_precision precision;
    sl_component_mode mode;
} sl_core_key;

typedef struct {
    sl_core_key key;
    size_t size_bytes; /* in granules, as sl_component_plan_bytes says; above 0 */
    size_t host_bytes; /* that its image takes in the host tier, the same in both modes; 0:
                          is never kept there.  Above 0 for a streamed one */
} sl_core_need;

typedef struct {
    size_t activation_bytes; /* in granules */
    unsigned needs;          /* set of 1u << index into the variant's needs */
    bool resume_point;       /* a job that has reached it starts again here, not before */
} sl_core_phase_plan;

/* One way to do a job. */
typedef struct {
    int need_count;
    sl_core_need needs[SL_CORE_MAX_NEEDS];
    int phase_count; /* 0: one phase that needs everything */
    sl_core_phase_plan phases[SL_CORE_MAX_PHASES];
    size_t activation_bytes; /* in granules; not below any phase's */
    /* Components come when their phase does and may go when it ends: only one
     * phase has to fit at a time.  The worker waits at the edges for
     * SL_CORE_PHASE_GO.  One such job is admitted at a time. */
    bool by_phase;
    bool streams;    /* taken only when no variant before it can ever be done */
    double slowdown; /* of its run, against the first; 0 is 1 */
    sl_budget_facts facts;
} sl_core_variant;

typedef struct {
    char job_id[SL_CORE_ID_BYTES];
    /* The only way, when variant_count is 0. */
    int need_count;
    sl_core_need needs[SL_CORE_MAX_NEEDS];
    size_t activation_bytes; /* in granules */
    sl_budget_facts facts;

    int variant_count;
    sl_core_variant variants[SL_CORE_MAX_VARIANTS]; /* all with the same number of phases */

    int first_phase;               /* those before it were done in an earlier life */
    int priority;                  /* 0 to 9, 9 first */
    char user[SL_CORE_USER_BYTES]; /* for limits; "": none apply */
    int64_t submitted_ns;          /* now, for deadline_ns */
    int64_t deadline_ns;           /* when it must have ended; 0: none */
    double cost;                   /* of its run, in units of sl_core_observe_run; 0: unknown */
} sl_core_job;                     /* some 10 KiB */

typedef struct {
    sl_device_kind kind;
    size_t limit_bytes;           /* capacity of the arena */
    size_t device_bytes;          /* what the table looks at; 0: limit_bytes */
    size_t workspace_bytes;       /* expected; the worker's own number replaces it */
    int retry_limit;              /* further attempts after a worker's death; default 2 */
    int queue_limit;              /* jobs that may wait */
    int64_t cancel_deadline_ns;   /* a cancelled job that has not ended by then costs the
                                     worker its life */
    int64_t memory_backoff_ns;    /* wait after the driver refused admitted memory */
    const sl_budget_table *table; /* NULL: nothing is forbidden */

    int max_running_jobs; /* default 1; up to SL_CORE_MAX_LANES.  workspace_bytes is for all */
    int prepare_jobs;     /* admitted beyond that, if they lack components, to load them
                             meanwhile; default 0 */
    int bypass_limit;     /* default 0: strictly first come, first served */
    int user_running_limit, user_queued_limit; /* of one user; 0: none */
    size_t host_limit_bytes;                   /* of the host tier; 0: there is none */
    int64_t preempt_deadline_ns;               /* a pre-empted job that has not stopped by then is
                                                  stopped as by a cancel, and queued again all the same */
    /* until something has been observed */
    double file_bytes_per_s, copy_bytes_per_s, cost_per_s;
} sl_core_config;

sl_core_config sl_core_config_default(sl_device_kind kind, size_t limit_bytes,
                                      size_t workspace_bytes);

/* ---- answers ---- */

typedef enum {
    SL_CORE_NOW,   /* fits, nothing in the way */
    SL_CORE_AFTER, /* fits once `after` has happened */
    SL_CORE_NEVER, /* not on this device */
    SL_CORE_LATE,  /* not before its deadline */
} sl_core_when;

typedef struct {
    char what[SL_CORE_TEXT_BYTES]; /* "weights wan2.1-t2v-14b/dit", "job 4f2a", "workspace" */
    size_t size_bytes;
} sl_core_holding;

/* When a job starts and ends if nothing changes.  Cautious: jobs before it are
 * taken in their order, with the loads that this means. */
typedef struct {
    int64_t queue_ns; /* from now until its own loads begin */
    int64_t load_ns;
    int64_t run_ns; /* 0: unknown */
    bool measured;  /* run_ns: from runs of its model, and not from a guess */
} sl_core_estimate;

/* Why not, as data.  With SL_CORE_NOW only need, have, row and the plan are set. */
typedef struct {
    sl_core_when when;
    char after[SL_CORE_TEXT_BYTES]; /* "job 4f2a ends", "wan2.1-t2v-14b/dit is unloaded" */
    size_t need_bytes;              /* components + activations */
    size_t have_bytes;              /* NEVER: the most there can be, everything else gone;
                                       else: free now or after evictions, for this request */
    int held_count;
    sl_core_holding held[SL_CORE_MAX_HOLDINGS];
    char row[SL_BUDGET_NAME_BYTES];       /* that governs the device; "" none */
    char rule[SL_BUDGET_TEXT_BYTES];      /* that said no; "" : the bytes did */
    char message[SL_CORE_TEXT_BYTES * 2]; /* all of it in one sentence */
    int evict_count;                      /* idle components that would make room */
    sl_core_key evict[SL_CORE_MAX_HOLDINGS];
    bool host;                 /* need, have and held are of the host tier */
    bool pinned;               /* AFTER somebody unloads what is pinned */
    int variant;               /* that would be taken; -1: none is possible */
    int told;                  /* the variant that all this is about: `variant`, or of those
                                  that are not possible the one that asks for least */
    sl_core_estimate estimate; /* of submit and plan, unless NEVER; their now is the
                                  job's submitted_ns */
} sl_core_answer;

/* ---- life ---- */

typedef struct sl_core sl_core;

sl_status sl_core_create(sl_core **out, const sl_core_config *config, sl_error *err) SL_MUST_CHECK;
void sl_core_destroy(sl_core *core); /* NULL is fine */

/* ---- inputs ---- */

/* Queues the job; it will end with one JOB_ENDED (SL_ERR_TIMEOUT if its deadline
 * passes before it is admitted).
 * SL_ERR_TOO_LARGE: never, *answer says why (answer may be NULL).
 * SL_ERR_TIMEOUT: not before its deadline, *answer has the estimate.
 * SL_ERR_EXISTS: a job of that id is queued or active.  SL_ERR_BUSY: the queue is
 * full, or the user's share of it.  SL_ERR_INVALID: the spec makes no sense. */
sl_status sl_core_submit(sl_core *core, const sl_core_job *job, sl_core_answer *answer,
                         sl_error *err) SL_MUST_CHECK;
/* The answer that submit would lead to, without effect.  job_id may be "".
 * Always fills *answer; SL_ERR_INVALID as above. */
sl_status sl_core_plan(const sl_core *core, const sl_core_job *job, sl_core_answer *answer,
                       sl_error *err) SL_MUST_CHECK;
/* Queued or loading: ends now with SL_ERR_CANCELLED.  Running: CANCEL follows and
 * the job ends when the worker has stopped it.  SL_ERR_NOT_FOUND: no such job
 * (ended ones are not known here). */
sl_status sl_core_cancel(sl_core *core, const char *job_id, int64_t now_ns,
                         sl_error *err) SL_MUST_CHECK;

/* Loads and pins.  *ticket names the TICKET_ENDED to come.  SL_ERR_TOO_LARGE: never
 * fits or the table forbids it, see *answer (may be NULL).  facts.experts is
 * worked out here.  Waits for running jobs if they are in the way; ends with SL_ERR_BUSY if
 * something pinned is. */
sl_status sl_core_load(sl_core *core, const sl_core_need *needs, int count,
                       const sl_budget_facts *facts, uint64_t *ticket, sl_core_answer *answer,
                       sl_error *err) SL_MUST_CHECK;
/* The same for the host tier: their images are filled and stay. */
sl_status sl_core_load_host(sl_core *core, const sl_core_need *needs, int count, uint64_t *ticket,
                            sl_core_answer *answer, sl_error *err) SL_MUST_CHECK;

typedef enum {
    SL_CORE_UNLOAD_SOFT, /* images stay in the host tier */
    SL_CORE_UNLOAD_FULL, /* images go, too */
    SL_CORE_UNLOAD_HARD, /* and a fresh worker; jobs must be gone, whatever they use */
} sl_core_unload_mode;

typedef enum {
    SL_CORE_USED_REFUSE, /* SL_ERR_PRECONDITION if an admitted job uses one */
    SL_CORE_USED_WAIT,   /* until it has ended */
    SL_CORE_USED_NOW,    /* PREEMPT: it stops, and is queued again at the head of its priority */
} sl_core_if_used;

/* Unpins and unloads, images too; keys that are not resident are fine.  HARD may have
 * none at all: then only the worker is replaced.
 * SL_ERR_PRECONDITION: an admitted job uses one; the message names it. */
sl_status sl_core_unload(sl_core *core, const sl_core_key *keys, int count, uint64_t *ticket,
                         sl_error *err) SL_MUST_CHECK;
sl_status sl_core_unload_as(sl_core *core, const sl_core_key *keys, int count,
                            sl_core_unload_mode mode, sl_core_if_used used, uint64_t *ticket,
                            sl_error *err) SL_MUST_CHECK;
/* They stay and may be evicted again, on the device and in the host tier; what a
 * load that is under way asks for stays pinned. */
void sl_core_unpin(sl_core *core, const sl_core_key *keys, int count);
/* Evicts all that is idle on the device, then TRIM; jobs go on. */
sl_status sl_core_trim(sl_core *core, uint64_t *ticket, sl_error *err) SL_MUST_CHECK;
/* Everything else goes, these come: tickets[0] unloads all others from the device,
 * tickets[1] is what mode wants beyond that (nothing, their images, a fresh
 * worker), tickets[2] loads and pins.  used is not REFUSE.  When a step fails,
 * those after it end with SL_ERR_PRECONDITION. */
sl_status sl_core_switch(sl_core *core, const sl_core_need *needs, int count,
                         const sl_budget_facts *facts, sl_core_unload_mode mode,
                         sl_core_if_used used, uint64_t tickets[SL_CORE_SWITCH_STEPS],
                         sl_core_answer *answer, sl_error *err) SL_MUST_CHECK;

/* While draining no job is admitted; what is admitted ends, tickets are served. */
void sl_core_set_draining(sl_core *core, bool draining);
/* Another table, or the same with other contents: queued jobs that it never allows
 * end with SL_ERR_TOO_LARGE and an answer; admitted ones go on.  NULL: nothing is
 * forbidden. */
void sl_core_set_table(sl_core *core, const sl_budget_table *table);

typedef struct {
    int max_running_jobs; /* the worker has the lanes for it */
    int prepare_jobs, queue_limit, bypass_limit, user_running_limit, user_queued_limit;
    size_t host_limit_bytes; /* idle images go until they fit */
} sl_core_limits;

sl_core_limits sl_core_get_limits(const sl_core *core);
/* SL_ERR_INVALID for a number that makes no sense, SL_ERR_PRECONDITION when images
 * that are pinned or in use need more; nothing changes then. */
sl_status sl_core_set_limits(sl_core *core, const sl_core_limits *limits,
                             sl_error *err) SL_MUST_CHECK;

/* What was measured; averages.  Loads and fills are observed by
 * sl_core_command_done itself, runs by the service, which knows how much of the
 * job's cost they did. */
void sl_core_observe_file(sl_core *core, size_t size_bytes, int64_t duration_ns);
void sl_core_observe_copy(sl_core *core, size_t size_bytes, int64_t duration_ns);
void sl_core_observe_run(sl_core *core, const char *model, double cost, int64_t duration_ns);

/* Before sl_core_worker_up: what the arena really has, once a worker has measured
 * what it needs beside it.  0 is ignored. */
void sl_core_set_limit(sl_core *core, size_t limit_bytes);
/* The worker said hello; workspace_bytes is what it mapped at its start. */
void sl_core_worker_up(sl_core *core, size_t workspace_bytes);
/* The worker is gone, whatever the reason; also fine when it was not up. */
void sl_core_worker_down(sl_core *core, const char *reason);
/* The same, ended on purpose: no job or load has had a part in it, so no attempt is
 * counted. */
void sl_core_worker_replaced(sl_core *core, const char *reason);

/* The first event of a running job, or after SL_CORE_PHASE_GO: its activations are
 * mapped now. */
void sl_core_job_started(sl_core *core, const char *job_id);
/* The worker has ended the phases before this one and given back what the
 * remaining ones do not need: activations shrink to the largest of them.  By
 * phase: to the smaller of the two at the edge, and it waits.  What a resume
 * point needs is on disk.  An earlier phase, or a job that does not run, is ignored. */
void sl_core_phase(sl_core *core, const char *job_id, int phase);

typedef struct {
    sl_status status;
    const char *message;                          /* NULL is "" */
    size_t before_bytes, after_bytes, peak_bytes; /* arena mapped, measured; what other lanes
                                                     map meanwhile is not in the difference */
    size_t component_bytes;                       /* of a load */
    int64_t kept_bytes;                           /* unmapped, and the driver still has them */
    int64_t duration_ns;
} sl_core_done;

/* The state that its resume points count on is not there (any more): from its next
 * attempt on it starts at the beginning.  If its run then ends because of that
 * (SL_ERR_PRECONDITION), it is queued again and the attempt is not counted. */
void sl_core_lose_state(sl_core *core, const char *job_id);

/* A command has ended.  An id that is not outstanding is ignored: false. */
bool sl_core_command_done(sl_core *core, uint64_t command_id, const sl_core_done *done,
                          int64_t now_ns);

/* ---- outputs ---- */

typedef enum {
    SL_CORE_NONE,
    SL_CORE_LOAD,         /* command_id, key, size_bytes, from_host; job_id if for a job, else "" */
    SL_CORE_UNLOAD,       /* command_id, key, size_bytes; job_id / ticket if for one */
    SL_CORE_RUN,          /* command_id, job_id, size_bytes (activations), attempt, lane,
                             variant, phase (the first) */
    SL_CORE_CANCEL,       /* job_id: of a RUN that is outstanding */
    SL_CORE_RESTART,      /* message: kill the worker; worker_down must follow */
    SL_CORE_JOB_ADMITTED, /* job_id, attempt, variant, size_bytes (all that is booked for it) */
    SL_CORE_JOB_REQUEUED, /* job_id, attempt (the coming one), status, message */
    SL_CORE_JOB_ENDED,    /* job_id, attempt, status, message, answer if TOO_LARGE; the core
                             forgets the job */
    SL_CORE_TICKET_ENDED, /* ticket, status, message, receipt; answer if it did not fit */
    SL_CORE_PIN_LOST,     /* key, from_host (the image's pin), status, message: could not be
                             loaded again */
    SL_CORE_HOST_FILL,    /* command_id, key, size_bytes; job_id, ticket if for one.  A fill
                             that fails leaves nothing in the host tier */
    SL_CORE_HOST_DROP,    /* command_id, key, size_bytes.  Also while no worker is up, and a
                             second time after a worker's death; always succeeds */
    SL_CORE_TRIM,         /* command_id, ticket: give cached memory back to the driver */
    SL_CORE_PREEMPT,      /* job_id: of a RUN that is outstanding: stop after this step, and
                             end with SL_ERR_CANCELLED */
    SL_CORE_PHASE_GO,     /* job_id, phase, size_bytes (its activations): go on */
} sl_core_action_kind;

typedef struct {
    sl_core_key key;
    size_t planned_bytes;
    size_t measured_bytes; /* 0: no command was needed (resident before) or not reached */
} sl_core_receipt_line;

typedef struct {
    int line_count;
    sl_core_receipt_line lines[SL_CORE_MAX_KEYS];
    int command_count; /* 0: nothing had to be done; the next four are 0 then */
    size_t before_bytes, after_bytes, peak_bytes; /* arena mapped; first, last, highest */
    int64_t duration_ns;                          /* of its commands together */
    int64_t residue_bytes;                        /* measured change minus planned change, and
                                                     what the driver kept */
    size_t host_before_bytes, host_after_bytes;   /* in the host tier; equal: nothing changed */
    size_t limit_bytes;                           /* of the arena, at the end */
} sl_core_receipt;

typedef struct {
    sl_core_action_kind kind;
    uint64_t command_id; /* for the worker's Command; echoed to sl_core_command_done */
    uint64_t ticket;
    char job_id[SL_CORE_ID_BYTES];
    int attempt; /* 1, 2, ... */
    sl_core_key key;
    size_t size_bytes;
    bool from_host;
    int lane, variant, phase;
    sl_status status;
    char message[SL_ERROR_MESSAGE_BYTES];
    sl_core_receipt receipt;
    sl_core_answer answer;
} sl_core_action; /* some 25 KiB: keep one, not many */

/* Writes the next action and returns true; SL_CORE_NONE and false when there is
 * nothing to do. */
bool sl_core_next(sl_core *core, int64_t now_ns, sl_core_action *out);
/* When sl_core_next must be called again without an input; INT64_MAX: never. */
int64_t sl_core_wake_ns(const sl_core *core);

/* ---- views ---- */

typedef struct {
    bool worker_up;
    size_t limit_bytes;
    size_t workspace_bytes;    /* mapped; 0 while there is no worker */
    size_t weights_bytes;      /* mapped */
    size_t activations_bytes;  /* mapped */
    size_t reserved_bytes;     /* booked and not mapped yet, as far as not taken from what
                                  is about to be evicted */
    size_t foreign_bytes;      /* other processes' on the card; the service fills it in */
    size_t free_bytes;         /* what is left when unexplained is counted as taken */
    int64_t unexplained_bytes; /* measured mapped - booked mapped */

    size_t booked_bytes;      /* workspace + components that stay or come + what admitted jobs
                                 still may map; never above the limit */
    size_t host_limit_bytes;  /* never below host_used: falls as images go after set_limits */
    size_t host_used_bytes;   /* images that are there, come or go */
    size_t host_booked_bytes; /* images that stay or come */
} sl_core_ledger;

/* limit = workspace + weights + activations + reserved + foreign + free +
 * unexplained, exactly.  measured_mapped_bytes: of the worker's latest Memory that is not
 * `changing`; ignored while no worker is up. */
void sl_core_get_ledger(const sl_core *core, size_t measured_mapped_bytes, sl_core_ledger *out);

typedef enum {
    SL_CORE_WANTED, /* booked; its load has not been sent */
    SL_CORE_LOADING,
    SL_CORE_READY,
    SL_CORE_UNLOADING,
    SL_CORE_ABSENT, /* only in the host tier */
} sl_core_residency;

typedef enum {
    SL_CORE_HOST_ABSENT,
    SL_CORE_HOST_WANTED, /* booked; its fill has not been sent */
    SL_CORE_HOST_FILLING,
    SL_CORE_HOST_READY,
    SL_CORE_HOST_DROPPING,
} sl_core_host_state;

typedef struct {
    sl_core_key key;
    size_t size_bytes;     /* booked */
    size_t measured_bytes; /* by the worker; 0 until READY */
    bool pinned;
    int users; /* active jobs that need it */
    sl_core_residency state;
    bool evicting; /* goes at the next chance */
    sl_core_host_state host_state;
    size_t host_bytes; /* booked in the host tier */
    bool host_pinned;
} sl_core_component;

/* Those on the device in the order of their loads, then those only in the host
 * tier.  One that goes and comes again is there twice. */
int sl_core_component_count(const sl_core *core);
void sl_core_get_component(const sl_core *core, int i, sl_core_component *out);

typedef struct {
    char job_id[SL_CORE_ID_BYTES]; /* "": no active job */
    bool running;                  /* RUN has been sent */
    bool started;                  /* its activations are mapped */
    size_t activation_bytes;       /* booked; by phase: of the phase at hand */
    size_t mapped_bytes;           /* of them, by the worker's events */
    int attempt;
    int lane; /* of a running one */
    int variant, phase;
    bool preempting;
} sl_core_active;

void sl_core_get_active(const sl_core *core, sl_core_active *out); /* the first */
int sl_core_active_count(const sl_core *core);
void sl_core_get_active_at(const sl_core *core, int i, sl_core_active *out);
int sl_core_queued_count(const sl_core *core);
/* From 1, in the order of the queue; 0: an admitted job; -1: unknown. */
int sl_core_position(const sl_core *core, const char *job_id);
/* When the queued jobs start and end, in their order. */
sl_status sl_core_each_estimate(const sl_core *core, int64_t now_ns,
                                void (*say)(void *arg, const char *job_id,
                                            const sl_core_estimate *estimate),
                                void *arg, sl_error *err) SL_MUST_CHECK;
/* When a queued job starts (queue + load) and ends.  SL_ERR_NOT_FOUND: not queued. */
sl_status sl_core_get_estimate(const sl_core *core, const char *job_id, int64_t now_ns,
                               sl_core_estimate *out, sl_error *err) SL_MUST_CHECK;
/* Why a queued job waits; SL_ERR_NOT_FOUND: not queued. */
sl_status sl_core_waiting_for(const sl_core *core, const char *job_id, sl_core_answer *answer,
                              sl_error *err) SL_MUST_CHECK;

bool sl_core_key_equal(const sl_core_key *a, const sl_core_key *b);
/* "wan2.1-t2v-14b/dit (bf16)", "... (bf16, streamed)"; returns buf. */
char *sl_core_key_text(const sl_core_key *key, char *buf, size_t buf_bytes);

#endif
