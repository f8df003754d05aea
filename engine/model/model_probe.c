#include "engine/model/model_probe.h"

#include "engine/ckpt/json_scan.h"
#include "engine/model/names.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_JSON_BYTES = 1 << 20 };

static const struct {
    const char *key;
    const char *diffusers; /* their other name for it; NULL: the same, or none */
    unsigned bit;
    size_t offset;
} json_fields[] = {
    { "dim", NULL, SL_DIT_JSON_DIM, offsetof(sl_dit_config, dim) },
    { "ffn_dim", NULL, SL_DIT_JSON_FFN_DIM, offsetof(sl_dit_config, ffn_dim) },
    { "num_heads", "num_attention_heads", SL_DIT_JSON_NUM_HEADS,
      offsetof(sl_dit_config, num_heads) },
    { "num_layers", NULL, SL_DIT_JSON_NUM_LAYERS, offsetof(sl_dit_config, num_layers) },
    { "in_dim", "in_channels", SL_DIT_JSON_IN_DIM, offsetof(sl_dit_config, in_dim) },
    { "out_dim", "out_channels", SL_DIT_JSON_OUT_DIM, offsetof(sl_dit_config, out_dim) },
    { "text_len", NULL, SL_DIT_JSON_TEXT_LEN, offsetof(sl_dit_config, text_len) },
    { "freq_dim", NULL, SL_DIT_JSON_FREQ_DIM, offsetof(sl_dit_config, freq_dim) },
};

static int64_t *field(sl_dit_config *config, size_t offset)
{
    return (int64_t *)(void *)((char *)config + offset);
}

/* What a number is written as; is_number is false for another kind of value,
 * which is then passed over. */
static sl_status take_number(sl_json_scan *scan, double *out, bool *is_number, sl_error *err)
{
    char digits[64];
    const char first = sl_json_peek(scan);
    const size_t from = scan->pos;
    const sl_status status = sl_json_skip(scan, err);

    *is_number = status == SL_OK && (first == '-' || (first >= '0' && first <= '9')) &&
                 scan->pos - from < sizeof digits;
    if (*is_number) {
        memcpy(digits, scan->text + from, scan->pos - from);
        digits[scan->pos - from] = '\0';
        *out = strtod(digits, NULL);
    }
    return status;
}

static sl_status parse_dimension(sl_dit_json *json, size_t index, bool own_name, sl_json_scan *scan,
                                 const char *path, sl_error *err)
{
    const unsigned bit = json_fields[index].bit;
    double x = 0.0;
    bool is_number;
    const sl_status status = take_number(scan, &x, &is_number, err);

    if (status != SL_OK || (!own_name && json->has & bit))
        return status;
    if (!is_number || !(x >= 1 && x <= 0x1p31) || x > floor(x))
        return sl_fail(err, SL_ERR_DATA, "\"%s\": \"%s\" must be a whole number above 0", path,
                       json_fields[index].key);
    *field(&json->config, json_fields[index].offset) = (int64_t)x;
    json->has |= bit;
    return SL_OK;
}

static sl_status parse_eps(sl_dit_json *json, sl_json_scan *scan, const char *path, sl_error *err)
{
    double x = 0.0;
    bool is_number;
    const sl_status status = take_number(scan, &x, &is_number, err);

    if (status != SL_OK)
        return status;
    if (!is_number || !(x > 0 && x < 1))
        return sl_fail(err, SL_ERR_DATA, "\"%s\": \"eps\" must be above 0 and below 1", path);
    json->config.eps = (float)x;
    json->has |= SL_DIT_JSON_EPS;
    return SL_OK;
}

static sl_status parse_task(sl_dit_json *json, sl_json_scan *scan, const char *path, sl_error *err)
{
    char text[8] = "";

    if (sl_json_peek(scan) != '"' || sl_json_string(scan, text, sizeof text, NULL, NULL) != SL_OK ||
        (strcmp(text, "t2v") != 0 && strcmp(text, "i2v") != 0))
        return sl_fail(err, SL_ERR_DATA, "\"%s\": \"model_type\" must be \"t2v\" or \"i2v\"", path);
    json->task = text[0] == 'i' ? SL_TASK_I2V : SL_TASK_T2V;
    json->has |= SL_DIT_JSON_TASK;
    return SL_OK;
}

static sl_status parse_member(sl_dit_json *json, const char *key, sl_json_scan *scan,
                              const char *path, sl_error *err)
{
    for (size_t i = 0; i < SL_COUNT(json_fields); i++) {
        const char *diffusers = json_fields[i].diffusers;
        const bool own_name = strcmp(key, json_fields[i].key) == 0;
        if (own_name || (diffusers && strcmp(key, diffusers) == 0))
            return parse_dimension(json, i, own_name, scan, path, err);
    }
    if (strcmp(key, "eps") == 0)
        return parse_eps(json, scan, path, err);
    if (strcmp(key, "model_type") == 0)
        return parse_task(json, scan, path, err);
    return sl_json_skip(scan, err);
}

