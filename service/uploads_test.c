/* Uploads: pieces in any order and twice, other people's ids, wrong hashes, age. */
#include "service/handlers_test.h"
#include "service/uploads.h"

#include <sys/time.h>

enum { WHOLE = 1000 };

static uint8_t content[WHOLE];
static char content_sha256[65];

static void fill_content(void)
{
    uint8_t digest[SHA256_DIGEST_LENGTH];

    for (int i = 0; i < WHOLE; i++)
        content[i] = (uint8_t)(i * 7);
    SHA256(content, WHOLE, digest);
    for (int i = 0; i < SHA256_DIGEST_LENGTH; i++)
        snprintf(content_sha256 + 2 * i, 3, "%02x", digest[i]);
}

typedef struct {
    sl_status status;
    char field[32];
    uint64_t received;
    bool complete;
} answer;

static Sluice__V1__UploadInputRequest piece_of(const char *id, size_t from, size_t to)
{
    Sluice__V1__UploadInputRequest r = SLUICE__V1__UPLOAD_INPUT_REQUEST__INIT;

    r.upload_id = (char *)id;
    r.sha256 = content_sha256;
    r.size_bytes = WHOLE;
    r.offset = from;
    r.data = (ProtobufCBinaryData){ to - from, content + from };
    return r;
}

static answer ask(sl_service *s, const char *who, const Sluice__V1__UploadInputRequest *r)
{
    sl_error error = { .status = SL_OK };
    sl_rpc_call call;

    begin_call(&call, SL_ROLE_USER, who, &r->base);
    answer a = { .status = sl_handle_upload_input(s, &call, &error) };
    if (a.status == SL_OK) {
        const Sluice__V1__UploadInputReply *reply = (const void *)call.reply;
        a.received = reply->received_bytes;
        a.complete = reply->complete;
    }
    snprintf(a.field, sizeof a.field, "%s", call.field ? call.field : "");
    sl_arena_destroy(call.arena);
    return a;
}

static answer send_piece(sl_service *s, const char *who, const char *id, size_t from, size_t to)
{
    const Sluice__V1__UploadInputRequest r = piece_of(id, from, to);

    return ask(s, who, &r);
}

static bool can_map(sl_service *s, const char *who, const char *id)
{
    sl_error error = { .status = SL_OK };
    sl_rpc_call call = { .deadline_ns = 0 };
    const uint8_t *bytes = NULL;
    size_t size_bytes = 0;

    snprintf(call.peer.identity, sizeof call.peer.identity, "%s", who);
    const sl_status status = sl_upload_map(s, &call, id, &bytes, &size_bytes, &error);
    SL_CHECK(status == SL_OK || status == SL_ERR_NOT_FOUND);
    if (status == SL_OK)
        SL_CHECK(size_bytes == WHOLE && memcmp(bytes, content, WHOLE) == 0);
    sl_upload_unmap(bytes, size_bytes);
    return status == SL_OK;
}

SL_TEST(pieces_make_a_file)
{
    sl_service *s = start((size_t)256 << 20, err);

    fill_content();
    answer a = send_piece(s, "uid:1", "u", 400, 700); /* nothing is there yet */
    SL_CHECK(a.status == SL_OK && a.received == 0 && !a.complete);
    a = send_piece(s, "uid:1", "u", 0, 400);
    SL_CHECK(a.received == 400 && !a.complete && !can_map(s, "uid:1", "u"));
    a = send_piece(s, "uid:1", "u", 0, 400); /* the same again */
    SL_CHECK(a.received == 400);
    a = send_piece(s, "uid:1", "u", 300, 900); /* overlaps what is there */
    SL_CHECK(a.received == 900);
    a = send_piece(s, "uid:1", "u", 900, WHOLE);
    SL_CHECK(a.received == WHOLE && a.complete && can_map(s, "uid:1", "u"));
    a = send_piece(s, "uid:1", "u", 0, 400);
    SL_CHECK(a.complete);
    SL_CHECK(!can_map(s, "uid:2", "u") && !can_map(s, "uid:1", "v"));
    SL_CHECK(!can_map(s, "uid:1", "../u") && !can_map(s, "uid:1", ""));
    a = send_piece(s, "uid:2", "u", 0, 10); /* another user's own */
    SL_CHECK(a.received == 10 && !a.complete);
    stop(s);
}

SL_TEST(what_is_wrong_is_named)
{
    sl_service *s = start((size_t)256 << 20, err);
    Sluice__V1__UploadInputRequest bad[6];
    static const char *const fields[] = { "upload_id",  "upload_id", "size_bytes",
                                          "size_bytes", "offset",    "sha256" };

    fill_content();
    for (size_t i = 0; i < SL_COUNT(bad); i++)
        bad[i] = piece_of("u", 0, 100);
    bad[0].upload_id = (char *)"";
    bad[1].upload_id = (char *)"a/b";
    bad[2].size_bytes = 0;
    bad[3].size_bytes = SL_UPLOAD_MAX_BYTES + (uint64_t)1;
    bad[4].offset = UINT64_MAX;
    bad[5].sha256 = (char *)"abc";
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        const answer a = ask(s, "uid:1", &bad[i]);
        if (a.status != SL_ERR_INVALID || strcmp(a.field, fields[i]) != 0)
            fail_msg("case %zu: status %d, field \"%s\"", i, (int)a.status, a.field);
    }
    SL_CHECK(count_files(".input") == 0);
    stop(s);
}

