/* nvml.h - what the driver's management library says about a card.
 *
 * For what a process cannot see through its own context: the cards of the
 * machine without making one, and the other processes that hold memory.  Loaded
 * at run time; without it everything works but these two.
 *
 * Threads: any; the library locks.
 */
#ifndef SL_KERNELS_NVML_H
#define SL_KERNELS_NVML_H

#include "base/status.h"

enum { SL_NVML_UUID_BYTES = 96, SL_NVML_PROCESSES_MAX = 64 };

typedef struct {
    int pid;           /* as the driver sees it: of the host where containers hide theirs */
    size_t size_bytes; /* 0: the driver does not tell */
} sl_nvml_process;

typedef struct sl_nvml sl_nvml;

/* SL_ERR_UNAVAILABLE: no such library here, or it does not start. */
sl_status sl_nvml_open(sl_nvml **out, sl_error *err) SL_MUST_CHECK;
void sl_nvml_close(sl_nvml *nvml); /* NULL is fine */

/* Cards count as nvidia-smi counts them.  SL_ERR_NOT_FOUND: no such card. */
sl_status sl_nvml_uuid(sl_nvml *nvml, int card, char uuid[SL_NVML_UUID_BYTES],
                       sl_error *err) SL_MUST_CHECK;
sl_status sl_nvml_find(sl_nvml *nvml, const char *uuid, int *card, sl_error *err) SL_MUST_CHECK;
sl_status sl_nvml_memory(sl_nvml *nvml, int card, size_t *free_out, size_t *total_out,
                         sl_error *err) SL_MUST_CHECK;
/* All that hold memory there, the calling one too.  At most
 * SL_NVML_PROCESSES_MAX; with more it is SL_ERR_UNAVAILABLE. */
sl_status sl_nvml_processes(sl_nvml *nvml, int card, sl_nvml_process out[SL_NVML_PROCESSES_MAX],
                            int *count, sl_error *err) SL_MUST_CHECK;

#endif
