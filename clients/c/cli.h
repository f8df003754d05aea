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
    const char *socket;
    int64_t timeout_s; /* 0: by the command */
    const char *components[CLI_MAX_COMPONENTS];
    int component_count;
    const char *model, *precision, *sampler, *format, *output, *request_id;
    const char *resolution, *device, *arch;
    int64_t width, height, frames, steps, limit, threads; /* 0: not given */
    double sigma_max;
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
/* "480p", "720p" or "832x480"; false for anything else. */
bool cli_parse_resolution(const char *text, int64_t *width, int64_t *height);

/* ---- cli_json.c ---- */

/* The message as an object, every field under its proto name: enums in lower
 * case, 64-bit numbers exact, an absent message as null, bytes left out. */
cJSON *cli_json_message(const void *message);
void cli_json_u64(cJSON *object, const char *name, uint64_t value);
void cli_json_print(cJSON *object); /* one line on stdout; frees it; NULL: out of memory */

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
bool cli_sampler_of(const char *text, Sluice__V1__Sampler *out);
bool cli_format_of(const char *text, Sluice__V1__OutputFormat *out);

void cli_print_plan(FILE *f, const Sluice__V1__Plan *plan);
void cli_print_refusal(FILE *f, const Sluice__V1__Refusal *refusal);
void cli_print_receipt(FILE *f, const Sluice__V1__Receipt *receipt);
void cli_print_job(FILE *f, const Sluice__V1__Job *job);
/* The ledger as lines that sum to total; false when they do not. */
bool cli_print_memory(FILE *f, const Sluice__V1__DeviceMemory *memory);

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

/* ---- commands ---- */

int cli_load(cli *c);
int cli_unload(cli *c);
int cli_models(cli *c);
int cli_health(cli *c);
int cli_stats(cli *c);

int cli_generate(cli *c);
int cli_watch(cli *c);
int cli_jobs(cli *c);
int cli_job(cli *c);
int cli_cancel(cli *c);
int cli_fetch(cli *c);
int cli_plan(cli *c);

int cli_budget(cli *c);
int cli_inspect(cli *c);
int cli_synth_model(cli *c);
void cli_print_archs(FILE *f);

#endif
