#include "service/store.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUSY_MS = 5000, LOG_PAGES = 1000 };

/* Tables of version 1.  A later version adds its changes to `upgrades` and never
 * touches what is here. */
static const char schema_1[] =
    "CREATE TABLE schema (version INTEGER NOT NULL);"
    "INSERT INTO schema VALUES (1);"
    "CREATE TABLE jobs ("
    " number INTEGER PRIMARY KEY AUTOINCREMENT,"
    " job_id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, request_id TEXT NOT NULL,"
    " model TEXT NOT NULL, model_path TEXT NOT NULL, table_row TEXT NOT NULL,"
    " body_hash BLOB NOT NULL, request BLOB NOT NULL, plan BLOB NOT NULL, ids BLOB,"
    " workspace_bytes INTEGER NOT NULL, reserved_output_bytes INTEGER NOT NULL,"
    " submitted_ns INTEGER NOT NULL,"
    " state INTEGER NOT NULL, ended INTEGER NOT NULL, cancel_asked INTEGER NOT NULL,"
    " step INTEGER NOT NULL, step_count INTEGER NOT NULL, attempt INTEGER NOT NULL,"
    " started_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL, run_ns INTEGER NOT NULL,"
    " status INTEGER NOT NULL, message TEXT NOT NULL,"
    " measured_peak_bytes INTEGER NOT NULL, device_before_bytes INTEGER NOT NULL,"
    " device_after_bytes INTEGER NOT NULL,"
    " output_size_bytes INTEGER NOT NULL, output_sha256 TEXT NOT NULL,"
    " resumed_from_step INTEGER NOT NULL, last_seq INTEGER NOT NULL, UNIQUE (owner, request_id));"
    "CREATE TABLE events ("
    " job_id TEXT NOT NULL, seq INTEGER NOT NULL, time_ns INTEGER NOT NULL,"
    " state INTEGER NOT NULL, step INTEGER NOT NULL, step_count INTEGER NOT NULL,"
    " position INTEGER NOT NULL, text TEXT NOT NULL,"
    " PRIMARY KEY (job_id, seq)) WITHOUT ROWID;"
    "CREATE TABLE lines ("
    " number INTEGER PRIMARY KEY, job_id TEXT NOT NULL, time_ns INTEGER NOT NULL,"
    " text TEXT NOT NULL);"
    "CREATE INDEX lines_of_job ON lines (job_id, number);"
    "CREATE TABLE peaks ("
    " hour_ns INTEGER PRIMARY KEY, peak_bytes INTEGER NOT NULL,"
    " host_peak_bytes INTEGER NOT NULL, jobs INTEGER NOT NULL);";

#define FIXED_COLUMNS                                                                              \
    "job_id, owner, request_id, model, model_path, table_row, body_hash, request, plan, ids, "     \
    "workspace_bytes, reserved_output_bytes, submitted_ns"
#define STANDING_COLUMNS                                                                           \
    "state, ended, cancel_asked, step, step_count, attempt, started_ns, ended_ns, run_ns, "        \
    "status, message, measured_peak_bytes, device_before_bytes, device_after_bytes, "              \
    "output_size_bytes, output_sha256, resumed_from_step, last_seq"

enum { FIXED_COUNT = 13 };

typedef enum {
    BEGIN,
    COMMIT,
    ROLLBACK,
    ADD_JOB,
    UPDATE_JOB,
    DROP_IDS,
    SET_PLAN,
    REMOVE_JOB,
    REMOVE_EVENTS,
    REMOVE_LINES,
    ADD_EVENT,
    TRIM_EVENTS,
    ADD_LINE,
    NOTE_PEAK,
    FORGET_PEAKS,
    EACH_JOB,
    EACH_EVENT,
    EACH_LINE,
    EACH_PEAK,
    STATEMENT_COUNT
} statement;

