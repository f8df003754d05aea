/* core.h - what one device does next: admission, residency, the queue.
 *
 * Pure decisions: no I/O, no threads, no clock.  Inputs are functions below,
 * time is an argument; what follows from them is fetched with sl_core_next
 * until it says SL_CORE_NONE, after every input and when sl_core_wake_ns is
 * due.  The service translates actions into commands to the worker, job events
 * and answers to clients.
 *
 * Rules
 *   - One job at a time, strictly in the order of submission.  A job is
 *     admitted when the table allows it and workspace + pinned components + its
 *     components + its activations fit; from then on they are booked for it.
 *   - Components that nobody pinned and the job does not need are evicted for
 *     it, smallest first, only as many as necessary.  Pinned ones never.
 *   - At most one of LOAD, UNLOAD, RUN is outstanding; CANCEL beside it.
 *   - LoadModel and UnloadModel are tickets; they are served in their order,
 *     between jobs, before the next job.  A ticket that needs no command is
 *     served at once.
 *   - A worker's death takes all residency.  Its job is queued again at the
 *     head, retry_limit times; what was pinned is loaded again first.
 *   - Every job that was accepted ends with exactly one JOB_ENDED, every
 *     ticket with exactly one TICKET_ENDED.
 *
 * Books: bytes are `booked` from admission on, and count as mapped from the
 * moment the worker's event says so (load done, job started) until the event
 * that says they are gone.  So booked and measured numbers change together.
 *
 * Ownership: all arguments are copied; the table is borrowed and outlives the core.
 * Threads:   one at a time; the service holds its mutex.
 */
#ifndef SL_SERVICE_CORE_H
#define SL_SERVICE_CORE_H

#include "base/status.h"
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
    SL_CORE_MAX_KEYS = 32, /* of one ticket */
};

typedef struct {
    char model[SL_CORE_NAME_BYTES];
    sl_component_kind component;
    sl_precision precision;
} sl_core_key;

typedef struct {
    sl_core_key key;
    size_t size_bytes; /* in granules, as sl_component_plan_bytes says; above 0 */
} sl_core_need;

typedef struct {
    char job_id[SL_CORE_ID_BYTES];
    int need_count;
    sl_core_need needs[SL_CORE_MAX_NEEDS];
    size_t activation_bytes; /* in granules */
    sl_budget_facts facts;
} sl_core_job;

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
} sl_core_config;

sl_core_config sl_core_config_default(sl_device_kind kind, size_t limit_bytes,
                                      size_t workspace_bytes);

/* ---- answers ---- */

typedef enum {
    SL_CORE_NOW,   /* fits, nothing in the way */
    SL_CORE_AFTER, /* fits once `after` has happened */
    SL_CORE_NEVER, /* not on this device */
} sl_core_when;

typedef struct {
    char what[SL_CORE_TEXT_BYTES]; /* "weights wan2.1-t2v-14b/dit", "job 4f2a", "workspace" */
    size_t size_bytes;
} sl_core_holding;

/* Why not, as data.  With SL_CORE_NOW only need, have and row are set. */
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
} sl_core_answer;

/* ---- life ---- */

typedef struct sl_core sl_core;

sl_status sl_core_create(sl_core **out, const sl_core_config *config, sl_error *err) SL_MUST_CHECK;
void sl_core_destroy(sl_core *core); /* NULL is fine */

/* ---- inputs ---- */

/* Queues the job; it will end with one JOB_ENDED.
 * SL_ERR_TOO_LARGE: never, *answer says why (answer may be NULL).
 * SL_ERR_EXISTS: a job of that id is queued or active.  SL_ERR_BUSY: the queue is
 * full.  SL_ERR_INVALID: the spec makes no sense. */
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
 * worked out here. */
sl_status sl_core_load(sl_core *core, const sl_core_need *needs, int count,
                       const sl_budget_facts *facts, uint64_t *ticket, sl_core_answer *answer,
                       sl_error *err) SL_MUST_CHECK;
/* Unpins and unloads; keys that are not resident are fine.
 * SL_ERR_PRECONDITION: the active job uses one; the message names it. */
sl_status sl_core_unload(sl_core *core, const sl_core_key *keys, int count, uint64_t *ticket,
                         sl_error *err) SL_MUST_CHECK;

/* While draining no job is admitted; what is admitted ends, tickets are served. */
void sl_core_set_draining(sl_core *core, bool draining);
/* Another table, or the same with other contents; admitted jobs go on.  NULL: nothing
 * is forbidden. */
void sl_core_set_table(sl_core *core, const sl_budget_table *table);

