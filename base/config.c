/* config.c - two passes over the text: libyaml's events give the line of every
 * key (libcyaml reports where its parser stood, which is the line before for
 * an unexpected key), then libcyaml checks and fills the struct. */
#include "base/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

enum {
    CONFIG_MAX_BYTES = 1 << 20,
    CONFIG_MAX_KEYS = 65536,
    CONFIG_MAX_DEPTH = 16,
    CONFIG_KEY_BYTES = 256,
};

typedef struct {
    char *key;
    int line;
} config_key;

struct sl_config {
    char *name;
    const cyaml_schema_value_t *schema;
    void *values;
    config_key *keys;
    size_t key_count, key_capacity;
};

/* --- the index of keys --- */

typedef struct {
    bool sequence;
    bool key_next;     /* in a mapping: the next scalar is a key */
    int entries;       /* in a sequence */
    size_t path_bytes; /* of the collection itself */
} index_level;

typedef struct {
    sl_config *config;
    index_level level[CONFIG_MAX_DEPTH];
    int depth;
    char path[CONFIG_KEY_BYTES];
} key_index;

static const config_key *find_key(const sl_config *config, const char *key)
{
    for (size_t i = 0; i < config->key_count; i++) {
        if (strcmp(config->keys[i].key, key) == 0)
            return &config->keys[i];
    }
    return NULL;
}

static sl_status add_key(sl_config *config, const char *key, int line, sl_error *err)
{
    const config_key *before = find_key(config, key);

    if (before)
        return sl_fail(err, SL_ERR_DATA, "\"%s\", line %d, key \"%s\": already given in line %d",
                       config->name, line, key, before->line);
    if (config->key_count == CONFIG_MAX_KEYS)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has more than %d keys", config->name,
                       CONFIG_MAX_KEYS);
    if (config->key_count == config->key_capacity) {
        const size_t capacity = config->key_capacity ? 2 * config->key_capacity : 32;
        config_key *keys = realloc(config->keys, capacity * sizeof *keys);
        if (!keys)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for keys of \"%s\"", config->name);
        config->keys = keys;
        config->key_capacity = capacity;
    }
    char *copy = strdup(key);
    if (!copy)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for keys of \"%s\"", config->name);
    config->keys[config->key_count++] = (config_key){ copy, line };
    return SL_OK;
}

/* Appends ".text" or "[n]" to the path of the innermost collection. */
static sl_status step_into(key_index *index, const char *text, int line, sl_error *err)
{
    index_level *level = &index->level[index->depth - 1];
    char *at = index->path + level->path_bytes;
    const size_t room = sizeof index->path - level->path_bytes;
    int used;

    if (level->sequence)
        used = snprintf(at, room, "[%d]", ++level->entries);
    else
        used = snprintf(at, room, "%s%s", level->path_bytes ? "." : "", text);
    if (used < 0 || (size_t)used >= room)
        return sl_fail(err, SL_ERR_DATA, "\"%s\", line %d: key longer than %d bytes",
                       index->config->name, line, CONFIG_KEY_BYTES - 1);
    return add_key(index->config, index->path, line, err);
}

static sl_status index_event(key_index *index, const yaml_event_t *event, sl_error *err)
{
    const int line = (int)event->start_mark.line + 1;
    index_level *level = index->depth ? &index->level[index->depth - 1] : NULL;
    const bool opens = event->type == YAML_MAPPING_START_EVENT
                       || event->type == YAML_SEQUENCE_START_EVENT;
    sl_status status = SL_OK;

    if (event->type == YAML_ALIAS_EVENT)
        return sl_fail(err, SL_ERR_DATA, "\"%s\", line %d: aliases are not supported",
                       index->config->name, line);
    if (event->type == YAML_MAPPING_END_EVENT || event->type == YAML_SEQUENCE_END_EVENT) {
        index->depth--;
        return SL_OK;
    }
    if (!opens && event->type != YAML_SCALAR_EVENT)
        return SL_OK;
    if (level && level->key_next) {
        if (opens)
            return sl_fail(err, SL_ERR_DATA, "\"%s\", line %d: a key must be a word",
                           index->config->name, line);
        level->key_next = false;
        return step_into(index, (const char *)event->data.scalar.value, line, err);
    }
    if (level && level->sequence)
        status = step_into(index, "", line, err);
    else if (level)
        level->key_next = true;
    if (status != SL_OK || !opens)
        return status;
    if (index->depth == CONFIG_MAX_DEPTH)
        return sl_fail(err, SL_ERR_DATA, "\"%s\", line %d: nested deeper than %d",
                       index->config->name, line, CONFIG_MAX_DEPTH);
    index->level[index->depth++] = (index_level){
        .sequence = event->type == YAML_SEQUENCE_START_EVENT,
        .key_next = event->type == YAML_MAPPING_START_EVENT,
        .path_bytes = level ? strlen(index->path) : 0,
    };
    return SL_OK;
}

