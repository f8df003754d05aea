/* cli_top.c - a live view of a daemon: memory, components, jobs.
 *
 * A frame is written into memory first and cut to the terminal's width and
 * height, so that it never wraps or scrolls.  The terminal is put back as it was
 * whichever way this ends.
 */
#include "clients/c/cli.h"

#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { MAX_JOBS = 50, BAR = 40 };
#define ASK_NS     (5 * SL_NS_PER_S)
#define REFRESH_MS 1000

typedef struct {
    Sluice__V1__HealthReply *health;
    Sluice__V1__GetMemoryStatsReply *memory;
    Sluice__V1__ListJobsReply *jobs;
} snapshot;

static void snapshot_fini(snapshot *s)
{
    sl_message_free(s->health);
    sl_message_free(s->memory);
    sl_message_free(s->jobs);
    *s = (snapshot){ NULL, NULL, NULL };
}

static sl_status snapshot_take(cli *c, snapshot *s)
{
    const Sluice__V1__HealthRequest health = SLUICE__V1__HEALTH_REQUEST__INIT;
    const Sluice__V1__GetMemoryStatsRequest memory = SLUICE__V1__GET_MEMORY_STATS_REQUEST__INIT;
    Sluice__V1__ListJobsRequest jobs = SLUICE__V1__LIST_JOBS_REQUEST__INIT;
    const int64_t timeout_ns = cli_timeout_ns(c, ASK_NS);

    jobs.active_only = 1;
    jobs.limit = MAX_JOBS;
    sl_status status = cli_call_health(c, &health, timeout_ns, &s->health);
    if (status == SL_OK)
        status = cli_call_get_memory_stats(c, &memory, timeout_ns, &s->memory);
    if (status == SL_OK)
        status = cli_call_list_jobs(c, &jobs, timeout_ns, &s->jobs);
    return status;
}

/* ---- a frame ---- */

static void print_bar(FILE *f, const char *label, uint64_t used, uint64_t total)
{
    char a[CLI_BYTES_TEXT], b[CLI_BYTES_TEXT], bar[BAR + 1];
    const double share = total > 0 ? (double)used / (double)total : 0.0;
    const int filled = share >= 1.0 ? BAR : (int)(share * BAR + 0.5);

    memset(bar, '.', BAR);
    memset(bar, '#', (size_t)filled);
    bar[BAR] = 0;
    fprintf(f, "%-8s [%s] %5.1f %%  %s of %s\n", label, bar, 100.0 * share,
            cli_bytes_human(used, a), cli_bytes_human(total, b));
}

static void print_component(FILE *f, const Sluice__V1__ComponentBytes *c)
{
    const bool on_device = c->residency != SLUICE__V1__RESIDENCY__HOST;
    char name[512], size[CLI_BYTES_TEXT];

    snprintf(name, sizeof name, "%s/%s", c->model, cli_component_text(c->component));
    fprintf(f, "  %-36s %-5s %12s %-6s%s%s%s\n", name, cli_precision_text(c->precision),
            cli_bytes_human(on_device ? c->measured_bytes : c->host_bytes, size),
            on_device ? "device" : "host", c->users ? " in use" : "", c->pinned ? " pinned" : "",
            c->streamed ? " streamed" : "");
}

