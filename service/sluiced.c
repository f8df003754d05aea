/* sluiced.c - the daemon: configuration, locks, and the order of things.
 *
 * Up:   directories, device lock, outputs lock, service (and worker), rpc, side
 *       door, front.
 * Down: service begins to stop (jobs end cancelled, waits end), front delivers
 *       and closes, worker ends, side door, rpc, front, service.
 *
 * Exit codes: 0 stopped by SIGTERM or SIGINT, 1 could not start, 2 flags or
 * configuration, 3 another daemon holds the device or the outputs.
 */
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "service/card.h"
#include "service/config.h"
#include "service/front.h"
#include "service/handlers.h"
#include "service/http.h"
#include "service/lock.h"
#include "service/service.h"
#include "service/transport_tls.h"

#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define SERVICE_URL "inproc://sluice"
#define STORE_NAME  ".jobs.db"

enum {
    EXIT_START = 1,
    EXIT_USAGE = 2,
    EXIT_LOCKED = 3,
    SPARE_HANDLERS = 4, /* between a reply and its handler's next receive */
    KEEP_JOBS = 1000,
    SPARE_DESCRIPTORS = 128,
    LEAST_CONNECTIONS = 8,
    LAST_STEPS_S = 5,
};
#define LOCK_WAIT_NS      (2 * SL_NS_PER_S)
#define DELIVERY_GRACE_NS (2 * SL_NS_PER_S)
#define WORKER_GRACE_NS   (5 * SL_NS_PER_S)

typedef struct {
    const sl_flags *flags;
    sl_settings settings;
    sl_budget_table *table;
    sl_auth auth;
    sl_audit *audit;
    sl_access *access;
    sl_tls *tls;
    int device_lock, outputs_lock;
    char *store;
    sl_service *service;
    sl_rpc *rpc;
    sl_door door;
    sl_front *front;
    sl_http *http;
} daemon_state;

static void print_help(void)
{
    puts("sluiced - the sluice daemon: serves video diffusion models from one device\n"
         "\n"
         "usage: sluiced [flags]\n"
         "  --config FILE    settings (docs/sluice.yaml.example); flags win over it\n"
         "  --device SPEC    cpu, cpu:8GiB, cuda:0, cuda:0:24GiB (default cpu)\n"
         "  --models DIR     directory with models in it; may be given several times\n"
         "  --outputs DIR    where finished videos go\n"
         "  --runtime DIR    locks and the socket\n"
         "  --socket PATH    the socket (default RUNTIME/sluice.sock)\n"
         "  --log-level L    debug, info, warn, error (default info)\n"
         "  --version        print the version\n"
         "  --help           print this\n"
         "\n"
         "exit codes: 0 stopped by a signal, 1 could not start, 2 flags or configuration,\n"
         "            3 another daemon holds the device or the outputs directory");
}

/* 0: go on; else 1 + the exit code. */
static int parse_flags(sl_flags *out, int argc, char **argv)
{
    static const struct option options[] = {
        { "config", required_argument, NULL, 'c' },  { "device", required_argument, NULL, 'd' },
        { "models", required_argument, NULL, 'm' },  { "outputs", required_argument, NULL, 'o' },
        { "runtime", required_argument, NULL, 'r' }, { "socket", required_argument, NULL, 's' },
        { "log-level", required_argument, NULL, 'l' }, { "version", no_argument, NULL, 'V' },
        { "help", no_argument, NULL, 'h' },          { NULL, 0, NULL, 0 },
    };
    int flag;

    while ((flag = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (flag) {
        case 'c':
            out->config = optarg;
            break;
        case 'd':
            out->device = optarg;
            break;
        case 'm':
            if (out->model_count == SL_SETTINGS_MAX_MODELS) {
                fprintf(stderr, "sluiced: more than %d --models\n", SL_SETTINGS_MAX_MODELS);
                return 1 + EXIT_USAGE;
            }
            out->models[out->model_count++] = optarg;
            break;
        case 'o':
            out->outputs = optarg;
            break;
        case 'r':
            out->runtime = optarg;
            break;
        case 's':
            out->socket = optarg;
            break;
        case 'l':
            out->log_level = optarg;
            break;
        case 'V':
            puts("sluiced " SL_VERSION);
            return 1;
        case 'h':
            print_help();
            return 1;
        default:
            return 1 + EXIT_USAGE;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "sluiced: what is \"%s\"? (--help lists the flags)\n", argv[optind]);
        return 1 + EXIT_USAGE;
    }
    return 0;
}

/* Signals go to main alone, which waits for them; threads inherit the mask. */
static void block_signals(sigset_t *out)
{
    sigemptyset(out);
    sigaddset(out, SIGTERM);
    sigaddset(out, SIGINT);
    sigaddset(out, SIGHUP);
    pthread_sigmask(SIG_BLOCK, out, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is a failed write */
}

/* Messages of up to 1 MiB come and go: memory for them is kept and used again.  With malloc's
 * own thresholds each was mapped afresh, and a stream of them spent a third of its time on page
 * faults (attack.py streams: p50 of the others 8.4 ms, now 2 to 4). */
static void keep_memory(void)
{
    mallopt(M_ARENA_MAX, 4);
    mallopt(M_MMAP_THRESHOLD, 8 << 20);
    mallopt(M_TRIM_THRESHOLD, 32 << 20);
}

/* Fewer connections where the limit cannot be raised: files and the worker's socket
 * have to find descriptors, whoever connects. */
static void raise_descriptor_limit(sl_settings *settings)
{
    const rlim_t want = (rlim_t)settings->connections + SPARE_DESCRIPTORS;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= want)
        return;
    limit.rlim_cur = want < limit.rlim_max ? want : limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= want)
        return;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    settings->connections = limit.rlim_cur > SPARE_DESCRIPTORS + LEAST_CONNECTIONS
                                ? (int)limit.rlim_cur - SPARE_DESCRIPTORS
                                : LEAST_CONNECTIONS;
    sl_log(SL_LOG_WARN, "few_descriptors", "limit=%llu wanted=%llu connections=%d",
           (unsigned long long)limit.rlim_cur, (unsigned long long)want, settings->connections);
}

