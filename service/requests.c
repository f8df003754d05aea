/* requests.c - what a request comes to: sizes, ids, plan, what the core asks. */
#include "service/inputs.h"

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
    uint8_t *bytes = sl_arena_alloc(arena, size ? size : 1);

    /* Without memory every body differs: the same id is then refused, not mixed up. */
    memset(out, 0, SL_BODY_HASH_BYTES);
    if (!bytes)
        return;
    protobuf_c_message_pack(request, bytes);
    SHA256(bytes, size, out);
}

sl_status sl_request_need(const sl_model_info *info, sl_component_kind kind,
                          sl_precision precision, sl_core_need *out, sl_error *err)
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
    snprintf(out->key.model, sizeof out->key.model, "%s", info->name);
    return SL_OK;
}

/* --- from the wire --- */

static sl_status check_numbers(sl_rpc_call *call, const Sluice__V1__GenerateRequest *pb,
                               const sl_t2v_request *request, const sl_arch *arch, sl_error *err)
{
    sl_error why = { .status = SL_OK };
    sl_request_problem problem;
    const sl_status status = sl_request_check(pb, request, arch, &problem, &why);

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

/* Everything that can be streamed, when that is asked for. */
static unsigned streamed_set(const sl_arch *arch, Sluice__V1__Streaming streaming)
{
    unsigned set = 0;

    for (int k = 0; k < SL_COMPONENT_COUNT && streaming == SLUICE__V1__STREAMING__ON; k++) {
        const sl_component_kind kind = (sl_component_kind)k;
        if (sl_arch_has_component(arch, kind) && sl_component_can_stream(kind))
            set |= SL_COMPONENT_BIT(kind);
    }
    return set;
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

/* A guess at the floating-point operations of the steps: what the network's linears
 * and its attention come to.  Rates are measured per model, so only the ratio of two
 * requests of one model matters for long. */
static double guess_cost(const sl_t2v_request *request, const sl_arch *arch)
{
    const double dim = (double)arch->dit.dim, ffn = (double)arch->dit.ffn_dim;
    const double tokens = (double)(request->width / 16) * (double)(request->height / 16)
                          * (double)((request->frames - 1) / 4 + 1);
    const double linears = tokens * (12.0 * dim * dim + 4.0 * dim * ffn);
    const double kept = request->attention == SL_ATTENTION_DENSE ? 1.0 : request->topk_ratio;
    const double attention = 4.0 * dim * tokens * (tokens + (double)arch->dit.text_len);

    return (sl_t2v_request_is_guided(request, arch) ? 2.0 : 1.0) * (double)request->steps
           * (double)arch->dit.num_layers * (linears + kept * attention);
}

/* Phases that the run has, in their order; what it maps in one is what it needs from
 * there on. */
static void fill_phases(sl_core_variant *variant, const sl_t2v_plan *plan)
{
    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        sl_core_phase_plan *out = &variant->phases[variant->phase_count];
        if (plan->phase_components[phase] == 0)
            continue;
        *out = (sl_core_phase_plan){ .activation_bytes = plan->remaining_bytes[phase] };
        for (int i = 0; i < variant->need_count; i++) {
            if (plan->phase_components[phase] & SL_COMPONENT_BIT(variant->needs[i].key.component))
                out->needs |= 1u << i;
        }
        variant->phase_count++;
    }
}

int sl_request_core_phase(const sl_t2v_plan *plan, int phase)
{
    int before = 0;

    for (int i = 0; i < phase; i++)
        before += plan->phase_components[i] != 0;
    return before;
}

/* Plan, components and facts of spec->request. */
static sl_status make_plan(const sl_service *s, const sl_model_info *info, sl_job_spec *spec,
                           sl_error *err)
{
    unsigned components = 0;
    sl_status status = sl_t2v_plan_make(&spec->plan, &spec->request, info->arch,
                                        s->config.device.kind, err);

    if (status != SL_OK)
        return status;
    spec->arch = *info->arch;
    spec->core.need_count = 0;
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (spec->plan.weight_bytes[kind] == 0)
            continue;
        sl_core_need *need = &spec->core.needs[spec->core.need_count];
        status = sl_request_need(info, (sl_component_kind)kind, spec->request.precision, need, err);
        if (status != SL_OK)
            return status;
        need->size_bytes = spec->plan.weight_bytes[kind];
        if (spec->request.streamed & SL_COMPONENT_BIT(kind))
            need->key.mode = SL_MODE_STREAMED;
        spec->core.need_count++;
        components |= 1u << kind;
    }
    spec->core.activation_bytes = spec->plan.activation_bytes;
    spec->core.cost = guess_cost(&spec->request, info->arch);
    status = sl_budget_facts_make(&spec->core.facts, info->name, info->arch, components,
                                  spec->request.precision, &spec->request, err);
    if (status != SL_OK)
        return status;
    sl_core_variant *variant = &spec->core.variants[0];
    *variant = (sl_core_variant){ .need_count = spec->core.need_count,
                                  .activation_bytes = spec->core.activation_bytes,
                                  .facts = spec->core.facts };
    memcpy(variant->needs, spec->core.needs, sizeof variant->needs);
    fill_phases(variant, &spec->plan);
    spec->core.variant_count = 1;
    return SL_OK;
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
    spec.request.streamed = streamed_set(info->arch, request->streaming);
    if (spec.request.streamed && s->config.host_bytes == 0) {
        status = sl_fail(err, SL_ERR_PRECONDITION,
                         "streaming needs host memory: host_memory is 0 in the configuration");
        goto done;
    }
    status = read_order(call, request, &spec, err);
    if (status == SL_OK)
        status = sl_input_size(call, request, info->arch, to_run && !spec.latent_of[0],
                               &spec.request, err);
    if (status == SL_OK)
        status = check_numbers(call, request, &spec.request, info->arch, err);
    if (status == SL_OK)
        status = read_texts(s, call, model, request, to_run, &spec, err);
    if (status == SL_OK)
        status = make_plan(s, info, &spec, err);
    if (status == SL_OK && to_run && !spec.latent_of[0] && info->arch->task == SL_TASK_I2V)
        status = sl_input_store(s, call, request, &spec.request, &spec.source_path, err);
    if (status != SL_OK)
        goto done;
    *out = spec;
    spec = (sl_job_spec){ .model_path = NULL };
done:
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
    /* Which ones: when it runs. */
    spec->request.streamed = pb->streaming == SLUICE__V1__STREAMING__ON;
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
    request.streamed = streamed_set(info->arch, spec->request.streamed ? SLUICE__V1__STREAMING__ON
                                                                       : SLUICE__V1__STREAMING__OFF);
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
        status = make_plan(s, info, spec, err);
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

static int scale_side(int side, int num, int den)
{
    const int scaled = side * num / den / 16 * 16;

    return scaled < 16 ? 16 : scaled;
}

/* Can the device ever do it?  Fills try's plan. */
static bool can_ever(sl_service *s, const sl_model_info *info, sl_job_spec *try)
{
    sl_error ignored = { .status = SL_OK };
    sl_core_answer *answer = malloc(sizeof *answer);
    bool can = false;

    if (answer && sl_t2v_request_check(&try->request, info->arch, &ignored) == SL_OK
        && make_plan(s, info, try, &ignored) == SL_OK) {
        pthread_mutex_lock(&s->lock);
        can = sl_core_plan(s->core, &try->core, answer, &ignored) == SL_OK
              && answer->when != SL_CORE_NEVER;
        pthread_mutex_unlock(&s->lock);
    }
    free(answer);
    return can;
}

/* The most frames, 4m + 1 and at most as many as asked for; 0: not even one. */
static int most_frames(sl_service *s, const sl_model_info *info, sl_job_spec *try, int asked)
{
    int low = -1, high = (asked - 1) / 4; /* 4 low + 1 frames can be done */

    while (low < high) {
        const int middle = low + (high - low + 1) / 2;
        try->request.frames = 4 * middle + 1;
        if (can_ever(s, info, try))
            low = middle;
        else
            high = middle - 1;
    }
    if (low < 0)
        return 0;
    try->request.frames = 4 * low + 1;
    return can_ever(s, info, try) ? try->request.frames : 0;
}

sl_status sl_request_nearest(sl_service *s, const sl_job_spec *spec,
                             Sluice__V1__NearestRequest *out, sl_error *err)
{
    enum { SCALES = 16 };
    sl_model *model = NULL;
    int64_t best = 0;
    bool best_is_video = false;
    const sl_status status = sl_models_get(s->models, &model, spec->model, err);

    if (status != SL_OK)
        return status;
    const sl_model_info *info = sl_model_get_info(model);
    /* The precision asked for first; a lower one only where that never fits. */
    for (int precision = (int)spec->request.precision; precision < SL_PRECISION_COUNT && !best;
         precision++) {
        for (int scale = SCALES; scale > 0; scale--) {
            sl_job_spec try = { .request = spec->request, .core = spec->core };
            try.request.precision = (sl_precision)precision;
            try.request.width = scale_side(spec->request.width, scale, SCALES);
            try.request.height = scale_side(spec->request.height, scale, SCALES);
            const int frames = most_frames(s, info, &try, spec->request.frames);
            const int64_t volume = (int64_t)try.request.width * try.request.height * frames;
            /* Who asked for a video is not helped by a large picture. */
            const bool is_video = 2 * frames >= spec->request.frames;
            if (frames == 0 || is_video < best_is_video
                || (is_video == best_is_video && volume <= best))
                continue;
            best = volume;
            best_is_video = is_video;
            out->exists = true;
            out->width = try.request.width;
            out->height = try.request.height;
            out->frames = frames;
            out->precision = sl_precision_to_pb(try.request.precision);
            out->need_bytes = try.plan.total_bytes;
        }
    }
    sl_models_release(s->models, model);
    return SL_OK;
}
