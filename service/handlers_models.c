/* handlers_models.c - which models there are, loading and unloading them. */
#include "service/handlers.h"
#include "service/service_state.h"
#include "service/shared.h"

#include "base/clock.h"
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
        if (!sl_shared_is_of(s, &c.key, pb->name) || c.state != SL_CORE_READY)
            continue;
        pb->resident[pb->n_resident] = sl_component_bytes_to_pb(&c, list->arena);
        if (!pb->resident[pb->n_resident]
            || !sl_shared_fill_models(s, &c.key, pb->resident[pb->n_resident++], list->arena))
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

/* Waits for the end of wait->ticket, which is linked.  Locked. */
static sl_status await_end(sl_service *s, sl_rpc_call *call, ticket_wait *wait, sl_error *err)
{
    sl_status status = SL_OK;

    s->load_waiters++;
    while (!wait->ended && status == SL_OK) {
        if (s->stopping)
            status = sl_fail(err, SL_ERR_UNAVAILABLE, "the server is shutting down");
        else if (!sl_service_wait(s, call->deadline_ns))
            status = sl_fail(err, SL_ERR_TIMEOUT,
                             "not finished in time; it goes on, and asking again waits for it");
    }
    s->load_waiters--;
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

static void link_wait(sl_service *s, ticket_wait *wait)
{
    wait->next = s->tickets;
    s->tickets = wait;
}

/* The same for a ticket that the core has just given out. */
static sl_status wait_for_ticket(sl_service *s, sl_rpc_call *call, ticket_wait *wait,
                                 sl_error *err)
{
    link_wait(s, wait);
    sl_service_pump(s);
    const sl_status status = await_end(s, call, wait, err);
    unlink_wait(s, wait);
    return status;
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
    sl_arch arch; /* sizes alone */
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

static sl_status make_load(sl_service *s, sl_rpc_call *call, const sl_model *model,
                           const Sluice__V1__LoadModelRequest *request, load_spec *out,
                           sl_error *err)
{
    const sl_model_info *info = sl_model_get_info(model);
    const sl_precision precision = sl_request_precision(request->precision, info);
    unsigned components = 0;
    sl_shared_owners owners;
    sl_error why = { .status = SL_OK };
    sl_status status = sl_request_check_precision(precision, info, &why);

    if (status != SL_OK)
        return sl_rpc_fail_field(call, "precision", "int8", err, "%s", why.message);
    pthread_mutex_lock(&s->lock);
    sl_shared_note(s, model, &owners);
    pthread_mutex_unlock(&s->lock);
    for (int k = 0; k < SL_COMPONENT_COUNT && status == SL_OK; k++) {
        const sl_component_kind kind = (sl_component_kind)k;
        if (!is_wanted(request->components, request->n_components, kind)
            || (request->n_components == 0 && !sl_arch_has_component(info->arch, kind)))
            continue;
        status = sl_request_need(info, kind, precision, owners.owners[k],
                                 &out->needs[out->count++], err);
        components |= 1u << k;
    }
    if (status == SL_ERR_INVALID)
        call->field = "components";
    if (status == SL_OK)
        status = sl_budget_facts_make(&out->facts, info->name, info->arch, components, precision,
                                      NULL, err);
    out->arch = *info->arch;
    if (status == SL_OK && !(out->path = sl_arena_strdup(call->arena, info->path)))
        status = out_of_memory(err);
    return status;
}

static bool is_pinned(const sl_service *s, const sl_core_key *key)
{
    for (int i = 0; i < sl_core_component_count(s->core); i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        if (sl_core_key_equal(&c.key, key) && (c.pinned || c.host_pinned))
            return true;
    }
    return false;
}

/* Gives the load to the core and waits for it.  Locked. */
static sl_status do_load(sl_service *s, sl_rpc_call *call, const load_spec *spec,
                         ticket_wait *wait, sl_core_answer *answer, sl_error *err)
{
    const Sluice__V1__LoadModelRequest *request = (const void *)call->request;
    sl_core_key unpin[SL_COMPONENT_COUNT];
    int unpin_count = 0;
    sl_status status;

    for (int i = 0; i < spec->count && request->no_pin; i++) {
        if (!is_pinned(s, &spec->needs[i].key))
            unpin[unpin_count++] = spec->needs[i].key;
    }
    if (request->residency == SLUICE__V1__RESIDENCY__HOST)
        status = sl_core_load_host(s->core, spec->needs, spec->count, &wait->ticket, answer, err);
    else
        status = sl_core_load(s->core, spec->needs, spec->count, &spec->facts, &wait->ticket,
                              answer, err);
    if (status == SL_ERR_TOO_LARGE)
        call->refusal = sl_answer_to_pb(answer, call->arena);
    for (int i = 0; i < spec->count && status == SL_OK; i++)
        sl_shared_use(s, &spec->needs[i].key, request->model);
    if (status == SL_OK)
        status = wait_for_ticket(s, call, wait, err);
    if (unpin_count > 0 && wait->ended) {
        sl_core_unpin(s->core, unpin, unpin_count);
        sl_service_pump(s);
    }
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

    if (status == SL_OK && request->residency == SLUICE__V1__RESIDENCY__NONE)
        status = sl_rpc_fail_field(call, "residency", NULL, err, "loading to nowhere");
    if (status == SL_OK)
        status = sl_request_get_model(s, call, request->model, &model, err);
    if (status != SL_OK)
        return status;
    status = make_load(s, call, model, request, &spec, err);
    sl_models_release(s->models, model);
    if (status == SL_OK && (!wait || !answer))
        status = out_of_memory(err);
    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    status = may_wait(s, call, err);
    if (status == SL_OK)
        status = sl_service_note_path(s, request->model, spec.path, &spec.arch, err);
    if (status == SL_OK)
        status = do_load(s, call, &spec, wait, answer, err);
    pthread_mutex_unlock(&s->lock);
    if (wait->ended)
        log_receipt("load_done", request->model, &wait->action);
    if (status != SL_OK)
        return status;
    Sluice__V1__LoadModelReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__load_model_reply__descriptor);
    if (!reply
        || !(reply->receipt = sl_receipt_to_pb(&wait->action.receipt, call->arena)))
        return out_of_memory(err);
    call->reply = &reply->base;
    return SL_OK;
}

/* --- UnloadModel --- */

static sl_core_unload_mode release_mode(Sluice__V1__Release release)
{
    switch (release) {
    case SLUICE__V1__RELEASE__FULL:
        return SL_CORE_UNLOAD_FULL;
    case SLUICE__V1__RELEASE__HARD:
        return SL_CORE_UNLOAD_HARD;
    default:
        return SL_CORE_UNLOAD_SOFT;
    }
}

static bool has_key(const sl_core_key *keys, int count, const sl_core_key *key)
{
    for (int i = 0; i < count; i++) {
        if (sl_core_key_equal(&keys[i], key))
            return true;
    }
    return false;
}

/* The components, on the device or in host memory, that the request names.  Locked. */
static int find_keys(sl_service *s, const Sluice__V1__UnloadModelRequest *request,
                     sl_core_key keys[SL_CORE_MAX_KEYS])
{
    int count = 0;

    for (int i = 0; i < sl_core_component_count(s->core) && count < SL_CORE_MAX_KEYS; i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        if (c.state == SL_CORE_ABSENT && release_mode(request->release) == SL_CORE_UNLOAD_SOFT)
            continue; /* where a soft unload leaves it */
        if ((request->model[0] == '\0'
             || (sl_shared_is_of(s, &c.key, request->model)
                 && !sl_shared_is_used_by_others(s, &c.key, request->model)))
            && is_wanted(request->components, request->n_components, c.key.component)
            && !has_key(keys, count, &c.key))
            keys[count++] = c.key;
    }
    return count;
}

/* What other models refer to stays, and this one does so no more. */
static void drop_references(sl_service *s, const Sluice__V1__UnloadModelRequest *request)
{
    for (int i = 0; i < sl_core_component_count(s->core); i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        if (request->model[0]
            && is_wanted(request->components, request->n_components, c.key.component))
            sl_shared_drop(s, &c.key, request->model);
    }
    if (request->model[0] == '\0')
        sl_shared_drop_others(s, "");
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
    /* A fresh worker is wanted even if there is nothing to unload. */
    const bool asks = present > 0 || request->release == SLUICE__V1__RELEASE__HARD;
    if (status == SL_OK && asks)
        status = sl_core_unload_as(s->core, keys, present, release_mode(request->release),
                                   request->now ? SL_CORE_USED_NOW : SL_CORE_USED_REFUSE,
                                   &wait->ticket, err);
    if (status == SL_OK)
        drop_references(s, request);
    if (status == SL_OK && asks)
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
        || !(reply->receipt = sl_receipt_to_pb(&wait->action.receipt, call->arena)))
        return out_of_memory(err);
    call->reply = &reply->base;
    return SL_OK;
}

