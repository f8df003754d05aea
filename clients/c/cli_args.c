#include "clients/c/cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef enum {
    OPT_FLAG,
    OPT_TEXT,
    OPT_COUNT, /* int64_t, above 0 */
    OPT_U64,
    OPT_DOUBLE, /* above 0 */
    OPT_LIST,   /* components */
    OPT_DURATION,
} opt_kind;

typedef struct {
    const char *name;
    char letter; /* 0: none */
    opt_kind kind;
    size_t offset;
    const char *value; /* in help */
    const char *help;
} opt_spec;

#define AT(field) offsetof(cli_options, field)

static const opt_spec specs[] = {
    { "model", 'm', OPT_TEXT, AT(model), "MODEL",
      "the model; a daemon that has only one needs no name" },
    { "component", 'c', OPT_LIST, 0, "C",
      "text_encoder, dit, dit_high, dit_low or vae; may be repeated" },
    { "precision", 'p', OPT_TEXT, AT(precision), "P", "bf16 (default), f32, int8 or fp8" },
    { "output", 'o', OPT_TEXT, AT(output), "FILE",
      "where the video goes (default <job>.<format>)" },
    { "width", 0, OPT_COUNT, AT(width), "N", "pixels, a multiple of 16" },
    { "height", 0, OPT_COUNT, AT(height), "N", "pixels, a multiple of 16" },
    { "resolution", 'r', OPT_TEXT, AT(resolution), "R", "480p, 720p or WIDTHxHEIGHT" },
    { "frames", 'f', OPT_COUNT, AT(frames), "N", "4m + 1" },
    { "steps", 'n', OPT_COUNT, AT(steps), "N",
      "1 to 4 (default 4); unipc: 1 to 200 (default 50, of two experts 40)" },
    { "sampler", 0, OPT_TEXT, AT(sampler), "S",
      "sde, ode or unipc (default: sde, unipc where a model was not distilled)" },
    { "sigma-max", 0, OPT_DOUBLE, AT(sigma_max), "X",
      "sde, ode: first noise level (default: the model's)" },
    { "shift", 0, OPT_DOUBLE, AT(shift), "X", "unipc: of the noise levels (default 5)" },
    { "guidance", 0, OPT_DOUBLE, AT(guidance), "X",
      "unipc: away from the negative prompt; 1 is none (default 5, of two experts 3.5)" },
    { "guidance-low", 0, OPT_DOUBLE, AT(guidance_low), "X",
      "of the low-noise expert (default: as --guidance)" },
    { "negative", 0, OPT_TEXT, AT(negative), "TEXT", "unipc: what not to show (default: Wan's)" },
    { "boundary", 0, OPT_DOUBLE, AT(boundary), "X",
      "two experts: where the second takes over (default 0.9)" },
    { "image", 'i', OPT_TEXT, AT(image), "FILE",
      "the first frame, PNG, JPEG or WebP; for models that take one" },
    { "preview", 0, OPT_TEXT, AT(preview), "FILE",
      "a small PNG in false colours, replaced with each step" },
    { "sizing", 0, OPT_TEXT, AT(sizing), "S",
      "fixed (default where a size is given) or adaptive: the image's shape, that area" },
    { "seed", 's', OPT_U64, AT(seed), "N", "of the noise (default 0)" },
    { "format", 0, OPT_TEXT, AT(format), "F",
      "mp4, y4m, png or latent (default: by FILE's name, else mp4)" },
    { "request-id", 0, OPT_TEXT, AT(request_id), "ID",
      "1 to 64 of [A-Za-z0-9._-]: the same id again is the same job" },
    { "detach", 'd', OPT_FLAG, AT(detach), NULL, "submit, print the job's id and leave" },
    { "active", 'a', OPT_FLAG, AT(active), NULL, "only jobs that have not ended" },
    { "limit", 'l', OPT_COUNT, AT(limit), "N", "at most so many (default 100)" },
    { "attention", 0, OPT_TEXT, AT(attention), "A",
      "dense, sla or sagesla (default: sla where a model was tuned for it)" },
    { "topk", 0, OPT_DOUBLE, AT(topk), "X", "sla, sagesla: of the blocks (default 0.1)" },
    { "vae-precision", 0, OPT_TEXT, AT(vae_precision), "P",
      "f32 or bf16; default: bf16 on a GPU, f32 on cpu" },
    { "dialect", 0, OPT_TEXT, AT(dialect), "D", "turbo or official (default: the model's)" },
    { "layer-norm", 0, OPT_TEXT, AT(layer_norm), "N", "exact (default) or turbo-compat" },
    { "streaming", 0, OPT_TEXT, AT(streaming), "S",
      "auto (default: when nothing else can fit), off or on" },
    { "priority", 0, OPT_COUNT, AT(priority), "N", "1 (last) to 9 (first), default 5" },
    { "deadline", 0, OPT_DURATION, AT(deadline_ns), "T",
      "refuse what cannot be done within T: 90s, 15m, 2h" },
    { "residency", 0, OPT_TEXT, AT(residency), "R",
      "device (default), or host: into the host tier only" },
    { "no-pin", 0, OPT_FLAG, AT(no_pin), NULL, "may be evicted again" },
    { "soft", 0, OPT_FLAG, AT(soft), NULL, "off the device, kept in the host tier (default)" },
    { "full", 0, OPT_FLAG, AT(full), NULL, "out of the host tier too" },
    { "hard", 0, OPT_FLAG, AT(hard), NULL, "and a fresh worker process" },
    { "now", 0, OPT_FLAG, AT(now), NULL,
      "stop a job in the way at its next step; it is queued again" },
    { "off", 0, OPT_FLAG, AT(off), NULL, "admit jobs again" },
    { "older-than", 0, OPT_DURATION, AT(older_than_ns), "T", "of jobs that ended so long ago: 7d" },
    { "dry-run", 0, OPT_FLAG, AT(dry_run), NULL, "only say what would be done" },
    { "follow", 0, OPT_FLAG, AT(follow), NULL, "go on until Ctrl-C" },
    { "once", 0, OPT_FLAG, AT(once), NULL, "one frame, without colours, and leave" },
    { "table", 0, OPT_FLAG, AT(table), NULL,
      "models x resolutions x precisions x card sizes; options narrow it down" },
    { "device", 0, OPT_TEXT, AT(device), "D",
      "24GiB or cuda:24GiB (a GPU's memory), cpu or cpu:8GiB (default cpu)" },
    { "threads", 0, OPT_COUNT, AT(threads), "N",
      "of the cpu device, for its workspace (default: this machine's)" },
    { "host-memory", 0, OPT_TEXT, AT(host_memory), "SIZE",
      "for networks that are streamed: 64GiB (default: as much as they need)" },
    { "to", 0, OPT_TEXT, AT(to), "T", "safetensors, or quant: int8 linears in a transformer" },
    { "arch", 0, OPT_TEXT, AT(arch), "A", "the kind of model; see below" },
    { "layout", 0, OPT_TEXT, AT(layout), "L",
      "of the transformers: official (default), turbo (bf16) or turbo-quant (int8 linears)" },
    { "shared", 0, OPT_TEXT, AT(shared), "DIR",
      "link text encoder and VAE of a model made before, with the same seed" },
    { "one-expert", 0, OPT_FLAG, AT(one_expert), NULL,
      "of two experts, link the second to the first: half the disk" },
    { "timeout", 't', OPT_COUNT, AT(timeout_s), "S", "seconds to wait for each answer" },
    { "dir", 0, OPT_TEXT, AT(dir), "DIR", "of the certificates (default certs)" },
    { "role", 0, OPT_TEXT, AT(role), "R", "viewer, user or admin" },
    { "host", 0, OPT_TEXT, AT(host), "H,H",
      "names and addresses by which clients reach the server" },
    { "expires", 0, OPT_DURATION, AT(expires_ns), "T",
      "from now: 30d (default: a certificate 365d, a token 90d)" },
    { "file", 0, OPT_TEXT, AT(file), "FILE", "of the tokens (default tokens)" },
    { "socket", 0, OPT_TEXT, AT(socket), "PATH", "the daemon's socket (default below)" },
    { "address", 0, OPT_TEXT, AT(address), "A", "of a daemon elsewhere: tls+tcp://HOST:PORT" },
    { "ca", 0, OPT_TEXT, AT(ca), "FILE", "CA certificate that the daemon's is checked against" },
    { "cert", 0, OPT_TEXT, AT(cert), "FILE", "certificate of yours" },
    { "key", 0, OPT_TEXT, AT(key), "FILE", "its key" },
    { "server-name", 0, OPT_TEXT, AT(server_name), "NAME",
      "in the daemon's certificate (default: HOST)" },
    { "token", 0, OPT_TEXT, AT(token), "TOKEN", "of yours; others see it in the list of processes" },
    { "profile", 0, OPT_TEXT, AT(profile), "NAME", "of your configuration's profiles" },
    { "json", 'j', OPT_FLAG, AT(json), NULL, "machine-readable output" },
    { "help", 'h', OPT_FLAG, AT(help), NULL, "this text" },
};