static const char *const statements[STATEMENT_COUNT] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
    [ADD_JOB] = "INSERT INTO jobs (" FIXED_COLUMNS ", " STANDING_COLUMNS ") VALUES"
                " (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,"
                "?22,?23,?24,?25,?26,?27,?28,?29,?30,?31)",
    [UPDATE_JOB] = "UPDATE jobs SET (" STANDING_COLUMNS ") ="
                   " (?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)"
                   " WHERE job_id = ?1",
    [DROP_IDS] = "UPDATE jobs SET ids = NULL WHERE job_id = ?1 AND ids IS NOT NULL",
    [SET_PLAN] = "UPDATE jobs SET plan = ?2 WHERE job_id = ?1",
    [REMOVE_JOB] = "DELETE FROM jobs WHERE job_id = ?1",
    [REMOVE_EVENTS] = "DELETE FROM events WHERE job_id = ?1",
    [REMOVE_LINES] = "DELETE FROM lines WHERE job_id = ?1",
    [ADD_EVENT] = "INSERT INTO events VALUES (?1,?2,?3,?4,?5,?6,?7,?8)",
    [TRIM_EVENTS] = "DELETE FROM events WHERE job_id = ?1 AND seq <= ?2",
    [ADD_LINE] = "INSERT INTO lines (job_id, time_ns, text) VALUES (?1,?2,?3)",
    [NOTE_PEAK] = "INSERT INTO peaks VALUES (?1,?2,?3,?4) ON CONFLICT (hour_ns) DO UPDATE SET"
                  " peak_bytes = max(peak_bytes, excluded.peak_bytes),"
                  " host_peak_bytes = max(host_peak_bytes, excluded.host_peak_bytes),"
                  " jobs = excluded.jobs",
    [FORGET_PEAKS] = "DELETE FROM peaks WHERE hour_ns < ?1",
    [EACH_JOB] = "SELECT " FIXED_COLUMNS ", " STANDING_COLUMNS " FROM jobs ORDER BY number",
    [EACH_EVENT] = "SELECT seq, time_ns, state, step, step_count, position, text FROM events"
                   " WHERE job_id = ?1 ORDER BY seq",
    [EACH_LINE] = "SELECT time_ns, text FROM lines WHERE job_id = ?1 ORDER BY number",
    [EACH_PEAK] = "SELECT hour_ns, peak_bytes, host_peak_bytes, jobs FROM peaks"
                  " ORDER BY hour_ns DESC LIMIT ?1",
};

struct sl_store {
    sqlite3 *db;
    sqlite3_stmt *prepared[STATEMENT_COUNT];
    char *path;
    bool syncs; /* commits, at the moment */
};

/* --- failures --- */

/* What SQLite has just said, for an operator.  what: "keep job 4f2a". */
static sl_status fail_sqlite(const sl_store *store, const char *what, sl_error *err)
{
    const int code = sqlite3_extended_errcode(store->db);

    switch (code & 0xff) {
    case SQLITE_FULL:
        return sl_fail(err, SL_ERR_IO, "could not %s in \"%s\": the disk is full", what,
                       store->path);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return sl_fail(err, SL_ERR_DATA,
                       "could not %s: the job store \"%s\" is damaged (%s); move it and its -wal "
                       "file away to start without the jobs in it, or put a copy back",
                       what, store->path, sqlite3_errmsg(store->db));
    case SQLITE_NOMEM:
        return sl_fail(err, SL_ERR_NO_MEMORY, "could not %s in \"%s\": out of memory", what,
                       store->path);
    case SQLITE_BUSY:
        return sl_fail(err, SL_ERR_IO,
                       "could not %s in \"%s\": another process has had it locked for %d s", what,
                       store->path, BUSY_MS / 1000);
    case SQLITE_CONSTRAINT:
        return sl_fail(err, SL_ERR_EXISTS, "could not %s in \"%s\": %s", what, store->path,
                       sqlite3_errmsg(store->db));
    default:
        return sl_fail(err, SL_ERR_IO, "could not %s in \"%s\": %s (%d%s%s)", what, store->path,
                       sqlite3_errmsg(store->db), code, sqlite3_system_errno(store->db) ? ", " : "",
                       sqlite3_system_errno(store->db) ? strerror(sqlite3_system_errno(store->db))
                                                       : "");
    }
}

