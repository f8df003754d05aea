/* Run: one job, from token ids to a file under its temporary name. */
#include "service/worker.h"

#include "base/log.h"
#include "base/size.h"
#include "engine/media/media.h"
#include "engine/model/model_dir.h"
#include "engine/pipeline/latent_file.h"
#include "engine/pipeline/latent_output.h"
#include "engine/pipeline/preview.h"
#include "engine/pipeline/t2v.h"
#include "kernels/scratch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VIDEO_FPS = 16 };

static_assert((int)SL_PHASE_COUNT <= (int)SL_WORKER_MAX_PHASES, "room for every phase");

/* A Run in progress. */
typedef struct {
    sl_lane *lane;
    const Sluice__Worker__Run *run;
    const sl_arch *arch;
    sl_t2v_request request;
    sl_t2v_plan plan;
    sl_resident *held[SL_COMPONENT_COUNT]; /* NULL: not needed (any more) */
    sl_t2v_components components;          /* the held ones, for the pipeline */
    sl_region *region;
    sl_scratch scratch; /* over the region */
    size_t peak_bytes;  /* held components and region at most */
    bool refused;       /* the driver has no memory for a phase */
    sl_media_writer *writer;
    uint8_t *image; /* the first frame; NULL: the model takes none */
    double *state;  /* on its way from or to the latent file; NULL: there is none */
    int steps_done; /* that were read from there */
    bool preempted;
} job;

/* ---- telling ---- */

static sl_status check_stop(job *j, sl_error *err)
{
    if (atomic_load(&j->lane->cancel))
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    if (atomic_load(&j->lane->preempt)) {
        j->preempted = true;
        return sl_fail(err, SL_ERR_CANCELLED, "pre-empted");
    }
    return SL_OK;
}

static void send_phase(job *j, int phase_number, bool waiting)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Phase phase = SLUICE__WORKER__PHASE__INIT;

    phase.job_id = j->run->job_id;
    phase.phase = phase_number;
    phase.waiting = waiting;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_PHASE;
    event.phase = &phase;
    sl_worker_send(j->lane->worker, j->lane, &event, true);
}

/* ---- components ---- */

/* The component that the daemon names for this kind, or the model's own. */
static sl_resident *acquire(const job *j, sl_component_kind kind)
{
    const Sluice__Worker__Run *run = j->run;
    const sl_precision precision = sl_component_precision(kind, (sl_precision)run->precision);
    const sl_component_mode mode =
        j->request.streamed & SL_COMPONENT_BIT(kind) ? SL_MODE_STREAMED : SL_MODE_RESIDENT;
    sl_worker *worker = j->lane->worker;

    for (size_t i = 0; i < run->n_components; i++) {
        const Sluice__Worker__ComponentKey *key = run->components[i];
        if (key->component == (int32_t)kind)
            return sl_worker_acquire(worker, key->model, kind, (sl_precision)key->precision, mode);
    }
    return sl_worker_acquire(worker, run->model, kind, precision, mode);
}

static const sl_component **slot_of(sl_t2v_components *components, int kind)
{
    const sl_component **const slots[SL_COMPONENT_COUNT] = {
        [SL_COMPONENT_TEXT_ENCODER] = &components->text_encoder,
        [SL_COMPONENT_DIT] = &components->dit,
        [SL_COMPONENT_DIT_HIGH] = &components->dit_high,
        [SL_COMPONENT_DIT_LOW] = &components->dit_low,
        [SL_COMPONENT_VAE] = &components->vae,
    };

    return slots[kind];
}

/* needed: a set; those held already stay so. */
static sl_status hold(job *j, unsigned needed, sl_error *err)
{
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        /* A run that continues may be behind its first expert; the pipeline knows. */
        const bool may_be_absent = j->steps_done > 0 && kind == SL_COMPONENT_DIT_HIGH;
        if (!(needed & SL_COMPONENT_BIT(kind)) || j->held[kind])
            continue;
        j->held[kind] = acquire(j, (sl_component_kind)kind);
        if (!j->held[kind] && !may_be_absent)
            return sl_fail(err, SL_ERR_PRECONDITION, "job \"%s\": %s of \"%s\" is not loaded",
                           j->run->job_id, sl_component_name((sl_component_kind)kind),
                           j->run->model);
        if (j->held[kind])
            *slot_of(&j->components, kind) = j->held[kind]->component;
    }
    return SL_OK;
}

