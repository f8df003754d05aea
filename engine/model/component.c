#include "engine/model/component.h"

#include "engine/model/convert.h"
#include "engine/model/match.h"

#include <stdatomic.h>
#include <stdlib.h>

#define TENSOR_ALIGN ((size_t)256)

/* Elements of one tile of work: some milliseconds even from a cold disk, and
 * small enough for a thread's workspace in any dtype. */
#define TILE_ELEMENTS ((int64_t)1 << 18)

/* Where counting components pretend to live: apart from each other and from
 * the scratch memory of a plan. */
#define COUNTING_BASE ((uintptr_t)1 << 45)
#define COUNTING_STEP ((uintptr_t)1 << 41)

struct sl_component {
    sl_component_spec spec;
    sl_region *region; /* NULL: counting */
    int64_t unexpected;
    union {
        sl_dit_weights dit;
        sl_t5_weights t5;
        sl_vae_weights vae;
    } weights;
};

sl_component_spec sl_component_spec_of(const sl_arch *arch, sl_component_kind kind,
                                       sl_precision precision)
{
    sl_component_spec spec = { .kind = kind, .precision = precision };

    SL_ASSERT(sl_arch_has_component(arch, kind));
    if (kind == SL_COMPONENT_TEXT_ENCODER)
        spec.config.t5 = arch->t5;
    else if (kind == SL_COMPONENT_VAE)
        spec.config.vae = arch->vae;
    else
        spec.config.dit = arch->dit;
    return spec;
}

/* The next tensor's place; the whole is far below overflow for any config that
 * passed its check. */
static size_t take_place(size_t *used_bytes, const sl_tensor *t)
{
    const size_t at = *used_bytes;

    *used_bytes += (sl_tensor_bytes(t) + TENSOR_ALIGN - 1) & ~(TENSOR_ALIGN - 1);
    return at;
}

static sl_status count_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    (void)err;
    if (spec->form != SL_FORM_FILE_ONLY)
        (void)take_place(arg, spec->slot);
    return SL_OK;
}

size_t sl_component_plan_bytes(const sl_component_spec *spec)
{
    size_t used_bytes = 0;
    const sl_status status =
        sl_component_visit(NULL, spec, SL_LAYOUT_OFFICIAL, count_visitor, &used_bytes, NULL);

    SL_ASSERT(status == SL_OK); /* configs are checked where they come in */
    return sl_granules(used_bytes);
}

typedef struct {
    uintptr_t base;
    size_t used_bytes;
    const sl_ckpt *ckpt;
    sl_exec *exec;
} filler;

/* One tensor on its way from the file to the device. */
typedef struct {
    const sl_ckpt *ckpt;
    const sl_ckpt_tensor *from;
    const sl_tensor *to;
    int64_t tile_elements; /* of both */
    int64_t count;
    atomic_flag failed; /* the first to fail writes error */
    sl_error error;
} transfer;

/* Reads into the thread's workspace, then converts into device memory, which
 * of `cpu` is written directly. */
static void transfer_tile(void *arg, int64_t i, int thread, void *workspace)
{
    transfer *t = arg;
    const sl_tensor *from = &t->from->tensor, *to = t->to;
    const size_t element_bytes = sl_dtype_bytes(from->dtype);
    const int64_t first = i * t->tile_elements;
    const int64_t left = t->count - first;
    const int64_t count = left < t->tile_elements ? left : t->tile_elements;
    unsigned char *out = (unsigned char *)to->data + (size_t)first * sl_dtype_bytes(to->dtype);
    sl_error error = { .status = SL_OK };

    (void)thread;
    if (sl_ckpt_read(t->ckpt, t->from, (size_t)first * element_bytes, workspace,
                     (size_t)count * element_bytes, &error) != SL_OK) {
        if (!atomic_flag_test_and_set(&t->failed))
            t->error = error;
        return;
    }
    if (to->rank == 5) /* channels last: a tile is one output channel */
        sl_convert_channels_last(out, to->dtype, workspace, from->dtype, to->dim[4],
                                 to->dim[1] * to->dim[2] * to->dim[3]);
    else
        sl_convert(out, to->dtype, workspace, from->dtype, count);
}

static sl_status transfer_tensor(sl_exec *exec, const sl_ckpt *ckpt, const sl_ckpt_tensor *from,
                                 const sl_tensor *to, sl_error *err)
{
    transfer t = {
        .ckpt = ckpt,
        .from = from,
        .to = to,
        .count = sl_tensor_count(to),
        .failed = ATOMIC_FLAG_INIT,
    };
    sl_status status;

    t.tile_elements = to->rank == 5 ? t.count / to->dim[0] : TILE_ELEMENTS;
    SL_ASSERT((size_t)t.tile_elements <= SL_CPU_WORKSPACE_PER_THREAD / sizeof(double));
    sl_ckpt_will_need(ckpt, from);
    status = sl_exec_parallel(exec, (t.count + t.tile_elements - 1) / t.tile_elements,
                              transfer_tile, &t, err);
    if (status == SL_OK && t.error.status != SL_OK) {
        status = t.error.status;
        if (err)
            *err = t.error;
    }
    return status;
}

