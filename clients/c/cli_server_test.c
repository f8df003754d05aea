/* cli_server_test.c - the sluice command against a server that answers as a test
 * says: what is asked, what is shown, the exit codes. */
#include "base/test.h"
#include "clients/c/sluice.h"
#include "clients/c/test_server.h"

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the server ---- */

typedef struct {
    const char *method; /* "SwitchModel" */
    const ProtobufCMessage *reply;
    int code; /* not 0: an error with this message and refusal */
    char *message;
    Sluice__V1__Refusal *refusal;
} answer;

static const answer *answers; /* ends with a NULL method; set while no server runs */
static uint8_t asked[1024];   /* the last request's payload; read when no server runs */
static size_t asked_bytes;

/* Guards the messages while a server runs, for a test that changes them then. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void answers_turn(Sluice__V1__WatchEventsReply *reply, Sluice__V1__ServerEvent **events)
{
    pthread_mutex_lock(&lock);
    reply->events = events;
    pthread_mutex_unlock(&lock);
}

static void answer_one(int fd, const uint8_t id[4], const Sluice__V1__Envelope *e)
{
    static const char prefix[] = "sluice.v1.Inference/";
    Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;
    const answer *a = answers;

    while (a->method && strcmp(a->method, e->method + sizeof prefix - 1) != 0)
        a++;
    reply.code = a->method ? a->code : 12;
    reply.message = a->method ? (a->message ? a->message : "") : "there is no such method";
    reply.refusal = a->refusal;
    if (a->method && a->reply) {
        reply.payload.len = protobuf_c_message_get_packed_size(a->reply);
        reply.payload.data = malloc(reply.payload.len + 1);
        protobuf_c_message_pack(a->reply, reply.payload.data);
    }
    server_reply(fd, id, &reply);
    free(reply.payload.data);
}

static void serve_answers(server *s, int fd, int connection)
{
    Sluice__V1__Envelope *e = NULL;
    uint8_t id[4];

    (void)connection;
    if (!server_greet(s, fd))
        return;
    while ((e = server_request(s, fd, id))) {
        asked_bytes = e->payload.len < sizeof asked ? e->payload.len : 0;
        if (asked_bytes > 0)
            memcpy(asked, e->payload.data, asked_bytes);
        pthread_mutex_lock(&lock);
        answer_one(fd, id, e);
        pthread_mutex_unlock(&lock);
        sluice__v1__envelope__free_unpacked(e, NULL);
    }
}

/* ---- the command ---- */

enum { OUTPUT_BYTES = 64 << 10 };

typedef struct {
    int code;
    char out[OUTPUT_BYTES]; /* stdout and stderr */
} outcome;

