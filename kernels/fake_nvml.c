/* fake_nvml.c - a libnvidia-ml.so.1 for tests: two cards, three processes on the
 * second, one of which keeps its bytes to itself.  What is on the first a test may
 * say. */
#include <string.h>

typedef struct {
    unsigned long long total, free, used;
} memory;

typedef struct {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned instance, compute_instance;
} process;

/* That of the card of fake_cuda.c. */
#define FIRST_UUID "GPU-00112233-4455-6677-8899-aabbccddeeff"

#define SHOWN __attribute__((visibility("default")))

SHOWN int nvmlInit_v2(void);
SHOWN int nvmlShutdown(void);
SHOWN const char *nvmlErrorString(int code);
SHOWN int nvmlDeviceGetCount_v2(unsigned *out);
SHOWN int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out);
SHOWN int nvmlDeviceGetUUID(void *card, char *out, unsigned bytes);
SHOWN int nvmlDeviceGetMemoryInfo(void *card, memory *out);
SHOWN int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, process *out);

/* Of the first card: its memory, and one process; pid 0: none.  total 0: it is
 * another card. */
SHOWN void sl_fake_nvml_set(unsigned long long total, unsigned long long left, unsigned pid,
                            unsigned long long pid_bytes);

static char cards[2];
static memory first_memory = { 1ull << 34, 1ull << 33, 1ull << 33 };
static process first_process;

void sl_fake_nvml_set(unsigned long long total, unsigned long long left, unsigned pid,
                      unsigned long long pid_bytes)
{
    first_memory = (memory){ total, left, total - left };
    first_process = (process){ pid, pid_bytes, 0, 0 };
}

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
    if (bytes < sizeof FIRST_UUID)
        return 7;
    strcpy(out, card != &cards[0] ? "GPU-second" : first_memory.total ? FIRST_UUID : "GPU-other");
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *card, memory *out)
{
    *out =
        card == &cards[0] ? first_memory : (memory){ (24ull << 30) + 5, 20ull << 30, 4ull << 30 };
    return 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *card, unsigned *count, process *out)
{
    static const process list[] = { { 100, 1ull << 30, 0, 0 },
                                    { 200, ~0ull, 0, 0 },
                                    { 300, 2ull << 30, 0, 0 } };
    const unsigned shown = card != &cards[0] ? 3 : first_process.pid ? 1 : 0;

    if (*count < shown) {
        *count = shown;
        return 7;
    }
    *count = shown;
    memcpy(out, card == &cards[0] ? &first_process : list, shown * sizeof *out);
    return 0;
}
