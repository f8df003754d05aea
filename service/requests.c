/* requests.c - what a request comes to: sizes, ids, plan, what the core asks. */
#include "service/inputs.h"
#include "service/shared.h"

#include "engine/text/clean.h"

#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_PRIORITY = 5 };

sl_component_kind sl_component_from_pb(Sluice__V1__Component component)
{
    return (sl_component_kind)((int)component - SLUICE__V1__COMPONENT__TEXT_ENCODER);
}

void sl_request_hash(const ProtobufCMessage *request, sl_arena *arena,
                     uint8_t out[SL_BODY_HASH_BYTES])
{
    const size_t size = protobuf_c_message_get_packed_size(request);
    uint8_t *bytes = sl_arena_alloc_raw(arena, size);

    /* Without memory every body differs: the same id is then refused, not mixed up. */
    memset(out, 0, SL_BODY_HASH_BYTES);
    if (!bytes)
        return;
    protobuf_c_message_pack(request, bytes);
    SHA256(bytes, size, out);
}

sl_status sl_request_need(const sl_model_info *info, sl_component_kind kind,
                          sl_precision precision, const char *owner, sl_core_need *out,
                          sl_error *err)
{
    if (!sl_arch_has_component(info->arch, kind))
        return sl_fail(err, SL_ERR_INVALID, "model \"%s\" has no component %s", info->name,
                       sl_component_name(kind));
    if (!info->files[kind])
        return sl_fail(err, SL_ERR_PRECONDITION, "model \"%s\" lacks the file of its %s",
                       info->name, sl_component_name(kind));
    const sl_component_spec spec = sl_component_spec_of(info->arch, kind, precision);
    *out = (sl_core_need){
        .key = { .component = kind, .precision = spec.precision },
        .size_bytes = sl_component_plan_bytes(&spec),
        .host_bytes = sl_hosttier_cost_bytes(sl_component_image_bytes(&spec)),
    };
    if (out->host_bytes == SIZE_MAX)
        out->host_bytes = 0; /* larger than any image */
    snprintf(out->key.model, sizeof out->key.model, "%s", owner ? owner : info->name);
    return SL_OK;
}

/* --- from the wire --- */

static sl_status check_numbers(sl_rpc_call *call, const Sluice__V1__GenerateRequest *pb,
                               const sl_t2v_request *request, const sl_model_info *info,
                               sl_error *err)
{
    sl_error why = { .status = SL_OK };
    sl_request_problem problem;
    sl_status status = sl_request_check(pb, request, info->arch, &problem, &why);

    if (status == SL_OK && sl_request_check_precision(request->precision, info, &why) != SL_OK) {
        status = why.status;
        problem = (sl_request_problem){ .field = "precision", .nearest = "int8" };
    }
    if (status == SL_OK)
        return SL_OK;
    if (status != SL_ERR_INVALID || !problem.field)
        return sl_fail(err, status, "%s", why.message);
    return sl_rpc_fail_field(call, problem.field, problem.nearest[0] ? problem.nearest : NULL, err,
                             "%s", why.message);
}

static sl_status read_order(sl_rpc_call *call, const Sluice__V1__GenerateRequest *pb,
                            sl_job_spec *out, sl_error *err)
{
    if (pb->priority < 0 || pb->priority > 9)
        return sl_rpc_fail_field(call, "priority", NULL, err, "priority %d: expected 1 to 9",
                                 (int)pb->priority);
    if (pb->deadline_ns < 0)
        return sl_rpc_fail_field(call, "deadline_ns", NULL, err,
                                 "a deadline %lld ns ago cannot be met",
                                 -(long long)pb->deadline_ns);
    out->core.priority = pb->priority ? pb->priority : DEFAULT_PRIORITY;
    out->deadline_ns = pb->deadline_ns;
    return SL_OK;
}

static sl_streaming read_streaming(Sluice__V1__Streaming streaming)
{
    switch (streaming) {
    case SLUICE__V1__STREAMING__OFF:
        return SL_STREAMING_OFF;
    case SLUICE__V1__STREAMING__ON:
        return SL_STREAMING_ON;
    default:
        return SL_STREAMING_AUTO;
    }
}

