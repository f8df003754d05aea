#include "kernels/nvml.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The library's ABI, as far as it is used: its header is not part of every
 * toolkit.  Versioned names stay as they are for good. */
typedef struct nvmlDevice_st *nvml_card;

typedef struct {
    unsigned long long total, free, used;
} nvml_memory;

typedef struct {
    unsigned pid;
    unsigned long long used_bytes; /* all ones: not told */
    unsigned instance, compute_instance;
} nvml_process;

enum { NVML_OK = 0, NVML_INVALID_ARGUMENT = 2, NVML_NOT_FOUND = 6, NVML_INSUFFICIENT_SIZE = 7 };

struct sl_nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error_text)(int code);
    int (*count)(unsigned *out);
    int (*by_index)(unsigned index, nvml_card *out);
    int (*uuid)(nvml_card card, char *out, unsigned bytes);
    int (*memory)(nvml_card card, nvml_memory *out);
    int (*processes)(nvml_card card, unsigned *count, nvml_process *out);
};

static sl_status resolve(sl_nvml *nvml, sl_error *err)
{
    const struct {
        const char *name;
        void *field;
    } symbols[] = {
        { "nvmlInit_v2", &nvml->init },
        { "nvmlShutdown", &nvml->shutdown },
        { "nvmlErrorString", &nvml->error_text },
        { "nvmlDeviceGetCount_v2", &nvml->count },
        { "nvmlDeviceGetHandleByIndex_v2", &nvml->by_index },
        { "nvmlDeviceGetUUID", &nvml->uuid },
        { "nvmlDeviceGetMemoryInfo", &nvml->memory },
        { "nvmlDeviceGetComputeRunningProcesses_v3", &nvml->processes },
    };

    for (size_t i = 0; i < SL_COUNT(symbols); i++) {
        void *address = dlsym(nvml->library, symbols[i].name);
        if (!address)
            return sl_fail(err, SL_ERR_UNAVAILABLE, "the management library has no %s",
                           symbols[i].name);
        memcpy(symbols[i].field, &address, sizeof address);
    }
    return SL_OK;
}

static sl_status fail(const sl_nvml *nvml, int code, const char *what, int card, sl_error *err)
{
    const sl_status status = code == NVML_NOT_FOUND || code == NVML_INVALID_ARGUMENT
                                 ? SL_ERR_NOT_FOUND
                                 : SL_ERR_UNAVAILABLE;

    return sl_fail(err, status, "could not read the %s of card %d: %s", what, card,
                   nvml->error_text(code));
}

sl_status sl_nvml_open(sl_nvml **out, sl_error *err)
{
    sl_status status = SL_OK;
    sl_nvml *nvml = calloc(1, sizeof *nvml);

    if (!nvml)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the management library");
    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nvml->library)
        status = sl_fail(err, SL_ERR_UNAVAILABLE, "no management library: %s", dlerror());
    if (status == SL_OK)
        status = resolve(nvml, err);
    if (status == SL_OK) {
        const int code = nvml->init();
        if (code != NVML_OK)
            status = sl_fail(err, SL_ERR_UNAVAILABLE, "the management library does not start: %s",
                             nvml->error_text(code));
    }
    if (status == SL_OK) {
        *out = nvml;
        return SL_OK;
    }
    if (nvml->library)
        dlclose(nvml->library);
    free(nvml);
    return status;
}

void sl_nvml_close(sl_nvml *nvml)
{
    if (!nvml)
        return;
    nvml->shutdown();
    dlclose(nvml->library);
    free(nvml);
}

static sl_status card_at(const sl_nvml *nvml, int card, nvml_card *out, sl_error *err)
{
    const int code = nvml->by_index((unsigned)card, out);

    return code == NVML_OK ? SL_OK : fail(nvml, code, "handle", card, err);
}

sl_status sl_nvml_uuid(sl_nvml *nvml, int card, char uuid[SL_NVML_UUID_BYTES], sl_error *err)
{
    nvml_card at;
    sl_status status = card_at(nvml, card, &at, err);

    if (status == SL_OK) {
        const int code = nvml->uuid(at, uuid, SL_NVML_UUID_BYTES);
        if (code != NVML_OK)
            status = fail(nvml, code, "UUID", card, err);
    }
    return status;
}

sl_status sl_nvml_find(sl_nvml *nvml, const char *uuid, int *card, sl_error *err)
{
    char seen[SL_NVML_UUID_BYTES];
    unsigned count = 0;
    const int code = nvml->count(&count);

    if (code != NVML_OK)
        return fail(nvml, code, "number", 0, err);
    for (int i = 0; i < (int)count; i++) {
        if (sl_nvml_uuid(nvml, i, seen, NULL) == SL_OK && strcmp(seen, uuid) == 0) {
            *card = i;
            return SL_OK;
        }
    }
    return sl_fail(err, SL_ERR_NOT_FOUND, "none of the machine's %u cards is %s", count, uuid);
}

sl_status sl_nvml_memory(sl_nvml *nvml, int card, size_t *free_out, size_t *total_out,
                         sl_error *err)
{
    nvml_memory memory = { 0 };
    nvml_card at;
    const sl_status status = card_at(nvml, card, &at, err);
    int code;

    if (status != SL_OK)
        return status;
    code = nvml->memory(at, &memory);
    if (code != NVML_OK)
        return fail(nvml, code, "memory", card, err);
    *free_out = (size_t)memory.free;
    *total_out = (size_t)memory.total;
    return SL_OK;
}

sl_status sl_nvml_processes(sl_nvml *nvml, int card, sl_nvml_process out[SL_NVML_PROCESSES_MAX],
                            int *count, sl_error *err)
{
    nvml_process seen[SL_NVML_PROCESSES_MAX];
    unsigned n = SL_NVML_PROCESSES_MAX;
    nvml_card at;
    const sl_status status = card_at(nvml, card, &at, err);
    int code;

    if (status != SL_OK)
        return status;
    code = nvml->processes(at, &n, seen);
    /* More than fit: none is written, n says how many there are. */
    if (code == NVML_INSUFFICIENT_SIZE)
        return sl_fail(err, SL_ERR_UNAVAILABLE, "card %d has %u processes, more than %d", card, n,
                       (int)SL_NVML_PROCESSES_MAX);
    if (code != NVML_OK)
        return fail(nvml, code, "processes", card, err);
    if (n > SL_NVML_PROCESSES_MAX)
        n = SL_NVML_PROCESSES_MAX;
    for (unsigned i = 0; i < n; i++)
        out[i] = (sl_nvml_process){
            .pid = (int)seen[i].pid,
            .size_bytes = seen[i].used_bytes == UINT64_MAX ? 0 : (size_t)seen[i].used_bytes,
        };
    *count = (int)n;
    return SL_OK;
}
