/* tokenizer_check.c - walks a serialised sentencepiece ModelProto.
 *
 * Fields (sentencepiece_model.proto): 1 pieces {1 piece, 2 score, 3 type},
 * 2 trainer_spec {3 model_type}, 3 normalizer_spec {2 precompiled_charsmap},
 * 5 denormalizer_spec, the same.  A charsmap is a little-endian u32 of bytes,
 * a Darts double array of that many bytes, and strings that end in NUL.
 */
#include "engine/text/tokenizer_check.h"

#include "base/utf8.h"

#include <math.h>
#include <string.h>

enum {
    WIRE_VARINT = 0,
    WIRE_FIXED64 = 1,
    WIRE_BYTES = 2,
    WIRE_FIXED32 = 5,

    MODEL_UNIGRAM = 1,
    PIECE_BYTES_MAX = 1024,
    PIECES_MAX = 4 * 1000 * 1000,
};

typedef struct {
    const uint8_t *at;
    size_t left;
} reader;

typedef struct {
    uint32_t number;
    uint32_t wire;
    uint64_t value; /* varint, fixed */
    reader bytes;   /* WIRE_BYTES */
} field;

static bool read_varint(reader *in, uint64_t *out)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64 && in->left > 0; shift += 7) {
        const uint8_t byte = *in->at++;
        in->left--;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool read_fixed(reader *in, size_t size, uint64_t *out)
{
    uint64_t value = 0;

    if (in->left < size)
        return false;
    for (size_t i = 0; i < size; i++)
        value |= (uint64_t)in->at[i] << (8 * i);
    in->at += size;
    in->left -= size;
    *out = value;
    return true;
}

/* False at bytes that are no field; groups are not used by these messages. */
static bool read_field(reader *in, field *out)
{
    uint64_t key = 0;
    uint64_t size = 0;

    *out = (field){ 0 };
    if (!read_varint(in, &key) || key >> 3 == 0 || key >> 3 > 0x1fffffff)
        return false;
    out->number = (uint32_t)(key >> 3);
    out->wire = (uint32_t)(key & 7);
    switch (out->wire) {
    case WIRE_VARINT:
        return read_varint(in, &out->value);
    case WIRE_FIXED64:
        return read_fixed(in, 8, &out->value);
    case WIRE_FIXED32:
        return read_fixed(in, 4, &out->value);
    case WIRE_BYTES:
        if (!read_varint(in, &size) || size > in->left)
            return false;
        out->bytes = (reader){ in->at, (size_t)size };
        in->at += size;
        in->left -= (size_t)size;
        return true;
    default:
        return false;
    }
}

static sl_status check_piece_text(reader text, int64_t index, sl_error *err)
{
    if (text.left == 0 || text.left > PIECE_BYTES_MAX)
        return sl_fail(err, SL_ERR_DATA, "piece %lld has %zu bytes, expected 1 to %d",
                       (long long)index, text.left, PIECE_BYTES_MAX);
    while (text.left > 0) {
        uint32_t c = 0;
        const size_t size = sl_utf8_decode(text.at, text.left, &c);
        if (size == 0 || c == 0)
            return sl_fail(err, SL_ERR_DATA, "piece %lld is not UTF-8 text", (long long)index);
        text.at += size;
        text.left -= size;
    }
    return SL_OK;
}

static sl_status check_piece(reader in, int64_t index, sl_error *err)
{
    bool named = false;
    field f;

    while (in.left > 0) {
        if (!read_field(&in, &f))
            return sl_fail(err, SL_ERR_DATA, "piece %lld is cut off", (long long)index);
        if (f.number == 1 && f.wire == WIRE_BYTES) {
            const sl_status status = check_piece_text(f.bytes, index, err);
            if (status != SL_OK)
                return status;
            named = true;
        }
        if (f.number == 2 && f.wire == WIRE_FIXED32) {
            const uint32_t bits = (uint32_t)f.value;
            float score = 0;
            memcpy(&score, &bits, sizeof score);
            if (!isfinite(score))
                return sl_fail(err, SL_ERR_DATA, "the score of piece %lld is not finite",
                               (long long)index);
        }
    }
    if (!named)
        return sl_fail(err, SL_ERR_DATA, "piece %lld has no text", (long long)index);
    return SL_OK;
}

static uint32_t read_u32(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* A lookup goes from a unit to one of the 256 that its offset selects, and
 * reads its value in the first of them.  All of those must exist, and every
 * value must be the start of a string. */
static sl_status check_charsmap(reader map, sl_error *err)
{
    if (map.left == 0)
        return SL_OK; /* the identity */
    const uint32_t trie_bytes = map.left < 4 ? 0 : read_u32(map.at);
    if (map.left < 4 || trie_bytes % 4 != 0 || trie_bytes < 4 || trie_bytes > map.left - 4)
        return sl_fail(err, SL_ERR_DATA, "the normaliser's trie of %u bytes is not inside its %zu",
                       trie_bytes, map.left);

    const uint8_t *trie = map.at + 4;
    const size_t units = trie_bytes / 4;
    const size_t strings_bytes = map.left - 4 - trie_bytes;
    if (strings_bytes == 0 || map.at[map.left - 1] != '\0')
        return sl_fail(err, SL_ERR_DATA, "the normaliser's strings do not end");
    for (size_t i = 0; i < units; i++) {
        const uint32_t unit = read_u32(trie + 4 * i);
        if (unit >> 31) {
            if ((unit & 0x7fffffff) >= strings_bytes)
                return sl_fail(err, SL_ERR_DATA, "the normaliser names string %u of %zu bytes",
                               unit & 0x7fffffff, strings_bytes);
            continue;
        }
        const uint32_t offset = (unit >> 10) << ((unit & 0x200) >> 6);
        const size_t child = i ^ offset;
        const bool leaf = (unit >> 8) & 1;
        if ((child | 0xff) >= units)
            return sl_fail(err, SL_ERR_DATA, "the normaliser's trie leads from unit %zu out of %zu",
                           i, units);
        if (leaf && (read_u32(trie + 4 * child) & 0x7fffffff) >= strings_bytes)
            return sl_fail(err, SL_ERR_DATA, "the normaliser's trie has a bad value at %zu", child);
    }
    return SL_OK;
}

static sl_status check_normalizer(reader in, sl_error *err)
{
    field f;

    while (in.left > 0) {
        if (!read_field(&in, &f))
            return sl_fail(err, SL_ERR_DATA, "the normaliser is cut off");
        if (f.number == 2 && f.wire == WIRE_BYTES) {
            const sl_status status = check_charsmap(f.bytes, err);
            if (status != SL_OK)
                return status;
        }
    }
    return SL_OK;
}

static sl_status check_trainer(reader in, sl_error *err)
{
    field f;

    while (in.left > 0) {
        if (!read_field(&in, &f))
            return sl_fail(err, SL_ERR_DATA, "the trainer's notes are cut off");
        if (f.number == 3 && f.wire == WIRE_VARINT && f.value != MODEL_UNIGRAM)
            return sl_fail(err, SL_ERR_DATA, "model type %llu, expected unigram (%d)",
                           (unsigned long long)f.value, MODEL_UNIGRAM);
    }
    return SL_OK;
}

sl_status sl_tokenizer_check(const uint8_t *bytes, size_t length, sl_error *err)
{
    reader in = { bytes, length };
    int64_t pieces = 0;
    field f;

    while (in.left > 0) {
        sl_status status = SL_OK;
        const size_t at = length - in.left;
        if (!read_field(&in, &f))
            return sl_fail(err, SL_ERR_DATA, "not a sentencepiece model: no field at byte %zu", at);
        const bool message = f.number <= 5 && f.number != 4;
        if (message && f.wire != WIRE_BYTES)
            return sl_fail(err, SL_ERR_DATA, "not a sentencepiece model: field %u at byte %zu",
                           f.number, at);
        if (f.number == 1)
            status = check_piece(f.bytes, pieces++, err);
        else if (f.number == 2)
            status = check_trainer(f.bytes, err);
        else if (f.number == 3 || f.number == 5)
            status = check_normalizer(f.bytes, err);
        if (status != SL_OK)
            return status;
        if (pieces > PIECES_MAX)
            return sl_fail(err, SL_ERR_DATA, "more than %d pieces", PIECES_MAX);
    }
    if (pieces == 0)
        return sl_fail(err, SL_ERR_DATA, "not a sentencepiece model: no pieces");
    return SL_OK;
}
