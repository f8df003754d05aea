/* convert_model.h - a model, or one checkpoint of it, written again.
 *
 * Reads whatever model_dir.h recognises and writes .safetensors under official
 * names, a piece at a time, in one pass over each file.  Then every tensor is
 * read back from the disk and compared with what the source gives.
 *
 * SAFETENSORS  every tensor as it is, dtype and shape
 * QUANT        a transformer as the reference's export does: everything rounded
 *              to bf16, the ten linears of a block in int8 tiles of 128 x 128 with
 *              f32 scales, the blocks' norms stored f32, the patch embedding flat;
 *              proj_l is kept, or zero where the source has none (wan.md 1.2, 6).
 *              Other components as they are.
 *
 * Tensors that no network names are left out and counted.
 */
#ifndef SL_ENGINE_MODEL_CONVERT_MODEL_H
#define SL_ENGINE_MODEL_CONVERT_MODEL_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { SL_CONVERT_SAFETENSORS, SL_CONVERT_QUANT, SL_CONVERT_COUNT } sl_convert_target;

const char *sl_convert_name(sl_convert_target target); /* "safetensors", "quant" */
bool sl_convert_parse(const char *text, sl_convert_target *out);

typedef struct {
    int64_t file_count, tensor_count; /* checkpoints and tensors written */
    size_t data_bytes;
    int64_t left_out;
} sl_convert_result;

/* src: a model's directory, then dst becomes one (absent or empty before), or
 * one checkpoint, then dst is a file (absent before); else SL_ERR_EXISTS.  All
 * of src is checked, and the space on dst's disk, before anything is written
 * (SL_ERR_DATA, SL_ERR_TOO_LARGE).  SL_ERR_IO: what was read back differs; that
 * file is removed; checkpoints finished before a failure stay.  progress(arg, done_bytes,
 * total_bytes), reading back included, may be NULL.  *result is written on success. */
sl_status sl_convert_model(const char *src, const char *dst, sl_convert_target target,
                           void (*progress)(void *arg, size_t done_bytes, size_t total_bytes),
                           void *arg, sl_convert_result *result, sl_error *err) SL_MUST_CHECK;

#endif
