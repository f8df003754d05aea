#include "engine/model/convert_model.h"

#include "base/file.h"
#include "base/size.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/convert.h"
#include "engine/model/match.h"
#include "engine/model/model_dir.h"
#include "engine/model/model_probe.h"
#include "engine/model/names.h"
#include "engine/model/synth.h"
#include "kernels/linear_int8.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PIECE_BYTES (4 * SL_MIB)

enum { PIECE_ELEMENTS = 1 << 18 }; /* of any dtype: at most half a piece */

typedef enum {
    WORK_COPY,    /* bytes as they are */
    WORK_CONVERT, /* floats, through bf16 */
    WORK_ZERO,
    WORK_CODES, /* int8; leaves its scales in the run */
    WORK_SCALES,
} work_kind;

/* One tensor to write. */
typedef struct {
    char name[128];
    work_kind work;
    const sl_ckpt_tensor *from; /* NULL for ZERO and SCALES */
    sl_tensor shape;            /* data NULL */
} item;

/* One checkpoint to write. */
typedef struct {
    char *path;
    sl_ckpt *ckpt;
    sl_component_spec spec;
    sl_convert_target target;
    item *items;
    int64_t count, capacity;
    size_t data_bytes;
} output;

typedef struct {
    output files[SL_COMPONENT_COUNT];
    int file_count;
    unsigned char *read, *made; /* PIECE_BYTES each */
    uint16_t *rows;             /* 128 rows of the widest linear, as bf16 */
    int8_t *codes;              /* the same rows */
    float *scales;              /* of the linear before */
    float *space;               /* of sl_quantize_int8_rows */
    size_t done_bytes, total_bytes;
    void (*progress)(void *arg, size_t done_bytes, size_t total_bytes);
    void *arg;
    sl_convert_result result;
} run;

/* Takes the bytes of a tensor in order. */
typedef sl_status taker(void *arg, const void *bytes, size_t size_bytes, sl_error *err);

static const char *const target_names[SL_CONVERT_COUNT] = { "safetensors", "quant" };

const char *sl_convert_name(sl_convert_target target)
{
    SL_ASSERT((int)target >= 0 && target < SL_CONVERT_COUNT);
    return target_names[target];
}

bool sl_convert_parse(const char *text, sl_convert_target *out)
{
    for (int i = 0; i < SL_CONVERT_COUNT; i++) {
        if (strcmp(text, target_names[i]) == 0) {
            *out = (sl_convert_target)i;
            return true;
        }
    }
    return false;
}

/* ---- what to write ---- */

static sl_status add_item(output *o, const char *name, work_kind kind, const sl_ckpt_tensor *from,
                          sl_tensor shape, sl_error *err)
{
    item *it;

    if (o->count == o->capacity) {
        const int64_t grown = o->capacity ? o->capacity * 2 : 256;
        item *moved = reallocarray(o->items, (size_t)grown, sizeof *moved);

        if (!moved)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a list of %lld tensors",
                           (long long)grown);
        o->items = moved;
        o->capacity = grown;
    }
    it = &o->items[o->count++];
    *it = (item){ .work = kind, .from = from, .shape = shape };
    SL_ASSERT(strlen(name) < sizeof it->name);
    memcpy(it->name, name, strlen(name) + 1);
    it->shape.data = NULL;
    o->data_bytes += sl_tensor_bytes(&shape);
    return SL_OK;
}

/* What a network executes must be there in shape and dtype. */
static sl_status check_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    const output *o = arg;
    const bool absent = spec->form == SL_FORM_DEVICE_ONLY && !sl_names_find(o->ckpt, spec->name);
    char why[512];

    if (absent || sl_weight_match(o->ckpt, spec, why, sizeof why))
        return SL_OK;
    return sl_fail(err, SL_ERR_DATA, "%s", why);
}

static sl_status copy_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    output *o = arg;
    const sl_ckpt_tensor *from = sl_names_find(o->ckpt, spec->name);

    if (!from)
        return SL_OK; /* DEVICE_ONLY: all others have been checked */
    return add_item(o, spec->name, WORK_COPY, from, from->tensor, err);
}

