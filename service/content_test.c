/* What is the same in two models, by their files. */
#include "service/content.h"

#include "base/test.h"
#include "base/test_dir.h"
#include "engine/model/synth.h"

#include <string.h>
#include <unistd.h>

static void make(const char *name, const char *arch, uint64_t seed, sl_error *err)
{
    char path[600];

    snprintf(path, sizeof path, "%s/%s", root, name);
    SL_CHECK_OK(sl_synth_model(path, sl_arch_find(arch), seed, NULL, NULL, err));
}

static sl_content_id id_of(const char *name, sl_component_kind kind, sl_error *err)
{
    sl_content_id id = { { 0 } };
    sl_model_dir *dir = NULL;
    char path[600];

    snprintf(path, sizeof path, "%s/%s", root, name);
    SL_CHECK_OK(sl_model_dir_open(&dir, path, err));
    SL_CHECK_OK(sl_content_make_id(&id, sl_model_dir_info(dir), kind, err));
    sl_model_dir_close(dir);
    return id;
}

static bool same(const char *a, const char *b, sl_component_kind kind, sl_error *err)
{
    const sl_content_id x = id_of(a, kind, err), y = id_of(b, kind, err);

    return memcmp(&x, &y, sizeof x) == 0;
}

/* Flips a byte of a component's file, at so much of its size. */
static void damage(const char *name, sl_component_kind kind, double at, sl_error *err)
{
    sl_model_dir *dir = NULL;
    char path[600];

    snprintf(path, sizeof path, "%s/%s", root, name);
    SL_CHECK_OK(sl_model_dir_open(&dir, path, err));
    FILE *f = fopen(sl_model_dir_info(dir)->files[kind], "r+b");
    SL_CHECK(f && fseek(f, 0, SEEK_END) == 0);
    const long offset = (long)((double)ftell(f) * at) - 1;
    SL_CHECK(fseek(f, offset, SEEK_SET) == 0);
    const int byte = fgetc(f);
    SL_CHECK(fseek(f, offset, SEEK_SET) == 0 && fputc(byte ^ 1, f) != EOF && fclose(f) == 0);
    sl_model_dir_close(dir);
}

SL_TEST(the_same_content_has_the_same_id)
{
    const sl_component_kind text = SL_COMPONENT_TEXT_ENCODER, vae = SL_COMPONENT_VAE;

    make("a", "tiny-t2v", 1, err);
    make("b", "tiny-t2v", 1, err);
    make("c", "tiny-t2v", 2, err);
    SL_CHECK(same("a", "b", text, err) && same("a", "b", vae, err));
    SL_CHECK(!same("a", "c", text, err) && !same("a", "c", vae, err));
    const sl_content_id x = id_of("a", text, err), y = id_of("a", vae, err);
    SL_CHECK(memcmp(&x, &y, sizeof x) != 0);
    damage("b", vae, 1.0, err); /* the last byte of the last tensor */
    SL_CHECK(!same("a", "b", vae, err) && same("a", "b", text, err));
}

SL_TEST(what_is_not_there_has_none)
{
    sl_model_info info = { .name = "none", .arch = sl_arch_find("tiny-t2v") };
    sl_content_id id;

    SL_CHECK_STATUS(sl_content_make_id(&id, &info, SL_COMPONENT_VAE, err), SL_ERR_PRECONDITION);
    info.files[SL_COMPONENT_VAE] = (char *)"/nowhere";
    SL_CHECK_STATUS(sl_content_make_id(&id, &info, SL_COMPONENT_VAE, err), SL_ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SL_RUN(the_same_content_has_the_same_id),
        SL_RUN(what_is_not_there_has_none),
    };

    return cmocka_run_group_tests(tests, make_root, remove_root);
}
