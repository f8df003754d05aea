/* device_cuda_test.c - the cuda device and copies over kernels/fake_cuda.c, which the test
 * is run with in the driver's place.  It shows that regions are made of the
 * right pieces and that no byte is held beyond them; what a real driver makes of
 * the calls is shown on a card, by tests/gpu. */
#include "kernels/copy.h"
#include "kernels/device.h"

#include "base/size.h"
#include "base/test.h"

#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>

typedef struct {
    size_t used, peak, reserved, contexts, registered, creates, accesses, synchronizes, copies;
} look;

typedef struct {
    void (*take)(size_t bytes);
    void (*limit_pins)(size_t bytes);
    void (*look)(look *out);
    sl_device *device;
} fixture;

static look look_now(const fixture *f)
{
    look l;

    f->look(&l);
    return l;
}

static sl_device_stats stats_of(const fixture *f)
{
    sl_device_stats stats;

    sl_device_get_stats(f->device, &stats);
    return stats;
}

static void open_fixture(fixture *f, const char *spec_text, sl_error *err)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    sl_device_spec spec;

    if (!library || !dlsym(library, "sl_fake_cuda_look"))
        fail_msg("the fake driver is not in the library path");
    *(void **)&f->take = dlsym(library, "sl_fake_cuda_take");
    *(void **)&f->limit_pins = dlsym(library, "sl_fake_cuda_limit_pins");
    *(void **)&f->look = dlsym(library, "sl_fake_cuda_look");
    f->take(0);
    f->limit_pins(SIZE_MAX);
    SL_CHECK_OK(sl_device_spec_parse(spec_text, &spec, err));
    SL_CHECK_OK(sl_device_create(&f->device, &spec, err));
    look_now(f);
}

static void close_fixture(fixture *f)
{
    sl_device_destroy(f->device);
    const look l = look_now(f);
    SL_CHECK(l.used == 0 && l.reserved == 0 && l.contexts == 0 && l.registered == 0);
}

static sl_region *region_of(const fixture *f, size_t va_bytes, sl_error *err)
{
    sl_region *region = NULL;

    SL_CHECK_OK(sl_region_create(&region, f->device, "r", va_bytes, err));
    return region;
}

SL_TEST(the_whole_card_or_a_part)
{
    fixture f;
    size_t free_bytes, total_bytes;

    open_fixture(&f, "cuda:0", err);
    SL_CHECK(stats_of(&f).limit_bytes == SL_GIB);
    SL_CHECK(strcmp(sl_device_uuid(f.device), "GPU-00112233-4455-6677-8899-aabbccddeeff") == 0);
    f.take(100 * SL_MIB);
    SL_CHECK_OK(sl_device_get_memory(f.device, &free_bytes, &total_bytes, err));
    SL_CHECK(free_bytes == SL_GIB - 100 * SL_MIB && total_bytes == SL_GIB);
    close_fixture(&f);
    open_fixture(&f, "cuda:0:24GiB", err); /* more than there is */
    SL_CHECK(stats_of(&f).limit_bytes == SL_GIB);
    close_fixture(&f);
    open_fixture(&f, "cuda:0:300MiB", err);
    SL_CHECK_OK(sl_device_set_reserve(f.device, 99 * SL_MIB, err));
    SL_CHECK(stats_of(&f).limit_bytes == 200 * SL_MIB);
    close_fixture(&f);
}

SL_TEST(a_card_that_the_driver_does_not_show)
{
    const sl_device_spec spec = { .kind = SL_DEVICE_CUDA, .index = 1 };
    sl_device *device = NULL;

    SL_CHECK_STATUS(sl_device_create(&device, &spec, err), SL_ERR_NOT_FOUND);
    SL_CHECK(device == NULL && strstr(err->message, "1 card") != NULL);
}

