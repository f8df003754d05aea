/* The tensor lists against the manifests of the published files. */
#include "engine/model/weights.h"

#include "base/test.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *name;
    sl_tensor tensor;
    bool seen;
} expected;

typedef struct {
    expected *list; /* sorted by name */
    int64_t count;
    int64_t visited, elements;
    size_t size_bytes;
} manifest;

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    char *text;
    long size;

    SL_CHECK(f != NULL);
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    text = calloc(1, (size_t)size + 1);
    SL_CHECK(text && fread(text, 1, (size_t)size, f) == (size_t)size);
    fclose(f);
    return text;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const expected *)a)->name, ((const expected *)b)->name);
}

static sl_dtype parse_dtype(const char *text)
{
    for (int i = 0; i < SL_DTYPE_COUNT; i++)
        if (strcmp(sl_dtype_name((sl_dtype)i), text) == 0)
            return (sl_dtype)i;
    fail_msg("dtype %s", text);
    return SL_F32;
}

/* "blocks.{0..29}.modulation" stands for 30 names. */
static void add_pattern(manifest *m, const cJSON *row)
{
    const char *pattern = cJSON_GetObjectItem(row, "pattern")->valuestring;
    const char *brace = strchr(pattern, '{');
    const cJSON *shape = cJSON_GetObjectItem(row, "shape");
    sl_tensor t = { .dtype = parse_dtype(cJSON_GetObjectItem(row, "dtype")->valuestring) };
    int first = 0, last = 0, end = 0;

    t.rank = cJSON_GetArraySize(shape);
    SL_CHECK(t.rank <= SL_MAX_RANK);
    for (int i = 0; i < t.rank; i++)
        t.dim[i] = (int64_t)cJSON_GetArrayItem(shape, i)->valuedouble;
    if (brace)
        SL_CHECK(sscanf(brace, "{%d..%d}%n", &first, &last, &end) == 2 && end > 0);
    SL_CHECK(last - first + 1 == (int)cJSON_GetObjectItem(row, "count")->valuedouble);
    m->list = realloc(m->list, (size_t)(m->count + last - first + 1) * sizeof *m->list);
    SL_CHECK(m->list != NULL);
    for (int i = first; i <= last; i++) {
        expected *e = &m->list[m->count++];
        *e = (expected){ .tensor = t };
        if (brace)
            SL_CHECK(asprintf(&e->name, "%.*s%d%s", (int)(brace - pattern), pattern, i,
                              brace + end) > 0);
        else
            e->name = strdup(pattern);
    }
}

static sl_status check_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    manifest *m = arg;
    const sl_tensor t = sl_tensor_make(NULL, spec->file_dtype, spec->rank, spec->dim);
    expected key = { .name = (char *)(uintptr_t)spec->name };
    expected *e = bsearch(&key, m->list, (size_t)m->count, sizeof key, by_name);
    char want[200], got[200];

    (void)err;
    if (spec->form == SL_FORM_DEVICE_ONLY)
        return SL_OK;
    if (!e)
        SL_FAIL("unexpected tensor %s", spec->name);
    if (e->seen)
        fail_msg("%s visited twice", spec->name);
    e->seen = true;
    sl_tensor_describe(&e->tensor, want, sizeof want);
    sl_tensor_describe(&t, got, sizeof got);
    if (strcmp(want, got) != 0)
        fail_msg("%s: manifest has %s, the table %s", spec->name, want, got);
    SL_CHECK((spec->slot == NULL) == (spec->form == SL_FORM_FILE_ONLY));
    if (spec->slot) {
        SL_CHECK(sl_tensor_count(spec->slot) == sl_tensor_count(&t));
        SL_CHECK(spec->slot->dtype == SL_F32 || spec->slot->dtype == SL_BF16 ||
                 spec->slot->dtype == SL_I8);
    }
    m->visited++;
    m->elements += sl_tensor_count(&t);
    m->size_bytes += sl_tensor_bytes(&t);
    return SL_OK;
}

static double total(const cJSON *json, const char *name)
{
    return cJSON_GetObjectItem(cJSON_GetObjectItem(json, "totals"), name)->valuedouble;
}

