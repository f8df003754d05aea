#include "engine/ckpt/st_file.h"

#include "base/size.h"
#include "engine/ckpt/json_scan.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

static bool find_dtype(const char *text, sl_dtype *out)
{
    for (int i = 0; i < SL_DTYPE_COUNT; i++) {
        if (strcmp(sl_dtype_name((sl_dtype)i), text) == 0) {
            *out = (sl_dtype)i;
            return true;
        }
    }
    return false;
}

static sl_status parse_shape(sl_json_scan *scan, sl_tensor *t, sl_error *err)
{
    bool more;
    sl_status status = sl_json_enter(scan, '[', &more, err);

    t->rank = 0;
    while (status == SL_OK && more) {
        if (t->rank == SL_MAX_RANK)
            return sl_fail(err, SL_ERR_DATA, "more than %d dimensions", SL_MAX_RANK);
        status = sl_json_integer(scan, &t->dim[t->rank], err);
        t->rank++;
        if (status == SL_OK)
            status = sl_json_next(scan, '[', &more, err);
    }
    return status;
}

static sl_status parse_offsets(sl_json_scan *scan, int64_t offsets[2], sl_error *err)
{
    bool more;
    sl_status status = sl_json_enter(scan, '[', &more, err);

    for (int i = 0; i < 2 && status == SL_OK; i++) {
        if (!more)
            return sl_fail(err, SL_ERR_DATA, "data_offsets has %d of 2 values", i);
        status = sl_json_integer(scan, &offsets[i], err);
        if (status == SL_OK)
            status = sl_json_next(scan, '[', &more, err);
    }
    if (status == SL_OK && more)
        return sl_fail(err, SL_ERR_DATA, "data_offsets has more than 2 values");
    return status;
}

static sl_status parse_dtype(sl_json_scan *scan, sl_tensor *t, sl_error *err)
{
    char text[32];
    const sl_status status = sl_json_string(scan, text, sizeof text, NULL, err);

    if (status == SL_OK && !find_dtype(text, &t->dtype))
        return sl_fail(err, SL_ERR_DATA, "unknown dtype \"%s\"", text);
    return status;
}

/* {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, in any order,
 * each once and nothing else. */
static sl_status parse_record(sl_json_scan *scan, sl_tensor *t, int64_t offsets[2], sl_error *err)
{
    enum { HAS_DTYPE = 1, HAS_SHAPE = 2, HAS_OFFSETS = 4, HAS_ALL = 7 };
    unsigned seen = 0, bit;
    bool more;
    sl_status status = sl_json_enter(scan, '{', &more, err);

    while (status == SL_OK && more) {
        char key[32];

        status = sl_json_key(scan, key, sizeof key, NULL, err);
        if (status != SL_OK)
            return status;
        bit = strcmp(key, "dtype") == 0          ? HAS_DTYPE
              : strcmp(key, "shape") == 0        ? HAS_SHAPE
              : strcmp(key, "data_offsets") == 0 ? HAS_OFFSETS
                                                 : 0;
        if (bit == 0)
            return sl_fail(err, SL_ERR_DATA, "unknown key \"%s\"", key);
        if (seen & bit)
            return sl_fail(err, SL_ERR_DATA, "key \"%s\" twice", key);
        seen |= bit;
        if (bit == HAS_DTYPE)
            status = parse_dtype(scan, t, err);
        else if (bit == HAS_SHAPE)
            status = parse_shape(scan, t, err);
        else
            status = parse_offsets(scan, offsets, err);
        if (status == SL_OK)
            status = sl_json_next(scan, '{', &more, err);
    }
    if (status == SL_OK && seen != HAS_ALL)
        return sl_fail(err, SL_ERR_DATA, "dtype, shape or data_offsets is missing");
    return status;
}

/* Turns a record into a tensor that points into the data area. */
static sl_status place(sl_ckpt_tensor *tensor, const int64_t offsets[2], char *data,
                       size_t data_bytes, sl_error *err)
{
    sl_tensor *t = &tensor->tensor;
    int64_t count = 1;
    size_t need;

    for (int i = 0; i < t->rank; i++)
        if (!sl_count_mul(count, t->dim[i], &count))
            return sl_fail(err, SL_ERR_DATA, "the number of elements overflows");
    if (!sl_size_mul((size_t)count, sl_dtype_bytes(t->dtype), &need))
        return sl_fail(err, SL_ERR_DATA, "the number of bytes overflows");
    if (offsets[0] > offsets[1])
        return sl_fail(err, SL_ERR_DATA, "data ends at %lld before it starts at %lld",
                       (long long)offsets[1], (long long)offsets[0]);
    if ((size_t)offsets[1] > data_bytes)
        return sl_fail(err, SL_ERR_DATA, "data ends at %lld, the file holds %zu bytes of data",
                       (long long)offsets[1], data_bytes);
    if ((size_t)(offsets[1] - offsets[0]) != need)
        return sl_fail(err, SL_ERR_DATA, "shape and dtype need %zu bytes, data_offsets give %lld",
                       need, (long long)(offsets[1] - offsets[0]));
    t->data = data + offsets[0];
    tensor->size_bytes = need;
    return SL_OK;
}