/* --- TrimMemory --- */

sl_status sl_handle_trim_memory(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    ticket_wait *wait = sl_arena_alloc(call->arena, sizeof *wait);
    Sluice__V1__TrimMemoryReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__trim_memory_reply__descriptor);

    if (!wait || !reply)
        return out_of_memory(err);
    pthread_mutex_lock(&s->lock);
    sl_status status = may_wait(s, call, err);
    if (status == SL_OK)
        status = sl_core_trim(s->core, &wait->ticket, err);
    if (status == SL_OK)
        status = wait_for_ticket(s, call, wait, err);
    pthread_mutex_unlock(&s->lock);
    if (wait->ended)
        log_receipt("trim_done", "all", &wait->action);
    if (status != SL_OK)
        return status;
    reply->receipt = sl_receipt_to_pb(&wait->action.receipt, call->arena);
    call->reply = &reply->base;
    return reply->receipt ? SL_OK : out_of_memory(err);
}

/* --- SwitchModel --- */

enum { STEPS = SL_CORE_SWITCH_STEPS };

typedef struct {
    int64_t start_ns;          /* monotonic */
    size_t mapped_bytes;       /* before */
    ticket_wait steps[STEPS];
} switch_wait; /* some 75 KiB */

/* Begins the three steps and waits for them.  Locked. */
static sl_status do_switch(sl_service *s, sl_rpc_call *call, const load_spec *spec,
                           switch_wait *wait, sl_error *err)
{
    const Sluice__V1__SwitchModelRequest *request = (const void *)call->request;
    sl_core_answer *answer = sl_arena_alloc(call->arena, sizeof *answer);
    uint64_t tickets[STEPS];

    if (!answer)
        return out_of_memory(err);
    wait->start_ns = sl_clock_now_ns();
    wait->mapped_bytes = s->calm_mapped_bytes;
    sl_status status = sl_core_switch(s->core, spec->needs, spec->count, &spec->facts,
                                      release_mode(request->release),
                                      request->now ? SL_CORE_USED_NOW : SL_CORE_USED_WAIT, tickets,
                                      answer, err);
    if (status == SL_ERR_TOO_LARGE)
        call->refusal = sl_answer_to_pb(answer, call->arena);
    if (status != SL_OK)
        return status;
    sl_shared_drop_others(s, request->model);
    for (int i = 0; i < spec->count; i++)
        sl_shared_use(s, &spec->needs[i].key, request->model);
    for (int i = 0; i < STEPS; i++) {
        wait->steps[i].ticket = tickets[i];
        link_wait(s, &wait->steps[i]);
    }
    sl_service_pump(s);
    for (int i = 0; i < STEPS && status == SL_OK; i++)
        status = await_end(s, call, &wait->steps[i], err);
    for (int i = 0; i < STEPS; i++)
        unlink_wait(s, &wait->steps[i]);
    return status;
}

