/* cli_local.c - inspect and synth-model: files, no daemon. */
#include "clients/c/cli.h"

#include "engine/model/config.h"
#include "engine/model/inspect.h"
#include "engine/model/model_dir.h"
#include "engine/model/synth.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- inspect ---- */

typedef struct {
    cJSON *problems; /* NULL: text */
} inspection;

static void print_clean(const char *line)
{
    char text[SL_ERROR_MESSAGE_BYTES];

    snprintf(text, sizeof text, "%s", line);
    cli_clean(text);
    printf("  %s\n", text);
}

static void take_problem(void *arg, const char *line)
{
    inspection *i = arg;

    if (i->problems)
        cJSON_AddItemToArray(i->problems, cJSON_CreateString(line));
    else
        print_clean(line); /* names of tensors come from the file */
}

/* "BF16 700 (2.6 GiB), F32 180 (1.0 MiB)" */
static void print_dtypes(const sl_ckpt_summary *s)
{
    const char *comma = "";
    char size[CLI_BYTES_TEXT];

    for (int d = 0; d < SL_DTYPE_COUNT; d++) {
        if (s->by_dtype[d].tensor_count == 0)
            continue;
        printf("%s%s %lld (%s)", comma, sl_dtype_name((sl_dtype)d),
               (long long)s->by_dtype[d].tensor_count,
               cli_bytes_human(s->by_dtype[d].data_bytes, size));
        comma = ", ";
    }
    putchar('\n');
}

static void print_config(const sl_component_spec *spec)
{
    const sl_dit_config *d = &spec->config.dit;
    const sl_t5_config *t = &spec->config.t5;
    const sl_vae_config *v = &spec->config.vae;

    if (spec->kind == SL_COMPONENT_TEXT_ENCODER)
        printf("width %lld, layers %lld, heads %lld, vocabulary %lld\n", (long long)t->dim,
               (long long)t->num_layers, (long long)t->num_heads, (long long)t->vocab);
    else if (spec->kind == SL_COMPONENT_VAE)
        printf("width %lld, latent channels %lld\n", (long long)v->dim, (long long)v->z_dim);
    else
        printf("width %lld, layers %lld, heads %lld, channels %lld to %lld\n", (long long)d->dim,
               (long long)d->num_layers, (long long)d->num_heads, (long long)d->in_dim,
               (long long)d->out_dim);
}

static void print_file(const char *name, const char *path, const sl_ckpt_summary *s)
{
    char text[SL_ERROR_MESSAGE_BYTES];

    snprintf(text, sizeof text, "%s", path);
    cli_clean(text);
    printf("  %-14s %s\n", name, text);
    printf("  %-14s names %s, layout %s; ", "", s->naming, sl_layout_name(s->layout));
    print_config(&s->spec);
    printf("  %-14s ", "");
    print_dtypes(s);
}

static cJSON *file_json(const char *path, const sl_ckpt_summary *s)
{
    cJSON *object = cJSON_CreateObject(), *dtypes = NULL;

    cJSON_AddStringToObject(object, "path", path);
    cJSON_AddStringToObject(object, "kind", sl_component_name(s->spec.kind));
    cJSON_AddStringToObject(object, "naming", s->naming);
    cJSON_AddStringToObject(object, "layout", sl_layout_name(s->layout));
    cli_json_u64(object, "tensors", (uint64_t)s->tensor_count);
    cli_json_u64(object, "data_bytes", s->data_bytes);
    dtypes = cJSON_AddObjectToObject(object, "dtypes");
    for (int d = 0; d < SL_DTYPE_COUNT; d++) {
        if (s->by_dtype[d].tensor_count == 0)
            continue;
        cJSON *row = cJSON_AddObjectToObject(dtypes, sl_dtype_name((sl_dtype)d));
        cli_json_u64(row, "tensors", (uint64_t)s->by_dtype[d].tensor_count);
        cli_json_u64(row, "data_bytes", s->by_dtype[d].data_bytes);
    }
    return object;
}

/* The components of a model: as text, or into object's "files" and "components". */
static sl_status show_components(cli *c, const sl_model_info *info, cJSON *object)
{
    cJSON *files = object ? cJSON_AddObjectToObject(object, "files") : NULL;
    cJSON *components = object ? cJSON_AddObjectToObject(object, "components") : NULL;

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        const char *path = info->files[kind], *name = sl_component_name((sl_component_kind)kind);
        sl_ckpt_summary s;

        if (!path)
            continue;
        const sl_component_spec spec =
            sl_component_spec_of(info->arch, (sl_component_kind)kind, SL_PRECISION_F32);
        const sl_status status = sl_ckpt_summarise(&s, path, &spec, &c->err);
        if (status != SL_OK)
            return status;
        if (!object) {
            print_file(name, path, &s);
            continue;
        }
        cJSON_AddStringToObject(files, name, path);
        cJSON_AddItemToObject(components, name, file_json(path, &s));
    }
    return SL_OK;
}

static sl_status show_model(cli *c, const sl_model_info *info, cJSON *object)
{
    const char *task = info->arch->task == SL_TASK_T2V ? "t2v" : "i2v";
    char size[CLI_BYTES_TEXT];
    sl_status status;

    if (!object) {
        printf("model %s: %s, %s, files %s\n", info->name, info->arch->name, task,
               cli_bytes_human(info->file_bytes, size));
        status = show_components(c, info, NULL);
        printf("  %-14s %s\n", "tokenizer", info->tokenizer ? info->tokenizer : "absent");
        return status;
    }
    cJSON_AddStringToObject(object, "name", info->name);
    cJSON_AddStringToObject(object, "arch", info->arch->name);
    cJSON_AddStringToObject(object, "task", task);
    cJSON_AddStringToObject(object, "layout", sl_layout_name(info->layout));
    cli_json_u64(object, "file_bytes", info->file_bytes);
    status = show_components(c, info, object);
    if (info->tokenizer)
        cJSON_AddStringToObject(object, "tokenizer", info->tokenizer);
    else
        cJSON_AddNullToObject(object, "tokenizer");
    return status;
}

