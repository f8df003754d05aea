/* sla_cpu.h - what the cpu's sparse_attention and sage_attention share. */
#ifndef SL_KERNELS_SLA_CPU_H
#define SL_KERNELS_SLA_CPU_H

#include "kernels/sla.h"

/* Common part of the contracts: head size, blocks, lut, branch.  width: N*D. */
sl_status sl_sla_check_common(const char *op, int64_t S, int64_t width, const sl_tensor *lut,
                              const sl_linear_branch *branch, int64_t N, int64_t block_q,
                              int64_t block_k, float scale, sl_error *err) SL_MUST_CHECK;
sl_status sl_sla_check_apart(const char *op, const sl_tensor *o, const sl_tensor *lut,
                             const sl_linear_branch *branch, sl_error *err) SL_MUST_CHECK;

/* One thread's workspace of the branch. */
typedef struct {
    float phi[SL_SLA_MAX_BLOCK * SL_SLA_MAX_HEAD];  /* [rows, D] */
    float part[SL_SLA_MAX_BLOCK * SL_SLA_MAX_HEAD]; /* [rows, D] */
    float out[SL_SLA_MAX_BLOCK * SL_SLA_MAX_HEAD];  /* [rows, D]: the result */
    float w[SL_SLA_MAX_HEAD * SL_SLA_MAX_HEAD];
    float b[SL_SLA_MAX_HEAD];
} sl_branch_space;

/* space->out = the linear branch of head n for `rows` rows of q, width apart. */
void sl_linear_branch_tile(sl_branch_space *space, const sl_linear_branch *branch, const float *q,
                           int64_t width, int64_t n, int64_t rows, int64_t D);

#endif
