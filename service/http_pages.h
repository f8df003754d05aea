/* http_pages.h - what the side door shows, as text.
 *
 * Ownership: the caller frees the text; NULL: out of memory.
 * Threads:   any.
 */
#ifndef SL_SERVICE_HTTP_PAGES_H
#define SL_SERVICE_HTTP_PAGES_H

#include "service/http.h"

#include <stddef.h>

char *sl_http_metrics(const sl_http_config *config, size_t *size_bytes);
char *sl_http_status_page(const sl_http_config *config, size_t *size_bytes);
/* *ready: also in words. */
char *sl_http_readiness(const sl_http_config *config, bool *ready, size_t *size_bytes);

#endif
