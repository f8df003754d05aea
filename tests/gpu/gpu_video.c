/* gpu_video - a whole video on a card: text, image, denoising, decoding, y4m.
 *
 *     gpu_video MODEL [--device cuda:0[:24GiB]|cpu:8GiB] [--size WxH] [--frames N] [--steps N]
 *               [--precision P] [--attention A] [--streamed] [--once] [--work DIR]
 *
 * Weights are made up on the device (random_weights.h; on cpu in precision f32 alone,
 * which is how this program itself is tested); with --streamed the text
 * encoder and the transformers are then taken to host memory, and their blocks come
 * from there.  Activations have exactly the memory that the plan says.  Runs twice.
 * One line a check, as gpu_test's: every phase took what was planned, both runs gave
 * the same bytes, and nothing of the card is missing that was there before.
 */
#include "base/clock.h"
#include "base/size.h"
#include "engine/media/media.h"
#include "engine/pipeline/random_weights.h"
#include "engine/pipeline/t2v.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAKING_BYTES  (2 * SL_GIB)           /* scratch while weights are made */
#define ADDRESS_BYTES ((size_t)128 * SL_GIB) /* of activations */
#define HASH_BASIS    0xcbf29ce484222325u    /* FNV-1a */
#define HASH_PRIME    0x100000001b3u

typedef struct {
    const sl_arch *arch;
    sl_t2v_request request;
    const char *device_text, *work;
    bool streamed, once;

    sl_device *device;
    sl_device *maker; /* the same card without a limit: where streamed weights are made */
    sl_exec *exec;
    sl_region *region;
    sl_scratch scratch;
    sl_t2v_plan plan;
    sl_component *parts[SL_COMPONENT_COUNT];
    void *images[SL_COMPONENT_COUNT]; /* of streamed ones */
    int passed, failed;
} video;

/* One run under way. */
typedef struct {
    const video *v;
    sl_media_writer *writer;
    uint64_t hash; /* of all frames */
    int frames;
    sl_phase phase;
    int64_t since_ns;
    double phase_s[SL_PHASE_COUNT];
} take;

#define TRY(expr)                                                                                  \
    do {                                                                                           \
        status = (expr);                                                                           \
        if (status != SL_OK)                                                                       \
            goto done;                                                                             \
    } while (0)

static void check(video *v, bool ok, const char *text)
{
    printf("%s video %s: %s\n", ok ? "ok  " : "FAIL", v->arch->name, text);
    fflush(stdout);
    v->passed += ok;
    v->failed += !ok;
}

/* ---- weights ---- */

/* The image of a resident component is its region's bytes; its first tensor is their
 * beginning. */
static const void *first_byte(const sl_component *c)
{
    return sl_component_get_spec(c)->kind == SL_COMPONENT_TEXT_ENCODER
               ? sl_component_t5(c)->token.data
               : sl_component_dit(c)->patch.w.data;
}

/* Takes *part to host memory and gives it back as a streamed one. */
static sl_status stream_part(video *v, sl_component **part, void **image, sl_error *err)
{
    sl_component_spec spec = *sl_component_get_spec(*part);
    const size_t image_bytes = sl_component_image_bytes(&spec);
    sl_copy *copy = NULL;
    sl_status status = SL_OK;

    *image = mmap(NULL, image_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*image == MAP_FAILED) {
        *image = NULL;
        return sl_fail_errno(err, "could not map %zu bytes for an image", image_bytes);
    }
    TRY(sl_host_offer(v->device, *image, image_bytes, err));
    TRY(sl_exec_open_copy(&copy, v->exec, err));
    TRY(sl_copy_pull(copy, *image, first_byte(*part), image_bytes, err));
    TRY(sl_copy_wait(copy, err));
    sl_component_destroy(*part);
    *part = NULL;
    spec.mode = SL_MODE_STREAMED;
    TRY(sl_component_load_image(part, &spec, v->device, v->exec, *image, image_bytes, err));
done:
    sl_copy_close(copy);
    return status;
}

static sl_status make_weights(video *v, sl_error *err)
{
    sl_status status = SL_OK;

    TRY(sl_region_map(v->region, MAKING_BYTES, err));
    sl_scratch_init(&v->scratch, sl_region_data(v->region), MAKING_BYTES);
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++) {
        if (v->plan.weight_bytes[kind] == 0)
            continue;
        const sl_component_spec spec =
            sl_component_spec_of(v->arch, (sl_component_kind)kind, v->request.precision);
        const bool streamed = v->request.streamed & SL_COMPONENT_BIT(kind);
        sl_exec_lend_scratch(v->exec, &v->scratch);
        TRY(sl_random_component(&v->parts[kind], &spec, streamed ? v->maker : v->device, v->exec,
                                &v->scratch, err));
        if (streamed)
            TRY(stream_part(v, &v->parts[kind], &v->images[kind], err));
    }
    sl_exec_lend_scratch(v->exec, NULL);
    TRY(sl_region_map(v->region, v->plan.activation_bytes, err));
done:
    return status;
}

