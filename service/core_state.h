/* core_state.h - what the files of the core share.
 *
 * A component on the device (node):
 *   WANTED --LOAD sent--> LOADING --done--> READY --evict, UNLOAD sent--> UNLOADING --done--> gone
 *   LOADING --done with an error--> gone;  WANTED --nobody needs it--> gone
 *   any --worker_down--> WANTED if pinned, else gone
 *
 * Its image in the host tier:
 *   WANTED --HOST_FILL sent--> FILLING --done--> READY --drop, HOST_DROP sent--> DROPPING --done-->
 * gone FILLING --done with an error--> gone;  WANTED --nobody needs it--> gone FILLING, DROPPING
 * --worker_down--> READY, broken: dropped (again) at the next chance
 *
 * A job:
 *   QUEUED --admit--> ACTIVE (evicting, loading) --RUN sent--> running
 *   any --end_job--> in `ended`, until sl_core_next has told it
 *   ACTIVE --worker_down, no memory, pre-empted--> QUEUED at the head of its priority
 *
 * A ticket: waiting --start_ticket--> started --end_ticket--> ended, until told.
 *
 * What is booked = workspace + all nodes that are not `evict` + the activations of
 * active jobs, or for the one that goes by phase: what its largest remaining phase
 * needs beyond that.  Victims are chosen so that this stays within the limit;
 * commands are sent so that what is mapped does.
 */
#ifndef SL_SERVICE_CORE_STATE_H
#define SL_SERVICE_CORE_STATE_H

#include "service/core.h"

typedef struct node node;
typedef struct image image;
typedef struct job job;
typedef struct ticket ticket;

/* A pin that could not be kept; part of the node or image that had it. */
typedef struct loss {
    struct loss *next;
    void *owner; /* freed when told */
    sl_core_key key;
    size_t size_bytes;
    bool host;
    sl_status status;
    char message[SL_CORE_TEXT_BYTES];
} loss;

struct node {
    node *next; /* in load order */
    sl_core_key key;
    size_t size_bytes, host_bytes, measured_bytes;
    sl_core_residency state;
    bool pinned;
    bool evict;          /* READY or LOADING: to be unloaded at the next chance */
    bool must;           /* evict: not to be taken back */
    bool pick;           /* scratch of pick_victims */
    uint64_t for_ticket; /* evicted for that ticket; 0: for a job */
    uint64_t used;       /* core.clock when it was needed last */
    int deaths;          /* workers that died while loading it */
    double cost;         /* scratch of pick_victims */
    loss loss;
};

struct image {
    image *next;
    sl_core_key key;
    size_t size_bytes;
    sl_core_host_state state;
    bool pinned;
    bool drop;           /* READY or FILLING: to be dropped at the next chance */
    bool broken;         /* drop: its content is not to be used */
    bool pick, keep;     /* scratch of core_host.c */
    uint64_t for_ticket; /* dropped or filled for that ticket; 0: for a job */
    uint64_t used;
    int deaths;
    double cost;
    loss loss;
};

/* Why a running job is being stopped; a stronger reason replaces a weaker one. */
typedef enum {
    STOP_NONE,
    STOP_PREEMPT,
    STOP_FAIL, /* with stop_status, stop_message */
    STOP_CANCEL,
} stop_kind;

struct job {
    job *next;
    sl_core_job spec; /* variant_count is at least 1 */
    uint64_t seq;     /* in the order of submission */
    int attempt;
    int memory_retries;
    int passed; /* by starts of jobs that were submitted later */
    int64_t not_before_ns;
    bool requeued;
    bool no_prefetch; /* it has failed */
    bool state_lost;  /* its resume points are none */
    bool starts_over; /* because of that; once */
    bool tell_requeued, tell_admitted;
    sl_status status; /* of the end, or of why it was queued again */
    char message[SL_ERROR_MESSAGE_BYTES];

    /* while active */
    int variant;
    int phase;           /* the first that is not over */
    bool running;        /* RUN has been sent */
    bool waiting;        /* by phase: at the edge before `phase` */
    bool faulted;        /* its run has ended with the device's context */
    uint64_t command_id; /* of its RUN */
    int lane;
    size_t mapped_bytes; /* activations, from RUN on */
    size_t told_bytes;   /* of them, as the worker's events have it */
    int64_t run_since_ns;
    stop_kind stop;
    bool preempt_sent, cancel_sent;
    int64_t stop_due_ns; /* INT64_MAX: not yet asked to stop */
    sl_status stop_status;
    char stop_message[SL_CORE_TEXT_BYTES];

