/* inspect.h - what one checkpoint is, and everything that is wrong with it.
 *
 * The same for a whole model: sl_model_dir_inspect.  Reads headers only.
 */
#ifndef SL_ENGINE_MODEL_INSPECT_H
#define SL_ENGINE_MODEL_INSPECT_H

#include "base/status.h"
#include "engine/model/component.h"
#include "engine/model/weights.h"

typedef struct {
    sl_component_spec spec; /* found out: every transformer is SL_COMPONENT_DIT */
    const char *naming;     /* "official", "diffusers", "huggingface" */
    sl_layout layout;       /* of a transformer; else OFFICIAL */
    int64_t tensor_count;
    size_t data_bytes;
    struct {
        int64_t tensor_count;
        size_t data_bytes;
    } by_dtype[SL_DTYPE_COUNT];
} sl_ckpt_summary;

const char *sl_layout_name(sl_layout layout); /* "official", "turbo", "turbo-quant" */

/* spec: what it is in a model, or NULL: found out.  SL_ERR_DATA: broken, or no
 * part of a model. */
sl_status sl_ckpt_summarise(sl_ckpt_summary *out, const char *path, const sl_component_spec *spec,
                            sl_error *err) SL_MUST_CHECK;

/* say(arg, line) for each tensor that is missing, of another shape or dtype, or
 * unexpected; *problems counts. */
sl_status sl_ckpt_inspect(const char *path, void (*say)(void *arg, const char *line), void *arg,
                          int *problems, sl_error *err) SL_MUST_CHECK;

#endif
