#include "engine/model/component_layout.h"

#include "engine/model/match.h"

#define TENSOR_ALIGN ((size_t)256)

/* The whole is far below overflow for any config that passed its check. */
size_t sl_component_take_place(size_t *used_bytes, const sl_tensor *t)
{
    const size_t at = *used_bytes;

    *used_bytes += (sl_tensor_bytes(t) + TENSOR_ALIGN - 1) & ~(TENSOR_ALIGN - 1);
    return at;
}

static sl_status measure_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    sl_component_layout *l = arg;
    const int64_t i = spec->block;
    size_t at;

    (void)err;
    if (spec->form == SL_FORM_FILE_ONLY)
        return SL_OK;
    at = sl_component_take_place(&l->image_bytes, spec->slot);
    if (i < 0) {
        if (!spec->by_row)
            (void)sl_component_take_place(&l->fixed_bytes, spec->slot);
        return SL_OK;
    }
    if (i == l->block_count)
        l->block_first[l->block_count++] = at;
    SL_ASSERT(i == l->block_count - 1 && at == l->block_first[i] + l->block_bytes[i]);
    l->block_bytes[i] = l->image_bytes - l->block_first[i];
    l->block_tensors++;
    if (l->block_bytes[i] > l->slot_bytes)
        l->slot_bytes = l->block_bytes[i];
    return SL_OK;
}

sl_status sl_component_layout_make(sl_component_layout *out, const sl_component_spec *spec,
                                   sl_error *err)
{
    sl_component_layout layout = { .image_bytes = 0 };
    const sl_status status =
        sl_component_visit(NULL, spec, SL_LAYOUT_OFFICIAL, measure_visitor, &layout, err);

    if (status == SL_OK)
        *out = layout;
    return status;
}
