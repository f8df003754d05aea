/* golden_test_files.c - tokenizers, and checkpoint containers good and hostile. */
#include "tests/golden_test.h"

#include "engine/text/clean.h"
#include "engine/text/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_IDS = 512, MAX_RAW_IDS = 65536 };

/* ---- tokenizers ---- */

static const char *string_of(const golden_json *object, const char *key)
{
    const golden_json *item = golden_json_get(object, key);

    return golden_json_is(item, GOLDEN_JSON_STRING) ? item->text : NULL;
}

static bool same_ids(const golden_json *want, const int32_t *ids, int count)
{
    if (!golden_json_is(want, GOLDEN_JSON_ARRAY) || golden_json_count(want) != count)
        return false;
    int i = 0;
    for (const golden_json *item = want->child; item; item = item->next, i++)
        if (!golden_json_is(item, GOLDEN_JSON_NUMBER) || item->number != ids[i])
            return false;
    return true;
}

/* One text of the case: cleaned, with ids, and raw. */
static sl_status check_text(golden_case *c, const sl_tokenizer *tokenizer, const golden_json *item,
                            int32_t *ids, int index, sl_error *err)
{
    const char *text = string_of(item, "text"), *want = string_of(item, "cleaned");
    const golden_json *want_ids = golden_json_get(item, "ids");
    const golden_json *want_raw = golden_json_get(item, "ids_without_cleaning");
    sl_status status = SL_OK;
    char *cleaned = NULL;
    int count = 0;

    if (!text || !want)
        return sl_fail(err, SL_ERR_DATA, "case %d has no text", index);
    GOLDEN_TRY(sl_clean_prompt(&cleaned, text, strlen(text), err));
    if (strcmp(cleaned, want) != 0)
        golden_note_failure(c, "text %d is cleaned to \"%s\", expected \"%s\"", index, cleaned,
                            want);
    GOLDEN_TRY(sl_tokenizer_encode(tokenizer, cleaned, strlen(cleaned), ids, MAX_IDS, &count, err));
    if (!same_ids(want_ids, ids, count))
        golden_note_failure(c, "text %d has other ids", index);
    GOLDEN_TRY(
        sl_tokenizer_encode_raw(tokenizer, text, strlen(text), ids, MAX_RAW_IDS, &count, err));
    if (want_raw && !same_ids(want_raw, ids, count))
        golden_note_failure(c, "text %d has other ids without cleaning", index);
done:
    free(cleaned);
    return status;
}

sl_status golden_run_tokenizer(golden_case *c, sl_error *err)
{
    const golden_json *list = golden_json_get(c->json, "cases");
    const char *file = string_of(c->json, "file");
    const char *path = golden_path(c, file ? file : "", err);
    int32_t *ids = golden_alloc(c, MAX_RAW_IDS, sizeof *ids, err);
    sl_tokenizer *tokenizer = NULL;
    sl_status status = SL_OK;
    char what[32];
    int index = 0;

    if (!path || !ids)
        return SL_ERR_NO_MEMORY;
    status = sl_tokenizer_open(&tokenizer, path, err);
    if (status == SL_ERR_UNIMPLEMENTED) {
        golden_skip_case(c, "this build has no sentencepiece");
        return SL_OK;
    }
    if (status != SL_OK)
        goto done;
    if (!golden_json_is(list, GOLDEN_JSON_ARRAY))
        return sl_fail(err, SL_ERR_DATA, "the case lists no texts");
    for (const golden_json *item = list->child; item; item = item->next)
        GOLDEN_TRY(check_text(c, tokenizer, item, ids, index++, err));
    snprintf(what, sizeof what, "%d texts", index);
    golden_check(c, what, "differing", c->failure_count, 0);
done:
    sl_tokenizer_close(tokenizer);
    return status;
}

/* ---- containers ---- */

static bool ends_with(const char *text, const char *end)
{
    const size_t a = strlen(text), b = strlen(end);

    return a >= b && strcmp(text + a - b, end) == 0;
}

static uint64_t fnv1a64(const unsigned char *bytes, size_t size_bytes)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < size_bytes; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

