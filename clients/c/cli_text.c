#include "clients/c/cli.h"

#include "base/size.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- words ---- */

static const struct {
    const char *text;
    Sluice__V1__Component value;
} component_words[] = {
    { "text_encoder", SLUICE__V1__COMPONENT__TEXT_ENCODER },
    { "dit", SLUICE__V1__COMPONENT__DIT },
    { "dit_high", SLUICE__V1__COMPONENT__DIT_HIGH },
    { "dit_low", SLUICE__V1__COMPONENT__DIT_LOW },
    { "vae", SLUICE__V1__COMPONENT__VAE },
};

static const char *const state_words[] = {
    [SLUICE__V1__JOB_STATE__JOB_UNSPECIFIED] = "unknown",
    [SLUICE__V1__JOB_STATE__QUEUED] = "queued",
    [SLUICE__V1__JOB_STATE__ADMITTED] = "admitted",
    [SLUICE__V1__JOB_STATE__LOADING] = "loading",
    [SLUICE__V1__JOB_STATE__ENCODING] = "encoding",
    [SLUICE__V1__JOB_STATE__DENOISING] = "denoising",
    [SLUICE__V1__JOB_STATE__DECODING] = "decoding",
    [SLUICE__V1__JOB_STATE__MUXING] = "muxing",
    [SLUICE__V1__JOB_STATE__DONE] = "done",
    [SLUICE__V1__JOB_STATE__FAILED] = "failed",
    [SLUICE__V1__JOB_STATE__CANCELLED_STATE] = "cancelled",
};

const char *cli_component_text(Sluice__V1__Component component)
{
    for (size_t i = 0; i < SL_COUNT(component_words); i++)
        if (component_words[i].value == component)
            return component_words[i].text;
    return "unknown";
}

bool cli_component_of(const char *text, Sluice__V1__Component *out)
{
    for (size_t i = 0; i < SL_COUNT(component_words); i++)
        if (strcmp(component_words[i].text, text) == 0) {
            *out = component_words[i].value;
            return true;
        }
    return false;
}

const char *cli_precision_text(Sluice__V1__Precision precision)
{
    switch (precision) {
    case SLUICE__V1__PRECISION__F32:
        return "f32";
    case SLUICE__V1__PRECISION__BF16:
        return "bf16";
    default:
        return "default";
    }
}

bool cli_precision_of(const char *text, Sluice__V1__Precision *out)
{
    if (strcmp(text, "f32") == 0)
        *out = SLUICE__V1__PRECISION__F32;
    else if (strcmp(text, "bf16") == 0)
        *out = SLUICE__V1__PRECISION__BF16;
    else
        return false;
    return true;
}

bool cli_sampler_of(const char *text, Sluice__V1__Sampler *out)
{
    if (strcmp(text, "sde") == 0)
        *out = SLUICE__V1__SAMPLER__SDE;
    else if (strcmp(text, "ode") == 0)
        *out = SLUICE__V1__SAMPLER__ODE;
    else
        return false;
    return true;
}

const char *cli_format_text(Sluice__V1__OutputFormat format)
{
    switch (format) {
    case SLUICE__V1__OUTPUT_FORMAT__Y4M:
        return "y4m";
    case SLUICE__V1__OUTPUT_FORMAT__PNG:
        return "png";
    default:
        return "mp4";
    }
}

bool cli_format_of(const char *text, Sluice__V1__OutputFormat *out)
{
    if (strcmp(text, "mp4") == 0)
        *out = SLUICE__V1__OUTPUT_FORMAT__MP4;
    else if (strcmp(text, "y4m") == 0)
        *out = SLUICE__V1__OUTPUT_FORMAT__Y4M;
    else if (strcmp(text, "png") == 0)
        *out = SLUICE__V1__OUTPUT_FORMAT__PNG;
    else
        return false;
    return true;
}

const char *cli_state_text(Sluice__V1__JobState state)
{
    if ((unsigned)state >= SL_COUNT(state_words))
        return "unknown";
    return state_words[state];
}

