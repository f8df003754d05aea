/* The transformer against an evaluation in f64 that knows no tiles, with more
 * tokens than a tile holds; and what it says to wrong input. */
#include "engine/nets/dit.h"

#include "engine/nets/net_test.h"

/* 2208 tokens: one whole tile and a piece of the next. */
enum { T = 3, H = 64, W = 46, GH = H / 2, GW = W / 2, S = T * GH * GW, TEXT = 5 };

static const sl_dit_config config = { .dim = 24,
                                      .ffn_dim = 20,
                                      .num_heads = 3,
                                      .num_layers = 2,
                                      .in_dim = 3,
                                      .out_dim = 2,
                                      .text_dim = 6,
                                      .text_len = TEXT,
                                      .freq_dim = 8,
                                      .eps = 1e-6f };
enum { D = 24, HEADS = 3, HEAD = D / HEADS, IN = 3, OUT = 2, PADDING = 32 - D };

static double *zeros(int64_t count)
{
    double *v = calloc((size_t)count, sizeof *v);

    SL_CHECK(v != NULL);
    return v;
}

static double weight(const sl_tensor *t, int64_t i)
{
    return (double)((const float *)t->data)[i];
}

static double gelu(double v)
{
    return 0.5 * v * (1.0 + tanh(sqrt(2.0 / 3.14159265358979323846) * (v + 0.044715 * v * v * v)));
}

static double silu(double v)
{
    return v / (1.0 + exp(-v));
}

/* y [rows, O] = x [rows, I] W^T + b */
static double *affine(const double *x, int64_t rows, const sl_affine *a, double (*act)(double))
{
    const int64_t O = a->w.dim[0], I = a->w.dim[1];
    double *y = zeros(rows * O);

    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < O; o++) {
            double sum = weight(&a->b, o);
            for (int64_t i = 0; i < I; i++)
                sum += x[r * I + i] * weight(&a->w, o * I + i);
            y[r * O + o] = act ? act(sum) : sum;
        }
    return y;
}

/* (x - mean) / sqrt(var + eps), then * (1 + scale) + shift.  padding: zeros that the
 * variance counts. */
static double *layer_norm(const double *x, int64_t rows, const double *scale, const double *shift,
                          int64_t padding)
{
    double *y = zeros(rows * D);

    for (int64_t r = 0; r < rows; r++) {
        double mean = 0.0, var = 0.0;

        for (int64_t c = 0; c < D; c++)
            mean += x[r * D + c] / D;
        for (int64_t c = 0; c < D; c++)
            var += (x[r * D + c] - mean) * (x[r * D + c] - mean) / D;
        var += (double)padding * mean * mean / D;
        for (int64_t c = 0; c < D; c++)
            y[r * D + c] =
                (x[r * D + c] - mean) / sqrt(var + (double)config.eps) * (1.0 + scale[c]) +
                shift[c];
    }
    return y;
}

/* Over all D channels, before the heads are split. */
static void rms_norm(double *x, int64_t rows, const sl_tensor *w)
{
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0.0;

        for (int64_t c = 0; c < D; c++)
            sum += x[r * D + c] * x[r * D + c];
        for (int64_t c = 0; c < D; c++)
            x[r * D + c] *= weight(w, c) / sqrt(sum / D + (double)config.eps);
    }
}

/* Head size 8: four pairs, of which h and w have one each (8 / 6) and t the
 * other two; adjacent elements are a pair. */
static void rope(double *x)
{
    for (int64_t s = 0; s < S; s++) {
        const int64_t place[4] = { s / (GH * GW), s / (GH * GW), s / GW % GH, s % GW };
        const double power[4] = { 1.0, pow(10000.0, -2.0 / 4.0), 1.0, 1.0 };

        for (int64_t n = 0; n < HEADS; n++)
            for (int64_t j = 0; j < 4; j++) {
                double *p = x + s * D + n * HEAD + 2 * j;
                const double angle = (double)place[j] * power[j], a = p[0], b = p[1];

                p[0] = a * cos(angle) - b * sin(angle);
                p[1] = a * sin(angle) + b * cos(angle);
            }
    }
}

