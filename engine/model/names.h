/* names.h - tensors under other people's names.
 *
 * The engine knows tensors by their official names (weights.h).  diffusers and
 * Hugging Face renamed them; the tables here say how, and nothing else in the
 * engine knows.  A table is in force for a file that holds its sign, a tensor
 * that no official file has.  What exporters put in front of official names is
 * stripped by ckpt already.  Source: wan.md 1.3, 1.4, 1.5.
 *
 * Threads: any; no state.
 */
#ifndef SL_ENGINE_MODEL_NAMES_H
#define SL_ENGINE_MODEL_NAMES_H

#include "engine/ckpt/ckpt.h"

#include <stdbool.h>
#include <stddef.h>

enum { SL_NAME_BYTES = 256 };

/* The tensor with that official name, under whichever name the file has for it;
 * NULL: absent. */
const sl_ckpt_tensor *sl_names_find(const sl_ckpt *ckpt, const char *official);

/* What the file calls, or would call, the tensor; returns out. */
const char *sl_names_in_file(const sl_ckpt *ckpt, const char *official, char out[SL_NAME_BYTES]);

/* "official", "diffusers", "huggingface": the naming of the file. */
const char *sl_names_style(const sl_ckpt *ckpt);

/* Tensors that packagers add to a network's own and that nobody needs here. */
bool sl_names_is_extra(const sl_ckpt *ckpt, const char *name);

/* SL_ERR_DATA if the weights are 8-bit floats, with or without scales beside
 * them: they would load as other numbers, or not at all. */
sl_status sl_names_refuse_fp8(const sl_ckpt *ckpt, sl_error *err) SL_MUST_CHECK;

#endif
