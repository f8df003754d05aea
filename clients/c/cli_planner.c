#include "clients/c/cli_planner.h"

#include "service/lanes.h"

#include <limits.h>
#include <stdint.h>
#include <stdlib.h>

sl_status cli_planner_init(cli_planner *out, const sl_device_spec *device,
                           const cli_machine *machine, const sl_budget_table *table, sl_error *err)
{
    const int threads = machine->threads > INT_MAX ? INT_MAX : (int)machine->threads;
    cli_planner planner = { .device = *device,
                            .workspace_bytes = sl_lanes_workspace_bytes(
                                device->kind, sl_lanes_default(device->kind), threads) };
    sl_core_config config = sl_core_config_default(
        device->kind, sl_lanes_arena_bytes(device->kind, device->limit_bytes),
        planner.workspace_bytes);

    config.device_bytes = device->limit_bytes;
    config.table = table;
    config.host_limit_bytes = machine->host_bytes ? machine->host_bytes : SIZE_MAX / 4;
    const sl_status status = sl_core_create(&planner.core, &config, err);
    if (status != SL_OK)
        return status;
    sl_core_worker_up(planner.core, planner.workspace_bytes);
    *out = planner;
    return SL_OK;
}

void cli_planner_fini(cli_planner *planner)
{
    sl_core_destroy(planner->core);
    planner->core = NULL;
}

sl_status cli_planner_judge(const cli_planner *planner, const sl_variants_ask *asked,
                            cli_verdict *out, sl_error *err)
{
    sl_variants *variants = malloc(sizeof *variants);
    sl_core_job *job = calloc(1, sizeof *job);
    sl_status status = SL_OK;

    if (!variants || !job)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a plan");
    if (status == SL_OK)
        status = sl_variants_make(variants, job, asked, err);
    if (status == SL_OK)
        status = sl_core_plan(planner->core, job, &out->answer, err);
    if (status == SL_OK) {
        out->way = variants->ways[out->answer.told];
        out->plan = *sl_variants_plan(variants, out->answer.told);
        out->peak_bytes = out->way.peak_bytes + planner->workspace_bytes;
    }
    free(job);
    free(variants);
    return status;
}

static bool can(void *arg, const sl_core_job *job, size_t *need_bytes)
{
    const cli_planner *planner = arg;
    sl_error ignored = { .status = SL_OK };
    sl_core_answer answer;

    if (sl_core_plan(planner->core, job, &answer, &ignored) != SL_OK ||
        answer.when == SL_CORE_NEVER)
        return false;
    *need_bytes = answer.need_bytes;
    return true;
}

sl_status cli_planner_nearest(const cli_planner *planner, const sl_variants_ask *asked, bool *found,
                              sl_t2v_request *nearest, size_t *need_bytes, sl_error *err)
{
    const sl_variants_judge judge = { (void *)planner, can };

    return sl_variants_nearest(asked, &judge, found, nearest, need_bytes, err);
}
