#include "service/card.h"

sl_status sl_card_resolve(sl_device_spec *spec, char uuid[SL_NVML_UUID_BYTES], sl_error *err)
{
    sl_nvml *nvml = NULL;
    size_t left, total;

    uuid[0] = '\0';
    if (spec->kind != SL_DEVICE_CUDA)
        return SL_OK;
    sl_status status = sl_nvml_open(&nvml, err);
    if (status == SL_OK)
        status = sl_nvml_uuid(nvml, spec->index, uuid, err);
    if (status == SL_OK)
        status = sl_nvml_memory(nvml, spec->index, &left, &total, err);
    sl_nvml_close(nvml);
    /* The worker finds out what the library could not tell; a card that is known
     * not to be there is another matter. */
    if (status != SL_OK && (status == SL_ERR_NOT_FOUND || spec->limit_bytes == 0)) {
        sl_error_prefix(err, "device \"cuda:%d\"%s", spec->index,
                        status == SL_ERR_NOT_FOUND ? "" : ": give its memory as in cuda:0:80GiB");
        return status;
    }
    if (status == SL_OK && (spec->limit_bytes == 0 || spec->limit_bytes > total))
        spec->limit_bytes = total & ~(SL_GRANULE_BYTES - 1);
    sl_error_clear(err);
    return SL_OK;
}
