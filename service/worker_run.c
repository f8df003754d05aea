/* Run: one job, from token ids to a file under its temporary name. */
#include "service/worker.h"

#include "engine/media/media.h"
#include "engine/model/model_dir.h"
#include "engine/pipeline/t2v.h"
#include "kernels/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VIDEO_FPS = 16 };

static_assert((int)SL_PHASE_COUNT <= (int)SL_WORKER_MAX_PHASES, "room for every phase");

typedef struct {
    sl_worker *worker;
    const Sluice__Worker__Run *run;
    sl_media_writer *writer;
} progress;

/* ---- telling ---- */

static sl_status check_cancelled(sl_worker *worker, sl_error *err)
{
    if (atomic_load(&worker->cancel))
        return sl_fail(err, SL_ERR_CANCELLED, "cancelled");
    return SL_OK;
}

static void send_phase(sl_worker *worker, const char *job_id, int phase_number)
{
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Phase phase = SLUICE__WORKER__PHASE__INIT;

    phase.job_id = (char *)job_id;
    phase.phase = phase_number;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_PHASE;
    event.phase = &phase;
    sl_worker_send(worker, &event, true);
}

static sl_status on_phase(void *arg, sl_phase phase, sl_error *err)
{
    progress *p = arg;

    send_phase(p->worker, p->run->job_id, (int)phase);
    return check_cancelled(p->worker, err);
}

static sl_status on_step(void *arg, int step, int step_count, const sl_tensor *latent,
                         sl_error *err)
{
    progress *p = arg;
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Step message = SLUICE__WORKER__STEP__INIT;

    (void)latent;
    message.job_id = p->run->job_id;
    message.step = step + 1; /* the pipeline counts from 0 */
    message.step_count = step_count;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_STEP;
    event.step = &message;
    sl_worker_send(p->worker, &event, false);
    return check_cancelled(p->worker, err);
}

static sl_status on_frames(void *arg, const uint8_t *rgb, int first, int count, sl_error *err)
{
    progress *p = arg;
    const size_t frame_bytes = (size_t)p->run->width * (size_t)p->run->height * 3;
    Sluice__Worker__Event event = SLUICE__WORKER__EVENT__INIT;
    Sluice__Worker__Decoded message = SLUICE__WORKER__DECODED__INIT;

    for (int i = 0; i < count; i++) {
        sl_status status = check_cancelled(p->worker, err);
        if (status == SL_OK)
            status = sl_media_write_frame(p->writer, rgb + (size_t)i * frame_bytes, err);
        if (status != SL_OK)
            return status;
    }
    message.job_id = p->run->job_id;
    message.frames = first + count;
    message.frame_count = p->run->frames;
    event.kind_case = SLUICE__WORKER__EVENT__KIND_DECODED;
    event.decoded = &message;
    sl_worker_send(p->worker, &event, false);
    return SL_OK;
}

/* ---- the output file ---- */

static sl_status hash_file(const char *path, char hex[SL_SHA256_HEX_BYTES], uint64_t *size_bytes,
                           sl_error *err)
{
    unsigned char buffer[1 << 16], digest[EVP_MAX_MD_SIZE];
    sl_status status = SL_OK;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t total = 0;
    ssize_t n;

    if (fd < 0) {
        status = sl_fail_errno(err, "could not read back \"%s\"", path);
        goto done;
    }
    if (!context || EVP_DigestInit_ex(context, EVP_sha256(), NULL) != 1) {
        status = sl_fail(err, SL_ERR_INTERNAL, "could not start a SHA-256");
        goto done;
    }
    while ((n = read(fd, buffer, sizeof buffer)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 || EVP_DigestUpdate(context, buffer, (size_t)n) != 1) {
            status = sl_fail_errno(err, "could not read back \"%s\"", path);
            goto done;
        }
        total += (uint64_t)n;
    }
    if (EVP_DigestFinal_ex(context, digest, NULL) != 1) {
        status = sl_fail(err, SL_ERR_INTERNAL, "could not finish a SHA-256");
        goto done;
    }
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    *size_bytes = total;
done:
    EVP_MD_CTX_free(context);
    if (fd >= 0)
        close(fd);
    return status;
}

