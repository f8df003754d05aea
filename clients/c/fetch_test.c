/* fetch_test.c - an output fetched over connections that break, resumed, checked. */
#include "base/test.h"
#include "clients/c/sluice.h"
#include "clients/c/test_server.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

/* FetchOutput of s->file, 1000 bytes a chunk; every third connection serves
 * only two chunks and hangs up. */
static void serve_file(server *s, int fd, int connection)
{
    uint8_t id[4];
    Sluice__V1__Envelope *e = NULL;

    if (!server_greet(s, fd))
        return;
    for (int n = 0; (connection % 3 != 0 || n < 2) && (e = server_request(s, fd, id)); n++) {
        Sluice__V1__FetchOutputRequest *request =
            sluice__v1__fetch_output_request__unpack(NULL, e->payload.len, e->payload.data);
        Sluice__V1__FetchOutputReply chunk = SLUICE__V1__FETCH_OUTPUT_REPLY__INIT;
        Sluice__V1__Reply reply = SLUICE__V1__REPLY__INIT;
        uint8_t payload[2000];

        if (request->offset > s->file_bytes) {
            reply.code = 11;
        } else {
            const size_t left = s->file_bytes - request->offset;
            chunk.data.data = (uint8_t *)s->file + request->offset;
            chunk.data.len = left < 1000 ? left : 1000;
            chunk.offset = request->offset;
            chunk.size_bytes = s->file_bytes;
            chunk.sha256 = (char *)s->sha256;
            reply.payload.len = sluice__v1__fetch_output_reply__pack(&chunk, payload);
            reply.payload.data = payload;
        }
        server_reply(fd, id, &reply);
        sluice__v1__fetch_output_request__free_unpacked(request, NULL);
        sluice__v1__envelope__free_unpacked(e, NULL);
    }
}

static void write_file(const char *path, const uint8_t *data, size_t size_bytes)
{
    FILE *f = fopen(path, "wb");

    SL_CHECK(f != NULL);
    SL_CHECK(fwrite(data, 1, size_bytes, f) == size_bytes);
    SL_CHECK(fclose(f) == 0);
}

static void check_file(const char *path, const uint8_t *want, size_t size_bytes)
{
    uint8_t *got = malloc(size_bytes + 1);
    FILE *f = fopen(path, "rb");

    SL_CHECK(f != NULL);
    SL_CHECK(fread(got, 1, size_bytes + 1, f) == size_bytes);
    SL_CHECK(memcmp(got, want, size_bytes) == 0);
    fclose(f);
    free(got);
}

enum { FILE_BYTES = 10500 };

typedef struct {
    server s;
    sl_client *client;
    uint8_t data[FILE_BYTES];
    char sha256[65];
    char path[128], part[140];
} fetch_case;

static void fetch_start(fetch_case *c, sl_error *err)
{
    unsigned char digest[32];
    unsigned int n = 0;

    for (size_t i = 0; i < FILE_BYTES; i++)
        c->data[i] = (uint8_t)(i * 2654435761u >> 13);
    SL_CHECK(EVP_Digest(c->data, FILE_BYTES, digest, &n, EVP_sha256(), NULL) == 1);
    for (unsigned int i = 0; i < n; i++)
        snprintf(c->sha256 + 2 * i, 3, "%02x", digest[i]);
    server_name(&c->s);
    c->s.file = c->data;
    c->s.file_bytes = FILE_BYTES;
    c->s.sha256 = c->sha256;
    server_run(&c->s, serve_file);
    snprintf(c->path, sizeof c->path, "%s/out", c->s.dir);
    snprintf(c->part, sizeof c->part, "%s.part", c->path);
    SL_CHECK_OK(sl_client_create(&c->client, c->s.path, err));
}

static sl_status fetch_now(fetch_case *c, sl_fetch_result *result, sl_error *err)
{
    return sl_client_fetch_file(c->client, "job", c->path, 10 * SL_NS_PER_S, NULL, NULL, result,
                                NULL, err);
}

static void fetch_end(fetch_case *c)
{
    sl_client_destroy(c->client);
    unlink(c->path);
    unlink(c->part);
    server_end(&c->s);
}

