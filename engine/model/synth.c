#include "engine/model/synth.h"

#include "base/file.h"
#include "base/size.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/match.h"
#include "engine/model/model_probe.h"
#include "engine/text/tokenizer.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PIECE_BYTES     SL_MIB
#define DIT_SHARD_BYTES ((size_t)10000000000)

/* Rows of the synthetic tokenizer: its ids must be rows of the embedding. */
enum { MAX_TOKENIZER_PIECES = 512 };

static const char high_dir[] = "high_noise_model", low_dir[] = "low_noise_model";
static const char dit_stem[] = "diffusion_pytorch_model";
static const char vae_file[] = "Wan2.1_VAE.safetensors";
static const char t5_file[] = "models_t5_umt5-xxl-enc-bf16.safetensors";

/* One tensor of a file to write. */
typedef struct {
    char name[128];
    sl_dtype dtype;
    int rank;
    int64_t dim[SL_MAX_RANK];
    int64_t count;
    size_t size_bytes;
    int shard;
} item;

typedef struct {
    item *items;
    int64_t count, capacity;
    size_t size_bytes;
    int shard_count;
} item_list;

/* A run of sl_synth_model. */
typedef struct {
    const char *dir;
    const sl_arch *arch;
    void (*progress)(void *arg, size_t done_bytes, size_t total_bytes);
    void *arg;
    size_t max_shard_bytes;
    size_t done_bytes, total_bytes;
    void *piece; /* PIECE_BYTES */
} run;

static sl_status add_item(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    item_list *list = arg;
    const sl_tensor t = sl_tensor_make(NULL, spec->file_dtype, spec->rank, spec->dim);
    item *it;

    if (spec->form == SL_FORM_DEVICE_ONLY)
        return SL_OK;
    if (list->count == list->capacity) {
        const int64_t grown = list->capacity ? list->capacity * 2 : 256;
        item *moved = reallocarray(list->items, (size_t)grown, sizeof *moved);

        if (!moved)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a list of %lld tensors",
                           (long long)grown);
        list->items = moved;
        list->capacity = grown;
    }
    it = &list->items[list->count++];
    *it = (item){ .dtype = spec->file_dtype, .rank = spec->rank };
    snprintf(it->name, sizeof it->name, "%s", spec->name);
    memcpy(it->dim, spec->dim, sizeof it->dim);
    it->count = sl_tensor_count(&t);
    it->size_bytes = sl_tensor_bytes(&t);
    list->size_bytes += it->size_bytes;
    return SL_OK;
}

/* Fills shards in order, each to at most that many bytes (or one tensor). */
static void assign_shards(item_list *list, size_t max_shard_bytes)
{
    size_t used = 0;
    int shard = 0;

    for (int64_t i = 0; i < list->count; i++) {
        if (used > 0 && used + list->items[i].size_bytes > max_shard_bytes) {
            shard++;
            used = 0;
        }
        list->items[i].shard = shard;
        used += list->items[i].size_bytes;
    }
    list->shard_count = shard + 1;
}

static sl_status list_component(item_list *list, const sl_arch *arch, sl_component_kind kind,
                                sl_error *err)
{
    const sl_component_spec spec = sl_component_spec_of(arch, kind, SL_PRECISION_F32);

    *list = (item_list){ .items = NULL, .shard_count = 1 };
    return sl_component_visit(NULL, &spec, SL_LAYOUT_OFFICIAL, add_item, list, err);
}

static sl_status write_values(run *r, sl_st_writer *writer, const item *it, uint64_t seed,
                              sl_error *err)
{
    const size_t element_bytes = sl_dtype_bytes(it->dtype);
    const int64_t most = (int64_t)(PIECE_BYTES / element_bytes);
    int64_t fan_in = 1, left;
    sl_status status = SL_OK;

    for (int i = 1; i < it->rank; i++)
        fan_in *= it->dim[i];
    for (int64_t first = 0; first < it->count && status == SL_OK; first += most) {
        left = it->count - first < most ? it->count - first : most;
        if (it->dtype == SL_BF16)
            sl_synth_bf16(r->piece, it->name, seed, fan_in, first, left);
        else
            sl_synth_f32(r->piece, it->name, seed, fan_in, first, left);
        status = sl_st_writer_write(writer, r->piece, (size_t)left * element_bytes, err);
        r->done_bytes += (size_t)left * element_bytes;
        if (r->progress && status == SL_OK)
            r->progress(r->arg, r->done_bytes, r->total_bytes);
    }
    return status;
}

