/* scratch.h - activations of one job: a mark/release arena over device memory.
 *
 * The pipeline takes every activation from here and gives them back in
 * reverse order by releasing a mark.  The same code over a counting scratch
 * (no memory behind it) yields the exact peak beforehand: that is the plan.
 *
 *     const size_t mark = sl_scratch_mark(s);
 *     sl_tensor h;
 *     status = sl_scratch_tensor(s, &h, err, SL_F32, 2, S, D);
 *     ...
 *     sl_scratch_release(s, mark);
 *
 * Threads: one at a time.
 */
#ifndef SL_KERNELS_SCRATCH_H
#define SL_KERNELS_SCRATCH_H

#include "base/status.h"
#include "kernels/tensor.h"

#define SL_SCRATCH_ALIGN ((size_t)256)

typedef struct {
    unsigned char *base;
    size_t size_bytes; /* what may be handed out */
    size_t used_bytes;
    size_t peak_bytes; /* high-water mark of used_bytes */
} sl_scratch;

void sl_scratch_init(sl_scratch *scratch, void *base, size_t size_bytes);
/* No memory behind it, practically unlimited: for plans only.  Its addresses
 * are made up, in a range where no memory of the process lies. */
void sl_scratch_init_counting(sl_scratch *scratch);

/* Each allocation is rounded up to SL_SCRATCH_ALIGN.  SL_ERR_NO_MEMORY past
 * the end: since the plan is exact that is a bug of ours, and says so. */
sl_status sl_scratch_alloc(sl_scratch *scratch, void **out, size_t size_bytes,
                           sl_error *err) SL_MUST_CHECK;
sl_status sl_scratch_take(sl_scratch *scratch, sl_tensor *out, sl_error *err, sl_dtype dtype,
                          int rank, const int64_t *dim) SL_MUST_CHECK;
/* The same with the dimensions written out, as in sl_tensor_of. */
#define sl_scratch_tensor(scratch, out, err, dtype, rank, ...)                                     \
    sl_scratch_take((scratch), (out), (err), (dtype), (rank),                                      \
                    (const int64_t[SL_MAX_RANK]){ __VA_ARGS__ })

size_t sl_scratch_mark(const sl_scratch *scratch);
void sl_scratch_release(sl_scratch *scratch, size_t mark);

#endif
