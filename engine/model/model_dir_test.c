/* Synthetic models on disk: written, recognised, inspected, loaded, broken. */
#include "engine/model/model_dir.h"

#include "base/test.h"
#include "base/test_alloc.h"
#include "base/test_dir.h"
#include "engine/model/synth.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    SL_CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
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

static void synth(const char *name, const char *arch, uint64_t seed, sl_error *err)
{
    SL_CHECK_OK(sl_synth_model(at(name, NULL), sl_arch_find(arch), seed, NULL, NULL, err));
}

static sl_model_dir *open_dir(const char *name, sl_error *err)
{
    sl_model_dir *dir = NULL;

    SL_CHECK_OK(sl_model_dir_open(&dir, at(name, NULL), err));
    return dir;
}

typedef struct {
    char text[8192];
    size_t used;
} lines;

static void collect(void *arg, const char *line)
{
    lines *l = arg;

    l->used += (size_t)snprintf(l->text + l->used, sizeof l->text - l->used, "%s\n", line);
    SL_CHECK(l->used < sizeof l->text);
}

static int inspect(const char *name, lines *l, sl_error *err)
{
    sl_model_dir *dir = open_dir(name, err);
    int problems = -1;

    *l = (lines){ .used = 0 };
    SL_CHECK_OK(sl_model_dir_inspect(dir, collect, l, &problems, err));
    sl_model_dir_close(dir);
    return problems;
}

/* Every component of a directory onto a device and off again. */
static void load_all(const sl_model_info *info, sl_precision precision, sl_error *err)
{
    sl_device *device = NULL;
    sl_exec *exec = NULL;
    sl_device_spec spec;
    sl_device_stats stats;
    int loaded = 0;

    SL_CHECK_OK(sl_device_spec_parse("cpu:256MiB", &spec, err));
    SL_CHECK_OK(sl_device_create(&device, &spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&exec, device, 2, NULL, err));
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        sl_ckpt *ckpt = NULL;
        sl_component *component = NULL;

        if (!info->files[kind])
            continue;
        const sl_component_spec cs =
            sl_component_spec_of(info->arch, (sl_component_kind)kind, precision);
        SL_CHECK_OK(sl_ckpt_open(&ckpt, info->files[kind], err));
        SL_CHECK_OK(sl_component_load(&component, &cs, device, exec, ckpt, err));
        sl_ckpt_close(ckpt); /* weights live on the device */
        SL_CHECK(sl_component_unexpected(component) == 0);
        SL_CHECK(sl_component_mapped_bytes(component) == sl_component_plan_bytes(&cs));
        sl_device_get_stats(device, &stats);
        SL_CHECK(stats.mapped_bytes ==
                 sl_exec_workspace_bytes(exec) + sl_component_plan_bytes(&cs));
        sl_component_destroy(component);
        sl_device_get_stats(device, &stats);
        SL_CHECK(stats.mapped_bytes == sl_exec_workspace_bytes(exec));
        loaded++;
    }
    SL_CHECK(loaded == 2 + info->arch->expert_count);
    sl_exec_destroy(exec);
    sl_device_destroy(device);
}

SL_TEST(tiny_models_round_trip)
{
    static const char *const names[] = { "tiny-t2v", "tiny-i2v" };

    for (size_t i = 0; i < SL_COUNT(names); i++) {
        const sl_arch *row = sl_arch_find(names[i]);
        progress p = { .calls = 0 };
        lines l;

        SL_CHECK_OK(sl_synth_model(at(names[i], NULL), row, 5, on_progress, &p, err));
        SL_CHECK(p.last == p.total && p.total > 0);
        sl_model_dir *dir = open_dir(names[i], err);
        const sl_model_info *info = sl_model_dir_info(dir);
        SL_CHECK(strcmp(info->name, names[i]) == 0);
        SL_CHECK(strcmp(info->arch->name, names[i]) == 0);
        SL_CHECK(info->arch != row && info->arch->dit.text_len == 64);
        SL_CHECK(info->layout == SL_LAYOUT_OFFICIAL && info->synthetic);
        SL_CHECK(info->file_bytes == p.total);
        SL_CHECK(info->tokenizer && access(info->tokenizer, R_OK) == 0);
        SL_CHECK((info->files[SL_COMPONENT_DIT] != NULL) == (i == 0));
        SL_CHECK((info->files[SL_COMPONENT_DIT_HIGH] != NULL) == (i == 1));
        load_all(info, SL_PRECISION_F32, err);
        load_all(info, SL_PRECISION_BF16, err);
        sl_model_dir_close(dir);
        if (inspect(names[i], &l, err) != 0)
            fail_msg("%s", l.text);
    }
}