/* The worker said hello; workspace_bytes is what it mapped at its start. */
void sl_core_worker_up(sl_core *core, size_t workspace_bytes);
/* The worker is gone, whatever the reason; also fine when it was not up. */
void sl_core_worker_down(sl_core *core, const char *reason);

/* The first event of the running job: its activations are mapped now. */
void sl_core_job_started(sl_core *core, const char *job_id);

typedef struct {
    sl_status status;
    const char *message;                          /* NULL is "" */
    size_t before_bytes, after_bytes, peak_bytes; /* arena mapped, measured */
    size_t component_bytes;                       /* of a load */
    int64_t duration_ns;
} sl_core_done;

/* A command has ended.  An id that is not outstanding is ignored: false. */
bool sl_core_command_done(sl_core *core, uint64_t command_id, const sl_core_done *done,
                          int64_t now_ns);

/* ---- outputs ---- */

typedef enum {
    SL_CORE_NONE,
    SL_CORE_LOAD,         /* command_id, key, size_bytes; job_id if for a job, else "" */
    SL_CORE_UNLOAD,       /* command_id, key, size_bytes; job_id / ticket if for one */
    SL_CORE_RUN,          /* command_id, job_id, size_bytes (activations), attempt */
    SL_CORE_CANCEL,       /* job_id: of the RUN that is outstanding */
    SL_CORE_RESTART,      /* message: kill the worker; worker_down must follow */
    SL_CORE_JOB_ADMITTED, /* job_id, attempt, size_bytes (all that is booked for it) */
    SL_CORE_JOB_REQUEUED, /* job_id, attempt (the coming one), status, message */
    SL_CORE_JOB_ENDED,    /* job_id, attempt, status, message; the core forgets the job */
    SL_CORE_TICKET_ENDED, /* ticket, status, message, receipt; answer if it did not fit */
    SL_CORE_PIN_LOST,     /* key, status, message: could not be loaded again */
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
    int64_t residue_bytes;                        /* measured change minus planned change */
} sl_core_receipt;

typedef struct {
    sl_core_action_kind kind;
    uint64_t command_id; /* for the worker's Command; echoed to sl_core_command_done */
    uint64_t ticket;
    char job_id[SL_CORE_ID_BYTES];
    int attempt; /* 1, 2, ... */
    sl_core_key key;
    size_t size_bytes;
    sl_status status;
    char message[SL_ERROR_MESSAGE_BYTES];
    sl_core_receipt receipt;
    sl_core_answer answer;
} sl_core_action; /* some 15 KiB: keep one, not many */

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
    size_t free_bytes;         /* what is left when unexplained is counted as taken */
    int64_t unexplained_bytes; /* measured mapped - booked mapped */
} sl_core_ledger;

/* limit = workspace + weights + activations + reserved + free + unexplained,
 * exactly.  measured_mapped_bytes: of the worker's latest Memory that is not
 * `changing`; ignored while no worker is up. */
void sl_core_get_ledger(const sl_core *core, size_t measured_mapped_bytes, sl_core_ledger *out);

typedef enum {
    SL_CORE_WANTED, /* booked; its load has not been sent */
    SL_CORE_LOADING,
    SL_CORE_READY,
    SL_CORE_UNLOADING,
} sl_core_residency;

typedef struct {
    sl_core_key key;
    size_t size_bytes;     /* booked */
    size_t measured_bytes; /* by the worker; 0 until READY */
    bool pinned;
    int users; /* active jobs that need it */
    sl_core_residency state;
} sl_core_component;

int sl_core_component_count(const sl_core *core);
void sl_core_get_component(const sl_core *core, int i, sl_core_component *out); /* load order */

typedef struct {
    char job_id[SL_CORE_ID_BYTES]; /* "": no active job */
    bool started;                  /* its activations are mapped */
    size_t activation_bytes;
    int attempt;
} sl_core_active;

void sl_core_get_active(const sl_core *core, sl_core_active *out);
int sl_core_queued_count(const sl_core *core);
/* From 1; 0: the active job; -1: unknown. */
int sl_core_position(const sl_core *core, const char *job_id);
/* Why a queued job waits; SL_ERR_NOT_FOUND: not queued. */
sl_status sl_core_waiting_for(const sl_core *core, const char *job_id, sl_core_answer *answer,
                              sl_error *err) SL_MUST_CHECK;

bool sl_core_key_equal(const sl_core_key *a, const sl_core_key *b);
/* "wan2.1-t2v-14b/dit (bf16)"; returns buf. */
char *sl_core_key_text(const sl_core_key *key, char *buf, size_t buf_bytes);

#endif
