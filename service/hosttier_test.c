#include "service/hosttier.h"

#include "base/size.h"
#include "base/test.h"
#include "service/channel.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static_assert((int)SL_HOST_MAX_SEGMENTS <= (int)SL_CHANNEL_MAX_FDS, "an image is one message");

static int open_fd_count(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;

    SL_CHECK(dir != NULL);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

SL_TEST(bytes_are_booked_in_pages_against_the_limit)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const int open_before = open_fd_count();
    sl_hosttier *tier = NULL;
    sl_host_image *a = NULL, *b = NULL, *c = NULL;

    SL_CHECK_OK(sl_hosttier_create(&tier, 10 * page, err));
    SL_CHECK_OK(sl_host_image_create(&a, tier, "tiny/dit", 1, err));
    SL_CHECK(a->image_bytes == 1 && a->booked_bytes == page && a->segment_count == 1);
    SL_CHECK_OK(sl_host_image_create(&b, tier, "tiny/vae", 4 * page, err));
    SL_CHECK(sl_hosttier_booked_bytes(tier) == 5 * page && b->booked_bytes == 4 * page);
    SL_CHECK_STATUS(sl_host_image_create(&c, tier, "c", 5 * page + 1, err), SL_ERR_BUSY);
    SL_CHECK(strstr(err->message, "c needs") && !c);
    SL_CHECK_STATUS(sl_host_image_create(&c, tier, "c", 10 * page + 1, err), SL_ERR_TOO_LARGE);
    SL_CHECK_STATUS(sl_host_image_create(&c, tier, "c", SIZE_MAX, err), SL_ERR_TOO_LARGE);
    SL_CHECK_STATUS(sl_host_image_create(&c, tier, "c", 0, err), SL_ERR_TOO_LARGE);
    SL_CHECK(sl_hosttier_booked_bytes(tier) == 5 * page && open_fd_count() == open_before + 2);
    SL_CHECK_OK(sl_host_image_create(&c, tier, "c", 5 * page, err));
    SL_CHECK(sl_hosttier_booked_bytes(tier) == sl_hosttier_limit_bytes(tier));
    sl_host_image_destroy(b); /* from the middle */
    SL_CHECK(sl_hosttier_booked_bytes(tier) == 6 * page);
    sl_host_image_destroy(NULL);
    sl_hosttier_destroy(tier); /* with the others */
    sl_hosttier_destroy(NULL);
    SL_CHECK(open_fd_count() == open_before);
}

SL_TEST(nothing_fits_into_no_memory)
{
    sl_hosttier *tier = NULL;
    sl_host_image *image = NULL;

    SL_CHECK_OK(sl_hosttier_create(&tier, 0, err));
    SL_CHECK_STATUS(sl_host_image_create(&image, tier, "dit", 1, err), SL_ERR_TOO_LARGE);
    sl_hosttier_destroy(tier);
}

SL_TEST(large_images_lie_in_segments_of_fixed_size)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    sl_hosttier *tier = NULL;
    sl_host_image *image = NULL;
    struct stat info;

    SL_CHECK_OK(sl_hosttier_create(&tier, 100 * SL_GIB, err));
    SL_CHECK_OK(sl_host_image_create(&image, tier, "wan/dit", 2 * SL_GIB + page + 3, err));
    SL_CHECK(image->segment_count == 3 && image->segment_bytes[1] == SL_GIB);
    SL_CHECK(image->segment_bytes[2] == 2 * page);
    for (int i = 0; i < 3; i++) {
        const int fd = image->fds[i];
        SL_CHECK(fstat(fd, &info) == 0 && (size_t)info.st_size == image->segment_bytes[i]);
        SL_CHECK(ftruncate(fd, 1) != 0 && ftruncate(fd, (off_t)1 << 40) != 0);
        SL_CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    }
    /* Booked, and not taken before somebody writes. */
    SL_CHECK(sl_hosttier_resident_bytes(tier) == 0);
    SL_CHECK(pwrite(image->fds[2], "x", 1, (off_t)page) == 1);
    SL_CHECK(sl_hosttier_resident_bytes(tier) == page);
    SL_CHECK(!image->filled);
    sl_host_image_set_filled(image);
    SL_CHECK(image->filled);
    sl_host_image_destroy(image);
    SL_CHECK(sl_hosttier_booked_bytes(tier) == 0);

    SL_CHECK_OK(sl_host_image_create(&image, tier, "most", 64 * SL_GIB, err));
    SL_CHECK(image->segment_count == SL_HOST_MAX_SEGMENTS);
    SL_CHECK(sl_hosttier_cost_bytes(64 * SL_GIB + 1) == SIZE_MAX);
    sl_hosttier_destroy(tier);
}

SL_TEST(a_process_without_descriptors_gets_a_status)
{
    const int open_before = open_fd_count();
    struct rlimit usual, tight;
    sl_hosttier *tier = NULL;
    sl_host_image *image = NULL;

    SL_CHECK_OK(sl_hosttier_create(&tier, 100 * SL_GIB, err));
    SL_CHECK(getrlimit(RLIMIT_NOFILE, &usual) == 0);
    tight = usual;
    const int next_fd = dup(STDIN_FILENO);
    close(next_fd);
    tight.rlim_cur = (rlim_t)next_fd + 3;
    SL_CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
    const sl_status status = sl_host_image_create(&image, tier, "wan/dit", 9 * SL_GIB, err);
    SL_CHECK(setrlimit(RLIMIT_NOFILE, &usual) == 0);
    SL_CHECK(status != SL_OK && !image && sl_hosttier_booked_bytes(tier) == 0);
    SL_CHECK(open_fd_count() == open_before);
    sl_hosttier_destroy(tier);
}

SL_TEST_MAIN(SL_RUN(bytes_are_booked_in_pages_against_the_limit),
             SL_RUN(nothing_fits_into_no_memory),
             SL_RUN(large_images_lie_in_segments_of_fixed_size),
             SL_RUN(a_process_without_descriptors_gets_a_status))
