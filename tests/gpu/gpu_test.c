/* gpu_test - every op of the cuda table against its cpu twin.
 *
 *     gpu_test [--small] [--inline] [--area NAME] [SUBSTRING]
 *
 * One line a check, `N passed, N failed` last; exit code 1 if any failed, 77 if
 * there is no device.  --small keeps shapes small enough for a sanitizer.
 *
 * Each area runs in a process of its own: a kernel that poisons its context, or
 * hangs, costs that check alone, and a new process goes on behind it.  --inline
 * runs them in this process, for tools that follow no other.
 */
#include "tests/gpu/gpu_test.h"

#include "base/clock.h"

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CUDA_BYTES   ((size_t)16 * SL_GIB)
#define CPU_BYTES    ((size_t)48 * SL_GIB) /* address space: pages come as they are touched */
#define POISON_BYTES ((size_t)16 * SL_MIB) /* of what an op may take as temporary memory */

enum {
    GUARD = 0xa5,
    POISON = 0xff, /* NaN in every float dtype */
    CHECK_SECONDS = 60,
    SMALL_CHECK_SECONDS = 400, /* a sanitizer slows kernels down a hundredfold */
    MOST_RESTARTS = 40,
    EXIT_ABSENT = 77,
};

/* Shared with the process that runs an area. */
struct gpu_score {
    int passed, failed, begun;
    bool finished, absent;
    char name[GPU_LINE_BYTES]; /* of the check that is open */
};

/* An area whose file is not part of the build is a NULL here. */
#pragma weak gpu_test_small
#pragma weak gpu_test_linear
#pragma weak gpu_test_sparse
#pragma weak gpu_test_conv
#pragma weak gpu_test_attention

static const struct {
    const char *name;
    gpu_area_fn *run;
} areas[] = {
    { "small", gpu_test_small }, { "linear", gpu_test_linear },       { "sparse", gpu_test_sparse },
    { "conv", gpu_test_conv },   { "attention", gpu_test_attention },
};

/* ---- one check ---- */

static char alarm_text[GPU_LINE_BYTES + 64];
static struct gpu_score *alarm_score;

static void on_alarm(int signal_number)
{
    (void)signal_number;
    alarm_score->failed++;
    (void)!write(STDOUT_FILENO, alarm_text, strlen(alarm_text));
    _exit(2);
}

static void watch(gpu *g)
{
    const int seconds = g->small ? SMALL_CHECK_SECONDS : CHECK_SECONDS;

    snprintf(alarm_text, sizeof alarm_text, "FAIL %s: still running after %d s\n", g->name,
             seconds);
    alarm_score = g->score;
    signal(SIGALRM, on_alarm);
    alarm((unsigned)seconds);
}

bool gpu_begin(gpu *g, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(g->name, sizeof g->name, fmt, args);
    va_end(args);
    g->begun++;
    if (g->begun <= g->skip || (g->only && !strstr(g->name, g->only)))
        return false;
    g->score->begun = g->begun;
    snprintf(g->score->name, sizeof g->score->name, "%s", g->name);
    g->said[0] = '\0';
    g->broken = false;
    g->made_count = 0;
    g->seed = (uint64_t)g->begun * 0x9e3779b97f4a7c15u + 1;
    for (int s = 0; s < GPU_SIDES; s++)
        g->mark[s] = sl_scratch_mark(&g->on[s].scratch);
    sl_error_clear(&g->err);
    watch(g);
    g->start_ns = sl_clock_now_ns();
    return true;
}

static void say_more(gpu *g, const char *fmt, va_list args)
{
    const size_t used = strlen(g->said);

    vsnprintf(g->said + used, sizeof g->said - used, fmt, args);
}

void gpu_say(gpu *g, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    say_more(g, fmt, args);
    va_end(args);
}

void gpu_fail(gpu *g, const char *fmt, ...)
{
    va_list args;

    if (g->broken)
        return;
    g->broken = true;
    gpu_say(g, "  ");
    va_start(args, fmt);
    say_more(g, fmt, args);
    va_end(args);
}

static bool device_ok(gpu *g, const char *what, sl_status status)
{
    if (status != SL_OK)
        gpu_fail(g, "%s: %s: %s", what, sl_status_text(status), g->err.message);
    return status == SL_OK;
}