/* Locks come before anything that looks at the device. */
static sl_status take_locks(daemon_state *d, sl_error *err)
{
    const sl_settings *settings = &d->settings;
    const unsigned runtime_mode = settings->local_users == SL_ROLE_NONE ? 0700 : 0711;
    char uuid[SL_NVML_UUID_BYTES];
    sl_status status = sl_card_resolve(&d->settings.device, uuid, err);

    if (status == SL_OK)
        status = sl_make_directory(settings->runtime, runtime_mode, err);
    if (status == SL_OK)
        status = sl_lock_device(&d->device_lock, settings->runtime, &settings->device, uuid,
                                LOCK_WAIT_NS, err);
    if (status == SL_OK)
        status = sl_make_directory(settings->outputs, 0700, err);
    if (status == SL_OK)
        status = sl_lock_directory(&d->outputs_lock, settings->outputs, err);
    return status;
}

static sl_status fill_table(sl_budget_table *table, const sl_settings *settings, sl_error *err)
{
    if (settings->budget)
        return sl_budget_table_load(table, settings->budget, err);
    sl_budget_table_default(table);
    return SL_OK;
}

static sl_status make_table(daemon_state *d, sl_error *err)
{
    d->table = calloc(1, sizeof *d->table);
    if (!d->table)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the budget table");
    return fill_table(d->table, &d->settings, err);
}

static sl_service_limits limits_of(const sl_settings *settings)
{
    return (sl_service_limits){ .running = settings->running,
                                .queue = settings->queue,
                                .bypass = settings->bypass,
                                .user_running = settings->user_running,
                                .user_queued = settings->user_queued,
                                .host_bytes = settings->host_bytes,
                                .outputs_quota_bytes = settings->outputs_quota_bytes,
                                .outputs_retention_ns = settings->outputs_retention_ns };
}

/* --- who may come in: what is read again as a set --- */

typedef struct {
    sl_tls_keys *keys; /* NULL: no TLS */
    sl_tokens tokens;
    sl_access_rate rate;
    sl_front_limits front;
} access_files;

static void free_access_files(access_files *files)
{
    if (!files)
        return;
    sl_tls_keys_release(files->keys);
    sl_tokens_fini(&files->tokens);
    free(files);
}

/* connections: what descriptors there are for may be fewer than the settings say. */
static sl_front_limits front_limits_of(const sl_settings *settings, int connections)
{
    return (sl_front_limits){
        .connections_each = settings->connections_user ? settings->connections_user
                                                       : connections - connections / 5,
        .connections_host = settings->connections_host,
        .message_ns = settings->message_ns,
        .write_ns = settings->write_ns,
        .idle_ns = settings->idle_ns,
    };
}

static sl_status read_access_files(access_files **out, const sl_settings *settings, sl_error *err)
{
    const sl_settings_tls *tls = &settings->tls;
    const sl_tls_config config = { .certificate = tls->certificate,
                                   .key = tls->key,
                                   .client_ca = tls->client_ca,
                                   .revoked = tls->revoked,
                                   .client_auth = tls->client_auth,
                                   .handshake_ns = tls->handshake_ns };
    access_files *files = calloc(1, sizeof *files);
    sl_status status = SL_OK;

    if (!files)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the configuration");
    files->rate = settings->rate;
    if (settings->tokens)
        status = sl_tokens_load(&files->tokens, settings->tokens, err);
    if (status == SL_OK && tls->listen_count > 0)
        status = sl_tls_keys_load(&files->keys, &config, err);
    if (status == SL_OK)
        *out = files;
    else
        free_access_files(files);
    return status;
}