static void print_device(FILE *f, const Sluice__V1__DeviceMemory *m)
{
    char a[CLI_BYTES_TEXT], b[CLI_BYTES_TEXT], d[CLI_BYTES_TEXT];

    fprintf(f, "device %s: ", m->device);
    if (m->worker_up)
        fprintf(f, "worker %" PRId64 ", restarts %u\n", m->worker_pid, m->worker_restarts);
    else
        fprintf(f, "NO WORKER, restarts %u\n", m->worker_restarts);
    print_bar(f, "memory", m->total_bytes - m->free_bytes, m->total_bytes);
    if (m->host && m->host->limit_bytes > 0)
        print_bar(f, "host", m->host->used_bytes, m->host->limit_bytes);
    fprintf(f, "weights %s, activations %s, reserved %s", cli_bytes_human(m->weights_bytes, a),
            cli_bytes_human(m->activations_bytes, b), cli_bytes_human(m->reserved_bytes, d));
    if (m->unexplained_bytes != 0)
        fprintf(f, ", UNEXPLAINED %" PRId64 " bytes", m->unexplained_bytes);
    fputs("\n\n", f);
    for (size_t i = 0; i < m->n_components; i++)
        print_component(f, m->components[i]);
    if (m->n_components == 0)
        fputs("  no components\n", f);
}

static void print_job(FILE *f, const Sluice__V1__Job *job, int64_t now_ns)
{
    char what[48], time_text[CLI_BYTES_TEXT] = "";
    const bool queued = job->state == SLUICE__V1__JOB_STATE__QUEUED;
    int64_t since_ns = job->started_ns > 0 ? job->started_ns : job->submitted_ns;

    if (queued)
        snprintf(what, sizeof what, "queued, position %d", job->position);
    else if (job->state == SLUICE__V1__JOB_STATE__DENOISING)
        snprintf(what, sizeof what, "denoising, step %d of %d", job->step, job->step_count);
    else
        snprintf(what, sizeof what, "%s", cli_state_text(job->state));
    cli_duration(now_ns > since_ns ? now_ns - since_ns : 0, time_text);
    fprintf(f, "  %-20s %-26s %-24s %10s", job->job_id, what, job->model, time_text);
    if (queued && job->estimated_start_ns > now_ns)
        fprintf(f, "  starts in %s", cli_duration(job->estimated_start_ns - now_ns, time_text));
    else if (queued && job->waiting_for && job->waiting_for->after[0])
        fprintf(f, "  after %s", job->waiting_for->after);
    putc('\n', f);
}

/* Running ones first, then the queue in its order. */
static int compare_jobs(const void *a, const void *b)
{
    const Sluice__V1__Job *x = *(Sluice__V1__Job *const *)a, *y = *(Sluice__V1__Job *const *)b;

    if (x->position != y->position)
        return x->position < y->position ? -1 : 1;
    return x->submitted_ns < y->submitted_ns ? -1 : x->submitted_ns > y->submitted_ns;
}

static void print_frame(FILE *f, const snapshot *s)
{
    char uptime[CLI_BYTES_TEXT], now[CLI_BYTES_TEXT];
    const int64_t now_ns = sl_clock_wall_ns();

    fprintf(f, "sluiced %s, up %s, %s: %s\n", s->health->version,
            cli_duration(s->health->uptime_ns, uptime), cli_time(now_ns, now), s->health->status);
    for (size_t i = 0; i < s->memory->n_devices; i++)
        print_device(f, s->memory->devices[i]);
    fprintf(f, "\n%u running, %u queued\n", s->health->running_jobs, s->health->queued_jobs);
    if (s->jobs->n_jobs > 0)
        qsort(s->jobs->jobs, s->jobs->n_jobs, sizeof *s->jobs->jobs, compare_jobs);
    for (size_t i = 0; i < s->jobs->n_jobs; i++)
        print_job(f, s->jobs->jobs[i], now_ns);
}

/* The list `name` of a message. */
static void add_list(cJSON *object, const char *name, const void *message)
{
    cJSON *whole = cli_json_message(message);

    cJSON_AddItemToObject(object, name, cJSON_DetachItemFromObject(whole, name));
    cJSON_Delete(whole);
}

static int show_once(cli *c)
{
    snapshot s = { NULL, NULL, NULL };
    const sl_status status = snapshot_take(c, &s);
    const int code = status == SL_OK ? CLI_OK : cli_fail(c, status);

    if (status == SL_OK && c->opt.json) {
        cJSON *object = cJSON_CreateObject();
        cJSON_AddItemToObject(object, "health", cli_json_message(s.health));
        add_list(object, "devices", s.memory);
        add_list(object, "jobs", s.jobs);
        cli_json_print(object);
    } else if (status == SL_OK) {
        print_frame(stdout, &s);
    }
    snapshot_fini(&s);
    return code;
}

