#include "engine/model/component.h"

#include "engine/model/component_fill.h"
#include "engine/model/component_layout.h"
#include "engine/model/match.h"
#include "engine/model/stream.h"

#include <stdlib.h>
#include <string.h>

/* Where counting components pretend to live: apart from each other and from
 * the scratch memory of a plan. */
#define COUNTING_BASE ((uintptr_t)1 << 45)
#define COUNTING_STEP ((uintptr_t)1 << 41)

struct sl_component {
    sl_component_spec spec;
    sl_region *region;        /* NULL: counting */
    sl_weight_stream *stream; /* NULL: resident, or counting */
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
    sl_component_spec spec = { .kind = kind, .precision = sl_component_precision(kind, precision) };

    SL_ASSERT(sl_arch_has_component(arch, kind));
    if (kind == SL_COMPONENT_TEXT_ENCODER)
        spec.config.t5 = arch->t5;
    else if (kind == SL_COMPONENT_VAE)
        spec.config.vae = arch->vae;
    else
        spec.config.dit = arch->dit;
    return spec;
}

static const char *const mode_names[SL_MODE_COUNT] = { "resident", "streamed" };

const char *sl_component_mode_name(sl_component_mode mode)
{
    SL_ASSERT((int)mode >= 0 && mode < SL_MODE_COUNT);
    return mode_names[mode];
}

bool sl_component_mode_parse(const char *text, sl_component_mode *out)
{
    for (int i = 0; i < SL_MODE_COUNT; i++) {
        if (strcmp(text, mode_names[i]) == 0) {
            *out = (sl_component_mode)i;
            return true;
        }
    }
    return false;
}

bool sl_component_can_stream(sl_component_kind kind)
{
    return kind != SL_COMPONENT_VAE;
}

static sl_component_layout layout_of(const sl_component_spec *spec)
{
    sl_component_layout layout;
    const sl_status status = sl_component_layout_make(&layout, spec, NULL);

    SL_ASSERT(status == SL_OK); /* specs are checked where they come in */
    return layout;
}

static size_t region_bytes(const sl_component_layout *layout, sl_component_mode mode)
{
    return sl_granules(mode == SL_MODE_STREAMED
                           ? layout->fixed_bytes + SL_STREAM_SLOTS * layout->slot_bytes
                           : layout->image_bytes);
}

size_t sl_component_plan_bytes(const sl_component_spec *spec)
{
    const sl_component_layout layout = layout_of(spec);

    return region_bytes(&layout, spec->mode);
}

size_t sl_component_image_bytes(const sl_component_spec *spec)
{
    return layout_of(spec).image_bytes;
}

size_t sl_component_pass_bytes(const sl_component_spec *spec)
{
    const sl_component_layout layout = layout_of(spec);
    size_t pass_bytes = 0;

    if (spec->mode == SL_MODE_STREAMED)
        for (int64_t i = 0; i < layout.block_count; i++)
            pass_bytes += layout.block_bytes[i];
    return pass_bytes;
}

/* ---- filling ---- */

/* What gives each tensor its place, and from where its bytes come. */
typedef struct {
    uintptr_t base;             /* of the region, of the image, or made up */
    size_t image_used_bytes;    /* of the layout as an image */
    size_t fixed_used_bytes;    /* streamed: of the region, in front of the slots */
    sl_weight_stream *stream;   /* NULL: everything lies as in an image */
    const unsigned char *image; /* source of a streamed component's tensors, or NULL */
    const sl_ckpt *ckpt;        /* source of all tensors, or NULL */
    bool to_image;              /* base is host memory that others will read whole */
    sl_fill fill;
    sl_weight_visitor *write; /* instead of a source, or NULL */
    void *write_arg;
} filler;

/* Sets the tensor's data; returns its offset in the image. */
static size_t place(filler *f, const sl_weight_spec *spec)
{
    const size_t at = sl_component_take_place(&f->image_used_bytes, spec->slot);

    if (!f->stream)
        spec->slot->data = (void *)(f->base + at);
    else if (spec->block >= 0)
        sl_weight_stream_add(f->stream, spec->block, spec->slot, at);
    else if (spec->by_row)
        spec->slot->data = (void *)((uintptr_t)f->image + at);
    else
        spec->slot->data =
            (void *)(f->base + sl_component_take_place(&f->fixed_used_bytes, spec->slot));
    return at;
}

