/* cli.h - the parts of the sluice command: options, exit codes, rendering.
 *
 * One process runs one command: main fills a `cli`, the command's function does
 * the work and returns the exit code.  Results go to stdout, what went wrong and
 * progress to stderr; with --json stdout carries JSON only.  docs/CLI.md is the
 * contract with scripts.
 *
 * Threads: one.
 */
#ifndef SL_CLIENTS_C_CLI_H
#define SL_CLIENTS_C_CLI_H

#include "base/status.h"
#include "clients/c/sluice.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* docs/CLI.md.  budget and plan use FITS_AFTER in the place of USAGE, which
 * they report as ERROR. */
enum {
    CLI_OK = 0,
    CLI_ERROR = 1,
    CLI_USAGE = 2, /* also: the server calls the request invalid */
    CLI_FITS_AFTER = 2,
    CLI_NEVER_FITS = 3,
    CLI_UNREACHABLE = 4,
    CLI_JOB_FAILED = 5,
    CLI_JOB_CANCELLED = 6,
    CLI_FITS_LATER = 7, /* does not fit now */
    CLI_INTERRUPTED = 130,
};

enum { CLI_MAX_ARGS = 4, CLI_MAX_COMPONENTS = 8 };

typedef struct {
    bool json, help, detach, active;
    const char *socket, *address, *ca, *cert, *key, *server_name, *token, *profile;
    const char *dir, *role, *host, *file;
    int64_t timeout_s; /* 0: by the command */
    const char *components[CLI_MAX_COMPONENTS];
    int component_count;
    const char *model, *precision, *sampler, *format, *output, *request_id;
    const char *resolution, *device, *arch, *attention, *streaming, *residency, *to, *host_memory;
    const char *layout, *shared;
    bool one_expert;
    bool soft, full, hard, now, off, once, follow, dry_run, no_pin, table;
    int64_t width, height, frames, steps, limit, threads, priority; /* 0: not given */
    int64_t deadline_ns, older_than_ns, expires_ns;                             /* 0: not given */
    const char *preview, *image, *sizing, *negative, *vae_precision, *dialect, *layer_norm;
    double sigma_max, shift, guidance, guidance_low, boundary, topk; /* 0: not given */
    uint64_t seed;
    const char *args[CLI_MAX_ARGS];
    int arg_count;
} cli_options;

typedef struct cli cli;

typedef struct {
    const char *name;
    const char *args;    /* "MODEL", "[DIR]" for the usage line */
    const char *summary; /* one line */
    const char *options; /* names of those it takes, separated by blanks */
    int min_args, max_args;
    bool local; /* needs no daemon */
    int (*run)(cli *c);
    const char *more;            /* paragraphs of its help; may be NULL, and so may */
    void (*print_more)(FILE *f); /* what is known at run time only */
} cli_command;

struct cli {
    cli_options opt;
    const cli_command *command;
    sl_client *client; /* NULL for a local command */
    bool progress;     /* stderr is a terminal and --json is off */
    sl_error err;      /* of the last step, and what the server added: */
    sl_call_details details;
};

/* ---- cli_args.c ---- */

/* argv after the command's name.  Strings are borrowed from argv. */
sl_status cli_parse(const cli_command *command, int argc, char **argv, cli_options *out,
                    sl_error *err) SL_MUST_CHECK;
void cli_print_help(const cli_command *command, FILE *f);
/* What of a request decides on bytes, as the command line says it. */
sl_status cli_fill_shape(const cli_options *options, Sluice__V1__GenerateRequest *request,
                         sl_error *err) SL_MUST_CHECK;
/* "480p", "720p" or "832x480"; false for anything else. */
bool cli_parse_resolution(const char *text, int64_t *width, int64_t *height);
/* "90", "90s", "15m", "2h", "7d"; false for anything else, 0 and overflow. */
bool cli_parse_duration(const char *text, int64_t *ns);

/* ---- cli_call.c ---- */

/* Makes text harmless on a terminal, in place: control characters, 8-bit ones
 * too, and what is not UTF-8 become '?', line ends and tabs blanks. */
void cli_clean(char *text);
/* The same for every string of a message of this library. */
void cli_clean_message(void *message);

/* sl_client_call with what every command does: c->details are those of this
 * call, and without --json the strings of the reply are clean. */
sl_status cli_call(cli *c, const char *method, const ProtobufCMessage *request,
                   const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ns,
                   ProtobufCMessage **out) SL_MUST_CHECK;

