/* tokenizer_synthetic.c - a small unigram model, written by hand.
 *
 * Field numbers are those of sentencepiece_model.proto.  Order of the pieces:
 * specials, bytes, U+2581, printable ASCII, words with U+2581 in front, then
 * letter combinations of two, three and four letters until there are enough.
 * Scores only need to prefer the longest piece that fits: two pieces always
 * cost more than the one that covers them.
 */
#include "engine/text/tokenizer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECES_MIN = 512,
    PIECES_MAX = 262144, /* the embedding of umT5 has 256384 rows */
    PIECE_BYTES_MAX = 32,

    TYPE_NORMAL = 1,
    TYPE_UNKNOWN = 2,
    TYPE_CONTROL = 3,
    TYPE_BYTE = 6,

    ID_PAD = 0,
    ID_EOS = 1,
    ID_BOS = 2,
    ID_UNK = 3,
};

static const float SCORE_CHARACTER = -12.0f;
static const float SCORE_WORD = -8.0f;     /* minus a little for each word */
static const float SCORE_LETTERS = -13.0f; /* minus one for each letter above two */

/* What prompts are made of, the most common first. */
static const char *const words[] = {
    "a",         "the",      "of",      "and",       "in",       "with",    "on",         "is",
    "to",        "at",       "by",      "from",      "as",       "its",     "an",         "for",
    "are",       "through",  "into",    "over",      "under",    "his",     "her",        "their",
    "while",     "that",     "it",      "up",        "down",     "out",     "cat",        "dog",
    "man",       "woman",    "girl",    "boy",       "child",    "person",  "people",     "bird",
    "horse",     "fish",     "tree",    "forest",    "mountain", "river",   "sea",        "ocean",
    "beach",     "sky",      "cloud",   "sun",       "moon",     "star",    "rain",       "snow",
    "wind",      "fire",     "water",   "light",     "shadow",   "night",   "day",        "morning",
    "evening",   "sunset",   "city",    "street",    "road",     "house",   "room",       "window",
    "door",      "table",    "car",     "train",     "boat",     "plane",   "camera",     "shot",
    "close",     "wide",     "slow",    "motion",    "view",     "scene",   "background", "style",
    "cinematic", "film",     "video",   "realistic", "detailed", "soft",    "bright",     "dark",
    "warm",      "cold",     "red",     "green",     "blue",     "white",   "black",      "yellow",
    "orange",    "pink",     "golden",  "silver",    "small",    "large",   "old",        "young",
    "walking",   "running",  "sitting", "standing",  "flying",   "looking", "moving",     "playing",
    "dancing",   "swimming", "driving", "wearing",   "holding",  "face",    "hand",       "eyes",
    "hair",      "dress",    "flower",  "grass",     "leaf",     "field",   "garden",     "glass",
    "stone",     "wood",     "metal",   "smoke",     "wave",     "fast",    "gently",     "quietly",
};

typedef struct {
    FILE *file;
    int count;
    int wanted;
} model_writer;

/* Messages are at most a few dozen bytes: lengths below 128 take one byte. */
typedef struct {
    uint8_t bytes[127];
    size_t length;
} message;

static void put_varint(message *m, uint64_t value)
{
    do {
        SL_ASSERT(m->length < sizeof m->bytes);
        m->bytes[m->length++] = (uint8_t)(value > 0x7f ? (value & 0x7f) | 0x80 : value);
        value >>= 7;
    } while (value > 0);
}

static void put_number(message *m, uint32_t field, uint32_t value)
{
    put_varint(m, (uint64_t)field << 3);
    put_varint(m, value);
}

static void put_text(message *m, uint32_t field, const char *text)
{
    const size_t length = strlen(text);

    put_varint(m, (uint64_t)field << 3 | 2);
    put_varint(m, length);
    SL_ASSERT(length <= sizeof m->bytes - m->length);
    memcpy(m->bytes + m->length, text, length);
    m->length += length;
}

static void put_float(message *m, uint32_t field, float value)
{
    uint32_t bits = 0;

    memcpy(&bits, &value, sizeof bits);
    put_varint(m, (uint64_t)field << 3 | 5);
    for (unsigned i = 0; i < 4; i++) {
        SL_ASSERT(m->length < sizeof m->bytes);
        m->bytes[m->length++] = (uint8_t)(bits >> 8 * i);
    }
}

/* Write errors stay in the FILE and are asked for once, at the end. */
static void write_message(FILE *file, uint32_t field, const message *m)
{
    fputc((int)(field << 3 | 2), file);
    fputc((int)m->length, file);
    fwrite(m->bytes, 1, m->length, file);
}