/* ---- the live view ---- */

static struct termios usual; /* the terminal as it was found */

static void screen_open(void)
{
    struct termios raw;

    if (tcgetattr(STDIN_FILENO, &usual) == 0) {
        raw = usual;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VSUSP] = _POSIX_VDISABLE; /* nobody would put the screen back */
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    fputs("\x1b[?1049h\x1b[?25l", stdout); /* the other screen, no cursor */
}

static void screen_close(void)
{
    fputs("\x1b[?25h\x1b[?1049l", stdout);
    fflush(stdout);
    tcsetattr(STDIN_FILENO, TCSANOW, &usual);
}

/* Of a line at most `columns` characters; bytes of one character stay together. */
static size_t cut(const char *line, size_t length, int columns)
{
    size_t at = 0;

    for (int shown = 0; at < length; at++) {
        if (((unsigned char)line[at] & 0xc0) != 0x80 && shown++ == columns)
            break;
    }
    return at;
}

static void draw(const char *text)
{
    struct winsize size = { 0 };
    int rows = 24, columns = 80, row = 1;

    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 1) {
        rows = size.ws_row;
        columns = size.ws_col;
    }
    fputs("\x1b[H", stdout);
    for (const char *line = text; *line && row < rows; row++) {
        const size_t length = strcspn(line, "\n");
        fwrite(line, 1, cut(line, length, columns), stdout);
        fputs("\x1b[K\r\n", stdout);
        line += length + (line[length] == '\n');
    }
    fputs("\x1b[Jq: quit", stdout);
    fflush(stdout);
}

/* A daemon that is being restarted is waited for. */
static bool is_passing(const cli *c, sl_status status)
{
    return !c->details.answered && (status == SL_ERR_UNAVAILABLE || status == SL_ERR_TIMEOUT);
}

static sl_status refresh(cli *c)
{
    snapshot s = { NULL, NULL, NULL };
    char *text = NULL;
    size_t text_bytes = 0;
    FILE *f = open_memstream(&text, &text_bytes);
    sl_status status = SL_OK;

    if (!f)
        return sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for a frame");
    status = snapshot_take(c, &s);
    if (status == SL_OK)
        print_frame(f, &s);
    else
        fprintf(f, "%s\n", c->err.message);
    fclose(f);
    if (text && (status == SL_OK || is_passing(c, status))) {
        draw(text);
        status = SL_OK;
    }
    free(text);
    snapshot_fini(&s);
    return status;
}

/* True: somebody wants to leave. */
static bool wait_for_key(void)
{
    struct pollfd fds[2] = { { .fd = cli_interrupt_fd(), .events = POLLIN },
                             { .fd = STDIN_FILENO, .events = POLLIN } };
    char key = 0;

    if (poll(fds, 2, REFRESH_MS) <= 0)
        return false;
    if (fds[0].revents)
        return true;
    return fds[1].revents && (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q');
}

int cli_top(cli *c)
{
    sl_status status = SL_OK;

    if (c->opt.once || c->opt.json)
        return show_once(c);
    if (!isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO))
        return cli_usage(c, "a live view needs a terminal: --once prints one frame");
    status = cli_catch_interrupts(c);
    if (status != SL_OK)
        return cli_fail(c, status);
    screen_open();
    do
        status = refresh(c);
    while (status == SL_OK && !wait_for_key());
    screen_close();
    if (status == SL_ERR_CANCELLED && !c->details.answered)
        status = SL_OK; /* Ctrl-C is one of the ways to leave */
    return status == SL_OK ? CLI_OK : cli_fail(c, status);
}