/* The generated values reach the device: experts differ by their seed. */
SL_TEST(experts_have_their_own_seeds)
{
    static const char name[] = "blocks.1.ffn.0.weight";
    const sl_arch *row = sl_arch_find("tiny-i2v");

    synth("seeds", "tiny-i2v", 11, err);
    sl_model_dir *dir = open_dir("seeds", err);
    for (uint64_t e = 0; e < 2; e++) {
        sl_ckpt *ckpt = NULL;
        float want[64];

        SL_CHECK_OK(sl_ckpt_open(
            &ckpt, sl_model_dir_info(dir)->files[e ? SL_COMPONENT_DIT_LOW : SL_COMPONENT_DIT_HIGH],
            err));
        sl_synth_f32(want, name, 11 + e, row->dit.dim, 0, 64);
        SL_CHECK(memcmp(sl_ckpt_find(ckpt, name)->tensor.data, want, sizeof want) == 0);
        sl_ckpt_close(ckpt);
    }
    sl_model_dir_close(dir);
}

SL_TEST(synth_overwrites_only_its_own)
{
    SL_CHECK(mkdir(at("real", NULL), 0755) == 0);
    write_text(at("real", "Wan2.1_VAE.safetensors"), "precious");
    SL_CHECK_STATUS(sl_synth_model(at("real", NULL), sl_arch_find("tiny-t2v"), 1, NULL, NULL, err),
                    SL_ERR_EXISTS);
    sl_error_clear(err);
    FILE *f = fopen(at("real", "Wan2.1_VAE.safetensors"), "r");
    char text[16] = "";
    SL_CHECK(f && fgets(text, sizeof text, f) && strcmp(text, "precious") == 0);
    fclose(f);

    synth("again", "tiny-i2v", 1, err); /* another row over it leaves no experts behind */
    synth("again", "tiny-t2v", 2, err);
    sl_model_dir *dir = open_dir("again", err);
    SL_CHECK(strcmp(sl_model_dir_info(dir)->arch->name, "tiny-t2v") == 0);
    sl_model_dir_close(dir);
}

SL_TEST(synth_refuses_a_full_disk_first)
{
    sl_arch huge = *sl_arch_find("wan2.1-t2v-14b");

    huge.dit.dim = 1 << 16; /* some 10 TB */
    huge.dit.ffn_dim = 1 << 18;
    huge.dit.num_heads = 512;
    SL_CHECK_STATUS(sl_synth_model(at("huge", NULL), &huge, 1, NULL, NULL, err), SL_ERR_TOO_LARGE);
    SL_CHECK(strstr(err->message, "needs") && strstr(err->message, "free"));
}