/* --- statements --- */

static void bind_text(sqlite3_stmt *stmt, int at, const char *text)
{
    sqlite3_bind_text(stmt, at, text ? text : "", -1, SQLITE_STATIC);
}

static void bind_u64(sqlite3_stmt *stmt, int at, uint64_t value)
{
    sqlite3_bind_int64(stmt, at, (sqlite3_int64)value);
}

/* Empty is an empty blob, not NULL. */
static void bind_blob(sqlite3_stmt *stmt, int at, sl_store_blob blob)
{
    if (blob.size_bytes)
        sqlite3_bind_blob64(stmt, at, blob.data, blob.size_bytes, SQLITE_STATIC);
    else
        sqlite3_bind_zeroblob(stmt, at, 0);
}

/* Runs a statement that was bound and has no rows to give. */
static sl_status finish(sl_store *store, statement which, const char *what, sl_error *err)
{
    sqlite3_stmt *stmt = store->prepared[which];
    sl_status status = SL_OK;
    int code = SQLITE_ROW;

    while (code == SQLITE_ROW)
        code = sqlite3_step(stmt);
    if (code != SQLITE_DONE)
        status = fail_sqlite(store, what, err);
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt); /* what they point to is the caller's */
    return status;
}

static sl_status finish_for_job(sl_store *store, statement which, const char *job_id, sl_error *err)
{
    char what[120];

    snprintf(what, sizeof what, "keep job %.80s", job_id);
    return finish(store, which, what, err);
}

/* --- opening --- */

