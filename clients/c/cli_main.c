/* cli_main.c - the sluice command: finds the command and runs it. */
#include "clients/c/cli.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* What decides on bytes, and what else decides on the video. */
#define SHAPE                                                                                      \
    "width height resolution frames steps sampler sigma-max shift guidance guidance-low boundary " \
    "attention topk precision vae-precision dialect layer-norm streaming"
#define VIDEO SHAPE " image sizing negative seed format"

static const cli_command commands[] = {
    { .name = "generate",
      .args = "\"PROMPT\"",
      .summary = "Makes a video from a prompt and leaves it in a file.",
      .options = "model output " VIDEO " preview priority deadline request-id detach",
      .min_args = 1,
      .max_args = 1,
      .run = cli_generate,
      .more = "On a terminal one line shows phase, step and time.  Ctrl-C cancels the job; Ctrl-C\n"
              "again leaves it to the daemon.  The file appears only when it is complete." },
    { .name = "decode",
      .args = "JOB",
      .summary = "Makes the video of a job that was asked for --format latent.",
      .options = "output format vae-precision priority deadline request-id detach",
      .min_args = 1,
      .max_args = 1,
      .run = cli_decode },
    { .name = "watch",
      .args = "JOB",
      .summary = "Follows a job until it ends.",
      .options = "preview",
      .min_args = 1,
      .max_args = 1,
      .run = cli_watch,
      .more = "Only a job that was asked for with --preview has one." },
    { .name = "jobs",
      .args = "",
      .summary = "Lists jobs, newest first.",
      .options = "active limit",
      .run = cli_jobs },
    { .name = "job",
      .args = "JOB",
      .summary = "Shows one job and its plan.",
      .options = "",
      .min_args = 1,
      .max_args = 1,
      .run = cli_job },
    { .name = "cancel",
      .args = "JOB",
      .summary = "Cancels a job.",
      .options = "",
      .min_args = 1,
      .max_args = 1,
      .run = cli_cancel },
    { .name = "fetch",
      .args = "JOB",
      .summary = "Fetches the video of a job that is done.",
      .options = "output",
      .min_args = 1,
      .max_args = 1,
      .run = cli_fetch,
      .more = "Writes FILE.part and renames it when size and SHA-256 are right; an existing\n"
              "FILE.part is continued." },
    { .name = "load",
      .args = "MODEL",
      .summary = "Loads a model, or components of it, and keeps it.",
      .options = "component precision residency no-pin",
      .min_args = 1,
      .max_args = 1,
      .run = cli_load },
    { .name = "unload",
      .args = "[MODEL]",
      .summary = "Gives back a model's memory; without MODEL, every model's.",
      .options = "component soft full hard now",
      .max_args = 1,
      .run = cli_unload },
    { .name = "switch",
      .args = "MODEL",
      .summary = "Gives back every other model and loads this one; shows each step.",
      .options = "soft full hard now precision",
      .min_args = 1,
      .max_args = 1,
      .run = cli_switch },
    { .name = "models",
      .args = "",
      .summary = "Lists the daemon's models.",
      .options = "",
      .run = cli_models },
    { .name = "stats",
      .args = "",
      .summary = "Shows who holds the device's memory, to the byte.",
      .options = "",
      .run = cli_stats },
    { .name = "top",
      .args = "",
      .summary = "Live view of memory, components and jobs.",
      .options = "once",
      .run = cli_top,
      .more = "q or Ctrl-C ends it.  --json writes one frame's messages." },
    { .name = "trim",
      .args = "",
      .summary = "Gives cached memory back to the driver; jobs go on.",
      .options = "",
      .run = cli_trim },
    { .name = "reset",
      .args = "",
      .summary = "Ends the worker and starts a fresh one; its jobs are queued again.",
      .options = "hard",
      .run = cli_reset,
      .more = "The safe form of killing processes to free a device: the daemon's own worker only,\n"
              "and no job is lost." },
    { .name = "drain",
      .args = "",
      .summary = "Stops admitting jobs; what runs goes on.",
      .options = "off",
      .run = cli_drain },
    { .name = "reload",
      .args = "",
      .summary = "Makes the daemon read its configuration and budget table again.",
      .options = "",
      .run = cli_reload },
    { .name = "clean",
      .args = "",
      .summary = "Removes the outputs of jobs that ended long ago.",
      .options = "older-than dry-run",
      .run = cli_clean_outputs },
    { .name = "doctor",
      .args = "",
      .summary = "Checks a daemon: each line is OK or says what to do.",
      .options = "",
      .run = cli_doctor,
      .more = "Exit code: 0 all is well, 1 something is not." },
    { .name = "explain",
      .args = "JOB",
      .summary = "Tells a job's story: its log lines with bytes before, after and peak.",
      .options = "",
      .min_args = 1,
      .max_args = 1,
      .run = cli_explain },
    { .name = "events",
      .args = "",
      .summary = "Shows what happened in the daemon.",
      .options = "follow",
      .run = cli_events },
    { .name = "plan",
      .args = "[PROMPT]",
      .summary = "Asks the daemon whether a job would fit, without running it.",
      .options = "model " VIDEO,
      .max_args = 1,
      .run = cli_plan,
      .more = "Exit code: 0 fits now, 2 fits after something ends, 3 never fits." },
    { .name = "budget",
      .args = "",
      .summary = "Works out what a job needs, without a daemon, GPU or files.",
      .options = "model " SHAPE " device threads host-memory table",
      .local = true,
      .run = cli_budget,
      .more = "MODEL is a name from the model table or a model's directory.\n"
              "Exit code: 0 fits, 2 fits after something ends, 3 never fits." },
    { .name = "certs",
      .args = "init|issue|revoke|list [NAME]",
      .summary = "A CA of your own: certificates for the server and for clients.",
      .options = "dir role host expires",
      .min_args = 1,
      .max_args = 2,
      .local = true,
      .run = cli_certs,
      .more = "issue NAME --host gpu1.lan,10.0.0.5 makes a server's, issue NAME --role user a\n"
              "client's certificate.  revoke puts it on the list that the daemon reads." },
    { .name = "token",
      .args = "new|revoke|list [NAME]",
      .summary = "Tokens for clients without a certificate.",
      .options = "file role expires",
      .min_args = 1,
      .max_args = 2,
      .local = true,
      .run = cli_token,
      .more = "new prints the token, this once; the file has only its hash." },
    { .name = "health",
      .args = "",
      .summary = "Says whether the daemon is ready.",
      .options = "",
      .run = cli_health },
    { .name = "info",
      .args = "",
      .summary = "Says what the daemon is: versions, methods, features, device, your role.",
      .options = "",
      .run = cli_info },
    { .name = "inspect",
      .args = "PATH",
      .summary = "Checks a model's files, or one of them, against the model tables.",
      .options = "",
      .min_args = 1,
      .max_args = 1,
      .local = true,
      .run = cli_inspect },
    { .name = "convert",
      .args = "SRC DST",
      .summary = "Writes a model, or one checkpoint, as .safetensors or with int8 linears.",
      .options = "to",
      .min_args = 2,
      .max_args = 2,
      .local = true,
      .run = cli_convert,
      .more = "SRC is a model's directory or a checkpoint; DST becomes the same and must not be\n"
              "there, or be an empty directory.  What was written is read back and compared." },
    { .name = "synth-model",
      .args = "DIR",
      .summary = "Writes a model with made-up weights in the real format.",
      .options = "arch seed layout shared one-expert",
      .min_args = 1,
      .max_args = 1,
      .local = true,
      .run = cli_synth_model,
      .more = "The weights are deterministic noise, and so is every video made with them.",
      .print_more = cli_print_archs },
};

