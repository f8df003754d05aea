/* golden_test_accel.c - the accelerated ops alone: int8 linears, SLA, SageSLA. */
#include "tests/golden_test.h"

#include "base/size.h"
#include "kernels/linear_int8.h"
#include "kernels/ops.h"
#include "kernels/sage.h"
#include "kernels/sla.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A tensor of the case in scratch, under its own shape. */
static sl_status upload(golden_case *c, const char *name, sl_dtype dtype, sl_tensor *out,
                        sl_error *err)
{
    golden_array in;
    float *values;
    sl_status status = golden_get_f32(c, name, &in, &values, err);

    if (status == SL_OK)
        status = golden_put(c, out, dtype, in.rank, in.dim, values, err);
    return status;
}

/* ---- int8 linears ---- */

typedef struct {
    sl_tensor q, scale;
} quantised;

/* A code that is neither the wanted one nor, where the exact quotient is as good
 * as half-way between two, its neighbour: the reference kernels divide in fast
 * math, up to two ulp off. */
static bool wrong_code(double got, double want, double exact)
{
    const double size = fabs(exact), off = fabs(got - want);
    const bool tie = fabs(size - floor(size) - 0.5) < 1e-5;

    return !(off == 0.0 || (tie && off <= 1.0));
}

static int64_t wrong_codes(const int8_t *q, const float *scale, int64_t scale_cols,
                           const golden_array *x, const golden_array *want)
{
    const int64_t cols = x->dim[1];
    int64_t wrong = 0;

    for (int64_t i = 0; i < want->count; i++) {
        const int64_t tile = i / cols / SL_INT8_TILE * scale_cols + i % cols / SL_INT8_TILE;

        wrong += wrong_code((double)q[i], want->v[i], x->v[i] / (double)scale[tile]);
    }
    return wrong;
}

/* Quantises in.NAME and compares with out.NAME.q and out.NAME.scale. */
static sl_status check_quantised(golden_case *c, const char *name, quantised *out, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    golden_array in, want_q, want_scale;
    sl_status status = SL_OK;
    char full[64];
    sl_tensor x;

    snprintf(full, sizeof full, "in.%s", name);
    GOLDEN_TRY(upload(c, full, SL_F32, &x, err));
    GOLDEN_TRY(golden_get(c, full, &in, err));
    snprintf(full, sizeof full, "out.%s.q", name);
    GOLDEN_TRY(golden_get(c, full, &want_q, err));
    snprintf(full, sizeof full, "out.%s.scale", name);
    GOLDEN_TRY(golden_get(c, full, &want_scale, err));
    GOLDEN_TRY(sl_scratch_take(scratch, &out->q, err, SL_I8, want_q.rank, want_q.dim));
    GOLDEN_TRY(sl_scratch_take(scratch, &out->scale, err, SL_F32, want_scale.rank, want_scale.dim));
    GOLDEN_TRY(ops->quantize_int8(c->env->exec, &out->q, &out->scale, &x, err));
    golden_check(c, full, "max_abs",
                 golden_max_abs(golden_f64_of(c, &out->scale, err), want_scale.v, want_scale.count),
                 0.0);
    snprintf(full, sizeof full, "out.%s.q", name);
    const int8_t *q = golden_bytes_of(c, &out->q, err);
    const float *scale = golden_bytes_of(c, &out->scale, err);
    if (!q || !scale)
        return SL_ERR_NO_MEMORY;
    golden_check(c, full, "wrong", (double)wrong_codes(q, scale, want_scale.dim[1], &in, &want_q),
                 0.0);
done:
    return status;
}

/* The distance of two bf16 values in steps of bf16. */
static double bf16_steps(double a, double b)
{
    const double most = fmax(fabs(a), fabs(b));

    return a == b ? 0.0 : fabs(a - b) / ldexp(1.0, ilogb(most) - 7);
}

