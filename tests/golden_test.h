/* golden_test.h - what the cases of golden_test share.
 *
 * A case is NAME.json beside NAME.io.safetensors in one folder; its "kind" picks
 * the function that runs it.  Every comparison is written so that NaN fails.
 *
 * Ownership: the environment lives as long as the program, a case as long as
 * its run; what golden_get and golden_alloc give dies with the case.
 */
#ifndef SL_TESTS_GOLDEN_TEST_H
#define SL_TESTS_GOLDEN_TEST_H

#include "base/arena.h"
#include "engine/ckpt/ckpt.h"
#include "engine/model/component.h"
#include "engine/nets/dit.h"
#include "engine/nets/tap.h"
#include "kernels/exec.h"
#include "kernels/scratch.h"
#include "tests/golden_json.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *dir;
    const char *only; /* NULL: every case */
    bool full;
    bool streamed;    /* text encoders and transformers keep their blocks in host memory */
    const char *work; /* folder for the files of full-size networks */
    sl_device *device;
    sl_exec *exec;
    sl_region *region;
    sl_scratch scratch;
    int passed, failed, skipped;
} golden_env;

/* A tensor of the io file, as f64 whatever its dtype. */
typedef struct {
    sl_dtype dtype;
    int rank;
    int64_t dim[SL_MAX_RANK];
    int64_t count;
    double *v;
} golden_array;

typedef struct {
    golden_env *env;
    const char *name;
    const golden_json *json, *config, *tolerance;
    sl_ckpt *io; /* NULL when the case has no such file */
    sl_arena *arena;
    const char *variant; /* shown before checks: "bf16 storage"; NULL: none */
    char passes[2048], failures[2048];
    int check_count, failure_count;
    bool skip; /* set by golden_skip_case */
    char reason[512];
} golden_case;

typedef sl_status golden_run_fn(golden_case *c, sl_error *err);
golden_run_fn golden_run_dit, golden_run_dit_int8, golden_run_t5,
    golden_run_vae;                                    /* golden_test_nets.c */
golden_run_fn golden_run_sampler;                      /* golden_test_sampler.c */
golden_run_fn golden_run_e2e_t2v, golden_run_e2e_i2v;  /* golden_test_e2e.c */
golden_run_fn golden_run_tokenizer, golden_run_loader; /* golden_test_files.c */
golden_run_fn golden_run_int8_linear, golden_run_sla, golden_run_dit_sla; /* golden_test_accel.c */
golden_run_fn golden_run_full_vae, golden_run_full_t5, golden_run_full_dit; /* golden_test_full.c */

/* ---- what a case reads ---- */

void *golden_alloc(golden_case *c, int64_t count, size_t element_bytes, sl_error *err);
bool golden_has(const golden_case *c, const char *name);
sl_status golden_get(golden_case *c, const char *name, golden_array *out,
                     sl_error *err) SL_MUST_CHECK;
/* The same as f32 in host memory. */
sl_status golden_get_f32(golden_case *c, const char *name, golden_array *out, float **values,
                         sl_error *err) SL_MUST_CHECK;
/* A number of an object; `fallback` where it is absent. */
double golden_number(const golden_json *object, const char *key, double fallback);
/* A tolerance that the case suggests; -1 (which nothing meets) where it does not. */
double golden_tolerance(const golden_case *c, const char *key);
/* <dir>/<first word of text>. */
char *golden_path(golden_case *c, const char *text, sl_error *err);

/* ---- what a case says ---- */

/* measured <= limit, or the case fails. */
void golden_check(golden_case *c, const char *what, const char *metric, double measured,
                  double limit);
/* Relative L2 against a tolerance of that key, and the largest difference where
 * max_abs_key is given and known to the case. */
void golden_compare(golden_case *c, const char *what, const double *got, int64_t got_count,
                    const golden_array *want, const char *rel_l2_key, const char *max_abs_key);
/* The noise in decibels of the full range of pixels, 2: at most minus the PSNR that
 * the case has under that key. */
void golden_compare_noise(golden_case *c, const char *what, const double *got, int64_t got_count,
                          const golden_array *want, const char *psnr_key);
/* Fails the case, with a reason of its own. */
void golden_note_failure(golden_case *c, const char *fmt, ...) SL_PRINTF(2, 3);
/* One line of its own, counted as skipped. */
void golden_skip(golden_case *c, const char *part, const char *why);
/* The whole case is skipped. */
void golden_skip_case(golden_case *c, const char *fmt, ...) SL_PRINTF(2, 3);

double golden_rel_l2(const double *got, const double *want, int64_t count);
double golden_max_abs(const double *got, const double *want, int64_t count);

/* ---- between host and device ---- */

