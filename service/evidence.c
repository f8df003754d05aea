#include "service/evidence.h"

#include "base/clock.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FOLDER "evidence"

enum { EVENTS_TOLD = 64, FILES = 4, REASON_BYTES = 40 };

/* --- events --- */

void sl_event_add(sl_service *s, const char *kind, const char *fmt, ...)
{
    sl_server_event *event = &s->events[s->last_event % SL_SERVER_EVENTS];
    va_list args;

    event->seq = ++s->last_event;
    event->time_ns = sl_clock_wall_ns();
    snprintf(event->kind, sizeof event->kind, "%s", kind);
    va_start(args, fmt);
    vsnprintf(event->text, sizeof event->text, fmt, args);
    va_end(args);
    pthread_cond_broadcast(&s->changed);
}

const sl_server_event *sl_event_find(const sl_service *s, uint64_t seq)
{
    const sl_server_event *event = &s->events[(seq - 1) % SL_SERVER_EVENTS];

    return seq > 0 && event->seq == seq ? event : NULL;
}

/* --- a bundle --- */

struct sl_evidence {
    char folder[160]; /* its name */
    struct {
        const char *name;
        cJSON *json;
    } files[FILES];
};

/* cJSON keeps numbers as doubles: bytes and times are exact below 2^53. */
static void add_number(cJSON *to, const char *name, int64_t value)
{
    cJSON_AddNumberToObject(to, name, (double)value);
}

static cJSON *ledger_to_json(sl_service *s)
{
    cJSON *json = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(json, "components");
    sl_core_ledger ledger;

    sl_service_get_ledger(s, &ledger);
    add_number(json, "limit_bytes", (int64_t)ledger.limit_bytes);
    add_number(json, "workspace_bytes", (int64_t)ledger.workspace_bytes);
    add_number(json, "weights_bytes", (int64_t)ledger.weights_bytes);
    add_number(json, "activations_bytes", (int64_t)ledger.activations_bytes);
    add_number(json, "reserved_bytes", (int64_t)ledger.reserved_bytes);
    add_number(json, "foreign_bytes", (int64_t)ledger.foreign_bytes);
    add_number(json, "free_bytes", (int64_t)ledger.free_bytes);
    add_number(json, "unexplained_bytes", ledger.unexplained_bytes);
    add_number(json, "arena_mapped_bytes", (int64_t)s->memory.mapped_bytes);
    add_number(json, "arena_peak_bytes", (int64_t)s->memory.peak_bytes);
    add_number(json, "rss_bytes", (int64_t)s->memory.rss_bytes);
    add_number(json, "context_bytes", (int64_t)s->memory.context_bytes);
    add_number(json, "reserve_bytes", (int64_t)s->memory.reserve_bytes);
    add_number(json, "driver_free_bytes", (int64_t)s->memory.driver_free_bytes);
    for (int i = 0; i < sl_core_component_count(s->core) && list; i++) {
        sl_core_component c;
        char text[256];
        cJSON *item = cJSON_CreateObject();
        sl_core_get_component(s->core, i, &c);
        cJSON_AddStringToObject(item, "component", sl_core_key_text(&c.key, text, sizeof text));
        add_number(item, "booked_bytes", (int64_t)c.size_bytes);
        add_number(item, "measured_bytes", (int64_t)c.measured_bytes);
        add_number(item, "users", c.users);
        add_number(item, "state", (int64_t)c.state);
        cJSON_AddItemToArray(list, item);
    }
    return json;
}

static cJSON *events_to_json(const sl_service *s)
{
    cJSON *json = cJSON_CreateArray();
    const uint64_t first = s->last_event > EVENTS_TOLD ? s->last_event - EVENTS_TOLD + 1 : 1;

    for (uint64_t seq = first; seq <= s->last_event && json; seq++) {
        const sl_server_event *event = sl_event_find(s, seq);
        cJSON *item = cJSON_CreateObject();
        if (event) {
            add_number(item, "seq", (int64_t)event->seq);
            add_number(item, "time_ns", event->time_ns);
            cJSON_AddStringToObject(item, "kind", event->kind);
            cJSON_AddStringToObject(item, "text", event->text);
        }
        cJSON_AddItemToArray(json, item);
    }
    return json;
}

static cJSON *job_to_json(const sl_job *job)
{
    cJSON *json = cJSON_CreateObject(), *lines = cJSON_AddArrayToObject(json, "lines");

    cJSON_AddStringToObject(json, "job_id", job->job_id);
    cJSON_AddStringToObject(json, "model", job->spec.model);
    add_number(json, "state", (int64_t)job->state);
    add_number(json, "step", job->step);
    add_number(json, "step_count", job->step_count);
    add_number(json, "attempt", job->attempt);
    add_number(json, "width", job->spec.request.width);
    add_number(json, "height", job->spec.request.height);
    add_number(json, "frames", job->spec.request.frames);
    add_number(json, "planned_peak_bytes", (int64_t)sl_job_planned_peak_bytes(job));
    for (int i = 0; i < job->line_count && lines; i++)
        cJSON_AddItemToArray(lines, cJSON_CreateString(job->lines[i].text));
    return json;
}

/* NULL: none. */
static cJSON *running_to_json(sl_service *s)
{
    cJSON *json = sl_service_first_running(s) ? cJSON_CreateArray() : NULL;

    for (int lane = 0; lane < SL_CORE_MAX_LANES && json; lane++) {
        const sl_job *job = s->running[lane].command_id != 0
                                ? sl_jobs_find(s->jobs, s->running[lane].job_id)
                                : NULL;
        if (job)
            cJSON_AddItemToArray(json, job_to_json(job));
    }
    return json;
}

