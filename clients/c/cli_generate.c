/* cli_generate.c - from a prompt, or a latent, to a file here; and plan, the same
 * without running anything.
 *
 * generate:  submit --> follow --> fetch --> report
 *                         | Ctrl-C
 *                         v
 *                      cancel --> follow (Ctrl-C: leave it to the daemon)
 */
#include "clients/c/cli_jobs.h"

#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the request ---- */

static sl_status make_request_id(char *out, size_t out_bytes, sl_error *err)
{
    uint8_t random[16];

    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return sl_fail_errno(err, "could not get random bytes for a request id");
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(out + 2 * i, out_bytes - 2 * i, "%02x", random[i]);
    return SL_OK;
}

/* The one usable model there is; the caller frees *out. */
static sl_status find_only_model(cli *c, char **out)
{
    const Sluice__V1__ListModelsRequest request = SLUICE__V1__LIST_MODELS_REQUEST__INIT;
    Sluice__V1__ListModelsReply *reply = NULL;
    const char *found = NULL;
    char names[512] = "";
    int usable = 0;
    sl_status status =
        cli_call_list_models(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);

    if (status != SL_OK)
        return status;
    for (size_t i = 0; i < reply->n_models; i++) {
        const size_t used = strlen(names);

        if (reply->models[i]->problem[0])
            continue;
        found = reply->models[i]->name;
        snprintf(names + used, sizeof names - used, "%s%s", usable++ ? ", " : "", found);
    }
    if (usable == 0)
        status = sl_fail(&c->err, SL_ERR_INVALID, "the daemon has no usable model");
    else if (usable > 1)
        status =
            sl_fail(&c->err, SL_ERR_INVALID, "which of %d models? --model takes %s", usable, names);
    else if (!(*out = strdup(found)))
        status = sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for a name");
    sl_message_free(reply);
    return status;
}

/* By --format, or by the output file's name. */
static sl_status choose_format(cli *c, Sluice__V1__OutputFormat *out)
{
    const char *dot = c->opt.output ? strrchr(c->opt.output, '.') : NULL;

    if (c->opt.format) {
        if (!cli_format_of(c->opt.format, out))
            return sl_fail(&c->err, SL_ERR_INVALID, "unknown format \"%s\": mp4, y4m, png or latent",
                           c->opt.format);
    } else if (!dot || !cli_format_of(dot + 1, out)) {
        *out = SLUICE__V1__OUTPUT_FORMAT__MP4;
    }
    return SL_OK;
}

/* image.data and image_id: the caller frees what they get. */
static sl_status fill_request(cli *c, Sluice__V1__GenerateRequest *request, const char *model)
{
    const cli_options *o = &c->opt;
    sl_status status = cli_fill_shape(o, request, &c->err);

    if (status == SL_OK)
        status = cli_enum_of("sizing", o->sizing, &sluice__v1__sizing__descriptor,
                             (int *)&request->sizing, &c->err);
    if (status == SL_OK)
        status = choose_format(c, &request->output);
    if (status == SL_OK && o->image)
        status = cli_attach_image(c, o->image, request);
    request->model = (char *)model;
    request->prompt = o->arg_count > 0 ? (char *)o->args[0] : request->prompt;
    if (o->negative)
        request->negative_prompt = (char *)o->negative;
    request->preview = o->preview != NULL;
    request->seed = o->seed;
    request->priority = (int32_t)o->priority;
    request->deadline_ns = o->deadline_ns;
    return status;
}

/* Before a job of minutes: can its result be written at all? */
static sl_status check_output(cli *c)
{
    char *copy = NULL;
    struct stat st;
    sl_status status = SL_OK;

    if (!c->opt.output)
        return SL_OK;
    if (stat(c->opt.output, &st) == 0 && !S_ISREG(st.st_mode))
        return sl_fail(&c->err, SL_ERR_INVALID, "\"%s\" is no regular file", c->opt.output);
    copy = strdup(c->opt.output);
    if (!copy)
        return sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for a path");
    if (access(dirname(copy), W_OK) != 0)
        status = sl_fail_errno(&c->err, "could not write \"%s\"", c->opt.output);
    free(copy);
    return status;
}

/* ---- plan ---- */

