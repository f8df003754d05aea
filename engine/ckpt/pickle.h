/* pickle.h - the pickle of a torch state dict, read without running it.
 *
 * A pickle is a program.  This interpreter knows the opcodes that a state dict
 * needs, on a stack of plain values; a name outside its list, a call of
 * anything but the tensor constructors and every other opcode are refused
 * (wan.md 2.2).  Nothing is imported, nothing is called.
 *
 * Bounds: no recursion; stack, memo, depth of nesting and memory are capped.
 *
 * Inside of the ckpt module only.  Ownership: values live in the caller's
 * arena, strings point into the pickle's bytes.  Threads: any; no state.
 */
#ifndef SL_ENGINE_CKPT_PICKLE_H
#define SL_ENGINE_CKPT_PICKLE_H

#include "base/arena.h"
#include "base/status.h"
#include "kernels/tensor.h"

/* A 14B model's pickle is 0.2 MB. */
#define SL_PICKLE_MAX_BYTES ((size_t)32 << 20)
/* The most that an arena for it needs to hand out. */
#define SL_PICKLE_MAX_MEMORY ((size_t)256 << 20)

typedef enum {
    SL_PICKLE_NONE,
    SL_PICKLE_BOOL,
    SL_PICKLE_INT,
    SL_PICKLE_NUMBER, /* a float, an integer above 64 bits: of no use here, not kept */
    SL_PICKLE_STRING,
    SL_PICKLE_TUPLE,
    SL_PICKLE_LIST,
    SL_PICKLE_DICT,
    SL_PICKLE_GLOBAL,
    SL_PICKLE_STORAGE,
    SL_PICKLE_TENSOR,
    SL_PICKLE_MARK, /* on the stack only */
} sl_pickle_kind;

typedef struct {
    const char *text; /* not terminated */
    size_t length;
} sl_pickle_string;

/* Elements in a member of the archive. */
typedef struct {
    sl_pickle_string key; /* a plain name: the member is "data/<key>" */
    sl_dtype dtype;
    bool untyped;  /* dtype is U8 and counts bytes */
    int64_t count; /* 0 or more */
} sl_pickle_storage;

/* Checked: every element lies inside the storage; sizes, strides and the
 * offset are 0 or more; the number of elements does not overflow. */
typedef struct {
    const sl_pickle_storage *storage;
    sl_dtype dtype;
    int rank;
    int64_t offset; /* in elements, as the strides */
    int64_t dim[SL_MAX_RANK];
    int64_t stride[SL_MAX_RANK];
} sl_pickle_tensor;

typedef struct sl_pickle_value sl_pickle_value;

struct sl_pickle_value {
    sl_pickle_kind kind;
    int depth; /* how deep containers are nested in it, as far as was known */
    union {
        int64_t integer; /* INT, BOOL */
        int global;      /* row of the list of names */
        sl_pickle_string string;
        struct {
            sl_pickle_value **items; /* DICT: key, value, key, value ... */
            int64_t count, capacity;
        } list; /* TUPLE, LIST, DICT */
        const sl_pickle_storage *storage;
        const sl_pickle_tensor *tensor;
    };
};

/* *root is what the pickle leaves; it may contain itself.  SL_ERR_DATA says at
 * which byte and why. */
sl_status sl_pickle_read(const sl_pickle_value **root, const void *bytes, size_t size_bytes,
                         sl_arena *arena, sl_error *err) SL_MUST_CHECK;

#endif