static sl_status check_linear(golden_case *c, const quantised *x, const quantised *w,
                              const sl_tensor *bias, const char *want_name, sl_error *err)
{
    const sl_ops *ops = sl_exec_ops(c->env->exec);
    sl_status status = SL_OK;
    golden_array want;
    double worst = 0.0;
    sl_tensor y;

    GOLDEN_TRY(golden_get(c, want_name, &want, err));
    GOLDEN_TRY(sl_scratch_take(&c->env->scratch, &y, err, SL_F32, want.rank, want.dim));
    GOLDEN_TRY(ops->linear_int8(c->env->exec, &y, &x->q, &x->scale, &w->q, &w->scale, bias,
                                SL_ACT_NONE, err));
    const double *got = golden_f64_of(c, &y, err);
    if (!got)
        return SL_ERR_NO_MEMORY;
    for (int64_t i = 0; i < want.count; i++) {
        const double steps = bf16_steps(got[i], want.v[i]);
        if (!(steps <= worst))
            worst = isnan(steps) ? INFINITY : steps;
    }
    golden_check(c, want_name, "ulp", worst, golden_tolerance(c, "y_bf16_ulp"));
done:
    return status;
}

sl_status golden_run_int8_linear(golden_case *c, sl_error *err)
{
    sl_status status = SL_OK;
    quantised x, w, other;
    sl_tensor bias;

    GOLDEN_TRY(check_quantised(c, "aligned", &other, err));
    GOLDEN_TRY(check_quantised(c, "ragged", &other, err));
    GOLDEN_TRY(check_quantised(c, "ties", &other, err));
    GOLDEN_TRY(check_quantised(c, "x", &x, err));
    GOLDEN_TRY(check_quantised(c, "w", &w, err));
    GOLDEN_TRY(upload(c, "in.bias", SL_F32, &bias, err));
    GOLDEN_TRY(check_linear(c, &x, &w, NULL, "out.y_nobias", err));
    GOLDEN_TRY(check_linear(c, &x, &w, &bias, "out.y", err));
done:
    return status;
}

/* ---- SLA and SageSLA ---- */

sl_status golden_make_lut(golden_case *c, const golden_array *map, int64_t layer, sl_tensor *out,
                          sl_error *err)
{
    const int64_t N = map->dim[1], Q = map->dim[2], K = map->dim[3];
    const double *rows = map->v + layer * N * Q * K;
    int64_t keep = 0;
    int32_t *lut, *at;
    sl_status status;

    if (map->rank != 4 || layer >= map->dim[0] || map->count == 0)
        return sl_fail(err, SL_ERR_DATA, "the map has another shape");
    for (int64_t k = 0; k < K; k++)
        keep += rows[k] != 0.0;
    status = sl_scratch_tensor(&c->env->scratch, out, err, SL_I32, 3, N, Q, keep);
    if (status != SL_OK)
        return status;
    lut = at = golden_alloc(c, sl_tensor_count(out), sizeof *lut, err);
    if (!lut)
        return SL_ERR_NO_MEMORY;
    for (int64_t row = 0; row < N * Q; row++) {
        int64_t kept = 0;
        for (int64_t k = 0; k < K; k++)
            if (rows[row * K + k] != 0.0 && kept++ < keep)
                *at++ = (int32_t)k;
        if (kept != keep)
            return sl_fail(err, SL_ERR_DATA, "rows of the map keep %lld and %lld blocks",
                           (long long)keep, (long long)kept);
    }
    return golden_write(c, out, lut, err);
}

typedef struct {
    golden_case *c;
    const sl_ops *ops;
    int64_t S, N, D;
    float scale;
    sl_tensor q, k, v, k_mean, state; /* in scratch */
    sl_tensor proj_w, proj_b, identity, zero;
    golden_array rows; /* of the outputs that are stored */
} sla_case;

/* One block size and ratio of the case. */
typedef struct {
    char stem[48]; /* "q128k64_t0.1" */
    int64_t block_q, block_k;
    sl_tensor lut;
    double *sparse; /* [rows, N*D] of the branch alone */
} sla_variant;

/* [B, L, H, D] as [S, N*D]. */
static sl_status upload_heads(sla_case *s, const char *name, sl_tensor *out, sl_error *err)
{
    const sl_status status = upload(s->c, name, golden_act(s->c), out, err);

    if (status != SL_OK)
        return status;
    if (out->rank != 4 || out->dim[0] != 1)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" is not [1, L, H, D]", name);
    s->S = out->dim[1];
    s->N = out->dim[2];
    s->D = out->dim[3];
    *out = sl_tensor_of(out->data, out->dtype, 2, s->S, s->N * s->D);
    return SL_OK;
}

