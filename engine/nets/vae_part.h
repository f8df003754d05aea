/* vae_part.h - what the VAE's two directions are made of: work buffers, causal
 * convolutions with their caches, residual blocks, the middle of the network.
 *
 * Private to vae_decode.c and vae_encode.c.  A chunk passes through a direction
 * in two parts, one of whole chunks (where time is resampled) and one frame by
 * frame (where pictures are largest); each part has three work buffers.  Three
 * are enough for every step: a residual block needs its input (which is also
 * its output unless the channels change), the normalised input, and what is
 * between its convolutions.
 */
#ifndef SL_ENGINE_NETS_VAE_PART_H
#define SL_ENGINE_NETS_VAE_PART_H

#include "engine/nets/net.h"
#include "engine/nets/vae.h"
#include "kernels/ops.h"

enum { SL_VAE_STAGES = 4, SL_VAE_WORK_BUFFERS = 3, SL_VAE_ELSEWHERE = -1 };

/* One part of a chunk under way. */
typedef struct {
    sl_vae_stream *stream;
    const sl_ops *ops;
    int *next_cache;                        /* index into stream->caches; NULL: no cache at all */
    sl_tensor buffers[SL_VAE_WORK_BUFFERS]; /* flat */
    sl_tensor x;                            /* [n, H, W, C], the current activation */
    int at;                                 /* the buffer that x is in, or SL_VAE_ELSEWHERE */
} sl_vae_part;

static inline bool sl_vae_has(const sl_affine *affine)
{
    return affine->w.data != NULL;
}

static inline int64_t sl_vae_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Checks the latent's size, sets everything but the caches. */
sl_status sl_vae_stream_begin(sl_vae_stream *stream, const char *name, sl_exec *exec,
                              sl_scratch *scratch, const sl_vae_weights *weights,
                              const sl_vae_config *config, int64_t T, int64_t h, int64_t w,
                              const sl_tap *tap, sl_error *err) SL_MUST_CHECK;
/* SL_ERR_INVALID unless t is the next latent frame. */
sl_status sl_vae_stream_check_turn(const sl_vae_stream *stream, int64_t t,
                                   sl_error *err) SL_MUST_CHECK;

/* ---- buffers ---- */

sl_status sl_vae_take_buffers(sl_vae_part *p, int64_t elements, sl_error *err) SL_MUST_CHECK;
/* The k-th work buffer that x is not in, as a tensor of the given shape. */
sl_tensor sl_vae_spare(const sl_vae_part *p, int k, int64_t n, int64_t H, int64_t W, int64_t C);
/* x is now `y`; whether that lies in a work buffer is found out. */
void sl_vae_move_to(sl_vae_part *p, const sl_tensor *y);
/* The largest activation of a stage's residual blocks for n frames of H x W. */
int64_t sl_vae_res_elements(const sl_vae_stage *stage, int64_t n, int64_t H, int64_t W);

/* ---- caches: reserved in the order in which the convolutions run ---- */

sl_status sl_vae_reserve_cache(sl_vae_stream *stream, int64_t frames, int64_t H, int64_t W,
                               int64_t C, sl_error *err) SL_MUST_CHECK;
sl_status sl_vae_reserve_res_caches(sl_vae_stream *stream, const sl_vae_res *res, int64_t H,
                                    int64_t W, sl_error *err) SL_MUST_CHECK;
/* The cache of the next convolution; NULL where there are none. */
sl_vae_cache *sl_vae_next_cache(sl_vae_part *p);

/* ---- steps ---- */

/* Three frames deep, same size: zeros stand in for frames before the first. */
sl_status sl_vae_causal_conv(sl_vae_part *p, const sl_tensor *y, const sl_tensor *x,
                             const sl_affine *affine, const sl_tensor *residual,
                             sl_error *err) SL_MUST_CHECK;
/* A 1x1x1 convolution; y has its first y->dim[3] output channels. */
sl_status sl_vae_pointwise(sl_vae_part *p, const sl_tensor *y, const sl_tensor *x,
                           const sl_affine *affine, sl_error *err) SL_MUST_CHECK;
sl_status sl_vae_res_block(sl_vae_part *p, const sl_vae_res *w, sl_error *err) SL_MUST_CHECK;
/* Residual block, attention, residual block; shown as "middle". */
sl_status sl_vae_middle(sl_vae_part *p, const sl_vae_half *net, sl_error *err) SL_MUST_CHECK;

/* Taps: "dec.chunk0.conv1"; with an index behind `what` unless that is below 0. */
void sl_vae_show(const sl_vae_part *p, const char *what, int index);

#endif