SL_TEST(dimensions_come_from_the_files)
{
    sl_arch arch = *sl_arch_find("tiny-t2v");

    arch.dit.num_layers = 3;
    arch.dit.ffn_dim = 320;
    arch.vae.dim = 8;
    arch.vae.num_res_blocks = 1;
    arch.vae.temporal_down[0] = true;
    arch.t5.num_layers = 1;
    SL_CHECK_OK(sl_synth_model(at("custom", NULL), &arch, 1, NULL, NULL, err));
    sl_model_dir *dir = open_dir("custom", err);
    const sl_arch *got = sl_model_dir_info(dir)->arch;
    SL_CHECK(strcmp(got->name, "custom") == 0);
    SL_CHECK(got->dit.num_layers == 3 && got->dit.ffn_dim == 320 && got->dit.text_len == 64);
    SL_CHECK(got->vae.dim == 8 && got->vae.num_res_blocks == 1 && got->vae.temporal_down[0]);
    SL_CHECK(got->vae.dim_mult[3] == 4 && got->t5.num_layers == 1 && got->t5.num_heads == 4);
    SL_CHECK(got->task == SL_TASK_T2V && got->sigma_max == 80);
    load_all(sl_model_dir_info(dir), SL_PRECISION_F32, err);
    sl_model_dir_close(dir);
}

SL_TEST(files_are_known_by_their_contents)
{
    sl_model_dir *dir;

    synth("renamed", "tiny-t2v", 1, err);
    SL_CHECK(rename(at("renamed", "diffusion_pytorch_model.safetensors"),
                    at("renamed", "a.safetensors")) == 0);
    SL_CHECK(rename(at("renamed", "Wan2.1_VAE.safetensors"), at("renamed", "b.safetensors")) == 0);
    SL_CHECK(rename(at("renamed", "models_t5_umt5-xxl-enc-bf16.safetensors"),
                    at("renamed", "c.safetensors")) == 0);
    SL_CHECK(rename(at("renamed", "google/umt5-xxl/spiece.model"),
                    at("renamed", "tokenizer.model")) == 0);
    dir = open_dir("renamed", err);
    SL_CHECK(strcmp(sl_model_dir_info(dir)->arch->name, "tiny-t2v") == 0);
    SL_CHECK(strstr(sl_model_dir_info(dir)->files[SL_COMPONENT_VAE], "/b.safetensors"));
    SL_CHECK(strstr(sl_model_dir_info(dir)->tokenizer, "/tokenizer.model"));
    sl_model_dir_close(dir);

    /* a second transformer: which one is meant? */
    SL_CHECK(link(at("renamed", "a.safetensors"), at("renamed", "z.safetensors")) == 0);
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("renamed", NULL), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "a.safetensors\" and") && strstr(err->message, "both a dit"));
    sl_error_clear(err);
    /* unless one of them has the published name */
    SL_CHECK(rename(at("renamed", "z.safetensors"),
                    at("renamed", "diffusion_pytorch_model.safetensors")) == 0);
    SL_CHECK(rename(at("renamed", "a.safetensors"), at("renamed", "z.safetensors")) == 0);
    dir = open_dir("renamed", err);
    SL_CHECK(strstr(sl_model_dir_info(dir)->files[SL_COMPONENT_DIT], "diffusion_pytorch_model."));
    sl_model_dir_close(dir);
}

/* Copies a checkpoint with a prefix on every name, without `skip` and with one
 * tensor more. */
static void rewrite(const char *from, const char *to, const char *prefix, const char *skip,
                    const char *extra, sl_error *err)
{
    sl_ckpt *ckpt = NULL;
    sl_st_writer *writer = NULL;
    const int64_t one = 1;

    SL_CHECK_OK(sl_ckpt_open(&ckpt, from, err));
    SL_CHECK_OK(sl_st_writer_create(&writer, to, err));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < sl_ckpt_count(ckpt); i++) {
            const sl_ckpt_tensor *t = sl_ckpt_get(ckpt, i);
            char name[256];

            if (skip && strcmp(t->name, skip) == 0)
                continue;
            snprintf(name, sizeof name, "%s%s", prefix, t->name);
            if (pass == 0)
                SL_CHECK_OK(sl_st_writer_declare(writer, name, t->tensor.dtype, t->tensor.rank,
                                                 t->tensor.dim, err));
            else
                SL_CHECK_OK(sl_st_writer_write(writer, t->tensor.data, t->size_bytes, err));
        }
        if (extra && pass == 0)
            SL_CHECK_OK(sl_st_writer_declare(writer, extra, SL_U8, 1, &one, err));
        else if (extra)
            SL_CHECK_OK(sl_st_writer_write(writer, "x", 1, err));
    }
    SL_CHECK_OK(sl_st_writer_finish(writer, err));
    sl_st_writer_destroy(writer);
    sl_ckpt_close(ckpt);
}

