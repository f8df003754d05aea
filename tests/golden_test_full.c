/* golden_test_full.c - networks at their real size, with generated weights.
 *
 * Weights are made in memory by the rules of the golden set, in bf16: the
 * generator's values are bf16, so nothing is lost.  Minutes on a small machine;
 * a case that does not fit into free memory is skipped.
 */
#include "tests/golden_test.h"

#include "base/size.h"
#include "engine/model/synth.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TENSOR_ALIGN ((size_t)256)
#define PIECE_VALUES ((int64_t)1 << 18)
#define SPARE_BYTES  ((size_t)2 << 30) /* left to activations and to everyone else */

/* A network in memory. */
typedef struct {
    golden_env *env;
    uint64_t seed;
    sl_region *region;
    size_t used_bytes;
    union {
        sl_dit_weights dit;
        sl_t5_weights t5;
        sl_vae_weights vae;
    } weights;
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

/* *fits false: not enough free memory, and the case says that it is skipped. */
static sl_status generate(golden_case *c, const sl_component_spec *spec, generated *net, bool *fits,
                          sl_error *err)
{
    const size_t need = sl_component_plan_bytes(spec);
    const size_t have = (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    char need_text[32], have_text[32];
    sl_status status = SL_OK;

    net->env = c->env;
    net->seed = (uint64_t)golden_number(c->json, "seed", 1);
    *fits = have > SPARE_BYTES && need <= have - SPARE_BYTES;
    if (!*fits) {
        golden_skip_case(c, "needs %s of weights, %s are free",
                         sl_size_format(need, need_text, sizeof need_text),
                         sl_size_format(have, have_text, sizeof have_text));
        return SL_OK;
    }
    GOLDEN_TRY(sl_region_create(&net->region, c->env->device, "generated weights", need, err));
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

/* "generator ..., shape [1,16,5,30,52], ..." with an optional "a=1.0": fills a
 * tensor in scratch, the leading batch of 1 dropped. */
static sl_status generate_input(golden_case *c, const char *name, sl_tensor *out, sl_error *err)
{
    const cJSON *inputs = cJSON_GetObjectItemCaseSensitive(c->json, "inputs");
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(inputs, name);
    const char *at = cJSON_IsString(text) ? strstr(text->valuestring, "shape [") : NULL;
    const char *scale = cJSON_IsString(text) ? strstr(text->valuestring, " a=") : NULL;
    const uint64_t seed = (uint64_t)golden_number(c->json, "seed", 1);
    int64_t dim[SL_MAX_RANK + 1] = { 0 };
    int rank = 0;
    sl_status status;

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
    status = sl_scratch_take(&c->env->scratch, out, err, SL_F32, rank - 1, dim + 1);
    if (status != SL_OK)
        return status;
    if (scale)
        sl_synth_f32_scaled(out->data, name, seed, (float)atof(scale + strlen(" a=")), 0,
                            sl_tensor_count(out));
    else
        sl_synth_f32(out->data, name, seed, 1, 0, sl_tensor_count(out));
    return SL_OK;
}

sl_status golden_run_full_vae(golden_case *c, sl_error *err)
{
    const sl_vae_config config = golden_vae_config(c->config);
    static generated net;
    sl_status status = SL_OK;
    sl_component_spec spec;
    sl_tensor latent = { .data = NULL }, video = { .data = NULL };
    bool fits;

    memset(&net, 0, sizeof net);
    GOLDEN_TRY(golden_make_spec(&spec, SL_COMPONENT_VAE, SL_PRECISION_BF16, &config, err));
    GOLDEN_TRY(generate(c, &spec, &net, &fits, err));
    if (!fits)
        goto done;
    GOLDEN_TRY(generate_input(c, "in.latent", &latent, err));
    GOLDEN_TRY(golden_decode(c, &net.weights.vae, &config, &latent, "out.video", NULL, "f32_rel_l2",
                             NULL, err));
    GOLDEN_TRY(generate_input(c, "in.video", &video, err));
    GOLDEN_TRY(golden_encode(c, &net.weights.vae, &config, &video, "out.mu", NULL, "f32_rel_l2",
                             NULL, err));
done:
    sl_region_destroy(net.region);
    return status;
}

sl_status golden_run_full_t5(golden_case *c, sl_error *err)
{
    const sl_t5_config config = golden_t5_config(c->config);
    static generated net;
    sl_status status = SL_OK;
    sl_component_spec spec;
    bool fits;

    memset(&net, 0, sizeof net);
    GOLDEN_TRY(golden_make_spec(&spec, SL_COMPONENT_TEXT_ENCODER, SL_PRECISION_BF16, &config, err));
    GOLDEN_TRY(generate(c, &spec, &net, &fits, err));
    if (fits)
        GOLDEN_TRY(golden_encode_text(c, &net.weights.t5, &config, NULL, "f32_rel_l2", NULL, err));
done:
    sl_region_destroy(net.region);
    return status;
}

/* The rows that the case gives, and zeros up to text_len. */
static sl_status generate_text(golden_case *c, const sl_dit_config *config, sl_tensor *out,
                               sl_error *err)
{
    sl_tensor rows = { .data = NULL };
    sl_status status = generate_input(c, "in.text", &rows, err);

    if (status != SL_OK)
        return status;
    if (rows.rank != 2 || rows.dim[0] > config->text_len || rows.dim[1] != config->text_dim)
        return sl_fail(err, SL_ERR_DATA, "\"in.text\" has another shape than the config");
    status = sl_scratch_tensor(&c->env->scratch, out, err, SL_F32, 2, config->text_len,
                               config->text_dim);
    if (status == SL_OK) {
        memset(out->data, 0, sl_tensor_bytes(out));
        memcpy(out->data, rows.data, sl_tensor_bytes(&rows));
    }
    return status;
}

sl_status golden_run_full_dit(golden_case *c, sl_error *err)
{
    const sl_dit_config config = golden_dit_config(c->config);
    const cJSON *attention = cJSON_GetObjectItemCaseSensitive(c->json, "attention");
    const cJSON *inputs = cJSON_GetObjectItemCaseSensitive(c->json, "inputs");
    static generated net;
    sl_dit_attention_options options = { .mode = SL_ATTENTION_DENSE };
    sl_tensor luts[SL_MAX_LAYERS];
    sl_status status = SL_OK;
    golden_array maps;
    sl_component_spec spec;
    sl_tensor latent = { .data = NULL }, text = { .data = NULL };
    bool fits;

    memset(&net, 0, sizeof net);
    if (!cJSON_IsString(attention))
        return sl_fail(err, SL_ERR_DATA, "the case does not tell its \"attention\"");
    if (strncmp(attention->valuestring, "SLA", 3) == 0) {
        GOLDEN_TRY(golden_get(c, "mid.maps", &maps, err));
        for (int64_t i = 0; i < config.num_layers && i < SL_MAX_LAYERS; i++)
            GOLDEN_TRY(golden_make_lut(c, &maps, i, &luts[i], err));
        options = (sl_dit_attention_options){ .mode = SL_ATTENTION_SLA,
                                              .topk_ratio = SL_DEFAULT_TOPK_RATIO,
                                              .luts = luts };
    } else if (strncmp(attention->valuestring, "dense", 5) != 0) {
        golden_skip_case(c, "attention \"%s\" is not known", attention->valuestring);
        return SL_OK;
    }
    GOLDEN_TRY(golden_make_spec(&spec, SL_COMPONENT_DIT, SL_PRECISION_BF16, &config, err));
    GOLDEN_TRY(generate(c, &spec, &net, &fits, err));
    if (!fits)
        goto done;
    GOLDEN_TRY(generate_input(c, "in.latent", &latent, err));
    GOLDEN_TRY(generate_text(c, &config, &text, err));
    GOLDEN_TRY(golden_forward(c, &net.weights.dit, &config, &options, &latent, &text,
                              golden_number(inputs, "t", -1), NULL, "out.velocity", "f32_rel_l2",
                              NULL, err));
done:
    sl_region_destroy(net.region);
    return status;
}