static sl_status fill_from_file(filler *f, const sl_weight_spec *spec, size_t at, sl_error *err)
{
    const size_t end = at + sl_tensor_bytes(spec->slot);
    const sl_ckpt_tensor *found;
    char why[512];

    SL_ASSERT((spec->form == SL_FORM_CHANNELS_LAST) == (spec->slot->rank == 5));
    if (f->to_image)
        memset((void *)(f->base + end), 0, f->image_used_bytes - end);
    if (spec->form == SL_FORM_DEVICE_ONLY && !sl_ckpt_find(f->ckpt, spec->name))
        return sl_fill_zero(&f->fill, spec->slot->data, sl_tensor_bytes(spec->slot), err);
    found = sl_weight_match(f->ckpt, spec, why, sizeof why);
    SL_ASSERT(found); /* the check went through the same list */
    if (spec->form == SL_FORM_CODES)
        return sl_fill_int8(&f->fill, f->ckpt, found, spec->slot, spec->scale, err);
    return sl_fill_tensor(&f->fill, f->ckpt, found, spec->slot, err);
}

static sl_status fill_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    filler *f = arg;
    size_t at;

    if (spec->form == SL_FORM_FILE_ONLY)
        return SL_OK;
    at = place(f, spec);
    if (f->write)
        return f->write(f->write_arg, spec, err);
    if (f->ckpt)
        return fill_from_file(f, spec, at, err);
    if (f->stream && spec->block < 0 && !spec->by_row)
        return sl_fill_copy(&f->fill, spec->slot->data, f->image + at, sl_tensor_bytes(spec->slot),
                            err);
    return SL_OK;
}

static sl_status check_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    const sl_ckpt *ckpt = arg;
    const bool absent = spec->form == SL_FORM_DEVICE_ONLY && !sl_ckpt_find(ckpt, spec->name);
    char why[512];

    if (spec->form == SL_FORM_FILE_ONLY || absent || sl_weight_match(ckpt, spec, why, sizeof why))
        return SL_OK;
    return sl_fail(err, SL_ERR_DATA, "%s", why);
}

/* The list of tensors to ask a file for: the official one takes everything but
 * int8 linears. */
static sl_layout asked_layout(const sl_ckpt *ckpt)
{
    return sl_ckpt_layout(ckpt) == SL_LAYOUT_TURBO_QUANT ? SL_LAYOUT_TURBO_QUANT
                                                         : SL_LAYOUT_OFFICIAL;
}

/* Everything that can be said before memory is taken. */
static sl_status check_file(const sl_component_spec *spec, const sl_ckpt *ckpt, int64_t *unexpected,
                            sl_error *err)
{
    const sl_layout layout = asked_layout(ckpt);
    sl_status status;

    if (layout == SL_LAYOUT_TURBO_QUANT && spec->precision != SL_PRECISION_INT8)
        return sl_fail(err, SL_ERR_INVALID,
                       "the file has int8 linears: it runs in precision int8 alone, %s was asked "
                       "for",
                       sl_precision_name(spec->precision));
    /* const is dropped for the visitor's argument only; it is put back there */
    status = sl_component_visit(NULL, spec, layout, check_visitor, (void *)ckpt, err);
    if (status == SL_OK)
        status = sl_ckpt_unexpected(ckpt, spec, NULL, NULL, unexpected, err);
    return status;
}

