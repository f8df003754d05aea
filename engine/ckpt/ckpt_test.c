/* Checkpoint files, good and hostile.  Hostile ones must be refused with a
 * message, whatever they hold; run it under the sanitizers. */
#include "engine/ckpt/ckpt.h"

#include "base/clock.h"
#include "base/test.h"
#include "base/test_alloc.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];
static char path_buf[4][512];

/* A path in the test's own directory; four live at a time. */
static const char *at(const char *name)
{
    static int next;
    char *buf = path_buf[next++ % 4];

    snprintf(buf, sizeof path_buf[0], "%s/%s", dir, name);
    return buf;
}

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "ckpt_test.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    DIR *d = opendir(dir);
    struct dirent *entry;

    (void)state;
    while (d && (entry = readdir(d)))
        if (entry->d_name[0] != '.')
            unlink(at(entry->d_name));
    if (d)
        closedir(d);
    return rmdir(dir);
}

/* Unlinks first: some file systems flush a file that is cut and rewritten. */
static void write_bytes(const char *path, const void *bytes, size_t size)
{
    unlink(path);
    FILE *f = fopen(path, "wb");

    SL_CHECK(f && fwrite(bytes, 1, size, f) == size && fclose(f) == 0);
}

/* A safetensors file out of its header text and so many bytes 0, 1, 2, ... */
static void write_st(const char *path, const char *header, size_t data_bytes)
{
    const uint64_t n = strlen(header);
    FILE *f = fopen(path, "wb");

    SL_CHECK(f && fwrite(&n, 8, 1, f) == 1 && fwrite(header, 1, n, f) == n);
    for (size_t i = 0; i < data_bytes; i++)
        fputc((int)(i & 0xff), f);
    SL_CHECK(fclose(f) == 0);
}

static uint64_t fnv1a(const void *bytes, size_t size)
{
    const unsigned char *s = bytes;
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < size; i++)
        h = (h ^ s[i]) * 0x100000001b3u;
    return h;
}

static void check_golden_tensor(const sl_ckpt *ckpt, const cJSON *want)
{
    const sl_ckpt_tensor *t = sl_ckpt_find(ckpt, want->string);
    const cJSON *shape = cJSON_GetObjectItem(want, "shape");
    const char *hash = cJSON_GetObjectItem(want, "fnv1a64")->valuestring;

    SL_CHECK(t != NULL);
    SL_CHECK(strcmp(sl_dtype_name(t->tensor.dtype),
                    cJSON_GetObjectItem(want, "dtype")->valuestring) == 0);
    SL_CHECK(t->tensor.rank == cJSON_GetArraySize(shape));
    for (int i = 0; i < t->tensor.rank; i++)
        SL_CHECK((double)t->tensor.dim[i] == cJSON_GetArrayItem(shape, i)->valuedouble);
    SL_CHECK(t->size_bytes == sl_tensor_bytes(&t->tensor));
    SL_CHECK(t->size_bytes * 2 == strlen(cJSON_GetObjectItem(want, "bytes_hex")->valuestring));
    SL_CHECK(fnv1a(t->tensor.data, t->size_bytes) == strtoull(hash, NULL, 16));
}

