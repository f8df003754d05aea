/* t2v.h - video from a text, or from a text and an image: from token ids to
 * frames, and the plan of it.
 *
 * sl_t2v_run walks its phases over one scratch: encode text, encode image (where
 * there is one), denoise (with one expert, or with two in turn), decode.
 * sl_t2v_plan_make walks the same code over a counting exec and scratch:
 * the plan's activation bytes are exactly those that the run will use.
 *
 * Threads: one job at a time on an exec.
 */
#ifndef SL_ENGINE_PIPELINE_T2V_H
#define SL_ENGINE_PIPELINE_T2V_H

#include "base/status.h"
#include "engine/model/component.h"
#include "engine/model/config.h"
#include "kernels/exec.h"
#include "kernels/scratch.h"

typedef enum {
    SL_SAMPLER_SDE,   /* rCM, for distilled checkpoints */
    SL_SAMPLER_ODE,   /* the same without new noise */
    SL_SAMPLER_UNIPC, /* for the others: many steps, a negative prompt */
    SL_SAMPLER_COUNT
} sl_sampler_mode;

/* Which phases a request has. */
typedef enum {
    SL_PART_ALL,
    SL_PART_LATENT, /* without decoding: what on_step shows last is the result */
    SL_PART_DECODE, /* decoding alone, behind the last step: for sl_t2v_resume */
    SL_PART_COUNT
} sl_t2v_part;

typedef struct {
    sl_t2v_part part;
    int width, height; /* pixels, multiples of 16 */
    int frames;        /* 4m + 1 */
    int steps;         /* SDE, ODE: 1 to 4; UNIPC: 1 to 200 */
    sl_sampler_mode mode;
    double sigma_max;    /* SDE, ODE */
    double shift;        /* UNIPC, and what follows: above 0 */
    double guidance;     /* v = negative + guidance * (prompt - negative); 1: no negative prompt */
    double guidance_low; /* the same for the low-noise expert of two */
    int64_t negative_token_count; /* as token_count; not looked at without guidance */
    const int32_t *negative_ids;  /* borrowed while it runs; a plan needs none */
    double boundary; /* two experts: steps at times below it are the low-noise one's; 0 to 1 */
    uint64_t seed;
    sl_precision precision;
    sl_attention_mode attention;
    double topk_ratio; /* SLA, SageSLA: of the key blocks, above 0, at most 1 */
    sl_dialect dialect;
    sl_layer_norm_mode layer_norm;
    sl_precision vae_precision; /* of what the VAE computes with: F32 or BF16 */
    unsigned streamed;          /* SL_COMPONENT_BITs: their blocks come from host memory */
    int64_t token_count;        /* ids including </s>; a plan without a prompt uses text_len */
    const uint8_t *image; /* the first frame of a model that takes one, else NULL: RGB24 of exactly
                             width x height in host memory, borrowed while it runs; a plan needs
                             none */
} sl_t2v_request;

/* The defaults of a model's row, for a distilled checkpoint; for another one. */
sl_t2v_request sl_t2v_request_default(const sl_arch *arch);
sl_t2v_request sl_t2v_request_official(const sl_arch *arch);

/* The VAE's precision where a request does not say: F32 on cpu and for precision
 * f32, else BF16. */
sl_precision sl_t2v_vae_precision_default(sl_device_kind kind, sl_precision precision);
/* What a request computes with on a kind of device: exactly for precision f32. */
sl_numerics sl_t2v_numerics(const sl_t2v_request *request, sl_device_kind kind);

/* Whether it evaluates a negative prompt, too. */
bool sl_t2v_request_is_guided(const sl_t2v_request *request, const sl_arch *arch);

/* SL_ERR_INVALID for a size that is no multiple of 16, frames not 4m + 1,
 * steps out of range, more than 128 tokens along an axis, ...; the message
 * names the nearest valid value. */
sl_status sl_t2v_request_check(const sl_t2v_request *request, const sl_arch *arch,
                               sl_error *err) SL_MUST_CHECK;