SL_TEST(pieces_are_large_where_they_can_be)
{
    fixture f;
    look l;

    open_fixture(&f, "cuda:0", err);
    sl_region *region = region_of(&f, SL_GIB, err);
    SL_CHECK(look_now(&f).used == 0);
    SL_CHECK_OK(sl_region_map(region, 2 * 64 * SL_MIB + 38 * SL_MIB - 1, err));
    l = look_now(&f);
    SL_CHECK(l.used == 166 * SL_MIB && l.peak == l.used);
    SL_CHECK(l.creates == 2 + 3); /* 32, 4, 2 */
    SL_CHECK(l.accesses == 1 && l.synchronizes == 0);
    memset(sl_region_data(region), 7, 166 * SL_MIB);
    SL_CHECK(sl_device_resident_bytes(f.device) == 166 * SL_MIB);
    SL_CHECK_OK(sl_region_map(region, 168 * SL_MIB, err));
    l = look_now(&f);
    SL_CHECK(l.used == 168 * SL_MIB && l.creates == 1 && l.accesses == 1);
    SL_CHECK_OK(sl_region_map(region, 0, err));
    l = look_now(&f);
    SL_CHECK(l.used == 0 && l.synchronizes == 1);
    sl_region_destroy(region);
    close_fixture(&f);
}

/* To each size from a full region and from what the last cut left: exact bytes,
 * contents kept, never more than one large piece beyond. */
SL_TEST(shrinking_is_exact_and_keeps_contents)
{
    static const size_t sizes_mib[] = {
        254, 192, 190, 130, 128, 126, 66, 64, 62, 34, 32, 30, 4, 2
    };
    fixture f;

    open_fixture(&f, "cuda:0", err);
    for (int fresh = 0; fresh < 2; fresh++) {
        sl_region *region = region_of(&f, 256 * SL_MIB, err);
        unsigned char *data = sl_region_data(region);
        for (size_t i = 0; i < SL_COUNT(sizes_mib); i++) {
            const size_t bytes = sizes_mib[i] * SL_MIB;
            if (fresh || i == 0)
                SL_CHECK_OK(sl_region_map(region, 256 * SL_MIB, err));
            const size_t before = sl_region_mapped_bytes(region);
            for (size_t at = 0; at < before; at += SL_MIB)
                data[at] = (unsigned char)(at / SL_MIB + i);
            look_now(&f);
            SL_CHECK_OK(sl_region_map(region, bytes, err));
            const look l = look_now(&f);
            SL_CHECK(l.used == bytes && sl_region_mapped_bytes(region) == bytes);
            SL_CHECK(l.peak < before + SL_DEVICE_CUT_BYTES);
            SL_CHECK(l.reserved == 256 * SL_MIB);
            for (size_t at = 0; at < bytes; at += SL_MIB)
                SL_CHECK(data[at] == (unsigned char)(at / SL_MIB + i));
        }
        sl_region_destroy(region);
    }
    close_fixture(&f);
}

SL_TEST(what_others_took_is_said_and_changes_nothing)
{
    fixture f;

    open_fixture(&f, "cuda:0", err);
    sl_region *region = region_of(&f, SL_GIB, err);
    SL_CHECK_OK(sl_region_map(region, 10 * SL_MIB, err));
    ((char *)sl_region_data(region))[0] = 'x';
    f.take(SL_GIB - 200 * SL_MIB);
    SL_CHECK_STATUS(sl_region_map(region, 300 * SL_MIB, err), SL_ERR_NO_MEMORY);
    SL_CHECK(strstr(err->message, "another process") != NULL);
    SL_CHECK(look_now(&f).used == 10 * SL_MIB && stats_of(&f).mapped_bytes == 10 * SL_MIB);
    SL_CHECK(((char *)sl_region_data(region))[0] == 'x');
    /* A cut needs room beside the old piece; without it nothing is lost. */
    f.take(0);
    SL_CHECK_OK(sl_region_map(region, 74 * SL_MIB, err));
    SL_CHECK_OK(sl_region_map(region, 0, err));
    SL_CHECK_OK(sl_region_map(region, 64 * SL_MIB, err));
    ((char *)sl_region_data(region))[40 * SL_MIB] = 'y';
    f.take(SL_GIB - 64 * SL_MIB);
    SL_CHECK_STATUS(sl_region_map(region, 50 * SL_MIB, err), SL_ERR_NO_MEMORY);
    SL_CHECK(((char *)sl_region_data(region))[40 * SL_MIB] == 'y');
    SL_CHECK(stats_of(&f).mapped_bytes == 64 * SL_MIB && look_now(&f).used == 64 * SL_MIB);
    f.take(0);
    SL_CHECK_OK(sl_region_map(region, 50 * SL_MIB, err));
    SL_CHECK(((char *)sl_region_data(region))[40 * SL_MIB] == 'y');
    sl_region_destroy(region);
    close_fixture(&f);
}

