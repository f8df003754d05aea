/* A graph and its plan share their descriptors: what cuDNN keeps alive by
 * itself is not documented, so all of them live as long as the plan. */
#include "kernels/dnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_PLANS = 160,  /* a VAE's encode and decode need about 100 */
    MAX_CONFIGS = 64, /* that one mode of the heuristics offers */
    MAX_KNOBS = 24,   /* stored tensors of a graph */
    ALIGN_BYTES = 16, /* of every tensor */
    TEXT_BYTES = SL_DNN_TEXT_BYTES,
    REASON_BYTES = 320, /* of the library's own words */
};

struct sl_dnn_plan {
    sl_dnn_key key;
    uint64_t used; /* the clock when it was last asked for; 0: an empty place */
    sl_dnn_part plan, config, engine;
    sl_dnn_part parts[SL_DNN_MAX_PARTS];
    int part_count;
    size_t workspace_bytes;
    bool refused; /* there is none, and text says why */
    char text[TEXT_BYTES];
};

struct sl_dnn {
    cudnnHandle_t handle; /* NULL: plans are only built */
    sl_dnn_part device;   /* a description in place of a handle, or NULL */
    size_t workspace_limit;
    uint64_t clock, run_count;
    bool passes_over; /* preferences do not count, */
    int passed_over;  /* and so many plans that would do are not taken */
    sl_dnn_plan plans[MAX_PLANS];
};

/* --- errors --- */

static sl_status status_of(cudnnStatus_t s)
{
    switch (CUDNN_STATUS_CATEGORY(s)) {
    case 3000:
        return SL_ERR_UNIMPLEMENTED;
    case 5000:
        return SL_ERR_DEVICE;
    default:
        return SL_ERR_INTERNAL;
    }
}

/* What the library says about its last failure, on one line. */
static char *reason_of(cudnnStatus_t s, char *buf, size_t buf_bytes)
{
    char said[REASON_BYTES] = "";

    cudnnGetLastErrorString(said, sizeof said);
    said[sizeof said - 1] = '\0';
    for (char *c = said; *c; c++)
        if (*c == '\n')
            *c = ' ';
    snprintf(buf, buf_bytes, "%s (%d)%s%s", cudnnGetErrorString(s), (int)s, said[0] ? ": " : "",
             said);
    return buf;
}

static void fail_graph(sl_dnn_graph *g, const char *step, cudnnStatus_t s)
{
    char reason[REASON_BYTES + 64];

    if (g->status != SL_OK)
        return;
    reason_of(s, reason, sizeof reason);
    g->status = status_of(s);
    if (g->status == SL_ERR_UNIMPLEMENTED)
        snprintf(g->refusal, sizeof g->refusal, "%s: %s", step, reason);
    else
        sl_fail(g->err, g->status, "cudnn: %s: %s: %s", g->what, step, reason);
}

static void destroy_part(sl_dnn_part *part)
{
    if (*part)
        cudnnBackendDestroyDescriptor(*part);
    *part = NULL;
}

/* --- the context --- */

static cudnnStatus_t describe_device(sl_dnn *dnn, const char *json)
{
    cudnnStatus_t s =
        cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &dnn->device);

    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendSetAttribute(dnn->device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                     CUDNN_TYPE_CHAR, (int64_t)strlen(json), json);
    return s == CUDNN_STATUS_SUCCESS ? cudnnBackendFinalize(dnn->device) : s;
}

sl_status sl_dnn_create(sl_dnn **out, cudnnHandle_t handle, const char *device_json,
                        size_t workspace_limit, sl_error *err)
{
    sl_dnn *dnn = calloc(1, sizeof *dnn);
    char reason[REASON_BYTES + 64];

    if (!dnn)
        return sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the cudnn plans");
    dnn->handle = handle;
    dnn->workspace_limit = workspace_limit;
    if (!handle) {
        const cudnnStatus_t s = describe_device(dnn, device_json);

        if (s != CUDNN_STATUS_SUCCESS) {
            sl_dnn_destroy(dnn);
            return sl_fail(err, status_of(s), "cudnn: could not describe the device: %s",
                           reason_of(s, reason, sizeof reason));
        }
    }
    *out = dnn;
    return SL_OK;
}

