/* pth.h - PyTorch checkpoints: a ZIP with a pickle and raw storages.
 *
 * The state dict is the pickle's top level, or what lies there under
 * "state_dict"; values in it that are no tensors are ignored, so are the
 * attributes of dicts (_metadata).  Contiguous tensors point into the mapping;
 * views of another order are copied once, here.  Source: wan.md 2.2.
 *
 * Inside of the ckpt module only.
 */
#ifndef SL_ENGINE_CKPT_PTH_H
#define SL_ENGINE_CKPT_PTH_H

#include "engine/ckpt/ckpt_file.h"

#include <stdbool.h>

/* Do these first bytes of a file say that it came from torch.save? */
bool sl_pth_is_zip(const void *bytes, size_t size_bytes);
bool sl_pth_is_legacy(const void *bytes, size_t size_bytes);

/* Enough for both. */
enum { SL_PTH_MAGIC_BYTES = 262 };

/* Fills in names and tensors of a file that is open and mapped. */
sl_status sl_pth_parse(sl_ckpt_file *file, sl_error *err) SL_MUST_CHECK;

#endif
