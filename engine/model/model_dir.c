#include "engine/model/model_dir.h"

#include "base/arena.h"
#include "base/size.h"
#include "engine/model/match.h"
#include "engine/model/model_probe.h"
#include "engine/model/names.h"
#include "engine/model/synth.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct sl_model_dir {
    sl_arena *arena; /* everything below, and this struct's strings */
    sl_model_info info;
    sl_arch arch;
    /* which fields of `arch` came from files */
    bool has_dit, has_t5, has_vae;
    sl_dit_json json;
};

static bool ends_with(const char *text, const char *suffix)
{
    const size_t n = strlen(text), m = strlen(suffix);

    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* "...-00001-of-00006.safetensors": read through its index, never alone. */
static bool is_shard(const char *name)
{
    static const char shape[] = "-#####-of-#####.safetensors";
    const size_t n = strlen(name), m = sizeof shape - 1;

    if (n < m)
        return false;
    for (size_t i = 0; i < m; i++) {
        const char c = name[n - m + i];
        if (shape[i] == '#' ? c < '0' || c > '9' : c != shape[i])
            return false;
    }
    return true;
}

static bool is_checkpoint(const char *name)
{
    return (ends_with(name, ".safetensors") && !is_shard(name)) ||
           ends_with(name, ".safetensors.index.json") || ends_with(name, ".pth");
}

/* The names of published files: they win over others of the same contents. */
static bool is_canonical(const char *name)
{
    static const char *const names[] = {
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "Wan2.1_VAE.safetensors",
        "Wan2.1_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
    };

    for (size_t i = 0; i < SL_COUNT(names); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static char *join(sl_model_dir *dir, const char *parent, const char *name, sl_error *err)
{
    char *path = sl_arena_printf(dir->arena, "%s/%s", parent, name);

    if (!path)
        sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the files of \"%s\"", parent);
    return path;
}

static bool is_named(const char *path, const char *word, const char *not_word)
{
    const char *name = strrchr(path, '/') + 1;

    return strcasestr(name, word) && !strcasestr(name, not_word);
}

/* Two transformers side by side are two experts when their names say so: only
 * the name tells which is which, the tensors are alike. */
static bool assign_experts(sl_model_dir *dir, const char *a, const char *b)
{
    const char **files = dir->info.files;
    const char *high = is_named(a, "high", "low") ? a : b, *low = high == a ? b : a;

    if (!is_named(high, "high", "low") || !is_named(low, "low", "high") ||
        files[SL_COMPONENT_DIT_HIGH] || files[SL_COMPONENT_DIT_LOW])
        return false;
    files[SL_COMPONENT_DIT_HIGH] = high;
    files[SL_COMPONENT_DIT_LOW] = low;
    files[SL_COMPONENT_DIT] = NULL;
    return true;
}

/* Notes a recognised checkpoint under `kind`; of two, the published name wins. */
static sl_status assign(sl_model_dir *dir, sl_component_kind kind, const char *path, sl_error *err)
{
    const char *other = dir->info.files[kind];
    const bool canonical = is_canonical(strrchr(path, '/') + 1);
    const bool other_canonical = other && is_canonical(strrchr(other, '/') + 1);

    if (other && kind == SL_COMPONENT_DIT && assign_experts(dir, other, path))
        return SL_OK;
    if (other && canonical == other_canonical)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" and \"%s\" are both a %s; keep one of them", other,
                       path, sl_component_name(kind));
    if (!other || canonical)
        dir->info.files[kind] = path;
    return SL_OK;
}

/* One checkpoint of the directory: what it is, and where it goes.  Files that
 * are no part of a model (adapters, ...) are passed by. */
static sl_status visit_file(sl_model_dir *dir, const char *path, sl_component_kind dit_kind,
                            sl_error *err)
{
    sl_ckpt *ckpt = NULL;
    sl_component_kind kind;
    sl_status status = sl_ckpt_open(&ckpt, path, err);

    if (status != SL_OK)
        return status;
    if (sl_probe_kind(ckpt, &kind)) {
        if (kind == SL_COMPONENT_DIT)
            kind = dit_kind;
        status = assign(dir, kind, path, err);
    }
    sl_ckpt_close(ckpt);
    return status;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* All checkpoint names of a folder, sorted, so that messages do not depend on
 * the order of the file system. */
static sl_status list_checkpoints(sl_model_dir *dir, const char *folder, char ***names, int *count,
                                  sl_error *err)
{
    enum { MAX_FILES = 4096 };
    DIR *d = opendir(folder);
    struct dirent *entry;
    sl_status status = SL_OK;

    if (!d)
        return sl_fail_errno(err, "could not read directory \"%s\"", folder);
    *count = 0;
    *names = sl_arena_alloc(dir->arena, MAX_FILES * sizeof **names);
    if (!*names)
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the files of \"%s\"", folder);
    while (status == SL_OK && (entry = readdir(d))) {
        if (!is_checkpoint(entry->d_name))
            continue;
        if (*count == MAX_FILES) {
            status = sl_fail(err, SL_ERR_DATA, "\"%s\" holds more than %d checkpoints", folder,
                             MAX_FILES);
            break;
        }
        (*names)[*count] = join(dir, folder, entry->d_name, err);
        status = (*names)[(*count)++] ? SL_OK : SL_ERR_NO_MEMORY;
    }
    closedir(d);
    if (status == SL_OK)
        qsort(*names, (size_t)*count, sizeof **names, by_text);
    return status;
}

static sl_status scan_folder(sl_model_dir *dir, const char *folder, sl_component_kind dit_kind,
                             sl_error *err)
{
    char **names = NULL;
    int count = 0;
    sl_status status = list_checkpoints(dir, folder, &names, &count, err);

    for (int i = 0; i < count && status == SL_OK; i++)
        status = visit_file(dir, names[i], dit_kind, err);
    return status;
}

static bool is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool is_file(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* Folders of published models, and what a transformer in them is. */
static const struct {
    const char *name;
    sl_component_kind dit_kind;
} folders[] = {
    { "high_noise_model", SL_COMPONENT_DIT_HIGH },
    { "low_noise_model", SL_COMPONENT_DIT_LOW },
    { "transformer", SL_COMPONENT_DIT }, /* the high-noise expert if there is the next */
    { "transformer_2", SL_COMPONENT_DIT_LOW },
    { "text_encoder", SL_COMPONENT_DIT },
    { "vae", SL_COMPONENT_DIT },
};

static sl_status scan_folders(sl_model_dir *dir, sl_error *err)
{
    const char **files = dir->info.files;
    sl_status status = scan_folder(dir, dir->info.path, SL_COMPONENT_DIT, err);

    for (size_t i = 0; i < SL_COUNT(folders) && status == SL_OK; i++) {
        const char *folder = join(dir, dir->info.path, folders[i].name, err);

        if (!folder)
            return SL_ERR_NO_MEMORY;
        if (!is_dir(folder))
            continue;
        status = scan_folder(dir, folder, folders[i].dit_kind, err);
        if (status == SL_OK && strcmp(folders[i].name, "transformer_2") == 0 &&
            files[SL_COMPONENT_DIT_LOW] && !files[SL_COMPONENT_DIT_HIGH]) {
            files[SL_COMPONENT_DIT_HIGH] = files[SL_COMPONENT_DIT];
            files[SL_COMPONENT_DIT] = NULL;
        }
    }
    return status;
}

static sl_status find_files(sl_model_dir *dir, sl_error *err)
{
    const char **files = dir->info.files;
    const sl_status status = scan_folders(dir, err);

    if (status != SL_OK)
        return status;
    const bool has_experts = files[SL_COMPONENT_DIT_HIGH] || files[SL_COMPONENT_DIT_LOW];
    if (has_experts && files[SL_COMPONENT_DIT])
        return sl_fail(err, SL_ERR_DATA,
                       "\"%s\" holds both one transformer (\"%s\") and experts (\"%s\")",
                       dir->info.path, files[SL_COMPONENT_DIT],
                       files[SL_COMPONENT_DIT_HIGH] ? files[SL_COMPONENT_DIT_HIGH]
                                                    : files[SL_COMPONENT_DIT_LOW]);
    if (!has_experts && !files[SL_COMPONENT_DIT])
        return sl_fail(err, SL_ERR_DATA,
                       "\"%s\" is no model: no .safetensors or .pth file in it is a diffusion "
                       "transformer",
                       dir->info.path);
    dir->arch.expert_count = has_experts ? 2 : 1;
    return SL_OK;
}

static sl_status find_tokenizer(sl_model_dir *dir, sl_error *err)
{
    static const char *const names[] = { "google/umt5-xxl/spiece.model", "tokenizer/spiece.model",
                                         "tokenizer/tokenizer.model", "spiece.model",
                                         "tokenizer.model" };

    for (size_t i = 0; i < SL_COUNT(names); i++) {
        const char *path = join(dir, dir->info.path, names[i], err);
        if (!path)
            return SL_ERR_NO_MEMORY;
        if (is_file(path)) {
            dir->info.tokenizer = path;
            return SL_OK;
        }
    }
    return SL_OK;
}

/* config.json beside the DiT, or in the model's own folder. */
static sl_status read_json(sl_model_dir *dir, const char *dit_path, sl_dit_json *json,
                           sl_error *err)
{
    char *folder = sl_arena_strdup(dir->arena, dit_path);
    const char *places[2];

    if (!folder)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", dit_path);
    *strrchr(folder, '/') = '\0';
    places[0] = join(dir, folder, "config.json", err);
    places[1] = join(dir, dir->info.path, "config.json", err);
    if (!places[0] || !places[1])
        return SL_ERR_NO_MEMORY;
    for (size_t i = 0; i < SL_COUNT(places); i++)
        if (is_file(places[i]))
            return sl_dit_json_read(json, places[i], err);
    return SL_OK;
}

static bool same_vae(const sl_vae_config *a, const sl_vae_config *b)
{
    return a->dim == b->dim && a->z_dim == b->z_dim && a->num_res_blocks == b->num_res_blocks &&
           memcmp(a->dim_mult, b->dim_mult, sizeof a->dim_mult) == 0 &&
           memcmp(a->temporal_down, b->temporal_down, sizeof a->temporal_down) == 0;
}

static bool same_dit(const sl_dit_config *a, const sl_dit_config *b)
{
    return a->dim == b->dim && a->ffn_dim == b->ffn_dim && a->num_heads == b->num_heads &&
           a->num_layers == b->num_layers && a->in_dim == b->in_dim && a->out_dim == b->out_dim &&
           a->text_dim == b->text_dim && a->text_len == b->text_len && a->freq_dim == b->freq_dim &&
           a->eps == b->eps;
}

static bool same_t5(const sl_t5_config *a, const sl_t5_config *b)
{
    return a->vocab == b->vocab && a->dim == b->dim && a->dim_attn == b->dim_attn &&
           a->dim_ffn == b->dim_ffn && a->num_heads == b->num_heads &&
           a->num_layers == b->num_layers && a->num_buckets == b->num_buckets;
}

/* `convert --to quant` writes zeros where there was none. */
static sl_status probe_projection(const sl_ckpt *ckpt, bool *out, sl_error *err)
{
    const sl_ckpt_tensor *t =
        sl_names_find(ckpt, "blocks.0.self_attn.attn_op.local_attn.proj_l.weight");
    uint8_t bytes[4096];
    sl_status status = SL_OK;

    *out = false;
    for (size_t at = 0; t && at < t->size_bytes && !*out && status == SL_OK; at += sizeof bytes) {
        const size_t left = t->size_bytes - at, n = left < sizeof bytes ? left : sizeof bytes;
        status = sl_ckpt_read(ckpt, t, at, bytes, n, err);
        for (size_t i = 0; i < n && status == SL_OK && !*out; i++)
            *out = bytes[i] != 0;
    }
    return status;
}

static sl_status probe_dit(sl_model_dir *dir, const char *path, const sl_ckpt *ckpt, sl_error *err)
{
    const sl_layout layout = sl_ckpt_layout(ckpt);
    sl_dit_config found;
    sl_dit_json json = { .has = 0 };
    sl_status status = read_json(dir, path, &json, err);

    if (status == SL_OK)
        status = sl_probe_dit(ckpt, &json, &found, err);
    if (status == SL_OK)
        status = probe_projection(ckpt, &dir->info.sparse_tuned, err);
    if (status != SL_OK)
        return status;
    if (dir->has_dit && (!same_dit(&found, &dir->arch.dit) || layout != dir->info.layout ||
                         json.task != dir->json.task))
        return sl_fail(err, SL_ERR_DATA,
                       "the two experts of \"%s\" have different dimensions or layouts",
                       dir->info.path);
    dir->has_dit = true;
    dir->arch.dit = found;
    dir->info.layout = layout;
    dir->json = json;
    return SL_OK;
}

/* Dimensions of every component that is there. */
static sl_status probe_files(sl_model_dir *dir, sl_error *err)
{
    sl_status status = SL_OK;

    for (int kind = 0; kind < SL_COMPONENT_COUNT && status == SL_OK; kind++) {
        const char *path = dir->info.files[kind];
        sl_ckpt *ckpt = NULL;

        if (!path)
            continue;
        status = sl_ckpt_open(&ckpt, path, err);
        if (status != SL_OK)
            return status;
        if (kind == SL_COMPONENT_TEXT_ENCODER) {
            status = sl_probe_t5(ckpt, &dir->arch.t5, err);
            dir->has_t5 = true;
        } else if (kind == SL_COMPONENT_VAE) {
            status = sl_probe_vae(ckpt, &dir->arch.vae, err);
            dir->has_vae = true;
        } else {
            status = probe_dit(dir, path, ckpt, err);
        }
        if (status != SL_OK)
            sl_error_prefix(err, "\"%s\"", path);
        dir->info.file_bytes += sl_ckpt_data_bytes(ckpt);
        sl_ckpt_close(ckpt);
    }
    return status;
}

/* Row of the table with these dimensions; absent components match any. */
static const sl_arch *find_row(const sl_model_dir *dir)
{
    const sl_arch *mine = &dir->arch;

    for (int i = 0; i < sl_arch_count(); i++) {
        const sl_arch *row = sl_arch_get(i);
        if (row->task == mine->task && row->expert_count == mine->expert_count &&
            same_dit(&row->dit, &mine->dit) && (!dir->has_t5 || same_t5(&row->t5, &mine->t5)) &&
            (!dir->has_vae || same_vae(&row->vae, &mine->vae)))
            return row;
    }
    return NULL;
}

/* Components must fit together; what is absent is taken from the table. */
static sl_status complete_arch(sl_model_dir *dir, sl_error *err)
{
    sl_arch *arch = &dir->arch;
    const sl_arch *row;

    arch->task = dir->json.has & SL_DIT_JSON_TASK        ? dir->json.task
                 : arch->dit.in_dim == arch->dit.out_dim ? SL_TASK_T2V
                                                         : SL_TASK_I2V;
    if (dir->has_t5 && arch->t5.dim != arch->dit.text_dim)
        return sl_fail(err, SL_ERR_DATA,
                       "\"%s\": the text encoder's width is %lld, the transformer takes %lld",
                       dir->info.path, (long long)arch->t5.dim, (long long)arch->dit.text_dim);
    if (dir->has_vae && arch->vae.z_dim != arch->dit.out_dim)
        return sl_fail(err, SL_ERR_DATA,
                       "\"%s\": the VAE has %lld latent channels, the transformer gives %lld",
                       dir->info.path, (long long)arch->vae.z_dim, (long long)arch->dit.out_dim);
    row = find_row(dir);
    if (row) {
        *arch = *row;
    } else {
        const sl_arch *published = sl_arch_get(0);
        if (!dir->has_t5)
            arch->t5 = published->t5;
        if (!dir->has_vae)
            arch->vae = published->vae;
        arch->name = "custom";
        arch->sigma_max = arch->task == SL_TASK_I2V ? 200 : 80;
        arch->default_width = published->default_width;
        arch->default_height = published->default_height;
        arch->default_frames = published->default_frames;
    }
    dir->info.arch = arch;
    return SL_OK;
}

/* The last element of a path, without trailing slashes; "." and ".." by their
 * real names. */
static sl_status set_name(sl_model_dir *dir, const char *path, sl_error *err)
{
    char *text = sl_arena_strdup(dir->arena, path), *slash;
    size_t n;

    if (text) {
        for (n = strlen(text); n > 1 && text[n - 1] == '/'; n--)
            text[n - 1] = '\0';
        dir->info.path = text;
        slash = strrchr(text, '/');
        dir->info.name = slash && slash[1] != '\0' ? slash + 1 : text;
        if (strcmp(dir->info.name, ".") == 0 || strcmp(dir->info.name, "..") == 0) {
            char *real = realpath(text, NULL);
            if (!real)
                return sl_fail_errno(err, "could not resolve \"%s\"", text);
            dir->info.name = sl_arena_strdup(dir->arena, strrchr(real, '/') + 1);
            free(real);
        }
    }
    if (!text || !dir->info.name)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for model \"%s\"", path);
    return SL_OK;
}

static sl_status read_dir(sl_model_dir *dir, const char *path, sl_error *err)
{
    const char *marker;
    struct stat st;
    sl_status status;

    if (stat(path, &st) != 0)
        return sl_fail_errno(err, "could not open model \"%s\"", path);
    if (!S_ISDIR(st.st_mode))
        return sl_fail(err, SL_ERR_DATA, "\"%s\" is no directory", path);
    status = set_name(dir, path, err);
    if (status == SL_OK)
        status = find_files(dir, err);
    if (status == SL_OK)
        status = find_tokenizer(dir, err);
    if (status == SL_OK)
        status = probe_files(dir, err);
    if (status == SL_OK)
        status = complete_arch(dir, err);
    if (status != SL_OK)
        return status;
    marker = join(dir, dir->info.path, SL_SYNTH_MARKER, err);
    if (!marker)
        return SL_ERR_NO_MEMORY;
    dir->info.synthetic = is_file(marker);
    return SL_OK;
}

sl_status sl_model_dir_open(sl_model_dir **out, const char *path, sl_error *err)
{
    sl_arena *arena = NULL;
    sl_model_dir *dir = NULL;
    sl_status status = sl_arena_create(&arena, 0, err);

    if (status != SL_OK)
        goto done;
    dir = sl_arena_alloc(arena, sizeof *dir);
    if (!dir) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for model \"%s\"", path);
        goto done;
    }
    dir->arena = arena;
    status = read_dir(dir, path, err);
    if (status != SL_OK)
        goto done;

    *out = dir;
    arena = NULL;
