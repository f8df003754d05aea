/* cli_jobs.h - what generate shares with the commands on existing jobs.
 *
 * Threads: one.
 */
#ifndef SL_CLIENTS_C_CLI_JOBS_H
#define SL_CLIENTS_C_CLI_JOBS_H

#include "clients/c/cli.h"

bool cli_job_ended(const Sluice__V1__Job *job);
int cli_job_exit_code(const Sluice__V1__Job *job);

/* Shows events after *seq until the job has ended; *out is then the job, the
 * caller's to free.  *seq stays right after a failure or an interrupt, so that
 * the caller can go on. */
sl_status cli_follow(cli *c, const char *job_id, uint64_t *seq,
                     Sluice__V1__Job **out) SL_MUST_CHECK;

sl_status cli_fetch_to(cli *c, const char *job_id, const char *path,
                       sl_fetch_result *out) SL_MUST_CHECK;
cJSON *cli_json_output(const char *path, const sl_fetch_result *result);
/* Puts the file into the request, or uploads it and puts its id there; detach frees
 * what the request has got. */
sl_status cli_attach_image(cli *c, const char *path,
                           Sluice__V1__GenerateRequest *request) SL_MUST_CHECK;
void cli_detach_image(Sluice__V1__GenerateRequest *request);
/* A PNG that appears whole. */
sl_status cli_write_preview(const char *path, const Sluice__V1__Preview *preview,
                            sl_error *err) SL_MUST_CHECK;
/* "<job>.mp4"; returns buf or a constant. */
const char *cli_output_name(const Sluice__V1__Job *job, char *buf, size_t buf_bytes);

#endif
