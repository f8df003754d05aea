/* image_parts.c - the containers of JPEG and WebP, walked and cut down.
 *
 * JPEG: ITU-T T.81 annex B.  WebP: RIFF with one VP8 or VP8L chunk, alone or
 * behind a VP8X chunk; the key frame header of VP8 is RFC 6386, 9.1.
 */
#include "engine/media/image_parts.h"

#include <inttypes.h>
#include <string.h>

/* Each scan of a progressive JPEG is a pass over the whole picture: a small
 * file could ask for thousands.  Encoders write about ten. */
enum { MAX_SCANS = 100 };

sl_status sl_image_find_format(sl_image_walk *walk, sl_error *err)
{
    static const uint8_t png[8] = { 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n' };
    const uint8_t *bytes = walk->bytes;

    if (walk->length >= 8 && memcmp(bytes, png, 8) == 0)
        walk->info.format = SL_IMAGE_PNG;
    else if (walk->length >= 3 && memcmp(bytes, "\xff\xd8\xff", 3) == 0)
        walk->info.format = SL_IMAGE_JPEG;
    else if (walk->length >= 12 && memcmp(bytes, "RIFF", 4) == 0 &&
             memcmp(bytes + 8, "WEBP", 4) == 0)
        walk->info.format = SL_IMAGE_WEBP;
    else
        return sl_fail(err, SL_ERR_DATA, "%zu bytes that are no PNG, JPEG or WebP picture",
                       walk->length);
    return SL_OK;
}

sl_status sl_image_set_size(sl_image_walk *walk, uint32_t width, uint32_t height, sl_error *err)
{
    const char *format = sl_image_format_name(walk->info.format);

    if (width == 0 || height == 0 || width > INT32_MAX || height > INT32_MAX)
        return sl_fail(err, SL_ERR_DATA, "%s picture of %" PRIu32 "x%" PRIu32 " pixels", format,
                       width, height);
    if ((int64_t)width * height > walk->max_pixels)
        return sl_fail(err, SL_ERR_TOO_LARGE,
                       "%s picture of %" PRIu32 "x%" PRIu32 " pixels, the limit is %" PRId64
                       " pixels",
                       format, width, height, walk->max_pixels);
    walk->info.width = (int)width;
    walk->info.height = (int)height;
    return SL_OK;
}

static void keep(sl_image_walk *walk, size_t at, size_t length)
{
    if (!walk->kept)
        return;
    memcpy(walk->kept + walk->kept_bytes, walk->bytes + at, length);
    walk->kept_bytes += length;
}

/* --- JPEG --- */

typedef struct {
    size_t at;
    int components; /* 0: no frame header yet */
    int scans;
    bool adobe;
} jpeg_state;

enum {
    SOF0 = 0xc0,
    SOF2 = 0xc2,
    DHT = 0xc4,
    SOF15 = 0xcf,
    RST0 = 0xd0,
    RST7 = 0xd7,
    EOI = 0xd9,
    SOS = 0xda,
    DQT = 0xdb,
    DNL = 0xdc,
    DRI = 0xdd,
    APP0 = 0xe0,
    APP14 = 0xee,
    APP15 = 0xef,
    COM = 0xfe,
};

static sl_status fail_cut(const char *format, const sl_image_walk *walk, sl_error *err)
{
    return sl_fail(err, SL_ERR_DATA, "the %s picture is cut off after %zu bytes", format,
                   walk->length);
}

/* The frame header: its length field and what follows. */
static sl_status read_sof(sl_image_walk *walk, jpeg_state *state, int marker, size_t length,
                          sl_error *err)
{
    const uint8_t *sof = walk->bytes + state->at;

    if (marker > SOF2)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                       "JPEG picture of kind SOF%d (lossless, hierarchical or arithmetic); "
                       "baseline and progressive are read",
                       marker - SOF0);
    if (state->components != 0)
        return sl_fail(err, SL_ERR_DATA, "the JPEG picture has two frame headers");
    if (length < 8 || length != 8 + 3 * (size_t)sof[7])
        return sl_fail(err, SL_ERR_DATA, "the JPEG frame header has %zu bytes", length);
    if (sof[2] != 8)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED, "JPEG picture of %d bits; 8 are read", sof[2]);
    if (sof[7] != 1 && sof[7] != 3 && sof[7] != 4)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                       "JPEG picture of %d components; 1, 3 or 4 are read", sof[7]);
    state->components = sof[7];
    return sl_image_set_size(walk, sl_be16(sof + 5), sl_be16(sof + 3), err);
}

