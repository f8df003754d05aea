#include "base/test.h"
#include "engine/text/clean.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_check.h"

#include <cjson/cJSON.h>

#include <string.h>
#include <unistd.h>

enum { FILE_MAX = 1 << 20, IDS_MAX = 512 };

typedef struct {
    char *bytes;
    size_t length;
} file_bytes;

static file_bytes read_all(const char *path)
{
    file_bytes got = { .bytes = calloc(1, FILE_MAX) };
    FILE *file = fopen(path, "rb");

    if (!file || !got.bytes)
        fail_msg("could not read %s", path);
    got.length = fread(got.bytes, 1, FILE_MAX - 1, file);
    SL_CHECK(got.length > 0 && got.length < FILE_MAX - 1);
    fclose(file);
    return got;
}

/* A file of the test's own; unlink_temp removes it. */
static const char *temp_path(void)
{
    static char path[64];

    snprintf(path, sizeof path, "/tmp/sluice_tokenizer_%ld.model", (long)getpid());
    return path;
}

static void write_all(const char *path, const char *bytes, size_t length)
{
    FILE *file = fopen(path, "wb");

    SL_CHECK(file != NULL);
    SL_CHECK(fwrite(bytes, 1, length, file) == length);
    SL_CHECK(fclose(file) == 0);
}

static void check_ids(const char *text, const int32_t *got, int count, const cJSON *want)
{
    int i = 0;
    const cJSON *item = NULL;

    if (count != cJSON_GetArraySize(want))
        fail_msg("\"%s\": %d ids, want %d", text, count, cJSON_GetArraySize(want));
    cJSON_ArrayForEach(item, want)
    {
        if (got[i] != item->valueint)
            fail_msg("\"%s\": id %d is %d, want %d", text, i, got[i], item->valueint);
        i++;
    }
}

static void check_golden_case(const sl_tokenizer *tokenizer, const cJSON *item)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    const char *text = cJSON_GetObjectItem(item, "text")->valuestring;
    int32_t ids[IDS_MAX];
    int count = 0;
    char *cleaned = NULL;

    SL_CHECK_OK(sl_clean_prompt(&cleaned, text, strlen(text), err));
    SL_CHECK_OK(
        sl_tokenizer_encode(tokenizer, cleaned, strlen(cleaned), ids, IDS_MAX, &count, err));
    check_ids(text, ids, count, cJSON_GetObjectItem(item, "ids"));
    SL_CHECK_OK(sl_tokenizer_encode_raw(tokenizer, text, strlen(text), ids, IDS_MAX, &count, err));
    check_ids(text, ids, count, cJSON_GetObjectItem(item, "ids_without_cleaning"));
    free(cleaned);
}

static void check_golden_file(const char *shared, const char *name)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    char path[1200];
    sl_tokenizer *tokenizer = NULL;
    const cJSON *item = NULL;
    int count = 0;

    snprintf(path, sizeof path, "%s/golden/%s.json", shared, name);
    file_bytes json = read_all(path);
    cJSON *root = cJSON_Parse(json.bytes);
    SL_CHECK(root != NULL);
    snprintf(path, sizeof path, "%s/golden/%s.model", shared, name);
    SL_CHECK_OK(sl_tokenizer_open(&tokenizer, path, err));
    SL_CHECK(sl_tokenizer_vocab_size(tokenizer) == 512);
    SL_CHECK(sl_tokenizer_eos_id(tokenizer) == 1);
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(root, "cases"))
    {
        check_golden_case(tokenizer, item);
        count++;
    }
    SL_CHECK(count >= 20);
    sl_tokenizer_close(tokenizer);
    cJSON_Delete(root);
    free(json.bytes);
}

SL_TEST(golden_ids)
{
    const char *shared = sl_test_shared_dir();

    if (!shared)
        SL_SKIP("no ../shared");
    check_golden_file(shared, "tokenizer");
    check_golden_file(shared, "tokenizer_bytes");
}

SL_TEST(synthetic_is_deterministic)
{
    SL_CHECK_OK(sl_tokenizer_write_synthetic(temp_path(), 2000, err));
    file_bytes a = read_all(temp_path());
    SL_CHECK_OK(sl_tokenizer_write_synthetic(temp_path(), 2000, err));
    file_bytes b = read_all(temp_path());
    SL_CHECK(a.length == b.length && memcmp(a.bytes, b.bytes, a.length) == 0);
    free(a.bytes);
    free(b.bytes);
    unlink(temp_path());
}