void sl_request_set_clock(sl_job_spec *spec, const char *user, int64_t submitted_ns)
{
    snprintf(spec->core.user, sizeof spec->core.user, "%s", user);
    spec->core.submitted_ns = submitted_ns;
    spec->core.deadline_ns = 0;
    if (spec->deadline_ns > 0)
        spec->core.deadline_ns = spec->deadline_ns < INT64_MAX - submitted_ns
                                     ? submitted_ns + spec->deadline_ns
                                     : INT64_MAX;
}

static sl_status read_text(sl_service *s, sl_rpc_call *call, sl_model *model, const char *field,
                           const char *text, int32_t **ids, int64_t *count, sl_error *err)
{
    const int max_ids = (int)sl_model_get_info(model)->arch->dit.text_len;
    int n = 0;

    if (strlen(text) > SL_PROMPT_MAX_BYTES)
        return sl_rpc_fail_field(call, field, NULL, err, "%s has %zu bytes, at most %d are taken",
                                 field, strlen(text), SL_PROMPT_MAX_BYTES);
    if (text[strspn(text, " \t\r\n")] == '\0')
        return sl_rpc_fail_field(call, field, NULL, err, "the %s is empty", field);
    *ids = malloc((size_t)max_ids * sizeof **ids);
    if (!*ids)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the tokens of a prompt");
    const sl_status status = sl_models_tokenize(s->models, model, text, *ids, max_ids, &n, err);
    if (status == SL_ERR_INVALID)
        call->field = field;
    *count = n;
    return status;
}

/* A plan without a prompt is for the longest one. */
static sl_status read_texts(sl_service *s, sl_rpc_call *call, sl_model *model,
                            const Sluice__V1__GenerateRequest *pb, bool to_run, sl_job_spec *out,
                            sl_error *err)
{
    const char *negative = pb->negative_prompt[0] ? pb->negative_prompt : sl_wan_negative_prompt;
    sl_status status = SL_OK;

    if (pb->latent_of[0])
        return SL_OK;
    if (to_run || pb->prompt[0])
        status = read_text(s, call, model, "prompt", pb->prompt, &out->ids,
                           &out->request.token_count, err);
    if (status != SL_OK ||
        !sl_t2v_request_is_guided(&out->request, sl_model_get_info(model)->arch))
        return status;
    return read_text(s, call, model, "negative_prompt", negative, &out->negative_ids,
                     &out->request.negative_token_count, err);
}

/* --- what it comes to --- */

int sl_request_core_phase(const sl_t2v_plan *plan, int phase)
{
    int before = 0;

    for (int i = 0; i < phase; i++)
        before += plan->phase_components[i] != 0;
    return before;
}

int sl_request_engine_phase(const sl_t2v_plan *plan, int phase)
{
    int engine = 0;

    while (engine + 1 < SL_PHASE_COUNT
           && (plan->phase_components[engine] == 0 || phase-- > 0))
        engine++;
    return engine;
}

void sl_request_take_way(sl_job_spec *spec, int way)
{
    const sl_core_variant *variant = &spec->core.variants[way];

    spec->way = spec->variants.ways[way];
    spec->plan = *sl_variants_plan(&spec->variants, way);
    spec->request.streamed = spec->way.streamed;
    spec->core.need_count = variant->need_count;
    memcpy(spec->core.needs, variant->needs, sizeof spec->core.needs);
    spec->core.activation_bytes = variant->activation_bytes;
    spec->core.facts = variant->facts;
}

static size_t host_limit_bytes(sl_service *s)
{
    pthread_mutex_lock(&s->lock);
    const size_t limit_bytes = sl_core_get_limits(s->core).host_limit_bytes;
    pthread_mutex_unlock(&s->lock);
    return limit_bytes;
}

/* The spec's strings, the model's arch and the owners are borrowed. */
static sl_variants_ask ask_of(sl_service *s, const sl_model *model, const sl_job_spec *spec,
                              sl_shared_owners *owners)
{
    sl_streaming streaming = spec->streaming;

    pthread_mutex_lock(&s->lock);
    sl_shared_note(s, model, owners);
    pthread_mutex_unlock(&s->lock);

    /* Without a host tier nothing streams: a refusal is about the device then. */
    if (streaming == SL_STREAMING_AUTO && host_limit_bytes(s) == 0)
        streaming = SL_STREAMING_OFF;
    return (sl_variants_ask){ .model = spec->model,
                              .owners = owners->owners,
                              .arch = sl_model_get_info(model)->arch,
                              .request = spec->request,
                              .streaming = streaming,
                              .kind = s->config.device.kind };
}

