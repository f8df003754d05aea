/* shared.h - components that models have in common.
 *
 * Text encoders and VAEs go by their content (content.h): models with the same one have
 * one component between them, on the device and in host memory, under the name of the
 * model that came first (a later content of that model gets a name of its own,
 * "model~2").  That name is the `model` of its sl_core_key.
 *
 * A model refers to a shared component from the moment that a job or a load of it uses
 * it until it is unloaded.  An unload of one model leaves what another refers to.
 *
 * Ownership: what is here lives as long as the service; so names stay valid.
 * Threads:   with the service's lock held.
 */
#ifndef SL_SERVICE_SHARED_H
#define SL_SERVICE_SHARED_H

#include "service/service_state.h"

/* Whose the components of a model are: owners[kind] for their keys. */
typedef struct {
    const char *owners[SL_COMPONENT_COUNT]; /* NULL: the model's own */
} sl_shared_owners;

/* Notes that the model has these contents, and where its files are. */
void sl_shared_note(sl_service *s, const sl_model *model, sl_shared_owners *out);

/* Where a component's file is: of the model, or of one that has the same; NULL: nobody
 * said. */
const model_path *sl_shared_find_path(const sl_service *s, const sl_core_key *key);

/* The model has a component of that key. */
bool sl_shared_is_of(const sl_service *s, const sl_core_key *key, const char *model);
/* It refers to it from now on, or no more. */
void sl_shared_use(sl_service *s, const sl_core_key *key, const char *model);
void sl_shared_drop(sl_service *s, const sl_core_key *key, const char *model);
void sl_shared_drop_others(sl_service *s, const char *model); /* "": of all models */
/* Another model refers to it. */
bool sl_shared_is_used_by_others(const sl_service *s, const sl_core_key *key, const char *model);

/* Into pb->models: all that have it. */
bool sl_shared_fill_models(const sl_service *s, const sl_core_key *key,
                           Sluice__V1__ComponentBytes *pb, sl_arena *arena);

void sl_shared_free(sl_service *s);

#endif
