/* gpu_layout.h - the second half of the area `small`: layouts, noise, sampler. */
#ifndef SL_TESTS_GPU_LAYOUT_H
#define SL_TESTS_GPU_LAYOUT_H

#include "tests/gpu/gpu_test.h"

void gpu_test_layout(gpu *g);

#endif
