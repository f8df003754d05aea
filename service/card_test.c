/* card_test.c - over kernels/fake_nvml.c, or without any management library. */
#include "service/card.h"

#include "base/size.h"
#include "base/test.h"

#include <string.h>

SL_TEST(a_card_is_resolved_without_a_context)
{
    sl_device_spec cpu = { .kind = SL_DEVICE_CPU, .limit_bytes = SL_GIB };
    sl_device_spec plain = { .kind = SL_DEVICE_CUDA, .index = 1 };
    sl_device_spec part = { .kind = SL_DEVICE_CUDA, .index = 1, .limit_bytes = 8 * SL_GIB };
    sl_device_spec beyond = { .kind = SL_DEVICE_CUDA, .index = 1, .limit_bytes = 80 * SL_GIB };
    char uuid[SL_NVML_UUID_BYTES];
    sl_nvml *nvml = NULL;

    SL_CHECK_OK(sl_card_resolve(&cpu, uuid, err));
    SL_CHECK(cpu.limit_bytes == SL_GIB && uuid[0] == '\0');
    if (sl_nvml_open(&nvml, err) != SL_OK) {
        SL_CHECK_STATUS(sl_card_resolve(&plain, uuid, err), SL_ERR_UNAVAILABLE);
        SL_CHECK(strstr(err->message, "cuda:1:80GiB") == NULL &&
                 strstr(err->message, "give its memory") != NULL);
        sl_error_clear(err);
        SL_CHECK_OK(sl_card_resolve(&part, uuid, err));
        SL_CHECK(part.limit_bytes == 8 * SL_GIB && uuid[0] == '\0' && err->status == SL_OK);
        return;
    }
    const bool fake = sl_nvml_uuid(nvml, 1, uuid, NULL) == SL_OK && strcmp(uuid, "GPU-second") == 0;
    sl_nvml_close(nvml);
    if (!fake) /* a real one: nothing is known of its cards */
        return;
    SL_CHECK_OK(sl_card_resolve(&plain, uuid, err));
    SL_CHECK(plain.limit_bytes == 24 * SL_GIB && strcmp(uuid, "GPU-second") == 0);
    SL_CHECK_OK(sl_card_resolve(&part, uuid, err));
    SL_CHECK(part.limit_bytes == 8 * SL_GIB);
    SL_CHECK_OK(sl_card_resolve(&beyond, uuid, err));
    SL_CHECK(beyond.limit_bytes == 24 * SL_GIB);
    part.index = 7;
    SL_CHECK_STATUS(sl_card_resolve(&part, uuid, err), SL_ERR_NOT_FOUND);
    SL_CHECK(strstr(err->message, "cuda:7") != NULL);
}

SL_TEST_MAIN(SL_RUN(a_card_is_resolved_without_a_context))
