/* component.h - one network's weights on a device.
 *
 * The bytes that a component will map are known from its spec alone
 * (sl_component_plan_bytes).  Loading maps exactly that and fills it: from the
 * checkpoint, or from the component's image, which is the bytes of a resident
 * region (each tensor in its device form, aligned to 256 bytes) in host memory.
 *
 * A streamed component keeps on the device only what is outside of its blocks,
 * and two blocks at a time, which come from the image while it runs (stream.h);
 * of a text encoder's token table it reads rows from the image.
 *
 * Ownership: load creates, destroy gives every granule back.  The image is the
 *            caller's: a streamed component borrows it until it is destroyed.
 * Threads:   one loads.  Afterwards any number may run networks on it: a
 *            resident one is read-only, of a streamed one they take turns.
 */
#ifndef SL_ENGINE_MODEL_COMPONENT_H
#define SL_ENGINE_MODEL_COMPONENT_H

#include "base/status.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/config.h"
#include "engine/model/weights.h"
#include "kernels/exec.h"

typedef enum {
    SL_MODE_RESIDENT, /* the whole network is on the device */
    SL_MODE_STREAMED, /* its blocks come from host memory; not for a VAE, which is small */
    SL_MODE_COUNT
} sl_component_mode;

const char *sl_component_mode_name(sl_component_mode mode); /* "resident", "streamed" */
bool sl_component_mode_parse(const char *text, sl_component_mode *out);
bool sl_component_can_stream(sl_component_kind kind);

#define SL_COMPONENT_BIT(kind) (1u << (kind)) /* of sets of components */

typedef struct {
    sl_component_kind kind;
    sl_precision precision;
    sl_component_mode mode;
    union { /* by kind */
        sl_dit_config dit;
        sl_t5_config t5;
        sl_vae_config vae;
    } config;
} sl_component_spec;

/* The spec of one component of a table row, resident; its precision is what
 * sl_component_precision says. */
sl_component_spec sl_component_spec_of(const sl_arch *arch, sl_component_kind kind,
                                       sl_precision precision);

typedef struct sl_component sl_component;

/* Granules that loading maps on the device. */
size_t sl_component_plan_bytes(const sl_component_spec *spec);
/* Host memory of the image, to the byte; the same in both modes. */
size_t sl_component_image_bytes(const sl_component_spec *spec);
/* Copied from the image in one walk through the network; 0 unless streamed. */
size_t sl_component_pass_bytes(const sl_component_spec *spec);

/* From the file straight to the device; SL_ERR_INVALID for a streamed spec.
 * Fails before mapping anything if a tensor is missing or has another shape;
 * the message names it, with expected and found.  Unexpected tensors are
 * counted (sl_component_unexpected).  f32, f16, bf16 and f64 in the file are all
 * accepted and converted (RNE), for INT8 and FP8 also quantised; int8 linears of a file
 * are taken as they are, and by INT8 alone (else SL_ERR_INVALID).  exec's cancel
 * word stops it between tensors. */
sl_status sl_component_load(sl_component **out, const sl_component_spec *spec, sl_device *device,
                            sl_exec *exec, const sl_ckpt *ckpt, sl_error *err) SL_MUST_CHECK;

/* From the file to an image: writes every one of image_bytes, which must be
 * sl_component_image_bytes(spec) (else SL_ERR_INVALID).  image is aligned to 64
 * bytes and one range of addresses; segments that are memory of their own (a
 * few memfds) are mapped behind one another.  After a failure the bytes mean
 * nothing.  Checks and messages as in sl_component_load. */
sl_status sl_component_fill_image(void *image, size_t image_bytes, const sl_component_spec *spec,
                                  sl_exec *exec, const sl_ckpt *ckpt, sl_error *err) SL_MUST_CHECK;
/* From a filled image to the device.  The image is trusted: it is not checked
 * again, and what was unexpected in the file is not known (0). */
sl_status sl_component_load_image(sl_component **out, const sl_component_spec *spec,
                                  sl_device *device, sl_exec *exec, const void *image,
                                  size_t image_bytes, sl_error *err) SL_MUST_CHECK;

/* Resident, each tensor written by `fill`, whose slot has its place: for weights that
 * come from no file.  Waits for what fill has queued. */
sl_status sl_component_create_filled(sl_component **out, const sl_component_spec *spec,
                                     sl_device *device, sl_exec *exec, sl_weight_visitor *fill,
                                     void *arg, sl_error *err) SL_MUST_CHECK;

/* The same with made-up addresses and no memory: for counting a plan.  Its
 * mapped bytes are 0. */
sl_status sl_component_create_counting(sl_component **out, const sl_component_spec *spec,
                                       sl_error *err) SL_MUST_CHECK;
/* No network may be running on it.  NULL is fine. */
void sl_component_destroy(sl_component *component);

const sl_component_spec *sl_component_get_spec(const sl_component *component);
size_t sl_component_mapped_bytes(const sl_component *component);
int64_t sl_component_unexpected(const sl_component *component);

/* The weights, by kind (asserted). */
const sl_dit_weights *sl_component_dit(const sl_component *component);
const sl_t5_weights *sl_component_t5(const sl_component *component);
const sl_vae_weights *sl_component_vae(const sl_component *component);

#endif
