/* card.h - what the daemon knows of a card: it never makes a context.
 *
 * Threads: any.
 */
#ifndef SL_SERVICE_CARD_H
#define SL_SERVICE_CARD_H

#include "kernels/device.h"
#include "kernels/nvml.h"

/* A plain "cuda:N" gets the card's whole memory as its limit, and uuid the card's
 * name (empty where nobody tells).  On cpu nothing happens.  SL_ERR_UNAVAILABLE
 * when there is no limit and the management library is not there to ask. */
sl_status sl_card_resolve(sl_device_spec *spec, char uuid[SL_NVML_UUID_BYTES],
                          sl_error *err) SL_MUST_CHECK;

#endif