static sl_status parse_metadata(sl_json_scan *scan, sl_error *err)
{
    bool more;
    sl_status status = sl_json_enter(scan, '{', &more, err);

    while (status == SL_OK && more) {
        status = sl_json_key(scan, NULL, 0, NULL, err);
        if (status == SL_OK)
            status = sl_json_string(scan, NULL, 0, NULL, err);
        if (status == SL_OK)
            status = sl_json_next(scan, '{', &more, err);
    }
    return status;
}

static sl_status parse_header(sl_ckpt_file *file, const char *text, size_t text_bytes, char *data,
                              size_t data_bytes, sl_error *err)
{
    sl_json_scan scan = sl_json_begin(text, text_bytes);
    size_t names_used = 0, length;
    bool more, has_metadata = false;
    sl_status status = sl_json_enter(&scan, '{', &more, err);

    while (status == SL_OK && more) {
        char *name = file->names + names_used;
        int64_t offsets[2];

        status = sl_json_key(&scan, name, text_bytes + 1 - names_used, &length, err);
        if (status != SL_OK)
            return status;
        if (strcmp(name, "__metadata__") == 0) {
            if (has_metadata)
                return sl_fail(err, SL_ERR_DATA, "\"__metadata__\" twice");
            has_metadata = true;
            status = parse_metadata(&scan, err);
        } else {
            sl_ckpt_tensor *tensor = sl_ckpt_file_push(file, err);
            if (!tensor)
                return SL_ERR_NO_MEMORY;
            names_used += length + 1;
            sl_ckpt_normalise(name);
            if (*name == '\0')
                return sl_fail(err, SL_ERR_DATA, "tensor with an empty name");
            tensor->name = name;
            status = parse_record(&scan, &tensor->tensor, offsets, err);
            if (status == SL_OK)
                status = place(tensor, offsets, data, data_bytes, err);
            if (status != SL_OK) {
                sl_error_prefix(err, "tensor \"%.200s\"", name);
                return status;
            }
        }
        if (status == SL_OK)
            status = sl_json_next(&scan, '{', &more, err);
    }
    return status == SL_OK ? sl_json_end(&scan, err) : status;
}

static int by_place(const void *a, const void *b)
{
    const sl_ckpt_tensor *x = a, *y = b;
    const uintptr_t p = (uintptr_t)x->tensor.data, q = (uintptr_t)y->tensor.data;

    return p != q ? (p < q ? -1 : 1)
                  : (x->size_bytes > y->size_bytes) - (x->size_bytes < y->size_bytes);
}

static sl_status check_overlap_and_sort(sl_ckpt_file *file, sl_error *err)
{
    sl_ckpt_tensor *t = file->tensors;

    if (file->count == 0)
        return SL_OK;
    qsort(t, (size_t)file->count, sizeof *t, by_place);
    for (int64_t i = 1; i < file->count; i++)
        if ((uintptr_t)t[i - 1].tensor.data + t[i - 1].size_bytes > (uintptr_t)t[i].tensor.data)
            return sl_fail(err, SL_ERR_DATA, "tensors \"%.200s\" and \"%.200s\" overlap",
                           t[i - 1].name, t[i].name);
    return sl_ckpt_file_sort(file, err);
}

/* Reads rather than maps: a file that is cut meanwhile must not end us. */
sl_status sl_st_parse(sl_ckpt_file *file, sl_error *err)
{
    char *text = NULL;
    uint64_t header;
    unsigned char start[8];
    sl_status status;

    if (file->map_bytes < 8)
        return sl_fail(err, SL_ERR_DATA, "%zu bytes are too short for a safetensors file",
                       file->map_bytes);
    status = sl_file_read(file->fd, file->path, 0, start, sizeof start, err);
    if (status != SL_OK)
        return status;
    memcpy(&header, start, 8);
    header = le64toh(header);
    if (header > SL_ST_MAX_HEADER_BYTES || header > file->map_bytes - 8) {
        return sl_fail(err, SL_ERR_DATA,
                       "header length %llu is above the limit of %zu or the file's %zu bytes",
                       (unsigned long long)header, SL_ST_MAX_HEADER_BYTES, file->map_bytes);
    }
    /* names lose their quotes and gain a terminator: they always fit */
    file->names = malloc((size_t)header + 1);
    text = malloc((size_t)header + 1);
    if (!file->names || !text) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a header of %llu bytes",
                         (unsigned long long)header);
        goto done;
    }
    status = sl_file_read(file->fd, file->path, 8, text, (size_t)header, err);
    if (status == SL_OK)
        status = parse_header(file, text, (size_t)header, (char *)file->map + 8 + header,
                              file->map_bytes - 8 - (size_t)header, err);
    if (status == SL_OK)
        status = check_overlap_and_sort(file, err);
done:
    free(text);
    return status;
}