/* The whole text is checked first, so that what is wrong with a value is told
 * apart from what is wrong with the file. */
static sl_status parse_json(sl_dit_json *json, const char *text, size_t size, const char *path,
                            sl_error *err)
{
    sl_json_scan scan = sl_json_begin(text, size);
    sl_error why = { .status = SL_OK };
    sl_status status;
    char key[1024];
    bool more;

    if (sl_json_skip(&scan, &why) != SL_OK || sl_json_end(&scan, &why) != SL_OK)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" is no valid JSON: %s", path, why.message);
    scan = sl_json_begin(text, size);
    if (sl_json_peek(&scan) != '{')
        return sl_fail(err, SL_ERR_DATA, "\"%s\" is no JSON object", path);
    status = sl_json_enter(&scan, '{', &more, err);
    while (status == SL_OK && more) {
        status = sl_json_key(&scan, key, sizeof key, NULL, err);
        if (status == SL_OK)
            status = parse_member(json, key, &scan, path, err);
        if (status == SL_OK)
            status = sl_json_next(&scan, '{', &more, err);
    }
    return status;
}

sl_status sl_dit_json_read(sl_dit_json *json, const char *path, sl_error *err)
{
    sl_status status = SL_OK;
    char *text = malloc(MAX_JSON_BYTES + 1);
    FILE *f = text ? fopen(path, "rb") : NULL;
    size_t size;

    *json = (sl_dit_json){ .has = 0 };
    if (!text) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for \"%s\"", path);
        goto done;
    }
    if (!f) {
        status = sl_fail_errno(err, "could not open \"%s\"", path);
        goto done;
    }
    size = fread(text, 1, MAX_JSON_BYTES + 1, f);
    if (ferror(f))
        status = sl_fail_errno(err, "could not read \"%s\"", path);
    else if (size > MAX_JSON_BYTES)
        status = sl_fail(err, SL_ERR_DATA, "\"%s\" is above %d bytes", path, (int)MAX_JSON_BYTES);
    else
        status = parse_json(json, text, size, path, err);
done:
    if (f)
        fclose(f);
    free(text);
    return status;
}

sl_status sl_dit_json_write(const char *path, const sl_dit_config *c, sl_task task, sl_error *err)
{
    FILE *f = fopen(path, "w");
    bool failed;

    if (!f)
        return sl_fail_errno(err, "could not create \"%s\"", path);
    fprintf(f,
            "{\n  \"_class_name\": \"WanModel\",\n  \"dim\": %lld,\n  \"eps\": %g,\n"
            "  \"ffn_dim\": %lld,\n  \"freq_dim\": %lld,\n  \"in_dim\": %lld,\n"
            "  \"model_type\": \"%s\",\n  \"num_heads\": %lld,\n  \"num_layers\": %lld,\n"
            "  \"out_dim\": %lld,\n  \"text_len\": %lld\n}\n",
            (long long)c->dim, (double)c->eps, (long long)c->ffn_dim, (long long)c->freq_dim,
            (long long)c->in_dim, task == SL_TASK_I2V ? "i2v" : "t2v", (long long)c->num_heads,
            (long long)c->num_layers, (long long)c->out_dim, (long long)c->text_len);
    failed = ferror(f) != 0;
    if (fclose(f) != 0 || failed) /* a full disk shows at the latest here */
        return sl_fail_errno(err, "could not write \"%s\"", path);
    return SL_OK;
}

bool sl_probe_kind(const sl_ckpt *ckpt, sl_component_kind *kind)
{
    static const struct {
        sl_component_kind kind;
        const char *names[2];
    } signs[] = {
        { SL_COMPONENT_DIT, { "head.modulation", "patch_embedding.weight" } },
        { SL_COMPONENT_VAE, { "decoder.conv1.weight", "conv2.weight" } },
        { SL_COMPONENT_TEXT_ENCODER, { "token_embedding.weight", "blocks.0.attn.q.weight" } },
    };

    for (size_t i = 0; i < SL_COUNT(signs); i++) {
        if (sl_names_find(ckpt, signs[i].names[0]) && sl_names_find(ckpt, signs[i].names[1])) {
            *kind = signs[i].kind;
            return true;
        }
    }
    return false;
}