/* ---- numbers ---- */

char *cli_bytes(uint64_t size_bytes, char *buf)
{
    char digits[32];
    const int count = snprintf(digits, sizeof digits, "%" PRIu64, size_bytes);
    char *at = buf;

    for (int i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0)
            *at++ = ',';
        *at++ = digits[i];
    }
    *at = 0;
    return buf;
}

char *cli_bytes_human(uint64_t size_bytes, char *buf)
{
    return sl_size_format((size_t)size_bytes, buf, CLI_BYTES_TEXT);
}

char *cli_duration(int64_t ns, char *buf)
{
    const double s = (double)ns / (double)SL_NS_PER_S;

    if (s < 0.1)
        snprintf(buf, CLI_BYTES_TEXT, "%.1f ms", s * 1e3);
    else if (s < 100)
        snprintf(buf, CLI_BYTES_TEXT, "%.1f s", s);
    else
        snprintf(buf, CLI_BYTES_TEXT, "%d min %02d s", (int)(s / 60), (int)s % 60);
    return buf;
}

/* "  denoise              12,582,912   12.00 MiB  note" */
static void print_line(FILE *f, const char *label, uint64_t size_bytes, const char *note)
{
    char exact[CLI_BYTES_TEXT], human[CLI_BYTES_TEXT];

    fprintf(f, "  %-34s %18s  %11s%s%s\n", label, cli_bytes(size_bytes, exact),
            cli_bytes_human(size_bytes, human), note[0] ? "  " : "", note);
}

static void print_signed_line(FILE *f, const char *label, int64_t size_bytes)
{
    const uint64_t magnitude = size_bytes < 0 ? -(uint64_t)size_bytes : (uint64_t)size_bytes;
    char exact[CLI_BYTES_TEXT], human[CLI_BYTES_TEXT], text[CLI_BYTES_TEXT + 1];

    snprintf(text, sizeof text, "%s%s", size_bytes < 0 ? "-" : "", cli_bytes(magnitude, exact));
    fprintf(f, "  %-34s %18s  %11s\n", label, text, cli_bytes_human(magnitude, human));
}

/* ---- plan, refusal, receipt, job ---- */

void cli_print_plan(FILE *f, const Sluice__V1__Plan *plan)
{
    char label[256];

    fprintf(f, "plan of %s in %s\n", plan->model, cli_precision_text(plan->precision));
    for (size_t i = 0; i < plan->n_components; i++) {
        const Sluice__V1__ComponentBytes *c = plan->components[i];

        snprintf(label, sizeof label, "weights %s", cli_component_text(c->component));
        print_line(f, label, c->planned_bytes, "");
    }
    for (size_t i = 0; i < plan->n_phases; i++) {
        snprintf(label, sizeof label, "activations %s", plan->phases[i]->phase);
        print_line(f, label, plan->phases[i]->activation_bytes, "");
    }
    print_line(f, "activations mapped (largest phase)", plan->activation_bytes, "");
    print_line(f, "workspace", plan->workspace_bytes, "");
    print_line(f, "peak", plan->peak_bytes, "");
    print_line(f, "device", plan->device_bytes, "");
    if (plan->table_row[0])
        fprintf(f, "  budget table row: %s\n", plan->table_row);
    for (size_t i = 0; i < plan->n_would_evict; i++)
        fprintf(f, "  gives back %s\n", plan->would_evict[i]);
}