/* The list is the -quant layout's: its int8 codes stand for the source's floats,
 * which have been checked. */
static sl_status quant_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    output *o = arg;
    const sl_tensor shape = sl_tensor_make(NULL, spec->file_dtype, spec->rank, spec->dim);
    const sl_ckpt_tensor *from;

    if (spec->form == SL_FORM_FILE_ONLY && spec->file_dtype == SL_I8) {
        char name[SL_NAME_BYTES];
        const int stem = (int)(strrchr(spec->name, '.') - spec->name);

        snprintf(name, sizeof name, "%.*s.weight", stem, spec->name);
        return add_item(o, spec->name, WORK_CODES, sl_names_find(o->ckpt, name), shape, err);
    }
    if (spec->form == SL_FORM_FILE_ONLY)
        return add_item(o, spec->name, WORK_SCALES, NULL, shape, err);
    from = sl_names_find(o->ckpt, spec->name);
    SL_ASSERT(!from || sl_tensor_count(&from->tensor) == sl_tensor_count(&shape));
    return add_item(o, spec->name, from ? WORK_CONVERT : WORK_ZERO, from, shape, err);
}

static bool is_dit(sl_component_kind kind)
{
    return kind != SL_COMPONENT_TEXT_ENCODER && kind != SL_COMPONENT_VAE;
}

static sl_status plan_quant(output *o, sl_error *err)
{
    sl_status status;

    if (sl_ckpt_layout(o->ckpt) == SL_LAYOUT_TURBO_QUANT)
        return sl_fail(err, SL_ERR_INVALID, "\"%s\" has int8 linears already",
                       sl_ckpt_path(o->ckpt));
    status = sl_dit_precision_check(&o->spec.config.dit, SL_PRECISION_INT8, err);
    if (status != SL_OK) {
        sl_error_prefix(err, "\"%s\" cannot be quantised", sl_ckpt_path(o->ckpt));
        return status;
    }
    return sl_component_visit(NULL, &o->spec, SL_LAYOUT_TURBO_QUANT, quant_visitor, o, err);
}

/* Everything that can be wrong with the source, and the list of what to write.
 * The official list takes both forms of the patch embedding, and proj_l. */
static sl_status plan_output(output *o, int64_t *left_out, sl_error *err)
{
    const sl_layout layout = sl_ckpt_layout(o->ckpt) == SL_LAYOUT_TURBO_QUANT
                                 ? SL_LAYOUT_TURBO_QUANT
                                 : SL_LAYOUT_OFFICIAL;
    int64_t unexpected = 0;
    sl_status status = sl_component_visit(NULL, &o->spec, layout, check_visitor, o, err);

    if (status != SL_OK) {
        sl_error_prefix(err, "\"%s\"", sl_ckpt_path(o->ckpt));
        return status;
    }
    if (o->target == SL_CONVERT_QUANT && is_dit(o->spec.kind))
        status = plan_quant(o, err);
    else
        status = sl_component_visit(NULL, &o->spec, layout, copy_visitor, o, err);
    if (status == SL_OK)
        status = sl_ckpt_unexpected(o->ckpt, &o->spec, NULL, NULL, &unexpected, err);
    *left_out += unexpected;
    return status;
}

/* ---- bytes of one tensor ---- */

static sl_status make_plain(run *r, const output *o, const item *it, taker *take, void *arg,
                            sl_error *err)
{
    const int64_t total = sl_tensor_count(&it->shape);
    const size_t in_bytes = it->from ? sl_dtype_bytes(it->from->tensor.dtype) : 0;
    const size_t out_bytes = sl_dtype_bytes(it->shape.dtype);
    sl_status status = SL_OK;

    for (int64_t first = 0; first < total && status == SL_OK; first += PIECE_ELEMENTS) {
        const int64_t left = total - first, n = left < PIECE_ELEMENTS ? left : PIECE_ELEMENTS;
        const void *piece = r->read;

        if (it->from)
            status = sl_ckpt_read(o->ckpt, it->from, (size_t)first * in_bytes, r->read,
                                  (size_t)n * in_bytes, err);
        else
            memset(r->read, 0, (size_t)n * out_bytes);
        if (status == SL_OK && it->from && it->work == WORK_CONVERT) {
            sl_convert(r->made, SL_BF16, r->read, it->from->tensor.dtype, n);
            piece = r->made;
            if (it->shape.dtype == SL_F32) {
                sl_convert(r->read, SL_F32, r->made, SL_BF16, n);
                piece = r->read;
            }
        }
        if (status == SL_OK)
            status = take(arg, piece, (size_t)n * out_bytes, err);
    }
    return status;
}