static void empty_plan(sl_dnn_plan *plan)
{
    destroy_part(&plan->plan);
    destroy_part(&plan->engine);
    destroy_part(&plan->config);
    while (plan->part_count > 0)
        destroy_part(&plan->parts[--plan->part_count]);
    plan->used = 0;
}

void sl_dnn_destroy(sl_dnn *dnn)
{
    if (!dnn)
        return;
    for (int i = 0; i < MAX_PLANS; i++)
        empty_plan(&dnn->plans[i]);
    destroy_part(&dnn->device);
    free(dnn);
}

void sl_dnn_pass_over(sl_dnn *dnn, int count)
{
    dnn->passes_over = true;
    dnn->passed_over = count;
}

const sl_dnn_plan *sl_dnn_find(sl_dnn *dnn, const sl_dnn_key *key)
{
    for (int i = 0; i < MAX_PLANS; i++) {
        sl_dnn_plan *plan = &dnn->plans[i];

        if (plan->used && memcmp(&plan->key, key, sizeof *key) == 0) {
            plan->used = ++dnn->clock;
            return plan;
        }
    }
    return NULL;
}

/* An empty place, or the one used longest ago, made empty. */
static sl_dnn_plan *place_for_plan(sl_dnn *dnn)
{
    sl_dnn_plan *oldest = &dnn->plans[0];

    for (int i = 1; i < MAX_PLANS; i++)
        if (dnn->plans[i].used < oldest->used)
            oldest = &dnn->plans[i];
    empty_plan(oldest);
    return oldest;
}

size_t sl_dnn_workspace_bytes(const sl_dnn_plan *plan)
{
    return plan->workspace_bytes;
}

uint64_t sl_dnn_run_count(const sl_dnn *dnn)
{
    return dnn->run_count;
}

const sl_dnn_plan *sl_dnn_latest(const sl_dnn *dnn)
{
    for (int i = 0; i < MAX_PLANS; i++)
        if (dnn->plans[i].used && dnn->plans[i].used == dnn->clock)
            return &dnn->plans[i];
    return NULL;
}

bool sl_dnn_is_refused(const sl_dnn_plan *plan)
{
    return plan->refused;
}

const char *sl_dnn_plan_text(const sl_dnn_plan *plan)
{
    return plan->text;
}

/* --- graphs --- */

void sl_dnn_begin(sl_dnn_graph *g, const char *what, sl_error *err)
{
    memset(g, 0, sizeof *g);
    g->what = what;
    g->err = err;
}

/* A new descriptor, which the graph owns. */
static sl_dnn_part create(sl_dnn_graph *g, cudnnBackendDescriptorType_t type, const char *name)
{
    sl_dnn_part part = NULL;

    if (g->status != SL_OK)
        return NULL;
    if (g->part_count == SL_DNN_MAX_PARTS) {
        g->status = sl_fail(g->err, SL_ERR_INTERNAL, "cudnn: %s: more than %d descriptors", g->what,
                            SL_DNN_MAX_PARTS);
        return NULL;
    }
    const cudnnStatus_t s = cudnnBackendCreateDescriptor(type, &part);
    if (s != CUDNN_STATUS_SUCCESS) {
        fail_graph(g, name, s);
        return NULL;
    }
    return g->parts[g->part_count++] = part;
}

static void set(sl_dnn_graph *g, sl_dnn_part part, const char *name,
                cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type,
                int64_t count, const void *values)
{
    if (g->status != SL_OK)
        return;
    const cudnnStatus_t s = cudnnBackendSetAttribute(part, attribute, type, count, values);
    if (s != CUDNN_STATUS_SUCCESS)
        fail_graph(g, name, s);
}

