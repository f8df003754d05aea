/* random_weights.h - networks of real size with made-up weights, made by the
 * device: for measuring what does not depend on their values.
 *
 * All matrices are cut from one block of normal noise, scaled by 1/sqrt(fan_in), so
 * that activations keep their size through any depth; vectors are small noise.
 *
 * Private to benches and the GPU harness.
 */
#ifndef SL_ENGINE_PIPELINE_RANDOM_WEIGHTS_H
#define SL_ENGINE_PIPELINE_RANDOM_WEIGHTS_H

#include "engine/model/component.h"
#include "kernels/scratch.h"

/* scratch: lent to the exec too; given back before it returns. */
sl_status sl_random_component(sl_component **out, const sl_component_spec *spec, sl_device *device,
                              sl_exec *exec, sl_scratch *scratch, sl_error *err) SL_MUST_CHECK;

#endif
