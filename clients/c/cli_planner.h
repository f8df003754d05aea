/* cli_planner.h - would a request fit on a device: plans and admission, offline.
 *
 * The ways of doing a request are the daemon's (service/variants.h), and so is the
 * admission: a core over an empty device.  The plan is the pipeline's own dry run.
 *
 * Ownership: init/fini; what a planner is given is borrowed and outlives it.
 * Threads:   one.
 */
#ifndef SL_CLIENTS_C_CLI_PLANNER_H
#define SL_CLIENTS_C_CLI_PLANNER_H

#include "kernels/device.h"
#include "service/core.h"
#include "service/variants.h"

typedef struct {
    sl_device_spec device;
    size_t workspace_bytes;
    sl_core *core; /* of the empty device */
} cli_planner;

/* What the daemon that is asked about would be configured with. */
typedef struct {
    int64_t threads;   /* of the cpu device, for its workspace; 0: this machine's */
    size_t host_bytes; /* for networks that are streamed; 0: as much as they need */
} cli_machine;

sl_status cli_planner_init(cli_planner *out, const sl_device_spec *device,
                           const cli_machine *machine, const sl_budget_table *table,
                           sl_error *err) SL_MUST_CHECK;
void cli_planner_fini(cli_planner *planner); /* a zeroed one is fine */

typedef struct {
    sl_way way;        /* that would be taken; for NEVER: the one to tell of */
    sl_t2v_plan plan;  /* of the way */
    size_t peak_bytes; /* of the way, with the workspace */
    sl_core_answer answer;
} cli_verdict; /* some 10 KiB */

/* SL_ERR_INVALID: the request makes no sense. */
sl_status cli_planner_judge(const cli_planner *planner, const sl_variants_ask *asked,
                            cli_verdict *out, sl_error *err) SL_MUST_CHECK;

/* *found is false when not even the smallest fits. */
sl_status cli_planner_nearest(const cli_planner *planner, const sl_variants_ask *asked, bool *found,
                              sl_t2v_request *nearest, size_t *need_bytes,
                              sl_error *err) SL_MUST_CHECK;

#endif
