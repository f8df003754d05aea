/* Both directions against an evaluation of the whole sequence at once, in f64 and
 * by definition (wan.md 8.4): no chunks, no caches, no folded upsampling. */
#include "engine/nets/vae.h"

#include "engine/nets/net_test.h"

/* A video [n, H, W, C] in f64. */
typedef struct {
    int64_t n, H, W, C;
    double *v;
} video;

static video video_make(int64_t n, int64_t H, int64_t W, int64_t C)
{
    video x = { n, H, W, C, calloc((size_t)(n * H * W * C), sizeof(double)) };

    SL_CHECK(x.v != NULL);
    return x;
}

static double *at(const video *x, int64_t t, int64_t i, int64_t j)
{
    return x->v + ((t * x->H + i) * x->W + j) * x->C;
}

/* Frees x. */
static video replace(video x, video y)
{
    free(x.v);
    return y;
}

/* Causal over time, centred over space; keeps x. */
static video conv(const video *x, const sl_affine *a)
{
    const int64_t O = a->w.dim[0], kt = a->w.dim[1], k = a->w.dim[2], I = x->C;
    const float *w = a->w.data, *b = a->b.data;
    video y = video_make(x->n, x->H, x->W, O);

    for (int64_t p = 0; p < y.n * y.H * y.W; p++) {
        const int64_t t = p / (y.H * y.W), i = p / y.W % y.H, j = p % y.W;

        for (int64_t o = 0; o < O; o++) {
            double sum = (double)b[o];

            for (int64_t q = 0; q < kt * k * k; q++) {
                const int64_t ti = t + q / (k * k) - (kt - 1);
                const int64_t ii = i + q / k % k - k / 2, jj = j + q % k - k / 2;

                if (ti < 0 || ii < 0 || jj < 0 || ii >= x->H || jj >= x->W)
                    continue;
                for (int64_t c = 0; c < I; c++)
                    sum += (double)w[(o * kt * k * k + q) * I + c] * at(x, ti, ii, jj)[c];
            }
            at(&y, t, i, j)[o] = sum;
        }
    }
    return y;
}

static video norm(const video *x, const sl_tensor *gamma, bool silu)
{
    video y = video_make(x->n, x->H, x->W, x->C);

    for (int64_t p = 0; p < x->n * x->H * x->W; p++) {
        const double *in = x->v + p * x->C;
        double sum = 0.0;

        for (int64_t c = 0; c < x->C; c++)
            sum += in[c] * in[c];
        for (int64_t c = 0; c < x->C; c++) {
            const double v = in[c] / fmax(sqrt(sum), 1e-12) * sqrt((double)x->C) *
                             (double)((const float *)gamma->data)[c];
            y.v[p * x->C + c] = silu ? v / (1.0 + exp(-v)) : v;
        }
    }
    return y;
}

static video res_block(video x, const sl_vae_res *w)
{
    video h = norm(&x, &w->norm0, true);

    h = replace(h, conv(&h, &w->conv2));
    h = replace(h, norm(&h, &w->norm3, true));
    h = replace(h, conv(&h, &w->conv6));
    if (w->shortcut.w.data)
        x = replace(x, conv(&x, &w->shortcut));
    for (int64_t i = 0; i < x.n * x.H * x.W * x.C; i++)
        h.v[i] += x.v[i];
    free(x.v);
    return h;
}

static void affine(double *y, const double *x, const sl_affine *a, int64_t first, int64_t O)
{
    const int64_t I = a->w.dim[1];

    for (int64_t o = 0; o < O; o++) {
        y[o] = (double)((const float *)a->b.data)[first + o];
        for (int64_t i = 0; i < I; i++)
            y[o] += (double)((const float *)a->w.data)[(first + o) * I + i] * x[i];
    }
}