SL_TEST(golden_containers)
{
    char path[1200];
    int loaded = 0, refused = 0;
    const cJSON *file, *tensor;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    snprintf(path, sizeof path, "%s/golden/loader/loader.json", sl_test_shared_dir());
    FILE *f = fopen(path, "rb");
    static char text[1 << 20];
    SL_CHECK(f && fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    cJSON *json = cJSON_Parse(text);
    SL_CHECK(json != NULL);

    cJSON_ArrayForEach(file, cJSON_GetObjectItem(json, "files"))
    {
        const char *expect = cJSON_GetObjectItem(file, "expect")->valuestring;
        sl_ckpt *ckpt = NULL;

        if (strncmp(file->string, "st_", 3) != 0)
            continue;
        snprintf(path, sizeof path, "%s/golden/loader/%s", sl_test_shared_dir(), file->string);
        if (strcmp(expect, "refuse") == 0) {
            const sl_status status = sl_ckpt_open(&ckpt, path, err);
            if (status != SL_ERR_DATA || !strstr(err->message, file->string))
                fail_msg("%s: %s: %s", file->string, sl_status_text(status), err->message);
            SL_CHECK(ckpt == NULL);
            sl_error_clear(err);
            refused++;
            continue;
        }
        SL_CHECK(strcmp(expect, "load") == 0);
        SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
        cJSON_ArrayForEach(tensor, cJSON_GetObjectItem(file, "tensors"))
            check_golden_tensor(ckpt, tensor);
        SL_CHECK(sl_ckpt_count(ckpt) == cJSON_GetArraySize(cJSON_GetObjectItem(file, "tensors")));
        sl_ckpt_close(ckpt);
        loaded++;
    }
    cJSON_Delete(json);
    SL_CHECK(loaded == 3 && refused == 16);
}

#define W "\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

/* Each must be refused, and the message must contain `why`. */
static const struct {
    const char *header, *why;
} hostile[] = {
    { "", "expected an object" },
    { "[]", "expected an object" },
    { "{", "expected a string" },
    { "{" W, "expected ',' or '}'" },
    { "{" W ",}", "expected a string" },
    { "{" W "}x", "unexpected text" },
    { "{" W "}{}", "unexpected text" },
    { "{" W "," W "}", "" },
    { "{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "empty name" },
    { "{\"net.\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "empty name" },
    { "{\"w\":3}", "expected an object" },
    { "{\"w\":{}}", "is missing" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", "is missing" },
    { "{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
      "twice" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", "unknown key" },
    { "{\"w\":{\"dtype\":\"f32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "unknown dtype \"f32\"" },
    { "{\"w\":{\"dtype\":3,\"shape\":[2],\"data_offsets\":[0,8]}}", "expected a string" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", "expected an array" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,],\"data_offsets\":[0,8]}}", "non-negative integer" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", "without fraction" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2e0],\"data_offsets\":[0,8]}}", "without fraction" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[02],\"data_offsets\":[0,8]}}", "leading zero" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}}", "integer" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", "1 of 2" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[]}}", "0 of 2" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", "more than 2" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,9223372036854775808]}}",
      "63 bits" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,99999999999999999999999]}}",
      "63 bits" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775800,"
      "9223372036854775807]}}",
      "the file holds 8 bytes" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[2305843009213693952],\"data_offsets\":[0,8]}}",
      "shape and dtype need" },
    { "{\"w\":{\"dtype\":\"F64\",\"shape\":[9223372036854775807],\"data_offsets\":[0,8]}}",
      "bytes overflows" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}",
      "elements overflows" },
    { "{\"w\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,2],\"data_offsets\":[0,8]}}",
      "more than 6 dimensions" },
    { "{\"__metadata__\":{\"a\":1}," W "}", "expected a string" },
    { "{\"__metadata__\":{},\"__metadata__\":{}," W "}", "twice" },
    { "{\"__metadata__\":[[]]," W "}", "expected an object" },
    { "{\"__metadata__\":{\"a\":\"\\ud800\"}," W "}", "surrogate" },
    { "{\"__metadata__\":{\"a\":\"\\udc00\"}," W "}", "surrogate" },
    { "{\"__metadata__\":{\"a\":\"\\ud800\\u0041\"}," W "}", "surrogate" },
    { "{\"__metadata__\":{\"a\":\"\\u00g0\"}," W "}", "escape" },
    { "{\"__metadata__\":{\"a\":\"\\x\"}," W "}", "escape" },
    { "{\"__metadata__\":{\"a\":\"\n\"}," W "}", "control" },
    { "{\"__metadata__\":{\"a\":\"\xc0\x80\"}," W "}", "UTF-8" },
    { "{\"__metadata__\":{\"a\":\"\xed\xa0\x80\"}," W "}", "UTF-8" },
    { "{\"__metadata__\":{\"a\":\"\xf4\x90\x80\x80\"}," W "}", "UTF-8" },
    { "{\"w\\u0000x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "NUL" },
    { "{" W ",\"net.w\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[8,8]}}", "twice" },
};