/* For sl_service_config. */
static const char *finish_settings(void *arg, void *more, bool take)
{
    daemon_state *d = arg;
    access_files *files = more;
    bool changed = false, limits = false;

    if (take) {
        limits = sl_front_set_limits(d->front, &files->front);
        changed = sl_access_take(d->access, &files->tokens, files->rate);
        if (d->tls && files->keys) {
            changed |= sl_tls_take(d->tls, files->keys);
            files->keys = NULL;
        }
        sl_audit_reopen(d->audit);
    }
    free_access_files(files);
    if (limits)
        return changed ? "access, connections" : "connections";
    return changed ? "access" : NULL;
}

static sl_status start_access(daemon_state *d, sl_error *err)
{
    access_files *files = NULL;
    sl_status status = SL_OK;

    if (d->settings.audit)
        status = sl_audit_open(&d->audit, d->settings.audit, err);
    if (status == SL_OK)
        status = read_access_files(&files, &d->settings, err);
    if (status == SL_OK)
        status = sl_access_create(&d->access, &files->tokens, files->rate, d->audit, err);
    if (status == SL_OK && files->keys) {
        status = sl_tls_create(&d->tls, files->keys, d->audit, err);
        files->keys = NULL;
    }
    if (status == SL_OK && d->tls)
        sl_tls_set_door(d->tls, &d->door);
    if (status == SL_OK && d->tls && d->settings.tls.insecure) {
        sl_tls_trust_loopback(d->tls);
        sl_log(SL_LOG_WARN, "insecure", "whoever connects on loopback has the role user");
    }
    free_access_files(files);
    return status;
}

/* For sl_service_config: what may change is read again, the rest is ignored. */
static sl_status read_settings(void *arg, sl_service_settings *out, sl_error *err)
{
    const daemon_state *d = arg;
    sl_settings settings = { .model_count = 0 };
    sl_status status = sl_settings_init(&settings, d->flags, err);

    if (status != SL_OK)
        return status;
    status = fill_table(&out->table, &settings, err);
    out->limits = limits_of(&settings);
    if (status == SL_OK) {
        access_files *files = NULL;
        status = read_access_files(&files, &settings, err);
        if (status == SL_OK)
            files->front = front_limits_of(&settings, d->settings.connections);
        out->more = files;
    }
    sl_settings_fini(&settings);
    return status;
}

static sl_status start_service(daemon_state *d, sl_error *err)
{
    const sl_settings *settings = &d->settings;
    /* In the outputs directory: its lock makes us the only one. */
    if (asprintf(&d->store, "%s/" STORE_NAME, settings->outputs) < 0) {
        d->store = NULL;
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the job store");
    }
    const sl_service_config config = {
        .device = settings->device,
        .models = (const char *const *)settings->models,
        .model_count = settings->model_count,
        .outputs = settings->outputs,
        .store = d->store,
        .worker = settings->worker,
        .threads = settings->threads,
        .retry_limit = settings->retry_limit,
        /* Calls that wait take three fifths of what may be under way, one identity
         * may have four fifths (start_front): one fifth always remains to it for
         * calls that are answered at once. */
        .watchers = settings->in_flight * 2 / 5,
        .load_waiters = settings->in_flight / 5,
        .keep_jobs = KEEP_JOBS,
        .lock_fd = d->device_lock,
        .table = d->table,
        .limits = limits_of(settings),
        .read_settings = read_settings,
        .finish_settings = finish_settings,
        .read_arg = d,
    };
    sl_status status = sl_service_create(&d->service, &config, err);

    if (status == SL_OK)
        status = sl_rpc_create(&d->rpc, SERVICE_URL, &sl_handlers_table, d->service, d->access,
                               settings->in_flight + SPARE_HANDLERS, err);
    return status;
}

static sl_status start_front(daemon_state *d, sl_error *err)
{
    const sl_settings *settings = &d->settings;
    sl_front_config config = sl_front_config_default();
    sl_listener *listener = NULL;

    config.service_url = SERVICE_URL;
    config.connections = settings->connections;
    config.limits = front_limits_of(settings, settings->connections);
    config.door = &d->door;
    config.in_flight = settings->in_flight;
    config.in_flight_each = settings->in_flight - settings->in_flight / 5;
    config.bound = sl_rpc_bound;
    config.bound_arg = (void *)&sl_handlers_table;
    d->auth = (sl_auth){ .daemon_uid = getuid(), .local_users = settings->local_users };
    sl_status status = sl_front_create(&d->front, &config, err);
    if (status == SL_OK)
        status = sl_unix_listen(&listener, settings->socket,
                                settings->local_users == SL_ROLE_NONE ? 0600 : 0666, &d->auth, err);
    if (status == SL_OK)
        status = sl_front_add(d->front, listener, err);
    for (int i = 0; i < settings->tls.listen_count && status == SL_OK; i++) {
        status = sl_tls_listen(&listener, settings->tls.listen[i], d->tls, err);
        if (status == SL_OK)
            status = sl_front_add(d->front, listener, err);
    }
    if (status == SL_OK)
        status = sl_front_start(d->front, err);
    return status;
}

