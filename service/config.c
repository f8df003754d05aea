#include "service/config.h"

#include "base/clock.h"
#include "base/config.h"
#include "base/machine.h"
#include "base/size.h"
#include "service/lanes.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- the file --- */

typedef struct {
    uint32_t connections, in_flight, queue, retry_limit, running, bypass, user_running, user_queued;
    uint32_t connections_host, connections_user, rate, burst;
} file_limits;

typedef struct {
    char *message, *write, *idle;
} file_deadlines;

typedef struct {
    char *address, *certificate, *key;
} file_http;

typedef struct {
    char **listen;
    uint32_t listen_count;
    char *certificate, *key, *client_ca, *revoked, *handshake;
    int client_auth;
    bool insecure;
} file_tls;

typedef struct {
    char *device;
    char **models;
    uint32_t models_count;
    char *outputs, *runtime, *socket, *budget, *worker;
    char *outputs_quota, *outputs_retention, *host_memory;
    uint32_t threads;
    file_limits limits;
    file_deadlines deadlines;
    file_http http;
    file_tls tls;
    char *tokens, *audit;
    int local_users;
    int log_level;
} file_values;

static const cyaml_strval_t role_words[] = {
    { "none", SL_ROLE_NONE },
    { "viewer", SL_ROLE_VIEWER },
    { "user", SL_ROLE_USER },
};
static const cyaml_strval_t level_words[] = {
    { "debug", SL_LOG_DEBUG },
    { "info", SL_LOG_INFO },
    { "warn", SL_LOG_WARN },
    { "error", SL_LOG_ERROR },
};
static const cyaml_strval_t client_auth_words[] = {
    { "off", SL_TLS_AUTH_OFF },
    { "optional", SL_TLS_AUTH_OPTIONAL },
    { "required", SL_TLS_AUTH_REQUIRED },
};
static const cyaml_schema_value_t path_value = { CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 1,
                                                                    4095) };
static const cyaml_schema_field_t limit_fields[] = {
    CYAML_FIELD_UINT("connections", CYAML_FLAG_OPTIONAL, file_limits, connections),
    CYAML_FIELD_UINT("in_flight", CYAML_FLAG_OPTIONAL, file_limits, in_flight),
    CYAML_FIELD_UINT("queue", CYAML_FLAG_OPTIONAL, file_limits, queue),
    CYAML_FIELD_UINT("retry_limit", CYAML_FLAG_OPTIONAL, file_limits, retry_limit),
    CYAML_FIELD_UINT("running", CYAML_FLAG_OPTIONAL, file_limits, running),
    CYAML_FIELD_UINT("bypass", CYAML_FLAG_OPTIONAL, file_limits, bypass),
    CYAML_FIELD_UINT("user_running", CYAML_FLAG_OPTIONAL, file_limits, user_running),
    CYAML_FIELD_UINT("user_queued", CYAML_FLAG_OPTIONAL, file_limits, user_queued),
    CYAML_FIELD_UINT("connections_host", CYAML_FLAG_OPTIONAL, file_limits, connections_host),
    CYAML_FIELD_UINT("connections_user", CYAML_FLAG_OPTIONAL, file_limits, connections_user),
    CYAML_FIELD_UINT("rate", CYAML_FLAG_OPTIONAL, file_limits, rate),
    CYAML_FIELD_UINT("burst", CYAML_FLAG_OPTIONAL, file_limits, burst),
    CYAML_FIELD_END,
};

#define DEADLINE_FIELD(key)                                                                        \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_deadlines, key, 1, \
                           32)

static const cyaml_schema_field_t deadline_fields[] = {
    DEADLINE_FIELD(message),
    DEADLINE_FIELD(write),
    DEADLINE_FIELD(idle),
    CYAML_FIELD_END,
};

#define TLS_FIELD(key)                                                                             \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_tls, key, 1, 4095)

