#include "service/models.h"

#include "engine/text/clean.h"
#include "engine/text/tokenizer.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct sl_model {
    sl_model *next;
    char *name;
    sl_model_dir *dir;
    sl_tokenizer *tokenizer; /* NULL: not needed yet */
    uint64_t stamp;          /* of its files when they were read */
    bool has_content[SL_COMPONENT_COUNT];
    sl_content_id contents[SL_COMPONENT_COUNT];
    int users;
    bool replaced; /* not in the list any more */
};

struct sl_models {
    char **roots;
    int root_count;
    pthread_mutex_t lock; /* guards everything below and in the models */
    sl_model *first;
};

/* --- has it changed? --- */

/* FNV-1a over what stat says; a file that is not there counts too. */
static uint64_t add_stamp(uint64_t hash, const char *path)
{
    struct stat st;
    uint64_t parts[5] = { 0 };

    if (stat(path, &st) == 0) {
        parts[0] = (uint64_t)st.st_dev;
        parts[1] = (uint64_t)st.st_ino;
        parts[2] = (uint64_t)st.st_size;
        parts[3] = (uint64_t)st.st_mtim.tv_sec;
        parts[4] = (uint64_t)st.st_mtim.tv_nsec;
    }
    for (size_t i = 0; i < SL_COUNT(parts); i++) {
        for (int shift = 0; shift < 64; shift += 8)
            hash = (hash ^ (parts[i] >> shift & 0xff)) * 0x100000001b3u;
    }
    return hash;
}

static uint64_t make_stamp(const sl_model_info *info)
{
    uint64_t hash = add_stamp(0xcbf29ce484222325u, info->path);

    for (int i = 0; i < SL_COMPONENT_COUNT; i++) {
        if (info->files[i])
            hash = add_stamp(hash, info->files[i]);
    }
    return info->tokenizer ? add_stamp(hash, info->tokenizer) : hash;
}

/* --- life --- */

sl_status sl_models_create(sl_models **out, const char *const *roots, int root_count,
                           sl_error *err)
{
    sl_models *models = calloc(1, sizeof *models);

    if (!models || !(models->roots = calloc((size_t)root_count + 1, sizeof(char *)))) {
        free(models);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the models");
    }
    pthread_mutex_init(&models->lock, NULL);
    for (int i = 0; i < root_count; i++) {
        models->roots[models->root_count] = strdup(roots[i]);
        if (!models->roots[models->root_count++]) {
            sl_models_destroy(models);
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the models");
        }
    }
    *out = models;
    return SL_OK;
}

static void destroy_model(sl_model *model)
{
    sl_tokenizer_close(model->tokenizer);
    sl_model_dir_close(model->dir);
    free(model->name);
    free(model);
}

void sl_models_destroy(sl_models *models)
{
    if (!models)
        return;
    while (models->first) {
        sl_model *next = models->first->next;
        SL_ASSERT(models->first->users == 0);
        destroy_model(models->first);
        models->first = next;
    }
    for (int i = 0; i < models->root_count; i++)
        free(models->roots[i]);
    free(models->roots);
    pthread_mutex_destroy(&models->lock);
    free(models);
}

/* --- references --- */

/* One that cannot be had is not shared. */
static void note_contents(sl_model *model)
{
    static const sl_component_kind kinds[] = { SL_COMPONENT_TEXT_ENCODER, SL_COMPONENT_VAE };
    const sl_model_info *info = sl_model_dir_info(model->dir);
    sl_error err = { .status = SL_OK };

    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        const sl_component_kind kind = kinds[i];
        model->has_content[kind] =
            info->files[kind]
            && sl_content_make_id(&model->contents[kind], info, kind, &err) == SL_OK;
    }
}

static sl_status open_model(sl_model **out, const char *name, const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    sl_model *model = calloc(1, sizeof *model);

    if (!model || !(model->name = strdup(name))) {
        free(model);
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for model \"%s\"", name);
    }
    status = sl_model_dir_open(&model->dir, path, err);
    if (status != SL_OK) {
        destroy_model(model);
        return status;
    }
    model->stamp = make_stamp(sl_model_dir_info(model->dir));
    note_contents(model);
    *out = model;
    return SL_OK;
}

/* Takes it out of the list; whoever uses it still may. */
static void retire(sl_models *models, sl_model *model)
{
    sl_model **link = &models->first;

    while (*link != model)
        link = &(*link)->next;
    *link = model->next;
    model->replaced = true;
    if (model->users == 0)
        destroy_model(model);
}

