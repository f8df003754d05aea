#include "engine/media/media_test.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswscale/swscale.h>

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { W = 128, H = 96, FRAMES = 17, FPS = 16 };

/* A decoder of the test's own. */
typedef struct {
    AVFormatContext *container;
    AVCodecContext *codec;
    struct SwsContext *scaler;
    AVFrame *frame;
    AVPacket *packet;
} decoder;

static void decoder_open(decoder *d, const char *path)
{
    *d = (decoder){ 0 };
    SL_CHECK(avformat_open_input(&d->container, path, NULL, NULL) == 0);
    SL_CHECK(avformat_find_stream_info(d->container, NULL) >= 0);
    SL_CHECK(d->container->nb_streams == 1);
    const AVCodecParameters *params = d->container->streams[0]->codecpar;
    SL_CHECK(params->codec_id == AV_CODEC_ID_H264);
    SL_CHECK(params->width == W && params->height == H);
    SL_CHECK(params->format == AV_PIX_FMT_YUV420P);
    SL_CHECK(params->color_space == AVCOL_SPC_SMPTE170M);
    d->codec = avcodec_alloc_context3(avcodec_find_decoder(AV_CODEC_ID_H264));
    SL_CHECK(d->codec && avcodec_parameters_to_context(d->codec, params) >= 0);
    SL_CHECK(avcodec_open2(d->codec, NULL, NULL) == 0);
    d->scaler =
        sws_getContext(W, H, AV_PIX_FMT_YUV420P, W, H, AV_PIX_FMT_RGB24,
                       SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, NULL, NULL, NULL);
    d->frame = av_frame_alloc();
    d->packet = av_packet_alloc();
    SL_CHECK(d->scaler && d->frame && d->packet);
}

static void decoder_close(decoder *d)
{
    av_packet_free(&d->packet);
    av_frame_free(&d->frame);
    sws_freeContext(d->scaler);
    avcodec_free_context(&d->codec);
    avformat_close_input(&d->container);
}

/* False at the end. */
static bool decoder_next(decoder *d, uint8_t *rgb)
{
    uint8_t *const out[4] = { rgb };
    const int stride[4] = { W * 3 };

    for (;;) {
        const int code = avcodec_receive_frame(d->codec, d->frame);
        if (code == AVERROR_EOF)
            return false;
        if (code == 0)
            break;
        SL_CHECK(code == AVERROR(EAGAIN));
        const bool more = av_read_frame(d->container, d->packet) >= 0;
        SL_CHECK(avcodec_send_packet(d->codec, more ? d->packet : NULL) == 0);
        av_packet_unref(d->packet);
    }
    sws_scale(d->scaler, (const uint8_t *const *)d->frame->data, d->frame->linesize, 0, H, out,
              stride);
    return true;
}

SL_TEST(decodes_to_what_was_written)
{
    static uint8_t want[H * W * 3], got[H * W * 3];
    const char *path = test_path("decode.mp4");
    decoder d;
    int count = 0;

    SL_CHECK_OK(test_write(path, SL_MEDIA_MP4, W, H, FPS, 2, FRAMES, err));
    decoder_open(&d, path);
    while (decoder_next(&d, got)) {
        test_frame(want, W, H, count);
        const double psnr = test_psnr(got, want, sizeof want);
        if (!(psnr > 35.0)) /* measured 42; with a wrong range or matrix 29 */
            fail_msg("frame %d: %.1f dB", count, psnr);
        SL_CHECK(d.frame->pts * d.container->streams[0]->time_base.num * FPS ==
                 (int64_t)count * d.container->streams[0]->time_base.den);
        count++;
    }
    SL_CHECK(count == FRAMES);
    decoder_close(&d);
    unlink(path);
}

/* The offset of a top-level box, -1 if it is not there. */
static int64_t find_box(test_file file, const char *type)
{
    for (size_t at = 0; at + 8 <= file.length;) {
        const uint8_t *b = file.bytes + at;
        const size_t size = (size_t)b[0] << 24 | (size_t)b[1] << 16 | (size_t)b[2] << 8 | b[3];
        if (memcmp(b + 4, type, 4) == 0)
            return (int64_t)at;
        SL_CHECK(size >= 8);
        at += size;
    }
    return -1;
}