static const cyaml_schema_field_t tls_fields[] = {
    CYAML_FIELD_SEQUENCE("listen", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_tls, listen,
                         &path_value, 1, SL_SETTINGS_MAX_LISTEN),
    TLS_FIELD(certificate),
    TLS_FIELD(key),
    TLS_FIELD(client_ca),
    TLS_FIELD(revoked),
    TLS_FIELD(handshake),
    CYAML_FIELD_BOOL("insecure", CYAML_FLAG_OPTIONAL, file_tls, insecure),
    CYAML_FIELD_ENUM("client_auth", CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT, file_tls, client_auth,
                     client_auth_words, SL_COUNT(client_auth_words)),
    CYAML_FIELD_END,
};

#define HTTP_FIELD(key)                                                                            \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_http, key, 1, 4095)

static const cyaml_schema_field_t http_fields[] = {
    HTTP_FIELD(address),
    HTTP_FIELD(certificate),
    HTTP_FIELD(key),
    CYAML_FIELD_END,
};

#define PATH_FIELD(key)                                                                            \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_values, key, 1,    \
                           4095)

static const cyaml_schema_field_t fields[] = {
    PATH_FIELD(device),
    CYAML_FIELD_SEQUENCE("models", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_values, models,
                         &path_value, 1, SL_SETTINGS_MAX_MODELS),
    PATH_FIELD(outputs),
    PATH_FIELD(outputs_quota),
    PATH_FIELD(outputs_retention),
    PATH_FIELD(runtime),
    PATH_FIELD(socket),
    PATH_FIELD(budget),
    PATH_FIELD(host_memory),
    PATH_FIELD(tokens),
    PATH_FIELD(audit),
    CYAML_FIELD_MAPPING("tls", CYAML_FLAG_OPTIONAL, file_values, tls, tls_fields),
    PATH_FIELD(worker),
    CYAML_FIELD_UINT("threads", CYAML_FLAG_OPTIONAL, file_values, threads),
    CYAML_FIELD_MAPPING("limits", CYAML_FLAG_OPTIONAL, file_values, limits, limit_fields),
    CYAML_FIELD_MAPPING("deadlines", CYAML_FLAG_OPTIONAL, file_values, deadlines, deadline_fields),
    CYAML_FIELD_MAPPING("http", CYAML_FLAG_OPTIONAL, file_values, http, http_fields),
    CYAML_FIELD_ENUM("local_users", CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT, file_values,
                     local_users, role_words, SL_COUNT(role_words)),
    CYAML_FIELD_ENUM("log_level", CYAML_FLAG_OPTIONAL | CYAML_FLAG_STRICT, file_values, log_level,
                     level_words, SL_COUNT(level_words)),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = { CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, file_values,
                                                                 fields) };

/* --- defaults --- */

/* in_flight + 4 handlers are started: see sluiced.c. */
static const struct {
    const char *key;
    size_t from, to; /* offsets in file_limits and sl_settings */
    int value, least, most;
} limits[] = {
    { "limits.connections", offsetof(file_limits, connections), offsetof(sl_settings, connections),
      256, 1, 65536 },
    { "limits.in_flight", offsetof(file_limits, in_flight), offsetof(sl_settings, in_flight), 20, 5,
      1024 },
    { "limits.queue", offsetof(file_limits, queue), offsetof(sl_settings, queue), 256, 1, 100000 },
    { "limits.retry_limit", offsetof(file_limits, retry_limit), offsetof(sl_settings, retry_limit),
      2, 0, 100 },
    { "limits.running", offsetof(file_limits, running), offsetof(sl_settings, running), 0, 1,
      16 }, /* 0: by the device */
    { "limits.bypass", offsetof(file_limits, bypass), offsetof(sl_settings, bypass), 8, 0, 100000 },
    { "limits.user_running", offsetof(file_limits, user_running),
      offsetof(sl_settings, user_running), 0, 0, 16 },
    { "limits.user_queued", offsetof(file_limits, user_queued), offsetof(sl_settings, user_queued),
      0, 0, 100000 },
    { "limits.connections_host", offsetof(file_limits, connections_host),
      offsetof(sl_settings, connections_host), 128, 1, 65536 },
    { "limits.connections_user", offsetof(file_limits, connections_user),
      offsetof(sl_settings, connections_user), 0, 1, 65536 }, /* 0: four fifths of all */
    { "limits.rate", offsetof(file_limits, rate), offsetof(sl_settings, rate.rate), 0, 0, 1000000 },
    { "limits.burst", offsetof(file_limits, burst), offsetof(sl_settings, rate.burst), 20, 1,
      1000000 },
};

