/* image_av.c - JPEG and WebP through libav's decoders, one thread.
 *
 * libav gives the planes; colours are converted here, because the picture can
 * then leave row by row, and because chroma is interpolated as libjpeg and
 * libwebp do it (a triangle filter, samples centred), which swscale's fast
 * paths do not.  BT.601: full range for JPEG, 16 to 235 for WebP.
 */
#include "engine/media/image_parts.h"

#include <libavcodec/avcodec.h>
#include <libavutil/pixdesc.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t quiet_once = PTHREAD_ONCE_INIT;

static void make_quiet(void)
{
    av_log_set_level(AV_LOG_QUIET);
}

static sl_status fail_av(const sl_image_walk *walk, int code, sl_error *err)
{
    const char *format = sl_image_format_name(walk->info.format);
    char why[AV_ERROR_MAX_STRING_SIZE] = "";

    if (code == AVERROR(ENOMEM))
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a %s picture of %dx%d", format,
                       walk->info.width, walk->info.height);
    av_strerror(code, why, sizeof why);
    return sl_fail(err, code == AVERROR_PATCHWELCOME ? SL_ERR_UNIMPLEMENTED : SL_ERR_DATA,
                   "could not decode the %s picture: %s", format, why);
}

/* --- the file, cut down, as a packet --- */

static sl_status make_packet(sl_image_walk *walk, AVPacket **out, sl_error *err)
{
    /* a last chunk of odd length may lack its padding byte, which is then added */
    const size_t most = walk->length + 1;
    uint8_t *buffer = av_mallocz(most + AV_INPUT_BUFFER_PADDING_SIZE);
    AVPacket *packet = av_packet_alloc();
    sl_status status = SL_OK;

    if (!buffer || !packet || most > INT32_MAX - AV_INPUT_BUFFER_PADDING_SIZE) {
        status = fail_av(walk, AVERROR(ENOMEM), err);
        goto done;
    }
    walk->kept = buffer;
    status = walk->info.format == SL_IMAGE_JPEG ? sl_image_walk_jpeg(walk, err)
                                                : sl_image_walk_webp(walk, err);
    walk->kept = NULL;
    if (status != SL_OK)
        goto done;
    if (av_packet_from_data(packet, buffer, (int)walk->kept_bytes) < 0) {
        status = fail_av(walk, AVERROR(ENOMEM), err);
        goto done;
    }
    buffer = NULL; /* the packet's */
    *out = packet;
    packet = NULL;
done:
    av_packet_free(&packet);
    av_free(buffer);
    return status;
}

static sl_status check_frame(const sl_image_walk *walk, const AVFrame *frame, sl_error *err)
{
    if (frame->width != walk->info.width || frame->height != walk->info.height)
        return sl_fail(err, SL_ERR_DATA, "the %s picture says %dx%d and decodes to %dx%d",
                       sl_image_format_name(walk->info.format), walk->info.width, walk->info.height,
                       frame->width, frame->height);
    if ((frame->flags & AV_FRAME_FLAG_CORRUPT) || frame->decode_error_flags)
        return fail_av(walk, AVERROR_INVALIDDATA, err);
    return SL_OK;
}

static sl_status decode_packet(const sl_image_walk *walk, const AVPacket *packet, AVFrame *frame,
                               sl_error *err)
{
    const enum AVCodecID id =
        walk->info.format == SL_IMAGE_JPEG ? AV_CODEC_ID_MJPEG : AV_CODEC_ID_WEBP;
    const AVCodec *codec = avcodec_find_decoder(id);
    AVCodecContext *decoder = codec ? avcodec_alloc_context3(codec) : NULL;
    int code = AVERROR(ENOMEM);

    if (!codec)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED, "libavcodec has no decoder for %s",
                       sl_image_format_name(walk->info.format));
    if (!decoder)
        return fail_av(walk, code, err);
    decoder->thread_count = 1;
    /* also checked with sides that libav has rounded up */
    decoder->max_pixels = ((int64_t)walk->info.width + 255) * ((int64_t)walk->info.height + 255);
    decoder->err_recognition = AV_EF_CRCCHECK | AV_EF_BITSTREAM | AV_EF_BUFFER | AV_EF_EXPLODE;
    decoder->idct_algo = FF_IDCT_INT; /* the one of libjpeg */
    decoder->flags |= AV_CODEC_FLAG_BITEXACT;
    code = avcodec_open2(decoder, codec, NULL);
    if (code >= 0)
        code = avcodec_send_packet(decoder, packet);
    if (code >= 0)
        code = avcodec_send_packet(decoder, NULL);
    if (code >= 0)
        code = avcodec_receive_frame(decoder, frame);
    avcodec_free_context(&decoder);
    return code < 0 ? fail_av(walk, code, err) : check_frame(walk, frame, err);
}

/* --- frames to rows --- */

