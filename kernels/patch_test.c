#include "kernels/patch.h"

#include "kernels/op_test.h"

static const int64_t latents[][4] = {
    { 16, 0, 4, 4 }, { 16, 2, 0, 6 }, { 1, 1, 2, 2 }, { 3, 2, 6, 10 }, { 36, 3, 4, 14 },
};

/* Token and place inside of its 2x2 patch of latent element `at`. */
typedef struct {
    int64_t c, token, kh, kw;
} place;

static place place_of(const int64_t dim[4], int64_t at)
{
    SL_ASSERT(dim[1] > 0 && dim[2] > 0 && dim[3] > 0); /* there is such an element */
    const int64_t w = at % dim[3], h = at / dim[3] % dim[2], t = at / dim[3] / dim[2] % dim[1];

    return (place){ .c = at / dim[3] / dim[2] / dim[1],
                    .token = (t * (dim[2] / 2) + h / 2) * (dim[3] / 2) + w / 2,
                    .kh = h % 2,
                    .kw = w % 2 };
}

SL_TEST(patchify_and_unpatchify_place_every_element)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(latents); i++) {
        const int64_t *dim = latents[i], C = dim[0], S = dim[1] * (dim[2] / 2) * (dim[3] / 2);
        sl_tensor latent = op_test_tensor(SL_F32, 4, dim);
        sl_tensor tokens = OP_TEST_TENSOR(SL_F32, 2, S, 4 * C);
        op_test_fill(&latent, 1, 1.0f);
        op_test_poison(&tokens);
        SL_CHECK_OK(sl_patchify_cpu(t.exec, &tokens, &latent, err));
        for (int64_t at = 0; at < sl_tensor_count(&latent); at++) {
            const place p = place_of(dim, at);
            SL_CHECK(op_test_get(&tokens, p.token * 4 * C + p.c * 4 + p.kh * 2 + p.kw) ==
                     op_test_get(&latent, at));
        }
        op_test_fill(&tokens, 2, 1.0f);
        op_test_poison(&latent);
        SL_CHECK_OK(sl_unpatchify_cpu(t.exec, &latent, &tokens, err));
        for (int64_t at = 0; at < sl_tensor_count(&latent); at++) {
            const place p = place_of(dim, at);
            SL_CHECK(op_test_get(&latent, at) ==
                     op_test_get(&tokens, p.token * 4 * C + (p.kh * 2 + p.kw) * C + p.c));
        }
        op_test_free(&latent);
        op_test_free(&tokens);
    }
    op_test_close(&t);
}

SL_TEST(latent_to_frames_moves_channels_last)
{
    enum { C = 5, T = 4, H = 3, W = 7 };
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 4, C, T, H, W), y = OP_TEST_TENSOR(SL_F32, 4, T, H, W, C);
    sl_tensor scale = OP_TEST_TENSOR(SL_F32, 1, C), shift = OP_TEST_TENSOR(SL_F32, 1, C);
    op_test t;

    op_test_open(&t, 2);
    op_test_fill(&x, 1, 1.0f);
    op_test_fill(&scale, 2, 1.0f);
    op_test_fill(&shift, 3, 1.0f);
    for (int64_t first = 0; first <= T; first++)
        for (int64_t n = 0; n <= T - first; n++)
            for (int option = 0; option < 4; option++) {
                const sl_tensor *a = option & 1 ? &scale : NULL, *b = option & 2 ? &shift : NULL;
                const sl_tensor out = sl_tensor_rows(&y, 0, n);
                op_test_poison(&y);
                SL_CHECK_OK(sl_latent_to_frames_cpu(t.exec, &out, &x, a, b, first, err));
                for (int64_t at = 0; at < n * H * W * C; at++) {
                    const int64_t c = at % C, p = at / C % (H * W), f = first + at / C / (H * W);
                    float want = ((float *)x.data)[(c * T + f) * H * W + p];
                    want *= a ? ((float *)scale.data)[c] : 1.0f;
                    want += b ? ((float *)shift.data)[c] : 0.0f;
                    SL_CHECK(((float *)y.data)[at] == want);
                }
                SL_CHECK(n == T || isnan(op_test_get(&y, n * H * W * C)));
            }
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&y);
    op_test_free(&scale);
    op_test_free(&shift);
}