static void check_guards(gpu *g, const sl_tensor *t, int side)
{
    unsigned char fence[2][GPU_GUARD_BYTES];
    unsigned char *data = t->data;
    sl_exec *exec = g->on[side].exec;
    sl_status status =
        sl_exec_read(exec, fence[0], data - GPU_GUARD_BYTES, sizeof fence[0], &g->err);

    if (status == SL_OK)
        status = sl_exec_read(exec, fence[1], data + sl_tensor_bytes(t), sizeof fence[1], &g->err);
    if (!device_ok(g, "guards", status))
        return;
    for (int f = 0; f < 2; f++)
        for (int i = 0; i < GPU_GUARD_BYTES; i++)
            if (fence[f][i] != GUARD) {
                gpu_fail(g, "%s: byte %d %s a tensor was overwritten", side ? "cuda" : "cpu",
                         f ? i : GPU_GUARD_BYTES - i, f ? "behind" : "before");
                return;
            }
}

void gpu_end(gpu *g)
{
    for (int i = 0; i < g->made_count && !g->broken; i++)
        for (int s = 0; s < GPU_SIDES && !g->broken; s++)
            check_guards(g, &g->made[i].on[s], s);
    alarm(0);
    for (int s = 0; s < GPU_SIDES; s++)
        sl_scratch_release(&g->on[s].scratch, g->mark[s]);
    printf("%s %s%s  %.2f s\n", g->broken ? "FAIL" : "ok  ", g->name, g->said,
           (double)(sl_clock_now_ns() - g->start_ns) / 1e9);
    fflush(stdout);
    if (g->broken)
        g->score->failed++;
    else
        g->score->passed++;
    if (g->err.status == SL_ERR_DEVICE)
        _exit(3); /* the context is of no more use; the parent starts a new one */
}

/* ---- tensors ---- */

static sl_status take_side(gpu *g, int side, sl_dtype dtype, int rank, const int64_t *dim,
                           sl_tensor *out)
{
    gpu_side *s = &g->on[side];
    sl_tensor t = sl_tensor_make(NULL, dtype, rank, dim);
    const size_t size_bytes = sl_tensor_bytes(&t);
    void *at;
    sl_status status =
        sl_scratch_alloc(&s->scratch, &at, size_bytes + 2 * GPU_GUARD_BYTES, &g->err);

    if (status != SL_OK)
        return status;
    t.data = (unsigned char *)at + GPU_GUARD_BYTES;
    *out = t;
    return SL_OK;
}

/* A host buffer that lives until gpu_end. */
static void *host_bytes(gpu *g, size_t size_bytes)
{
    void *at = NULL;

    if (!device_ok(g, "host memory",
                   sl_scratch_alloc(&g->on[GPU_CPU].scratch, &at, size_bytes, &g->err)))
        return NULL;
    return at;
}

/* Guards and poison, written on the host and copied whole. */
static void fence(gpu *g, int side, const sl_tensor *t)
{
    const size_t size_bytes = sl_tensor_bytes(t), all = size_bytes + 2 * GPU_GUARD_BYTES;
    const size_t mark = sl_scratch_mark(&g->on[GPU_CPU].scratch);
    unsigned char *at = (unsigned char *)t->data - GPU_GUARD_BYTES;
    unsigned char *image = side == GPU_CPU ? at : host_bytes(g, all);

    if (!image)
        return;
    memset(image, GUARD, GPU_GUARD_BYTES);
    memset(image + GPU_GUARD_BYTES, POISON, size_bytes);
    memset(image + GPU_GUARD_BYTES + size_bytes, GUARD, GPU_GUARD_BYTES);
    if (image == at)
        return;
    device_ok(g, "poison", sl_exec_write(g->on[side].exec, at, image, all, &g->err));
    sl_scratch_release(&g->on[GPU_CPU].scratch, mark);
}

