#include "engine/model/synth.h"

#include "base/file.h"
#include "base/size.h"
#include "engine/model/model_probe.h"
#include "engine/model/synth_file.h"
#include "engine/text/tokenizer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define DIT_SHARD_BYTES ((size_t)10000000000)
#define SPARE_BYTES     SL_MIB /* of disk: headers, config, tokenizer */

/* Rows of the synthetic tokenizer: its ids must be rows of the embedding. */
enum { MAX_TOKENIZER_PIECES = 512 };

static const char high_dir[] = "high_noise_model", low_dir[] = "low_noise_model";
static const char dit_stem[] = "diffusion_pytorch_model";
static const char vae_file[] = "Wan2.1_VAE.safetensors";
static const char t5_file[] = "models_t5_umt5-xxl-enc-bf16.safetensors";

/* A run of sl_synth_model_as. */
typedef struct {
    const char *dir;
    const sl_arch *arch;
    const sl_synth_options *options;
    sl_synth_run files;
} run;

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

static sl_status write_index(const sl_synth_list *list, const char *dir, sl_error *err)
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

static sl_component_kind dit_kind(const sl_arch *arch)
{
    return arch->expert_count == 2 ? SL_COMPONENT_DIT_HIGH : SL_COMPONENT_DIT;
}

/* The files of the first expert under the second's folder. */
static sl_status link_dit(const char *from, const char *to, sl_error *err)
{
    sl_status status = sl_make_directory(to, 0755, err);
    DIR *d = status == SL_OK ? opendir(from) : NULL;
    struct dirent *entry;

    if (status == SL_OK && !d)
        status = sl_fail_errno(err, "could not read \"%s\"", from);
    while (status == SL_OK && (entry = readdir(d))) {
        char *path = text_of(err, "%s/%s", to, entry->d_name);

        if (!path)
            status = SL_ERR_NO_MEMORY;
        else if (entry->d_name[0] != '.' && linkat(dirfd(d), entry->d_name, AT_FDCWD, path, 0) != 0)
            status = sl_fail_errno(err, "could not link \"%s\"", path);
        free(path);
    }
    if (d)
        closedir(d);
    return status;
}

static sl_status write_dit(run *r, const char *dir, uint64_t seed, sl_error *err)
{
    const size_t most = r->options->max_shard_bytes;
    sl_synth_list list;
    sl_status status = sl_make_directory(dir, 0755, err);

    if (status != SL_OK)
        return status;
    status = sl_synth_list_make(&list, r->arch, dit_kind(r->arch), r->options->layout, err);
    if (r->options->layout == SL_LAYOUT_OFFICIAL)
        sl_synth_list_shard(&list, most ? most : DIT_SHARD_BYTES);
    for (int shard = 0; shard < list.shard_count && status == SL_OK; shard++) {
        char *path = list.shard_count == 1 ? text_of(err, "%s/%s.safetensors", dir, dit_stem)
                                           : text_of(err, "%s/%s-%05d-of-%05d.safetensors", dir,
                                                     dit_stem, shard + 1, list.shard_count);
        status = path ? sl_synth_shard_write(&r->files, &list, shard, path, seed, err)
                      : SL_ERR_NO_MEMORY;
        free(path);
    }
    if (status == SL_OK && list.shard_count > 1)
        status = write_index(&list, dir, err);
    if (status == SL_OK)
        status = write_config(r, dir, err);
    sl_synth_list_free(&list);
    return status;
}

static sl_status write_experts(run *r, sl_error *err)
{
    const uint64_t seed = r->options->seed;
    char *high, *low;
    sl_status status;

    if (r->arch->expert_count == 1)
        return write_dit(r, r->dir, seed, err);
    high = text_of(err, "%s/%s", r->dir, high_dir);
    low = text_of(err, "%s/%s", r->dir, low_dir);
    status = high && low ? write_dit(r, high, seed, err) : SL_ERR_NO_MEMORY;
    if (status == SL_OK)
        status =
            r->options->one_expert ? link_dit(high, low, err) : write_dit(r, low, seed + 1, err);
    free(high);
    free(low);
    return status;
}

/* Writes the file, or gives the one of the shared model another name here. */
static sl_status write_single(run *r, sl_component_kind kind, const char *name, sl_error *err)
{
    const char *shared = r->options->shared;
    sl_synth_list list = { .items = NULL };
    char *path = text_of(err, "%s/%s", r->dir, name);
    char *from = shared ? text_of(err, "%s/%s", shared, name) : NULL;
    sl_status status = SL_OK;

    if (!path || (shared && !from))
        status = SL_ERR_NO_MEMORY;
    else if (shared && link(from, path) != 0)
        status = sl_fail_errno(err, "could not link \"%s\" as \"%s\"", from, path);
    else if (!shared)
        status = sl_synth_list_make(&list, r->arch, kind, SL_LAYOUT_OFFICIAL, err);
    if (!shared && status == SL_OK)
        status = sl_synth_shard_write(&r->files, &list, 0, path, r->options->seed, err);
    sl_synth_list_free(&list);
    free(from);
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
static sl_status claim_dir(const run *r, sl_error *err)
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
    fprintf(f, "{\"arch\": \"%s\", \"seed\": %llu}\n", r->arch->name,
            (unsigned long long)r->options->seed);
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
    if (free_bytes < r->files.total_bytes + SPARE_BYTES)
        return sl_fail(err, SL_ERR_TOO_LARGE, "model \"%s\" needs %s on disk, \"%s\" has %s free",
                       r->arch->name,
                       sl_size_format(r->files.total_bytes + SPARE_BYTES, need, sizeof need),
                       r->dir, sl_size_format(free_bytes, have, sizeof have));
    return SL_OK;
}

