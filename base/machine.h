/* machine.h - how much memory this process may have.
 *
 * Threads: any.
 */
#ifndef SL_BASE_MACHINE_H
#define SL_BASE_MACHINE_H

#include <stddef.h>

/* The machine's memory, or less where a control group that this process is in has a
 * limit below it.  0: not known. */
size_t sl_machine_memory_bytes(void);

/* The same for tests.  groups: a file like /proc/self/cgroup; mount: where the
 * hierarchies are, like /sys/fs/cgroup.  At most most_bytes. */
size_t sl_machine_limit_bytes(const char *groups, const char *mount, size_t most_bytes);

#endif