static void release_all_but(job *j, unsigned needed)
{
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (j->held[kind] && !(needed & SL_COMPONENT_BIT(kind))) {
            sl_worker_release(j->lane->worker, j->held[kind]);
            j->held[kind] = NULL;
            *slot_of(&j->components, kind) = NULL;
        }
}

static unsigned components_from(const sl_t2v_plan *plan, int phase)
{
    unsigned needed = 0;

    for (; phase < SL_PHASE_COUNT; phase++)
        needed |= plan->phase_components[phase];
    return needed;
}

/* ---- the edges between phases ---- */

static void note_peak(job *j)
{
    size_t sum = sl_region_mapped_bytes(j->region);

    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (j->held[kind])
            sum += sl_component_mapped_bytes(j->held[kind]->component);
    if (sum > j->peak_bytes)
        j->peak_bytes = sum;
}

static sl_status map_to(job *j, size_t size_bytes, sl_error *err)
{
    sl_worker_begin_change(j->lane);
    const sl_status status = sl_region_map(j->region, size_bytes, err);
    if (status == SL_OK) {
        j->scratch.size_bytes = sl_region_mapped_bytes(j->region);
        atomic_store(&j->lane->activations_bytes, j->scratch.size_bytes);
    }
    return status;
}

/* Gives back what this phase does not need, nor any after it if they follow without
 * a wait. */
static sl_status shrink(job *j, sl_phase phase, sl_error *err)
{
    if (j->run->n_phase_bytes == 0 ||
        j->run->phase_bytes[phase] >= sl_region_mapped_bytes(j->region))
        return SL_OK;
    const size_t rest_bytes = sl_granules((size_t)j->run->phase_bytes[phase]);
    if (rest_bytes < j->scratch.used_bytes)
        return sl_fail(err, SL_ERR_INTERNAL,
                       "job \"%s\": %zu bytes are in use as %s begins, which was planned with %zu",
                       j->run->job_id, j->scratch.used_bytes, sl_phase_name(phase), rest_bytes);
    return map_to(j, rest_bytes, err);
}

/* Until the daemon says that the phase's components are there; with them and the
 * phase's memory afterwards. */
static sl_status wait_at_edge(job *j, sl_phase phase, sl_error *err)
{
    const unsigned needed = j->plan.phase_components[phase];
    size_t size_bytes = 0;

    release_all_but(j, needed);
    send_phase(j, (int)phase, true);
    if (sl_worker_await_go(j->lane, (int)phase, &size_bytes)) {
        sl_status status = hold(j, needed, err);
        if (status == SL_OK) {
            status = map_to(j, size_bytes, err);
            j->refused = status == SL_ERR_NO_MEMORY;
        }
        if (status != SL_OK)
            return status;
        note_peak(j);
        send_phase(j, (int)phase, false);
    }
    return check_stop(j, err);
}

static sl_status on_phase(void *arg, sl_phase phase, sl_error *err)
{
    job *j = arg;
    const sl_status status = shrink(j, phase, err);

    if (status != SL_OK)
        return status;
    if (j->run->by_phase && (int)phase != j->run->first_phase)
        return wait_at_edge(j, phase, err);
    release_all_but(j, j->run->by_phase ? j->plan.phase_components[phase]
                                        : components_from(&j->plan, (int)phase));
    send_phase(j, (int)phase, false);
    return check_stop(j, err);
}

static void log_latent(const job *j, const char *event, const sl_error *error)
{
    char quoted[2 * SL_ERROR_MESSAGE_BYTES];

    sl_log(SL_LOG_WARN, event, "id=%s message=%s", j->run->job_id,
           sl_log_quote(quoted, sizeof quoted, error->message));
}

static sl_latent_run latent_run(const job *j)
{
    sl_latent_run run = { .job = j->run->job_id, .step_count = j->request.steps };

    (void)sl_t2v_latent_shape(&j->request, j->arch, run.dim);
    return run;
}

