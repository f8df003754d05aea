/* request_read.h - what the fields of a GenerateRequest mean.
 *
 * Defaults are the checkpoint's: one that was tuned for sparse attention was
 * distilled, and is sampled with rCM in a few steps, with SLA, in the turbo
 * dialect; another one as Wan's own scripts do.  Made-up models count as
 * distilled, so that they are quick.
 *
 * Threads: any; no state.
 */
#ifndef SL_SERVICE_REQUEST_READ_H
#define SL_SERVICE_REQUEST_READ_H

#include "api/sluice.pb-c.h"
#include "base/status.h"
#include "engine/media/media.h"
#include "engine/model/model_dir.h"
#include "engine/pipeline/t2v.h"

/* The numbers of a request, defaults filled in; for the longest prompts.  What it
 * streams and its image are not looked at. */
sl_t2v_request sl_request_read(const Sluice__V1__GenerateRequest *pb, const sl_model_info *info);
/* The same without a model: what is not given is 0, or the default of the oldest daemon. */
sl_t2v_request sl_request_read_stored(const Sluice__V1__GenerateRequest *pb);
/* The fields that say the same, but for its part, which output and latent_of say; those that the
 * sampler or the attention does not look at stay as they are. */
void sl_request_write(Sluice__V1__GenerateRequest *pb, const sl_t2v_request *request,
                      const sl_arch *arch);

/* As what the weights are kept: what is asked for, else int8 where the checkpoint's linears
 * are, else bf16.  SL_ERR_INVALID: such a checkpoint is wanted as anything else. */
sl_precision sl_request_precision(Sluice__V1__Precision precision, const sl_model_info *info);
sl_status sl_request_check_precision(sl_precision precision, const sl_model_info *info,
                                     sl_error *err) SL_MUST_CHECK;

/* 1 to 64 of A-Z a-z 0-9 . _ - */
bool sl_request_id_valid(const char *id);

/* What is wrong with a request. */
typedef struct {
    const char *field; /* static; NULL: no single one */
    char nearest[64];  /* valid value; "": not known */
} sl_request_problem;

/* SL_ERR_INVALID: a value out of range, or a field that means nothing beside the others and
 * was given all the same.  out->field is set with other failures, too. */
sl_status sl_request_check(const Sluice__V1__GenerateRequest *pb, const sl_t2v_request *request,
                           const sl_arch *arch, sl_request_problem *out,
                           sl_error *err) SL_MUST_CHECK;

sl_precision sl_precision_from_pb(Sluice__V1__Precision precision);
Sluice__V1__Precision sl_precision_to_pb(sl_precision precision);
sl_media_format sl_format_from_pb(Sluice__V1__OutputFormat format);
Sluice__V1__OutputFormat sl_format_to_pb(sl_media_format format);

#endif