/* Fills config->keys; *empty when there is no document at all. */
static sl_status index_keys(sl_config *config, const char *text, size_t length, bool *empty,
                            sl_error *err)
{
    key_index index = { .config = config };
    yaml_parser_t parser;
    bool end = false;
    int documents = 0;
    sl_status status = SL_OK;

    if (!yaml_parser_initialize(&parser))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for reading \"%s\"", config->name);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, length);
    while (status == SL_OK && !end) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            /* A reader error (not UTF-8) knows an offset only. */
            const int line = (int)parser.problem_mark.line + 1;
            status = sl_fail(err, SL_ERR_DATA, "\"%s\", line %d: %s%s%s", config->name, line,
                             parser.problem ? parser.problem : "not YAML",
                             parser.context ? " " : "", parser.context ? parser.context : "");
            break;
        }
        if (event.type == YAML_DOCUMENT_START_EVENT && ++documents > 1)
            status = sl_fail(err, SL_ERR_DATA, "\"%s\", line %d: a second document begins",
                             config->name, (int)event.start_mark.line + 1);
        else
            status = index_event(&index, &event, err);
        end = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    *empty = documents == 0;
    return status;
}

/* --- what libcyaml says --- */

typedef struct {
    char message[256];
    char key[CONFIG_KEY_BYTES]; /* from the backtrace, which goes from the inside out */
} cyaml_story;

static void put_in_front(char *path, size_t path_bytes, const char *part)
{
    char old[CONFIG_KEY_BYTES];
    const char *dot = path[0] && path[0] != '[' ? "." : "";

    snprintf(old, sizeof old, "%s", path);
    const int used = snprintf(path, path_bytes, "%s%s", part, dot);
    if (used >= 0 && (size_t)used < path_bytes)
        snprintf(path + used, path_bytes - (size_t)used, "%s", old);
}

static void hear(cyaml_log_t level, void *ctx, const char *fmt, va_list args)
{
    static const char field[] = "  in mapping field '", entry[] = "  in sequence entry '";
    static const char unexpected[] = "Load: Unexpected key: ";
    cyaml_story *story = ctx;
    char line[512];

    (void)level;
    vsnprintf(line, sizeof line, fmt, args);
    line[strcspn(line, "\n")] = '\0';
    if (strncmp(line, field, sizeof field - 1) == 0) {
        char *name = line + sizeof field - 1;
        name[strcspn(name, "'")] = '\0';
        put_in_front(story->key, sizeof story->key, name);
    } else if (strncmp(line, entry, sizeof entry - 1) == 0) {
        char part[32];
        /* Entry 0 is the sequence itself: too few entries. */
        snprintf(part, sizeof part, "[%d]", atoi(line + sizeof entry - 1));
        if (strcmp(part, "[0]") != 0)
            put_in_front(story->key, sizeof story->key, part);
    } else if (strncmp(line, "Load: ", 6) == 0 && strcmp(line, "Load: Backtrace:") != 0) {
        snprintf(story->message, sizeof story->message, "%.250s", line + 6);
        if (strncmp(line, unexpected, sizeof unexpected - 1) == 0) {
            snprintf(story->key, sizeof story->key, "%.200s", line + sizeof unexpected - 1);
            snprintf(story->message, sizeof story->message, "there is no such key");
        }
    }
}

