/* component_card_test.c - components on a card, over kernels/fake_cuda.c in the driver's
 * place, whose device memory is the host's: a resident region must hold its image, byte
 * for byte, however it was filled.  The threads are a cpu exec's. */
#include "base/size.h"
#include "base/test.h"
#include "engine/model/component.h"
#include "engine/model/stream.h"
#include "engine/model/synth.h"
#include "kernels/copy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char dir[64];
    sl_arch arch;
    sl_device *card, *host;
    sl_exec *exec;
} fixture;

/* A token table of more than a buffer of the loader, in either precision. */
enum { VOCAB = 600000 };

static void open_fixture(fixture *f, int64_t vocab, sl_error *err)
{
    sl_device_spec spec;

    *f = (fixture){ .arch = *sl_arch_find("tiny-t2v") };
    f->arch.t5.vocab = vocab;
    snprintf(f->dir, sizeof f->dir, "/tmp/sluice-card-XXXXXX");
    SL_CHECK(mkdtemp(f->dir) != NULL);
    SL_CHECK_OK(sl_synth_model(f->dir, &f->arch, 1, NULL, NULL, err));
    SL_CHECK_OK(sl_device_spec_parse("cuda:0", &spec, err));
    SL_CHECK_OK(sl_device_create(&f->card, &spec, err));
    SL_CHECK_OK(sl_device_spec_parse("cpu:1GiB", &spec, err));
    SL_CHECK_OK(sl_device_create(&f->host, &spec, err));
    SL_CHECK_OK(sl_exec_create_cpu(&f->exec, f->host, 2, NULL, err));
}

static void close_fixture(fixture *f)
{
    char command[128];

    sl_exec_destroy(f->exec);
    sl_device_destroy(f->host);
    sl_device_destroy(f->card);
    snprintf(command, sizeof command, "rm -r %s", f->dir);
    SL_CHECK(system(command) == 0);
}

static const void *first_byte(const sl_component *c)
{
    switch (sl_component_get_spec(c)->kind) {
    case SL_COMPONENT_TEXT_ENCODER:
        return sl_component_t5(c)->token.data;
    case SL_COMPONENT_VAE:
        return sl_component_vae(c)->encoder.conv1.w.data;
    default:
        return sl_component_dit(c)->patch.w.data;
    }
}

static const struct {
    sl_component_kind kind;
    const char *file;
    sl_precision precision;
} cases[] = {
    { SL_COMPONENT_TEXT_ENCODER, "models_t5_umt5-xxl-enc-bf16.safetensors", SL_PRECISION_F32 },
    { SL_COMPONENT_TEXT_ENCODER, "models_t5_umt5-xxl-enc-bf16.safetensors", SL_PRECISION_BF16 },
    { SL_COMPONENT_DIT, "diffusion_pytorch_model.safetensors", SL_PRECISION_F32 },
    { SL_COMPONENT_DIT, "diffusion_pytorch_model.safetensors", SL_PRECISION_BF16 },
    { SL_COMPONENT_DIT, "diffusion_pytorch_model.safetensors", SL_PRECISION_INT8 },
    { SL_COMPONENT_DIT, "diffusion_pytorch_model.safetensors", SL_PRECISION_FP8 },
    { SL_COMPONENT_VAE, "Wan2.1_VAE.safetensors", SL_PRECISION_F32 },
    { SL_COMPONENT_VAE, "Wan2.1_VAE.safetensors", SL_PRECISION_BF16 },
};

