#include "engine/ckpt/pickle.h"

#include "base/size.h"

#include <ctype.h>
#include <endian.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_STACK = 1 << 16, /* writers pass on dicts in groups of 1000 pairs */
    MAX_MEMO = 1 << 20,
    MAX_NESTING = 64,
    MAX_STRING_BYTES = 1 << 20,
    MAX_NAME_BYTES = 256,
};

/* Everything that a pickle may name. */
typedef enum {
    NAME_ORDERED_DICT,
    NAME_TENSOR_V2,
    NAME_TENSOR_V3,
    NAME_PARAMETER,
    NAME_SIZE,
    NAME_STORAGE,
    NAME_UNTYPED_STORAGE,
    NAME_TYPED_STORAGE,
    NAME_DTYPE,
} name_kind;

static const struct {
    const char *text;
    name_kind kind;
    sl_dtype dtype;
} names[] = {
    { "collections.OrderedDict", NAME_ORDERED_DICT, SL_DTYPE_COUNT },
    { "torch._utils._rebuild_tensor_v2", NAME_TENSOR_V2, SL_DTYPE_COUNT },
    { "torch._utils._rebuild_tensor_v3", NAME_TENSOR_V3, SL_DTYPE_COUNT },
    { "torch._utils._rebuild_parameter", NAME_PARAMETER, SL_DTYPE_COUNT },
    { "torch.Size", NAME_SIZE, SL_DTYPE_COUNT },
    { "torch.FloatStorage", NAME_STORAGE, SL_F32 },
    { "torch.HalfStorage", NAME_STORAGE, SL_F16 },
    { "torch.BFloat16Storage", NAME_STORAGE, SL_BF16 },
    { "torch.DoubleStorage", NAME_STORAGE, SL_F64 },
    { "torch.CharStorage", NAME_STORAGE, SL_I8 },
    { "torch.ByteStorage", NAME_STORAGE, SL_U8 },
    { "torch.ShortStorage", NAME_STORAGE, SL_I16 },
    { "torch.IntStorage", NAME_STORAGE, SL_I32 },
    { "torch.LongStorage", NAME_STORAGE, SL_I64 },
    { "torch.BoolStorage", NAME_STORAGE, SL_BOOL },
    { "torch.storage.UntypedStorage", NAME_UNTYPED_STORAGE, SL_U8 },
    { "torch.storage.TypedStorage", NAME_TYPED_STORAGE, SL_DTYPE_COUNT },
    { "torch.float32", NAME_DTYPE, SL_F32 },
    { "torch.float16", NAME_DTYPE, SL_F16 },
    { "torch.bfloat16", NAME_DTYPE, SL_BF16 },
    { "torch.float64", NAME_DTYPE, SL_F64 },
    { "torch.int8", NAME_DTYPE, SL_I8 },
    { "torch.uint8", NAME_DTYPE, SL_U8 },
    { "torch.int16", NAME_DTYPE, SL_I16 },
    { "torch.int32", NAME_DTYPE, SL_I32 },
    { "torch.int64", NAME_DTYPE, SL_I64 },
    { "torch.bool", NAME_DTYPE, SL_BOOL },
    { "torch.float8_e4m3fn", NAME_DTYPE, SL_F8_E4M3 },
    { "torch.float8_e5m2", NAME_DTYPE, SL_F8_E5M2 },
};

