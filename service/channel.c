#include "service/channel.h"

#include "base/clock.h"
#include "service/pb_alloc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER_BYTES = 4, READ_BYTES = HEADER_BYTES + (64 << 10) };

struct sl_channel {
    int fd;
    const char *peer;

    /* The reading thread's. */
    size_t read_bytes;              /* held in read[] */
    bool broken;                    /* a frame broke the rules: nothing after it can be trusted */
    unsigned char read[READ_BYTES]; /* room for one whole frame of any size */

    pthread_mutex_t lock; /* guards what follows, and the order of writes */
    unsigned char *pending;
    size_t pending_bytes, pending_start, pending_capacity;
};

static sl_status make_nonblocking(int fd, const char *peer, sl_error *err)
{
    const int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return sl_fail_errno(err, "could not set up descriptor %d to the %s", fd, peer);
    return SL_OK;
}

sl_status sl_channel_create(sl_channel **out, int fd, const char *peer, sl_error *err)
{
    const sl_status status = make_nonblocking(fd, peer, err);

    if (status != SL_OK)
        return status;
    sl_channel *channel = calloc(1, sizeof *channel);
    if (!channel)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the channel to the %s", peer);
    channel->fd = fd;
    channel->peer = peer;
    pthread_mutex_init(&channel->lock, NULL);
    *out = channel;
    return SL_OK;
}

void sl_channel_destroy(sl_channel *channel)
{
    if (!channel)
        return;
    close(channel->fd);
    pthread_mutex_destroy(&channel->lock);
    free(channel->pending);
    free(channel);
}

int sl_channel_fd(const sl_channel *channel)
{
    return channel->fd;
}

/* ---- writing ---- */

/* Room for `more` bytes behind what waits. */
static sl_status make_room(sl_channel *channel, size_t more, sl_error *err)
{
    const size_t need = channel->pending_bytes + more;

    if (need > SL_CHANNEL_MAX_PENDING)
        return sl_fail(err, SL_ERR_BUSY, "the %s does not read: %zu bytes wait for it",
                       channel->peer, channel->pending_bytes);
    if (channel->pending_start > 0) {
        memmove(channel->pending, channel->pending + channel->pending_start,
                channel->pending_bytes);
        channel->pending_start = 0;
    }
    if (need <= channel->pending_capacity)
        return SL_OK;

    size_t capacity = channel->pending_capacity ? channel->pending_capacity : 4096;
    while (capacity < need)
        capacity *= 2;
    unsigned char *grown = realloc(channel->pending, capacity);
    if (!grown)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for %zu bytes to the %s", capacity,
                       channel->peer);
    channel->pending = grown;
    channel->pending_capacity = capacity;
    return SL_OK;
}

sl_status sl_channel_push(sl_channel *channel, const ProtobufCMessage *message, sl_error *err)
{
    const size_t size_bytes = protobuf_c_message_get_packed_size(message);

    if (size_bytes == 0 || size_bytes > SL_CHANNEL_MAX_MESSAGE)
        return sl_fail(
            err, SL_ERR_TOO_LARGE, "a %s of %zu bytes to the %s: a message has 1 to %zu bytes",
            message->descriptor->short_name, size_bytes, channel->peer, SL_CHANNEL_MAX_MESSAGE);

    pthread_mutex_lock(&channel->lock);
    const sl_status status = make_room(channel, HEADER_BYTES + size_bytes, err);
    if (status == SL_OK) {
        unsigned char *at = channel->pending + channel->pending_bytes;
        at[0] = (unsigned char)(size_bytes >> 24);
        at[1] = (unsigned char)(size_bytes >> 16);
        at[2] = (unsigned char)(size_bytes >> 8);
        at[3] = (unsigned char)size_bytes;
        protobuf_c_message_pack(message, at + HEADER_BYTES);
        channel->pending_bytes += HEADER_BYTES + size_bytes;
    }
    pthread_mutex_unlock(&channel->lock);
    return status;
}

static sl_status wait_writable(sl_channel *channel, int64_t deadline_ns, sl_error *err)
{
    const int64_t left_ns = deadline_ns - sl_clock_now_ns();

    if (left_ns <= 0)
        return sl_fail(err, SL_ERR_TIMEOUT, "the %s does not read: %zu bytes wait for it",
                       channel->peer, channel->pending_bytes);
    struct pollfd poll_fd = { .fd = channel->fd, .events = POLLOUT };
    const int64_t wait_ms = left_ns / SL_NS_PER_MS + 1;
    if (poll(&poll_fd, 1, wait_ms > 1000 ? 1000 : (int)wait_ms) < 0 && errno != EINTR)
        return sl_fail_errno(err, "could not wait for the %s", channel->peer);
    return SL_OK;
}