    int64_t est_begin_ns, est_start_ns, est_end_ns, est_other_ns; /* scratch of core_estimate.c */
};

typedef enum {
    TICKET_LOAD,
    TICKET_LOAD_HOST,
    TICKET_UNLOAD,
    TICKET_RELEASE, /* an unload of everything else */
    TICKET_TRIM,
} ticket_kind;

struct ticket {
    ticket *next; /* in the order of arrival */
    uint64_t id;
    ticket_kind kind;
    uint64_t follows; /* a ticket that has to succeed first; 0: none */
    bool started, ended;
    sl_core_unload_mode mode;
    sl_core_if_used used;
    bool restart_asked, trim_sent;
    uint64_t generation; /* of the worker that has to go */
    int count;
    sl_core_need needs[SL_CORE_MAX_KEYS];
    bool pinned_here[SL_CORE_MAX_KEYS]; /* the pin goes when this ticket fails */
    sl_budget_facts facts;
    sl_core_receipt receipt;
    sl_status status;
    char message[SL_ERROR_MESSAGE_BYTES];
    sl_core_answer answer;
};

/* Of the loader lane. */
typedef struct {
    uint64_t id; /* 0: none */
    sl_core_action_kind kind;
    node *node;   /* of LOAD, UNLOAD */
    image *image; /* of HOST_FILL, HOST_DROP */
    uint64_t ticket;
    bool from_host; /* LOAD */
} command;

enum { MAX_RATES = 64 };

typedef struct {
    char model[SL_CORE_NAME_BYTES];
    double per_s; /* 0: nothing observed */
    uint64_t used;
} rate;

struct sl_core {
    sl_core_config config;
    const sl_budget_row *row; /* that governs the device; NULL: none */
    bool up, draining;
    bool limit_changed; /* until the worker is up */
    bool restart, restart_told;
    bool replacing; /* the restart is nobody's fault */
    char restart_message[SL_CORE_TEXT_BYTES];
    uint64_t generation; /* counts the workers that are gone */
    node *nodes;
    image *images;
    loss *lost;
    job *queue, *active, *ended; /* active: in the order of admission */
    int queued_count, active_count;
    ticket *tickets;
    command lane;
    bool unsettled; /* something has happened since no job could be admitted */
    uint64_t last_command, last_ticket, last_job;
    uint64_t clock; /* ticks with each use of a component */
    double file_per_s, copy_per_s;
    rate rates[MAX_RATES];
};

/* ---- core_fit.c ---- */

/* What is asked for: a job from some phase on, or a load. */
typedef struct {
    const sl_core_need *needs;
    int count;
    unsigned set;                     /* of those needs that count */
    size_t activation_bytes;          /* the most that is mapped at once */
    const sl_core_phase_plan *phases; /* by phase: the remaining ones; else NULL */
    int phase_count;
    const sl_budget_facts *facts;
} demand;

/* Who is in the way. */
typedef enum { SCOPE_ALONE, SCOPE_PINNED, SCOPE_ACTIVE, SCOPE_ALL } scope;

typedef enum {
    BLOCK_NONE,
    BLOCK_RULE,
    BLOCK_BYTES,
    BLOCK_HOST,
    BLOCK_PIN,
    BLOCK_HOST_PIN,
    BLOCK_WORKER,
    BLOCK_JOB,
    BLOCK_HOST_JOB,
} block;

typedef struct {
    sl_core_when when;
    block block;
    int variant;                /* of a job: that it is about */
    const sl_budget_rule *rule; /* that said no, or NULL */
    size_t need_bytes, have_bytes;
} verdict;

/* For each need that counts, with its index in i. */
#define FOR_NEEDS(d, i)                                                                            \
    for (int i = 0; (i) < (d)->count; (i)++) /* NOLINT(bugprone-macro-parentheses) */              \
        if ((d)->set >> (i)&1)

demand sl_core_demand_of(const sl_core_variant *variant, int phase);
demand sl_core_demand_left(const job *j); /* all that an active job will still need */
demand sl_core_demand_now(const job *j);  /* what it uses: by phase, of the phase at hand */
demand sl_core_demand_of_ticket(const ticket *t);
bool sl_core_demand_has(const demand *d, const sl_core_key *key);
bool sl_core_demand_has_image(const demand *d, const sl_core_key *key); /* in any mode */
bool sl_core_same_image(const sl_core_key *a, const sl_core_key *b);

node *sl_core_find(const sl_core *core,
                   const sl_core_key *key); /* NULL; skips what is being evicted */
