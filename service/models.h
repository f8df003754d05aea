/* models.h - the model directories that clients name, opened once.
 *
 * A directory is read again when it or one of its files has another time, size
 * or inode.  Tokenizers are opened when a prompt needs one.
 *
 * Ownership: get hands out a reference, release gives it back; a model that
 *            was replaced lives until its last user is done.
 * Threads:   any.  Reading a directory holds up other gets.
 */
#ifndef SL_SERVICE_MODELS_H
#define SL_SERVICE_MODELS_H

#include "base/status.h"
#include "engine/model/model_dir.h"
#include "service/content.h"

#include <stdint.h>

typedef struct sl_models sl_models;
typedef struct sl_model sl_model;

/* The roots are copied. */
sl_status sl_models_create(sl_models **out, const char *const *roots, int root_count,
                           sl_error *err) SL_MUST_CHECK;
void sl_models_destroy(sl_models *models); /* no references are out; NULL is fine */

/* SL_ERR_NOT_FOUND, SL_ERR_INVALID (the name), SL_ERR_DATA (the directory). */
sl_status sl_models_get(sl_models *models, sl_model **out, const char *name, sl_error *err) SL_MUST_CHECK;
void sl_models_release(sl_models *models, sl_model *model); /* NULL is fine */

const sl_model_info *sl_model_get_info(const sl_model *model);
/* What its text encoder and its VAE are by content; NULL: not known, or another kind. */
const sl_content_id *sl_model_content(const sl_model *model, sl_component_kind kind);

/* Cleans the prompt and writes its ids, </s> last, at most max_ids. */
sl_status sl_models_tokenize(sl_models *models, sl_model *model, const char *prompt, int32_t *ids,
                             int max_ids, int *count, sl_error *err) SL_MUST_CHECK;

/* Calls say for every sub-directory of the roots, in the order of names: with a
 * model, or with why it is none.  At most SL_MODELS_LISTED. */
enum { SL_MODELS_LISTED = 1000 };
sl_status sl_models_list(sl_models *models,
                         sl_status (*say)(void *arg, const char *name, const sl_model_info *info,
                                          const char *problem, sl_error *err),
                         void *arg, sl_error *err) SL_MUST_CHECK;

#endif
