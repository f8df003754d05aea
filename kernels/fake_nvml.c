/* fake_nvml.c - a libnvidia-ml.so.1 for tests: two cards, three processes on the
 * second, one of which keeps its bytes to itself. */
#include <string.h>

typedef struct {
    unsigned long long total, free, used;
} memory;

typedef struct {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned instance, compute_instance;
} process;

#define SHOWN __attribute__((visibility("default")))

SHOWN int nvmlInit_v2(void);
SHOWN int nvmlShutdown(void);
SHOWN const char *nvmlErrorString(int code);
SHOWN int nvmlDeviceGetCount_v2(unsigned *out);
SHOWN int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out);
SHOWN int nvmlDeviceGetUUID(void *card, char *out, unsigned bytes);
SHOWN int nvmlDeviceGetMemoryInfo(void *card, memory *out);
SHOWN int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, process *out);

static char cards[2];

int nvmlInit_v2(void)
{
    return 0;
}

int nvmlShutdown(void)
{
    return 0;
}

const char *nvmlErrorString(int code)
{
    return code == 2 ? "invalid argument" : "failure";
}

int nvmlDeviceGetCount_v2(unsigned *out)
{
    *out = 2;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out)
{
    if (index >= 2)
        return 2;
    *out = &cards[index];
    return 0;
}

int nvmlDeviceGetUUID(void *card, char *out, unsigned bytes)
{
    if (bytes < 16)
        return 7;
    strcpy(out, card == &cards[0] ? "GPU-first" : "GPU-second");
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *card, memory *out)
{
    *out = card == &cards[0] ? (memory){ 1ull << 34, 1ull << 33, 1ull << 33 }
                             : (memory){ (24ull << 30) + 5, 20ull << 30, 4ull << 30 };
    return 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, process *out)
{
    static const process list[] = { { 100, 1ull << 30, 0, 0 },
                                    { 200, ~0ull, 0, 0 },
                                    { 300, 2ull << 30, 0, 0 } };
    const unsigned shown = card == &cards[0] ? 0 : 3;

    if (*count < shown) {
        *count = shown;
        return 7;
    }
    *count = shown;
    if (shown)
        memcpy(out, list, sizeof list);
    return 0;
}
