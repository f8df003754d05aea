/* handlers_models.c - which models there are, loading and unloading them. */
#include "service/handlers.h"
#include "service/service_state.h"

#include "base/log.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

static sl_status out_of_memory(sl_error *err)
{
    return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a reply");
}

/* --- ListModels --- */

typedef struct {
    sl_service *s;
    sl_arena *arena;
    Sluice__V1__ListModelsReply *reply;
} model_list;

static sl_status add_resident(const model_list *list, Sluice__V1__ModelInfo *pb, sl_error *err)
{
    sl_service *s = list->s;
    sl_status status = SL_OK;

    pthread_mutex_lock(&s->lock);
    const int count = sl_core_component_count(s->core);
    pb->resident = sl_arena_alloc(list->arena, ((size_t)count + 1) * sizeof(void *));
    if (!pb->resident)
        status = out_of_memory(err);
    for (int i = 0; i < count && status == SL_OK; i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        if (strcmp(c.key.model, pb->name) != 0 || c.state != SL_CORE_READY)
            continue;
        pb->resident[pb->n_resident] = sl_component_bytes_to_pb(&c, list->arena);
        if (!pb->resident[pb->n_resident++])
            status = out_of_memory(err);
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

static sl_status fill_model(const model_list *list, Sluice__V1__ModelInfo *pb,
                            const sl_model_info *info, sl_error *err)
{
    pb->arch = sl_arena_strdup(list->arena, info->arch->name);
    pb->task = (char *)(info->arch->task == SL_TASK_I2V ? "i2v" : "t2v");
    pb->components = sl_arena_alloc(list->arena, SL_COMPONENT_COUNT * sizeof *pb->components);
    if (!pb->arch || !pb->components)
        return out_of_memory(err);
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (info->files[kind])
            pb->components[pb->n_components++] = sl_component_to_pb((sl_component_kind)kind);
        else if (sl_arch_has_component(info->arch, (sl_component_kind)kind) && !pb->problem[0])
            pb->problem = sl_arena_printf(list->arena, "the file of its %s is missing",
                                          sl_component_name((sl_component_kind)kind));
    }
    if (!info->tokenizer && pb->problem && !pb->problem[0])
        pb->problem = sl_arena_strdup(list->arena, "the tokenizer's file is missing");
    if (!pb->problem)
        return out_of_memory(err);
    pb->file_bytes = info->file_bytes;
    pb->default_width = info->arch->default_width;
    pb->default_height = info->arch->default_height;
    pb->default_frames = info->arch->default_frames;
    return SL_OK;
}

static sl_status add_model(void *arg, const char *name, const sl_model_info *info,
                           const char *problem, sl_error *err)
{
    model_list *list = arg;
    Sluice__V1__ModelInfo *pb;

    if (!sl_utf8_valid(name) || strlen(name) >= SL_CORE_NAME_BYTES)
        return SL_OK; /* no client could name it */
    pb = sl_rpc_new(list->arena, &sluice__v1__model_info__descriptor);
    if (!pb || !(pb->name = sl_arena_strdup(list->arena, name)))
        return out_of_memory(err);
    list->reply->models[list->reply->n_models++] = pb;
    if (!info) {
        pb->problem = sl_arena_strdup(list->arena, sl_utf8_valid(problem) ? problem : "broken");
        return pb->problem ? SL_OK : out_of_memory(err);
    }
    const sl_status status = fill_model(list, pb, info, err);
    return status == SL_OK ? add_resident(list, pb, err) : status;
}

sl_status sl_handle_list_models(void *service, sl_rpc_call *call, sl_error *err)
{
    Sluice__V1__ListModelsReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__list_models_reply__descriptor);
    model_list list = { .s = service, .arena = call->arena, .reply = reply };

    if (!reply
        || !(reply->models = sl_arena_alloc(call->arena, SL_MODELS_LISTED * sizeof(void *))))
        return out_of_memory(err);
    call->reply = &reply->base;
    return sl_models_list(list.s->models, add_model, &list, err);
}

/* --- waiting for a ticket --- */

static void log_receipt(const char *event, const char *model, const sl_core_action *action)
{
    const sl_core_receipt *r = &action->receipt;
    char quoted[400];

    sl_log(action->status != SL_OK ? SL_LOG_WARN
           : r->residue_bytes      ? SL_LOG_ERROR
                                   : SL_LOG_INFO,
           event,
           "model=%s status=%s components=%d device_before=%zu device_after=%zu peak_bytes=%zu "
           "residue_bytes=%lld ms=%lld message=%s",
           model, sl_grpc_code_name(sl_status_grpc_code(action->status)), r->line_count,
           r->before_bytes, r->after_bytes, r->peak_bytes, (long long)r->residue_bytes,
           (long long)(r->duration_ns / 1000000),
           sl_log_quote(quoted, sizeof quoted, action->message));
}

