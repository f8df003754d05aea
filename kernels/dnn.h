/* dnn.h - cuDNN's graph API in C: tensors and operations become a plan.
 *
 * A graph is described step by step; the first failure is kept in it and makes
 * the later steps do nothing, so that only sl_dnn_finish is looked at:
 *
 *     sl_dnn_graph g;
 *     sl_dnn_begin(&g, "conv", err);
 *     x = sl_dnn_tensor(&g, &x_shape);  ...  sl_dnn_conv(&g, x, w, y, &conv);
 *     status = sl_dnn_finish(&g, dnn, &key, &plan);
 *
 * The plan is the first that cuDNN's heuristics offer (their best guess, then
 * their fallbacks) which is deterministic, has no note that the graph forbids,
 * and needs no more workspace than the limit; those that the graph prefers, if
 * they are offered, come before.  Nothing is timed, so that two processes take
 * the same plan and give the same bits.  Where there is none, or the library does
 * not take a step of the graph, the result is a refused plan, whose text says what
 * was offered and why it was passed over: that is for the op to do in another way.
 *
 * Plans are kept by a key that the caller makes from everything that went into
 * the graph; the one used longest ago makes room for a new one.
 *
 * A sl_dnn is made for a handle, or from the description of a device (JSON, as
 * cuDNN itself writes it): then plans can be built without that device and
 * not be run, which is how graphs are tested where there is no GPU.
 *
 * Ownership: the plan belongs to the sl_dnn and lives until it is pushed out:
 *            use it before asking for the next one.
 * Threads:   one at a time.
 */
#ifndef SL_KERNELS_DNN_H
#define SL_KERNELS_DNN_H

#include "base/status.h"

#include <cudnn.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct sl_dnn sl_dnn;
typedef struct sl_dnn_plan sl_dnn_plan;

/* Exactly one of handle and device_json.  The handle outlives the result. */
sl_status sl_dnn_create(sl_dnn **out, cudnnHandle_t handle, const char *device_json,
                        size_t workspace_limit, sl_error *err) SL_MUST_CHECK;
void sl_dnn_destroy(sl_dnn *dnn); /* NULL is fine */

/* For benchmarks: plans made from now on are not the first that will do but the
 * one `count` behind it. */
void sl_dnn_pass_over(sl_dnn *dnn, int count);

/* ---- plans ---- */

enum { SL_DNN_KEY_INTS = 24, SL_DNN_TEXT_BYTES = 640 };

typedef struct {
    int64_t v[SL_DNN_KEY_INTS]; /* unused ones are 0 */
} sl_dnn_key;

/* NULL: not there; then make it with sl_dnn_finish, which keeps it. */
const sl_dnn_plan *sl_dnn_find(sl_dnn *dnn, const sl_dnn_key *key);
bool sl_dnn_is_refused(const sl_dnn_plan *plan); /* then it must not be run */
size_t sl_dnn_workspace_bytes(const sl_dnn_plan *plan);
/* "engine 41 tile 0/1 cluster 2x1, notes 0x1, choice 1, workspace 131", or why it
 * is refused. */
const char *sl_dnn_plan_text(const sl_dnn_plan *plan);
/* Plans run so far: tells whether the library did something or not. */
uint64_t sl_dnn_run_count(const sl_dnn *dnn);
/* The plan that was made or found last; NULL: none yet. */
const sl_dnn_plan *sl_dnn_latest(const sl_dnn *dnn);
/* Queues it on the handle's stream.  ids, data: the stored tensors of the graph. */
sl_status sl_dnn_run(sl_dnn *dnn, const sl_dnn_plan *plan, int count, const int64_t *ids,
                     void *const *data, void *workspace, sl_error *err) SL_MUST_CHECK;

/* ---- graphs ---- */

enum { SL_DNN_MAX_RANK = 5, SL_DNN_MAX_PARTS = 48, SL_DNN_MAX_OPS = 12 };

typedef cudnnBackendDescriptor_t sl_dnn_part; /* NULL once something failed */

/* What tells one offered plan from another; SL_DNN_ANY: whatever it is.  The
 * numbers of tiles are the library's own: indices into its kernels. */
enum { SL_DNN_ANY = -1 };

typedef struct {
    int16_t engine, tile, tile_k, cluster_m, cluster_n;
} sl_dnn_choice;

typedef struct {
    const char *what; /* for messages */
    sl_error *err;
    sl_status status;
    uint32_t forbidden; /* bits of cudnnBackendNumericalNote_t beside NONDETERMINISTIC */
    const sl_dnn_choice *preferred; /* the best one first; NULL: none */
    int preferred_count;
    sl_dnn_part parts[SL_DNN_MAX_PARTS];
    sl_dnn_part ops[SL_DNN_MAX_OPS];
    int part_count, op_count;
    int64_t virtual_count;
    char refusal[SL_DNN_TEXT_BYTES]; /* where status is SL_ERR_UNIMPLEMENTED */
} sl_dnn_graph;

enum { SL_DNN_VIRTUAL = 0 }; /* id of a tensor that is never stored */

typedef struct {
    int64_t id; /* 1 and up, or SL_DNN_VIRTUAL */
    cudnnDataType_t type;
    int rank;
    int64_t dim[SL_DNN_MAX_RANK], stride[SL_DNN_MAX_RANK]; /* in elements */
    bool by_value;                                         /* data is read on the host, at run */
} sl_dnn_shape;

typedef struct {
    int dims; /* 2 or 3, of space and time */
    int64_t pad_before[3], pad_after[3], stride[3];
} sl_dnn_window;

void sl_dnn_begin(sl_dnn_graph *g, const char *what, sl_error *err);
sl_dnn_part sl_dnn_tensor(sl_dnn_graph *g, const sl_dnn_shape *shape);
/* Cross-correlation, sums in f32. */
void sl_dnn_conv(sl_dnn_graph *g, sl_dnn_part x, sl_dnn_part w, sl_dnn_part y,
                 const sl_dnn_window *window);
/* y = mode(x [, b]) in f32; b is broadcast. */
void sl_dnn_pointwise(sl_dnn_graph *g, cudnnPointwiseMode_t mode, sl_dnn_part x, sl_dnn_part b,
                      sl_dnn_part y);
/* o = softmax(scale * q . k^T) . v, all [B, N, S, D]; scale is a by_value f32. */
void sl_dnn_sdpa(sl_dnn_graph *g, sl_dnn_part q, sl_dnn_part k, sl_dnn_part v, sl_dnn_part scale,
                 sl_dnn_part o);
/* Builds the plan and keeps it under `key`; ends the graph in any case. */
sl_status sl_dnn_finish(sl_dnn_graph *g, sl_dnn *dnn, const sl_dnn_key *key,
                        const sl_dnn_plan **out) SL_MUST_CHECK;

#endif