void cli_print_refusal(FILE *f, const Sluice__V1__Refusal *refusal)
{
    const Sluice__V1__NearestRequest *nearest = refusal->nearest;

    if (refusal->when == SLUICE__V1__REFUSAL__WHEN__AFTER)
        fprintf(f, "fits after %s\n", refusal->after);
    else
        fputs("can never fit on this device\n", f);
    print_line(f, "needs", refusal->need_bytes, "");
    print_line(f, "can have", refusal->have_bytes, "");
    for (size_t i = 0; i < refusal->n_held_by; i++) {
        char label[256];

        snprintf(label, sizeof label, "held by %s", refusal->held_by[i]->what);
        print_line(f, label, refusal->held_by[i]->size_bytes, "");
    }
    if (refusal->table_rule[0])
        fprintf(f, "  the budget table forbids it, row \"%s\": %s\n", refusal->table_row,
                refusal->table_rule);
    if (nearest && nearest->exists) {
        char human[CLI_BYTES_TEXT];

        fprintf(f, "  nearest that fits: %dx%d, %d frames, %s (%s)\n", nearest->width,
                nearest->height, nearest->frames, cli_precision_text(nearest->precision),
                cli_bytes_human(nearest->need_bytes, human));
    } else if (nearest && refusal->when == SLUICE__V1__REFUSAL__WHEN__NEVER) {
        fputs("  no smaller request of this model fits either\n", f);
    }
}

void cli_print_receipt(FILE *f, const Sluice__V1__Receipt *receipt)
{
    char label[256], duration[CLI_BYTES_TEXT], note[96], exact[CLI_BYTES_TEXT];

    for (size_t i = 0; i < receipt->n_components; i++) {
        const Sluice__V1__ComponentBytes *c = receipt->components[i];

        snprintf(label, sizeof label, "%s/%s %s", c->model, cli_component_text(c->component),
                 cli_precision_text(c->precision));
        snprintf(note, sizeof note, "planned %s", cli_bytes(c->planned_bytes, exact));
        print_line(f, label, c->measured_bytes, note);
    }
    print_line(f, "device before", receipt->device_before_bytes, "");
    print_line(f, "device after", receipt->device_after_bytes, "");
    print_line(f, "free after", receipt->free_after_bytes, "");
    print_signed_line(f, "residue", receipt->residue_bytes);
    fprintf(f, "  took %s\n", cli_duration(receipt->duration_ns, duration));
}

void cli_print_job(FILE *f, const Sluice__V1__Job *job)
{
    char a[CLI_BYTES_TEXT];
    const Sluice__V1__GenerateRequest *r = job->request;

    fprintf(f, "job %s: %s", job->job_id, cli_state_text(job->state));
    if (job->state == SLUICE__V1__JOB_STATE__DENOISING)
        fprintf(f, ", step %d of %d", job->step, job->step_count);
    if (job->position > 0)
        fprintf(f, ", position %d", job->position);
    fprintf(f, "\n  model %s\n", job->model);
    if (r)
        fprintf(f, "  %dx%d, %d frames, %d steps, seed %" PRIu64 ", %s\n", r->width, r->height,
                r->frames, r->steps, r->seed, cli_precision_text(r->precision));
    if (job->attempt > 1)
        fprintf(f, "  attempt %d (a worker died)\n", job->attempt);
    if (job->message[0])
        fprintf(f, "  %s\n", job->message);
    if (job->run_ns > 0)
        fprintf(f, "  ran %s\n", cli_duration(job->run_ns, a));
    if (job->planned_peak_bytes > 0)
        fprintf(f, "  planned peak %s bytes\n", cli_bytes(job->planned_peak_bytes, a));
    if (job->measured_peak_bytes > 0)
        fprintf(f, "  measured peak %s bytes\n", cli_bytes(job->measured_peak_bytes, a));
    if (job->output_size_bytes > 0)
        fprintf(f, "  output %s, %s bytes, sha256 %s\n", cli_format_text(job->output),
                cli_bytes(job->output_size_bytes, a), job->output_sha256);
    if (job->state == SLUICE__V1__JOB_STATE__QUEUED && job->waiting_for)
        cli_print_refusal(f, job->waiting_for);
}

/* ---- the ledger ---- */

