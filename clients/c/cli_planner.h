/* cli_planner.h - would a request fit on a device: plans and admission, offline.
 *
 * A request can be done in several ways: all of its components on the device at
 * once, or only those of the phase at hand, and with networks streamed from host
 * memory.  The ways are tried in that order, streaming last; each is judged by
 * the daemon's own admission (service/core.h) over an empty device.  The plan is
 * the pipeline's own dry run.
 *
 * Ownership: init/fini; what a planner is given is borrowed and outlives it.
 * Threads:   one.
 */
#ifndef SL_CLIENTS_C_CLI_PLANNER_H
#define SL_CLIENTS_C_CLI_PLANNER_H

#include "api/sluice.pb-c.h"
#include "engine/pipeline/t2v.h"
#include "kernels/device.h"
#include "service/core.h"

typedef struct {
    sl_device_spec device;
    size_t workspace_bytes;
    const sl_budget_table *table;
    sl_core *core; /* of the empty device */
} cli_planner;

/* threads: of the cpu device, for its workspace; 0: this machine's. */
sl_status cli_planner_init(cli_planner *out, const sl_device_spec *device, int64_t threads,
                           const sl_budget_table *table, sl_error *err) SL_MUST_CHECK;
void cli_planner_fini(cli_planner *planner); /* a zeroed one is fine */

/* Networks that a way of doing a request streams. */
typedef enum {
    CLI_STREAM_NONE,
    CLI_STREAM_TEXT, /* the text encoder */
    CLI_STREAM_ALL,  /* the text encoder and the transformers */
    CLI_STREAM_COUNT
} cli_stream_set;

/* A request with its plans, which are the same for every device; each is made
 * when it is asked for. */
typedef struct {
    const char *model;
    const sl_arch *arch;
    sl_t2v_request request; /* streamed is not looked at */
    Sluice__V1__Streaming streaming;
    bool made[CLI_STREAM_COUNT];
    sl_t2v_plan plans[CLI_STREAM_COUNT];
} cli_asked;

typedef struct {
    bool by_phase;           /* components come and go with their phase */
    unsigned streamed;       /* SL_COMPONENT_BITs */
    const sl_t2v_plan *plan; /* of the cli_asked */
    size_t weight_bytes;     /* of all components */
    size_t peak_bytes;       /* with the workspace; by phase: of the largest */
    size_t host_bytes;       /* images that streaming needs in host memory */
    double slowdown;         /* by streaming, from guessed speeds; 1: none */
    sl_core_answer answer;   /* by phase: of the phase that decides */
} cli_verdict;               /* some 10 KiB */

/* The first way that fits; none: the one to tell of, whose answer is NEVER.
 * SL_ERR_INVALID: the request makes no sense. */
sl_status cli_planner_judge(const cli_planner *planner, cli_asked *asked, cli_verdict *out,
                            sl_error *err) SL_MUST_CHECK;

/* The largest video of the same shape that fits: precision goes down first, then
 * resolution and frames.  *found is false when not even the smallest does. */
sl_status cli_planner_nearest(const cli_planner *planner, const cli_asked *asked, bool *found,
                              sl_t2v_request *nearest, size_t *need_bytes,
                              sl_error *err) SL_MUST_CHECK;

#endif