static char *below(const char *parent, const char *name)
{
    char *path = NULL;

    return asprintf(&path, "%s/%s", parent, name) < 0 ? NULL : path;
}

static char *default_runtime(void)
{
    const char *dir = getenv("XDG_RUNTIME_DIR");
    char *path = NULL;

    if (getuid() == 0)
        return strdup("/run/sluice");
    if (dir && dir[0] == '/')
        return below(dir, "sluice");
    return asprintf(&path, "/tmp/sluice-%u", (unsigned)getuid()) < 0 ? NULL : path;
}

static char *default_data(const char *name)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    char *path = NULL;

    if (getuid() == 0)
        return below("/var/lib/sluice", name);
    if (data && data[0] == '/')
        return asprintf(&path, "%s/sluice/%s", data, name) < 0 ? NULL : path;
    return asprintf(&path, "%s/.local/share/sluice/%s", home ? home : ".", name) < 0 ? NULL : path;
}

/* --- putting it together --- */

/* Of the memory, for images on the host; the arena on cpu has half by default. */
enum { HOST_SHARE = 4 };

/* flag, then file, then a default that the caller then owns */
static char *choose(const char *flag, const char *file, char *fallback)
{
    if (!flag && !file)
        return fallback;
    free(fallback);
    return strdup(flag ? flag : file);
}

static sl_status take_limits(sl_settings *out, const sl_config *config, sl_error *err)
{
    const file_values *file = config ? sl_config_values(config) : NULL;

    for (size_t i = 0; i < SL_COUNT(limits); i++) {
        int64_t value = limits[i].value;
        if (file && sl_config_has(config, limits[i].key)) {
            value = *(const uint32_t *)((const char *)&file->limits + limits[i].from);
            if (value < limits[i].least || value > limits[i].most) {
                sl_fail(err, SL_ERR_DATA, "%lld is not from %d to %d", (long long)value,
                        limits[i].least, limits[i].most);
                return sl_config_blame(config, limits[i].key, err);
            }
        }
        *(int *)((char *)out + limits[i].to) = (int)value;
    }
    if (file && file->threads > 64) {
        sl_fail(err, SL_ERR_DATA, "%u is more than 64", file->threads);
        return sl_config_blame(config, "threads", err);
    }
    out->threads = file ? (int)file->threads : 0;
    return SL_OK;
}

static sl_status take_host_memory(sl_settings *out, const sl_config *config, sl_error *err)
{
    const file_values *file = config ? sl_config_values(config) : NULL;

    out->host_bytes = 0;
    if (!file || !file->host_memory) {
        out->host_bytes = sl_machine_memory_bytes() / HOST_SHARE & ~(SL_MIB - 1);
        return SL_OK;
    }
    if (strcmp(file->host_memory, "0") == 0
        || sl_size_parse(file->host_memory, &out->host_bytes))
        return SL_OK;
    sl_fail(err, SL_ERR_DATA, "\"%s\" is no size: expected 8GiB or the like, or 0",
            file->host_memory);
    return sl_config_blame(config, "host_memory", err);
}

/* "90s", "15m", "36h", "30d" */
static bool parse_duration(const char *text, int64_t *out_ns)
{
    static const struct {
        const char *unit;
        int64_t seconds;
    } units[] = { { "s", 1 }, { "m", 60 }, { "h", 3600 }, { "d", 86400 } };
    char *end = NULL;

    if (text[0] < '0' || text[0] > '9')
        return false;
    const unsigned long long number = strtoull(text, &end, 10);
    for (size_t i = 0; i < SL_COUNT(units); i++) {
        if (strcmp(end, units[i].unit) == 0
            && number <= (unsigned long long)(INT64_MAX / SL_NS_PER_S / units[i].seconds)) {
            *out_ns = (int64_t)number * units[i].seconds * SL_NS_PER_S;
            return true;
        }
    }
    return false;
}

