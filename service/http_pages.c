#include "service/http_pages.h"

#include "base/clock.h"
#include "base/size.h"
#include "service/handlers.h"
#include "service/stats.h"
#include "service/wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_BYTES = 4 << 20 };

/* --- what is shown --- */

/* The answers that clients get, too, and the numbers that only operators see. */
typedef struct {
    sl_arena *arena;
    const Sluice__V1__HealthReply *health;
    const Sluice__V1__DeviceMemory *device;
    sl_stats stats;
} picture;

static void fini_picture(picture *p)
{
    sl_arena_destroy(p->arena);
}

static sl_status init_picture(picture *p, sl_service *service)
{
    const Sluice__V1__HealthRequest health = SLUICE__V1__HEALTH_REQUEST__INIT;
    const Sluice__V1__GetMemoryStatsRequest memory = SLUICE__V1__GET_MEMORY_STATS_REQUEST__INIT;
    sl_rpc_call call = { .peer = { .role = SL_ROLE_VIEWER }, .method = "http", .trace_id = "" };
    sl_error err = { .status = SL_OK };
    sl_status status = sl_arena_create(&p->arena, ARENA_BYTES, &err);

    if (status != SL_OK)
        return status;
    sl_service_get_stats(service, &p->stats);
    call.arena = p->arena;
    call.deadline_ns = sl_clock_deadline_ns(SL_NS_PER_S);
    call.request = &health.base;
    status = sl_handle_health(service, &call, &err);
    if (status == SL_OK) {
        p->health = (const void *)call.reply;
        call.request = &memory.base;
        status = sl_handle_get_memory_stats(service, &call, &err);
    }
    if (status == SL_OK)
        p->device = ((const Sluice__V1__GetMemoryStatsReply *)call.reply)->devices[0];
    return status;
}

typedef void write_fn(FILE *out, const picture *p, const sl_http_config *config);

static char *make_text(const sl_http_config *config, write_fn *write, size_t *size_bytes)
{
    picture *p = calloc(1, sizeof *p);
    char *text = NULL;
    FILE *out = NULL;

    if (!p || init_picture(p, config->service) != SL_OK)
        goto done;
    out = open_memstream(&text, size_bytes);
    if (!out)
        goto done;
    write(out, p, config);
    const bool whole = !ferror(out);
    if (fclose(out) != 0 || !whole) {
        free(text);
        text = NULL;
    }
done:
    if (p)
        fini_picture(p);
    free(p);
    return text;
}

/* --- /metrics --- */

static void family(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP sluice_%s %s\n# TYPE sluice_%s %s\n", name, help, name, type);
}

/* A label's value, as the format has it. */
static void put_label(FILE *out, const char *text)
{
    for (const char *at = text; *at; at++) {
        if (*at == '\n')
            fputs("\\n", out);
        else if (*at == '"' || *at == '\\')
            fprintf(out, "\\%c", *at);
        else
            fputc(*at, out);
    }
}

static void write_service(FILE *out, const picture *p)
{
    family(out, "build_info", "gauge", "Version of the daemon and of its API.");
    fprintf(out, "sluice_build_info{version=\"%s\",api_version=\"%d\"} 1\n", SL_VERSION,
            SL_WIRE_API_VERSION);
    family(out, "uptime_seconds", "gauge", "Since the daemon started.");
    fprintf(out, "sluice_uptime_seconds %.3f\n", (double)p->health->uptime_ns / 1e9);
    family(out, "ready", "gauge", "1: the worker is up and its canary came back right.");
    fprintf(out, "sluice_ready %d\n", p->stats.ready);
}

static const char *const state_names[SL_STATS_STATES] = {
    [1] = "queued",    [2] = "admitted", [3] = "loading", [4] = "encoding",
    [5] = "denoising", [6] = "decoding", [7] = "muxing",
};

static void write_jobs(FILE *out, const sl_stats *stats)
{
    const sl_service_counts *counts = &stats->counts;

    family(out, "queue_length", "gauge", "Jobs that wait.");
    fprintf(out, "sluice_queue_length %u\n", stats->by_state[SLUICE__V1__JOB_STATE__QUEUED]);
    family(out, "jobs", "gauge", "Jobs that have not ended, by phase.");
    for (int i = 0; i < SL_STATS_STATES; i++) {
        if (state_names[i])
            fprintf(out, "sluice_jobs{phase=\"%s\"} %u\n", state_names[i], stats->by_state[i]);
    }
    family(out, "jobs_ended_total", "counter", "Jobs that have ended, by how.");
    fprintf(out, "sluice_jobs_ended_total{state=\"done\"} %" PRIu64 "\n", counts->done);
    fprintf(out, "sluice_jobs_ended_total{state=\"failed\"} %" PRIu64 "\n", counts->failed);
    fprintf(out, "sluice_jobs_ended_total{state=\"cancelled\"} %" PRIu64 "\n", counts->cancelled);
    family(out, "jobs_requeued_total", "counter",
           "Times that a running job was queued again, after a worker's death or a pre-emption.");
    fprintf(out, "sluice_jobs_requeued_total %" PRIu64 "\n", counts->requeued);
}

