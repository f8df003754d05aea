/* golden_test_full.c - networks at their real size, with generated weights.
 *
 * Weights are made by the rules of the golden set, in bf16: the generator's values
 * are bf16, so nothing is lost.  On cpu they are made in memory; minutes on a small
 * machine.  What does not fit into free memory there, and all with --streamed, is
 * written to a file and from there to another one that holds the image, whose blocks
 * are streamed: twice the weights of disk, and little more memory than two blocks.
 * On a GPU the file is brought to the device by the ordinary loader, once for each
 * precision.
 */
#include "tests/golden_test.h"

#include "base/size.h"
#include "engine/model/match.h"
#include "engine/model/synth.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define TENSOR_ALIGN      ((size_t)256)
#define PIECE_VALUES      ((int64_t)1 << 18)
#define FILE_BUFFER_BYTES ((size_t)256 << 20)
#define SPARE_BYTES       ((size_t)2 << 30) /* left to activations and to everyone else */

/* A network in memory, or in a file and then on the device. */
typedef struct {
    golden_env *env;
    uint64_t seed;
    sl_component_spec spec;
    sl_region *region; /* cpu */
    size_t used_bytes;
    char path[4096]; /* "" without a file */
    void *image;     /* streamed on cpu: a mapped file without a name */
    sl_component *component;
    union {
        sl_dit_weights dit;
        sl_t5_weights t5;
        sl_vae_weights vae;
    } weights; /* made in memory: there is no component */
} generated;

/* One tensor under way. */
typedef struct {
    const sl_weight_spec *spec;
    uint64_t seed;
    int64_t count, fan_in;
} generation;

static void plain_piece(void *arg, int64_t i, int thread, void *workspace)
{
    const generation *g = arg;
    const int64_t first = i * PIECE_VALUES;
    const int64_t count = g->count - first < PIECE_VALUES ? g->count - first : PIECE_VALUES;

    (void)thread;
    (void)workspace;
    if (g->spec->slot->dtype == SL_BF16)
        sl_synth_bf16((uint16_t *)g->spec->slot->data + first, g->spec->name, g->seed, g->fan_in,
                      first, count);
    else
        sl_synth_f32((float *)g->spec->slot->data + first, g->spec->name, g->seed, g->fan_in, first,
                     count);
}

/* Output channel o of [O, I, taps] to [O, taps, I]. */
static void channels_last_row(void *arg, int64_t o, int thread, void *workspace)
{
    const generation *g = arg;
    const sl_tensor *to = g->spec->slot;
    const int64_t I = to->dim[to->rank - 1], taps = g->fan_in / I;
    uint16_t *row = workspace;

    (void)thread;
    sl_synth_bf16(row, g->spec->name, g->seed, g->fan_in, o * g->fan_in, g->fan_in);
    for (int64_t i = 0; i < I; i++)
        for (int64_t k = 0; k < taps; k++) {
            const int64_t at = (o * taps + k) * I + i;

            if (to->dtype == SL_BF16)
                ((uint16_t *)to->data)[at] = row[i * taps + k];
            else
                ((float *)to->data)[at] = sl_bf16_to_f32(row[i * taps + k]);
        }
}

static sl_status generate_tensor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    generated *net = arg;
    generation g = { .spec = spec, .seed = net->seed, .fan_in = 1 };

    if (spec->form == SL_FORM_FILE_ONLY)
        return SL_OK;
    spec->slot->data = (unsigned char *)sl_region_data(net->region) + net->used_bytes;
    net->used_bytes += (sl_tensor_bytes(spec->slot) + TENSOR_ALIGN - 1) & ~(TENSOR_ALIGN - 1);
    g.count = sl_tensor_count(spec->slot);
    for (int i = 1; i < spec->rank; i++)
        g.fan_in *= spec->dim[i];
    if (spec->form == SL_FORM_CHANNELS_LAST)
        return sl_exec_parallel(net->env->exec, spec->dim[0], channels_last_row, &g, err);
    return sl_exec_parallel(net->env->exec, sl_ceil_div(g.count, PIECE_VALUES), plain_piece, &g,
                            err);
}