/* All ways of doing spec->request; the first of them is taken until the core says
 * which. */
static sl_status make_plan(sl_service *s, const sl_model *model, sl_job_spec *spec, sl_error *err)
{
    const sl_model_info *info = sl_model_get_info(model);
    sl_shared_owners owners;
    const sl_variants_ask ask = ask_of(s, model, spec, &owners);
    sl_status status = SL_OK;

    if (spec->streaming == SL_STREAMING_ON && host_limit_bytes(s) == 0)
        return sl_fail(err, SL_ERR_PRECONDITION,
                       "streaming needs host memory: host_memory is 0 in the configuration");
    status = sl_variants_make(&spec->variants, &spec->core, &ask, err);
    if (status != SL_OK)
        return status;
    spec->arch = *info->arch;
    sl_request_take_way(spec, 0);
    for (int i = 0; i < spec->core.need_count && status == SL_OK; i++) {
        const sl_component_kind kind = spec->core.needs[i].key.component;
        if (!info->files[kind])
            status = sl_fail(err, SL_ERR_PRECONDITION, "model \"%s\" lacks the file of its %s",
                             info->name, sl_component_name(kind));
    }
    return status;
}

static sl_status check_model_name(sl_rpc_call *call, const char *name, sl_error *err)
{
    if (name[0] == '\0')
        return sl_rpc_fail_field(call, "model", NULL, err, "no model is named");
    if (strlen(name) >= SL_CORE_NAME_BYTES)
        return sl_rpc_fail_field(call, "model", NULL, err, "the model's name is longer than %d bytes",
                                 SL_CORE_NAME_BYTES - 1);
    return SL_OK;
}

sl_status sl_request_get_model(sl_service *s, sl_rpc_call *call, const char *name, sl_model **out,
                               sl_error *err)
{
    sl_status status = check_model_name(call, name, err);

    if (status != SL_OK)
        return status;
    status = sl_models_get(s->models, out, name, err);
    if (status == SL_ERR_INVALID)
        call->field = "model";
    /* A broken directory is the operator's to mend, not data that was lost. */
    if (status == SL_ERR_DATA)
        return err->status = SL_ERR_PRECONDITION; /* with its message */
    return status;
}

sl_status sl_request_to_spec(sl_service *s, sl_rpc_call *call,
                             const Sluice__V1__GenerateRequest *request, bool to_run,
                             sl_job_spec *out, sl_error *err)
{
    sl_model *model = NULL;
    sl_job_spec spec = { .model_path = NULL };
    sl_input_image image = { .bytes = NULL };
    sl_status status = sl_request_get_model(s, call, request->model, &model, err);

    if (status != SL_OK)
        goto done;
    const sl_model_info *info = sl_model_get_info(model);
    snprintf(spec.model, sizeof spec.model, "%s", info->name);
    spec.format = sl_format_from_pb(request->output);
    spec.model_path = strdup(info->path);
    if (!spec.model_path) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a request");
        goto done;
    }
    snprintf(spec.latent_of, sizeof spec.latent_of, "%s", request->latent_of);
    spec.preview = request->preview;
    spec.request = sl_request_read(request, info);
    if (!request->vae_precision)
        spec.request.vae_precision =
            sl_t2v_vae_precision_default(s->config.device.kind, spec.request.precision);
    spec.streaming = read_streaming(request->streaming);
    status = read_order(call, request, &spec, err);
    if (status == SL_OK)
        status = sl_input_open(s, call, request, &image, err);
    if (status == SL_OK)
        status = sl_input_size(call, request, &image, info->arch, to_run && !spec.latent_of[0],
                               &spec.request, err);
    if (status == SL_OK)
        status = check_numbers(call, request, &spec.request, info, err);
    if (status == SL_OK)
        status = read_texts(s, call, model, request, to_run, &spec, err);
    if (status == SL_OK)
        status = make_plan(s, model, &spec, err);
    if (status == SL_OK && to_run && !spec.latent_of[0] && info->arch->task == SL_TASK_I2V)
        status = sl_input_store(s, call, &image, &spec.request, &spec.source_path, err);
    if (status != SL_OK)
        goto done;
    *out = spec;
    spec = (sl_job_spec){ .model_path = NULL };
done:
    sl_input_close(&image);
    sl_job_spec_fini(&spec);
    sl_models_release(s->models, model);
    return status;
}