/* Without the file the job goes on: it could only not be continued from here. */
static sl_status save_latent(job *j, int steps_done, const sl_tensor *latent, sl_error *err)
{
    const sl_latent_run run = latent_run(j);
    sl_error error;
    const sl_status status =
        sl_exec_read(j->lane->exec, j->state, latent->data, sl_tensor_bytes(latent), err);

    if (status == SL_OK && j->run->latent_path[0] &&
        sl_latent_file_write(j->run->latent_path, &run, steps_done, j->state, &error) != SL_OK)
        log_latent(j, "latent_not_saved", &error);
    return status;
}

static sl_status on_step(void *arg, int step, int step_count, const sl_tensor *latent,
                         sl_error *err)
{
    job *j = arg;
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Step message = SLUICE__WORKER__STEP__INIT;
    const int steps_done = step + 1; /* the pipeline counts from 0 */

    if (j->state) {
        const sl_status status = save_latent(j, steps_done, latent, err);
        if (status != SL_OK)
            return status;
    }
    message.job_id = j->run->job_id;
    message.step = steps_done;
    message.step_count = step_count;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_STEP;
    event.step = &message;
    sl_worker_send(j->lane->worker, j->lane, &event, false);
    return check_stop(j, err);
}

static sl_status on_guess(void *arg, int step, double sigma, const sl_tensor *x,
                          const sl_tensor *velocity, sl_error *err)
{
    job *j = arg;
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Preview message = SLUICE__WORKER__PREVIEW__INIT;
    sl_preview *preview = malloc(sizeof *preview);
    sl_status status = SL_OK;

    if (!preview)
        return SL_OK; /* a picture less */
    status = sl_preview_make(preview, j->lane->exec, x, velocity, sigma, err);
    if (status == SL_OK) {
        message.job_id = j->run->job_id;
        message.step = step + 1;
        message.width = preview->width;
        message.height = preview->height;
        message.rgb.data = preview->rgb;
        message.rgb.len = 3 * (size_t)preview->width * (size_t)preview->height;
        event.kind_case = SLUICE__WORKER__EVENT__KIND_PREVIEW;
        event.preview = &message;
        sl_worker_send(j->lane->worker, j->lane, &event, false);
    }
    free(preview);
    return status;
}

static sl_status on_frames(void *arg, const uint8_t *rgb, int first, int count, sl_error *err)
{
    job *j = arg;
    const size_t frame_bytes = (size_t)j->run->width * (size_t)j->run->height * 3;
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Decoded message = SLUICE__WORKER__DECODED__INIT;

    for (int i = 0; i < count; i++) {
        sl_status status = check_stop(j, err);
        if (status == SL_OK)
            status = sl_media_write_frame(j->writer, rgb + (size_t)i * frame_bytes, err);
        if (status != SL_OK)
            return status;
    }
    message.job_id = j->run->job_id;
    message.frames = first + count;
    message.frame_count = j->run->frames;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_DECODED;
    event.decoded = &message;
    sl_worker_send(j->lane->worker, j->lane, &event, false);
    return SL_OK;
}

/* ---- what was asked for ---- */

static sl_status check_ids(const Sluice__Worker__Run *run, const char *what, const int32_t *ids,
                           size_t count, const sl_arch *arch, sl_error *err)
{
    if (count < 1 || count > (size_t)arch->dit.text_len)
        return sl_fail(err, SL_ERR_INVALID, "job \"%s\": %zu %s ids, expected 1 to %lld", run->job_id,
                       count, what, (long long)arch->dit.text_len);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= arch->t5.vocab)
            return sl_fail(err, SL_ERR_INVALID,
                           "job \"%s\": %s id %d is outside of a vocabulary of %lld", run->job_id,
                           what, (int)ids[i], (long long)arch->t5.vocab);
    return SL_OK;
}