/* Which model a folder has, by its marker. */
static sl_status read_marker(const char *dir, const sl_arch **arch, unsigned long long *seed,
                             sl_error *err)
{
    char name[64] = "";
    char *path = text_of(err, "%s/" SL_SYNTH_MARKER, dir);
    FILE *f = path ? fopen(path, "r") : NULL;
    sl_status status = SL_OK;

    if (!path)
        return SL_ERR_NO_MEMORY;
    if (!f)
        status = sl_fail_errno(err, "could not open \"%s\"", path);
    else if (fscanf(f, "{\"arch\": \"%63[^\"]\", \"seed\": %llu}", name, seed) != 2 ||
             !(*arch = sl_arch_find(name)))
        status = sl_fail(err, SL_ERR_DATA, "\"%s\" names no model", path);
    if (f)
        fclose(f);
    free(path);
    return status;
}

static bool same_tensors(const sl_synth_list *a, const sl_synth_list *b)
{
    bool same = a->count == b->count;

    for (int64_t i = 0; same && i < a->count; i++)
        same = strcmp(a->items[i].name, b->items[i].name) == 0 &&
               memcmp(a->items[i].dim, b->items[i].dim, sizeof a->items[i].dim) == 0;
    return same;
}

/* Files of the same names, made for another model, would be wrong without a word. */
static sl_status check_shared(const run *r, sl_error *err)
{
    static const sl_component_kind kinds[] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_VAE };
    const char *shared = r->options->shared;
    const sl_arch *theirs = NULL;
    unsigned long long seed = 0;
    sl_status status = shared ? read_marker(shared, &theirs, &seed, err) : SL_OK;

    if (!shared || status != SL_OK)
        return status;
    if (seed != r->options->seed)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\" has the seed %llu, not %llu", shared, seed,
                       (unsigned long long)r->options->seed);
    for (size_t i = 0; i < SL_COUNT(kinds) && status == SL_OK; i++) {
        sl_synth_list ours, other = { .items = NULL };

        status = sl_synth_list_make(&ours, r->arch, kinds[i], SL_LAYOUT_OFFICIAL, err);
        if (status == SL_OK)
            status = sl_synth_list_make(&other, theirs, kinds[i], SL_LAYOUT_OFFICIAL, err);
        if (status == SL_OK && !same_tensors(&ours, &other))
            status = sl_fail(err, SL_ERR_INVALID, "the %s of \"%s\" is not as model \"%s\" has it",
                             sl_component_name(kinds[i]), shared, r->arch->name);
        sl_synth_list_free(&ours);
        sl_synth_list_free(&other);
    }
    return status;
}

static sl_status count_bytes(run *r, sl_error *err)
{
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        const bool is_single = kind == SL_COMPONENT_TEXT_ENCODER || kind == SL_COMPONENT_VAE;
        sl_synth_list list;
        sl_status status;

        if (!sl_arch_has_component(r->arch, (sl_component_kind)kind) ||
            (is_single && r->options->shared) ||
            (kind == SL_COMPONENT_DIT_LOW && r->options->one_expert))
            continue;
        status = sl_synth_list_make(&list, r->arch, (sl_component_kind)kind,
                                    is_single ? SL_LAYOUT_OFFICIAL : r->options->layout, err);
        r->files.total_bytes += list.size_bytes;
        sl_synth_list_free(&list);
        if (status != SL_OK)
            return status;
    }
    return SL_OK;
}

/* Everything that can be refused is, before a file is written. */
static sl_status check_run(run *r, sl_error *err)
{
    sl_status status = SL_OK;

    if (r->options->layout == SL_LAYOUT_TURBO_QUANT)
        status = sl_dit_precision_check(&r->arch->dit, SL_PRECISION_INT8, err);
    if (status == SL_OK)
        status = check_shared(r, err);
    if (status == SL_OK)
        status = count_bytes(r, err);
    if (status == SL_OK)
        status = claim_dir(r, err);
    if (status == SL_OK)
        status = check_space(r, err);
    return status;
}

static sl_status write_files(run *r, sl_error *err)
{
    sl_status status = write_experts(r, err);

    if (status == SL_OK)
        status = write_single(r, SL_COMPONENT_VAE, vae_file, err);
    if (status == SL_OK)
        status = write_single(r, SL_COMPONENT_TEXT_ENCODER, t5_file, err);
    if (status == SL_OK)
        status = write_tokenizer(r, err);
    return status;
}

sl_status sl_synth_model_as(const char *dir, const sl_arch *arch, const sl_synth_options *options,
                            sl_error *err)
{
    const int threads = options->threads ? options->threads : sl_pool_online_cores();
    run r = {
        .dir = dir,
        .arch = arch,
        .options = options,
        .files = { .progress = options->progress, .arg = options->arg },
    };
    void *workspace = NULL;
    sl_status status = check_run(&r, err);

    if (status != SL_OK)
        return status;
    pthread_mutex_init(&r.files.lock, NULL);
    if (posix_memalign(&workspace, 64, (size_t)threads * SL_CPU_WORKSPACE_PER_THREAD) != 0) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %d threads", threads);
        goto done;
    }
    status = sl_pool_create(&r.files.pool, threads, workspace, NULL, err);
    if (status == SL_OK)
        status = write_files(&r, err);
done:
    sl_pool_destroy(r.files.pool);
    free(workspace);
    pthread_mutex_destroy(&r.files.lock);
    return status;
}

sl_status sl_synth_model(const char *dir, const sl_arch *arch, uint64_t seed,
                         void (*progress)(void *arg, size_t done_bytes, size_t total_bytes),
                         void *arg, sl_error *err)
{
    const sl_synth_options options = { .seed = seed, .progress = progress, .arg = arg };

    return sl_synth_model_as(dir, arch, &options, err);
}