static sl_status start_http(daemon_state *d, sl_error *err)
{
    sl_http_config config = sl_http_config_default();

    if (!d->settings.http_address)
        return SL_OK;
    config.address = d->settings.http_address;
    config.certificate = d->settings.http_certificate;
    config.key = d->settings.http_key;
    config.service = d->service;
    config.table = &sl_handlers_table;
    config.calls = sl_rpc_get_stats(d->rpc);
    config.door = &d->door;
    return sl_http_create(&d->http, &config, err);
}

static sl_status start(daemon_state *d, sl_error *err)
{
    char device[64];
    sl_status status = take_locks(d, err);

    if (status == SL_OK)
        status = make_table(d, err);
    if (status == SL_OK)
        status = start_access(d, err);
    if (status == SL_OK)
        status = start_service(d, err);
    if (status == SL_OK)
        status = start_http(d, err);
    if (status == SL_OK)
        status = start_front(d, err);
    if (status == SL_OK)
        sl_log(SL_LOG_INFO, "daemon_start",
               "version=" SL_VERSION " pid=%d device=%s socket=\"%s\" outputs=\"%s\" models=%d",
               (int)getpid(), sl_device_spec_format(&d->settings.device, device, sizeof device),
               d->settings.socket, d->settings.outputs, d->settings.model_count);
    return status;
}

/* The sockets of nng 1.5 are known to hang in close at times.  By then the
 * worker is reaped and the socket's file removed. */
static void give_up(int signal_number)
{
    (void)signal_number;
    _exit(EXIT_SUCCESS);
}

static void stop(daemon_state *d)
{
    if (d->service)
        sl_service_begin_stop(d->service);
    if (d->front)
        sl_front_stop(d->front, DELIVERY_GRACE_NS);
    if (d->service)
        sl_service_stop(d->service, WORKER_GRACE_NS);
    signal(SIGALRM, give_up);
    alarm(LAST_STEPS_S);
    sl_http_destroy(d->http);
    sl_rpc_destroy(d->rpc);
    sl_front_destroy(d->front);
    sl_service_destroy(d->service);
    sl_tls_destroy(d->tls);
    sl_access_destroy(d->access);
    sl_audit_close(d->audit);
    alarm(0);
    free(d->table);
    free(d->store);
    sl_lock_release(d->outputs_lock);
    sl_lock_release(d->device_lock);
}

/* SIGTERM or SIGINT; SIGHUP reads the configuration again. */
static int wait_for_signal(const daemon_state *d, const sigset_t *signals)
{
    for (;;) {
        sl_error err = { .status = SL_OK };
        int number = 0;
        if (sigwait(signals, &number) != 0)
            continue;
        if (number != SIGHUP)
            return number;
        if (sl_service_reload(d->service, NULL, NULL, &err) != SL_OK)
            sl_log(SL_LOG_ERROR, "config_refused", "reason=\"%s\"", err.message);
    }
}

int main(int argc, char **argv)
{
    sl_flags flags = { .config = NULL };
    sl_error err = { .status = SL_OK };
    daemon_state d = { .device_lock = -1, .outputs_lock = -1 };
    sigset_t signals;
    int code = parse_flags(&flags, argc, argv);

    if (code != 0)
        return code - 1;
    if (sl_settings_init(&d.settings, &flags, &err) != SL_OK) {
        fprintf(stderr, "sluiced: %s\n", err.message);
        return EXIT_USAGE;
    }
    d.flags = &flags;
    sl_log_set_level(d.settings.log_level);
    keep_memory();
    block_signals(&signals);
    raise_descriptor_limit(&d.settings);
    const sl_status status = start(&d, &err);
    if (status == SL_OK) {
        const int number = wait_for_signal(&d, &signals);
        sl_log(SL_LOG_INFO, "daemon_stop", "signal=%s", number == SIGINT ? "SIGINT" : "SIGTERM");
    } else {
        fprintf(stderr, "sluiced: could not start: %s\n", err.message);
        code = d.device_lock < 0 || d.outputs_lock < 0
                   ? (status == SL_ERR_EXISTS ? EXIT_LOCKED : EXIT_START)
                   : EXIT_START;
    }
    stop(&d);
    sl_settings_fini(&d.settings);
    return code;
}
