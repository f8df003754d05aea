#include "service/outputs.h"

#include "service/persist.h"

#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PARTIAL_PREFIX ".partial-"
#define LATENT_PREFIX  ".latent-"
#define SOURCE_PREFIX  ".source-"
#define INPUT_PREFIX   ".input-"
#define STORE_PREFIX   ".jobs.db"

/* --- names --- */

char *sl_outputs_path(const sl_service *s, const sl_job *job)
{
    char *path = NULL;

    return asprintf(&path, "%s/%s%s", s->outputs, job->job_id,
                    sl_media_extension(job->spec.format))
                   < 0
               ? NULL
               : path;
}

char *sl_outputs_partial_path(const sl_service *s, const sl_job *job)
{
    char *path = NULL;

    return asprintf(&path, "%s/" PARTIAL_PREFIX "%s-%d%s", s->outputs, job->job_id, job->attempt,
                    sl_media_extension(job->spec.format))
                   < 0
               ? NULL
               : path;
}

char *sl_outputs_latent_path(const sl_service *s, const sl_job *job)
{
    char *path = NULL;

    return asprintf(&path, "%s/" LATENT_PREFIX "%s", s->outputs, job->job_id) < 0 ? NULL : path;
}

char *sl_outputs_source_path(const sl_service *s, const sl_job *job)
{
    char *path = NULL;

    return asprintf(&path, "%s/" SOURCE_PREFIX "%s", s->outputs, job->job_id) < 0 ? NULL : path;
}

char *sl_outputs_input_template(const sl_service *s)
{
    char *path = NULL;

    return asprintf(&path, "%s/" INPUT_PREFIX "XXXXXX", s->outputs) < 0 ? NULL : path;
}

static void remove_path(char *path)
{
    if (path && unlink(path) != 0 && errno != ENOENT)
        sl_log(SL_LOG_ERROR, "state_left", "path=\"%s\" reason=\"%s\"", path, strerror(errno));
    free(path);
}

void sl_outputs_remove_state(const sl_service *s, const sl_job *job)
{
    remove_path(sl_outputs_latent_path(s, job));
    remove_path(sl_outputs_source_path(s, job));
}

/* The length of whichever prefix the name has; 0: of none. */
static size_t prefix_of(const char *name, const char *const *prefixes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
            return strlen(prefixes[i]);
    return 0;
}

/* Of jobs that have ended or are unknown. */
void sl_outputs_remove_stray_states(const sl_service *s)
{
    static const char *const prefixes[] = { LATENT_PREFIX, SOURCE_PREFIX };
    struct dirent *entry;
    DIR *dir = opendir(s->outputs);

    if (!dir)
        return;
    while ((entry = readdir(dir)) != NULL) {
        const size_t skip = prefix_of(entry->d_name, prefixes, SL_COUNT(prefixes));
        if (!skip)
            continue;
        const sl_job *job = sl_jobs_find(s->jobs, entry->d_name + skip);
        if ((!job || sl_job_has_ended(job)) && unlinkat(dirfd(dir), entry->d_name, 0) != 0)
            sl_log(SL_LOG_ERROR, "state_left", "path=\"%s/%s\" reason=\"%s\"", s->outputs,
                   entry->d_name, strerror(errno));
    }
    closedir(dir);
}

void sl_outputs_remove_partials(const sl_service *s)
{
    static const char *const prefixes[] = { PARTIAL_PREFIX, INPUT_PREFIX };
    struct dirent *entry;
    DIR *dir = opendir(s->outputs);

    if (!dir)
        return;
    while ((entry = readdir(dir)) != NULL) {
        if (prefix_of(entry->d_name, prefixes, SL_COUNT(prefixes))
            && unlinkat(dirfd(dir), entry->d_name, 0) != 0)
            sl_log(SL_LOG_ERROR, "partial_left", "path=\"%s/%s\" reason=\"%s\"", s->outputs,
                   entry->d_name, strerror(errno));
    }
    closedir(dir);
}

/* The name becomes the file's only when the file is whole; it stays so through
 * a power cut. */
