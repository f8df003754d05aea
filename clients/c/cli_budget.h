/* cli_budget.h - what `budget` and `budget --table` share.
 *
 * Threads: one.
 */
#ifndef SL_CLIENTS_C_CLI_BUDGET_H
#define SL_CLIENTS_C_CLI_BUDGET_H

#include "clients/c/cli.h"
#include "clients/c/cli_planner.h"
#include "service/request_read.h"

Sluice__V1__Component cli_wire_component(sl_component_kind kind);
Sluice__V1__Precision cli_wire_precision(sl_precision precision);

/* "24GiB", "cuda:24GiB" (a GPU's memory), else as the daemon's --device; with a
 * size that is known. */
sl_status cli_device_of(const char *text, sl_device_spec *out, sl_error *err) SL_MUST_CHECK;
/* The request of the command line for asked->arch, with the defaults that the daemon
 * fills in.  info NULL: there are no files. */
sl_status cli_fill_asked(const cli *c, const sl_model_info *info, sl_variants_ask *asked,
                         sl_error *err) SL_MUST_CHECK;
sl_status cli_machine_of(const cli *c, cli_machine *out, sl_error *err) SL_MUST_CHECK;

int cli_budget_table(cli *c);

#endif