static void attention(video *x, const sl_vae_attn *w)
{
    const int64_t P = x->H * x->W, C = x->C;
    video h = norm(x, &w->norm, false), q = video_make(3, P, 1, C);
    double *p = calloc((size_t)P, sizeof *p), *o = calloc((size_t)C, sizeof *o);

    SL_CHECK(p && o);
    for (int64_t t = 0; t < x->n; t++) {
        for (int64_t i = 0; i < P; i++)
            for (int64_t part = 0; part < 3; part++)
                affine(at(&q, part, i, 0), h.v + (t * P + i) * C, &w->qkv, part * C, C);
        for (int64_t i = 0; i < P; i++) {
            double total = 0.0;

            for (int64_t k = 0; k < P; k++) {
                p[k] = 0.0;
                for (int64_t c = 0; c < C; c++)
                    p[k] += at(&q, 0, i, 0)[c] * at(&q, 1, k, 0)[c];
                p[k] = exp(p[k] / sqrt((double)C));
                total += p[k];
            }
            for (int64_t c = 0; c < C; c++) {
                o[c] = 0.0;
                for (int64_t k = 0; k < P; k++)
                    o[c] += p[k] / total * at(&q, 2, k, 0)[c];
            }
            double *out = h.v + (t * P + i) * C; /* this row of h is used up */
            affine(out, o, &w->proj, 0, C);
        }
    }
    for (int64_t i = 0; i < x->n * P * C; i++)
        x->v[i] += h.v[i];
    free(h.v);
    free(q.v);
    free(p);
    free(o);
}

/* y0 = x0, then two frames for each later one; frame 0 counts as zero. */
static video double_time(video x, const sl_affine *a)
{
    const int64_t frame = x.H * x.W * x.C;
    video y = video_make(2 * x.n - 1, x.H, x.W, x.C), zeroed = video_make(x.n, x.H, x.W, x.C), u;

    memcpy(y.v, x.v, (size_t)frame * sizeof(double));
    memcpy(zeroed.v + frame, x.v + frame, (size_t)((x.n - 1) * frame) * sizeof(double));
    u = conv(&zeroed, a);
    for (int64_t t = 1; t < x.n; t++)
        for (int64_t p = 0; p < x.H * x.W; p++)
            for (int64_t c = 0; c < x.C; c++) {
                y.v[(2 * t - 1) * frame + p * x.C + c] = u.v[(t * x.H * x.W + p) * 2 * x.C + c];
                y.v[2 * t * frame + p * x.C + c] = u.v[(t * x.H * x.W + p) * 2 * x.C + x.C + c];
            }
    free(x.v);
    free(zeroed.v);
    free(u.v);
    return y;
}

static video enlarge(video x)
{
    video y = video_make(x.n, 2 * x.H, 2 * x.W, x.C);

    for (int64_t t = 0; t < y.n; t++)
        for (int64_t i = 0; i < y.H; i++)
            for (int64_t j = 0; j < y.W; j++)
                memcpy(at(&y, t, i, j), at(&x, t, i / 2, j / 2), (size_t)x.C * sizeof(double));
    free(x.v);
    return y;
}

/* latent [z, T, h, w] */
static video decode_whole(const sl_vae_weights *w, const sl_vae_config *config,
                          const sl_tensor *latent)
{
    const sl_vae_half *net = &w->decoder;
    const int64_t z = latent->dim[0], positions = sl_tensor_count(latent) / z;
    video x = video_make(latent->dim[1], latent->dim[2], latent->dim[3], z);

    for (int64_t p = 0; p < positions; p++)
        for (int64_t c = 0; c < z; c++)
            x.v[p * z + c] =
                (double)((const float *)latent->data)[c * positions + p] * (double)config->std[c] +
                (double)config->mean[c];
    x = replace(x, conv(&x, &w->conv2));
    x = replace(x, conv(&x, &net->conv1));
    x = res_block(x, &net->mid0);
    attention(&x, &net->mid1);
    x = res_block(x, &net->mid2);
    for (int s = 0; s < 4; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        for (int r = 0; r < stage->res_count; r++)
            x = res_block(x, &stage->res[r]);
        if (stage->time_conv.w.data)
            x = double_time(x, &stage->time_conv);
        if (stage->resample.w.data) {
            x = enlarge(x);
            x = replace(x, conv(&x, &stage->resample));
        }
    }
    x = replace(x, norm(&x, &net->head_norm, true));
    return replace(x, conv(&x, &net->head));
}

/* Zeros right and below, every second pixel. */
static video shrink(video x, const sl_affine *a)
{
    const int64_t O = a->w.dim[0], I = x.C;
    const float *w = a->w.data, *b = a->b.data;
    video y = video_make(x.n, x.H / 2, x.W / 2, O);

    for (int64_t p = 0; p < y.n * y.H * y.W; p++) {
        const int64_t t = p / (y.H * y.W), i = p / y.W % y.H, j = p % y.W;

        for (int64_t o = 0; o < O; o++) {
            double sum = (double)b[o];

            for (int64_t q = 0; q < 9; q++) {
                const int64_t ii = 2 * i + q / 3, jj = 2 * j + q % 3;

                for (int64_t c = 0; c < I && ii < x.H && jj < x.W; c++)
                    sum += (double)w[(o * 9 + q) * I + c] * at(&x, t, ii, jj)[c];
            }
            at(&y, t, i, j)[o] = sum;
        }
    }
    free(x.v);
    return y;
}

