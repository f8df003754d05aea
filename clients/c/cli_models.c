/* cli_models.c - load, unload, models, health, info, stats. */
#include "clients/c/cli.h"

#include <inttypes.h>
#include <string.h>

/* Reading a 14B checkpoint from a slow disk. */
#define LOAD_NS (1800 * SL_NS_PER_S)

static sl_status parse_components(cli *c, Sluice__V1__Component *out)
{
    for (int i = 0; i < c->opt.component_count; i++)
        if (!cli_component_of(c->opt.components[i], &out[i]))
            return sl_fail(&c->err, SL_ERR_INVALID,
                           "unknown component \"%s\": text_encoder, dit, dit_high, dit_low or vae",
                           c->opt.components[i]);
    return SL_OK;
}

/* A residue is an error: bytes that are there and should not be, or the reverse. */
static int receipt_code(const Sluice__V1__Receipt *receipt)
{
    return receipt && receipt->residue_bytes != 0 ? CLI_ERROR : CLI_OK;
}

static int show_receipt(cli *c, const char *verb, const char *model, const ProtobufCMessage *reply,
                        const Sluice__V1__Receipt *receipt)
{
    if (c->opt.json) {
        cli_json_print(cli_json_message(reply));
    } else if (!receipt || (receipt->n_components == 0 &&
                            receipt->device_before_bytes == receipt->device_after_bytes)) {
        printf("%s: there was nothing to do\n", model);
    } else {
        printf("%s %s\n", verb, model);
        cli_print_receipt(stdout, receipt);
    }
    return receipt_code(receipt);
}

/* --soft, --full or --hard, at most one of them. */
static sl_status parse_release(cli *c, Sluice__V1__Release *out)
{
    const cli_options *o = &c->opt;

    if (o->soft + o->full + o->hard > 1)
        return sl_fail(&c->err, SL_ERR_INVALID,
                       "only one of --soft, --full and --hard can be meant");
    *out = o->hard   ? SLUICE__V1__RELEASE__HARD
           : o->full ? SLUICE__V1__RELEASE__FULL
           : o->soft ? SLUICE__V1__RELEASE__SOFT
                     : SLUICE__V1__RELEASE__RELEASE_DEFAULT;
    return SL_OK;
}

static sl_status parse_precision(cli *c, Sluice__V1__Precision *out)
{
    if (c->opt.precision && !cli_precision_of(c->opt.precision, out))
        return sl_fail(&c->err, SL_ERR_INVALID, "unknown precision \"%s\": bf16, int8, fp8 or f32",
                       c->opt.precision);
    return SL_OK;
}

static sl_status parse_residency(cli *c, Sluice__V1__Residency *out)
{
    if (!c->opt.residency)
        return SL_OK;
    if (strcmp(c->opt.residency, "device") == 0)
        *out = SLUICE__V1__RESIDENCY__DEVICE;
    else if (strcmp(c->opt.residency, "host") == 0)
        *out = SLUICE__V1__RESIDENCY__HOST;
    else
        return sl_fail(&c->err, SL_ERR_INVALID, "unknown residency \"%s\": device or host",
                       c->opt.residency);
    return SL_OK;
}

