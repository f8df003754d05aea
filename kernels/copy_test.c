#include "kernels/copy.h"

#include "base/size.h"
#include "base/test.h"

#include <string.h>

SL_TEST(copies_both_ways)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = 64 * SL_MIB };
    const size_t bytes = 40 * SL_MIB + 5;
    unsigned char *there = malloc(bytes), *back = malloc(bytes);
    sl_device *device;
    sl_region *region;
    atomic_uint cancel;
    sl_copy *copy = NULL;

    SL_CHECK(there && back);
    for (size_t i = 0; i < bytes; i++)
        there[i] = (unsigned char)(i * 7 + i / 251);
    atomic_init(&cancel, 0);
    SL_CHECK_OK(sl_device_create(&device, &spec, err));
    SL_CHECK_OK(sl_region_create(&region, device, "r", bytes, err));
    SL_CHECK_OK(sl_region_map(region, bytes, err));
    SL_CHECK_OK(sl_copy_open(&copy, device, &cancel, err));
    SL_CHECK_OK(sl_host_offer(device, (void *)0x1000, 1, err));
    SL_CHECK_OK(sl_host_pin(device, (void *)0x1000, 1, &cancel, err));
    SL_CHECK(sl_host_pinned_bytes(device) == 0);
    SL_CHECK_OK(sl_copy_push(copy, sl_region_data(region), there, bytes, err));
    SL_CHECK_OK(sl_copy_wait(copy, err));
    SL_CHECK_OK(sl_copy_pull(copy, back, sl_region_data(region), bytes, err));
    SL_CHECK_OK(sl_copy_wait_to(copy, sl_copy_mark(copy), err));
    SL_CHECK(memcmp(there, back, bytes) == 0);
    SL_CHECK_OK(sl_copy_push(copy, sl_region_data(region), NULL, 0, err));
    atomic_store(&cancel, 1);
    SL_CHECK_STATUS(sl_copy_push(copy, sl_region_data(region), there, 1, err), SL_ERR_CANCELLED);
    sl_host_withdraw(device, (void *)0x1000);
    sl_copy_close(copy);
    sl_copy_close(NULL);
    sl_region_destroy(region);
    sl_device_destroy(device);
    free(there);
    free(back);
}

SL_TEST_MAIN(SL_RUN(copies_both_ways))