static void print_holders(FILE *f, const Sluice__V1__DeviceMemory *m)
{
    for (size_t i = 0; i < m->n_components; i++) {
        const Sluice__V1__ComponentBytes *c = m->components[i];
        char label[256], note[96], exact[CLI_BYTES_TEXT];

        snprintf(label, sizeof label, "  %s/%s %s", c->model, cli_component_text(c->component),
                 cli_precision_text(c->precision));
        snprintf(note, sizeof note, "planned %s%s%s", cli_bytes(c->planned_bytes, exact),
                 c->pinned ? ", pinned" : "", c->users ? ", in use" : "");
        print_line(f, label, c->measured_bytes, note);
    }
}

static void print_jobs(FILE *f, const Sluice__V1__DeviceMemory *m, bool reserved)
{
    for (size_t i = 0; i < m->n_jobs; i++) {
        const uint64_t size_bytes =
            reserved ? m->jobs[i]->reserved_bytes : m->jobs[i]->activation_bytes;
        char label[256];

        if (size_bytes == 0)
            continue;
        snprintf(label, sizeof label, "  job %s", m->jobs[i]->job_id);
        print_line(f, label, size_bytes, "");
    }
}

bool cli_print_memory(FILE *f, const Sluice__V1__DeviceMemory *m)
{
    /* Modulo 2^64, as the parts of a true ledger never pass it. */
    const uint64_t sum = m->context_bytes + m->weights_bytes + m->activations_bytes +
                         m->workspace_bytes + m->reserved_bytes + m->foreign_bytes + m->free_bytes +
                         (uint64_t)m->unexplained_bytes;
    const bool sums = sum == m->total_bytes;

    fprintf(f, "device %s, ", m->device);
    if (m->worker_up)
        fprintf(f, "worker %" PRId64, m->worker_pid);
    else
        fputs("no worker", f);
    fprintf(f, ", restarts %u\n", m->worker_restarts);
    print_line(f, "context", m->context_bytes, "");
    print_line(f, "weights", m->weights_bytes, "");
    print_holders(f, m);
    print_line(f, "activations", m->activations_bytes, "");
    print_jobs(f, m, false);
    print_line(f, "workspace", m->workspace_bytes, "");
    print_line(f, "reserved", m->reserved_bytes, "");
    print_jobs(f, m, true);
    print_line(f, "foreign", m->foreign_bytes, "");
    print_line(f, "free", m->free_bytes, "");
    print_signed_line(f, "unexplained", m->unexplained_bytes);
    print_line(f, "total", m->total_bytes, sums ? "= the sum" : "");
    if (!sums)
        print_signed_line(f, "NOT THE SUM: off by", (int64_t)(m->total_bytes - sum));
    print_line(f, "arena mapped (measured)", m->arena_mapped_bytes, "");
    print_line(f, "arena peak (measured)", m->arena_peak_bytes, "");
    return sums;
}

/* ---- progress ---- */

/* Where the phases begin and end on the bar, in hundredths; for the eye only. */
static double progress_of(Sluice__V1__JobState state, int step, int step_count)
{
    switch (state) {
    case SLUICE__V1__JOB_STATE__LOADING:
        return 2;
    case SLUICE__V1__JOB_STATE__ENCODING:
        return 5;
    case SLUICE__V1__JOB_STATE__DENOISING:
        return 10 + 70.0 * step / (step_count > 0 ? step_count : 1);
    case SLUICE__V1__JOB_STATE__DECODING:
        return 80;
    case SLUICE__V1__JOB_STATE__MUXING:
        return 97;
    case SLUICE__V1__JOB_STATE__DONE:
        return 100;
    default:
        return 0;
    }
}

