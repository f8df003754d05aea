/* umt5.c - see umt5.h.  Numbers: the residual stream and the position bias are
 * f32, all else of the exec's activation dtype.  Source: wan.md 3.3. */
#include "engine/nets/umt5.h"

#include "engine/model/stream.h"
#include "engine/nets/net.h"
#include "kernels/ops.h"

#include <stdlib.h>
#include <string.h>

/* What the position table of the op, and of every published file, is made for. */
enum { NUM_BUCKETS = 32, MAX_DISTANCE = 128 };

/* What one encoding works with. */
typedef struct {
    sl_exec *exec;
    const sl_ops *ops;
    sl_scratch *scratch;
    const sl_t5_config *config;
    sl_dtype act; /* of activations */
    int64_t S;    /* real tokens */
    sl_tensor x;  /* [S, dim] residual stream */
    sl_tensor h;  /* [S, dim] */
} encoder;

/* No 1/sqrt(d): the scale is 1.  Each layer has a bias table of its own. */
static sl_status self_attention(encoder *e, const sl_t5_block *w, sl_error *err)
{
    const size_t mark = sl_scratch_mark(e->scratch);
    const sl_ops *ops = e->ops;
    const int64_t S = e->S, heads = e->config->num_heads, width = e->config->dim_attn;
    sl_status status = SL_OK;
    sl_tensor q, k, v, bias;

    SL_TRY(sl_scratch_tensor(e->scratch, &q, err, e->act, 2, S, width));
    SL_TRY(sl_scratch_tensor(e->scratch, &k, err, e->act, 2, S, width));
    SL_TRY(sl_scratch_tensor(e->scratch, &v, err, e->act, 2, S, width));
    SL_TRY(sl_scratch_tensor(e->scratch, &bias, err, SL_F32, 2, heads, 2 * S - 1));
    SL_TRY(ops->rms_norm(e->exec, &e->h, &e->x, &w->norm1, e->config->eps, err));
    SL_TRY(ops->linear(e->exec, &q, &e->h, &w->q, NULL, SL_ACT_NONE, err));
    SL_TRY(ops->linear(e->exec, &k, &e->h, &w->k, NULL, SL_ACT_NONE, err));
    SL_TRY(ops->linear(e->exec, &v, &e->h, &w->v, NULL, SL_ACT_NONE, err));
    SL_TRY(ops->rel_bias(e->exec, &bias, &w->pos, S, S, err));
    SL_TRY(ops->attention(e->exec, &q, &q, &k, &v, &bias, heads, 1.0f, err));
    SL_TRY(ops->linear(e->exec, &e->h, &q, &w->o, NULL, SL_ACT_NONE, err));
    SL_TRY(ops->add(e->exec, &e->x, &e->x, &e->h, err));
done:
    sl_scratch_release(e->scratch, mark);
    return status;
}

static sl_status feed_forward(encoder *e, const sl_t5_block *w, sl_error *err)
{
    const size_t mark = sl_scratch_mark(e->scratch);
    const sl_ops *ops = e->ops;
    const int64_t S = e->S, width = e->config->dim_ffn;
    sl_status status = SL_OK;
    sl_tensor gate, up;

    SL_TRY(sl_scratch_tensor(e->scratch, &gate, err, e->act, 2, S, width));
    SL_TRY(sl_scratch_tensor(e->scratch, &up, err, e->act, 2, S, width));
    SL_TRY(ops->rms_norm(e->exec, &e->h, &e->x, &w->norm2, e->config->eps, err));
    SL_TRY(ops->linear(e->exec, &gate, &e->h, &w->gate, NULL, SL_ACT_GELU_TANH, err));
    SL_TRY(ops->linear(e->exec, &up, &e->h, &w->fc1, NULL, SL_ACT_NONE, err));
    SL_TRY(ops->mul(e->exec, &up, &up, &gate, err));
    SL_TRY(ops->linear(e->exec, &e->h, &up, &w->fc2, NULL, SL_ACT_NONE, err));
    SL_TRY(ops->add(e->exec, &e->x, &e->x, &e->h, err));
done:
    sl_scratch_release(e->scratch, mark);
    return status;
}

static sl_status check_ids(const encoder *e, const sl_tensor *table, const int32_t *ids,
                           sl_error *err)
{
    for (int64_t i = 0; i < e->S && !sl_exec_is_counting(e->exec); i++)
        if (ids[i] < 0 || ids[i] >= table->dim[0])
            return sl_fail(err, SL_ERR_INVALID,
                           "text encoder: id %d at position %lld: expected 0 to %lld", (int)ids[i],
                           (long long)i, (long long)table->dim[0] - 1);
    return SL_OK;
}

/* For a table in host memory: brings the rows that the ids name to the device,
 * where id i becomes row i. */