/* The first active job that uses it; NULL: none. */
const job *sl_core_user_of(const sl_core *core, const node *n);
const job *sl_core_user_of_key(const sl_core *core, const sl_core_key *key);
bool sl_core_has_job_by_phase(const sl_core *core);
/* any_mode: it, or its image. */
bool sl_core_is_wanted_by_queue(const sl_core *core, const sl_core_key *key, bool any_mode);
/* Of the nodes that stay; by scope of what is in the way of d (may be NULL), and d's own. */
size_t sl_core_bytes_besides(const sl_core *core, const demand *d, scope s);
size_t sl_core_bytes_of(const sl_core *core, const demand *d, scope s);
size_t sl_core_booked(const sl_core *core);
size_t sl_core_mapped(const sl_core *core);

bool sl_core_is_stale(const demand *d, const node *n);
bool sl_core_must_go(const sl_core *core, const demand *d, const node *n);
verdict sl_core_judge(const sl_core *core, const demand *d);
/* The table lets another expert of the model in. */
bool sl_core_rule_allows(const sl_core *core, const demand *d);
/* Whether room for d, once SL_CORE_NOW, takes evictions. */
bool sl_core_would_evict(const sl_core *core, const demand *d);
void sl_core_pick_victims(const sl_core *core, const demand *d, const demand *now);
void sl_core_evict_for(sl_core *core, const demand *d, const demand *now, uint64_t for_ticket);

/* ---- core_answer.c ---- */

sl_status sl_core_check(const demand *d, sl_error *err) SL_MUST_CHECK;
sl_status sl_core_check_job(const sl_core_job *spec, sl_error *err) SL_MUST_CHECK;
/* Fills variants[0] of a spec that has none. */
void sl_core_normalise(sl_core_job *spec);
/* The variant that counts for the queue: the first that is not NEVER; -1: none. */
int sl_core_base_variant(const sl_core *core, const sl_core_job *spec);
/* The variant to take now, with its verdict; -1 with NEVER. */
int sl_core_choose(const sl_core *core, const sl_core_job *spec, verdict *out);
/* Fills *answer.  queue_ahead: jobs that come first.  After SL_CORE_NOW,
 * sl_core_evict_for marks the nodes that answer->evict names. */
void sl_core_answer_demand(const sl_core *core, const demand *d, int queue_ahead,
                           sl_core_answer *answer);
void sl_core_answer_job(const sl_core *core, const sl_core_job *spec, int queue_ahead,
                        sl_core_answer *answer);
void sl_core_answer_host(const sl_core *core, const demand *d, sl_core_answer *answer);

/* ---- core_host.c ---- */

image *sl_core_find_image(const sl_core *core,
                          const sl_core_key *key); /* skips what is being dropped */
size_t sl_core_host_booked(const sl_core *core);
size_t sl_core_host_used(const sl_core *core);
size_t sl_core_host_fixed(const sl_core *core); /* pinned, or read by what is in use */
/* Whether there is no room for d's images beside those that s looks at; all: also
 * those that it could do without. */
bool sl_core_is_host_blocked(const sl_core *core, const demand *d, bool all, scope s,
                             size_t *need_bytes, size_t *have_bytes);
/* An image that somebody counts on. */
bool sl_core_is_held(const sl_core *core, const image *im);
/* One that a component on the device reads: not to be dropped yet. */
bool sl_core_is_read(const sl_core *core, const image *im);
/* Books the images that d must have; all: also those that it could do without.
 * After sl_core_is_host_blocked has said no, false is out of memory. */
bool sl_core_want_images(sl_core *core, const demand *d, bool all, uint64_t for_ticket);
/* Books images for what d is about to load, as far as that is worth it. */
bool sl_core_want_spare_images(sl_core *core, const demand *d);
image *sl_core_add_image(sl_core *core, const sl_core_need *need, uint64_t for_ticket);
void sl_core_remove_image(sl_core *core, image *im);
/* What streams from it goes, too. */
void sl_core_mark_drop(sl_core *core, image *im, uint64_t for_ticket);
void sl_core_drop_unwanted_images(sl_core *core);
/* Drops idle images until the tier is within its limit again. */
void sl_core_shrink_host(sl_core *core);
/* A new image for `need` on top of what there is, dropping cheaper ones if that
 * helps; NULL: there is one, or no room, or not yet: drops have been marked. */
image *sl_core_try_image(sl_core *core, const sl_core_need *need);

/* ---- core_queue.c ---- */