void cli_draw_progress(Sluice__V1__JobState state, int step, int step_count, int position,
                       int64_t elapsed_ns)
{
    enum { BAR = 30 };
    char bar[BAR + 1], phase[64], text[200], duration[CLI_BYTES_TEXT];
    const int filled = (int)(progress_of(state, step, step_count) * BAR / 100);
    struct winsize size = { 0 };
    int columns = 80;

    memset(bar, ' ', BAR);
    memset(bar, '=', (size_t)(filled > BAR ? BAR : filled));
    bar[BAR] = 0;
    if (state == SLUICE__V1__JOB_STATE__DENOISING)
        snprintf(phase, sizeof phase, "denoising, step %d of %d", step, step_count);
    else if (state == SLUICE__V1__JOB_STATE__QUEUED && position > 0)
        snprintf(phase, sizeof phase, "queued, position %d", position);
    else
        snprintf(phase, sizeof phase, "%s", cli_state_text(state));
    snprintf(text, sizeof text, "[%s] %-24s %10s", bar, phase, cli_duration(elapsed_ns, duration));
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1)
        columns = size.ws_col;
    fprintf(stderr, "\r%.*s\x1b[K", columns - 1, text);
    fflush(stderr);
}

void cli_end_progress(void)
{
    fputs("\r\x1b[K", stderr);
    fflush(stderr);
}

/* ---- failures ---- */

static int exit_code(const cli *c, sl_status status)
{
    switch (status) {
    case SL_OK:
        return CLI_OK;
    case SL_ERR_INVALID:
        return CLI_USAGE;
    case SL_ERR_TOO_LARGE:
        return c->details.answered ? CLI_NEVER_FITS : CLI_ERROR;
    case SL_ERR_BUSY:
        return c->details.answered ? CLI_FITS_LATER : CLI_ERROR;
    case SL_ERR_UNAVAILABLE:
    case SL_ERR_TIMEOUT:
        return c->details.answered ? CLI_ERROR : CLI_UNREACHABLE;
    case SL_ERR_CANCELLED:
        return c->details.answered ? CLI_ERROR : CLI_INTERRUPTED;
    default:
        return CLI_ERROR;
    }
}

static void print_failure_json(const cli *c, sl_status status, int code)
{
    const Sluice__V1__Reply *reply = c->details.reply;
    cJSON *object = cJSON_CreateObject();
    cJSON *error = cJSON_AddObjectToObject(object, "error");
    const int grpc = c->details.code ? c->details.code : sl_status_grpc_code(status);

    cJSON_AddStringToObject(error, "code", sl_grpc_code_name(grpc));
    cJSON_AddStringToObject(error, "message", c->err.message);
    cJSON_AddNumberToObject(error, "exit_code", code);
    cJSON_AddBoolToObject(error, "answered", c->details.answered);
    cJSON_AddItemToObject(error, "refusal",
                          reply && reply->refusal ? cli_json_message(reply->refusal)
                                                  : cJSON_CreateNull());
    cJSON_AddItemToObject(error, "field",
                          reply && reply->field ? cli_json_message(reply->field)
                                                : cJSON_CreateNull());
    cli_json_u64(error, "retry_after_ns",
                 c->details.retry_after_ns > 0 ? (uint64_t)c->details.retry_after_ns : 0);
    cli_json_print(object);
}

int cli_fail(cli *c, sl_status status)
{
    const int code = exit_code(c, status);
    const Sluice__V1__Reply *reply = c->details.reply;

    if (c->opt.json) {
        print_failure_json(c, status, code);
        return code;
    }
    fprintf(stderr, "sluice: %s\n", c->err.message);
    if (reply && reply->refusal)
        cli_print_refusal(stderr, reply->refusal);
    if (reply && reply->field && reply->field->field[0]) {
        fprintf(stderr, "  field: %s\n", reply->field->field);
        if (reply->field->nearest[0])
            fprintf(stderr, "  nearest valid value: %s\n", reply->field->nearest);
    }
    return code;
}

int cli_usage(cli *c, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(c->err.message, sizeof c->err.message, fmt, args);
    va_end(args);
    c->err.status = SL_ERR_INVALID;
    return cli_fail(c, SL_ERR_INVALID);
}

int64_t cli_timeout_ns(const cli *c, int64_t usual_ns)
{
    return c->opt.timeout_s > 0 ? c->opt.timeout_s * SL_NS_PER_S : usual_ns;
}