static sl_status check_run(const Sluice__Worker__Run *run, const sl_arch *arch, sl_error *err)
{
    if ((unsigned)run->precision >= SL_PRECISION_COUNT ||
        (unsigned)run->sampler >= SL_SAMPLER_COUNT ||
        (unsigned)run->output_format > SL_MEDIA_LATENT || (unsigned)run->part >= SL_PART_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "job \"%s\": precision, sampler, format or part unknown",
                       run->job_id);
    if ((run->part == SL_PART_LATENT) != (run->output_format == SL_MEDIA_LATENT))
        return sl_fail(err, SL_ERR_INVALID, "job \"%s\": a latent is the output of all but decoding",
                       run->job_id);
    if (run->n_phase_bytes != SL_PHASE_COUNT && (run->n_phase_bytes != 0 || run->by_phase))
        return sl_fail(err, SL_ERR_INVALID, "job \"%s\": %zu sizes of phases, expected %d%s",
                       run->job_id, run->n_phase_bytes, (int)SL_PHASE_COUNT,
                       run->by_phase ? "" : " or none");
    if ((unsigned)run->first_phase >= SL_PHASE_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "job \"%s\": there is no phase %d", run->job_id,
                       (int)run->first_phase);
    if (run->part == SL_PART_DECODE)
        return SL_OK; /* it has no words */
    sl_status status = check_ids(run, "token", run->ids, run->n_ids, arch, err);
    if (status == SL_OK && run->n_negative_ids > 0)
        status = check_ids(run, "negative token", run->negative_ids, run->n_negative_ids, arch, err);
    return status;
}

/* What does not matter to the sampler may be 0: the model's default stays. */
static void read_sampling(sl_t2v_request *request, const Sluice__Worker__Run *run)
{
    request->mode = (sl_sampler_mode)run->sampler;
    request->sigma_max = run->sigma_max;
    if (run->shift != 0.0)
        request->shift = run->shift;
    if (run->guidance != 0.0)
        request->guidance = run->guidance;
    if (run->guidance_low != 0.0)
        request->guidance_low = run->guidance_low;
    if (run->boundary != 0.0)
        request->boundary = run->boundary;
    request->attention = (sl_attention_mode)run->attention;
    if (run->topk != 0.0)
        request->topk_ratio = run->topk;
    request->dialect = (sl_dialect)run->dialect;
    request->layer_norm = (sl_layer_norm_mode)run->layer_norm;
    request->vae_precision = (sl_precision)run->vae_precision;
    if (run->n_negative_ids > 0) {
        request->negative_ids = run->negative_ids;
        request->negative_token_count = (int64_t)run->n_negative_ids;
    }
}

static sl_status make_request(job *j, sl_error *err)
{
    const Sluice__Worker__Run *run = j->run;
    sl_t2v_request *request = &j->request;
    sl_status status = check_run(run, j->arch, err);

    if (status != SL_OK)
        return status;
    *request = sl_t2v_request_default(j->arch);
    request->width = run->width;
    request->height = run->height;
    request->frames = run->frames;
    request->steps = run->steps;
    request->seed = run->seed;
    request->precision = (sl_precision)run->precision;
    request->part = (sl_t2v_part)run->part;
    if (run->n_ids > 0)
        request->token_count = (int64_t)run->n_ids;
    request->streamed = (unsigned)run->streamed;
    read_sampling(request, run);
    status = sl_t2v_request_check(request, j->arch, err);
    if (status == SL_OK)
        status = sl_t2v_plan_make(&j->plan, request, j->arch,
                                  sl_exec_numerics(j->lane->exec)->kind, err);
    return status;
}

/* Of the first phase by phase, else of all that are left. */
static sl_status hold_components(job *j, sl_error *err)
{
    const bool decode_only = j->steps_done == j->request.steps;

    j->components.by_phase = j->run->by_phase;
    return hold(j,
                j->run->by_phase ? j->plan.phase_components[j->run->first_phase]
                                 : components_from(&j->plan, decode_only ? SL_PHASE_DECODE : 0),
                err);
}

static sl_status read_image(job *j, sl_error *err)
{
    const size_t image_bytes = (size_t)j->run->width * (size_t)j->run->height * 3;
    sl_status status = SL_OK;

    if (!j->run->image_path[0])
        return SL_OK;
    FILE *f = fopen(j->run->image_path, "rbe");
    if (!f)
        return sl_fail_errno(err, "job \"%s\": could not open its image", j->run->job_id);
    j->image = malloc(image_bytes);
    if (!j->image)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "job \"%s\": out of memory for its image",
                         j->run->job_id);
    else if (fread(j->image, 1, image_bytes, f) != image_bytes || fgetc(f) != EOF)
        status = sl_fail(err, SL_ERR_DATA, "job \"%s\": its image has not the %zu bytes of %d x %d",
                         j->run->job_id, image_bytes, (int)j->run->width, (int)j->run->height);
    fclose(f);
    j->request.image = j->image;
    return status;
}