static sl_status run_text(sl_store *store, const char *sql, const char *what, sl_error *err)
{
    if (sqlite3_exec(store->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return fail_sqlite(store, what, err);
    return SL_OK;
}

/* The first column of the first row as text; "" without a row. */
static sl_status query_text(sl_store *store, const char *sql, char *out, size_t out_bytes,
                            sl_error *err)
{
    sqlite3_stmt *stmt = NULL;
    sl_status status = SL_OK;
    int code = sqlite3_prepare_v2(store->db, sql, -1, &stmt, NULL);

    out[0] = '\0';
    if (code == SQLITE_OK) {
        code = sqlite3_step(stmt);
        const char *text = code == SQLITE_ROW ? (const char *)sqlite3_column_text(stmt, 0) : NULL;
        snprintf(out, out_bytes, "%s", text ? text : "");
    }
    if (code != SQLITE_OK && code != SQLITE_ROW && code != SQLITE_DONE)
        status = fail_sqlite(store, "read the job store", err);
    sqlite3_finalize(stmt);
    return status;
}

static sl_status check_whole(sl_store *store, sl_error *err)
{
    char said[200];
    sl_status status = query_text(store, "PRAGMA quick_check(1)", said, sizeof said, err);

    if (status == SL_OK && strcmp(said, "ok") != 0)
        status = sl_fail(err, SL_ERR_DATA,
                         "the job store \"%s\" is damaged (%s); move it and its -wal file away to "
                         "start without the jobs in it, or put a copy back",
                         store->path, said);
    return status;
}

/* Makes the tables of a new file; refuses those of a newer program. */
static sl_status check_version(sl_store *store, sl_error *err)
{
    char text[40];
    sl_status status = query_text(
        store, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema'", text,
        sizeof text, err);

    if (status != SL_OK)
        return status;
    if (strcmp(text, "0") == 0) {
        status = run_text(store, "BEGIN IMMEDIATE", "make the job store", err);
        if (status == SL_OK)
            status = run_text(store, schema_1, "make the job store", err);
        if (status == SL_OK)
            status = run_text(store, "COMMIT", "make the job store", err);
        return status;
    }
    status = query_text(store, "SELECT version FROM schema", text, sizeof text, err);
    if (status != SL_OK)
        return status;
    const long version = strtol(text, NULL, 10);
    if (version < 1 || version > SL_STORE_VERSION)
        return sl_fail(err, SL_ERR_DATA,
                       "the job store \"%s\" is of version %ld, this sluice knows 1 to %d: start "
                       "the newer sluice, or move the file away to start without the jobs in it",
                       store->path, version, SL_STORE_VERSION);
    return SL_OK;
}

static sl_status prepare_all(sl_store *store, sl_error *err)
{
    for (int i = 0; i < STATEMENT_COUNT; i++) {
        if (sqlite3_prepare_v3(store->db, statements[i], -1, SQLITE_PREPARE_PERSISTENT,
                               &store->prepared[i], NULL)
            != SQLITE_OK)
            return fail_sqlite(store, "prepare the job store", err);
    }
    return SL_OK;
}

/* Created here so that the mode is never wider than 0600, whatever the umask;
 * SQLite gives its -wal and -shm files the mode of the file. */
static sl_status make_file(const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return sl_fail_errno(err, "could not open the job store \"%s\"", path);
    if (fchmod(fd, 0600) != 0)
        status = sl_fail_errno(err, "could not make the job store \"%s\" private", path);
    close(fd);
    return status;
}

static sl_status set_up(sl_store *store, sl_error *err)
{
    char pragmas[120];

    snprintf(pragmas, sizeof pragmas,
             "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=%d;",
             LOG_PAGES);
    sqlite3_busy_timeout(store->db, BUSY_MS);
    store->syncs = true;
    sl_status status = check_whole(store, err);
    if (status == SL_OK)
        status = run_text(store, pragmas, "open the job store", err);
    if (status == SL_OK)
        status = check_version(store, err);
    if (status == SL_OK)
        status = prepare_all(store, err);
    return status;
}

sl_status sl_store_open(sl_store **out, const char *path, sl_error *err)
{
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_NOMUTEX;
    sl_status status = SL_OK;
    sl_store *store = calloc(1, sizeof *store);

    if (!store || !(store->path = strdup(path))) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the job store");
        goto done;
    }
    status = make_file(path, err);
    if (status != SL_OK)
        goto done;
    if (sqlite3_open_v2(path, &store->db, flags, NULL) != SQLITE_OK) {
        status = store->db ? fail_sqlite(store, "open the job store", err)
                           : sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the job store");
        goto done;
    }
    status = set_up(store, err);
    if (status != SL_OK)
        goto done;
    *out = store;
    store = NULL;
done:
    sl_store_close(store);
    return status;
}

void sl_store_close(sl_store *store)
{
    if (!store)
        return;
    for (int i = 0; i < STATEMENT_COUNT; i++)
        sqlite3_finalize(store->prepared[i]);
    sqlite3_close(store->db); /* rolls an open transaction back */
    free(store->path);
    free(store);
}

/* --- transactions --- */

sl_status sl_store_begin(sl_store *store, bool durable, sl_error *err)
{
    /* No prepared statement: this pragma acts when it is compiled. */
    if (durable != store->syncs) {
        const sl_status status = run_text(
            store, durable ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", "write", err);
        if (status != SL_OK)
            return status;
        store->syncs = durable;
    }
    return finish(store, BEGIN, "write", err);
}

sl_status sl_store_commit(sl_store *store, sl_error *err)
{
    return finish(store, COMMIT, "write", err);
}

void sl_store_rollback(sl_store *store)
{
    sl_error ignored = { .status = SL_OK };

    /* Some failures have rolled back already. */
    if (!sqlite3_get_autocommit(store->db)
        && finish(store, ROLLBACK, "undo a write", &ignored) != SL_OK)
        return;
}

/* --- writing --- */

static void bind_standing(sqlite3_stmt *stmt, int at, const sl_store_job *job)
{
    sqlite3_bind_int(stmt, at++, job->state);
    sqlite3_bind_int(stmt, at++, job->ended);
    sqlite3_bind_int(stmt, at++, job->cancel_asked);
    sqlite3_bind_int(stmt, at++, job->step);
    sqlite3_bind_int(stmt, at++, job->step_count);
    sqlite3_bind_int(stmt, at++, job->attempt);
    sqlite3_bind_int64(stmt, at++, job->started_ns);
    sqlite3_bind_int64(stmt, at++, job->ended_ns);
    sqlite3_bind_int64(stmt, at++, job->run_ns);
    sqlite3_bind_int(stmt, at++, job->status);
    bind_text(stmt, at++, job->message);
    bind_u64(stmt, at++, job->measured_peak_bytes);
    bind_u64(stmt, at++, job->device_before_bytes);
    bind_u64(stmt, at++, job->device_after_bytes);
    bind_u64(stmt, at++, job->output_size_bytes);
    bind_text(stmt, at++, job->output_sha256);
    sqlite3_bind_int(stmt, at++, job->resumed_from_step);
    bind_u64(stmt, at, job->last_seq);
}

sl_status sl_store_add_job(sl_store *store, const sl_store_job *job, sl_error *err)
{
    sqlite3_stmt *stmt = store->prepared[ADD_JOB];

    bind_text(stmt, 1, job->job_id);
    bind_text(stmt, 2, job->owner);
    bind_text(stmt, 3, job->request_id);
    bind_text(stmt, 4, job->model);
    bind_text(stmt, 5, job->model_path);
    bind_text(stmt, 6, job->table_row);
    bind_blob(stmt, 7, job->body_hash);
    bind_blob(stmt, 8, job->request);
    bind_blob(stmt, 9, job->plan);
    bind_blob(stmt, 10, job->ids);
    bind_u64(stmt, 11, job->workspace_bytes);
    bind_u64(stmt, 12, job->reserved_output_bytes);
    sqlite3_bind_int64(stmt, FIXED_COUNT, job->submitted_ns);
    bind_standing(stmt, FIXED_COUNT + 1, job);
    return finish_for_job(store, ADD_JOB, job->job_id, err);
}

sl_status sl_store_update_job(sl_store *store, const sl_store_job *job, sl_error *err)
{
    bind_text(store->prepared[UPDATE_JOB], 1, job->job_id);
    bind_standing(store->prepared[UPDATE_JOB], 2, job);
    sl_status status = finish_for_job(store, UPDATE_JOB, job->job_id, err);
    if (status == SL_OK && sqlite3_changes(store->db) != 1)
        status = sl_fail(err, SL_ERR_NOT_FOUND, "job %s is not in \"%s\"", job->job_id,
                         store->path);
    if (status != SL_OK || !job->ended)
        return status;
    bind_text(store->prepared[DROP_IDS], 1, job->job_id);
    return finish_for_job(store, DROP_IDS, job->job_id, err);
}

sl_status sl_store_set_plan(sl_store *store, const char *job_id, sl_store_blob plan, sl_error *err)
{
    bind_text(store->prepared[SET_PLAN], 1, job_id);
    bind_blob(store->prepared[SET_PLAN], 2, plan);
    return finish_for_job(store, SET_PLAN, job_id, err);
}

sl_status sl_store_remove_job(sl_store *store, const char *job_id, sl_error *err)
{
    static const statement all[] = { REMOVE_LINES, REMOVE_EVENTS, REMOVE_JOB };
    sl_status status = SL_OK;

    for (size_t i = 0; i < SL_COUNT(all) && status == SL_OK; i++) {
        bind_text(store->prepared[all[i]], 1, job_id);
        status = finish_for_job(store, all[i], job_id, err);
    }
    return status;
}

sl_status sl_store_add_event(sl_store *store, const char *job_id, const sl_store_event *event,
                             sl_error *err)
{
    sqlite3_stmt *stmt = store->prepared[ADD_EVENT];

    bind_text(stmt, 1, job_id);
    bind_u64(stmt, 2, event->seq);
    sqlite3_bind_int64(stmt, 3, event->time_ns);
    sqlite3_bind_int(stmt, 4, event->state);
    sqlite3_bind_int(stmt, 5, event->step);
    sqlite3_bind_int(stmt, 6, event->step_count);
    sqlite3_bind_int(stmt, 7, event->position);
    bind_text(stmt, 8, event->text);
    const sl_status status = finish_for_job(store, ADD_EVENT, job_id, err);
    if (status != SL_OK || event->seq <= SL_STORE_EVENTS)
        return status;
    bind_text(store->prepared[TRIM_EVENTS], 1, job_id);
    bind_u64(store->prepared[TRIM_EVENTS], 2, event->seq - SL_STORE_EVENTS);
    return finish_for_job(store, TRIM_EVENTS, job_id, err);
}

sl_status sl_store_add_line(sl_store *store, const char *job_id, int64_t time_ns, const char *text,
                            sl_error *err)
{
    bind_text(store->prepared[ADD_LINE], 1, job_id);
    sqlite3_bind_int64(store->prepared[ADD_LINE], 2, time_ns);
    bind_text(store->prepared[ADD_LINE], 3, text);
    return finish_for_job(store, ADD_LINE, job_id, err);
}

sl_status sl_store_note_peak(sl_store *store, const sl_store_peak *peak, sl_error *err)
{
    sqlite3_stmt *stmt = store->prepared[NOTE_PEAK];

    sqlite3_bind_int64(stmt, 1, peak->hour_ns);
    bind_u64(stmt, 2, peak->peak_bytes);
    bind_u64(stmt, 3, peak->host_peak_bytes);
    sqlite3_bind_int64(stmt, 4, peak->jobs);
    return finish(store, NOTE_PEAK, "keep an hour's peak", err);
}

sl_status sl_store_forget_peaks(sl_store *store, int64_t before_ns, sl_error *err)
{
    sqlite3_bind_int64(store->prepared[FORGET_PEAKS], 1, before_ns);
    return finish(store, FORGET_PEAKS, "forget old peaks", err);
}

/* --- reading --- */

static const char *get_text(sqlite3_stmt *stmt, int at)
{
    const char *text = (const char *)sqlite3_column_text(stmt, at);

    return text ? text : "";
}

static sl_store_blob get_blob(sqlite3_stmt *stmt, int at)
{
    const void *data = sqlite3_column_blob(stmt, at); /* before the size: it may convert */

    return (sl_store_blob){ data, data ? (size_t)sqlite3_column_bytes(stmt, at) : 0 };
}

static uint64_t get_u64(sqlite3_stmt *stmt, int at)
{
    return (uint64_t)sqlite3_column_int64(stmt, at);
}

static void get_job(sqlite3_stmt *stmt, sl_store_job *out)
{
    int at = FIXED_COUNT;

    *out = (sl_store_job){
        .job_id = get_text(stmt, 0),
        .owner = get_text(stmt, 1),
        .request_id = get_text(stmt, 2),
        .model = get_text(stmt, 3),
        .model_path = get_text(stmt, 4),
        .table_row = get_text(stmt, 5),
        .body_hash = get_blob(stmt, 6),
        .request = get_blob(stmt, 7),
        .plan = get_blob(stmt, 8),
        .ids = get_blob(stmt, 9),
        .workspace_bytes = get_u64(stmt, 10),
        .reserved_output_bytes = get_u64(stmt, 11),
        .submitted_ns = sqlite3_column_int64(stmt, 12),
    };
    out->state = sqlite3_column_int(stmt, at++);
    out->ended = sqlite3_column_int(stmt, at++) != 0;
    out->cancel_asked = sqlite3_column_int(stmt, at++) != 0;
    out->step = sqlite3_column_int(stmt, at++);
    out->step_count = sqlite3_column_int(stmt, at++);
    out->attempt = sqlite3_column_int(stmt, at++);
    out->started_ns = sqlite3_column_int64(stmt, at++);
    out->ended_ns = sqlite3_column_int64(stmt, at++);
    out->run_ns = sqlite3_column_int64(stmt, at++);
    out->status = sqlite3_column_int(stmt, at++);
    out->message = get_text(stmt, at++);
    out->measured_peak_bytes = get_u64(stmt, at++);
    out->device_before_bytes = get_u64(stmt, at++);
    out->device_after_bytes = get_u64(stmt, at++);
    out->output_size_bytes = get_u64(stmt, at++);
    out->output_sha256 = get_text(stmt, at++);
    out->resumed_from_step = sqlite3_column_int(stmt, at++);
    out->last_seq = get_u64(stmt, at);
}

/* One of the four kinds of say, with its argument. */
typedef struct {
    statement which;
    void *arg;
    sl_store_say_job *job;
    sl_store_say_event *event;
    sl_store_say_line *line;
    sl_store_say_peak *peak;
} reader;

static sl_status say_row(sqlite3_stmt *stmt, const reader *r, sl_error *err)
{
    sl_store_job job;
    sl_store_event event;
    sl_store_peak peak;

    switch (r->which) {
    case EACH_JOB:
        get_job(stmt, &job);
        return r->job(r->arg, &job, err);
    case EACH_EVENT:
        event = (sl_store_event){
            .seq = get_u64(stmt, 0),
            .time_ns = sqlite3_column_int64(stmt, 1),
            .state = sqlite3_column_int(stmt, 2),
            .step = sqlite3_column_int(stmt, 3),
            .step_count = sqlite3_column_int(stmt, 4),
            .position = sqlite3_column_int(stmt, 5),
            .text = get_text(stmt, 6),
        };
        return r->event(r->arg, &event, err);
    case EACH_LINE:
        return r->line(r->arg, sqlite3_column_int64(stmt, 0), get_text(stmt, 1), err);
    default:
        peak = (sl_store_peak){
            .hour_ns = sqlite3_column_int64(stmt, 0),
            .peak_bytes = get_u64(stmt, 1),
            .host_peak_bytes = get_u64(stmt, 2),
            .jobs = (uint32_t)sqlite3_column_int64(stmt, 3),
        };
        return r->peak(r->arg, &peak, err);
    }
}

static sl_status each(sl_store *store, const reader *r, sl_error *err)
{
    sqlite3_stmt *stmt = store->prepared[r->which];
    sl_status status = SL_OK;
    int code = SQLITE_ROW;

    while (status == SL_OK && (code = sqlite3_step(stmt)) == SQLITE_ROW)
        status = say_row(stmt, r, err);
    if (status == SL_OK && code != SQLITE_DONE)
        status = fail_sqlite(store, "read the job store", err);
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    return status;
}

sl_status sl_store_each_job(sl_store *store, sl_store_say_job *say, void *arg, sl_error *err)
{
    const reader r = { .which = EACH_JOB, .arg = arg, .job = say };

    return each(store, &r, err);
}

sl_status sl_store_each_event(sl_store *store, const char *job_id, sl_store_say_event *say,
                              void *arg, sl_error *err)
{
    const reader r = { .which = EACH_EVENT, .arg = arg, .event = say };

    bind_text(store->prepared[EACH_EVENT], 1, job_id);
    return each(store, &r, err);
}

sl_status sl_store_each_line(sl_store *store, const char *job_id, sl_store_say_line *say, void *arg,
                             sl_error *err)
{
    const reader r = { .which = EACH_LINE, .arg = arg, .line = say };

    bind_text(store->prepared[EACH_LINE], 1, job_id);
    return each(store, &r, err);
}

sl_status sl_store_each_peak(sl_store *store, int limit, sl_store_say_peak *say, void *arg,
                             sl_error *err)
{
    const reader r = { .which = EACH_PEAK, .arg = arg, .peak = say };

    sqlite3_bind_int(store->prepared[EACH_PEAK], 1, limit);
    return each(store, &r, err);
}