SL_TEST(the_index_is_in_front)
{
    const char *path = test_path("index.mp4");

    SL_CHECK_OK(test_write(path, SL_MEDIA_MP4, W, H, FPS, 1, FRAMES, err));
    test_file file = test_read(path);
    const int64_t moov = find_box(file, "moov");
    const int64_t mdat = find_box(file, "mdat");
    SL_CHECK(moov > 0 && mdat > moov);
    free(file.bytes);
    unlink(path);
}

SL_TEST(ffprobe_agrees)
{
    static const char *const want[] = {
        "codec_name=h264\n",   "width=128\n",    "height=96\n",           "pix_fmt=yuv420p\n",
        "r_frame_rate=16/1\n", "nb_frames=17\n", "avg_frame_rate=16/1\n",
    };
    char command[512];
    char text[2048] = "";
    const char *path = test_path("probe.mp4");

    if (system("command -v ffprobe >/dev/null 2>&1") != 0)
        SL_SKIP("no ffprobe");
    SL_CHECK_OK(test_write(path, SL_MEDIA_MP4, W, H, FPS, 1, FRAMES, err));
    snprintf(command, sizeof command,
             "ffprobe -v error -select_streams v:0 -show_entries stream=codec_name,width,height,"
             "pix_fmt,r_frame_rate,avg_frame_rate,nb_frames -of default=nw=1 %s",
             path);
    FILE *pipe = popen(command, "r");
    SL_CHECK(pipe != NULL);
    const size_t n = fread(text, 1, sizeof text - 1, pipe);
    SL_CHECK(pclose(pipe) == 0 && n > 0);
    for (size_t i = 0; i < SL_COUNT(want); i++) {
        if (!strstr(text, want[i]))
            fail_msg("ffprobe says \"%s\", expected %s", text, want[i]);
    }
    unlink(path);
}

SL_TEST(same_frames_same_bytes)
{
    test_same_bytes(SL_MEDIA_MP4, FRAMES, 1);
    test_same_bytes(SL_MEDIA_MP4, FRAMES, 3);
}

enum { SIDE = 96 };

/* A bright square that moves faster and faster over a texture that drifts. */
static void moving_frame(uint8_t *rgb, int t)
{
    for (int y = 0; y < SIDE; y++) {
        for (int x = 0; x < SIDE; x++) {
            uint8_t *pixel = rgb + 3 * (y * SIDE + x);
            const int wave = ((x + 2 * t) * (x + 2 * t) + 3 * y * y + 5 * x * y) / 64;
            const int left = x - 8 - t * t, top = y - 20 - 3 * t;
            const bool inside = left >= 0 && left < 24 && top >= 0 && top < 24;
            pixel[0] = (uint8_t)(inside ? 230 : 60 + wave % 64);
            pixel[1] = (uint8_t)(inside ? 40 + left : 60 + wave % 32);
            pixel[2] = (uint8_t)(90 + (wave + y) % 48);
        }
    }
}

static void write_over(const char *path, int fill)
{
    sl_error error_ = { .status = SL_OK };
    sl_error *err = &error_;
    sl_media_writer *writer = NULL;
    uint8_t *rgb = malloc((size_t)SIDE * SIDE * 3);

    SL_CHECK(rgb != NULL);
    mallopt(M_PERTURB, fill); /* a sanitizer's heap refuses */
    SL_CHECK_OK(sl_media_open(&writer, path, SL_MEDIA_MP4, SIDE, SIDE, FPS, 1, err));
    for (int t = 0; t < FRAMES; t++) {
        moving_frame(rgb, t);
        SL_CHECK_OK(sl_media_write_frame(writer, rgb, err));
    }
    SL_CHECK_OK(sl_media_finish(writer, err));
    sl_media_close(writer);
    mallopt(M_PERTURB, 0);
    free(rgb);
}

/* What earlier work left in the heap must not be seen in the file.  Shows
 * something only on a processor with AVX-512 and not under a sanitizer. */
SL_TEST(what_was_in_the_heap_does_not_matter)
{
    static const int fills[] = { 1, 33, 77, 165, 255 };
    const char *path = test_path("heap.mp4");
    test_file want = { 0 };

    for (size_t i = 0; i < SL_COUNT(fills); i++) {
        write_over(path, fills[i]);
        const test_file got = test_read(path);
        unlink(path);
        if (i == 0) {
            want = got;
            continue;
        }
        if (got.length != want.length || memcmp(got.bytes, want.bytes, want.length) != 0)
            fail_msg("other bytes over a heap of %d than over one of %d", fills[i], fills[0]);
        free(got.bytes);
    }
    free(want.bytes);
}