static bool takes(const cli_command *command, const char *name)
{
    static const char *const remote[] = { "timeout", "socket",      "address", "ca",     "cert",
                                          "key",     "server-name", "token",   "profile" };
    const size_t length = strlen(name);

    if (strcmp(name, "json") == 0 || strcmp(name, "help") == 0)
        return true;
    for (size_t i = 0; !command->local && i < SL_COUNT(remote); i++)
        if (strcmp(name, remote[i]) == 0)
            return true;
    for (const char *at = command->options; (at = strstr(at, name)); at += length)
        if ((at == command->options || at[-1] == ' ') && (at[length] == 0 || at[length] == ' '))
            return true;
    return false;
}

static const opt_spec *find_spec(const cli_command *command, const char *name, size_t length,
                                 char letter)
{
    for (size_t i = 0; i < SL_COUNT(specs); i++) {
        const bool same =
            name ? strlen(specs[i].name) == length && strncmp(specs[i].name, name, length) == 0
                 : specs[i].letter == letter;
        if (same)
            return takes(command, specs[i].name) ? &specs[i] : NULL;
    }
    return NULL;
}

static bool parse_u64(const char *text, uint64_t *out)
{
    char *end = NULL;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    const unsigned long long v = strtoull(text, &end, 10);
    if (errno || *end)
        return false;
    *out = v;
    return true;
}

