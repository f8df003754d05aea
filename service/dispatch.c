#include "service/dispatch.h"

#include "service/shared.h"

#include "base/clock.h"
#include "engine/model/component.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the ids of commands that no action of the core asked for. */
#define OWN_ID ((uint64_t)1 << 63)

static void end_command(sl_service *s, uint64_t command_id, sl_status status, const char *message)
{
    const sl_core_done done = { .status = status,
                                .message = message,
                                .before_bytes = s->calm_mapped_bytes,
                                .after_bytes = s->calm_mapped_bytes,
                                .peak_bytes = s->calm_mapped_bytes };

    sl_core_command_done(s->core, command_id, &done, sl_clock_now_ns());
}

/* SL_ERR_UNAVAILABLE is no failure: that worker is gone, and on_down tells the
 * core. */
static void send_with(sl_service *s, const Sluice__Worker__Command *command,
                      const sl_host_image *image)
{
    sl_error err = { .status = SL_OK };
    const sl_status status =
        image ? sl_supervisor_send_fds(s->supervisor, s->generation, command, image->fds,
                                       image->segment_count, &err)
              : sl_supervisor_send(s->supervisor, s->generation, command, &err);

    if (status == SL_OK || status == SL_ERR_UNAVAILABLE)
        return;
    sl_log(SL_LOG_ERROR, "worker_send", "id=%llu reason=\"%s\"", (unsigned long long)command->id,
           err.message);
    if (command->id == 0 || sl_dispatch_is_own(command->id) || status == SL_ERR_BUSY) {
        sl_supervisor_kill(s->supervisor, s->generation, err.message);
        return;
    }
    end_command(s, command->id, status, err.message);
}

void sl_dispatch_send(sl_service *s, const Sluice__Worker__Command *command)
{
    send_with(s, command, NULL);
}

bool sl_dispatch_is_own(uint64_t command_id)
{
    return (command_id & OWN_ID) != 0;
}

void sl_dispatch_key(Sluice__Worker__ComponentKey *pb, const sl_core_key *key)
{
    sluice__worker__component_key__init(pb);
    pb->model = (char *)key->model;
    pb->component = (int32_t)key->component;
    pb->precision = (int32_t)key->precision;
    pb->mode = (int32_t)key->mode;
}

void sl_dispatch_preempt(sl_service *s, const char *job_id)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Preempt preempt = SLUICE__WORKER__PREEMPT__INIT;

    preempt.job_id = (char *)job_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_PREEMPT;
    command.preempt = &preempt;
    sl_dispatch_send(s, &command);
}

void sl_dispatch_go(sl_service *s, const char *job_id, int phase, size_t activation_bytes)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Go go = SLUICE__WORKER__GO__INIT;

    go.job_id = (char *)job_id;
    go.phase = phase;
    go.activation_bytes = activation_bytes;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_GO;
    command.go = &go;
    sl_dispatch_send(s, &command);
}

void sl_dispatch_trim(sl_service *s, uint64_t command_id)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__Trim trim = SLUICE__WORKER__TRIM__INIT;

    command.id = command_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_TRIM;
    command.trim = &trim;
    sl_dispatch_send(s, &command);
}

/* --- images --- */

static host_entry **find_slot(sl_service *s, const sl_core_key *key)
{
    host_entry **at = &s->images;

    while (*at
           && ((*at)->key.component != key->component || (*at)->key.precision != key->precision
               || strcmp((*at)->key.model, key->model) != 0))
        at = &(*at)->next;
    return at;
}

static void remove_entry(host_entry **at)
{
    host_entry *entry = *at;

    *at = entry->next;
    sl_host_image_destroy(entry->image);
    free(entry);
}

void sl_dispatch_free_images(sl_service *s)
{
    while (s->images)
        remove_entry(&s->images);
}

static void tell_segments(sl_service *s, host_entry *entry)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostSegments segments = SLUICE__WORKER__HOST_SEGMENTS__INIT;
    Sluice__Worker__ComponentKey key;
    uint64_t sizes[SL_HOST_MAX_SEGMENTS];

    sl_dispatch_key(&key, &entry->key);
    for (int i = 0; i < entry->image->segment_count; i++)
        sizes[i] = entry->image->segment_bytes[i];
    segments.key = &key;
    segments.image_bytes = entry->image->image_bytes;
    segments.segment_bytes = sizes;
    segments.n_segment_bytes = (size_t)entry->image->segment_count;
    segments.filled = entry->image->filled;
    command.id = OWN_ID | ++s->own_commands;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_SEGMENTS;
    command.host_segments = &segments;
    entry->told = true;
    send_with(s, &command, entry->image);
}

