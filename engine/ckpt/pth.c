#include "engine/ckpt/pth.h"

#include "base/arena.h"
#include "base/size.h"
#include "base/utf8.h"
#include "engine/ckpt/pickle.h"
#include "engine/ckpt/zip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_PATH_BYTES = 1024, /* of a member */
    COPY_ALIGN = 64,
};

/* Views may repeat elements (a stride of 0): their copies may take as much as
 * the file and this. */
#define MAX_EXTRA_COPIES ((size_t)64 << 20)
/* How often their sources may cover the file: what is read to make them. */
enum { MAX_SOURCE_FACTOR = 8 };

/* A tensor that is to be copied, and its source. */
typedef struct {
    int64_t index; /* of its record; records move while they are added */
    const sl_pickle_tensor *view;
    size_t storage_offset; /* in the file */
    size_t source_bytes;   /* from the view's first element to its last */
    size_t at;             /* in the copies */
} pth_copy;

typedef struct {
    sl_ckpt_file *file;
    sl_zip zip;
    char prefix[MAX_PATH_BYTES]; /* "archive/" */
    char *pickle;
    size_t pickle_bytes;
    sl_arena *arena; /* the pickle's values */
    pth_copy *copies;
    int64_t copy_count;
    size_t copies_bytes, sources_bytes;
    size_t names_bytes;
} pth;

bool sl_pth_is_zip(const void *bytes, size_t size_bytes)
{
    const char *text = bytes;

    /* read as a safetensors header length this is 67324752: possible, then
     * with '{' behind it, where a zip has its method, 0 */
    return size_bytes >= 4 && (memcmp(text, "PK\3\4", 4) == 0 || memcmp(text, "PK\5\6", 4) == 0) &&
           (size_bytes < 9 || text[8] != '{');
}

bool sl_pth_is_legacy(const void *bytes, size_t size_bytes)
{
    static const char magic[] = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";
    const char *text = bytes;

    return (size_bytes >= sizeof magic - 1 && memcmp(text, magic, sizeof magic - 1) == 0) ||
           (size_bytes >= 262 && memcmp(text + 257, "ustar", 5) == 0);
}

/* --- the archive --- */

static const sl_zip_member *find_member(const pth *p, const char *dir, sl_pickle_string name)
{
    char path[2 * MAX_PATH_BYTES];
    const int n =
        snprintf(path, sizeof path, "%s%s%.*s", p->prefix, dir, (int)name.length, name.text);

    return n < (int)sizeof path ? sl_zip_find(&p->zip, path) : NULL;
}

static const sl_zip_member *find_named(const pth *p, const char *name)
{
    return find_member(p, "", (sl_pickle_string){ name, strlen(name) });
}

/* "<any name>/data.pkl", once. */
static const sl_zip_member *find_pickle(pth *p, sl_error *err)
{
    static const char data[] = "/data.pkl";
    const sl_zip_member *found = NULL;

    for (int64_t i = 0; i < p->zip.count; i++) {
        const sl_zip_member *member = &p->zip.members[i];
        const char *slash = strchr(member->name, '/');

        if (!slash || strcmp(slash, data) != 0)
            continue;
        if (found) {
            sl_fail(err, SL_ERR_DATA, "both \"%.200s\" and \"%.200s\" are there", found->name,
                    member->name);
            return NULL;
        }
        if ((size_t)(slash - member->name) + 2 > sizeof p->prefix) {
            sl_fail(err, SL_ERR_DATA, "a member's name is too long");
            return NULL;
        }
        memcpy(p->prefix, member->name, (size_t)(slash - member->name) + 1);
        found = member;
    }
    if (!found)
        sl_fail(err, SL_ERR_DATA, "a zip without data.pkl is no PyTorch checkpoint");
    return found;
}

