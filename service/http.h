/* http.h - the side door: metrics, health and a status page over HTTP/1.1.
 *
 *   GET /metrics   Prometheus text format
 *   GET /healthz   200: the process is alive
 *   GET /readyz    200: the worker is up and its canary came back right; else 503
 *   GET /          a page for people
 *
 * Nothing here changes anything, and nothing asks who it is: it shows no prompts and no
 * owners, and is meant for loopback or a network of operators.  One thread serves all
 * connections without blocking on any; each is closed after one answer, and after
 * lifetime_ns whatever it did.
 *
 * Ownership: main creates it after the service and destroys it before.
 * Threads:   create, destroy from one.
 */
#ifndef SL_SERVICE_HTTP_H
#define SL_SERVICE_HTTP_H

#include "base/status.h"
#include "service/door.h"
#include "service/rpc.h"
#include "service/service.h"

typedef struct sl_http sl_http;

typedef struct {
    const char *address;           /* "9464" on loopback; "10.0.0.5:9464", "[::]:9464"; port 0: any */
    const char *certificate, *key; /* PEM files, both or none: with them it is HTTPS */
    sl_service *service;
    const sl_rpc_table *table;
    const sl_rpc_stats *calls;
    const sl_door *door; /* NULL: there is none */
    int connections;     /* at once, of all; three quarters of them for one address */
    int64_t lifetime_ns; /* of a connection */
} sl_http_config;

sl_http_config sl_http_config_default(void);

/* SL_ERR_UNIMPLEMENTED: the build has no HTTP.  SL_ERR_INVALID: address or certificate. */
sl_status sl_http_create(sl_http **out, const sl_http_config *config, sl_error *err) SL_MUST_CHECK;
void sl_http_destroy(sl_http *http); /* connections break off; NULL is fine */
int sl_http_port(const sl_http *http);

#endif
