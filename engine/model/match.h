/* match.h - comparing a checkpoint with the tensors that a network needs.
 *
 * Inside of the model module: loading and inspection say the same things.
 */
#ifndef SL_ENGINE_MODEL_MATCH_H
#define SL_ENGINE_MODEL_MATCH_H

#include "engine/ckpt/ckpt.h"
#include "engine/model/component.h"
#include "engine/model/weights.h"

/* sl_dit_visit, sl_t5_visit or sl_vae_visit, by the spec's kind; weights is the
 * kind's struct or NULL.  Checks the config first. */
sl_status sl_component_visit(void *weights, const sl_component_spec *spec, sl_layout layout,
                             sl_weight_visitor *visitor, void *arg, sl_error *err) SL_MUST_CHECK;

/* The file's tensor for a device slot; NULL and a sentence in `why` if it is
 * missing, has another shape or a dtype that is no float.  A PLAIN tensor may
 * also have its device shape: the elements are the same. */
const sl_ckpt_tensor *sl_weight_match(const sl_ckpt *ckpt, const sl_weight_spec *spec, char *why,
                                      size_t why_bytes);

/* What a file with these names is. */
sl_layout sl_ckpt_layout(const sl_ckpt *ckpt);

/* Calls say(arg, name) for each tensor that neither the network nor a known
 * layout of it names (say may be NULL); returns how many through *count. */
sl_status sl_ckpt_unexpected(const sl_ckpt *ckpt, const sl_component_spec *spec,
                             void (*say)(void *arg, const char *name), void *arg, int64_t *count,
                             sl_error *err) SL_MUST_CHECK;

#endif