static sl_status check_kind(const pth *p, sl_error *err)
{
    const sl_zip_member *order = find_named(p, "byteorder");
    const size_t prefix_bytes = strlen(p->prefix);
    char text[16] = "";

    for (int64_t i = 0; i < p->zip.count; i++) {
        const char *name = p->zip.members[i].name;

        if (strncmp(name, p->prefix, prefix_bytes) == 0 &&
            (strncmp(name + prefix_bytes, "code/", 5) == 0 ||
             strcmp(name + prefix_bytes, "constants.pkl") == 0))
            return sl_fail(err, SL_ERR_DATA,
                           "TorchScript archive (\"%.200s\"), not a checkpoint; re-save its "
                           "state dict with torch.save",
                           name);
    }
    if (!order)
        return SL_OK;
    if (order->size_bytes >= sizeof text)
        return sl_fail(err, SL_ERR_DATA, "byteorder has %zu bytes", order->size_bytes);
    const sl_status status =
        sl_file_read(p->file->fd, p->file->path, order->offset, text, order->size_bytes, err);
    if (status != SL_OK)
        return status;
    text[strcspn(text, "\r\n")] = '\0';
    if (strcmp(text, "little") != 0)
        return sl_fail(err, SL_ERR_DATA, "byte order is %s, only little-endian files are read",
                       strcmp(text, "big") == 0 ? "big" : "unknown");
    return SL_OK;
}

/* --- tensors --- */

static bool is_contiguous(const sl_pickle_tensor *view)
{
    int64_t step = 1;

    for (int i = 0; i < view->rank; i++)
        if (view->dim[i] == 0)
            return true;
    for (int i = view->rank - 1; i >= 0; i--) {
        if (view->dim[i] != 1 && view->stride[i] != step)
            return false;
        step *= view->dim[i];
    }
    return true;
}

static sl_status plan_copy(pth *p, const sl_pickle_tensor *view, size_t storage_offset,
                           size_t size_bytes, sl_error *err)
{
    const size_t file_bytes = p->file->map_bytes;
    size_t end = 0, most = 0, most_sources = 0, sources;
    int64_t span = 1;

    for (int i = 0; i < view->rank; i++)
        span += (view->dim[i] - 1) * view->stride[i]; /* inside of the storage: checked */
    const size_t source_bytes = (size_t)span * sl_dtype_bytes(view->dtype);
    sources = p->sources_bytes + source_bytes; /* both below 2^63 */
    if (!sl_size_add(p->copies_bytes, size_bytes, &end) || !sl_size_align(end, COPY_ALIGN, &end) ||
        !sl_size_add(file_bytes, MAX_EXTRA_COPIES, &most) || end > most ||
        !sl_size_mul(most, MAX_SOURCE_FACTOR, &most_sources) || sources > most_sources)
        return sl_fail(err, SL_ERR_DATA,
                       "with it the views that must be copied take %zu bytes out of %zu, too much "
                       "for a file of %zu",
                       end, sources, file_bytes);
    p->copies[p->copy_count++] = (pth_copy){ .index = p->file->count - 1,
                                             .view = view,
                                             .storage_offset = storage_offset,
                                             .source_bytes = source_bytes,
                                             .at = p->copies_bytes };
    p->copies_bytes = end;
    p->sources_bytes = sources;
    return SL_OK;
}

static sl_status add_tensor(pth *p, sl_ckpt_tensor *record, const sl_pickle_tensor *view,
                            sl_error *err)
{
    const sl_pickle_storage *storage = view->storage;
    const sl_zip_member *member = find_member(p, "data/", storage->key);
    /* no overflow: the pickle reader has multiplied them already */
    const size_t need = (size_t)storage->count * sl_dtype_bytes(storage->dtype);
    sl_tensor *t = &record->tensor;

    if (!member)
        return sl_fail(err, SL_ERR_DATA, "its storage \"data/%.*s\" is not in the archive",
                       (int)storage->key.length, storage->key.text);
    if (need > member->size_bytes)
        return sl_fail(err, SL_ERR_DATA,
                       "its storage \"data/%.*s\" should have %zu bytes, the archive has %zu",
                       (int)storage->key.length, storage->key.text, need, member->size_bytes);
    *t = sl_tensor_make(NULL, view->dtype, view->rank, view->dim);
    record->size_bytes = sl_tensor_bytes(t);
    if (!is_contiguous(view))
        return plan_copy(p, view, member->offset, record->size_bytes, err);
    t->data = (char *)p->file->map + member->offset;
    if (record->size_bytes > 0)
        t->data = (char *)t->data + (size_t)view->offset * sl_dtype_bytes(view->dtype);
    return SL_OK;
}

