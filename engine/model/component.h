/* component.h - one network's weights on a device.
 *
 * The bytes that a component will map are known from its config alone
 * (sl_component_plan_bytes): each tensor aligned to 256 bytes, the sum rounded
 * up to granules.  Loading maps exactly that and fills it.
 *
 * Ownership: load creates, unload destroys and gives every granule back.
 * Threads:   one loads; afterwards read-only.
 */
#ifndef SL_ENGINE_MODEL_COMPONENT_H
#define SL_ENGINE_MODEL_COMPONENT_H

#include "base/status.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"
#include "kernels/exec.h"

typedef struct {
    sl_component_kind kind;
    sl_precision precision;
    union { /* by kind */
        sl_dit_config dit;
        sl_t5_config t5;
        sl_vae_config vae;
    } config;
} sl_component_spec;

/* The spec of one component of a table row. */
sl_component_spec sl_component_spec_of(const sl_arch *arch, sl_component_kind kind,
                                       sl_precision precision);

typedef struct sl_component sl_component;

size_t sl_component_plan_bytes(const sl_component_spec *spec);

/* Fails before mapping anything if a tensor is missing or has another shape;
 * the message names it, with expected and found.  Unexpected tensors are
 * counted (sl_component_unexpected).  f32, f16, bf16 and f64 in the file are all
 * accepted and converted (RNE).  exec's cancel word stops it between tensors. */
sl_status sl_component_load(sl_component **out, const sl_component_spec *spec, sl_device *device,
                            sl_exec *exec, const sl_ckpt *ckpt, sl_error *err) SL_MUST_CHECK;
/* The same with made-up addresses and no memory: for counting a plan.  Its
 * mapped bytes are 0. */
sl_status sl_component_create_counting(sl_component **out, const sl_component_spec *spec,
                                       sl_error *err) SL_MUST_CHECK;
void sl_component_destroy(sl_component *component); /* NULL is fine */

const sl_component_spec *sl_component_get_spec(const sl_component *component);
size_t sl_component_mapped_bytes(const sl_component *component);
int64_t sl_component_unexpected(const sl_component *component);

/* The weights, by kind (asserted). */
const sl_dit_weights *sl_component_dit(const sl_component *component);
const sl_t5_weights *sl_component_t5(const sl_component *component);
const sl_vae_weights *sl_component_vae(const sl_component *component);

#endif