/* Up to 128 rows of the source, as bf16, into r->rows. */
static sl_status read_rows(run *r, const output *o, const item *it, int64_t first, int64_t rows,
                           sl_error *err)
{
    const sl_tensor *from = &it->from->tensor;
    const size_t element_bytes = sl_dtype_bytes(from->dtype);
    const int64_t I = it->shape.dim[1], total = rows * I;
    sl_status status = SL_OK;

    for (int64_t at = 0; at < total && status == SL_OK; at += PIECE_ELEMENTS) {
        const int64_t n = total - at < PIECE_ELEMENTS ? total - at : PIECE_ELEMENTS;

        status = sl_ckpt_read(o->ckpt, it->from, (size_t)(first * I + at) * element_bytes, r->read,
                              (size_t)n * element_bytes, err);
        if (status == SL_OK)
            sl_convert(r->rows + at, SL_BF16, r->read, from->dtype, n);
    }
    return status;
}

static sl_status make_codes(run *r, const output *o, const item *it, taker *take, void *arg,
                            sl_error *err)
{
    const int64_t O = it->shape.dim[0], I = it->shape.dim[1];
    const int64_t tiles = (I + SL_INT8_TILE - 1) / SL_INT8_TILE;
    sl_status status = SL_OK;

    for (int64_t first = 0; first < O && status == SL_OK; first += SL_INT8_TILE) {
        const int64_t rows = O - first < SL_INT8_TILE ? O - first : SL_INT8_TILE;

        status = read_rows(r, o, it, first, rows, err);
        if (status != SL_OK)
            break;
        sl_quantize_int8_rows(r->codes, r->scales + first / SL_INT8_TILE * tiles, r->rows, rows, I,
                              r->space);
        status = take(arg, r->codes, (size_t)(rows * I), err);
    }
    return status;
}

static sl_status make(run *r, const output *o, const item *it, taker *take, void *arg,
                      sl_error *err)
{
    sl_status status;

    if (it->work == WORK_CODES)
        status = make_codes(r, o, it, take, arg, err);
    else if (it->work == WORK_SCALES)
        status = take(arg, r->scales, sl_tensor_bytes(&it->shape), err);
    else
        status = make_plain(r, o, it, take, arg, err);
    r->done_bytes += sl_tensor_bytes(&it->shape);
    if (status == SL_OK && r->progress)
        r->progress(r->arg, r->done_bytes, r->total_bytes);
    return status;
}

/* ---- writing and reading back ---- */

static sl_status to_writer(void *arg, const void *bytes, size_t size_bytes, sl_error *err)
{
    return sl_st_writer_write(arg, bytes, size_bytes, err);
}

static sl_status write_output(run *r, const output *o, sl_error *err)
{
    sl_st_writer *writer = NULL;
    sl_status status = sl_st_writer_create(&writer, o->path, err);

    for (int64_t i = 0; i < o->count && status == SL_OK; i++) {
        const item *it = &o->items[i];
        status = sl_st_writer_declare(writer, it->name, it->shape.dtype, it->shape.rank,
                                      it->shape.dim, err);
    }
    for (int64_t i = 0; i < o->count && status == SL_OK; i++)
        status = make(r, o, &o->items[i], to_writer, writer, err);
    if (status == SL_OK)
        status = sl_st_writer_finish(writer, err);
    sl_st_writer_destroy(writer);
    return status;
}

/* A tensor that was written, and how much of it has been compared. */
typedef struct {
    const sl_ckpt *ckpt;
    const sl_ckpt_tensor *tensor;
    size_t at_bytes;
    unsigned char *back; /* PIECE_BYTES */
} comparison;

