/* zip.c - after PKWARE's APPNOTE, sections 4.3 and 4.5.3. */
#include "engine/ckpt/zip.h"

#include "base/size.h"
#include "engine/ckpt/ckpt_file.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DIRECTORY_BYTES ((size_t)100000000)

enum {
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    END_BYTES = 22,
    LOCATOR64_BYTES = 20,
    END64_BYTES = 56,
    MAX_COMMENT_BYTES = 65535,
};

static uint16_t u16(const void *at)
{
    uint16_t v;
    memcpy(&v, at, sizeof v);
    return le16toh(v);
}

static uint32_t u32(const void *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof v);
    return le32toh(v);
}

static uint64_t u64(const void *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
    return le64toh(v);
}

/* Where the central directory is. */
typedef struct {
    uint64_t entries, size_bytes, offset;
} directory_place;

static sl_status read_at(const sl_zip *zip, size_t offset, void *out, size_t size_bytes,
                         sl_error *err)
{
    return sl_file_read(zip->fd, zip->path, offset, out, size_bytes, err);
}

/* The ZIP64 record that the locator in front of the end record points to. */
static sl_status read_end64(const sl_zip *zip, size_t end, directory_place *place, sl_error *err)
{
    unsigned char locator[LOCATOR64_BYTES], record[END64_BYTES];
    sl_status status;

    if (end < LOCATOR64_BYTES)
        return sl_fail(err, SL_ERR_DATA, "zip: no ZIP64 locator");
    status = read_at(zip, end - LOCATOR64_BYTES, locator, sizeof locator, err);
    if (status != SL_OK)
        return status;
    const uint64_t at = u64(locator + 8);
    if (memcmp(locator, "PK\6\7", 4) != 0 || u32(locator + 4) != 0 || u32(locator + 16) > 1)
        return sl_fail(err, SL_ERR_DATA, "zip: no ZIP64 locator");
    if (end < LOCATOR64_BYTES + END64_BYTES || at > end - LOCATOR64_BYTES - END64_BYTES)
        return sl_fail(err, SL_ERR_DATA, "zip: the ZIP64 end record is said to be at %llu",
                       (unsigned long long)at);
    status = read_at(zip, (size_t)at, record, sizeof record, err);
    if (status != SL_OK)
        return status;
    if (memcmp(record, "PK\6\6", 4) != 0 || u32(record + 16) != 0 || u32(record + 20) != 0 ||
        u64(record + 24) != u64(record + 32))
        return sl_fail(err, SL_ERR_DATA, "zip: no ZIP64 end record at %llu",
                       (unsigned long long)at);
    *place = (directory_place){ u64(record + 32), u64(record + 40), u64(record + 48) };
    return SL_OK;
}

static sl_status read_end(const sl_zip *zip, const unsigned char *record, size_t end,
                          directory_place *place, sl_error *err)
{
    const uint16_t disk = u16(record + 4), first_disk = u16(record + 6);
    sl_status status = SL_OK;

    *place = (directory_place){ u16(record + 10), u32(record + 12), u32(record + 16) };
    if (disk == 0xffff || first_disk == 0xffff || u16(record + 8) == 0xffff ||
        place->entries == 0xffff || place->size_bytes == 0xffffffff || place->offset == 0xffffffff)
        status = read_end64(zip, end, place, err);
    else if (disk != 0 || first_disk != 0 || u16(record + 8) != place->entries)
        status = sl_fail(err, SL_ERR_DATA, "zip: the archive is one of several disks");
    if (status != SL_OK)
        return status;
    if (place->offset > end || place->size_bytes > end - place->offset)
        return sl_fail(
            err, SL_ERR_DATA, "zip: a directory of %llu bytes at %llu does not fit before %zu",
            (unsigned long long)place->size_bytes, (unsigned long long)place->offset, end);
    if (place->size_bytes > MAX_DIRECTORY_BYTES ||
        place->entries > place->size_bytes / CENTRAL_BYTES)
        return sl_fail(err, SL_ERR_DATA, "zip: a directory of %llu bytes for %llu members",
                       (unsigned long long)place->size_bytes, (unsigned long long)place->entries);
    return SL_OK;
}

/* The end record is the last thing in the file but for a comment, which may
 * hold anything, its signature too. */