static void print_commands(FILE *f)
{
    fputs("usage: sluice COMMAND [options]\n\n", f);
    for (size_t i = 0; i < SL_COUNT(commands); i++)
        fprintf(f, "  %-12s %s\n", commands[i].name, commands[i].summary);
    fputs("\n`sluice help COMMAND` tells more.  Exit codes: docs/CLI.md.\n", f);
}

static const cli_command *find_command(const char *name)
{
    for (size_t i = 0; i < SL_COUNT(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static int help(int argc, char **argv)
{
    const cli_command *command = argc > 0 ? find_command(argv[0]) : NULL;

    if (argc > 0 && !command) {
        fprintf(stderr, "sluice: no command \"%s\"\n", argv[0]);
        return CLI_USAGE;
    }
    if (command)
        cli_print_help(command, stdout);
    else
        print_commands(stdout);
    return CLI_OK;
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli c = { .command = command };
    int code = CLI_OK;
    sl_status status = cli_parse(command, argc, argv, &c.opt, &c.err);

    if (status != SL_OK) {
        for (int i = 0; i < argc; i++) /* it may stand behind what was wrong */
            if (strcmp(argv[i], "--json") == 0 || strcmp(argv[i], "-j") == 0)
                c.opt.json = true;
        code = cli_fail(&c, status);
        if (command->run == cli_plan || command->run == cli_budget)
            code = CLI_ERROR; /* 2 is an answer of theirs */
        if (!c.opt.json)
            fprintf(stderr, "`sluice help %s` tells more\n", command->name);
        return code;
    }
    if (c.opt.help) {
        cli_print_help(command, stdout);
        return CLI_OK;
    }
    c.progress = !c.opt.json && isatty(STDERR_FILENO);
    if (!command->local)
        status = cli_open_client(&c);
    code = status == SL_OK ? command->run(&c) : cli_fail(&c, status);
    sl_call_details_fini(&c.details);
    sl_client_destroy(c.client);
    /* A full disk or a closed pipe under stdout is not a success. */
    if (fflush(stdout) != 0 && code == CLI_OK)
        code = CLI_ERROR;
    return code;
}

int main(int argc, char **argv)
{
    const cli_command *command = NULL;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a write past the limit is an error like a full disk */
    if (argc < 2) {
        print_commands(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 ||
        strcmp(argv[1], "-h") == 0)
        return help(argc - 2, argv + 2);
    if (strcmp(argv[1], "version") == 0 || strcmp(argv[1], "--version") == 0) {
        puts("sluice " SL_VERSION);
        return CLI_OK;
    }
    command = find_command(argv[1]);
    if (!command) {
        fprintf(stderr, "sluice: no command \"%s\"; `sluice help` lists them\n", argv[1]);
        return CLI_USAGE;
    }
    return run(command, argc - 2, argv + 2);
}