sl_status sl_outputs_publish(const sl_service *s, const char *partial, const char *final,
                             sl_error *err)
{
    sl_status status = SL_OK;
    const int dir = open(s->outputs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (dir < 0)
        return sl_fail_errno(err, "could not open the outputs directory \"%s\"", s->outputs);
    if (rename(partial, final) != 0)
        status = sl_fail_errno(err, "could not rename \"%s\" to \"%s\"", partial, final);
    else if (fsync(dir) != 0)
        status = sl_fail_errno(err, "could not flush the outputs directory \"%s\"", s->outputs);
    close(dir);
    return status;
}

/* --- room --- */

/* With the image that it keeps until then.  Of y4m to the byte; PNG by deflate's worst case; H.264 by its PCM macroblocks,
 * which are the most it spends, and a generous header. */
uint64_t sl_outputs_bound(const sl_job_spec *spec)
{
    enum { HEADER_BYTES = 64 << 10 };
    const uint64_t w = (uint64_t)spec->request.width, h = (uint64_t)spec->request.height,
                   frames = (uint64_t)spec->request.frames;
    const uint64_t raw = w * h * 3;
    const uint64_t fixed = HEADER_BYTES + (spec->arch.task == SL_TASK_I2V ? raw : 0);

    switch (spec->format) {
    case SL_MEDIA_LATENT:
        return fixed + (uint64_t)sl_t2v_latent_shape(&spec->request, &spec->arch, NULL)
                           * sizeof(float);
    case SL_MEDIA_Y4M:
        return fixed + frames * (raw / 2 + 6);
    case SL_MEDIA_PNG:
        return fixed + frames * (raw + raw / 1000 + h);
    default:
        return fixed + frames * (raw / 2 + raw / 16 + 1024);
    }
}

/* "<job>-<attempt><ext>" or "<job>"; locked. */
static bool is_running(sl_service *s, const char *rest)
{
    char id[SL_CORE_ID_BYTES];

    snprintf(id, sizeof id, "%.*s", (int)strcspn(rest, "-."), rest);
    const sl_job *job = sl_jobs_find(s->jobs, id);
    return job && !sl_job_has_ended(job);
}

sl_status sl_outputs_look(sl_service *s, sl_outputs_room *out, sl_error *err)
{
    static const char *const prefixes[] = { PARTIAL_PREFIX, LATENT_PREFIX, SOURCE_PREFIX };
    struct dirent *entry;
    struct statvfs disk;
    DIR *dir = opendir(s->outputs);

    *out = (sl_outputs_room){ .used_bytes = 0 };
    if (!dir || fstatvfs(dirfd(dir), &disk) != 0) {
        const sl_status status =
            sl_fail_errno(err, "could not look into the outputs directory \"%s\"", s->outputs);
        if (dir)
            closedir(dir);
        return status;
    }
    out->free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    while ((entry = readdir(dir)) != NULL) {
        const char *name = entry->d_name;
        struct stat st;
        if (strncmp(name, STORE_PREFIX, sizeof STORE_PREFIX - 1) == 0
            || fstatat(dirfd(dir), name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode))
            continue;
        out->used_bytes += (uint64_t)st.st_blocks * 512;
        const size_t skip = prefix_of(name, prefixes, SL_COUNT(prefixes));
        if (skip) {
            pthread_mutex_lock(&s->lock);
            out->stray_count += !is_running(s, name + skip);
            pthread_mutex_unlock(&s->lock);
        }
    }
    closedir(dir);
    return SL_OK;
}

sl_status sl_outputs_check_room(sl_service *s, const sl_outputs_room *room, uint64_t size_bytes,
                                sl_error *err)
{
    uint64_t reserved = 0;

    for (int i = 0; i < sl_jobs_count(s->jobs); i++) {
        const sl_job *job = sl_jobs_get(s->jobs, i);
        reserved += sl_job_has_ended(job) ? 0 : job->reserved_output_bytes;
    }
    if (s->limits.outputs_quota_bytes
        && room->used_bytes + reserved + size_bytes > s->limits.outputs_quota_bytes)
        return sl_fail(err, SL_ERR_BUSY,
                       "no room for an output of at most %llu bytes: the outputs take %llu, jobs "
                       "that have not ended %llu, the quota is %llu",
                       (unsigned long long)size_bytes, (unsigned long long)room->used_bytes,
                       (unsigned long long)reserved,
                       (unsigned long long)s->limits.outputs_quota_bytes);
    if (reserved + size_bytes > room->free_bytes)
        return sl_fail(err, SL_ERR_BUSY,
                       "no room for an output of at most %llu bytes: %llu bytes are free on the "
                       "disk of \"%s\", jobs that have not ended may take %llu",
                       (unsigned long long)size_bytes, (unsigned long long)room->free_bytes,
                       s->outputs, (unsigned long long)reserved);
    return SL_OK;
}

/* --- cleaning --- */

typedef struct {
    char id[SL_CORE_ID_BYTES];
    char *output;
} old_job;

/* Jobs that ended before then, oldest first; *count of them, malloc'd.  Locked. */
static old_job *find_old(sl_service *s, int64_t before_ns, int *count)
{
    const int total = sl_jobs_count(s->jobs);
    old_job *old = calloc((size_t)total + 1, sizeof *old);

    *count = 0;
    for (int i = total - 1; i >= 0 && old; i--) {
        const sl_job *job = sl_jobs_get(s->jobs, i);
        if (!sl_job_has_ended(job) || job->ended_ns >= before_ns)
            continue;
        snprintf(old[*count].id, sizeof old[0].id, "%s", job->job_id);
        old[(*count)++].output = sl_outputs_path(s, job);
    }
    return old;
}

/* False: it is there and cannot be removed. */
static bool clean_file(const char *path, bool dry_run, sl_outputs_say *say, void *arg,
                       sl_error *err)
{
    struct stat st;

    if (!path || lstat(path, &st) != 0)
        return true;
    if (!dry_run && unlink(path) != 0 && errno != ENOENT) {
        sl_fail_errno(err, "could not remove \"%s\"", path);
        return false;
    }
    if (say)
        say(arg, strrchr(path, '/') + 1, (uint64_t)st.st_size);
    return true;
}

/* "<16 hex digits><extension>": what a job's output is called. */
static bool is_output_name(const char *name, char id[SL_CORE_ID_BYTES])
{
    const size_t length = strspn(name, "0123456789abcdef");

    if (length != SL_JOB_ID_DIGITS)
        return false;
    snprintf(id, SL_CORE_ID_BYTES, "%.*s", (int)length, name);
    for (int format = 0; format <= SL_MEDIA_LATENT; format++)
        if (strcmp(name + length, sl_media_extension((sl_media_format)format)) == 0)
            return true;
    return false;
}

/* Outputs that no job has any more: of a store that was lost, or of jobs above the
 * number that is remembered.  Their age is the file's. */
static sl_status clean_unknown(sl_service *s, int64_t before_ns, bool dry_run, sl_outputs_say *say,
                               void *arg, sl_error *err)
{
    sl_status status = SL_OK;
    struct dirent *entry;
    DIR *dir = opendir(s->outputs);

    if (!dir)
        return sl_fail_errno(err, "could not look into the outputs directory \"%s\"", s->outputs);
    while (status == SL_OK && (entry = readdir(dir)) != NULL) {
        char id[SL_CORE_ID_BYTES];
        struct stat st;

        if (!is_output_name(entry->d_name, id)
            || fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0
            || !S_ISREG(st.st_mode)
            || (int64_t)st.st_mtim.tv_sec * SL_NS_PER_S + st.st_mtim.tv_nsec >= before_ns)
            continue;
        pthread_mutex_lock(&s->lock);
        const bool known = sl_jobs_find(s->jobs, id) != NULL;
        pthread_mutex_unlock(&s->lock);
        if (known)
            continue;
        if (!dry_run && unlinkat(dirfd(dir), entry->d_name, 0) != 0 && errno != ENOENT)
            status = sl_fail_errno(err, "could not remove \"%s/%s\"", s->outputs, entry->d_name);
        else if (say)
            say(arg, entry->d_name, (uint64_t)st.st_size);
    }
    closedir(dir);
    return status;
}

sl_status sl_outputs_clean(sl_service *s, int64_t older_than_ns, bool dry_run, sl_outputs_say *say,
                           void *arg, sl_error *err)
{
    const int64_t now_ns = sl_clock_wall_ns();
    const int64_t before_ns = older_than_ns < now_ns ? now_ns - older_than_ns : 0;
    sl_status status = SL_OK;
    int count = 0;

    pthread_mutex_lock(&s->lock);
    old_job *old = find_old(s, before_ns, &count);
    pthread_mutex_unlock(&s->lock);
    if (!old)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a list of jobs");
    for (int i = 0; i < count; i++) {
        if (status == SL_OK && !clean_file(old[i].output, dry_run, say, arg, err))
            status = err->status;
        if (status == SL_OK && !dry_run) {
            pthread_mutex_lock(&s->lock);
            sl_job *job = sl_jobs_find(s->jobs, old[i].id);
            if (job)
                status = sl_persist_remove(s, job, err);
            pthread_cond_broadcast(&s->changed);
            pthread_mutex_unlock(&s->lock);
        }
        free(old[i].output);
    }
    free(old);
    return status == SL_OK ? clean_unknown(s, before_ns, dry_run, say, arg, err) : status;
}