static sl_status to_comparison(void *arg, const void *bytes, size_t size_bytes, sl_error *err)
{
    comparison *c = arg;
    const unsigned char *want = bytes;

    for (size_t at = 0, n; at < size_bytes; at += n, c->at_bytes += n) {
        n = size_bytes - at < PIECE_BYTES ? size_bytes - at : PIECE_BYTES;
        const sl_status status = sl_ckpt_read(c->ckpt, c->tensor, c->at_bytes, c->back, n, err);
        if (status != SL_OK)
            return status;
        if (memcmp(c->back, want + at, n) != 0)
            return sl_fail(err, SL_ERR_IO,
                           "\"%s\" is not what was written: tensor \"%s\" differs in bytes %zu to "
                           "%zu",
                           sl_ckpt_path(c->ckpt), c->tensor->name, c->at_bytes, c->at_bytes + n);
    }
    return SL_OK;
}

/* Reading back is to come from the disk, not from the page cache. */
static void drop_cached(const char *path)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return; /* opening it as a checkpoint says why */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static sl_status verify_output(run *r, const output *o, sl_error *err)
{
    comparison c = { .back = malloc(PIECE_BYTES) };
    sl_ckpt *ckpt = NULL;
    sl_status status;

    drop_cached(o->path);
    status = c.back ? sl_ckpt_open(&ckpt, o->path, err)
                    : sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for reading \"%s\"", o->path);
    c.ckpt = ckpt;
    for (int64_t i = 0; i < o->count && status == SL_OK; i++) {
        const item *it = &o->items[i];

        c.tensor = sl_ckpt_find(ckpt, it->name);
        c.at_bytes = 0;
        if (!c.tensor || c.tensor->tensor.dtype != it->shape.dtype ||
            !sl_tensor_same_shape(&c.tensor->tensor, &it->shape))
            status = sl_fail(err, SL_ERR_IO, "\"%s\" is not what was written: tensor \"%s\"",
                             o->path, it->name);
        else
            status = make(r, o, it, to_comparison, &c, err);
    }
    sl_ckpt_close(ckpt);
    free(c.back);
    if (status != SL_OK)
        unlink(o->path);
    return status;
}

/* ---- a run ---- */

static sl_status add_output(run *r, const char *from, char *path, const sl_component_spec *spec,
                            sl_convert_target target, sl_error *err)
{
    output *o = &r->files[r->file_count++];
    sl_status status;

    o->path = path; /* owned from here on */
    o->target = target;
    if (!path)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    status = sl_ckpt_open(&o->ckpt, from, err);
    if (status == SL_OK && spec)
        o->spec = *spec;
    else if (status == SL_OK)
        status = sl_probe_spec(o->ckpt, &o->spec, err);
    if (status == SL_OK && !spec && target == SL_CONVERT_QUANT && !is_dit(o->spec.kind))
        status = sl_fail(err, SL_ERR_INVALID, "\"%s\" is a %s: only transformers are quantised",
                         from, sl_component_name(o->spec.kind));
    if (status == SL_OK)
        status = plan_output(o, &r->result.left_out, err);
    r->total_bytes += 2 * o->data_bytes; /* written and read back */
    r->result.file_count++;
    r->result.tensor_count += o->count;
    r->result.data_bytes += o->data_bytes;
    return status;
}

static void run_fini(run *r)
{
    for (int i = 0; i < r->file_count; i++) {
        sl_ckpt_close(r->files[i].ckpt);
        free(r->files[i].path);
        free(r->files[i].items);
    }
    free(r->read);
    free(r->made);
    free(r->rows);
    free(r->codes);
    free(r->scales);
    free(r->space);
}

