/* Conversions: the reference's int8 tensors to the bit, other models as they
 * were, and what is refused. */
#include "engine/model/convert_model.h"

#include "base/test.h"
#include "base/test_dir.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/convert.h"
#include "engine/model/model_dir.h"
#include "engine/model/synth.h"
#include "engine/model/test_pth.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reads of a file with this in its path give one bit that was not written. */
static const char *flip_in;

sl_status __real_sl_ckpt_read(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor, size_t offset,
                              void *out, size_t size_bytes, sl_error *err);
sl_status __wrap_sl_ckpt_read(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor, size_t offset,
                              void *out, size_t size_bytes, sl_error *err);
sl_status __wrap_sl_ckpt_read(const sl_ckpt *ckpt, const sl_ckpt_tensor *tensor, size_t offset,
                              void *out, size_t size_bytes, sl_error *err)
{
    const sl_status status = __real_sl_ckpt_read(ckpt, tensor, offset, out, size_bytes, err);

    if (flip_in && size_bytes > 0 && strstr(sl_ckpt_path(ckpt), flip_in))
        ((unsigned char *)out)[size_bytes - 1] ^= 0x10;
    return status;
}

static sl_ckpt *open_golden(const char *file, sl_error *err)
{
    char path[1200];
    sl_ckpt *ckpt = NULL;

    snprintf(path, sizeof path, "%s/golden/%s", sl_test_shared_dir(), file);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    return ckpt;
}

static bool is_first_block(const char *name)
{
    return strncmp(name, "blocks.", 7) != 0 || strncmp(name, "blocks.0.", 9) == 0;
}

/* The case's checkpoint with its first block alone, which is what the int8 case
 * was made of; official: f32 with a 5-D patch embedding. */
static void write_first_block(const char *path, bool official, bool with_projection, sl_error *err)
{
    sl_ckpt *ckpt = open_golden("dit_t2v.ckpt.safetensors", err);
    sl_st_writer *writer = NULL;

    SL_CHECK_OK(sl_st_writer_create(&writer, path, err));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < sl_ckpt_count(ckpt); i++) {
            const sl_ckpt_tensor *t = sl_ckpt_get(ckpt, i);
            const int64_t count = sl_tensor_count(&t->tensor);
            sl_tensor shape = t->tensor;

            if (!is_first_block(t->name) || (!with_projection && strstr(t->name, "proj_l")))
                continue;
            if (official)
                shape.dtype = SL_F32;
            if (official && strcmp(t->name, "patch_embedding.weight") == 0)
                shape = sl_tensor_of(NULL, SL_F32, 5, shape.dim[0], shape.dim[1] / 4, 1, 2, 2);
            if (pass == 0) {
                SL_CHECK_OK(
                    sl_st_writer_declare(writer, t->name, shape.dtype, shape.rank, shape.dim, err));
                continue;
            }
            float *wide = malloc((size_t)count * sizeof *wide);
            SL_CHECK(wide);
            sl_convert(wide, SL_F32, t->tensor.data, t->tensor.dtype, count);
            SL_CHECK_OK(sl_st_writer_write(writer, official ? wide : t->tensor.data,
                                           sl_tensor_bytes(&shape), err));
            free(wide);
        }
    }
    SL_CHECK_OK(sl_st_writer_finish(writer, err));
    sl_st_writer_destroy(writer);
    sl_ckpt_close(ckpt);
}

static bool all_zero(const sl_ckpt_tensor *t)
{
    for (size_t i = 0; i < t->size_bytes; i++)
        if (((const unsigned char *)t->tensor.data)[i] != 0)
            return false;
    return true;
}

/* Two checkpoints with the same tensors to the bit; proj_l of `got` is zero if
 * the source had none. */
static void check_same(const sl_ckpt *want, const sl_ckpt *got, bool with_projection)
{
    SL_CHECK(sl_ckpt_count(want) == sl_ckpt_count(got));
    for (int64_t i = 0; i < sl_ckpt_count(want); i++) {
        const sl_ckpt_tensor *a = sl_ckpt_get(want, i), *b = sl_ckpt_get(got, i);

        SL_CHECK(strcmp(a->name, b->name) == 0);
        SL_CHECK(a->tensor.dtype == b->tensor.dtype);
        SL_CHECK(sl_tensor_same_shape(&a->tensor, &b->tensor));
        if (!with_projection && strstr(a->name, "proj_l"))
            SL_CHECK(all_zero(b));
        else
            SL_CHECK(memcmp(a->tensor.data, b->tensor.data, a->size_bytes) == 0);
    }
}

static void convert(const char *src, const char *dst, sl_convert_target target, sl_error *err)
{
    sl_convert_result result = { .file_count = -1 };

    SL_CHECK_OK(sl_convert_model(src, dst, target, NULL, NULL, &result, err));
    SL_CHECK(result.file_count > 0 && result.left_out == 0);
}