static sl_status write_shard(run *r, const item_list *list, int shard, const char *path,
                             uint64_t seed, sl_error *err)
{
    sl_st_writer *writer = NULL;
    sl_status status = sl_st_writer_create(&writer, path, err);

    for (int64_t i = 0; i < list->count && status == SL_OK; i++) {
        const item *it = &list->items[i];
        if (it->shard == shard)
            status = sl_st_writer_declare(writer, it->name, it->dtype, it->rank, it->dim, err);
    }
    for (int64_t i = 0; i < list->count && status == SL_OK; i++)
        if (list->items[i].shard == shard)
            status = write_values(r, writer, &list->items[i], seed, err);
    if (status == SL_OK)
        status = sl_st_writer_finish(writer, err);
    sl_st_writer_destroy(writer);
    return status;
}

/* printf into a new string; NULL and *err when memory is short. */
static char *text_of(sl_error *err, const char *fmt, ...) SL_PRINTF(2, 3);
static char *text_of(sl_error *err, const char *fmt, ...)
{
    char *text;
    va_list va;
    int n;

    va_start(va, fmt);
    n = vasprintf(&text, fmt, va);
    va_end(va);
    if (n < 0) {
        sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
        return NULL;
    }
    return text;
}

/* Ends a text file; a full disk shows at the latest here. */
static sl_status finish_text(FILE *f, const char *path, sl_error *err)
{
    const bool failed = ferror(f) != 0;

    if (fclose(f) != 0 || failed)
        return sl_fail_errno(err, "could not write \"%s\"", path);
    return SL_OK;
}

static sl_status write_index(const item_list *list, const char *dir, sl_error *err)
{
    char *path = text_of(err, "%s/%s.safetensors.index.json", dir, dit_stem);
    sl_status status = SL_ERR_NO_MEMORY;
    FILE *f;

    if (!path)
        return status;
    f = fopen(path, "w");
    if (!f) {
        status = sl_fail_errno(err, "could not create \"%s\"", path);
        goto done;
    }
    fprintf(f, "{\n  \"metadata\": {\"total_size\": %zu},\n  \"weight_map\": {\n",
            list->size_bytes);
    for (int64_t i = 0; i < list->count; i++)
        fprintf(f, "    \"%s\": \"%s-%05d-of-%05d.safetensors\"%s\n", list->items[i].name, dit_stem,
                list->items[i].shard + 1, list->shard_count, i + 1 < list->count ? "," : "");
    fputs("  }\n}\n", f);
    status = finish_text(f, path, err);
done:
    free(path);
    return status;
}

static sl_status write_config(const run *r, const char *dir, sl_error *err)
{
    char *path = text_of(err, "%s/config.json", dir);
    sl_status status =
        path ? sl_dit_json_write(path, &r->arch->dit, r->arch->task, err) : SL_ERR_NO_MEMORY;

    free(path);
    return status;
}

static sl_status write_dit(run *r, const char *dir, uint64_t seed, sl_error *err)
{
    item_list list;
    sl_status status = sl_make_directory(dir, 0755, err);

    if (status != SL_OK)
        return status;
    status = list_component(
        &list, r->arch, r->arch->expert_count == 2 ? SL_COMPONENT_DIT_HIGH : SL_COMPONENT_DIT, err);
    assign_shards(&list, r->max_shard_bytes);
    for (int shard = 0; shard < list.shard_count && status == SL_OK; shard++) {
        char *path = list.shard_count == 1 ? text_of(err, "%s/%s.safetensors", dir, dit_stem)
                                           : text_of(err, "%s/%s-%05d-of-%05d.safetensors", dir,
                                                     dit_stem, shard + 1, list.shard_count);
        status = path ? write_shard(r, &list, shard, path, seed, err) : SL_ERR_NO_MEMORY;
        free(path);
    }
    if (status == SL_OK && list.shard_count > 1)
        status = write_index(&list, dir, err);
    if (status == SL_OK)
        status = write_config(r, dir, err);
    free(list.items);
    return status;
}