/* *ahead: how many come before it; NULL: not queued. */
job *sl_core_find_queued(const sl_core *core, const char *job_id, int *ahead);
void sl_core_enqueue(sl_core *core, job *j);
void sl_core_unqueue(sl_core *core, job *j);
/* Where a job would be put: the one that it comes before; NULL: the end. */
const job *sl_core_queue_place(const sl_core *core, const job *j);
/* Admits a job, or ends one that never can be; false: neither. */
bool sl_core_admit(sl_core *core, int64_t now_ns);
void sl_core_expire(sl_core *core, int64_t now_ns);
void sl_core_rejudge(sl_core *core);
int sl_core_count_user(const job *list, const char *user);
/* All lanes are taken.  One job more is admitted only if it has something to load
 * meanwhile, and nobody passes one that has not. */
bool sl_core_is_too_early(const sl_core *core, const demand *d);

/* ---- core.c ---- */

job *sl_core_find_active(const sl_core *core, const char *job_id);
/* j is in no list any more. */
void sl_core_end_job(sl_core *core, job *j, sl_status status, const char *message);
/* Takes a job out of `active`; its components are idle then. */
void sl_core_take_active(sl_core *core, job *j);
void sl_core_end_active(sl_core *core, job *j, sl_status status, const char *message);
void sl_core_requeue_active(sl_core *core, job *j, sl_status status, const char *message);
void sl_core_preempt(sl_core *core, job *j);

node *sl_core_add_node(sl_core *core, const sl_core_need *need); /* WANTED; NULL: out of memory */
void sl_core_report_loss(sl_core *core, loss *l, const char *message);
void sl_core_remove(sl_core *core, node *n);
/* A pinned component that cannot be had again is reported, not forgotten; one
 * that a ticket has just asked for is that ticket's to report.  Frees it. */
void sl_core_lose_node(sl_core *core, node *n, sl_status status, const char *message);
void sl_core_lose_image(sl_core *core, image *im, sl_status status, const char *message);
/* Makes WANTED components of what d lacks, and images; all, or none and false. */
bool sl_core_want(sl_core *core, const demand *d, uint64_t for_ticket);
/* Drops what was only promised to someone who is gone, and lets stay what
 * was about to be evicted for it (0: a job), as far as there is room. */
void sl_core_relent(sl_core *core, uint64_t for_ticket);
void sl_core_touch(sl_core *core, const demand *d);
void sl_core_want_restart(sl_core *core, const char *message);

/* ---- core_lane.c ---- */

/* Pinned components whose image was lost with the worker and cannot come back. */
void sl_core_give_up_streamed(sl_core *core);
bool sl_core_next_command(sl_core *core, int64_t now_ns, sl_core_action *out);

/* ---- core_estimate.c ---- */

int64_t sl_core_reload_ns(const sl_core *core, const sl_core_key *key, size_t size_bytes);
int64_t sl_core_file_ns(const sl_core *core, size_t size_bytes);
/* Puts est_begin_ns, est_start_ns and est_end_ns into all queued jobs and `extra`
 * (NULL, or a job that is not queued), in the order of the queue but `first`
 * (may be NULL) before all.  False: out of memory. */
bool sl_core_estimate_queue(const sl_core *core, job *extra, const job *first, int64_t now_ns);
/* What that has put into j. */
sl_core_estimate sl_core_estimate_of(const sl_core *core, const job *j, int64_t now_ns);
/* Whether starting j now would cost a job that it passes the deadline. */
bool sl_core_would_make_late(sl_core *core, const job *j, int64_t now_ns);

/* ---- core_ticket.c ---- */

/* Starts and ends the tickets that can be. */
void sl_core_settle_tickets(sl_core *core);
/* One waits to start, or unloads: no job is to be admitted. */
bool sl_core_tickets_wait(const sl_core *core);
/* An open load ticket set this pin and nobody else wants it. */
bool sl_core_is_pinned_by_ticket(const sl_core *core, const sl_core_key *key, bool host);
/* Ends the started loads of a component that is not coming. */
void sl_core_fail_tickets(sl_core *core, const sl_core_key *key, bool host, sl_status status,
                          const char *message);
/* A command's numbers go into the receipts of the tickets it served. */
void sl_core_note_receipts(sl_core *core, const command *ended, const sl_core_done *done);
/* A trim ticket whose evictions are done. */
ticket *sl_core_find_trim(sl_core *core);
/* Of the trims that have been sent. */
void sl_core_end_trims(sl_core *core, sl_status status, const char *message);
bool sl_core_tell_ticket(sl_core *core, sl_core_action *out);

#endif