SL_TEST(fetches_over_broken_connections)
{
    fetch_case c = { 0 };
    sl_fetch_result result = { 0 };

    fetch_start(&c, err);
    write_file(c.path, (const uint8_t *)"old", 3);
    SL_CHECK_OK(fetch_now(&c, &result, err));
    SL_CHECK(result.size_bytes == FILE_BYTES && result.resumed_bytes == 0);
    SL_CHECK(strcmp(result.sha256, c.sha256) == 0);
    check_file(c.path, c.data, FILE_BYTES);
    SL_CHECK(access(c.part, F_OK) != 0);
    SL_CHECK(atomic_load(&c.s.connections) > 1);
    fetch_end(&c);
}

SL_TEST(resumes_what_an_earlier_fetch_left)
{
    static const size_t left[] = { 1, 4321, FILE_BYTES };

    for (size_t i = 0; i < SL_COUNT(left); i++) {
        fetch_case c = { 0 };
        sl_fetch_result result = { 0 };

        fetch_start(&c, err);
        write_file(c.part, c.data, left[i]);
        SL_CHECK_OK(fetch_now(&c, &result, err));
        SL_CHECK(result.resumed_bytes == left[i]);
        check_file(c.path, c.data, FILE_BYTES);
        fetch_end(&c);
    }
}

SL_TEST(starts_over_when_the_part_is_of_another_file)
{
    static const size_t left[] = { 4321, FILE_BYTES, FILE_BYTES + 7 };
    uint8_t other[FILE_BYTES + 7];

    memset(other, 'x', sizeof other);
    for (size_t i = 0; i < SL_COUNT(left); i++) {
        fetch_case c = { 0 };
        sl_fetch_result result = { 0 };

        fetch_start(&c, err);
        write_file(c.part, other, left[i]);
        SL_CHECK_OK(fetch_now(&c, &result, err));
        SL_CHECK(result.resumed_bytes == 0);
        check_file(c.path, c.data, FILE_BYTES);
        fetch_end(&c);
    }
}

SL_TEST(keeps_nothing_whose_sum_is_wrong)
{
    fetch_case c = { 0 };
    sl_fetch_result result = { 0 };

    fetch_start(&c, err);
    c.data[5000] ^= 1;
    SL_CHECK_STATUS(fetch_now(&c, &result, err), SL_ERR_DATA);
    SL_CHECK(access(c.path, F_OK) != 0 && access(c.part, F_OK) != 0);
    fetch_end(&c);
}

SL_TEST(two_fetches_do_not_share_a_part)
{
    fetch_case c = { 0 };
    sl_fetch_result result = { 0 };

    fetch_start(&c, err);
    const int fd = open(c.part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    SL_CHECK(fd >= 0 && flock(fd, LOCK_EX) == 0);
    SL_CHECK_STATUS(fetch_now(&c, &result, err), SL_ERR_BUSY);
    SL_CHECK(access(c.part, F_OK) == 0);
    close(fd);
    SL_CHECK_OK(fetch_now(&c, &result, err));
    fetch_end(&c);
}

/* The thread that writes fails, not the one that fetches. */
SL_TEST(says_that_the_disk_is_full_and_goes_on_later)
{
    fetch_case c = { 0 };
    sl_fetch_result result = { 0 };
    struct rlimit before, low;

    fetch_start(&c, err);
    SL_CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    low = before;
    low.rlim_cur = 3500;
    SL_CHECK(setrlimit(RLIMIT_FSIZE, &low) == 0);
    const sl_status status = fetch_now(&c, &result, err);
    SL_CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    SL_CHECK(status == SL_ERR_IO && strstr(err->message, "could not write"));
    SL_CHECK_OK(fetch_now(&c, &result, err));
    SL_CHECK(result.resumed_bytes == 3500 && strcmp(result.sha256, c.sha256) == 0);
    check_file(c.path, c.data, FILE_BYTES);
    fetch_end(&c);
}

SL_TEST_MAIN(SL_RUN(fetches_over_broken_connections), SL_RUN(resumes_what_an_earlier_fetch_left),
             SL_RUN(starts_over_when_the_part_is_of_another_file),
             SL_RUN(keeps_nothing_whose_sum_is_wrong), SL_RUN(two_fetches_do_not_share_a_part),
             SL_RUN(says_that_the_disk_is_full_and_goes_on_later))