static sl_status take_deadlines(sl_settings *out, const sl_config *config, sl_error *err)
{
    static const file_deadlines nothing = { .idle = NULL };
    const file_values *file = config ? sl_config_values(config) : NULL;
    const file_deadlines *given = file ? &file->deadlines : &nothing;
    const struct {
        const char *key, *text;
        int64_t *out_ns, default_ns;
    } all[] = {
        { "deadlines.message", given->message, &out->message_ns, 30 * SL_NS_PER_S },
        { "deadlines.write", given->write, &out->write_ns, 30 * SL_NS_PER_S },
        { "deadlines.idle", given->idle, &out->idle_ns, 600 * SL_NS_PER_S },
    };

    for (size_t i = 0; i < SL_COUNT(all); i++) {
        *all[i].out_ns = all[i].default_ns;
        if (!all[i].text)
            continue;
        if (!parse_duration(all[i].text, all[i].out_ns) || *all[i].out_ns == 0) {
            sl_fail(err, SL_ERR_DATA, "\"%s\" is no time above 0: expected 30s, 10m or the like",
                    all[i].text);
            return sl_config_blame(config, all[i].key, err);
        }
    }
    return SL_OK;
}

static sl_status take_http(sl_settings *out, const sl_config *config, sl_error *err)
{
    const file_values *file = config ? sl_config_values(config) : NULL;

    if (!file || !sl_config_has(config, "http"))
        return SL_OK;
    const file_http *http = &file->http;
    if (!http->address) {
        sl_fail(err, SL_ERR_DATA, "no address: expected PORT, ADDRESS:PORT or [ADDRESS]:PORT");
        return sl_config_blame(config, "http", err);
    }
    if (!http->certificate != !http->key) {
        sl_fail(err, SL_ERR_DATA, "certificate and key go together");
        return sl_config_blame(config, http->key ? "http.key" : "http.certificate", err);
    }
    out->http_address = strdup(http->address);
    out->http_certificate = http->certificate ? strdup(http->certificate) : NULL;
    out->http_key = http->key ? strdup(http->key) : NULL;
    if (!out->http_address || !out->http_certificate != !http->certificate
        || !out->http_key != !http->key)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the configuration");
    return SL_OK;
}

static sl_status take_outputs(sl_settings *out, const sl_config *config, sl_error *err)
{
    const file_values *file = config ? sl_config_values(config) : NULL;
    size_t quota = 0;

    if (file && file->outputs_quota) {
        if (!sl_size_parse(file->outputs_quota, &quota)) {
            sl_fail(err, SL_ERR_DATA, "\"%s\" is no size: expected 500GiB or the like",
                    file->outputs_quota);
            return sl_config_blame(config, "outputs_quota", err);
        }
        out->outputs_quota_bytes = quota;
    }
    if (file && file->outputs_retention
        && !parse_duration(file->outputs_retention, &out->outputs_retention_ns)) {
        sl_fail(err, SL_ERR_DATA, "\"%s\" is no time: expected 30d, 36h or the like",
                file->outputs_retention);
        return sl_config_blame(config, "outputs_retention", err);
    }
    return SL_OK;
}

static sl_status blame_tls(const sl_config *config, const char *key, const char *why, sl_error *err)
{
    sl_fail(err, SL_ERR_DATA, "%s", why);
    return sl_config_blame(config, key, err);
}