static void unlink_wait(sl_service *s, ticket_wait *wait)
{
    ticket_wait **link = &s->tickets;

    while (*link != wait)
        link = &(*link)->next;
    *link = wait->next;
}

/* What was resident already took no command and has no measurement of its own:
 * the receipt then says what was measured when it came.  Locked. */
static void complete_receipt(sl_service *s, sl_core_receipt *receipt)
{
    for (int i = 0; i < receipt->line_count; i++) {
        sl_core_receipt_line *line = &receipt->lines[i];
        for (int k = 0; k < sl_core_component_count(s->core) && line->measured_bytes == 0; k++) {
            sl_core_component c;
            sl_core_get_component(s->core, k, &c);
            if (c.state == SL_CORE_READY && sl_core_key_equal(&c.key, &line->key))
                line->measured_bytes = c.measured_bytes;
        }
    }
    if (receipt->command_count == 0)
        receipt->before_bytes = receipt->after_bytes = receipt->peak_bytes = s->calm_mapped_bytes;
}

/* Waits for the end of wait->ticket, which the core has just given out.  Locked. */
static sl_status wait_for_ticket(sl_service *s, sl_rpc_call *call, ticket_wait *wait,
                                 sl_error *err)
{
    sl_status status = SL_OK;

    wait->next = s->tickets;
    s->tickets = wait;
    s->load_waiters++;
    sl_service_pump(s);
    while (!wait->ended && status == SL_OK) {
        if (s->stopping)
            status = sl_fail(err, SL_ERR_UNAVAILABLE, "the server is shutting down");
        else if (!sl_service_wait(s, call->deadline_ns))
            status = sl_fail(err, SL_ERR_TIMEOUT,
                             "not finished in time; it goes on, and asking again waits for it");
    }
    s->load_waiters--;
    unlink_wait(s, wait);
    if (!wait->ended)
        return status;
    if (wait->action.status == SL_OK) {
        complete_receipt(s, &wait->action.receipt);
        return SL_OK;
    }
    if (wait->action.status == SL_ERR_TOO_LARGE || wait->action.status == SL_ERR_BUSY)
        call->refusal = sl_answer_to_pb(&wait->action.answer, call->arena);
    return sl_fail(err, wait->action.status, "%s", wait->action.message);
}

/* What stands in the way of any load or unload.  Locked. */
static sl_status may_wait(sl_service *s, sl_rpc_call *call, sl_error *err)
{
    if (s->stopping)
        return sl_fail(err, SL_ERR_UNAVAILABLE, "the server is shutting down");
    if (s->load_waiters >= s->config.load_waiters) {
        call->retry_after_ns = 1000000000;
        return sl_fail(err, SL_ERR_UNAVAILABLE, "%d requests wait for models already",
                       s->load_waiters);
    }
    return SL_OK;
}

/* --- LoadModel --- */

typedef struct {
    sl_core_need needs[SL_COMPONENT_COUNT];
    int count;
    sl_budget_facts facts;
    char *path;
} load_spec;

static sl_status check_components(sl_rpc_call *call, const Sluice__V1__Component *components,
                                  size_t count, sl_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (components[i] == SLUICE__V1__COMPONENT__COMPONENT_UNSPECIFIED)
            return sl_rpc_fail_field(call, "components", NULL, err, "component %zu is unspecified",
                                     i + 1);
    }
    return SL_OK;
}

static bool is_wanted(const Sluice__V1__Component *components, size_t count, sl_component_kind kind)
{
    for (size_t i = 0; i < count; i++) {
        if (sl_component_from_pb(components[i]) == kind)
            return true;
    }
    return count == 0;
}

static sl_status make_load(sl_rpc_call *call, const sl_model_info *info,
                           const Sluice__V1__LoadModelRequest *request, load_spec *out,
                           sl_error *err)
{
    const sl_precision precision = sl_precision_from_pb(request->precision);
    unsigned components = 0;
    sl_status status = SL_OK;

    for (int k = 0; k < SL_COMPONENT_COUNT && status == SL_OK; k++) {
        const sl_component_kind kind = (sl_component_kind)k;
        if (!is_wanted(request->components, request->n_components, kind)
            || (request->n_components == 0 && !sl_arch_has_component(info->arch, kind)))
            continue;
        status = sl_request_need(info, kind, precision, &out->needs[out->count++], err);
        components |= 1u << k;
    }
    if (status == SL_ERR_INVALID)
        call->field = "components";
    if (status == SL_OK)
        status = sl_budget_facts_make(&out->facts, info->name, info->arch, components, precision,
                                      NULL, err);
    if (status == SL_OK && !(out->path = sl_arena_strdup(call->arena, info->path)))
        status = out_of_memory(err);
    return status;
}