done:
    sl_arena_destroy(arena); /* and dir with it, unless handed over */
    return status;
}

void sl_model_dir_close(sl_model_dir *dir)
{
    if (dir)
        sl_arena_destroy(dir->arena);
}

const sl_model_info *sl_model_dir_info(const sl_model_dir *dir)
{
    return &dir->info;
}

/* True if the real path of `path` lies directly or deeper under that of root. */
static bool is_inside(const char *root, const char *path)
{
    const size_t n = strlen(root);

    return strncmp(root, path, n) == 0 && (path[n] == '/' || strcmp(root, "/") == 0);
}

/* *path_out stays NULL if this root has no such directory. */
static sl_status find_under(char **path_out, const char *root, const char *name, sl_error *err)
{
    char *path = NULL, *real = NULL, *real_root = realpath(root, NULL);
    sl_status status = SL_OK;

    if (!real_root)
        goto done; /* a root that is not there holds no models */
    if (asprintf(&path, "%s/%s", root, name) < 0) {
        path = NULL;
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
        goto done;
    }
    real = realpath(path, NULL);
    if (!real || !is_dir(real))
        goto done;
    if (!is_inside(real_root, real)) {
        status =
            sl_fail(err, SL_ERR_INVALID, "model \"%s\" leads out of its root \"%s\"", name, root);
        goto done;
    }
    *path_out = path;
    path = NULL;
done:
    free(real_root);
    free(real);
    free(path);
    return status;
}

sl_status sl_model_find(char **path_out, const char *const *roots, int root_count, const char *name,
                        sl_error *err)
{
    const size_t length = strlen(name);
    char *path = NULL;
    sl_status status;

    if (length == 0 || length > NAME_MAX)
        return sl_fail(err, SL_ERR_INVALID, "a model name has 1 to %d bytes, not %zu", NAME_MAX,
                       length);
    if (strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\" is no model name: it must not be a path", name);
    for (int i = 0; i < root_count; i++) {
        status = find_under(&path, roots[i], name, err);
        if (status != SL_OK)
            return status;
        if (path) {
            *path_out = path;
            return SL_OK;
        }
    }
    return sl_fail(err, SL_ERR_NOT_FOUND, "no model \"%s\" under the %d model roots", name,
                   root_count);
}