/* Networks gather the rows of a streamed table themselves. */
static void note_host_table(sl_component *component)
{
    if (component->spec.mode == SL_MODE_STREAMED &&
        component->spec.kind == SL_COMPONENT_TEXT_ENCODER)
        component->weights.t5.token_on_host = true;
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

static sl_status map_region(sl_component *component, sl_device *device, size_t size_bytes,
                            sl_error *err)
{
    const char *name = sl_component_name(component->spec.kind);
    sl_status status = sl_region_create(&component->region, device, name, size_bytes, err);

    if (status == SL_OK)
        status = sl_region_map(component->region, size_bytes, err);
    return status;
}

sl_status sl_component_load(sl_component **out, const sl_component_spec *spec, sl_device *device,
                            sl_exec *exec, const sl_ckpt *ckpt, sl_error *err)
{
    sl_component *component = NULL;
    filler f = { .ckpt = ckpt };
    size_t need;
    sl_status status = new_component(&component, spec, err);

    if (status != SL_OK)
        goto done;
    if (spec->mode != SL_MODE_RESIDENT) {
        status = sl_fail(err, SL_ERR_INVALID, "a streamed component is loaded from its image");
        goto done;
    }
    status = check_file(spec, ckpt, &component->unexpected, err);
    if (status != SL_OK)
        goto done;
    need = sl_component_plan_bytes(spec);
    status = map_region(component, device, need, err);
    if (status != SL_OK)
        goto done;
    f.base = (uintptr_t)sl_region_data(component->region);
    status = sl_fill_init(&f.fill, device, exec, err);
    if (status == SL_OK)
        status = sl_component_visit(&component->weights, spec, asked_layout(ckpt), fill_visitor, &f,
                                    err);
    if (status == SL_OK)
        status = sl_fill_wait(&f.fill, err);
    if (status != SL_OK)
        goto done;
    SL_ASSERT(sl_granules(f.image_used_bytes) == need);

    *out = component;
    component = NULL;
done:
    if (status != SL_OK)
        sl_error_prefix(err, "could not load %s from \"%s\"", sl_component_name(spec->kind),
                        sl_ckpt_path(ckpt));
    sl_fill_fini(&f.fill);
    sl_component_destroy(component);
    return status;
}

static sl_status check_image(const sl_component_layout *layout, size_t image_bytes, sl_error *err)
{
    if (image_bytes == layout->image_bytes)
        return SL_OK;
    return sl_fail(err, SL_ERR_INVALID, "the image has %zu bytes, expected %zu", image_bytes,
                   layout->image_bytes);
}

sl_status sl_component_fill_image(void *image, size_t image_bytes, const sl_component_spec *spec,
                                  sl_exec *exec, const sl_ckpt *ckpt, sl_error *err)
{
    filler f = { .base = (uintptr_t)image, .ckpt = ckpt, .to_image = true };
    sl_component_layout layout;
    int64_t unexpected;
    sl_status status = sl_component_layout_make(&layout, spec, err);

    if (status == SL_OK)
        status = check_image(&layout, image_bytes, err);
    if (status == SL_OK)
        status = check_file(spec, ckpt, &unexpected, err);
    if (status == SL_OK)
        status = sl_fill_init(&f.fill, NULL, exec, err);
    if (status == SL_OK)
        status = sl_component_visit(NULL, spec, asked_layout(ckpt), fill_visitor, &f, err);
    sl_fill_fini(&f.fill);
    if (status != SL_OK)
        sl_error_prefix(err, "could not read %s from \"%s\"", sl_component_name(spec->kind),
                        sl_ckpt_path(ckpt));
    return status;
}

/* Gives the networks the stream, which begins to copy. */
static sl_status start_stream(sl_component *component, sl_error *err)
{
    if (component->spec.kind == SL_COMPONENT_TEXT_ENCODER)
        component->weights.t5.stream = component->stream;
    else
        component->weights.dit.stream = component->stream;
    return sl_weight_stream_start(component->stream, err);
}

sl_status sl_component_load_image(sl_component **out, const sl_component_spec *spec,
                                  sl_device *device, sl_exec *exec, const void *image,
                                  size_t image_bytes, sl_error *err)
{
    const bool streamed = spec->mode == SL_MODE_STREAMED;
    sl_component *component = NULL;
    filler f = { .image = image };
    sl_component_layout layout;
    sl_status status = sl_component_layout_make(&layout, spec, err);

    if (status == SL_OK)
        status = check_image(&layout, image_bytes, err);
    if (status == SL_OK)
        status = new_component(&component, spec, err);
    if (status == SL_OK)
        status = map_region(component, device, region_bytes(&layout, spec->mode), err);
    if (status != SL_OK)
        goto done;
    f.base = (uintptr_t)sl_region_data(component->region);
    status = sl_fill_init(&f.fill, device, exec, err);
    if (status != SL_OK)
        goto done;
    if (streamed)
        status = sl_weight_stream_create(&component->stream, device, &layout, image,
                                         (void *)(f.base + layout.fixed_bytes), err);
    else
        status = sl_fill_copy(&f.fill, (void *)f.base, image, image_bytes, err);
    if (status != SL_OK)
        goto done;
    f.stream = component->stream;
    status =
        sl_component_visit(&component->weights, spec, SL_LAYOUT_OFFICIAL, fill_visitor, &f, err);
    if (status == SL_OK)
        status = sl_fill_wait(&f.fill, err);
    if (status == SL_OK && streamed)
        status = start_stream(component, err);
    if (status != SL_OK)
        goto done;
    note_host_table(component);

    *out = component;
    component = NULL;
done:
    if (status != SL_OK)
        sl_error_prefix(err, "could not load %s from its image", sl_component_name(spec->kind));
    sl_fill_fini(&f.fill);
    sl_component_destroy(component);
    return status;
}

sl_status sl_component_create_filled(sl_component **out, const sl_component_spec *spec,
                                     sl_device *device, sl_exec *exec, sl_weight_visitor *fill,
                                     void *arg, sl_error *err)
{
    filler f = { .write = fill, .write_arg = arg };
    sl_component *component = NULL;
    sl_component_layout layout;
    sl_status status = sl_component_layout_make(&layout, spec, err);

    SL_ASSERT(spec->mode == SL_MODE_RESIDENT);
    if (status == SL_OK)
        status = new_component(&component, spec, err);
    if (status == SL_OK)
        status = map_region(component, device, region_bytes(&layout, spec->mode), err);
    if (status == SL_OK) {
        f.base = (uintptr_t)sl_region_data(component->region);
        status = sl_component_visit(&component->weights, spec, SL_LAYOUT_OFFICIAL, fill_visitor, &f,
                                    err);
    }
    if (status == SL_OK)
        status = sl_exec_wait(exec, err);
    if (status == SL_OK) {
        *out = component;
        component = NULL;
    }
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
        note_host_table(component);
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
    sl_weight_stream_destroy(component->stream); /* before the memory that it writes */
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
