#include "service/lock.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { HOLDER_BYTES = 160, WAIT_STEP_MS = 50 };

static void say_holder(int fd)
{
    char text[HOLDER_BYTES], when[40];
    const time_t now = (time_t)(sl_clock_wall_ns() / SL_NS_PER_S);
    struct tm tm;

    gmtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    const int n = snprintf(text, sizeof text, "process %d since %s\n", (int)getpid(), when);
    /* Only for people to read: a full disk does not stop the daemon. */
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
        return;
}

/* What the holder wrote; *pid 0 if that is not readable. */
static void read_holder(int fd, char text[HOLDER_BYTES], pid_t *pid)
{
    int number = 0;
    const ssize_t n = pread(fd, text, HOLDER_BYTES - 1, 0);

    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    if (sscanf(text, "process %d since", &number) != 1) {
        number = 0;
        snprintf(text, HOLDER_BYTES, "another process");
    }
    *pid = (pid_t)number;
}

sl_status sl_lock_device(int *fd_out, const char *dir, const sl_device_spec *device,
                         const char *uuid, int64_t wait_ns, sl_error *err)
{
    const char *kind = device->kind == SL_DEVICE_CUDA ? "cuda" : "cpu";
    const int64_t give_up_ns = sl_clock_deadline_ns(wait_ns);
    const struct timespec step = { .tv_nsec = WAIT_STEP_MS * SL_NS_PER_MS };
    sl_status status = SL_OK;
    char *path = NULL;
    int fd = -1;

    const int n = uuid && uuid[0]
                      ? asprintf(&path, "%s/device-%s.lock", dir, uuid)
                      : asprintf(&path, "%s/device-%s-%d.lock", dir, kind, device->index);
    if (n < 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the device lock");
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        status = sl_fail_errno(err, "could not open the lock \"%s\"", path);
        goto done;
    }
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        char holder[HOLDER_BYTES];
        pid_t pid = 0;
        if (errno != EWOULDBLOCK && errno != EINTR) {
            status = sl_fail_errno(err, "could not lock \"%s\"", path);
            goto done;
        }
        read_holder(fd, holder, &pid);
        const bool dead = pid > 0 && kill(pid, 0) != 0 && errno == ESRCH;
        if (!dead || sl_clock_now_ns() >= give_up_ns) {
            status = sl_fail(err, SL_ERR_EXISTS, "device %s:%d is held by %s%s (\"%s\")", kind,
                             device->index, holder,
                             dead ? ", which has ended but left its worker behind" : "", path);
            goto done;
        }
        nanosleep(&step, NULL);
    }
    say_holder(fd);
    *fd_out = fd;
    fd = -1;
done:
    if (fd >= 0)
        close(fd);
    free(path);
    return status;
}

sl_status sl_lock_directory(int *fd_out, const char *dir, sl_error *err)
{
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sl_status status = SL_OK;

    if (fd < 0)
        return sl_fail_errno(err, "could not open the directory \"%s\"", dir);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        *fd_out = fd;
        return SL_OK;
    }
    if (errno == EWOULDBLOCK)
        status = sl_fail(err, SL_ERR_EXISTS, "another daemon writes its outputs to \"%s\"", dir);
    else
        status = sl_fail_errno(err, "could not lock the directory \"%s\"", dir);
    close(fd);
    return status;
}

void sl_lock_release(int fd)
{
    if (fd >= 0)
        close(fd); /* unlocks, unless a worker still has it */
}