static cyaml_config_t cyaml_settings(cyaml_story *story)
{
    return (cyaml_config_t){
        .log_fn = story ? hear : NULL,
        .log_ctx = story,
        .mem_fn = cyaml_mem,
        .log_level = CYAML_LOG_ERROR,
        .flags = CYAML_CFG_NO_ALIAS,
    };
}

static sl_status fill_values(sl_config *config, const char *text, size_t length, sl_error *err)
{
    cyaml_story story = { .message = "" };
    const cyaml_config_t settings = cyaml_settings(&story);
    const cyaml_err_t code = cyaml_load_data((const uint8_t *)text, length, &settings,
                                             config->schema, &config->values, NULL);

    if (code == CYAML_OK)
        return SL_OK;
    if (code == CYAML_ERR_OOM)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for reading \"%s\"", config->name);
    sl_fail(err, SL_ERR_DATA, "%s", story.message[0] ? story.message : cyaml_strerror(code));
    return sl_config_blame(config, story.key, err);
}

/* --- files --- */

static sl_status read_text(char **out, size_t *length, const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    char *text = NULL;
    size_t used = 0;
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return sl_fail_errno(err, "could not open configuration \"%s\"", path);
    if (fstat(fd, &st) != 0) {
        status = sl_fail_errno(err, "could not read configuration \"%s\"", path);
        goto done;
    }
    if (!S_ISREG(st.st_mode) || st.st_size > CONFIG_MAX_BYTES) {
        status = sl_fail(err, SL_ERR_DATA,
                         "configuration \"%s\" is not a regular file of at most %d bytes", path,
                         CONFIG_MAX_BYTES);
        goto done;
    }
    text = malloc((size_t)st.st_size + 1);
    if (!text) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for configuration \"%s\"", path);
        goto done;
    }
    while (used < (size_t)st.st_size) {
        const ssize_t n = read(fd, text + used, (size_t)st.st_size - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            status = sl_fail_errno(err, "could not read configuration \"%s\"", path);
            goto done;
        }
        if (n == 0)
            break;
        used += (size_t)n;
    }
    *out = text;
    text = NULL;
    *length = used;
done:
    free(text);
    close(fd);
    return status;
}

sl_status sl_config_parse(sl_config **out, const char *name, const char *text, size_t length,
                          const cyaml_schema_value_t *schema, sl_error *err)
{
    sl_status status = SL_OK;
    bool empty = false;
    sl_config *config = calloc(1, sizeof *config);

    if (!config || !(config->name = strdup(name))) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for configuration \"%s\"", name);
        goto done;
    }
    config->schema = schema;
    status = index_keys(config, text, length, &empty, err);
    if (status == SL_OK)
        status = empty ? fill_values(config, "{}", 2, err) : fill_values(config, text, length, err);
    if (status != SL_OK)
        goto done;
    *out = config;
    config = NULL;
done:
    sl_config_close(config);
    return status;
}

sl_status sl_config_open(sl_config **out, const char *path, const cyaml_schema_value_t *schema,
                         sl_error *err)
{
    char *text = NULL;
    size_t length = 0;
    sl_status status = read_text(&text, &length, path, err);

    if (status == SL_OK)
        status = sl_config_parse(out, path, text, length, schema, err);
    free(text);
    return status;
}

void sl_config_close(sl_config *config)
{
    if (!config)
        return;
    if (config->values) {
        const cyaml_config_t settings = cyaml_settings(NULL);
        cyaml_free(&settings, config->schema, config->values, 0);
    }
    for (size_t i = 0; i < config->key_count; i++)
        free(config->keys[i].key);
    free(config->keys);
    free(config->name);
    free(config);
}

const void *sl_config_values(const sl_config *config)
{
    return config->values;
}

bool sl_config_has(const sl_config *config, const char *key)
{
    return find_key(config, key) != NULL;
}

sl_status sl_config_blame(const sl_config *config, const char *key, sl_error *err)
{
    const config_key *found = find_key(config, key);

    if (found)
        return sl_error_prefix(err, "\"%s\", line %d, key \"%s\"", config->name, found->line, key);
    if (key[0])
        return sl_error_prefix(err, "\"%s\", key \"%s\"", config->name, key);
    return sl_error_prefix(err, "\"%s\"", config->name);
}