SL_TEST(hostile_headers)
{
    const char *path = at("hostile.safetensors");

    for (size_t i = 0; i < SL_COUNT(hostile); i++) {
        sl_ckpt *ckpt = NULL;

        write_st(path, hostile[i].header, 8);
        const sl_status status = sl_ckpt_open(&ckpt, path, err);
        if (status != SL_ERR_DATA || ckpt || !strstr(err->message, hostile[i].why))
            fail_msg("%s: %s: %s (want \"%s\")", hostile[i].header, sl_status_text(status),
                     err->message, hostile[i].why);
        sl_error_clear(err);
    }
    write_st(path, "{" W "}", 8); /* the base of them all is fine */
    sl_ckpt *ckpt = NULL;
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    sl_ckpt_close(ckpt);
}

SL_TEST(names_are_normalised)
{
    static const char *const names[][2] = {
        { "net.blocks.0.x", "blocks.0.x" },
        { "model.diffusion_model.head.modulation", "head.modulation" },
        { "blocks.1._checkpoint_wrapped_module.ffn.0.weight", "blocks.1.ffn.0.weight" },
        { "net._checkpoint_wrapped_module.a._checkpoint_wrapped_module.b", "a.b" },
        { "my_checkpoint_wrapped_module.c", "my_checkpoint_wrapped_module.c" },
        { "network.d", "network.d" },
        { "caf\\u00e9 \\ud83d\\ude00\\t\\\"", "caf\xc3\xa9 \xf0\x9f\x98\x80\t\"" },
    };
    char header[2048];
    size_t used = (size_t)sprintf(header, "{");
    sl_ckpt *ckpt = NULL;

    for (size_t i = 0; i < SL_COUNT(names); i++)
        used += (size_t)sprintf(
            header + used, "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
            i ? "," : "", names[i][0], i, i + 1);
    sprintf(header + used, "}   ");
    write_st(at("names.safetensors"), header, SL_COUNT(names));
    SL_CHECK_OK(sl_ckpt_open(&ckpt, at("names.safetensors"), err));
    SL_CHECK(sl_ckpt_count(ckpt) == SL_COUNT(names));
    for (size_t i = 0; i < SL_COUNT(names); i++) {
        const sl_ckpt_tensor *t = sl_ckpt_find(ckpt, names[i][1]);
        SL_CHECK(t != NULL);
        SL_CHECK(*(const unsigned char *)t->tensor.data == i);
    }
    for (int64_t i = 1; i < sl_ckpt_count(ckpt); i++)
        SL_CHECK(strcmp(sl_ckpt_get(ckpt, i - 1)->name, sl_ckpt_get(ckpt, i)->name) < 0);
    SL_CHECK(sl_ckpt_find(ckpt, "net.blocks.0.x") == NULL);
    SL_CHECK(sl_ckpt_data_bytes(ckpt) == SL_COUNT(names));
    sl_ckpt_close(ckpt);
}

