/* config.h - what the operator says: configuration file and flags.
 *
 * Every key is explained in docs/sluice.yaml.example.  Flags win over the file,
 * the file over the defaults.
 *
 * Ownership: init/fini, caller's storage; strings are owned by the struct.
 * Threads:   one; read-only afterwards.
 */
#ifndef SL_SERVICE_CONFIG_H
#define SL_SERVICE_CONFIG_H

#include "base/log.h"
#include "base/status.h"
#include "kernels/device.h"
#include "service/access.h"
#include "service/auth.h"
#include "service/tls.h"

enum { SL_SETTINGS_MAX_MODELS = 16, SL_SETTINGS_MAX_LISTEN = 4 };

/* Over the network; nothing is listened on by default. */
typedef struct {
    char *listen[SL_SETTINGS_MAX_LISTEN];
    int listen_count;
    char *certificate, *key, *client_ca, *revoked;
    sl_tls_client_auth client_auth;
    bool insecure; /* on loopback whoever comes is a user */
    int64_t handshake_ns;
} sl_settings_tls;

typedef struct {
    sl_device_spec device;
    char *models[SL_SETTINGS_MAX_MODELS]; /* directories with models in them */
    int model_count;
    char *outputs;
    char *runtime;
    char *socket;
    char *budget; /* table file; NULL: the built-in table */
    char *worker; /* program; NULL: beside this one */
    int threads;  /* of the worker's compute; 0: one per core */
    int connections;
    int in_flight;
    int queue;
    int retry_limit;
    int running;
    int bypass;
    int user_running, user_queued; /* 0: no limit */
    size_t host_bytes; /* of the host tier; 0: there is none */
    uint64_t outputs_quota_bytes; /* 0: none */
    int64_t outputs_retention_ns; /* 0: for ever */
    char *http_address; /* NULL: no side door */
    char *http_certificate, *http_key; /* both or none */
    sl_role local_users;
    sl_settings_tls tls;
    char *tokens; /* file; NULL: there are none */
    char *audit;  /* file; NULL: none is kept */
    sl_access_rate rate;
    int connections_host;
    int connections_user; /* 0: four fifths of all */
    int64_t message_ns, write_ns, idle_ns; /* of a connection: see front.h */
    sl_log_level log_level;
} sl_settings;

/* What the command line says; NULL or 0: not given. */
typedef struct {
    const char *config;
    const char *device;
    const char *models[SL_SETTINGS_MAX_MODELS];
    int model_count;
    const char *outputs;
    const char *runtime;
    const char *socket;
    const char *log_level;
} sl_flags;

/* Reads flags->config if given, fills in defaults, checks everything.  Makes no
 * directory.  Paths in the file are relative to the working directory, as on the
 * command line. */
sl_status sl_settings_init(sl_settings *out, const sl_flags *flags, sl_error *err) SL_MUST_CHECK;
void sl_settings_fini(sl_settings *settings);

#endif
