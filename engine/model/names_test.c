/* Models under the names and in the folders of other packagers: recognised,
 * complete, and the same weights to the byte. */
#include "engine/model/names.h"

#include "base/file.h"
#include "base/test.h"
#include "base/test_dir.h"
#include "engine/model/component.h"
#include "engine/model/inspect.h"
#include "engine/model/model_dir.h"
#include "engine/model/synth.h"
#include "engine/model/test_pth.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- names, written down a second time, without the tables ---- */

typedef void renamer(char *out, const char *in);

static void put_name(char *out, const char *fmt, ...) SL_PRINTF(2, 3);
static void put_name(char *out, const char *fmt, ...)
{
    va_list va;

    va_start(va, fmt);
    SL_CHECK(vsnprintf(out, TEST_NAME_BYTES, fmt, va) < TEST_NAME_BYTES);
    va_end(va);
}

static bool starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

static void comfy(char *out, const char *in)
{
    put_name(out, "model.diffusion_model.%s", in);
}

static void training(char *out, const char *in)
{
    int block, used = 0;

    if (sscanf(in, "blocks.%d.%n", &block, &used) == 1 && used > 0)
        put_name(out, "net.blocks.%d._checkpoint_wrapped_module.%s", block, in + used);
    else
        put_name(out, "net.%s", in);
}

static void diffusers_dit(char *out, const char *in)
{
    static const char *const tops[][2] = {
        { "time_embedding.0.", "condition_embedder.time_embedder.linear_1." },
        { "time_embedding.2.", "condition_embedder.time_embedder.linear_2." },
        { "text_embedding.0.", "condition_embedder.text_embedder.linear_1." },
        { "text_embedding.2.", "condition_embedder.text_embedder.linear_2." },
        { "time_projection.1.", "condition_embedder.time_proj." },
        { "head.modulation", "scale_shift_table" },
        { "head.head.", "proj_out." },
    };
    int block, used = 0;
    char which, tail[64];

    put_name(out, "%s", in);
    for (size_t i = 0; i < SL_COUNT(tops); i++)
        if (starts(in, tops[i][0]))
            put_name(out, "%s%s", tops[i][1], in + strlen(tops[i][0]));
    if (sscanf(in, "blocks.%d.%n", &block, &used) != 1 || used == 0)
        return;
    in += used;
    const int attn = starts(in, "self_attn.") ? 1 : starts(in, "cross_attn.") ? 2 : 0;
    const char *part = attn ? strchr(in, '.') + 1 : in;
    if (attn && sscanf(part, "%c.%63s", &which, tail) == 2)
        put_name(out, "blocks.%d.attn%d.to_%s.%s", block, attn,
                 which == 'o' ? "out.0" : (char[]){ which, '\0' }, tail);
    else if (attn)
        put_name(out, "blocks.%d.attn%d.%s", block, attn, part);
    else if (strcmp(in, "modulation") == 0)
        put_name(out, "blocks.%d.scale_shift_table", block);
    else if (sscanf(in, "ffn.0.%63s", tail) == 1)
        put_name(out, "blocks.%d.ffn.net.0.proj.%s", block, tail);
    else if (sscanf(in, "ffn.2.%63s", tail) == 1)
        put_name(out, "blocks.%d.ffn.net.2.%s", block, tail);
    else if (sscanf(in, "norm3.%63s", tail) == 1)
        put_name(out, "blocks.%d.norm2.%s", block, tail);
    else
        SL_CHECK(!"an official name that diffusers has no name for");
}

static void vae_leaf(char *out, const char *in)
{
    static const char *const leaves[][2] = {
        { "residual.0.", "norm1." }, { "residual.2.", "conv1." },       { "residual.3.", "norm2." },
        { "residual.6.", "conv2." }, { "shortcut.", "conv_shortcut." },
    };

    put_name(out, "%s", in);
    for (size_t i = 0; i < SL_COUNT(leaves); i++)
        if (starts(in, leaves[i][0]))
            put_name(out, "%s%s", leaves[i][1], in + strlen(leaves[i][0]));
}