static void write_commands(FILE *out, const sl_service_counts *counts)
{
    static const char *const names[4] = { "load", "unload", "fill", "drop" };

    family(out, "component_commands_total", "counter",
           "Components loaded to and unloaded from the device, filled into and dropped from the "
           "host tier.");
    for (int i = 0; i < 4; i++) {
        const uint64_t *n = i < 2 ? counts->components[i] : counts->images[i - 2];
        fprintf(out, "sluice_component_commands_total{command=\"%s\",result=\"ok\"} %" PRIu64 "\n",
                names[i], n[0]);
        fprintf(out,
                "sluice_component_commands_total{command=\"%s\",result=\"failed\"} %" PRIu64 "\n",
                names[i], n[1]);
    }
    family(out, "model_switches_total", "counter",
           "Loads of a transformer of another model than the last one's.");
    fprintf(out, "sluice_model_switches_total %" PRIu64 "\n", counts->switches);
}

/* The lines sum to total, unexplained may be below 0. */
typedef struct {
    const char *name;
    int64_t size_bytes;
} memory_line;

enum { MEMORY_LINES = 8 };

static void get_lines(const Sluice__V1__DeviceMemory *d, memory_line out[MEMORY_LINES])
{
    const memory_line lines[MEMORY_LINES] = {
        { "context", (int64_t)d->context_bytes },
        { "weights", (int64_t)d->weights_bytes },
        { "activations", (int64_t)d->activations_bytes },
        { "workspace", (int64_t)d->workspace_bytes },
        { "reserved", (int64_t)d->reserved_bytes },
        { "foreign", (int64_t)d->foreign_bytes },
        { "free", (int64_t)d->free_bytes },
        { "unexplained", d->unexplained_bytes },
    };

    memcpy(out, lines, sizeof lines);
}

static void write_device_value(FILE *out, const picture *p, const char *name, const char *type,
                               const char *help, double value)
{
    family(out, name, type, help);
    fprintf(out, "sluice_%s{device=\"%s\"} %.17g\n", name, p->device->device, value);
}

static void write_weights(FILE *out, const Sluice__V1__DeviceMemory *d)
{
    family(out, "component_bytes", "gauge", "Weights on the device, measured, by component.");
    for (size_t i = 0; i < d->n_components; i++) {
        const Sluice__V1__ComponentBytes *c = d->components[i];
        const ProtobufCEnumValue *component = protobuf_c_enum_descriptor_get_value(
            &sluice__v1__component__descriptor, (int)c->component);
        const ProtobufCEnumValue *precision = protobuf_c_enum_descriptor_get_value(
            &sluice__v1__precision__descriptor, (int)c->precision);
        if (c->measured_bytes == 0)
            continue;
        fprintf(out, "sluice_component_bytes{device=\"%s\",model=\"", d->device);
        put_label(out, c->model);
        fprintf(out, "\",component=\"%s\",precision=\"%s\",streamed=\"%d\"} %" PRIu64 "\n",
                component ? component->name : "", precision ? precision->name : "", c->streamed,
                c->measured_bytes);
    }
}

