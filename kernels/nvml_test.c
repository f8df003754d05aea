/* nvml_test.c - nvml.h over kernels/fake_nvml.c, and, as "absent", without any
 * library where the machine has none. */
#include "kernels/nvml.h"

#include "base/size.h"
#include "base/test.h"

#include <string.h>

SL_TEST(reads_cards_and_processes)
{
    sl_nvml_process processes[SL_NVML_PROCESSES_MAX];
    char uuid[SL_NVML_UUID_BYTES];
    size_t left, total;
    sl_nvml *nvml = NULL;
    int card = -1, count = -1;

    if (sl_nvml_open(&nvml, err) != SL_OK) { /* not run with the stand-in */
        SL_CHECK(err->status == SL_ERR_UNAVAILABLE && nvml == NULL);
        sl_nvml_close(NULL);
        return;
    }
    SL_CHECK_OK(sl_nvml_uuid(nvml, 0, uuid, err));
    if (strcmp(uuid, "GPU-00112233-4455-6677-8899-aabbccddeeff") !=
        0) { /* a real card: nothing is known of it */
        sl_nvml_close(nvml);
        return;
    }
    SL_CHECK_OK(sl_nvml_find(nvml, "GPU-second", &card, err));
    SL_CHECK(card == 1);
    SL_CHECK_STATUS(sl_nvml_find(nvml, "GPU-third", &card, err), SL_ERR_NOT_FOUND);
    SL_CHECK_OK(sl_nvml_memory(nvml, 1, &left, &total, err));
    SL_CHECK(left == 20 * SL_GIB && total == 24 * SL_GIB + 5);
    SL_CHECK_OK(sl_nvml_processes(nvml, 0, processes, &count, err));
    SL_CHECK(count == 0);
    SL_CHECK_OK(sl_nvml_processes(nvml, 1, processes, &count, err));
    SL_CHECK(count == 3 && processes[0].pid == 100 && processes[0].size_bytes == SL_GIB);
    SL_CHECK(processes[1].size_bytes == 0 && processes[2].size_bytes == 2 * SL_GIB);
    SL_CHECK_STATUS(sl_nvml_uuid(nvml, 2, uuid, err), SL_ERR_NOT_FOUND);
    SL_CHECK(strstr(err->message, "card 2") != NULL);
    sl_nvml_close(nvml);
}

SL_TEST_MAIN(SL_RUN(reads_cards_and_processes))