/* Entropy-coded bytes end at the first marker that is no restart. */
static size_t end_of_scan(const sl_image_walk *walk, size_t at)
{
    for (; at + 1 < walk->length; at++) {
        const uint8_t next = walk->bytes[at + 1];

        if (walk->bytes[at] == 0xff && next != 0 && next != 0xff && (next < RST0 || next > RST7))
            return at;
    }
    return walk->length;
}

static sl_status read_segment(sl_image_walk *walk, jpeg_state *state, int marker, sl_error *err)
{
    const size_t start = state->at - 2; /* the marker */
    const uint8_t *segment = walk->bytes + state->at;
    sl_status status = SL_OK;

    if (walk->length - state->at < 2)
        return fail_cut("JPEG", walk, err);
    const size_t length = sl_be16(segment);
    if (length < 2)
        return sl_fail(err, SL_ERR_DATA, "a segment of the JPEG picture has length %zu", length);
    if (length > walk->length - state->at)
        return fail_cut("JPEG", walk, err);
    size_t end = state->at + length;
    if (marker == DHT || marker == DQT || marker == DRI) {
        keep(walk, start, end - start);
    } else if (marker >= SOF0 && marker <= SOF15) {
        status = read_sof(walk, state, marker, length, err);
        keep(walk, start, end - start);
    } else if (marker == SOS) {
        if (state->components == 0)
            return sl_fail(err, SL_ERR_DATA, "the JPEG picture has no frame header");
        if (++state->scans > MAX_SCANS)
            return sl_fail(err, SL_ERR_DATA, "the JPEG picture has more than %d scans", MAX_SCANS);
        end = end_of_scan(walk, end);
        keep(walk, start, end - start);
    } else if (marker == APP14 && length >= 14 && memcmp(segment + 2, "Adobe", 5) == 0) {
        state->adobe = true; /* says how the components are to be read */
        keep(walk, start, end - start);
    } else if (marker != COM && marker != DNL && (marker < APP0 || marker > APP15)) {
        status = sl_fail(err, SL_ERR_DATA, "the JPEG picture has a marker 0x%02x", marker);
    }
    state->at = end;
    return status;
}

static sl_status end_jpeg(sl_image_walk *walk, const jpeg_state *state, sl_error *err)
{
    if (state->scans == 0)
        return sl_fail(err, SL_ERR_DATA, "the JPEG picture has no scan");
    if (state->components == 4 && !state->adobe)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED,
                       "JPEG picture of 4 components without an Adobe marker");
    keep(walk, state->at - 2, 2);
    return SL_OK;
}

sl_status sl_image_walk_jpeg(sl_image_walk *walk, sl_error *err)
{
    jpeg_state state = { .at = 2 };
    sl_status status = SL_OK;

    keep(walk, 0, 2);
    while (status == SL_OK) {
        if (walk->header_only && state.components != 0)
            return SL_OK;
        while (walk->length - state.at >= 2 && walk->bytes[state.at] == 0xff &&
               walk->bytes[state.at + 1] == 0xff)
            state.at++; /* fill bytes */
        if (walk->length - state.at < 2)
            return fail_cut("JPEG", walk, err);
        if (walk->bytes[state.at] != 0xff)
            return sl_fail(err, SL_ERR_DATA, "no marker at byte %zu of the JPEG picture", state.at);
        const int marker = walk->bytes[state.at + 1];
        state.at += 2;
        if (marker == EOI)
            return end_jpeg(walk, &state, err);
        status = read_segment(walk, &state, marker, err);
    }
    return status;
}

/* --- WebP --- */