/* visit: 'd', 't' or 'v' */
static void check_manifest(const char *name, char visit, const sl_arch *arch, sl_layout layout,
                           sl_error *err)
{
    manifest m = { .list = NULL };
    char path[1200];
    const cJSON *row;

    snprintf(path, sizeof path, "%s/manifests/%s", sl_test_shared_dir(), name);
    char *text = read_file(path);
    cJSON *json = cJSON_Parse(text);
    SL_CHECK(json != NULL);
    cJSON_ArrayForEach(row, cJSON_GetObjectItem(json, "tensors")) add_pattern(&m, row);
    SL_CHECK(m.list != NULL);
    qsort(m.list, (size_t)m.count, sizeof *m.list, by_name);

    if (visit == 'd')
        SL_CHECK_OK(
            sl_dit_visit(NULL, &arch->dit, layout,
                         layout == SL_LAYOUT_TURBO_QUANT ? SL_PRECISION_INT8 : SL_PRECISION_BF16,
                         check_visitor, &m, err));
    else if (visit == 't')
        SL_CHECK_OK(sl_t5_visit(NULL, &arch->t5, SL_PRECISION_BF16, check_visitor, &m, err));
    else
        SL_CHECK_OK(sl_vae_visit(NULL, &arch->vae, SL_PRECISION_BF16, check_visitor, &m, err));

    for (int64_t i = 0; i < m.count; i++)
        if (!m.list[i].seen)
            fail_msg("%s: %s is missing from the table", name, m.list[i].name);
    SL_CHECK(m.visited == m.count);
    SL_CHECK((double)m.visited == total(json, "tensors"));
    SL_CHECK((double)m.elements == total(json, "elements"));
    SL_CHECK((double)m.size_bytes == total(json, "bytes"));

    for (int64_t i = 0; i < m.count; i++)
        free(m.list[i].name);
    free(m.list);
    cJSON_Delete(json);
    free(text);
}

SL_TEST(every_manifest_matches)
{
    int dits = 0;

    if (!sl_test_shared_dir())
        SL_SKIP("no ../shared");
    for (int i = 0; i < sl_arch_count(); i++) {
        const sl_arch *arch = sl_arch_get(i);

        if (!arch->manifests[0])
            continue;
        for (size_t j = 0; j < SL_COUNT(arch->manifests) && arch->manifests[j]; j++, dits++) {
            const char *name = arch->manifests[j];
            const sl_layout layout = strstr(name, "_quant")            ? SL_LAYOUT_TURBO_QUANT
                                     : strncmp(name, "turbo_", 6) == 0 ? SL_LAYOUT_TURBO
                                                                       : SL_LAYOUT_OFFICIAL;
            check_manifest(name, 'd', arch, layout, err);
        }
        check_manifest("umt5_xxl_encoder.json", 't', arch, SL_LAYOUT_OFFICIAL, err);
        check_manifest("wan2.1_vae.json", 'v', arch, SL_LAYOUT_OFFICIAL, err);
    }
    SL_CHECK(dits == 9);
}

static sl_status stop_at_third(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    int *calls = arg;

    (void)spec;
    return ++*calls == 3 ? sl_fail(err, SL_ERR_BUSY, "stop") : SL_OK;
}

SL_TEST(a_visitor_stops_the_walk)
{
    const sl_arch *arch = sl_arch_find("tiny-t2v");
    int calls = 0;

    SL_CHECK_STATUS(sl_dit_visit(NULL, &arch->dit, SL_LAYOUT_OFFICIAL, SL_PRECISION_F32,
                                 stop_at_third, &calls, err),
                    SL_ERR_BUSY);
    SL_CHECK(calls == 3);
    calls = 0;
    SL_CHECK_STATUS(sl_vae_visit(NULL, &arch->vae, SL_PRECISION_F32, stop_at_third, &calls, err),
                    SL_ERR_BUSY);
    SL_CHECK(calls == 3);
}

typedef struct {
    sl_tensor slots[2048];
    int64_t count, at;
    bool compare;
} device_forms;

static sl_status device_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    device_forms *d = arg;

    (void)err;
    if (spec->form == SL_FORM_FILE_ONLY)
        return SL_OK;
    SL_CHECK(d->at < (int64_t)SL_COUNT(d->slots));
    if (!d->compare) {
        d->slots[d->count++] = *spec->slot;
        d->at++;
        return SL_OK;
    }
    const sl_tensor *want = &d->slots[d->at++];
    SL_CHECK(spec->slot->dtype == want->dtype && sl_tensor_same_shape(spec->slot, want));
    if (spec->form == SL_FORM_CODES) /* the slot before holds the scales */
        SL_CHECK(sl_tensor_same_shape(spec->scale, want - 1));
    return SL_OK;
}