static sl_status find_directory(const sl_zip *zip, directory_place *place, sl_error *err)
{
    const size_t most = END_BYTES + MAX_COMMENT_BYTES;
    const size_t tail_bytes = zip->file_bytes < most ? zip->file_bytes : most;
    const size_t tail_at = zip->file_bytes - tail_bytes;
    unsigned char *tail = NULL;
    sl_status status;

    if (tail_bytes < END_BYTES)
        return sl_fail(err, SL_ERR_DATA, "zip: no end-of-directory record, the file is cut");
    tail = malloc(tail_bytes);
    if (!tail)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a zip directory");
    status = read_at(zip, tail_at, tail, tail_bytes, err);
    for (size_t at = tail_bytes - END_BYTES + 1; status == SL_OK && at-- > 0;) {
        if (memcmp(tail + at, "PK\5\6", 4) == 0 &&
            u16(tail + at + 20) == tail_bytes - END_BYTES - at) {
            status = read_end(zip, tail + at, tail_at + at, place, err);
            goto done;
        }
    }
    if (status == SL_OK)
        status = sl_fail(err, SL_ERR_DATA, "zip: no end-of-directory record, the file is cut");
done:
    free(tail);
    return status;
}

/* Puts 64-bit values where the record has all ones.  v: size, stored size,
 * offset, in the order of the extra field. */
static sl_status read_extra64(const unsigned char *extra, size_t extra_bytes, uint64_t v[3],
                              sl_error *err)
{
    const unsigned char *at = NULL;
    size_t left = 0;

    while (extra_bytes >= 4 && !at) {
        const size_t field_bytes = u16(extra + 2);

        if (field_bytes > extra_bytes - 4)
            break;
        if (u16(extra) == 1) {
            at = extra + 4;
            left = field_bytes;
        }
        extra += 4 + field_bytes;
        extra_bytes -= 4 + field_bytes;
    }
    for (int i = 0; i < 3; i++) {
        if (v[i] != 0xffffffff)
            continue;
        if (left < 8)
            return sl_fail(err, SL_ERR_DATA, "no ZIP64 field");
        v[i] = u64(at);
        at += 8;
        left -= 8;
    }
    return SL_OK;
}

/* The data of a member starts behind its local header, whose extra field is
 * not that of the directory: writers align the data with it. */
static sl_status locate(const sl_zip *zip, sl_zip_member *member, uint64_t header, char *scratch,
                        sl_error *err)
{
    const size_t name_bytes = strlen(member->name);
    unsigned char *local = (unsigned char *)scratch;
    size_t data;
    sl_status status;

    if (header > zip->file_bytes || zip->file_bytes - header < LOCAL_BYTES + name_bytes)
        return sl_fail(err, SL_ERR_DATA, "header at %llu, the file has %zu bytes",
                       (unsigned long long)header, zip->file_bytes);
    status = read_at(zip, (size_t)header, local, LOCAL_BYTES + name_bytes, err);
    if (status != SL_OK)
        return status;
    if (memcmp(local, "PK\3\4", 4) != 0 || u16(local + 26) != name_bytes ||
        memcmp(local + LOCAL_BYTES, member->name, name_bytes) != 0)
        return sl_fail(err, SL_ERR_DATA, "no header of it at %llu", (unsigned long long)header);
    data = (size_t)header + LOCAL_BYTES + name_bytes + u16(local + 28); /* below 2^64: it is read */
    if (data > zip->file_bytes || member->size_bytes > zip->file_bytes - data)
        return sl_fail(err, SL_ERR_DATA, "%zu bytes at %zu, the file has %zu", member->size_bytes,
                       data, zip->file_bytes);
    member->offset = data;
    return SL_OK;
}

/* One record of the directory.  The name is moved down by a byte, over fields
 * that have been read, to make room for its terminator. */
