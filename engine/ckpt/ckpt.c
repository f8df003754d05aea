#include "engine/ckpt/ckpt.h"

#include "base/size.h"
#include "engine/ckpt/ckpt_file.h"
#include "engine/ckpt/json_scan.h"
#include "engine/ckpt/st_file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Real checkpoints have 6 to 14 shards. */
enum { MAX_SHARDS = 256 };

struct sl_ckpt {
    char *path;
    sl_ckpt_file *files; /* their tensor arrays are NULL once merged */
    int file_count;
    sl_ckpt_tensor *tensors; /* sorted by name */
    int64_t count;
    size_t data_bytes;
};

/* One line of an index: which shard has a tensor. */
typedef struct {
    const char *name, *shard;
} index_entry;

typedef struct {
    char *strings; /* backing of the entries */
    index_entry *entries;
    int64_t count, capacity;
} shard_index;

static void shard_index_fini(shard_index *index)
{
    free(index->strings);
    free(index->entries);
    *index = (shard_index){ .strings = NULL };
}

static sl_status push_entry(shard_index *index, const char *name, const char *shard, sl_error *err)
{
    if (index->count == index->capacity) {
        const int64_t grown = index->capacity ? index->capacity * 2 : 256;
        index_entry *moved = reallocarray(index->entries, (size_t)grown, sizeof *moved);

        if (!moved)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %" PRId64 " index entries",
                           grown);
        index->entries = moved;
        index->capacity = grown;
    }
    index->entries[index->count++] = (index_entry){ .name = name, .shard = shard };
    return SL_OK;
}

/* The shard must be a plain file name beside the index. */
static bool is_plain_name(const char *name)
{
    return *name != '\0' && !strchr(name, '/') && !strchr(name, '\\') && !strstr(name, "..");
}

static sl_status parse_weight_map(sl_json_scan *scan, shard_index *index, size_t text_bytes,
                                  sl_error *err)
{
    size_t used = 0, length;
    bool more;
    sl_status status = sl_json_enter(scan, '{', &more, err);

    while (status == SL_OK && more) {
        char *name = index->strings + used, *shard;

        status = sl_json_key(scan, name, text_bytes + 1 - used, &length, err);
        if (status != SL_OK)
            return status;
        used += length + 1;
        sl_ckpt_normalise(name);
        shard = index->strings + used;
        status = sl_json_string(scan, shard, text_bytes + 1 - used, &length, err);
        if (status != SL_OK)
            return status;
        used += length + 1;
        if (!is_plain_name(shard))
            return sl_fail(err, SL_ERR_DATA,
                           "tensor \"%.200s\": shard name \"%.200s\" is no plain file name", name,
                           shard);
        status = push_entry(index, name, shard, err);
        if (status == SL_OK)
            status = sl_json_next(scan, '{', &more, err);
    }
    return status;
}

static sl_status parse_index(shard_index *index, const char *text, size_t text_bytes, sl_error *err)
{
    sl_json_scan scan = sl_json_begin(text, text_bytes);
    bool more, found = false;
    sl_status status = sl_json_enter(&scan, '{', &more, err);

    while (status == SL_OK && more) {
        char key[64];

        status = sl_json_key(&scan, key, sizeof key, NULL, err);
        if (status != SL_OK)
            return status;
        if (strcmp(key, "weight_map") == 0) {
            if (found)
                return sl_fail(err, SL_ERR_DATA, "\"weight_map\" twice");
            found = true;
            status = parse_weight_map(&scan, index, text_bytes, err);
        } else {
            status = sl_json_skip(&scan, err);
        }
        if (status == SL_OK)
            status = sl_json_next(&scan, '{', &more, err);
    }
    if (status == SL_OK)
        status = sl_json_end(&scan, err);
    if (status == SL_OK && index->count == 0)
        return sl_fail(err, SL_ERR_DATA, "no \"weight_map\", or an empty one");
    return status;
}

