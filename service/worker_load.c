/* Load, Unload and Trim: components of models, on the device. */
#include "service/worker.h"

#include "base/clock.h"
#include "base/log.h"
#include "kernels/copy.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

/* The loader's lane, or under the lock. */
static sl_resident **find_slot(sl_worker *worker, const char *model, int kind, int precision,
                               int mode)
{
    sl_resident **at = &worker->residents;

    while (*at && ((int)(*at)->kind != kind || (int)(*at)->precision != precision ||
                   (int)(*at)->mode != mode || strcmp((*at)->model, model) != 0))
        at = &(*at)->next;
    return at;
}

static sl_resident **find_key(sl_worker *worker, const Sluice__Worker__ComponentKey *key)
{
    return find_slot(worker, key->model, key->component, key->precision, key->mode);
}

sl_resident *sl_worker_acquire(sl_worker *worker, const char *model, sl_component_kind kind,
                               sl_precision precision, sl_component_mode mode)
{
    pthread_mutex_lock(&worker->lock);
    sl_resident *r = *find_slot(worker, model, (int)kind, (int)precision, (int)mode);
    if (r)
        r->user_count++;
    pthread_mutex_unlock(&worker->lock);
    return r;
}

void sl_worker_release(sl_worker *worker, sl_resident *r)
{
    pthread_mutex_lock(&worker->lock);
    r->user_count--;
    pthread_mutex_unlock(&worker->lock);
}

static void free_resident(sl_resident *r)
{
    if (!r)
        return;
    sl_component_destroy(r->component);
    if (r->image)
        sl_worker_unuse_image(r->image);
    free(r->model);
    free(r);
}

sl_status sl_worker_make_spec(const sl_model_info *info, const Sluice__Worker__ComponentKey *key,
                              sl_component_spec *out, sl_error *err)
{
    const sl_component_kind kind = (sl_component_kind)key->component;

    if (!sl_arch_has_component(info->arch, kind) || !info->files[kind])
        return sl_fail(err, SL_ERR_NOT_FOUND, "model \"%s\" has no component %s", key->model,
                       sl_component_name(kind));
    if (key->mode == SL_MODE_STREAMED && !sl_component_can_stream(kind))
        return sl_fail(err, SL_ERR_INVALID, "component %s cannot be streamed",
                       sl_component_name(kind));
    if (sl_dit_precision_check(&info->arch->dit, (sl_precision)key->precision, err) != SL_OK)
        return SL_ERR_INVALID;
    *out = sl_component_spec_of(info->arch, kind, (sl_precision)key->precision);
    out->mode = (sl_component_mode)key->mode;
    return SL_OK;
}

static sl_status check_plan(const sl_component_spec *spec, const Sluice__Worker__Load *load,
                            sl_error *err)
{
    const char *name = sl_component_name(spec->kind);

    if (spec->mode == SL_MODE_STREAMED && !load->from_host)
        return sl_fail(err, SL_ERR_INVALID, "component %s can be streamed from its image alone",
                       name);
    const size_t plan_bytes = sl_component_plan_bytes(spec);
    if (plan_bytes != load->planned_bytes)
        return sl_fail(err, SL_ERR_PRECONDITION,
                       "component %s of \"%s\" needs %zu bytes, the plan said %llu: its files have "
                       "changed",
                       name, load->key->model, plan_bytes, (unsigned long long)load->planned_bytes);
    return SL_OK;
}

static sl_status load_file(sl_lane *lane, sl_resident *r, const sl_component_spec *spec,
                           const char *path, sl_error *err)
{
    sl_ckpt *ckpt = NULL;
    sl_status status = sl_ckpt_open(&ckpt, path, err);

    if (status == SL_OK)
        status =
            sl_component_load(&r->component, spec, lane->worker->device, lane->exec, ckpt, err);
    sl_ckpt_close(ckpt);
    return status;
}

/* What a copy costs depends on whether its memory is pinned yet: a new worker, as
 * after a hard reset, pins as it goes. */
static void log_copy(const sl_worker *worker, const sl_resident *r, int64_t start_ns,
                     size_t pinned_before)
{
    const size_t pinned = sl_host_pinned_bytes(worker->device);

    if (sl_device_get_spec(worker->device)->kind != SL_DEVICE_CUDA)
        return;
    sl_log(SL_LOG_INFO, "copied", "model=\"%s\" component=%s bytes=%zu ms=%.1f pinned=%zu new=%zu",
           r->model, sl_component_name(r->kind), sl_component_mapped_bytes(r->component),
           (double)(sl_clock_now_ns() - start_ns) / (double)SL_NS_PER_MS, pinned,
           pinned > pinned_before ? pinned - pinned_before : 0);
}

