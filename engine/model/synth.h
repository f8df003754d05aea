/* synth.h - real-format checkpoints with deterministic weights.
 *
 * Writes the files of model_dir.h for a table row: every tensor by the weight
 * generator of golden/README.md (FNV-1a of the name, splitmix64, bf16 values),
 * stored in the dtypes of a published layout (official: DiT f32, sharded with an
 * index when it is above 10 GB; Turbo: bf16, or int8 linears; VAE f32, umT5 bf16),
 * config.json beside it, and a synthetic tokenizer.  All cores write; 8 MiB of
 * memory for each, whatever the size.
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

typedef struct {
    uint64_t seed;
    sl_layout layout;       /* of the transformers */
    const char *shared;     /* NULL, or a synthetic model whose text encoder and VAE are linked,
                               not written again */
    bool one_expert;        /* of two, the second is a link to the first: half the disk */
    size_t max_shard_bytes; /* of an official DiT; 0: 10 GB */
    int threads;            /* 0: one for each core */
    void (*progress)(void *arg, size_t done_bytes, size_t total_bytes); /* NULL: none; from
                               one thread at a time */
    void *arg;
} sl_synth_options;

/* dir is made if absent and must be empty or have our marker (then the files of
 * the earlier model are replaced).  The low-noise expert of a two-expert model
 * uses seed + 1.  SL_ERR_TOO_LARGE if the disk has not enough space, before
 * anything is written; SL_ERR_INVALID if `shared` is of another seed, or its text
 * encoder or VAE of other dimensions, or a quantised layout is asked of a DiT that
 * has none. */
sl_status sl_synth_model_as(const char *dir, const sl_arch *arch, const sl_synth_options *options,
                            sl_error *err) SL_MUST_CHECK;

/* The official layout. */
sl_status sl_synth_model(const char *dir, const sl_arch *arch, uint64_t seed,
                         void (*progress)(void *arg, size_t done_bytes, size_t total_bytes),
                         void *arg, sl_error *err) SL_MUST_CHECK;

#endif