/* Opcodes of protocol 2, as in Python's pickletools. */
enum {
    OP_MARK = '(',
    OP_STOP = '.',
    OP_EMPTY_TUPLE = ')',
    OP_EMPTY_LIST = ']',
    OP_EMPTY_DICT = '}',
    OP_BINFLOAT = 'G',
    OP_BININT = 'J',
    OP_BININT1 = 'K',
    OP_BININT2 = 'M',
    OP_NONE = 'N',
    OP_BINPERSID = 'Q',
    OP_REDUCE = 'R',
    OP_BINUNICODE = 'X',
    OP_APPEND = 'a',
    OP_BUILD = 'b',
    OP_GLOBAL = 'c',
    OP_APPENDS = 'e',
    OP_BINGET = 'h',
    OP_LONG_BINGET = 'j',
    OP_BINPUT = 'q',
    OP_LONG_BINPUT = 'r',
    OP_SETITEM = 's',
    OP_TUPLE = 't',
    OP_SETITEMS = 'u',
    OP_PROTO = 0x80,
    OP_TUPLE1 = 0x85,
    OP_TUPLE2 = 0x86,
    OP_TUPLE3 = 0x87,
    OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89,
    OP_LONG1 = 0x8a,
};

/* The first failure is kept; functions that return a value then return NULL. */
typedef struct {
    const unsigned char *bytes;
    size_t size_bytes, at;
    sl_arena *arena;
    sl_pickle_value **stack; /* [stack_capacity] */
    int depth;
    sl_pickle_value **memo; /* [memo_capacity], NULL: never written */
    size_t stack_capacity, memo_capacity;
    sl_pickle_value *none, *mark, *booleans[2]; /* of which there is one each */
    sl_status status;
    sl_error *err;
} machine;

static void fail(machine *m, const char *fmt, ...) SL_PRINTF(2, 3);

static void fail(machine *m, const char *fmt, ...)
{
    char text[400];
    va_list args;

    if (m->status != SL_OK)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    m->status = sl_fail(m->err, SL_ERR_DATA, "pickle: byte %zu: %s", m->at, text);
}

static void *allocate(machine *m, size_t size_bytes)
{
    void *p = sl_arena_alloc(m->arena, size_bytes);

    if (p || m->status != SL_OK)
        return p;
    if (sl_arena_used_bytes(m->arena) + size_bytes + 16 > SL_PICKLE_MAX_MEMORY)
        fail(m, "needs more than %zu bytes", SL_PICKLE_MAX_MEMORY);
    else
        m->status = sl_fail(m->err, SL_ERR_NO_MEMORY, "out of memory for a pickle");
    return NULL;
}

static sl_pickle_value *make(machine *m, sl_pickle_kind kind)
{
    sl_pickle_value *value = allocate(m, sizeof *value);

    if (value)
        value->kind = kind;
    return value;
}

/* Makes room for an index; what is new is NULL. */
static bool grow(machine *m, sl_pickle_value ***array, size_t *capacity, size_t index)
{
    const size_t grown = index < 128 ? 256 : 2 * index;
    sl_pickle_value **moved;

    if (index < *capacity)
        return true;
    moved = allocate(m, grown * sizeof(void *));
    if (!moved)
        return false;
    if (*capacity > 0)
        memcpy(moved, *array, *capacity * sizeof(void *));
    *array = moved;
    *capacity = grown;
    return true;
}

/* --- bytes --- */

static const unsigned char *take(machine *m, size_t size_bytes)
{
    const unsigned char *at = m->bytes + m->at;

    if (m->status != SL_OK)
        return NULL;
    if (size_bytes > m->size_bytes - m->at) {
        fail(m, "the pickle ends, %zu bytes are missing", size_bytes - (m->size_bytes - m->at));
        return NULL;
    }
    m->at += size_bytes;
    return at;
}

/* Little-endian; 0 after a failure. */
static uint32_t take_unsigned(machine *m, size_t size_bytes)
{
    const unsigned char *at = take(m, size_bytes);
    uint32_t value = 0;

    for (size_t i = 0; at && i < size_bytes; i++)
        value |= (uint32_t)at[i] << (8 * i);
    return value;
}

/* Up to a line feed, which is taken too. */
static sl_pickle_string take_line(machine *m)
{
    const char *start = (const char *)m->bytes + m->at;
    const size_t left = m->size_bytes - m->at;
    const char *end = m->status == SL_OK
                          ? memchr(start, '\n', left < MAX_NAME_BYTES ? left : MAX_NAME_BYTES)
                          : NULL;

    if (!end) {
        fail(m, "a name without an end");
        return (sl_pickle_string){ "", 0 };
    }
    m->at += (size_t)(end - start) + 1;
    return (sl_pickle_string){ start, (size_t)(end - start) };
}

