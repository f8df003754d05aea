/* stream.h - the blocks of a streamed network, two at a time on the device.
 *
 * The blocks of a streamed component stay in its host image.  Two slots of
 * device memory hold the block that is computed with and the one that comes
 * next, which a thread of the stream copies meanwhile; behind the last block
 * comes the first again, so that the next walk finds it there.
 *
 *     sl_block_pass pass = { 0 };
 *     sl_block_pass_begin(&pass, weights->stream, exec, err)
 *     for each block i:
 *         sl_block_pass_get(&pass, i, err)      weights->blocks[i] may be read
 *         ...                                   until the next get or the end
 *     sl_block_pass_end(&pass)                  also after a failure
 *
 * Networks walk like this in either mode; without a stream, and on a counting
 * exec, nothing happens.  get points the tensors of weights->blocks[i] to the
 * slot, and lets the block before be overwritten: it waits until the ops that the
 * exec has queued are done.  On a card the copies have a queue of their own, so that
 * the next block comes while this one is computed with.
 *
 * Slot states, with the function that makes each move (wanted and held are
 * block numbers):
 *
 *     held == wanted          ready           get sets wanted
 *     held != wanted          due             the thread begins: held = none
 *     held none, copying      under way       the thread ends: held = wanted; or
 *                                             wanted has changed: due again
 *
 * Ownership: the component creates and destroys; the image outlives it.
 * Threads:   passes of several execs may be asked for at once: they take turns.
 */
#ifndef SL_ENGINE_MODEL_STREAM_H
#define SL_ENGINE_MODEL_STREAM_H

#include "engine/model/weights.h"
#include "kernels/exec.h"

typedef struct {
    sl_weight_stream *stream; /* NULL: nothing to do */
    sl_exec *exec;
} sl_block_pass;

/* Waits until no other exec walks.  stream may be NULL.  exec's cancel word
 * ends any wait with SL_ERR_CANCELLED. */
sl_status sl_block_pass_begin(sl_block_pass *pass, sl_weight_stream *stream, sl_exec *exec,
                              sl_error *err) SL_MUST_CHECK;
/* Any order is right; the order of the blocks is fast. */
sl_status sl_block_pass_get(sl_block_pass *pass, int64_t i, sl_error *err) SL_MUST_CHECK;
void sl_block_pass_end(sl_block_pass *pass); /* waits as get does; a zeroed pass is fine */

/* For the component only. */

struct sl_component_layout; /* component_layout.h; copied */

/* image: the component's; d_slots: room for two slots on the device. */
sl_status sl_weight_stream_create(sl_weight_stream **out, sl_device *device,
                                  const struct sl_component_layout *layout, const void *image,
                                  void *d_slots, sl_error *err) SL_MUST_CHECK;
/* Each tensor of each block once, in order, with its offset in the image: the
 * stream sets its data from now on. */
void sl_weight_stream_add(sl_weight_stream *stream, int64_t block, sl_tensor *tensor,
                          size_t image_offset);
/* Starts the thread, which begins with block 0. */
sl_status sl_weight_stream_start(sl_weight_stream *stream, sl_error *err) SL_MUST_CHECK;
/* Joins the thread; no pass may be open.  NULL is fine. */
void sl_weight_stream_destroy(sl_weight_stream *stream);

#endif