/* From now on the file is removed whenever the job or the process ends
 * without it being finished. */
static sl_status note_partial(sl_worker *worker, const char *path, sl_error *err)
{
    char *copy = strdup(path);
    sl_status status = SL_OK;

    if (!copy)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the output's name");
    pthread_mutex_lock(&worker->lock);
    if (worker->quit) {
        status = sl_fail(err, SL_ERR_CANCELLED, "the worker is shutting down");
        free(copy);
    } else {
        worker->partial = copy;
    }
    pthread_mutex_unlock(&worker->lock);
    return status;
}

static void forget_partial(sl_worker *worker, bool remove_it)
{
    pthread_mutex_lock(&worker->lock);
    if (worker->partial && remove_it)
        unlink(worker->partial);
    free(worker->partial);
    worker->partial = NULL;
    pthread_mutex_unlock(&worker->lock);
}

/* ---- the job ---- */

static sl_status make_request(const Sluice__Worker__Run *run, const sl_arch *arch,
                              sl_t2v_request *out, sl_error *err)
{
    sl_t2v_request request = sl_t2v_request_default(arch);

    request.width = run->width;
    request.height = run->height;
    request.frames = run->frames;
    request.steps = run->steps;
    request.mode = (sl_sampler_mode)run->sampler;
    request.sigma_max = run->sigma_max;
    request.seed = run->seed;
    request.precision = (sl_precision)run->precision;
    request.token_count = (int64_t)run->n_ids;
    if ((unsigned)run->precision >= SL_PRECISION_COUNT ||
        (run->sampler != SL_SAMPLER_SDE && run->sampler != SL_SAMPLER_ODE) ||
        (unsigned)run->output_format > SL_MEDIA_PNG)
        return sl_fail(err, SL_ERR_INVALID, "job \"%s\": precision, sampler or format unknown",
                       run->job_id);
    if (run->n_ids < 1 || request.token_count > arch->dit.text_len)
        return sl_fail(err, SL_ERR_INVALID, "job \"%s\": %zu token ids, expected 1 to %lld",
                       run->job_id, run->n_ids, (long long)arch->dit.text_len);
    for (size_t i = 0; i < run->n_ids; i++)
        if (run->ids[i] < 0 || run->ids[i] >= arch->t5.vocab)
            return sl_fail(err, SL_ERR_INVALID,
                           "job \"%s\": token id %d is outside of a vocabulary of %lld",
                           run->job_id, (int)run->ids[i], (long long)arch->t5.vocab);
    const sl_status status = sl_t2v_request_check(&request, arch, err);
    if (status == SL_OK)
        *out = request;
    return status;
}

static sl_status find_components(sl_worker *worker, const Sluice__Worker__Run *run,
                                 sl_t2v_components *out, size_t *size_bytes, sl_error *err)
{
    static const sl_component_kind kinds[] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_DIT,
                                               SL_COMPONENT_VAE };
    const sl_component **slots[] = { &out->text_encoder, &out->dit, &out->vae };

    *size_bytes = 0;
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        *slots[i] = sl_worker_find(worker, run->model, kinds[i], (sl_precision)run->precision);
        if (!*slots[i])
            return sl_fail(err, SL_ERR_PRECONDITION, "job \"%s\": %s of \"%s\" is not loaded",
                           run->job_id, sl_component_name(kinds[i]), run->model);
        *size_bytes += sl_component_mapped_bytes(*slots[i]);
    }
    return SL_OK;
}

/* Maps the job's peak before it starts; only here NO_MEMORY means that the job
 * may be tried again. */