static sl_status set_count(int64_t *out, const opt_spec *spec, const char *text, sl_error *err)
{
    uint64_t v = 0;

    /* The wire has int32; what is valid is for the server to say. */
    if (!parse_u64(text, &v) || v == 0 || v > INT32_MAX)
        return sl_fail(err, SL_ERR_INVALID, "--%s takes a number from 1 to %d, not \"%s\"",
                       spec->name, INT32_MAX, text);
    *out = (int64_t)v;
    return SL_OK;
}

static sl_status set_duration(int64_t *out, const opt_spec *spec, const char *text, sl_error *err)
{
    if (!cli_parse_duration(text, out))
        return sl_fail(err, SL_ERR_INVALID, "--%s takes a time like 90s, 15m, 2h or 7d, not \"%s\"",
                       spec->name, text);
    return SL_OK;
}

static sl_status set_double(double *out, const opt_spec *spec, const char *text, sl_error *err)
{
    char *end = NULL;
    const double v = strtod(text, &end);

    if (end == text || *end || !isfinite(v) || !(v > 0))
        return sl_fail(err, SL_ERR_INVALID, "--%s takes a number above 0, not \"%s\"", spec->name,
                       text);
    *out = v;
    return SL_OK;
}

static sl_status set_option(cli_options *out, const opt_spec *spec, const char *value,
                            sl_error *err)
{
    void *field = (char *)out + spec->offset;

    switch (spec->kind) {
    case OPT_FLAG:
        *(bool *)field = true;
        return SL_OK;
    case OPT_TEXT:
        *(const char **)field = value;
        return SL_OK;
    case OPT_COUNT:
        return set_count(field, spec, value, err);
    case OPT_DURATION:
        return set_duration(field, spec, value, err);
    case OPT_DOUBLE:
        return set_double(field, spec, value, err);
    case OPT_U64:
        if (!parse_u64(value, field))
            return sl_fail(err, SL_ERR_INVALID,
                           "--%s takes a number from 0 to 2^64 - 1, not \"%s\"", spec->name, value);
        return SL_OK;
    case OPT_LIST:
        if (out->component_count == CLI_MAX_COMPONENTS)
            return sl_fail(err, SL_ERR_INVALID, "--%s was given more than %d times", spec->name,
                           CLI_MAX_COMPONENTS);
        out->components[out->component_count++] = value;
        return SL_OK;
    }
    return SL_OK;
}