static sl_status inspect_model(cli *c, cJSON *object, inspection *seen, int *count)
{
    sl_model_dir *dir = NULL;
    sl_status status = sl_model_dir_open(&dir, c->opt.args[0], &c->err);

    if (status != SL_OK)
        return status;
    status = show_model(c, sl_model_dir_info(dir), object);
    if (status == SL_OK)
        status = sl_model_dir_inspect(dir, take_problem, seen, count, &c->err);
    sl_model_dir_close(dir);
    return status;
}

static sl_status inspect_file(cli *c, cJSON *object, inspection *seen, int *count)
{
    const char *path = c->opt.args[0];
    sl_ckpt_summary s;
    const sl_status status = sl_ckpt_summarise(&s, path, NULL, &c->err);

    if (status != SL_OK)
        return status;
    if (object)
        cJSON_AddItemToObject(object, "file", file_json(path, &s));
    else
        print_file(sl_component_name(s.spec.kind), path, &s);
    return sl_ckpt_inspect(path, take_problem, seen, count, &c->err);
}

int cli_inspect(cli *c)
{
    inspection seen = { .problems = NULL };
    cJSON *object = NULL;
    struct stat st;
    int count = 0;
    sl_status status;

    if (c->opt.json) {
        object = cJSON_CreateObject();
        seen.problems = cJSON_CreateArray();
    }
    if (stat(c->opt.args[0], &st) == 0 && S_ISREG(st.st_mode))
        status = inspect_file(c, object, &seen, &count);
    else
        status = inspect_model(c, object, &seen, &count);
    if (c->opt.json)
        cJSON_AddItemToObject(object, "problems", seen.problems);
    if (status != SL_OK) {
        cJSON_Delete(object);
        return cli_fail(c, status);
    }
    if (c->opt.json)
        cli_json_print(object);
    else if (count == 0)
        puts("every tensor is as the model tables say");
    else
        printf("%d problems\n", count);
    return count == 0 ? CLI_OK : CLI_ERROR;
}

/* ---- synth-model ---- */

void cli_print_archs(FILE *f)
{
    fputs("\nkinds of model (--arch):\n", f);
    for (int i = 0; i < sl_arch_count(); i++) {
        const sl_arch *arch = sl_arch_get(i);

        fprintf(f, "  %-20s width %lld, %lld layers\n", arch->name, (long long)arch->dit.dim,
                (long long)arch->dit.num_layers);
    }
}

static void draw_synth(void *arg, size_t done_bytes, size_t total_bytes)
{
    int *shown = arg;
    const int percent = total_bytes ? (int)(100.0 * (double)done_bytes / (double)total_bytes) : 100;
    char total[CLI_BYTES_TEXT];

    if (percent == *shown)
        return;
    *shown = percent;
    fprintf(stderr, "\rwriting %s: %3d %%\x1b[K", cli_bytes_human(total_bytes, total), percent);
    fflush(stderr);
}

static bool parse_layout(const char *text, sl_layout *out)
{
    static const sl_layout layouts[] = { SL_LAYOUT_OFFICIAL, SL_LAYOUT_TURBO,
                                         SL_LAYOUT_TURBO_QUANT };

    for (size_t i = 0; i < SL_COUNT(layouts); i++) {
        if (strcmp(text, sl_layout_name(layouts[i])) == 0) {
            *out = layouts[i];
            return true;
        }
    }
    return false;
}

static void print_synth(const cli *c, const sl_arch *arch, sl_layout layout)
{
    if (!c->opt.json) {
        printf("wrote %s (%s, %s, seed %llu): made-up weights, its videos are noise\n",
               c->opt.args[0], arch->name, sl_layout_name(layout), (unsigned long long)c->opt.seed);
        return;
    }
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "path", c->opt.args[0]);
    cJSON_AddStringToObject(object, "arch", arch->name);
    cJSON_AddStringToObject(object, "layout", sl_layout_name(layout));
    cli_json_u64(object, "seed", c->opt.seed);
    cli_json_print(object);
}

int cli_synth_model(cli *c)
{
    const sl_arch *arch = c->opt.arch ? sl_arch_find(c->opt.arch) : NULL;
    int shown = -1;
    sl_synth_options options = {
        .seed = c->opt.seed,
        .layout = SL_LAYOUT_OFFICIAL,
        .shared = c->opt.shared,
        .one_expert = c->opt.one_expert,
        .progress = c->progress ? draw_synth : NULL,
        .arg = &shown,
    };

    if (!c->opt.arch)
        return cli_usage(c,
                         "`sluice synth-model` needs --arch; `sluice help synth-model` lists them");
    if (!arch)
        return cli_usage(c, "unknown --arch \"%s\"; `sluice help synth-model` lists them",
                         c->opt.arch);
    if (c->opt.layout && !parse_layout(c->opt.layout, &options.layout))
        return cli_usage(c, "--layout is official, turbo or turbo-quant, not \"%s\"",
                         c->opt.layout);
    const sl_status status = sl_synth_model_as(c->opt.args[0], arch, &options, &c->err);
    if (c->progress)
        cli_end_progress();
    if (status != SL_OK)
        return cli_fail(c, status);
    print_synth(c, arch, options.layout);
    return CLI_OK;
}
