/* cli_jobs.c - jobs that exist: watch, jobs, job, cancel, fetch. */
#include "clients/c/cli_jobs.h"

#include <string.h>
#include <unistd.h>

#define LONG_WAIT_NS  (15 * SL_NS_PER_S)
#define SHORT_WAIT_NS (SL_NS_PER_S / 4) /* keeps the clock of the progress line going */
#define ANSWER_NS     (60 * SL_NS_PER_S) /* longer than a cable is pulled */

bool cli_job_ended(const Sluice__V1__Job *job)
{
    return job->state >= SLUICE__V1__JOB_STATE__DONE;
}

int cli_job_exit_code(const Sluice__V1__Job *job)
{
    if (job->state == SLUICE__V1__JOB_STATE__FAILED)
        return CLI_JOB_FAILED;
    if (job->state == SLUICE__V1__JOB_STATE__CANCELLED_STATE)
        return CLI_JOB_CANCELLED;
    return CLI_OK;
}

static void print_event(const cli *c, const Sluice__V1__JobEvent *event, int64_t submitted_ns)
{
    char elapsed[CLI_BYTES_TEXT];

    if (c->opt.json) {
        if (c->command->run == cli_watch) {
            cJSON *line = cJSON_CreateObject();
            cJSON_AddItemToObject(line, "event", cli_json_message(event));
            cli_json_print(line);
        }
        return;
    }
    if (c->progress)
        return;
    const char *state = cli_state_text(event->state);
    const bool more = event->text[0] && strcmp(event->text, state) != 0;
    fprintf(stderr, "%10s  %s%s%s\n", cli_duration(event->time_ns - submitted_ns, elapsed), state,
            more ? ": " : "", more ? event->text : "");
}

static void show_progress(const cli *c, const Sluice__V1__Job *job)
{
    if (c->progress)
        cli_draw_progress(job->state, job->step, job->step_count, job->position,
                          sl_clock_wall_ns() - job->submitted_ns);
}

/* A picture that cannot be written is told once and left out: the job goes on. */
static void take_preview(cli *c, const Sluice__V1__Preview *preview, int *last_step)
{
    sl_error err = { .status = SL_OK };

    if (!preview)
        return;
    *last_step = preview->step;
    if (cli_write_preview(c->opt.preview, preview, &err) != SL_OK) {
        fprintf(stderr, "no preview: %s\n", err.message);
        c->opt.preview = NULL;
    }
}

sl_status cli_follow(cli *c, const char *job_id, uint64_t *seq, Sluice__V1__Job **out)
{
    int preview_step = 0;
    sl_status status = SL_OK;

    for (;;) {
        Sluice__V1__WatchJobRequest request = SLUICE__V1__WATCH_JOB_REQUEST__INIT;
        Sluice__V1__WatchJobReply *reply = NULL;

        request.job_id = (char *)job_id;
        request.after_seq = *seq;
        request.preview = c->opt.preview != NULL;
        request.preview_after_step = preview_step;
        request.wait_ns = c->progress ? SHORT_WAIT_NS : LONG_WAIT_NS;
        status =
            cli_call_watch_job(c, &request, request.wait_ns + cli_timeout_ns(c, ANSWER_NS), &reply);
        if (status != SL_OK)
            break;
        for (size_t i = 0; i < reply->n_events; i++) {
            if (reply->events[i]->seq > *seq)
                *seq = reply->events[i]->seq;
            print_event(c, reply->events[i], reply->job ? reply->job->submitted_ns : 0);
        }
        if (!reply->job) {
            sl_message_free(reply);
            status = sl_fail(&c->err, SL_ERR_DATA, "the daemon's answer has no job in it");
            break;
        }
        show_progress(c, reply->job);
        take_preview(c, reply->preview, &preview_step);
        if (cli_job_ended(reply->job)) {
            *out = reply->job;
            reply->job = NULL; /* handed to the caller */
        }
        sl_message_free(reply);
        if (*out)
            break;
    }
    if (c->progress)
        cli_end_progress();
    return status;
}

static void print_job_json(const Sluice__V1__Job *job)
{
    cJSON *object = cJSON_CreateObject();

    cJSON_AddItemToObject(object, "job", cli_json_message(job));
    cli_json_print(object);
}

int cli_watch(cli *c)
{
    Sluice__V1__Job *job = NULL;
    uint64_t seq = 0;
    const sl_status status = cli_follow(c, c->opt.args[0], &seq, &job);

    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        print_job_json(job);
    else
        cli_print_job(stdout, job);
    const int code = cli_job_exit_code(job);
    sl_message_free(job);
    return code;
}

int cli_job(cli *c)
{
    Sluice__V1__GetJobRequest request = SLUICE__V1__GET_JOB_REQUEST__INIT;
    Sluice__V1__GetJobReply *reply = NULL;

    request.job_id = (char *)c->opt.args[0];
    const sl_status status =
        cli_call_get_job(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json) {
        cli_json_print(cli_json_message(reply));
    } else if (reply->job) {
        cli_print_job(stdout, reply->job);
        if (reply->job->plan)
            cli_print_plan(stdout, reply->job->plan);
    }
    sl_message_free(reply);
    return CLI_OK;
}

