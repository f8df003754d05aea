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

/* Descriptors that travel with the byte at `position` of the stream. */
typedef struct attachment {
    struct attachment *next;
    uint64_t position;
    int fds[SL_CHANNEL_MAX_FDS]; /* own duplicates */
    int fd_count;
} attachment;

struct sl_channel {
    int fd;
    const char *peer;

    /* The reading thread's. */
    size_t read_bytes; /* held in read[] */
    bool broken;       /* a frame broke the rules: nothing after it can be trusted */
    int held[SL_CHANNEL_MAX_HELD_FDS]; /* descriptors that came and were not taken */
    int held_count;
    unsigned char read[READ_BYTES]; /* room for one whole frame of any size */

    pthread_mutex_t lock; /* guards what follows, and the order of writes */
    unsigned char *pending;
    size_t pending_bytes, pending_start, pending_capacity;
    uint64_t written_bytes;  /* of the stream, so far */
    attachment *attachments; /* not sent yet, by position */
    int attached_count;      /* descriptors in them */
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

static void close_all(const int *fds, int fd_count)
{
    for (int i = 0; i < fd_count; i++)
        close(fds[i]);
}

static void free_attachment(attachment *a)
{
    if (a)
        close_all(a->fds, a->fd_count);
    free(a);
}

static void drop_held(sl_channel *channel)
{
    close_all(channel->held, channel->held_count);
    channel->held_count = 0;
}

void sl_channel_destroy(sl_channel *channel)
{
    if (!channel)
        return;
    close(channel->fd);
    drop_held(channel);
    while (channel->attachments) {
        attachment *next = channel->attachments->next;
        free_attachment(channel->attachments);
        channel->attachments = next;
    }
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

static void append(sl_channel *channel, const ProtobufCMessage *message, size_t size_bytes)
{
    unsigned char *at = channel->pending + channel->pending_bytes;

    at[0] = (unsigned char)(size_bytes >> 24);
    at[1] = (unsigned char)(size_bytes >> 16);
    at[2] = (unsigned char)(size_bytes >> 8);
    at[3] = (unsigned char)size_bytes;
    protobuf_c_message_pack(message, at + HEADER_BYTES);
    channel->pending_bytes += HEADER_BYTES + size_bytes;
}

/* With the next byte that is appended; takes a. */
static void attach(sl_channel *channel, attachment *a)
{
    attachment **end = &channel->attachments;

    while (*end)
        end = &(*end)->next;
    a->position = channel->written_bytes + channel->pending_bytes;
    channel->attached_count += a->fd_count;
    *end = a;
}

/* a: NULL, or what travels along; taken on success. */
static sl_status push(sl_channel *channel, const ProtobufCMessage *message, attachment *a,
                      sl_error *err)
{
    const size_t size_bytes = protobuf_c_message_get_packed_size(message);

    if (size_bytes == 0 || size_bytes > SL_CHANNEL_MAX_MESSAGE)
        return sl_fail(
            err, SL_ERR_TOO_LARGE, "a %s of %zu bytes to the %s: a message has 1 to %zu bytes",
            message->descriptor->short_name, size_bytes, channel->peer, SL_CHANNEL_MAX_MESSAGE);

    pthread_mutex_lock(&channel->lock);
    sl_status status = make_room(channel, HEADER_BYTES + size_bytes, err);
    if (status == SL_OK && a && channel->attached_count + a->fd_count > SL_CHANNEL_MAX_HELD_FDS)
        status = sl_fail(err, SL_ERR_BUSY, "the %s does not read: %d descriptors wait for it",
                         channel->peer, channel->attached_count);
    if (status == SL_OK) {
        if (a)
            attach(channel, a);
        append(channel, message, size_bytes);
    }
    pthread_mutex_unlock(&channel->lock);
    return status;
}

sl_status sl_channel_push(sl_channel *channel, const ProtobufCMessage *message, sl_error *err)
{
    return push(channel, message, NULL, err);
}

sl_status sl_channel_push_fds(sl_channel *channel, const ProtobufCMessage *message, const int *fds,
                              int fd_count, sl_error *err)
{
    if (fd_count < 1 || fd_count > SL_CHANNEL_MAX_FDS)
        return sl_fail(
            err, SL_ERR_TOO_LARGE, "a %s with %d descriptors to the %s: expected 1 to %d",
            message->descriptor->short_name, fd_count, channel->peer, (int)SL_CHANNEL_MAX_FDS);
    attachment *a = calloc(1, sizeof *a);
    if (!a)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for descriptors to the %s",
                       channel->peer);
    sl_status status = SL_OK;
    for (int i = 0; i < fd_count && status == SL_OK; i++) {
        a->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (a->fds[i] < 0)
            status = sl_fail_errno(err, "could not duplicate descriptor %d for the %s", fds[i],
                                   channel->peer);
        else
            a->fd_count++;
    }
    if (status == SL_OK)
        status = push(channel, message, a, err);
    if (status != SL_OK)
        free_attachment(a);
    return status;
}

/* One write, up to the next byte with descriptors; under the lock. */
static ssize_t write_some(sl_channel *channel)
{
    union { /* aligned */
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * SL_CHANNEL_MAX_FDS)];
    } control = { .bytes = { 0 } };
    struct iovec piece = { .iov_base = channel->pending + channel->pending_start,
                           .iov_len = channel->pending_bytes };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };
    attachment *a = channel->attachments;
    const bool with_fds = a && a->position == channel->written_bytes;
    const attachment *border = with_fds ? a->next : a;

    if (border && border->position - channel->written_bytes < piece.iov_len)
        piece.iov_len = (size_t)(border->position - channel->written_bytes);
    if (with_fds) {
        const size_t fd_bytes = sizeof(int) * (size_t)a->fd_count;
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fd_bytes);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fd_bytes);
        memcpy(CMSG_DATA(header), a->fds, fd_bytes);
    }
    const ssize_t n = sendmsg(channel->fd, &message, MSG_NOSIGNAL);
    if (n > 0) {
        channel->pending_start += (size_t)n;
        channel->pending_bytes -= (size_t)n;
        channel->written_bytes += (uint64_t)n;
    }
    if (n > 0 && with_fds) {
        channel->attachments = a->next;
        channel->attached_count -= a->fd_count;
        free_attachment(a);
    }
    return n;
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
        if (write_some(channel) >= 0)
            continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
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