static void diffusers_vae(char *out, const char *in)
{
    static const char *const middles[] = { "resnets.0", "attentions.0", "resnets.1" };
    char half[16], leaf[TEST_NAME_BYTES];
    int n, used = 0;

    if (starts(in, "conv1.")) {
        put_name(out, "quant_conv.%s", in + 6);
    } else if (starts(in, "conv2.")) {
        put_name(out, "post_quant_conv.%s", in + 6);
    } else if (sscanf(in, "%7[a-z].conv1.%n", half, &used) == 1 && used > 0) {
        put_name(out, "%s.conv_in.%s", half, in + used);
    } else if (sscanf(in, "%7[a-z].head.%d.%n", half, &n, &used) == 2 && used > 0) {
        put_name(out, "%s.%s.%s", half, n == 0 ? "norm_out" : "conv_out", in + used);
    } else if (sscanf(in, "%7[a-z].middle.%d.%n", half, &n, &used) == 2 && used > 0) {
        vae_leaf(leaf, in + used);
        put_name(out, "%s.mid_block.%s.%s", half, middles[n], leaf);
    } else if (sscanf(in, "encoder.downsamples.%d.%n", &n, &used) == 1 && used > 0) {
        vae_leaf(leaf, in + used);
        put_name(out, "encoder.down_blocks.%d.%s", n, leaf);
    } else {
        SL_CHECK(sscanf(in, "decoder.upsamples.%d.%n", &n, &used) == 1 && used > 0);
        vae_leaf(leaf, in + used);
        if (n % 4 == 3)
            put_name(out, "decoder.up_blocks.%d.upsamplers.0.%s", n / 4, leaf);
        else
            put_name(out, "decoder.up_blocks.%d.resnets.%d.%s", n / 4, n % 4, leaf);
    }
}

static void huggingface_t5(char *out, const char *in)
{
    static const char *const parts[][2] = {
        { "norm1.weight", "0.layer_norm.weight" },
        { "attn.q.weight", "0.SelfAttention.q.weight" },
        { "attn.k.weight", "0.SelfAttention.k.weight" },
        { "attn.v.weight", "0.SelfAttention.v.weight" },
        { "attn.o.weight", "0.SelfAttention.o.weight" },
        { "pos_embedding.embedding.weight", "0.SelfAttention.relative_attention_bias.weight" },
        { "norm2.weight", "1.layer_norm.weight" },
        { "ffn.gate.0.weight", "1.DenseReluDense.wi_0.weight" },
        { "ffn.fc1.weight", "1.DenseReluDense.wi_1.weight" },
        { "ffn.fc2.weight", "1.DenseReluDense.wo.weight" },
    };
    int block, used = 0;

    if (strcmp(in, "token_embedding.weight") == 0)
        put_name(out, "shared.weight");
    else if (strcmp(in, "norm.weight") == 0)
        put_name(out, "encoder.final_layer_norm.weight");
    else
        SL_CHECK(sscanf(in, "blocks.%d.%n", &block, &used) == 1 && used > 0);
    for (size_t i = 0; used > 0 && i < SL_COUNT(parts); i++)
        if (strcmp(in + used, parts[i][0]) == 0)
            put_name(out, "encoder.block.%d.layer.%s", block, parts[i][1]);
}

static void huggingface_t5_encoder(char *out, const char *in)
{
    huggingface_t5(out, in);
    if (strcmp(out, "shared.weight") == 0)
        put_name(out, "encoder.embed_tokens.weight");
}

/* ---- files ---- */

/* Beside the network's own tensors. */
typedef struct {
    const char *name;
    sl_dtype dtype;
} extra_tensor;