/* --- stack --- */

static void push(machine *m, sl_pickle_value *value)
{
    if (!value || m->status != SL_OK)
        return;
    if (m->depth == MAX_STACK)
        fail(m, "more than %d values on the stack", MAX_STACK);
    else if (grow(m, &m->stack, &m->stack_capacity, (size_t)m->depth))
        m->stack[m->depth++] = value;
}

/* The value at the top, which is not the mark. */
static sl_pickle_value *top(machine *m)
{
    if (m->status == SL_OK && (m->depth == 0 || m->stack[m->depth - 1] == m->mark))
        fail(m, "a value is missing on the stack");
    return m->status == SL_OK ? m->stack[m->depth - 1] : NULL;
}

static sl_pickle_value *pop(machine *m)
{
    sl_pickle_value *value = top(m);

    if (value)
        m->depth--;
    return value;
}

/* Where the values above the topmost mark start. */
static int above_mark(machine *m)
{
    int at = m->depth;

    while (at > 0 && m->stack[at - 1] != m->mark)
        at--;
    if (at == 0)
        fail(m, "a mark is missing on the stack");
    return at;
}

/* --- containers --- */

/* item goes into value: how deep is it now? */
static void nest(machine *m, sl_pickle_value *value, const sl_pickle_value *item)
{
    if (value->depth <= item->depth)
        value->depth = item->depth + 1;
    if (value->depth > MAX_NESTING)
        fail(m, "containers are nested deeper than %d", MAX_NESTING);
}

static void append(machine *m, sl_pickle_value *value, sl_pickle_value *item)
{
    if (m->status != SL_OK)
        return;
    if (value->list.count == value->list.capacity) {
        const int64_t grown = value->list.capacity ? value->list.capacity * 2 : 4;
        sl_pickle_value **moved = allocate(m, (size_t)grown * sizeof(void *));

        if (!moved)
            return;
        if (value->list.count > 0)
            memcpy(moved, value->list.items, (size_t)value->list.count * sizeof(void *));
        value->list.items = moved;
        value->list.capacity = grown;
    }
    value->list.items[value->list.count++] = item;
    nest(m, value, item);
}

/* Moves the stack's values from `first` on into `into`. */
static void collect(machine *m, int first, sl_pickle_value *into)
{
    for (int i = first; into && i < m->depth && m->status == SL_OK; i++)
        append(m, into, m->stack[i]);
    m->depth = first;
}

static void op_tuple(machine *m, int count)
{
    sl_pickle_value *tuple = make(m, SL_PICKLE_TUPLE);

    for (int i = 1; i <= count && m->status == SL_OK; i++)
        if (m->depth < i || m->stack[m->depth - i] == m->mark)
            fail(m, "a value is missing on the stack");
    if (m->status != SL_OK)
        return;
    collect(m, m->depth - count, tuple);
    push(m, tuple);
}

static void op_tuple_of_mark(machine *m)
{
    const int first = above_mark(m);
    sl_pickle_value *tuple = make(m, SL_PICKLE_TUPLE);

    if (m->status != SL_OK)
        return;
    collect(m, first, tuple);
    m->depth--; /* the mark */
    push(m, tuple);
}

/* Values above the mark, or the topmost `count`, go into what is below. */
static void op_add(machine *m, sl_pickle_kind kind, bool to_mark)
{
    const int least = kind == SL_PICKLE_DICT ? 2 : 1;
    const int first = to_mark ? above_mark(m) : m->depth - least;
    const int into = to_mark ? first - 2 : first - 1;

    if (m->status != SL_OK)
        return;
    if (into < 0 || m->stack[into]->kind != kind) {
        fail(m, "items for a %s that is not there", kind == SL_PICKLE_DICT ? "dict" : "list");
        return;
    }
    for (int i = first; i < m->depth; i++)
        if (m->stack[i] == m->mark)
            fail(m, "a value is missing on the stack");
    if ((m->depth - first) % least != 0)
        fail(m, "a key without a value");
    collect(m, first, m->stack[into]);
    m->depth = into + 1;
}