/* In the order in which they run.  A run has not all of them: phase_components
 * of its plan is 0 for the others, and so are their bytes. */
typedef enum {
    SL_PHASE_ENCODE_TEXT,
    SL_PHASE_ENCODE_IMAGE, /* models that take an image */
    SL_PHASE_DENOISE,      /* models with one expert */
    SL_PHASE_DENOISE_HIGH, /* models with two, while there are steps for it */
    SL_PHASE_DENOISE_LOW,
    SL_PHASE_DECODE,
    SL_PHASE_COUNT
} sl_phase;

const char *sl_phase_name(sl_phase phase); /* "encode_text", ... */

typedef struct {
    size_t weight_bytes[SL_COMPONENT_COUNT];   /* granules each component maps; 0: not needed */
    size_t image_bytes[SL_COMPONENT_COUNT];    /* its image; in host memory if it is streamed */
    size_t pass_bytes[SL_COMPONENT_COUNT];     /* streamed: copied per walk through its blocks */
    unsigned phase_components[SL_PHASE_COUNT]; /* SL_COMPONENT_BITs that the phase uses */
    int phase_steps[SL_PHASE_COUNT];           /* sampling steps in it */
    size_t phase_activation_bytes[SL_PHASE_COUNT]; /* scratch peak, to the byte */
    size_t remaining_bytes[SL_PHASE_COUNT]; /* granules of activations from this phase to the end:
                                               at its begin the job may shrink to them */
    size_t activation_bytes;   /* the largest of all phases, in granules: what the job maps */
    size_t total_bytes;        /* all weights + activation_bytes (without the exec's workspace) */
    size_t output_frame_bytes; /* host memory of one chunk of RGB frames */
} sl_t2v_plan;

/* For a run on a device of that kind. */
sl_status sl_t2v_plan_make(sl_t2v_plan *out, const sl_t2v_request *request, const sl_arch *arch,
                           sl_device_kind kind, sl_error *err) SL_MUST_CHECK;

/* What is known of the machine: measured, or guessed. */
typedef struct {
    double copy_bytes_per_s;        /* host to device while computing; above 0 */
    double phase_s[SL_PHASE_COUNT]; /* compute of each phase with everything resident */
} sl_t2v_speed;

typedef struct {
    double resident_s, streamed_s; /* the slowdown is their ratio */
} sl_t2v_estimate;

/* Time of a run, without and with the streaming that the plan is for.  With two
 * slots a walk through a network takes the longer of its compute and its copy
 * (the first block, which nothing hides, is left out):
 *
 *     encode text    max(compute, pass / rate)
 *     denoise        pass / rate + steps * max(compute / steps, pass / rate)
 *     the VAE's      compute
 *
 * with the steps of each expert, and the first term of denoise being the walk that prepares the
 * text's keys and values, whose compute counts as nothing; pass is the network's pass_bytes,
 * without which a phase takes its compute. */
sl_t2v_estimate sl_t2v_estimate_run(const sl_t2v_plan *plan, const sl_t2v_speed *speed);

/* Those that the plan names; the others may be NULL.  by_phase: those of a phase are
 * there when its on_phase has returned; the caller may exchange them in it. */
typedef struct {
    const sl_component *text_encoder, *dit, *dit_high, *dit_low, *vae;
    bool by_phase;
} sl_t2v_components;

/* All callbacks are called from the running thread; any may be NULL.  One that
 * returns another status than SL_OK ends the run with it. */
typedef struct {
    void *arg;
    sl_status (*on_phase)(void *arg, sl_phase phase, sl_error *err);
    /* step i of n is done; latent [C, T, h, w] f64 in device memory: the state, of which
     * the first z_dim rows are the sample and the others, of UNIPC, its memory */
    sl_status (*on_step)(void *arg, int step, int step_count, const sl_tensor *latent,
                         sl_error *err);
    /* before step i moves the sample x [z_dim, T, h, w] f64 along velocity, f32, both in device
     * memory: the video is foreseen as x - sigma * velocity.  NULL costs nothing */
    sl_status (*on_guess)(void *arg, int step, double sigma, const sl_tensor *x,
                          const sl_tensor *velocity, sl_error *err);
    /* count frames of RGB24, host memory, valid during the call */
    sl_status (*on_frames)(void *arg, const uint8_t *rgb, int first, int count, sl_error *err);
} sl_t2v_events;

