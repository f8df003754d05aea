/* vae.h - the Wan2.1 video VAE, one latent frame at a time, in both directions.
 *
 *     sl_vae_decoder dec;
 *     mark = sl_scratch_mark(scratch);
 *     sl_vae_decoder_begin(&dec, ..., T, h, w, err)       reserves the caches
 *     for (t = 0; t < T; t++)
 *         sl_vae_decoder_next(&dec, &latent, t, &frames, err)
 *     sl_scratch_release(scratch, mark);
 *
 * Latent frame 0 is 1 frame of video, every later one 4 (2 per temporal stage);
 * the feature cache keeps the last two input frames of each convolution, so
 * memory does not depend on the number of frames.  Where time is resampled a
 * chunk runs whole, where pictures are largest frame by frame, which is the same
 * arithmetic at a quarter of the memory.  Activations, caches and pictures are
 * channels-last [frames, height, width, channels], of the dtype that the exec's
 * numerics call frames when the video begins; latents are f32.  Source: wan.md 8.
 */
#ifndef SL_ENGINE_NETS_VAE_H
#define SL_ENGINE_NETS_VAE_H

#include "engine/model/weights.h"
#include "engine/nets/tap.h"
#include "kernels/exec.h"
#include "kernels/scratch.h"

enum { SL_VAE_MAX_CACHES = 48 };

/* Last input frames of one causal convolution. */
typedef struct {
    sl_tensor frames; /* [2, H, W, C] */
    int count;        /* 0, 1 or 2 valid frames, the newest last */
} sl_vae_cache;

/* One video under way, in either direction. */
typedef struct {
    const char *name; /* "decoder", "encoder" */
    sl_exec *exec;
    sl_scratch *scratch;
    const sl_vae_weights *weights;
    const sl_vae_config *config;
    const sl_tap *tap;
    sl_dtype act;                           /* of activations */
    int64_t T, h, w;                        /* latent */
    int64_t chunk_index;                    /* latent frames done so far */
    size_t chunk_mark;                      /* decoder: scratch as it is between chunks */
    sl_vae_cache caches[SL_VAE_MAX_CACHES]; /* in execution order */
    int cache_count;                        /* 0 for a single frame: none is needed */
    sl_tensor scale, shift;                 /* [z_dim], between latents and the network */
} sl_vae_stream;

typedef struct {
    sl_vae_stream stream;
} sl_vae_decoder;

typedef struct {
    sl_vae_stream stream;
    sl_tensor hand;       /* what the frame-by-frame part gave last */
    int frame_caches;     /* of that part */
    int64_t repeat_count; /* chunks in a row that were the same as the one before */
} sl_vae_encoder;

/* Prepares for T latent frames of h x w. */
sl_status sl_vae_decoder_begin(sl_vae_decoder *decoder, sl_exec *exec, sl_scratch *scratch,
                               const sl_vae_weights *weights, const sl_vae_config *config,
                               int64_t T, int64_t h, int64_t w, const sl_tap *tap,
                               sl_error *err) SL_MUST_CHECK;

/* latent [z_dim, T, h, w] f32, normalised as the DiT gives it; decodes frame t,
 * which must be the one after the last.  *frames [1 or 4, 8h, 8w, 3], not
 * clamped, valid until the next call or the release of the caller's mark.
 * Taps per chunk: "dec.chunk0.conv1", ".middle", ".up0" ... ".up3"; those behind
 * the last temporal stage come once per frame, in order. */
sl_status sl_vae_decoder_next(sl_vae_decoder *decoder, const sl_tensor *latent, int64_t t,
                              sl_tensor *frames, sl_error *err) SL_MUST_CHECK;

/* The opposite.  T latent frames of h x w: pictures are 8h x 8w. */
sl_status sl_vae_encoder_begin(sl_vae_encoder *encoder, sl_exec *exec, sl_scratch *scratch,
                               const sl_vae_weights *weights, const sl_vae_config *config,
                               int64_t T, int64_t h, int64_t w, const sl_tap *tap,
                               sl_error *err) SL_MUST_CHECK;

/* frames [1 or 4, 8h, 8w, 3] in [-1, 1], the next ones of the video; fills
 * frame t, the one after the last, of latent [z_dim, T, h, w] f32: the means,
 * normalised as the DiT takes them.  Scratch is given back before it returns.
 * Taps per chunk: "enc.chunk0.conv1", ".down0" ... ".down3", ".middle"; those
 * before the first temporal convolution come once per frame, in order. */
sl_status sl_vae_encoder_next(sl_vae_encoder *encoder, const sl_tensor *frames,
                              const sl_tensor *latent, int64_t t, sl_error *err) SL_MUST_CHECK;

/* The same for frames that are, bit for bit, those of the call before.  Once nothing
 * else is in the caches of the frame-by-frame part, it would give again what it gave,
 * and is left out: most of the time of a video that stands still, and not a bit of
 * difference.  Then there are no taps of that part. */
sl_status sl_vae_encoder_repeat(sl_vae_encoder *encoder, const sl_tensor *frames,
                                const sl_tensor *latent, int64_t t, sl_error *err) SL_MUST_CHECK;

/* Frames that T latent frames decode to: 1 + 4 (T - 1) for two temporal stages. */
int64_t sl_vae_frame_count(const sl_vae_config *config, int64_t T);

#endif
