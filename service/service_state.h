/* service_state.h - what service.c and the handlers share. */
#ifndef SL_SERVICE_SERVICE_STATE_H
#define SL_SERVICE_SERVICE_STATE_H

#include "api/worker.pb-c.h"
#include "service/core.h"
#include "service/hosttier.h"
#include "service/jobs.h"
#include "service/models.h"
#include "service/request_read.h"
#include "service/rpc.h"
#include "service/service.h"
#include "service/store.h"
#include "service/supervisor.h"

#include "base/log.h"

#include <pthread.h>

/* Somebody waits for a ticket of LoadModel or UnloadModel. */
typedef struct ticket_wait {
    struct ticket_wait *next;
    uint64_t ticket;
    bool ended;
    int64_t ended_ns;      /* monotonic */
    size_t mapped_bytes;   /* of the arena, then */
    sl_core_action action; /* TICKET_ENDED, once ended */
} ticket_wait;

typedef struct {
    char model[SL_CORE_NAME_BYTES];
    char *path;
    sl_arch arch;
} model_path;

typedef struct shared_content shared_content; /* shared.c */

/* An image in the host tier; dispatch.c. */
typedef struct host_entry {
    struct host_entry *next;
    sl_core_key key; /* its mode says nothing */
    sl_host_image *image;
    bool told;      /* the worker that is up has it */
} host_entry;

/* A Load or Unload that the worker has. */
typedef struct {
    uint64_t command_id; /* 0: none */
    sl_core_action_kind kind;
    sl_core_key key;
    char job_id[SL_CORE_ID_BYTES]; /* "": for no job */
} component_command;

enum { SL_SERVICE_COMMANDS = 16, SL_SERVER_EVENTS = 512, SL_SERVICE_HOURS = 7 * 24 };

typedef struct {
    uint64_t seq; /* from 1; 0: none */
    int64_t time_ns;
    char kind[32];
    char text[400]; /* key=value */
} sl_server_event;

/* A Run that the worker has. */
typedef struct {
    uint64_t command_id; /* 0: none */
    bool started;        /* its first event has come */
    int64_t phase_ns;    /* when its phase or step began; monotonic */
    char job_id[SL_CORE_ID_BYTES];
    char *partial, *final; /* paths */
} running_job;

/* What has happened since the start. */
typedef struct {
    uint64_t done, failed, cancelled; /* jobs */
    uint64_t requeued;                /* after a worker's death or a pre-emption */
    uint64_t components[2][2];        /* on the device: loads, unloads; well, badly */
    uint64_t images[2][2];            /* in the host tier: fills, drops */
    uint64_t switches;                /* another model's transformer than the one before */
    char last_model[SL_CORE_NAME_BYTES]; /* whose transformer came last */
} sl_service_counts;

struct sl_service {
    sl_service_config config; /* strings are ours */
    char *outputs, *worker;
    char device_text[64];
    size_t expected_workspace_bytes;
    int64_t started_ns;
    sl_models *models; /* has its own lock */
    sl_supervisor *supervisor;

    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t changed; /* a job moved, a ticket ended, stopping; monotonic clock */
    sl_core *core;
    sl_jobs *jobs;
    sl_core_action action; /* the one at hand in pump: large */
    ticket_wait *tickets;
    model_path *paths; /* of every model that the core knows */
    int path_count;
    shared_content *contents;
    int content_count;
    running_job running[SL_CORE_MAX_LANES];
    component_command commands[SL_SERVICE_COMMANDS];
    sl_store *store;         /* or NULL */
    sl_server_event events[SL_SERVER_EVENTS];
    uint64_t last_event;
    sl_store_peak hours[SL_SERVICE_HOURS]; /* newest first */
    int hour_count;
    bool hour_dirty;          /* hours[0] is not in the store as it is */
    sl_service_limits limits;
    int lanes;                /* of the worker that is up, or of the next one */
    sl_budget_table *table;   /* ours; NULL: none */
    bool draining, leak_told, resetting;
    int64_t worker_up_ns;     /* since when; monotonic */
    int64_t house_ns;         /* when things are looked after again; monotonic */
    int64_t retention_ns;     /* when old outputs are looked for again; monotonic */
    int64_t started_wall_ns;
    char store_problem[SL_ERROR_MESSAGE_BYTES]; /* why the last write did not succeed; "": it did */
    sl_hosttier *host;
    host_entry *images;
    uint64_t own_commands; /* of dispatch.c */
    uint64_t generation; /* of the worker that is up */
    bool worker_up;
    int64_t worker_pid;
    int64_t canary_ns;        /* of the worker that is up */
    char canary_problem[256]; /* "": none */
    sl_service_counts counts;
    char down_reason[256];
    Sluice__Worker__Memory memory; /* the latest; plain numbers only */
    size_t calm_mapped_bytes;      /* arena mapped when no command was changing it */
    int64_t calm_unexplained_bytes; /* of those, what no component or job accounted for */
    int watchers, load_waiters;
    bool stopping, quit;
    pthread_t timer;
    bool timer_started;
};

/* --- service.c; all with the lock held --- */