/* ---- a run ---- */

static void end_phase(take *t)
{
    const int64_t now = sl_clock_now_ns();

    t->phase_s[t->phase] += (double)(now - t->since_ns) / (double)SL_NS_PER_S;
    t->since_ns = now;
}

static sl_status on_phase(void *arg, sl_phase phase, sl_error *err)
{
    take *t = arg;

    (void)err;
    end_phase(t);
    t->phase = phase;
    return SL_OK;
}

static sl_status on_frames(void *arg, const uint8_t *rgb, int first, int count, sl_error *err)
{
    take *t = arg;
    const size_t frame_bytes = (size_t)t->v->request.width * (size_t)t->v->request.height * 3;
    sl_status status = SL_OK;

    (void)first;
    for (size_t i = 0; i < (size_t)count * frame_bytes; i++)
        t->hash = (t->hash ^ rgb[i]) * HASH_PRIME;
    for (int i = 0; i < count && status == SL_OK; i++)
        status = sl_media_write_frame(t->writer, rgb + (size_t)i * frame_bytes, err);
    t->frames += count;
    return status;
}

static void tell_times(video *v, const take *t, double total_s)
{
    char text[512] = "";
    size_t used = 0;

    for (int phase = 0; phase < SL_PHASE_COUNT; phase++)
        if (v->plan.phase_components[phase])
            used += (size_t)snprintf(text + used, sizeof text - used, "%s %.3f s, ",
                                     sl_phase_name((sl_phase)phase), t->phase_s[phase]);
    snprintf(text + used, sizeof text - used, "all %.3f s, %d frames, hash %016llx", total_s,
             t->frames, (unsigned long long)t->hash);
    check(v, t->frames == v->request.frames, text);
}

static void check_bytes(video *v, const sl_t2v_result *result)
{
    char text[256], planned[32], measured[32];

    for (int phase = 0; phase < SL_PHASE_COUNT; phase++) {
        if (!v->plan.phase_components[phase])
            continue;
        snprintf(text, sizeof text, "%s planned %s, took %s", sl_phase_name((sl_phase)phase),
                 sl_size_format(v->plan.phase_activation_bytes[phase], planned, sizeof planned),
                 sl_size_format(result->phase_activation_bytes[phase], measured, sizeof measured));
        check(v, v->plan.phase_activation_bytes[phase] == result->phase_activation_bytes[phase],
              text);
    }
}

static sl_status run_once(video *v, const int32_t *ids, const char *path, uint64_t *hash,
                          sl_error *err)
{
    const sl_t2v_components components = { .text_encoder = v->parts[SL_COMPONENT_TEXT_ENCODER],
                                           .dit = v->parts[SL_COMPONENT_DIT],
                                           .dit_high = v->parts[SL_COMPONENT_DIT_HIGH],
                                           .dit_low = v->parts[SL_COMPONENT_DIT_LOW],
                                           .vae = v->parts[SL_COMPONENT_VAE] };
    take t = { .v = v, .hash = HASH_BASIS };
    const sl_t2v_events events = { .arg = &t, .on_phase = on_phase, .on_frames = on_frames };
    sl_t2v_result result;
    sl_status status = SL_OK;
    int64_t begin_ns;

    TRY(sl_media_open(&t.writer, path, SL_MEDIA_Y4M, v->request.width, v->request.height, 16, 1,
                      err));
    sl_scratch_init(&v->scratch, sl_region_data(v->region), v->plan.activation_bytes);
    begin_ns = t.since_ns = sl_clock_now_ns();
    TRY(sl_t2v_run(v->exec, &v->scratch, &components, v->arch, &v->request, ids, NULL, &events,
                   &result, err));
    end_phase(&t);
    TRY(sl_media_finish(t.writer, err));
    tell_times(v, &t, (double)(sl_clock_now_ns() - begin_ns) / (double)SL_NS_PER_S);
    check_bytes(v, &result);
    *hash = t.hash;
done:
    sl_media_close(t.writer);
    return status;
}

static sl_status run(video *v, sl_error *err)
{
    const size_t pixels = (size_t)v->request.width * (size_t)v->request.height;
    const int64_t tokens = v->request.token_count;
    size_t free_before = 0, free_after = 0, total = 0;
    uint64_t first = 0, second = 0;
    int32_t *ids = calloc((size_t)tokens, sizeof *ids);
    uint8_t *image = malloc(pixels * 3);
    sl_status status = SL_OK;
    char path[4096], text[128];

    snprintf(path, sizeof path, "%s/gpu_video-%ld.y4m", v->work, (long)getpid());
    if (!ids || !image) {
        status = sl_fail(err, SL_ERR_NO_MEMORY, "out of memory for a request");
        goto done;
    }
    for (int64_t i = 0; i < tokens; i++)
        ids[i] = (int32_t)((1000 + 37 * i) % v->arch->t5.vocab);
    for (size_t i = 0; i < pixels * 3; i++)
        image[i] = (uint8_t)(i / 3 % (size_t)v->request.width);
    if (v->arch->task == SL_TASK_I2V)
        v->request.image = image;
    TRY(run_once(v, ids, path, &first, err));
    if (v->once)
        goto done;
    TRY(sl_device_get_memory(v->device, &free_before, &total, err));
    TRY(run_once(v, ids, path, &second, err));
    TRY(sl_device_get_memory(v->device, &free_after, &total, err));
    check(v, first == second, "two runs give the same bytes");
    snprintf(text, sizeof text, "%lld bytes of the card went during the second run",
             (long long)free_before - (long long)free_after);
    if (sl_exec_numerics(v->exec)->kind == SL_DEVICE_CUDA)
        check(v, free_after >= free_before, text);
done:
    unlink(path);
    free(image);
    free(ids);
    return status;
}