SL_TEST(a_wrong_hash_starts_over)
{
    sl_service *s = start((size_t)256 << 20, err);
    Sluice__V1__UploadInputRequest r;

    fill_content();
    r = piece_of("u", 0, WHOLE);
    r.sha256 = (char *)"0000000000000000000000000000000000000000000000000000000000000000";
    answer a = ask(s, "uid:1", &r);
    SL_CHECK(a.status == SL_ERR_INVALID && strcmp(a.field, "sha256") == 0);
    SL_CHECK(count_files(".input") == 0);
    a = send_piece(s, "uid:1", "u", 0, WHOLE);
    SL_CHECK(a.complete && can_map(s, "uid:1", "u"));
    stop(s);
}

/* As if all uploads had been used this long ago. */
static void make_old(int seconds)
{
    const time_t when = time(NULL) - seconds;
    const struct timeval old[2] = { { .tv_sec = when }, { .tv_sec = when } };
    struct dirent *entry;
    char path[600];
    DIR *dir = opendir(outputs);

    SL_CHECK(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        snprintf(path, sizeof path, "%s/%s", outputs, entry->d_name);
        if (strncmp(entry->d_name, ".input", 6) == 0)
            SL_CHECK(utimes(path, old) == 0);
    }
    closedir(dir);
}

/* The first pieces of this many; how many were taken. */
static int begin_many(sl_service *s, const char *who, int count, uint64_t size_bytes)
{
    int taken = 0;
    char id[16];

    for (int i = 0; i < count; i++) {
        snprintf(id, sizeof id, "u%d", i);
        Sluice__V1__UploadInputRequest r = piece_of(id, 0, 10);
        r.size_bytes = size_bytes;
        const answer a = ask(s, who, &r);
        SL_CHECK(a.status == SL_OK || a.status == SL_ERR_BUSY);
        taken += a.status == SL_OK;
    }
    return taken;
}

/* A user's share is full, by number or by the bytes that were announced, and the others'
 * are not. */
SL_TEST(each_user_has_a_share)
{
    enum { MOST = SL_UPLOAD_MAX_BYTES, FIT = (int)(SL_UPLOADS_EACH_BYTES / SL_UPLOAD_MAX_BYTES) };
    sl_service *s = start((size_t)256 << 20, err);

    fill_content();
    SL_CHECK(begin_many(s, "uid:1", SL_UPLOADS_EACH + 5, WHOLE) == SL_UPLOADS_EACH);
    SL_CHECK(begin_many(s, "uid:2", 100, MOST) == FIT);
    SL_CHECK(send_piece(s, "uid:3", "u", 0, WHOLE).complete);
    SL_CHECK(send_piece(s, "uid:1", "u3", 10, 20).received == 20); /* those that have begun go on */
    SL_CHECK(send_piece(s, "uid:1", "u3", 20, WHOLE).complete);
    SL_CHECK(can_map(s, "uid:1", "u3") && can_map(s, "uid:3", "u"));
    SL_CHECK(begin_many(s, "uid:1", 1, WHOLE + 1) == 0);
    stop(s);
}

/* For a new one the oldest of the same user goes, if it was not used just now. */
SL_TEST(a_full_share_makes_room_for_its_user_alone)
{
    sl_service *s = start((size_t)256 << 20, err);

    fill_content();
    SL_CHECK(begin_many(s, "uid:1", SL_UPLOADS_EACH - 1, WHOLE) == SL_UPLOADS_EACH - 1);
    SL_CHECK(send_piece(s, "uid:1", "image", 0, WHOLE).complete);
    SL_CHECK(send_piece(s, "uid:2", "image", 0, WHOLE).complete);
    make_old(100);
    SL_CHECK(can_map(s, "uid:1", "image")); /* it is in use again */
    const int before = count_files(".input");
    for (int i = 0; i < SL_UPLOADS_EACH - 1; i++) {
        char id[16];
        snprintf(id, sizeof id, "v%d", i);
        SL_CHECK(send_piece(s, "uid:1", id, 0, 10).received == 10);
    }
    SL_CHECK(send_piece(s, "uid:1", "w", 0, 10).status == SL_ERR_BUSY);
    SL_CHECK(count_files(".input") == before);
    SL_CHECK(can_map(s, "uid:1", "image") && can_map(s, "uid:2", "image"));
    stop(s);
}

SL_TEST(all_users_have_a_bound_and_uploads_do_not_last)
{
    sl_service *s = start((size_t)256 << 20, err);
    char who[16];
    int taken = 0;

    fill_content();
    for (int user = 0; user < SL_UPLOADS / SL_UPLOADS_EACH + 1; user++) {
        snprintf(who, sizeof who, "uid:%d", user);
        taken += begin_many(s, who, SL_UPLOADS_EACH, WHOLE);
    }
    SL_CHECK(taken == SL_UPLOADS);
    make_old(100); /* nobody else's go before their time */
    SL_CHECK(send_piece(s, "uid:99", "one-more", 0, 10).status == SL_ERR_BUSY);
    SL_CHECK(send_piece(s, "uid:0", "u3", 10, 20).received == 20);
    make_old(4000);
    SL_CHECK(send_piece(s, "uid:99", "one-more", 0, 10).status == SL_OK);
    SL_CHECK(count_files(".input") == 1);
    for (int user = 0; user < 9; user++) {
        snprintf(who, sizeof who, "uid:%d", user);
        taken = begin_many(s, who, 4, SL_UPLOAD_MAX_BYTES);
        SL_CHECK(taken == (user < 7 ? 4 : user == 7 ? 3 : 0)); /* 2 GiB in all */
    }
    stop(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = { RUN(pieces_make_a_file),
                                        RUN(what_is_wrong_is_named),
                                        RUN(a_wrong_hash_starts_over),
                                        RUN(each_user_has_a_share),
                                        RUN(a_full_share_makes_room_for_its_user_alone),
                                        RUN(all_users_have_a_bound_and_uploads_do_not_last) };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
