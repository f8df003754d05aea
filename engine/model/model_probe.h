/* model_probe.h - what a checkpoint is, and its dimensions, from its tensors.
 *
 * Inside of the model module.  Every shape is checked before it is used; the
 * configs that come out have passed their checks.
 */
#ifndef SL_ENGINE_MODEL_MODEL_PROBE_H
#define SL_ENGINE_MODEL_MODEL_PROBE_H

#include "engine/ckpt/ckpt.h"
#include "engine/model/component.h"
#include "engine/model/config.h"

/* Bits of sl_dit_json.has. */
enum {
    SL_DIT_JSON_DIM = 1,
    SL_DIT_JSON_FFN_DIM = 2,
    SL_DIT_JSON_NUM_HEADS = 4,
    SL_DIT_JSON_NUM_LAYERS = 8,
    SL_DIT_JSON_IN_DIM = 16,
    SL_DIT_JSON_OUT_DIM = 32,
    SL_DIT_JSON_TEXT_LEN = 64,
    SL_DIT_JSON_FREQ_DIM = 128,
    SL_DIT_JSON_EPS = 256,
    SL_DIT_JSON_TASK = 512,
};

/* What config.json says; other keys are ignored. */
typedef struct {
    unsigned has;
    sl_dit_config config;
    sl_task task;
} sl_dit_json;

sl_status sl_dit_json_read(sl_dit_json *json, const char *path, sl_error *err) SL_MUST_CHECK;

/* The same keys, written: what sl_dit_json_read reads back. */
sl_status sl_dit_json_write(const char *path, const sl_dit_config *config, sl_task task,
                            sl_error *err) SL_MUST_CHECK;

/* False: none of the three.  Every DiT is SL_COMPONENT_DIT here. */
bool sl_probe_kind(const sl_ckpt *ckpt, sl_component_kind *kind);

/* json must agree with the shapes; it supplies heads, text length and eps. */
sl_status sl_probe_dit(const sl_ckpt *ckpt, const sl_dit_json *json, sl_dit_config *out,
                       sl_error *err) SL_MUST_CHECK;
sl_status sl_probe_t5(const sl_ckpt *ckpt, sl_t5_config *out, sl_error *err) SL_MUST_CHECK;
sl_status sl_probe_vae(const sl_ckpt *ckpt, sl_vae_config *out, sl_error *err) SL_MUST_CHECK;

/* Any of the three, resident and in f32, with the config.json beside a DiT if
 * there is one.  SL_ERR_DATA for another kind of file, too. */
sl_status sl_probe_spec(const sl_ckpt *ckpt, sl_component_spec *out, sl_error *err) SL_MUST_CHECK;

#endif
