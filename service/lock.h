/* lock.h - one daemon per device, and per directory of outputs.
 *
 * An advisory lock on a file in the runtime directory.  The worker inherits
 * the descriptor, so that the lock lasts as long as either process lives: no
 * second daemon starts over live device memory.  The file says who holds it and
 * since when; it stays behind, empty of meaning, when the lock is gone.
 *
 * Ownership: take/release.  Threads: one.
 */
#ifndef SL_SERVICE_LOCK_H
#define SL_SERVICE_LOCK_H

#include "base/status.h"
#include "kernels/device.h"

#include <stdint.h>

/* <dir>/device-cpu-0.lock or device-cuda-1.lock; device-GPU-....lock where uuid,
 * which may be NULL, is not empty, since numbers differ between containers that
 * share the directory.  SL_ERR_EXISTS: held by another;
 * the message says by whom and since when.  A holder that is dead while its worker
 * is still going is waited for, at most wait_ns. */
sl_status sl_lock_device(int *fd_out, const char *dir, const sl_device_spec *device,
                         const char *uuid, int64_t wait_ns, sl_error *err) SL_MUST_CHECK;

/* The directory itself, for this process only: partial files in it are ours. */
sl_status sl_lock_directory(int *fd_out, const char *dir, sl_error *err) SL_MUST_CHECK;

void sl_lock_release(int fd); /* -1 is fine */

#endif