/* The attribute's own name stands in the message. */
#define SET(g, part, attribute, type, count, values)                                               \
    set((g), (part), "setting " #attribute, (attribute), (type), (count), (values))
#define SET_PART(g, part, attribute, value)                                                        \
    SET(g, part, attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &(value))

static void finalize(sl_dnn_graph *g, sl_dnn_part part, const char *name)
{
    if (g->status != SL_OK)
        return;
    const cudnnStatus_t s = cudnnBackendFinalize(part);
    if (s != CUDNN_STATUS_SUCCESS)
        fail_graph(g, name, s);
}

static void add_op(sl_dnn_graph *g, sl_dnn_part op, const char *name)
{
    finalize(g, op, name);
    if (g->status != SL_OK)
        return;
    if (g->op_count == SL_DNN_MAX_OPS)
        g->status = sl_fail(g->err, SL_ERR_INTERNAL, "cudnn: %s: more than %d operations", g->what,
                            SL_DNN_MAX_OPS);
    else
        g->ops[g->op_count++] = op;
}

sl_dnn_part sl_dnn_tensor(sl_dnn_graph *g, const sl_dnn_shape *shape)
{
    static const int64_t first_virtual_id = 1000, alignment = ALIGN_BYTES;
    const bool is_virtual = shape->id == SL_DNN_VIRTUAL;
    const int64_t id = is_virtual ? first_virtual_id + g->virtual_count++ : shape->id;
    const sl_dnn_part t = create(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR, "creating a tensor");

    SET(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &shape->type);
    SET(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, shape->rank, shape->dim);
    SET(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, shape->rank, shape->stride);
    SET(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    SET(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (is_virtual)
        SET(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    if (shape->by_value)
        SET(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &shape->by_value);
    finalize(g, t, "finalizing a tensor");
    return t;
}

void sl_dnn_conv(sl_dnn_graph *g, sl_dnn_part x, sl_dnn_part w, sl_dnn_part y,
                 const sl_dnn_window *window)
{
    static const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    static const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    static const int64_t dilation[3] = { 1, 1, 1 };
    static const float alpha = 1.0f, beta = 0.0f;
    const int64_t dims = window->dims;
    const sl_dnn_part conv =
        create(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, "creating a convolution");

    SET(g, conv, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    SET(g, conv, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    SET(g, conv, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    SET(g, conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, dims, window->pad_before);
    SET(g, conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, dims, window->pad_after);
    SET(g, conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, dims, dilation);
    SET(g, conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, dims, window->stride);
    finalize(g, conv, "finalizing a convolution");

    const sl_dnn_part op = create(g, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                                  "creating a convolution's operation");
    SET_PART(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, conv);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
    SET(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &alpha);
    SET(g, op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &beta);
    add_op(g, op, "finalizing a convolution's operation");
}

void sl_dnn_pointwise(sl_dnn_graph *g, cudnnPointwiseMode_t mode, sl_dnn_part x, sl_dnn_part b,
                      sl_dnn_part y)
{
    static const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    const sl_dnn_part pw = create(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, "creating a pointwise");

    SET(g, pw, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    SET(g, pw, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finalize(g, pw, "finalizing a pointwise");

    const sl_dnn_part op =
        create(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, "creating a pointwise operation");
    SET_PART(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, pw);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b)
        SET_PART(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_op(g, op, "finalizing a pointwise operation");
}

#if CUDNN_VERSION >= 91301

void sl_dnn_sdpa(sl_dnn_graph *g, sl_dnn_part q, sl_dnn_part k, sl_dnn_part v, sl_dnn_part scale,
                 sl_dnn_part o)
{
    const sl_dnn_part op =
        create(g, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR, "creating an attention");

    SET_PART(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, o);
    SET_PART(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale);
    add_op(g, op, "finalizing an attention");
}

#else /* older headers lack the operation */

void sl_dnn_sdpa(sl_dnn_graph *g, sl_dnn_part q, sl_dnn_part k, sl_dnn_part v, sl_dnn_part scale,
                 sl_dnn_part o)
{
    (void)q, (void)k, (void)v, (void)scale, (void)o;
    if (g->status != SL_OK)
        return;
    g->status = SL_ERR_UNIMPLEMENTED;
    snprintf(g->refusal, sizeof g->refusal, "built with cuDNN %d, which has no fused attention",
             CUDNN_VERSION);
}

#endif

/* --- plans --- */

typedef struct {
    int offered, nondeterministic, forbidden, too_large, refused, good;
    size_t least_workspace_bytes;   /* of those that were too large */
    char reason[REASON_BYTES + 64]; /* of the last that was refused */
} search;

static cudnnStatus_t set_device(const sl_dnn *dnn, sl_dnn_part part,
                                cudnnBackendAttributeName_t handle_attribute,
                                cudnnBackendAttributeName_t device_attribute)
{
    if (dnn->handle)
        return (int)handle_attribute < 0
                   ? CUDNN_STATUS_SUCCESS
                   : cudnnBackendSetAttribute(part, handle_attribute, CUDNN_TYPE_HANDLE, 1,
                                              &dnn->handle);
    return (int)device_attribute < 0
               ? CUDNN_STATUS_SUCCESS
               : cudnnBackendSetAttribute(part, device_attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                          &dnn->device);
}

#define NOTHING ((cudnnBackendAttributeName_t)-1)

static sl_dnn_part make_operation_graph(sl_dnn_graph *g, const sl_dnn *dnn)
{
    const sl_dnn_part graph =
        create(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "creating the graph");

    SET(g, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->op_count,
        g->ops);
    if (g->status == SL_OK) {
        const cudnnStatus_t s = set_device(dnn, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, NOTHING);
        if (s != CUDNN_STATUS_SUCCESS)
            fail_graph(g, "setting the graph's handle", s);
    }
    finalize(g, graph, "finalizing the graph");
    return graph;
}

/* The configurations that one mode offers, best first; how many.  A mode that
 * knows nothing about the graph offers none, which is no failure. */
static int ask(const sl_dnn *dnn, sl_dnn_part graph, cudnnBackendHeurMode_t mode,
               sl_dnn_part configs[MAX_CONFIGS], search *found)
{
    sl_dnn_part heuristic = NULL;
    int64_t count = 0;
    int made = 0;
    cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &heuristic);

    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendSetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendSetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
                                     &mode);
    if (s == CUDNN_STATUS_SUCCESS)
        s = set_device(dnn, heuristic, NOTHING, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendFinalize(heuristic);
    while (s == CUDNN_STATUS_SUCCESS && made < MAX_CONFIGS) {
        s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs[made]);
        made += s == CUDNN_STATUS_SUCCESS;
    }
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS, &count, configs);
    if (s != CUDNN_STATUS_SUCCESS) {
        count = 0;
        reason_of(s, found->reason, sizeof found->reason);
    }
    while (made > count)
        destroy_part(&configs[--made]);
    destroy_part(&heuristic);
    return made;
}

/* Engine, its number and its notes, as bits. */
static cudnnStatus_t look_at_engine(sl_dnn_plan *plan, int64_t *number, uint32_t *notes)
{
    cudnnBackendNumericalNote_t list[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t count = 0;
    cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &plan->engine);

    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendGetAttribute(plan->config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &plan->engine);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendGetAttribute(plan->engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64,
                                     1, &count, number);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendGetAttribute(plan->engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                     CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT,
                                     &count, list);
    *notes = 0;
    for (int64_t i = 0; s == CUDNN_STATUS_SUCCESS && i < count; i++)
        *notes |= 1u << list[i];
    return s;
}

/* What is set in a configuration; SL_DNN_ANY where it has no such knob. */
static sl_dnn_choice choice_of(sl_dnn_part config, int64_t engine)
{
    sl_dnn_choice choice = { (int16_t)engine, SL_DNN_ANY, SL_DNN_ANY, SL_DNN_ANY, SL_DNN_ANY };
    const struct {
        cudnnBackendKnobType_t type;
        int16_t *value;
    } known[] = {
        { CUDNN_KNOB_TYPE_TILE_SIZE, &choice.tile },
        { CUDNN_KNOB_TYPE_TILEK, &choice.tile_k },
        { CUDNN_KNOB_TYPE_TILE_CGA_M, &choice.cluster_m },
        { CUDNN_KNOB_TYPE_TILE_CGA_N, &choice.cluster_n },
    };
    sl_dnn_part knobs[MAX_KNOBS] = { NULL };
    int64_t count = 0;
    cudnnStatus_t s = CUDNN_STATUS_SUCCESS;

    for (int i = 0; s == CUDNN_STATUS_SUCCESS && i < MAX_KNOBS; i++)
        s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, &knobs[i]);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_KNOBS, &count, knobs);
    for (int64_t i = 0; s == CUDNN_STATUS_SUCCESS && i < count && i < MAX_KNOBS; i++) {
        cudnnBackendKnobType_t type;
        int64_t value, one;
        s = cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE,
                                     CUDNN_TYPE_KNOB_TYPE, 1, &one, &type);
        if (s == CUDNN_STATUS_SUCCESS)
            s = cudnnBackendGetAttribute(knobs[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE,
                                         CUDNN_TYPE_INT64, 1, &one, &value);
        for (size_t k = 0; s == CUDNN_STATUS_SUCCESS && k < SL_COUNT(known); k++)
            if (known[k].type == type)
                *known[k].value = (int16_t)value;
    }
    for (int i = 0; i < MAX_KNOBS; i++)
        destroy_part(&knobs[i]);
    return choice;
}

static bool matches(const sl_dnn_choice *wanted, const sl_dnn_choice *c)
{
    return (wanted->engine == SL_DNN_ANY || wanted->engine == c->engine) &&
           (wanted->tile == SL_DNN_ANY || wanted->tile == c->tile) &&
           (wanted->tile_k == SL_DNN_ANY || wanted->tile_k == c->tile_k) &&
           (wanted->cluster_m == SL_DNN_ANY || wanted->cluster_m == c->cluster_m) &&
           (wanted->cluster_n == SL_DNN_ANY || wanted->cluster_n == c->cluster_n);
}

/* plan->config becomes a plan. */
static cudnnStatus_t build_plan(const sl_dnn *dnn, sl_dnn_plan *plan)
{
    int64_t count = 0, workspace = 0;
    cudnnStatus_t s =
        cudnnBackendCreateDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &plan->plan);

    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendSetAttribute(plan->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &plan->config);
    if (s == CUDNN_STATUS_SUCCESS)
        s = set_device(dnn, plan->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
                       CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendFinalize(plan->plan);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendGetAttribute(plan->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                     CUDNN_TYPE_INT64, 1, &count, &workspace);
    plan->workspace_bytes = (size_t)workspace;
    return s;
}

static void describe_plan(sl_dnn_plan *plan, const sl_dnn_choice *c, uint32_t notes, int number)
{
    snprintf(plan->text, sizeof plan->text,
             "engine %d tile %d/%d cluster %dx%d, notes 0x%x, choice %d, workspace %zu", c->engine,
             c->tile, c->tile_k, c->cluster_m, c->cluster_n, notes, number, plan->workspace_bytes);
}

/* Whether plan->config, the `number`-th on offer, will do; then it is a plan.
 * wanted NULL: any. */
static bool take(const sl_dnn *dnn, const sl_dnn_graph *g, const sl_dnn_choice *wanted,
                 sl_dnn_plan *plan, int number, search *found)
{
    int64_t engine = -1;
    uint32_t notes;
    cudnnStatus_t s = look_at_engine(plan, &engine, &notes);
    const sl_dnn_choice choice = choice_of(plan->config, engine);

    if (wanted && !matches(wanted, &choice)) {
        destroy_part(&plan->engine);
        return false;
    }
    found->offered += !wanted;
    if (s == CUDNN_STATUS_SUCCESS && notes & 1u << CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) {
        found->nondeterministic++;
    } else if (s == CUDNN_STATUS_SUCCESS && notes & g->forbidden) {
        found->forbidden++;
    } else {
        if (s == CUDNN_STATUS_SUCCESS)
            s = build_plan(dnn, plan);
        const bool fits =
            s == CUDNN_STATUS_SUCCESS && plan->workspace_bytes <= dnn->workspace_limit;
        if (fits && (wanted || found->good++ == dnn->passed_over)) {
            describe_plan(plan, &choice, notes, number);
            return true;
        }
        if (s == CUDNN_STATUS_SUCCESS && !fits) {
            if (!found->too_large++ || plan->workspace_bytes < found->least_workspace_bytes)
                found->least_workspace_bytes = plan->workspace_bytes;
        } else if (s != CUDNN_STATUS_SUCCESS) {
            found->refused++;
            reason_of(s, found->reason, sizeof found->reason);
        }
    }
    destroy_part(&plan->plan);
    destroy_part(&plan->engine);
    return false;
}

static const cudnnBackendHeurMode_t modes[] = { CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK };

/* The first that will do of those that one mode offers, and that are `wanted`. */
static bool take_first(const sl_dnn *dnn, const sl_dnn_graph *g, const sl_dnn_choice *wanted,
                       sl_dnn_part *configs, int count, sl_dnn_plan *plan, search *found)
{
    for (int i = 0; i < count; i++) {
        plan->config = configs[i];
        if (take(dnn, g, wanted, plan, i + 1, found)) {
            configs[i] = NULL; /* the plan's now */
            return true;
        }
    }
    plan->config = NULL;
    return false;
}

static bool search_mode(const sl_dnn *dnn, const sl_dnn_graph *g, sl_dnn_part graph,
                        cudnnBackendHeurMode_t mode, sl_dnn_plan *plan, search *found)
{
    sl_dnn_part configs[MAX_CONFIGS];
    const int count = ask(dnn, graph, mode, configs, found);
    const int wishes = dnn->passes_over ? 0 : g->preferred_count;
    bool taken = false;

    for (int i = 0; !taken && i < wishes; i++)
        taken = take_first(dnn, g, &g->preferred[i], configs, count, plan, found);
    if (!taken)
        taken = take_first(dnn, g, NULL, configs, count, plan, found);
    for (int i = 0; i < count; i++)
        destroy_part(&configs[i]);
    return taken;
}

static sl_status search_plan(const sl_dnn *dnn, const sl_dnn_graph *g, sl_dnn_part graph,
                             sl_dnn_plan *plan)
{
    search found = { 0 };

    for (size_t m = 0; m < SL_COUNT(modes); m++)
        if (search_mode(dnn, g, graph, modes[m], plan, &found))
            return SL_OK;
    snprintf(plan->text, sizeof plan->text,
             "no plan: of %d offered %d are not deterministic, %d not exact enough, %d want more "
             "workspace than %zu bytes (the least %zu), %d were refused%s%s",
             found.offered, found.nondeterministic, found.forbidden, found.too_large,
             dnn->workspace_limit, found.least_workspace_bytes, found.refused,
             found.reason[0] ? ", the last with " : "", found.reason);
    return SL_ERR_UNIMPLEMENTED;
}

static void drop_parts(sl_dnn_graph *g)
{
    while (g->part_count > 0)
        destroy_part(&g->parts[--g->part_count]);
}

/* Steps that the library refuses are remembered as well: a shape that it does
 * not take is asked for once. */
sl_status sl_dnn_finish(sl_dnn_graph *g, sl_dnn *dnn, const sl_dnn_key *key,
                        const sl_dnn_plan **out)
{
    const sl_dnn_part graph = make_operation_graph(g, dnn);
    sl_dnn_plan *plan;

    if (g->status != SL_OK && g->status != SL_ERR_UNIMPLEMENTED) {
        drop_parts(g);
        return g->status;
    }
    plan = place_for_plan(dnn);
    if (g->status == SL_OK)
        g->status = search_plan(dnn, g, graph, plan);
    else
        snprintf(plan->text, sizeof plan->text, "%s", g->refusal);
    plan->refused = g->status != SL_OK;
    if (!plan->refused) {
        memcpy(plan->parts, g->parts, sizeof plan->parts);
        plan->part_count = g->part_count;
        g->part_count = 0;
    }
    plan->key = *key;
    plan->used = ++dnn->clock;
    *out = plan;
    drop_parts(g);
    return SL_OK;
}

sl_status sl_dnn_run(sl_dnn *dnn, const sl_dnn_plan *plan, int count, const int64_t *ids,
                     void *const *data, void *workspace, sl_error *err)
{
    char reason[REASON_BYTES + 64];
    sl_dnn_part pack = NULL;
    cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);

    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
                                     count, ids);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                     CUDNN_TYPE_VOID_PTR, count, data);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
                                     1, &workspace);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendFinalize(pack);
    if (s == CUDNN_STATUS_SUCCESS)
        s = cudnnBackendExecute(dnn->handle, plan->plan, pack);
    destroy_part(&pack);
    dnn->run_count++;
    return s == CUDNN_STATUS_SUCCESS
               ? SL_OK
               : sl_fail(err, status_of(s) == SL_ERR_INTERNAL ? SL_ERR_INTERNAL : SL_ERR_DEVICE,
                         "cudnn: could not run a plan (%s): %s", plan->text,
                         reason_of(s, reason, sizeof reason));
}