/* ---- copies ---- */

#define HOST_BYTES (300 * SL_MIB + 4096) /* two parts, the second one short */

static unsigned char *host_memory(void)
{
    unsigned char *p =
        mmap(NULL, HOST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    SL_CHECK(p != MAP_FAILED);
    return p;
}

/* A mark in each MiB. */
static void mark_each(unsigned char *data, size_t bytes, unsigned salt)
{
    for (size_t at = 0; at < bytes; at += SL_MIB)
        data[at] = (unsigned char)(at / SL_MIB * 3 + salt);
}

static bool has_marks(const unsigned char *data, size_t bytes, unsigned salt)
{
    for (size_t at = 0; at < bytes; at += SL_MIB)
        if (data[at] != (unsigned char)(at / SL_MIB * 3 + salt))
            return false;
    return true;
}

typedef struct {
    fixture f;
    sl_region *region;
    sl_copy *copy;
    unsigned char *host, *d_data;
    atomic_uint cancel;
} copying;

static void open_copying(copying *c, sl_error *err)
{
    open_fixture(&c->f, "cuda:0", err);
    atomic_init(&c->cancel, 0);
    c->host = host_memory();
    c->region = region_of(&c->f, HOST_BYTES, err);
    SL_CHECK_OK(sl_region_map(c->region, HOST_BYTES, err));
    c->d_data = sl_region_data(c->region);
    SL_CHECK_OK(sl_copy_open(&c->copy, c->f.device, &c->cancel, err));
}

static void close_copying(copying *c)
{
    sl_copy_close(c->copy);
    sl_region_destroy(c->region);
    close_fixture(&c->f);
    munmap(c->host, HOST_BYTES);
}

SL_TEST(what_was_offered_is_pinned_when_it_is_copied)
{
    copying c;

    open_copying(&c, err);
    SL_CHECK_OK(sl_host_offer(c.f.device, c.host, HOST_BYTES, err));
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == 0);
    mark_each(c.host, HOST_BYTES, 1);
    /* Across the edge of two parts: both are pinned, no copy spans them. */
    SL_CHECK_OK(
        sl_copy_push(c.copy, c.d_data + 250 * SL_MIB, c.host + 250 * SL_MIB, 10 * SL_MIB, err));
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == HOST_BYTES);
    SL_CHECK_OK(sl_copy_push(c.copy, c.d_data, c.host, HOST_BYTES, err));
    SL_CHECK_OK(sl_copy_wait(c.copy, err));
    SL_CHECK(has_marks(c.d_data, HOST_BYTES, 1));
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == HOST_BYTES);
    SL_CHECK(look_now(&c.f).registered == HOST_BYTES);
    mark_each(c.d_data, HOST_BYTES, 2);
    SL_CHECK_OK(sl_copy_pull(c.copy, c.host, c.d_data, HOST_BYTES, err));
    SL_CHECK_OK(sl_copy_wait(c.copy, err));
    SL_CHECK(has_marks(c.host, HOST_BYTES, 2));
    sl_host_withdraw(c.f.device, c.host);
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == 0 && look_now(&c.f).registered == 0);
    /* Offered again, and left to the device's end. */
    SL_CHECK_OK(sl_host_offer(c.f.device, c.host, SL_MIB, err));
    SL_CHECK_OK(sl_copy_push(c.copy, c.d_data, c.host, SL_MIB, err));
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == SL_MIB);
    close_copying(&c);
}