/* --name, --name=value, --name value, -x, -x value, -xvalue. */
static sl_status parse_one(const cli_command *command, int argc, char **argv, int *i,
                           cli_options *out, sl_error *err)
{
    const char *arg = argv[*i];
    const bool is_long = arg[1] == '-';
    const char *name = is_long ? arg + 2 : NULL;
    const char *equals = is_long ? strchr(arg, '=') : NULL;
    const size_t length = !is_long ? 0 : equals ? (size_t)(equals - name) : strlen(name);
    const char *value = is_long ? (equals ? equals + 1 : NULL) : (arg[2] ? arg + 2 : NULL);
    const opt_spec *spec = find_spec(command, name, length, arg[1]);

    if (!spec)
        return sl_fail(err, SL_ERR_INVALID, "`sluice %s` has no option \"%.*s\"", command->name,
                       is_long ? (int)length + 2 : 2, arg);
    if (spec->kind == OPT_FLAG && value)
        return sl_fail(err, SL_ERR_INVALID, "--%s takes no value", spec->name);
    if (spec->kind != OPT_FLAG && !value) {
        if (*i + 1 >= argc)
            return sl_fail(err, SL_ERR_INVALID, "--%s needs a value: %s", spec->name, spec->value);
        value = argv[++*i];
    }
    return set_option(out, spec, value, err);
}

sl_status cli_parse(const cli_command *command, int argc, char **argv, cli_options *out,
                    sl_error *err)
{
    bool only_args = false;

    *out = (cli_options){ 0 };
    for (int i = 0; i < argc; i++) {
        sl_status status = SL_OK;

        if (!only_args && strcmp(argv[i], "--") == 0)
            only_args = true;
        else if (!only_args && argv[i][0] == '-' && argv[i][1])
            status = parse_one(command, argc, argv, &i, out, err);
        else if (out->arg_count == command->max_args)
            status = sl_fail(err, SL_ERR_INVALID, "`sluice %s` has no place for \"%s\"",
                             command->name, argv[i]);
        else
            out->args[out->arg_count++] = argv[i];
        if (status != SL_OK)
            return status;
    }
    if (!out->help && out->arg_count < command->min_args)
        return sl_fail(err, SL_ERR_INVALID, "`sluice %s` needs %s", command->name, command->args);
    return SL_OK;
}