static void write_memory(FILE *out, const picture *p)
{
    const Sluice__V1__DeviceMemory *d = p->device;
    memory_line lines[MEMORY_LINES];

    get_lines(d, lines);
    family(out, "device_memory_bytes", "gauge",
           "The ledger of a device; its lines sum to device_memory_total_bytes.");
    for (int i = 0; i < MEMORY_LINES; i++)
        fprintf(out, "sluice_device_memory_bytes{device=\"%s\",line=\"%s\"} %" PRId64 "\n",
                d->device, lines[i].name, lines[i].size_bytes);
    write_device_value(out, p, "device_memory_total_bytes", "gauge", "Memory of the device.",
                       (double)d->total_bytes);
    write_device_value(out, p, "device_memory_limit_bytes", "gauge", "Capacity of the arena.",
                       (double)d->limit_bytes);
    write_device_value(out, p, "device_arena_mapped_bytes", "gauge",
                       "Mapped in the arena, measured by the worker.",
                       (double)d->arena_mapped_bytes);
    write_weights(out, d);
    family(out, "host_memory_bytes", "gauge", "The host tier; its lines sum to its limit.");
    fprintf(out, "sluice_host_memory_bytes{line=\"used\"} %" PRIu64 "\n", d->host->used_bytes);
    fprintf(out, "sluice_host_memory_bytes{line=\"free\"} %" PRIu64 "\n", d->host->free_bytes);
    family(out, "host_memory_limit_bytes", "gauge", "Limit of the host tier; 0: there is none.");
    fprintf(out, "sluice_host_memory_limit_bytes %" PRIu64 "\n", d->host->limit_bytes);
    write_device_value(out, p, "worker_up", "gauge", "1: the device's worker is up.", d->worker_up);
    write_device_value(out, p, "worker_restarts_total", "counter", "Workers after the first.",
                       d->worker_restarts);
    write_device_value(out, p, "worker_canary_seconds", "gauge",
                       "How long the canary of the worker that is up took.",
                       (double)p->stats.canary_ns / 1e9);
}

static const char *method_name(const sl_rpc_table *table, int row)
{
    if (row == table->count)
        return "unknown";
    const char *slash = strrchr(table->methods[row].name, '/');
    return slash ? slash + 1 : table->methods[row].name;
}

static void write_calls(FILE *out, const sl_http_config *config)
{
    sl_rpc_row row;

    family(out, "rpc_calls_total", "counter", "Calls answered, by method and gRPC status.");
    for (int i = 0; i <= config->table->count; i++) {
        sl_rpc_stats_get(config->calls, i, &row);
        for (int code = 0; code < SL_RPC_CODES; code++) {
            if (row.codes[code] > 0)
                fprintf(out, "sluice_rpc_calls_total{method=\"%s\",code=\"%s\"} %" PRIu64 "\n",
                        method_name(config->table, i), sl_grpc_code_name(code), row.codes[code]);
        }
    }
    family(out, "rpc_seconds", "histogram",
           "From a request's arrival at its handler to its reply; long polls wait in it.");
    for (int i = 0; i <= config->table->count; i++) {
        const char *name = method_name(config->table, i);
        uint64_t count = 0;
        sl_rpc_stats_get(config->calls, i, &row);
        for (int b = 0; b < SL_RPC_BUCKETS; b++) {
            count += row.buckets[b];
            fprintf(out, "sluice_rpc_seconds_bucket{method=\"%s\",le=\"%g\"} %" PRIu64 "\n", name,
                    (double)sl_rpc_bucket_ns[b] / 1e9, count);
        }
        count += row.buckets[SL_RPC_BUCKETS];
        fprintf(out, "sluice_rpc_seconds_bucket{method=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", name,
                count);
        fprintf(out, "sluice_rpc_seconds_sum{method=\"%s\"} %.9f\n", name,
                (double)row.sum_ns / 1e9);
        fprintf(out, "sluice_rpc_seconds_count{method=\"%s\"} %" PRIu64 "\n", name, count);
    }
    family(out, "refusals_total", "counter", "Calls turned down for want of room, by reason.");
    for (int i = 0; i < SL_RPC_REFUSAL_COUNT; i++)
        fprintf(out, "sluice_refusals_total{reason=\"%s\"} %" PRIu64 "\n",
                sl_rpc_refusal_name((sl_rpc_refusal)i),
                sl_rpc_stats_refusals(config->calls, (sl_rpc_refusal)i));
}

static void write_door(FILE *out, const sl_door *door)
{
    family(out, "connections", "gauge", "Connections of clients, by state.");
    for (int i = 0; i < SL_DOOR_STATE_COUNT; i++)
        fprintf(out, "sluice_connections{state=\"%s\"} %d\n", sl_door_states[i],
                atomic_load(&door->states[i]));
    family(out, "requests_in_flight", "gauge", "Requests that the front has passed on.");
    fprintf(out, "sluice_requests_in_flight %d\n", atomic_load(&door->in_flight));
    for (int f = 0; f < SL_DOOR_FAMILY_COUNT; f++) {
        const sl_door_family_text *text = &sl_door_families[f];
        family(out, text->name, "counter", text->help);
        for (int i = 0; i < SL_DOOR_COUNT; i++) {
            if (sl_door_counts[i].family == (sl_door_family)f)
                fprintf(out, "sluice_%s{%s=\"%s\"} %" PRIu64 "\n", text->name, text->label,
                        sl_door_counts[i].value, sl_door_get(door, (sl_door_count)i));
        }
    }
}