static void check_case(fixture *f, size_t i, sl_error *err)
{
    const sl_component_spec spec =
        sl_component_spec_of(&f->arch, cases[i].kind, cases[i].precision);
    const size_t image_bytes = sl_component_image_bytes(&spec);
    unsigned char *image = aligned_alloc(4096, (image_bytes + 4095) & ~(size_t)4095);
    sl_component *component = NULL;
    sl_ckpt *ckpt = NULL;
    char path[192];

    SL_CHECK(image != NULL);
    snprintf(path, sizeof path, "%s/%s", f->dir, cases[i].file);
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    SL_CHECK_OK(sl_component_fill_image(image, image_bytes, &spec, f->exec, ckpt, err));
    SL_CHECK_OK(sl_component_load(&component, &spec, f->card, f->exec, ckpt, err));
    SL_CHECK(sl_component_mapped_bytes(component) == sl_component_plan_bytes(&spec));
    if (memcmp(first_byte(component), image, image_bytes) != 0)
        fail_msg("case %zu: the file's way gives other bytes than the image's", i);
    sl_component_destroy(component);

    SL_CHECK_OK(
        sl_component_load_image(&component, &spec, f->card, f->exec, image, image_bytes, err));
    if (memcmp(first_byte(component), image, image_bytes) != 0)
        fail_msg("case %zu: not the image's bytes", i);
    sl_component_destroy(component);
    sl_ckpt_close(ckpt);
    free(image);
}

SL_TEST(a_region_on_a_card_holds_its_image)
{
    fixture f;

    open_fixture(&f, VOCAB, err);
    for (size_t i = 0; i < SL_COUNT(cases); i++)
        check_case(&f, i, err);
    close_fixture(&f);
}

static void check_tensor(const sl_tensor *got, const sl_tensor *want, int64_t block)
{
    if (memcmp(got->data, want->data, sl_tensor_bytes(want)) != 0)
        fail_msg("block %lld has other bytes", (long long)block);
}

/* Copies are the card's here: a queue of their own, from memory pinned by parts. */
SL_TEST(blocks_come_to_a_card_one_ahead)
{
    sl_component *resident = NULL, *streamed = NULL;
    sl_block_pass pass = { .stream = NULL };
    sl_ckpt *ckpt = NULL;
    char path[192];
    fixture f;

    open_fixture(&f, 512, err);
    sl_component_spec spec = sl_component_spec_of(&f.arch, SL_COMPONENT_DIT, SL_PRECISION_BF16);
    const size_t image_bytes = sl_component_image_bytes(&spec);
    void *image = aligned_alloc(4096, (image_bytes + 4095) & ~(size_t)4095);
    SL_CHECK(image != NULL);
    snprintf(path, sizeof path, "%s/%s", f.dir, "diffusion_pytorch_model.safetensors");
    SL_CHECK_OK(sl_ckpt_open(&ckpt, path, err));
    SL_CHECK_OK(sl_component_fill_image(image, image_bytes, &spec, f.exec, ckpt, err));
    SL_CHECK_OK(sl_component_load_image(&resident, &spec, f.card, f.exec, image, image_bytes, err));
    SL_CHECK_OK(sl_host_offer(f.card, image, image_bytes, err));
    spec.mode = SL_MODE_STREAMED;
    SL_CHECK_OK(sl_component_load_image(&streamed, &spec, f.card, f.exec, image, image_bytes, err));

    const sl_dit_weights *want = sl_component_dit(resident), *got = sl_component_dit(streamed);
    for (int walk = 0; walk < 3; walk++) {
        SL_CHECK_OK(sl_block_pass_begin(&pass, got->stream, f.exec, err));
        for (int64_t i = 0; i < f.arch.dit.num_layers; i++) {
            SL_CHECK_OK(sl_block_pass_get(&pass, i, err));
            check_tensor(&got->blocks[i].modulation, &want->blocks[i].modulation, i);
            check_tensor(&got->blocks[i].self_attn.q.w, &want->blocks[i].self_attn.q.w, i);
            check_tensor(&got->blocks[i].ffn2.b, &want->blocks[i].ffn2.b, i);
        }
        sl_block_pass_end(&pass);
    }
    SL_CHECK(sl_host_pinned_bytes(f.card) > 0);
    sl_component_destroy(streamed);
    sl_component_destroy(resident);
    sl_host_withdraw(f.card, image);
    SL_CHECK(sl_host_pinned_bytes(f.card) == 0);
    sl_ckpt_close(ckpt);
    free(image);
    close_fixture(&f);
}

SL_TEST_MAIN(SL_RUN(a_region_on_a_card_holds_its_image), SL_RUN(blocks_come_to_a_card_one_ahead))
