/* golden_test - runs every golden case of a folder and says how close it came.
 *
 *     golden_test [DIR] [--device cpu|cuda:N] [--full] [--work DIR] [--streamed] [--only NAME]
 *
 * DIR is laid out as described in golden/README.md; without it the shared
 * folder is used where there is one, else tests/golden.  One line a case; the
 * last line is `N passed, N failed, N skipped`; exit code 1 if any failed, 77 if DIR is
 * absent.  --full also runs the cases of full-size networks, on a GPU, and streamed on
 * cpu, from files that it writes into the folder of --work (28 GB, twice that when
 * streamed) and removes again;
 * --streamed takes the blocks of text encoders and transformers from host memory.
 *
 * On a GPU every case runs twice: in f32, within the tolerances of f32, and in bf16,
 * within those that the case states for it.
 */
#include "tests/golden_test.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICE_BYTES ((size_t)64 << 30)
#define SCRATCH_BYTES                                                                              \
    ((size_t)16 << 30) /* on cpu address space: pages come as they are touched                     \
                        */

enum { EXIT_ABSENT = 77, MAX_CASES = 512, MAX_JSON_BYTES = 64 << 20 };

static const struct {
    const char *kind;
    golden_run_fn *run;
    bool full; /* only with --full */
} kinds[] = {
    { "diffusion transformer forward", golden_run_dit, false },
    { "umT5 encoder", golden_run_t5, false },
    { "video VAE decode and encode", golden_run_vae, false },
    { "schedules and trajectories with a closed-form velocity", golden_run_sampler, false },
    { "text-to-video, end to end after the text encoder", golden_run_e2e_t2v, false },
    { "image-to-video with two experts", golden_run_e2e_i2v, false },
    { "sentencepiece unigram tokenizer", golden_run_tokenizer, false },
    { "checkpoint containers, good and hostile", golden_run_loader, false },
    { "128x128 block int8 quantisation and W8A8 linear", golden_run_int8_linear, false },
    { "diffusion transformer forward with int8 linears", golden_run_dit_int8, false },
    { "diffusion transformer forward with SLA self-attention", golden_run_dit_sla, false },
    { "stand-alone SLA / SageSLA attention", golden_run_sla, false },
    { "full-size VAE, synthetic weights", golden_run_full_vae, true },
    { "full-size umT5-xxl encoder, synthetic weights", golden_run_full_t5, true },
    { "full-size DiT, synthetic weights", golden_run_full_dit, true },
};

static char *read_text(const char *path, sl_error *err)
{
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    long size;

    if (!f) {
        sl_fail_errno(err, "could not open \"%s\"", path);
        return NULL;
    }
    if (fseek(f, 0, SEEK_END) == 0 && (size = ftell(f)) >= 0 && size <= MAX_JSON_BYTES &&
        fseek(f, 0, SEEK_SET) == 0 && (text = malloc((size_t)size + 1)) != NULL) {
        if (fread(text, 1, (size_t)size, f) == (size_t)size) {
            text[size] = '\0';
        } else {
            free(text);
            text = NULL;
        }
    }
    if (!text)
        sl_fail(err, SL_ERR_IO, "could not read \"%s\"", path);
    fclose(f);
    return text;
}

static sl_status run_kind(golden_case *c, sl_error *err)
{
    const golden_json *kind = golden_json_get(c->json, "kind");

    if (!golden_json_is(kind, GOLDEN_JSON_STRING))
        return sl_fail(err, SL_ERR_DATA, "the case has no \"kind\"");
    for (size_t i = 0; i < SL_COUNT(kinds); i++) {
        if (strcmp(kinds[i].kind, kind->text) != 0)
            continue;
        if (kinds[i].full && !c->env->full) {
            golden_skip_case(c, "a full-size network: run with --full");
            return SL_OK;
        }
        return kinds[i].run(c, err);
    }
    golden_skip_case(c, "unknown kind \"%s\"", kind->text);
    return SL_OK;
}

static void report(golden_case *c, sl_status status, const sl_error *err)
{
    golden_env *env = c->env;

    if (status == SL_OK && c->skip) {
        env->skipped++;
        printf("SKIP %s %s\n", c->name, c->reason);
    } else if (status != SL_OK) {
        env->failed++;
        printf("FAIL %s %s%s%s: %s\n", c->name, c->failures, c->failures[0] ? "; " : "",
               sl_status_text(status), err->message);
    } else if (c->failure_count > 0 || c->check_count == 0) {
        env->failed++;
        printf("FAIL %s %s\n", c->name, c->check_count ? c->failures : "nothing was compared");
    } else {
        env->passed++;
        printf("PASS %s %s\n", c->name, c->passes);
    }
    fflush(stdout);
}