void cli_print_help(const cli_command *command, FILE *f)
{
    char path[4096];

    fprintf(f, "usage: sluice %s%s%s [options]\n\n%s\n\noptions:\n", command->name,
            command->args[0] ? " " : "", command->args, command->summary);
    for (size_t i = 0; i < SL_COUNT(specs); i++) {
        const opt_spec *spec = &specs[i];
        char left[64], letter[8] = "    ";

        if (!takes(command, spec->name))
            continue;
        if (spec->letter)
            snprintf(letter, sizeof letter, "-%c, ", spec->letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, spec->name, spec->value ? " " : "",
                 spec->value ? spec->value : "");
        fprintf(f, "  %-24s %s\n", left, spec->help);
    }
    if (command->more)
        fprintf(f, "\n%s\n", command->more);
    if (command->print_more)
        command->print_more(f);
    if (!command->local)
        fprintf(f,
                "\nThe daemon is asked at %s unless --socket, --address or your configuration\n"
                "(~/.config/sluice/config.yaml) says otherwise.\n",
                sl_client_default_socket(path, sizeof path));
}

sl_status cli_fill_shape(const cli_options *o, Sluice__V1__GenerateRequest *request, sl_error *err)
{
    const struct {
        const char *what, *text;
        const ProtobufCEnumDescriptor *type;
        void *out;
    } words[] = {
        { "precision", o->precision, &sluice__v1__precision__descriptor, &request->precision },
        { "VAE precision", o->vae_precision, &sluice__v1__precision__descriptor,
          &request->vae_precision },
        { "sampler", o->sampler, &sluice__v1__sampler__descriptor, &request->sampler },
        { "attention", o->attention, &sluice__v1__attention__descriptor, &request->attention },
        { "dialect", o->dialect, &sluice__v1__dialect__descriptor, &request->dialect },
        { "layer norm", o->layer_norm, &sluice__v1__layer_norm__descriptor, &request->layer_norm },
        { "streaming", o->streaming, &sluice__v1__streaming__descriptor, &request->streaming },
    };
    int64_t width = o->width, height = o->height;

    if (o->resolution && !cli_parse_resolution(o->resolution, &width, &height))
        return sl_fail(err, SL_ERR_INVALID, "unknown resolution \"%s\": 480p, 720p or WIDTHxHEIGHT",
                       o->resolution);
    for (size_t i = 0; i < SL_COUNT(words); i++) {
        const sl_status status =
            cli_enum_of(words[i].what, words[i].text, words[i].type, words[i].out, err);
        if (status != SL_OK)
            return status;
    }
    request->width = (int32_t)width;
    request->height = (int32_t)height;
    request->frames = (int32_t)o->frames;
    request->steps = (int32_t)o->steps;
    request->sigma_max = o->sigma_max;
    request->shift = o->shift;
    request->guidance = o->guidance;
    request->guidance_low = o->guidance_low;
    request->boundary = o->boundary;
    request->topk = o->topk;
    return SL_OK;
}

bool cli_parse_resolution(const char *text, int64_t *width, int64_t *height)
{
    char *end = NULL;

    if (strcmp(text, "480p") == 0) {
        *width = 832;
        *height = 480;
        return true;
    }
    if (strcmp(text, "720p") == 0) {
        *width = 1280;
        *height = 720;
        return true;
    }
    if (!isdigit((unsigned char)text[0]))
        return false;
    const long w = strtol(text, &end, 10);
    if (*end != 'x' || !isdigit((unsigned char)end[1]))
        return false;
    const long h = strtol(end + 1, &end, 10);
    if (*end || w < 1 || h < 1 || w > INT32_MAX || h > INT32_MAX)
        return false;
    *width = w;
    *height = h;
    return true;
}

bool cli_parse_duration(const char *text, int64_t *ns)
{
    static const struct {
        const char *suffix;
        int64_t seconds;
    } units[] = { { "", 1 }, { "s", 1 }, { "m", 60 }, { "h", 3600 }, { "d", 86400 } };
    char *end = NULL;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (errno || value == 0)
        return false;
    for (size_t i = 0; i < SL_COUNT(units); i++)
        if (strcmp(end, units[i].suffix) == 0) {
            if (value > INT64_MAX / SL_NS_PER_S / units[i].seconds)
                return false;
            *ns = value * units[i].seconds * SL_NS_PER_S;
            return true;
        }
    return false;
}