/* One plane of chroma, stretched to a row of the picture. */
static void chroma_row(const AVFrame *frame, int plane, int shift_x, int shift_y, int y,
                       uint8_t *out)
{
    /* a sample's position in units of 1 / (2 << shift) samples */
    const int unit_x = 2 << shift_x, unit_y = 2 << shift_y;
    const int last_x = (frame->width - 1) >> shift_x, last_y = (frame->height - 1) >> shift_y;
    const int at_y = 2 * y + 1 - (1 << shift_y) + unit_y;
    const int top = at_y / unit_y - 1, part_y = at_y % unit_y;
    const uint8_t *rows[2];

    for (int i = 0; i < 2; i++) {
        const int row = top + i < 0 ? 0 : top + i > last_y ? last_y : top + i;
        rows[i] = frame->data[plane] + (ptrdiff_t)row * frame->linesize[plane];
    }
    for (int x = 0; x < frame->width; x++) {
        const int at_x = 2 * x + 1 - (1 << shift_x) + unit_x;
        const int part_x = at_x % unit_x;
        const int left = at_x / unit_x - 1 < 0 ? 0 : at_x / unit_x - 1;
        const int right = at_x / unit_x > last_x ? last_x : at_x / unit_x;
        const int a = rows[0][left] * (unit_y - part_y) + rows[1][left] * part_y;
        const int b = rows[0][right] * (unit_y - part_y) + rows[1][right] * part_y;
        out[x] = (uint8_t)((a * (unit_x - part_x) + b * part_x + unit_x * unit_y / 2) /
                           (unit_x * unit_y));
    }
}

static uint8_t clamp_u8(int x)
{
    return (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
}

/* Coefficients in 1/65536: ITU-R BT.601, R = s*(Y-o) + rv*(V-128) and so on. */
typedef struct {
    int offset, scale, rv, gu, gv, bu;
} yuv_matrix;

static void yuv_to_rgb(const yuv_matrix *m, const uint8_t *Y, const uint8_t *U, const uint8_t *V,
                       int width, uint8_t *rgb)
{
    for (int x = 0; x < width; x++, rgb += 3) {
        const int y = m->scale * (Y[x] - m->offset) + 32768;
        const int u = U[x] - 128, v = V[x] - 128;

        rgb[0] = clamp_u8((y + m->rv * v) >> 16);
        rgb[1] = clamp_u8((y - m->gu * u - m->gv * v) >> 16);
        rgb[2] = clamp_u8((y + m->bu * u) >> 16);
    }
}

static void emit_yuv(const AVFrame *frame, const AVPixFmtDescriptor *layout, bool full_range,
                     uint8_t *chroma[2], uint8_t *rgb, const sl_image_sink *sink)
{
    static const yuv_matrix full = { 0, 65536, 91881, 22554, 46802, 116130 };
    static const yuv_matrix video = { 16, 76309, 104597, 25675, 53279, 132201 };

    for (int y = 0; y < frame->height; y++) {
        for (int i = 0; i < 2; i++)
            chroma_row(frame, 1 + i, layout->log2_chroma_w, layout->log2_chroma_h, y, chroma[i]);
        yuv_to_rgb(full_range ? &full : &video, frame->data[0] + (ptrdiff_t)y * frame->linesize[0],
                   chroma[0], chroma[1], frame->width, rgb);
        sink->row(sink->self, rgb);
    }
}

/* 8-bit samples that are RGB or gray already: where they lie says libav. */
static void emit_samples(const AVFrame *frame, const AVPixFmtDescriptor *layout, uint8_t *rgb,
                         const sl_image_sink *sink)
{
    for (int y = 0; y < frame->height; y++) {
        for (int c = 0; c < 3; c++) {
            const AVComponentDescriptor *from = &layout->comp[layout->nb_components < 3 ? 0 : c];
            const uint8_t *at = frame->data[from->plane] +
                                (ptrdiff_t)y * frame->linesize[from->plane] + from->offset;
            for (int x = 0; x < frame->width; x++, at += from->step)
                rgb[3 * (size_t)x + (size_t)c] = *at;
        }
        sink->row(sink->self, rgb);
    }
}

static sl_status emit(const sl_image_walk *walk, const AVFrame *frame, const sl_image_sink *sink,
                      sl_error *err)
{
    const AVPixFmtDescriptor *layout = av_pix_fmt_desc_get(frame->format);
    const uint64_t not_read = AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_BITSTREAM |
                              AV_PIX_FMT_FLAG_HWACCEL | AV_PIX_FMT_FLAG_BAYER;
    const size_t width = (size_t)frame->width;
    uint8_t *rows; /* RGB, and two of chroma */

    if (!layout || (layout->flags & not_read) || layout->comp[0].depth != 8)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED, "%s picture with pixels of kind \"%s\"",
                       sl_image_format_name(walk->info.format), layout ? layout->name : "?");
    rows = malloc(5 * width);
    if (!rows)
        return fail_av(walk, AVERROR(ENOMEM), err);
    if (layout->nb_components < 3 || (layout->flags & AV_PIX_FMT_FLAG_RGB))
        emit_samples(frame, layout, rows, sink);
    else
        emit_yuv(frame, layout, walk->info.format == SL_IMAGE_JPEG,
                 (uint8_t *[]){ rows + 3 * width, rows + 4 * width }, rows, sink);
    free(rows);
    return SL_OK;
}

sl_status sl_image_read_av(sl_image_walk *walk, const sl_image_sink *sink, sl_error *err)
{
    AVPacket *packet = NULL;
    AVFrame *frame = NULL;
    sl_status status;

    pthread_once(&quiet_once, make_quiet);
    status = make_packet(walk, &packet, err);
    if (status != SL_OK)
        goto done;
    frame = av_frame_alloc();
    if (!frame) {
        status = fail_av(walk, AVERROR(ENOMEM), err);
        goto done;
    }
    status = decode_packet(walk, packet, frame, err);
    if (status != SL_OK)
        goto done;
    av_packet_free(&packet); /* rows may need the memory */
    status = emit(walk, frame, sink, err);
done:
    av_frame_free(&frame);
    av_packet_free(&packet);
    return status;
}