static double *attend(const double *q, const double *k, const double *v, int64_t keys)
{
    double *o = zeros(S * D), *p = zeros(keys);

    for (int64_t s = 0; s < S; s++)
        for (int64_t n = 0; n < HEADS; n++) {
            double total = 0.0;

            for (int64_t i = 0; i < keys; i++) {
                double dot = 0.0;
                for (int64_t c = n * HEAD; c < (n + 1) * HEAD; c++)
                    dot += q[s * D + c] * k[i * D + c];
                p[i] = exp(dot / sqrt((double)HEAD));
                total += p[i];
            }
            for (int64_t i = 0; i < keys; i++)
                for (int64_t c = n * HEAD; c < (n + 1) * HEAD; c++)
                    o[s * D + c] += p[i] / total * v[i * D + c];
        }
    free(p);
    return o;
}

/* x += y * gate */
static void add(double *x, double *y, const double *gate)
{
    for (int64_t i = 0; i < S * D; i++)
        x[i] += y[i] * (gate ? gate[i % D] : 1.0);
    free(y);
}

static double *attention(const double *a, const double *context, int64_t keys,
                         const sl_dit_attention *w, bool rotate)
{
    double *q = affine(a, S, &w->q, NULL), *k = affine(context, keys, &w->k, NULL);
    double *v = affine(context, keys, &w->v, NULL), *o, *y;

    rms_norm(q, S, &w->norm_q);
    rms_norm(k, keys, &w->norm_k);
    if (rotate) {
        rope(q);
        rope(k);
    }
    o = attend(q, k, v, keys);
    y = affine(o, S, &w->o, NULL);
    free(q);
    free(k);
    free(v);
    free(o);
    return y;
}

static void block(double *x, const double *e0, const double *context, const sl_dit_block *w,
                  int64_t padding)
{
    double m[6 * D], scale[D], shift[D], *a, *hidden;

    for (int64_t i = 0; i < 6 * D; i++)
        m[i] = e0[i] + weight(&w->modulation, i);
    a = layer_norm(x, S, m + D, m, padding);
    add(x, attention(a, a, S, &w->self_attn, true), m + 2 * D);
    free(a);
    for (int64_t c = 0; c < D; c++) {
        scale[c] = weight(&w->norm3.w, c) - 1.0;
        shift[c] = weight(&w->norm3.b, c);
    }
    a = layer_norm(x, S, scale, shift, padding);
    add(x, attention(a, context, TEXT, &w->cross_attn, false), NULL);
    free(a);
    a = layer_norm(x, S, m + 4 * D, m + 3 * D, padding);
    hidden = affine(a, S, &w->ffn0, gelu);
    add(x, affine(hidden, S, &w->ffn2, NULL), m + 5 * D);
    free(a);
    free(hidden);
}

static void time_vectors(const sl_dit_weights *w, double t, double **e, double **e0)
{
    double wave[8], *hidden;

    for (int j = 0; j < 4; j++) {
        wave[j] = cos(t * pow(10000.0, -j / 4.0));
        wave[4 + j] = sin(t * pow(10000.0, -j / 4.0));
    }
    hidden = affine(wave, 1, &w->time0, silu);
    *e = affine(hidden, 1, &w->time2, NULL);
    free(hidden);
    hidden = zeros(D);
    for (int c = 0; c < D; c++)
        hidden[c] = silu((*e)[c]);
    *e0 = affine(hidden, 1, &w->time_proj, NULL);
    free(hidden);
}

