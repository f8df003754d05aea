/* device_cuda.h - what copies and pins need to know of a cuda device.
 *
 * Ownership: the device owns all of it, for as long as it lives.
 * Threads:   any.
 */
#ifndef SL_KERNELS_DEVICE_CUDA_H
#define SL_KERNELS_DEVICE_CUDA_H

#include "kernels/cuda_driver.h"
#include "kernels/device.h"
#include "kernels/pin_cuda.h"

/* Of a cuda device only. */
const sl_cuda_driver *sl_device_cuda_driver(const sl_device *device);
sl_pins *sl_device_cuda_pins(const sl_device *device);
/* Makes the device's context current in the calling thread. */
sl_status sl_device_cuda_enter(const sl_device *device, sl_error *err);

#endif