gpu_tensor gpu_output(gpu *g, sl_dtype dtype, int rank, const int64_t *dim)
{
    gpu_tensor t = { 0 };

    for (int s = 0; s < GPU_SIDES; s++) {
        t.on[s] =
            sl_tensor_make(NULL, s == GPU_CPU && dtype == SL_BF16 ? SL_F32 : dtype, rank, dim);
        if (!g->broken && g->made_count == GPU_MAX_TENSORS)
            gpu_fail(g, "more than %d tensors in a check", (int)GPU_MAX_TENSORS);
        if (!g->broken)
            device_ok(g, "tensor", take_side(g, s, t.on[s].dtype, rank, dim, &t.on[s]));
        if (!g->broken)
            fence(g, s, &t.on[s]);
    }
    if (!g->broken)
        g->made[g->made_count++] = t;
    return t;
}

/* splitmix64 */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The sum of four uniform numbers: near enough to normal, and quick. */
static double draw_normal(uint64_t *state)
{
    const uint64_t z = draw(state);
    const int64_t sum = (int64_t)(z & 0xffff) + (int64_t)(z >> 16 & 0xffff) +
                        (int64_t)(z >> 32 & 0xffff) + (int64_t)(z >> 48);

    return (double)(sum - 131070) / 37837.2;
}

static void fill(gpu *g, const sl_tensor *t, double scale)
{
    uint64_t *state = &g->seed;
    const int64_t count = sl_tensor_count(t);
    const uint64_t width = (uint64_t)(2 * (int64_t)scale + 1), half = width / 2 + 1;

    switch (t->dtype) {
    case SL_F32:
        for (int64_t i = 0; i < count; i++)
            ((float *)t->data)[i] = (float)(scale * draw_normal(state));
        break;
    case SL_F64:
        for (int64_t i = 0; i < count; i++)
            ((double *)t->data)[i] = scale * draw_normal(state);
        break;
    case SL_I8:
        for (int64_t i = 0; i < count; i++)
            ((int8_t *)t->data)[i] = (int8_t)((int64_t)(draw(state) % width) - (int64_t)scale);
        break;
    case SL_U8:
        for (int64_t i = 0; i < count; i++)
            ((uint8_t *)t->data)[i] = (uint8_t)(draw(state) % half);
        break;
    case SL_I32:
        for (int64_t i = 0; i < count; i++)
            ((int32_t *)t->data)[i] = (int32_t)((int64_t)(draw(state) % width) - (int64_t)scale);
        break;
    default:
        gpu_fail(g, "no random %s", sl_dtype_name(t->dtype));
    }
}

gpu_tensor gpu_random(gpu *g, sl_dtype dtype, double scale, int rank, const int64_t *dim)
{
    gpu_tensor t = gpu_output(g, dtype, rank, dim);

    if (!g->broken)
        fill(g, &t.on[GPU_CPU], scale);
    gpu_push(g, &t);
    return t;
}

void gpu_push(gpu *g, gpu_tensor *t)
{
    const sl_tensor *cpu = &t->on[GPU_CPU], *cuda = &t->on[GPU_CUDA];
    const size_t mark = sl_scratch_mark(&g->on[GPU_CPU].scratch);
    const int64_t count = sl_tensor_count(cpu);
    const void *from = cpu->data;

    if (g->broken)
        return;
    if (cuda->dtype != cpu->dtype) {
        float *values = cpu->data;
        uint16_t *bits = host_bytes(g, (size_t)count * sizeof *bits);
        if (!bits)
            return;
        for (int64_t i = 0; i < count; i++) {
            bits[i] = sl_bf16_from_f32(values[i]);
            values[i] = sl_bf16_to_f32(bits[i]);
        }
        from = bits;
    }
    device_ok(
        g, "upload",
        sl_exec_write(g->on[GPU_CUDA].exec, cuda->data, from, sl_tensor_bytes(cuda), &g->err));
    sl_scratch_release(&g->on[GPU_CPU].scratch, mark);
}

void *gpu_pull(gpu *g, const gpu_tensor *t)
{
    const sl_tensor *cuda = &t->on[GPU_CUDA];
    const size_t size_bytes = sl_tensor_bytes(cuda);
    void *to = g->broken ? NULL : host_bytes(g, size_bytes);

    if (!to || !device_ok(g, "download",
                          sl_exec_read(g->on[GPU_CUDA].exec, to, cuda->data, size_bytes, &g->err)))
        return NULL;
    return to;
}

gpu_tensor gpu_rows(const gpu_tensor *t, int64_t first, int64_t count)
{
    gpu_tensor rows;

    for (int s = 0; s < GPU_SIDES; s++)
        rows.on[s] = sl_tensor_rows(&t->on[s], first, count);
    return rows;
}