static sl_status read_index(shard_index *index, const char *path, sl_error *err)
{
    char *text = NULL;
    size_t size_bytes = 0;
    int fd = -1;
    sl_status status;

    *index = (shard_index){ .strings = NULL };
    status = sl_file_open(path, &fd, &size_bytes, err);
    if (status != SL_OK)
        return status;
    if (size_bytes > SL_ST_MAX_HEADER_BYTES) {
        status = sl_fail(err, SL_ERR_DATA, "an index of %zu bytes is above the limit of %zu",
                         size_bytes, SL_ST_MAX_HEADER_BYTES);
        goto done;
    }
    index->strings = malloc(size_bytes + 1);
    text = malloc(size_bytes + 1);
    if (!index->strings || !text) {
        status =
            sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for an index of %zu bytes", size_bytes);
        goto done;
    }
    status = sl_file_read(fd, path, 0, text, size_bytes, err);
    if (status == SL_OK)
        status = parse_index(index, text, size_bytes, err);
done:
    close(fd);
    free(text);
    if (status != SL_OK) {
        sl_error_prefix(err, "\"%s\"", path);
        shard_index_fini(index);
    }
    return status;
}

static int by_shard(const void *a, const void *b)
{
    return strcmp(((const index_entry *)a)->shard, ((const index_entry *)b)->shard);
}

static int entry_by_name(const void *a, const void *b)
{
    return strcmp(((const index_entry *)a)->name, ((const index_entry *)b)->name);
}

static int tensor_by_name(const void *a, const void *b)
{
    return strcmp(((const sl_ckpt_tensor *)a)->name, ((const sl_ckpt_tensor *)b)->name);
}

static sl_status open_shard(sl_ckpt *ckpt, const char *index_path, const char *shard, sl_error *err)
{
    const char *slash = strrchr(index_path, '/');
    const int dir = slash ? (int)(slash - index_path) + 1 : 0;
    char *path = NULL;
    sl_status status;

    if (ckpt->file_count == MAX_SHARDS)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" names more than %d shards", index_path,
                       MAX_SHARDS);
    if (asprintf(&path, "%.*s%s", dir, index_path, shard) < 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    status = sl_ckpt_file_init(&ckpt->files[ckpt->file_count], path, err);
    if (status == SL_OK)
        ckpt->file_count++;
    free(path);
    return status;
}

/* Opens each distinct shard once; entries are left sorted by shard, and so is
 * the list of files. */
static sl_status open_shards(sl_ckpt *ckpt, shard_index *index, const char *path, sl_error *err)
{
    sl_status status = SL_OK;

    qsort(index->entries, (size_t)index->count, sizeof *index->entries, by_shard);
    ckpt->files = calloc(MAX_SHARDS, sizeof *ckpt->files);
    if (!ckpt->files)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the shards of \"%s\"", path);
    for (int64_t i = 0; i < index->count && status == SL_OK; i++)
        if (i == 0 || by_shard(&index->entries[i - 1], &index->entries[i]) != 0)
            status = open_shard(ckpt, path, index->entries[i].shard, err);
    return status;
}

/* Moves the records of all files into one array sorted by name. */
static sl_status merge(sl_ckpt *ckpt, sl_error *err)
{
    int64_t total = 0, at = 0;

    if (ckpt->file_count == 1) {
        ckpt->tensors = ckpt->files[0].tensors;
        ckpt->count = ckpt->files[0].count;
        ckpt->files[0].tensors = NULL;
        return SL_OK;
    }
    for (int f = 0; f < ckpt->file_count; f++)
        total += ckpt->files[f].count;
    ckpt->tensors = calloc((size_t)total + 1, sizeof *ckpt->tensors);
    if (!ckpt->tensors)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %" PRId64 " tensor records",
                       total);
    for (int f = 0; f < ckpt->file_count; f++) {
        sl_ckpt_file *file = &ckpt->files[f];
        for (int64_t i = 0; i < file->count; i++) {
            ckpt->tensors[at] = file->tensors[i];
            ckpt->tensors[at++].file_index = f;
        }
        free(file->tensors);
        file->tensors = NULL;
    }
    ckpt->count = total;
    qsort(ckpt->tensors, (size_t)total, sizeof *ckpt->tensors, tensor_by_name);
    for (int64_t i = 1; i < total; i++)
        if (tensor_by_name(&ckpt->tensors[i - 1], &ckpt->tensors[i]) == 0)
            return sl_fail(err, SL_ERR_DATA, "tensor \"%.200s\" is in two shards",
                           ckpt->tensors[i].name);
    return SL_OK;
}