/* A streamed component goes on reading the image; a resident one is done with it. */
static sl_status load_image(sl_lane *lane, sl_resident *r, const sl_component_spec *spec,
                            const Sluice__Worker__ComponentKey *key, sl_error *err)
{
    const size_t pinned_before = sl_host_pinned_bytes(lane->worker->device);
    const int64_t start_ns = sl_clock_now_ns();
    sl_status status = sl_worker_use_image(lane->worker, key, &r->image, err);

    if (status != SL_OK)
        return status;
    if (sl_component_image_bytes(spec) != r->image->image_bytes)
        status = sl_fail(err, SL_ERR_PRECONDITION,
                         "its image has %zu bytes, expected %zu: its files have changed",
                         r->image->image_bytes, sl_component_image_bytes(spec));
    else
        status = sl_component_load_image(&r->component, spec, lane->worker->device, lane->exec,
                                         r->image->base, r->image->image_bytes, err);
    if (status == SL_OK)
        log_copy(lane->worker, r, start_ns, pinned_before);
    if (status != SL_OK || spec->mode != SL_MODE_STREAMED) {
        sl_worker_unuse_image(r->image);
        r->image = NULL;
    }
    return status;
}

static sl_status load_component(sl_lane *lane, sl_resident *r, const Sluice__Worker__Load *load,
                                sl_error *err)
{
    sl_model_dir *dir = NULL;
    sl_component_spec spec;
    sl_status status = sl_model_dir_open(&dir, load->model_path, err);

    if (status == SL_OK)
        status = sl_worker_make_spec(sl_model_dir_info(dir), load->key, &spec, err);
    if (status == SL_OK)
        status = check_plan(&spec, load, err);
    if (status == SL_OK && load->from_host)
        status = load_image(lane, r, &spec, load->key, err);
    else if (status == SL_OK)
        status = load_file(lane, r, &spec, sl_model_dir_info(dir)->files[r->kind], err);
    sl_model_dir_close(dir);
    return status;
}

sl_status sl_worker_check_key(const Sluice__Worker__ComponentKey *key, sl_error *err)
{
    if (!key || !key->model[0] || (unsigned)key->component >= SL_COMPONENT_COUNT ||
        (unsigned)key->precision >= SL_PRECISION_COUNT || (unsigned)key->mode >= SL_MODE_COUNT)
        return sl_fail(err, SL_ERR_INVALID, "a command without a valid component key");
    return SL_OK;
}

static sl_status make_resident(sl_resident **out, const Sluice__Worker__ComponentKey *key,
                               sl_error *err)
{
    sl_resident *r = calloc(1, sizeof *r);

    if (r)
        r->model = strdup(key->model);
    if (!r || !r->model) {
        free(r);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory to load \"%s\"", key->model);
    }
    r->kind = (sl_component_kind)key->component;
    r->precision = (sl_precision)key->precision;
    r->mode = (sl_component_mode)key->mode;
    *out = r;
    return SL_OK;
}

sl_status sl_worker_load(sl_lane *lane, const Sluice__Worker__Load *load,
                         Sluice__Worker__Done *done, sl_error *err)
{
    sl_worker *worker = lane->worker;
    const Sluice__Worker__ComponentKey *key = load->key;
    sl_resident *r = NULL;
    sl_status status = sl_worker_check_key(key, err);

    if (status != SL_OK)
        return status;
    if (*find_key(worker, key))
        return sl_fail(err, SL_ERR_EXISTS, "component %s of \"%s\" is loaded already",
                       sl_component_name((sl_component_kind)key->component), key->model);
    status = make_resident(&r, key, err);
    if (status == SL_OK)
        status = load_component(lane, r, load, err);
    if (status != SL_OK) {
        free_resident(r);
        return sl_error_prefix(err, "could not load %s of \"%s\"",
                               sl_component_name((sl_component_kind)key->component), key->model);
    }
    done->component_bytes = sl_component_mapped_bytes(r->component);
    done->unexpected_tensors = sl_component_unexpected(r->component);
    atomic_fetch_add(&worker->weights_bytes, done->component_bytes);
    pthread_mutex_lock(&worker->lock);
    r->next = worker->residents;
    worker->residents = r;
    pthread_mutex_unlock(&worker->lock);
    return SL_OK;
}

sl_status sl_worker_unload(sl_worker *worker, const Sluice__Worker__Unload *unload, sl_error *err)
{
    const Sluice__Worker__ComponentKey *key = unload->key;
    const sl_status status = sl_worker_check_key(key, err);

    if (status != SL_OK)
        return status;
    pthread_mutex_lock(&worker->lock);
    sl_resident **at = find_key(worker, key), *r = *at;
    const int user_count = r ? r->user_count : 0;
    if (r && user_count == 0)
        *at = r->next;
    pthread_mutex_unlock(&worker->lock);

    const char *name = sl_component_name((sl_component_kind)key->component);
    if (!r)
        return sl_fail(err, SL_ERR_NOT_FOUND, "component %s of \"%s\" is not loaded", name,
                       key->model);
    if (user_count > 0)
        return sl_fail(err, SL_ERR_PRECONDITION, "component %s of \"%s\" is in use by %d jobs",
                       name, key->model, user_count);
    atomic_fetch_sub(&worker->weights_bytes, sl_component_mapped_bytes(r->component));
    free_resident(r);
    return SL_OK;
}

void sl_worker_unload_all(sl_worker *worker)
{
    while (worker->residents) {
        sl_resident *r = worker->residents;
        worker->residents = r->next;
        free_resident(r);
    }
}

void sl_worker_trim(sl_worker *worker)
{
    sl_worker_trim_images(worker);
    malloc_trim(0);
}
