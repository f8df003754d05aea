/* synth_file.h - one checkpoint of made-up weights, written by all cores.
 *
 * Inside of the model module: synth.h says what the weights are and where their
 * files go.  A file's tensors are listed first, then each is made in pieces, which
 * threads take one after the other, so that the file grows from front to back.
 *
 * int8 linears are the linear's own values, quantised as a checkpoint's export
 * does (kernels/linear_int8.h): what converting the same model gives.
 */
#ifndef SL_ENGINE_MODEL_SYNTH_FILE_H
#define SL_ENGINE_MODEL_SYNTH_FILE_H

#include "base/status.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"
#include "kernels/pool.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char name[128];
    sl_dtype dtype;
    int rank;
    int64_t dim[SL_MAX_RANK];
    int64_t count;
    size_t size_bytes;
    bool is_scale; /* of the codes before it, and written with them */
    int shard;
    size_t offset;       /* in its shard */
    int64_t first_piece; /* of its shard's */
} sl_synth_item;

typedef struct {
    sl_synth_item *items;
    int64_t count, capacity;
    size_t size_bytes;
    int shard_count;
} sl_synth_list;

/* All tensors of a component, in one shard.  *list is to be freed after a failure,
 * too. */
sl_status sl_synth_list_make(sl_synth_list *list, const sl_arch *arch, sl_component_kind kind,
                             sl_layout layout, sl_error *err) SL_MUST_CHECK;
/* Fills shards in order, each to at most that many bytes (or one tensor). */
void sl_synth_list_shard(sl_synth_list *list, size_t max_shard_bytes);
void sl_synth_list_free(sl_synth_list *list);

/* What the files of a model share while they are written. */
typedef struct {
    sl_pool *pool;
    void (*progress)(void *arg, size_t done_bytes, size_t total_bytes); /* NULL: none */
    void *arg;
    size_t done_bytes, total_bytes; /* under `lock` while a file is written */
    pthread_mutex_t lock;
} sl_synth_run;

sl_status sl_synth_shard_write(sl_synth_run *run, const sl_synth_list *list, int shard,
                               const char *path, uint64_t seed, sl_error *err) SL_MUST_CHECK;

#endif