/* The index and its shards must name the same tensors in the same places. */
static sl_status check_index(const sl_ckpt *ckpt, shard_index *index, sl_error *err)
{
    const char **shards = NULL;
    sl_status status = SL_OK;
    int file = -1;

    /* the name of each file, while entries are sorted by shard as files are */
    shards = calloc(MAX_SHARDS, sizeof *shards);
    if (!shards)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the shards");
    for (int64_t i = 0; i < index->count; i++)
        if (i == 0 || by_shard(&index->entries[i - 1], &index->entries[i]) != 0)
            shards[++file] = index->entries[i].shard;

    qsort(index->entries, (size_t)index->count, sizeof *index->entries, entry_by_name);
    for (int64_t i = 0; i < index->count || i < ckpt->count; i++) {
        const index_entry *entry = i < index->count ? &index->entries[i] : NULL;
        const sl_ckpt_tensor *tensor = i < ckpt->count ? &ckpt->tensors[i] : NULL;
        const int order = !entry ? 1 : !tensor ? -1 : strcmp(entry->name, tensor->name);

        if (order < 0)
            status = sl_fail(err, SL_ERR_DATA,
                             "tensor \"%.200s\" of the index is not in its shard \"%.200s\", or "
                             "twice in the index",
                             entry->name, entry->shard);
        else if (order > 0)
            status = sl_fail(err, SL_ERR_DATA,
                             "tensor \"%.200s\" of shard \"%.200s\" is not in the index",
                             tensor->name, shards[tensor->file_index]);
        else if (strcmp(entry->shard, shards[tensor->file_index]) != 0)
            status = sl_fail(err, SL_ERR_DATA,
                             "tensor \"%.200s\" is in shard \"%.200s\", the index says \"%.200s\"",
                             tensor->name, shards[tensor->file_index], entry->shard);
        if (status != SL_OK)
            break;
    }
    free(shards);
    return status;
}

static sl_status open_sharded(sl_ckpt *ckpt, const char *path, sl_error *err)
{
    shard_index index;
    sl_status status = read_index(&index, path, err);

    if (status != SL_OK)
        return status;
    status = open_shards(ckpt, &index, path, err);
    if (status == SL_OK)
        status = merge(ckpt, err);
    if (status == SL_OK)
        status = check_index(ckpt, &index, err);
    if (status != SL_OK)
        sl_error_prefix(err, "\"%s\"", path);
    shard_index_fini(&index);
    return status;
}

static sl_status open_single(sl_ckpt *ckpt, const char *path, sl_error *err)
{
    sl_status status;

    ckpt->files = calloc(1, sizeof *ckpt->files);
    if (!ckpt->files)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for checkpoint \"%s\"", path);
    status = sl_ckpt_file_init(&ckpt->files[0], path, err);
    if (status != SL_OK)
        return status;
    ckpt->file_count = 1;
    return merge(ckpt, err);
}

static bool ends_with(const char *text, const char *suffix)
{
    const size_t n = strlen(text), m = strlen(suffix);

    return n >= m && strcmp(text + n - m, suffix) == 0;
}

