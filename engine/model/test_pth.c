#include "engine/model/test_pth.h"

#include "base/test.h"

#include <string.h>

typedef struct {
    char *bytes;
    size_t used, capacity;
} blob;

static void put(blob *b, const void *bytes, size_t size)
{
    if (b->used + size > b->capacity) {
        b->capacity = 2 * (b->used + size);
        b->bytes = realloc(b->bytes, b->capacity);
        SL_CHECK(b->bytes);
    }
    if (size > 0)
        memcpy(b->bytes + b->used, bytes, size);
    b->used += size;
}

static void put_text(blob *b, const char *text)
{
    put(b, text, strlen(text));
}

static void put_le(blob *b, uint64_t value, int size)
{
    for (int i = 0; i < size; i++, value >>= 8)
        put(b, &(char){ (char)(value & 0xff) }, 1);
}

static void put_unicode(blob *b, const char *text)
{
    put_text(b, "X");
    put_le(b, strlen(text), 4);
    put_text(b, text);
}

static void put_int(blob *b, int64_t value)
{
    put_text(b, "J");
    put_le(b, (uint64_t)value, 4);
}

static const char *storage_of(sl_dtype dtype)
{
    switch (dtype) {
    case SL_F32:
        return "FloatStorage";
    case SL_BF16:
        return "BFloat16Storage";
    case SL_I8:
        return "CharStorage";
    default:
        SL_CHECK(!"dtype of a test");
        return NULL;
    }
}

/* _rebuild_tensor_v2(storage, 0, sizes, strides, False, OrderedDict()) */
static void put_tensor(blob *b, const sl_tensor *t, const char *key)
{
    int64_t stride[SL_MAX_RANK], step = 1;

    for (int i = t->rank - 1; i >= 0; i--) {
        stride[i] = step;
        step *= t->dim[i];
    }
    put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_unicode(b, "storage");
    put_text(b, "ctorch\n");
    put_text(b, storage_of(t->dtype));
    put_text(b, "\n");
    put_unicode(b, key);
    put_unicode(b, "cuda:0");
    put_int(b, sl_tensor_count(t));
    put_text(b, "tQ");
    put_int(b, 0);
    put_text(b, "(");
    for (int i = 0; i < t->rank; i++)
        put_int(b, t->dim[i]);
    put_text(b, "t(");
    for (int i = 0; i < t->rank; i++)
        put_int(b, stride[i]);
    put_text(b, "t\x89"
                "ccollections\nOrderedDict\n)RtR");
}

static void put_member(blob *zip, blob *directory, const char *name, const void *data, size_t size)
{
    const size_t at = zip->used;

    put_text(zip, "PK\3\4");
    put_le(zip, 0, 14); /* version, flags, method 0, time, crc */
    put_le(zip, size, 4);
    put_le(zip, size, 4);
    put_le(zip, strlen(name), 2);
    put_le(zip, 0, 2);
    put_text(zip, name);
    put(zip, data, size);

    put_text(directory, "PK\1\2");
    put_le(directory, 0, 16);
    put_le(directory, size, 4);
    put_le(directory, size, 4);
    put_le(directory, strlen(name), 2);
    put_le(directory, 0, 12);
    put_le(directory, at, 4);
    put_text(directory, name);
}

void test_write_pth(const char *path, const sl_ckpt *from,
                    void (*rename)(char *out, const char *in))
{
    blob zip = { .used = 0 }, directory = { .used = 0 }, pickle = { .used = 0 };
    const int64_t count = sl_ckpt_count(from);
    char name[TEST_NAME_BYTES];

    put_text(&pickle, "\x80\2}(");
    for (int64_t i = 0; i < count; i++) {
        const sl_ckpt_tensor *t = sl_ckpt_get(from, i);
        char key[32];

        snprintf(name, sizeof name, "%s", t->name);
        if (rename)
            rename(name, t->name);
        snprintf(key, sizeof key, "%lld", (long long)i);
        put_unicode(&pickle, name);
        put_tensor(&pickle, &t->tensor, key);
    }
    put_text(&pickle, "u.");
    put_member(&zip, &directory, "archive/data.pkl", pickle.bytes, pickle.used);
    for (int64_t i = 0; i < count; i++) {
        const sl_ckpt_tensor *t = sl_ckpt_get(from, i);

        snprintf(name, sizeof name, "archive/data/%lld", (long long)i);
        put_member(&zip, &directory, name, t->tensor.data, t->size_bytes);
    }
    put_member(&zip, &directory, "archive/version", "3\n", 2);

    const size_t directory_at = zip.used;
    put(&zip, directory.bytes, directory.used);
    put_text(&zip, "PK\5\6");
    put_le(&zip, 0, 4);
    put_le(&zip, (uint64_t)count + 2, 2);
    put_le(&zip, (uint64_t)count + 2, 2);
    put_le(&zip, directory.used, 4);
    put_le(&zip, directory_at, 4);
    put_le(&zip, 0, 2);

    FILE *f = fopen(path, "wb");
    SL_CHECK(f && fwrite(zip.bytes, 1, zip.used, f) == zip.used && fclose(f) == 0);
    free(zip.bytes);
    free(directory.bytes);
    free(pickle.bytes);
}