sl_status sl_channel_flush(sl_channel *channel, int64_t wait_ns, sl_error *err)
{
    const int64_t deadline_ns = sl_clock_deadline_ns(wait_ns);
    sl_status status = SL_OK;

    pthread_mutex_lock(&channel->lock);
    while (channel->pending_bytes > 0 && status == SL_OK) {
        const ssize_t n = send(channel->fd, channel->pending + channel->pending_start,
                               channel->pending_bytes, MSG_NOSIGNAL);
        if (n >= 0) {
            channel->pending_start += (size_t)n;
            channel->pending_bytes -= (size_t)n;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (wait_ns <= 0)
                break;
            status = wait_writable(channel, deadline_ns, err);
        } else if (errno == EPIPE || errno == ECONNRESET) {
            status =
                sl_fail(err, SL_ERR_UNAVAILABLE, "the %s has closed the channel", channel->peer);
        } else if (errno != EINTR) {
            status = sl_fail_errno(err, "could not write to the %s", channel->peer);
        }
    }
    if (channel->pending_bytes == 0)
        channel->pending_start = 0;
    pthread_mutex_unlock(&channel->lock);
    return status;
}

bool sl_channel_has_pending(const sl_channel *channel)
{
    sl_channel *own = (sl_channel *)channel; /* for the lock only */

    pthread_mutex_lock(&own->lock);
    const bool pending = own->pending_bytes > 0;
    pthread_mutex_unlock(&own->lock);
    return pending;
}

/* ---- reading ---- */

sl_status sl_channel_fill(sl_channel *channel, sl_error *err)
{
    while (channel->read_bytes < READ_BYTES) {
        const ssize_t n = recv(channel->fd, channel->read + channel->read_bytes,
                               READ_BYTES - channel->read_bytes, 0);
        if (n > 0)
            channel->read_bytes += (size_t)n;
        else if (n == 0 || errno == ECONNRESET)
            return sl_fail(err, SL_ERR_UNAVAILABLE, "the %s has closed the channel", channel->peer);
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return SL_OK;
        else if (errno != EINTR)
            return sl_fail_errno(err, "could not read from the %s", channel->peer);
    }
    return SL_OK;
}

static size_t frame_length(const unsigned char *at)
{
    return (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | at[3];
}

static sl_status unpack(sl_channel *channel, const ProtobufCMessageDescriptor *descriptor,
                        size_t size_bytes, sl_arena *arena, ProtobufCMessage **out, sl_error *err)
{
    ProtobufCAllocator allocator = sl_pb_allocator(arena);
    ProtobufCMessage *message =
        protobuf_c_message_unpack(descriptor, &allocator, size_bytes, channel->read + HEADER_BYTES);

    if (!message)
        return sl_fail(err, SL_ERR_DATA, "the %s sent %zu bytes that are no %s", channel->peer,
                       size_bytes, descriptor->short_name);
    *out = message;
    return SL_OK;
}

sl_status sl_channel_pop(sl_channel *channel, const ProtobufCMessageDescriptor *descriptor,
                         sl_arena *arena, ProtobufCMessage **out, sl_error *err)
{
    ProtobufCMessage *message = NULL;

    if (channel->broken)
        return sl_fail(err, SL_ERR_DATA, "the channel to the %s is broken", channel->peer);
    if (channel->read_bytes < HEADER_BYTES) {
        *out = NULL;
        return SL_OK;
    }
    const size_t size_bytes = frame_length(channel->read);
    if (size_bytes == 0 || size_bytes > SL_CHANNEL_MAX_MESSAGE) {
        channel->broken = true;
        return sl_fail(err, SL_ERR_DATA,
                       "the %s sent a frame of %zu bytes: a message has 1 to %zu bytes",
                       channel->peer, size_bytes, SL_CHANNEL_MAX_MESSAGE);
    }
    const size_t frame_bytes = HEADER_BYTES + size_bytes;
    if (channel->read_bytes >= frame_bytes) {
        const sl_status status = unpack(channel, descriptor, size_bytes, arena, &message, err);
        if (status != SL_OK) {
            channel->broken = true;
            return status;
        }
        channel->read_bytes -= frame_bytes;
        memmove(channel->read, channel->read + frame_bytes, channel->read_bytes);
    }
    *out = message;
    return SL_OK;
}