static void write_sample(const char *path, sl_error *err)
{
    static const int64_t a[] = { 3, 5 }, b[] = { 0, 4 }, c[] = { 7 };
    unsigned char bytes[60 + 2 + 7];
    sl_st_writer *writer = NULL;

    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 7);
    SL_CHECK_OK(sl_st_writer_create(&writer, path, err));
    SL_CHECK_OK(sl_st_writer_declare(writer, "z.\"quoted\\\x01", SL_F32, 2, a, err));
    SL_CHECK_OK(sl_st_writer_declare(writer, "empty", SL_F32, 2, b, err));
    SL_CHECK_OK(sl_st_writer_declare(writer, "scalar", SL_BF16, 0, NULL, err));
    SL_CHECK_OK(sl_st_writer_declare(writer, "a", SL_I8, 1, c, err));
    SL_CHECK_OK(sl_st_writer_write(writer, bytes, 1, err));
    SL_CHECK_OK(sl_st_writer_write(writer, bytes + 1, 62, err));
    SL_CHECK_OK(sl_st_writer_write(writer, bytes + 63, sizeof bytes - 63, err));
    SL_CHECK_OK(sl_st_writer_finish(writer, err));
    sl_st_writer_destroy(writer);
}

SL_TEST(round_trip)
{
    const char *path = at("round.safetensors");
    sl_ckpt *ckpt = NULL;

    write_sample(path, err);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    SL_CHECK(sl_ckpt_count(ckpt) == 4);
    const sl_ckpt_tensor *z = sl_ckpt_find(ckpt, "z.\"quoted\\\x01");
    const sl_ckpt_tensor *scalar = sl_ckpt_find(ckpt, "scalar");
    const sl_ckpt_tensor *a = sl_ckpt_find(ckpt, "a");
    SL_CHECK(z && scalar && a && sl_ckpt_find(ckpt, "empty"));
    SL_CHECK(z->tensor.rank == 2 && z->tensor.dim[1] == 5 && z->tensor.dtype == SL_F32);
    SL_CHECK((uintptr_t)z->tensor.data % 8 == 0);
    SL_CHECK(scalar->tensor.rank == 0 && scalar->size_bytes == 2);
    for (size_t i = 0; i < 69; i++)
        SL_CHECK(((const unsigned char *)z->tensor.data)[i] == (unsigned char)(i * 7));
    sl_ckpt_will_need(ckpt, a);
    sl_ckpt_done_with(ckpt, a);
    SL_CHECK(((const unsigned char *)a->tensor.data)[6] == (unsigned char)(68 * 7));
    SL_CHECK(strcmp(sl_ckpt_path(ckpt), path) == 0);
    sl_ckpt_close(ckpt);
}

