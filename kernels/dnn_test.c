/* Plans for a card that is not here: cuDNN builds them from its description.  What
 * an H200 is asked for must find a ready-made engine; what is compiled at run time
 * (attention) needs a driver and is tested on cards only. */
#include "kernels/dnn.h"

#include "base/test.h"
#include "kernels/attention_graph.h"
#include "kernels/conv_graph.h"

#include <string.h>

static const size_t workspace_limit = (size_t)64 << 20;

static const char h200[] =
    "{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],"
    "\"regsPerBlock\":65536,\"multiProcessorCount\":132,\"warpSize\":32,"
    "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":232448,"
    "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,"
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
    "\"supportCoopLaunch\":1,\"totalGlobalMem\":150754820096,\"smClockRateKHz\":1980000,"
    "\"memClockRateKHz\":3201000,\"l2CacheSize\":62914560,\"cudaDeviceId\":0,\"deviceVer\":900,"
    "\"driverVer\":13000,\"deviceName\":\"NVIDIA H200\"}";

/* The VAE at 832x480, in both directions, and small odd ones. */
static const sl_conv_graph graphs[] = {
    /* frames, H, W, I, To, Ho, Wo, O, kt, kh, kw, zeros, strides, pads, residual */
    { 1, 60, 104, 16, 1, 60, 104, 384, 3, 3, 3, 2, 1, 1, 1, 1, 1, 1, 0 },
    { 3, 60, 104, 16, 1, 60, 104, 384, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 2, 60, 104, 384, 1, 60, 104, 384, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1 },
    { 3, 60, 104, 384, 1, 60, 104, 384, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
    { 3, 60, 104, 384, 1, 60, 104, 768, 3, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0 },
    { 2, 120, 208, 384, 2, 120, 208, 192, 1, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 4, 120, 208, 192, 2, 120, 208, 384, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 4, 120, 208, 384, 2, 120, 208, 384, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
    { 4, 240, 416, 384, 4, 240, 416, 192, 1, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 3, 240, 416, 192, 1, 240, 416, 192, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
    { 1, 480, 832, 192, 1, 480, 832, 96, 1, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 3, 480, 832, 96, 1, 480, 832, 96, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
    { 3, 480, 832, 96, 1, 480, 832, 3, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 3, 480, 832, 8, 1, 480, 832, 96, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 1, 480, 832, 96, 1, 240, 416, 96, 1, 3, 3, 0, 1, 2, 0, 1, 0, 1, 0 },
    { 3, 120, 208, 192, 1, 120, 208, 192, 3, 1, 1, 0, 2, 1, 0, 0, 0, 0, 0 },
    { 3, 60, 104, 384, 1, 60, 104, 32, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 0 },
    { 4, 13, 17, 24, 2, 13, 17, 40, 3, 3, 3, 0, 1, 1, 1, 1, 1, 1, 1 },
};

static sl_dnn *open_h200(sl_error *err)
{
    sl_dnn *dnn;

    SL_CHECK_OK(sl_dnn_create(&dnn, NULL, h200, workspace_limit, err));
    return dnn;
}

SL_TEST(convolutions_of_the_vae_have_plans)
{
    sl_dnn *dnn = open_h200(err), *other = open_h200(err);

    for (size_t i = 0; i < SL_COUNT(graphs); i++) {
        const sl_dnn_plan *plan, *again, *elsewhere;
        bool made;

        SL_CHECK_OK(sl_conv_graph_plan(dnn, &graphs[i], &plan, &made, err));
        if (sl_dnn_is_refused(plan))
            SL_FAIL("graph %zu: %s", i, sl_dnn_plan_text(plan));
        SL_CHECK(made && sl_dnn_workspace_bytes(plan) <= workspace_limit);
        SL_CHECK_OK(sl_conv_graph_plan(dnn, &graphs[i], &again, &made, err));
        SL_CHECK(!made && again == plan && sl_dnn_latest(dnn) == plan);
        SL_CHECK_OK(sl_conv_graph_plan(other, &graphs[i], &elsewhere, &made, err));
        SL_CHECK(strcmp(sl_dnn_plan_text(plan), sl_dnn_plan_text(elsewhere)) == 0);
    }
    sl_dnn_destroy(dnn);
    sl_dnn_destroy(other);
}

/* More plans than are kept: those used longest ago go, and can be had again. */
SL_TEST(plans_make_room)
{
    sl_conv_graph g = graphs[SL_COUNT(graphs) - 1];
    const sl_dnn_plan *plan;
    sl_dnn *dnn = open_h200(err);
    bool made;

    for (int i = 0; i < 200; i++) {
        g.H = g.Ho = 8 + i;
        SL_CHECK_OK(sl_conv_graph_plan(dnn, &g, &plan, &made, err));
        SL_CHECK(made && !sl_dnn_is_refused(plan));
    }
    SL_CHECK_OK(sl_conv_graph_plan(dnn, &g, &plan, &made, err));
    SL_CHECK(!made);
    g.H = g.Ho = 8;
    SL_CHECK_OK(sl_conv_graph_plan(dnn, &g, &plan, &made, err));
    SL_CHECK(made && !sl_dnn_is_refused(plan));
    sl_dnn_destroy(dnn);
}

/* An output that does not fit its input is a mistake of ours, and no refusal. */
SL_TEST(mistakes_are_told)
{
    sl_conv_graph g = graphs[3];
    const sl_dnn_plan *plan = NULL;
    sl_dnn *dnn = open_h200(err);
    bool made;

    g.Ho = 61;
    SL_CHECK_STATUS(sl_conv_graph_plan(dnn, &g, &plan, &made, err), SL_ERR_INTERNAL);
    SL_CHECK(strstr(err->message, "convolution") && strstr(err->message, "CUDNN_STATUS"));
    sl_dnn_destroy(dnn);
}

/* Without a driver nothing can be compiled: the plan is refused, says why, and is
 * remembered. */
SL_TEST(refusals_are_kept)
{
    const sl_attention_graph g = { .N = 12, .Sq = 1300, .Sk = 512, .D = 384 };
    const sl_dnn_plan *plan;
    sl_dnn *dnn = open_h200(err);
    bool made;

    SL_CHECK_OK(sl_attention_graph_plan(dnn, &g, &plan, &made, err));
    SL_CHECK(made && sl_dnn_is_refused(plan) && strlen(sl_dnn_plan_text(plan)) > 20);
    SL_CHECK_OK(sl_attention_graph_plan(dnn, &g, &plan, &made, err));
    SL_CHECK(!made && sl_dnn_is_refused(plan));
    sl_dnn_destroy(dnn);
}

SL_TEST(descriptions_are_checked)
{
    sl_dnn *dnn = NULL;

    SL_CHECK(sl_dnn_create(&dnn, NULL, "{}", workspace_limit, err) != SL_OK);
    SL_CHECK(strstr(err->message, "maxGridSize") && !dnn);
    sl_dnn_destroy(dnn);
}

SL_TEST_MAIN(SL_RUN(convolutions_of_the_vae_have_plans), SL_RUN(plans_make_room),
             SL_RUN(mistakes_are_told), SL_RUN(refusals_are_kept), SL_RUN(descriptions_are_checked))
