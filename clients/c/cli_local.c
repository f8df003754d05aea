/* cli_local.c - inspect and synth-model: files, no daemon. */
#include "clients/c/cli.h"

#include "engine/model/config.h"
#include "engine/model/model_dir.h"
#include "engine/model/synth.h"

#include <string.h>
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

static void print_info(const sl_model_info *info)
{
    char size[CLI_BYTES_TEXT];

    printf("model %s: %s, %s, files %s\n", info->name, info->arch->name,
           info->arch->task == SL_TASK_T2V ? "t2v" : "i2v",
           cli_bytes_human(info->file_bytes, size));
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (info->files[kind])
            printf("  %-14s %s\n", sl_component_name((sl_component_kind)kind), info->files[kind]);
    printf("  %-14s %s\n", "tokenizer", info->tokenizer ? info->tokenizer : "absent");
    printf("  dit: width %lld, layers %lld, heads %lld\n", (long long)info->arch->dit.dim,
           (long long)info->arch->dit.num_layers, (long long)info->arch->dit.num_heads);
}

static cJSON *info_json(const sl_model_info *info)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *files = NULL;

    cJSON_AddStringToObject(object, "name", info->name);
    cJSON_AddStringToObject(object, "arch", info->arch->name);
    cJSON_AddStringToObject(object, "task", info->arch->task == SL_TASK_T2V ? "t2v" : "i2v");
    cli_json_u64(object, "file_bytes", info->file_bytes);
    files = cJSON_AddObjectToObject(object, "files");
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (info->files[kind])
            cJSON_AddStringToObject(files, sl_component_name((sl_component_kind)kind),
                                    info->files[kind]);
    if (info->tokenizer)
        cJSON_AddStringToObject(object, "tokenizer", info->tokenizer);
    else
        cJSON_AddNullToObject(object, "tokenizer");
    return object;
}

int cli_inspect(cli *c)
{
    sl_model_dir *dir = NULL;
    inspection seen = { .problems = NULL };
    cJSON *object = NULL;
    int count = 0;
    sl_status status = sl_model_dir_open(&dir, c->opt.args[0], &c->err);

    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json) {
        object = info_json(sl_model_dir_info(dir));
        seen.problems = cJSON_AddArrayToObject(object, "problems");
    } else {
        print_info(sl_model_dir_info(dir));
    }
    status = sl_model_dir_inspect(dir, take_problem, &seen, &count, &c->err);
    sl_model_dir_close(dir);
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

int cli_synth_model(cli *c)
{
    const sl_arch *arch = c->opt.arch ? sl_arch_find(c->opt.arch) : NULL;
    int shown = -1;

    if (!c->opt.arch)
        return cli_usage(c,
                         "`sluice synth-model` needs --arch; `sluice help synth-model` lists them");
    if (!arch)
        return cli_usage(c, "unknown --arch \"%s\"; `sluice help synth-model` lists them",
                         c->opt.arch);
    const sl_status status = sl_synth_model(c->opt.args[0], arch, c->opt.seed,
                                            c->progress ? draw_synth : NULL, &shown, &c->err);
    if (c->progress)
        cli_end_progress();
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json) {
        cJSON *object = cJSON_CreateObject();
        cJSON_AddStringToObject(object, "path", c->opt.args[0]);
        cJSON_AddStringToObject(object, "arch", arch->name);
        cli_json_u64(object, "seed", c->opt.seed);
        cli_json_print(object);
    } else {
        printf("wrote %s (%s, seed %llu): made-up weights, its videos are noise\n", c->opt.args[0],
               arch->name, (unsigned long long)c->opt.seed);
    }
    return CLI_OK;
}