/* --- names and calls --- */

static void op_global(machine *m)
{
    const sl_pickle_string module = take_line(m), name = take_line(m);
    char text[2 * MAX_NAME_BYTES + 2];
    sl_pickle_value *value = make(m, SL_PICKLE_GLOBAL);

    if (m->status != SL_OK)
        return;
    snprintf(text, sizeof text, "%.*s.%.*s", (int)module.length, module.text, (int)name.length,
             name.text);
    for (size_t i = 0; i < SL_COUNT(names); i++) {
        const size_t dot = (size_t)(strrchr(names[i].text, '.') - names[i].text);

        if (dot == module.length && strlen(text) == module.length + 1 + name.length &&
            strcmp(text, names[i].text) == 0) {
            value->global = (int)i;
            push(m, value);
            return;
        }
    }
    for (char *c = text; *c; c++)
        if (!isprint((unsigned char)*c))
            *c = '?';
    fail(m, "refers to \"%.200s\", which a state dict does not need", text);
}

static bool is_name(const sl_pickle_value *value, name_kind kind)
{
    return value->kind == SL_PICKLE_GLOBAL && names[value->global].kind == kind;
}

static bool is_plain_key(sl_pickle_string key)
{
    if (key.length == 0 || key.length > MAX_NAME_BYTES)
        return false;
    for (size_t i = 0; i < key.length; i++) {
        const unsigned char c = (unsigned char)key.text[i];

        if (!isgraph(c) || c == '/' || c == '\\' || (c == '.' && i > 0 && key.text[i - 1] == '.'))
            return false;
    }
    return true;
}

/* ("storage", type, key, location, number of elements); the location is where
 * the tensor was when it was saved. */
static void op_persistent(machine *m)
{
    const sl_pickle_value *id = pop(m);
    sl_pickle_value *value = make(m, SL_PICKLE_STORAGE);
    sl_pickle_storage *storage = allocate(m, sizeof *storage);
    sl_pickle_value **item;

    if (m->status != SL_OK)
        return;
    item = id->list.items;
    if (id->kind != SL_PICKLE_TUPLE || id->list.count != 5 || item[0]->kind != SL_PICKLE_STRING ||
        item[0]->string.length != 7 || memcmp(item[0]->string.text, "storage", 7) != 0 ||
        item[2]->kind != SL_PICKLE_STRING || item[3]->kind != SL_PICKLE_STRING ||
        item[4]->kind != SL_PICKLE_INT) {
        fail(m, "a persistent id that is no storage");
        return;
    }
    if (!is_name(item[1], NAME_STORAGE) && !is_name(item[1], NAME_UNTYPED_STORAGE)) {
        fail(m, "a storage without a type");
        return;
    }
    if (!is_plain_key(item[2]->string)) {
        fail(m, "a storage key that is no plain name");
        return;
    }
    if (item[4]->integer < 0) {
        fail(m, "a storage of %lld elements", (long long)item[4]->integer);
        return;
    }
    *storage = (sl_pickle_storage){ .key = item[2]->string,
                                    .dtype = names[item[1]->global].dtype,
                                    .untyped = is_name(item[1], NAME_UNTYPED_STORAGE),
                                    .count = item[4]->integer };
    value->storage = storage;
    push(m, value);
}