static bool same_tensor(const sl_ckpt_tensor *t, const golden_json *want)
{
    const golden_json *shape = golden_json_get(want, "shape");
    const char *dtype = string_of(want, "dtype"), *hash = string_of(want, "fnv1a64");
    char got_hash[17];
    int rank = 0;

    if (!t || !dtype || !hash || strcmp(sl_dtype_name(t->tensor.dtype), dtype) != 0 ||
        golden_json_count(shape) != t->tensor.rank)
        return false;
    for (const golden_json *d = shape->child; d; d = d->next)
        if (d->number != (double)t->tensor.dim[rank++])
            return false;
    snprintf(got_hash, sizeof got_hash, "%016" PRIx64, fnv1a64(t->tensor.data, t->size_bytes));
    return strcmp(hash, got_hash) == 0;
}

/* "k0000..k1200: f32 [1] holding its own index" */
static bool same_numbered(const sl_ckpt *ckpt, const char *text)
{
    int first, last;
    char name[32];

    if (sscanf(text, "k%d..k%d: f32 [1] holding its own index", &first, &last) != 2 ||
        sl_ckpt_count(ckpt) != last - first + 1)
        return false;
    for (int i = first; i <= last; i++) {
        const float want = (float)i;

        snprintf(name, sizeof name, "k%04d", i);
        const sl_ckpt_tensor *t = sl_ckpt_find(ckpt, name);
        if (!t || t->tensor.dtype != SL_F32 || t->tensor.rank != 1 || t->tensor.dim[0] != 1 ||
            memcmp(t->tensor.data, &want, sizeof want) != 0)
            return false;
    }
    return true;
}

/* NULL when the file behaves as expected, else what it did. */
static const char *judge(golden_case *c, const golden_json *file, const char *path)
{
    const char *expect = string_of(file, "expect");
    const golden_json *tensors = golden_json_get(file, "tensors");
    const char *problem = NULL;
    sl_error err = { .status = SL_OK };
    sl_ckpt *ckpt = NULL;
    const sl_status status = sl_ckpt_open(&ckpt, path, &err);

    if (!expect)
        problem = "nothing is expected of it";
    else if (strcmp(expect, "refuse") == 0 && status == SL_OK)
        problem = "was loaded";
    else if (strcmp(expect, "refuse") == 0 && !strstr(err.message, file->key))
        problem = "was refused without a message that names it";
    else if (strcmp(expect, "load") == 0 && status != SL_OK)
        problem = sl_arena_printf(c->arena, "was refused: %s", err.message);
    if (status == SL_OK && !problem && golden_json_is(tensors, GOLDEN_JSON_STRING)) {
        if (!same_numbered(ckpt, tensors->text))
            problem = "has other tensors";
    } else if (status == SL_OK && !problem && tensors) {
        if (sl_ckpt_count(ckpt) != golden_json_count(tensors))
            problem = "has another number of tensors";
        for (const golden_json *t = tensors->child; t && !problem; t = t->next)
            if (!same_tensor(sl_ckpt_find(ckpt, t->key), t))
                problem = sl_arena_printf(c->arena, "tensor \"%s\" differs", t->key);
    }
    sl_ckpt_close(ckpt);
    return problem;
}

sl_status golden_run_loader(golden_case *c, sl_error *err)
{
    const golden_json *files = golden_json_get(c->json, "files");
    int judged = 0;
    char what[48];

    if (!golden_json_is(files, GOLDEN_JSON_OBJECT))
        return sl_fail(err, SL_ERR_DATA, "the case lists no files");
    for (const golden_json *file = files->child; file; file = file->next) {
        const bool known = ends_with(file->key, ".safetensors") ||
                           ends_with(file->key, ".safetensors.index.json") ||
                           ends_with(file->key, ".pth");

        if (!known) /* described, not shipped: see ckpt_test */
            continue;
        const char *path = sl_arena_printf(c->arena, "%s/%s", c->env->dir, file->key);
        if (!path)
            return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
        const char *problem = judge(c, file, path);
        judged++;
        if (problem)
            golden_note_failure(c, "%s %s", file->key, problem);
    }
    snprintf(what, sizeof what, "%d files", judged);
    golden_check(c, what, "differing", c->failure_count, 0);
    return SL_OK;
}
