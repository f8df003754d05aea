#include "base/test.h"
#include "engine/text/clean.h"

#include <cjson/cJSON.h>

#include <string.h>

static void check_cleaned(const char *text, const char *want)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    char *got = NULL;

    SL_CHECK_OK(sl_clean_prompt(&got, text, strlen(text), err));
    if (strcmp(got, want) != 0)
        fail_msg("\"%s\": got \"%s\", want \"%s\"", text, got, want);
    free(got);
}

static void check_refused(const char *text, size_t length)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    char *got = NULL;

    SL_CHECK_STATUS(sl_clean_prompt(&got, text, length, err), SL_ERR_INVALID);
    SL_CHECK(got == NULL);
}

typedef struct {
    const char *text;
    const char *want;
} sample;

static void check_samples(const sample *samples, size_t count)
{
    for (size_t i = 0; i < count; i++)
        check_cleaned(samples[i].text, samples[i].want);
}

SL_TEST(ascii_keeps_all_but_white_space)
{
    static const sample samples[] = {
        { "", "" },
        { "   ", "" },
        { "A cat.", "A cat." },
        { " a\t\tb\n\n c\r\nd ", "a b c d" },
        { "AT&T & co; 5 > 3 'x' \"y\" [z] #1 100%", "AT&T & co; 5 > 3 'x' \"y\" [z] #1 100%" },
    };
    check_samples(samples, SL_COUNT(samples));
}

SL_TEST(unicode_white_space_collapses)
{
    static const sample samples[] = {
        { "a\xc2\xa0"
          "b\xe2\x80\x83"
          "c\xe3\x80\x80"
          "d\xe2\x80\xa8"
          "e",
          "a b c d e" },
        { "a\xe1\x9a\x80"
          "b\xe2\x80\xaf"
          "c\xe2\x81\x9f"
          "d",
          "a b c d" },
        { "zero\xe2\x80\x8bwidth", "zero\xe2\x80\x8bwidth" },
    };
    check_samples(samples, SL_COUNT(samples));
}

/* Expected values: html.unescape and ftfy.fix_text of Python. */
SL_TEST(html_references)
{
    static const sample samples[] = {
        { "&lt;b&gt; &amp;amp; x", "<b> & x" },
        { "&amp;amp;amp;amp;lt;", "<" },
        { "a &lt b", "a < b" },
        { "&notit; &notin; &not", "\xc2\xacit; \xe2\x88\x89 \xc2\xac" },
        { "&hellip; &Eacute; &EACUTE;", "\xe2\x80\xa6 \xc3\x89 \xc3\x89" },
        { "STRA&SZLIG;E &nTILDE;", "STRASSE &nTILDE;" },
        { "&#65;&#x42;&#X43;&#68", "ABCD" },
        { "&#0;&#xD800;&#1114112;&#99999999999999999999;",
          "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
        { "&#x80;&#150;", "\xe2\x82\xac\xe2\x80\x93" },
        { "x&#1;&#xFFFE;y", "xy" },
        { "&#; &#x; &; & &unknown; &#59;", "&#; &#x; &; & &unknown; ;" },
        { "&NotEqualTilde;", "\xe2\x89\x82\xcc\xb8" },
        { "< &amp;amp;amp;lt;", "< &amp;lt;" }, /* only the two plain passes */
    };
    check_samples(samples, SL_COUNT(samples));
}

SL_TEST(characters)
{
    static const sample samples[] = {
        { "\xe2\x80\x9c"
          "a\xe2\x80\x9d \xe2\x80\x98"
          "b\xe2\x80\x99 \xca\xbc",
          "\"a\" 'b' '" },
        { "\xef\xbc\xa1\xef\xbc\x91\xe3\x80\x80\xef\xbd\x9e", "A1 ~" },
        { "\xef\xbd\xb6\xef\xbe\x9e", "\xe3\x82\xac" }, /* half-width katakana and mark */
        { "\xef\xbf\xa3x", "\xcc\x84x" },               /* full-width macron: space and mark */
        { "\xef\xac\x83 \xc4\xb2 \xc5\x89", "ffi IJ 'n" },
        { "cafe\xcc\x81", "caf\xc3\xa9" },
        { "q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87" }, /* canonical order */
        { "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c" },
        { "\x1b[31;1mred\x1b[0m \x1b[x", "red" },
        { "a\x1b[!b\x07"
          "c\x7f"
          "d\xef\xbb\xbf"
          "e\xef\xbf\xbc",
          "a[!bcde" },
        { "x\xc2\x85y \xc2\x93z\xc2\x94", "x\xe2\x80\xa6y \"z\"" }, /* C1 as windows-1252 */
        { "tag \xf3\xa0\x81\xa7", "tag \xf3\xa0\x81\xa7" },
    };
    check_samples(samples, SL_COUNT(samples));
}

SL_TEST(garbled_utf8)
{
    static const sample samples[] = {
        { "caf\xc3\x83\xc2\xa9", "caf\xc3\xa9" },
        { "caf\xc3\x83\xc6\x92\xc3\x82\xc2\xa9", "caf\xc3\xa9" },             /* twice */
        { "it\xc3\xa2\xe2\x82\xac\xe2\x84\xa2s", "it's" },                    /* windows-1252 */
        { "it\xc3\xa2\xc2\x80\xc2\x99s", "it's" },                            /* latin-1 */
        { "\xe2\x9c\x93 na\xc3\x83\xc2\xafve", "\xe2\x9c\x93 na\xc3\xafve" }, /* a part only */
        { "\xc3\xb0\xc5\xb8\xcb\x9c\xe2\x82\xac", "\xf0\x9f\x98\x80" },       /* emoji */
        /* Ordinary text stays. */
        { "caf\xc3\xa9 na\xc3\xafve \xc3\x86r\xc3\xb8sk\xc3\xb8"
          "bing",
          "caf\xc3\xa9 na\xc3\xafve \xc3\x86r\xc3\xb8sk\xc3\xb8"
          "bing" },
        { "CAF\xc3\x89\xe2\x80\xa6 IRM\xc3\x83\xe2\x80\xa6",
          "CAF\xc3\x89\xe2\x80\xa6 IRM\xc3\x83\xe2\x80\xa6" },
        { "2\xc3\x97\xc2\xbd and 5\xc2\xb0", "2\xc3\x97\xc2\xbd and 5\xc2\xb0" },
    };
    check_samples(samples, SL_COUNT(samples));
}

SL_TEST(what_is_not_text_is_refused)
{
    static const char *const bad[] = {
        "\xff", "\x80", "\xc0\x80", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe0\x80\x80",
    };

    for (size_t i = 0; i < SL_COUNT(bad); i++)
        check_refused(bad[i], strlen(bad[i]));
    check_refused("a\0b", 3);
}

SL_TEST(length_is_bounded)
{
    char *text = malloc(SL_PROMPT_MAX_BYTES + 1);
    char *got = NULL;

    SL_CHECK(text != NULL);
    memset(text, 'x', SL_PROMPT_MAX_BYTES + 1);
    check_refused(text, SL_PROMPT_MAX_BYTES + 1);
    SL_CHECK_OK(sl_clean_prompt(&got, text, SL_PROMPT_MAX_BYTES, err));
    SL_CHECK(strlen(got) == SL_PROMPT_MAX_BYTES);
    free(got);
    free(text);
}

/* As much of head, then unit again and again, as a prompt may hold. */
static void check_ends(const char *head, const char *unit)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    const size_t size = strlen(unit);
    size_t length = strlen(head);
    char *text = malloc(SL_PROMPT_MAX_BYTES);
    char *got = NULL;

    SL_CHECK(text != NULL);
    memcpy(text, head, length);
    for (; length + size <= SL_PROMPT_MAX_BYTES; length += size)
        memcpy(text + length, unit, size);
    SL_CHECK_OK(sl_clean_prompt(&got, text, length, err));
    free(got);
    free(text);
}

