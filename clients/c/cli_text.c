#include "clients/c/cli.h"

#include "base/size.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
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
    case SLUICE__V1__PRECISION__INT8:
        return "int8";
    case SLUICE__V1__PRECISION__FP8:
        return "fp8";
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
    else if (strcmp(text, "int8") == 0)
        *out = SLUICE__V1__PRECISION__INT8;
    else if (strcmp(text, "fp8") == 0)
        *out = SLUICE__V1__PRECISION__FP8;
    else
        return false;
    return true;
}

/* The enum's own name for "turbo-compat". */
static bool same_word(const char *text, const char *name)
{
    for (; *text && *name; text++, name++)
        if (*name != (*text == '-' ? '_' : toupper((unsigned char)*text)))
            return false;
    return *text == *name;
}

sl_status cli_enum_of(const char *what, const char *text, const ProtobufCEnumDescriptor *type,
                      int *out, sl_error *err)
{
    char known[128] = "";

    if (!text)
        return SL_OK;
    for (unsigned i = 1; i < type->n_values; i++) { /* the first is the default */
        const size_t used = strlen(known);
        if (same_word(text, type->values[i].name)) {
            *out = type->values[i].value;
            return SL_OK;
        }
        snprintf(known + used, sizeof known - used, "%s%s",
                 i == 1                    ? ""
                 : i + 1 == type->n_values ? " or "
                                           : ", ",
                 type->values[i].name);
    }
    for (char *p = known; *p; p++)
        *p = *p == '_' ? '-' : (char)tolower((unsigned char)*p);
    return sl_fail(err, SL_ERR_INVALID, "unknown %s \"%s\": %s", what, text, known);
}

const char *cli_format_text(Sluice__V1__OutputFormat format)
{
    switch (format) {
    case SLUICE__V1__OUTPUT_FORMAT__Y4M:
        return "y4m";
    case SLUICE__V1__OUTPUT_FORMAT__PNG:
        return "png";
    case SLUICE__V1__OUTPUT_FORMAT__LATENT:
        return "latent";
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
    else if (strcmp(text, "latent") == 0 || strcmp(text, "safetensors") == 0)
        *out = SLUICE__V1__OUTPUT_FORMAT__LATENT;
    else
        return false;
    return true;
}

bool cli_streaming_of(const char *text, Sluice__V1__Streaming *out)
{
    if (strcmp(text, "auto") == 0)
        *out = SLUICE__V1__STREAMING__AUTO;
    else if (strcmp(text, "off") == 0)
        *out = SLUICE__V1__STREAMING__OFF;
    else if (strcmp(text, "on") == 0)
        *out = SLUICE__V1__STREAMING__ON;
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

char *cli_time(int64_t wall_ns, char *buf)
{
    const time_t seconds = (time_t)(wall_ns / SL_NS_PER_S);
    struct tm tm;

    buf[0] = 0;
    if (localtime_r(&seconds, &tm))
        strftime(buf, CLI_BYTES_TEXT, "%Y-%m-%d %H:%M:%S", &tm);
    return buf;
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
    case SL_ERR_TIMEOUT:
        if (c->details.answered && c->details.reply && c->details.reply->refusal)
            return CLI_FITS_LATER; /* not before the deadline */
        return c->details.answered ? CLI_ERROR : CLI_UNREACHABLE;
    case SL_ERR_UNAVAILABLE:
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
    Sluice__V1__Reply *reply = c->details.reply;

    if (c->opt.json) {
        print_failure_json(c, status, code);
        return code;
    }
    cli_clean(c->err.message); /* much of it may be the daemon's words */
    if (reply)
        cli_clean_message(reply);
    if (status == SL_ERR_UNIMPLEMENTED && c->details.answered)
        fprintf(stderr, "sluice: this daemon cannot do `%s`: %s\n", c->command->name,
                c->err.message);
    else
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