/* A component is laid out without knowing its file. */
SL_TEST(device_forms_are_the_same_for_every_layout)
{
    static const sl_layout layouts[] = { SL_LAYOUT_OFFICIAL, SL_LAYOUT_TURBO,
                                         SL_LAYOUT_TURBO_QUANT };
    const sl_arch *arch = sl_arch_find("wan2.1-t2v-1.3b");

    for (int p = 0; p < SL_PRECISION_COUNT; p++) {
        device_forms d = { .count = 0 };
        for (size_t i = 0; i < SL_COUNT(layouts); i++) {
            if (layouts[i] == SL_LAYOUT_TURBO_QUANT && p != SL_PRECISION_INT8)
                continue;
            d.compare = i > 0;
            d.at = 0;
            SL_CHECK_OK(sl_dit_visit(NULL, &arch->dit, layouts[i], (sl_precision)p, device_visitor,
                                     &d, err));
            SL_CHECK(d.at == d.count);
        }
        SL_CHECK(d.count == (sl_precision_has_codes((sl_precision)p) ? 1185 : 885));
    }
}

/* The totals that were published, so that a bare checkout tests something. */
static sl_status count_visitor(void *arg, const sl_weight_spec *spec, sl_error *err)
{
    int64_t *sums = arg;
    const sl_tensor t = sl_tensor_make(NULL, spec->file_dtype, spec->rank, spec->dim);

    (void)err;
    if (spec->form == SL_FORM_DEVICE_ONLY)
        return SL_OK;
    sums[0]++;
    sums[1] += sl_tensor_count(&t);
    return SL_OK;
}

SL_TEST(published_totals)
{
    static const struct {
        const char *arch;
        int64_t tensors, parameters;
    } dits[] = {
        { "wan2.1-t2v-1.3b", 825, 1418996800 },
        { "wan2.1-t2v-14b", 1095, 14288491584 },
        { "wan2.2-i2v-a14b", 1095, 14288901184 },
    };

    for (size_t i = 0; i < SL_COUNT(dits); i++) {
        const sl_arch *arch = sl_arch_find(dits[i].arch);
        int64_t dit[2] = { 0 }, t5[2] = { 0 }, vae[2] = { 0 };

        SL_CHECK_OK(sl_dit_visit(NULL, &arch->dit, SL_LAYOUT_OFFICIAL, SL_PRECISION_F32,
                                 count_visitor, dit, err));
        SL_CHECK(dit[0] == dits[i].tensors && dit[1] == dits[i].parameters);
        SL_CHECK_OK(sl_t5_visit(NULL, &arch->t5, SL_PRECISION_F32, count_visitor, t5, err));
        SL_CHECK(t5[0] == 242 && t5[1] == 5680910336);
        SL_CHECK_OK(sl_vae_visit(NULL, &arch->vae, SL_PRECISION_F32, count_visitor, vae, err));
        SL_CHECK(vae[0] == 194 && vae[1] == 126892531);
    }
}