static sl_status open_sla(sla_case *s, golden_case *c, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    sl_status status = SL_OK;

    *s = (sla_case){ .c = c, .ops = sl_exec_ops(c->env->exec) };
    GOLDEN_TRY(upload_heads(s, "in.q", &s->q, err));
    GOLDEN_TRY(upload_heads(s, "in.k", &s->k, err));
    GOLDEN_TRY(upload_heads(s, "in.v", &s->v, err));
    GOLDEN_TRY(upload(c, "in.proj_l.weight", SL_F32, &s->proj_w, err));
    GOLDEN_TRY(upload(c, "in.proj_l.bias", SL_F32, &s->proj_b, err));
    GOLDEN_TRY(golden_get(c, "in.rows", &s->rows, err));
    for (int64_t i = 0; i < s->rows.count; i++)
        if (!(s->rows.v[i] >= 0 && s->rows.v[i] < (double)s->S))
            return sl_fail(err, SL_ERR_DATA, "in.rows names a row that is not there");
    s->scale = (float)(1.0 / sqrt((double)s->D));
    float *identity = golden_alloc(c, s->D * s->D, sizeof *identity, err);
    if (!identity)
        return SL_ERR_NO_MEMORY;
    memset(identity, 0, (size_t)(s->D * s->D) * sizeof *identity);
    GOLDEN_TRY(golden_put(c, &s->zero, SL_F32, 1, &s->D, identity, err));
    for (int64_t d = 0; d < s->D; d++)
        identity[d * s->D + d] = 1.0f;
    GOLDEN_TRY(
        golden_put(c, &s->identity, SL_F32, 2, (const int64_t[]){ s->D, s->D }, identity, err));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &s->k_mean, err, SL_F32, 2, 1, s->N * s->D));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &s->state, err, SL_F32, 3, s->N, s->D + 1, s->D));
    GOLDEN_TRY(s->ops->block_mean(c->env->exec, &s->k_mean, &s->k, NULL, s->S, SL_SLA_BF16, err));
    GOLDEN_TRY(s->ops->linear_state(c->env->exec, &s->state, &s->k, &s->v, s->N, err));
done:
    return status;
}

/* The stored rows of an output. */
static double *stored_rows(const sla_case *s, const sl_tensor *o, sl_error *err)
{
    const int64_t width = s->N * s->D;
    double *v = golden_alloc(s->c, s->rows.count * width, sizeof *v, err);
    const double *all = golden_f64_of(s->c, o, err);

    for (int64_t i = 0; v && all && i < s->rows.count; i++)
        memcpy(v + i * width, all + (int64_t)s->rows.v[i] * width, (size_t)width * sizeof *v);
    return all ? v : NULL;
}

static sl_status compare_rows(const sla_case *s, const double *got, const char *name,
                              const char *key, sl_error *err)
{
    golden_array want;
    const sl_status status = golden_get(s->c, name, &want, err);

    if (status == SL_OK)
        golden_compare(s->c, name, got, s->rows.count * s->N * s->D, &want, key, NULL);
    return status;
}

/* Entries of our own map that differ from the stored one, other than among equal
 * scores at the threshold. */