const char *gpu_dtype(sl_dtype dtype)
{
    return dtype == SL_F32 ? "f32" : dtype == SL_BF16 ? "bf16" : sl_dtype_name(dtype);
}

/* ---- running and comparing ---- */

bool gpu_ready(gpu *g, const char *op, int side, bool present)
{
    sl_scratch *scratch = &g->on[side].scratch;
    const size_t left = scratch->size_bytes - scratch->used_bytes;

    if (g->broken)
        return false;
    if (!present) {
        gpu_fail(g, "the %s table has no %s", g->on[side].ops->name, op);
        return false;
    }
    g->used_before = sl_scratch_mark(scratch);
    if (side == GPU_CUDA) { /* temporary memory starts as NaN */
        const size_t mark = sl_scratch_mark(&g->on[GPU_CPU].scratch);
        const size_t count = left < POISON_BYTES ? left : POISON_BYTES;
        void *nan = host_bytes(g, count);
        if (!nan)
            return false;
        memset(nan, POISON, count);
        device_ok(g, "poison",
                  sl_exec_write(g->on[side].exec, scratch->base + scratch->used_bytes, nan, count,
                                &g->err));
        sl_scratch_release(&g->on[GPU_CPU].scratch, mark);
    }
    return !g->broken;
}

void gpu_ran(gpu *g, const char *op, int side, sl_status status)
{
    const char *name = g->on[side].ops->name;

    if (status == SL_OK)
        status = sl_exec_wait(g->on[side].exec, &g->err);
    if (status != SL_OK)
        gpu_fail(g, "%s %s: %s: %s", name, op, sl_status_text(status), g->err.message);
    if (sl_scratch_mark(&g->on[side].scratch) != g->used_before) {
        gpu_fail(g, "%s %s kept temporary memory", name, op);
        sl_scratch_release(&g->on[side].scratch, g->used_before);
    }
}

static double value_of(const void *data, sl_dtype dtype, int64_t i)
{
    switch (dtype) {
    case SL_F32:
        return (double)((const float *)data)[i];
    case SL_BF16:
        return (double)sl_bf16_to_f32(((const uint16_t *)data)[i]);
    case SL_F64:
        return ((const double *)data)[i];
    case SL_I8:
        return (double)((const int8_t *)data)[i];
    case SL_U8:
    case SL_BOOL:
    case SL_F8_E4M3: /* as bytes: for exact comparison only */
        return (double)((const uint8_t *)data)[i];
    case SL_I32:
        return (double)((const int32_t *)data)[i];
    default:
        return NAN;
    }
}

/* Steps of bf16 between two values; order of the bits with the sign unfolded. */
static int bf16_order(float x)
{
    const int bits = sl_bf16_from_f32(x);

    return bits & 0x8000 ? 0x8000 - bits : bits;
}

/* The first element whose bits differ; -1: none. */
static int64_t first_difference(const void *got, sl_dtype dtype, const void *want, int64_t count)
{
    const size_t each = sl_dtype_bytes(dtype);

    for (int64_t i = 0; i < count; i++) {
        uint16_t rounded;
        const void *w = (const char *)want + (size_t)i * each;
        if (dtype == SL_BF16) {
            rounded = sl_bf16_from_f32(((const float *)want)[i]);
            w = &rounded;
        }
        if (memcmp((const char *)got + (size_t)i * each, w, each) != 0)
            return i;
    }
    return -1;
}

static bool compare_exact(gpu *g, const char *what, const void *got, sl_dtype dtype,
                          const void *want, sl_dtype want_dtype, int64_t count)
{
    const int64_t at = first_difference(got, dtype, want, count);

    if (at < 0) {
        gpu_say(g, "  %s exact", what);
        return true;
    }
    gpu_fail(g, "%s differs first at %lld of %lld: got %.9g, want %.9g", what, (long long)at,
             (long long)count, value_of(got, dtype, at), value_of(want, want_dtype, at));
    return false;
}