static sl_status add_name(pth *p, sl_ckpt_tensor *record, sl_pickle_string key, sl_error *err)
{
    const unsigned char *text = (const unsigned char *)key.text;
    char *name = p->file->names + p->names_bytes;
    uint32_t c;

    for (size_t i = 0, n; i < key.length; i += n) {
        n = sl_utf8_decode(text + i, key.length - i, &c);
        if (n == 0 || c == 0)
            return sl_fail(err, SL_ERR_DATA, "a tensor's name is no text");
    }
    memcpy(name, key.text, key.length);
    name[key.length] = '\0';
    p->names_bytes += key.length + 1;
    sl_ckpt_normalise(name);
    if (*name == '\0')
        return sl_fail(err, SL_ERR_DATA, "tensor with an empty name");
    record->name = name;
    return SL_OK;
}

static bool is_entry(const sl_pickle_value *dict, int64_t i)
{
    return dict->list.items[i]->kind == SL_PICKLE_STRING &&
           dict->list.items[i + 1]->kind == SL_PICKLE_TENSOR;
}

/* A few bytes of a pickle repeat a string of 1 MiB: only names that differ are
 * bounded by its size. */
static sl_status measure_names(const pth *p, const sl_pickle_value *dict, int64_t *tensors,
                               size_t *names_bytes, sl_error *err)
{
    *tensors = 0;
    *names_bytes = 0;
    for (int64_t i = 0; i < dict->list.count; i += 2) {
        if (!is_entry(dict, i))
            continue;
        *names_bytes += dict->list.items[i]->string.length + 1;
        ++*tensors;
        if (*names_bytes > p->pickle_bytes)
            return sl_fail(err, SL_ERR_DATA, "names take more than the %zu bytes of the pickle",
                           p->pickle_bytes);
    }
    if (*tensors == 0)
        return sl_fail(err, SL_ERR_DATA, "no state dict: there are no tensors in it");
    return SL_OK;
}

static sl_status add_all(pth *p, const sl_pickle_value *dict, sl_error *err)
{
    size_t names_bytes = 0;
    int64_t tensors = 0;
    sl_status status = measure_names(p, dict, &tensors, &names_bytes, err);

    if (status != SL_OK)
        return status;
    p->file->names = malloc(names_bytes);
    p->copies = calloc((size_t)tensors, sizeof *p->copies);
    if (!p->file->names || !p->copies)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %lld tensors", (long long)tensors);
    for (int64_t i = 0; i < dict->list.count && status == SL_OK; i += 2) {
        if (!is_entry(dict, i))
            continue;
        sl_ckpt_tensor *record = sl_ckpt_file_push(p->file, err);
        if (!record)
            return SL_ERR_NO_MEMORY;
        status = add_name(p, record, dict->list.items[i]->string, err);
        if (status != SL_OK)
            return status;
        status = add_tensor(p, record, dict->list.items[i + 1]->tensor, err);
        if (status != SL_OK)
            sl_error_prefix(err, "tensor \"%.200s\"", record->name);
    }
    return status;
}

/* --- copies --- */

/* Elements of a view in row-major order; source holds what the view spans. */
static void gather(char *out, const char *source, const sl_pickle_tensor *view)
{
    const size_t size = sl_dtype_bytes(view->dtype);
    const int last = view->rank - 1;
    int64_t index[SL_MAX_RANK] = { 0 };
    int axis;

    do { /* a row of the last dimension */
        int64_t at = 0;

        for (int i = 0; i < last; i++)
            at += index[i] * view->stride[i];
        for (int64_t i = 0; i < view->dim[last]; i++, out += size)
            memcpy(out, source + (size_t)(at + i * view->stride[last]) * size, size);
        for (axis = last - 1; axis >= 0 && ++index[axis] == view->dim[axis]; axis--)
            index[axis] = 0;
    } while (axis >= 0);
}