SL_TEST(prefixed_names_work)
{
    synth("comfy", "tiny-t2v", 1, err);
    rewrite(at("comfy", "diffusion_pytorch_model.safetensors"), at("comfy", "wan.safetensors"),
            "model.diffusion_model.", NULL, NULL, err);
    unlink(at("comfy", "diffusion_pytorch_model.safetensors"));
    sl_model_dir *dir = open_dir("comfy", err);
    SL_CHECK(strcmp(sl_model_dir_info(dir)->arch->name, "tiny-t2v") == 0);
    load_all(sl_model_dir_info(dir), SL_PRECISION_BF16, err);
    sl_model_dir_close(dir);
}

SL_TEST(inspection_names_every_problem)
{
    lines l;

    synth("sick", "tiny-t2v", 1, err);
    rewrite(at("sick", "diffusion_pytorch_model.safetensors"), at("sick", "new.safetensors"), "",
            "blocks.2.ffn.0.weight", "blocks.9.stray", err);
    SL_CHECK(rename(at("sick", "new.safetensors"),
                    at("sick", "diffusion_pytorch_model.safetensors")) == 0);
    unlink(at("sick", "Wan2.1_VAE.safetensors"));
    write_text(at("sick", "google/umt5-xxl/spiece.model"), "not a tokenizer");
    const int problems = inspect("sick", &l, err);
    if (problems != 4 || !strstr(l.text, "dit: tensor \"blocks.2.ffn.0.weight\" is missing\n") ||
        !strstr(l.text, "dit: unexpected tensor \"blocks.9.stray\"\n") ||
        !strstr(l.text, "vae: no checkpoint\n") || !strstr(l.text, "tokenizer: "))
        fail_msg("%d problems:\n%s", problems, l.text);
    unlink(at("sick", "google/umt5-xxl/spiece.model"));
    SL_CHECK(inspect("sick", &l, err) == 4);
    SL_CHECK(strstr(l.text, "tokenizer: no spiece.model\n"));
    unlink(at("sick", "models_t5_umt5-xxl-enc-bf16.safetensors"));
    SL_CHECK(inspect("sick", &l, err) == 5);
    SL_CHECK(strstr(l.text, "text_encoder: no checkpoint\n"));
}

SL_TEST(config_json_must_agree)
{
    static const struct {
        const char *json, *why;
    } cases[] = {
        { "{\"dim\": 128}", "config.json says dim 128, the tensors say 256" },
        { "{\"num_layers\": 5}", "num_layers 5, the tensors say 4" },
        { "{\"in_dim\": 36}", "in_dim 36" },
        { "{\"num_heads\": 3}", "3 heads" },
        { "{\"num_heads\": 2.5}", "whole number" },
        { "{\"num_heads\": -2}", "whole number" },
        { "{\"num_heads\": 1e300}", "whole number" },
        { "{\"num_heads\": \"2\"}", "whole number" },
        { "{\"text_len\": 1000000}", "text_len" },
        { "{\"eps\": 0}", "eps" },
        { "{\"model_type\": \"x2v\"}", "model_type" },
        { "[1]", "no JSON object" },
        { "{", "no valid JSON" },
        { "", "no valid JSON" },
    };
    sl_model_dir *dir = NULL;

    synth("json", "tiny-t2v", 1, err);
    for (size_t i = 0; i < SL_COUNT(cases); i++) {
        write_text(at("json", "config.json"), cases[i].json);
        const sl_status status = sl_model_dir_open(&dir, at("json", NULL), err);
        if (status != SL_ERR_DATA || !strstr(err->message, cases[i].why))
            fail_msg("%s: %s: %s", cases[i].json, sl_status_text(status), err->message);
        sl_error_clear(err);
    }
    unlink(at("json", "config.json")); /* then dim / 128 heads and 512 tokens of text */
    dir = open_dir("json", err);
    SL_CHECK(sl_model_dir_info(dir)->arch->dit.num_heads == 2);
    SL_CHECK(sl_model_dir_info(dir)->arch->dit.text_len == 512);
    SL_CHECK(strcmp(sl_model_dir_info(dir)->arch->name, "custom") == 0);
    sl_model_dir_close(dir);
}