/* A tensor's bytes, read into host memory; NULL after a failure. */
void *golden_bytes_of(golden_case *c, const sl_tensor *t, sl_error *err);
/* Its values: F32, BF16 or F64. */
double *golden_f64_of(golden_case *c, const sl_tensor *t, sl_error *err);
/* A tensor in scratch with these values, as F32 or rounded to BF16. */
sl_status golden_put(golden_case *c, sl_tensor *out, sl_dtype dtype, int rank, const int64_t *dim,
                     const float *values, sl_error *err) SL_MUST_CHECK;
/* Bytes of host memory into a tensor that is there. */
sl_status golden_write(golden_case *c, const sl_tensor *t, const void *bytes,
                       sl_error *err) SL_MUST_CHECK;
/* NaN in every value: what is not written shows. */
sl_status golden_poison(golden_case *c, const sl_tensor *t, sl_error *err) SL_MUST_CHECK;

/* ---- how a case is computed ---- */

/* A variant is a precision with the numerics that go with it on the device.  On cpu
 * activations are f32 in all of them; a GPU computes exactly for F32, in bf16 for
 * the others.  Says so before the checks to come. */
void golden_use(golden_case *c, sl_precision precision);
bool golden_is_exact(const golden_case *c);   /* activations are F32 */
sl_dtype golden_act(const golden_case *c);    /* of transformers and text encoders */
sl_dtype golden_frames(const golden_case *c); /* of the video VAE */

/* ---- components ---- */

sl_dit_config golden_dit_config(const golden_json *config);
sl_t5_config golden_t5_config(const golden_json *config);
sl_vae_config golden_vae_config(const golden_json *config);
sl_status golden_load(golden_case *c, const char *file, sl_component_kind kind,
                      sl_precision precision, const void *config, sl_component **out,
                      sl_error *err) SL_MUST_CHECK;
/* True when the file's linear weights are bf16 already, so that keeping them as
 * bf16 changes nothing. */
bool golden_stored_bf16(golden_case *c, const char *file);

sl_status golden_make_spec(sl_component_spec *spec, sl_component_kind kind, sl_precision precision,
                           const void *config, sl_error *err) SL_MUST_CHECK;

/* ---- one network, run and compared with "out.*" (golden_test_nets.c) ---- */

sl_status golden_forward(golden_case *c, const sl_dit_weights *weights, const sl_dit_config *config,
                         const sl_dit_attention_options *attention, const sl_tensor *latent,
                         const sl_tensor *text, double t, const sl_tap *tap, const char *want_name,
                         const char *rel_l2_key, const char *max_abs_key,
                         sl_error *err) SL_MUST_CHECK;

/* A small case's transformer and inputs, from its files. */
typedef struct {
    sl_dit_config config;
    sl_component *component;
    sl_tensor latent, text;
    double t;
    size_t mark; /* of the scratch before */
} golden_dit;

/* close also after a failure. */
sl_status golden_dit_open(golden_dit *out, golden_case *c, sl_precision precision,
                          sl_error *err) SL_MUST_CHECK;
void golden_dit_close(golden_dit *d, golden_case *c);
sl_status golden_dit_run(golden_dit *d, golden_case *c, const sl_dit_attention_options *attention,
                         const sl_tap *tap, const char *want_name, const char *rel_l2_key,
                         const char *max_abs_key, sl_error *err) SL_MUST_CHECK;

/* The kept blocks of layer i of a stored map [layers, N, Q, K], in scratch: a lut
 * of kernels/sla.h, the same number in each row. */
sl_status golden_make_lut(golden_case *c, const golden_array *map, int64_t layer, sl_tensor *out,
                          sl_error *err) SL_MUST_CHECK;

sl_status golden_encode_text(golden_case *c, const sl_t5_weights *weights,
                             const sl_t5_config *config, const sl_tap *tap, const char *rel_l2_key,
                             const char *max_abs_key, sl_error *err) SL_MUST_CHECK;
sl_status golden_decode(golden_case *c, const sl_vae_weights *weights, const sl_vae_config *config,
                        const sl_tensor *latent, const char *out, const sl_tap *tap,
                        const char *rel_l2_key, const char *max_abs_key,
                        sl_error *err) SL_MUST_CHECK;
sl_status golden_encode(golden_case *c, const sl_vae_weights *weights, const sl_vae_config *config,
                        const sl_tensor *video, const char *out, const sl_tap *tap,
                        const char *rel_l2_key, const char *max_abs_key,
                        sl_error *err) SL_MUST_CHECK;

#define GOLDEN_TRY(expr)                                                                           \
    do {                                                                                           \
        status = (expr);                                                                           \
        if (status != SL_OK)                                                                       \
            goto done;                                                                             \
    } while (0)

#endif