/* y0 = x0, then one frame of each three that overlap by one. */
static video halve_time(video x, const sl_affine *a)
{
    const int64_t O = a->w.dim[0], P = x.H * x.W, C = x.C;
    const float *w = a->w.data, *b = a->b.data;
    video y = video_make((x.n + 1) / 2, x.H, x.W, O);

    SL_CHECK(O == C);
    memcpy(y.v, x.v, (size_t)(P * C) * sizeof(double));
    for (int64_t t = 1; t < y.n; t++)
        for (int64_t p = 0; p < P; p++)
            for (int64_t o = 0; o < O; o++) {
                double sum = (double)b[o];

                for (int64_t k = 0; k < 3; k++)
                    for (int64_t c = 0; c < C; c++)
                        sum +=
                            (double)w[(o * 3 + k) * C + c] * x.v[((2 * t - 2 + k) * P + p) * C + c];
                y.v[(t * P + p) * O + o] = sum;
            }
    free(x.v);
    return y;
}

/* pictures [F, H, W, 3]; the result has the latent's channels last. */
static video encode_whole(const sl_vae_weights *w, const sl_vae_config *config,
                          const sl_tensor *pictures)
{
    const sl_vae_half *net = &w->encoder;
    const int64_t z = config->z_dim;
    video x = video_make(pictures->dim[0], pictures->dim[1], pictures->dim[2], 3), mu;

    for (int64_t i = 0; i < sl_tensor_count(pictures); i++)
        x.v[i] = (double)((const float *)pictures->data)[i];
    x = replace(x, conv(&x, &net->conv1));
    for (int s = 0; s < 4; s++) {
        const sl_vae_stage *stage = &net->stages[s];

        for (int r = 0; r < stage->res_count; r++)
            x = res_block(x, &stage->res[r]);
        if (stage->resample.w.data)
            x = shrink(x, &stage->resample);
        if (stage->time_conv.w.data)
            x = halve_time(x, &stage->time_conv);
    }
    x = res_block(x, &net->mid0);
    attention(&x, &net->mid1);
    x = res_block(x, &net->mid2);
    x = replace(x, norm(&x, &net->head_norm, true));
    x = replace(x, conv(&x, &net->head));
    x = replace(x, conv(&x, &w->conv1));
    mu = video_make(x.n, x.H, x.W, z);
    for (int64_t p = 0; p < x.n * x.H * x.W; p++)
        for (int64_t c = 0; c < z; c++)
            mu.v[p * z + c] = (x.v[p * x.C + c] - (double)config->mean[c]) / (double)config->std[c];
    free(x.v);
    return mu;
}

/* Small in every dimension; the last rows move the temporal stages about. */
static const struct {
    int64_t dim, blocks, T, h, w;
    int64_t mult[4];
    bool temporal_down[3];
} shapes[] = {
    { 4, 2, 1, 2, 2, { 1, 2, 4, 4 }, { false, true, true } },
    { 4, 2, 2, 1, 2, { 1, 2, 4, 4 }, { false, true, true } },
    { 4, 2, 4, 2, 1, { 1, 2, 4, 4 }, { false, true, true } },
    { 4, 1, 3, 2, 2, { 1, 2, 2, 4 }, { true, true, true } },
    { 4, 1, 3, 1, 1, { 2, 1, 1, 2 }, { true, false, false } },
    { 4, 1, 4, 1, 2, { 1, 2, 2, 4 }, { false, true, false } },
    { 4, 1, 3, 2, 1, { 1, 2, 2, 4 }, { true, false, true } },
    { 4, 1, 3, 2, 2, { 1, 2, 4, 4 }, { false, false, false } },
};

static sl_vae_config config_of(size_t i)
{
    sl_vae_config config = { .dim = shapes[i].dim,
                             .z_dim = 16,
                             .num_res_blocks = shapes[i].blocks };

    memcpy(config.dim_mult, shapes[i].mult, sizeof config.dim_mult);
    memcpy(config.temporal_down, shapes[i].temporal_down, sizeof config.temporal_down);
    memcpy(config.mean, sl_wan_latent_mean, sizeof config.mean);
    memcpy(config.std, sl_wan_latent_std, sizeof config.std);
    return config;
}

