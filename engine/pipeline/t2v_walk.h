/* t2v_walk.h - what the sources of the pipeline share: one walk through the
 * phases, whether it runs, resumes or counts.
 *
 * Private to engine/pipeline.
 */
#ifndef SL_ENGINE_PIPELINE_T2V_WALK_H
#define SL_ENGINE_PIPELINE_T2V_WALK_H

#include "engine/nets/net.h"
#include "engine/pipeline/sampling.h"
#include "engine/pipeline/t2v.h"
#include "kernels/ops.h"

enum {
    SL_LATENT_PIXELS = 8, /* along a side of a frame, per latent */
    SL_MASK_CHANNELS = 4, /* of an image's condition; the VAE's channels follow */
};

/* What each phase of a run needs, and the sampling steps in it; 0: it has no such
 * phase. */
typedef struct {
    unsigned components[SL_PHASE_COUNT]; /* SL_COMPONENT_BITs */
    int steps[SL_PHASE_COUNT];
    bool guided; /* a negative prompt is encoded, and evaluated by an expert */
} sl_t2v_phases;

/* Of a request that passed its check, behind steps_done of its steps. */
sl_status sl_t2v_phases_make(sl_t2v_phases *out, const sl_t2v_request *request, bool image,
                             int expert_count, int steps_done, sl_error *err) SL_MUST_CHECK;
const sl_component *sl_t2v_component_of(const sl_t2v_components *components,
                                        sl_component_kind kind);

typedef struct {
    sl_exec *exec;
    sl_scratch *scratch;
    const sl_t2v_components *components;
    const sl_arch *arch; /* NULL in a stage that is run by itself */
    const sl_t2v_request *request;
    const int32_t *ids;
    const float *const *noises; /* NULL: generated */
    const sl_t2v_events *events;
    int steps_done;       /* by an earlier run */
    const double *latent; /* the state behind them, host memory; NULL: from noise */
    sl_t2v_phases phases; /* that are left */
    size_t mark;          /* of the scratch before the walk */
    sl_t2v_result measured;
} sl_t2v_walk;

/* An entry into the pipeline lends its scratch to the ops and takes it back when all
 * that was queued is done; inside of another entry that goes on as it was. */
typedef struct {
    sl_exec *exec;
    sl_scratch *before;
} sl_t2v_lease;

static inline sl_t2v_lease sl_t2v_lend(sl_exec *exec, sl_scratch *scratch)
{
    const sl_t2v_lease lease = { exec, sl_exec_scratch(exec) };

    sl_exec_lend_scratch(exec, scratch);
    return lease;
}

/* status: of what was done under the lease; the first failure is the one told. */
static inline sl_status sl_t2v_return(const sl_t2v_lease *lease, sl_status status, sl_error *err)
{
    sl_error ignored = { .status = SL_OK };
    const sl_status waited = sl_exec_wait(lease->exec, status == SL_OK ? err : &ignored);

    sl_exec_lend_scratch(lease->exec, lease->before);
    return status == SL_OK ? waited : status;
}

/* A phase begins: its peak is counted from what is in use now. */
sl_status sl_t2v_begin_phase(sl_t2v_walk *walk, sl_phase phase, sl_error *err) SL_MUST_CHECK;
void sl_t2v_end_phase(sl_t2v_walk *walk, sl_phase phase);

/* The denoising phases that are left; tensors as in sl_t2v_denoise. */
sl_status sl_t2v_walk_denoise(sl_t2v_walk *walk, const sl_tensor *text, const sl_tensor *condition,
                              const sl_tensor *latent, sl_error *err) SL_MUST_CHECK;

/* Host memory of a chunk of RGB frames of a video of T latent frames. */
size_t sl_t2v_chunk_rgb_bytes(const sl_vae_config *config, int64_t T, int64_t h, int64_t w);

#endif
