/* umt5.h - the umT5 text encoder.
 *
 * Runs on the real tokens only, which is exactly equivalent to masking
 * (wan.md 3.3), and zeroes the rows behind them.
 *
 * Memory: activations from `scratch`, given back before it returns.
 */
#ifndef SL_ENGINE_NETS_UMT5_H
#define SL_ENGINE_NETS_UMT5_H

#include "engine/model/weights.h"
#include "engine/nets/tap.h"
#include "kernels/exec.h"
#include "kernels/scratch.h"

/* ids: host memory, count 1 or more, at most out's rows.  out [text_len, dim]
 * F32 or BF16 in device memory, allocated by the caller.  tap may be NULL. */
sl_status sl_umt5_encode(sl_exec *exec, sl_scratch *scratch, const sl_t5_weights *weights,
                         const sl_t5_config *config, const int32_t *ids, int64_t count,
                         const sl_tensor *out, const sl_tap *tap, sl_error *err) SL_MUST_CHECK;

#endif
