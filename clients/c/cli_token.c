/* cli_token.c - `sluice token`: the file of tokens, beside the daemon. */
#include "clients/c/cli.h"

#include "base/clock.h"
#include "service/tokens.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_DAYS = 90, SECONDS_PER_DAY = 86400 };

static const char *file_of(const cli *c)
{
    return c->opt.file ? c->opt.file : "tokens";
}

static int make(cli *c, sl_tokens *tokens)
{
    char text[SL_TOKEN_TEXT_BYTES];
    sl_role role = SL_ROLE_NONE;
    const int64_t seconds = c->opt.expires_ns ? c->opt.expires_ns / SL_NS_PER_S
                                              : (int64_t)DEFAULT_DAYS * SECONDS_PER_DAY;

    if (!c->opt.args[1] || !c->opt.role || !sl_role_parse(c->opt.role, &role))
        return cli_usage(c, "token new needs a NAME, and --role viewer, user or admin");
    sl_status status = sl_tokens_add(tokens, c->opt.args[1], role,
                                     sl_clock_wall_ns() / SL_NS_PER_S + seconds, text, &c->err);
    if (status == SL_OK)
        status = sl_tokens_save(tokens, file_of(c), &c->err);
    if (status != SL_OK)
        return cli_fail(c, status);
    puts(text); /* the only time that it is seen */
    return CLI_OK;
}

static int revoke_one(cli *c, sl_tokens *tokens)
{
    if (!c->opt.args[1])
        return cli_usage(c, "token revoke needs the NAME of a token");
    sl_status status = sl_tokens_remove(tokens, c->opt.args[1], &c->err);
    if (status == SL_OK)
        status = sl_tokens_save(tokens, file_of(c), &c->err);
    if (status != SL_OK)
        return cli_fail(c, status);
    printf("%s is revoked; `sluice reload` tells the daemon\n", c->opt.args[1]);
    return CLI_OK;
}

static int list(cli *c, sl_tokens *tokens)
{
    cJSON *json = c->opt.json ? cJSON_CreateArray() : NULL;
    const int64_t now_s = sl_clock_wall_ns() / SL_NS_PER_S;

    for (int i = 0; i < tokens->count; i++) {
        const sl_token *token = &tokens->items[i];
        const time_t expires = (time_t)token->expires_s;
        const bool expired = token->expires_s != 0 && now_s >= token->expires_s;
        struct tm tm;
        char text[64] = "never";
        if (token->expires_s != 0 && gmtime_r(&expires, &tm))
            strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
        if (json) {
            cJSON *item = cJSON_CreateObject();
            cJSON_AddStringToObject(item, "name", token->name);
            cJSON_AddStringToObject(item, "role", sl_role_name(token->role));
            cJSON_AddStringToObject(item, "expires", text);
            cJSON_AddBoolToObject(item, "expired", expired);
            cJSON_AddItemToArray(json, item);
        } else {
            printf("%-24s %-7s %s%s\n", token->name, sl_role_name(token->role), text,
                   expired ? " (expired)" : "");
        }
    }
    if (json) {
        char *text = cJSON_PrintUnformatted(json);
        puts(text ? text : "[]");
        free(text);
    }
    cJSON_Delete(json);
    return CLI_OK;
}

int cli_token(cli *c)
{
    static const struct {
        const char *name;
        int (*run)(cli *c, sl_tokens *tokens);
    } verbs[] = { { "new", make }, { "revoke", revoke_one }, { "list", list } };
    sl_tokens tokens = { .count = 0 };
    int code = CLI_OK;

    for (size_t i = 0; i < SL_COUNT(verbs); i++) {
        if (strcmp(c->opt.args[0], verbs[i].name) != 0)
            continue;
        const sl_status status = sl_tokens_load(&tokens, file_of(c), &c->err);
        if (status != SL_OK && !(status == SL_ERR_NOT_FOUND && i == 0))
            return cli_fail(c, status);
        code = verbs[i].run(c, &tokens);
        sl_tokens_fini(&tokens);
        return code;
    }
    return cli_usage(c, "`sluice token` has new, revoke and list, not \"%s\"", c->opt.args[0]);
}