SL_TEST(table_rows_are_consistent)
{
    for (int i = 0; i < sl_arch_count(); i++) {
        const sl_arch *arch = sl_arch_get(i);

        SL_CHECK(sl_arch_find(arch->name) == arch);
        SL_CHECK_OK(sl_dit_config_check(&arch->dit, err));
        SL_CHECK_OK(sl_t5_config_check(&arch->t5, err));
        SL_CHECK_OK(sl_vae_config_check(&arch->vae, err));
        SL_CHECK(arch->dit.text_dim == arch->t5.dim);
        SL_CHECK(arch->dit.out_dim == arch->vae.z_dim);
        SL_CHECK(arch->default_width % 16 == 0 && arch->default_height % 16 == 0);
        SL_CHECK(arch->default_frames % 4 == 1);
        SL_CHECK(sl_arch_has_component(arch, SL_COMPONENT_DIT) == (arch->expert_count == 1));
        SL_CHECK(sl_arch_has_component(arch, SL_COMPONENT_DIT_LOW) == (arch->expert_count == 2));
        for (int c = 0; c < 16; c++) {
            SL_CHECK(arch->vae.mean[c] == sl_wan_latent_mean[c]);
            SL_CHECK(arch->vae.std[c] == sl_wan_latent_std[c]);
        }
    }
    SL_CHECK(sl_arch_find("wan") == NULL);
    for (int k = 0; k < SL_COMPONENT_COUNT; k++) {
        sl_component_kind kind;
        SL_CHECK(sl_component_parse(sl_component_name((sl_component_kind)k), &kind));
        SL_CHECK((int)kind == k);
    }
    for (int p = 0; p < SL_PRECISION_COUNT; p++) {
        sl_precision precision;
        SL_CHECK(sl_precision_parse(sl_precision_name((sl_precision)p), &precision));
        SL_CHECK((int)precision == p);
    }
    for (int m = 0; m < SL_ATTENTION_COUNT; m++) {
        sl_attention_mode mode;
        SL_CHECK(sl_attention_parse(sl_attention_name((sl_attention_mode)m), &mode));
        SL_CHECK((int)mode == m);
    }
    SL_CHECK(!sl_attention_parse("sparse", &(sl_attention_mode){ 0 }));
    SL_CHECK(sl_component_precision(SL_COMPONENT_VAE, SL_PRECISION_INT8) == SL_PRECISION_BF16);
    SL_CHECK(sl_component_precision(SL_COMPONENT_VAE, SL_PRECISION_FP8) == SL_PRECISION_BF16);
    SL_CHECK(sl_component_precision(SL_COMPONENT_DIT, SL_PRECISION_FP8) == SL_PRECISION_FP8);
    SL_CHECK(sl_component_precision(SL_COMPONENT_DIT_LOW, SL_PRECISION_INT8) == SL_PRECISION_INT8);
    SL_CHECK(!sl_component_parse("DIT", &(sl_component_kind){ 0 }));
    SL_CHECK(!sl_precision_parse("", &(sl_precision){ 0 }));
}

SL_TEST(bad_configs_are_refused)
{
    const sl_arch *tiny = sl_arch_find("tiny-t2v");
    sl_dit_config dit = tiny->dit;
    sl_t5_config t5 = tiny->t5;
    sl_vae_config vae = tiny->vae;

    dit.num_heads = 3;
    SL_CHECK_STATUS(sl_dit_config_check(&dit, err), SL_ERR_INVALID);
    dit = tiny->dit;
    dit.num_layers = SL_MAX_LAYERS + 1;
    SL_CHECK_STATUS(sl_dit_config_check(&dit, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "num_layers is 65, must be 1 to 64"));
    dit = tiny->dit;
    dit.eps = NAN;
    SL_CHECK_STATUS(sl_dit_config_check(&dit, err), SL_ERR_INVALID);
    dit = tiny->dit;
    dit.dim = INT64_MAX;
    SL_CHECK_STATUS(sl_dit_config_check(&dit, err), SL_ERR_INVALID);
    dit = tiny->dit;
    SL_CHECK_OK(sl_dit_attention_check(&dit, SL_ATTENTION_SLA, 0.1, err));
    SL_CHECK_STATUS(sl_dit_attention_check(&dit, SL_ATTENTION_SLA, 0.0, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_dit_attention_check(&dit, SL_ATTENTION_SAGESLA, NAN, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_dit_attention_check(&dit, (sl_attention_mode)7, 0.1, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_dit_attention_check(&dit, SL_ATTENTION_DENSE, NAN, err));
    dit.num_heads = 1;
    SL_CHECK_STATUS(sl_dit_attention_check(&dit, SL_ATTENTION_SLA, 0.1, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_dit_precision_check(&dit, SL_PRECISION_INT8, err));
    dit.ffn_dim = 500;
    SL_CHECK_STATUS(sl_dit_precision_check(&dit, SL_PRECISION_INT8, err), SL_ERR_INVALID);
    sl_error_clear(err);
    SL_CHECK_STATUS(sl_dit_precision_check(&dit, SL_PRECISION_FP8, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_dit_precision_check(&dit, SL_PRECISION_BF16, err));
    t5.vocab = 0;
    SL_CHECK_STATUS(sl_t5_config_check(&t5, err), SL_ERR_INVALID);
    vae.num_res_blocks = 3;
    SL_CHECK_STATUS(sl_vae_config_check(&vae, err), SL_ERR_INVALID);
    vae = tiny->vae;
    vae.std[3] = 0;
    SL_CHECK_STATUS(sl_vae_config_check(&vae, err), SL_ERR_INVALID);
}

SL_TEST_MAIN(SL_RUN(every_manifest_matches), SL_RUN(a_visitor_stops_the_walk),
             SL_RUN(published_totals), SL_RUN(device_forms_are_the_same_for_every_layout),
             SL_RUN(table_rows_are_consistent), SL_RUN(bad_configs_are_refused))