SL_TEST(synthetic_encodes)
{
    /* "▁a", "▁cat", "." of the word list, then é as its two bytes. */
    static const int32_t want[] = { 355, 385, 274, 4 + 0xc3, 4 + 0xa9, 1 };
    const char *text = "a cat.\xc3\xa9";
    sl_tokenizer *tokenizer = NULL;
    int32_t ids[IDS_MAX];
    int count = 0;

    SL_CHECK_OK(sl_tokenizer_write_synthetic(temp_path(), 512, err));
    SL_CHECK_OK(sl_tokenizer_open(&tokenizer, temp_path(), err));
    unlink(temp_path());
    SL_CHECK(sl_tokenizer_vocab_size(tokenizer) == 512);
    SL_CHECK(sl_tokenizer_eos_id(tokenizer) == 1);
    SL_CHECK_OK(sl_tokenizer_encode(tokenizer, text, strlen(text), ids, IDS_MAX, &count, err));
    SL_CHECK(count == (int)SL_COUNT(want));
    for (int i = 0; i < count; i++)
        SL_CHECK(ids[i] == want[i]);

    SL_CHECK_OK(sl_tokenizer_encode(tokenizer, "", 0, ids, IDS_MAX, &count, err));
    SL_CHECK(count == 1 && ids[0] == 1);
    sl_tokenizer_close(tokenizer);
}

