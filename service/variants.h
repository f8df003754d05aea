/* variants.h - the ways in which a request can be done, in order of preference.
 *
 *   0, 1   all components on the device at once; only those of the phase at hand
 *   2, 3   the same with the text encoder streamed from host memory
 *   4, 5   the same with the transformers streamed, too
 *
 * A request that may not stream has the first two, one that must the last two.  The
 * daemon gives them all to its core, and `sluice budget` asks a core over an empty
 * device: what the one says fits is what the other runs.
 *
 * Plans are the pipeline's dry run, one for each set of streamed networks.  Times
 * are guesses for want of a measurement: they only say how much of the copying the
 * computation hides, and what one request costs against another of the same model.
 *
 * All types are plain values.  Threads: any.
 */
#ifndef SL_SERVICE_VARIANTS_H
#define SL_SERVICE_VARIANTS_H

#include "base/status.h"
#include "engine/pipeline/t2v.h"
#include "kernels/device.h"
#include "service/core.h"

typedef enum {
    SL_STREAMING_AUTO, /* when nothing else can ever be done */
    SL_STREAMING_OFF,
    SL_STREAMING_ON,
} sl_streaming;

/* Networks that a way streams. */
typedef enum {
    SL_STREAM_NONE,
    SL_STREAM_TEXT, /* the text encoder */
    SL_STREAM_ALL,  /* the text encoder and the transformers */
    SL_STREAM_COUNT
} sl_stream_set;

typedef struct {
    const char *model; /* as the budget table knows it */
    /* Whose the components are, for their keys: [SL_COMPONENT_COUNT]; NULL, or a NULL
     * in it: the model's own. */
    const char *const *owners;
    const sl_arch *arch;
    sl_t2v_request request; /* streamed is not looked at */
    sl_streaming streaming;
    sl_device_kind kind; /* to plan for, and to guess times */
} sl_variants_ask;

typedef struct {
    unsigned streamed; /* SL_COMPONENT_BITs */
    bool by_phase;
    sl_stream_set set; /* of its plan */
    size_t weight_bytes;
    size_t activation_bytes; /* what the job maps at most */
    size_t peak_bytes;       /* with both, without a workspace; by phase: of the largest */
    size_t host_bytes;       /* images that it streams from */
    double slowdown;         /* by streaming; 1: none */
} sl_way;

typedef struct {
    int count;
    sl_way ways[SL_CORE_MAX_VARIANTS];
    sl_t2v_plan plans[SL_STREAM_COUNT]; /* of the sets that a way has */
} sl_variants;

/* Fills *out, and of *job variants, variant_count and cost, the rest of which is
 * left alone.  SL_ERR_INVALID: the request makes no sense. */
sl_status sl_variants_make(sl_variants *out, sl_core_job *job, const sl_variants_ask *ask,
                           sl_error *err) SL_MUST_CHECK;

const sl_t2v_plan *sl_variants_plan(const sl_variants *variants, int way);

typedef struct {
    void *arg;
    /* Whether it can ever be done; *need_bytes is what that takes of the device. */
    bool (*can)(void *arg, const sl_core_job *job, size_t *need_bytes);
} sl_variants_judge;

/* The largest video of the same shape that can be done: half of the frames or more
 * if there is such a one, then the most pixels and frames; a lower precision only
 * where none can in the one asked for.  *found is false when not even the smallest
 * can. */
sl_status sl_variants_nearest(const sl_variants_ask *ask, const sl_variants_judge *judge,
                              bool *found, sl_t2v_request *nearest, size_t *need_bytes,
                              sl_error *err) SL_MUST_CHECK;

#endif