/* What an earlier attempt has saved, which is no failure if it cannot be used, or
 * the latent to decode, which is one. */
static sl_status read_latent(job *j, sl_error *err)
{
    const sl_latent_run run = latent_run(j);
    size_t count = (size_t)sl_t2v_latent_shape(&j->request, j->arch, NULL), state_bytes;
    sl_error error;

    if (!j->run->latent_path[0] && j->request.part == SL_PART_ALL)
        return SL_OK;
    if (sl_size_mul(count, sizeof(double), &state_bytes))
        j->state = malloc(state_bytes);
    if (!j->state)
        return sl_fail(err, SL_ERR_NO_MEMORY, "job \"%s\": out of memory for its latent",
                       j->run->job_id);
    if (j->request.part == SL_PART_DECODE) {
        j->steps_done = j->request.steps;
        return sl_latent_output_read(j->run->source_path, run.dim, j->state, err);
    }
    if (!j->run->resume || !j->run->latent_path[0])
        return SL_OK;
    const sl_status status =
        sl_latent_file_read(j->run->latent_path, &run, &j->steps_done, j->state, &error);
    if (status != SL_OK) {
        j->steps_done = 0;
        if (status != SL_ERR_NOT_FOUND)
            log_latent(j, "latent_not_used", &error);
    }
    return SL_OK;
}

/* The daemon has loaded nothing for the phases before first_phase. */
static sl_status check_state(const job *j, Sluice__Worker__Done *done, sl_error *err)
{
    const sl_phase first =
        j->steps_done == j->request.steps ? SL_PHASE_DECODE : SL_PHASE_ENCODE_TEXT;

    done->state_lost = (int)first < j->run->first_phase;
    if (done->state_lost)
        return sl_fail(err, SL_ERR_PRECONDITION,
                       "job \"%s\": the state behind its last step cannot be used",
                       j->run->job_id);
    return SL_OK;
}

/* ---- the job ---- */

/* Maps the job's peak before it starts, or that of its first phase; only here, and at
 * the edges, NO_MEMORY means that the job may be tried again. */
static sl_status map_activations(job *j, sl_error *err)
{
    const size_t need_bytes = j->run->activation_bytes;
    size_t most_bytes = need_bytes ? need_bytes : 1;

    for (size_t i = 0; i < j->run->n_phase_bytes && j->run->by_phase; i++)
        if (j->run->phase_bytes[i] > most_bytes)
            most_bytes = (size_t)j->run->phase_bytes[i];
    sl_status status = sl_region_create(&j->region, j->lane->worker->device, "activations",
                                        most_bytes, err);
    if (status == SL_OK)
        status = map_to(j, need_bytes, err);
    if (status == SL_OK) {
        sl_scratch_init(&j->scratch, sl_region_data(j->region), sl_region_mapped_bytes(j->region));
        note_peak(j);
    }
    return status;
}

static void unmap_activations(job *j)
{
    if (!j->region)
        return;
    sl_worker_begin_change(j->lane);
    sl_region_destroy(j->region);
    j->region = NULL;
    atomic_store(&j->lane->activations_bytes, 0);
}

static sl_status walk(job *j, sl_t2v_result *result, sl_error *err)
{
    const sl_t2v_events events = { .arg = j,
                                   .on_phase = on_phase,
                                   .on_step = on_step,
                                   .on_guess = j->run->preview ? on_guess : NULL,
                                   .on_frames = on_frames };

    if (j->steps_done > 0)
        return sl_t2v_resume(j->lane->exec, &j->scratch, &j->components, j->arch, &j->request,
                             j->run->ids, NULL, j->steps_done, j->state, &events, result, err);
    return sl_t2v_run(j->lane->exec, &j->scratch, &j->components, j->arch, &j->request, j->run->ids,
                      NULL, &events, result, err);
}