static sl_status map_activations(sl_worker *worker, const Sluice__Worker__Run *run,
                                 sl_region **region, sl_error *err)
{
    sl_status status;

    status = sl_region_create(region, worker->device, "activations",
                              run->activation_bytes ? run->activation_bytes : 1, err);
    if (status == SL_OK)
        status = sl_region_map(*region, run->activation_bytes, err);
    if (status == SL_OK)
        atomic_store(&worker->activations_bytes, sl_region_mapped_bytes(*region));
    return status;
}

static void unmap_activations(sl_worker *worker, sl_region *region)
{
    atomic_store(&worker->changing, true);
    sl_region_destroy(region);
    atomic_store(&worker->activations_bytes, 0);
}

/* Everything after the memory is there. */
static sl_status make_video(sl_worker *worker, const Sluice__Worker__Run *run, const sl_arch *arch,
                            const sl_t2v_request *request, const sl_t2v_components *components,
                            sl_region *region, sl_t2v_result *result, sl_error *err)
{
    progress p = { .worker = worker, .run = run };
    const sl_t2v_events events = {
        .arg = &p, .on_phase = on_phase, .on_step = on_step, .on_frames = on_frames
    };
    sl_scratch scratch;

    sl_scratch_init(&scratch, sl_region_data(region), sl_region_mapped_bytes(region));
    sl_status status = note_partial(worker, run->output_path, err);
    /* One encoder thread: the same frames give the same bytes on any machine. */
    if (status == SL_OK)
        status = sl_media_open(&p.writer, run->output_path, (sl_media_format)run->output_format,
                               run->width, run->height, VIDEO_FPS, 1, err);
    if (status == SL_OK)
        status = sl_t2v_run(worker->exec, &scratch, components, arch, request, run->ids, NULL,
                            &events, result, err);
    if (status == SL_OK) {
        send_phase(worker, run->job_id, SL_PHASE_COUNT);
        status = sl_media_finish(p.writer, err);
    }
    sl_media_close(p.writer);
    if (status == SL_ERR_NO_MEMORY) {
        err->status =
            SL_ERR_INTERNAL; /* mapped as planned, and not enough: asking again is no use */
        status = sl_error_prefix(err, "the memory that was planned did not suffice");
    }
    return status;
}

sl_status sl_worker_run(sl_worker *worker, const Sluice__Worker__Run *run,
                        sl_worker_run_result *result, Sluice__Worker__Done *done, sl_error *err)
{
    sl_model_dir *dir = NULL;
    sl_region *region = NULL;
    sl_t2v_request request;
    sl_t2v_components components = { 0 };
    sl_t2v_result measured = { 0 };
    size_t used_bytes = 0;
    sl_status status = sl_model_dir_open(&dir, run->model_path, err);
    const sl_arch *arch = status == SL_OK ? sl_model_dir_info(dir)->arch : NULL;

    if (status == SL_OK)
        status = make_request(run, arch, &request, err);
    if (status == SL_OK)
        status = find_components(worker, run, &components, &used_bytes, err);
    if (status == SL_OK)
        status = map_activations(worker, run, &region, err);
    if (status == SL_OK)
        status = make_video(worker, run, arch, &request, &components, region, &measured, err);
    if (status == SL_OK)
        status = hash_file(run->output_path, result->sha256, &done->output_size_bytes, err);
    forget_partial(worker, status != SL_OK);
    if (region) {
        sl_device_stats stats;
        sl_device_get_stats(worker->device, &stats);
        done->job_peak_bytes =
            stats.peak_mapped_bytes - (atomic_load(&worker->weights_bytes) - used_bytes);
        unmap_activations(worker, region);
    }
    if (status == SL_OK) {
        done->n_phase_activation_bytes = SL_PHASE_COUNT;
        done->phase_activation_bytes = result->phases;
        for (int i = 0; i < SL_PHASE_COUNT; i++)
            result->phases[i] = measured.phase_activation_bytes[i];
        done->output_sha256 = result->sha256;
    }
    sl_model_dir_close(dir);
    return status;
}