SL_TEST(what_is_no_model)
{
    sl_model_dir *dir = NULL;

    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("absent", NULL), err), SL_ERR_NOT_FOUND);
    sl_error_clear(err);
    SL_CHECK(mkdir(at("empty", NULL), 0755) == 0);
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("empty", NULL), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "is no model"));
    sl_error_clear(err);
    write_text(at("empty", "Wan2.1_VAE.pth"), "PK");
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("empty", NULL), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "Wan2.1_VAE.pth"));
    sl_error_clear(err);
    unlink(at("empty", "Wan2.1_VAE.pth"));
    write_text(at("empty", "x.safetensors"), "broken");
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("empty", NULL), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "x.safetensors"));
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("empty", "x.safetensors"), err), SL_ERR_DATA);
    sl_error_clear(err);

    /* a text encoder of another width */
    sl_arch arch = *sl_arch_find("tiny-t2v");
    arch.t5.dim = 32;
    SL_CHECK_OK(sl_synth_model(at("unfit", NULL), &arch, 1, NULL, NULL, err));
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("unfit", NULL), err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "the text encoder's width is 32, the transformer takes 64"));
    SL_CHECK(dir == NULL);
    sl_model_dir_close(NULL);
}

SL_TEST(models_are_found_by_name_only)
{
    static const char *const bad[] = { "", ".", "..", "a/b", "/etc", "../x", "found/" };
    const char *roots[] = { "no-such-root", root };
    char *path = NULL;

    SL_CHECK(mkdir(at("found", NULL), 0755) == 0);
    SL_CHECK_OK(sl_model_find(&path, roots, 2, "found", err));
    SL_CHECK(strcmp(path, at("found", NULL)) == 0);
    free(path);
    path = NULL;
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_model_find(&path, roots, 2, bad[i], err), SL_ERR_INVALID);
        sl_error_clear(err);
    }
    SL_CHECK(symlink("/usr", at("outside", NULL)) == 0);
    SL_CHECK_STATUS(sl_model_find(&path, roots, 2, "outside", err), SL_ERR_INVALID);
    sl_error_clear(err);
    SL_CHECK(symlink(".", at("itself", NULL)) == 0);
    SL_CHECK_STATUS(sl_model_find(&path, roots, 2, "itself", err), SL_ERR_INVALID);
    sl_error_clear(err);
    SL_CHECK(symlink("found", at("alias", NULL)) == 0); /* stays inside */
    SL_CHECK_OK(sl_model_find(&path, roots, 2, "alias", err));
    free(path);
    path = NULL;
    SL_CHECK_STATUS(sl_model_find(&path, roots, 2, "nothing", err), SL_ERR_NOT_FOUND);
    sl_error_clear(err);
    write_text(at("file", NULL), "");
    SL_CHECK_STATUS(sl_model_find(&path, roots, 2, "file", err), SL_ERR_NOT_FOUND);
    SL_CHECK(path == NULL);
}