/* Dimension `i` of a tensor that must have `rank` of them. */
static sl_status dim_of(const sl_ckpt *ckpt, const char *name, int rank, int i, int64_t *out,
                        sl_error *err)
{
    const sl_ckpt_tensor *t = sl_names_find(ckpt, name);
    char buf[SL_NAME_BYTES];

    if (!t)
        return sl_fail(err, SL_ERR_DATA, "tensor \"%s\" is missing",
                       sl_names_in_file(ckpt, name, buf));
    if (t->tensor.rank != rank)
        return sl_fail(err, SL_ERR_DATA, "tensor \"%s\" has %d dimensions, expected %d", t->name,
                       t->tensor.rank, rank);
    *out = t->tensor.dim[i];
    return SL_OK;
}

typedef struct {
    const char *name;
    int rank, dim;
    int64_t *out;
} probe;

static sl_status run_probes(const sl_ckpt *ckpt, const probe *probes, size_t count, sl_error *err)
{
    sl_status status = sl_names_refuse_fp8(ckpt, err);

    for (size_t i = 0; i < count && status == SL_OK; i++)
        status = dim_of(ckpt, probes[i].name, probes[i].rank, probes[i].dim, probes[i].out, err);
    return status;
}

/* How many blocks.<i>.<tail> there are from 0 on, at most SL_MAX_LAYERS + 1
 * (which the config's check then refuses). */
static int64_t count_blocks(const sl_ckpt *ckpt, const char *tail)
{
    int64_t i = 0;

    for (; i <= SL_MAX_LAYERS; i++) {
        char name[64];
        snprintf(name, sizeof name, "blocks.%lld.%s", (long long)i, tail);
        if (!sl_names_find(ckpt, name))
            break;
    }
    return i;
}

static sl_status compare_json(const sl_dit_json *json, sl_dit_config *found, sl_error *err)
{
    for (size_t i = 0; i < SL_COUNT(json_fields); i++) {
        sl_dit_config copy = json->config;
        const int64_t said = *field(&copy, json_fields[i].offset);
        const int64_t is = *field(found, json_fields[i].offset);

        if (json->has & json_fields[i].bit && said != is)
            return sl_fail(err, SL_ERR_DATA, "config.json says %s %lld, the tensors say %lld",
                           json_fields[i].key, (long long)said, (long long)is);
    }
    return SL_OK;
}

sl_status sl_probe_dit(const sl_ckpt *ckpt, const sl_dit_json *json, sl_dit_config *out,
                       sl_error *err)
{
    const sl_ckpt_tensor *patch = sl_names_find(ckpt, "patch_embedding.weight");
    sl_dit_config c = { .dim = 0 };
    int64_t head_rows = 0;
    const probe probes[] = {
        { "patch_embedding.bias", 1, 0, &c.dim },
        { "blocks.0.ffn.0.bias", 1, 0, &c.ffn_dim },
        { "text_embedding.0.weight", 2, 1, &c.text_dim },
        { "time_embedding.0.weight", 2, 1, &c.freq_dim },
        { "head.head.weight", 2, 0, &head_rows },
    };
    sl_status status;

    status = run_probes(ckpt, probes, SL_COUNT(probes), err);
    if (status != SL_OK)
        return status;
    if (!patch || (patch->tensor.rank != 2 && patch->tensor.rank != 5))
        return sl_fail(err, SL_ERR_DATA,
                       "tensor \"patch_embedding.weight\" is missing or has neither 2 nor 5 "
                       "dimensions");
    c.in_dim = patch->tensor.rank == 5 ? patch->tensor.dim[1] : patch->tensor.dim[1] / 4;
    c.out_dim = head_rows / 4;
    c.num_layers = count_blocks(ckpt, "modulation");
    c.num_heads = json->has & SL_DIT_JSON_NUM_HEADS ? json->config.num_heads : c.dim / 128;
    c.text_len = json->has & SL_DIT_JSON_TEXT_LEN ? json->config.text_len : 512;
    c.eps = json->has & SL_DIT_JSON_EPS ? json->config.eps : 1e-6f;
    status = compare_json(json, &c, err);
    if (status == SL_OK)
        status = sl_dit_config_check(&c, err);
    if (status == SL_ERR_INVALID)
        status = SL_ERR_DATA; /* the values are a file's, not a caller's */
    if (status == SL_OK)
        *out = c;
    return status;
}

sl_status sl_probe_t5(const sl_ckpt *ckpt, sl_t5_config *out, sl_error *err)
{
    static const char pos[] = "blocks.0.pos_embedding.embedding.weight";
    sl_t5_config c = { .max_distance = 128, .eps = 1e-6f };
    const probe probes[] = {
        { "token_embedding.weight", 2, 0, &c.vocab },
        { "token_embedding.weight", 2, 1, &c.dim },
        { "blocks.0.attn.q.weight", 2, 0, &c.dim_attn },
        { "blocks.0.ffn.fc1.weight", 2, 0, &c.dim_ffn },
        { pos, 2, 0, &c.num_buckets },
        { pos, 2, 1, &c.num_heads },
    };
    sl_status status = run_probes(ckpt, probes, SL_COUNT(probes), err);

    if (status != SL_OK)
        return status;
    c.num_layers = count_blocks(ckpt, "norm1.weight");
    status = sl_t5_config_check(&c, err);
    if (status == SL_ERR_INVALID)
        status = SL_ERR_DATA;
    if (status == SL_OK)
        *out = c;
    return status;
}