/* "127.0.0.1:7437", "[::1]:7437".  Names are not asked for: what they mean can change. */
static bool is_on_loopback(const char *address)
{
    const char *colon = strrchr(address, ':');
    char host[INET6_ADDRSTRLEN];
    struct in_addr in;

    if (!colon || (size_t)(colon - address) >= sizeof host)
        return false;
    snprintf(host, sizeof host, "%.*s", (int)(colon - address), address);
    return strcmp(host, "[::1]") == 0 ||
           (inet_pton(AF_INET, host, &in) == 1 && ntohl(in.s_addr) >> 24 == IN_LOOPBACKNET);
}

static sl_status check_insecure(const sl_settings_tls *tls, const sl_config *config, sl_error *err)
{
    if (tls->client_auth == SL_TLS_AUTH_REQUIRED)
        return blame_tls(config, "tls.insecure",
                         "it lets in who has no certificate, and client_auth requires one", err);
    for (int i = 0; i < tls->listen_count; i++) {
        if (is_on_loopback(tls->listen[i]))
            continue;
        sl_fail(err, SL_ERR_DATA,
                "only on loopback, and listen has \"%s\": expected 127.0.0.1:PORT or [::1]:PORT",
                tls->listen[i]);
        return sl_config_blame(config, "tls.insecure", err);
    }
    return SL_OK;
}

/* What belongs together is there. */
static sl_status check_tls(const sl_settings_tls *tls, const sl_config *config, sl_error *err)
{
    if (tls->listen_count == 0)
        return SL_OK;
    if (!tls->certificate || !tls->key)
        return blame_tls(config, "tls.listen", "TLS needs certificate and key", err);
    if (tls->client_auth != SL_TLS_AUTH_OFF && !tls->client_ca)
        return blame_tls(config, "tls.client_auth",
                         "clients' certificates need client_ca, their issuer's", err);
    return tls->insecure ? check_insecure(tls, config, err) : SL_OK;
}

static bool copy(char **out, const char *text)
{
    return !text || (*out = strdup(text)) != NULL;
}

/* Takes text over; NULL: there was no memory for it. */
static bool append(char **list, int *count, char *text)
{
    if (text)
        list[(*count)++] = text;
    /* sl_settings_fini frees it, which is lost on the analyzer.
     * NOLINTNEXTLINE(clang-analyzer-unix.Malloc) */
    return text != NULL;
}

static sl_status take_tls(sl_settings *out, const sl_config *config, sl_error *err)
{
    const file_values *values = config ? sl_config_values(config) : NULL;
    sl_settings_tls *tls = &out->tls;
    bool complete = true;

    tls->handshake_ns = 5 * SL_NS_PER_S;
    if (!values)
        return SL_OK;
    const file_tls *file = &values->tls;
    for (uint32_t i = 0; i < file->listen_count; i++)
        complete &= append(tls->listen, &tls->listen_count, strdup(file->listen[i]));
    complete &= copy(&tls->certificate, file->certificate) && copy(&tls->key, file->key)
                && copy(&tls->client_ca, file->client_ca) && copy(&tls->revoked, file->revoked)
                && copy(&out->tokens, values->tokens) && copy(&out->audit, values->audit);
    if (!complete)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the configuration");
    if (file->handshake
        && (!parse_duration(file->handshake, &tls->handshake_ns) || tls->handshake_ns == 0))
        return blame_tls(config, "tls.handshake", "expected a time like 5s", err);
    tls->insecure = file->insecure;
    if (sl_config_has(config, "tls.client_auth"))
        tls->client_auth = (sl_tls_client_auth)file->client_auth;
    else if (!file->client_ca)
        tls->client_auth = SL_TLS_AUTH_OFF;
    else /* whoever names an issuer means its certificates to be shown */
        tls->client_auth = tls->insecure ? SL_TLS_AUTH_OPTIONAL : SL_TLS_AUTH_REQUIRED;
    return check_tls(tls, config, err);
}