static sl_status read_vp8(sl_image_walk *walk, const uint8_t *chunk, size_t length, bool lossless,
                          sl_image_info *frame, sl_error *err)
{
    sl_image_walk inner = { .max_pixels = walk->max_pixels, .info = { .format = SL_IMAGE_WEBP } };
    sl_status status;

    if (length < (lossless ? 5 : 10))
        return sl_fail(err, SL_ERR_DATA, "the WebP picture's frame has %zu bytes", length);
    if (lossless) {
        const uint32_t bits = sl_le32(chunk + 1);
        if (chunk[0] != 0x2f || bits >> 29 != 0)
            return sl_fail(err, SL_ERR_DATA, "the WebP picture has no lossless frame header");
        status = sl_image_set_size(&inner, (bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1, err);
    } else {
        const uint32_t tag = chunk[0] | (uint32_t)chunk[1] << 8 | (uint32_t)chunk[2] << 16;
        if ((tag & 1) != 0 || memcmp(chunk + 3, "\x9d\x01\x2a", 3) != 0)
            return sl_fail(err, SL_ERR_DATA, "the WebP picture has no key frame header");
        if (!walk->header_only && tag >> 5 > length - 10)
            return sl_fail(err, SL_ERR_DATA,
                           "the WebP picture's first partition has %" PRIu32
                           " bytes, its frame %zu",
                           tag >> 5, length);
        status = sl_image_set_size(&inner, (chunk[6] | (uint32_t)chunk[7] << 8) & 0x3fff,
                                   (chunk[8] | (uint32_t)chunk[9] << 8) & 0x3fff, err);
    }
    *frame = inner.info;
    return status;
}

static void keep_webp(sl_image_walk *walk, size_t at, size_t chunk_bytes)
{
    const size_t padded = chunk_bytes + (chunk_bytes & 1);

    if (!walk->kept)
        return;
    keep(walk, 0, 12);
    keep(walk, at, chunk_bytes);
    for (; walk->kept_bytes < 12 + padded; walk->kept_bytes++)
        walk->kept[walk->kept_bytes] = 0;
    for (int i = 0; i < 4; i++)
        walk->kept[4 + i] = (uint8_t)((4 + padded) >> (8 * i));
}

/* A chunk that holds the picture: the end of the walk. */
static sl_status take_frame(sl_image_walk *walk, size_t at, size_t size, bool lossless,
                            sl_error *err)
{
    const size_t there = walk->length - at - 8;
    sl_image_info frame = { .width = 0 };
    const sl_status status =
        read_vp8(walk, walk->bytes + at + 8, size < there ? size : there, lossless, &frame, err);

    if (status != SL_OK)
        return status;
    if (walk->info.width != 0 &&
        (walk->info.width != frame.width || walk->info.height != frame.height))
        return sl_fail(err, SL_ERR_DATA, "the WebP picture is %dx%d, its frame %dx%d",
                       walk->info.width, walk->info.height, frame.width, frame.height);
    walk->info = frame;
    keep_webp(walk, at, 8 + size);
    return SL_OK;
}

static sl_status read_vp8x(sl_image_walk *walk, const uint8_t *chunk, size_t size, sl_error *err)
{
    if (walk->info.width != 0 || size < 10)
        return sl_fail(err, SL_ERR_DATA, "the WebP picture has a bad VP8X chunk");
    if (chunk[0] & 2)
        return sl_fail(err, SL_ERR_UNIMPLEMENTED, "animated WebP; send a single picture");
    return sl_image_set_size(walk, (sl_le32(chunk + 3) >> 8) + 1, (sl_le32(chunk + 6) >> 8) + 1,
                             err);
}

sl_status sl_image_walk_webp(sl_image_walk *walk, sl_error *err)
{
    size_t at = 12, end = walk->length;

    if (!walk->header_only) {
        const size_t riff = sl_le32(walk->bytes + 4);
        if (riff > walk->length - 8)
            return fail_cut("WebP", walk, err);
        end = 8 + riff;
    }
    while (at < end && end - at >= 8) {
        const uint8_t *chunk = walk->bytes + at;
        const size_t size = sl_le32(chunk + 4);
        const bool lossless = memcmp(chunk, "VP8L", 4) == 0;

        if (!walk->header_only && size > end - at - 8)
            return fail_cut("WebP", walk, err);
        if (lossless || memcmp(chunk, "VP8 ", 4) == 0)
            return take_frame(walk, at, size, lossless, err);
        if (size > end - at - 8)
            break;
        if (memcmp(chunk, "VP8X", 4) == 0) {
            const sl_status status = read_vp8x(walk, chunk + 8, size, err);
            if (status != SL_OK || walk->header_only)
                return status;
        }
        at += 8 + size + (size & 1);
    }
    return sl_fail(err, SL_ERR_DATA, "no frame in the first %zu bytes of the WebP picture",
                   walk->length);
}