/* Nothing that came or comes can be trusted. */
static sl_status break_off(sl_channel *channel, sl_error *err, const char *why)
{
    channel->broken = true;
    drop_held(channel);
    return sl_fail(err, SL_ERR_DATA, "the %s sent %s", channel->peer, why);
}

/* Takes in the descriptors of one header; false: no room for all, and the rest
 * is closed. */
static bool hold(sl_channel *channel, const struct cmsghdr *header)
{
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    bool all = true;

    for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        if (channel->held_count < SL_CHANNEL_MAX_HELD_FDS) {
            channel->held[channel->held_count++] = fd;
        } else {
            close(fd);
            all = false;
        }
    }
    return all;
}

/* One read.  *with_fds: descriptors came along, and all are held; more of them
 * than there is room for, or than this process may have, is SL_ERR_DATA. */
static sl_status read_some(sl_channel *channel, ssize_t *n, bool *with_fds, sl_error *err)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * SL_CHANNEL_MAX_FDS)];
    } control;
    struct iovec piece = { .iov_base = channel->read + channel->read_bytes,
                           .iov_len = READ_BYTES - channel->read_bytes };
    struct msghdr message = { .msg_iov = &piece,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof control.bytes };
    bool all = true;

    *with_fds = false;
    *n = recvmsg(channel->fd, &message, MSG_CMSG_CLOEXEC);
    if (*n < 0)
        return SL_OK;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        *with_fds = true;
        all = hold(channel, h) && all;
    }
    if (!all || message.msg_flags & MSG_CTRUNC)
        return break_off(channel, err, "more descriptors than there is room for");
    return SL_OK;
}

sl_status sl_channel_fill(sl_channel *channel, sl_error *err)
{
    bool with_fds = false;

    /* Descriptors end it, so that those before are taken before others come. */
    while (channel->read_bytes < READ_BYTES && !with_fds) {
        ssize_t n;
        const sl_status status = read_some(channel, &n, &with_fds, err);

        if (status != SL_OK)
            return status;
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

sl_status sl_channel_take_fds(sl_channel *channel, int *fds, int fd_count, sl_error *err)
{
    if (fd_count < 0 || fd_count > channel->held_count)
        return sl_fail(err, SL_ERR_DATA, "the %s sent %d descriptors, its message needs %d",
                       channel->peer, channel->held_count, fd_count);
    memcpy(fds, channel->held, sizeof *fds * (size_t)fd_count);
    channel->held_count -= fd_count;
    memmove(channel->held, channel->held + fd_count,
            sizeof *channel->held * (size_t)channel->held_count);
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
        drop_held(channel);
        return sl_fail(err, SL_ERR_DATA,
                       "the %s sent a frame of %zu bytes: a message has 1 to %zu bytes",
                       channel->peer, size_bytes, SL_CHANNEL_MAX_MESSAGE);
    }
    const size_t frame_bytes = HEADER_BYTES + size_bytes;
    if (channel->read_bytes >= frame_bytes) {
        const sl_status status = unpack(channel, descriptor, size_bytes, arena, &message, err);
        if (status != SL_OK) {
            channel->broken = true;
            drop_held(channel);
            return status;
        }
        channel->read_bytes -= frame_bytes;
        memmove(channel->read, channel->read + frame_bytes, channel->read_bytes);
    }
    *out = message;
    return SL_OK;
}
