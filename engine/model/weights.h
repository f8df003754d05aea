/* weights.h - every tensor of a network, listed once.
 *
 * sl_dit_visit, sl_t5_visit and sl_vae_visit walk all tensors of a network in
 * one fixed order and hand each to a visitor with its checkpoint name, its
 * shape in the file, the form it takes on the device, and the slot of the
 * weights struct that the networks read.  Counting bytes, laying out a region,
 * loading, writing synthetic files and comparing with the manifests are all
 * visitors, so they cannot disagree.
 *
 * Source: wan.md 1.2, 1.4, 1.5.
 */
#ifndef SL_ENGINE_MODEL_WEIGHTS_H
#define SL_ENGINE_MODEL_WEIGHTS_H

#include "base/status.h"
#include "engine/model/config.h"
#include "kernels/tensor.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    sl_tensor w, b;  /* b.data NULL where the network has none */
    sl_tensor scale; /* w is I8 or F8_E4M3: its scales, one for 128 x 128 */
} sl_affine;

typedef struct {
    sl_affine q, k, v, o;
    sl_tensor norm_q, norm_k; /* [D] */
} sl_dit_attention;

typedef struct {
    sl_tensor modulation; /* [6, D] */
    sl_dit_attention self_attn, cross_attn;
    sl_affine norm3; /* [D], [D] */
    sl_affine ffn0, ffn2;
    sl_affine proj_l; /* [d, d], [d]: SLA's projection of a head; zero if the file has none */
} sl_dit_block;

/* stream.h.  NULL in a network's weights: all blocks are resident. */
typedef struct sl_weight_stream sl_weight_stream;

typedef struct {
    sl_weight_stream *stream;
    sl_affine patch; /* w [D, in_dim * 4] */
    sl_affine text0, text2;
    sl_affine time0, time2;
    sl_affine time_proj; /* [6 D, D] */
    sl_dit_block blocks[SL_MAX_LAYERS];
    sl_tensor head_modulation; /* [2, D] */
    sl_affine head;            /* [out_dim * 4, D] */
} sl_dit_weights;

typedef struct {
    sl_tensor norm1, norm2;   /* [dim] */
    sl_tensor q, k, v, o;     /* no biases anywhere */
    sl_tensor gate, fc1, fc2; /* ffn.gate.0, ffn.fc1, ffn.fc2 */
    sl_tensor pos;            /* [num_buckets, num_heads] */
} sl_t5_block;

typedef struct {
    sl_weight_stream *stream;
    sl_tensor token;    /* [vocab, dim] */
    bool token_on_host; /* token.data is host memory, to be gathered from there */
    sl_t5_block blocks[SL_MAX_LAYERS];
    sl_tensor norm;
} sl_t5_weights;

/* Convolutions are kept channels-last: [O, kt, kh, kw, I], also the 1x1x1
 * ones; the attention's qkv and proj are matrices. */
typedef struct {
    sl_tensor norm0, norm3; /* residual.0.gamma, residual.3.gamma */
    sl_affine conv2, conv6; /* residual.2, residual.6 */
    sl_affine shortcut;     /* w.data NULL when in and out channels agree */
} sl_vae_res;

typedef struct {
    sl_tensor norm;
    sl_affine qkv; /* [3 C, C] */
    sl_affine proj;
} sl_vae_attn;

typedef struct {
    sl_vae_res res[3]; /* num_res_blocks + 1 in the decoder, num_res_blocks in the encoder */
    int res_count;
    sl_affine resample;  /* resample.1, [O, 1, 3, 3, I]; absent in the last stage */
    sl_affine time_conv; /* [O, 3, 1, 1, I]; absent unless temporal */
} sl_vae_stage;

typedef struct {
    sl_affine conv1;
    sl_vae_stage stages[4];
    sl_vae_res mid0, mid2;
    sl_vae_attn mid1;
    sl_tensor head_norm;
    sl_affine head;
} sl_vae_half;

typedef struct {
    sl_affine conv1, conv2; /* 1x1x1: after the encoder, before the decoder */
    sl_vae_half encoder, decoder;
} sl_vae_weights;

/* Which published files are being described. */
typedef enum {
    SL_LAYOUT_OFFICIAL,    /* f32, 5-D patch embedding */
    SL_LAYOUT_TURBO,       /* bf16, 2-D patch embedding, norms f32, proj_l */
    SL_LAYOUT_TURBO_QUANT, /* the same with int8 linears and scales */
} sl_layout;

typedef enum {
    SL_FORM_PLAIN,         /* copied, perhaps to another dtype and a flatter shape */
    SL_FORM_CHANNELS_LAST, /* [O, I, (kt,) kh, kw] to [O, kt, kh, kw, I] */
    SL_FORM_CODES,         /* floats, quantised to I8 or F8_E4M3; the slot before: scales */
    SL_FORM_DEVICE_ONLY,   /* not in such files: zero, unless the file has it all the same */
    SL_FORM_FILE_ONLY,     /* in the file, not used by this execution (int8 linears) */
} sl_form;

typedef struct {
    const char *name; /* as in the official file; valid during the call */
    int rank;         /* shape in the file */
    int64_t dim[SL_MAX_RANK];
    sl_dtype file_dtype; /* what the manifest of this layout says */
    sl_form form;
    int64_t block;          /* which of the network's equal blocks it belongs to; -1: to none */
    bool by_row;            /* a large table of which a run reads some rows only */
    sl_tensor *slot;        /* NULL for FILE_ONLY; else: visitor sets data; dtype, rank
                               and dim are the device form, already filled in */
    const sl_tensor *scale; /* of CODES: the slot of its scales, visited before */
} sl_weight_spec;

typedef sl_status sl_weight_visitor(void *arg, const sl_weight_spec *spec, sl_error *err);

/* All tensors of a block come in a row.  precision decides the device dtype of
 * linear (and convolution, embedding) weights; everything else is f32.  The device
 * forms and their order are the same for every layout; but int8 linears of a file
 * have one with SL_PRECISION_INT8 only.  Zeroes
 * *weights first, so that what a network has not stays NULL; weights NULL: slots
 * are temporaries, for visitors that only count or compare.  Stops at the first
 * failure.  config must have passed its check. */
sl_status sl_dit_visit(sl_dit_weights *weights, const sl_dit_config *config, sl_layout layout,
                       sl_precision precision, sl_weight_visitor *visitor, void *arg,
                       sl_error *err) SL_MUST_CHECK;
sl_status sl_t5_visit(sl_t5_weights *weights, const sl_t5_config *config, sl_precision precision,
                      sl_weight_visitor *visitor, void *arg, sl_error *err) SL_MUST_CHECK;
sl_status sl_vae_visit(sl_vae_weights *weights, const sl_vae_config *config, sl_precision precision,
                       sl_weight_visitor *visitor, void *arg, sl_error *err) SL_MUST_CHECK;

#endif
