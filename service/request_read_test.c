#include "service/request_read.h"

#include "base/test.h"

#include <string.h>

static sl_model_info info_of(const char *arch, bool tuned, bool synthetic)
{
    return (
        sl_model_info){ .arch = sl_arch_find(arch), .sparse_tuned = tuned, .synthetic = synthetic };
}

SL_TEST(defaults_are_the_checkpoints)
{
    const sl_model_info tuned = info_of("wan2.1-t2v-14b", true, false);
    const sl_model_info official = info_of("wan2.1-t2v-14b", false, false);
    const sl_model_info experts = info_of("wan2.2-i2v-a14b", false, false);
    const sl_model_info made_up = info_of("tiny-t2v", false, true);
    const Sluice__V1__GenerateRequest none = SLUICE__V1__GENERATE_REQUEST__INIT;
    sl_t2v_request r = sl_request_read(&none, &tuned);

    SL_CHECK(r.mode == SL_SAMPLER_SDE && r.steps == 4 && r.attention == SL_ATTENTION_SLA);
    SL_CHECK(r.dialect == SL_DIALECT_TURBO && r.topk_ratio == SL_DEFAULT_TOPK_RATIO);
    SL_CHECK(r.precision == SL_PRECISION_BF16 && r.width == 832 && r.frames == 81);
    r = sl_request_read(&none, &official);
    SL_CHECK(r.mode == SL_SAMPLER_UNIPC && r.steps == 50 && r.attention == SL_ATTENTION_DENSE);
    SL_CHECK(r.dialect == SL_DIALECT_OFFICIAL && r.guidance == 5.0 && r.shift == 5.0);
    r = sl_request_read(&none, &experts);
    SL_CHECK(r.steps == 40 && r.guidance == 3.5 && r.guidance_low == 3.5 && r.boundary == 0.9);
    r = sl_request_read(&none, &made_up);
    SL_CHECK(r.mode == SL_SAMPLER_SDE && r.steps == 4 && r.attention == SL_ATTENTION_DENSE);
}

SL_TEST(int8_files_stay_int8)
{
    sl_model_info info = info_of("wan2.1-t2v-14b", true, false);
    Sluice__V1__GenerateRequest pb = SLUICE__V1__GENERATE_REQUEST__INIT;

    SL_CHECK(sl_request_read(&pb, &info).precision == SL_PRECISION_BF16);
    info.layout = SL_LAYOUT_TURBO_QUANT;
    info.name = "quant";
    SL_CHECK(sl_request_read(&pb, &info).precision == SL_PRECISION_INT8);
    pb.precision = SLUICE__V1__PRECISION__BF16;
    const sl_precision asked = sl_request_read(&pb, &info).precision;
    SL_CHECK(asked == SL_PRECISION_BF16);
    SL_CHECK_STATUS(sl_request_check_precision(asked, &info, err), SL_ERR_INVALID);
    SL_CHECK_OK(sl_request_check_precision(SL_PRECISION_INT8, &info, err));
}

SL_TEST(what_is_given_is_taken)
{
    const sl_model_info info = info_of("wan2.2-i2v-a14b", true, false);
    Sluice__V1__GenerateRequest pb = SLUICE__V1__GENERATE_REQUEST__INIT;

    pb.width = 640;
    pb.height = 480;
    pb.frames = 5;
    pb.sampler = SLUICE__V1__SAMPLER__UNIPC;
    pb.steps = 12;
    pb.shift = 3.0;
    pb.guidance = 4.0;
    pb.boundary = 0.8;
    pb.attention = SLUICE__V1__ATTENTION__SAGESLA;
    pb.topk = 0.25;
    pb.dialect = SLUICE__V1__DIALECT__OFFICIAL;
    pb.precision = SLUICE__V1__PRECISION__INT8;
    pb.seed = 77;
    sl_t2v_request r = sl_request_read(&pb, &info);
    SL_CHECK(r.width == 640 && r.height == 480 && r.frames == 5 && r.steps == 12);
    SL_CHECK(r.mode == SL_SAMPLER_UNIPC && r.shift == 3.0 && r.boundary == 0.8 && r.seed == 77);
    SL_CHECK(r.guidance == 4.0 && r.guidance_low == 4.0); /* follows the other */
    SL_CHECK(r.attention == SL_ATTENTION_SAGESLA && r.topk_ratio == 0.25);
    SL_CHECK(r.dialect == SL_DIALECT_OFFICIAL && r.precision == SL_PRECISION_INT8);
    pb.guidance_low = 1.0;
    r = sl_request_read(&pb, &info);
    SL_CHECK(r.guidance == 4.0 && r.guidance_low == 1.0);
}

/* The store keeps what write wrote; read makes the same of it, and so does a
 * daemon that has lost the model. */