sl_status sl_handle_load_model(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__LoadModelRequest *request = (const void *)call->request;
    load_spec spec = { .count = 0 };
    sl_model *model = NULL;
    ticket_wait *wait = sl_arena_alloc(call->arena, sizeof *wait);
    sl_core_answer *answer = sl_arena_alloc(call->arena, sizeof *answer);
    sl_status status = check_components(call, request->components, request->n_components, err);

    if (status == SL_OK)
        status = sl_request_get_model(s, call, request->model, &model, err);
    if (status != SL_OK)
        return status;
    status = make_load(call, sl_model_get_info(model), request, &spec, err);
    sl_models_release(s->models, model);
    if (status == SL_OK && (!wait || !answer))
        status = out_of_memory(err);
    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    status = may_wait(s, call, err);
    if (status == SL_OK)
        status = sl_service_note_path(s, request->model, spec.path, err);
    if (status == SL_OK) {
        status = sl_core_load(s->core, spec.needs, spec.count, &spec.facts, &wait->ticket, answer,
                              err);
        if (status == SL_ERR_TOO_LARGE)
            call->refusal = sl_answer_to_pb(answer, call->arena);
        if (status == SL_OK)
            status = wait_for_ticket(s, call, wait, err);
    }
    pthread_mutex_unlock(&s->lock);
    if (wait->ended)
        log_receipt("load_done", request->model, &wait->action);
    if (status != SL_OK)
        return status;
    Sluice__V1__LoadModelReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__load_model_reply__descriptor);
    if (!reply
        || !(reply->receipt = sl_receipt_to_pb(&wait->action.receipt,
                                                     s->config.device.limit_bytes, call->arena)))
        return out_of_memory(err);
    call->reply = &reply->base;
    return SL_OK;
}

/* --- UnloadModel --- */

/* The resident components that the request names.  Locked. */
static int find_keys(sl_service *s, const Sluice__V1__UnloadModelRequest *request,
                     sl_core_key keys[SL_CORE_MAX_KEYS])
{
    int count = 0;

    for (int i = 0; i < sl_core_component_count(s->core) && count < SL_CORE_MAX_KEYS; i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        if ((request->model[0] == '\0' || strcmp(request->model, c.key.model) == 0)
            && is_wanted(request->components, request->n_components, c.key.component))
            keys[count++] = c.key;
    }
    return count;
}

sl_status sl_handle_unload_model(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__UnloadModelRequest *request = (const void *)call->request;
    ticket_wait *wait = sl_arena_alloc(call->arena, sizeof *wait);
    sl_core_key keys[SL_CORE_MAX_KEYS];
    sl_status status = check_components(call, request->components, request->n_components, err);

    if (status != SL_OK)
        return status;
    if (!wait)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    const int count = find_keys(s, request, keys);
    pthread_mutex_unlock(&s->lock);
    if (count == 0 && request->model[0]) {
        /* Nothing to do, if there is such a model at all. */
        sl_model *model = NULL;
        status = sl_request_get_model(s, call, request->model, &model, err);
        sl_models_release(s->models, model);
        if (status == SL_ERR_NOT_FOUND || status == SL_ERR_INVALID)
            return status;
    }
    pthread_mutex_lock(&s->lock);
    status = may_wait(s, call, err);
    const int present = find_keys(s, request, keys);
    if (status == SL_OK && present > 0)
        status = sl_core_unload(s->core, keys, present, &wait->ticket, err);
    if (status == SL_OK && present > 0)
        status = wait_for_ticket(s, call, wait, err);
    else if (status == SL_OK)
        complete_receipt(s, &wait->action.receipt);
    pthread_mutex_unlock(&s->lock);
    if (wait->ended)
        log_receipt("unload_done", request->model[0] ? request->model : "all", &wait->action);
    if (status != SL_OK)
        return status;
    Sluice__V1__UnloadModelReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__unload_model_reply__descriptor);
    if (!reply
        || !(reply->receipt = sl_receipt_to_pb(&wait->action.receipt,
                                                     s->config.device.limit_bytes, call->arena)))
        return out_of_memory(err);
    call->reply = &reply->base;
    return SL_OK;
}
