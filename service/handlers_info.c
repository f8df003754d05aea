/* GetServerInfo: what this server is, to whoever asks. */
#include "service/handlers.h"

#include "service/service_state.h"
#include "service/sp.h"
#include "service/uploads.h"
#include "service/wire.h"

#include <string.h>

enum { MAX_FEATURES = 8 };

static sl_status out_of_memory(sl_error *err)
{
    return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply");
}

/* Those that the caller's role is enough for. */
static bool fill_methods(Sluice__V1__GetServerInfoReply *reply, const sl_rpc_call *call)
{
    reply->methods = sl_arena_alloc(call->arena, (size_t)sl_handlers_table.count * sizeof(char *));
    for (int i = 0; i < sl_handlers_table.count && reply->methods; i++) {
        const sl_rpc_method *method = &sl_handlers_table.methods[i];
        const char *slash = strrchr(method->name, '/');
        if (method->role <= call->peer.role)
            reply->methods[reply->n_methods++] = (char *)(uintptr_t)(slash + 1);
    }
    return reply->methods != NULL;
}

/* What depends on how it was built and set up; locked. */
static bool fill_features(const sl_service *s, Sluice__V1__GetServerInfoReply *reply,
                          sl_arena *arena)
{
    const struct {
        const char *name;
        bool there;
    } features[MAX_FEATURES] = {
        { "upload_input", true },
        { "decode_latent", true },
        { "previews", true },
        { "host_tier", s->limits.host_bytes > 0 },
        { "streaming", s->limits.host_bytes > 0 },
        { "durable_jobs", s->store != NULL },
        { "budget_table", s->table != NULL },
    };

    reply->features = sl_arena_alloc(arena, MAX_FEATURES * sizeof(char *));
    for (size_t i = 0; i < MAX_FEATURES && reply->features; i++) {
        if (features[i].there)
            reply->features[reply->n_features++] = (char *)(uintptr_t)features[i].name;
    }
    return reply->features != NULL;
}

/* Locked. */
static bool fill_device(sl_service *s, Sluice__V1__GetServerInfoReply *reply, sl_arena *arena)
{
    Sluice__V1__ServerDevice *device = sl_rpc_new(arena, &sluice__v1__server_device__descriptor);
    sl_core_ledger ledger;

    reply->devices = sl_arena_alloc(arena, sizeof(void *));
    if (!device || !reply->devices)
        return false;
    sl_service_get_ledger(s, &ledger);
    const sl_device_kind kind = s->config.device.kind;
    const sl_budget_row *row =
        s->table ? sl_budget_find_row(s->table, kind, s->config.device.limit_bytes) : NULL;
    device->device = sl_arena_strdup(arena, s->device_text);
    device->kind = (char *)(kind == SL_DEVICE_CUDA ? "cuda" : "cpu");
    device->limit_bytes = ledger.limit_bytes;
    device->lanes = (uint32_t)s->lanes;
    if (row)
        device->table_row = sl_arena_strdup(arena, row->name);
    reply->devices[reply->n_devices++] = device;
    return device->device && device->table_row;
}

sl_status sl_handle_get_server_info(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    Sluice__V1__GetServerInfoReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__get_server_info_reply__descriptor);

    if (!reply)
        return out_of_memory(err);
    reply->version = (char *)SL_VERSION;
    reply->api_version = SL_WIRE_API_VERSION;
    reply->api_version_least = SL_WIRE_API_VERSION_LEAST;
    reply->identity = call->peer.identity;
    reply->role = (char *)(uintptr_t)sl_role_name(call->peer.role);
    reply->request_bytes = SL_SP_MAX_MESSAGE_BYTES;
    reply->upload_bytes = SL_UPLOAD_MAX_BYTES;
    reply->chunk_bytes = SL_WIRE_MAX_CHUNK_BYTES;
    pthread_mutex_lock(&s->lock);
    reply->started_ns = s->started_wall_ns;
    const bool whole = fill_features(s, reply, call->arena) && fill_device(s, reply, call->arena);
    pthread_mutex_unlock(&s->lock);
    if (!whole || !fill_methods(reply, call))
        return out_of_memory(err);
    call->reply = &reply->base;
    return SL_OK;
}
