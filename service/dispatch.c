#include "service/dispatch.h"

#include "base/clock.h"

/* SL_ERR_UNAVAILABLE is no such case: that worker is gone, and on_down tells the
 * core. */
void sl_dispatch_send(sl_service *s, const Sluice__Worker__Command *command)
{
    sl_error err = { .status = SL_OK };
    const sl_status status = sl_supervisor_send(s->supervisor, s->generation, command, &err);

    if (status == SL_OK || status == SL_ERR_UNAVAILABLE)
        return;
    sl_log(SL_LOG_ERROR, "worker_send", "id=%llu reason=\"%s\"", (unsigned long long)command->id,
           err.message);
    if (command->id == 0 || status == SL_ERR_BUSY) {
        sl_supervisor_kill(s->supervisor, s->generation, err.message);
        return;
    }
    const sl_core_done done = { .status = status, .message = err.message };
    sl_core_command_done(s->core, command->id, &done, sl_clock_now_ns());
}

void sl_dispatch_key(Sluice__Worker__ComponentKey *pb, const sl_core_key *key)
{
    sluice__worker__component_key__init(pb);
    pb->model = (char *)key->model;
    pb->component = (int32_t)key->component;
    pb->precision = (int32_t)key->precision;
    pb->mode = (int32_t)key->mode;
}

void sl_dispatch_preempt(sl_service *s, const char *job_id)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Preempt preempt = SLUICE__WORKER__PREEMPT__INIT;

    preempt.job_id = (char *)job_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_PREEMPT;
    command.preempt = &preempt;
    sl_dispatch_send(s, &command);
}

void sl_dispatch_trim(sl_service *s, uint64_t command_id)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Trim trim = SLUICE__WORKER__TRIM__INIT;

    command.id = command_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_TRIM;
    command.trim = &trim;
    sl_dispatch_send(s, &command);
}