static void write_st(const char *path, const sl_ckpt *from, renamer *rename,
                     const extra_tensor *extra, sl_error *err)
{
    sl_st_writer *writer = NULL;
    const int64_t four = 4;
    char name[TEST_NAME_BYTES];

    SL_CHECK_OK(sl_st_writer_create(&writer, path, err));
    for (int64_t i = 0; i < sl_ckpt_count(from); i++) {
        const sl_ckpt_tensor *t = sl_ckpt_get(from, i);

        put_name(name, "%s", t->name);
        if (rename)
            rename(name, t->name);
        SL_CHECK_OK(sl_st_writer_declare(writer, name, t->tensor.dtype, t->tensor.rank,
                                         t->tensor.dim, err));
    }
    if (extra)
        SL_CHECK_OK(sl_st_writer_declare(writer, extra->name, extra->dtype, 1, &four, err));
    for (int64_t i = 0; i < sl_ckpt_count(from); i++)
        SL_CHECK_OK(sl_st_writer_write(writer, sl_ckpt_get(from, i)->tensor.data,
                                       sl_ckpt_get(from, i)->size_bytes, err));
    if (extra)
        SL_CHECK_OK(
            sl_st_writer_write(writer, (char[16]){ 0 }, 4 * sl_dtype_bytes(extra->dtype), err));
    SL_CHECK_OK(sl_st_writer_finish(writer, err));
    sl_st_writer_destroy(writer);
}

/* One file of the official model into another under its names. */
typedef struct {
    const char *from, *to;
    renamer *rename;
} file_move;

static void write_model(const char *model, const char *name, const file_move *moves, size_t count,
                        sl_error *err)
{
    for (size_t i = 0; i < count; i++) {
        const char *to = at(name, moves[i].to);
        const size_t n = strlen(to);
        char folder[2048];
        sl_ckpt *ckpt = NULL;

        snprintf(folder, sizeof folder, "%s", to);
        *strrchr(folder, '/') = '\0';
        SL_CHECK_OK(sl_make_directory(folder, 0755, err));
        SL_CHECK_OK(sl_ckpt_open(&ckpt, at(model, moves[i].from), err));
        if (strcmp(to + n - 4, ".pth") == 0)
            test_write_pth(to, ckpt, moves[i].rename);
        else
            write_st(to, ckpt, moves[i].rename, NULL, err);
        sl_ckpt_close(ckpt);
    }
    SL_CHECK(link(at(model, "google/umt5-xxl/spiece.model"), at(name, "tokenizer.model")) == 0);
}

static void *image_of(sl_exec *exec, const sl_model_info *info, sl_component_kind kind,
                      size_t *image_bytes, sl_error *err)
{
    const sl_component_spec spec = sl_component_spec_of(info->arch, kind, SL_PRECISION_BF16);
    void *image = NULL;
    sl_ckpt *ckpt = NULL;

    *image_bytes = sl_component_image_bytes(&spec);
    SL_CHECK(posix_memalign(&image, 64, *image_bytes) == 0);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, info->files[kind], err));
    SL_CHECK_OK(sl_component_fill_image(image, *image_bytes, &spec, exec, ckpt, err));
    sl_ckpt_close(ckpt);
    return image;
}

static void say(void *arg, const char *line)
{
    (void)arg;
    print_message("%s\n", line);
}