SL_TEST(hostile_prompts_end)
{
    check_ends("&", "amp;");
    check_ends("", "&");
    check_ends("", "&#");
    check_ends("&#x", "9");
    check_ends("&", "A");
    check_ends("", "&nGt;");
    check_ends("\x1b[", ";");
    check_ends("", "\x1b[");
    check_ends("", "\n");
    check_ends("a", "\xcc\x81\xcc\xa3");
    check_ends("", "\xef\xac\x83");
    check_ends("", "\xc3\x83\xc6\x92");
    check_ends("\xe2\x9c\x93", "\xc3\x83\xc2\xa9");
    check_ends("", "\xf0\x9d\x85\xa0"); /* one character that NFC makes three of */
}

static char *read_all(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 20);

    if (!file || !text)
        fail_msg("could not read %s", path);
    const size_t got = fread(text, 1, (1 << 20) - 1, file);
    SL_CHECK(got > 0 && got < (1 << 20) - 1);
    fclose(file);
    return text;
}

SL_TEST(golden_texts)
{
    static const char *const names[] = { "tokenizer", "tokenizer_bytes" };
    const char *shared = sl_test_shared_dir();
    int count = 0;

    if (!shared)
        SL_SKIP("no ../shared");
    for (size_t i = 0; i < SL_COUNT(names); i++) {
        char path[1200];
        snprintf(path, sizeof path, "%s/golden/%s.json", shared, names[i]);
        char *text = read_all(path);
        cJSON *root = cJSON_Parse(text);
        const cJSON *item = NULL;
        SL_CHECK(root != NULL);
        cJSON_ArrayForEach(item, cJSON_GetObjectItem(root, "cases"))
        {
            check_cleaned(cJSON_GetObjectItem(item, "text")->valuestring,
                          cJSON_GetObjectItem(item, "cleaned")->valuestring);
            count++;
        }
        cJSON_Delete(root);
        free(text);
    }
    SL_CHECK(count >= 40);
}

SL_TEST_MAIN(SL_RUN(ascii_keeps_all_but_white_space), SL_RUN(unicode_white_space_collapses),
             SL_RUN(html_references), SL_RUN(characters), SL_RUN(garbled_utf8),
             SL_RUN(what_is_not_text_is_refused), SL_RUN(length_is_bounded),
             SL_RUN(hostile_prompts_end), SL_RUN(golden_texts))