/* velocity [OUT, T, H, W] */
static double *evaluate(const sl_dit_weights *w, double t, const float *latent, const float *text,
                        int64_t padding)
{
    double *tokens = zeros(S * IN * 4), *rows = zeros(TEXT * config.text_dim), *velocity;
    double *x, *e, *e0, *hidden, *context, *a, *out, shift[D], scale[D];

    for (int64_t i = 0; i < TEXT * config.text_dim; i++)
        rows[i] = (double)text[i];
    for (int64_t s = 0; s < S; s++)
        for (int64_t f = 0; f < IN * 4; f++) {
            const int64_t row = s / GW % GH * 2 + f / 2 % 2, col = s % GW * 2 + f % 2;
            tokens[s * IN * 4 + f] =
                (double)latent[((f / 4 * T + s / (GH * GW)) * H + row) * W + col];
        }
    x = affine(tokens, S, &w->patch, NULL);
    hidden = affine(rows, TEXT, &w->text0, gelu);
    context = affine(hidden, TEXT, &w->text2, NULL);
    time_vectors(w, t, &e, &e0);
    for (int64_t i = 0; i < config.num_layers; i++)
        block(x, e0, context, &w->blocks[i], padding);
    for (int c = 0; c < D; c++) {
        shift[c] = e[c] + weight(&w->head_modulation, c);
        scale[c] = e[c] + weight(&w->head_modulation, D + c);
    }
    a = layer_norm(x, S, scale, shift, 0);
    out = affine(a, S, &w->head, NULL);
    velocity = zeros(OUT * T * H * W);
    for (int64_t s = 0; s < S; s++)
        for (int64_t f = 0; f < OUT * 4; f++) {
            const int64_t row = s / GW % GH * 2 + f / OUT / 2, col = s % GW * 2 + f / OUT % 2;
            velocity[((f % OUT * T + s / (GH * GW)) * H + row) * W + col] = out[s * OUT * 4 + f];
        }
    double *const spent[] = { tokens, rows, x, e, e0, hidden, context, a, out };
    for (size_t i = 0; i < SL_COUNT(spent); i++)
        free(spent[i]);
    return velocity;
}

typedef struct {
    net_test net;
    sl_dit_weights weights;
    sl_dit_text prepared;
    sl_tensor text, latent, velocity;
} fixture;

static void open_fixture(fixture *f)
{
    sl_error error = { .status = SL_OK }, *err = &error;

    net_test_open(&f->net);
    SL_CHECK_OK(sl_dit_visit(&f->weights, &config, SL_LAYOUT_OFFICIAL, SL_PRECISION_F32,
                             net_test_weight, &f->net, err));
    f->text = NET_TEST_INPUT(&f->net, 3, 2, TEXT, config.text_dim);
    f->latent = NET_TEST_INPUT(&f->net, 5, 4, IN, T, H, W);
    SL_CHECK_OK(sl_scratch_tensor(&f->net.scratch, &f->velocity, err, SL_F32, 4, OUT, T, H, W));
    SL_CHECK_OK(sl_dit_prepare(f->net.exec, &f->net.scratch, &f->weights, &config, &f->text,
                               &f->prepared, NULL, err));
}

static double forward_error(fixture *f, const sl_dit_attention_options *options, int64_t padding)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    const size_t before = sl_scratch_mark(&f->net.scratch);

    SL_CHECK_OK(sl_dit_forward(f->net.exec, &f->net.scratch, &f->weights, &config, &f->prepared,
                               options, 852.0, &f->latent, &f->velocity, NULL, err));
    SL_CHECK(sl_scratch_mark(&f->net.scratch) == before);
    double *want = evaluate(&f->weights, 852.0, f->latent.data, f->text.data, padding);
    const double relative =
        net_test_rel_l2(f->velocity.data, want, sl_tensor_count(&f->velocity));
    free(want);
    return relative;
}

SL_TEST(tiles_do_not_show)
{
    fixture f;

    open_fixture(&f);
    const double error = forward_error(&f, NULL, 0);
    if (!(error <= 1e-5))
        fail_msg("relative L2 %g", error);
    net_test_close(&f.net);
}

/* Wan's angles are nearer to the formula than those of f32; the norms of the
 * reference's kernel are another function, and its head has the exact one. */
SL_TEST(dialects_and_norms)
{
    const sl_dit_attention_options official = { .dialect = SL_DIALECT_OFFICIAL };
    const sl_dit_attention_options compat = { .norm = SL_LAYER_NORM_TURBO_COMPAT };
    fixture f;

    open_fixture(&f);
    const double exact = forward_error(&f, &official, 0), padded = forward_error(&f, &compat, PADDING);
    const double other = forward_error(&f, &compat, 0);
    if (!(exact <= 1e-5 && padded <= 1e-5))
        fail_msg("relative L2: official %g, turbo-compat %g", exact, padded);
    SL_CHECK(other > 1e-4);
    net_test_close(&f.net);
}

static const sl_dit_attention_options modes[] = {
    { .mode = SL_ATTENTION_DENSE },
    { .mode = SL_ATTENTION_SLA, .topk_ratio = 0.1 },
    { .mode = SL_ATTENTION_SLA, .topk_ratio = 1.0, .block_q = 64, .block_k = 128 },
    { .mode = SL_ATTENTION_SAGESLA, .topk_ratio = 0.1 },
};