/* Usage errors must not look like "fits after". */
static int plan_fail(cli *c, sl_status status)
{
    const int code = cli_fail(c, status);

    return code == CLI_USAGE ? CLI_ERROR : code;
}

static int show_plan(const cli *c, const Sluice__V1__PlanJobReply *reply)
{
    const bool never = reply->refusal && reply->refusal->when == SLUICE__V1__REFUSAL__WHEN__NEVER;

    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else if (reply->plan)
        cli_print_plan(stdout, reply->plan);
    if (!c->opt.json && reply->admitted_now)
        puts("fits now");
    else if (!c->opt.json && reply->refusal)
        cli_print_refusal(stdout, reply->refusal);
    if (reply->admitted_now)
        return CLI_OK;
    return never ? CLI_NEVER_FITS : CLI_FITS_AFTER;
}

int cli_plan(cli *c)
{
    Sluice__V1__GenerateRequest request = SLUICE__V1__GENERATE_REQUEST__INIT;
    Sluice__V1__PlanJobRequest plan = SLUICE__V1__PLAN_JOB_REQUEST__INIT;
    Sluice__V1__PlanJobReply *reply = NULL;
    char *only_model = NULL;
    int code = CLI_OK;
    sl_status status = SL_OK;

    if (!c->opt.model)
        status = find_only_model(c, &only_model);
    if (status == SL_OK)
        status = fill_request(c, &request, c->opt.model ? c->opt.model : only_model);
    if (status == SL_OK) {
        plan.request = &request;
        status = cli_call_plan_job(c, &plan, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    }
    code = status == SL_OK ? show_plan(c, reply) : plan_fail(c, status);
    sl_message_free(reply);
    cli_detach_image(&request);
    free(only_model);
    return code;
}

/* ---- generate ---- */

static void report_submitted(const cli *c, const Sluice__V1__Job *job)
{
    if (c->opt.json)
        return;
    fprintf(stderr, "job %s\n", job->job_id);
    if (job->plan)
        cli_print_plan(stderr, job->plan);
}

static int report_detached(const cli *c, const Sluice__V1__Job *job)
{
    if (c->opt.json) {
        cJSON *object = cJSON_CreateObject();
        cJSON_AddItemToObject(object, "job", cli_json_message(job));
        cli_json_print(object);
    } else {
        puts(job->job_id);
    }
    return CLI_OK;
}

/* The first Ctrl-C: the daemon is asked to cancel.  Another one meanwhile, and
 * it is left alone. */
static sl_status cancel_on_interrupt(cli *c, const char *job_id)
{
    Sluice__V1__CancelJobRequest request = SLUICE__V1__CANCEL_JOB_REQUEST__INIT;
    Sluice__V1__CancelJobReply *reply = NULL;

    cli_forget_interrupts();
    if (!c->opt.json)
        fprintf(stderr, "cancelling job %s (Ctrl-C again leaves it running)\n", job_id);
    request.job_id = (char *)job_id;
    const sl_status status =
        cli_call_cancel_job(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    sl_message_free(reply);
    return status;
}

static sl_status follow_or_cancel(cli *c, const char *job_id, Sluice__V1__Job **out)
{
    uint64_t seq = 0;
    sl_status status = cli_follow(c, job_id, &seq, out);

    if (status == SL_ERR_CANCELLED && !c->details.answered) {
        status = cancel_on_interrupt(c, job_id);
        if (status == SL_OK)
            status = cli_follow(c, job_id, &seq, out);
    }
    if (status != SL_OK && !c->details.answered && !c->opt.json)
        fprintf(stderr, "job %s is left to the daemon: sluice watch %s\n", job_id, job_id);
    return status;
}

static void report_done(const Sluice__V1__Job *job, const char *path, const sl_fetch_result *result)
{
    char planned[CLI_BYTES_TEXT], measured[CLI_BYTES_TEXT], size[CLI_BYTES_TEXT];
    char took[CLI_BYTES_TEXT];

    printf("job %s done in %s\n", job->job_id, cli_duration(job->run_ns, took));
    printf("planned peak  %18s bytes\nmeasured peak %18s bytes%s\n",
           cli_bytes(job->planned_peak_bytes, planned),
           cli_bytes(job->measured_peak_bytes, measured),
           job->planned_peak_bytes == job->measured_peak_bytes ? " (equal)" : " (NOT EQUAL)");
    printf("%s: %s bytes, sha256 %s\n", path, cli_bytes(result->size_bytes, size), result->sha256);
}

static int finish(cli *c, const Sluice__V1__Job *job)
{
    char own_path[512];
    const char *path =
        c->opt.output ? c->opt.output : cli_output_name(job, own_path, sizeof own_path);
    sl_fetch_result result = { 0 };
    const int code = cli_job_exit_code(job);
    cJSON *object = NULL;

    if (code == CLI_OK) {
        const sl_status status = cli_fetch_to(c, job->job_id, path, &result);
        if (status != SL_OK)
            return cli_fail(c, status);
    }
    if (c->opt.json) {
        object = cJSON_CreateObject();
        cJSON_AddItemToObject(object, "job", cli_json_message(job));
        cJSON_AddItemToObject(object, "output",
                              code == CLI_OK ? cli_json_output(path, &result) : cJSON_CreateNull());
        cli_json_print(object);
    } else if (code == CLI_OK) {
        report_done(job, path, &result);
    } else {
        cli_print_job(stderr, job);
    }
    return code;
}

/* From the answer to a submission to the file. */
static int see_through(cli *c, const Sluice__V1__Job *job)
{
    Sluice__V1__Job *ended = NULL;
    sl_status status = SL_OK;

    if (!job)
        return cli_fail(c, sl_fail(&c->err, SL_ERR_DATA, "the daemon's answer has no job in it"));
    if (c->opt.detach)
        return report_detached(c, job);
    report_submitted(c, job);
    status = follow_or_cancel(c, job->job_id, &ended);
    const int code = status == SL_OK ? finish(c, ended) : cli_fail(c, status);
    sl_message_free(ended);
    return code;
}

/* What is done before any job is asked for. */
static sl_status prepare(cli *c, char *request_id, size_t request_id_bytes)
{
    sl_status status = check_output(c);

    if (status == SL_OK && c->opt.request_id)
        snprintf(request_id, request_id_bytes, "%s", c->opt.request_id);
    else if (status == SL_OK)
        status = make_request_id(request_id, request_id_bytes, &c->err);
    if (status == SL_OK && !c->opt.detach)
        status = cli_catch_interrupts(c);
    return status;
}

int cli_generate(cli *c)
{
    Sluice__V1__GenerateRequest request = SLUICE__V1__GENERATE_REQUEST__INIT;
    Sluice__V1__GenerateReply *reply = NULL;
    char request_id[128], *only_model = NULL;
    sl_status status = prepare(c, request_id, sizeof request_id);

    if (status == SL_OK && !c->opt.model)
        status = find_only_model(c, &only_model);
    if (status == SL_OK)
        status = fill_request(c, &request, c->opt.model ? c->opt.model : only_model);
    if (status == SL_OK) {
        request.request_id = request_id;
        status = cli_call_generate(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    }
    const int code = status == SL_OK ? see_through(c, reply->job) : cli_fail(c, status);
    sl_message_free(reply);
    cli_detach_image(&request);
    free(only_model);
    return code;
}

int cli_decode(cli *c)
{
    Sluice__V1__DecodeLatentRequest request = SLUICE__V1__DECODE_LATENT_REQUEST__INIT;
    Sluice__V1__DecodeLatentReply *reply = NULL;
    char request_id[128];
    sl_status status = prepare(c, request_id, sizeof request_id);

    if (status == SL_OK)
        status = choose_format(c, &request.output);
    if (status == SL_OK)
        status = cli_enum_of("VAE precision", c->opt.vae_precision,
                             &sluice__v1__precision__descriptor, (int *)&request.vae_precision,
                             &c->err);
    if (status == SL_OK) {
        request.request_id = request_id;
        request.job_id = (char *)c->opt.args[0];
        request.priority = (int32_t)c->opt.priority;
        request.deadline_ns = c->opt.deadline_ns;
        status =
            cli_call_decode_latent(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);
    }
    const int code = status == SL_OK ? see_through(c, reply->job) : cli_fail(c, status);
    sl_message_free(reply);
    return code;
}
