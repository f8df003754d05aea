/* device_cuda.h - what copies and pins need to know of a cuda device.
 *
 * Ownership: the device owns both; they live as long as it does.
 * Threads:   any.
 */
#ifndef SL_KERNELS_DEVICE_CUDA_H
#define SL_KERNELS_DEVICE_CUDA_H

#include "kernels/cuda_driver.h"
#include "kernels/device.h"

/* Of a cuda device only. */
const sl_cuda_driver *sl_device_cuda_driver(const sl_device *device);
/* Makes the device's context current in the calling thread. */
sl_status sl_device_cuda_enter(const sl_device *device, sl_error *err) SL_MUST_CHECK;

#endif
