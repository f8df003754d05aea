#include "kernels/ops.h"

const sl_ops sl_ops_cuda = {
    .name = "cuda",
    .linear = sl_linear_cuda,
};