static cJSON *exit_to_json(sl_service *s, const char *reason)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "reason", reason);
    cJSON_AddStringToObject(json, "device", s->device_text);
    add_number(json, "pid", s->worker_pid);
    add_number(json, "generation", (int64_t)s->generation);
    add_number(json, "up_ms",
               s->worker_up ? (sl_clock_now_ns() - s->worker_up_ns) / SL_NS_PER_MS : 0);
    return json;
}

/* "20261123T141500Z-killed-by-signal-9" */
static void name_folder(char *out, size_t out_bytes, const char *reason)
{
    const int64_t now_ns = sl_clock_wall_ns();
    const time_t now = (time_t)(now_ns / SL_NS_PER_S);
    char when[32], why[REASON_BYTES];
    struct tm tm;
    size_t used = 0;

    gmtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y%m%dT%H%M%S", &tm);
    for (const char *p = reason; *p && used + 1 < sizeof why; p++) {
        if (isalnum((unsigned char)*p))
            why[used++] = (char)tolower((unsigned char)*p);
        else if (used > 0 && why[used - 1] != '-')
            why[used++] = '-';
    }
    while (used > 0 && why[used - 1] == '-')
        used--;
    why[used] = '\0';
    snprintf(out, out_bytes, "%s.%03dZ-%s", when, (int)(now_ns / SL_NS_PER_MS % 1000), why);
}

sl_evidence *sl_evidence_take(sl_service *s, const char *reason)
{
    sl_evidence *evidence = calloc(1, sizeof *evidence);

    if (!evidence)
        return NULL;
    name_folder(evidence->folder, sizeof evidence->folder, reason);
    evidence->files[0].name = "exit.json";
    evidence->files[0].json = exit_to_json(s, reason);
    evidence->files[1].name = "ledger.json";
    evidence->files[1].json = ledger_to_json(s);
    evidence->files[2].name = "events.json";
    evidence->files[2].json = events_to_json(s);
    evidence->files[3].name = "jobs.json";
    evidence->files[3].json = running_to_json(s);
    return evidence;
}

/* --- writing --- */

static sl_status write_json(int dir, const char *name, const cJSON *json, sl_error *err)
{
    sl_status status = SL_OK;
    char *text = cJSON_Print(json);
    const int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    const size_t size = text ? strlen(text) : 0;

    if (!text)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", name);
    else if (fd < 0 || write(fd, text, size) != (ssize_t)size)
        status = sl_fail_errno(err, "could not write \"%s\"", name);
    if (fd >= 0)
        close(fd);
    free(text);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void remove_folder(int parent, const char *name)
{
    static const char *const files[] = { "exit.json", "ledger.json", "events.json", "jobs.json" };
    const int dir = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

    for (size_t i = 0; i < SL_COUNT(files) && dir >= 0; i++)
        unlinkat(dir, files[i], 0);
    if (dir >= 0)
        close(dir);
    if (unlinkat(parent, name, AT_REMOVEDIR) != 0)
        sl_log(SL_LOG_WARN, "evidence_left", "name=\"%s\" reason=\"%s\"", name, strerror(errno));
}

/* Names begin with the time: the first ones are the oldest. */
static void remove_oldest(const char *path)
{
    enum { MOST = 4096 };
    char **names = calloc(MOST, sizeof *names);
    struct dirent *entry;
    DIR *dir = opendir(path);
    int count = 0;

    while (names && dir && count < MOST && (entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.' && (names[count] = strdup(entry->d_name)) != NULL)
            count++;
    }
    if (names)
        qsort(names, (size_t)count, sizeof *names, by_name);
    for (int i = 0; i < count; i++) {
        if (i < count - SL_EVIDENCE_KEPT)
            remove_folder(dirfd(dir), names[i]);
        free(names[i]);
    }
    free(names);
    if (dir)
        closedir(dir);
}

void sl_evidence_write(sl_service *s, sl_evidence *evidence)
{
    sl_error err = { .status = SL_OK };
    char *root = NULL, *path = NULL;
    int dir = -1;

    if (!evidence)
        return;
    if (asprintf(&root, "%s/" FOLDER, s->outputs) < 0)
        root = NULL;
    if (root && asprintf(&path, "%s/%s", root, evidence->folder) < 0)
        path = NULL;
    if (!path)
        sl_fail(&err, SL_ERR_NO_MEMORY, "out of memory");
    else if ((mkdir(root, 0700) != 0 && errno != EEXIST) || mkdir(path, 0700) != 0
             || (dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        sl_fail_errno(&err, "could not make \"%s\"", path);
    for (int i = 0; i < FILES; i++) {
        if (evidence->files[i].json && dir >= 0 && err.status == SL_OK
            && write_json(dir, evidence->files[i].name, evidence->files[i].json, &err) != SL_OK)
            sl_error_prefix(&err, "evidence \"%s\"", evidence->folder);
        cJSON_Delete(evidence->files[i].json);
    }
    if (err.status != SL_OK)
        sl_log(SL_LOG_WARN, "evidence_lost", "reason=\"%s\"", err.message);
    else
        sl_log(SL_LOG_WARN, "evidence", "path=\"%s\"", path);
    if (root)
        remove_oldest(root);
    if (dir >= 0)
        close(dir);
    free(root);
    free(path);
    free(evidence);
}