SL_TEST(int8_is_the_references)
{
    sl_ckpt *want, *got = NULL;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    want = open_golden("dit_t2v_int8.ckpt.safetensors", err);
    for (int variant = 0; variant < 4; variant++) {
        const bool official = variant & 1, with_projection = variant < 2;

        write_first_block(at("bf16.safetensors", NULL), official, with_projection, err);
        unlink(at("quant.safetensors", NULL));
        convert(at("bf16.safetensors", NULL), at("quant.safetensors", NULL), SL_CONVERT_QUANT, err);
        SL_CHECK_OK(sl_ckpt_open(&got, at("quant.safetensors", NULL), err));
        check_same(want, got, with_projection);
        sl_ckpt_close(got);
    }
    /* out of a .pth */
    SL_CHECK_OK(sl_ckpt_open(&got, at("bf16.safetensors", NULL), err));
    test_write_pth(at("bf16.pth", NULL), got, NULL);
    sl_ckpt_close(got);
    convert(at("bf16.pth", NULL), at("from_pth.safetensors", NULL), SL_CONVERT_QUANT, err);
    SL_CHECK_OK(sl_ckpt_open(&got, at("from_pth.safetensors", NULL), err));
    check_same(want, got, false);
    sl_ckpt_close(got);

    /* it stays what it is, and is not quantised twice */
    sl_convert_result result;
    convert(at("quant.safetensors", NULL), at("again.safetensors", NULL), SL_CONVERT_SAFETENSORS,
            err);
    SL_CHECK_OK(sl_ckpt_open(&got, at("again.safetensors", NULL), err));
    check_same(want, got, false);
    sl_ckpt_close(got);
    SL_CHECK_STATUS(sl_convert_model(at("quant.safetensors", NULL), at("x.safetensors", NULL),
                                     SL_CONVERT_QUANT, NULL, NULL, &result, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "int8 linears already"));
    SL_CHECK(access(at("x.safetensors", NULL), F_OK) != 0);
    sl_ckpt_close(want);
}

typedef struct {
    size_t calls, last, total;
} progress;

static void on_progress(void *arg, size_t done_bytes, size_t total_bytes)
{
    progress *p = arg;

    SL_CHECK(done_bytes > p->last && done_bytes <= total_bytes);
    p->calls++;
    p->last = done_bytes;
    p->total = total_bytes;
}

static void check_models(const char *a_path, const char *b_path, sl_error *err)
{
    sl_model_dir *a = NULL, *b = NULL;
    int problems = -1;

    SL_CHECK_OK(sl_model_dir_open(&a, a_path, err));
    SL_CHECK_OK(sl_model_dir_open(&b, b_path, err));
    const sl_model_info *was = sl_model_dir_info(a), *is = sl_model_dir_info(b);
    SL_CHECK(strcmp(was->arch->name, is->arch->name) == 0 && is->synthetic == was->synthetic);
    SL_CHECK_OK(sl_model_dir_inspect(b, NULL, NULL, &problems, err));
    SL_CHECK(problems == 0);
    for (int k = 0; k < SL_COMPONENT_COUNT; k++) {
        sl_ckpt *x = NULL, *y = NULL;

        SL_CHECK(!was->files[k] == !is->files[k]);
        if (!was->files[k])
            continue;
        SL_CHECK_OK(sl_ckpt_open(&x, was->files[k], err));
        SL_CHECK_OK(sl_ckpt_open(&y, is->files[k], err));
        check_same(x, y, true);
        sl_ckpt_close(x);
        sl_ckpt_close(y);
    }
    sl_model_dir_close(a);
    sl_model_dir_close(b);
}

SL_TEST(models_become_safetensors)
{
    const sl_synth_options options = { .seed = 3, .max_shard_bytes = 4000000 };
    progress p = { .calls = 0 };
    sl_convert_result result;

    SL_CHECK_OK(sl_synth_model_as(at("i2v", NULL), sl_arch_find("tiny-i2v"), &options, err));
    SL_CHECK_OK(sl_convert_model(at("i2v", NULL), at("a/b/whole", NULL), SL_CONVERT_SAFETENSORS,
                                 on_progress, &p, &result, err));
    SL_CHECK(p.last == p.total && p.total == 2 * result.data_bytes);
    SL_CHECK(result.file_count == 4 && (int64_t)p.calls == 2 * result.tensor_count);
    check_models(at("i2v", NULL), at("a/b/whole", NULL), err);
}