SL_TEST(writer_leaves_nothing_half_done)
{
    const int64_t n = 4;
    const char bytes[5] = "abcd";
    const char *path = at("half.safetensors");
    sl_st_writer *writer = NULL;

    SL_CHECK_OK(sl_st_writer_create(&writer, path, err));
    SL_CHECK_OK(sl_st_writer_declare(writer, "w", SL_U8, 1, &n, err));
    SL_CHECK_STATUS(sl_st_writer_write(writer, bytes, 5, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_st_writer_write(writer, bytes, 3, err));
    SL_CHECK_STATUS(sl_st_writer_finish(writer, err), SL_ERR_INVALID);
    SL_CHECK(access(path, F_OK) != 0);
    SL_CHECK(access(at("half.safetensors.partial"), F_OK) == 0);
    sl_st_writer_destroy(writer);
    SL_CHECK(access(path, F_OK) != 0);
    SL_CHECK(access(at("half.safetensors.partial"), F_OK) != 0);

    writer = NULL;
    SL_CHECK_STATUS(sl_st_writer_create(&writer, "no/such/dir/x", err), SL_ERR_NOT_FOUND);
    SL_CHECK(writer == NULL);

    SL_CHECK_OK(sl_st_writer_create(&writer, path, err)); /* no tensor at all */
    SL_CHECK_OK(sl_st_writer_finish(writer, err));
    sl_st_writer_destroy(writer);
    sl_ckpt *ckpt = NULL;
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    SL_CHECK(sl_ckpt_count(ckpt) == 0 && sl_ckpt_find(ckpt, "w") == NULL);
    sl_ckpt_close(ckpt);
}

static size_t slurp(const char *path, char *buf, size_t capacity)
{
    FILE *f = fopen(path, "rb");
    SL_CHECK(f != NULL);
    const size_t n = fread(buf, 1, capacity, f);
    fclose(f);
    return n;
}

/* Touches every byte that the checkpoint hands out. */
static uint64_t touch(const sl_ckpt *ckpt)
{
    uint64_t h = 0;

    for (int64_t i = 0; i < sl_ckpt_count(ckpt); i++) {
        const sl_ckpt_tensor *t = sl_ckpt_get(ckpt, i);
        h ^= fnv1a(t->tensor.data, t->size_bytes) + strlen(t->name);
    }
    return h;
}

SL_TEST(truncated_anywhere)
{
    static char bytes[4096];
    const char *path = at("cut.safetensors");

    write_sample(path, err);
    const size_t size = slurp(path, bytes, sizeof bytes);
    for (size_t n = 0; n < size; n++) {
        sl_ckpt *ckpt = NULL;
        write_bytes(path, bytes, n);
        SL_CHECK_STATUS(sl_ckpt_open(&ckpt, path, err), SL_ERR_DATA);
        SL_CHECK(ckpt == NULL);
    }
}

SL_TEST(random_bytes_changed)
{
    static char bytes[4096];
    const char *path = at("flip.safetensors");
    uint64_t x = 88172645463325252u, sum = 0;
    int opened = 0;

    write_sample(path, err);
    const size_t size = slurp(path, bytes, sizeof bytes);
    const size_t header =
        8 + (size_t)(unsigned char)bytes[0] + 256 * (size_t)(unsigned char)bytes[1];
    SL_CHECK(header < size);
    for (int round = 0; round < 20000; round++) {
        static char copy[4096];
        sl_ckpt *ckpt = NULL;

        memcpy(copy, bytes, size);
        for (int k = 0; k <= round % 3; k++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            copy[(x >> 20) % header] =
                round & 4 ? (char)(x >> 40) : "0123456789{}[],:\"\\"[(x >> 40) % 18];
        }
        write_bytes(path, copy, size);
        const sl_status status = sl_ckpt_open(&ckpt, path, err);
        SL_CHECK(status == SL_OK || status == SL_ERR_DATA);
        SL_CHECK((status == SL_OK) == (ckpt != NULL));
        if (ckpt) {
            opened++;
            sum ^= touch(ckpt);
        }
        sl_ckpt_close(ckpt);
        sl_error_clear(err);
    }
    SL_CHECK(opened > 0 && opened < 20000 && sum != 0);
}

/* 10 MB of '[' and an object that deep inside of an index. */
SL_TEST(deep_nesting)
{
    const size_t size = 10485760;
    char *bytes = malloc(size + 8);
    const uint64_t header = size;
    sl_ckpt *ckpt = NULL;

    SL_CHECK(bytes != NULL);
    memset(bytes, '[', size + 8);
    memcpy(bytes, &header, 8);
    write_bytes(at("deep.safetensors"), bytes, size + 8);
    SL_CHECK_STATUS(sl_ckpt_open(&ckpt, at("deep.safetensors"), err), SL_ERR_DATA);
    snprintf(bytes, size, "%s", "{\"metadata\":");
    bytes[strlen(bytes)] = '[';
    write_bytes(at("deep.index.json"), bytes, size);
    SL_CHECK_STATUS(sl_ckpt_open(&ckpt, at("deep.index.json"), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "nested too deep"));
    free(bytes);
}

/* Large headers must not cost more than n log n. */
SL_TEST(many_tensors)
{
    enum { COUNT = 300000 };
    const char *path = at("many.safetensors");
    FILE *f = fopen(path, "wb");
    uint64_t header;
    sl_ckpt *ckpt = NULL;

    SL_CHECK(f && fwrite(&header, 8, 1, f) == 1);
    for (int i = 0; i < COUNT; i++) /* names and places in unlike orders */
        fprintf(f, "%c\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                i ? ',' : '{', i, (int)((int64_t)i * 7919 % COUNT),
                (int)((int64_t)i * 7919 % COUNT) + 1);
    fputc('}', f);
    header = (uint64_t)ftell(f) - 8;
    for (int i = 0; i < COUNT; i++)
        fputc(i & 0xff, f);
    rewind(f);
    SL_CHECK(fwrite(&header, 8, 1, f) == 1 && fclose(f) == 0);

    const int64_t start_ns = sl_clock_now_ns();
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    for (int i = 0; i < COUNT; i += 997) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        const sl_ckpt_tensor *t = sl_ckpt_find(ckpt, name);
        SL_CHECK(t != NULL);
        SL_CHECK(*(const unsigned char *)t->tensor.data == ((int64_t)i * 7919 % COUNT & 0xff));
    }
    SL_CHECK(sl_clock_now_ns() - start_ns < 10 * SL_NS_PER_S); /* quadratic would be minutes */
    sl_ckpt_close(ckpt);
}