/* --- from the store --- */

void sl_request_numbers_from_pb(sl_job_spec *spec, const Sluice__V1__GenerateRequest *pb)
{
    const sl_t2v_request counts = spec->request;

    spec->format = sl_format_from_pb(pb->output);
    spec->core.priority = pb->priority ? pb->priority : DEFAULT_PRIORITY;
    spec->deadline_ns = pb->deadline_ns;
    spec->preview = pb->preview;
    snprintf(spec->latent_of, sizeof spec->latent_of, "%s", pb->latent_of);
    spec->request = sl_request_read_stored(pb);
    /* What sl_request_write wrote by; the model itself may be gone. */
    spec->arch.expert_count = pb->boundary != 0.0 ? 2 : 1;
    spec->arch.task =
        pb->sizing == SLUICE__V1__SIZING__SIZING_DEFAULT ? SL_TASK_T2V : SL_TASK_I2V;
    spec->request.token_count = counts.token_count;
    spec->request.negative_token_count = counts.negative_token_count;
    spec->streaming = read_streaming(pb->streaming);
}

/* What an earlier daemon stored may not know all fields: they are the model's. */
static sl_t2v_request read_again(const sl_job_spec *spec, const sl_model_info *info)
{
    Sluice__V1__GenerateRequest pb = SLUICE__V1__GENERATE_REQUEST__INIT;

    sl_request_write(&pb, &spec->request, info->arch);
    sl_t2v_request request = sl_request_read(&pb, info);
    request.part = spec->request.part;
    if (request.part != SL_PART_DECODE) {
        request.token_count = spec->request.token_count;
        request.negative_token_count = spec->request.negative_token_count;
    }
    return request;
}

sl_status sl_request_respec(sl_service *s, sl_job_spec *spec, sl_error *err)
{
    sl_model *model = NULL;
    sl_status status = sl_models_get(s->models, &model, spec->model, err);

    if (status != SL_OK)
        return status;
    const sl_model_info *info = sl_model_get_info(model);
    const sl_t2v_request request = read_again(spec, info);
    char *path = strdup(info->path);
    if (!path) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a job of the store");
        goto done;
    }
    if (request.part != SL_PART_DECODE
        && (request.token_count < 1 || !spec->ids
            || (sl_t2v_request_is_guided(&request, info->arch) && !spec->negative_ids))) {
        status = sl_fail(err, SL_ERR_DATA, "its token ids are not in the job store");
        goto done;
    }
    spec->request = request;
    status = sl_t2v_request_check(&request, info->arch, err);
    if (status == SL_OK)
        status = make_plan(s, model, spec, err);
    if (status == SL_OK) {
        free(spec->model_path);
        spec->model_path = path;
        path = NULL;
    }
done:
    free(path);
    sl_models_release(s->models, model);
    return status;
}

/* --- the nearest request that can ever be done --- */

static bool can_ever(void *arg, const sl_core_job *job, size_t *need_bytes)
{
    sl_service *s = arg;
    sl_error ignored = { .status = SL_OK };
    sl_core_answer answer;

    pthread_mutex_lock(&s->lock);
    const sl_status status = sl_core_plan(s->core, job, &answer, &ignored);
    pthread_mutex_unlock(&s->lock);
    if (status != SL_OK || answer.when == SL_CORE_NEVER)
        return false;
    *need_bytes = answer.need_bytes;
    return true;
}

sl_status sl_request_nearest(sl_service *s, const sl_job_spec *spec,
                             Sluice__V1__NearestRequest *out, sl_error *err)
{
    const sl_variants_judge judge = { s, can_ever };
    sl_model *model = NULL;
    sl_shared_owners owners;
    sl_t2v_request nearest;
    size_t need_bytes = 0;
    bool found = false;
    sl_status status = sl_models_get(s->models, &model, spec->model, err);

    if (status != SL_OK)
        return status;
    const sl_variants_ask ask = ask_of(s, model, spec, &owners);
    status = sl_variants_nearest(&ask, &judge, &found, &nearest, &need_bytes, err);
    if (status == SL_OK && found) {
        out->exists = true;
        out->width = nearest.width;
        out->height = nearest.height;
        out->frames = nearest.frames;
        out->precision = sl_precision_to_pb(nearest.precision);
        out->need_bytes = need_bytes;
    }
    sl_models_release(s->models, model);
    return status;
}
