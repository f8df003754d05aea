/* Files of latents and small pictures of them. */
#include "engine/pipeline/latent_output.h"

#include "engine/nets/net_test.h"
#include "engine/pipeline/preview.h"

#include <unistd.h>

SL_TEST(a_latent_comes_back_rounded)
{
    static const int64_t dim[4] = { 16, 3, 24, 40 }; /* more than a piece */
    const int64_t count = 16 * 3 * 24 * 40;
    double *latent = malloc((size_t)count * sizeof *latent), *got = calloc((size_t)count, 8);
    char path[] = "/tmp/sl_latent_output_XXXXXX";
    const int fd = mkstemp(path);

    SL_CHECK(latent && got && fd >= 0);
    close(fd);
    for (int64_t i = 0; i < count; i++)
        latent[i] = sin((double)i) * 3.0;
    SL_CHECK_OK(sl_latent_output_write(path, dim, latent, err));
    SL_CHECK_OK(sl_latent_output_read(path, dim, got, err));
    for (int64_t i = 0; i < count; i++)
        SL_CHECK(got[i] == (double)(float)latent[i]);

    static const int64_t other[4] = { 16, 3, 40, 24 };
    SL_CHECK_STATUS(sl_latent_output_read(path, other, got, err), SL_ERR_DATA);
    SL_CHECK(strstr(err->message, "[16, 3, 40, 24]") != NULL);
    SL_CHECK(truncate(path, 5000) == 0);
    SL_CHECK_STATUS(sl_latent_output_read(path, dim, got, err), SL_ERR_DATA);
    unlink(path);
    SL_CHECK_STATUS(sl_latent_output_read(path, dim, got, err), SL_ERR_NOT_FOUND);
    SL_CHECK_STATUS(sl_latent_output_write("/nowhere/x", dim, latent, err), SL_ERR_NOT_FOUND);
    free(latent);
    free(got);
}

typedef struct {
    sl_tensor x, velocity;
} step_state;

static step_state make_state(net_test *n, int64_t h, int64_t w)
{
    sl_error error = { .status = SL_OK }, *err = &error;
    step_state s;

    SL_CHECK_OK(
        sl_scratch_tensor(&n->scratch, &s.x, err, SL_F64, 4, (int64_t)16, (int64_t)3, h, w));
    SL_CHECK_OK(
        sl_scratch_tensor(&n->scratch, &s.velocity, err, SL_F32, 4, (int64_t)16, (int64_t)3, h, w));
    for (int64_t i = 0; i < sl_tensor_count(&s.x); i++) {
        ((double *)s.x.data)[i] = 5.0;
        ((float *)s.velocity.data)[i] = 10.0f;
    }
    return s;
}

/* x - sigma v, of the middle frame alone. */
SL_TEST(a_preview_is_the_foreseen_middle)
{
    sl_preview *p = malloc(sizeof *p), *q = malloc(sizeof *q);
    net_test n;

    SL_CHECK(p && q);
    net_test_open(&n);
    step_state s = make_state(&n, 4, 6);
    SL_CHECK_OK(sl_preview_make(p, n.exec, &s.x, &s.velocity, 0.5, err));
    SL_CHECK(p->width == 6 && p->height == 4);
    for (int i = 0; i < 3 * 24; i++)
        SL_CHECK(p->rgb[i] == 128);   /* 5 - 0.5 * 10: grey */
    ((double *)s.x.data)[7] += 100.0; /* in the first frame */
    SL_CHECK_OK(sl_preview_make(q, n.exec, &s.x, &s.velocity, 0.5, err));
    SL_CHECK(memcmp(p->rgb, q->rgb, 3 * 24) == 0);
    ((double *)s.x.data)[24 + 7] += 1.0; /* channel 0 of the middle one, row 1, column 1 */
    SL_CHECK_OK(sl_preview_make(q, n.exec, &s.x, &s.velocity, 0.5, err));
    SL_CHECK(q->rgb[3 * 7] > 140);
    for (int i = 0; i < 24; i++)
        SL_CHECK(i == 7 || memcmp(p->rgb + 3 * i, q->rgb + 3 * i, 3) == 0);
    net_test_close(&n);
    free(p);
    free(q);
}

SL_TEST(large_previews_are_halved)
{
    sl_preview *p = malloc(sizeof *p);
    net_test n;

    SL_CHECK(p != NULL);
    net_test_open(&n);
    step_state s = make_state(&n, 129, 255);
    SL_CHECK_OK(sl_preview_make(p, n.exec, &s.x, &s.velocity, 0.5, err));
    SL_CHECK(p->width == 127 && p->height == 64 && p->rgb[0] == 128);
    net_test_close(&n);
    free(p);
}

SL_TEST_MAIN(SL_RUN(a_latent_comes_back_rounded), SL_RUN(a_preview_is_the_foreseen_middle),
             SL_RUN(large_previews_are_halved))
