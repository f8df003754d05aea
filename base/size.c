#include "base/size.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const struct {
    const char *suffix;
    double factor;
} units[] = {
    { "", 1 },
    { "b", 1 },
    { "kib", 1024.0 },
    { "mib", 1024.0 * 1024 },
    { "gib", 1024.0 * 1024 * 1024 },
    { "tib", 1024.0 * 1024 * 1024 * 1024 },
    { "kb", 1e3 },
    { "mb", 1e6 },
    { "gb", 1e9 },
    { "tb", 1e12 },
};

/* "12", "1.5".  strtod alone would also take hexadecimal and exponents. */
static const char *end_of_number(const char *text)
{
    static const char digits[] = "0123456789";
    const char *end = text + strspn(text, digits);
    const size_t fraction = *end == '.' ? strspn(end + 1, digits) : 0;

    return fraction > 0 ? end + 1 + fraction : end;
}

bool sl_size_parse(const char *text, size_t *out)
{
    char *end = NULL;

    if (!text || text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    const double number = strtod(text, &end);
    const bool fraction = memchr(text, '.', (size_t)(end - text)) != NULL;
    if (errno != 0 || !isfinite(number) || end != end_of_number(text))
        return false;
    while (*end == ' ')
        end++;
    for (size_t i = fraction ? 1 : 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcasecmp(end, units[i].suffix) != 0)
            continue;
        const double bytes = number * units[i].factor;
        if (bytes < 1.0 || bytes > 9.0e18)
            return false;
        *out = (size_t)bytes;
        return true;
    }
    return false;
}

char *sl_size_format(size_t size_bytes, char *buf, size_t buf_bytes)
{
    static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double value = (double)size_bytes;
    size_t unit = 0;

    while (value >= 1024.0 && unit + 1 < sizeof names / sizeof names[0]) {
        value /= 1024.0;
        unit++;
    }
    snprintf(buf, buf_bytes, unit == 0 ? "%.0f %s" : "%.2f %s", value, names[unit]);
    return buf;
}