static sl_status check_map(const sla_case *s, const sla_variant *v, const golden_array *map,
                           sl_error *err)
{
    sl_exec *exec = s->c->env->exec;
    sl_scratch *scratch = &s->c->env->scratch;
    const int64_t width = s->N * s->D, Q = map->dim[2], K = map->dim[3];
    const int64_t keep = v->lut.dim[2];
    sl_status status = SL_OK;
    sl_tensor pq, pk, lut;
    golden_array scores;
    int64_t wrong = 0;
    char name[96];

    snprintf(name, sizeof name, "mid.%s.scores", v->stem);
    GOLDEN_TRY(golden_get(s->c, name, &scores, err));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &pq, err, SL_F32, 2, Q, width));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &pk, err, SL_F32, 2, K, width));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &lut, err, SL_I32, 3, s->N, Q, keep));
    GOLDEN_TRY(s->ops->block_mean(exec, &pq, &s->q, NULL, v->block_q, SL_SLA_BF16, err));
    GOLDEN_TRY(s->ops->block_mean(exec, &pk, &s->k, &s->k_mean, v->block_k, SL_SLA_BF16, err));
    GOLDEN_TRY(s->ops->top_blocks(exec, &lut, &pq, &pk, s->N, SL_SLA_BF16, err));
    const int32_t *kept = golden_bytes_of(s->c, &lut, err);
    if (!kept)
        return SL_ERR_NO_MEMORY;
    for (int64_t row = 0; row < s->N * Q; row++) {
        double threshold = INFINITY;

        for (int64_t k = 0; k < K; k++)
            if (map->v[row * K + k] != 0.0)
                threshold = fmin(threshold, scores.v[row * K + k]);
        for (int64_t i = 0; i < keep; i++) {
            const int64_t k = row * K + kept[row * keep + i];
            wrong += map->v[k] == 0.0 && scores.v[k] != threshold;
        }
    }
    snprintf(name, sizeof name, "mid.%s.map", v->stem);
    golden_check(s->c, name, "wrong", (double)wrong, 0.0);
done:
    return status;
}

/* Sparse branch alone, linear branch with and without projection, and the sum. */
static sl_status check_sla(const sla_case *s, sla_variant *v, sl_error *err)
{
    static const char *const branch_names[] = { "out.linear", "out.proj" };
    sl_exec *exec = s->c->env->exec;
    const sl_linear_branch branches[] = { { &s->state, &s->identity, &s->zero },
                                          { &s->state, &s->proj_w, &s->proj_b } };
    const int64_t count = s->rows.count * s->N * s->D;
    const bool exact = golden_is_exact(s->c);
    const char *key = exact ? "f32_sparse_rel_l2" : "bf16_sla_rel_l2";
    sl_status status = SL_OK;
    char name[96];
    sl_tensor o;

    GOLDEN_TRY(sl_scratch_take(&s->c->env->scratch, &o, err, s->q.dtype, 2, s->q.dim));
    GOLDEN_TRY(s->ops->sparse_attention(exec, &o, &s->q, &s->k, &s->v, &v->lut, NULL, s->N,
                                        v->block_q, v->block_k, s->scale, err));
    v->sparse = stored_rows(s, &o, err);
    snprintf(name, sizeof name, "out.%s.sparse", v->stem);
    GOLDEN_TRY(compare_rows(s, v->sparse, name, key, err));
    for (size_t b = 0; b < SL_COUNT(branches); b++) {
        GOLDEN_TRY(s->ops->sparse_attention(exec, &o, &s->q, &s->k, &s->v, &v->lut, &branches[b],
                                            s->N, v->block_q, v->block_k, s->scale, err));
        double *got = stored_rows(s, &o, err);

        if (b == 1) {
            snprintf(name, sizeof name, "out.%s.out_bf16_sla", v->stem);
            GOLDEN_TRY(compare_rows(s, got, name, "bf16_sla_rel_l2", err));
        }
        /* the difference of sums that were rounded to bf16 tells nothing */
        for (int64_t i = 0; exact && got && i < count; i++)
            got[i] -= v->sparse[i];
        if (exact)
            GOLDEN_TRY(compare_rows(s, got, branch_names[b], key, err));
    }
done:
    return status;
}