/* Same architecture, no problem, and every component's image is the same. */
static void check_same(const char *model, const char *name, sl_error *err)
{
    sl_model_dir *a = NULL, *b = NULL;
    sl_device *device = NULL;
    sl_exec *exec = NULL;
    sl_device_spec spec;
    int problems = -1;

    SL_CHECK_OK(sl_device_spec_parse("cpu:64MiB", &spec, err));
    SL_CHECK_OK(sl_device_create(&device, &spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&exec, device, 1, NULL, err));
    SL_CHECK_OK(sl_model_dir_open(&a, at(model, NULL), err));
    SL_CHECK_OK(sl_model_dir_open(&b, at(name, NULL), err));
    const sl_model_info *was = sl_model_dir_info(a), *is = sl_model_dir_info(b);
    SL_CHECK(strcmp(was->arch->name, is->arch->name) == 0);
    SL_CHECK_OK(sl_model_dir_inspect(b, say, NULL, &problems, err));
    SL_CHECK(problems == 0);
    for (int k = 0; k < SL_COMPONENT_COUNT; k++) {
        size_t was_bytes, is_bytes;

        SL_CHECK(!was->files[k] == !is->files[k]);
        if (!was->files[k])
            continue;
        void *x = image_of(exec, was, (sl_component_kind)k, &was_bytes, err);
        void *y = image_of(exec, is, (sl_component_kind)k, &is_bytes, err);
        SL_CHECK(was_bytes == is_bytes && memcmp(x, y, was_bytes) == 0);
        free(x);
        free(y);
    }
    sl_model_dir_close(a);
    sl_model_dir_close(b);
    sl_exec_destroy(exec);
    sl_device_destroy(device);
}

static const char dit_file[] = "diffusion_pytorch_model.safetensors";
static const char vae_file[] = "Wan2.1_VAE.safetensors";
static const char t5_file[] = "models_t5_umt5-xxl-enc-bf16.safetensors";
static const char high_file[] = "high_noise_model/diffusion_pytorch_model.safetensors";
static const char low_file[] = "low_noise_model/diffusion_pytorch_model.safetensors";

static void make_models(sl_error *err)
{
    static bool made;

    if (made)
        return;
    SL_CHECK_OK(sl_synth_model(at("t2v", NULL), sl_arch_find("tiny-t2v"), 3, NULL, NULL, err));
    SL_CHECK_OK(sl_synth_model(at("i2v", NULL), sl_arch_find("tiny-i2v"), 3, NULL, NULL, err));
    made = true;
}

static void put_config(const char *name, const char *file, const char *text)
{
    FILE *f = fopen(at(name, file), "w");

    SL_CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

SL_TEST(pth_files)
{
    const file_move moves[] = { { dit_file, "TurboWan2.1-T2V-480P.pth", training },
                                { vae_file, "Wan2.1_VAE.pth", NULL },
                                { t5_file, "models_t5_umt5-xxl-enc-bf16.pth", NULL } };

    make_models(err);
    write_model("t2v", "pth", moves, SL_COUNT(moves), err);
    SL_CHECK(link(at("t2v", "config.json"), at("pth", "config.json")) == 0);
    check_same("t2v", "pth", err);
}

SL_TEST(diffusers_pipeline)
{
    const file_move moves[] = {
        { dit_file, "transformer/diffusion_pytorch_model.safetensors", diffusers_dit },
        { vae_file, "vae/diffusion_pytorch_model.safetensors", diffusers_vae },
        { t5_file, "text_encoder/model.safetensors", huggingface_t5_encoder }
    };

    make_models(err);
    write_model("t2v", "diffusers", moves, SL_COUNT(moves), err);
    SL_CHECK(link(at("t2v", "config.json"), at("diffusers", "transformer/config.json")) == 0);
    check_same("t2v", "diffusers", err);
}

SL_TEST(diffusers_experts)
{
    const file_move moves[] = {
        { high_file, "transformer/diffusion_pytorch_model.safetensors", diffusers_dit },
        { low_file, "transformer_2/diffusion_pytorch_model.safetensors", diffusers_dit },
        { vae_file, "vae/diffusion_pytorch_model.safetensors", diffusers_vae },
        { t5_file, "text_encoder/model.safetensors", huggingface_t5 }
    };

    make_models(err);
    write_model("i2v", "experts", moves, SL_COUNT(moves), err);
    put_config("experts", "transformer/config.json",
               "{\"_class_name\": \"WanTransformer3DModel\", \"in_channels\": 36, "
               "\"out_channels\": 16, \"num_attention_heads\": 99}");
    sl_model_dir *dir = NULL;
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("experts", NULL), err), SL_ERR_DATA);
    sl_error_clear(err); /* 99 heads: the keys of diffusers are read */
    unlink(at("experts", "transformer/config.json"));
    SL_CHECK(link(at("i2v", "high_noise_model/config.json"), at("experts", "config.json")) == 0);
    check_same("i2v", "experts", err);
}

