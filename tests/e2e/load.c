/* load.c - what a daemon bears: many clients of libsluice asking at once.
 *
 * usage: load ADDRESS CA CERT KEY SERVER_NAME CLIENTS SECONDS [JOB]
 *
 * Each client has a connection and a thread, and asks GetMemoryStats again and again;
 * with JOB they fetch its output in the largest pieces.  Prints requests a second,
 * p50 and p99 in ms, and MB/s.
 */
#include "clients/c/sluice.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_CLIENTS = 256, MAX_TIMES = 1 << 16 };

typedef struct {
    sl_client_options options;
    const char *job;
    int64_t until_ns;
    int count;
    uint64_t bytes;
    bool failed;
    float *times_ms;
} asker;

/* The bytes that came; -1: the request failed. */
static int64_t ask(sl_client *client, const char *job, uint64_t *offset, sl_error *err)
{
    Sluice__V1__GetMemoryStatsRequest stats = SLUICE__V1__GET_MEMORY_STATS_REQUEST__INIT;
    Sluice__V1__FetchOutputRequest fetch = SLUICE__V1__FETCH_OUTPUT_REQUEST__INIT;
    Sluice__V1__GetMemoryStatsReply *memory = NULL;
    Sluice__V1__FetchOutputReply *chunk = NULL;
    int64_t bytes = 0;

    if (!job) {
        if (sl_client_get_memory_stats(client, &stats, 0, &memory, NULL, err) != SL_OK)
            return -1;
        sl_message_free(memory);
        return 0;
    }
    fetch.job_id = (char *)job;
    fetch.offset = *offset;
    if (sl_client_fetch_output(client, &fetch, 0, &chunk, NULL, err) != SL_OK)
        return -1;
    bytes = (int64_t)chunk->data.len;
    *offset = *offset + chunk->data.len < chunk->size_bytes ? *offset + chunk->data.len : 0;
    sl_message_free(chunk);
    return bytes;
}

static void *run(void *arg)
{
    asker *a = arg;
    sl_client *client = NULL;
    sl_error err = { .status = SL_OK };
    uint64_t offset = 0;

    a->failed = sl_client_create_with(&client, &a->options, &err) != SL_OK;
    while (!a->failed && sl_clock_now_ns() < a->until_ns && a->count < MAX_TIMES) {
        const int64_t start_ns = sl_clock_now_ns();
        const int64_t bytes = ask(client, a->job, &offset, &err);
        a->failed = bytes < 0;
        a->bytes += a->failed ? 0 : (uint64_t)bytes;
        a->times_ms[a->count++] = (float)(sl_clock_now_ns() - start_ns) / (float)SL_NS_PER_MS;
    }
    if (a->failed)
        fprintf(stderr, "load: %s\n", err.message);
    sl_client_destroy(client);
    return NULL;
}

static int compare(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static asker askers[MAX_CLIENTS];
    static pthread_t threads[MAX_CLIENTS];
    uint64_t bytes = 0;
    int failed = 0;
    size_t total = 0;

    if (argc < 8 || argc > 9)
        return 2;
    const int clients = atoi(argv[6]);
    const double seconds = atof(argv[7]);
    if (clients < 1 || clients > MAX_CLIENTS || !(seconds > 0))
        return 2;
    float *all = calloc((size_t)clients * MAX_TIMES, sizeof *all);
    const int64_t until_ns = sl_clock_deadline_ns((int64_t)(seconds * (double)SL_NS_PER_S));
    for (int i = 0; i < clients && all; i++) {
        askers[i] = (asker){ .options = { .address = argv[1], .ca = argv[2], .cert = argv[3],
                                          .key = argv[4], .server_name = argv[5] },
                             .job = argc > 8 ? argv[8] : NULL,
                             .until_ns = until_ns,
                             .times_ms = calloc(MAX_TIMES, sizeof(float)) };
        if (!askers[i].times_ms || pthread_create(&threads[i], NULL, run, &askers[i]) != 0)
            return 1;
    }
    for (int i = 0; i < clients && all; i++) {
        pthread_join(threads[i], NULL);
        for (int k = 0; k < askers[i].count; k++)
            all[total++] = askers[i].times_ms[k];
        bytes += askers[i].bytes;
        failed += askers[i].failed;
    }
    if (total == 0) {
        fprintf(stderr, "no request was answered in %g s\n", seconds);
        free(all);
        return 1;
    }
    qsort(all, total, sizeof *all, compare);
    printf("%d clients: %.0f requests/s, p50 %.2f ms, p99 %.2f ms, %.0f MB/s, %d failed\n", clients,
           (double)total / seconds, (double)all[total / 2], (double)all[total * 99 / 100],
           (double)bytes / seconds / 1e6, failed);
    free(all);
    for (int i = 0; i < clients; i++)
        free(askers[i].times_ms);
    return failed ? 1 : 0;
}
