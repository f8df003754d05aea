/* sluice.h - libsluice: talk to sluiced from a C program.
 *
 *     sl_client *client = NULL;
 *     Sluice__V1__HealthRequest request = SLUICE__V1__HEALTH_REQUEST__INIT;
 *     Sluice__V1__HealthReply *reply = NULL;
 *     if (sl_client_create(&client, NULL, &err) == SL_OK &&
 *         sl_client_health(client, &request, 5 * SL_NS_PER_S, &reply, NULL, &err) == SL_OK)
 *             puts(reply->status);
 *     sl_message_free(reply);
 *     sl_client_destroy(client);
 *
 * A client holds one connection.  It is made by the first call and made again
 * when it breaks: a request whose reply is missing is sent again, which is
 * safe because every method is idempotent.  No call outlives its deadline, and a
 * length or message from the server is checked before it is believed.
 *
 * Ownership: the caller destroys the client and frees each reply and details.
 * Threads:   any function on one client from any thread; one call at a time,
 *            so calls follow each other.  For calls side by side (a watcher and a
 *            poller) create a client for each.
 */
#ifndef SL_CLIENTS_C_SLUICE_H
#define SL_CLIENTS_C_SLUICE_H

#include "api/sluice.pb-c.h"
#include "base/clock.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SL_API_VERSION = 1 };

#define SL_CLIENT_MAX_REQUEST_BYTES ((size_t)1 << 20)
#define SL_CLIENT_MAX_REPLY_BYTES   (((size_t)4 << 20) + ((size_t)64 << 10))
#define SL_CLIENT_DEFAULT_NS        (30 * SL_NS_PER_S)

typedef struct sl_client sl_client;

/* socket_path NULL: sl_client_default_socket.  Connects to nothing yet. */
sl_status sl_client_create(sl_client **out, const char *socket_path, sl_error *err) SL_MUST_CHECK;

#define SL_TLS_SCHEME "tls+tcp://"
#define SL_IPC_SCHEME "ipc://"

/* Where a daemon is and who asks; copied. */
typedef struct {
    const char *address;     /* "tls+tcp://gpu1.lan:7437", "ipc:///run/sluice/sluice.sock", the
                                path alone; NULL: sl_client_default_socket */
    const char *ca;          /* PEM; with TLS needed: the daemon's certificate is always checked */
    const char *cert, *key;  /* PEM, of this client; NULL: none */
    const char *server_name; /* that the daemon's certificate must have; NULL: the host of address */
    const char *token;       /* NULL: none */
} sl_client_options;

/* Reads and checks the certificates; connects to nothing yet.  A call ends with
 * SL_ERR_UNAUTHENTICATED when either side does not trust the other. */
sl_status sl_client_create_with(sl_client **out, const sl_client_options *options,
                                sl_error *err) SL_MUST_CHECK;
void sl_client_destroy(sl_client *client); /* no call under way; NULL is fine */

/* Where a daemon of this user listens: <runtime>/sluice.sock, <runtime> being
 * /run/sluice for root, else $XDG_RUNTIME_DIR/sluice, without that variable
 * /tmp/sluice-<uid>; the same as in service/config.c.  Returns buf. */
char *sl_client_default_socket(char *buf, size_t buf_bytes);

/* A call that waits ends with SL_ERR_CANCELLED once fd is readable (a signal
 * handler's pipe); the fd is never read.  -1: none.  The caller keeps the fd and
 * sets it before calls start. */
void sl_client_set_interrupt(sl_client *client, int fd);

/* What a failed call knows beside its message. */
typedef struct {
    bool answered;            /* by the server; false: it could not be reached or asked */
    int code;                 /* gRPC status code; UNAVAILABLE etc. when not answered */
    int64_t retry_after_ns;   /* 0: not said */
    Sluice__V1__Reply *reply; /* NULL unless answered: ->refusal, ->field; owned */
} sl_call_details;

void sl_call_details_fini(sl_call_details *details); /* zeroes it; NULL is fine */