static sl_status take_memory(run *r, sl_error *err)
{
    size_t width = 1, scales = 1;

    for (int f = 0; f < r->file_count; f++) {
        for (int64_t i = 0; i < r->files[f].count; i++) {
            const item *it = &r->files[f].items[i];
            const size_t count = (size_t)sl_tensor_count(&it->shape);

            if (it->work == WORK_CODES && (size_t)it->shape.dim[1] > width)
                width = (size_t)it->shape.dim[1];
            if (it->work == WORK_SCALES && count > scales)
                scales = count;
        }
    }
    r->read = malloc(PIECE_BYTES);
    r->made = malloc(PIECE_BYTES);
    r->rows = malloc(width * SL_INT8_TILE * sizeof *r->rows);
    r->codes = malloc(width * SL_INT8_TILE);
    r->scales = malloc(scales * sizeof *r->scales);
    r->space = malloc(SL_QUANTIZE_INT8_SPACE_BYTES);
    if (!r->read || !r->made || !r->rows || !r->codes || !r->scales || !r->space)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for converting rows of %zu", width);
    return SL_OK;
}

/* where: an existing directory on the disk in question. */
static sl_status check_space(const run *r, const char *where, sl_error *err)
{
    const size_t need_bytes = r->total_bytes / 2 + PIECE_BYTES;
    struct statvfs fs;
    char need[32], have[32];
    size_t free_bytes;

    if (statvfs(where, &fs) != 0)
        return sl_fail_errno(err, "could not ask for the free space of \"%s\"", where);
    if (!sl_size_mul((size_t)fs.f_bavail, (size_t)fs.f_frsize, &free_bytes))
        free_bytes = SIZE_MAX;
    if (free_bytes < need_bytes)
        return sl_fail(err, SL_ERR_TOO_LARGE, "%s are needed on disk, \"%s\" has %s free",
                       sl_size_format(need_bytes, need, sizeof need), where,
                       sl_size_format(free_bytes, have, sizeof have));
    return SL_OK;
}

static sl_status write_all(run *r, sl_error *err)
{
    sl_status status = take_memory(r, err);

    for (int i = 0; i < r->file_count && status == SL_OK; i++) {
        status = write_output(r, &r->files[i], err);
        if (status == SL_OK)
            status = verify_output(r, &r->files[i], err);
    }
    return status;
}