SL_TEST(trailing_slashes_and_dots)
{
    sl_model_dir *dir = NULL;
    char path[600];

    synth("slash", "tiny-t2v", 1, err);
    snprintf(path, sizeof path, "%s//", at("slash", NULL));
    SL_CHECK_OK(sl_model_dir_open(&dir, path, err));
    SL_CHECK(strcmp(sl_model_dir_info(dir)->name, "slash") == 0);
    SL_CHECK(strcmp(sl_model_dir_info(dir)->path, at("slash", NULL)) == 0);
    sl_model_dir_close(dir);
    snprintf(path, sizeof path, "%s/.", at("slash", NULL));
    SL_CHECK_OK(sl_model_dir_open(&dir, path, err));
    SL_CHECK(strcmp(sl_model_dir_info(dir)->name, "slash") == 0);
    sl_model_dir_close(dir);
}

SL_TEST(sharded_models_round_trip)
{
    const sl_arch *row = sl_arch_find("tiny-i2v");
    const sl_synth_options options = { .seed = 3, .max_shard_bytes = 4000000 };
    lines l;

    SL_CHECK_OK(sl_synth_model_as(at("shards", NULL), row, &options, err));
    SL_CHECK(access(at("shards", "low_noise_model/diffusion_pytorch_model.safetensors.index.json"),
                    R_OK) == 0);
    SL_CHECK(access(at("shards", "low_noise_model/diffusion_pytorch_model-00001-of-00004."
                                 "safetensors"),
                    R_OK) == 0);
    sl_model_dir *dir = open_dir("shards", err);
    SL_CHECK(strcmp(sl_model_dir_info(dir)->arch->name, "tiny-i2v") == 0);
    SL_CHECK(strstr(sl_model_dir_info(dir)->files[SL_COMPONENT_DIT_LOW], ".index.json"));
    load_all(sl_model_dir_info(dir), SL_PRECISION_BF16, err);
    sl_model_dir_close(dir);
    SL_CHECK(inspect("shards", &l, err) == 0);

    unlink(at("shards", "low_noise_model/diffusion_pytorch_model-00001-of-00004.safetensors"));
    SL_CHECK_STATUS(sl_model_dir_open(&dir, at("shards", NULL), err), SL_ERR_NOT_FOUND);
    SL_CHECK(strstr(err->message, "-00001-of-00004.safetensors"));
    sl_error_clear(err);
    synth("shards", "tiny-i2v", 3, err); /* one file again: the shards are gone */
    dir = open_dir("shards", err);
    SL_CHECK(strstr(sl_model_dir_info(dir)->files[SL_COMPONENT_DIT_LOW], "model.safetensors"));
    sl_model_dir_close(dir);
}

/* Someone cuts the file between opening and loading. */
SL_TEST(a_file_cut_under_the_loader)
{
    const sl_component_spec spec =
        sl_component_spec_of(sl_arch_find("tiny-t2v"), SL_COMPONENT_DIT, SL_PRECISION_BF16);
    sl_device *device = NULL;
    sl_exec *exec = NULL;
    sl_ckpt *ckpt = NULL;
    sl_component *component = NULL;
    sl_device_spec ds;
    sl_device_stats stats;

    synth("cut", "tiny-t2v", 1, err);
    SL_CHECK_OK(sl_device_spec_parse("cpu:64MiB", &ds, err));
    SL_CHECK_OK(sl_device_create(&device, &ds, err));
    SL_CHECK_OK(sl_exec_create_cpu(&exec, device, 2, NULL, err));
    SL_CHECK_OK(sl_ckpt_open(&ckpt, at("cut", "diffusion_pytorch_model.safetensors"), err));
    SL_CHECK(truncate(at("cut", "diffusion_pytorch_model.safetensors"), 1000000) == 0);
    SL_CHECK_STATUS(sl_component_load(&component, &spec, device, exec, ckpt, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "could not load dit from"));
    SL_CHECK(strstr(err->message, "was cut after it was opened"));
    SL_CHECK(component == NULL);
    sl_device_get_stats(device, &stats);
    SL_CHECK(stats.mapped_bytes == sl_exec_workspace_bytes(exec));
    sl_ckpt_close(ckpt);
    sl_exec_destroy(exec);
    sl_device_destroy(device);
}

