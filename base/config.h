/* config.h - YAML files checked against a schema.
 *
 * The schema is libcyaml's (cyaml.h): a static table that names every key, its
 * type and where it goes in a struct.  Errors name the file, the line and the
 * key, in dots: `"sluice.yaml", line 7, key "limits.queue": invalid UINT value: '-1'`.
 *
 * Stricter than libcyaml alone: at most 1 MiB, one document, no aliases, no key
 * twice.  An absent key leaves zero in the struct; sl_config_has tells it from
 * a zero that was written.  CYAML_BOOL takes every word but "false", "no", "off",
 * "0" for true, so prefer an enum of the words that are meant.
 *
 * Ownership: open/close; the values live until close.
 * Threads:   open in one; read-only afterwards.
 */
#ifndef SL_BASE_CONFIG_H
#define SL_BASE_CONFIG_H

#include "base/status.h"

#include <cyaml/cyaml.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct sl_config sl_config;

/* schema is a CYAML_VALUE_MAPPING with CYAML_FLAG_POINTER.  SL_ERR_DATA for
 * content that does not fit the schema; an empty file is an empty mapping. */
sl_status sl_config_open(sl_config **out, const char *path, const cyaml_schema_value_t *schema,
                         sl_error *err) SL_MUST_CHECK;
/* The same from memory; name stands for the file in messages. */
sl_status sl_config_parse(sl_config **out, const char *name, const char *text, size_t length,
                          const cyaml_schema_value_t *schema, sl_error *err) SL_MUST_CHECK;
void sl_config_close(sl_config *config); /* NULL is fine */

const void *sl_config_values(const sl_config *config); /* the schema's struct */

/* key as in messages: "limits.queue", "models[2]" (entries count from 1). */
bool sl_config_has(const sl_config *config, const char *key);

/* For checks that a schema cannot express: puts file, line and key in front of
 * what err says, as in the messages of open.  Returns err->status. */
sl_status sl_config_blame(const sl_config *config, const char *key, sl_error *err);

#endif