static sl_status convert_file(run *r, const char *src, const char *dst, sl_convert_target target,
                              sl_error *err)
{
    const char *slash = strrchr(dst, '/');
    char *folder = NULL;
    struct stat st;
    sl_status status;

    if (lstat(dst, &st) == 0)
        return sl_fail(err, SL_ERR_EXISTS, "\"%s\" is there already", dst);
    if (asprintf(&folder, "%.*s", slash ? (int)(slash - dst) + 1 : 1, slash ? dst : ".") < 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    status = add_output(r, src, strdup(dst), NULL, target, err);
    if (status == SL_OK)
        status = check_space(r, folder, err);
    if (status == SL_OK)
        status = write_all(r, err);
    free(folder);
    return status;
}

/* A small file as it is. */
static sl_status copy_file(const char *from, const char *to, sl_error *err)
{
    char bytes[65536];
    FILE *in = fopen(from, "rb"), *out = NULL;
    sl_status status = SL_OK;
    size_t n;

    if (!in)
        return sl_fail_errno(err, "could not open \"%s\"", from);
    out = fopen(to, "wb");
    if (!out) {
        status = sl_fail_errno(err, "could not create \"%s\"", to);
        goto done;
    }
    while ((n = fread(bytes, 1, sizeof bytes, in)) > 0)
        if (fwrite(bytes, 1, n, out) != n)
            break;
    if (ferror(in))
        status = sl_fail_errno(err, "could not read \"%s\"", from);
    else if (ferror(out) || fflush(out) != 0)
        status = sl_fail_errno(err, "could not write \"%s\"", to);
done:
    if (out)
        fclose(out); /* it has been flushed */
    fclose(in);
    return status;
}

static sl_status check_empty(const char *dst, sl_error *err)
{
    DIR *d = opendir(dst);
    struct dirent *entry;
    bool empty = true;

    if (!d)
        return errno == ENOENT ? SL_OK : sl_fail_errno(err, "could not read \"%s\"", dst);
    while (empty && (entry = readdir(d)))
        empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
    closedir(d);
    return empty ? SL_OK : sl_fail(err, SL_ERR_EXISTS, "\"%s\" is not empty", dst);
}

/* Folders, tokenizer, config.json and the mark of made-up weights. */
static sl_status write_rest(const sl_model_info *info, const char *dst, sl_error *err)
{
    char from[PATH_MAX], to[PATH_MAX];
    sl_status status = SL_OK;

    if (info->arch->expert_count == 2) {
        static const char *const experts[] = { "high_noise_model", "low_noise_model" };
        for (size_t i = 0; i < SL_COUNT(experts) && status == SL_OK; i++) {
            snprintf(to, sizeof to, "%s/%s", dst, experts[i]);
            status = sl_make_directory(to, 0755, err);
        }
    }
    snprintf(to, sizeof to, "%s/config.json", dst);
    if (status == SL_OK)
        status = sl_dit_json_write(to, &info->arch->dit, info->arch->task, err);
    if (status == SL_OK && info->tokenizer) {
        snprintf(to, sizeof to, "%s/google/umt5-xxl", dst);
        status = sl_make_directory(to, 0755, err);
        snprintf(to, sizeof to, "%s/google/umt5-xxl/spiece.model", dst);
        if (status == SL_OK)
            status = copy_file(info->tokenizer, to, err);
    }
    if (status == SL_OK && info->synthetic) {
        snprintf(from, sizeof from, "%s/" SL_SYNTH_MARKER, info->path);
        snprintf(to, sizeof to, "%s/" SL_SYNTH_MARKER, dst);
        status = copy_file(from, to, err);
    }
    return status;
}

static sl_status convert_dir(run *r, const char *src, const char *dst, sl_convert_target target,
                             sl_error *err)
{
    static const char *const names[SL_COMPONENT_COUNT] = {
        [SL_COMPONENT_TEXT_ENCODER] = "models_t5_umt5-xxl-enc-bf16.safetensors",
        [SL_COMPONENT_DIT] = "diffusion_pytorch_model.safetensors",
        [SL_COMPONENT_DIT_HIGH] = "high_noise_model/diffusion_pytorch_model.safetensors",
        [SL_COMPONENT_DIT_LOW] = "low_noise_model/diffusion_pytorch_model.safetensors",
        [SL_COMPONENT_VAE] = "Wan2.1_VAE.safetensors",
    };
    sl_model_dir *dir = NULL;
    const sl_model_info *info;
    sl_status status = check_empty(dst, err);

    if (status == SL_OK && strlen(dst) + 64 > PATH_MAX)
        status = sl_fail(err, SL_ERR_INVALID, "\"%s\" is too long a path", dst);
    if (status == SL_OK)
        status = sl_model_dir_open(&dir, src, err);
    if (status != SL_OK)
        return status;
    info = sl_model_dir_info(dir);
    for (int k = 0; k < SL_COMPONENT_COUNT && status == SL_OK; k++) {
        char *path = NULL;

        if (!info->files[k])
            continue;
        const sl_component_spec spec =
            sl_component_spec_of(info->arch, (sl_component_kind)k, SL_PRECISION_F32);
        if (asprintf(&path, "%s/%s", dst, names[k]) < 0)
            path = NULL;
        status = add_output(r, info->files[k], path, &spec, target, err);
    }
    if (status == SL_OK)
        status = sl_make_directory(dst, 0755, err);
    if (status == SL_OK)
        status = check_space(r, dst, err);
    if (status == SL_OK)
        status = write_rest(info, dst, err);
    if (status == SL_OK)
        status = write_all(r, err);
    sl_model_dir_close(dir);
    return status;
}

sl_status sl_convert_model(const char *src, const char *dst, sl_convert_target target,
                           void (*progress)(void *arg, size_t done_bytes, size_t total_bytes),
                           void *arg, sl_convert_result *result, sl_error *err)
{
    run r = { .progress = progress, .arg = arg };
    struct stat st;
    sl_status status;

    if (stat(src, &st) != 0)
        status = sl_fail_errno(err, "could not open \"%s\"", src);
    else if (S_ISDIR(st.st_mode))
        status = convert_dir(&r, src, dst, target, err);
    else
        status = convert_file(&r, src, dst, target, err);
    if (status == SL_OK)
        *result = r.result;
    run_fini(&r);
    return status;
}