/* ---- program ---- */

static sl_status open_video(video *v, sl_error *err)
{
    sl_device_spec spec;
    sl_status status = SL_OK;

    TRY(sl_device_spec_parse(v->device_text, &spec, err));
    v->request.vae_precision = sl_t2v_vae_precision_default(spec.kind, v->request.precision);
    TRY(sl_t2v_plan_make(&v->plan, &v->request, v->arch, spec.kind, err));
    TRY(sl_device_create(&v->device, &spec, err));
    if (spec.kind == SL_DEVICE_CUDA)
        spec.limit_bytes = 0;
    TRY(sl_device_create(&v->maker, &spec, err));
    const sl_numerics numerics = sl_t2v_numerics(&v->request, spec.kind);
    if (spec.kind == SL_DEVICE_CUDA)
        TRY(sl_exec_create_cuda(&v->exec, v->device, &numerics, NULL, err));
    else
        TRY(sl_exec_create_cpu(&v->exec, v->device, 2, NULL, err));
    TRY(sl_region_create(&v->region, v->device, "activations", ADDRESS_BYTES, err));
done:
    return status;
}

static void close_video(video *v)
{
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        sl_component_destroy(v->parts[kind]);
    for (int kind = 0; kind < SL_COMPONENT_COUNT; kind++)
        if (v->images[kind]) {
            sl_component_spec spec =
                sl_component_spec_of(v->arch, (sl_component_kind)kind, v->request.precision);
            sl_host_withdraw(v->device, v->images[kind]);
            munmap(v->images[kind], sl_component_image_bytes(&spec));
        }
    sl_exec_destroy(v->exec);
    sl_region_destroy(v->region);
    sl_device_destroy(v->maker);
    sl_device_destroy(v->device);
}

static bool parse_option(video *v, const char *name, const char *value)
{
    sl_t2v_request *r = &v->request;

    if (strcmp(name, "--device") == 0)
        v->device_text = value;
    else if (strcmp(name, "--work") == 0)
        v->work = value;
    else if (strcmp(name, "--frames") == 0)
        r->frames = atoi(value);
    else if (strcmp(name, "--steps") == 0)
        r->steps = atoi(value);
    else if (strcmp(name, "--size") == 0)
        return sscanf(value, "%dx%d", &r->width, &r->height) == 2;
    else if (strcmp(name, "--precision") == 0)
        return sl_precision_parse(value, &r->precision);
    else if (strcmp(name, "--attention") == 0)
        return sl_attention_parse(value, &r->attention);
    else
        return false;
    return true;
}

static bool parse_line(video *v, int argc, char **argv)
{
    v->arch = argc > 1 ? sl_arch_find(argv[1]) : NULL;
    if (!v->arch)
        return false;
    v->request = sl_t2v_request_default(v->arch);
    v->request.token_count = v->arch->dit.text_len < 100 ? v->arch->dit.text_len : 100;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--streamed") == 0)
            v->streamed = true;
        else if (strcmp(argv[i], "--once") == 0)
            v->once = true;
        else if (i + 1 >= argc || !parse_option(v, argv[i], argv[i + 1]))
            return false;
        else
            i++;
    }
    for (int kind = 0; kind < SL_COMPONENT_COUNT && v->streamed; kind++)
        if (sl_arch_has_component(v->arch, (sl_component_kind)kind) &&
            sl_component_can_stream((sl_component_kind)kind))
            v->request.streamed |= SL_COMPONENT_BIT(kind);
    return true;
}

int main(int argc, char **argv)
{
    video v = { .device_text = "cuda:0", .work = "." };
    sl_error err = { .status = SL_OK };
    sl_status status;

    if (!parse_line(&v, argc, argv)) {
        fprintf(stderr, "usage: gpu_video MODEL [--device D] [--size WxH] [--frames N] [--steps N] "
                        "[--precision P] [--attention A] [--streamed] [--once] [--work DIR]\n");
        return 2;
    }
    status = open_video(&v, &err);
    if (status == SL_OK)
        status = make_weights(&v, &err);
    if (status == SL_OK)
        status = run(&v, &err);
    if (status != SL_OK)
        check(&v, false, err.message);
    close_video(&v);
    printf("%d passed, %d failed\n", v.passed, v.failed);
    return v.failed > 0;
}