static sl_status copy_view(const pth *p, const pth_copy *copy, sl_error *err)
{
    const sl_pickle_tensor *view = copy->view;
    SL_ASSERT(view); /* plan_copy has set it */
    const size_t size = sl_dtype_bytes(view->dtype);
    sl_ckpt_tensor *record = &p->file->tensors[copy->index];
    char *source = malloc(copy->source_bytes);

    if (!source)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a view of %zu bytes",
                       copy->source_bytes);
    const sl_status status =
        sl_file_read(p->file->fd, p->file->path, copy->storage_offset + (size_t)view->offset * size,
                     source, copy->source_bytes, err);
    if (status == SL_OK) {
        record->tensor.data = p->file->copies + copy->at;
        gather(record->tensor.data, source, view);
    }
    free(source);
    return status;
}

static sl_status make_copies(pth *p, sl_error *err)
{
    sl_status status = SL_OK;

    if (p->copy_count == 0)
        return SL_OK;
    p->file->copies = malloc(p->copies_bytes);
    p->file->copies_bytes = p->copies_bytes;
    if (!p->file->copies)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %zu bytes of views",
                       p->copies_bytes);
    for (int64_t i = 0; i < p->copy_count && status == SL_OK; i++)
        status = copy_view(p, &p->copies[i], err);
    return status;
}

/* --- the whole --- */

static const sl_pickle_value *find_state_dict(const sl_pickle_value *root)
{
    static const char key[] = "state_dict";

    if (root->kind != SL_PICKLE_DICT)
        return NULL;
    for (int64_t i = 0; i < root->list.count; i += 2) {
        const sl_pickle_value *name = root->list.items[i], *value = root->list.items[i + 1];

        if (name->kind == SL_PICKLE_STRING && name->string.length == sizeof key - 1 &&
            memcmp(name->string.text, key, sizeof key - 1) == 0 && value->kind == SL_PICKLE_DICT)
            return value;
    }
    return root;
}

static sl_status read_pickle(pth *p, const sl_zip_member *member, const sl_pickle_value **root,
                             sl_error *err)
{
    sl_status status;

    if (member->size_bytes > SL_PICKLE_MAX_BYTES)
        return sl_fail(err, SL_ERR_DATA, "a pickle of %zu bytes, the limit is %zu",
                       member->size_bytes, SL_PICKLE_MAX_BYTES);
    status = sl_arena_create(&p->arena, SL_PICKLE_MAX_MEMORY, err);
    if (status != SL_OK)
        return status;
    p->pickle_bytes = member->size_bytes;
    p->pickle = malloc(member->size_bytes + 1);
    if (!p->pickle)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a pickle of %zu bytes",
                       member->size_bytes);
    status = sl_file_read(p->file->fd, p->file->path, member->offset, p->pickle, member->size_bytes,
                          err);
    if (status == SL_OK)
        status = sl_pickle_read(root, p->pickle, member->size_bytes, p->arena, err);
    return status;
}

static sl_status parse_archive(pth *p, sl_error *err)
{
    const sl_pickle_value *root = NULL, *dict;
    const sl_zip_member *pickle = find_pickle(p, err);
    sl_status status = pickle ? check_kind(p, err) : SL_ERR_DATA;

    if (status == SL_OK)
        status = read_pickle(p, pickle, &root, err);
    if (status != SL_OK)
        return status;
    dict = find_state_dict(root);
    if (!dict)
        return sl_fail(err, SL_ERR_DATA, "the top level is no dict");
    status = add_all(p, dict, err);
    if (status == SL_OK)
        status = make_copies(p, err);
    return status == SL_OK ? sl_ckpt_file_sort(p->file, err) : status;
}

sl_status sl_pth_parse(sl_ckpt_file *file, sl_error *err)
{
    pth p = { .file = file };
    sl_status status = sl_zip_init(&p.zip, file->fd, file->path, file->map_bytes, err);

    if (status == SL_OK)
        status = parse_archive(&p, err);
    if (status != SL_OK)
        sl_error_prefix(err, "PyTorch checkpoint");
    sl_zip_fini(&p.zip);
    sl_arena_destroy(p.arena);
    free(p.pickle);
    free(p.copies);
    return status;
}