SL_TEST(written_and_read_again_is_the_same)
{
    const char *const archs[] = { "tiny-t2v", "tiny-i2v" };

    for (size_t a = 0; a < SL_COUNT(archs); a++)
        for (int sampler = 0; sampler <= SLUICE__V1__SAMPLER__UNIPC; sampler++)
            for (int attention = 0; attention <= SLUICE__V1__ATTENTION__SAGESLA; attention++) {
                const sl_model_info info = info_of(archs[a], attention == 0, false);
                Sluice__V1__GenerateRequest pb = SLUICE__V1__GENERATE_REQUEST__INIT;
                Sluice__V1__GenerateRequest again = SLUICE__V1__GENERATE_REQUEST__INIT;
                sl_request_problem problem;
                pb.sampler = (Sluice__V1__Sampler)sampler;
                pb.attention = (Sluice__V1__Attention)attention;
                pb.steps = 3;
                pb.seed = 9;
                pb.precision = SLUICE__V1__PRECISION__F32;
                const sl_t2v_request r = sl_request_read(&pb, &info);
                sl_request_write(&again, &r, info.arch);
                const sl_t2v_request twice = sl_request_read(&again, &info);
                const sl_t2v_request stored = sl_request_read_stored(&again);
                SL_CHECK(memcmp(&r, &twice, sizeof r) == 0);
                SL_CHECK(stored.mode == r.mode && stored.attention == r.attention &&
                         stored.steps == 3 && stored.dialect == r.dialect && stored.seed == 9);
                SL_CHECK_OK(sl_request_check(&again, &r, info.arch, &problem, err));
            }
}

SL_TEST(the_field_at_fault_is_named)
{
    const sl_model_info t2v = info_of("tiny-t2v", false, true),
                        i2v = info_of("tiny-i2v", true, true);
    static uint8_t byte;
    struct {
        const sl_model_info *info;
        const char *field, *nearest;
        Sluice__V1__GenerateRequest pb;
    } bad[] = {
#define BAD(of, name, near, ...)                                                                   \
    {                                                                                              \
        &(of), name, near,                                                                         \
        {                                                                                          \
            PROTOBUF_C_MESSAGE_INIT(&sluice__v1__generate_request__descriptor), __VA_ARGS__        \
        }                                                                                          \
    }
        BAD(t2v, "width", "112", .width = 111),
        BAD(t2v, "frames", "5", .frames = 6),
        BAD(t2v, "steps", "4", .steps = 5),
        BAD(t2v, "steps", "200", .steps = 500, .sampler = SLUICE__V1__SAMPLER__UNIPC),
        BAD(t2v, "sigma_max", "", .sigma_max = -1.0),
        BAD(t2v, "sigma_max", "", .sigma_max = 10.0, .sampler = SLUICE__V1__SAMPLER__UNIPC),
        BAD(t2v, "shift", "", .shift = 4.0),
        BAD(t2v, "shift", "", .shift = -4.0, .sampler = SLUICE__V1__SAMPLER__UNIPC),
        BAD(t2v, "guidance", "", .guidance = 2.0),
        BAD(t2v, "guidance", "", .guidance = 1e9, .sampler = SLUICE__V1__SAMPLER__UNIPC),
        BAD(t2v, "guidance_low", "", .guidance_low = 2.0, .sampler = SLUICE__V1__SAMPLER__UNIPC),
        BAD(i2v, "guidance_low", "", .guidance_low = -2.0, .sampler = SLUICE__V1__SAMPLER__UNIPC),
        BAD(t2v, "negative_prompt", "", .negative_prompt = "x"),
        BAD(t2v, "negative_prompt", "", .negative_prompt = "x", .guidance = 1.0,
            .sampler = SLUICE__V1__SAMPLER__UNIPC),
        BAD(t2v, "boundary", "", .boundary = 0.5),
        BAD(i2v, "boundary", "", .boundary = 1.5),
        BAD(t2v, "topk", "", .topk = 0.5),
        BAD(i2v, "topk", "", .topk = 1.5),
        BAD(t2v, "image", "", .image = { 1, &byte }),
        BAD(t2v, "image_id", "", .image_id = "u"),
        BAD(i2v, "image_id", "", .image_id = "u", .image = { 1, &byte }),
        BAD(t2v, "sizing", "", .sizing = SLUICE__V1__SIZING__ADAPTIVE),
        BAD(t2v, "vae_precision", "", .vae_precision = SLUICE__V1__PRECISION__INT8),
#undef BAD
    };

    for (size_t i = 0; i < SL_COUNT(bad); i++) {
        if (!bad[i].pb.negative_prompt)
            bad[i].pb.negative_prompt = (char *)"";
        if (!bad[i].pb.image_id)
            bad[i].pb.image_id = (char *)"";
        bad[i].pb.latent_of = (char *)"";
        const sl_t2v_request r = sl_request_read(&bad[i].pb, bad[i].info);
        sl_request_problem problem;
        sl_error why = { .status = SL_OK };
        const sl_status status =
            sl_request_check(&bad[i].pb, &r, bad[i].info->arch, &problem, &why);
        if (status != SL_ERR_INVALID || !problem.field ||
            strcmp(problem.field, bad[i].field) != 0 ||
            strcmp(problem.nearest, bad[i].nearest) != 0)
            SL_FAIL("case %zu (%s): status %d, field %s, nearest \"%s\": %s", i, bad[i].field,
                    (int)status, problem.field ? problem.field : "none", problem.nearest,
                    why.message);
    }
}

SL_TEST_MAIN(SL_RUN(defaults_are_the_checkpoints), SL_RUN(int8_files_stay_int8),
             SL_RUN(what_is_given_is_taken), SL_RUN(written_and_read_again_is_the_same),
             SL_RUN(the_field_at_fault_is_named))