SL_TEST(repackaged_single_files)
{
    const file_move moves[] = { { dit_file, "wan2.1_t2v_fp32.safetensors", comfy },
                                { vae_file, "wan_2.1_vae.safetensors", NULL },
                                { t5_file, "umt5_xxl.safetensors", huggingface_t5 } };
    const extra_tensor tokenizer = { "spiece_model", SL_U8 };
    sl_ckpt *ckpt = NULL;

    make_models(err);
    write_model("t2v", "comfy", moves, SL_COUNT(moves), err);
    SL_CHECK(link(at("t2v", "config.json"), at("comfy", "config.json")) == 0);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, at("t2v", t5_file), err));
    write_st(at("comfy", "umt5_xxl.safetensors"), ckpt, huggingface_t5, &tokenizer, err);
    sl_ckpt_close(ckpt);
    check_same("t2v", "comfy", err);
}

SL_TEST(experts_by_their_names_alone)
{
    const file_move moves[] = { { low_file, "TurboWan2.2-I2V-A14B-low-720P.pth", NULL },
                                { high_file, "TurboWan2.2-I2V-A14B-High-720P.pth", NULL },
                                { vae_file, "Wan2.1_VAE.pth", NULL },
                                { t5_file, "models_t5_umt5-xxl-enc-bf16.pth", NULL } };
    sl_model_dir *dir = NULL;

    make_models(err);
    write_model("i2v", "named", moves, SL_COUNT(moves), err);
    SL_CHECK(link(at("i2v", "high_noise_model/config.json"), at("named", "config.json")) == 0);
    check_same("i2v", "named", err);

    /* a third one is one too many, and names that do not tell are no names */
    SL_CHECK(link(at("named", "TurboWan2.2-I2V-A14B-low-720P.pth"), at("named", "x.pth")) == 0);
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("named", NULL), err), SL_ERR_DATA);
    sl_error_clear(err);
    unlink(at("named", "TurboWan2.2-I2V-A14B-low-720P.pth"));
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("named", NULL), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "x.pth") && strstr(err->message, "both a dit"));
}

SL_TEST(fp8_is_refused)
{
    static const extra_tensor marks[] = { { "scaled_fp8", SL_F8_E4M3 },
                                          { "blocks.0.self_attn.q.scale_weight", SL_F32 },
                                          { "stray", SL_F8_E5M2 } };
    sl_model_dir *dir = NULL;
    sl_ckpt *ckpt = NULL;

    make_models(err);
    SL_CHECK_OK(sl_make_directory(at("fp8", NULL), 0755, err));
    SL_CHECK_OK(sl_ckpt_open(&ckpt, at("t2v", dit_file), err));
    for (size_t i = 0; i < SL_COUNT(marks); i++) {
        write_st(at("fp8", "wan.safetensors"), ckpt, comfy, &marks[i], err);
        SL_CHECK_STATUS(sl_model_dir_open(&dir, at("fp8", NULL), err), SL_ERR_DATA);
        SL_CHECK(strstr(err->message, "fp8/wan.safetensors") &&
                 strstr(err->message, marks[i].name) && strstr(err->message, "8-bit floats"));
        sl_error_clear(err);
    }
    sl_ckpt_close(ckpt);
}

