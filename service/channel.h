/* channel.h - protobuf messages over the socketpair of daemon and worker.
 *
 * A frame is a 4-byte big-endian length, 1 to 64 KiB, and so many bytes of one
 * packed message.  The descriptor never blocks: partial reads and writes are
 * kept in buffers.  A frame that breaks the rules ends the channel: every later
 * pop says SL_ERR_DATA.
 *
 * Descriptors may travel with a message (SCM_RIGHTS).  They arrive before its
 * last byte and in order, so the receiver keeps them in one queue and whoever
 * pops a message that has some takes them from there.  More than the limits, or
 * fewer than were sent, breaks the channel, which closes all that it holds.
 *
 * Ownership: create takes the descriptor on success; destroy closes it, and all
 *            descriptors that were not sent or not taken.
 * Threads:   fill, pop and take_fds from one thread; push and flush from any.
 */
#ifndef SL_SERVICE_CHANNEL_H
#define SL_SERVICE_CHANNEL_H

#include "base/arena.h"
#include "base/status.h"

#include <protobuf-c/protobuf-c.h>

#include <stdbool.h>
#include <stdint.h>

#define SL_CHANNEL_MAX_MESSAGE ((size_t)64 << 10)
/* What an unpacked message may take, its own bytes included. */
#define SL_CHANNEL_MAX_UNPACKED ((size_t)1 << 20)
/* What may wait to be written. */
#define SL_CHANNEL_MAX_PENDING ((size_t)1 << 20)

/* Descriptors with one message, and those that may wait on either side. */
enum { SL_CHANNEL_MAX_FDS = 64, SL_CHANNEL_MAX_HELD_FDS = 256 };

typedef struct sl_channel sl_channel;

/* fd: a connected stream socket; made non-blocking and close-on-exec.
 * peer: "worker", "daemon"; appears in messages, borrowed. */
sl_status sl_channel_create(sl_channel **out, int fd, const char *peer,
                            sl_error *err) SL_MUST_CHECK;
void sl_channel_destroy(sl_channel *channel); /* NULL is fine */
int sl_channel_fd(const sl_channel *channel);

/* Appends a message to what waits to be written; writes nothing.
 * SL_ERR_TOO_LARGE: above SL_CHANNEL_MAX_MESSAGE.  SL_ERR_BUSY: too much waits. */
sl_status sl_channel_push(sl_channel *channel, const ProtobufCMessage *message,
                          sl_error *err) SL_MUST_CHECK;
/* The same with descriptors, at least one; the caller keeps its own.
 * SL_ERR_TOO_LARGE: more than SL_CHANNEL_MAX_FDS. */
sl_status sl_channel_push_fds(sl_channel *channel, const ProtobufCMessage *message, const int *fds,
                              int fd_count, sl_error *err) SL_MUST_CHECK;
/* Writes what waits, for at most wait_ns (0: as far as possible now).
 * SL_ERR_UNAVAILABLE: the peer is gone.  SL_ERR_TIMEOUT: only with wait_ns > 0. */
sl_status sl_channel_flush(sl_channel *channel, int64_t wait_ns, sl_error *err) SL_MUST_CHECK;
bool sl_channel_has_pending(const sl_channel *channel);

/* Reads what has arrived, as far as there is room, and up to where descriptors
 * came.  SL_ERR_UNAVAILABLE: the peer has closed; frames that came before are
 * still there to pop. */
sl_status sl_channel_fill(sl_channel *channel, sl_error *err) SL_MUST_CHECK;
/* The next whole message, in memory of `arena`; *out is NULL when there is
 * none yet.  SL_ERR_DATA: a bad length, or bytes that are no such message or
 * would unpack to more than the arena has. */
sl_status sl_channel_pop(sl_channel *channel, const ProtobufCMessageDescriptor *descriptor,
                         sl_arena *arena, ProtobufCMessage **out, sl_error *err) SL_MUST_CHECK;
/* The next fd_count descriptors that have come, of the message popped last; they
 * are the caller's then, close-on-exec.  SL_ERR_DATA: there are fewer, and none
 * is taken. */
sl_status sl_channel_take_fds(sl_channel *channel, int *fds, int fd_count,
                              sl_error *err) SL_MUST_CHECK;

#endif
