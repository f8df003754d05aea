/* PyTorch checkpoints, assembled here byte by byte, good and hostile.  The
 * golden loader case has files that torch.save wrote. */
#include "engine/ckpt/pth.h"

#include "base/test.h"
#include "base/test_alloc.h"
#include "engine/ckpt/pickle.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* --- assembling --- */

typedef struct {
    unsigned char bytes[1 << 20];
    size_t size;
} blob;

static void put(blob *b, const void *bytes, size_t size)
{
    SL_CHECK(b->size + size <= sizeof b->bytes);
    memcpy(b->bytes + b->size, bytes, size);
    b->size += size;
}

static void put_le(blob *b, uint64_t value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        put(b, &(unsigned char){ (unsigned char)(value >> (8 * i)) }, 1);
}

#define PUT(b, literal) put((b), (literal), sizeof(literal) - 1)

static void put_string(blob *b, const char *text)
{
    PUT(b, "X");
    put_le(b, strlen(text), 4);
    put(b, text, strlen(text));
}

static void put_int(blob *b, int64_t value)
{
    PUT(b, "\x8a\x08");
    put_le(b, (uint64_t)value, 8);
}

static void put_ints(blob *b, const int64_t *values, int count)
{
    PUT(b, "(");
    for (int i = 0; i < count; i++)
        put_int(b, values[i]);
    PUT(b, "t");
}

/* A tensor on the stack. */
typedef struct {
    const char *type, *key;
    int64_t numel, offset;
    int rank;
    int64_t size[8], stride[8];
} tensor_spec;