SL_TEST(long_texts_are_cut)
{
    sl_tokenizer *tokenizer = NULL;
    int32_t ids[IDS_MAX];
    int count = 0;
    char text[4000];

    memset(text, '#', sizeof text);
    SL_CHECK_OK(sl_tokenizer_write_synthetic(temp_path(), 512, err));
    SL_CHECK_OK(sl_tokenizer_open(&tokenizer, temp_path(), err));
    unlink(temp_path());
    SL_CHECK_OK(sl_tokenizer_encode(tokenizer, text, sizeof text, ids, IDS_MAX, &count, err));
    SL_CHECK(count == IDS_MAX && ids[IDS_MAX - 1] == 1 && ids[IDS_MAX - 2] != 1);
    SL_CHECK_OK(sl_tokenizer_encode(tokenizer, text, sizeof text, ids, 1, &count, err));
    SL_CHECK(count == 1 && ids[0] == 1);
    SL_CHECK_STATUS(sl_tokenizer_encode(tokenizer, text, sizeof text, ids, 0, &count, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(
        sl_tokenizer_encode_raw(tokenizer, text, sizeof text, ids, IDS_MAX, &count, err),
        SL_ERR_TOO_LARGE);
    sl_tokenizer_close(tokenizer);
}

SL_TEST(synthetic_sizes_are_checked)
{
    sl_tokenizer *tokenizer = NULL;

    SL_CHECK_STATUS(sl_tokenizer_write_synthetic(temp_path(), 511, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_tokenizer_write_synthetic(temp_path(), 262145, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_tokenizer_write_synthetic("/nonexistent/x", 512, err), SL_ERR_NOT_FOUND);
    SL_CHECK_STATUS(sl_tokenizer_write_synthetic("/dev/full", 512, err), SL_ERR_IO);
    SL_CHECK_OK(sl_tokenizer_write_synthetic(temp_path(), 30000, err));
    SL_CHECK_OK(sl_tokenizer_open(&tokenizer, temp_path(), err));
    SL_CHECK(sl_tokenizer_vocab_size(tokenizer) == 30000);
    sl_tokenizer_close(tokenizer);
    unlink(temp_path());
}

static void check_not_opened(const char *bytes, size_t length)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    sl_tokenizer *tokenizer = NULL;

    write_all(temp_path(), bytes, length);
    SL_CHECK_STATUS(sl_tokenizer_open(&tokenizer, temp_path(), err), SL_ERR_DATA);
    SL_CHECK(tokenizer == NULL);
    SL_CHECK(strstr(err->message, temp_path()) != NULL);
    unlink(temp_path());
}

SL_TEST(bad_files_are_refused)
{
    /* One piece "a" and nothing else; a BPE model; a piece without text; a
     * piece that is not UTF-8; a score that is not a number. */
    static const char one[] = "\x0a\x03\x0a\x01"
                              "a";
    static const char bpe[] = "\x0a\x03\x0a\x01"
                              "a\x12\x02\x18\x02";
    static const char nameless[] = "\x0a\x02\x18\x01";
    static const char not_text[] = "\x0a\x03\x0a\x01\xff";
    static const char not_finite[] = "\x0a\x08\x0a\x01"
                                     "a\x15\x00\x00\xc0\x7f";
    sl_tokenizer *tokenizer = NULL;

    SL_CHECK_STATUS(sl_tokenizer_open(&tokenizer, "/nonexistent/x.model", err), SL_ERR_NOT_FOUND);
    SL_CHECK_STATUS(sl_tokenizer_open(&tokenizer, "/tmp", err), SL_ERR_IO);
    check_not_opened("", 0);
    check_not_opened("hello, this is text\n", 20);
    check_not_opened(one, sizeof one - 1);
    check_not_opened(bpe, sizeof bpe - 1);
    check_not_opened(nameless, sizeof nameless - 1);
    check_not_opened(not_text, sizeof not_text - 1);
    check_not_opened(not_finite, sizeof not_finite - 1);
}

/* One piece, then a normaliser whose map is `map`. */
static void check_map(const uint8_t *map, size_t length, sl_status want)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    uint8_t bytes[2048] = { 0x0a, 0x03, 0x0a, 0x01, 'a', 0x1a };
    size_t n = 6;

    const size_t inner = length + 3;
    bytes[n++] = (uint8_t)(inner | 0x80);
    bytes[n++] = (uint8_t)(inner >> 7);
    bytes[n++] = 0x12;
    bytes[n++] = (uint8_t)(length | 0x80);
    bytes[n++] = (uint8_t)(length >> 7);
    memcpy(bytes + n, map, length);
    SL_CHECK_STATUS(sl_tokenizer_check(bytes, n + length, err), want);
}

/* A trie of 256 units, the first without children, and the string "x". */
SL_TEST(normaliser_maps_stay_inside)
{
    enum { UNITS = 256, LENGTH = 4 + 4 * UNITS + 2 };
    uint8_t good[LENGTH] = { 0x00, 0x04 };
    uint8_t map[LENGTH];

    good[LENGTH - 2] = 'x';
    check_map(good, LENGTH, SL_OK);
    check_map(good, 3, SL_ERR_DATA);

    memcpy(map, good, LENGTH);
    map[LENGTH - 1] = 'y'; /* no end */
    check_map(map, LENGTH, SL_ERR_DATA);
    memcpy(map, good, LENGTH);
    map[0] = 0x04; /* one unit more than whole blocks: its children are missing */
    check_map(map, LENGTH, SL_ERR_DATA);
    memcpy(map, good, LENGTH);
    map[1] = 0x08; /* longer than the map */
    check_map(map, LENGTH, SL_ERR_DATA);
    memcpy(map, good, LENGTH);
    map[4 + 4 * 7 + 2] = 0x04; /* unit 7: offset 256 */
    check_map(map, LENGTH, SL_ERR_DATA);
    memcpy(map, good, LENGTH);
    map[4 + 4 * 7 + 3] = 0x80; /* unit 7: value 2, the strings have 2 bytes */
    map[4 + 4 * 7] = 0x02;
    check_map(map, LENGTH, SL_ERR_DATA);
    map[4 + 4 * 7] = 0x01;
    check_map(map, LENGTH, SL_OK);
}

SL_TEST(cut_files_are_refused)
{
    SL_CHECK_OK(sl_tokenizer_write_synthetic(temp_path(), 512, err));
    file_bytes model = read_all(temp_path());

    /* The normaliser's notes at the end are optional: a cut there may be a
     * model; it must have lost the trainer's notes to be refused. */
    for (size_t length = 0; length + 160 < model.length; length += 61)
        check_not_opened(model.bytes, length);
    free(model.bytes);
}

/* Damaged models may still open; opening and encoding must return. */
static void damage_and_use(file_bytes model, uint32_t seed)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    const char *text = "A cat\xef\xbd\xb6 \xe2\x84\xa2 caf\xc3\xa9.";
    char *bytes = malloc(model.length);
    sl_tokenizer *tokenizer = NULL;
    int32_t ids[IDS_MAX];
    int count = 0;

    SL_CHECK(bytes != NULL);
    memcpy(bytes, model.bytes, model.length);
    for (int i = 0; i < 1 + (int)(seed % 8); i++) {
        seed = seed * 1664525u + 1013904223u;
        const size_t at = (size_t)(seed >> 8) % model.length;
        seed = seed * 1664525u + 1013904223u;
        bytes[at] = (char)(seed >> 24);
    }
    write_all(temp_path(), bytes, model.length);
    if (sl_tokenizer_open(&tokenizer, temp_path(), err) == SL_OK)
        SL_CHECK_OK(sl_tokenizer_encode(tokenizer, text, strlen(text), ids, IDS_MAX, &count, err));
    sl_tokenizer_close(tokenizer);
    unlink(temp_path());
    free(bytes);
}

SL_TEST(damaged_files_end_in_a_status)
{
    const char *shared = sl_test_shared_dir();
    char path[1200];

    SL_CHECK_OK(sl_tokenizer_write_synthetic(temp_path(), 512, err));
    file_bytes synthetic = read_all(temp_path());
    for (uint32_t seed = 1; seed <= 200; seed++)
        damage_and_use(synthetic, seed);
    free(synthetic.bytes);
    if (!shared)
        SL_SKIP("no ../shared: no model with a compiled normaliser");
    snprintf(path, sizeof path, "%s/golden/tokenizer_bytes.model", shared);
    file_bytes golden = read_all(path);
    for (uint32_t seed = 1; seed <= 60; seed++)
        damage_and_use(golden, seed);
    free(golden.bytes);
}

SL_TEST_MAIN(SL_RUN(golden_ids), SL_RUN(synthetic_is_deterministic), SL_RUN(synthetic_encodes),
             SL_RUN(long_texts_are_cut), SL_RUN(synthetic_sizes_are_checked),
             SL_RUN(bad_files_are_refused), SL_RUN(normaliser_maps_stay_inside),
             SL_RUN(cut_files_are_refused), SL_RUN(damaged_files_end_in_a_status))
