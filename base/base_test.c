#include "base/arena.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/size.h"
#include "base/status.h"
#include "base/test.h"
#include "base/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int order[4];
static int order_count;

static void note(void *arg)
{
    order[order_count++] = *(int *)arg;
}

SL_TEST(status_messages_carry_context)
{
    SL_CHECK(sl_fail(err, SL_ERR_INVALID, "bad %s %d", "value", 7) == SL_ERR_INVALID);
    SL_CHECK(sl_error_prefix(err, "could not load \"%s\"", "m") == SL_ERR_INVALID);
    SL_CHECK(strcmp(err->message, "could not load \"m\": bad value 7") == 0);
    errno = ENOENT;
    SL_CHECK(sl_fail_errno(err, "could not open \"%s\"", "x") == SL_ERR_NOT_FOUND);
    SL_CHECK(strstr(err->message, "No such file") != NULL);
    SL_CHECK(sl_status_grpc_code(SL_ERR_TOO_LARGE) == 8);
    SL_CHECK(strcmp(sl_grpc_code_name(8), "RESOURCE_EXHAUSTED") == 0);
    SL_CHECK(strcmp(sl_grpc_code_name(99), "UNKNOWN") == 0);
    SL_CHECK(sl_fail(NULL, SL_ERR_IO, "nobody listens") == SL_ERR_IO);
}

SL_TEST(status_message_is_cut_not_overrun)
{
    char text[3000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    sl_fail(err, SL_ERR_IO, "%s", text);
    sl_error_prefix(err, "%s", text);
    errno = EIO;
    sl_fail_errno(err, "%s", text);
    SL_CHECK(strlen(err->message) == SL_ERROR_MESSAGE_BYTES - 1);
}

SL_TEST(status_message_is_cut_between_characters)
{
    char text[3000];
    for (size_t shift = 0; shift < 4; shift++) {
        size_t n = 0;
        while (n < shift)
            text[n++] = 'a';
        while (n + 3 < sizeof text) {
            memcpy(text + n, "\xe2\x82\xac", 3); /* a euro sign */
            n += 3;
        }
        text[n] = '\0';
        sl_fail(err, SL_ERR_IO, "%s", text);
        const size_t length = strlen(err->message);
        SL_CHECK(length > SL_ERROR_MESSAGE_BYTES - 4 && (length - shift) % 3 == 0);
    }
    sl_fail(err, SL_ERR_IO, "%s", "\x82\x82\x82\x82"); /* never was text: left alone */
    SL_CHECK(strlen(err->message) == 4);
}

SL_TEST(sizes_refuse_overflow)
{
    size_t n = 5;
    int64_t c = 5;
    SL_CHECK(!sl_size_add(SIZE_MAX, 1, &n) && n == 5);
    SL_CHECK(!sl_size_mul(SIZE_MAX / 2, 3, &n) && n == 5);
    SL_CHECK(!sl_size_align(SIZE_MAX - 3, 16, &n) && n == 5);
    SL_CHECK(!sl_count_mul(INT64_MAX, 2, &c) && c == 5);
    SL_CHECK(!sl_count_mul(-1, 2, &c) && c == 5);
    SL_CHECK(sl_size_align(17, 16, &n) && n == 32);
}

SL_TEST(sizes_parse_and_print)
{
    static const struct {
        const char *text;
        size_t want; /* 0: refused */
    } cases[] = {
        { "8GiB", 8 * SL_GIB }, { "512MiB", 512 * SL_MIB }, { "1.5KiB", 1536 },
        { "12GB", 12000000000 }, { "4096", 4096 },          { "7 gib", 7 * SL_GIB },
        { "", 0 },               { "-1GiB", 0 },            { "GiB", 0 },
        { "8XiB", 0 },           { "1e400", 0 },            { "0", 0 },
        { "99999999TiB", 0 },    { "nan", 0 },
        { "0x10", 0 },           { "0x1p3GiB", 0 },         { "1e3", 0 },
        { "1e3KiB", 0 },         { "1.5", 0 },              { "1.", 0 },
        { "1.KiB", 0 },          { "1.5.2GiB", 0 },         { "8 GiB x", 0 },
    };
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        size_t n = 0;
        const bool ok = sl_size_parse(cases[i].text, &n);
        if (ok != (cases[i].want != 0) || n != cases[i].want)
            fail_msg("\"%s\" gave %zu", cases[i].text, n);
    }
    char buf[32];
    SL_CHECK(strcmp(sl_size_format(8 * SL_GIB, buf, sizeof buf), "8.00 GiB") == 0);
    SL_CHECK(strcmp(sl_size_format(12, buf, sizeof buf), "12 B") == 0);
}