/* Codes and scales of q or k: mid.sage.<letter>_int8 and _scale. */
static sl_status check_sage_codes(const sla_case *s, char letter, const sl_tensor *x,
                                  const sl_tensor *shift, const sl_tensor *codes,
                                  const sl_tensor *scale, int64_t block, sl_error *err)
{
    const double *values = golden_f64_of(s->c, x, err);
    const double *moves = shift ? golden_f64_of(s->c, shift, err) : NULL;
    const float *scales = golden_bytes_of(s->c, scale, err);
    const int8_t *got = golden_bytes_of(s->c, codes, err);
    const int64_t width = s->N * s->D, blocks = scale->dim[1];
    golden_array want_codes, want_scale;
    sl_status status = SL_OK;
    int64_t wrong = 0;
    double worst = 0.0;
    char name[48];

    if (!values || (shift && !moves) || !scales || !got)
        return SL_ERR_NO_MEMORY;
    snprintf(name, sizeof name, "mid.sage.%c_int8", letter);
    GOLDEN_TRY(golden_get(s->c, name, &want_codes, err));
    if (want_codes.count != s->S * width)
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another shape", name);
    for (int64_t i = 0; i < want_codes.count; i++) {
        const int64_t at = i % width / s->D * blocks + i / width / block;
        const float moved = (float)values[i] - (moves ? (float)moves[i % width] : 0.0f);
        const float v = sl_bf16_to_f32(sl_bf16_from_f32(moved));

        wrong += wrong_code((double)got[i], want_codes.v[i], (double)v / (double)scales[at]);
    }
    golden_check(s->c, name, "wrong", (double)wrong, 0.0);
    snprintf(name, sizeof name, "mid.sage.%c_scale", letter);
    GOLDEN_TRY(golden_get(s->c, name, &want_scale, err));
    if (want_scale.count != sl_tensor_count(scale))
        return sl_fail(err, SL_ERR_DATA, "\"%s\" has another shape", name);
    for (int64_t i = 0; i < want_scale.count; i++)
        worst = fmax(worst, fabs((double)scales[i] / want_scale.v[i] - 1.0));
    golden_check(s->c, name, "relative", worst, 0x1p-23); /* one step of f32 */
done:
    return status;
}

static sl_status check_sage(const sla_case *s, const sla_variant *v, sl_error *err)
{
    sl_exec *exec = s->c->env->exec;
    sl_scratch *scratch = &s->c->env->scratch;
    const int64_t width = s->N * s->D;
    const sl_linear_branch branch = { &s->state, &s->proj_w, &s->proj_b };
    sl_status status = SL_OK;
    sl_tensor q8, k8, v8, q_scale, k_scale, v_scale, o;
    golden_array want;
    char name[96];

    GOLDEN_TRY(sl_scratch_take(scratch, &q8, err, SL_I8, 2, s->q.dim));
    GOLDEN_TRY(sl_scratch_take(scratch, &k8, err, SL_I8, 2, s->q.dim));
    GOLDEN_TRY(sl_scratch_take(scratch, &v8, err, SL_F8_E4M3, 2, s->q.dim));
    GOLDEN_TRY(sl_scratch_take(scratch, &o, err, s->q.dtype, 2, s->q.dim));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &q_scale, err, SL_F32, 2, s->N, v->lut.dim[1]));
    GOLDEN_TRY(
        sl_scratch_tensor(scratch, &k_scale, err, SL_F32, 2, s->N, sl_ceil_div(s->S, v->block_k)));
    GOLDEN_TRY(sl_scratch_tensor(scratch, &v_scale, err, SL_F32, 1, width));
    GOLDEN_TRY(s->ops->sage_quantize(exec, &q8, &q_scale, &s->q, NULL, s->N, v->block_q, err));
    GOLDEN_TRY(
        s->ops->sage_quantize(exec, &k8, &k_scale, &s->k, &s->k_mean, s->N, v->block_k, err));
    GOLDEN_TRY(s->ops->sage_quantize_v(exec, &v8, &v_scale, &s->v, err));
    GOLDEN_TRY(check_sage_codes(s, 'q', &s->q, NULL, &q8, &q_scale, v->block_q, err));
    GOLDEN_TRY(check_sage_codes(s, 'k', &s->k, &s->k_mean, &k8, &k_scale, v->block_k, err));
    GOLDEN_TRY(golden_get(s->c, "mid.sage.v_scale", &want, err));
    golden_check(s->c, "mid.sage.v_scale", "max_abs",
                 golden_max_abs(golden_f64_of(s->c, &v_scale, err), want.v, width), 1e-7);
    const sl_sage_operands x = { &q8, &q_scale, &k8, &k_scale, &v8, &v_scale };
    GOLDEN_TRY(s->ops->sage_attention(exec, &o, &x, &v->lut, &s->q, &branch, s->N, v->block_q,
                                      v->block_k, s->scale, err));
    snprintf(name, sizeof name, "out.%s.out_bf16_sagesla", v->stem);
    GOLDEN_TRY(compare_rows(s, stored_rows(s, &o, err), name, "sagesla_rel_l2", err));
