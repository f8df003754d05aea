/* core_state.h - what core.c (moves) and core_admit.c (answers) share.
 *
 * A component (node):
 *   WANTED --LOAD sent--> LOADING --done--> READY --evict, UNLOAD sent--> UNLOADING --done--> gone
 *   LOADING --done with an error--> gone;  WANTED --nobody needs it--> gone
 *   any --worker_down--> WANTED if pinned, else gone
 *
 * A job:
 *   QUEUED --admit--> ACTIVE (evicting, loading) --RUN sent--> running
 *   any --end_job--> in `ended`, until sl_core_next has told it
 *   ACTIVE --worker_down, no memory--> QUEUED at the head
 *
 * A ticket: waiting --start_ticket--> started --end_ticket--> ended, until told.
 */
#ifndef SL_SERVICE_CORE_STATE_H
#define SL_SERVICE_CORE_STATE_H

#include "service/core.h"

typedef struct node node;
typedef struct job job;
typedef struct ticket ticket;

struct node {
    node *next; /* in load order */
    sl_core_key key;
    size_t size_bytes, measured_bytes;
    sl_core_residency state;
    bool pinned;
    bool evict;            /* READY or LOADING: to be unloaded at the next chance */
    bool pick;             /* scratch of pick_victims */
    uint64_t for_ticket;   /* evicted for that ticket; 0: for a job */
    int deaths;            /* workers that died while loading it */
    sl_status lost_status; /* in `lost` */
    char lost_message[SL_CORE_TEXT_BYTES];
};

struct job {
    job *next;
    sl_core_job spec;
    int attempt;
    int memory_retries;
    int64_t not_before_ns;
    bool tell_requeued, tell_admitted;
    bool running; /* RUN has been sent */
    bool started; /* activations mapped */
    bool cancelled, cancel_sent;
    int64_t cancel_due_ns;
    sl_status status; /* of the end, or of why it was queued again */
    char message[SL_ERROR_MESSAGE_BYTES];
};

struct ticket {
    ticket *next; /* in the order of arrival */
    uint64_t id;
    bool is_load;
    bool started, ended;
    int count;
    sl_core_need needs[SL_CORE_MAX_KEYS];
    bool pinned_here[SL_CORE_MAX_KEYS]; /* the pin goes when this ticket fails */
    sl_budget_facts facts;
    sl_core_receipt receipt;
    sl_status status;
    char message[SL_ERROR_MESSAGE_BYTES];
    sl_core_answer answer;
};

typedef struct {
    uint64_t id; /* 0: none */
    sl_core_action_kind kind;
    node *node; /* of LOAD, UNLOAD */
} command;

struct sl_core {
    sl_core_config config;
    const sl_budget_row *row; /* that governs the device; NULL: none */
    bool up;
    bool restart, restart_told;
    bool draining;
    char restart_message[SL_CORE_TEXT_BYTES];
    node *nodes, *lost;
    job *queue, *active, *ended;
    int queued_count;
    ticket *tickets;
    command outstanding;
    uint64_t last_command, last_ticket;
};

/* ---- core_admit.c ---- */

/* What is asked for: a job, or a load. */
typedef struct {
    const sl_core_need *needs;
    int count;
    size_t activation_bytes;
    const sl_budget_facts *facts;
} demand;

node *sl_core_find(const sl_core *core,
                   const sl_core_key *key); /* NULL; skips what is being evicted */
bool sl_core_demand_has(const demand *d, const sl_core_key *key);
demand sl_core_demand_of(const sl_core_job *spec);
/* Components that the active job needs. */
bool sl_core_in_use(const sl_core *core, const node *n);

sl_status sl_core_check(const demand *d, sl_error *err) SL_MUST_CHECK;

/* Fills *answer.  queue_ahead: jobs that come first.  After SL_CORE_NOW,
 * sl_core_evict_for marks the nodes that answer->evict names. */
void sl_core_answer_demand(const sl_core *core, const demand *d, int queue_ahead,
                           sl_core_answer *answer);

void sl_core_evict_for(sl_core *core, const demand *d, uint64_t for_ticket);

/* ---- core.c ---- */

bool sl_core_is_active(const sl_core *core, const char *job_id);
/* *ahead: how many come before it; NULL: not queued. */
job *sl_core_find_queued(const sl_core *core, const char *job_id, int *ahead);
/* Nothing is under way and the worker is there. */
bool sl_core_is_calm(const sl_core *core);
void sl_core_remove(sl_core *core, node *n);
/* Makes WANTED components of what d lacks; all, or none and false. */
bool sl_core_want(sl_core *core, const demand *d);
/* Drops what was only promised to someone who is gone, and lets stay what
 * was about to be evicted for it (0: a job), unless others need the room. */
void sl_core_relent(sl_core *core, uint64_t for_ticket);

/* ---- core_ticket.c ---- */

/* Starts and ends the tickets that can be. */
void sl_core_settle_tickets(sl_core *core);
/* An open load ticket set this pin and nobody else wants it. */
bool sl_core_is_pinned_by_ticket(const sl_core *core, const sl_core_key *key);
/* Ends the started loads of a component that is not coming. */
void sl_core_fail_tickets(sl_core *core, const sl_core_key *key, sl_status status,
                          const char *message);
/* A command's numbers go into the receipts of the tickets it served. */
void sl_core_note_receipts(sl_core *core, const node *n, bool is_load, const sl_core_done *done);
bool sl_core_tell_ticket(sl_core *core, sl_core_action *out);

#endif
