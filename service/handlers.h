/* handlers.h - one function per method of sluice.v1.Inference.
 *
 * Each reads its request from the call, and sets the call's reply or returns a
 * status (rpc.h).  `service` is an sl_service.  Threads: any, side by side.
 */
#ifndef SL_SERVICE_HANDLERS_H
#define SL_SERVICE_HANDLERS_H

#include "service/rpc.h"

/* All methods, with the role that each needs and its bounds. */
extern const sl_rpc_table sl_handlers_table;

sl_rpc_handler sl_handle_list_models, sl_handle_load_model, sl_handle_unload_model,
    sl_handle_switch_model, sl_handle_trim_memory;
sl_rpc_handler sl_handle_generate, sl_handle_decode_latent, sl_handle_plan_job,
    sl_handle_upload_input;
sl_rpc_handler sl_handle_get_job, sl_handle_list_jobs, sl_handle_watch_job, sl_handle_cancel_job,
    sl_handle_fetch_output;
sl_rpc_handler sl_handle_explain_job;
sl_rpc_handler sl_handle_get_memory_stats, sl_handle_health, sl_handle_get_server_info;
sl_rpc_handler sl_handle_get_budget_table, sl_handle_reload_config, sl_handle_reset_device,
    sl_handle_drain, sl_handle_watch_events, sl_handle_clean_outputs, sl_handle_doctor;

#endif