/* Sizes and strides into t. */
static bool take_shape(machine *m, sl_pickle_tensor *t, const sl_pickle_value *size,
                       const sl_pickle_value *stride)
{
    if (size->list.count != stride->list.count) {
        fail(m, "a tensor of %lld sizes and %lld strides", (long long)size->list.count,
             (long long)stride->list.count);
        return false;
    }
    if (size->list.count > SL_MAX_RANK) {
        fail(m, "a tensor of %lld dimensions, at most %d are read", (long long)size->list.count,
             SL_MAX_RANK);
        return false;
    }
    t->rank = (int)size->list.count;
    for (int i = 0; i < t->rank; i++) {
        const sl_pickle_value *n = size->list.items[i], *step = stride->list.items[i];

        if (n->kind != SL_PICKLE_INT || step->kind != SL_PICKLE_INT || n->integer < 0 ||
            step->integer < 0) {
            fail(m, "a tensor with a size or stride that is negative or no number");
            return false;
        }
        t->dim[i] = n->integer;
        t->stride[i] = step->integer;
    }
    return true;
}

/* Is every element inside the storage? */
static void check_bounds(machine *m, const sl_pickle_tensor *t)
{
    int64_t count = 1, last = t->offset, step, bytes;

    if (!sl_count_mul(t->storage->count, (int64_t)sl_dtype_bytes(t->storage->dtype), &bytes)) {
        fail(m, "a storage of %lld elements", (long long)t->storage->count);
        return;
    }
    for (int i = 0; i < t->rank; i++)
        if (!sl_count_mul(count, t->dim[i], &count)) {
            fail(m, "a tensor whose number of elements overflows");
            return;
        }
    for (int i = 0; i < t->rank && count > 0; i++)
        if (!sl_count_mul(t->dim[i] - 1, t->stride[i], &step) ||
            __builtin_add_overflow(last, step, &last)) {
            fail(m, "a tensor whose strides overflow");
            return;
        }
    const int64_t there = bytes / (int64_t)sl_dtype_bytes(t->dtype);
    if (count > 0 && last >= there)
        fail(m, "a tensor that reaches to element %lld of a storage of %lld", (long long)last,
             (long long)there);
}

/* (storage, offset, size, stride, requires_grad, hooks [, metadata]), version
 * 3 with the dtype in front of the metadata. */
static void call_tensor(machine *m, const sl_pickle_value *args, bool version3)
{
    sl_pickle_value **arg = args->list.items, *value = make(m, SL_PICKLE_TENSOR);
    const int64_t least = version3 ? 7 : 6;
    sl_pickle_tensor *t = allocate(m, sizeof *t);

    if (m->status != SL_OK)
        return;
    if (args->list.count < least || args->list.count > least + 1 ||
        arg[0]->kind != SL_PICKLE_STORAGE || arg[1]->kind != SL_PICKLE_INT ||
        arg[2]->kind != SL_PICKLE_TUPLE || arg[3]->kind != SL_PICKLE_TUPLE ||
        arg[4]->kind != SL_PICKLE_BOOL ||
        (arg[5]->kind != SL_PICKLE_DICT && arg[5]->kind != SL_PICKLE_NONE) ||
        (version3 && !is_name(arg[6], NAME_DTYPE)) || (!version3 && arg[0]->storage->untyped)) {
        fail(m, "a tensor made of something else");
        return;
    }
    t->storage = arg[0]->storage;
    t->dtype = version3 ? names[arg[6]->global].dtype : t->storage->dtype;
    t->offset = arg[1]->integer;
    if (t->offset < 0)
        fail(m, "a tensor at element %lld of its storage", (long long)t->offset);
    if (m->status == SL_OK && take_shape(m, t, arg[2], arg[3]))
        check_bounds(m, t);
    value->tensor = t;
    push(m, value);
}