static void write_shards(void)
{
    write_st(at("m-1.safetensors"),
             "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
             "\"c\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
             4);
    write_st(at("m-2.safetensors"),
             "{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
}

static void write_index(const char *weight_map)
{
    char text[512];

    snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":7.0e0,\"x\":[{},[1,\"\"]]},%s}",
             weight_map);
    write_bytes(at("m.safetensors.index.json"), text, strlen(text));
}

SL_TEST(sharded)
{
    const char *path = at("m.safetensors.index.json");
    sl_ckpt *ckpt = NULL;

    write_shards();
    write_index("\"weight_map\":{\"c\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\","
                "\"net.a\":\"m-1.safetensors\"}");
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    SL_CHECK(sl_ckpt_count(ckpt) == 3 && sl_ckpt_data_bytes(ckpt) == 7);
    SL_CHECK(sl_ckpt_find(ckpt, "a")->file_index == sl_ckpt_find(ckpt, "c")->file_index);
    SL_CHECK(sl_ckpt_find(ckpt, "a")->file_index != sl_ckpt_find(ckpt, "b")->file_index);
    SL_CHECK(((const unsigned char *)sl_ckpt_find(ckpt, "c")->tensor.data)[0] == 2);
    sl_ckpt_close(ckpt);
}

SL_TEST(bad_indices)
{
    static const struct {
        const char *weight_map, *why;
        sl_status status;
    } cases[] = {
        { "\"weight_map\":{\"a\":\"m-1.safetensors\",\"c\":\"m-1.safetensors\","
          "\"b\":\"m-3.safetensors\"}",
          "m-3.safetensors", SL_ERR_NOT_FOUND },
        { "\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\"}",
          "\"c\" of shard \"m-1.safetensors\" is not in the index", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\","
          "\"c\":\"m-1.safetensors\",\"d\":\"m-1.safetensors\"}",
          "\"d\" of the index is not in its shard", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":\"m-2.safetensors\",\"b\":\"m-2.safetensors\","
          "\"c\":\"m-1.safetensors\"}",
          "\"a\" is in shard \"m-1.safetensors\", the index says", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":\"m-1.safetensors\",\"a\":\"m-1.safetensors\","
          "\"b\":\"m-2.safetensors\",\"c\":\"m-1.safetensors\"}",
          "twice", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":\"x/m-1.safetensors\"}", "plain file name", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":\"x\\\\m-1.safetensors\"}", "plain file name", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":\"..\"}", "plain file name", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":\"\"}", "plain file name", SL_ERR_DATA },
        { "\"weight_map\":{\"a\":1}", "expected a string", SL_ERR_DATA },
        { "\"weight_map\":[]", "expected an object", SL_ERR_DATA },
        { "\"weight_map\":{}", "weight_map", SL_ERR_DATA },
        { "\"other\":-0.5e+3", "weight_map", SL_ERR_DATA },
        { "\"other\":-", "expected a value", SL_ERR_DATA },
        { "\"other\":1.", "bad number", SL_ERR_DATA },
        { "\"other\":tru", "expected a value", SL_ERR_DATA },
        { "\"other\":[1,2}", "expected ',' or ']'", SL_ERR_DATA },
    };
    sl_ckpt *ckpt = NULL;

    write_shards();
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        write_index(cases[i].weight_map);
        const sl_status status = sl_ckpt_open(&ckpt, at("m.safetensors.index.json"), err);
        if (status != cases[i].status || !strstr(err->message, cases[i].why))
            fail_msg("%s: %s: %s", cases[i].weight_map, sl_status_text(status), err->message);
        SL_CHECK(ckpt == NULL);
        sl_error_clear(err);
    }
    /* the same tensor in both shards */
    write_st(at("m-2.safetensors"),
             "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
    write_index("\"weight_map\":{\"c\":\"m-1.safetensors\",\"a\":\"m-2.safetensors\"}");
    SL_CHECK_STATUS(sl_ckpt_open(&ckpt, at("m.safetensors.index.json"), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "in two shards"));
}

