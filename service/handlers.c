#include "service/handlers.h"

#include "base/clock.h"
#include "service/sp.h"

#define SMALL SL_SP_PEEK_BYTES
#define LARGE SL_SP_MAX_MESSAGE_BYTES

#define METHOD(name, role, bytes, seconds, request, handler)                                       \
    {                                                                                              \
        "sluice.v1.Inference/" name, SL_ROLE_##role, bytes, (seconds)*SL_NS_PER_S,                 \
            &sluice__v1__##request##_request__descriptor, handler                                  \
    }

static const sl_rpc_method methods[] = {
    METHOD("Health", NONE, SMALL, 10, health, sl_handle_health),
    METHOD("GetServerInfo", VIEWER, SMALL, 10, get_server_info, sl_handle_get_server_info),
    METHOD("GetMemoryStats", VIEWER, SMALL, 10, get_memory_stats, sl_handle_get_memory_stats),
    METHOD("ListModels", VIEWER, SMALL, 60, list_models, sl_handle_list_models),
    METHOD("PlanJob", VIEWER, LARGE, 60, plan_job, sl_handle_plan_job),
    METHOD("Generate", USER, LARGE, 60, generate, sl_handle_generate),
    METHOD("DecodeLatent", USER, SMALL, 60, decode_latent, sl_handle_decode_latent),
    METHOD("UploadInput", USER, LARGE, 60, upload_input, sl_handle_upload_input),
    METHOD("WatchJob", USER, SMALL, 30, watch_job, sl_handle_watch_job),
    METHOD("GetJob", USER, SMALL, 10, get_job, sl_handle_get_job),
    METHOD("ListJobs", USER, SMALL, 10, list_jobs, sl_handle_list_jobs),
    METHOD("CancelJob", USER, SMALL, 10, cancel_job, sl_handle_cancel_job),
    METHOD("FetchOutput", USER, SMALL, 30, fetch_output, sl_handle_fetch_output),
    METHOD("ExplainJob", USER, SMALL, 10, explain_job, sl_handle_explain_job),
    METHOD("GetBudgetTable", VIEWER, SMALL, 10, get_budget_table, sl_handle_get_budget_table),
    METHOD("WatchEvents", VIEWER, SMALL, 30, watch_events, sl_handle_watch_events),
    METHOD("Doctor", VIEWER, SMALL, 10, doctor, sl_handle_doctor),
    METHOD("ReloadConfig", ADMIN, SMALL, 10, reload_config, sl_handle_reload_config),
    METHOD("ResetDevice", ADMIN, SMALL, 60, reset_device, sl_handle_reset_device),
    METHOD("Drain", ADMIN, SMALL, 10, drain, sl_handle_drain),
    METHOD("CleanOutputs", ADMIN, SMALL, 60, clean_outputs, sl_handle_clean_outputs),
    METHOD("LoadModel", ADMIN, SMALL, 600, load_model, sl_handle_load_model),
    METHOD("UnloadModel", ADMIN, SMALL, 600, unload_model, sl_handle_unload_model),
    METHOD("SwitchModel", ADMIN, SMALL, 600, switch_model, sl_handle_switch_model),
    METHOD("TrimMemory", ADMIN, SMALL, 600, trim_memory, sl_handle_trim_memory),
};

const sl_rpc_table sl_handlers_table = { methods, SL_COUNT(methods) };