static sl_status get_locked(sl_models *models, sl_model **out, const char *name, sl_error *err)
{
    sl_status status = SL_OK;
    char *path = NULL;
    sl_model *model = models->first;

    status = sl_model_find(&path, (const char *const *)models->roots, models->root_count, name,
                           err);
    if (status != SL_OK)
        return status;
    while (model && strcmp(model->name, name) != 0)
        model = model->next;
    if (model
        && (strcmp(sl_model_dir_info(model->dir)->path, path) != 0
            || make_stamp(sl_model_dir_info(model->dir)) != model->stamp)) {
        retire(models, model);
        model = NULL;
    }
    if (!model) {
        status = open_model(&model, name, path, err);
        if (status != SL_OK)
            goto done;
        model->next = models->first;
        models->first = model;
    }
    model->users++;
    *out = model;
done:
    free(path);
    return status;
}

sl_status sl_models_get(sl_models *models, sl_model **out, const char *name, sl_error *err)
{
    pthread_mutex_lock(&models->lock);
    const sl_status status = get_locked(models, out, name, err);
    pthread_mutex_unlock(&models->lock);
    return status;
}

void sl_models_release(sl_models *models, sl_model *model)
{
    if (!model)
        return;
    pthread_mutex_lock(&models->lock);
    if (--model->users == 0 && model->replaced)
        destroy_model(model);
    pthread_mutex_unlock(&models->lock);
}

const sl_model_info *sl_model_get_info(const sl_model *model)
{
    return sl_model_dir_info(model->dir);
}

const sl_content_id *sl_model_content(const sl_model *model, sl_component_kind kind)
{
    return model->has_content[kind] ? &model->contents[kind] : NULL;
}

/* --- prompts --- */

static sl_status get_tokenizer(sl_models *models, sl_model *model, const sl_tokenizer **out,
                               sl_error *err)
{
    const sl_model_info *info = sl_model_dir_info(model->dir);
    sl_status status = SL_OK;

    if (!info->tokenizer)
        return sl_fail(err, SL_ERR_PRECONDITION, "model \"%s\" has no tokenizer file", model->name);
    pthread_mutex_lock(&models->lock);
    if (!model->tokenizer)
        status = sl_tokenizer_open(&model->tokenizer, info->tokenizer, err);
    *out = model->tokenizer;
    pthread_mutex_unlock(&models->lock);
    return status;
}

sl_status sl_models_tokenize(sl_models *models, sl_model *model, const char *prompt, int32_t *ids,
                             int max_ids, int *count, sl_error *err)
{
    const sl_tokenizer *tokenizer = NULL;
    char *clean = NULL;
    sl_status status = sl_clean_prompt(&clean, prompt, strlen(prompt), err);

    if (status == SL_OK)
        status = get_tokenizer(models, model, &tokenizer, err);
    if (status == SL_OK)
        status = sl_tokenizer_encode(tokenizer, clean, strlen(clean), ids, max_ids, count, err);
    free(clean);
    return status;
}

/* --- listing --- */

typedef struct {
    char *names[SL_MODELS_LISTED];
    int count;
} name_list;

static bool has_name(const name_list *list, const char *name)
{
    for (int i = 0; i < list->count; i++) {
        if (strcmp(list->names[i], name) == 0)
            return true;
    }
    return false;
}

/* A root that is not there has no models. */
static sl_status collect(name_list *list, const char *root, sl_error *err)
{
    sl_status status = SL_OK;
    struct dirent *entry;
    DIR *dir = opendir(root);

    if (!dir)
        return errno == ENOENT ? SL_OK : sl_fail_errno(err, "could not read \"%s\"", root);
    while (status == SL_OK && list->count < SL_MODELS_LISTED && (entry = readdir(dir)) != NULL) {
        char path[4096];
        struct stat st;
        if (entry->d_name[0] == '.' || has_name(list, entry->d_name)
            || snprintf(path, sizeof path, "%s/%s", root, entry->d_name) >= (int)sizeof path
            || stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
            continue;
        list->names[list->count] = strdup(entry->d_name);
        if (!list->names[list->count])
            status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the list of models");
        else
            list->count++;
    }
    closedir(dir);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

sl_status sl_models_list(sl_models *models,
                         sl_status (*say)(void *arg, const char *name, const sl_model_info *info,
                                          const char *problem, sl_error *err),
                         void *arg, sl_error *err)
{
    sl_status status = SL_OK;
    name_list *list = calloc(1, sizeof *list);

    if (!list)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the list of models");
    for (int i = 0; i < models->root_count && status == SL_OK; i++)
        status = collect(list, models->roots[i], err);
    qsort(list->names, (size_t)list->count, sizeof(char *), by_name);
    for (int i = 0; i < list->count && status == SL_OK; i++) {
        sl_error problem = { .status = SL_OK };
        sl_model *model = NULL;
        if (sl_models_get(models, &model, list->names[i], &problem) == SL_OK)
            status = say(arg, list->names[i], sl_model_get_info(model), "", err);
        else
            status = say(arg, list->names[i], NULL, problem.message, err);
        sl_models_release(models, model);
    }
    for (int i = 0; i < list->count; i++)
        free(list->names[i]);
    free(list);
    return status;
}