/* Runs step until it gets through; each failure before must say NO_MEMORY. */
static int fail_each_allocation(sl_status (*step)(void *arg, sl_error *err), void *arg,
                                sl_error *err)
{
    for (int n = 1;; n++) {
        allocations = 0;
        fail_at = n;
        const sl_status status = step(arg, err);
        const int reached = allocations >= n;
        fail_at = 0;
        if (!reached) {
            SL_CHECK_OK(status);
            return n - 1;
        }
        if (status != SL_ERR_NO_MEMORY)
            fail_msg("allocation %d: %s: %s", n, sl_status_text(status), err->message);
        sl_error_clear(err);
    }
}

static sl_status open_step(void *arg, sl_error *err)
{
    sl_model_dir *dir = NULL;
    const sl_status status = sl_model_dir_open(&dir, arg, err);

    SL_CHECK((dir != NULL) == (status == SL_OK));
    sl_model_dir_close(dir);
    return status;
}

typedef struct {
    sl_component_spec spec;
    sl_device *device;
    sl_exec *exec;
    sl_ckpt *ckpt;
} load_args;

static sl_status load_step(void *arg, sl_error *err)
{
    load_args *a = arg;
    sl_component *component = NULL;
    sl_device_stats stats;
    const sl_status status =
        sl_component_load(&component, &a->spec, a->device, a->exec, a->ckpt, err);

    SL_CHECK((component != NULL) == (status == SL_OK));
    sl_component_destroy(component);
    sl_device_get_stats(a->device, &stats);
    SL_CHECK(stats.mapped_bytes == sl_exec_workspace_bytes(a->exec));
    return status;
}

static sl_status synth_step(void *arg, sl_error *err)
{
    return sl_synth_model(arg, sl_arch_find("tiny-t2v"), 1, NULL, NULL, err);
}

SL_TEST(every_allocation_fails_once)
{
    char path[512];
    load_args a = { .spec = sl_component_spec_of(sl_arch_find("tiny-t2v"), SL_COMPONENT_DIT,
                                                 SL_PRECISION_BF16) };
    sl_device_spec ds;

    synth("memory", "tiny-t2v", 1, err);
    snprintf(path, sizeof path, "%s", at("memory", NULL));
    SL_CHECK(fail_each_allocation(open_step, path, err) > 10);

    SL_CHECK_OK(sl_device_spec_parse("cpu:64MiB", &ds, err));
    SL_CHECK_OK(sl_device_create(&a.device, &ds, err));
    SL_CHECK_OK(sl_exec_create_cpu(&a.exec, a.device, 1, NULL, err));
    SL_CHECK_OK(sl_ckpt_open(&a.ckpt, at("memory", "diffusion_pytorch_model.safetensors"), err));
    SL_CHECK(fail_each_allocation(load_step, &a, err) >= 3);
    sl_ckpt_close(a.ckpt);
    sl_exec_destroy(a.exec);
    sl_device_destroy(a.device);

    snprintf(path, sizeof path, "%s", at("memory", NULL));
    SL_CHECK(fail_each_allocation(synth_step, path, err) > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(tiny_models_round_trip),
        SL_RUN(experts_have_their_own_seeds),
        SL_RUN(synth_overwrites_only_its_own),
        SL_RUN(synth_refuses_a_full_disk_first),
        SL_RUN(dimensions_come_from_the_files),
        SL_RUN(files_are_known_by_their_contents),
        SL_RUN(prefixed_names_work),
        SL_RUN(inspection_names_every_problem),
        SL_RUN(config_json_must_agree),
        SL_RUN(what_is_no_model),
        SL_RUN(models_are_found_by_name_only),
        SL_RUN(trailing_slashes_and_dots),
        SL_RUN(sharded_models_round_trip),
        SL_RUN(a_file_cut_under_the_loader),
        SL_RUN(every_allocation_fails_once),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