SL_TEST(streaming_equals_the_whole_sequence)
{
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const sl_vae_config config = config_of(i);
        const int64_t T = shapes[i].T, h = shapes[i].h, w = shapes[i].w;
        net_test t;
        sl_vae_weights weights;
        sl_vae_decoder decoder;
        sl_tensor frames;
        int64_t seen = 0;

        net_test_open(&t);
        SL_CHECK_OK(sl_vae_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
        const sl_tensor latent = NET_TEST_INPUT(&t, 7, 4, 16, T, h, w);
        video want = decode_whole(&weights, &config, &latent);
        SL_CHECK(want.n == sl_vae_frame_count(&config, T));
        SL_CHECK_OK(sl_vae_decoder_begin(&decoder, t.exec, &t.scratch, &weights, &config, T, h, w,
                                         NULL, err));
        for (int64_t k = 0; k < T; k++) {
            SL_CHECK_OK(sl_vae_decoder_next(&decoder, &latent, k, &frames, err));
            SL_CHECK(frames.dim[0] == sl_vae_frame_count(&config, k + 1) - seen);
            SL_CHECK(frames.dim[1] == 8 * h && frames.dim[2] == 8 * w && frames.dim[3] == 3);
            const double error =
                net_test_rel_l2(frames.data, at(&want, seen, 0, 0), sl_tensor_count(&frames));
            if (!(error <= 2e-5))
                fail_msg("shape %zu, latent frame %lld: relative L2 %g", i, (long long)k, error);
            seen += frames.dim[0];
        }
        free(want.v);
        net_test_close(&t);
    }
}

SL_TEST(encoding_in_chunks_equals_the_whole_sequence)
{
    for (size_t i = 0; i < SL_COUNT(shapes); i++) {
        const sl_vae_config config = config_of(i);
        const int64_t T = shapes[i].T, h = shapes[i].h, w = shapes[i].w;
        const int64_t F = sl_vae_frame_count(&config, T), P = T * h * w;
        net_test t;
        sl_vae_weights weights;
        sl_vae_encoder encoder;
        sl_tensor latent;
        int64_t seen = 0;
        double *got;

        net_test_open(&t);
        SL_CHECK_OK(sl_vae_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
        const sl_tensor pictures = NET_TEST_INPUT(&t, 9, 4, F, 8 * h, 8 * w, 3);
        SL_CHECK_OK(sl_scratch_tensor(&t.scratch, &latent, err, SL_F32, 4, 16, T, h, w));
        video want = encode_whole(&weights, &config, &pictures);
        SL_CHECK(want.n == T && want.H == h && want.W == w && want.C == 16);
        SL_CHECK_OK(sl_vae_encoder_begin(&encoder, t.exec, &t.scratch, &weights, &config, T, h, w,
                                         NULL, err));
        const size_t mark = sl_scratch_mark(&t.scratch);
        for (int64_t k = 0; k < T; k++) {
            const int64_t n = sl_vae_frame_count(&config, k + 1) - seen;
            const sl_tensor chunk = sl_tensor_rows(&pictures, seen, n);

            SL_CHECK_OK(sl_vae_encoder_next(&encoder, &chunk, &latent, k, err));
            SL_CHECK(sl_scratch_mark(&t.scratch) == mark);
            seen += n;
        }
        got = calloc((size_t)(16 * P), sizeof *got);
        SL_CHECK(got != NULL);
        for (int64_t p = 0; p < P; p++) /* to channels first, as the latent is */
            for (int64_t c = 0; c < 16; c++)
                got[c * P + p] = want.v[p * 16 + c];
        const double error = net_test_rel_l2(latent.data, got, 16 * P);
        if (!(error <= 2e-5))
            fail_msg("shape %zu: relative L2 %g", i, error);
        free(got);
        free(want.v);
        net_test_close(&t);
    }
}

static size_t encode_peak(sl_exec *exec, sl_scratch *scratch, const sl_vae_weights *weights,
                          const sl_vae_config *config, int64_t T)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    sl_vae_encoder encoder;
    sl_tensor latent, pictures;

    SL_CHECK_OK(sl_scratch_tensor(scratch, &latent, err, SL_F32, 4, 16, T, 2, 3));
    SL_CHECK_OK(sl_scratch_tensor(scratch, &pictures, err, SL_F32, 4, 4, 16, 24, 3));
    if (!sl_exec_is_counting(exec))
        memset(pictures.data, 0, sl_tensor_bytes(&pictures));
    const size_t before = sl_scratch_mark(scratch);
    SL_CHECK_OK(sl_vae_encoder_begin(&encoder, exec, scratch, weights, config, T, 2, 3, NULL, err));
    for (int64_t k = 0; k < T; k++) {
        const sl_tensor chunk = sl_tensor_rows(&pictures, 0, k == 0 ? 1 : 4);
        SL_CHECK_OK(sl_vae_encoder_next(&encoder, &chunk, &latent, k, err));
    }
    return scratch->peak_bytes - before;
}