static sl_status gather_rows(encoder *e, const sl_tensor *table, const int32_t *ids,
                             const sl_tensor *rows, const sl_tensor *d_ids, sl_error *err)
{
    const size_t row_bytes = (size_t)table->dim[1] * sl_dtype_bytes(table->dtype);
    unsigned char *host = NULL;
    int32_t *order = NULL;
    sl_status status = SL_OK;

    if (sl_exec_is_counting(e->exec))
        return SL_OK;
    host = malloc((size_t)e->S * row_bytes);
    order = malloc((size_t)e->S * sizeof *order);
    if (!host || !order) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the embeddings of %lld tokens",
                         (long long)e->S);
        goto done;
    }
    for (int64_t i = 0; i < e->S; i++) {
        memcpy(host + (size_t)i * row_bytes,
               (const unsigned char *)table->data + (size_t)ids[i] * row_bytes, row_bytes);
        order[i] = (int32_t)i;
    }
    SL_TRY(sl_exec_write(e->exec, rows->data, host, (size_t)e->S * row_bytes, err));
    SL_TRY(sl_exec_write(e->exec, d_ids->data, order, (size_t)e->S * sizeof *order, err));
done:
    free(order);
    free(host);
    return status;
}

static sl_status embed_ids(encoder *e, const sl_t5_weights *weights, const int32_t *ids,
                           sl_error *err)
{
    const size_t mark = sl_scratch_mark(e->scratch);
    sl_status status = SL_OK;
    sl_tensor table = weights->token, d_ids;

    SL_TRY(check_ids(e, &table, ids, err));
    SL_TRY(sl_scratch_tensor(e->scratch, &d_ids, err, SL_I32, 1, e->S));
    if (weights->token_on_host) {
        SL_TRY(sl_scratch_tensor(e->scratch, &table, err, table.dtype, 2, e->S, table.dim[1]));
        SL_TRY(gather_rows(e, &weights->token, ids, &table, &d_ids, err));
    } else {
        SL_TRY(sl_exec_write(e->exec, d_ids.data, ids, sl_tensor_bytes(&d_ids), err));
    }
    SL_TRY(e->ops->embed_rows(e->exec, &e->x, &table, &d_ids, err));
done:
    sl_scratch_release(e->scratch, mark);
    return status;
}

static sl_status check_request(const sl_t5_config *config, int64_t count, const sl_tensor *out,
                               sl_error *err)
{
    char text[96];

    if (out->rank != 2 || out->dim[1] != config->dim)
        return sl_fail(err, SL_ERR_INVALID, "text encoder: output %s: expected [text_len, %lld]",
                       sl_tensor_describe(out, text, sizeof text), (long long)config->dim);
    if (config->num_buckets != NUM_BUCKETS || config->max_distance != MAX_DISTANCE)
        return sl_fail(
            err, SL_ERR_UNIMPLEMENTED,
            "text encoder: %lld position buckets up to distance %lld: expected %d and %d",
            (long long)config->num_buckets, (long long)config->max_distance, (int)NUM_BUCKETS,
            (int)MAX_DISTANCE);
    if (count < 1 || count > out->dim[0])
        return sl_fail(err, SL_ERR_INVALID, "text encoder: %lld tokens: expected 1 to %lld",
                       (long long)count, (long long)out->dim[0]);
    return SL_OK;
}

sl_status sl_umt5_encode(sl_exec *exec, sl_scratch *scratch, const sl_t5_weights *weights,
                         const sl_t5_config *config, const int32_t *ids, int64_t count,
                         const sl_tensor *out, const sl_tap *tap, sl_error *err)
{
    const size_t mark = sl_scratch_mark(scratch);
    sl_block_pass pass = { .stream = NULL };
    sl_status status = SL_OK;
    encoder e = {
        .exec = exec,
        .ops = sl_exec_ops(exec),
        .scratch = scratch,
        .config = config,
        .act = sl_exec_numerics(exec)->activation,
        .S = count,
    };

    SL_TRY(check_request(config, count, out, err));
    SL_TRY(sl_scratch_tensor(scratch, &e.x, err, SL_F32, 2, count, config->dim));
    SL_TRY(sl_scratch_tensor(scratch, &e.h, err, e.act, 2, count, config->dim));
    SL_TRY(embed_ids(&e, weights, ids, err));
    SL_TRY(sl_block_pass_begin(&pass, weights->stream, exec, err));
    for (int64_t i = 0; i < config->num_layers; i++) {
        SL_TRY(sl_block_pass_get(&pass, i, err));
        SL_TRY(self_attention(&e, &weights->blocks[i], err));
        SL_TRY(feed_forward(&e, &weights->blocks[i], err));
        sl_tap_show_index(exec, tap, "block", i, &e.x);
    }
    const sl_tensor real = sl_tensor_rows(out, 0, count);
    const sl_tensor padding = sl_tensor_rows(out, count, out->dim[0] - count);
    SL_TRY(e.ops->rms_norm(exec, &real, &e.x, &weights->norm, config->eps, err));
    SL_TRY(e.ops->zero(exec, &padding, err));
done:
    sl_block_pass_end(&pass);
    sl_scratch_release(scratch, mark);
    return status;
}
