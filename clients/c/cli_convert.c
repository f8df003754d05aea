/* cli_convert.c - convert: a model's files into another layout, no daemon. */
#include "clients/c/cli.h"

#include "engine/model/convert_model.h"

static void draw_convert(void *arg, size_t done_bytes, size_t total_bytes)
{
    int *shown = arg;
    const int percent = total_bytes ? (int)(100.0 * (double)done_bytes / (double)total_bytes) : 100;
    char total[CLI_BYTES_TEXT];

    if (percent == *shown)
        return;
    *shown = percent;
    fprintf(stderr, "\rwriting and reading back, %s: %3d %%\x1b[K",
            cli_bytes_human(total_bytes, total), percent);
    fflush(stderr);
}

static void print_result(const cli *c, sl_convert_target to, const sl_convert_result *result)
{
    char size[CLI_BYTES_TEXT];

    if (c->opt.json) {
        cJSON *object = cJSON_CreateObject();

        cJSON_AddStringToObject(object, "path", c->opt.args[1]);
        cJSON_AddStringToObject(object, "to", sl_convert_name(to));
        cli_json_u64(object, "files", (uint64_t)result->file_count);
        cli_json_u64(object, "tensors", (uint64_t)result->tensor_count);
        cli_json_u64(object, "data_bytes", result->data_bytes);
        cli_json_u64(object, "left_out", (uint64_t)result->left_out);
        cli_json_print(object);
        return;
    }
    printf("wrote %s: %lld files, %lld tensors, %s; read back and compared\n", c->opt.args[1],
           (long long)result->file_count, (long long)result->tensor_count,
           cli_bytes_human(result->data_bytes, size));
    if (result->left_out > 0)
        printf("%lld tensors that no network names were left out\n", (long long)result->left_out);
}

int cli_convert(cli *c)
{
    sl_convert_target to = SL_CONVERT_COUNT;
    sl_convert_result result;
    int shown = -1;

    if (!c->opt.to || !sl_convert_parse(c->opt.to, &to))
        return cli_usage(c, "`sluice convert` needs --to safetensors or --to quant");
    const sl_status status =
        sl_convert_model(c->opt.args[0], c->opt.args[1], to, c->progress ? draw_convert : NULL,
                         &shown, &result, &c->err);
    if (c->progress)
        cli_end_progress();
    if (status != SL_OK)
        return cli_fail(c, status);
    print_result(c, to, &result);
    return CLI_OK;
}