static void tell_forget(sl_service *s, const sl_core_key *key, uint64_t command_id)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostForget forget = SLUICE__WORKER__HOST_FORGET__INIT;
    Sluice__Worker__ComponentKey pb;

    sl_dispatch_key(&pb, key);
    forget.key = &pb;
    command.id = command_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_FORGET;
    command.host_forget = &forget;
    sl_dispatch_send(s, &command);
}

static void tell_fill(sl_service *s, const sl_core_action *action, const char *path)
{
    Sluice__Worker__Command command = SLUICE__WORKER__COMMAND__INIT;
    Sluice__Worker__HostFill fill = SLUICE__WORKER__HOST_FILL__INIT;
    Sluice__Worker__ComponentKey key;

    sl_dispatch_key(&key, &action->key);
    fill.key = &key;
    fill.model_path = (char *)path;
    command.id = action->command_id;
    command.kind_case = SLUICE__WORKER__COMMAND__KIND_HOST_FILL;
    command.host_fill = &fill;
    sl_dispatch_send(s, &command);
}

static sl_status make_entry(sl_service *s, const sl_core_key *key, size_t image_bytes,
                            host_entry **out, sl_error *err)
{
    char name[SL_CORE_NAME_BYTES + 32];
    host_entry *entry = calloc(1, sizeof *entry);

    if (!entry)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an image's entry");
    snprintf(name, sizeof name, "%s/%s", key->model, sl_component_name(key->component));
    const sl_status status = sl_host_image_create(&entry->image, s->host, name, image_bytes, err);
    if (status != SL_OK) {
        free(entry);
        return status;
    }
    entry->key = *key;
    entry->next = s->images;
    s->images = entry;
    *out = entry;
    return SL_OK;
}

bool sl_dispatch_fill(sl_service *s, const sl_core_action *action)
{
    sl_error err = { .status = SL_OK };
    const model_path *model = sl_shared_find_path(s, &action->key);
    host_entry *entry = *find_slot(s, &action->key);
    sl_status status = SL_OK;

    if (!model) {
        end_command(s, action->command_id, SL_ERR_INTERNAL, "nobody said where the model is");
        return false;
    }
    const sl_component_spec spec =
        sl_component_spec_of(&model->arch, action->key.component, action->key.precision);
    const size_t image_bytes = sl_component_image_bytes(&spec);
    if (entry)
        status = sl_fail(&err, SL_ERR_PRECONDITION, "an image of an earlier file is still there");
    if (status == SL_OK)
        status = make_entry(s, &action->key, image_bytes, &entry, &err);
    if (status != SL_OK) {
        end_command(s, action->command_id, status, err.message);
        return false;
    }
    tell_segments(s, entry);
    tell_fill(s, action, model->path);
    return true;
}

void sl_dispatch_filled(sl_service *s, const sl_core_key *key, bool ok)
{
    host_entry **at = find_slot(s, key);

    if (!*at)
        return;
    if (ok) {
        sl_host_image_set_filled((*at)->image);
        return;
    }
    tell_forget(s, key, OWN_ID | ++s->own_commands);
    remove_entry(at);
}

bool sl_dispatch_drop(sl_service *s, const sl_core_action *action)
{
    host_entry **at = find_slot(s, &action->key);
    bool told = false;

    if (*at) {
        told = (*at)->told;
        remove_entry(at);
    }
    if (told)
        tell_forget(s, &action->key, action->command_id);
    else
        end_command(s, action->command_id, SL_OK, "");
    return told;
}

void sl_dispatch_worker_up(sl_service *s)
{
    for (host_entry *entry = s->images; entry; entry = entry->next) {
        if (entry->image->filled)
            tell_segments(s, entry);
    }
}

void sl_dispatch_worker_down(sl_service *s)
{
    for (host_entry *entry = s->images; entry; entry = entry->next)
        entry->told = false;
}