SL_TEST(what_is_no_file)
{
    sl_ckpt *ckpt = NULL;

    SL_CHECK_STATUS(sl_ckpt_open(&ckpt, at("absent.safetensors"), err), SL_ERR_NOT_FOUND);
    SL_CHECK_STATUS(sl_ckpt_open(&ckpt, dir, err), SL_ERR_DATA);
    SL_CHECK(mkfifo(at("fifo"), 0600) == 0);
    SL_CHECK_STATUS(sl_ckpt_open(&ckpt, at("fifo"), err), SL_ERR_DATA);
    write_bytes(at("x.pth"), "PK\3\4 and so on", 14);
    SL_CHECK_STATUS(sl_ckpt_open(&ckpt, at("x.pth"), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "PyTorch"));
    SL_CHECK(ckpt == NULL);
    sl_ckpt_close(NULL);
    sl_st_writer_destroy(NULL);
}

SL_TEST(every_allocation_fails_once)
{
    char paths[2][512];
    int failures = 0;

    write_sample(at("memory.safetensors"), err);
    write_shards();
    write_index("\"weight_map\":{\"c\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\","
                "\"a\":\"m-1.safetensors\"}");
    snprintf(paths[0], sizeof paths[0], "%s", at("memory.safetensors"));
    snprintf(paths[1], sizeof paths[1], "%s", at("m.safetensors.index.json"));
    for (int p = 0; p < 2; p++) {
        sl_ckpt *ckpt = NULL;
        for (int n = 1;; n++) {
            allocations = 0;
            fail_at = n;
            const sl_status status = sl_ckpt_open(&ckpt, paths[p], err);
            const int reached = allocations >= n;
            fail_at = 0;
            if (!reached) {
                SL_CHECK_OK(status);
                break;
            }
            SL_CHECK(status == SL_ERR_NO_MEMORY && ckpt == NULL);
            sl_error_clear(err);
            failures++;
        }
        sl_ckpt_close(ckpt);
    }
    SL_CHECK(failures >= 12);
    for (int n = 1; n <= 2; n++) {
        sl_st_writer *writer = NULL;
        allocations = 0;
        fail_at = n;
        const sl_status status = sl_st_writer_create(&writer, at("memory2.safetensors"), err);
        fail_at = 0;
        SL_CHECK(status == SL_ERR_NO_MEMORY && writer == NULL);
        sl_error_clear(err);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(golden_containers),
        SL_RUN(hostile_headers),
        SL_RUN(names_are_normalised),
        SL_RUN(round_trip),
        SL_RUN(writer_leaves_nothing_half_done),
        SL_RUN(truncated_anywhere),
        SL_RUN(random_bytes_changed),
        SL_RUN(deep_nesting),
        SL_RUN(many_tensors),
        SL_RUN(sharded),
        SL_RUN(bad_indices),
        SL_RUN(what_is_no_file),
        SL_RUN(every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