static void write_metrics(FILE *out, const picture *p, const sl_http_config *config)
{
    write_service(out, p);
    write_jobs(out, &p->stats);
    write_commands(out, &p->stats.counts);
    write_memory(out, p);
    write_calls(out, config);
    if (config->door)
        write_door(out, config->door);
}

char *sl_http_metrics(const sl_http_config *config, size_t *size_bytes)
{
    return make_text(config, write_metrics, size_bytes);
}

/* --- / --- */

static void put_html(FILE *out, const char *text)
{
    for (const char *at = text; *at; at++) {
        switch (*at) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*at, out);
        }
    }
}

static void write_job_rows(FILE *out, const sl_stats *stats)
{
    fputs("<h2>Jobs</h2><table><tr><th>job</th><th>model</th><th>state</th><th></th></tr>\n", out);
    for (int i = 0; i < stats->job_count; i++) {
        const sl_stats_job *job = &stats->jobs[i];
        fprintf(out, "<tr><td>%s</td><td>", job->job_id);
        put_html(out, job->model);
        fprintf(out, "</td><td>%s</td><td>", state_names[job->state]);
        if (job->state == SLUICE__V1__JOB_STATE__QUEUED)
            fprintf(out, "number %d", job->position);
        else if (job->step_count > 0)
            fprintf(out, "step %d of %d", job->step, job->step_count);
        fputs("</td></tr>\n", out);
    }
    fputs("</table>\n", out);
    if (stats->unended > (uint32_t)stats->job_count)
        fprintf(out, "<p>and %u more</p>\n", stats->unended - (uint32_t)stats->job_count);
    fprintf(out, "<p>%" PRIu64 " done, %" PRIu64 " failed, %" PRIu64 " cancelled</p>\n",
            stats->counts.done, stats->counts.failed, stats->counts.cancelled);
}

static void write_memory_rows(FILE *out, const Sluice__V1__DeviceMemory *d)
{
    memory_line lines[MEMORY_LINES];

    get_lines(d, lines);
    fprintf(out, "<h2>%s</h2><table>\n", d->device);
    for (int i = 0; i < MEMORY_LINES; i++)
        fprintf(out, "<tr><td>%s</td><td class=n>%.1f MiB</td></tr>\n", lines[i].name,
                (double)lines[i].size_bytes / (double)SL_MIB);
    fprintf(out, "<tr><th>total</th><th class=n>%.1f MiB</th></tr></table>\n",
            (double)d->total_bytes / (double)SL_MIB);
    fprintf(out, "<p>worker %s, %u restarts; host tier %.1f of %.1f MiB</p>\n",
            d->worker_up ? "up" : "down", d->worker_restarts,
            (double)d->host->used_bytes / (double)SL_MIB,
            (double)d->host->limit_bytes / (double)SL_MIB);
}

static void write_page(FILE *out, const picture *p, const sl_http_config *config)
{
    (void)config;
    fputs("<!doctype html><html lang=en><head><meta charset=utf-8>"
          "<meta http-equiv=refresh content=5><title>sluice</title><style>"
          "body{font:14px/1.5 sans-serif;margin:2em auto;max-width:50em;padding:0 1em}"
          "td,th{text-align:left;padding:0 1.5em 0 0}.n{text-align:right;font-family:monospace}"
          "</style></head><body><h1>sluice</h1>\n",
          out);
    fprintf(out, "<p>version %s, up for %" PRId64 " s: <b>", SL_VERSION,
            p->health->uptime_ns / SL_NS_PER_S);
    put_html(out, p->stats.ready ? p->health->status : p->stats.reason);
    fputs("</b></p>\n", out);
    write_memory_rows(out, p->device);
    write_job_rows(out, &p->stats);
    fputs("<p><a href=/metrics>metrics</a> <a href=/readyz>readyz</a></p></body></html>\n", out);
}

char *sl_http_status_page(const sl_http_config *config, size_t *size_bytes)
{
    return make_text(config, write_page, size_bytes);
}

/* --- /readyz --- */

char *sl_http_readiness(const sl_http_config *config, bool *ready, size_t *size_bytes)
{
    sl_stats *stats = malloc(sizeof *stats);
    char *text = NULL;

    if (!stats)
        return NULL;
    sl_service_get_stats(config->service, stats);
    *ready = stats->ready;
    const int length = asprintf(&text, "%s\n", stats->ready ? "ready" : stats->reason);
    free(stats);
    *size_bytes = length < 0 ? 0 : (size_t)length;
    return length < 0 ? NULL : text;
}