/* Loading int8 from the floats gives what loading the converted file gives. */
static void check_int8_image(const sl_model_info *info, const char *source, sl_component_kind kind,
                             sl_error *err)
{
    const sl_component_spec spec = sl_component_spec_of(info->arch, kind, SL_PRECISION_INT8);
    const size_t image_bytes = sl_component_image_bytes(&spec);
    sl_model_dir *dir = NULL;
    sl_device *device = NULL;
    sl_exec *exec = NULL;
    sl_device_spec device_spec;
    void *images[2];

    SL_CHECK_OK(sl_device_spec_parse("cpu:64MiB", &device_spec, err));
    SL_CHECK_OK(sl_device_create(&device, &device_spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&exec, device, 1, NULL, err));
    SL_CHECK_OK(sl_model_dir_open(&dir, source, err));
    const char *const files[] = { info->files[kind], sl_model_dir_info(dir)->files[kind] };
    for (size_t i = 0; i < SL_COUNT(files); i++) {
        sl_ckpt *ckpt = NULL;

        SL_CHECK(posix_memalign(&images[i], 64, image_bytes) == 0);
        SL_CHECK_OK(sl_ckpt_open(&ckpt, files[i], err));
        SL_CHECK_OK(sl_component_fill_image(images[i], image_bytes, &spec, exec, ckpt, err));
        sl_ckpt_close(ckpt);
    }
    SL_CHECK(memcmp(images[0], images[1], image_bytes) == 0);
    free(images[0]);
    free(images[1]);
    sl_model_dir_close(dir);
    sl_exec_destroy(exec);
    sl_device_destroy(device);
}

/* A whole model: its transformers quantised, the rest as it was, and loadable. */
SL_TEST(models_become_quant)
{
    sl_convert_result result = { .left_out = -1 };
    sl_model_dir *dir = NULL;
    int problems = -1;

    SL_CHECK_OK(sl_synth_model(at("plain", NULL), sl_arch_find("tiny-i2v"), 3, NULL, NULL, err));
    SL_CHECK_OK(sl_convert_model(at("plain", NULL), at("quant", NULL), SL_CONVERT_QUANT, NULL, NULL,
                                 &result, err));
    SL_CHECK(result.left_out == 0);
    SL_CHECK_OK(sl_model_dir_open(&dir, at("quant", NULL), err));
    const sl_model_info *info = sl_model_dir_info(dir);
    SL_CHECK(info->layout == SL_LAYOUT_TURBO_QUANT && strcmp(info->arch->name, "tiny-i2v") == 0);
    SL_CHECK_OK(sl_model_dir_inspect(dir, NULL, NULL, &problems, err));
    SL_CHECK(problems == 0);
    SL_CHECK(!info->files[SL_COMPONENT_DIT] && info->files[SL_COMPONENT_DIT_LOW]);
    for (int k = 0; k < SL_COMPONENT_COUNT; k++)
        if (info->files[k])
            check_int8_image(info, at("plain", NULL), (sl_component_kind)k, err);
    sl_model_dir_close(dir);
}

/* The synthesiser's own layouts: int8 as converting the bf16 files gives it, and
 * text encoder and VAE that several models share. */
SL_TEST(made_up_layouts_are_the_converted_ones)
{
    const sl_arch *row = sl_arch_find("tiny-i2v");
    sl_synth_options options = { .seed = 4, .layout = SL_LAYOUT_TURBO, .threads = 1 };
    sl_convert_result result = { .left_out = -1 };
    progress p = { .calls = 0 };
    struct stat st;
    char turbo[1200], int8[1200]; /* at() keeps the last few only */

    snprintf(turbo, sizeof turbo, "%s", at("turbo", NULL));
    snprintf(int8, sizeof int8, "%s", at("int8", NULL));
    SL_CHECK_OK(sl_synth_model_as(turbo, row, &options, err));
    SL_CHECK_OK(sl_convert_model(turbo, int8, SL_CONVERT_QUANT, NULL, NULL, &result, err));
    options = (sl_synth_options){ .seed = 4,
                                  .layout = SL_LAYOUT_TURBO_QUANT,
                                  .shared = turbo,
                                  .threads = 3,
                                  .progress = on_progress,
                                  .arg = &p };
    SL_CHECK_OK(sl_synth_model_as(at("made", NULL), row, &options, err));
    SL_CHECK(p.last == p.total && p.calls > 0);
    check_models(int8, at("made", NULL), err);
    SL_CHECK(stat(at("made", "models_t5_umt5-xxl-enc-bf16.safetensors"), &st) == 0 &&
             st.st_nlink == 2);
    SL_CHECK(stat(at("made", "Wan2.1_VAE.safetensors"), &st) == 0 && st.st_nlink == 2);
    /* made again: what is shared is not written through */
    options.seed = 5;
    SL_CHECK_STATUS(sl_synth_model_as(at("made", NULL), row, &options, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "has the seed 4, not 5"));
    sl_error_clear(err);
    options.shared = NULL;
    p = (progress){ .calls = 0 };
    SL_CHECK_OK(sl_synth_model_as(at("made", NULL), row, &options, err));
    SL_CHECK(stat(at("turbo", "Wan2.1_VAE.safetensors"), &st) == 0 && st.st_nlink == 1);
    options.seed = 4;
    options.shared = int8; /* has the marker of the model that it is made of */
    p = (progress){ .calls = 0 };
    SL_CHECK_OK(sl_synth_model_as(at("made", NULL), row, &options, err));
    check_models(int8, at("made", NULL), err);
    options.one_expert = true;
    p = (progress){ .calls = 0 };
    SL_CHECK_OK(sl_synth_model_as(at("made", NULL), row, &options, err));
    SL_CHECK(p.last == p.total);
    SL_CHECK(stat(at("made", "low_noise_model/diffusion_pytorch_model.safetensors"), &st) == 0 &&
             st.st_nlink == 2);
    SL_CHECK(stat(at("made", "low_noise_model/config.json"), &st) == 0);
    options.shared = at("absent", NULL);
    SL_CHECK_STATUS(sl_synth_model_as(at("none", NULL), row, &options, err), SL_ERR_NOT_FOUND);
    SL_CHECK(access(at("none", NULL), F_OK) != 0);
}

