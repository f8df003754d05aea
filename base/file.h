/* file.h - what several modules need of the file system.
 *
 * Threads: any; no state.
 */
#ifndef SL_BASE_FILE_H
#define SL_BASE_FILE_H

#include "base/status.h"

/* Makes dir with this mode, and its parents with 0755, where absent.  Failures
 * name the path; SL_ERR_EXISTS: something else has that name. */
sl_status sl_make_directory(const char *dir, unsigned mode, sl_error *err) SL_MUST_CHECK;

#endif
