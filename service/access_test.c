/* Tokens, rates, the audit log. */
#include "service/access.h"

#include "base/clock.h"
#include "base/test.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/sl_access_XXXXXX";
static char path[64];

static void make_path(const char *name)
{
    if (strstr(dir, "XXXXXX"))
        SL_CHECK(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/%s", dir, name);
}

static void write_text(const char *text)
{
    FILE *f = fopen(path, "w");

    SL_CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static char *read_text(char *text, size_t room)
{
    FILE *f = fopen(path, "r");

    SL_CHECK(f);
    text[fread(text, 1, room - 1, f)] = '\0';
    fclose(f);
    return text;
}

/* --- tokens --- */

SL_TEST(a_token_is_known_by_its_hash)
{
    sl_tokens tokens = { .count = 0 }, loaded;
    char alice[SL_TOKEN_TEXT_BYTES], bob[SL_TOKEN_TEXT_BYTES], text[1024];
    const sl_token *found = NULL;
    struct stat st;

    make_path("tokens");
    SL_CHECK_OK(sl_tokens_add(&tokens, "alice@lab.example", SL_ROLE_USER, 1000, alice, err));
    SL_CHECK_OK(sl_tokens_add(&tokens, "bob", SL_ROLE_ADMIN, 0, bob, err));
    SL_CHECK_STATUS(sl_tokens_add(&tokens, "bob", SL_ROLE_USER, 0, text, err), SL_ERR_EXISTS);
    SL_CHECK_STATUS(sl_tokens_add(&tokens, "b b", SL_ROLE_USER, 0, text, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_tokens_save(&tokens, path, err));
    SL_CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    read_text(text, sizeof text);
    SL_CHECK(!strstr(text, strrchr(alice, '.') + 1) && !strstr(text, strrchr(bob, '.') + 1));

    SL_CHECK_OK(sl_tokens_load(&loaded, path, err));
    SL_CHECK(loaded.count == 2);
    SL_CHECK_OK(sl_tokens_check(&loaded, alice, 999, &found, err));
    SL_CHECK(found->role == SL_ROLE_USER && strcmp(found->name, "alice@lab.example") == 0);
    SL_CHECK_STATUS(sl_tokens_check(&loaded, alice, 1000, &found, err), SL_ERR_UNAUTHENTICATED);
    SL_CHECK(strstr(err->message, "expired") && !strstr(err->message, alice));
    SL_CHECK_OK(sl_tokens_check(&loaded, bob, INT64_MAX, &found, err));
    SL_CHECK(found->role == SL_ROLE_ADMIN);
    SL_CHECK_OK(sl_tokens_remove(&loaded, "bob", err));
    SL_CHECK_STATUS(sl_tokens_remove(&loaded, "bob", err), SL_ERR_NOT_FOUND);
    SL_CHECK_STATUS(sl_tokens_check(&loaded, bob, 0, &found, err), SL_ERR_UNAUTHENTICATED);
    sl_tokens_fini(&tokens);
    sl_tokens_fini(&loaded);
    unlink(path);
}

SL_TEST(other_texts_are_no_tokens)
{
    sl_tokens tokens = { .count = 0 };
    char good[SL_TOKEN_TEXT_BYTES], text[SL_TOKEN_TEXT_BYTES + 8];
    const sl_token *found = NULL;

    SL_CHECK_OK(sl_tokens_add(&tokens, "alice", SL_ROLE_USER, 0, good, err));
    for (size_t i = 0; i < strlen(good); i++) { /* each byte counts */
        memcpy(text, good, sizeof good);
        text[i] = text[i] == 'a' ? 'b' : 'a';
        SL_CHECK_STATUS(sl_tokens_check(&tokens, text, 0, &found, err), SL_ERR_UNAUTHENTICATED);
    }
    const char *const others[] = { "", ".", "alice", "alice.", ".00", "alice.00" };
    for (size_t i = 0; i < SL_COUNT(others); i++)
        SL_CHECK_STATUS(sl_tokens_check(&tokens, others[i], 0, &found, err),
                        SL_ERR_UNAUTHENTICATED);
    snprintf(text, sizeof text, "%s0", good);
    SL_CHECK_STATUS(sl_tokens_check(&tokens, text, 0, &found, err), SL_ERR_UNAUTHENTICATED);
    SL_CHECK_OK(sl_tokens_check(&tokens, good, 0, &found, err));
    sl_tokens_fini(&tokens);
}

SL_TEST(a_wrong_file_of_tokens_names_the_line)
{
#define SALT "00112233445566778899aabbccddeeff"
#define HASH SALT SALT
    static const char *const wrong[] = {
        "# fine\n\nalice user never " SALT "\n",
        "#\n\nal/ice user never " SALT " " HASH "\n",
        "#\n\nalice owner never " SALT " " HASH "\n",
        "#\n\nalice user -1 " SALT " " HASH "\n",
        "#\n\nalice user 99999999999999999999 " SALT " " HASH "\n",
        "#\n\nalice user never " SALT "0 " HASH "\n",
        "#\n\nalice user never " SALT " " SALT "\n",
        "#\n\nalice user never " SALT " " HASH " more\n",
        "a user 5 " SALT " " HASH "\nb user 5 " SALT " " HASH "\na user never " SALT " " HASH "\n",
    };
    sl_tokens tokens;

    make_path("tokens");
    for (size_t i = 0; i < SL_COUNT(wrong); i++) {
        write_text(wrong[i]);
        SL_CHECK_STATUS(sl_tokens_load(&tokens, path, err), SL_ERR_DATA);
        SL_CHECK(strstr(err->message, "line 3"));
    }
    unlink(path);
    SL_CHECK_STATUS(sl_tokens_load(&tokens, path, err), SL_ERR_NOT_FOUND);
}

/* --- rates --- */

SL_TEST(requests_above_the_rate_are_refused)
{
    sl_tokens none = { .count = 0 };
    sl_access *access = NULL;
    const sl_peer alice = { .identity = "cert:alice" }, bob = { .identity = "cert:bob" };
    int64_t now_ns = 1000 * SL_NS_PER_S, retry_ns = 0;

    SL_CHECK_OK(sl_access_create(&access, &none, (sl_access_rate){ 10, 3 }, NULL, err));
    for (int i = 0; i < 3; i++)
        SL_CHECK_OK(sl_access_admit(access, &alice, now_ns, &retry_ns, err));
    SL_CHECK_STATUS(sl_access_admit(access, &alice, now_ns, &retry_ns, err), SL_ERR_BUSY);
    SL_CHECK(retry_ns > 99 * SL_NS_PER_MS && retry_ns < 101 * SL_NS_PER_MS);
    SL_CHECK_OK(sl_access_admit(access, &bob, now_ns, &retry_ns, err));
    SL_CHECK_STATUS(sl_access_admit(access, &alice, now_ns + retry_ns - 1000, &retry_ns, err),
                    SL_ERR_BUSY);
    now_ns += 101 * SL_NS_PER_MS;
    SL_CHECK_OK(sl_access_admit(access, &alice, now_ns, &retry_ns, err));
    now_ns += 3600 * SL_NS_PER_S; /* no more than the burst is saved */
    for (int i = 0; i < 3; i++)
        SL_CHECK_OK(sl_access_admit(access, &alice, now_ns, &retry_ns, err));
    SL_CHECK_STATUS(sl_access_admit(access, &alice, now_ns, &retry_ns, err), SL_ERR_BUSY);
    SL_CHECK(sl_access_take(access, &none, (sl_access_rate){ 0, 1 }));
    for (int i = 0; i < 100; i++)
        SL_CHECK_OK(sl_access_admit(access, &alice, now_ns, &retry_ns, err));
    SL_CHECK(!sl_access_take(access, &none, (sl_access_rate){ 0, 1 }));
    sl_access_destroy(access);
}

SL_TEST(any_number_of_identities_has_room)
{
    sl_tokens none = { .count = 0 };
    sl_access *access = NULL;
    int64_t retry_ns = 0;

    SL_CHECK_OK(sl_access_create(&access, &none, (sl_access_rate){ 1, 1 }, NULL, err));
    for (int i = 0; i < 100000; i++) {
        sl_peer peer = { .role = SL_ROLE_NONE };
        snprintf(peer.identity, sizeof peer.identity, "tcp:[fd00::%x]", i);
        SL_CHECK_OK(sl_access_admit(access, &peer, SL_NS_PER_S + i, &retry_ns, err));
    }
    sl_access_destroy(access);
}

/* --- the audit log --- */

SL_TEST(audit_lines_are_json_whatever_is_in_them)
{
    sl_audit *audit = NULL;
    char text[16384], reason[8000];

    make_path("audit");
    SL_CHECK_OK(sl_audit_open(&audit, path, err));
    sl_audit_write(audit, &(sl_audit_entry){ .identity = "cert:\"a\\\n\x01",
                                             .role = SL_ROLE_USER,
                                             .address = "tcp:10.0.0.7:1",
                                             .method = "M",
                                             .result = "OK",
                                             .reason = "caf\xc3\xa9 \xff" });
    memset(reason, '\\', sizeof reason - 1);
    reason[sizeof reason - 1] = '\0';
    sl_audit_write(audit, &(sl_audit_entry){ .address = "a", .method = "M", .result = "OK",
                                             .reason = reason });
    read_text(text, sizeof text);
    SL_CHECK(strstr(text, "\"identity\":\"cert:\\\"a\\\\\\u000a\\u0001\",\"role\":\"user\""));
    SL_CHECK(strstr(text, "\"reason\":\"caf\\u00c3\\u00a9 \\u00ff\"}\n"));
    const size_t length = strlen(text);
    SL_CHECK(length > 4000 && strcmp(text + length - 4, "\\\"}\n") == 0);
    sl_audit_close(audit);
    unlink(path);
}

SL_TEST(refusals_do_not_fill_the_disk)
{
    sl_audit *audit = NULL;
    static char text[200000];
    int lines = 0, admins = 0;
    const sl_audit_entry refusal = { .address = "a", .method = "TLS", .result = "NO",
                                     .refusal = true };
    const sl_audit_entry admin = { .address = "a", .method = "Drain", .result = "OK" };

    make_path("audit");
    SL_CHECK_OK(sl_audit_open(&audit, path, err));
    for (int i = 0; i < 500; i++) {
        sl_audit_write(audit, &refusal);
        if (i % 100 == 0)
            sl_audit_write(audit, &admin);
    }
    read_text(text, sizeof text);
    for (const char *at = text; (at = strchr(at, '\n')); at++)
        lines++;
    for (const char *at = text; (at = strstr(at, "Drain")); at++)
        admins++;
    /* A second may have ended in between. */
    SL_CHECK(lines >= SL_AUDIT_REFUSALS + 5 && lines <= 2 * SL_AUDIT_REFUSALS + 5 && admins == 5);
    SL_CHECK(strstr(text, "\"unwritten\":"));
    sl_audit_close(audit);
    unlink(path);
    rmdir(dir);
}

SL_TEST_MAIN(SL_RUN(a_token_is_known_by_its_hash), SL_RUN(other_texts_are_no_tokens),
             SL_RUN(a_wrong_file_of_tokens_names_the_line),
             SL_RUN(requests_above_the_rate_are_refused),
             SL_RUN(any_number_of_identities_has_room),
             SL_RUN(audit_lines_are_json_whatever_is_in_them),
             SL_RUN(refusals_do_not_fill_the_disk))