/* Does what the core wants next, and wakes whoever waits. */
void sl_service_pump(sl_service *s);
/* Waits for a change until the deadline; false when it has passed. */
bool sl_service_wait(sl_service *s, int64_t deadline_ns);
/* The books and the device disagree for no small reason. */
bool sl_service_is_leak(int64_t unexplained_bytes);
/* Of the Runs that the worker has, the one on the first lane; NULL: none. */
const running_job *sl_service_first_running(const sl_service *s);
/* Where the worker finds this model. */
sl_status sl_service_note_path(sl_service *s, const char *model, const char *path,
                               const sl_arch *arch, sl_error *err) SL_MUST_CHECK;
const model_path *sl_service_find_path(const sl_service *s, const char *model); /* NULL: unknown */
void sl_service_get_ledger(sl_service *s, sl_core_ledger *out);
/* A line for the log and for `explain`: event id=... and what fmt says. */
void sl_service_note(sl_job *job, sl_log_level level, const char *event, const char *fmt, ...)
    SL_PRINTF(4, 5);
void sl_service_clear_running(running_job *run);
void sl_service_note_peak(sl_service *s, size_t mapped_bytes, bool job_ended); /* of the hour */
/* By its id, or by the request_id of an own job.  What belongs to others is not found,
 * unless for an admin. */
sl_status sl_service_get_job(sl_service *s, sl_rpc_call *call, const char *id, sl_job **out,
                             sl_error *err) SL_MUST_CHECK;
size_t sl_service_workspace_bytes(sl_service *s); /* the worker's, or what is expected */
/* When each queued job will start: into job.estimated_start_ns. */
void sl_service_estimate(sl_service *s);

/* --- actions.c; with the lock held --- */

void sl_action_do(sl_service *s, const sl_core_action *action);
void sl_service_log_end(sl_job *job);

/* --- requests.c; without the lock --- */

/* Checks a request and works out what it comes to.  to_run: its prompts are tokenized
 * and its image is stored; else what is not given is as long as it can be, or of the
 * model's default size.  The caller frees *out. */
sl_status sl_request_to_spec(sl_service *s, sl_rpc_call *call,
                             const Sluice__V1__GenerateRequest *request, bool to_run,
                             sl_job_spec *out, sl_error *err) SL_MUST_CHECK;
/* A reference to the model of that name, which the caller releases. */
sl_status sl_request_get_model(sl_service *s, sl_rpc_call *call, const char *name, sl_model **out,
                               sl_error *err) SL_MUST_CHECK;
/* The component's place in a model and what it maps; the model must have it.  owner: whose
 * it is for the core (shared.h); NULL: the model's. */
sl_status sl_request_need(const sl_model_info *info, sl_component_kind kind,
                          sl_precision precision, const char *owner, sl_core_need *out,
                          sl_error *err) SL_MUST_CHECK;
/* The largest request below this one that the device can ever do. */
sl_status sl_request_nearest(sl_service *s, const sl_job_spec *spec,
                             Sluice__V1__NearestRequest *out, sl_error *err) SL_MUST_CHECK;
/* What a stored request says, for looking at; values are as they were filled in. */
void sl_request_numbers_from_pb(sl_job_spec *spec, const Sluice__V1__GenerateRequest *pb);
/* Checks and plans spec->request again, for the model as it is now. */
sl_status sl_request_respec(sl_service *s, sl_job_spec *spec, sl_error *err) SL_MUST_CHECK;
/* Whose it is and since when it waits (monotonic), which its deadline counts from. */
void sl_request_set_clock(sl_job_spec *spec, const char *user, int64_t submitted_ns);
/* What the spec shows is of this way from now on. */
void sl_request_take_way(sl_job_spec *spec, int way);
/* The core's number of a phase that the plan has, and the phase of a number. */
int sl_request_core_phase(const sl_t2v_plan *plan, int phase);
int sl_request_engine_phase(const sl_t2v_plan *plan, int phase);
void sl_request_hash(const ProtobufCMessage *request, sl_arena *arena,
                     uint8_t out[SL_BODY_HASH_BYTES]);
sl_component_kind sl_component_from_pb(Sluice__V1__Component component);

/* --- convert.c; results are in the arena, NULL: out of memory --- */

Sluice__V1__Component sl_component_to_pb(sl_component_kind kind);
Sluice__V1__Plan *sl_plan_to_pb(const sl_job_spec *spec, size_t workspace_bytes,
                                size_t device_bytes, const char *table_row,
                                const sl_core_answer *answer, sl_arena *arena);
Sluice__V1__Refusal *sl_answer_to_pb(const sl_core_answer *answer, sl_arena *arena);
Sluice__V1__GenerateRequest *sl_request_to_pb(const sl_job *job, sl_arena *arena);
Sluice__V1__Job *sl_job_to_pb(sl_service *s, const sl_job *job, sl_arena *arena); /* locked */
Sluice__V1__ComponentBytes *sl_component_bytes_to_pb(const sl_core_component *component,
                                                     sl_arena *arena);
Sluice__V1__Receipt *sl_receipt_to_pb(const sl_core_receipt *receipt, sl_arena *arena);

#endif