static size_t decode_peak(sl_exec *exec, sl_scratch *scratch, const sl_vae_weights *weights,
                          const sl_vae_config *config, int64_t T)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    sl_vae_decoder decoder;
    sl_tensor latent, frames;

    SL_CHECK_OK(sl_scratch_tensor(scratch, &latent, err, SL_F32, 4, 16, T, 2, 3));
    if (!sl_exec_is_counting(exec))
        memset(latent.data, 0, sl_tensor_bytes(&latent));
    const size_t before = sl_scratch_mark(scratch);
    SL_CHECK_OK(sl_vae_decoder_begin(&decoder, exec, scratch, weights, config, T, 2, 3, NULL, err));
    for (int64_t k = 0; k < T; k++)
        SL_CHECK_OK(sl_vae_decoder_next(&decoder, &latent, k, &frames, err));
    return scratch->peak_bytes - before;
}

SL_TEST(memory_does_not_grow_with_frames)
{
    const sl_vae_config config = config_of(0);
    sl_vae_weights weights;
    sl_scratch counting;
    size_t peaks[4], encode_peaks[4];
    net_test t;

    net_test_open(&t);
    SL_CHECK_OK(sl_vae_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
    for (int i = 0; i < 4; i++) {
        const int64_t T = (const int64_t[]){ 1, 2, 5, 21 }[i];

        sl_scratch_init_counting(&counting);
        peaks[i] = decode_peak(t.counting, &counting, &weights, &config, T);
        net_test_reset(&t);
        SL_CHECK(decode_peak(t.exec, &t.scratch, &weights, &config, T) == peaks[i]);
        sl_scratch_init_counting(&counting);
        encode_peaks[i] = encode_peak(t.counting, &counting, &weights, &config, T);
        net_test_reset(&t);
        SL_CHECK(encode_peak(t.exec, &t.scratch, &weights, &config, T) == encode_peaks[i]);
    }
    SL_CHECK(peaks[0] < peaks[1]); /* a single frame keeps no cache */
    SL_CHECK(peaks[1] == peaks[2] && peaks[2] == peaks[3]);
    SL_CHECK(encode_peaks[0] < encode_peaks[1]);
    SL_CHECK(encode_peaks[1] == encode_peaks[2] && encode_peaks[2] == encode_peaks[3]);
    net_test_close(&t);
}

SL_TEST(refuses_frames_out_of_order)
{
    const sl_vae_config config = config_of(0);
    sl_vae_weights weights;
    sl_vae_decoder decoder;
    sl_tensor frames;
    net_test t;

    net_test_open(&t);
    SL_CHECK_OK(sl_vae_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
    const sl_tensor latent = NET_TEST_INPUT(&t, 7, 4, 16, 2, 1, 1);
    SL_CHECK_STATUS(
        sl_vae_decoder_begin(&decoder, t.exec, &t.scratch, &weights, &config, 0, 1, 1, NULL, err),
        SL_ERR_INVALID);
    SL_CHECK_OK(
        sl_vae_decoder_begin(&decoder, t.exec, &t.scratch, &weights, &config, 2, 1, 1, NULL, err));
    SL_CHECK_STATUS(sl_vae_decoder_next(&decoder, &latent, 1, &frames, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_vae_decoder_next(&decoder, &latent, 0, &frames, err));
    SL_CHECK_STATUS(sl_vae_decoder_next(&decoder, &latent, 0, &frames, err), SL_ERR_INVALID);
    atomic_store(&t.cancel, 1);
    SL_CHECK_STATUS(sl_vae_decoder_next(&decoder, &latent, 1, &frames, err), SL_ERR_CANCELLED);
    net_test_close(&t);
}

SL_TEST(encoder_refuses_frames_out_of_order)
{
    const sl_vae_config config = config_of(0);
    sl_vae_weights weights;
    sl_vae_encoder encoder;
    sl_tensor latent;
    net_test t;

    net_test_open(&t);
    SL_CHECK_OK(sl_vae_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
    const sl_tensor pictures = NET_TEST_INPUT(&t, 7, 4, 5, 8, 8, 3);
    const sl_tensor first = sl_tensor_rows(&pictures, 0, 1),
                    later = sl_tensor_rows(&pictures, 1, 4);
    const sl_tensor narrow = sl_tensor_of(first.data, SL_F32, 4, 1, 8, 4, 3);
    SL_CHECK_OK(sl_scratch_tensor(&t.scratch, &latent, err, SL_F32, 4, 16, 2, 1, 1));
    SL_CHECK_STATUS(
        sl_vae_encoder_begin(&encoder, t.exec, &t.scratch, &weights, &config, 0, 1, 1, NULL, err),
        SL_ERR_INVALID);
    SL_CHECK_OK(
        sl_vae_encoder_begin(&encoder, t.exec, &t.scratch, &weights, &config, 2, 1, 1, NULL, err));
    SL_CHECK_STATUS(sl_vae_encoder_next(&encoder, &first, &latent, 1, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_vae_encoder_next(&encoder, &later, &latent, 0, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "expected [1, 8, 8, 3]"));
    SL_CHECK_STATUS(sl_vae_encoder_next(&encoder, &narrow, &latent, 0, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_vae_encoder_next(&encoder, &first, &latent, 0, err));
    SL_CHECK_STATUS(sl_vae_encoder_next(&encoder, &first, &latent, 1, err), SL_ERR_INVALID);
    SL_CHECK(strstr(err->message, "expected [4, 8, 8, 3]"));
    atomic_store(&t.cancel, 1);
    SL_CHECK_STATUS(sl_vae_encoder_next(&encoder, &later, &latent, 1, err), SL_ERR_CANCELLED);
    net_test_close(&t);
}

static void count_conv1(void *arg, const char *name, const sl_tensor *tensor)
{
    (void)tensor;
    *(int *)arg += strstr(name, ".conv1") != NULL;
}

/* The first frame is another, and the four that come again and again differ, too. */
SL_TEST(a_video_that_stands_still_is_encoded_once)
{
    enum { T = 12 };
    const sl_vae_config config = config_of(0);
    int frames_run[2] = { 0, 0 };
    sl_vae_weights weights;
    sl_vae_encoder encoder;
    sl_tensor latents[2];
    net_test t;

    net_test_open(&t);
    SL_CHECK_OK(sl_vae_visit(&weights, &config, SL_PRECISION_F32, net_test_weight, &t, err));
    const sl_tensor pictures = NET_TEST_INPUT(&t, 7, 4, 5, 16, 24, 3);
    const sl_tensor first = sl_tensor_rows(&pictures, 0, 1),
                    later = sl_tensor_rows(&pictures, 1, 4);
    for (int again = 0; again < 2; again++) {
        const sl_tap tap = { .fn = count_conv1, .arg = &frames_run[again] };

        SL_CHECK_OK(sl_scratch_tensor(&t.scratch, &latents[again], err, SL_F32, 4, 16, T, 2, 3));
        SL_CHECK_OK(sl_vae_encoder_begin(&encoder, t.exec, &t.scratch, &weights, &config, T, 2, 3,
                                         &tap, err));
        SL_CHECK_OK(sl_vae_encoder_next(&encoder, &first, &latents[again], 0, err));
        for (int64_t k = 1; k < T; k++)
            SL_CHECK_OK((again && k > 1 ? sl_vae_encoder_repeat : sl_vae_encoder_next)(
                &encoder, &later, &latents[again], k, err));
    }
    SL_CHECK(frames_run[0] == 1 + 4 * (T - 1) && frames_run[1] < frames_run[0]);
    SL_CHECK(memcmp(latents[0].data, latents[1].data, sl_tensor_bytes(&latents[0])) == 0);
    net_test_close(&t);
}

SL_TEST_MAIN(SL_RUN(streaming_equals_the_whole_sequence), SL_RUN(memory_does_not_grow_with_frames),
             SL_RUN(refuses_frames_out_of_order),
             SL_RUN(encoding_in_chunks_equals_the_whole_sequence),
             SL_RUN(encoder_refuses_frames_out_of_order),
             SL_RUN(a_video_that_stands_still_is_encoded_once))