static sl_status fill_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    filler *f = arg;
    const sl_ckpt_tensor *found;
    char why[512];

    if (spec->form == SL_FORM_FILE_ONLY)
        return SL_OK;
    spec->slot->data = (void *)(f->base + take_place(&f->used_bytes, spec->slot));
    if (!f->ckpt)
        return SL_OK;
    SL_ASSERT((spec->form == SL_FORM_CHANNELS_LAST) == (spec->slot->rank == 5));
    found = sl_weight_match(f->ckpt, spec, why, sizeof why);
    SL_ASSERT(found); /* the check went through the same list */
    return transfer_tensor(f->exec, f->ckpt, found, spec->slot, err);
}

static sl_status check_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    char why[512];

    if (spec->form == SL_FORM_FILE_ONLY || sl_weight_match(arg, spec, why, sizeof why))
        return SL_OK;
    return sl_fail(err, SL_ERR_DATA, "%s", why);
}

/* Everything that can be said before memory is taken. */
static sl_status check_file(sl_component *component, const sl_ckpt *ckpt, sl_error *err)
{
    sl_status status;

    if (sl_ckpt_layout(ckpt) == SL_LAYOUT_TURBO_QUANT)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                       "the file has int8 linears, which this version cannot execute; use the "
                       "unquantised export");
    /* const is dropped for the visitor's argument only; it is put back there */
    status = sl_component_visit(NULL, &component->spec, SL_LAYOUT_OFFICIAL, check_visitor,
                                (void *)ckpt, err);
    if (status == SL_OK)
        status =
            sl_ckpt_unexpected(ckpt, &component->spec, NULL, NULL, &component->unexpected, err);
    return status;
}

static sl_status new_component(sl_component **out, const sl_component_spec *spec, sl_error *err)
{
    sl_component *component = calloc(1, sizeof *component);

    if (!component)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the weight table of \"%s\"",
                       sl_component_name(spec->kind));
    component->spec = *spec;
    *out = component;
    return SL_OK;
}

sl_status sl_component_load(sl_component **out, const sl_component_spec *spec, sl_device *device,
                            sl_exec *exec, const sl_ckpt *ckpt, sl_error *err)
{
    sl_component *component = NULL;
    filler f = { .ckpt = ckpt, .exec = exec };
    size_t need;
    sl_status status = new_component(&component, spec, err);

    if (status != SL_OK)
        goto done;
    status = check_file(component, ckpt, err);
    if (status != SL_OK)
        goto done;
    need = sl_component_plan_bytes(spec);
    status = sl_region_create(&component->region, device, sl_component_name(spec->kind), need, err);
    if (status == SL_OK)
        status = sl_region_map(component->region, need, err);
    if (status != SL_OK)
        goto done;
    f.base = (uintptr_t)sl_region_data(component->region);
    status =
        sl_component_visit(&component->weights, spec, SL_LAYOUT_OFFICIAL, fill_visitor, &f, err);
    if (status != SL_OK)
        goto done;
    SL_ASSERT(sl_granules(f.used_bytes) == need);

    *out = component;
    component = NULL;
done:
    if (status != SL_OK)
        sl_error_prefix(err, "could not load %s from \"%s\"", sl_component_name(spec->kind),
                        sl_ckpt_path(ckpt));
    sl_component_destroy(component);
    return status;
}

sl_status sl_component_create_counting(sl_component **out, const sl_component_spec *spec,
                                       sl_error *err)
{
    sl_component *component = NULL;
    filler f = { .base = COUNTING_BASE + (uintptr_t)spec->kind * COUNTING_STEP };
    sl_status status = new_component(&component, spec, err);

    if (status == SL_OK)
        status = sl_component_visit(&component->weights, spec, SL_LAYOUT_OFFICIAL, fill_visitor, &f,
                                    err);
    if (status == SL_OK) {
        *out = component;
        component = NULL;
    }
    sl_component_destroy(component);
    return status;
}

void sl_component_destroy(sl_component *component)
{
    if (!component)
        return;
    sl_region_destroy(component->region);
    free(component);
}

const sl_component_spec *sl_component_get_spec(const sl_component *component)
{
    return &component->spec;
}

size_t sl_component_mapped_bytes(const sl_component *component)
{
    return component->region ? sl_region_mapped_bytes(component->region) : 0;
}

int64_t sl_component_unexpected(const sl_component *component)
{
    return component->unexpected;
}

const sl_dit_weights *sl_component_dit(const sl_component *component)
{
    SL_ASSERT(component->spec.kind == SL_COMPONENT_DIT ||
              component->spec.kind == SL_COMPONENT_DIT_HIGH ||
              component->spec.kind == SL_COMPONENT_DIT_LOW);
    return &component->weights.dit;
}

const sl_t5_weights *sl_component_t5(const sl_component *component)
{
    SL_ASSERT(component->spec.kind == SL_COMPONENT_TEXT_ENCODER);
    return &component->weights.t5;
}

const sl_vae_weights *sl_component_vae(const sl_component *component)
{
    SL_ASSERT(component->spec.kind == SL_COMPONENT_VAE);
    return &component->weights.vae;
}
