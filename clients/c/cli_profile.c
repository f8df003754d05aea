/* cli_profile.c - where the daemon is: options, else the user's configuration.
 *
 * $XDG_CONFIG_HOME/sluice/config.yaml, ~/.config without that variable.  One daemon
 * needs only the keys at the top; several are `profiles`, of which `profile` or
 * --profile names one.  Paths in the file are relative to its folder.
 */
#include "clients/c/cli.h"

#include "base/config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_PROFILES = 64, MAX_TEXT = 4095 };

typedef struct {
    char *name, *address, *ca, *cert, *key, *token, *server_name;
} profile;

typedef struct {
    char *profile;
    char *address, *ca, *cert, *key, *token, *server_name;
    profile *profiles;
    uint32_t profiles_count;
} file_values;

#define TEXT(type, key)                                                                            \
    CYAML_FIELD_STRING_PTR(#key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, type, key, 1, MAX_TEXT)
#define PLACE(type)                                                                                \
    TEXT(type, address), TEXT(type, ca), TEXT(type, cert), TEXT(type, key), TEXT(type, token),     \
        TEXT(type, server_name)

static const cyaml_schema_field_t profile_fields[] = {
    CYAML_FIELD_STRING_PTR("name", CYAML_FLAG_POINTER, profile, name, 1, MAX_TEXT),
    PLACE(profile),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t profile_value = { CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, profile,
                                                                        profile_fields) };
static const cyaml_schema_field_t fields[] = {
    TEXT(file_values, profile),
    PLACE(file_values),
    CYAML_FIELD_SEQUENCE("profiles", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, file_values,
                         profiles, &profile_value, 1, MAX_PROFILES),
    CYAML_FIELD_END,
};
static const cyaml_schema_value_t schema = { CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, file_values,
                                                                 fields) };

static char *config_folder(void)
{
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    char *path = NULL;

    if (config && config[0] == '/')
        return asprintf(&path, "%s/sluice", config) < 0 ? NULL : path;
    return asprintf(&path, "%s/.config/sluice", home ? home : "") < 0 ? NULL : path;
}

static sl_status find_profile(const file_values *file, const char *wanted, const char *path,
                              profile *out, sl_error *err)
{
    const char *name = wanted ? wanted : file->profile;

    *out = (profile){ .address = file->address, .ca = file->ca, .cert = file->cert,
                      .key = file->key, .token = file->token, .server_name = file->server_name };
    if (!name)
        return SL_OK;
    for (uint32_t i = 0; i < file->profiles_count; i++) {
        if (strcmp(file->profiles[i].name, name) == 0) {
            *out = file->profiles[i];
            return SL_OK;
        }
    }
    return sl_fail(err, SL_ERR_INVALID, "there is no profile \"%s\" in \"%s\"", name, path);
}

/* A token that others can read is no secret. */
static sl_status check_private(const char *path, const profile *p, sl_error *err)
{
    struct stat st;

    if (p->token && stat(path, &st) == 0 && (st.st_mode & 077) != 0)
        return sl_fail(err, SL_ERR_INVALID,
                       "\"%s\" has a token and others may read it: chmod 600 makes it private", path);
    return SL_OK;
}

/* What an option says, else the file; the caller frees it.  folder NULL: no path. */
static bool choose(char **out, const char *option, const char *file, const char *folder)
{
    if (option || !file) {
        *out = option ? strdup(option) : NULL;
        return !option || *out;
    }
    if (folder && file[0] != '/')
        return asprintf(out, "%s/%s", folder, file) >= 0;
    return (*out = strdup(file)) != NULL;
}

sl_status cli_open_client(cli *c)
{
    const cli_options *o = &c->opt;
    char *folder = config_folder(), *path = NULL;
    char *texts[6] = { NULL };
    profile p = { .name = NULL };
    sl_config *config = NULL;
    sl_status status = SL_OK;

    if (!folder || asprintf(&path, "%s/config.yaml", folder) < 0) {
        path = NULL;
        status = sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for the configuration");
        goto done;
    }
    /* Who says where the daemon is does not mean the one of the file. */
    const char *address = o->socket ? o->socket : o->address;
    if (!address) {
        struct stat st;
        if (stat(path, &st) == 0)
            status = sl_config_open(&config, path, &schema, &c->err);
        else if (o->profile)
            status = sl_fail_errno(&c->err, "could not open \"%s\"", path);
        if (status == SL_OK && config)
            status = find_profile(sl_config_values(config), o->profile, path, &p, &c->err);
        if (status == SL_OK)
            status = check_private(path, &p, &c->err);
        if (status != SL_OK)
            goto done;
    }
    if (!choose(&texts[0], address, p.address, NULL) || !choose(&texts[1], o->ca, p.ca, folder)
        || !choose(&texts[2], o->cert, p.cert, folder) || !choose(&texts[3], o->key, p.key, folder)
        || !choose(&texts[4], o->server_name, p.server_name, NULL)
        || !choose(&texts[5], o->token, p.token, NULL)) {
        status = sl_fail(&c->err, SL_ERR_NO_MEMORY, "out of memory for the configuration");
        goto done;
    }
    status = sl_client_create_with(&c->client,
                                   &(sl_client_options){ .address = texts[0],
                                                         .ca = texts[1],
                                                         .cert = texts[2],
                                                         .key = texts[3],
                                                         .server_name = texts[4],
                                                         .token = texts[5] },
                                   &c->err);
done:
    for (size_t i = 0; i < SL_COUNT(texts); i++)
        free(texts[i]);
    sl_config_close(config);
    free(path);
    free(folder);
    return status;
}