static void op_reduce(machine *m)
{
    const sl_pickle_value *args = pop(m), *callee = pop(m);
    const int64_t count = args && args->kind == SL_PICKLE_TUPLE ? args->list.count : -1;

    if (m->status != SL_OK)
        return;
    if (count < 0 || callee->kind != SL_PICKLE_GLOBAL)
        fail(m, "a call of something that is no name");
    else if (is_name(callee, NAME_ORDERED_DICT) && count == 0)
        push(m, make(m, SL_PICKLE_DICT));
    else if (is_name(callee, NAME_TENSOR_V2) || is_name(callee, NAME_TENSOR_V3))
        call_tensor(m, args, is_name(callee, NAME_TENSOR_V3));
    else if (is_name(callee, NAME_PARAMETER) && count == 3 &&
             args->list.items[0]->kind == SL_PICKLE_TENSOR)
        push(m, args->list.items[0]);
    else if (is_name(callee, NAME_SIZE) && count == 1 &&
             args->list.items[0]->kind == SL_PICKLE_TUPLE)
        push(m, args->list.items[0]);
    else
        fail(m, "a call of \"%s\" with %lld arguments", names[callee->global].text,
             (long long)count);
}

/* Attributes of a dict (a state dict's _metadata): dropped. */
static void op_build(machine *m)
{
    const sl_pickle_value *state = pop(m), *object = top(m);

    if (state && object && object->kind != SL_PICKLE_DICT)
        fail(m, "attributes for something that is no dict");
}

/* --- the rest --- */

static void push_integer(machine *m, int64_t integer)
{
    sl_pickle_value *value = make(m, SL_PICKLE_INT);

    if (value)
        value->integer = integer;
    push(m, value);
}

static void op_long(machine *m)
{
    const size_t n = take_unsigned(m, 1);
    const unsigned char *at = take(m, n);
    uint64_t bits = 0;

    if (!at)
        return;
    if (n > 8) {
        push(m, make(m, SL_PICKLE_NUMBER));
        return;
    }
    for (size_t i = 0; i < n; i++)
        bits |= (uint64_t)at[i] << (8 * i);
    if (n > 0 && n < 8 && (at[n - 1] & 0x80))
        bits |= ~(uint64_t)0 << (8 * n);
    push_integer(m, (int64_t)bits);
}

static void op_string(machine *m)
{
    const size_t length = take_unsigned(m, 4);
    sl_pickle_value *value = make(m, SL_PICKLE_STRING);

    if (length > MAX_STRING_BYTES) {
        fail(m, "a string of %zu bytes, the limit is %d", length, MAX_STRING_BYTES);
        return;
    }
    const unsigned char *text = take(m, length);
    if (!value || !text)
        return;
    value->string = (sl_pickle_string){ (const char *)text, length };
    push(m, value);
}

static void op_put(machine *m, size_t slot)
{
    sl_pickle_value *value = top(m);

    if (!value)
        return;
    if (slot >= MAX_MEMO) {
        fail(m, "memo slot %zu, the limit is %d", slot, MAX_MEMO);
        return;
    }
    if (grow(m, &m->memo, &m->memo_capacity, slot))
        m->memo[slot] = value;
}

static void op_get(machine *m, size_t slot)
{
    if (m->status == SL_OK && (slot >= m->memo_capacity || !m->memo[slot]))
        fail(m, "memo slot %zu was never written", slot);
    else if (m->status == SL_OK)
        push(m, m->memo[slot]);
}

static void op_proto(machine *m)
{
    const uint32_t version = take_unsigned(m, 1);

    if (m->status == SL_OK && version != 2)
        fail(m, "pickle protocol %u, only 2 is read", version);
}

static void refuse_opcode(machine *m, unsigned opcode)
{
    static const struct {
        unsigned opcode;
        const char *name;
    } known[] = {
        { 'i', "INST" },          { 'o', "OBJ" },    { 0x81, "NEWOBJ" }, { 0x92, "NEWOBJ_EX" },
        { 0x93, "STACK_GLOBAL" }, { 0x82, "EXT1" },  { 0x83, "EXT2" },   { 0x84, "EXT4" },
        { 'P', "PERSID" },        { 0x8b, "LONG4" }, { 0x95, "FRAME" },
    };
    const char *name = "";

    for (size_t i = 0; i < SL_COUNT(known); i++)
        if (known[i].opcode == opcode)
            name = known[i].name;
    fail(m, "opcode 0x%02x%s%s, which a state dict does not need", opcode, *name ? " " : "", name);
}