/* Walks encoder.downsamples.0, 1, 2, ...: residual blocks, then a resampling
 * step that ends a stage. */
static sl_status probe_encoder(const sl_ckpt *ckpt, sl_vae_config *c, sl_error *err)
{
    int64_t blocks = 0, out = 0;
    int stage = 0;
    sl_status status = SL_OK;

    for (int64_t i = 0; i < 64 && status == SL_OK; i++) {
        char res[64], resample[64], time[64];
        bool end;

        snprintf(res, sizeof res, "encoder.downsamples.%lld.residual.2.weight", (long long)i);
        snprintf(resample, sizeof resample, "encoder.downsamples.%lld.resample.1.weight",
                 (long long)i);
        snprintf(time, sizeof time, "encoder.downsamples.%lld.time_conv.weight", (long long)i);
        if (sl_names_find(ckpt, res)) {
            status = dim_of(ckpt, res, 5, 0, &out, err);
            blocks++;
            continue;
        }
        end = !sl_names_find(ckpt, resample);
        if (end != (stage == 3) || blocks == 0 || (stage > 0 && blocks != c->num_res_blocks) ||
            c->dim <= 0 || out % c->dim != 0)
            return sl_fail(err, SL_ERR_DATA,
                           "encoder.downsamples.%lld: no Wan VAE has such an encoder (stage %d, "
                           "%lld residual blocks, %lld channels)",
                           (long long)i, stage, (long long)blocks, (long long)out);
        c->num_res_blocks = blocks;
        c->dim_mult[stage] = out / c->dim;
        if (end)
            return SL_OK;
        c->temporal_down[stage++] = sl_names_find(ckpt, time) != NULL;
        blocks = 0;
    }
    return status != SL_OK ? status : sl_fail(err, SL_ERR_DATA, "encoder.downsamples has no end");
}

sl_status sl_probe_vae(const sl_ckpt *ckpt, sl_vae_config *out, sl_error *err)
{
    sl_vae_config c = { .dim = 0 };
    const probe probes[] = {
        { "encoder.conv1.weight", 5, 0, &c.dim },
        { "conv2.weight", 5, 0, &c.z_dim },
    };
    sl_status status = run_probes(ckpt, probes, SL_COUNT(probes), err);

    if (status == SL_OK)
        status = probe_encoder(ckpt, &c, err);
    if (status != SL_OK)
        return status;
    /* the statistics are no part of the file */
    memcpy(c.mean, sl_wan_latent_mean, sizeof c.mean);
    memcpy(c.std, sl_wan_latent_std, sizeof c.std);
    status = sl_vae_config_check(&c, err);
    if (status == SL_ERR_INVALID)
        status = SL_ERR_DATA;
    if (status == SL_OK)
        *out = c;
    return status;
}

static sl_status read_json_beside(const char *path, sl_dit_json *json, sl_error *err)
{
    const char *slash = strrchr(path, '/');
    const int folder = slash ? (int)(slash - path) + 1 : 0;
    char *name = NULL;
    sl_status status = SL_OK;

    *json = (sl_dit_json){ .has = 0 };
    if (asprintf(&name, "%.*sconfig.json", folder, path) < 0)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a path");
    if (access(name, F_OK) == 0)
        status = sl_dit_json_read(json, name, err);
    free(name);
    return status;
}

sl_status sl_probe_spec(const sl_ckpt *ckpt, sl_component_spec *out, sl_error *err)
{
    const char *path = sl_ckpt_path(ckpt);
    sl_component_spec spec = { .precision = SL_PRECISION_F32 };
    sl_dit_json json;
    sl_status status;

    if (!sl_probe_kind(ckpt, &spec.kind))
        return sl_fail(err, SL_ERR_DATA,
                       "\"%s\" is no diffusion transformer, umT5 encoder or Wan VAE", path);
    switch (spec.kind) {
    case SL_COMPONENT_TEXT_ENCODER:
        status = sl_probe_t5(ckpt, &spec.config.t5, err);
        break;
    case SL_COMPONENT_VAE:
        status = sl_probe_vae(ckpt, &spec.config.vae, err);
        break;
    default:
        status = read_json_beside(path, &json, err);
        if (status == SL_OK)
            status = sl_probe_dit(ckpt, &json, &spec.config.dit, err);
    }
    if (status != SL_OK)
        sl_error_prefix(err, "\"%s\"", path);
    else
        *out = spec;
    return status;
}
