/* clean_none.c - clean.h in a build without utf8proc: plain ASCII only, for
 * which cleaning changes nothing but white space.  Anything that the reference
 * would repair is refused, not passed on as it is. */
#include "engine/text/clean.h"

#include <stdbool.h>
#include <stdlib.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f';
}

sl_status sl_clean_prompt(char **out, const char *text, size_t length, sl_error *err)
{
    char *clean;
    size_t used = 0;

    if (length > SL_PROMPT_MAX_BYTES)
        return sl_fail(err, SL_ERR_INVALID, "the prompt has %zu bytes, at most %d are taken",
                       length, (int)SL_PROMPT_MAX_BYTES);
    clean = malloc(length + 1);
    if (!clean)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a prompt of %zu bytes", length);
    for (size_t i = 0; i < length; i++) {
        const char c = text[i];
        if (is_space(c)) {
            if (used > 0 && clean[used - 1] != ' ')
                clean[used++] = ' ';
        } else if (c < ' ' || c > '~' || c == '&') {
            free(clean);
            return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                           "byte %zu of the prompt: this build, without utf8proc, takes plain "
                           "ASCII without '&' only",
                           i);
        } else {
            clean[used++] = c;
        }
    }
    if (used > 0 && clean[used - 1] == ' ')
        used--;
    clean[used] = '\0';
    *out = clean;
    return SL_OK;
}