/* socket NULL: a command that needs none. */
static void run_at(outcome *o, const char *socket, const char *words)
{
    char line[1024];

    snprintf(line, sizeof line, "'%s' %s%s%s 2>&1 </dev/null", SL_COMMAND, words,
             socket ? " --socket " : "", socket ? socket : "");
    FILE *f = popen(line, "r");
    SL_CHECK(f != NULL);
    const size_t n = fread(o->out, 1, sizeof o->out - 1, f);
    o->out[n] = 0;
    const int status = pclose(f);
    o->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void run_with(outcome *o, const answer *list, const char *words)
{
    server s;

    answers = list;
    server_start(&s, serve_answers);
    run_at(o, s.path, words);
    server_end(&s);
}

/* list NULL: without a server. */
static void expect(const answer *list, const char *words, int code, const char *const *parts)
{
    static outcome o;

    if (list)
        run_with(&o, list, words);
    else
        run_at(&o, NULL, words);
    if (o.code != code)
        fail_msg("`%s` ended with %d, expected %d:\n%s", words, o.code, code, o.out);
    for (; *parts; parts++)
        if (!strstr(o.out, *parts))
            fail_msg("`%s` did not say \"%s\":\n%s", words, *parts, o.out);
}

#define PARTS(...) ((const char *const[]){ __VA_ARGS__, NULL })

/* ---- tests ---- */

SL_TEST(switch_shows_its_three_steps)
{
    Sluice__V1__SwitchModelReply reply = SLUICE__V1__SWITCH_MODEL_REPLY__INIT;
    Sluice__V1__SwitchStep steps[3], *list[3];
    Sluice__V1__Receipt receipt = SLUICE__V1__RECEIPT__INIT;
    Sluice__V1__ComponentBytes part = SLUICE__V1__COMPONENT_BYTES__INIT, *parts = &part;
    const answer ok[] = { { .method = "SwitchModel", .reply = &reply.base }, { .method = NULL } };
    static char *const names[] = { "release", "load", "check" };

    for (size_t i = 0; i < SL_COUNT(steps); i++) {
        sluice__v1__switch_step__init(&steps[i]);
        steps[i].name = names[i];
        steps[i].duration_ns = (int64_t)(i + 1) * SL_NS_PER_S;
        steps[i].free_before_bytes = 1000 + i;
        steps[i].free_after_bytes = 2000 + i;
        steps[i].peak_bytes = 3000 + i;
        list[i] = &steps[i];
    }
    part.model = "b";
    part.component = SLUICE__V1__COMPONENT__DIT;
    part.planned_bytes = part.measured_bytes = 4096;
    receipt.n_components = 1;
    receipt.components = &parts;
    steps[1].receipt = &receipt;
    reply.n_steps = 3;
    reply.steps = list;
    reply.duration_ns = 6 * SL_NS_PER_S;

    expect(ok, "switch b --hard --now -p int8", 0,
           PARTS("release", "load", "check", "1,000", "2,002", "3,001", "b/dit", "4,096", "6.0 s"));
    Sluice__V1__SwitchModelRequest *r =
        sluice__v1__switch_model_request__unpack(NULL, asked_bytes, asked);
    SL_CHECK(r && strcmp(r->model, "b") == 0 && r->now && r->release == SLUICE__V1__RELEASE__HARD);
    SL_CHECK(r->precision == SLUICE__V1__PRECISION__INT8);
    sluice__v1__switch_model_request__free_unpacked(r, NULL);
    expect(ok, "switch b --json", 0, PARTS("{\"steps\":[{\"name\":\"release\""));

    receipt.residue_bytes = -7; /* bytes that did not come back */
    expect(ok, "switch b", 1, PARTS("residue"));
    expect(ok, "switch b --soft --full", 2, PARTS("only one of"));
    expect(ok, "switch", 2, PARTS("needs MODEL"));
}

SL_TEST(what_the_daemon_cannot_do_is_said)
{
    static const struct {
        const char *name, *words;
    } commands[] = {
        { "switch", "switch m" },   { "trim", "trim" },     { "reset", "reset --hard" },
        { "drain", "drain" },       { "reload", "reload" }, { "doctor", "doctor" },
        { "explain", "explain j" }, { "events", "events" }, { "clean", "clean --older-than 7d" },
    };
    const answer none[] = { { .method = NULL } };

    for (size_t i = 0; i < SL_COUNT(commands); i++) {
        char said[64], json[64];

        snprintf(said, sizeof said, "this daemon cannot do `%s`", commands[i].name);
        expect(none, commands[i].words, 1, PARTS(said));
        snprintf(json, sizeof json, "%s --json", commands[i].words);
        expect(none, json, 1, PARTS("\"code\":\"UNIMPLEMENTED\"", "\"exit_code\":1"));
    }
    expect(none, "top --once", 1, PARTS("this daemon cannot do `top`"));
}

SL_TEST(doctor_tells_what_to_do)
{
    Sluice__V1__DoctorReply reply = SLUICE__V1__DOCTOR_REPLY__INIT;
    Sluice__V1__DoctorLine a = SLUICE__V1__DOCTOR_LINE__INIT, b = a, *lines[] = { &a, &b };
    const answer ok[] = { { .method = "Doctor", .reply = &reply.base }, { .method = NULL } };

    a.check = "ledger";
    a.ok = b.ok = reply.ok = 1;
    a.text = "sums to the byte";
    b.check = "disk";
    b.text = "12 GiB free";
    reply.n_lines = 2;
    reply.lines = lines;
    expect(ok, "doctor", 0, PARTS("OK       ledger", "sums to the byte", "12 GiB free"));
    b.ok = reply.ok = 0;
    b.advice = "sluice clean";
    expect(ok, "doctor", 1, PARTS("NOT OK   disk", "do: sluice clean"));
    expect(ok, "doctor --json", 1, PARTS("\"ok\":false}"));
    reply.ok = 1; /* contradicts its own line */
    expect(ok, "doctor", 1, PARTS("NOT OK"));
}

SL_TEST(small_administration)
{
    Sluice__V1__DrainReply drain = SLUICE__V1__DRAIN_REPLY__INIT;
    Sluice__V1__ResetDeviceReply reset = SLUICE__V1__RESET_DEVICE_REPLY__INIT;
    Sluice__V1__ReloadConfigReply reload = SLUICE__V1__RELOAD_CONFIG_REPLY__INIT;
    Sluice__V1__CleanOutputsReply clean = SLUICE__V1__CLEAN_OUTPUTS_REPLY__INIT;
    Sluice__V1__TrimMemoryReply trim = SLUICE__V1__TRIM_MEMORY_REPLY__INIT;
    char *names[] = { "job-1.mp4" }, *changed[] = { "budget" };
    const answer ok[] = { { .method = "Drain", .reply = &drain.base },
                          { .method = "ResetDevice", .reply = &reset.base },
                          { .method = "ReloadConfig", .reply = &reload.base },
                          { .method = "CleanOutputs", .reply = &clean.base },
                          { .method = "TrimMemory", .reply = &trim.base },
                          { .method = NULL } };

    drain.running_jobs = 1;
    drain.queued_jobs = 4;
    expect(ok, "drain", 0, PARTS("no more jobs", "1 running, 4 queued"));
    expect(ok, "drain --off", 0, PARTS("admitted again"));
    reset.old_pid = 11;
    reset.new_pid = 12;
    expect(ok, "reset --hard", 0, PARTS("worker 11 ended, worker 12"));
    expect(ok, "reset", 2, PARTS("--hard"));
    expect(ok, "reload", 0, PARTS("nothing has changed"));
    reload.n_changed = 1;
    reload.changed = changed;
    expect(ok, "reload", 0, PARTS("changed: budget"));
    expect(ok, "trim", 0, PARTS("nothing to do"));
    clean.files = 1;
    clean.bytes = 1234567;
    clean.n_names = 1;
    clean.names = names;
    expect(ok, "clean", 2, PARTS("--older-than"));
    expect(ok, "clean --older-than 7w", 2, PARTS("90s, 15m, 2h or 7d"));
    expect(ok, "clean --older-than 7d --dry-run", 0,
           PARTS("job-1.mp4", "1,234,567 bytes would be removed"));
    Sluice__V1__CleanOutputsRequest *r =
        sluice__v1__clean_outputs_request__unpack(NULL, asked_bytes, asked);
    SL_CHECK(r && r->dry_run && r->older_than_ns == 7 * 86400 * SL_NS_PER_S);
    sluice__v1__clean_outputs_request__free_unpacked(r, NULL);
}

SL_TEST(options_of_load_unload_and_generate_arrive)
{
    Sluice__V1__LoadModelReply load = SLUICE__V1__LOAD_MODEL_REPLY__INIT;
    Sluice__V1__UnloadModelReply unload = SLUICE__V1__UNLOAD_MODEL_REPLY__INIT;
    Sluice__V1__GenerateReply generate = SLUICE__V1__GENERATE_REPLY__INIT;
    Sluice__V1__Job job = SLUICE__V1__JOB__INIT;
    const answer ok[] = { { .method = "LoadModel", .reply = &load.base },
                          { .method = "UnloadModel", .reply = &unload.base },
                          { .method = "Generate", .reply = &generate.base },
                          { .method = NULL } };

    expect(ok, "load m --residency host --no-pin", 0, PARTS("nothing to do"));
    Sluice__V1__LoadModelRequest *l =
        sluice__v1__load_model_request__unpack(NULL, asked_bytes, asked);
    SL_CHECK(l && l->residency == SLUICE__V1__RESIDENCY__HOST && l->no_pin);
    sluice__v1__load_model_request__free_unpacked(l, NULL);
    expect(ok, "load m --residency disk", 2, PARTS("device or host"));

    expect(ok, "unload m --full --now", 0, PARTS("nothing to do"));
    Sluice__V1__UnloadModelRequest *u =
        sluice__v1__unload_model_request__unpack(NULL, asked_bytes, asked);
    SL_CHECK(u && u->release == SLUICE__V1__RELEASE__FULL && u->now);
    sluice__v1__unload_model_request__free_unpacked(u, NULL);

    job.job_id = "j1";
    generate.job = &job;
    expect(ok, "generate x -m m -d --priority 7 --deadline 15m --streaming on", 0, PARTS("j1"));
    Sluice__V1__GenerateRequest *g = sluice__v1__generate_request__unpack(NULL, asked_bytes, asked);
    SL_CHECK(g && g->priority == 7 && g->deadline_ns == 900 * SL_NS_PER_S);
    SL_CHECK(g->streaming == SLUICE__V1__STREAMING__ON);
    sluice__v1__generate_request__free_unpacked(g, NULL);
    expect(ok, "generate x -m m -d --streaming maybe", 2, PARTS("auto, off or on"));
}

SL_TEST(a_missed_deadline_is_a_refusal)
{
    Sluice__V1__Refusal refusal = SLUICE__V1__REFUSAL__INIT;
    const answer late[] = { { .method = "Generate",
                              .code = 4,
                              .message = "not before the deadline",
                              .refusal = &refusal },
                            { .method = NULL } };

    refusal.estimate_ns = 120 * SL_NS_PER_S;
    refusal.deadline_ns = 60 * SL_NS_PER_S;
    expect(late, "generate x -m m -d --deadline 1m", 7,
           PARTS("it would take 2 min 00 s", "the deadline is in 60.0 s"));
}

SL_TEST(events_in_their_order)
{
    Sluice__V1__WatchEventsReply reply = SLUICE__V1__WATCH_EVENTS_REPLY__INIT;
    Sluice__V1__ServerEvent a = SLUICE__V1__SERVER_EVENT__INIT, b = a, *events[] = { &a, &b };
    const answer ok[] = { { .method = "WatchEvents", .reply = &reply.base }, { .method = NULL } };
    static outcome o;

    a.seq = 4;
    a.kind = "load_done";
    a.text = "model=m";
    b.seq = 5;
    b.kind = "worker_exit";
    b.text = "pid=3";
    reply.n_events = 2;
    reply.events = events;
    expect(ok, "events", 0, PARTS("load_done", "model=m", "worker_exit"));
    run_with(&o, ok, "events --json"); /* each event once, though the server repeats them */
    SL_CHECK(o.code == 0 && strncmp(o.out, "{\"event\":{\"seq\":4,", 18) == 0);
    const char *second = strchr(o.out, '\n');
    SL_CHECK(second && strncmp(second + 1, "{\"event\":{\"seq\":5,", 18) == 0);
    SL_CHECK(strchr(second + 1, '\n')[1] == 0);
}

/* It goes on until Ctrl-C, asks a server that does not wait about once a second,
 * and takes events that are counted from 1 again as new. */
SL_TEST(events_are_followed)
{
    Sluice__V1__WatchEventsReply reply = SLUICE__V1__WATCH_EVENTS_REPLY__INIT;
    Sluice__V1__ServerEvent a = SLUICE__V1__SERVER_EVENT__INIT, b = a, *events[] = { &a, &b };
    const answer ok[] = { { .method = "WatchEvents", .reply = &reply.base }, { .method = NULL } };
    char line[256];
    static outcome o;
    server s;

    a.seq = 9;
    a.kind = "first";
    b.seq = 1;
    b.kind = "again";
    reply.n_events = 1;
    reply.events = events;
    answers = ok;
    server_start(&s, serve_answers);
    /* timeout(1) sends the signal twice and SIGCONT behind it.  One that comes
     * while the leak checker of a sanitizer build stops the process hangs both. */
    snprintf(line, sizeof line,
             "ASAN_OPTIONS=detect_leaks=0 timeout -s INT --preserve-status 3 '%s' events --follow "
             "--socket %s 2>&1",
             SL_COMMAND, s.path);
    FILE *f = popen(line, "r");
    SL_CHECK(f != NULL && fgets(o.out, sizeof o.out, f) && strstr(o.out, "first"));
    answers_turn(&reply, &events[1]);
    SL_CHECK(fgets(o.out, sizeof o.out, f) && strstr(o.out, "again"));
    SL_CHECK(!fgets(o.out, sizeof o.out, f));
    const int status = pclose(f);
    server_end(&s);
    SL_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    SL_CHECK(atomic_load(&s.requests) <= 8);
}

/* Everything that a terminal could obey. */
static bool is_harmless(const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if ((*p < 0x20 && *p != '\n') || *p == 0x7f || (p[0] == 0xc2 && p[1] < 0xa0))
            return false;
    return true;
}

SL_TEST(the_daemons_words_cannot_command_a_terminal)
{
    static char evil[] = "a\x1b]0;owned\x07\x1b[2J\r\nb\x7f\xc2\x9b"
                         "31m\tc \xc3\xa9";
    Sluice__V1__ExplainJobReply explain = SLUICE__V1__EXPLAIN_JOB_REPLY__INIT;
    Sluice__V1__GetMemoryStatsReply stats = SLUICE__V1__GET_MEMORY_STATS_REPLY__INIT;
    Sluice__V1__DeviceMemory device = SLUICE__V1__DEVICE_MEMORY__INIT, *devices = &device;
    Sluice__V1__ComponentBytes part = SLUICE__V1__COMPONENT_BYTES__INIT, *parts = &part;
    Sluice__V1__Refusal refusal = SLUICE__V1__REFUSAL__INIT;
    Sluice__V1__Holding holding = SLUICE__V1__HOLDING__INIT, *holdings = &holding;
    Sluice__V1__Job job = SLUICE__V1__JOB__INIT;
    char *lines[] = { evil };
    const answer all[] = {
        { .method = "ExplainJob", .reply = &explain.base },
        { .method = "GetMemoryStats", .reply = &stats.base },
        { .method = "GetJob", .code = 5, .message = evil },
        { .method = "PlanJob", .code = 8, .message = evil, .refusal = &refusal },
        { .method = NULL },
    };
    static const char *const commands[] = { "explain j", "stats", "job j", "plan -m m" };
    static outcome o;

    job.message = job.job_id = job.model = evil;
    explain.job = &job;
    explain.n_lines = 1;
    explain.lines = lines;
    part.model = device.device = evil;
    device.n_components = 1;
    device.components = &parts;
    stats.n_devices = 1;
    stats.devices = &devices;
    refusal.after = refusal.table_rule = holding.what = evil;
    refusal.n_held_by = 1;
    refusal.held_by = &holdings;
    for (size_t i = 0; i < SL_COUNT(commands); i++) {
        char json[64];

        run_with(&o, all, commands[i]);
        if (!is_harmless(o.out) || !strstr(o.out, "owned") || !strstr(o.out, "c \xc3\xa9"))
            fail_msg("`%s` wrote:\n%s", commands[i], o.out);
        snprintf(json, sizeof json, "%s --json", commands[i]);
        run_with(&o, all, json);
        const bool whole = /* the library blanks an error's message, nothing else */
            strcmp(commands[i], "job j") == 0 ||
            strstr(o.out, "a\\u001b]0;owned\\u0007\\u001b[2J\\r\\nb\\u007f\\u009b31m\\tc \xc3\xa9");
        if (!is_harmless(o.out) || !whole)
            fail_msg("`%s` wrote:\n%s", json, o.out);
    }
}

/* ---- budget, which asks nobody ---- */

#define BUDGET_14B "budget --model wan2.1-t2v-14b --resolution 480p --frames 81 "

SL_TEST(budget_in_words)
{
    expect(NULL, BUDGET_14B "-p int8 --device cuda:24GiB --streaming off", 0,
           PARTS("in int8", "take turns", "above 16GiB, below 40GiB", "fits\n"));
    expect(NULL, BUDGET_14B "-p int8 --device 16GiB --streaming off", 3,
           PARTS("up to 16GiB", "is not resident as a whole", "can never fit"));
    expect(NULL, BUDGET_14B "-p int8 --device 12GiB", 0,
           PARTS("streamed", "host memory, for streaming", "expected slowdown", "fits with"));
    expect(NULL, BUDGET_14B "--device 48GiB", 3,
           PARTS("linears of 14B-class DiTs are quantised",
                 "nearest that fits: 832x480, 81 frames, "
                 "int8"));
    expect(NULL, "budget -m wan2.2-i2v-a14b -p int8 -r 720p --device 40GiB --streaming off", 0,
           PARTS("encode_image", "dit_high", "dit_low"));
    expect(NULL, BUDGET_14B "-p int8 --attention sagesla --device 24GiB", 0, PARTS("sagesla"));
    expect(NULL, BUDGET_14B "--device 12GiB --json", 0,
           PARTS("\"streamed\":[\"text_encoder\",\"dit\"]", "\"attention\":\"dense\"",
                 "\"by_phase\":"));
}

SL_TEST(budget_says_what_is_wrong)
{
    expect(NULL, "budget", 1, PARTS("--model", "--table"));
    expect(NULL, BUDGET_14B "--device cuda:0", 1, PARTS("is not known here"));
    expect(NULL, BUDGET_14B "--device gpu", 1, PARTS("gpu"));
    expect(NULL, BUDGET_14B "--attention full", 1, PARTS("dense, sla or sagesla"));
    expect(NULL, BUDGET_14B "--precision fp4", 1, PARTS("f32, bf16, int8 or fp8"));
    expect(NULL, BUDGET_14B "--streaming x", 1, PARTS("auto, off or on"));
    expect(NULL, "budget --table --model nothing", 1, PARTS("nothing"));
}

SL_TEST(budget_as_a_table)
{
    expect(NULL, "budget --table", 0,
           PARTS("wan2.1-t2v-1.3b", "wan2.2-i2v-a14b", "140GiB", "never [1]", "streams 1.",
                 "[1] row \"40GiB to below 80GiB\""));
    expect(NULL, "budget --table -m wan2.1-t2v-14b -r 720p -p bf16 --device 48GiB --json", 0,
           PARTS("{\"cells\":[{\"model\":\"wan2.1-t2v-14b\",\"width\":1280,",
                 "\"device_bytes\":51539607552,\"answer\":\"never\"",
                 "\"table_row\":\"40GiB to below 80GiB\",\"table_rule\":\"the linears"));
}

/* ---- stats and top ---- */

typedef struct {
    Sluice__V1__HealthReply health;
    Sluice__V1__GetMemoryStatsReply stats;
    Sluice__V1__ListJobsReply jobs;
    Sluice__V1__DeviceMemory device, *devices;
    Sluice__V1__HostMemory host;
    Sluice__V1__HourPeak hour, *hours;
    Sluice__V1__ComponentBytes part, *parts;
    Sluice__V1__Job job[2], *job_list[2];
    answer answers[4];
} busy;

static void make_busy(busy *b)
{
    sluice__v1__health_reply__init(&b->health);
    sluice__v1__get_memory_stats_reply__init(&b->stats);
    sluice__v1__list_jobs_reply__init(&b->jobs);
    sluice__v1__device_memory__init(&b->device);
    sluice__v1__host_memory__init(&b->host);
    sluice__v1__hour_peak__init(&b->hour);
    sluice__v1__component_bytes__init(&b->part);
    b->health.ready = 1;
    b->health.status = "ok";
    b->health.version = "1.2.3";
    b->health.running_jobs = b->health.queued_jobs = 1;
    b->part.model = "m";
    b->part.component = SLUICE__V1__COMPONENT__DIT;
    b->part.measured_bytes = b->part.planned_bytes = 600;
    b->part.host_bytes = 590;
    b->part.users = 1;
    b->parts = &b->part;
    b->hour.hour_ns = 1700000000 * SL_NS_PER_S;
    b->hour.peak_bytes = 777777;
    b->hour.jobs = 3;
    b->hours = &b->hour;
    b->host.limit_bytes = 1000;
    b->host.used_bytes = 590;
    b->host.free_bytes = 410;
    b->device.device = "cpu:1000";
    b->device.total_bytes = 1000;
    b->device.weights_bytes = 600;
    b->device.free_bytes = 400;
    b->device.worker_up = 1;
    b->device.worker_pid = 42;
    b->device.n_components = b->device.n_history = 1;
    b->device.components = &b->parts;
    b->device.host = &b->host;
    b->device.history = &b->hours;
    b->devices = &b->device;
    b->stats.n_devices = 1;
    b->stats.devices = &b->devices;
    for (int i = 0; i < 2; i++) {
        sluice__v1__job__init(&b->job[i]);
        b->job[i].job_id = i ? "waits" : "runs";
        b->job[i].model = "m";
        b->job_list[i] = &b->job[1 - i]; /* newest first */
    }
    b->job[0].state = SLUICE__V1__JOB_STATE__DENOISING;
    b->job[0].step = 2;
    b->job[0].step_count = 4;
    b->job[1].state = SLUICE__V1__JOB_STATE__QUEUED;
    b->job[1].position = 1;
    b->jobs.n_jobs = 2;
    b->jobs.jobs = b->job_list;
    b->answers[0] = (answer){ .method = "Health", .reply = &b->health.base };
    b->answers[1] = (answer){ .method = "GetMemoryStats", .reply = &b->stats.base };
    b->answers[2] = (answer){ .method = "ListJobs", .reply = &b->jobs.base };
    b->answers[3] = (answer){ .method = NULL };
}

SL_TEST(stats_show_the_host_tier_and_the_hours)
{
    busy b;

    make_busy(&b);
    expect(b.answers, "stats", 0, PARTS("host tier, used", "590", "410", "777,777", "HOUR"));
    b.host.free_bytes = 409;
    expect(b.answers, "stats", 1, PARTS("NOT THE SUM"));
}

SL_TEST(top_shows_one_frame)
{
    static outcome o;
    busy b;

    make_busy(&b);
    expect(b.answers, "top --once", 0,
           PARTS("sluiced 1.2.3", "worker 42", "[########################................]",
                 "59.0 %", "m/dit", "in use", "denoising, step 2 of 4", "queued, position 1",
                 "1 running, 1 queued"));
    run_with(&o, b.answers, "top --once");
    SL_CHECK(strstr(o.out, "runs") < strstr(o.out, "waits"));
    SL_CHECK(!strchr(o.out, '\x1b'));
    expect(b.answers, "top --json", 0,
           PARTS("{\"health\":{\"ready\":true", "\"devices\":[{", "\"jobs\":[{"));
    expect(b.answers, "top", 2, PARTS("--once"));
}

/* The live view in a terminal of 60 columns, ended by `how`: a key or a signal. */
static int watch_top(const char *socket, const char *how, char *out, size_t out_bytes)
{
    const struct winsize size = { .ws_row = 24, .ws_col = 60 };
    size_t used = 0;
    int status = 0, fd = -1;
    bool told = false;
    const pid_t pid = forkpty(&fd, NULL, NULL, &size);

    SL_CHECK(pid >= 0);
    if (pid == 0) {
        execl(SL_COMMAND, SL_COMMAND, "top", "--socket", socket, (char *)NULL);
        _exit(99);
    }
    for (ssize_t n = 1; n > 0;) {
        struct pollfd ready = { .fd = fd, .events = POLLIN };
        if (poll(&ready, 1, 20000) <= 0) {
            kill(pid, SIGKILL);
            break;
        }
        n = read(fd, out + used, out_bytes - 1 - used);
        used += n > 0 ? (size_t)n : 0;
        out[used] = 0;
        if (!told && strstr(out, "q: quit")) {
            told = true;
            SL_CHECK(write(fd, how, 1) == 1);
        }
    }
    SL_CHECK(waitpid(pid, &status, 0) == pid);
    close(fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

SL_TEST(top_lives_in_a_terminal_and_leaves_it_as_it_was)
{
    static const char *const ends[] = { "q", "\x03" /* Ctrl-C */ };
    static char out[OUTPUT_BYTES];
    busy b;

    make_busy(&b);
    for (size_t i = 0; i < SL_COUNT(ends); i++) {
        server s;

        answers = b.answers;
        server_start(&s, serve_answers);
        SL_CHECK(watch_top(s.path, ends[i], out, sizeof out) == 0);
        server_end(&s);
        SL_CHECK(strstr(out, "\x1b[?1049h\x1b[?25l") && strstr(out, "\x1b[?25h\x1b[?1049l"));
        SL_CHECK(strstr(out, "denoising, step 2 of 4"));
        for (const char *line = out; (line = strstr(line, "\r\n")); line += 2) {
            const char *end = strstr(line + 2, "\x1b[K");
            SL_CHECK(!end || end - (line + 2) <= 60);
        }
    }
}

SL_TEST_MAIN(SL_RUN(switch_shows_its_three_steps), SL_RUN(what_the_daemon_cannot_do_is_said),
             SL_RUN(doctor_tells_what_to_do), SL_RUN(small_administration),
             SL_RUN(options_of_load_unload_and_generate_arrive),
             SL_RUN(a_missed_deadline_is_a_refusal), SL_RUN(events_in_their_order),
             SL_RUN(events_are_followed), SL_RUN(the_daemons_words_cannot_command_a_terminal),
             SL_RUN(budget_in_words), SL_RUN(budget_says_what_is_wrong), SL_RUN(budget_as_a_table),
             SL_RUN(stats_show_the_host_tier_and_the_hours), SL_RUN(top_shows_one_frame),
             SL_RUN(top_lives_in_a_terminal_and_leaves_it_as_it_was))
