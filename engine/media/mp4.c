/* mp4.c - H.264 in mp4 through libav and libx264.
 *
 * CRF 25 is what the reference's writer asks for (wan.md 9.4).  Frames are
 * converted with BT.601 and say so in the stream: players otherwise guess by
 * the frame's size.  All sources of variation are off (dates, versions, SIMD
 * differences of the scaler and of the encoder), so equal frames and an equal
 * number of threads give equal bytes.
 *
 * cpu-independent: x264 spreads costs over macroblocks (mbtree) in plain C
 * instead of SIMD.  Its AVX-512 version (build 164) takes in memory nobody has
 * written, so that the file depended on what the process had done before; that
 * of AVX2 rounds differently from C.
 */
#include "engine/media/writer.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The scaler reads in whole vectors, past the end of the last row. */
enum { READ_AHEAD = 64 };

typedef struct {
    const sl_media_params *params;
    AVFormatContext *container;
    AVCodecContext *encoder;
    AVStream *stream; /* of container */
    struct SwsContext *scaler;
    uint8_t *rgb;   /* a frame and READ_AHEAD bytes */
    AVFrame *frame; /* yuv420p */
    AVPacket *packet;
    int64_t frame_count;
} mp4;

static pthread_once_t quiet_once = PTHREAD_ONCE_INIT;

/* libav and x264 write to stderr by default; what matters comes as a code. */
static void make_quiet(void)
{
    av_log_set_level(AV_LOG_QUIET);
}

static sl_status fail_av(const mp4 *self, const char *what, int code, sl_error *err)
{
    char why[AV_ERROR_MAX_STRING_SIZE] = "";
    const char *path = self->params->path;

    if (code == AVERROR(ENOMEM))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory: %s \"%s\"", what, path);
    if (code == AVERROR(EINVAL) || code == AVERROR_EXTERNAL || code == AVERROR_UNKNOWN) {
        av_strerror(code, why, sizeof why);
        return sl_fail(err, SL_ERR_INTERNAL, "could not %s \"%s\": %s", what, path, why);
    }
    if (code > -4096) { /* an errno */
        errno = AVUNERROR(code);
        return sl_fail_errno(err, "could not %s \"%s\"", what, path);
    }
    av_strerror(code, why, sizeof why);
    return sl_fail(err, SL_ERR_INTERNAL, "could not %s \"%s\": %s", what, path, why);
}

static sl_status open_encoder(mp4 *self, sl_error *err)
{
    const sl_media_params *params = self->params;
    const AVCodec *codec = avcodec_find_encoder_by_name("libx264");

    if (!codec)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                       "could not create \"%s\": libavcodec is without libx264; y4m and png work",
                       params->path);
    self->encoder = avcodec_alloc_context3(codec);
    if (!self->encoder)
        return fail_av(self, "set up the encoder of", AVERROR(ENOMEM), err);
    AVCodecContext *c = self->encoder;
    c->width = params->width;
    c->height = params->height;
    c->time_base = (AVRational){ 1, params->fps };
    c->framerate = (AVRational){ params->fps, 1 };
    c->pix_fmt = AV_PIX_FMT_YUV420P;
    c->colorspace = AVCOL_SPC_SMPTE170M;
    c->color_range = AVCOL_RANGE_MPEG;
    c->thread_count = params->threads;
    c->flags |= AV_CODEC_FLAG_BITEXACT | AV_CODEC_FLAG_GLOBAL_HEADER;
    int code = av_opt_set(c->priv_data, "preset", "medium", 0);
    if (code >= 0)
        code = av_opt_set_double(c->priv_data, "crf", 25.0, 0);
    if (code >= 0)
        code = av_opt_set(c->priv_data, "x264-params", "cpu-independent=1", 0);
    if (code >= 0)
        code = avcodec_open2(c, codec, NULL);
    return code < 0 ? fail_av(self, "set up the encoder of", code, err) : SL_OK;
}

static size_t frame_bytes(const mp4 *self)
{
    return (size_t)self->params->width * (size_t)self->params->height * 3;
}

static sl_status open_scaler(mp4 *self, sl_error *err)
{
    const int width = self->params->width;
    const int height = self->params->height;
    const int *bt601 = sws_getCoefficients(SWS_CS_SMPTE170M);

    self->scaler =
        sws_getContext(width, height, AV_PIX_FMT_RGB24, width, height, AV_PIX_FMT_YUV420P,
                       SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT, NULL, NULL, NULL);
    self->rgb = calloc(1, frame_bytes(self) + READ_AHEAD);
    self->frame = av_frame_alloc();
    self->packet = av_packet_alloc();
    if (!self->scaler || !self->rgb || !self->frame || !self->packet)
        return fail_av(self, "set up the frames of", AVERROR(ENOMEM), err);
    sws_setColorspaceDetails(self->scaler, bt601, 1, bt601, 0, 0, 1 << 16, 1 << 16);
    self->frame->format = AV_PIX_FMT_YUV420P;
    self->frame->width = width;
    self->frame->height = height;
    self->frame->colorspace = AVCOL_SPC_SMPTE170M;
    self->frame->color_range = AVCOL_RANGE_MPEG;
    const int code = av_frame_get_buffer(self->frame, 0);
    return code < 0 ? fail_av(self, "set up the frames of", code, err) : SL_OK;
}

