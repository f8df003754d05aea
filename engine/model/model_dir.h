/* model_dir.h - a directory with a model in it.
 *
 * Recognised by its contents, never by its name.  A checkpoint is a .safetensors
 * file, a *.safetensors.index.json with its shards, or a .pth, whose tensors have
 * the names of a network, official or other (names.h):
 *   DiT     one in <dir> or <dir>/transformer; two experts under high_noise_model/
 *           and low_noise_model/, under transformer/ and transformer_2/, or side by
 *           side with "high" and "low" in their names, which nothing else tells
 *   VAE     in <dir> or <dir>/vae
 *   umT5    in <dir> or <dir>/text_encoder
 *   tokenizer  spiece.model in google/umt5-xxl/, in tokenizer/ or in <dir>, or
 *           tokenizer.model in the latter two
 *   config.json beside the DiT (official keys: dim, ffn_dim, num_heads,
 *     num_layers, in_dim, out_dim, text_len, freq_dim, eps, model_type, or those of
 *     diffusers) supplies what tensor shapes do not tell (num_heads, text_len);
 *     without it: dim / 128, 512
 * Dimensions come from tensor shapes and must agree with config.json.  Of two
 * files of one kind the published name wins.  A model has at least a DiT; for
 * other components that are absent `arch` holds what the table has for that DiT.
 *
 * Ownership: open/close.  Threads: read-only after open.
 */
#ifndef SL_ENGINE_MODEL_MODEL_DIR_H
#define SL_ENGINE_MODEL_MODEL_DIR_H

#include "base/status.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/component.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *name; /* the last path element: the model's name for clients */
    const char *path;
    const sl_arch *arch; /* a copy owned by the directory, filled from the files; its
                            `name` is the matching table row's or "custom" */
    sl_layout layout;    /* of the DiT */
    const char *files[SL_COMPONENT_COUNT]; /* checkpoint path per component; NULL: absent */
    const char *tokenizer;                 /* NULL: absent */
    size_t file_bytes;                     /* all checkpoints together */
    bool sparse_tuned;                     /* the DiT has a projection for SLA that is not zero:
                                              it was distilled and tuned for sparse attention */
    bool synthetic;                        /* made by sl_synth_model: its videos are noise */
} sl_model_info;

typedef struct sl_model_dir sl_model_dir;

/* Reads headers only.  SL_ERR_NOT_FOUND: no such directory.  SL_ERR_DATA: a
 * directory that is no model, or one with a broken or inconsistent file. */
sl_status sl_model_dir_open(sl_model_dir **out, const char *path, sl_error *err) SL_MUST_CHECK;
void sl_model_dir_close(sl_model_dir *dir); /* NULL is fine */
const sl_model_info *sl_model_dir_info(const sl_model_dir *dir);

/* One line per problem: missing or unexpected tensors against the model
 * tables, missing components; calls say(arg, line) for each; *problems counts. */
sl_status sl_model_dir_inspect(const sl_model_dir *dir, void (*say)(void *arg, const char *line),
                               void *arg, int *problems, sl_error *err) SL_MUST_CHECK;

/* Finds a model by name under the roots: a direct sub-directory with that
 * name.  A name with '/', or "." / "..", or one that leaves the root through a
 * link, is SL_ERR_INVALID.  The caller frees *path_out. */
sl_status sl_model_find(char **path_out, const char *const *roots, int root_count, const char *name,
                        sl_error *err) SL_MUST_CHECK;

#endif