int cli_jobs(cli *c)
{
    Sluice__V1__ListJobsRequest request = SLUICE__V1__LIST_JOBS_REQUEST__INIT;
    Sluice__V1__ListJobsReply *reply = NULL;

    request.active_only = c->opt.active;
    request.limit = (uint32_t)c->opt.limit;
    const sl_status status =
        cli_call_list_jobs(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json) {
        cli_json_print(cli_json_message(reply));
        goto done;
    }
    if (reply->n_jobs == 0)
        puts("no jobs");
    else
        printf("%-20s %-10s %-8s %-20s %-20s %10s\n", "JOB", "STATE", "STEP", "MODEL", "SUBMITTED",
               "RAN");
    for (size_t i = 0; i < reply->n_jobs; i++) {
        const Sluice__V1__Job *job = reply->jobs[i];
        char step[32], when[CLI_BYTES_TEXT], ran[CLI_BYTES_TEXT];

        snprintf(step, sizeof step, "%d/%d", job->step, job->step_count);
        printf("%-20s %-10s %-8s %-20s %-20s %10s\n", job->job_id, cli_state_text(job->state), step,
               job->model, cli_time(job->submitted_ns, when),
               job->run_ns > 0 ? cli_duration(job->run_ns, ran) : "-");
    }
done:
    sl_message_free(reply);
    return CLI_OK;
}

int cli_cancel(cli *c)
{
    Sluice__V1__CancelJobRequest request = SLUICE__V1__CANCEL_JOB_REQUEST__INIT;
    Sluice__V1__CancelJobReply *reply = NULL;

    request.job_id = (char *)c->opt.args[0];
    const sl_status status =
        cli_call_cancel_job(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else if (reply->job)
        printf("job %s: %s\n", reply->job->job_id, cli_state_text(reply->job->state));
    sl_message_free(reply);
    return CLI_OK;
}

/* ---- fetch ---- */

static void draw_fetch(void *arg, uint64_t done_bytes, uint64_t size_bytes)
{
    char done[CLI_BYTES_TEXT], size[CLI_BYTES_TEXT];

    (void)arg;
    fprintf(stderr, "\rfetching %s of %s\x1b[K", cli_bytes_human(done_bytes, done),
            cli_bytes_human(size_bytes, size));
    fflush(stderr);
}

sl_status cli_fetch_to(cli *c, const char *job_id, const char *path, sl_fetch_result *out)
{
    sl_call_details_fini(&c->details);
    const sl_status status =
        sl_client_fetch_file(c->client, job_id, path, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS),
                             c->progress ? draw_fetch : NULL, NULL, out, &c->details, &c->err);

    if (c->progress)
        cli_end_progress();
    return status;
}

cJSON *cli_json_output(const char *path, const sl_fetch_result *result)
{
    cJSON *object = cJSON_CreateObject();

    cJSON_AddStringToObject(object, "path", path);
    cli_json_u64(object, "size_bytes", result->size_bytes);
    cli_json_u64(object, "resumed_bytes", result->resumed_bytes);
    cJSON_AddStringToObject(object, "sha256", result->sha256);
    return object;
}

int cli_fetch(cli *c)
{
    Sluice__V1__GetJobRequest request = SLUICE__V1__GET_JOB_REQUEST__INIT;
    Sluice__V1__GetJobReply *reply = NULL;
    sl_fetch_result result = { 0 };
    char own_path[512], size[CLI_BYTES_TEXT];
    const char *path = c->opt.output;
    sl_status status = SL_OK;

    if (!path) { /* the name needs the job's format */
        request.job_id = (char *)c->opt.args[0];
        status = cli_call_get_job(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
        if (status == SL_OK && !reply->job)
            status = sl_fail(&c->err, SL_ERR_DATA, "the daemon's answer has no job in it");
        if (status == SL_OK)
            path = cli_output_name(reply->job, own_path, sizeof own_path);
    }
    if (status == SL_OK)
        status = cli_fetch_to(c, c->opt.args[0], path, &result);
    if (status != SL_OK) {
        sl_message_free(reply);
        return cli_fail(c, status);
    }
    if (c->opt.json) {
        cJSON *object = cJSON_CreateObject();
        cJSON_AddItemToObject(object, "output", cli_json_output(path, &result));
        cli_json_print(object);
    } else {
        printf("%s: %s bytes, sha256 %s\n", path, cli_bytes(result.size_bytes, size),
               result.sha256);
        if (result.resumed_bytes > 0)
            printf("  continued after %s bytes\n", cli_bytes(result.resumed_bytes, size));
    }
    sl_message_free(reply);
    return CLI_OK;
}

const char *cli_output_name(const Sluice__V1__Job *job, char *buf, size_t buf_bytes)
{
    /* Job ids come from the daemon: a path must not grow out of one. */
    for (const char *p = job->job_id; *p; p++)
        if (*p == '/')
            return "sluice-output";
    snprintf(buf, buf_bytes, "%s.%s", job->job_id,
             job->output == SLUICE__V1__OUTPUT_FORMAT__LATENT ? "safetensors"
                                                              : cli_format_text(job->output));
    return buf;
}
