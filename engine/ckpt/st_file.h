/* st_file.h - the header of a .safetensors file.  Source: wan.md 2.1.
 *
 * Inside of the ckpt module only.
 */
#ifndef SL_ENGINE_CKPT_ST_FILE_H
#define SL_ENGINE_CKPT_ST_FILE_H

#include "engine/ckpt/ckpt_file.h"

#define SL_ST_MAX_HEADER_BYTES ((size_t)100000000)

/* Fills in names and tensors of a file that is open and mapped; tensors are
 * checked against the file and against each other. */
sl_status sl_st_parse(sl_ckpt_file *file, sl_error *err) SL_MUST_CHECK;

#endif