SL_TEST(frames_to_rgb_rounds_and_clamps)
{
    enum { N = 30000 };
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 3, 2, N / 2, 3), y = OP_TEST_TENSOR(SL_U8, 3, 2, N / 2, 3);
    float *v = x.data;
    const uint8_t *u = y.data;
    op_test t;

    op_test_open(&t, 3);
    op_test_fill(&x, 1, 1.2f);
    v[0] = NAN, v[1] = -NAN, v[2] = INFINITY, v[3] = -INFINITY, v[4] = 1.0f, v[5] = -1.0f;
    v[6] = 0.0f, v[7] = 1e30f, v[8] = -1e30f;
    SL_CHECK_OK(sl_frames_to_rgb_cpu(t.exec, &y, &x, err));
    SL_CHECK(u[0] == 0 && u[1] == 0 && u[2] == 255 && u[3] == 0 && u[4] == 255 && u[5] == 0);
    SL_CHECK(u[6] == 128 && u[7] == 255 && u[8] == 0);
    for (int64_t i = 9; i < 3 * N; i++) {
        const float clamped = fminf(fmaxf(v[i], -1.0f), 1.0f);
        const float unit = fminf(fmaxf((1.0f + clamped) / 2.0f, 0.0f), 1.0f);
        SL_CHECK(u[i] == (uint8_t)truncf(255.0f * unit + 0.5f));
    }
    const sl_tensor no_x = sl_tensor_rows(&x, 0, 0), no_y = sl_tensor_rows(&y, 0, 0);
    SL_CHECK_OK(sl_frames_to_rgb_cpu(t.exec, &no_y, &no_x, err));
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&y);
}

/* The opposite of latent_to_frames; frames that were not asked for stay. */
SL_TEST(frames_to_latent_fills_only_its_frames)
{
    enum { C = 5, T = 4, H = 3, W = 7 };
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 4, T, H, W, C), y = OP_TEST_TENSOR(SL_F32, 4, C, T, H, W);
    sl_tensor scale = OP_TEST_TENSOR(SL_F32, 1, C), shift = OP_TEST_TENSOR(SL_F32, 1, C);
    op_test t;

    op_test_open(&t, 2);
    op_test_fill(&x, 1, 1.0f);
    op_test_fill(&scale, 2, 1.0f);
    op_test_fill(&shift, 3, 1.0f);
    for (int64_t first = 0; first <= T; first++)
        for (int64_t n = 0; n <= T - first; n++)
            for (int option = 0; option < 4; option++) {
                const sl_tensor *a = option & 1 ? &scale : NULL, *b = option & 2 ? &shift : NULL;
                const sl_tensor in = sl_tensor_rows(&x, 0, n);
                op_test_poison(&y);
                SL_CHECK_OK(sl_frames_to_latent_cpu(t.exec, &y, &in, a, b, first, err));
                for (int64_t at = 0; at < C * T * H * W; at++) {
                    const int64_t c = at / (T * H * W), f = at / (H * W) % T, p = at % (H * W);
                    const float got = ((float *)y.data)[at];
                    if (f < first || f >= first + n) {
                        SL_CHECK(isnan(got));
                        continue;
                    }
                    float want = ((float *)x.data)[((f - first) * H * W + p) * C + c];
                    want -= b ? ((float *)shift.data)[c] : 0.0f;
                    want *= a ? ((float *)scale.data)[c] : 1.0f;
                    SL_CHECK(got == want);
                }
            }
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&y);
    op_test_free(&scale);
    op_test_free(&shift);
}