SL_TEST(a_missing_tensor_has_the_files_name)
{
    char name[SL_NAME_BYTES];
    sl_ckpt *ckpt = NULL;

    make_models(err);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, at("t2v", dit_file), err));
    write_st(at("one.safetensors", NULL), ckpt, diffusers_dit, NULL, err);
    SL_CHECK(strcmp(sl_names_style(ckpt), "official") == 0);
    SL_CHECK(strcmp(sl_names_in_file(ckpt, "blocks.0.norm3.bias", name), "blocks.0.norm3.bias") ==
             0);
    sl_ckpt_close(ckpt);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, at("one.safetensors", NULL), err));
    SL_CHECK(strcmp(sl_names_style(ckpt), "diffusers") == 0);
    sl_names_in_file(ckpt, "blocks.77.self_attn.o.bias", name);
    SL_CHECK(strcmp(name, "blocks.77.attn1.to_out.0.bias") == 0);
    SL_CHECK(!sl_names_find(ckpt, "blocks.77.self_attn.o.bias"));
    SL_CHECK(sl_names_find(ckpt, "blocks.0.norm3.bias") ==
             sl_ckpt_find(ckpt, "blocks.0.norm2.bias"));
    sl_ckpt_close(ckpt);
}

/* Everything inspection says about one file. */
typedef struct {
    char text[4096];
    size_t used;
} lines;

static void collect(void *arg, const char *line)
{
    lines *l = arg;

    l->used += (size_t)snprintf(l->text + l->used, sizeof l->text - l->used, "%s\n", line);
    SL_CHECK(l->used < sizeof l->text);
}

SL_TEST(single_files_are_inspected)
{
    const extra_tensor stray = { "blocks.0.norm3.weight", SL_F32 }; /* the official name */
    sl_ckpt_summary s;
    sl_ckpt *ckpt = NULL;
    lines l = { .used = 0 };
    int problems = -1;

    make_models(err);
    SL_CHECK_OK(sl_ckpt_summarise(&s, at("t2v", dit_file), NULL, err));
    SL_CHECK(s.spec.kind == SL_COMPONENT_DIT && s.layout == SL_LAYOUT_OFFICIAL);
    SL_CHECK(s.spec.config.dit.dim == 256 && s.spec.config.dit.text_len == 64);
    SL_CHECK(s.by_dtype[SL_F32].tensor_count == s.tensor_count && s.tensor_count > 100);
    SL_CHECK(s.by_dtype[SL_F32].data_bytes == s.data_bytes && s.data_bytes > 0);
    SL_CHECK_OK(sl_ckpt_summarise(&s, at("t2v", t5_file), NULL, err));
    SL_CHECK(s.spec.kind == SL_COMPONENT_TEXT_ENCODER && strcmp(s.naming, "official") == 0);
    SL_CHECK(s.by_dtype[SL_BF16].tensor_count + s.by_dtype[SL_F32].tensor_count == s.tensor_count);

    SL_CHECK_OK(sl_ckpt_open(&ckpt, at("t2v", dit_file), err));
    write_st(at("stray.safetensors", NULL), ckpt, diffusers_dit, &stray, err);
    sl_ckpt_close(ckpt);
    SL_CHECK_OK(sl_ckpt_summarise(&s, at("stray.safetensors", NULL), NULL, err));
    SL_CHECK(strcmp(s.naming, "diffusers") == 0);
    SL_CHECK_OK(sl_ckpt_inspect(at("stray.safetensors", NULL), collect, &l, &problems, err));
    SL_CHECK(problems == 1);
    SL_CHECK(strcmp(l.text, "dit: unexpected tensor \"blocks.0.norm3.weight\"\n") == 0);
    SL_CHECK_STATUS(sl_ckpt_summarise(&s, at("t2v", "config.json"), NULL, err), SL_ERR_DATA);
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_ckpt_inspect(at("absent", NULL), NULL, NULL, &problems, err),
                    SL_ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = { SL_RUN(pth_files),
                                        SL_RUN(diffusers_pipeline),
                                        SL_RUN(diffusers_experts),
                                        SL_RUN(repackaged_single_files),
                                        SL_RUN(experts_by_their_names_alone),
                                        SL_RUN(fp8_is_refused),
                                        SL_RUN(single_files_are_inspected),
                                        SL_RUN(a_missing_tensor_has_the_files_name) };

    return cmocka_run_group_tests(tests, make_root, remove_root);
}