SL_TEST(counting_takes_what_running_takes)
{
    fixture f;

    open_fixture(&f);
    for (size_t i = 0; i < SL_COUNT(modes); i++) {
        sl_scratch counting;
        sl_dit_text text;

        f.net.scratch.peak_bytes = f.net.scratch.used_bytes;
        const size_t before = f.net.scratch.used_bytes;
        SL_CHECK_OK(sl_dit_forward(f.net.exec, &f.net.scratch, &f.weights, &config, &f.prepared,
                                   &modes[i], 1.0, &f.latent, &f.velocity, NULL, err));
        SL_CHECK(f.net.scratch.used_bytes == before);
        const size_t peak = f.net.scratch.peak_bytes - before;

        sl_scratch_init_counting(&counting);
        SL_CHECK_OK(sl_dit_prepare(f.net.counting, &counting, &f.weights, &config, &f.text, &text,
                                   NULL, err));
        const size_t mark = counting.used_bytes;
        counting.peak_bytes = mark;
        SL_CHECK_OK(sl_dit_forward(f.net.counting, &counting, &f.weights, &config, &text, &modes[i],
                                   1.0, &f.latent, &f.velocity, NULL, err));
        SL_CHECK(counting.peak_bytes - mark == peak);
    }
    net_test_close(&f.net);
}

/* All blocks kept and a projection of zeros: what dense attention gives. */
SL_TEST(sparse_attention_becomes_dense)
{
    const sl_dit_attention_options all = { .mode = SL_ATTENTION_SLA, .topk_ratio = 1.0 };
    fixture f;
    double *want;

    open_fixture(&f);
    for (int64_t i = 0; i < config.num_layers; i++) {
        sl_affine *proj = &f.weights.blocks[i].proj_l;
        memset(proj->w.data, 0, sl_tensor_bytes(&proj->w));
        memset(proj->b.data, 0, sl_tensor_bytes(&proj->b));
    }
    SL_CHECK_OK(sl_dit_forward(f.net.exec, &f.net.scratch, &f.weights, &config, &f.prepared, &all,
                               852.0, &f.latent, &f.velocity, NULL, err));
    want = evaluate(&f.weights, 852.0, f.latent.data, f.text.data, 0);
    SL_CHECK(net_test_rel_l2(f.velocity.data, want, sl_tensor_count(&f.velocity)) <= 1e-5);
    free(want);
    net_test_close(&f.net);
}

SL_TEST(refuses_other_shapes)
{
    fixture f;
    sl_tensor odd, wrong;

    open_fixture(&f);
    odd = f.latent;
    odd.dim[2]--;
    wrong = f.velocity;
    wrong.dim[2]--;
    SL_CHECK_STATUS(sl_dit_forward(f.net.exec, &f.net.scratch, &f.weights, &config, &f.prepared,
                                   NULL, 1.0, &odd, &wrong, NULL, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "even h and w"));
    SL_CHECK_STATUS(sl_dit_forward(f.net.exec, &f.net.scratch, &f.weights, &config, &f.prepared,
                                   NULL, 1.0, &f.velocity, &f.velocity, NULL, err),
                    SL_ERR_INVALID);
    const sl_dit_attention_options none = { .mode = SL_ATTENTION_SLA, .topk_ratio = 0.0 };
    SL_CHECK_STATUS(sl_dit_forward(f.net.exec, &f.net.scratch, &f.weights, &config, &f.prepared,
                                   &none, 1.0, &f.latent, &f.velocity, NULL, err),
                    SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "top-k ratio 0"));
    atomic_store(&f.net.cancel, 1);
    const size_t before = sl_scratch_mark(&f.net.scratch);
    SL_CHECK_STATUS(sl_dit_forward(f.net.exec, &f.net.scratch, &f.weights, &config, &f.prepared,
                                   NULL, 1.0, &f.latent, &f.velocity, NULL, err),
                    SL_ERR_CANCELLED);
    SL_CHECK(sl_scratch_mark(&f.net.scratch) == before);
    net_test_close(&f.net);
}

SL_TEST_MAIN(SL_RUN(tiles_do_not_show), SL_RUN(dialects_and_norms),
             SL_RUN(counting_takes_what_running_takes),
             SL_RUN(sparse_attention_becomes_dense), SL_RUN(refuses_other_shapes))