static void put_tensor(blob *b, const tensor_spec *t)
{
    PUT(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_string(b, "storage");
    PUT(b, "ctorch\n");
    put(b, t->type, strlen(t->type));
    PUT(b, "\n");
    put_string(b, t->key);
    put_string(b, "cuda:0");
    put_int(b, t->numel);
    PUT(b, "tQ");
    put_int(b, t->offset);
    put_ints(b, t->size, t->rank);
    put_ints(b, t->stride, t->rank);
    PUT(b, "\x89"
           "ccollections\nOrderedDict\n)RtR");
}

typedef struct {
    char names[16][40];
    size_t central_at[16], sizes[16];
    uint32_t offsets[16];
    int count;
} zip_index;

static void add_member(blob *b, zip_index *z, const char *name, const void *data, size_t size)
{
    snprintf(z->names[z->count], sizeof z->names[0], "%s", name);
    z->sizes[z->count] = size;
    z->offsets[z->count++] = (uint32_t)b->size;
    PUT(b, "PK\3\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    put_le(b, size, 4);
    put_le(b, size, 4);
    put_le(b, strlen(name), 2);
    put_le(b, 5, 2); /* an extra field that the directory does not have */
    put(b, name, strlen(name));
    PUT(b, "FB\1\0Z");
    put(b, data, size);
}

static void end_zip(blob *b, const zip_index *z)
{
    const size_t directory = b->size;

    for (int i = 0; i < z->count; i++) {
        PUT(b, "PK\1\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        put_le(b, z->sizes[i], 4);
        put_le(b, z->sizes[i], 4);
        put_le(b, strlen(z->names[i]), 2);
        PUT(b, "\0\0\0\0\0\0\0\0\0\0\0\0");
        put_le(b, z->offsets[i], 4);
        put(b, z->names[i], strlen(z->names[i]));
    }
    const size_t bytes = b->size - directory;
    PUT(b, "PK\5\6\0\0\0\0");
    put_le(b, (uint64_t)z->count, 2);
    put_le(b, (uint64_t)z->count, 2);
    put_le(b, bytes, 4);
    put_le(b, directory, 4);
    PUT(b, "\0\0");
}

/* --- files --- */

static char path[64];

static void write_file(const blob *b)
{
    snprintf(path, sizeof path, "pth_test.%ld.pth", (long)getpid());
    unlink(path);
    FILE *f = fopen(path, "wb");

    SL_CHECK(f && fwrite(b->bytes, 1, b->size, f) == b->size && fclose(f) == 0);
}

static int remove_file(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

/* pickle, and "data/0": 16 floats 0 ... 15. */
static void make_file(blob *b, const blob *pickle)
{
    zip_index z = { .count = 0 };
    float floats[16];

    for (int i = 0; i < 16; i++)
        floats[i] = (float)i;
    b->size = 0;
    add_member(b, &z, "any name/data.pkl", pickle->bytes, pickle->size);
    add_member(b, &z, "any name/data/0", floats, sizeof floats);
    add_member(b, &z, "any name/version", "3\n", 2);
    end_zip(b, &z);
}

static const tensor_spec whole = { "FloatStorage", "0", 16, 0, 2, { 4, 4 }, { 4, 1 } };
static const tensor_spec turned = { "FloatStorage", "0", 16, 1, 2, { 3, 2 }, { 1, 4 } };

/* Two tensors, one of them a view in another order, and things to ignore. */
static void make_good(blob *b)
{
    static blob pickle;

    pickle.size = 0;
    PUT(&pickle, "\x80\2}q\1(");
    put_string(&pickle, "epoch");
    PUT(&pickle, "M\7\1");
    put_string(&pickle, "state_dict");
    PUT(&pickle, "ccollections\nOrderedDict\n)R(");
    put_string(&pickle, "net.whole");
    put_tensor(&pickle, &whole);
    put_string(&pickle, "net.turned");
    put_tensor(&pickle, &turned);
    PUT(&pickle, "u}");
    put_string(&pickle, "_metadata");
    PUT(&pickle, "NsbX\2\0\0\0lr]r\0\2\0\0(G?\xf0\0\0\0\0\0\0\x88j\0\2\0\0eu.");
    make_file(b, &pickle);
}

static float element(const sl_ckpt_tensor *t, int i)
{
    float value;

    memcpy(&value, (const char *)t->tensor.data + sizeof value * (size_t)i, sizeof value);
    return value;
}

static const sl_ckpt_tensor *get(const sl_ckpt *ckpt, const char *name)
{
    const sl_ckpt_tensor *t = sl_ckpt_find(ckpt, name);

    SL_CHECK(t != NULL);
    return t;
}

SL_TEST(tensors_and_views)
{
    static const float want[6] = { 1, 5, 2, 6, 3, 7 };
    static blob b;
    sl_ckpt *ckpt = NULL;
    float got[6];

    make_good(&b);
    write_file(&b);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    SL_CHECK(sl_ckpt_count(ckpt) == 2 && sl_ckpt_data_bytes(ckpt) == 64 + 24);
    const sl_ckpt_tensor *w = get(ckpt, "whole"), *v = get(ckpt, "turned");
    SL_CHECK(w->tensor.dtype == SL_F32 && w->tensor.rank == 2 && w->size_bytes == 64);
    for (int i = 0; i < 16; i++)
        SL_CHECK(element(w, i) == (float)i);
    SL_CHECK(v->tensor.dim[0] == 3 && v->tensor.dim[1] == 2 && v->size_bytes == 24);
    for (int pass = 0; pass < 2; pass++) { /* hints do not touch the copy */
        for (int i = 0; i < 6; i++)
            SL_CHECK(element(v, i) == want[i]);
        sl_ckpt_will_need(ckpt, v);
        sl_ckpt_done_with(ckpt, v);
        sl_ckpt_will_need(ckpt, w);
        sl_ckpt_done_with(ckpt, w);
    }
    SL_CHECK_OK(sl_ckpt_read(ckpt, v, 4, got, 20, err));
    for (int i = 0; i < 5; i++)
        SL_CHECK(got[i] == want[i + 1]);
    SL_CHECK_OK(sl_ckpt_read(ckpt, w, 8, got, 8, err));
    SL_CHECK(got[0] == 2 && got[1] == 3);
    sl_ckpt_close(ckpt);
}

/* The bytes of a pickle that holds one tensor "w". */
static void make_one(blob *b, const tensor_spec *t, const char *name, size_t name_bytes)
{
    static blob pickle;

    pickle.size = 0;
    PUT(&pickle, "\x80\2}X");
    put_le(&pickle, name_bytes, 4);
    put(&pickle, name, name_bytes);
    put_tensor(&pickle, t);
    PUT(&pickle, "s.");
    make_file(b, &pickle);
}

static void expect_refusal(const blob *b, const char *why, sl_error *err)
{
    sl_ckpt *ckpt = NULL;

    write_file(b);
    const sl_status status = sl_ckpt_open(&ckpt, path, err);
    if (status != SL_ERR_DATA || ckpt || !strstr(err->message, why) || !strstr(err->message, path))
        fail_msg("%s: %s (want \"%s\")", sl_status_text(status), err->message, why);
    sl_error_clear(err);
}

SL_TEST(hostile_tensors)
{
    static const struct {
        tensor_spec tensor;
        const char *why;
    } cases[] = {
        { { "FloatStorage", "1", 16, 0, 1, { 4 }, { 1 } }, "\"data/1\" is not in the archive" },
        { { "FloatStorage", "0", 17, 0, 1, { 4 }, { 1 } }, "68 bytes, the archive has 64" },
        { { "FloatStorage", "0", -1, 0, 1, { 4 }, { 1 } }, "storage of -1" },
        { { "FloatStorage", "0", INT64_MAX, 0, 1, { 4 }, { 1 } }, "storage of 9223" },
        { { "FloatStorage", "../0", 16, 0, 1, { 4 }, { 1 } }, "no plain name" },
        { { "FloatStorage", "", 16, 0, 1, { 4 }, { 1 } }, "no plain name" },
        { { "FloatStorage", "0", 16, -1, 1, { 4 }, { 1 } }, "at element -1" },
        { { "FloatStorage", "0", 16, 13, 1, { 4 }, { 1 } }, "element 16 of a storage of 16" },
        { { "FloatStorage", "0", 16, INT64_MAX, 1, { 4 }, { 1 } }, "strides overflow" },
        { { "FloatStorage", "0", 16, 0, 1, { -4 }, { 1 } }, "negative" },
        { { "FloatStorage", "0", 16, 0, 1, { 4 }, { -1 } }, "negative" },
        { { "FloatStorage", "0", 16, 0, 7, { 1, 1, 1, 1, 1, 1, 1 }, { 0 } }, "7 dimensions" },
        { { "FloatStorage", "0", 16, 0, 2, { INT64_MAX, 2 }, { 0 } }, "elements overflows" },
        { { "FloatStorage", "0", 16, 0, 1, { INT64_MAX }, { 0 } }, "views that must be copied" },
        { { "FloatStorage", "0", 16, 0, 1, { 1 << 25 }, { 0 } }, "views that must be copied" },
        { { "QuantStorage", "0", 16, 0, 1, { 4 }, { 1 } }, "\"torch.QuantStorage\"" },
        { { "bfloat16", "0", 16, 0, 1, { 4 }, { 1 } }, "without a type" },
        { { "Size", "0", 16, 0, 1, { 4 }, { 1 } }, "without a type" },
    };
    static blob b;
    sl_ckpt *ckpt = NULL;

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        make_one(&b, &cases[i].tensor, "w", 1);
        expect_refusal(&b, cases[i].why, err);
    }
    make_one(&b, &whole, "w", 1); /* what they are made of is fine */
    write_file(&b);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    sl_ckpt_close(ckpt);
}

SL_TEST(hostile_names)
{
    static const struct {
        const char *name;
        size_t size;
        const char *why;
    } cases[] = {
        { "", 0, "empty name" },  { "net.", 4, "empty name" },      { "w\0x", 3, "no text" },
        { "\xff", 1, "no text" }, { "\xed\xa0\x80", 3, "no text" }, { "a\xe2\x82", 3, "no text" },
    };
    static blob b;

    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        make_one(&b, &whole, cases[i].name, cases[i].size);
        expect_refusal(&b, cases[i].why, err);
    }
}

/* Pickles, each without its first two bytes (protocol 2). */
#define PICKLE(literal, why)                                                                       \
    {                                                                                              \
        literal, sizeof(literal) - 1, why                                                          \
    }
static const struct {
    const char *bytes;
    size_t size;
    const char *why;
} pickles[] = {
    PICKLE("", "pickle ends"),
    PICKLE("N", "pickle ends"),
    PICKLE(".", "missing on the stack"),
    PICKLE("(.", "missing on the stack"),
    PICKLE("NN.", "1 values are left"),
    PICKLE("N.", "no dict"),
    PICKLE("}.", "no tensors"),
    PICKLE("]q\1h\1a.", "no dict"),
    PICKLE("}q\1X\1\0\0\0ah\1s.", "no tensors"),
    PICKLE("}(h\0u.", "never written"),
    PICKLE("}(Nu.", "a key without a value"),
    PICKLE("}N(s.", "missing on the stack"),
    PICKLE("(NNs.", "that is not there"),
    PICKLE("]NNs.", "that is not there"),
    PICKLE("]NNN(u.", "that is not there"),
    PICKLE("u.", "mark is missing"),
    PICKLE("t.", "mark is missing"),
    PICKLE("N\x86.", "missing on the stack"),
    PICKLE("N(\x86.", "missing on the stack"),
    PICKLE("Nq", "pickle ends"),
    PICKLE("q\1.", "missing on the stack"),
    PICKLE("Nr\xff\xff\xff\xff.", "memo slot 4294967295"),
    PICKLE("j\xff\xff\xff\xff.", "never written"),
    PICKLE("X\xff\xff\xff\xff.", "string of 4294967295"),
    PICKLE("X\5\0\0\0abcd", "1 bytes are missing"),
    PICKLE("\x8a\x09", "pickle ends"),
    PICKLE("cos\nsystem\n.", "\"os.system\""),
    PICKLE("ccollections\nOrderedDict\0x\n.", "\"collections.OrderedDict\""),
    PICKLE("ccollections.Ordered\nDict\n.", "\"collections.Ordered.Dict\""),
    PICKLE("cbuiltins\x1b[31m\neval\n.", "\"builtins?[31m.eval\""),
    PICKLE("ctorch\nSize", "without an end"),
    PICKLE("ctorch\nSize\nNR.", "no name"),
    PICKLE("N)R.", "no name"),
    PICKLE("ctorch\nSize\n)R.", "\"torch.Size\" with 0"),
    PICKLE("ctorch\nSize\nN\x85R.", "\"torch.Size\" with 1"),
    PICKLE("ctorch\nfloat32\n)R.", "\"torch.float32\" with 0"),
    PICKLE("ccollections\nOrderedDict\nN\x85R.", "with 1 arguments"),
    PICKLE("ctorch._utils\n_rebuild_tensor_v2\n)R.", "made of something else"),
    PICKLE("ctorch._utils\n_rebuild_parameter\nNNN\x87R.", "with 3 arguments"),
    PICKLE("NNb.", "no dict"),
    PICKLE("NQ.", "no storage"),
    PICKLE(")Q.", "no storage"),
    PICKLE("(NNNNNtQ.", "no storage"),
    PICKLE("i", "INST"),
    PICKLE("o", "OBJ"),
    PICKLE("\x81", "NEWOBJ"),
    PICKLE("\x93", "STACK_GLOBAL"),
    PICKLE("\x82", "EXT1"),
    PICKLE("0", "opcode 0x30,"),
    PICKLE("\x80\4", "protocol 4"),
};

SL_TEST(hostile_pickles)
{
    static blob b, pickle;

    for (size_t i = 0; i < SL_COUNT(pickles); i++) {
        pickle.size = 0;
        PUT(&pickle, "\x80\2");
        put(&pickle, pickles[i].bytes, pickles[i].size);
        make_file(&b, &pickle);
        expect_refusal(&b, pickles[i].why, err);
    }
}

/* 20 KB that name 4000 tensors, each by the same name of 10 KB. */
SL_TEST(one_long_name_many_times)
{
    static char name[10001];
    static blob b, pickle;

    memset(name, 'n', sizeof name - 1);
    pickle.size = 0;
    PUT(&pickle, "\x80\2}(");
    put_string(&pickle, name);
    PUT(&pickle, "q\1");
    put_tensor(&pickle, &whole);
    PUT(&pickle, "q\2");
    for (int i = 1; i < 4000; i++)
        PUT(&pickle, "h\1h\2");
    PUT(&pickle, "u.");
    make_file(&b, &pickle);
    expect_refusal(&b, "names take more than", err);
}

/* Reads a pickle as the archive's reader does. */
static sl_status read_pickle(const blob *b, sl_error *err)
{
    const sl_pickle_value *root = NULL;
    sl_arena *arena = NULL;

    SL_CHECK_OK(sl_arena_create(&arena, SL_PICKLE_MAX_MEMORY, err));
    const sl_status status = sl_pickle_read(&root, b->bytes, b->size, arena, err);
    sl_arena_destroy(arena);
    return status;
}

SL_TEST(limits_of_the_pickle)
{
    static blob b;

    for (int kind = 0; kind < 3; kind++) { /* nesting: tuples, lists, in themselves */
        b.size = 0;
        PUT(&b, "\x80\2)");
        for (int i = 0; i < 70; i++) {
            if (kind == 0)
                PUT(&b, "\x85");
            else if (kind == 1)
                PUT(&b, "q\1]h\1a");
            else
                PUT(&b, "]q\1h\1a");
        }
        PUT(&b, ".");
        SL_CHECK_STATUS(read_pickle(&b, err), SL_ERR_DATA);
        SL_CHECK(strstr(err->message, kind == 2 ? "left on the stack" : "nested deeper"));
        sl_error_clear(err);
    }
    b.size = 0;
    for (int i = 0; i < 70000; i++)
        PUT(&b, "N");
    SL_CHECK_STATUS(read_pickle(&b, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "65536 values"));
    sl_error_clear(err);

    /* one list of as many lists as fit */
    const sl_pickle_value *root = NULL;
    sl_arena *arena = NULL;
    unsigned char *bytes = malloc(SL_PICKLE_MAX_BYTES);
    SL_CHECK(bytes != NULL);
    bytes[0] = ']';
    for (size_t i = 1; i < SL_PICKLE_MAX_BYTES; i++)
        bytes[i] = i % 2 ? ']' : 'a';
    SL_CHECK_OK(sl_arena_create(&arena, SL_PICKLE_MAX_MEMORY, err));
    SL_CHECK_STATUS(sl_pickle_read(&root, bytes, SL_PICKLE_MAX_BYTES, arena, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "needs more than"));
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_pickle_read(&root, bytes, SL_PICKLE_MAX_BYTES + 1, arena, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "the limit is"));
    sl_arena_destroy(arena);
    free(bytes);
}

SL_TEST(what_is_no_checkpoint)
{
    static blob b, pickle;
    zip_index z;

    pickle.size = 0;
    PUT(&pickle, "\x80\2}.");
    b.size = 0;
    put(&b, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e and so on", 25);
    expect_refusal(&b, "legacy (non-zip) PyTorch checkpoint; re-save with torch.save", err);
    memset(b.bytes, 0, 512);
    b.size = 512;
    memcpy(b.bytes + 257, "ustar", 5);
    expect_refusal(&b, "legacy (non-zip) PyTorch checkpoint; re-save with torch.save", err);
    b.size = 0;
    expect_refusal(&b, "empty", err);

    z.count = 0;
    end_zip(&b, &z);
    expect_refusal(&b, "without data.pkl", err);
    b.size = 0;
    add_member(&b, &z, "data.pkl", pickle.bytes, pickle.size);
    add_member(&b, &z, "a/b/data.pkl", pickle.bytes, pickle.size);
    end_zip(&b, &z);
    expect_refusal(&b, "without data.pkl", err);
    b.size = 0;
    z.count = 0;
    add_member(&b, &z, "a/data.pkl", pickle.bytes, pickle.size);
    add_member(&b, &z, "b/data.pkl", pickle.bytes, pickle.size);
    end_zip(&b, &z);
    expect_refusal(&b, "both \"a/data.pkl\" and \"b/data.pkl\"", err);
    b.size = 0;
    z.count = 0;
    add_member(&b, &z, "a/data.pkl", pickle.bytes, pickle.size);
    add_member(&b, &z, "a/code/x.py", "pass", 4);
    end_zip(&b, &z);
    expect_refusal(&b, "TorchScript", err);
    for (int i = 0; i < 3; i++) {
        static const char *const orders[] = { "big", "middle", "little-or-so-it-says" };
        b.size = 0;
        z.count = 0;
        add_member(&b, &z, "a/data.pkl", pickle.bytes, pickle.size);
        add_member(&b, &z, "a/byteorder", orders[i], strlen(orders[i]));
        end_zip(&b, &z);
        expect_refusal(&b, i == 2 ? "20 bytes" : "only little-endian", err);
    }
    b.size = 0;
    z.count = 0;
    add_member(&b, &z, "a/data.pkl", pickle.bytes, pickle.size);
    end_zip(&b, &z);
    b.bytes[30 + 1] = 'x'; /* the local header's name */
    expect_refusal(&b, "no header of it", err);
}

/* A safetensors header may be as long as "PK\3\4" says. */
SL_TEST(told_apart_by_contents)
{
    SL_CHECK(sl_pth_is_zip("PK\3\4\0\0\0\0\0", 9) && sl_pth_is_zip("PK\5\6", 4));
    SL_CHECK(!sl_pth_is_zip("PK\3\4\0\0\0\0{", 9) && !sl_pth_is_zip("PK\3", 3));
    SL_CHECK(!sl_pth_is_legacy("\x80\2}q", 4) && !sl_pth_is_legacy("", 0));
}

static unsigned touch(const sl_ckpt *ckpt)
{
    unsigned sum = 0;

    for (int64_t i = 0; i < sl_ckpt_count(ckpt); i++) {
        const sl_ckpt_tensor *t = sl_ckpt_get(ckpt, i);
        for (size_t k = 0; k < t->size_bytes; k++)
            sum += ((const unsigned char *)t->tensor.data)[k];
        sum += (unsigned)strlen(t->name);
    }
    return sum;
}

SL_TEST(truncated_anywhere)
{
    static blob b;
    sl_ckpt *ckpt = NULL;

    make_good(&b);
    const size_t size = b.size;
    for (b.size = 0; b.size < size; b.size++) {
        write_file(&b);
        SL_CHECK_STATUS(sl_ckpt_open(&ckpt, path, err), SL_ERR_DATA);
        SL_CHECK(ckpt == NULL);
        sl_error_clear(err);
    }
    b.size = size;
    PUT(&b, "x"); /* not a comment: its length is not there */
    expect_refusal(&b, "no end-of-directory record", err);
}

SL_TEST(random_bytes_changed)
{
    static blob good, b;
    uint64_t x = 88172645463325252u;
    unsigned sum = 0;
    int opened = 0;

    make_good(&good);
    for (int round = 0; round < 8000; round++) {
        sl_ckpt *ckpt = NULL;

        memcpy(b.bytes, good.bytes, good.size);
        b.size = good.size;
        for (int k = 0; k <= round % 3; k++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            const size_t at = (x >> 20) % b.size;
            if (round & 4)
                b.bytes[at] = (unsigned char)(x >> 40);
            else
                b.bytes[at] = (unsigned char)(b.bytes[at] ^ 1 << (x >> 40) % 8);
        }
        write_file(&b);
        const sl_status status = sl_ckpt_open(&ckpt, path, err);
        SL_CHECK(status == SL_OK || status == SL_ERR_DATA);
        SL_CHECK((status == SL_OK) == (ckpt != NULL));
        if (ckpt) {
            opened++;
            sum += touch(ckpt);
        }
        sl_ckpt_close(ckpt);
        sl_error_clear(err);
    }
    SL_CHECK(opened > 0 && opened < 8000 && sum != 0);
}

SL_TEST(every_allocation_fails_once)
{
    static blob b;
    sl_ckpt *ckpt = NULL;
    int failures = 0;

    make_good(&b);
    write_file(&b);
    for (int n = 1;; n++) {
        allocations = 0;
        fail_at = n;
        const sl_status status = sl_ckpt_open(&ckpt, path, err);
        const int reached = allocations >= n;
        fail_at = 0;
        if (!reached) {
            SL_CHECK_OK(status);
            break;
        }
        SL_CHECK_STATUS(status, SL_ERR_NO_MEMORY);
        SL_CHECK(ckpt == NULL);
        sl_error_clear(err);
        failures++;
    }
    sl_ckpt_close(ckpt);
    SL_CHECK(failures >= 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(tensors_and_views),      SL_RUN(hostile_tensors),
        SL_RUN(hostile_names),          SL_RUN(hostile_pickles), SL_RUN(one_long_name_many_times),
        SL_RUN(limits_of_the_pickle),   SL_RUN(what_is_no_checkpoint),
        SL_RUN(told_apart_by_contents), SL_RUN(truncated_anywhere),
        SL_RUN(random_bytes_changed),   SL_RUN(every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, remove_file);
}