SL_TEST(arena_frees_in_reverse_and_keeps_its_limit)
{
    sl_arena *arena = NULL;
    int ids[3] = { 1, 2, 3 };

    SL_CHECK_OK(sl_arena_create(&arena, 100 * 1024, err));
    for (int i = 0; i < 3; i++)
        SL_CHECK_OK(sl_arena_on_end(arena, note, &ids[i], err));
    char *p = sl_arena_alloc(arena, 50000);
    SL_CHECK(p && ((uintptr_t)p & 15) == 0 && p[49999] == 0);
    SL_CHECK(sl_arena_alloc(arena, 60000) == NULL);
    SL_CHECK(sl_arena_alloc(arena, SIZE_MAX - 4) == NULL);
    SL_CHECK(strcmp(sl_arena_printf(arena, "%d-%s", 4, "x"), "4-x") == 0);
    SL_CHECK(strcmp(sl_arena_strdup(arena, "abc"), "abc") == 0);
    order_count = 0;
    sl_arena_destroy(arena);
    SL_CHECK(order_count == 3 && order[0] == 3 && order[1] == 2 && order[2] == 1);
    sl_arena_destroy(NULL);
}

SL_TEST(clock_deadline_is_clamped)
{
    const int64_t now = sl_clock_now_ns();
    SL_CHECK(sl_clock_deadline_ns(INT64_MAX) == INT64_MAX);
    SL_CHECK(sl_clock_deadline_ns(-5) >= now);
    SL_CHECK(sl_clock_now_ns() >= now);
}

SL_TEST(log_quotes_what_would_break_a_line)
{
    char buf[64], small[8];
    SL_CHECK(strcmp(sl_log_quote(buf, sizeof buf, "a \"b\"\n"), "\"a \\\"b\\\"\\x0a\"") == 0);
    SL_CHECK(strlen(sl_log_quote(small, sizeof small, "\n\n\n\n\n")) < sizeof small);
}

SL_TEST(directories_are_made_with_their_parents)
{
    char root[] = "/tmp/sl_base_XXXXXX", path[64], file[64], too_long[5000];
    struct stat st;

    SL_CHECK(mkdtemp(root) != NULL);
    snprintf(path, sizeof path, "%s/a/b/", root);
    SL_CHECK_OK(sl_make_directory(path, 0700, err));
    SL_CHECK_OK(sl_make_directory(path, 0700, err)); /* is there: fine */
    SL_CHECK(stat(path, &st) == 0 && S_ISDIR(st.st_mode));
    snprintf(file, sizeof file, "%s/a/f", root);
    FILE *f = fopen(file, "w");
    SL_CHECK(f && fclose(f) == 0);
    SL_CHECK(sl_make_directory(file, 0700, err) == SL_ERR_EXISTS);
    SL_CHECK(strstr(err->message, file) != NULL);
    SL_CHECK(sl_make_directory("", 0700, err) == SL_ERR_INVALID);
    memset(too_long, 'a', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = '\0';
    SL_CHECK(sl_make_directory(too_long, 0700, err) == SL_ERR_INVALID);
    unlink(file);
    rmdir(path);
    snprintf(path, sizeof path, "%s/a", root);
    rmdir(path);
    rmdir(root);
}

SL_TEST(utf8_is_strict)
{
    static const char *const good[] = { "", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80",
                                        "\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf" };
    static const char *const bad[] = { "\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xe0\x80\x80",
                                       "\xed\xa0\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80",
                                       "\xf5\x80\x80\x80", "\xff", "a\xe2\x82", "\xe2\x28\xa1" };

    for (size_t i = 0; i < SL_COUNT(good); i++)
        SL_CHECK(sl_utf8_valid(good[i]));
    for (size_t i = 0; i < SL_COUNT(bad); i++)
        SL_CHECK(!sl_utf8_valid(bad[i]));
    for (int before = 0; before < 18; before++) { /* plain text is read in eights */
        for (int after = 0; after < 10; after += 9) {
            char text[40];
            for (size_t i = 0; i < SL_COUNT(good); i++) {
                snprintf(text, sizeof text, "%.*s%s%.*s", before, "aaaaaaaaaaaaaaaaaa", good[i],
                         after, "zzzzzzzzz");
                SL_CHECK(sl_utf8_valid(text));
            }
            for (size_t i = 0; i < SL_COUNT(bad); i++) {
                snprintf(text, sizeof text, "%.*s%s%.*s", before, "aaaaaaaaaaaaaaaaaa", bad[i],
                         after, "zzzzzzzzz");
                SL_CHECK(!sl_utf8_valid(text));
            }
        }
    }

    uint32_t c = 7;
    uint8_t bytes[4];
    for (size_t i = 1; i < SL_COUNT(good); i++) {
        const size_t size = sl_utf8_decode((const uint8_t *)good[i], strlen(good[i]), &c);
        SL_CHECK(size == strlen(good[i]) && sl_utf8_encode(c, bytes) == size);
        SL_CHECK(memcmp(bytes, good[i], size) == 0);
    }
    SL_CHECK(sl_utf8_decode((const uint8_t *)"\xe2\x82\xac", 2, &c) == 0); /* cut */
}

SL_TEST_MAIN(SL_RUN(status_messages_carry_context), SL_RUN(status_message_is_cut_not_overrun),
             SL_RUN(status_message_is_cut_between_characters),
             SL_RUN(sizes_refuse_overflow), SL_RUN(sizes_parse_and_print),
             SL_RUN(arena_frees_in_reverse_and_keeps_its_limit), SL_RUN(clock_deadline_is_clamped),
             SL_RUN(log_quotes_what_would_break_a_line),
             SL_RUN(directories_are_made_with_their_parents), SL_RUN(utf8_is_strict))