static size_t free_bytes(void)
{
    return (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

static sl_status generate_in_memory(generated *net, sl_error *err)
{
    const sl_component_spec *spec = &net->spec;
    const size_t need = sl_component_plan_bytes(spec);
    sl_status status = SL_OK;

    GOLDEN_TRY(sl_region_create(&net->region, net->env->device, "generated weights", need, err));
    GOLDEN_TRY(sl_region_map(net->region, need, err));
    switch (spec->kind) {
    case SL_COMPONENT_TEXT_ENCODER:
        status = sl_t5_visit(&net->weights.t5, &spec->config.t5, spec->precision, generate_tensor,
                             net, err);
        break;
    case SL_COMPONENT_VAE:
        status = sl_vae_visit(&net->weights.vae, &spec->config.vae, spec->precision,
                              generate_tensor, net, err);
        break;
    default:
        status = sl_dit_visit(&net->weights.dit, &spec->config.dit, SL_LAYOUT_OFFICIAL,
                              spec->precision, generate_tensor, net, err);
    }
done:
    return status;
}

/* ---- in a file ---- */

typedef struct {
    generated *net;
    sl_st_writer *writer;
    unsigned char *buffer;
    bool declare; /* the first walk; the second one writes */
} file_walk;

/* One group of pieces of a tensor, as the file has it. */
typedef struct {
    const sl_weight_spec *spec;
    uint64_t seed;
    unsigned char *out;
    int64_t first, count, fan_in; /* elements */
} file_piece;

static void write_piece(void *arg, int64_t i, int thread, void *workspace)
{
    const file_piece *p = arg;
    const int64_t at = i * PIECE_VALUES;
    const int64_t count = p->count - at < PIECE_VALUES ? p->count - at : PIECE_VALUES;

    (void)thread;
    (void)workspace;
    if (p->spec->file_dtype == SL_BF16)
        sl_synth_bf16((uint16_t *)(void *)p->out + at, p->spec->name, p->seed, p->fan_in,
                      p->first + at, count);
    else
        sl_synth_f32((float *)(void *)p->out + at, p->spec->name, p->seed, p->fan_in, p->first + at,
                     count);
}

static sl_status file_tensor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    file_walk *f = arg;
    const sl_tensor t = sl_tensor_make(NULL, spec->file_dtype, spec->rank, spec->dim);
    const size_t element_bytes = sl_dtype_bytes(spec->file_dtype);
    const int64_t most = (int64_t)(FILE_BUFFER_BYTES / element_bytes), all = sl_tensor_count(&t);
    file_piece p = { .spec = spec, .seed = f->net->seed, .out = f->buffer, .fan_in = 1 };
    sl_status status = SL_OK;

    if (spec->form == SL_FORM_DEVICE_ONLY)
        return SL_OK;
    if (f->declare)
        return sl_st_writer_declare(f->writer, spec->name, spec->file_dtype, spec->rank, spec->dim,
                                    err);
    for (int i = 1; i < spec->rank; i++)
        p.fan_in *= spec->dim[i];
    for (; p.first < all && status == SL_OK; p.first += most) {
        p.count = all - p.first < most ? all - p.first : most;
        status = sl_exec_parallel(f->net->env->exec, sl_ceil_div(p.count, PIECE_VALUES),
                                  write_piece, &p, err);
        if (status == SL_OK)
            status = sl_st_writer_write(f->writer, f->buffer, (size_t)p.count * element_bytes, err);
    }
    return status;
}

/* The bf16 layouts of the published files: half the bytes of the others. */
static sl_status generate_file(golden_case *c, generated *net, sl_error *err)
{
    const sl_layout layout =
        net->spec.kind == SL_COMPONENT_DIT ? SL_LAYOUT_TURBO : SL_LAYOUT_OFFICIAL;
    file_walk f = { .net = net, .declare = true };
    sl_status status = SL_OK;

    snprintf(net->path, sizeof net->path, "%s/golden-%s-%ld.safetensors", c->env->work, c->name,
             (long)getpid());
    f.buffer = malloc(FILE_BUFFER_BYTES);
    if (!f.buffer)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a piece of a file");
    GOLDEN_TRY(sl_st_writer_create(&f.writer, net->path, err));
    GOLDEN_TRY(sl_component_visit(NULL, &net->spec, layout, file_tensor, &f, err));
    f.declare = false;
    GOLDEN_TRY(sl_component_visit(NULL, &net->spec, layout, file_tensor, &f, err));
    GOLDEN_TRY(sl_st_writer_finish(f.writer, err));
done:
    sl_st_writer_destroy(f.writer);
    free(f.buffer);
    return status;
}

static sl_status load_file(generated *net, sl_precision precision, sl_error *err)
{
    sl_status status = SL_OK;
    sl_ckpt *ckpt = NULL;

    sl_component_destroy(net->component);
    net->component = NULL;
    net->spec.precision = precision;
    GOLDEN_TRY(sl_ckpt_open(&ckpt, net->path, err));
    GOLDEN_TRY(sl_component_load(&net->component, &net->spec, net->env->device, net->env->exec,
                                 ckpt, err));
done:
    sl_ckpt_close(ckpt);
    return status;
}

/* ---- streamed on cpu ---- */

/* *fits false: the disk is too small, and the case says that it is skipped. */
static sl_status check_disk(golden_case *c, const generated *net, bool *fits, sl_error *err)
{
    const size_t need = 2 * sl_component_image_bytes(&net->spec) + SPARE_BYTES;
    char need_text[32], disk_text[32], free_text[32];
    struct statvfs disk;

    if (statvfs(c->env->work, &disk) != 0)
        return sl_fail_errno(err, "could not look at the disk of \"%s\"", c->env->work);
    const size_t have = (size_t)disk.f_bavail * disk.f_frsize;
    *fits = have >= need;
    if (!*fits)
        golden_skip_case(c, "needs %s of disk to be streamed: \"%s\" has %s; memory has %s",
                         sl_size_format(need, need_text, sizeof need_text), c->env->work,
                         sl_size_format(have, disk_text, sizeof disk_text),
                         sl_size_format(free_bytes(), free_text, sizeof free_text));
    return SL_OK;
}

/* The image as pages of a file: the system writes them out and reads them again as
 * memory is short. */
static sl_status map_image(generated *net, size_t image_bytes, sl_error *err)
{
    char path[sizeof net->path + 8];
    sl_status status = SL_OK;

    snprintf(path, sizeof path, "%s.image", net->path);
    const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return sl_fail_errno(err, "could not create \"%s\"", path);
    unlink(path);
    void *image = ftruncate(fd, (off_t)image_bytes) == 0
                      ? mmap(NULL, image_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                      : MAP_FAILED;
    if (image == MAP_FAILED)
        status = sl_fail_errno(err, "could not map \"%s\"", path);
    else
        net->image = image;
    close(fd);
    return status;
}

static sl_status load_streamed(generated *net, sl_error *err)
{
    const size_t image_bytes = sl_component_image_bytes(&net->spec);
    sl_status status = SL_OK;
    sl_ckpt *ckpt = NULL;

    net->spec.mode = SL_MODE_STREAMED;
    GOLDEN_TRY(map_image(net, image_bytes, err));
    GOLDEN_TRY(sl_ckpt_open(&ckpt, net->path, err));
    GOLDEN_TRY(sl_component_fill_image(net->image, image_bytes, &net->spec, net->env->exec, ckpt,
                                       err));
    GOLDEN_TRY(sl_component_load_image(&net->component, &net->spec, net->env->device,
                                       net->env->exec, net->image, image_bytes, err));
done:
    sl_ckpt_close(ckpt);
    return status;
}

/* ---- either ---- */

static void close_network(generated *net)
{
    sl_component_destroy(net->component);
    sl_region_destroy(net->region);
    if (net->image)
        munmap(net->image, sl_component_image_bytes(&net->spec));
    if (net->path[0])
        unlink(net->path);
}

/* Calls run once on cpu; on a GPU with f32 weights, then with bf16 ones.  f32_key and
 * low_key name their tolerances. */
static sl_status each_network(
    golden_case *c, generated *net, sl_component_kind kind, const void *config, const char *low_key,
    sl_status (*run)(golden_case *, generated *, const char *key, sl_error *), sl_error *err)
{
    static const sl_precision precisions[] = { SL_PRECISION_F32, SL_PRECISION_BF16 };
    const bool cpu = sl_exec_numerics(c->env->exec)->kind == SL_DEVICE_CPU;
    sl_status status = SL_OK;
    bool fits = true, streamed;

    memset(net, 0, sizeof *net);
    net->env = c->env;
    net->seed = (uint64_t)golden_number(c->json, "seed", 1);
    GOLDEN_TRY(golden_make_spec(&net->spec, kind, SL_PRECISION_BF16, config, err));
    streamed = sl_component_can_stream(kind) &&
               (c->env->streamed ||
                free_bytes() < sl_component_plan_bytes(&net->spec) + SPARE_BYTES);
    if (cpu && !streamed) {
        GOLDEN_TRY(generate_in_memory(net, err));
        status = run(c, net, "f32_rel_l2", err);
        goto done;
    }
    if (cpu) {
        GOLDEN_TRY(check_disk(c, net, &fits, err));
        if (!fits)
            goto done;
        GOLDEN_TRY(generate_file(c, net, err));
        GOLDEN_TRY(load_streamed(net, err));
        status = run(c, net, "f32_rel_l2", err);
        goto done;
    }
    GOLDEN_TRY(generate_file(c, net, err));
    for (size_t i = 0; i < SL_COUNT(precisions); i++) {
        const size_t mark = sl_scratch_mark(&c->env->scratch);

        golden_use(c, precisions[i]);
        GOLDEN_TRY(load_file(net, precisions[i], err));
        GOLDEN_TRY(run(c, net, golden_is_exact(c) ? "f32_rel_l2" : low_key, err));
        sl_scratch_release(&c->env->scratch, mark);
    }
done:
    c->variant = NULL;
    close_network(net);
    return status;
}

/* "generator ..., shape [1,16,5,30,52], ..." with an optional "a=1.0": fills a
 * tensor in scratch, the leading batch of 1 dropped; with fewer than least_rows the
 * rest is zeros. */
static sl_status generate_input(golden_case *c, const char *name, sl_dtype dtype,
                                int64_t least_rows, sl_tensor *out, sl_error *err)
{
    const golden_json *inputs = golden_json_get(c->json, "inputs");
    const golden_json *text = golden_json_get(inputs, name);
    const char *at =
        golden_json_is(text, GOLDEN_JSON_STRING) ? strstr(text->text, "shape [") : NULL;
    const char *scale = golden_json_is(text, GOLDEN_JSON_STRING) ? strstr(text->text, " a=") : NULL;
    const uint64_t seed = (uint64_t)golden_number(c->json, "seed", 1);
    int64_t dim[SL_MAX_RANK + 1] = { 0 }, count = 1;
    int rank = 0;
    float *values;

    if (at) {
        char *end;

        at += strlen("shape [");
        while (rank <= SL_MAX_RANK) {
            dim[rank++] = strtoll(at, &end, 10);
            if (*end != ',')
                break;
            at = end + 1;
        }
    }
    if (rank < 2 || dim[0] != 1)
        return sl_fail(err, SL_ERR_DATA, "\"inputs\" does not tell the shape of \"%s\"", name);
    for (int i = 0; i < rank; i++)
        if (dim[i] < 1 || dim[i] > 1 << 16)
            return sl_fail(err, SL_ERR_DATA, "\"inputs\" gives \"%s\" a dimension of %lld", name,
                           (long long)dim[i]);
    for (int i = 1; i < rank; i++)
        count *= dim[i];
    if (dim[1] < least_rows)
        dim[1] = least_rows;
    const sl_tensor shape = sl_tensor_make(NULL, SL_F32, rank - 1, dim + 1);
    values = golden_alloc(c, sl_tensor_count(&shape), sizeof *values, err);
    if (!values)
        return SL_ERR_NO_MEMORY;
    memset(values, 0, sl_tensor_bytes(&shape));
    if (scale)
        sl_synth_f32_scaled(values, name, seed, (float)atof(scale + strlen(" a=")), 0, count);
    else
        sl_synth_f32(values, name, seed, 1, 0, count);
    return golden_put(c, out, dtype, rank - 1, dim + 1, values, err);
}

static sl_status run_full_vae(golden_case *c, generated *net, const char *key, sl_error *err)
{
    const sl_vae_config *config = &net->spec.config.vae;
    const sl_vae_weights *vae =
        net->component ? sl_component_vae(net->component) : &net->weights.vae;
    sl_status status = SL_OK;
    sl_tensor latent, video;

    GOLDEN_TRY(generate_input(c, "in.latent", SL_F32, 0, &latent, err));
    GOLDEN_TRY(
        golden_decode(c, vae, config, &latent, "out.video", NULL, key, NULL, err));
    GOLDEN_TRY(generate_input(c, "in.video", SL_F32, 0, &video, err));
    GOLDEN_TRY(golden_encode(c, vae, config, &video, "out.mu", NULL, key, NULL, err));
done:
    return status;
}

sl_status golden_run_full_vae(golden_case *c, sl_error *err)
{
    const sl_vae_config config = golden_vae_config(c->config);
    static generated net;

    return each_network(c, &net, SL_COMPONENT_VAE, &config, "bf16_psnr_db", run_full_vae, err);
}

static sl_status run_full_t5(golden_case *c, generated *net, const char *key, sl_error *err)
{
    const sl_t5_weights *t5 = net->component ? sl_component_t5(net->component) : &net->weights.t5;

    return golden_encode_text(c, t5, &net->spec.config.t5, NULL, key, NULL, err);
}

sl_status golden_run_full_t5(golden_case *c, sl_error *err)
{
    const sl_t5_config config = golden_t5_config(c->config);
    static generated net;

    return each_network(c, &net, SL_COMPONENT_TEXT_ENCODER, &config, "bf16_rel_l2", run_full_t5,
                        err);
}

/* The case's text has fewer rows than text_len: zeros follow. */
static sl_status run_full_dit(golden_case *c, generated *net, const char *key, sl_error *err)
{
    const sl_dit_config *config = &net->spec.config.dit;
    const sl_dit_weights *dit =
        net->component ? sl_component_dit(net->component) : &net->weights.dit;
    const golden_json *attention = golden_json_get(c->json, "attention");
    const golden_json *inputs = golden_json_get(c->json, "inputs");
    sl_dit_attention_options options = { .mode = SL_ATTENTION_DENSE };
    sl_tensor luts[SL_MAX_LAYERS], latent, text;
    sl_status status = SL_OK;
    golden_array maps;

    if (strncmp(attention->text, "SLA", 3) == 0) {
        GOLDEN_TRY(golden_get(c, "mid.maps", &maps, err));
        for (int64_t i = 0; i < config->num_layers; i++)
            GOLDEN_TRY(golden_make_lut(c, &maps, i, &luts[i], err));
        options = (sl_dit_attention_options){ .mode = SL_ATTENTION_SLA,
                                              .topk_ratio = SL_DEFAULT_TOPK_RATIO,
                                              .luts = luts };
    }
    GOLDEN_TRY(generate_input(c, "in.latent", SL_F32, 0, &latent, err));
    GOLDEN_TRY(generate_input(c, "in.text", golden_act(c), config->text_len, &text, err));
    if (text.rank != 2 || text.dim[0] != config->text_len || text.dim[1] != config->text_dim) {
        status = sl_fail(err, SL_ERR_DATA, "\"in.text\" has another shape than the config");
        goto done;
    }
    GOLDEN_TRY(golden_forward(c, dit, config, &options, &latent, &text,
                              golden_number(inputs, "t", -1), NULL, "out.velocity", key, NULL,
                              err));
done:
    return status;
}

sl_status golden_run_full_dit(golden_case *c, sl_error *err)
{
    const sl_dit_config config = golden_dit_config(c->config);
    const golden_json *attention = golden_json_get(c->json, "attention");
    static generated net;

    if (!golden_json_is(attention, GOLDEN_JSON_STRING))
        return sl_fail(err, SL_ERR_DATA, "the case does not tell its \"attention\"");
    if (strncmp(attention->text, "SLA", 3) != 0 && strncmp(attention->text, "dense", 5) != 0) {
        golden_skip_case(c, "attention \"%s\" is not known", attention->text);
        return SL_OK;
    }
    return each_network(c, &net, SL_COMPONENT_DIT, &config, "bf16_rel_l2", run_full_dit, err);
}