/* How many elements are too many ulps off, and where the first is. */
static int64_t count_far(const void *got, sl_dtype dtype, const void *want, sl_dtype want_dtype,
                         int64_t count, int ulps, double floor, int64_t *first)
{
    int64_t far = 0;

    for (int64_t i = 0; i < count; i++) {
        const double a = value_of(got, dtype, i), b = value_of(want, want_dtype, i);
        const bool near =
            fabs(a - b) <= floor || abs(bf16_order((float)a) - bf16_order((float)b)) <= ulps;
        if (!(near && a - b == a - b) && far++ == 0)
            *first = i;
    }
    return far;
}

static bool compare_values(gpu *g, const char *what, const void *got, sl_dtype dtype,
                           const void *want, sl_dtype want_dtype, int64_t count, gpu_limits limits)
{
    double diff = 0.0, norm = 0.0;
    int64_t first = 0;

    if (limits.rel_l2 == 0.0 && limits.ulps == 0)
        return compare_exact(g, what, got, dtype, want, want_dtype, count);
    for (int64_t i = 0; i < count; i++) {
        const double b = value_of(want, want_dtype, i), d = value_of(got, dtype, i) - b;
        diff += d * d;
        norm += b * b;
    }
    const double rel = diff == 0.0 ? 0.0 : sqrt(diff / norm);
    gpu_say(g, "  %s rel %.1e (<= %.0e)", what, rel, limits.rel_l2);
    if (!(rel <= limits.rel_l2)) {
        for (first = 0; first < count - 1; first++) {
            const double b = value_of(want, want_dtype, first);
            const double d = fabs(value_of(got, dtype, first) - b);
            if (!(d <= limits.rel_l2 * (fabs(b) + sqrt(norm / (double)count))))
                break;
        }
        gpu_fail(g, "%s is too far off, first at %lld of %lld: got %.9g, want %.9g", what,
                 (long long)first, (long long)count, value_of(got, dtype, first),
                 value_of(want, want_dtype, first));
        return false;
    }
    if (limits.ulps < 0 || count == 0)
        return true;
    const int64_t far = count_far(got, dtype, want, want_dtype, count, limits.ulps,
                                  limits.floor * sqrt(norm / (double)count), &first);
    if (far > 0)
        gpu_fail(g, "%s: %lld of %lld are over %d ulp off, first at %lld: got %.9g, want %.9g",
                 what, (long long)far, (long long)count, limits.ulps, (long long)first,
                 value_of(got, dtype, first), value_of(want, want_dtype, first));
    return far == 0;
}

void gpu_compare(gpu *g, const char *what, const gpu_tensor *t, gpu_limits limits)
{
    const sl_tensor *want = &t->on[GPU_CPU];
    const void *got = gpu_pull(g, t);

    if (got)
        compare_values(g, what, got, t->on[GPU_CUDA].dtype, want->data, want->dtype,
                       sl_tensor_count(want), limits);
}

bool gpu_compare_with(gpu *g, const char *what, const gpu_tensor *t, const float *want,
                      gpu_limits limits)
{
    const void *got = gpu_pull(g, t);

    return got && compare_values(g, what, got, t->on[GPU_CUDA].dtype, want, SL_F32,
                                 sl_tensor_count(&t->on[GPU_CUDA]), limits);
}

/* ---- program ---- */

static sl_status open_side(gpu *g, int which)
{
    gpu_side *side = &g->on[which];
    const bool cuda = which == GPU_CUDA;
    const size_t most = cuda ? CUDA_BYTES : CPU_BYTES, size_bytes = g->small ? most / 8 : most;
    const sl_device_spec spec = { .kind = cuda ? SL_DEVICE_CUDA : SL_DEVICE_CPU,
                                  .limit_bytes = size_bytes + SL_GIB };
    const sl_numerics numerics = sl_numerics_of(SL_DEVICE_CUDA, false);
    sl_status status = sl_device_create(&side->device, &spec, &g->err);

    if (status == SL_OK && cuda)
        status = sl_exec_create_cuda(&side->exec, side->device, &numerics, &g->cancel, &g->err);
    else if (status == SL_OK)
        status = sl_exec_create_cpu(&side->exec, side->device, 0, &g->cancel, &g->err);
    if (status == SL_OK)
        status = sl_region_create(&side->memory, side->device, "gpu_test", size_bytes, &g->err);
    if (status == SL_OK)
        status = sl_region_map(side->memory, size_bytes, &g->err);
    if (status != SL_OK)
        return status;
    sl_scratch_init(&side->scratch, sl_region_data(side->memory), size_bytes);
    sl_exec_lend_scratch(side->exec, &side->scratch);
    side->ops = sl_exec_ops(side->exec);
    return SL_OK;
}

