#include "service/shared.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CONTENTS = 4096, MOST_MODELS = 32 };

typedef struct {
    char name[SL_CORE_NAME_BYTES];
    bool uses;
} sharer;

struct shared_content {
    shared_content *next;
    sl_component_kind kind;
    sl_content_id id;
    model_path at; /* its model is the owner's name; the files are of whoever came last */
    int count;
    sharer sharers[MOST_MODELS];
};

/* --- looking --- */

static shared_content *find_content(const sl_service *s, sl_component_kind kind,
                                    const sl_content_id *id)
{
    shared_content *c = s->contents;

    while (c && (c->kind != kind || memcmp(&c->id, id, sizeof c->id) != 0))
        c = c->next;
    return c;
}

/* NULL: it is some model's own. */
static shared_content *find_owner(const sl_service *s, sl_component_kind kind, const char *owner)
{
    shared_content *c = s->contents;

    while (c && (c->kind != kind || strcmp(c->at.model, owner) != 0))
        c = c->next;
    return c;
}

static sharer *find_sharer(shared_content *c, const char *model)
{
    for (int i = 0; c && i < c->count; i++)
        if (strcmp(c->sharers[i].name, model) == 0)
            return &c->sharers[i];
    return NULL;
}

static shared_content *find_key(const sl_service *s, const sl_core_key *key)
{
    return find_owner(s, key->component, key->model);
}

/* --- noting --- */

/* The first free one of "model", "model~2", ...; false: none fits. */
static bool name_owner(const sl_service *s, shared_content *c, const char *model)
{
    for (int i = 1; i <= MOST_CONTENTS; i++) {
        const int length = i == 1 ? snprintf(c->at.model, sizeof c->at.model, "%s", model)
                                  : snprintf(c->at.model, sizeof c->at.model, "%s~%d", model, i);
        if (length < 0 || length >= (int)sizeof c->at.model)
            return false;
        if (!find_owner(s, c->kind, c->at.model))
            return true;
    }
    return false;
}

static shared_content *add_content(sl_service *s, sl_component_kind kind, const sl_content_id *id,
                                   const char *model)
{
    shared_content *c = s->content_count < MOST_CONTENTS ? calloc(1, sizeof *c) : NULL;

    if (!c)
        return NULL;
    c->kind = kind;
    c->id = *id;
    if (!name_owner(s, c, model)) {
        free(c);
        return NULL;
    }
    c->next = s->contents;
    s->contents = c;
    s->content_count++;
    return c;
}

static void note_files(shared_content *c, const sl_model_info *info)
{
    char *path = c->at.path && strcmp(c->at.path, info->path) == 0 ? NULL : strdup(info->path);

    if (path) {
        free(c->at.path);
        c->at.path = path;
        c->at.arch = *info->arch;
    }
    if (!find_sharer(c, info->name) && c->count < MOST_MODELS)
        snprintf(c->sharers[c->count++].name, sizeof c->sharers[0].name, "%s", info->name);
}

/* A model whose file is another one now has what it had no more. */
static void forget_former(sl_service *s, const shared_content *now, const char *model)
{
    for (shared_content *c = s->contents; c; c = c->next) {
        sharer *was = c != now && c->kind == now->kind ? find_sharer(c, model) : NULL;
        if (was)
            *was = c->sharers[--c->count];
    }
}

void sl_shared_note(sl_service *s, const sl_model *model, sl_shared_owners *out)
{
    const sl_model_info *info = sl_model_get_info(model);

    for (int k = 0; k < SL_COMPONENT_COUNT; k++) {
        const sl_component_kind kind = (sl_component_kind)k;
        const sl_content_id *id = sl_model_content(model, kind);

        out->owners[k] = NULL;
        if (!id)
            continue;
        shared_content *c = find_content(s, kind, id);
        if (!c)
            c = add_content(s, kind, id, info->name);
        if (!c)
            continue;
        note_files(c, info);
        forget_former(s, c, info->name);
        if (c->at.path)
            out->owners[k] = c->at.model;
    }
}

const model_path *sl_shared_find_path(const sl_service *s, const sl_core_key *key)
{
    const shared_content *c = find_key(s, key);

    return c ? &c->at : sl_service_find_path(s, key->model);
}

/* --- references --- */

bool sl_shared_is_of(const sl_service *s, const sl_core_key *key, const char *model)
{
    shared_content *c = find_key(s, key);

    return c ? find_sharer(c, model) != NULL : strcmp(key->model, model) == 0;
}

static bool is_resident(const sl_service *s, const sl_core_key *key)
{
    for (int i = 0; i < sl_core_component_count(s->core); i++) {
        sl_core_component c;
        sl_core_get_component(s->core, i, &c);
        if (c.key.component == key->component && strcmp(c.key.model, key->model) == 0)
            return true;
    }
    return false;
}

void sl_shared_use(sl_service *s, const sl_core_key *key, const char *model)
{
    shared_content *c = find_key(s, key);
    sharer *user = find_sharer(c, model);

    /* What has been evicted since was given up by all who referred to it. */
    for (int i = 0; c && i < c->count && !is_resident(s, key); i++)
        c->sharers[i].uses = false;
    if (user)
        user->uses = true;
}

void sl_shared_drop(sl_service *s, const sl_core_key *key, const char *model)
{
    sharer *user = find_sharer(find_key(s, key), model);

    if (user)
        user->uses = false;
}

void sl_shared_drop_others(sl_service *s, const char *model)
{
    for (shared_content *c = s->contents; c; c = c->next)
        for (int i = 0; i < c->count; i++)
            if (strcmp(c->sharers[i].name, model) != 0)
                c->sharers[i].uses = false;
}

bool sl_shared_is_used_by_others(const sl_service *s, const sl_core_key *key, const char *model)
{
    const shared_content *c = find_key(s, key);

    for (int i = 0; c && i < c->count; i++)
        if (c->sharers[i].uses && strcmp(c->sharers[i].name, model) != 0)
            return true;
    return false;
}

/* --- showing --- */

bool sl_shared_fill_models(const sl_service *s, const sl_core_key *key,
                           Sluice__V1__ComponentBytes *pb, sl_arena *arena)
{
    const shared_content *c = find_key(s, key);
    const int count = c && c->count > 0 ? c->count : 1;

    pb->models = sl_arena_alloc(arena, (size_t)count * sizeof(char *));
    for (int i = 0; i < count && pb->models; i++) {
        pb->models[i] = sl_arena_strdup(arena, c && c->count > 0 ? c->sharers[i].name : key->model);
        if (!pb->models[i])
            return false;
        pb->n_models++;
    }
    return pb->models != NULL;
}

void sl_shared_free(sl_service *s)
{
    while (s->contents) {
        shared_content *next = s->contents->next;
        free(s->contents->at.path);
        free(s->contents);
        s->contents = next;
    }
}
