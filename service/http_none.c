/* A build without libmicrohttpd: there is no side door, and asking for it is an error. */
#include "service/http.h"

sl_http_config sl_http_config_default(void)
{
    return (sl_http_config){ .connections = 1 };
}

sl_status sl_http_create(sl_http **out, const sl_http_config *config, sl_error *err)
{
    *out = NULL;
    return sl_fail(err, SL_ERR_UNIMPLEMENTED, "HTTP on \"%.80s\": this build has none",
                   config->address);
}

void sl_http_destroy(sl_http *http)
{
    (void)http;
}

int sl_http_port(const sl_http *http)
{
    (void)http;
    return 0;
}