static sl_status read_record(const sl_zip *zip, char *record, size_t left, size_t *record_bytes,
                             sl_zip_member *member, char *scratch, sl_error *err)
{
    const unsigned char *r = (const unsigned char *)record;
    sl_status status;

    if (left < CENTRAL_BYTES || memcmp(record, "PK\1\2", 4) != 0)
        return sl_fail(err, SL_ERR_DATA, "zip: the directory is damaged");
    const unsigned flags = u16(r + 8), method = u16(r + 10), disk = u16(r + 34);
    const size_t name_bytes = u16(r + 28), extra_bytes = u16(r + 30);
    uint64_t v[3] = { u32(r + 24), u32(r + 20), u32(r + 42) };
    *record_bytes = CENTRAL_BYTES + name_bytes + extra_bytes + u16(r + 32);
    if (*record_bytes > left)
        return sl_fail(err, SL_ERR_DATA, "zip: the directory is damaged");
    memmove(record + CENTRAL_BYTES - 1, record + CENTRAL_BYTES, name_bytes);
    member->name = record + CENTRAL_BYTES - 1;
    record[CENTRAL_BYTES - 1 + name_bytes] = '\0';
    if (name_bytes == 0 || strlen(member->name) != name_bytes)
        return sl_fail(err, SL_ERR_DATA, "zip: member with an empty name or a NUL in it");
    status = read_extra64(r + CENTRAL_BYTES + name_bytes, extra_bytes, v, err);
    if (status == SL_OK && method != 0)
        status = sl_fail(err, SL_ERR_DATA, "is compressed (method %u), must be stored", method);
    else if (status == SL_OK && (flags & 1))
        status = sl_fail(err, SL_ERR_DATA, "is encrypted");
    else if (status == SL_OK && (v[0] != v[1] || disk != 0))
        status = sl_fail(err, SL_ERR_DATA, "has %llu bytes, stored in %llu on disk %u",
                         (unsigned long long)v[0], (unsigned long long)v[1], disk);
    member->size_bytes = (size_t)v[0];
    if (status == SL_OK)
        status = locate(zip, member, v[2], scratch, err);
    if (status != SL_OK)
        sl_error_prefix(err, "zip: member \"%.200s\"", member->name);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const sl_zip_member *)a)->name, ((const sl_zip_member *)b)->name);
}

static sl_status read_directory(sl_zip *zip, const directory_place *place, sl_error *err)
{
    /* a local header and the longest name */
    char *scratch = malloc(LOCAL_BYTES + 65536);
    size_t at = 0;
    sl_status status = SL_OK;

    zip->directory = malloc((size_t)place->size_bytes + 1);
    zip->members = calloc((size_t)place->entries + 1, sizeof *zip->members);
    if (!scratch || !zip->directory || !zip->members) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a zip directory of %llu bytes",
                         (unsigned long long)place->size_bytes);
        goto done;
    }
    status = read_at(zip, (size_t)place->offset, zip->directory, (size_t)place->size_bytes, err);
    while (status == SL_OK && zip->count < (int64_t)place->entries) {
        size_t record_bytes = 0;
        status = read_record(zip, zip->directory + at, (size_t)place->size_bytes - at,
                             &record_bytes, &zip->members[zip->count], scratch, err);
        at += record_bytes;
        zip->count++;
    }
    if (status != SL_OK)
        goto done;
    if (at != place->size_bytes) {
        status = sl_fail(err, SL_ERR_DATA, "zip: %llu members do not fill the directory",
                         (unsigned long long)place->entries);
        goto done;
    }
    qsort(zip->members, (size_t)zip->count, sizeof *zip->members, by_name);
    for (int64_t i = 1; i < zip->count && status == SL_OK; i++)
        if (by_name(&zip->members[i - 1], &zip->members[i]) == 0)
            status = sl_fail(err, SL_ERR_DATA, "zip: two members are named \"%.200s\"",
                             zip->members[i].name);
done:
    free(scratch);
    return status;
}

sl_status sl_zip_init(sl_zip *zip, int fd, const char *path, size_t file_bytes, sl_error *err)
{
    directory_place place = { 0 };
    sl_status status;

    *zip = (sl_zip){ .fd = fd, .path = path, .file_bytes = file_bytes };
    status = find_directory(zip, &place, err);
    if (status == SL_OK)
        status = read_directory(zip, &place, err);
    if (status != SL_OK)
        sl_zip_fini(zip);
    return status;
}

void sl_zip_fini(sl_zip *zip)
{
    free(zip->directory);
    free(zip->members);
    *zip = (sl_zip){ .fd = -1 };
}

const sl_zip_member *sl_zip_find(const sl_zip *zip, const char *name)
{
    const sl_zip_member key = { .name = name };

    return bsearch(&key, zip->members, (size_t)zip->count, sizeof key, by_name);
}