static void write_piece(model_writer *model, const char *text, float score, uint32_t type)
{
    message m = { .length = 0 };

    if (model->count == model->wanted)
        return;
    put_text(&m, 1, text);
    put_float(&m, 2, score);
    put_number(&m, 3, type);
    write_message(model->file, 1, &m);
    model->count++;
}

static void write_basic_pieces(model_writer *model)
{
    char text[PIECE_BYTES_MAX];

    write_piece(model, "<pad>", 0, TYPE_CONTROL);
    write_piece(model, "</s>", 0, TYPE_CONTROL);
    write_piece(model, "<s>", 0, TYPE_CONTROL);
    write_piece(model, "<unk>", 0, TYPE_UNKNOWN);
    for (unsigned i = 0; i < 256; i++) {
        snprintf(text, sizeof text, "<0x%02X>", i);
        write_piece(model, text, 0, TYPE_BYTE);
    }
    write_piece(model, "\xe2\x96\x81", SCORE_CHARACTER, TYPE_NORMAL);
    for (char c = 0x21; c <= 0x7e; c++) {
        snprintf(text, sizeof text, "%c", c);
        write_piece(model, text, SCORE_CHARACTER, TYPE_NORMAL);
    }
}

static void write_letters(model_writer *model, size_t letters)
{
    char text[PIECE_BYTES_MAX];
    size_t total = 1;

    for (size_t i = 0; i < letters; i++)
        total *= 26;
    for (size_t n = 0; n < total && model->count < model->wanted; n++) {
        size_t rest = n;
        for (size_t i = letters; i-- > 0; rest /= 26)
            text[i] = (char)('a' + rest % 26);
        text[letters] = '\0';
        write_piece(model, text, SCORE_LETTERS - (float)(letters - 2), TYPE_NORMAL);
    }
}

static void write_specs(FILE *file, int pieces)
{
    message trainer = { .length = 0 };
    message normalizer = { .length = 0 };

    put_number(&trainer, 3, 1); /* model_type: unigram */
    put_number(&trainer, 4, (uint32_t)pieces);
    put_number(&trainer, 35, 1); /* byte_fallback */
    put_number(&trainer, 40, ID_UNK);
    put_number(&trainer, 41, ID_BOS);
    put_number(&trainer, 42, ID_EOS);
    put_number(&trainer, 43, ID_PAD);
    put_text(&trainer, 45, "<unk>");
    put_text(&trainer, 46, "<s>");
    put_text(&trainer, 47, "</s>");
    put_text(&trainer, 48, "<pad>");
    write_message(file, 2, &trainer);

    put_text(&normalizer, 1, "identity");
    put_number(&normalizer, 3, 1); /* add_dummy_prefix */
    put_number(&normalizer, 4, 1); /* remove_extra_whitespaces */
    put_number(&normalizer, 5, 1); /* escape_whitespaces */
    write_message(file, 3, &normalizer);
}

static void write_model(FILE *file, int pieces)
{
    model_writer model = { .file = file, .wanted = pieces };

    write_basic_pieces(&model);
    for (size_t i = 0; i < SL_COUNT(words); i++) {
        char text[PIECE_BYTES_MAX];
        snprintf(text, sizeof text, "\xe2\x96\x81%s", words[i]);
        write_piece(&model, text, SCORE_WORD - 0.01f * (float)i, TYPE_NORMAL);
    }
    for (size_t letters = 2; letters <= 4; letters++)
        write_letters(&model, letters);
    SL_ASSERT(model.count == pieces);
    write_specs(file, pieces);
}

sl_status sl_tokenizer_write_synthetic(const char *path, int pieces, sl_error *err)
{
    if (pieces < PIECES_MIN || pieces > PIECES_MAX)
        return sl_fail(err, SL_ERR_INVALID, "a tokenizer of %d pieces, expected %d to %d", pieces,
                       PIECES_MIN, PIECES_MAX);

    FILE *file = fopen(path, "wbe");
    if (!file)
        return sl_fail_errno(err, "could not create tokenizer \"%s\"", path);
    write_model(file, pieces);
    const bool written = fflush(file) == 0 && !ferror(file);
    const int write_errno = errno;
    const bool closed = fclose(file) == 0;
    if (!written)
        errno = write_errno;
    if (!written || !closed)
        return sl_fail_errno(err, "could not write tokenizer \"%s\"", path);
    return SL_OK;
}