static sl_status take_device(sl_settings *out, const sl_flags *flags, const sl_config *config,
                             sl_error *err)
{
    const file_values *file = config ? sl_config_values(config) : NULL;

    if (flags->device)
        return sl_device_spec_parse(flags->device, &out->device, err);
    if (!file || !file->device)
        return sl_device_spec_parse("cpu", &out->device, err);
    if (sl_device_spec_parse(file->device, &out->device, err) == SL_OK)
        return SL_OK;
    sl_config_blame(config, "device", err);
    err->status = SL_ERR_DATA; /* like every other wrong value in the file */
    return SL_ERR_DATA;
}

static sl_status take_paths(sl_settings *out, const sl_flags *flags, const file_values *file,
                            sl_error *err)
{
    bool complete = true;

    for (int i = 0; i < flags->model_count; i++)
        complete &= append(out->models, &out->model_count, strdup(flags->models[i]));
    for (uint32_t i = 0; i < file->models_count && flags->model_count == 0; i++)
        complete &= append(out->models, &out->model_count, strdup(file->models[i]));
    if (out->model_count == 0)
        complete &= append(out->models, &out->model_count, default_data("models"));
    out->outputs = choose(flags->outputs, file->outputs, default_data("outputs"));
    out->runtime = choose(flags->runtime, file->runtime, default_runtime());
    out->socket = choose(flags->socket, file->socket,
                         out->runtime ? below(out->runtime, "sluice.sock") : NULL);
    if (file->budget)
        complete &= (out->budget = strdup(file->budget)) != NULL;
    if (file->worker)
        complete &= (out->worker = strdup(file->worker)) != NULL;
    if (!complete || !out->outputs || !out->runtime || !out->socket)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the configuration");
    return SL_OK;
}

sl_status sl_settings_init(sl_settings *out, const sl_flags *flags, sl_error *err)
{
    static const file_values nothing = { .device = NULL };
    sl_settings settings = { .log_level = SL_LOG_INFO };
    sl_config *config = NULL;
    sl_status status = SL_OK;

    if (flags->config)
        status = sl_config_open(&config, flags->config, &schema, err);
    if (status != SL_OK)
        goto done;
    const file_values *file = config ? sl_config_values(config) : &nothing;
    status = take_limits(&settings, config, err);
    if (status == SL_OK)
        status = take_host_memory(&settings, config, err);
    if (status == SL_OK)
        status = take_outputs(&settings, config, err);
    if (status == SL_OK)
        status = take_deadlines(&settings, config, err);
    if (status == SL_OK)
        status = take_http(&settings, config, err);
    if (status == SL_OK)
        status = take_tls(&settings, config, err);
    if (status == SL_OK)
        status = take_device(&settings, flags, config, err);
    if (status == SL_OK)
        status = take_paths(&settings, flags, file, err);
    if (status != SL_OK)
        goto done;
    if (settings.running == 0)
        settings.running = sl_lanes_default(settings.device.kind);
    settings.local_users = (sl_role)file->local_users;
    if (config && sl_config_has(config, "log_level"))
        settings.log_level = (sl_log_level)file->log_level;
    if (flags->log_level && !sl_log_level_parse(flags->log_level, &settings.log_level)) {
        status = sl_fail(err, SL_ERR_INVALID,
                         "log level \"%s\": expected debug, info, warn or error",
                         flags->log_level);
        goto done;
    }
    *out = settings;
    settings = (sl_settings){ .model_count = 0 };
done:
    sl_settings_fini(&settings);
    sl_config_close(config);
    return status;
}

void sl_settings_fini(sl_settings *settings)
{
    for (int i = 0; i < settings->model_count; i++)
        free(settings->models[i]);
    free(settings->outputs);
    free(settings->runtime);
    free(settings->socket);
    free(settings->budget);
    free(settings->worker);
    free(settings->http_address);
    free(settings->http_certificate);
    free(settings->http_key);
    for (int i = 0; i < settings->tls.listen_count; i++)
        free(settings->tls.listen[i]);
    free(settings->tls.certificate);
    free(settings->tls.key);
    free(settings->tls.client_ca);
    free(settings->tls.revoked);
    free(settings->tokens);
    free(settings->audit);
    *settings = (sl_settings){ .model_count = 0 };
}
