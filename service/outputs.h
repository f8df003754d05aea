/* outputs.h - the directory of finished videos: names, room, cleaning.
 *
 *     <job><ext>                    a finished output
 *     .partial-<job>-<attempt><ext> what a worker is writing
 *     .latent-<job>                 the state of an unfinished job between two steps
 *     .source-<job>                 what an unfinished job begins with (inputs.h)
 *     .input-*                      an image that is coming in
 *     .jobs.db*                     the store
 *     evidence/                     see evidence.h
 *
 * Every job that has not ended holds as many bytes as its output can take at
 * most; a quota that could be exceeded refuses the next one.
 *
 * Threads: without the service's mutex, unless it says so.
 */
#ifndef SL_SERVICE_OUTPUTS_H
#define SL_SERVICE_OUTPUTS_H

#include "service/service_state.h"

/* malloc'd; NULL: out of memory.  With or without the mutex. */
char *sl_outputs_path(const sl_service *s, const sl_job *job);
char *sl_outputs_partial_path(const sl_service *s, const sl_job *job); /* of its attempt */
char *sl_outputs_latent_path(const sl_service *s, const sl_job *job);
char *sl_outputs_source_path(const sl_service *s, const sl_job *job);
char *sl_outputs_input_template(const sl_service *s); /* for mkstemp */

/* Gives a whole file its name, for good. */
sl_status sl_outputs_publish(const sl_service *s, const char *partial, const char *final,
                             sl_error *err) SL_MUST_CHECK;

void sl_outputs_remove_partials(const sl_service *s); /* and inputs; while nobody writes */
/* What a job needs until it ends: its latent and its source. */
void sl_outputs_remove_state(const sl_service *s, const sl_job *job);
void sl_outputs_remove_stray_states(const sl_service *s); /* locked; of ended or unknown jobs */

/* The most bytes that the output of this job can take. */
uint64_t sl_outputs_bound(const sl_job_spec *spec);

typedef struct {
    uint64_t used_bytes;  /* of outputs, partial and latent files */
    uint64_t free_bytes;  /* of its disk, for this user */
    int stray_count;      /* partial and latent files of jobs that do not run */
} sl_outputs_room;

sl_status sl_outputs_look(sl_service *s, sl_outputs_room *out, sl_error *err) SL_MUST_CHECK;
/* SL_ERR_BUSY: there is no room for one more output of so many bytes.  Locked. */
sl_status sl_outputs_check_room(sl_service *s, const sl_outputs_room *room, uint64_t size_bytes,
                                sl_error *err) SL_MUST_CHECK;

/* Removes jobs that ended before now - older_than_ns, with their files.  say, if
 * not NULL, is called for every file. */
typedef void sl_outputs_say(void *arg, const char *name, uint64_t size_bytes);
sl_status sl_outputs_clean(sl_service *s, int64_t older_than_ns, bool dry_run, sl_outputs_say *say,
                           void *arg, sl_error *err) SL_MUST_CHECK;

#endif