static void close_side(gpu_side *side)
{
    sl_exec_destroy(side->exec);
    sl_region_destroy(side->memory);
    sl_device_destroy(side->device);
    *side = (gpu_side){ .exec = NULL };
}

/* False: the devices could not be opened. */
static bool run_area(gpu *g, gpu_area_fn *run)
{
    sl_status status;

    g->score->name[0] = '\0';
    g->begun = 0;
    status = open_side(g, GPU_CUDA);
    g->score->absent = status == SL_ERR_UNAVAILABLE && g->score->begun == 0;
    if (status == SL_OK)
        status = open_side(g, GPU_CPU);
    if (status != SL_OK) {
        printf("%s opening the device: %s: %s\n", g->score->absent ? "SKIP" : "FAIL",
               sl_status_text(status), g->err.message);
        fflush(stdout);
        g->score->failed += !g->score->absent;
    } else {
        run(g);
    }
    close_side(&g->on[GPU_CPU]);
    close_side(&g->on[GPU_CUDA]);
    g->score->finished = status == SL_OK;
    fflush(stdout);
    return status == SL_OK;
}

static void run_process(gpu *g, gpu_area_fn *run)
{
    int state = 0;
    const int failed = g->score->failed, passed = g->score->passed;

    fflush(stdout);
    g->skip = g->score->begun;
    const pid_t child = fork();
    if (child == 0)
        _exit(run_area(g, run) ? 0 : 4);
    if (child < 0 || waitpid(child, &state, 0) != child) {
        printf("FAIL no process for the checks\n");
        g->score->failed++;
        g->score->finished = true;
    } else if (WIFSIGNALED(state)) {
        printf("FAIL %s: ended by signal %d\n", g->score->name, WTERMSIG(state));
        g->score->failed++;
    } else if (!g->score->finished && !g->score->absent && g->score->failed == failed) {
        printf("FAIL %s: the process ended (%d)\n", g->score->name, WEXITSTATUS(state));
        g->score->failed++;
    }
    /* Nothing happened at all: it would not the next time either. */
    if (g->score->begun == g->skip && g->score->passed == passed)
        g->score->finished = true;
}

int main(int argc, char **argv)
{
    gpu g = { .small = false };
    const char *area = NULL;
    bool in_line = false;
    int left_out = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) {
            g.small = true;
        } else if (strcmp(argv[i], "--inline") == 0) {
            in_line = true;
        } else if (strcmp(argv[i], "--area") == 0 && i + 1 < argc) {
            area = argv[++i];
        } else if (argv[i][0] != '-' && !g.only) {
            g.only = argv[i];
        } else {
            fprintf(stderr, "usage: gpu_test [--small] [--inline] [--area NAME] [SUBSTRING]\n");
            return 2;
        }
    }
    g.score =
        mmap(NULL, sizeof *g.score, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (g.score == MAP_FAILED) {
        fprintf(stderr, "gpu_test: no memory for the score\n");
        return 1;
    }
    atomic_init(&g.cancel, 0);
    for (size_t i = 0; i < SL_COUNT(areas) && !g.score->absent; i++) {
        if (area && strcmp(area, areas[i].name) != 0)
            continue;
        if (!areas[i].run) {
            printf("SKIP %s: not part of this build\n", areas[i].name);
            left_out++;
            continue;
        }
        g.score->begun = 0;
        g.score->finished = false;
        if (in_line)
            run_area(&g, areas[i].run);
        for (int n = 0; !in_line && n <= MOST_RESTARTS && !g.score->finished && !g.score->absent;
             n++)
            run_process(&g, areas[i].run);
    }
    if (g.score->passed + g.score->failed + left_out == 0 && !g.score->absent) {
        printf("FAIL no check is called that\n");
        g.score->failed++;
    }
    printf("%d passed, %d failed\n", g.score->passed, g.score->failed);
    return g.score->absent ? EXIT_ABSENT : g.score->failed > 0;
}