typedef struct {
    size_t phase_activation_bytes[SL_PHASE_COUNT]; /* measured scratch peaks */
} sl_t2v_result;

/* Sets the exec's numerics to the request's.  When it returns nothing is queued any
 * more, nor when on_phase is called: memory may be given back then.
 * ids: request->token_count of them.  Components are there, and in the modes that
 * the request says (SL_ERR_INVALID).  noises: NULL, or steps + 1 host arrays
 * [16, T, h, w] f32 (UNIPC: one) that replace the generator (noise import).  A NaN or infinity
 * after a step is SL_ERR_DATA and names step and stage. */
sl_status sl_t2v_run(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                     const sl_arch *arch, const sl_t2v_request *request, const int32_t *ids,
                     const float *const *noises, const sl_t2v_events *events, sl_t2v_result *result,
                     sl_error *err) SL_MUST_CHECK;

/* Continues a run of the same request behind steps_done (1 to steps) of its
 * steps: gives the frames that it would have given.  latent: the state that
 * on_step showed last, in host memory.  Events and result are those of the rest:
 * behind the last step that is decoding alone, without ids, image and all
 * components but the VAE; behind the last one of the high-noise expert that is
 * not needed. */
sl_status sl_t2v_resume(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                        const sl_arch *arch, const sl_t2v_request *request, const int32_t *ids,
                        const float *const *noises, int steps_done, const double *latent,
                        const sl_t2v_events *events, sl_t2v_result *result,
                        sl_error *err) SL_MUST_CHECK;

/* Elements of the state, [C, T, h, w] in *dim if it is not NULL; of a request that
 * passed its check.  C is z_dim, with UNIPC SL_UNIPC_STATES times that, but in decoding
 * alone, which takes the sample without the sampler's memory. */
int64_t sl_t2v_latent_shape(const sl_t2v_request *request, const sl_arch *arch, int64_t dim[4]);

/* The stages behind the text encoder, as sl_t2v_run calls them, with the exec's
 * numerics as they are; activations are given back before they return, and what
 * was queued is done.  events may be NULL. */

/* rgb: [8h, 8w, 3] in host memory, the first frame of a video that is grey (0.0)
 * behind it; condition [4 + z_dim, T, h, w] f32 receives the mask of known frames
 * and the video's latents. */
sl_status sl_t2v_encode_image(sl_exec *exec, sl_scratch *scratch, const sl_component *vae,
                              const uint8_t *rgb, const sl_tensor *condition,
                              sl_error *err) SL_MUST_CHECK;

/* text [text_len, text_dim], of the exec's activation dtype, with guidance twice as many rows:
 * behind the prompt's those of the negative one; condition as encode_image fills it, or NULL;
 * latent [C, T, h, w] f64, as sl_t2v_latent_shape has it, receives the final state.  Without
 * components->dit the model has two experts. */
sl_status sl_t2v_denoise(sl_exec *exec, sl_scratch *scratch, const sl_t2v_components *components,
                         const sl_t2v_request *request, const sl_tensor *text,
                         const sl_tensor *condition, const float *const *noises,
                         const sl_t2v_events *events, const sl_tensor *latent,
                         sl_error *err) SL_MUST_CHECK;

/* latent: the first z_dim rows of it are decoded. */
sl_status sl_t2v_decode(sl_exec *exec, sl_scratch *scratch, const sl_component *vae,
                        const sl_tensor *latent, const sl_t2v_events *events,
                        sl_error *err) SL_MUST_CHECK;

#endif