static sl_status write_experts(run *r, uint64_t seed, sl_error *err)
{
    const char *const names[] = { high_dir, low_dir };
    sl_status status = SL_OK;

    if (r->arch->expert_count == 1)
        return write_dit(r, r->dir, seed, err);
    for (uint64_t i = 0; i < SL_COUNT(names) && status == SL_OK; i++) {
        char *dir = text_of(err, "%s/%s", r->dir, names[i]);
        status = dir ? write_dit(r, dir, seed + i, err) : SL_ERR_NO_MEMORY;
        free(dir);
    }
    return status;
}

static sl_status write_single(run *r, sl_component_kind kind, const char *name, uint64_t seed,
                              sl_error *err)
{
    item_list list;
    char *path = text_of(err, "%s/%s", r->dir, name);
    sl_status status = list_component(&list, r->arch, kind, err);

    if (!path)
        status = SL_ERR_NO_MEMORY;
    if (status == SL_OK)
        status = write_shard(r, &list, 0, path, seed, err);
    free(list.items);
    free(path);
    return status;
}

static sl_status write_tokenizer(const run *r, sl_error *err)
{
    static const char *const dirs[] = { "google", "google/umt5-xxl" };
    const int64_t vocab = r->arch->t5.vocab;
    const int pieces = vocab < MAX_TOKENIZER_PIECES ? (int)vocab : MAX_TOKENIZER_PIECES;
    sl_status status = SL_OK;
    char *path;

    for (size_t i = 0; i < SL_COUNT(dirs) && status == SL_OK; i++) {
        char *dir = text_of(err, "%s/%s", r->dir, dirs[i]);
        status = dir ? sl_make_directory(dir, 0755, err) : SL_ERR_NO_MEMORY;
        free(dir);
    }
    if (status != SL_OK)
        return status;
    path = text_of(err, "%s/google/umt5-xxl/spiece.model", r->dir);
    status = path ? sl_tokenizer_write_synthetic(path, pieces, err) : SL_ERR_NO_MEMORY;
    free(path);
    return status;
}

static bool is_ours(const char *name)
{
    return strncmp(name, dit_stem, sizeof dit_stem - 1) == 0 ||
           strncmp(name, vae_file, sizeof vae_file - 1) == 0 ||
           strncmp(name, t5_file, sizeof t5_file - 1) == 0 || strcmp(name, "config.json") == 0;
}

/* Removes files of an earlier run, which may have been of another row. */
static sl_status clear_files(const char *dir, sl_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    sl_status status = SL_OK;

    if (!d)
        return errno == ENOENT ? SL_OK : sl_fail_errno(err, "could not read \"%s\"", dir);
    while (status == SL_OK && (entry = readdir(d)))
        if (is_ours(entry->d_name) && unlinkat(dirfd(d), entry->d_name, 0) != 0)
            status = sl_fail_errno(err, "could not remove \"%s/%s\"", dir, entry->d_name);
    closedir(d);
    return status;
}

static sl_status is_empty(const char *dir, bool *empty, sl_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *entry;

    if (!d)
        return sl_fail_errno(err, "could not read \"%s\"", dir);
    *empty = true;
    while (*empty && (entry = readdir(d)))
        *empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
    closedir(d);
    return SL_OK;
}

/* The marker is written before anything else and says that the directory is
 * ours: published files have the same names, and must never be overwritten. */