sl_status sl_ckpt_open(sl_ckpt **out, const char *path, sl_error *err)
{
    sl_status status;
    sl_ckpt *ckpt = calloc(1, sizeof *ckpt);

    if (ckpt)
        ckpt->path = strdup(path);
    if (!ckpt || !ckpt->path) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for checkpoint \"%s\"", path);
        goto done;
    }
    status = ends_with(path, ".index.json") ? open_sharded(ckpt, path, err)
                                            : open_single(ckpt, path, err);
    if (status != SL_OK)
        goto done;
    for (int64_t i = 0; i < ckpt->count; i++) {
        /* views of one storage may overlap: nothing bounds their sum */
        if (!sl_size_add(ckpt->data_bytes, ckpt->tensors[i].size_bytes, &ckpt->data_bytes)) {
            status = sl_fail(err, SL_ERR_DATA, "\"%s\": the number of bytes overflows", path);
            goto done;
        }
    }

    *out = ckpt;
    ckpt = NULL;
done:
    sl_ckpt_close(ckpt);
    return status;
}

void sl_ckpt_close(sl_ckpt *ckpt)
{
    if (!ckpt)
        return;
    for (int f = 0; f < ckpt->file_count; f++)
        sl_ckpt_file_fini(&ckpt->files[f]);
    free(ckpt->files);
    free(ckpt->tensors);
    free(ckpt->path);
    free(ckpt);
}

int64_t sl_ckpt_count(const sl_ckpt *ckpt)
{
    return ckpt->count;
}

const sl_ckpt_tensor *sl_ckpt_get(const sl_ckpt *ckpt, int64_t i)
{
    SL_ASSERT(i >= 0 && i < ckpt->count);
    return &ckpt->tensors[i];
}

const sl_ckpt_tensor *sl_ckpt_find(const sl_ckpt *ckpt, const char *name)
{
    const sl_ckpt_tensor key = { .name = name };

    if (ckpt->count == 0)
        return NULL;
    return bsearch(&key, ckpt->tensors, (size_t)ckpt->count, sizeof key, tensor_by_name);
}

const char *sl_ckpt_path(const sl_ckpt *ckpt)
{
    return ckpt->path;
}

size_t sl_ckpt_data_bytes(const sl_ckpt *ckpt)
{
    return ckpt->data_bytes;
}

/* Its bytes are in memory that the file's records own, not in the mapping. */
static bool is_copy(const sl_ckpt_file *file, const sl_ckpt_tensor *tensor)
{
    const uintptr_t at = (uintptr_t)tensor->tensor.data, start = (uintptr_t)file->copies;

    return at >= start && at - start < file->copies_bytes;
}

static size_t file_offset(const sl_ckpt_file *file, const sl_ckpt_tensor *tensor)
{
    return (size_t)((const char *)tensor->tensor.data - (const char *)file->map);
}

sl_status sl_ckpt_read(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor, size_t offset, void *out,
                       size_t size_bytes, sl_error *err)
{
    const sl_ckpt_file *file = &ckpt->files[tensor->file_index];

    SL_ASSERT(offset <= tensor->size_bytes && size_bytes <= tensor->size_bytes - offset);
    if (is_copy(file, tensor)) {
        memcpy(out, (const char *)tensor->tensor.data + offset, size_bytes);
        return SL_OK;
    }
    return sl_file_read(file->fd, file->path, file_offset(file, tensor) + offset, out, size_bytes,
                        err);
}

void sl_ckpt_will_need(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor)
{
    const sl_ckpt_file *file = &ckpt->files[tensor->file_index];

    if (tensor->size_bytes > 0 && !is_copy(file, tensor)) /* a hint: no harm if refused */
        (void)posix_fadvise(file->fd, (off_t)file_offset(file, tensor), (off_t)tensor->size_bytes,
                            POSIX_FADV_WILLNEED);
}

/* Also drops the neighbours' shares of the first and last page: they fault in
 * again from the page cache. */
void sl_ckpt_done_with(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = (uintptr_t)tensor->tensor.data & ~(page - 1);
    const uintptr_t end = (uintptr_t)tensor->tensor.data + tensor->size_bytes;

    if (tensor->size_bytes > 0 && !is_copy(&ckpt->files[tensor->file_index], tensor))
        (void)madvise((void *)first, end - first, MADV_DONTNEED);
}