SL_TEST(refusals_write_nothing)
{
    sl_convert_result result = { .file_count = -1 };
    const char *out = "refused.safetensors";
    sl_arch arch = *sl_arch_find("tiny-t2v");

    SL_CHECK_OK(sl_synth_model(at("t2v", NULL), sl_arch_find("tiny-t2v"), 3, NULL, NULL, err));
    /* there is something already */
    SL_CHECK_STATUS(sl_convert_model(at("t2v", NULL), at("t2v", NULL), SL_CONVERT_SAFETENSORS, NULL,
                                     NULL, &result, err),
                    SL_ERR_EXISTS);
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_convert_model(at("t2v", "Wan2.1_VAE.safetensors"), at("t2v", "config.json"),
                                     SL_CONVERT_SAFETENSORS, NULL, NULL, &result, err),
                    SL_ERR_EXISTS);
    sl_error_clear(err);
    /* no tiles of 128 in a width of 320 */
    arch.dit.ffn_dim = 320;
    SL_CHECK_OK(sl_synth_model(at("odd", NULL), &arch, 3, NULL, NULL, err));
    SL_CHECK_STATUS(sl_convert_model(at("odd", NULL), at("refused", NULL), SL_CONVERT_QUANT, NULL,
                                     NULL, &result, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "cannot be quantised"));
    SL_CHECK(access(at("refused", NULL), F_OK) != 0);
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_convert_model(at("t2v", "Wan2.1_VAE.safetensors"), at(out, NULL),
                                     SL_CONVERT_QUANT, NULL, NULL, &result, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "only transformers"));
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_convert_model(at("t2v", "config.json"), at(out, NULL),
                                     SL_CONVERT_SAFETENSORS, NULL, NULL, &result, err),
                    SL_ERR_DATA);
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_convert_model(at("absent", NULL), at(out, NULL), SL_CONVERT_SAFETENSORS,
                                     NULL, NULL, &result, err),
                    SL_ERR_NOT_FOUND);
    SL_CHECK(access(at(out, NULL), F_OK) != 0 && result.file_count == -1);
}

SL_TEST(what_reads_back_otherwise_is_removed)
{
    sl_convert_result result = { .file_count = -1 };

    SL_CHECK_OK(sl_synth_model(at("flip", NULL), sl_arch_find("tiny-t2v"), 3, NULL, NULL, err));
    flip_in = "flipped";
    const sl_status status =
        sl_convert_model(at("flip", "Wan2.1_VAE.safetensors"), at("flipped.safetensors", NULL),
                         SL_CONVERT_SAFETENSORS, NULL, NULL, &result, err);
    flip_in = NULL;
    SL_CHECK_STATUS(status, SL_ERR_IO);
    SL_CHECK(strstr(err->message, "flipped.safetensors\" is not what was written: tensor \""));
    SL_CHECK(access(at("flipped.safetensors", NULL), F_OK) != 0 && result.file_count == -1);
}

SL_TEST(targets_have_names)
{
    sl_convert_target target = SL_CONVERT_COUNT;

    for (int i = 0; i < SL_CONVERT_COUNT; i++)
        SL_CHECK(sl_convert_parse(sl_convert_name((sl_convert_target)i), &target) &&
                 (int)target == i);
    SL_CHECK(!sl_convert_parse("pth", &target));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(int8_is_the_references), SL_RUN(models_become_safetensors),
        SL_RUN(models_become_quant),    SL_RUN(made_up_layouts_are_the_converted_ones),
        SL_RUN(refusals_write_nothing), SL_RUN(what_reads_back_otherwise_is_removed),
        SL_RUN(targets_have_names)
    };

    return cmocka_run_group_tests(tests, make_root, remove_root);
}