done:
    return status;
}

/* Finds its block sizes and ratios by their names: mid.q<q>k<k>_t<ratio>.map. */
static sl_status run_sla(golden_case *c, sl_error *err)
{
    sl_scratch *scratch = &c->env->scratch;
    const size_t before = sl_scratch_mark(scratch);
    sl_status status = SL_OK;
    sla_case s;

    GOLDEN_TRY(open_sla(&s, c, err));
    for (int64_t i = 0; i < sl_ckpt_count(c->io); i++) {
        const char *name = sl_ckpt_get(c->io, i)->name;
        const size_t mark = sl_scratch_mark(scratch);
        sla_variant v;
        long long block_q, block_k;
        double ratio;
        int used = 0;
        golden_array map;
        char full[96];

        if (sscanf(name, "mid.q%lldk%lld_t%lf%n", &block_q, &block_k, &ratio, &used) != 3 ||
            strcmp(name + used, ".map") != 0)
            continue;
        v = (sla_variant){ .block_q = block_q, .block_k = block_k };
        snprintf(v.stem, sizeof v.stem, "%.*s", used - 4, name + 4);
        GOLDEN_TRY(golden_get(c, name, &map, err));
        if (map.rank != 4 || map.dim[1] != s.N || map.dim[3] != sl_ceil_div(s.S, block_k))
            return sl_fail(err, SL_ERR_DATA, "\"%s\" has another shape", name);
        GOLDEN_TRY(golden_make_lut(c, &map, 0, &v.lut, err));
        golden_check(c, name, "kept", fabs((double)(v.lut.dim[2] - sl_sla_keep(map.dim[3], ratio))),
                     0.0);
        GOLDEN_TRY(check_map(&s, &v, &map, err));
        GOLDEN_TRY(check_sla(&s, &v, err));
        snprintf(full, sizeof full, "out.%s.out_bf16_sagesla", v.stem);
        if (golden_has(c, full))
            GOLDEN_TRY(check_sage(&s, &v, err));
        sl_scratch_release(scratch, mark);
    }
done:
    sl_scratch_release(scratch, before);
    return status;
}

sl_status golden_run_sla(golden_case *c, sl_error *err)
{
    sl_status status;

    golden_use(c, SL_PRECISION_F32);
    status = run_sla(c, err);
    golden_use(c, SL_PRECISION_BF16);
    if (status == SL_OK && !golden_is_exact(c))
        status = run_sla(c, err);
    c->variant = NULL;
    return status;
}

/* ---- a transformer with SLA ---- */

/* What a run shows: the beginning of block 0's output, and which blocks it would
 * have kept. */
typedef struct {
    golden_case *c;
    double *block0;
    int64_t block0_count;
    const golden_array *maps; /* [layers, N, Q, K] */
    int64_t kept, differing;  /* of all layers */
} sla_watch;

static void count_differing(sla_watch *w, const sl_tensor *lut, int64_t layer)
{
    const int64_t K = w->maps->dim[3], keep = lut->dim[2], rows = lut->dim[0] * lut->dim[1];
    const int32_t *blocks = golden_bytes_of(w->c, lut, NULL);

    for (int64_t i = 0; blocks && i < rows * keep; i++) {
        const int64_t at = (layer * rows + i / keep) * K + blocks[i];
        w->kept++;
        w->differing += !(at < w->maps->count && w->maps->v[at] != 0.0);
    }
}

static void watch_sla(void *arg, const char *name, const sl_tensor *tensor)
{
    sla_watch *w = arg;
    int layer;

    if (strcmp(name, "block0") == 0 && sl_tensor_count(tensor) >= w->block0_count) {
        const double *v = golden_f64_of(w->c, tensor, NULL);
        if (v)
            memcpy(w->block0, v, (size_t)w->block0_count * sizeof *v);
    }
    if (sscanf(name, "lut%d", &layer) == 1)
        count_differing(w, tensor, layer);
}