static sl_status claim_dir(const run *r, uint64_t seed, sl_error *err)
{
    static const char *const dirs[] = { ".", high_dir, low_dir };
    bool empty = false;
    FILE *f = NULL;
    char *marker = text_of(err, "%s/" SL_SYNTH_MARKER, r->dir);
    sl_status status = marker ? sl_make_directory(r->dir, 0755, err) : SL_ERR_NO_MEMORY;

    if (status == SL_OK)
        status = is_empty(r->dir, &empty, err);
    if (status != SL_OK)
        goto done;
    if (!empty && access(marker, F_OK) != 0) {
        status = sl_fail(err, SL_ERR_EXISTS,
                         "\"%s\" is neither empty nor a synthetic model made before", r->dir);
        goto done;
    }
    f = fopen(marker, "w");
    if (!f) {
        status = sl_fail_errno(err, "could not create \"%s\"", marker);
        goto done;
    }
    fprintf(f, "{\"arch\": \"%s\", \"seed\": %llu}\n", r->arch->name, (unsigned long long)seed);
    status = finish_text(f, marker, err);
    for (size_t i = 0; i < SL_COUNT(dirs) && status == SL_OK; i++) {
        char *dir = text_of(err, "%s/%s", r->dir, dirs[i]);
        status = dir ? clear_files(dir, err) : SL_ERR_NO_MEMORY;
        free(dir);
    }
    for (size_t i = 1; i < SL_COUNT(dirs) && status == SL_OK; i++) {
        char *dir = text_of(err, "%s/%s", r->dir, dirs[i]);
        if (dir)
            rmdir(dir); /* only if empty, and a row with two experts makes it again */
        free(dir);
    }
done:
    free(marker);
    return status;
}

static sl_status check_space(const run *r, sl_error *err)
{
    struct statvfs fs;
    char need[32], have[32];
    size_t free_bytes;

    if (statvfs(r->dir, &fs) != 0)
        return sl_fail_errno(err, "could not ask for the free space of \"%s\"", r->dir);
    if (!sl_size_mul((size_t)fs.f_bavail, (size_t)fs.f_frsize, &free_bytes))
        free_bytes = SIZE_MAX;
    if (free_bytes < r->total_bytes + PIECE_BYTES)
        return sl_fail(err, SL_ERR_TOO_LARGE, "model \"%s\" needs %s on disk, \"%s\" has %s free",
                       r->arch->name,
                       sl_size_format(r->total_bytes + PIECE_BYTES, need, sizeof need), r->dir,
                       sl_size_format(free_bytes, have, sizeof have));
    return SL_OK;
}

static sl_status count_bytes(run *r, sl_error *err)
{
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        item_list list;
        sl_status status;

        if (!sl_arch_has_component(r->arch, (sl_component_kind)kind))
            continue;
        status = list_component(&list, r->arch, (sl_component_kind)kind, err);
        r->total_bytes += list.size_bytes;
        free(list.items);
        if (status != SL_OK)
            return status;
    }
    return SL_OK;
}

sl_status sl_synth_model(const char *dir, const sl_arch *arch, uint64_t seed,
                         void (*progress)(void *arg, size_t done_bytes, size_t total_bytes),
                         void *arg, sl_error *err)
{
    return sl_synth_model_sharded(dir, arch, seed, DIT_SHARD_BYTES, progress, arg, err);
}

sl_status sl_synth_model_sharded(const char *dir, const sl_arch *arch, uint64_t seed,
                                 size_t max_shard_bytes,
                                 void (*progress)(void *arg, size_t done_bytes, size_t total_bytes),
                                 void *arg, sl_error *err)
{
    run r = {
        .dir = dir,
        .arch = arch,
        .progress = progress,
        .arg = arg,
        .max_shard_bytes = max_shard_bytes,
    };
    sl_status status = count_bytes(&r, err);

    if (status != SL_OK)
        goto done;
    r.piece = malloc(PIECE_BYTES);
    if (!r.piece) {
        status =
            sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a piece of %zu bytes", PIECE_BYTES);
        goto done;
    }
    status = claim_dir(&r, seed, err);
    if (status == SL_OK)
        status = check_space(&r, err);
    if (status == SL_OK)
        status = write_experts(&r, seed, err);
    if (status == SL_OK)
        status = write_single(&r, SL_COMPONENT_VAE, vae_file, seed, err);
    if (status == SL_OK)
        status = write_single(&r, SL_COMPONENT_TEXT_ENCODER, t5_file, seed, err);
    if (status == SL_OK)
        status = write_tokenizer(&r, err);
done:
    free(r.piece);
    return status;
}