/* cli_call_health(c, &request, timeout_ns, &reply) and so on. */
#define SL_X(Name, name)                                                                           \
    SL_MUST_CHECK static inline sl_status cli_call_##name(                                         \
        cli *c, const Sluice__V1__##Name##Request *request, int64_t timeout_ns,                    \
        Sluice__V1__##Name##Reply **out)                                                           \
    {                                                                                              \
        ProtobufCMessage *reply = NULL;                                                            \
        const sl_status status =                                                                   \
            cli_call(c, "sluice.v1.Inference/" #Name, &request->base,                              \
                     &sluice__v1__##name##_reply__descriptor, timeout_ns, &reply);                 \
        if (status == SL_OK)                                                                       \
            *out = (Sluice__V1__##Name##Reply *)(void *)reply;                                     \
        return status;                                                                             \
    }
SL_METHODS(SL_X)
#undef SL_X

/* From now on Ctrl-C and SIGTERM end a call that waits (SL_ERR_CANCELLED)
 * instead of the process. */
sl_status cli_catch_interrupts(cli *c) SL_MUST_CHECK;
void cli_forget_interrupts(void);
int cli_interrupt_fd(void); /* readable after one; -1 before cli_catch_interrupts */

/* ---- cli_json.c ---- */

/* The message as an object, every field under its proto name: enums in lower
 * case, 64-bit numbers exact, an absent message as null, bytes left out. */
cJSON *cli_json_message(const void *message);
void cli_json_u64(cJSON *object, const char *name, uint64_t value);
/* One line on stdout; frees it; NULL: out of memory.  Control characters are
 * escaped, 8-bit ones too. */
void cli_json_print(cJSON *object);

/* ---- cli_text.c ---- */

enum { CLI_BYTES_TEXT = 64 };

char *cli_bytes(uint64_t size_bytes, char *buf);                 /* "12,582,912" */
char *cli_bytes_human(uint64_t size_bytes, char *buf);           /* "12.00 MiB" */
char *cli_duration(int64_t ns, char *buf);                       /* "12.3 s" */
const char *cli_component_text(Sluice__V1__Component component); /* "dit" */
const char *cli_precision_text(Sluice__V1__Precision precision);
const char *cli_state_text(Sluice__V1__JobState state);
const char *cli_format_text(Sluice__V1__OutputFormat format);
bool cli_component_of(const char *text, Sluice__V1__Component *out);
bool cli_precision_of(const char *text, Sluice__V1__Precision *out);
/* "turbo-compat" for TURBO_COMPAT; *out stays where text is NULL.  what: for the message. */
sl_status cli_enum_of(const char *what, const char *text, const ProtobufCEnumDescriptor *type,
                      int *out, sl_error *err) SL_MUST_CHECK;
bool cli_format_of(const char *text, Sluice__V1__OutputFormat *out);
bool cli_streaming_of(const char *text, Sluice__V1__Streaming *out);
char *cli_time(int64_t wall_ns, char *buf); /* "2026-01-31 12:00:00", local */

/* One line that is rewritten; at_end ends it. */
void cli_draw_progress(Sluice__V1__JobState state, int step, int step_count, int position,
                       int64_t elapsed_ns);
void cli_end_progress(void);

/* Says what c->err and c->details hold, as text or as JSON, and returns the
 * exit code that goes with it. */
int cli_fail(cli *c, sl_status status);
/* A wrong command line. */
int cli_usage(cli *c, const char *fmt, ...) SL_PRINTF(2, 3);
int64_t cli_timeout_ns(const cli *c, int64_t usual_ns);

/* ---- cli_print.c ---- */

void cli_print_plan(FILE *f, const Sluice__V1__Plan *plan);
void cli_print_refusal(FILE *f, const Sluice__V1__Refusal *refusal);
void cli_print_receipt(FILE *f, const Sluice__V1__Receipt *receipt);
void cli_print_job(FILE *f, const Sluice__V1__Job *job);
void cli_print_switch(FILE *f, const Sluice__V1__SwitchModelReply *reply);
/* The ledger as lines that sum to total, and the host tier's to its limit; false
 * when they do not. */
bool cli_print_memory(FILE *f, const Sluice__V1__DeviceMemory *memory);

/* ---- commands ---- */

int cli_load(cli *c);
int cli_unload(cli *c);
int cli_models(cli *c);
int cli_health(cli *c);
int cli_info(cli *c);
int cli_stats(cli *c);
int cli_switch(cli *c);
int cli_trim(cli *c);
int cli_reset(cli *c);
int cli_drain(cli *c);
int cli_reload(cli *c);
int cli_clean_outputs(cli *c);

int cli_doctor(cli *c);
int cli_explain(cli *c);
int cli_events(cli *c);
int cli_top(cli *c);

int cli_generate(cli *c);
int cli_decode(cli *c);
int cli_watch(cli *c);
int cli_jobs(cli *c);
int cli_job(cli *c);
int cli_cancel(cli *c);
int cli_fetch(cli *c);
int cli_plan(cli *c);

/* ---- cli_profile.c ---- */

/* c->client, by the options and the user's configuration. */
sl_status cli_open_client(cli *c) SL_MUST_CHECK;

int cli_certs(cli *c);
int cli_token(cli *c);
int cli_budget(cli *c);
int cli_inspect(cli *c);
int cli_synth_model(cli *c);
int cli_convert(cli *c);
void cli_print_archs(FILE *f);

#endif
