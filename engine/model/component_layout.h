/* component_layout.h - where each tensor of a component lies.
 *
 * The image of a component is its tensors in visiting order, each aligned to
 * 256 bytes.  A resident component's region is its image.  A streamed one's
 * region holds
 *
 *     tensors outside of the blocks (without tables) | slot 0 | slot 1
 *
 * with a block in a slot as it is in the image.
 *
 * Private to engine/model.
 */
#ifndef SL_ENGINE_MODEL_COMPONENT_LAYOUT_H
#define SL_ENGINE_MODEL_COMPONENT_LAYOUT_H

#include "engine/model/component.h"

enum { SL_STREAM_SLOTS = 2 };

typedef struct sl_component_layout {
    size_t image_bytes;
    size_t fixed_bytes; /* streamed: in front of the slots */
    size_t slot_bytes;  /* the largest block; 0 for a network without blocks */
    int64_t block_count;
    size_t block_first[SL_MAX_LAYERS]; /* offset in the image */
    size_t block_bytes[SL_MAX_LAYERS];
    int64_t block_tensors; /* of all blocks */
} sl_component_layout;

/* SL_ERR_INVALID if the spec's config does not pass its check. */
sl_status sl_component_layout_make(sl_component_layout *out, const sl_component_spec *spec,
                                   sl_error *err) SL_MUST_CHECK;

/* The next tensor's offset; *used_bytes moves behind it. */
size_t sl_component_take_place(size_t *used_bytes, const sl_tensor *t);

#endif
