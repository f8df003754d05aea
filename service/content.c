#include "service/content.h"

#include "engine/ckpt/ckpt.h"

#include <openssl/evp.h>
#include <string.h>

enum { SAMPLE_BYTES = 1024 };

/* Without padding, so field by field. */
static void add_bytes(EVP_MD_CTX *hash, const void *bytes, size_t size_bytes)
{
    EVP_DigestUpdate(hash, bytes, size_bytes); /* fails for a broken context only */
}

static void add_number(EVP_MD_CTX *hash, int64_t number)
{
    add_bytes(hash, &number, sizeof number);
}

static void add_config(EVP_MD_CTX *hash, const sl_arch *arch, sl_component_kind kind)
{
    const sl_t5_config *t5 = &arch->t5;
    const sl_vae_config *vae = &arch->vae;

    add_number(hash, kind);
    if (kind == SL_COMPONENT_TEXT_ENCODER) {
        const int64_t numbers[] = {
            t5->vocab,     t5->dim,        t5->dim_attn,    t5->dim_ffn,
            t5->num_heads, t5->num_layers, t5->num_buckets, t5->max_distance
        };
        add_bytes(hash, numbers, sizeof numbers);
        add_bytes(hash, &t5->eps, sizeof t5->eps);
    } else if (kind == SL_COMPONENT_VAE) {
        add_number(hash, vae->dim);
        add_number(hash, vae->z_dim);
        add_number(hash, vae->num_res_blocks);
        add_bytes(hash, vae->dim_mult, sizeof vae->dim_mult);
        for (size_t i = 0; i < SL_COUNT(vae->temporal_down); i++)
            add_number(hash, vae->temporal_down[i]);
        add_bytes(hash, vae->mean, sizeof vae->mean);
        add_bytes(hash, vae->std, sizeof vae->std);
    } else {
        add_bytes(hash, arch->name, strlen(arch->name));
    }
}

static sl_status add_sample(EVP_MD_CTX *hash, const sl_ckpt *ckpt, const sl_ckpt_tensor *t,
                            size_t offset, sl_error *err)
{
    unsigned char sample[SAMPLE_BYTES];
    const size_t left_bytes = t->size_bytes - offset;
    const size_t size_bytes = left_bytes < sizeof sample ? left_bytes : sizeof sample;
    const sl_status status = sl_ckpt_read(ckpt, t, offset, sample, size_bytes, err);

    if (status == SL_OK)
        add_bytes(hash, sample, size_bytes);
    return status;
}

static sl_status add_tensor(EVP_MD_CTX *hash, const sl_ckpt *ckpt, const sl_ckpt_tensor *t,
                            sl_error *err)
{
    const size_t last = t->size_bytes > SAMPLE_BYTES ? t->size_bytes - SAMPLE_BYTES : 0;
    sl_status status = SL_OK;

    add_bytes(hash, t->name, strlen(t->name) + 1);
    add_number(hash, t->tensor.dtype);
    add_number(hash, t->tensor.rank);
    add_bytes(hash, t->tensor.dim, (size_t)t->tensor.rank * sizeof t->tensor.dim[0]);
    add_number(hash, (int64_t)t->size_bytes);
    if (t->size_bytes > 0)
        status = add_sample(hash, ckpt, t, 0, err);
    if (status == SL_OK && last > 0)
        status = add_sample(hash, ckpt, t, last / 2, err);
    if (status == SL_OK && last > 0)
        status = add_sample(hash, ckpt, t, last, err);
    return status;
}

sl_status sl_content_make_id(sl_content_id *out, const sl_model_info *info, sl_component_kind kind,
                             sl_error *err)
{
    sl_ckpt *ckpt = NULL;
    EVP_MD_CTX *hash = NULL;
    sl_status status = SL_OK;

    if (!info->files[kind])
        return sl_fail(err, SL_ERR_PRECONDITION, "model \"%s\" lacks the file of its %s",
                       info->name, sl_component_name(kind));
    status = sl_ckpt_open(&ckpt, info->files[kind], err);
    if (status != SL_OK)
        goto done;
    hash = EVP_MD_CTX_new();
    if (!hash || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for the id of a file");
        goto done;
    }
    add_config(hash, info->arch, kind);
    for (int64_t i = 0; i < sl_ckpt_count(ckpt) && status == SL_OK; i++)
        status = add_tensor(hash, ckpt, sl_ckpt_get(ckpt, i), err);
    if (status == SL_OK && EVP_DigestFinal_ex(hash, out->bytes, NULL) != 1)
        status = sl_fail(err, SL_ERR_INTERNAL, "could not make the id of a file");
done:
    EVP_MD_CTX_free(hash);
    sl_ckpt_close(ckpt);
    return status;
}
