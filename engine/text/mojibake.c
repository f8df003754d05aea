/* mojibake.c - UTF-8 that was once read as latin-1 or windows-1252.
 *
 * "cafÃ©" was "café": every character of UTF-8 outside ASCII became a lead
 * (Â to ô) and one to three continuations from the upper half of windows-1252.
 * Text is turned back only on evidence, because a lead before a quotation mark
 * or a dash is also how ordinary text in capitals looks ("CAFÉ…"):
 *
 *   - a line whose characters outside ASCII are all such sequences is turned
 *     back as a whole when one sequence of it is evidence;
 *   - in any other line only the runs of sequences that contain evidence are.
 *
 * This is narrower than ftfy.fix_encoding, which also knows eight more
 * encodings, sequences that lost a byte, and no-break spaces turned to spaces.
 */
#include "engine/text/utext.h"

#include "base/utf8.h"

#include <string.h>

typedef enum {
    CONT_COMMON,  /* follows a letter in ordinary text: ’ … – — · ´ no-break space */
    CONT_QUOTE,   /* the same, but not with a letter right behind it */
    CONT_LETTER,  /* letters of windows-1252 */
    CONT_ODD,     /* hardly ever after a letter: ¤ ¨ ¸ € ƒ ² ½ ... */
    CONT_CONTROL, /* C1: in no text at all */
} cont_kind;

typedef struct {
    uint32_t value;
    size_t length; /* code points of the garbled text; 0: no sequence here */
    bool evidence;
} sequence;

/* The byte that a code point was, -1 for none. */
static int byte_of(uint32_t c)
{
    if (c <= 0xff)
        return (int)c;
    for (size_t i = 0; i < SL_COUNT(sl_cp1252_high); i++) {
        if (sl_cp1252_high[i] == c)
            return (int)(0x80 + i);
    }
    return -1;
}

static cont_kind kind_of(uint32_t c)
{
    if (c >= 0x80 && c <= 0x9f)
        return CONT_CONTROL;
    switch (c) {
    case 0x00a0: /* no-break space */
    case 0x00b4:
    case 0x00b7:
    case 0x2013:
    case 0x2014:
    case 0x2019:
    case 0x2026:
        return CONT_COMMON;
    case 0x00a1:
    case 0x00a9:
    case 0x00ab:
    case 0x00ae:
    case 0x00bb:
    case 0x00bf:
    case 0x2018:
    case 0x201a:
    case 0x201c:
    case 0x201d:
    case 0x201e:
    case 0x2022:
    case 0x2039:
    case 0x203a:
    case 0x2122:
        return CONT_QUOTE;
    case 0x0152:
    case 0x0153:
    case 0x0160:
    case 0x0161:
    case 0x0178:
    case 0x017d:
    case 0x017e:
        return CONT_LETTER;
    default:
        return CONT_ODD;
    }
}

static bool is_ascii_letter(uint32_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* at[0] is the lead, length the whole sequence, next what follows it (or 0). */
static bool is_evidence(const uint32_t *at, size_t length, uint32_t next)
{
    const uint32_t lead = at[0];
    bool odd = false;
    bool quote = false;

    for (size_t i = 1; i < length; i++) {
        const cont_kind kind = kind_of(at[i]);
        if (kind == CONT_CONTROL)
            return true;
        odd = odd || kind == CONT_ODD;
        quote = quote || kind == CONT_QUOTE;
    }
    if (length > 2)
        return odd || (quote && is_ascii_letter(next));
    /* 2×½; ß is a small letter; Ò to Ö and Ù to Û are drawn in faces */
    if (lead == 0xd7 || lead == 0xdf || (lead >= 0xd2 && lead <= 0xd6) ||
        (lead >= 0xd9 && lead <= 0xdb))
        return false;
    /* The garbled forms of Latin, Greek and Cyrillic begin with these. */
    if (lead == 0xc2 || lead == 0xc3 || lead == 0xce || lead == 0xd0)
        return at[1] != 0x2019 && at[1] != 0x2026 && at[1] != 0xb7;
    return odd || (quote && is_ascii_letter(next));
}

static sequence read_sequence(const uint32_t *at, size_t count)
{
    sequence seq = { 0 };
    uint8_t bytes[4] = { 0 };
    size_t n = 0;

    if (at[0] < 0xc2 || at[0] > 0xf4) /* leads are themselves in both encodings */
        return seq;
    for (; n < count && n < sizeof bytes; n++) {
        const int byte = byte_of(at[n]);
        if (byte < 0)
            break;
        bytes[n] = (uint8_t)byte;
    }
    seq.length = sl_utf8_decode(bytes, n, &seq.value);
    if (seq.length > 0)
        seq.evidence = is_evidence(at, seq.length, seq.length < count ? at[seq.length] : 0);
    return seq;
}

static bool whole_line_is_garbled(const sl_utext *in)
{
    bool evidence = false;

    for (size_t i = 0; i < in->count;) {
        if (in->at[i] < 0x80) {
            i++;
            continue;
        }
        const sequence seq = read_sequence(in->at + i, in->count - i);
        if (seq.length == 0)
            return false;
        evidence = evidence || seq.evidence;
        i += seq.length;
    }
    return evidence;
}

/* The code points from i on that are sequences one after the other, and
 * whether one of them is evidence, here without a look at what follows. */
static size_t run_length(const sl_utext *in, size_t i, bool *evidence)
{
    size_t n = 0;

    *evidence = false;
    while (i + n < in->count) {
        const sequence seq = read_sequence(in->at + i + n, in->count - i - n);
        if (seq.length == 0)
            break;
        *evidence = *evidence || is_evidence(in->at + i + n, seq.length, 0);
        n += seq.length;
    }
    return n;
}

/* Behind such a character a run would be the tail of a larger garble. */
static bool blocks_run(uint32_t previous)
{
    const int byte = byte_of(previous);
    const cont_kind kind = kind_of(previous);

    return byte >= 0x80 && byte < 0xc0 && kind != CONT_COMMON && kind != CONT_QUOTE;
}

static void append_decoded(sl_utext *out, const uint32_t *at, size_t count)
{
    for (size_t i = 0; i < count;) {
        const sequence seq = read_sequence(at + i, count - i);
        if (seq.length == 0)
            sl_utext_push(out, at[i++]);
        else
            sl_utext_push(out, seq.value);
        i += seq.length;
    }
}

bool sl_mojibake_repair(sl_utext *out, const sl_utext *in)
{
    bool changed = false;

    if (whole_line_is_garbled(in)) {
        append_decoded(out, in->at, in->count);
        return true;
    }
    for (size_t i = 0; i < in->count;) {
        bool evidence = false;
        const size_t n = in->at[i] < 0x80 ? 0 : run_length(in, i, &evidence);
        if (evidence && (i == 0 || !blocks_run(in->at[i - 1]))) {
            append_decoded(out, in->at + i, n);
            changed = true;
            i += n;
            continue;
        }
        const size_t kept = n > 0 ? n : 1;
        sl_utext_append(out, in->at + i, kept);
        i += kept;
    }
    return changed;
}