SL_TEST(rgb_to_frames_knows_every_byte)
{
    enum { N = 30000 };
    sl_tensor x = OP_TEST_TENSOR(SL_U8, 3, 2, N / 2, 3), y = OP_TEST_TENSOR(SL_F32, 3, 2, N / 2, 3);
    sl_tensor back = OP_TEST_TENSOR(SL_U8, 3, 2, N / 2, 3);
    const float *v = y.data;
    uint8_t *u = x.data;
    op_test t;

    op_test_open(&t, 3);
    for (int64_t i = 0; i < 3 * N; i++)
        u[i] = (uint8_t)(i * 7 + i / 256);
    op_test_poison(&y);
    SL_CHECK_OK(sl_rgb_to_frames_cpu(t.exec, &y, &x, err));
    for (int64_t i = 0; i < 3 * N; i++) {
        volatile float want = (float)u[i] / 255.0f; /* each step rounded by itself */
        want = want - 0.5f;
        want = want / 0.5f;
        SL_CHECK(v[i] == want);
    }
    SL_CHECK_OK(sl_frames_to_rgb_cpu(t.exec, &back, &y, err));
    SL_CHECK(memcmp(back.data, x.data, sl_tensor_bytes(&x)) == 0);
    const sl_tensor no_x = sl_tensor_rows(&x, 0, 0), no_y = sl_tensor_rows(&y, 0, 0);
    SL_CHECK_OK(sl_rgb_to_frames_cpu(t.exec, &no_y, &no_x, err));
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&y);
    op_test_free(&back);
}

SL_TEST(known_mask_is_one_in_the_first_frame)
{
    op_test t;

    op_test_open(&t, 2);
    for (size_t i = 0; i < SL_COUNT(latents); i++) {
        const int64_t *dim = latents[i], frame = dim[2] * dim[3];
        sl_tensor y = op_test_tensor(SL_F32, 4, dim);

        op_test_poison(&y);
        SL_CHECK_OK(sl_known_mask_cpu(t.exec, &y, err));
        for (int64_t at = 0; at < sl_tensor_count(&y); at++) {
            SL_ASSERT(frame > 0 && dim[1] > 0);
            SL_CHECK(op_test_get(&y, at) == (at / frame % dim[1] == 0 ? 1.0 : 0.0));
        }
        op_test_free(&y);
    }
    op_test_close(&t);
}