SL_TEST(an_offer_can_be_pinned_ahead)
{
    copying c;

    open_copying(&c, err);
    SL_CHECK_OK(sl_host_pin(c.f.device, c.host, HOST_BYTES, NULL, err)); /* no offer */
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == 0);
    SL_CHECK_OK(sl_host_offer(c.f.device, c.host, HOST_BYTES, err));
    atomic_store(&c.cancel, 1);
    SL_CHECK_STATUS(sl_host_pin(c.f.device, c.host, HOST_BYTES, &c.cancel, err), SL_ERR_CANCELLED);
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == 0);
    atomic_store(&c.cancel, 0);
    c.f.limit_pins(256 * SL_MIB);
    SL_CHECK_OK(
        sl_host_pin(c.f.device, c.host, HOST_BYTES, &c.cancel, err)); /* as far as it goes */
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == 256 * SL_MIB);
    sl_host_withdraw(c.f.device, c.host);
    c.f.limit_pins(SIZE_MAX);
    SL_CHECK_OK(sl_host_offer(c.f.device, c.host, HOST_BYTES, err));
    SL_CHECK_OK(sl_host_pin(c.f.device, c.host, HOST_BYTES, &c.cancel, err));
    SL_CHECK(sl_host_pinned_bytes(c.f.device) == HOST_BYTES);
    look_now(&c.f);
    SL_CHECK_OK(sl_copy_push(c.copy, c.d_data, c.host, HOST_BYTES, err));
    SL_CHECK_OK(sl_copy_wait(c.copy, err));
    SL_CHECK(look_now(&c.f).copies == 10); /* pieces of 32 MiB within parts */
    close_copying(&c);
}

SL_TEST(what_cannot_be_pinned_is_staged)
{
    copying c;

    open_copying(&c, err);
    mark_each(c.host, HOST_BYTES, 3);
    SL_CHECK_OK(sl_copy_push(c.copy, c.d_data, c.host, 100 * SL_MIB, err)); /* no offer */
    SL_CHECK_OK(sl_copy_wait(c.copy, err));
    SL_CHECK(has_marks(c.d_data, 100 * SL_MIB, 3));
    SL_CHECK(look_now(&c.f).copies == 13); /* 8 MiB each */
    c.f.limit_pins(300 * SL_MIB);          /* one part, not two */
    SL_CHECK_OK(sl_host_offer(c.f.device, c.host, HOST_BYTES, err));
    SL_CHECK_OK(sl_copy_push(c.copy, c.d_data, c.host, HOST_BYTES, err));
    SL_CHECK_OK(sl_copy_wait(c.copy, err));
    SL_CHECK(has_marks(c.d_data, HOST_BYTES, 3));
    SL_CHECK(sl_host_pinned_bytes(c.f.device) < HOST_BYTES);
    mark_each(c.d_data, HOST_BYTES, 4);
    SL_CHECK_OK(sl_copy_pull(c.copy, c.host, c.d_data, HOST_BYTES, err));
    SL_CHECK_OK(sl_copy_wait(c.copy, err));
    SL_CHECK(has_marks(c.host, HOST_BYTES, 4));
    close_copying(&c);
}

SL_TEST(a_cancel_stops_copies)
{
    copying c;

    open_copying(&c, err);
    SL_CHECK_OK(sl_copy_push(c.copy, c.d_data, c.host, SL_MIB, err));
    const uint64_t mark = sl_copy_mark(c.copy);
    SL_CHECK_OK(sl_copy_wait_to(c.copy, mark, err));
    atomic_store(&c.cancel, 1);
    SL_CHECK_STATUS(sl_copy_push(c.copy, c.d_data, c.host, SL_MIB, err), SL_ERR_CANCELLED);
    SL_CHECK(sl_copy_mark(c.copy) == mark);
    close_copying(&c);
}

SL_TEST_MAIN(SL_RUN(the_whole_card_or_a_part), SL_RUN(a_card_that_the_driver_does_not_show),
             SL_RUN(pieces_are_large_where_they_can_be),
             SL_RUN(shrinking_is_exact_and_keeps_contents),
             SL_RUN(what_others_took_is_said_and_changes_nothing),
             SL_RUN(what_was_offered_is_pinned_when_it_is_copied),
             SL_RUN(an_offer_can_be_pinned_ahead), SL_RUN(what_cannot_be_pinned_is_staged),
             SL_RUN(a_cancel_stops_copies))