int cli_load(cli *c)
{
    Sluice__V1__LoadModelRequest request = SLUICE__V1__LOAD_MODEL_REQUEST__INIT;
    Sluice__V1__LoadModelReply *reply = NULL;
    Sluice__V1__Component components[CLI_MAX_COMPONENTS];
    sl_status status = parse_components(c, components);

    if (status == SL_OK)
        status = parse_precision(c, &request.precision);
    if (status == SL_OK)
        status = parse_residency(c, &request.residency);
    if (status != SL_OK)
        return cli_fail(c, status);
    request.model = (char *)c->opt.args[0];
    request.n_components = (size_t)c->opt.component_count;
    request.components = components;
    request.no_pin = c->opt.no_pin;
    status = cli_call_load_model(c, &request, cli_timeout_ns(c, LOAD_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    const int code = show_receipt(c, "loaded", request.model, &reply->base, reply->receipt);
    sl_message_free(reply);
    return code;
}

int cli_unload(cli *c)
{
    Sluice__V1__UnloadModelRequest request = SLUICE__V1__UNLOAD_MODEL_REQUEST__INIT;
    Sluice__V1__UnloadModelReply *reply = NULL;
    Sluice__V1__Component components[CLI_MAX_COMPONENTS];
    sl_status status = parse_components(c, components);

    if (status == SL_OK)
        status = parse_release(c, &request.release);
    if (status != SL_OK)
        return cli_fail(c, status);
    request.now = c->opt.now;
    if (c->opt.arg_count > 0)
        request.model = (char *)c->opt.args[0];
    request.n_components = (size_t)c->opt.component_count;
    request.components = components;
    status = cli_call_unload_model(c, &request, cli_timeout_ns(c, LOAD_NS), &reply);
    if (status != SL_OK)
        return cli_fail(c, status);
    const int code = show_receipt(c, "unloaded", c->opt.arg_count ? request.model : "all models",
                                  &reply->base, reply->receipt);
    sl_message_free(reply);
    return code;
}

int cli_switch(cli *c)
{
    Sluice__V1__SwitchModelRequest request = SLUICE__V1__SWITCH_MODEL_REQUEST__INIT;
    Sluice__V1__SwitchModelReply *reply = NULL;
    int code = CLI_OK;
    sl_status status = parse_release(c, &request.release);

    if (status == SL_OK)
        status = parse_precision(c, &request.precision);
    if (status == SL_OK) {
        request.model = (char *)c->opt.args[0];
        request.now = c->opt.now;
        status = cli_call_switch_model(c, &request, cli_timeout_ns(c, LOAD_NS), &reply);
    }
    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else
        cli_print_switch(stdout, reply);
    for (size_t i = 0; i < reply->n_steps; i++)
        if (receipt_code(reply->steps[i]->receipt) != CLI_OK)
            code = CLI_ERROR;
    sl_message_free(reply);
    return code;
}

int cli_trim(cli *c)
{
    const Sluice__V1__TrimMemoryRequest request = SLUICE__V1__TRIM_MEMORY_REQUEST__INIT;
    Sluice__V1__TrimMemoryReply *reply = NULL;
    const sl_status status =
        cli_call_trim_memory(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);

    if (status != SL_OK)
        return cli_fail(c, status);
    const int code = show_receipt(c, "trimmed", "the device", &reply->base, reply->receipt);
    sl_message_free(reply);
    return code;
}

/* "text_encoder,dit,vae" of what is on the device; buf 128 bytes. */
static const char *resident_text(const Sluice__V1__ModelInfo *model, char *buf, size_t buf_bytes)
{
    size_t used = 0;

    buf[0] = 0;
    for (size_t i = 0; i < model->n_resident && used < buf_bytes; i++)
        used += (size_t)snprintf(buf + used, buf_bytes - used, "%s%s", i ? "," : "",
                                 cli_component_text(model->resident[i]->component));
    return buf[0] ? buf : "-";
}

int cli_models(cli *c)
{
    const Sluice__V1__ListModelsRequest request = SLUICE__V1__LIST_MODELS_REQUEST__INIT;
    Sluice__V1__ListModelsReply *reply = NULL;
    const sl_status status =
        cli_call_list_models(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);

    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json) {
        cli_json_print(cli_json_message(reply));
        goto done;
    }
    if (reply->n_models == 0)
        puts("no models");
    else
        printf("%-24s %-18s %-4s %11s  %-18s %s\n", "MODEL", "KIND", "TASK", "FILES", "DEFAULT",
               "ON DEVICE");
    for (size_t i = 0; i < reply->n_models; i++) {
        const Sluice__V1__ModelInfo *m = reply->models[i];
        char size[CLI_BYTES_TEXT], shape[48], resident[128];

        snprintf(shape, sizeof shape, "%dx%d, %d f", m->default_width, m->default_height,
                 m->default_frames);
        printf("%-24s %-18s %-4s %11s  %-18s %s\n", m->name, m->arch, m->task,
               cli_bytes_human(m->file_bytes, size), shape,
               resident_text(m, resident, sizeof resident));
        if (m->problem[0])
            printf("  cannot be used: %s\n", m->problem);
    }
done:
    sl_message_free(reply);
    return CLI_OK;
}

int cli_health(cli *c)
{
    const Sluice__V1__HealthRequest request = SLUICE__V1__HEALTH_REQUEST__INIT;
    Sluice__V1__HealthReply *reply = NULL;
    char uptime[CLI_BYTES_TEXT];
    const sl_status status =
        cli_call_health(c, &request, cli_timeout_ns(c, 10 * SL_NS_PER_S), &reply);

    if (status != SL_OK)
        return cli_fail(c, status);
    const int code = reply->ready ? CLI_OK : CLI_ERROR;
    if (c->opt.json) {
        cli_json_print(cli_json_message(reply));
        goto done;
    }
    printf("%s: %s\nsluiced %s, up %s\n%u running, %u queued\n",
           reply->ready ? "ready" : "not ready", reply->status, reply->version,
           cli_duration(reply->uptime_ns, uptime), reply->running_jobs, reply->queued_jobs);
    for (size_t i = 0; i < reply->n_devices; i++) {
        const Sluice__V1__DeviceHealth *d = reply->devices[i];

        printf("device %s: worker %s, restarts %u, unexplained %" PRId64 " bytes\n", d->device,
               d->worker_up ? "up" : "down", d->worker_restarts, d->unexplained_bytes);
    }
done:
    sl_message_free(reply);
    return code;
}

static void print_words(const char *what, char *const *words, size_t count)
{
    printf("%s:", what);
    for (size_t i = 0; i < count; i++)
        printf(" %s", words[i]);
    printf("\n");
}

int cli_info(cli *c)
{
    const Sluice__V1__GetServerInfoRequest request = SLUICE__V1__GET_SERVER_INFO_REQUEST__INIT;
    Sluice__V1__GetServerInfoReply *reply = NULL;
    char bytes[CLI_BYTES_TEXT];
    const sl_status status =
        cli_call_get_server_info(c, &request, cli_timeout_ns(c, 10 * SL_NS_PER_S), &reply);

    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json) {
        cli_json_print(cli_json_message(reply));
        goto done;
    }
    printf("sluiced %s, API %u to %u\nyou are %s, %s\n", reply->version,
           reply->api_version_least, reply->api_version, reply->identity, reply->role);
    for (size_t i = 0; i < reply->n_devices; i++) {
        const Sluice__V1__ServerDevice *d = reply->devices[i];

        printf("device %s: %s for weights and activations, %u jobs side by side%s%s\n", d->device,
               cli_bytes_human(d->limit_bytes, bytes), d->lanes, d->table_row[0] ? ", budget row " : "",
               d->table_row);
    }
    print_words("features", reply->features, reply->n_features);
    print_words("methods", reply->methods, reply->n_methods);
done:
    sl_message_free(reply);
    return CLI_OK;
}

int cli_stats(cli *c)
{
    const Sluice__V1__GetMemoryStatsRequest request = SLUICE__V1__GET_MEMORY_STATS_REQUEST__INIT;
    Sluice__V1__GetMemoryStatsReply *reply = NULL;
    int code = CLI_OK;
    const sl_status status =
        cli_call_get_memory_stats(c, &request, cli_timeout_ns(c, SL_CLIENT_DEFAULT_NS), &reply);

    if (status != SL_OK)
        return cli_fail(c, status);
    if (c->opt.json)
        cli_json_print(cli_json_message(reply));
    else
        for (size_t i = 0; i < reply->n_devices; i++)
            if (!cli_print_memory(stdout, reply->devices[i]))
                code = CLI_ERROR;
    sl_message_free(reply);
    return code;
}