static sl_status open_container(mp4 *self, sl_error *err)
{
    const char *path = self->params->path;
    const size_t url_bytes = strlen(path) + sizeof "file:";
    char *url = malloc(url_bytes); /* the prefix: a path may contain a colon */
    AVDictionary *options = NULL;
    int code = AVERROR(ENOMEM);

    if (!url)
        goto done;
    snprintf(url, url_bytes, "file:%s", path);
    code = avformat_alloc_output_context2(&self->container, NULL, "mp4", url);
    if (code < 0)
        goto done;
    self->container->flags |= AVFMT_FLAG_BITEXACT;
    self->stream = avformat_new_stream(self->container, NULL);
    if (!self->stream) {
        code = AVERROR(ENOMEM);
        goto done;
    }
    self->stream->time_base = self->encoder->time_base;
    self->stream->avg_frame_rate = self->encoder->framerate;
    code = avcodec_parameters_from_context(self->stream->codecpar, self->encoder);
    if (code >= 0)
        code = avio_open(&self->container->pb, url, AVIO_FLAG_WRITE);
    if (code >= 0)
        code = av_dict_set(&options, "movflags", "+faststart", 0);
    if (code >= 0)
        code = avformat_write_header(self->container, &options);
done:
    av_dict_free(&options);
    free(url);
    return code < 0 ? fail_av(self, "create", code, err) : SL_OK;
}

static void mp4_close(void *ptr)
{
    mp4 *self = ptr;

    if (!self)
        return;
    if (self->container) {
        avio_closep(&self->container->pb);
        avformat_free_context(self->container);
    }
    av_packet_free(&self->packet);
    av_frame_free(&self->frame);
    free(self->rgb);
    sws_freeContext(self->scaler);
    avcodec_free_context(&self->encoder);
    free(self);
}

static sl_status mp4_open(void **out, const sl_media_params *params, sl_error *err)
{
    mp4 *self = calloc(1, sizeof *self);

    if (!self)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", params->path);
    pthread_once(&quiet_once, make_quiet);
    self->params = params;
    sl_status status = open_encoder(self, err);
    if (status == SL_OK)
        status = open_scaler(self, err);
    if (status == SL_OK)
        status = open_container(self, err);
    if (status == SL_OK) {
        *out = self;
        self = NULL;
    }
    mp4_close(self);
    return status;
}

/* Moves packets from the encoder to the file; frame NULL: the last ones. */
static sl_status encode(mp4 *self, const AVFrame *frame, sl_error *err)
{
    int code = avcodec_send_frame(self->encoder, frame);

    while (code >= 0) {
        code = avcodec_receive_packet(self->encoder, self->packet);
        if (code == AVERROR(EAGAIN) || code == AVERROR_EOF)
            return SL_OK;
        if (code < 0)
            break;
        self->packet->stream_index = self->stream->index;
        self->packet->duration = 1;
        av_packet_rescale_ts(self->packet, self->encoder->time_base, self->stream->time_base);
        code = av_interleaved_write_frame(self->container, self->packet);
        if (code < 0)
            return fail_av(self, "write", code, err);
    }
    return fail_av(self, "encode", code, err);
}

static sl_status mp4_write_frame(void *ptr, const uint8_t *rgb, sl_error *err)
{
    mp4 *self = ptr;
    const uint8_t *const source[4] = { self->rgb };
    const int stride[4] = { self->params->width * 3 };
    const int code = av_frame_make_writable(self->frame);

    if (code < 0)
        return fail_av(self, "encode", code, err);
    memcpy(self->rgb, rgb, frame_bytes(self));
    sws_scale(self->scaler, source, stride, 0, self->params->height, self->frame->data,
              self->frame->linesize);
    self->frame->pts = self->frame_count++;
    return encode(self, self->frame, err);
}

static sl_status sync_file(const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return sl_fail_errno(err, "could not sync \"%s\"", path);
    if (fsync(fd) != 0 && errno != EINVAL) /* EINVAL: not on a disk */
        status = sl_fail_errno(err, "could not sync \"%s\"", path);
    close(fd);
    return status;
}

/* Writing the trailer moves the index to the front: the file is written once
 * more in place. */
static sl_status mp4_finish(void *ptr, sl_error *err)
{
    mp4 *self = ptr;
    const sl_status status = encode(self, NULL, err);

    if (status != SL_OK)
        return status;
    int code = av_write_trailer(self->container);
    if (code >= 0 && self->container->pb)
        code = self->container->pb->error;
    const int close_code = avio_closep(&self->container->pb);
    if (code >= 0)
        code = close_code;
    if (code < 0)
        return fail_av(self, "write", code, err);
    return sync_file(self->params->path, err);
}

const sl_media_ops sl_media_mp4_ops = { mp4_open, mp4_write_frame, mp4_finish, mp4_close };