static void step(machine *m, unsigned opcode)
{
    switch (opcode) {
    case OP_PROTO:
        op_proto(m);
        break;
    case OP_NONE:
        push(m, m->none);
        break;
    case OP_NEWTRUE:
    case OP_NEWFALSE:
        push(m, m->booleans[opcode == OP_NEWTRUE]);
        break;
    case OP_BININT:
        push_integer(m, (int32_t)take_unsigned(m, 4));
        break;
    case OP_BININT1:
        push_integer(m, take_unsigned(m, 1));
        break;
    case OP_BININT2:
        push_integer(m, take_unsigned(m, 2));
        break;
    case OP_LONG1:
        op_long(m);
        break;
    case OP_BINFLOAT:
        take(m, 8);
        push(m, make(m, SL_PICKLE_NUMBER));
        break;
    case OP_BINUNICODE:
        op_string(m);
        break;
    case OP_MARK:
        push(m, m->mark);
        break;
    case OP_EMPTY_TUPLE:
        push(m, make(m, SL_PICKLE_TUPLE));
        break;
    case OP_EMPTY_LIST:
        push(m, make(m, SL_PICKLE_LIST));
        break;
    case OP_EMPTY_DICT:
        push(m, make(m, SL_PICKLE_DICT));
        break;
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        op_tuple(m, (int)(opcode - OP_TUPLE1) + 1);
        break;
    case OP_TUPLE:
        op_tuple_of_mark(m);
        break;
    case OP_APPEND:
    case OP_APPENDS:
        op_add(m, SL_PICKLE_LIST, opcode == OP_APPENDS);
        break;
    case OP_SETITEM:
    case OP_SETITEMS:
        op_add(m, SL_PICKLE_DICT, opcode == OP_SETITEMS);
        break;
    case OP_BINPUT:
        op_put(m, take_unsigned(m, 1));
        break;
    case OP_LONG_BINPUT:
        op_put(m, take_unsigned(m, 4));
        break;
    case OP_BINGET:
        op_get(m, take_unsigned(m, 1));
        break;
    case OP_LONG_BINGET:
        op_get(m, take_unsigned(m, 4));
        break;
    case OP_GLOBAL:
        op_global(m);
        break;
    case OP_BINPERSID:
        op_persistent(m);
        break;
    case OP_REDUCE:
        op_reduce(m);
        break;
    case OP_BUILD:
        op_build(m);
        break;
    default:
        refuse_opcode(m, opcode);
    }
}

sl_status sl_pickle_read(const sl_pickle_value **root, const void *bytes, size_t size_bytes,
                         sl_arena *arena, sl_error *err)
{
    machine m = {
        .bytes = bytes, .size_bytes = size_bytes, .arena = arena, .status = SL_OK, .err = err
    };

    if (size_bytes > SL_PICKLE_MAX_BYTES)
        return sl_fail(err, SL_ERR_DATA, "a pickle of %zu bytes, the limit is %zu", size_bytes,
                       SL_PICKLE_MAX_BYTES);
    m.none = make(&m, SL_PICKLE_NONE);
    m.mark = make(&m, SL_PICKLE_MARK);
    for (int i = 0; i < 2; i++) {
        m.booleans[i] = make(&m, SL_PICKLE_BOOL);
        if (m.booleans[i])
            m.booleans[i]->integer = i;
    }
    while (m.status == SL_OK) {
        const unsigned opcode = take_unsigned(&m, 1);

        if (m.status == SL_OK && opcode == OP_STOP)
            break;
        if (m.status == SL_OK)
            step(&m, opcode);
    }
    const sl_pickle_value *result = pop(&m);
    if (result && m.depth != 0)
        fail(&m, "%d values are left on the stack", m.depth);
    if (m.status == SL_OK)
        *root = result;
    return m.status;
}