SL_TEST(refuses_what_the_contract_excludes)
{
    sl_tensor x = OP_TEST_TENSOR(SL_F32, 4, 4, 3, 6, 8), y = OP_TEST_TENSOR(SL_F32, 2, 36, 16);
    sl_tensor scale = OP_TEST_TENSOR(SL_F32, 1, 4);
    const sl_tensor odd = sl_tensor_of(x.data, SL_F32, 4, 4, 3, 3, 8);
    const sl_tensor half = sl_tensor_of(x.data, SL_F16, 4, 4, 3, 6, 8);
    const sl_tensor few = sl_tensor_of(y.data, SL_F32, 2, 35, 16);
    const sl_tensor on_y = sl_tensor_of(y.data, SL_F32, 4, 4, 3, 6, 8);
    const sl_tensor huge = sl_tensor_of(NULL, SL_F32, 4, 4, INT64_MAX, 6, 8);
    const sl_tensor frames = sl_tensor_of(y.data, SL_F32, 4, 3, 6, 8, 4);
    const sl_tensor swapped = sl_tensor_of(y.data, SL_F32, 4, 3, 8, 6, 4);
    const sl_tensor short_scale = sl_tensor_of(scale.data, SL_F32, 1, 3);
    const sl_tensor bytes = sl_tensor_of(y.data, SL_U8, 2, 9, 4);
    const sl_tensor four = sl_tensor_of(x.data, SL_F32, 2, 9, 4);
    const sl_tensor three = sl_tensor_of(x.data, SL_F32, 2, 12, 3);
    const sl_tensor scalar = sl_tensor_make(x.data, SL_F32, 0, NULL);
    op_test t;

    op_test_open(&t, 1);
    op_test_poison(&y);
    const struct {
        const sl_tensor *y, *x;
    } bad[] = {
        { &y, &odd }, { &y, &half }, { &few, &x }, { &y, &on_y }, { &y, &huge }, { &y, &y }
    };
    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        SL_CHECK_STATUS(sl_patchify_cpu(t.exec, bad[i].y, bad[i].x, err), SL_ERR_INVALID);
        SL_CHECK_STATUS(sl_unpatchify_cpu(t.exec, bad[i].x, bad[i].y, err), SL_ERR_INVALID);
    }
    SL_CHECK_STATUS(sl_latent_to_frames_cpu(t.exec, &frames, &x, NULL, NULL, 1, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_latent_to_frames_cpu(t.exec, &frames, &x, NULL, NULL, -1, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_latent_to_frames_cpu(t.exec, &frames, &x, NULL, NULL, INT64_MAX, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_latent_to_frames_cpu(t.exec, &swapped, &x, NULL, NULL, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_latent_to_frames_cpu(t.exec, &frames, &x, &short_scale, NULL, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_latent_to_frames_cpu(t.exec, &frames, &x, NULL, &short_scale, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_rgb_cpu(t.exec, &bytes, &four, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_rgb_cpu(t.exec, &bytes, &three, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_rgb_cpu(t.exec, &bytes, &scalar, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_rgb_cpu(t.exec, &y, &x, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rgb_to_frames_cpu(t.exec, &four, &bytes, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rgb_to_frames_cpu(t.exec, &three, &bytes, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rgb_to_frames_cpu(t.exec, &scalar, &scalar, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_rgb_to_frames_cpu(t.exec, &three, &three, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_latent_cpu(t.exec, &x, &frames, NULL, NULL, 1, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_latent_cpu(t.exec, &x, &frames, NULL, NULL, -1, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_latent_cpu(t.exec, &x, &swapped, NULL, NULL, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_latent_cpu(t.exec, &x, &frames, &short_scale, NULL, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_frames_to_latent_cpu(t.exec, &half, &frames, NULL, NULL, 0, err),
                    SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_known_mask_cpu(t.exec, &half, err), SL_ERR_INVALID);
    SL_CHECK_STATUS(sl_known_mask_cpu(t.exec, &y, err), SL_ERR_INVALID);
    SL_CHECK(op_test_is_poison(&y));
    op_test_close(&t);
    op_test_free(&x);
    op_test_free(&y);
    op_test_free(&scale);
}

SL_TEST(check_touches_no_memory)
{
    void *nowhere = (void *)(uintptr_t)0x7000000000000000u;
    void *beyond = (void *)(uintptr_t)0x7100000000000000u;
    const sl_tensor latent = sl_tensor_of(nowhere, SL_F32, 4, 16, 21, 60, 104);
    const sl_tensor tokens = sl_tensor_of(beyond, SL_F32, 2, 32760, 64);
    const sl_tensor frames = sl_tensor_of(beyond, SL_F32, 4, 1, 60, 104, 16);
    const sl_tensor scale = sl_tensor_of(NULL, SL_F32, 1, 16);
    const sl_tensor video = sl_tensor_of(nowhere, SL_F32, 4, 4, 480, 832, 3);
    const sl_tensor rgb = sl_tensor_of(beyond, SL_U8, 4, 4, 480, 832, 3);

    SL_CHECK_OK(sl_patchify_check(NULL, &tokens, &latent, err));
    SL_CHECK_OK(sl_unpatchify_check(NULL, &latent, &tokens, err));
    SL_CHECK_OK(sl_latent_to_frames_check(NULL, &frames, &latent, &scale, &scale, 20, err));
    SL_CHECK_OK(sl_frames_to_rgb_check(NULL, &rgb, &video, err));
    SL_CHECK_OK(sl_rgb_to_frames_check(NULL, &video, &rgb, err));
    SL_CHECK_OK(sl_frames_to_latent_check(NULL, &latent, &frames, &scale, &scale, 20, err));
    SL_CHECK_OK(sl_known_mask_check(NULL, &latent, err));
}

SL_TEST_MAIN(SL_RUN(patchify_and_unpatchify_place_every_element),
             SL_RUN(latent_to_frames_moves_channels_last), SL_RUN(frames_to_rgb_rounds_and_clamps),
             SL_RUN(frames_to_latent_fills_only_its_frames), SL_RUN(rgb_to_frames_knows_every_byte),
             SL_RUN(known_mask_is_one_in_the_first_frame),
             SL_RUN(refuses_what_the_contract_excludes), SL_RUN(check_touches_no_memory))
