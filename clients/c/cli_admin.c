/* cli_admin.c - running a daemon: reset, drain, reload, clean, doctor, explain,
 * events. */
#include "clients/c/cli.h"

#include <inttypes.h>
#include <poll.h>
#include <string.h>

/* A running job has to stop and a worker to come up. */
#define RESET_NS     (120 * SL_NS_PER_S)
#define LONG_WAIT_NS (15 * SL_NS_PER_S)
#define ANSWER_NS    (10 * SL_NS_PER_S)

int cli_reset(cli *c)
{
    const Sluice__V1__ResetDeviceRequest request = SLUICE__V1__RESET_DEVICE_REQUEST__INIT;
    Sluice__V1__ResetDeviceReply *reply = NULL;
    char duration[CLI_BYTES_TEXT];

    if (!c->opt.hard)
        return cli_usage(c, "reset ends the worker and begins its jobs again: say --hard if that "
                            "is meant");
    const sl_status status =
        cli_call_reset_device(c, &request, cli_timeout_ns(c, RESET_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else
        printf("worker %" PRId64 " ended, worker %" PRId64 " is up, took %s\n", reply->old_pid,
               reply->new_pid, cli_duration(reply->duration_ns, duration));
    sl_message_free(reply);
    return CLI_OK;
}

int cli_drain(cli *c)
{
    Sluice__V1__DrainRequest request = SLUICE__V1__DRAIN_REQUEST__INIT;
    Sluice__V1__DrainReply *reply = NULL;

    request.off = c->opt.off;
    const sl_status status =
        cli_call_drain(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else
        printf("%s: %u running, %u queued\n",
               c->opt.off ? "jobs are admitted again" : "no more jobs are admitted",
               reply->running_jobs, reply->queued_jobs);
    sl_message_free(reply);
    return CLI_OK;
}

int cli_reload(cli *c)
{
    const Sluice__V1__ReloadConfigRequest request = SLUICE__V1__RELOAD_CONFIG_REQUEST__INIT;
    Sluice__V1__ReloadConfigReply *reply = NULL;
    const sl_status status =
        cli_call_reload_config(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);

    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else if (reply->n_changed == 0)
        puts("nothing has changed");
    for (size_t i = 0; i < reply->n_changed && !c->opt.json; i++)
        printf("changed: %s\n", reply->changed[i]);
    sl_message_free(reply);
    return CLI_OK;
}

int cli_clean_outputs(cli *c)
{
    Sluice__V1__CleanOutputsRequest request = SLUICE__V1__CLEAN_OUTPUTS_REQUEST__INIT;
    Sluice__V1__CleanOutputsReply *reply = NULL;
    char size[CLI_BYTES_TEXT];

    if (c->opt.older_than_ns == 0)
        return cli_usage(c, "`sluice clean` needs --older-than, such as 7d");
    request.older_than_ns = c->opt.older_than_ns;
    request.dry_run = c->opt.dry_run;
    const sl_status status =
        cli_call_clean_outputs(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json) {
        cli_json_print(cli_json_message(reply));
    } else {
        for (size_t i = 0; i < reply->n_names; i++)
            puts(reply->names[i]);
        printf("%u files, %s bytes%s\n", reply->files, cli_bytes(reply->bytes, size),
               c->opt.dry_run ? " would be removed" : " removed");
    }
    sl_message_free(reply);
    return CLI_OK;
}

int cli_doctor(cli *c)
{
    const Sluice__V1__DoctorRequest request = SLUICE__V1__DOCTOR_REQUEST__INIT;
    Sluice__V1__DoctorReply *reply = NULL;
    const sl_status status =
        cli_call_doctor(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    bool ok = true;

    if (status != SL_OK)
        return cli_fail(c, status);
    for (size_t i = 0; i < reply->n_lines; i++)
        ok = ok && reply->lines[i]->ok;
    ok = ok && reply->ok;
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    for (size_t i = 0; i < reply->n_lines && !c->opt.json; i++) {
        const Sluice__V1__DoctorLine *line = reply->lines[i];

        printf("%-8s %-14s %s\n", line->ok ? "OK" : "NOT OK", line->check, line->text);
        if (!line->ok && line->advice[0])
            printf("%-8s %-14s do: %s\n", "", "", line->advice);
    }
    sl_message_free(reply);
    return ok ? CLI_OK : CLI_ERROR;
}

int cli_explain(cli *c)
{
    Sluice__V1__ExplainJobRequest request = SLUICE__V1__EXPLAIN_JOB_REQUEST__INIT;
    Sluice__V1__ExplainJobReply *reply = NULL;

    request.job_id = (char *)c->opt.args[0];
    const sl_status status =
        cli_call_explain_job(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else if (reply->job)
        cli_print_job(stdout, reply->job);
    for (size_t i = 0; i < reply->n_lines && !c->opt.json; i++)
        puts(reply->lines[i]);
    sl_message_free(reply);
    return CLI_OK;
}

/* ---- events ---- */

static void show_event(const cli *c, const Sluice__V1__ServerEvent *event)
{
    char when[CLI_BYTES_TEXT];

    if (c->opt.json) {
        cJSON *line = cJSON_CreateObject();
        cJSON_AddItemToObject(line, "event", cli_json_message(event));
        cli_json_print(line);
    } else {
        printf("%s  %-14s %s\n", cli_time(event->time_ns, when), event->kind, event->text);
    }
}

/* One answer's worth; *count of them were new.  A daemon that was restarted
 * counts from 1 again: its newest is then before ours. */
static sl_status show_events(cli *c, uint64_t *seq, int64_t wait_ns, size_t *count)
{
    Sluice__V1__WatchEventsRequest request = SLUICE__V1__WATCH_EVENTS_REQUEST__INIT;
    Sluice__V1__WatchEventsReply *reply = NULL;

    request.after_seq = *seq;
    request.wait_ns = wait_ns;
    const sl_status status =
        cli_call_watch_events(c, &request, wait_ns + cli_timeout_ns(c, ANSWER_NS), &reply);
    if (status != SL_OK)
        return status;
    *count = 0;
    if (reply->n_events > 0 && reply->events[reply->n_events - 1]->seq < *seq)
        *seq = 0;
    for (size_t i = 0; i < reply->n_events; i++) {
        if (reply->events[i]->seq <= *seq)
            continue;
        *seq = reply->events[i]->seq;
        (*count)++;
        show_event(c, reply->events[i]);
    }
    fflush(stdout);
    sl_message_free(reply);
    return SL_OK;
}

/* A daemon with too many watchers answers at once: it is not asked all the time. */
static void pause_if_early(int64_t asked_ns)
{
    struct pollfd interrupt = { .fd = cli_interrupt_fd(), .events = POLLIN };

    if (sl_clock_now_ns() - asked_ns < SL_NS_PER_S)
        poll(&interrupt, 1, 1000);
}

int cli_events(cli *c)
{
    uint64_t seq = 0;
    size_t count = 1;
    sl_status status = c->opt.follow ? cli_catch_interrupts(c) : SL_OK;

    while (status == SL_OK && (count > 0 || c->opt.follow) && !ferror(stdout)) {
        const int64_t asked_ns = sl_clock_now_ns();

        status = show_events(c, &seq, c->opt.follow ? LONG_WAIT_NS : 0, &count);
        if (status == SL_OK && count == 0 && c->opt.follow)
            pause_if_early(asked_ns);
    }
    if (status == SL_ERR_CANCELLED && !c->details.answered)
        return CLI_OK; /* Ctrl-C is how it ends */
    return status == SL_OK ? CLI_OK : cli_fail(c, status);
}