SL_TEST(nothing_behind_a_frame_is_read)
{
    const size_t bytes = (size_t)SIDE * SIDE * 3;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t mapped = (bytes + page - 1) / page * page;
    const char *path = test_path("behind.mp4");
    sl_media_writer *writer = NULL;
    uint8_t *map =
        mmap(NULL, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    SL_CHECK(map != MAP_FAILED && mprotect(map + mapped, page, PROT_NONE) == 0);
    SL_CHECK_OK(sl_media_open(&writer, path, SL_MEDIA_MP4, SIDE, SIDE, FPS, 1, err));
    SL_CHECK_OK(sl_media_write_frame(writer, map + mapped - bytes, err));
    SL_CHECK_OK(sl_media_finish(writer, err));
    sl_media_close(writer);
    munmap(map, mapped + page);
    unlink(path);
}

SL_TEST(small_and_odd_shapes)
{
    static const struct {
        int width, height, fps, frames;
    } shapes[] = { { 2, 2, 1, 1 }, { 16, 16, 16, 1 }, { 34, 18, 24, 5 }, { 432, 2, 240, 3 } };

    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const char *path = test_path("shape.mp4");
        SL_CHECK_OK(test_write(path, SL_MEDIA_MP4, shapes[i].width, shapes[i].height, shapes[i].fps,
                               1, shapes[i].frames, err));
        unlink(path);
    }
}

SL_TEST(a_path_may_look_like_a_url)
{
    const char *path = test_path("a:b%03d?.mp4");

    SL_CHECK_OK(test_write(path, SL_MEDIA_MP4, W, H, FPS, 1, 2, err));
    SL_CHECK(access(path, R_OK) == 0);
    unlink(path);
}

SL_TEST(close_in_the_middle)
{
    static uint8_t rgb[H * W * 3];
    const char *path = test_path("half.mp4");

    for (int frames = 0; frames < 3; frames++) {
        sl_media_writer *writer = NULL;
        SL_CHECK_OK(sl_media_open(&writer, path, SL_MEDIA_MP4, W, H, FPS, 2, err));
        for (int t = 0; t < frames; t++)
            SL_CHECK_OK(sl_media_write_frame(writer, rgb, err));
        sl_media_close(writer);
        unlink(path);
    }
}

SL_TEST(a_bad_path_is_named)
{
    SL_CHECK_STATUS(test_write("/nonexistent/x.mp4", SL_MEDIA_MP4, W, H, FPS, 1, 1, err),
                    SL_ERR_NOT_FOUND);
    SL_CHECK(strstr(err->message, "/nonexistent/x.mp4") != NULL);
}

/* The limit on file sizes stands for a disk that is full.  2000 bytes are too
 * few for the frames, all but a few of the whole file too few for the index
 * that faststart puts in front. */
SL_TEST(a_full_disk_is_an_io_error)
{
    const char *path = test_path("full.mp4");
    struct rlimit old, small;

    SL_CHECK_OK(test_write(path, SL_MEDIA_MP4, W, H, FPS, 1, FRAMES, err));
    test_file file = test_read(path);
    unlink(path);
    const rlim_t limits[] = { 2000, file.length - 16 };
    free(file.bytes);
    signal(SIGXFSZ, SIG_IGN);
    SL_CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    for (size_t i = 0; i < SL_COUNT(limits); i++) {
        small = old;
        small.rlim_cur = limits[i];
        SL_CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
        const sl_status status = test_write(path, SL_MEDIA_MP4, W, H, FPS, 1, FRAMES, err);
        SL_CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
        unlink(path);
        if (status != SL_ERR_IO)
            fail_msg("limit %llu: \"%s\" (%s), want \"%s\"", (unsigned long long)limits[i],
                     sl_status_text(status), err->message, sl_status_text(SL_ERR_IO));
        SL_CHECK(strstr(err->message, path) != NULL);
    }
}

SL_TEST_MAIN(SL_RUN(decodes_to_what_was_written), SL_RUN(the_index_is_in_front),
             SL_RUN(ffprobe_agrees), SL_RUN(same_frames_same_bytes),
             SL_RUN(what_was_in_the_heap_does_not_matter), SL_RUN(nothing_behind_a_frame_is_read),
             SL_RUN(small_and_odd_shapes), SL_RUN(a_path_may_look_like_a_url),
             SL_RUN(close_in_the_middle), SL_RUN(a_bad_path_is_named),
             SL_RUN(a_full_disk_is_an_io_error))