static sl_status run_dit_sla(golden_case *c, golden_dit *d, const char *stem,
                             sl_dit_attention_options *options, const char *rel_l2_key,
                             sl_error *err)
{
    const size_t mark = sl_scratch_mark(&c->env->scratch);
    sla_watch watch = { .c = c };
    const sl_tap tap = { .fn = watch_sla, .arg = &watch };
    sl_tensor luts[SL_MAX_LAYERS];
    golden_array maps, block0;
    sl_status status = SL_OK;
    char name[96], velocity[96];

    snprintf(name, sizeof name, "mid.%s.maps", stem);
    GOLDEN_TRY(golden_get(c, name, &maps, err));
    for (int64_t i = 0; i < d->config.num_layers; i++)
        GOLDEN_TRY(golden_make_lut(c, &maps, i, &luts[i], err));
    snprintf(name, sizeof name, "mid.%s.block0", stem);
    GOLDEN_TRY(golden_get(c, name, &block0, err));
    watch.maps = &maps;
    watch.block0_count = block0.count;
    watch.block0 = golden_alloc(c, block0.count, sizeof *watch.block0, err);
    if (!watch.block0)
        return SL_ERR_NO_MEMORY;
    options->luts = luts;
    snprintf(velocity, sizeof velocity, "out.%s.velocity", stem);
    GOLDEN_TRY(golden_dit_run(d, c, options, &tap, velocity, rel_l2_key, NULL, err));
    golden_compare(c, name, watch.block0, block0.count, &block0, rel_l2_key, NULL);
    /* f32 scores of blocks may be closer than another order of sums is exact */
    snprintf(name, sizeof name, "mid.%s.maps", stem);
    if (options->mode == SL_ATTENTION_SLA && golden_is_exact(c))
        golden_check(c, name, "differing", (double)watch.differing / (double)watch.kept, 1e-3);
done:
    sl_scratch_release(&c->env->scratch, mark);
    return status;
}

/* Finds its block sizes and ratios by their names: mid.q<q>k<k>_t<ratio>.maps. */
static sl_status each_dit_sla(golden_case *c, sl_precision precision, const char *rel_l2_key,
                              sl_error *err)
{
    sl_status status = SL_OK;
    golden_dit d;

    GOLDEN_TRY(golden_dit_open(&d, c, precision, err));
    for (int64_t i = 0; i < sl_ckpt_count(c->io); i++) {
        const char *name = sl_ckpt_get(c->io, i)->name;
        sl_dit_attention_options options = { .mode = SL_ATTENTION_SLA };
        long long block_q, block_k;
        char stem[48];
        int used = 0;

        if (sscanf(name, "mid.q%lldk%lld_t%lf%n", &block_q, &block_k, &options.topk_ratio, &used) !=
                3 ||
            strcmp(name + used, ".maps") != 0)
            continue;
        options.block_q = block_q;
        options.block_k = block_k;
        snprintf(stem, sizeof stem, "%.*s", used - 4, name + 4);
        GOLDEN_TRY(run_dit_sla(c, &d, stem, &options, rel_l2_key, err));
        if (block_q != 64 || block_k != 128)
            continue;
        options.mode = SL_ATTENTION_SAGESLA; /* with the blocks that it has by itself */
        options.block_q = options.block_k = 0;
        GOLDEN_TRY(run_dit_sla(c, &d, stem, &options, "sagesla_rel_l2", err));
    }
done:
    golden_dit_close(&d, c);
    return status;
}

sl_status golden_run_dit_sla(golden_case *c, sl_error *err)
{
    sl_status status;

    golden_use(c, SL_PRECISION_F32);
    status = each_dit_sla(c, SL_PRECISION_F32, "f32_rel_l2", err);
    golden_use(c, SL_PRECISION_BF16);
    if (status == SL_OK)
        status = each_dit_sla(c, SL_PRECISION_BF16, "bf16_rel_l2", err);
    c->variant = NULL;
    return status;
}