/* Without decoding: the state behind the last step, whose first rows are the sample. */
static sl_status make_latent(job *j, sl_t2v_result *result, sl_error *err)
{
    const sl_latent_run run = latent_run(j);
    const int64_t dim[4] = { j->arch->dit.out_dim, run.dim[1], run.dim[2], run.dim[3] };
    sl_status status = SL_OK;

    if (j->steps_done < j->request.steps)
        status = walk(j, result, err);
    if (status == SL_OK) {
        send_phase(j, SL_PHASE_COUNT, false);
        status = sl_latent_output_write(j->run->output_path, dim, j->state, err);
    }
    return status;
}

static sl_status make_video(job *j, sl_t2v_result *result, sl_error *err)
{
    const Sluice__Worker__Run *run = j->run;
    /* One encoder thread: the same frames give the same bytes on any machine. */
    sl_status status = sl_media_open(&j->writer, run->output_path,
                                     (sl_media_format)run->output_format, run->width, run->height,
                                     VIDEO_FPS, 1, err);

    if (status == SL_OK)
        status = walk(j, result, err);
    if (status == SL_OK) {
        send_phase(j, SL_PHASE_COUNT, false);
        status = sl_media_finish(j->writer, err);
    }
    sl_media_close(j->writer);
    return status;
}

/* Everything after the memory is there. */
static sl_status make_output(job *j, sl_t2v_result *result, sl_error *err)
{
    sl_status status = sl_worker_note_partial(j->lane, j->run->output_path, err);

    if (status == SL_OK)
        status = j->request.part == SL_PART_LATENT ? make_latent(j, result, err)
                                                   : make_video(j, result, err);
    if (status == SL_ERR_NO_MEMORY && !j->refused) {
        err->status =
            SL_ERR_INTERNAL; /* mapped as planned, and not enough: asking again is no use */
        status = sl_error_prefix(err, "the memory that was planned did not suffice");
    }
    return status;
}

static void fini_job(job *j)
{
    unmap_activations(j);
    release_all_but(j, 0);
    free(j->image);
    free(j->state);
}

static void report(const job *j, const sl_t2v_result *measured, sl_worker_run_result *result,
                   Sluice__Worker__Done *done)
{
    done->n_phase_activation_bytes = SL_PHASE_COUNT;
    done->phase_activation_bytes = result->phases;
    for (int i = 0; i < SL_PHASE_COUNT; i++)
        result->phases[i] = measured->phase_activation_bytes[i];
    done->output_sha256 = result->sha256;
    done->resumed_from_step = j->steps_done;
}

sl_status sl_worker_run(sl_lane *lane, const Sluice__Worker__Run *run, sl_worker_run_result *result,
                        Sluice__Worker__Done *done, sl_error *err)
{
    job j = { .lane = lane, .run = run };
    sl_model_dir *dir = NULL;
    sl_t2v_result measured = { 0 };
    sl_status status = sl_model_dir_open(&dir, run->model_path, err);

    if (status == SL_OK) {
        j.arch = sl_model_dir_info(dir)->arch;
        status = make_request(&j, err);
    }
    if (status == SL_OK)
        status = read_image(&j, err);
    if (status == SL_OK)
        status = read_latent(&j, err);
    if (status == SL_OK)
        status = check_state(&j, done, err);
    if (status == SL_OK)
        status = hold_components(&j, err);
    if (status == SL_OK)
        status = map_activations(&j, err);
    if (status == SL_OK)
        status = make_output(&j, &measured, err);
    if (j.region)
        done->job_peak_bytes = j.peak_bytes + sl_worker_workspace_bytes(lane->worker);
    if (status == SL_OK)
        status =
            sl_worker_hash_file(run->output_path, result->sha256, &done->output_size_bytes, err);
    sl_worker_forget_partial(lane, status != SL_OK);
    if (status == SL_OK) {
        report(&j, &measured, result, done);
        if (run->latent_path[0] && unlink(run->latent_path) != 0 && errno != ENOENT)
            sl_log(SL_LOG_WARN, "latent_not_removed", "id=%s errno=%d", run->job_id, errno);
    }
    done->preempted = j.preempted && status == SL_ERR_CANCELLED;
    fini_job(&j);
    sl_model_dir_close(dir);
    return status;
}
