/* synth.h - real-format checkpoints with deterministic weights.
 *
 * Writes the files of model_dir.h for a table row: every tensor by the weight
 * generator of golden/README.md (FNV-1a of the name, splitmix64, bf16 values),
 * stored in the official dtypes (DiT f32, VAE f32, umT5 bf16), the DiT sharded
 * with an index when it is above 10 GB, config.json beside it, and a synthetic
 * tokenizer.  Streams: needs little memory whatever the size.
 */
#ifndef SL_ENGINE_MODEL_SYNTH_H
#define SL_ENGINE_MODEL_SYNTH_H

#include "base/status.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"

#include <stddef.h>
#include <stdint.h>

/* Values [first, first + count) of tensor `name` (fan_in = product of the
 * dims after the first), as bf16 bits / as f32. */
void sl_synth_bf16(uint16_t *out, const char *name, uint64_t seed, int64_t fan_in, int64_t first,
                   int64_t count);
void sl_synth_f32(float *out, const char *name, uint64_t seed, int64_t fan_in, int64_t first,
                  int64_t count);
/* The same with a given amplitude instead of the rules (b = 0). */
void sl_synth_f32_scaled(float *out, const char *name, uint64_t seed, float a, int64_t first,
                         int64_t count);

/* In every directory that sl_synth_model made: {"arch": ..., "seed": ...}. */
#define SL_SYNTH_MARKER "synthetic.json"

/* dir is made if absent and must be empty or have our marker (then the files of
 * the earlier model are replaced).  The low-noise expert of a two-expert model
 * uses seed + 1.  SL_ERR_TOO_LARGE if the disk has not enough space, before
 * anything is written.
 * progress(arg, done_bytes, total_bytes) may be NULL. */
sl_status sl_synth_model(const char *dir, const sl_arch *arch, uint64_t seed,
                         void (*progress)(void *arg, size_t done_bytes, size_t total_bytes),
                         void *arg, sl_error *err) SL_MUST_CHECK;

/* The same with another limit on the size of a DiT's shard. */
sl_status sl_synth_model_sharded(const char *dir, const sl_arch *arch, uint64_t seed,
                                 size_t max_shard_bytes,
                                 void (*progress)(void *arg, size_t done_bytes,
                                                  size_t total_bytes),
                                 void *arg, sl_error *err) SL_MUST_CHECK;

#endif