/* method: "sluice.v1.Inference/Health".  timeout_ns 0: SL_CLIENT_DEFAULT_NS; it
 * also tells the server how long the caller waits.  *out belongs to the caller:
 * sl_message_free.  details may be NULL; otherwise overwritten, not freed, and
 * the caller ends it whatever the status.
 * SL_ERR_UNAVAILABLE: no daemon, or it closed the connection again and again;
 * SL_ERR_TIMEOUT: the deadline; SL_ERR_DATA: not the protocol; SL_ERR_TOO_LARGE
 * and SL_ERR_BUSY: a refusal NEVER / AFTER; else the server's status. */
sl_status sl_client_call(sl_client *client, const char *method, const ProtobufCMessage *request,
                         const ProtobufCMessageDescriptor *reply_type, int64_t timeout_ns,
                         ProtobufCMessage **out, sl_call_details *details,
                         sl_error *err) SL_MUST_CHECK;

void sl_message_free(void *message); /* any reply of this library; NULL is fine */

typedef struct {
    uint64_t size_bytes;
    uint64_t resumed_bytes; /* taken over from an earlier, interrupted fetch */
    char sha256[65];        /* of the file, checked */
} sl_fetch_result;

typedef void (*sl_fetch_progress)(void *arg, uint64_t done_bytes, uint64_t size_bytes);

/* Fetches a finished job's output in chunks to "<path>.part", checks size and
 * SHA-256, syncs it and renames it to path, replacing what was there.  An
 * existing .part is continued; one that turns out to be of another file is
 * started over.  timeout_ns is for each chunk.  progress may be NULL.
 * SL_ERR_BUSY without details->answered: another fetch is writing the .part, or
 * has just renamed it. */
sl_status sl_client_fetch_file(sl_client *client, const char *job_id, const char *path,
                               int64_t timeout_ns, sl_fetch_progress progress, void *arg,
                               sl_fetch_result *out, sl_call_details *details,
                               sl_error *err) SL_MUST_CHECK;

/* The methods, typed: sl_client_generate(client, &request, timeout_ns, &reply,
 * details, err) and so on. */
#define SL_METHODS(X)                                                                              \
    X(LoadModel, load_model)                                                                       \
    X(UnloadModel, unload_model)                                                                   \
    X(ListModels, list_models)                                                                     \
    X(PlanJob, plan_job)                                                                           \
    X(Generate, generate)                                                                          \
    X(DecodeLatent, decode_latent)                                                                 \
    X(UploadInput, upload_input)                                                                   \
    X(WatchJob, watch_job)                                                                         \
    X(GetJob, get_job)                                                                             \
    X(ListJobs, list_jobs)                                                                         \
    X(CancelJob, cancel_job)                                                                       \
    X(FetchOutput, fetch_output)                                                                   \
    X(GetMemoryStats, get_memory_stats)                                                            \
    X(SwitchModel, switch_model)                                                                   \
    X(TrimMemory, trim_memory)                                                                     \
    X(ResetDevice, reset_device)                                                                   \
    X(Drain, drain)                                                                                \
    X(GetBudgetTable, get_budget_table)                                                            \
    X(ReloadConfig, reload_config)                                                                 \
    X(WatchEvents, watch_events)                                                                   \
    X(ExplainJob, explain_job)                                                                     \
    X(Doctor, doctor)                                                                              \
    X(CleanOutputs, clean_outputs)                                                                 \
    X(GetServerInfo, get_server_info)                                                              \
    X(Health, health)

#define SL_X(Name, name)                                                                           \
    SL_MUST_CHECK static inline sl_status sl_client_##name(                                        \
        sl_client *client, const Sluice__V1__##Name##Request *request, int64_t timeout_ns,         \
        Sluice__V1__##Name##Reply **out, sl_call_details *details, sl_error *err)                  \
    {                                                                                              \
        ProtobufCMessage *reply = NULL;                                                            \
        const sl_status status = sl_client_call(                                                   \
            client, "sluice.v1.Inference/" #Name, &request->base,                                  \
            &sluice__v1__##name##_reply__descriptor, timeout_ns, &reply, details, err);            \
        if (status == SL_OK)                                                                       \
            *out = (Sluice__V1__##Name##Reply *)(void *)reply;                                     \
        return status;                                                                             \
    }
SL_METHODS(SL_X)
#undef SL_X

#endif
