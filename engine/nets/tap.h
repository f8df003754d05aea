/* tap.h - a look at a network's intermediates, for golden tests and dumps.
 *
 * A tap is called with a name ("patch", "block3") and a tensor that is valid
 * during the call only.  Production passes NULL; a counting run never calls.
 */
#ifndef SL_ENGINE_NETS_TAP_H
#define SL_ENGINE_NETS_TAP_H

#include "kernels/tensor.h"

typedef struct {
    void (*fn)(void *arg, const char *name, const sl_tensor *tensor);
    void *arg;
} sl_tap;

#endif