static sl_status fill_switch(sl_rpc_call *call, const switch_wait *wait,
                             sl_error *err)
{
    static const char *const names[STEPS] = { "unload", "clear", "load" };
    Sluice__V1__SwitchModelReply *reply =
        sl_rpc_new(call->arena, &sluice__v1__switch_model_reply__descriptor);
    int64_t since_ns = wait->start_ns;
    size_t mapped_bytes = wait->mapped_bytes;

    if (!reply || !(reply->steps = sl_arena_alloc(call->arena, STEPS * sizeof(void *))))
        return out_of_memory(err);
    for (int i = 0; i < STEPS; i++) {
        const ticket_wait *at = &wait->steps[i];
        const sl_core_receipt *receipt = &at->action.receipt;
        Sluice__V1__SwitchStep *step =
            sl_rpc_new(call->arena, &sluice__v1__switch_step__descriptor);
        if (!step || !(step->receipt = sl_receipt_to_pb(receipt, call->arena)))
            return out_of_memory(err);
        step->name = (char *)names[i];
        step->duration_ns = at->ended_ns - since_ns;
        step->free_before_bytes = receipt->limit_bytes - mapped_bytes;
        step->free_after_bytes = receipt->limit_bytes - at->mapped_bytes;
        step->peak_bytes = receipt->command_count ? receipt->peak_bytes
                           : mapped_bytes > at->mapped_bytes ? mapped_bytes
                                                             : at->mapped_bytes;
        since_ns = at->ended_ns;
        mapped_bytes = at->mapped_bytes;
        reply->steps[reply->n_steps++] = step;
    }
    reply->duration_ns = since_ns - wait->start_ns;
    call->reply = &reply->base;
    return SL_OK;
}

sl_status sl_handle_switch_model(void *service, sl_rpc_call *call, sl_error *err)
{
    sl_service *s = service;
    const Sluice__V1__SwitchModelRequest *request = (const void *)call->request;
    Sluice__V1__LoadModelRequest load = SLUICE__V1__LOAD_MODEL_REQUEST__INIT;
    load_spec spec = { .count = 0 };
    sl_model *model = NULL;
    switch_wait *wait = NULL;
    sl_status status = sl_request_get_model(s, call, request->model, &model, err);

    if (status != SL_OK)
        return status;
    load.precision = request->precision;
    status = make_load(s, call, model, &load, &spec, err);
    sl_models_release(s->models, model);
    if (status == SL_OK && !(wait = calloc(1, sizeof *wait)))
        status = out_of_memory(err);
    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    status = may_wait(s, call, err);
    if (status == SL_OK)
        status = sl_service_note_path(s, request->model, spec.path, &spec.arch, err);
    if (status == SL_OK)
        status = do_switch(s, call, &spec, wait, err);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < STEPS && wait->steps[i].ended; i++)
        log_receipt(i < STEPS - 1 ? "unload_done" : "load_done", request->model,
                    &wait->steps[i].action);
    if (status == SL_OK)
        status = fill_switch(call, wait, err);
    free(wait);
    return status;
}