/* `folder` holds the case's files; `name` is its file name without ".json". */
static void run_case(golden_env *env, const char *folder, const char *name)
{
    golden_env local = *env;
    golden_case c = { .env = &local, .name = name };
    char path[4096], io_path[4096];
    sl_error err = { .status = SL_OK };
    sl_status status = SL_OK;
    char *text = NULL;
    golden_json *json = NULL;

    local.dir = folder;
    snprintf(path, sizeof path, "%s/%s.json", folder, name);
    snprintf(io_path, sizeof io_path, "%s/%s.io.safetensors", folder, name);
    GOLDEN_TRY(sl_arena_create(&c.arena, 0, &err));
    text = read_text(path, &err);
    if (!text) {
        status = err.status;
        goto done;
    }
    status = golden_json_parse(&json, c.arena, text, strlen(text), &err);
    if (status != SL_OK) {
        sl_error_prefix(&err, "\"%s\"", path);
        goto done;
    }
    c.json = json;
    c.config = golden_json_get(json, "config");
    c.tolerance = golden_json_get(json, "suggested_tolerance");
    if (access(io_path, R_OK) == 0)
        GOLDEN_TRY(sl_ckpt_open(&c.io, io_path, &err));
    sl_scratch_init(&local.scratch, sl_region_data(env->region), SCRATCH_BYTES);
    sl_exec_lend_scratch(env->exec, &local.scratch);
    golden_use(&c, SL_PRECISION_F32);
    status = run_kind(&c, &err);
    sl_exec_lend_scratch(env->exec, NULL);
done:
    report(&c, status, &err);
    env->passed = local.passed;
    env->failed = local.failed;
    env->skipped = local.skipped;
    sl_ckpt_close(c.io);
    free(text);
    sl_arena_destroy(c.arena);
}

static int is_case(const struct dirent *entry)
{
    static const char *const others[] = { ".index.json", NULL };
    const char *end = strrchr(entry->d_name, '.');

    for (int i = 0; others[i]; i++)
        if (strstr(entry->d_name, others[i]))
            return 0;
    return end && end != entry->d_name && strcmp(end, ".json") == 0;
}

/* The cases of a folder, and of loader/ in it. */
static void run_folder(golden_env *env, const char *folder, int depth)
{
    struct dirent **entries = NULL;
    const int count = scandir(folder, &entries, is_case, alphasort);
    char sub[4096];
    struct stat st;

    for (int i = 0; i < count; i++) {
        char *name = entries[i]->d_name;

        name[strlen(name) - strlen(".json")] = '\0';
        if (!env->only || strcmp(env->only, name) == 0)
            run_case(env, folder, name);
        free(entries[i]);
    }
    free(entries);
    snprintf(sub, sizeof sub, "%s/loader", folder);
    if (depth == 0 && stat(sub, &st) == 0 && S_ISDIR(st.st_mode))
        run_folder(env, sub, depth + 1);
}

static sl_status open_env(golden_env *env, const char *device, sl_error *err)
{
    sl_device_spec spec = { .kind = SL_DEVICE_CPU, .limit_bytes = DEVICE_BYTES };
    const sl_numerics exact = sl_numerics_of(SL_DEVICE_CUDA, true);
    sl_status status = SL_OK;

    if (strcmp(device, "cpu") != 0)
        GOLDEN_TRY(sl_device_spec_parse(device, &spec, err));
    GOLDEN_TRY(sl_device_create(&env->device, &spec, err));
    if (spec.kind == SL_DEVICE_CPU)
        GOLDEN_TRY(sl_exec_create_cpu(&env->exec, env->device, 0, NULL, err));
    else
        GOLDEN_TRY(sl_exec_create_cuda(&env->exec, env->device, &exact, NULL, err));
    GOLDEN_TRY(sl_region_create(&env->region, env->device, "activations", SCRATCH_BYTES, err));
    GOLDEN_TRY(sl_region_map(env->region, SCRATCH_BYTES, err));
done:
    return status;
}

static void close_env(golden_env *env)
{
    sl_region_destroy(env->region);
    sl_exec_destroy(env->exec);
    sl_device_destroy(env->device);
}

/* The folder to use when none is given. */
static const char *default_dir(void)
{
    static char path[4096];
    const char *shared = getenv("SLUICE_SHARED");

    if (shared)
        snprintf(path, sizeof path, "%s/golden", shared);
    else
        snprintf(path, sizeof path, "%s/../shared/golden", SL_SOURCE_DIR);
    if (access(path, R_OK) != 0)
        snprintf(path, sizeof path, "%s/tests/golden", SL_SOURCE_DIR);
    return path;
}

int main(int argc, char **argv)
{
    golden_env env = { .dir = NULL };
    sl_error err = { .status = SL_OK };
    const char *device = "cpu";

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--full") == 0) {
            env.full = true;
        } else if (strcmp(argv[i], "--streamed") == 0) {
            env.streamed = true;
        } else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            env.only = argv[++i];
        } else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
            device = argv[++i];
        } else if (strcmp(argv[i], "--work") == 0 && i + 1 < argc) {
            env.work = argv[++i];
        } else if (argv[i][0] != '-' && !env.dir) {
            env.dir = argv[i];
        } else {
            fprintf(stderr, "usage: golden_test [DIR] [--device cpu|cuda:N] [--full] [--work DIR] "
                            "[--streamed] [--only NAME]\n");
            return 2;
        }
    }
    if (!env.dir)
        env.dir = default_dir();
    if (access(env.dir, R_OK) != 0) {
        fprintf(stderr, "golden_test: no folder \"%s\"\n", env.dir);
        return EXIT_ABSENT;
    }
    if (!env.work)
        env.work = ".";
    if (open_env(&env, device, &err) == SL_OK) {
        run_folder(&env, env.dir, 0);
    } else {
        env.failed++;
        printf("FAIL device %s\n", err.message);
    }
    if (env.passed + env.failed + env.skipped == 0) {
        env.failed++;
        printf("FAIL \"%s\" has no case%s%s\n", env.dir, env.only ? " named " : "",
               env.only ? env.only : "");
    }
    close_env(&env);
    printf("%d passed, %d failed, %d skipped\n", env.passed, env.failed, env.skipped);
    return env.failed > 0;
}
